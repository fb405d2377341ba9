//! The running journal on a real folder: order, restart, tails.

use std::path::Path;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};

use crate::clock::{ManualClock, RealClock};
use crate::journal::disk::{Disk, RealDisk};
use crate::journal::{
    CompletionSink, Journal, JournalError, JournalHandle, JournalOptions, Opened, StoppedJournal,
    Tail,
};
use crate::units::Seq;

struct Collect(Sender<(u64, Seq)>);

impl CompletionSink for Collect {
    type Item = u64;
    fn complete(&mut self, item: u64, seq: Seq) {
        self.0.send((item, seq)).unwrap();
    }
}

fn options(dir: &Path) -> JournalOptions {
    JournalOptions { segment_bytes: 2 << 20, max_bytes: 64 << 20, ..JournalOptions::new(dir) }
}

fn open(dir: &Path) -> Opened<RealDisk> {
    Journal::open(options(dir), Arc::new(RealClock::new())).unwrap()
}

fn poison_fails() -> crate::journal::OnPoison {
    Box::new(|e| panic!("{e}"))
}

/// All records of a tail, given that each is one u64.
fn numbers<D: Disk>(mut tail: Tail<D>) -> Vec<(u64, u64)> {
    let mut all = Vec::new();
    while let Some(run) = tail.next().unwrap() {
        assert_eq!(run.records.len(), run.record_count as usize * 8);
        for (i, record) in run.records.chunks(8).enumerate() {
            let number = u64::from_le_bytes(record.try_into().unwrap());
            all.push((run.first_seq.get() + i as u64, number));
        }
    }
    all
}

#[test]
fn what_completes_is_in_order_and_there_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let mut expected = Vec::new();
    for round in 0..3u64 {
        let opened = open(folder.path());
        assert_eq!(u64::from(opened.incarnation().get()), round + 1);
        assert_eq!(opened.last_seq().get(), expected.len() as u64);
        assert_eq!(numbers(opened.replay(Seq::NONE).unwrap()), expected);
        let (sender, completed) = channel();
        let (handle, mut producers) = opened.start(2, Collect(sender), poison_fails()).unwrap();
        let mut per_producer = [Vec::new(), Vec::new()];
        for i in 0..500u64 {
            for (p, producer) in producers.iter_mut().enumerate() {
                let item = round * 1_000_000 + p as u64 * 1_000 + i;
                producer.try_push(&item.to_le_bytes(), 1, item).unwrap();
                if i % 7 == 0 {
                    producer.try_push(&[], 0, u64::MAX).unwrap();
                }
                producer.wake();
            }
        }
        handle.stop().unwrap();
        let mut last = Seq::NONE;
        for (item, seq) in completed {
            assert!(seq >= last);
            last = seq;
            if item != u64::MAX {
                expected.push((seq.get(), item));
                per_producer[(item / 1_000 % 2) as usize].push(item);
            }
        }
        assert!(per_producer.iter().all(|items| items.len() == 500 && items.is_sorted()));
    }
    let stopped = StoppedJournal::open(folder.path()).unwrap();
    assert_eq!(numbers(stopped.tail(Seq::new(1)).unwrap()), expected);
    assert!(stopped.scan().unproven.len() == 1, "only the closing mark is unproven");
}

#[test]
fn a_tail_follows_the_writer_over_segments() {
    let folder = tempfile::tempdir().unwrap();
    let (sender, completed) = channel();
    let (handle, mut producers) =
        open(folder.path()).start(1, Collect(sender), poison_fails()).unwrap();
    let mut tail = handle.tail(Seq::new(1)).unwrap();
    let (mut next, record) = (1u64, vec![7u8; 100_000]);
    for i in 0..80u64 {
        while producers[0].try_push(&record, 1, i).is_err() {
            std::thread::yield_now();
        }
        producers[0].wake();
        if i % 10 == 9 {
            while completed.recv().unwrap().0 != i {}
            while let Some(run) = tail.next().unwrap() {
                assert_eq!(run.first_seq.get(), next);
                assert!(run.records.iter().all(|b| *b == 7));
                next += u64::from(run.record_count);
            }
            assert_eq!(next, i + 2);
            assert!(tail.next().unwrap().is_none());
        }
    }
    assert!(handle.stats().rotation_count.load(std::sync::atomic::Ordering::Relaxed) >= 3);
    let mut late = handle.tail(Seq::new(70)).unwrap();
    let first = late.next().unwrap().unwrap();
    assert!(first.first_seq.get() <= 70 && first.last_seq().get() >= 70);
    handle.stop().unwrap();
}

#[test]
fn two_journals_on_one_folder_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let _first = open(folder.path());
    let second = Journal::open(options(folder.path()), Arc::new(ManualClock::new(0)));
    assert!(matches!(second.err().unwrap(), JournalError::Locked { .. }));
}

#[test]
fn node_time_goes_on_from_the_last_frame() {
    let folder = tempfile::tempdir().unwrap();
    let clock = Arc::new(ManualClock::new(1_000_000));
    let stop = |handle: JournalHandle| handle.stop().unwrap();
    let opened = Journal::open(options(folder.path()), clock.clone()).unwrap();
    clock.advance(std::time::Duration::from_millis(500));
    let (sender, _completed) = channel();
    stop(opened.start(1, Collect(sender), poison_fails()).unwrap().0);
    for (wall, expected) in [(1_000_700, 1_000_700), (400_000, 1_000_700), (400_050, 1_000_750)] {
        clock.set_wall_ms(wall);
        let opened = Journal::open(options(folder.path()), clock.clone()).unwrap();
        assert_eq!(opened.clock().now().get(), expected);
    }
}

#[test]
fn a_failed_write_completes_nothing_and_tells_its_caller() {
    use crate::journal::sim::{Fault, SimDisk};
    let disk = SimDisk::new(1);
    let clock = Arc::new(RealClock::new());
    let opened = Opened::on(&disk, None, options(Path::new("")), clock).unwrap();
    let (sender, completed) = channel();
    let told = Arc::new(Mutex::new(None));
    let teller = told.clone();
    let on_poison = Box::new(move |e| *teller.lock().unwrap() = Some(e));
    let (handle, mut producers) = opened.start(1, Collect(sender), on_poison).unwrap();
    producers[0].try_push(b"first", 1, 1).unwrap();
    producers[0].wake();
    assert_eq!(completed.recv().unwrap(), (1, Seq::new(1)));
    // The other thread may be making a segment: every operation from here on fails.
    let from = disk.operations();
    (from..from + 1_000).for_each(|op| disk.fault_at(op, Fault::Error));
    producers[0].try_push(b"second", 1, 2).unwrap();
    producers[0].wake();
    assert!(completed.recv().is_err(), "the sink went with its thread");
    assert!(handle.is_poisoned());
    assert_eq!(handle.durable_seq(), Seq::new(1));
    assert!(matches!(*told.lock().unwrap(), Some(JournalError::Poisoned { .. })));
    assert!(matches!(handle.stop(), Err(JournalError::Poisoned { .. })));
}
