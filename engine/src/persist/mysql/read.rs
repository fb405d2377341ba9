//! The reading end: what is committed, on a connection of its own that takes no locks.

use std::cell::RefCell;
use std::collections::BTreeMap;

use mysql_async::{Params, Row};

use super::cells::{
    account_at, archived_at, change_at, entry_at, item_at, letter_at, partition_at, redemption_at,
    sale_at, slot_at, stock_at, watermark_at,
};
use super::link::{Link, Session, Use, cell};
use super::{Endpoint, map, schema};
use crate::persist::rows::{
    AccountRow, AdminChange, ArchivedBalance, ItemRow, LedgerRow, RedemptionRow, SlotSum, StockRow,
    StockSums, StoredSale,
};
use crate::persist::store::{
    ConsistentRead, Letter, LetterId, LetterState, StatementCursor, StoreError, StoreReader,
    Stream, WatermarkRow,
};
use crate::ship::holdings::Holdings;
use crate::ship::partition::{DatabaseShard, Layout};
use crate::units::{ItemIndex, JournalId, KeyHash, MemberId, NodeTime, RedemptionId, Slot};

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

/// The statements of the reads that come again and again (the API's, and what persist and the
/// shipper look for), and the index that each must use.
macro_rules! reads {
    ($($name:ident, $label:literal, $index:literal, $($sql:expr),+;)+) => {
        $(pub(super) const $name: &str = concat!($($sql),+);)+
        /// By their names, for a test that explains them.
        #[cfg(test)]
        pub const READS: &[(&str, &str, &str)] = &[$(($label, $name, $index)),+];
    };
}

macro_rules! redemption {
    () => {
        "SELECT id, member, journal, item, quantity, points, state, `key`, expires_at, \
         updated_at, units_back, seq FROM redemptions"
    };
}
macro_rules! entry {
    () => {
        "SELECT journal, seq, leg, account, member, amount, kind, redemption, at FROM ledger"
    };
}
macro_rules! account {
    () => {
        "SELECT member, free, held, journal, last_seq FROM accounts"
    };
}

reads! {
    BY_ID, "redemption", "PRIMARY", redemption!(), " WHERE id = ?";
    OF_MEMBER, "redemptions_of", "redemptions_by_member",
        redemption!(), " WHERE member = ? AND id < ? ORDER BY id DESC LIMIT ?";
    BY_KEY, "redemption_by_key", "redemptions_by_member",
        redemption!(), " WHERE member = ? AND `key` = ? ORDER BY id DESC LIMIT 1";
    OF_ITEM, "redemptions_of_item", "redemptions_by_item",
        redemption!(), " WHERE journal = ? AND item = ? AND id < ? ORDER BY id DESC LIMIT ?";
    ACCOUNT, "account", "PRIMARY", account!(), " WHERE member = ?";
    STATEMENT, "statement", "ledger_by_member",
        entry!(), " WHERE member = ? AND account <= 2 AND id < ? ORDER BY id DESC LIMIT ?";
    REWINDS, "rewinds", "rewinds_open",
        "SELECT id, journal, `partition`, to_seq FROM rewinds FORCE INDEX (rewinds_open)",
        " WHERE is_done = 0 ORDER BY id";
    LETTERS, "letters", "dead_letters_waiting",
        "SELECT id, journal, `partition`, incarnation, seq, slot, member, at, state, reason,",
        " record FROM dead_letters FORCE INDEX (dead_letters_waiting)",
        " WHERE state = ? AND id > ? ORDER BY id LIMIT ?";
    WATERMARKS, "watermarks", "PRIMARY",
        "SELECT journal, `partition`, incarnation, since_seq, seq, at FROM watermarks",
        " ORDER BY journal, `partition`";
    CLAIMS, "slot_claims", "PRIMARY",
        "SELECT slot, journal, node, map_version FROM slot_claims ORDER BY slot";
}

fn id_bytes(id: u128) -> Vec<u8> {
    id.to_be_bytes().to_vec()
}

impl StoreReader for MySqlReader {
    fn redemption(&self, id: RedemptionId) -> Result<Option<RedemptionRow>, StoreError> {
        let rows = self.rows(BY_ID, (id_bytes(id.get()),), redemption_at)?;
        Ok(rows.into_iter().next())
    }

    fn redemptions_of(
        &self,
        member: MemberId,
        before: Option<RedemptionId>,
        limit: u16,
    ) -> Result<Vec<RedemptionRow>, StoreError> {
        let before = before.map_or(u128::MAX, RedemptionId::get);
        self.rows(OF_MEMBER, (member.get(), id_bytes(before), limit), redemption_at)
    }

    fn redemptions_of_item(
        &self,
        journal: JournalId,
        item: ItemIndex,
        before: Option<RedemptionId>,
        limit: u16,
    ) -> Result<Vec<RedemptionRow>, StoreError> {
        let before = before.map_or(u128::MAX, RedemptionId::get);
        let key = (journal.get(), item.get(), id_bytes(before), limit);
        self.rows(OF_ITEM, key, redemption_at)
    }

    fn redemption_by_key(
        &self,
        member: MemberId,
        key: KeyHash,
    ) -> Result<Option<RedemptionRow>, StoreError> {
        let rows = self.rows(BY_KEY, (member.get(), id_bytes(key.get())), redemption_at)?;
        Ok(rows.into_iter().next())
    }

    fn account(&self, member: MemberId) -> Result<Option<AccountRow>, StoreError> {
        Ok(self.rows(ACCOUNT, (member.get(),), account_at)?.into_iter().next())
    }

    fn statement(
        &self,
        member: MemberId,
        before: Option<StatementCursor>,
        limit: u16,
    ) -> Result<Vec<LedgerRow>, StoreError> {
        let before = before.map_or(u128::MAX, |c| LedgerId::at(c).get());
        self.rows(STATEMENT, (member.get(), id_bytes(before), limit), entry_at)
    }

    fn holdings(&self) -> Result<Holdings, StoreError> {
        self.run(async |session: &mut Session| map::holdings(session).await)
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
    fn holdings(&self) -> Result<Holdings, StoreError> {
        self.run(async |session: &mut Session| map::holdings(session).await)
    }

    fn claims(&self) -> Result<Vec<(Slot, JournalId)>, StoreError> {
        let sql = "SELECT slot, journal FROM slot_claims ORDER BY slot";
        self.rows(sql, |row| Ok((Slot::new(cell(row, 0)?), JournalId::new(cell(row, 1)?))))
    }
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
    fn sales(&self) -> Result<Vec<StoredSale>, StoreError> {
        let sql = "SELECT journal, sale, id, name, state, defined_at, changed_at, definition
                   FROM sales ORDER BY journal, sale";
        self.rows(sql, sale_at)
    }
    fn items(&self) -> Result<Vec<ItemRow>, StoreError> {
        let sql = "SELECT journal, item, sale, sku, name, points, limit_per_member FROM items
                   ORDER BY journal, item";
        self.rows(sql, item_at)
    }
    fn archived_months(&self) -> Result<Vec<(String, NodeTime)>, StoreError> {
        let sql = "SELECT name, until_at FROM archived_months ORDER BY name, month";
        self.rows(sql, |row| Ok((cell(row, 0)?, NodeTime::new(cell(row, 1)?))))
    }
    fn archived_stock(&self) -> Result<Vec<(JournalId, ItemIndex, StockSums)>, StoreError> {
        let sql = "SELECT journal, item, held, confirmed, released, reversed, retired
                   FROM archived_stock ORDER BY journal, item";
        self.rows(sql, |row| {
            let sums = StockSums {
                held: cell(row, 2)?,
                confirmed: cell(row, 3)?,
                released: cell(row, 4)?,
                reversed: cell(row, 5)?,
                retired: cell(row, 6)?,
            };
            Ok((JournalId::new(cell(row, 0)?), ItemIndex::new(cell(row, 1)?), sums))
        })
    }
    fn each_archived_balance(
        &self,
        see: &mut dyn FnMut(ArchivedBalance),
    ) -> Result<(), StoreError> {
        let sql = "SELECT journal, member, account, amount FROM archived_balances
                   ORDER BY journal, member, account";
        self.each(sql, archived_at, see)
    }
    fn each_admin_change(&self, see: &mut dyn FnMut(AdminChange)) -> Result<(), StoreError> {
        let sql = "SELECT journal, seq, at, what, operator, reason, reference, member, redemption,
                   sale, item, amount FROM admin_changes ORDER BY journal, seq";
        self.each(sql, change_at, see)
    }
    fn each_account(&self, see: &mut dyn FnMut(AccountRow)) -> Result<(), StoreError> {
        self.each(concat!(account!(), " ORDER BY member"), account_at, see)
    }
    fn each_redemption(&self, see: &mut dyn FnMut(RedemptionRow)) -> Result<(), StoreError> {
        self.each(concat!(redemption!(), " ORDER BY id"), redemption_at, see)
    }
    fn each_entry(&self, see: &mut dyn FnMut(LedgerRow)) -> Result<(), StoreError> {
        self.each(concat!(entry!(), " ORDER BY journal, seq, leg"), entry_at, see)
    }
}

pub async fn watermarks(session: &mut Session) -> Result<Vec<WatermarkRow>, StoreError> {
    let rows = session.rows(WATERMARKS, ()).await?;
    let map = |row: &Row| {
        let journal = JournalId::new(cell(row, 0)?);
        let stream = Stream { journal, partition: partition_at(row, 1)? };
        let at = NodeTime::new(cell(row, 5)?);
        Ok(WatermarkRow { stream, watermark: watermark_at(row, 2)?, at })
    };
    rows.iter().map(map).collect()
}

/// Letters not applied yet, in the order of their arrival, behind `after`.
pub async fn letters(
    session: &mut Session,
    after: LetterId,
    limit: u32,
) -> Result<Vec<(LetterId, Letter)>, StoreError> {
    let mut letters = BTreeMap::new();
    // Those that wait first: one that becomes a dead one meanwhile comes twice, and is not missed.
    for state in [LetterState::Parked, LetterState::Dead] {
        for row in &session.rows(LETTERS, (state as u8, after.0, limit)).await? {
            let (id, letter) = letter_at(row)?;
            letters.insert(id, letter);
        }
    }
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    Ok(letters.into_iter().take(limit).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Seq;

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
