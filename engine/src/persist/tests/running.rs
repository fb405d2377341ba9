//! The threads: they catch up, wake those who wait, and end when told.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use super::*;
use crate::clock::{Clock, RealClock};
use crate::persist::driver::Persist;
use crate::persist::status::Lag;

/// A clock that runs a millisecond further at each look.
struct Ticking(AtomicU64);

impl Clock for Ticking {
    fn wall_ms(&self) -> u64 {
        0
    }
    fn monotonic_ns(&self) -> u64 {
        self.0.fetch_add(1_000_000, Ordering::Relaxed)
    }
}

fn start(bench: &mut Bench, threads: usize) -> Persist {
    let clock: Arc<dyn Clock> = match &bench.rig {
        Some(_) => Arc::new(RealClock::new()),
        None => Arc::new(Ticking(AtomicU64::new(0))),
    };
    let writers = std::mem::take(&mut bench.writers);
    Persist::start(writers, bench.status.clone(), threads, &clock).unwrap()
}

fn waiters_are_woken_once_everything_up_to_there_is_stored(on: On) {
    let mut bench = Bench::new(on, 51, 400);
    let persist = start(&mut bench, 1);
    for _ in 0..5 {
        bench.generator.write(100);
        let head = bench.generator.frames.head_seq();
        assert!(bench.known().wait_persisted(head, Duration::from_mins(1)));
        assert!(bench.known().persisted_through() >= head);
    }
    assert_eq!(bench.known().lag(), Lag::default());
    let beyond = bench.generator.frames.head_seq().next();
    assert!(!bench.known().wait_persisted(beyond, Duration::from_millis(20)));
    persist.stop(None);
    bench.assert_complete();
}

fn a_stop_that_drains_stores_everything_that_is_durable(on: On) {
    for threads in [1, 2, 4, 9] {
        let mut bench = Bench::new(on, 52, 2_000);
        let persist = start(&mut bench, threads);
        assert!(persist.stop(Some(Duration::from_secs(30))), "{threads} threads");
        bench.assert_complete();
    }
}

#[test]
fn a_drain_ends_at_its_deadline_where_a_database_cannot_be_written() {
    let mut bench = Bench::new(On::Sqlite, 53, 300);
    bench.writers[3]
        .store()
        .inner
        .sqlite()
        .connection()
        .execute_batch("PRAGMA query_only = ON")
        .unwrap();
    let persist = start(&mut bench, 1);
    let head = bench.generator.frames.head_seq();
    for other in [0, 1, 2] {
        while bench.status.shard_through(shard(other)) < head {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    assert!(!persist.stop(Some(Duration::from_millis(200))));
    bench.restart(64);
    bench.catch_up();
    bench.assert_complete();
}

fn a_stop_at_once_leaves_what_the_next_start_completes(on: On) {
    let mut bench = Bench::new(on, 54, 3_000);
    start(&mut bench, 2).stop(None);
    bench.restart(64);
    bench.catch_up();
    bench.assert_complete();
}

// A consumer of a topic has no end to drain to: what is in Kafka waits there.
also_over_kafka! {
    waiters_are_woken_once_everything_up_to_there_is_stored,
    a_stop_at_once_leaves_what_the_next_start_completes,
}

on_every_store! {
    waiters_are_woken_once_everything_up_to_there_is_stored,
    a_stop_that_drains_stores_everything_that_is_durable,
    a_stop_at_once_leaves_what_the_next_start_completes,
}
