//! Figures that the door shows and does not own: the wiring in `app.rs` supplies them.

use super::histogram::Buckets;
use crate::units::ItemIndex;

/// Units of one item on this node, beside its free ones.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ItemFigures {
    pub held: u64,
    pub confirmed: u64,
}

/// What the journal has done since the start.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct JournalFigures {
    /// Durations of syncs, in nanoseconds.
    pub syncs: Buckets,
    /// Sizes of frames, in bytes.
    pub frames: Buckets,
    pub bytes_written: u64,
    pub records_written: u64,
    /// Records that are handed over and not durable yet.
    pub lag_records: u64,
    /// Bytes of the journal on disk, and their bound.
    pub disk_bytes: u64,
    pub disk_bytes_max: u64,
}

/// How far behind a database shard is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PersistFigures {
    pub database_shard: u16,
    /// Durable records that its watermark has not passed yet.
    pub lag_records: u64,
    /// Units: milliseconds since the watermark last equalled the journal's end.
    pub lag_ms: u64,
    pub dead_letters: u64,
}

/// How shipping to Kafka goes, where that is the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ShipFigures {
    /// Durable records that Kafka does not have yet, as far as is known.
    pub lag_records: u64,
    /// Records handed to Kafka since the start, those that were sent again included.
    pub records: u64,
    /// Partitions that were sent again because a consumer missed records.
    pub rewinds: u64,
    /// Producers made: more than one where one could go on no more.
    pub producers: u64,
    /// Nothing gets through just now.
    pub is_held_up: bool,
}

/// Read at every scrape and every sale's admin view; must not block.
pub trait NodeFigures: Send + Sync {
    fn item(&self, item: ItemIndex) -> ItemFigures;
    fn journal(&self) -> Option<JournalFigures>;
    fn persist(&self) -> Vec<PersistFigures>;
    /// `None` without Kafka.
    fn ship(&self) -> Option<ShipFigures> {
        None
    }
    /// Units: milliseconds since the newest snapshot was taken.
    fn snapshot_age_ms(&self) -> Option<u64>;
    fn member_count(&self) -> Option<u64>;
}

/// No figures: a node before its parts run, and tests of the door alone.
pub struct NoFigures;

impl NodeFigures for NoFigures {
    fn item(&self, _: ItemIndex) -> ItemFigures {
        ItemFigures::default()
    }
    fn journal(&self) -> Option<JournalFigures> {
        None
    }
    fn persist(&self) -> Vec<PersistFigures> {
        Vec::new()
    }
    fn snapshot_age_ms(&self) -> Option<u64> {
        None
    }
    fn member_count(&self) -> Option<u64> {
        None
    }
}
