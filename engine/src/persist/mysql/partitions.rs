//! Monthly partitions of the two tables that grow: listed, and made ahead.
//!
//! ```text
//!  p202611 │ p202612 │ p202701 │ p202702 │ p_future
//!  and all that was before       ahead     empty, until a clock runs ahead
//! ```

use std::time::Duration;

use super::link::{Session, cell};
use super::months::Month;
use crate::persist::store::StoreError;

/// The tables, by their time-ordered ids.
pub const PARTITIONED: [&str; 2] = ["redemptions", "ledger"];
/// Months that are made ahead of the one at hand.
pub const MONTHS_AHEAD: u8 = 2;
/// Splitting an empty partition takes milliseconds, once its turn has come.
const ALTER_TIMEOUT: Duration = Duration::from_secs(30);
/// Splitting one with rows copies them.
const LONG_ALTER_TIMEOUT: Duration = Duration::from_hours(1);
/// How long a change waits for readers of the table. Units: seconds.
const METADATA_WAIT_S: u32 = 5;

/// A partition of a table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PartitionInfo {
    pub table: &'static str,
    pub name: String,
    /// `None`: the last one, which takes what no month does.
    pub month: Option<Month>,
    /// As the server estimates.
    pub rows: u64,
}

/// The partitions of the tables, in order.
pub async fn list(session: &mut Session) -> Result<Vec<PartitionInfo>, StoreError> {
    let mut all = Vec::new();
    for table in PARTITIONED {
        let rows = session
            .rows(
                "SELECT PARTITION_NAME, TABLE_ROWS FROM information_schema.PARTITIONS
                 WHERE TABLE_SCHEMA = DATABASE() AND TABLE_NAME = ?
                 AND PARTITION_NAME IS NOT NULL ORDER BY PARTITION_ORDINAL_POSITION",
                (table,),
            )
            .await?;
        for row in rows {
            let name: String = cell(&row, 0)?;
            let month = Month::of_partition(&name);
            let rows = cell::<Option<u64>>(&row, 1)?.unwrap_or(0);
            all.push(PartitionInfo { table, name, month, rows });
        }
    }
    Ok(all)
}

/// Makes the months from the last one there is (where there is none: `from`) to `to`.
///
/// One process does it at a time; who comes second finds it done.
pub async fn ensure(session: &mut Session, from: Month, to: Month) -> Result<(), StoreError> {
    if missing(session, from, to).await?.is_empty() {
        return Ok(());
    }
    lock(session).await?;
    session.query(&format!("SET SESSION lock_wait_timeout = {METADATA_WAIT_S}")).await?;
    for (table, months) in missing(session, from, to).await? {
        let mut parts: Vec<String> = months.into_iter().map(part).collect();
        parts.push("PARTITION p_future VALUES LESS THAN (MAXVALUE)".into());
        let parts = parts.join(", ");
        let sql = format!("ALTER TABLE {table} REORGANIZE PARTITION p_future INTO ({parts})");
        session.alter(&sql, ALTER_TIMEOUT).await?;
    }
    unlock(session).await
}

fn part(month: Month) -> String {
    let (name, end) = (month.partition(), month.next().first_id());
    format!("PARTITION {name} VALUES LESS THAN ({end})")
}

/// Makes the months from `from` to the oldest there is, which has held everything before it.
pub async fn extend_back(session: &mut Session, from: Month) -> Result<(), StoreError> {
    for table in PARTITIONED {
        let all = list(session).await?;
        let oldest = all.iter().filter(|p| p.table == table).filter_map(|p| p.month).min();
        let Some(oldest) = oldest.filter(|oldest| from < *oldest) else { continue };
        let mut parts = Vec::new();
        let mut month = from;
        while month <= oldest {
            parts.push(part(month));
            month = month.next();
        }
        let (name, parts) = (oldest.partition(), parts.join(", "));
        let sql = format!("ALTER TABLE {table} REORGANIZE PARTITION {name} INTO ({parts})");
        session.alter(&sql, LONG_ALTER_TIMEOUT).await?;
    }
    Ok(())
}

async fn missing(
    session: &mut Session,
    from: Month,
    to: Month,
) -> Result<Vec<(&'static str, Vec<Month>)>, StoreError> {
    let all = list(session).await?;
    let mut missing = Vec::new();
    for table in PARTITIONED {
        let last = all.iter().filter(|p| p.table == table).filter_map(|p| p.month).max();
        let mut next = last.map_or(from, Month::next);
        let mut months = Vec::new();
        while next <= to {
            months.push(next);
            next = next.next();
        }
        if !months.is_empty() {
            missing.push((table, months));
        }
    }
    Ok(missing)
}

/// A lock that ends with the session, so that one process alone changes a schema.
pub async fn lock(session: &mut Session) -> Result<(), StoreError> {
    let sql = "SELECT GET_LOCK(CONCAT('onrush/', RIGHT(DATABASE(), 57)), 5)";
    let rows = session.rows(sql, ()).await?;
    let got = rows.first().map_or(Ok(None), |row| cell::<Option<i64>>(row, 0))?;
    if got == Some(1) {
        return Ok(());
    }
    Err(super::unavailable("another process is changing this database's schema".into()))
}

pub async fn unlock(session: &mut Session) -> Result<(), StoreError> {
    let sql = "DO RELEASE_LOCK(CONCAT('onrush/', RIGHT(DATABASE(), 57)))";
    session.query(sql).await
}
