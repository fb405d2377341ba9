//! The Kafka side of a node, and the persist process: who ships, who watches, who consumes.

use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use crossbeam::channel::bounded;

use super::StartError;
use super::drain::Signals;
use super::persist_metrics;
use crate::clock::{Clock, NodeClock, RealClock};
use crate::cluster::nodes::Cluster;
use crate::config::{Config, KafkaConfig, LogKind, StoreKind};
use crate::journal::disk::RealDisk;
use crate::journal::open::{self, JournalHandle};
use crate::kernel::slot::ItemCounts;
use crate::persist::driver::Persist;
use crate::persist::lazy::{LazyStore, OpenStore};
use crate::persist::status::PersistStatus;
use crate::persist::stores;
use crate::persist::watch::Watch;
use crate::persist::writer::{ShardWriter, WriterSettings};
use crate::shard::recover::Recovered;
use crate::ship::kafka::driver::{self, Ship, ShipStatus};
use crate::ship::kafka::events::{Home, KnownItem, Teller};
use crate::ship::kafka::pump::{self, Pump};
use crate::ship::kafka::teller::{self, RestartPoint, Telling};
use crate::ship::kafka::topic::Topics;
use crate::ship::partition::Layout;
use crate::ship::source::JournalFrames;
use crate::stock::line::StockLines;
use crate::units::{Incarnation, ItemIndex, Seq};

/// How long a start waits for Kafka's word on its topics.
const CHECK_WITHIN: Duration = Duration::from_secs(3);
/// In the data folder: where telling events goes on.
const RESTART_POINT: &str = "events.json";
/// Answers of the database shards that wait for a busy shipper.
const STANDINGS_MAX: usize = 64;

/// The parts of a node that ships to Kafka.
pub(super) struct Shipping {
    ship: Ship,
    telling: Option<Telling>,
    watch: Watch,
    consumer: Option<Consuming>,
}

/// A member of the consumer group, and the writers that it feeds.
struct Consuming {
    pump: Pump,
    persist: Persist,
}

impl Shipping {
    pub fn status(&self) -> &Arc<ShipStatus> {
        self.ship.status()
    }

    /// How far the events are told; the journal keeps what is behind it.
    pub fn told_through(&self) -> Option<Arc<dyn Fn() -> Seq + Send + Sync>> {
        self.telling.as_ref().map(Telling::through)
    }

    /// Ships what is durable, up to the deadline; what is left is shipped after the next start.
    pub fn stop(self, durable: Seq, deadline: Duration) {
        if !self.ship.stop(deadline / 2) {
            tracing::warn!("not everything is in Kafka: the next start ships the rest");
        }
        if let Some(telling) = self.telling {
            telling.stop(durable, deadline / 2);
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
        let (pump, logs) = pump::start(&config.log.kafka, layout, Arc::clone(clock))?;
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
        is_shared: config.store.kind == StoreKind::Mysql && !config.cluster.nodes.is_empty(),
        ..WriterSettings::default()
    }
}

/// How the database shards are opened, by the settings.
pub(super) fn open_store(config: &Config) -> OpenStore {
    let (folder, layout) = (config.node.data.join("db"), layout(config));
    let store = config.store.clone();
    Arc::new(move |shard| stores::open_one(&store, &folder, shard, layout))
}

/// Kafka's settings, where it is the log.
pub(super) fn kafka_of(config: &Config) -> Option<KafkaConfig> {
    (config.log.kind == LogKind::Kafka).then(|| config.log.kafka.clone())
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

/// What the events thread must know of a recovered node, where it begins there: sales, items, and
/// how their units stand.
pub(super) fn teller(recovered: &Recovered) -> Teller {
    let items = recovered.control.items();
    let mut counts = vec![ItemCounts::default(); items.len()];
    for slot in recovered.slots.iter().flatten() {
        for (item, of_slot) in slot.item_counts() {
            counts[item.get() as usize].add(&of_slot);
        }
    }
    let mut teller = Teller::default();
    for sale in recovered.control.sales() {
        let first = sale.first_item.get() as usize;
        let definition = sale.sale.definition();
        let known = definition.items.iter().zip(first..).map(|(named, index)| KnownItem {
            sku: named.sku.clone(),
            total: items[index].total,
            taken: counts[index].sum(),
            held: counts[index].held,
        });
        teller.know_sale(&definition.id, sale.first_item, known.collect());
    }
    teller
}

/// What is shipped.
pub(super) struct ShipParts<'a> {
    pub data: &'a Path,
    pub journal: &'a JournalHandle<RealDisk>,
    pub clock: &'a Arc<NodeClock>,
    pub incarnation: Incarnation,
}

/// What the events thread asks of the node.
pub(super) struct NodeHome {
    pub cluster: Arc<Cluster>,
    pub stock: Arc<StockLines>,
    pub is_shared: bool,
}

impl Home for NodeHome {
    fn is_home(&self, sale: &str) -> bool {
        self.cluster.is_home(sale)
    }
    fn is_shared(&self) -> bool {
        self.is_shared
    }
    fn sold_out(&self, item: ItemIndex) -> Option<u64> {
        self.stock.sold_out_generation(item)
    }
}

/// Starts shipping a running journal, and consuming where this process persists too. `recovered`:
/// where the events begin that were never told before.
pub(super) fn start(
    config: &Config,
    parts: &ShipParts<'_>,
    recovered: (Seq, Teller),
    home: NodeHome,
    status: &Arc<PersistStatus>,
) -> Result<Shipping, StartError> {
    let &ShipParts { data, journal, clock, incarnation } = parts;
    let open_store = open_store(config);
    refuse_wrong_stores(&open_store, status)?;
    let (standings_in, standings) = bounded(STANDINGS_MAX);
    let disk = RealDisk::open_read_only(&open::journal_dir(data))
        .map_err(|error| StartError::Data { path: data.display().to_string(), error })?;
    let (id, durable) = (journal.journal(), Arc::clone(journal.durable()));
    let source = || {
        let (disk, durable) = (disk.clone(), Arc::clone(&durable));
        JournalFrames::new(disk, id, incarnation, durable, Arc::clone(clock))
    };
    let kafka = config.log.kafka.clone();
    let real = Arc::clone(clock.clock());
    let ship = driver::start(kafka, status.layout(), source(), standings, Arc::clone(&real))?;
    let stores = status.layout().shards().map(|s| LazyStore::new(s, Arc::clone(&open_store)));
    let watch = Watch::start(stores.collect(), id, Arc::clone(status), standings_in)
        .map_err(|error| StartError::Io { what: "cannot start a thread", error })?;
    let path = data.join(RESTART_POINT);
    let telling = if config.log.kafka.events_topic.is_empty() {
        // Switched on again, telling begins there, and not where it was switched off.
        let _ = std::fs::remove_file(&path);
        None
    } else {
        let (seq, teller) = recovered;
        let point = RestartPoint::read(&path, id).map_or_else(
            || {
                // Written before anything is sold: a crash must not lose the first events.
                let point = RestartPoint::new(id, seq, teller);
                point.write(&path).map(|()| point)
            },
            Ok,
        );
        let point =
            point.map_err(|error| StartError::Data { path: path.display().to_string(), error })?;
        let kafka = config.log.kafka.clone();
        Some(teller::start(kafka, source(), point, path, Box::new(home), Arc::clone(clock))?)
    };
    let consumer = if config.persist.run {
        Some(Consuming::start(config, &open_store, status, &real)?)
    } else {
        None
    };
    Ok(Shipping { ship, telling, watch, consumer })
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

/// Runs a persist process until a signal ends it. `metrics`: where to show how it goes.
///
/// Errors: [`StartError`], before anything is consumed.
pub fn persist(config: &Config, metrics: Option<SocketAddr>) -> Result<ExitCode, StartError> {
    if config.log.kind != LogKind::Kafka {
        return Err(StartError::PersistsItself);
    }
    let signals =
        Signals::catch().map_err(|error| StartError::Io { what: "cannot catch signals", error })?;
    check_topics(&config.log.kafka)?;
    let open_store = open_store(config);
    let status = Arc::new(PersistStatus::new(layout(config)));
    refuse_wrong_stores(&open_store, &status)?;
    if let Some(listen) = metrics {
        let bound = persist_metrics::serve(listen, Arc::clone(&status))
            .map_err(|error| StartError::Io { what: "cannot listen for metrics", error })?;
        println!("metrics:   http://{bound}/metrics");
    }
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
