//! Redis away, empty, or not what a data folder remembers.

use std::fs;
use std::path::Path;

use serde_json::json;

use super::{PATIENCE, Redis, change, item, open, redeem, sell, total};
use crate::e2e::{turn, wait_until};

#[test]
fn a_node_without_redis_sells_what_it_holds_also_after_a_restart() {
    let _turn = turn();
    let mut redis = Redis::start();
    let site = redis.site();
    let node = site.start();
    node.import_members(1, 1, 1_000);
    open(&node, 40);
    let held = item(&node)["free"].as_u64().expect("units");
    assert!(held > 4);
    redis.kill();
    sell(&node, 1, "a", 2);
    node.kill();
    let node = site.start();
    sell(&node, 1, "b", held - 2);
    let mut client = node.client();
    assert_eq!(redeem(&mut client, 1, "more"), 409, "no unit can be had now");
    assert_eq!(item(&node)["sold_out"], false, "and that is not for good");
    // A withdrawal cannot be known, and is not said to be nothing.
    let path = "/v1/sales/s/items/cup/stock";
    let reply = node.admin().post_keyed("w", path, &json!({"withdraw": 3}));
    assert_eq!((reply.status, reply.code().as_str()), (503, "stock-unreachable"));
    // Restarted empty: rebuilt from the journal, under a new epoch.
    redis.resume();
    sell(&node, 1, "c", 40 - held);
    wait_until("sold out for good", PATIENCE, || item(&node)["sold_out"] == true);
    assert!((node.metric("onrush_stock_lease_epoch{") - 2.0).abs() < f64::EPSILON);
    assert!(node.stop().success());
    site.audit();
}

#[test]
fn a_sale_that_is_defined_without_redis_is_leased_once_it_answers() {
    let _turn = turn();
    let mut redis = Redis::start();
    redis.kill();
    let site = redis.site();
    let node = site.start();
    node.import_members(1, 1, 1_000);
    open(&node, 10);
    assert_eq!((total(&node), node.units("s", "cup")), (10, [0, 0, 0]));
    assert_eq!(item(&node)["lease"]["state"], "unreachable", "the answer says so");
    assert_eq!(change(&node, "a", &json!({"add": 5}))["total"], 15);
    redis.resume();
    sell(&node, 1, "k", 15);
    wait_until("sold out for good", PATIENCE, || item(&node)["sold_out"] == true);
    assert_eq!(item(&node)["lease"]["state"], "open");
    assert!(node.stop().success());
    site.audit();
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder");
    for entry in fs::read_dir(from).expect("a folder") {
        let entry = entry.expect("an entry");
        let to = to.join(entry.file_name());
        if entry.file_type().expect("a type").is_dir() {
            copy(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).expect("a copy");
        }
    }
}

/// † [A folder restored from a backup sold what it had returned since.]
#[test]
fn an_old_copy_of_a_data_folder_ends_with_a_line_that_says_so() {
    let _turn = turn();
    let redis = Redis::start();
    let site = redis.site();
    let node = site.start();
    node.import_members(1, 1, 1_000);
    open(&node, 40);
    node.kill();
    let old = site.path("old");
    copy(site.data(), &old);
    let node = site.start();
    sell(&node, 1, "k", 39);
    assert!(node.stop().success());
    fs::remove_dir_all(site.data()).expect("it is there");
    copy(&old, site.data());
    let mut node = site.launch();
    assert_eq!(node.wait(PATIENCE).code(), Some(76), "{}", node.log_tail());
    assert!(node.log_tail().contains("it is an old copy"), "{}", node.log_tail());
}

#[test]
fn a_folder_that_sold_from_a_shared_pool_is_not_started_as_if_it_were_alone() {
    let _turn = turn();
    let redis = Redis::start();
    let mut site = redis.site();
    let node = site.start();
    open(&node, 40);
    assert!(node.stop().success());
    site.set("stock.kind", "\"journal\"");
    let mut node = site.launch();
    assert_eq!(node.wait(PATIENCE).code(), Some(2), "{}", node.log_tail());
    assert!(node.log_tail().contains("a pool that nodes share"), "{}", node.log_tail());
}
