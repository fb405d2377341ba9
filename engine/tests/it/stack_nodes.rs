//! Claims of slots on real `MySQL` and `MariaDB`: one owner per slot, whatever maps say.

use std::time::Duration;

use crate::e2e::{Site, onrush, run, turn};
use crate::e2e_mall::{Mall, NAMES};
use crate::stack_mysql::sql;
use crate::stack_servers::{Flavour, Servers};

/// Points a site's store at a database; its rows are not of interest here.
fn store_in(site: &mut Site, servers: &Servers, name: &str) {
    site.set("store.kind", "\"mysql\"");
    site.set("store.mysql.urls", &format!("[\"{}\"]", servers.url("db-0", name)));
    let password = servers.password_file();
    site.set("store.mysql.password_file", &format!("\"{}\"", password.display()));
    site.set("persist.run", "false");
}

/// A mall whose claims lie in a fresh database. Nothing runs yet.
pub fn mall_on(servers: &Servers, set: impl Fn(&mut Site)) -> (Mall, String) {
    let name = servers.fresh_name();
    sql(servers, "db-0", "", &format!("CREATE DATABASE {name}"));
    let mall = Mall::prepare(|site| {
        store_in(site, servers, &name);
        set(site);
    });
    drop(mall.sites[0].serve());
    let config = mall.sites[0].path("onrush.toml");
    let (code, out, err) = run(onrush().args(["db", "migrate", "--config"]).arg(config));
    assert_eq!(code, Some(0), "{out}{err}");
    (mall, name)
}

/// Starts a node that must not start, and gives its last line.
#[track_caller]
fn refused(site: &Site) -> String {
    let (code, _, err) = run(&mut site.serve());
    assert!(code.is_some_and(|code| code != 0), "it started:\n{err}");
    let line = err.lines().rfind(|line| line.starts_with("onrush: ")).unwrap_or_default();
    assert!(!line.is_empty(), "no line says why:\n{err}");
    line.to_owned()
}

fn a_slot_has_one_owning_journal_whatever_maps_say(flavour: Flavour) {
    let _turn = turn();
    let (_rough, servers) = crate::stack_servers::rough(flavour);
    let (mut mall, name) = mall_on(servers, |_| {});
    for at in 0..NAMES.len() {
        mall.start_node(at);
    }
    let claims = "SELECT node, HEX(journal), MIN(slot), MAX(slot), COUNT(*) FROM slot_claims
                  GROUP BY node, journal ORDER BY node";
    let rows = sql(servers, "db-0", &name, claims);
    let slots = [["0", "1364", "1365"], ["1365", "2729", "1365"], ["2730", "4095", "1366"]];
    for ((row, node), slots) in rows.iter().zip(NAMES).zip(slots) {
        assert_eq!((row[0].as_str(), &row[2..]), (node, &slots.map(str::to_owned)[..]));
    }
    assert_eq!(rows.len(), 3);
    // Every node learns of every journal, those that claimed after it too.
    for at in 0..3 {
        crate::e2e::wait_until("all claims are known", Duration::from_secs(20), || {
            let nodes = mall.cluster(at)["nodes"].clone();
            let journals = nodes.as_array().expect("nodes").iter();
            journals.zip(&rows).all(|(node, row)| {
                node["journal"]
                    .as_str()
                    .is_some_and(|j| j.trim_start_matches('0') == row[1].to_lowercase())
            })
        });
    }

    // An empty disk under an old name.
    mall.take(0).kill();
    let empty = Mall::prepare(|site| store_in(site, servers, &name));
    let why = refused(&empty.sites[0]);
    assert!(
        why.contains("slot 0 belongs to journal") && why.contains("empty or wrong disk"),
        "{why}"
    );
    assert_eq!(sql(servers, "db-0", &name, claims), rows, "and it claimed nothing");

    // Its own disk: it starts, and needs no database for that.
    servers.kill("db-0");
    mall.start_node(0);
    // Another one's map on it.
    let node = mall.take(1);
    node.kill();
    mall.sites[1].set("cluster.self", "\"c\"");
    let why = refused(&mall.sites[1]);
    assert!(why.contains("owns slots 1365-2729 (claimed as node b)"), "{why}");
    // As the only node it would own all slots.
    mall.sites[1].set("cluster.nodes", "[]");
    let why = refused(&mall.sites[1]);
    assert!(why.contains("gives node (alone) slots 0-4095"), "{why}");
    // A node that has not claimed yet waits for nobody: without the database it does not start.
    let why = refused(&empty.sites[2]);
    assert!(why.contains("database shard 0"), "{why}");
    servers.restart("db-0");
}

fn of_two_that_claim_together_one_starts(flavour: Flavour) {
    let _turn = turn();
    let servers = crate::stack_servers::shared(flavour);
    let (mall, name) = mall_on(servers, |_| {});
    let rival = Mall::prepare(|site| store_in(site, servers, &name));
    let mut nodes = [mall.sites[1].launch(), rival.sites[1].launch()];
    let started = nodes.each_mut().map(crate::e2e::Node::wait_ready_or_end);
    assert_eq!(started.iter().filter(|is_ready| **is_ready).count(), 1, "{started:?}");
    let loser = &nodes[usize::from(started[0])];
    assert!(loser.log_tail().contains("belongs to journal"), "{}", loser.log_tail());
    let owners = sql(servers, "db-0", &name, "SELECT DISTINCT journal FROM slot_claims");
    assert_eq!(owners.len(), 1);
}

macro_rules! on_both {
    ($($test:ident),* $(,)?) => {
        mod mysql {
            $(#[test] fn $test() { super::$test(super::Flavour::MySql); })*
        }
        mod mariadb {
            $(#[test] fn $test() { super::$test(super::Flavour::MariaDb); })*
        }
    };
}

on_both! {
    a_slot_has_one_owning_journal_whatever_maps_say,
    of_two_that_claim_together_one_starts,
}
