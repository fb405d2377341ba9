//! A shard: one thread that drains its inbox, decides, and hands records to the journal.
//!
//! ```text
//! loop:  messages → batch of requests → prefetch → decide each → push records and completions
//!                                                      └► refusals that show no member: reply now
//!        → holds whose time has come → one slot of a visit, if one is under way → sleep if idle
//! ```
//! [`Shard`] is one turn of that loop, given the time, and never waits, so a simulation may step it
//! on a thread of its own; [`run`] is the thread that does the waiting.
//!
//! Invariants: one batch never needs more room in the ring than was seen free before it began, so
//! a decision that was made is always journaled. Nothing here waits for a disk or a server.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use super::catalog::SaleEntry;
use super::completion::{Completion, StockEffect};
use super::inbox::{Inbox, Request};
use super::message::{Acknowledge, Message, SlotContent, SlotReport, Visitor};
use super::port::{PortShared, ReplyTo};
use crate::clock::NodeClock;
use crate::journal::ring::Producer;
use crate::kernel::catalog::SalePhase;
use crate::kernel::command::{Command, Outcome};
use crate::kernel::effects::Effects;
use crate::kernel::record::{CONTROL, ChangeSeen, SaleChange};
use crate::kernel::slot::SlotState;
use crate::kernel::state::{PREFETCH_GROUP, ShardState};
use crate::planted::{self, Bug};
use crate::stock::gauges::UnitGauges;
use crate::stock::line::StockLines;
use crate::units::{NodeTime, SaleIndex, Seq, Slot};

/// The longest a shard sleeps: bounds how late a hold may expire.
const SLEEP_MAX: Duration = Duration::from_millis(100);
/// How long a shard leaves the journal alone when the ring to it is full.
const RING_FULL_PAUSE: Duration = Duration::from_micros(200);
/// The same, with a batch in hand that did not fit.
const HAND_OVER_PAUSE: Duration = Duration::from_micros(100);
/// How soon a shard without requests looks whether its walk may go on.
const WALK_PAUSE: Duration = Duration::from_millis(1);
/// Bytes that one command may leave in the ring; admin notes make the longest records.
const RECORD_BYTES_MAX: usize = 2048;
/// Holds expired between two batches.
const EXPIRY_BATCH: usize = 128;
/// Batches between two publications of the gauges.
const GAUGE_BATCHES: u32 = 64;

/// What a shard is made of.
pub struct ShardParts {
    pub index: usize,
    pub state: ShardState,
    pub inboxes: Arc<super::inbox::Inboxes>,
    pub producer: Producer<Completion>,
    pub ports: Arc<[PortShared]>,
    pub stock: Arc<StockLines>,
    pub gauges: Arc<UnitGauges>,
    /// The sale of each item, by item number.
    pub sale_of: Vec<Arc<SaleEntry>>,
    pub clock: Arc<NodeClock>,
    pub batch: usize,
}

/// Work on all slots, one between two batches.
enum SlotWalk {
    Visit(Arc<Visitor>),
    DropKeys {
        sale: SaleIndex,
        done: Acknowledge,
    },
    /// Memory for the redemptions of so many units.
    MakeReady {
        units: u64,
    },
}

/// A shard between two turns.
pub struct Shard {
    parts: ShardParts,
    /// Of the turn at hand.
    now: NodeTime,
    requests: Vec<Request>,
    /// Records of the batch so far, and what is to happen behind each step of it.
    effects: Effects,
    entries: Vec<(u32, u32, Completion)>,
    is_port_dirty: Vec<bool>,
    /// Walks under way, the first at slot `walk_at` of the owned ones.
    walks: VecDeque<SlotWalk>,
    walk_at: usize,
    owned: Vec<Slot>,
    batches_since_publish: u32,
    is_stopping: bool,
}

/// What a turn came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Turn {
    /// There was something to do; there may be more.
    Busy,
    /// Nothing to do for so long, unless something arrives.
    Idle(Duration),
    /// The journal is behind, and needs the core: look again after such a pause.
    RingFull(Duration),
    /// It was told to stop, and nothing is left.
    Ended,
}

/// Runs a shard until it is told to stop, then gives its state back.
pub fn run(parts: ShardParts) -> ShardState {
    let (inboxes, clock) = (Arc::clone(&parts.inboxes), Arc::clone(&parts.clock));
    let inbox = inboxes.get(parts.index);
    inbox.attach();
    let mut shard = Shard::new(parts);
    loop {
        match shard.turn(clock.now(), inbox) {
            Turn::Busy => {}
            Turn::Idle(limit) => inbox.sleep(limit),
            Turn::RingFull(pause) => std::thread::sleep(pause),
            Turn::Ended => return shard.into_state(),
        }
    }
}

impl Shard {
    pub fn new(parts: ShardParts) -> Self {
        let owned: Vec<Slot> = parts.state.slots().collect();
        let members = parts.state.states().map(SlotState::member_count).sum();
        parts.gauges.add_members(parts.index, members);
        let mut shard = Self {
            now: NodeTime::default(),
            requests: Vec::with_capacity(parts.batch),
            effects: Effects::default(),
            entries: Vec::new(),
            is_port_dirty: vec![false; parts.ports.len()],
            walks: VecDeque::new(),
            walk_at: 0,
            owned,
            batches_since_publish: 0,
            is_stopping: false,
            parts,
        };
        // First: making memory ready takes a while, and the node is asked for its units meanwhile.
        shard.publish_gauges();
        let mut known: Vec<_> = shard.parts.sale_of.clone();
        known.dedup_by_key(|sale| sale.index);
        for sale in known.iter().filter(|sale| sale.phase() < SalePhase::Ended) {
            shard.make_ready(sale);
        }
        shard
    }

    pub fn into_state(self) -> ShardState {
        self.parts.state
    }

    /// One turn: messages, a batch of requests, holds whose time has come, a slot of a walk.
    pub fn turn(&mut self, now: NodeTime, inbox: &Inbox) -> Turn {
        self.now = now;
        if !self.hand_over() {
            return Turn::RingFull(HAND_OVER_PAUSE);
        }
        let mut is_idle = self.take_messages(inbox);
        is_idle &= self.decide_batch(inbox);
        is_idle &= self.expire();
        // Before a walk, which may go on for long: the gauges are what people look at.
        if is_idle && self.batches_since_publish > 0 {
            self.publish_gauges();
        }
        is_idle &= self.walk();
        if !self.hand_over() {
            return Turn::RingFull(HAND_OVER_PAUSE);
        }
        if !is_idle {
            return Turn::Busy;
        }
        if self.is_stopping && inbox.depth() == 0 {
            return Turn::Ended;
        }
        if inbox.depth() > 0 {
            // Requests wait, and the ring has no room.
            return Turn::RingFull(RING_FULL_PAUSE);
        }
        Turn::Idle(self.sleep_limit())
    }

    fn sleep_limit(&self) -> Duration {
        if !self.walks.is_empty() {
            return WALK_PAUSE;
        }
        let Some(at) = self.parts.state.next_expiry() else { return SLEEP_MAX };
        let ms = at.get().saturating_sub(self.now.get());
        Duration::from_millis(ms.max(1)).min(SLEEP_MAX)
    }

    /// Returns whether there was nothing to do.
    fn take_messages(&mut self, inbox: &Inbox) -> bool {
        let messages = inbox.take_messages();
        let is_idle = messages.is_empty();
        for message in messages {
            match message {
                Message::Define(sale, done) => {
                    self.define(&sale);
                    self.push_call(&[], 0, done);
                }
                Message::Change(sale, change, done) => self.change(sale, change, done),
                Message::DropKeys(sale, done) => {
                    self.walks.push_back(SlotWalk::DropKeys { sale, done });
                }
                Message::Visit(visitor) => self.walks.push_back(SlotWalk::Visit(visitor)),
                Message::Stop => self.is_stopping = true,
            }
        }
        is_idle
    }

    fn define(&mut self, sale: &Arc<SaleEntry>) {
        let (rule, items) = sale.rules();
        let index = self.parts.state.catalog_mut().define_sale(rule, items);
        assert_eq!(index, sale.index, "sales reach a shard in their order");
        self.make_ready(sale);
        self.parts.sale_of.extend(sale.items().map(|_| Arc::clone(sale)));
    }

    fn make_ready(&mut self, sale: &SaleEntry) {
        let stock = sale.definition().items.iter().map(|item| u64::from(item.stock.get()));
        self.walks.push_back(SlotWalk::MakeReady { units: stock.sum() });
    }

    fn change(&mut self, sale: SaleIndex, change: SaleChange, done: Acknowledge) {
        self.parts.state.catalog_mut().change(sale, change);
        let seen = ChangeSeen { shard: self.parts.index as u16, sale, change, at: self.now };
        let mut record = Vec::new();
        seen.encode(CONTROL, &mut record);
        if planted::is(Bug::BarrierForgotten) {
            done(Seq::NONE);
            return self.push_call(&record, 1, Box::new(|_| {}));
        }
        self.push_call(&record, 1, done);
    }

    fn decide_batch(&mut self, inbox: &Inbox) -> bool {
        let count = self.parts.batch.min(self.steps_with_room());
        while self.requests.len() < count {
            let Some(request) = inbox.pop() else { break };
            self.requests.push(request);
        }
        if self.requests.is_empty() {
            // A full ring is not idleness, but there is nothing to do until the journal drains it;
            // it will, and the shard looks again after a short sleep.
            return true;
        }
        let requests = std::mem::take(&mut self.requests);
        let now = self.now;
        let member_of = |request: &Request| match request.command {
            Command::Redeem { member, .. } => Some(member),
            _ => None,
        };
        for (group, at) in requests.chunks(PREFETCH_GROUP).zip((0..).step_by(PREFETCH_GROUP)) {
            self.parts.state.prefetch_ahead(&requests, at, member_of);
            for request in group {
                self.decide(now, request);
            }
        }
        self.requests = requests;
        self.requests.clear();
        self.wake_ports();
        self.publish_gauges_now_and_then();
        false
    }

    fn decide(&mut self, now: NodeTime, request: &Request) {
        let before = Marks::of(&self.effects);
        let parts = &mut self.parts;
        let outcome =
            parts.state.decide(now, &request.command, parts.stock.as_ref(), &mut self.effects);
        if before == Marks::of(&self.effects) && leaves_at_once(&outcome) {
            self.reply_now(request.reply_to, outcome);
            return;
        }
        match (&outcome, &request.command) {
            (Outcome::Redemption { view, replayed: false }, Command::Redeem { .. }) => {
                parts.sale_of[view.item.get() as usize].remember_keyed(view.member);
            }
            (Outcome::Account { replayed: false, .. }, Command::OpenAccount { .. }) => {
                parts.gauges.add_members(parts.index, 1);
            }
            _ => {}
        }
        self.add_step(before, Some((request.reply_to, outcome)));
    }

    fn reply_now(&mut self, to: ReplyTo, outcome: Outcome) {
        let port = usize::from(to.port);
        self.parts.ports[port].reply(to.ticket, outcome);
        self.is_port_dirty[port] = true;
    }

    fn wake_ports(&mut self) {
        for (port, is_dirty) in self.parts.ports.iter().zip(&mut self.is_port_dirty) {
            if std::mem::take(is_dirty) {
                port.wake();
            }
        }
    }

    /// Adds what happened since `before` to the batch: one entry where one will do, the records
    /// in the first, the reply in the last.
    fn add_step(&mut self, before: Marks, mut reply: Option<(ReplyTo, Outcome)>) {
        if planted::is(Bug::SellFreedEarly) {
            for (item, quantity) in self.effects.given_back.drain(before.given_back..) {
                self.parts.stock.line(item).give_back(u64::from(quantity.get()));
            }
        }
        let effects = &self.effects;
        let after = Marks::of(effects);
        let given_back = &effects.given_back[before.given_back..];
        let confirmed = &effects.confirmed[before.confirmed..];
        let mut records = (after.bytes - before.bytes) as u32;
        let mut record_count = after.record_count - before.record_count;
        let entries = given_back.len().max(confirmed.len()).max(1);
        for at in 0..entries {
            let stock = StockEffect {
                given_back: given_back.get(at).copied(),
                confirmed: confirmed.get(at).copied(),
            };
            let reply = if at + 1 == entries { reply.take() } else { None };
            let completion = Completion { reply, stock, call: None };
            self.entries.push((records, record_count, completion));
            (records, record_count) = (0, 0);
        }
    }

    fn push_call(&mut self, records: &[u8], count: u32, call: Acknowledge) {
        self.effects.records.extend_from_slice(records);
        self.effects.record_count += count;
        let completion = Completion { call: Some(call), ..Completion::default() };
        self.entries.push((records.len() as u32, count, completion));
    }

    /// Steps that the journal's ring surely has room for, beyond what is in the batch already.
    fn steps_with_room(&self) -> usize {
        let producer = &self.parts.producer;
        let entries = producer.free_entries().saturating_sub(self.entries.len());
        let bytes = producer.free_bytes().saturating_sub(self.effects.records.len());
        (entries / 2).min(bytes / RECORD_BYTES_MAX)
    }

    /// Hands the batch to the journal; `false` where the ring to it is full.
    ///
    /// Room for decisions was seen before they were made. Only a burst of messages, each with an
    /// entry of its own, can outgrow it: then the shard waits for the journal.
    fn hand_over(&mut self) -> bool {
        if self.entries.is_empty() {
            return true;
        }
        let is_pushed =
            self.parts.producer.try_push_batch(&self.effects.records, &mut self.entries);
        self.parts.producer.wake();
        if is_pushed {
            self.parts.gauges.add_records(self.parts.index, self.effects.record_count);
            self.effects.clear();
        }
        is_pushed
    }

    fn expire(&mut self) -> bool {
        let now = self.now;
        if self.parts.state.next_expiry().is_none_or(|at| at > now) {
            return true;
        }
        let max = EXPIRY_BATCH.min(self.steps_with_room());
        let before = Marks::of(&self.effects);
        let expired = self.parts.state.expire_due(now, max, &mut self.effects);
        if expired > 0 {
            self.add_step(before, None);
            self.publish_gauges_now_and_then();
        }
        expired == 0
    }

    /// One slot of the walk under way.
    fn walk(&mut self) -> bool {
        let Some(walk) = self.walks.pop_front() else { return true };
        if let SlotWalk::Visit(visitor) = &walk
            && visitor.is_over()
        {
            self.walk_at = 0;
            return false;
        }
        if self.steps_with_room() < EXPIRY_BATCH {
            self.walks.push_front(walk);
            return true;
        }
        if let Some(slot) = self.owned.get(self.walk_at).copied() {
            match &walk {
                SlotWalk::Visit(visitor) if !visitor.take_credit() => {
                    self.walks.push_front(walk);
                    return true;
                }
                SlotWalk::Visit(visitor) => self.report(slot, Arc::clone(visitor)),
                SlotWalk::DropKeys { sale, .. } => {
                    let now = self.now;
                    let before = Marks::of(&self.effects);
                    self.parts.state.drop_keys(slot, *sale, now, &mut self.effects);
                    self.add_step(before, None);
                }
                SlotWalk::MakeReady { units } => self.parts.state.make_ready(slot, *units),
            }
        }
        self.walk_at += 1;
        if self.walk_at < self.owned.len() {
            self.walks.push_front(walk);
            return false;
        }
        self.walk_at = 0;
        if let SlotWalk::DropKeys { done, .. } = walk {
            self.publish_gauges();
            self.push_call(&[], 0, done);
        }
        false
    }

    /// The slot that a visit under way comes to next.
    #[cfg(test)]
    pub fn visits_next(&self) -> Option<Slot> {
        let is_visit = matches!(self.walks.front(), Some(SlotWalk::Visit(_)));
        self.owned.get(self.walk_at).copied().filter(|_| is_visit)
    }

    fn report(&mut self, slot: Slot, visitor: Arc<Visitor>) {
        let state = self.parts.state.slot(slot);
        let content = if visitor.with_bytes {
            let mut bytes = Vec::new();
            state.encode(&mut bytes);
            SlotContent::Bytes(bytes)
        } else {
            SlotContent::Figures { digest: state.digest(), totals: Box::new(state.totals()) }
        };
        let call = move |cut| visitor.report(SlotReport { slot, cut, content });
        self.push_call(&[], 0, Box::new(call));
    }

    /// Before a sleep, and now and then under load: nobody decides by the gauges.
    fn publish_gauges_now_and_then(&mut self) {
        self.batches_since_publish += 1;
        if self.batches_since_publish >= GAUGE_BATCHES {
            self.publish_gauges();
        }
    }

    fn publish_gauges(&mut self) {
        self.batches_since_publish = 0;
        self.parts.gauges.publish(self.parts.index, self.parts.state.item_counts());
    }
}

/// How far a batch's effects have come.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Marks {
    bytes: usize,
    record_count: u32,
    given_back: usize,
    confirmed: usize,
}

impl Marks {
    fn of(effects: &Effects) -> Self {
        Self {
            bytes: effects.records.len(),
            record_count: effects.record_count,
            given_back: effects.given_back.len(),
            confirmed: effects.confirmed.len(),
        }
    }
}

/// Refusals by stock and sale state leave at once; all else waits until what it shows is durable.
fn leaves_at_once(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Refused(refusal)
        if !refusal.code.shows_member() || planted::is(Bug::RefusalLeavesEarly))
}
