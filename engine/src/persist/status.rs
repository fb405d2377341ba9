//! How far persist is: read by the journal (which segments may go), by metrics, and by whoever
//! waits for the database shards to catch up.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use super::lost_tail::Opening;
use super::routes::Routes;
use super::store::WatermarkRow;
use crate::planted::{self, Bug};
use crate::ship::gap::Alarm;
use crate::ship::log::Head;
use crate::ship::partition::{DatabaseShard, Layout, PARTITION_COUNT, Partition};
use crate::units::{NodeTime, Seq};

/// Alarms kept in words; beyond, they are only counted.
const ALARMS_KEPT: usize = 64;

/// One database shard's part of [`PersistStatus`].
///
/// Every atomic is a figure of its own, written by the shard's persist thread alone; readers see
/// each a moment late. Relaxed, but for the persisted sequence numbers (see `set_persisted`).
pub struct ShardStatus {
    persisted: [AtomicU64; PARTITION_COUNT],
    persisted_node_ms: AtomicU64,
    /// Node time at which it was last seen to have everything; the start's, where it never was.
    complete_node_ms: AtomicU64,
    pub batches: AtomicU64,
    pub records: AtomicU64,
    /// Records that came again and were left out.
    pub skipped: AtomicU64,
    /// Transactions that failed and were tried again.
    pub retries: AtomicU64,
    pub rewinds: AtomicU64,
    pub alarm_count: AtomicU64,
    /// Letters not applied yet, parked ones included.
    pub letters: AtomicU64,
    /// What its first answer says against the journal's opening.
    contradiction: OnceLock<Option<Alarm>>,
    alarms: Mutex<Vec<String>>,
    last_error: Mutex<Option<String>>,
}

/// How far persist is, in all its database shards.
pub struct PersistStatus {
    layout: Layout,
    routes: Routes,
    /// Of this node's journal, where it has one.
    opening: OnceLock<Opening>,
    /// Per partition: it is shipped, since some database shard said how far it has it. Relaxed:
    /// written and read by the thread that asks the databases, or set before others ask them.
    is_begun: [AtomicBool; PARTITION_COUNT],
    shards: Vec<ShardStatus>,
    head_seq: AtomicU64,
    head_node_ms: AtomicU64,
    /// Those who wait for records to be stored.
    waiters: AtomicU64,
    moved: Mutex<()>,
    moved_signal: Condvar,
}

/// How far behind the journal the slowest database shard is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Lag {
    pub records: u64,
    /// Node time between the last record and the last one stored.
    pub ms: u64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ShardStatus {
    fn new() -> Self {
        Self {
            persisted: [const { AtomicU64::new(0) }; PARTITION_COUNT],
            persisted_node_ms: AtomicU64::new(0),
            complete_node_ms: AtomicU64::new(0),
            batches: AtomicU64::new(0),
            records: AtomicU64::new(0),
            skipped: AtomicU64::new(0),
            retries: AtomicU64::new(0),
            rewinds: AtomicU64::new(0),
            alarm_count: AtomicU64::new(0),
            letters: AtomicU64::new(0),
            contradiction: OnceLock::new(),
            alarms: Mutex::new(Vec::new()),
            last_error: Mutex::new(None),
        }
    }
    /// Everything of this partition up to here is in the database.
    pub fn persisted(&self, partition: Partition) -> Seq {
        Seq::new(self.persisted[partition.index()].load(Ordering::Acquire))
    }
    pub(super) fn set_persisted(&self, partition: Partition, seq: Seq) {
        // Release, with the Acquire of readers: who sees the number also finds what the commit
        // before it changed.
        self.persisted[partition.index()].store(seq.get(), Ordering::Release);
    }
    /// Node time of the newest record in the database. Units: milliseconds; 0: none yet.
    pub fn persisted_node_ms(&self) -> u64 {
        self.persisted_node_ms.load(Ordering::Relaxed)
    }
    /// How long it has lacked something. Units: milliseconds.
    ///
    /// † Not since its newest record alone, which may lie far back where nothing happened [after a
    /// quiet night the first record looked like a lag of hours].
    pub fn behind_ms(&self, now: NodeTime) -> u64 {
        let stored = self.persisted_node_ms();
        now.get().saturating_sub(stored.max(self.complete_node_ms.load(Ordering::Relaxed)))
    }
    pub(super) fn set_node_time(&self, at: NodeTime) {
        self.persisted_node_ms.fetch_max(at.get(), Ordering::Relaxed);
    }
    pub(super) fn alarm(&self, alarm: &Alarm) {
        self.alarm_text(alarm.to_string());
    }
    pub(super) fn alarm_text(&self, text: String) {
        self.alarm_count.fetch_add(1, Ordering::Relaxed);
        let mut alarms = lock(&self.alarms);
        if alarms.len() < ALARMS_KEPT && !alarms.contains(&text) {
            alarms.push(text);
        }
    }
    /// What a person must look at, in words.
    pub fn alarms(&self) -> Vec<String> {
        lock(&self.alarms).clone()
    }
    pub(super) fn set_error(&self, error: Option<String>) {
        *lock(&self.last_error) = error;
    }
    /// Why the last transaction failed; `None` since one succeeded.
    pub fn last_error(&self) -> Option<String> {
        lock(&self.last_error).clone()
    }
}

impl PersistStatus {
    pub fn new(layout: Layout) -> Self {
        Self {
            layout,
            routes: Routes::default(),
            opening: OnceLock::new(),
            is_begun: [const { AtomicBool::new(false) }; PARTITION_COUNT],
            shards: layout.shards().map(|_| ShardStatus::new()).collect(),
            head_seq: AtomicU64::new(0),
            head_node_ms: AtomicU64::new(0),
            waiters: AtomicU64::new(0),
            moved: Mutex::new(()),
            moved_signal: Condvar::new(),
        }
    }
    /// How many database shards there are, by the settings. Where partitions lie, `routes` knows.
    pub fn layout(&self) -> Layout {
        self.layout
    }
    /// How the journal stood when this node opened it: the databases must not know more of it.
    pub fn opening(&self) -> Option<Opening> {
        self.opening.get().copied()
    }
    /// Notes how the journal was opened, before anything is written.
    pub fn set_opening(&self, opening: Opening) {
        let _ = self.opening.set(opening);
    }
    /// A partition is shipped from here on: records of this opening may be stored anywhere.
    pub(super) fn begin(&self, partition: Partition) {
        self.is_begun[partition.index()].store(true, Ordering::Relaxed);
    }
    /// What a database shard's first answer says against the opening of this node's journal: that
    /// it knows more of it than the journal did itself.
    ///
    /// † Not what this opening has written meanwhile: a database shard that answers late may have
    /// records of partitions that are shipped since another one answered, stored by a persist
    /// process elsewhere [it was taken for an old copy, and nothing was shipped for it any more].
    pub(super) fn contradiction(
        &self,
        shard: DatabaseShard,
        rows: &[WatermarkRow],
    ) -> Option<Alarm> {
        let opening = self.opening()?;
        let is_ours = |row: &WatermarkRow| {
            let is_begun = &self.is_begun[row.stream.partition.index()];
            row.watermark.incarnation == opening.next
                && is_begun.load(Ordering::Relaxed)
                && !planted::is(Bug::OwnTakenForCopy)
        };
        let compare = || {
            let row = rows.iter().find(|row| opening.is_behind(row) && !is_ours(row))?;
            let (watermark, incarnation) = (row.watermark, opening.next);
            Some(Alarm::OldCopy { watermark, incarnation, seq: opening.last.next() })
        };
        *self.shard(shard).contradiction.get_or_init(compare)
    }
    pub fn routes(&self) -> &Routes {
        &self.routes
    }
    pub fn shard(&self, shard: DatabaseShard) -> &ShardStatus {
        &self.shards[shard.index()]
    }
    pub fn shards(&self) -> impl Iterator<Item = (DatabaseShard, &ShardStatus)> {
        self.layout.shards().zip(&self.shards)
    }
    /// Everything up to here is in the database shards: segments below may go, as far as they
    /// are concerned (I9).
    pub fn persisted_through(&self) -> Seq {
        let is_mapped =
            Partition::all().all(|p| p == Partition::CONTROL || self.routes.owner(p).is_some());
        if !is_mapped {
            return Seq::NONE;
        }
        self.shards().filter_map(|(shard, _)| self.through(shard)).min().unwrap_or_default()
    }
    /// The same, of one database shard. One that holds nothing yet has it all.
    pub fn shard_through(&self, shard: DatabaseShard) -> Seq {
        self.through(shard).unwrap_or(Seq::new(self.head_seq.load(Ordering::Relaxed)))
    }
    /// `None`: it holds nothing.
    fn through(&self, shard: DatabaseShard) -> Option<Seq> {
        if !self.routes.has_heard(shard) {
            return Some(Seq::NONE);
        }
        let status = self.shard(shard);
        let partitions = Partition::all().filter(|p| self.routes.reads(shard, *p));
        partitions.map(|p| status.persisted(p)).min()
    }
    /// Notes which database shards have everything up to the journal's end, at this moment.
    pub fn note_complete(&self, end: Seq, now: NodeTime) {
        for (shard, status) in self.shards() {
            let was_never_noted = status.complete_node_ms.load(Ordering::Relaxed) == 0;
            if was_never_noted || self.shard_through(shard) >= end {
                status.complete_node_ms.fetch_max(now.get(), Ordering::Relaxed);
            }
        }
    }
    pub fn lag(&self) -> Lag {
        let head = self.head_seq.load(Ordering::Relaxed);
        let records = head.saturating_sub(self.persisted_through().get());
        if records == 0 {
            return Lag::default();
        }
        let node_ms = |s: &ShardStatus| s.persisted_node_ms.load(Ordering::Relaxed);
        let slowest = self.shards.iter().map(node_ms).min().unwrap_or(0);
        Lag { records, ms: self.head_node_ms.load(Ordering::Relaxed).saturating_sub(slowest) }
    }
    /// Alarms of all database shards.
    pub fn alarms(&self) -> Vec<String> {
        let named = |(shard, status): (DatabaseShard, &ShardStatus)| {
            let named = move |text| format!("database shard {}: {text}", shard.get());
            status.alarms().into_iter().map(named).collect::<Vec<_>>()
        };
        self.shards().flat_map(named).collect()
    }
    /// Letters of all database shards, not applied yet.
    pub fn letters(&self) -> u64 {
        self.shards.iter().map(|s| s.letters.load(Ordering::Relaxed)).sum()
    }
    pub(super) fn set_head(&self, head: Head) {
        self.head_seq.fetch_max(head.seq.get(), Ordering::Relaxed);
        self.head_node_ms.fetch_max(head.node_time.get(), Ordering::Relaxed);
    }
    /// Whether somebody waits: then nothing is held back for a fuller batch.
    pub(super) fn has_waiters(&self) -> bool {
        self.waiters.load(Ordering::Relaxed) > 0
    }
    /// Tells those who wait to look again.
    pub(super) fn notify(&self) {
        drop(lock(&self.moved));
        self.moved_signal.notify_all();
    }
    /// Waits until everything up to `seq` is in the database shards; `false` when it took longer.
    pub fn wait_persisted(&self, seq: Seq, timeout: Duration) -> bool {
        self.waiters.fetch_add(1, Ordering::Relaxed);
        let guard = lock(&self.moved);
        let behind = |(): &mut ()| self.persisted_through() < seq;
        let waited = self.moved_signal.wait_timeout_while(guard, timeout, behind);
        let result = waited.unwrap_or_else(PoisonError::into_inner).1;
        self.waiters.fetch_sub(1, Ordering::Relaxed);
        !result.timed_out()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shard_is_behind_since_it_last_had_everything_or_by_its_newest_record() {
        let status = PersistStatus::new(Layout::new(1).unwrap());
        let shard = status.shard(DatabaseShard::new(0));
        let at = NodeTime::new;
        // Behind from the start: since the start, as far as anybody knows.
        status.note_complete(Seq::new(5), at(1_000));
        status.note_complete(Seq::new(5), at(2_000));
        assert_eq!(shard.behind_ms(at(2_500)), 1_500);
        // It has everything, for hours; then there is a record that it lacks.
        status.note_complete(Seq::NONE, at(9_000_000));
        status.note_complete(Seq::new(6), at(9_000_100));
        assert_eq!(shard.behind_ms(at(9_000_150)), 150);
        // It follows, without ever having all.
        shard.set_node_time(at(9_500_000));
        assert_eq!(shard.behind_ms(at(9_500_040)), 40);
    }
}
