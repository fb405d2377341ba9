//! The events topic, read by a program that nobody here wrote.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::{Value, json};

use super::{PATIENCE, Shop, Stack, broker};
use crate::e2e::{Node, run, turn, wait_until};
use crate::e2e_client::Wish;

/// Every message of a topic by `kcat`: its key, and its value.
fn kcat(stack: &Stack, topic: &str) -> Vec<(String, Value)> {
    let mut kcat = Command::new("kcat");
    kcat.args(["-b", stack.bootstrap(), "-C", "-t", topic, "-e", "-q", "-f", "%k\t%s\n"]);
    let (code, out, err) = run(&mut kcat);
    assert_eq!(code, Some(0), "{err}");
    let pair = |line: &str| {
        let (key, value) = line.split_once('\t').expect("a key and a value");
        (key.to_owned(), serde_json::from_str(value).expect("JSON"))
    };
    out.lines().map(pair).collect()
}

fn type_of(event: &Value) -> &str {
    event["type"].as_str().expect("a type")
}

/// Waits until so many different events of a type are there; gives all messages then.
fn wait_for(stack: &Stack, shop: &Shop, what: &str, count: usize) -> Vec<(String, Value)> {
    let mut found = Vec::new();
    wait_until(what, PATIENCE, || {
        found = kcat(stack, &shop.events_topic);
        let ids =
            found.iter().filter(|(_, e)| type_of(e) == what).map(|(_, e)| e["id"].to_string());
        ids.collect::<BTreeSet<_>>().len() >= count
    });
    found
}

fn sell(node: &Node, tag: &str, members: std::ops::Range<u64>, hold: bool) -> Vec<(u64, String)> {
    let mut client = node.client();
    let mut ids = Vec::new();
    for member in members {
        let mut wish = Wish::new(member, format!("{tag}-{member}"), "tea", "oolong");
        wish.hold = hold;
        let reply = client.redeem(&wish).expect(201).json();
        ids.push((member, reply["id"].as_str().expect("an id").to_owned()));
    }
    ids
}

#[test]
fn every_event_is_there_fits_the_schema_and_keeps_its_members_order_also_over_kill_9() {
    let _turn = turn();
    let stack = broker();
    let shop = Shop::open(stack);
    let node = shop.site.start();
    node.import_members(1, 100, 1_000);
    node.open_sale("tea", 600_000, &[("oolong", 10, 60, 5)]);
    let held = sell(&node, "held", 1..21, true);
    let mut client = node.client();
    for (member, id) in &held[..10] {
        client.try_settle(*member, id, "confirm").unwrap().expect(200);
    }
    for (member, id) in &held[10..15] {
        client.try_settle(*member, id, "cancel").unwrap().expect(200);
    }
    // The process dies with events on the way; the next one tells them.
    node.kill();
    let node = shop.site.start();
    // 15 units are taken, 5 of them held; the last of 60 goes when those are confirmed.
    let sold = sell(&node, "sold", 21..66, false);
    let mut client = node.client();
    for (member, id) in &held[15..] {
        client.try_settle(*member, id, "confirm").unwrap().expect(200);
    }
    let body = json!({});
    let path = format!("/v1/redemptions/{}/reverse", sold[0].1);
    node.admin().post_keyed("reversal", &path, &body).expect(200);
    node.admin().post("/v1/sales/tea/close", &json!({})).expect(200);
    wait_for(stack, &shop, "onrush.sale.closed.v1", 1);
    let messages = wait_for(stack, &shop, "onrush.redemption.reversed.v1", 1);

    let schema = include_str!("../../../../config/schema/events.schema.json");
    let schema: Value = serde_json::from_str(schema).unwrap();
    let validator = jsonschema::options().should_validate_formats(true).build(&schema).unwrap();
    let mut distinct: BTreeMap<String, &Value> = BTreeMap::new();
    let mut orders: BTreeMap<&str, Vec<(&str, &str)>> = BTreeMap::new();
    for (key, event) in &messages {
        let errors: Vec<_> = validator.iter_errors(event).map(|e| e.to_string()).collect();
        assert!(errors.is_empty(), "{event}: {errors:?}");
        let same = distinct.insert(event["id"].to_string(), event);
        assert!(same.is_none_or(|earlier| earlier == event), "the same id, another event");
        if same.is_none() {
            let subject = event["subject"].as_str().unwrap();
            orders.entry(key).or_default().push((subject, type_of(event)));
        }
        if let Some(member) = event["data"]["member"].as_str() {
            assert_eq!(member, key);
        }
    }
    let count = |what: &str| distinct.values().filter(|e| type_of(e) == what).count();
    assert_eq!(count("onrush.redemption.confirmed.v1"), 15 + 45);
    assert_eq!(count("onrush.redemption.released.v1"), 5);
    assert_eq!(count("onrush.redemption.reversed.v1"), 1);
    assert_eq!(count("onrush.item.sold-out.v1"), 1);
    assert_eq!(count("onrush.sale.opened.v1"), 1);
    assert_eq!(count("onrush.sale.closed.v1"), 1);
    let whole = &orders["tea"];
    let types: Vec<&str> = whole.iter().map(|(_, what)| *what).collect();
    let expected = ["onrush.sale.opened.v1", "onrush.item.sold-out.v1", "onrush.sale.closed.v1"];
    assert_eq!(types, expected);
    let id = sold[0].1.as_str();
    let of_first = &orders["21"];
    let expected = [(id, "onrush.redemption.confirmed.v1"), (id, "onrush.redemption.reversed.v1")];
    assert_eq!(of_first[..], expected);
    assert!(node.stop().success());
}

#[test]
fn events_that_could_not_be_told_hold_the_journals_segments_until_they_are() {
    let _turn = turn();
    let stack = broker();
    let mut shop = Shop::open(stack);
    shop.site.set("journal.keep_ms", "100");
    let node = shop.site.start();
    node.import_members(1, 400, 1_000_000);
    node.open_sale("tea", 600_000, &[("oolong", 10, 1_000_000, 1_000_000)]);
    sell(&node, "before", 1..301, false);
    stack.order("kill", "kafka-1");
    sell(&node, "without", 1..301, false);
    node.kill();
    let node = shop.site.start();
    sell(&node, "after", 1..301, false);
    stack.order("start", "kafka-1");
    wait_for(stack, &shop, "onrush.redemption.confirmed.v1", 900);
    assert!(node.stop().success());
}
