//! The embedded default: the node's own journal as the log, `SQLite` files as database shards.

use std::path::Path;
use std::sync::Arc;

use thiserror::Error;

use super::sqlite::{self, SqliteStore};
use super::status::PersistStatus;
use super::store::{Store, StoreError, Stream};
use super::writer::{ShardWriter, Watermarks, WriterSettings};
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
    let stores = sqlite::open_all(folder, status.layout())?;
    stores.into_iter().map(|store| writer(store, source()?, settings, status)).collect()
}

/// One database shard's writer, from its watermarks on.
pub fn writer<F: FrameSource, S: Store>(
    mut store: S,
    source: F,
    settings: WriterSettings,
    status: &Arc<PersistStatus>,
) -> Result<ShardWriter<JournalLog<F>, S>, OpenError> {
    let shard = store.shard();
    let failed = |source| OpenError::Store { shard, source };
    let expected = source.head().journal;
    for row in store.watermarks().map_err(failed)? {
        let found = row.stream.journal;
        if found != expected {
            return Err(OpenError::OtherJournal { shard, found, expected });
        }
    }
    let layout = status.layout();
    let open_log = |stored: &Watermarks| {
        let watermark = |partition| {
            let stream = Stream { journal: expected, partition };
            (partition, stored.get(&stream).copied().unwrap_or_default().seq)
        };
        JournalLog::new(source, layout.partitions(shard).map(watermark))
    };
    ShardWriter::open(store, settings, status.clone(), open_log).map_err(failed)
}
