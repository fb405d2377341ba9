//! The decisions. Each checks in the order of DESIGN.md, builds one record, applies it by the
//! slot's own function, and encodes it.
//!
//! The first check that fails is the answer:
//!
//! ```text
//! request key seen → its first answer, or key-reused with another body
//! → item exists → keys of its sale dropped → not open yet → ended → paused
//! → member eligible → quantity valid → limit → given-up holds (holds only) → points → stock
//! ```
//! A key that was forgotten with its sale comes after the item's existence, because the sale is
//! known by the item; and before the sale's state, because the sale has long ended by then.

use super::catalog::{ItemRule, SalePhase};
use super::code::Code;
use super::command::{AccountView, Command, Outcome, RedemptionState, RedemptionView, Refusal};
use super::effects::Effects;
use super::record::{Confirmed, Held, Redeemed, Released};
use super::redemption::Redemption;
use super::slot::SlotState;
use super::state::ShardState;
use crate::planted::{self, Bug};
use crate::units::{
    ItemIndex, KeyHash, MemberId, NodeTime, Points, Quantity, RedemptionId, Slot, TakeUnits,
};
use std::cmp::Reverse;

pub(super) const fn refused(code: Code, detail: u64) -> Outcome {
    Outcome::Refused(Refusal { code, detail })
}

impl ShardState {
    /// Decides one command at node time `now`. Effects are appended to `effects`; units are taken
    /// from `stock` at once, and given back only through `effects`.
    ///
    /// Panics: another shard owns the member's slot.
    pub fn decide(
        &mut self,
        now: NodeTime,
        command: &Command,
        stock: &impl TakeUnits,
        effects: &mut Effects,
    ) -> Outcome {
        match *command {
            Command::Redeem { member, key, item, quantity, hold } => {
                let request = Request { member, key, item, quantity, hold };
                self.redeem(now, &request, stock, effects)
            }
            Command::Confirm { member, id } => self.confirm(now, member, id, effects),
            Command::Cancel { member, id } => self.cancel(now, member, id, effects),
            Command::Reverse { id, key, ref note } => self.reverse(now, id, key, note, effects),
            Command::OpenAccount { member, points } => self.open(now, member, points, effects),
            Command::Credit { member, key, amount, ref note } => {
                self.credit(now, member, key, amount, note, effects)
            }
            Command::Debit { member, key, amount, ref note } => {
                self.debit(now, member, key, amount, note, effects)
            }
            Command::ReadAccount { member } => self.read_account(member),
            Command::ReadRedemption { member, id } => self.read_redemption(member, id),
            Command::ListRedemptions { member, before, limit } => {
                self.list_redemptions(member, before, limit)
            }
            Command::ReadKey { member, key } => self.read_key(member, key),
            Command::Recall { member, key, item, quantity, hold } => self
                .answer_to_known_key(&Request { member, key, item, quantity, hold })
                .unwrap_or_else(|| refused(Code::RedemptionNotFound, 0)),
        }
    }

    /// The answer to a request whose key is remembered: the first one's, or that it was reused.
    fn answer_to_known_key(&self, request: &Request) -> Option<Outcome> {
        let slot = Slot::of(request.member);
        let state = self.slot(slot);
        let line = state.members.line(state.members.find(request.member)?);
        let first = state.redemptions.by_key(line, request.key)?;
        Some(request.answer_again(slot, first))
    }

    fn redeem(
        &mut self,
        now: NodeTime,
        request: &Request,
        stock: &impl TakeUnits,
        effects: &mut Effects,
    ) -> Outcome {
        let Request { member, key, item, hold, .. } = *request;
        let slot = Slot::of(member);
        let state = self.slot(slot);
        let at = state.members.find(member);
        if let Some(at) = at
            && let Some(first) = state.redemptions.by_key(state.members.line(at), key)
            && !(planted::is(Bug::SecondEffect) && state.begun % 4 == 3)
        {
            return request.answer_again(slot, first);
        }
        let Some(rule) = self.catalog.item(item) else {
            return refused(Code::ItemNotFound, 0);
        };
        let plan = match self.check(state, at, rule, request) {
            Ok(plan) => plan,
            Err(refusal) => return Outcome::Refused(refusal),
        };
        if !stock.try_take(item, plan.quantity) {
            return refused(Code::SoldOut, 0);
        }

        let state = self.slots.get_mut(slot);
        let id = RedemptionId::new(now, slot, self.journal, state.begun);
        let Plan { at, quantity, points, free_after, held, ttl_ms } = plan;
        let expires_at = id.at().plus_ms(ttl_ms);
        if hold {
            let held_after = held.checked_add(points).expect("free and held are below 2^54");
            let record = Held {
                member,
                id,
                key,
                item,
                quantity,
                points,
                free_after,
                held_after,
                expires_at,
            };
            state.apply_held(at, &record).expect("the record was made from this state");
            effects.record(state, |out| record.encode(slot, out));
            self.expiries.push(Reverse((expires_at, slot, id.slot_seq())));
            self.count_mut(item).held += u64::from(quantity.get());
        } else {
            let record =
                Redeemed { member, id, key, item, quantity, points, free_after, held_after: held };
            state.apply_redeemed(at, &record).expect("the record was made from this state");
            effects.record(state, |out| record.encode(slot, out));
            self.count_confirmed(item, quantity, effects);
        }
        let view = RedemptionView {
            id,
            member,
            item,
            quantity,
            points,
            state: if hold { RedemptionState::Held } else { RedemptionState::Confirmed },
            balance: free_after,
            expires_at: if hold { expires_at } else { NodeTime::new(0) },
        };
        Outcome::Redemption { view, replayed: false }
    }

    /// The checks from the sale on to the points.
    #[inline]
    fn check(
        &self,
        state: &SlotState,
        at: Option<usize>,
        rule: &ItemRule,
        request: &Request,
    ) -> Result<Plan, Refusal> {
        let refuse = |code, detail| Err(Refusal { code, detail });
        let sale = self.catalog.sale(rule.sale).expect("every item has its sale");
        if self.keys_are_dropped(state, rule.sale) {
            return refuse(Code::KeyExpired, 0);
        }
        match sale.phase {
            SalePhase::Scheduled => return refuse(Code::SaleNotOpen, 0),
            SalePhase::Open if sale.paused => return refuse(Code::SalePaused, 0),
            SalePhase::Open => {}
            SalePhase::Ended | SalePhase::KeysDropped => return refuse(Code::SaleEnded, 0),
        }
        if !rule.is_eligible(request.member) {
            return refuse(Code::NotEligible, 0);
        }
        let quantity = match u32::try_from(request.quantity) {
            Ok(quantity) if quantity > 0 => Quantity::new(quantity),
            _ => return refuse(Code::QuantityInvalid, 0),
        };
        let counter = at.map(|at| state.counter(at, request.item)).unwrap_or_default();
        let units = counter.units.checked_add(quantity.get());
        if units.is_none_or(|units| units > rule.limit.get()) {
            return refuse(Code::LimitReached, u64::from(rule.limit.get()));
        }
        if request.hold && counter.released >= self.limits.hold_allowance {
            return refuse(Code::HoldAllowanceSpent, u64::from(self.limits.hold_allowance));
        }
        let Some(at) = at else {
            return refuse(Code::InsufficientPoints, 0);
        };
        let line = state.members.line(at);
        let price = quantity.price(rule.price);
        let left = price.and_then(|points| Some((points, line.free().checked_sub(points)?)));
        let Some((points, free_after)) = left else {
            return refuse(Code::InsufficientPoints, line.free().get());
        };
        Ok(Plan { at, quantity, points, free_after, held: line.held(), ttl_ms: sale.hold_ttl_ms })
    }

    fn confirm(
        &mut self,
        now: NodeTime,
        member: MemberId,
        id: RedemptionId,
        effects: &mut Effects,
    ) -> Outcome {
        let slot = Slot::of(member);
        let Some(place) = self.own_redemption(member, id) else {
            return refused(Code::RedemptionNotFound, 0);
        };
        let state = self.slots.get_mut(slot);
        let redemption = *state.redemptions.get(place);
        match redemption.state() {
            RedemptionState::Confirmed => Self::step_again(state, &redemption),
            RedemptionState::Held
                if redemption.expires_at() <= now && !planted::is(Bug::ConfirmReleased) =>
            {
                self.release(now, slot, place, true, effects);
                refused(Code::WrongState, RedemptionState::Expired as u64)
            }
            RedemptionState::Held => {
                let at = state.members.find(member).expect("redemptions have members");
                let line = state.members.line(at);
                let (item, quantity) = (redemption.item(), redemption.quantity());
                let points = redemption.points();
                let held_after = line.held().checked_sub(points).expect("holds sum up to held");
                let free_after = line.free();
                let record = Confirmed {
                    member,
                    id,
                    item,
                    quantity,
                    points,
                    free_after,
                    held_after,
                    at: now,
                };
                state.apply_confirmed(&record).expect("the record was made from this state");
                effects.record(state, |out| record.encode(slot, out));
                self.count_mut(item).held -= u64::from(quantity.get());
                self.count_confirmed(item, quantity, effects);
                let view = self.slot(slot).view(place, free_after);
                Outcome::Redemption { view, replayed: false }
            }
            other => refused(Code::WrongState, other as u64),
        }
    }

    fn cancel(
        &mut self,
        now: NodeTime,
        member: MemberId,
        id: RedemptionId,
        effects: &mut Effects,
    ) -> Outcome {
        let slot = Slot::of(member);
        let Some(place) = self.own_redemption(member, id) else {
            return refused(Code::RedemptionNotFound, 0);
        };
        let state = self.slot(slot);
        let redemption = *state.redemptions.get(place);
        match redemption.state() {
            RedemptionState::Cancelled => Self::step_again(state, &redemption),
            RedemptionState::Held if redemption.expires_at() <= now => {
                self.release(now, slot, place, true, effects);
                refused(Code::WrongState, RedemptionState::Expired as u64)
            }
            RedemptionState::Held => {
                let balance = self.release(now, slot, place, false, effects);
                let view = self.slot(slot).view(place, balance);
                Outcome::Redemption { view, replayed: false }
            }
            other => refused(Code::WrongState, other as u64),
        }
    }

    /// The first answer to a confirmation or cancellation, once more.
    fn step_again(state: &SlotState, redemption: &Redemption) -> Outcome {
        let first = state.redemptions.step_balance(redemption.slot_seq());
        let balance = first.unwrap_or_else(|| redemption.first_balance());
        let view = redemption.view(state.slot, redemption.state(), balance);
        Outcome::Redemption { view, replayed: true }
    }

    /// Releases an open hold; gives the free points afterwards.
    pub(super) fn release(
        &mut self,
        now: NodeTime,
        slot: Slot,
        place: usize,
        expired: bool,
        effects: &mut Effects,
    ) -> Points {
        let state = self.slots.get_mut(slot);
        let redemption = *state.redemptions.get(place);
        let (item, quantity) = (redemption.item(), redemption.quantity());
        let (member, points) = (redemption.member(), redemption.points());
        let at = state.members.find(member).expect("redemptions have members");
        let line = state.members.line(at);
        let free_after = line.free().checked_add(points).expect("free and held are below 2^54");
        let held_after = line.held().checked_sub(points).expect("holds sum up to held");
        let record = Released {
            member,
            id: redemption.id(slot),
            item,
            quantity,
            points,
            free_after,
            held_after,
            expired,
            at: now,
        };
        state.apply_released(&record).expect("the record was made from this state");
        if !(expired && planted::is(Bug::ExpireWithoutRecord)) {
            effects.record(state, |out| record.encode(slot, out));
        }
        effects.given_back.push((item, quantity));
        self.count_mut(item).held -= u64::from(quantity.get());
        free_after
    }

    /// The place of the redemption, if it is this member's.
    pub(super) fn own_redemption(&self, member: MemberId, id: RedemptionId) -> Option<usize> {
        let slot = Slot::of(member);
        if id.slot() != slot {
            return None;
        }
        let state = self.slot(slot);
        let place = state.redemption(id)?;
        (state.redemptions.get(place).member() == member).then_some(place)
    }
}

/// What a redemption is asked with.
struct Request {
    member: MemberId,
    key: KeyHash,
    item: ItemIndex,
    quantity: u64,
    hold: bool,
}

impl Request {
    /// Answers a request whose key is remembered.
    fn answer_again(&self, slot: Slot, first: &Redemption) -> Outcome {
        let is_same = first.item() == self.item
            && u64::from(first.quantity().get()) == self.quantity
            && first.is_hold() == self.hold;
        if !is_same {
            return refused(Code::KeyReused, 0);
        }
        let is_now = planted::is(Bug::ReplayShowsNow);
        let state = if is_now { first.state() } else { first.first_state() };
        let view = first.view(slot, state, first.first_balance());
        Outcome::Redemption { view, replayed: true }
    }
}

/// A redemption that only wants for units.
struct Plan {
    at: usize,
    quantity: Quantity,
    points: Points,
    free_after: Points,
    held: Points,
    ttl_ms: u64,
}

impl Redemption {
    pub(super) fn view(
        &self,
        slot: Slot,
        state: RedemptionState,
        balance: Points,
    ) -> RedemptionView {
        RedemptionView {
            id: self.id(slot),
            member: self.member(),
            item: self.item(),
            quantity: self.quantity(),
            points: self.points(),
            state,
            balance,
            expires_at: self.expires_at(),
        }
    }
}

impl SlotState {
    pub(super) fn view(&self, place: usize, balance: Points) -> RedemptionView {
        let redemption = self.redemptions.get(place);
        redemption.view(self.slot, redemption.state(), balance)
    }

    pub(super) fn view_now(&self, place: usize) -> RedemptionView {
        let member = self.redemptions.get(place).member();
        let at = self.members.find(member).expect("redemptions have members");
        self.view(place, self.members.line(at).free())
    }

    pub(super) fn account(&self, at: usize) -> AccountView {
        let line = self.members.line(at);
        AccountView { member: line.member(), free: line.free(), held: line.held() }
    }
}
