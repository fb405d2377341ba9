//! A database shard as the simulation has it: watermarks, offsets, rewind requests, and of the rows
//! so much that what is missing, doubled or foreign among them shows.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};

use crate::persist::store::{
    Letter, LetterId, RewindRequest, Store, StoreBatch, StoreError, Stream, WatermarkRow,
};
use crate::ship::gap::Watermark;
use crate::ship::holdings::Holdings;
use crate::ship::log::LogOffset;
use crate::ship::partition::{DatabaseShard, Layout, Partition};
use crate::units::{NodeTime, Seq};

/// Copies that are kept.
const COPIES_MAX: usize = 3;

/// What the rows of a stream come to: how many records they are of, and a sum of those records.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Rows {
    pub count: u64,
    pub sum: u64,
}

/// How a transaction goes wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CommitFault {
    /// It is rolled back, and the process ends.
    CrashBefore,
    /// It is committed, and the process ends.
    CrashAfter,
    /// It is rolled back.
    FailBefore,
    /// It is committed, but nobody hears of it.
    FailAfter,
}

/// What survives.
#[derive(Clone, Default)]
struct Tables {
    watermarks: BTreeMap<Stream, (Watermark, NodeTime)>,
    rows: BTreeMap<Stream, Rows>,
    offsets: BTreeMap<Partition, LogOffset>,
    rewinds: BTreeSet<(Stream, Seq)>,
}

struct Server {
    shard: DatabaseShard,
    holdings: Holdings,
    tables: Tables,
    copies: VecDeque<Tables>,
    is_down_until_ms: u64,
    now_ms: u64,
    /// Raised when it is started again: older sessions are gone then.
    session: u64,
    fault: Option<CommitFault>,
    /// Whoever made the last transaction is to end.
    is_crashing: bool,
    touched: Vec<Stream>,
    commits: u64,
}

/// The handle to it.
#[derive(Clone)]
pub struct Database(Arc<Mutex<Server>>);

impl Database {
    pub fn new(shard: DatabaseShard, layout: Layout) -> Self {
        Self(Arc::new(Mutex::new(Server {
            shard,
            holdings: Holdings::spread(layout, shard),
            tables: Tables::default(),
            copies: VecDeque::new(),
            is_down_until_ms: 0,
            now_ms: 0,
            session: 0,
            fault: None,
            is_crashing: false,
            touched: Vec::new(),
            commits: 0,
        })))
    }

    fn lock(&self) -> MutexGuard<'_, Server> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// A connection of a process.
    pub fn connect(&self) -> SimStore {
        let Server { shard, session, .. } = *self.lock();
        SimStore { shard, session, server: self.clone() }
    }

    pub fn set_time(&self, now_ms: u64) {
        self.lock().now_ms = now_ms;
    }
    pub fn stop(&self, ms: u64) {
        let mut server = self.lock();
        server.is_down_until_ms = server.now_ms + ms;
        server.session += 1;
    }
    pub fn heal(&self) {
        let mut server = self.lock();
        server.is_down_until_ms = 0;
        server.fault = None;
    }
    /// The next transaction goes wrong.
    pub fn break_commit(&self, fault: CommitFault) {
        self.lock().fault = Some(fault);
    }
    pub fn keep_copy(&self) {
        let mut server = self.lock();
        let copy = server.tables.clone();
        server.copies.push_front(copy);
        server.copies.truncate(COPIES_MAX);
    }
    /// It is set back to its oldest copy; whether there is one.
    pub fn restore(&self) -> bool {
        let mut server = self.lock();
        let Some(copy) = server.copies.pop_back() else { return false };
        server.tables = copy;
        server.session += 1;
        server.touched = server.tables.watermarks.keys().copied().collect();
        true
    }

    /// Whether the process behind the last transaction ends with it; asked once.
    pub fn is_crashing(&self) -> bool {
        std::mem::take(&mut self.lock().is_crashing)
    }
    /// Streams that have changed since this was last asked.
    pub fn touched(&self) -> Vec<Stream> {
        std::mem::take(&mut self.lock().touched)
    }
    pub fn stands(&self, stream: Stream) -> (Watermark, Rows) {
        let server = self.lock();
        let watermark = server.tables.watermarks.get(&stream).map(|(w, _)| *w);
        let rows = server.tables.rows.get(&stream).copied();
        (watermark.unwrap_or_default(), rows.unwrap_or_default())
    }
    pub fn partitions(&self) -> Vec<Partition> {
        self.lock().holdings.partitions().collect()
    }
    pub fn commits(&self) -> u64 {
        self.lock().commits
    }
}

impl Server {
    fn commit(&mut self, batch: &StoreBatch<'_>) -> Result<(), StoreError> {
        if batch.map != self.holdings.version {
            let (expected, found) = (batch.map, self.holdings.version);
            return Err(StoreError::Map { expected, found });
        }
        for step in batch.moves {
            let found = self.tables.watermarks.get(&step.stream).map(|(w, _)| *w);
            let (stream, expected, found) = (step.stream, step.expected, found.unwrap_or_default());
            if found != expected {
                return Err(StoreError::Watermark { stream, expected, found });
            }
        }
        assert!(batch.letters.is_empty(), "a good record was not applied: {:?}", batch.letters);
        for ((journal, slot), (count, sum)) in &batch.effects.slots {
            let partition = Partition::of(*slot).expect("a slot that there is");
            let rows = self.tables.rows.entry(Stream { journal: *journal, partition }).or_default();
            rows.count += count;
            rows.sum = rows.sum.wrapping_add(*sum);
            self.touched.push(Stream { journal: *journal, partition });
        }
        for step in batch.moves {
            self.tables.watermarks.insert(step.stream, (step.next, step.at));
            self.tables.rewinds.retain(|(of, to)| *of != step.stream || step.next.seq <= *to);
            self.touched.push(step.stream);
        }
        self.tables.offsets.extend(batch.offsets.next.iter().copied());
        self.commits += 1;
        Ok(())
    }
}

fn unavailable(why: &str) -> StoreError {
    StoreError::Unavailable(why.into())
}

/// A process's end of it.
pub struct SimStore {
    shard: DatabaseShard,
    session: u64,
    server: Database,
}

impl SimStore {
    /// Errors: it is down, or the session is gone; the next call opens another.
    fn server(&mut self) -> Result<MutexGuard<'_, Server>, StoreError> {
        let server = self.server.lock();
        if std::mem::replace(&mut self.session, server.session) != server.session {
            return Err(unavailable("the session is gone"));
        }
        if server.now_ms < server.is_down_until_ms {
            return Err(unavailable("it is down"));
        }
        Ok(server)
    }
}

impl Store for SimStore {
    fn shard(&self) -> DatabaseShard {
        self.shard
    }

    fn holdings(&mut self) -> Result<Holdings, StoreError> {
        Ok(self.server()?.holdings)
    }

    fn watermarks(&mut self) -> Result<Vec<WatermarkRow>, StoreError> {
        let server = self.server()?;
        let rows = server.tables.watermarks.iter();
        let row = |(stream, (watermark, at)): (&Stream, &(Watermark, NodeTime))| WatermarkRow {
            stream: *stream,
            watermark: *watermark,
            at: *at,
        };
        Ok(rows.map(row).collect())
    }

    fn apply(&mut self, batch: &StoreBatch<'_>) -> Result<(), StoreError> {
        let mut server = self.server()?;
        let fault = server.fault.take();
        let is_crash = matches!(fault, Some(CommitFault::CrashBefore | CommitFault::CrashAfter));
        server.is_crashing = is_crash;
        match fault {
            None => server.commit(batch),
            Some(CommitFault::CrashBefore | CommitFault::FailBefore) => {
                Err(unavailable("rolled back"))
            }
            Some(CommitFault::CrashAfter | CommitFault::FailAfter) => {
                server.commit(batch)?;
                Err(unavailable("no answer to the commit"))
            }
        }
    }

    fn ask_rewind(&mut self, stream: Stream, to: Seq, _: &str) -> Result<(), StoreError> {
        self.server()?.tables.rewinds.insert((stream, to));
        Ok(())
    }

    fn rewinds(&mut self) -> Result<Vec<RewindRequest>, StoreError> {
        let server = self.server()?;
        let rewinds = server.tables.rewinds.iter();
        Ok(rewinds.map(|(stream, to)| RewindRequest { stream: *stream, to: *to }).collect())
    }

    fn offsets(&mut self, _: &str) -> Result<Vec<(Partition, LogOffset)>, StoreError> {
        Ok(self.server()?.tables.offsets.iter().map(|(p, offset)| (*p, *offset)).collect())
    }

    fn letters(&mut self, _: LetterId, _: u32) -> Result<Vec<(LetterId, Letter)>, StoreError> {
        self.server().map(|_| Vec::new())
    }

    fn letter_failed(&mut self, _: LetterId, _: &str) -> Result<(), StoreError> {
        unreachable!("there are no letters")
    }
}
