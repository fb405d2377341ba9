//! The gate: whether the node takes commands now, decided before any queue is touched.

use std::sync::atomic::{AtomicU8, Ordering};

use crate::kernel::command::Command;

/// Why the node takes no command now. Each is a 503 with Retry-After.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Unavailable {
    /// A queue is full.
    Overloaded,
    /// The node is on its way down, or not yet up.
    Draining,
    /// The journal's disk bound is reached.
    JournalFull,
    /// The stock authority does not answer: whether something was done is found out later.
    StockUnreachable,
}

impl Unavailable {
    /// The API's `code` and the metrics' `outcome`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Overloaded => "overloaded",
            Self::Draining => "draining",
            Self::JournalFull => "journal-full",
            Self::StockUnreachable => "stock-unreachable",
        }
    }
}

/// What the node accepts, from most to least.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub enum Admission {
    All = 0,
    /// First disk watermark: no new redemptions, everything else.
    NoNewRedemptions = 1,
    /// Second disk watermark: nothing that writes; answers to known keys are still given.
    ReadsOnly = 2,
    /// Recovering, or draining before the end.
    Nothing = 3,
}

/// The node's admission; read by every request, written by start, disk watch and drain.
pub struct Gate {
    /// `Relaxed`: a request that still sees the older value is one that came a moment earlier.
    admission: AtomicU8,
}

impl Default for Gate {
    fn default() -> Self {
        Self { admission: AtomicU8::new(Admission::Nothing as u8) }
    }
}

impl Gate {
    pub fn set(&self, admission: Admission) {
        self.admission.store(admission as u8, Ordering::Relaxed);
    }

    pub fn admission(&self) -> Admission {
        match self.admission.load(Ordering::Relaxed) {
            0 => Admission::All,
            1 => Admission::NoNewRedemptions,
            2 => Admission::ReadsOnly,
            _ => Admission::Nothing,
        }
    }

    /// Lets a command in or says why not.
    ///
    /// With a full disk a redemption is not turned away here: its key may be known. The HTTP
    /// layer asks by [`Command::Recall`] instead, and says `journal-full` only to new ones.
    pub fn admit(&self, command: &Command) -> Result<(), Unavailable> {
        let (is_new, writes) = match command {
            Command::Redeem { .. } => (true, true),
            Command::ReadAccount { .. }
            | Command::ReadRedemption { .. }
            | Command::ListRedemptions { .. }
            | Command::ReadKey { .. }
            | Command::Recall { .. } => (false, false),
            Command::Confirm { .. }
            | Command::Cancel { .. }
            | Command::Reverse { .. }
            | Command::OpenAccount { .. }
            | Command::Credit { .. }
            | Command::Debit { .. } => (false, true),
        };
        match self.admission() {
            Admission::Nothing => Err(Unavailable::Draining),
            Admission::ReadsOnly if writes => Err(Unavailable::JournalFull),
            Admission::NoNewRedemptions if is_new => Err(Unavailable::JournalFull),
            _ => Ok(()),
        }
    }

    /// The same for a change of sales or stock.
    pub fn admit_control(&self) -> Result<(), Unavailable> {
        match self.admission() {
            Admission::Nothing => Err(Unavailable::Draining),
            Admission::ReadsOnly => Err(Unavailable::JournalFull),
            Admission::NoNewRedemptions | Admission::All => Ok(()),
        }
    }
}
