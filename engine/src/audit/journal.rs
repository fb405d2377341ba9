//! The journal as the auditor reads it: from any record on, as often as it likes.

use thiserror::Error;

use super::model::Place;
use crate::kernel::record::Record;
use crate::units::{Incarnation, JournalId, Seq, Slot};

/// The journal could not be read, so nothing can be said.
#[derive(Error, Debug)]
#[error("{0}")]
pub struct CannotRead(pub String);

/// What a journal holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bounds {
    pub journal: JournalId,
    /// The first record still there, or the next to come.
    pub first: Seq,
    /// The last one; that is how far the audit looks.
    pub last: Seq,
    /// The last opening's.
    pub incarnation: Incarnation,
}

/// Sees a record: its place, its slot, itself, its bytes.
pub type See<'a> = dyn FnMut(Place, Slot, &Record, &[u8]) + 'a;

/// A journal under audit.
pub trait Journal {
    fn bounds(&self) -> Bounds;

    /// Shows every record from `from` to the last one, in order. What is no record is passed
    /// over.
    fn each(&self, from: Seq, see: &mut See<'_>) -> Result<(), CannotRead>;

    /// What the readings so far found to be no record, and where.
    fn flaws(&self) -> Vec<(Seq, String)>;
}
