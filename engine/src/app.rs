//! The node: built in the order in which a request flows. Reading this is reading the diagram.
//!
//! ```text
//! bind ─► door opens (/livez 200, /readyz 503 with progress)
//!      ─► journal opens ─► snapshot + replay ─► journal, shards, control, persist, snapshots run
//!      ─► /readyz 200 ─► … ─► SIGTERM ─► drain in the same order
//! ```
//! Threads: `http-NN`, `shard-NN`, `control`, `journal`, `journal-files`, `persist-NN`,
//! `history-NN`, `snapshot`, `claims` (until all are known), with Kafka `ship`, `ship-events`,
//! `ship-watch` and `consume`, and the one that waits here for a signal.

mod audit;
mod claims;
mod drain;
mod figures;
mod history;
mod persist_metrics;
mod ship;
mod start;
mod stock;

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use thiserror::Error;

pub use ship::persist;
pub use start::Node;

pub use crate::http::door::Addresses;

use crate::clock::{Clock, RealClock};
use crate::config::Config;

/// Why a node does not run. One line each, with what to do.
#[derive(Error, Debug)]
pub enum StartError {
    #[error(transparent)]
    Config(#[from] crate::config::ConfigError),
    #[error(transparent)]
    Door(#[from] crate::http::door::DoorError),
    #[error(transparent)]
    Claim(#[from] crate::cluster::claims::ClaimError),
    #[error("data folder {path}: {error}")]
    Data { path: String, error: std::io::Error },
    #[error(transparent)]
    Journal(#[from] crate::journal::JournalError),
    #[error(transparent)]
    Recover(#[from] crate::shard::recover::RecoverError),
    #[error(transparent)]
    LostTail(#[from] crate::persist::lost_tail::LostTail),
    #[error(transparent)]
    Persist(#[from] crate::persist::embedded::OpenError),
    #[error(transparent)]
    Kafka(#[from] crate::ship::kafka::client::ClientError),
    #[error(
        "log.kind is \"journal\": the node persists its own journal; set it to \"kafka\" to \
         persist in processes of their own"
    )]
    PersistsItself,
    #[error(transparent)]
    Stores(#[from] crate::persist::stores::StoresError),
    #[error(transparent)]
    Stock(#[from] crate::stock::redis::RedisStockError),
    #[error(
        "stock.kind is \"journal\", but the units of sale {sale} in this data folder came from a \
         pool that nodes share: set it to \"redis\", and stock.redis to where that pool is"
    )]
    StockShared { sale: String },
    #[error("{what}: {error}")]
    Io { what: &'static str, error: std::io::Error },
}

/// Runs a node until a signal ends it.
///
/// Errors: [`StartError`], before anything is served.
pub fn serve(config: Config, ready_file: Option<&Path>) -> Result<ExitCode, StartError> {
    let clock: Arc<dyn Clock> = Arc::new(RealClock::new());
    let signals = drain::Signals::catch()
        .map_err(|error| StartError::Io { what: "cannot catch signals", error })?;
    let node = Node::start(config, &clock)?;
    let addresses = node.addresses();
    println!("members:   http://{}", addresses.public);
    println!("operators: http://{}", addresses.admin);
    if let Some(path) = ready_file {
        write_ready_file(path, addresses)
            .map_err(|error| StartError::Io { what: "cannot write the ready file", error })?;
    }
    signals.wait();
    Ok(node.stop())
}

/// Two lines, whole or not there: to a temporary name, then renamed.
fn write_ready_file(path: &Path, addresses: Addresses) -> std::io::Result<()> {
    let temporary = path.with_extension("tmp");
    std::fs::write(&temporary, format!("{}\n{}\n", addresses.public, addresses.admin))?;
    std::fs::rename(&temporary, path)
}
