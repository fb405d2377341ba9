//! A wall clock that is set back and forward by an hour, under a node and between two of them.
//!
//! libfaketime shows the node a wall clock of ours and leaves the monotonic one alone. Rules
//! (node time, DESIGN.md): while it runs, nothing follows the wall clock; across a restart, the
//! wall time of the downtime counts when it is forward, and time never goes back.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use crate::e2e::{Node, Site, skip, turn, wait_until};
use crate::e2e_client::Wish;

const LIBRARIES: [&str; 4] = [
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib64/faketime/libfaketimeMT.so.1",
    "/usr/lib/faketime/libfaketimeMT.so.1",
];

/// A site whose nodes see the wall clock that [`set_clock`] says.
fn site_with_a_clock(test: &str) -> Option<Site> {
    let mut site = Site::new();
    give_clock(&mut site, test).then_some(site)
}

/// `false`: it cannot be had, and the test was noted as skipped.
pub fn give_clock(site: &mut Site, test: &str) -> bool {
    let Some(library) = LIBRARIES.iter().find(|path| Path::new(path).exists()) else {
        skip(test, "libfaketime is not installed (Debian: apt-get install faketime)");
        return false;
    };
    set_clock(site, "+0");
    let clock = site.path("clock").display().to_string();
    site.set_env("LD_PRELOAD", library);
    site.set_env("FAKETIME_TIMESTAMP_FILE", &clock);
    site.set_env("FAKETIME_NO_CACHE", "1");
    site.set_env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    true
}

pub fn set_clock(site: &Site, offset: &str) {
    fs::write(site.path("clock.new"), format!("{offset}\n")).expect("writable");
    fs::rename(site.path("clock.new"), site.path("clock")).expect("writable");
}

fn sale_state(node: &Node) -> Value {
    node.client().get("/v1/sales/clock").expect(200).json()["state"].clone()
}

/// A sale that is open, and closes so many seconds from now.
fn define_sale(node: &Node, closes_in_s: i64) {
    let closes_at = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(closes_in_s);
    let sale = json!({
        "id": "clock", "name": "clock", "opens_at": "2026-01-01T00:00:00Z",
        "closes_at": closes_at.to_string(), "hold_ttl_ms": 2_000,
        "items": [{ "sku": "cup", "name": "cup", "points": 10, "stock": 100,
                    "limit_per_member": 50 }],
    });
    node.import_members(1, 10, 1_000);
    node.admin().post("/v1/sales", &sale).expect(201);
}

#[test]
fn a_clock_set_while_the_node_runs_moves_no_deadline() {
    let _turn = turn();
    let Some(site) = site_with_a_clock("a clock set while running") else { return };
    let node = site.start();
    define_sale(&node, 1_800);
    let mut client = node.client();
    for (number, offset) in ["+3600", "-3600", "+0"].iter().enumerate() {
        let member = 1 + number as u64;
        client.redeem(&Wish::new(member, "hold", "clock", "cup").held()).expect(201);
        set_clock(&site, offset);
        thread::sleep(Duration::from_secs(1));
        assert_eq!(node.units("clock", "cup")[1], 1, "{offset}: held until its own end");
        assert_eq!(sale_state(&node), "open", "{offset}: the sale's end is in half an hour");
        wait_until("the hold's end", Duration::from_secs(3), || node.units("clock", "cup")[1] == 0);
        client.redeem(&Wish::new(member, "after", "clock", "cup")).expect(201);
    }
    assert!(node.stop().success());
    site.audit();
}

#[test]
fn a_clock_set_between_two_nodes_ends_what_is_over_and_revives_nothing() {
    let _turn = turn();
    let Some(site) = site_with_a_clock("a clock set while stopped") else { return };
    let node = site.start();
    define_sale(&node, 1_800);
    let first = node.client().redeem(&Wish::new(1, "first", "clock", "cup")).expect(201);
    let hold = node.client().redeem(&Wish::new(2, "hold", "clock", "cup").held()).expect(201);
    node.kill();

    // Forward by an hour: the downtime was an hour, so the hold and the sale are over.
    set_clock(&site, "+3600");
    let node = site.start();
    wait_until("the hold's and the sale's end", Duration::from_secs(3), || {
        sale_state(&node) == "ended" && node.units("clock", "cup") == [99, 0, 1]
    });
    let hold_id = hold.json()["id"].as_str().expect("an id").to_owned();
    let reply = node.client().try_settle(2, &hold_id, "confirm").expect("an answer");
    assert_eq!((reply.status, reply.code().as_str()), (409, "wrong-state"));
    node.kill();

    // Back by an hour: what ended stays ended, and ids go on rising.
    set_clock(&site, "+0");
    let node = site.start();
    assert_eq!(sale_state(&node), "ended");
    let refused = node.client().redeem(&Wish::new(3, "late", "clock", "cup"));
    assert_eq!((refused.status, refused.code().as_str()), (409, "sale-ended"));
    let again = node.client().redeem(&Wish::new(1, "first", "clock", "cup")).expect(201);
    assert_eq!(again.body, first.body);
    node.open_sale("next", 3_600_000, &[("pen", 1, 10, 5)]);
    let next = node.client().redeem(&Wish::new(1, "pen", "next", "pen")).expect(201);
    let id = |reply: &crate::e2e_client::Reply| reply.json()["id"].to_string();
    assert!(id(&next) > id(&hold), "ids rise although the clock was set back");
    assert!(node.stop().success());
    site.audit();
}
