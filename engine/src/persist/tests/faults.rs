//! A disk that is full, a file that cannot be written, a database that is locked, a log that
//! cannot be read: persist waits, and goes on by itself.

use super::*;

/// Lets `break_it` happen in the midst of a journal, and `mend_it` later.
fn outage(seed: u64, break_it: impl Fn(&Bench), mend_it: impl Fn(&Bench)) {
    let mut bench = Bench::new(On::Sqlite, seed, 300);
    bench.catch_up();
    break_it(&bench);
    bench.generator.write(3_000);
    for _ in 0..10 {
        bench.step_all();
    }
    let held_up = bench.status.shard(shard(1)).last_error();
    assert!(held_up.is_some(), "database shard 1 is held up");
    let through = bench.status.shard_through(shard(1));
    assert!(through < bench.generator.frames.head_seq());
    for other in [0, 2, 3] {
        while !bench.writers[other].has_stored(bench.writers[other].head_seq()) {
            bench.step(other);
        }
    }
    mend_it(&bench);
    bench.catch_up();
    assert_eq!(bench.status.shard(shard(1)).last_error(), None);
    assert_eq!(bench.status.alarms(), [""; 0]);
    bench.assert_complete();
}

/// A setting of the connection that writes database shard 1.
fn pragma(bench: &Bench, sql: &str) {
    bench.writers[1].store().inner.sqlite().connection().execute_batch(sql).unwrap();
}

#[test]
fn a_full_disk_holds_one_database_shard_up_and_nothing_is_lost() {
    let pages = |bench: &Bench| bench.figure(shard(1), "PRAGMA page_count");
    outage(
        41,
        |b| pragma(b, &format!("PRAGMA max_page_count = {}", pages(b) + 3)),
        |b| pragma(b, "PRAGMA max_page_count = 1000000"),
    );
}

#[test]
fn a_file_that_cannot_be_written_holds_one_database_shard_up_and_nothing_is_lost() {
    outage(42, |b| pragma(b, "PRAGMA query_only = ON"), |b| pragma(b, "PRAGMA query_only = OFF"));
}

#[test]
fn a_locked_database_holds_one_database_shard_up_and_nothing_is_lost() {
    let lock = std::cell::RefCell::new(None);
    outage(
        43,
        |b| {
            let path = crate::persist::sqlite::path_of(b.path(), shard(1));
            let other = rusqlite::Connection::open(path).unwrap();
            other.execute_batch("BEGIN IMMEDIATE").unwrap();
            *lock.borrow_mut() = Some(other);
        },
        |_| *lock.borrow_mut() = None,
    );
}

#[test]
fn a_log_that_cannot_be_read_is_read_again_later() {
    let mut bench = Bench::new(On::Sqlite, 44, 500);
    bench.step_all();
    bench.generator.frames.set_failing(true);
    for _ in 0..5 {
        bench.step_all();
    }
    assert!(bench.status.shard(shard(0)).last_error().unwrap().contains("reading the log"));
    bench.generator.frames.set_failing(false);
    bench.catch_up();
    bench.assert_complete();
}

#[test]
fn the_pause_after_failures_grows_to_its_bound() {
    let mut bench = Bench::new(On::Sqlite, 45, 300);
    bench.generator.frames.set_failing(true);
    let pauses: Vec<_> = (0..12).map(|i| bench.writers[0].step(i * 10_000, false)).collect();
    let expected = [20, 40, 80, 160, 320, 640, 1280, 2560, 5000, 5000, 5000, 5000];
    assert_eq!(pauses, expected.map(crate::persist::writer::Next::AfterMs));
}

/// The books of every database shard, whatever happened before.
fn ledgers_sum_to_zero_and_rolled_up_stock_equals_the_rows_at_every_commit(on: On) {
    let mut bench = Bench::new(on, 46, 0);
    for round in 0..30u32 {
        bench.generator.write(60);
        bench.faults[round as usize % 4].after.store(1, Ordering::Relaxed);
        bench.step_all();
        for shard in layout().shards() {
            let zero = |sql: &str| assert_eq!(bench.figure(shard, sql), 0, "{sql}");
            zero("SELECT coalesce(sum(amount), 0) FROM ledger");
            zero(
                "SELECT count(*) FROM (SELECT 1 FROM ledger GROUP BY journal, seq
                  HAVING sum(amount) <> 0 OR count(*) <> 2) uneven",
            );
            zero(
                "SELECT count(*) FROM accounts a WHERE free <> (SELECT sum(amount) FROM ledger l
                  WHERE l.member = a.member AND account = 1)",
            );
            zero(
                "SELECT count(*) FROM accounts a WHERE held <> (SELECT coalesce(sum(amount), 0)
                  FROM ledger l WHERE l.member = a.member AND account = 2)",
            );
            zero(
                "SELECT count(*) FROM stock s WHERE
                  (held, confirmed, released, reversed, retired) <> (
                  SELECT coalesce(sum(quantity * (state = 1)), 0),
                         coalesce(sum(quantity * (state = 2)), 0),
                         coalesce(sum(quantity * (state IN (3, 4))), 0),
                         coalesce(sum(quantity * (state = 5)), 0),
                         coalesce(sum(quantity * (state = 5 AND NOT units_back)), 0)
                  FROM redemptions r WHERE r.journal = s.journal AND r.item = s.item)",
            );
        }
    }
    bench.catch_up();
    bench.assert_complete();
}

also_over_kafka! { ledgers_sum_to_zero_and_rolled_up_stock_equals_the_rows_at_every_commit }

on_every_store! { ledgers_sum_to_zero_and_rolled_up_stock_equals_the_rows_at_every_commit }
