//! The `history-NN` threads: read the database shards for the door.
//!
//! ```text
//!  what the member was told last ─▶ need: a sequence number
//!     a replica whose watermark has passed it ─▶ read there
//!     else the primary, once persist has stored up to there ─▶ read there
//!     else, after a while: unavailable
//! ```

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam::channel::{Receiver, Sender, bounded};
use tokio::sync::oneshot;

use crate::config::StoreConfig;
use crate::http::history::{Answer, Cursor, Entry, History, Question, Shipped};
use crate::journal::tail::DurableMark;
use crate::persist::mysql::MySqlReader;
use crate::persist::rows::{LedgerRow, RedemptionRow};
use crate::persist::status::PersistStatus;
use crate::persist::store::{StatementCursor, StoreError, StoreReader};
use crate::persist::stores::{self, StoresError};
use crate::ship::partition::{DatabaseShard, Layout, Partition};
use crate::units::{ItemIndex, JournalId, MemberId, NodeTime, RedemptionId, Seq, Slot};

/// Threads that read; each with connections of its own.
const THREADS: usize = 2;
/// Questions that wait; beyond, 503 at once.
const QUEUE: usize = 64;
/// How long a page waits for rows that are on their way.
const PATIENCE: Duration = Duration::from_millis(1_500);
/// How often a wait looks again.
const LOOK_EVERY: Duration = Duration::from_millis(20);
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
}

impl Notes {
    fn mark(&self, member: MemberId) -> Option<&AtomicU64> {
        let hash = member.get().wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 50;
        self.marks.get(hash as usize % MARKS)
    }
    // Relaxed all through: a member's next request comes behind the answer that it was told by,
    // and the figure only rises.
    fn need(&self, member: MemberId) -> Seq {
        let noted = self.mark(member).map(|mark| mark.load(Ordering::Relaxed));
        noted.map_or_else(
            || self.durable.get(),
            |seq| Seq::new(seq.max(self.floor.load(Ordering::Relaxed))),
        )
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
            Question::OfItem { item, before, limit } => self.of_item(item, before, limit),
        }
    }

    fn statement(
        &mut self,
        member: MemberId,
        before: Option<Cursor>,
        limit: u16,
    ) -> Result<Answer, StoresError> {
        let slot = Slot::of(member);
        let shard = self.layout.shard_of_slot(slot);
        let partition = Partition::of(slot).expect("a member's slot has a partition");
        let before = before.map(|c| StatementCursor {
            at: NodeTime::new(c.at),
            journal: JournalId::new(c.journal),
            seq: Seq::new(c.seq),
            leg: c.leg,
        });
        let need = self.notes.need(member);
        let rows = match self.replica(shard, partition, need) {
            Some(replica) => replica.statement(member, before, limit).ok(),
            None => None,
        };
        let rows = match rows {
            Some(rows) => rows,
            None if self.is_stored(shard, partition, need) => {
                self.primary(shard, |primary| primary.statement(member, before, limit))?
            }
            None => return Ok(Answer::Unavailable),
        };
        Ok(Answer::Statement(rows.iter().map(entry).collect()))
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
        let journal = self.parts.journal;
        let mut all: Vec<RedemptionRow> = Vec::new();
        for shard in self.layout.shards() {
            let replica = self.replicas[shard.index()].first();
            let rows =
                replica.and_then(|r| r.redemptions_of_item(journal, item, before, limit).ok());
            all.extend(match rows {
                Some(rows) => rows,
                None => self.primary(shard, |primary| {
                    primary.redemptions_of_item(journal, item, before, limit)
                })?,
            });
        }
        all.sort_unstable_by_key(|row| std::cmp::Reverse(row.id));
        all.truncate(usize::from(limit));
        Ok(Answer::OfItem(all.iter().map(shipped).collect()))
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

fn shipped(row: &RedemptionRow) -> Shipped {
    Shipped {
        id: row.id,
        member: row.member,
        quantity: row.quantity,
        points: row.points,
        state: row.state,
        updated_at: row.updated_at,
    }
}
