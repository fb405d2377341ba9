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
    /// Units: milliseconds since it last had everything, or since its newest record.
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
    /// Partitions whose database shard lacks records that the journal no longer has.
    pub partitions_gone: u64,
    /// Nothing gets through just now.
    pub is_held_up: bool,
}

/// How calls to Redis go, where that is the stock authority.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StockRedisFigures {
    /// By script.
    pub calls: Vec<(&'static str, u64)>,
    /// Of calls that were answered, in nanoseconds.
    pub durations: Buckets,
    pub errors: u64,
    pub timeouts: u64,
    /// Asks given up because too many waited.
    pub turned_away: u64,
    /// Connections made.
    pub links: u64,
    pub news: u64,
    pub is_up: bool,
}

/// The lease of an item on this node.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LeaseFigures {
    /// `joining`, `rebuilding`, `open`, `ended` or `unreachable`.
    pub phase: &'static str,
    pub is_open: bool,
    /// Whether other nodes may take from the same pool.
    pub is_shared: bool,
    /// Of the pool, as recorded here.
    pub epoch: u32,
    /// Units accepted from the pool and given back to it, cumulative.
    pub granted: u64,
    pub returned: u64,
    /// Units in the pool, and units that others wait for, as last seen.
    pub pool: u64,
    pub wanted: u64,
    /// Asks sent to the stock authority since the start.
    pub asks: u64,
    /// Those that nothing but the time caused.
    pub looks: u64,
    /// How long somebody asked for units and there were none here.
    pub dry_ms: u64,
    /// How often that was, until units came; and how long it took then, at the 99th percentile.
    pub dry_spells: u64,
    pub dry_p99_ms: u64,
}

impl LeaseFigures {
    /// As operators read them over HTTP.
    pub fn fields(&self) -> [(&'static str, u64); 8] {
        [
            ("epoch", u64::from(self.epoch)),
            ("granted", self.granted),
            ("returned", self.returned),
            ("pool", self.pool),
            ("wanted", self.wanted),
            ("asks", self.asks),
            ("dry_spells", self.dry_spells),
            ("dry_p99_ms", self.dry_p99_ms),
        ]
    }
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
    /// How the item's lease stands; `None` before the parts run.
    fn lease(&self, _: ItemIndex) -> Option<LeaseFigures> {
        None
    }
    /// `None` without Redis.
    fn stock_redis(&self) -> Option<StockRedisFigures> {
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
