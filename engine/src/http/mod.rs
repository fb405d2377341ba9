//! The HTTP door: from a socket's bytes to a command, and from its outcome to an answer.
//!
//! ```text
//! door ─► link ─► serve ─► route ─► redeem, redemptions, batch, members, sales, events   public
//!                                └► admin, import                                        admin
//!                                └► probes                                               both
//!                       └► misrouted, everywhere ─► peers ─► the door of another node
//! ```
//! Threads: `http-NN` and `http-admin`, each with a runtime, a port to the shards and counters of
//! its own. Nothing here waits for a lock, and nothing decides: that is the shards' part.

mod admin;
mod batch;
mod body;
mod cells;
mod cluster;
pub mod door;
mod events;
mod everywhere;
pub mod history;
pub mod identity;
mod import;
mod json;
mod link;
mod members;
mod metrics;
mod misrouted;
pub mod openapi;
mod parse;
mod peers;
mod probes;
pub mod problem;
pub mod redeem;
mod redemptions;
mod reply;
mod route;
mod sales;
mod serve;
mod spool;
pub mod worker;
