//! The disk fills up and empties again, under a running journal.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use crate::clock::RealClock;
use crate::journal::sim::SimDisk;
use crate::journal::{
    CompletionSink, DiskState, JournalHandle, JournalOptions, Opened, Producer, segments,
};
use crate::units::Seq;

struct Collect(Sender<Seq>);

impl CompletionSink for Collect {
    type Item = ();
    fn complete(&mut self, (): (), seq: Seq) {
        let _ = self.0.send(seq);
    }
}

type Running = (JournalHandle<SimDisk>, Producer<()>, Receiver<Seq>);

const SEGMENT: u64 = 2 << 20;

fn start(disk: &SimDisk, segment_count: u64) -> Running {
    let options = JournalOptions {
        segment_bytes: SEGMENT,
        max_bytes: segment_count * SEGMENT,
        pause_at_percent: 50,
        stop_at_percent: 75,
        grace: Duration::ZERO,
        ..JournalOptions::new("")
    };
    let opened = Opened::on(disk, None, options, Arc::new(RealClock::new())).unwrap();
    let (sender, receiver) = channel();
    let on_poison = Box::new(|e| panic!("{e}"));
    let (handle, mut producers) = opened.start(1, Collect(sender), on_poison).unwrap();
    (handle, producers.remove(0), receiver)
}

/// Pushes one record of about a megabyte and waits for its completion, some while.
fn push(running: &mut Running) -> Option<Seq> {
    running.1.try_push(&vec![1; 1_000_000], 1, ()).unwrap();
    running.1.wake();
    running.2.recv_timeout(Duration::from_millis(400)).ok()
}

fn await_state(handle: &JournalHandle<SimDisk>, state: DiskState) {
    for _ in 0..500 {
        if handle.disk_state() == state {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("{:?} instead of {state:?}", handle.disk_state());
}

#[test]
fn watermarks_pause_and_stop_and_space_that_comes_back_is_used() {
    let disk = SimDisk::new(3);
    let mut running = start(&disk, 8);
    let mut last = Seq::NONE;
    // Two such records to a segment. Five segments are above half, seven above three quarters.
    for (segment_count, state) in
        [(4, DiskState::Normal), (6, DiskState::SalesPaused), (7, DiskState::WritesStopped)]
    {
        while running.0.gauge().used_bytes() < segment_count * SEGMENT {
            last = push(&mut running).unwrap_or(last);
        }
        await_state(&running.0, state);
    }
    // The bound is hard: the eighth segment is the spare, and no ninth is made.
    while let Some(seq) = push(&mut running) {
        last = seq;
    }
    assert_eq!(segments::list(&disk).unwrap().len(), 8);
    assert!(!running.0.is_poisoned(), "no space is no failed write");
    // Covered by snapshots alone it stays; by the store too, it goes, and the writer goes on.
    running.0.cover_by_snapshots(last);
    assert_eq!(running.2.recv_timeout(Duration::from_millis(500)).ok(), None);
    running.0.cover_by_store(last);
    assert!(running.2.recv_timeout(Duration::from_secs(5)).is_ok());
    await_state(&running.0, DiskState::Normal);
    assert!(running.0.gauge().first_seq() > Seq::new(1));
    assert!(push(&mut running).is_some());
    running.0.stop().unwrap();
    let opened = Opened::on(
        &disk,
        None,
        JournalOptions { segment_bytes: SEGMENT, ..JournalOptions::new(Path::new("")) },
        Arc::new(RealClock::new()),
    );
    assert!(opened.unwrap().first_seq() > Seq::new(1));
}

#[test]
fn a_reader_keeps_the_segments_while_there_is_space() {
    let disk = SimDisk::new(3);
    let mut running = start(&disk, 8);
    let fill = |running: &mut Running, segment_count: u64| {
        let mut last = Seq::NONE;
        while running.0.gauge().used_bytes() < segment_count * SEGMENT {
            last = push(running).unwrap_or(last);
        }
        running.0.cover_by_snapshots(last);
        running.0.cover_by_store(last);
        last
    };
    let begins_behind = |running: &Running, seq| {
        let begun = || running.0.gauge().first_seq() > seq;
        for _ in 0..500 {
            if begun() {
                return true;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        false
    };
    let pin = running.0.gauge().pin();
    fill(&mut running, 3);
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(running.0.gauge().first_seq(), Seq::new(1), "kept, although all cover it");
    drop(pin);
    assert!(begins_behind(&running, Seq::new(1)), "and gone with the reader");
    // Above the first watermark the journal's own need goes before the reader's.
    let _pin = running.0.gauge().pin();
    let first = running.0.gauge().first_seq();
    fill(&mut running, 6);
    assert!(begins_behind(&running, first));
    running.0.stop().unwrap();
}

#[test]
fn a_full_file_system_stops_writes_until_there_is_space_again() {
    let disk = SimDisk::new(3);
    disk.set_capacity(3 * SEGMENT);
    let mut running = start(&disk, 100);
    while push(&mut running).is_some() {}
    assert_eq!(running.0.disk_state(), DiskState::WritesStopped);
    assert!(!running.0.is_poisoned());
    let failures = &running.0.stats().prepare_failure_count;
    assert!(failures.load(std::sync::atomic::Ordering::Relaxed) > 0);
    disk.set_capacity(10 * SEGMENT);
    assert!(running.2.recv_timeout(Duration::from_secs(5)).is_ok());
    await_state(&running.0, DiskState::Normal);
    assert!(push(&mut running).is_some());
    running.0.stop().unwrap();
}

#[test]
fn stopping_while_there_is_no_space_ends_with_an_error_and_no_poison() {
    let disk = SimDisk::new(3);
    disk.set_capacity(2 * SEGMENT);
    let mut running = start(&disk, 100);
    while push(&mut running).is_some() {}
    let refused = running.0.stop().err().unwrap();
    assert!(refused.to_string().contains("no space"), "{refused}");
}
