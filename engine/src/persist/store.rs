//! The store: one database shard, as persist writes it and as the API and the auditor read it.
//! Two implementations: `SQLite` files (`sqlite`), and `MySQL`.

use thiserror::Error;

use super::apply::{DataError, Effects};
use super::rows::{
    AccountRow, AdminChange, ArchivedBalance, ItemRow, LedgerRow, RedemptionRow, SlotSum, StockRow,
    StockSums, StoredSale,
};
use crate::ship::gap::Watermark;
use crate::ship::holdings::{Holdings, MapError, MapVersion};
use crate::ship::log::LogOffset;
use crate::ship::partition::{DatabaseShard, Partition};
use crate::units::{
    Incarnation, ItemIndex, JournalId, KeyHash, MemberId, NodeTime, RedemptionId, Seq, Slot,
};

/// One stream of records: one journal in one partition.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Stream {
    pub journal: JournalId,
    pub partition: Partition,
}

/// A watermark as it is stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WatermarkRow {
    pub stream: Stream,
    pub watermark: Watermark,
    /// The frame's time of the last record or mark.
    pub at: NodeTime,
}

/// A watermark that moves, and where it must stand before.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WatermarkMove {
    pub stream: Stream,
    /// The default watermark where there is no row yet.
    pub expected: Watermark,
    pub next: Watermark,
    pub at: NodeTime,
}

/// Where a log is read on from.
#[derive(Clone, Copy, Debug, Default)]
pub struct Offsets<'a> {
    /// What they count in: a topic's name. Offsets of another topic say nothing.
    pub topic: &'a str,
    /// Per partition the next to read; partitions not named here stay where they are.
    pub next: &'a [(Partition, LogOffset)],
}

/// A request to send a stream again from the record behind `to` on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RewindRequest {
    pub stream: Stream,
    pub to: Seq,
}

/// Why a record is in the dead-letter table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum LetterState {
    /// It could not be applied.
    Dead = 1,
    /// It waits behind a dead one of the same member.
    Parked = 2,
    /// It was applied later.
    Applied = 3,
}

/// A record that is held back, whole.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Letter {
    pub stream: Stream,
    pub incarnation: Incarnation,
    pub seq: Seq,
    pub slot: Slot,
    /// `None`: it names no member that can be read, and parks its whole slot.
    pub member: Option<MemberId>,
    pub at: NodeTime,
    pub state: LetterState,
    pub reason: String,
    pub record: Vec<u8>,
}

/// A letter's number on its database shard; they rise as records arrived.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct LetterId(pub i64);

/// What one transaction does, all of it or nothing.
#[derive(Debug)]
pub struct StoreBatch<'a> {
    /// The map that the batch was made by; checked before anything else.
    pub map: MapVersion,
    /// Compared first, and moved last.
    pub moves: &'a [WatermarkMove],
    pub effects: &'a Effects,
    /// Records to hold back.
    pub letters: &'a [Letter],
    /// Letters that these effects are, at last.
    pub applied: &'a [LetterId],
    /// Where the log is to be read on once this is committed; empty for the embedded log.
    pub offsets: Offsets<'a>,
}

/// A transaction that was not committed, or of which it is not known.
#[derive(Error, Debug)]
pub enum StoreError {
    #[error(
        "watermark of journal {:016x} in partition {}: expected {expected:?}, found {found:?}",
        stream.journal.get(), stream.partition.get()
    )]
    Watermark { stream: Stream, expected: Watermark, found: Watermark },
    #[error(
        "its map is version {}, the batch was made by version {}: partitions have moved",
        found.get(), expected.get()
    )]
    Map { expected: MapVersion, found: MapVersion },
    #[error("a record does not fit what is stored: {0}")]
    Data(#[from] DataError),
    #[error("the database cannot be written or read just now: {0}")]
    Unavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error(
        "its schema is version {found}, this program knows {newest}: use the program that wrote it"
    )]
    SchemaTooNew { found: u32, newest: u32 },
    #[error("its schema is version {found}, this program needs {newest}: run `onrush db migrate`")]
    SchemaTooOld { found: u32, newest: u32 },
    #[error(
        "it has records of journal {:016x}, this data folder is journal {:016x}: the database \
         belongs to another data folder", found.get(), expected.get()
    )]
    OtherJournal { found: JournalId, expected: JournalId },
    #[error("it is database shard {found}, not {expected}: they were exchanged or renumbered")]
    WrongShard { expected: String, found: String },
    #[error(
        "its partitions went to database shard {}, which the settings do not name: give them all \
         database shards", .0.get()
    )]
    UnknownShard(DatabaseShard),
    #[error("{0}")]
    Settings(String),
    #[error(transparent)]
    Layout(#[from] MapError),
    #[error("letter {0:?} was applied or taken away meanwhile")]
    LetterGone(LetterId),
    #[error("a stored row cannot be read: {0}")]
    Corrupt(String),
}

impl StoreError {
    /// Whether the same call may succeed later.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable(_))
    }
}

/// The writing end. One per database shard, on its persist thread.
pub trait Store: Send {
    fn shard(&self) -> DatabaseShard;

    /// What this database shard holds, read anew.
    fn holdings(&mut self) -> Result<Holdings, StoreError>;

    /// Every watermark there is, read anew.
    fn watermarks(&mut self) -> Result<Vec<WatermarkRow>, StoreError>;

    /// What is held, and the watermarks as of one map.
    fn standing(&mut self) -> Result<(Holdings, Vec<WatermarkRow>), StoreError> {
        loop {
            let map = self.holdings()?;
            let rows = self.watermarks()?;
            // A partition that left in between has taken its watermarks along.
            if self.holdings()? == map {
                return Ok((map, rows));
            }
        }
    }

    /// Applies a batch in one transaction.
    ///
    /// Errors: `Map` when it was made by another map than the database has: nothing was applied,
    /// and the caller reads it again. `Watermark` when a watermark is not where it was expected:
    /// nothing was applied,
    /// and the caller reads them again. `Data` when a row does not fit: nothing was applied.
    /// `Unavailable`: nothing is known; the expected watermark tells at the next try.
    fn apply(&mut self, batch: &StoreBatch<'_>) -> Result<(), StoreError>;

    /// Leaves a rewind request beside the watermark; the log's writer polls for it.
    fn ask_rewind(&mut self, stream: Stream, to: Seq, reason: &str) -> Result<(), StoreError>;

    /// Rewind requests that no batch has answered yet: those whose stream's watermark has not
    /// passed `to`. The shipper polls them, and the watermarks, from a connection of its own.
    fn rewinds(&mut self) -> Result<Vec<RewindRequest>, StoreError>;

    /// The offsets of a topic, as they were committed with the last batches.
    fn offsets(&mut self, topic: &str) -> Result<Vec<(Partition, LogOffset)>, StoreError>;

    /// Letters not applied yet, in the order of their arrival, behind `after`.
    fn letters(
        &mut self,
        after: LetterId,
        limit: u32,
    ) -> Result<Vec<(LetterId, Letter)>, StoreError>;

    /// Notes another try of a letter that failed again.
    fn letter_failed(&mut self, id: LetterId, reason: &str) -> Result<(), StoreError>;
}

/// A store chosen by the settings.
impl<S: Store + ?Sized> Store for Box<S> {
    fn shard(&self) -> DatabaseShard {
        (**self).shard()
    }
    fn holdings(&mut self) -> Result<Holdings, StoreError> {
        (**self).holdings()
    }
    fn watermarks(&mut self) -> Result<Vec<WatermarkRow>, StoreError> {
        (**self).watermarks()
    }
    fn apply(&mut self, batch: &StoreBatch<'_>) -> Result<(), StoreError> {
        (**self).apply(batch)
    }
    fn ask_rewind(&mut self, stream: Stream, to: Seq, reason: &str) -> Result<(), StoreError> {
        (**self).ask_rewind(stream, to, reason)
    }
    fn rewinds(&mut self) -> Result<Vec<RewindRequest>, StoreError> {
        (**self).rewinds()
    }
    fn offsets(&mut self, topic: &str) -> Result<Vec<(Partition, LogOffset)>, StoreError> {
        (**self).offsets(topic)
    }
    fn letters(
        &mut self,
        after: LetterId,
        limit: u32,
    ) -> Result<Vec<(LetterId, Letter)>, StoreError> {
        (**self).letters(after, limit)
    }
    fn letter_failed(&mut self, id: LetterId, reason: &str) -> Result<(), StoreError> {
        (**self).letter_failed(id, reason)
    }
}

/// Where a statement's page ends: before the entry of this time and place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StatementCursor {
    pub at: NodeTime,
    pub journal: JournalId,
    pub seq: Seq,
    pub leg: u8,
}

impl StatementCursor {
    pub fn of(row: &LedgerRow) -> Self {
        Self { at: row.at, journal: row.journal, seq: row.seq, leg: row.leg }
    }
}

/// The reading end, for the API. Reads what is committed, and never waits for a writer.
pub trait StoreReader: Send {
    fn redemption(&self, id: RedemptionId) -> Result<Option<RedemptionRow>, StoreError>;

    /// A member's redemptions, newest first, from the one before `before`.
    fn redemptions_of(
        &self,
        member: MemberId,
        before: Option<RedemptionId>,
        limit: u16,
    ) -> Result<Vec<RedemptionRow>, StoreError>;

    /// An item's redemptions, newest first, from the one before `before`.
    fn redemptions_of_item(
        &self,
        journal: JournalId,
        item: ItemIndex,
        before: Option<RedemptionId>,
        limit: u16,
    ) -> Result<Vec<RedemptionRow>, StoreError>;

    /// The newest redemption that a request key began.
    fn redemption_by_key(
        &self,
        member: MemberId,
        key: KeyHash,
    ) -> Result<Option<RedemptionRow>, StoreError>;

    fn account(&self, member: MemberId) -> Result<Option<AccountRow>, StoreError>;

    /// A member's own ledger entries (free and held), newest first.
    fn statement(
        &self,
        member: MemberId,
        before: Option<StatementCursor>,
        limit: u16,
    ) -> Result<Vec<LedgerRow>, StoreError>;

    /// What it holds; of a replica: as that one knows.
    fn holdings(&self) -> Result<Holdings, StoreError>;

    /// How far it is; of a replica: how far that one is.
    fn watermarks(&self) -> Result<Vec<WatermarkRow>, StoreError>;

    /// Everything of this database shard as of one moment, for the auditor.
    fn consistent(
        &self,
        read: &mut dyn FnMut(&dyn ConsistentRead) -> Result<(), StoreError>,
    ) -> Result<(), StoreError>;
}

/// A database shard as of one moment: the rows belong to the watermarks.
pub trait ConsistentRead {
    fn holdings(&self) -> Result<Holdings, StoreError>;
    /// Which journal has claimed which slot, by slot.
    fn claims(&self) -> Result<Vec<(Slot, JournalId)>, StoreError>;
    fn watermarks(&self) -> Result<Vec<WatermarkRow>, StoreError>;
    fn stock(&self) -> Result<Vec<StockRow>, StoreError>;
    fn slots(&self) -> Result<Vec<SlotSum>, StoreError>;
    /// Letters not applied yet.
    fn letters(&self) -> Result<Vec<Letter>, StoreError>;
    fn sales(&self) -> Result<Vec<StoredSale>, StoreError>;
    fn items(&self) -> Result<Vec<ItemRow>, StoreError>;
    /// Months that were taken out into files, by the name of their table: the first moment behind
    /// each.
    fn archived_months(&self) -> Result<Vec<(String, NodeTime)>, StoreError>;
    /// What of the redemptions was taken out, by item.
    fn archived_stock(&self) -> Result<Vec<(JournalId, ItemIndex, StockSums)>, StoreError>;
    /// What of the ledger was.
    fn each_archived_balance(&self, see: &mut dyn FnMut(ArchivedBalance))
    -> Result<(), StoreError>;
    fn each_admin_change(&self, see: &mut dyn FnMut(AdminChange)) -> Result<(), StoreError>;
    fn each_account(&self, see: &mut dyn FnMut(AccountRow)) -> Result<(), StoreError>;
    fn each_redemption(&self, see: &mut dyn FnMut(RedemptionRow)) -> Result<(), StoreError>;
    /// By journal, sequence number and leg.
    fn each_entry(&self, see: &mut dyn FnMut(LedgerRow)) -> Result<(), StoreError>;
}
