//! The journal's own costs: sealing and checking a frame, and reading a journal back.
//!
//! Rates and latencies on a disk are measured by `journal_rate`, interleaved with raw writes.

use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use onrush::clock::{ManualClock, Stamp};
use onrush::journal::core::{CoreOptions, FrameBuilder, JournalCore, OpenedCore};
use onrush::journal::format::{self, FrameHeader, FrameKind, Unverified};
use onrush::journal::segments;
use onrush::journal::sim::SimDisk;
use onrush::journal::tail::{DurableMark, Tail};
use onrush::units::{Incarnation, JournalId, NodeTime, Seq};

const JOURNAL: JournalId = JournalId::new(7);
const RECORD_LEN: usize = 80;
const FRAME_RECORDS: u32 = 1_000;

fn header(record_count: u32) -> FrameHeader {
    FrameHeader {
        journal: JOURNAL,
        segment: 1,
        number: 2,
        incarnation: Incarnation::new(1),
        kind: FrameKind::Records,
        record_bytes: record_count * RECORD_LEN as u32,
        record_count,
        previous_checksum: 1,
        first_seq: Seq::new(1),
        durable_frame: 1,
        durable_through: Seq::NONE,
        stamp: Stamp { node: NodeTime::new(1), wall_ms: 1 },
    }
}

fn frames(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("journal/frame");
    for record_count in [1, 64, FRAME_RECORDS] {
        let header = header(record_count);
        let mut bytes = vec![0x5a; header.frame_len()];
        group.throughput(Throughput::Elements(u64::from(record_count)));
        group.bench_function(format!("seal/{record_count}"), |bencher| {
            bencher.iter(|| format::seal_frame(black_box(&mut bytes), &header));
        });
        group.bench_function(format!("verify/{record_count}"), |bencher| {
            bencher.iter(|| {
                let frame = Unverified::take(black_box(&bytes)).and_then(|f| f.verify(JOURNAL, 1));
                frame.map(|f| f.records().len()).ok()
            });
        });
    }
    group.finish();
}

/// A journal of this many frames, in memory: the disk's speed is not what is measured.
fn journal_of(disk: &SimDisk, frame_count: u32) -> OpenedCore<SimDisk> {
    let options = CoreOptions { segment_bytes: 16 << 20, downtime_max: std::time::Duration::ZERO };
    let clock = Arc::new(ManualClock::new(1));
    let mut opened = JournalCore::open(disk, options, clock, JOURNAL).expect("a new journal");
    let mut frame = FrameBuilder::new();
    frame.extend(FRAME_RECORDS as usize * RECORD_LEN, FRAME_RECORDS).fill(0x5a);
    for _ in 0..frame_count {
        if !opened.core.has_spare() {
            let spare = segments::prepare(disk, &opened.core.next_segment());
            opened.core.offer_spare(spare.expect("memory is there"));
        }
        let appended = opened.core.append(&mut frame, FrameKind::Records, opened.clock.stamp());
        appended.expect("memory is there");
    }
    opened
}

fn replay(criterion: &mut Criterion) {
    let disk = SimDisk::new(1);
    let opened = journal_of(&disk, 500);
    let mut group = criterion.benchmark_group("journal/replay");
    group.throughput(Throughput::Elements(500 * u64::from(FRAME_RECORDS)));
    group.sample_size(20);
    group.bench_function("tail", |bencher| {
        bencher.iter(|| {
            let durable = Arc::new(DurableMark::new(opened.core.durable_seq()));
            let tail = Tail::open(disk.clone(), JOURNAL, Seq::NONE, durable);
            let (mut tail, mut bytes) = (tail.expect("it is whole"), 0);
            while let Some(run) = tail.next().expect("it is whole") {
                bytes += run.records.len();
            }
            assert_eq!(bytes, 500 * FRAME_RECORDS as usize * RECORD_LEN);
            bytes
        });
    });
    group.finish();
}

criterion_group!(benches, frames, replay);
criterion_main!(benches);
