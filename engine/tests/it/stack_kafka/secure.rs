//! Kafka over TLS with SASL/SCRAM: it works, and what is wrong is said in one line.

use std::fs;

use super::{Shop, broker, wait_stored};
use crate::e2e::{onrush, run, turn};

/// The shop's settings, moved to the broker's secure listener.
fn secured(shop: &mut Shop) {
    let stack = broker();
    let text = |name: &str| format!("\"{}\"", stack.get(name));
    shop.site.set("log.kafka.bootstrap", &text("ONRUSH_STACK_KAFKA_SECURE"));
    shop.site.set("log.kafka.tls", "true");
    shop.site.set("log.kafka.ca_file", &text("ONRUSH_STACK_KAFKA_CA_FILE"));
    shop.site.set("log.kafka.sasl_user", &text("ONRUSH_STACK_KAFKA_USER"));
    shop.site.set("log.kafka.sasl_password_file", &text("ONRUSH_STACK_KAFKA_PASSWORD_FILE"));
}

#[track_caller]
fn assert_turned_away(shop: &Shop, says: &str) {
    for mut command in [shop.site.serve(), {
        let mut check = onrush();
        check.args(["kafka", "check", "--config"]).arg(shop.site.path("onrush.toml"));
        check
    }] {
        let (code, out, err) = run(command.env("RUST_LOG", "off"));
        assert_eq!((code, err.lines().count()), (Some(2), 1), "{out}\n{err}");
        assert!(err.contains(says), "{err}");
        assert!(!err.contains("hush"), "a password is shown: {err}");
    }
}

#[test]
fn records_go_over_tls_with_a_login() {
    let _turn = turn();
    let mut shop = Shop::new(broker());
    secured(&mut shop);
    let (code, out, err) = shop.kafka("init");
    assert_eq!(code, Some(0), "{out}\n{err}");
    let node = shop.site.start();
    node.import_members(1, 500, 10);
    let persist = shop.persist("persist.log");
    wait_stored(&node);
    let password = fs::read_to_string(broker().get("ONRUSH_STACK_KAFKA_PASSWORD_FILE")).unwrap();
    let (_, printed, _) =
        run(onrush().args(["config", "print", "--config"]).arg(shop.site.path("onrush.toml")));
    for text in [persist.log(), node.log_tail(), printed] {
        assert!(!text.contains(password.trim()), "a password is shown");
    }
    assert!(node.stop().success());
    shop.site.audit();
}

/// Where a password stands that is in no file.
const PASSWORD: &str = "ONRUSH__LOG__KAFKA__SASL_PASSWORD";

#[test]
fn a_password_from_the_environment_lets_in_and_is_shown_nowhere() {
    let _turn = turn();
    let mut shop = Shop::new(broker());
    secured(&mut shop);
    shop.site.unset("log.kafka.sasl_password_file");
    let file = fs::read_to_string(broker().get("ONRUSH_STACK_KAFKA_PASSWORD_FILE")).unwrap();
    let password = file.trim();
    let mut shown = String::new();
    let mut tell = |(code, out, err): (Option<i32>, String, String), expected: i32| {
        assert_eq!(code, Some(expected), "{out}\n{err}");
        shown += &(out + &err);
    };
    tell(shop.kafka("check"), 2);
    shop.site.set_env(PASSWORD, password);
    shop.site.set_env("RUST_LOG", "debug");
    tell(shop.kafka("init"), 0);
    tell(shop.kafka("check"), 0);
    let node = shop.site.start();
    node.import_members(1, 500, 10);
    let persist = shop.persist("persist.log");
    wait_stored(&node);
    let print = |shop: &Shop| {
        let mut print = onrush();
        print.args(["config", "print", "--config"]).arg(shop.site.path("onrush.toml"));
        run(print.envs(shop.site.env()))
    };
    tell(print(&shop), 0);
    tell(shop.kafka("inspect"), 0);
    let log = || fs::read_to_string(shop.site.path("node.log")).unwrap();
    let logs = log() + &persist.log();
    assert!(logs.contains("recovered") && logs.contains("partitions assigned"), "{logs}");
    assert!(!logs.contains(password), "a password is logged");
    assert!(node.stop().success());
    tell(shop.audit_all(), 0);
    // Another one does not let in, and is not shown either.
    shop.site.set_env(PASSWORD, "not-the-right-one");
    tell(shop.kafka("check"), 2);
    tell(run(&mut shop.site.serve()), 2);
    assert!(shown.contains("does not let us in"), "{shown}");
    for secret in [password, "not-the-right-one"] {
        assert!(!shown.contains(secret), "a password is shown: {shown}");
    }
}

#[test]
fn a_wrong_password_is_said_in_one_line() {
    let _turn = turn();
    let mut shop = Shop::open(broker());
    secured(&mut shop);
    let file = shop.site.path("wrong");
    fs::write(&file, "hush-hush\n").unwrap();
    shop.site.set("log.kafka.sasl_password_file", &format!("{:?}", file.to_str().unwrap()));
    assert_turned_away(&shop, "does not let us in");
}

#[test]
fn a_wrong_certificate_authority_is_said_in_one_line() {
    let _turn = turn();
    let mut shop = Shop::open(broker());
    secured(&mut shop);
    let other = broker().get("ONRUSH_STACK_KAFKA_CA_FILE").replace("/ca.pem", "/other-ca.pem");
    shop.site.set("log.kafka.ca_file", &format!("\"{other}\""));
    assert_turned_away(&shop, "certificate");
}

#[test]
fn a_password_that_is_nowhere_is_said_in_one_line() {
    let mut shop = Shop::new(broker());
    secured(&mut shop);
    shop.site.set("log.kafka.sasl_password_file", "\"/nonexistent/password\"");
    assert_turned_away(&shop, "sasl_password_file /nonexistent/password");
}
