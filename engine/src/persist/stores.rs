//! The stores that the settings name, for writing and for reading.

use std::path::Path;
use std::time::Duration;

use thiserror::Error;

use super::mysql::{Endpoint, MySqlReader, MySqlStore};
use super::sqlite::{SqliteReader, SqliteStore};
use super::store::{Store, StoreError, StoreReader};
use crate::config::{MySqlConfig, StoreConfig, StoreKind};
use crate::ship::partition::{DatabaseShard, Layout};

/// The stores cannot be opened as the settings say.
#[derive(Error, Debug)]
pub enum StoresError {
    #[error("store.mysql.password_file {path}: {error}")]
    Password { path: String, error: std::io::Error },
    #[error("store.mysql: {0}")]
    Url(String),
    #[error("database shard {}: {source}", shard.get())]
    Store { shard: DatabaseShard, source: StoreError },
}

/// The writing ends, one per database shard. `folder`: of `SQLite` files.
pub fn open(
    config: &StoreConfig,
    folder: &Path,
    layout: Layout,
) -> Result<Vec<Box<dyn Store>>, StoresError> {
    layout.shards().map(|shard| open_unasked(config, folder, shard, layout)).collect()
}

/// One of them, once it has answered.
///
/// Errors: as the store's; `Settings` where those cannot be followed.
pub fn open_one(
    config: &StoreConfig,
    folder: &Path,
    shard: DatabaseShard,
    layout: Layout,
) -> Result<Box<dyn Store>, StoreError> {
    let opened = open_unasked(config, folder, shard, layout);
    let mut store = opened.map_err(|error| match error {
        StoresError::Store { source, .. } => source,
        other => StoreError::Settings(other.to_string()),
    })?;
    store.watermarks()?;
    Ok(store)
}

fn open_unasked(
    config: &StoreConfig,
    folder: &Path,
    shard: DatabaseShard,
    layout: Layout,
) -> Result<Box<dyn Store>, StoresError> {
    let failed = |source| StoresError::Store { shard, source };
    match config.kind {
        StoreKind::Sqlite => {
            // A folder that cannot be made shows when the file in it cannot be opened.
            let _ = std::fs::create_dir_all(folder);
            Ok(Box::new(SqliteStore::open(folder, shard, layout).map_err(failed)?))
        }
        StoreKind::Mysql => {
            let endpoint = primary(config, shard)?;
            Ok(Box::new(MySqlStore::new(endpoint, shard, layout).map_err(failed)?))
        }
    }
}

fn primary(config: &StoreConfig, shard: DatabaseShard) -> Result<Endpoint, StoresError> {
    let endpoint = primaries(&config.mysql)?.into_iter().nth(shard.index());
    endpoint.ok_or_else(|| StoresError::Url(format!("urls has no database shard {}", shard.get())))
}

/// The reading end of one database shard: its primary.
pub fn reader(
    config: &StoreConfig,
    folder: &Path,
    shard: DatabaseShard,
    layout: Layout,
) -> Result<Box<dyn StoreReader>, StoresError> {
    let failed = |source| StoresError::Store { shard, source };
    match config.kind {
        StoreKind::Sqlite => Ok(Box::new(SqliteReader::open(folder, shard).map_err(failed)?)),
        StoreKind::Mysql => {
            let endpoint = primary(config, shard)?;
            Ok(Box::new(MySqlReader::open(endpoint, shard, layout).map_err(failed)?))
        }
    }
}

/// The primaries, in the order of the database shards.
pub fn primaries(config: &MySqlConfig) -> Result<Vec<Endpoint>, StoresError> {
    let password = password(config)?;
    config.urls.iter().map(|url| endpoint(config, url, password.as_deref())).collect()
}

/// Each database shard's replicas; none where the settings name none.
pub fn replicas(config: &MySqlConfig, shard: DatabaseShard) -> Result<Vec<Endpoint>, StoresError> {
    let password = password(config)?;
    let urls = config.replicas.get(shard.index()).map_or(&[][..], Vec::as_slice);
    urls.iter().map(|url| endpoint(config, url, password.as_deref())).collect()
}

fn endpoint(
    config: &MySqlConfig,
    url: &str,
    password: Option<&str>,
) -> Result<Endpoint, StoresError> {
    let (connect, read) = (config.connect_timeout_ms, config.read_timeout_ms);
    Endpoint::new(url, password, Duration::from_millis(connect), Duration::from_millis(read))
        .map_err(StoresError::Url)
}

/// From the file, else from the environment (`ONRUSH__STORE__MYSQL__PASSWORD`), else none.
fn password(config: &MySqlConfig) -> Result<Option<String>, StoresError> {
    let Some(path) = &config.password_file else {
        return Ok(config.password.as_ref().map(|secret| secret.reveal().to_owned()));
    };
    let text = std::fs::read_to_string(path)
        .map_err(|error| StoresError::Password { path: path.display().to_string(), error })?;
    Ok(Some(text.trim_end_matches(['\r', '\n']).to_owned()))
}
