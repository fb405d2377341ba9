//! A shard's state: the slots it owns, its copy of the catalog, and when its holds end.
//!
//! `decide.rs` holds the decisions. Nothing here does I/O, knows the time, or waits.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::catalog::{Catalog, SalePhase};
use super::effects::Effects;
use super::record::KeysDropped;
use super::slot::{ItemCounts, SlotState};
use super::slots::OwnedSlots;
use crate::units::{
    ItemIndex, JournalId, MemberId, NodeTime, Quantity, SLOT_COUNT, SaleIndex, Slot,
};

/// Bounds that the configuration may set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct KernelLimits {
    /// How many holds of one item a member may give up before further holds are refused.
    /// At most 254.
    pub hold_allowance: u8,
}

impl Default for KernelLimits {
    fn default() -> Self {
        Self { hold_allowance: 5 }
    }
}

/// Commands whose memory is asked for together. One member's line is one page of a table far
/// larger than what the processor's page tables cover. Asked for one at a time, between two
/// decisions, each waits for its own walk through the page tables; asked for in a row, the walks
/// overlap, and with too many in a row they wait for each other (measured at 10 M members: 245 ns
/// a decision for 1, 180 for 8, 230 for 16, of one run each).
pub const PREFETCH_GROUP: usize = 8;

/// When a hold ends, its slot, and its slot sequence number.
pub(super) type Expiry = Reverse<(NodeTime, Slot, u64)>;

/// The state of one shard. One thread owns it.
pub struct ShardState {
    pub(super) journal: JournalId,
    pub(super) limits: KernelLimits,
    pub(super) catalog: Catalog,
    pub(super) slots: OwnedSlots,
    /// By item number, of all owned slots.
    pub(super) counts: Vec<ItemCounts>,
    /// Every open hold, and some that ended otherwise: those are passed over when they come up.
    pub(super) expiries: BinaryHeap<Expiry>,
}

impl ShardState {
    /// A shard without slots and sales.
    ///
    /// Panics: the allowance is above 254, beyond which given-up holds are not counted.
    pub fn new(journal: JournalId, limits: KernelLimits) -> Self {
        assert!(limits.hold_allowance < u8::MAX, "given-up holds are counted to 255");
        Self {
            journal,
            limits,
            catalog: Catalog::default(),
            slots: OwnedSlots::none(),
            counts: Vec::new(),
            expiries: BinaryHeap::new(),
        }
    }

    /// Takes a slot over, empty or recovered. The catalog comes first. The caller marks sales that
    /// any slot has dropped ([`SlotState::dropped_sales`]) in the catalogs of all shards.
    ///
    /// Panics: the slot is owned already, or is another one.
    pub fn adopt_slot(&mut self, slot: Slot, state: Option<Box<SlotState>>) {
        self.slots.adopt(slot, state);
        let Some(state) = self.slots.touched(slot) else { return };
        let counted = state.item_counts();
        for &sale in state.dropped_sales() {
            self.catalog.mark_keys_dropped(sale);
        }
        for redemption in state.redemptions.iter().filter(|r| r.is_open()) {
            let expiry = (redemption.expires_at(), slot, redemption.slot_seq());
            self.expiries.push(Reverse(expiry));
        }
        for (item, counts) in counted {
            self.count_mut(item).add(&counts);
        }
    }

    pub fn catalog(&self) -> &Catalog {
        &self.catalog
    }
    pub fn catalog_mut(&mut self) -> &mut Catalog {
        &mut self.catalog
    }

    /// The owned slots, in the order of their adoption.
    pub fn slots(&self) -> impl Iterator<Item = Slot> {
        self.slots.iter()
    }
    pub fn owns(&self, slot: Slot) -> bool {
        self.slots.owns(slot)
    }
    /// Of the owned slots, those in which something has happened.
    pub fn states(&self) -> impl Iterator<Item = &SlotState> {
        self.slots.states()
    }
    /// One owned slot.
    ///
    /// Panics: another shard owns it.
    pub fn slot(&self, slot: Slot) -> &SlotState {
        self.slots.get(slot)
    }
    /// Units by item number, of all owned slots; items beyond the end have none.
    pub fn item_counts(&self) -> &[ItemCounts] {
        &self.counts
    }

    /// Asks for the memory that commands of a batch will need, ahead of the group that begins at
    /// `at`: each of three groups ahead is one step further. A slot's head says where its tags
    /// are, the tags say where the member's line is.
    /// To be called before each group of [`PREFETCH_GROUP`], from the first on.
    #[inline]
    pub fn prefetch_ahead<T>(
        &self,
        batch: &[T],
        at: usize,
        member_of: impl Fn(&T) -> Option<MemberId>,
    ) {
        let slots = |from: usize| {
            let group = batch.iter().skip(from).take(PREFETCH_GROUP).filter_map(&member_of);
            group.filter_map(|member| Some((self.slots.touched(Slot::of(member))?, member)))
        };
        let heads = |from| slots(from).for_each(|(slot, _)| slot.prefetch_head());
        let tags = |from| slots(from).for_each(|(slot, member)| slot.prefetch_tags(member));
        let lines = |from| slots(from).for_each(|(slot, member)| slot.prefetch(member));
        if at == 0 {
            heads(0);
            heads(PREFETCH_GROUP);
            heads(2 * PREFETCH_GROUP);
            tags(0);
            tags(PREFETCH_GROUP);
            lines(0);
        }
        heads(at + 3 * PREFETCH_GROUP);
        tags(at + 2 * PREFETCH_GROUP);
        lines(at + PREFETCH_GROUP);
    }

    /// Makes memory ready for what a slot may see of `units` more units on sale, spread over all
    /// slots: the mean, and what chance adds to it. Fewer units than slots need nothing: most slots
    /// see none of them, and a chunk in each would be megabytes.
    ///
    /// Panics: another shard owns the slot.
    pub fn make_ready(&mut self, slot: Slot, units: u64) {
        let mean = usize::try_from(units / SLOT_COUNT as u64).unwrap_or(usize::MAX);
        if mean > 0 {
            let state = self.slots.get_mut(slot);
            state.redemptions.make_ready(mean.saturating_add(4 * mean.isqrt() + 1));
        }
    }

    /// When the next hold may end. It may have ended otherwise by then.
    pub fn next_expiry(&self) -> Option<NodeTime> {
        self.expiries.peek().map(|Reverse((at, ..))| *at)
    }

    /// Expires up to `max` holds whose time has come; gives their number.
    pub fn expire_due(&mut self, now: NodeTime, max: usize, effects: &mut Effects) -> usize {
        let mut expired = 0;
        while expired < max {
            let Some(&Reverse((at, slot, slot_seq))) = self.expiries.peek() else { break };
            if at > now {
                break;
            }
            self.expiries.pop();
            let state = self.slots.get(slot);
            let Some(place) = state.redemptions.find(slot_seq) else { continue };
            if state.redemptions.get(place).is_open() {
                self.release(now, slot, place, true, effects);
                expired += 1;
            }
        }
        expired
    }

    /// Makes a slot forget an ended sale: finished redemptions, their keys, limit counters. Holds
    /// of the sale whose time has come expire first; others stay, with their keys, until they
    /// end. The work of one slot; the caller goes on slot by slot. The first one marks the sale:
    /// from then on every unknown key of it is answered with `KeyExpired`.
    ///
    /// Panics: no such sale, or another shard owns the slot.
    pub fn drop_keys(&mut self, slot: Slot, sale: SaleIndex, now: NodeTime, effects: &mut Effects) {
        let (first_item, item_count) = self.catalog.items_of(sale).expect("the sale is defined");
        self.catalog.mark_keys_dropped(sale);
        let due: Vec<usize> = {
            let all = self.slot(slot).redemptions.iter().enumerate();
            let due = all.filter(|(_, r)| {
                r.is_open()
                    && r.expires_at() <= now
                    && self.catalog.item(r.item()).is_some_and(|item| item.sale == sale)
            });
            due.map(|(place, _)| place).collect()
        };
        for place in due {
            self.release(now, slot, place, true, effects);
        }
        let state = self.slots.get_mut(slot);
        let record = KeysDropped { sale, first_item, item_count, at: now };
        state.apply_keys_dropped(&record);
        effects.record(state, |out| record.encode(slot, out));
    }

    /// Whether unknown keys of the item's sale may have been used before.
    pub(super) fn keys_are_dropped(&self, slot: &SlotState, sale: SaleIndex) -> bool {
        let phase = self.catalog.sale(sale).map(|rule| rule.phase);
        phase == Some(SalePhase::KeysDropped) || slot.has_dropped(sale)
    }

    pub(super) fn count_mut(&mut self, item: ItemIndex) -> &mut ItemCounts {
        let index = item.get() as usize;
        if index >= self.counts.len() {
            self.counts.resize(index + 1, ItemCounts::default());
        }
        &mut self.counts[index]
    }

    pub(super) fn count_confirmed(
        &mut self,
        item: ItemIndex,
        quantity: Quantity,
        effects: &mut Effects,
    ) {
        self.count_mut(item).confirmed += u64::from(quantity.get());
        effects.confirmed.push((item, i64::from(quantity.get())));
    }
}
