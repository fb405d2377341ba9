//! Records that cannot be applied because of what they say: held, never dropped.

use super::*;
use crate::kernel::record::{Credited, Opened, Record};
use crate::persist::testing::note;
use crate::persist::writer::Next;
use crate::units::{KeyHash, MemberId, NodeTime, Points, Slot};

const MINUTES: u64 = 10 * 60_000;

fn credit(member: u64, amount: u64, free_after: u64) -> (Slot, Record) {
    let member = MemberId::new(member);
    let record = Credited {
        member,
        amount: Points::new(amount),
        free_after: Points::new(free_after),
        held_after: Points::ZERO,
        key: KeyHash::default(),
        at: NodeTime::new(5),
        note: note(),
    };
    (Slot::of(member), record.into())
}

fn opened(member: u64, points: u64) -> (Slot, Record) {
    let member = MemberId::new(member);
    let record = Opened { member, points: Points::new(points), at: NodeTime::new(4) };
    (Slot::of(member), record.into())
}

/// The database shard of a member.
fn home_of(member: u64) -> DatabaseShard {
    layout().shard_of_slot(Slot::of(MemberId::new(member)))
}

/// Opens accounts and has them stored.
fn bench_with(on: On, members: &[u64]) -> Bench {
    let mut bench = Bench::new(on, 31, 0);
    let records: Vec<_> = members.iter().map(|m| opened(*m, 100)).collect();
    bench.generator.append(&records);
    bench.catch_up();
    bench
}

fn free_of(bench: &Bench, member: u64) -> i64 {
    let sql = format!("SELECT coalesce(sum(free), 0) FROM accounts WHERE member = {member}");
    bench.figure(home_of(member), &sql)
}

fn a_dead_letter_parks_its_member_alone_and_all_is_applied_in_order_once_repaired(on: On) {
    let members: Vec<u64> = (1000..1100).collect();
    let mut bench = bench_with(on, &members);
    let bad = 1042;
    // Somebody changed the balance by hand: the record no longer fits.
    bench.execute(home_of(bad), &format!("UPDATE accounts SET free = 95 WHERE member = {bad}"));
    let round = |by: u64| -> Vec<_> { members.iter().map(|m| credit(*m, 10, 100 + by)).collect() };
    for by in [10, 20, 30] {
        bench.generator.append(&round(by));
    }
    bench.catch_up();
    assert_eq!(free_of(&bench, bad), 95, "nothing of this member was applied");
    for member in members.iter().filter(|m| **m != bad) {
        assert_eq!(free_of(&bench, *member), 130, "member {member} goes on");
    }
    assert_eq!(bench.status.letters(), 3);
    let states = "SELECT group_concat(state) FROM dead_letters";
    assert_eq!(bench.databases.text(home_of(bad), states), "1,2,2");
    let alarms = bench.status.alarms();
    assert!(alarms.len() == 1 && alarms[0].contains("is a dead letter"), "{alarms:?}");

    // It stays parked over a restart, and a later record waits too.
    bench.restart(64);
    bench.generator.append(&[credit(bad, 10, 140)]);
    bench.catch_up();
    assert_eq!((bench.status.letters(), free_of(&bench, bad)), (4, 95));

    // The operator puts it right; the letters go in by themselves, in order.
    bench.execute(home_of(bad), &format!("UPDATE accounts SET free = 100 WHERE member = {bad}"));
    bench.now += MINUTES;
    bench.step_all();
    assert_eq!((bench.status.letters(), free_of(&bench, bad)), (0, 140));
    assert_eq!(bench.databases.text(home_of(bad), states), "3,3,3,3");
    bench.assert_complete();

    // And the member is free again.
    bench.generator.append(&[credit(bad, 10, 150)]);
    bench.catch_up();
    bench.assert_complete();
}

fn a_letter_that_fails_again_is_counted_and_still_holds_its_followers(on: On) {
    let mut bench = bench_with(on, &[7]);
    bench.generator.append(&[credit(7, 10, 999), credit(7, 10, 120)]);
    bench.catch_up();
    for _ in 0..3 {
        bench.now += MINUTES;
        bench.step_all();
    }
    assert_eq!((bench.status.letters(), free_of(&bench, 7)), (2, 100));
    let tries = bench.figure(home_of(7), "SELECT tries FROM dead_letters WHERE state = 1");
    assert!(tries >= 4, "{tries}");
    assert_eq!(bench.figure(home_of(7), "SELECT count(*) FROM dead_letters WHERE state = 2"), 1);
}

fn the_watermark_moves_with_the_letter_in_one_transaction(on: On) {
    let mut bench = bench_with(on, &[7]);
    bench.generator.append(&[credit(7, 10, 999)]);
    // Killed at each transaction on the way: the letter is stored once, with its watermark.
    for nth in 1..8 {
        let home = home_of(7).index();
        bench.faults[home].after.store(nth, Ordering::Relaxed);
        bench.step_all();
        if on == On::Kafka {
            let is_struck = |b: &Bench| b.faults[home].after.load(Ordering::Relaxed) == 0;
            bench.step_until("it is killed, or done", |b| is_struck(b) || b.is_done());
        }
        bench.restart(64);
    }
    bench.catch_up();
    assert_eq!(bench.figure(home_of(7), "SELECT count(*) FROM dead_letters"), 1);
    let head = bench.generator.frames.head_seq();
    bench.step_until("the node knows", |b| b.known().persisted_through() == head);
}

fn a_record_whose_fields_cannot_be_read_parks_its_slot(on: On) {
    let mut bench = bench_with(on, &[7, 8]);
    let (slot, record) = credit(7, 10, 110);
    let mut bytes = Vec::new();
    record.encode(slot, &mut bytes);
    // One byte more than the fields take.
    bytes.push(0);
    let length = bytes.len() as u32;
    bytes[4..8].copy_from_slice(&length.to_le_bytes());
    bench.generator.frames.append_encoded(NodeTime::new(6), 1, bytes);
    bench.generator.append(&[credit(7, 10, 120), credit(8, 10, 110)]);
    bench.catch_up();
    assert_eq!((free_of(&bench, 7), free_of(&bench, 8)), (100, 110));
    assert_eq!(bench.status.letters(), 2);
    let unnamed = "SELECT count(*) FROM dead_letters WHERE member IS NULL";
    assert_eq!(bench.figure(home_of(7), unnamed), 1);
}

fn a_record_of_a_newer_version_holds_its_database_shard_until_a_newer_program_comes(on: On) {
    let mut bench = bench_with(on, &[7]);
    let newer = home_of(7);
    let other = (8..1000).find(|m| home_of(*m) != newer).unwrap();
    bench.generator.append(&[opened(other, 100), credit(7, 10, 110)]);
    let (slot, record) = credit(7, 10, 120);
    let mut bytes = Vec::new();
    record.encode(slot, &mut bytes);
    bytes[0] = 99;
    bench.generator.frames.append_encoded(NodeTime::new(6), 1, bytes);
    bench.generator.append(&[credit(7, 10, 130), credit(other, 10, 110)]);
    let error = |b: &Bench| b.status.shard(newer).last_error().unwrap_or_default();
    bench.step_until("it is told", |b| error(b).contains("newer version"));
    bench.step_until("the other database shards go on", |b| free_of(b, other) == 110);
    // Once it is told again it stays told, and is tried more and more seldom. No time goes by, so
    // nothing is calm.
    let (mut pause, mut is_told) = (0, false);
    for _ in 0..bench.steps_max() {
        if let Next::AfterMs(ms) = bench.writers[newer.index()].step(bench.now, true) {
            pause = pause.max(ms);
        }
        let is_told_now = error(&bench).contains("newer version");
        assert!(is_told_now || !is_told, "{}", error(&bench));
        is_told = is_told_now;
        if pause > 1_000 {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(u64::from(on == On::Kafka)));
    }
    assert!(pause > 1_000, "{pause} ms");
    assert_eq!(free_of(&bench, 7), 110, "everything before it, nothing behind it");
    assert_eq!(bench.status.letters(), 0);
}

also_over_kafka! {
    a_dead_letter_parks_its_member_alone_and_all_is_applied_in_order_once_repaired,
    a_letter_that_fails_again_is_counted_and_still_holds_its_followers,
    the_watermark_moves_with_the_letter_in_one_transaction,
    a_record_whose_fields_cannot_be_read_parks_its_slot,
    a_record_of_a_newer_version_holds_its_database_shard_until_a_newer_program_comes,
}

on_every_store! {
    a_dead_letter_parks_its_member_alone_and_all_is_applied_in_order_once_repaired,
    a_letter_that_fails_again_is_counted_and_still_holds_its_followers,
    the_watermark_moves_with_the_letter_in_one_transaction,
    a_record_whose_fields_cannot_be_read_parks_its_slot,
    a_record_of_a_newer_version_holds_its_database_shard_until_a_newer_program_comes,
}
