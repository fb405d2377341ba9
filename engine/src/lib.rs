//! Onrush: a flash-sale redemption engine for loyalty-points malls.

pub mod config;
pub mod kernel;
pub mod persist;
pub mod ship;
pub mod units;
