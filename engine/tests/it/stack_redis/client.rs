//! The client's thread against one real server.

use onrush::stock::redis::script::ScriptName;

use super::*;

#[test]
fn an_ask_is_answered_and_its_item_told_by_news() {
    let server = Server::start(&[]);
    let (mut one, mut two) =
        (Asking::new(&settings(&server.url())), Asking::new(&settings(&server.url())));
    let (mut a, mut b) = (asker(item(1), 1), asker(item(1), 2));
    one.create(&mut a, 10, &[1, 2]);
    two.follow(&mut b, None);
    one.wait_for(PoolNews::Reconnected);
    two.wait_for(PoolNews::Reconnected);
    assert_eq!(view(one.ask(&a, &grant(0, 10))).granted, 10);
    a.standing.accepted = 10;
    one.news.clear();
    let dry = two.ask(&b, &grant(0, 2));
    assert_eq!((&dry.refusal, dry.asker, &dry.asked), (&None, b, &grant(0, 2)));
    assert_eq!(view(dry).granted, 0);
    one.wait_for(news(item(1), Change::Wanted));
    two.news.clear();
    a.standing.returned = 5;
    assert_eq!(view(one.ask(&a, &PoolAsk::Tell)).pool, 5);
    two.wait_for(news(item(1), Change::Freed));
    assert_eq!(view(two.ask(&b, &grant(0, 2))).granted, 2);
}

#[test]
fn news_of_items_that_this_node_does_not_know_are_passed_over() {
    let server = Server::start(&[]);
    let mut one = Asking::new(&settings(&server.url()));
    let mut a = asker(item(1), 1);
    one.create(&mut a, 10, &[1]);
    one.wait_for(PoolNews::Reconnected);
    one.news.clear();
    for text in ["turned sale/other", "sale/sku-1", "new sale/sku-1", "\u{fffd}", "", " "] {
        server.order(&["PUBLISH", "onrush:news", text]);
    }
    server.order(&["PUBLISH", "onrush:news", "turned sale/sku-1"]);
    one.wait_for(news(item(1), Change::Turned));
    assert!(one.news.is_empty(), "{:?}", one.news);
}

#[test]
fn asks_of_an_item_are_carried_out_in_order_and_items_beside_each_other() {
    let server = Server::start(&[]);
    let mut one = Asking::new(&settings(&server.url()));
    let mut askers = Vec::new();
    for number in 0..8 {
        let mut a = asker(item(number), 1);
        one.create(&mut a, 1_000, &[1]);
        askers.push(a);
    }
    // Each is granted only if the one before it was.
    for step in 0..30 {
        for a in &askers {
            one.send(a, &grant(10 * step, 10 * step + 10));
        }
    }
    let mut granted = vec![0; askers.len()];
    for _ in 0..30 * askers.len() {
        let answer = one.answer();
        let item = answer.asker.item.get() as usize;
        granted[item] += 10;
        assert_eq!(view(answer).granted, granted[item]);
    }
    assert_eq!(granted, vec![300; 8]);
}

/// A server that lost its scripts, as after a restart, gets them again.
#[test]
fn scripts_that_the_server_forgot_are_given_to_it_again() {
    let server = Server::start(&[]);
    let mut one = Asking::new(&settings(&server.url()));
    let mut a = asker(item(1), 1);
    one.create(&mut a, 10, &[1]);
    server.order(&["SCRIPT", "FLUSH"]);
    assert_eq!(view(one.ask(&a, &grant(0, 3))).granted, 3);
    let known = server.order(&["SCRIPT", "EXISTS", ScriptName::Grant.hash()]);
    assert_eq!(known, "array([int(1)])");
    assert_eq!(one.stock.stats().read().errors, 0);
}

#[test]
fn calls_are_counted_by_script() {
    let server = Server::start(&[]);
    let mut one = Asking::new(&settings(&server.url()));
    let mut a = asker(item(1), 1);
    one.create(&mut a, 10, &[1]);
    for _ in 0..5 {
        one.ask(&a, &PoolAsk::Tell);
    }
    let figures = one.stock.stats().read();
    let calls = |script| figures.calls.iter().find(|(name, _)| *name == script).unwrap().1;
    assert_eq!((calls("create"), calls("tell"), calls("grant")), (1, 5, 0));
    let all: u64 = figures.calls.iter().map(|(_, count)| count).sum();
    assert_eq!(figures.durations.count() + figures.errors + figures.timeouts, all);
    assert!(figures.is_up && figures.links == 1);
}

#[test]
fn a_client_ends_at_once_whatever_redis_does() {
    let server = Server::start(&[]);
    let mut one = Asking::new(&settings(&server.url()));
    let mut a = asker(item(1), 1);
    one.create(&mut a, 10, &[1]);
    server.signal(Signal::STOP);
    one.send(&a, &PoolAsk::Tell);
    let begun = crate::e2e::now();
    drop(one);
    assert!(begun.elapsed() < Duration::from_secs(5));
}
