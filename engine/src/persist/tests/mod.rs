//! Persist as a whole: random journals go through logs that lose, stores that fail and writers
//! that die, and the database shards must end with what a naive fold of the records gives.

mod backends;
mod backlog;
mod faults;
mod histories;
mod letters;
mod over_kafka;
mod running;
mod schema;
mod server_faults;
mod server_schema;
mod split;
#[path = "../../../tests/it/stack_brokers.rs"]
mod stack_brokers;
#[path = "../../../tests/it/stack_servers.rs"]
mod stack_servers;

use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use super::embedded;
use super::sqlite::SqliteStore;
use super::status::PersistStatus;
use super::store::{
    Letter, LetterId, RewindRequest, Store, StoreBatch, StoreError, Stream, WatermarkRow,
};
use super::testing::{Content, Generator, dump_into, fold};
use super::writer::{ShardWriter, WriterSettings};
use crate::ship::frames::MemoryFrames;
use crate::ship::holdings::Holdings;
use crate::ship::log::LogOffset;
use crate::ship::partition::{DatabaseShard, Layout, Partition};
use crate::ship::tail::JournalLog;
use crate::units::Seq;

const SHARDS: u8 = 4;

fn layout() -> Layout {
    Layout::new(SHARDS).unwrap()
}

fn shard(raw: u8) -> DatabaseShard {
    DatabaseShard::new(raw)
}

use backends::{AnyStore, Databases, On};

/// Runs tests on every store, each test on databases of its own. The real servers' have names that
/// begin with `stack_`.
macro_rules! on_every_store {
    ($($test:ident),* $(,)?) => {
        mod sqlite {
            $(#[test] fn $test() { super::$test(super::On::Sqlite); })*
        }
        mod stack_mysql {
            $(#[test] fn $test() { super::$test(super::On::MySql); })*
        }
        mod stack_mariadb {
            $(#[test] fn $test() { super::$test(super::On::MariaDb); })*
        }
    };
}
use on_every_store;

/// Runs tests once more, with a real Kafka topic as the log.
macro_rules! also_over_kafka {
    ($($test:ident),* $(,)?) => {
        mod stack_kafka {
            $(#[test] fn $test() { super::$test(super::On::Kafka); })*
        }
    };
}
use also_over_kafka;
use over_kafka::{AnyLog, Rig};

/// The same, for tests that are about the real servers.
macro_rules! on_every_server {
    ($($test:ident),* $(,)?) => {
        mod stack_mysql {
            $(#[test] fn $test() { super::$test(super::Flavour::MySql); })*
        }
        mod stack_mariadb {
            $(#[test] fn $test() { super::$test(super::Flavour::MariaDb); })*
        }
    };
}
use on_every_server;

/// When a transaction is to fail: counts down to each.
#[derive(Default)]
struct Faults {
    /// Fails before it begins.
    before: AtomicU32,
    /// Fails after it was committed: the caller does not learn that it was.
    after: AtomicU32,
    /// Takes this store's place at the next call.
    swap: Mutex<Option<AnyStore>>,
}

impl Faults {
    fn strikes(counter: &AtomicU32) -> bool {
        let left = counter.load(Ordering::Relaxed);
        if left > 0 {
            counter.store(left - 1, Ordering::Relaxed);
        }
        left == 1
    }
}

/// A store that fails on demand.
struct FaultyStore {
    inner: AnyStore,
    faults: Arc<Faults>,
}

impl FaultyStore {
    fn inner(&mut self) -> &mut dyn Store {
        if let Some(other) = self.faults.swap.lock().unwrap().take() {
            self.inner = other;
        }
        self.inner.store()
    }
}

fn lost(text: &str) -> StoreError {
    StoreError::Unavailable(std::io::Error::other(text).into())
}

impl Store for FaultyStore {
    fn shard(&self) -> DatabaseShard {
        self.inner.shard()
    }
    fn holdings(&mut self) -> Result<Holdings, StoreError> {
        self.inner().holdings()
    }
    fn watermarks(&mut self) -> Result<Vec<WatermarkRow>, StoreError> {
        self.inner().watermarks()
    }
    fn apply(&mut self, batch: &StoreBatch<'_>) -> Result<(), StoreError> {
        if Faults::strikes(&self.faults.before) {
            return Err(lost("the connection broke before the transaction"));
        }
        self.inner().apply(batch)?;
        if Faults::strikes(&self.faults.after) {
            return Err(lost("the connection broke after the commit"));
        }
        Ok(())
    }
    fn ask_rewind(&mut self, stream: Stream, to: Seq, reason: &str) -> Result<(), StoreError> {
        self.inner().ask_rewind(stream, to, reason)
    }
    fn rewinds(&mut self) -> Result<Vec<RewindRequest>, StoreError> {
        self.inner().rewinds()
    }
    fn offsets(&mut self, topic: &str) -> Result<Vec<(Partition, LogOffset)>, StoreError> {
        self.inner().offsets(topic)
    }
    fn letters(
        &mut self,
        after: LetterId,
        limit: u32,
    ) -> Result<Vec<(LetterId, Letter)>, StoreError> {
        self.inner().letters(after, limit)
    }
    fn letter_failed(&mut self, id: LetterId, reason: &str) -> Result<(), StoreError> {
        self.inner().letter_failed(id, reason)
    }
}

type Writer = ShardWriter<AnyLog, FaultyStore>;

/// A data folder, its journal, and the writers that are running.
struct Bench {
    databases: Databases,
    generator: Generator,
    status: Arc<PersistStatus>,
    faults: Vec<Arc<Faults>>,
    writers: Vec<Writer>,
    now: u64,
    /// The way through Kafka, where that is the log. Dropped last.
    rig: Option<Rig>,
}

impl Bench {
    fn new(on: On, seed: u64, records: usize) -> Self {
        let mut bench = Self::unstarted(Databases::new(on, layout()), seed, records);
        if on == On::Kafka {
            layout().shards().for_each(|shard| drop(bench.databases.store(shard)));
            bench.rig = Some(Rig::start(bench.generator.frames.clone(), bench.path()));
        }
        bench.restart(64);
        bench
    }
    fn with(databases: Databases, seed: u64, records: usize) -> Self {
        let mut bench = Self::unstarted(databases, seed, records);
        bench.restart(64);
        bench
    }
    fn unstarted(databases: Databases, seed: u64, records: usize) -> Self {
        let mut generator = Generator::new(seed, 60);
        generator.write(records);
        Self {
            databases,
            generator,
            status: Arc::new(PersistStatus::new(layout())),
            faults: Vec::new(),
            writers: Vec::new(),
            now: 0,
            rig: None,
        }
    }
    fn path(&self) -> &Path {
        self.databases.folder()
    }
    fn writers_on(&mut self, frames: &MemoryFrames, batch: usize) -> Vec<Writer> {
        self.status = Arc::new(PersistStatus::new(layout()));
        self.faults = (0..SHARDS).map(|_| Arc::default()).collect();
        let mut logs = self.rig.as_mut().map(Rig::join);
        let writer = |shard: DatabaseShard| {
            let inner = self.databases.store(shard);
            let store = FaultyStore { inner, faults: self.faults[shard.index()].clone() };
            let settings = WriterSettings { batch, ..WriterSettings::default() };
            if let Some(logs) = &mut logs {
                let log = AnyLog::new(logs.next().expect("one for each"));
                return ShardWriter::unread(store, settings, self.status.clone(), log);
            }
            let wrap = AnyLog::new::<JournalLog<MemoryFrames>>;
            embedded::writer_of(store, frames.clone(), settings, &self.status, wrap).unwrap()
        };
        layout().shards().map(writer).collect()
    }
    /// Drops the writers as a kill would, and opens others.
    fn restart(&mut self, batch: usize) {
        self.writers.clear();
        self.writers = self.writers_on(&self.generator.frames.clone(), batch);
    }
    fn step(&mut self, index: usize) {
        // Far enough apart that a pause after a failure is over.
        self.now += 10_000;
        self.writers[index].step(self.now, true);
    }
    fn step_all(&mut self) {
        if self.rig.is_some() {
            // What was written is on its way.
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        for index in 0..self.writers.len() {
            self.step(index);
        }
    }
    fn is_done(&self) -> bool {
        layout().shards().all(|shard| self.has_all(shard))
    }
    /// Whether a database shard has everything, but for what an alarm holds.
    fn has_all(&self, shard: DatabaseShard) -> bool {
        if self.rig.is_some() {
            let head = self.generator.frames.head_seq();
            return over_kafka::is_stored(&*self.databases.reader(shard), shard, head);
        }
        let writer = &self.writers[shard.index()];
        writer.has_stored(writer.head_seq())
    }
    /// How far the database shards are, as the node knows.
    fn known(&self) -> &Arc<PersistStatus> {
        self.rig.as_ref().map_or(&self.status, Rig::status)
    }
    /// What a person is told, by the node and by the writers.
    fn alarms(&self) -> Vec<String> {
        let of_node = self.rig.iter().flat_map(|rig| rig.status().alarms());
        self.status.alarms().into_iter().chain(of_node).collect()
    }
    /// Steps until it is so. Through Kafka that takes its time.
    fn step_until(&mut self, what: &str, mut holds: impl FnMut(&Self) -> bool) {
        for _ in 0..self.steps_max() {
            if holds(self) {
                return;
            }
            self.step_all();
        }
        panic!("never so: {what}");
    }
    fn steps_max(&self) -> u32 {
        // Behind Kafka a step takes 10 ms, and a busy machine its time.
        if self.rig.is_some() { 60_000 } else { 10_000 }
    }
    fn catch_up(&mut self) {
        for _ in 0..self.steps_max() {
            if self.is_done() {
                return;
            }
            self.step_all();
        }
        panic!("never caught up: {:?}", self.status.shard(shard(0)).last_error());
    }
    /// The database shards hold exactly what the journal says.
    fn assert_complete(&self) {
        let expected = fold(&self.generator.written, u64::from(SHARDS));
        self.dump().assert_is(&expected);
        assert_eq!(self.status.letters(), 0);
    }
    fn sum_of(
        &self,
        figure: impl Fn(&super::status::ShardStatus) -> &std::sync::atomic::AtomicU64,
    ) -> u64 {
        self.status.shards().map(|(_, s)| figure(s).load(Ordering::Relaxed)).sum()
    }
    /// What all database shards hold, added up.
    fn dump(&self) -> Content {
        let mut content = Content::default();
        for shard in layout().shards() {
            dump_into(&*self.databases.reader(shard), &mut content);
        }
        content
    }
    /// Runs SQL on one database shard, as an operator would.
    fn execute(&self, shard: DatabaseShard, sql: &str) {
        self.databases.execute(shard, sql);
    }
    fn figure(&self, shard: DatabaseShard, sql: &str) -> i64 {
        self.databases.figure(shard, sql)
    }
}
