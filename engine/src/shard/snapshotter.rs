//! The thread `snapshot`: walks all slots now and then, and writes what they report.
//!
//! Shards never wait for it: each encodes a slot between two batches, when the visitor has a
//! credit; the journal gives the slot its cut, and reports it once everything up to the cut is
//! durable. So a snapshot never holds what a power loss could take back.
//!
//! [`Snapshotter`] is one turn of that, and never waits, so a simulation may step it on a thread of
//! its own; [`run`] is the thread that does the waiting.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crossbeam::channel::{Receiver, Select, Sender, TryRecvError, unbounded};

use super::control::{ControlHandle, ControlReport};
use super::inbox::Inboxes;
use super::message::{Message, SlotContent, SlotReport, Visit, Visitor};
use crate::clock::NodeClock;
use crate::journal::JournalError;
use crate::journal::disk::Disk;
use crate::journal::snapshot::{Part, SnapshotHeader, SnapshotInfo, SnapshotWriter};
use crate::journal::tail::DurableMark;
use crate::kernel::record::CONTROL;
use crate::planted::{self, Bug};
use crate::units::{Incarnation, JournalId, NodeTime, SLOT_COUNT, Seq};

/// Slots that may be encoded and not written yet.
const CREDITS: usize = 64;
/// How often the thread looks whether a snapshot is due.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// The longest pause between two snapshots while the journal is short of space.
const PRESSED_MS: u64 = 10_000;

/// When snapshots are taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SnapshotPolicy {
    pub every_ms: u64,
    pub every_records: u64,
}

/// Called with the kept snapshots, oldest first.
pub type OnKept = Box<dyn Fn(&[SnapshotInfo]) + Send>;

/// Whether the journal is short of space.
pub type IsPressed = Box<dyn Fn() -> bool + Send>;

/// What the thread is made of.
pub struct SnapshotterParts<D: Disk> {
    pub disk: D,
    pub journal: JournalId,
    pub incarnation: Incarnation,
    pub inboxes: Arc<Inboxes>,
    pub control: ControlHandle,
    pub clock: Arc<NodeClock>,
    pub durable: Arc<DurableMark>,
    pub policy: SnapshotPolicy,
    /// The durable sequence number that the newest snapshot covers.
    pub covered: Seq,
    /// What both kept snapshots cover: behind it segments stay.
    pub covered_twice: Seq,
    pub is_pressed: IsPressed,
    /// Called with the kept snapshots after each new one.
    pub on_kept: OnKept,
    /// Node time of the newest snapshot, for those who look; 0: none.
    pub taken_at: Arc<AtomicU64>,
}

enum Report {
    Slot(SlotReport),
    Control(ControlReport),
}

/// A snapshot on its way.
struct Taking<D: Disk> {
    writer: SnapshotWriter<D>,
    visit: Visit,
    reports: Receiver<Report>,
    /// Held, so that waiting for reports is waiting also where every shard has ended.
    _sender: Sender<Report>,
    missing: usize,
    begun_at: NodeTime,
    /// What was durable then.
    durable: Seq,
}

/// What a turn came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Turn {
    /// There was something to do; there may be more.
    Busy,
    /// Nothing to do until a report comes, or a snapshot is due.
    Idle,
}

/// The thread's state between two turns.
pub struct Snapshotter<D: Disk> {
    parts: SnapshotterParts<D>,
    last_try: NodeTime,
    taking: Option<Taking<D>>,
}

/// Runs until `stop` is dropped or says so. Errors of the disk are logged, and tried again.
pub fn run<D: Disk>(parts: SnapshotterParts<D>, stop: &Receiver<()>) {
    let mut snapshotter = Snapshotter::new(parts);
    while stop.try_recv() == Err(TryRecvError::Empty) {
        if snapshotter.turn() == Turn::Idle {
            snapshotter.wait(stop);
        }
    }
}

impl<D: Disk> Snapshotter<D> {
    pub fn new(parts: SnapshotterParts<D>) -> Self {
        Self { last_try: parts.clock.now(), parts, taking: None }
    }

    pub fn is_taking(&self) -> bool {
        self.taking.is_some()
    }

    /// One turn: a report is written, or a snapshot that is due begins.
    pub fn turn(&mut self) -> Turn {
        if self.taking.is_none() {
            let now = self.parts.clock.now();
            if !is_due(&self.parts, self.last_try, now) {
                return Turn::Idle;
            }
            self.begin();
            return Turn::Busy;
        }
        self.go_on().unwrap_or_else(|error| self.give_up(&error))
    }

    /// Begins a snapshot, whether or not one is due, unless one is on its way.
    pub fn begin(&mut self) {
        if self.taking.is_some() {
            return;
        }
        self.last_try = self.parts.clock.now();
        match begun(&self.parts) {
            Ok(taking) => self.taking = Some(taking),
            Err(error) => {
                self.give_up(&error);
            }
        }
    }

    fn give_up(&mut self, error: &JournalError) -> Turn {
        tracing::warn!(%error, "no snapshot was taken; the next try follows");
        self.taking = None;
        Turn::Busy
    }

    fn go_on(&mut self) -> Result<Turn, JournalError> {
        let taking = self.taking.as_mut().expect("one is on its way");
        let Ok(report) = taking.reports.try_recv() else { return Ok(Turn::Idle) };
        taking.write(report)?;
        if taking.missing > 0 {
            return Ok(Turn::Busy);
        }
        let Taking { writer, begun_at, durable, .. } = self.taking.take().expect("just written to");
        let kept = writer.finish()?;
        (self.parts.covered, self.parts.covered_twice) = (durable, covered_twice(&kept));
        self.parts.taken_at.store(begun_at.get(), Ordering::Relaxed);
        tracing::info!(seq = durable.get(), "snapshot taken");
        (self.parts.on_kept)(&kept);
        Ok(Turn::Busy)
    }

    /// Until there is a report, or time to look again, or a sign to stop.
    fn wait(&self, stop: &Receiver<()>) {
        let mut select = Select::new();
        select.recv(stop);
        if let Some(taking) = &self.taking {
            select.recv(&taking.reports);
        }
        let _ = select.ready_timeout(LOOK_EVERY);
    }
}

impl<D: Disk> Taking<D> {
    fn write(&mut self, report: Report) -> Result<(), JournalError> {
        match report {
            Report::Slot(SlotReport { slot, cut, content: SlotContent::Bytes(bytes) }) => {
                let written = self.writer.part(Part { slot, cut, bytes: &bytes });
                drop(bytes);
                self.visit.give_credit();
                written?;
            }
            Report::Slot(_) => unreachable!("this visitor asks for bytes"),
            Report::Control(ControlReport { cut, bytes, .. }) => {
                self.writer.part(Part { slot: CONTROL, cut, bytes: &bytes })?;
            }
        }
        self.missing -= 1;
        Ok(())
    }
}

/// I9: segments are covered only by *two* snapshots, up to the older one's lowest cut.
pub fn covered_twice(kept: &[SnapshotInfo]) -> Seq {
    match kept {
        [_, newer] if planted::is(Bug::SegmentGoesByNewer) => newer.lowest_cut,
        [older, _] => older.lowest_cut,
        _ => Seq::NONE,
    }
}

/// A snapshot is due until *both* kept ones cover everything, also where nothing new comes: a
/// journal that takes no more writes gets its space back only so [a full node took one snapshot,
/// had nothing to take another of, kept every segment for the older one, and stayed full].
fn is_due<D: Disk>(parts: &SnapshotterParts<D>, last_try: NodeTime, now: NodeTime) -> bool {
    let durable = parts.durable.get();
    let SnapshotPolicy { mut every_ms, every_records } = parts.policy;
    if (parts.is_pressed)() {
        every_ms = every_ms.min(PRESSED_MS);
    }
    let waited_ms = now.get().saturating_sub(last_try.get());
    let new_records = durable.get().saturating_sub(parts.covered.get());
    durable > parts.covered_twice && waited_ms >= every_ms
        || new_records >= every_records && waited_ms >= 1000
}

/// The file is made first: the shards are not asked for what cannot be written.
fn begun<D: Disk>(parts: &SnapshotterParts<D>) -> Result<Taking<D>, JournalError> {
    let header = SnapshotHeader {
        journal: parts.journal,
        incarnation: parts.incarnation,
        stamp: parts.clock.stamp(),
    };
    let (durable, begun_at) = (parts.durable.get(), parts.clock.now());
    let writer = SnapshotWriter::create(&parts.disk, header)?;
    let (sender, reports) = unbounded();
    let visit = visit_all(parts, &sender);
    let missing = SLOT_COUNT + 1;
    Ok(Taking { writer, visit, reports, _sender: sender, missing, begun_at, durable })
}

fn visit_all<D: Disk>(parts: &SnapshotterParts<D>, sender: &Sender<Report>) -> Visit {
    let slots = sender.clone();
    let visit = Visit::new(Visitor::new(true, CREDITS, move |report| {
        // A snapshot that was given up hears no more.
        let _ = slots.send(Report::Slot(report));
    }));
    for inbox in parts.inboxes.iter() {
        inbox.send(Message::Visit(visit.visitor()));
    }
    let control = sender.clone();
    parts.control.visit(move |report| {
        let _ = control.send(Report::Control(report));
    });
    visit
}
