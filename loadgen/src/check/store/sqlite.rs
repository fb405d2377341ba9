//! `SQLite` database shards, files in a folder, opened for reading only.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, params};

use super::{
    ITEMS, Id, LEDGER_SUMS, LedgerSum, ORPHANS, REDEMPTIONS, Shard, StoredItem, StoredRow,
};
use crate::check::CheckError;

struct File {
    path: PathBuf,
    db: Connection,
}

/// Every `*.sqlite` of the folder.
pub fn open(dir: &Path) -> Result<Vec<Box<dyn Shard>>, CheckError> {
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
    files.into_iter().map(|file| Ok(Box::new(File::open(file)?) as Box<dyn Shard>)).collect()
}

impl File {
    fn open(path: PathBuf) -> Result<Self, CheckError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let db = Connection::open_with_flags(&path, flags)
            .and_then(|db| db.busy_timeout(Duration::from_secs(5)).map(|()| db))
            .map_err(|e| failed(&path, &e))?;
        Ok(Self { path, db })
    }

    fn each(
        &self,
        sql: &str,
        values: impl rusqlite::Params,
        mut take: impl FnMut(&rusqlite::Row<'_>) -> rusqlite::Result<()>,
    ) -> Result<(), CheckError> {
        let read = || {
            let mut statement = self.db.prepare(sql)?;
            let mut rows = statement.query(values)?;
            while let Some(row) = rows.next()? {
                take(row)?;
            }
            Ok(())
        };
        read().map_err(|e| failed(&self.path, &e))
    }
}

fn failed(path: &Path, e: &rusqlite::Error) -> CheckError {
    CheckError::Store { path: path.display().to_string(), detail: e.to_string() }
}

impl Shard for File {
    fn items(&mut self, sale: &str, see: &mut dyn FnMut(StoredItem)) -> Result<(), CheckError> {
        self.each(ITEMS, params![sale], |row| {
            let journal: i64 = row.get(0)?;
            see(StoredItem {
                journal: journal.cast_unsigned(),
                item: row.get(1)?,
                sku: row.get(2)?,
            });
            Ok(())
        })
    }

    fn redemptions(&mut self, see: &mut dyn FnMut(StoredRow)) -> Result<(), CheckError> {
        self.each(REDEMPTIONS, [], |row| {
            see(StoredRow {
                id: row.get(0)?,
                member: row.get::<_, i64>(1)?.cast_unsigned(),
                journal: row.get::<_, i64>(2)?.cast_unsigned(),
                item: row.get(3)?,
                quantity: row.get(4)?,
                points: row.get::<_, i64>(5)?.cast_unsigned(),
                state: row.get(6)?,
            });
            Ok(())
        })
    }

    fn ledger_sums(&mut self, see: &mut dyn FnMut(LedgerSum)) -> Result<(), CheckError> {
        self.each(LEDGER_SUMS, [], |row| {
            see(LedgerSum { redemption: row.get(0)?, of_member: row.get(1)?, of_all: row.get(2)? });
            Ok(())
        })
    }

    fn orphans(&mut self, see: &mut dyn FnMut(Id)) -> Result<(), CheckError> {
        self.each(ORPHANS, [], |row| {
            see(row.get(0)?);
            Ok(())
        })
    }
}
