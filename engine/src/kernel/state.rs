//! A shard's state: the slots it owns, its copy of the catalog, and when its holds end.
//!
//! `decide.rs` holds the decisions. Nothing here does I/O, knows the time, or waits.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::catalog::{Catalog, SalePhase};
use super::effects::Effects;
use super::prefetch::prefetch;
use super::record::KeysDropped;
use super::slot::{ItemCounts, SlotState};
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

/// Lines of memory at the head of a slot's state that every redemption touches.
const HOT_LINES: usize = 6;

/// When a hold ends, its slot, and its slot sequence number.
pub(super) type Expiry = Reverse<(NodeTime, Slot, u64)>;

/// The state of one shard. One thread owns it.
pub struct ShardState {
    pub(super) journal: JournalId,
    pub(super) limits: KernelLimits,
    pub(super) catalog: Catalog,
    /// By slot number; `None` where another shard owns the slot.
    pub(super) slots: Vec<Option<Box<SlotState>>>,
    pub(super) owned: Vec<Slot>,
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
            slots: (0..SLOT_COUNT).map(|_| None).collect(),
            owned: Vec::new(),
            counts: Vec::new(),
            expiries: BinaryHeap::new(),
        }
    }

    /// Takes a slot over, empty or recovered. The catalog comes first. The caller marks sales that
    /// any slot has dropped ([`SlotState::dropped_sales`]) in the catalogs of all shards.
    ///
    /// Panics: the slot is owned already, or is another one.
    pub fn adopt_slot(&mut self, slot: Slot, state: SlotState) {
        assert_eq!(slot, state.slot(), "a slot's state carries its number");
        assert!(self.slots[slot.index()].is_none(), "slot {slot} is adopted twice");
        for (item, counts) in state.item_counts() {
            self.count_mut(item).add(&counts);
        }
        for &sale in state.dropped_sales() {
            self.catalog.mark_keys_dropped(sale);
        }
        for redemption in state.redemptions.iter().filter(|r| r.is_open()) {
            let expiry = (redemption.expires_at(), slot, redemption.slot_seq());
            self.expiries.push(Reverse(expiry));
        }
        self.owned.push(slot);
        self.slots[slot.index()] = Some(Box::new(state));
    }

    pub fn catalog(&self) -> &Catalog {
        &self.catalog
    }
    pub fn catalog_mut(&mut self) -> &mut Catalog {
        &mut self.catalog
    }

    /// The owned slots, in the order of their adoption.
    pub fn slots(&self) -> impl Iterator<Item = Slot> {
        self.owned.iter().copied()
    }
    pub fn owns(&self, slot: Slot) -> bool {
        self.slots.get(slot.index()).is_some_and(Option::is_some)
    }
    /// One owned slot.
    ///
    /// Panics: another shard owns it.
    pub fn slot(&self, slot: Slot) -> &SlotState {
        self.slots[slot.index()].as_deref().expect("the caller routes by slot")
    }
    /// Units by item number, of all owned slots; items beyond the end have none.
    pub fn item_counts(&self) -> &[ItemCounts] {
        &self.counts
    }

    /// First hint for a command on its way: the head of the member's slot.
    #[inline]
    pub fn prefetch_slot(&self, member: MemberId) {
        if let Some(slot) = &self.slots[Slot::of(member).index()] {
            let head: *const SlotState = &raw const **slot;
            for line in 0..HOT_LINES {
                prefetch(head.cast::<u8>().wrapping_add(64 * line));
            }
        }
    }
    /// Second hint, some commands later: the member's line.
    #[inline]
    pub fn prefetch_line(&self, member: MemberId) {
        if let Some(slot) = &self.slots[Slot::of(member).index()] {
            slot.prefetch(member);
        }
    }
    /// Both hints at once: waits for the head of the slot.
    #[inline]
    pub fn prefetch(&self, member: MemberId) {
        self.prefetch_line(member);
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
            let state = self.slots[slot.index()].as_deref().expect("holds are of owned slots");
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
        let state = self.slots[slot.index()].as_deref_mut().expect("the caller routes by slot");
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
