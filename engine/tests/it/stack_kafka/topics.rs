//! Topics that are not as the settings say, settings that cannot be, and what is said of them.

use rdkafka::admin::{NewTopic, TopicReplication};

use super::{Shop, admin_options, block_on, broker, wait_stored};
use crate::e2e::{onrush, run, turn};

/// One line on stderr that says so, and exit code 2; from `serve`, `persist` and `kafka check`.
#[track_caller]
fn assert_refused(shop: &Shop, says: &[&str]) {
    let mut serve = shop.site.serve();
    let mut persist = onrush();
    persist.args(["persist", "--config"]).arg(shop.site.path("onrush.toml"));
    let mut check = onrush();
    check.args(["kafka", "check", "--config"]).arg(shop.site.path("onrush.toml"));
    for command in [&mut serve, &mut persist, &mut check] {
        let (code, out, err) = run(command.env("RUST_LOG", "error"));
        assert_eq!(code, Some(2), "{out}\n{err}");
        assert_eq!(err.lines().count(), 1, "{err}");
        for part in says {
            assert!(err.contains(part), "{err}");
        }
    }
}

#[test]
fn topics_are_made_once_and_found_right_afterwards() {
    let _turn = turn();
    let shop = Shop::new(broker());
    assert_refused(&shop, &[&shop.topic, "is not there", "onrush kafka init"]);
    let (code, _, err) = shop.kafka("inspect");
    assert_eq!((code, err.lines().count()), (Some(2), 1), "{err}");
    let (code, out, _) = shop.kafka("init");
    assert_eq!(code, Some(0));
    assert_eq!(out.lines().filter(|l| l.starts_with("made")).count(), 2, "{out}");
    assert!(out.contains("33 partitions, 1 copies each"), "{out}");
    let (code, out, _) = shop.kafka("init");
    assert_eq!((code, out.matches("was there").count()), (Some(0), 2), "{out}");
    assert_eq!(shop.kafka("check").0, Some(0));
}

#[test]
fn a_wrong_partition_count_is_refused_in_one_line() {
    let _turn = turn();
    let stack = broker();
    let shop = Shop::new(stack);
    let topic = NewTopic::new(&shop.topic, 4, TopicReplication::Fixed(1));
    block_on(stack.admin().create_topics([&topic], &admin_options())).unwrap();
    assert_eq!(shop.kafka("init").0, Some(2));
    assert_refused(&shop, &["has 4 partitions, not 33"]);
}

#[test]
fn a_wrong_retention_and_replication_are_refused_in_one_line() {
    let _turn = turn();
    let mut shop = Shop::open(broker());
    shop.site.set("log.kafka.retention_ms", "120000");
    assert_refused(&shop, &["retention.ms 604800000, not 120000"]);
    shop.site.set("log.kafka.retention_ms", "604800000");
    shop.site.set("log.kafka.replication", "3");
    shop.site.set("log.kafka.min_insync", "2");
    let says = ["has 1 copies of a partition, log.kafka.replication is 3", "min.insync.replicas 1"];
    assert_refused(&shop, &says);
}

#[test]
fn an_answer_that_waits_for_kafka_is_refused_until_it_exists() {
    let mut shop = Shop::new(broker());
    shop.site.set("log.ack", "\"replicated\"");
    assert_refused(&shop, &["log.ack = replicated", "not built yet"]);
}

#[test]
fn persist_without_kafka_says_where_to_turn() {
    let mut shop = Shop::new(broker());
    shop.site.set("log.kind", "\"journal\"");
    let _ = shop.site.serve();
    let (code, _, err) =
        run(onrush().args(["persist", "--config"]).arg(shop.site.path("onrush.toml")));
    assert_eq!((code, err.lines().count()), (Some(2), 1), "{err}");
    assert!(err.contains("the node persists its own journal"), "{err}");
}

#[test]
fn a_node_starts_and_sells_in_front_of_a_kafka_that_does_not_answer() {
    let _turn = turn();
    let mut shop = Shop::new(broker());
    shop.site.set("log.kafka.bootstrap", "\"127.0.0.1:1\"");
    let node = shop.site.start();
    node.import_members(1, 10, 100);
    assert!(node.log_tail().contains("starting without Kafka"), "{}", node.log_tail());
    assert!(node.stop().success());
}

#[test]
fn a_node_that_started_without_kafka_ships_what_waited() {
    let _turn = turn();
    let stack = broker();
    let shop = Shop::open(stack);
    stack.order("stop", "kafka-1");
    let node = shop.site.start();
    node.import_members(1, 300, 10);
    stack.order("start", "kafka-1");
    let _persist = shop.persist("persist.log");
    wait_stored(&node);
    assert!(node.stop().success());
    shop.site.audit();
}

#[cfg(not(feature = "kafka-tls"))]
#[test]
fn tls_in_a_binary_without_it_is_refused_in_one_line() {
    for (key, value) in [("log.kafka.tls", "true"), ("log.kafka.sasl_user", "\"mall\"")] {
        let mut shop = Shop::new(broker());
        shop.site.set(key, value);
        assert_refused(&shop, &[key, "built without TLS and SASL", "--features kafka-tls"]);
    }
}
