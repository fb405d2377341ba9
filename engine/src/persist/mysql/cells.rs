//! Rows of the tables as values.

use mysql_async::{Row, Value};

use super::link::cell;
use crate::kernel::command::RedemptionState;
use crate::persist::rows::{
    AccountRow, AdminChange, ArchivedBalance, ItemRow, LedgerAccount, LedgerRow, MoveKind,
    RedemptionRow, SaleRow, SaleState, SlotSum, StockRow, StockSums, StoredSale,
};
use crate::persist::store::{Letter, LetterId, LetterState, StoreError, Stream};
use crate::ship::gap::Watermark;
use crate::ship::partition::Partition;
use crate::units::{
    Incarnation, ItemIndex, JournalId, KeyHash, MemberId, NodeTime, Points, Quantity, RedemptionId,
    SaleIndex, Seq, Slot,
};

/// A watermark's three columns from `first` on.
pub fn watermark_at(row: &Row, first: usize) -> Result<Watermark, StoreError> {
    Ok(Watermark {
        incarnation: Incarnation::new(cell(row, first)?),
        since: Seq::new(cell(row, first + 1)?),
        seq: Seq::new(cell(row, first + 2)?),
    })
}

pub fn partition_at(row: &Row, column: usize) -> Result<Partition, StoreError> {
    Partition::new(cell(row, column)?).ok_or_else(|| out_of_range("partition"))
}

pub fn letter_at(row: &Row) -> Result<(LetterId, Letter), StoreError> {
    let state = if cell::<u8>(row, 8)? == 1 { LetterState::Dead } else { LetterState::Parked };
    let letter = Letter {
        stream: Stream { journal: JournalId::new(cell(row, 1)?), partition: partition_at(row, 2)? },
        incarnation: Incarnation::new(cell(row, 3)?),
        seq: Seq::new(cell(row, 4)?),
        slot: Slot::new(cell(row, 5)?),
        member: cell::<Option<u64>>(row, 6)?.map(MemberId::new),
        at: NodeTime::new(cell(row, 7)?),
        state,
        reason: cell(row, 9)?,
        record: cell(row, 10)?,
    };
    Ok((LetterId(cell(row, 0)?), letter))
}

pub fn redemption_at(row: &Row) -> Result<RedemptionRow, StoreError> {
    Ok(RedemptionRow {
        id: id_at(row, 0)?.ok_or_else(|| out_of_range("id"))?,
        member: MemberId::new(cell(row, 1)?),
        journal: JournalId::new(cell(row, 2)?),
        item: ItemIndex::new(cell(row, 3)?),
        quantity: Quantity::new(cell(row, 4)?),
        points: Points::new(cell(row, 5)?),
        state: RedemptionState::from_u8(cell(row, 6)?).ok_or_else(|| out_of_range("state"))?,
        key: KeyHash::new(raw_id(row, 7)?.ok_or_else(|| out_of_range("key"))?),
        expires_at: NodeTime::new(cell(row, 8)?),
        updated_at: NodeTime::new(cell(row, 9)?),
        units_back: cell::<u8>(row, 10)? != 0,
        seq: Seq::new(cell(row, 11)?),
    })
}

pub fn entry_at(row: &Row) -> Result<LedgerRow, StoreError> {
    Ok(LedgerRow {
        journal: JournalId::new(cell(row, 0)?),
        seq: Seq::new(cell(row, 1)?),
        leg: cell(row, 2)?,
        account: LedgerAccount::from_u8(cell(row, 3)?).ok_or_else(|| out_of_range("account"))?,
        member: MemberId::new(cell(row, 4)?),
        amount: cell(row, 5)?,
        kind: MoveKind::from_u8(cell(row, 6)?).ok_or_else(|| out_of_range("kind"))?,
        redemption: id_at(row, 7)?,
        at: NodeTime::new(cell(row, 8)?),
    })
}

pub fn archived_at(row: &Row) -> Result<ArchivedBalance, StoreError> {
    Ok(ArchivedBalance {
        journal: JournalId::new(cell(row, 0)?),
        member: MemberId::new(cell(row, 1)?),
        account: LedgerAccount::from_u8(cell(row, 2)?).ok_or_else(|| out_of_range("account"))?,
        amount: cell(row, 3)?,
    })
}

pub fn account_at(row: &Row) -> Result<AccountRow, StoreError> {
    Ok(AccountRow {
        member: MemberId::new(cell(row, 0)?),
        free: Points::new(cell(row, 1)?),
        held: Points::new(cell(row, 2)?),
        journal: JournalId::new(cell(row, 3)?),
        last_seq: Seq::new(cell(row, 4)?),
    })
}

pub fn stock_at(row: &Row) -> Result<StockRow, StoreError> {
    let sums = StockSums {
        held: cell(row, 2)?,
        confirmed: cell(row, 3)?,
        released: cell(row, 4)?,
        reversed: cell(row, 5)?,
        retired: cell(row, 6)?,
    };
    Ok(StockRow {
        journal: JournalId::new(cell(row, 0)?),
        item: ItemIndex::new(cell(row, 1)?),
        sums,
        total: cell(row, 7)?,
        granted: cell(row, 8)?,
        returned: cell(row, 9)?,
    })
}

pub fn slot_at(row: &Row) -> Result<SlotSum, StoreError> {
    Ok(SlotSum {
        journal: JournalId::new(cell(row, 0)?),
        slot: Slot::new(cell(row, 1)?),
        records: cell(row, 2)?,
        checksum: cell(row, 3)?,
    })
}

/// 16 bytes, as they were stored; `None` where there are none.
fn raw_id(row: &Row, column: usize) -> Result<Option<u128>, StoreError> {
    match row.as_ref(column) {
        None | Some(Value::NULL) => Ok(None),
        Some(Value::Bytes(bytes)) => {
            let raw: [u8; 16] = bytes.as_slice().try_into().map_err(|_| out_of_range("an id"))?;
            Ok(Some(u128::from_be_bytes(raw)))
        }
        Some(_) => Err(out_of_range("an id")),
    }
}

/// A redemption's id; `None` where there is none.
fn id_at(row: &Row, column: usize) -> Result<Option<RedemptionId>, StoreError> {
    let Some(raw) = raw_id(row, column)? else { return Ok(None) };
    RedemptionId::from_u128(raw).map(Some).ok_or_else(|| out_of_range("id"))
}

fn out_of_range(what: &str) -> StoreError {
    StoreError::Corrupt(format!("{what} is out of range"))
}

pub fn sale_at(row: &Row) -> Result<StoredSale, StoreError> {
    let state: String = cell(row, 4)?;
    let sale = SaleRow {
        journal: JournalId::new(cell(row, 0)?),
        sale: SaleIndex::new(cell(row, 1)?),
        id: cell(row, 2)?,
        name: cell(row, 3)?,
        defined_at: NodeTime::new(cell(row, 5)?),
        definition: cell(row, 7)?,
    };
    let changed_at = NodeTime::new(cell(row, 6)?);
    let state = SaleState::from_name(&state).ok_or_else(|| out_of_range("state"))?;
    Ok(StoredSale { row: sale, state, changed_at })
}

pub fn item_at(row: &Row) -> Result<ItemRow, StoreError> {
    Ok(ItemRow {
        journal: JournalId::new(cell(row, 0)?),
        item: ItemIndex::new(cell(row, 1)?),
        sale: SaleIndex::new(cell(row, 2)?),
        sku: cell(row, 3)?,
        name: cell(row, 4)?,
        points: cell(row, 5)?,
        limit_per_member: cell(row, 6)?,
    })
}

pub fn change_at(row: &Row) -> Result<AdminChange, StoreError> {
    let what: String = cell(row, 3)?;
    Ok(AdminChange {
        journal: JournalId::new(cell(row, 0)?),
        seq: Seq::new(cell(row, 1)?),
        at: NodeTime::new(cell(row, 2)?),
        what: AdminChange::what_from_name(&what).ok_or_else(|| out_of_range("what"))?,
        operator: cell(row, 4)?,
        reason: cell(row, 5)?,
        reference: cell(row, 6)?,
        member: cell::<Option<u64>>(row, 7)?.map(MemberId::new),
        redemption: id_at(row, 8)?,
        sale: cell::<Option<u32>>(row, 9)?.map(SaleIndex::new),
        item: cell::<Option<u32>>(row, 10)?.map(ItemIndex::new),
        amount: cell(row, 11)?,
    })
}
