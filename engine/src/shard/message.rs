//! Messages from the control and snapshot threads to a shard: few, in order, never refused.

use std::fmt;
use std::sync::Arc;

use super::catalog::SaleEntry;
use crate::kernel::record::SaleChange;
use crate::kernel::state::SlotTotals;
use crate::units::{SaleIndex, Seq, Slot};

/// Called on the journal's thread once everything that the shard did before it is durable.
pub type Acknowledge = Box<dyn FnOnce(Seq) + Send>;

/// A slot as it stands at `cut`: every record of the slot up to `cut` is in it, none after.
pub struct SlotReport {
    pub slot: Slot,
    pub cut: Seq,
    pub digest: u128,
    pub totals: SlotTotals,
    /// Empty where only figures were asked for.
    pub bytes: Vec<u8>,
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
    Visit { with_bytes: bool, visit: Arc<dyn Fn(SlotReport) + Send + Sync> },
    /// Finish what is in the inbox, then end.
    Stop,
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Define(..) => "Define",
            Self::Change(..) => "Change",
            Self::DropKeys(..) => "DropKeys",
            Self::Visit { .. } => "Visit",
            Self::Stop => "Stop",
        })
    }
}
