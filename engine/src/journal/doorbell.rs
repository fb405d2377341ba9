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

#[cfg(loom)]
use loom::sync::atomic::{AtomicBool, Ordering, fence};
#[cfg(loom)]
use loom::thread::Thread;
#[cfg(not(loom))]
use std::sync::atomic::{AtomicBool, Ordering, fence};
#[cfg(not(loom))]
use std::thread::Thread;

use std::sync::OnceLock;
use std::time::Duration;

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
        #[cfg(not(loom))]
        let this = std::thread::current();
        #[cfg(loom)]
        let this = loom::thread::current();
        assert!(self.sleeper.set(this).is_ok(), "a doorbell has one sleeper");
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
            #[cfg(not(loom))]
            std::thread::park_timeout(timeout);
            #[cfg(loom)]
            {
                let _ = timeout;
                loom::thread::park();
            }
        }
        self.sleeping.store(false, Ordering::Relaxed);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicU64;

    use super::*;

    #[test]
    fn no_ring_is_lost() {
        let (bell, work) = (Arc::new(Doorbell::new()), Arc::new(AtomicU64::new(0)));
        let (theirs, their_work) = (bell.clone(), work.clone());
        let sleeper = std::thread::spawn(move || {
            theirs.settle();
            let mut seen = 0;
            while seen < 20_000 {
                let now = their_work.load(Ordering::Acquire);
                if now == seen {
                    let idle = || their_work.load(Ordering::Acquire) == seen;
                    theirs.wait(idle, Duration::from_mins(1));
                }
                seen = now;
            }
        });
        for _ in 0..20_000 {
            work.fetch_add(1, Ordering::Release);
            bell.ring();
        }
        sleeper.join().unwrap();
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use loom::sync::Arc;
    use loom::sync::atomic::AtomicU64;

    use super::*;

    #[test]
    fn in_every_interleaving_the_sleeper_sees_the_work() {
        loom::model(|| {
            let (bell, work) = (Arc::new(Doorbell::new()), Arc::new(AtomicU64::new(0)));
            bell.settle();
            let (theirs, their_work) = (bell.clone(), work.clone());
            let ringer = loom::thread::spawn(move || {
                their_work.store(1, Ordering::Release);
                theirs.ring();
            });
            // loom fails the test as a deadlock where this parks for ever.
            while work.load(Ordering::Acquire) == 0 {
                bell.wait(|| work.load(Ordering::Acquire) == 0, Duration::ZERO);
            }
            ringer.join().unwrap();
        });
    }
}
