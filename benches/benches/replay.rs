//! A restart's work: a snapshot's slots, and the journal's records behind them, into a state.
//!
//! The journal lies in memory: the disk's speed is not what is measured. `restart`, a program of
//! its own, measures a whole node on a disk.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use mimalloc::MiMalloc;
use onrush::clock::{ManualClock, Stamp};
use onrush::journal::core::{CoreOptions, FrameBuilder, JournalCore};
use onrush::journal::format::FrameKind;
use onrush::journal::open::{JournalOptions, Opened};
use onrush::journal::segments;
use onrush::journal::sim::SimDisk;
use onrush::journal::snapshot::{Part, SnapshotHeader, SnapshotWriter};
use onrush::kernel::command::Command;
use onrush::kernel::control::ControlState;
use onrush::kernel::record::{self, CONTROL, RecordHead};
use onrush::shard::core::Readiness;
use onrush::shard::recover::recover;
use onrush::units::{Incarnation, JournalId, MemberId, NodeTime, Points, Seq, Slot};
use onrush_benches::kernel::{BATCH_LEN, Bench};

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

const JOURNAL: JournalId = JournalId::new(7);
const SEGMENT_BYTES: u64 = 64 << 20;
const NOW: NodeTime = NodeTime::new(1_900_000_000_000);
const MEMBERS: u64 = 100_000;
const REDEMPTIONS: usize = 200_000;
const FRAME_RECORD_BYTES: usize = 64 << 10;

/// A journal being written, in memory.
struct Writer {
    disk: SimDisk,
    core: JournalCore<SimDisk>,
    stamp: Stamp,
    count: u64,
}

impl Writer {
    fn new(disk: &SimDisk) -> Self {
        let options = CoreOptions { segment_bytes: SEGMENT_BYTES, downtime_max: Duration::ZERO };
        let clock = Arc::new(ManualClock::new(1));
        let opened = JournalCore::open(disk, options, clock, JOURNAL).expect("a new journal");
        let stamp = opened.clock.stamp();
        Self { disk: disk.clone(), core: opened.core, stamp, count: 0 }
    }

    /// Appends whole records, in frames as a busy node makes them.
    fn append(&mut self, mut records: &[u8]) {
        while !records.is_empty() {
            let (mut length, mut count) = (0, 0);
            while length < FRAME_RECORD_BYTES && length < records.len() {
                let head = RecordHead::peek(&records[length..]).expect("the kernel wrote it");
                (length, count) = (length + head.length, count + 1);
            }
            let mut frame = FrameBuilder::new();
            frame.extend(length, count).copy_from_slice(&records[..length]);
            if !self.core.has_spare() {
                let spare = segments::prepare(&self.disk, &self.core.next_segment());
                self.core.offer_spare(spare.expect("memory is there"));
            }
            let appended = self.core.append(&mut frame, FrameKind::Records, self.stamp);
            appended.expect("memory is there");
            self.count += u64::from(count);
            records = &records[length..];
        }
    }
}

/// Every account opened, and as many redemptions; half of all records behind the snapshot.
fn history(journal: &SimDisk, snapshots: &SimDisk) -> u64 {
    let mut writer = Writer::new(journal);
    let mut bench = Bench::new(MEMBERS, 100, 1);
    // It opened its accounts by itself, and forgot the records.
    let mut records = Vec::new();
    for member in (0..MEMBERS).map(MemberId::new) {
        let opened = record::Opened { member, points: Points::new(1_000_000), at: NOW };
        opened.encode(Slot::of(member), &mut records);
    }
    writer.append(&records);
    let mut commands: Vec<Command> = Vec::new();
    let mut begun = 0;
    while begun < REDEMPTIONS {
        bench.commands(BATCH_LEN, &mut commands);
        for command in &commands {
            bench.shard.decide(NOW, command, &bench.stock, &mut bench.effects);
        }
        begun += commands.len();
        writer.append(&bench.effects.records);
        bench.effects.clear();
        if (REDEMPTIONS / 2..REDEMPTIONS / 2 + BATCH_LEN).contains(&begun) {
            snapshot(snapshots, &bench, Seq::new(writer.count));
        }
    }
    writer.count
}

fn snapshot(disk: &SimDisk, bench: &Bench, cut: Seq) {
    let stamp = Stamp { node: NodeTime::new(1), wall_ms: 1 };
    let header = SnapshotHeader { journal: JOURNAL, incarnation: Incarnation::new(1), stamp };
    let mut writer = SnapshotWriter::create(disk, header).expect("memory is there");
    let mut bytes = Vec::new();
    for slot in bench.shard.slots() {
        bytes.clear();
        bench.shard.slot(slot).encode(&mut bytes);
        writer.part(Part { slot, cut, bytes: &bytes }).expect("memory is there");
    }
    bytes.clear();
    ControlState::new().encode(&mut bytes);
    writer.part(Part { slot: CONTROL, cut, bytes: &bytes }).expect("memory is there");
    writer.finish().expect("memory is there");
}

fn replay(criterion: &mut Criterion) {
    let (journal, snapshots) = (SimDisk::new(1), SimDisk::new(2));
    let count = history(&journal, &snapshots);
    let options = JournalOptions { segment_bytes: SEGMENT_BYTES, ..JournalOptions::new("") };
    let opened = Opened::on(&journal, None, options, Arc::new(ManualClock::new(1)));
    let opened = opened.expect("it is whole");
    assert_eq!(opened.last_seq(), Seq::new(count));
    let mut group = criterion.benchmark_group("replay");
    group.sample_size(10);
    for (name, snapshots) in [("journal alone", &SimDisk::new(3)), ("snapshot first", &snapshots)] {
        let recover = || recover(&opened, snapshots, &Readiness::default()).expect("it is whole");
        let replayed = recover().replayed_records;
        assert!(if name == "journal alone" { replayed == count } else { replayed < count * 2 / 3 });
        group.throughput(Throughput::Elements(replayed));
        group.bench_function(name, |bencher| {
            bencher.iter(|| black_box(recover().slots.len()));
        });
    }
    group.finish();
}

criterion_group!(benches, replay);
criterion_main!(benches);
