//! The embedded default: the node's own journal as the log, `SQLite` files as database shards.

use std::path::Path;
use std::sync::Arc;

use thiserror::Error;

use super::sqlite::{self, SqliteStore};
use super::status::PersistStatus;
use super::store::{Store, StoreError};
use super::writer::{ShardWriter, WriterSettings};
use crate::ship::frames::FrameSource;
use crate::ship::log::LogError;
use crate::ship::partition::DatabaseShard;
use crate::ship::tail::JournalLog;
use crate::units::JournalId;

/// A writer of the embedded default.
pub type EmbeddedWriter<F> = ShardWriter<JournalLog<F>, SqliteStore>;

/// The database shards cannot be written by this node.
#[derive(Error, Debug)]
pub enum OpenError {
    #[error("database shard {}: {source}", shard.get())]
    Store { shard: DatabaseShard, source: StoreError },
    #[error(transparent)]
    Open(#[from] StoreError),
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(
        "database shard {} has records of journal {:016x}, this data folder is journal {:016x}: \
         its database files belong to another data folder",
        shard.get(), found.get(), expected.get()
    )]
    OtherJournal { shard: DatabaseShard, found: JournalId, expected: JournalId },
}

/// Opens all database shards in `folder`, each with its own reader of the journal.
pub fn open<F: FrameSource>(
    folder: &Path,
    settings: WriterSettings,
    status: &Arc<PersistStatus>,
    mut source: impl FnMut() -> Result<F, LogError>,
) -> Result<Vec<EmbeddedWriter<F>>, OpenError> {
    let layout = status.layout();
    let mut writers = Vec::new();
    for mut store in sqlite::open_all(folder, layout)? {
        let shard = store.shard();
        let failed = |source| OpenError::Store { shard, source };
        let source = source()?;
        let expected = source.head().journal;
        for row in store.watermarks().map_err(failed)? {
            let found = row.stream.journal;
            if found != expected {
                return Err(OpenError::OtherJournal { shard, found, expected });
            }
        }
        let writer = ShardWriter::open(store, settings, status.clone(), |stored| {
            let watermark = |partition| {
                let stream = super::store::Stream { journal: expected, partition };
                (partition, stored.get(&stream).copied().unwrap_or_default().seq)
            };
            JournalLog::new(source, layout.partitions(shard).map(watermark))
        });
        writers.push(writer.map_err(failed)?);
    }
    Ok(writers)
}
