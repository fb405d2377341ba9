//! Redis as the stock authority: the pool of an item is a hash, each ask a Lua script on it.
//!
//! ```text
//! control ── bounded channel ──► stock-redis ── EVALSHA ──► Redis, Sentinel's master, or Cluster
//!    ▲                               │  one ask per item at a time, items beside each other
//!    └──────── callback ─────────────┴──◄ answers, and news by SUBSCRIBE on a second connection
//! ```
//! - [`script`]: the scripts, how an ask becomes a call, how its answer is read;
//! - [`endpoint`]: where Redis is, and how to log in; [`link`]: a connection to it;
//! - [`driver`]: the thread; [`news`]: the subscription; [`stats`]: what is counted;
//! - [`inspect`]: what operators see of pools.
//!
//! Redis may lose writes, repeat itself, answer late or never: the scripts and the lease protocol
//! are built for it. So nothing here retries an ask.

pub mod driver;
pub mod endpoint;
pub mod inspect;
pub mod link;
mod news;
pub mod script;
pub mod stats;

use std::path::PathBuf;

use thiserror::Error;

/// Redis cannot be used as the settings say. One line each; no password is ever in one.
#[derive(Error, Debug)]
pub enum RedisStockError {
    #[error("cannot read stock.redis.password_file {path}: {error}")]
    PasswordFile { path: PathBuf, error: std::io::Error },
    #[error("stock.redis.password_file {path} is empty")]
    PasswordEmpty { path: PathBuf },
    #[error("cannot read stock.redis.ca_file {path}: {error}")]
    CaFile { path: PathBuf, error: std::io::Error },
    #[error("stock.redis.ca_file {path} holds no certificate")]
    CaEmpty { path: PathBuf },
    #[error("stock.redis: {0}")]
    Settings(String),
    #[error("Redis at {at} does not let us in: {reason}")]
    Refused { at: String, reason: String },
    #[error("no answer from Redis at {at}: {reason}")]
    Unreachable { at: String, reason: String },
    #[error("cannot start the thread stock-redis: {0}")]
    Thread(std::io::Error),
}
