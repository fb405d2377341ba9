//! The reading end: what is committed, on a connection of its own that takes no locks.

use std::cell::RefCell;

use mysql_async::{Params, Row, Value};

use super::link::{Link, Session, Use, cell};
use super::{Endpoint, schema};
use crate::kernel::command::RedemptionState;
use crate::persist::rows::{
    AccountRow, LedgerAccount, LedgerRow, MoveKind, RedemptionRow, SlotSum, StockRow, StockSums,
};
use crate::persist::store::{
    ConsistentRead, Letter, LetterId, LetterState, StatementCursor, StoreError, StoreReader,
    Stream, WatermarkRow,
};
use crate::ship::gap::Watermark;
use crate::ship::partition::{DatabaseShard, Layout, Partition};
use crate::units::{
    Incarnation, ItemIndex, JournalId, KeyHash, MemberId, NodeTime, Points, Quantity, RedemptionId,
    Seq, Slot,
};

/// The key of a ledger row.
///
/// ```text
///  127         80 79          57 56            1  0
/// ┌──────────────┬──────────────┬───────────────┬─────┐
/// │ node ms (48) │ journal (23) │ sequence (56) │ leg │
/// └──────────────┴──────────────┴───────────────┴─────┘
/// ```
/// The journal's 23 bits are the low ones of its id. Two journals that share them would also have
/// to move points at the same sequence number in the same millisecond.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct LedgerId(u128);

impl LedgerId {
    pub fn of(row: &LedgerRow) -> Self {
        Self::at(StatementCursor::of(row))
    }
    pub fn at(c: StatementCursor) -> Self {
        let ms = u128::from(c.at.get() & 0xffff_ffff_ffff);
        let journal = u128::from(c.journal.get() & 0x7f_ffff);
        let seq = u128::from(c.seq.get() & 0xff_ffff_ffff_ffff);
        Self(ms << 80 | journal << 57 | seq << 1 | u128::from(c.leg & 1))
    }
    pub fn get(self) -> u128 {
        self.0
    }
}

/// One database shard, open for reading: its primary, or a replica.
pub struct MySqlReader {
    link: Link,
    shard: DatabaseShard,
    layout: Layout,
}

impl MySqlReader {
    /// Nothing is opened before the first call.
    ///
    /// Errors: there can be no runtime.
    pub fn open(
        endpoint: Endpoint,
        shard: DatabaseShard,
        layout: Layout,
    ) -> Result<Self, StoreError> {
        Ok(Self { link: Link::new(endpoint, Use::Read)?, shard, layout })
    }

    pub fn shard(&self) -> DatabaseShard {
        self.shard
    }

    fn run<T>(
        &self,
        work: impl AsyncFnOnce(&mut Session) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let (shard, layout) = (self.shard, self.layout);
        self.link
            .run(async |session: &mut Session| schema::check(session, shard, layout).await, work)
    }

    fn rows<T>(
        &self,
        sql: &str,
        params: impl Into<Params>,
        map: fn(&Row) -> Result<T, StoreError>,
    ) -> Result<Vec<T>, StoreError> {
        let params = params.into();
        let rows = self.run(async |session: &mut Session| session.rows(sql, params).await)?;
        rows.iter().map(map).collect()
    }
}

pub const REDEMPTION: &str = "SELECT id, member, journal, item, quantity, points, state, `key`,
    expires_at, updated_at, units_back, seq FROM redemptions";
const ENTRY: &str =
    "SELECT journal, seq, leg, account, member, amount, kind, redemption, at FROM ledger";
const ACCOUNT: &str = "SELECT member, free, held, journal, last_seq FROM accounts";

/// The statements of the API's reads, as a test explains them.
pub const BY_ID: &str = "WHERE id = ?";
pub const OF_MEMBER: &str = "WHERE member = ? AND id < ? ORDER BY id DESC LIMIT ?";
pub const BY_KEY: &str = "WHERE member = ? AND `key` = ? ORDER BY id DESC LIMIT 1";
pub const OF_ITEM: &str = "WHERE journal = ? AND item = ? AND id < ? ORDER BY id DESC LIMIT ?";
pub const STATEMENT: &str = "WHERE member = ? AND account <= 2 AND id < ? ORDER BY id DESC LIMIT ?";

fn id_bytes(id: u128) -> Vec<u8> {
    id.to_be_bytes().to_vec()
}

impl StoreReader for MySqlReader {
    fn redemption(&self, id: RedemptionId) -> Result<Option<RedemptionRow>, StoreError> {
        let sql = format!("{REDEMPTION} {BY_ID}");
        let rows = self.rows(&sql, (id_bytes(id.get()),), redemption_at)?;
        Ok(rows.into_iter().next())
    }

    fn redemptions_of(
        &self,
        member: MemberId,
        before: Option<RedemptionId>,
        limit: u16,
    ) -> Result<Vec<RedemptionRow>, StoreError> {
        let sql = format!("{REDEMPTION} {OF_MEMBER}");
        let before = before.map_or(u128::MAX, RedemptionId::get);
        self.rows(&sql, (member.get(), id_bytes(before), limit), redemption_at)
    }

    fn redemptions_of_item(
        &self,
        journal: JournalId,
        item: ItemIndex,
        before: Option<RedemptionId>,
        limit: u16,
    ) -> Result<Vec<RedemptionRow>, StoreError> {
        let sql = format!("{REDEMPTION} {OF_ITEM}");
        let before = before.map_or(u128::MAX, RedemptionId::get);
        let key = (journal.get(), item.get(), id_bytes(before), limit);
        self.rows(&sql, key, redemption_at)
    }

    fn redemption_by_key(
        &self,
        member: MemberId,
        key: KeyHash,
    ) -> Result<Option<RedemptionRow>, StoreError> {
        let sql = format!("{REDEMPTION} {BY_KEY}");
        let rows = self.rows(&sql, (member.get(), id_bytes(key.get())), redemption_at)?;
        Ok(rows.into_iter().next())
    }

    fn account(&self, member: MemberId) -> Result<Option<AccountRow>, StoreError> {
        let sql = format!("{ACCOUNT} WHERE member = ?");
        Ok(self.rows(&sql, (member.get(),), account_at)?.into_iter().next())
    }

    fn statement(
        &self,
        member: MemberId,
        before: Option<StatementCursor>,
        limit: u16,
    ) -> Result<Vec<LedgerRow>, StoreError> {
        let sql = format!("{ENTRY} {STATEMENT}");
        let before = before.map_or(u128::MAX, |c| LedgerId::at(c).get());
        self.rows(&sql, (member.get(), id_bytes(before), limit), entry_at)
    }

    fn watermarks(&self) -> Result<Vec<WatermarkRow>, StoreError> {
        self.run(async |session: &mut Session| watermarks(session).await)
    }

    fn consistent(
        &self,
        read: &mut dyn FnMut(&dyn ConsistentRead) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        self.run(async |session: &mut Session| {
            session.query("START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY").await
        })?;
        let done = read(&Moment { reader: self, failed: RefCell::new(false) });
        self.run(async |session: &mut Session| session.query("COMMIT").await)?;
        done
    }
}

/// An open read transaction.
struct Moment<'r> {
    reader: &'r MySqlReader,
    /// The session was lost, and the moment with it.
    failed: RefCell<bool>,
}

impl Moment<'_> {
    fn run<T>(
        &self,
        work: impl AsyncFnOnce(&mut Session) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        if *self.failed.borrow() {
            return Err(super::unavailable("the connection of this read was lost".into()));
        }
        // A session that is opened anew would see another moment: it is refused before it reads.
        let lost = async |_: &mut Session| {
            Err(super::unavailable("the connection of this read was lost".into()))
        };
        let done = self.reader.link.run(lost, work);
        if let Err(StoreError::Unavailable(_)) = done {
            *self.failed.borrow_mut() = true;
        }
        done
    }

    fn each<T>(
        &self,
        sql: &str,
        map: fn(&Row) -> Result<T, StoreError>,
        see: &mut dyn FnMut(T),
    ) -> Result<(), StoreError> {
        self.run(async |session: &mut Session| {
            session
                .each(sql, &mut |row| {
                    see(map(row)?);
                    Ok(())
                })
                .await
        })
    }

    fn rows<T>(
        &self,
        sql: &str,
        map: fn(&Row) -> Result<T, StoreError>,
    ) -> Result<Vec<T>, StoreError> {
        let mut all = Vec::new();
        self.each(sql, map, &mut |row| all.push(row))?;
        Ok(all)
    }
}

impl ConsistentRead for Moment<'_> {
    fn watermarks(&self) -> Result<Vec<WatermarkRow>, StoreError> {
        self.run(async |session: &mut Session| watermarks(session).await)
    }
    fn stock(&self) -> Result<Vec<StockRow>, StoreError> {
        let sql = "SELECT journal, item, held, confirmed, released, reversed, retired, total,
                   granted, returned FROM stock ORDER BY journal, item";
        self.rows(sql, stock_at)
    }
    fn slots(&self) -> Result<Vec<SlotSum>, StoreError> {
        let sql = "SELECT journal, slot, records, checksum FROM slots ORDER BY journal, slot";
        self.rows(sql, slot_at)
    }
    fn letters(&self) -> Result<Vec<Letter>, StoreError> {
        let all = LetterId(i64::MIN);
        let letters =
            self.run(async |session: &mut Session| letters(session, all, u32::MAX).await)?;
        Ok(letters.into_iter().map(|(_, letter)| letter).collect())
    }
    fn each_account(&self, see: &mut dyn FnMut(AccountRow)) -> Result<(), StoreError> {
        self.each(&format!("{ACCOUNT} ORDER BY member"), account_at, see)
    }
    fn each_redemption(&self, see: &mut dyn FnMut(RedemptionRow)) -> Result<(), StoreError> {
        self.each(&format!("{REDEMPTION} ORDER BY id"), redemption_at, see)
    }
    fn each_entry(&self, see: &mut dyn FnMut(LedgerRow)) -> Result<(), StoreError> {
        self.each(&format!("{ENTRY} ORDER BY journal, seq, leg"), entry_at, see)
    }
}

pub async fn watermarks(session: &mut Session) -> Result<Vec<WatermarkRow>, StoreError> {
    let sql = "SELECT journal, `partition`, incarnation, since_seq, seq, at FROM watermarks
               ORDER BY journal, `partition`";
    let rows = session.rows(sql, ()).await?;
    let map = |row: &Row| {
        let journal = JournalId::new(cell(row, 0)?);
        let stream = Stream { journal, partition: partition_at(row, 1)? };
        let at = NodeTime::new(cell(row, 5)?);
        Ok(WatermarkRow { stream, watermark: watermark_at(row, 2)?, at })
    };
    rows.iter().map(map).collect()
}

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

/// Letters not applied yet, in the order of their arrival, behind `after`.
pub async fn letters(
    session: &mut Session,
    after: LetterId,
    limit: u32,
) -> Result<Vec<(LetterId, Letter)>, StoreError> {
    let sql = "SELECT id, journal, `partition`, incarnation, seq, slot, member, at, state, reason,
               record FROM dead_letters WHERE state <> 3 AND id > ? ORDER BY id LIMIT ?";
    let rows = session.rows(sql, (after.0, limit)).await?;
    rows.iter().map(letter_at).collect()
}

fn letter_at(row: &Row) -> Result<(LetterId, Letter), StoreError> {
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

fn entry_at(row: &Row) -> Result<LedgerRow, StoreError> {
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

fn account_at(row: &Row) -> Result<AccountRow, StoreError> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ledger_id_sorts_by_time_then_record_then_leg() {
        let id = |at, seq, leg| {
            let journal = JournalId::new(u64::MAX);
            let (at, seq) = (NodeTime::new(at), Seq::new(seq));
            LedgerId::at(StatementCursor { at, journal, seq, leg })
        };
        let sorted = [id(1, 9, 0), id(1, 9, 1), id(1, 10, 0), id(2, 1, 0), id(1 << 47, 1, 1)];
        assert!(sorted.is_sorted());
        assert_eq!(id(1, 9, 1).get() - id(1, 9, 0).get(), 1);
    }
}
