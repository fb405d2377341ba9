//! The node: built in the order in which a redemption flows. Reading this is reading the diagram.
//!
//! ```text
//! client ─► http-NN ─► inbox ─► shard-NN ─► ring ─► journal ─► completions ─► http-NN ─► client
//!                                 ▲    ▲              │
//!        units: a line per item ──┘    │              ├─► persist-NN ─► DATA/db (or ship ─► Kafka)
//!        sales, totals: control ───────┘              └─► snapshot ─► DATA/snapshots
//! ```
//! The door opens first (`/livez` 200, `/readyz` 503 with progress) and finds the rest once it runs
//! (`/readyz` 200); a signal ends all of it in the same order (`drain`).
//!
//! Threads: `http-NN`, `shard-NN`, `control`, `journal`, `journal-files`, `persist-NN`,
//! `history-NN`, `snapshot`, `housekeeping`, `claims` (until all are known), with Kafka `ship`,
//! `ship-events`, `ship-watch` and `consume`, and the one that waits here for a signal.

mod audit;
mod claims;
mod drain;
mod figures;
mod history;
mod persist_metrics;
mod ship;
mod start;
mod stock;

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread::JoinHandle;

use crossbeam::channel::Sender;
use thiserror::Error;

pub use ship::persist;

pub use crate::http::door::Addresses;

use self::ship::Shipping;
use self::start::{ControlSeed, Plan, Shared};
use crate::clock::{Clock, RealClock};
use crate::cluster::nodes::Cluster;
use crate::config::{Config, LogKind};
use crate::http::door::Door;
use crate::journal::disk::RealDisk;
use crate::journal::open::JournalHandle;
use crate::kernel::control::ControlState;
use crate::kernel::state::ShardState;
use crate::persist::driver::Persist;
use crate::shard::core::{Core, NodeView, Stage};
use crate::shard::resume;
use crate::units::Incarnation;

/// Why a node does not run. One line each, with what to do.
#[derive(Error, Debug)]
pub enum StartError {
    #[error(transparent)]
    Config(#[from] crate::config::ConfigError),
    #[error(transparent)]
    Door(#[from] crate::http::door::DoorError),
    #[error(transparent)]
    Claim(#[from] crate::cluster::claims::ClaimError),
    #[error("data folder {path}: {error}")]
    Data { path: String, error: std::io::Error },
    #[error(transparent)]
    Journal(#[from] crate::journal::JournalError),
    #[error(transparent)]
    Recover(#[from] crate::shard::recover::RecoverError),
    #[error(transparent)]
    LostTail(#[from] crate::persist::lost_tail::LostTail),
    #[error(transparent)]
    Persist(#[from] crate::persist::embedded::OpenError),
    #[error(transparent)]
    Kafka(#[from] crate::ship::kafka::client::ClientError),
    #[error(
        "log.kind is \"journal\": the node persists its own journal; set it to \"kafka\" to \
         persist in processes of their own"
    )]
    PersistsItself,
    #[error(transparent)]
    Stores(#[from] crate::persist::stores::StoresError),
    #[error(transparent)]
    Stock(#[from] crate::stock::redis::RedisStockError),
    #[error(
        "stock.kind is \"journal\", but the units of sale {sale} in this data folder came from a \
         pool that nodes share: set it to \"redis\", and stock.redis to where that pool is"
    )]
    StockShared { sale: String },
    #[error("{what}: {error}")]
    Io { what: &'static str, error: std::io::Error },
}

/// A running node.
pub struct Node {
    config: Config,
    door: Door,
    view: Arc<NodeView>,
    core: Arc<Core>,
    shards: Vec<JoinHandle<ShardState>>,
    control: JoinHandle<ControlState>,
    journal: Arc<JournalHandle<RealDisk>>,
    incarnation: Incarnation,
    persist: Option<Persist>,
    shipping: Option<Shipping>,
    stop_snapshots: Sender<()>,
    snapshots: JoinHandle<()>,
    stop_housekeeping: Sender<()>,
    housekeeping: JoinHandle<()>,
    snapshot_disk: RealDisk,
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
        let plan = &Plan { config: &config, cluster: &cluster, clock };

        // http-NN, first of all: a node that recovers says so.
        let (door, seams) = start::open_door(plan)?;

        // What the data folder proves: the journal, and the state that it comes to.
        let proven = start::prove(plan, &seams.view)?;
        let (recovered, incarnation) = (proven.recovered, proven.opened.incarnation());
        let last_seq = proven.opened.last_seq();
        let teller = ship::teller(&recovered);

        // What the threads share: inboxes, reply queues, a line of units per item, the sales.
        let (mut shared, asked) = Shared::new(plan, proven.opened.clock(), &recovered);

        // Where units come from: a pool of the node's own, or one in Redis.
        let (id, control) = (proven.opened.journal(), &shared.core.control);
        let stock = stock::start(&config.stock, &cluster, id, &recovered.control, control)?;
        shared.stock_stats.clone_from(&stock.stats);

        // ring ─► journal ─► completions: one frame for all shards; behind its sync units enter
        // their line, and replies leave. It has the rings to give, so it runs before the shards.
        let (journal, mut rings) = start::run_journal(plan, proven.opened, &shared)?;
        let ring_of_control = rings.pop().expect("one more than shards");

        // inbox ─► shard-NN ─► ring: one step decides everything, for the slots dealt to it.
        let dropped = resume::dropped_sales(&recovered);
        let states = start::deal(plan, id, &recovered.control, recovered.slots);
        let shards = start::run_shards(plan, &shared, states, rings)?;

        // control: the single writer for sales, stock totals and leases.
        let state = recovered.control;
        let seed = ControlSeed { state, stock, asked, ring: ring_of_control, dropped };
        let control = start::run_control(plan, &shared, id, incarnation, seed)?;

        // The journal's files ─► persist-NN ─► database shards; or ─► ship ─► Kafka ─► persist-NN.
        let status = start::persist_status(plan, &journal, incarnation, last_seq);
        let (mut persist, mut shipping) = (None, None);
        if config.log.kind == LogKind::Kafka {
            let told = (last_seq, teller);
            shipping = Some(start::run_ship(plan, &shared, &journal, incarnation, told, &status)?);
        } else if config.persist.run {
            persist = Some(start::run_persist(plan, &shared, &journal, incarnation, &status)?);
        }

        // snapshot: slot by slot, beside everything else. What is covered twice may go.
        let (stop_snapshots, snapshots, taken_at) = start::run_snapshots(
            plan,
            &shared,
            &journal,
            incarnation,
            &proven.snapshot_disk,
            recovered.snapshot,
        )?;

        // http-NN finds the core: from here on requests are taken.
        start::show_figures(plan, &seams, &shared, &journal, &status, &taken_at, shipping.as_ref());
        let told_through = shipping.as_ref().and_then(Shipping::told_through);
        let (stop_housekeeping, housekeeping) = start::run_housekeeping(
            &shared,
            &journal,
            &status,
            told_through,
            proven.claim.as_ref(),
        )?;
        start::show_history(plan, &seams, &journal, &status)?;
        start::show_audit(plan, &seams, &shared, &journal, incarnation, door.addresses());
        let (core, view) = (shared.core, seams.view);
        assert!(view.core.set(Arc::clone(&core)).is_ok(), "a node starts once");
        view.readiness.enter(Stage::Ready, 0);
        let (name, nodes) = (format!("{:016x}", id.get()), cluster.node_count());
        tracing::info!(journal = name, %incarnation, nodes, "ready");
        Ok(Self {
            door,
            view,
            core,
            shards,
            control,
            journal,
            incarnation,
            persist,
            shipping,
            stop_snapshots,
            snapshots,
            stop_housekeeping,
            housekeeping,
            snapshot_disk: proven.snapshot_disk,
            config,
        })
    }

    pub fn addresses(&self) -> Addresses {
        self.door.addresses()
    }
}

/// Runs a node until a signal ends it.
///
/// Errors: [`StartError`], before anything is served.
pub fn serve(config: Config, ready_file: Option<&Path>) -> Result<ExitCode, StartError> {
    let clock: Arc<dyn Clock> = Arc::new(RealClock::new());
    let signals = drain::Signals::catch()
        .map_err(|error| StartError::Io { what: "cannot catch signals", error })?;
    let node = Node::start(config, &clock)?;
    let addresses = node.addresses();
    println!("members:   http://{}", addresses.public);
    println!("operators: http://{}", addresses.admin);
    if let Some(path) = ready_file {
        write_ready_file(path, addresses)
            .map_err(|error| StartError::Io { what: "cannot write the ready file", error })?;
    }
    signals.wait();
    Ok(node.stop())
}

/// Two lines, whole or not there: to a temporary name, then renamed.
fn write_ready_file(path: &Path, addresses: Addresses) -> std::io::Result<()> {
    let temporary = path.with_extension("tmp");
    std::fs::write(&temporary, format!("{}\n{}\n", addresses.public, addresses.admin))?;
    std::fs::rename(&temporary, path)
}
