//! The audit of all nodes with the pools in Redis: what is on its way is no fault, and a pool that
//! says what no journal does is found.

use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use super::nodes::{is_sold_out, sell_out};
use super::{PATIENCE, Redis};
use crate::e2e::{onrush, run, turn, wait_until};
use crate::e2e_client::Wish;
use crate::e2e_mall::Mall;

/// `onrush audit --all`: of the data folders of stopped nodes, or of running ones.
fn audit(mall: &Mall, are_stopped: bool) -> (Option<i32>, Value) {
    let mut command = onrush();
    command.args(["audit", "--all", "--json", "--config"]).arg(mall.sites[0].path("onrush.toml"));
    if are_stopped {
        for site in &mall.sites {
            command.arg("--data").arg(site.data());
        }
    }
    let (code, out, err) = run(&mut command);
    let report = serde_json::from_str(&out).unwrap_or_else(|e| panic!("{e}: {code:?} {out}{err}"));
    (code, report)
}

/// The violations of one item, over all nodes and the pool.
fn of_item(report: &Value, sku: &str) -> Vec<String> {
    let findings = report["findings"].as_array().expect("findings").iter();
    let sentences = findings.filter(|finding| finding["severity"] == "violation");
    let sentences = sentences.filter_map(|finding| finding["sentence"].as_str());
    let begin = format!("s/{sku}: ");
    sentences.filter(|sentence| sentence.starts_with(&begin)).map(str::to_owned).collect()
}

#[track_caller]
fn passes(mall: &Mall, are_stopped: bool) {
    let (code, report) = audit(mall, are_stopped);
    assert_eq!(code, Some(0), "{:#}", report["findings"]);
}

/// Changes a number in an item's pool, behind everybody's back.
fn forge(redis: &Redis, sku: &str, field: &str, by: i64) {
    let key = format!("onrush:{{s/{sku}}}");
    redis.order(&["HINCRBY", &key, field, &by.to_string()]).expect("Redis runs");
}

#[test]
fn a_pool_that_says_what_no_journal_does_is_found() {
    /// Field of the pool (of a journal, where it ends with a colon), by how much it is changed, and
    /// what is said of it.
    const FORGED: [(&str, &str, i64, &str); 10] = [
        ("epoch", "epoch", 1, "is open in epoch 2 without journal"),
        ("added", "added", 3, "the pool's total is 27, its home's 24"),
        ("joined", "e:", 1, "joined epoch 2 without a record of it, its newest is 1"),
        ("start", "i:", 7, "another copy of it was started"),
        ("granted", "g:", -1, "the pool granted journal"),
        ("accepted", "a:", 100, "it is an old copy"),
        ("returned", "r:", 1, "it is an old copy"),
        ("confirmed", "c:", 5, "the pool was told of"),
        ("reversed", "u:", 1, "and 1 reversed units"),
        ("server", "server", 0, "epoch 1 is server 00000000's in the pool"),
    ];
    let _turn = turn();
    let redis = Redis::start();
    let mut mall = Mall::start_with(|site| redis.set(site));
    mall.node(0).import_members(1, 60, 1_000);
    let mut items: Vec<_> = FORGED.iter().map(|(sku, ..)| (*sku, 1, 24, 100)).collect();
    items.push(("right", 1, 24, 100));
    mall.node(0).open_sale("s", 60_000, &items);
    let member = mall.member_of(1);
    for (sku, ..) in &items {
        let wish = Wish::new(member, *sku, "s", sku);
        mall.client(1).redeem(&wish).expect(201);
    }
    let journal = mall.cluster(1)["nodes"][1]["journal"].as_str().expect("a journal").to_owned();
    for at in 0..3 {
        assert!(mall.take(at).stop().success());
    }
    passes(&mall, true);
    for (sku, field, by, _) in FORGED {
        match field {
            "server" => {
                let key = format!("onrush:{{s/{sku}}}");
                redis.order(&["HSET", &key, field, &"0".repeat(32)]).expect("Redis runs");
            }
            _ if field.ends_with(':') => forge(&redis, sku, &format!("{field}{journal}"), by),
            _ => forge(&redis, sku, field, by),
        }
    }
    let (code, report) = audit(&mall, true);
    assert_eq!((code, &report["verdict"]), (Some(1), &json!("fail")));
    for (sku, .., said) in FORGED {
        let found = of_item(&report, sku);
        assert!(found.iter().any(|sentence| sentence.contains(said)), "{sku}: {found:?}");
    }
    assert_eq!(of_item(&report, "right"), [""; 0]);
}

#[test]
fn what_is_on_its_way_is_no_fault_and_what_nodes_have_told_must_be_known() {
    let _turn = turn();
    let redis = Redis::start();
    let mall = Mall::start_with(|site| redis.set(site));
    mall.node(0).import_members(1, 60, 100_000);
    mall.node(0).open_sale("s", 60_000, &[("cup", 1, 400, 100_000), ("pen", 1, 20, 100)]);
    // Units, holds and confirmations move while it looks.
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for at in 0..3 {
            let (mall, is_over) = (&mall, &is_over);
            scope.spawn(move || {
                let (mut client, member) = (mall.client(at), mall.member_of(at));
                for key in 0.. {
                    if is_over.load(Ordering::Relaxed) {
                        return;
                    }
                    let wish = Wish::new(member, format!("moving{key}"), "s", "cup").held();
                    let reply = client.redeem(&wish);
                    if reply.status == 201 {
                        let id = reply.json()["id"].as_str().expect("an id").to_owned();
                        let verb = if key % 4 == 0 { "confirm" } else { "cancel" };
                        client.try_settle(member, &id, verb).expect("an answer").expect(200);
                    }
                }
            });
        }
        let checked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            (0..3).for_each(|_| passes(&mall, false));
        }));
        is_over.store(true, Ordering::Relaxed);
        checked.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
    sell_out(&mall, "rest");
    wait_until("known everywhere", PATIENCE, || (0..3).all(|at| is_sold_out(&mall, at)));
    let bought = mall.client(1).redeem(&Wish::new(mall.member_of(1), "pen", "s", "pen"));
    let id = bought.expect(201).json()["id"].as_str().expect("an id").to_owned();
    let reverse = format!("/v1/redemptions/{id}/reverse");
    mall.admin(1).post_keyed("r", &reverse, &json!({ "reason": "broken" })).expect(200);
    passes(&mall, false);
    let journal = mall.cluster(1)["nodes"][1]["journal"].as_str().expect("a journal").to_owned();
    // A node that happens to connect anew tells it again.
    let is_found = |sku: &str, field: &str, said: &str| {
        wait_until(said, 2 * PATIENCE, || {
            forge(&redis, sku, field, -1);
            let (code, report) = audit(&mall, false);
            code == Some(1) && of_item(&report, sku).iter().any(|found| found.contains(said))
        });
    };
    let known = "all 400 units are confirmed, and the pool does not know it";
    is_found("cup", &format!("c:{journal}"), known);
    is_found("pen", &format!("u:{journal}"), "reversed units of journal");
}
