//! The kernel: `decide(state, now, command)` without I/O, clock, thread or randomness.
//!
//! It imports only `units`. Everything that surrounds it carries its inputs and effects.

pub mod code;
pub mod command;
pub mod record;
