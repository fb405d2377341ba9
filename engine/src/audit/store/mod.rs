//! The store held against the model: each database shard in one consistent read, each partition
//! at its own watermark.
//!
//! ```text
//!  journal   ├──────────────────────┤ W ├───── behind ─────┤ E
//!  store     rows as of W ═══════════╡
//!  model     as of E; what it was at W: `behind` knows what the records in between found
//! ```
//! Only what differs at W is a finding: lag is a figure, not a fault.

mod archived;
pub mod behind;
mod changes;
mod ledger;
mod rows;
mod sales;
mod sums;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use self::archived::Archived;
pub use self::behind::Behind;
pub use self::changes::Changes;
pub use self::ledger::Entries;
pub use self::sales::SaleHistory;
use super::finding::{Check, Findings, Where};
use super::journal::{CannotRead, Journal};
use super::model::Model;
use crate::persist::rows::StockSums;
use crate::persist::store::{ConsistentRead, StoreError};
use crate::ship::partition::{DatabaseShard, Layout, PARTITION_COUNT, Partition};
use crate::units::{ItemIndex, JournalId, Seq, Slot};

/// What of a database shard was looked at.
#[derive(Clone, Copy, Default, Debug, Serialize, Deserialize)]
pub struct ShardFigures {
    pub database_shard: u8,
    pub accounts: u64,
    pub redemptions: u64,
    pub ledger_rows: u64,
    pub ledger_sum: i64,
    pub stock_rows: u64,
    /// Rows of sales and of items.
    #[serde(default)]
    pub sales: u64,
    #[serde(default)]
    pub admin_changes: u64,
    pub slots: u64,
    pub dead_letters: u64,
    pub partitions: u64,
    /// The lowest watermark of its partitions.
    pub watermark: Seq,
    /// Records of its partitions that it has not seen.
    pub lag_records: u64,
}

/// What the journal says, for all database shards.
#[derive(Clone, Copy)]
pub struct Books<'a> {
    pub layout: Layout,
    pub journal_id: JournalId,
    pub model: &'a Model,
    pub behind: &'a Behind,
    pub entries: &'a Entries,
    pub changes: &'a Changes,
    pub archived: &'a Archived,
    pub sales: &'a SaleHistory,
    /// Read a second time where rows differ, to tell which.
    pub journal: &'a dyn Journal,
}

/// One database shard under audit.
pub struct ShardAudit<'a> {
    shard: DatabaseShard,
    layout: Layout,
    journal_id: JournalId,
    model: &'a Model,
    behind: &'a Behind,
    entries: &'a Entries,
    changes: &'a Changes,
    archived: &'a Archived,
    sales: &'a SaleHistory,
    journal: &'a dyn Journal,
    read: &'a dyn ConsistentRead,
    findings: &'a mut Findings,
    figures: ShardFigures,
    /// The highest row of each partition.
    highest_row: [Seq; PARTITION_COUNT],
    /// Rows ahead of each partition's watermark.
    ahead: [u64; PARTITION_COUNT],
    /// Units of the items in its redemption rows, and in those that were taken out.
    units: BTreeMap<ItemIndex, StockSums>,
}

/// Why a database shard could not be compared.
#[derive(thiserror::Error, Debug)]
pub enum CannotCompare {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Journal(#[from] CannotRead),
}

impl<'a> ShardAudit<'a> {
    pub fn new(
        shard: DatabaseShard,
        books: Books<'a>,
        read: &'a dyn ConsistentRead,
        findings: &'a mut Findings,
    ) -> Self {
        let Books { layout, journal_id, model, behind, entries, .. } = books;
        let Books { changes, archived, sales, journal, .. } = books;
        let of_shard = archived.units.iter().filter(|((of, _), _)| *of == shard);
        Self {
            shard,
            layout,
            journal_id,
            model,
            behind,
            entries,
            changes,
            archived,
            sales,
            journal,
            read,
            findings,
            figures: ShardFigures { database_shard: shard.get(), ..ShardFigures::default() },
            highest_row: [Seq::NONE; PARTITION_COUNT],
            ahead: [0; PARTITION_COUNT],
            units: of_shard.map(|((_, item), sums)| (*item, *sums)).collect(),
        }
    }

    /// Compares everything.
    ///
    /// Errors: the database or the journal cannot be read. A row that makes no sense is a
    /// finding.
    pub fn run(mut self) -> Result<ShardFigures, CannotCompare> {
        let balances = self.ledger()?;
        self.accounts(balances)?;
        self.redemptions()?;
        self.stock()?;
        self.sales()?;
        self.admin_changes()?;
        self.slots()?;
        self.letters()?;
        self.watermarks()?;
        Ok(self.figures)
    }

    fn here(&self) -> Where {
        Where::database(self.shard.get())
    }

    fn find(&mut self, check: Check, at: Where, sentence: impl Into<String>) {
        self.findings.violation(check, at, sentence);
    }

    /// A row that cannot be read is a finding; a database that cannot be is an error.
    fn or_corrupt(&mut self, check: Check, e: StoreError) -> Result<(), StoreError> {
        let StoreError::Corrupt(why) = e else { return Err(e) };
        let here = self.here();
        self.find(check, here, format!("a row cannot be read: {why}"));
        Ok(())
    }

    /// Notes how far the rows of a slot's partition go; whether `seq` is ahead of its watermark.
    fn note_row(&mut self, slot: Slot, seq: Seq) -> bool {
        let Some(partition) = Partition::of(slot) else { return false };
        let highest = &mut self.highest_row[partition.index()];
        *highest = (*highest).max(seq);
        let is_ahead = seq > self.behind.watermark(partition);
        self.ahead[partition.index()] += u64::from(is_ahead);
        is_ahead
    }

    /// Whether a slot's rows belong on this database shard.
    fn is_home_of(&self, slot: Slot) -> bool {
        Partition::of(slot).is_some_and(|p| self.layout.shard_of(p) == self.shard)
    }

    /// The slots whose rows belong here.
    fn slots_here(&self) -> impl Iterator<Item = Slot> + use<> {
        let (layout, shard) = (self.layout, self.shard);
        let all = (0..crate::units::SLOT_COUNT).map(|slot| Slot::new(slot as u16));
        all.filter(move |slot| layout.shard_of_slot(*slot) == shard)
    }
}
