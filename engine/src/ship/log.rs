//! The log: what `persist` reads. Two implementations: the journal itself, tailed (`tail`), and
//! a Kafka topic.

use std::ops::Range;

use thiserror::Error;

use super::gap::{Step, StepKind};
use super::partition::Partition;
use crate::units::{Incarnation, JournalId, NodeTime, Seq};

/// One record, where it came from, and what was before it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LogRecord {
    pub partition: Partition,
    pub journal: JournalId,
    pub incarnation: Incarnation,
    pub seq: Seq,
    /// No record of this journal and partition lies between this and `seq`: the predecessor, or
    /// where the log began to read.
    pub prev_seq: Seq,
    /// When its frame was written.
    pub node_time: NodeTime,
    /// Where the log is read on behind it, if the log counts by offsets of its own.
    pub next: Option<LogOffset>,
    /// Its bytes in the batch.
    range: Range<usize>,
}

/// A place in one partition of a log that counts by itself: a Kafka offset. The store keeps it
/// beside the watermarks, in the same transaction. Only a hint where to read on from: what was
/// applied is what the watermarks say.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct LogOffset(i64);

impl LogOffset {
    pub const fn new(raw: i64) -> Self {
        Self(raw)
    }
    pub const fn get(self) -> i64 {
        self.0
    }
}

/// "Complete through S": of this journal, everything up to there has come by in this partition.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mark {
    pub partition: Partition,
    pub journal: JournalId,
    pub incarnation: Incarnation,
    /// The partition's last record at or below `through`, or where the log began to read.
    pub prev_seq: Seq,
    pub through: Seq,
    pub node_time: NodeTime,
    /// As [`LogRecord::next`].
    pub next: Option<LogOffset>,
}

impl LogRecord {
    pub fn step(&self) -> Step {
        let Self { incarnation, prev_seq, seq, .. } = *self;
        Step { incarnation, prev_seq, seq, kind: StepKind::Record }
    }
}

impl Mark {
    pub fn step(&self) -> Step {
        let Self { incarnation, prev_seq, through, .. } = *self;
        Step { incarnation, prev_seq, seq: through, kind: StepKind::Mark }
    }
}

/// Records in the log's order, then the marks that hold behind them. Reused from poll to poll.
#[derive(Debug, Default)]
pub struct LogBatch {
    pub records: Vec<LogRecord>,
    pub marks: Vec<Mark>,
    bytes: Vec<u8>,
}

impl LogBatch {
    pub fn clear(&mut self) {
        self.records.clear();
        self.marks.clear();
        self.bytes.clear();
    }
    pub fn is_empty(&self) -> bool {
        self.records.is_empty() && self.marks.is_empty()
    }
    /// The encoded record.
    pub fn bytes_of(&self, record: &LogRecord) -> &[u8] {
        &self.bytes[record.range.clone()]
    }
    /// Bytes of all records.
    pub fn byte_count(&self) -> usize {
        self.bytes.len()
    }
    /// Adds a record that came at `place`.
    pub fn push(&mut self, partition: Partition, place: Place, prev_seq: Seq, bytes: &[u8]) {
        self.push_at(partition, place, prev_seq, None, bytes);
    }
    /// The same, of a log that counts by offsets.
    pub fn push_at(
        &mut self,
        partition: Partition,
        place: Place,
        prev_seq: Seq,
        next: Option<LogOffset>,
        bytes: &[u8],
    ) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(bytes);
        let Place { journal, incarnation, seq, node_time } = place;
        let range = start..self.bytes.len();
        self.records.push(LogRecord {
            partition,
            journal,
            incarnation,
            seq,
            prev_seq,
            node_time,
            next,
            range,
        });
    }
}

/// A record's place: which journal's which record, written when.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    pub journal: JournalId,
    pub incarnation: Incarnation,
    pub seq: Seq,
    pub node_time: NodeTime,
}

/// How far a log goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Head {
    /// The last record there is.
    pub seq: Seq,
    /// When it was written.
    pub node_time: NodeTime,
}

/// What one poll found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Polled {
    /// There is nothing more just now.
    pub caught_up: bool,
    /// Which partitions are read here has changed: the watermarks and offsets must be read from
    /// the store before anything of the batch is judged. The batch is empty then.
    pub must_reread: bool,
}

/// The log could not be read. Nothing is skipped: the poll is made again later.
#[derive(Error, Debug)]
pub enum LogError {
    #[error("reading the log at {seq}: {source}")]
    Read { seq: Seq, source: Box<dyn std::error::Error + Send + Sync> },
    #[error("the log no longer has {wanted}: it begins at {first_kept}")]
    Gone { wanted: Seq, first_kept: Seq },
    #[error("what stands at {seq} in the log is no record: {reason}")]
    Malformed { seq: Seq, reason: String },
}

/// A consumer's end of the log.
pub trait Log: Send {
    /// Fills `batch`, cleared before, with up to `max_records` records, and marks behind them.
    fn poll(&mut self, max_records: usize, batch: &mut LogBatch) -> Result<Polled, LogError>;

    /// Sends one partition of one journal again from the record behind `to` on; the other
    /// partitions go on where they are. A `to` that lies ahead skips what is in between.
    fn rewind(&mut self, journal: JournalId, partition: Partition, to: Seq);

    /// Sends nothing more of one partition of one journal, until it is rewound.
    fn hold_back(&mut self, journal: JournalId, partition: Partition) {
        self.rewind(journal, partition, Seq::new(u64::MAX - 1));
    }

    /// Reads these partitions, and no others, on from where the store says that it had read to;
    /// after every time that the store was asked. One without an offset begins at the log's
    /// beginning.
    fn resume(&mut self, from: &[(Partition, Option<LogOffset>)]) {
        let _ = from;
    }

    /// What the offsets count in: the topic's name; empty for a log that counts by `seq`.
    fn topic(&self) -> String {
        String::new()
    }

    /// The journal that all records come from; `None` where there may be several.
    fn journal(&self) -> Option<JournalId>;

    /// How far the log goes, to tell the lag.
    fn head(&self) -> Head;
}
