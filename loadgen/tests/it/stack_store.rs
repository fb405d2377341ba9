//! The ledger check over real `MySQL` and `MariaDB` servers: what it finds in files it finds there.

use std::sync::LazyLock;

use mysql_async::{Opts, OptsBuilder};

use crate::mall::{Lie, Mall, open};
use crate::mall_store::Store;
use crate::stack_servers::{Flavour, Servers};
use crate::tool::{Ran, number, run, tool};

static MYSQL: LazyLock<Servers> = LazyLock::new(|| Servers::start(Flavour::MySql, 1, 0));
static MARIADB: LazyLock<Servers> = LazyLock::new(|| Servers::start(Flavour::MariaDb, 1, 0));

/// Two database shards of their own, and how the tool is told of them.
struct Shards {
    opts: Vec<Opts>,
    urls: String,
}

impl Shards {
    fn on(servers: &Servers) -> Self {
        let name = servers.fresh_name();
        let at = |shard: u32| {
            let name = format!("{name}_{shard}");
            let make = format!(
                "echo 'CREATE DATABASE {name}' | mysql_client db-0 && \
                 mysql_client db-0 {name} < config/schema/mysql/0001_tables.sql"
            );
            let made = servers.script(&make);
            assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
            servers.url("db-0", &name)
        };
        let urls = [at(0), at(1)];
        let password = servers.password();
        let opts = |url: &String| {
            let opts = OptsBuilder::from_opts(Opts::from_url(url).unwrap());
            opts.pass(Some(&password)).prefer_socket(false).into()
        };
        let told = urls.iter().map(|u| u.replace("onrush@", &format!("onrush:{password}@")));
        Self { opts: urls.iter().map(opts).collect(), urls: told.collect::<Vec<_>>().join(",") }
    }
}

/// A checked run against a mall whose store is on these servers; and what the tool is told of them.
fn checked(servers: &Servers, lie: Lie, more: &[&str]) -> (Ran, String) {
    let shards = Shards::on(servers);
    let store = shards.urls;
    let mut mall = Mall::with_stock(&[("a", 40), ("b", 50)]).lying(lie);
    mall.store = Some(Store::on_servers(shards.opts, &mall.skus()));
    let (server, _mall) = open(mall);
    let url = server.url();
    let load = ["--sale", "s1", "--members", "1-40", "--rate", "600", "--seconds", "1"];
    let check = ["--check", "--admin", &url, "--store", &store, "--balances", "ask"];
    (run(&url, &[&load[..], &check, more].concat()), store)
}

fn findings(ran: &Ran) -> Vec<&str> {
    let found = ran.summary["ledger"]["findings"].as_array().unwrap();
    found.iter().map(|f| f["text"].as_str().unwrap()).collect()
}

fn an_honest_store_passes(servers: &Servers) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("accepted.jsonl");
    let file = file.to_str().unwrap();
    let holds = ["--holds", "0.5", "--cancels", "0.2", "--think", "0.1", "--duplicates", "0.2"];
    let (ran, store) = checked(servers, Lie::None, &[&["--accepted", file], &holds[..]].concat());
    assert_eq!(ran.code, 0, "{} {}", ran.stdout, ran.stderr);
    let accepted = number(&ran, "/ledger/accepted");
    assert!(accepted >= 90.0 && number(&ran, "/ledger/released") > 3.0, "{}", ran.stdout);
    assert_eq!(number(&ran, "/check/found_in_store").to_bits(), accepted.to_bits());
    // And by the file alone.
    let again = tool(&["check", "--accepted", file, "--store", &store]);
    assert_eq!(again.code, 0, "{} {}", again.stdout, again.stderr);
    assert!(again.stdout.contains(&format!("all {accepted} accepted")), "{}", again.stdout);
}

fn lies_of_the_store_are_caught(servers: &Servers) {
    let cases = [
        (Lie::StoreLoses, "accepted, and not in the store"),
        (Lie::StoreInvents, "is in the store, and nobody was told of it"),
        (Lie::StoreInventsLate, "is in the store, and nobody was told of it"),
        (Lie::StoreMiscounts, "its ledger rows move"),
        (Lie::StoreChargesNobody, "the ledger has rows of redemption 0000000000008000900"),
    ];
    for (lie, told) in cases {
        // All must be there in the end, but for what never comes.
        let wait = if lie == Lie::StoreLoses { "5" } else { "60" };
        let (ran, _) = checked(servers, lie, &["--store-wait", wait]);
        assert_eq!(ran.code, 3, "{lie:?}: {:?} {}", findings(&ran), ran.stderr);
        assert!(findings(&ran).iter().any(|f| f.contains(told)), "{lie:?}: {:?}", findings(&ran));
    }
}

fn one_that_cannot_be_read_is_named_without_its_password(servers: &Servers) {
    let (server, _mall) = open(Mall::with_stock(&[("a", 40)]));
    let store = format!("mysql://onrush:wrong-secret@127.0.0.1:{}/onrush", servers.port("db-0"));
    let load = ["run", "--sale", "s1", "--seconds", "1", "--check", "--store", &store, "--target"];
    let ran = tool(&[&load[..], &[&server.url()]].concat());
    assert_eq!(ran.code, 1, "{} {}", ran.stdout, ran.stderr);
    assert!(ran.stderr.contains("store mysql://127.0.0.1:"), "{}", ran.stderr);
    assert!(!ran.stderr.contains("wrong-secret"), "{}", ran.stderr);
}

macro_rules! on_both {
    ($($name:ident),*) => {
        mod on_mysql { $(#[test] fn $name() { super::$name(&super::MYSQL); })* }
        mod on_mariadb { $(#[test] fn $name() { super::$name(&super::MARIADB); })* }
    };
}

on_both! {
    an_honest_store_passes,
    lies_of_the_store_are_caught,
    one_that_cannot_be_read_is_named_without_its_password
}
