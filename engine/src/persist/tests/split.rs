//! Partitions that move to another database shard: whatever dies on the way, no row is lost or
//! doubled, and nobody writes by an older map.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::stack_servers::{Flavour, shared};
use super::*;
use crate::crash::{self, CrashPoint};
use crate::persist::mysql::{Split, SplitError};
use crate::persist::store::{Offsets, WatermarkMove};
use crate::ship::gap::Watermark;
use crate::ship::holdings::Hold;
use crate::units::{Incarnation, JournalId, MemberId, NodeTime, Seq, Slot};

/// What moves, from database shard 0 to 3.
fn wanted() -> Vec<Partition> {
    (0..5).filter_map(Partition::new).collect()
}

fn partition_of(member: MemberId) -> Partition {
    Partition::of(Slot::of(member)).unwrap()
}

fn split<T>(
    bench: &Bench,
    run: impl FnOnce(&mut Split<'_>) -> Result<T, SplitError>,
) -> Result<T, SplitError> {
    let endpoints = layout().shards().map(|s| bench.databases.endpoint(s)).collect();
    run(&mut Split::new(endpoints, layout(), &mut |_, _, _, _| {})?)
}

/// Every row lies on the database shard that says it holds its partition.
fn assert_in_place(bench: &Bench) {
    for shard in layout().shards() {
        let reader = bench.databases.reader(shard);
        let read = reader.consistent(&mut |moment| {
            let map = moment.holdings()?;
            assert!(map.each().all(|(_, h)| h.hold == Hold::Held), "{map:?}");
            let holds = |member: MemberId| map.holds(partition_of(member));
            moment.each_account(&mut |a| assert!(holds(a.member)))?;
            moment.each_redemption(&mut |r| assert!(holds(r.member)))?;
            moment.each_entry(&mut |e| assert!(holds(e.member)))?;
            moment.each_admin_change(&mut |c| assert!(c.member.is_none_or(holds)))?;
            let held: Vec<_> = map.partitions().collect();
            let watermarks = moment.watermarks()?;
            assert!(watermarks.iter().all(|w| held.contains(&w.stream.partition)));
            assert_eq!(watermarks.len(), held.len());
            Ok(())
        });
        read.unwrap();
    }
}

fn a_split_that_dies_at_every_step_loses_and_doubles_nothing(flavour: Flavour) {
    let mut bench = Bench::with(Databases::on(shared(flavour), layout()), 91, 900);
    bench.catch_up();
    // A member of a moving partition has a dead letter, and others that wait behind it.
    let moving = |m: &u64| wanted().contains(&partition_of(MemberId::new(*m)));
    let bad = (1..=60).filter(|m| m % 10 != 0).find(moving).unwrap();
    let spoil = |by: i64| format!("UPDATE accounts SET free = free + {by} WHERE member = {bad}");
    bench.execute(shard(0), &spoil(1));
    for _ in 0..50 {
        bench.generator.write(40);
        bench.step_all();
        if bench.status.letters() > 1 {
            break;
        }
    }
    let mut deaths = 0;
    let points = || CrashPoint::ALL.iter().filter(|p| p.name().starts_with("split-"));
    for point in points() {
        crash::set_hook(move |met| assert_ne!(met, *point, "killed"));
        let run = || split(&bench, |s| s.run(shard(3), &wanted()));
        deaths += u32::from(catch_unwind(AssertUnwindSafe(run)).is_err());
        crash::clear_hook();
        bench.generator.write(60);
        (0..3).for_each(|_| bench.step_all());
    }
    assert_eq!(deaths as usize, points().count(), "it died at each of them");
    split(&bench, |s| s.run(shard(3), &wanted())).unwrap();
    bench.catch_up();
    assert!(bench.status.letters() > 1, "the letters came along");
    bench.execute(shard(3), &spoil(-1));
    while bench.status.letters() > 0 {
        bench.step_all();
    }
    bench.assert_complete();
    assert_in_place(&bench);
    assert_eq!(bench.status.alarms().iter().filter(|a| !a.contains("dead letter")).count(), 0);
    assert!(bench.status.persisted_through() >= bench.generator.frames.head_seq());
    // And back, with another start of the writers behind it.
    split(&bench, |s| s.run(shard(0), &wanted()[..2])).unwrap();
    bench.generator.write(100);
    bench.restart(64);
    bench.catch_up();
    bench.assert_complete();
    assert_in_place(&bench);
}

fn a_split_that_finds_a_difference_switches_nothing_and_can_be_taken_back(flavour: Flavour) {
    let mut bench = Bench::with(Databases::on(shared(flavour), layout()), 92, 900);
    bench.catch_up();
    crash::set_hook(|met| assert_ne!(met, CrashPoint::SplitAfterCopy, "killed"));
    let run = || split(&bench, |s| s.run(shard(3), &wanted()));
    assert!(catch_unwind(AssertUnwindSafe(run)).is_err());
    crash::clear_hook();
    let mut copied = None;
    bench
        .databases
        .reader(shard(3))
        .consistent(&mut |moment| {
            moment.each_account(&mut |a| {
                if wanted().contains(&partition_of(a.member)) {
                    copied = Some(a.member);
                }
            })
        })
        .unwrap();
    let spoil = format!("UPDATE accounts SET held = held + 1 WHERE member = {}", copied.unwrap());
    bench.execute(shard(3), &spoil);
    let error = run().unwrap_err();
    assert!(matches!(error, SplitError::Differs { table: "accounts", .. }), "{error}");
    split(&bench, |s| {
        s.abandon()?;
        Ok(())
    })
    .unwrap();
    bench.generator.write(200);
    bench.catch_up();
    bench.assert_complete();
    assert_in_place(&bench);
    assert_eq!(bench.figure(shard(3), "SELECT count(*) FROM arrivals"), 0);
    split(&bench, |s| s.run(shard(3), &wanted())).unwrap();
    bench.catch_up();
    bench.assert_complete();
}

/// A zombie's batch, made by the map as it was, reaches the database when the map has changed.
fn a_batch_that_was_made_by_an_older_map_rolls_back(flavour: Flavour) {
    let bench = Bench::with(Databases::on(shared(flavour), layout()), 93, 0);
    let mut store = bench.databases.store(shard(0));
    let store = store.store();
    let map = store.holdings().unwrap();
    let stream = Stream { journal: JournalId::new(5), partition: wanted()[0] };
    let next = Watermark { incarnation: Incarnation::new(1), since: Seq::new(1), seq: Seq::new(9) };
    let (expected, at) = (Watermark::default(), NodeTime::new(1));
    let moves = [WatermarkMove { stream, expected, next, at }];
    let batch = StoreBatch {
        map: map.version,
        moves: &moves,
        effects: &crate::persist::apply::Effects::default(),
        letters: &[],
        applied: &[],
        offsets: Offsets::default(),
    };
    bench.execute(shard(0), "UPDATE map_version SET version = version + 1");
    let error = store.apply(&batch).unwrap_err();
    assert!(matches!(error, StoreError::Map { .. }), "{error}");
    assert!(store.watermarks().unwrap().is_empty());
    let map = store.holdings().unwrap().version;
    store.apply(&StoreBatch { map, ..batch }).unwrap();
    assert_eq!(store.watermarks().unwrap().len(), 1);
}

/// Set back to before it gave partitions away, a database does not write them a second time.
fn a_database_restored_to_before_the_split_is_told_and_writes_nothing_twice(flavour: Flavour) {
    let mut bench = Bench::with(Databases::on(shared(flavour), layout()), 94, 600);
    bench.catch_up();
    let copy = bench.databases.back_up(shard(0));
    split(&bench, |s| s.run(shard(3), &wanted())).unwrap();
    bench.generator.write(200);
    bench.catch_up();
    bench.databases.restore(shard(0), &copy);
    bench.generator.write(200);
    for _ in 0..20 {
        bench.step_all();
    }
    let alarms = bench.status.alarms().join("\n");
    assert!(alarms.contains("restored to before"), "{alarms}");
    let rows = "SELECT count(*) FROM watermarks WHERE `partition` < 5 AND seq > 700";
    assert_eq!(bench.figure(shard(0), rows), 0, "it writes what it still holds alone");
    let error = split(&bench, |s| s.run(shard(3), &wanted())).unwrap_err();
    assert!(error.to_string().contains("both hold partition 0"), "{error}");
}

on_every_server!(
    a_split_that_dies_at_every_step_loses_and_doubles_nothing,
    a_split_that_finds_a_difference_switches_nothing_and_can_be_taken_back,
    a_batch_that_was_made_by_an_older_map_rolls_back,
    a_database_restored_to_before_the_split_is_told_and_writes_nothing_twice,
);
