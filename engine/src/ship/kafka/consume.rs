//! A database shard's end of the topic: the [`Log`] that its writer reads, fed by the pump.
//!
//! ```text
//!  pump ──▶ lane: bounded queue ──▶ KafkaLog::poll ──▶ writer
//!    ▲      changed, lost, rounds                        │ re-reads watermarks and offsets
//!    └──────────────── Resume { offsets } ◀── resume() ──┘
//! ```
//! Where to read from is the store's to say, never Kafka's: whenever the writer has read its
//! watermarks (at an assignment, after a failure), it resumes at the offsets that were committed
//! with them. Each resume raises the *round* of its partitions, and what was queued in an older
//! round is dropped: so nothing is judged twice, or out of order.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use crossbeam::channel::{Receiver, Sender, bounded};

use super::message::{Message, MessageError};
use crate::ship::log::{Head, Log, LogBatch, LogError, LogOffset, Mark, Polled};
use crate::ship::partition::{DatabaseShard, PARTITION_COUNT, Partition};
use crate::units::{JournalId, NodeTime, Seq};

/// A message on its way to a writer.
pub struct Item {
    pub partition: Partition,
    pub round: u32,
    pub offset: i64,
    pub payload: Box<[u8]>,
}

/// Where a writer has its partitions read on from.
pub struct Resume {
    pub shard: DatabaseShard,
    /// Partition, its new round, the offset to read next: every partition that it writes.
    pub from: Vec<(Partition, u32, LogOffset)>,
}

/// What the pump and a writer share.
pub struct Lane {
    /// The assignment has changed: the writer is to read watermarks and offsets anew.
    /// Release by the pump after its own state changed, Acquire by the writer.
    pub changed: AtomicBool,
    /// Something found no room and was dropped: as above.
    pub lost: AtomicBool,
    /// Per partition, the round in force. Raised by the writer when it resumes, and by the pump
    /// when a partition is taken away. Relaxed: the queue orders what hangs on it.
    pub rounds: [AtomicU32; PARTITION_COUNT],
    /// Messages that were none of ours.
    pub foreign: AtomicU64,
}

/// Both ends of a lane that has room for so many messages; what comes beyond is dropped and read
/// again.
pub fn lane(
    shard: DatabaseShard,
    topic: &str,
    room: usize,
    resumes: Sender<Resume>,
) -> (LaneEnd, KafkaLog) {
    let (sender, queue) = bounded(room);
    let lane = Arc::new(Lane {
        changed: AtomicBool::new(false),
        lost: AtomicBool::new(false),
        rounds: [const { AtomicU32::new(0) }; PARTITION_COUNT],
        foreign: AtomicU64::new(0),
    });
    let end = LaneEnd { lane: Arc::clone(&lane), sender };
    let topic = topic.to_owned();
    (end, KafkaLog { shard, topic, lane, queue, resumes, marks: Vec::new() })
}

/// The pump's end.
pub struct LaneEnd {
    pub lane: Arc<Lane>,
    pub sender: Sender<Item>,
}

/// The writer's end.
pub struct KafkaLog {
    shard: DatabaseShard,
    topic: String,
    lane: Arc<Lane>,
    queue: Receiver<Item>,
    resumes: Sender<Resume>,
    /// The last mark of each stream, and the round that it came in.
    marks: Vec<(u32, Mark)>,
}

impl KafkaLog {
    /// Adds one message to the batch.
    ///
    /// Errors: only a newer program can read it.
    fn take(&mut self, item: &Item, batch: &mut LogBatch) -> Result<(), LogError> {
        let message = match Message::decode(&item.payload, i32::from(item.partition.get())) {
            Ok(message) => message,
            Err(error @ MessageError::Version { .. }) => {
                let seq = Seq::new(item.offset.cast_unsigned());
                return Err(LogError::Malformed { seq, reason: error.to_string() });
            }
            Err(error) => {
                // Never a message of ours; what of ours is missing, the gap rule finds.
                if self.lane.foreign.fetch_add(1, Ordering::Relaxed) == 0 {
                    let (partition, offset) = (item.partition.get(), item.offset);
                    tracing::error!(
                        partition,
                        offset,
                        "somebody else writes to {}: {error}",
                        self.topic
                    );
                }
                return Ok(());
            }
        };
        let next = Some(LogOffset::new(item.offset + 1));
        let Message { partition, place, prev_seq, record } = message;
        if let Some(bytes) = record {
            batch.push_at(partition, place, prev_seq, next, bytes);
            return Ok(());
        }
        let mark = Mark {
            partition,
            journal: place.journal,
            incarnation: place.incarnation,
            prev_seq,
            through: place.seq,
            node_time: place.node_time,
            next,
        };
        // Of one stream only the last mark counts, once the records before it are applied.
        let same = |m: &&mut (u32, Mark)| m.1.journal == mark.journal && m.1.partition == partition;
        match self.marks.iter_mut().find(same) {
            Some(earlier) => *earlier = (item.round, mark),
            None => self.marks.push((item.round, mark)),
        }
        Ok(())
    }

    /// Adds the marks that stand. A writer moves them when it is time, so they are shown again and
    /// again, as the journal's own log does; what it has moved it skips.
    fn show_marks(&mut self, batch: &mut LogBatch) {
        let rounds = &self.lane.rounds;
        let stands = |(round, mark): &(u32, Mark)| {
            *round == rounds[mark.partition.index()].load(Ordering::Relaxed)
        };
        self.marks.retain(stands);
        for (_, mark) in &mut self.marks {
            batch.marks.push(*mark);
            // Other journals' records may have taken the offset further by the next time.
            mark.next = None;
        }
    }
}

impl Log for KafkaLog {
    fn poll(&mut self, max_records: usize, batch: &mut LogBatch) -> Result<Polled, LogError> {
        batch.clear();
        let has_changed = self.lane.changed.swap(false, Ordering::Acquire);
        let has_lost = self.lane.lost.swap(false, Ordering::Acquire);
        if has_lost {
            // † All of it comes again, and what comes first needs the room [the lane stayed full
            // of what was read past later, so each message that came was lost, and all was read
            // again, without end].
            while self.queue.try_recv().is_ok() {}
        }
        if has_lost || has_changed {
            return Ok(Polled { caught_up: false, must_reread: true });
        }
        let mut caught_up = false;
        while batch.records.len() < max_records {
            let Ok(item) = self.queue.try_recv() else {
                caught_up = true;
                break;
            };
            let round = self.lane.rounds[item.partition.index()].load(Ordering::Relaxed);
            if item.round != round {
                continue;
            }
            match self.take(&item, batch) {
                // What came before it is applied first; the re-read brings it back.
                Err(_) if !batch.records.is_empty() => {
                    self.lane.lost.store(true, Ordering::Release);
                    break;
                }
                Err(error) => return Err(error),
                Ok(()) => {}
            }
        }
        self.show_marks(batch);
        Ok(Polled { caught_up, must_reread: false })
    }

    /// The shipper hears of it from the request beside the watermark. What had been read and was
    /// not applied comes again by `resume`.
    fn rewind(&mut self, _journal: JournalId, _partition: Partition, _to: Seq) {}

    fn resume(&mut self, from: &[(Partition, Option<LogOffset>)]) {
        let from = from.iter().map(|(partition, stored)| {
            let round = self.lane.rounds[partition.index()].fetch_add(1, Ordering::Relaxed) + 1;
            (*partition, round, stored.unwrap_or(LogOffset::new(0)))
        });
        // A pump that has ended reads nothing any more.
        let _ = self.resumes.send(Resume { shard: self.shard, from: from.collect() });
    }

    fn topic(&self) -> String {
        self.topic.clone()
    }

    fn journal(&self) -> Option<JournalId> {
        None
    }

    /// Several journals come by: how far each goes is for its own node to say.
    fn head(&self) -> Head {
        Head { seq: Seq::NONE, node_time: NodeTime::new(0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ship::log::Place;
    use crate::units::Incarnation;

    struct Ends {
        pump: LaneEnd,
        log: KafkaLog,
        resumed: Receiver<Resume>,
        offset: i64,
    }

    impl Ends {
        fn new() -> Self {
            let (resumes, resumed) = crossbeam::channel::unbounded();
            let (pump, log) = lane(DatabaseShard::HOME, "records", 100, resumes);
            Self { pump, log, resumed, offset: 0 }
        }
        fn send(&mut self, round: u32, payload: &[u8]) {
            let (partition, offset) = (Partition::new(3).unwrap(), self.offset);
            self.offset += 1;
            self.pump
                .sender
                .send(Item { partition, round, offset, payload: payload.into() })
                .unwrap();
        }
        fn poll(&mut self) -> (Result<Polled, LogError>, Vec<u64>, Vec<u64>) {
            let mut batch = LogBatch::default();
            let polled = self.log.poll(100, &mut batch);
            let records = batch.records.iter().map(|r| r.seq.get()).collect();
            (polled, records, batch.marks.iter().map(|m| m.through.get()).collect())
        }
    }

    fn message(seq: u64, record: Option<&[u8]>) -> Vec<u8> {
        let place = Place {
            journal: JournalId::new(9),
            incarnation: Incarnation::new(1),
            seq: Seq::new(seq),
            node_time: NodeTime::new(seq),
        };
        let (partition, prev_seq) = (Partition::new(3).unwrap(), Seq::new(seq - 1));
        let mut bytes = Vec::new();
        Message { partition, place, prev_seq, record }.encode(&mut bytes);
        bytes
    }

    fn record(seq: u64) -> Vec<u8> {
        message(seq, Some(&[1; 20]))
    }

    #[test]
    fn records_come_in_order_with_their_offsets_and_the_last_mark_behind_them() {
        let mut ends = Ends::new();
        for payload in [record(1), message(1, None), record(2), message(5, None)] {
            ends.send(0, &payload);
        }
        let (polled, records, marks) = ends.poll();
        assert!(polled.unwrap().caught_up);
        assert_eq!((records, marks), (vec![1, 2], vec![5]));
        // Until its time has come for the writer.
        assert_eq!(ends.poll().2, [5]);
        ends.log.resume(&[(Partition::new(3).unwrap(), None)]);
        assert!(ends.poll().2.is_empty(), "read again from where the store is");
    }

    #[test]
    fn what_was_queued_before_a_resume_is_dropped() {
        let mut ends = Ends::new();
        ends.send(0, &record(1));
        ends.log.resume(&[(Partition::new(3).unwrap(), Some(LogOffset::new(7)))]);
        let Resume { from, .. } = ends.resumed.try_recv().unwrap();
        let (_, round, offset) = from.into_iter().find(|f| f.0.get() == 3).unwrap();
        assert_eq!((round, offset), (1, LogOffset::new(7)));
        ends.send(round, &record(2));
        assert_eq!(ends.poll().1, [2]);
    }

    #[test]
    fn a_new_assignment_and_a_loss_ask_for_the_stores_word_before_anything_else() {
        let mut ends = Ends::new();
        for is_lost in [false, true] {
            ends.send(0, &record(1));
            let lane = &ends.pump.lane;
            let flag = if is_lost { &lane.lost } else { &lane.changed };
            flag.store(true, Ordering::Release);
            let (polled, records, _) = ends.poll();
            assert!(polled.unwrap().must_reread && records.is_empty());
            assert_eq!(ends.poll().1.len(), usize::from(!is_lost), "lost ones come again");
        }
    }

    #[test]
    fn a_lane_that_was_full_has_room_for_what_comes_again() {
        let mut ends = Ends::new();
        while !ends.pump.sender.is_full() {
            ends.send(0, &record(1));
        }
        ends.pump.lane.lost.store(true, Ordering::Release);
        assert!(ends.poll().0.unwrap().must_reread);
        ends.log.resume(&[(Partition::new(3).unwrap(), None)]);
        assert!(!ends.pump.sender.is_full());
    }

    #[test]
    fn a_newer_message_holds_what_follows_and_a_foreign_one_is_passed_over() {
        let mut ends = Ends::new();
        ends.send(0, b"not ours");
        ends.send(0, &record(1));
        let mut newer = record(2);
        newer[0] = 2;
        ends.send(0, &newer);
        assert_eq!(ends.poll().1, [1], "what came before it is applied");
        assert_eq!(ends.pump.lane.foreign.load(Ordering::Relaxed), 1);
        assert!(ends.poll().0.unwrap().must_reread);
        // It comes again, and is the first one then.
        ends.send(0, &newer);
        assert!(matches!(ends.poll().0, Err(LogError::Malformed { .. })));
    }
}
