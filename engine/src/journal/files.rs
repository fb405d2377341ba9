//! The thread `journal-files`: makes the next segment ready ahead of need, removes old ones.
//!
//! So the thread `journal` never waits for zeros to be written or for an unlink. A segment that
//! cannot be made is not a failed write of the journal: writes stop until there is space again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::time::Duration;

use super::disk::Disk;
use super::doorbell::Doorbell;
use super::format::SegmentHeader;
use super::lifetime::{Cover, Lifetime};
use super::segments::{self, Prepared};
use super::stats::JournalStats;
use crate::clock::NodeClock;
use crate::units::Seq;

/// How often retention is looked at, and a failed preparation tried again.
const TICK: Duration = Duration::from_millis(200);

/// Whether the journal takes more.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub enum DiskState {
    Normal = 0,
    /// Above the first watermark: new sales are refused with 503 and Retry-After.
    SalesPaused = 1,
    /// Above the second, or no space for the next segment: nothing new is written; answers to
    /// known keys are still given.
    WritesStopped = 2,
}

impl DiskState {
    pub const ALL: [Self; 3] = [Self::Normal, Self::SalesPaused, Self::WritesStopped];
    pub const fn name(self) -> &'static str {
        match self {
            Self::Normal => "normal",
            Self::SalesPaused => "sales-paused",
            Self::WritesStopped => "writes-stopped",
        }
    }
}

/// The bounds on the journal's segments. Units: bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DiskBounds {
    pub pause_at: u64,
    pub stop_at: u64,
    pub max: u64,
}

/// How full the disk is; shared with everybody who asks.
///
/// Relaxed everywhere: advice that may be a moment old, and that publishes nothing else.
pub struct DiskGauge {
    bounds: DiskBounds,
    segment_bytes: u64,
    used_bytes: AtomicU64,
    is_out_of_space: AtomicBool,
    first_seq: AtomicU64,
    last_state: AtomicU8,
    pins: AtomicUsize,
}

/// While it is held no segment goes, unless the journal is short of space: then writing comes
/// before reading, and the reader must look where the journal begins.
pub struct Pin(Arc<DiskGauge>);

impl Drop for Pin {
    fn drop(&mut self) {
        self.0.pins.fetch_sub(1, Ordering::Relaxed);
    }
}

impl DiskGauge {
    pub(super) fn new(bounds: DiskBounds, segment_bytes: u64) -> Self {
        Self {
            bounds,
            segment_bytes,
            used_bytes: AtomicU64::new(0),
            is_out_of_space: AtomicBool::new(false),
            first_seq: AtomicU64::new(1),
            last_state: AtomicU8::new(0),
            pins: AtomicUsize::new(0),
        }
    }

    /// Keeps the segments for a reader.
    pub fn pin(self: &Arc<Self>) -> Pin {
        self.pins.fetch_add(1, Ordering::Relaxed);
        Pin(Arc::clone(self))
    }

    fn is_pinned(&self) -> bool {
        self.pins.load(Ordering::Relaxed) > 0 && self.state() == DiskState::Normal
    }

    pub fn state(&self) -> DiskState {
        let used = self.used_bytes();
        if self.is_out_of_space.load(Ordering::Relaxed) || used > self.bounds.stop_at {
            DiskState::WritesStopped
        } else if used > self.bounds.pause_at {
            DiskState::SalesPaused
        } else {
            DiskState::Normal
        }
    }
    /// Bytes of all segments that hold frames.
    pub fn used_bytes(&self) -> u64 {
        self.used_bytes.load(Ordering::Relaxed)
    }
    /// The first sequence number still kept.
    pub fn first_seq(&self) -> Seq {
        Seq::new(self.first_seq.load(Ordering::Relaxed))
    }

    /// A segment holds its first frame. Called by the thread `journal`, before it completes
    /// anything of that frame.
    pub(super) fn add_segment(&self) {
        self.used_bytes.fetch_add(self.segment_bytes, Ordering::Relaxed);
    }

    fn removed_segment(&self, lifetime: &Lifetime) {
        self.used_bytes.fetch_sub(self.segment_bytes, Ordering::Relaxed);
        self.set_first_seq(lifetime);
    }

    pub(super) fn set_first_seq(&self, lifetime: &Lifetime) {
        let first = lifetime.first_seq().map_or(1, Seq::get);
        self.first_seq.store(first, Ordering::Relaxed);
    }

    fn set_out_of_space(&self, is_out: bool) {
        self.is_out_of_space.store(is_out, Ordering::Relaxed);
        self.tell();
    }

    /// One log line per change. Called by the thread `journal-files` alone.
    fn tell(&self) {
        let (state, used) = (self.state(), self.used_bytes());
        if self.last_state.swap(state as u8, Ordering::Relaxed) != state as u8 {
            let state = state.name();
            tracing::warn!(state, used, max = self.bounds.max, "journal disk state changed");
        }
    }
}

/// The covers that others report. Each only rises.
///
/// Relaxed: each number stands for itself, and says what is durable elsewhere.
#[derive(Default)]
pub(super) struct Covers {
    pub snapshots: AtomicU64,
    pub store: AtomicU64,
}

impl Covers {
    fn get(&self) -> Cover {
        Cover {
            snapshots: Seq::new(self.snapshots.load(Ordering::Relaxed)),
            store: Seq::new(self.store.load(Ordering::Relaxed)),
        }
    }
}

/// What the journal's thread asks for.
#[derive(Clone, Copy)]
pub(super) enum FilesJob {
    Prepare(SegmentHeader),
    /// A segment begins, with this as its first sequence number to come.
    Began {
        segment: u64,
        first_seq: Seq,
    },
}

/// The thread's state.
pub(super) struct Files<D: Disk> {
    pub disk: D,
    pub lifetime: Lifetime,
    pub gauge: Arc<DiskGauge>,
    pub covers: Arc<Covers>,
    pub stats: Arc<JournalStats>,
    pub clock: Arc<NodeClock>,
    pub jobs: Receiver<FilesJob>,
    pub spares: SyncSender<Prepared<D::File>>,
    pub bell: Arc<Doorbell>,
    /// The segment to be made ready, until it is.
    pub wanted: Option<SegmentHeader>,
}

impl<D: Disk> Files<D> {
    /// Runs until the journal's thread is gone.
    pub fn run(mut self) {
        loop {
            match self.jobs.recv_timeout(TICK) {
                Ok(job) => self.turn(Some(job)),
                Err(RecvTimeoutError::Timeout) => self.turn(None),
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// One turn: a job; or none came for a while, and what is old is looked at.
    pub fn turn(&mut self, job: Option<FilesJob>) {
        match job {
            Some(FilesJob::Prepare(header)) => self.wanted = Some(header),
            Some(FilesJob::Began { segment, first_seq }) => {
                self.lifetime.begin(segment, first_seq);
            }
            None => self.remove_old(),
        }
        self.gauge.tell();
        if let Some(header) = self.wanted
            && self.prepare(&header)
        {
            self.wanted = None;
        }
    }

    fn prepare(&mut self, header: &SegmentHeader) -> bool {
        let after = (self.lifetime.len() as u64 + 1) * header.file_len;
        let prepared = if after > self.gauge.bounds.max {
            Err(std::io::Error::other("the configured bound on the journal is reached"))
        } else {
            let pace = Pace::new(&self.stats);
            segments::prepare_at_pace(&self.disk, header, &mut |filled| pace.keep(filled))
        };
        match prepared {
            Ok(spare) => {
                self.gauge.set_out_of_space(false);
                // The journal asks for one at a time, so there is room; it may have stopped.
                let _ = self.spares.send(spare);
                self.bell.ring();
                true
            }
            Err(error) => {
                if !self.gauge.is_out_of_space.load(Ordering::Relaxed) {
                    tracing::error!(%error, segment = header.segment, "no next journal segment");
                }
                self.stats.prepare_failure_count.fetch_add(1, Ordering::Relaxed);
                self.gauge.set_out_of_space(true);
                self.remove_old();
                false
            }
        }
    }

    fn remove_old(&mut self) {
        while let Some(segment) = self.lifetime.removable(self.covers.get(), self.clock.now())
            && !self.gauge.is_pinned()
        {
            if let Err(error) = segments::remove(&self.disk, segment) {
                tracing::error!(%error, segment, "an old journal segment cannot be removed");
                return;
            }
            self.lifetime.removed(segment);
            self.gauge.removed_segment(&self.lifetime);
            tracing::info!(segment, "journal segment removed");
        }
    }
}

/// How fast zeros are written while the journal writes, too: a durable write flushes whatever the
/// disk has taken, zeros included, so a whole segment of them at once makes every answer wait.
/// They keep ahead of the journal, at twice its own speed; without one, they go on alone.
struct Pace<'a> {
    stats: &'a JournalStats,
    /// What the journal had written when the filling began.
    begun_at: u64,
}

/// Zeros that may be ahead in any case: small segments are never held up.
const AHEAD_BYTES: u64 = 2 << 20;
const PACE_PAUSE: Duration = Duration::from_millis(1);

impl<'a> Pace<'a> {
    fn new(stats: &'a JournalStats) -> Self {
        Self { stats, begun_at: stats.byte_count.load(Ordering::Relaxed) }
    }

    /// Waits while so many zeros are enough, and the journal is writing.
    fn keep(&self, filled: u64) {
        loop {
            let written = self.stats.byte_count.load(Ordering::Relaxed);
            if filled <= AHEAD_BYTES + 2 * (written - self.begun_at) {
                return;
            }
            std::thread::sleep(PACE_PAUSE);
            if self.stats.byte_count.load(Ordering::Relaxed) == written {
                return;
            }
        }
    }
}
