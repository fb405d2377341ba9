//! One slot: everything its members own. `apply.rs` holds the only functions that change it.

use std::collections::BTreeMap;

use hashbrown::HashMap;

use super::aged_keys::AgedKeys;
use super::command::{RedemptionState, RedemptionView};
use super::member::{Counter, MemberTable};
use super::prefetch::prefetch_lines;
use super::redemption::Redemptions;
use crate::units::{ItemIndex, MemberId, Points, RedemptionId, SaleIndex, Slot};

pub use super::aged_keys::ADMIN_KEY_RETENTION_MS;
pub use super::apply::ApplyError;

/// Units of one item, by what became of them.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct ItemCounts {
    pub held: u64,
    pub confirmed: u64,
    /// Reversed after the sale had ended: not for sale again.
    pub retired: u64,
}

impl ItemCounts {
    /// Units that are neither free nor returned.
    pub fn sum(&self) -> u64 {
        self.held + self.confirmed + self.retired
    }
    pub fn add(&mut self, other: &Self) {
        self.held += other.held;
        self.confirmed += other.confirmed;
        self.retired += other.retired;
    }
}

/// What moved through a slot since its first record. Units: points, redemptions.
///
/// What a redemption in one step touches stands first.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
#[repr(C)]
pub struct LedgerSums {
    /// Points of confirmed redemptions, reversed ones included.
    pub redeemed: u128,
    pub confirmations: u64,
    pub holds: u64,
    pub opened: u128,
    pub credited: u128,
    pub debited: u128,
    pub reversed: u128,
    pub cancellations: u64,
    pub expiries: u64,
    pub reversals: u64,
}

impl LedgerSums {
    const HOT_LEN: usize = std::mem::offset_of!(Self, holds);
}

/// A slot's sums at one moment, for the audit.
///
/// `free + held + redeemed + debited = opened + credited + reversed` (invariant I3).
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct SlotTotals {
    pub members: u64,
    pub free: u128,
    pub held: u128,
    pub sums: LedgerSums,
    /// Redemptions begun; the next one's slot sequence number.
    pub begun: u64,
    pub record_count: u64,
    /// Wrapping sum of the records' XXH3-64.
    pub record_checksum: u64,
}

/// What an admin key stands for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum AdminTarget {
    Credit { member: MemberId, amount: Points },
    Debit { member: MemberId, amount: Points },
    Reverse { id: RedemptionId },
}

/// A remembered admin key, with what its first answer showed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct AdminEntry {
    pub target: AdminTarget,
    pub free: Points,
    pub held: Points,
    /// The reversed redemption, which may be forgotten before the key is.
    pub reversed: Option<RedemptionView>,
}

/// The members of one slot, with their limits, redemptions and keys.
///
/// What every redemption touches stands together: in the first [`HOT_LINES`] lines of memory, and
/// at the head of the sums.
#[repr(C, align(64))]
pub struct SlotState {
    pub(super) members: MemberTable,
    /// Redemptions begun so far.
    pub(super) begun: u64,
    pub(super) record_count: u64,
    pub(super) record_checksum: u64,
    /// Sales whose keys were dropped here, sorted.
    pub(super) dropped_sales: Box<[SaleIndex]>,
    pub(super) slot: Slot,
    pub(super) redemptions: Redemptions,
    pub(super) sums: LedgerSums,
    /// Limit counters that their members' lines had no room for.
    pub(super) spilled: HashMap<(MemberId, ItemIndex), Counter, foldhash::fast::FixedState>,
    pub(super) admin_keys: AgedKeys<AdminEntry>,
    /// Units of redemptions that are no longer here (confirmed), and retired units.
    pub(super) settled_counts: BTreeMap<ItemIndex, ItemCounts>,
}

/// Asks for the memory that steps of these members will touch: one of a slot after the other, so
/// that the waits overlap. `slots` stand by number; those beyond are passed over.
pub fn prefetch(slots: &[Option<Box<SlotState>>], members: &[MemberId]) {
    let state_of = |m| slots.get(Slot::of(m).index())?.as_deref();
    let each = || members.iter().filter_map(|&m| Some((state_of(m)?, m)));
    each().for_each(|(slot, _)| slot.prefetch_head());
    each().for_each(|(slot, member)| slot.prefetch_tags(member));
    each().for_each(|(slot, member)| slot.prefetch(member));
}

/// Lines of memory at the head of a slot's state that every redemption touches.
const HOT_LINES: usize = 3;
const _: () = assert!(
    std::mem::offset_of!(SlotState, redemptions) + Redemptions::HOT_LEN <= 64 * HOT_LINES
        && std::mem::offset_of!(SlotState, sums) % 64 + LedgerSums::HOT_LEN <= 64
);

impl SlotState {
    /// An empty slot.
    pub fn new(slot: Slot) -> Self {
        Self {
            slot,
            begun: 0,
            members: MemberTable::default(),
            redemptions: Redemptions::default(),
            spilled: HashMap::default(),
            admin_keys: AgedKeys::default(),
            dropped_sales: Box::default(),
            settled_counts: BTreeMap::new(),
            sums: LedgerSums::default(),
            record_count: 0,
            record_checksum: 0,
        }
    }

    pub fn slot(&self) -> Slot {
        self.slot
    }

    /// Whether anything has ever happened here.
    pub fn has_records(&self) -> bool {
        self.record_count > 0
    }

    /// The place of the redemption with exactly this id.
    pub(super) fn redemption(&self, id: RedemptionId) -> Option<usize> {
        let place = self.redemptions.find(id.slot_seq())?;
        (self.redemptions.get(place).id(self.slot) == id).then_some(place)
    }

    #[inline]
    pub(super) fn counter(&self, at: usize, item: ItemIndex) -> Counter {
        let line = self.members.line(at);
        if let Some(counter) = line.counter(item) {
            return counter;
        }
        if line.is_spilled() {
            return self.spilled.get(&(line.member(), item)).copied().unwrap_or_default();
        }
        Counter::default()
    }

    pub(super) fn set_counter(&mut self, at: usize, item: ItemIndex, counter: Counter) {
        let line = self.members.line_mut(at);
        let key = (line.member(), item);
        if line.is_spilled() && self.spilled.contains_key(&key) {
            if counter.is_empty() {
                self.spilled.remove(&key);
            } else {
                self.spilled.insert(key, counter);
            }
        } else if !line.set_counter(item, counter) && !counter.is_empty() {
            line.mark_spilled();
            self.spilled.insert(key, counter);
        }
    }

    /// The sales whose keys were dropped here, sorted.
    pub fn dropped_sales(&self) -> &[SaleIndex] {
        &self.dropped_sales
    }

    /// How many sales were dropped here.
    pub fn forgotten_sales(&self) -> u64 {
        self.dropped_sales.len() as u64
    }

    /// Whether the keys of the sale were dropped here.
    pub(super) fn has_dropped(&self, sale: SaleIndex) -> bool {
        !self.dropped_sales.is_empty() && self.dropped_sales.binary_search(&sale).is_ok()
    }

    /// Members with a remembered request key, and the item it was for.
    pub fn keyed(&self) -> impl Iterator<Item = (ItemIndex, MemberId)> {
        self.redemptions.iter().map(|r| (r.item(), r.member()))
    }

    /// Units by item, of all redemptions that this slot ever had. Counts them anew: for adoption
    /// and audit, not for the decision path.
    pub fn item_counts(&self) -> BTreeMap<ItemIndex, ItemCounts> {
        let mut counts = self.settled_counts.clone();
        for redemption in self.redemptions.iter() {
            let quantity = u64::from(redemption.quantity().get());
            match redemption.state() {
                RedemptionState::Held => {
                    counts.entry(redemption.item()).or_default().held += quantity;
                }
                RedemptionState::Confirmed => {
                    counts.entry(redemption.item()).or_default().confirmed += quantity;
                }
                _ => {}
            }
        }
        counts
    }

    /// Units of remembered redemptions that were reversed, retired ones included.
    pub fn reversed_units(&self) -> impl Iterator<Item = (ItemIndex, u64)> {
        let is_reversed = |state| state == RedemptionState::Reversed;
        let reversed = self.redemptions.iter().filter(move |r| is_reversed(r.state()));
        reversed.map(|r| (r.item(), u64::from(r.quantity().get())))
    }

    /// Accounts in this slot.
    pub fn member_count(&self) -> u64 {
        self.members.len() as u64
    }

    /// The slot's sums. Walks its members.
    pub fn totals(&self) -> SlotTotals {
        let mut totals = SlotTotals {
            members: self.members.len() as u64,
            free: 0,
            held: 0,
            sums: self.sums,
            begun: self.begun,
            record_count: self.record_count,
            record_checksum: self.record_checksum,
        };
        for line in self.members.iter() {
            totals.free += u128::from(line.free().get());
            totals.held += u128::from(line.held().get());
        }
        totals
    }

    #[inline]
    pub(super) fn prefetch_head(&self) {
        prefetch_lines(self, HOT_LINES);
        prefetch_lines(&raw const self.sums, 1);
    }

    #[inline]
    pub(super) fn prefetch_tags(&self, member: MemberId) {
        self.members.prefetch_tags(member);
    }

    #[inline]
    pub(super) fn prefetch(&self, member: MemberId) {
        self.members.prefetch(member);
        self.redemptions.prefetch_tail();
    }
}
