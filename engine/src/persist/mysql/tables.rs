//! A batch's effects as rows of the tables, in the order of their keys.
//!
//! What must be so before (a balance, a redemption's state) is read under lock and compared here:
//! so a mismatch is told with what was found, and the rows go in by statements of many rows.

use std::collections::HashMap;

use mysql_async::Value;

use super::bulk::Bulk;
use super::cells;
use super::link::{Session, cell};
use super::read::LedgerId;
use crate::persist::apply::{DataError, Effects};
use crate::persist::rows::{
    AccountChange, AccountRow, AdminChange, LedgerRow, RedemptionMove, RedemptionRow, SaleState,
    SlotSum, StockRow,
};
use crate::persist::store::{LetterState, StoreBatch, StoreError};
use crate::units::{ItemIndex, JournalId, MemberId, Points, RedemptionId, SaleIndex};

/// 16 bytes of an id or a fingerprint.
fn bytes(id: u128) -> Value {
    Value::Bytes(id.to_be_bytes().to_vec())
}

fn optional(value: Option<u64>) -> Value {
    value.map_or(Value::NULL, Value::UInt)
}

pub async fn write_effects(session: &mut Session, effects: &Effects) -> Result<(), StoreError> {
    insert_redemptions(session, &effects.begun).await?;
    move_redemptions(session, &effects.moved).await?;
    insert_ledger(session, &effects.ledger).await?;
    write_accounts(session, &effects.accounts).await?;
    write_stock(session, effects).await?;
    write_slots(session, effects).await?;
    write_sales(session, effects).await?;
    insert_admin_changes(session, &effects.admin_changes).await
}

const REDEMPTION_ROW: &str = "(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)";

static INSERT_REDEMPTIONS: Bulk = Bulk {
    head: "INSERT INTO redemptions VALUES ",
    row: REDEMPTION_ROW,
    tail: "",
    columns: 13,
    row_bytes: 140,
};

fn redemption(r: &RedemptionRow, out: &mut Vec<Value>) {
    out.extend([
        bytes(r.id.get()),
        Value::UInt(r.member.get()),
        Value::UInt(r.journal.get()),
        Value::UInt(r.item.get().into()),
        Value::UInt(r.quantity.get().into()),
        Value::UInt(r.points.get()),
        Value::UInt(r.state as u64),
        bytes(r.key.get()),
        Value::UInt(r.id.at().get()),
        Value::UInt(r.expires_at.get()),
        Value::UInt(r.updated_at.get()),
        Value::UInt(r.units_back.into()),
        Value::UInt(r.seq.get()),
    ]);
}

async fn insert_redemptions(
    session: &mut Session,
    rows: &[RedemptionRow],
) -> Result<(), StoreError> {
    let mut rows: Vec<&RedemptionRow> = rows.iter().collect();
    rows.sort_unstable_by_key(|r| r.id);
    session.write(&INSERT_REDEMPTIONS, &rows, |r, out| redemption(r, out)).await
}

static LOCK_REDEMPTIONS: Bulk = Bulk {
    head: "SELECT id, member, journal, item, quantity, points, state, `key`, expires_at,
           updated_at, units_back, seq FROM redemptions FORCE INDEX (PRIMARY) WHERE id IN (",
    row: "?",
    tail: ") ORDER BY id FOR UPDATE",
    columns: 1,
    row_bytes: 20,
};

/// The whole row goes in, and only what changes is taken from it.
static MOVE_REDEMPTIONS: Bulk = Bulk {
    head: "INSERT INTO redemptions VALUES ",
    row: REDEMPTION_ROW,
    tail: " ON DUPLICATE KEY UPDATE state = VALUES(state), updated_at = VALUES(updated_at),
            units_back = VALUES(units_back), seq = VALUES(seq)",
    columns: 13,
    row_bytes: 140,
};

async fn move_redemptions(
    session: &mut Session,
    moves: &[RedemptionMove],
) -> Result<(), StoreError> {
    let mut moves: Vec<&RedemptionMove> = moves.iter().collect();
    moves.sort_unstable_by_key(|m| m.id);
    let mut found: HashMap<RedemptionId, RedemptionRow> = HashMap::with_capacity(moves.len());
    let id = |m: &&RedemptionMove, out: &mut Vec<Value>| out.push(bytes(m.id.get()));
    session
        .read(&LOCK_REDEMPTIONS, &[], &moves, id, |row| {
            let row = cells::redemption_at(row)?;
            found.insert(row.id, row);
            Ok(())
        })
        .await?;
    let mut rows = Vec::with_capacity(moves.len());
    for m in moves {
        rows.push(moved(m, found.get(&m.id))?);
    }
    session.write(&MOVE_REDEMPTIONS, &rows, redemption).await
}

/// The row as it will be.
fn moved(m: &RedemptionMove, found: Option<&RedemptionRow>) -> Result<RedemptionRow, DataError> {
    let (id, needed) = (m.id, m.from.name());
    let Some(row) = found else {
        return Err(DataError::State { id, found: "missing", needed });
    };
    if row.state != m.from {
        return Err(DataError::State { id, found: row.state.name(), needed });
    }
    let is_same = (row.member, row.item, row.quantity, row.points)
        == (m.member, m.item, m.quantity, m.points);
    if !is_same {
        return Err(DataError::Redemption(id));
    }
    let (state, updated_at, units_back, seq) = (m.to, m.updated_at, m.units_back, m.seq);
    Ok(RedemptionRow { state, updated_at, units_back, seq, ..*row })
}

static INSERT_LEDGER: Bulk = Bulk {
    head: "INSERT INTO ledger VALUES ",
    row: "(?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
    tail: "",
    columns: 10,
    row_bytes: 120,
};

async fn insert_ledger(session: &mut Session, rows: &[LedgerRow]) -> Result<(), StoreError> {
    let mut rows: Vec<(LedgerId, &LedgerRow)> = rows.iter().map(|r| (LedgerId::of(r), r)).collect();
    rows.sort_unstable_by_key(|(id, _)| *id);
    let encode = |(id, r): &(LedgerId, &LedgerRow), out: &mut Vec<Value>| {
        out.extend([
            bytes(id.get()),
            Value::UInt(r.journal.get()),
            Value::UInt(r.seq.get()),
            Value::UInt(r.leg.into()),
            Value::UInt(r.account as u64),
            Value::UInt(r.member.get()),
            Value::Int(r.amount),
            Value::UInt(r.kind as u64),
            r.redemption.map_or(Value::NULL, |id| bytes(id.get())),
            Value::UInt(r.at.get()),
        ]);
    };
    session.write(&INSERT_LEDGER, &rows, encode).await
}

static LOCK_ACCOUNTS: Bulk = Bulk {
    head: "SELECT member, free, held FROM accounts FORCE INDEX (PRIMARY) WHERE member IN (",
    row: "?",
    tail: ") ORDER BY member FOR UPDATE",
    columns: 1,
    row_bytes: 10,
};

static OPEN_ACCOUNTS: Bulk = Bulk {
    head: "INSERT INTO accounts VALUES ",
    row: "(?, ?, ?, ?, ?)",
    tail: "",
    columns: 5,
    row_bytes: 50,
};

static CHANGE_ACCOUNTS: Bulk = Bulk {
    head: "INSERT INTO accounts VALUES ",
    row: "(?, ?, ?, ?, ?)",
    tail: " ON DUPLICATE KEY UPDATE free = VALUES(free), held = VALUES(held),
            journal = VALUES(journal), last_seq = VALUES(last_seq)",
    columns: 5,
    row_bytes: 50,
};

async fn write_accounts(
    session: &mut Session,
    changes: &[AccountChange],
) -> Result<(), StoreError> {
    let mut changes: Vec<&AccountChange> = changes.iter().collect();
    changes.sort_unstable_by_key(|c| c.after.member);
    let (opened, changed): (Vec<_>, Vec<_>) = changes.into_iter().partition(|c| c.before.is_none());
    let mut found: HashMap<MemberId, (Points, Points), foldhash::fast::FixedState> =
        HashMap::with_capacity_and_hasher(changed.len(), foldhash::fast::FixedState::default());
    let member = |c: &&AccountChange, out: &mut Vec<Value>| {
        out.push(Value::UInt(c.after.member.get()));
    };
    session
        .read(&LOCK_ACCOUNTS, &[], &changed, member, |row| {
            let balance = (Points::new(cell(row, 1)?), Points::new(cell(row, 2)?));
            found.insert(MemberId::new(cell(row, 0)?), balance);
            Ok(())
        })
        .await?;
    for AccountChange { before, after } in &changed {
        let (free, held) = before.expect("those without one were parted from them");
        if found.get(&after.member) != Some(&(free, held)) {
            return Err(DataError::Stored { member: after.member, free, held }.into());
        }
    }
    let encode = |c: &&AccountChange, out: &mut Vec<Value>| {
        let AccountRow { member, free, held, journal, last_seq } = c.after;
        out.extend([
            Value::UInt(member.get()),
            Value::UInt(free.get()),
            Value::UInt(held.get()),
            Value::UInt(journal.get()),
            Value::UInt(last_seq.get()),
        ]);
    };
    session.write(&OPEN_ACCOUNTS, &opened, encode).await?;
    session.write(&CHANGE_ACCOUNTS, &changed, encode).await
}

static LOCK_STOCK: Bulk = Bulk {
    head: "SELECT journal, item, held, confirmed, released, reversed, retired, total, granted,
           returned FROM stock FORCE INDEX (PRIMARY) WHERE journal = ? AND item IN (",
    row: "?",
    tail: ") ORDER BY item FOR UPDATE",
    columns: 1,
    row_bytes: 10,
};

static SET_STOCK: Bulk = Bulk {
    head: "INSERT INTO stock (journal, item, held, confirmed, released, reversed, retired, total,
           granted, returned) VALUES ",
    row: "(?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
    tail: " ON DUPLICATE KEY UPDATE held = VALUES(held), confirmed = VALUES(confirmed),
            released = VALUES(released), reversed = VALUES(reversed), retired = VALUES(retired),
            total = VALUES(total), granted = VALUES(granted), returned = VALUES(returned)",
    columns: 10,
    row_bytes: 100,
};

/// Sums are added here, under the row's lock: an insert's checks would see what is to be added as
/// if it were the row.
async fn write_stock(session: &mut Session, effects: &Effects) -> Result<(), StoreError> {
    let mut keys: Vec<(JournalId, ItemIndex)> = effects.sums.keys().copied().collect();
    if effects.is_home {
        keys.extend(effects.totals.keys());
    }
    keys.sort_unstable();
    keys.dedup();
    for of_journal in keys.chunk_by(|a, b| a.0 == b.0) {
        let journal = of_journal[0].0;
        let mut rows: HashMap<ItemIndex, StockRow> = HashMap::new();
        let item = |key: &(JournalId, ItemIndex), out: &mut Vec<Value>| {
            out.push(Value::UInt(key.1.get().into()));
        };
        session
            .read(&LOCK_STOCK, &[Value::UInt(journal.get())], of_journal, item, |row| {
                let row = cells::stock_at(row)?;
                rows.insert(row.item, row);
                Ok(())
            })
            .await?;
        let mut changed = Vec::with_capacity(of_journal.len());
        for key in of_journal {
            let row = rows.get(&key.1).copied().unwrap_or(StockRow {
                journal,
                item: key.1,
                ..StockRow::default()
            });
            changed.push(added(row, effects, *key));
        }
        session.write(&SET_STOCK, &changed, stock).await?;
    }
    Ok(())
}

fn added(mut row: StockRow, effects: &Effects, key: (JournalId, ItemIndex)) -> StockRow {
    if let Some(sums) = effects.sums.get(&key) {
        row.sums.held += sums.held;
        row.sums.confirmed += sums.confirmed;
        row.sums.released += sums.released;
        row.sums.reversed += sums.reversed;
        row.sums.retired += sums.retired;
    }
    if effects.is_home
        && let Some(totals) = effects.totals.get(&key)
    {
        row.total = totals.total.unwrap_or(row.total);
        row.granted = totals.granted.unwrap_or(row.granted);
        row.returned = totals.returned.unwrap_or(row.returned);
    }
    row
}

fn stock(r: &StockRow, out: &mut Vec<Value>) {
    out.extend([Value::UInt(r.journal.get()), Value::UInt(r.item.get().into())]);
    let s = r.sums;
    out.extend([s.held, s.confirmed, s.released, s.reversed, s.retired].map(Value::Int));
    out.extend([r.total, r.granted, r.returned].map(Value::UInt));
}

static LOCK_SLOTS: Bulk = Bulk {
    head: "SELECT journal, slot, records, checksum FROM slots FORCE INDEX (PRIMARY)
           WHERE journal = ? AND slot IN (",
    row: "?",
    tail: ") ORDER BY slot FOR UPDATE",
    columns: 1,
    row_bytes: 10,
};

static SET_SLOTS: Bulk = Bulk {
    head: "INSERT INTO slots VALUES ",
    row: "(?, ?, ?, ?)",
    tail: " ON DUPLICATE KEY UPDATE records = VALUES(records), checksum = VALUES(checksum)",
    columns: 4,
    row_bytes: 40,
};

/// Checksums wrap, and SQL's sums do not.
async fn write_slots(session: &mut Session, effects: &Effects) -> Result<(), StoreError> {
    let mut sums: Vec<SlotSum> = effects.slot_sums().collect();
    sums.sort_unstable_by_key(|s| (s.journal, s.slot));
    for of_journal in sums.chunk_by_mut(|a, b| a.journal == b.journal) {
        let first = [Value::UInt(of_journal[0].journal.get())];
        let slot = |s: &SlotSum, out: &mut Vec<Value>| out.push(Value::UInt(s.slot.get().into()));
        let mut found = Vec::with_capacity(of_journal.len());
        session
            .read(&LOCK_SLOTS, &first, of_journal, slot, |row| {
                found.push(cells::slot_at(row)?);
                Ok(())
            })
            .await?;
        for row in found {
            if let Ok(at) = of_journal.binary_search_by_key(&row.slot, |s| s.slot) {
                let sum = &mut of_journal[at];
                sum.records += row.records;
                sum.checksum = sum.checksum.wrapping_add(row.checksum);
            }
        }
        let encode = |s: &SlotSum, out: &mut Vec<Value>| {
            let slot = u64::from(s.slot.get());
            out.extend([s.journal.get(), slot, s.records, s.checksum].map(Value::UInt));
        };
        session.write(&SET_SLOTS, of_journal, encode).await?;
    }
    Ok(())
}

static INSERT_ITEMS: Bulk = Bulk {
    head: "INSERT INTO items VALUES ",
    row: "(?, ?, ?, ?, ?, ?, ?)",
    tail: "",
    columns: 7,
    row_bytes: 600,
};

async fn write_sales(session: &mut Session, effects: &Effects) -> Result<(), StoreError> {
    for r in &effects.sales {
        let at = r.defined_at.get();
        let (id, name, definition) = (r.id.as_str(), r.name.as_str(), r.definition.as_str());
        let row = (r.journal.get(), r.sale.get(), id, name, SaleState::Defined.name(), at, at);
        let sql = "INSERT INTO sales VALUES (?, ?, ?, ?, ?, ?, ?, ?)";
        let mut values: Vec<Value> = Vec::with_capacity(8);
        let (journal, sale, id, name, state, defined_at, changed_at) = row;
        values.extend([journal.into(), sale.into(), id.into(), name.into(), state.into()]);
        values.extend([defined_at.into(), changed_at.into(), definition.into()]);
        session.execute(sql, values).await?;
    }
    let item = |r: &crate::persist::rows::ItemRow, out: &mut Vec<Value>| {
        out.extend([
            r.journal.get().into(),
            r.item.get().into(),
            r.sale.get().into(),
            r.sku.as_str().into(),
            r.name.as_str().into(),
            r.points.into(),
            r.limit_per_member.into(),
        ]);
    };
    session.write(&INSERT_ITEMS, &effects.items, item).await?;
    for r in &effects.sale_moves {
        // The count of changed rows leaves out those that were so already.
        let key = (r.journal.get(), r.sale.get());
        let sql = "SELECT 1 FROM sales WHERE journal = ? AND sale = ? FOR UPDATE";
        if session.rows(sql, key).await?.is_empty() {
            return Err(DataError::SaleUnknown(r.sale).into());
        }
        let sql = "UPDATE sales SET state = ?, changed_at = ? WHERE journal = ? AND sale = ?";
        session.execute(sql, (r.state.name(), r.at.get(), key.0, key.1)).await?;
    }
    Ok(())
}

static INSERT_ADMIN_CHANGES: Bulk = Bulk {
    head: "INSERT INTO admin_changes VALUES ",
    row: "(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
    tail: "",
    columns: 12,
    row_bytes: 1_000,
};

async fn insert_admin_changes(
    session: &mut Session,
    rows: &[AdminChange],
) -> Result<(), StoreError> {
    let encode = |r: &AdminChange, out: &mut Vec<Value>| {
        out.extend([
            r.journal.get().into(),
            r.seq.get().into(),
            r.at.get().into(),
            r.what.into(),
            r.operator.as_str().into(),
            r.reason.as_str().into(),
            r.reference.as_str().into(),
            optional(r.member.map(MemberId::get)),
            r.redemption.map_or(Value::NULL, |id| bytes(id.get())),
            optional(r.sale.map(SaleIndex::get).map(u64::from)),
            optional(r.item.map(ItemIndex::get).map(u64::from)),
            r.amount.map_or(Value::NULL, Value::Int),
        ]);
    };
    session.write(&INSERT_ADMIN_CHANGES, rows, encode).await
}

pub async fn write_letters(
    session: &mut Session,
    batch: &StoreBatch<'_>,
) -> Result<(), StoreError> {
    for r in batch.letters {
        let sql = "INSERT INTO dead_letters (journal, `partition`, incarnation, seq, slot, member,
                   at, state, tries, reason, record) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)";
        let tries = i64::from(r.state == LetterState::Dead);
        let row: Vec<Value> = vec![
            r.stream.journal.get().into(),
            r.stream.partition.get().into(),
            r.incarnation.get().into(),
            r.seq.get().into(),
            r.slot.get().into(),
            optional(r.member.map(MemberId::get)),
            r.at.get().into(),
            (r.state as u8).into(),
            tries.into(),
            r.reason.as_str().into(),
            r.record.as_slice().into(),
        ];
        session.execute(sql, row).await?;
    }
    for id in batch.applied {
        let sql = "UPDATE dead_letters SET state = 3 WHERE id = ? AND state <> 3";
        if session.execute(sql, (id.0,)).await? != 1 {
            return Err(StoreError::LetterGone(*id));
        }
    }
    Ok(())
}
