//! kill -9 at every crash point of the journal; and a file system that is really full.
//!
//! The test binary runs itself again as the process that dies: [`child`] is a whole small node,
//! whose state is the list of all numbers it has recorded. It writes every number that completes
//! to a file beside the journal, as a client would remember its answers, and each life begins by
//! comparing what it recovered with that file.

#![allow(clippy::unwrap_used, reason = "helpers of tests; a failure is the test's")]

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use onrush::clock::RealClock;
use onrush::crash::{self, CrashPoint};
use onrush::journal::disk::RealDisk;
use onrush::journal::snapshot::{self, Part, SnapshotHeader, SnapshotWriter};
use onrush::journal::{
    CompletionSink, DiskState, Journal, JournalOptions, MarkOptions, Opened, Producer,
    StoppedJournal, segments,
};
use onrush::units::{Seq, Slot};

const CHILD_ENV: &str = "ONRUSH_TEST_JOURNAL";
const SEGMENT_BYTES: u64 = 2 << 20;
const RECORD_LEN: usize = 30_000;

fn journal_dir(folder: &Path) -> PathBuf {
    folder.join("journal")
}

fn options(folder: &Path) -> JournalOptions {
    JournalOptions {
        segment_bytes: SEGMENT_BYTES,
        max_bytes: 64 << 20,
        grace: Duration::ZERO,
        marks: MarkOptions {
            prove_after: Duration::from_millis(5),
            keep_time_every: Duration::from_millis(50),
        },
        ..JournalOptions::new(journal_dir(folder))
    }
}

/// Remembers what completed, before anybody hears of it.
struct Answers {
    file: std::fs::File,
    lines: String,
    told: Sender<(u64, Seq)>,
}

impl CompletionSink for Answers {
    type Item = u64;
    fn complete(&mut self, number: u64, seq: Seq) {
        use std::fmt::Write as _;
        let _ = writeln!(self.lines, "{seq} {number}");
        let _ = self.told.send((number, seq));
    }
    fn flush(&mut self) {
        self.file.write_all(self.lines.as_bytes()).unwrap();
        self.lines.clear();
    }
}

/// All numbers ever recorded, in order: from the newest snapshot and the journal behind it.
fn recover(opened: &Opened<RealDisk>, snapshots: &RealDisk) -> Vec<u64> {
    let (first, last) = (opened.first_seq(), opened.last_seq());
    let chosen = snapshot::choose(snapshots, opened.journal(), first, last).unwrap();
    let mut numbers = Vec::new();
    if let Some(mut reader) = chosen.reader {
        let part = reader.next().unwrap().unwrap();
        let chunks = part.bytes.chunks_exact(8);
        numbers.extend(chunks.map(|n| u64::from_le_bytes(n.try_into().unwrap())));
        assert_eq!(numbers.len() as u64, part.cut.get());
    }
    let mut tail = opened.replay(Seq::new(numbers.len() as u64 + 1)).unwrap();
    while let Some(run) = tail.next().unwrap() {
        for (i, record) in run.records.chunks_exact(RECORD_LEN).enumerate() {
            let seq = run.first_seq.get() as usize + i;
            if seq > numbers.len() {
                assert_eq!(seq, numbers.len() + 1, "a hole in the journal");
                numbers.push(u64::from_le_bytes(record[..8].try_into().unwrap()));
            }
        }
    }
    numbers
}

/// One life: recover, compare with the answers, go on for a while, stop in good order.
fn live(folder: &Path) {
    crash::arm_from_env().unwrap();
    let opened = Journal::open(options(folder), Arc::new(RealClock::new())).unwrap();
    let snapshots = RealDisk::open(&folder.join("snapshots"), true).unwrap();
    let mut numbers = recover(&opened, &snapshots);
    assert_eq!(numbers.len() as u64, opened.last_seq().get());
    let answers = std::fs::read_to_string(folder.join("answers")).unwrap_or_default();
    for line in answers.lines() {
        let (seq, number) = line.split_once(' ').unwrap();
        let (seq, number): (usize, u64) = (seq.parse().unwrap(), number.parse().unwrap());
        assert_eq!(numbers.get(seq - 1), Some(&number), "an answer was forgotten");
    }

    let (journal, incarnation) = (opened.journal(), opened.incarnation());
    let clock = opened.clock().clone();
    let path = folder.join("answers");
    let file = OpenOptions::new().create(true).append(true).open(path).unwrap();
    let (told, completed) = channel();
    let sink = Answers { file, lines: String::new(), told };
    let (handle, mut producers) = opened.start(2, sink, Box::new(|e| panic!("{e}"))).unwrap();
    for round in 0..4u64 {
        for i in 0..80u64 {
            let number = (u64::from(incarnation.get()) << 32) | (round << 16) | i;
            push(&mut producers[i as usize % 2], number);
        }
        for _ in 0..80 {
            let (number, seq) = completed.recv().unwrap();
            assert_eq!(seq.get(), numbers.len() as u64 + 1);
            numbers.push(number);
        }
        let header = SnapshotHeader { journal, incarnation, stamp: clock.stamp() };
        let mut writer = SnapshotWriter::create(&snapshots, header).unwrap();
        let bytes: Vec<u8> = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
        let cut = Seq::new(numbers.len() as u64);
        writer.part(Part { slot: Slot::new(0), cut, bytes: &bytes }).unwrap();
        let kept = writer.finish().unwrap();
        if kept.len() == snapshot::KEPT_COUNT {
            handle.cover_by_snapshots(kept[0].lowest_cut);
            handle.cover_by_store(cut);
        }
    }
    // Until the covered segments are gone; their removal has crash points of its own.
    let is_covered = |first: Seq| first.get() + 200 > numbers.len() as u64;
    while !is_covered(handle.gauge().first_seq()) {
        std::thread::sleep(Duration::from_millis(5));
    }
    handle.stop().unwrap();
}

fn push(producer: &mut Producer<u64>, number: u64) {
    let mut record = vec![0x33; RECORD_LEN];
    record[..8].copy_from_slice(&number.to_le_bytes());
    let mut completion = number;
    while let Err(full) = producer.try_push(&record, 1, completion) {
        completion = full.0;
        std::thread::sleep(Duration::from_millis(1));
    }
    producer.wake();
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
    command.args(["--exact", "journal_crash::child", "--nocapture"]);
    command.env(CHILD_ENV, folder).env_remove(crash::ENV);
    if let Some(point) = crash_at {
        command.env(crash::ENV, point);
    }
    let output = command.output().unwrap();
    let failed = output.status.code().is_some_and(|c| c != 0);
    assert!(!failed, "the child failed:\n{}", String::from_utf8_lossy(&output.stderr));
    output.status
}

/// Leaves what a power loss may: bytes of a torn frame behind the journal's end.
fn tear_behind_the_end(folder: &Path) {
    let dir = journal_dir(folder);
    let end = StoppedJournal::open(&dir).unwrap().scan().end;
    let path = dir.join(segments::name(end.segment));
    let file = OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(b"ONRFRAM\nand then the power failed", end.offset).unwrap();
}

#[test]
fn kill_9_at_every_crash_point_loses_no_answer() {
    let mut never_hit = Vec::new();
    for point in CrashPoint::ALL {
        let is_ours = ["journal-", "segment-", "open-", "snapshot-"];
        if !is_ours.iter().any(|prefix| point.name().starts_with(prefix)) {
            continue;
        }
        for nth in [1, 2] {
            let folder = tempfile::tempdir().unwrap();
            // A first life that ends early leaves an unproven frame, and the torn one.
            let status = run_child(folder.path(), Some("journal-after-write:9"));
            assert_eq!(status.signal(), Some(9));
            tear_behind_the_end(folder.path());
            let status = run_child(folder.path(), Some(&format!("{}:{nth}", point.name())));
            match status.signal() {
                Some(9) => {}
                // What happens once in a life has no second hit.
                None if nth > 1 => continue,
                _ => never_hit.push(point.name()),
            }
            assert!(run_child(folder.path(), None).success());
        }
    }
    assert!(never_hit.is_empty(), "points never hit: {never_hit:?}");
}

const FULL_ENV: &str = "ONRUSH_TEST_JOURNAL_FULL";

/// Runs on a file system of 16 MiB, most of it taken by a ballast file.
fn live_on_a_full_disk(folder: &Path) {
    std::fs::write(folder.join("ballast"), vec![1; 8 << 20]).unwrap();
    let opened = Journal::open(options(folder), Arc::new(RealClock::new())).unwrap();
    let file = OpenOptions::new().create(true).append(true).open(folder.join("answers")).unwrap();
    let (told, completed) = channel();
    let sink = Answers { file, lines: String::new(), told };
    let (handle, mut producers) = opened.start(1, sink, Box::new(|e| panic!("{e}"))).unwrap();
    let mut pushed = 0;
    while handle.disk_state() != DiskState::WritesStopped {
        push(&mut producers[0], pushed);
        pushed += 1;
        std::thread::sleep(Duration::from_millis(2));
    }
    assert!(!handle.is_poisoned(), "no space is no failed write");
    // What was pushed before the state was seen still finds room; at the latest, it finds it now.
    std::fs::remove_file(folder.join("ballast")).unwrap();
    for _ in 0..pushed {
        completed.recv_timeout(Duration::from_secs(10)).unwrap();
    }
    while handle.disk_state() != DiskState::Normal {
        std::thread::sleep(Duration::from_millis(5));
    }
    push(&mut producers[0], pushed);
    completed.recv_timeout(Duration::from_secs(10)).unwrap();
    handle.stop().unwrap();
    assert_eq!(StoppedJournal::open(&journal_dir(folder)).unwrap().last_seq().get(), pushed + 1);
}

/// The process on the full file system; does nothing unless another test runs it.
#[test]
fn child_on_a_full_disk() {
    if let Ok(folder) = std::env::var(FULL_ENV) {
        live_on_a_full_disk(Path::new(&folder));
    }
}

/// A tmpfs of its own, in a mount namespace that goes with the child. No privilege is needed
/// where user namespaces are allowed.
#[test]
fn a_full_file_system_stops_writes_and_poisons_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let script = "mount -t tmpfs -o size=16m none \"$0\" && \
                  exec \"$1\" --exact journal_crash::child_on_a_full_disk --nocapture";
    let mut command = Command::new("unshare");
    command.args(["--map-root-user", "--mount", "sh", "-c", script]);
    command.arg(folder.path()).arg(std::env::current_exe().unwrap());
    let output = command.env(FULL_ENV, folder.path()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
}

#[test]
fn a_second_process_on_the_folder_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let _ours = Journal::open(options(folder.path()), Arc::new(RealClock::new())).unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "journal_crash::child", "--nocapture"]);
    let output = command.env(CHILD_ENV, folder.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(101));
    assert!(String::from_utf8_lossy(&output.stderr).contains("Locked"));
}
