//! Who changed what, and why: the rows of `admin_changes` held against the journal's records.
//!
//! As with the ledger, what the journal says is summed up per slot as the wrapping sum of a hash
//! per change, and read once more only where the rows give another sum.

use std::collections::{BTreeMap, BTreeSet};

use super::behind::Behind;
use super::{CannotCompare, ShardAudit};
use crate::audit::finding::{Check, Where};
use crate::kernel::record::{AdminNote, CONTROL, Record, SaleChange};
use crate::persist::rows::AdminChange;
use crate::units::{JournalId, NodeTime, SLOT_COUNT, Seq, Slot};

/// What the journal says of each slot's changes, from `from` to the watermark.
pub struct Changes {
    journal: JournalId,
    from: Seq,
    /// By slot; behind them all, those of the control records.
    sums: Vec<u64>,
}

impl Changes {
    /// `from`: the journal's first record.
    pub fn new(journal: JournalId, from: Seq) -> Self {
        Self { journal, from, sums: vec![0; SLOT_COUNT + 1] }
    }

    pub fn note(&mut self, seq: Seq, slot: Slot, record: &Record, behind: &Behind) {
        if seq > behind.watermark_of(slot) || behind.is_set_aside(seq) {
            return;
        }
        if let Some(change) = change_of(self.journal, seq, record) {
            let sum = &mut self.sums[place(&change)];
            *sum = sum.wrapping_add(hash(&change));
        }
    }
}

/// Where a change's sum stands.
fn place(change: &AdminChange) -> usize {
    change.member.map_or(SLOT_COUNT, |member| Slot::of(member).index())
}

/// The row that a record should have: the auditor's own reading of it.
fn change_of(journal: JournalId, seq: Seq, record: &Record) -> Option<AdminChange> {
    let row = |what, at: NodeTime, note: &AdminNote| AdminChange {
        journal,
        seq,
        at,
        what,
        operator: note.operator.clone(),
        reason: note.reason.clone(),
        reference: note.reference.clone(),
        ..AdminChange::default()
    };
    let signed = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    Some(match record {
        Record::Credited(r) => AdminChange {
            member: Some(r.member),
            amount: Some(signed(r.amount.get())),
            ..row("credited", r.at, &r.note)
        },
        Record::Debited(r) => AdminChange {
            member: Some(r.member),
            amount: Some(-signed(r.amount.get())),
            ..row("debited", r.at, &r.note)
        },
        Record::Reversed(r) => AdminChange {
            member: Some(r.member),
            redemption: Some(r.id),
            item: Some(r.item),
            amount: Some(signed(r.points.get())),
            ..row("reversed", r.at, &r.note)
        },
        Record::SaleDefined(r) => {
            AdminChange { sale: Some(r.sale), ..row("sale-defined", r.at, &r.note) }
        }
        Record::SaleChanged(r) => {
            let what = match r.change {
                SaleChange::Opened => "sale-opened",
                SaleChange::Paused => "sale-paused",
                SaleChange::Resumed => "sale-resumed",
                SaleChange::Ended => "sale-ended",
            };
            AdminChange { sale: Some(r.sale), ..row(what, r.at, &r.note) }
        }
        Record::StockChanged(r) => {
            let units = i64::from(r.quantity.get());
            let (what, amount) =
                if r.added { ("stock-added", units) } else { ("stock-withdrawn", -units) };
            AdminChange { item: Some(r.item), amount: Some(amount), ..row(what, r.at, &r.note) }
        }
        Record::Imported(r) => {
            AdminChange { amount: Some(signed(r.opened)), ..row("imported", r.at, &r.note) }
        }
        _ => return None,
    })
}

fn hash(change: &AdminChange) -> u64 {
    let mut bytes = Vec::with_capacity(160);
    for number in [change.seq.get(), change.at.get()] {
        bytes.extend_from_slice(&number.to_le_bytes());
    }
    for text in [change.what, &change.operator, &change.reason, &change.reference] {
        bytes.extend_from_slice(&(text.len() as u64).to_le_bytes());
        bytes.extend_from_slice(text.as_bytes());
    }
    let numbers = [
        change.member.map(|id| u128::from(id.get())),
        change.redemption.map(crate::units::RedemptionId::get),
        change.sale.map(|sale| u128::from(sale.get())),
        change.item.map(|item| u128::from(item.get())),
        change.amount.map(|amount| u128::from(amount.cast_unsigned())),
    ];
    for number in numbers {
        bytes.push(u8::from(number.is_some()));
        bytes.extend_from_slice(&number.unwrap_or_default().to_le_bytes());
    }
    xxhash_rust::xxh3::xxh3_64(&bytes)
}

impl ShardAudit<'_> {
    /// Rows of changes: a member's on the member's database shard, all others at home.
    pub(super) fn admin_changes(&mut self) -> Result<(), CannotCompare> {
        let mut sums = vec![0_u64; SLOT_COUNT + 1];
        let read = self.read;
        let walked = read.each_admin_change(&mut |row| {
            self.figures.admin_changes += 1;
            let at = self.place_of(&row);
            let is_home = match row.member {
                Some(member) => self.is_home_of(Slot::of(member)),
                None => self.shard.is_home(),
            };
            if row.journal != self.journal_id {
                let sentence = format!("a row of journal {:016x}", row.journal.get());
                self.find(Check::StoreAdminChanges, at, sentence);
            } else if !is_home {
                let sentence = format!("the row of {} belongs on another one", row.what);
                self.find(Check::StoreAdminChanges, at, sentence);
            } else if row.seq >= self.changes.from {
                let sum = &mut sums[place(&row)];
                *sum = sum.wrapping_add(hash(&row));
            }
        });
        if let Err(e) = walked {
            self.or_corrupt(Check::StoreAdminChanges, e)?;
        }
        let control = self.shard.is_home().then_some(SLOT_COUNT);
        let places = self.slots_here().map(Slot::index).chain(control);
        let differing: BTreeSet<usize> =
            places.filter(|place| sums[*place] != self.changes.sums[*place]).collect();
        if !differing.is_empty() {
            self.name_changes(&differing)?;
        }
        Ok(())
    }

    fn place_of(&self, row: &AdminChange) -> Where {
        let at = self.here().with_seq(row.seq);
        row.member.map_or(at, |member| at.with_member(member))
    }

    /// Reads the journal once more, to say which rows of these places differ.
    fn name_changes(&mut self, places: &BTreeSet<usize>) -> Result<(), CannotCompare> {
        let mut expected: BTreeMap<Seq, AdminChange> = BTreeMap::new();
        let (behind, journal) = (self.behind, self.journal_id);
        self.journal.each(self.changes.from, &mut |at, slot, record, _| {
            if at.seq > behind.watermark_of(slot) || behind.is_set_aside(at.seq) {
                return;
            }
            let change = change_of(journal, at.seq, record);
            expected.extend(
                change.filter(|change| places.contains(&place(change))).map(|c| (at.seq, c)),
            );
        })?;
        let mut wrong = Vec::new();
        let (read, from) = (self.read, self.changes.from);
        let walked = read.each_admin_change(&mut |row| {
            if row.seq < from || row.journal != journal {
                return;
            }
            let sentence = match expected.remove(&row.seq) {
                Some(change) if change == row => return,
                Some(change) => difference(&change, &row),
                None if !places.contains(&place(&row)) => return,
                None => format!("the journal has no such change: {}", row.what),
            };
            wrong.push((self.place_of(&row), sentence));
        });
        // It was walked before: what cannot be read has its finding.
        drop(walked);
        for change in expected.into_values() {
            let sentence = format!("the row of {} is missing", change.what);
            wrong.push((self.place_of(&change), sentence));
        }
        for (at, sentence) in wrong {
            self.find(Check::StoreAdminChanges, at, sentence);
        }
        Ok(())
    }
}

fn difference(change: &AdminChange, row: &AdminChange) -> String {
    let texts = [
        ("what", row.what, change.what),
        ("operator", &row.operator, &change.operator),
        ("reason", &row.reason, &change.reason),
        ("reference", &row.reference, &change.reference),
    ];
    if let Some((name, found, expected)) = texts.into_iter().find(|(_, a, b)| a != b) {
        return format!("{name} is \"{found}\", the journal says \"{expected}\"");
    }
    if row.amount != change.amount {
        let show = |amount: Option<i64>| amount.map_or_else(|| "none".into(), |n| n.to_string());
        let (found, expected) = (show(row.amount), show(change.amount));
        return format!("the amount is {found}, the journal says {expected}");
    }
    format!("it is not what the journal says of {}: its time, or whom it names", change.what)
}

/// The slot of the control records has its sum behind those of the members.
const _: () = assert!(CONTROL.get() as usize >= SLOT_COUNT);
