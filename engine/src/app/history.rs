//! The `history-NN` threads: read the database shards for the door.
//!
//! ```text
//!  what the member was told last ─▶ need: a sequence number
//!     a replica whose watermark has passed it ─▶ read there
//!     else the primary, once persist has stored up to there ─▶ read there
//!     else, after a while: unavailable
//! ```
//! Where a member's rows are says the map, as this process knows it. Behind every read of a
//! member's rows the database is asked whether they are still there: a partition that was given to
//! another database shard is read there.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam::channel::{Receiver, Sender, bounded};
use tokio::sync::oneshot;

use crate::config::StoreConfig;
use crate::http::history::{Answer, Cursor, Entry, History, Question, Stored};
use crate::journal::tail::DurableMark;
use crate::persist::mysql::MySqlReader;
use crate::persist::rows::{LedgerRow, RedemptionRow};
use crate::persist::status::PersistStatus;
use crate::persist::store::{StatementCursor, StoreError, StoreReader};
use crate::persist::stores::{self, StoresError};
use crate::ship::partition::{DatabaseShard, Layout, Partition};
use crate::units::{ItemIndex, JournalId, MemberId, NodeTime, RedemptionId, SLOT_COUNT, Seq, Slot};

/// Threads that read; each with connections of its own.
const THREADS: usize = 2;
/// Questions that wait; beyond, 503 at once.
const QUEUE: usize = 64;
/// How long a page waits for rows that are on their way.
const PATIENCE: Duration = Duration::from_millis(1_500);
/// How often a wait looks again.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Rows of an item that are read at once: some may not count.
const READ_AT_LEAST: u16 = 500;
/// How often a page is tried whose member's partition is on the move.
const TRIES: u32 = 50;
/// Members share these marks by a hash: who shares one waits for a little more than its own.
const MARKS: usize = 1 << 14;

type Asked = (Question, oneshot::Sender<Answer>);

/// What a node tells its history threads.
pub struct HistoryParts {
    pub store: StoreConfig,
    /// Of `SQLite` files.
    pub folder: PathBuf,
    pub journal: JournalId,
    pub durable: Arc<DurableMark>,
    pub status: Arc<PersistStatus>,
}

/// The door's end.
pub struct HistoryHandle {
    questions: Sender<Asked>,
    notes: Arc<Notes>,
}

/// The last durable record when each member was told something.
struct Notes {
    durable: Arc<DurableMark>,
    /// Of all members: what was durable at the start, and at a batch.
    floor: AtomicU64,
    /// Empty where there are no replicas: then everything durable is waited for.
    marks: Box<[AtomicU64]>,
    /// By slot, as the marks are.
    forgotten: Box<[Forgotten]>,
}

/// What a slot has forgotten is read from the databases, as it was told last: also states that
/// came about by themselves, such as an expiry, which no member's mark knows.
#[derive(Default)]
struct Forgotten {
    sales: AtomicU64,
    /// What was durable when memory was first seen without them.
    through: AtomicU64,
}

impl Notes {
    fn mark(&self, member: MemberId) -> Option<&AtomicU64> {
        let hash = member.get().wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 50;
        self.marks.get(hash as usize % MARKS)
    }
    // Relaxed all through: a member's next request comes behind the answer that it was told by,
    // and the figure only rises.
    fn need(&self, member: MemberId) -> Seq {
        let noted = self.mark(member).map(|mark| Seq::new(mark.load(Ordering::Relaxed)));
        noted.unwrap_or_default().max(self.floor())
    }
    /// What everybody was told.
    fn floor(&self) -> Seq {
        if self.marks.is_empty() {
            return self.durable.get();
        }
        Seq::new(self.floor.load(Ordering::Relaxed))
    }
    /// What is needed of a slot that has forgotten so many sales, as memory said just before.
    fn forgotten(&self, slot: Slot, sales: u64) -> Seq {
        let Some(forgotten) = self.forgotten.get(slot.index()) else { return self.durable.get() };
        // Acquire and Release are partners: whoever sees the count sees what goes with it.
        if forgotten.sales.load(Ordering::Acquire) < sales {
            forgotten.through.fetch_max(self.durable.get().get(), Ordering::Relaxed);
            forgotten.sales.fetch_max(sales, Ordering::Release);
        }
        Seq::new(forgotten.through.load(Ordering::Relaxed))
    }
}

impl History for HistoryHandle {
    fn ask(&self, question: Question, answer: oneshot::Sender<Answer>) -> bool {
        self.questions.try_send((question, answer)).is_ok()
    }
    fn note_write(&self, member: MemberId) {
        if let Some(mark) = self.notes.mark(member) {
            mark.fetch_max(self.notes.durable.get().get(), Ordering::Relaxed);
        }
    }
    fn note_writes(&self) {
        if !self.notes.marks.is_empty() {
            self.notes.floor.fetch_max(self.notes.durable.get().get(), Ordering::Relaxed);
        }
    }
}

/// Starts the threads. They end when the handle is gone.
pub fn start(parts: HistoryParts) -> std::io::Result<(HistoryHandle, Vec<JoinHandle<()>>)> {
    let has_replicas = parts.store.mysql.replicas.iter().any(|of_shard| !of_shard.is_empty());
    let notes = Arc::new(Notes {
        durable: Arc::clone(&parts.durable),
        floor: AtomicU64::new(parts.durable.get().get()),
        marks: (0..if has_replicas { MARKS } else { 0 }).map(|_| AtomicU64::new(0)).collect(),
        forgotten: (0..if has_replicas { SLOT_COUNT } else { 0 }).map(|_| <_>::default()).collect(),
    });
    let (questions, asked) = bounded::<Asked>(QUEUE);
    let parts = Arc::new(parts);
    let mut threads = Vec::new();
    for index in 0..THREADS {
        let (parts, notes, asked) = (Arc::clone(&parts), Arc::clone(&notes), asked.clone());
        let builder = std::thread::Builder::new().name(format!("history-{index:02}"));
        threads.push(builder.spawn(move || Reader::new(parts, notes).run(&asked))?);
    }
    Ok((HistoryHandle { questions, notes }, threads))
}

/// One thread's connections, opened when they are first needed.
struct Reader {
    parts: Arc<HistoryParts>,
    notes: Arc<Notes>,
    layout: Layout,
    primaries: Vec<Option<Box<dyn StoreReader>>>,
    replicas: Vec<Vec<MySqlReader>>,
    turn: AtomicUsize,
}

impl Reader {
    fn new(parts: Arc<HistoryParts>, notes: Arc<Notes>) -> Self {
        let layout = parts.status.layout();
        let replicas_of = |shard| {
            let endpoints = stores::replicas(&parts.store.mysql, shard).unwrap_or_default();
            let open = |endpoint| MySqlReader::open(endpoint, shard, layout).ok();
            endpoints.into_iter().filter_map(open).collect()
        };
        let replicas = layout.shards().map(replicas_of).collect();
        let primaries = layout.shards().map(|_| None).collect();
        Self { parts, notes, layout, primaries, replicas, turn: AtomicUsize::new(0) }
    }

    fn run(mut self, asked: &Receiver<Asked>) {
        while let Ok((question, answer)) = asked.recv() {
            let read = self.answer(question).unwrap_or_else(|error| {
                tracing::warn!(%error, "a page of history could not be read");
                Answer::Unavailable
            });
            // A caller that has gone wants nothing.
            let _ = answer.send(read);
        }
    }

    fn answer(&mut self, question: Question) -> Result<Answer, StoresError> {
        match question {
            Question::Statement { member, before, limit } => self.statement(member, before, limit),
            Question::Redemptions { member, before, limit, forgotten_sales } => {
                let need = self.notes.need(member);
                self.redemptions(Slot::of(member), need, forgotten_sales, |reader| {
                    reader.redemptions_of(member, before, limit)
                })
            }
            Question::ByKey { member, key, forgotten_sales } => {
                let need = self.notes.need(member);
                self.redemptions(Slot::of(member), need, forgotten_sales, |reader| {
                    Ok(reader.redemption_by_key(member, key)?.into_iter().collect())
                })
            }
            // It is forgotten: nothing that its member was told later is in its row.
            Question::One { id, forgotten_sales } => {
                let need = self.notes.floor();
                self.redemptions(id.slot(), need, forgotten_sales, |reader| {
                    Ok(reader.redemption(id)?.into_iter().collect())
                })
            }
            Question::OfItem { item, before, limit } => self.of_item(item, before, limit),
        }
    }

    /// Redemptions of one slot, some of which memory has forgotten.
    fn redemptions(
        &mut self,
        slot: Slot,
        need: Seq,
        forgotten_sales: u64,
        read: impl Fn(&dyn StoreReader) -> Result<Vec<RedemptionRow>, StoreError>,
    ) -> Result<Answer, StoresError> {
        let partition = Partition::of(slot).expect("a slot of members has a partition");
        let need = need.max(self.notes.forgotten(slot, forgotten_sales));
        let Some(rows) = self.read_at(partition, need, read)? else {
            return Ok(Answer::Unavailable);
        };
        // Items are numbered by the journal.
        if rows.iter().any(|row| row.journal != self.parts.journal) {
            tracing::error!(slot = slot.get(), "a slot has redemptions of another journal");
            return Ok(Answer::Unavailable);
        }
        Ok(Answer::Redemptions(rows.iter().map(stored).collect()))
    }

    fn statement(
        &mut self,
        member: MemberId,
        before: Option<Cursor>,
        limit: u16,
    ) -> Result<Answer, StoresError> {
        let partition = Partition::of(Slot::of(member)).expect("a member's slot has a partition");
        let before = before.map(|c| StatementCursor {
            at: NodeTime::new(c.at),
            journal: JournalId::new(c.journal),
            seq: Seq::new(c.seq),
            leg: c.leg,
        });
        let need = self.notes.need(member);
        let rows =
            self.read_at(partition, need, |reader| reader.statement(member, before, limit))?;
        Ok(rows.map_or(Answer::Unavailable, |rows| {
            Answer::Statement(rows.iter().map(entry).collect())
        }))
    }

    /// Rows of a partition, where everything up to `need` is; `None` where that is nowhere.
    fn read_at<T>(
        &mut self,
        partition: Partition,
        need: Seq,
        read: impl Fn(&dyn StoreReader) -> Result<Vec<T>, StoreError>,
    ) -> Result<Option<Vec<T>>, StoresError> {
        for _ in 0..TRIES {
            let Some((shard, _)) = self.parts.status.routes().owner(partition) else { break };
            // Rows, if they were all there: what it serves after the read it served before it.
            let read = |reader: &dyn StoreReader| {
                let rows = read(reader)?;
                Ok(reader.holdings()?.serves(partition).then_some(rows))
            };
            let replica = self.replica(shard, partition, need);
            let rows = match replica.and_then(|replica| read(replica).ok()).flatten() {
                Some(rows) => Some(rows),
                None if self.is_stored(shard, partition, need) => self.primary(shard, read)?,
                None => break,
            };
            if rows.is_some() {
                return Ok(rows);
            }
            // It has moved, and this process is about to hear of it.
            std::thread::sleep(LOOK_EVERY);
        }
        Ok(None)
    }

    /// A replica that has everything up to there.
    fn replica(
        &self,
        shard: DatabaseShard,
        partition: Partition,
        need: Seq,
    ) -> Option<&MySqlReader> {
        let replicas = &self.replicas[shard.index()];
        let first = self.turn.fetch_add(1, Ordering::Relaxed);
        let in_turn = (0..replicas.len()).map(|n| &replicas[(first + n) % replicas.len()]);
        let journal = self.parts.journal;
        in_turn.into_iter().find(|replica| {
            let rows = replica.watermarks().unwrap_or_default();
            rows.iter().any(|row| {
                row.stream.journal == journal
                    && row.stream.partition == partition
                    && row.watermark.seq >= need
            })
        })
    }

    /// Waits until the primary has everything up to there.
    fn is_stored(&self, shard: DatabaseShard, partition: Partition, need: Seq) -> bool {
        let status = self.parts.status.shard(shard);
        let mut left = PATIENCE;
        while status.persisted(partition) < need {
            if left.is_zero() {
                return false;
            }
            // Whoever waits there has persist hold nothing back for a fuller batch.
            self.parts.status.wait_persisted(need, LOOK_EVERY);
            left = left.saturating_sub(LOOK_EVERY);
        }
        true
    }

    fn primary<T>(
        &mut self,
        shard: DatabaseShard,
        read: impl Fn(&dyn StoreReader) -> Result<T, StoreError>,
    ) -> Result<T, StoresError> {
        let HistoryParts { store, folder, .. } = &*self.parts;
        let primary = match self.primaries[shard.index()].take() {
            Some(primary) => primary,
            None => stores::reader(store, folder, shard, self.layout)?,
        };
        let done = read(&*primary);
        // One that failed is opened anew.
        if done.is_ok() {
            self.primaries[shard.index()] = Some(primary);
        }
        done.map_err(|source| StoresError::Store { shard, source })
    }

    /// Of all database shards, newest first; from replicas where there are any, however far they
    /// are.
    fn of_item(
        &mut self,
        item: ItemIndex,
        before: Option<RedemptionId>,
        limit: u16,
    ) -> Result<Answer, StoresError> {
        let routes = self.parts.status.routes();
        let owners: Vec<_> =
            Partition::all().map(|p| routes.owner(p).map(|(owner, _)| owner)).collect();
        let mut all: Vec<RedemptionRow> = Vec::new();
        for shard in self.layout.shards() {
            // While a partition moves its rows are in two places: those of its owner count.
            let is_owned = |row: &RedemptionRow| {
                Partition::of(row.id.slot()).is_some_and(|p| owners[p.index()] == Some(shard))
            };
            let size = limit.max(READ_AT_LEAST);
            let read = |before| self.read_of_item(shard, item, before, size);
            all.extend(owned(before, (limit, size), read, is_owned)?);
        }
        all.sort_unstable_by_key(|row| std::cmp::Reverse(row.id));
        all.truncate(usize::from(limit));
        Ok(Answer::OfItem(all.iter().map(stored).collect()))
    }

    fn read_of_item(
        &mut self,
        shard: DatabaseShard,
        item: ItemIndex,
        before: Option<RedemptionId>,
        size: u16,
    ) -> Result<Vec<RedemptionRow>, StoresError> {
        let journal = self.parts.journal;
        let replica = self.replicas[shard.index()].first();
        match replica.and_then(|r| r.redemptions_of_item(journal, item, before, size).ok()) {
            Some(rows) => Ok(rows),
            None => self
                .primary(shard, |primary| primary.redemptions_of_item(journal, item, before, size)),
        }
    }
}

/// The newest `limit` rows that count. Reads of `size` rows go on until there are so many, or no
/// more rows at all: fewer than `limit` are the last ones.
fn owned<E>(
    before: Option<RedemptionId>,
    (limit, size): (u16, u16),
    mut read: impl FnMut(Option<RedemptionId>) -> Result<Vec<RedemptionRow>, E>,
    is_owned: impl Fn(&RedemptionRow) -> bool,
) -> Result<Vec<RedemptionRow>, E> {
    let (mut all, mut before) = (Vec::new(), before);
    loop {
        let rows = read(before)?;
        let is_last = rows.len() < usize::from(size);
        before = rows.last().map(|row| row.id);
        all.extend(rows.into_iter().filter(&is_owned));
        if is_last || all.len() >= usize::from(limit) {
            all.truncate(usize::from(limit));
            return Ok(all);
        }
    }
}

fn entry(row: &LedgerRow) -> Entry {
    Entry {
        cursor: Cursor {
            at: row.at.get(),
            journal: row.journal.get(),
            seq: row.seq.get(),
            leg: row.leg,
        },
        kind: row.kind.name(),
        account: row.account.name(),
        amount: row.amount,
        redemption: row.redemption,
    }
}

fn stored(row: &RedemptionRow) -> Stored {
    Stored {
        id: row.id,
        member: row.member,
        item: row.item,
        quantity: row.quantity,
        points: row.points,
        state: row.state,
        expires_at: row.expires_at,
        updated_at: row.updated_at,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::command::RedemptionState;
    use crate::units::{KeyHash, Points, Quantity};

    fn row(number: u64) -> RedemptionRow {
        let (at, journal) = (NodeTime::new(number), JournalId::new(1));
        RedemptionRow {
            id: RedemptionId::new(at, Slot::new(0), journal, number),
            member: MemberId::new(1),
            journal,
            item: ItemIndex::new(0),
            quantity: Quantity::new(1),
            points: Points::ZERO,
            state: RedemptionState::Confirmed,
            key: KeyHash::default(),
            expires_at: NodeTime::new(0),
            updated_at: at,
            units_back: false,
            seq: Seq::new(number),
        }
    }

    /// [A page whose rows were partly another database shard's was short, and read as the last.]
    #[test]
    fn a_page_is_short_only_where_it_is_the_last() {
        let stored: Vec<_> = (1..=20).rev().map(row).collect();
        for owned_every in 1..=21 {
            for (limit, size) in [(1, 1), (1, 5), (3, 3), (3, 4), (20, 20), (30, 30)] {
                let mut reads = 0;
                let read = |before: Option<RedemptionId>| -> Result<_, StoreError> {
                    reads += 1;
                    let rows = stored.iter().filter(|row| before.is_none_or(|id| row.id < id));
                    Ok(rows.take(usize::from(size)).copied().collect())
                };
                let is_owned = |row: &RedemptionRow| row.seq.get().is_multiple_of(owned_every);
                let before = Some(row(19).id);
                let page = owned(before, (limit, size), read, is_owned).unwrap();
                let expected = stored.iter().filter(|row| row.seq.get() < 19 && is_owned(row));
                let expected: Vec<_> = expected.take(usize::from(limit)).copied().collect();
                assert_eq!(page, expected, "every {owned_every}, pages of {limit}, {size}");
                assert!(reads <= 18 / size + 1);
            }
        }
    }
}
