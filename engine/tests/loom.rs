//! Every interleaving of the stock line and of the journal's doorbell: `scripts/test loom`.
//!
//! Compiles their very sources, with loom's atomics and threads where the engine has the system's.
#![allow(dead_code, reason = "files of the engine are included whole for a few functions")]

#[path = "../src/journal/doorbell.rs"]
mod doorbell;
#[path = "../src/stock/line.rs"]
mod line;
#[path = "../src/units.rs"]
mod units;

/// Stands where the engine has `sync.rs`.
mod sync {
    pub use loom::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
    pub use loom::thread::{Thread, current};

    /// Without end: where nobody rings, loom fails the test as a deadlock.
    pub fn park_timeout(_timeout: std::time::Duration) {
        loom::thread::park();
    }
}

use std::time::Duration;

use doorbell::Doorbell;
use line::{StockLine, StockLines};
use loom::sync::Arc;
use loom::thread;
use sync::{AtomicU64, Ordering};
use units::ItemIndex;

/// Runs `body` in every interleaving. By default none with more than three preemptions: enough for
/// what two threads can do to each other.
fn every_interleaving(body: impl Fn() + Send + Sync + 'static) {
    static LOCK: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _one_model_at_a_time = LOCK.lock();
    let mut model = loom::model::Builder::new();
    model.preemption_bound = model.preemption_bound.or(Some(3));
    model.check(body);
}

#[test]
fn in_every_interleaving_the_sleeper_sees_the_work() {
    every_interleaving(|| {
        let (bell, work) = (Arc::new(Doorbell::new()), Arc::new(AtomicU64::new(0)));
        bell.settle();
        let (theirs, their_work) = (Arc::clone(&bell), Arc::clone(&work));
        let ringer = thread::spawn(move || {
            their_work.store(1, Ordering::Release);
            theirs.ring();
        });
        while work.load(Ordering::Acquire) == 0 {
            bell.wait(|| work.load(Ordering::Acquire) == 0, Duration::ZERO);
        }
        ringer.join().expect("who rings");
    });
}

#[test]
fn the_last_unit_goes_to_one_of_two_shards() {
    every_interleaving(|| {
        let line = Arc::new(StockLine::default());
        line.give_back(1);
        let other = {
            let line = Arc::clone(&line);
            thread::spawn(move || line.try_take(1))
        };
        let mine = line.try_take(1);
        let theirs = other.join().expect("the other shard");
        assert!(mine != theirs, "mine {mine}, theirs {theirs}");
        assert_eq!(line.free(), 0);
    });
}

#[test]
fn a_take_that_does_not_fit_takes_nothing() {
    every_interleaving(|| {
        let line = Arc::new(StockLine::default());
        line.give_back(3);
        let other = {
            let line = Arc::clone(&line);
            thread::spawn(move || line.try_take(2))
        };
        let mine = line.try_take(2);
        let theirs = other.join().expect("the other shard");
        assert!(mine != theirs);
        assert_eq!(line.free(), 1);
    });
}

#[test]
fn units_given_back_are_neither_lost_nor_doubled() {
    every_interleaving(|| {
        let line = Arc::new(StockLine::default());
        line.give_back(1);
        let giver = {
            let line = Arc::clone(&line);
            thread::spawn(move || line.give_back(2))
        };
        let taker = {
            let line = Arc::clone(&line);
            thread::spawn(move || u64::from(line.try_take(1)))
        };
        let withdrawn = line.take_up_to(2);
        giver.join().expect("the giver");
        let taken = taker.join().expect("the taker");
        assert_eq!(line.free() + taken + withdrawn, 3);
    });
}

#[test]
fn sold_out_is_not_final_once_units_were_added() {
    every_interleaving(|| {
        let lines = Arc::new(StockLines::default());
        let item = ItemIndex::new(0);
        lines.set_total(item, 1);
        let journal = {
            let lines = Arc::clone(&lines);
            thread::spawn(move || lines.confirm_durable(item, 1))
        };
        lines.set_total(item, 2);
        journal.join().expect("the journal");
        assert!(!lines.is_sold_out_finally(item), "a unit was added and is still there");
        lines.confirm_durable(item, 1);
        assert!(lines.is_sold_out_finally(item));
    });
}

#[test]
fn sold_out_is_not_final_between_a_reversal_and_the_next_sale_of_its_unit() {
    every_interleaving(|| {
        let lines = Arc::new(StockLines::default());
        let item = ItemIndex::new(0);
        lines.set_elsewhere(item, 3, Some(1), 0, 1);
        lines.confirm_durable(item, 1);
        let journal = {
            let lines = Arc::clone(&lines);
            thread::spawn(move || {
                // Two of three are confirmed, then one, then two again.
                lines.confirm_durable(item, -1);
                lines.confirm_durable(item, 1);
            })
        };
        assert!(!lines.is_sold_out_finally(item), "the third is still there");
        let (confirmed, unconfirmed) = lines.settled(item);
        assert!(confirmed - unconfirmed <= 1);
        journal.join().expect("the journal");
    });
}

#[test]
fn sold_out_is_not_final_by_an_old_figure_of_others_and_a_new_total() {
    every_interleaving(|| {
        let lines = Arc::new(StockLines::default());
        let item = ItemIndex::new(0);
        // Four here, and one elsewhere when all was one less: another was added since.
        lines.set_elsewhere(item, 4, Some(1), 0, 1);
        lines.confirm_durable(item, 4);
        let control = {
            let lines = Arc::clone(&lines);
            thread::spawn(move || lines.set_elsewhere(item, 5, None, 2, 2))
        };
        assert!(!lines.is_sold_out_finally(item), "the old figure and the new total");
        control.join().expect("control");
    });
}
