//! The sending end's protocol, without I/O: what to send again, and when. The driver sends.
//!
//! Per partition of this journal:
//! ```text
//!        held              acked             sent
//!  ────────●─────────────────●─────────────────●──────────▶ seq
//!          │                 │                 └ handed to the producer
//!          │                 └ in Kafka, acks=all, all before it too
//!          └ in every database shard that reads the partition: the restart point
//! ```
//! - **Start.** Nothing is sent of a partition before it is known how far the database shards hold
//!   it; then it is sent from there on. Duplicates are harmless, so one answer is enough: the
//!   control partition, which every database shard reads, is sent again from further back when a
//!   later answer says so.
//! - **Failure.** A message that the producer gave up takes its partition back to `acked`. After a
//!   *fatal* error nothing of that producer is trusted: a new one is made, and every partition goes
//!   back to `held`.
//! - **Rewind request.** Left by a consumer that noticed a gap. It is served once; it is served
//!   again only when the watermark has not moved for [`ASKED_AGAIN_MS`] since.
//! - **Marks** say how far a partition is complete, so that an idle one lets segments go. One that
//!   the database shards do not follow is repeated: its `prev_seq` shows them what they lack.
//!
//! Each time that a partition is taken back its *round* rises, and reports of older rounds are
//! ignored.

use crate::planted::{self, Bug};
use crate::ship::partition::{DatabaseShard, Layout, PARTITION_COUNT, Partition};
use crate::units::Seq;

/// How long a served rewind request must show no effect before it is served again.
pub const ASKED_AGAIN_MS: u64 = 10_000;
/// How often a mark is sent while a partition moves.
pub const MARK_EVERY_MS: u64 = 500;
/// How often a mark is repeated that the database shards do not follow.
pub const REMIND_EVERY_MS: u64 = 10_000;

/// Which taking-back of a partition a message belongs to. Wraps; only equality counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Round(u16);

impl Round {
    pub const BITS: u32 = 10;

    pub const fn new(raw: u16) -> Self {
        Self(raw & ((1 << Self::BITS) - 1))
    }
    pub const fn get(self) -> u16 {
        self.0
    }
    fn next(self) -> Self {
        Self::new(self.0 + 1)
    }
}

/// What the driver is to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// Read this partition again from the record behind `to` on.
    Rewind { partition: Partition, to: Seq },
    /// Drop the producer and everything it has in flight, and make another.
    NewProducer,
}

/// A rewind request that was served.
#[derive(Clone, Copy, Debug)]
struct Served {
    to: Seq,
    at_ms: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Lane {
    /// Whether any database shard has said how far it is.
    is_started: bool,
    held: Seq,
    acked: Seq,
    sent: Seq,
    round: Round,
    served: Option<Served>,
    marked: Seq,
    marked_at_ms: u64,
}

/// The sending end of one journal.
pub struct Shipper {
    lanes: [Lane; PARTITION_COUNT],
    /// Per database shard and partition, how far it is; `None` before its first answer, and where
    /// it does not hold the partition.
    held: Vec<[Option<Seq>; PARTITION_COUNT]>,
}

impl Shipper {
    pub fn new(layout: Layout) -> Self {
        let held = layout.shards().map(|_| [None; PARTITION_COUNT]).collect();
        Self { lanes: [Lane::default(); PARTITION_COUNT], held }
    }

    fn lane(&mut self, partition: Partition) -> &mut Lane {
        &mut self.lanes[partition.index()]
    }

    /// The partition's round, to go with each message.
    pub fn round(&self, partition: Partition) -> Round {
        self.lanes[partition.index()].round
    }
    /// Everything of the journal up to here is in Kafka, as far as it has been read through.
    pub fn acked_through(&self, read_through: Seq) -> Seq {
        let through = |lane: &Lane| if lane.acked == lane.sent { read_through } else { lane.acked };
        let all_started = self.lanes.iter().all(|l| l.is_started);
        let through = self.lanes.iter().map(through).min().unwrap_or(Seq::NONE);
        if all_started { through } else { Seq::NONE }
    }

    /// Takes a partition back: it is sent again from the record behind `to` on.
    fn take_back(&mut self, partition: Partition, to: Seq) -> Action {
        let lane = self.lane(partition);
        lane.round = lane.round.next();
        lane.acked = to;
        lane.sent = to;
        lane.marked = to;
        Action::Rewind { partition, to }
    }

    /// A database shard says how far it holds a partition of this journal (`NONE`: nothing yet).
    pub fn on_held(
        &mut self,
        shard: DatabaseShard,
        partition: Partition,
        seq: Seq,
    ) -> Option<Action> {
        let is_first = self.held[shard.index()][partition.index()].replace(seq).is_none();
        let answers = self.held.iter().filter_map(|of_shard| of_shard[partition.index()]);
        let held = answers.min().unwrap_or_default();
        let lane = self.lane(partition);
        let (was_started, before) = (lane.is_started, lane.held);
        lane.is_started = true;
        lane.held = held;
        // A watermark that goes back (a restored backup) needs nothing from here: its offsets went
        // back with it, and what Kafka no longer has is asked for.
        if !was_started || (is_first && held < before) {
            return Some(self.take_back(partition, held));
        }
        None
    }

    /// A database shard does not hold a partition, or not any more: it was given to another.
    pub fn on_left(&mut self, shard: DatabaseShard, partition: Partition) {
        self.held[shard.index()][partition.index()] = None;
    }

    /// A database shard asks for a partition from the record behind `to` on. What it has passed
    /// since it asked needs no answer any more.
    pub fn on_asked(
        &mut self,
        shard: DatabaseShard,
        partition: Partition,
        to: Seq,
        now_ms: u64,
    ) -> Option<Action> {
        if self.held[shard.index()][partition.index()].is_some_and(|held| held > to) {
            return None;
        }
        let lane = self.lane(partition);
        let again = lane.served.is_none_or(|s| s.to != to || now_ms >= s.at_ms + ASKED_AGAIN_MS);
        if !lane.is_started || !again {
            return None;
        }
        lane.served = Some(Served { to, at_ms: now_ms });
        Some(self.take_back(partition, to))
    }

    /// A message was handed to the producer.
    pub fn on_sent(&mut self, partition: Partition, seq: Seq) {
        let lane = self.lane(partition);
        lane.sent = lane.sent.max(seq);
    }

    /// The producer reports a message as written by all replicas. Reports of one partition come
    /// in order.
    pub fn on_acked(&mut self, partition: Partition, round: Round, seq: Seq) {
        let lane = self.lane(partition);
        if lane.round == round {
            lane.acked = lane.acked.max(seq);
        }
    }

    /// The producer gave a message up.
    pub fn on_failed(&mut self, partition: Partition, round: Round) -> Option<Action> {
        let lane = *self.lane(partition);
        (lane.round == round).then(|| self.take_back(partition, lane.acked))
    }

    /// The producer can go on no more.
    pub fn on_fatal(&mut self) -> Vec<Action> {
        let mut actions = vec![Action::NewProducer];
        for partition in Partition::all() {
            let lane = *self.lane(partition);
            if lane.is_started {
                let to = if planted::is(Bug::RestartFromSent) { lane.sent } else { lane.held };
                actions.push(self.take_back(partition, to));
            }
        }
        actions
    }

    /// Whether a mark that says "complete through" is to be sent now; notes that it is.
    pub fn takes_mark(&mut self, partition: Partition, through: Seq, now_ms: u64) -> bool {
        let lane = self.lane(partition);
        let is_new = through > lane.marked && now_ms >= lane.marked_at_ms + MARK_EVERY_MS;
        let is_lost = lane.held < through
            && now_ms >= lane.marked_at_ms + REMIND_EVERY_MS
            && !planted::is(Bug::MarkNotRepeated);
        if !lane.is_started || !(is_new || is_lost) {
            return false;
        }
        lane.marked = through;
        lane.marked_at_ms = now_ms;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn partition(raw: u8) -> Partition {
        Partition::new(raw).unwrap()
    }
    fn shard(raw: u8) -> DatabaseShard {
        DatabaseShard::new(raw)
    }
    fn seq(raw: u64) -> Seq {
        Seq::new(raw)
    }
    fn shipper(shards: u8) -> Shipper {
        Shipper::new(Layout::new(shards).unwrap())
    }
    #[expect(clippy::unnecessary_wraps, reason = "compared with what the machine returns")]
    fn rewind(raw: u8, to: u64) -> Option<Action> {
        Some(Action::Rewind { partition: partition(raw), to: seq(to) })
    }

    #[test]
    fn a_partition_begins_where_its_database_shard_is_and_is_not_taken_back_by_progress() {
        let mut s = shipper(2);
        assert_eq!(s.on_held(shard(0), partition(3), seq(70)), rewind(3, 70));
        assert_eq!(s.on_held(shard(0), partition(3), seq(90)), None);
    }

    #[test]
    fn the_control_partition_goes_back_to_the_slowest_database_shard_whenever_it_answers() {
        let mut s = shipper(2);
        assert_eq!(s.on_held(shard(1), Partition::CONTROL, seq(70)), rewind(32, 70));
        s.on_sent(Partition::CONTROL, seq(90));
        assert_eq!(s.on_held(shard(0), Partition::CONTROL, seq(50)), rewind(32, 50));
        assert_eq!(s.on_held(shard(0), Partition::CONTROL, seq(60)), None);
    }

    #[test]
    fn a_partition_that_was_given_to_another_database_shard_is_not_sent_again() {
        let mut s = shipper(2);
        s.on_held(shard(0), partition(3), seq(70));
        assert_eq!(s.on_held(shard(1), partition(3), seq(70)), None);
        s.on_left(shard(0), partition(3));
        assert_eq!(s.on_held(shard(1), partition(3), seq(90)), None);
        assert_eq!(s.lanes[3].held, seq(90), "the old holder's word counts no more");
    }

    #[test]
    fn a_database_shard_that_was_set_back_to_a_backup_gets_what_it_asks_for() {
        let mut s = shipper(1);
        s.on_held(shard(0), partition(3), seq(70));
        assert_eq!(s.on_held(shard(0), partition(3), seq(20)), None, "Kafka may have it still");
        assert_eq!(s.on_asked(shard(0), partition(3), seq(20), 0), rewind(3, 20));
    }

    #[test]
    fn a_request_is_served_once_and_again_when_it_had_no_effect() {
        let mut s = shipper(1);
        let ask = |s: &mut Shipper, to, ms| s.on_asked(shard(0), partition(0), seq(to), ms);
        assert_eq!(ask(&mut s, 5, 0), None, "it has not begun");
        s.on_held(shard(0), partition(0), seq(5));
        assert_eq!(ask(&mut s, 5, 1), rewind(0, 5));
        assert_eq!(ask(&mut s, 5, 2), None);
        s.on_held(shard(0), partition(0), seq(9));
        assert_eq!(ask(&mut s, 9, 3), rewind(0, 9));
        assert_eq!(ask(&mut s, 9, 3 + ASKED_AGAIN_MS), rewind(0, 9));
        s.on_held(shard(0), partition(0), seq(10));
        assert_eq!(ask(&mut s, 9, 90_000), None, "it has come meanwhile");
    }

    #[test]
    fn a_message_given_up_takes_its_partition_back_once_and_late_reports_change_nothing() {
        let mut s = shipper(1);
        s.on_held(shard(0), partition(0), seq(0));
        let old = s.round(partition(0));
        (1..=9).for_each(|n| s.on_sent(partition(0), seq(n)));
        s.on_acked(partition(0), old, seq(4));
        assert_eq!(s.on_failed(partition(0), old), rewind(0, 4));
        assert_eq!(s.on_failed(partition(0), old), None);
        s.on_acked(partition(0), old, seq(9));
        assert_eq!(s.on_failed(partition(0), s.round(partition(0))), rewind(0, 4));
    }

    #[test]
    fn after_a_fatal_error_everything_is_sent_again_from_what_the_databases_hold() {
        let mut s = shipper(1);
        s.on_held(shard(0), partition(0), seq(2));
        s.on_held(shard(0), partition(1), seq(3));
        s.on_sent(partition(0), seq(50));
        s.on_acked(partition(0), s.round(partition(0)), seq(50));
        let actions = s.on_fatal();
        assert_eq!(actions[0], Action::NewProducer);
        assert_eq!(&actions[1..], [rewind(0, 2).unwrap(), rewind(1, 3).unwrap()]);
    }

    #[test]
    fn an_idle_partition_is_marked_and_reminded_until_the_databases_follow() {
        let mut s = shipper(1);
        assert!(!s.takes_mark(partition(0), seq(9), 10_000), "nothing before it has begun");
        s.on_held(shard(0), partition(0), seq(2));
        assert!(s.takes_mark(partition(0), seq(9), 10_000));
        assert!(!s.takes_mark(partition(0), seq(12), 10_001), "not so often");
        assert!(!s.takes_mark(partition(0), seq(9), 10_000 + MARK_EVERY_MS), "nothing new");
        assert!(s.takes_mark(partition(0), seq(9), 10_000 + REMIND_EVERY_MS));
        s.on_held(shard(0), partition(0), seq(9));
        assert!(!s.takes_mark(partition(0), seq(9), 90_000));
    }

    #[test]
    fn what_is_in_kafka_is_known_only_once_every_partition_has_begun() {
        let mut s = shipper(1);
        for p in Partition::all().take(32) {
            s.on_held(shard(0), p, seq(0));
        }
        assert_eq!(s.acked_through(seq(100)), Seq::NONE);
        s.on_held(shard(0), Partition::CONTROL, seq(0));
        assert_eq!(s.acked_through(seq(100)), seq(100));
        s.on_sent(partition(4), seq(90));
        assert_eq!(s.acked_through(seq(100)), Seq::NONE);
        s.on_acked(partition(4), s.round(partition(4)), seq(90));
        assert_eq!(s.acked_through(seq(100)), seq(100));
    }
}
