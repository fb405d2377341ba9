//! Brokers, nodes and persist processes that die, topics that lose what stood in them; and nothing
//! is lost, doubled or out of order in the database shards.

use std::time::Duration;

use onrush::ship::partition::Partition;
use onrush::units::{MemberId, Slot};
use rdkafka::{Offset, TopicPartitionList};
use rustix::process::Signal;

use super::{PATIENCE, Persister, Shop, Stack, admin_options, block_on, broker, lag, wait_stored};
use crate::e2e::{Node, Random, measured, now, turn, wait_until};
use crate::e2e_burst::{Book, ITEMS, MEMBERS, POINTS, SALE, burst};
use crate::e2e_client::Wish;
use crate::stack_mysql::command;
use crate::stack_servers::{Flavour, Servers};
use crate::stack_split::use_databases;

const PARTITIONS: i32 = 33;

#[track_caller]
pub fn open(node: &Node) {
    node.import_members(1, MEMBERS, POINTS);
    node.open_sale(SALE, 600_000, ITEMS);
}

/// Sells so many units, one after the other, to members in turn.
#[track_caller]
pub fn sell(node: &Node, tag: &str, count: u64) {
    let mut client = node.client();
    for number in 0..count {
        let wish = Wish::new(1 + number % MEMBERS, format!("{tag}-{number}"), SALE, "plenty");
        client.redeem(&wish).expect(201);
    }
}

/// The node, its journal and the database shards agree, and nothing is missing there.
#[track_caller]
pub fn conclude(shop: &Shop, node: Node) {
    wait_stored(&node);
    node.audit();
    assert!(node.stop().success());
    shop.site.audit();
}

fn wait_shipped(stack: &Stack, shop: &Shop, records: i64) {
    wait_until("the records are in Kafka", PATIENCE, || {
        stack.end_of(&shop.topic, PARTITIONS) >= records
    });
}

#[test]
fn kill_9_of_broker_node_and_persist_processes_under_load_loses_and_doubles_nothing() {
    let _turn = turn();
    let stack = broker();
    let shop = Shop::open(stack);
    let mut random = Random::new("kafka faults");
    let mut node = shop.site.start();
    open(&node);
    let (mut first, _second) = (shop.persist("persist-1.log"), shop.persist("persist-2.log"));
    let mut book = Book::default();
    for round in 0..2 {
        let load = burst(node.public, random.next(), &format!("broker-{round}"));
        std::thread::sleep(Duration::from_millis(500));
        stack.order("kill", "kafka-1");
        std::thread::sleep(Duration::from_millis(500));
        let begun = load.finish();
        stack.order("start", "kafka-1");
        first.kill();
        first = shop.persist("persist-1.log");
        assert!(begun.iter().any(|a| a.reply.is_some()), "the sale went on");
        book.reconcile(&node, begun, &mut random);

        let load = burst(node.public, random.next(), &format!("node-{round}"));
        std::thread::sleep(Duration::from_millis(700));
        node.kill();
        let begun = load.finish();
        node = shop.site.start();
        book.reconcile(&node, begun, &mut random);
    }
    println!("{}", book.summary());
    book.compare(&node);
    conclude(&shop, node);
}

#[test]
fn what_the_topic_lost_is_noticed_asked_for_and_sent_again() {
    let _turn = turn();
    let stack = broker();
    let mut shop = Shop::open(stack);
    shop.site.set_env("RUST_LOG", "info");
    let node = shop.site.start();
    open(&node);
    sell(&node, "lost", 800);
    wait_shipped(stack, &shop, 1_200);
    // Nobody has read any of it yet.
    let mut list = TopicPartitionList::new();
    for partition in [3, 17, 32] {
        list.add_partition_offset(&shop.topic, partition, Offset::End).unwrap();
    }
    let answer = block_on(stack.admin().delete_records(&list, &admin_options())).unwrap();
    answer.elements().iter().for_each(|e| e.error().unwrap());
    sell(&node, "after", 400);
    let _persist = shop.persist("persist.log");
    wait_stored(&node);
    assert!(node.log_tail().contains("a gap: sending again"), "{}", node.log_tail());
    conclude(&shop, node);
}

#[test]
fn a_topic_that_was_made_anew_under_a_running_node_is_filled_again() {
    let _turn = turn();
    let stack = broker();
    let shop = Shop::open(stack);
    let node = shop.site.start();
    open(&node);
    let _persist = shop.persist("persist.log");
    sell(&node, "before", 600);
    wait_stored(&node);
    sell(&node, "between", 300);
    let deleted = block_on(stack.admin().delete_topics(&[&shop.topic], &admin_options())).unwrap();
    assert!(deleted.iter().all(Result::is_ok), "{deleted:?}");
    sell(&node, "without", 300);
    wait_until("the topic can be made again", PATIENCE, || shop.kafka("init").0 == Some(0));
    sell(&node, "after", 300);
    conclude(&shop, node);
}

#[test]
fn records_that_are_shipped_again_and_again_are_stored_once() {
    let _turn = turn();
    let stack = broker();
    let mut shop = Shop::open(stack);
    shop.site.set("log.kafka.compression", "\"zstd\"");
    let mut node = shop.site.start();
    open(&node);
    sell(&node, "once", 500);
    for life in 1..=3 {
        wait_shipped(stack, &shop, life * 900);
        node.kill();
        // Nothing is stored yet, so each life ships everything from the beginning.
        node = shop.site.start();
    }
    node.kill();
    let (code, printed, err) = shop.kafka("inspect");
    assert_eq!(code, Some(0), "{err}");
    for what in ["SaleDefined(", "Redeemed(", "Opened(", "mark: complete through"] {
        assert!(printed.contains(what), "no {what}");
    }
    assert!(printed.matches("Redeemed(").count() >= 1_000, "the same ones, again and again");
    // The last one persists too.
    shop.site.set("persist.run", "true");
    let node = shop.site.start();
    conclude(&shop, node);
}

/// Whether a session on this server has written rows that it has not committed.
fn has_open_batch(servers: &Servers, server: &str) -> bool {
    let sql = "SELECT COUNT(*) FROM information_schema.INNODB_TRX WHERE trx_rows_modified > 0";
    let client = format!("mysql_client {server} --batch --skip-column-names");
    let done = servers.script(&format!("{client} -e '{sql}'"));
    eprint!("{}", String::from_utf8_lossy(&done.stderr));
    // MySQL cannot show a statement with an id in it: who is in the midst of one is asked again.
    done.status.success() && String::from_utf8_lossy(&done.stdout).trim() != "0"
}

/// Stops a persist process, the only one, in the midst of a transaction.
#[track_caller]
fn stop_with_a_batch_in_hand(persist: &Persister, servers: &Servers) {
    for _ in 0..60 {
        persist.signal(Signal::STOP);
        // Statements under way end; and the server renews that table every tenth of a second.
        std::thread::sleep(Duration::from_millis(200));
        if ["db-0", "db-1"].iter().any(|server| has_open_batch(servers, server)) {
            return;
        }
        persist.signal(Signal::CONT);
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("stopped 60 times, and never with a transaction open");
}

#[test]
fn a_zombie_that_wakes_after_its_partitions_were_taken_over_changes_nothing() {
    let _turn = turn();
    let (stack, servers) = (broker(), Servers::start(Flavour::MySql, 2, 0));
    let mut shop = Shop::open(stack);
    use_databases(&mut shop.site, &servers, 2, false);
    let (code, out, err) = command(&shop.site, &["db", "migrate"]);
    assert_eq!(code, Some(0), "{out}{err}");
    let node = shop.site.start();
    open(&node);
    let zombie = shop.persist("zombie.log");
    wait_stored(&node);
    let mut random = Random::new("zombie");
    let load = burst(node.public, random.next(), "zombie");
    wait_until("it is at work", PATIENCE, || lag(&node).is_some_and(|l| l > 0));
    stop_with_a_batch_in_hand(&zombie, &servers);
    let begun_at = now();
    let heir = shop.persist("heir.log");
    wait_until("the heir has taken over", PATIENCE, || heir.log().contains("\"count\":33"));
    measured("a persist process asleep, another has its partitions", begun_at);
    let begun = load.finish();
    wait_stored(&node);
    let logged = zombie.log().len();
    zombie.signal(Signal::CONT);
    wait_until("its batch is refused", PATIENCE, || {
        zombie.log().get(logged..).is_some_and(|since| since.contains("persist is held up"))
    });
    let mut book = Book::default();
    book.reconcile(&node, begun, &mut random);
    book.compare(&node);
    sell(&node, "awake", 500);
    wait_stored(&node);
    node.audit();
    assert!(node.stop().success());
    let (code, out, err) = shop.audit_all();
    assert_eq!(code, Some(0), "{out}\n{err}");
}

#[test]
fn a_database_set_back_to_a_backup_is_filled_up_again() {
    let _turn = turn();
    let stack = broker();
    let shop = Shop::open(stack);
    let node = shop.site.start();
    open(&node);
    let persist = shop.persist("persist.log");
    sell(&node, "before", 300);
    wait_stored(&node);
    let (db, backup) = (shop.site.data().join("db/shard-01.sqlite"), shop.site.path("backup"));
    let connection = rusqlite::Connection::open(&db).unwrap();
    connection.execute("VACUUM INTO ?1", [backup.to_str().unwrap()]).unwrap();
    drop(connection);
    sell(&node, "between", 300);
    wait_stored(&node);
    persist.kill();
    node.kill();
    for end in ["-wal", "-shm"] {
        let _ = std::fs::remove_file(format!("{}{end}", db.display()));
    }
    std::fs::copy(&backup, &db).unwrap();
    let node = shop.site.start();
    let _persist = shop.persist("persist.log");
    sell(&node, "after", 100);
    let begun_at = now();
    wait_stored(&node);
    measured("a database set back, filled up again", begun_at);
    conclude(&shop, node);
}

#[test]
fn without_kafka_the_sale_goes_on_to_the_disks_bound_and_drains_afterwards() {
    let _turn = turn();
    let stack = broker();
    let mut shop = Shop::open(stack);
    shop.site.set("journal.max_bytes", "33554432");
    shop.site.set("journal.keep_ms", "100");
    let node = shop.site.start();
    open(&node);
    let _persist = shop.persist("persist.log");
    wait_stored(&node);
    stack.order("kill", "kafka-1");
    let mut random = Random::new("no kafka");
    let load = burst(node.public, random.next(), "no-kafka");
    let mut number = 0;
    let mut probe = |node: &Node| {
        number += 1;
        node.client().redeem(&Wish::new(1, format!("probe-{number}"), SALE, "scarce")).code()
    };
    wait_until("the disk's bound is met", PATIENCE, || probe(&node) == "journal-full");
    let begun = load.finish();
    let sold = begun.iter().filter(|a| a.reply.as_ref().is_some_and(|r| r.status == 201)).count();
    assert!(sold > 1_000, "the sale went on without Kafka: {sold}");
    assert!(node.resident_bytes() < 700 << 20, "{} bytes", node.resident_bytes());
    stack.order("start", "kafka-1");
    let begun_at = now();
    wait_until("the journal has room again", PATIENCE, || {
        let wish = Wish::new(2, "again", SALE, "plenty");
        node.client().redeem(&wish).status == 201
    });
    measured("all of Kafka away until the journal was full, then there: sold again", begun_at);
    let mut book = Book::default();
    book.reconcile(&node, begun, &mut random);
    conclude(&shop, node);
}

#[test]
fn an_idle_partition_does_not_keep_segments_alive() {
    let _turn = turn();
    let stack = broker();
    let mut shop = Shop::open(stack);
    shop.site.set("journal.keep_ms", "100");
    let node = shop.site.start();
    let _persist = shop.persist("persist.log");
    // Members of one partition alone.
    let in_zero = |m: &u64| Partition::of(Slot::of(MemberId::new(*m))) == Partition::new(0);
    let mut members = (1..).filter(in_zero);
    let first_segment = || {
        let names = std::fs::read_dir(shop.site.data().join("journal")).unwrap();
        names.map(|n| n.unwrap().file_name()).filter(|n| !n.to_string_lossy().contains("tmp")).min()
    };
    let oldest = first_segment();
    wait_until("the first segment is gone", PATIENCE, || {
        let csv: String = members
            .by_ref()
            .take(20_000)
            .fold("member,points\n".into(), |csv, m| csv + &m.to_string() + ",5\n");
        let mut admin = node.admin().with_patience(Duration::from_mins(1));
        let headers = [("content-type", "text/csv")];
        admin.send("POST", "/v1/members:import", &headers, &csv).unwrap().expect(200);
        first_segment() != oldest
    });
    conclude(&shop, node);
}

#[test]
fn one_broker_of_three_may_die_and_shipping_goes_on() {
    let _turn = turn();
    let stack = Stack::up(&["--kafka", "3"]);
    let shop = Shop::open(&stack);
    let node = shop.site.start();
    open(&node);
    let _persist = shop.persist("persist.log");
    sell(&node, "three", 200);
    wait_stored(&node);
    for broker in ["kafka-1", "kafka-2"] {
        stack.order("kill", broker);
        let begun_at = now();
        sell(&node, broker, 200);
        // With two of three, acks=all still has its two copies.
        wait_stored(&node);
        measured("one broker of three killed, what is sold after that stored", begun_at);
        stack.order("start", broker);
    }
    conclude(&shop, node);
}
