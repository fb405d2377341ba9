//! From what was recovered to what runs: the catalog, the lines, the slots dealt to the shards.

use std::collections::HashSet;
use std::sync::Arc;

use super::catalog::{CatalogView, SaleEntry};
use super::recover::Recovered;
use crate::kernel::catalog::SalePhase;
use crate::kernel::control::ControlState;
use crate::kernel::slot::{ItemCounts, SlotState};
use crate::kernel::slots::States;
use crate::kernel::state::{KernelLimits, ShardState};
use crate::stock::line::StockLines;
use crate::units::{ItemIndex, JournalId, SaleIndex, Slot};

/// The catalog as recovered, and the sale of each item.
pub fn fill_catalog(catalog: &CatalogView, recovered: &Recovered) -> Vec<Arc<SaleEntry>> {
    let mut sale_of = Vec::new();
    for (index, known) in (0u32..).map(SaleIndex::new).zip(recovered.control.sales()) {
        let sale = known.sale.as_ref().clone();
        let entry =
            Arc::new(SaleEntry::new(index, known.first_item, sale, known.phase, known.paused));
        sale_of.extend(entry.items().map(|_| Arc::clone(&entry)));
        catalog.insert(&entry);
    }
    for slot in recovered.slots.iter().flatten() {
        for (item, member) in slot.keyed() {
            sale_of[item.get() as usize].remember_keyed(member);
        }
    }
    sale_of
}

/// An item's free units are derived: granted − returned − Σ(held + confirmed + retired).
///
/// What was confirmed, and reversed since, is counted as it was while the node ran: reversed units
/// that can be sold again on both sides, retired ones as confirmed. So neither sum ever falls, as
/// long as a sale's redemptions are remembered.
pub fn fill_stock(stock: &StockLines, recovered: &Recovered) {
    let items = recovered.control.items();
    let mut counts = vec![ItemCounts::default(); items.len()];
    let mut reversed = vec![0u64; items.len()];
    for slot in recovered.slots.iter().flatten() {
        for (item, of_slot) in slot.item_counts() {
            counts[item.get() as usize].add(&of_slot);
        }
        for (item, units) in slot.reversed_units() {
            reversed[item.get() as usize] += units;
        }
    }
    let sums = counts.iter().zip(&reversed);
    for ((item, known), (counts, reversed)) in (0u32..).map(ItemIndex::new).zip(items).zip(sums) {
        let free = known.here().checked_sub(counts.sum());
        let free = free.expect("I2: a node holds no more units than it was granted");
        let back = reversed.saturating_sub(counts.retired);
        let confirmed = counts.confirmed + counts.retired + back;
        stock.confirm_durable(item, i64::try_from(confirmed).expect("units fit an i64"));
        stock.confirm_durable(item, -i64::try_from(back).expect("units fit an i64"));
        stock.line(item).give_back(free);
    }
}

/// Sales whose keys every slot has forgotten.
pub fn dropped_sales(recovered: &Recovered) -> HashSet<SaleIndex> {
    let sales = (0u32..).map(SaleIndex::new).zip(recovered.control.sales());
    let is_dropped = |sale: SaleIndex| {
        let has_dropped = |slot: &SlotState| slot.dropped_sales().binary_search(&sale).is_ok();
        recovered.slots.iter().all(|slot| slot.as_deref().is_some_and(has_dropped))
    };
    let ended = sales.filter(|(_, known)| known.phase >= SalePhase::Ended);
    ended.map(|(sale, _)| sale).filter(|sale| is_dropped(*sale)).collect()
}

/// Deals the slots out in turn to `count` shards, as
/// [`Inboxes::shard_of`](super::inbox::Inboxes::shard_of) routes to them.
pub fn deal_slots(
    count: usize,
    limits: KernelLimits,
    journal: JournalId,
    control: &ControlState,
    slots: States,
) -> Vec<ShardState> {
    // A node that ended while keys were being dropped goes on so: no slot takes a key of a sale
    // that another slot has begun to forget.
    let mut catalog = control.catalog();
    for sale in slots.iter().flatten().flat_map(|slot| slot.dropped_sales()) {
        catalog.mark_keys_dropped(*sale);
    }
    let mut shards: Vec<ShardState> = (0..count)
        .map(|_| {
            let mut shard = ShardState::new(journal, limits);
            *shard.catalog_mut() = catalog.clone();
            shard
        })
        .collect();
    for (slot, state) in (0..).map(Slot::new).zip(slots) {
        shards[slot.index() % count].adopt_slot(slot, state);
    }
    shards
}
