//! A slot's bytes in a snapshot, and its digest.
//!
//! Snapshot form, version 1: fields in the order of `encode`; numbers as LEB128 varints, except
//! hashes and ids, which are little-endian. A count stands before every list. The order within
//! a list carries no meaning, but for redemptions (by slot sequence number) and admin keys (by
//! age).
//!
//! The digest is a wrapping sum of XXH3-128 over entries, so it depends neither on the table's
//! layout nor on the order of insertion. An entry is a tag and its fields, each as 16
//! little-endian bytes:
//!
//! ```text
//! 1 slot        slot, begun, record count, record checksum, the ten ledger sums in their order
//! 2 account     member, free, held
//! 3 counter     member, item, units, released
//! 4 redemption  member, id, key, item, quantity, points, first state, first balance, state,
//!               expires at, balance of confirmation or cancellation + 1 (0: none)
//! 5 admin key   key, target (1 credit | 2 debit | 3 reverse), member or id, amount, free, held,
//!               at; for a reversal also member, item, quantity, points, expires at
//! 6 dropped     sale
//! 7 settled     item, confirmed, retired
//! ```

use super::bytes::{DecodeError, Reader, put, put64};
use super::command::{RedemptionState, RedemptionView};
use super::member::{Counter, MemberTable};
use super::redemption::{Begun, Redemption};
use super::slot::{AdminEntry, AdminTarget, ItemCounts, LedgerSums, SlotState};
use crate::planted::{self, Bug};
use crate::units::{
    ItemIndex, KeyHash, MemberId, NodeTime, Points, Quantity, RedemptionId, SaleIndex, Slot,
};

const VERSION: u8 = 1;

fn sums_array(sums: &LedgerSums) -> [u128; 10] {
    let LedgerSums { opened, credited, debited, redeemed, reversed, .. } = *sums;
    let counts =
        [sums.holds, sums.confirmations, sums.cancellations, sums.expiries, sums.reversals];
    let [holds, confirmations, cancellations, expiries, reversals] = counts.map(u128::from);
    [
        opened,
        credited,
        debited,
        redeemed,
        reversed,
        holds,
        confirmations,
        cancellations,
        expiries,
        reversals,
    ]
}

impl SlotState {
    /// Appends the slot's snapshot form.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.push(VERSION);
        put64(out, u64::from(self.slot.get()));
        put64(out, self.begun);
        put64(out, self.record_count);
        put64(out, self.record_checksum);
        for sum in sums_array(&self.sums) {
            put(out, sum);
        }
        put64(out, self.members.len() as u64);
        for line in self.members.iter() {
            put64(out, line.member().get());
            put64(out, line.free().get());
            put64(out, line.held().get());
            put64(out, line.counters().count() as u64);
            for (item, counter) in line.counters() {
                encode_counter(out, item, counter);
            }
        }
        put64(out, self.spilled.len() as u64);
        for (&(member, item), &counter) in &self.spilled {
            put64(out, member.get());
            encode_counter(out, item, counter);
        }
        put64(out, self.redemptions.len() as u64);
        for redemption in self.redemptions.iter() {
            put64(out, redemption.member().get());
            out.extend_from_slice(&redemption.id(self.slot).get().to_le_bytes());
            out.extend_from_slice(&redemption.key().get().to_le_bytes());
            put64(out, u64::from(redemption.item().get()));
            put64(out, u64::from(redemption.quantity().get()));
            put64(out, redemption.points().get());
            put64(out, redemption.first_balance().get());
            out.push(redemption.state() as u8);
            put64(out, if redemption.is_hold() { u64::from(redemption.ttl_ms()) + 1 } else { 0 });
        }
        put64(out, self.redemptions.step_balances().count() as u64);
        for (slot_seq, balance) in self.redemptions.step_balances() {
            put64(out, slot_seq);
            put64(out, balance.get());
        }
        let forgotten = if planted::is(Bug::KeysNotInSnapshot) { self.admin_keys.len() } else { 0 };
        put64(out, (self.admin_keys.len() - forgotten) as u64);
        for (key, at, entry) in self.admin_keys.iter().skip(forgotten) {
            encode_admin(out, key, at, entry);
        }
        put64(out, self.dropped_sales.len() as u64);
        for sale in &self.dropped_sales {
            put64(out, u64::from(sale.get()));
        }
        put64(out, self.settled_counts.len() as u64);
        for (item, counts) in &self.settled_counts {
            put64(out, u64::from(item.get()));
            put64(out, counts.confirmed);
            put64(out, counts.retired);
        }
    }

    /// Takes a slot back from its snapshot form, which `bytes` are exactly.
    ///
    /// Errors: the bytes are cut off, too new, or no slot.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        let found = reader.byte("version")?;
        if found != VERSION {
            return Err(DecodeError::Version { found, newest: VERSION });
        }
        let slot = reader.u64("slot")?;
        if slot >= crate::units::SLOT_COUNT as u64 {
            return Err(DecodeError::Range { field: "slot", value: u128::from(slot) });
        }
        let mut state = Self::new(Slot::new(slot as u16));
        state.begun = reader.u64("begun")?;
        state.record_count = reader.u64("record count")?;
        state.record_checksum = reader.u64("record checksum")?;
        state.sums = LedgerSums {
            opened: reader.wide("opened")?,
            credited: reader.wide("credited")?,
            debited: reader.wide("debited")?,
            redeemed: reader.wide("redeemed")?,
            reversed: reader.wide("reversed")?,
            holds: reader.u64("holds")?,
            confirmations: reader.u64("confirmations")?,
            cancellations: reader.u64("cancellations")?,
            expiries: reader.u64("expiries")?,
            reversals: reader.u64("reversals")?,
        };
        state.decode_members(&mut reader)?;
        state.decode_redemptions(&mut reader)?;
        for _ in 0..reader.count("admin keys", 21)? {
            let (key, at, entry) = decode_admin(&mut reader, state.slot)?;
            state.admin_keys.restore(key, at, entry);
        }
        let mut dropped = Vec::new();
        for _ in 0..reader.count("dropped sales", 1)? {
            dropped.push(SaleIndex::new(reader.u32("sale")?));
        }
        dropped.sort_unstable();
        state.dropped_sales = dropped.into();
        for _ in 0..reader.count("settled units", 3)? {
            let item = ItemIndex::new(reader.u32("item")?);
            let confirmed = reader.u64("confirmed")?;
            let retired = reader.u64("retired")?;
            state.settled_counts.insert(item, ItemCounts { held: 0, confirmed, retired });
        }
        reader.end()?;
        Ok(state)
    }

    fn decode_members(&mut self, reader: &mut Reader<'_>) -> Result<(), DecodeError> {
        let count = reader.count("members", 4)?;
        self.members = MemberTable::with_capacity(count);
        for _ in 0..count {
            let id = reader.u64("member")?;
            let member = MemberId::new(id);
            if Slot::of(member) != self.slot || self.members.find(member).is_some() {
                return Err(DecodeError::Range { field: "member", value: u128::from(id) });
            }
            let (free, held) = (reader.points("free")?, reader.points("held")?);
            let at = self.members.insert(member, free, held);
            for _ in 0..reader.count("counters", 3)? {
                let (item, counter) = decode_counter(reader)?;
                self.set_counter(at, item, counter);
            }
        }
        for _ in 0..reader.count("spilled counters", 4)? {
            let at = self.decode_member(reader)?;
            let (item, counter) = decode_counter(reader)?;
            self.set_counter(at, item, counter);
        }
        Ok(())
    }

    fn decode_redemptions(&mut self, reader: &mut Reader<'_>) -> Result<(), DecodeError> {
        let mut next = 0;
        for _ in 0..reader.count("redemptions", 38)? {
            let at = self.decode_member(reader)?;
            let id = id_of_slot(reader, self.slot)?;
            let slot_seq = id.slot_seq();
            if slot_seq < next || slot_seq >= self.begun {
                let value = u128::from(slot_seq);
                return Err(DecodeError::Range { field: "slot sequence number", value });
            }
            next = slot_seq + 1;
            let begun = Begun {
                member: self.members.line(at).member(),
                id,
                key: KeyHash::new(reader.fixed("key")?),
                item: ItemIndex::new(reader.u32("item")?),
                quantity: Quantity::new(reader.u32("quantity")?),
                points: reader.points("points")?,
                free_after: reader.points("first balance")?,
                held_after: Points::ZERO,
                hold_ttl_ms: None,
            };
            let state = decode_state(reader)?;
            let hold_ttl_ms = match reader.u64("hold length")?.checked_sub(1).map(u32::try_from) {
                None => None,
                Some(Ok(ms)) => Some(ms),
                Some(Err(_)) => {
                    return Err(DecodeError::Range { field: "hold length", value: 0 });
                }
            };
            let mut redemption = Redemption::new(&Begun { hold_ttl_ms, ..begun });
            redemption.set_state(state);
            self.redemptions.push(redemption, self.members.line_mut(at));
        }
        for _ in 0..reader.count("step balances", 2)? {
            let slot_seq = reader.u64("slot sequence number")?;
            let balance = reader.points("step balance")?;
            self.redemptions.set_step_balance(slot_seq, balance);
        }
        Ok(())
    }

    fn decode_member(&self, reader: &mut Reader<'_>) -> Result<usize, DecodeError> {
        let id = reader.u64("member")?;
        self.members
            .find(MemberId::new(id))
            .ok_or(DecodeError::Range { field: "member", value: u128::from(id) })
    }

    /// The digest of all that the slot remembers. Walks it.
    pub fn digest(&self) -> u128 {
        let mut digest = Digest::default();
        let head = [
            u128::from(self.slot.get()),
            u128::from(self.begun),
            u128::from(self.record_count),
            u128::from(self.record_checksum),
        ];
        digest.add(1, head.into_iter().chain(sums_array(&self.sums)));
        for line in self.members.iter() {
            let account = [line.member().get(), line.free().get(), line.held().get()];
            digest.add(2, account.map(u128::from));
            for (item, counter) in line.counters() {
                digest.add_counter(line.member(), item, counter);
            }
        }
        for (&(member, item), &counter) in &self.spilled {
            digest.add_counter(member, item, counter);
        }
        for redemption in self.redemptions.iter() {
            let step = self.redemptions.step_balance(redemption.slot_seq());
            let fields = [
                u128::from(redemption.member().get()),
                redemption.id(self.slot).get(),
                redemption.key().get(),
                u128::from(redemption.item().get()),
                u128::from(redemption.quantity().get()),
                u128::from(redemption.points().get()),
                redemption.first_state() as u128,
                u128::from(redemption.first_balance().get()),
                redemption.state() as u128,
                u128::from(redemption.expires_at().get()),
                step.map_or(0, |balance| u128::from(balance.get()) + 1),
            ];
            digest.add(4, fields);
        }
        for (key, at, entry) in self.admin_keys.iter() {
            let (target, whom, amount) = match entry.target {
                AdminTarget::Credit { member, amount } => (1, u128::from(member.get()), amount),
                AdminTarget::Debit { member, amount } => (2, u128::from(member.get()), amount),
                AdminTarget::Reverse { id } => (3, id.get(), Points::ZERO),
            };
            let figures = [amount.get(), entry.free.get(), entry.held.get(), at.get()];
            let head = [key.get(), target, whom];
            let reversed = entry.reversed.map(|view| {
                let (item, quantity) = (view.item.get(), view.quantity.get());
                let points = [view.points.get(), view.expires_at.get()];
                [view.member.get(), u64::from(item), u64::from(quantity), points[0], points[1]]
            });
            let figures = figures.into_iter().chain(reversed.into_iter().flatten());
            digest.add(5, head.into_iter().chain(figures.map(u128::from)));
        }
        for sale in &self.dropped_sales {
            digest.add(6, [u128::from(sale.get())]);
        }
        for (item, counts) in &self.settled_counts {
            let fields = [u64::from(item.get()), counts.confirmed, counts.retired];
            digest.add(7, fields.map(u128::from));
        }
        digest.sum
    }
}

fn encode_counter(out: &mut Vec<u8>, item: ItemIndex, counter: Counter) {
    put64(out, u64::from(item.get()));
    put64(out, u64::from(counter.units));
    out.push(counter.released);
}

fn decode_counter(reader: &mut Reader<'_>) -> Result<(ItemIndex, Counter), DecodeError> {
    let item = ItemIndex::new(reader.u32("item")?);
    let units = reader.u32("units")?;
    Ok((item, Counter { units, released: reader.byte("released")? }))
}

fn encode_admin(out: &mut Vec<u8>, key: KeyHash, at: NodeTime, entry: &AdminEntry) {
    out.extend_from_slice(&key.get().to_le_bytes());
    put64(out, at.get());
    put64(out, entry.free.get());
    put64(out, entry.held.get());
    match entry.target {
        AdminTarget::Credit { member, amount } => {
            out.push(1);
            put64(out, member.get());
            put64(out, amount.get());
        }
        AdminTarget::Debit { member, amount } => {
            out.push(2);
            put64(out, member.get());
            put64(out, amount.get());
        }
        AdminTarget::Reverse { id } => {
            out.push(3);
            out.extend_from_slice(&id.get().to_le_bytes());
            let view = entry.reversed.expect("a reversal's key keeps its answer");
            put64(out, view.member.get());
            put64(out, u64::from(view.item.get()));
            put64(out, u64::from(view.quantity.get()));
            put64(out, view.points.get());
            put64(out, view.expires_at.get());
        }
    }
}

fn decode_admin(
    reader: &mut Reader<'_>,
    slot: Slot,
) -> Result<(KeyHash, NodeTime, AdminEntry), DecodeError> {
    let key = KeyHash::new(reader.fixed("admin key")?);
    let at = NodeTime::new(reader.u64("at")?);
    let (free, held) = (reader.points("free")?, reader.points("held")?);
    let (target, reversed) = match reader.byte("admin target")? {
        kind @ (1 | 2) => {
            let member = MemberId::new(reader.u64("member")?);
            let amount = reader.points("amount")?;
            let target = match kind {
                1 => AdminTarget::Credit { member, amount },
                _ => AdminTarget::Debit { member, amount },
            };
            (target, None)
        }
        3 => {
            let id = id_of_slot(reader, slot)?;
            let view = RedemptionView {
                id,
                member: MemberId::new(reader.u64("member")?),
                item: ItemIndex::new(reader.u32("item")?),
                quantity: Quantity::new(reader.u32("quantity")?),
                points: reader.points("points")?,
                state: RedemptionState::Reversed,
                balance: free,
                expires_at: NodeTime::new(reader.u64("expires at")?),
            };
            (AdminTarget::Reverse { id }, Some(view))
        }
        other => {
            return Err(DecodeError::Range { field: "admin target", value: u128::from(other) });
        }
    };
    Ok((key, at, AdminEntry { target, free, held, reversed }))
}

fn id_of_slot(reader: &mut Reader<'_>, slot: Slot) -> Result<RedemptionId, DecodeError> {
    let value = reader.fixed("id")?;
    RedemptionId::from_u128(value)
        .filter(|id| id.slot() == slot)
        .ok_or(DecodeError::Range { field: "id", value })
}

fn decode_state(reader: &mut Reader<'_>) -> Result<RedemptionState, DecodeError> {
    let value = reader.byte("state")?;
    RedemptionState::from_u8(value)
        .ok_or(DecodeError::Range { field: "state", value: u128::from(value) })
}

/// A sum of entries' hashes.
#[derive(Default)]
struct Digest {
    sum: u128,
    entry: Vec<u8>,
}

impl Digest {
    fn add(&mut self, tag: u8, fields: impl IntoIterator<Item = u128>) {
        self.entry.clear();
        self.entry.push(tag);
        for field in fields {
            self.entry.extend_from_slice(&field.to_le_bytes());
        }
        self.sum = self.sum.wrapping_add(xxhash_rust::xxh3::xxh3_128(&self.entry));
    }

    fn add_counter(&mut self, member: MemberId, item: ItemIndex, counter: Counter) {
        let fields = [
            u128::from(member.get()),
            u128::from(item.get()),
            u128::from(counter.units),
            u128::from(counter.released),
        ];
        self.add(3, fields);
    }
}
