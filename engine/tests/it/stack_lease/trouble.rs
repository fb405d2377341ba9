//! Three nodes and a Redis that is slow by seconds, answers with errors, or is cut off from one of
//! them: each sells what it holds, nobody gets more than there is, and in the end all is sold.

use std::time::Duration;

use rustix::process::Signal;

use super::nodes::{buy, confirmed, free, is_sold_out, lease_of, open, sell_out};
use super::proxy::Proxy;
use super::{PATIENCE, Redis};
use crate::e2e::{measured, now, turn, wait_until};
use crate::e2e_client::Wish;
use crate::e2e_mall::Mall;

fn start(redis: &Redis, units: u64) -> Mall {
    let mall = Mall::start_with(|site| redis.set(site));
    mall.node(0).import_members(1, 60, 100_000);
    open(&mall, units);
    mall
}

/// Buys at a node until it has no unit, which must not be said to be for good; how many it sold.
#[track_caller]
fn sell_what_lies_at(mall: &Mall, at: usize, prefix: &str) -> u64 {
    let (mut client, member) = (mall.client(at), mall.member_of(at));
    for sold in 0.. {
        let wish = Wish::new(member, format!("{prefix}{sold}"), "s", "cup");
        let reply = client.redeem(&wish);
        if reply.status != 201 {
            assert_eq!(reply.expect(409).json()["final"], false, "others may have some");
            return sold;
        }
    }
    unreachable!("units are finite")
}

/// That each node has sold all and knows it, and that journals and pool agree.
#[track_caller]
fn all_are_sold(mall: &Mall, units: u64) {
    wait_until("known everywhere", PATIENCE, || (0..3).all(|at| is_sold_out(mall, at)));
    assert_eq!(confirmed(mall), units);
    (0..3).for_each(|at| mall.node(at).audit());
}

/// † A late answer: its grant was made after the node had given it up.
#[test]
fn a_redis_that_is_slow_by_seconds_holds_no_client_up_and_sells_exactly_the_stock() {
    const UNITS: u64 = 300;
    let _turn = turn();
    let redis = Redis::start();
    let mall = start(&redis, UNITS);
    // It does not answer at all, so whoever answers here has not waited for it.
    redis.signal(Signal::STOP);
    let mut sold = 0;
    for at in 0..3 {
        let held = free(&mall, at);
        assert!(held > 0);
        let sold_here = sell_what_lies_at(&mall, at, "still");
        assert!(sold_here >= held, "it held {held}, and sold {sold_here}");
        sold += sold_here;
    }
    assert!(sold < UNITS, "the pool kept some");
    redis.signal(Signal::CONT);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..4 {
                redis.signal(Signal::STOP);
                std::thread::sleep(Duration::from_millis(1_200));
                redis.signal(Signal::CONT);
                std::thread::sleep(Duration::from_millis(300));
            }
        });
        assert_eq!(sell_out(&mall, "slow"), UNITS - sold);
    });
    all_are_sold(&mall, UNITS);
    let late: f64 =
        (0..3).map(|at| mall.node(at).metric("onrush_stock_redis_timeouts_total")).sum();
    assert!(late > 0.0, "asks were given up");
}

/// Commands for Redis, in words.
type Orders = &'static [&'static [&'static str]];

#[test]
fn a_redis_that_answers_with_errors_is_sold_without_and_gone_back_to() {
    const UNITS: u64 = 600;
    /// How Redis is made to refuse, and how that ends.
    const ERRORS: [(&str, Orders, Orders); 4] = [
        ("OOM", &[&["CONFIG", "SET", "maxmemory", "1"]], &[&["CONFIG", "SET", "maxmemory", "0"]]),
        (
            "NOREPLICAS",
            &[&["CONFIG", "SET", "min-replicas-to-write", "1"]],
            &[&["CONFIG", "SET", "min-replicas-to-write", "0"]],
        ),
        (
            "NOPERM",
            &[&["ACL", "SETUSER", "default", "-eval", "-evalsha"]],
            &[&["ACL", "SETUSER", "default", "+@all"]],
        ),
        (
            "WRONGTYPE",
            &[&["RENAME", "onrush:{s/cup}", "aside"], &["SET", "onrush:{s/cup}", "x"]],
            &[&["DEL", "onrush:{s/cup}"], &["RENAME", "aside", "onrush:{s/cup}"]],
        ),
    ];
    let _turn = turn();
    let redis = Redis::start();
    let mall = start(&redis, UNITS);
    let mut sold = 0;
    for (error, begin, end) in ERRORS {
        let order = |words: &[&str]| {
            redis.order(words).unwrap_or_else(|e| panic!("{words:?}: {e}"));
        };
        for words in begin {
            order(words);
        }
        for at in 0..3 {
            let held = free(&mall, at);
            let sold_here = sell_what_lies_at(&mall, at, error);
            assert!(held > 0 && sold_here >= held, "{error}: held {held}, sold {sold_here}");
            sold += sold_here;
            wait_until("operators see it", PATIENCE, || {
                mall.client(at).redeem(&Wish::new(mall.member_of(at), "vain", "s", "cup"));
                lease_of(&mall, at)["state"] == "unreachable"
            });
        }
        for words in end {
            order(words);
        }
        for at in 0..3 {
            buy(&mall, at, &format!("after-{error}"), 1);
            sold += 1;
            wait_until("units are here again", PATIENCE, || free(&mall, at) > 0);
        }
        assert_eq!(lease_of(&mall, 0)["epoch"], 1, "{error} is no loss: nothing is rebuilt");
    }
    assert_eq!(sell_out(&mall, "rest"), UNITS - sold);
    all_are_sold(&mall, UNITS);
}

#[test]
fn a_redis_that_one_node_cannot_reach_serves_the_others_and_that_node_sells_what_it_holds() {
    const UNITS: u64 = 120;
    let _turn = turn();
    let redis = Redis::start();
    let way = Proxy::before(([127, 0, 0, 1], redis.port).into());
    let mut mall = Mall::prepare(|site| redis.set(site));
    let url = format!("[\"redis://{}\"]", way.address);
    mall.sites[2].set("stock.redis.urls", &url);
    mall.start_all();
    mall.node(0).import_members(1, 60, 100_000);
    open(&mall, UNITS);
    way.cut();
    let held = free(&mall, 2);
    assert!(held > 4, "{held}");
    // The others sell all that it does not hold, and know that there is more.
    let mut sold = 0;
    let (mut clients, members) =
        ([0, 1].map(|at| mall.client(at)), [0, 1].map(|at| mall.member_of(at)));
    wait_until("the others have sold the rest", PATIENCE, || {
        for at in 0..2 {
            let wish = Wish::new(members[at], format!("k{sold}"), "s", "cup");
            let reply = clients[at].redeem(&wish);
            if reply.status == 201 {
                sold += 1;
            } else {
                assert_eq!(reply.expect(409).json()["final"], false, "one cannot be asked");
            }
        }
        sold == UNITS - held
    });
    // Half of what it holds; its clients notice nothing.
    for n in 0..held / 2 {
        let wish = Wish::new(mall.member_of(2), format!("alone{n}"), "s", "cup");
        mall.client(2).redeem(&wish).expect(201);
    }
    for at in 0..2 {
        let wish = Wish::new(members[at], "more", "s", "cup");
        assert_eq!(clients[at].redeem(&wish).expect(409).json()["final"], false);
    }
    assert_eq!(confirmed(&mall), UNITS - held + held / 2);
    // What it said meanwhile arrives late; it hears of those who want, and gives back.
    way.heal();
    let begun = now();
    buy(&mall, 0, "given-back", held - held / 2);
    measured("the way to Redis back, until others have bought what a node held", begun);
    all_are_sold(&mall, UNITS);
}
