//! Tables: one row per command with its outcome. The first walks the whole order of refusal.

mod control;
mod damage;
mod rules;

use std::cell::RefCell;
use std::sync::Arc;

use super::catalog::{ItemRule, SalePhase, SaleRule};
use super::code::Code;
use super::command::{Command, Outcome, RedemptionState, RedemptionView};
use super::effects::Effects;
use super::record::{AdminNote, Record};
use super::state::{KernelLimits, ShardState};
use crate::units::{
    ItemIndex, JournalId, KeyHash, MemberId, NodeTime, Points, Quantity, RedemptionId, SLOT_COUNT,
    SaleIndex, Slot, TakeUnits,
};

/// Lines that tests look into.
struct TestStock(RefCell<Vec<u64>>);

impl TestStock {
    fn new(items: usize, free: u64) -> Self {
        Self(RefCell::new(vec![free; items]))
    }
    fn free(&self, item: u32) -> u64 {
        self.0.borrow()[item as usize]
    }
}

impl TakeUnits for TestStock {
    fn try_take(&self, item: ItemIndex, quantity: Quantity) -> bool {
        let mut lines = self.0.borrow_mut();
        let line = &mut lines[item.get() as usize];
        let left = line.checked_sub(u64::from(quantity.get()));
        left.inspect(|&left| *line = left).is_some()
    }
}

fn shard() -> ShardState {
    let mut shard = ShardState::new(JournalId::new(77), KernelLimits { hold_allowance: 2 });
    for slot in (0..SLOT_COUNT as u16).map(Slot::new) {
        shard.adopt_slot(slot, None);
    }
    shard
}

fn add_sale(shard: &mut ShardState, phase: SalePhase, paused: bool) -> SaleIndex {
    let catalog = shard.catalog_mut();
    let sale = SaleIndex::new(catalog.sale_count() as u32);
    let item = ItemRule {
        sale,
        price: Points::new(100),
        limit: Quantity::new(3),
        eligible: Some([(MemberId::new(1), MemberId::new(99))].into()),
    };
    let rule = SaleRule { phase, paused, hold_ttl_ms: 1000 };
    catalog.define_sale(rule, vec![item.clone(), item])
}

fn member(id: u64) -> MemberId {
    MemberId::new(id)
}

fn key(text: &str) -> KeyHash {
    KeyHash::of(text.as_bytes())
}

fn redeem(id: u64, key_text: &str, item: u32, quantity: u64) -> Command {
    let item = ItemIndex::new(item);
    Command::Redeem { member: member(id), key: key(key_text), item, quantity, hold: false }
}

fn hold(id: u64, key_text: &str, item: u32, quantity: u64) -> Command {
    let item = ItemIndex::new(item);
    Command::Redeem { member: member(id), key: key(key_text), item, quantity, hold: true }
}

fn view(outcome: &Outcome) -> RedemptionView {
    match outcome {
        Outcome::Redemption { view, .. } => *view,
        other => panic!("no redemption: {other:?}"),
    }
}

fn code(outcome: &Outcome) -> Option<(Code, u64)> {
    match outcome {
        Outcome::Refused(refusal) => Some((refusal.code, refusal.detail)),
        _ => None,
    }
}

fn open(id: u64, points: u64) -> Command {
    Command::OpenAccount { member: member(id), points: Points::new(points) }
}

fn confirm(id: u64, of: RedemptionId) -> Command {
    Command::Confirm { member: member(id), id: of }
}

fn cancel(id: u64, of: RedemptionId) -> Command {
    Command::Cancel { member: member(id), id: of }
}

fn reverse(of: RedemptionId, key_text: &str) -> Command {
    Command::Reverse { id: of, key: key(key_text), note: Arc::new(AdminNote::default()) }
}

fn credit(id: u64, key_text: &str, amount: u64) -> Command {
    let (key, amount) = (key(key_text), Points::new(amount));
    Command::Credit { member: member(id), key, amount, note: Arc::new(AdminNote::default()) }
}

fn debit(id: u64, key_text: &str, amount: u64) -> Command {
    let (key, amount) = (key(key_text), Points::new(amount));
    Command::Debit { member: member(id), key, amount, note: Arc::new(AdminNote::default()) }
}

/// One shard with an open sale of two items, ten units each, and members 7 and 8 with points.
struct Bed {
    shard: ShardState,
    stock: TestStock,
    effects: Effects,
    now: u64,
    /// Every record so far.
    journal: Vec<u8>,
}

impl Bed {
    fn new() -> Self {
        let mut shard = shard();
        add_sale(&mut shard, SalePhase::Open, false);
        let stock = TestStock::new(20, 10);
        let (effects, journal) = (Effects::default(), Vec::new());
        let mut bed = Self { shard, stock, effects, now: 1_700_000_000_000, journal };
        bed.ask(&open(7, 10_000));
        bed.ask(&open(8, 10_000));
        bed
    }

    /// Decides, and leaves the effects of this one command in `effects`.
    fn ask(&mut self, command: &Command) -> Outcome {
        self.effects.clear();
        let now = NodeTime::new(self.now);
        let outcome = self.shard.decide(now, command, &self.stock, &mut self.effects);
        self.journal.extend_from_slice(&self.effects.records);
        outcome
    }

    fn expire(&mut self) -> usize {
        self.effects.clear();
        let expired = self.shard.expire_due(NodeTime::new(self.now), 100, &mut self.effects);
        self.journal.extend_from_slice(&self.effects.records);
        expired
    }

    fn drop_keys(&mut self, sale: u32) {
        for slot in self.shard.slots().collect::<Vec<_>>() {
            self.effects.clear();
            let (sale, now) = (SaleIndex::new(sale), NodeTime::new(self.now));
            self.shard.drop_keys(slot, sale, now, &mut self.effects);
            self.journal.extend_from_slice(&self.effects.records);
        }
    }

    /// The records of the last command.
    fn records(&self) -> Vec<Record> {
        let (mut rest, mut records) = (&self.effects.records[..], Vec::new());
        while !rest.is_empty() {
            records.push(Record::take(&mut rest).expect("a whole record").1);
        }
        assert_eq!(records.len(), self.effects.record_count as usize);
        records
    }

    fn balance(&mut self, id: u64) -> (u64, u64) {
        match self.ask(&Command::ReadAccount { member: member(id) }) {
            Outcome::Account { view, .. } => (view.free.get(), view.held.get()),
            other => panic!("no account: {other:?}"),
        }
    }
}

/// Each request fails one check, and every later one too: the first is the answer.
#[test]
fn refusals_come_in_their_order() {
    let mut shard = shard();
    let open = add_sale(&mut shard, SalePhase::Open, false); // items 0, 1
    add_sale(&mut shard, SalePhase::Scheduled, true); // items 2, 3
    add_sale(&mut shard, SalePhase::Ended, true); // items 4, 5
    add_sale(&mut shard, SalePhase::Open, true); // items 6, 7
    add_sale(&mut shard, SalePhase::KeysDropped, true); // items 8, 9
    let _ = open;
    let stock = TestStock::new(10, 0);
    let mut effects = Effects::default();
    let now = NodeTime::new(1_700_000_000_000);
    let none = u64::from(u32::MAX);
    stock.0.borrow_mut()[0] = 3;
    for (id, points) in [(7, 350), (8, 100)] {
        let command = Command::OpenAccount { member: member(id), points: Points::new(points) };
        shard.decide(now, &command, &stock, &mut effects);
    }
    let unknown = ItemIndex::UNKNOWN.get();
    let table = [
        (redeem(7, "first", 0, 1), None),
        (redeem(7, "first", 0, 1), None),
        // Reused, whatever else is wrong with it.
        (redeem(7, "first", unknown, 0), Some((Code::KeyReused, 0))),
        (redeem(7, "first", 4, 1), Some((Code::KeyReused, 0))),
        (redeem(7, "first", 0, 2), Some((Code::KeyReused, 0))),
        (hold(7, "first", 0, 1), Some((Code::KeyReused, 0))),
        (redeem(700, "other", unknown, 0), Some((Code::ItemNotFound, 0))),
        (redeem(700, "other", 10, 0), Some((Code::ItemNotFound, 0))),
        (redeem(700, "other", 8, 0), Some((Code::KeyExpired, 0))),
        (redeem(700, "other", 2, 0), Some((Code::SaleNotOpen, 0))),
        (redeem(700, "other", 4, 0), Some((Code::SaleEnded, 0))),
        (redeem(700, "other", 6, 0), Some((Code::SalePaused, 0))),
        (redeem(700, "other", 1, 0), Some((Code::NotEligible, 0))),
        (redeem(9, "other", 1, 0), Some((Code::QuantityInvalid, 0))),
        (redeem(9, "other", 1, none + 1), Some((Code::QuantityInvalid, 0))),
        (redeem(9, "other", 1, u64::MAX), Some((Code::QuantityInvalid, 0))),
        (redeem(9, "other", 1, none), Some((Code::LimitReached, 3))),
        (redeem(7, "other", 0, 3), Some((Code::LimitReached, 3))),
        (redeem(9, "other", 1, 1), Some((Code::InsufficientPoints, 0))),
        (redeem(7, "other", 1, 3), Some((Code::InsufficientPoints, 250))),
        (redeem(7, "other", 1, 2), Some((Code::SoldOut, 0))),
        (redeem(7, "second", 0, 2), None),
        (redeem(8, "other", 0, 1), Some((Code::SoldOut, 0))),
    ];
    for (row, (command, expected)) in table.iter().enumerate() {
        let outcome = shard.decide(now, command, &stock, &mut effects);
        assert_eq!(code(&outcome), *expected, "row {row}: {command:?}");
    }
    assert_eq!(stock.free(0), 0);
}

#[test]
fn a_replay_shows_the_first_answer() {
    let mut shard = shard();
    add_sale(&mut shard, SalePhase::Open, false);
    let stock = TestStock::new(2, 10);
    let mut effects = Effects::default();
    let now = NodeTime::new(1_700_000_000_000);
    let open = Command::OpenAccount { member: member(7), points: Points::new(1000) };
    shard.decide(now, &open, &stock, &mut effects);
    let first = shard.decide(now, &hold(7, "a", 0, 1), &stock, &mut effects);
    let id = view(&first).id;
    shard.decide(now, &redeem(7, "b", 1, 1), &stock, &mut effects);
    let confirm = Command::Confirm { member: member(7), id };
    let confirmed = shard.decide(now, &confirm, &stock, &mut effects);
    assert_eq!(view(&confirmed).state, RedemptionState::Confirmed);
    shard.decide(now, &redeem(7, "c", 1, 1), &stock, &mut effects);
    let again = shard.decide(now, &hold(7, "a", 0, 1), &stock, &mut effects);
    assert_eq!(again, Outcome::Redemption { view: view(&first), replayed: true });
    let again = shard.decide(now, &confirm, &stock, &mut effects);
    assert_eq!(again, Outcome::Redemption { view: view(&confirmed), replayed: true });
}
