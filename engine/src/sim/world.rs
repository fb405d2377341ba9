//! The world: nodes, clients and operators, stepped in an order that the plan's seeds decide.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::counts::Counts;
use super::killed::Armed;
use super::node::{Did, EPOCH_MS, Node, Up};
use super::plan::{Act, End, Order, Plan, Shape, Step};
use super::redis::SimRedis;
use super::router::{Call, Routes};
use super::ship::Shipping;
use super::snapshots::{POINTS, SnapshotCounts};
use crate::cluster::claims::Claim;
use crate::cluster::map::sale_slot;
use crate::http::problem::Problem;
use crate::http::redeem::{self, Ask, Decided};
use crate::journal::sim::{Fault, SimRng};
use crate::kernel::command::{AccountView, Command, Outcome, RedemptionView};
use crate::kernel::control::{ControlCommand, ControlOutcome, SlotClaim};
use crate::kernel::definition::ValidSale;
use crate::kernel::record::{AdminNote, SaleChange};
use crate::shard::gate::Unavailable;
use crate::units::{ItemIndex, KeyHash, MemberId, Points, Quantity, SLOT_COUNT, SaleIndex, Slot};

/// The one sale of a world, its number on every node.
pub const SALE: SaleIndex = SaleIndex::new(0);
pub const SALE_ID: &str = "s";

/// A redemption that a client asked for, and what it was told.
#[derive(Clone, Copy)]
pub struct Wish {
    pub key: KeyHash,
    pub item: ItemIndex,
    pub quantity: u64,
    pub hold: bool,
    pub answer: Option<RedemptionView>,
}

/// A credit or debit that an operator asked for.
pub struct Move {
    pub key: KeyHash,
    pub amount: Points,
    pub is_credit: bool,
    pub answer: Option<AccountView>,
}

/// A member, with a memory of what they were told.
pub struct Client {
    pub member: MemberId,
    pub node: usize,
    pub keys: Vec<Wish>,
    pub moves: Vec<Move>,
}

/// What an operator asked of a node.
pub struct Ordered {
    pub node: usize,
    pub order: Order,
    pub item: ItemIndex,
    pub key: KeyHash,
    /// Of stock: units and total.
    pub answer: Option<(u64, u64)>,
}

/// What a request was about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Asked {
    Claim,
    Define,
    OpenAccount { member: MemberId },
    Redeem { client: usize, at: usize, other: bool, stopped: Option<u32> },
    Probe { item: ItemIndex, is_over: bool },
    Confirm { client: usize, at: usize },
    Cancel { client: usize, at: usize },
    Reverse { client: usize, at: usize },
    Move { client: usize, at: usize },
    Read { member: MemberId },
    Order { at: usize, resumes: u32 },
}

pub enum Answer {
    Redeem(Result<Decided, Problem>),
    Shard(Result<Outcome, Unavailable>),
    Control(Result<ControlOutcome, Unavailable>),
}

/// Behind this number of a turn, so many slots of a walk.
const WALK: u64 = 1 << 32;

type Answering = Pin<Box<dyn Future<Output = Answer>>>;

/// A request on its way.
struct Sent {
    node: usize,
    client: Option<usize>,
    asked: Asked,
    answering: Answering,
}

pub struct World {
    pub shape: Shape,
    pub nodes: Vec<Node>,
    /// Where the nodes share a pool.
    pub redis: Option<SimRedis>,
    /// And pass requests on.
    pub routes: Option<Routes>,
    /// Where they ship.
    pub shipping: Option<Shipping>,
    pub clients: Vec<Client>,
    pub orders: Vec<Ordered>,
    sent: Vec<Sent>,
    sale: Arc<ValidSale>,
    pub now_ms: u64,
    /// Per node: no redemption may begin, as an operator was told.
    pub is_stopped: Vec<bool>,
    resumes: Vec<u32>,
    pub counts: Counts,
    pub is_at_rest: bool,
    next_key: u128,
    /// Per node: when a copy of its data folder is taken away again.
    pub copy_ends_at: Vec<u64>,
}

impl World {
    /// Nodes that run, with a sale and accounts.
    pub fn new(shape: Shape) -> Self {
        let redis = shape.is_shared.then(|| SimRedis::new(shape.nodes.into(), shape.seed));
        let routes = shape.is_shared.then(|| Routes::new(&shape));
        let claims = || routes.as_ref().map(|routes| routes.claims.clone());
        let nodes = (0..shape.nodes.into()).map(|n| Node::new(n, shape, redis.clone(), claims()));
        let nodes: Vec<Node> = nodes.collect();
        let mut world = Self {
            shape,
            clients: Vec::new(),
            orders: Vec::new(),
            sent: Vec::new(),
            sale: Arc::new(definition(&shape)),
            now_ms: 0,
            is_stopped: vec![false; nodes.len()],
            resumes: vec![0; nodes.len()],
            counts: Counts::default(),
            is_at_rest: false,
            next_key: 1,
            copy_ends_at: vec![0; nodes.len()],
            shipping: shape.ships.then(|| Shipping::new(&shape)),
            nodes,
            redis,
            routes,
        };
        for n in 0..usize::from(shape.clients) {
            let node = n % world.nodes.len();
            let member = world
                .member_at(node, if shape.is_shared { 1 + 100 * n as u64 } else { 1 + n as u64 });
            world.clients.push(Client { member, node, keys: Vec::new(), moves: Vec::new() });
        }
        for node in 0..world.nodes.len() {
            world.start(node);
            let sale = Arc::clone(&world.sale);
            let note = AdminNote::default();
            let is_home = world.home_of(node) == node;
            let cluster = world.cluster(node);
            assert!(cluster.is_none_or(|cluster| cluster.is_home(SALE_ID) == is_home));
            let define = ControlCommand::DefineSale { sale, is_home, note };
            world.ask_control(node, Asked::Define, define);
        }
        world.run_until_quiet();
        for client in 0..world.clients.len() {
            let (member, node) = (world.clients[client].member, world.clients[client].node);
            world.open_account(node, member, Points::new(30 + 40 * (client as u64 % 3)));
        }
        world.run_until_quiet();
        world
    }

    /// What came by.
    pub fn counts(&self) -> Counts {
        let net = self.redis.as_ref().map(SimRedis::counts).unwrap_or_default();
        let ship = self.shipping.as_ref().map(Shipping::counts).unwrap_or_default();
        let mut snapshots = SnapshotCounts::default();
        for node in &self.nodes {
            snapshots.add(&node.snapshots.counts);
        }
        let virtual_ms = self.now_ms;
        let routes = self.route_counts();
        Counts { virtual_ms, net, routes, ship, snapshots, ..self.counts }
    }

    pub fn run(&mut self, plan: &Plan) {
        for step in &plan.steps {
            self.step(step);
        }
    }

    fn step(&mut self, step: &Step) {
        self.act(step.act, step.seed);
        let mut rng = SimRng::new(step.seed);
        for _ in 0..step.turns {
            self.turn(&mut rng);
        }
    }

    /// A turn of something, somewhere.
    fn turn(&mut self, rng: &mut SimRng) {
        self.counts.steps += 1;
        if rng.below(if self.redis.is_some() { 3 } else { 6 }) == 0 {
            self.advance(1);
        }
        if rng.below(4) == 0
            && let Some(redis) = &self.redis
        {
            if redis.turn(rng) {
                self.check_shared();
            }
            return;
        }
        if self.routes.is_some() && rng.below(4) == 0 && self.route_turn(rng) {
            return;
        }
        if let Some(shipping) = &mut self.shipping
            && rng.below(3) == 0
        {
            shipping.turn(&self.nodes, rng);
            return;
        }
        let at = rng.below(self.nodes.len() as u64) as usize;
        let shards = u64::from(self.shape.shards);
        let of_snapshots = if self.shape.snapshots { 2 } else { 0 };
        let choice = rng.below(8 + 2 * shards + of_snapshots);
        if choice >= 8 + 2 * shards && self.nodes[at].up.is_some() {
            let slots = 1 << rng.below(13);
            let did = self.nodes[at].walk(slots, rng.coin());
            self.behind_turn(at, did);
            return self.check_shared();
        }
        self.node_turn(at, choice);
    }

    /// What has come of a node's turn.
    fn behind_turn(&mut self, at: usize, did: Did) -> Did {
        let node = &mut self.nodes[at];
        node.follow();
        if node.is_dead() {
            node.dying = Some(End::Power);
        }
        node.check();
        if let Some(first) = node.segments_went() {
            self.check_deletion(at, first);
        }
        if let Some(end) = self.nodes[at].dying {
            self.end(at, end);
        }
        did
    }

    /// I9, of the databases: what went from a journal is in them.
    fn check_deletion(&self, at: usize, first: u64) {
        if let Some(shipping) = &self.shipping {
            shipping.check_has(&self.nodes[at], first);
        }
    }

    fn node_turn(&mut self, at: usize, choice: u64) -> Did {
        let now_ms = self.now_ms;
        let node = &mut self.nodes[at];
        if node.up.is_none() {
            if node.start_at_ms <= now_ms {
                self.start(at);
                self.counts.starts += 1;
                self.forget_lost();
            }
            return Did::Something;
        }
        let did = match choice {
            0..=2 => node.write(),
            3 => node.files(),
            4 | 5 => node.control(),
            6 | 7 => {
                node.door();
                let stored = match &self.shipping {
                    Some(shipping) => shipping.stored_through(at, node),
                    None => node.ledger.last(),
                };
                node.cover_by_store(stored);
                return self.hear(at);
            }
            shard if shard >= WALK => node.walk(shard - WALK, false),
            shard => node.shard(((shard - 8) / 2) as usize),
        };
        self.behind_turn(at, did);
        // What is durable has changed.
        if choice < 3 && did == Did::Something {
            self.check_shared();
        }
        did
    }

    /// A node starts; its claim of slots is recorded before it takes requests.
    fn start(&mut self, at: usize) {
        self.nodes[at].start();
        if let Some(Claim { node, version, slots, .. }) = self.nodes[at].unrecorded() {
            let (node, slots) = (node.clone(), slots.to_string());
            let claim = SlotClaim { node, version: *version, slots };
            self.ask_control(at, Asked::Claim, ControlCommand::ClaimSlots { claim });
        }
    }

    /// A node ends. What its journal had let out has left the node.
    pub fn end(&mut self, at: usize, end: End) {
        if self.nodes[at].up.is_some() && !self.nodes[at].is_copy() {
            self.nodes[at].follow();
            self.nodes[at].door();
            self.hear(at);
        }
        self.nodes[at].ended(end);
        self.counts.crashes += 1;
        self.forget_lost();
    }

    /// Requests to a node that has ended are not answered.
    fn forget_lost(&mut self) {
        let nodes = &self.nodes;
        self.sent.retain(|sent| nodes[sent.node].up.is_some());
    }

    pub fn advance(&mut self, ms: u64) {
        self.now_ms += ms;
        for (at, node) in self.nodes.iter().enumerate() {
            // Where it matters, no clock is as fast as the next.
            let percent = if self.redis.is_some() { [100, 80, 125][at] } else { 100 };
            node.time.advance(Duration::from_micros(ms * 10 * percent));
        }
        if let Some(redis) = &self.redis {
            redis.set_time(self.now_ms);
        }
    }

    /// Polls what was asked of a node, and checks each answer that has come.
    fn hear(&mut self, at: usize) -> Did {
        let mut did = Did::Nothing;
        let mut context = Context::from_waker(Waker::noop());
        let mut index = 0;
        while index < self.sent.len() {
            let sent = &mut self.sent[index];
            if sent.node != at {
                index += 1;
                continue;
            }
            match sent.answering.as_mut().poll(&mut context) {
                Poll::Pending => index += 1,
                Poll::Ready(answer) => {
                    let sent = self.sent.remove(index);
                    self.counts.answers += 1;
                    did = Did::Something;
                    self.check_answer(sent.node, sent.asked, answer);
                }
            }
        }
        did
    }

    /// Who is asked, unless it is down, or a copy of its folder runs.
    fn up(&self, node: usize) -> Option<&Up> {
        let node = &self.nodes[node];
        node.up.as_deref().filter(|_| !node.is_copy())
    }

    fn send(&mut self, node: usize, client: Option<usize>, asked: Asked, answering: Answering) {
        self.sent.push(Sent { node, client, asked, answering });
        // The request reaches the node now; what is known at once is answered at once.
        self.hear(node);
    }

    pub fn ask_shard(
        &mut self,
        node: usize,
        client: Option<usize>,
        asked: Asked,
        command: Command,
    ) {
        let Some(up) = self.up(node) else { return };
        let port = up.ready.port.clone();
        let answering = async move {
            Answer::Shard(match port.submit(command) {
                Ok(pending) => Ok(pending.await),
                Err(unavailable) => Err(unavailable),
            })
        };
        self.send(node, client, asked, Box::pin(answering));
    }

    pub fn ask_control(&mut self, node: usize, asked: Asked, command: ControlCommand) {
        let Some(up) = self.up(node) else { return };
        let core = Arc::clone(&up.ready.core);
        let answering = async move { Answer::Control(core.control(command).await) };
        self.send(node, None, asked, Box::pin(answering));
    }

    pub fn ask_redeem(&mut self, node: usize, client: Option<usize>, asked: Asked, ask: Ask) {
        let Some(up) = self.up(node) else { return };
        let Some(sale) = up.ready.core.catalog.sale(SALE_ID) else { return };
        let ready = Rc::clone(&up.ready);
        let answering = async move { Answer::Redeem(redeem::decide(&ready, &sale, &ask).await) };
        self.send(node, client, asked, Box::pin(answering));
    }

    pub fn open_account(&mut self, node: usize, member: MemberId, points: Points) {
        let command = Command::OpenAccount { member, points };
        let asked = Asked::OpenAccount { member };
        self.ask(node, Slot::of(member), None, asked, Call::Shard(command));
    }

    pub fn new_key(&mut self) -> KeyHash {
        self.next_key += 1;
        KeyHash::new(self.next_key)
    }

    fn act(&mut self, act: Act, seed: u64) {
        if let Some(routes) = &mut self.routes {
            routes.set_entry(seed);
        }
        match act {
            Act::Redeem { client, item, quantity, hold } => {
                let client = self.client(client);
                let item = ItemIndex::new((item % self.shape.items).into());
                let (key, quantity) = (self.new_key(), u64::from(quantity));
                let at = self.clients[client].keys.len();
                self.clients[client].keys.push(Wish { key, item, quantity, hold, answer: None });
                self.redeem(client, at, false);
            }
            Act::Retry { client, back, other } => {
                let Some((client, at)) = self.key(client, back) else { return };
                let other = other && self.clients[client].keys[at].answer.is_some();
                self.redeem(client, at, other);
            }
            Act::Confirm { client, back } => {
                let Some((client, at, view)) = self.answered(client, back) else { return };
                let command = Command::Confirm { member: view.member, id: view.id };
                self.ask_of_id(Some(client), view, Asked::Confirm { client, at }, command);
            }
            Act::Cancel { client, back } => {
                let Some((client, at, view)) = self.answered(client, back) else { return };
                let command = Command::Cancel { member: view.member, id: view.id };
                self.ask_of_id(Some(client), view, Asked::Cancel { client, at }, command);
            }
            Act::Reverse { client, back } => {
                let Some((client, at, view)) = self.answered(client, back) else { return };
                let key = KeyHash::of(&view.id.get().to_le_bytes());
                let command = Command::Reverse { id: view.id, key, note: Arc::default() };
                self.ask_of_id(None, view, Asked::Reverse { client, at }, command);
            }
            Act::Credit { client, amount, back } => self.move_points(client, amount, back, true),
            Act::Debit { client, amount, back } => self.move_points(client, amount, back, false),
            Act::Read { client, .. } => {
                let client = self.client(client);
                let Client { member, node, .. } = self.clients[client];
                let command = Call::Shard(Command::ReadAccount { member });
                let asked = Asked::Read { member };
                self.ask(node, Slot::of(member), Some(client), asked, command);
            }
            Act::HangUp { client } => {
                let client = self.client(client);
                self.sent.retain(|sent| sent.client != Some(client));
            }
            Act::Order { node, order, item } => {
                let node = usize::from(node) % self.nodes.len();
                let of_stock = matches!(order, Order::Add { .. } | Order::Withdraw { .. });
                let node = if of_stock { self.home_of(node) } else { node };
                self.order(node, order, ItemIndex::new((item % self.shape.items).into()));
            }
            Act::Sleep { ms } => self.advance(ms.into()),
            Act::Crash { node, end, down_ms } => {
                let start_at_ms = self.now_ms + u64::from(down_ms);
                let at = usize::from(node) % self.nodes.len();
                self.nodes[at].start_at_ms = start_at_ms;
                self.end(at, end);
            }
            Act::CrashAt { node, end, nth } => {
                self.node(node).crash_in = Some(Armed { count: nth.into(), only: None, end });
            }
            Act::TearWrite { node, nth } => self.node(node).break_disk(nth, Fault::PowerLoss),
            Act::FailWrite { node, nth } => self.node(node).break_disk(nth, Fault::Error),
            Act::SetClock { node, by_ms } => {
                let wall_ms = EPOCH_MS + self.now_ms;
                let wall_ms = wall_ms.saturating_add_signed(by_ms.into());
                self.node(node).time.set_wall_ms(wall_ms);
            }
            Act::Drain { node } => self.node(node).drain(),
            Act::Ship(fault) => {
                if let Some(shipping) = &mut self.shipping {
                    shipping.act(fault, seed);
                }
            }
            Act::Snapshot { node } => self.node(node).want_snapshot(),
            Act::CrashAtPoint { node, end, point } => {
                let only = Some(POINTS[usize::from(point) % POINTS.len()]);
                self.node(node).crash_in = Some(Armed { count: 1, only, end });
            }
            Act::BreakSnapshots { node, nth, fault } => self.node(node).break_snapshots(nth, fault),
            Act::RotSnapshot { node } => self.node(node).rot_snapshot(&mut SimRng::new(seed)),
            Act::OlderJournal { node } => self.node(node).start_on_older_journal(),
            shared => self.act_on_shared(shared),
        }
    }

    pub fn node(&mut self, node: u8) -> &mut Node {
        let count = self.nodes.len();
        &mut self.nodes[usize::from(node) % count]
    }

    fn client(&self, client: u8) -> usize {
        usize::from(client) % self.clients.len()
    }

    fn key(&self, client: u8, back: u8) -> Option<(usize, usize)> {
        let client = self.client(client);
        let at = self.clients[client].keys.len().checked_sub(1 + usize::from(back))?;
        Some((client, at))
    }

    /// A redemption that the client was told of.
    fn answered(&self, client: u8, back: u8) -> Option<(usize, usize, RedemptionView)> {
        let client = self.client(client);
        let keys = self.clients[client].keys.iter().enumerate().rev();
        let mut known = keys.filter_map(|(at, key)| Some((client, at, key.answer?)));
        known.nth(back.into())
    }

    pub fn redeem(&mut self, client: usize, at: usize, other: bool) {
        let Client { member, node, .. } = self.clients[client];
        let Wish { key, item, quantity, hold, .. } = self.clients[client].keys[at];
        let quantity = if other { quantity + 1 } else { quantity };
        let stopped = self.is_stopped[node].then_some(self.resumes[node]);
        let asked = Asked::Redeem { client, at, other, stopped };
        let ask = Ask { member, key, item: Some(item), quantity, hold };
        self.ask(node, Slot::of(member), Some(client), asked, Call::Redeem(ask));
    }

    /// Of a redemption: its id has the slot.
    fn ask_of_id(
        &mut self,
        client: Option<usize>,
        view: RedemptionView,
        asked: Asked,
        command: Command,
    ) {
        let of = self.clients.iter().find(|client| client.member == view.member);
        let node = of.expect("whoever was told of it").node;
        self.ask(node, view.id.slot(), client, asked, Call::Shard(command));
    }

    fn move_points(&mut self, client: u8, amount: u8, back: u8, is_credit: bool) {
        let client = self.client(client);
        let moves = self.clients[client].moves.len();
        let at = match moves.checked_sub(usize::from(back)) {
            Some(at) if back > 0 => at,
            _ => {
                let (key, amount) = (self.new_key(), Points::new(amount.into()));
                let asked = Move { key, amount, is_credit, answer: None };
                self.clients[client].moves.push(asked);
                moves
            }
        };
        self.ask_move(client, at);
    }

    pub fn ask_move(&mut self, client: usize, at: usize) {
        let Client { member, node, .. } = self.clients[client];
        let Move { key, amount, is_credit, .. } = self.clients[client].moves[at];
        let note = Arc::default();
        let command = if is_credit {
            Command::Credit { member, key, amount, note }
        } else {
            Command::Debit { member, key, amount, note }
        };
        let asked = Asked::Move { client, at };
        self.ask(node, Slot::of(member), None, asked, Call::Shard(command));
    }

    pub fn order(&mut self, node: usize, order: Order, item: ItemIndex) {
        let at = if let Order::Again { back } = order {
            let Some(at) = self.orders.len().checked_sub(1 + usize::from(back)) else { return };
            at
        } else {
            let key = self.new_key();
            self.orders.push(Ordered { node, order, item, key, answer: None });
            self.orders.len() - 1
        };
        self.ask_order(at);
    }

    pub fn ask_order(&mut self, at: usize) {
        let Ordered { node, order, item, key, .. } = self.orders[at];
        let note = AdminNote::default();
        let change = |change| ControlCommand::Change { sale: SALE, change, note: note.clone() };
        let command = match order {
            Order::Open => change(SaleChange::Opened),
            Order::Pause => change(SaleChange::Paused),
            Order::Resume => change(SaleChange::Resumed),
            Order::Close => change(SaleChange::Ended),
            Order::Add { quantity } => {
                let quantity = Quantity::new(quantity.into());
                ControlCommand::AddStock { item, quantity, key, note }
            }
            Order::Withdraw { quantity } => {
                let (asked, taken) = (Quantity::new(quantity.into()), Quantity::ZERO);
                ControlCommand::WithdrawStock { item, asked, taken, key, note }
            }
            Order::Again { .. } => unreachable!("it names another"),
        };
        if matches!(order, Order::Resume | Order::Open) {
            self.is_stopped[node] = false;
            self.resumes[node] += 1;
        }
        let resumes = self.resumes[node];
        let asked = Asked::Order { at, resumes };
        if matches!(order, Order::Add { .. } | Order::Withdraw { .. }) {
            return self.ask(node, sale_slot(SALE_ID), None, asked, Call::Control(command));
        }
        // What concerns a whole sale is told to every node.
        self.ask_control(node, asked, command);
    }

    /// Whether nobody asked to go on since an order with this count.
    pub fn is_newest(&self, node: usize, resumes: u32) -> bool {
        self.resumes[node] == resumes
    }

    /// One turn of everything; whether anything moved.
    pub fn round(&mut self) -> bool {
        let shards = u64::from(self.shape.shards);
        let mut moved = false;
        for at in 0..self.nodes.len() {
            for choice in [4, 8, 10, 0, 3, 6, WALK + SLOT_COUNT as u64] {
                if choice < 8 + 2 * shards || choice > WALK && self.shape.snapshots {
                    moved |= self.node_turn(at, choice) == Did::Something;
                }
            }
        }
        if let Some(redis) = &self.redis
            && redis.deliver()
        {
            moved = true;
            self.check_shared();
        }
        self.probe_nodes();
        moved | self.deliver_requests()
    }

    /// Everything in turn until nothing moves any more.
    pub fn run_until_quiet(&mut self) {
        let mut quiet = 0;
        for round in 0..60_000 {
            let moved = self.round();
            // Leases wait for their time, too.
            if round % 8 == 7 || self.redis.is_some() && !moved {
                self.advance(1);
            }
            let is_waiting = !self.sent.is_empty() || !self.requests_are_through();
            quiet = if moved || is_waiting { 0 } else { quiet + 1 };
            if quiet > 12 {
                return;
            }
        }
        let waiting: Vec<_> = self.sent.iter().map(|sent| sent.asked).collect();
        panic!("the world does not come to rest: {waiting:?}");
    }
}

fn definition(shape: &Shape) -> ValidSale {
    let item = |at: u8| {
        serde_json::json!({
            "sku": format!("i{at}"), "name": "I", "points": shape.price,
            "stock": shape.stock, "limit_per_member": shape.limit,
        })
    };
    let closes_s = shape.closes_ms / 1_000;
    let sale = serde_json::json!({
        "id": SALE_ID, "name": "S", "opens_at": "2027-01-15T08:00:00.020Z",
        "closes_at": format!("2027-01-15T08:{:02}:{:02}Z", closes_s / 60, closes_s % 60),
        "hold_ttl_ms": shape.hold_ttl_ms,
        "items": (0..shape.items).map(item).collect::<Vec<_>>(),
    });
    ValidSale::parse(&sale.to_string()).expect("a good sale")
}
