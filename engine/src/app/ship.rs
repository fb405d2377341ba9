//! The Kafka side of a node, and the persist process: who ships, who watches, who consumes.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use crossbeam::channel::bounded;

use super::StartError;
use super::drain::Signals;
use crate::clock::{Clock, NodeClock, RealClock};
use crate::config::{Config, KafkaConfig, LogKind};
use crate::journal::disk::RealDisk;
use crate::journal::open::{self, JournalHandle};
use crate::persist::driver::Persist;
use crate::persist::lazy::{LazyStore, OpenStore};
use crate::persist::status::PersistStatus;
use crate::persist::stores;
use crate::persist::watch::Watch;
use crate::persist::writer::{ShardWriter, WriterSettings};
use crate::ship::kafka::driver::{self, Ship};
use crate::ship::kafka::pump::{self, Pump};
use crate::ship::kafka::topic::Topics;
use crate::ship::partition::Layout;
use crate::ship::source::JournalFrames;
use crate::units::Incarnation;

/// How long a start waits for Kafka's word on its topics.
const CHECK_WITHIN: Duration = Duration::from_secs(3);
/// Answers of the database shards that wait for a busy shipper.
const STANDINGS_MAX: usize = 64;

/// The parts of a node that ships to Kafka.
pub(super) struct Shipping {
    ship: Ship,
    watch: Watch,
    consumer: Option<Consuming>,
}

/// A member of the consumer group, and the writers that it feeds.
struct Consuming {
    pump: Pump,
    persist: Persist,
}

impl Shipping {
    /// Ships what is durable, up to the deadline; what is left is shipped after the next start.
    pub fn stop(self, deadline: Duration) {
        if !self.ship.stop(deadline) {
            tracing::warn!("not everything is in Kafka: the next start ships the rest");
        }
        self.watch.stop();
        if let Some(consumer) = self.consumer {
            consumer.stop();
        }
    }
}

impl Consuming {
    fn start(
        config: &Config,
        open_store: &OpenStore,
        status: &Arc<PersistStatus>,
        clock: &Arc<dyn Clock>,
    ) -> Result<Self, StartError> {
        let layout = status.layout();
        let (pump, logs) = pump::start(&config.log.kafka, layout)?;
        let settings = writer_settings(config);
        let writers: Vec<_> = layout
            .shards()
            .zip(logs)
            .map(|(shard, log)| {
                let store = LazyStore::new(shard, Arc::clone(open_store));
                ShardWriter::unread(store, settings, Arc::clone(status), log)
            })
            .collect();
        // One thread each: a database that is slow or away holds up nobody else.
        let threads = writers.len();
        let persist = Persist::start(writers, Arc::clone(status), threads, clock)
            .map_err(|error| StartError::Io { what: "cannot start a thread", error })?;
        Ok(Self { pump, persist })
    }

    fn stop(self) {
        // What is in Kafka is not lost: nothing waits for it here.
        self.persist.stop(None);
        self.pump.stop();
    }
}

/// How the writers batch, by the settings.
pub(super) fn writer_settings(config: &Config) -> WriterSettings {
    WriterSettings {
        batch: config.persist.batch,
        linger_ms: config.persist.linger_ms,
        ..WriterSettings::default()
    }
}

/// How the database shards are opened, by the settings.
pub(super) fn open_store(config: &Config) -> OpenStore {
    let (folder, layout) = (config.node.data.join("db"), layout(config));
    let store = config.store.clone();
    Arc::new(move |shard| stores::open_one(&store, &folder, shard, layout))
}

pub(super) fn layout(config: &Config) -> Layout {
    Layout::new(config.database_count()).expect("checked with the settings")
}

/// Looks at the topics before anything else starts.
///
/// Errors: topics that are not as the settings say, a cluster that turns us away. One that does not
/// answer holds up no sale: the shipper goes on asking.
pub(super) fn check_topics(config: &KafkaConfig) -> Result<(), StartError> {
    match Topics::connect(config)?.within(CHECK_WITHIN).check() {
        Err(error) if error.is_transient() => {
            tracing::warn!(%error, "starting without Kafka");
            Ok(())
        }
        result => Ok(result?),
    }
}

/// Starts shipping a running journal, and consuming where this process persists too.
pub(super) fn start(
    config: &Config,
    data: &Path,
    journal: &JournalHandle<RealDisk>,
    clock: &Arc<NodeClock>,
    incarnation: Incarnation,
    status: &Arc<PersistStatus>,
) -> Result<Shipping, StartError> {
    let open_store = open_store(config);
    refuse_wrong_stores(&open_store, status)?;
    let (standings_in, standings) = bounded(STANDINGS_MAX);
    let disk = RealDisk::open_read_only(&open::journal_dir(data))
        .map_err(|error| StartError::Data { path: data.display().to_string(), error })?;
    let (id, durable) = (journal.journal(), Arc::clone(journal.durable()));
    let source = JournalFrames::new(disk, id, incarnation, durable, Arc::clone(clock));
    let kafka = config.log.kafka.clone();
    let real = Arc::clone(clock.clock());
    let ship = driver::start(kafka, status.layout(), source, standings, Arc::clone(&real))?;
    let stores = status.layout().shards().map(|s| LazyStore::new(s, Arc::clone(&open_store)));
    let watch = Watch::start(stores.collect(), id, Arc::clone(status), standings_in)
        .map_err(|error| StartError::Io { what: "cannot start a thread", error })?;
    let consumer = if config.persist.run {
        Some(Consuming::start(config, &open_store, status, &real)?)
    } else {
        None
    };
    Ok(Shipping { ship, watch, consumer })
}

/// A database that is down is waited for; one that is another's is refused at once.
fn refuse_wrong_stores(open_store: &OpenStore, status: &PersistStatus) -> Result<(), StartError> {
    for shard in status.layout().shards() {
        match open_store(shard) {
            Err(source) if !source.is_transient() => {
                return Err(crate::persist::embedded::OpenError::Store { shard, source }.into());
            }
            _ => {}
        }
    }
    Ok(())
}

/// Runs a persist process until a signal ends it.
///
/// Errors: [`StartError`], before anything is consumed.
pub fn persist(config: &Config) -> Result<ExitCode, StartError> {
    if config.log.kind != LogKind::Kafka {
        return Err(StartError::PersistsItself);
    }
    let signals =
        Signals::catch().map_err(|error| StartError::Io { what: "cannot catch signals", error })?;
    check_topics(&config.log.kafka)?;
    let open_store = open_store(config);
    let status = Arc::new(PersistStatus::new(layout(config)));
    refuse_wrong_stores(&open_store, &status)?;
    let clock: Arc<dyn Clock> = Arc::new(RealClock::new());
    let consumer = Consuming::start(config, &open_store, &status, &clock)?;
    println!(
        "persist:   group {} on topic {}, {} database shards",
        config.log.kafka.group,
        config.log.kafka.topic,
        status.layout().count()
    );
    signals.wait();
    consumer.stop();
    tracing::info!("ended");
    Ok(ExitCode::SUCCESS)
}
