//! The kernel: `decide(state, now, command)` without I/O, clock, thread or randomness.
//!
//! It imports only `units`. Everything that surrounds it carries its inputs and effects.
//!
//! Two machines: [`state::ShardState`] decides all that belongs to members, one per shard;
//! [`control::ControlState`] decides sales and stock totals, one per node.

mod aged_keys;
mod apply;
pub mod bytes;
pub mod catalog;
pub mod code;
pub mod command;
pub mod control;
mod control_apply;
mod control_snapshot;
mod decide;
mod decide_admin;
pub mod definition;
pub mod dump;
pub mod effects;
mod member;
mod prefetch;
mod read;
pub mod record;
mod redemption;
pub mod slot;
pub mod slots;
mod snapshot;
pub mod state;
#[cfg(test)]
mod tests;
