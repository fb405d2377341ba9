//! `onrush db archive`: whole months out of the database, into compressed files.
//!
//! ```text
//!  1 a side table of the same form        CREATE TABLE … LIKE, without partitions
//!  2 the month changes places with it     EXCHANGE PARTITION: at once, or not at all
//!  3 the side table into a file           to a temporary name, synced, renamed
//!  4 the file read again, row for row against the side table; its checksum written down
//!  5 what it holds added to the sums that stay
//!  6 the side table dropped, then the empty partition
//! ```
//! Killed anywhere, the next run finds where it was from what is there: rows lie in the partition
//! or in the side table, and the side table goes only behind step 5. From step 2 on nothing can
//! change them, so what is verified is what is dropped. The sums are added once: a row of
//! `archived_months`, in the same transaction, says that nothing but the drop is left to do.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, BufWriter, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use sha2::{Digest as _, Sha256};
use thiserror::Error;

use super::link::{Link, Session, Use, cell};
use super::{Endpoint, Month, PARTITIONED, map, partitions, schema};
use crate::crash::CrashPoint;
use crate::crash_point;
use crate::persist::store::StoreError;
use crate::ship::holdings::{Hold, MapError};
use crate::ship::partition::{DatabaseShard, Layout};

/// Copying a month takes its time, and so may waiting for its readers.
const ALTER_TIMEOUT: Duration = Duration::from_hours(1);
/// Checksums, as `sha256sum -c` reads them.
const SUMS: &str = "SHA256SUMS";

/// A month of a table that lies in a file now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Archived {
    pub table: &'static str,
    pub month: Month,
    pub rows: u64,
    pub file: PathBuf,
}

/// Why a month stays where it is.
#[derive(Error, Debug)]
pub enum ArchiveError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("{}: {error}", path.display())]
    Io { path: PathBuf, error: std::io::Error },
    #[error(
        "{table} of {month}: {in_partition} rows came in since its other rows were taken out: move \
         them by hand into {side}, then run this again"
    )]
    Late { table: &'static str, month: Month, in_partition: u64, side: String },
    #[error(
        "{}: line {line} is not what the database has: nothing was dropped; remove the file and \
         run this again", path.display()
    )]
    Differs { path: PathBuf, line: u64 },
    #[error("ledger of {month}: its amounts sum to {sum}, not to zero: nothing was dropped")]
    Unbalanced { month: Month, sum: String },
}

/// The columns as one line of CSV: numbers, and ids in hexadecimal, so that nothing needs quotes.
fn columns(table: &str) -> (&'static str, &'static str) {
    if table == "ledger" {
        (
            "id,journal,seq,leg,account,member,amount,kind,redemption,at",
            "HEX(id), journal, seq, leg, account, member, amount, kind, \
             IFNULL(HEX(redemption), ''), at",
        )
    } else {
        (
            "id,member,journal,item,quantity,points,state,key,created_at,expires_at,updated_at,\
             units_back,seq",
            "HEX(id), member, journal, item, quantity, points, state, HEX(`key`), created_at, \
             expires_at, updated_at, units_back, seq",
        )
    }
}

/// Takes every month before `before` out of one database.
///
/// Errors: what was not finished stays, and the next run goes on there.
pub fn archive(
    endpoint: &Endpoint,
    shard: DatabaseShard,
    layout: Layout,
    before: Month,
    to: &Path,
    told: &mut dyn FnMut(&Archived),
) -> Result<(), ArchiveError> {
    let folder = to.join(format!("shard-{:02}", shard.get()));
    fs::create_dir_all(&folder).map_err(at(&folder))?;
    let link = Link::new(endpoint.clone(), Use::Write)?;
    let months = run(&link, shard, layout, async |session: &mut Session| {
        let map = map::holdings(session).await?;
        if let Some((partition, holding)) = map.each().find(|(_, h)| h.hold != Hold::Held) {
            // Its rows are compared as they are, here and there.
            let (from, to) = (shard, holding.peer);
            return Err(MapError::Moving { partition, from, to }.into());
        }
        session.query("SET SESSION lock_wait_timeout = 60").await?;
        due(session, before).await
    })?;
    for (table, month) in months {
        let work = Work { link: &link, shard, layout, table, month, folder: &folder };
        if let Some(archived) = work.archive()? {
            told(&archived);
        }
    }
    Ok(())
}

fn run<T>(
    link: &Link,
    shard: DatabaseShard,
    layout: Layout,
    work: impl AsyncFnOnce(&mut Session) -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    link.run(async |session: &mut Session| schema::check(session, shard, layout).await, work)
}

fn at(path: &Path) -> impl FnOnce(std::io::Error) -> ArchiveError {
    let path = path.to_owned();
    move |error| ArchiveError::Io { path, error }
}

fn side_of(table: &str, month: Month) -> String {
    format!("archive_{table}_{}", month.partition())
}

/// Months with a partition, or with a side table that an interrupted run has left.
async fn due(
    session: &mut Session,
    before: Month,
) -> Result<Vec<(&'static str, Month)>, StoreError> {
    let there = partitions::list(session).await?;
    let sql = "SELECT TABLE_NAME FROM information_schema.TABLES
               WHERE TABLE_SCHEMA = DATABASE() AND TABLE_NAME LIKE 'archive\\\\_%'";
    let mut sides: Vec<String> = Vec::new();
    for row in session.rows(sql, ()).await? {
        sides.push(cell(&row, 0)?);
    }
    let mut due = Vec::new();
    for table in PARTITIONED {
        let of_table = there.iter().filter(|p| p.table == table).filter_map(|p| p.month);
        let prefix = format!("archive_{table}_");
        let left = sides.iter().filter_map(|s| Month::of_partition(s.strip_prefix(&prefix)?));
        let mut months: Vec<Month> = of_table.chain(left).filter(|m| *m < before).collect();
        months.sort_unstable();
        months.dedup();
        due.extend(months.into_iter().map(|month| (table, month)));
    }
    Ok(due)
}

/// One month of one table.
struct Work<'w> {
    link: &'w Link,
    shard: DatabaseShard,
    layout: Layout,
    table: &'static str,
    month: Month,
    folder: &'w Path,
}

impl Work<'_> {
    fn run<T>(
        &self,
        work: impl AsyncFnOnce(&mut Session) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        run(self.link, self.shard, self.layout, work)
    }

    /// A statement that changes tables.
    fn alter(&self, sql: &str) -> Result<(), StoreError> {
        self.run(async |session: &mut Session| session.alter(sql, ALTER_TIMEOUT).await)
    }

    fn count(&self, sql: &str) -> Result<u64, StoreError> {
        let rows = self.run(async |session: &mut Session| session.rows(sql, ()).await)?;
        rows.first().map_or(Ok(0), |row| cell(row, 0))
    }

    /// `None`: the month is empty, and has no file.
    fn archive(&self) -> Result<Option<Archived>, ArchiveError> {
        let Self { table, month, .. } = *self;
        let (side, name) = (side_of(table, month), month.partition());
        if self.is_summed()? {
            self.drop_side(&side)?;
        }
        self.make_side(&side)?;
        crash_point!(CrashPoint::ArchiveAfterSide);
        let has_partition = self.count(&format!(
            "SELECT COUNT(*) FROM information_schema.PARTITIONS WHERE TABLE_SCHEMA = DATABASE()
             AND TABLE_NAME = '{table}' AND PARTITION_NAME = '{name}'"
        ))? > 0;
        let in_side = self.count(&format!("SELECT COUNT(*) FROM {side}"))?;
        if has_partition {
            let in_partition =
                self.count(&format!("SELECT COUNT(*) FROM {table} PARTITION ({name})"))?;
            if in_partition > 0 && in_side > 0 {
                return Err(ArchiveError::Late { table, month, in_partition, side });
            }
            if in_partition > 0 {
                let exchange =
                    format!("ALTER TABLE {table} EXCHANGE PARTITION {name} WITH TABLE {side}");
                self.alter(&exchange)?;
                crash_point!(CrashPoint::ArchiveAfterExchange);
            }
        }
        let rows = self.count(&format!("SELECT COUNT(*) FROM {side}"))?;
        let file = self.folder.join(format!("{table}-{month}.csv.gz"));
        if rows > 0 {
            self.check_books(&side)?;
            if !file.exists() {
                self.export(&side, &file)?;
            }
            let sum = self.verify(&side, &file, rows)?;
            self.note_sum(&file, &sum)?;
            crash_point!(CrashPoint::ArchiveAfterCheck);
            self.add_sums(&side, rows)?;
            crash_point!(CrashPoint::ArchiveAfterSums);
        }
        self.drop_side(&side)?;
        crash_point!(CrashPoint::ArchiveAfterDone);
        if has_partition {
            self.alter(&format!("ALTER TABLE {table} DROP PARTITION {name}"))?;
        }
        Ok((rows > 0).then_some(Archived { table, month, rows, file }))
    }

    /// Whether the side table is in the sums: then it only remains to be dropped.
    fn is_summed(&self) -> Result<bool, StoreError> {
        let Self { table, month, .. } = *self;
        let count = self.count(&format!(
            "SELECT COUNT(*) FROM archived_months
             WHERE name = '{table}' AND month = '{month}' AND is_done = 0"
        ))?;
        Ok(count > 0)
    }

    /// Adds what the side table holds to what stays of the months that are gone, and says so.
    fn add_sums(&self, side: &str, rows: u64) -> Result<(), StoreError> {
        let Self { table, month, .. } = *self;
        // Sums are made below the insert: its own columns must have no namesakes beside them.
        let sums = if table == "ledger" {
            format!(
                "INSERT INTO archived_balances (journal, member, account, amount)
                 SELECT s.j, s.m, s.a, s.s1 FROM (
                     SELECT journal AS j, member AS m, account AS a, SUM(amount) AS s1
                     FROM {side} GROUP BY journal, member, account) s
                 ON DUPLICATE KEY UPDATE amount = amount + VALUES(amount)"
            )
        } else {
            format!(
                "INSERT INTO archived_stock (journal, item, held, confirmed, released, reversed,
                                             retired)
                 SELECT s.j, s.i, s.s1, s.s2, s.s3, s.s4, s.s5 FROM (
                     SELECT journal AS j, item AS i,
                            SUM(IF(state = 1, quantity, 0)) AS s1,
                            SUM(IF(state = 2, quantity, 0)) AS s2,
                            SUM(IF(state IN (3, 4), quantity, 0)) AS s3,
                            SUM(IF(state = 5, quantity, 0)) AS s4,
                            SUM(IF(state = 5 AND units_back = 0, quantity, 0)) AS s5
                     FROM {side} GROUP BY journal, item) s
                 ON DUPLICATE KEY UPDATE held = held + VALUES(held),
                     confirmed = confirmed + VALUES(confirmed),
                     released = released + VALUES(released),
                     reversed = reversed + VALUES(reversed), retired = retired + VALUES(retired)"
            )
        };
        let noted = format!(
            "INSERT INTO archived_months (name, month, records, until_at, is_done)
             VALUES ('{table}', '{month}', {rows}, {}, 0)
             ON DUPLICATE KEY UPDATE records = records + VALUES(records), is_done = 0",
            month.next().first_ms()
        );
        self.run(async |session: &mut Session| {
            session.query("START TRANSACTION").await?;
            let mut done = session.alter(&sums, ALTER_TIMEOUT).await;
            if done.is_ok() {
                done = session.query(&noted).await;
            }
            let end = if done.is_ok() { "COMMIT" } else { "ROLLBACK" };
            session.query(end).await?;
            done
        })
    }

    fn drop_side(&self, side: &str) -> Result<(), StoreError> {
        let Self { table, month, .. } = *self;
        self.alter(&format!("DROP TABLE IF EXISTS {side}"))?;
        crash_point!(CrashPoint::ArchiveAfterDrop);
        let done = format!(
            "UPDATE archived_months SET is_done = 1 WHERE name = '{table}' AND month = '{month}'"
        );
        self.run(async |session: &mut Session| session.query(&done).await)
    }

    /// Safe to repeat after a kill between its two steps.
    fn make_side(&self, side: &str) -> Result<(), StoreError> {
        self.alter(&format!("CREATE TABLE IF NOT EXISTS {side} LIKE {}", self.table))?;
        let parts = self.count(&format!(
            "SELECT COUNT(*) FROM information_schema.PARTITIONS WHERE TABLE_SCHEMA = DATABASE()
             AND TABLE_NAME = '{side}' AND PARTITION_NAME IS NOT NULL"
        ))?;
        if parts > 0 {
            self.alter(&format!("ALTER TABLE {side} REMOVE PARTITIONING"))?;
        }
        Ok(())
    }

    /// Both legs of a move have the same time, so each month's ledger sums to zero by itself.
    fn check_books(&self, side: &str) -> Result<(), ArchiveError> {
        if self.table != "ledger" {
            return Ok(());
        }
        let sql = format!("SELECT CAST(SUM(amount) AS CHAR) FROM {side}");
        let rows = self.run(async |session: &mut Session| session.rows(&sql, ()).await)?;
        let sum: String = rows.first().map_or(Ok("0".into()), |row| cell(row, 0))?;
        if sum == "0" {
            return Ok(());
        }
        Err(ArchiveError::Unbalanced { month: self.month, sum })
    }

    /// Hands on the side table's lines, in the order of their ids.
    fn lines(
        &self,
        side: &str,
        see: &mut dyn FnMut(&str) -> Result<(), ArchiveError>,
    ) -> Result<(), ArchiveError> {
        let sql =
            format!("SELECT CONCAT_WS(',', {}) FROM {side} ORDER BY id", columns(self.table).1);
        let mut failed = None;
        let read = self.run(async |session: &mut Session| {
            session
                .each(&sql, &mut |row| {
                    let line: String = cell(row, 0)?;
                    see(&line).map_err(|error| {
                        failed = Some(error);
                        super::unavailable("the file could not be written or read".into())
                    })
                })
                .await
        });
        match failed {
            Some(error) => Err(error),
            None => Ok(read?),
        }
    }

    fn export(&self, side: &str, file: &Path) -> Result<(), ArchiveError> {
        let part = file.with_extension("gz.part");
        let out = File::create(&part).map_err(at(&part))?;
        let mut out = GzEncoder::new(BufWriter::new(out), Compression::default());
        writeln!(out, "{}", columns(self.table).0).map_err(at(&part))?;
        self.lines(side, &mut |line| writeln!(out, "{line}").map_err(at(&part)))?;
        let out = out.finish().map_err(at(&part))?;
        let out = out.into_inner().map_err(|e| at(&part)(e.into_error()))?;
        out.sync_all().map_err(at(&part))?;
        crash_point!(CrashPoint::ArchiveAfterWrite);
        fs::rename(&part, file).map_err(at(file))?;
        crash_point!(CrashPoint::ArchiveAfterRename);
        self.sync_folder()
    }

    fn sync_folder(&self) -> Result<(), ArchiveError> {
        File::open(self.folder).and_then(|f| f.sync_all()).map_err(at(self.folder))
    }

    /// Reads the file back against the side table; its checksum.
    fn verify(&self, side: &str, file: &Path, rows: u64) -> Result<String, ArchiveError> {
        let input = File::open(file).map_err(at(file))?;
        let mut lines = BufReader::new(GzDecoder::new(BufReader::new(input))).lines();
        let mut number = 1;
        let differs = |line| ArchiveError::Differs { path: file.to_owned(), line };
        if lines.next().and_then(Result::ok).as_deref() != Some(columns(self.table).0) {
            return Err(differs(number));
        }
        self.lines(side, &mut |expected| {
            number += 1;
            let line = lines.next().and_then(Result::ok);
            if line.as_deref() == Some(expected) { Ok(()) } else { Err(differs(number)) }
        })?;
        if number != rows + 1 || lines.next().is_some() {
            return Err(differs(number));
        }
        let mut hash = Sha256::new();
        let (mut input, mut bytes) = (File::open(file).map_err(at(file))?, vec![0; 1 << 16]);
        loop {
            match input.read(&mut bytes).map_err(at(file))? {
                0 => break,
                count => hash.update(&bytes[..count]),
            }
        }
        Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().concat())
    }

    /// Writes the checksum down, once.
    fn note_sum(&self, file: &Path, sum: &str) -> Result<(), ArchiveError> {
        let (sums, part) = (self.folder.join(SUMS), self.folder.join("SHA256SUMS.part"));
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        let known = fs::read_to_string(&sums).unwrap_or_default();
        let others = known.lines().filter(|line| !line.ends_with(&format!("  {name}")));
        let mut lines: Vec<String> = others.map(str::to_owned).collect();
        lines.push(format!("{sum}  {name}"));
        let mut out = File::create(&part).map_err(at(&part))?;
        writeln!(out, "{}", lines.join("\n")).map_err(at(&part))?;
        out.sync_all().map_err(at(&part))?;
        fs::rename(&part, &sums).map_err(at(&sums))?;
        self.sync_folder()
    }
}
