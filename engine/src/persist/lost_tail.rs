//! Before a start: the database shards must not know more of the journal than the journal does.
//!
//! The same rule as for a snapshot that reaches beyond the journal's end. Persist stores nothing
//! that is not durable, so such a watermark means that the journal lost writes it had
//! acknowledged: an old copy of the data folder, or a disk that lies. A node that went on would
//! sell the same units again and number other records alike.

use std::path::Path;

use thiserror::Error;

use super::sqlite::{SqliteReader, path_of};
use super::store::{StoreError, StoreReader, WatermarkRow};
use crate::ship::partition::{DATABASE_SHARD_COUNT_MAX, DatabaseShard};
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
}

/// Compares the watermarks of all `SQLite` database shards in a folder with the journal that is
/// about to be opened for the `next` time.
pub fn check(
    folder: &Path,
    journal: JournalId,
    next: Incarnation,
    last: Seq,
) -> Result<(), LostTail> {
    for shard in (0..DATABASE_SHARD_COUNT_MAX).map(DatabaseShard::new) {
        if !path_of(folder, shard).exists() {
            continue;
        }
        let rows = watermarks(folder, shard).map_err(|error| LostTail::Store { shard, error })?;
        for row in rows.iter().filter(|row| row.stream.journal == journal) {
            let (stored, incarnation) = (row.watermark.seq, row.watermark.incarnation);
            if stored > last {
                return Err(LostTail::Records { shard, stored, last });
            }
            if incarnation >= next {
                return Err(LostTail::Incarnation { shard, stored: incarnation, next });
            }
        }
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
