//! The embedded log: the journal itself, tailed from disk. One per database shard, read by its
//! persist thread; each reads every frame, and looks into the records of its own partitions only.
//!
//! Memory is O(1): one frame, and two sequence numbers per partition.
//!
//! ```text
//!              position (next record to read)
//!  ──────────────────▼──────────────────▶ seq
//!  partition 3       │    wanted ≤ position: delivered as it comes
//!  partition 4       │        wanted > position: read past, delivered from there on
//! ```
//! A rewind of one partition moves the position back, and holds the others' `wanted` where they
//! were: so they are read past a second time, and delivered once.

use super::frames::{FrameInfo, FrameSource};
use super::log::{Head, Log, LogBatch, LogError, Mark, Place, Polled};
use super::partition::{PARTITION_COUNT, Partition};
use crate::kernel::record::RecordHead;
use crate::units::{Incarnation, JournalId, NodeTime, Seq};

/// The journal as a log for the partitions of one consumer.
pub struct JournalLog<F> {
    source: F,
    journal: JournalId,
    /// Per partition read here: the first record not yet delivered.
    wanted: [Option<Seq>; PARTITION_COUNT],
    /// Per partition: its last record before the position, or where reading began.
    last: [Seq; PARTITION_COUNT],
    position: Seq,
    /// The frame that the position is in, and how much of it has been read.
    frame: Option<FrameInfo>,
    records: Vec<u8>,
    offset: usize,
    /// The frame last read, since the reader was placed.
    last_read: Option<(Incarnation, NodeTime)>,
    is_placed: bool,
}

impl<F: FrameSource> JournalLog<F> {
    /// Reads these partitions, each from the record behind the given one on.
    pub fn new(source: F, from: impl IntoIterator<Item = (Partition, Seq)>) -> Self {
        let mut wanted = [None; PARTITION_COUNT];
        for (partition, applied) in from {
            wanted[partition.index()] = Some(applied.next());
        }
        let journal = source.head().journal;
        let mut log = Self {
            source,
            journal,
            wanted,
            last: [Seq::NONE; PARTITION_COUNT],
            position: Seq::new(u64::MAX),
            frame: None,
            records: Vec::new(),
            offset: 0,
            last_read: None,
            is_placed: false,
        };
        log.place();
        log
    }

    /// Everything that is wanted up to here has been delivered.
    pub fn read_through(&self) -> Seq {
        Seq::new(self.position.get() - 1)
    }

    /// Gives up what lies before `first_kept`, which the journal no longer has. Returns the
    /// partitions that miss something by it.
    pub fn skip_below(&mut self, first_kept: Seq) -> Vec<Partition> {
        let mut missing = Vec::new();
        for partition in Partition::all() {
            let wanted = &mut self.wanted[partition.index()];
            if wanted.is_some_and(|w| w < first_kept) {
                *wanted = Some(first_kept);
                missing.push(partition);
            }
        }
        self.place();
        missing
    }

    /// Moves the position to the first record that any partition wants.
    fn place(&mut self) {
        let first = self.wanted.iter().flatten().min().copied();
        self.position = first.unwrap_or(Seq::new(u64::MAX));
        self.last = [Seq::new(self.position.get() - 1); PARTITION_COUNT];
        self.frame = None;
        self.last_read = None;
        self.is_placed = false;
    }

    /// Goes on to the next frame; `false` at the durable end.
    fn next_frame(&mut self) -> Result<bool, LogError> {
        if !self.is_placed {
            self.source.seek(self.position)?;
            self.is_placed = true;
        }
        let Some(info) = self.source.read(&mut self.records)? else { return Ok(false) };
        if info.first_seq > self.position {
            // Frames follow each other without a hole; the journal's own checks say so too.
            return Err(LogError::Gone { wanted: self.position, first_kept: info.first_seq });
        }
        self.last_read = Some((info.incarnation, info.node_time));
        self.frame = Some(info);
        self.offset = 0;
        Ok(true)
    }

    /// Delivers from the frame at hand until it, or the room in the batch, is used up.
    fn deliver(&mut self, max_records: usize, batch: &mut LogBatch) -> Result<(), LogError> {
        let Some(frame) = self.frame else { return Ok(()) };
        // Where the frame begins before the position, its first records are read past.
        let mut seq = if self.offset == 0 { frame.first_seq } else { self.position };
        while self.offset < self.records.len() && batch.records.len() < max_records {
            let rest = &self.records[self.offset..];
            let malformed = |reason: String| LogError::Malformed { seq, reason };
            let head = RecordHead::peek(rest).map_err(|e| malformed(e.to_string()))?;
            let partition = Partition::of(head.slot)
                .ok_or_else(|| malformed(format!("it names slot {}", head.slot)))?;
            if seq >= self.position {
                let index = partition.index();
                if self.wanted[index].is_some_and(|wanted| seq >= wanted) {
                    let (journal, FrameInfo { incarnation, node_time, .. }) = (self.journal, frame);
                    let place = Place { journal, incarnation, seq, node_time };
                    batch.push(partition, place, self.last[index], &rest[..head.length]);
                }
                self.last[index] = seq;
                self.position = seq.next();
            }
            self.offset += head.length;
            seq = seq.next();
        }
        if self.offset == self.records.len() {
            let expected = frame.first_seq.get() + u64::from(frame.count);
            if seq.get() != expected {
                let reason = format!("its frame should end at {}", expected - 1);
                return Err(LogError::Malformed { seq, reason });
            }
            self.frame = None;
        }
        Ok(())
    }

    /// Marks behind everything delivered so far, for each partition that is not held back.
    fn mark(&self, (through, incarnation, node_time): (Seq, Incarnation, NodeTime)) -> Vec<Mark> {
        let partitions = Partition::all()
            .filter(|p| self.wanted[p.index()].is_some_and(|wanted| wanted <= self.position));
        partitions
            .map(|partition| Mark {
                partition,
                journal: self.journal,
                incarnation,
                prev_seq: self.last[partition.index()].min(through),
                through,
                node_time,
                next: None,
            })
            .collect()
    }
}

impl<F: FrameSource> Log for JournalLog<F> {
    fn poll(&mut self, max_records: usize, batch: &mut LogBatch) -> Result<Polled, LogError> {
        batch.clear();
        if self.wanted.iter().all(Option::is_none) {
            return Ok(Polled { caught_up: true, must_reread: false });
        }
        // Taken before reading: whatever becomes durable meanwhile is not claimed by a mark.
        let head = self.source.head();
        let mut caught_up = false;
        while batch.records.len() < max_records {
            if self.frame.is_none() && !self.next_frame()? {
                caught_up = true;
                break;
            }
            self.deliver(max_records, batch)?;
        }
        let read_through = Seq::new(self.position.get() - 1);
        let at = match self.last_read {
            // At the end, what is running now vouches for it, whether or not it has written.
            _ if caught_up && head.seq <= read_through && self.last_read.is_none() => {
                Some((head.seq, head.incarnation, head.node_time))
            }
            _ if caught_up && head.seq == read_through => {
                Some((head.seq, head.incarnation, head.node_time))
            }
            Some((incarnation, node_time)) => Some((read_through, incarnation, node_time)),
            None => None,
        };
        batch.marks.extend(at.map(|at| self.mark(at)).unwrap_or_default());
        Ok(Polled { caught_up, must_reread: false })
    }

    fn rewind(&mut self, journal: JournalId, partition: Partition, to: Seq) {
        assert_eq!(journal, self.journal, "the embedded log is one journal");
        for wanted in self.wanted.iter_mut().flatten() {
            *wanted = self.position.max(*wanted);
        }
        self.wanted[partition.index()] = Some(to.next());
        if to.next() < self.position {
            self.place();
        }
    }

    fn hold_back(&mut self, journal: JournalId, partition: Partition) {
        assert_eq!(journal, self.journal, "the embedded log is one journal");
        self.wanted[partition.index()] = None;
    }

    fn journal(&self) -> Option<JournalId> {
        Some(self.journal)
    }

    fn head(&self) -> Head {
        let head = self.source.head();
        Head { seq: head.seq, node_time: head.node_time }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::record::{CONTROL, ChangeSeen, Record, SaleChange};
    use crate::ship::frames::MemoryFrames;
    use crate::units::{SaleIndex, Slot};

    fn at(ms: u64) -> NodeTime {
        NodeTime::new(ms)
    }
    /// A record of a partition that says its number.
    fn record(partition: u8, number: u64) -> (Slot, Record) {
        let (sale, change) = (SaleIndex::new(0), SaleChange::Opened);
        let slot = if partition == 32 { CONTROL } else { Slot::new(u16::from(partition) * 128) };
        (slot, ChangeSeen { shard: 0, sale, change, at: at(number) }.into())
    }
    /// Frames of `sizes`, over partitions in turn.
    fn journal(sizes: &[u64], partitions: &[u8]) -> MemoryFrames {
        let frames = MemoryFrames::new(JournalId::new(7));
        let mut seq = 0;
        for size in sizes {
            let records: Vec<_> = (0..*size)
                .map(|i| {
                    record(partitions[((seq + i) % partitions.len() as u64) as usize], seq + i)
                })
                .collect();
            seq += size;
            frames.append(at(seq), &records);
        }
        frames
    }
    fn partition(raw: u8) -> Partition {
        Partition::new(raw).unwrap()
    }
    fn drain<F: FrameSource>(log: &mut JournalLog<F>, max: usize) -> Vec<(u8, u64, u64)> {
        let (mut all, mut batch) = (Vec::new(), LogBatch::default());
        loop {
            let polled = log.poll(max, &mut batch).unwrap();
            assert!(batch.records.len() <= max);
            for r in &batch.records {
                all.push((r.partition.get(), r.prev_seq.get(), r.seq.get()));
                let mut bytes = batch.bytes_of(r);
                let (_, record) = Record::take(&mut bytes).unwrap();
                let Record::ChangeSeen(ChangeSeen { at, .. }) = record else {
                    panic!("{record:?}")
                };
                assert_eq!(at.get() + 1, r.seq.get(), "the bytes are this record's");
            }
            if polled.caught_up {
                return all;
            }
        }
    }

    #[test]
    fn each_consumer_gets_its_own_partitions_with_their_predecessors() {
        let frames = journal(&[3, 1, 5, 3], &[0, 1, 32]);
        for max in [1, 2, 100] {
            let from = [(partition(0), Seq::NONE), (Partition::CONTROL, Seq::NONE)];
            let mut log = JournalLog::new(frames.clone(), from);
            let expected = [
                (0, 0, 1),
                (32, 0, 3),
                (0, 1, 4),
                (32, 3, 6),
                (0, 4, 7),
                (32, 6, 9),
                (0, 7, 10),
                (32, 9, 12),
            ];
            assert_eq!(drain(&mut log, max), expected);
        }
    }

    #[test]
    fn reading_begins_at_any_record_and_claims_no_more_than_it_read() {
        let frames = journal(&[4, 4, 4], &[0, 1]);
        for from in 0..12 {
            let mut log = JournalLog::new(frames.clone(), [(partition(0), Seq::new(from))]);
            let got = drain(&mut log, 100);
            let expected: Vec<_> = (from + 1..=12).filter(|s| s % 2 == 1).collect();
            assert_eq!(got.iter().map(|g| g.2).collect::<Vec<_>>(), expected);
            assert_eq!(got.first().map_or(from, |g| g.1), from);
        }
    }

    #[test]
    fn one_partition_is_rewound_without_the_others() {
        let frames = journal(&[4, 4, 4], &[0, 1]);
        let from = [(partition(0), Seq::NONE), (partition(1), Seq::NONE)];
        let mut log = JournalLog::new(frames.clone(), from);
        let mut batch = LogBatch::default();
        log.poll(7, &mut batch).unwrap();
        log.rewind(log.journal, partition(1), Seq::new(2));
        let expected = [(1, 2, 4), (1, 4, 6), (0, 7, 9), (1, 6, 8), (1, 8, 10), (0, 9, 11)];
        let mut got = drain(&mut log, 3);
        let mut expected: Vec<_> =
            expected.into_iter().chain([(1, 10, 12)]).collect::<Vec<(u8, u64, u64)>>();
        got.sort_by_key(|g| g.2);
        expected.sort_by_key(|g| g.2);
        assert_eq!(got, expected);
    }

    #[test]
    fn a_rewind_to_ahead_skips_what_lies_in_between() {
        let frames = journal(&[4, 4, 4], &[0, 1]);
        let mut log =
            JournalLog::new(frames, [(partition(0), Seq::NONE), (partition(1), Seq::NONE)]);
        log.rewind(log.journal, partition(0), Seq::new(9));
        let got = drain(&mut log, 100);
        let of = |p| got.iter().filter(|g| g.0 == p).map(|g| (g.1, g.2)).collect::<Vec<_>>();
        assert_eq!(of(0), [(9, 11)]);
        assert_eq!(of(1).len(), 6);
    }

    #[test]
    fn marks_follow_the_records_of_every_partition_even_where_none_came() {
        let frames = journal(&[4], &[0]);
        let from = [(partition(0), Seq::NONE), (partition(5), Seq::NONE)];
        let mut log = JournalLog::new(frames.clone(), from);
        let mut batch = LogBatch::default();
        log.poll(3, &mut batch).unwrap();
        let through = |batch: &LogBatch| {
            batch.marks.iter().map(|m| (m.partition.get(), m.through.get())).collect::<Vec<_>>()
        };
        assert_eq!(through(&batch), [(0, 3), (5, 3)]);
        log.poll(3, &mut batch).unwrap();
        assert_eq!(through(&batch), [(0, 4), (5, 4)]);
        frames.append(at(9), &[record(0, 4)]);
        log.poll(3, &mut batch).unwrap();
        assert_eq!(through(&batch), [(0, 5), (5, 5)]);
        assert_eq!((batch.marks[1].prev_seq, batch.marks[0].prev_seq), (Seq::NONE, Seq::new(5)));
    }

    #[test]
    fn a_journal_that_ends_before_the_watermark_says_so_by_its_mark() {
        let frames = journal(&[4], &[0]);
        frames.reopen();
        let mut log = JournalLog::new(frames, [(partition(0), Seq::new(9))]);
        let mut batch = LogBatch::default();
        log.poll(3, &mut batch).unwrap();
        assert!(batch.records.is_empty());
        let mark = batch.marks[0];
        assert_eq!((mark.through, mark.incarnation), (Seq::new(4), Incarnation::new(2)));
    }

    #[test]
    fn a_journal_that_begins_behind_the_watermark_is_an_error_each_time() {
        let frames = journal(&[4, 4], &[0]);
        frames.delete_below(Seq::new(5));
        let mut log = JournalLog::new(frames.clone(), [(partition(0), Seq::new(2))]);
        for _ in 0..2 {
            let error = log.poll(3, &mut LogBatch::default()).unwrap_err();
            assert!(matches!(error, LogError::Gone { first_kept, .. } if first_kept.get() == 5));
        }
        let mut log = JournalLog::new(frames, [(partition(0), Seq::new(4))]);
        assert_eq!(drain(&mut log, 3).len(), 4);
    }
}
