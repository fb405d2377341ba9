//! The ledger check: what every member was told, against what can be found afterwards.
//!
//! Thread: the caller's and a few that ask; before the load and after its drain.
//!
//! ```text
//! before   sale and stock ─ balances ─ ids already stored
//! run      201s seen, by key; unknown keys; final sold-outs         (work::redeem)
//! after    unknown ones asked for ─► accepted ones found, in the right state
//!            ─► stock (who was refused last asks once more, where that decides)
//!            ─► limits ─► points ─► the store, by SQL of its own
//! ```
//! The check shares nothing with the engine. What it cannot look at makes the run invalid; what it
//! sees and must not be is a finding.

pub mod after;
pub mod again;
pub mod before;
pub mod file;
pub mod points;
pub mod store;
pub mod view;

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::http::Target;
use crate::http::once::{AskError, Patience};

pub use after::after;
pub use before::{Before, before};

/// How to check.
#[derive(Clone, Debug)]
pub struct Options {
    /// An admin listener, which speaks for all nodes, or each node's: stock totals, and units in
    /// each state. Empty: none is asked.
    pub admin: Vec<Target>,
    /// The database shards.
    pub store: Option<store::Store>,
    /// How long the store may take to catch up.
    pub store_wait: Duration,
    pub balances: Balances,
    pub timeout: Duration,
    pub quiet: bool,
}

impl Options {
    pub const fn patience(&self) -> Patience {
        Patience { timeout: self.timeout, quiet: self.quiet }
    }
}

/// Where the balances before the run come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Balances {
    /// A file `member,points`, as it was imported.
    File(PathBuf),
    /// Every member of the range is asked.
    Ask,
    /// Nowhere: answers are compared with each other only.
    Unknown,
}

/// What the check looked at.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Checked {
    /// Accepted redemptions found over the API, as they were answered.
    pub found_over_api: u64,
    /// Unknown requests that turned out to have had an effect, or none.
    pub resolved_with_effect: u64,
    pub resolved_without_effect: u64,
    pub members: u64,
    /// Members whose points were compared with a balance known from before, refused ones included.
    pub members_with_known_balance: u64,
    pub found_in_store: Option<u64>,
    /// Free units at the end, of items that somebody was refused for stock.
    pub undersold: u64,
    pub seconds: f64,
}

/// Why the check could not look.
#[derive(Debug, Error)]
pub enum CheckError {
    #[error(transparent)]
    Ask(#[from] AskError),
    #[error("{path} answered {status}: {body}")]
    Status { path: String, status: u16, body: String },
    #[error("{path}: the answer is not as the API defines it: {detail}")]
    Answer { path: String, detail: String },
    #[error("{path}: the units of these nodes are missing: {nodes}")]
    NodesMissed { path: String, nodes: String },
    #[error("{path}: {detail}")]
    File { path: String, detail: String },
    #[error("store {path}: {detail}")]
    Store { path: String, detail: String },
    #[error("store {path}: no database there (*.sqlite)")]
    NoStore { path: String },
}
