//! Random streams: the kernel and the model side by side, and the journal of both replayed.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use onrush::kernel::code::Code;
use onrush::kernel::command::{Command, Outcome};
use onrush::kernel::control::{ControlCommand, ControlOutcome, ControlState};
use onrush::kernel::definition::ValidSale;
use onrush::kernel::effects::Effects;
use onrush::kernel::record::{CONTROL, Record, RecordHead, SaleChange};
use onrush::kernel::slot::SlotState;
use onrush::kernel::state::{KernelLimits, ShardState};
use onrush::units::{
    ItemIndex, JournalId, MemberId, NodeTime, Quantity, RedemptionId, SaleIndex, Slot, TakeUnits,
};

use super::conservation::Conservation;
use super::{Left, Model};

const HOLD_ALLOWANCE: u8 = 2;
const SLOT_COUNT: u16 = 6;
const MEMBER_COUNT: usize = 60;

/// `SplitMix64` (Steele, Lea, Flood 2014).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
    pub fn percent(&mut self, chance: usize) -> bool {
        self.below(100) < chance
    }
    pub fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }
}

/// The lines of stock that the kernel takes from.
#[derive(Default)]
pub(super) struct Lines(RefCell<Vec<u64>>);

impl Lines {
    fn add(&self, item: u32, units: u64) {
        let mut lines = self.0.borrow_mut();
        if lines.len() <= item as usize {
            lines.resize(item as usize + 1, 0);
        }
        lines[item as usize] += units;
    }
}

impl TakeUnits for Lines {
    fn try_take(&self, item: ItemIndex, quantity: Quantity) -> bool {
        let mut lines = self.0.borrow_mut();
        let Some(line) = lines.get_mut(item.get() as usize) else { return false };
        let units = u64::from(quantity.get());
        if *line < units {
            return false;
        }
        *line -= units;
        true
    }
}

/// A writer to the journal: one per shard, and the control machine.
#[derive(Default)]
struct Writer {
    effects: Effects,
    /// Bytes decided since the last durable write, and the units they give back.
    pending: Vec<u8>,
    given_back: Vec<(u32, u64)>,
}

pub struct Stream {
    pub(super) random: Random,
    pub(super) now: u64,
    pub(super) model: Model,
    shards: Vec<ShardState>,
    control: ControlState,
    pub(super) lines: Lines,
    /// Shards first, control last.
    writers: Vec<Writer>,
    /// All durable records, in order.
    journal: Vec<u8>,
    pub(super) members: Vec<u64>,
    pub(super) strangers: Vec<u64>,
    slots: Vec<Slot>,
    pub(super) ids: Vec<(u64, RedemptionId)>,
    pub(super) keys: Vec<Command>,
    pub(super) admin: Vec<Command>,
    pub(super) stock_changes: Vec<ControlCommand>,
    pub(super) definitions: Vec<Arc<ValidSale>>,
    pub(super) key_count: u64,
    pub conservation: Conservation,
    pub codes: BTreeMap<Code, u64>,
    pub successes: u64,
    pub steps: u64,
}

fn limits() -> KernelLimits {
    KernelLimits { hold_allowance: HOLD_ALLOWANCE }
}

pub(super) fn journal_id() -> JournalId {
    JournalId::new(0xabcd_ef01)
}

impl Stream {
    pub fn new(seed: u64) -> Self {
        let slots: Vec<_> = (0..SLOT_COUNT).map(|n| Slot::new(n * 700)).collect();
        let all: Vec<u64> = [0, u64::MAX]
            .into_iter()
            .chain(1..)
            .filter(|&id| id == 0 || slots.contains(&Slot::of(MemberId::new(id))))
            .take(MEMBER_COUNT + 10)
            .filter(|&id| slots.contains(&Slot::of(MemberId::new(id))))
            .collect();
        let (members, strangers) = all.split_at(all.len() - 8);
        let mut stream = Self {
            random: Random(seed),
            now: 1_800_000_000_000,
            model: Model::new(journal_id(), u64::from(HOLD_ALLOWANCE)),
            shards: Vec::new(),
            control: ControlState::new(),
            lines: Lines::default(),
            writers: Vec::new(),
            journal: Vec::new(),
            members: members.to_vec(),
            strangers: strangers.to_vec(),
            slots,
            ids: Vec::new(),
            keys: Vec::new(),
            admin: Vec::new(),
            stock_changes: Vec::new(),
            definitions: Vec::new(),
            key_count: 0,
            conservation: Conservation::default(),
            codes: BTreeMap::new(),
            successes: 0,
            steps: 0,
        };
        let empty = stream.slots.iter().map(|&slot| SlotState::new(slot)).collect();
        stream.start(empty, ControlState::new());
        stream
    }

    /// Starts 1 to 3 shards with these slots.
    fn start(&mut self, slots: Vec<SlotState>, control: ControlState) {
        let shard_count = 1 + self.random.below(3);
        self.writers = (0..=shard_count).map(|_| Writer::default()).collect();
        self.shards = (0..shard_count).map(|_| ShardState::new(journal_id(), limits())).collect();
        // A sale that one slot has dropped is dropped for all of them.
        let mut catalog = control.catalog();
        for (sale, known) in (0..).zip(&mut self.model.sales) {
            let sale = SaleIndex::new(sale);
            known.keys_dropped = slots.iter().any(|slot| slot.dropped_sales().contains(&sale));
            if known.keys_dropped {
                catalog.mark_keys_dropped(sale);
            }
        }
        for shard in &mut self.shards {
            *shard.catalog_mut() = catalog.clone();
        }
        for (place, state) in slots.into_iter().enumerate() {
            let slot = state.slot();
            self.shards[place % shard_count].adopt_slot(slot, Some(Box::new(state)));
        }
        self.control = control;
    }

    fn shard_of(&self, slot: Slot) -> usize {
        self.shards.iter().position(|shard| shard.owns(slot)).expect("every slot is owned")
    }

    pub fn run(&mut self, steps: u64) {
        for _ in 0..steps {
            self.steps += 1;
            match self.random.below(1000) {
                0..900 => self.member_step(),
                900..940 => self.control_step(),
                940..975 => self.flush_one(),
                975..990 => self.expire(),
                990..997 => self.pass_time(),
                _ => self.drop_keys(),
            }
            if self.steps.is_multiple_of(5_000) {
                self.check_digests();
            }
            if self.steps.is_multiple_of(40_000) {
                self.restart();
            }
        }
        self.restart();
        self.check_digests();
    }

    fn note(&mut self, code: Option<Code>) {
        match code {
            Some(code) => *self.codes.entry(code).or_default() += 1,
            None => self.successes += 1,
        }
    }

    /// Compares what the kernel left with what the model left.
    fn settle(&mut self, writer: usize, what: &str) {
        let left = self.model.take_left();
        let Writer { effects, pending, given_back } = &mut self.writers[writer];
        let mut found = Left::default();
        let mut rest = &effects.records[..];
        while !rest.is_empty() {
            found.records.push(Record::take(&mut rest).expect("the kernel writes records"));
        }
        assert_eq!(found.records.len(), effects.record_count as usize);
        let back = effects.given_back.iter().map(|&(item, n)| (item.get(), u64::from(n.get())));
        found.given_back = back.collect();
        found.confirmed = effects.confirmed.iter().map(|&(item, n)| (item.get(), n)).collect();
        assert_eq!(found, left, "step {}: {what}", self.steps);
        for (_, record) in &found.records {
            if let Record::Held(r) = record {
                self.ids.push((r.member.get(), r.id));
            } else if let Record::Redeemed(r) = record {
                self.ids.push((r.member.get(), r.id));
            }
        }
        pending.extend_from_slice(&effects.records);
        given_back.extend(found.given_back);
        effects.clear();
    }

    /// One writer's records become durable; only now its units enter the lines.
    fn flush(&mut self, writer: usize) {
        let pending = std::mem::take(&mut self.writers[writer].pending);
        self.conservation.append(&pending);
        self.journal.extend_from_slice(&pending);
        for (item, units) in std::mem::take(&mut self.writers[writer].given_back) {
            self.lines.add(item, units);
            self.model.items[item as usize].free += units;
        }
    }

    fn flush_one(&mut self) {
        let writer = self.random.below(self.writers.len());
        self.flush(writer);
    }

    fn pass_time(&mut self) {
        let step = match self.random.below(100) {
            0..60 => self.random.below(300),
            60..97 => self.random.below(3_000),
            97..99 => self.random.below(3_600_000),
            _ => self.random.below(20) * 24 * 3_600_000,
        };
        self.now += step as u64;
        let control = self.writers.len() - 1;
        let now = NodeTime::new(self.now);
        let changes = self.control.tick(now, &mut self.writers[control].effects);
        assert_eq!(changes, self.model.tick(self.now));
        self.settle(control, "tick");
        for (sale, change) in changes {
            self.tell_shards(sale, change);
        }
        assert!(self.control.next_tick().is_none_or(|at| at > now));
    }

    /// The barrier: the change is durable before a shard decides by it.
    fn tell_shards(&mut self, sale: SaleIndex, change: SaleChange) {
        self.flush(self.writers.len() - 1);
        for shard in &mut self.shards {
            shard.catalog_mut().change(sale, change);
        }
    }

    fn expire(&mut self) {
        let shard = self.random.below(self.shards.len());
        let max = 1 + self.random.below(5);
        let (now, effects) = (NodeTime::new(self.now), &mut self.writers[shard].effects);
        let expired = self.shards[shard].expire_due(now, max, effects);
        let owner = &self.shards[shard];
        assert_eq!(expired, self.model.expire(self.now, max, |slot| owner.owns(slot)));
        assert!(expired == max || owner.next_expiry().is_none_or(|at| at > now));
        self.settle(shard, "expire");
    }

    fn drop_keys(&mut self) {
        let ended: Vec<_> =
            (0..self.model.sales.len()).filter(|&s| self.model.sales[s].phase == 2).collect();
        if ended.is_empty() {
            return;
        }
        // Mostly a sale that has just ended, in all of its slots.
        let sale = ended[ended.len() - 1 - self.random.below(ended.len().min(12))];
        for shard in &mut self.shards {
            shard.catalog_mut().mark_keys_dropped(SaleIndex::new(sale as u32));
        }
        for slot in self.slots.clone() {
            if self.random.percent(10) {
                continue;
            }
            let shard = self.shard_of(slot);
            let (now, effects) = (NodeTime::new(self.now), &mut self.writers[shard].effects);
            self.shards[shard].drop_keys(slot, SaleIndex::new(sale as u32), now, effects);
            self.model.drop_keys(slot, sale as u32, self.now);
            self.settle(shard, "drop keys");
        }
        self.model.sales[sale].keys_dropped = true;
    }

    fn member_step(&mut self) {
        let mut command = self.member_command();
        if let Command::Redeem { member, key, item, quantity, hold } = command
            && self.random.percent(10)
        {
            command = Command::Recall { member, key, item, quantity, hold };
        }
        let slot = match &command {
            Command::Reverse { id, .. } | Command::ReadRedemption { member: None, id } => id.slot(),
            Command::Redeem { member, .. }
            | Command::Confirm { member, .. }
            | Command::Cancel { member, .. }
            | Command::OpenAccount { member, .. }
            | Command::Credit { member, .. }
            | Command::Debit { member, .. }
            | Command::ReadAccount { member }
            | Command::ReadRedemption { member: Some(member), .. }
            | Command::ListRedemptions { member, .. }
            | Command::ReadKey { member, .. }
            | Command::Recall { member, .. } => Slot::of(*member),
        };
        let shard = self.shard_of(slot);
        let (now, effects) = (NodeTime::new(self.now), &mut self.writers[shard].effects);
        let outcome = self.shards[shard].decide(now, &command, &self.lines, effects);
        let expected = self.model.decide(self.now, &command);
        assert_eq!(outcome, expected, "step {}: {command:?}", self.steps);
        self.settle(shard, &format!("{command:?}"));
        self.note(match &outcome {
            Outcome::Refused(refusal) => Some(refusal.code),
            _ => None,
        });
    }

    fn control_step(&mut self) {
        let command = self.control_command();
        let control = self.writers.len() - 1;
        let now = NodeTime::new(self.now);
        let outcome = self.control.decide(now, &command, &mut self.writers[control].effects);
        let expected = self.model.control(self.now, &command);
        assert_eq!(outcome, expected, "step {}: {command:?}", self.steps);
        self.settle(control, &format!("{command:?}"));
        self.note(match &outcome {
            ControlOutcome::Refused(refusal) => Some(refusal.code),
            _ => None,
        });
        match (&command, &outcome) {
            (_, ControlOutcome::Defined { sale, replayed: false }) => {
                self.flush(control);
                let known = &self.control.sales()[sale.get() as usize];
                let (rule, items) = known.sale.rules(*sale, known.phase, known.paused);
                for shard in &mut self.shards {
                    shard.catalog_mut().define_sale(rule.clone(), items.clone());
                }
            }
            (
                ControlCommand::Change { change, .. },
                ControlOutcome::Changed { sale, changed: true },
            ) => self.tell_shards(*sale, *change),
            _ => {}
        }
    }

    fn check_digests(&self) {
        let mut counted: HashMap<u32, (u64, u64, u64)> = HashMap::new();
        for shard in &self.shards {
            for (item, counts) in (0..).zip(shard.item_counts()) {
                let sum = counted.entry(item).or_default();
                sum.0 += counts.held;
                sum.1 += counts.confirmed;
                sum.2 += counts.retired;
            }
            for slot in shard.slots() {
                let (found, expected) = (shard.slot(slot).digest(), self.model.digest(slot));
                assert_eq!(found, expected, "step {}: slot {slot}", self.steps);
                let totals = shard.slot(slot).totals();
                let sums = totals.sums;
                assert_eq!(
                    totals.free + totals.held + sums.redeemed + sums.debited,
                    sums.opened + sums.credited + sums.reversed,
                    "points of slot {slot}"
                );
            }
        }
        let pending = |item: u32| -> u64 {
            let all = self.writers.iter().flat_map(|writer| &writer.given_back);
            all.filter(|(of, _)| *of == item).map(|(_, units)| units).sum()
        };
        for (number, item) in (0..).zip(&self.model.items) {
            let expected = self.model.units(number);
            assert_eq!(counted.get(&number).copied().unwrap_or_default(), expected);
            let lines = self.lines.0.borrow();
            let free = lines.get(number as usize).copied().unwrap_or(0);
            assert_eq!(free, item.free);
            let (held, confirmed, retired) = expected;
            let here = item.granted - item.returned;
            assert_eq!(here, free + pending(number) + held + confirmed + retired, "I2, {number}");
            assert!(here <= item.total, "I1");
        }
    }

    /// Stops with all records durable, and starts anew: from the journal alone, or through
    /// snapshots; and with another number of shards.
    fn restart(&mut self) {
        (0..self.writers.len()).for_each(|writer| self.flush(writer));
        let mut slots: BTreeMap<Slot, SlotState> =
            self.slots.iter().map(|&slot| (slot, SlotState::new(slot))).collect();
        let mut control = ControlState::new();
        let mut rest = &self.journal[..];
        while !rest.is_empty() {
            let head = RecordHead::peek(rest).expect("whole records");
            let (bytes, behind) = rest.split_at(head.length);
            rest = behind;
            if head.slot == CONTROL {
                let (_, record) = Record::take(&mut &bytes[..]).expect("a record");
                control.apply(&record, bytes).expect("replay fits");
            } else {
                let state = slots.get_mut(&head.slot).expect("a slot of ours");
                state.apply_bytes(bytes).expect("replay fits");
            }
        }
        assert_eq!(control.digest(), self.control.digest());
        assert_eq!(control.record_sums(), self.control.record_sums());
        let mut bytes = Vec::new();
        control.encode(&mut bytes);
        let control = ControlState::decode(&bytes).expect("a snapshot");
        assert_eq!(control.digest(), self.control.digest());
        let mut recovered = Vec::new();
        for (slot, replayed) in slots {
            let live = self.shards[self.shard_of(slot)].slot(slot);
            assert_eq!(replayed.digest(), live.digest(), "replay of slot {slot}");
            assert_eq!(replayed.totals(), live.totals());
            let mut bytes = Vec::new();
            live.encode(&mut bytes);
            let decoded = SlotState::decode(&bytes).expect("a snapshot");
            assert_eq!(decoded.digest(), live.digest(), "snapshot of slot {slot}");
            assert_eq!(decoded.totals(), live.totals());
            recovered.push(if self.random.percent(50) { replayed } else { decoded });
        }
        self.start(recovered, control);
        self.check_digests();
    }
}
