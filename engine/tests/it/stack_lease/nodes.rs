//! Three nodes on one stock.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use super::{PATIENCE, Redis};
use crate::e2e::{now, turn, wait_until};
use crate::e2e_client::Wish;
use crate::e2e_mall::Mall;
use crate::http_spec::Spec;

/// Of the item that Redis must be asked seldom for.
const UNITS: u64 = 10_000;

fn mall(redis: &Redis) -> Mall {
    Mall::start_with(|site| redis.set(site))
}

/// Defines one sale on all nodes, open at once.
#[track_caller]
pub fn open(mall: &Mall, units: u64) {
    mall.node(0).open_sale("s", 60_000, &[("cup", 1, units, 100_000)]);
}

pub fn confirmed(mall: &Mall) -> u64 {
    (0..3).map(|at| here(mall, at)[2]).sum()
}

/// Units of one node: free, held, confirmed.
pub fn here(mall: &Mall, at: usize) -> [u64; 3] {
    let of = |state: &str| {
        let line = format!("onrush_stock_units{{sale=\"s\",sku=\"cup\",state=\"{state}\"}}");
        mall.node(at).metric(&line) as u64
    };
    [of("free"), of("held"), of("confirmed")]
}

/// Units that lie free at a node.
pub fn free(mall: &Mall, at: usize) -> u64 {
    here(mall, at)[0]
}

/// Buys at one node until so many are sold; units come as fast as they are leased.
#[track_caller]
pub fn buy(mall: &Mall, at: usize, prefix: &str, units: u64) {
    let (mut client, member) = (mall.client(at), mall.member_of(at));
    for key in 0..units {
        let wish = Wish::new(member, format!("{prefix}{key}"), "s", "cup");
        wait_until("one is sold", PATIENCE, || client.redeem(&wish).status == 201);
    }
}

/// Buys at all nodes at once until each says that no unit can come back; gives how many were sold.
pub fn sell_out(mall: &Mall, prefix: &str) -> u64 {
    sell_out_watched(mall, prefix).0
}

/// The same; and how long there was a node without a unit before that, to the end.
fn sell_out_watched(mall: &Mall, prefix: &str) -> (u64, Duration) {
    let (sold, begun) = (AtomicU64::new(0), now());
    let dry_after_ms = AtomicU64::new(u64::MAX);
    std::thread::scope(|scope| {
        for at in 0..3 {
            let (sold, dry_after_ms) = (&sold, &dry_after_ms);
            scope.spawn(move || {
                let (mut client, member) = (mall.client(at), mall.member_of(at));
                let mut key = 0;
                // A dry node refuses, and is asked again.
                loop {
                    let wish = Wish::new(member, format!("{prefix}{key}"), "s", "cup");
                    let reply = client.redeem(&wish);
                    if reply.status == 201 {
                        sold.fetch_add(1, Ordering::Relaxed);
                        key += 1;
                        continue;
                    }
                    let after = u64::try_from(begun.elapsed().as_millis()).expect("a short test");
                    dry_after_ms.fetch_min(after, Ordering::Relaxed);
                    if reply.json()["final"] == true {
                        return;
                    }
                    assert!(begun.elapsed() < Duration::from_mins(2), "{}", reply.body);
                }
            });
        }
    });
    let dry_after = Duration::from_millis(dry_after_ms.into_inner());
    (sold.into_inner(), begun.elapsed().saturating_sub(dry_after))
}

/// One node's lease, as operators see it.
pub fn lease_of(mall: &Mall, at: usize) -> Value {
    mall.admin(at).get("/v1/sales/s").expect(200).json()["items"][0]["lease"].clone()
}

/// What a node logs of its part of the sale.
#[track_caller]
fn said_at_the_end(mall: &Mall, at: usize) -> Value {
    let mut line = None;
    wait_until("the end is logged", PATIENCE, || {
        line = mall.node(at).logged("the sale has ended on this node");
        line.is_some()
    });
    line.expect("it was seen")
}

pub fn is_sold_out(mall: &Mall, at: usize) -> bool {
    let wish = Wish::new(mall.member_of(at), "is-it", "s", "cup");
    let reply = mall.client(at).redeem(&wish);
    reply.status == 409 && reply.json()["final"] == true
}

#[test]
fn three_nodes_sell_one_stock_to_its_last_unit_and_each_knows_when_it_is_gone() {
    let _turn = turn();
    let redis = Redis::start();
    let mall = mall(&redis);
    mall.node(0).import_members(1, 60, 100_000);
    open(&mall, UNITS);
    let begun = now();
    let (sold, dry) = sell_out_watched(&mall, "k");
    let whole = begun.elapsed();
    assert_eq!(sold, UNITS);
    assert_eq!(confirmed(&mall), UNITS, "none is left, none is sold twice");
    let calls: f64 = (0..3).map(|at| mall.node(at).metric("onrush_stock_redis_calls_total{")).sum();
    println!(
        "{UNITS} units on three nodes in {whole:?}: {:.4} calls per redemption; dry for {dry:?}",
        calls / UNITS as f64
    );
    for script in ["inspect", "create", "join", "grant", "tell"] {
        let line = format!("onrush_stock_redis_calls_total{{script=\"{script}\"}}");
        let calls: f64 = (0..3).map(|at| mall.node(at).metric(&line)).sum();
        println!("  {script}: {calls}");
    }
    // What selling takes is one ask in a hundred redemptions. A look is one that nothing but the
    // time caused: how many there are tells how slow the machine is.
    let of_all = |figure: &str| -> f64 { (0..3).map(|at| mall.node(at).metric(figure)).sum() };
    let (asks, looks) = (of_all("onrush_stock_asks_total{"), of_all("onrush_stock_looks_total{"));
    println!("  {asks} asks, {looks} of them looks");
    assert!(asks - looks <= UNITS as f64 / 100.0, "{asks} asks, {looks} of them looks");
    for at in 0..3 {
        assert_eq!(here(&mall, at)[0], 0);
        mall.node(at).audit();
    }
}

/// † [One drained node refused while others held stock.]
#[test]
fn a_dry_node_gets_the_units_that_lie_with_others() {
    let _turn = turn();
    let redis = Redis::start();
    let mall = mall(&redis);
    mall.node(0).import_members(1, 60, 100_000);
    open(&mall, 60);
    let mut pauses = Vec::new();
    let (mut client, member) = (mall.client(1), mall.member_of(1));
    for key in 0..60 {
        let wish = Wish::new(member, format!("k{key}"), "s", "cup");
        let begun = now();
        wait_until("one is sold", PATIENCE, || client.redeem(&wish).status == 201);
        pauses.push(begun.elapsed());
    }
    pauses.sort();
    println!("from dry to sold: longest {:?}, median {:?}", pauses[59], pauses[30]);
    assert_eq!(here(&mall, 1), [0, 0, 60]);
    // What the node has measured itself lies within what the client waited.
    let view = mall.cluster(0);
    Spec::load().validate_named("Cluster", &view);
    let lease = &view["nodes"][1]["leases"][0]["lease"];
    assert_eq!((&lease["epoch"], &lease["pool"]), (&json!(1), &json!(0)), "{lease}");
    let (spells, p99) = (lease["dry_spells"].as_u64(), lease["dry_p99_ms"].as_u64());
    assert!(spells >= Some(1) && p99 >= Some(1), "{lease}");
    let longest = pauses[59].as_millis() as u64;
    assert!(p99 <= Some(longest + longest / 50 + 1), "{lease}, longest {longest} ms");
    wait_until("known everywhere", PATIENCE, || (0..3).all(|at| is_sold_out(&mall, at)));
    // And each node says so at the sale's end, for what it has sold.
    mall.admin(2).post("/v1/sales/s/close", &json!({})).expect(200);
    let ends = [0, 1, 2].map(|at| said_at_the_end(&mall, at));
    for (at, end) in ends.iter().enumerate() {
        let number = |field: &str| end[field].as_u64().expect("a number");
        let confirmed = if at == 1 { 60 } else { 0 };
        assert_eq!(number("confirmed"), confirmed, "{end}");
        assert_eq!((number("stranded"), number("pool"), number("elsewhere")), (0, 0, 0), "{end}");
        let (asks, looks) = (number("asks"), number("looks"));
        let per_1000 = (asks * 1_000).checked_div(confirmed).unwrap_or(0);
        assert!(asks > 0 && looks <= asks && number("asks_per_1000") == per_1000, "{end}");
    }
    assert_eq!(ends[1]["dry_spells"].as_u64(), spells, "{}", ends[1]);
    assert_eq!(ends[1]["dry_p99_ms"].as_u64(), p99, "{}", ends[1]);
}

#[test]
fn a_withdrawal_gathers_free_units_from_all_nodes_and_adding_reaches_all() {
    let _turn = turn();
    let redis = Redis::start();
    let mall = mall(&redis);
    mall.node(0).import_members(1, 60, 100_000);
    open(&mall, 90);
    let path = "/v1/sales/s/items/cup/stock";
    let answer = mall.admin(2).post_keyed("w", path, &json!({"withdraw": 1_000})).expect(200);
    assert_eq!(answer.json()["withdrawn"], 90, "all were free");
    wait_until("known everywhere", PATIENCE, || (0..3).all(|at| here(&mall, at)[0] == 0));
    mall.admin(1).post_keyed("a", path, &json!({"add": 9})).expect(200);
    for at in 0..3 {
        let (mut client, member) = (mall.client(at), mall.member_of(at));
        for key in 0..3 {
            let wish = Wish::new(member, format!("k{key}"), "s", "cup");
            wait_until("one is sold", PATIENCE, || client.redeem(&wish).status == 201);
        }
    }
    wait_until("known everywhere", PATIENCE, || (0..3).all(|at| is_sold_out(&mall, at)));
    assert_eq!(confirmed(&mall), 9);
}

#[test]
fn a_node_that_is_killed_keeps_its_units_and_sells_them_when_it_is_back() {
    let _turn = turn();
    let redis = Redis::start();
    let mut mall = mall(&redis);
    mall.node(0).import_members(1, 60, 100_000);
    open(&mall, 60);
    wait_until("it has its share", PATIENCE, || here(&mall, 2)[0] > 0);
    let reserved = here(&mall, 2)[0];
    mall.take(2).kill();
    let (mut client, member) = (mall.client(0), mall.member_of(0));
    for key in 0..60 - reserved {
        let wish = Wish::new(member, format!("k{key}"), "s", "cup");
        wait_until("one is sold", PATIENCE, || client.redeem(&wish).status == 201);
    }
    let wish = Wish::new(member, "one-more", "s", "cup");
    let reply = client.redeem(&wish).expect(409);
    assert_eq!(reply.json()["final"], false, "another node may have some");
    mall.start_node(2);
    // It gives back what nobody asks for there.
    wait_until("the rest is sold", PATIENCE, || client.redeem(&wish).status == 201);
    for key in 0..reserved - 1 {
        let wish = Wish::new(member, format!("r{key}"), "s", "cup");
        wait_until("one is sold", PATIENCE, || client.redeem(&wish).status == 201);
    }
    assert_eq!(confirmed(&mall), 60);
}

/// The databases are files here, and files are one node's: who else may hold units is not known.
#[test]
fn a_lost_pool_stays_shut_until_all_nodes_are_known_and_each_sells_what_it_holds_and_no_more() {
    let _turn = turn();
    let mut redis = Redis::start();
    let mall = mall(&redis);
    mall.node(0).import_members(1, 60, 100_000);
    open(&mall, 60);
    wait_until("each has its share", PATIENCE, || (0..3).all(|at| here(&mall, at)[0] > 0));
    redis.kill();
    let held: Vec<u64> = (0..3).map(|at| here(&mall, at)[0]).collect();
    redis.resume();
    for (at, units) in held.iter().enumerate() {
        let lease = |name: &str| lease_of(&mall, at)[name].clone();
        wait_until("the rebuild is seen", PATIENCE, || lease("state") == "rebuilding");
        assert_eq!(lease("epoch"), 2);
        let (mut client, member) = (mall.client(at), mall.member_of(at));
        for key in 0..*units {
            client.redeem(&Wish::new(member, format!("k{key}"), "s", "cup")).expect(201);
        }
        let reply = client.redeem(&Wish::new(member, "more", "s", "cup")).expect(409);
        assert_eq!(reply.json()["final"], false, "units are missing, and not sold");
    }
    assert_eq!(confirmed(&mall), held.iter().sum::<u64>());
    for at in 0..3 {
        mall.node(at).audit();
    }
}

#[test]
fn pause_and_close_at_one_node_empty_all_of_them_and_final_is_known_without_redis() {
    let _turn = turn();
    let mut redis = Redis::start();
    let mall = mall(&redis);
    mall.node(0).import_members(1, 60, 100_000);
    open(&mall, 90);
    let pool = |at: usize| lease_of(&mall, at)["pool"].clone();
    mall.admin(1).post("/v1/sales/s/pause", &json!({})).expect(200);
    // Whoever gave the last unit back sees them all there; the others need not look.
    wait_until("all units lie in the pool", PATIENCE, || {
        (0..3).all(|at| here(&mall, at) == [0, 0, 0]) && (0..3).any(|at| pool(at) == 90)
    });
    for at in 0..3 {
        let wish = Wish::new(mall.member_of(at), "paused", "s", "cup");
        assert_eq!(mall.client(at).redeem(&wish).expect(409).json()["code"], "sale-paused");
    }
    mall.admin(2).post("/v1/sales/s/resume", &json!({})).expect(200);
    assert_eq!(sell_out(&mall, "k"), 90);
    redis.kill();
    wait_until("Redis is away", PATIENCE, || {
        (0..3).all(|at| lease_of(&mall, at)["state"] == "unreachable" || is_sold_out(&mall, at))
    });
    assert!((0..3).all(|at| is_sold_out(&mall, at)), "each answers it from memory");
    redis.resume();
    mall.admin(0).post("/v1/sales/s/close", &json!({})).expect(200);
    for at in 0..3 {
        let wish = Wish::new(mall.member_of(at), "closed", "s", "cup");
        assert_eq!(mall.client(at).redeem(&wish).expect(409).json()["code"], "sale-ended");
        let fields = said_at_the_end(&mall, at);
        assert_eq!((&fields["stranded"], &fields["pool"]), (&json!(0), &json!(0)), "{fields}");
        assert_eq!(fields["confirmed"], here(&mall, at)[2], "{fields}");
        assert!(fields["dry_p99_ms"].is_u64() && fields["asks_per_1000"].is_u64(), "{fields}");
    }
}
