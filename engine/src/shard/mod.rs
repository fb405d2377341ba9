//! The core: shards that decide, the control thread that owns sales and stock, and the queues
//! between them, the door and the journal.

pub mod catalog;
pub mod completion;
pub mod control;
pub mod core;
pub mod driver;
pub mod events;
pub mod gate;
pub mod inbox;
pub mod message;
pub mod port;
pub mod recover;
pub mod resume;
pub mod snapshotter;

#[cfg(test)]
mod stepped;
