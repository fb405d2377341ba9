//! kill -9 in the middle of a burst, again and again: every 201 that a client saw is there after
//! recovery with the same body, every key is answered once, and no unit and no point is more or
//! less than before.
//!
//! `ONRUSH_CRASH_CYCLES` says how often; `scripts/test crash` does 200.

use std::thread;
use std::time::Duration;

use crate::e2e::{Random, Site, onrush, run, setting, turn};
use crate::e2e_burst::{Book, ITEMS, MEMBERS, POINTS, SALE, burst};

#[test]
fn nothing_that_was_answered_is_lost_by_kill_9() {
    let _turn = turn();
    let cycles = setting("ONRUSH_CRASH_CYCLES", 20);
    let mut random = Random::new("kill -9");
    let site = Site::new();
    let mut book = Book::default();

    let node = site.start();
    node.import_members(1, MEMBERS, POINTS);
    node.open_sale(SALE, 3_600_000, ITEMS);
    let mut node = Some(node);
    for cycle in 0..cycles {
        let running = node.take().unwrap_or_else(|| site.start());
        let until = Duration::from_millis(20 + random.below(300));
        let load = burst(running.public, random.next(), &format!("c{cycle}"));
        thread::sleep(until);
        running.kill();
        let begun = load.finish();

        site.audit();
        let running = site.start();
        book.reconcile(&running, begun, &mut random);
        book.compare(&running);
        if cycle % 2 == 0 {
            running.kill(); // at rest, so that a recovery follows a recovery
        } else {
            node = Some(running);
        }
    }
    println!("{cycles} kills, {}", book.summary());
    assert!(book.unanswered() > 0, "no kill met a request on its way");
    let last = node.take().unwrap_or_else(|| site.start());
    assert!(last.stop().success(), "SIGTERM ends with 0");
    site.audit();
}

const PATIENCE: Duration = Duration::from_secs(15);
/// How long a node may take to come by a point before it is told to stop; longer at the second try,
/// for a busy machine.
const UNDER_LOAD: [Duration; 2] = [Duration::from_millis(1_500), Duration::from_millis(7_500)];

/// Every place that the code marks is met by a running node under load, and survived.
#[test]
fn every_marked_crash_point_is_hit_and_survived() {
    let _turn = turn();
    let (_, listed, _) = run(onrush().arg("crash-points"));
    // A split and an archive are commands, killed in tests of their own. Only a node that leases
    // from Redis comes by the points of a lease (`stack_lease::crash`), only one whose journal ends
    // in rubbish by those of zeroing (`journal_crash`).
    let is_elsewhere = |line: &&str| {
        ["split-", "archive-", "lease-"].iter().any(|of| line.starts_with(of))
            || line.ends_with("-zeroing")
    };
    let is_ours = |line: &&str| !line.is_empty() && !is_elsewhere(line);
    let points: Vec<&str> = listed.lines().map(str::trim).filter(is_ours).collect();
    assert!(points.len() > 5, "the code lists its crash points: {listed:?}");
    let mut random = Random::new("crash points");
    let mut never_hit = Vec::new();
    let mut site = Site::new();
    site.set("snapshot.every_ms", "200");
    site.set("journal.keep_ms", "0");
    let node = site.start();
    node.import_members(1, MEMBERS, POINTS);
    node.open_sale(SALE, 3_600_000, ITEMS);
    node.kill();
    let mut book = Book::default();
    for (index, point) in points.iter().enumerate() {
        let mut is_hit = false;
        for (attempt, under_load) in UNDER_LOAD.into_iter().enumerate() {
            if is_hit {
                break;
            }
            site.set_env("ONRUSH_CRASH_AT", point);
            let mut node = site.launch();
            site.clear_env("ONRUSH_CRASH_AT");
            let mut begun = Vec::new();
            if node.wait_ready_or_end() {
                let tag = format!("p{index}-{attempt}");
                let load = burst(node.public, random.next(), &tag);
                if !node.ends_within(under_load) {
                    node.signal(rustix::process::Signal::TERM); // some points lie in the drain
                }
                is_hit = node.ends_within(PATIENCE);
                // Killed by the point itself: a drain that ends in good order has not come by it.
                is_hit &= node.exit_signal() == Some(9);
                drop(node);
                begun = load.finish();
            } else {
                is_hit = node.exit_signal() == Some(9);
            }
            site.audit();
            let node = site.start();
            book.reconcile(&node, begun, &mut random);
            book.compare(&node);
            node.kill();
        }
        if !is_hit {
            never_hit.push(*point);
        }
    }
    println!("{} crash points, {}", points.len(), book.summary());
    assert!(never_hit.is_empty(), "never hit: {never_hit:?}");
}
