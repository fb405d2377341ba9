//! The HTTP door: from a socket's bytes to a command, and from its outcome to an answer.
//!
//! ```text
//! door ─► link ─► serve ─► route ─► redeem, redemptions, batch, members, sales, events   public
//!                                └► admin, import                                        admin
//!                                └► probes                                               both
//! ```
//! Threads: `http-NN` and `http-admin`, each with a runtime, a port to the shards and counters of
//! its own. Nothing here waits for a lock, and nothing decides: that is the shards' part.

mod admin;
mod batch;
mod body;
mod cells;
pub mod door;
mod events;
pub mod history;
pub mod identity;
mod import;
mod json;
mod link;
mod members;
mod metrics;
pub mod openapi;
mod parse;
mod probes;
pub mod problem;
mod redeem;
mod redemptions;
mod reply;
mod route;
mod sales;
mod serve;
mod spool;
mod worker;
