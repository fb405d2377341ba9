//! What the lock-free parts are made of. They name it here alone, so that `engine/tests/loom.rs`
//! can compile those very files with loom's atomics and threads in these places.

pub use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
pub use std::thread::{Thread, current, park_timeout};
