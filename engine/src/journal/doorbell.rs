//! Wakes the one thread that sleeps here, and costs almost nothing while it is awake.
//!
//! Source: Dekker's handshake, as in the parking of most executors. Each side first says what it
//! did, then looks at what the other did, with a full fence between:
//!
//! ```text
//! who rings                          who waits
//! 1 publishes work (its own queue)   1 sleeping = true
//! 2 fence SeqCst                     2 fence SeqCst
//! 3 reads sleeping                   3 looks for work
//!   true: sleeping = false, unpark     none: parks
//! ```
//! The fences are in one total order: whichever comes second, its thread sees the other's step 1.
//! So either the ringer sees `sleeping`, or the waiter sees the work; never neither.

use std::sync::OnceLock;
use std::time::Duration;

use crate::sync::{AtomicBool, Ordering, Thread, current, fence, park_timeout};

/// One sleeper, any number of ringers.
pub struct Doorbell {
    sleeping: AtomicBool,
    sleeper: OnceLock<Thread>,
}

impl Default for Doorbell {
    fn default() -> Self {
        Self::new()
    }
}

impl Doorbell {
    pub fn new() -> Self {
        Self { sleeping: AtomicBool::new(false), sleeper: OnceLock::new() }
    }

    /// Makes the calling thread the sleeper. Once, before its first wait.
    pub fn settle(&self) {
        assert!(self.sleeper.set(current()).is_ok(), "a doorbell has one sleeper");
    }

    /// Wakes the sleeper if it sleeps. Called after the work is published.
    pub fn ring(&self) {
        fence(Ordering::SeqCst);
        // Relaxed: the fence orders it. The swap lets one of several ringers make the call.
        if self.sleeping.load(Ordering::Relaxed)
            && self.sleeping.swap(false, Ordering::Relaxed)
            && let Some(sleeper) = self.sleeper.get()
        {
            sleeper.unpark();
        }
    }

    /// Sleeps until rung, `timeout` at most, unless `is_idle` sees work. May wake for nothing.
    pub fn wait(&self, is_idle: impl FnOnce() -> bool, timeout: Duration) {
        self.sleeping.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        if is_idle() {
            park_timeout(timeout);
        }
        self.sleeping.store(false, Ordering::Relaxed);
    }
}
