//! The thread `snapshot`: walks all slots now and then, and writes what they report.
//!
//! Shards never wait for it: each encodes a slot between two batches, when the visitor has a
//! credit; the journal gives the slot its cut, and reports it once everything up to the cut is
//! durable. So a snapshot never holds what a power loss could take back.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, unbounded};

use super::control::{ControlHandle, ControlReport};
use super::inbox::Inboxes;
use super::message::{Message, SlotContent, SlotReport, Visitor};
use crate::clock::NodeClock;
use crate::journal::JournalError;
use crate::journal::disk::Disk;
use crate::journal::snapshot::{Part, SnapshotHeader, SnapshotInfo, SnapshotWriter};
use crate::journal::tail::DurableMark;
use crate::kernel::record::CONTROL;
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

/// Runs until `stop` is dropped or says so. Errors of the disk are logged, and tried again.
pub fn run<D: Disk>(mut parts: SnapshotterParts<D>, stop: &Receiver<()>) {
    let mut last_try = parts.clock.now();
    loop {
        match stop.recv_timeout(LOOK_EVERY) {
            Err(RecvTimeoutError::Timeout) => {}
            Ok(()) | Err(RecvTimeoutError::Disconnected) => return,
        }
        let now = parts.clock.now();
        if !is_due(&parts, last_try, now) {
            continue;
        }
        last_try = now;
        let durable = parts.durable.get();
        match take(&parts, stop) {
            Ok(Some(kept)) => {
                (parts.covered, parts.covered_twice) = (durable, covered_twice(&kept));
                parts.taken_at.store(now.get(), Ordering::Relaxed);
                tracing::info!(seq = durable.get(), "snapshot taken");
                (parts.on_kept)(&kept);
            }
            Ok(None) => return,
            Err(error) => tracing::warn!(%error, "no snapshot was taken; the next try follows"),
        }
    }
}

/// I9: segments are covered only by *two* snapshots, up to the older one's lowest cut.
pub fn covered_twice(kept: &[SnapshotInfo]) -> Seq {
    if let [older, _] = kept { older.lowest_cut } else { Seq::NONE }
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

/// Takes one snapshot; `None` where the node stops in the middle.
fn take<D: Disk>(
    parts: &SnapshotterParts<D>,
    stop: &Receiver<()>,
) -> Result<Option<Vec<SnapshotInfo>>, JournalError> {
    let (sender, reports) = unbounded();
    let visitor = visit_all(parts, &sender);
    let header = SnapshotHeader {
        journal: parts.journal,
        incarnation: parts.incarnation,
        stamp: parts.clock.stamp(),
    };
    let mut writer = SnapshotWriter::create(&parts.disk, header)?;
    let mut missing = SLOT_COUNT + 1;
    while missing > 0 {
        match reports.recv_timeout(LOOK_EVERY) {
            Ok(Report::Slot(report)) => {
                let SlotReport { slot, cut, content: SlotContent::Bytes(bytes) } = report else {
                    unreachable!("this visitor asks for bytes")
                };
                let written = writer.part(Part { slot, cut, bytes: &bytes });
                drop(bytes);
                visitor.give_credit();
                written?;
                missing -= 1;
            }
            Ok(Report::Control(ControlReport { cut, bytes, .. })) => {
                writer.part(Part { slot: CONTROL, cut, bytes: &bytes })?;
                missing -= 1;
            }
            Err(_) if stop.try_recv().is_ok() => return Ok(None),
            Err(_) => {}
        }
    }
    writer.finish().map(Some)
}

fn visit_all<D: Disk>(parts: &SnapshotterParts<D>, sender: &Sender<Report>) -> Arc<Visitor> {
    let slots = sender.clone();
    let visitor = Arc::new(Visitor::new(true, CREDITS, move |report| {
        // A snapshot that was given up hears no more.
        let _ = slots.send(Report::Slot(report));
    }));
    for inbox in parts.inboxes.iter() {
        inbox.send(Message::Visit(Arc::clone(&visitor)));
    }
    let control = sender.clone();
    parts.control.visit(move |report| {
        let _ = control.send(Report::Control(report));
    });
    visitor
}
