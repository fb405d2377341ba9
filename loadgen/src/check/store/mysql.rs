//! `MySQL` or `MariaDB` database shards, one URL each.
//!
//! The check runs where an async runtime may be under way already, so each query runs on a thread
//! of its own; rows come back through a bounded channel and are never all in memory.

use std::sync::mpsc::sync_channel;

use mysql_async::prelude::Queryable as _;
use mysql_async::{Conn, Opts, Row};

use super::{
    ITEMS, Id, LEDGER_SUMS, LedgerSum, ORPHANS, REDEMPTIONS, Shard, StoredItem, StoredRow,
};
use crate::check::CheckError;

/// Rows between the thread that reads and the one that compares.
const ROWS_AHEAD: usize = 1024;

struct Database {
    /// Without its password: what errors name.
    name: String,
    opts: Opts,
}

/// Database shards by their URLs; connections are made by the first read.
pub fn open(urls: &[String]) -> Result<Vec<Box<dyn Shard>>, CheckError> {
    let open = |url: &String| {
        let opts = Opts::from_url(url).map_err(|e| CheckError::Store {
            path: "mysql://…".into(),
            detail: format!("{e}; expected mysql://USER[:PASSWORD]@HOST:PORT/DATABASE"),
        })?;
        let database = opts.db_name().unwrap_or("");
        let name = format!("mysql://{}:{}/{database}", opts.ip_or_hostname(), opts.tcp_port());
        Ok(Box::new(Database { name, opts }) as Box<dyn Shard>)
    };
    urls.iter().map(open).collect()
}

impl Database {
    fn each(
        &self,
        sql: &str,
        value: Option<&str>,
        see: &mut dyn FnMut(Row) -> Option<()>,
    ) -> Result<(), CheckError> {
        let failed = |detail: String| CheckError::Store { path: self.name.clone(), detail };
        let (send, rows) = sync_channel(ROWS_AHEAD);
        std::thread::scope(|scope| {
            let reading = scope.spawn(move || read(&self.opts, sql, value, &send));
            let mut is_clear = true;
            for row in rows {
                is_clear &= see(row).is_some();
            }
            let outcome = reading.join().unwrap_or_else(|_| Err("the reader panicked".into()));
            outcome.map_err(failed)?;
            is_clear.then_some(()).ok_or_else(|| failed(format!("a column is missing in: {sql}")))
        })
    }
}

fn read(
    opts: &Opts,
    sql: &str,
    value: Option<&str>,
    send: &std::sync::mpsc::SyncSender<Row>,
) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let query = async {
        let mut db = Conn::new(opts.clone()).await?;
        let mut result = db.exec_iter(sql, value.map_or_else(Vec::new, |v| vec![v])).await?;
        result.for_each(|row| drop(send.send(row))).await?;
        drop(result);
        db.disconnect().await
    };
    runtime.map_err(|e| e.to_string())?.block_on(query).map_err(|e| e.to_string())
}

impl Shard for Database {
    fn items(&mut self, sale: &str, see: &mut dyn FnMut(StoredItem)) -> Result<(), CheckError> {
        self.each(ITEMS, Some(sale), &mut |row| {
            see(StoredItem { journal: row.get(0)?, item: row.get(1)?, sku: row.get(2)? });
            Some(())
        })
    }

    fn redemptions(&mut self, see: &mut dyn FnMut(StoredRow)) -> Result<(), CheckError> {
        self.each(REDEMPTIONS, None, &mut |row| {
            see(StoredRow {
                id: id(&row, 0)?,
                member: row.get(1)?,
                journal: row.get(2)?,
                item: row.get(3)?,
                quantity: row.get(4)?,
                points: row.get(5)?,
                state: row.get(6)?,
            });
            Some(())
        })
    }

    fn ledger_sums(&mut self, see: &mut dyn FnMut(LedgerSum)) -> Result<(), CheckError> {
        self.each(LEDGER_SUMS, None, &mut |row| {
            // Sums of integers are decimals there, and decimals come as text.
            let sum = |at| row.get::<String, _>(at)?.parse().ok();
            see(LedgerSum { redemption: id(&row, 0)?, of_member: sum(1)?, of_all: sum(2)? });
            Some(())
        })
    }

    fn orphans(&mut self, see: &mut dyn FnMut(Id)) -> Result<(), CheckError> {
        self.each(ORPHANS, None, &mut |row| {
            see(id(&row, 0)?);
            Some(())
        })
    }
}

fn id(row: &Row, at: usize) -> Option<Id> {
    row.get::<Vec<u8>, _>(at)?.try_into().ok()
}
