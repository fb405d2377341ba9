//! For tests: random journals that a kernel could have written, and a naive fold of them that
//! shares no code with `apply`, to compare database shards with.

use std::collections::BTreeMap;
use std::path::Path;

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use xxhash_rust::xxh3::xxh3_64;

use super::sqlite::SqliteReader;
use super::store::{ConsistentRead, StoreReader};
use crate::kernel::command::RedemptionState;
use crate::kernel::record::{
    AdminNote, CONTROL, Confirmed, Credited, Debited, Granted, Held, KeysDropped, Opened, Record,
    Redeemed, Released, Reversed, SaleChange, SaleChanged, SaleDefined, StockChanged,
};
use crate::ship::frames::MemoryFrames;
use crate::ship::partition::Layout;
use crate::units::{
    ItemIndex, JournalId, KeyHash, MemberId, NodeTime, Points, Quantity, RedemptionId, SaleIndex,
    Seq, Slot,
};

pub const JOURNAL: JournalId = JournalId::new(0xfeed_beef_0000_0001);
const ITEMS: u32 = 5;

/// A fresh random journal, and everything that ever went into it.
pub struct Generator {
    rng: SmallRng,
    pub frames: MemoryFrames,
    pub written: Vec<(Slot, Record)>,
    now: u64,
    members: BTreeMap<u64, (u64, u64)>,
    live: Vec<(RedemptionId, u64, u32, u32, u64, RedemptionState)>,
    slot_seq: u64,
    member_count: u64,
}

impl Generator {
    pub fn new(seed: u64, member_count: u64) -> Self {
        println!("seed {seed}");
        let mut generator = Self {
            rng: SmallRng::seed_from_u64(seed),
            frames: MemoryFrames::new(JOURNAL),
            written: Vec::new(),
            now: 1_700_000_000_000,
            members: BTreeMap::new(),
            live: Vec::new(),
            slot_seq: 0,
            member_count,
        };
        generator.define_sale();
        generator
    }

    fn define_sale(&mut self) {
        let items: Vec<_> = (0..ITEMS)
            .map(|i| {
                let figures = r#""points":100,"stock":9,"limit_per_member":3"#;
                format!(r#"{{"sku":"SKU-{i}","name":"Thing {i}",{figures}}}"#)
            })
            .collect();
        let definition =
            format!(r#"{{"id":"spring","name":"Spring sale","items":[{}]}}"#, items.join(","));
        let (sale, first_item) = (SaleIndex::new(0), ItemIndex::new(0));
        let (at, note) = (self.at(), note());
        let mut records: Vec<(Slot, Record)> = vec![(
            CONTROL,
            SaleDefined { sale, first_item, definition, at, note: note.clone() }.into(),
        )];
        for item in (0..ITEMS).map(ItemIndex::new) {
            let (asked, quantity) = (Quantity::new(1000), Quantity::new(1000));
            let stock = StockChanged {
                item,
                added: true,
                asked,
                quantity,
                total_after: 1000,
                key: KeyHash::default(),
                at,
                note: note.clone(),
            };
            records.push((CONTROL, stock.into()));
            records.push((CONTROL, Granted { item, granted: 1000, epoch: 1, at }.into()));
        }
        let opened = SaleChanged { sale, change: SaleChange::Opened, at, note };
        records.push((CONTROL, opened.into()));
        self.append(&records);
    }

    fn at(&self) -> NodeTime {
        NodeTime::new(self.now)
    }

    /// Appends one frame of these records.
    pub fn append(&mut self, records: &[(Slot, Record)]) -> Seq {
        self.written.extend(records.iter().cloned());
        self.frames.append(self.at(), records)
    }

    /// Lets time go by.
    pub fn skip_ms(&mut self, ms: u64) {
        self.now += ms;
    }

    /// Appends frames of random size until `count` more records are in.
    pub fn write(&mut self, count: usize) {
        let goal = self.written.len() + count;
        while self.written.len() < goal {
            self.now += self.rng.random_range(0..3);
            let size = self.rng.random_range(1..40).min(goal - self.written.len());
            let records: Vec<_> = (0..size).map(|_| self.next()).collect();
            self.append(&records);
        }
    }

    fn next(&mut self) -> (Slot, Record) {
        let raw = self.rng.random_range(1..=self.member_count);
        let raw = if raw % 10 == 0 { u64::MAX - raw } else { raw };
        let (member, at) = (MemberId::new(raw), self.at());
        let slot = Slot::of(member);
        let key = KeyHash::of(&self.rng.random::<[u8; 16]>());
        let Some(&(free, held)) = self.members.get(&raw) else {
            let points = self.rng.random_range(0..2000);
            self.members.insert(raw, (points, 0));
            return (slot, Opened { member, points: Points::new(points), at }.into());
        };
        let die = self.rng.random_range(0..100);
        if die >= 55 && !self.live.is_empty() {
            let index = self.rng.random_range(0..self.live.len());
            return self.step(index, die >= 80);
        }
        if die < 3 {
            let sale = SaleIndex::new(0);
            let (first_item, item_count) = (ItemIndex::new(0), ITEMS);
            return (slot, KeysDropped { sale, first_item, item_count, at }.into());
        }
        let quantity = self.rng.random_range(1..4u32);
        let points = u64::from(quantity) * 100;
        if die < 15 || free < points {
            let amount = self.rng.random_range(0..500);
            let debits = die < 8 && amount <= free;
            let free = if debits { free - amount } else { free + amount };
            self.members.insert(raw, (free, held));
            let (amount, free_after) = (Points::new(amount), Points::new(free));
            let (held_after, note) = (Points::new(held), note());
            return if debits {
                let r = Debited { member, amount, free_after, held_after, key, at, note };
                (slot, r.into())
            } else {
                let r = Credited { member, amount, free_after, held_after, key, at, note };
                (slot, r.into())
            };
        }
        self.begin(member, (free, held), quantity, key)
    }

    fn begin(
        &mut self,
        member: MemberId,
        (free, held): (u64, u64),
        units: u32,
        key: KeyHash,
    ) -> (Slot, Record) {
        let (slot, at) = (Slot::of(member), self.at());
        let price = u64::from(units) * 100;
        let item = self.rng.random_range(0..ITEMS);
        let id = RedemptionId::new(at, slot, JOURNAL, self.slot_seq);
        self.slot_seq += 1;
        let holds = self.rng.random_bool(0.5);
        let held = if holds { held + price } else { held };
        self.members.insert(member.get(), (free - price, held));
        let state = if holds { RedemptionState::Held } else { RedemptionState::Confirmed };
        self.live.push((id, member.get(), item, units, price, state));
        let (item, quantity, points) =
            (ItemIndex::new(item), Quantity::new(units), Points::new(price));
        let (free_after, held_after) = (Points::new(free - price), Points::new(held));
        let record: Record = if holds {
            let expires_at = at.plus_ms(60_000);
            Held { member, id, key, item, quantity, points, free_after, held_after, expires_at }
                .into()
        } else {
            Redeemed { member, id, key, item, quantity, points, free_after, held_after }.into()
        };
        (slot, record)
    }

    fn step(&mut self, index: usize, gives_up: bool) -> (Slot, Record) {
        let (id, raw, item, units, price, state) = self.live[index];
        let member = MemberId::new(raw);
        let (slot, at) = (Slot::of(member), self.at());
        let (free, held) = self.members[&raw];
        let (item, quantity, points) =
            (ItemIndex::new(item), Quantity::new(units), Points::new(price));
        let is_held = state == RedemptionState::Held;
        let (free, held) = match (is_held, gives_up) {
            (true, true) => (free + price, held - price),
            (true, false) => (free, held - price),
            (false, _) => (free + price, held),
        };
        self.members.insert(raw, (free, held));
        let (free_after, held_after) = (Points::new(free), Points::new(held));
        let record: Record = if is_held && !gives_up {
            self.live[index].5 = RedemptionState::Confirmed;
            Confirmed { member, id, item, quantity, points, free_after, held_after, at }.into()
        } else if is_held {
            let expired = self.rng.random_bool(0.5);
            Released { member, id, item, quantity, points, free_after, held_after, expired, at }
                .into()
        } else {
            let (units_back, key, note) = (self.rng.random_bool(0.5), KeyHash::default(), note());
            let r = Reversed {
                member,
                id,
                item,
                quantity,
                points,
                free_after,
                held_after,
                units_back,
                key,
                at,
                note,
            };
            r.into()
        };
        if !is_held || gives_up {
            self.live.swap_remove(index);
        }
        (slot, record)
    }
}

pub fn note() -> AdminNote {
    AdminNote { operator: "ops".into(), reason: "test".into(), reference: "T-1".into() }
}

/// What all database shards together must hold: text keys to text rows, so that a difference
/// prints as itself.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Content {
    pub accounts: BTreeMap<u64, (u64, u64, u64)>,
    pub redemptions: BTreeMap<u128, String>,
    pub ledger: BTreeMap<(u64, u8), String>,
    pub stock: BTreeMap<u32, [i64; 8]>,
    pub slots: BTreeMap<u16, (u64, u64)>,
}

/// The naive fold: one record after the other, no batches, no SQL.
pub fn fold(records: &[(Slot, Record)], shard_count: u64) -> Content {
    let mut content = Content::default();
    for (index, (slot, record)) in records.iter().enumerate() {
        let seq = index as u64 + 1;
        let mut bytes = Vec::new();
        record.encode(*slot, &mut bytes);
        // The control partition is read by every database shard; the dump adds them up.
        let copies = if *slot == CONTROL { shard_count } else { 1 };
        let sum = content.slots.entry(slot.get()).or_default();
        sum.0 += copies;
        sum.1 = sum.1.wrapping_add(xxh3_64(&bytes).wrapping_mul(copies));
        content.fold(seq, record);
    }
    content
}

impl Content {
    /// Fails with the first differences, table by table.
    pub fn assert_is(&self, expected: &Self) {
        fn differ<K: Ord + Copy + std::fmt::Debug, V: PartialEq + std::fmt::Debug>(
            table: &str,
            found: &BTreeMap<K, V>,
            expected: &BTreeMap<K, V>,
        ) -> Vec<String> {
            let keys: std::collections::BTreeSet<_> =
                found.keys().chain(expected.keys()).copied().collect();
            let unlike = keys.into_iter().filter(|k| found.get(k) != expected.get(k));
            let line =
                |k| format!("{table} {k:?}: {:?}, not {:?}", found.get(&k), expected.get(&k));
            unlike.map(line).take(4).collect()
        }
        let lines = [
            differ("accounts", &self.accounts, &expected.accounts),
            differ("redemptions", &self.redemptions, &expected.redemptions),
            differ("ledger", &self.ledger, &expected.ledger),
            differ("stock", &self.stock, &expected.stock),
            differ("slots", &self.slots, &expected.slots),
        ]
        .concat();
        assert!(lines.is_empty(), "{}", lines.join("\n"));
    }

    fn fold(&mut self, seq: u64, record: &Record) {
        match record {
            Record::Opened(r) => {
                self.account(seq, r.member, r.points, Points::ZERO);
                self.entries(seq, r.member, ("issued", "free"), r.points, None);
            }
            Record::Credited(r) => {
                self.account(seq, r.member, r.free_after, r.held_after);
                self.entries(seq, r.member, ("issued", "free"), r.amount, None);
            }
            Record::Debited(r) => {
                self.account(seq, r.member, r.free_after, r.held_after);
                self.entries(seq, r.member, ("free", "issued"), r.amount, None);
            }
            Record::Held(r) => {
                self.account(seq, r.member, r.free_after, r.held_after);
                self.entries(seq, r.member, ("free", "held"), r.points, Some(r.id));
                self.stock.entry(r.item.get()).or_default()[0] += i64::from(r.quantity.get());
                self.redemption(r.id, r.member, "held", (seq, r.id.at()), false);
            }
            Record::Redeemed(r) => {
                self.account(seq, r.member, r.free_after, r.held_after);
                self.entries(seq, r.member, ("free", "redeemed"), r.points, Some(r.id));
                self.stock.entry(r.item.get()).or_default()[1] += i64::from(r.quantity.get());
                self.redemption(r.id, r.member, "confirmed", (seq, r.id.at()), false);
            }
            Record::Confirmed(r) => {
                self.account(seq, r.member, r.free_after, r.held_after);
                self.entries(seq, r.member, ("held", "redeemed"), r.points, Some(r.id));
                let stock = self.stock.entry(r.item.get()).or_default();
                stock[0] -= i64::from(r.quantity.get());
                stock[1] += i64::from(r.quantity.get());
                self.redemption(r.id, r.member, "confirmed", (seq, r.at), false);
            }
            Record::Released(r) => {
                self.account(seq, r.member, r.free_after, r.held_after);
                self.entries(seq, r.member, ("held", "free"), r.points, Some(r.id));
                let stock = self.stock.entry(r.item.get()).or_default();
                stock[0] -= i64::from(r.quantity.get());
                stock[2] += i64::from(r.quantity.get());
                let state = if r.expired { "expired" } else { "cancelled" };
                self.redemption(r.id, r.member, state, (seq, r.at), false);
            }
            Record::Reversed(r) => {
                self.account(seq, r.member, r.free_after, r.held_after);
                self.entries(seq, r.member, ("redeemed", "free"), r.points, Some(r.id));
                let stock = self.stock.entry(r.item.get()).or_default();
                stock[1] -= i64::from(r.quantity.get());
                stock[3] += i64::from(r.quantity.get());
                if !r.units_back {
                    stock[4] += i64::from(r.quantity.get());
                }
                self.redemption(r.id, r.member, "reversed", (seq, r.at), r.units_back);
            }
            Record::StockChanged(r) => {
                self.stock.entry(r.item.get()).or_default()[5] = r.total_after.cast_signed();
            }
            Record::Granted(r) => {
                self.stock.entry(r.item.get()).or_default()[6] = r.granted.cast_signed();
            }
            Record::Returned(r) => {
                self.stock.entry(r.item.get()).or_default()[7] = r.returned.cast_signed();
            }
            _ => {}
        }
    }
    fn account(&mut self, seq: u64, member: MemberId, free: Points, held: Points) {
        self.accounts.insert(member.get(), (free.get(), held.get(), seq));
    }
    fn entries(
        &mut self,
        seq: u64,
        member: MemberId,
        (from, to): (&str, &str),
        points: Points,
        id: Option<RedemptionId>,
    ) {
        let points = points.get().cast_signed();
        self.ledger.insert((seq, 0), format!("{member} {from} {} {id:?}", -points));
        self.ledger.insert((seq, 1), format!("{member} {to} {points} {id:?}"));
    }
    fn redemption(
        &mut self,
        id: RedemptionId,
        member: MemberId,
        state: &str,
        (seq, at): (u64, NodeTime),
        back: bool,
    ) {
        let row = format!("{member} {state} at {at} by {seq} {back}");
        self.redemptions.insert(id.get(), row);
    }
}

/// What all database shards in a folder hold, added up.
pub fn dump(folder: &Path, layout: Layout) -> Content {
    let mut content = Content::default();
    for shard in layout.shards() {
        dump_into(&SqliteReader::open(folder, shard).unwrap(), &mut content);
    }
    content
}

/// Adds what one database shard holds.
pub fn dump_into(reader: &dyn StoreReader, content: &mut Content) {
    reader
        .consistent(&mut |moment| {
            dump_one(moment, content);
            Ok(())
        })
        .unwrap();
}

fn dump_one(moment: &dyn ConsistentRead, content: &mut Content) {
    moment
        .each_account(&mut |a| {
            let row = (a.free.get(), a.held.get(), a.last_seq.get());
            assert_eq!(content.accounts.insert(a.member.get(), row), None);
        })
        .unwrap();
    moment
        .each_redemption(&mut |r| {
            let state = r.state.name();
            let row =
                format!("{} {state} at {} by {} {}", r.member, r.updated_at, r.seq, r.units_back);
            assert_eq!(content.redemptions.insert(r.id.get(), row), None);
        })
        .unwrap();
    moment
        .each_entry(&mut |e| {
            let row = format!("{} {} {} {:?}", e.member, e.account.name(), e.amount, e.redemption);
            assert_eq!(content.ledger.insert((e.seq.get(), e.leg), row), None);
        })
        .unwrap();
    for row in moment.stock().unwrap() {
        let s = row.sums;
        let total = [row.total, row.granted, row.returned].map(u64::cast_signed);
        let sums = [s.held, s.confirmed, s.released, s.reversed, s.retired];
        let into = content.stock.entry(row.item.get()).or_default();
        for (into, figure) in into.iter_mut().zip(sums.into_iter().chain(total)) {
            *into += figure;
        }
    }
    for row in moment.slots().unwrap() {
        let sum = content.slots.entry(row.slot.get()).or_default();
        sum.0 += row.records;
        sum.1 = sum.1.wrapping_add(row.checksum);
    }
}
