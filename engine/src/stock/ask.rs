//! What journals ask of the pool of an item, and what it answers: the words of the lease protocol.
//!
//! A pool is an escrow of cumulative counters that only rise, so that every message may be lost,
//! late or repeated. Each ask carries all that its journal can prove of itself ([`Standing`]), and
//! the pool keeps the maximum; so no ask depends on an earlier one having arrived.
//!
//! ```text
//! total = added − withdrawn        pool = total − Σ granted + Σ returned
//! ```
//! The pool lives in Redis, or in the node itself ([`super::authority`]). Redis may lose writes:
//! what it says holds for one [`Epoch`], and journals are never wrong.

use crate::units::{Incarnation, ItemIndex, JournalId, KeyHash};

/// Which life of an item's pool a counter belongs to.
///
/// A pool that lost writes is rebuilt from what the journals report, under a higher number. Two
/// servers may reach the same number without knowing of each other, so the server's identity goes
/// with it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Epoch {
    /// 0: none yet; a pool's first is 1.
    pub number: u32,
    /// Fingerprint of the server's identity (Redis: `run_id:master_replid`).
    pub server: KeyHash,
}

/// What a journal has made durable about an item; all cumulative.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Standing {
    /// Units accepted from the pool.
    pub accepted: u64,
    /// Units given back to the pool.
    pub returned: u64,
    /// Units confirmed.
    pub confirmed: u64,
    /// Units of confirmed redemptions that were reversed, and can be sold again.
    pub unconfirmed: u64,
}

/// What only the item's home node knows. Durable in its journal; cumulative.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct HomeStanding {
    pub added: u64,
    pub withdrawn: u64,
    /// The journals that may hold units of the item: the pool opens again only once each of them
    /// has reported. `None`: not known yet, so it stays shut.
    pub journals: Option<Vec<JournalId>>,
}

/// Who asks, about what.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Asker {
    pub item: ItemIndex,
    pub journal: JournalId,
    pub incarnation: Incarnation,
    /// The newest epoch that this journal has recorded durably.
    pub epoch: Epoch,
    pub standing: Standing,
}

/// What is asked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PoolAsk {
    /// The home node makes the pool of a new item, once: its epoch (number 1 and this server) is
    /// recorded durably before. Refused with `Lost` if it exists already or the server is another.
    Create { home: HomeStanding },
    /// "This is my incarnation, and what I can prove." Fences older incarnations; reports to a
    /// rebuild; begins one where the pool is missing, the server has changed, or the pool's epoch
    /// is not above `bump_above` (0: whatever it is).
    Join { home: Option<HomeStanding>, bump_above: u32 },
    /// "Raise my granted from `from` to at most `up_to`; `need` of these are asked for now." Size,
    /// decided by the pool: `min(pool, clamp(pool / (2 × nodes), 1, max), up_to − from)`; beyond
    /// `need` only of what others do not wait for. What it needs and the pool does not have is
    /// noted as wanted, for those that hold free units.
    Grant { from: u64, up_to: u64, need: u64, nodes: u32, max: u64 },
    /// Nothing but the standing: returns, confirmed units, and a look at the pool.
    Tell,
    /// From the home node: the units added so far are now `added`.
    Total { added: u64 },
    /// From the home node: raise the withdrawn units from `from` to at most `up_to`, for the
    /// request with this key. What could not be had is noted as wanted.
    Withdraw { from: u64, up_to: u64, key: KeyHash },
    /// Changes nothing, asks of no epoch.
    Inspect,
}

/// The pool as one script saw it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PoolView {
    pub epoch: Epoch,
    /// Whether it grants: not while a rebuild waits for reports.
    pub is_open: bool,
    /// Journals that have joined or reported in this epoch.
    pub reported: u32,
    pub added: u64,
    pub withdrawn: u64,
    /// Of the last withdrawal.
    pub withdraw_key: KeyHash,
    /// Units that may be granted; 0 while shut.
    pub pool: u64,
    /// To the asking journal.
    pub granted: u64,
    /// By the asking journal.
    pub returned: u64,
    /// Units confirmed and not reversed, by all other journals.
    pub confirmed_elsewhere: u64,
    /// Σ (confirmed − unconfirmed) of all journals = total, seen at once.
    pub is_sold_out: bool,
    /// Rises whenever units can be sold again that could not: added, reversed, rebuilt.
    pub generation: u64,
    /// Units that other journals, or a withdrawal, wait for; those in the pool may be some of them.
    pub wanted: u64,
}

impl PoolView {
    pub fn total(&self) -> u64 {
        self.added.saturating_sub(self.withdrawn)
    }

    /// Units that others wait for and the pool does not have.
    pub fn lacking(&self) -> u64 {
        self.wanted.saturating_sub(self.pool)
    }

    /// Units in the pool that nobody else waits for.
    pub fn spare(&self) -> u64 {
        self.pool.saturating_sub(self.wanted)
    }
}

/// Why an ask changed nothing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PoolRefusal {
    /// The pool stands at another epoch: record it durably, then join.
    Epoch,
    /// The pool is missing, or its server is not the one it was made on: join, to rebuild it.
    Lost,
    /// The journal has not joined in this epoch.
    NotJoined,
    /// A newer incarnation of this journal has joined: this process must end.
    Fenced { incarnation: Incarnation },
    /// The pool was told of more accepted or returned units than the journal knows: its data
    /// folder is an old copy, and must not be started.
    OldCopy { accepted: u64, returned: u64 },
    /// No answer, or an error: nothing is known of what happened.
    Unavailable(String),
}

/// An answer, and the ask that it belongs to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PoolAnswer {
    /// As it stood when it asked: an answer to an ask under an older epoch grants nothing, and what
    /// was told is what this says.
    pub asker: Asker,
    pub asked: PoolAsk,
    /// The view is there with most refusals, too.
    pub view: Option<PoolView>,
    pub refusal: Option<PoolRefusal>,
}

/// What makes a node look at an item's pool before its time comes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PoolNews {
    Changed {
        item: ItemIndex,
        change: Change,
    },
    /// The connection was lost and is there again: news may have been missed.
    Reconnected,
}

/// What is new about a pool, and so whom it concerns. Of several the last one counts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Change {
    /// Somebody waits for units that the pool does not have: for those that hold some.
    Wanted,
    /// Units have come that somebody waits for: for those that wait.
    Freed,
    /// A stock generation began, or all is sold: for all.
    Turned,
}

impl Change {
    pub const ALL: [Self; 3] = [Self::Wanted, Self::Freed, Self::Turned];

    /// As the scripts say it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Wanted => "wanted",
            Self::Freed => "freed",
            Self::Turned => "turned",
        }
    }
}
