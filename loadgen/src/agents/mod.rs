//! One run from several machines: each agent sends its share of one schedule.
//!
//! ```text
//! run                                         agent
//!  ├─ connect ────────────────────────────────►│
//!  │◄──────────────────────────── challenge ───┤  a nonce
//!  ├─ proof: HMAC(token, nonce) ──────────────►│  or the end of it
//!  ├─ plan, numbers i modulo n ───────────────►│  opens its connections, trusts whom we trust
//!  │◄──────────────────────────────── ready ───┤
//!  ├─ clock? ─────────────────────────────────►│  a few times: the quickest answer counts
//!  │◄──────────────────────────────── clock ───┤
//!  ├─ start, by the agent's own clock ────────►│
//!  │◄─────────────────────── second, second … ─┤  counters and histograms, merged by adding;
//!  │                                           │  and all figures so far, if somebody looks
//!  │◄───────────────────────────────── done ───┤  all that was measured, and the ledger
//! ```
//! Each message is a line of JSON. The token keeps strangers from using an agent as a weapon; the
//! lines themselves are not encrypted.

pub mod agent;
pub mod conduct;
pub mod wire;

pub use agent::serve;
pub use conduct::{Agents, run};

use thiserror::Error;

/// What goes wrong between machines.
#[derive(Debug, Error)]
pub enum AgentError {
    #[error("{at}: {source}")]
    Io { at: String, source: std::io::Error },
    #[error("{at}: not a message of an agent: {detail}")]
    Message { at: String, detail: String },
    #[error("{at}: the agent refused: {reason}")]
    Refused { at: String, reason: String },
    #[error("{at}: the agent has gone in the middle of the run; what it measured is lost")]
    Gone { at: String },
    #[error("{at}: the agent speaks version {theirs} of the protocol, and this is version {ours}")]
    Version { at: String, theirs: u32, ours: u32 },
    #[error("{agents} agents need at least {agents} connections, and there are {connections}")]
    TooFewConnections { agents: usize, connections: usize },
}
