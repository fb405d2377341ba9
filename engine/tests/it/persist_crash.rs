//! kill -9 at every crash point of persist, with the real journal as its log.
//!
//! The test binary runs itself again as the process that dies: [`child`] writes credits to a
//! journal while persist stores them behind it. After each kill, the next life completes the
//! database shards, and they must say what the kernel says when it replays the journal.

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, ExitStatus};
use std::sync::Arc;
use std::time::Duration;

use onrush::clock::RealClock;
use onrush::crash::{self, CrashPoint};
use onrush::journal::disk::RealDisk;
use onrush::journal::{
    CompletionSink, Journal, JournalOptions, Opened, StoppedJournal, Tail, journal_dir,
};
use onrush::kernel::record::{AdminNote, Credited, Opened as AccountOpened, Record, RecordHead};
use onrush::kernel::slot::SlotState;
use onrush::persist::driver::Persist;
use onrush::persist::embedded;
use onrush::persist::sqlite::SqliteReader;
use onrush::persist::status::PersistStatus;
use onrush::persist::store::StoreReader;
use onrush::persist::writer::WriterSettings;
use onrush::ship::partition::Layout;
use onrush::ship::source::JournalFrames;
use onrush::units::{KeyHash, MemberId, NodeTime, Points, Seq, Slot};

const CHILD_ENV: &str = "ONRUSH_TEST_PERSIST";
const MEMBERS: u64 = 300;
/// Records of one life.
const RECORDS: u64 = 3_000;

struct Ignore;

impl CompletionSink for Ignore {
    type Item = ();
    fn complete(&mut self, (): (), _: Seq) {}
}

fn options(folder: &Path) -> JournalOptions {
    JournalOptions {
        segment_bytes: 2 << 20,
        max_bytes: 64 << 20,
        ..JournalOptions::new(journal_dir(folder))
    }
}

fn layout() -> Layout {
    Layout::new(3).unwrap()
}

/// Every record of a tail, with its place.
fn each_record(mut tail: Tail<RealDisk>, mut see: impl FnMut(Seq, &[u8])) {
    while let Some(run) = tail.next().unwrap() {
        let (mut rest, mut seq) = (run.records, run.first_seq);
        while !rest.is_empty() {
            let (record, behind) = rest.split_at(RecordHead::peek(rest).unwrap().length);
            see(seq, record);
            (rest, seq) = (behind, seq.next());
        }
    }
}

/// Free points by member.
fn balances(opened: &Opened<RealDisk>) -> BTreeMap<u64, u64> {
    let mut balances = BTreeMap::new();
    each_record(opened.replay(Seq::NONE).unwrap(), |_, mut bytes| {
        match Record::take(&mut bytes).unwrap().1 {
            Record::Opened(r) => balances.insert(r.member.get(), r.points.get()),
            Record::Credited(r) => balances.insert(r.member.get(), r.free_after.get()),
            other => panic!("{}", other.name()),
        };
    });
    balances
}

fn next_record(number: u64, balances: &mut BTreeMap<u64, u64>) -> Vec<u8> {
    let raw = number * 7 % MEMBERS;
    let (member, at) = (MemberId::new(raw), NodeTime::new(1_700_000_000_000 + number));
    let amount = Points::new(number % 10);
    let record: Record = match balances.get_mut(&raw) {
        None => {
            balances.insert(raw, amount.get());
            AccountOpened { member, points: amount, at }.into()
        }
        Some(free) => {
            *free += amount.get();
            let (free_after, held_after) = (Points::new(*free), Points::ZERO);
            let key = KeyHash::of(&number.to_le_bytes());
            let note = AdminNote::default();
            Credited { member, amount, free_after, held_after, key, at, note }.into()
        }
    };
    let mut bytes = Vec::new();
    record.encode(Slot::of(member), &mut bytes);
    bytes
}

/// One life: writes, while persist stores; ends once all is stored.
fn live(folder: &Path) {
    crash::arm_from_env().unwrap();
    let opened = Journal::open(options(folder), Arc::new(RealClock::new())).unwrap();
    let mut balances = balances(&opened);
    let (incarnation, clock) = (opened.incarnation(), opened.clock().clone());
    let first = opened.last_seq().get() + 1;
    let (handle, mut producers) = opened.start(1, Ignore, Box::new(|e| panic!("{e}"))).unwrap();
    let status = Arc::new(PersistStatus::new(layout()));
    let settings = WriterSettings { batch: 64, linger_ms: 1, ..WriterSettings::default() };
    let disk = RealDisk::open_read_only(&journal_dir(folder)).unwrap();
    let writers = embedded::open(&folder.join("db"), settings, &status, || {
        let (journal, durable) = (handle.journal(), handle.durable().clone());
        Ok(JournalFrames::new(disk.clone(), journal, incarnation, durable, clock.clone()))
    });
    let persist = Persist::start(writers.unwrap(), status.clone(), 2, clock.clock()).unwrap();
    for number in first..first + RECORDS {
        let record = next_record(number, &mut balances);
        while producers[0].try_push(&record, 1, ()).is_err() {
            std::thread::sleep(Duration::from_millis(1));
        }
        producers[0].wake();
    }
    let last = Seq::new(first + RECORDS - 1);
    assert!(status.wait_persisted(last, Duration::from_mins(2)), "{:?}", status.alarms());
    assert_eq!(status.alarms(), [""; 0]);
    assert!(persist.stop(Some(Duration::from_mins(1))));
    handle.stop().unwrap();
}

/// The process that dies; does nothing unless another test runs it.
#[test]
fn child() {
    if let Ok(folder) = std::env::var(CHILD_ENV) {
        live(Path::new(&folder));
    }
}

fn run_child(folder: &Path, crash_at: Option<&str>) -> ExitStatus {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "persist_crash::child", "--nocapture"]);
    command.env(CHILD_ENV, folder).env_remove(crash::ENV);
    if let Some(point) = crash_at {
        command.env(crash::ENV, point);
    }
    let output = command.output().unwrap();
    let failed = output.status.code().is_some_and(|c| c != 0);
    assert!(!failed, "the child failed:\n{}", String::from_utf8_lossy(&output.stderr));
    output.status
}

/// What a slot holds: records, their checksum, free points, members.
type Sums = BTreeMap<u16, (u64, u64, u128, u64)>;

/// As the kernel says when it replays the journal.
fn replayed(folder: &Path) -> Sums {
    let mut slots: BTreeMap<u16, SlotState> = BTreeMap::new();
    let journal = StoppedJournal::open(&journal_dir(folder)).unwrap();
    each_record(journal.tail(Seq::NONE).unwrap(), |_, bytes| {
        let slot = RecordHead::peek(bytes).unwrap().slot;
        let state = slots.entry(slot.get()).or_insert_with(|| SlotState::new(slot));
        state.apply_bytes(bytes).unwrap();
    });
    let sums = |state: &SlotState| {
        let t = state.totals();
        (t.record_count, t.record_checksum, t.free, t.members)
    };
    slots.iter().map(|(slot, state)| (*slot, sums(state))).collect()
}

/// As the database shards say.
fn stored(folder: &Path) -> Sums {
    let mut all = Sums::new();
    for shard in layout().shards() {
        let reader = SqliteReader::open(&folder.join("db"), shard).unwrap();
        let read = reader.consistent(&mut |moment| {
            for sum in moment.slots()? {
                let sums = all.entry(sum.slot.get()).or_default();
                (sums.0, sums.1) = (sum.records, sum.checksum);
            }
            moment.each_account(&mut |account| {
                let sums = all.entry(Slot::of(account.member).get()).or_default();
                sums.2 += u128::from(account.free.get());
                sums.3 += 1;
            })?;
            let mut balance = 0;
            moment.each_entry(&mut |entry| balance += entry.amount)?;
            assert_eq!(balance, 0, "the ledger sums to zero");
            Ok(())
        });
        read.unwrap();
    }
    all
}

#[test]
fn kill_9_at_every_crash_point_of_persist_loses_and_doubles_nothing() {
    let points: Vec<_> =
        CrashPoint::ALL.iter().filter(|point| point.name().starts_with("persist-")).collect();
    assert!(points.len() >= 2, "before and behind a commit at least");
    for point in points {
        let folder = tempfile::tempdir().unwrap();
        for nth in [1, 2, 9] {
            let status = run_child(folder.path(), Some(&format!("{}:{nth}", point.name())));
            assert_eq!(status.signal(), Some(9), "{} was not hit {nth} times", point.name());
        }
        assert!(run_child(folder.path(), None).success());
        let (stored, replayed) = (stored(folder.path()), replayed(folder.path()));
        assert!(replayed.len() > 200);
        assert_eq!(stored, replayed, "after {}", point.name());
    }
}
