//! Three nodes on Redis as it is deployed: behind a Sentinel that fails over, and as a Cluster of
//! three masters. Claims lie in a database, so a pool that was lost is rebuilt by itself.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use onrush::config::{RedisConfig, RedisMode};
use rustix::process::Signal;

use super::PATIENCE;
use super::nodes::{buy, confirmed, free, is_sold_out, lease_of, open, sell_out};
use crate::e2e::{Site, now, turn, wait_until};
use crate::e2e_client::Wish;
use crate::e2e_mall::Mall;
use crate::stack_nodes::mall_on;
use crate::stack_redis::cluster::cluster;
use crate::stack_redis::sentinel::Watched;
use crate::stack_servers::{Flavour, shared};

fn set(site: &mut Site, config: &RedisConfig) {
    let mode = match config.mode {
        RedisMode::Single => "single",
        RedisMode::Sentinel => "sentinel",
        RedisMode::Cluster => "cluster",
    };
    site.set("stock.kind", "\"redis\"");
    site.set("stock.redis.mode", &format!("{mode:?}"));
    site.set("stock.redis.urls", &format!("{:?}", config.urls));
    site.set("stock.redis.sentinel_master", &format!("{:?}", config.sentinel_master));
    site.set("stock.redis.timeout_ms", "300");
    site.set("stock.redis.connect_timeout_ms", "300");
}

/// Three nodes that know of each other's journals.
fn mall(config: &RedisConfig) -> Mall {
    let (mut mall, _) = mall_on(shared(Flavour::MySql), |site| set(site, config));
    mall.start_all();
    mall.node(0).import_members(1, 60, 1_000_000);
    mall
}

/// † Redis failover that forgets, with nodes that have sold what the replica missed.
#[test]
fn a_sentinels_failover_to_a_replica_that_missed_grants_costs_no_unit() {
    const UNITS: u64 = 300;
    let _turn = turn();
    let mut watched = Watched::start();
    let mall = mall(&watched.settings());
    open(&mall, UNITS);
    (0..3).for_each(|at| buy(&mall, at, "early", 5));
    watched.wait_for_the_replica();
    watched.replica.signal(Signal::STOP);
    // More than lies here: what comes is granted behind the replica's back.
    let mut sold = 15;
    for at in 0..3 {
        let more = free(&mall, at) + 3;
        buy(&mall, at, "missed", more);
        sold += more;
    }
    watched.master.kill();
    watched.replica.signal(Signal::CONT);
    // Nobody is master now.
    for at in 0..3 {
        let held = free(&mall, at);
        let mut client = mall.client(at);
        for n in 0..held {
            let wish = Wish::new(mall.member_of(at), format!("without{n}"), "s", "cup");
            client.redeem(&wish).expect(201);
        }
        sold += held;
    }
    assert_eq!(sell_out(&mall, "late"), UNITS - sold);
    assert_eq!(confirmed(&mall), UNITS);
    for at in 0..3 {
        assert_eq!(lease_of(&mall, at)["epoch"], 2, "the replica was another life");
        assert!(is_sold_out(&mall, at));
        mall.node(at).audit();
    }
}

const SKUS: usize = 6;

fn sku(n: usize) -> String {
    format!("cup-{n}")
}

/// Buys every item at every node until each node says of each that no unit can come back; `sold`
/// counts while it runs.
fn sell_all_out(mall: &Mall, sold: &AtomicU64) {
    let stop = now();
    std::thread::scope(|scope| {
        for at in 0..3 {
            scope.spawn(move || {
                let (mut client, member) = (mall.client(at), mall.member_of(at));
                let mut left: Vec<usize> = (0..SKUS).collect();
                for key in 0.. {
                    left.retain(|n| {
                        let wish = Wish::new(member, format!("k{key}-{n}"), "s", &sku(*n));
                        let reply = client.redeem(&wish);
                        sold.fetch_add(u64::from(reply.status == 201), Ordering::Relaxed);
                        reply.status == 201 || reply.expect(409).json()["final"] == false
                    });
                    if left.is_empty() {
                        return;
                    }
                    assert!(stop.elapsed() < Duration::from_mins(2), "still sold: {left:?}");
                }
            });
        }
    });
}

#[test]
fn a_clusters_masters_serve_three_nodes_and_one_that_is_killed_costs_no_unit() {
    const UNITS: u64 = 60;
    let _turn = turn();
    let (mut servers, config) = cluster();
    let mall = mall(&config);
    let items: Vec<String> = (0..SKUS).map(sku).collect();
    let items: Vec<_> = items.iter().map(|sku| (sku.as_str(), 1, UNITS, 100_000)).collect();
    mall.node(0).open_sale("s", 60_000, &items);
    let keys = |server: &crate::stack_redis::Server| -> u64 {
        redis::cmd("DBSIZE").query(&mut server.connection()).unwrap()
    };
    let spread: Vec<u64> = servers.iter().map(keys).collect();
    assert_eq!(spread.iter().sum::<u64>(), SKUS as u64);
    assert!(spread.iter().all(|count| *count > 0), "{spread:?}");
    let sold = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let selling = scope.spawn(|| sell_all_out(&mall, &sold));
        wait_until("some are sold", PATIENCE, || sold.load(Ordering::Relaxed) > 30);
        servers[0].kill();
        let before = sold.load(Ordering::Relaxed);
        wait_until("what nodes hold is sold", PATIENCE, || {
            sold.load(Ordering::Relaxed) > before + 10
        });
        servers[0].restart();
        selling.join().expect("each node said so");
    });
    let total = SKUS as u64 * UNITS;
    assert_eq!(sold.load(Ordering::Relaxed), total);
    let mut rebuilt = 0;
    for at in 0..3 {
        let items = mall.admin(at).get("/v1/sales/s").expect(200).json()["items"].clone();
        for item in items.as_array().expect("items") {
            assert_eq!(item["confirmed"], UNITS, "over all nodes: {item}");
            rebuilt += u64::from(item["lease"]["epoch"].as_u64() > Some(1));
        }
        mall.node(at).audit();
    }
    assert_eq!(rebuilt, 3 * spread[0], "those of the master that was killed, on every node");
}
