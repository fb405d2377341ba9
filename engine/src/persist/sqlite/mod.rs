//! Database shards as `SQLite` files: `FOLDER/shard-NN.sqlite`, each with one writer and any
//! number of readers (WAL). A commit is durable when it returns (`synchronous = FULL`).

pub mod claims;
mod read;
mod schema;
mod write;

pub use read::SqliteReader;
pub use write::SqliteStore;

use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags};

use super::apply::DataError;
use super::store::StoreError;
use crate::ship::partition::{DatabaseShard, Layout};

/// How long a statement waits for another process's lock.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// Pages of 4 KiB in the write-ahead log before it is folded back into the file: large enough
/// that a page which many transactions touch is written back once for all of them.
const CHECKPOINT_PAGES: u32 = 8192;
/// Units: KiB per writing connection.
const CACHE_KIB: i32 = 64 * 1024;

/// The file of a database shard.
pub fn path_of(folder: &Path, shard: DatabaseShard) -> PathBuf {
    folder.join(format!("shard-{:02}.sqlite", shard.get()))
}

/// Opens (creating what is missing) the writing ends of all database shards.
pub fn open_all(folder: &Path, layout: Layout) -> Result<Vec<SqliteStore>, StoreError> {
    std::fs::create_dir_all(folder).map_err(|e| StoreError::Unavailable(e.into()))?;
    layout.shards().map(|shard| SqliteStore::open(folder, shard, layout)).collect()
}

fn connect(path: &Path, flags: OpenFlags) -> Result<Connection, StoreError> {
    let connection = Connection::open_with_flags(path, flags).map_err(error)?;
    connection.busy_timeout(BUSY_TIMEOUT).map_err(error)?;
    connection.set_prepared_statement_cache_capacity(64);
    Ok(connection)
}

/// Tells rows that the database refuses from a database that cannot work.
fn error(e: rusqlite::Error) -> StoreError {
    match &e {
        rusqlite::Error::SqliteFailure(failure, message)
            if matches!(failure.code, ErrorCode::ConstraintViolation | ErrorCode::TypeMismatch) =>
        {
            let reason = message.clone().unwrap_or_else(|| failure.to_string());
            StoreError::Data(DataError::Refused(reason))
        }
        _ => StoreError::Unavailable(e.into()),
    }
}

/// The 64 bits of an id as `SQLite` stores them.
const fn bits(id: u64) -> i64 {
    id.cast_signed()
}

#[cfg(test)]
mod tests;
