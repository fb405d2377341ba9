//! kill -9 between every two steps, at each of the first five times: of the node, and of Redis.

use std::io;
use std::time::Duration;

use serde_json::{Value, json};

use onrush::crash::CrashPoint;

use super::proxy::{Proxy, Towards};
use super::{PATIENCE, Redis, item, sell, total};
use crate::e2e::{Node, Site, now, turn, wait_until};
use crate::e2e_client::{Client, Wish};

const STOCK: u64 = 60;
/// Withdrawn and added again in each round: more than the pool has, so that units lying here are
/// given back for it, and leased anew.
const MOVED: u64 = 45;
const ROUNDS: u64 = 5;

/// Does what can be done before the node dies, with keys that are the same in each life; gives how
/// many units were withdrawn, by the answers. `each_round` is called before each withdrawal.
fn live(node: &Node, each_round: impl Fn()) -> io::Result<u64> {
    let sale = json!({
        "id": "s", "name": "s", "opens_at": "2026-01-01T00:00:00Z",
        "closes_at": "2099-01-01T00:00:00Z", "hold_ttl_ms": 60_000,
        "items": [{ "sku": "cup", "name": "c", "points": 1, "stock": STOCK,
                    "limit_per_member": 1000 }],
    });
    let mut admin = node.admin();
    post(&mut admin, "/v1/sales", "d", &sale)?;
    post(&mut admin, "/v1/sales/s/open", "o", &json!({}))?;
    let mut client = node.client();
    let mut withdrawn = 0;
    for round in 0..ROUNDS {
        for n in 0..2 {
            client.try_redeem(&Wish::new(1, format!("k{round}-{n}"), "s", "cup"))?;
        }
        each_round();
        let path = "/v1/sales/s/items/cup/stock";
        let body = json!({ "withdraw": MOVED });
        let answer = post(&mut admin, path, &format!("w{round}"), &body)?;
        withdrawn += answer["withdrawn"].as_u64().expect("units");
        post(&mut admin, path, &format!("a{round}"), &json!({ "add": MOVED }))?;
    }
    Ok(withdrawn)
}

/// Repeats a call, which has its key, until it is done.
fn post(admin: &mut Client, path: &str, key: &str, body: &Value) -> io::Result<Value> {
    let begun = now();
    loop {
        let reply = admin.send("POST", path, &[("idempotency-key", key)], &body.to_string())?;
        if reply.status != 503 {
            assert!(matches!(reply.status, 200 | 201), "{path}: {}", reply.body);
            return Ok(reply.json());
        }
        assert!(begun.elapsed() < PATIENCE, "{path}: {}", reply.body);
    }
}

/// A life that ends at the `nth` hit of a point, and one after it. `false`: it was not hit.
fn survives(point: CrashPoint, nth: u64) -> bool {
    let redis = Redis::start();
    let mut site: Site = redis.site();
    let node = site.start();
    node.import_members(1, 1, 1_000);
    assert!(node.stop().success());
    site.set_env("ONRUSH_CRASH_AT", &format!("{}:{nth}", point.name()));
    let mut node = site.start();
    // Each round is another epoch: the pool is gone.
    let forget = || drop(redis.order(&["FLUSHALL"]).expect("Redis runs"));
    let _ = live(&node, forget);
    let was_hit = node.ends_within(Duration::from_millis(300));
    drop(node);
    site.clear_env("ONRUSH_CRASH_AT");
    let node = site.start();
    let withdrawn = live(&node, forget).expect("a whole life");
    ends_well(&site, node, withdrawn, &format!("{}:{nth}", point.name()));
    was_hit
}

/// Whatever a crash left between Redis and the journal is evened out: all is sold, once.
#[track_caller]
fn ends_well(site: &Site, node: Node, withdrawn: u64, hit: &str) {
    let total = total(&node);
    assert_eq!(total, STOCK + ROUNDS * MOVED - withdrawn, "{hit}: what answers said is what is");
    let confirmed = item(&node)["confirmed"].as_u64().expect("units");
    sell(&node, 1, "rest", total - confirmed);
    wait_until("sold out for good", PATIENCE, || item(&node)["sold_out"] == true);
    assert_eq!(node.units("s", "cup"), [0, 0, total], "{hit}");
    assert!(node.stop().success());
    site.audit();
}

/// A life in which Redis is killed where the `nth` ask has reached it and was not heard of, or was
/// done and not answered; it comes back empty.
fn survives_a_killed_redis(towards: Towards, nth: usize) {
    let mut redis = Redis::start();
    let way = Proxy::before(([127, 0, 0, 1], redis.port).into());
    let mut site = redis.site();
    site.set("stock.redis.urls", &format!("[\"redis://{}\"]", way.address));
    let node = site.start();
    node.import_members(1, 1, 1_000);
    way.cut_at(towards, nth);
    let withdrawn = std::thread::scope(|scope| {
        scope.spawn(|| {
            wait_until("it is cut", PATIENCE, || way.is_cut());
            // Time to carry out what reached it.
            std::thread::sleep(Duration::from_millis(20));
            redis.kill();
            redis.resume();
            way.heal();
        });
        live(&node, || ()).expect("the node lives")
    });
    ends_well(&site, node, withdrawn, &format!("{towards:?} {nth}"));
}

#[test]
fn kill_9_of_redis_before_an_ask_is_done_loses_no_unit() {
    let _turn = turn();
    (1..=6).for_each(|nth| survives_a_killed_redis(Towards::Server, 2 * nth));
}

/// † A lost answer of a server that then forgot what it had done.
#[test]
fn kill_9_of_redis_before_an_ask_is_answered_loses_no_unit() {
    let _turn = turn();
    (1..=6).for_each(|nth| survives_a_killed_redis(Towards::Client, 2 * nth));
}

fn survives_five_times(point: CrashPoint) {
    let _turn = turn();
    let missed: Vec<u64> = (1..=ROUNDS).filter(|nth| !survives(point, *nth)).collect();
    assert!(missed.is_empty(), "{} was never hit for the {missed:?}th time", point.name());
}

macro_rules! points {
    ($($test:ident $point:ident),* $(,)?) => {
        const POINTS: &[CrashPoint] = &[$(CrashPoint::$point),*];
        $(#[test] fn $test() { survives_five_times(CrashPoint::$point); })*
    };
}

points! {
    kill_9_before_an_ask LeaseBeforeAsk,
    kill_9_after_an_answer LeaseAfterAnswer,
    kill_9_before_granted_units_enter LeaseBeforeEnter,
    kill_9_after_units_have_left LeaseAfterTake,
    kill_9_before_a_return_is_told LeaseBeforeTell,
    kill_9_after_an_epoch_is_recorded LeaseAfterEpoch,
    kill_9_after_added_units_are_recorded LeaseAfterAdd,
    kill_9_between_a_withdrawal_and_its_record LeaseAfterWithdraw,
}

#[test]
fn every_point_of_a_lease_is_killed_at() {
    let of_leases = CrashPoint::ALL.iter().filter(|point| point.name().starts_with("lease-"));
    assert!(of_leases.eq(POINTS));
}
