//! What the parts of a node know of the cluster: one shared struct, read by any thread.
//!
//! The map never changes while a node runs. What does: whether another node answers, and which
//! journals have claimed slots. A node is *down* from the first failure that is seen, by a probe
//! or by a request, until a probe succeeds; requests that wait for it are let go at once.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use tokio::sync::Notify;

use super::claims::Claim;
use super::map::{NodeIndex, SlotMap, SlotSet};
use crate::units::{JournalId, Slot};

/// How another node was last seen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Health {
    /// Not heard of yet: requests are sent, and find out.
    Unknown = 0,
    /// It takes requests.
    Up = 1,
    /// It answers, and says that it is starting or draining.
    NotReady = 2,
    /// It does not answer.
    Down = 3,
}

impl Health {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Up => "up",
            Self::NotReady => "not-ready",
            Self::Down => "down",
        }
    }
}

/// One other node, as seen from here.
#[derive(Default)]
pub struct Peer {
    /// A [`Health`]. Relaxed everywhere: it guards no memory, and a late reader finds out by
    /// itself.
    health: AtomicU8,
    /// Wakes those that wait for its answers when it goes down.
    went_down: Notify,
    /// Times it went down.
    falls: AtomicU64,
}

impl Peer {
    pub fn health(&self) -> Health {
        match self.health.load(Ordering::Relaxed) {
            0 => Health::Unknown,
            1 => Health::Up,
            2 => Health::NotReady,
            _ => Health::Down,
        }
    }
    pub fn is_down(&self) -> bool {
        self.health() == Health::Down
    }
    pub fn falls(&self) -> u64 {
        self.falls.load(Ordering::Relaxed)
    }
    /// Notes what a probe, or a request that failed, has seen. Returns whether that is new.
    pub fn note(&self, health: Health) -> bool {
        let before = self.health.swap(health as u8, Ordering::Relaxed);
        let is_new = before != health as u8;
        if health == Health::Down && is_new {
            self.falls.fetch_add(1, Ordering::Relaxed);
            self.went_down.notify_waiters();
        }
        is_new
    }
    /// Resolves when the node goes down after this call.
    pub fn fall(&self) -> impl Future<Output = ()> + '_ {
        self.went_down.notified()
    }
}

/// The cluster as this node knows it.
pub struct Cluster {
    map: Option<SlotMap>,
    /// By node; this node's own entry stays `Unknown`.
    peers: Box<[Peer]>,
    claims: RwLock<Claims>,
}

#[derive(Default)]
struct Claims {
    own: Option<JournalId>,
    /// One per node of the map, once all are known.
    journals: Option<Arc<[JournalId]>>,
    by_node: Vec<Option<JournalId>>,
}

impl Cluster {
    /// A node of a map, or (`None`) one that is alone.
    pub fn new(map: Option<SlotMap>) -> Self {
        let count = map.as_ref().map_or(0, SlotMap::node_count);
        let claims = Claims { by_node: vec![None; count], ..Claims::default() };
        let peers = (0..count).map(|_| Peer::default()).collect();
        Self { map, peers, claims: RwLock::new(claims) }
    }

    pub fn map(&self) -> Option<&SlotMap> {
        self.map.as_ref()
    }
    pub fn peer(&self, node: NodeIndex) -> &Peer {
        &self.peers[node.index()]
    }
    pub fn node_count(&self) -> usize {
        self.map.as_ref().map_or(1, SlotMap::node_count)
    }
    /// Whether the sale's total is kept here.
    pub fn is_home(&self, sale_id: &str) -> bool {
        self.map.as_ref().is_none_or(|map| map.home(sale_id) == map.me())
    }
    pub fn owns(&self, slot: Slot) -> bool {
        self.map.as_ref().is_none_or(|map| map.owner(slot) == map.me())
    }
    pub fn own_slots(&self) -> SlotSet {
        self.map.as_ref().map_or_else(SlotSet::all, |map| map.node(map.me()).slots.clone())
    }

    /// Says which journal is this node's; called once, at its start.
    pub fn set_own_journal(&self, journal: JournalId) {
        let mut claims = self.claims.write().unwrap_or_else(PoisonError::into_inner);
        claims.own = Some(journal);
        match &self.map {
            None => claims.journals = Some([journal].into()),
            Some(map) => {
                claims.by_node[map.me().index()] = Some(journal);
                complete(&mut claims);
            }
        }
    }

    /// Takes over what the database says of claims.
    pub fn set_claims(&self, rows: &[Claim]) {
        let Some(map) = &self.map else { return };
        let mut claims = self.claims.write().unwrap_or_else(PoisonError::into_inner);
        for row in rows {
            if let Some(node) = map.by_name(&row.node)
                && node != map.me()
            {
                claims.by_node[node.index()] = Some(row.journal);
            }
        }
        complete(&mut claims);
    }

    /// The journals that may hold units or members: one per node of the map. `None`: not all have
    /// claimed yet, as far as is known here.
    pub fn journals(&self) -> Option<Arc<[JournalId]>> {
        self.claims.read().unwrap_or_else(PoisonError::into_inner).journals.clone()
    }

    /// The journal of one node, if it is known.
    pub fn journal_of(&self, node: NodeIndex) -> Option<JournalId> {
        self.claims.read().unwrap_or_else(PoisonError::into_inner).by_node[node.index()]
    }
}

fn complete(claims: &mut Claims) {
    let all: Option<Vec<JournalId>> = claims.by_node.iter().copied().collect();
    claims.journals = all.map(Into::into);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::map::NodeSpec;

    fn cluster() -> Cluster {
        let spec = |name: &str, port: u16, slots: &str| NodeSpec {
            name: name.into(),
            public: format!("http://h:{port}"),
            admin: format!("http://h:{}", port + 1),
            slots: vec![slots.into()],
        };
        let specs = [spec("a", 10, "0-2047"), spec("b", 20, "2048-4095")];
        Cluster::new(Some(SlotMap::new(1, "a", &specs).unwrap()))
    }

    #[test]
    fn a_node_alone_owns_everything_and_is_home_to_every_sale() {
        let alone = Cluster::new(None);
        assert_eq!(alone.node_count(), 1);
        assert!(alone.is_home("s") && alone.owns(Slot::new(4095)));
        assert_eq!(alone.own_slots(), SlotSet::all());
        assert_eq!(alone.journals(), None);
        alone.set_own_journal(JournalId::new(7));
        assert_eq!(alone.journals().as_deref(), Some(&[JournalId::new(7)][..]));
    }

    #[test]
    fn a_sale_has_one_home_and_the_journals_are_known_only_all_together() {
        let cluster = cluster();
        let homes = (0..100).filter(|n| cluster.is_home(&format!("sale-{n}"))).count();
        assert!((20..80).contains(&homes), "{homes}");
        cluster.set_own_journal(JournalId::new(1));
        assert_eq!(cluster.journals(), None);
        let claim = |node: &str, journal| Claim {
            node: node.into(),
            journal: JournalId::new(journal),
            version: 1,
            slots: SlotSet::all(),
        };
        cluster.set_claims(&[claim("old", 9)]);
        assert_eq!(cluster.journals(), None, "a node that the map does not name counts nothing");
        cluster.set_claims(&[claim("b", 2), claim("a", 8)]);
        let journals = [JournalId::new(1), JournalId::new(2)];
        assert_eq!(cluster.journals().as_deref(), Some(&journals[..]), "its own it knows better");
    }

    #[test]
    fn who_waits_for_a_node_hears_at_once_that_it_is_down() {
        let cluster = cluster();
        let b = cluster.map().unwrap().by_name("b").unwrap();
        let peer = cluster.peer(b);
        assert!(!peer.is_down());
        let mut fall = std::pin::pin!(peer.fall());
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(fall.as_mut().poll(&mut cx).is_pending());
        assert!(peer.note(Health::Down));
        assert!(!peer.note(Health::Down), "known already");
        assert!(fall.as_mut().poll(&mut cx).is_ready());
        assert_eq!((peer.health(), peer.falls()), (Health::Down, 1));
        assert!(peer.note(Health::Up));
        assert!(!peer.is_down());
    }
}
