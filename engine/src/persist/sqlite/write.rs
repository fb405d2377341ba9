//! The writing end: a batch is one transaction.
//!
//! ```text
//!  BEGIN IMMEDIATE            the write lock: nobody else moves a watermark from here on
//!  compare every watermark    † a zombie, or a batch applied already: roll back
//!  redemptions, ledger, accounts, stock, sales, admin changes, slots, letters
//!  watermarks
//!  COMMIT                     the write-ahead log is synced
//! ```

use std::path::Path;

use rusqlite::{CachedStatement, Connection, OpenFlags, OptionalExtension, Transaction};
use rusqlite::{TransactionBehavior, params};

use super::{CACHE_KIB, CHECKPOINT_PAGES, bits, connect, error, path_of, read, schema};
use crate::crash::CrashPoint;
use crate::crash_point;
use crate::persist::apply::{DataError, Effects};
use crate::persist::rows::{
    AccountChange, AdminChange, LedgerRow, RedemptionMove, RedemptionRow, SaleState,
};
use crate::persist::store::{
    Letter, LetterId, LetterState, RewindRequest, Store, StoreBatch, StoreError, Stream,
    WatermarkRow,
};
use crate::ship::gap::Watermark;
use crate::ship::holdings::Holdings;
use crate::ship::log::LogOffset;
use crate::ship::partition::{DatabaseShard, Layout, Partition};
use crate::units::Seq;

/// One database shard, open for writing.
pub struct SqliteStore {
    connection: Connection,
    shard: DatabaseShard,
    layout: Layout,
    /// There may be rewind requests that no batch has answered yet.
    has_rewinds: bool,
}

impl SqliteStore {
    /// Opens a database shard's file, creating or migrating it.
    ///
    /// Errors: `SchemaTooNew`, `WrongShard`; `Unavailable` where the file cannot be opened.
    pub fn open(folder: &Path, shard: DatabaseShard, layout: Layout) -> Result<Self, StoreError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_CREATE
            | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let mut connection = connect(&path_of(folder, shard), flags)?;
        let pragmas = format!(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA temp_store = MEMORY;
             PRAGMA cache_size = -{CACHE_KIB}; PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES};"
        );
        connection.execute_batch(&pragmas).map_err(error)?;
        schema::migrate(&mut connection, shard, layout)?;
        Ok(Self { connection, shard, layout, has_rewinds: true })
    }

    /// The connection, for what a test wants to look at or break.
    #[cfg(test)]
    pub(in crate::persist) fn connection(&self) -> &Connection {
        &self.connection
    }
}

impl Store for SqliteStore {
    fn shard(&self) -> DatabaseShard {
        self.shard
    }

    /// Files are never split: their number is fixed when the first of them is made.
    fn holdings(&mut self) -> Result<Holdings, StoreError> {
        Ok(Holdings::spread(self.layout, self.shard))
    }

    fn watermarks(&mut self) -> Result<Vec<WatermarkRow>, StoreError> {
        read::watermarks(&self.connection)
    }

    fn apply(&mut self, batch: &StoreBatch<'_>) -> Result<(), StoreError> {
        let transaction = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(error)?;
        // Dropped without a commit, it rolls back.
        compare_watermarks(&transaction, batch)?;
        write_effects(&transaction, batch.effects)?;
        write_letters(&transaction, batch)?;
        move_watermarks(&transaction, batch)?;
        move_offsets(&transaction, batch)?;
        if self.has_rewinds {
            close_rewinds(&transaction, batch)?;
        }
        crash_point!(CrashPoint::PersistBeforeCommit);
        transaction.commit().map_err(error)?;
        crash_point!(CrashPoint::PersistAfterCommit);
        Ok(())
    }

    fn ask_rewind(&mut self, stream: Stream, to: Seq, reason: &str) -> Result<(), StoreError> {
        self.has_rewinds = true;
        let sql = "INSERT INTO rewinds (journal, partition, to_seq, reason)
                   SELECT ?1, ?2, ?3, ?4 WHERE NOT EXISTS (
                       SELECT 1 FROM rewinds WHERE is_done = 0
                       AND journal = ?1 AND partition = ?2 AND to_seq = ?3)";
        let journal = bits(stream.journal.get());
        let row = params![journal, stream.partition.get(), bits(to.get()), reason];
        self.connection.execute(sql, row).map_err(error)?;
        Ok(())
    }

    fn rewinds(&mut self) -> Result<Vec<RewindRequest>, StoreError> {
        read::rewinds(&self.connection)
    }

    fn offsets(&mut self, topic: &str) -> Result<Vec<(Partition, LogOffset)>, StoreError> {
        read::offsets(&self.connection, topic)
    }

    fn letters(
        &mut self,
        after: LetterId,
        limit: u32,
    ) -> Result<Vec<(LetterId, Letter)>, StoreError> {
        read::letters(&self.connection, after, limit)
    }

    fn letter_failed(&mut self, id: LetterId, reason: &str) -> Result<(), StoreError> {
        let sql = "UPDATE dead_letters SET tries = tries + 1, state = 1, reason = ?2
                   WHERE id = ?1 AND state <> 3";
        self.connection.execute(sql, params![id.0, reason]).map_err(error)?;
        Ok(())
    }
}

/// The rows that no batch may change behind our back.
fn compare_watermarks(t: &Transaction<'_>, batch: &StoreBatch<'_>) -> Result<(), StoreError> {
    let mut select = prepare(t, read::WATERMARK)?;
    for m in batch.moves {
        let key = params![bits(m.stream.journal.get()), m.stream.partition.get()];
        let found = select.query_row(key, read::watermark_at).optional().map_err(error)?;
        let found = found.unwrap_or_default();
        if found != m.expected {
            let (stream, expected) = (m.stream, m.expected);
            return Err(StoreError::Watermark { stream, expected, found });
        }
    }
    Ok(())
}

fn move_watermarks(t: &Transaction<'_>, batch: &StoreBatch<'_>) -> Result<(), StoreError> {
    let mut upsert = prepare(
        t,
        "INSERT INTO watermarks (journal, partition, incarnation, since_seq, seq, at)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6) ON CONFLICT (journal, partition) DO UPDATE SET
         incarnation = ?3, since_seq = ?4, seq = ?5, at = ?6",
    )?;
    for m in batch.moves {
        let Watermark { incarnation, since, seq } = m.next;
        let row = params![
            bits(m.stream.journal.get()),
            m.stream.partition.get(),
            incarnation.get(),
            bits(since.get()),
            bits(seq.get()),
            bits(m.at.get()),
        ];
        upsert.execute(row).map_err(error)?;
    }
    Ok(())
}

fn move_offsets(t: &Transaction<'_>, batch: &StoreBatch<'_>) -> Result<(), StoreError> {
    if batch.offsets.next.is_empty() {
        return Ok(());
    }
    let mut upsert = prepare(
        t,
        "INSERT INTO log_offsets VALUES (?1, ?2, ?3)
         ON CONFLICT (topic, partition) DO UPDATE SET next_offset = ?3",
    )?;
    for (partition, next) in batch.offsets.next {
        let row = params![batch.offsets.topic, partition.get(), next.get()];
        upsert.execute(row).map_err(error)?;
    }
    Ok(())
}

fn close_rewinds(t: &Transaction<'_>, batch: &StoreBatch<'_>) -> Result<(), StoreError> {
    let mut update = prepare(
        t,
        "UPDATE rewinds SET is_done = 1
         WHERE is_done = 0 AND journal = ?1 AND partition = ?2 AND to_seq < ?3",
    )?;
    for m in batch.moves {
        let seq = bits(m.next.seq.get());
        let row = params![bits(m.stream.journal.get()), m.stream.partition.get(), seq];
        update.execute(row).map_err(error)?;
    }
    Ok(())
}

fn write_effects(t: &Transaction<'_>, effects: &Effects) -> Result<(), StoreError> {
    insert_redemptions(t, &effects.begun)?;
    move_redemptions(t, &effects.moved)?;
    insert_ledger(t, &effects.ledger)?;
    write_accounts(t, &effects.accounts)?;
    write_stock(t, effects)?;
    write_slots(t, effects)?;
    write_sales(t, effects)?;
    insert_admin_changes(t, &effects.admin_changes)
}

fn prepare<'c>(t: &'c Transaction<'_>, sql: &str) -> Result<CachedStatement<'c>, StoreError> {
    t.prepare_cached(sql).map_err(error)
}

fn insert_redemptions(t: &Transaction<'_>, rows: &[RedemptionRow]) -> Result<(), StoreError> {
    let mut insert = prepare(
        t,
        "INSERT INTO redemptions VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)",
    )?;
    for r in rows {
        let row = params![
            r.id.get().to_be_bytes(),
            bits(r.member.get()),
            bits(r.journal.get()),
            r.item.get(),
            r.quantity.get(),
            bits(r.points.get()),
            r.state as u8,
            r.key.get().to_be_bytes(),
            bits(r.id.at().get()),
            bits(r.expires_at.get()),
            bits(r.updated_at.get()),
            r.units_back,
            bits(r.seq.get()),
        ];
        insert.execute(row).map_err(error)?;
    }
    Ok(())
}

fn move_redemptions(t: &Transaction<'_>, rows: &[RedemptionMove]) -> Result<(), StoreError> {
    let mut update = prepare(
        t,
        "UPDATE redemptions SET state = ?2, updated_at = ?3, units_back = ?4, seq = ?5
         WHERE id = ?1 AND state = ?6 AND member = ?7 AND item = ?8 AND quantity = ?9
         AND points = ?10",
    )?;
    for r in rows {
        let row = params![
            r.id.get().to_be_bytes(),
            r.to as u8,
            bits(r.updated_at.get()),
            r.units_back,
            bits(r.seq.get()),
            r.from as u8,
            bits(r.member.get()),
            r.item.get(),
            r.quantity.get(),
            bits(r.points.get()),
        ];
        if update.execute(row).map_err(error)? != 1 {
            let (id, needed) = (r.id, r.from.name());
            let found = "not so, or another one, or missing";
            return Err(DataError::State { id, found, needed }.into());
        }
    }
    Ok(())
}

fn insert_ledger(t: &Transaction<'_>, rows: &[LedgerRow]) -> Result<(), StoreError> {
    let mut insert = prepare(t, "INSERT INTO ledger VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)")?;
    for r in rows {
        let row = params![
            bits(r.journal.get()),
            bits(r.seq.get()),
            r.leg,
            r.account as u8,
            bits(r.member.get()),
            r.amount,
            r.kind as u8,
            r.redemption.map(|id| id.get().to_be_bytes()),
            bits(r.at.get()),
        ];
        insert.execute(row).map_err(error)?;
    }
    Ok(())
}

fn write_accounts(t: &Transaction<'_>, changes: &[AccountChange]) -> Result<(), StoreError> {
    let mut insert = prepare(t, "INSERT INTO accounts VALUES (?1, ?2, ?3, ?4, ?5)")?;
    let mut update = prepare(
        t,
        "UPDATE accounts SET free = ?2, held = ?3, journal = ?4, last_seq = ?5
         WHERE member = ?1 AND free = ?6 AND held = ?7",
    )?;
    for AccountChange { before, after: a } in changes {
        let (member, free, held) = (bits(a.member.get()), bits(a.free.get()), bits(a.held.get()));
        let (journal, seq) = (bits(a.journal.get()), bits(a.last_seq.get()));
        match before {
            None => insert.execute(params![member, free, held, journal, seq]).map_err(error)?,
            Some((free_before, held_before)) => {
                let before = (bits(free_before.get()), bits(held_before.get()));
                let row = params![member, free, held, journal, seq, before.0, before.1];
                if update.execute(row).map_err(error)? != 1 {
                    let (free, held) = (*free_before, *held_before);
                    return Err(DataError::Stored { member: a.member, free, held }.into());
                }
                1
            }
        };
    }
    Ok(())
}

fn write_stock(t: &Transaction<'_>, effects: &Effects) -> Result<(), StoreError> {
    // Not one upsert: its CHECKs would see the sum to add as if it were the row.
    let mut ensure =
        prepare(t, "INSERT INTO stock (journal, item) VALUES (?1, ?2) ON CONFLICT DO NOTHING")?;
    let mut add = prepare(
        t,
        "UPDATE stock SET held = held + ?3, confirmed = confirmed + ?4, released = released + ?5,
         reversed = reversed + ?6, retired = retired + ?7 WHERE journal = ?1 AND item = ?2",
    )?;
    for ((journal, item), s) in &effects.sums {
        let key = (bits(journal.get()), item.get());
        ensure.execute(params![key.0, key.1]).map_err(error)?;
        let sums = params![key.0, key.1, s.held, s.confirmed, s.released, s.reversed, s.retired];
        add.execute(sums).map_err(error)?;
    }
    if !effects.is_home {
        return Ok(());
    }
    let mut total = prepare(
        t,
        "INSERT INTO stock (journal, item, total, granted, returned)
         VALUES (?1, ?2, coalesce(?3, 0), coalesce(?4, 0), coalesce(?5, 0))
         ON CONFLICT (journal, item) DO UPDATE SET total = coalesce(?3, total),
         granted = coalesce(?4, granted), returned = coalesce(?5, returned)",
    )?;
    for ((journal, item), s) in &effects.totals {
        let (journal, item) = (bits(journal.get()), item.get());
        let figures = (s.total.map(bits), s.granted.map(bits), s.returned.map(bits));
        total.execute(params![journal, item, figures.0, figures.1, figures.2]).map_err(error)?;
    }
    Ok(())
}

/// Checksums wrap, and SQL's sums do not: they are added here, inside the transaction.
fn write_slots(t: &Transaction<'_>, effects: &Effects) -> Result<(), StoreError> {
    let mut select = prepare(t, "SELECT checksum FROM slots WHERE journal = ?1 AND slot = ?2")?;
    let mut upsert = prepare(
        t,
        "INSERT INTO slots VALUES (?1, ?2, ?3, ?4) ON CONFLICT (journal, slot) DO UPDATE SET
         records = records + ?3, checksum = ?4",
    )?;
    for sum in effects.slot_sums() {
        let key = (bits(sum.journal.get()), sum.slot.get());
        let found: Option<i64> =
            select.query_row(params![key.0, key.1], |r| r.get(0)).optional().map_err(error)?;
        let checksum = found.unwrap_or(0).wrapping_add(bits(sum.checksum));
        upsert.execute(params![key.0, key.1, bits(sum.records), checksum]).map_err(error)?;
    }
    Ok(())
}

fn write_sales(t: &Transaction<'_>, effects: &Effects) -> Result<(), StoreError> {
    let mut sale = prepare(t, "INSERT INTO sales VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?6, ?7)")?;
    for r in &effects.sales {
        let row = params![
            bits(r.journal.get()),
            r.sale.get(),
            r.id,
            r.name,
            SaleState::Defined.name(),
            bits(r.defined_at.get()),
            r.definition,
        ];
        sale.execute(row).map_err(error)?;
    }
    let mut item = prepare(t, "INSERT INTO items VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)")?;
    for r in &effects.items {
        let row = params![
            bits(r.journal.get()),
            r.item.get(),
            r.sale.get(),
            r.sku,
            r.name,
            bits(r.points),
            bits(r.limit_per_member),
        ];
        item.execute(row).map_err(error)?;
    }
    let mut change = prepare(
        t,
        "UPDATE sales SET state = ?3, changed_at = ?4 WHERE journal = ?1 AND sale = ?2",
    )?;
    for r in &effects.sale_moves {
        let row = params![bits(r.journal.get()), r.sale.get(), r.state.name(), bits(r.at.get())];
        if change.execute(row).map_err(error)? != 1 {
            return Err(DataError::SaleUnknown(r.sale).into());
        }
    }
    Ok(())
}

fn insert_admin_changes(t: &Transaction<'_>, rows: &[AdminChange]) -> Result<(), StoreError> {
    let mut insert = prepare(
        t,
        "INSERT INTO admin_changes VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)",
    )?;
    for r in rows {
        let row = params![
            bits(r.journal.get()),
            bits(r.seq.get()),
            bits(r.at.get()),
            r.what,
            r.operator,
            r.reason,
            r.reference,
            r.member.map(|m| bits(m.get())),
            r.redemption.map(|id| id.get().to_be_bytes()),
            r.sale.map(crate::units::SaleIndex::get),
            r.item.map(crate::units::ItemIndex::get),
            r.amount,
        ];
        insert.execute(row).map_err(error)?;
    }
    Ok(())
}

fn write_letters(t: &Transaction<'_>, batch: &StoreBatch<'_>) -> Result<(), StoreError> {
    if batch.letters.is_empty() && batch.applied.is_empty() {
        return Ok(());
    }
    let mut insert = prepare(
        t,
        "INSERT INTO dead_letters (journal, partition, incarnation, seq, slot, member, at, state,
         tries, reason, record) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)",
    )?;
    for r in batch.letters {
        let tries = i32::from(r.state == LetterState::Dead);
        let row = params![
            bits(r.stream.journal.get()),
            r.stream.partition.get(),
            r.incarnation.get(),
            bits(r.seq.get()),
            r.slot.get(),
            r.member.map(|m| bits(m.get())),
            bits(r.at.get()),
            r.state as u8,
            tries,
            r.reason,
            r.record,
        ];
        insert.execute(row).map_err(error)?;
    }
    let mut applied = prepare(t, "UPDATE dead_letters SET state = 3 WHERE id = ?1 AND state <> 3")?;
    for id in batch.applied {
        if applied.execute([id.0]).map_err(error)? != 1 {
            return Err(StoreError::LetterGone(*id));
        }
    }
    Ok(())
}
