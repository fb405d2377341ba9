//! One journal's rows of databases that several nodes write to.
//!
//! The nodes' claims say which journals have members' slots. Rows of the others are theirs to
//! audit: they are hidden here, and the audits of all nodes together look at every row once. Rows
//! of a journal that has claimed nothing are not hidden, and are found; claims that nobody made,
//! `claimed` and `together` find.

use std::collections::BTreeSet;

use crate::persist::rows::{
    AccountRow, AdminChange, ArchivedBalance, ItemRow, LedgerRow, RedemptionRow, SlotSum, StockRow,
    StockSums, StoredSale,
};
use crate::persist::store::{ConsistentRead, Letter, StoreError, WatermarkRow};
use crate::ship::holdings::Holdings;
use crate::units::{ItemIndex, JournalId, NodeTime, Slot};

/// Journals that other nodes have claimed slots with.
pub type Others = BTreeSet<JournalId>;

/// A database shard without the rows of others.
pub struct Beside<'a> {
    pub read: &'a dyn ConsistentRead,
    pub others: &'a Others,
}

impl Beside<'_> {
    fn is_ours(&self, journal: JournalId) -> bool {
        !self.others.contains(&journal)
    }

    fn kept<Row>(
        &self,
        rows: Result<Vec<Row>, StoreError>,
        journal_of: impl Fn(&Row) -> JournalId,
    ) -> Result<Vec<Row>, StoreError> {
        let mut rows = rows?;
        rows.retain(|row| self.is_ours(journal_of(row)));
        Ok(rows)
    }
}

impl ConsistentRead for Beside<'_> {
    fn holdings(&self) -> Result<Holdings, StoreError> {
        self.read.holdings()
    }
    fn claims(&self) -> Result<Vec<(Slot, JournalId)>, StoreError> {
        self.read.claims()
    }
    fn watermarks(&self) -> Result<Vec<WatermarkRow>, StoreError> {
        self.kept(self.read.watermarks(), |row| row.stream.journal)
    }
    fn stock(&self) -> Result<Vec<StockRow>, StoreError> {
        self.kept(self.read.stock(), |row| row.journal)
    }
    fn slots(&self) -> Result<Vec<SlotSum>, StoreError> {
        self.kept(self.read.slots(), |row| row.journal)
    }
    fn letters(&self) -> Result<Vec<Letter>, StoreError> {
        self.kept(self.read.letters(), |row| row.stream.journal)
    }
    fn sales(&self) -> Result<Vec<StoredSale>, StoreError> {
        self.kept(self.read.sales(), |sale| sale.row.journal)
    }
    fn items(&self) -> Result<Vec<ItemRow>, StoreError> {
        self.kept(self.read.items(), |row| row.journal)
    }
    fn archived_months(&self) -> Result<Vec<(String, NodeTime)>, StoreError> {
        self.read.archived_months()
    }
    fn archived_stock(&self) -> Result<Vec<(JournalId, ItemIndex, StockSums)>, StoreError> {
        self.kept(self.read.archived_stock(), |(journal, ..)| *journal)
    }
    fn each_archived_balance(
        &self,
        see: &mut dyn FnMut(ArchivedBalance),
    ) -> Result<(), StoreError> {
        self.read.each_archived_balance(&mut |row| {
            if self.is_ours(row.journal) {
                see(row);
            }
        })
    }
    fn each_admin_change(&self, see: &mut dyn FnMut(AdminChange)) -> Result<(), StoreError> {
        self.read.each_admin_change(&mut |row| {
            if self.is_ours(row.journal) {
                see(row);
            }
        })
    }
    fn each_account(&self, see: &mut dyn FnMut(AccountRow)) -> Result<(), StoreError> {
        self.read.each_account(&mut |row| {
            if self.is_ours(row.journal) {
                see(row);
            }
        })
    }
    fn each_redemption(&self, see: &mut dyn FnMut(RedemptionRow)) -> Result<(), StoreError> {
        self.read.each_redemption(&mut |row| {
            if self.is_ours(row.journal) {
                see(row);
            }
        })
    }
    fn each_entry(&self, see: &mut dyn FnMut(LedgerRow)) -> Result<(), StoreError> {
        self.read.each_entry(&mut |row| {
            if self.is_ours(row.journal) {
                see(row);
            }
        })
    }
}
