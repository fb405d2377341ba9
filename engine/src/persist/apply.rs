//! Records to row operations. Pure, and shared by every store: a batch of records is folded into
//! the fewest rows that say the same (one balance per member, one sum per item, one row per
//! redemption however far it went), with what must be so in the database before.
//!
//! Every record is checked against what the kernel said beside it: the balance before it must be
//! the one that the last record left. A record that fails a check is a [`DataError`]; what was
//! folded so far is then of no use, and the caller finds the record by bisection.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use serde::Deserialize;
use thiserror::Error;
use xxhash_rust::xxh3::xxh3_64;

use super::rows::{
    AccountChange, AccountRow, AdminChange, ItemRow, LedgerRow, MoveKind, RedemptionMove,
    RedemptionRow, SaleMove, SaleRow, SaleState, SlotSum, StockSums, StockTotals,
};
use crate::kernel::command::RedemptionState;
use crate::kernel::record::{AdminNote, Record, SaleChange, SaleDefined};
use crate::units::{
    ItemIndex, JournalId, MemberId, NodeTime, Points, Quantity, RedemptionId, SaleIndex, Seq, Slot,
};

/// A record that cannot be applied because of what it says.
#[derive(Error, Clone, PartialEq, Eq, Debug)]
pub enum DataError {
    #[error("member {member} belongs to slot {expected}, the record to slot {found}")]
    WrongSlot { member: MemberId, expected: Slot, found: Slot },
    #[error("{what} is beyond 2^53")]
    TooLarge { what: &'static str },
    #[error("member {member} had {free} free and {held} held points, the record began with others")]
    Balance { member: MemberId, free: Points, held: Points },
    #[error("member {member}: the move leaves less than nothing before it")]
    BelowZero { member: MemberId },
    #[error(
        "member {member} is not stored with {free} free and {held} held points, as the record needs"
    )]
    Stored { member: MemberId, free: Points, held: Points },
    #[error("member {0} has an account already")]
    AccountExists(MemberId),
    #[error("redemption {0} exists already")]
    RedemptionExists(RedemptionId),
    #[error("redemption {id} is {found}, the record needs it {needed}")]
    State { id: RedemptionId, found: &'static str, needed: &'static str },
    #[error("redemption {0} is another one than the record says")]
    Redemption(RedemptionId),
    #[error("the sale's definition cannot be read: {0}")]
    Definition(String),
    #[error("sale {0} was never defined")]
    SaleUnknown(SaleIndex),
    #[error("{0}")]
    Undecodable(String),
    /// What the database itself refused.
    #[error("{0}")]
    Refused(String),
}

/// What a batch does to one database shard, in the fewest rows.
#[derive(Debug, Default)]
pub struct Effects {
    pub is_home: bool,
    pub begun: Vec<RedemptionRow>,
    pub moved: Vec<RedemptionMove>,
    pub ledger: Vec<LedgerRow>,
    pub accounts: Vec<AccountChange>,
    pub sums: HashMap<(JournalId, ItemIndex), StockSums, foldhash::fast::FixedState>,
    pub totals: HashMap<(JournalId, ItemIndex), StockTotals, foldhash::fast::FixedState>,
    pub sales: Vec<SaleRow>,
    pub items: Vec<ItemRow>,
    pub sale_moves: Vec<SaleMove>,
    pub admin_changes: Vec<AdminChange>,
    pub slots: HashMap<(JournalId, Slot), (u64, u64), foldhash::fast::FixedState>,
    account_of: HashMap<MemberId, usize, foldhash::fast::FixedState>,
    redemption_of: HashMap<RedemptionId, Folded, foldhash::fast::FixedState>,
}

/// Where a redemption of this batch stands in `begun` or `moved`.
#[derive(Clone, Copy, Debug)]
enum Folded {
    Begun(usize),
    Moved(usize),
}

/// A record's place in its journal, and its slot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct At {
    pub journal: JournalId,
    pub seq: Seq,
    pub slot: Slot,
}

/// One move of points, as the record states it.
struct PointsMove {
    member: MemberId,
    kind: MoveKind,
    amount: Points,
    after: (Points, Points),
    redemption: Option<RedemptionId>,
    at: NodeTime,
}

/// A redemption that a record takes from one state to the next.
struct Transition {
    member: MemberId,
    id: RedemptionId,
    item: ItemIndex,
    quantity: Quantity,
    points: Points,
    from: RedemptionState,
    to: RedemptionState,
    at: NodeTime,
    units_back: bool,
}

impl Effects {
    /// Forgets everything, and keeps the memory.
    pub fn clear(&mut self, is_home: bool) {
        self.is_home = is_home;
        self.begun.clear();
        self.moved.clear();
        self.ledger.clear();
        self.accounts.clear();
        self.sums.clear();
        self.totals.clear();
        self.sales.clear();
        self.items.clear();
        self.sale_moves.clear();
        self.admin_changes.clear();
        self.slots.clear();
        self.account_of.clear();
        self.redemption_of.clear();
    }

    /// Folds one record in. `bytes` are the record's own.
    pub fn add(&mut self, at: At, record: &Record, bytes: &[u8]) -> Result<(), DataError> {
        use RedemptionState::{Cancelled, Confirmed, Expired, Held, Reversed};
        match record {
            Record::Opened(r) => {
                let after = (r.points, Points::ZERO);
                self.points(
                    at,
                    &PointsMove {
                        member: r.member,
                        kind: MoveKind::Opened,
                        amount: r.points,
                        after,
                        redemption: None,
                        at: r.at,
                    },
                )?;
            }
            Record::Credited(r) => {
                let after = (r.free_after, r.held_after);
                self.by_operator(at, MoveKind::Credited, (r.member, r.amount, after, r.at))?;
                let amount = Some(r.amount.get().cast_signed());
                self.admin(at, "credited", r.at, &r.note, |c| {
                    (c.member, c.amount) = (Some(r.member), amount);
                });
            }
            Record::Debited(r) => {
                let after = (r.free_after, r.held_after);
                self.by_operator(at, MoveKind::Debited, (r.member, r.amount, after, r.at))?;
                let amount = Some(-r.amount.get().cast_signed());
                self.admin(at, "debited", r.at, &r.note, |c| {
                    (c.member, c.amount) = (Some(r.member), amount);
                });
            }
            Record::Held(r) => {
                let row = RedemptionRow {
                    id: r.id,
                    member: r.member,
                    journal: at.journal,
                    item: r.item,
                    quantity: r.quantity,
                    points: r.points,
                    state: Held,
                    key: r.key,
                    expires_at: r.expires_at,
                    updated_at: r.id.at(),
                    units_back: false,
                    seq: at.seq,
                };
                self.begin(at, row, MoveKind::Held, (r.free_after, r.held_after))?;
            }
            Record::Redeemed(r) => {
                let row = RedemptionRow {
                    id: r.id,
                    member: r.member,
                    journal: at.journal,
                    item: r.item,
                    quantity: r.quantity,
                    points: r.points,
                    state: Confirmed,
                    key: r.key,
                    expires_at: NodeTime::default(),
                    updated_at: r.id.at(),
                    units_back: false,
                    seq: at.seq,
                };
                self.begin(at, row, MoveKind::Redeemed, (r.free_after, r.held_after))?;
            }
            Record::Confirmed(r) => {
                let transition = Transition {
                    member: r.member,
                    id: r.id,
                    item: r.item,
                    quantity: r.quantity,
                    points: r.points,
                    from: Held,
                    to: Confirmed,
                    at: r.at,
                    units_back: false,
                };
                let after = (r.free_after, r.held_after);
                self.transit(at, &transition, MoveKind::Confirmed, after)?;
            }
            Record::Released(r) => {
                let transition = Transition {
                    member: r.member,
                    id: r.id,
                    item: r.item,
                    quantity: r.quantity,
                    points: r.points,
                    from: Held,
                    to: if r.expired { Expired } else { Cancelled },
                    at: r.at,
                    units_back: false,
                };
                let after = (r.free_after, r.held_after);
                self.transit(at, &transition, MoveKind::Released, after)?;
            }
            Record::Reversed(r) => {
                let transition = Transition {
                    member: r.member,
                    id: r.id,
                    item: r.item,
                    quantity: r.quantity,
                    points: r.points,
                    from: Confirmed,
                    to: Reversed,
                    at: r.at,
                    units_back: r.units_back,
                };
                let after = (r.free_after, r.held_after);
                self.transit(at, &transition, MoveKind::Reversed, after)?;
                let amount = Some(r.points.get().cast_signed());
                self.admin(at, "reversed", r.at, &r.note, |c| {
                    (c.member, c.redemption) = (Some(r.member), Some(r.id));
                    (c.item, c.amount) = (Some(r.item), amount);
                });
            }
            _ => self.control(at, record)?,
        }
        let slot = self.slots.entry((at.journal, at.slot)).or_default();
        slot.0 += 1;
        slot.1 = slot.1.wrapping_add(xxh3_64(bytes));
        Ok(())
    }

    /// Sales, stock totals, and what changes no row of a member.
    fn control(&mut self, at: At, record: &Record) -> Result<(), DataError> {
        let journal = at.journal;
        match record {
            Record::SaleDefined(r) => {
                self.define(at, r)?;
                self.admin(at, "sale-defined", r.at, &r.note, |c| c.sale = Some(r.sale));
            }
            Record::SaleChanged(r) => {
                let (state, what) = match r.change {
                    SaleChange::Opened => (SaleState::Open, "sale-opened"),
                    SaleChange::Paused => (SaleState::Paused, "sale-paused"),
                    SaleChange::Resumed => (SaleState::Open, "sale-resumed"),
                    SaleChange::Ended => (SaleState::Ended, "sale-ended"),
                };
                self.sale_moves.push(SaleMove { journal, sale: r.sale, state, at: r.at });
                self.admin(at, what, r.at, &r.note, |c| c.sale = Some(r.sale));
            }
            Record::StockChanged(r) => {
                within(r.total_after, "an item's total")?;
                self.totals.entry((journal, r.item)).or_default().total = Some(r.total_after);
                let (what, sign) =
                    if r.added { ("stock-added", 1) } else { ("stock-withdrawn", -1) };
                let amount = Some(sign * i64::from(r.quantity.get()));
                self.admin(at, what, r.at, &r.note, |c| {
                    (c.item, c.amount) = (Some(r.item), amount);
                });
            }
            Record::Granted(r) => {
                within(r.granted, "an item's grant")?;
                self.totals.entry((journal, r.item)).or_default().granted = Some(r.granted);
            }
            Record::Returned(r) => {
                within(r.returned, "an item's return")?;
                self.totals.entry((journal, r.item)).or_default().returned = Some(r.returned);
            }
            Record::Imported(r) => {
                within(r.opened, "an import's count")?;
                let amount = Some(r.opened.cast_signed());
                self.admin(at, "imported", r.at, &r.note, |c| c.amount = amount);
            }
            // Which shard has seen what, which keys are forgotten and which epoch a pool stands at,
            // no table tells. Nor the total that a journal learned from the pool: it stands with
            // the sale's home, so that a sum over journals counts it once. Records of members were
            // told apart before.
            _ => {}
        }
        Ok(())
    }

    fn by_operator(
        &mut self,
        at: At,
        kind: MoveKind,
        (member, amount, after, when): (MemberId, Points, (Points, Points), NodeTime),
    ) -> Result<(), DataError> {
        self.points(at, &PointsMove { member, kind, amount, after, redemption: None, at: when })
    }

    /// A redemption begins, held or confirmed.
    fn begin(
        &mut self,
        at: At,
        row: RedemptionRow,
        kind: MoveKind,
        after: (Points, Points),
    ) -> Result<(), DataError> {
        self.points(
            at,
            &PointsMove {
                member: row.member,
                kind,
                amount: row.points,
                after,
                redemption: Some(row.id),
                at: row.id.at(),
            },
        )?;
        let sums = self.sums.entry((at.journal, row.item)).or_default();
        let units = i64::from(row.quantity.get());
        match row.state {
            RedemptionState::Held => sums.held += units,
            _ => sums.confirmed += units,
        }
        match self.redemption_of.entry(row.id) {
            Entry::Occupied(_) => return Err(DataError::RedemptionExists(row.id)),
            Entry::Vacant(place) => place.insert(Folded::Begun(self.begun.len())),
        };
        self.begun.push(row);
        Ok(())
    }

    /// A redemption goes from one state to the next.
    fn transit(
        &mut self,
        at: At,
        t: &Transition,
        kind: MoveKind,
        after: (Points, Points),
    ) -> Result<(), DataError> {
        self.points(
            at,
            &PointsMove {
                member: t.member,
                kind,
                amount: t.points,
                after,
                redemption: Some(t.id),
                at: t.at,
            },
        )?;
        let sums = self.sums.entry((at.journal, t.item)).or_default();
        let units = i64::from(t.quantity.get());
        match kind {
            MoveKind::Confirmed => {
                sums.held -= units;
                sums.confirmed += units;
            }
            MoveKind::Released => {
                sums.held -= units;
                sums.released += units;
            }
            _ => {
                sums.confirmed -= units;
                sums.reversed += units;
                sums.retired += if t.units_back { 0 } else { units };
            }
        }
        self.fold_state(at, t)
    }

    fn fold_state(&mut self, at: At, t: &Transition) -> Result<(), DataError> {
        let Transition { member, id, item, quantity, points, from, to, at: when, units_back } = *t;
        let same = |m, i, q, p| (m, i, q, p) == (member, item, quantity, points);
        match self.redemption_of.get(&id) {
            Some(Folded::Begun(index)) => {
                let row = &mut self.begun[*index];
                check_state(id, row.state, from)?;
                if !same(row.member, row.item, row.quantity, row.points) {
                    return Err(DataError::Redemption(id));
                }
                (row.state, row.updated_at, row.seq) = (to, when, at.seq);
                row.units_back = units_back;
            }
            Some(Folded::Moved(index)) => {
                let row = &mut self.moved[*index];
                check_state(id, row.to, from)?;
                if !same(row.member, row.item, row.quantity, row.points) {
                    return Err(DataError::Redemption(id));
                }
                (row.to, row.updated_at, row.seq) = (to, when, at.seq);
                row.units_back = units_back;
            }
            None => {
                self.redemption_of.insert(id, Folded::Moved(self.moved.len()));
                self.moved.push(RedemptionMove {
                    id,
                    member,
                    item,
                    quantity,
                    points,
                    from,
                    to,
                    updated_at: when,
                    units_back,
                    seq: at.seq,
                });
            }
        }
        Ok(())
    }

    /// Two ledger rows that sum to zero, and the member's balance.
    fn points(&mut self, at: At, m: &PointsMove) -> Result<(), DataError> {
        let member = m.member;
        let expected = Slot::of(member);
        let id_slot = m.redemption.map_or(expected, RedemptionId::slot);
        if at.slot != expected || id_slot != expected {
            let found = if at.slot == expected { id_slot } else { at.slot };
            return Err(DataError::WrongSlot { member, expected, found });
        }
        for points in [m.amount, m.after.0, m.after.1] {
            within(points.get(), "an amount of points")?;
        }
        self.balance(at, m)?;
        let amount = m.amount.get().cast_signed();
        let (from, to) = m.kind.accounts();
        for (leg, account, amount) in [(0, from, -amount), (1, to, amount)] {
            self.ledger.push(LedgerRow {
                journal: at.journal,
                seq: at.seq,
                leg,
                account,
                member,
                amount,
                kind: m.kind,
                redemption: m.redemption,
                at: m.at,
            });
        }
        Ok(())
    }

    fn balance(&mut self, at: At, m: &PointsMove) -> Result<(), DataError> {
        let (member, (free, held)) = (m.member, m.after);
        let before =
            balance_before(m.kind, m.amount, m.after).ok_or(DataError::BelowZero { member })?;
        let opens = m.kind == MoveKind::Opened;
        let after = AccountRow { member, free, held, journal: at.journal, last_seq: at.seq };
        match self.account_of.entry(member) {
            Entry::Vacant(place) => {
                place.insert(self.accounts.len());
                let before = (!opens).then_some(before);
                self.accounts.push(AccountChange { before, after });
            }
            Entry::Occupied(_) if opens => return Err(DataError::AccountExists(member)),
            Entry::Occupied(place) => {
                let account = &mut self.accounts[*place.get()];
                let AccountRow { free, held, .. } = account.after;
                if (free, held) != before {
                    return Err(DataError::Balance { member, free, held });
                }
                account.after = after;
            }
        }
        Ok(())
    }

    fn define(&mut self, at: At, r: &SaleDefined) -> Result<(), DataError> {
        let definition: Definition = serde_json::from_str(&r.definition)
            .map_err(|e| DataError::Definition(e.to_string()))?;
        let (journal, sale) = (at.journal, r.sale);
        for (index, item) in (r.first_item.get()..).zip(definition.items) {
            for (figure, what) in
                [(item.points, "an item's price"), (item.limit_per_member, "an item's limit")]
            {
                within(figure, what)?;
            }
            self.items.push(ItemRow {
                journal,
                item: ItemIndex::new(index),
                sale,
                sku: item.sku,
                name: item.name,
                points: item.points,
                limit_per_member: item.limit_per_member,
            });
        }
        self.sales.push(SaleRow {
            journal,
            sale,
            id: definition.id,
            name: definition.name,
            defined_at: r.at,
            definition: r.definition.clone(),
        });
        Ok(())
    }

    /// A row of who asked and why: on the member's database shard, or at home for the rest.
    fn admin(
        &mut self,
        at: At,
        what: &'static str,
        when: NodeTime,
        note: &AdminNote,
        fill: impl FnOnce(&mut AdminChange),
    ) {
        let mut change = AdminChange {
            journal: at.journal,
            seq: at.seq,
            at: when,
            what,
            operator: note.operator.clone(),
            reason: note.reason.clone(),
            reference: note.reference.clone(),
            ..AdminChange::default()
        };
        fill(&mut change);
        if change.member.is_some() || self.is_home {
            self.admin_changes.push(change);
        }
    }
}

/// What of a sale's definition has columns of its own. The rest stays in its JSON.
#[derive(Deserialize)]
struct Definition {
    id: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    items: Vec<DefinedItem>,
}

#[derive(Deserialize)]
struct DefinedItem {
    sku: String,
    #[serde(default)]
    name: String,
    points: u64,
    #[serde(default)]
    limit_per_member: u64,
}

/// The balance that a move began with; `None` where it would be below zero.
fn balance_before(
    kind: MoveKind,
    amount: Points,
    (free, held): (Points, Points),
) -> Option<(Points, Points)> {
    match kind {
        MoveKind::Opened | MoveKind::Credited | MoveKind::Reversed => {
            Some((free.checked_sub(amount)?, held))
        }
        MoveKind::Debited | MoveKind::Redeemed => Some((free.checked_add(amount)?, held)),
        MoveKind::Held => Some((free.checked_add(amount)?, held.checked_sub(amount)?)),
        MoveKind::Confirmed => Some((free, held.checked_add(amount)?)),
        MoveKind::Released => Some((free.checked_sub(amount)?, held.checked_add(amount)?)),
    }
}

fn check_state(
    id: RedemptionId,
    found: RedemptionState,
    needed: RedemptionState,
) -> Result<(), DataError> {
    if found == needed {
        return Ok(());
    }
    Err(DataError::State { id, found: found.name(), needed: needed.name() })
}

fn within(figure: u64, what: &'static str) -> Result<(), DataError> {
    if figure <= Points::MAX.get() { Ok(()) } else { Err(DataError::TooLarge { what }) }
}

/// Whose record it is; `None` where it is nobody's.
pub fn member_of(record: &Record) -> Option<MemberId> {
    match record {
        Record::Opened(r) => Some(r.member),
        Record::Credited(r) => Some(r.member),
        Record::Debited(r) => Some(r.member),
        Record::Held(r) => Some(r.member),
        Record::Redeemed(r) => Some(r.member),
        Record::Confirmed(r) => Some(r.member),
        Record::Released(r) => Some(r.member),
        Record::Reversed(r) => Some(r.member),
        _ => None,
    }
}

/// The slots' sums as rows.
impl Effects {
    pub fn slot_sums(&self) -> impl Iterator<Item = SlotSum> {
        self.slots.iter().map(|(&(journal, slot), &(records, checksum))| SlotSum {
            journal,
            slot,
            records,
            checksum,
        })
    }
}
