//! A node of the simulation: the production parts, put together as `app` does, without a thread.

use std::collections::VecDeque;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::task::{Context, Waker};
use std::time::Duration;

use super::killed::{self, Armed, Killed};
use super::ledger::Ledger;
use super::place::{ClaimTable, Place};
use super::plan::{End, Shape};
use super::redis::{Peer, SimRedis};
use super::snapshots::Snapshots;
use crate::clock::{ManualClock, NodeClock};
use crate::cluster::claims::{Claim, ClaimError};
use crate::http::worker::Ready;
use crate::journal::driver::Turn as WriterTurn;
use crate::journal::open::{JournalOptions, Opened};
use crate::journal::parts::JournalParts;
use crate::journal::ring::RingOptions;
use crate::journal::sim::{Fault, SimDisk};
use crate::journal::tail::{RecordRun, Tail};
use crate::journal::{DiskState, DurableMark, JournalError, MarkOptions};
use crate::kernel::state::KernelLimits;
use crate::shard::catalog::CatalogView;
use crate::shard::completion::Completions;
use crate::shard::control::{self, Control, ControlHandle, ControlParts, LeaseParts};
use crate::shard::core::{Core, Readiness};
use crate::shard::driver::{Shard, ShardParts, Turn as ShardTurn};
use crate::shard::events::SaleEvents;
use crate::shard::gate::{Admission, Gate};
use crate::shard::inbox::Inboxes;
use crate::shard::message::Message;
use crate::shard::port::{Port, PortShared};
use crate::shard::recover::{self, RecoverError};
use crate::shard::resume;
use crate::shard::snapshotter::Snapshotter;
use crate::stock::authority::{Embedded, StockAuthority};
use crate::stock::gauges::{LeaseBoard, UnitGauges};
use crate::stock::lease::{Halt, LeaseRules};
use crate::stock::line::StockLines;
use crate::units::{Incarnation, ItemIndex, JournalId, Seq};

/// Where all simulated clocks begin.
pub const EPOCH_MS: u64 = 1_800_000_000_000;
const SEGMENT_BYTES: u64 = 64 * 1024;
/// The largest message list of one turn must fit, and all rings together a segment.
const RING_BYTES: usize = 8 * 1024;
/// The same where a walk must find room: segment, entries, bytes.
const LARGE: (u64, usize, usize) = (1 << 20, 512, 300 << 10);
const TICKETS: usize = 64;

/// What runs.
pub struct Up {
    pub ready: Rc<Ready>,
    port_run: Pin<Box<dyn Future<Output = ()>>>,
    pub journal: JournalParts<Completions, SimDisk>,
    pub snapshotter: Option<Snapshotter<SimDisk>>,
    tail: Tail<SimDisk>,
    control: Option<Control>,
    control_handle: ControlHandle,
    pub board: Arc<LeaseBoard>,
    pub shards: Vec<Option<Shard>>,
    pub is_draining: bool,
    /// Its claim of slots is made, and not on record yet: it takes no requests.
    unrecorded: Option<Claim>,
    pub clock: Arc<NodeClock>,
    pub incarnation: Incarnation,
    /// The journal's last record when it was opened.
    pub last_at_start: Seq,
}

impl Up {
    pub fn durable(&self) -> &Arc<DurableMark> {
        self.journal.durable()
    }
}

/// One node, running or down.
pub struct Node {
    pub time: Arc<ManualClock>,
    pub disk: SimDisk,
    /// On a disk of the same machine, where there are any.
    pub snapshots: Snapshots,
    pub ledger: Ledger,
    pub up: Option<Box<Up>>,
    /// In virtual time.
    pub start_at_ms: u64,
    /// Crash points to pass before it ends, and how it ends then.
    pub crash_in: Option<Armed>,
    /// What a turn came to that its node does not survive.
    pub dying: Option<End>,
    journal: JournalId,
    last_incarnation: u32,
    last_node_time: u64,
    /// Nobody has broken its disk since it last was well.
    pub is_disk_well: bool,
    pub shape: Shape,
    index: usize,
    /// Where nodes share a pool.
    redis: Option<SimRedis>,
    /// Why the process had to end by itself.
    halted: Arc<Mutex<Option<Halt>>>,
    /// Copies of the data folder as it was, the newest first.
    copies: VecDeque<Folder>,
    /// The data folder itself, while a copy runs in its place.
    aside: Option<Folder>,
    /// Among others, where nodes share a sale.
    pub place: Option<Place>,
}

/// A data folder: the journal's disk, and the snapshots'.
type Folder = (SimDisk, SimDisk);

/// Why a node does not start.
enum StartError {
    Recover(RecoverError),
    Claim(ClaimError),
}

impl From<RecoverError> for StartError {
    fn from(error: RecoverError) -> Self {
        Self::Recover(error)
    }
}

impl From<JournalError> for StartError {
    fn from(error: JournalError) -> Self {
        Self::Recover(error.into())
    }
}

impl From<ClaimError> for StartError {
    fn from(error: ClaimError) -> Self {
        Self::Claim(error)
    }
}

/// Copies of a data folder that are kept.
const COPIES_MAX: usize = 3;
/// Units of one grant, at most.
const GRANT_MAX: u64 = 1_000;

/// The journal of a node.
fn journal_of(index: usize) -> JournalId {
    JournalId::new(0x1000 + index as u64)
}

/// What one turn of a node came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Did {
    Something,
    Nothing,
}

impl Node {
    pub fn new(
        index: usize,
        shape: Shape,
        redis: Option<SimRedis>,
        claims: Option<ClaimTable>,
    ) -> Self {
        let place = claims.map(|claims| Place::new(shape, index, claims));
        let seed = shape.seed.wrapping_mul(31).wrapping_add(index as u64);
        Self {
            time: Arc::new(ManualClock::new(EPOCH_MS)),
            disk: SimDisk::new(seed),
            snapshots: Snapshots::new(seed ^ 0xff),
            ledger: Ledger::default(),
            up: None,
            start_at_ms: 0,
            crash_in: None,
            dying: None,
            journal: journal_of(index),
            last_incarnation: 0,
            last_node_time: 0,
            is_disk_well: true,
            shape,
            index,
            redis,
            halted: Arc::default(),
            copies: VecDeque::new(),
            aside: None,
            place,
        }
    }

    pub fn journal(&self) -> JournalId {
        self.journal
    }

    /// Whether a copy of its data folder is in the folder's place: nobody is served then.
    pub fn is_copy(&self) -> bool {
        self.aside.is_some()
    }

    /// Whether it takes requests.
    pub fn is_serving(&self) -> bool {
        !self.is_copy() && self.up.as_ref().is_some_and(|up| up.unrecorded.is_none())
    }

    /// The claim that is to be recorded, if it is not on record yet.
    pub fn unrecorded(&self) -> Option<&Claim> {
        self.up.as_ref().filter(|_| !self.is_copy())?.unrecorded.as_ref()
    }

    pub fn claim_recorded(&mut self) {
        assert!(self.ledger.has_claimed, "I4: the claim is not durable");
        self.up.as_mut().expect("it answers").unrecorded = None;
    }

    /// An empty disk is in its data folder's place. The node is down.
    pub fn put_empty(&mut self) {
        let Some(place) = &mut self.place else { return };
        place.disk_is_empty();
        let empty = |salt| SimDisk::new(self.shape.seed ^ salt);
        let folder = (empty(0xe0), empty(0xe1));
        self.aside = Some(self.put_folder(folder));
    }

    /// Puts a data folder in the place of the one that is there.
    fn put_folder(&mut self, (journal, snapshots): Folder) -> Folder {
        let journal = std::mem::replace(&mut self.disk, journal);
        (journal, std::mem::replace(&mut self.snapshots.disk, snapshots))
    }

    /// Whether its machine has lost power.
    pub fn is_dead(&self) -> bool {
        self.disk.is_dead() || self.snapshots.disk.is_dead()
    }

    fn peer(&self) -> Peer {
        Peer { node: self.index, is_copy: self.is_copy() }
    }

    /// Copies the data folder, as it is now.
    pub fn keep_copy(&mut self) {
        if !self.is_copy() && !self.is_dead() {
            self.copies.push_front((self.disk.copy(), self.snapshots.disk.copy()));
            self.copies.truncate(COPIES_MAX);
        }
    }

    /// Puts the oldest copy into the folder's place; whether there is one. The node is down.
    pub fn put_copy(&mut self) -> bool {
        let Some(copy) = self.copies.pop_back() else { return false };
        self.aside = Some(self.put_folder(copy));
        true
    }

    /// The node's own stock, or what it has of the pool that it shares.
    fn stock(&self, control: &ControlHandle) -> (Box<dyn StockAuthority>, LeaseParts) {
        let Some(redis) = &self.redis else {
            return (Box::new(Embedded::default()), LeaseParts::alone(self.journal));
        };
        let nodes = u32::from(self.shape.nodes);
        let cluster = Arc::clone(self.place.as_ref().expect("one of several").cluster());
        let halted = Arc::clone(&self.halted);
        let lease = LeaseParts {
            rules: LeaseRules { nodes, max: GRANT_MAX },
            fixed_epoch: None,
            journals: Box::new(move || cluster.journals().map(|known| known.to_vec())),
            halt: Box::new(move |_, why| {
                *halted.lock().expect("one thread") = Some(why);
                // As `exit` does, nothing comes behind it.
                resume_unwind(Box::new(Killed));
            }),
        };
        (redis.authority(self.peer(), control.clone()), lease)
    }

    pub fn options(&self) -> JournalOptions {
        let (segment_bytes, entry_count, byte_count) = match self.shape.ring {
            0 if self.shape.snapshots && !self.shape.forgets() => (SEGMENT_BYTES, LARGE.1, LARGE.2),
            0 if self.shape.snapshots => (2 * SEGMENT_BYTES, LARGE.1, LARGE.2),
            0 => LARGE,
            ring => (SEGMENT_BYTES, ring.into(), RING_BYTES),
        };
        JournalOptions {
            segment_bytes,
            max_bytes: 64 << 20,
            grace: Duration::from_millis(self.shape.grace_ms()),
            ring: RingOptions { entry_count, byte_count },
            marks: MarkOptions {
                prove_after: Duration::from_millis(15),
                keep_time_every: Duration::from_millis(300),
            },
            ..JournalOptions::new("")
        }
    }

    /// Breaks the disk at the `nth` operation from now on.
    pub fn break_disk(&mut self, nth: u8, fault: Fault) {
        self.is_disk_well = false;
        self.disk.fault_at(self.disk.operations() + u64::from(nth), fault);
    }

    /// Starts it by the real recovery. A crash armed for this node may hit in the middle.
    pub fn start(&mut self) {
        let started = self.guarded(Self::try_start);
        match started {
            Ok(Ok(up)) => {
                self.up = Some(Box::new(up));
                self.after_start();
            }
            Ok(Err(StartError::Recover(error))) => {
                assert!(!self.is_disk_well, "the node does not start: {error}");
                self.ended(End::Kill);
            }
            Ok(Err(StartError::Claim(error))) => {
                self.place.as_mut().expect("one of several").refused(&error);
                self.ended(End::Kill);
            }
            Err(end) => self.ended(end),
        }
    }

    fn try_start(&mut self) -> Result<Up, StartError> {
        let is_empty = self.place.as_ref().is_some_and(Place::is_disk_empty);
        let made = if is_empty { journal_of(0x1000 + self.index) } else { self.journal };
        let opened = Opened::on_as(&self.disk, None, self.options(), self.time.clone(), made)?;
        let recovered = recover::recover(&opened, &self.snapshots.disk, &Readiness::default())?;
        let (clock, id) = (Arc::clone(opened.clock()), opened.journal());
        let (incarnation, last) = (opened.incarnation().get(), opened.last_seq().get());
        if !self.is_copy() {
            assert!(incarnation > self.last_incarnation, "every start raises the incarnation");
            self.last_incarnation = incarnation;
            assert!(clock.now().get() >= self.last_node_time, "node time goes on");
            let known = self.ledger.last();
            assert!(last >= known, "I2: {last} records, {known} durable");
            let mut tail = opened.replay(opened.first_seq())?;
            while let Some(run) = tail.next()? {
                self.take(&run);
            }
            assert_eq!(self.ledger.last(), last, "I11: what the journal has");
            self.ledger.check_recovered(&recovered);
            self.started_from(&recovered, clock.now());
        }

        let unrecorded = match &mut self.place {
            Some(place) => place.settle(id, recovered.control.claim())?,
            None => None,
        };

        let shard_count = usize::from(self.shape.shards);
        let gate = Arc::new(Gate::default());
        let inboxes = Arc::new(Inboxes::new(shard_count, 16));
        let ports: Arc<[PortShared]> = [PortShared::new(TICKETS)].into();
        let stock = Arc::new(StockLines::default());
        let gauges = Arc::new(UnitGauges::new(shard_count));
        let events = Arc::new(SaleEvents::new(clock.now()));
        let catalog = Arc::new(CatalogView::default());
        let sale_of = resume::fill_catalog(&catalog, &recovered);
        resume::fill_stock(&stock, &recovered);
        let dropped = resume::dropped_sales(&recovered);
        let (control_handle, queue) = control::queue();
        let (authority, lease) = self.stock(&control_handle);
        let board = Arc::<LeaseBoard>::default();
        let completions = Completions::new(Arc::clone(&stock), Arc::clone(&ports));
        let (opened_as, last_at_start) = (opened.incarnation(), opened.last_seq());
        let (journal, mut producers) = opened.parts(shard_count + 1, completions);
        let control_parts = ControlParts {
            state: recovered.control,
            queue,
            producer: producers.pop().expect("one more than shards"),
            authority,
            lease,
            board: Arc::clone(&board),
            journal: id,
            incarnation: opened_as,
            inboxes: Arc::clone(&inboxes),
            catalog: Arc::clone(&catalog),
            stock: Arc::clone(&stock),
            gauges: Arc::clone(&gauges),
            events: Arc::clone(&events),
            clock: Arc::clone(&clock),
            key_retention_ms: self.shape.key_retention_ms,
            dropped,
        };
        let limits = KernelLimits::default();
        let states =
            resume::deal_slots(shard_count, limits, id, &control_parts.state, recovered.slots);
        let control = Control::new(control_parts, clock.now());
        let shards =
            states.into_iter().enumerate().zip(producers).map(|((index, state), producer)| {
                Some(Shard::new(ShardParts {
                    index,
                    state,
                    inboxes: Arc::clone(&inboxes),
                    producer,
                    ports: Arc::clone(&ports),
                    stock: Arc::clone(&stock),
                    gauges: Arc::clone(&gauges),
                    sale_of: sale_of.clone(),
                    clock: Arc::clone(&clock),
                    batch: 4,
                }))
            });
        let shards = shards.collect();
        let port = Port::new(0, Arc::clone(&ports), Arc::clone(&inboxes), Arc::clone(&gate));
        let port_run = Box::pin(port.clone().run());
        let handle = control_handle.clone();
        let node_clock = Arc::clone(&clock);
        let core = Core::new(catalog, stock, gate, inboxes, events, clock, control_handle, ports);
        let ready = Rc::new(Ready { core: Arc::new(core), port });
        let tail = journal.tail(last_at_start.next())?;
        let mut up = Up {
            ready,
            port_run,
            journal,
            snapshotter: None,
            tail,
            control: Some(control),
            control_handle: handle,
            board,
            shards,
            is_draining: false,
            unrecorded,
            clock: node_clock,
            incarnation: opened_as,
            last_at_start,
        };
        if self.shape.snapshots {
            up.snapshotter = Some(self.snapshotter(&up, id, recovered.snapshot)?);
        }
        Ok(up)
    }

    /// What was durable is there again, and the lines hold exactly what the records leave free.
    fn after_start(&mut self) {
        if self.is_copy() {
            return;
        }
        self.follow();
        self.ledger.check_points();
        let up = self.up.as_mut().expect("it was just started");
        let stock = &up.ready.core.stock;
        for (item, units) in (0..).map(ItemIndex::new).zip(&self.ledger.items) {
            let (free, here) = (stock.line(item).free(), units.here());
            assert!(here <= units.total, "I1: {here} units here of {}", units.total);
            assert!(free + units.sold() <= here, "I2: {free} free at the start: {units:?}");
        }
        up.ready.core.gate.set(Admission::All);
    }

    /// Takes what is durable into the books.
    fn take(&mut self, run: &RecordRun<'_>) {
        if run.last_seq().get() > self.ledger.last() {
            assert!(run.stamp.node.get() >= self.last_node_time, "node time goes on");
            self.last_node_time = run.stamp.node.get();
        }
        self.ledger.take(run.first_seq.get(), run.records);
    }

    /// Reads what has become durable into the books.
    pub fn follow(&mut self) {
        if self.is_copy() {
            return;
        }
        let is_dead = self.disk.is_dead();
        let Some(mut up) = self.up.take() else { return };
        while !is_dead && let Some(run) = up.tail.next().expect("what is durable can be read") {
            self.take(&run);
        }
        self.up = Some(up);
        if let Some(redis) = &self.redis {
            redis.prove(self.index, &self.ledger.items);
        }
    }

    /// Runs a turn that a crash may interrupt, or that may end the process itself.
    pub fn guarded<R>(&mut self, turn: impl FnOnce(&mut Self) -> R) -> Result<R, End> {
        let armed = self.crash_in;
        if let Some(armed) = armed {
            killed::arm(armed);
        }
        let outcome = catch_unwind(AssertUnwindSafe(|| turn(self)));
        let left = killed::disarm();
        match outcome {
            Ok(value) => {
                self.crash_in = armed.map(|armed| Armed { count: left, ..armed });
                Ok(value)
            }
            Err(payload) if payload.is::<Killed>() => {
                self.crash_in = None;
                if let Some(why) = self.halted.lock().expect("one thread").take() {
                    assert!(self.is_copy(), "{why:?}: by the newest of all data folders");
                    self.redis.as_ref().expect("only who shares is halted").copy_refused();
                }
                Err(armed.map_or(End::Kill, |armed| armed.end))
            }
            Err(payload) => resume_unwind(payload),
        }
    }

    /// The node is gone. Its disk is as the machine left it.
    pub fn ended(&mut self, end: End) {
        self.up = None;
        if let Some(redis) = &self.redis {
            redis.hang_up(self.peer());
        }
        if let Some(place) = &mut self.place {
            place.ended();
        }
        // What a copy did is gone with it.
        if let Some(folder) = self.aside.take() {
            self.put_folder(folder);
        }
        let is_power_loss = end == End::Power || self.is_dead();
        for disk in [&mut self.disk, &mut self.snapshots.disk] {
            *disk = if is_power_loss { disk.restart() } else { disk.process_restart() };
            disk.heal();
        }
        self.is_disk_well = true;
        (self.crash_in, self.dying) = (None, None);
    }

    /// One turn of the thread `journal`.
    pub fn write(&mut self) -> Did {
        let turned = self.guarded(|node| {
            let up = node.up.as_mut().expect("it runs");
            up.journal.turn()
        });
        match turned {
            Ok(Ok(WriterTurn::Busy)) => return Did::Something,
            Ok(Ok(WriterTurn::Idle | WriterTurn::NeedsSegment)) => return Did::Nothing,
            Ok(Ok(WriterTurn::Ended)) => self.dying = Some(End::Kill),
            // I7: the process ends.
            Ok(Err(JournalError::Poisoned { .. })) => {
                assert!(!self.is_disk_well, "a write failed on a sound disk");
                self.dying = Some(End::Kill);
            }
            Ok(Err(other)) => panic!("the journal: {other}"),
            Err(end) => self.dying = Some(end),
        }
        Did::Something
    }

    /// One turn of the thread `journal-files`.
    pub fn files(&mut self) -> Did {
        let turned = self.guarded(|node| {
            let up = node.up.as_mut().expect("it runs");
            up.journal.files_turn();
        });
        self.dying = turned.err();
        Did::Nothing
    }

    /// One turn of the control thread.
    pub fn control(&mut self) -> Did {
        match self.guarded(Self::control_turn) {
            Ok(did) => did,
            Err(end) => {
                self.dying = Some(end);
                Did::Something
            }
        }
    }

    fn control_turn(&mut self) -> Did {
        let up = self.up.as_mut().expect("it runs");
        let now = up.ready.core.now();
        let Some(control) = up.control.as_mut() else {
            if up.shards.iter().all(Option::is_none) {
                up.journal.stop();
            }
            return Did::Nothing;
        };
        control.tick(now);
        if !control.hand_over() {
            return Did::Nothing;
        }
        if control.is_done() {
            // Control first: its barriers need the shards.
            up.control = None;
            for inbox in up.ready.core.inboxes.iter() {
                inbox.send(Message::Stop);
            }
            return Did::Something;
        }
        let Some(event) = control.queue().try_next() else { return Did::Nothing };
        control.on(now, event);
        control.hand_over();
        Did::Something
    }

    /// One turn of a shard's thread.
    pub fn shard(&mut self, index: usize) -> Did {
        let up = self.up.as_mut().expect("it runs");
        let core = Arc::clone(&up.ready.core);
        let Some(shard) = up.shards[index].as_mut() else { return Did::Nothing };
        match shard.turn(core.now(), core.inboxes.get(index)) {
            ShardTurn::Busy => Did::Something,
            ShardTurn::Idle(_) | ShardTurn::RingFull(_) => Did::Nothing,
            ShardTurn::Ended => {
                up.shards[index] = None;
                Did::Something
            }
        }
    }

    /// One turn of the door: replies arrive, and the housekeeping looks at the disk.
    pub fn door(&mut self) {
        let up = self.up.as_mut().expect("it runs");
        let mut context = Context::from_waker(Waker::noop());
        let polled = up.port_run.as_mut().poll(&mut context);
        assert!(polled.is_pending(), "a port's task never ends");
        if !up.is_draining {
            up.ready.core.gate.set(match up.journal.gauge().state() {
                DiskState::Normal => Admission::All,
                DiskState::SalesPaused => Admission::NoNewRedemptions,
                DiskState::WritesStopped => Admission::ReadsOnly,
            });
        }
    }

    /// From here on nothing breaks.
    pub fn heal(&mut self) {
        self.crash_in = None;
        self.start_at_ms = 0;
        self.disk.heal();
        self.snapshots.disk.heal();
        self.is_disk_well = true;
    }

    /// Tells it to end in good order.
    pub fn drain(&mut self) {
        let Some(up) = self.up.as_mut() else { return };
        if std::mem::replace(&mut up.is_draining, true) {
            return;
        }
        up.ready.core.gate.set(Admission::Nothing);
        up.control_handle.stop();
    }

    /// I2, live: what may be sold, and what is sold durably, is never more than what is here.
    pub fn check(&self) {
        let Some(up) = self.up.as_ref().filter(|_| !self.is_copy()) else { return };
        let stock = &up.ready.core.stock;
        for (item, units) in (0..).map(ItemIndex::new).zip(&self.ledger.items) {
            let (free, here) = (stock.line(item).free(), units.here());
            assert!(here <= units.total, "I1: {here} units are here, of {}", units.total);
            assert!(free + units.sold() <= here, "I2: {free} free, {units:?}");
        }
    }
}
