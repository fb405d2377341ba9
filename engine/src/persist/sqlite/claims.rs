//! Claims of slots in a `SQLite` file. Only this node's: a file has one node.

use std::path::Path;

use rusqlite::{Connection, OpenFlags, TransactionBehavior, params};

use super::{SqliteStore, bits, connect, error, path_of};
use crate::cluster::claims::Claim;
use crate::persist::claims::{ClaimRow, HOME};
use crate::persist::store::StoreError;
use crate::ship::partition::Layout;
use crate::units::{JournalId, NodeTime, Slot};

fn open(folder: &Path, layout: Layout) -> Result<Connection, StoreError> {
    std::fs::create_dir_all(folder).map_err(|e| StoreError::Unavailable(e.into()))?;
    // Made or migrated, if it must be.
    drop(SqliteStore::open(folder, HOME, layout)?);
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = connect(&path_of(folder, HOME), flags)?;
    connection.execute_batch("PRAGMA synchronous = FULL").map_err(error)?;
    Ok(connection)
}

pub fn read(folder: &Path, layout: Layout) -> Result<Vec<ClaimRow>, StoreError> {
    let connection = open(folder, layout)?;
    let sql = "SELECT slot, journal, node, map_version FROM slot_claims ORDER BY slot";
    let mut statement = connection.prepare(sql).map_err(error)?;
    let rows = statement
        .query_map([], |row| {
            Ok(ClaimRow {
                slot: Slot::new(row.get(0)?),
                journal: JournalId::new(row.get::<_, i64>(1)?.cast_unsigned()),
                node: row.get(2)?,
                version: row.get::<_, i64>(3)?.cast_unsigned(),
            })
        })
        .map_err(error)?;
    rows.collect::<Result<_, _>>().map_err(error)
}

pub fn insert(
    folder: &Path,
    layout: Layout,
    claim: &Claim,
    at: NodeTime,
) -> Result<(), StoreError> {
    let mut connection = open(folder, layout)?;
    let transaction =
        connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(error)?;
    for slot in claim.slots.iter() {
        let row = params![
            slot.get(),
            bits(claim.journal.get()),
            claim.node,
            bits(claim.version),
            bits(at.get())
        ];
        transaction
            .execute("INSERT INTO slot_claims VALUES (?1, ?2, ?3, ?4, ?5)", row)
            .map_err(error)?;
    }
    transaction.commit().map_err(error)
}
