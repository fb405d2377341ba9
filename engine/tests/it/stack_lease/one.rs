//! One node that leases from Redis: the life of a sale.

use serde_json::json;

use super::{PATIENCE, Redis, change, close, item, open, redeem, sell, total};
use crate::e2e::{turn, wait_until};

#[test]
fn a_sale_is_defined_sold_added_to_withdrawn_from_and_closed() {
    let _turn = turn();
    let redis = Redis::start();
    let site = redis.site();
    let node = site.start();
    node.import_members(1, 3, 1_000);
    open(&node, 40);
    // A share of the pool lies here as soon as the call is answered.
    assert!(item(&node)["free"].as_u64().expect("units") > 0);
    sell(&node, 1, "first", 25);
    let added = change(&node, "a1", &json!({"add": 10}));
    assert_eq!((&added["added"], &added["total"]), (&json!(10), &json!(50)));
    // All that is not sold can be withdrawn, wherever it lies.
    let withdrawn = change(&node, "w1", &json!({"withdraw": 12}));
    assert_eq!((&withdrawn["withdrawn"], &withdrawn["total"]), (&json!(12), &json!(38)));
    assert_eq!(change(&node, "w1", &json!({"withdraw": 12})), withdrawn, "by its key");
    let more = change(&node, "w2", &json!({"withdraw": 500}));
    assert_eq!((&more["withdrawn"], &more["total"]), (&json!(13), &json!(25)), "what there is");
    let mut client = node.client();
    assert_eq!(redeem(&mut client, 2, "late"), 409);
    wait_until("sold out for good", PATIENCE, || item(&node)["sold_out"] == true);
    change(&node, "a2", &json!({"add": 2}));
    assert_eq!(item(&node)["sold_out"], false, "a new stock generation");
    sell(&node, 2, "again", 2);
    wait_until("sold out again", PATIENCE, || item(&node)["sold_out"] == true);
    close(&node);
    assert!((node.metric("onrush_stock_lease_epoch{") - 1.0).abs() < f64::EPSILON);
    assert!(node.stop().success());
    site.audit();
}

#[test]
fn kill_9_and_a_restart_keep_every_unit_in_one_place() {
    let _turn = turn();
    let redis = Redis::start();
    let site = redis.site();
    let node = site.start();
    node.import_members(1, 3, 1_000);
    open(&node, 60);
    sell(&node, 1, "k", 20);
    node.kill();
    let node = site.start();
    sell(&node, 1, "k", 20);
    assert_eq!(item(&node)["confirmed"], 20, "the same keys");
    sell(&node, 2, "more", 40);
    wait_until("sold out for good", PATIENCE, || item(&node)["sold_out"] == true);
    node.kill();
    let node = site.start();
    wait_until("still sold out", PATIENCE, || item(&node)["sold_out"] == true);
    assert_eq!((total(&node), node.units("s", "cup")), (60, [0, 0, 60]));
    assert!(node.stop().success());
    site.audit();
}

#[test]
fn a_sale_that_is_paused_gives_its_units_back_and_takes_them_again() {
    let _turn = turn();
    let redis = Redis::start();
    let site = redis.site();
    let node = site.start();
    node.import_members(1, 1, 1_000);
    open(&node, 30);
    node.admin().post("/v1/sales/s/pause", &json!({})).expect(200);
    wait_until("given back", PATIENCE, || item(&node)["free"] == 0);
    node.admin().post("/v1/sales/s/resume", &json!({})).expect(200);
    sell(&node, 1, "k", 30);
    wait_until("sold out for good", PATIENCE, || item(&node)["sold_out"] == true);
    assert!(node.stop().success());
    site.audit();
}
