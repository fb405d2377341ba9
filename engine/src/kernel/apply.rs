//! The only functions that change a slot.
//!
//! A decision builds a record, applies it by a function of this file, and encodes it. Replay
//! decodes the record and applies it by the same function (invariant I5). Each function checks
//! the record against the state before it changes anything, so damage is an error, never a panic
//! and never a silent drift.

use thiserror::Error;

use super::command::RedemptionState;
use super::member::Counter;
use super::record::{
    Confirmed, Credited, Debited, Held, KeysDropped, Opened, Record, RecordError, RecordHead,
    Redeemed, Released, Reversed,
};
use super::redemption::{Begun, Redemption};
use super::slot::{AdminEntry, AdminTarget, SlotState};
use crate::planted::{self, Bug};
use crate::units::{ItemIndex, MemberId, Points, Quantity, RedemptionId, Slot};

/// A record that does not fit the state it is applied to: damage, or a bug.
#[derive(Error, Clone, PartialEq, Eq, Debug)]
pub enum ApplyError {
    #[error(transparent)]
    Record(#[from] RecordError),
    #[error("a {kind} record of slot {found} came to slot {slot}")]
    Slot { kind: &'static str, slot: Slot, found: Slot },
    #[error("a {kind} record belongs to no member's slot")]
    Kind { kind: &'static str },
    #[error("a {kind} record names member {member}, who has no account")]
    MemberUnknown { kind: &'static str, member: MemberId },
    #[error("a second opening of member {member}'s account")]
    MemberExists { member: MemberId },
    #[error(
        "member {member}: the record says {field} is {found} afterwards, the sum is {expected}"
    )]
    Balance { member: MemberId, field: &'static str, expected: u64, found: u64 },
    #[error("member {member}: {field} would leave its range")]
    Range { member: MemberId, field: &'static str },
    #[error("redemption {id} should be number {expected} of its slot")]
    SlotSeq { id: RedemptionId, expected: u64 },
    #[error("a {kind} record names redemption {id}, which is not there")]
    RedemptionUnknown { kind: &'static str, id: RedemptionId },
    #[error("a {kind} record differs from redemption {id} in {field}")]
    RedemptionDiffers { kind: &'static str, id: RedemptionId, field: &'static str },
    #[error("a {kind} record came to redemption {id}, which is {}", state.name())]
    State { kind: &'static str, id: RedemptionId, state: RedemptionState },
    #[error(
        "redemption {id}: the limit counter of item {item} stands at {units}, below {quantity}"
    )]
    Counter { id: RedemptionId, item: ItemIndex, units: u32, quantity: Quantity },
}

impl SlotState {
    /// Applies the record that `bytes` are, whole: replay's way in.
    ///
    /// Errors: the record is damaged, of another slot, or does not fit the state, which is then
    /// unchanged.
    pub fn apply_bytes(&mut self, bytes: &[u8]) -> Result<(), ApplyError> {
        let mut rest = bytes;
        let (slot, record) = Record::take(&mut rest)?;
        if slot != self.slot {
            return Err(ApplyError::Slot { kind: record.name(), slot: self.slot, found: slot });
        }
        let length = RecordHead::peek(bytes)?.length;
        self.apply(&record, &bytes[..length])
    }

    /// Applies a record; `bytes` are the very ones it was decoded from.
    ///
    /// Errors: the record does not fit the state, which is then unchanged.
    pub fn apply(&mut self, record: &Record, bytes: &[u8]) -> Result<(), ApplyError> {
        match record {
            Record::Opened(r) => self.apply_opened(r)?,
            Record::Credited(r) => self.apply_credited(self.member(r.member, "credited")?, r)?,
            Record::Debited(r) => self.apply_debited(self.member(r.member, "debited")?, r)?,
            Record::Held(r) => self.apply_held(self.member(r.member, "held")?, r)?,
            Record::Redeemed(r) => {
                let at = self.member(r.member, "redeemed")?;
                self.apply_redeemed(at, r)?;
                if planted::is(Bug::ForgetKeys) {
                    self.members.line_mut(at).forget_redemptions();
                }
            }
            Record::Confirmed(r) => self.apply_confirmed(r)?,
            Record::Released(r) => self.apply_released(r)?,
            Record::Reversed(r) => self.apply_reversed(r)?,
            Record::KeysDropped(r) => self.apply_keys_dropped(r),
            Record::SaleDefined(_)
            | Record::SaleChanged(_)
            | Record::StockChanged(_)
            | Record::Granted(_)
            | Record::Returned(_)
            | Record::ChangeSeen(_)
            | Record::EpochSeen(_)
            | Record::TotalSeen(_)
            | Record::SlotsClaimed(_)
            | Record::Imported(_) => return Err(ApplyError::Kind { kind: record.name() }),
        }
        self.count_record(bytes);
        Ok(())
    }

    /// Adds a record's bytes to the running count and checksum.
    pub(super) fn count_record(&mut self, bytes: &[u8]) {
        self.record_count += 1;
        let sum = xxhash_rust::xxh3::xxh3_64(bytes);
        self.record_checksum = self.record_checksum.wrapping_add(sum);
    }

    fn member(&self, member: MemberId, kind: &'static str) -> Result<usize, ApplyError> {
        self.members.find(member).ok_or(ApplyError::MemberUnknown { kind, member })
    }

    pub(super) fn apply_opened(&mut self, r: &Opened) -> Result<(), ApplyError> {
        if Slot::of(r.member) != self.slot {
            let found = Slot::of(r.member);
            return Err(ApplyError::Slot { kind: "opened", slot: self.slot, found });
        }
        if self.members.find(r.member).is_some() {
            return Err(ApplyError::MemberExists { member: r.member });
        }
        check_total(r.member, r.points, Points::ZERO)?;
        self.members.insert(r.member, r.points, Points::ZERO);
        self.sums.opened += u128::from(r.points.get());
        Ok(())
    }

    pub(super) fn apply_credited(&mut self, at: usize, r: &Credited) -> Result<(), ApplyError> {
        let line = self.members.line(at);
        let free = add(r.member, line.free(), r.amount)?;
        check_after(r.member, (free, line.held()), (r.free_after, r.held_after))?;
        self.members.line_mut(at).set_balance(r.free_after, r.held_after);
        self.sums.credited += u128::from(r.amount.get());
        let target = AdminTarget::Credit { member: r.member, amount: r.amount };
        let entry = AdminEntry { target, free: r.free_after, held: r.held_after, reversed: None };
        self.admin_keys.remember(r.key, r.at, entry);
        Ok(())
    }

    pub(super) fn apply_debited(&mut self, at: usize, r: &Debited) -> Result<(), ApplyError> {
        let line = self.members.line(at);
        let free = sub(r.member, "free", line.free(), r.amount)?;
        check_after(r.member, (free, line.held()), (r.free_after, r.held_after))?;
        self.members.line_mut(at).set_balance(r.free_after, r.held_after);
        self.sums.debited += u128::from(r.amount.get());
        let target = AdminTarget::Debit { member: r.member, amount: r.amount };
        let entry = AdminEntry { target, free: r.free_after, held: r.held_after, reversed: None };
        self.admin_keys.remember(r.key, r.at, entry);
        Ok(())
    }

    pub(super) fn apply_held(&mut self, at: usize, r: &Held) -> Result<(), ApplyError> {
        let ttl = r.expires_at.get().checked_sub(r.id.at().get());
        let ttl = ttl.and_then(|ms| u32::try_from(ms).ok());
        let hold_ttl_ms = ttl.ok_or(ApplyError::Range { member: r.member, field: "expires_at" })?;
        self.begin(
            at,
            &Begun {
                member: r.member,
                id: r.id,
                key: r.key,
                item: r.item,
                quantity: r.quantity,
                points: r.points,
                free_after: r.free_after,
                held_after: r.held_after,
                hold_ttl_ms: Some(hold_ttl_ms),
            },
        )?;
        self.sums.holds += 1;
        Ok(())
    }

    pub(super) fn apply_redeemed(&mut self, at: usize, r: &Redeemed) -> Result<(), ApplyError> {
        self.begin(
            at,
            &Begun {
                member: r.member,
                id: r.id,
                key: r.key,
                item: r.item,
                quantity: r.quantity,
                points: r.points,
                free_after: r.free_after,
                held_after: r.held_after,
                hold_ttl_ms: None,
            },
        )?;
        self.sums.redeemed += u128::from(r.points.get());
        self.sums.confirmations += 1;
        Ok(())
    }

    #[inline]
    fn begin(&mut self, at: usize, begun: &Begun) -> Result<(), ApplyError> {
        let (member, id) = (begun.member, begun.id);
        if id.slot() != self.slot || id.slot_seq() != self.begun {
            return Err(ApplyError::SlotSeq { id, expected: self.begun });
        }
        let line = self.members.line(at);
        let free = sub(member, "free", line.free(), begun.points)?;
        let held = match begun.hold_ttl_ms {
            Some(_) => add(member, line.held(), begun.points)?,
            None => line.held(),
        };
        check_after(member, (free, held), (begun.free_after, begun.held_after))?;
        let mut counter = self.counter(at, begun.item);
        let units = counter.units.checked_add(begun.quantity.get());
        counter.units = units.ok_or(ApplyError::Range { member, field: "limit counter" })?;

        self.set_counter(at, begun.item, counter);
        let line = self.members.line_mut(at);
        line.set_balance(free, held);
        self.redemptions.push(Redemption::new(begun), line);
        self.begun += 1;
        Ok(())
    }

    pub(super) fn apply_confirmed(&mut self, r: &Confirmed) -> Result<(), ApplyError> {
        let step = Step {
            kind: "confirmed",
            from: RedemptionState::Held,
            to: RedemptionState::Confirmed,
            member: r.member,
            id: r.id,
            item: r.item,
            quantity: r.quantity,
            points: r.points,
            after: (r.free_after, r.held_after),
        };
        self.step(&step)?;
        self.redemptions.set_step_balance(r.id.slot_seq(), r.free_after);
        self.sums.redeemed += u128::from(r.points.get());
        self.sums.confirmations += 1;
        Ok(())
    }

    pub(super) fn apply_released(&mut self, r: &Released) -> Result<(), ApplyError> {
        let step = Step {
            kind: "released",
            from: RedemptionState::Held,
            to: if r.expired { RedemptionState::Expired } else { RedemptionState::Cancelled },
            member: r.member,
            id: r.id,
            item: r.item,
            quantity: r.quantity,
            points: r.points,
            after: (r.free_after, r.held_after),
        };
        self.step(&step)?;
        if r.expired {
            self.sums.expiries += 1;
        } else {
            self.redemptions.set_step_balance(r.id.slot_seq(), r.free_after);
            self.sums.cancellations += 1;
        }
        Ok(())
    }

    pub(super) fn apply_reversed(&mut self, r: &Reversed) -> Result<(), ApplyError> {
        let step = Step {
            kind: "reversed",
            from: RedemptionState::Confirmed,
            to: RedemptionState::Reversed,
            member: r.member,
            id: r.id,
            item: r.item,
            quantity: r.quantity,
            points: r.points,
            after: (r.free_after, r.held_after),
        };
        self.step(&step)?;
        if !r.units_back {
            self.settled_counts.entry(r.item).or_default().retired += u64::from(r.quantity.get());
        }
        let place = self.redemption(r.id).expect("the step found it");
        let entry = AdminEntry {
            target: AdminTarget::Reverse { id: r.id },
            free: r.free_after,
            held: r.held_after,
            reversed: Some(self.view(place, r.free_after)),
        };
        self.admin_keys.remember(r.key, r.at, entry);
        self.sums.reversed += u128::from(r.points.get());
        self.sums.reversals += 1;
        Ok(())
    }

    /// Moves a redemption from one state to the next, with its points and its limit counter.
    fn step(&mut self, step: &Step) -> Result<(), ApplyError> {
        let Step { kind, id, member, .. } = *step;
        let place = self.redemption(id).ok_or(ApplyError::RedemptionUnknown { kind, id })?;
        let redemption = self.redemptions.get(place);
        let differs = |field| Err(ApplyError::RedemptionDiffers { kind, id, field });
        if redemption.member() != member {
            return differs("member");
        }
        if redemption.item() != step.item {
            return differs("item");
        }
        if redemption.quantity() != step.quantity {
            return differs("quantity");
        }
        if redemption.points() != step.points {
            return differs("points");
        }
        if redemption.state() != step.from {
            return Err(ApplyError::State { kind, id, state: redemption.state() });
        }
        let at = self.member(member, kind)?;
        let (free, held) = (self.members.line(at).free(), self.members.line(at).held());
        let after = match step.to {
            RedemptionState::Confirmed => (free, sub(member, "held", held, step.points)?),
            RedemptionState::Reversed => (add(member, free, step.points)?, held),
            _ => (add(member, free, step.points)?, sub(member, "held", held, step.points)?),
        };
        check_after(member, after, step.after)?;
        if step.to != RedemptionState::Confirmed {
            let mut counter = self.counter(at, step.item);
            let units = counter.units.checked_sub(step.quantity.get());
            let units =
                if planted::is(Bug::LimitNotGivenBack) { Some(counter.units) } else { units };
            counter.units = units.ok_or(ApplyError::Counter {
                id,
                item: step.item,
                units: counter.units,
                quantity: step.quantity,
            })?;
            if step.from == RedemptionState::Held {
                counter.released = counter.released.saturating_add(1);
            }
            self.set_counter(at, step.item, counter);
        }
        self.members.line_mut(at).set_balance(after.0, after.1);
        self.redemptions.get_mut(place).set_state(step.to);
        Ok(())
    }

    /// Forgets a sale: its finished redemptions, their keys, and its items' limit counters.
    /// Holds still open stay, and go on counting against the limit.
    pub(super) fn apply_keys_dropped(&mut self, r: &KeysDropped) {
        let first = r.first_item.get();
        let is_dropped = |item: ItemIndex| {
            item.get().checked_sub(first).is_some_and(|offset| offset < r.item_count)
        };
        if let Err(place) = self.dropped_sales.binary_search(&r.sale) {
            let mut dropped = std::mem::take(&mut self.dropped_sales).into_vec();
            dropped.insert(place, r.sale);
            self.dropped_sales = dropped.into();
        }
        self.spilled.retain(|&(_, item), _| !is_dropped(item));
        for line in self.members.iter_mut() {
            line.forget_redemptions();
            let gone: Vec<_> =
                line.counters().map(|(item, _)| item).filter(|&item| is_dropped(item)).collect();
            for item in gone {
                line.set_counter(item, Counter::default());
            }
        }
        for redemption in self.redemptions.take() {
            let quantity = redemption.quantity().get();
            let at = self.members.find(redemption.member()).expect("redemptions have members");
            let item = redemption.item();
            if is_dropped(item) && !redemption.is_open() {
                if redemption.state() == RedemptionState::Confirmed {
                    self.settled_counts.entry(item).or_default().confirmed += u64::from(quantity);
                }
                self.redemptions.forget_step_balance(redemption.slot_seq());
                continue;
            }
            if is_dropped(item) {
                let mut counter = self.counter(at, item);
                counter.units += quantity;
                self.set_counter(at, item, counter);
            }
            self.redemptions.push(redemption, self.members.line_mut(at));
        }
    }
}

/// A move of an existing redemption.
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
}

fn add(member: MemberId, balance: Points, amount: Points) -> Result<Points, ApplyError> {
    balance.checked_add(amount).ok_or(ApplyError::Range { member, field: "balance" })
}

fn sub(
    member: MemberId,
    field: &'static str,
    balance: Points,
    amount: Points,
) -> Result<Points, ApplyError> {
    balance.checked_sub(amount).ok_or(ApplyError::Range { member, field })
}

/// No member ever has more than [`Points::MAX`] in all.
fn check_total(member: MemberId, free: Points, held: Points) -> Result<(), ApplyError> {
    match free.checked_add(held) {
        Some(total) if total <= Points::MAX => Ok(()),
        _ => Err(ApplyError::Range { member, field: "total" }),
    }
}

#[inline]
fn check_after(
    member: MemberId,
    (free, held): (Points, Points),
    (free_after, held_after): (Points, Points),
) -> Result<(), ApplyError> {
    let differs = |field, expected: Points, found: Points| {
        Err(ApplyError::Balance { member, field, expected: expected.get(), found: found.get() })
    };
    if free != free_after {
        return differs("free", free, free_after);
    }
    if held != held_after {
        return differs("held", held, held_after);
    }
    check_total(member, free, held)
}
