//! The lease while its pool is open: what is asked, taken, given back and withdrawn.

use super::{Elsewhere, Halt, Lease, LeaseAction, Out, Phase};
use crate::planted::{self, Bug};
use crate::stock::ask::{PoolAsk, PoolView};
use crate::stock::lease::demand::WINDOW_MS;

/// Confirmed units are told this seldom, where only "sold out" depends on it.
const TELL_MS: u64 = 30;
/// News are looked at this seldom by a node that has nothing to give.
const NEWS_MS: u64 = 10;
/// A node with nothing to sell looks at the pool this often even without news.
const LOOK_MS: u64 = 2_000;
/// Any other node that sells looks this often: a Redis that gets its first replica is another
/// server, and no connection breaks.
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
            self.told = out.standing;
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
        self.find_withdrawal(view, actions);
        if let PoolAsk::Grant { up_to, from, .. } = asked {
            let got = self.granted.saturating_sub(before);
            self.has_noted_want = up_to > from && got == 0 && view.pool == 0;
            if got > 0 {
                self.last_grant = got;
                self.recall.reset();
            } else {
                self.recall.fail(now);
            }
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

    pub(super) fn next_open(&mut self, now: u64) -> Option<PoolAsk> {
        if let Some(home) = &self.home
            && home.added > self.view.added
        {
            return Some(PoolAsk::Total { added: home.added });
        }
        if let Some(ask) = self.next_withdraw(now) {
            return Some(ask);
        }
        if let Some(units) = self.wants(now) {
            let (from, up_to) = (self.granted, self.granted.saturating_add(units));
            let (nodes, max) = (self.rules.nodes, self.rules.max);
            return Some(PoolAsk::Grant { from, up_to, nodes, max });
        }
        let is_moved = self.standing.returned > self.told.returned
            || self.standing.unconfirmed > self.told.unconfirmed;
        let is_last = self.line == 0 && self.view.pool == 0 && !self.view.is_sold_out;
        let is_confirmed = self.standing.confirmed > self.told.confirmed
            && is_last
            && now >= self.told_at + TELL_MS;
        let is_alone = self.rules.nodes == 0;
        // Accepted units are evidence against an old copy of the data folder: told at leisure.
        let has_accepted = self.standing.accepted > self.told.accepted;
        let is_due = (is_last && self.is_selling || has_accepted) && now >= self.told_at + LOOK_MS;
        // A dry node's own vain asks are news to other dry ones, and theirs to it.
        let is_heard = self.has_news && (self.line > 0 || now >= self.told_at + NEWS_MS);
        let is_quiet = self.is_selling && now >= self.told_at + QUIET_MS;
        let must_look = is_heard || is_confirmed || is_due || is_quiet;
        (is_moved || !is_alone && must_look).then_some(PoolAsk::Tell)
    }

    /// How many units to ask for now, if any.
    fn wants(&mut self, now: u64) -> Option<u64> {
        if self.withdrawal.is_some() {
            return None;
        }
        let pool = self.view.pool;
        if self.rules.nodes == 0 {
            return (pool > 0).then_some(pool);
        }
        if !self.is_selling {
            // What was noted as wanted would be returned by others for nobody.
            return self.has_noted_want.then(|| {
                self.has_noted_want = false;
                0
            });
        }
        // Units on their way in count as here.
        let have = self.line + (self.granted - self.standing.accepted);
        let ahead = self.demand.ahead().min(self.rules.max);
        let is_low = have <= ahead.max(self.last_grant / 2);
        let is_wanted_here = self.demand.was_within(now, WINDOW_MS);
        if pool > 0 && is_low && !self.is_resting && self.recall.is_over(now) {
            let fair = pool / (2 * u64::from(self.rules.nodes));
            return Some(fair.clamp(1, self.rules.max));
        }
        // Dry, and somebody asks: others hold some, perhaps.
        let is_dry = have == 0 && is_wanted_here && !self.view.is_sold_out;
        (is_dry && self.recall.is_over(now)).then(|| ahead.max(1))
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
        } else if self.view.wanted == 0 {
            0
        } else if self.demand.was_within(now, WINDOW_MS) || now < self.came_at + WINDOW_MS {
            // What is sold here within a moment is not worth the way; and a unit that has just come
            // waits for whoever it was asked for, or it goes round among dry nodes for ever.
            self.line.saturating_sub(self.demand.recent().max(1)).div_ceil(2)
        } else {
            self.is_resting = true;
            self.line
        };
        if quantity > 0 {
            // Asked for once: the next view says whether more is wanted.
            self.view.wanted = 0;
            self.taking = Some(quantity);
            actions.push(LeaseAction::Take { quantity });
        }
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
        let is_heard = self.has_news && now >= self.told_at + NEWS_MS;
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
                let quantity = Some(got);
                actions.push(LeaseAction::Withdrawn { key: withdrawal.key, quantity });
                return;
            }
        }
        if is_over && !is_out {
            self.withdrawal = None;
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
        actions.push(LeaseAction::WithdrawalFound { key, quantity });
    }
}
