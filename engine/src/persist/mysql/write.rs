//! The writing end: a batch is one transaction.
//!
//! ```text
//!  START TRANSACTION
//!  compare the map, shared lock   † a writer with an older map: roll back
//!  lock and compare every watermark   † a zombie, or a batch applied already: roll back
//!  redemptions, ledger, accounts, stock, slots, sales, admin changes, letters    (tables.rs)
//!  watermarks
//!  COMMIT                             its answer may be lost: the watermark tells at the next try
//! ```
//! A stream without a watermark has no row to lock, so the row is inserted first: of two writers
//! that begin the same stream, the second waits for the first, and finds that it lost.

use mysql_async::{Row, Value};

use super::bulk::Bulk;
use super::link::{Link, Session, Use, cell};
use super::months::Month;
use super::partitions::{self, MONTHS_AHEAD};
use super::{Endpoint, cells, map, read, schema, tables, unavailable};
use crate::crash::CrashPoint;
use crate::crash_point;
use crate::persist::store::{
    Letter, LetterId, RewindRequest, Store, StoreBatch, StoreError, Stream, WatermarkMove,
    WatermarkRow,
};
use crate::ship::gap::Watermark;
use crate::ship::holdings::Holdings;
use crate::ship::log::LogOffset;
use crate::ship::partition::{DatabaseShard, Layout, Partition};
use crate::units::{JournalId, Seq};

/// One database shard, open for writing.
pub struct MySqlStore {
    link: Link,
    shard: DatabaseShard,
    layout: Layout,
    /// There may be rewind requests that no batch has answered yet.
    has_rewinds: bool,
    /// The last month whose partitions are known to be there with those ahead of it.
    month: Option<Month>,
    /// Failed attempts to make partitions are not repeated with every batch.
    batches_to_next_try: u32,
}

/// Batches between two attempts to make partitions, where one failed.
const PARTITION_TRY_EVERY: u32 = 1_000;

impl MySqlStore {
    /// Nothing is opened before the first call: a node starts in front of a database that is down.
    ///
    /// Errors: there can be no runtime.
    pub fn new(
        endpoint: Endpoint,
        shard: DatabaseShard,
        layout: Layout,
    ) -> Result<Self, StoreError> {
        let link = Link::new(endpoint, Use::Persist)?;
        Ok(Self { link, shard, layout, has_rewinds: true, month: None, batches_to_next_try: 0 })
    }

    fn run<T>(
        &self,
        work: impl AsyncFnOnce(&mut Session) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let (shard, layout) = (self.shard, self.layout);
        self.link
            .run(async |session: &mut Session| schema::check(session, shard, layout).await, work)
    }

    /// Has the months made that are due by now. A failure is no reason to hold the batch up: the
    /// last partition takes every row.
    fn ensure_partitions(&mut self, batch: &StoreBatch<'_>) {
        let Some(at) = batch.moves.iter().map(|m| m.at).max() else { return };
        let month = Month::of(at);
        if self.month.is_some_and(|known| month <= known) {
            return;
        }
        if self.batches_to_next_try > 0 {
            self.batches_to_next_try -= 1;
            return;
        }
        let made = self.run(async |session: &mut Session| {
            partitions::ensure(session, month, month.plus(MONTHS_AHEAD)).await
        });
        match made {
            Ok(()) => self.month = Some(month),
            Err(error) => {
                self.batches_to_next_try = PARTITION_TRY_EVERY;
                let shard = self.shard.get();
                tracing::warn!(database_shard = shard, %error, "no partitions were made ahead");
            }
        }
    }
}

impl Store for MySqlStore {
    fn shard(&self) -> DatabaseShard {
        self.shard
    }

    fn holdings(&mut self) -> Result<Holdings, StoreError> {
        let map = self.run(async |session: &mut Session| map::holdings(session).await)?;
        match map.furthest_peer() {
            Some(peer) if peer.get() >= self.layout.count() => Err(StoreError::UnknownShard(peer)),
            _ => Ok(map),
        }
    }

    fn watermarks(&mut self) -> Result<Vec<WatermarkRow>, StoreError> {
        self.run(async |session: &mut Session| read::watermarks(session).await)
    }

    fn apply(&mut self, batch: &StoreBatch<'_>) -> Result<(), StoreError> {
        self.ensure_partitions(batch);
        let closes_rewinds = self.has_rewinds;
        self.run(async |session: &mut Session| {
            session.query("START TRANSACTION").await?;
            match transact(session, batch, closes_rewinds).await {
                Ok(()) => {
                    crash_point!(CrashPoint::PersistBeforeCommit);
                    session.query("COMMIT").await?;
                    crash_point!(CrashPoint::PersistAfterCommit);
                    Ok(())
                }
                Err(error) => {
                    // Where it is unavailable the session is closed, which rolls back too.
                    if !error.is_transient() {
                        session.query("ROLLBACK").await?;
                    }
                    Err(error)
                }
            }
        })
    }

    fn ask_rewind(&mut self, stream: Stream, to: Seq, reason: &str) -> Result<(), StoreError> {
        self.has_rewinds = true;
        let sql = "INSERT INTO rewinds (journal, `partition`, to_seq, reason)
                   SELECT ?, ?, ?, ? FROM DUAL WHERE NOT EXISTS (
                       SELECT 1 FROM rewinds WHERE is_done = 0
                       AND journal = ? AND `partition` = ? AND to_seq = ?)";
        let (journal, partition) = (stream.journal.get(), stream.partition.get());
        let row = (journal, partition, to.get(), reason, journal, partition, to.get());
        self.run(async |session: &mut Session| session.execute(sql, row).await).map(drop)
    }

    fn rewinds(&mut self) -> Result<Vec<RewindRequest>, StoreError> {
        let open = self.run(async |session: &mut Session| open_rewinds(session).await)?;
        Ok(open.into_iter().map(|(_, request)| request).collect())
    }

    fn offsets(&mut self, topic: &str) -> Result<Vec<(Partition, LogOffset)>, StoreError> {
        let sql = "SELECT `partition`, next_offset FROM log_offsets WHERE topic = ?
                   ORDER BY `partition`";
        let rows = self.run(async |session: &mut Session| session.rows(sql, (topic,)).await)?;
        let offset = |row| Ok((cells::partition_at(row, 0)?, LogOffset::new(cell(row, 1)?)));
        rows.iter().map(offset).collect()
    }

    fn letters(
        &mut self,
        after: LetterId,
        limit: u32,
    ) -> Result<Vec<(LetterId, Letter)>, StoreError> {
        self.run(async |session: &mut Session| read::letters(session, after, limit).await)
    }

    fn letter_failed(&mut self, id: LetterId, reason: &str) -> Result<(), StoreError> {
        // Not of a partition that is on its way: there it is compared as it stood.
        let sql = "UPDATE dead_letters SET tries = tries + 1, state = 1, reason = ?
                   WHERE id = ? AND state <> 3 AND EXISTS (SELECT 1 FROM holdings h
                       WHERE h.`partition` = dead_letters.`partition` AND h.state = 1)";
        self.run(async |session: &mut Session| session.execute(sql, (reason, id.0)).await).map(drop)
    }
}

async fn transact(
    session: &mut Session,
    batch: &StoreBatch<'_>,
    closes_rewinds: bool,
) -> Result<(), StoreError> {
    map::check(session, batch.map).await?;
    // In the order of their keys, so that two writers of one database never wait in a ring.
    let mut moves: Vec<&WatermarkMove> = batch.moves.iter().collect();
    moves.sort_by_key(|m| m.stream);
    compare_watermarks(session, &moves).await?;
    tables::write_effects(session, batch.effects).await?;
    tables::write_letters(session, batch).await?;
    move_watermarks(session, &moves).await?;
    move_offsets(session, batch).await?;
    if closes_rewinds {
        close_rewinds(session, &moves).await?;
    }
    Ok(())
}

static LOCK_WATERMARKS: Bulk = Bulk {
    head: "SELECT `partition`, incarnation, since_seq, seq FROM watermarks FORCE INDEX (PRIMARY)
           WHERE journal = ? AND `partition` IN (",
    row: "?",
    tail: ") ORDER BY `partition` FOR UPDATE",
    columns: 1,
    row_bytes: 16,
};

/// The rows that no batch may change behind our back.
async fn compare_watermarks(
    session: &mut Session,
    moves: &[&WatermarkMove],
) -> Result<(), StoreError> {
    for of_journal in moves.chunk_by(|a, b| a.stream.journal == b.stream.journal) {
        let journal = of_journal[0].stream.journal;
        let mut found: Vec<(Partition, Watermark)> = Vec::new();
        let partition = |m: &&WatermarkMove, out: &mut Vec<Value>| {
            out.push(Value::UInt(m.stream.partition.get().into()));
        };
        let first = [Value::UInt(journal.get())];
        session
            .read(&LOCK_WATERMARKS, &first, of_journal, partition, |row| {
                found.push((cells::partition_at(row, 0)?, cells::watermark_at(row, 1)?));
                Ok(())
            })
            .await?;
        for m in of_journal {
            let row = found.iter().find(|(p, _)| *p == m.stream.partition);
            compare(session, m, row.map(|(_, w)| *w)).await?;
        }
    }
    Ok(())
}

async fn compare(
    session: &mut Session,
    m: &WatermarkMove,
    found: Option<Watermark>,
) -> Result<(), StoreError> {
    let (stream, expected) = (m.stream, m.expected);
    if let Some(found) = found {
        if found == expected {
            return Ok(());
        }
        return Err(StoreError::Watermark { stream, expected, found });
    }
    if expected != Watermark::default() {
        let found = Watermark::default();
        return Err(StoreError::Watermark { stream, expected, found });
    }
    let sql = "INSERT INTO watermarks VALUES (?, ?, 0, 0, 0, 0)";
    match session.execute(sql, (stream.journal.get(), stream.partition.get())).await {
        Err(StoreError::Data(_)) => {
            Err(unavailable("another process began this partition just now".into()))
        }
        done => done.map(drop),
    }
}

static MOVE_WATERMARKS: Bulk = Bulk {
    head: "INSERT INTO watermarks (journal, `partition`, incarnation, since_seq, seq, at) VALUES ",
    row: "(?, ?, ?, ?, ?, ?)",
    tail: " ON DUPLICATE KEY UPDATE incarnation = VALUES(incarnation),
            since_seq = VALUES(since_seq), seq = VALUES(seq), at = VALUES(at)",
    columns: 6,
    row_bytes: 60,
};

async fn move_watermarks(
    session: &mut Session,
    moves: &[&WatermarkMove],
) -> Result<(), StoreError> {
    let encode = |m: &&WatermarkMove, out: &mut Vec<Value>| {
        let Watermark { incarnation, since, seq } = m.next;
        out.extend([
            Value::UInt(m.stream.journal.get()),
            Value::UInt(m.stream.partition.get().into()),
            Value::UInt(incarnation.get().into()),
            Value::UInt(since.get()),
            Value::UInt(seq.get()),
            Value::UInt(m.at.get()),
        ]);
    };
    session.write(&MOVE_WATERMARKS, moves, encode).await
}

static MOVE_OFFSETS: Bulk = Bulk {
    head: "INSERT INTO log_offsets VALUES ",
    row: "(?, ?, ?)",
    tail: " ON DUPLICATE KEY UPDATE next_offset = VALUES(next_offset)",
    columns: 3,
    row_bytes: 300,
};

async fn move_offsets(session: &mut Session, batch: &StoreBatch<'_>) -> Result<(), StoreError> {
    let encode = |(partition, next): &(Partition, LogOffset), out: &mut Vec<Value>| {
        out.extend([batch.offsets.topic.into(), partition.get().into(), next.get().into()]);
    };
    session.write(&MOVE_OFFSETS, batch.offsets.next, encode).await
}

/// The requests that are open are few, mostly none: they are read, and those answered are closed.
async fn close_rewinds(session: &mut Session, moves: &[&WatermarkMove]) -> Result<(), StoreError> {
    for (id, request) in open_rewinds(session).await? {
        let answers = |m: &&WatermarkMove| m.stream == request.stream && m.next.seq > request.to;
        if moves.iter().any(answers) {
            session.execute("UPDATE rewinds SET is_done = 1 WHERE id = ?", (id,)).await?;
        }
    }
    Ok(())
}

async fn open_rewinds(session: &mut Session) -> Result<Vec<(i64, RewindRequest)>, StoreError> {
    let rows = session.rows(read::REWINDS, ()).await?;
    let request = |row: &Row| {
        let journal = JournalId::new(cell(row, 1)?);
        let stream = Stream { journal, partition: cells::partition_at(row, 2)? };
        Ok((cell(row, 0)?, RewindRequest { stream, to: Seq::new(cell(row, 3)?) }))
    };
    rows.iter().map(request).collect()
}
