//! The lease while its pool is open: what is asked, taken, given back and withdrawn.

use super::{Cause, DRY_MS, Elsewhere, Halt, Lease, LeaseAction, Out, Phase};
use crate::planted::{self, Bug};
use crate::stock::ask::{PoolAsk, PoolView, Standing};
use crate::stock::lease::demand::WINDOW_MS;
use crate::units::KeyHash;

/// Confirmed units are told this seldom, where only "sold out" depends on it.
const TELL_MS: u64 = 30;
/// News are looked at this seldom by a node that has nothing to give.
const NEWS_MS: u64 = 10;
/// Accepted units are evidence against an old copy of the data folder: told this soon.
const EVIDENCE_MS: u64 = 2_000;
/// A node that sells looks this often even without news: a Redis that gets its first replica is
/// another server, and no connection breaks.
const QUIET_MS: u64 = 30_000;
/// A sale that is paused or over keeps its units this long.
const KEEP_MS: u64 = 1_000;
/// A withdrawal that waits for others asks again this often.
const WITHDRAW_AGAIN_MS: u64 = 20;

impl Lease {
    /// Takes in what the pool says under this journal's epoch. `sent`: the ask that it answers,
    /// unless that was given up; then only what never falls is taken.
    pub(super) fn see(
        &mut self,
        now: u64,
        asked: &PoolAsk,
        view: &PoolView,
        sent: Option<&Out>,
        actions: &mut Vec<LeaseAction>,
    ) {
        let is_current = sent.is_some();
        if let Some(out) = sent {
            self.told = out.asker.standing;
            if view.is_open {
                self.phase = Phase::Open;
            } else {
                self.phase = Phase::Shut;
            }
        }
        if !view.is_open {
            return;
        }
        if self.check_home(view, actions) {
            return;
        }
        let before = self.granted;
        self.raise_granted(asked, view, actions);
        if !is_current || view.generation < self.view.generation {
            return;
        }
        let had_news = view.generation > self.view.generation;
        self.view = view.clone();
        if view.lacking() > 0 {
            self.wanted_at = now;
        }
        match *asked {
            PoolAsk::Join { .. } => (self.noted, self.is_noted_off) = (0, false),
            PoolAsk::Withdraw { from, up_to, .. } if from == up_to => self.is_noted_off = false,
            _ => {}
        }
        self.find_withdrawal(view, actions);
        if let PoolAsk::Grant { need, .. } = *asked {
            let got = self.granted.saturating_sub(before);
            self.noted = need.saturating_sub(got);
            if got > 0 {
                self.last_grant = got;
                self.recall.reset();
            } else {
                self.recall.fail(now);
            }
        } else if view.pool > 0 {
            self.recall.reset();
        }
        if had_news {
            self.recall.reset();
        }
        self.say_elsewhere(view, actions);
    }

    /// Ends the process where the pool was told of units that this home never added.
    fn check_home(&mut self, view: &PoolView, actions: &mut Vec<LeaseAction>) -> bool {
        let is_behind = self.home.as_ref().is_some_and(|home| view.added > home.added);
        if is_behind {
            let (accepted, returned) = (view.granted, view.returned);
            self.halt(Halt::OldCopy { accepted, returned, known: self.standing }, actions);
        }
        is_behind
    }

    fn raise_granted(&mut self, asked: &PoolAsk, view: &PoolView, actions: &mut Vec<LeaseAction>) {
        let adds_up = planted::is(Bug::GrantAddsUp) && matches!(asked, PoolAsk::Grant { .. });
        if view.granted <= self.granted && !adds_up {
            return;
        }
        self.is_awaited |= matches!(*asked, PoolAsk::Grant { need, .. } if need > 0);
        // Before the record that needs it: I1 holds in every prefix of the journal.
        if self.home.is_none() && view.granted - self.returned > self.total {
            self.total = view.total();
            actions.push(LeaseAction::RecordTotal(self.total));
        }
        self.granted = match *asked {
            PoolAsk::Grant { from, .. } if adds_up => {
                self.granted + view.granted.saturating_sub(from)
            }
            _ => view.granted,
        };
        let (granted, epoch) = (self.granted, self.epoch.number);
        actions.push(LeaseAction::RecordGranted { granted, epoch });
    }

    fn say_elsewhere(&mut self, view: &PoolView, actions: &mut Vec<LeaseAction>) {
        // Units that were added here and are not told yet: what the pool says of all is over.
        if self.home.as_ref().is_some_and(|home| home.added > view.added) {
            return;
        }
        let total = view.total();
        let here = view.granted.saturating_sub(view.returned);
        let elsewhere = Elsewhere {
            total,
            final_confirmed: if planted::is(Bug::FinalOverHeld) {
                (view.pool == 0).then_some(total.saturating_sub(here))
            } else {
                view.is_sold_out.then_some(view.confirmed_elsewhere)
            },
            open_units: total.saturating_sub(here).saturating_sub(view.confirmed_elsewhere),
            generation: view.generation,
        };
        if self.last_elsewhere != Some(elsewhere) {
            self.last_elsewhere = Some(elsewhere);
            actions.push(LeaseAction::Elsewhere(elsewhere));
        }
    }

    pub(super) fn next_open(&mut self, now: u64) -> Option<(PoolAsk, Cause)> {
        if let Some(home) = &self.home
            && home.added > self.view.added
        {
            return Some((PoolAsk::Total { added: home.added }, Cause::Event));
        }
        if let Some(ask) = self.next_withdraw(now) {
            return Some((ask, Cause::Event));
        }
        if self.is_noted_off && self.withdrawal.is_none() {
            let (from, key) = (self.withdrawn, KeyHash::default());
            return Some((PoolAsk::Withdraw { from, up_to: from, key }, Cause::Event));
        }
        if let Some((units, need, cause)) = self.wants(now) {
            let (from, up_to) = (self.granted, self.granted.saturating_add(units));
            let (nodes, max) = (self.rules.nodes, self.rules.max);
            return Some((PoolAsk::Grant { from, up_to, need, nodes, max }, cause));
        }
        let is_moved = self.standing.returned > self.told.returned
            || self.standing.unconfirmed > self.told.unconfirmed;
        if self.rules.nodes == 0 {
            return is_moved.then_some((PoolAsk::Tell, Cause::Event));
        }
        let is_confirmed = self.standing.confirmed > self.told.confirmed
            && self.has_confirmed_all()
            && now >= self.told_at + TELL_MS;
        let is_heard = self.has_news && (self.line > 0 || now >= self.told_at + NEWS_MS)
            || self.is_wanted && self.line > 0;
        if is_moved || is_confirmed || is_heard {
            return Some((PoolAsk::Tell, Cause::Event));
        }
        let has_accepted = self.standing.accepted > self.told.accepted;
        let is_due = has_accepted && now >= self.told_at + EVIDENCE_MS
            || self.is_selling && now >= self.told_at + QUIET_MS;
        is_due.then_some((PoolAsk::Tell, Cause::Time))
    }

    /// Whether all units that came here are confirmed: before that, not all of the total can be.
    fn has_confirmed_all(&self) -> bool {
        let Standing { accepted, returned, confirmed, unconfirmed } = self.standing;
        let (sold, came) =
            (confirmed.saturating_sub(unconfirmed), accepted.saturating_sub(returned));
        self.line == 0 && sold == came
    }

    /// How many units to ask for now, if any; how many of them are needed; and why now.
    fn wants(&mut self, now: u64) -> Option<(u64, u64, Cause)> {
        if self.withdrawal.is_some() {
            return None;
        }
        if self.rules.nodes == 0 {
            let pool = self.view.pool;
            return (pool > 0).then_some((pool, 0, Cause::Event));
        }
        // What was noted as wanted would be returned by others for nobody.
        let is_noted_in_vain = !self.is_selling || !self.demand.was_within(now, DRY_MS);
        if self.noted > 0 && is_noted_in_vain {
            return Some((0, 0, Cause::Time));
        }
        if !self.is_selling {
            return None;
        }
        // Units on their way in count as here.
        let have = self.line + (self.granted - self.standing.accepted);
        let ahead = self.demand.ahead().min(self.rules.max);
        let is_low = have <= ahead.max(self.last_grant / 2);
        let is_asked = self.demand.was_within(now, WINDOW_MS) && !self.view.is_sold_out;
        let need = if is_asked { ahead.max(1).saturating_sub(have) } else { 0 };
        let (pool, spare) = (self.view.pool, self.view.spare());
        let can_have = is_low && !self.is_resting && (spare > 0 || need > 0 && pool > 0);
        // Dry, and the pool is, too: others hold some, perhaps.
        let is_dry = have == 0 && need > 0;
        let is_over = self.recall.is_over(now) || self.is_freed;
        (is_over && (can_have || is_dry)).then(|| {
            let fair = (spare / (2 * u64::from(self.rules.nodes))).clamp(1, self.rules.max);
            // What was noted is brought by others, and then heard of: asking again is for the case
            // that nobody did.
            let is_repeat = !can_have && self.noted > 0 && !self.is_freed;
            let cause = if is_repeat { Cause::Time } else { Cause::Event };
            (need.max(fair.min(spare)), need, cause)
        })
    }

    /// Gives free units back that others need more.
    pub(super) fn give_back(&mut self, now: u64, actions: &mut Vec<LeaseAction>) {
        // Only while the pool can be told: units that nobody can have help nobody.
        let can = self.phase == Phase::Open
            && self.is_reachable
            && self.next_epoch.is_none()
            && self.line > 0
            && self.taking.is_none()
            && self.returned == self.standing.returned;
        if !can {
            return;
        }
        let is_alone = self.rules.nodes == 0;
        let withdrawal = self.withdrawal.map_or(0, |w| w.quantity.saturating_sub(self.got()));
        let is_over = !self.is_selling && now >= self.not_selling_since + KEEP_MS;
        let quantity = if withdrawal > 0 && self.withdrawal.is_some_and(|w| now < w.until) {
            withdrawal.min(self.line)
        } else if is_alone {
            0
        } else if is_over {
            self.line
        } else if self.view.lacking() == 0 {
            0
        } else {
            self.can_spare(now)
        };
        if quantity > 0 {
            // Asked for once: the next view says whether more is wanted.
            self.view.wanted = 0;
            self.taking = Some(quantity);
            actions.push(LeaseAction::Take { quantity });
        }
    }

    /// Units that others get, who wait for some: half of those that will not be sold here within a
    /// moment, and the last ones too where nobody has asked for them in their time here.
    fn can_spare(&mut self, now: u64) -> u64 {
        let is_idle = self.stay.is_over(now, self.demand.last_at());
        let sells = self.demand.was_within(now, WINDOW_MS) || !is_idle;
        let keep = if sells { self.demand.recent().max(1) } else { 0 };
        let spare = self.line.saturating_sub(keep).div_ceil(2);
        if sells && (spare > 0 || !is_idle) {
            return spare;
        }
        self.stay.end();
        self.is_resting = true;
        self.line
    }

    /// Units that the withdrawal at hand has got.
    fn got(&self) -> u64 {
        let Some(withdrawal) = self.withdrawal else { return 0 };
        if self.view.withdraw_key != withdrawal.key {
            return 0;
        }
        self.view.withdrawn.saturating_sub(self.withdrawn)
    }

    fn next_withdraw(&mut self, now: u64) -> Option<PoolAsk> {
        let got = self.got();
        // Its own vain asks are news to others, and theirs to it.
        let is_heard = (self.has_news || self.is_freed) && now >= self.told_at + NEWS_MS;
        let are_returned = self.returned == self.standing.returned;
        let withdrawn = self.withdrawn;
        let is_taking = self.taking.is_some();
        let withdrawal = self.withdrawal.as_mut()?;
        let is_due = is_heard || now >= withdrawal.not_before;
        if got >= withdrawal.quantity
            || !is_due
            || !are_returned
            || is_taking
            || now >= withdrawal.until
        {
            return None;
        }
        withdrawal.not_before = now + WITHDRAW_AGAIN_MS;
        let (from, up_to) = (withdrawn + got, withdrawn + withdrawal.quantity);
        Some(PoolAsk::Withdraw { from, up_to, key: withdrawal.key })
    }

    pub(super) fn end_withdrawal(&mut self, now: u64, actions: &mut Vec<LeaseAction>) {
        let Some(withdrawal) = self.withdrawal else { return };
        let got = self.got();
        let is_out =
            self.out.as_ref().is_some_and(|out| matches!(out.ask, PoolAsk::Withdraw { .. }));
        let is_over = now >= withdrawal.until;
        // Alone, nobody else has any.
        let is_vain = self.rules.nodes == 0
            && self.line == 0
            && self.taking.is_none()
            && withdrawal.not_before > now
            && self.returned == self.standing.returned;
        if self.phase == Phase::Open && !is_out && self.next_epoch.is_none() {
            let is_known = !withdrawal.is_unsure && self.is_reachable;
            if got >= withdrawal.quantity || is_known && (is_over || is_vain) {
                self.withdrawn += got;
                self.withdrawal = None;
                self.is_noted_off = got < withdrawal.quantity;
                let quantity = Some(got);
                actions.push(LeaseAction::Withdrawn { key: withdrawal.key, quantity });
                return;
            }
        }
        if is_over && !is_out {
            self.withdrawal = None;
            self.is_noted_off = true;
            actions.push(LeaseAction::Withdrawn { key: withdrawal.key, quantity: None });
        }
    }

    /// † Withdrawing is the pool first, then the record: what a crash or a lost answer left between
    /// the two is recorded as soon as it is seen.
    fn find_withdrawal(&mut self, view: &PoolView, actions: &mut Vec<LeaseAction>) {
        if self.home.is_none() || view.withdrawn <= self.withdrawn {
            return;
        }
        if planted::is(Bug::WithdrawalLost) {
            return;
        }
        if self.withdrawal.is_some_and(|w| w.key == view.withdraw_key) {
            return;
        }
        let (key, quantity) = (view.withdraw_key, view.withdrawn - self.withdrawn);
        self.withdrawn = view.withdrawn;
        self.is_noted_off = true;
        actions.push(LeaseAction::WithdrawalFound { key, quantity });
    }
}
