//! Before a start: the database shards must not know more of the journal than the journal does.
//!
//! The same rule as for a snapshot that reaches beyond the journal's end. Persist stores nothing
//! that is not durable, so such a watermark means that the journal lost writes it had
//! acknowledged: an old copy of the data folder, or a disk that lies. A node that went on would
//! sell the same units again and number other records alike.
//!
//! Files are there, or the node has none. A database elsewhere may not answer just now: the node
//! starts all the same, and the first answer is compared then (`PersistStatus::opening`): what
//! does not hold is an alarm, and nothing of this journal is written there.

use std::path::Path;

use thiserror::Error;

use super::sqlite::{SqliteReader, path_of};
use super::store::{StoreError, StoreReader, WatermarkRow};
use super::stores::{self, StoresError};
use crate::config::{StoreConfig, StoreKind};
use crate::ship::partition::{DATABASE_SHARD_COUNT_MAX, DatabaseShard, Layout};
use crate::units::{Incarnation, JournalId, Seq};

/// Why a node must not start on this journal.
#[derive(Error, Debug)]
pub enum LostTail {
    #[error(
        "database shard {} has records of this journal up to {stored}, and the journal ends at \
         {last}: confirmed redemptions are missing from it. It is an old copy, or its disk lost \
         writes: start with the newest copy of the data folder; to go on without what is lost, \
         restore the database shards to the age of the journal",
        shard.get()
    )]
    Records { shard: DatabaseShard, stored: Seq, last: Seq },
    #[error(
        "database shard {} has records of opening {stored} of this journal, and this would be \
         opening {next}: it is an old copy. Start with the newest copy of the data folder; to go \
         on without what is lost, restore the database shards to the age of the journal",
        shard.get()
    )]
    Incarnation { shard: DatabaseShard, stored: Incarnation, next: Incarnation },
    #[error("database shard {}: {error}", shard.get())]
    Store { shard: DatabaseShard, error: StoreError },
    #[error(transparent)]
    Settings(#[from] StoresError),
}

/// The journal that is about to be opened for the `next` time, and its last record.
#[derive(Clone, Copy, Debug)]
pub struct Opening {
    pub journal: JournalId,
    pub next: Incarnation,
    pub last: Seq,
}

impl Opening {
    /// Whether a watermark knows more of this journal than it does itself.
    pub fn is_behind(&self, row: &WatermarkRow) -> bool {
        row.stream.journal == self.journal
            && (row.watermark.seq > self.last || row.watermark.incarnation >= self.next)
    }
}

/// Compares the watermarks of all database shards with a journal.
pub fn check(
    config: &StoreConfig,
    folder: &Path,
    layout: Layout,
    opening: Opening,
) -> Result<(), LostTail> {
    match config.kind {
        StoreKind::Sqlite => check_files(folder, opening),
        StoreKind::Mysql => check_databases(config, folder, layout, opening),
    }
}

fn check_files(folder: &Path, opening: Opening) -> Result<(), LostTail> {
    for shard in (0..DATABASE_SHARD_COUNT_MAX).map(DatabaseShard::new) {
        if !path_of(folder, shard).exists() {
            continue;
        }
        let rows = watermarks(folder, shard).map_err(|error| LostTail::Store { shard, error })?;
        compare(shard, &rows, opening)?;
    }
    Ok(())
}

/// All at once: one that does not answer takes its time to be known as such.
fn check_databases(
    config: &StoreConfig,
    folder: &Path,
    layout: Layout,
    opening: Opening,
) -> Result<(), LostTail> {
    let read = |shard| match stores::reader(config, folder, shard, layout) {
        Ok(reader) => Ok((shard, reader.watermarks())),
        Err(error) => Err(error),
    };
    let answers: Vec<_> = std::thread::scope(|scope| {
        let asked: Vec<_> = layout.shards().map(|shard| scope.spawn(move || read(shard))).collect();
        asked.into_iter().map(|asked| asked.join().expect("a panic ends the process")).collect()
    });
    for answer in answers {
        match answer? {
            (shard, Ok(rows)) => compare(shard, &rows, opening)?,
            (shard, Err(error)) if error.is_transient() => {
                let database_shard = shard.get();
                tracing::warn!(database_shard, %error, "starting without what it knows");
            }
            (shard, Err(error)) => return Err(LostTail::Store { shard, error }),
        }
    }
    Ok(())
}

fn compare(shard: DatabaseShard, rows: &[WatermarkRow], opening: Opening) -> Result<(), LostTail> {
    let Opening { next, last, .. } = opening;
    if let Some(row) = rows.iter().find(|row| opening.is_behind(row)) {
        let (stored, incarnation) = (row.watermark.seq, row.watermark.incarnation);
        if stored > last {
            return Err(LostTail::Records { shard, stored, last });
        }
        return Err(LostTail::Incarnation { shard, stored: incarnation, next });
    }
    Ok(())
}

fn watermarks(folder: &Path, shard: DatabaseShard) -> Result<Vec<WatermarkRow>, StoreError> {
    let mut rows = Vec::new();
    SqliteReader::open(folder, shard)?.consistent(&mut |read| {
        rows = read.watermarks()?;
        Ok(())
    })?;
    Ok(rows)
}
