//! A rolling restart of nodes that sell one stock from one pool.

use super::Redis;
use crate::e2e::turn;
use crate::e2e_mall::Mall;
use crate::e2e_nodes_down::{restart_all_in_turn, sold_of};

#[test]
fn a_rolling_restart_over_one_pool_costs_clients_nothing_but_retried_503s() {
    let _turn = turn();
    let redis = Redis::start();
    let mut mall = Mall::start_with(|site| redis.set(site));
    mall.node(0).import_members(1, 300, 1_000_000);
    mall.node(0).open_sale("s", 60_000, &[("cup", 1, 1_000_000, 1_000_000)]);
    let confirmed = restart_all_in_turn(&mut mall, |_| "s".into());
    assert_eq!(sold_of(&mall, "s"), confirmed, "each request had one effect and one answer");
    (0..3).for_each(|at| mall.node(at).audit());
}
