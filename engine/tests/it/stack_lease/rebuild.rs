//! A pool that Redis has lost, with three nodes whose claims lie in a database: so it is known
//! which journals may hold units, and the pool opens again.

use super::nodes::{buy, confirmed, here, lease_of, open, sell_out};
use super::{PATIENCE, Redis};
use crate::e2e::{measured, now, onrush, run, turn, wait_until};
use crate::e2e_client::Wish;
use crate::e2e_mall::Mall;
use crate::stack_nodes::mall_on;
use crate::stack_servers::{Flavour, shared};

const UNITS: u64 = 300;

/// Three nodes that have sold a little of one item.
fn selling(mall: &mut Mall) {
    mall.start_all();
    mall.node(0).import_members(1, 60, 100_000);
    open(mall, UNITS);
    for at in 0..3 {
        buy(mall, at, "early", 10);
    }
}

fn is_open(mall: &Mall, at: usize, epoch: u64) -> bool {
    let lease = lease_of(mall, at);
    lease["state"] == "open" && lease["epoch"] == epoch
}

/// `onrush stock WORDS`, with the settings of node a: its exit code.
fn stock(mall: &Mall, words: &[&str]) -> Option<i32> {
    let (code, out, err) = run(onrush()
        .arg("stock")
        .args(words)
        .arg("--config")
        .arg(mall.sites[0].path("onrush.toml")));
    println!("stock {words:?}: {code:?} {out}{err}");
    code
}

/// † [Redis came back empty, and granted what was sold already.]
#[test]
fn a_redis_restarted_empty_is_rebuilt_by_itself_and_by_hand_and_sells_exactly_the_stock() {
    let _turn = turn();
    let servers = shared(Flavour::MySql);
    let mut redis = Redis::start();
    let (mut mall, _) = mall_on(servers, |site| redis.set(site));
    selling(&mut mall);
    redis.kill();
    for at in 0..3 {
        buy(&mall, at, "without", 1);
    }
    redis.resume();
    let begun = now();
    wait_until("the pool is open again", PATIENCE, || (0..3).all(|at| is_open(&mall, at, 2)));
    measured("Redis back with nothing, until its pool is open for three nodes", begun);
    buy(&mall, 1, "again", 10);
    assert_eq!(stock(&mall, &["rebuild"]), Some(0));
    wait_until("and once more", PATIENCE, || (0..3).all(|at| is_open(&mall, at, 3)));
    assert_eq!(sell_out(&mall, "late"), UNITS - 43);
    assert_eq!(confirmed(&mall), UNITS);
    assert_eq!(stock(&mall, &["inspect"]), Some(0));
    (0..3).for_each(|at| mall.node(at).audit());
}

/// † [Each node heard that Redis was back before it was connected itself, asked once in vain, and
/// sold on in an epoch that was gone.]
#[test]
fn a_pool_that_is_lost_while_nobody_buys_is_opened_again() {
    let _turn = turn();
    let servers = shared(Flavour::MySql);
    let mut redis = Redis::start();
    let (mut mall, _) = mall_on(servers, |site| redis.set(site));
    selling(&mut mall);
    for epoch in 2..=3 {
        // At rest: what they hold is told, and no demand makes them ask.
        for at in 0..3 {
            let journal = mall.cluster(at)["nodes"][at]["journal"].clone();
            let journal = journal.as_str().expect("a journal").to_owned();
            let told = || {
                let field = |name: &str| {
                    let field = format!("{name}:{journal}");
                    redis.order(&["HGET", "onrush:{s/cup}", &field]).expect("Redis runs")
                };
                field("g") != "Nil" && field("g") == field("a")
            };
            wait_until("its units are told", PATIENCE, told);
        }
        redis.kill();
        redis.resume();
        wait_until("open again", PATIENCE, || (0..3).all(|at| is_open(&mall, at, epoch)));
    }
}

/// † [A rebuild with one node out of reach gave its units to the others.]
#[test]
fn a_rebuild_keeps_the_units_of_a_node_that_is_away_for_it_until_it_is_back() {
    let _turn = turn();
    let servers = shared(Flavour::MySql);
    let mut redis = Redis::start();
    let (mut mall, _) = mall_on(servers, |site| redis.set(site));
    selling(&mut mall);
    let reserved = here(&mall, 2)[0];
    assert!(reserved > 0, "it holds units ahead of demand");
    mall.take(2).kill();
    redis.kill();
    redis.resume();
    for at in 0..2 {
        wait_until("it has reported", PATIENCE, || {
            lease_of(&mall, at)["state"] == "rebuilding" && lease_of(&mall, at)["epoch"] == 2
        });
    }
    assert_eq!(stock(&mall, &["inspect"]), Some(1), "it waits for a journal");
    // They sell what they hold, and no more.
    for at in 0..2 {
        buy(&mall, at, "held", here(&mall, at)[0]);
        let wish = Wish::new(mall.member_of(at), "more", "s", "cup");
        assert_eq!(mall.client(at).redeem(&wish).expect(409).json()["final"], false);
    }
    mall.start_node(2);
    wait_until("the pool is open again", PATIENCE, || (0..3).all(|at| is_open(&mall, at, 2)));
    sell_out(&mall, "late");
    assert_eq!(confirmed(&mall), UNITS);
    (0..3).for_each(|at| mall.node(at).audit());
}
