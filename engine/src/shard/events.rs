//! What happened to a sale, for those who watch it.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::broadcast;

use crate::units::{ItemIndex, NodeTime, SaleIndex};

/// Events that a slow watcher may lag behind before it is told to look again.
const BACKLOG: usize = 1024;

/// One event.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SaleEvent {
    /// Rises by one per event of the node's run; starts at the node's start time in microseconds,
    /// so that ids of an earlier run are lower.
    pub id: u64,
    pub sale: SaleIndex,
    pub at: NodeTime,
    pub kind: SaleEventKind,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SaleEventKind {
    Opened,
    Paused,
    Resumed,
    /// Closed by an operator or ended by time.
    Closed,
    /// Units were added or withdrawn.
    StockChanged(ItemIndex),
}

/// Where events are published. Sold-out and stock figures are not events here: watchers read the
/// lines, a few times a second, whatever the traffic.
pub struct SaleEvents {
    next_id: AtomicU64,
    sender: broadcast::Sender<SaleEvent>,
}

impl SaleEvents {
    pub fn new(started_at: NodeTime) -> Self {
        let next_id = AtomicU64::new(started_at.get().saturating_mul(1000));
        Self { next_id, sender: broadcast::Sender::new(BACKLOG) }
    }

    pub fn publish(&self, sale: SaleIndex, at: NodeTime, kind: SaleEventKind) {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        // No receiver is no error: nobody watches.
        let _ = self.sender.send(SaleEvent { id, sale, at, kind });
    }

    pub fn last_id(&self) -> u64 {
        self.next_id.load(Ordering::Relaxed).saturating_sub(1)
    }

    pub fn subscribe(&self) -> broadcast::Receiver<SaleEvent> {
        self.sender.subscribe()
    }
}
