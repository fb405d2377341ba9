//! `onrush db split`: whole partitions from one database shard to another, while all others are
//! written and read as ever.
//!
//! ```text
//!  from            to             what is done, each in one transaction of one database
//!  held            ─
//!  leaving         ─              1 stopped: writers under way end first, later ones roll back
//!  leaving         arriving       2 announced; sales and items copied, if it has none yet
//!  leaving         arriving       3 rows copied page by page, how far beside them
//!  leaving         arriving       4 every row compared, in the order of the keys; sums of stock
//!  leaving         held           5 switched: its sums added; written there from here on
//!  gone            held           6 let go: its sums taken off, watermarks and letters deleted
//!  gone            held           7 rows deleted page by page
//!  ─               held           8 forgotten
//! ```
//! Killed anywhere, the next run reads the two maps and goes on at that line. Nothing of a
//! partition changes between 1 and 5, so what was compared is what is switched; and no step needs
//! both databases at once, because a partition that is leaving is written nowhere.

use std::time::Duration;

use mysql_async::Value;
use thiserror::Error;

use super::link::{Link, Session, Use, cell};
use super::moving::{COPIES, Cells, Page, Partitions, RESTS, TABLES, Table, progress, redemption};
use super::{Endpoint, map, partitions, schema};
use crate::crash::CrashPoint;
use crate::crash_point;
use crate::persist::rows::StockSums;
use crate::persist::store::StoreError;
use crate::ship::holdings::{Epoch, Hold, Holding, Holdings, MapError, gather};
use crate::ship::partition::{DatabaseShard, Layout, Partition};

/// How the little tables stand in `arrivals`, all together.
const REST: &str = "rest";

/// How long a statement may take, at least.
const PATIENCE: Duration = Duration::from_mins(5);

/// Partial sums of stock by journal and item.
type Sums = std::collections::BTreeMap<(u64, u32), StockSums>;

/// What a split tells of its way.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Step {
    /// A move that was interrupted is taken up.
    TakenUp,
    Stopped,
    Announced,
    Copied {
        table: &'static str,
        rows: u64,
    },
    Compared {
        rows: u64,
    },
    Switched,
    Deleted {
        rows: u64,
    },
    /// An unfinished move was taken back.
    Abandoned,
}

/// Why partitions stay where they are.
#[derive(Error, Debug)]
pub enum SplitError {
    #[error("database shard {}: {source}", shard.get())]
    Store { shard: DatabaseShard, source: StoreError },
    #[error(transparent)]
    Map(#[from] MapError),
    #[error("there is no database shard {}: add its URL to store.mysql.urls first", .0.get())]
    NoShard(DatabaseShard),
    #[error(
        "partition {} is {} on database shard {} and {there} on {}: the maps were changed by hand, \
         or a database was restored; put them right by config/schema/README.md",
        partition.get(), here.name(), from.get(), to.get()
    )]
    Torn {
        partition: Partition,
        from: DatabaseShard,
        here: Hold,
        to: DatabaseShard,
        there: &'static str,
    },
    #[error(
        "{table}: row {key} is not the same on both sides: nothing was switched. See who changed \
         it, then run `onrush db split --abandon` and begin again"
    )]
    Differs { table: &'static str, key: String },
    #[error("another `onrush db split` is at work on database shard {}", .0.get())]
    Rival(DatabaseShard),
    #[error(
        "database shard {} has a month that is half archived: let `onrush db archive` finish first",
        .0.get()
    )]
    Archiving(DatabaseShard),
}

/// One database shard as the split sees it.
struct Side {
    shard: DatabaseShard,
    layout: Layout,
    link: Link,
}

impl Side {
    fn run<T>(
        &self,
        work: impl AsyncFnOnce(&mut Session) -> Result<T, StoreError>,
    ) -> Result<T, SplitError> {
        let (shard, layout) = (self.shard, self.layout);
        let greet = async |session: &mut Session| {
            schema::check(session, shard, layout).await?;
            // One side waits while the other's tables are read; a switch waits for writers.
            session.query("SET SESSION wait_timeout = 28800, innodb_lock_wait_timeout = 60").await
        };
        self.link.run(greet, work).map_err(|source| SplitError::Store { shard, source })
    }

    /// One transaction; what it says is `false` is rolled back.
    fn transaction(
        &self,
        work: impl AsyncFnOnce(&mut Session) -> Result<bool, StoreError>,
    ) -> Result<bool, SplitError> {
        self.run(async |session: &mut Session| {
            session.query("START TRANSACTION").await?;
            let done = work(session).await;
            let end = if matches!(done, Ok(true)) { "COMMIT" } else { "ROLLBACK" };
            session.query(end).await?;
            done
        })
    }

    fn holdings(&self) -> Result<Holdings, SplitError> {
        self.run(async |session: &mut Session| map::holdings(session).await)
    }

    /// Takes all these partitions from one state to another, with whatever else is to be done.
    ///
    /// Errors: `Rival` where somebody else has done so.
    fn change(
        &self,
        set: Partitions,
        (from, to): (Hold, impl Fn(Partition) -> Holding),
        work: impl AsyncFnOnce(&mut Session) -> Result<(), StoreError>,
    ) -> Result<(), SplitError> {
        let done = self.transaction(async |session: &mut Session| {
            // The lock that writers wait for, and that waits for them.
            map::raise(session).await?;
            for partition in set.iter() {
                if !map::change(session, partition, from, to(partition)).await? {
                    return Ok(false);
                }
            }
            work(session).await?;
            Ok(true)
        })?;
        if done { Ok(()) } else { Err(SplitError::Rival(self.shard)) }
    }
}

/// The database shards, each on a connection of its own.
pub struct Split<'t> {
    sides: Vec<Side>,
    layout: Layout,
    told: &'t mut dyn FnMut(DatabaseShard, DatabaseShard, Partitions, &Step),
}

/// Partitions on their way from one database shard to another.
#[derive(Clone, Copy)]
struct Move {
    from: DatabaseShard,
    to: DatabaseShard,
    set: Partitions,
}

impl<'t> Split<'t> {
    /// `endpoints`: the primaries, in the order of the database shards.
    ///
    /// Errors: there can be no runtime.
    pub fn new(
        endpoints: Vec<Endpoint>,
        layout: Layout,
        told: &'t mut dyn FnMut(DatabaseShard, DatabaseShard, Partitions, &Step),
    ) -> Result<Self, SplitError> {
        let side = |(shard, mut endpoint): (DatabaseShard, Endpoint)| {
            endpoint.read_timeout = endpoint.read_timeout.max(PATIENCE);
            let link = Link::new(endpoint, Use::Write);
            let link = link.map_err(|source| SplitError::Store { shard, source })?;
            Ok(Side { shard, layout, link })
        };
        let sides = layout.shards().zip(endpoints).map(side).collect::<Result<_, SplitError>>()?;
        Ok(Self { sides, layout, told })
    }

    fn side(&self, shard: DatabaseShard) -> Result<&Side, SplitError> {
        self.sides.get(shard.index()).ok_or(SplitError::NoShard(shard))
    }

    fn tell(&mut self, m: Move, step: &Step) {
        (self.told)(m.from, m.to, m.set, step);
    }

    fn maps(&self) -> Result<Vec<(DatabaseShard, Holdings)>, SplitError> {
        self.sides.iter().map(|side| Ok((side.shard, side.holdings()?))).collect()
    }

    /// What is on its way by the maps.
    fn under_way(&self) -> Result<Vec<Move>, SplitError> {
        let mut moves: Vec<Move> = Vec::new();
        for (from, map) in self.maps()? {
            for (partition, holding) in map.each() {
                let Some(to) = holding.peer else { continue };
                if !matches!(holding.hold, Hold::Leaving | Hold::Gone) {
                    continue;
                }
                let one: Partitions = [partition].into_iter().collect();
                match moves.iter_mut().find(|m| (m.from, m.to) == (from, to)) {
                    Some(m) => m.set = m.set.iter().chain(one.iter()).collect(),
                    None => moves.push(Move { from, to, set: one }),
                }
            }
        }
        Ok(moves)
    }

    /// Finishes what was begun, then brings these partitions to `to`, from wherever they are.
    ///
    /// Errors: what was not finished stays, and the next run goes on there.
    pub fn run(&mut self, to: DatabaseShard, wanted: &[Partition]) -> Result<(), SplitError> {
        self.side(to)?;
        self.finish_all()?;
        let layout = gather(self.layout.count(), &self.maps()?)?;
        for from in self.layout.shards().filter(|from| *from != to) {
            let here = |p: &&Partition| layout.shard_of(**p) == from;
            let set: Partitions = wanted.iter().filter(here).copied().collect();
            if set.is_empty() {
                continue;
            }
            let m = Move { from, to, set };
            self.stop(m)?;
            self.finish(m)?;
        }
        Ok(())
    }

    /// Takes up every move that was interrupted.
    pub fn finish_all(&mut self) -> Result<(), SplitError> {
        for m in self.under_way()? {
            self.side(m.to)?;
            self.tell(m, &Step::TakenUp);
            self.finish(m)?;
        }
        Ok(())
    }

    /// Takes back every move that is not switched yet.
    pub fn abandon(&mut self) -> Result<(), SplitError> {
        for m in self.under_way()? {
            let (from, to) = (self.side(m.from)?, self.side(m.to)?);
            let map = to.holdings()?;
            let is_copy = |p| map.get(p).is_none_or(|h| h.hold == Hold::Arriving);
            if !m.set.iter().all(is_copy) {
                // Behind the switch there is only one way.
                self.finish(m)?;
                continue;
            }
            delete_rows(to, m.set)?;
            to.transaction(async |session: &mut Session| {
                map::raise(session).await?;
                for rest in &RESTS {
                    rest.delete(session, m.set).await?;
                }
                map::forget(session, m.set.iter(), Hold::Arriving).await?;
                session.execute("DELETE FROM arrivals", ()).await?;
                Ok(true)
            })?;
            let map = from.holdings()?;
            from.change(m.set, (Hold::Leaving, again_held(&map)), async |_| Ok(()))?;
            self.tell(m, &Step::Abandoned);
        }
        Ok(())
    }

    /// 1: from here on nobody writes them.
    fn stop(&mut self, m: Move) -> Result<(), SplitError> {
        let from = self.side(m.from)?;
        for side in [from, self.side(m.to)?] {
            let sql = "SELECT COUNT(*) FROM information_schema.TABLES
                       WHERE TABLE_SCHEMA = DATABASE() AND TABLE_NAME LIKE 'archive\\\\_%'";
            let rows = side.run(async |session: &mut Session| session.rows(sql, ()).await)?;
            let sides: u64 = rows.first().map_or(Ok(0), |row| cell(row, 0)).unwrap_or(1);
            if sides > 0 {
                return Err(SplitError::Archiving(side.shard));
            }
        }
        let map = from.holdings()?;
        let leaving = |p: Partition| {
            let epoch = map.get(p).map_or(Epoch::FIRST, |h| h.epoch);
            Holding { hold: Hold::Leaving, epoch, peer: Some(m.to) }
        };
        from.change(m.set, (Hold::Held, leaving), async |_| Ok(()))?;
        crash_point!(CrashPoint::SplitAfterStop);
        self.tell(m, &Step::Stopped);
        Ok(())
    }

    /// Everything behind 1, from wherever it stands.
    fn finish(&mut self, m: Move) -> Result<(), SplitError> {
        loop {
            let (from, to) = (self.side(m.from)?.holdings()?, self.side(m.to)?.holdings()?);
            let Some(first) = m.set.iter().next() else { return Ok(()) };
            let (here, there) = (from.get(first).map(|h| h.hold), to.get(first).map(|h| h.hold));
            for partition in m.set.iter() {
                let (now, then) = (from.get(partition), to.get(partition));
                let is_same = now.map(|h| h.hold) == here && then.map(|h| h.hold) == there;
                if !is_same {
                    return Err(torn(m, partition, now, then));
                }
            }
            match (here, there) {
                (Some(Hold::Leaving), None) => self.announce(m, &from)?,
                (Some(Hold::Leaving), Some(Hold::Arriving)) => {
                    self.copy(m)?;
                    let sums = self.compare(m)?;
                    self.switch(m, &to, &sums)?;
                }
                (Some(Hold::Leaving), Some(Hold::Held)) => self.let_go(m, &from)?,
                (Some(Hold::Gone), Some(Hold::Held)) => return self.clear(m),
                _ => return Err(torn(m, first, from.get(first), to.get(first))),
            }
        }
    }

    /// 2: the other database shard knows that they are coming, and has what every one has.
    fn announce(&mut self, m: Move, from_map: &Holdings) -> Result<(), SplitError> {
        let (from, to) = (self.side(m.from)?, self.side(m.to)?);
        let months = from.run(async |session: &mut Session| partitions::list(session).await)?;
        if let Some(oldest) = months.iter().filter_map(|p| p.month).min() {
            to.run(async |session: &mut Session| {
                partitions::lock(session).await?;
                partitions::extend_back(session, oldest).await?;
                partitions::unlock(session).await
            })?;
        }
        if !to.holdings()?.holds(Partition::CONTROL) {
            copy_control(from, to)?;
        }
        let done = to.transaction(async |session: &mut Session| {
            map::raise(session).await?;
            for partition in m.set.iter() {
                let epoch = from_map.get(partition).map_or(Epoch::FIRST, |h| h.epoch).next();
                let (hold, peer) = (Hold::Arriving, Some(m.from));
                map::enter(session, partition, Holding { hold, epoch, peer }).await?;
            }
            session.execute("DELETE FROM arrivals", ()).await?;
            for name in TABLES.iter().map(|t| t.name).chain([REST]) {
                session.execute("INSERT INTO arrivals VALUES (?, '', 0)", (name,)).await?;
            }
            Ok(true)
        });
        done?;
        crash_point!(CrashPoint::SplitAfterAnnounce);
        self.tell(m, &Step::Announced);
        Ok(())
    }

    /// 3: rows, and beside them in the same transaction how far they go.
    fn copy(&mut self, m: Move) -> Result<(), SplitError> {
        for table in &TABLES {
            let (from, to) = (self.side(m.from)?, self.side(m.to)?);
            let rows = copy_table(from, to, table, m.set)?;
            self.tell(m, &Step::Copied { table: table.name, rows });
        }
        let (from, to) = (self.side(m.from)?, self.side(m.to)?);
        let mut rests = Vec::new();
        for rest in &RESTS {
            let read = async |session: &mut Session| rest.read(session, m.set).await;
            rests.push(from.run(read)?);
        }
        // `false`: an earlier run has done it.
        to.transaction(async |session: &mut Session| {
            let Some((_, false)) = progress(session, REST).await? else { return Ok(false) };
            for (rest, rows) in RESTS.iter().zip(&rests) {
                rest.insert(session, rows).await?;
            }
            let sql = "UPDATE arrivals SET is_done = 1 WHERE name = ?";
            session.execute(sql, (REST,)).await?;
            Ok(true)
        })?;
        crash_point!(CrashPoint::SplitAfterCopy);
        Ok(())
    }

    /// 4: row for row; what the redemptions sum to.
    fn compare(&mut self, m: Move) -> Result<Sums, SplitError> {
        let (from, to) = (self.side(m.from)?, self.side(m.to)?);
        let (mut sums, mut compared) = (Sums::new(), 0);
        for table in &TABLES {
            let mut there = Reading::new(to, table, m.set);
            let mut here = Reading::new(from, table, m.set);
            loop {
                let (a, b) = (here.next()?, there.next()?);
                if a != b {
                    let row = a.or(b).expect("two that differ are not both missing");
                    let key = hex(&Table::key_bytes(&table.key_of(&row)));
                    return Err(SplitError::Differs { table: table.name, key });
                }
                let Some(row) = a else { break };
                if table.name == "redemptions" {
                    count(&row, &mut sums).map_err(|source| {
                        let shard = from.shard;
                        SplitError::Store { shard, source }
                    })?;
                }
                compared += 1;
            }
        }
        for rest in &RESTS {
            let read = async |session: &mut Session| rest.read(session, m.set).await;
            let (a, b) = (from.run(read)?, to.run(read)?);
            if let Some(index) = (0..a.len().max(b.len())).find(|n| a.get(*n) != b.get(*n)) {
                let key = format!("number {}", index + 1);
                return Err(SplitError::Differs { table: rest.name, key });
            }
            compared += a.len() as u64;
        }
        crash_point!(CrashPoint::SplitAfterCheck);
        self.tell(m, &Step::Compared { rows: compared });
        Ok(sums)
    }

    /// 5: from here on they are written there.
    fn switch(&mut self, m: Move, map: &Holdings, sums: &Sums) -> Result<(), SplitError> {
        let to = self.side(m.to)?;
        to.change(m.set, (Hold::Arriving, again_held(map)), async |session: &mut Session| {
            for (key, sums) in sums {
                add_stock(session, *key, *sums).await?;
            }
            session.execute("DELETE FROM arrivals", ()).await.map(drop)
        })?;
        crash_point!(CrashPoint::SplitAfterSwitch);
        self.tell(m, &Step::Switched);
        Ok(())
    }

    /// 6: the sums are counted from the rows here, which nobody has changed since they were
    /// compared.
    fn let_go(&mut self, m: Move, map: &Holdings) -> Result<(), SplitError> {
        let from = self.side(m.from)?;
        let mut sums = Sums::new();
        let mut rows = Reading::new(from, &TABLES[0], m.set);
        while let Some(row) = rows.next()? {
            let shard = from.shard;
            count(&row, &mut sums).map_err(|source| SplitError::Store { shard, source })?;
        }
        let gone = |p: Partition| {
            let epoch = map.get(p).map_or(Epoch::FIRST, |h| h.epoch);
            Holding { hold: Hold::Gone, epoch, peer: Some(m.to) }
        };
        from.change(m.set, (Hold::Leaving, gone), async |session: &mut Session| {
            for (key, sums) in &sums {
                take_stock(session, *key, *sums).await?;
            }
            for rest in &RESTS {
                rest.delete(session, m.set).await?;
            }
            let list = m.set.iter().map(|p| p.get().to_string()).collect::<Vec<_>>().join(", ");
            session.query(&format!("DELETE FROM rewinds WHERE `partition` IN ({list})")).await
        })?;
        crash_point!(CrashPoint::SplitAfterGone);
        Ok(())
    }

    /// 7 and 8.
    fn clear(&mut self, m: Move) -> Result<(), SplitError> {
        let from = self.side(m.from)?;
        let rows = delete_rows(from, m.set)?;
        crash_point!(CrashPoint::SplitBeforeForget);
        from.transaction(async |session: &mut Session| {
            map::raise(session).await?;
            map::forget(session, m.set.iter(), Hold::Gone).await?;
            Ok(true)
        })?;
        self.tell(m, &Step::Deleted { rows });
        Ok(())
    }
}

fn torn(m: Move, partition: Partition, now: Option<Holding>, then: Option<Holding>) -> SplitError {
    let here = now.map_or(Hold::Gone, |h| h.hold);
    let there = then.map_or("not named", |h| h.hold.name());
    SplitError::Torn { partition, from: m.from, here, to: m.to, there }
}

/// As a map names them, and written again.
fn again_held(map: &Holdings) -> impl Fn(Partition) -> Holding {
    let map = *map;
    move |p| {
        let epoch = map.get(p).map_or(Epoch::FIRST, |h| h.epoch);
        Holding { hold: Hold::Held, epoch, peer: None }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().concat()
}

/// What every database shard has, as of one moment, with the watermarks that belong to it.
fn copy_control(from: &Side, to: &Side) -> Result<(), SplitError> {
    let control: Partitions = [Partition::CONTROL].into_iter().collect();
    let tables = || COPIES.iter().chain(&RESTS);
    let copies: Vec<Vec<Cells>> = from.run(async |session: &mut Session| {
        session.query("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ").await?;
        session.query("START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY").await?;
        let mut copies = Vec::new();
        for table in tables() {
            copies.push(table.read(session, control).await?);
        }
        session.query("COMMIT").await?;
        Ok(copies)
    })?;
    to.transaction(async |session: &mut Session| {
        map::raise(session).await?;
        let (hold, epoch, peer) = (Hold::Held, Epoch::FIRST, None);
        map::enter(session, Partition::CONTROL, Holding { hold, epoch, peer }).await?;
        for (table, rows) in tables().zip(&copies) {
            table.insert(session, rows).await?;
        }
        Ok(true)
    })?;
    Ok(())
}

fn copy_table(
    from: &Side,
    to: &Side,
    table: &'static Table,
    set: Partitions,
) -> Result<u64, SplitError> {
    let stored = to.run(async |session: &mut Session| progress(session, table.name).await)?;
    let Some((mut done, is_done)) = stored else { return Err(SplitError::Rival(to.shard)) };
    let mut after = table.key_from(&done);
    let (mut copied, mut is_done) = (0, is_done);
    while !is_done {
        let Page { rows, next } =
            from.run(async |session: &mut Session| table.read(session, after.clone(), set).await)?;
        let last = rows.last().map_or_else(|| done.clone(), |r| Table::key_bytes(&table.key_of(r)));
        let is_last = next.is_none();
        let is_ours = to.transaction(async |session: &mut Session| {
            if progress(session, table.name).await? != Some((done.clone(), false)) {
                return Ok(false);
            }
            table.insert(session, &rows).await?;
            let sql = "UPDATE arrivals SET done_key = ?, is_done = ? WHERE name = ?";
            session.execute(sql, (last.as_slice(), is_last, table.name)).await?;
            Ok(true)
        })?;
        if !is_ours {
            return Err(SplitError::Rival(to.shard));
        }
        crash_point!(CrashPoint::SplitAfterPage);
        copied += rows.len() as u64;
        (done, after, is_done) = (last, next, is_last);
    }
    Ok(copied)
}

fn delete_rows(side: &Side, set: Partitions) -> Result<u64, SplitError> {
    let mut deleted = 0;
    for table in &TABLES {
        let (mut after, mut is_last) = (None, false);
        while !is_last {
            let Page { rows, next } = side
                .run(async |session: &mut Session| table.read(session, after.clone(), set).await)?;
            side.transaction(async |session: &mut Session| {
                table.delete(session, &rows).await?;
                Ok(true)
            })?;
            crash_point!(CrashPoint::SplitAfterDelete);
            deleted += rows.len() as u64;
            (is_last, after) = (next.is_none(), next);
        }
    }
    Ok(deleted)
}

/// A table's rows of some partitions, one by one.
struct Reading<'s> {
    side: &'s Side,
    table: &'static Table,
    set: Partitions,
    rows: std::vec::IntoIter<Cells>,
    after: Option<Vec<Value>>,
    is_last: bool,
}

impl<'s> Reading<'s> {
    fn new(side: &'s Side, table: &'static Table, set: Partitions) -> Self {
        Self { side, table, set, rows: Vec::new().into_iter(), after: None, is_last: false }
    }

    fn next(&mut self) -> Result<Option<Cells>, SplitError> {
        loop {
            if let Some(row) = self.rows.next() {
                return Ok(Some(row));
            }
            if self.is_last {
                return Ok(None);
            }
            let Page { rows, next } = self.side.run(async |session: &mut Session| {
                self.table.read(session, self.after.clone(), self.set).await
            })?;
            (self.is_last, self.after, self.rows) = (next.is_none(), next, rows.into_iter());
        }
    }
}

/// Adds a redemption to the sums that persist keeps of it.
fn count(row: &Cells, sums: &mut Sums) -> Result<(), StoreError> {
    let number = |place: usize| -> Result<u64, StoreError> {
        mysql_async::from_value_opt(row[place].clone())
            .map_err(|e| StoreError::Corrupt(format!("redemptions: {e}")))
    };
    let units = number(redemption::QUANTITY)?.cast_signed();
    let item = u32::try_from(number(redemption::ITEM)?)
        .map_err(|e| StoreError::Corrupt(format!("redemptions: {e}")))?;
    let sums = sums.entry((number(redemption::JOURNAL)?, item)).or_default();
    match number(redemption::STATE)? {
        1 => sums.held += units,
        2 => sums.confirmed += units,
        3 | 4 => sums.released += units,
        _ => {
            sums.reversed += units;
            sums.retired += if number(redemption::UNITS_BACK)? == 0 { units } else { 0 };
        }
    }
    Ok(())
}

async fn add_stock(
    session: &mut Session,
    (journal, item): (u64, u32),
    sums: StockSums,
) -> Result<(), StoreError> {
    let StockSums { held, confirmed, released, reversed, retired } = sums;
    let sql = "INSERT INTO stock (journal, item, held, confirmed, released, reversed, retired)
               VALUES (?, ?, ?, ?, ?, ?, ?) ON DUPLICATE KEY UPDATE held = held + VALUES(held),
               confirmed = confirmed + VALUES(confirmed), released = released + VALUES(released),
               reversed = reversed + VALUES(reversed), retired = retired + VALUES(retired)";
    let row = (journal, item, held, confirmed, released, reversed, retired);
    session.execute(sql, row).await.map(drop)
}

async fn take_stock(
    session: &mut Session,
    (journal, item): (u64, u32),
    sums: StockSums,
) -> Result<(), StoreError> {
    let StockSums { held, confirmed, released, reversed, retired } = sums;
    let sql = "UPDATE stock SET held = held - ?, confirmed = confirmed - ?,
               released = released - ?, reversed = reversed - ?, retired = retired - ?
               WHERE journal = ? AND item = ?";
    let row = (held, confirmed, released, reversed, retired, journal, item);
    session.execute(sql, row).await.map(drop)
}
