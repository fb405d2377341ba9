//! Integration tests of `onrush-load`, against servers in this process with known behaviour.

#![allow(clippy::unwrap_used, reason = "all of this crate is tests")]
#![allow(clippy::disallowed_methods, reason = "the test server has a clock of its own")]

mod bad_server;
mod figures;
mod ledger_check;
mod mall;
mod outputs;
mod redemptions;
mod scenarios;
mod server;
mod tool;
mod usage;
