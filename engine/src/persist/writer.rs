//! One database shard's consumer. It decides nothing by the clock: the driver tells it the time.
//!
//! ```text
//!  poll the log ─▶ judge (gap rule) ─▶ fold into rows ─▶ one transaction ─▶ publish
//!       ▲               │ gap: ask for a rewind             │ unavailable: back off, read again
//!       │               │ alarm: hold the stream            │ watermark: read them, read again
//!       └───────────────┴───────────────────────────────────┘ data: bisect, dead letter, park
//! ```
//! Whatever fails, nothing is skipped: the log is read again from the watermarks that the
//! database has.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::apply::{At, DataError, Effects, member_of};
use super::status::{PersistStatus, ShardStatus};
use super::store::{
    Letter, LetterState, Offsets, Store, StoreBatch, StoreError, Stream, WatermarkMove,
};
use crate::kernel::record::{Record, RecordError, RecordHead};
use crate::planted::{self, Bug};
use crate::ship::gap::{Alarm, Verdict, Watermark};
use crate::ship::holdings::{Holdings, MapVersion};
use crate::ship::log::{Log, LogBatch, LogError, LogOffset, LogRecord, Mark};
use crate::ship::partition::{DatabaseShard, Partition};
use crate::units::{JournalId, MemberId, Seq, Slot};

mod letters;
mod standing;

use letters::Parked;

/// Looked at for every record, by keys of our own: a fast hash will do.
type HashMap<K, V> = std::collections::HashMap<K, V, foldhash::fast::FixedState>;
type HashSet<K> = std::collections::HashSet<K, foldhash::fast::FixedState>;

/// How far each stream is applied.
pub type Watermarks = HashMap<Stream, Watermark>;

/// A log that is far ahead is read in batches so many times as large: the pages that many records
/// touch, and the sync, are paid once for all of them.
const CATCH_UP_FACTOR: usize = 4;
/// A record is tried so often before it becomes a dead letter.
const TRIES: u32 = 3;
/// Pause after the first failure; doubled up to the second figure. Units: milliseconds.
const BACKOFF_MS: (u64, u64) = (20, 5_000);
/// A failure is over once a batch was stored, or so long without another. Units: milliseconds.
///
/// † Not once a step went well [behind Kafka the first one after a re-read finds nothing yet: the
/// pause never grew, and what was wrong was told for milliseconds at a time].
const CALM_MS: u64 = 2 * BACKOFF_MS.1;
/// How long a rewind request may stay unanswered before it is made again. Units: milliseconds.
const REWIND_AGAIN_MS: u64 = 5_000;
/// How often the map of partitions is looked at, where no batch finds that it has changed.
/// Units: milliseconds.
const MAP_EVERY_MS: u64 = 1_000;
/// Pause at the log's end while somebody waits. Units: milliseconds.
const URGENT_MS: u64 = 2;

/// How a writer batches.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WriterSettings {
    /// Records in one transaction; four times as many while it catches up.
    pub batch: usize,
    /// How long records may wait for a fuller batch.
    pub linger_ms: u64,
    /// How often an idle partition's watermark is moved.
    pub mark_every_ms: u64,
    /// How often letters are tried again.
    pub letters_every_ms: u64,
    /// Other nodes' journals have rows here too; their claims part them.
    pub is_shared: bool,
}

impl Default for WriterSettings {
    fn default() -> Self {
        Self {
            batch: 4096,
            linger_ms: 50,
            mark_every_ms: 1_000,
            letters_every_ms: 60_000,
            is_shared: false,
        }
    }
}

/// A record that is to be applied.
struct Planned {
    /// Its place in the batch.
    index: usize,
    stream: Stream,
    /// The watermark behind it.
    after: Watermark,
    slot: Slot,
    member: Option<MemberId>,
    record: Result<Record, DataError>,
}

/// When to look again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Next {
    Now,
    AfterMs(u64),
}

/// What went wrong last, and how often without a success in between.
#[derive(Clone, Copy, Default)]
struct Trouble {
    failures: u32,
    /// Units: monotonic milliseconds.
    at_ms: u64,
    /// Only a newer program can read what comes: what is stored meanwhile does not change that.
    needs_newer: bool,
}

/// One database shard's consumer.
pub struct ShardWriter<L, S> {
    log: L,
    store: S,
    shard: DatabaseShard,
    settings: WriterSettings,
    status: Arc<PersistStatus>,
    /// What the database holds, as it said last; `None` before it was asked.
    map: Option<Holdings>,
    map_due_ms: u64,
    /// What the database is known to have.
    committed: Watermarks,
    /// Streams of another history: nothing of them is applied until a person has looked.
    halted: HashSet<Stream>,
    /// Rewinds asked for, and when.
    rewinding: HashMap<Stream, (Seq, u64)>,
    parked: Parked,
    letters_due_ms: u64,
    marked_at_ms: u64,
    /// What the database has is not known, and read before anything else.
    is_in_doubt: bool,
    trouble: Trouble,
    /// What is still missing although it was asked for: see [`Self::is_overtaken`].
    asked_again: Vec<Stream>,
    /// In this step.
    has_stored: bool,
    /// The last poll left records behind.
    is_behind: bool,
    batch: LogBatch,
    plan: Vec<Planned>,
    effects: Effects,
}

impl<L: Log, S: Store> ShardWriter<L, S> {
    /// Reads the watermarks, and lets `open_log` open the log behind them.
    ///
    /// A database that cannot be reached just now is no error: its watermarks are read, and the
    /// log is wound to them, once it can be.
    pub fn open(
        mut store: S,
        settings: WriterSettings,
        status: Arc<PersistStatus>,
        open_log: impl FnOnce(&[Partition], &Watermarks) -> L,
    ) -> Result<Self, StoreError> {
        let (map, rows, held_up) = match store.standing() {
            Ok((map, rows)) => (Some(map), rows, None),
            Err(error) if error.is_transient() => (None, Vec::new(), Some(error)),
            Err(error) => return Err(error),
        };
        let held: Vec<_> = map.iter().flat_map(Holdings::partitions).collect();
        let own = rows.iter().filter(|r| held.contains(&r.stream.partition));
        let mut committed: Watermarks = own.map(|r| (r.stream, r.watermark)).collect();
        let log = open_log(&held, &committed);
        if settings.is_shared {
            committed.retain(|stream, _| log.journal().is_none_or(|own| own == stream.journal));
        }
        let mut writer = Self::unread(store, settings, status, log);
        writer.committed = committed;
        if let Some(map) = map {
            writer.take_map(map);
        }
        writer.is_in_doubt = false;
        if writer.map.is_some() {
            writer.compare_opening(&rows);
        }
        let loaded = held_up.map_or_else(|| writer.load_parked(), Err);
        if let Err(error) = loaded {
            if !error.is_transient() {
                return Err(error);
            }
            writer.failed(&error.into(), 0);
        }
        for row in rows {
            writer.shard_status().set_node_time(row.at);
        }
        writer.publish();
        Ok(writer)
    }

    /// A writer that has read nothing yet: it reads its watermarks before its first batch, and
    /// tries until it can.
    pub fn unread(store: S, settings: WriterSettings, status: Arc<PersistStatus>, log: L) -> Self {
        let shard = store.shard();
        Self {
            log,
            store,
            shard,
            settings,
            status,
            map: None,
            map_due_ms: 0,
            committed: Watermarks::default(),
            halted: HashSet::default(),
            rewinding: HashMap::default(),
            parked: Parked::default(),
            letters_due_ms: 0,
            marked_at_ms: 0,
            is_in_doubt: true,
            trouble: Trouble::default(),
            asked_again: Vec::new(),
            has_stored: false,
            is_behind: false,
            batch: LogBatch::default(),
            plan: Vec::new(),
            effects: Effects::default(),
        }
    }

    pub fn shard(&self) -> DatabaseShard {
        self.shard
    }
    /// The journals that the database has records of.
    pub fn journals(&self) -> impl Iterator<Item = JournalId> {
        self.committed.keys().map(|stream| stream.journal)
    }
    pub fn status(&self) -> &Arc<PersistStatus> {
        &self.status
    }
    /// The store, for what a test wants to look at or break.
    #[cfg(test)]
    pub(super) fn store(&self) -> &S {
        &self.store
    }
    /// Whether a partition is written here.
    fn holds(&self, partition: Partition) -> bool {
        self.map.is_some_and(|map| map.holds(partition))
    }
    fn shard_status(&self) -> &ShardStatus {
        self.status.shard(self.shard)
    }

    /// Whether everything up to `seq` is stored, but for what an alarm holds.
    pub fn has_stored(&self, seq: Seq) -> bool {
        let stored =
            |(stream, w): &(Stream, Watermark)| self.halted.contains(stream) || w.seq >= seq;
        self.map.is_some() && self.streams().iter().all(stored)
    }
    /// The last record that the log has.
    pub fn head_seq(&self) -> Seq {
        self.log.head().seq
    }

    /// Reads and applies one batch. `is_urgent`: somebody waits, so nothing is held back.
    ///
    /// Units: `now_ms` is monotonic.
    pub fn step(&mut self, now_ms: u64, is_urgent: bool) -> Next {
        self.has_stored = false;
        match self.try_step(now_ms, is_urgent) {
            Ok(next) => {
                let is_over = self.has_stored && !self.trouble.needs_newer;
                let Trouble { failures, at_ms, .. } = self.trouble;
                if failures > 0 && (is_over || now_ms >= at_ms + CALM_MS) {
                    self.trouble.failures = 0;
                    self.shard_status().set_error(None);
                }
                next
            }
            Err(error) => self.failed(&error, now_ms),
        }
    }

    /// Backs off, and reads again from what the database has.
    fn failed(&mut self, error: &Failure, now_ms: u64) -> Next {
        // The last outcome may be unknown: what counts is what the database says.
        self.is_in_doubt = true;
        if let Failure::Store(StoreError::Map { .. }) = error {
            // Nothing is wrong: the next step reads the new map first.
            return Next::Now;
        }
        self.trouble.needs_newer = matches!(error, Failure::Newer(_));
        self.shard_status().retries.fetch_add(1, Ordering::Relaxed);
        let text = error.to_string();
        if self.shard_status().last_error().as_deref() != Some(&text) {
            tracing::warn!(database_shard = self.shard.get(), error = text, "persist is held up");
        }
        self.shard_status().set_error(Some(text));
        self.resync();
        let pause = BACKOFF_MS.0 << self.trouble.failures.min(16);
        self.trouble.failures += 1;
        self.trouble.at_ms = now_ms;
        Next::AfterMs(pause.min(BACKOFF_MS.1))
    }

    fn try_step(&mut self, now_ms: u64, is_urgent: bool) -> Result<Next, Failure> {
        if self.is_in_doubt || self.is_overtaken()? {
            self.reread()?;
            self.is_in_doubt = false;
        }
        if now_ms >= self.map_due_ms {
            self.map_due_ms = now_ms + MAP_EVERY_MS;
            if Some(self.store.holdings()?.version) != self.map.map(|map| map.version) {
                self.reread()?;
            }
        }
        if now_ms >= self.letters_due_ms {
            self.letters_due_ms = now_ms + self.settings.letters_every_ms;
            self.retry_letters()?;
        }
        let mut batch = std::mem::take(&mut self.batch);
        let factor = if self.is_behind { CATCH_UP_FACTOR } else { 1 };
        let polled = self.log.poll(self.settings.batch * factor, &mut batch);
        self.batch = batch;
        self.status.set_head(self.log.head());
        let polled = match polled {
            Err(LogError::Gone { first_kept, .. }) => return self.hold_gone(first_kept),
            polled => polled?,
        };
        if polled.must_reread {
            self.reread()?;
            return Ok(Next::Now);
        }
        self.is_behind = !polled.caught_up;
        let judged = self.judge(now_ms);
        let moves_marks = is_urgent || now_ms >= self.marked_at_ms + self.settings.mark_every_ms;
        if !self.plan.is_empty() || (moves_marks && !judged.marks.is_empty()) {
            self.commit_all(0..self.plan.len(), &judged.marks)?;
            self.marked_at_ms = now_ms;
            self.publish();
        }
        self.after_commit(&judged, now_ms);
        if let Some(error) = judged.newer {
            return Err(Failure::Newer(error));
        }
        Ok(match polled.caught_up {
            false => Next::Now,
            true if is_urgent => Next::AfterMs(self.settings.linger_ms.min(URGENT_MS)),
            true => Next::AfterMs(self.settings.linger_ms),
        })
    }
}

/// What a batch holds besides the records to apply.
#[derive(Default)]
struct Judged {
    /// Watermarks that marks move, once all records are applied.
    marks: Vec<(Stream, Watermark, Mark)>,
    gaps: Vec<(Stream, Seq)>,
    alarms: Vec<(Stream, Alarm)>,
    /// A record that only a newer program can read: everything from it on waits.
    newer: Option<RecordError>,
}

/// Why a step did not get through.
#[derive(thiserror::Error, Debug)]
enum Failure {
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Newer(RecordError),
}

impl<L: Log, S: Store> ShardWriter<L, S> {
    /// Judges the batch by the gap rule, and fills the plan with what is to be applied.
    fn judge(&mut self, now_ms: u64) -> Judged {
        let mut judged = Judged::default();
        let mut pending: HashMap<Stream, Watermark> = HashMap::default();
        self.plan.clear();
        let mut skipped = 0;
        for (index, record) in self.batch.records.iter().enumerate() {
            let stream = Stream { journal: record.journal, partition: record.partition };
            let is_closed = !self.holds(stream.partition) || self.halted.contains(&stream);
            if is_closed || judged.has_alarm(stream) {
                continue;
            }
            let watermark = pending
                .entry(stream)
                .or_insert_with(|| self.committed.get(&stream).copied().unwrap_or_default());
            match watermark.judge(record.step()) {
                Verdict::Apply(after) => {
                    match plan(&self.batch, index, stream, after) {
                        Ok(planned) => self.plan.push(planned),
                        Err(newer) => {
                            judged.newer = Some(newer);
                            break;
                        }
                    }
                    *watermark = after;
                }
                Verdict::Skip => skipped += 1,
                Verdict::Gap { rewind_to } => judged.gap(stream, rewind_to),
                Verdict::Alarm(alarm) => judged.alarms.push((stream, alarm)),
            }
        }
        self.shard_status().skipped.fetch_add(skipped, Ordering::Relaxed);
        if judged.newer.is_some() {
            return judged;
        }
        for mark in &self.batch.marks {
            let stream = Stream { journal: mark.journal, partition: mark.partition };
            let is_closed = !self.holds(stream.partition) || self.halted.contains(&stream);
            if is_closed || judged.has_alarm(stream) {
                continue;
            }
            let watermark = pending
                .entry(stream)
                .or_insert_with(|| self.committed.get(&stream).copied().unwrap_or_default());
            match watermark.judge(mark.step()) {
                Verdict::Apply(after) => judged.marks.push((stream, after, *mark)),
                Verdict::Skip => {}
                Verdict::Gap { rewind_to } => judged.gap(stream, rewind_to),
                Verdict::Alarm(alarm) => judged.alarms.push((stream, alarm)),
            }
        }
        judged.gaps.retain(|(stream, to)| {
            let asked = self.rewinding.get(stream);
            asked.is_none_or(|(seq, at)| seq != to || now_ms >= at + REWIND_AGAIN_MS)
        });
        judged
    }

    /// Asks for what is missing, and holds what is of another history.
    fn after_commit(&mut self, judged: &Judged, now_ms: u64) {
        for planned in &self.plan {
            self.rewinding.remove(&planned.stream);
        }
        for (stream, to) in &judged.gaps {
            if self.committed.get(stream).is_some_and(|watermark| watermark.seq > *to) {
                // What was missing stood further behind in the same batch.
                continue;
            }
            let before = self.rewinding.insert(*stream, (*to, now_ms));
            if before.is_some_and(|(seq, _)| seq == *to) {
                self.asked_again.push(*stream);
            }
            self.ask_rewind(*stream, *to, "records are missing");
        }
        for (stream, alarm) in &judged.alarms {
            self.halt(*stream, alarm);
        }
        if judged.newer.is_some() {
            self.resync();
        }
    }

    fn ask_rewind(&mut self, stream: Stream, to: Seq, reason: &str) {
        self.shard_status().rewinds.fetch_add(1, Ordering::Relaxed);
        // The request's row is for the other end of a log between two processes; here the log
        // hears it at once, so a database that cannot be written now does not matter.
        if let Err(error) = self.store.ask_rewind(stream, to, reason) {
            tracing::warn!(%error, "a rewind request was not stored");
        }
        self.log.rewind(stream.journal, stream.partition, to);
    }

    fn halt(&mut self, stream: Stream, alarm: &Alarm) {
        tracing::error!(
            database_shard = self.shard.get(),
            partition = stream.partition.get(),
            "persist holds this partition: {alarm}"
        );
        self.shard_status().alarm(alarm);
        self.halted.insert(stream);
        self.log.hold_back(stream.journal, stream.partition);
    }

    /// The journal begins behind some watermarks: those streams are held, the others go on.
    fn hold_gone(&mut self, first_kept: Seq) -> Result<Next, Failure> {
        let gone = |w: &Watermark| w.seq.next() < first_kept;
        let streams: Vec<_> = self
            .streams()
            .into_iter()
            .filter(|(s, w)| gone(w) && !self.halted.contains(s))
            .collect();
        if streams.is_empty() {
            let wanted = first_kept;
            return Err(LogError::Gone { wanted, first_kept }.into());
        }
        for (stream, watermark) in streams {
            self.halt(stream, &Alarm::RecordsGone { watermark, first_kept });
        }
        Ok(Next::Now)
    }
}

impl Judged {
    fn has_alarm(&self, stream: Stream) -> bool {
        self.alarms.iter().any(|(s, _)| *s == stream)
    }
    /// The last one of a stream counts: an earlier one was filled in the same batch.
    fn gap(&mut self, stream: Stream, to: Seq) {
        match self.gaps.iter_mut().find(|(s, _)| *s == stream) {
            Some((_, last)) => *last = to,
            None => self.gaps.push((stream, to)),
        }
    }
}

/// Decodes a record that is to be applied.
///
/// Errors: only a newer program can read it.
fn plan(
    batch: &LogBatch,
    index: usize,
    stream: Stream,
    after: Watermark,
) -> Result<Planned, RecordError> {
    let mut bytes = batch.bytes_of(&batch.records[index]);
    let head = RecordHead::peek(bytes)?;
    let record = match Record::take(&mut bytes) {
        Ok((_, record)) => Ok(record),
        Err(newer @ (RecordError::Kind(_) | RecordError::Version { .. })) => return Err(newer),
        Err(other) => Err(DataError::Undecodable(other.to_string())),
    };
    let member = record.as_ref().ok().and_then(member_of);
    Ok(Planned { index, stream, after, slot: head.slot, member, record })
}

/// Transactions: whole, halved, one record alone.
impl<L: Log, S: Store> ShardWriter<L, S> {
    /// Applies a run of the plan, in as many transactions as its data needs.
    fn commit_all(
        &mut self,
        run: Range<usize>,
        marks: &[(Stream, Watermark, Mark)],
    ) -> Result<(), StoreError> {
        match self.commit(run.clone(), marks, None) {
            Err(StoreError::Data(error)) if run.len() <= 1 => self.bury(run.start, error, marks),
            Err(StoreError::Data(_)) => {
                let middle = run.start + run.len() / 2;
                self.commit_all(run.start..middle, &[])?;
                self.commit_all(middle..run.end, marks)
            }
            done => done,
        }
    }

    /// A record that does not fit: tried again, then held back with all later ones of its member.
    fn bury(
        &mut self,
        index: usize,
        mut error: DataError,
        marks: &[(Stream, Watermark, Mark)],
    ) -> Result<(), StoreError> {
        for _ in 1..TRIES {
            match self.commit(index..index + 1, marks, None) {
                Err(StoreError::Data(again)) => error = again,
                done => return done,
            }
        }
        let planned = &self.plan[index];
        let seq = self.batch.records[planned.index].seq;
        let text = format!("record {seq} is a dead letter: {error}");
        tracing::error!(database_shard = self.shard.get(), "{text}");
        self.shard_status().alarm_text(text);
        self.commit(index..index + 1, marks, Some(&error))
    }

    /// One transaction. `dead`: why the run's only record is held back.
    fn commit(
        &mut self,
        run: Range<usize>,
        marks: &[(Stream, Watermark, Mark)],
        dead: Option<&DataError>,
    ) -> Result<(), StoreError> {
        self.effects.clear(self.shard.is_home());
        let mut letters = Vec::new();
        let mut moves: HashMap<Stream, WatermarkMove> = HashMap::default();
        let mut offsets: HashMap<Partition, LogOffset> = HashMap::default();
        let committed = &self.committed;
        let mut advance = |stream: Stream, next, at, offset: Option<LogOffset>| {
            let expected = committed.get(&stream).copied().unwrap_or_default();
            moves.insert(stream, WatermarkMove { stream, expected, next, at });
            if let Some(offset) = offset {
                let furthest = offsets.entry(stream.partition).or_insert(offset);
                *furthest = offset.max(*furthest);
            }
        };
        for planned in &self.plan[run] {
            let record = &self.batch.records[planned.index];
            let bytes = self.batch.bytes_of(record);
            if let Some(error) = dead {
                letters.push(letter(planned, record, bytes, LetterState::Dead, error.to_string()));
            } else if self.parked.holds(planned.slot, planned.member) {
                let reason = "waits behind a dead letter".to_string();
                letters.push(letter(planned, record, bytes, LetterState::Parked, reason));
            } else {
                let decoded = planned.record.as_ref().map_err(Clone::clone)?;
                let at = At { journal: record.journal, seq: record.seq, slot: planned.slot };
                self.effects.add(at, decoded, bytes)?;
            }
            advance(planned.stream, planned.after, record.node_time, record.next);
        }
        for (stream, next, mark) in marks {
            advance(*stream, *next, mark.node_time, mark.next);
        }
        let moves: Vec<_> = moves.into_values().collect();
        let next: Vec<_> = offsets.into_iter().collect();
        let batch = StoreBatch {
            map: self.map.map_or(MapVersion::default(), |map| map.version),
            moves: &moves,
            effects: &self.effects,
            letters: &letters,
            applied: &[],
            offsets: Offsets { topic: &self.log.topic(), next: &next },
        };
        if planted::is(Bug::WatermarkApart) {
            let (moves, offsets) = (&[][..], Offsets::default());
            self.store.apply(&StoreBatch { moves, offsets, ..batch })?;
            let effects = &Effects::default();
            self.store.apply(&StoreBatch { effects, letters: &[], ..batch })?;
        } else {
            self.store.apply(&batch)?;
        }
        self.has_stored = true;
        self.committed.extend(moves.iter().map(|m| (m.stream, m.next)));
        self.count(&moves, &letters);
        for letter in letters {
            self.parked.insert(letter.slot, letter.member);
        }
        Ok(())
    }

    fn count(&self, moves: &[WatermarkMove], letters: &[Letter]) {
        let status = self.shard_status();
        let records: u64 = self.effects.slot_sums().map(|s| s.records).sum();
        status.batches.fetch_add(1, Ordering::Relaxed);
        status.records.fetch_add(records, Ordering::Relaxed);
        status.letters.fetch_add(letters.len() as u64, Ordering::Relaxed);
        if let Some(at) = moves.iter().map(|m| m.at).max() {
            status.set_node_time(at);
        }
    }
}

fn letter(
    planned: &Planned,
    record: &LogRecord,
    bytes: &[u8],
    state: LetterState,
    reason: String,
) -> Letter {
    Letter {
        stream: planned.stream,
        incarnation: record.incarnation,
        seq: record.seq,
        slot: planned.slot,
        member: planned.member,
        at: record.node_time,
        state,
        reason,
        record: bytes.to_vec(),
    }
}
