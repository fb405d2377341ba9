//! A node's place among others: its map, its claim of slots, and what an operator gets wrong about
//! them.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use super::plan::Shape;
use super::world::SALE_ID;
use crate::cluster::claims::{Claim, ClaimError, Next, at_start, in_database};
use crate::cluster::map::{NodeSpec, SlotMap, sale_slot};
use crate::cluster::nodes::Cluster;
use crate::kernel::control::SlotClaim;
use crate::units::{JournalId, SLOT_COUNT, Slot};

/// The claims of slots in database shard 00: a row per slot, whose primary key lets none have two
/// owners.
#[derive(Clone, Default)]
pub struct ClaimTable(Rc<RefCell<Vec<Claim>>>);

impl ClaimTable {
    pub fn rows(&self) -> Vec<Claim> {
        self.0.borrow().clone()
    }

    /// Whose a slot is.
    pub fn owner(&self, slot: Slot) -> Option<JournalId> {
        let rows = self.0.borrow();
        rows.iter().find(|row| row.slots.contains(slot)).map(|row| row.journal)
    }

    fn insert(&self, claim: &Claim) {
        let twice = claim.slots.iter().find(|slot| self.owner(*slot).is_some());
        assert_eq!(twice, None, "a claim was made of what was claimed: {claim:?}");
        self.0.borrow_mut().push(claim.clone());
    }

    /// As a node does before its first request: gives the claim that is to be recorded.
    pub fn settle(
        &self,
        map: &SlotMap,
        journal: JournalId,
        recorded: Option<&Claim>,
    ) -> Result<Option<Claim>, ClaimError> {
        let me = map.node(map.me());
        let (node, version, slots) = (me.name.clone(), map.version(), me.slots.clone());
        let wish = Claim { node, journal, version, slots };
        let Next::Claim(wish) = at_start(recorded, wish)? else { return Ok(None) };
        if in_database(&self.rows(), &wish)? {
            self.insert(&wish);
        }
        Ok(Some(wish))
    }
}

/// The map of a world's nodes; of one that an operator has edited: two of them changed places.
fn map_of(shape: &Shape, me: usize, version: u64, changed: Option<(usize, usize)>) -> SlotMap {
    let count = usize::from(shape.nodes);
    // The sale's home is the owner of the slot of its id.
    let of_sale = sale_slot(SALE_ID).index() * count / SLOT_COUNT;
    let mut parts: Vec<usize> =
        (0..count).map(|node| (node + count + of_sale - shape.home()) % count).collect();
    if let Some((one, other)) = changed {
        parts.swap(one, other);
    }
    let first = |part: usize| (part * SLOT_COUNT).div_ceil(count);
    let specs = parts.iter().enumerate().map(|(node, part)| NodeSpec {
        name: format!("n{node}"),
        public: format!("http://n{node}:1"),
        admin: format!("http://n{node}:2"),
        slots: vec![format!("{}-{}", first(*part), first(part + 1) - 1)],
    });
    let specs: Vec<NodeSpec> = specs.collect();
    SlotMap::new(version, &format!("n{me}"), &specs).expect("a good map")
}

/// A node among others.
pub struct Place {
    shape: Shape,
    index: usize,
    map: SlotMap,
    claims: ClaimTable,
    /// What the process that runs knows of the others.
    cluster: Arc<Cluster>,
    /// The map is not that of the others.
    is_edited: bool,
    /// By the map or the disk of the next start the node would own what it does not.
    is_strange: bool,
    is_disk_empty: bool,
    claims_refused: u64,
}

impl Place {
    pub fn new(shape: Shape, index: usize, claims: ClaimTable) -> Self {
        let map = map_of(&shape, index, 1, None);
        let cluster = Arc::new(Cluster::new(Some(map.clone())));
        let (is_edited, is_strange, is_disk_empty) = (false, false, false);
        let claims_refused = 0;
        Self {
            shape,
            index,
            map,
            claims,
            cluster,
            is_edited,
            is_strange,
            is_disk_empty,
            claims_refused,
        }
    }

    pub fn map(&self) -> &SlotMap {
        &self.map
    }
    pub fn cluster(&self) -> &Arc<Cluster> {
        &self.cluster
    }
    pub fn is_edited(&self) -> bool {
        self.is_edited
    }
    pub fn is_disk_empty(&self) -> bool {
        self.is_disk_empty
    }
    /// Starts that claims forbade.
    pub fn claims_refused(&self) -> u64 {
        self.claims_refused
    }

    /// Two nodes change places in the map of the next start.
    pub fn edit_map(&mut self, changed: (usize, usize)) {
        self.map = map_of(&self.shape, self.index, self.map.version() + 1, Some(changed));
        self.is_edited = true;
        self.is_strange |= changed.0 == self.index || changed.1 == self.index;
    }

    pub fn mend_map(&mut self) {
        self.map = map_of(&self.shape, self.index, self.map.version() + 1, None);
        self.is_edited = false;
    }

    pub fn disk_is_empty(&mut self) {
        (self.is_strange, self.is_disk_empty) = (true, true);
    }

    /// Makes sure that the map's slots are this journal's, before the first request.
    pub fn settle(
        &mut self,
        journal: JournalId,
        recorded: Option<&SlotClaim>,
    ) -> Result<Option<Claim>, ClaimError> {
        let recorded = recorded.map(|claim| Claim {
            node: claim.node.clone(),
            journal,
            version: claim.version,
            slots: claim.slots.parse().expect("what was written reads"),
        });
        let claim = self.claims.settle(&self.map, journal, recorded.as_ref())?;
        assert!(!self.is_strange, "node {} was let in with slots that are not its own", self.index);
        self.cluster = Arc::new(Cluster::new(Some(self.map.clone())));
        self.cluster.set_own_journal(journal);
        self.cluster.set_claims(&self.claims.rows());
        Ok(claim)
    }

    /// The node was not started.
    pub fn refused(&mut self, error: &ClaimError) {
        assert!(self.is_strange, "the node does not start: {error}");
        self.claims_refused += 1;
    }

    /// Whoever gave it slots that are not its own takes them back.
    pub fn ended(&mut self) {
        self.is_disk_empty = false;
        if std::mem::take(&mut self.is_strange) {
            self.mend_map();
        }
    }
}
