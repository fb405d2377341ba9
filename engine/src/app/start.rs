//! The steps of a start, in the order in which `app.rs` takes them.

use std::collections::HashSet;
use std::path::Path;
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
use crate::config::{Config, StockKind, StoreKind};
use crate::http::door::{self, BoundDoor, Door, DoorParts};
use crate::http::history::History;
use crate::journal::JournalError;
use crate::journal::disk::RealDisk;
use crate::journal::files::DiskState;
use crate::journal::open::{self, Journal, JournalHandle, JournalOptions, Opened};
use crate::journal::ring::Producer;
use crate::journal::snapshot::{self, SnapshotInfo};
use crate::kernel::control::ControlState;
use crate::kernel::slots::States;
use crate::kernel::state::{KernelLimits, ShardState};
use crate::persist::driver::Persist;
use crate::persist::embedded;
use crate::persist::lost_tail;
use crate::persist::status::PersistStatus;
use crate::persist::stores;
use crate::shard::catalog::{CatalogView, SaleEntry};
use crate::shard::completion::{Completion, Completions};
use crate::shard::control::{self, ControlParts, ControlQueue};
use crate::shard::core::{Core, NodeView};
use crate::shard::driver::{self, ShardParts};
use crate::shard::events::SaleEvents;
use crate::shard::gate::{Admission, Gate};
use crate::shard::inbox::Inboxes;
use crate::shard::port::PortShared;
use crate::shard::recover::{self, Recovered};
use crate::shard::resume;
use crate::shard::snapshotter::{self, SnapshotPolicy, SnapshotterParts};
use crate::ship::kafka::events::Teller;
use crate::ship::source::JournalFrames;
use crate::stock::gauges::{LeaseBoard, UnitGauges};
use crate::stock::line::StockLines;
use crate::stock::redis::stats::RedisStats;
use crate::units::{Incarnation, JournalId, SaleIndex, Seq};

/// What every step goes by.
pub(super) struct Plan<'a> {
    pub config: &'a Config,
    pub cluster: &'a Arc<Cluster>,
    pub clock: &'a Arc<dyn Clock>,
}

impl Plan<'_> {
    fn data(&self) -> &Path {
        &self.config.node.data
    }
}

/// A running journal, and a ring for each thread that writes records.
type RunningJournal = (Arc<JournalHandle<RealDisk>>, Vec<Producer<Completion>>);

/// What the door looks through before there is anything behind it.
pub(super) struct Seams {
    pub view: Arc<NodeView>,
    figures: Arc<Figures>,
    audit: Arc<OnceLock<LiveAudit>>,
    history: Arc<OnceLock<Arc<dyn History>>>,
}

/// Binds the listeners and serves what can be served without a core.
pub(super) fn open_door(plan: &Plan<'_>) -> Result<(Door, Seams), StartError> {
    let mut cluster_config = plan.config.cluster.clone();
    cluster_config.secret = plan.config.cluster.read_secret()?;
    prepare_data(plan.data())?;
    let (view, figures) = (Arc::new(NodeView::default()), Arc::new(Figures::default()));
    let audit: Arc<OnceLock<LiveAudit>> = Arc::default();
    let history: Arc<OnceLock<Arc<dyn History>>> = Arc::default();
    let door = BoundDoor::bind(plan.config.http.clone())?.serve(DoorParts {
        cluster: Arc::clone(plan.cluster),
        cluster_config,
        view: Arc::clone(&view),
        clock: Arc::clone(plan.clock),
        figures: Arc::clone(&figures) as _,
        audit: Arc::new({
            let audit = Arc::clone(&audit);
            move |with_kafka| match audit.get() {
                Some(audit) => audit.run(with_kafka),
                None => Err("not ready yet".into()),
            }
        }),
        history: Arc::clone(&history),
        spool: plan.data().join("spool"),
    })?;
    let Addresses { public, admin, .. } = door.addresses();
    tracing::info!(%public, %admin, "listening; requests are taken once the node is ready");
    Ok((door, Seams { view, figures, audit, history }))
}

/// What the data folder proves.
pub(super) struct Proven {
    pub opened: Opened<RealDisk>,
    pub recovered: Recovered,
    pub snapshot_disk: RealDisk,
    /// Of slots, where it is to be recorded still.
    pub claim: Option<Claim>,
}

/// Opens the journal, holds it against the database shards and the claims, and replays it.
pub(super) fn prove(plan: &Plan<'_>, view: &NodeView) -> Result<Proven, StartError> {
    let &Plan { config, cluster, clock } = plan;
    let data = plan.data();
    let snapshot_disk = RealDisk::open(&open::snapshot_dir(data), config.journal.direct)
        .map_err(|error| StartError::Data { path: data.display().to_string(), error })?;
    let opened = Journal::open(journal_options(config, data), Arc::clone(clock))?;
    let (journal, incarnation) = (opened.journal(), opened.incarnation());
    cluster.set_own_journal(journal);
    let opening = lost_tail::Opening { journal, next: incarnation, last: opened.last_seq() };
    lost_tail::check(&config.store, &data.join("db"), ship::layout(config), opening)?;
    let recovered = recover::recover(&opened, &snapshot_disk, &view.readiness)?;
    report_recovery(&opened, &recovered);
    warn_of_parts_that_do_not_share(plan);

    // The slots, before anything is done with them.
    let now = opened.clock().now();
    let claim = claims::settle(config, data, cluster, journal, &recovered, now)?;
    claims::watch(config.store.clone(), ship::layout(config), cluster)
        .map_err(|error| StartError::Io { what: "cannot start a thread", error })?;
    Ok(Proven { opened, recovered, snapshot_disk, claim })
}

fn warn_of_parts_that_do_not_share(plan: &Plan<'_>) {
    if plan.cluster.node_count() < 2 {
        return;
    }
    if plan.config.stock.kind == StockKind::Journal {
        tracing::warn!("stock.kind is \"journal\": a sale's units are at its home node alone");
    }
    if plan.config.store.kind == StoreKind::Sqlite {
        tracing::warn!(
            "store.kind is \"sqlite\": no other node sees which slots this one claims, and a pool \
             that Redis loses stays shut; several nodes want store.kind = \"mysql\""
        );
    }
}

/// What the threads share.
pub(super) struct Shared {
    pub core: Arc<Core>,
    gauges: Arc<UnitGauges>,
    board: Arc<LeaseBoard>,
    /// The sale of each item, by item number, as recovered.
    sales: Vec<Arc<SaleEntry>>,
    /// Where the stock authority is Redis.
    pub stock_stats: Option<Arc<RedisStats>>,
}

impl Shared {
    /// Queues that are empty; lines and a catalog as recovered.
    pub fn new(
        plan: &Plan<'_>,
        clock: &Arc<NodeClock>,
        recovered: &Recovered,
    ) -> (Self, ControlQueue) {
        let config = plan.config;
        let ports: Arc<[PortShared]> = (0..door::port_count(&config.http))
            .map(|_| PortShared::new(config.http.in_flight_max))
            .collect();
        let (control, asked) = control::queue();
        let core = Core::new(
            Arc::new(CatalogView::default()),
            Arc::new(StockLines::default()),
            Arc::new(Gate::default()),
            Arc::new(Inboxes::new(config.shards.count, config.shards.inbox)),
            Arc::new(SaleEvents::new(clock.now())),
            Arc::clone(clock),
            control,
            ports,
        );
        let sales = resume::fill_catalog(&core.catalog, recovered);
        resume::fill_stock(&core.stock, recovered);
        let shared = Self {
            core: Arc::new(core),
            gauges: Arc::new(UnitGauges::new(config.shards.count)),
            board: Arc::default(),
            sales,
            stock_stats: None,
        };
        (shared, asked)
    }
}

/// The journal's threads. The last ring is the control thread's.
pub(super) fn run_journal(
    plan: &Plan<'_>,
    opened: Opened<RealDisk>,
    shared: &Shared,
) -> Result<RunningJournal, StartError> {
    let core = &shared.core;
    let completions = Completions::new(Arc::clone(&core.stock), Arc::clone(&core.ports));
    let producer_count = plan.config.shards.count + 1;
    let (journal, rings) =
        opened.start(producer_count, completions, Box::new(|e| die_poisoned(&e)))?;
    Ok((Arc::new(journal), rings))
}

/// Deals the slots to the shards.
pub(super) fn deal(
    plan: &Plan<'_>,
    journal: JournalId,
    control: &ControlState,
    slots: States,
) -> Vec<ShardState> {
    let limits = KernelLimits { hold_allowance: plan.config.limits.hold_allowance };
    resume::deal_slots(plan.config.shards.count, limits, journal, control, slots)
}

/// A thread per shard.
pub(super) fn run_shards(
    plan: &Plan<'_>,
    shared: &Shared,
    states: Vec<ShardState>,
    rings: Vec<Producer<Completion>>,
) -> Result<Vec<JoinHandle<ShardState>>, StartError> {
    let core = &shared.core;
    let mut shards = Vec::new();
    for ((index, state), producer) in states.into_iter().enumerate().zip(rings) {
        // Ready means that the figures are there, too; the thread may begin a moment later.
        shared.gauges.publish(index, state.item_counts());
        let parts = ShardParts {
            index,
            state,
            inboxes: Arc::clone(&core.inboxes),
            producer,
            ports: Arc::clone(&core.ports),
            stock: Arc::clone(&core.stock),
            gauges: Arc::clone(&shared.gauges),
            sale_of: shared.sales.clone(),
            clock: Arc::clone(&core.clock),
            batch: plan.config.shards.batch,
        };
        shards.push(spawn(format!("shard-{index:02}"), move || driver::run(parts))?);
    }
    Ok(shards)
}

/// What the control thread begins with.
pub(super) struct ControlSeed {
    pub state: ControlState,
    /// What it leases units from.
    pub stock: Stock,
    /// What is asked of it.
    pub asked: ControlQueue,
    pub ring: Producer<Completion>,
    /// Sales whose keys every slot has forgotten.
    pub dropped: HashSet<SaleIndex>,
}

/// The control thread.
pub(super) fn run_control(
    plan: &Plan<'_>,
    shared: &Shared,
    journal: JournalId,
    incarnation: Incarnation,
    seed: ControlSeed,
) -> Result<JoinHandle<ControlState>, StartError> {
    let (config, core) = (plan.config, &shared.core);
    let ControlSeed { state, stock, asked, ring, dropped } = seed;
    let Stock { authority, lease, stats: _ } = stock;
    let parts = ControlParts {
        state,
        queue: asked,
        producer: ring,
        authority,
        lease,
        board: Arc::clone(&shared.board),
        journal,
        incarnation,
        inboxes: Arc::clone(&core.inboxes),
        catalog: Arc::clone(&core.catalog),
        stock: Arc::clone(&core.stock),
        gauges: Arc::clone(&shared.gauges),
        events: Arc::clone(&core.events),
        clock: Arc::clone(&core.clock),
        key_retention_ms: config.limits.key_retention_ms,
        dropped,
    };
    spawn("control".into(), move || control::run(parts))
}

/// How far the database shards are: nothing is known yet, but how the journal was opened.
pub(super) fn persist_status(
    plan: &Plan<'_>,
    journal: &JournalHandle<RealDisk>,
    incarnation: Incarnation,
    last: Seq,
) -> Arc<PersistStatus> {
    let status = PersistStatus::new(ship::layout(plan.config));
    let (journal, next) = (journal.journal(), incarnation);
    status.set_opening(lost_tail::Opening { journal, next, last });
    Arc::new(status)
}

/// From the journal's files to Kafka, and from there where this process persists too.
pub(super) fn run_ship(
    plan: &Plan<'_>,
    shared: &Shared,
    journal: &JournalHandle<RealDisk>,
    incarnation: Incarnation,
    told: (Seq, Teller),
    status: &Arc<PersistStatus>,
) -> Result<Shipping, StartError> {
    let home = ship::NodeHome {
        cluster: Arc::clone(plan.cluster),
        stock: Arc::clone(&shared.core.stock),
        is_shared: plan.config.stock.kind == StockKind::Redis,
    };
    let (data, clock) = (plan.data(), &shared.core.clock);
    let parts = ship::ShipParts { data, journal, clock, incarnation };
    ship::start(plan.config, &parts, told, home, status)
}

/// From the journal's files to the database shards.
pub(super) fn run_persist(
    plan: &Plan<'_>,
    shared: &Shared,
    journal: &JournalHandle<RealDisk>,
    incarnation: Incarnation,
    status: &Arc<PersistStatus>,
) -> Result<Persist, StartError> {
    let (config, data, clock) = (plan.config, plan.data(), &shared.core.clock);
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

/// A thread that ends when told to, and node time of the newest snapshot.
type RunningSnapshots = (Sender<()>, JoinHandle<()>, Arc<AtomicU64>);

/// The thread that takes snapshots.
pub(super) fn run_snapshots(
    plan: &Plan<'_>,
    shared: &Shared,
    journal: &Arc<JournalHandle<RealDisk>>,
    incarnation: Incarnation,
    disk: &RealDisk,
    newest: Option<SnapshotInfo>,
) -> Result<RunningSnapshots, StartError> {
    let core = &shared.core;
    let taken_at = Arc::new(AtomicU64::new(newest.map_or(0, |s| s.header.stamp.node.get())));
    let covered_twice = snapshotter::covered_twice(&snapshot::kept(disk)?);
    journal.cover_by_snapshots(covered_twice);
    let parts = SnapshotterParts {
        disk: disk.clone(),
        journal: journal.journal(),
        incarnation,
        inboxes: Arc::clone(&core.inboxes),
        control: core.control.clone(),
        clock: Arc::clone(&core.clock),
        durable: Arc::clone(journal.durable()),
        policy: SnapshotPolicy {
            every_ms: plan.config.snapshot.every_ms,
            every_records: plan.config.snapshot.every_records,
        },
        covered: newest.map_or(Seq::NONE, |s| s.lowest_cut),
        covered_twice,
        is_pressed: Box::new({
            let gauge = Arc::clone(journal.gauge());
            move || gauge.state() != DiskState::Normal
        }),
        on_kept: Box::new({
            let journal = Arc::clone(journal);
            move |kept| journal.cover_by_snapshots(snapshotter::covered_twice(kept))
        }),
        taken_at: Arc::clone(&taken_at),
    };
    let (stop, stopped) = bounded(1);
    let thread = spawn("snapshot".into(), move || snapshotter::run(parts, &stopped))?;
    Ok((stop, thread, taken_at))
}

/// `/metrics` finds its sources.
pub(super) fn show_figures(
    plan: &Plan<'_>,
    seams: &Seams,
    shared: &Shared,
    journal: &JournalHandle<RealDisk>,
    status: &Arc<PersistStatus>,
    snapshot_taken_at: &Arc<AtomicU64>,
    shipping: Option<&Shipping>,
) {
    let (figures, bound) = (&seams.figures, plan.config.journal.max_bytes);
    let (gauges, clock) = (&shared.gauges, &shared.core.clock);
    figures.attach(journal, bound, status, gauges, snapshot_taken_at, clock);
    if let Some(shipping) = shipping {
        figures.attach_ship(shipping.status());
    }
    figures.attach_leases(&shared.board);
    if let Some(stats) = &shared.stock_stats {
        figures.attach_stock_redis(stats);
    }
}

/// A member's statement finds the database shards.
pub(super) fn show_history(
    plan: &Plan<'_>,
    seams: &Seams,
    journal: &JournalHandle<RealDisk>,
    status: &Arc<PersistStatus>,
) -> Result<(), StartError> {
    let (reads, _) = history::start(HistoryParts {
        store: plan.config.store.clone(),
        folder: plan.data().join("db"),
        journal: journal.journal(),
        durable: Arc::clone(journal.durable()),
        status: Arc::clone(status),
    })
    .map_err(|error| StartError::Io { what: "cannot start a thread", error })?;
    let _ = seams.history.set(Arc::new(reads));
    Ok(())
}

/// `GET /v1/audit` finds what it looks at.
pub(super) fn show_audit(
    plan: &Plan<'_>,
    seams: &Seams,
    shared: &Shared,
    journal: &JournalHandle<RealDisk>,
    incarnation: Incarnation,
    addresses: Addresses,
) {
    let _ = seams.audit.set(LiveAudit {
        name: format!("http://{}", addresses.admin),
        data: plan.data().to_path_buf(),
        store: plan.config.store.clone(),
        kafka: ship::kafka_of(plan.config),
        journal: journal.journal(),
        incarnation,
        durable: Arc::clone(journal.durable()),
        gauge: Arc::clone(journal.gauge()),
        core: Arc::clone(&shared.core),
        figures: Arc::clone(&seams.figures),
        running: Default::default(),
    });
}

/// The thread that carries what one part knows to another, once it has done so for the first time;
/// and the claim of slots, recorded where it is new.
pub(super) fn run_housekeeping(
    shared: &Shared,
    journal: &Arc<JournalHandle<RealDisk>>,
    status: &Arc<PersistStatus>,
    told_through: Option<ToldThrough>,
    claim: Option<&Claim>,
) -> Result<(Sender<()>, JoinHandle<()>), StartError> {
    let watch = Housekeeping {
        core: Arc::clone(&shared.core),
        journal: Arc::clone(journal),
        status: Arc::clone(status),
        told_through,
    };
    watch.look();
    if let Some(claim) = claim {
        claims::record(&shared.core.control, claim)?;
    }
    let (stop, stopped) = bounded::<()>(1);
    let thread = spawn("housekeeping".into(), move || {
        while stopped.recv_timeout(HOUSEKEEPING_EVERY) == Err(RecvTimeoutError::Timeout) {
            watch.look();
        }
    })?;
    Ok((stop, thread))
}

const HOUSEKEEPING_EVERY: Duration = Duration::from_millis(100);

/// How far events are told.
type ToldThrough = Arc<dyn Fn() -> Seq + Send + Sync>;

/// Carries what one part knows to another that must hear of it.
struct Housekeeping {
    core: Arc<Core>,
    journal: Arc<JournalHandle<RealDisk>>,
    status: Arc<PersistStatus>,
    /// How far the events are told, where there are any.
    told_through: Option<ToldThrough>,
}

impl Housekeeping {
    fn look(&self) {
        let durable = self.journal.durable().get();
        self.status.note_complete(durable, self.core.now());
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

fn prepare_data(data: &Path) -> Result<(), StartError> {
    let failed = |error| StartError::Data { path: data.display().to_string(), error };
    std::fs::create_dir_all(data).map_err(failed)?;
    // Written and removed: a folder that only looks writable is found out here, not in the sale.
    let probe = data.join(".writable");
    std::fs::write(&probe, b"").and_then(|()| std::fs::remove_file(&probe)).map_err(failed)
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
    tracing::error!(
        %error,
        "the journal cannot be written: the node ends, nothing is confirmed; start it again once \
         the disk is sound"
    );
    std::process::exit(EXIT_POISONED);
}

/// The exit code of a node whose disk failed.
const EXIT_POISONED: i32 = 74;
