//! `onrush-load`: an open-loop load generator that knows the ledger.
//!
//! It shares no code with the engine: it is there to check it.

pub mod agents;
pub mod check;
pub mod cli;
pub mod clock;
pub mod http;
pub mod members;
pub mod plan;
pub mod random;
pub mod replay;
pub mod report;
pub mod run;
pub mod schedule;
pub mod stats;
pub mod timeline;
pub mod tui;
pub mod work;
