//! The lease of one item on one node: events and the time in, actions out, no I/O.
//!
//! ```text
//!  new sale ─ Looking ─► at home: epoch 1 recorded ─► Creating ─┐
//!                │ it is there                                  │ made
//!  start ────────┴───────────► Joining ◄──── lost, other epoch ─┼──────────┐
//!                        ▲  │    │ epoch e seen: recorded first │          │
//!                        └──┘    ├──────────► Open ◄────────────┘          │
//!                                │             ▲  │                        │
//!                                └─► Shut ─────┘  └────────────────────────┘
//!                             (a rebuild waits for reports)
//!
//!  grant:   ask ─► pool: granted = G ─► Record(Granted G) ─► durable ─► units enter the line
//!  return:  units leave the line ─► Record(Returned R) ─► durable ─► told
//! ```
//! Counters only rise, each ask carries all that is durable here, and one ask is out at a time: so
//! every message may be lost, late or repeated, and a crash between any two steps leaves units
//! unsold for a while, never sold twice.
//!
//! † *Epoch.* A node enters an epoch by a durable record, and takes no grant that was asked for
//! under an older one, even if its answer is in flight [the pool was rebuilt without the grant, and
//! granted the same units to another].

use super::ask::{
    Asker, Change, Epoch, HomeStanding, PoolAnswer, PoolAsk, PoolRefusal, PoolView, Standing,
};
use crate::planted::{self, Bug};
use crate::units::{Incarnation, ItemIndex, JournalId, KeyHash};

pub mod demand;
mod open;
#[cfg(test)]
mod tests;

use demand::{Backoff, Demand, Stay};

/// How a lease is taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LeaseRules {
    /// Nodes that share the item; 0: this one is alone, and takes all there is.
    pub nodes: u32,
    /// Units of one grant at most.
    pub max: u64,
}

/// Whose lease it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Holder {
    pub item: ItemIndex,
    pub journal: JournalId,
    pub incarnation: Incarnation,
}

/// What the journal proves of the item.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Known {
    pub epoch: Epoch,
    pub standing: Standing,
    /// Where this node is the home of the item's sale.
    pub home: Option<HomeStanding>,
    pub total: u64,
    /// Units in the line.
    pub free: u64,
}

/// What happened.
#[expect(clippy::large_enum_variant, reason = "an event is taken at once, and never kept")]
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LeaseEvent {
    /// A look at the line and at what was confirmed durably; `is_missed`: somebody was refused for
    /// want of a unit since the last look.
    Seen {
        free: u64,
        confirmed: u64,
        unconfirmed: u64,
        is_missed: bool,
    },
    Answer(PoolAnswer),
    /// Something about the item is new; [`Change::Turned`], where news may have been missed.
    News(Change),
    /// The record "epoch seen" is durable.
    EpochDurable {
        epoch: Epoch,
    },
    /// The record "accepted `granted`" is durable.
    AcceptDurable {
        granted: u64,
    },
    /// So many units were taken out of the line, upon [`LeaseAction::Take`].
    Taken {
        quantity: u64,
    },
    /// The record "returned `returned`" is durable.
    ReturnDurable {
        returned: u64,
    },
    /// The sale's home changed the total, durably.
    HomeDurable {
        added: u64,
        withdrawn: u64,
    },
    /// The journals that may hold units of the item are known.
    Journals(Vec<JournalId>),
    /// Whether the sale is on, or will be: a lease is taken ahead only then.
    Selling(bool),
    /// The home is asked to take units off the total; answered by [`LeaseAction::Withdrawn`].
    Withdraw {
        quantity: u64,
        key: KeyHash,
    },
}

/// What to do about it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LeaseAction {
    Ask(Asker, PoolAsk),
    /// Record that the pool stands at this epoch.
    RecordEpoch(Epoch),
    /// Record that the total is this, and then what follows.
    RecordTotal(u64),
    /// Record that `granted` is accepted in all.
    RecordGranted {
        granted: u64,
        epoch: u32,
    },
    /// Let units into the line.
    Enter {
        quantity: u64,
    },
    /// Take up to so many units out of the line, and say [`LeaseEvent::Taken`] at once.
    Take {
        quantity: u64,
    },
    /// Record that `quantity` more units are returned.
    RecordReturned {
        quantity: u64,
        epoch: u32,
    },
    /// The withdrawal at hand is over: so many units are off the pool; `None`: it cannot be known
    /// now, and if some are, it will be found.
    Withdrawn {
        key: KeyHash,
        quantity: Option<u64>,
    },
    /// The pool has a withdrawal that the journal does not: record it.
    WithdrawalFound {
        key: KeyHash,
        quantity: u64,
    },
    /// What the pool says of the whole item.
    Elsewhere(Elsewhere),
    /// This process must not go on with this data folder.
    Halt(Halt),
}

/// The item beyond this node.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Elsewhere {
    pub total: u64,
    /// Units confirmed by others, where all of the total is confirmed: then none can come back.
    pub final_confirmed: Option<u64>,
    /// Units in the pool, or with others and not confirmed, as far as the pool was told.
    pub open_units: u64,
    /// The pool's stock generation: it rises when units are added or come back.
    pub generation: u64,
}

/// Why a process must end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Halt {
    /// A newer process has opened this data folder, or a copy of it.
    Fenced { incarnation: Incarnation },
    /// The pool was told more by this journal than the data folder knows: it is an old copy.
    OldCopy { accepted: u64, returned: u64, known: Standing },
}

/// Where the lease stands with the pool.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    /// Asks which server it is, before the pool is made.
    Looking,
    /// The first epoch is durable, the pool is to be made.
    Creating,
    Joining {
        bump_above: u32,
    },
    /// A rebuild waits for reports.
    Shut,
    Open,
    /// Fenced, or an old copy.
    Ended,
}

impl Phase {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Looking | Self::Creating | Self::Joining { .. } => "joining",
            Self::Shut => "rebuilding",
            Self::Open => "open",
            Self::Ended => "ended",
        }
    }
}

/// How soon the lease must be looked at again.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Pace {
    /// Something moves, or is waited for.
    Fast,
    /// Nothing sells.
    Slow,
    /// Only events change anything.
    Never,
}

/// An ask that waits for its answer.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Out {
    asker: Asker,
    ask: PoolAsk,
    at: u64,
}

/// Why the pool is asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Cause {
    /// Units are needed or moved, or something was heard.
    Event,
    /// Nothing but the time.
    Time,
}

/// A withdrawal under way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Withdrawal {
    key: KeyHash,
    quantity: u64,
    until: u64,
    not_before: u64,
    /// An ask was not answered: what it did is not known.
    is_unsure: bool,
}

/// After this long an answer is not waited for any more.
pub const ANSWER_MS: u64 = 3_000;
/// A node that nobody has asked for this long is looked at less often, and waits for nothing.
const DRY_MS: u64 = 5_000;
/// A node that has nothing looks for what comes free so long after it heard that others want some.
const WANTED_MS: u64 = 2_000;
/// How long a withdrawal waits for units of other nodes.
pub const WITHDRAW_MS: u64 = 1_000;

/// The lease of one item.
///
/// Invariants: accepted ≤ recorded granted ≤ granted by the pool; told ≤ durable ≤ recorded
/// returned. `standing` holds durable figures only.
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
#[derive(Clone, Debug)]
pub struct Lease {
    rules: LeaseRules,
    holder: Holder,
    phase: Phase,
    epoch: Epoch,
    /// Recorded, not durable yet: nothing is asked or taken until it is.
    next_epoch: Option<Epoch>,
    standing: Standing,
    home: Option<HomeStanding>,
    /// Recorded, perhaps not durable yet.
    granted: u64,
    returned: u64,
    total: u64,
    /// At home: taken off the total, recorded or being recorded.
    withdrawn: u64,
    /// Units in the line, as last seen and moved since.
    line: u64,
    /// Of a [`LeaseAction::Take`] that was not answered yet.
    taking: Option<u64>,
    demand: Demand,
    /// Asked of the pool so many units at a time.
    last_grant: u64,
    is_selling: bool,
    not_selling_since: u64,
    /// Gave all it had to others: takes none ahead until somebody wants one here.
    is_resting: bool,
    /// Units that are on their way in were asked for.
    is_awaited: bool,
    stay: Stay,
    /// The pool is to be looked at.
    has_news: bool,
    /// Units may be there that were waited for here.
    is_freed: bool,
    /// Others wait for units, as heard since the last ask; and when that was heard or seen last.
    is_wanted: bool,
    wanted_at: u64,
    out: Option<Out>,
    told: Standing,
    told_at: u64,
    /// The newest view: what is true of one epoch only.
    view: PoolView,
    /// Units that the pool may have noted as wanted here, until the next grant.
    noted: u64,
    /// A withdrawal ended without all that it was for: the pool waits for the rest of it.
    is_noted_off: bool,
    /// Asks that nothing but the time caused.
    looks: u64,
    recall: Backoff,
    trouble: Backoff,
    is_reachable: bool,
    withdrawal: Option<Withdrawal>,
    last_elsewhere: Option<Elsewhere>,
}

impl Lease {
    /// Starts from what the journal proves. The first ask leaves with the first event.
    pub fn new(rules: LeaseRules, holder: Holder, known: Known) -> Self {
        let Known { epoch, standing, home, total, free } = known;
        // A pool is begun by the home of its sale: others wait until it is there.
        let is_new = epoch.number == 0;
        Self {
            rules,
            holder,
            phase: if is_new { Phase::Looking } else { Phase::Joining { bump_above: 0 } },
            epoch,
            next_epoch: None,
            standing,
            granted: standing.accepted,
            returned: standing.returned,
            total,
            withdrawn: home.as_ref().map_or(0, |home| home.withdrawn),
            home,
            line: free,
            taking: None,
            demand: Demand::default(),
            last_grant: 0,
            is_selling: true,
            not_selling_since: 0,
            is_resting: false,
            is_awaited: false,
            stay: Stay::default(),
            has_news: false,
            is_freed: false,
            is_wanted: false,
            wanted_at: 0,
            out: None,
            told: Standing::default(),
            told_at: 0,
            view: PoolView::default(),
            noted: 0,
            is_noted_off: false,
            looks: 0,
            recall: Backoff::new(20, 1_000),
            trouble: Backoff::new(50, 1_000),
            is_reachable: true,
            withdrawal: None,
            last_elsewhere: None,
        }
    }

    pub fn phase(&self) -> Phase {
        self.phase
    }
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }
    /// What is durable.
    pub fn standing(&self) -> Standing {
        self.standing
    }
    /// The pool as last seen.
    pub fn view(&self) -> &PoolView {
        &self.view
    }
    pub fn is_reachable(&self) -> bool {
        self.is_reachable
    }
    pub fn is_withdrawing(&self) -> bool {
        self.withdrawal.is_some()
    }
    /// Asks that nothing but the time caused: nobody had asked for more, and nothing had changed.
    pub fn looks(&self) -> u64 {
        self.looks
    }
    /// Whether the next refusal for want of a unit is worth a look at once.
    pub fn waits_for_miss(&self) -> bool {
        self.line == 0 && self.noted == 0 && self.out.is_none()
    }

    /// Whether nothing is on its way: what can be had now is in the line.
    pub fn is_settled(&self) -> bool {
        self.phase == Phase::Open
            && self.out.is_none()
            && self.next_epoch.is_none()
            && self.granted == self.standing.accepted
            && self.returned == self.standing.returned
            && self.home.as_ref().is_none_or(|home| home.added <= self.view.added)
    }

    /// How soon [`LeaseEvent::Seen`] must come again.
    pub fn pace(&self, now: u64) -> Pace {
        if self.phase == Phase::Ended {
            return Pace::Never;
        }
        let is_alone = self.rules.nodes == 0;
        let is_busy = !self.is_settled()
            || self.withdrawal.is_some()
            || self.has_news && self.trouble.is_over(now)
            || self.is_wanted_elsewhere() && (self.line > 0 || now < self.wanted_at + WANTED_MS)
            || self.is_selling && self.demand.was_within(now, DRY_MS) && !self.view.is_sold_out
            || !self.is_selling && self.line > 0;
        match (is_alone, is_busy) {
            (true, _) if self.is_settled() && self.withdrawal.is_none() => Pace::Never,
            (_, true) => Pace::Fast,
            _ => Pace::Slow,
        }
    }

    /// As far as is known here.
    fn is_wanted_elsewhere(&self) -> bool {
        self.is_wanted || self.view.lacking() > 0
    }

    /// Takes an event. Times are in milliseconds, and never go back.
    ///
    /// Panics: when a durable record says what this lease never recorded, which is a bug.
    pub fn on(&mut self, now: u64, event: LeaseEvent, actions: &mut Vec<LeaseAction>) {
        if self.phase == Phase::Ended {
            // Records that were on their way still count; nothing new is begun.
            if let LeaseEvent::AcceptDurable { granted } = event {
                self.accept(now, granted, actions);
            }
            return;
        }
        match event {
            LeaseEvent::Seen { free, confirmed, unconfirmed, is_missed } => {
                let fell = self.line.saturating_sub(free);
                self.demand.see(now, fell, is_missed);
                self.is_resting &= fell == 0 && !is_missed;
                if fell > 0 {
                    self.stay = Stay::default();
                }
                self.line = free;
                self.standing.confirmed = self.standing.confirmed.max(confirmed);
                self.standing.unconfirmed = self.standing.unconfirmed.max(unconfirmed);
            }
            LeaseEvent::Answer(answer) => self.answer(now, answer, actions),
            LeaseEvent::News(change) => self.hear(now, change),
            LeaseEvent::EpochDurable { epoch } => {
                assert_eq!(self.next_epoch, Some(epoch), "durable before it was recorded");
                self.enter_epoch(epoch);
            }
            LeaseEvent::AcceptDurable { granted } => self.accept(now, granted, actions),
            LeaseEvent::Taken { quantity } => {
                let asked = self.taking.take().expect("a take was asked for");
                // Fewer than asked for: shards took the rest meanwhile.
                self.line = if quantity < asked { 0 } else { self.line.saturating_sub(quantity) };
                if quantity == 0 {
                    // Still wanted, by whoever it was taken for.
                    self.is_wanted = true;
                } else {
                    self.returned += quantity;
                    assert!(self.returned <= self.standing.accepted, "more than was ever accepted");
                    let epoch = self.epoch.number;
                    actions.push(LeaseAction::RecordReturned { quantity, epoch });
                }
            }
            LeaseEvent::ReturnDurable { returned } => {
                assert!(returned <= self.returned, "durable before it was recorded");
                self.standing.returned = self.standing.returned.max(returned);
            }
            LeaseEvent::HomeDurable { added, withdrawn } => {
                let journals = self.home.take().and_then(|home| home.journals);
                self.home = Some(HomeStanding { added, withdrawn, journals });
                self.withdrawn = self.withdrawn.max(withdrawn);
            }
            LeaseEvent::Journals(journals) => {
                if let Some(home) = &mut self.home {
                    home.journals = Some(journals);
                    self.has_news = true;
                }
            }
            LeaseEvent::Selling(is_selling) => {
                if self.is_selling && !is_selling {
                    self.not_selling_since = now;
                }
                self.is_selling = is_selling;
            }
            LeaseEvent::Withdraw { quantity, key } => {
                assert!(self.withdrawal.is_none(), "one withdrawal at a time");
                let until = now + WITHDRAW_MS;
                let (not_before, is_unsure) = (now, false);
                self.withdrawal = Some(Withdrawal { key, quantity, until, not_before, is_unsure });
            }
        }
        self.step(now, actions);
    }

    fn hear(&mut self, now: u64, change: Change) {
        match change {
            // Whoever holds nothing has nothing to look for, until it does.
            Change::Wanted => {
                self.is_wanted = true;
                self.wanted_at = now;
            }
            Change::Freed => self.is_freed |= self.noted > 0 || self.withdrawal.is_some(),
            Change::Turned => self.has_news = true,
        }
    }

    fn accept(&mut self, now: u64, granted: u64, actions: &mut Vec<LeaseAction>) {
        assert!(granted <= self.granted, "accepted {granted}, recorded {}", self.granted);
        let Some(quantity) = granted.checked_sub(self.standing.accepted).filter(|q| *q > 0) else {
            return;
        };
        self.standing.accepted = granted;
        self.line += quantity;
        if std::mem::take(&mut self.is_awaited) {
            self.stay.begin(now);
        }
        actions.push(LeaseAction::Enter { quantity });
    }

    /// What follows from all that is known now.
    fn step(&mut self, now: u64, actions: &mut Vec<LeaseAction>) {
        if self.phase == Phase::Ended {
            return;
        }
        if self.out.as_ref().is_some_and(|out| now >= out.at + ANSWER_MS) {
            self.lose_answer(now);
        }
        self.end_withdrawal(now, actions);
        self.give_back(now, actions);
        if self.out.is_none()
            && self.next_epoch.is_none()
            && self.trouble.is_over(now)
            && let Some((ask, cause)) = self.next_ask(now)
        {
            self.looks += u64::from(cause == Cause::Time);
            self.send(now, ask, actions);
        }
    }

    fn send(&mut self, now: u64, ask: PoolAsk, actions: &mut Vec<LeaseAction>) {
        if let PoolAsk::Grant { need, .. } = ask {
            // Until it is known what became of it.
            self.noted = self.noted.max(need);
        }
        let Holder { item, journal, incarnation } = self.holder;
        let (epoch, standing) = (self.epoch, self.standing);
        let asker = Asker { item, journal, incarnation, epoch, standing };
        self.out = Some(Out { asker, ask: ask.clone(), at: now });
        (self.has_news, self.is_freed, self.is_wanted) = (false, false, false);
        self.told_at = now;
        actions.push(LeaseAction::Ask(asker, ask));
    }

    fn next_ask(&mut self, now: u64) -> Option<(PoolAsk, Cause)> {
        let join = |bump_above| PoolAsk::Join { home: self.home.clone(), bump_above };
        match self.phase {
            Phase::Creating => {
                let home = self.home.clone().expect("only the home makes a pool");
                Some((PoolAsk::Create { home }, Cause::Event))
            }
            Phase::Joining { bump_above } => Some((join(bump_above), Cause::Event)),
            Phase::Looking | Phase::Shut => {
                let cause = if self.has_news { Cause::Event } else { Cause::Time };
                let ask = if self.phase == Phase::Shut { join(0) } else { PoolAsk::Inspect };
                (self.has_news || self.recall.is_over(now)).then(|| {
                    self.recall.fail(now);
                    (ask, cause)
                })
            }
            Phase::Open => self.next_open(now),
            Phase::Ended => None,
        }
    }

    /// † What an ask was for is not forgotten with it. [Redis came back with nothing, its news
    /// before its calls: the look that they were worth was lost, and a home that had units to sell
    /// never heard of the new epoch. Its pool stayed shut.]
    fn lose_answer(&mut self, now: u64) {
        self.is_reachable = false;
        self.trouble.fail(now);
        self.has_news |= !planted::is(Bug::NewsForgotten);
        let Some(out) = self.out.take() else { return };
        if matches!(out.ask, PoolAsk::Withdraw { .. })
            && let Some(withdrawal) = &mut self.withdrawal
        {
            withdrawal.is_unsure = true;
        }
        // Never made twice: whether it was made is found by joining.
        if self.phase == Phase::Creating {
            self.phase = Phase::Joining { bump_above: 0 };
        }
    }

    fn answer(&mut self, now: u64, answer: PoolAnswer, actions: &mut Vec<LeaseAction>) {
        let PoolAnswer { asker, asked, view, refusal } = answer;
        // † With all that it told: the same may have been asked before, when there was less to
        // tell. [That answer came twice, the ask that carried a return was lost, and the pool never
        // heard of the unit.]
        let is_it = |out: &Out| (&out.asker, &out.ask) == (&asker, &asked);
        let is_current = self.out.as_ref().is_some_and(is_it);
        if matches!(refusal, Some(PoolRefusal::Unavailable(_))) {
            if is_current {
                self.lose_answer(now);
            }
            return;
        }
        let sent = if is_current { self.out.take() } else { None };
        if is_current {
            self.is_reachable = true;
            self.trouble.reset();
        }
        let view = view.unwrap_or_default();
        match refusal {
            Some(PoolRefusal::Fenced { incarnation }) => {
                if incarnation > self.holder.incarnation {
                    self.halt(Halt::Fenced { incarnation }, actions);
                }
            }
            // † A late join carries less than was told since: only what the journal lacks *now*
            // makes it an old copy.
            Some(PoolRefusal::OldCopy { accepted, returned }) => {
                let known = self.standing;
                if accepted > known.accepted || returned > known.returned {
                    self.halt(Halt::OldCopy { accepted, returned, known }, actions);
                } else if is_current {
                    self.phase = Phase::Joining { bump_above: 0 };
                }
            }
            Some(PoolRefusal::Epoch) => self.see_epoch(view.epoch, is_current, actions),
            Some(PoolRefusal::Lost | PoolRefusal::NotJoined)
                if is_current && self.phase != Phase::Looking =>
            {
                self.phase = Phase::Joining { bump_above: 0 };
            }
            None | Some(PoolRefusal::Lost) if is_current && self.phase == Phase::Looking => {
                self.look(&view, refusal.is_none(), actions);
            }
            Some(_) => {}
            None => {
                let is_ours = asker.epoch == self.epoch && self.next_epoch.is_none();
                if is_ours || planted::is(Bug::LateGrantTaken) {
                    self.see(now, &asked, &view, sent.as_ref(), actions);
                }
            }
        }
    }

    /// Before the pool is made: the first epoch belongs to the server that answers the home.
    fn look(&mut self, view: &PoolView, is_there: bool, actions: &mut Vec<LeaseAction>) {
        if self.home.is_none() {
            if is_there {
                self.phase = Phase::Joining { bump_above: 0 };
            }
        } else if view.epoch.number == 0 {
            let first = Epoch { number: 1, server: view.epoch.server };
            self.next_epoch = Some(first);
            actions.push(LeaseAction::RecordEpoch(first));
        } else {
            self.phase = Phase::Joining { bump_above: 0 };
        }
    }

    fn see_epoch(&mut self, seen: Epoch, is_current: bool, actions: &mut Vec<LeaseAction>) {
        let newest = self.next_epoch.unwrap_or(self.epoch);
        if seen.number > newest.number {
            // Two in a row: the first must be durable before the second is recorded.
            if self.next_epoch.is_none() {
                self.next_epoch = Some(seen);
                self.phase = Phase::Joining { bump_above: 0 };
                actions.push(LeaseAction::RecordEpoch(seen));
            }
        } else if is_current && seen != newest {
            // A server that has never heard of this journal's epoch.
            self.phase = Phase::Joining { bump_above: newest.number };
        } else if is_current {
            self.phase = Phase::Joining { bump_above: 0 };
        }
    }

    fn enter_epoch(&mut self, epoch: Epoch) {
        self.next_epoch = None;
        self.epoch = epoch;
        self.phase = match self.phase {
            Phase::Looking => Phase::Creating,
            _ => Phase::Joining { bump_above: 0 },
        };
        // Nothing of an older epoch's view holds; neither does what was told.
        self.view = PoolView::default();
        self.told = Standing::default();
        self.noted = 0;
        self.recall.reset();
    }

    fn halt(&mut self, why: Halt, actions: &mut Vec<LeaseAction>) {
        self.phase = Phase::Ended;
        actions.push(LeaseAction::Halt(why));
    }
}
