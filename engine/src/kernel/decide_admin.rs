//! The decisions that operators ask for: accounts, credits, debits, reversals.

use super::catalog::SalePhase;
use super::code::Code;
use super::command::{AccountView, Outcome, RedemptionState};
use super::decide::refused;
use super::effects::Effects;
use super::record::{AdminNote, Credited, Debited, Opened, Reversed};
use super::slot::{AdminEntry, AdminTarget, SlotState};
use super::state::ShardState;
use crate::planted::{self, Bug};
use crate::units::{KeyHash, MemberId, NodeTime, Points, RedemptionId, Slot};

impl ShardState {
    pub(super) fn reverse(
        &mut self,
        now: NodeTime,
        id: RedemptionId,
        key: KeyHash,
        note: &AdminNote,
        effects: &mut Effects,
    ) -> Outcome {
        let slot = id.slot();
        let state = self.slot(slot);
        let target = AdminTarget::Reverse { id };
        if let Some(entry) = state.admin_keys.get(key) {
            if entry.target != target {
                return refused(Code::KeyReused, 0);
            }
            let view = entry.reversed.expect("a reversal's key keeps its answer");
            return Outcome::Redemption { view, replayed: true };
        }
        let Some(place) = state.redemption(id) else {
            return refused(Code::RedemptionNotFound, 0);
        };
        let redemption = *state.redemptions.get(place);
        if redemption.state() != RedemptionState::Confirmed {
            return refused(Code::WrongState, redemption.state() as u64);
        }
        let (item, quantity) = (redemption.item(), redemption.quantity());
        let (member, points) = (redemption.member(), redemption.points());
        let at = state.members.find(member).expect("redemptions have members");
        let held_after = state.members.line(at).held();
        let Some(free_after) = credited(state.members.line(at).free(), held_after, points) else {
            return refused(Code::BalanceTooLarge, 0);
        };
        let sale = self.catalog.item(item).and_then(|rule| self.catalog.sale(rule.sale));
        let units_back = sale.is_some_and(|sale| sale.phase < SalePhase::Ended);
        let record = Reversed {
            member,
            id,
            item,
            quantity,
            points,
            free_after,
            held_after,
            units_back,
            key,
            at: now,
            note: note.clone(),
        };
        let state = self.slots.get_mut(slot);
        state.apply_reversed(&record).expect("the record was made from this state");
        effects.record(state, |out| record.encode(slot, out));
        let view = state.view(place, free_after);
        let counts = self.count_mut(item);
        counts.confirmed -= u64::from(quantity.get());
        if planted::is(Bug::ReturnTwice) || planted::is(Bug::RetiredSoldAgain) && !units_back {
            effects.given_back.push((item, quantity));
        }
        if units_back {
            effects.given_back.push((item, quantity));
            effects.confirmed.push((item, -i64::from(quantity.get())));
        } else {
            counts.retired += u64::from(quantity.get());
        }
        Outcome::Redemption { view, replayed: false }
    }

    pub(super) fn open(
        &mut self,
        now: NodeTime,
        member: MemberId,
        points: Points,
        effects: &mut Effects,
    ) -> Outcome {
        let slot = Slot::of(member);
        let state = self.slots.get_mut(slot);
        if let Some(at) = state.members.find(member) {
            return Outcome::Account { view: state.account(at), replayed: true };
        }
        if points > Points::MAX {
            return refused(Code::BalanceTooLarge, 0);
        }
        let record = Opened { member, points, at: now };
        state.apply_opened(&record).expect("the record was made from this state");
        effects.record(state, |out| record.encode(slot, out));
        let view = AccountView { member, free: points, held: Points::ZERO };
        Outcome::Account { view, replayed: false }
    }

    pub(super) fn credit(
        &mut self,
        now: NodeTime,
        member: MemberId,
        key: KeyHash,
        amount: Points,
        note: &AdminNote,
        effects: &mut Effects,
    ) -> Outcome {
        let slot = Slot::of(member);
        let state = self.slots.get_mut(slot);
        let target = AdminTarget::Credit { member, amount };
        let at = match state.admin_account(member, key, target, amount) {
            Ok(at) => at,
            Err(outcome) => return outcome,
        };
        let held_after = state.members.line(at).held();
        let Some(free_after) = credited(state.members.line(at).free(), held_after, amount) else {
            return refused(Code::BalanceTooLarge, 0);
        };
        let note = note.clone();
        let record = Credited { member, amount, free_after, held_after, key, at: now, note };
        state.apply_credited(at, &record).expect("the record was made from this state");
        effects.record(state, |out| record.encode(slot, out));
        Outcome::Account { view: state.account(at), replayed: false }
    }

    pub(super) fn debit(
        &mut self,
        now: NodeTime,
        member: MemberId,
        key: KeyHash,
        amount: Points,
        note: &AdminNote,
        effects: &mut Effects,
    ) -> Outcome {
        let slot = Slot::of(member);
        let state = self.slots.get_mut(slot);
        let target = AdminTarget::Debit { member, amount };
        let at = match state.admin_account(member, key, target, amount) {
            Ok(at) => at,
            Err(outcome) => return outcome,
        };
        let (free, held_after) = (state.members.line(at).free(), state.members.line(at).held());
        let Some(free_after) = free.checked_sub(amount) else {
            return refused(Code::InsufficientPoints, free.get());
        };
        let note = note.clone();
        let record = Debited { member, amount, free_after, held_after, key, at: now, note };
        state.apply_debited(at, &record).expect("the record was made from this state");
        effects.record(state, |out| record.encode(slot, out));
        Outcome::Account { view: state.account(at), replayed: false }
    }
}

impl SlotState {
    /// What credits and debits check alike: key seen → member exists → amount.
    fn admin_account(
        &self,
        member: MemberId,
        key: KeyHash,
        target: AdminTarget,
        amount: Points,
    ) -> Result<usize, Outcome> {
        if let Some(&AdminEntry { target: first, free, held, .. }) = self.admin_keys.get(key) {
            if first != target {
                return Err(refused(Code::KeyReused, 0));
            }
            let view = AccountView { member, free, held };
            return Err(Outcome::Account { view, replayed: true });
        }
        let at = self.members.find(member).ok_or(refused(Code::MemberNotFound, 0))?;
        if amount == Points::ZERO {
            return Err(refused(Code::Invalid, 0));
        }
        Ok(at)
    }
}

/// The free points after a credit, unless free and held would pass [`Points::MAX`] together.
fn credited(free: Points, held: Points, amount: Points) -> Option<Points> {
    let free = free.checked_add(amount)?;
    (free.checked_add(held)? <= Points::MAX).then_some(free)
}
