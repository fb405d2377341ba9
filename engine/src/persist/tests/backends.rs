//! A test's database shards, on whichever store.

use std::path::Path;
use std::time::Duration;

use mysql_async::prelude::Queryable as _;
use tempfile::TempDir;

use super::stack_servers::{Flavour, Servers, shared};
use super::{SqliteStore, Store};
use crate::persist::mysql::{self, Endpoint, Month, MySqlReader, MySqlStore};
use crate::persist::sqlite::{SqliteReader, path_of};
use crate::persist::store::StoreReader;
use crate::ship::partition::{DatabaseShard, Layout};

/// Which store a test runs on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum On {
    Sqlite,
    MySql,
    MariaDb,
    /// `SQLite` files, behind a Kafka topic in place of the journal.
    Kafka,
}

/// A store, still known by its kind.
pub enum AnyStore {
    Sqlite(SqliteStore),
    MySql(MySqlStore),
}

impl AnyStore {
    pub fn store(&mut self) -> &mut dyn Store {
        match self {
            Self::Sqlite(store) => store,
            Self::MySql(store) => store,
        }
    }
    pub fn boxed(self) -> Box<dyn Store> {
        match self {
            Self::Sqlite(store) => Box::new(store),
            Self::MySql(store) => Box::new(store),
        }
    }
    pub fn shard(&self) -> DatabaseShard {
        match self {
            Self::Sqlite(store) => store.shard(),
            Self::MySql(store) => store.shard(),
        }
    }
    pub fn sqlite(&self) -> &SqliteStore {
        match self {
            Self::Sqlite(store) => store,
            Self::MySql(_) => panic!("this test is about files"),
        }
    }
}

/// All database shards of one test.
pub struct Databases {
    folder: TempDir,
    layout: Layout,
    /// The servers, and what the databases' names begin with.
    server: Option<(&'static Servers, String)>,
    /// Where the store finds its server, if not where it is: a proxy.
    pub port: Option<u16>,
    pub patience: Duration,
}

impl Databases {
    pub fn new(on: On, layout: Layout) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let flavour = match on {
            On::Sqlite | On::Kafka => {
                let patience = Duration::from_secs(30);
                return Self { folder, layout, server: None, port: None, patience };
            }
            On::MySql => Flavour::MySql,
            On::MariaDb => Flavour::MariaDb,
        };
        Self::on(shared(flavour), layout)
    }

    /// On these servers.
    pub fn on(server: &'static Servers, layout: Layout) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (patience, names) = (Duration::from_secs(30), server.fresh_name());
        let databases =
            Self { folder, layout, server: Some((server, names)), port: None, patience };
        for shard in layout.shards() {
            let name = databases.name(shard);
            let create = format!("CREATE DATABASE {name} CHARACTER SET utf8mb4");
            run(&server.url("db-0", ""), server, &create);
            let endpoint = databases.endpoint(shard);
            let from = Month::parse("2023-11").unwrap();
            mysql::migrate(&endpoint, shard, layout, layout, (from, from)).unwrap();
        }
        databases
    }

    /// Where files lie, of `SQLite` and of the test.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn name(&self, shard: DatabaseShard) -> String {
        let (_, name) = self.server.as_ref().expect("a server's");
        format!("{name}_{}", shard.get())
    }

    pub fn endpoint(&self, shard: DatabaseShard) -> Endpoint {
        let (server, _) = self.server.as_ref().expect("a server's");
        let port = self.port.unwrap_or_else(|| server.port("db-0"));
        let url = format!("mysql://onrush@127.0.0.1:{port}/{}", self.name(shard));
        Endpoint::new(&url, Some(&server.password()), self.patience, self.patience).unwrap()
    }

    pub fn store(&self, shard: DatabaseShard) -> AnyStore {
        if self.server.is_none() {
            let store = SqliteStore::open(self.folder(), shard, self.layout).unwrap();
            // Nobody waits for another process here.
            store.connection().busy_timeout(Duration::ZERO).unwrap();
            return AnyStore::Sqlite(store);
        }
        AnyStore::MySql(MySqlStore::new(self.endpoint(shard), shard, self.layout).unwrap())
    }

    pub fn reader(&self, shard: DatabaseShard) -> Box<dyn StoreReader> {
        if self.server.is_none() {
            return Box::new(SqliteReader::open(self.folder(), shard).unwrap());
        }
        Box::new(MySqlReader::open(self.endpoint(shard), shard, self.layout).unwrap())
    }

    /// Runs SQL on one database shard, as an operator would.
    pub fn execute(&self, shard: DatabaseShard, sql: &str) {
        self.first_cell(shard, sql);
    }

    pub fn figure(&self, shard: DatabaseShard, sql: &str) -> i64 {
        let cell = self.first_cell(shard, sql);
        cell.unwrap_or_else(|| panic!("{sql}: no row")).parse().unwrap()
    }

    pub fn text(&self, shard: DatabaseShard, sql: &str) -> String {
        self.first_cell(shard, sql).unwrap_or_default()
    }

    /// The tables of a database shard, views left out.
    fn tables(&self, shard: DatabaseShard) -> Vec<String> {
        let sql =
            "SELECT GROUP_CONCAT(TABLE_NAME ORDER BY TABLE_NAME) FROM information_schema.TABLES
                   WHERE TABLE_SCHEMA = DATABASE() AND TABLE_TYPE = 'BASE TABLE'";
        self.text(shard, sql).split(',').map(str::to_owned).collect()
    }

    /// Copies a server's database shard aside; the copy's name.
    pub fn back_up(&self, shard: DatabaseShard) -> String {
        let (from, to) = (self.name(shard), format!("{}_copy", self.name(shard)));
        self.execute(shard, &format!("CREATE DATABASE {to}"));
        for table in self.tables(shard) {
            self.execute(shard, &format!("CREATE TABLE {to}.{table} LIKE {from}.{table}"));
            self.execute(shard, &format!("INSERT INTO {to}.{table} SELECT * FROM {from}.{table}"));
        }
        to
    }

    /// Sets it back to that copy, in place, whoever is at work on it.
    pub fn restore(&self, shard: DatabaseShard, copy: &str) {
        for table in self.tables(shard) {
            self.execute(shard, &format!("DELETE FROM {table}"));
            self.execute(shard, &format!("INSERT INTO {table} SELECT * FROM {copy}.{table}"));
        }
    }

    /// The first cell of the first row, as text.
    fn first_cell(&self, shard: DatabaseShard, sql: &str) -> Option<String> {
        if let Some((server, _)) = &self.server {
            return run(&server.url("db-0", &self.name(shard)), server, sql);
        }
        let connection = rusqlite::Connection::open(path_of(self.folder(), shard)).unwrap();
        let mut statement = connection.prepare(sql).unwrap();
        if statement.column_count() == 0 {
            statement.execute([]).unwrap();
            return None;
        }
        let cell = |row: &rusqlite::Row<'_>| match row.get_ref(0)? {
            rusqlite::types::ValueRef::Integer(n) => Ok(n.to_string()),
            other => Ok(other.as_str().unwrap_or_default().to_owned()),
        };
        statement.query_row([], cell).ok()
    }
}

/// Runs one statement as user `onrush`; the first cell of its first row.
fn run(url: &str, server: &Servers, sql: &str) -> Option<String> {
    Rival::at(url, Some(server.password())).first_cell(sql)
}

/// Another session, which stays open.
pub struct Rival {
    runtime: tokio::runtime::Runtime,
    conn: Option<mysql_async::Conn>,
}

impl Rival {
    /// As the administrator.
    pub fn admin(server: &Servers) -> Self {
        Self::at(&server.admin_url("db-0"), Some(server.admin_password()))
    }

    pub fn at(url: &str, password: Option<String>) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let conn = runtime.block_on(async {
            let options = mysql_async::Opts::from_url(url).unwrap();
            let options = mysql_async::OptsBuilder::from_opts(options).pass(password);
            mysql_async::Conn::new(options.prefer_socket(false)).await.unwrap()
        });
        Self { runtime, conn: Some(conn) }
    }

    /// Runs a statement; its rows as texts.
    pub fn try_rows(&mut self, sql: &str) -> mysql_async::Result<Vec<Vec<(String, String)>>> {
        let conn = self.conn.as_mut().expect("open until it is dropped");
        let rows: Vec<mysql_async::Row> = self.runtime.block_on(conn.query(sql))?;
        let text = |row: mysql_async::Row| {
            let names = row.columns().iter().map(|c| c.name_str().into_owned()).collect::<Vec<_>>();
            let cells = row.unwrap().into_iter().map(|v| {
                mysql_async::from_value_opt::<Option<Vec<u8>>>(v).map_or_else(
                    |e| e.to_string(),
                    |b| String::from_utf8_lossy(&b.unwrap_or_default()).into_owned(),
                )
            });
            names.into_iter().zip(cells).collect()
        };
        Ok(rows.into_iter().map(text).collect())
    }

    pub fn rows(&mut self, sql: &str) -> Vec<Vec<(String, String)>> {
        self.try_rows(sql).unwrap_or_else(|e| panic!("{sql}: {e}"))
    }

    pub fn first_cell(&mut self, sql: &str) -> Option<String> {
        self.rows(sql).into_iter().next()?.into_iter().next().map(|(_, cell)| cell)
    }
}

impl Drop for Rival {
    fn drop(&mut self) {
        if let Some(conn) = self.conn.take() {
            let _ = self.runtime.block_on(conn.disconnect());
        }
    }
}
