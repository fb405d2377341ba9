//! A naive kernel, to compare the real one with: maps and lists, every figure counted anew.
//!
//! It shares nothing with the kernel but units, commands, codes and record types. For each
//! command it says the outcome, the records, the units given back and the change of confirmed
//! units; and at any time the digest of a slot, from its own state.

mod commands;
mod conservation;
mod members;
mod sales;
mod stream;

use std::collections::{BTreeMap, HashMap};

use onrush::kernel::code::Code;
use onrush::kernel::command::{Outcome, RedemptionState, RedemptionView, Refusal};
use onrush::kernel::record::Record;
use onrush::units::{
    ItemIndex, JournalId, MemberId, NodeTime, Points, Quantity, RedemptionId, Slot,
};

const RETENTION_MS: u64 = 90 * 24 * 3600 * 1000;

#[derive(Clone, Debug)]
struct Redemption {
    id: RedemptionId,
    key: u128,
    item: u32,
    quantity: u32,
    points: u64,
    hold_until: Option<u64>,
    state: RedemptionState,
    /// The balance of the first answer.
    first_balance: u64,
    /// The balance that a confirmation or cancellation was answered with.
    step_balance: Option<u64>,
}

#[derive(Clone, Default, Debug)]
struct Person {
    free: u64,
    held: u64,
    /// Oldest first.
    redemptions: Vec<Redemption>,
    /// Holds given up, by item.
    released: BTreeMap<u32, u64>,
}

#[derive(Clone, Debug)]
struct AdminUse {
    /// 1 credit, 2 debit, 3 reverse; member or redemption; amount.
    body: (u128, u128, u64),
    free: u64,
    held: u64,
    at: u64,
    outcome: Outcome,
}

/// What a slot has that no member has.
#[derive(Clone, Default, Debug)]
struct SlotBook {
    begun: u64,
    record_count: u64,
    record_checksum: u64,
    sums: [u128; 10],
    admin: HashMap<u128, AdminUse>,
    dropped: Vec<u32>,
    /// Confirmed and forgotten, reversed and retired; by item.
    settled: BTreeMap<u32, (u64, u64)>,
}

#[derive(Clone, Debug)]
struct Sale {
    id: String,
    canonical: String,
    opens_at: u64,
    closes_at: u64,
    hold_ttl_ms: u64,
    first_item: u32,
    item_count: u32,
    /// 0 scheduled, 1 open, 2 ended.
    phase: u8,
    paused: bool,
    keys_dropped: bool,
}

#[derive(Clone, Debug)]
struct Item {
    sale: u32,
    price: u64,
    limit: u32,
    eligible: Option<Vec<(u64, u64)>>,
    /// Its total is changed here, and not learned from a pool.
    is_home: bool,
    epoch: u32,
    total: u64,
    granted: u64,
    returned: u64,
    /// What can be sold at this moment.
    free: u64,
}

#[derive(Clone, Debug)]
struct StockUse {
    body: (u32, bool, u32),
    quantity: u32,
    total: u64,
    at: u64,
}

/// What a command leaves, beside its outcome.
#[derive(Default, Debug, PartialEq)]
struct Left {
    records: Vec<(Slot, Record)>,
    given_back: Vec<(u32, u64)>,
    confirmed: Vec<(u32, i64)>,
}

struct Model {
    journal: JournalId,
    hold_allowance: u64,
    people: BTreeMap<u64, Person>,
    slots: HashMap<Slot, SlotBook>,
    sales: Vec<Sale>,
    items: Vec<Item>,
    stock_keys: HashMap<u128, StockUse>,
    left: Left,
}

fn refused(code: Code, detail: u64) -> Outcome {
    Outcome::Refused(Refusal { code, detail })
}

impl Redemption {
    fn view(&self, member: u64, state: RedemptionState, balance: u64) -> RedemptionView {
        RedemptionView {
            id: self.id,
            member: MemberId::new(member),
            item: ItemIndex::new(self.item),
            quantity: Quantity::new(self.quantity),
            points: Points::new(self.points),
            state,
            balance: Points::new(balance),
            expires_at: NodeTime::new(self.hold_until.unwrap_or(0)),
        }
    }
    fn first_state(&self) -> RedemptionState {
        if self.hold_until.is_some() { RedemptionState::Held } else { RedemptionState::Confirmed }
    }
}

impl Model {
    fn new(journal: JournalId, hold_allowance: u64) -> Self {
        Self {
            journal,
            hold_allowance,
            people: BTreeMap::new(),
            slots: HashMap::new(),
            sales: Vec::new(),
            items: Vec::new(),
            stock_keys: HashMap::new(),
            left: Left::default(),
        }
    }

    fn take_left(&mut self) -> Left {
        std::mem::take(&mut self.left)
    }

    /// Writes a member's record down, and adds it to its slot's sums.
    fn write(&mut self, slot: Slot, record: Record) {
        let book = self.slots.entry(slot).or_default();
        let mut bytes = Vec::new();
        record.encode(slot, &mut bytes);
        book.record_count += 1;
        let sum = xxhash_rust::xxh3::xxh3_64(&bytes);
        book.record_checksum = book.record_checksum.wrapping_add(sum);
        let mut add = |place: usize, amount: Points| {
            book.sums[place] += u128::from(amount.get());
        };
        match &record {
            Record::Opened(r) => add(0, r.points),
            Record::Credited(r) => add(1, r.amount),
            Record::Debited(r) => add(2, r.amount),
            Record::Held(_) => add(5, Points::new(1)),
            Record::Redeemed(r) => {
                add(3, r.points);
                add(6, Points::new(1));
            }
            Record::Confirmed(r) => {
                add(3, r.points);
                add(6, Points::new(1));
            }
            Record::Released(r) => add(if r.expired { 8 } else { 7 }, Points::new(1)),
            Record::Reversed(r) => {
                add(4, r.points);
                add(9, Points::new(1));
            }
            _ => {}
        }
        self.left.records.push((slot, record));
    }

    /// The digest of a slot, as the head of `snapshot.rs` describes it.
    fn digest(&self, slot: Slot) -> u128 {
        let mut sum = 0u128;
        let mut add = |tag: u8, fields: &[u128]| {
            let mut entry = vec![tag];
            for field in fields {
                entry.extend_from_slice(&field.to_le_bytes());
            }
            sum = sum.wrapping_add(xxhash_rust::xxh3::xxh3_128(&entry));
        };
        let book = self.slots.get(&slot).cloned().unwrap_or_default();
        let mut head = vec![
            u128::from(slot.get()),
            u128::from(book.begun),
            u128::from(book.record_count),
            u128::from(book.record_checksum),
        ];
        head.extend_from_slice(&book.sums);
        add(1, &head);
        for (&id, person) in &self.people {
            if Slot::of(MemberId::new(id)) != slot {
                continue;
            }
            let id = u128::from(id);
            add(2, &[id, u128::from(person.free), u128::from(person.held)]);
            let mut counters: BTreeMap<u32, (u128, u128)> = BTreeMap::new();
            for (&item, &count) in &person.released {
                counters.entry(item).or_default().1 = u128::from(count.min(255));
            }
            for r in &person.redemptions {
                if matches!(r.state, RedemptionState::Held | RedemptionState::Confirmed) {
                    counters.entry(r.item).or_default().0 += u128::from(r.quantity);
                }
            }
            for (item, (units, released)) in counters {
                add(3, &[id, u128::from(item), units, released]);
            }
            for r in &person.redemptions {
                let fields = [
                    id,
                    r.id.get(),
                    r.key,
                    u128::from(r.item),
                    u128::from(r.quantity),
                    u128::from(r.points),
                    r.first_state() as u128,
                    u128::from(r.first_balance),
                    r.state as u128,
                    u128::from(r.hold_until.unwrap_or(0)),
                    r.step_balance.map_or(0, |balance| u128::from(balance) + 1),
                ];
                add(4, &fields);
            }
        }
        for (&key, used) in &book.admin {
            let (kind, whom, amount) = used.body;
            let figures = [amount, used.free, used.held, used.at].map(u128::from);
            let mut fields = vec![key, kind, whom];
            fields.extend(figures);
            if let Outcome::Redemption { view, .. } = &used.outcome {
                fields.push(u128::from(view.member.get()));
                fields.push(u128::from(view.item.get()));
                fields.push(u128::from(view.quantity.get()));
                fields.push(u128::from(view.points.get()));
                fields.push(u128::from(view.expires_at.get()));
            }
            add(5, &fields);
        }
        for &sale in &book.dropped {
            add(6, &[u128::from(sale)]);
        }
        for (&item, &(confirmed, retired)) in &book.settled {
            add(7, &[u128::from(item), u128::from(confirmed), u128::from(retired)]);
        }
        sum
    }

    /// Held, confirmed and retired units of an item, counted anew.
    fn units(&self, item: u32) -> (u64, u64, u64) {
        let (mut held, mut confirmed, mut retired) = (0, 0, 0);
        for r in self.people.values().flat_map(|p| &p.redemptions).filter(|r| r.item == item) {
            match r.state {
                RedemptionState::Held => held += u64::from(r.quantity),
                RedemptionState::Confirmed => confirmed += u64::from(r.quantity),
                _ => {}
            }
        }
        for book in self.slots.values() {
            let (gone, away) = book.settled.get(&item).copied().unwrap_or_default();
            confirmed += gone;
            retired += away;
        }
        (held, confirmed, retired)
    }
}

/// Commands of a run, over all streams.
const COMMANDS_MIN: u64 = 1_000_000;
const STREAM_COUNT: u64 = 4;

/// The seed: of the environment, to repeat a failing run, or of this run's address layout.
fn seed() -> u64 {
    match std::env::var("ONRUSH_SEED") {
        Ok(text) => text.parse().expect("ONRUSH_SEED is a number"),
        Err(_) => rand::random(),
    }
}

/// Every outcome, record and digest, over more than a million random commands.
#[test]
fn the_kernel_agrees_with_the_model() {
    let seed = seed();
    println!("seed: repeat this run with ONRUSH_SEED={seed}");
    let threads: Vec<_> = (0..STREAM_COUNT)
        .map(|number| {
            std::thread::spawn(move || {
                let mut stream = stream::Stream::new(seed.wrapping_add(number));
                stream.run(COMMANDS_MIN / STREAM_COUNT * 12 / 10);
                stream
            })
        })
        .collect();
    let join = |thread: std::thread::JoinHandle<_>| thread.join().expect("its own message tells");
    let streams: Vec<stream::Stream> = threads.into_iter().map(join).collect();
    let mut codes: BTreeMap<Code, u64> = BTreeMap::new();
    for stream in &streams {
        for (&code, &count) in &stream.codes {
            *codes.entry(code).or_default() += count;
        }
    }
    let records: u64 = streams.iter().map(|stream| stream.conservation.record_count).sum();
    let successes: u64 = streams.iter().map(|stream| stream.successes).sum();
    println!("{successes} successes, {records} records, refusals: {codes:?}");
    assert!(successes + codes.values().sum::<u64>() >= COMMANDS_MIN);
    assert!(successes >= 200_000);
    for code in Code::ALL {
        let count = codes.get(&code).copied().unwrap_or(0);
        assert!(count >= 1_000, "{} came only {count} times", code.name());
    }
}
