//! Accounts and redemptions: the rows are those of the journal, no more and no fewer.

use super::ledger::Balances;
use super::{CannotCompare, ShardAudit};
use crate::audit::finding::Check;
use crate::audit::model::{Redemption, Set};
use crate::kernel::command::RedemptionState;
use crate::persist::rows::{AccountRow, RedemptionRow};
use crate::units::{MemberId, RedemptionId, SLOT_COUNT, Slot};

impl ShardAudit<'_> {
    pub(super) fn accounts(&mut self, mut balances: Balances) -> Result<(), CannotCompare> {
        let mut matched = vec![0u64; SLOT_COUNT];
        let read = self.read;
        let walked = read.each_account(&mut |row| {
            self.figures.accounts += 1;
            let ledger = balances.remove(&row.member.get()).unwrap_or_default();
            if self.account(&row, ledger) {
                matched[Slot::of(row.member).index()] += 1;
            }
        });
        if let Err(e) = walked {
            self.or_corrupt(Check::StoreAccounts, e)?;
        }
        for (member, (free, held)) in balances {
            let member = MemberId::new(member);
            if self.is_home_of(Slot::of(member)) {
                let sentence =
                    format!("its ledger gives {free} free and {held} held, it has no account");
                self.find(Check::StoreLedger, self.here().with_member(member), sentence);
            }
        }
        let mut short = Set::default();
        for slot in self.slots_here() {
            let opened = self.behind.slots[slot.index()].accounts_opened;
            let known = self.model.slots[slot.index()].accounts.len() as u64;
            if matched[slot.index()] < known.saturating_sub(opened) {
                short.insert(slot);
            }
        }
        if !short.is_empty() {
            self.missing_accounts(&short);
        }
        Ok(())
    }

    /// Whether the row is one that should be there.
    fn account(&mut self, row: &AccountRow, ledger: (i64, i64)) -> bool {
        let slot = Slot::of(row.member);
        let at = self.here().with_member(row.member);
        if !self.is_home_of(slot) {
            let home = self.layout.shard_of_slot(slot).get();
            let sentence = format!("the account belongs on database shard {home}");
            self.find(Check::StoreAccounts, at, sentence);
            return false;
        }
        if row.journal != self.journal_id {
            let sentence = format!("the account is of journal {:016x}", row.journal.get());
            self.find(Check::StoreAccounts, at, sentence);
        }
        let is_ahead = self.note_row(slot, row.last_seq);
        let Some(then) = self.behind.account(self.model, row.member) else {
            let sentence = if is_ahead {
                format!("the account was opened behind the watermark, by {}", row.last_seq)
            } else {
                String::from("the journal opens no such account")
            };
            self.find(Check::StoreAccounts, at, sentence);
            return false;
        };
        let (free, held) = (row.free.get(), row.held.get());
        if (free, held) != (then.free, then.held) {
            let sentence = format!(
                "the account has {free} free and {held} held points, the journal says {} and {}",
                then.free, then.held
            );
            self.find(Check::StoreAccounts, at, sentence);
        }
        if (i128::from(free), i128::from(held)) != (i128::from(ledger.0), i128::from(ledger.1)) {
            let sentence = format!(
                "the account has {free} free and {held} held points, its ledger gives {} and {}",
                ledger.0, ledger.1
            );
            self.find(Check::StoreLedger, at, sentence);
        }
        if let Some(seq) = then.last_seq.filter(|seq| *seq != row.last_seq) {
            let sentence = format!("last moved by {}, the journal says {seq}", row.last_seq);
            self.find(Check::StoreAccounts, at.with_seq(seq), sentence);
        }
        true
    }

    fn missing_accounts(&mut self, short: &Set<Slot>) {
        let mut seen = Set::default();
        let read = self.read;
        // What cannot be read has its finding already.
        let _ = read.each_account(&mut |row| {
            if short.contains(&Slot::of(row.member)) {
                seen.insert(row.member.get());
            }
        });
        let mut missing: Vec<MemberId> = short
            .iter()
            .flat_map(|slot| self.model.slots[slot.index()].accounts.keys())
            .filter(|member| !seen.contains(member))
            .map(|member| MemberId::new(*member))
            .filter(|member| self.behind.account(self.model, *member).is_some())
            .collect();
        missing.sort_unstable();
        for member in missing {
            let then = self.behind.account(self.model, member);
            let (free, held) = then.map_or((0, 0), |t| (t.free, t.held));
            let sentence = format!("the account is missing: {free} free and {held} held points");
            self.find(Check::StoreAccounts, self.here().with_member(member), sentence);
        }
    }

    pub(super) fn redemptions(&mut self) -> Result<(), CannotCompare> {
        let mut matched = vec![0u64; SLOT_COUNT];
        let read = self.read;
        let walked = read.each_redemption(&mut |row| {
            self.figures.redemptions += 1;
            self.count_units(&row);
            if self.redemption(&row) && self.is_kept(row.id) {
                matched[row.id.slot().index()] += 1;
            }
        });
        if let Err(e) = walked {
            self.or_corrupt(Check::StoreRedemptions, e)?;
        }
        let mut short = Set::default();
        for slot in self.slots_here() {
            let all = &self.model.slots[slot.index()].redemptions;
            let due = all.iter().filter(|r| self.is_due(r.id)).count() as u64;
            if matched[slot.index()] < due {
                short.insert(slot);
            }
        }
        if !short.is_empty() {
            self.missing_redemptions(&short);
        }
        Ok(())
    }

    /// Whether a redemption that the model knows had begun at the watermark.
    fn is_due(&self, id: RedemptionId) -> bool {
        self.is_kept(id) && matches!(self.behind.redemption(self.model, id), Some(Some(_)))
    }

    /// Whether it is of a month that was not taken out.
    fn is_kept(&self, id: RedemptionId) -> bool {
        id.at() >= self.archived.redemptions_before
    }

    fn count_units(&mut self, row: &RedemptionRow) {
        let sums = self.units.entry(row.item).or_default();
        let units = i64::from(row.quantity.get());
        match row.state {
            RedemptionState::Held => sums.held += units,
            RedemptionState::Confirmed => sums.confirmed += units,
            RedemptionState::Cancelled | RedemptionState::Expired => sums.released += units,
            RedemptionState::Reversed => {
                sums.reversed += units;
                sums.retired += if row.units_back { 0 } else { units };
            }
        }
    }

    /// Whether the row is one that should be there.
    fn redemption(&mut self, row: &RedemptionRow) -> bool {
        let slot = row.id.slot();
        let at = self.here().with_member(row.member).with_redemption(row.id);
        if !self.is_home_of(slot) {
            let home = self.layout.shard_of_slot(slot).get();
            let sentence = format!("the redemption belongs on database shard {home}");
            self.find(Check::StoreRedemptions, at, sentence);
            return false;
        }
        if row.journal != self.journal_id {
            let sentence = format!("the redemption is of journal {:016x}", row.journal.get());
            self.find(Check::StoreRedemptions, at, sentence);
        }
        let is_ahead = self.note_row(slot, row.seq);
        let then = match self.behind.redemption(self.model, row.id) {
            Some(Some(then)) => then,
            Some(None) => {
                let sentence = format!("it began behind the watermark, by {}", row.seq);
                self.find(Check::StoreRedemptions, at, sentence);
                return false;
            }
            None => {
                if !self.is_forgotten(row) {
                    let sentence = "the journal knows no such redemption";
                    self.find(Check::StoreRedemptions, at, sentence);
                }
                return false;
            }
        };
        if row.state != then.state && !is_ahead {
            let sentence =
                format!("it is {}, the journal says {}", row.state.name(), then.state.name());
            self.find(Check::StoreRedemptions, at, sentence);
        }
        if let Some(seq) = then.seq.filter(|seq| *seq != row.seq) {
            let sentence = format!("last moved by {}, the journal says {seq}", row.seq);
            self.find(Check::StoreRedemptions, at.with_seq(seq), sentence);
        }
        if let Some(known) = self.model.slots[slot.index()].redemption(row.id).copied() {
            self.compare_redemption(row, &known);
        }
        true
    }

    fn compare_redemption(&mut self, row: &RedemptionRow, known: &Redemption) {
        let at = self.here().with_member(row.member).with_redemption(row.id);
        let figures = [
            ("member", row.member.get(), known.member.get()),
            ("item", u64::from(row.item.get()), u64::from(known.item.get())),
            ("quantity", u64::from(row.quantity.get()), u64::from(known.quantity.get())),
            ("points", row.points.get(), known.points.get()),
            ("expires_at", row.expires_at.get(), known.expires_at.get()),
        ];
        for (name, found, expected) in figures.into_iter().filter(|(_, a, b)| a != b) {
            let sentence = format!("{name} is {found}, the journal says {expected}");
            self.find(Check::StoreRedemptions, at, sentence);
        }
        if row.key != known.key {
            self.find(Check::StoreRedemptions, at, "it is stored with another request key");
        }
        let units_back = row.state == RedemptionState::Reversed && !known.is_retired;
        // A snapshot does not say of one reversal whether its units are retired.
        if known.last_seq().is_some() && row.units_back != units_back {
            let sentence =
                format!("units_back is {}, the journal says {units_back}", row.units_back);
            self.find(Check::StoreRedemptions, at, sentence);
        }
    }

    /// Whether the engine has forgotten this redemption with its sale, so that only the store has
    /// it, and no record of the journal.
    fn is_forgotten(&self, row: &RedemptionRow) -> bool {
        let slot = &self.model.slots[row.id.slot().index()];
        let sale = self.model.items.get(row.item.get() as usize).map(|item| item.sale);
        self.model.has_base()
            && row.id.slot_seq() < slot.sums.begun
            && row.state != RedemptionState::Held
            && sale.is_some_and(|sale| slot.dropped_sales.contains(&sale))
    }

    fn missing_redemptions(&mut self, short: &Set<Slot>) {
        let mut seen = Set::default();
        let read = self.read;
        // What cannot be read has its finding already.
        let _ = read.each_redemption(&mut |row| {
            if short.contains(&row.id.slot()) {
                seen.insert(row.id.get());
            }
        });
        let mut missing: Vec<Redemption> = short
            .iter()
            .flat_map(|slot| &self.model.slots[slot.index()].redemptions)
            .filter(|r| !seen.contains(&r.id.get()) && self.is_due(r.id))
            .copied()
            .collect();
        missing.sort_unstable_by_key(|r| r.id);
        for r in missing {
            let at = self.here().with_member(r.member).with_redemption(r.id).with_item(r.item);
            let sentence = format!("the redemption of {} points is missing", r.points);
            self.find(Check::StoreRedemptions, at, sentence);
        }
    }
}
