//! Stock: the lines that shards take from, and the authority that grants units to this node.

pub mod ask;
pub mod authority;
pub mod gauges;
pub mod lease;
pub mod line;
pub mod pool;
pub mod redis;
