//! Units held, confirmed and retired per item, as shards publish them for those who look.
//!
//! Each shard owns a column and stores its counts after a batch; a reader adds the columns up.
//! The figures of one instant may be a batch apart between shards. Nothing decides by them.

use std::sync::RwLock;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::kernel::slot::ItemCounts;
use crate::units::ItemIndex;

#[derive(Default)]
struct Cell {
    held: AtomicU64,
    confirmed: AtomicU64,
    retired: AtomicU64,
}

/// A column per shard.
pub struct UnitGauges {
    columns: Box<[RwLock<Vec<Cell>>]>,
}

impl UnitGauges {
    pub fn new(shard_count: usize) -> Self {
        Self { columns: (0..shard_count).map(|_| RwLock::default()).collect() }
    }

    /// Thread: the shard of the column. The lock is contended only while the column grows.
    pub fn publish(&self, shard: usize, counts: &[ItemCounts]) {
        let column = &self.columns[shard];
        if column.read().expect("no holder panics").len() < counts.len() {
            column.write().expect("no holder panics").resize_with(counts.len(), Cell::default);
        }
        for (cell, count) in column.read().expect("no holder panics").iter().zip(counts) {
            cell.held.store(count.held, Ordering::Relaxed);
            cell.confirmed.store(count.confirmed, Ordering::Relaxed);
            cell.retired.store(count.retired, Ordering::Relaxed);
        }
    }

    pub fn item(&self, item: ItemIndex) -> ItemCounts {
        let mut sum = ItemCounts::default();
        for column in &self.columns {
            if let Some(cell) = column.read().expect("no holder panics").get(item.get() as usize) {
                sum.add(&ItemCounts {
                    held: cell.held.load(Ordering::Relaxed),
                    confirmed: cell.confirmed.load(Ordering::Relaxed),
                    retired: cell.retired.load(Ordering::Relaxed),
                });
            }
        }
        sum
    }
}
