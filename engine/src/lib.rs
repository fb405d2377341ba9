//! Onrush: a flash-sale redemption engine for loyalty-points malls.

pub mod app;
pub mod audit;
pub mod cli;
pub mod clock;
pub mod cluster;
pub mod config;
pub mod crash;
pub mod http;
pub mod journal;
pub mod kernel;
pub mod persist;
pub mod planted;
pub mod shard;
pub mod ship;
pub mod stock;
pub mod sync;
pub mod telemetry;
pub mod units;

#[cfg(test)]
mod sim;

/// As the node has it.
#[cfg(test)]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;
