//! The control thread: the single writer for sales, stock totals and grants.
//!
//! ```text
//! command ─► kernel::control decides ─► journal ─► durable ─┬► catalog, totals, grants
//!                                                          └► every shard: Change ─► ChangeSeen
//!                             answer ◄── all shards' records durable ◄─────────────────┘
//! ```
//! [`Control`] is the protocol: events and the time in, records and messages out. It never waits,
//! so a simulation may step it on a thread of its own; [`run`] is the thread that does the waiting.
//!
//! Leases are driven from here, too (`leases`): the pool's answers are events like all others.
//!
//! † Barriers: an admin call is answered when every shard has recorded the change durably. Since
//! all of it lies in one queue and one thread, changes reach each shard in the order decided.
//! † Units: added units enter the line only once "accepted" is durable; see `stock::lease`.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, unbounded};
use tokio::sync::oneshot;

use super::catalog::{CatalogView, SaleEntry};
use super::completion::{Completion, StockEffect};
use super::events::{SaleEventKind, SaleEvents};
use super::gate::Unavailable;
use super::inbox::Inboxes;
use super::message::{Acknowledge, Message};
use crate::clock::NodeClock;
use crate::crash::CrashPoint;
use crate::crash_point;
use crate::journal::ring::Producer;
use crate::kernel::catalog::SalePhase;
use crate::kernel::control::{ControlCommand, ControlOutcome, ControlState};
use crate::kernel::effects::Effects;
use crate::kernel::record::{RecordHead, SaleChange};
use crate::stock::ask::{Epoch, PoolAnswer, PoolNews};
use crate::stock::authority::StockAuthority;
use crate::stock::gauges::{LeaseBoard, UnitGauges};
use crate::stock::lease::LeaseEvent;
use crate::stock::line::StockLines;
use crate::units::{Incarnation, ItemIndex, JournalId, NodeTime, SaleIndex, Seq};

mod dry;
mod leases;

pub use leases::LeaseParts;
use leases::Leases;

/// Admin calls that may wait at once; beyond, 503.
const COMMANDS_MAX: usize = 1024;
/// How often the clock is looked at while no sale is about to change.
const TICK_MAX: Duration = Duration::from_millis(200);
/// How long the journal is left alone when the ring to it is full.
const RING_FULL_PAUSE: Duration = Duration::from_millis(1);

/// The control state as it stands at `cut`, for a snapshot.
pub struct ControlReport {
    pub cut: Seq,
    pub digest: u128,
    pub bytes: Vec<u8>,
}

/// What the control thread hears.
pub struct Event(Kind);

enum Kind {
    Command(ControlCommand, Answer),
    /// The stock authority has answered.
    Stock(PoolAnswer),
    News(PoolNews),
    /// Somebody was refused a unit of an item that is looked at seldom.
    Missed(ItemIndex),
    /// Records are durable; go on here.
    Durable(Step),
    /// One part of a barrier is done.
    Arrived(BarrierId),
    Visit(Box<dyn FnOnce(ControlReport) + Send>),
    Stop,
}

/// Where a command's outcome goes.
pub type Answer = oneshot::Sender<Result<ControlOutcome, Unavailable>>;

/// What comes next once records are durable.
enum Step {
    /// Another step follows.
    Nothing,
    Answer(Reply),
    Defined {
        sale: SaleIndex,
        reply: Reply,
    },
    Changed {
        sale: SaleIndex,
        change: SaleChange,
        reply: Option<Reply>,
    },
    /// The sale stands as asked already; a change of it may still be on its way to the shards.
    Unchanged {
        sale: SaleIndex,
        reply: Reply,
    },
    Added {
        item: ItemIndex,
        /// Units added and withdrawn in all, as of this record.
        home: (u64, u64),
        reply: Reply,
    },
    Withdrawn {
        item: ItemIndex,
        home: (u64, u64),
        /// Nobody asked, where it was found in the pool.
        reply: Option<Reply>,
    },
    Accepted {
        item: ItemIndex,
        granted: u64,
    },
    Returned {
        item: ItemIndex,
        returned: u64,
    },
    EpochSeen {
        item: ItemIndex,
        epoch: Epoch,
    },
}

struct Reply {
    to: Answer,
    outcome: ControlOutcome,
}

impl Reply {
    fn send(self) {
        // A caller that has gone is no error: what it asked for is done and durable.
        let _ = self.to.send(Ok(self.outcome));
    }
}

type BarrierId = u64;

/// Parts that must arrive before an answer leaves.
struct Barrier {
    missing: usize,
    reply: Option<Reply>,
    /// Of callers who asked for the same, and must not be told before it is so.
    followers: Vec<Reply>,
    then: AfterBarrier,
}

enum AfterBarrier {
    Nothing,
    Publish(Arc<SaleEntry>),
    Announce(SaleIndex, SaleEventKind),
    KeysDropped(SaleIndex),
}

/// How others reach the control thread.
#[derive(Clone)]
pub struct ControlHandle {
    events: Sender<Event>,
    waiting: Arc<AtomicUsize>,
}

impl ControlHandle {
    /// Sends a command.
    ///
    /// Errors: too many wait already, or the node is ending; nothing has happened then.
    pub fn send(&self, command: ControlCommand, answer: Answer) -> Result<(), Unavailable> {
        if self.waiting.fetch_add(1, Ordering::Relaxed) >= COMMANDS_MAX {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            return Err(Unavailable::Overloaded);
        }
        let event = Event(Kind::Command(command, answer));
        self.events.send(event).map_err(|_| Unavailable::Draining)
    }

    /// Hands over what the stock authority has answered.
    pub fn stock_answer(&self, answer: PoolAnswer) {
        // A control thread that has ended needs no answer.
        let _ = self.events.send(Event(Kind::Stock(answer)));
    }

    /// Hands over that something about pools is new.
    pub fn stock_news(&self, news: PoolNews) {
        let _ = self.events.send(Event(Kind::News(news)));
    }

    /// Asks for the state at a cut; called back on the journal's thread.
    pub fn visit(&self, visit: impl FnOnce(ControlReport) + Send + 'static) {
        // A control thread that has ended is asked for its state by whoever joined it.
        let _ = self.events.send(Event(Kind::Visit(Box::new(visit))));
    }

    pub fn stop(&self) {
        let _ = self.events.send(Event(Kind::Stop));
    }
}

/// The control thread's own end of its queue.
pub struct ControlQueue {
    sender: Sender<Event>,
    receiver: Receiver<Event>,
    waiting: Arc<AtomicUsize>,
}

impl ControlQueue {
    /// The next event, if one waits.
    pub fn try_next(&self) -> Option<Event> {
        self.receiver.try_recv().ok()
    }
}

/// Makes the queue and the handle to it.
pub fn queue() -> (ControlHandle, ControlQueue) {
    let (sender, receiver) = unbounded();
    let waiting = Arc::new(AtomicUsize::new(0));
    let handle = ControlHandle { events: sender.clone(), waiting: Arc::clone(&waiting) };
    (handle, ControlQueue { sender, receiver, waiting })
}

/// What the control thread is made of.
pub struct ControlParts {
    pub state: ControlState,
    pub queue: ControlQueue,
    pub producer: Producer<Completion>,
    pub authority: Box<dyn StockAuthority>,
    pub lease: LeaseParts,
    pub board: Arc<LeaseBoard>,
    pub journal: JournalId,
    pub incarnation: Incarnation,
    pub inboxes: Arc<Inboxes>,
    pub catalog: Arc<CatalogView>,
    pub stock: Arc<StockLines>,
    pub gauges: Arc<UnitGauges>,
    pub events: Arc<SaleEvents>,
    pub clock: Arc<NodeClock>,
    pub key_retention_ms: u64,
    /// Sales whose keys every slot has forgotten already.
    pub dropped: HashSet<SaleIndex>,
}

/// The protocol, and what it has to hand over.
pub struct Control {
    parts: ControlParts,
    /// Of the event at hand.
    now: NodeTime,
    is_stopping: bool,
    effects: Effects,
    leases: Leases,
    barriers: HashMap<BarrierId, Barrier>,
    next_barrier: BarrierId,
    /// Sales whose end is durable.
    ended: HashSet<SaleIndex>,
    /// Sales whose keys are being dropped, or are.
    dropped: HashSet<SaleIndex>,
    /// For the journal, in order: records, their number, what comes once they are durable.
    outbox: VecDeque<(Vec<u8>, u32, Completion)>,
}

/// Runs until it is told to stop, then gives the state back.
pub fn run(parts: ControlParts) -> ControlState {
    let clock = Arc::clone(&parts.clock);
    let mut control = Control::new(parts, clock.now());
    loop {
        control.tick(clock.now());
        if !control.hand_over() {
            // The control thread may wait for the journal, no decision does.
            std::thread::sleep(RING_FULL_PAUSE);
            continue;
        }
        if control.is_done() {
            return control.into_state();
        }
        let queue = &control.parts.queue.receiver;
        match queue.recv_timeout(control.until_tick(clock.now())) {
            Ok(event) => control.on(clock.now(), event),
            Err(RecvTimeoutError::Timeout) if control.is_stopping => return control.into_state(),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => unreachable!("the queue holds a sender itself"),
        }
    }
}

impl Control {
    /// Takes up what an earlier run left half done.
    pub fn new(mut parts: ControlParts, now: NodeTime) -> Self {
        let dropped = std::mem::take(&mut parts.dropped);
        let sender = parts.queue.sender.clone();
        parts.stock.call_at_miss(move |item| {
            // A control thread that has ended looks at nothing any more.
            let _ = sender.send(Event(Kind::Missed(item)));
        });
        let sales = (0..).map(SaleIndex::new).zip(parts.state.sales());
        let over = sales.filter(|(_, known)| known.phase >= SalePhase::Ended);
        let mut control = Self {
            ended: over.map(|(sale, _)| sale).collect(),
            parts,
            now,
            is_stopping: false,
            effects: Effects::default(),
            leases: Leases::default(),
            barriers: HashMap::new(),
            next_barrier: 0,
            dropped,
            outbox: VecDeque::new(),
        };
        control.resume_leases();
        control
    }

    pub fn queue(&self) -> &ControlQueue {
        &self.parts.queue
    }

    /// Whether it was told to stop and nothing is left to be done.
    pub fn is_done(&self) -> bool {
        self.is_stopping && self.barriers.is_empty() && self.parts.queue.receiver.is_empty()
    }

    pub fn into_state(self) -> ControlState {
        self.parts.state
    }

    /// How long nothing happens by itself.
    pub fn until_tick(&self, now: NodeTime) -> Duration {
        let next = self.parts.state.next_tick().into_iter().chain(self.leases.next_look());
        let Some(at) = next.min() else { return TICK_MAX };
        let ms = at.get().saturating_sub(now.get());
        Duration::from_millis(ms.max(1)).min(TICK_MAX)
    }

    /// Takes an event. [`Control::hand_over`] must follow before the next one.
    pub fn on(&mut self, now: NodeTime, Event(event): Event) {
        self.now = now;
        match event {
            Kind::Command(command, to) => {
                self.parts.queue.waiting.fetch_sub(1, Ordering::Relaxed);
                self.command(command, to);
            }
            Kind::Durable(step) => self.step(step),
            Kind::Stock(answer) => self.stock_answer(answer),
            Kind::News(news) => self.stock_news(news),
            Kind::Missed(item) => self.look_at_lease(item),
            Kind::Arrived(barrier) => self.arrive(barrier),
            Kind::Visit(visit) => self.visit(visit),
            Kind::Stop => self.is_stopping = true,
        }
    }

    /// Hands what waits to the journal; `false` where the ring to it is full, and some still
    /// waits: no event may be taken then.
    pub fn hand_over(&mut self) -> bool {
        if self.outbox.is_empty() {
            return true;
        }
        while let Some((records, count, completion)) = self.outbox.pop_front() {
            if let Err(full) = self.parts.producer.try_push(&records, count, completion) {
                self.outbox.push_front((records, count, full.0));
                break;
            }
        }
        self.parts.producer.wake();
        self.outbox.is_empty()
    }

    fn command(&mut self, command: ControlCommand, to: Answer) {
        if self.is_withdrawal_of_units(&command) {
            return self.queue_withdrawal(command, to);
        }
        self.effects.clear();
        let outcome = self.parts.state.decide(self.now, &command, &mut self.effects);
        let reply = Reply { to, outcome: outcome.clone() };
        let step = match (outcome, &command) {
            (ControlOutcome::Defined { sale, replayed: false }, _) => Step::Defined { sale, reply },
            (
                ControlOutcome::Changed { sale, changed: true },
                ControlCommand::Change { change, .. },
            ) => Step::Changed { sale, change: *change, reply: Some(reply) },
            (
                ControlOutcome::Changed { sale, changed: false }
                | ControlOutcome::Defined { sale, replayed: true },
                _,
            ) => Step::Unchanged { sale, reply },
            (
                ControlOutcome::Stock { item, replayed: false, .. },
                ControlCommand::AddStock { .. },
            ) => Step::Added { item, home: self.home_figures(item), reply },
            _ => Step::Answer(reply),
        };
        self.push(step);
    }

    /// Hands the effects to the journal, a record an entry, with what comes after the last.
    fn push(&mut self, step: Step) {
        let sender = self.parts.queue.sender.clone();
        self.push_call(Box::new(move |_| {
            // After a stop nobody waits for the step.
            let _ = sender.send(Event(Kind::Durable(step)));
        }));
    }

    fn push_call(&mut self, call: Acknowledge) {
        self.parts.gauges.add_records(self.parts.gauges.control(), self.effects.record_count);
        let mut rest = &self.effects.records[..];
        while !rest.is_empty() {
            let head = RecordHead::peek(rest).expect("the kernel wrote it");
            let (record, behind) = rest.split_at(head.length);
            self.outbox.push_back((record.to_vec(), 1, Completion::default()));
            rest = behind;
        }
        for &(item, quantity) in &self.effects.given_back {
            let stock = StockEffect { given_back: Some((item, quantity)), confirmed: None };
            let completion = Completion { stock, ..Completion::default() };
            self.outbox.push_back((Vec::new(), 0, completion));
        }
        let completion = Completion { call: Some(call), ..Completion::default() };
        self.outbox.push_back((Vec::new(), 0, completion));
        self.effects.clear();
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Answer(reply) => reply.send(),
            Step::Defined { sale, reply } => self.defined(sale, reply),
            Step::Changed { sale, change, reply } => self.changed(sale, change, reply),
            Step::Unchanged { sale, reply } => self.follow(sale, reply),
            Step::Added { item, home, reply } => {
                crash_point!(CrashPoint::LeaseAfterAdd);
                let barrier = self.barrier(1, Some(reply), self.stock_event(item));
                self.home_changed(item, home);
                self.settle(item, barrier);
            }
            Step::Withdrawn { item, home, reply } => self.withdrawn(item, home, reply),
            Step::Accepted { item, granted } => {
                crash_point!(CrashPoint::LeaseBeforeEnter);
                self.lease_event(item, LeaseEvent::AcceptDurable { granted });
            }
            Step::Returned { item, returned } => {
                crash_point!(CrashPoint::LeaseBeforeTell);
                self.lease_event(item, LeaseEvent::ReturnDurable { returned });
            }
            Step::EpochSeen { item, epoch } => {
                crash_point!(CrashPoint::LeaseAfterEpoch);
                self.lease_event(item, LeaseEvent::EpochDurable { epoch });
            }
            Step::Nothing => {}
        }
    }

    fn defined(&mut self, index: SaleIndex, reply: Reply) {
        let known = self.parts.state.sale(index).expect("it was just defined");
        let entry = Arc::new(SaleEntry::new(
            index,
            known.first_item,
            known.sale.as_ref().clone(),
            known.phase,
            known.paused,
        ));
        let items: Vec<ItemIndex> = entry.items().collect();
        let parts = self.parts.inboxes.shard_count() + items.len();
        let barrier = self.barrier(parts, Some(reply), AfterBarrier::Publish(Arc::clone(&entry)));
        for inbox in self.parts.inboxes.iter() {
            inbox.send(Message::Define(Arc::clone(&entry), self.acknowledge(barrier)));
        }
        for item in items {
            self.begin_lease(item);
            self.settle(item, barrier);
        }
    }

    fn changed(&mut self, sale: SaleIndex, change: SaleChange, reply: Option<Reply>) {
        if let Some(entry) = self.parts.catalog.by_index(sale) {
            entry.change(change);
        }
        if change == SaleChange::Ended {
            self.ended.insert(sale);
        }
        let kind = match change {
            SaleChange::Opened => SaleEventKind::Opened,
            SaleChange::Paused => SaleEventKind::Paused,
            SaleChange::Resumed => SaleEventKind::Resumed,
            SaleChange::Ended => SaleEventKind::Closed,
        };
        let shards = self.parts.inboxes.shard_count();
        let barrier = self.barrier(shards, reply, AfterBarrier::Announce(sale, kind));
        for inbox in self.parts.inboxes.iter() {
            inbox.send(Message::Change(sale, change, self.acknowledge(barrier)));
        }
        self.sale_changed(sale);
    }

    /// What time brings: openings, closings, keys to be forgotten.
    pub fn tick(&mut self, now: NodeTime) {
        self.now = now;
        if self.parts.state.next_tick().is_some_and(|at| at <= now) {
            self.effects.clear();
            for (sale, change) in self.parts.state.tick(now, &mut self.effects) {
                // The first push carries the records of all.
                self.push(Step::Changed { sale, change, reply: None });
            }
        }
        self.drop_old_keys(now);
        self.look_at_leases();
    }

    /// † Keys: a stated time after the sale's end every slot forgets them, by a record; not before
    /// the end itself is durable [the journal stood still for as long: the keys' records went
    /// before the end's, which a power loss then took].
    fn drop_old_keys(&mut self, now: NodeTime) {
        let due: Vec<SaleIndex> = (0u32..)
            .map(SaleIndex::new)
            .zip(self.parts.state.sales())
            .filter(|(sale, known)| {
                known.phase >= SalePhase::Ended
                    && known.ended_at.plus_ms(self.parts.key_retention_ms) <= now
                    && !self.dropped.contains(sale)
                    && self.ended.contains(sale)
            })
            .map(|(sale, _)| sale)
            .collect();
        for sale in due {
            self.dropped.insert(sale);
            let shards = self.parts.inboxes.shard_count();
            let barrier = self.barrier(shards, None, AfterBarrier::KeysDropped(sale));
            for inbox in self.parts.inboxes.iter() {
                inbox.send(Message::DropKeys(sale, self.acknowledge(barrier)));
            }
        }
    }

    fn keys_dropped(&mut self, sale: SaleIndex) {
        if let Some(entry) = self.parts.catalog.by_index(sale) {
            entry.keys_dropped();
        }
    }

    fn visit(&mut self, visit: Box<dyn FnOnce(ControlReport) + Send>) {
        let mut bytes = Vec::new();
        self.parts.state.encode(&mut bytes);
        let digest = self.parts.state.digest();
        self.effects.clear();
        self.push_call(Box::new(move |cut| visit(ControlReport { cut, digest, bytes })));
    }

    // Barriers.

    fn barrier(&mut self, missing: usize, reply: Option<Reply>, then: AfterBarrier) -> BarrierId {
        let id = self.next_barrier;
        self.next_barrier += 1;
        self.barriers.insert(id, Barrier { missing, reply, followers: Vec::new(), then });
        id
    }

    fn acknowledge(&self, barrier: BarrierId) -> Acknowledge {
        let sender = self.parts.queue.sender.clone();
        Box::new(move |_| {
            let _ = sender.send(Event(Kind::Arrived(barrier)));
        })
    }

    fn arrive(&mut self, id: BarrierId) {
        let barrier = self.barriers.get_mut(&id).expect("a barrier ends with its last part");
        barrier.missing -= 1;
        if barrier.missing > 0 {
            return;
        }
        let Barrier { reply, followers, then, .. } = self.barriers.remove(&id).expect("just seen");
        match then {
            AfterBarrier::Nothing => {}
            AfterBarrier::Publish(entry) => self.parts.catalog.insert(&entry),
            AfterBarrier::Announce(sale, kind) => {
                self.parts.events.publish(sale, self.now, kind);
            }
            AfterBarrier::KeysDropped(sale) => self.keys_dropped(sale),
        }
        for reply in reply.into_iter().chain(followers) {
            reply.send();
        }
    }

    /// Answers once the shards decide by the sale as it stands: at once, or behind the change of
    /// it that is still on its way [`open` was answered 200 beside the sale's own opening, and the
    /// next redemption met a shard that had not opened yet].
    fn follow(&mut self, sale: SaleIndex, reply: Reply) {
        let is_of_sale = |barrier: &Barrier| match &barrier.then {
            AfterBarrier::Publish(entry) => entry.index == sale,
            AfterBarrier::Announce(of, _) => *of == sale,
            AfterBarrier::Nothing | AfterBarrier::KeysDropped(_) => false,
        };
        let pending = self.barriers.iter_mut().filter(|(_, barrier)| is_of_sale(barrier));
        match pending.max_by_key(|(id, _)| **id) {
            Some((_, barrier)) => barrier.followers.push(reply),
            None => reply.send(),
        }
    }

    fn stock_event(&self, item: ItemIndex) -> AfterBarrier {
        match self.parts.state.sale_of_item(item) {
            Some(sale) => AfterBarrier::Announce(sale, SaleEventKind::StockChanged(item)),
            None => AfterBarrier::Nothing,
        }
    }
}
