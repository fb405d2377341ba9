//! A node's snapshots, and the segments that go by them: what is done to them, and what must hold.
//!
//! ```text
//! snapshot thread ─► visit ─► shards, control ─► journal: cuts ─► parts ─► name.new ─► name
//!      two kept ─► cover ─┐
//!      databases ─► cover ┴─► lifetime ─► journal-files: the lowest segment goes
//! ```
//! All of it is production code on two simulated disks of one machine. Before a segment may go, two
//! snapshots must be whole on the platter and reach beyond it, whatever the node believes; so must
//! the databases, and a time must have gone by.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::node::{Did, Node, Up};
use super::plan::Shape;
use crate::crash::CrashPoint;
use crate::journal::JournalError;
use crate::journal::disk::Disk;
use crate::journal::open::Opened;
use crate::journal::sim::{Fault, SimDisk, SimRng};
use crate::journal::snapshot::{self, SnapshotInfo, SnapshotReader};
use crate::shard::core::Readiness;
use crate::shard::recover::{self, RecoverError};
use crate::shard::snapshotter::{self, SnapshotPolicy, Snapshotter, SnapshotterParts, Turn};
use crate::units::{JournalId, NodeTime, Seq, Slot};

/// Slots that each shard reports before the journal has a turn, within one turn of a walk.
const REPORTED_AT_ONCE: u64 = 48;

/// Where a crash is aimed at by name: they come too seldom to be met by counting.
pub const POINTS: [CrashPoint; 8] = [
    CrashPoint::SnapshotAfterWrite,
    CrashPoint::SnapshotAfterSync,
    CrashPoint::SnapshotAfterRename,
    CrashPoint::SnapshotBeforeRemove,
    CrashPoint::SnapshotAfterRemove,
    CrashPoint::SegmentBeforeRemove,
    CrashPoint::SegmentAfterRemove,
    CrashPoint::JournalAfterRotation,
];

/// What came by, so that a test can see that it did.
#[derive(Clone, Copy, Default, Debug)]
pub struct SnapshotCounts {
    pub taken: u64,
    pub given_up: u64,
    /// Starts from one.
    pub used: u64,
    /// Damaged ones that a start did without.
    pub put_aside: u64,
    /// Journals that end before a snapshot's cut, and were refused.
    pub refused: u64,
    /// Segments that went.
    pub segments: u64,
}

impl SnapshotCounts {
    pub fn add(&mut self, other: &Self) {
        self.taken += other.taken;
        self.given_up += other.given_up;
        self.used += other.used;
        self.put_aside += other.put_aside;
        self.refused += other.refused;
        self.segments += other.segments;
    }
}

/// What a node's machine has of snapshots, whether the node runs or not.
pub struct Snapshots {
    pub disk: SimDisk,
    pub counts: SnapshotCounts,
    /// An operator wants one.
    is_wanted: bool,
    /// The one that was damaged on the platter, as long as it may be there.
    rotten: Option<u64>,
    /// The journal as it was before the newest one began, and its last record.
    older: Option<(SimDisk, u64)>,
    /// The first record that the journal has.
    first_kept: u64,
    /// What the databases, where there are none what follows the journal, have told.
    stored: u64,
    /// What the snapshot thread said last.
    covered_twice: Arc<AtomicU64>,
    kept_count: Arc<AtomicU64>,
    /// Records that were covered by all, and since when.
    covered: Vec<(u64, u64)>,
}

impl Snapshots {
    pub fn new(seed: u64) -> Self {
        Self {
            disk: SimDisk::new(seed),
            counts: SnapshotCounts::default(),
            is_wanted: false,
            rotten: None,
            older: None,
            first_kept: 1,
            stored: 0,
            covered_twice: Arc::default(),
            kept_count: Arc::default(),
            covered: Vec::new(),
        }
    }

    /// How many of those whose names are on the platter reach through `seq`: what would be there if
    /// power went now. One that rotted was whole.
    fn covering(&self, seq: u64) -> usize {
        let platter = self.disk.platter();
        let reaches = |number: &u64| {
            if self.rotten == Some(*number) {
                return true;
            }
            let opened = SnapshotReader::open(&platter, *number);
            let verified = opened.and_then(|mut reader| {
                reader.verify()?;
                Ok(reader.info().lowest_cut.get() >= seq)
            });
            verified.expect("a snapshot that has its name is whole")
        };
        numbers(&platter).into_iter().filter(reaches).count()
    }

    /// How far they come, for the report of what went wrong.
    pub fn describe(&self) -> String {
        let twice = self.covered_twice.load(Ordering::Relaxed);
        let Self { first_kept, stored, rotten, counts, .. } = self;
        format!("from {first_kept} on, twice {twice}, stored {stored}, {rotten:?}, {counts:?}")
    }
}

/// Of those that have their names, the oldest first.
fn numbers(disk: &SimDisk) -> Vec<u64> {
    let names = disk.list().unwrap_or_default();
    names.iter().filter_map(|name| name.strip_suffix(".snapshot")?.parse().ok()).collect()
}

fn name(number: u64) -> String {
    format!("{number:012}.snapshot")
}

impl Shape {
    /// How long a segment stays once it is covered.
    pub fn grace_ms(&self) -> u64 {
        if self.snapshots { [0, 20, 300][self.seed as usize % 3] } else { 600_000 }
    }
}

impl Node {
    /// The thread `snapshot` as `app` starts it.
    ///
    /// Errors: what is kept cannot be read.
    pub fn snapshotter(
        &self,
        up: &Up,
        journal: JournalId,
        newest: Option<SnapshotInfo>,
    ) -> Result<Snapshotter<SimDisk>, JournalError> {
        let covered_twice = snapshotter::covered_twice(&snapshot::kept(&self.snapshots.disk)?);
        up.journal.cover_by_snapshots(covered_twice);
        self.snapshots.covered_twice.store(covered_twice.get(), Ordering::Relaxed);
        let (twice, count) =
            (Arc::clone(&self.snapshots.covered_twice), Arc::clone(&self.snapshots.kept_count));
        let core = &up.ready.core;
        Ok(Snapshotter::new(SnapshotterParts {
            disk: self.snapshots.disk.clone(),
            journal,
            incarnation: up.incarnation,
            inboxes: Arc::clone(&core.inboxes),
            control: core.control.clone(),
            clock: Arc::clone(&core.clock),
            durable: Arc::clone(up.durable()),
            policy: SnapshotPolicy {
                every_ms: self.shape.snapshot_every_ms,
                every_records: 1 << 40,
            },
            covered: newest.map_or(Seq::NONE, |s| s.lowest_cut),
            covered_twice,
            is_pressed: Box::new(|| false),
            on_kept: Box::new(move |kept| {
                twice.store(snapshotter::covered_twice(kept).get(), Ordering::Relaxed);
                count.fetch_add(1, Ordering::Relaxed);
            }),
            taken_at: Arc::default(),
        }))
    }

    /// An operator wants a snapshot.
    pub fn want_snapshot(&mut self) {
        self.snapshots.is_wanted = true;
        if self.up.is_some() && !self.is_copy() && !self.is_dead() {
            self.snapshots.older = Some((self.disk.copy(), self.ledger.last()));
        }
    }

    pub fn is_taking_snapshot(&self) -> bool {
        let of_up = |up: &Up| up.snapshotter.as_ref().is_some_and(Snapshotter::is_taking);
        self.up.as_deref().is_some_and(of_up)
    }

    /// One turn of the thread `snapshot`: what was reported is written.
    pub fn snapshot(&mut self) -> Did {
        let was_taking = self.is_taking_snapshot();
        let turned = self.guarded(|node| {
            let up = node.up.as_mut().expect("it runs");
            let Some(snapshotter) = up.snapshotter.as_mut().filter(|_| !up.is_draining) else {
                return Did::Nothing;
            };
            if std::mem::take(&mut node.snapshots.is_wanted) {
                snapshotter.begin();
            }
            let mut did = Did::Nothing;
            while snapshotter.turn() == Turn::Busy {
                did = Did::Something;
            }
            did
        });
        let taken = self.snapshots.kept_count.swap(0, Ordering::Relaxed);
        self.snapshots.counts.taken += taken;
        match turned {
            Ok(did) => {
                let is_given_up = was_taking && taken == 0 && !self.is_taking_snapshot();
                self.snapshots.counts.given_up += u64::from(is_given_up);
                let covered = self.snapshots.covered_twice.load(Ordering::Relaxed);
                let up = self.up.as_ref().expect("it runs");
                up.journal.cover_by_snapshots(Seq::new(covered));
                self.note_covered();
                did
            }
            Err(end) => {
                self.dying = Some(end);
                Did::Something
            }
        }
    }

    /// The walk of a snapshot goes on, for so many slots of each shard at most; or until a slot was
    /// reported in which somebody owns something.
    pub fn walk(&mut self, slots: u64, stops_at_members: bool) -> Did {
        if !self.is_taking_snapshot() {
            return self.snapshot();
        }
        let mut did = Did::Nothing;
        for n in 1..=slots {
            let (mut is_busy, mut met_somebody) = (false, false);
            for index in 0..usize::from(self.shape.shards) {
                let next = self.visits_next(index);
                is_busy |= self.shard(index) == Did::Something;
                met_somebody |= next.is_some_and(|slot| self.ledger.model.is_used(slot))
                    && next != self.visits_next(index);
            }
            if is_busy {
                did = Did::Something;
            }
            if !is_busy || n % REPORTED_AT_ONCE == 0 {
                self.write();
                self.follow();
                self.check();
                if self.dying.is_some() || self.is_dead() {
                    return Did::Something;
                }
                let wrote = self.snapshot();
                if self.dying.is_some() || self.is_dead() || !self.is_taking_snapshot() {
                    return Did::Something;
                }
                if !is_busy && wrote == Did::Nothing {
                    break;
                }
            }
            if met_somebody && stops_at_members {
                break;
            }
        }
        did
    }

    fn visits_next(&self, shard: usize) -> Option<Slot> {
        self.up.as_ref()?.shards[shard].as_ref()?.visits_next()
    }

    /// What the databases have is told to the journal.
    pub fn cover_by_store(&mut self, through: u64) {
        if self.is_copy() {
            return;
        }
        let Some(up) = &self.up else { return };
        up.journal.cover_by_store(Seq::new(through));
        self.snapshots.stored = through;
        self.note_covered();
    }

    fn note_covered(&mut self) {
        let Some(up) = self.up.as_ref().filter(|_| !self.is_copy()) else { return };
        let now = up.clock.now().get();
        let twice = self.snapshots.covered_twice.load(Ordering::Relaxed);
        let covered = twice.min(self.snapshots.stored);
        if self.snapshots.covered.last().is_none_or(|(seq, _)| *seq < covered) {
            self.snapshots.covered.push((covered, now));
        }
    }

    /// Whether segments went since this was asked last; with the first record that is left. I9: not
    /// before all that is in them is elsewhere, twice, for as long as was promised.
    pub fn segments_went(&mut self) -> Option<u64> {
        if self.is_copy() {
            return None;
        }
        let up = self.up.as_ref()?;
        let first = up.journal.gauge().first_seq().get();
        let before = std::mem::replace(&mut self.snapshots.first_kept, first);
        if first <= before {
            return None;
        }
        self.snapshots.counts.segments += 1;
        let covering = self.snapshots.covering(first - 1);
        assert!(covering >= 2, "I9: segments before {first} went, by {covering} snapshots");
        let mut covered = self.snapshots.covered.iter();
        let since = covered.find(|(seq, _)| *seq + 1 >= first).map(|(_, since)| *since);
        let since = since.expect("I9: segments went that nothing covers");
        let (now, grace) = (up.clock.now().get(), self.shape.grace_ms());
        assert!(now >= since + grace, "I9: segments went {} ms after {since}", now - since);
        Some(first)
    }

    /// The newest snapshot rots, or was torn, where the node can do without it.
    pub fn rot_snapshot(&mut self, rng: &mut SimRng) {
        if self.is_copy() || self.is_dead() {
            return;
        }
        let snapshots = &mut self.snapshots;
        let kept = numbers(&snapshots.disk);
        let can_do_without = kept.len() >= 2 || snapshots.first_kept == 1;
        // One at a time: the next start, at the latest, does without it.
        let may_rot = can_do_without && snapshots.rotten.is_none();
        let Some(newest) = kept.last().copied().filter(|_| may_rot) else { return };
        let mut bytes = snapshots.disk.bytes(&name(newest)).expect("the newest");
        let len = bytes.len() as u64;
        match rng.below(4) {
            0 => bytes.truncate(rng.below(len) as usize),
            1 => bytes[rng.below(len) as usize] ^= 1 << rng.below(8),
            2 => bytes[(len - 1 - rng.below(4_096)) as usize] ^= 0x55,
            _ => {
                let at = rng.below(len / 512) as usize * 512;
                bytes[at..at + 512].fill(0);
            }
        }
        snapshots.disk.set_bytes(&name(newest), &bytes);
        snapshots.rotten = Some(newest);
    }

    /// Breaks the snapshots' disk at the `nth` operation from now on.
    pub fn break_snapshots(&mut self, nth: u8, fault: Fault) {
        self.is_disk_well = false;
        let disk = &self.snapshots.disk;
        disk.fault_at(disk.operations() + u64::from(nth), fault);
    }

    /// A journal that ends before what a snapshot knows has lost what was acknowledged: the node
    /// must not start on it.
    pub fn start_on_older_journal(&mut self) {
        if self.is_copy() || self.is_dead() || self.snapshots.rotten.is_some() {
            return;
        }
        let Some((journal, last)) = self.snapshots.older.take() else { return };
        let snapshots = self.snapshots.disk.copy();
        let kept = snapshot::kept(&snapshots).expect("what is kept can be read");
        if kept.last().is_none_or(|newest| newest.highest_cut.get() <= last) {
            return;
        }
        let opened =
            Opened::on_as(&journal, None, self.options(), self.time.clone(), self.journal());
        let opened = opened.expect("a copy of a journal is a journal");
        match recover::recover(&opened, &snapshots, &Readiness::default()) {
            Err(RecoverError::Journal(JournalError::SnapshotBeyondEnd { .. })) => {
                self.snapshots.counts.refused += 1;
            }
            Err(other) => panic!("an older journal was refused, but: {other}"),
            Ok(_) => panic!("a journal that lost its end was taken"),
        }
    }

    /// What a start found.
    pub fn started_from(&mut self, recovered: &recover::Recovered, now: NodeTime) {
        // Node time that no record kept is not known any more.
        for (_, since) in &mut self.snapshots.covered {
            *since = (*since).min(now.get());
        }
        let damaged = recovered.warnings.len() as u64;
        let is_told = self.snapshots.rotten.is_some() || damaged == 0;
        assert!(is_told, "a snapshot is damaged by nobody: {:?}", recovered.warnings);
        self.snapshots.counts.put_aside += damaged;
        self.snapshots.counts.used += u64::from(recovered.snapshot.is_some());
        // Put aside by a rename that is not synced: power loss may bring the name back.
        let disk = &self.snapshots.disk;
        let is_there =
            |name: String| disk.bytes(&name).is_some() || disk.platter().bytes(&name).is_some();
        self.snapshots.rotten = self.snapshots.rotten.filter(|number| is_there(name(*number)));
    }

    /// Segments on the disk, the one made ready included.
    pub fn segment_count(&self) -> usize {
        let names = self.disk.list().unwrap_or_default();
        names.iter().filter(|name| name.ends_with(".segment")).count()
    }
}
