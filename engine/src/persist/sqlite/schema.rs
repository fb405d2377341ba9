//! The schema and its versions. A file is brought to the newest version when it is opened for
//! writing, each step in a transaction of its own; a newer one is refused.

use rusqlite::{Connection, OptionalExtension, TransactionBehavior, params};

use super::error;
use crate::persist::store::StoreError;
use crate::ship::partition::{DatabaseShard, Layout};

/// Steps from version to version, in order. Files are never changed once released: add one.
const MIGRATIONS: [(&str, &str); 5] = [
    ("0001_tables", include_str!("../../../../config/schema/sqlite/0001_tables.sql")),
    ("0002_log_offsets", include_str!("../../../../config/schema/sqlite/0002_log_offsets.sql")),
    ("0003_slot_claims", include_str!("../../../../config/schema/sqlite/0003_slot_claims.sql")),
    ("0004_waiting", include_str!("../../../../config/schema/sqlite/0004_waiting.sql")),
    ("0005_archived", include_str!("../../../../config/schema/sqlite/0005_archived.sql")),
];

const VERSIONS: &str = "CREATE TABLE IF NOT EXISTS schema_versions (
    version INTEGER PRIMARY KEY,
    name    TEXT NOT NULL
) STRICT";

/// Brings a file to the newest version, and makes sure that it is this database shard.
pub fn migrate(
    connection: &mut Connection,
    shard: DatabaseShard,
    layout: Layout,
) -> Result<(), StoreError> {
    connection.execute(VERSIONS, []).map_err(error)?;
    let found = version(connection)?;
    let newest = MIGRATIONS.len() as u32;
    if found > newest {
        return Err(StoreError::SchemaTooNew { found, newest });
    }
    for (index, (name, sql)) in MIGRATIONS.iter().enumerate().skip(found as usize) {
        let transaction =
            connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(error)?;
        transaction.execute_batch(sql).map_err(error)?;
        transaction
            .execute("INSERT INTO schema_versions VALUES (?1, ?2)", params![index as u32 + 1, name])
            .map_err(error)?;
        if index == 0 {
            let row = params![shard.get(), layout.count()];
            transaction.execute("INSERT INTO identity VALUES (1, ?1, ?2)", row).map_err(error)?;
        }
        transaction.commit().map_err(error)?;
    }
    check_identity(connection, shard, layout)
}

fn version(connection: &Connection) -> Result<u32, StoreError> {
    connection
        .query_row("SELECT coalesce(max(version), 0) FROM schema_versions", [], |r| r.get(0))
        .map_err(error)
}

/// Refuses a file that belongs to another place in the layout.
fn check_identity(
    connection: &Connection,
    shard: DatabaseShard,
    layout: Layout,
) -> Result<(), StoreError> {
    let found: Option<(u8, u8)> = connection
        .query_row("SELECT shard, shard_count FROM identity", [], |r| Ok((r.get(0)?, r.get(1)?)))
        .optional()
        .map_err(error)?;
    let expected = (shard.get(), layout.count());
    if found == Some(expected) {
        return Ok(());
    }
    let text = |(shard, count): (u8, u8)| format!("{shard} of {count}");
    let found = found.map_or_else(|| "none".into(), text);
    Err(StoreError::WrongShard { expected: text(expected), found })
}
