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
