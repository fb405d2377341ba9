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
}

impl Databases {
    pub fn new(on: On, layout: Layout) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let flavour = match on {
            On::Sqlite | On::Kafka => return Self { folder, layout, server: None },
            On::MySql => Flavour::MySql,
            On::MariaDb => Flavour::MariaDb,
        };
        let server = shared(flavour);
        let databases = Self { folder, layout, server: Some((server, server.fresh_name())) };
        for shard in layout.shards() {
            let name = databases.name(shard);
            let create = format!("CREATE DATABASE {name} CHARACTER SET utf8mb4");
            run(&server.url("db-0", ""), server, &create);
            let endpoint = databases.endpoint(shard);
            let from = Month::parse("2023-11").unwrap();
            mysql::migrate(&endpoint, shard, layout, from).unwrap();
        }
        databases
    }

    /// Where files lie, of `SQLite` and of the test.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    fn name(&self, shard: DatabaseShard) -> String {
        let (_, name) = self.server.as_ref().expect("a server's");
        format!("{name}_{}", shard.get())
    }

    pub fn endpoint(&self, shard: DatabaseShard) -> Endpoint {
        let (server, _) = self.server.as_ref().expect("a server's");
        let url = server.url("db-0", &self.name(shard));
        let patience = Duration::from_secs(30);
        Endpoint::new(&url, Some(&server.password()), patience, patience).unwrap()
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

/// Runs one statement; the first cell of its first row.
fn run(url: &str, server: &Servers, sql: &str) -> Option<String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let options = mysql_async::Opts::from_url(url).unwrap();
        let options = mysql_async::OptsBuilder::from_opts(options)
            .pass(Some(server.password()))
            .prefer_socket(false);
        let mut conn = mysql_async::Conn::new(options).await.unwrap();
        let row: Option<mysql_async::Row> = conn.query_first(sql).await.unwrap();
        conn.disconnect().await.unwrap();
        row.and_then(|row| row.get::<Option<String>, _>(0).flatten())
    })
}
