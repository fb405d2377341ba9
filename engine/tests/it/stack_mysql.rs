//! The real node on real `MySQL` and `MariaDB` servers, end to end.

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use mysql_async::prelude::Queryable as _;
use serde_json::json;

use crate::e2e::{Node, Site, measured, now, onrush, run, turn, wait_until};
use crate::e2e_client::Wish;
use crate::e2e_power::Volume;
use crate::stack_servers::{Flavour, Servers};

pub const SALE: &str = "sale";
pub const MEMBERS: u64 = 3_000;

/// A site whose rows go to two database shards on these servers.
fn site_on(servers: &Servers) -> (Site, String) {
    let name = servers.fresh_name();
    let mut site = Site::new();
    let urls: Vec<String> = (0..2)
        .map(|shard| {
            let server = format!("db-{shard}");
            sql(servers, &server, "", &format!("CREATE DATABASE {name}"));
            format!("\"{}\"", servers.url(&server, &name))
        })
        .collect();
    site.set("store.kind", "\"mysql\"");
    site.set("store.mysql.urls", &format!("[{}]", urls.join(", ")));
    let password = servers.password_file();
    site.set("store.mysql.password_file", &format!("\"{}\"", password.display()));
    site.set("store.mysql.read_timeout_ms", "2000");
    (site, name)
}

/// Runs a command of the binary with the site's settings.
pub fn command(site: &Site, args: &[&str]) -> (Option<i32>, String, String) {
    drop(site.serve());
    run(onrush().args(args).arg("--config").arg(site.path("onrush.toml")))
}

/// Rows of a statement, as texts.
pub fn sql(servers: &Servers, server: &str, database: &str, sql: &str) -> Vec<Vec<String>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let url = servers.url(server, database);
        let options = mysql_async::Opts::from_url(&url).unwrap();
        let options = mysql_async::OptsBuilder::from_opts(options)
            .pass(Some(servers.password()))
            .prefer_socket(false);
        let mut conn = mysql_async::Conn::new(options).await.unwrap();
        let rows: Vec<mysql_async::Row> = conn.query(sql).await.unwrap();
        conn.disconnect().await.unwrap();
        let text = |value| {
            let bytes: Option<Vec<u8>> = mysql_async::from_value(value);
            String::from_utf8_lossy(&bytes.unwrap_or_default()).into_owned()
        };
        rows.into_iter().map(|row| row.unwrap().into_iter().map(text).collect()).collect()
    })
}

/// Redeems until told to stop; the ids of every 201, with their members.
pub fn redeem(node: &Node, stop: &AtomicBool, first: &AtomicU64) -> BTreeMap<String, u64> {
    let seen = Mutex::new(BTreeMap::new());
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut client = node.client();
                while !stop.load(Ordering::Relaxed) {
                    let number = first.fetch_add(1, Ordering::Relaxed);
                    let member = 1 + number % MEMBERS;
                    let wish = Wish::new(member, format!("k{number}"), SALE, "thing");
                    let Ok(reply) = client.try_redeem(&wish) else { continue };
                    if reply.status == 201 {
                        let id = reply.json()["id"].as_str().unwrap().to_owned();
                        seen.lock().unwrap().insert(id, member);
                    }
                }
            });
        }
    });
    seen.into_inner().unwrap()
}

/// Every redemption of both database shards: id, member, state.
fn stored(servers: &Servers, name: &str) -> Vec<Vec<String>> {
    let query = "SELECT redemption, member, state FROM redemption_list";
    let of = |server| sql(servers, server, name, query);
    [of("db-0"), of("db-1")].concat()
}

fn wait_stored(servers: &Servers, name: &str, count: usize) {
    let query = "SELECT count(*) FROM redemptions";
    let of = |server| sql(servers, server, name, query)[0][0].parse::<usize>().unwrap();
    let is_there = || of("db-0") + of("db-1") >= count;
    wait_until("everything is stored", Duration::from_mins(1), is_there);
}

fn every_201_is_stored_once_though_the_databases_are_killed(flavour: Flavour) {
    let _turn = turn();
    let servers = Servers::start(flavour, 2, 0);
    let (site, name) = site_on(&servers);
    let (code, out, err) = command(&site, &["db", "status"]);
    assert_eq!(code, Some(1), "an empty database is told: {out}{err}");
    let (code, out, err) = command(&site, &["db", "migrate"]);
    assert_eq!(code, Some(0), "{out}{err}");

    let node = site.start();
    node.import_members(1, MEMBERS, 1_000_000);
    node.open_sale(SALE, 3_600_000, &[("thing", 10, 1_000_000, 1_000)]);
    let (stop, first) = (AtomicBool::new(false), AtomicU64::new(0));
    let answered = thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0..3 {
                for server in ["db-0", "db-1"] {
                    thread::sleep(Duration::from_millis(300));
                    servers.kill(server);
                    thread::sleep(Duration::from_millis(200 * round));
                    servers.restart(server);
                }
            }
            stop.store(true, Ordering::Relaxed);
        });
        redeem(&node, &stop, &first)
    });
    println!("{} redemptions, 6 kills", answered.len());
    assert!(answered.len() > 300, "the sale went on: {}", answered.len());
    let begun_at = now();
    wait_stored(&servers, &name, answered.len());
    measured("one database after another killed and back, all stored", begun_at);
    let rows = stored(&servers, &name);
    for row in &rows {
        let [id, member, state] = &row[..] else { panic!("{row:?}") };
        assert_eq!(state, "confirmed");
        let expected = answered.get(id).unwrap_or_else(|| panic!("{id}: nobody was told"));
        assert_eq!(member, &expected.to_string());
    }
    assert_eq!(rows.len(), answered.len(), "each once");
    for server in ["db-0", "db-1"] {
        let books = "SELECT COALESCE(SUM(amount), 0) FROM ledger";
        assert_eq!(sql(&servers, server, &name, books)[0][0], "0");
        let held = "SELECT count(*) FROM dead_letters";
        assert_eq!(sql(&servers, server, &name, held)[0][0], "0");
    }
    let (code, out, err) = command(&site, &["db", "status"]);
    assert_eq!(code, Some(0), "{out}{err}");
    assert!(node.stop().success());
}

/// A node starts, sells and ends in front of databases that are down, and stores all of it later.
fn a_node_starts_and_sells_in_front_of_dead_databases(flavour: Flavour) {
    let _turn = turn();
    let servers = Servers::start(flavour, 2, 0);
    let (mut site, name) = site_on(&servers);
    site.set("node.drain_deadline_ms", "4000");
    assert_eq!(command(&site, &["db", "migrate"]).0, Some(0));
    servers.kill("db-0");
    servers.kill("db-1");
    let (code, out, _) = command(&site, &["db", "status"]);
    assert_eq!(code, Some(2), "they cannot be reached: {out}");
    let node = site.start();
    node.import_members(1, 200, 1_000);
    node.open_sale(SALE, 3_600_000, &[("thing", 10, 100_000, 1_000)]);
    let mut client = node.client();
    for member in 1..=200 {
        client.redeem(&Wish::new(member, format!("k{member}"), SALE, "thing")).expect(201);
    }
    assert!(node.stop().success());
    let node = site.start();
    servers.restart("db-0");
    servers.restart("db-1");
    let begun_at = now();
    wait_stored(&servers, &name, 200);
    measured("all databases away and back, all stored", begun_at);
    assert_eq!(stored(&servers, &name).len(), 200);
    assert!(node.stop().success());
}

/// The operator's way out of a dead letter, while the node runs.
fn dead_letters_are_listed_shown_and_applied_once_repaired(flavour: Flavour) {
    let _turn = turn();
    let servers = Servers::start(flavour, 2, 0);
    let (site, name) = site_on(&servers);
    assert_eq!(command(&site, &["db", "migrate"]).0, Some(0));
    let node = site.start();
    node.import_members(1, 20, 1_000);
    node.open_sale(SALE, 3_600_000, &[("thing", 10, 100_000, 1_000)]);
    let both = |statement: &str| {
        let of = |server| sql(&servers, server, &name, statement);
        [of("db-0"), of("db-1")].concat()
    };
    wait_until("accounts are stored", Duration::from_secs(30), || {
        both("SELECT member FROM accounts").len() == 20
    });
    let letters = |args: &[&str]| {
        let args = [&["persist", "dead-letters"], args].concat();
        let (code, out, err) = command(&site, &args);
        println!("{args:?}: {code:?}\n{out}{err}");
        (code, out)
    };
    assert_eq!(letters(&["list"]).0, Some(0));
    both("UPDATE accounts SET free = 995 WHERE member = 7");
    let mut client = node.client();
    for key in ["a", "b"] {
        client.redeem(&Wish::new(7, key, SALE, "thing")).expect(201);
        client.redeem(&Wish::new(8, key, SALE, "thing")).expect(201);
    }
    wait_until("the others are stored", Duration::from_secs(30), || {
        both("SELECT id FROM dead_letters").len() == 2
            && both("SELECT 1 FROM redemptions WHERE member = 8").len() == 2
    });
    let (code, listed) = letters(&["list"]);
    assert_eq!(code, Some(1));
    assert!(listed.contains("dead    member 7") && listed.contains("parked  member 7"), "{listed}");
    let metrics = node.admin().get("/metrics").expect(200).body;
    let counted = metrics.lines().filter(|l| l.contains("dead_letters") && l.ends_with(" 2.0"));
    assert_eq!(counted.count(), 1, "{metrics}");
    let id = listed.split_whitespace().next().unwrap();
    let (code, shown) = letters(&["show", id]);
    assert_eq!(code, Some(0));
    assert!(shown.contains("Redeemed"), "{shown}");
    let (code, out) = letters(&["retry"]);
    assert_eq!(code, Some(1));
    assert!(out.contains("0 applied, 2 left"), "{out}");
    both("UPDATE accounts SET free = 1000 WHERE member = 7");
    let (code, out) = letters(&["retry"]);
    assert_eq!(code, Some(0));
    assert!(out.contains("2 applied, 0 left"), "{out}");
    assert_eq!(letters(&["list"]).0, Some(0));
    assert_eq!(both("SELECT free FROM accounts WHERE member = 7"), [["980"]]);
    assert!(node.stop().success());
}

/// With a replica that stands still: what a member was told is in its statement all the same, and
/// what was before that is read from the replica.
fn a_members_own_writes_are_never_missing_though_the_replica_lags(flavour: Flavour) {
    let _turn = turn();
    let servers = Servers::start(flavour, 2, 1);
    let (mut site, name) = site_on(&servers);
    let replicas: Vec<String> = (0..2)
        .map(|n| format!("[\"{}\"]", servers.url(&format!("db-{n}-replica-0"), &name)))
        .collect();
    site.set("store.mysql.replicas", &format!("[{}]", replicas.join(", ")));
    site.set("limits.key_retention_ms", "1");
    assert_eq!(command(&site, &["db", "migrate"]).0, Some(0));
    let node = site.start();
    node.import_members(1, 40, 1_000);
    node.open_sale(SALE, 3_600_000, &[("thing", 10, 100_000, 1_000)]);
    // A sale that is over, and forgotten: of its redemptions only the databases know.
    node.open_sale("past", 3_600_000, &[("thing", 10, 100_000, 1_000)]);
    let mut client = node.client();
    for member in 1..=40 {
        client.redeem(&Wish::new(member, "past", "past", "thing")).expect(201);
    }
    node.admin().post("/v1/sales/past/close", &json!({})).expect(200);
    wait_until("the sale is forgotten", Duration::from_mins(1), || {
        let asked = (1..=40).map(|m| client.redeem(&Wish::new(m, "past", "past", "thing")));
        asked.into_iter().all(|reply| reply.status == 410)
    });
    wait_until("the replicas have the accounts", Duration::from_mins(1), || {
        let of = |server| sql(&servers, server, &name, "SELECT member FROM accounts").len();
        of("db-0-replica-0") + of("db-1-replica-0") == 40
    });
    // A fresh node: what it found at its start is what everybody was told by now.
    assert!(node.stop().success());
    let (code, out, _) = command(&site, &["db", "status"]);
    assert_eq!((code, out.matches("replica ").count()), (Some(0), 2), "{out}");
    let node = site.start();
    wait_until("the replicas have everything", Duration::from_mins(1), || {
        let low = "SELECT COUNT(*) FROM watermarks WHERE seq < (SELECT MAX(seq) FROM watermarks)";
        let of = |server| sql(&servers, server, &name, low)[0][0] == "0";
        of("db-0-replica-0") && of("db-1-replica-0")
    });
    let stop = match flavour {
        Flavour::MySql => "STOP REPLICA SQL_THREAD",
        Flavour::MariaDb => "STOP SLAVE SQL_THREAD",
    };
    for n in 0..2 {
        // It stands still, and can be told from its primary.
        let replica = format!("db-{n}-replica-0");
        let tell = format!(
            "mysql_client {replica} -e \"{stop}; SET GLOBAL {} = 0; \
             UPDATE {name}.ledger SET amount = 777 WHERE kind = 1 AND leg = 1; \
             UPDATE {name}.redemptions SET quantity = 7\"",
            if flavour == Flavour::MySql { "super_read_only" } else { "read_only" }
        );
        let done = servers.script(&tell);
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    }
    let mut client = node.client();
    let path = "/v1/members/me/statement";
    let list = "/v1/members/me/redemptions";
    let quiet = client.get_as(5, list).expect(200).json();
    assert_eq!(quiet["redemptions"][0]["quantity"], 7, "and so is what memory has forgotten");
    let one = format!("/v1/redemptions/{}", quiet["redemptions"][0]["id"].as_str().unwrap());
    assert_eq!(client.get_as(5, &one).expect(200).json()["quantity"], 7);
    let keyed = client.get_as(5, &format!("{list}?key=past")).expect(200).json();
    assert_eq!(keyed["redemptions"][0]["quantity"], 7);
    let quiet = client.get_as(5, path).expect(200).json();
    assert_eq!(quiet["entries"][1]["amount"], 777, "a quiet member's page is the replica's");
    let of_item = "/v1/sales/past/items/thing/redemptions?limit=100";
    let page = node.admin().get(of_item).expect(200).json();
    let rows = page["redemptions"].as_array().unwrap();
    assert_eq!(rows.len(), 40, "{page}");
    assert!(rows.iter().all(|row| row["quantity"] == 7), "an item's are the replicas': {page}");
    for member in 1..=20 {
        let wish = Wish::new(member, format!("k{member}"), SALE, "thing");
        let id = client.redeem(&wish).expect(201).json()["id"].clone();
        let page = client.get_as(member, path).expect(200).json();
        assert_eq!(page["entries"][0]["redemption"], id, "{page}");
        assert_eq!(page["entries"][2]["amount"], 1_000, "{page}");
        // What is remembered, then what the primary has.
        let page = client.get_as(member, list).expect(200).json();
        let rows = page["redemptions"].as_array().unwrap();
        assert_eq!((rows.len(), &rows[0]["id"]), (2, &id), "{page}");
        assert!(rows.iter().all(|row| row["quantity"] == 1), "{page}");
    }
    // Behind an outage of both, the answer is "not now", and the sale goes on.
    servers.kill("db-0");
    servers.kill("db-1");
    for member in 21..=24 {
        client.redeem(&Wish::new(member, "k", SALE, "thing")).expect(201);
        let reply = client.get_as(member, path);
        assert_eq!((reply.status, reply.code().as_str()), (503, "history-unavailable"));
        let reply = client.get_as(member, list);
        assert_eq!((reply.status, reply.code().as_str()), (503, "history-unavailable"));
    }
    servers.restart("db-0");
    servers.restart("db-1");
    wait_until("the statement is back", Duration::from_mins(1), || {
        let reply = client.get_as(21, path);
        reply.status == 200 && reply.json()["entries"][0]["amount"] == -10
    });
    assert!(node.stop().success());
}

/// A server without space: what it cannot take is tried again, nothing is skipped, and all of it
/// is stored once there is space. The sale does not notice.
fn a_full_disk_of_a_database_holds_rows_up_and_loses_none(flavour: Flavour) {
    let _turn = turn();
    let Some(volume) = Volume::new("a database's full disk", 900) else { return };
    let servers = Servers::start_in(volume.mount_point().join("stack"), flavour, 1, 0);
    let name = servers.fresh_name();
    sql(&servers, "db-0", "", &format!("CREATE DATABASE {name}"));
    let mut site = Site::new();
    site.set("store.kind", "\"mysql\"");
    site.set("store.mysql.urls", &format!("[\"{}\"]", servers.url("db-0", &name)));
    let password = servers.password_file();
    site.set("store.mysql.password_file", &format!("\"{}\"", password.display()));
    site.set("store.mysql.read_timeout_ms", "3000");
    assert_eq!(command(&site, &["db", "migrate"]).0, Some(0));
    let node = site.start();
    node.import_members(1, MEMBERS, 1_000_000);
    node.open_sale(SALE, 3_600_000, &[("thing", 10, 1_000_000, 1_000)]);
    // Room for the log of some transactions, and for no further extent of a table.
    let ballast = volume.mount_point().join("ballast");
    let left = Command::new("df").args(["--output=avail", "-k"]).arg(volume.mount_point()).output();
    let left = String::from_utf8(left.unwrap().stdout).unwrap();
    let left: u64 = left.lines().last().unwrap().trim().parse().unwrap();
    let mut fill = Command::new("fallocate");
    fill.args(["-l", &format!("{}K", left.saturating_sub(900))]).arg(&ballast);
    assert_eq!(run(&mut fill).0, Some(0), "{left} KiB");
    let (stop, first) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut held_up = String::new();
    let answered = thread::scope(|scope| {
        scope.spawn(|| {
            wait_until("persist is held up", Duration::from_mins(3), || {
                let log = node.log_tail();
                let line = log.lines().find(|line| line.contains("persist is held up"));
                line.unwrap_or_default().clone_into(&mut held_up);
                line.is_some()
            });
            // The sale goes on for a while.
            thread::sleep(Duration::from_secs(1));
            stop.store(true, Ordering::Relaxed);
        });
        redeem(&node, &stop, &first)
    });
    println!("{} redemptions; {held_up}", answered.len());
    std::fs::remove_file(&ballast).unwrap();
    let begun_at = now();
    let count = || sql(&servers, "db-0", &name, "SELECT count(*) FROM redemptions")[0][0].clone();
    // A server that waits for space looks once a minute.
    wait_until("everything is stored", Duration::from_mins(3), || {
        count() == answered.len().to_string()
    });
    measured(&format!("{flavour:?}'s disk full and emptied, all stored"), begun_at);
    for (query, expected) in [
        ("SELECT COALESCE(SUM(amount), 0) FROM ledger", "0"),
        ("SELECT count(*) FROM dead_letters", "0"),
    ] {
        assert_eq!(sql(&servers, "db-0", &name, query)[0][0], expected, "{query}");
    }
    assert!(node.stop().success());
    let data = site.data().to_str().unwrap();
    let (code, out, err) = command(&site, &["audit", "--all", "--data", data]);
    assert_eq!(code, Some(0), "{out}{err}");
    drop(servers);
}

/// A data folder as it was earlier: databases that have more refuse it; where they do not answer it
/// starts, and is told once they are back.
fn an_old_copy_of_the_journal_is_refused_by_what_the_databases_have(flavour: Flavour) {
    let _turn = turn();
    let servers = Servers::start(flavour, 2, 0);
    let (mut site, name) = site_on(&servers);
    site.set("node.drain_deadline_ms", "2000");
    assert_eq!(command(&site, &["db", "migrate"]).0, Some(0));
    let node = site.start();
    node.import_members(1, 100, 1_000);
    wait_until("accounts are stored", Duration::from_secs(30), || {
        let of = |server| sql(&servers, server, &name, "SELECT member FROM accounts").len();
        of("db-0") + of("db-1") == 100
    });
    assert!(node.stop().success());
    let copy = |from: &Path, to: &Path| {
        let done = Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
        assert!(done.success());
    };
    let (data, old) = (site.data().to_owned(), site.path("old"));
    copy(&data, &old);
    let node = site.start();
    node.open_sale(SALE, 3_600_000, &[("thing", 10, 100_000, 1_000)]);
    let mut client = node.client();
    for member in 1..=100 {
        client.redeem(&Wish::new(member, format!("k{member}"), SALE, "thing")).expect(201);
    }
    wait_stored(&servers, &name, 100);
    assert!(node.stop().success());
    std::fs::remove_dir_all(&data).unwrap();
    copy(&old, &data);
    let (code, _, err) = run(&mut site.serve());
    assert_eq!(code, Some(2), "{err}");
    assert!(err.contains("old copy") && err.contains("database shard"), "{err}");
    servers.kill("db-0");
    servers.kill("db-1");
    let node = site.start();
    for member in 1..=100 {
        let path = format!("/v1/members/{member}/points");
        node.admin().post_keyed(&format!("c{member}"), &path, &json!({"credit": 1})).expect(200);
    }
    servers.restart("db-0");
    servers.restart("db-1");
    wait_until("the databases say so", Duration::from_mins(1), || {
        node.log_tail().contains("persist holds this partition")
    });
    let credited = "SELECT count(*) FROM ledger WHERE kind = 2";
    for server in ["db-0", "db-1"] {
        assert_eq!(sql(&servers, server, &name, credited)[0][0], "0", "nothing was mixed in");
    }
    node.kill();
    // A password that cannot be read is no outage: it is said at once.
    let gone = site.path("no-such-password");
    site.set("store.mysql.password_file", &format!("\"{}\"", gone.display()));
    let (code, _, err) = run(&mut site.serve());
    assert_eq!(code, Some(2), "{err}");
    assert!(err.contains("store.mysql.password_file"), "{err}");
    site.set("log.kind", "\"kafka\"");
    site.set("log.kafka.bootstrap", "\"127.0.0.1:1\"");
    let (code, _, err) = command(&site, &["persist"]);
    assert_eq!(code, Some(2), "{err}");
    assert!(err.contains("store.mysql.password_file"), "{err}");
}

/// Months of synthetic rows go to files, though the command is killed again and again; what is in
/// the files is what was in the tables, and a file that was touched stops the drop.
fn whole_months_go_to_files_though_the_command_is_killed(flavour: Flavour) {
    let servers = Servers::start(flavour, 2, 0);
    let (site, name) = site_on(&servers);
    let migrate = ["db", "migrate", "--partitions-from", "2026-01"];
    assert_eq!(command(&site, &migrate).0, Some(0));
    let months = ["2026-01-15", "2026-02-15", "2026-09-15"];
    for server in ["db-0", "db-1"] {
        for (n, day) in months.iter().enumerate() {
            // 2048 of each, by doubling.
            for statement in synthetic(day, n) {
                sql(&servers, server, &name, &statement);
            }
        }
    }
    // What is left and what is said of the rest, together.
    let points = |of: &str| format!("SELECT account, SUM(amount) FROM {of} GROUP BY account");
    let units = "SELECT SUM(quantity) FROM redemptions";
    let figures = |server: &str, both: bool| {
        let all = "(SELECT account, amount FROM ledger UNION ALL
                    SELECT account, amount FROM archived_balances) entries";
        let mut rows = sql(&servers, server, &name, &points(if both { all } else { "ledger" }));
        rows.sort();
        let archived = "SELECT SUM(held + confirmed + released + reversed) FROM archived_stock";
        let count = |text: &str| {
            sql(&servers, server, &name, text)[0][0].parse::<u64>().unwrap_or_default()
        };
        (rows, count(units) + if both { count(archived) } else { 0 })
    };
    let before = ["db-0", "db-1"].map(|server| figures(server, false));
    let to = site.path("archive");
    let archive = || {
        drop(site.serve());
        let mut command = onrush();
        command.args(["db", "archive", "--before", "2026-03", "--to"]).arg(&to);
        command.arg("--config").arg(site.path("onrush.toml"));
        command
    };
    let (_, listed, _) = run(onrush().arg("crash-points"));
    let points: Vec<_> =
        listed.lines().map(str::trim).filter(|l| l.starts_with("archive-")).collect();
    assert!(points.len() > 5, "{listed}");
    for point in points {
        let output = archive().env("ONRUSH_CRASH_AT", point).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.signal(), Some(9), "{point} is not met: {text}");
    }
    // And at any moment.
    let mut kills = 0;
    for delay_ms in (10..).step_by(15) {
        let mut child = archive().stdout(std::process::Stdio::null()).spawn().unwrap();
        thread::sleep(Duration::from_millis(delay_ms));
        if child.try_wait().unwrap().is_some() {
            break;
        }
        child.kill().unwrap();
        child.wait().unwrap();
        kills += 1;
    }
    println!("{kills} kills");
    let (code, out, err) = run(&mut archive());
    assert_eq!(code, Some(0), "{out}{err}");
    for (shard, server) in ["db-0", "db-1"].iter().enumerate() {
        for table in ["redemptions", "ledger"] {
            let count = format!("SELECT count(*) FROM {table}");
            assert_eq!(sql(&servers, server, &name, &count)[0][0], "2048", "September stays");
        }
        assert_eq!(figures(server, true), before[shard], "each month is added once");
        let done = "SELECT name, SUM(records), MIN(is_done) FROM archived_months GROUP BY name
                    ORDER BY name";
        let expected = [["ledger", "4096", "1"], ["redemptions", "4096", "1"]];
        assert_eq!(sql(&servers, server, &name, done), expected);
        let left = format!(
            "SELECT count(*) FROM information_schema.TABLES
             WHERE TABLE_SCHEMA = '{name}' AND TABLE_NAME LIKE 'archive%'
             AND TABLE_NAME NOT LIKE 'archived%'"
        );
        assert_eq!(sql(&servers, server, &name, &left)[0][0], "0");
        let folder = to.join(format!("shard-{shard:02}"));
        let check = std::process::Command::new("sha256sum")
            .args(["-c", "SHA256SUMS"])
            .current_dir(&folder)
            .output()
            .unwrap();
        assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stdout));
        for file in
            ["redemptions-2026-01", "redemptions-2026-02", "ledger-2026-01", "ledger-2026-02"]
        {
            let zcat = std::process::Command::new("zcat")
                .arg(folder.join(format!("{file}.csv.gz")))
                .output()
                .unwrap();
            let text = String::from_utf8(zcat.stdout).unwrap();
            assert_eq!(text.lines().count(), 2049, "{file}");
        }
    }
    // September, with a file in its place that says something else.
    let folder = to.join("shard-00");
    let wrong = folder.join("ledger-2026-09.csv.gz");
    std::fs::copy(folder.join("ledger-2026-01.csv.gz"), &wrong).unwrap();
    let again = || {
        let mut command = onrush();
        command.args(["db", "archive", "--before", "2026-10", "--to"]).arg(&to);
        run(command.arg("--config").arg(site.path("onrush.toml")))
    };
    let (code, out, _) = again();
    assert_eq!(code, Some(1), "{out}");
    assert!(out.contains("nothing was dropped"), "{out}");
    let side = "SELECT count(*) FROM archive_ledger_p202609";
    assert_eq!(sql(&servers, "db-0", &name, side)[0][0], "2048");
    std::fs::remove_file(&wrong).unwrap();
    let (code, out, _) = again();
    assert_eq!(code, Some(0), "{out}");
    assert_eq!(sql(&servers, "db-0", &name, "SELECT count(*) FROM ledger")[0][0], "0");
}

/// Statements that fill a day of both tables: 2048 rows each, the ledger's in pairs.
fn synthetic(day: &str, salt: usize) -> Vec<String> {
    let ms = format!("(UNIX_TIMESTAMP('{day} 00:00:00') * 1000)");
    let id =
        |n: &str| format!("UNHEX(CONCAT(LPAD(HEX({ms} + {n}), 12, '0'), LPAD(HEX({n}), 20, '0')))");
    let first = 1_000_000 * (salt + 1);
    let mut statements = vec![
        "CREATE TABLE IF NOT EXISTS numbers (n INT PRIMARY KEY)".into(),
        "DELETE FROM numbers".into(),
        "INSERT INTO numbers VALUES (0)".into(),
    ];
    for bit in 0..11 {
        statements.push(format!("INSERT INTO numbers SELECT n + {} FROM numbers", 1 << bit));
    }
    statements.push(format!(
        "INSERT INTO redemptions SELECT {}, n, 7, n % 5, 1, 100, 2, UNHEX(LPAD(HEX(n), 32, '0')), \
         {ms} + n, 0, {ms} + n, 0, {first} + n FROM numbers",
        id("n")
    ));
    statements.push(format!(
        "INSERT INTO ledger SELECT {}, 7, {first} + n DIV 2, n % 2, 1 + 3 * (n % 2), n DIV 2, \
         IF(n % 2 = 0, -100, 100), 5, NULL, {ms} + n DIV 2 FROM numbers",
        id("n")
    ));
    statements.push("DROP TABLE numbers".into());
    statements
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
    every_201_is_stored_once_though_the_databases_are_killed,
    a_node_starts_and_sells_in_front_of_dead_databases,
    dead_letters_are_listed_shown_and_applied_once_repaired,
    a_members_own_writes_are_never_missing_though_the_replica_lags,
    whole_months_go_to_files_though_the_command_is_killed,
    a_full_disk_of_a_database_holds_rows_up_and_loses_none,
    an_old_copy_of_the_journal_is_refused_by_what_the_databases_have,
}
