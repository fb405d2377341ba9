//! Control and a shard, stepped on the test's own thread with a clock set by hand: neither waits,
//! sleeps or looks at a clock of its own. Only the journal runs beside them.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::oneshot;

use super::catalog::CatalogView;
use super::completion::Completions;
use super::control::{self, Control, ControlHandle, ControlParts, LeaseParts};
use super::driver::{Shard, ShardParts, Turn};
use super::events::SaleEvents;
use super::inbox::{Inboxes, Request};
use super::message::{Message, Visit, Visitor};
use super::port::{PortShared, ReplyTo};
use crate::clock::{ManualClock, NodeClock};
use crate::journal::open::{JournalHandle, JournalOptions, Opened};
use crate::journal::sim::SimDisk;
use crate::kernel::catalog::SalePhase;
use crate::kernel::command::Command;
use crate::kernel::control::{ControlCommand, ControlOutcome, ControlState};
use crate::kernel::definition::ValidSale;
use crate::kernel::record::AdminNote;
use crate::kernel::state::{KernelLimits, ShardState};
use crate::stock::authority::Embedded;
use crate::stock::gauges::UnitGauges;
use crate::stock::line::StockLines;
use crate::units::{Incarnation, ItemIndex, KeyHash, MemberId, Points, SLOT_COUNT, Slot};

const CUP: ItemIndex = ItemIndex::new(0);

struct World {
    time: Arc<ManualClock>,
    clock: Arc<NodeClock>,
    journal: JournalHandle<SimDisk>,
    inboxes: Arc<Inboxes>,
    stock: Arc<StockLines>,
    catalog: Arc<CatalogView>,
    gauges: Arc<UnitGauges>,
    handle: ControlHandle,
    control: Control,
    shard: Shard,
    asked: u32,
}

impl World {
    fn new() -> Self {
        let time = Arc::new(ManualClock::new(1_800_000_000_000));
        let options = JournalOptions { segment_bytes: 2 << 20, ..JournalOptions::new("") };
        let opened = Opened::on(&SimDisk::new(1), None, options, time.clone()).unwrap();
        let (clock, id) = (opened.clock().clone(), opened.journal());
        let stock = Arc::new(StockLines::default());
        let ports: Arc<[PortShared]> = [PortShared::new(64)].into();
        let completions = Completions::new(stock.clone(), ports.clone());
        let on_poison = Box::new(|e| panic!("{e}"));
        let (journal, mut producers) = opened.start(2, completions, on_poison).unwrap();
        let inboxes = Arc::new(Inboxes::new(1, 64));
        let catalog = Arc::new(CatalogView::default());
        let gauges = Arc::new(UnitGauges::new(1));
        let (handle, queue) = control::queue();
        let parts = ControlParts {
            state: ControlState::new(),
            queue,
            producer: producers.pop().unwrap(),
            authority: Box::new(Embedded::default()),
            lease: LeaseParts::alone(id),
            board: Arc::default(),
            journal: id,
            incarnation: Incarnation::new(1),
            inboxes: inboxes.clone(),
            catalog: catalog.clone(),
            stock: stock.clone(),
            gauges: gauges.clone(),
            events: Arc::new(SaleEvents::new(clock.now())),
            clock: clock.clone(),
            key_retention_ms: 1_000,
            dropped: HashSet::new(),
        };
        let control = Control::new(parts, clock.now());
        let mut state = ShardState::new(id, KernelLimits::default());
        for slot in (0..SLOT_COUNT).map(|n| Slot::new(n as u16)) {
            state.adopt_slot(slot, None);
        }
        let shard = Shard::new(ShardParts {
            index: 0,
            state,
            inboxes: inboxes.clone(),
            producer: producers.pop().unwrap(),
            ports,
            stock: stock.clone(),
            gauges: gauges.clone(),
            sale_of: Vec::new(),
            clock: clock.clone(),
            batch: 16,
        });
        Self {
            time,
            clock,
            journal,
            inboxes,
            stock,
            catalog,
            gauges,
            handle,
            control,
            shard,
            asked: 0,
        }
    }

    /// Steps both until it holds; the clock stands still meanwhile.
    #[track_caller]
    fn until(&mut self, what: &str, mut holds: impl FnMut(&mut Self, Turn) -> bool) {
        for _ in 0..1_000_000 {
            let now = self.clock.now();
            self.control.tick(now);
            while self.control.hand_over()
                && let Some(event) = self.control.queue().try_next()
            {
                self.control.on(now, event);
            }
            let inboxes = Arc::clone(&self.inboxes);
            let turn = self.shard.turn(now, inboxes.get(0));
            if holds(self, turn) {
                return;
            }
            // The journal's thread needs a core, too.
            std::thread::yield_now();
        }
        panic!("never: {what}");
    }

    fn ask(&mut self, command: Command) {
        self.asked += 1;
        let reply_to = ReplyTo { port: 0, ticket: self.asked };
        self.inboxes.push(Request { command, reply_to }).unwrap();
    }

    fn redeem(&mut self, key: u128, hold: bool) {
        let (member, key) = (MemberId::new(7), KeyHash::new(key));
        self.ask(Command::Redeem { member, key, item: CUP, quantity: 1, hold });
    }

    fn units(&self) -> [u64; 3] {
        let counts = self.gauges.item(CUP);
        [self.stock.line(CUP).free(), counts.held, counts.confirmed]
    }
}

fn is_idle(turn: Turn) -> bool {
    matches!(turn, Turn::Idle(_))
}

/// † [`Visit`]
#[test]
fn a_visit_that_was_given_up_is_in_nobodys_way() {
    let mut world = World::new();
    let given_up = Visit::new(Visitor::new(false, 3, |_| {}));
    world.inboxes.get(0).send(Message::Visit(given_up.visitor()));
    let waits =
        |world: &mut World, turn| is_idle(turn) && world.shard.visits_next() == Some(Slot::new(3));
    world.until("out of credits", waits);
    let reports = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&reports);
    let next = Visit::new(Visitor::new(false, SLOT_COUNT, move |_| {
        count.fetch_add(1, Ordering::Relaxed);
    }));
    world.inboxes.get(0).send(Message::Visit(next.visitor()));
    world.until("the next one waits behind it", waits);
    drop(given_up);
    world.until("the next one", |_, _| reports.load(Ordering::Relaxed) == SLOT_COUNT);
    let World { control, shard, journal, .. } = world;
    drop((control.into_state(), shard.into_state()));
    journal.stop().unwrap();
}

#[test]
fn a_sale_is_stepped_through_its_life_by_hand() {
    let mut world = World::new();
    let sale = r#"{"id":"s","name":"S","opens_at":"2027-01-15T08:00:10Z",
        "closes_at":"2027-01-15T08:01:00Z","hold_ttl_ms":5000,
        "items":[{"sku":"cup","name":"Cup","points":10,"stock":3,"limit_per_member":3}]}"#;
    let sale: serde_json::Value = serde_json::from_str(sale).unwrap();
    let sale = Arc::new(ValidSale::parse(&sale.to_string()).unwrap());
    let (answer, mut answered) = oneshot::channel();
    let define = ControlCommand::DefineSale { sale, is_home: true, note: AdminNote::default() };
    world.handle.send(define, answer).unwrap();
    world.until("defined", |_, _| {
        answered.try_recv().is_ok_and(|outcome| {
            matches!(outcome, Ok(ControlOutcome::Defined { replayed: false, .. }))
        })
    });
    assert_eq!(world.units(), [3, 0, 0]);
    let phase = |world: &World| world.catalog.sale("s").unwrap().phase();
    assert_eq!(phase(&world), SalePhase::Scheduled);
    world.ask(Command::OpenAccount { member: MemberId::new(7), points: Points::new(100) });
    world.until("opened", |world, turn| is_idle(turn) && world.gauges.members() == 1);

    // Nothing but the clock opens it.
    world.until("idle", |_, turn| is_idle(turn));
    assert_eq!(phase(&world), SalePhase::Scheduled);
    world.time.advance(Duration::from_secs(10));
    world.until("open", |world, turn| is_idle(turn) && phase(world) == SalePhase::Open);
    // The shard hears of it by a message of its own.
    world.until("decided", |world, turn| {
        if is_idle(turn) && world.units() == [3, 0, 0] {
            let key = u128::from(world.asked);
            world.redeem(key, false);
        }
        world.units() == [2, 0, 1]
    });
    world.redeem(1_000, true);
    world.until("held", |world, turn| is_idle(turn) && world.units() == [1, 1, 1]);

    // A hold ends by time alone, and its unit comes back behind its record.
    world.time.advance(Duration::from_millis(4_900));
    world.until("still held", |_, turn| is_idle(turn));
    assert_eq!(world.units(), [1, 1, 1]);
    world.time.advance(Duration::from_millis(200));
    world.until("expired", |world, turn| is_idle(turn) && world.units() == [2, 0, 1]);

    // So does the sale, and what is remembered of it.
    world.time.advance(Duration::from_mins(1));
    world.until("ended", |world, turn| is_idle(turn) && phase(world) == SalePhase::Ended);
    world.time.advance(Duration::from_secs(2));
    world.until("forgotten", |world, turn| is_idle(turn) && phase(world) == SalePhase::KeysDropped);

    world.handle.stop();
    world.until("control ended", |world, _| world.control.is_done());
    world.inboxes.get(0).send(Message::Stop);
    world.until("the shard ended", |_, turn| turn == Turn::Ended);
    let World { control, shard, journal, gauges, .. } = world;
    let (pushed, durable) = (gauges.records(), journal.durable().clone());
    drop((control.into_state(), shard.into_state()));
    journal.stop().unwrap();
    assert_eq!(durable.get().get(), pushed, "all that was decided is durable");
}
