//! The engine's integration tests, in one binary. Modules named `e2e_*` drive the real node over
//! real sockets; `scripts/test quick` leaves the slow ones out.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod audit;
mod cli;
mod e2e;
mod e2e_burst;
mod e2e_client;
mod e2e_clock;
mod e2e_crash;
mod e2e_idle;
mod e2e_mall;
mod e2e_nodes;
mod e2e_nodes_down;
mod e2e_overload;
mod e2e_power;
mod e2e_sale;
mod e2e_start;
mod http_bad_input;
mod http_client;
mod http_conformance;
mod http_events;
mod http_metrics;
mod http_notes;
mod http_spec;
mod http_starting;
mod http_unavailable;
mod journal_crash;
mod kernel_model;
mod leaves_nothing;
mod lock_free;
mod persist_crash;
mod persist_letters;
mod settings;
mod stack_brokers;
mod stack_kafka;
mod stack_lease;
mod stack_mysql;
mod stack_nodes;
mod stack_redis;
mod stack_script;
mod stack_servers;
mod stack_split;
