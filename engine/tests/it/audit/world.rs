//! A small mall decided by the real kernel: every kind of record, two shards, three openings.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

use onrush::kernel::command::{Command, Outcome, RedemptionState, RedemptionView};
use onrush::kernel::control::{ControlCommand, ControlState};
use onrush::kernel::definition::SaleDefinition;
use onrush::kernel::effects::Effects;
use onrush::kernel::record::{AdminNote, CONTROL, ChangeSeen, Record, RecordHead, SaleChange};
use onrush::kernel::state::{KernelLimits, ShardState};
use onrush::units::{
    ItemIndex, JournalId, KeyHash, MemberId, NodeTime, Points, Quantity, RedemptionId, SLOT_COUNT,
    SaleIndex, Slot, TakeUnits,
};

pub const MEMBERS: u64 = 300;
const SHARDS: u16 = 2;
pub const MUG: ItemIndex = ItemIndex::new(0);
pub const PEN: ItemIndex = ItemIndex::new(1);
pub const BAG: ItemIndex = ItemIndex::new(2);

/// A record on its way to the journal.
#[derive(Clone, Debug)]
pub struct Line {
    /// Counts the openings, from 0.
    pub opening: u32,
    pub at: u64,
    pub slot: Slot,
    pub bytes: Vec<u8>,
}

impl Line {
    pub fn record(&self) -> Record {
        Record::take(&mut &self.bytes[..]).unwrap().1
    }
    pub fn set(&mut self, record: &Record) {
        self.bytes.clear();
        record.encode(self.slot, &mut self.bytes);
    }
}

#[derive(Default)]
struct Stock(RefCell<HashMap<u32, u64>>);

impl TakeUnits for Stock {
    fn try_take(&self, item: ItemIndex, quantity: Quantity) -> bool {
        let mut lines = self.0.borrow_mut();
        let free = lines.entry(item.get()).or_default();
        let rest = free.checked_sub(u64::from(quantity.get()));
        *free = rest.unwrap_or(*free);
        rest.is_some()
    }
}

pub struct World {
    shards: Vec<ShardState>,
    control: ControlState,
    stock: Stock,
    now: u64,
    opening: u32,
    effects: Effects,
    next_key: u64,
    pub lines: Vec<Line>,
}

fn note() -> AdminNote {
    AdminNote { operator: "ops".into(), reason: "test".into(), reference: String::new() }
}

fn definition(id: &str, items: &str) -> SaleDefinition {
    let text = format!(
        r#"{{"id":"{id}","name":"A sale","opens_at":"2023-01-01T00:00:00Z",
            "closes_at":"2033-01-01T00:00:00Z","hold_ttl_ms":60000,"items":[{items}]}}"#
    );
    serde_json::from_str(&text).unwrap()
}

impl World {
    fn new(journal: JournalId) -> Self {
        let mut shards: Vec<_> =
            (0..SHARDS).map(|_| ShardState::new(journal, KernelLimits::default())).collect();
        for slot in (0..SLOT_COUNT as u16).map(Slot::new) {
            shards[usize::from(slot.get() % SHARDS)].adopt_slot(slot, None);
        }
        Self {
            shards,
            control: ControlState::new(),
            stock: Stock::default(),
            now: 1_700_000_000_000,
            opening: 0,
            effects: Effects::default(),
            next_key: 0,
            lines: Vec::new(),
        }
    }

    fn key(&mut self) -> KeyHash {
        self.next_key += 1;
        KeyHash::of(&self.next_key.to_le_bytes())
    }

    /// Moves the effects' records to the journal, and gives units back.
    fn settle(&mut self) {
        let mut rest = &self.effects.records[..];
        while !rest.is_empty() {
            let head = RecordHead::peek(rest).unwrap();
            let (bytes, behind) = rest.split_at(head.length);
            let (opening, at, bytes) = (self.opening, self.now, bytes.to_vec());
            self.lines.push(Line { opening, at, slot: head.slot, bytes });
            rest = behind;
        }
        for (item, quantity) in &self.effects.given_back {
            *self.stock.0.borrow_mut().entry(item.get()).or_default() += u64::from(quantity.get());
        }
        self.effects.clear();
    }

    fn member(&mut self, member: u64, command: &Command) -> Outcome {
        let shard = usize::from(Slot::of(MemberId::new(member)).get() % SHARDS);
        let now = NodeTime::new(self.now);
        let outcome = self.shards[shard].decide(now, command, &self.stock, &mut self.effects);
        self.settle();
        outcome
    }

    fn control(&mut self, command: &ControlCommand) {
        let now = NodeTime::new(self.now);
        self.control.decide(now, command, &mut self.effects);
        self.settle();
    }

    fn redeem(
        &mut self,
        member: u64,
        item: ItemIndex,
        quantity: u64,
        hold: bool,
    ) -> Option<RedemptionView> {
        let key = self.key();
        let command = Command::Redeem { member: MemberId::new(member), key, item, quantity, hold };
        match self.member(member, &command) {
            Outcome::Redemption { view, .. } => Some(view),
            _ => None,
        }
    }

    fn step(&mut self, view: RedemptionView, confirm: bool) {
        let (member, id) = (view.member, view.id);
        let command =
            if confirm { Command::Confirm { member, id } } else { Command::Cancel { member, id } };
        self.member(member.get(), &command);
    }

    fn reverse(&mut self, id: RedemptionId, member: u64) {
        let key = self.key();
        let command = Command::Reverse { id, key, note: Arc::new(note()) };
        let outcome = self.member(member, &command);
        assert!(matches!(outcome, Outcome::Redemption { .. }), "{outcome:?}");
    }

    fn wait(&mut self, ms: u64) {
        self.now += ms;
        for shard in 0..self.shards.len() {
            self.shards[shard].expire_due(NodeTime::new(self.now), 100_000, &mut self.effects);
            self.settle();
        }
    }

    fn define(&mut self, sale: SaleDefinition) -> SaleIndex {
        let first = self.control.items().len() as u32;
        let sale = Arc::new(sale.validate().unwrap());
        self.control(&ControlCommand::DefineSale {
            sale: sale.clone(),
            is_home: true,
            note: note(),
        });
        let index = SaleIndex::new(self.control.sales().len() as u32 - 1);
        for (item, definition) in (first..).zip(&sale.definition().items) {
            let (item, granted) = (ItemIndex::new(item), u64::from(definition.stock.get()));
            self.control(&ControlCommand::GrantAccepted { item, granted, epoch: 1 });
        }
        let known = &self.control.sales()[index.get() as usize];
        for shard in &mut self.shards {
            let (rule, items) = sale.rules(index, known.phase, known.paused);
            shard.catalog_mut().define_sale(rule, items);
        }
        index
    }

    fn change(&mut self, sale: SaleIndex, change: SaleChange) {
        self.control(&ControlCommand::Change { sale, change, note: note() });
        for shard in 0..SHARDS {
            self.see(shard, sale, change);
        }
    }

    fn see(&mut self, shard: u16, sale: SaleIndex, change: SaleChange) {
        self.shards[usize::from(shard)].catalog_mut().change(sale, change);
        let mut bytes = Vec::new();
        ChangeSeen { shard, sale, change, at: NodeTime::new(self.now) }.encode(CONTROL, &mut bytes);
        self.lines.push(Line { opening: self.opening, at: self.now, slot: CONTROL, bytes });
    }

    /// Every member redeems now and then; holds are confirmed, cancelled, or left to expire.
    fn shop(&mut self, items: &[ItemIndex], rounds: u64) {
        for round in 0..rounds {
            for member in 1..=MEMBERS {
                let draw = (member * 7919 + round * 104_729) % 11;
                let item = items[(member + round) as usize % items.len()];
                let Some(view) = self.redeem(member, item, 1 + draw % 2, draw >= 4) else {
                    continue;
                };
                match draw {
                    4..6 => self.step(view, true),
                    6..8 => self.step(view, false),
                    0 if member % 5 == 0 => self.reverse(view.id, member),
                    _ => {}
                }
            }
            self.wait(1_000);
        }
    }

    /// The whole history.
    pub fn play(journal: JournalId) -> Self {
        let mut world = Self::new(journal);
        for member in (1..=MEMBERS).map(MemberId::new) {
            let command = Command::OpenAccount { member, points: Points::new(1_000) };
            world.member(member.get(), &command);
        }
        let spring = world.define(definition(
            "spring",
            r#"{"sku":"mug","name":"Mug","points":100,"stock":120,"limit_per_member":2},
               {"sku":"pen","name":"Pen","points":30,"stock":900,"limit_per_member":3,
                "eligible":["1-250"]}"#,
        ));
        world.change(spring, SaleChange::Opened);
        world.shop(&[MUG, PEN], 2);
        for member in [3u64, 4, 5] {
            let (key, amount) = (world.key(), Points::new(50 * member));
            let note = Arc::new(note());
            let id = MemberId::new(member);
            world.member(member, &Command::Credit { member: id, key, amount, note: note.clone() });
            let (key, amount) = (world.key(), Points::new(10));
            world.member(member, &Command::Debit { member: id, key, amount, note });
        }
        world.opening += 1;
        world.wait(30_000);
        // A barrier that one shard answers later than the other.
        world.control(&ControlCommand::Change {
            sale: spring,
            change: SaleChange::Paused,
            note: note(),
        });
        world.see(0, spring, SaleChange::Paused);
        world.shop(&[PEN], 1);
        world.see(1, spring, SaleChange::Paused);
        world.shop(&[PEN], 1);
        world.wait(12_000);
        let (key, quantity) = (world.key(), Quantity::new(40));
        world.control(&ControlCommand::AddStock { item: MUG, quantity, key, note: note() });
        world.control(&ControlCommand::GrantAccepted { item: MUG, granted: 160, epoch: 1 });
        world.stock.0.borrow_mut().entry(PEN.get()).and_modify(|n| *n -= 25);
        let (key, units) = (world.key(), Quantity::new(25));
        let (asked, taken) = (units, units);
        world.control(&ControlCommand::Return { item: PEN, quantity: units, epoch: 1 });
        world.control(&ControlCommand::WithdrawStock {
            item: PEN,
            asked,
            taken,
            key,
            note: note(),
        });
        world.change(spring, SaleChange::Resumed);
        world.shop(&[MUG, PEN], 2);
        world.wait(90_000);
        world.change(spring, SaleChange::Ended);
        world.reverse_some(5);
        world.wait(11_000);
        world.finish(spring);
        world
    }

    /// Another opening, another sale, and the first one forgotten.
    fn finish(&mut self, spring: SaleIndex) {
        self.opening += 1;
        self.wait(60_000);
        let autumn = self.define(definition(
            "autumn",
            r#"{"sku":"bag","name":"Bag","points":20,"stock":500,"limit_per_member":4}"#,
        ));
        self.change(autumn, SaleChange::Opened);
        self.shop(&[BAG], 2);
        for slot in (0..SLOT_COUNT as u16).map(Slot::new) {
            let shard = usize::from(slot.get() % SHARDS);
            let now = NodeTime::new(self.now);
            self.shards[shard].drop_keys(slot, spring, now, &mut self.effects);
            // Slots without members would make a long journal.
            if self.shards[shard].slot(slot).totals().members > 0 {
                self.settle();
            } else {
                self.effects.clear();
            }
        }
        self.shop(&[BAG], 1);
        self.wait(11_000);
        let (id, key) = (MemberId::new(9), self.key());
        let (amount, note) = (Points::new(7), Arc::new(note()));
        self.member(9, &Command::Credit { member: id, key, amount, note });
    }

    /// Reversals of the ended sale: their units are retired.
    fn reverse_some(&mut self, count: usize) {
        let confirmed = self.lines.iter().filter_map(|line| match line.record() {
            Record::Redeemed(r) if r.item == PEN => Some((r.id, r.member.get())),
            _ => None,
        });
        let all: Vec<_> = confirmed.collect();
        let mut reversed = 0;
        for (id, member) in all {
            let command = Command::ReadRedemption { member: None, id };
            let Outcome::Redemption { view, .. } = self.member(member, &command) else { continue };
            if view.state == RedemptionState::Confirmed && reversed < count {
                self.reverse(id, member);
                reversed += 1;
            }
        }
        assert_eq!(reversed, count);
    }
}
