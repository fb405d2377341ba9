//! Shipping takes the same memory however long the backlog is.
//!
//! It runs in a process of its own, this program once more, so that the peak is its alone: a
//! journal on disk, the real reader and the real `ship` thread, on a broker that goes away before
//! the backlog is there and comes back once librdkafka's queue is full.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use crossbeam::channel::bounded;

use super::stack_brokers::{PATIENCE, Stack};
use crate::clock::{Clock, NodeClock, RealClock};
use crate::config::KafkaConfig;
use crate::journal::disk::RealDisk;
use crate::journal::driver::CompletionSink;
use crate::journal::open::{Journal, JournalOptions, journal_dir};
use crate::journal::tail::{DurableMark, StoppedJournal};
use crate::kernel::record::{AdminNote, Credited, Record};
use crate::ship::kafka::driver::{self, Standing};
use crate::ship::kafka::topic::Topics;
use crate::ship::partition::{DatabaseShard, Layout, Partition};
use crate::ship::source::JournalFrames;
use crate::units::{KeyHash, MemberId, NodeTime, Points, Seq, Slot};

/// Records of the shorter backlog: more than librdkafka's queue takes. The longer one has
/// [`TIMES`] as many.
const RECORDS: u64 = 100_000;
const TIMES: u64 = 8;
const PER_FRAME: u64 = 250;
/// By how much the peaks may differ: what an allocator may do. The backlogs differ by half a GiB.
const DIFFERENCE_MAX: u64 = 32 << 20;

const TOPIC: &str = "ONRUSH_TEST_BACKLOG_TOPIC";
const BOOTSTRAP: &str = "ONRUSH_TEST_BACKLOG_BOOTSTRAP";
const DATA: &str = "ONRUSH_TEST_BACKLOG_DATA";
const LAST: &str = "ONRUSH_TEST_BACKLOG_LAST";
const NAME: &str = "stack_kafka_a_backlog_of_any_length_takes_the_same_memory";

struct Nobody;
impl CompletionSink for Nobody {
    type Item = ();
    fn complete(&mut self, (): (), _: Seq) {}
}

/// A record of 850 bytes.
fn record(number: u64) -> (Slot, Record) {
    let member = MemberId::new(1 + number % 10_000);
    let text = |salt: u64| {
        let word = (number ^ salt).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        format!("{word:020}").repeat(AdminNote::PART_LEN_MAX / 20)
    };
    let note = AdminNote { operator: text(1), reason: text(2), reference: text(3) };
    let points = Points::new(number);
    let record = Credited {
        member,
        amount: points,
        free_after: points,
        held_after: Points::ZERO,
        key: KeyHash::default(),
        at: NodeTime::new(number),
        note,
    };
    (Slot::of(member), record.into())
}

fn write_journal(data: &Path) {
    let options = JournalOptions { direct: false, ..JournalOptions::new(journal_dir(data)) };
    let opened = Journal::open(options, Arc::new(RealClock::new())).unwrap();
    let poisoned = Box::new(|e| panic!("poisoned: {e}"));
    let (handle, mut producers) = opened.start(1, Nobody, poisoned).unwrap();
    let mut written = 0;
    while written < RECORDS * TIMES {
        let mut bytes = Vec::new();
        for number in written..written + PER_FRAME {
            let (slot, record) = record(number);
            record.encode(slot, &mut bytes);
        }
        while producers[0].try_push(&bytes, PER_FRAME as u32, ()).is_err() {
            thread::sleep(Duration::from_micros(100));
        }
        producers[0].wake();
        written += PER_FRAME;
        // A frame of its own, so that the shorter backlog ends at one's end.
        while handle.durable_seq() < Seq::new(written) {
            thread::yield_now();
        }
    }
    handle.stop().unwrap();
}

fn peak_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with("VmHWM:")).unwrap();
    let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kib << 10
}

/// The other process: ships up to `last`, and says how far it is, line by line.
fn ship(data: &Path, last: Seq) {
    let config = KafkaConfig {
        bootstrap: std::env::var(BOOTSTRAP).unwrap(),
        topic: std::env::var(TOPIC).unwrap(),
        events_topic: String::new(),
        replication: 1,
        min_insync: 1,
        ..KafkaConfig::default()
    };
    Topics::connect(&config).unwrap().init().unwrap();
    let journal = StoppedJournal::open(&journal_dir(data)).unwrap();
    let (id, incarnation) = (journal.journal(), journal.scan().expected.incarnation);
    let durable = Arc::new(DurableMark::new(Seq::new(PER_FRAME)));
    let clock: Arc<dyn Clock> = Arc::new(RealClock::new());
    let node_clock = Arc::new(NodeClock::resume(Arc::clone(&clock), None, Duration::ZERO));
    let disk = RealDisk::open_read_only(&journal_dir(data)).unwrap();
    let frames = JournalFrames::new(disk, id, incarnation, Arc::clone(&durable), node_clock);
    let (standings_in, standings) = bounded(1);
    // The database has nothing of it, and is not asked again.
    let held = Partition::all().map(|partition| (partition, Seq::NONE)).collect();
    let standing = Standing { shard: DatabaseShard::HOME, held, asked: Vec::new() };
    standings_in.send(standing).unwrap();
    let layout = Layout::new(1).unwrap();
    let ship = driver::start(config, layout, frames, standings, clock).unwrap();
    let pause = || thread::sleep(Duration::from_millis(5));
    while ship.status().acked_through() < Seq::new(PER_FRAME) {
        pause();
    }
    println!("\nconnected");
    std::io::stdin().read_line(&mut String::new()).unwrap();
    durable.advance(last);
    // Nothing more is taken: the queue is full. One without a bound would take everything.
    let has_all = || ship.status().records.load(Ordering::Relaxed) >= last.get();
    while ship.status().last_error().is_none() && !has_all() {
        pause();
    }
    println!("\nfull");
    std::io::stdin().read_line(&mut String::new()).unwrap();
    while ship.status().acked_through() < last {
        pause();
    }
    println!("\npeak {}", peak_bytes());
    assert!(ship.stop(PATIENCE), "all of it is in Kafka");
}

/// The peak of a process that ships so many records which piled up while Kafka was away.
fn peak_of(stack: &Stack, data: &Path, records: u64) -> u64 {
    let module = module_path!().split_once("::").unwrap().1;
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &format!("{module}::{NAME}"), "--nocapture", "--test-threads=1"])
        .env(DATA, data)
        .env(LAST, records.to_string())
        .env(TOPIC, format!("backlog-{records}"))
        .env(BOOTSTRAP, stack.bootstrap())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut go_on = child.stdin.take().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    let mut await_line = |what: &str| {
        lines.find(|line| line.starts_with(what)).unwrap_or_else(|| panic!("never {what}"))
    };
    await_line("connected");
    stack.order("kill", "kafka-1");
    go_on.write_all(b"\n").unwrap();
    await_line("full");
    stack.order("start", "kafka-1");
    go_on.write_all(b"\n").unwrap();
    let peak = await_line("peak ").split_once(' ').unwrap().1.parse().unwrap();
    assert!(child.wait().unwrap().success());
    peak
}

#[test]
fn stack_kafka_a_backlog_of_any_length_takes_the_same_memory() {
    if let Ok(last) = std::env::var(LAST) {
        let data = PathBuf::from(std::env::var_os(DATA).unwrap());
        return ship(&data, Seq::new(last.parse().unwrap()));
    }
    let data = tempfile::tempdir().unwrap();
    write_journal(data.path());
    // Of its own: others would miss it.
    let stack = Stack::up(&["--kafka", "1"]);
    let [short, long] = [1, TIMES].map(|times| peak_of(&stack, data.path(), RECORDS * times));
    println!("peak {short} bytes with {RECORDS} records, {long} with {TIMES} times as many");
    assert!(long < short + DIFFERENCE_MAX, "{short} bytes, and {long}");
}
