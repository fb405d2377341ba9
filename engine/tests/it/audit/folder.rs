//! Data folders made by the real journal, the real snapshots and the real store.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use onrush::audit::{AuditReport, audit_data_dir};
use onrush::clock::{ManualClock, Stamp};
use onrush::journal::disk::RealDisk;
use onrush::journal::driver::CompletionSink;
use onrush::journal::open::{Journal, JournalOptions, journal_dir, snapshot_dir};
use onrush::journal::snapshot::{Part, SnapshotHeader, SnapshotWriter};
use onrush::journal::tail::StoppedJournal;
use onrush::kernel::control::ControlState;
use onrush::kernel::record::CONTROL;
use onrush::kernel::slot::SlotState;
use onrush::persist::embedded;
use onrush::persist::status::PersistStatus;
use onrush::persist::store::Store;
use onrush::persist::writer::{ShardWriter, WriterSettings};
use onrush::ship::frames::MemoryFrames;
use onrush::ship::log::Log;
use onrush::ship::partition::Layout;
use onrush::units::{Incarnation, JournalId, NodeTime, SLOT_COUNT, Seq, Slot};

use super::world::Line;

pub const DATABASES: u8 = 4;

struct Nobody;
impl CompletionSink for Nobody {
    type Item = ();
    fn complete(&mut self, (): (), _: Seq) {}
}

fn options(data: &Path) -> JournalOptions {
    JournalOptions {
        segment_bytes: 2 << 20,
        direct: false,
        ..JournalOptions::new(journal_dir(data))
    }
}

/// An empty data folder, and its journal's id.
pub fn empty(data: &Path) -> JournalId {
    let clock = Arc::new(ManualClock::new(1_600_000_000_000));
    let opened = Journal::open(options(data), clock).unwrap();
    let journal = opened.journal();
    drop(opened);
    journal
}

/// Writes the records, in frames of up to `per_frame` records of one time.
pub fn write_journal(data: &Path, lines: &[Line], per_frame: usize) {
    let clock = Arc::new(ManualClock::new(1_600_000_000_000));
    let mut written = 0;
    for opening in lines.chunk_by(|a, b| a.opening == b.opening) {
        let opened = Journal::open(options(data), clock.clone()).unwrap();
        let node = opened.clock().clone();
        let poisoned = Box::new(|e| panic!("poisoned: {e}"));
        let (handle, mut producers) = opened.start(1, Nobody, poisoned).unwrap();
        for same_time in opening.chunk_by(|a, b| a.at == b.at) {
            let ahead = same_time[0].at.saturating_sub(node.now().get());
            clock.advance(Duration::from_millis(ahead));
            for frame in same_time.chunks(per_frame) {
                let bytes: Vec<u8> = frame.iter().flat_map(|line| line.bytes.clone()).collect();
                producers[0].try_push(&bytes, frame.len() as u32, ()).unwrap();
                producers[0].wake();
                written += frame.len() as u64;
                while handle.durable_seq() < Seq::new(written) {
                    std::thread::yield_now();
                }
            }
        }
        handle.stop().unwrap();
    }
}

/// A snapshot whose slots have cuts from `seq` on, each another one.
pub fn write_snapshot(data: &Path, journal: JournalId, lines: &[Line], seq: u64) {
    RealDisk::make_dir(&snapshot_dir(data)).unwrap();
    let disk = RealDisk::open(&snapshot_dir(data), false).unwrap();
    let stamp = Stamp { node: NodeTime::new(1), wall_ms: 1 };
    let header = SnapshotHeader { journal, incarnation: Incarnation::new(2), stamp };
    let mut writer = SnapshotWriter::create(&disk, header).unwrap();
    let last = lines.len() as u64;
    let cut_of = |n: usize| Seq::new((seq + (n as u64 * 13) % 97).min(last));
    let mut slots: Vec<_> = (0..SLOT_COUNT).map(|n| SlotState::new(Slot::new(n as u16))).collect();
    let (mut control, control_cut) = (ControlState::new(), cut_of(5));
    for (line, seq) in lines.iter().zip((1..).map(Seq::new)) {
        if line.slot == CONTROL {
            if seq <= control_cut {
                control.apply(&line.record(), &line.bytes).unwrap();
            }
        } else if seq <= cut_of(line.slot.index()) {
            slots[line.slot.index()].apply_bytes(&line.bytes).unwrap();
        }
    }
    let mut bytes = Vec::new();
    for (n, slot) in slots.iter().enumerate() {
        bytes.clear();
        slot.encode(&mut bytes);
        writer.part(Part { slot: slot.slot(), cut: cut_of(n), bytes: &bytes }).unwrap();
    }
    bytes.clear();
    control.encode(&mut bytes);
    writer.part(Part { slot: CONTROL, cut: control_cut, bytes: &bytes }).unwrap();
    writer.finish().unwrap();
}

/// Fills the database shards from the journal, each up to the frame that holds its `through`.
pub fn write_store(data: &Path, through: [u64; DATABASES as usize]) {
    let status = Arc::new(PersistStatus::new(Layout::new(DATABASES).unwrap()));
    let mut next = through.map(|through| frames(data, through)).into_iter();
    let writers =
        embedded::open(&data.join("db"), SETTINGS, &status, || Ok(next.next().unwrap())).unwrap();
    for writer in writers {
        write_all(writer, &status);
    }
}

/// Has these stores, one per database shard, written from the folder's whole journal.
pub fn write_stores(data: &Path, stores: Vec<Box<dyn Store>>) {
    let status = Arc::new(PersistStatus::new(Layout::new(DATABASES).unwrap()));
    for store in stores {
        let source = frames(data, u64::MAX);
        write_all(embedded::writer(store, source, SETTINGS, &status).unwrap(), &status);
    }
}

const SETTINGS: WriterSettings = WriterSettings {
    batch: 500,
    linger_ms: 0,
    mark_every_ms: 0,
    letters_every_ms: 0,
    is_shared: false,
};

/// The journal's records up to one, as a source of a log.
fn frames(data: &Path, through: u64) -> MemoryFrames {
    let stopped = StoppedJournal::open(&journal_dir(data)).unwrap();
    let frames = MemoryFrames::new(stopped.journal());
    let mut incarnation = 1;
    let mut tail = stopped.tail(Seq::new(1)).unwrap();
    while let Some(run) = tail.next().unwrap() {
        if run.first_seq > Seq::new(through) {
            break;
        }
        while incarnation < run.incarnation.get() {
            frames.reopen();
            incarnation += 1;
        }
        let (time, count) = (run.stamp.node, run.record_count);
        frames.append_encoded(time, count, run.records.to_vec());
    }
    frames
}

fn write_all<L: Log, S: Store>(mut writer: ShardWriter<L, S>, status: &PersistStatus) {
    let mut now_ms = 0;
    while !writer.has_stored(writer.head_seq()) {
        now_ms += 1;
        writer.step(now_ms, true);
        assert!(now_ms < 10_000, "{:?}", status.alarms());
    }
}

/// Copies a data folder.
pub fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Every file of a folder with its content, but for what any reader of `SQLite` leaves: shared
/// memory, and a write-ahead log with nothing in it.
pub fn content(data: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut all = Vec::new();
    let mut folders = vec![data.to_owned()];
    while let Some(folder) = folders.pop() {
        for path in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let (name, bytes) = (path.to_string_lossy().into_owned(), fs::read(&path).unwrap());
            let is_readers = name.ends_with("-shm") || (name.ends_with("-wal") && bytes.is_empty());
            if !is_readers {
                all.push((path, bytes));
            }
        }
    }
    all.sort();
    all
}

pub fn audit(data: &Path) -> AuditReport {
    audit_data_dir(data, &mut |_| {}).unwrap()
}
