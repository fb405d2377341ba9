//! The schema and its versions. `onrush db migrate` brings a database to the newest version;
//! persist refuses an older one, a newer one, and a database that is another shard.

use std::time::Duration;

use super::link::{Link, Session, Use, cell};
use super::months::Month;
use super::partitions::{self, MONTHS_AHEAD, PartitionInfo};
use super::{Endpoint, map, read};
use crate::persist::store::{StoreError, StoreReader as _, WatermarkRow};
use crate::ship::holdings::Holdings;
use crate::ship::partition::{DatabaseShard, Layout};

/// Steps from version to version, in order. Files are never changed once released: add one.
const MIGRATIONS: [(&str, &str); 5] = [
    ("0001_tables", include_str!("../../../../config/schema/mysql/0001_tables.sql")),
    ("0002_holdings", include_str!("../../../../config/schema/mysql/0002_holdings.sql")),
    ("0003_slot_claims", include_str!("../../../../config/schema/mysql/0003_slot_claims.sql")),
    ("0004_waiting", include_str!("../../../../config/schema/mysql/0004_waiting.sql")),
    ("0005_archived", include_str!("../../../../config/schema/mysql/0005_archived.sql")),
];

/// The newest version.
pub const NEWEST: u32 = MIGRATIONS.len() as u32;

const VERSIONS: &str = "CREATE TABLE IF NOT EXISTS schema_versions (
    version INT UNSIGNED NOT NULL PRIMARY KEY,
    name    VARCHAR(64)  NOT NULL
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_bin";

/// Filling a new index of a large table takes its time.
const ALTER_TIMEOUT: Duration = Duration::from_hours(24);

/// What `onrush db status` tells of one database.
#[derive(Clone, Debug)]
pub struct SchemaStatus {
    /// The server's own words.
    pub server: String,
    pub version: u32,
    pub partitions: Vec<PartitionInfo>,
    pub holdings: Option<Holdings>,
    pub watermarks: Vec<WatermarkRow>,
    /// Letters not applied yet.
    pub letters: usize,
}

/// How many database shards there were when this one was made; `None` where it never was.
///
/// Errors: `Unavailable`.
pub fn made_as_one_of(endpoint: &Endpoint) -> Result<Option<u8>, StoreError> {
    let link = Link::new(endpoint.clone(), Use::Read)?;
    link.run(
        async |_| Ok(()),
        async |session: &mut Session| {
            if version(session).await? == 0 {
                return Ok(None);
            }
            Ok(identity(session).await?.map(|(_, count)| count))
        },
    )
}

/// Brings a database to the newest version, and makes the months from `from` to those ahead of
/// `now`; what versions were applied. `spread`: over how many database shards the partitions were
/// spread; one that came later begins empty.
///
/// Errors: `SchemaTooNew`, `WrongShard`; `Unavailable` where the server is, or refuses.
pub fn migrate(
    endpoint: &Endpoint,
    shard: DatabaseShard,
    layout: Layout,
    spread: Layout,
    (from, now): (Month, Month),
) -> Result<Vec<&'static str>, StoreError> {
    let link = Link::new(endpoint.clone(), Use::Write)?;
    link.run(
        async |_| Ok(()),
        async |session: &mut Session| {
            partitions::lock(session).await?;
            let applied = migrate_in(session, shard, layout, spread).await?;
            partitions::unlock(session).await?;
            partitions::ensure(session, from, from.max(now).plus(MONTHS_AHEAD)).await?;
            Ok(applied)
        },
    )
}

async fn migrate_in(
    session: &mut Session,
    shard: DatabaseShard,
    layout: Layout,
    spread: Layout,
) -> Result<Vec<&'static str>, StoreError> {
    session.query(VERSIONS).await?;
    let found = version(session).await?;
    if found > NEWEST {
        return Err(StoreError::SchemaTooNew { found, newest: NEWEST });
    }
    let mut applied = Vec::new();
    for (index, (name, sql)) in MIGRATIONS.iter().enumerate().skip(found as usize) {
        for statement in statements(sql) {
            // The one statement that not every server can be told to run again.
            if let Some((index, table)) = new_index(&statement)
                && has_index(session, table, index).await?
            {
                continue;
            }
            session.alter(&statement, ALTER_TIMEOUT).await?;
        }
        if index == 0 {
            let row = (shard.get(), layout.count());
            let sql = "INSERT INTO identity VALUES (1, ?, ?)
                       ON DUPLICATE KEY UPDATE shard = shard";
            session.execute(sql, row).await?;
        }
        if index == 1 {
            let is_one_of_them = shard.get() < spread.count();
            map::found(session, shard, is_one_of_them.then_some(spread)).await?;
        }
        let row = (index as u32 + 1, *name);
        session.execute("INSERT INTO schema_versions VALUES (?, ?)", row).await?;
        applied.push(*name);
    }
    check_identity(session, shard, layout).await?;
    Ok(applied)
}

/// Which database shard it is, and of how many it was made.
async fn identity(session: &mut Session) -> Result<Option<(u8, u8)>, StoreError> {
    let rows = session.rows("SELECT shard, shard_count FROM identity", ()).await?;
    rows.first().map(|row| Ok((cell(row, 0)?, cell(row, 1)?))).transpose()
}

/// A file's statements, without its comments.
fn statements(sql: &str) -> Vec<String> {
    let lines = sql.lines().filter(|line| !line.trim_start().starts_with("--"));
    let text = lines.collect::<Vec<_>>().join("\n");
    let parts = text.split(";\n").map(str::trim).map(|s| s.trim_end_matches(';'));
    parts.filter(|s| !s.is_empty()).map(str::to_owned).collect()
}

/// The index that a statement makes, and its table.
fn new_index(statement: &str) -> Option<(&str, &str)> {
    let mut words = statement.strip_prefix("CREATE INDEX ")?.split_whitespace();
    let (index, on, table) = (words.next()?, words.next()?, words.next()?);
    (on == "ON").then_some((index, table))
}

async fn has_index(session: &mut Session, table: &str, index: &str) -> Result<bool, StoreError> {
    let sql = "SELECT COUNT(*) FROM information_schema.STATISTICS
               WHERE TABLE_SCHEMA = DATABASE() AND TABLE_NAME = ? AND INDEX_NAME = ?";
    let rows = session.rows(sql, (table, index)).await?;
    Ok(rows.first().map_or(Ok(0), |row| cell::<u64>(row, 0))? > 0)
}

/// The version that a database has; 0 where it has no table of ours.
pub async fn version(session: &mut Session) -> Result<u32, StoreError> {
    let sql = "SELECT COUNT(*) FROM information_schema.TABLES
               WHERE TABLE_SCHEMA = DATABASE() AND TABLE_NAME = 'schema_versions'";
    let rows = session.rows(sql, ()).await?;
    if rows.first().map_or(Ok(0), |row| cell::<u64>(row, 0))? == 0 {
        return Ok(0);
    }
    let rows = session.rows("SELECT COALESCE(MAX(version), 0) FROM schema_versions", ()).await?;
    rows.first().map_or(Ok(0), |row| cell(row, 0))
}

/// What a session asks before anything else.
///
/// Errors: the schema is older or newer, or the database is another one.
pub async fn check(
    session: &mut Session,
    shard: DatabaseShard,
    layout: Layout,
) -> Result<(), StoreError> {
    let found = version(session).await?;
    if found > NEWEST {
        return Err(StoreError::SchemaTooNew { found, newest: NEWEST });
    }
    if found < NEWEST {
        return Err(StoreError::SchemaTooOld { found, newest: NEWEST });
    }
    check_identity(session, shard, layout).await
}

async fn check_identity(
    session: &mut Session,
    shard: DatabaseShard,
    layout: Layout,
) -> Result<(), StoreError> {
    let (found, expected) = (identity(session).await?, (shard.get(), layout.count()));
    // There may be more by now: they were added behind, and hold what was split off to them.
    if found.is_some_and(|(is, of)| is == expected.0 && of <= expected.1) {
        return Ok(());
    }
    let text = |(shard, count): (u8, u8)| format!("{shard} of {count}");
    let found = found.map_or_else(|| "none".into(), text);
    Err(StoreError::WrongShard { expected: text(expected), found })
}

/// What a database is in; it may have no table yet.
pub fn status(
    endpoint: &Endpoint,
    shard: DatabaseShard,
    layout: Layout,
) -> Result<SchemaStatus, StoreError> {
    let link = Link::new(endpoint.clone(), Use::Read)?;
    let (server, version, partitions) = link.run(
        async |_| Ok(()),
        async |session: &mut Session| {
            let rows = session.rows("SELECT VERSION()", ()).await?;
            let server = rows.first().map_or(Ok(String::new()), |row| cell(row, 0))?;
            let version = version(session).await?;
            let partitions =
                if version == 0 { Vec::new() } else { partitions::list(session).await? };
            Ok((server, version, partitions))
        },
    )?;
    let (mut holdings, mut watermarks, mut letters) = (None, Vec::new(), 0);
    if version == NEWEST {
        read::MySqlReader::open(endpoint.clone(), shard, layout)?.consistent(&mut |moment| {
            holdings = Some(moment.holdings()?);
            watermarks = moment.watermarks()?;
            letters = moment.letters()?.len();
            Ok(())
        })?;
    }
    Ok(SchemaStatus { server, version, partitions, holdings, watermarks, letters })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_cut_into_its_statements() {
        let sql = "-- about\nCREATE TABLE a (\n  -- a column\n  b INT\n);\n\n\
                   CREATE VIEW v AS\nSELECT ';x';\n";
        let expected = ["CREATE TABLE a (\n  b INT\n)", "CREATE VIEW v AS\nSELECT ';x'"];
        assert_eq!(statements(sql), expected);
        assert_eq!(statements(MIGRATIONS[0].1).len(), 16);
        let indexes: Vec<_> = statements(MIGRATIONS[3].1);
        let indexes: Vec<_> = indexes.iter().filter_map(|sql| new_index(sql)).collect();
        let expected = [("rewinds_open", "rewinds"), ("dead_letters_waiting", "dead_letters")];
        assert_eq!(indexes, expected);
    }

    /// Every write pays for every index. One that makes rows unique is there for that.
    #[test]
    fn there_is_an_index_for_each_read_and_no_other() {
        let sql: Vec<_> = MIGRATIONS.iter().flat_map(|(_, sql)| statements(sql)).collect();
        let mut made = std::collections::BTreeSet::new();
        for statement in &sql {
            made.extend(new_index(statement).map(|(index, _)| index));
            for line in statement.lines().filter_map(|line| line.trim().strip_prefix("KEY ")) {
                made.extend(line.split_whitespace().next());
            }
        }
        let read: std::collections::BTreeSet<_> =
            read::READS.iter().map(|(_, _, index)| *index).filter(|i| *i != "PRIMARY").collect();
        assert_eq!(made, read);
    }
}
