//! Building a node, part by part.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam::channel::{RecvTimeoutError, Sender, bounded};

use super::audit::LiveAudit;
use super::figures::Figures;
use super::history::{self, HistoryParts};
use super::ship::{self, Shipping, writer_settings};
use super::{Addresses, StartError};
use crate::clock::{Clock, NodeClock};
use crate::config::{Config, LogKind};
use crate::http::door::{self, BoundDoor, Door, DoorParts};
use crate::http::history::History;
use crate::journal::JournalError;
use crate::journal::disk::RealDisk;
use crate::journal::files::DiskState;
use crate::journal::open::{self, Journal, JournalHandle, JournalOptions, Opened};
use crate::journal::snapshot;
use crate::kernel::catalog::SalePhase;
use crate::kernel::control::ControlState;
use crate::kernel::slot::{ItemCounts, SlotState};
use crate::kernel::state::{KernelLimits, ShardState};
use crate::persist::driver::Persist;
use crate::persist::embedded;
use crate::persist::lost_tail;
use crate::persist::status::PersistStatus;
use crate::persist::stores;
use crate::shard::catalog::{CatalogView, SaleEntry};
use crate::shard::completion::Completions;
use crate::shard::control::{self, ControlParts};
use crate::shard::core::{Core, NodeView, Stage};
use crate::shard::driver::{self, ShardParts};
use crate::shard::events::SaleEvents;
use crate::shard::gate::{Admission, Gate};
use crate::shard::inbox::Inboxes;
use crate::shard::port::PortShared;
use crate::shard::recover::{self, Recovered};
use crate::shard::snapshotter::{self, SnapshotPolicy, SnapshotterParts};
use crate::ship::source::JournalFrames;
use crate::stock::authority::Embedded;
use crate::stock::gauges::UnitGauges;
use crate::stock::line::StockLines;
use crate::units::{Incarnation, ItemIndex, JournalId, SaleIndex, Seq};

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
        // The door, first: a node that recovers says so.
        let view = Arc::new(NodeView::default());
        let figures = Arc::new(Figures::default());
        let data = prepare_data(&config)?;
        let audit: Arc<OnceLock<LiveAudit>> = Arc::default();
        let history: Arc<OnceLock<Arc<dyn History>>> = Arc::default();
        let door = BoundDoor::bind(config.http.clone())?.serve(DoorParts {
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

        // The journal, and the state that it proves.
        let snapshot_disk = RealDisk::open(&open::snapshot_dir(&data), config.journal.direct)
            .map_err(|error| StartError::Data { path: data.display().to_string(), error })?;
        let opened = Journal::open(journal_options(&config, &data), Arc::clone(clock))?;
        let (journal, incarnation) = (opened.journal(), opened.incarnation());
        lost_tail::check(&data.join("db"), journal, incarnation, opened.last_seq())?;
        let recovered = recover::recover(&opened, &snapshot_disk, &view.readiness)?;
        report_recovery(&opened, &recovered);

        let node =
            Self::run(config, door, view, &figures, opened, recovered, snapshot_disk, &data)?;
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
            running: Default::default(),
        });
        Ok(node)
    }

    #[expect(clippy::too_many_arguments, reason = "the second half of `start`")]
    fn run(
        config: Config,
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
        let sales = fill_catalog(&catalog, &recovered);
        let authority = fill_stock(&stock, &recovered);
        let dropped = dropped_sales(&recovered);
        let told = (opened.last_seq(), ship::teller(&recovered));
        let (control_handle, control_queue) = control::queue();

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
            authority: Box::new(authority),
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
        let states = deal_slots(&config, journal_id, &control_parts.state, recovered.slots);
        let mut shards = Vec::new();
        for ((index, state), producer) in states.into_iter().enumerate().zip(producers) {
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
        let (mut persist, mut shipping) = (None, None);
        if config.log.kind == LogKind::Kafka {
            shipping =
                Some(ship::start(&config, data, told, &journal, &clock, incarnation, &status)?);
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
        let (stop_housekeeping, housekeeping_stopped) = bounded::<()>(1);
        let watch = Housekeeping {
            core: Arc::clone(&core),
            journal: Arc::clone(&journal),
            status: Arc::clone(&status),
            told_through: shipping.as_ref().and_then(Shipping::told_through),
        };
        watch.look();
        let housekeeping = spawn("housekeeping".into(), move || {
            while housekeeping_stopped.recv_timeout(HOUSEKEEPING_EVERY)
                == Err(RecvTimeoutError::Timeout)
            {
                watch.look();
            }
        })?;
        assert!(view.core.set(Arc::clone(&core)).is_ok(), "a node starts once");
        view.readiness.enter(Stage::Ready, 0);
        tracing::info!(journal = %format!("{:016x}", journal_id.get()), %incarnation, "ready");
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

/// The catalog as recovered, and the sale of each item.
fn fill_catalog(catalog: &CatalogView, recovered: &Recovered) -> Vec<Arc<SaleEntry>> {
    let mut sale_of = Vec::new();
    for (index, known) in (0u32..).map(SaleIndex::new).zip(recovered.control.sales()) {
        let sale = known.sale.as_ref().clone();
        let entry =
            Arc::new(SaleEntry::new(index, known.first_item, sale, known.phase, known.paused));
        sale_of.extend(entry.items().map(|_| Arc::clone(&entry)));
        catalog.insert(&entry);
    }
    for slot in &recovered.slots {
        for (item, member) in slot.keyed() {
            sale_of[item.get() as usize].remember_keyed(member);
        }
    }
    sale_of
}

/// An item's free units are derived: granted − returned − Σ(held + confirmed + retired).
fn fill_stock(stock: &StockLines, recovered: &Recovered) -> Embedded {
    let items = recovered.control.items();
    let mut counts = vec![ItemCounts::default(); items.len()];
    for slot in &recovered.slots {
        for (item, of_slot) in slot.item_counts() {
            counts[item.get() as usize].add(&of_slot);
        }
    }
    let mut authority = Embedded::default();
    for ((item, known), counts) in (0u32..).map(ItemIndex::new).zip(items).zip(&counts) {
        let free = known.here().checked_sub(counts.sum());
        let free = free.expect("I2: a node holds no more units than it was granted");
        authority.resume(item, known.total, known.granted, known.returned);
        stock.confirm_durable(item, i64::try_from(counts.confirmed).expect("units fit an i64"));
        stock.line(item).give_back(free);
        stock.set_total(item, known.total);
    }
    authority
}

/// Sales whose keys every slot has forgotten.
fn dropped_sales(recovered: &Recovered) -> HashSet<SaleIndex> {
    let sales = (0u32..).map(SaleIndex::new).zip(recovered.control.sales());
    let is_dropped = |sale: SaleIndex| {
        recovered.slots.iter().all(|slot| slot.dropped_sales().binary_search(&sale).is_ok())
    };
    let ended = sales.filter(|(_, known)| known.phase >= SalePhase::Ended);
    ended.map(|(sale, _)| sale).filter(|sale| is_dropped(*sale)).collect()
}

/// Deals the slots out in turn, as [`Inboxes::shard_of`] routes to them.
fn deal_slots(
    config: &Config,
    journal: JournalId,
    control: &ControlState,
    slots: Vec<SlotState>,
) -> Vec<ShardState> {
    // A node that ended while keys were being dropped goes on so: no slot takes a key of a sale
    // that another slot has begun to forget.
    let mut catalog = control.catalog();
    for sale in slots.iter().flat_map(SlotState::dropped_sales) {
        catalog.mark_keys_dropped(*sale);
    }
    let limits = KernelLimits { hold_allowance: config.limits.hold_allowance };
    let count = config.shards.count;
    let mut shards: Vec<ShardState> = (0..count)
        .map(|_| {
            let mut shard = ShardState::new(journal, limits);
            *shard.catalog_mut() = catalog.clone();
            shard
        })
        .collect();
    for state in slots {
        let slot = state.slot();
        shards[slot.index() % count].adopt_slot(slot, state);
    }
    shards
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
