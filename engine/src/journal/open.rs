//! A journal from its options to its running threads.
//!
//! ```text
//! Journal::open ──► Opened ──replay──► the caller's state ──start──► JournalHandle + Producers
//!   lock, scan, repair,                                       threads journal, journal-files
//!   raise the incarnation
//! ```

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use super::core::{CoreOptions, JournalCore, OpenedCore};
use super::disk::{Disk, RealDisk};
use super::driver::{CompletionSink, MarkOptions, OnPoison, Shared};
use super::error::JournalError;
use super::files::{Covers, DiskBounds, DiskGauge, DiskState};
use super::format::{BLOCK_LEN, FRAME_LEN_MAX};
use super::lock::FolderLock;
use super::parts::{JournalParts, Settings};
use super::recovery;
use super::ring::{Producer, RingOptions};
use super::stats::JournalStats;
use super::tail::{DurableMark, Tail};
use crate::clock::{Clock, NodeClock};
use crate::units::{Incarnation, JournalId, Seq};

/// How a journal is kept.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct JournalOptions {
    /// The folder of the segments; made where it is missing.
    pub dir: PathBuf,
    /// Units: bytes of one segment file. Larger: fewer rotations; smaller: space comes back
    /// sooner.
    pub segment_bytes: u64,
    /// Direct synchronous writes, about half the latency of write and `fdatasync`; falls back
    /// to those where the file system refuses.
    pub direct: bool,
    /// Units: bytes. Segments never take more than this, the one made ready included.
    pub max_bytes: u64,
    /// At this share of `max_bytes` new sales pause.
    pub pause_at_percent: u8,
    /// At this share of `max_bytes` writes stop.
    pub stop_at_percent: u8,
    /// How long a segment stays after snapshots and database shards have covered it: longer
    /// than replica lag and backup interval.
    pub grace: Duration,
    /// How much wall time of a downtime counts for node time, at most.
    pub downtime_max: Duration,
    /// The ring of each producer.
    pub ring: RingOptions,
    pub marks: MarkOptions,
}

impl JournalOptions {
    /// The defaults, for this folder.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            segment_bytes: 64 << 20,
            direct: true,
            max_bytes: 16 << 30,
            pause_at_percent: 80,
            stop_at_percent: 90,
            grace: Duration::from_mins(10),
            downtime_max: Duration::from_hours(24),
            ring: RingOptions::default(),
            marks: MarkOptions::default(),
        }
    }

    fn check(&self) -> Result<(), JournalError> {
        let smallest = (BLOCK_LEN + FRAME_LEN_MAX) as u64;
        let wrong = match () {
            () if !self.segment_bytes.is_multiple_of(BLOCK_LEN as u64) => {
                "segment bytes must be a multiple of 4096"
            }
            () if self.segment_bytes < smallest => "a segment must hold the largest frame (1.1 MB)",
            () if self.max_bytes < 4 * self.segment_bytes => {
                "the bound must hold at least four segments"
            }
            () if self.pause_at_percent > self.stop_at_percent || self.stop_at_percent > 100 => {
                "watermarks must rise: pause, stop, 100 percent"
            }
            () => return Ok(()),
        };
        Err(JournalError::Options(wrong))
    }

    fn bounds(&self) -> DiskBounds {
        let max = u128::from(self.max_bytes);
        let share = |percent: u8| (max * u128::from(percent) / 100) as u64;
        DiskBounds {
            pause_at: share(self.pause_at_percent),
            stop_at: share(self.stop_at_percent),
            max: self.max_bytes,
        }
    }
}

/// Where it begins.
pub struct Journal;

impl Journal {
    /// Opens or makes the journal of a folder; see [`JournalCore::open`] for what is done to it.
    ///
    /// Errors: `Locked`, `Options`, damage and the like; nothing was changed then.
    pub fn open(
        options: JournalOptions,
        clock: Arc<dyn Clock>,
    ) -> Result<Opened<RealDisk>, JournalError> {
        options.check()?;
        let opening = |e| JournalError::io(format!("opening {}", options.dir.display()))(e);
        RealDisk::make_dir(&options.dir).map_err(opening)?;
        let lock = FolderLock::take(&options.dir)?;
        let disk = RealDisk::open(&options.dir, options.direct).map_err(opening)?;
        Opened::on(&disk, Some(lock), options, clock)
    }
}

/// An open journal that holds nothing new yet.
pub struct Opened<D: Disk> {
    core: OpenedCore<D>,
    lock: Option<FolderLock>,
    options: JournalOptions,
}

impl<D: Disk> Opened<D> {
    /// Opens on any disk: for tests and the simulation. `options.dir` plays no part.
    pub fn on(
        disk: &D,
        lock: Option<FolderLock>,
        options: JournalOptions,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, JournalError> {
        let new_journal = JournalId::new(rand::random_range(1..=u64::MAX));
        Self::on_as(disk, lock, options, clock, new_journal)
    }

    /// The same, where a journal that is made gets this id.
    pub fn on_as(
        disk: &D,
        lock: Option<FolderLock>,
        options: JournalOptions,
        clock: Arc<dyn Clock>,
        new_journal: JournalId,
    ) -> Result<Self, JournalError> {
        let core_options = CoreOptions {
            segment_bytes: options.segment_bytes,
            downtime_max: options.downtime_max,
        };
        let core = JournalCore::open(disk, core_options, clock, new_journal)?;
        Ok(Self { core, lock, options })
    }

    pub fn journal(&self) -> JournalId {
        self.core.core.journal()
    }
    pub fn incarnation(&self) -> Incarnation {
        self.core.core.incarnation()
    }
    /// The first sequence number still there; 1 in a journal that lost none.
    pub fn first_seq(&self) -> Seq {
        self.core.first_seq
    }
    /// The last record's; `NONE` in a new journal.
    pub fn last_seq(&self) -> Seq {
        self.core.last_seq
    }
    /// Node time, going on from the last frame's.
    pub fn clock(&self) -> &Arc<NodeClock> {
        &self.core.clock
    }
    /// Checks that a snapshot with these cuts belongs to this journal's state.
    pub fn check_snapshot(&self, lowest_cut: Seq, highest_cut: Seq) -> Result<(), JournalError> {
        recovery::check_snapshot(lowest_cut, highest_cut, self.first_seq(), self.last_seq())
    }
    /// Reads the records from `from` to the end. The first run may begin below `from`.
    pub fn replay(&self, from: Seq) -> Result<Tail<D>, JournalError> {
        let durable = Arc::new(DurableMark::new(self.last_seq()));
        Tail::open(self.core.core.disk().clone(), self.journal(), from, durable)
    }

    /// Puts it together with so many producers; nothing runs yet.
    pub fn parts<S: CompletionSink>(
        self,
        producer_count: usize,
        sink: S,
    ) -> (JournalParts<S, D>, Vec<Producer<S::Item>>) {
        let Self { core, lock, options } = self;
        let bounds = options.bounds();
        let grace_ms = u64::try_from(options.grace.as_millis()).unwrap_or(u64::MAX);
        let settings = Settings { bounds, grace_ms, ring: options.ring, marks: options.marks };
        JournalParts::new(core, lock, options.segment_bytes, settings, producer_count, sink)
    }

    /// Starts the threads `journal` and `journal-files`, with so many producers.
    ///
    /// `on_poison` is called on the thread `journal` after a failed write or sync, and should
    /// end the process.
    pub fn start<S: CompletionSink>(
        self,
        producer_count: usize,
        sink: S,
        on_poison: OnPoison,
    ) -> Result<Started<D, S::Item>, JournalError> {
        let (parts, producers) = self.parts(producer_count, sink);
        let JournalParts { disk, journal, shared, gauge, covers, driver, files, lock } = parts;
        let starting = |e| JournalError::io("starting a thread")(e);
        let files = Builder::new().name("journal-files".into()).spawn(move || files.run());
        let files = files.map_err(starting)?;
        let writer = Builder::new().name("journal".into()).spawn(move || driver.run(on_poison));
        let writer = writer.map_err(starting)?;
        let handle =
            JournalHandle { disk, journal, shared, gauge, covers, writer, files, _lock: lock };
        Ok((handle, producers))
    }
}

/// What [`Opened::start`] gives: the handle, and the shards' ends.
pub type Started<D, C> = (JournalHandle<D>, Vec<Producer<C>>);

/// A running journal.
pub struct JournalHandle<D: Disk = RealDisk> {
    disk: D,
    journal: JournalId,
    shared: Arc<Shared>,
    gauge: Arc<DiskGauge>,
    covers: Arc<Covers>,
    writer: JoinHandle<Result<(), JournalError>>,
    files: JoinHandle<()>,
    _lock: Option<FolderLock>,
}

impl<D: Disk> JournalHandle<D> {
    pub fn journal(&self) -> JournalId {
        self.journal
    }
    /// The last record that is durable.
    pub fn durable_seq(&self) -> Seq {
        self.shared.durable.get()
    }
    /// The same, to be kept by others.
    pub fn durable(&self) -> &Arc<DurableMark> {
        &self.shared.durable
    }
    pub fn stats(&self) -> &Arc<JournalStats> {
        &self.shared.stats
    }
    pub fn disk_state(&self) -> DiskState {
        self.gauge.state()
    }
    /// How full the disk is, to be kept by others.
    pub fn gauge(&self) -> &Arc<DiskGauge> {
        &self.gauge
    }
    /// A write or sync has failed: nothing completes any more.
    pub fn is_poisoned(&self) -> bool {
        self.shared.is_poisoned.load(Ordering::Acquire)
    }
    /// Both kept snapshots cover everything up to here: the older one's lowest cut.
    pub fn cover_by_snapshots(&self, seq: Seq) {
        self.covers.snapshots.fetch_max(seq.get(), Ordering::Relaxed);
    }
    /// All database shards have everything up to here: their lowest watermark.
    pub fn cover_by_store(&self, seq: Seq) {
        self.covers.store.fetch_max(seq.get(), Ordering::Relaxed);
    }
    /// A reader from `from` on, which follows what becomes durable.
    pub fn tail(&self, from: Seq) -> Result<Tail<D>, JournalError> {
        Tail::open(self.disk.clone(), self.journal, from, self.shared.durable.clone())
    }

    /// Writes what was pushed, closes the journal in good order, and waits for its threads.
    ///
    /// The producers must be silent by then: what they push later is never written.
    ///
    /// Errors: `Poisoned`; also where what was pushed found no space.
    pub fn stop(self) -> Result<(), JournalError> {
        self.shared.is_stopping.store(true, Ordering::Release);
        self.shared.bell.ring();
        let outcome = self.writer.join();
        // The writer took its end of the channel with it, which ends the other thread.
        let files = self.files.join();
        assert!(files.is_ok(), "a panic ends the process");
        outcome.unwrap_or_else(|_| unreachable!("a panic ends the process"))
    }
}

/// The journal's folder within a data folder.
pub fn journal_dir(data: &Path) -> PathBuf {
    data.join("journal")
}

/// The snapshots' folder within a data folder.
pub fn snapshot_dir(data: &Path) -> PathBuf {
    data.join("snapshots")
}
