//! The simulation's own books: folded record by record from what is durable, with sums of its own.
//!
//! They share the record decoder with the engine, and no arithmetic. Each record is checked against
//! them as it becomes durable; what clients are told is checked against them as it is told. What is
//! in them need not be in the journal any more.

use std::collections::BTreeMap;

use super::database::Rows;
use super::model::Model;
use crate::kernel::command::RedemptionState as State;
use crate::kernel::record::{Record, RecordHead, SaleChange};
use crate::ship::partition::Partition;
use crate::units::{ItemIndex, KeyHash, MemberId, RedemptionId};

/// A member's points, with every figure that they ever had.
#[derive(Default)]
pub struct Account {
    pub free: u64,
    pub held: u64,
    pub past_free: Vec<u64>,
    /// Units per item: now, and at most.
    pub units: BTreeMap<u32, (u64, u64)>,
}

/// A redemption as its records tell it.
pub struct Told {
    pub member: MemberId,
    pub key: KeyHash,
    pub item: ItemIndex,
    pub quantity: u64,
    pub points: u64,
    pub is_hold: bool,
    /// When a hold ends.
    pub ends_at: u64,
    pub state: State,
    /// Free points behind its first record.
    pub first_free: u64,
    /// Free points behind the confirmation or cancellation.
    pub step_free: Option<u64>,
}

/// An item's units.
#[derive(Clone, Copy, Default, Debug)]
pub struct Units {
    pub total: u64,
    pub granted: u64,
    pub returned: u64,
    pub held: u64,
    pub confirmed: u64,
    pub retired: u64,
    /// Units that were confirmed, in all; no reversal lowers it.
    pub ever_confirmed: u64,
    /// Of the pool, where nodes share one.
    pub epoch: u32,
}

impl Units {
    /// Takes another journal's units of the same item to these.
    pub fn add(&mut self, other: &Self) {
        self.granted += other.granted;
        self.returned += other.returned;
        self.held += other.held;
        self.confirmed += other.confirmed;
        self.retired += other.retired;
        self.ever_confirmed += other.ever_confirmed;
    }
    pub fn here(&self) -> u64 {
        self.granted.checked_sub(self.returned).expect("I2: more returned than granted")
    }
    pub fn sold(&self) -> u64 {
        self.held + self.confirmed + self.retired
    }
}

/// A sale as its records tell it.
pub struct Sale {
    pub id: String,
    pub phase: Option<SaleChange>,
    pub is_paused: bool,
    pub are_keys_dropped: bool,
}

/// One journal's durable history.
#[derive(Default)]
pub struct Ledger {
    /// Fingerprints of all durable records, in order from the first.
    pub records: Vec<u64>,
    pub accounts: BTreeMap<u64, Account>,
    pub redemptions: BTreeMap<u128, Told>,
    pub by_key: BTreeMap<(u64, u128), RedemptionId>,
    pub items: Vec<Units>,
    pub sales: Vec<Sale>,
    sale_of_item: Vec<usize>,
    pub admin_keys: BTreeMap<u128, &'static str>,
    pub changes_seen: Vec<(u16, u32, SaleChange)>,
    pub has_claimed: bool,
    /// Points that came from outside: opened, credited, less debited.
    issued: u64,
    /// Per partition, each record of it, and what they come to up to it.
    streams: BTreeMap<Partition, Vec<(u64, Rows)>>,
    pub model: Model,
}

impl Ledger {
    pub fn last(&self) -> u64 {
        self.records.len() as u64
    }

    /// Takes the records of a run that begins at `seq`. What was durable before must be there
    /// again as it was.
    pub fn take(&mut self, mut seq: u64, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let RecordHead { length, slot, .. } =
                RecordHead::peek(bytes).expect("a durable record");
            let whole = &bytes[..length];
            let mark = xxhash_rust::xxh3::xxh3_64(whole);
            let (_, record) = Record::take(&mut bytes).expect("a durable record");
            let place = seq as usize - 1;
            if let Some(known) = self.records.get(place) {
                assert!(*known == mark, "I11: durable record {seq} has changed");
            } else {
                assert_eq!(place, self.records.len(), "I11: records before {seq} are missing");
                self.records.push(mark);
                let partition = Partition::of(slot).expect("a slot that there is");
                let stream = self.streams.entry(partition).or_default();
                let Rows { count, sum } =
                    stream.last().map_or_else(Rows::default, |(_, rows)| *rows);
                stream.push((seq, Rows { count: count + 1, sum: sum.wrapping_add(mark) }));
                self.apply(seq, &record);
                self.model.take(slot, &record, whole);
            }
            seq += 1;
        }
    }

    fn apply(&mut self, seq: u64, record: &Record) {
        match record {
            Record::Opened(r) => {
                let account = Account { free: r.points.get(), ..Account::default() };
                let before = self.accounts.insert(r.member.get(), account);
                assert!(before.is_none(), "I3: {} was opened twice, at {seq}", r.member);
                self.issued += r.points.get();
                self.moved(r.member, (r.points.get(), 0));
            }
            Record::Credited(r) => {
                self.admin_key(r.key, "credited");
                self.issued += r.amount.get();
                let after = (r.free_after.get(), r.held_after.get());
                self.account(r.member).free += r.amount.get();
                self.moved(r.member, after);
            }
            Record::Debited(r) => {
                self.admin_key(r.key, "debited");
                self.issued -= r.amount.get();
                let after = (r.free_after.get(), r.held_after.get());
                take(&mut self.account(r.member).free, r.amount.get());
                self.moved(r.member, after);
            }
            Record::Held(r) => {
                let points = r.points.get();
                let account = self.account(r.member);
                take(&mut account.free, points);
                account.held += points;
                self.moved(r.member, (r.free_after.get(), r.held_after.get()));
                let quantity = u64::from(r.quantity.get());
                let told = Told {
                    member: r.member,
                    key: r.key,
                    item: r.item,
                    quantity,
                    points,
                    is_hold: true,
                    ends_at: r.expires_at.get(),
                    state: State::Held,
                    first_free: r.free_after.get(),
                    step_free: None,
                };
                self.begun(seq, r.id, told);
                self.units(r.item).held += quantity;
            }
            Record::Redeemed(r) => {
                let points = r.points.get();
                take(&mut self.account(r.member).free, points);
                self.moved(r.member, (r.free_after.get(), r.held_after.get()));
                let quantity = u64::from(r.quantity.get());
                let told = Told {
                    member: r.member,
                    key: r.key,
                    item: r.item,
                    quantity,
                    points,
                    is_hold: false,
                    ends_at: 0,
                    state: State::Confirmed,
                    first_free: r.free_after.get(),
                    step_free: None,
                };
                self.begun(seq, r.id, told);
                let units = self.units(r.item);
                units.confirmed += quantity;
                units.ever_confirmed += quantity;
            }
            Record::Confirmed(r) => {
                let after = (r.free_after.get(), r.held_after.get());
                let ends_at = self.redemptions.get(&r.id.get()).map_or(0, |told| told.ends_at);
                assert!(r.at.get() < ends_at, "a hold was confirmed after its end, at {seq}");
                let quantity = self.step(seq, r.id, State::Held, State::Confirmed, after);
                let units = self.units(r.item);
                take(&mut units.held, quantity);
                units.confirmed += quantity;
                units.ever_confirmed += quantity;
            }
            Record::Released(r) => {
                let after = (r.free_after.get(), r.held_after.get());
                let to = if r.expired { State::Expired } else { State::Cancelled };
                let quantity = self.step(seq, r.id, State::Held, to, after);
                take(&mut self.units(r.item).held, quantity);
            }
            Record::Reversed(r) => {
                self.admin_key(r.key, "reversed");
                let after = (r.free_after.get(), r.held_after.get());
                let quantity = self.step(seq, r.id, State::Confirmed, State::Reversed, after);
                let is_over = self.sale_of(r.item).phase == Some(SaleChange::Ended);
                let units = self.units(r.item);
                take(&mut units.confirmed, quantity);
                if !r.units_back {
                    assert!(is_over, "units are retired in a running sale, at {seq}");
                    units.retired += quantity;
                }
            }
            Record::KeysDropped(r) => {
                let sale = &mut self.sales[r.sale.get() as usize];
                assert_eq!(sale.phase, Some(SaleChange::Ended), "keys go after the end only");
                sale.are_keys_dropped = true;
            }
            Record::SaleDefined(r) => {
                assert_eq!(r.sale.get() as usize, self.sales.len(), "sales come in order");
                let definition: serde_json::Value =
                    serde_json::from_str(&r.definition).expect("a definition");
                let id = definition["id"].as_str().expect("an id").to_owned();
                assert!(self.sales.iter().all(|sale| sale.id != id), "I6: {id} defined twice");
                let count = definition["items"].as_array().expect("items").len();
                self.sale_of_item.extend(vec![self.sales.len(); count]);
                self.items.resize(self.items.len() + count, Units::default());
                let (phase, is_paused, are_keys_dropped) = (None, false, false);
                self.sales.push(Sale { id, phase, is_paused, are_keys_dropped });
            }
            Record::SaleChanged(r) => {
                let sale = &mut self.sales[r.sale.get() as usize];
                let is_ended = sale.phase == Some(SaleChange::Ended);
                assert!(!is_ended, "an ended sale changed at {seq}");
                match r.change {
                    SaleChange::Paused => sale.is_paused = true,
                    SaleChange::Resumed => sale.is_paused = false,
                    phase => sale.phase = Some(phase),
                }
            }
            Record::StockChanged(r) => {
                if r.key.get() != 0 {
                    self.admin_key(r.key, "stock");
                }
                let quantity = u64::from(r.quantity.get());
                let units = self.units(r.item);
                if r.added {
                    units.total += quantity;
                } else {
                    take(&mut units.total, quantity);
                }
                assert_eq!(units.total, r.total_after, "the total at {seq}");
            }
            Record::Granted(r) => {
                let units = self.units(r.item);
                assert!(r.granted > units.granted, "grants rise, at {seq}");
                assert_eq!(
                    r.epoch.max(units.epoch),
                    r.epoch,
                    "a grant of an older epoch, at {seq}"
                );
                units.granted = r.granted;
            }
            Record::Returned(r) => {
                let units = self.units(r.item);
                assert!(r.returned > units.returned, "returns rise, at {seq}");
                units.returned = r.returned;
            }
            Record::EpochSeen(r) => {
                let units = self.units(r.item);
                assert!(r.epoch > units.epoch, "epochs rise, at {seq}");
                units.epoch = r.epoch;
            }
            Record::SlotsClaimed(_) => {
                assert!(!self.has_claimed, "slots are claimed once, at {seq}");
                self.has_claimed = true;
            }
            Record::TotalSeen(r) => self.units(r.item).total = r.total,
            Record::ChangeSeen(r) => self.changes_seen.push((r.shard, r.sale.get(), r.change)),
            Record::Imported(_) => {}
        }
    }

    /// The records of a partition, in order.
    pub fn seqs_of(&self, partition: Partition) -> impl Iterator<Item = u64> + '_ {
        self.streams.get(&partition).into_iter().flatten().map(|(seq, _)| *seq)
    }

    /// What the records of a partition come to, up to one.
    pub fn rows_through(&self, partition: Partition, seq: u64) -> Rows {
        let Some(stream) = self.streams.get(&partition) else { return Rows::default() };
        let count = stream.partition_point(|(of, _)| *of <= seq);
        count.checked_sub(1).map_or_else(Rows::default, |last| stream[last].1)
    }

    pub fn sale_of(&self, item: ItemIndex) -> &Sale {
        &self.sales[self.sale_of_item[item.get() as usize]]
    }

    fn units(&mut self, item: ItemIndex) -> &mut Units {
        &mut self.items[item.get() as usize]
    }

    fn account(&mut self, member: MemberId) -> &mut Account {
        self.accounts.get_mut(&member.get()).expect("I3: points of nobody")
    }

    fn admin_key(&mut self, key: KeyHash, what: &'static str) {
        let before = self.admin_keys.insert(key.get(), what);
        assert!(before.is_none(), "I6: a second effect of an operator's key: {what}");
    }

    /// Points moved; the account must stand as the record says.
    fn moved(&mut self, member: MemberId, after: (u64, u64)) {
        let account = self.account(member);
        assert_eq!((account.free, account.held), after, "I3: the account of {member}");
        let free = account.free;
        account.past_free.push(free);
    }

    fn begun(&mut self, seq: u64, id: RedemptionId, told: Told) {
        assert!(!self.sale_of(told.item).are_keys_dropped, "a redemption in a dropped sale, {seq}");
        let key = (told.member.get(), told.key.get());
        let before = self.by_key.insert(key, id);
        assert!(before.is_none(), "I6: a second effect for a key, at {seq}");
        let units = self.account(told.member).units.entry(told.item.get()).or_default();
        units.0 += told.quantity;
        units.1 = units.1.max(units.0);
        let before = self.redemptions.insert(id.get(), told);
        assert!(before.is_none(), "a redemption id came twice, at {seq}");
    }

    fn step(
        &mut self,
        seq: u64,
        id: RedemptionId,
        from: State,
        to: State,
        after: (u64, u64),
    ) -> u64 {
        let told = self.redemptions.get_mut(&id.get()).expect("a step of no redemption");
        assert_eq!(told.state, from, "the state before {to:?}, at {seq}");
        told.state = to;
        let (member, points, quantity, item) = (told.member, told.points, told.quantity, told.item);
        if matches!(to, State::Confirmed | State::Cancelled) {
            told.step_free = Some(after.0);
        }
        let account = self.accounts.get_mut(&member.get()).expect("it began");
        match to {
            State::Reversed => account.free += points,
            State::Confirmed => take(&mut account.held, points),
            _ => {
                take(&mut account.held, points);
                account.free += points;
            }
        }
        if to != State::Confirmed {
            account.units.entry(item.get()).or_default().0 -= quantity;
        }
        self.moved(member, after);
        quantity
    }

    /// Points, added up from accounts and redemptions, and not as they moved.
    pub fn check_points(&self) {
        let accounts: u64 = self.accounts.values().map(|a| a.free + a.held).sum();
        let spent = self.redemptions.values().filter(|r| r.state == State::Confirmed);
        let spent: u64 = spent.map(|r| r.points).sum();
        assert_eq!(accounts + spent, self.issued, "I3: all points of the node");
    }
}

#[track_caller]
fn take(from: &mut u64, amount: u64) {
    *from = from.checked_sub(amount).expect("I3: below zero");
}
