//! The node's settings: a TOML file, then `ONRUSH__SECTION__KEY` from the environment, then flags.
//!
//! Unknown keys are refused, each value is checked before anything is opened or bound. What each
//! setting does to latency and throughput stands beside it in `config/onrush.toml`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use thiserror::Error;

mod cluster;
mod log;
mod stock;

pub use cluster::ClusterConfig;
pub use log::{Ack, Compression, KafkaConfig, LogConfig, LogKind, SaslMechanism};
pub use stock::{RedisConfig, RedisMode, StockConfig, StockKind};

/// What is wrong with the settings. One line each.
#[derive(Error, Debug)]
pub enum ConfigError {
    #[error("cannot read {path}: {error}")]
    Read { path: PathBuf, error: std::io::Error },
    #[error("{origin}: {message}")]
    Parse { origin: String, message: String },
    #[error("{key} = {value}: {rule}")]
    Value { key: &'static str, value: String, rule: &'static str },
    #[error("cluster.nodes: {0}")]
    Map(String),
}

/// All settings.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    pub node: NodeConfig,
    pub http: HttpConfig,
    pub shards: ShardsConfig,
    pub journal: JournalConfig,
    pub snapshot: SnapshotConfig,
    pub log: LogConfig,
    pub persist: PersistConfig,
    pub store: StoreConfig,
    pub stock: StockConfig,
    pub limits: LimitsConfig,
    pub cluster: ClusterConfig,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NodeConfig {
    /// The data folder.
    pub data: PathBuf,
    /// How long a drain may take before the node ends all the same.
    pub drain_deadline_ms: u64,
    /// How much downtime counts towards holds and sale times, by the wall clock.
    pub downtime_max_ms: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HttpConfig {
    pub listen: SocketAddr,
    pub admin: SocketAddr,
    /// Threads that parse and answer.
    pub workers: usize,
    /// Says that a gateway, which authenticates members and sets `X-Member-Id`, stands in front.
    pub behind_gateway: bool,
    /// A listener for trusted gateways alone: as the public one, and batches are taken there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gateway: Option<SocketAddr>,
    /// The shared secret that lets a caller use the batch call; none: nobody may.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gateway_secret: Option<Secret>,
    pub connections_max: usize,
    /// How long a request's head and body may take to arrive.
    pub read_timeout_ms: u64,
    /// How long a connection may lie idle between two requests.
    pub idle_timeout_ms: u64,
    /// How often a stream of events that has nothing to say shows that it is alive.
    pub heartbeat_ms: u64,
    /// Requests that one worker has waiting for their records to be durable.
    pub in_flight_max: usize,
}

/// A value that is never printed.
#[derive(Clone, PartialEq, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    pub fn new(text: String) -> Self {
        Self(text)
    }
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("(secret)")
    }
}

impl Serialize for Secret {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str("(secret)")
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ShardsConfig {
    /// Shards; the data re-opens with any number.
    pub count: usize,
    /// Requests that wait for one shard; beyond, 503.
    pub inbox: usize,
    /// Requests that a shard decides between two looks at anything else.
    pub batch: usize,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct JournalConfig {
    pub segment_bytes: u64,
    /// `O_DIRECT|O_DSYNC` where the file system can; else write and `fdatasync`.
    pub direct: bool,
    /// The journal's disk bound: at `sales_pause_percent` of it new redemptions pause, at the
    /// bound itself nothing is written.
    pub max_bytes: u64,
    pub sales_pause_percent: u8,
    /// How long a segment stays after nothing needs it any more.
    pub keep_ms: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SnapshotConfig {
    /// Pause between two snapshots.
    pub every_ms: u64,
    /// A snapshot is also taken after this many records.
    pub every_records: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PersistConfig {
    /// Run persist in this process. Without it the journal keeps every segment until one that
    /// persists runs on this folder.
    pub run: bool,
    /// SQLite database shards, files under the data folder. Fixed at the folder's creation.
    pub databases: u8,
    /// Records in one transaction at most.
    pub batch: usize,
    /// How long records may wait for a fuller batch.
    pub linger_ms: u64,
}

/// Where rows go.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StoreConfig {
    pub kind: StoreKind,
    pub mysql: MySqlConfig,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StoreKind {
    /// Files under the data folder, `persist.databases` of them.
    #[default]
    Sqlite,
    /// `MySQL` or `MariaDB`, a database per URL.
    Mysql,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MySqlConfig {
    /// One per database shard, in their order. Fixed once there are rows.
    pub urls: Vec<String>,
    /// For each database shard, the URLs of its read replicas.
    pub replicas: Vec<Vec<String>>,
    /// A file with the password of all these URLs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password_file: Option<PathBuf>,
    /// The password itself, where there is no file; meant for the environment.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password: Option<Secret>,
    pub connect_timeout_ms: u64,
    /// How long a statement may take before the connection is given up.
    pub read_timeout_ms: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsConfig {
    /// Holds of one item that a member may give up before further holds are refused.
    pub hold_allowance: u8,
    /// How long request keys are remembered after their sale's end.
    pub key_retention_ms: u64,
}

const HOUR_MS: u64 = 3_600_000;

impl Default for NodeConfig {
    fn default() -> Self {
        Self { data: "data".into(), drain_deadline_ms: 30_000, downtime_max_ms: 24 * HOUR_MS }
    }
}

impl Default for HttpConfig {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8080)),
            admin: SocketAddr::from(([127, 0, 0, 1], 8081)),
            workers: (cores / 2).max(1),
            behind_gateway: false,
            gateway: None,
            gateway_secret: None,
            connections_max: 65_536,
            read_timeout_ms: 10_000,
            idle_timeout_ms: 75_000,
            heartbeat_ms: 10_000,
            in_flight_max: 16_384,
        }
    }
}

impl Default for ShardsConfig {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        Self { count: (cores / 4).max(1), inbox: 16_384, batch: 256 }
    }
}

impl Default for JournalConfig {
    fn default() -> Self {
        Self {
            segment_bytes: 64 << 20,
            direct: true,
            max_bytes: 16 << 30,
            sales_pause_percent: 80,
            keep_ms: HOUR_MS,
        }
    }
}

impl Default for SnapshotConfig {
    fn default() -> Self {
        Self { every_ms: 5 * 60_000, every_records: 10_000_000 }
    }
}

impl Default for PersistConfig {
    fn default() -> Self {
        Self { run: true, databases: 4, batch: 4096, linger_ms: 50 }
    }
}

impl Default for MySqlConfig {
    fn default() -> Self {
        Self {
            urls: Vec::new(),
            replicas: Vec::new(),
            password_file: None,
            password: None,
            connect_timeout_ms: 3_000,
            read_timeout_ms: 10_000,
        }
    }
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self { hold_allowance: 8, key_retention_ms: 24 * HOUR_MS }
    }
}

/// What overrides the file: set by flags.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    pub data: Option<PathBuf>,
    pub listen: Option<SocketAddr>,
    pub admin: Option<SocketAddr>,
}

/// The file that is read where none is named, if it is there.
pub const DEFAULT_FILE: &str = "config/onrush.toml";
const ENV_PREFIX: &str = "ONRUSH__";

impl Config {
    /// Reads and checks the settings.
    ///
    /// Errors: what is wrong, with the file and line, the variable, or the key and its rule.
    pub fn load(file: Option<&Path>, overrides: Overrides) -> Result<Self, ConfigError> {
        let default = Path::new(DEFAULT_FILE);
        let file = file.or_else(|| default.exists().then_some(default));
        let mut table = toml::Table::new();
        let mut origin = String::from("built-in settings");
        if let Some(path) = file {
            let text = std::fs::read_to_string(path)
                .map_err(|error| ConfigError::Read { path: path.into(), error })?;
            origin = path.display().to_string();
            // Parsed into the type first: only so does an error know its line.
            toml::from_str::<Self>(&text).map_err(|e| parse_error(&origin, &e))?;
            table = toml::from_str(&text).map_err(|e| parse_error(&origin, &e))?;
        }
        for (name, value) in std::env::vars() {
            if let Some(path) = name.strip_prefix(ENV_PREFIX) {
                set_from_env(&mut table, path, &value);
                origin = name;
            }
        }
        let mut config: Self = table.try_into().map_err(|e| parse_error(&origin, &e))?;
        if let Some(data) = overrides.data {
            config.node.data = data;
        }
        if let Some(listen) = overrides.listen {
            config.http.listen = listen;
        }
        if let Some(admin) = overrides.admin {
            config.http.admin = admin;
        }
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), ConfigError> {
        let rule = |holds: bool, key, value: String, rule| {
            if holds { Ok(()) } else { Err(ConfigError::Value { key, value, rule }) }
        };
        rule(
            self.http.listen.ip().is_loopback() || self.http.behind_gateway,
            "http.listen",
            self.http.listen.to_string(),
            "anyone who reaches a public address could name any member in X-Member-Id; listen on \
             loopback, or set http.behind_gateway = true where an authenticating gateway stands \
             in front",
        )?;
        rule(
            self.http.gateway.is_none_or(|at| at.ip().is_loopback()) || self.http.behind_gateway,
            "http.gateway",
            self.http.gateway.map(|at| at.to_string()).unwrap_or_default(),
            "whoever reaches this address is trusted as a gateway, for any member; listen on \
             loopback, or set http.behind_gateway = true where only gateways can reach it",
        )?;
        rule(
            (1..=64).contains(&self.http.workers),
            "http.workers",
            self.http.workers.to_string(),
            "must be from 1 to 64",
        )?;
        rule(
            (1..=64).contains(&self.shards.count),
            "shards.count",
            self.shards.count.to_string(),
            "must be from 1 to 64",
        )?;
        rule(
            (16..=1 << 20).contains(&self.shards.inbox),
            "shards.inbox",
            self.shards.inbox.to_string(),
            "must be from 16 to 1048576",
        )?;
        rule(
            (1..=4096).contains(&self.shards.batch),
            "shards.batch",
            self.shards.batch.to_string(),
            "must be from 1 to 4096",
        )?;
        rule(
            (16..=1 << 20).contains(&self.http.in_flight_max),
            "http.in_flight_max",
            self.http.in_flight_max.to_string(),
            "must be from 16 to 1048576",
        )?;
        rule(
            (10..=3_600_000).contains(&self.http.heartbeat_ms),
            "http.heartbeat_ms",
            self.http.heartbeat_ms.to_string(),
            "must be from 10 to 3600000",
        )?;
        rule(
            (4 << 20..=4 << 30).contains(&self.journal.segment_bytes)
                && self.journal.segment_bytes.is_multiple_of(4096),
            "journal.segment_bytes",
            self.journal.segment_bytes.to_string(),
            "must be a multiple of 4096 from 4 MiB to 4 GiB",
        )?;
        rule(
            self.journal.max_bytes >= 4 * self.journal.segment_bytes,
            "journal.max_bytes",
            self.journal.max_bytes.to_string(),
            "must hold at least four segments",
        )?;
        rule(
            (10..=99).contains(&self.journal.sales_pause_percent),
            "journal.sales_pause_percent",
            self.journal.sales_pause_percent.to_string(),
            "must be from 10 to 99",
        )?;
        rule(
            (1..=32).contains(&self.persist.databases),
            "persist.databases",
            self.persist.databases.to_string(),
            "must be from 1 to 32, so that each has whole partitions",
        )?;
        self.log.check()?;
        self.stock.check()?;
        self.cluster.check()?;
        rule(
            (1..=65_536).contains(&self.persist.batch),
            "persist.batch",
            self.persist.batch.to_string(),
            "must be from 1 to 65536",
        )?;
        self.store.check()
    }

    /// How many database shards there are.
    pub fn database_count(&self) -> u8 {
        match self.store.kind {
            StoreKind::Sqlite => self.persist.databases,
            StoreKind::Mysql => self.store.mysql.urls.len() as u8,
        }
    }

    /// The settings in force, as a TOML file. Secrets are masked.
    pub fn print(&self) -> String {
        toml::to_string_pretty(self).expect("settings are plain tables")
    }
}

impl StoreConfig {
    fn check(&self) -> Result<(), ConfigError> {
        let rule = |holds: bool, key, value: String, rule| {
            if holds { Ok(()) } else { Err(ConfigError::Value { key, value, rule }) }
        };
        let mysql = &self.mysql;
        rule(
            self.kind != StoreKind::Mysql || (1..=32).contains(&mysql.urls.len()),
            "store.mysql.urls",
            format!("{} of them", mysql.urls.len()),
            "must be 1 to 32 where store.kind is mysql, one per database shard",
        )?;
        let urls = || mysql.urls.iter().chain(mysql.replicas.iter().flatten());
        let has_password = |url: &&String| {
            let user = url.split("://").nth(1).and_then(|rest| rest.rsplit_once('@'));
            user.is_some_and(|(user, _)| user.contains(':'))
        };
        rule(
            !urls().any(|url| has_password(&url)),
            "store.mysql.urls",
            "(a URL with a password in it)".into(),
            "must not hold passwords: write it to store.mysql.password_file, or set \
             ONRUSH__STORE__MYSQL__PASSWORD",
        )?;
        rule(
            mysql.replicas.is_empty() || mysql.replicas.len() == mysql.urls.len(),
            "store.mysql.replicas",
            format!("{} lists", mysql.replicas.len()),
            "must be a list per database shard, or none at all",
        )?;
        rule(
            (100..=60_000).contains(&mysql.connect_timeout_ms),
            "store.mysql.connect_timeout_ms",
            mysql.connect_timeout_ms.to_string(),
            "must be from 100 to 60000",
        )?;
        rule(
            (500..=600_000).contains(&mysql.read_timeout_ms),
            "store.mysql.read_timeout_ms",
            mysql.read_timeout_ms.to_string(),
            "must be from 500 to 600000",
        )
    }
}

fn parse_error(origin: &str, error: &toml::de::Error) -> ConfigError {
    // toml draws a picture of the place; one line is wanted here.
    let message = error.message().lines().collect::<Vec<_>>().join(" ");
    ConfigError::Parse { origin: origin.into(), message }
}

/// Sets `SECTION__KEY`; the value is TOML where it parses as such, else a string.
fn set_from_env(table: &mut toml::Table, path: &str, value: &str) {
    let mut parts: Vec<String> = path.split("__").map(str::to_lowercase).collect();
    let Some(key) = parts.pop() else { return };
    let mut at = table;
    for part in parts {
        let next = at.entry(part).or_insert_with(|| toml::Value::Table(toml::Table::new()));
        let toml::Value::Table(next) = next else { return };
        at = next;
    }
    let parsed = toml::from_str::<toml::Table>(&format!("v = {value}"))
        .ok()
        .and_then(|mut t| t.remove("v"))
        .unwrap_or_else(|| toml::Value::String(value.into()));
    at.insert(key, parsed);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<Config, ConfigError> {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("onrush.toml");
        std::fs::write(&path, text).expect("writable");
        Config::load(Some(&path), Overrides::default())
    }

    #[test]
    fn an_unknown_key_is_refused_with_its_name() {
        let error = load("[http]\nlissten = \"127.0.0.1:1\"").unwrap_err().to_string();
        assert!(error.contains("lissten"), "{error}");
        assert_eq!(error.lines().count(), 1);
    }

    #[test]
    fn a_public_address_needs_a_gateway_in_front() {
        assert!(load("[http]\nlisten = \"0.0.0.0:80\"").is_err());
        assert!(load("[http]\nlisten = \"0.0.0.0:80\"\nbehind_gateway = true").is_ok());
        assert!(load("[http]\ngateway = \"0.0.0.0:80\"").is_err(), "it names members, too");
        assert!(load("[http]\ngateway = \"0.0.0.0:80\"\nbehind_gateway = true").is_ok());
        assert!(load("[http]\ngateway = \"127.0.0.1:80\"").is_ok());
    }

    #[test]
    fn the_printed_settings_load_again_and_hide_the_secret() {
        let config = load("[http]\ngateway_secret = \"hush\"").unwrap();
        let printed = config.print();
        assert!(!printed.contains("hush"));
        assert_eq!(load(&printed).unwrap().shards, config.shards);
    }

    #[test]
    fn a_mysql_store_needs_its_databases_and_no_password_in_their_urls() {
        let mysql = |text: &str| load(&format!("[store]\nkind = \"mysql\"\n[store.mysql]\n{text}"));
        assert!(mysql("").unwrap_err().to_string().contains("one per database shard"));
        let good = mysql("urls = [\"mysql://onrush@127.0.0.1:3306/a\", \"mysql://onrush@h/b\"]");
        assert_eq!(good.unwrap().database_count(), 2);
        let error = mysql("urls = [\"mysql://onrush:hush@127.0.0.1:3306/a\"]").unwrap_err();
        assert!(!error.to_string().contains("hush"), "{error}");
        let url = "\"mysql://onrush@h/a\"";
        assert!(mysql(&format!("urls = [{url}, {url}]\nreplicas = [[{url}]]")).is_err());
        let secret = mysql(&format!("urls = [{url}]\npassword = \"hush\"")).unwrap();
        assert!(!secret.print().contains("hush"));
    }

    #[test]
    fn an_environment_value_lands_in_its_section() {
        let mut table = toml::Table::new();
        set_from_env(&mut table, "HTTP__WORKERS", "3");
        set_from_env(&mut table, "NODE__DATA", "/srv/onrush");
        let config: Config = table.try_into().unwrap();
        assert_eq!(config.http.workers, 3);
        assert_eq!(config.node.data, PathBuf::from("/srv/onrush"));
    }
}
