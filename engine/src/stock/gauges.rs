//! Units held, confirmed and retired per item, accounts, and records handed to the journal, as
//! their threads publish them for those who look.
//!
//! Each shard owns a column and stores its counts after a batch; a reader adds the columns up.
//! The control thread has the last column, for its records alone. The figures of one instant may
//! be a batch apart between shards. Nothing decides by them.

use std::collections::HashMap;
use std::sync::RwLock;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam::utils::CachePadded;

use crate::kernel::slot::ItemCounts;
use crate::units::ItemIndex;

#[derive(Default)]
struct Cell {
    held: AtomicU64,
    confirmed: AtomicU64,
    retired: AtomicU64,
}

#[derive(Default)]
struct Column {
    items: RwLock<Vec<Cell>>,
    members: AtomicU64,
    /// Written for every batch, by the column's thread alone.
    records: AtomicU64,
}

pub use crate::telemetry::figures::LeaseFigures;

/// All leases, as control writes them and anyone reads them.
#[derive(Default)]
pub struct LeaseBoard {
    items: RwLock<HashMap<ItemIndex, LeaseFigures>>,
}

impl LeaseBoard {
    /// Thread: control.
    pub fn publish(&self, item: ItemIndex, figures: LeaseFigures) {
        let is_known = |known: &LeaseFigures| *known == figures;
        let items = self.items.read().expect("no holder panics");
        if items.get(&item).is_some_and(is_known) {
            return;
        }
        drop(items);
        self.items.write().expect("no holder panics").insert(item, figures);
    }

    pub fn item(&self, item: ItemIndex) -> Option<LeaseFigures> {
        self.items.read().expect("no holder panics").get(&item).copied()
    }
}

/// A column per shard, and one for the control thread.
pub struct UnitGauges {
    columns: Box<[CachePadded<Column>]>,
}

impl UnitGauges {
    pub fn new(shard_count: usize) -> Self {
        Self { columns: (0..=shard_count).map(|_| CachePadded::default()).collect() }
    }

    /// The control thread's column.
    pub fn control(&self) -> usize {
        self.columns.len() - 1
    }

    /// Counts records that go to the journal. Thread: the column's.
    pub fn add_records(&self, column: usize, count: u32) {
        // Relaxed: one writer, and readers that need no exact moment.
        self.columns[column].records.fetch_add(u64::from(count), Ordering::Relaxed);
    }

    /// Records handed to the journal since the start.
    pub fn records(&self) -> u64 {
        self.columns.iter().map(|column| column.records.load(Ordering::Relaxed)).sum()
    }

    /// Counts accounts that a shard has. Thread: the shard of the column.
    pub fn add_members(&self, shard: usize, count: u64) {
        self.columns[shard].members.fetch_add(count, Ordering::Relaxed);
    }

    pub fn members(&self) -> u64 {
        self.columns.iter().map(|column| column.members.load(Ordering::Relaxed)).sum()
    }

    /// Thread: the shard of the column. The lock is contended only while the column grows.
    pub fn publish(&self, shard: usize, counts: &[ItemCounts]) {
        let column = &self.columns[shard].items;
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
            let items = column.items.read().expect("no holder panics");
            if let Some(cell) = items.get(item.get() as usize) {
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
