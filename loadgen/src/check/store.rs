//! The store, read by SQL of its own: SQLite database shards in a folder.
//!
//! The tables are those of `config/schema/README.md`; only columns documented there are read.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, params};

use crate::check::after::{Check, Seen};
use crate::check::{CheckError, Checked};
use crate::work::accepted::Finding;

/// A redemption's id as it is stored.
pub type Id = [u8; 16];

/// A row of `redemptions`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    pub member: u64,
    pub sku: String,
    pub quantity: u32,
    pub points: u64,
    pub state: &'static str,
}

/// Parses the text of an id.
pub fn parse_id(text: &str) -> Option<Id> {
    let hex: String = text.chars().filter(|c| *c != '-').collect();
    u128::from_str_radix(&hex, 16).ok().filter(|_| hex.len() == 32).map(u128::to_be_bytes)
}

/// The ids of a sale's redemptions that the store has.
pub fn ids_of_sale(dir: &Path, sale: &str) -> Result<HashSet<Id>, CheckError> {
    Ok(rows_of_sale(dir, sale)?.into_keys().collect())
}

/// Compares the store with what was accepted, once it has caught up.
pub fn check(
    dir: &Path,
    check: &Check<'_>,
    seen: &[Seen<'_>],
    checked: &mut Checked,
    found: &mut Vec<Finding>,
) -> Result<(), CheckError> {
    let wanted: HashMap<Id, &Seen<'_>> =
        seen.iter().filter_map(|s| Some((parse_id(&s.accepted.id)?, s))).collect();
    let rows = wait_for(dir, check, &wanted)?;
    checked.found_in_store = Some(wanted.keys().filter(|id| rows.contains_key(*id)).count() as u64);
    for (id, s) in &wanted {
        let name = || check.name(s.number, s.accepted);
        match rows.get(id) {
            None => {
                let text = format!("{}: accepted, and not in the store", name());
                found.push(Finding { kind: "lost", text });
            }
            Some(row) if !is_same(row, s) => {
                let text = format!(
                    "{}: in the store it is member {}, {} of {}, {} points, {}; over the API {}",
                    name(),
                    row.member,
                    row.quantity,
                    row.sku,
                    row.points,
                    row.state,
                    s.now.state
                );
                found.push(Finding { kind: "store-differs", text });
            }
            Some(_) => {}
        }
    }
    for (id, row) in &rows {
        if !wanted.contains_key(id) && !check.before.stored.contains(id) {
            let text = format!(
                "redemption {:032x} of {} by member {} is in the store, and nobody was told of it",
                u128::from_be_bytes(*id),
                row.sku,
                row.member
            );
            found.push(Finding { kind: "unasked-effect", text });
        }
    }
    ledger_rows(dir, check, &wanted, found)
}

fn is_same(row: &Row, s: &Seen<'_>) -> bool {
    // A hold may have ended between the two looks.
    let state = row.state == s.now.state || (s.now.state == "held" && row.state == "expired");
    let a = s.accepted;
    state
        && (row.member, &row.sku, row.quantity, row.points)
            == (a.member, &s.now.sku, a.quantity, a.points)
}

/// Reads until all that is wanted is there in its state, or the time is over.
fn wait_for(
    dir: &Path,
    check: &Check<'_>,
    wanted: &HashMap<Id, &Seen<'_>>,
) -> Result<HashMap<Id, Row>, CheckError> {
    const STEP: Duration = Duration::from_millis(100);
    let mut left = check.options.store_wait;
    loop {
        let rows = rows_of_sale(dir, &check.work.sale)?;
        let is_there = |(id, s): (&Id, &&Seen<'_>)| rows.get(id).is_some_and(|row| is_same(row, s));
        if left.is_zero() || wanted.iter().all(is_there) {
            return Ok(rows);
        }
        std::thread::sleep(STEP.min(left));
        left = left.saturating_sub(STEP);
    }
}

/// All of a sale's redemptions that the store has.
pub fn rows_of_sale(dir: &Path, sale: &str) -> Result<HashMap<Id, Row>, CheckError> {
    let shards = open(dir)?;
    // Sales and items are written to one shard only, by the control partition.
    let mut skus: HashMap<(i64, i64), String> = HashMap::new();
    for (path, db) in &shards {
        let sql = "SELECT i.journal, i.item, i.sku FROM items i \
                   JOIN sales s ON s.journal = i.journal AND s.sale = i.sale WHERE s.id = ?1";
        each(path, db, sql, params![sale], |row| {
            skus.insert((row.get(0)?, row.get(1)?), row.get(2)?);
            Ok(())
        })?;
    }
    let mut rows = HashMap::new();
    for (path, db) in &shards {
        let sql = "SELECT id, member, journal, item, quantity, points, state FROM redemptions";
        each(path, db, sql, [], |row| {
            let Some(sku) = skus.get(&(row.get(2)?, row.get(3)?)) else { return Ok(()) };
            let state = match row.get::<_, i64>(6)? {
                1 => "held",
                2 => "confirmed",
                3 => "cancelled",
                4 => "expired",
                5 => "reversed",
                _ => "of no known state",
            };
            rows.insert(
                row.get::<_, Id>(0)?,
                Row {
                    member: row.get::<_, i64>(1)?.cast_unsigned(),
                    sku: sku.clone(),
                    quantity: row.get(4)?,
                    points: row.get::<_, i64>(5)?.cast_unsigned(),
                    state,
                },
            );
            Ok(())
        })?;
    }
    Ok(rows)
}

/// The ledger's rows of each accepted redemption say what it cost: on the member's accounts in
/// sum, minus the points of a confirmed one, and nothing of a released one.
fn ledger_rows(
    dir: &Path,
    check: &Check<'_>,
    wanted: &HashMap<Id, &Seen<'_>>,
    found: &mut Vec<Finding>,
) -> Result<(), CheckError> {
    let mut sums: HashMap<Id, (i64, i64)> = HashMap::new();
    for (path, db) in &open(dir)? {
        let sql = "SELECT redemption, sum(CASE WHEN account <= 2 THEN amount ELSE 0 END), \
                   sum(amount) FROM ledger WHERE redemption IS NOT NULL GROUP BY redemption";
        each(path, db, sql, [], |row| {
            let sum = sums.entry(row.get(0)?).or_default();
            *sum = (sum.0 + row.get::<_, i64>(1)?, sum.1 + row.get::<_, i64>(2)?);
            Ok(())
        })?;
    }
    for (id, s) in wanted {
        let (member, all) = sums.get(id).copied().unwrap_or_default();
        let cost = if s.now.state == "confirmed" { s.now.points.cast_signed() } else { 0 };
        if member != -cost || all != 0 {
            let text = format!(
                "{}: its ledger rows move {member} points of the member (expected {}), and sum to \
                 {all} in all",
                check.name(s.number, s.accepted),
                -cost
            );
            found.push(Finding { kind: "ledger-differs", text });
        }
    }
    Ok(())
}

fn open(dir: &Path) -> Result<Vec<(PathBuf, Connection)>, CheckError> {
    let path = dir.display().to_string();
    let wrong = |e: std::io::Error| CheckError::File { path: path.clone(), detail: e.to_string() };
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(wrong)? {
        let file = entry.map_err(wrong)?.path();
        if file.extension().is_some_and(|e| e == "sqlite") {
            files.push(file);
        }
    }
    files.sort();
    if files.is_empty() {
        return Err(CheckError::NoStore { path });
    }
    files
        .into_iter()
        .map(|file| {
            let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
            let db = Connection::open_with_flags(&file, flags)
                .and_then(|db| db.busy_timeout(Duration::from_secs(5)).map(|()| db))
                .map_err(|source| CheckError::Store { path: file.display().to_string(), source })?;
            Ok((file, db))
        })
        .collect()
}

fn each(
    path: &Path,
    db: &Connection,
    sql: &str,
    values: impl rusqlite::Params,
    mut take: impl FnMut(&rusqlite::Row<'_>) -> rusqlite::Result<()>,
) -> Result<(), CheckError> {
    let read = || {
        let mut statement = db.prepare(sql)?;
        let mut rows = statement.query(values)?;
        while let Some(row) = rows.next()? {
            take(row)?;
        }
        Ok(())
    };
    read().map_err(|source| CheckError::Store { path: path.display().to_string(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_parsed_from_their_text() {
        let id = parse_id("0192f3a0-0000-8001-8000-0000000000ff").unwrap();
        assert_eq!((id[0], id[15]), (0x01, 0xff));
        assert!(parse_id("0192f3a0").is_none() && parse_id("not an id").is_none());
    }
}
