//! Stock lines: the units of an item that this node may sell now, taken by any shard.
//!
//! One cache line per item holds nothing but the free units, because every shard's
//! compare-and-swap lands there. What is counted beside it lives on a line of its own.
//!
//! Invariants: `free` falls before the record that uses the units is written, and rises only from
//! a durable record (a completion, a grant, the start). So the line may understate what the
//! journal proves free, and never overstates it.

use std::sync::OnceLock;

use crossbeam::utils::CachePadded;

use crate::sync::{AtomicBool, AtomicU64, Ordering};
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

/// What is counted beside a line. Of a decision, only one that finds no unit comes here.
#[derive(Debug, Default)]
struct Counts {
    /// Units of durable confirmed redemptions, those that were reversed included; cumulative, as
    /// the next. Only completions write them.
    confirmed: AtomicU64,
    /// Units of these that were reversed, and can be sold again.
    unconfirmed: AtomicU64,
    /// Units in the sale.
    total: AtomicU64,
    /// Units that other nodes had confirmed when all of the total was; [`UNKNOWN`] while others
    /// may have some to sell, or take some back. A node alone leaves it at 0.
    confirmed_elsewhere: AtomicU64,
    /// Units that are neither here nor confirmed elsewhere, as last heard.
    open_elsewhere: AtomicU64,
    /// The stock generation that `confirmed_elsewhere` is of.
    generation: AtomicU64,
    /// Somebody was refused for want of a unit.
    is_missed: AtomicBool,
    /// The next refusal for want of a unit is told at once.
    is_watched: AtomicBool,
}

/// Told which item was asked for in vain.
type AtMiss = Box<dyn Fn(ItemIndex) + Send + Sync>;

const UNKNOWN: u64 = u64::MAX;

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
    at_miss: OnceLock<AtMiss>,
}

impl Default for StockLines {
    fn default() -> Self {
        let blocks = (0..ITEM_COUNT_MAX / BLOCK_LEN).map(|_| OnceLock::new()).collect();
        Self { blocks, at_miss: OnceLock::new() }
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
        let counts = &self.shelf(item).counts;
        let count = if quantity < 0 { &counts.unconfirmed } else { &counts.confirmed };
        count.fetch_add(quantity.unsigned_abs(), Ordering::AcqRel);
    }

    /// Units confirmed durably, and those of them that were reversed; both cumulative.
    ///
    /// The first is read first: so what is confirmed on balance is never overstated, whatever
    /// happens between the two.
    pub fn settled(&self, item: ItemIndex) -> (u64, u64) {
        let counts = &self.shelf(item).counts;
        let confirmed = counts.confirmed.load(Ordering::Acquire);
        (confirmed, counts.unconfirmed.load(Ordering::Acquire).min(confirmed))
    }

    /// Sets what the pool says of the item beyond this node. `finally`: units confirmed elsewhere,
    /// where with those here they are the total, in this stock generation.
    ///
    /// Thread: control, and the start.
    pub fn set_elsewhere(
        &self,
        item: ItemIndex,
        total: u64,
        finally: Option<u64>,
        open: u64,
        generation: u64,
    ) {
        let counts = &self.shelf(item).counts;
        // The old figure goes before the new total comes; its partner reads them the other way.
        counts.confirmed_elsewhere.store(UNKNOWN, Ordering::Release);
        counts.total.store(total, Ordering::Release);
        counts.open_elsewhere.store(open, Ordering::Relaxed);
        counts.generation.store(generation, Ordering::Release);
        counts.confirmed_elsewhere.store(finally.unwrap_or(UNKNOWN), Ordering::Release);
    }

    /// Units that are neither here nor confirmed elsewhere, as last heard.
    pub fn open_elsewhere(&self, item: ItemIndex) -> u64 {
        self.shelf(item).counts.open_elsewhere.load(Ordering::Relaxed)
    }

    /// Whether somebody was refused for want of a unit since the last call. Thread: control.
    pub fn take_missed(&self, item: ItemIndex) -> bool {
        // Relaxed: a hint, that is looked at every few milliseconds.
        self.shelf(item).counts.is_missed.swap(false, Ordering::Relaxed)
    }

    /// Says what is called, by a shard, at the first refusal of a watched item. Only the first call
    /// counts.
    pub fn call_at_miss(&self, call: impl Fn(ItemIndex) + Send + Sync + 'static) {
        let _ = self.at_miss.set(Box::new(call));
    }

    /// Has the item's next refusal for want of a unit told at once, and only that one: a dry item
    /// costs its shards no more than a look each. Thread: control, of items looked at seldom.
    pub fn watch(&self, item: ItemIndex) {
        self.shelf(item).counts.is_watched.store(true, Ordering::Relaxed);
    }

    /// Notes a refusal. Both flags are written once per look of the control thread, not once per
    /// refusal.
    fn miss(&self, item: ItemIndex, counts: &Counts) {
        if !counts.is_missed.load(Ordering::Relaxed) {
            counts.is_missed.store(true, Ordering::Relaxed);
        }
        let is_watched = counts.is_watched.load(Ordering::Relaxed)
            && counts.is_watched.swap(false, Ordering::Relaxed);
        if is_watched && let Some(call) = self.at_miss.get() {
            call(item);
        }
    }

    /// Whether no unit of the item can come back: its durable confirmed units, here and elsewhere,
    /// are its total.
    ///
    /// Asked anew each time, and never stored: a flag set from these counts by one thread could be
    /// overtaken by another's change, and stay (engine/tests/loom.rs shows it).
    pub fn is_sold_out_finally(&self, item: ItemIndex) -> bool {
        let (confirmed, unconfirmed) = self.settled(item);
        let counts = &self.shelf(item).counts;
        // Whoever sees a new total sees that the old figure of others is gone.
        let total = counts.total.load(Ordering::Acquire);
        let elsewhere = counts.confirmed_elsewhere.load(Ordering::Acquire);
        let is_known = total > 0 && elsewhere != UNKNOWN;
        is_known && (confirmed - unconfirmed).checked_add(elsewhere) == Some(total)
    }
}

impl StockLines {
    /// The stock generation in which no unit of the item can come back, if that is so now.
    pub fn sold_out_generation(&self, item: ItemIndex) -> Option<u64> {
        let generation = || self.shelf(item).counts.generation.load(Ordering::Acquire);
        // One that changes meanwhile may not be the one that was looked at.
        let before = generation();
        (self.is_sold_out_finally(item) && generation() == before).then_some(before)
    }
}

impl TakeUnits for StockLines {
    fn try_take(&self, item: ItemIndex, quantity: Quantity) -> bool {
        let shelf = self.shelf(item);
        let has = shelf.line.try_take(u64::from(quantity.get()));
        if !has {
            self.miss(item, &shelf.counts);
        }
        has
    }
}
