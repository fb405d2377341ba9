//! Messages from the control and snapshot threads to a shard: few, in order, never refused.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::catalog::SaleEntry;
use crate::kernel::record::SaleChange;
use crate::kernel::slot::SlotTotals;
use crate::planted::{self, Bug};
use crate::units::{SaleIndex, Seq, Slot};

/// Called on the journal's thread once everything that the shard did before it is durable.
pub type Acknowledge = Box<dyn FnOnce(Seq) + Send>;

/// A slot as it stands at `cut`: every record of the slot up to `cut` is in it, none after.
pub struct SlotReport {
    pub slot: Slot,
    pub cut: Seq,
    pub content: SlotContent,
}

/// What a visitor asked for.
pub enum SlotContent {
    /// The slot's snapshot form.
    Bytes(Vec<u8>),
    Figures {
        digest: u128,
        totals: Box<SlotTotals>,
    },
}

/// One who wants every slot reported. Reports under way are bounded by credits, so that a slow
/// visitor costs memory for a few slots, and neither a shard nor the journal waits for it.
pub struct Visitor {
    pub with_bytes: bool,
    /// `AcqRel` against itself: a credit given back is the report's memory given back.
    credits: AtomicUsize,
    /// Nobody waits for reports any more. Relaxed: a shard that sees it late reports in vain.
    is_over: AtomicBool,
    /// Called on the journal's thread: must not wait.
    report: Box<dyn Fn(SlotReport) + Send + Sync>,
}

impl Visitor {
    pub fn new(
        with_bytes: bool,
        credits: usize,
        report: impl Fn(SlotReport) + Send + Sync + 'static,
    ) -> Self {
        let (credits, is_over) = (AtomicUsize::new(credits), AtomicBool::new(false));
        Self { with_bytes, credits, is_over, report: Box::new(report) }
    }
    pub fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }
    /// Gives a report's credit back, once its memory is free.
    pub fn give_credit(&self) {
        self.credits.fetch_add(1, Ordering::AcqRel);
    }
    pub fn take_credit(&self) -> bool {
        let taken =
            self.credits.try_update(Ordering::AcqRel, Ordering::Acquire, |n| n.checked_sub(1));
        taken.is_ok()
    }
    pub fn report(&self, report: SlotReport) {
        (self.report)(report);
    }
}

/// The visitor's own end of a visit. Dropped, it ends the visit: whoever gave up, or has all.
///
/// † [A snapshot whose file could not be made left its walk without credits at the head of every
/// shard's walks: no later snapshot came by, no sale's keys were dropped, until a restart.]
pub struct Visit(Arc<Visitor>);

impl Visit {
    pub fn new(visitor: Visitor) -> Self {
        Self(Arc::new(visitor))
    }
    /// For the shards.
    pub fn visitor(&self) -> Arc<Visitor> {
        Arc::clone(&self.0)
    }
    pub fn give_credit(&self) {
        self.0.give_credit();
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        let is_over = !planted::is(Bug::VisitLeftOpen);
        self.0.is_over.store(is_over, Ordering::Relaxed);
    }
}

/// What a shard is told.
pub enum Message {
    /// A sale and its items are known from here on.
    Define(Arc<SaleEntry>, Acknowledge),
    /// Decide by this change from here on, and record that you do.
    Change(SaleIndex, SaleChange, Acknowledge),
    /// Forget the keys of a sale, one slot between two batches.
    DropKeys(SaleIndex, Acknowledge),
    /// Report every slot, one between two batches; with its bytes for a snapshot.
    Visit(Arc<Visitor>),
    /// Finish what is in the inbox, then end.
    Stop,
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Define(..) => "Define",
            Self::Change(..) => "Change",
            Self::DropKeys(..) => "DropKeys",
            Self::Visit(..) => "Visit",
            Self::Stop => "Stop",
        })
    }
}
