//! The histories that the rules of "Ship and persist" were made from.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;

use super::*;
use crate::kernel::record::RecordHead;
use crate::ship::log::{Head, Log, LogBatch, LogError, LogRecord, Place, Polled};
use crate::ship::partition::Partition;
use crate::units::{JournalId, NodeTime};

fn a_restart_at_any_point_loses_and_doubles_nothing(on: On) {
    let mut bench = Bench::new(on, 11, 900);
    for steps in 0..12 {
        bench.restart(1 + steps * 7);
        for _ in 0..steps % 3 {
            bench.step_all();
        }
    }
    bench.restart(4096);
    bench.catch_up();
    bench.assert_complete();
}

fn a_zombie_that_applies_what_another_has_applied_rolls_back_and_reads_again(on: On) {
    let mut bench = Bench::new(on, 12, 600);
    let frames = bench.generator.frames.clone();
    let mut zombies = std::mem::take(&mut bench.writers);
    let zombie_status = bench.status.clone();
    bench.writers = bench.writers_on(&frames, 100);
    let retries = |s: &PersistStatus| -> u64 {
        s.shards().map(|(_, s)| s.retries.load(Ordering::Relaxed)).sum()
    };
    // They take turns, each believing to be alone. Through Kafka it takes a while until both read.
    let mut turn = 0;
    while turn < 40 || (on == On::Kafka && retries(&zombie_status) == 0 && turn < 3_000) {
        if on == On::Kafka {
            bench.generator.write(2);
        }
        bench.step_all();
        for zombie in &mut zombies {
            zombie.step(1_000_000 + turn * 10_000, true);
        }
        turn += 1;
    }
    bench.catch_up();
    bench.assert_complete();
    assert!(retries(&zombie_status) + retries(&bench.status) > 0);
    assert_eq!(bench.status.alarms(), [""; 0], "a watermark that went on is no alarm");
}

fn a_transaction_that_was_committed_but_reported_lost_is_not_applied_twice(on: On) {
    let mut bench = Bench::new(on, 13, 900);
    for round in 0..60 {
        let faults = &bench.faults[round % 4];
        let counter = if round % 3 == 0 { &faults.before } else { &faults.after };
        counter.store(1 + round as u32 % 2, Ordering::Relaxed);
        bench.generator.write(20);
        bench.step_all();
    }
    bench.catch_up();
    bench.assert_complete();
    // Through Kafka a round may find nothing to apply yet.
    assert!(bench.sum_of(|s| &s.retries) > if on == On::Kafka { 0 } else { 20 });
    assert_eq!(bench.status.alarms(), [""; 0]);
}

/// Copies a database shard as a backup does, with everything committed folded into the file.
fn copy(bench: &Bench, shard: DatabaseShard, to: &Path) {
    let from = super::super::sqlite::path_of(bench.path(), shard);
    std::fs::remove_file(to).ok();
    let connection = rusqlite::Connection::open(from).unwrap();
    connection.execute("VACUUM INTO ?1", [to.to_str().unwrap()]).unwrap();
}

#[test]
fn a_restored_backup_of_one_database_shard_is_filled_up_from_the_journal() {
    let mut bench = Bench::new(On::Sqlite, 14, 500);
    bench.step_all();
    let backup = bench.path().join("backup");
    copy(&bench, shard(1), &backup);
    bench.generator.write(500);
    bench.catch_up();
    bench.assert_complete();
    bench.writers.clear();
    let file = super::super::sqlite::path_of(bench.path(), shard(1));
    for ending in ["-wal", "-shm"] {
        std::fs::remove_file(format!("{}{ending}", file.display())).ok();
    }
    std::fs::copy(&backup, &file).unwrap();
    bench.restart(64);
    assert!(bench.status.persisted_through() < bench.writers[1].head_seq());
    bench.catch_up();
    bench.assert_complete();
}

#[test]
fn a_watermark_that_goes_back_under_a_running_writer_is_an_alarm_and_a_rewind() {
    let mut bench = Bench::new(On::Sqlite, 15, 500);
    bench.step_all();
    // A replica that lagged, made the primary.
    let replica = bench.path().join("replica");
    std::fs::create_dir(&replica).unwrap();
    let replica_file = super::super::sqlite::path_of(&replica, shard(2));
    copy(&bench, shard(2), &replica_file);
    bench.generator.write(500);
    bench.catch_up();
    bench.assert_complete();
    let other = SqliteStore::open(&replica, shard(2), layout()).unwrap();
    *bench.faults[2].swap.lock().unwrap() = Some(AnyStore::Sqlite(other));
    bench.generator.write(100);
    bench.catch_up();
    let alarms = bench.status.alarms();
    assert!(alarms[0].contains("database shard 2: the watermark was"), "{alarms:?}");
    assert!(bench.sum_of(|s| &s.rewinds) > 0);
    bench.writers.clear();
    let file = super::super::sqlite::path_of(bench.path(), shard(2));
    for ending in ["", "-wal", "-shm"] {
        std::fs::remove_file(format!("{}{ending}", file.display())).ok();
    }
    copy_file_of(&replica_file, &file);
    bench.assert_complete();
}

fn copy_file_of(from: &Path, to: &Path) {
    let connection = rusqlite::Connection::open(from).unwrap();
    connection.execute("VACUUM INTO ?1", [to.to_str().unwrap()]).unwrap();
}

fn a_journal_that_lost_its_tail_is_an_alarm_and_nothing_of_it_is_applied(on: On) {
    let mut bench = Bench::new(on, 16, 500);
    let end = bench.generator.frames.head_seq();
    bench.generator.write(300);
    bench.catch_up();
    let before = bench.dump();
    // The data folder as it was 300 records ago, opened again, writes other records there.
    let forked = bench.generator.frames.fork_at(end);
    let generator = Generator::new(99, 60);
    forked.append(crate::units::NodeTime::new(1), &generator.written);
    bench.writers.clear();
    if let Some(rig) = &mut bench.rig {
        rig.reopen(&forked);
    }
    bench.writers = bench.writers_on(&forked, 64);
    bench.step_until("an alarm for each database shard", |bench| {
        let alarms = bench.alarms();
        (0..SHARDS).all(|shard| {
            let named = format!("database shard {shard}: incarnation 2");
            alarms.iter().any(|alarm| alarm.contains(&named))
        })
    });
    // Also once it has outgrown what the other had written.
    for _ in 0..20 {
        forked.append(crate::units::NodeTime::new(1), &bench.generator.written[..40]);
        bench.step_all();
    }
    bench.dump().assert_is(&before);
}

fn records_that_the_journal_no_longer_has_hold_their_partitions_and_no_others(on: On) {
    const OTHERS: [u8; 3] = [0, 2, 3];
    let mut bench = Bench::new(on, 17, 400);
    let others_are_done = |bench: &Bench| OTHERS.iter().all(|raw| bench.has_all(shard(*raw)));
    let step_others = |bench: &mut Bench| {
        while !others_are_done(bench) {
            for raw in OTHERS {
                bench.step(usize::from(raw));
            }
            std::thread::sleep(std::time::Duration::from_millis(u64::from(on == On::Kafka)));
        }
    };
    step_others(&mut bench);
    // Database shard 1 was set up anew, and the journal begins later; the topic too.
    bench.generator.write(400);
    let end = bench.generator.frames.head_seq();
    if on == On::Kafka {
        step_others(&mut bench);
        bench.rig.as_ref().expect("over Kafka").lose_all();
    }
    bench.generator.frames.delete_below(Seq::new(end.get() - 390));
    bench.generator.write(50);
    bench.restart(64);
    let is_told = |bench: &Bench| match &bench.rig {
        Some(rig) => rig.ship().status().last_error().is_some_and(|e| e.contains("begins")),
        None => !bench.status.alarms().is_empty(),
    };
    bench.step_until("somebody is told", is_told);
    bench.step_until("the others have everything", others_are_done);
    for _ in 0..20 {
        bench.step_all();
    }
    assert_eq!(bench.known().shard_through(shard(1)), Seq::NONE, "nothing was skipped");
    if let Some(rig) = &bench.rig {
        let gone = &rig.ship().status().partitions_gone;
        assert!(gone.load(Ordering::Relaxed) > 0, "it stays told, though shipping goes on");
    }
    for alarm in bench.alarms() {
        assert!(alarm.starts_with("database shard 1: the watermark is 0"), "{alarm}");
    }
    let head = bench.generator.frames.head_seq();
    for other in OTHERS.map(shard) {
        bench.step_until("the node knows", |bench| bench.known().shard_through(other) == head);
    }
    assert_eq!(bench.known().persisted_through(), Seq::NONE, "so segments are kept");
}

#[test]
fn database_files_of_another_data_folder_are_refused() {
    let mut bench = Bench::new(On::Sqlite, 18, 100);
    bench.catch_up();
    bench.writers.clear();
    let other = MemoryFrames::new(JournalId::new(5));
    let status = Arc::new(PersistStatus::new(layout()));
    let opened =
        embedded::open(bench.path(), WriterSettings::default(), &status, || Ok(other.clone()));
    let error = opened.err().unwrap();
    let other = |e: &StoreError| matches!(e, StoreError::OtherJournal { .. });
    assert!(
        matches!(&error, embedded::OpenError::Store { source, .. } if other(source)),
        "{error}"
    );
}

/// A log between two processes that keeps some records back, however often it is read.
struct SiftedLog<L, F> {
    inner: L,
    passes: F,
}

impl<L: Log, F: FnMut(&LogRecord) -> bool + Send> Log for SiftedLog<L, F> {
    fn poll(&mut self, max_records: usize, batch: &mut LogBatch) -> Result<Polled, LogError> {
        let polled = self.inner.poll(max_records, batch)?;
        batch.records.retain(&mut self.passes);
        Ok(polled)
    }
    fn rewind(&mut self, journal: JournalId, partition: Partition, to: Seq) {
        self.inner.rewind(journal, partition, to);
    }
    fn resume(&mut self, from: &[(Partition, Option<LogOffset>)]) {
        self.inner.resume(from);
    }
    fn topic(&self) -> String {
        self.inner.topic()
    }
    fn journal(&self) -> Option<JournalId> {
        None
    }
    fn head(&self) -> Head {
        self.inner.head()
    }
}

/// Records are lost on the way, until they are asked for again.
fn losing_one_in(every: u64) -> impl FnMut(&LogRecord) -> bool + Send {
    let mut count = 0_u64;
    move |_| {
        count += 1;
        !count.is_multiple_of(every)
    }
}

fn a_record_lost_on_the_way_is_noticed_asked_for_and_applied_in_its_place(on: On) {
    let mut bench = Bench::new(on, 19, 600);
    bench.writers.clear();
    // Through Kafka each answer takes its time.
    let lose_every = if on == On::Kafka { 25 } else { 9 };
    let mut logs = bench.rig.as_mut().map(Rig::join);
    for shard in layout().shards() {
        let store: Box<dyn Store> = bench.databases.store(shard).boxed();
        let settings = WriterSettings { batch: 50, ..WriterSettings::default() };
        let status = bench.status.clone();
        if let Some(logs) = &mut logs {
            let inner = logs.next().expect("one for each");
            let log = SiftedLog { inner, passes: losing_one_in(lose_every) };
            let mut writer = ShardWriter::unread(store, settings, status, log);
            for now in 0..60_000 {
                if bench.has_all(shard) {
                    break;
                }
                writer.step(now * 10_000, true);
                std::thread::sleep(std::time::Duration::from_millis(2));
            }
            continue;
        }
        let from = layout().partitions(shard).map(|p| (p, Seq::NONE));
        let inner = JournalLog::new(bench.generator.frames.clone(), from);
        let log = SiftedLog { inner, passes: losing_one_in(lose_every) };
        let mut writer = ShardWriter::open(store, settings, status, |_, _| log).unwrap();
        for now in 0..3_000 {
            writer.step(now * 10_000, true);
        }
    }
    let expected = fold(&bench.generator.written, u64::from(SHARDS));
    bench.dump().assert_is(&expected);
    assert!(bench.sum_of(|s| &s.rewinds) > 10);
    for shard in layout().shards() {
        assert!(bench.figure(shard, "SELECT count(*) FROM rewinds") > 0);
        assert_eq!(bench.figure(shard, "SELECT count(*) FROM rewinds WHERE is_done = 0"), 0);
    }
}

fn records_that_a_zombie_stored_and_the_log_then_dropped_are_not_asked_for_for_ever(on: On) {
    let mut bench = Bench::new(on, 23, 600);
    let mut zombies = std::mem::take(&mut bench.writers);
    let first_kept = bench.generator.frames.head_seq().next();
    // The new owners read that nothing is stored yet, and then the zombies store.
    let owner = |shard: DatabaseShard| {
        let store: Box<dyn Store> = bench.databases.store(shard).boxed();
        let from = layout().partitions(shard).map(|p| (p, Seq::NONE));
        let inner = JournalLog::new(bench.generator.frames.clone(), from);
        // As Kafka does behind its retention.
        let passes = move |record: &LogRecord| record.seq >= first_kept;
        let log = SiftedLog { inner, passes };
        let settings = WriterSettings::default();
        ShardWriter::open(store, settings, bench.status.clone(), |_, _| log).unwrap()
    };
    let mut owners: Vec<_> = layout().shards().map(owner).collect();
    for turn in 0..100 {
        for zombie in &mut zombies {
            zombie.step(turn * 10_000, true);
        }
    }
    bench.generator.write(300);
    for turn in 0..100 {
        for owner in &mut owners {
            owner.step(turn * 10_000, true);
        }
    }
    bench.assert_complete();
    assert!(bench.sum_of(|s| &s.rewinds) > 0, "nothing was missing");
    assert_eq!(bench.status.alarms(), [""; 0]);
}

/// A log of messages by partition that stay where they are, as in Kafka: what is asked for again
/// comes behind everything that is there.
#[derive(Default)]
struct TopicLog {
    messages: BTreeMap<Partition, Vec<(LogRecord, Vec<u8>)>>,
    at: BTreeMap<Partition, usize>,
}

impl TopicLog {
    /// All that a database shard gets of a journal.
    fn of(frames: &MemoryFrames, shard: DatabaseShard) -> Self {
        let from = layout().partitions(shard).map(|p| (p, Seq::NONE));
        let mut inner = JournalLog::new(frames.clone(), from);
        let (mut log, mut batch) = (Self::default(), LogBatch::default());
        while !inner.poll(64, &mut batch).unwrap().caught_up || !batch.records.is_empty() {
            for record in &batch.records {
                let bytes = batch.bytes_of(record).to_vec();
                log.messages.entry(record.partition).or_default().push((record.clone(), bytes));
            }
        }
        log
    }
    fn again(&mut self, partition: Partition, behind: Seq, all: &Self) {
        let sent = all.messages[&partition].iter().filter(|(record, _)| record.seq > behind);
        self.messages.get_mut(&partition).unwrap().extend(sent.cloned());
    }
}

impl Log for Arc<Mutex<TopicLog>> {
    fn poll(&mut self, max_records: usize, batch: &mut LogBatch) -> Result<Polled, LogError> {
        batch.clear();
        let log = &mut *self.lock().unwrap();
        let each = (max_records / log.messages.len()).max(1);
        let mut caught_up = true;
        for (partition, messages) in &log.messages {
            let at = log.at.entry(*partition).or_default();
            for (record, bytes) in messages.iter().skip(*at).take(each) {
                *at += 1;
                let LogRecord { journal, incarnation, seq, node_time, .. } = *record;
                let place = Place { journal, incarnation, seq, node_time };
                let next = Some(LogOffset::new(i64::try_from(*at).unwrap()));
                batch.push_at(*partition, place, record.prev_seq, next, bytes);
            }
            caught_up &= *at == messages.len();
        }
        Ok(Polled { caught_up, must_reread: false })
    }
    fn rewind(&mut self, _: JournalId, _: Partition, _: Seq) {}
    fn resume(&mut self, from: &[(Partition, Option<LogOffset>)]) {
        let log = &mut *self.lock().unwrap();
        for (partition, offset) in from {
            log.at.insert(*partition, offset.map_or(0, |o| usize::try_from(o.get()).unwrap()));
        }
    }
    fn topic(&self) -> String {
        "topic".into()
    }
    fn journal(&self) -> Option<JournalId> {
        None
    }
    fn head(&self) -> Head {
        Head { seq: Seq::NONE, node_time: NodeTime::new(0) }
    }
}

fn a_record_that_comes_again_behind_a_long_backlog_is_come_to(on: On) {
    let mut bench = Bench::new(on, 24, 3_000);
    bench.writers.clear();
    for shard in layout().shards() {
        let all = TopicLog::of(&bench.generator.frames, shard);
        let mut topic = TopicLog { messages: all.messages.clone(), ..TopicLog::default() };
        // Lost on the way, at the beginning: the third record of each partition.
        topic.messages.values_mut().for_each(|messages| drop(messages.remove(2)));
        let topic = Arc::new(Mutex::new(topic));
        let mut requests = bench.databases.store(shard).boxed();
        let store: Box<dyn Store> = bench.databases.store(shard).boxed();
        let settings = WriterSettings { batch: 16, ..WriterSettings::default() };
        let mut writer =
            ShardWriter::unread(store, settings, bench.status.clone(), Arc::clone(&topic));
        let mut served = BTreeSet::new();
        let mut asked = 0;
        for turn in 0..1_000 {
            // Time enough to ask again.
            writer.step(turn * 10_000, true);
            for request in requests.rewinds().unwrap() {
                asked += 1;
                if served.insert((request.stream.partition, request.to)) {
                    topic.lock().unwrap().again(request.stream.partition, request.to, &all);
                }
            }
        }
        assert!(asked > 3 * served.len(), "the backlog was not long: {asked} {served:?}");
    }
    let expected = fold(&bench.generator.written, u64::from(SHARDS));
    bench.dump().assert_is(&expected);
    assert_eq!(bench.status.alarms(), [""; 0]);
}

fn an_idle_partition_lets_segments_go(on: On) {
    let mut bench = Bench::new(on, 20, 50);
    bench.catch_up();
    // One member alone goes on; the other partitions hear of it by marks.
    let (slot, record) = bench.generator.written.last().cloned().unwrap();
    let mut bytes = Vec::new();
    record.encode(slot, &mut bytes);
    assert!(RecordHead::peek(&bytes).is_ok());
    let head = bench.generator.frames.head_seq();
    bench.generator.write(1);
    assert!(bench.known().persisted_through() <= head);
    bench.catch_up();
    bench.step_until("the node knows", |b| b.known().persisted_through() == head.next());
}

fn a_producer_that_can_go_on_no_more_is_replaced_and_nothing_is_lost(on: On) {
    let mut bench = Bench::new(on, 19, 400);
    bench.catch_up();
    for round in 2..5 {
        bench.generator.write(500);
        bench.rig.as_ref().expect("over Kafka").ship().break_producer();
        bench.generator.write(500);
        bench.catch_up();
        let made = &bench.rig.as_ref().expect("over Kafka").ship().status().producers;
        assert_eq!(made.load(Ordering::Relaxed), round, "producers were made");
    }
    bench.assert_complete();
    assert_eq!(bench.status.alarms(), [""; 0]);
}

also_over_kafka! {
    a_producer_that_can_go_on_no_more_is_replaced_and_nothing_is_lost,
    a_restart_at_any_point_loses_and_doubles_nothing,
    a_zombie_that_applies_what_another_has_applied_rolls_back_and_reads_again,
    a_transaction_that_was_committed_but_reported_lost_is_not_applied_twice,
    a_journal_that_lost_its_tail_is_an_alarm_and_nothing_of_it_is_applied,
    records_that_the_journal_no_longer_has_hold_their_partitions_and_no_others,
    a_record_lost_on_the_way_is_noticed_asked_for_and_applied_in_its_place,
    an_idle_partition_lets_segments_go,
}

on_every_store! {
    a_restart_at_any_point_loses_and_doubles_nothing,
    a_zombie_that_applies_what_another_has_applied_rolls_back_and_reads_again,
    a_transaction_that_was_committed_but_reported_lost_is_not_applied_twice,
    a_journal_that_lost_its_tail_is_an_alarm_and_nothing_of_it_is_applied,
    records_that_the_journal_no_longer_has_hold_their_partitions_and_no_others,
    records_that_a_zombie_stored_and_the_log_then_dropped_are_not_asked_for_for_ever,
    a_record_lost_on_the_way_is_noticed_asked_for_and_applied_in_its_place,
    a_record_that_comes_again_behind_a_long_backlog_is_come_to,
    an_idle_partition_lets_segments_go,
}
