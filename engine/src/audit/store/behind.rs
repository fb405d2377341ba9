//! What a store has not seen yet: the records behind each partition's watermark, as the way back
//! from the model at the journal's end to the model at the watermark.
//!
//! A store lags, so its rows are held against the model as it was at the watermark. Instead of a
//! second model, this keeps what the first record behind the watermark found of everything that
//! it touched. That needs no more than those records themselves, which are never deleted (I9).
//!
//! Memory: about 100 bytes per member and redemption touched behind the watermark.

use std::collections::BTreeMap;

use crate::audit::model::{Account, Map, Model, Redemption, Set};
use crate::kernel::command::RedemptionState;
use crate::kernel::record::{CONTROL, Record};
use crate::ship::partition::{PARTITION_COUNT, Partition};
use crate::units::{ItemIndex, MemberId, Points, RedemptionId, SLOT_COUNT, Seq, Slot};

/// An account as the store should have it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AccountThen {
    pub free: u64,
    pub held: u64,
    /// The last record that moved it, where that is known.
    pub last_seq: Option<Seq>,
}

/// A redemption as the store should have it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RedemptionThen {
    pub state: RedemptionState,
    /// The record that brought it there, where that is known.
    pub seq: Option<Seq>,
}

/// An item's totals; `None`: not known.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct TotalsThen {
    pub total: Option<u64>,
    pub granted: Option<u64>,
    pub returned: Option<u64>,
}

/// Records of a slot behind the watermark.
#[derive(Clone, Copy, Default, Debug)]
pub struct SlotBehind {
    pub records: u64,
    pub checksum: u64,
    pub accounts_opened: u64,
    pub redemptions_begun: u64,
}

/// What every partition's store has not seen.
pub struct Behind {
    watermarks: [Seq; PARTITION_COUNT],
    /// Records at or below a watermark that the store set aside.
    set_aside: Set<u64>,
    /// `None`: there was none.
    accounts: Map<u64, Option<AccountThen>>,
    redemptions: Map<u128, Option<RedemptionThen>>,
    totals: BTreeMap<ItemIndex, TotalsThen>,
    pub slots: Vec<SlotBehind>,
    /// Records per partition.
    pub lag: [u64; PARTITION_COUNT],
    /// The last record at or below the watermark that the store has a ledger row of.
    pub last_move: [Seq; PARTITION_COUNT],
    /// Control records up to the home's watermark, all of them, and their checksum.
    pub control: SlotBehind,
}

/// A member's account before and after a record, by the record alone.
struct Moved {
    member: MemberId,
    before: Option<(u64, u64)>,
}

fn moved(record: &Record) -> Option<Moved> {
    let some = |member, after: (Points, Points), free: i128, held: i128| {
        let back = |now: Points, change: i128| u64::try_from(i128::from(now.get()) - change);
        let before = back(after.0, free).ok().zip(back(after.1, held).ok());
        Some(Moved { member, before })
    };
    let of = |points: Points| i128::from(points.get());
    match record {
        Record::Opened(r) => Some(Moved { member: r.member, before: None }),
        Record::Credited(r) => some(r.member, (r.free_after, r.held_after), of(r.amount), 0),
        Record::Debited(r) => some(r.member, (r.free_after, r.held_after), -of(r.amount), 0),
        Record::Held(r) => {
            some(r.member, (r.free_after, r.held_after), -of(r.points), of(r.points))
        }
        Record::Redeemed(r) => some(r.member, (r.free_after, r.held_after), -of(r.points), 0),
        Record::Confirmed(r) => some(r.member, (r.free_after, r.held_after), 0, -of(r.points)),
        Record::Released(r) => {
            some(r.member, (r.free_after, r.held_after), of(r.points), -of(r.points))
        }
        Record::Reversed(r) => some(r.member, (r.free_after, r.held_after), of(r.points), 0),
        _ => None,
    }
}

/// A redemption's state before a record, by the record alone.
fn state_before(record: &Record) -> Option<(RedemptionId, Option<RedemptionState>)> {
    match record {
        Record::Held(r) => Some((r.id, None)),
        Record::Redeemed(r) => Some((r.id, None)),
        Record::Confirmed(r) => Some((r.id, Some(RedemptionState::Held))),
        Record::Released(r) => Some((r.id, Some(RedemptionState::Held))),
        Record::Reversed(r) => Some((r.id, Some(RedemptionState::Confirmed))),
        _ => None,
    }
}

impl Behind {
    /// `watermarks` by partition; `set_aside` are records not applied although they lie before.
    pub fn new(
        watermarks: [Seq; PARTITION_COUNT],
        set_aside: impl IntoIterator<Item = Seq>,
    ) -> Self {
        Self {
            watermarks,
            set_aside: set_aside.into_iter().map(Seq::get).collect(),
            accounts: Map::default(),
            redemptions: Map::default(),
            totals: BTreeMap::new(),
            slots: vec![SlotBehind::default(); SLOT_COUNT],
            lag: [0; PARTITION_COUNT],
            last_move: [Seq::NONE; PARTITION_COUNT],
            control: SlotBehind::default(),
        }
    }

    pub fn watermark(&self, partition: Partition) -> Seq {
        self.watermarks[partition.index()]
    }
    /// The watermark of the partition that a slot lies in.
    pub fn watermark_of(&self, slot: Slot) -> Seq {
        Partition::of(slot).map_or(Seq::NONE, |p| self.watermark(p))
    }
    /// The lowest of all.
    pub fn lowest(&self) -> Seq {
        self.watermarks.iter().copied().min().unwrap_or(Seq::NONE)
    }
    pub fn is_set_aside(&self, seq: Seq) -> bool {
        self.set_aside.contains(&seq.get())
    }

    /// Takes the next record. Call it before the model folds the record: `model` is asked what
    /// stood there before.
    pub fn note(&mut self, seq: Seq, slot: Slot, record: &Record, bytes: &[u8], model: &Model) {
        let Some(partition) = Partition::of(slot) else { return };
        let is_seen = seq <= self.watermark(partition) && !self.is_set_aside(seq);
        let checksum = || xxhash_rust::xxh3::xxh3_64(bytes);
        if is_seen {
            if moved(record).is_some() {
                self.last_move[partition.index()] = seq;
            } else if slot == CONTROL {
                self.control.records += 1;
                self.control.checksum = self.control.checksum.wrapping_add(checksum());
            }
            return;
        }
        self.lag[partition.index()] += 1;
        if slot == CONTROL {
            return self.note_totals(record, model);
        }
        let behind = &mut self.slots[slot.index()];
        behind.records += 1;
        behind.checksum = behind.checksum.wrapping_add(checksum());
        let state = &model.slots[slot.index()];
        if let Some(Moved { member, before }) = moved(record) {
            behind.accounts_opened += u64::from(before.is_none());
            let last_seq = state.accounts.get(&member.get()).and_then(Account::last_seq);
            let then = before.map(|(free, held)| AccountThen { free, held, last_seq });
            self.accounts.entry(member.get()).or_insert(then);
        }
        if let Some((id, before)) = state_before(record) {
            behind.redemptions_begun += u64::from(before.is_none());
            let seq = state.redemption(id).and_then(Redemption::last_seq);
            let then = before.map(|state| RedemptionThen { state, seq });
            self.redemptions.entry(id.get()).or_insert(then);
        }
    }

    fn note_totals(&mut self, record: &Record, model: &Model) {
        let item = match record {
            Record::StockChanged(r) => r.item,
            Record::Granted(r) => r.item,
            Record::Returned(r) => r.item,
            _ => return,
        };
        let known = model.items.get(item.get() as usize).filter(|_| !model.skips_control());
        let figure = |n: i128| u64::try_from(n).ok();
        self.totals.entry(item).or_insert_with(|| {
            known.map_or_else(TotalsThen::default, |i| TotalsThen {
                total: figure(i.total),
                granted: figure(i.granted),
                returned: figure(i.returned),
            })
        });
    }

    /// The account at its partition's watermark.
    pub fn account(&self, model: &Model, member: MemberId) -> Option<AccountThen> {
        if let Some(then) = self.accounts.get(&member.get()) {
            return *then;
        }
        let account = model.slots[Slot::of(member).index()].accounts.get(&member.get())?;
        let (free, held, last_seq) = (account.free, account.held, account.last_seq());
        Some(AccountThen { free, held, last_seq })
    }

    /// The redemption at its partition's watermark; outer `None`: the model knows nothing of it.
    pub fn redemption(&self, model: &Model, id: RedemptionId) -> Option<Option<RedemptionThen>> {
        if let Some(then) = self.redemptions.get(&id.get()) {
            return Some(*then);
        }
        let known = model.slots.get(id.slot().index())?.redemption(id)?;
        Some(Some(RedemptionThen { state: known.state, seq: known.last_seq() }))
    }

    /// An item's totals at the control partition's watermark.
    pub fn totals(&self, model: &Model, item: ItemIndex) -> TotalsThen {
        if let Some(then) = self.totals.get(&item) {
            return *then;
        }
        let figure = |n: i128| u64::try_from(n).ok();
        let known = model.items.get(item.get() as usize);
        known.map_or_else(TotalsThen::default, |i| TotalsThen {
            total: figure(i.total),
            granted: figure(i.granted),
            returned: figure(i.returned),
        })
    }
}
