//! The `persist` threads: each runs the writers of some database shards, in turn.
//!
//! One thread for all of them is the default: persist works behind the sale, and should not take
//! a core from it. A writer that fails backs off by itself and does not hold up the others.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::status::PersistStatus;
use super::store::Store;
use super::writer::{Next, ShardWriter};
use crate::clock::Clock;
use crate::ship::log::Log;

/// Whether a thread is to end, and when.
#[derive(Default)]
struct Control {
    /// End once everything that was durable at that moment is stored.
    is_draining: AtomicBool,
    /// End after the transaction at hand.
    is_aborted: AtomicBool,
    running: Mutex<usize>,
    /// Signalled when a thread ends, and to wake sleeping ones.
    changed: Condvar,
}

impl Control {
    /// Sets a flag under the lock, so that no thread looks at it and falls asleep in between.
    fn set(&self, flag: &AtomicBool) {
        let guard = lock(&self.running);
        flag.store(true, Ordering::Relaxed);
        drop(guard);
        self.changed.notify_all();
    }
    /// Sleeps, unless a flag was set since it was last looked at.
    fn sleep(&self, pause: Duration, is_draining: bool) {
        let guard = lock(&self.running);
        let is_aborted = self.is_aborted.load(Ordering::Relaxed);
        if !is_aborted && self.is_draining.load(Ordering::Relaxed) == is_draining {
            drop(self.changed.wait_timeout(guard, pause));
        }
    }
}

/// Running persist threads.
pub struct Persist {
    control: Arc<Control>,
    status: Arc<PersistStatus>,
    threads: Vec<JoinHandle<()>>,
}

impl Persist {
    /// Starts `thread_count` threads (at most one per database shard) for these writers.
    pub fn start<L: Log + 'static, S: Store + 'static>(
        writers: Vec<ShardWriter<L, S>>,
        status: Arc<PersistStatus>,
        thread_count: usize,
        clock: &Arc<dyn Clock>,
    ) -> std::io::Result<Self> {
        let control = Arc::new(Control::default());
        let per_thread = writers.len().div_ceil(thread_count.clamp(1, writers.len().max(1)));
        let mut persist = Self { control, status, threads: Vec::new() };
        let mut writers = writers.into_iter().peekable();
        while writers.peek().is_some() {
            let own: Vec<_> = writers.by_ref().take(per_thread.max(1)).collect();
            let (control, status) = (persist.control.clone(), persist.status.clone());
            let clock = clock.clone();
            let name = format!("persist-{:02}", persist.threads.len());
            *lock(&control.running) += 1;
            let run = move || {
                run(own, &control, &status, &*clock);
                *lock(&control.running) -= 1;
                control.changed.notify_all();
            };
            let thread = std::thread::Builder::new().name(name).spawn(run)?;
            persist.threads.push(thread);
        }
        Ok(persist)
    }

    pub fn status(&self) -> &Arc<PersistStatus> {
        &self.status
    }

    /// Ends the threads. With `drain`, first stores what is durable now, up to that deadline;
    /// `true` when all of it was stored.
    pub fn stop(self, drain: Option<Duration>) -> bool {
        let mut is_drained = false;
        if let Some(deadline) = drain {
            self.control.set(&self.control.is_draining);
            let running = lock(&self.control.running);
            let busy = |running: &mut usize| *running > 0;
            let waited = self.control.changed.wait_timeout_while(running, deadline, busy);
            is_drained = !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out();
        }
        self.control.set(&self.control.is_aborted);
        for thread in self.threads {
            thread.join().expect("a persist thread that panicked ended the process");
        }
        is_drained
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A thread's life. Sleeps are cut short by `stop`, and last one linger at most when somebody
/// waits for records to be stored.
fn run<L: Log, S: Store>(
    mut writers: Vec<ShardWriter<L, S>>,
    control: &Control,
    status: &PersistStatus,
    clock: &dyn Clock,
) {
    let now_ms = || clock.monotonic_ns() / 1_000_000;
    let mut due_ms = vec![0; writers.len()];
    let mut drain_to = None;
    loop {
        if control.is_aborted.load(Ordering::Relaxed) {
            return;
        }
        if control.is_draining.load(Ordering::Relaxed) && drain_to.is_none() {
            drain_to = writers.iter().map(ShardWriter::head_seq).max();
            due_ms.fill(0);
        }
        let is_urgent = drain_to.is_some() || status.has_waiters();
        for (writer, due) in writers.iter_mut().zip(&mut due_ms) {
            let now = now_ms();
            if now >= *due {
                *due = match writer.step(now, is_urgent) {
                    Next::Now => now,
                    Next::AfterMs(ms) => now + ms,
                };
            }
        }
        if drain_to.is_some_and(|seq| writers.iter().all(|w| w.has_stored(seq))) {
            return;
        }
        let now = now_ms();
        let pause = due_ms.iter().map(|due| due.saturating_sub(now)).min().unwrap_or(0);
        if pause > 0 {
            control.sleep(Duration::from_millis(pause), drain_to.is_some());
        }
    }
}
