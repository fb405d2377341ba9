//! The pool of one item, as a pure model: what every script in `stock/redis` does to its hash.
//!
//! Used three times: the embedded authority is made of it, simulations take it for their Redis,
//! and a test compares it with the real scripts over many random calls. So it is written in the
//! order in which the scripts go: read everything, refuse or change, look again.
//!
//! ```text
//!            Create (once)                         Join: lost, another server, ≤ bump_above
//!  missing ────────────────► open ◄─────────┐    ┌──────────────────────────────────┐
//!     │                       │    each has │    ▼                                  │
//!     │                       └───────────► shut: journals report, nothing is granted
//!     └── Join ─────────────────────────────► (epoch + 1)                     from any state
//! ```
//! Invariant, in one epoch, while every counter is what its journal said: Σ granted − Σ returned ≤
//! total (I1). What a journal proved in an earlier epoch stays as evidence: it may not come back
//! with less, and a journal that ever accepted units must report before the pool opens again.

use std::collections::BTreeMap;

use super::ask::{
    Asker, Change, Epoch, HomeStanding, PoolAnswer, PoolAsk, PoolRefusal, PoolView, Standing,
};
use crate::planted::{self, Bug};
use crate::units::{Incarnation, JournalId, KeyHash};

/// What the pool knows of a journal.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Entry {
    /// The epoch that it joined last; its counters count only while that is the pool's.
    epoch: u32,
    incarnation: Incarnation,
    granted: u64,
    /// What it has told of itself; `returned` counts up to `granted`.
    told: Standing,
    /// Units that it needed and the pool did not have.
    wanted: u64,
}

impl Entry {
    fn sold(&self) -> u64 {
        self.told.confirmed.saturating_sub(self.told.unconfirmed)
    }
}

/// The pool of one item. `default()` is a pool that nobody has made, or that was lost.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Pool {
    /// Number 0: missing.
    epoch: Epoch,
    is_open: bool,
    /// The home node's list, once it has reported in this epoch.
    listed: Option<Vec<JournalId>>,
    added: u64,
    withdrawn: u64,
    withdraw_key: KeyHash,
    withdraw_wanted: u64,
    generation: u64,
    journals: BTreeMap<JournalId, Entry>,
    news: Option<Change>,
}

impl Pool {
    /// Answers an ask. `server`: the identity of the server that the pool lives on now.
    pub fn on(&mut self, server: KeyHash, asker: &Asker, ask: &PoolAsk) -> PoolAnswer {
        let before = self.look();
        let refusal = match ask {
            PoolAsk::Create { home } => self.create(server, asker, home),
            PoolAsk::Join { home, bump_above } => {
                self.join(server, asker, home.as_ref(), *bump_above)
            }
            PoolAsk::Inspect => self.lost(server).then_some(PoolRefusal::Lost),
            _ => self.check(server, asker).or_else(|| {
                self.raise(asker);
                self.change(asker.journal, ask);
                None
            }),
        };
        let did_want = matches!(ask, PoolAsk::Grant { .. } | PoolAsk::Withdraw { .. });
        if refusal.is_none() || matches!(ask, PoolAsk::Join { .. }) {
            self.tell_news(before, did_want, asker.journal);
        }
        let view = Some(self.view(server, asker.journal));
        PoolAnswer { asker: *asker, asked: ask.clone(), view, refusal }
    }

    /// What was published since the last call.
    pub fn take_news(&mut self) -> Option<Change> {
        self.news.take()
    }

    fn lost(&self, server: KeyHash) -> bool {
        self.epoch.number == 0 || self.epoch.server != server
    }

    fn create(
        &mut self,
        server: KeyHash,
        asker: &Asker,
        home: &HomeStanding,
    ) -> Option<PoolRefusal> {
        let first = Epoch { number: 1, server };
        if self.epoch.number != 0 || asker.epoch != first {
            return Some(PoolRefusal::Lost);
        }
        let entry = Entry {
            epoch: first.number,
            incarnation: asker.incarnation,
            granted: asker.standing.accepted,
            told: asker.standing,
            wanted: 0,
        };
        *self = Self {
            epoch: first,
            is_open: true,
            listed: home.journals.clone(),
            added: home.added,
            withdrawn: home.withdrawn,
            generation: 1,
            journals: BTreeMap::from([(asker.journal, entry)]),
            ..Self::default()
        };
        None
    }

    fn join(
        &mut self,
        server: KeyHash,
        asker: &Asker,
        home: Option<&HomeStanding>,
        bump_above: u32,
    ) -> Option<PoolRefusal> {
        let known = self.journals.get(&asker.journal).copied().unwrap_or_default();
        if asker.incarnation < known.incarnation {
            return Some(PoolRefusal::Fenced { incarnation: known.incarnation });
        }
        let Standing { accepted, returned, .. } = known.told;
        let is_old = accepted > asker.standing.accepted || returned > asker.standing.returned;
        if is_old && !planted::is(Bug::OldCopyLetIn) {
            return Some(PoolRefusal::OldCopy { accepted, returned });
        }
        if self.lost(server) || self.epoch.number <= bump_above {
            return Some(self.begin(server, asker, bump_above));
        }
        if asker.epoch != self.epoch && !planted::is(Bug::EpochIgnored) {
            return Some(PoolRefusal::Epoch);
        }
        let granted = if known.epoch == self.epoch.number { known.granted } else { 0 };
        let is_lost = asker.standing.accepted > granted
            || home.is_some_and(|home| home.withdrawn > self.withdrawn);
        if self.is_open && is_lost {
            return Some(self.begin(server, asker, bump_above));
        }
        let entry = self.journals.entry(asker.journal).or_default();
        entry.epoch = self.epoch.number;
        entry.incarnation = asker.incarnation;
        entry.granted = if self.is_open { granted } else { granted.max(asker.standing.accepted) };
        entry.wanted = 0;
        self.raise(asker);
        if let Some(home) = home {
            let before = if planted::is(Bug::TotalAddsUp) { self.added } else { 0 };
            self.raise_added(before + home.added);
            self.withdrawn = self.withdrawn.max(home.withdrawn);
            self.withdraw_wanted = 0;
            if home.journals.is_some() {
                self.listed.clone_from(&home.journals);
            }
        }
        if !self.is_open && self.has_every_report() {
            self.is_open = true;
            self.generation += 1;
        }
        None
    }

    /// Begins a new epoch: everything that the pool says is forgotten, what journals proved stays.
    fn begin(&mut self, server: KeyHash, asker: &Asker, bump_above: u32) -> PoolRefusal {
        let number = self.epoch.number.max(bump_above).max(asker.epoch.number) + 1;
        for entry in self.journals.values_mut() {
            *entry = Entry { epoch: 0, granted: 0, wanted: 0, ..*entry };
        }
        // So it must report, even where the home node's list does not have it.
        if asker.standing.accepted > 0 || self.journals.contains_key(&asker.journal) {
            let entry = self.journals.entry(asker.journal).or_default();
            entry.incarnation = asker.incarnation;
            entry.told.raise(&asker.standing);
        }
        *self = Self {
            epoch: Epoch { number, server },
            generation: self.generation + 1,
            journals: std::mem::take(&mut self.journals),
            news: self.news,
            ..Self::default()
        };
        PoolRefusal::Epoch
    }

    fn has_every_report(&self) -> bool {
        let has = |journal: &JournalId| self.entry(*journal).is_some();
        let Some(listed) = &self.listed else { return false };
        if planted::is(Bug::RebuildUnreported) {
            return true;
        }
        let mut accepted = self.journals.iter().filter(|(_, entry)| entry.told.accepted > 0);
        listed.iter().all(has) && accepted.all(|(journal, _)| has(journal))
    }

    /// Why an ask other than a join may not change anything.
    fn check(&self, server: KeyHash, asker: &Asker) -> Option<PoolRefusal> {
        if self.lost(server) {
            return Some(PoolRefusal::Lost);
        }
        if asker.epoch != self.epoch && !planted::is(Bug::EpochIgnored) {
            return Some(PoolRefusal::Epoch);
        }
        let Some(entry) = self.entry(asker.journal) else { return Some(PoolRefusal::NotJoined) };
        if asker.incarnation < entry.incarnation {
            return Some(PoolRefusal::Fenced { incarnation: entry.incarnation });
        }
        if asker.incarnation > entry.incarnation {
            return Some(PoolRefusal::NotJoined);
        }
        // It granted them, and has forgotten it.
        (asker.standing.accepted > entry.granted).then_some(PoolRefusal::Lost)
    }

    /// Raises what the pool knows of a journal that has joined.
    fn raise(&mut self, asker: &Asker) {
        let entry = self.journals.get_mut(&asker.journal).expect("it has joined");
        let unconfirmed = entry.told.unconfirmed;
        let mut returned = asker.standing.returned.min(entry.granted);
        if planted::is(Bug::ReturnsAddUp) && returned > 0 {
            returned = (entry.told.returned + returned).min(entry.granted);
        }
        entry.told.raise(&Standing { returned, ..asker.standing });
        if entry.told.unconfirmed > unconfirmed {
            self.generation += 1;
        }
    }

    fn raise_added(&mut self, added: u64) {
        if added > self.added {
            self.added = added;
            self.generation += 1;
        }
    }

    fn change(&mut self, journal: JournalId, ask: &PoolAsk) {
        let pool = self.size();
        match *ask {
            PoolAsk::Grant { from, up_to, need, nodes, max } if self.is_open => {
                let spare = pool.saturating_sub(self.wanted_by(|other| other != journal));
                let entry = self.journals.get_mut(&journal).expect("it has joined");
                if entry.granted == from {
                    let asked = up_to.saturating_sub(from);
                    let need = need.min(asked);
                    let ahead = asked.min(share(spare, nodes, max));
                    entry.granted += ahead.max(need.min(share(pool, nodes, max)));
                    entry.wanted = need.saturating_sub(pool);
                }
            }
            PoolAsk::Withdraw { from, up_to, key } if self.is_open && self.withdrawn == from => {
                let asked = up_to.saturating_sub(from);
                if asked.min(pool) > 0 {
                    self.withdrawn += asked.min(pool);
                    self.withdraw_key = key;
                }
                self.withdraw_wanted = asked.saturating_sub(pool);
            }
            PoolAsk::Total { added } => self.raise_added(added),
            _ => {}
        }
    }

    fn entry(&self, journal: JournalId) -> Option<&Entry> {
        self.journals.get(&journal).filter(|entry| entry.epoch == self.epoch.number)
    }

    /// Those that have joined in this epoch.
    fn joined(&self) -> impl Iterator<Item = (JournalId, &Entry)> {
        let joined = self.journals.iter().filter(|(_, e)| e.epoch == self.epoch.number);
        joined.map(|(journal, entry)| (*journal, entry))
    }

    fn total(&self) -> u64 {
        self.added.saturating_sub(self.withdrawn)
    }

    fn size(&self) -> u64 {
        let granted: u64 = self.joined().map(|(_, e)| e.granted).sum();
        let returned: u64 = self.joined().map(|(_, e)| e.told.returned).sum();
        if self.is_open { (self.total() + returned).saturating_sub(granted) } else { 0 }
    }

    fn is_sold_out(&self) -> bool {
        let sold: u64 = self.joined().map(|(_, e)| e.sold()).sum();
        self.is_open && self.total() > 0 && sold == self.total()
    }

    fn wanted_by(&self, counts: impl Fn(JournalId) -> bool) -> u64 {
        let journals = self.joined().filter(|(journal, _)| counts(*journal));
        journals.map(|(_, e)| e.wanted).sum::<u64>() + self.withdraw_wanted
    }

    fn look(&self) -> Look {
        let (generation, is_sold_out) = (self.generation, self.is_sold_out());
        Look { pool: self.size(), generation, is_sold_out }
    }

    fn tell_news(&mut self, before: Look, did_want: bool, journal: JournalId) {
        let now = self.look();
        let own = self.entry(journal).map_or(0, |e| e.wanted) + self.withdraw_wanted;
        let is_turned = now.generation > before.generation;
        let news = if is_turned || now.is_sold_out && !before.is_sold_out {
            Some(Change::Turned)
        } else if now.pool > before.pool && self.wanted_by(|_| true) > 0 {
            Some(Change::Freed)
        } else {
            (did_want && own > 0 && now.pool == 0).then_some(Change::Wanted)
        };
        self.news = self.news.max(news);
    }

    fn view(&self, server: KeyHash, journal: JournalId) -> PoolView {
        if self.epoch.number == 0 {
            return PoolView { epoch: Epoch { number: 0, server }, ..PoolView::default() };
        }
        let own = self.entry(journal).copied().unwrap_or_default();
        let elsewhere = self.joined().filter(|(other, _)| *other != journal);
        PoolView {
            epoch: self.epoch,
            is_open: self.is_open,
            reported: self.joined().count() as u32,
            added: self.added,
            withdrawn: self.withdrawn,
            withdraw_key: self.withdraw_key,
            pool: self.size(),
            granted: own.granted,
            returned: own.told.returned,
            confirmed_elsewhere: elsewhere.map(|(_, e)| e.sold()).sum(),
            is_sold_out: self.is_sold_out(),
            generation: self.generation,
            wanted: self.wanted_by(|other| other != journal),
        }
    }
}

/// What is compared before and after, to know what to publish.
#[derive(Clone, Copy)]
struct Look {
    pool: u64,
    generation: u64,
    is_sold_out: bool,
}

/// How many units one grant may be: `clamp(pool / (2 × nodes), 1, max)`, never more than there
/// are. No nodes: nobody to share with.
fn share(pool: u64, nodes: u32, max: u64) -> u64 {
    let fair = pool.checked_div(2 * u64::from(nodes)).unwrap_or(pool);
    fair.min(max).max(1).min(pool)
}

impl Standing {
    /// Takes the larger of each.
    pub fn raise(&mut self, to: &Self) {
        self.accepted = self.accepted.max(to.accepted);
        self.returned = self.returned.max(to.returned);
        self.confirmed = self.confirmed.max(to.confirmed);
        self.unconfirmed = self.unconfirmed.max(to.unconfirmed);
    }
}

#[cfg(test)]
mod tests;
