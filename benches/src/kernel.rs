//! A shard with everything on, and the load that the kernel benches put on it.
//!
//! What a decision pays for here: the inbox's command, request key, sale, eligibility, limit,
//! points, an atomic stock line, the record, the slot's running checksum, and CRC32C over the
//! records of each batch. What it does not: HTTP, queues, the disk.

use onrush::kernel::catalog::{ItemRule, SalePhase, SaleRule};
use onrush::kernel::command::{Command, Outcome};
use onrush::kernel::effects::Effects;
use onrush::kernel::state::{KernelLimits, PREFETCH_GROUP, ShardState};
use onrush::stock::line::StockLines;
use onrush::units::{
    ItemIndex, JournalId, KeyHash, MemberId, NodeTime, Points, Quantity, SLOT_COUNT, SaleIndex,
    Slot,
};

/// Commands that a shard takes from its inbox at once.
pub const BATCH_LEN: usize = 256;
/// Items per sale.
const SALE_LEN: usize = 100;
/// Of a hundred items, the last have no stock.
const SOLD_OUT_PER_SALE: usize = 4;

/// `SplitMix64` (Steele, Lea, Flood 2014).
pub struct Random(pub u64);

impl Random {
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.draw()) * u128::from(bound)) >> 64) as u64
    }
}

/// One shard that owns every slot.
pub struct Bench {
    pub shard: ShardState,
    pub stock: StockLines,
    pub effects: Effects,
    members: u64,
    items: u32,
    now: u64,
    random: Random,
    key_count: u64,
    /// The latest requests, some of which are sent again.
    latest: Vec<Command>,
    /// Keeps the checksums alive.
    pub crc: u32,
}

/// Outcomes of a run.
#[derive(Default, Clone, Copy, Debug)]
pub struct Tally {
    pub confirmed: u64,
    pub replayed: u64,
    pub refused: u64,
}

impl Tally {
    pub fn sum(&self) -> u64 {
        self.confirmed + self.replayed + self.refused
    }
    fn count(&mut self, outcome: &Outcome) {
        match outcome {
            Outcome::Redemption { replayed: false, .. } => self.confirmed += 1,
            Outcome::Redemption { .. } => self.replayed += 1,
            _ => self.refused += 1,
        }
    }
}

impl Bench {
    /// Opens accounts for all members, by the kernel's own decisions.
    pub fn new(members: u64, items: usize, seed: u64) -> Self {
        let mut shard = ShardState::new(JournalId::new(seed | 1), KernelLimits::default());
        let stock = StockLines::default();
        for first in (0..items).step_by(SALE_LEN) {
            let sale = SaleIndex::new((first / SALE_LEN) as u32);
            let count = SALE_LEN.min(items - first);
            let item = ItemRule {
                sale,
                price: Points::new(100),
                limit: Quantity::new(3),
                eligible: Some([(MemberId::new(0), MemberId::new(u64::MAX))].into()),
            };
            let rule = SaleRule { phase: SalePhase::Open, paused: false, hold_ttl_ms: 60_000 };
            shard.catalog_mut().define_sale(rule, vec![item; count]);
            for place in 0..count {
                if items < SALE_LEN || place < count - SOLD_OUT_PER_SALE {
                    let line = stock.line(ItemIndex::new((first + place) as u32));
                    line.give_back(1 << 40);
                }
            }
        }
        for slot in (0..SLOT_COUNT as u16).map(Slot::new) {
            shard.adopt_slot(slot, None);
        }
        let mut bench = Self {
            shard,
            stock,
            effects: Effects::default(),
            members,
            items: items as u32,
            now: 1_800_000_000_000,
            random: Random(seed),
            key_count: 0,
            latest: Vec::new(),
            crc: 0,
        };
        for id in 0..members {
            let points = Points::new(1_000_000);
            let command = Command::OpenAccount { member: MemberId::new(id), points };
            let now = NodeTime::new(bench.now);
            bench.shard.decide(now, &command, &bench.stock, &mut bench.effects);
            bench.effects.clear();
        }
        bench
    }

    /// Makes memory ready for the redemptions of so many units, as a shard does when a sale is
    /// defined.
    pub fn make_ready(&mut self, units: u64) {
        for slot in (0..SLOT_COUNT as u16).map(Slot::new) {
            self.shard.make_ready(slot, units);
        }
    }

    /// Uniform random members and items; of a hundred requests, three come again and one is a
    /// stranger's. Not part of what is timed.
    pub fn commands(&mut self, count: usize, out: &mut Vec<Command>) {
        out.clear();
        while out.len() < count {
            let dice = self.random.below(100);
            if dice < 3 && !self.latest.is_empty() {
                let place = self.random.below(self.latest.len() as u64) as usize;
                out.push(self.latest[place].clone());
                continue;
            }
            let id = self.random.below(self.members) + if dice == 3 { 1 << 60 } else { 0 };
            self.key_count += 1;
            let command = Command::Redeem {
                member: MemberId::new(id),
                key: KeyHash::of(&self.key_count.to_le_bytes()),
                item: ItemIndex::new(self.random.below(u64::from(self.items)) as u32),
                quantity: 1,
                hold: false,
            };
            if self.latest.len() < 10_000 {
                self.latest.push(command.clone());
            } else {
                let place = self.random.below(10_000) as usize;
                self.latest[place] = command.clone();
            }
            out.push(command);
        }
    }

    /// Decides all commands in batches, as a shard does: prefetch, decide, checksum.
    pub fn run(&mut self, commands: &[Command], tally: &mut Tally) {
        for batch in commands.chunks(BATCH_LEN) {
            self.now += 1;
            let now = NodeTime::new(self.now);
            for (group, at) in batch.chunks(PREFETCH_GROUP).zip((0..).step_by(PREFETCH_GROUP)) {
                self.shard.prefetch_ahead(batch, at, |command| Some(member_of(command)));
                for command in group {
                    let outcome = self.shard.decide(now, command, &self.stock, &mut self.effects);
                    tally.count(&outcome);
                }
            }
            self.crc ^= crc32c::crc32c(&self.effects.records);
            self.effects.clear();
        }
    }
}

fn member_of(command: &Command) -> MemberId {
    match command {
        Command::Redeem { member, .. } => *member,
        _ => unreachable!("the bench only redeems"),
    }
}
