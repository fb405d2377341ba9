//! A journal put together: the states of its two threads, with what they share.
//!
//! [`Opened::start`](super::open::Opened::start) gives each its thread; a simulation steps them by
//! hand, and finds here what a handle would tell it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::sync_channel;

use super::core::{FrameBuilder, OpenedCore};
use super::disk::Disk;
use super::doorbell::Doorbell;
use super::driver::{CompletionSink, Driver, MarkOptions, Shared, Turn};
use super::error::JournalError;
use super::files::{Covers, DiskBounds, DiskGauge, Files, FilesJob};
use super::lifetime::Lifetime;
use super::lock::FolderLock;
use super::ring::{Producer, RingOptions, ring};
use super::stats::JournalStats;
use super::tail::{DurableMark, Tail};
use crate::units::{JournalId, Seq};

/// Both threads' states, and what is shared with them.
pub struct JournalParts<S: CompletionSink, D: Disk> {
    pub(super) disk: D,
    pub(super) journal: JournalId,
    pub(super) shared: Arc<Shared>,
    pub(super) gauge: Arc<DiskGauge>,
    pub(super) covers: Arc<Covers>,
    pub(super) driver: Driver<S, D>,
    pub(super) files: Files<D>,
    pub(super) lock: Option<FolderLock>,
}

/// What the options come to.
#[derive(Clone, Copy)]
pub(super) struct Settings {
    pub bounds: DiskBounds,
    pub grace_ms: u64,
    pub ring: RingOptions,
    pub marks: MarkOptions,
}

impl<S: CompletionSink, D: Disk> JournalParts<S, D> {
    pub(super) fn new(
        opened: OpenedCore<D>,
        lock: Option<FolderLock>,
        segment_bytes: u64,
        settings: Settings,
        producer_count: usize,
        sink: S,
    ) -> (Self, Vec<Producer<S::Item>>) {
        let (core, clock) = (opened.core, opened.clock);
        let shared = Arc::new(Shared {
            durable: Arc::new(DurableMark::new(opened.last_seq)),
            stats: Arc::new(JournalStats::default()),
            bell: Arc::new(Doorbell::new()),
            is_stopping: AtomicBool::new(false),
            is_poisoned: AtomicBool::new(false),
        });
        let ends = (0..producer_count).map(|_| ring(settings.ring, shared.bell.clone()));
        let (producers, consumers) = ends.unzip();

        let mut lifetime = Lifetime::new(settings.grace_ms);
        for segment in &opened.segments {
            lifetime.begin(segment.number, segment.first_seq.unwrap_or(core.next_seq()));
        }
        let gauge = Arc::new(DiskGauge::new(settings.bounds, segment_bytes));
        gauge.set_first_seq(&lifetime);
        opened.segments.iter().for_each(|_| gauge.add_segment());
        let covers = Arc::new(Covers::default());
        let (jobs, jobs_out) = sync_channel::<FilesJob>(16);
        let (spares, spares_out) = sync_channel(1);
        let files = Files {
            disk: core.disk().clone(),
            lifetime,
            gauge: gauge.clone(),
            covers: covers.clone(),
            stats: shared.stats.clone(),
            clock: clock.clone(),
            jobs: jobs_out,
            spares,
            bell: shared.bell.clone(),
            wanted: None,
        };
        let (disk, journal) = (core.disk().clone(), core.journal());
        let mut driver = Driver {
            core,
            consumers,
            sink,
            shared: shared.clone(),
            gauge: gauge.clone(),
            clock,
            marks: settings.marks,
            jobs,
            spares: spares_out,
            is_spare_asked: false,
            frame: FrameBuilder::new(),
            pending: Vec::new(),
            first_consumer: 0,
            mark_due_ns: 0,
        };
        driver.keep_time_from_now();
        driver.ask_for_spare();
        (Self { disk, journal, shared, gauge, covers, driver, files, lock }, producers)
    }

    /// One turn of the thread `journal`.
    ///
    /// Errors: `Poisoned`; nothing is written or completed any more then.
    pub fn turn(&mut self) -> Result<Turn, JournalError> {
        self.driver.turn().map_err(|halt| self.driver.halted(halt))
    }

    /// One turn of the thread `journal-files`.
    pub fn files_turn(&mut self) {
        let job = self.files.jobs.try_recv().ok();
        self.files.turn(job);
    }

    /// As [`JournalHandle::stop`](super::open::JournalHandle::stop), where turns follow until one
    /// says that the journal is closed.
    pub fn stop(&self) {
        self.shared.is_stopping.store(true, Ordering::Release);
    }

    pub fn durable(&self) -> &Arc<DurableMark> {
        &self.shared.durable
    }
    pub fn gauge(&self) -> &Arc<DiskGauge> {
        &self.gauge
    }
    pub fn cover_by_snapshots(&self, seq: Seq) {
        self.covers.snapshots.fetch_max(seq.get(), Ordering::Relaxed);
    }
    pub fn cover_by_store(&self, seq: Seq) {
        self.covers.store.fetch_max(seq.get(), Ordering::Relaxed);
    }
    /// A reader from `from` on, which follows what becomes durable.
    pub fn tail(&self, from: Seq) -> Result<Tail<D>, JournalError> {
        Tail::open(self.disk.clone(), self.journal, from, self.shared.durable.clone())
    }
}
