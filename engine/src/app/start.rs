//! Building a node, part by part.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam::channel::{RecvTimeoutError, Sender, bounded};

use super::audit::LiveAudit;
use super::claims;
use super::figures::Figures;
use super::history::{self, HistoryParts};
use super::ship::{self, Shipping, writer_settings};
use super::stock::Stock;
use super::{Addresses, StartError};
use crate::clock::{Clock, NodeClock};
use crate::cluster::claims::Claim;
use crate::cluster::nodes::Cluster;
use crate::config::{Config, LogKind, StockKind, StoreKind};
use crate::http::door::{self, BoundDoor, Door, DoorParts};
use crate::http::history::History;
use crate::journal::JournalError;
use crate::journal::disk::RealDisk;
use crate::journal::files::DiskState;
use crate::journal::open::{self, Journal, JournalHandle, JournalOptions, Opened};
use crate::journal::snapshot;
use crate::kernel::control::ControlState;
use crate::kernel::state::{KernelLimits, ShardState};
use crate::persist::driver::Persist;
use crate::persist::embedded;
use crate::persist::lost_tail;
use crate::persist::status::PersistStatus;
use crate::persist::stores;
use crate::shard::catalog::CatalogView;
use crate::shard::completion::Completions;
use crate::shard::control::{self, ControlParts};
use crate::shard::core::{Core, NodeView, Stage};
use crate::shard::driver::{self, ShardParts};
use crate::shard::events::SaleEvents;
use crate::shard::gate::{Admission, Gate};
use crate::shard::inbox::Inboxes;
use crate::shard::port::PortShared;
use crate::shard::recover::{self, Recovered};
use crate::shard::resume;
use crate::shard::snapshotter::{self, SnapshotPolicy, SnapshotterParts};
use crate::ship::source::JournalFrames;
use crate::stock::gauges::{LeaseBoard, UnitGauges};
use crate::stock::line::StockLines;
use crate::units::{Incarnation, Seq};

/// A running node.
pub struct Node {
    pub(super) config: Config,
    pub(super) door: Door,
    pub(super) view: Arc<NodeView>,
    pub(super) core: Arc<Core>,
    pub(super) shards: Vec<JoinHandle<ShardState>>,
    pub(super) control: JoinHandle<ControlState>,
    pub(super) journal: Arc<JournalHandle<RealDisk>>,
    pub(super) incarnation: Incarnation,
    pub(super) persist: Option<Persist>,
    pub(super) status: Arc<PersistStatus>,
    pub(super) shipping: Option<Shipping>,
    pub(super) stop_snapshots: Sender<()>,
    pub(super) snapshots: JoinHandle<()>,
    pub(super) stop_housekeeping: Sender<()>,
    pub(super) housekeeping: JoinHandle<()>,
    pub(super) snapshot_disk: RealDisk,
}

impl Node {
    /// Starts a node and waits until it is ready.
    ///
    /// Errors: [`StartError`]; nothing runs any more then.
    pub fn start(config: Config, clock: &Arc<dyn Clock>) -> Result<Self, StartError> {
        if config.log.kind == LogKind::Kafka {
            ship::check_topics(&config.log.kafka)?;
        }
        // The other nodes: a map, and nothing known of them yet.
        let cluster = Arc::new(Cluster::new(config.cluster.map()?));
        let mut cluster_config = config.cluster.clone();
        cluster_config.secret = config.cluster.read_secret()?;

        // The door, first: a node that recovers says so.
        let view = Arc::new(NodeView::default());
        let figures = Arc::new(Figures::default());
        let data = prepare_data(&config)?;
        let audit: Arc<OnceLock<LiveAudit>> = Arc::default();
        let history: Arc<OnceLock<Arc<dyn History>>> = Arc::default();
        let door = BoundDoor::bind(config.http.clone())?.serve(DoorParts {
            cluster: Arc::clone(&cluster),
            cluster_config,
            view: Arc::clone(&view),
            clock: Arc::clone(clock),
            figures: Arc::clone(&figures) as _,
            audit: Arc::new({
                let audit = Arc::clone(&audit);
                move |with_kafka| match audit.get() {
                    Some(audit) => audit.run(with_kafka),
                    None => Err("not ready yet".into()),
                }
            }),
            history: Arc::clone(&history),
            spool: data.join("spool"),
        })?;
        let Addresses { public, admin, .. } = door.addresses();
        tracing::info!(%public, %admin, "listening; requests are taken once the node is ready");

        // The journal, and the state that it proves.
        let snapshot_disk = RealDisk::open(&open::snapshot_dir(&data), config.journal.direct)
            .map_err(|error| StartError::Data { path: data.display().to_string(), error })?;
        let opened = Journal::open(journal_options(&config, &data), Arc::clone(clock))?;
        let (journal, incarnation) = (opened.journal(), opened.incarnation());
        cluster.set_own_journal(journal);
        let opening = lost_tail::Opening { journal, next: incarnation, last: opened.last_seq() };
        lost_tail::check(&config.store, &data.join("db"), ship::layout(&config), opening)?;
        let recovered = recover::recover(&opened, &snapshot_disk, &view.readiness)?;
        report_recovery(&opened, &recovered);

        if cluster.node_count() > 1 && config.stock.kind == StockKind::Journal {
            tracing::warn!("stock.kind is \"journal\": a sale's units are at its home node alone");
        }
        if cluster.node_count() > 1 && config.store.kind == StoreKind::Sqlite {
            tracing::warn!(
                "store.kind is \"sqlite\": no other node sees which slots this one claims, and a \
                 pool that Redis loses stays shut; several nodes want store.kind = \"mysql\""
            );
        }

        // The slots, before anything is done with them.
        let now = opened.clock().now();
        let claim = claims::settle(&config, &data, &cluster, journal, &recovered, now)?;
        claims::watch(config.store.clone(), ship::layout(&config), &cluster)
            .map_err(|error| StartError::Io { what: "cannot start a thread", error })?;

        let node = Self::run(
            config,
            &cluster,
            claim.as_ref(),
            door,
            view,
            &figures,
            opened,
            recovered,
            snapshot_disk,
            &data,
        )?;
        let (reads, _) = history::start(HistoryParts {
            store: node.config.store.clone(),
            folder: data.join("db"),
            journal: node.journal.journal(),
            durable: Arc::clone(node.journal.durable()),
            status: Arc::clone(&node.status),
        })
        .map_err(|error| StartError::Io { what: "cannot start a thread", error })?;
        let _ = history.set(Arc::new(reads));
        let _ = audit.set(LiveAudit {
            name: format!("http://{}", node.addresses().admin),
            data,
            store: node.config.store.clone(),
            kafka: super::ship::kafka_of(&node.config),
            journal: node.journal.journal(),
            incarnation: node.incarnation,
            durable: Arc::clone(node.journal.durable()),
            gauge: Arc::clone(node.journal.gauge()),
            core: Arc::clone(&node.core),
            figures,
            running: Default::default(),
        });
        Ok(node)
    }

    #[expect(clippy::too_many_arguments, reason = "the second half of `start`")]
    fn run(
        config: Config,
        cluster: &Arc<Cluster>,
        claim: Option<&Claim>,
        door: Door,
        view: Arc<NodeView>,
        figures: &Arc<Figures>,
        opened: Opened<RealDisk>,
        recovered: Recovered,
        snapshot_disk: RealDisk,
        data: &Path,
    ) -> Result<Self, StartError> {
        let clock = Arc::clone(opened.clock());
        let (journal_id, incarnation) = (opened.journal(), opened.incarnation());
        let snapshot_covers = recovered.snapshot.map_or(Seq::NONE, |s| s.lowest_cut);

        // What threads share: queues, lines, the catalog.
        let gate = Arc::new(Gate::default());
        let inboxes = Arc::new(Inboxes::new(config.shards.count, config.shards.inbox));
        let ports: Arc<[PortShared]> = (0..door::port_count(&config.http))
            .map(|_| PortShared::new(config.http.in_flight_max))
            .collect();
        let stock = Arc::new(StockLines::default());
        let gauges = Arc::new(UnitGauges::new(config.shards.count));
        let events = Arc::new(SaleEvents::new(clock.now()));
        let catalog = Arc::new(CatalogView::default());
        let sales = resume::fill_catalog(&catalog, &recovered);
        resume::fill_stock(&stock, &recovered);
        let dropped = resume::dropped_sales(&recovered);
        let told = (opened.last_seq(), ship::teller(&recovered));
        let (control_handle, control_queue) = control::queue();
        let board = Arc::new(LeaseBoard::default());
        let Stock { authority, lease, stats } = super::stock::start(
            &config.stock,
            cluster,
            journal_id,
            &recovered.control,
            &control_handle,
        )?;

        // The journal's thread: frames, then completions.
        let completions = Completions::new(Arc::clone(&stock), Arc::clone(&ports));
        let producer_count = config.shards.count + 1;
        let (journal, mut producers) =
            opened.start(producer_count, completions, Box::new(|e| die_poisoned(&e)))?;
        let journal = Arc::new(journal);

        // Control, the single writer for sales and stock.
        let control_parts = ControlParts {
            state: recovered.control,
            queue: control_queue,
            producer: producers.pop().expect("one more than shards"),
            authority,
            lease,
            board: Arc::clone(&board),
            journal: journal_id,
            incarnation,
            inboxes: Arc::clone(&inboxes),
            catalog: Arc::clone(&catalog),
            stock: Arc::clone(&stock),
            gauges: Arc::clone(&gauges),
            events: Arc::clone(&events),
            clock: Arc::clone(&clock),
            key_retention_ms: config.limits.key_retention_ms,
            dropped,
        };

        // Shards, each with the slots dealt to it.
        let limits = KernelLimits { hold_allowance: config.limits.hold_allowance };
        let control_state = &control_parts.state;
        let count = config.shards.count;
        let states = resume::deal_slots(count, limits, journal_id, control_state, recovered.slots);
        let mut shards = Vec::new();
        for ((index, state), producer) in states.into_iter().enumerate().zip(producers) {
            // Ready means that the figures are there, too; the thread may begin a moment later.
            gauges.publish(index, state.item_counts());
            let parts = ShardParts {
                index,
                state,
                inboxes: Arc::clone(&inboxes),
                producer,
                ports: Arc::clone(&ports),
                stock: Arc::clone(&stock),
                gauges: Arc::clone(&gauges),
                sale_of: sales.clone(),
                clock: Arc::clone(&clock),
                batch: config.shards.batch,
            };
            shards.push(spawn(format!("shard-{index:02}"), move || driver::run(parts))?);
        }
        let control = spawn("control".into(), move || control::run(control_parts))?;

        // Persist: from the journal's files to the database shards; or to Kafka, and from there.
        let status = Arc::new(PersistStatus::new(ship::layout(&config)));
        let (next, last) = (incarnation, told.0);
        status.set_opening(lost_tail::Opening { journal: journal_id, next, last });
        let (mut persist, mut shipping) = (None, None);
        if config.log.kind == LogKind::Kafka {
            let home = ship::NodeHome {
                cluster: Arc::clone(cluster),
                stock: Arc::clone(&stock),
                is_shared: config.stock.kind == StockKind::Redis,
            };
            let parts = ship::ShipParts { data, journal: &journal, clock: &clock, incarnation };
            shipping = Some(ship::start(&config, &parts, told, home, &status)?);
        } else if config.persist.run {
            persist = Some(start_persist(&config, data, &journal, &clock, incarnation, &status)?);
        }

        // Snapshots, and what they and the database shards let go of.
        let taken_at =
            Arc::new(AtomicU64::new(recovered.snapshot.map_or(0, |s| s.header.stamp.node.get())));
        let covered_twice = snapshotter::covered_twice(&snapshot::kept(&snapshot_disk)?);
        journal.cover_by_snapshots(covered_twice);
        let snapshot_parts = SnapshotterParts {
            disk: snapshot_disk.clone(),
            journal: journal_id,
            incarnation,
            inboxes: Arc::clone(&inboxes),
            control: control_handle.clone(),
            clock: Arc::clone(&clock),
            durable: Arc::clone(journal.durable()),
            policy: SnapshotPolicy {
                every_ms: config.snapshot.every_ms,
                every_records: config.snapshot.every_records,
            },
            covered: snapshot_covers,
            covered_twice,
            is_pressed: Box::new({
                let gauge = Arc::clone(journal.gauge());
                move || gauge.state() != DiskState::Normal
            }),
            on_kept: Box::new({
                let journal = Arc::clone(&journal);
                move |kept| journal.cover_by_snapshots(snapshotter::covered_twice(kept))
            }),
            taken_at: Arc::clone(&taken_at),
        };
        let (stop_snapshots, snapshots_stopped) = bounded(1);
        let snapshots = spawn("snapshot".into(), move || {
            snapshotter::run(snapshot_parts, &snapshots_stopped);
        })?;

        // The door finds the core.
        let core = Arc::new(Core::new(
            catalog,
            stock,
            gate,
            inboxes,
            events,
            Arc::clone(&clock),
            control_handle,
            ports,
        ));
        figures.attach(&journal, config.journal.max_bytes, &status, &gauges, &taken_at, &clock);
        if let Some(shipping) = &shipping {
            figures.attach_ship(shipping.status());
        }
        figures.attach_leases(&board);
        if let Some(stats) = &stats {
            figures.attach_stock_redis(stats);
        }
        let (stop_housekeeping, housekeeping_stopped) = bounded::<()>(1);
        let watch = Housekeeping {
            core: Arc::clone(&core),
            journal: Arc::clone(&journal),
            status: Arc::clone(&status),
            told_through: shipping.as_ref().and_then(Shipping::told_through),
        };
        watch.look();
        if let Some(claim) = claim {
            claims::record(&core.control, claim)?;
        }
        let housekeeping = spawn("housekeeping".into(), move || {
            while housekeeping_stopped.recv_timeout(HOUSEKEEPING_EVERY)
                == Err(RecvTimeoutError::Timeout)
            {
                watch.look();
            }
        })?;
        assert!(view.core.set(Arc::clone(&core)).is_ok(), "a node starts once");
        view.readiness.enter(Stage::Ready, 0);
        let journal_name = format!("{:016x}", journal_id.get());
        tracing::info!(journal = journal_name, %incarnation, nodes = cluster.node_count(), "ready");
        Ok(Self {
            config,
            door,
            view,
            core,
            shards,
            control,
            journal,
            incarnation,
            persist,
            status,
            shipping,
            stop_snapshots,
            snapshots,
            stop_housekeeping,
            housekeeping,
            snapshot_disk,
        })
    }

    pub fn addresses(&self) -> Addresses {
        self.door.addresses()
    }
}

const HOUSEKEEPING_EVERY: Duration = Duration::from_millis(100);

/// Carries what one part knows to another that must hear of it.
struct Housekeeping {
    core: Arc<Core>,
    journal: Arc<JournalHandle<RealDisk>>,
    status: Arc<PersistStatus>,
    /// How far the events are told, where there are any.
    told_through: Option<Arc<dyn Fn() -> Seq + Send + Sync>>,
}

impl Housekeeping {
    fn look(&self) {
        let stored = self.status.persisted_through();
        let told = self.told_through.as_ref().map_or(stored, |through| through());
        self.journal.cover_by_store(stored.min(told));
        self.core.gate.set(match self.journal.disk_state() {
            DiskState::Normal => Admission::All,
            DiskState::SalesPaused => Admission::NoNewRedemptions,
            DiskState::WritesStopped => Admission::ReadsOnly,
        });
    }
}

fn prepare_data(config: &Config) -> Result<PathBuf, StartError> {
    let data = config.node.data.clone();
    let failed = |error| StartError::Data { path: data.display().to_string(), error };
    std::fs::create_dir_all(&data).map_err(failed)?;
    // Written and removed: a folder that only looks writable is found out here, not in the sale.
    let probe = data.join(".writable");
    std::fs::write(&probe, b"").and_then(|()| std::fs::remove_file(&probe)).map_err(failed)?;
    Ok(data)
}

fn journal_options(config: &Config, data: &Path) -> JournalOptions {
    let journal = &config.journal;
    JournalOptions {
        segment_bytes: journal.segment_bytes,
        direct: journal.direct,
        max_bytes: journal.max_bytes,
        pause_at_percent: journal.sales_pause_percent,
        stop_at_percent: STOP_AT_PERCENT.max(journal.sales_pause_percent),
        grace: Duration::from_millis(journal.keep_ms),
        downtime_max: Duration::from_millis(config.node.downtime_max_ms),
        ..JournalOptions::new(open::journal_dir(data))
    }
}

/// Writes stop here, so that what is accepted, and a snapshot, still fit.
const STOP_AT_PERCENT: u8 = 95;

fn report_recovery(opened: &Opened<RealDisk>, recovered: &Recovered) {
    for warning in &recovered.warnings {
        tracing::warn!(%warning, "recovered without it");
    }
    tracing::info!(
        seq = opened.last_seq().get(),
        snapshot = recovered.snapshot.map(|s| s.number),
        replayed = recovered.replayed_records,
        "recovered",
    );
}

fn start_persist(
    config: &Config,
    data: &Path,
    journal: &Arc<JournalHandle<RealDisk>>,
    clock: &Arc<NodeClock>,
    incarnation: Incarnation,
    status: &Arc<PersistStatus>,
) -> Result<Persist, StartError> {
    let settings = writer_settings(config);
    let journal_disk = RealDisk::open_read_only(&open::journal_dir(data))
        .map_err(|error| StartError::Data { path: data.display().to_string(), error })?;
    let stores = stores::open(&config.store, &data.join("db"), status.layout())?;
    let writers = embedded::over_journal(stores, settings, status, || {
        let (disk, id) = (journal_disk.clone(), journal.journal());
        let durable = Arc::clone(journal.durable());
        Ok(JournalFrames::new(disk, id, incarnation, durable, Arc::clone(clock)))
    })?;
    Persist::start(writers, Arc::clone(status), 1, clock.clock())
        .map_err(|error| StartError::Io { what: "cannot start a thread", error })
}

fn spawn<T: Send + 'static>(
    name: String,
    run: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>, StartError> {
    std::thread::Builder::new()
        .name(name)
        .spawn(run)
        .map_err(|error| StartError::Io { what: "cannot start a thread", error })
}

/// I7: after a failed write nothing is acknowledged any more, and recovery reads the disk.
fn die_poisoned(error: &JournalError) {
    tracing::error!(%error, "the journal cannot be written: the node ends, nothing is confirmed");
    eprintln!("onrush: {error}: the node ends; start it again once the disk is sound");
    std::process::exit(EXIT_POISONED);
}

/// The exit code of a node whose disk failed.
const EXIT_POISONED: i32 = 74;
