//! Database shards on `MySQL` and `MariaDB`: one database each, reads from its replicas where it
//! has any. The SQL is the same on both servers; what differs stands in `config/schema/README.md`.
//!
//! Every call runs on its caller's thread, on a runtime that the connection owns, and ends by a
//! timeout: a server that is paused or unplugged holds nobody up.

mod archive;
mod bulk;
mod cells;
pub mod claims;
mod link;
mod map;
mod months;
mod moving;
mod partitions;
mod read;
mod schema;
mod split;
mod tables;
mod write;

pub use archive::{ArchiveError, Archived, archive};
pub use months::Month;
pub use moving::Partitions;
pub use partitions::{PARTITIONED, PartitionInfo, list as list_partitions};
pub use read::MySqlReader;
#[cfg(test)]
pub use read::READS;
pub use schema::{NEWEST, SchemaStatus, made_as_one_of, migrate, status};
pub use split::{Split, SplitError, Step};
pub use write::MySqlStore;

use std::time::Duration;

use mysql_async::{Opts, OptsBuilder};

use super::apply::DataError;
use super::store::StoreError;

/// Where a database is, and how long its answers may take.
#[derive(Clone, Debug)]
pub struct Endpoint {
    options: Opts,
    /// `host:port/database`, for messages.
    name: String,
    pub connect_timeout: Duration,
    pub read_timeout: Duration,
}

impl Endpoint {
    /// From `mysql://USER@HOST:PORT/DATABASE`; the password is never part of it.
    ///
    /// Errors: what is wrong with the URL.
    pub fn new(
        url: &str,
        password: Option<&str>,
        connect_timeout: Duration,
        read_timeout: Duration,
    ) -> Result<Self, String> {
        let parsed = Opts::from_url(url).map_err(|e| format!("{}: {e}", without_password(url)))?;
        let Some(database) = parsed.db_name().map(str::to_owned) else {
            return Err(format!("{}: it names no database", without_password(url)));
        };
        let name = format!("{}:{}/{database}", parsed.ip_or_hostname(), parsed.tcp_port());
        let options = OptsBuilder::from_opts(parsed)
            .pass(password)
            .prefer_socket(false)
            .tcp_keepalive(Some(Duration::from_secs(30)))
            .stmt_cache_size(256);
        Ok(Self { options: options.into(), name, connect_timeout, read_timeout })
    }

    pub fn name(&self) -> &str {
        &self.name
    }
}

/// A URL as it may be shown.
fn without_password(url: &str) -> String {
    match (url.find("://"), url.rfind('@')) {
        (Some(scheme), Some(at)) if scheme + 3 <= at => {
            let user = url[scheme + 3..at].split(':').next().unwrap_or_default();
            format!("{}{user}{}", &url[..scheme + 3], &url[at..])
        }
        _ => url.to_owned(),
    }
}

/// What a server refuses because of the row: out of range, too long, null, a duplicate, a check.
/// `MariaDB` numbers a failed check 4025, `MySQL` 3819.
const DATA_CODES: [u16; 12] =
    [1048, 1062, 1264, 1265, 1292, 1366, 1406, 1586, 1690, 3819, 4025, 1365];

/// Tells rows that the server refuses from a server that cannot work.
fn error(e: mysql_async::Error) -> StoreError {
    match &e {
        mysql_async::Error::Server(server) if DATA_CODES.contains(&server.code) => {
            StoreError::Data(DataError::Refused(server.message.clone()))
        }
        _ => StoreError::Unavailable(Box::new(e)),
    }
}

fn unavailable(text: String) -> StoreError {
    StoreError::Unavailable(std::io::Error::other(text).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(url: &str) -> Result<Endpoint, String> {
        Endpoint::new(url, Some("hush"), Duration::from_secs(1), Duration::from_secs(1))
    }

    #[test]
    fn an_endpoint_is_named_without_its_password() {
        assert_eq!(endpoint("mysql://onrush@db1:3307/mall").unwrap().name(), "db1:3307/mall");
        let error = endpoint("mysql://onrush:hush@db1:3307").unwrap_err();
        assert!(error.contains("onrush@db1") && !error.contains("hush"), "{error}");
        assert!(!format!("{:?}", endpoint("mysql://onrush@db1/mall")).contains("mall:hush"));
    }

    #[test]
    fn a_duplicate_is_the_datas_fault_and_a_deadlock_is_not() {
        let server = |code| {
            let (message, state) = ("it says so".into(), "HY000".into());
            error(mysql_async::Error::Server(mysql_async::ServerError { code, message, state }))
        };
        for code in DATA_CODES {
            assert!(matches!(server(code), StoreError::Data(_)), "{code}");
        }
        // Deadlock, lock wait, read-only (two ways), full table, full disk, packet, killed, no
        // such table.
        for code in [1213, 1205, 1290, 1836, 1114, 1021, 1153, 1317, 1146] {
            assert!(server(code).is_transient(), "{code}");
        }
    }
}
