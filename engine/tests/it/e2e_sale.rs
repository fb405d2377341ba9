//! What a crowd does to a sale: the same request on many connections, the last unit, a balance
//! that covers one of ten, operators who change things in the middle of it.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::e2e::{Node, Site, turn, wait_until};
use crate::e2e_client::{Client, Reply, Wish};

const HOUR_MS: u64 = 3_600_000;

/// Sends all wishes at once, each on its own connection, and gives the answers in order.
fn at_once(address: SocketAddr, wishes: &[Wish]) -> Vec<Reply> {
    let start = Barrier::new(wishes.len());
    thread::scope(|scope| {
        let send = |wish| {
            let start = &start;
            scope.spawn(move || {
                let mut client = Client::new(address).with_patience(Duration::from_secs(30));
                let _ = client.send("GET", "/livez", &[], ""); // the connection stands
                start.wait();
                client.redeem(wish)
            })
        };
        let threads: Vec<_> = wishes.iter().map(send).collect();
        threads.into_iter().map(|t| t.join().expect("a client")).collect()
    })
}

fn count(replies: &[Reply], status: u16, code: &str) -> usize {
    replies.iter().filter(|r| r.status == status && r.code() == code).count()
}

fn started(members: u64, points: u64, items: &[(&str, u64, u64, u32)]) -> (Site, Node) {
    let site = Site::new();
    let node = site.start();
    node.import_members(1, members, points);
    node.open_sale("crowd", HOUR_MS, items);
    (site, node)
}

#[test]
fn one_request_on_many_connections_has_one_effect_and_one_answer() {
    let _turn = turn();
    let (site, node) = started(10, 1000, &[("cup", 10, 100, 50)]);
    for round in 0..10 {
        let wish = Wish::new(1 + round % 3, format!("k{round}"), "crowd", "cup");
        let replies = at_once(node.public, &vec![wish; 40]);
        let bodies: BTreeSet<&str> = replies.iter().map(|r| r.body.as_str()).collect();
        assert_eq!(count(&replies, 201, ""), 40);
        assert_eq!(bodies.len(), 1, "{bodies:?}");
        let is_replay = |r: &&Reply| r.header("idempotent-replayed") == Some("true");
        assert_eq!(replies.iter().filter(is_replay).count(), 39);
    }
    assert_eq!(node.units("crowd", "cup"), [90, 0, 10]);
    node.audit();
    assert!(node.stop().success());
    site.audit();
}

#[test]
fn the_last_unit_wanted_by_a_thousand_members_goes_to_one() {
    let _turn = turn();
    let (site, node) = started(1000, 10, &[("last", 10, 1, 1)]);
    let wishes: Vec<Wish> =
        (1..=1000).map(|m| Wish::new(m, format!("k{m}"), "crowd", "last")).collect();
    let replies = at_once(node.public, &wishes);
    assert_eq!(count(&replies, 201, ""), 1);
    assert_eq!(count(&replies, 409, "sold-out"), 999);
    assert_eq!(node.units("crowd", "last"), [0, 0, 1]);

    let winner = replies.iter().position(|r| r.status == 201).expect("one winner");
    let again = node.client().redeem(&wishes[winner]).expect(201);
    assert_eq!(again.body, replies[winner].body, "a retry is never told that it is sold out");
    node.kill();
    site.audit();
    let node = site.start();
    assert_eq!(node.client().redeem(&wishes[winner]).expect(201).body, replies[winner].body);
    assert_eq!(node.points(1 + winner as u64), [0, 0]);
}

#[test]
fn a_balance_that_covers_one_of_ten_pays_for_one() {
    let _turn = turn();
    let (site, node) = started(20, 15, &[("cup", 10, 1000, 50), ("pen", 9, 1000, 50)]);
    for member in 1..=20 {
        let wishes: Vec<Wish> = (0..10)
            .map(|n| {
                let wish = Wish::new(member, format!("k{n}"), "crowd", ["cup", "pen"][n % 2]);
                if n % 3 == 0 { wish.held() } else { wish }
            })
            .collect();
        let replies = at_once(node.public, &wishes);
        assert_eq!(count(&replies, 201, ""), 1, "member {member}");
        assert_eq!(count(&replies, 403, "insufficient-points"), 9, "member {member}");
        let [free, held] = node.points(member);
        assert!(free == 5 || free == 6 || held > 0, "{free} free, {held} held");
    }
    node.audit();
    assert!(node.stop().success());
    site.audit();
}

#[test]
fn a_limit_holds_against_simultaneous_requests() {
    let _turn = turn();
    let (site, node) = started(5, 1000, &[("cup", 1, 1000, 3)]);
    for member in 1..=5 {
        let wishes: Vec<Wish> =
            (0..12).map(|n| Wish::new(member, format!("k{n}"), "crowd", "cup")).collect();
        let replies = at_once(node.public, &wishes);
        assert_eq!(count(&replies, 201, ""), 3);
        assert_eq!(count(&replies, 409, "limit-reached"), 9);
    }
    assert!(node.stop().success());
    site.audit();
}

/// Clients redeem all the time, while an operator pauses, resumes, adds and withdraws stock.
#[test]
fn operators_may_pause_add_and_withdraw_in_the_middle_of_a_burst() {
    let _turn = turn();
    let (site, node) = started(200, 1_000_000, &[("cup", 1, 2_000, 1_000_000)]);
    let (done, sold) = (AtomicBool::new(false), AtomicU64::new(0));
    let address = node.public;
    let mut total = 2_000;
    thread::scope(|scope| {
        for number in 0..4u64 {
            let (done, sold) = (&done, &sold);
            scope.spawn(move || {
                let mut client = Client::new(address);
                let mut asked = 0u64;
                while !done.load(Ordering::Relaxed) {
                    asked += 1;
                    let member = 1 + (asked * 4 + number) % 200;
                    let wish = Wish::new(member, format!("{number}-{asked}"), "crowd", "cup");
                    let reply = client.redeem(&wish);
                    match (reply.status, reply.code().as_str()) {
                        (201, _) => drop(sold.fetch_add(1, Ordering::Relaxed)),
                        (409, "sold-out" | "sale-paused") => {}
                        other => panic!("{other:?}: {}", reply.body),
                    }
                }
            });
        }
        let mut admin = node.admin();
        for round in 0..15u64 {
            thread::sleep(Duration::from_millis(20));
            admin.post("/v1/sales/crowd/pause", &json!({})).expect(200);
            // A pause that is answered holds: nothing is sold from here on.
            let before = node.units("crowd", "cup");
            thread::sleep(Duration::from_millis(20));
            assert_eq!(node.units("crowd", "cup"), before, "round {round}");
            admin.post("/v1/sales/crowd/resume", &json!({})).expect(200);

            let stock = "/v1/sales/crowd/items/cup/stock";
            let add = json!({ "add": 300 });
            let first = admin.post_keyed(&format!("add-{round}"), stock, &add).expect(200);
            let again = admin.post_keyed(&format!("add-{round}"), stock, &add).expect(200);
            assert_eq!(first.body, again.body, "an operator's key has one effect");
            total += 300;
            let asked = json!({ "withdraw": 200 });
            let key = format!("withdraw-{round}");
            let first = admin.post_keyed(&key, stock, &asked).expect(200);
            let again = admin.post_keyed(&key, stock, &asked).expect(200);
            assert_eq!(first.body, again.body, "also what could really be withdrawn");
            let withdrawn = first.json()["withdrawn"].as_u64().expect("the number that happened");
            assert!(withdrawn <= 200, "{}", first.body);
            total -= withdrawn;
        }
        done.store(true, Ordering::Relaxed);
    });
    let [free, held, confirmed] = node.units("crowd", "cup");
    assert_eq!((held, confirmed), (0, sold.load(Ordering::Relaxed)));
    assert_eq!(free + confirmed, total);
    node.audit();
    node.kill();
    site.audit();
    let node = site.start();
    assert_eq!(node.units("crowd", "cup"), [free, held, confirmed]);
}

/// For waits that have no bound of their own.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long after its time a hold may still stand. Units: milliseconds.
const LATE_MS_MAX: i64 = 1_000;

/// A hold, and when it ends by the answer that made it.
struct Hold {
    member: u64,
    id: String,
    expires_at: Timestamp,
}

impl Hold {
    #[track_caller]
    fn make(client: &mut Client, member: u64) -> Self {
        let wish = Wish::new(member, "k", "crowd", "cup").held();
        let made = client.redeem(&wish).expect(201).json();
        let id = made["id"].as_str().expect("an id").to_owned();
        Self { member, id, expires_at: time(&made["expires_at"]) }
    }

    /// When the node ended it: the member's statement says so, once persist has got that far.
    #[track_caller]
    fn ended_at(&self, client: &mut Client) -> Timestamp {
        let mut ended_at = None;
        wait_until("the hold's end in the statement", PATIENCE, || {
            // A 503, which has no entries, as long as the database shards are behind.
            let page = client.get_as(self.member, "/v1/members/me/statement").json();
            let mut entries = page["entries"].as_array().into_iter().flatten();
            let end = entries.find(|e| e["kind"] == "released" && e["redemption"] == self.id);
            ended_at = end.map(|end| time(&end["at"]));
            ended_at.is_some()
        });
        ended_at.expect("it was waited for")
    }
}

#[track_caller]
fn time(value: &Value) -> Timestamp {
    value.as_str().expect("a time").parse().expect("RFC 3339")
}

/// The node's own time.
#[track_caller]
fn time_of(node: &Node) -> Timestamp {
    time(&node.admin().get("/v1/sales/crowd").expect(200).json()["now"])
}

/// Fails where a hold has ended early. Says nothing where the machine was so slow that the first
/// one's time has come; [`assert_ended_in_time`] still does.
#[track_caller]
fn assert_none_ended(node: &Node, holds: &[Hold], units: [u64; 3]) {
    let found = node.units("crowd", "cup");
    let first = holds.iter().map(|hold| hold.expires_at).min().expect("holds");
    if time_of(node) < first {
        assert_eq!(found, units, "no hold ends before its time");
    }
}

#[track_caller]
fn wait_until_all_ended(node: &Node) {
    wait_until("all holds ended", PATIENCE, || node.units("crowd", "cup") == [99, 0, 1]);
}

/// Each hold ended at its time, or within a second of it; of `ready`, where that is later.
///
/// All times are the node's: neither polls nor slow answers count. The test alone reads `ready`, so
/// it is late by a poll (5 ms) and a request, and as much more is let pass.
#[track_caller]
fn assert_ended_in_time(node: &Node, holds: &[Hold], ready: Option<Timestamp>) {
    let mut client = node.client();
    for hold in holds {
        let (member, expires_at) = (hold.member, hold.expires_at);
        let ended_at = hold.ended_at(&mut client);
        assert!(ended_at >= expires_at, "member {member}: ended at {ended_at}, not {expires_at}");
        let due = ready.map_or(expires_at, |ready| ready.max(expires_at));
        let late_ms = ended_at.as_millisecond() - due.as_millisecond();
        assert!(late_ms <= LATE_MS_MAX, "member {member}: ended {late_ms} ms after {due}");
    }
}

#[test]
fn holds_end_by_themselves_also_across_restarts() {
    let _turn = turn();
    let site = Site::new();
    let node = site.start();
    node.import_members(1, 30, 100);
    node.open_sale("crowd", 2_500, &[("cup", 10, 100, 50)]);
    let mut client = node.client();
    let kept = Hold::make(&mut client, 11);
    client.try_settle(11, &kept.id, "confirm").expect("an answer").expect(200);
    let holds: Vec<Hold> = (1..=10).map(|member| Hold::make(&mut client, member)).collect();
    assert_none_ended(&node, &holds, [89, 10, 1]);

    // 1. Running.
    thread::sleep(Duration::from_secs(2));
    assert_none_ended(&node, &holds, [89, 10, 1]);
    wait_until_all_ended(&node);
    assert_ended_in_time(&node, &holds, None);

    // 2. Killed before their time, started after it.
    let holds: Vec<Hold> = (12..=20).map(|member| Hold::make(&mut client, member)).collect();
    node.kill();
    thread::sleep(Duration::from_millis(2_600));
    site.audit();
    let node = site.start();
    let ready = time_of(&node);
    wait_until_all_ended(&node);
    assert_ended_in_time(&node, &holds, Some(ready));
    let mut client = node.client();
    for hold in holds {
        let reply = client.try_settle(hold.member, &hold.id, "confirm").expect("an answer");
        assert_eq!((reply.status, reply.code().as_str()), (409, "wrong-state"));
        assert_eq!(node.points(hold.member), [100, 0]);
    }

    // 3. Killed and started before their time: they end when they should.
    let holds: Vec<Hold> = (21..=30).map(|member| Hold::make(&mut client, member)).collect();
    node.kill();
    let node = site.start();
    let ready = time_of(&node);
    assert_none_ended(&node, &holds, [89, 10, 1]);
    wait_until_all_ended(&node);
    assert_ended_in_time(&node, &holds, Some(ready));
    assert!(node.stop().success());
    site.audit();
}
