//! A node reduced to its journal, on a simulated disk, with a model that knows what was promised.
//!
//! Records are numbers drawn fresh for every try, so that a record of a lost try is never taken
//! for one of a later try. The model holds what was acknowledged, in order, and what the last
//! unacknowledged try would have added: that may be there after a crash, wholly or not at all.

use std::sync::Arc;
use std::time::Duration;

use crate::clock::ManualClock;
use crate::journal::core::{AppendError, CoreOptions, FrameBuilder, JournalCore, OpenedCore};
use crate::journal::format::{FrameKind, frame_len};
use crate::journal::lifetime::{Cover, Lifetime};
use crate::journal::sim::{SimDisk, SimRng};
use crate::journal::snapshot::{self, Part, SnapshotHeader, SnapshotWriter};
use crate::journal::tail::{DurableMark, Tail};
use crate::journal::{JournalError, segments};
use crate::units::{JournalId, NodeTime, Seq, Slot};

pub const SEGMENT_BYTES: u64 = 32 * 1024;
pub const RECORD_LEN: usize = 24;

pub fn options() -> CoreOptions {
    CoreOptions { segment_bytes: SEGMENT_BYTES, downtime_max: Duration::from_hours(1) }
}

pub fn record(number: u64) -> [u8; RECORD_LEN] {
    let mut bytes = [0x5a; RECORD_LEN];
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    bytes
}

pub fn open_core(disk: &SimDisk) -> Result<OpenedCore<SimDisk>, JournalError> {
    let clock = Arc::new(ManualClock::new(1_000_000));
    JournalCore::open(disk, options(), clock, JournalId::new(77))
}

/// Everything in the journal from `from` on, as (sequence number, number in the record).
pub fn read_all(
    disk: &SimDisk,
    opened: &OpenedCore<SimDisk>,
    from: Seq,
) -> Result<Vec<(u64, u64)>, JournalError> {
    let durable = Arc::new(DurableMark::new(opened.last_seq));
    let mut tail = Tail::open(disk.clone(), opened.core.journal(), from, durable)?;
    let mut all = Vec::new();
    while let Some(run) = tail.next()? {
        assert_eq!(run.records.len(), run.record_count as usize * RECORD_LEN);
        for (i, bytes) in run.records.chunks(RECORD_LEN).enumerate() {
            let number = u64::from_le_bytes(bytes[..8].try_into().unwrap());
            assert_eq!(bytes, record(number));
            all.push((run.first_seq.get() + i as u64, number));
        }
    }
    Ok(all)
}

/// What was promised.
#[derive(Default)]
pub struct Model {
    /// The number in the record with sequence number `i + 1`.
    pub acked: Vec<u64>,
    /// The last try, not acknowledged.
    pub tried: Vec<u64>,
    /// The highest number of a snapshot that was finished.
    pub snapshot: u64,
    pub incarnation: u32,
    pub next_number: u64,
}

impl Model {
    /// Compares a freshly opened journal with what was promised; afterwards what is there is
    /// promised, because the node answers from it.
    ///
    /// Errors: the snapshots' disk failed, and the node does not start.
    pub fn check(
        &mut self,
        disk: &SimDisk,
        snapshots: &SimDisk,
        opened: &OpenedCore<SimDisk>,
    ) -> Result<(), JournalError> {
        let incarnation = opened.core.incarnation().get();
        assert!(incarnation > self.incarnation, "every opening has a number of its own");
        self.incarnation = incarnation;
        let (first, last) = (opened.first_seq, opened.last_seq);
        let chosen = match snapshot::choose(snapshots, opened.core.journal(), first, last) {
            Err(error @ JournalError::Io { .. }) => return Err(error),
            chosen => chosen.unwrap(),
        };
        assert!(chosen.damaged.is_empty());
        let info = chosen.reader.as_ref().map(|r| *r.info());
        assert!(info.map_or(0, |i| i.number) >= self.snapshot, "a finished snapshot stays");
        let cut = info.map_or(Seq::NONE, |i| i.lowest_cut);
        if let Some(mut reader) = chosen.reader {
            let part = reader.next().unwrap().unwrap();
            assert_eq!(part.bytes, snapshot_bytes(&self.acked[..cut.get() as usize]));
        }

        let end = last.get() as usize;
        let acked = self.acked.len();
        let is_whole = end == acked || end == acked + self.tried.len();
        assert!(is_whole, "{end} records, {acked} acknowledged, {} tried", self.tried.len());
        if end > acked {
            self.acked.append(&mut self.tried);
        }
        self.tried.clear();
        let found = read_all(disk, opened, cut.next()).unwrap();
        let from = found.first().map_or(last.get() + 1, |(seq, _)| *seq);
        assert!(from <= cut.get() + 1, "records between snapshot and journal");
        let expected = self.acked.iter().enumerate().map(|(i, n)| (i as u64 + 1, *n));
        assert!(found.into_iter().eq(expected.skip(from as usize - 1)));
        Ok(())
    }
}

fn snapshot_bytes(numbers: &[u64]) -> Vec<u8> {
    numbers.iter().flat_map(|n| n.to_le_bytes()).collect()
}

/// A running node.
pub struct World {
    pub core: JournalCore<SimDisk>,
    pub snapshots: SimDisk,
    lifetime: Lifetime,
    cover: Cover,
    clock: Arc<crate::clock::NodeClock>,
    frame: FrameBuilder,
}

impl World {
    pub fn new(opened: OpenedCore<SimDisk>, snapshots: SimDisk) -> Self {
        let mut lifetime = Lifetime::new(0);
        for segment in &opened.segments {
            let first_seq = segment.first_seq.unwrap_or(opened.core.next_seq());
            lifetime.begin(segment.number, first_seq);
        }
        let (core, clock) = (opened.core, opened.clock);
        let cover = Cover::default();
        Self { core, snapshots, lifetime, cover, clock, frame: FrameBuilder::new() }
    }

    /// Appends a frame of so many records. `Ok(false)`: no segment is ready.
    pub fn append(&mut self, model: &mut Model, count: u32) -> Result<bool, std::io::Error> {
        self.frame.clear();
        model.tried.clear();
        for _ in 0..count {
            model.next_number += 1;
            model.tried.push(model.next_number);
            let bytes = record(model.next_number);
            self.frame.extend(RECORD_LEN, 1).copy_from_slice(&bytes);
        }
        let kind = if count > 0 { FrameKind::Records } else { FrameKind::Mark };
        let (segment, first_seq) = (self.core.segment(), self.core.next_seq());
        match self.core.append(&mut self.frame, kind, self.clock.stamp()) {
            Ok(()) => {
                model.acked.append(&mut model.tried);
                if self.core.segment() != segment {
                    self.lifetime.begin(self.core.segment(), first_seq);
                }
                Ok(true)
            }
            Err(AppendError::SegmentFull) => {
                model.tried.clear();
                Ok(false)
            }
            Err(AppendError::Failed(e)) => Err(e),
        }
    }

    /// Makes the next segment ready, if none is. A failure is no failure of the journal.
    pub fn prepare(&mut self) -> Result<(), std::io::Error> {
        if !self.core.has_spare() {
            let header = self.core.next_segment();
            self.core.offer_spare(segments::prepare(self.core.disk(), &header)?);
        }
        Ok(())
    }

    /// Takes a snapshot of what is durable. A failure is no failure of the journal.
    pub fn snapshot(&mut self, model: &mut Model) -> Result<(), JournalError> {
        let (journal, incarnation) = (self.core.journal(), self.core.incarnation());
        let header = SnapshotHeader { journal, incarnation, stamp: self.clock.stamp() };
        let mut writer = SnapshotWriter::create(&self.snapshots, header)?;
        let cut = self.core.durable_seq();
        let bytes = snapshot_bytes(&model.acked[..cut.get() as usize]);
        writer.part(Part { slot: Slot::new(1), cut, bytes: &bytes })?;
        let kept = writer.finish()?;
        model.snapshot = kept.last().unwrap().number;
        if kept.len() == snapshot::KEPT_COUNT {
            self.cover = Cover { snapshots: kept[0].lowest_cut, store: kept[0].lowest_cut };
        }
        Ok(())
    }

    /// Removes what is covered.
    pub fn remove_old(&mut self) -> Result<(), std::io::Error> {
        while let Some(segment) = self.lifetime.removable(self.cover, NodeTime::new(1)) {
            segments::remove(self.core.disk(), segment)?;
            self.lifetime.removed(segment);
        }
        Ok(())
    }

    /// One random thing. `Err`: the journal is poisoned.
    pub fn step(&mut self, model: &mut Model, rng: &mut SimRng) -> Result<(), std::io::Error> {
        match rng.below(10) {
            0 => drop(self.snapshot(model)),
            1 => drop(self.remove_old()),
            2 | 3 => drop(self.prepare()),
            4 => return self.append(model, 0).map(drop),
            _ => {
                let largest = (SEGMENT_BYTES / 4) as usize / RECORD_LEN;
                let few = rng.below(3) > 0;
                let count = rng.below(if few { 8 } else { largest as u64 }) + 1;
                debug_assert!(frame_len(count as usize * RECORD_LEN) < SEGMENT_BYTES as usize / 2);
                return self.append(model, count as u32).map(drop);
            }
        }
        Ok(())
    }
}
