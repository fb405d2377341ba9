//! Answers that change nothing.

use super::code::Code;
use super::command::Outcome;
use super::decide::refused;
use super::redemption::Redemption;
use super::state::ShardState;
use crate::units::{KeyHash, MemberId, RedemptionId, Slot};

impl ShardState {
    pub(super) fn read_account(&self, member: MemberId) -> Outcome {
        let state = self.slot(Slot::of(member));
        match state.members.find(member) {
            Some(at) => Outcome::Account { view: state.account(at), replayed: false },
            None => refused(Code::MemberNotFound, 0),
        }
    }

    pub(super) fn read_redemption(&self, member: Option<MemberId>, id: RedemptionId) -> Outcome {
        let place = match member {
            Some(member) => self.own_redemption(member, id),
            None => self.slot(id.slot()).redemption(id),
        };
        let Some(place) = place else {
            // Nobody has a redemption in a slot that is not their own.
            let is_possible = member.is_none_or(|member| Slot::of(member) == id.slot());
            let forgotten = if is_possible { self.slot(id.slot()).forgotten_sales() } else { 0 };
            return refused(Code::RedemptionNotFound, forgotten);
        };
        Outcome::Redemption { view: self.slot(id.slot()).view_now(place), replayed: false }
    }

    pub(super) fn list_redemptions(
        &self,
        member: MemberId,
        before: Option<RedemptionId>,
        limit: u16,
    ) -> Outcome {
        let state = self.slot(Slot::of(member));
        let forgotten_sales = state.forgotten_sales();
        let Some(at) = state.members.find(member) else {
            return Outcome::Redemptions { views: Vec::new(), forgotten_sales };
        };
        let line = state.members.line(at);
        // A page goes on behind its last redemption at once, if that is still remembered.
        let own = before.and_then(|id| self.own_redemption(member, id));
        let chain = match own {
            Some(place) => state.redemptions.chain_from(state.redemptions.get(place).before()),
            None => state.redemptions.chain_from(line.newest()),
        };
        let is_before = |r: &&Redemption| before.is_none_or(|id| r.slot_seq() < id.slot_seq());
        let view = |r: &Redemption| r.view(state.slot, r.state(), line.free());
        let page = chain.filter(is_before).take(usize::from(limit)).map(view);
        Outcome::Redemptions { views: page.collect(), forgotten_sales }
    }

    pub(super) fn read_key(&self, member: MemberId, key: KeyHash) -> Outcome {
        let state = self.slot(Slot::of(member));
        let line = state.members.find(member).map(|at| state.members.line(at));
        let found = line.and_then(|line| Some((line, state.redemptions.by_key(line, key)?)));
        let Some((line, redemption)) = found else {
            return refused(Code::RedemptionNotFound, state.forgotten_sales());
        };
        let view = redemption.view(state.slot, redemption.state(), line.free());
        Outcome::Redemption { view, replayed: false }
    }
}
