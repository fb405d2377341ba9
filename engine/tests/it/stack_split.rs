//! `onrush db split` beside a node that sells and persist processes that write: killed at each of
//! its steps, and everything is where it belongs afterwards.

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use onrush::ship::partition::{DatabaseShard, Layout, Partition};
use onrush::units::{MemberId, Slot};

use crate::e2e::{Node, Site, onrush, run, turn, wait_until};
use crate::e2e_client::Wish;
use crate::stack_kafka::{Shop, broker};
use crate::stack_mysql::{MEMBERS, SALE, command, sql};
use crate::stack_servers::{Flavour, Servers};

/// As the scripts call it, so that they can be asked too.
const DATABASE: &str = "onrush";

/// Has the rows go to the first `count` of these servers' databases.
pub fn use_databases(site: &mut Site, servers: &Servers, count: usize, with_replicas: bool) {
    let url = |server: String| format!("\"{}\"", servers.url(&server, DATABASE));
    let urls: Vec<_> = (0..count).map(|n| url(format!("db-{n}"))).collect();
    site.set("store.kind", "\"mysql\"");
    site.set("store.mysql.urls", &format!("[{}]", urls.join(", ")));
    let password = servers.password_file();
    site.set("store.mysql.password_file", &format!("\"{}\"", password.display()));
    if with_replicas {
        let of: Vec<_> =
            (0..count).map(|n| format!("[{}]", url(format!("db-{n}-replica-0")))).collect();
        site.set("store.mysql.replicas", &format!("[{}]", of.join(", ")));
    }
}

/// Every redemption of the first `count` databases: id and member.
fn stored(servers: &Servers, count: u8) -> Vec<Vec<String>> {
    let query = "SELECT redemption, member FROM redemption_list WHERE state = 'confirmed'";
    (0..count).flat_map(|n| sql(servers, &format!("db-{n}"), DATABASE, query)).collect()
}

fn moves(member: u64) -> bool {
    let partition = Partition::of(Slot::of(MemberId::new(member))).map(Partition::get);
    partition.is_some_and(|p| [0, 1, 2, 3, 20, 21].contains(&p))
}

/// Some members of partitions that move, and one that stays of each database that others leave.
fn watched() -> Vec<u64> {
    let layout = Layout::new(2).unwrap();
    let stays_on = |shard: u8| {
        let is_on = |member: &u64| {
            layout.shard_of_slot(Slot::of(MemberId::new(*member))) == DatabaseShard::new(shard)
        };
        (1..MEMBERS).filter(|member| !moves(*member)).find(is_on)
    };
    let moving = (1..MEMBERS).filter(|member| moves(*member)).take(4);
    moving.chain(stays_on(0)).chain(stays_on(1)).collect()
}

/// What a member was just told is in its statement, or the statement is "not now". Of a member
/// that stays it comes, though the split stands still: what waits for it is what moves, alone.
fn assert_statements(node: &Node, round: u64, answered: &mut BTreeMap<String, u64>) {
    let mut client = node.client();
    for member in watched() {
        let wish = Wish::new(member, format!("s{round}-{member}"), SALE, "thing");
        let id = client.redeem(&wish).expect(201).json()["id"].as_str().unwrap().to_owned();
        let mut page = client.get_as(member, "/v1/members/me/statement");
        if !moves(member) {
            wait_until("a member that stays has its statement", Duration::from_mins(1), || {
                if page.status != 200 {
                    page = client.get_as(member, "/v1/members/me/statement");
                }
                page.status == 200
            });
        }
        assert!(
            (page.status == 503 && moves(member)) || page.body.contains(&id),
            "{id} of member {member} is missing: {}",
            page.body
        );
        answered.insert(id, member);
    }
}

/// Redeems at a pace that leaves the machine to the split; the ids, with their members.
fn trickle(node: &Node, stop: &AtomicBool, first: &AtomicU64) -> BTreeMap<String, u64> {
    let (mut client, mut seen) = (node.client(), BTreeMap::new());
    while !stop.load(Ordering::Relaxed) {
        thread::sleep(Duration::from_millis(3));
        let number = first.fetch_add(1, Ordering::Relaxed);
        let member = 1 + number % MEMBERS;
        let wish = Wish::new(member, format!("k{number}"), SALE, "thing");
        let id = client.redeem(&wish).expect(201).json()["id"].as_str().unwrap().to_owned();
        seen.insert(id, member);
    }
    seen
}

/// Ends the load, also where the test fails beside it.
struct Stop<'s>(&'s AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Kills the command at each of its steps, then lets it finish.
fn split_and_die(site: &Site, args: &[&str], mut between: impl FnMut(u64)) {
    let (_, listed, _) = run(onrush().arg("crash-points"));
    let points: Vec<_> =
        listed.lines().map(str::trim).filter(|l| l.starts_with("split-")).collect();
    assert!(points.len() > 5, "{listed}");
    for (round, point) in (0..).zip(points) {
        let args = [&["db", "split"], args].concat();
        drop(site.serve());
        let mut command = onrush();
        command.args(&args).arg("--config").arg(site.path("onrush.toml"));
        let output = command.env("ONRUSH_CRASH_AT", point).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.signal(), Some(9), "{point} is not met: {text}");
        between(round);
    }
    let (code, out, err) = command(site, &[&["db", "split"], args].concat());
    assert_eq!(code, Some(0), "{out}{err}");
    println!("{out}");
}

/// All that was answered is there once, and node, databases (and Kafka) and plain SQL agree.
fn assert_complete(site: &Site, servers: &Servers, answered: &BTreeMap<String, u64>) {
    let rows = stored(servers, 3);
    for row in &rows {
        let [id, member] = &row[..] else { panic!("{row:?}") };
        assert_eq!(answered.get(id).map(u64::to_string).as_ref(), Some(member), "{id}");
    }
    assert_eq!(rows.len(), answered.len(), "each once");
    let held = "SELECT COUNT(*) FROM holdings WHERE `partition` IN (0, 1, 2, 3, 20, 21)";
    assert_eq!(sql(servers, "db-2", DATABASE, held)[0][0], "6");
    assert_ne!(sql(servers, "db-2", DATABASE, "SELECT COUNT(*) FROM redemptions")[0][0], "0");
    let data = site.data().to_str().unwrap();
    let (code, out, err) = command(site, &["audit", "--all", "--data", data, "--json"]);
    assert_eq!(code, Some(0), "{out}{err}");
    let report = site.path("audit.json");
    std::fs::write(&report, out).unwrap();
    let sums =
        servers.script(&format!("scripts/sums --dir \"$stack_dir\" --audit {}", report.display()));
    let text = String::from_utf8_lossy(&sums.stdout).into_owned();
    assert!(sums.status.success(), "{text}{}", String::from_utf8_lossy(&sums.stderr));
    let (code, out, err) = command(site, &["db", "status"]);
    assert_eq!(code, Some(0), "{out}{err}");
    assert!(out.contains("held: partitions 0-3, 20-21, 32"), "{out}");
}

const PARTITIONS: [&str; 4] = ["--to", "2", "--partitions", "0-3,20-21"];

fn partitions_move_under_load_though_the_command_is_killed_at_every_step(flavour: Flavour) {
    let _turn = turn();
    let servers = Servers::start(flavour, 3, 0);
    let mut site = Site::new();
    use_databases(&mut site, &servers, 2, false);
    assert_eq!(command(&site, &["db", "migrate"]).0, Some(0));
    let (stop, first) = (AtomicBool::new(false), AtomicU64::new(0));
    let node = site.start();
    node.import_members(1, MEMBERS, 1_000_000);
    node.open_sale(SALE, 3_600_000, &[("thing", 10, 1_000_000, 1_000)]);
    let mut answered = thread::scope(|scope| {
        scope.spawn(|| {
            thread::sleep(Duration::from_secs(1));
            stop.store(true, Ordering::Relaxed);
        });
        trickle(&node, &stop, &first)
    });
    assert!(node.stop().success());
    // A third database, which holds nothing at first.
    let (code, out, _) = command(&site, &[&["db", "split"], &PARTITIONS[..]].concat());
    assert_eq!(code, Some(1), "{out}");
    assert!(out.contains("there is no database shard 2"), "{out}");
    use_databases(&mut site, &servers, 3, false);
    let (code, out, err) = command(&site, &["db", "migrate"]);
    assert_eq!(code, Some(0), "{out}{err}");
    let node = site.start();
    stop.store(false, Ordering::Relaxed);
    let mut shown = BTreeMap::new();
    let loaded = thread::scope(|scope| {
        scope.spawn(|| {
            let _stop = Stop(&stop);
            split_and_die(&site, &PARTITIONS, |round| {
                assert_statements(&node, round, &mut shown);
            });
            node.audit();
        });
        trickle(&node, &stop, &first)
    });
    println!("{} redemptions before, {} during the split", answered.len(), loaded.len());
    assert!(loaded.len() > 100, "the sale went on: {}", loaded.len());
    answered.extend(loaded);
    answered.extend(shown);
    assert!(node.stop().success());
    assert_complete(&site, &servers, &answered);
}

/// With Kafka between, two persist processes, one of which is killed meanwhile, and replicas that
/// statements are read from.
fn partitions_move_behind_kafka_with_replicas_and_two_persist_processes(flavour: Flavour) {
    let _turn = turn();
    let servers = Servers::start(flavour, 3, 1);
    let mut shop = Shop::open(broker());
    use_databases(&mut shop.site, &servers, 2, true);
    assert_eq!(command(&shop.site, &["db", "migrate"]).0, Some(0));
    let node = shop.site.start();
    let persisters = [shop.persist("persist-0.log"), shop.persist("persist-1.log")];
    node.import_members(1, MEMBERS, 1_000_000);
    node.open_sale(SALE, 3_600_000, &[("thing", 10, 1_000_000, 1_000)]);
    let mut answered = BTreeMap::new();
    assert_statements(&node, 1_000, &mut answered);
    wait_until("something is stored", Duration::from_mins(1), || !stored(&servers, 2).is_empty());
    for persister in persisters {
        persister.kill();
    }
    assert!(node.stop().success());
    use_databases(&mut shop.site, &servers, 3, true);
    assert_eq!(command(&shop.site, &["db", "migrate"]).0, Some(0));
    let node = shop.site.start();
    let _first = shop.persist("persist-2.log");
    let mut second = Some(shop.persist("persist-3.log"));
    let (stop, first) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut shown = BTreeMap::new();
    let site = &shop.site;
    let loaded = thread::scope(|scope| {
        scope.spawn(|| {
            let _stop = Stop(&stop);
            split_and_die(site, &PARTITIONS, |round| {
                assert_statements(&node, round, &mut shown);
                if round == 3 {
                    second.take().into_iter().for_each(super::stack_kafka::Persister::kill);
                    second = Some(shop.persist("persist-4.log"));
                }
            });
        });
        trickle(&node, &stop, &first)
    });
    println!("{} redemptions during the split", loaded.len());
    answered.extend(loaded);
    answered.extend(shown);
    wait_until("everything is stored", Duration::from_mins(2), || {
        stored(&servers, 3).len() >= answered.len()
    });
    let mut client = node.client();
    wait_until("every statement is there again", Duration::from_mins(1), || {
        watched()
            .into_iter()
            .all(|member| client.get_as(member, "/v1/members/me/statement").status == 200)
    });
    assert!(node.stop().success());
    assert_complete(&shop.site, &servers, &answered);
}

mod mysql {
    use super::Flavour;
    #[test]
    fn partitions_move_under_load_though_the_command_is_killed_at_every_step() {
        super::partitions_move_under_load_though_the_command_is_killed_at_every_step(
            Flavour::MySql,
        );
    }
    #[test]
    fn partitions_move_behind_kafka_with_replicas_and_two_persist_processes() {
        super::partitions_move_behind_kafka_with_replicas_and_two_persist_processes(Flavour::MySql);
    }
}

mod mariadb {
    use super::Flavour;
    #[test]
    fn partitions_move_under_load_though_the_command_is_killed_at_every_step() {
        super::partitions_move_under_load_though_the_command_is_killed_at_every_step(
            Flavour::MariaDb,
        );
    }
}
