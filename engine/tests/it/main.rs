//! The engine's integration tests, in one binary. Modules named `e2e_*` drive the real node over
//! real sockets; `scripts/test quick` leaves the slow ones out.

mod audit;
mod journal_crash;
mod kernel_model;
mod settings;
