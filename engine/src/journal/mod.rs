//! The journal: every record durable, in order, many to a sync.
//!
//! It sees bytes and sequence numbers only. Bytes of records come from the shards' rings
//! ([`ring`]), the thread `journal` ([`driver`]) builds one frame of all that is there, writes it
//! durably, publishes the durable sequence number, and runs the completions that came with the
//! records, in order. Reading it from top to bottom: [`format`] the bytes, [`disk`] and [`sim`]
//! what they are kept on, [`recovery`] what opening decides, [`core`] the state machine,
//! [`driver`] the thread, [`tail`] the readers, [`snapshot`] and [`lifetime`] what lets old
//! segments go.

pub mod buffer;
pub mod core;
pub mod disk;
pub mod doorbell;
pub mod driver;
pub mod error;
pub mod files;
pub mod format;
pub mod inspect;
pub mod lifetime;
pub mod lock;
pub mod open;
pub mod parts;
pub mod reader;
pub mod recovery;
pub mod ring;
pub mod scan;
pub mod segments;
pub mod sim;
pub mod snapshot;
pub mod stats;
pub mod tail;

pub use driver::{CompletionSink, MarkOptions, OnPoison};
pub use error::JournalError;
pub use files::{DiskGauge, DiskState};
pub use open::{Journal, JournalHandle, JournalOptions, Opened, journal_dir, snapshot_dir};
pub use ring::{Full, Producer, RingOptions};
pub use stats::JournalStats;
pub use tail::{DurableMark, RecordRun, StoppedJournal, Tail};

#[cfg(test)]
mod tests;
