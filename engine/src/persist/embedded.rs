//! The embedded default: the node's own journal as the log, `SQLite` files as database shards.

use std::path::Path;
use std::sync::Arc;

use thiserror::Error;

use super::sqlite::{self, SqliteStore};
use super::status::PersistStatus;
use super::store::{Store, StoreError, Stream};
use super::writer::{ShardWriter, Watermarks, WriterSettings};
use crate::ship::frames::FrameSource;
use crate::ship::log::{Log, LogError};
use crate::ship::partition::{DatabaseShard, Partition};
use crate::ship::tail::JournalLog;

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
}

/// Opens all database shards in `folder`, each with its own reader of the journal.
pub fn open<F: FrameSource>(
    folder: &Path,
    settings: WriterSettings,
    status: &Arc<PersistStatus>,
    source: impl FnMut() -> Result<F, LogError>,
) -> Result<Vec<EmbeddedWriter<F>>, OpenError> {
    over_journal(sqlite::open_all(folder, status.layout())?, settings, status, source)
}

/// The node's own journal as the log, over whichever stores.
pub fn over_journal<F: FrameSource, S: Store>(
    stores: Vec<S>,
    settings: WriterSettings,
    status: &Arc<PersistStatus>,
    mut source: impl FnMut() -> Result<F, LogError>,
) -> Result<Vec<ShardWriter<JournalLog<F>, S>>, OpenError> {
    stores.into_iter().map(|store| writer(store, source()?, settings, status)).collect()
}

/// One database shard's writer, from its watermarks on.
pub fn writer<F: FrameSource, S: Store>(
    store: S,
    source: F,
    settings: WriterSettings,
    status: &Arc<PersistStatus>,
) -> Result<ShardWriter<JournalLog<F>, S>, OpenError> {
    writer_of(store, source, settings, status, |log| log)
}

/// The same, of a log that `wrap` makes of the journal's.
pub(super) fn writer_of<F: FrameSource, S: Store, L: Log>(
    store: S,
    source: F,
    settings: WriterSettings,
    status: &Arc<PersistStatus>,
    wrap: impl FnOnce(JournalLog<F>) -> L,
) -> Result<ShardWriter<L, S>, OpenError> {
    let shard = store.shard();
    let failed = |source| OpenError::Store { shard, source };
    let expected = source.head().journal;
    let open_log = |held: &[Partition], stored: &Watermarks| {
        let watermark = |partition: &Partition| {
            let stream = Stream { journal: expected, partition: *partition };
            (*partition, stored.get(&stream).copied().unwrap_or_default().seq)
        };
        wrap(JournalLog::new(source, held.iter().map(watermark)))
    };
    let writer = ShardWriter::open(store, settings, status.clone(), open_log).map_err(failed)?;
    if let Some(found) = writer.journals().find(|found| *found != expected) {
        return Err(failed(StoreError::OtherJournal { found, expected }));
    }
    Ok(writer)
}
