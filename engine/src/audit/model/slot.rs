//! A slot in the model: its accounts, redemptions, keys and limits; and how it begins with what a
//! snapshot holds of it.

use std::collections::BTreeMap;

use super::{Map, Model, Set};
use crate::audit::finding::{Check, Where};
use crate::kernel::command::RedemptionState;
use crate::units::{
    ItemIndex, KeyHash, MemberId, NodeTime, Points, Quantity, RedemptionId, SaleIndex, Seq, Slot,
};

/// A member's points.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Account {
    pub free: u64,
    pub held: u64,
    /// The last record that moved it; 0 where a snapshot holds it, which does not say.
    pub seq: Seq,
}

impl Account {
    pub fn last_seq(&self) -> Option<Seq> {
        Some(self.seq).filter(|seq| *seq > Seq::NONE)
    }
}

/// A redemption.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Redemption {
    pub id: RedemptionId,
    pub member: MemberId,
    pub key: KeyHash,
    pub points: Points,
    pub item: ItemIndex,
    pub quantity: Quantity,
    pub state: RedemptionState,
    /// Zero where it was never a hold.
    pub expires_at: NodeTime,
    /// Reversed with its units not back on sale.
    pub is_retired: bool,
    /// Its key and limit are no longer remembered.
    pub is_forgotten: bool,
    /// The last record that moved it; 0 where a snapshot holds it, which does not say.
    pub seq: Seq,
}

impl Redemption {
    pub fn last_seq(&self) -> Option<Seq> {
        Some(self.seq).filter(|seq| *seq > Seq::NONE)
    }
    pub fn is_open(&self) -> bool {
        self.state == RedemptionState::Held
    }
}

/// Sums of a slot since its first record. Units: points, counts.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct SlotSums {
    pub members: u64,
    pub free: i128,
    pub held: i128,
    pub opened: i128,
    pub credited: i128,
    pub debited: i128,
    /// Points of confirmed redemptions, reversed ones included.
    pub redeemed: i128,
    pub reversed: i128,
    /// Redemptions begun.
    pub begun: u64,
    pub record_count: u64,
    /// Wrapping sum of the records' XXH3-64.
    pub record_checksum: u64,
}

impl SlotSums {
    /// What differs: its name, mine, theirs.
    pub fn differences(&self, other: &Self) -> Vec<(&'static str, i128, i128)> {
        let all = |s: &Self| {
            [
                ("members", i128::from(s.members)),
                ("free points", s.free),
                ("held points", s.held),
                ("opened points", s.opened),
                ("credited points", s.credited),
                ("debited points", s.debited),
                ("redeemed points", s.redeemed),
                ("reversed points", s.reversed),
                ("redemptions begun", i128::from(s.begun)),
                ("records", i128::from(s.record_count)),
                ("checksum", i128::from(s.record_checksum)),
            ]
        };
        let pairs = all(self).into_iter().zip(all(other));
        pairs.filter(|(a, b)| a != b).map(|(a, b)| (a.0, a.1, b.1)).collect()
    }
}

/// A slot's members.
#[derive(Default)]
pub struct SlotModel {
    pub accounts: Map<u64, Account>,
    /// By their number in the slot.
    pub redemptions: Vec<Redemption>,
    pub sums: SlotSums,
    /// Confirmed and retired units of redemptions that a snapshot no longer holds.
    pub settled: BTreeMap<ItemIndex, [u64; 3]>,
    pub dropped_sales: Vec<SaleIndex>,
    /// Records up to here are in the base.
    pub(super) cut: Seq,
    /// Remembered keys, and the redemption each stands for.
    pub(super) keys: Map<(u64, [u64; 2]), u64>,
    pub(super) admin_keys: Map<KeyHash, NodeTime>,
    /// Units that count against a limit.
    pub(super) units: Map<(u64, u32), u64>,
}

/// What a snapshot says of a slot.
#[derive(Clone, Default, Debug)]
pub struct BaseSlot {
    pub cut: Seq,
    pub accounts: Vec<(MemberId, Account)>,
    /// In the order of their beginning.
    pub redemptions: Vec<Redemption>,
    pub settled: Vec<(ItemIndex, [u64; 3])>,
    pub admin_keys: Vec<(KeyHash, NodeTime)>,
    pub dropped_sales: Vec<SaleIndex>,
    pub sums: SlotSums,
}

pub(super) fn halves(key: KeyHash) -> [u64; 2] {
    [key.get() as u64, (key.get() >> 64) as u64]
}

impl SlotModel {
    /// The redemption with this number in the slot.
    pub fn by_number(&self, number: u64) -> Option<usize> {
        self.redemptions.binary_search_by_key(&number, |r| r.id.slot_seq()).ok()
    }
    pub fn redemption(&self, id: RedemptionId) -> Option<&Redemption> {
        self.by_number(id.slot_seq()).map(|at| &self.redemptions[at]).filter(|r| r.id == id)
    }

    /// Units of remembered redemptions that were reversed, and are on sale again.
    pub fn put_back(&self) -> impl Iterator<Item = (ItemIndex, i64)> {
        let is_back = |r: &&Redemption| r.state == RedemptionState::Reversed && !r.is_retired;
        self.redemptions.iter().filter(is_back).map(|r| (r.item, i64::from(r.quantity.get())))
    }

    /// Units per item: held, confirmed, retired.
    pub fn item_counts(&self) -> BTreeMap<ItemIndex, [u64; 3]> {
        let mut counts = self.settled.clone();
        for redemption in &self.redemptions {
            let place = match redemption.state {
                RedemptionState::Held => 0,
                RedemptionState::Confirmed => 1,
                RedemptionState::Reversed if redemption.is_retired => 2,
                _ => continue,
            };
            counts.entry(redemption.item).or_default()[place] +=
                u64::from(redemption.quantity.get());
        }
        counts
    }

    /// Forgets the finished redemptions of these items: their keys, and what counted against a
    /// limit. Open holds stay, and go on counting.
    pub(super) fn forget(&mut self, items: &std::ops::Range<u64>) {
        let is_of_sale = |r: &Redemption| items.contains(&u64::from(r.item.get()));
        let (mut touched, mut open) = (Set::default(), Map::<_, u64>::default());
        for r in self.redemptions.iter_mut().filter(|r| is_of_sale(r) && !r.is_forgotten) {
            let name = (r.member.get(), r.item.get());
            touched.insert(name);
            if r.is_open() {
                *open.entry(name).or_default() += u64::from(r.quantity.get());
            } else {
                r.is_forgotten = true;
                self.keys.remove(&(r.member.get(), halves(r.key)));
            }
        }
        for name in touched {
            match open.get(&name) {
                Some(&units) => self.units.insert(name, units),
                None => self.units.remove(&name),
            };
        }
    }
}

impl Model {
    /// Begins a slot with what a snapshot holds of it.
    pub fn seed_slot(&mut self, slot: Slot, base: BaseSlot) {
        self.has_base = true;
        self.exact_behind = self.exact_behind.max(base.cut);
        let sums = base.sums;
        // What the mall had issued until the cut, and taken back.
        self.ledgers.issued -= sums.opened + sums.credited - sums.debited;
        self.ledgers.redeemed += sums.redeemed - sums.reversed;
        self.ledgers.free += sums.free;
        self.ledgers.held += sums.held;
        let state = &mut self.slots[slot.index()];
        state.cut = base.cut;
        state.sums = sums;
        state.settled = base.settled.into_iter().collect();
        state.dropped_sales = base.dropped_sales;
        state.admin_keys = base.admin_keys.into_iter().collect();
        state.accounts = base.accounts.into_iter().map(|(m, a)| (m.get(), a)).collect();
        state.redemptions = base.redemptions;
        let (mut doubled, mut found) = (Vec::new(), (0, 0));
        for account in state.accounts.values() {
            found = (found.0 + i128::from(account.free), found.1 + i128::from(account.held));
        }
        for r in state.redemptions.iter().filter(|r| !r.is_forgotten) {
            let name = (r.member.get(), halves(r.key));
            if let Some(before) = state.keys.insert(name, r.id.slot_seq()) {
                doubled.push((*r, before));
            }
            if matches!(r.state, RedemptionState::Held | RedemptionState::Confirmed) {
                *state.units.entry((r.member.get(), r.item.get())).or_default() +=
                    u64::from(r.quantity.get());
            }
        }
        self.figures.keys += state.keys.len() as u64;
        let counts = state.item_counts();
        for (item, [held, confirmed, retired]) in counts {
            let index = item.get() as usize;
            if self.items.len() <= index {
                self.items.resize_with(index + 1, Default::default);
            }
            let state = &mut self.items[index];
            state.held += i128::from(held);
            state.confirmed += i128::from(confirmed);
            state.retired += i128::from(retired);
        }
        for (r, before) in doubled {
            let at = Where::member(r.member).with_redemption(r.id);
            let sentence = format!("its key also stands for redemption number {before}");
            self.findings.violation(Check::I6, at, sentence);
        }
        for (name, sum, found) in [("free", sums.free, found.0), ("held", sums.held, found.1)] {
            if sum != found {
                let sentence =
                    format!("the snapshot says {sum} {name} points, its accounts have {found}");
                self.findings.violation(Check::I3, Where::slot(slot), sentence);
            }
        }
    }
}
