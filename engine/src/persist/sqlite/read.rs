//! The reading end: what is committed, on a connection of its own that never waits for a writer.

use std::path::Path;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, Row, params};

use super::{bits, connect, error, path_of};
use crate::kernel::command::RedemptionState;
use crate::persist::rows::{
    AccountRow, AdminChange, ArchivedBalance, ItemRow, LedgerAccount, LedgerRow, MoveKind,
    RedemptionRow, SaleRow, SaleState, SlotSum, StockRow, StockSums, StoredSale,
};
use crate::persist::store::{
    ConsistentRead, Letter, LetterId, LetterState, RewindRequest, StatementCursor, StoreError,
    StoreReader, Stream, WatermarkRow,
};
use crate::ship::gap::Watermark;
use crate::ship::holdings::Holdings;
use crate::ship::log::LogOffset;
use crate::ship::partition::{DatabaseShard, Layout, Partition};
use crate::units::{
    Incarnation, ItemIndex, JournalId, KeyHash, MemberId, NodeTime, Points, Quantity, RedemptionId,
    SaleIndex, Seq, Slot,
};

/// One database shard, open for reading.
pub struct SqliteReader {
    connection: Connection,
}

impl SqliteReader {
    /// Opens an existing file; it is never changed.
    pub fn open(folder: &Path, shard: DatabaseShard) -> Result<Self, StoreError> {
        Self::open_file(&path_of(folder, shard))
    }

    /// Opens an existing file by its path, a backup say.
    pub fn open_file(path: &Path) -> Result<Self, StoreError> {
        // A read-only connection could not make the shared memory file that WAL needs.
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = connect(path, flags)?;
        connection.pragma_update(None, "query_only", true).map_err(error)?;
        // The last connection to close would fold the log back into the file: not a reader's work.
        let no_checkpoint = DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE;
        connection.set_db_config(no_checkpoint, true).map_err(error)?;
        Ok(Self { connection })
    }

    /// Which database shard the file says it is, of how many.
    pub fn identity(&self) -> Result<(DatabaseShard, u8), StoreError> {
        identity(&self.connection)
    }
}

fn identity(connection: &Connection) -> Result<(DatabaseShard, u8), StoreError> {
    let sql = "SELECT shard, shard_count FROM identity";
    let row = connection.query_row(sql, [], |r| Ok((r.get(0)?, r.get(1)?)));
    row.map(|(shard, count)| (DatabaseShard::new(shard), count)).map_err(error)
}

/// As its identity says: files are never split.
fn holdings(connection: &Connection) -> Result<Holdings, StoreError> {
    let (shard, count) = identity(connection)?;
    let layout = Layout::new(count)
        .ok_or_else(|| StoreError::Corrupt(format!("it is one of {count} database shards")))?;
    Ok(Holdings::spread(layout, shard))
}

const REDEMPTION: &str = "SELECT id, member, journal, item, quantity, points, state, key,
    expires_at, updated_at, units_back, seq FROM redemptions";
const ENTRY: &str =
    "SELECT journal, seq, leg, account, member, amount, kind, redemption, at FROM ledger";
const ACCOUNT: &str = "SELECT member, free, held, journal, last_seq FROM accounts";
/// One stream's watermark.
pub(super) const WATERMARK: &str = "SELECT incarnation, since_seq, seq FROM watermarks
    WHERE journal = ?1 AND partition = ?2";

impl StoreReader for SqliteReader {
    fn redemption(&self, id: RedemptionId) -> Result<Option<RedemptionRow>, StoreError> {
        let sql = format!("{REDEMPTION} WHERE id = ?1");
        let rows = self.rows(&sql, params![id.get().to_be_bytes()], redemption_at)?;
        Ok(rows.into_iter().next())
    }

    fn redemptions_of(
        &self,
        member: MemberId,
        before: Option<RedemptionId>,
        limit: u16,
    ) -> Result<Vec<RedemptionRow>, StoreError> {
        let sql = format!("{REDEMPTION} WHERE member = ?1 AND id < ?2 ORDER BY id DESC LIMIT ?3");
        // Longer than any id, and so behind all of them.
        let before = before.map_or_else(|| vec![0xff; 17], |id| id.get().to_be_bytes().to_vec());
        self.rows(&sql, params![bits(member.get()), before, limit], redemption_at)
    }

    fn redemptions_of_item(
        &self,
        journal: JournalId,
        item: ItemIndex,
        before: Option<RedemptionId>,
        limit: u16,
    ) -> Result<Vec<RedemptionRow>, StoreError> {
        let sql = format!(
            "{REDEMPTION} WHERE journal = ?1 AND item = ?2 AND id < ?3 ORDER BY id DESC LIMIT ?4"
        );
        let before = before.map_or_else(|| vec![0xff; 17], |id| id.get().to_be_bytes().to_vec());
        let key = params![bits(journal.get()), item.get(), before, limit];
        self.rows(&sql, key, redemption_at)
    }

    fn redemption_by_key(
        &self,
        member: MemberId,
        key: KeyHash,
    ) -> Result<Option<RedemptionRow>, StoreError> {
        let sql = format!("{REDEMPTION} WHERE member = ?1 AND key = ?2 ORDER BY id DESC LIMIT 1");
        let key = params![bits(member.get()), key.get().to_be_bytes()];
        Ok(self.rows(&sql, key, redemption_at)?.into_iter().next())
    }

    fn account(&self, member: MemberId) -> Result<Option<AccountRow>, StoreError> {
        let sql = format!("{ACCOUNT} WHERE member = ?1");
        Ok(self.rows(&sql, params![bits(member.get())], account_at)?.into_iter().next())
    }

    fn statement(
        &self,
        member: MemberId,
        before: Option<StatementCursor>,
        limit: u16,
    ) -> Result<Vec<LedgerRow>, StoreError> {
        let end = StatementCursor {
            at: NodeTime::new(i64::MAX.cast_unsigned()),
            journal: JournalId::new(0),
            seq: Seq::NONE,
            leg: 0,
        };
        let c = before.unwrap_or(end);
        let sql = format!(
            "{ENTRY} WHERE member = ?1 AND account <= 2 AND at <= ?2
             AND (at, journal, seq, leg) < (?2, ?3, ?4, ?5)
             ORDER BY at DESC, journal DESC, seq DESC, leg DESC LIMIT ?6"
        );
        let row = params![
            bits(member.get()),
            bits(c.at.get()),
            bits(c.journal.get()),
            bits(c.seq.get()),
            c.leg,
            limit,
        ];
        self.rows(&sql, row, entry_at)
    }

    fn holdings(&self) -> Result<Holdings, StoreError> {
        holdings(&self.connection)
    }

    fn watermarks(&self) -> Result<Vec<WatermarkRow>, StoreError> {
        watermarks(&self.connection)
    }

    fn consistent(
        &self,
        read: &mut dyn FnMut(&dyn ConsistentRead) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        // In WAL, all reads of one transaction see the commit that its first read saw.
        let transaction = self.connection.unchecked_transaction().map_err(error)?;
        read(&Moment { connection: &transaction })
    }
}

impl SqliteReader {
    fn rows<T>(
        &self,
        sql: &str,
        params: impl rusqlite::Params,
        map: fn(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>, StoreError> {
        rows(&self.connection, sql, params, map)
    }
}

fn rows<T>(
    connection: &Connection,
    sql: &str,
    params: impl rusqlite::Params,
    map: fn(&Row<'_>) -> rusqlite::Result<T>,
) -> Result<Vec<T>, StoreError> {
    let mut statement = connection.prepare_cached(sql).map_err(error)?;
    let mapped = statement.query_map(params, map).map_err(error)?;
    mapped.collect::<Result<_, _>>().map_err(read_error)
}

/// An open read transaction.
struct Moment<'c> {
    connection: &'c Connection,
}

impl Moment<'_> {
    fn each<T>(
        &self,
        sql: &str,
        map: fn(&Row<'_>) -> rusqlite::Result<T>,
        see: &mut dyn FnMut(T),
    ) -> Result<(), StoreError> {
        let mut statement = self.connection.prepare(sql).map_err(error)?;
        let mut rows = statement.query([]).map_err(error)?;
        while let Some(row) = rows.next().map_err(error)? {
            see(map(row).map_err(read_error)?);
        }
        Ok(())
    }
}

impl ConsistentRead for Moment<'_> {
    fn holdings(&self) -> Result<Holdings, StoreError> {
        holdings(self.connection)
    }

    fn claims(&self) -> Result<Vec<(Slot, JournalId)>, StoreError> {
        let sql = "SELECT slot, journal FROM slot_claims ORDER BY slot";
        rows(self.connection, sql, [], |r| {
            Ok((Slot::new(r.get(0)?), JournalId::new(unsigned(r, 1)?)))
        })
    }
    fn watermarks(&self) -> Result<Vec<WatermarkRow>, StoreError> {
        watermarks(self.connection)
    }
    fn stock(&self) -> Result<Vec<StockRow>, StoreError> {
        let sql = "SELECT journal, item, held, confirmed, released, reversed, retired, total,
                   granted, returned FROM stock ORDER BY journal, item";
        rows(self.connection, sql, [], stock_at)
    }
    fn slots(&self) -> Result<Vec<SlotSum>, StoreError> {
        let sql = "SELECT journal, slot, records, checksum FROM slots ORDER BY journal, slot";
        rows(self.connection, sql, [], slot_at)
    }
    fn letters(&self) -> Result<Vec<Letter>, StoreError> {
        let letters = letters(self.connection, LetterId(i64::MIN), u32::MAX)?;
        Ok(letters.into_iter().map(|(_, letter)| letter).collect())
    }
    fn sales(&self) -> Result<Vec<StoredSale>, StoreError> {
        let sql = "SELECT journal, sale, id, name, state, defined_at, changed_at, definition
                   FROM sales ORDER BY journal, sale";
        rows(self.connection, sql, [], sale_at)
    }
    fn items(&self) -> Result<Vec<ItemRow>, StoreError> {
        let sql = "SELECT journal, item, sale, sku, name, points, limit_per_member FROM items
                   ORDER BY journal, item";
        rows(self.connection, sql, [], item_at)
    }
    fn archived_months(&self) -> Result<Vec<(String, NodeTime)>, StoreError> {
        let sql = "SELECT name, until_at FROM archived_months ORDER BY name, month";
        rows(self.connection, sql, [], |r| Ok((r.get(0)?, NodeTime::new(unsigned(r, 1)?))))
    }
    fn archived_stock(&self) -> Result<Vec<(JournalId, ItemIndex, StockSums)>, StoreError> {
        let sql = "SELECT journal, item, held, confirmed, released, reversed, retired
                   FROM archived_stock ORDER BY journal, item";
        rows(self.connection, sql, [], |r| {
            let sums = StockSums {
                held: r.get(2)?,
                confirmed: r.get(3)?,
                released: r.get(4)?,
                reversed: r.get(5)?,
                retired: r.get(6)?,
            };
            Ok((JournalId::new(unsigned(r, 0)?), ItemIndex::new(r.get(1)?), sums))
        })
    }
    fn each_archived_balance(
        &self,
        see: &mut dyn FnMut(ArchivedBalance),
    ) -> Result<(), StoreError> {
        let sql = "SELECT journal, member, account, amount FROM archived_balances
                   ORDER BY journal, member, account";
        self.each(sql, archived_at, see)
    }
    fn each_admin_change(&self, see: &mut dyn FnMut(AdminChange)) -> Result<(), StoreError> {
        let sql = "SELECT journal, seq, at, what, operator, reason, reference, member, redemption,
                   sale, item, amount FROM admin_changes ORDER BY journal, seq";
        self.each(sql, change_at, see)
    }
    fn each_account(&self, see: &mut dyn FnMut(AccountRow)) -> Result<(), StoreError> {
        self.each(&format!("{ACCOUNT} ORDER BY member"), account_at, see)
    }
    fn each_redemption(&self, see: &mut dyn FnMut(RedemptionRow)) -> Result<(), StoreError> {
        self.each(&format!("{REDEMPTION} ORDER BY id"), redemption_at, see)
    }
    fn each_entry(&self, see: &mut dyn FnMut(LedgerRow)) -> Result<(), StoreError> {
        self.each(&format!("{ENTRY} ORDER BY journal, seq, leg"), entry_at, see)
    }
}

pub(super) fn watermarks(connection: &Connection) -> Result<Vec<WatermarkRow>, StoreError> {
    let sql = "SELECT incarnation, since_seq, seq, journal, partition, at FROM watermarks
               ORDER BY journal, partition";
    rows(connection, sql, [], |r| {
        let partition = Partition::new(r.get(4)?).ok_or_else(|| out_of_range(4))?;
        let stream = Stream { journal: JournalId::new(unsigned(r, 3)?), partition };
        let at = NodeTime::new(unsigned(r, 5)?);
        Ok(WatermarkRow { stream, watermark: watermark_at(r)?, at })
    })
}

pub(super) fn watermark_at(r: &Row<'_>) -> rusqlite::Result<Watermark> {
    Ok(Watermark {
        incarnation: Incarnation::new(r.get(0)?),
        since: Seq::new(unsigned(r, 1)?),
        seq: Seq::new(unsigned(r, 2)?),
    })
}

/// Requests that no batch has answered yet.
pub(super) fn rewinds(connection: &Connection) -> Result<Vec<RewindRequest>, StoreError> {
    let sql = "SELECT journal, partition, to_seq FROM rewinds WHERE is_done = 0 ORDER BY id";
    rows(connection, sql, [], |r| {
        let partition = Partition::new(r.get(1)?).ok_or_else(|| out_of_range(1))?;
        let stream = Stream { journal: JournalId::new(unsigned(r, 0)?), partition };
        Ok(RewindRequest { stream, to: Seq::new(unsigned(r, 2)?) })
    })
}

pub(super) fn offsets(
    connection: &Connection,
    topic: &str,
) -> Result<Vec<(Partition, LogOffset)>, StoreError> {
    let sql = "SELECT partition, next_offset FROM log_offsets WHERE topic = ?1 ORDER BY partition";
    rows(connection, sql, [topic], |r| {
        let partition = Partition::new(r.get(0)?).ok_or_else(|| out_of_range(0))?;
        Ok((partition, LogOffset::new(r.get(1)?)))
    })
}

/// Letters not applied yet, in the order of their arrival, behind `after`.
pub(super) fn letters(
    connection: &Connection,
    after: LetterId,
    limit: u32,
) -> Result<Vec<(LetterId, Letter)>, StoreError> {
    let sql = "SELECT id, journal, partition, incarnation, seq, slot, member, at, state, reason,
               record FROM dead_letters WHERE state <> 3 AND id > ?1 ORDER BY id LIMIT ?2";
    rows(connection, sql, params![after.0, limit], |r| {
        let partition = Partition::new(r.get(2)?).ok_or_else(|| out_of_range(2))?;
        let state = if r.get::<_, u8>(8)? == 1 { LetterState::Dead } else { LetterState::Parked };
        let letter = Letter {
            stream: Stream { journal: JournalId::new(unsigned(r, 1)?), partition },
            incarnation: Incarnation::new(r.get(3)?),
            seq: Seq::new(unsigned(r, 4)?),
            slot: Slot::new(r.get(5)?),
            member: r.get::<_, Option<i64>>(6)?.map(|m| MemberId::new(m.cast_unsigned())),
            at: NodeTime::new(unsigned(r, 7)?),
            state,
            reason: r.get(9)?,
            record: r.get(10)?,
        };
        Ok((LetterId(r.get(0)?), letter))
    })
}

fn redemption_at(r: &Row<'_>) -> rusqlite::Result<RedemptionRow> {
    Ok(RedemptionRow {
        id: id_at(r, 0)?.ok_or_else(|| out_of_range(0))?,
        member: MemberId::new(unsigned(r, 1)?),
        journal: JournalId::new(unsigned(r, 2)?),
        item: ItemIndex::new(r.get(3)?),
        quantity: Quantity::new(r.get(4)?),
        points: Points::new(unsigned(r, 5)?),
        state: RedemptionState::from_u8(r.get(6)?).ok_or_else(|| out_of_range(6))?,
        key: KeyHash::new(u128::from_be_bytes(r.get(7)?)),
        expires_at: NodeTime::new(unsigned(r, 8)?),
        updated_at: NodeTime::new(unsigned(r, 9)?),
        units_back: r.get(10)?,
        seq: Seq::new(unsigned(r, 11)?),
    })
}

fn entry_at(r: &Row<'_>) -> rusqlite::Result<LedgerRow> {
    Ok(LedgerRow {
        journal: JournalId::new(unsigned(r, 0)?),
        seq: Seq::new(unsigned(r, 1)?),
        leg: r.get(2)?,
        account: LedgerAccount::from_u8(r.get(3)?).ok_or_else(|| out_of_range(3))?,
        member: MemberId::new(unsigned(r, 4)?),
        amount: r.get(5)?,
        kind: MoveKind::from_u8(r.get(6)?).ok_or_else(|| out_of_range(6))?,
        redemption: id_at(r, 7)?,
        at: NodeTime::new(unsigned(r, 8)?),
    })
}

fn archived_at(r: &Row<'_>) -> rusqlite::Result<ArchivedBalance> {
    Ok(ArchivedBalance {
        journal: JournalId::new(unsigned(r, 0)?),
        member: MemberId::new(unsigned(r, 1)?),
        account: LedgerAccount::from_u8(r.get(2)?).ok_or_else(|| out_of_range(2))?,
        amount: r.get(3)?,
    })
}

fn account_at(r: &Row<'_>) -> rusqlite::Result<AccountRow> {
    Ok(AccountRow {
        member: MemberId::new(unsigned(r, 0)?),
        free: Points::new(unsigned(r, 1)?),
        held: Points::new(unsigned(r, 2)?),
        journal: JournalId::new(unsigned(r, 3)?),
        last_seq: Seq::new(unsigned(r, 4)?),
    })
}

fn stock_at(r: &Row<'_>) -> rusqlite::Result<StockRow> {
    let sums = StockSums {
        held: r.get(2)?,
        confirmed: r.get(3)?,
        released: r.get(4)?,
        reversed: r.get(5)?,
        retired: r.get(6)?,
    };
    Ok(StockRow {
        journal: JournalId::new(unsigned(r, 0)?),
        item: ItemIndex::new(r.get(1)?),
        sums,
        total: unsigned(r, 7)?,
        granted: unsigned(r, 8)?,
        returned: unsigned(r, 9)?,
    })
}

fn sale_at(r: &Row<'_>) -> rusqlite::Result<StoredSale> {
    let state: String = r.get(4)?;
    let row = SaleRow {
        journal: JournalId::new(unsigned(r, 0)?),
        sale: SaleIndex::new(r.get(1)?),
        id: r.get(2)?,
        name: r.get(3)?,
        defined_at: NodeTime::new(unsigned(r, 5)?),
        definition: r.get(7)?,
    };
    let changed_at = NodeTime::new(unsigned(r, 6)?);
    let state = SaleState::from_name(&state).ok_or_else(|| out_of_range(4))?;
    Ok(StoredSale { row, state, changed_at })
}

fn item_at(r: &Row<'_>) -> rusqlite::Result<ItemRow> {
    Ok(ItemRow {
        journal: JournalId::new(unsigned(r, 0)?),
        item: ItemIndex::new(r.get(1)?),
        sale: SaleIndex::new(r.get(2)?),
        sku: r.get(3)?,
        name: r.get(4)?,
        points: unsigned(r, 5)?,
        limit_per_member: unsigned(r, 6)?,
    })
}

fn change_at(r: &Row<'_>) -> rusqlite::Result<AdminChange> {
    let what: String = r.get(3)?;
    Ok(AdminChange {
        journal: JournalId::new(unsigned(r, 0)?),
        seq: Seq::new(unsigned(r, 1)?),
        at: NodeTime::new(unsigned(r, 2)?),
        what: AdminChange::what_from_name(&what).ok_or_else(|| out_of_range(3))?,
        operator: r.get(4)?,
        reason: r.get(5)?,
        reference: r.get(6)?,
        member: r.get::<_, Option<i64>>(7)?.map(|m| MemberId::new(m.cast_unsigned())),
        redemption: id_at(r, 8)?,
        sale: r.get::<_, Option<u32>>(9)?.map(SaleIndex::new),
        item: r.get::<_, Option<u32>>(10)?.map(ItemIndex::new),
        amount: r.get(11)?,
    })
}

fn slot_at(r: &Row<'_>) -> rusqlite::Result<SlotSum> {
    Ok(SlotSum {
        journal: JournalId::new(unsigned(r, 0)?),
        slot: Slot::new(r.get(1)?),
        records: unsigned(r, 2)?,
        checksum: unsigned(r, 3)?,
    })
}

/// An id's 64 bits, as they were stored.
fn unsigned(r: &Row<'_>, column: usize) -> rusqlite::Result<u64> {
    r.get::<_, i64>(column).map(i64::cast_unsigned)
}

/// A redemption's id; `None` where there is none.
fn id_at(r: &Row<'_>, column: usize) -> rusqlite::Result<Option<RedemptionId>> {
    let Some(raw) = r.get::<_, Option<[u8; 16]>>(column)? else { return Ok(None) };
    let id = RedemptionId::from_u128(u128::from_be_bytes(raw));
    id.map(Some).ok_or_else(|| out_of_range(column))
}

fn out_of_range(column: usize) -> rusqlite::Error {
    rusqlite::Error::IntegralValueOutOfRange(column, -1)
}

/// Tells rows that make no sense from a database that cannot be read.
fn read_error(e: rusqlite::Error) -> StoreError {
    match e {
        rusqlite::Error::SqliteFailure(..) => error(e),
        other => StoreError::Corrupt(other.to_string()),
    }
}
