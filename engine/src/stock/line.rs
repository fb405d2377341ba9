//! Stock lines: the units of an item that this node may sell now, taken by any shard.
//!
//! One cache line per item holds nothing but the free units, because every shard's
//! compare-and-swap lands there. What is counted beside it lives on a line of its own.
//!
//! Invariants: `free` falls before the record that uses the units is written, and rises only from
//! a durable record (a completion, a grant, the start). So the line may understate what the
//! journal proves free, and never overstates it.

use std::sync::OnceLock;
#[cfg(not(loom))]
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use crossbeam::utils::CachePadded;
#[cfg(loom)] // engine/tests/loom.rs compiles this very file, and walks every interleaving
use loom::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use crate::units::{ItemIndex, Quantity, TakeUnits};

/// The free units of one item on this node.
#[derive(Debug, Default)]
pub struct StockLine {
    free: AtomicU64,
}

impl StockLine {
    /// Takes `quantity` units, or none.
    ///
    /// Ordering: the counter guards nothing but itself. Units enter it with `Release` after their
    /// record is durable, and leave it with `Acquire`; the partner of each is the other.
    pub fn try_take(&self, quantity: u64) -> bool {
        let mut free = self.free.load(Ordering::Relaxed);
        while let Some(rest) = free.checked_sub(quantity) {
            match self.swap(free, rest) {
                Ok(()) => return true,
                Err(now) => free = now,
            }
        }
        false
    }

    /// Takes as many as there are, at most `quantity`; gives the number taken.
    pub fn take_up_to(&self, quantity: u64) -> u64 {
        let mut free = self.free.load(Ordering::Relaxed);
        loop {
            let taken = free.min(quantity);
            match self.swap(free, free - taken) {
                Ok(()) => return taken,
                Err(now) => free = now,
            }
        }
    }

    fn swap(&self, free: u64, rest: u64) -> Result<(), u64> {
        self.free
            .compare_exchange_weak(free, rest, Ordering::Acquire, Ordering::Relaxed)
            .map(|_| ())
    }

    /// Lets units in, whose record is durable.
    pub fn give_back(&self, quantity: u64) {
        let before = self.free.fetch_add(quantity, Ordering::Release);
        assert!(before.checked_add(quantity).is_some(), "a line never holds 2^64 units");
    }

    pub fn free(&self) -> u64 {
        self.free.load(Ordering::Relaxed)
    }
}

/// What is counted beside a line; nothing on the path of a decision reads it.
#[derive(Debug, Default)]
struct Counts {
    /// Units of durable confirmed redemptions. Only completions write it.
    confirmed_durable: AtomicI64,
    /// Units in the sale.
    total: AtomicU64,
}

/// A line and its counts.
#[derive(Debug, Default)]
struct Shelf {
    line: CachePadded<StockLine>,
    counts: CachePadded<Counts>,
}

/// Lines per block; blocks are made when their first item is, and never move.
const BLOCK_LEN: usize = 256;
/// The largest number of items on a node.
pub const ITEM_COUNT_MAX: usize = 1 << 16;

/// All lines of a node, by item. Grows without moving a line, so shards hold no lock.
pub struct StockLines {
    blocks: Box<[OnceLock<Box<[Shelf]>>]>,
}

impl Default for StockLines {
    fn default() -> Self {
        Self { blocks: (0..ITEM_COUNT_MAX / BLOCK_LEN).map(|_| OnceLock::new()).collect() }
    }
}

impl StockLines {
    fn shelf(&self, item: ItemIndex) -> &Shelf {
        let index = item.get() as usize;
        assert!(index < ITEM_COUNT_MAX, "items are bounded where they are defined");
        let block = self.blocks[index / BLOCK_LEN]
            .get_or_init(|| (0..BLOCK_LEN).map(|_| Shelf::default()).collect());
        &block[index % BLOCK_LEN]
    }

    pub fn line(&self, item: ItemIndex) -> &StockLine {
        &self.shelf(item).line
    }

    /// Sets the units in the sale; a raised total starts a new stock generation.
    ///
    /// Thread: control, once the record that changes it is durable, and *before* the new units
    /// enter the line: no "sold out" is final while units are on their way in.
    pub fn set_total(&self, item: ItemIndex, total: u64) {
        self.shelf(item).counts.total.store(total, Ordering::Release);
    }

    pub fn total(&self, item: ItemIndex) -> u64 {
        self.shelf(item).counts.total.load(Ordering::Relaxed)
    }

    /// Counts durable confirmed units; negative where a reversal gave units back.
    ///
    /// Thread: the journal's completions, and the start.
    pub fn confirm_durable(&self, item: ItemIndex, quantity: i64) {
        self.shelf(item).counts.confirmed_durable.fetch_add(quantity, Ordering::AcqRel);
    }

    pub fn confirmed_durable(&self, item: ItemIndex) -> i64 {
        self.shelf(item).counts.confirmed_durable.load(Ordering::Relaxed)
    }

    /// Whether no unit of the item can come back: its durable confirmed units are its total.
    ///
    /// Asked anew each time, and never stored: a flag set from these two counts by one thread
    /// could be overtaken by the other's change, and stay (engine/tests/loom.rs shows it).
    pub fn is_sold_out_finally(&self, item: ItemIndex) -> bool {
        let counts = &self.shelf(item).counts;
        let confirmed = counts.confirmed_durable.load(Ordering::Acquire);
        let total = counts.total.load(Ordering::Acquire);
        total > 0 && u64::try_from(confirmed) == Ok(total)
    }
}

impl TakeUnits for StockLines {
    fn try_take(&self, item: ItemIndex, quantity: Quantity) -> bool {
        self.line(item).try_take(u64::from(quantity.get()))
    }
}
