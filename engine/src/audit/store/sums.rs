//! What a database shard sums up: stock, slots, watermarks; and what it has set aside.

use std::collections::BTreeMap;

use super::behind::TotalsThen;
use super::{CannotCompare, ShardAudit};
use crate::audit::finding::Check;
use crate::kernel::record::CONTROL;
use crate::persist::store::LetterState;
use crate::ship::partition::Partition;
use crate::units::{ItemIndex, Seq, Slot};

impl ShardAudit<'_> {
    pub(super) fn stock(&mut self) -> Result<(), CannotCompare> {
        let rows = match self.read.stock() {
            Ok(rows) => rows,
            Err(e) => return Ok(self.or_corrupt(Check::StoreStock, e)?),
        };
        self.figures.stock_rows = rows.len() as u64;
        let mut seen = BTreeMap::new();
        for row in rows {
            let at = self.here().with_item(row.item);
            if row.journal != self.journal_id {
                let sentence = format!("a row of journal {:016x}", row.journal.get());
                self.find(Check::StoreStock, at, sentence);
                continue;
            }
            let units = self.units.get(&row.item).copied().unwrap_or_default();
            let figures = [
                ("held", row.sums.held, units.held),
                ("confirmed", row.sums.confirmed, units.confirmed),
                ("released", row.sums.released, units.released),
                ("reversed", row.sums.reversed, units.reversed),
                ("retired", row.sums.retired, units.retired),
            ];
            for (name, found, expected) in figures.into_iter().filter(|(_, a, b)| a != b) {
                let sentence = format!("{name} is {found}, the redemptions have {expected}");
                self.find(Check::StoreStock, at, sentence);
            }
            seen.insert(row.item, [row.total, row.granted, row.returned]);
        }
        let missing: Vec<ItemIndex> =
            self.units.keys().filter(|item| !seen.contains_key(item)).copied().collect();
        for item in missing {
            let at = self.here().with_item(item);
            self.find(Check::StoreStock, at, "the row is missing, there are redemptions of it");
        }
        self.totals(&seen);
        Ok(())
    }

    /// Totals and grants: at home those of the control records, elsewhere none.
    fn totals(&mut self, seen: &BTreeMap<ItemIndex, [u64; 3]>) {
        for index in 0..self.model.items.len() as u32 {
            let item = ItemIndex::new(index);
            let found = seen.get(&item).copied().unwrap_or_default();
            let expected = if self.shard.is_home() {
                self.behind.totals(self.model, item)
            } else {
                TotalsThen { total: Some(0), granted: Some(0), returned: Some(0) }
            };
            let TotalsThen { total, granted, returned } = expected;
            let pairs = ["total", "granted", "returned"].into_iter();
            for ((name, found), expected) in pairs.zip(found).zip([total, granted, returned]) {
                if let Some(expected) = expected.filter(|expected| *expected != found) {
                    let sentence = format!("{name} is {found}, the journal says {expected}");
                    self.find(Check::StoreStock, self.here().with_item(item), sentence);
                }
            }
        }
    }

    pub(super) fn slots(&mut self) -> Result<(), CannotCompare> {
        let rows = match self.read.slots() {
            Ok(rows) => rows,
            Err(e) => return Ok(self.or_corrupt(Check::StoreSlots, e)?),
        };
        let mut seen: BTreeMap<Slot, (u64, u64)> = BTreeMap::new();
        for row in rows {
            let at = self.here().with_slot(row.slot);
            if row.journal != self.journal_id {
                let sentence = format!("a row of journal {:016x}", row.journal.get());
                self.find(Check::StoreSlots, at, sentence);
            } else if row.slot != CONTROL && !self.is_home_of(row.slot) {
                let home = Partition::of(row.slot).map(|p| self.layout.shard_of(p).get());
                let sentence = home.map_or_else(
                    || String::from("there is no such slot"),
                    |home| format!("the row belongs on database shard {home}"),
                );
                self.find(Check::StoreSlots, at, sentence);
            } else {
                seen.insert(row.slot, (row.records, row.checksum));
            }
        }
        self.figures.slots = seen.len() as u64;
        for slot in self.slots_here() {
            let sums = self.model.slots[slot.index()].sums;
            let behind = self.behind.slots[slot.index()];
            let expected = (
                sums.record_count.wrapping_sub(behind.records),
                sums.record_checksum.wrapping_sub(behind.checksum),
            );
            self.slot(slot, seen.get(&slot).copied(), expected);
        }
        if self.shard.is_home() && !self.model.has_base() {
            let control = self.behind.control;
            let expected = (control.records, control.checksum);
            self.slot(CONTROL, seen.get(&CONTROL).copied(), expected);
        }
        Ok(())
    }

    fn slot(&mut self, slot: Slot, found: Option<(u64, u64)>, expected: (u64, u64)) {
        let (records, checksum) = found.unwrap_or_default();
        let at = self.here().with_slot(slot);
        if records != expected.0 {
            let sentence =
                format!("{records} records were applied, the journal has {}", expected.0);
            self.find(Check::StoreSlots, at, sentence);
        } else if checksum != expected.1 {
            let sentence = format!(
                "the records applied have checksum {checksum:016x}, those of the journal {:016x}",
                expected.1
            );
            self.find(Check::StoreSlots, at, sentence);
        }
    }

    pub(super) fn letters(&mut self) -> Result<(), CannotCompare> {
        let letters = match self.read.letters() {
            Ok(letters) => letters,
            Err(e) => return Ok(self.or_corrupt(Check::StoreDeadLetters, e)?),
        };
        self.figures.dead_letters = letters.len() as u64;
        for letter in letters {
            let at = self.here().with_slot(letter.slot).with_seq(letter.seq);
            let at = letter.member.map_or(at, |member| at.with_member(member));
            let what = if letter.state == LetterState::Dead { "set aside" } else { "parked" };
            let sentence = format!("a record is {what}: {}", letter.reason);
            self.findings.warning(Check::StoreDeadLetters, at, sentence);
        }
        Ok(())
    }

    pub(super) fn watermarks(&mut self) -> Result<(), CannotCompare> {
        let rows = match self.read.watermarks() {
            Ok(rows) => rows,
            Err(e) => return Ok(self.or_corrupt(Check::StoreWatermarks, e)?),
        };
        let bounds = self.journal.bounds();
        for row in rows {
            let partition = row.stream.partition;
            let at = self.here().with_partition(partition.get()).with_seq(row.watermark.seq);
            if row.stream.journal != self.journal_id {
                let sentence = format!("a row of journal {:016x}", row.stream.journal.get());
                self.find(Check::StoreWatermarks, at, sentence);
                continue;
            }
            self.figures.partitions += 1;
            if !self.layout.reads(self.shard, partition) {
                let home = self.layout.shard_of(partition).get();
                let sentence = format!("the partition belongs on database shard {home}");
                self.find(Check::StoreWatermarks, at, sentence);
            }
            if row.watermark.seq > bounds.last {
                let sentence = format!(
                    "it is ahead of the journal, which ends at {}: the journal lost records, or \
                     this is another one's store",
                    bounds.last
                );
                self.find(Check::StoreWatermarks, at, sentence);
            }
            if row.watermark.incarnation > bounds.incarnation {
                let sentence = format!(
                    "it is of incarnation {}, the journal's last is {}",
                    row.watermark.incarnation, bounds.incarnation
                );
                self.find(Check::StoreWatermarks, at, sentence);
            }
        }
        let (layout, shard) = (self.layout, self.shard);
        let here = layout.partitions(shard).filter(|p| layout.shard_of(*p) == shard);
        let mut lowest: Option<Seq> = None;
        for partition in here {
            let watermark = self.behind.watermark(partition);
            lowest = Some(lowest.map_or(watermark, |seq| seq.min(watermark)));
            self.figures.lag_records += self.behind.lag[partition.index()];
            self.partition(partition, watermark, bounds.first);
        }
        self.figures.watermark = lowest.unwrap_or_default();
        Ok(())
    }

    fn partition(&mut self, partition: Partition, watermark: Seq, first: Seq) {
        let at = self.here().with_partition(partition.get()).with_seq(watermark);
        let ahead = self.ahead[partition.index()];
        let highest = self.highest_row[partition.index()];
        if ahead > 0 {
            let sentence =
                format!("it stands at {watermark}, {ahead} rows are ahead of it, up to {highest}");
            self.find(Check::StoreWatermarks, at, sentence);
        }
        let due = self.behind.last_move[partition.index()];
        if highest < due {
            let sentence = format!(
                "it stands at {watermark}, and so claims the move of points at {due}; the last \
                 row is of {highest}"
            );
            self.find(Check::StoreWatermarks, at, sentence);
        }
        if watermark.next() < first {
            let sentence = format!(
                "it stands at {watermark}, the journal begins at {first}: records in between were \
                 deleted before they were stored"
            );
            self.find(Check::StoreWatermarks, at, sentence);
        }
    }
}
