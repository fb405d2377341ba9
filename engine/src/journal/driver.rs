//! The thread `journal`: drains the shards' rings, writes one frame, runs its completions.
//!
//! ```text
//! loop  drain all rings into one frame (bounded)      what came meanwhile makes the next frame:
//!       write it durably (blocks)                     group commit arises by itself
//!       publish the durable sequence number
//!       run the completions in order, flush the sink
//! ```
//! [`Driver::turn`] is one turn of that loop, and waits for nothing but the write, so a simulation
//! may step it on a thread of its own; [`Driver::run`] is the thread that does the waiting.
//!
//! A completion without records, alone in a drain, runs at once: all before it is durable (I4).
//! After one failed write nothing completes any more (I7).

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender};
use std::time::Duration;

use super::core::{AppendError, FrameBuilder, JournalCore};
use super::disk::Disk;
use super::doorbell::Doorbell;
use super::error::JournalError;
use super::files::{DiskGauge, FilesJob};
use super::format::{FrameKind, frame_len};
use super::ring::Consumer;
use super::segments::Prepared;
use super::stats::JournalStats;
use super::tail::DurableMark;
use crate::clock::NodeClock;
use crate::crash::CrashPoint;
use crate::crash_point;
use crate::planted::{self, Bug};
use crate::units::Seq;

/// Where completions go. Called by the thread `journal` alone, so it must be quick.
pub trait CompletionSink: Send + 'static {
    type Item: Send + 'static;
    /// Everything pushed up to and including this item's entry is durable; `seq` is the last
    /// record of that (of any producer's, in the journal's order).
    fn complete(&mut self, item: Self::Item, seq: Seq);
    /// The completions of one frame are through.
    fn flush(&mut self) {}
}

/// Called once, when a write or sync failed. Ends the process, outside of tests.
pub type OnPoison = Box<dyn FnOnce(JournalError) + Send>;

/// Marks in a quiet journal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MarkOptions {
    /// So long after the last records, a mark proves them durable.
    pub prove_after: Duration,
    /// So long after the last frame, a mark keeps node time.
    pub keep_time_every: Duration,
}

impl Default for MarkOptions {
    fn default() -> Self {
        Self { prove_after: Duration::from_secs(1), keep_time_every: Duration::from_mins(1) }
    }
}

/// What the thread shares with its handle.
pub(super) struct Shared {
    pub durable: Arc<DurableMark>,
    pub stats: Arc<JournalStats>,
    pub bell: Arc<Doorbell>,
    /// Set once by the handle, Release; read here, Acquire: what was pushed before is seen.
    pub is_stopping: AtomicBool,
    /// Set once by the thread, Release; partner of the handle's Acquire.
    pub is_poisoned: AtomicBool,
}

/// The thread's state.
pub(super) struct Driver<S: CompletionSink, D: Disk> {
    pub core: JournalCore<D>,
    pub consumers: Vec<Consumer<S::Item>>,
    pub sink: S,
    pub shared: Arc<Shared>,
    pub gauge: Arc<DiskGauge>,
    pub clock: Arc<NodeClock>,
    pub marks: MarkOptions,
    pub jobs: SyncSender<FilesJob>,
    pub spares: Receiver<Prepared<D::File>>,
    pub is_spare_asked: bool,
    pub frame: FrameBuilder,
    pub pending: Vec<(S::Item, Seq)>,
    /// The producer that is drained first; moves on, so that none is starved by full frames.
    pub first_consumer: usize,
    pub mark_due_ns: u64,
}

/// What a turn came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Turn {
    /// There was something to do; there may be more.
    Busy,
    /// Nothing to do until something is pushed, or a mark is due.
    Idle,
    /// The frame in hand waits for the next segment.
    NeedsSegment,
    /// It was told to stop, and the journal is closed.
    Ended,
}

/// Why the thread ends before its time.
pub(super) enum Halt {
    /// A write or sync failed.
    Poisoned(io::Error),
    /// It was stopped while it waited for a segment.
    NoSpace,
}

/// Looks at the rings so often before it sleeps: a microsecond or two, for a push that is on its
/// way right now. More would take a core from the shards.
const SPIN_COUNT: u32 = 64;
/// The longest sleep; bounds how late a mark comes.
const NAP: Duration = Duration::from_millis(500);

impl<S: CompletionSink, D: Disk> Driver<S, D> {
    /// Runs until stopped, or poisoned.
    pub fn run(mut self, on_poison: OnPoison) -> Result<(), JournalError> {
        self.shared.bell.settle();
        let error = match self.work() {
            Ok(()) => return Ok(()),
            Err(halt) => self.halted(halt),
        };
        if let JournalError::Poisoned { source } = &error {
            // 1 The flag is up. 2 The caller ends the process. Pending completions are dropped
            // unrun with this driver.
            let again = io::Error::new(source.kind(), source.to_string());
            on_poison(JournalError::Poisoned { source: again });
        }
        Err(error)
    }

    /// Says why nothing more is written, to whoever asks.
    pub fn halted(&self, halt: Halt) -> JournalError {
        match halt {
            // Never acknowledged, so nothing is lost by giving up.
            Halt::NoSpace => JournalError::io("stopping: the last records found no space")(
                io::ErrorKind::StorageFull.into(),
            ),
            Halt::Poisoned(source) => {
                self.shared.is_poisoned.store(true, Ordering::Release);
                JournalError::Poisoned { source }
            }
        }
    }

    fn work(&mut self) -> Result<(), Halt> {
        loop {
            match self.turn()? {
                Turn::Busy => {}
                Turn::Idle => self.wait(),
                Turn::NeedsSegment => self.wait_for_segment(),
                Turn::Ended => return Ok(()),
            }
        }
    }

    /// One turn: a frame and its completions, or a mark, or the end.
    pub fn turn(&mut self) -> Result<Turn, Halt> {
        self.fetch_spare();
        let is_stopping = self.shared.is_stopping.load(Ordering::Acquire);
        // Else a frame that found no segment is still in hand.
        if self.pending.is_empty() {
            self.drain();
        }
        if !self.pending.is_empty() {
            return self.commit();
        }
        if is_stopping {
            self.close()?;
            return Ok(Turn::Ended);
        }
        if self.clock.monotonic_ns() >= self.mark_due_ns {
            self.mark(FrameKind::Mark)?;
            return Ok(Turn::Busy);
        }
        Ok(Turn::Idle)
    }

    fn drain(&mut self) {
        let (first_seq, count) = (self.core.next_seq(), self.consumers.len());
        self.frame.clear();
        for i in 0..count {
            let consumer = &mut self.consumers[(self.first_consumer + i) % count];
            consumer.drain(&mut self.frame, first_seq, &mut self.pending);
        }
        self.first_consumer = (self.first_consumer + 1) % count.max(1);
    }

    fn commit(&mut self) -> Result<Turn, Halt> {
        if planted::is(Bug::AnswerBeforeSync) && self.core.fits(self.frame.record_bytes()) {
            self.complete();
        }
        if !self.frame.is_empty() {
            if !self.append(FrameKind::Records)? {
                return Ok(Turn::NeedsSegment);
            }
            self.shared.durable.advance(self.core.durable_seq());
            self.mark_due_ns = self.due_in(self.marks.prove_after);
        }
        crash_point!(CrashPoint::JournalBeforeCompletions);
        self.complete();
        crash_point!(CrashPoint::JournalAfterCompletions);
        Ok(Turn::Busy)
    }

    fn complete(&mut self) {
        let count = self.pending.len() as u64;
        for (item, mut seq) in self.pending.drain(..) {
            if planted::is(Bug::CutOfWholeFrame) {
                seq = self.core.durable_seq();
            }
            self.sink.complete(item, seq);
        }
        self.sink.flush();
        self.shared.stats.completion_count.fetch_add(count, Ordering::Relaxed);
    }

    /// Writes the frame; `false` where there is no segment to write it to. Nothing has happened
    /// then.
    fn append(&mut self, kind: FrameKind) -> Result<bool, Halt> {
        let segment = self.core.segment();
        let first_seq = self.core.next_seq();
        let began_ns = self.clock.monotonic_ns();
        match self.core.append(&mut self.frame, kind, self.clock.stamp()) {
            Ok(()) => {}
            Err(AppendError::Failed(e)) => return Err(Halt::Poisoned(e)),
            Err(AppendError::SegmentFull) if self.shared.is_stopping.load(Ordering::Acquire) => {
                return Err(Halt::NoSpace);
            }
            Err(AppendError::SegmentFull) => return Ok(false),
        }
        let took_ns = self.clock.monotonic_ns() - began_ns;
        let bytes = frame_len(self.frame.record_bytes());
        self.shared.stats.frame(bytes, self.frame.record_count(), took_ns);
        if self.core.segment() != segment {
            self.shared.stats.rotation_count.fetch_add(1, Ordering::Relaxed);
            self.gauge.add_segment();
            self.tell(FilesJob::Began { segment: self.core.segment(), first_seq });
            self.ask_for_spare();
        }
        Ok(true)
    }

    fn wait_for_segment(&mut self) {
        let spares = &self.spares;
        let mut spare = None;
        self.shared.bell.wait(
            || {
                spare = spares.try_recv().ok();
                spare.is_none()
            },
            NAP,
        );
        if let Some(spare) = spare {
            self.take_spare(spare);
        }
    }

    /// A frame without records, where one fits in without waiting for a segment.
    fn mark(&mut self, kind: FrameKind) -> Result<(), Halt> {
        self.mark_due_ns = self.due_in(self.marks.keep_time_every);
        self.frame.clear();
        if self.core.fits(0) {
            let is_written = self.append(kind)?;
            assert!(is_written, "it fits");
        }
        Ok(())
    }

    fn close(&mut self) -> Result<(), Halt> {
        self.mark(FrameKind::Closing)?;
        crash_point!(CrashPoint::JournalAfterClose);
        Ok(())
    }

    fn wait(&self) {
        for _ in 0..SPIN_COUNT {
            if !self.is_idle() {
                return;
            }
            std::hint::spin_loop();
        }
        let due_in = self.mark_due_ns.saturating_sub(self.clock.monotonic_ns());
        let nap = NAP.min(Duration::from_nanos(due_in));
        self.shared.bell.wait(|| self.is_idle(), nap);
    }

    fn is_idle(&self) -> bool {
        self.consumers.iter().all(Consumer::is_empty)
            && !self.shared.is_stopping.load(Ordering::Acquire)
    }

    fn fetch_spare(&mut self) {
        if self.is_spare_asked
            && let Ok(spare) = self.spares.try_recv()
        {
            self.take_spare(spare);
        }
    }

    fn take_spare(&mut self, spare: Prepared<D::File>) {
        self.is_spare_asked = false;
        self.core.offer_spare(spare);
    }

    /// The first mark is due so long from now.
    pub fn keep_time_from_now(&mut self) {
        self.mark_due_ns = self.due_in(self.marks.keep_time_every);
    }

    /// Asks for the next segment, if none is ready or on its way.
    pub fn ask_for_spare(&mut self) {
        if !self.core.has_spare() && !self.is_spare_asked {
            self.is_spare_asked = true;
            self.tell(FilesJob::Prepare(self.core.next_segment()));
        }
    }

    fn tell(&self, job: FilesJob) {
        // Two jobs per segment, and the next segment waits for the first of them: room enough.
        assert!(self.jobs.try_send(job).is_ok(), "the thread journal-files lives, with room");
    }

    fn due_in(&self, span: Duration) -> u64 {
        let ns = u64::try_from(span.as_nanos()).unwrap_or(u64::MAX);
        self.clock.monotonic_ns().saturating_add(ns)
    }
}
