//! A worker: what one HTTP thread has at hand. Thread: stays on the thread that made it.

use std::cell::{OnceCell, RefCell};
use std::collections::HashMap;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use foldhash::fast::RandomState;

use super::cells::Cells;
use super::events::Watch;
use super::history::History;
use super::identity::Identity;
use super::link::Links;
use super::metrics::Scrape;
use super::peers::Peers;
use super::problem::{Kind, Problem};
use crate::clock::Clock;
use crate::cluster::nodes::Cluster;
use crate::config::{ClusterConfig, HttpConfig};
use crate::shard::catalog::SaleEntry;
use crate::shard::core::{Core, NodeView, Stage};
use crate::shard::port::Port;
use crate::telemetry::figures::NodeFigures;

/// Runs the audit of the live node, with Kafka where `true`, and gives its report as JSON. Blocks;
/// called off the workers.
pub type Audit = dyn Fn(bool) -> Result<String, String> + Send + Sync;

/// What all workers share.
pub struct Shared {
    pub config: HttpConfig,
    pub cluster: Arc<Cluster>,
    pub cluster_config: ClusterConfig,
    pub view: Arc<NodeView>,
    pub clock: Arc<dyn Clock>,
    pub figures: Arc<dyn NodeFigures>,
    pub audit: Arc<Audit>,
    /// There once the node has recovered.
    pub history: Arc<OnceLock<Arc<dyn History>>>,
    /// Where imports are spooled.
    pub spool: PathBuf,
    pub scrape: Scrape,
}

/// What a worker can do once the node has recovered.
pub struct Ready {
    pub core: Arc<Core>,
    pub port: Port,
}

/// One thread's own.
pub struct Worker {
    pub shared: Arc<Shared>,
    pub cells: Arc<Cells>,
    pub identity: Identity,
    pub links: Rc<Links>,
    /// The way to other nodes; `None` for a node that is alone.
    pub peers: Option<Rc<Peers>>,
    ready: OnceCell<Ready>,
    /// Sales by id. A sale is defined once and for all, so what is found stays right.
    sales: RefCell<HashMap<Box<str>, Arc<SaleEntry>, RandomState>>,
    pub watches: RefCell<HashMap<u32, Rc<Watch>, RandomState>>,
}

impl Worker {
    pub fn new(shared: Arc<Shared>, cells: Arc<Cells>) -> Self {
        let peers = Peers::new(&shared.cluster, &shared.cluster_config).map(Rc::new);
        Self {
            shared,
            cells,
            identity: Identity::default(),
            links: Rc::default(),
            peers,
            ready: OnceCell::new(),
            sales: RefCell::default(),
            watches: RefCell::default(),
        }
    }

    /// The core, and this worker's way to it.
    ///
    /// Errors: `starting`, until the node has recovered.
    pub fn ready(&self) -> Result<&Ready, Problem> {
        if let Some(ready) = self.ready.get() {
            return Ok(ready);
        }
        // Its Acquire pairs with the Release of the stage that follows the core.
        if self.shared.view.readiness.stage() < Stage::Ready {
            return Err(Kind::Starting.into());
        }
        let core = self.shared.view.core.get().ok_or(Kind::Starting)?;
        Ok(self.ready.get_or_init(|| {
            let port = core.take_port();
            tokio::task::spawn_local(port.clone().run());
            Ready { core: Arc::clone(core), port }
        }))
    }

    /// The sale with this id.
    ///
    /// Errors: `sale-not-found`.
    pub fn sale(&self, ready: &Ready, id: &str) -> Result<Arc<SaleEntry>, Problem> {
        if let Some(sale) = self.sales.borrow().get(id) {
            return Ok(Arc::clone(sale));
        }
        let sale = ready.core.catalog.sale(id).ok_or(Kind::SaleNotFound)?;
        self.sales.borrow_mut().insert(id.into(), Arc::clone(&sale));
        Ok(sale)
    }

    /// How long a request's body may take to arrive.
    pub fn patience(&self) -> Duration {
        Duration::from_millis(self.shared.config.read_timeout_ms)
    }

    pub fn now_ns(&self) -> u64 {
        self.shared.clock.monotonic_ns()
    }
}
