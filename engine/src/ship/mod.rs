//! Ship: from the durable journal to a log that `persist` reads.
//!
//! The embedded log is the journal itself, tailed from disk (`tail`); the other is a Kafka topic
//! (`kafka`). What a consumer must do with a record (apply, skip, ask for a rewind, raise an alarm)
//! is the gap rule (`gap`), a state machine without I/O that every log and every store share.
//! `partition` cuts the members into partitions, `holdings` says where those lie.

pub mod frames;
pub mod gap;
pub mod holdings;
pub mod kafka;
pub mod log;
pub mod partition;
pub mod source;
pub mod tail;
