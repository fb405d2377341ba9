//! `MySQL` and `MariaDB` database shards that do not say what the journal says.

use mysql_async::prelude::Queryable as _;
use onrush::audit::{AuditReport, Elsewhere, audit_with};
use onrush::config::{StoreConfig, StoreKind};
use onrush::persist::mysql::{Month, migrate};
use onrush::persist::stores;
use onrush::ship::partition::Layout;

use super::in_store::{SHARD, TAMPERED, filled_in};
use super::{assert_found, folder, right};
use crate::stack_servers::{Flavour, Servers, shared};

const TABLES: [&str; 10] = [
    "accounts",
    "redemptions",
    "ledger",
    "stock",
    "watermarks",
    "slots",
    "sales",
    "items",
    "admin_changes",
    "slot_claims",
];
/// What a server says when a CHECK of the schema refuses a row.
const REFUSED: [u16; 2] = [3819, 4025];

/// Four databases with the right rows, each with a copy of its tables beside them.
struct Databases {
    /// The journal that they belong to.
    data: tempfile::TempDir,
    store: StoreConfig,
    runtime: tokio::runtime::Runtime,
    /// Of the database shard that is tampered with.
    conn: mysql_async::Conn,
}

impl Databases {
    fn new(servers: &Servers) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let name = servers.fresh_name();
        let names: Vec<_> = (0..folder::DATABASES).map(|shard| format!("{name}_{shard}")).collect();
        let options = mysql_async::Opts::from_url(&servers.admin_url("db-0")).unwrap();
        let options = mysql_async::OptsBuilder::from_opts(options).prefer_socket(false);
        let mut conn = runtime.block_on(mysql_async::Conn::new(options)).unwrap();
        for name in &names {
            runtime.block_on(conn.query_drop(format!("CREATE DATABASE {name}"))).unwrap();
        }
        let mut store = StoreConfig { kind: StoreKind::Mysql, ..StoreConfig::default() };
        store.mysql.urls = names.iter().map(|name| servers.url("db-0", name)).collect();
        store.mysql.password_file = Some(servers.password_file());
        let layout = Layout::new(folder::DATABASES).unwrap();
        let month = Month::parse("2026-01").unwrap();
        for (shard, endpoint) in layout.shards().zip(stores::primaries(&store.mysql).unwrap()) {
            migrate(&endpoint, shard, layout, layout, (month, month)).unwrap();
        }
        let data = right().copy();
        let folder = data.path().join("db");
        folder::write_stores(data.path(), stores::open(&store, &folder, layout).unwrap());
        let mut databases = Self { data, store, runtime, conn };
        databases.run(&format!("USE {}", names[usize::from(SHARD)])).unwrap();
        for table in TABLES {
            let copy = format!("CREATE TABLE right_{table} AS SELECT * FROM {table}");
            databases.run(&copy).unwrap();
        }
        databases
    }

    /// The number of changed rows.
    fn run(&mut self, sql: &str) -> Result<u64, mysql_async::Error> {
        self.runtime.block_on(self.conn.query_drop(sql))?;
        Ok(self.conn.affected_rows())
    }

    fn put_right(&mut self, table: &str) {
        self.run(&format!("DELETE FROM {table}")).unwrap();
        self.run(&format!("INSERT INTO {table} SELECT * FROM right_{table}")).unwrap();
    }

    fn audit(&self) -> AuditReport {
        let elsewhere = Elsewhere { store: self.store.clone(), kafka: None };
        audit_with(self.data.path(), &elsewhere, &mut |_| {}).unwrap()
    }
}

/// The statement in this dialect, and its table.
fn translated(sql: &str) -> (String, String) {
    let words: Vec<_> = sql.split_whitespace().collect();
    let table = if words[0] == "UPDATE" { words[1] } else { words[2] };
    let mut text =
        filled_in(sql).replace("partition", "`partition`").replace("SET key", "SET `key`");
    if table == "ledger" && words[0] == "INSERT" {
        text =
            text.replace("SELECT journal", "SELECT UNHEX(SUBSTR(SHA2(id, 256), 1, 32)), journal");
    }
    (text, table.to_owned())
}

fn every_wrong_row_is_found(flavour: Flavour) {
    let servers = shared(flavour);
    let mut databases = Databases::new(servers);
    let report = databases.audit();
    assert!(report.passes(), "{report}");
    let mut found = 0;
    for (sql, check, at) in TAMPERED {
        let (text, table) = translated(sql);
        match databases.run(&text) {
            Ok(changed) => assert!(changed > 0, "{text} changed nothing"),
            // The schema itself did not let it in.
            Err(mysql_async::Error::Server(e)) if REFUSED.contains(&e.code) => continue,
            Err(e) => panic!("{text}: {e}"),
        }
        assert_found(&text, &databases.audit(), *check, at());
        found += 1;
        databases.put_right(&table);
    }
    assert!(found >= 50, "only {found} of {} were let in", TAMPERED.len());
    let report = databases.audit();
    assert!(report.passes(), "{report}");
}

#[test]
fn every_wrong_row_of_mysql_is_found_by_its_check_and_its_place_is_named() {
    every_wrong_row_is_found(Flavour::MySql);
}

#[test]
fn every_wrong_row_of_mariadb_is_found_by_its_check_and_its_place_is_named() {
    every_wrong_row_is_found(Flavour::MariaDb);
}
