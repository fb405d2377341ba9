//! The way from a journal in memory through a real Kafka topic to the writers under test.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crossbeam::channel::bounded;
use rdkafka::{Offset, TopicPartitionList};

use super::layout;
use super::stack_brokers::{admin_options, block_on, broker};
use crate::clock::{Clock, RealClock};
use crate::config::KafkaConfig;
use crate::persist::lazy::{LazyStore, OpenStore};
use crate::persist::lost_tail::Opening;
use crate::persist::sqlite::SqliteStore;
use crate::persist::status::PersistStatus;
use crate::persist::store::{Store, StoreReader};
use crate::persist::watch::Watch;
use crate::ship::frames::{FrameSource as _, JournalHead, MemoryFrames};
use crate::ship::kafka::driver::{self, Ship};
use crate::ship::kafka::pump::{self, Pump};
use crate::ship::kafka::topic::Topics;
use crate::ship::log::{Head, Log, LogBatch, LogError, LogOffset, Polled};
use crate::ship::partition::{DatabaseShard, Partition};
use crate::units::{JournalId, Seq};

/// Whichever log a test runs on.
pub struct AnyLog(Box<dyn Log>);

impl AnyLog {
    pub fn new<L: Log + 'static>(log: L) -> Self {
        Self(Box::new(log))
    }
}

impl Log for AnyLog {
    fn poll(&mut self, max_records: usize, batch: &mut LogBatch) -> Result<Polled, LogError> {
        self.0.poll(max_records, batch)
    }
    fn rewind(&mut self, journal: JournalId, partition: Partition, to: Seq) {
        self.0.rewind(journal, partition, to);
    }
    fn hold_back(&mut self, journal: JournalId, partition: Partition) {
        self.0.hold_back(journal, partition);
    }
    fn resume(&mut self, from: &[(Partition, Option<LogOffset>)]) {
        self.0.resume(from);
    }
    fn topic(&self) -> String {
        self.0.topic()
    }
    fn journal(&self) -> Option<JournalId> {
        self.0.journal()
    }
    fn head(&self) -> Head {
        self.0.head()
    }
}

/// A shipper on a topic of its own, and the consumers that were started.
pub struct Rig {
    config: KafkaConfig,
    folder: PathBuf,
    /// As the node knows how far its database shards are.
    status: Arc<PersistStatus>,
    ship: Option<Ship>,
    watch: Option<Watch>,
    pumps: Vec<Pump>,
}

impl Rig {
    /// Ships `frames`; the database shards are `SQLite` files in `folder`.
    pub fn start(frames: MemoryFrames, folder: &Path) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let config = KafkaConfig {
            bootstrap: broker().bootstrap().to_owned(),
            topic: format!("suite-{number}"),
            events_topic: String::new(),
            replication: 1,
            min_insync: 1,
            ..KafkaConfig::default()
        };
        Topics::connect(&config).unwrap().init().unwrap();
        let status = Arc::new(PersistStatus::new(layout()));
        let folder = folder.to_owned();
        let mut rig = Self { config, folder, status, ship: None, watch: None, pumps: Vec::new() };
        rig.serve(frames);
        rig
    }

    /// The node's part: ships, and asks how far the database shards are.
    fn serve(&mut self, frames: MemoryFrames) {
        let (standings_in, standings) = bounded(64);
        let journal = frames.head().journal;
        let clock: Arc<dyn Clock> = Arc::new(RealClock::new());
        let ship = driver::start(self.config.clone(), layout(), frames, standings, clock).unwrap();
        let folder = self.folder.clone();
        let open: OpenStore = Arc::new(move |shard| {
            Ok(Box::new(SqliteStore::open(&folder, shard, layout())?) as Box<dyn Store>)
        });
        let stores = layout().shards().map(|s| LazyStore::new(s, Arc::clone(&open))).collect();
        let status = Arc::clone(&self.status);
        self.watch = Some(Watch::start(stores, journal, status, standings_in).unwrap());
        self.ship = Some(ship);
    }

    /// The node ends, and one on another copy of its journal takes its place.
    pub fn reopen(&mut self, frames: &MemoryFrames) {
        self.end_node();
        self.status = Arc::new(PersistStatus::new(layout()));
        let JournalHead { journal, incarnation: next, seq: last, .. } = frames.head();
        self.status.set_opening(Opening { journal, next, last });
        self.serve(frames.clone());
    }

    /// Deletes everything that stands in the topic by now, as retention does.
    pub fn lose_all(&self) {
        let mut list = TopicPartitionList::new();
        for partition in Partition::all() {
            let (topic, raw) = (&self.config.topic, i32::from(partition.get()));
            list.add_partition_offset(topic, raw, Offset::End).unwrap();
        }
        let deleting = broker().admin().delete_records(&list, &admin_options());
        let deleted = block_on(deleting).unwrap();
        deleted.elements().iter().for_each(|e| e.error().unwrap());
    }

    /// How far the database shards are, as the node knows.
    pub fn status(&self) -> &Arc<PersistStatus> {
        &self.status
    }

    fn end_node(&mut self) {
        if let Some(watch) = self.watch.take() {
            watch.stop();
        }
        if let Some(ship) = self.ship.take() {
            ship.stop(Duration::ZERO);
        }
    }

    pub fn ship(&self) -> &Ship {
        self.ship.as_ref().expect("until it is dropped")
    }

    /// Consumers in a group of their own, beside those that were started before: so these are
    /// zombies, should somebody still ask them.
    pub fn join(&mut self) -> impl Iterator<Item = impl Log + use<>> + use<> {
        let group = format!("{}-{}", self.config.topic, self.pumps.len());
        let config = KafkaConfig { group, ..self.config.clone() };
        let clock = Arc::new(RealClock::new());
        let (pump, logs) = pump::start(&config, layout(), clock).unwrap();
        self.pumps.push(pump);
        logs.into_iter()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        for pump in self.pumps.drain(..) {
            pump.stop();
        }
        self.end_node();
    }
}

/// Whether a database shard has everything up to `head`, in every partition that it reads.
pub fn is_stored(reader: &dyn StoreReader, shard: DatabaseShard, head: Seq) -> bool {
    let mut stored = 0;
    reader
        .consistent(&mut |moment| {
            stored = moment.watermarks()?.iter().filter(|w| w.watermark.seq >= head).count();
            Ok(())
        })
        .unwrap();
    stored == layout().partitions(shard).count()
}
