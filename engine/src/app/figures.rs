//! What the door shows of the parts behind it: metrics, and units in the operators' view.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use crate::clock::NodeClock;
use crate::journal::disk::Disk;
use crate::journal::files::DiskGauge;
use crate::journal::open::JournalHandle;
use crate::journal::stats::{BucketCounts, JournalStats};
use crate::journal::tail::DurableMark;
use crate::persist::status::PersistStatus;
use crate::ship::kafka::driver::ShipStatus;
use crate::stock::gauges::{LeaseBoard, LeaseFigures, UnitGauges};
use crate::stock::redis::stats::RedisStats;
use crate::telemetry::figures::{
    ItemFigures, JournalFigures, NodeFigures, PersistFigures, ShipFigures, StockRedisFigures,
};
use crate::telemetry::histogram::Buckets;
use crate::units::ItemIndex;

struct Sources {
    stats: Arc<JournalStats>,
    disk: Arc<DiskGauge>,
    disk_bytes_max: u64,
    durable: Arc<DurableMark>,
    persist: Arc<PersistStatus>,
    gauges: Arc<UnitGauges>,
    snapshot_taken_at: Arc<AtomicU64>,
    clock: Arc<NodeClock>,
    sync_bounds: &'static [u64],
    frame_bounds: &'static [u64],
}

/// Empty until the parts run.
#[derive(Default)]
pub struct Figures {
    sources: OnceLock<Sources>,
    ship: OnceLock<Arc<ShipStatus>>,
    stock_redis: OnceLock<Arc<RedisStats>>,
    leases: OnceLock<Arc<LeaseBoard>>,
}

impl Figures {
    /// Called once, when the parts run.
    pub fn attach<D: Disk>(
        &self,
        journal: &JournalHandle<D>,
        disk_bytes_max: u64,
        persist: &Arc<PersistStatus>,
        gauges: &Arc<UnitGauges>,
        snapshot_taken_at: &Arc<AtomicU64>,
        clock: &Arc<NodeClock>,
    ) {
        let stats = Arc::clone(journal.stats());
        let sources = Sources {
            sync_bounds: bounds_of(&stats.sync_ns.read()),
            frame_bounds: bounds_of(&stats.frame_bytes.read()),
            stats,
            disk: Arc::clone(journal.gauge()),
            disk_bytes_max,
            durable: Arc::clone(journal.durable()),
            persist: Arc::clone(persist),
            gauges: Arc::clone(gauges),
            snapshot_taken_at: Arc::clone(snapshot_taken_at),
            clock: Arc::clone(clock),
        };
        assert!(self.sources.set(sources).is_ok(), "a node starts once");
    }

    /// Called once, where Kafka is the log.
    pub fn attach_ship(&self, ship: &Arc<ShipStatus>) {
        assert!(self.ship.set(Arc::clone(ship)).is_ok(), "a node starts once");
    }

    /// Called once, when the parts run.
    pub fn attach_leases(&self, board: &Arc<LeaseBoard>) {
        assert!(self.leases.set(Arc::clone(board)).is_ok(), "a node starts once");
    }

    /// Called once, where Redis is the stock authority.
    pub fn attach_stock_redis(&self, stats: &Arc<RedisStats>) {
        assert!(self.stock_redis.set(Arc::clone(stats)).is_ok(), "a node starts once");
    }
}

/// The finite bounds; made once per node, and there as long as the process is.
fn bounds_of(counts: &BucketCounts) -> &'static [u64] {
    let bounds = counts.counts.iter().map(|(bound, _)| *bound).filter(|bound| *bound < u64::MAX);
    Vec::leak(bounds.collect())
}

fn buckets(bounds: &'static [u64], read: &BucketCounts) -> Buckets {
    Buckets { bounds, counts: read.counts.iter().map(|(_, count)| *count).collect(), sum: read.sum }
}

impl NodeFigures for Figures {
    fn item(&self, item: ItemIndex) -> ItemFigures {
        let counts = self.sources.get().map(|s| s.gauges.item(item)).unwrap_or_default();
        ItemFigures { held: counts.held, confirmed: counts.confirmed }
    }

    fn journal(&self) -> Option<JournalFigures> {
        let s = self.sources.get()?;
        let records_written = s.stats.record_count.load(Ordering::Relaxed);
        Some(JournalFigures {
            syncs: buckets(s.sync_bounds, &s.stats.sync_ns.read()),
            frames: buckets(s.frame_bounds, &s.stats.frame_bytes.read()),
            bytes_written: s.stats.byte_count.load(Ordering::Relaxed),
            records_written,
            lag_records: s.gauges.records().saturating_sub(records_written),
            disk_bytes: s.disk.used_bytes(),
            disk_bytes_max: s.disk_bytes_max,
        })
    }

    fn persist(&self) -> Vec<PersistFigures> {
        let Some(s) = self.sources.get() else { return Vec::new() };
        let end = s.durable.get().get();
        let figures = s.persist.shards().map(|(shard, status)| {
            let lag_records = end.saturating_sub(s.persist.shard_through(shard).get());
            let lag_ms = if lag_records == 0 { 0 } else { status.behind_ms(s.clock.now()) };
            PersistFigures {
                database_shard: u16::from(shard.get()),
                lag_records,
                lag_ms,
                dead_letters: status.letters.load(Ordering::Relaxed),
            }
        });
        figures.collect()
    }

    fn lease(&self, item: ItemIndex) -> Option<LeaseFigures> {
        self.leases.get()?.item(item)
    }

    fn stock_redis(&self) -> Option<StockRedisFigures> {
        self.stock_redis.get().map(|stats| stats.read())
    }

    fn ship(&self) -> Option<ShipFigures> {
        let ship = self.ship.get()?;
        let durable = self.sources.get()?.durable.get().get();
        Some(ShipFigures {
            lag_records: durable.saturating_sub(ship.acked_through().get()),
            records: ship.records.load(Ordering::Relaxed),
            rewinds: ship.rewinds.load(Ordering::Relaxed),
            producers: ship.producers.load(Ordering::Relaxed),
            partitions_gone: ship.partitions_gone.load(Ordering::Relaxed),
            is_held_up: ship.last_error().is_some(),
        })
    }

    fn snapshot_age_ms(&self) -> Option<u64> {
        let s = self.sources.get()?;
        let taken_at = s.snapshot_taken_at.load(Ordering::Relaxed);
        (taken_at > 0).then(|| s.clock.now().get().saturating_sub(taken_at))
    }

    fn member_count(&self) -> Option<u64> {
        self.sources.get().map(|s| s.gauges.members())
    }
}
