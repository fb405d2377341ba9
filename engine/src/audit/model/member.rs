//! Members in the model: each record's step, by own arithmetic.

use super::slot::{Account, Redemption, halves};
use super::{Model, Place};
use crate::audit::finding::{Check, Where};
use crate::kernel::command::RedemptionState;
use crate::kernel::record::{Held, KeysDropped, Record, Redeemed};
use crate::units::{ItemIndex, KeyHash, MemberId, NodeTime, Points, Quantity, RedemptionId, Slot};

/// An admin key may have another effect after this long. Units: ms of node time; 90 days.
pub(super) const ADMIN_KEY_RETENTION_MS: u64 = 90 * 24 * 3600 * 1000;
/// Bits of the journal's id within a redemption's.
const JOURNAL_BITS: u64 = 0xf_ffff;

/// A move of points and units as its record tells it.
struct Move<'a> {
    kind: &'static str,
    place: Place,
    slot: Slot,
    member: MemberId,
    after: (Points, Points),
    /// Own arithmetic of the step: free, held.
    change: (i128, i128),
    redemption: Option<&'a RedemptionId>,
}

impl Move<'_> {
    fn at(&self) -> Where {
        let at = Where::member(self.member).with_seq(self.place.seq);
        self.redemption.map_or(at, |id| at.with_redemption(*id))
    }
}

/// The beginning of a redemption.
struct Begin {
    kind: &'static str,
    member: MemberId,
    id: RedemptionId,
    key: KeyHash,
    item: ItemIndex,
    quantity: Quantity,
    points: Points,
    after: (Points, Points),
    expires_at: Option<NodeTime>,
}

/// A step of a redemption that had begun before.
struct Step {
    kind: &'static str,
    from: RedemptionState,
    to: RedemptionState,
    member: MemberId,
    id: RedemptionId,
    item: ItemIndex,
    quantity: Quantity,
    points: Points,
    after: (Points, Points),
    is_retired: bool,
}

impl Model {
    /// Gives the item whose units changed.
    pub(super) fn fold_member(
        &mut self,
        place: Place,
        slot: Slot,
        record: &Record,
        bytes: &[u8],
    ) -> Option<ItemIndex> {
        let sums = &mut self.slots[slot.index()].sums;
        sums.record_count += 1;
        let sum = xxhash_rust::xxh3::xxh3_64(bytes);
        sums.record_checksum = sums.record_checksum.wrapping_add(sum);
        match record {
            Record::Opened(r) => {
                self.open(place, slot, r.member, r.points);
                None
            }
            Record::Credited(r) => {
                let amount = i128::from(r.amount.get());
                self.slots[slot.index()].sums.credited += amount;
                self.ledgers.issued -= amount;
                self.admin_key(place, slot, r.member, r.key, r.at);
                self.settle(&Move {
                    kind: "credited",
                    place,
                    slot,
                    member: r.member,
                    after: (r.free_after, r.held_after),
                    change: (amount, 0),
                    redemption: None,
                });
                None
            }
            Record::Debited(r) => {
                let amount = i128::from(r.amount.get());
                self.slots[slot.index()].sums.debited += amount;
                self.ledgers.issued += amount;
                self.admin_key(place, slot, r.member, r.key, r.at);
                self.settle(&Move {
                    kind: "debited",
                    place,
                    slot,
                    member: r.member,
                    after: (r.free_after, r.held_after),
                    change: (-amount, 0),
                    redemption: None,
                });
                None
            }
            Record::Held(r) => {
                let Held { member, id, key, item, quantity, points, .. } = *r;
                let after = (r.free_after, r.held_after);
                let expires_at = Some(r.expires_at);
                let kind = "held";
                let begin =
                    Begin { kind, member, id, key, item, quantity, points, after, expires_at };
                self.begin(place, slot, &begin)
            }
            Record::Redeemed(r) => {
                let Redeemed { member, id, key, item, quantity, points, .. } = *r;
                let after = (r.free_after, r.held_after);
                let (kind, expires_at) = ("redeemed", None);
                let begin =
                    Begin { kind, member, id, key, item, quantity, points, after, expires_at };
                self.begin(place, slot, &begin)
            }
            Record::Confirmed(r) => self.step(
                place,
                slot,
                &Step {
                    kind: "confirmed",
                    from: RedemptionState::Held,
                    to: RedemptionState::Confirmed,
                    member: r.member,
                    id: r.id,
                    item: r.item,
                    quantity: r.quantity,
                    points: r.points,
                    after: (r.free_after, r.held_after),
                    is_retired: false,
                },
            ),
            Record::Released(r) => {
                let to =
                    if r.expired { RedemptionState::Expired } else { RedemptionState::Cancelled };
                self.check_expiry(place, r.id, r.expired, r.at);
                self.step(
                    place,
                    slot,
                    &Step {
                        kind: "released",
                        from: RedemptionState::Held,
                        to,
                        member: r.member,
                        id: r.id,
                        item: r.item,
                        quantity: r.quantity,
                        points: r.points,
                        after: (r.free_after, r.held_after),
                        is_retired: false,
                    },
                )
            }
            Record::Reversed(r) => {
                self.admin_key(place, slot, r.member, r.key, r.at);
                self.step(
                    place,
                    slot,
                    &Step {
                        kind: "reversed",
                        from: RedemptionState::Confirmed,
                        to: RedemptionState::Reversed,
                        member: r.member,
                        id: r.id,
                        item: r.item,
                        quantity: r.quantity,
                        points: r.points,
                        after: (r.free_after, r.held_after),
                        is_retired: !r.units_back,
                    },
                )
            }
            Record::KeysDropped(r) => {
                self.drop_keys(place, slot, r);
                None
            }
            other => {
                let at = Where::slot(slot).with_seq(place.seq);
                let sentence = format!("a {} record stands in a member's slot", other.name());
                self.findings.violation(Check::Journal, at, sentence);
                None
            }
        }
    }

    fn check_slot(&mut self, place: Place, slot: Slot, member: MemberId, kind: &str) {
        if Slot::of(member) != slot {
            let at = Where::member(member).with_seq(place.seq);
            let sentence =
                format!("its {kind} record stands in slot {slot}, not {}", Slot::of(member));
            self.findings.violation(Check::Journal, at, sentence);
        }
    }

    fn open(&mut self, place: Place, slot: Slot, member: MemberId, points: Points) {
        self.check_slot(place, slot, member, "opened");
        self.figures.moves_of_points += 1;
        let state = &mut self.slots[slot.index()];
        if state.accounts.contains_key(&member.get()) {
            let at = Where::member(member).with_seq(place.seq);
            let sentence = format!("the account was opened again, with {points} points");
            return self.findings.violation(Check::I3, at, sentence);
        }
        state
            .accounts
            .insert(member.get(), Account { free: points.get(), held: 0, seq: place.seq });
        let amount = i128::from(points.get());
        state.sums.members += 1;
        state.sums.free += amount;
        state.sums.opened += amount;
        self.ledgers.issued -= amount;
        self.ledgers.free += amount;
    }

    fn admin_key(
        &mut self,
        place: Place,
        slot: Slot,
        member: MemberId,
        key: KeyHash,
        now: NodeTime,
    ) {
        self.figures.admin_keys += 1;
        let before = self.slots[slot.index()].admin_keys.insert(key, now);
        if before.is_some_and(|then| then.plus_ms(ADMIN_KEY_RETENTION_MS) > now) {
            let at = Where::member(member).with_seq(place.seq);
            let sentence = "an operator's key that had an effect before has another";
            self.findings.violation(Check::I6, at, sentence);
        }
    }

    /// Moves a member's points by own arithmetic, and holds the record's figures against it.
    fn settle(&mut self, m: &Move) {
        self.figures.moves_of_points += 1;
        let state = &mut self.slots[m.slot.index()];
        let known = state.accounts.get(&m.member.get()).copied();
        let before = known.unwrap_or_default();
        let free = i128::from(before.free) + m.change.0;
        let held = i128::from(before.held) + m.change.1;
        self.ledgers.free += m.change.0;
        self.ledgers.held += m.change.1;
        let after = Account { free: m.after.0.get(), held: m.after.1.get(), seq: m.place.seq };
        state.accounts.insert(m.member.get(), after);
        state.sums.members += u64::from(known.is_none());
        state.sums.free += i128::from(after.free) - i128::from(before.free);
        state.sums.held += i128::from(after.held) - i128::from(before.held);
        let sentence = if known.is_none() {
            format!("a {} record names a member who has no account", m.kind)
        } else if free < 0 || held < 0 {
            format!("{}: free would be {free}, held {held}", m.kind)
        } else if free != i128::from(after.free) {
            format!("{}: free is said to be {} afterwards, the sum is {free}", m.kind, after.free)
        } else if held != i128::from(after.held) {
            format!("{}: held is said to be {} afterwards, the sum is {held}", m.kind, after.held)
        } else if free + held > i128::from(Points::MAX.get()) {
            format!("{}: {} points are more than an account can have", m.kind, free + held)
        } else {
            return;
        };
        self.suspects.insert(m.member.get());
        self.findings.violation(Check::I3, m.at(), sentence);
    }

    fn begin(&mut self, place: Place, slot: Slot, b: &Begin) -> Option<ItemIndex> {
        self.figures.redemption_steps += 1;
        let points = i128::from(b.points.get());
        let is_hold = b.expires_at.is_some();
        self.check_slot(place, slot, b.member, b.kind);
        self.check_id(place, slot, b);
        self.check_key(place, slot, b);
        self.check_rules(place, slot, b);
        if !is_hold {
            self.slots[slot.index()].sums.redeemed += points;
            self.ledgers.redeemed += points;
        }
        self.settle(&Move {
            kind: b.kind,
            place,
            slot,
            member: b.member,
            after: b.after,
            change: (-points, if is_hold { points } else { 0 }),
            redemption: Some(&b.id),
        });
        let redemption = Redemption {
            id: b.id,
            member: b.member,
            key: b.key,
            points: b.points,
            item: b.item,
            quantity: b.quantity,
            state: if is_hold { RedemptionState::Held } else { RedemptionState::Confirmed },
            expires_at: b.expires_at.unwrap_or_default(),
            is_retired: false,
            is_forgotten: false,
            seq: place.seq,
        };
        let state = &mut self.slots[slot.index()];
        // A repeated number replaces nothing; its finding is made.
        let number = b.id.slot_seq();
        match state.redemptions.binary_search_by_key(&number, |r| r.id.slot_seq()) {
            Ok(_) => {}
            Err(at) => state.redemptions.insert(at, redemption),
        }
        state.sums.begun = state.sums.begun.max(number.saturating_add(1));
        let quantity = u64::from(b.quantity.get());
        *state.units.entry((b.member.get(), b.item.get())).or_default() += quantity;
        let item = self.items.get_mut(b.item.get() as usize)?;
        let units = if is_hold { &mut item.held } else { &mut item.confirmed };
        *units += i128::from(quantity);
        Some(b.item)
    }

    fn check_id(&mut self, place: Place, slot: Slot, b: &Begin) {
        let at = Where::member(b.member).with_redemption(b.id).with_seq(place.seq);
        let state = &self.slots[slot.index()];
        let expected = state.sums.begun;
        let bits = (b.id.get() as u64 >> RedemptionId::SLOT_SEQ_BITS) & JOURNAL_BITS;
        let sentence = if b.id.slot() != slot {
            format!("its id names slot {}, it stands in slot {slot}", b.id.slot())
        } else if bits != self.journal.get() & JOURNAL_BITS {
            String::from("its id names another journal")
        } else if state.by_number(b.id.slot_seq()).is_some() || b.id.slot_seq() < expected {
            String::from("its id was given before")
        } else if b.id.slot_seq() != expected {
            let missing = b.id.slot_seq() - expected;
            format!("its number in the slot should be {expected}: {missing} records are missing")
        } else {
            return;
        };
        self.findings.violation(Check::Journal, at, sentence);
    }

    fn check_key(&mut self, place: Place, slot: Slot, b: &Begin) {
        self.figures.keys += 1;
        let name = (b.member.get(), halves(b.key));
        let before = self.slots[slot.index()].keys.insert(name, b.id.slot_seq());
        if let Some(before) = before {
            let at = Where::member(b.member).with_redemption(b.id).with_seq(place.seq);
            let sentence = format!("its key had begun redemption number {before} of the slot");
            self.findings.violation(Check::I6, at, sentence);
        }
    }

    fn check_rules(&mut self, place: Place, slot: Slot, b: &Begin) {
        let at = Where::member(b.member).with_redemption(b.id).with_item(b.item);
        let at = at.with_seq(place.seq);
        let Some(item) = self.items.get(b.item.get() as usize) else {
            return self.findings.violation(Check::Rules, at, "its item is not defined");
        };
        let quantity = u64::from(b.quantity.get());
        let had = self.slots[slot.index()].units.get(&(b.member.get(), b.item.get()));
        let units = had.copied().unwrap_or(0) + quantity;
        let price = u128::from(quantity) * u128::from(item.price);
        let mut wrong = Vec::new();
        if quantity == 0 {
            wrong.push(String::from("it is of no unit"));
        }
        if price != u128::from(b.points.get()) {
            wrong.push(format!("{quantity} units cost {price} points, not {}", b.points));
        }
        if item.limit.is_some_and(|limit| units > limit) {
            let limit = item.limit.unwrap_or(0);
            wrong.push(format!("the member has {units} units now, the limit is {limit}"));
        }
        if !item.is_eligible(b.member) {
            wrong.push(String::from("the member is not eligible"));
        }
        if b.expires_at.is_some_and(|end| end < b.id.at()) {
            wrong.push(String::from("the hold ends before it begins"));
        }
        let sale = item.sale;
        for sentence in wrong {
            self.findings.violation(Check::Rules, at, sentence);
        }
        self.figures.begins_timed += 1;
        self.times.begun(place, slot, sale, b.member, b.id);
    }

    fn check_expiry(&mut self, place: Place, id: RedemptionId, expired: bool, at: NodeTime) {
        let state = self.slots.get(id.slot().index());
        let Some(r) = state.and_then(|s| s.redemption(id)) else { return };
        if expired && at < r.expires_at {
            let place = Where::member(r.member).with_redemption(id).with_seq(place.seq);
            let sentence = format!(
                "it expired at {}, before its end at {}",
                at.rfc3339(),
                r.expires_at.rfc3339()
            );
            self.findings.violation(Check::Rules, place, sentence);
        }
    }

    fn step(&mut self, place: Place, slot: Slot, s: &Step) -> Option<ItemIndex> {
        self.figures.redemption_steps += 1;
        let at = Where::member(s.member).with_redemption(s.id).with_seq(place.seq);
        self.check_slot(place, slot, s.member, s.kind);
        let state = &mut self.slots[slot.index()];
        let known = state.by_number(s.id.slot_seq()).filter(|&i| state.redemptions[i].id == s.id);
        let mut wrong = Vec::new();
        // Own arithmetic goes by what the redemption began with, where that is known.
        let (points, quantity, item) = match known.map(|i| &mut state.redemptions[i]) {
            None => {
                wrong.push(format!("a {} record names a redemption that never began", s.kind));
                (s.points, s.quantity, s.item)
            }
            Some(r) => {
                let differs = [
                    ("member", r.member.get(), s.member.get()),
                    ("item", r.item.get().into(), s.item.get().into()),
                    ("quantity", r.quantity.get().into(), s.quantity.get().into()),
                    ("points", r.points.get(), s.points.get()),
                ];
                for (name, began, said) in differs.into_iter().filter(|(_, a, b)| a != b) {
                    wrong.push(format!("{}: {name} is {said}, it began with {began}", s.kind));
                }
                if r.state != s.from {
                    wrong.push(format!("it was {} when it was {}", r.state.name(), s.kind));
                }
                if r.is_forgotten {
                    wrong.push(format!("it was {} after its sale had been forgotten", s.kind));
                }
                (r.state, r.is_retired, r.seq) = (s.to, s.is_retired, place.seq);
                (r.points, r.quantity, r.item)
            }
        };
        for sentence in wrong {
            self.findings.violation(Check::Rules, at.with_item(item), sentence);
        }
        let amount = i128::from(points.get());
        let change = match s.to {
            RedemptionState::Confirmed => (0, -amount),
            RedemptionState::Reversed => (amount, 0),
            _ => (amount, -amount),
        };
        let state = &mut self.slots[slot.index()];
        match s.to {
            RedemptionState::Confirmed => {
                state.sums.redeemed += amount;
                self.ledgers.redeemed += amount;
            }
            RedemptionState::Reversed => {
                state.sums.reversed += amount;
                self.ledgers.redeemed -= amount;
            }
            _ => {}
        }
        let quantity = u64::from(quantity.get());
        if s.to != RedemptionState::Confirmed
            && let Some(units) = state.units.get_mut(&(s.member.get(), item.get()))
        {
            *units = units.saturating_sub(quantity);
        }
        self.settle(&Move {
            kind: s.kind,
            place,
            slot,
            member: s.member,
            after: s.after,
            change,
            redemption: Some(&s.id),
        });
        self.move_units(s, item, i128::from(quantity))
    }

    fn move_units(&mut self, s: &Step, index: ItemIndex, units: i128) -> Option<ItemIndex> {
        let item = self.items.get_mut(index.get() as usize)?;
        match s.from {
            RedemptionState::Held => item.held -= units,
            _ => item.confirmed -= units,
        }
        if s.to == RedemptionState::Confirmed {
            item.confirmed += units;
        }
        if s.is_retired {
            item.retired += units;
        }
        Some(index)
    }

    fn drop_keys(&mut self, place: Place, slot: Slot, r: &KeysDropped) {
        let at = Where::slot(slot).with_seq(place.seq);
        let Some(sale) = self.sales.get(r.sale.get() as usize) else {
            let sentence = format!("keys of sale {}, which is not defined, were dropped", r.sale);
            return self.findings.violation(Check::Journal, at, sentence);
        };
        if (sale.first_item, sale.item_count) != (r.first_item.get(), r.item_count) {
            let sentence = format!("keys were dropped of other items than those of {:?}", sale.id);
            self.findings.violation(Check::I6, at, sentence);
        }
        if !sale.stand.is_ended {
            let sentence = format!("keys of sale {:?} were dropped before its end", sale.id);
            self.findings.violation(Check::I6, at, sentence);
        }
        let first = u64::from(r.first_item.get());
        let items = first..first + u64::from(r.item_count);
        let state = &mut self.slots[slot.index()];
        state.forget(&items);
        if !state.dropped_sales.contains(&r.sale) {
            state.dropped_sales.push(r.sale);
        }
    }
}
