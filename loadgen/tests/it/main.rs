//! Integration tests of `onrush-load`, against servers in this process with known behaviour.

#![allow(clippy::unwrap_used, reason = "all of this crate is tests")]
#![allow(clippy::disallowed_methods, reason = "the test server has a clock of its own")]

mod bad_machines;
mod bad_server;
mod clients;
mod examples;
mod figures;
mod kept;
mod ledger_check;
mod mall;
mod mall_store;
mod many_nodes;
mod outputs;
mod presets;
mod raw;
mod redemptions;
mod scenarios;
mod screen;
mod secure;
mod server;
mod several_machines;
mod stack_report;
#[path = "../../../engine/tests/it/stack_servers.rs"]
mod stack_servers;
mod stack_store;
mod tool;
mod two;
mod two_server;
mod usage;
