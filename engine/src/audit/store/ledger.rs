//! The ledger: two legs per move, zero in sum, and the very moves of the journal.
//!
//! What the journal says of a ledger is summed up per slot, as the wrapping sum of a hash per
//! move. Where the rows give the same sum they are the same; where not, the journal is read once
//! more for those slots, to name the row.

use std::collections::{BTreeMap, BTreeSet};

use super::behind::Behind;
use super::{CannotCompare, ShardAudit};
use crate::audit::finding::{Check, Where};
use crate::audit::model::Map;
use crate::kernel::record::Record;
use crate::persist::rows::{LedgerAccount, LedgerRow, MoveKind};
use crate::units::{MemberId, NodeTime, RedemptionId, SLOT_COUNT, Seq, Slot};

/// One move of points.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry {
    pub member: MemberId,
    pub kind: MoveKind,
    pub amount: u64,
    pub redemption: Option<RedemptionId>,
    pub at: NodeTime,
}

impl Entry {
    /// The move that a record is.
    pub fn of(record: &Record) -> Option<Self> {
        let entry = |member, kind, amount: crate::units::Points, redemption, at| {
            Some(Self { member, kind, amount: amount.get(), redemption, at })
        };
        match record {
            Record::Opened(r) => entry(r.member, MoveKind::Opened, r.points, None, r.at),
            Record::Credited(r) => entry(r.member, MoveKind::Credited, r.amount, None, r.at),
            Record::Debited(r) => entry(r.member, MoveKind::Debited, r.amount, None, r.at),
            Record::Held(r) => entry(r.member, MoveKind::Held, r.points, Some(r.id), r.id.at()),
            Record::Redeemed(r) => {
                entry(r.member, MoveKind::Redeemed, r.points, Some(r.id), r.id.at())
            }
            Record::Confirmed(r) => {
                entry(r.member, MoveKind::Confirmed, r.points, Some(r.id), r.at)
            }
            Record::Released(r) => entry(r.member, MoveKind::Released, r.points, Some(r.id), r.at),
            Record::Reversed(r) => entry(r.member, MoveKind::Reversed, r.points, Some(r.id), r.at),
            _ => None,
        }
    }

    /// The accounts that the points leave and enter: the auditor's own table.
    fn accounts(kind: MoveKind) -> (LedgerAccount, LedgerAccount) {
        use LedgerAccount::{Free, Held, Issued, Redeemed};
        match kind {
            MoveKind::Opened | MoveKind::Credited => (Issued, Free),
            MoveKind::Debited => (Free, Issued),
            MoveKind::Held => (Free, Held),
            MoveKind::Redeemed => (Free, Redeemed),
            MoveKind::Confirmed => (Held, Redeemed),
            MoveKind::Released => (Held, Free),
            MoveKind::Reversed => (Redeemed, Free),
        }
    }

    fn hash(&self, seq: Seq) -> u64 {
        let mut bytes = [0; 49];
        bytes[0..8].copy_from_slice(&seq.get().to_le_bytes());
        bytes[8..16].copy_from_slice(&self.member.get().to_le_bytes());
        bytes[16..24].copy_from_slice(&self.amount.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.at.get().to_le_bytes());
        let id = self.redemption.map_or(0, RedemptionId::get);
        bytes[32..48].copy_from_slice(&id.to_le_bytes());
        bytes[48] = self.kind as u8;
        xxhash_rust::xxh3::xxh3_64(&bytes)
    }
}

/// What the journal says of each slot's ledger rows, from `from` to the watermark.
pub struct Entries {
    from: Seq,
    /// Moves of an earlier time may have been taken out.
    not_before: NodeTime,
    sums: Vec<u64>,
}

impl Entries {
    /// `from`: the journal's first record.
    pub fn new(from: Seq, not_before: NodeTime) -> Self {
        Self { from, not_before, sums: vec![0; SLOT_COUNT] }
    }
    /// The move that a record is, where its row must be there.
    fn kept(&self, record: &Record) -> Option<Entry> {
        Entry::of(record).filter(|entry| entry.at >= self.not_before)
    }
    pub fn note(&mut self, seq: Seq, slot: Slot, record: &Record, behind: &Behind) {
        if seq > behind.watermark_of(slot) || behind.is_set_aside(seq) {
            return;
        }
        if let (Some(entry), Some(sum)) = (self.kept(record), self.sums.get_mut(slot.index())) {
            *sum = sum.wrapping_add(entry.hash(seq));
        }
    }
}

/// What the ledger rows give a member: free and held points.
pub type Balances = Map<u64, (i64, i64)>;

/// The legs of one move.
#[derive(Default)]
struct Group {
    seq: Seq,
    rows: Vec<LedgerRow>,
}

/// A walk over all rows.
struct Walk {
    group: Group,
    sums: Vec<u64>,
    balances: Balances,
}

impl ShardAudit<'_> {
    /// Gives what the rows make of every member's balance.
    pub(super) fn ledger(&mut self) -> Result<Balances, CannotCompare> {
        let mut walk = Walk {
            group: Group::default(),
            sums: vec![0; SLOT_COUNT],
            balances: self.archived_balances(),
        };
        let read = self.read;
        let walked = read.each_entry(&mut |row| {
            if row.seq != walk.group.seq {
                self.group(&mut walk);
                walk.group.seq = row.seq;
            }
            walk.group.rows.push(row);
        });
        self.group(&mut walk);
        if let Err(e) = walked {
            self.or_corrupt(Check::StoreLedger, e)?;
        }
        if self.figures.ledger_sum != 0 {
            let sentence = format!("all amounts sum to {}, not to zero", self.figures.ledger_sum);
            self.find(Check::StoreLedger, self.here(), sentence);
        }
        let differing: BTreeSet<Slot> = self
            .slots_here()
            .filter(|slot| walk.sums[slot.index()] != self.entries.sums[slot.index()])
            .collect();
        if !differing.is_empty() {
            self.name_rows(&differing)?;
        }
        Ok(walk.balances)
    }

    /// What was taken out of the ledgers of the members that belong here.
    fn archived_balances(&self) -> Balances {
        let all = self.archived.balances.iter();
        let here = all.filter(|(member, _)| self.is_home_of(Slot::of(MemberId::new(**member))));
        here.map(|(member, balance)| (*member, *balance)).collect()
    }

    /// Checks the legs of one move.
    fn group(&mut self, walk: &mut Walk) {
        let rows = std::mem::take(&mut walk.group.rows);
        let Some(first) = rows.first() else { return };
        let seq = walk.group.seq;
        let slot = Slot::of(first.member);
        let at = self.here().with_member(first.member).with_seq(seq);
        self.figures.ledger_rows += rows.len() as u64;
        for row in &rows {
            self.figures.ledger_sum = self.figures.ledger_sum.wrapping_add(row.amount);
            let balance = walk.balances.entry(row.member.get()).or_default();
            match row.account {
                LedgerAccount::Free => balance.0 = balance.0.wrapping_add(row.amount),
                LedgerAccount::Held => balance.1 = balance.1.wrapping_add(row.amount),
                LedgerAccount::Issued | LedgerAccount::Redeemed => {}
            }
        }
        if first.journal != self.journal_id {
            let sentence = format!("a row of journal {:016x}", first.journal.get());
            return self.find(Check::StoreLedger, at, sentence);
        }
        if !self.is_home_of(slot) {
            let home = self.layout.shard_of_slot(slot).get();
            let sentence = format!("a row that belongs on database shard {home}");
            return self.find(Check::StoreLedger, at, sentence);
        }
        self.note_row(slot, seq);
        let [from, to] = rows[..] else {
            let sentence = format!("a move has {} legs, not two", rows.len());
            return self.find(Check::StoreLedger, at, sentence);
        };
        let same = |a: &LedgerRow| (a.member, a.kind, a.redemption, a.at);
        let sentence = if (from.leg, to.leg) != (0, 1) {
            format!("the legs are numbered {} and {}", from.leg, to.leg)
        } else if i128::from(from.amount) + i128::from(to.amount) != 0 {
            format!("the legs are {} and {}: they do not sum to zero", from.amount, to.amount)
        } else if to.amount < 0 {
            format!("the amount is {}", to.amount)
        } else if (from.account, to.account) != Entry::accounts(from.kind) {
            format!("points went from {} to {}", from.account.name(), to.account.name())
        } else if same(&from) != same(&to) {
            String::from("the legs do not belong to one move")
        } else {
            if seq >= self.entries.from && to.at >= self.entries.not_before {
                let sum = &mut walk.sums[slot.index()];
                *sum = sum.wrapping_add(entry_of(&to).hash(seq));
            }
            return;
        };
        self.find(Check::StoreLedger, at, sentence);
    }

    /// Reads the journal once more, to say which rows of these slots differ.
    fn name_rows(&mut self, slots: &BTreeSet<Slot>) -> Result<(), CannotCompare> {
        let mut expected: BTreeMap<Seq, Entry> = BTreeMap::new();
        let behind = self.behind;
        self.journal.each(self.entries.from, &mut |place, slot, record, _| {
            let is_seen = place.seq <= behind.watermark_of(slot) && !behind.is_set_aside(place.seq);
            if is_seen && slots.contains(&slot) {
                expected.extend(self.entries.kept(record).map(|entry| (place.seq, entry)));
            }
        })?;
        let mut wrong = Vec::new();
        let (read, from) = (self.read, self.entries.from);
        let walked = read.each_entry(&mut |row| {
            let is_old = row.seq < from || row.at < self.entries.not_before;
            if row.leg == 0 || is_old || row.journal != self.journal_id {
                return;
            }
            let at = self.here().with_member(row.member).with_seq(row.seq);
            match expected.remove(&row.seq) {
                // Not told apart from a row of another slot: those have their own sums.
                None if !slots.contains(&Slot::of(row.member)) => {}
                None => wrong.push((at, String::from("the journal has no such move"))),
                Some(entry) if entry == entry_of(&row) => {}
                Some(entry) => wrong.push((at, difference(&entry, &row))),
            }
        });
        // It was walked before: what cannot be read has its finding.
        drop(walked);
        for (seq, entry) in expected {
            let at = Where::database(self.shard.get()).with_member(entry.member).with_seq(seq);
            let kind = name(entry.kind);
            wrong.push((at, format!("the {kind} move of {} points is missing", entry.amount)));
        }
        for (at, sentence) in wrong {
            self.find(Check::StoreLedger, at, sentence);
        }
        Ok(())
    }
}

fn entry_of(to: &LedgerRow) -> Entry {
    Entry {
        member: to.member,
        kind: to.kind,
        amount: to.amount.unsigned_abs(),
        redemption: to.redemption,
        at: to.at,
    }
}

const fn name(kind: MoveKind) -> &'static str {
    match kind {
        MoveKind::Opened => "opened",
        MoveKind::Credited => "credited",
        MoveKind::Debited => "debited",
        MoveKind::Held => "held",
        MoveKind::Redeemed => "redeemed",
        MoveKind::Confirmed => "confirmed",
        MoveKind::Released => "released",
        MoveKind::Reversed => "reversed",
    }
}

fn difference(entry: &Entry, row: &LedgerRow) -> String {
    let found = entry_of(row);
    if entry.member != found.member {
        return format!("the move is member {}'s", entry.member);
    }
    if entry.amount != found.amount {
        return format!("{} points moved, the journal says {}", found.amount, entry.amount);
    }
    if entry.kind != found.kind {
        return format!("it is said to be {}, it was {}", name(found.kind), name(entry.kind));
    }
    if entry.redemption != found.redemption {
        return String::from("it names another redemption than the journal");
    }
    format!("it is said to be of {}, it was of {}", found.at.rfc3339(), entry.at.rfc3339())
}
