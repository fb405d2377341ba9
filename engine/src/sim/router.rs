//! The way of a request between nodes that sell one sale: a client reaches any of them, and a node
//! that does not own the slot passes it on, once.
//!
//! ```text
//! client ─► any node: decide ─┬─ here ──────────────────────────────► shard, control
//!                             └─ another's ─► hop ─► decide, forwarded ─┬─ here ─► the same
//!                                    lost, late, twice, cut off         └─ refused: wrong-node
//! ```
//! The map, the table of decisions, the health of nodes and the rules of claims are production
//! code; made are the network, the table of claims in the database, and the operator who gives a
//! node another map, or an empty disk under its old name. What an answer meets on its way back is
//! not: an answer that is lost is an answer that was given, and is checked as such.

use super::place::{ClaimTable, Place};
use super::plan::{End, Shape};
use super::redis::SimRedis;
use super::world::{Asked, World};
use crate::cluster::map::NodeIndex;
use crate::cluster::nodes::{Cluster, Health};
use crate::cluster::route::{Decision, Misrouted, decide};
use crate::http::redeem::Ask;
use crate::journal::sim::SimRng;
use crate::kernel::command::Command;
use crate::kernel::control::ControlCommand;
use crate::units::{MemberId, Slot};

/// Redirects that a client follows.
const REDIRECTS_MAX: u8 = 3;
/// Hops under way, at most: behind that nothing comes twice.
const HOPS_MAX: usize = 40;

/// How long an empty disk stays in a data folder's place, where nothing starts on it.
const EMPTY_MS: u64 = 40;

/// What a request asks for.
#[derive(Clone)]
pub enum Call {
    Shard(Command),
    Redeem(Ask),
    Control(ControlCommand),
}

/// A request of a client or an operator.
#[derive(Clone)]
pub struct Request {
    pub slot: Slot,
    pub client: Option<usize>,
    pub asked: Asked,
    pub call: Call,
    redirects: u8,
}

/// A request on its way: from a node, or from a client that was sent on.
#[derive(Clone)]
struct Hop {
    from: Option<usize>,
    to: usize,
    due_ms: u64,
    was_put_off: bool,
    request: Request,
}

/// What came by between nodes, so that a test can see that it did.
#[derive(Clone, Copy, Default, Debug)]
pub struct RouteCounts {
    pub forwarded: u64,
    pub redirected: u64,
    pub wrong_node: u64,
    pub node_down: u64,
    pub lost: u64,
    pub repeated: u64,
    pub claims_refused: u64,
}

/// Requests between nodes, and the network that they take.
pub struct Routes {
    hops: Vec<Hop>,
    pub claims: ClaimTable,
    policy: Misrouted,
    /// Which node the next request reaches.
    entry: u64,
    /// Nodes that do not hear each other, and until when.
    cuts: Vec<(usize, usize, u64)>,
    /// Everything is healed: every request arrives.
    is_calm: bool,
    counts: RouteCounts,
}

impl Routes {
    pub fn new(shape: &Shape) -> Self {
        let policy = if shape.seed % 10 == 3 { Misrouted::Redirect } else { Misrouted::Forward };
        Self {
            hops: Vec::new(),
            claims: ClaimTable::default(),
            policy,
            entry: shape.seed,
            cuts: Vec::new(),
            is_calm: false,
            counts: RouteCounts::default(),
        }
    }

    /// The requests of a step reach nodes by its seed.
    pub fn set_entry(&mut self, seed: u64) {
        self.entry = seed;
    }

    fn next_entry(&mut self, count: usize) -> usize {
        self.entry = self.entry.wrapping_add(1);
        SimRng::new(self.entry).below(count as u64) as usize
    }

    fn is_cut(&self, one: usize, other: usize, now_ms: u64) -> bool {
        let is_it = |(a, b, until): &(usize, usize, u64)| {
            now_ms < *until && ((*a, *b) == (one, other) || (*a, *b) == (other, one))
        };
        self.cuts.iter().any(is_it)
    }
}

impl World {
    /// A member whose requests this node decides: `from`, or the next one behind it.
    pub fn member_at(&self, node: usize, from: u64) -> MemberId {
        let Some(place) = &self.nodes[node].place else { return MemberId::new(from) };
        let map = place.map();
        let is_own = |member: &MemberId| map.owner(Slot::of(*member)).index() == node;
        (from..=u64::MAX)
            .map(MemberId::new)
            .find(is_own)
            .expect("every node owns a part of the slots")
    }

    /// Asks for something: where nodes share a sale, whichever of them; else this one.
    pub fn ask(
        &mut self,
        node: usize,
        slot: Slot,
        client: Option<usize>,
        asked: Asked,
        call: Call,
    ) {
        let request = Request { slot, client, asked, call, redirects: 0 };
        let count = self.nodes.len();
        match &mut self.routes {
            Some(routes) => {
                let entry = routes.next_entry(count);
                self.arrive(entry, None, request);
            }
            None => self.hand(node, request),
        }
    }

    /// What a node that is one of several knows of the others.
    pub fn cluster(&self, at: usize) -> Option<&Cluster> {
        self.nodes[at].place.as_ref().map(|place| &**place.cluster())
    }

    /// A request has reached a node; `from`: another one has passed it on.
    fn arrive(&mut self, at: usize, from: Option<usize>, request: Request) {
        let is_heard = self.nodes[at].is_serving();
        let now_ms = self.now_ms;
        let routes = self.routes.as_mut().expect("nodes that share a sale");
        if !is_heard {
            assert!(!routes.is_calm, "node {at} does not take requests, at rest");
            routes.counts.node_down += 1;
            if let Some(from) = from {
                self.note(from, at, Health::Down);
            }
            return;
        }
        let place = self.nodes[at].place.as_ref().expect("it serves, among others");
        let cluster = place.cluster();
        let map = cluster.map().expect("as above");
        // Operators' tools are not asked to follow redirects.
        let policy = if request.client.is_some() { routes.policy } else { Misrouted::Forward };
        let is_down = |node: NodeIndex| cluster.peer(node).is_down();
        let decision = decide(map, request.slot, policy, || from.is_some(), is_down);
        let (due_ms, was_put_off) = (now_ms, false);
        match decision {
            Decision::Here => {
                let owner = routes.claims.owner(request.slot);
                let (slot, own) = (request.slot, self.nodes[at].journal());
                assert_eq!(owner, Some(own), "node {at} decides for slot {slot}, not its own");
                self.hand(at, request);
            }
            Decision::Forward(to) => {
                assert!(from.is_none(), "a request was passed on twice");
                routes.counts.forwarded += 1;
                let (from, to) = (Some(at), to.index());
                routes.hops.push(Hop { from, to, due_ms, was_put_off, request });
            }
            Decision::Redirect(to) if request.redirects < REDIRECTS_MAX => {
                assert!(from.is_none(), "another node was sent to a third one");
                routes.counts.redirected += 1;
                let (from, to) = (None, to.index());
                let request = Request { redirects: request.redirects + 1, ..request };
                routes.hops.push(Hop { from, to, due_ms, was_put_off, request });
            }
            Decision::Redirect(_) => assert!(!routes.is_calm, "sent round and round, at rest"),
            Decision::WrongNode(owner) => {
                assert!(!routes.is_calm, "{owner:?} owns a request by one map alone, at rest");
                assert!(from.is_some(), "only what a node has passed on can be wrong");
                routes.counts.wrong_node += 1;
            }
            Decision::Down(node) => {
                assert!(!routes.is_calm, "{node:?} is not down, at rest");
                routes.counts.node_down += 1;
            }
        }
    }

    /// A node decides the request.
    fn hand(&mut self, node: usize, request: Request) {
        let Request { client, asked, call, .. } = request;
        match call {
            Call::Shard(command) => self.ask_shard(node, client, asked, command),
            Call::Redeem(ask) => self.ask_redeem(node, client, asked, ask),
            Call::Control(command) => self.ask_control(node, asked, command),
        }
    }

    /// What a node has seen of another one.
    fn note(&self, from: usize, of: usize, health: Health) {
        let Some(cluster) = self.cluster(from) else { return };
        let map = cluster.map().expect("it is one of several");
        let of = map.nodes().nth(of).expect("maps differ in slots alone").0;
        cluster.peer(of).note(health);
    }

    fn probe_node(&self, from: usize, to: usize) {
        let Some(routes) = &self.routes else { return };
        let is_heard = self.nodes[to].is_serving() && !routes.is_cut(from, to, self.now_ms);
        if from != to {
            self.note(from, to, if is_heard { Health::Up } else { Health::Down });
        }
    }

    /// Every node asks every other one, and looks for claims that it does not know.
    pub fn probe_nodes(&self) {
        let Some(routes) = &self.routes else { return };
        for (from, node) in self.nodes.iter().enumerate() {
            for to in 0..self.nodes.len() {
                self.probe_node(from, to);
            }
            if let Some(cluster) = node.place.as_ref().map(Place::cluster)
                && cluster.journals().is_none()
            {
                cluster.set_claims(&routes.claims.rows());
            }
        }
    }

    /// One request goes its way between nodes, or meets what the network has for it; whether it
    /// did.
    pub fn route_turn(&mut self, rng: &mut SimRng) -> bool {
        let now_ms = self.now_ms;
        if rng.below(16) == 0 {
            self.probe_nodes();
        }
        let weather = self.redis.as_ref().map(SimRedis::weather).unwrap_or_default();
        let Some(routes) = &mut self.routes else { return false };
        let is_due = |(_, hop): &(usize, &Hop)| hop.due_ms <= now_ms;
        let due: Vec<usize> =
            routes.hops.iter().enumerate().filter(is_due).map(|(at, _)| at).collect();
        let Some(first) = due.first() else { return false };
        let pick = if weather.is_mixed { rng.below(due.len() as u64) as usize } else { 0 };
        let at = if pick == 0 { *first } else { due[pick] };
        let hop = &mut routes.hops[at];
        if weather.slow_ms > 0 && !hop.was_put_off {
            hop.was_put_off = true;
            hop.due_ms = now_ms + rng.below(weather.slow_ms.into());
            return true;
        }
        let hop = routes.hops.remove(at);
        if let Some(from) = hop.from
            && routes.is_cut(from, hop.to, now_ms)
        {
            routes.counts.node_down += 1;
            self.note(from, hop.to, Health::Down);
            return true;
        }
        if rng.below(100) < u64::from(weather.lost) {
            routes.counts.lost += 1;
            return true;
        }
        // A connection that broke as it was used: the request is sent once more.
        let is_again = rng.below(100) < u64::from(weather.twice) && routes.hops.len() < HOPS_MAX;
        if is_again {
            routes.counts.repeated += 1;
            let due_ms = now_ms + rng.below(1 + u64::from(weather.slow_ms));
            routes.hops.push(Hop { due_ms, was_put_off: true, ..hop.clone() });
        }
        self.arrive(hop.to, hop.from, hop.request);
        true
    }

    pub fn requests_are_through(&self) -> bool {
        self.routes.as_ref().is_none_or(|routes| routes.hops.is_empty())
    }

    /// All requests that are on their way, in order; whether there were any.
    pub fn deliver_requests(&mut self) -> bool {
        let mut rng = SimRng::new(0);
        let mut did = false;
        while self.route_turn(&mut rng) {
            did = true;
        }
        did
    }

    /// An operator starts a node with another map: two nodes changed places in it.
    pub fn edit_map(&mut self, at: usize, pick: u8) {
        let count = self.nodes.len();
        let one = usize::from(pick) % count;
        let other = (one + 1) % count;
        self.end(at, End::Kill);
        if let Some(place) = &mut self.nodes[at].place {
            place.edit_map((one, other));
        }
        self.nodes[at].start_at_ms = self.now_ms;
    }

    /// A node comes back with nothing, under its old name.
    pub fn empty_disk(&mut self, at: usize) {
        self.end(at, End::Kill);
        self.nodes[at].put_empty();
        self.nodes[at].start_at_ms = self.now_ms;
        self.copy_ends_at[at] = self.now_ms + EMPTY_MS;
    }

    pub fn cut_nodes(&mut self, one: usize, other: usize, ms: u64) {
        let until = self.now_ms + ms;
        if let Some(routes) = &mut self.routes {
            routes.cuts.retain(|(.., until)| self.now_ms < *until);
            routes.cuts.push((one, other, until));
        }
    }

    /// All hear each other, and whoever has a wrong map gets the right one.
    pub fn heal_routes(&mut self) {
        let Some(routes) = &mut self.routes else { return };
        routes.cuts.clear();
        for hop in &mut routes.hops {
            hop.due_ms = 0;
        }
        for at in 0..self.nodes.len() {
            if self.nodes[at].place.as_ref().is_some_and(Place::is_edited) {
                self.end(at, End::Kill);
                let place = self.nodes[at].place.as_mut();
                place.expect("just seen").mend_map();
                self.nodes[at].start_at_ms = 0;
            }
        }
    }

    /// From here on every request arrives.
    pub fn calm_routes(&mut self) {
        self.probe_nodes();
        if let Some(routes) = &mut self.routes {
            routes.is_calm = true;
        }
    }

    pub fn route_counts(&self) -> RouteCounts {
        let counts = self.routes.as_ref().map(|routes| routes.counts).unwrap_or_default();
        let places = self.nodes.iter().filter_map(|node| node.place.as_ref());
        let refused = places.map(Place::claims_refused).sum();
        RouteCounts { claims_refused: refused, ..counts }
    }

    /// No member's requests are decided by two journals: whoever has an account anywhere has it
    /// where the slot is claimed.
    pub fn check_owners(&self) {
        let Some(routes) = &self.routes else { return };
        for (at, node) in self.nodes.iter().enumerate() {
            for member in node.ledger.accounts.keys() {
                let slot = Slot::of(MemberId::new(*member));
                let owner = routes.claims.owner(slot);
                assert_eq!(owner, Some(node.journal()), "member {member} at node {at}: {slot}");
            }
        }
    }
}
