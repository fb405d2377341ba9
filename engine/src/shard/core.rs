//! The running core as the rest of the node holds it.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use tokio::sync::oneshot;

use super::catalog::CatalogView;
use super::control::ControlHandle;
use super::events::SaleEvents;
use super::gate::{Gate, Unavailable};
use super::inbox::Inboxes;
use super::port::{Port, PortShared};
use crate::clock::NodeClock;
use crate::kernel::control::{ControlCommand, ControlOutcome};
use crate::stock::line::StockLines;
use crate::units::NodeTime;

/// Everything that the door needs of a node that has recovered.
pub struct Core {
    pub catalog: Arc<CatalogView>,
    pub stock: Arc<StockLines>,
    pub gate: Arc<Gate>,
    pub inboxes: Arc<Inboxes>,
    pub events: Arc<SaleEvents>,
    pub clock: Arc<NodeClock>,
    pub control: ControlHandle,
    pub ports: Arc<[PortShared]>,
    /// Each port is taken by one thread.
    next_port: AtomicU64,
}

impl Core {
    #[expect(clippy::too_many_arguments, reason = "called once, by the wiring in app.rs")]
    pub fn new(
        catalog: Arc<CatalogView>,
        stock: Arc<StockLines>,
        gate: Arc<Gate>,
        inboxes: Arc<Inboxes>,
        events: Arc<SaleEvents>,
        clock: Arc<NodeClock>,
        control: ControlHandle,
        ports: Arc<[PortShared]>,
    ) -> Self {
        let next_port = AtomicU64::new(0);
        Self { catalog, stock, gate, inboxes, events, clock, control, ports, next_port }
    }

    /// Takes a port for the calling thread, whose local task must run [`Port::run`].
    ///
    /// Panics: when more threads ask than the node was built with ports.
    pub fn take_port(&self) -> Port {
        let index = self.next_port.fetch_add(1, Ordering::Relaxed) as usize;
        assert!(index < self.ports.len(), "the node has {} ports", self.ports.len());
        Port::new(
            index as u16,
            Arc::clone(&self.ports),
            Arc::clone(&self.inboxes),
            Arc::clone(&self.gate),
        )
    }

    pub fn now(&self) -> NodeTime {
        self.clock.now()
    }

    /// Asks the control thread; resolves when the outcome is durable and every shard decides by
    /// it.
    pub async fn control(&self, command: ControlCommand) -> Result<ControlOutcome, Unavailable> {
        self.gate.admit_control()?;
        let (answer, answered) = oneshot::channel();
        self.control.send(command, answer)?;
        answered.await.map_err(|_| Unavailable::Draining)?
    }
}

/// What a node is doing, for `/readyz`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub enum Stage {
    Starting = 0,
    LoadingSnapshot = 1,
    ReplayingJournal = 2,
    Ready = 3,
    Draining = 4,
}

/// How far the node has come; readable before there is a core.
#[derive(Default)]
pub struct Readiness {
    stage: AtomicU8,
    /// Of the stage: slots loaded, or bytes of journal replayed.
    done: AtomicU64,
    of: AtomicU64,
}

impl Readiness {
    pub fn enter(&self, stage: Stage, of: u64) {
        self.done.store(0, Ordering::Relaxed);
        self.of.store(of, Ordering::Relaxed);
        self.stage.store(stage as u8, Ordering::Release);
    }
    pub fn advance(&self, done: u64) {
        self.done.store(done, Ordering::Relaxed);
    }
    pub fn stage(&self) -> Stage {
        match self.stage.load(Ordering::Acquire) {
            0 => Stage::Starting,
            1 => Stage::LoadingSnapshot,
            2 => Stage::ReplayingJournal,
            3 => Stage::Ready,
            _ => Stage::Draining,
        }
    }
    /// Done and to be done, in the stage's own measure.
    pub fn progress(&self) -> (u64, u64) {
        (self.done.load(Ordering::Relaxed), self.of.load(Ordering::Relaxed))
    }
}

/// A node from its first moment: the door opens on this, and finds the core once it is there.
#[derive(Default)]
pub struct NodeView {
    pub readiness: Readiness,
    pub core: OnceLock<Arc<Core>>,
}
