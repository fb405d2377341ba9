//! The `consume` thread: one member of the consumer group, for all database shards of a process.
//!
//! A partition's way:
//! ```text
//!            assigned            first Resume           seek done
//!   Away ─────────────▶ Waiting ─────────────▶ Seeking ───────────▶ Reading(position)
//!    ▲   paused: nothing is fetched              ▲  Resume from before the position │
//!    └──────────── revoked ◀─────────────────────┴──────────────────────────────────┘
//! ```
//! Member partitions go to the lane of their database shard; the control partition goes to every
//! lane, and is read from the furthest back that any of them asks for: duplicates are harmless. A
//! member partition whose lane fills up is paused, and goes on once the lane is half empty. The
//! control partition is not: one dead database would keep the others from it. What finds no room
//! in a lane is dropped there, and read again when that writer has recovered.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam::channel::{Receiver, Sender, TrySendError, unbounded};
use rdkafka::config::{FromClientConfigAndContext as _, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext, Rebalance};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Message as _};
use rdkafka::{ClientContext, Offset, TopicPartitionList};

use super::client::{self, ClientError, Ear};
use super::consume::{Item, KafkaLog, LANE_MAX, LaneEnd, Resume, lane};
use super::topic::Topics;
use crate::config::KafkaConfig;
use crate::ship::partition::{DatabaseShard, Layout, PARTITION_COUNT, Partition};

/// A lane this full pauses its partitions, and lets them go on once it is this empty.
const FULL: usize = LANE_MAX / 2;
const EMPTY: usize = LANE_MAX / 8;
/// How long a poll waits for a message.
const POLL: Duration = Duration::from_millis(10);
const SEEK_WITHIN: Duration = Duration::from_secs(5);
const AFTER_ERROR: Duration = Duration::from_millis(500);

/// Where a partition is on its way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum At {
    Away,
    Waiting,
    Seeking { to: i64 },
    Reading { position: i64 },
}

impl At {
    /// A writer wants to read on from an offset. Never forward: another writer may still be on the
    /// way there, and what this one has already is skipped by its watermark.
    fn resumed(self, offset: i64) -> Self {
        match self {
            Self::Away => Self::Away,
            Self::Waiting => Self::Seeking { to: offset },
            Self::Seeking { to } => Self::Seeking { to: to.min(offset) },
            Self::Reading { position } if offset < position => Self::Seeking { to: offset },
            Self::Reading { position } => Self::Reading { position },
        }
    }
}

/// A rebalance, as the consumer's callback heard it.
enum Change {
    Assigned(Vec<Partition>),
    Revoked(Vec<Partition>),
}

/// Hears rebalances on the `consume` thread itself, from within `poll`.
#[derive(Default)]
struct Hall {
    ear: Ear,
    changes: Mutex<Vec<Change>>,
}

impl ClientContext for Hall {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        client::log(level, facility, message);
    }
    fn error(&self, error: KafkaError, reason: &str) {
        self.ear.hear(&error, reason);
    }
}

impl ConsumerContext for Hall {
    fn pre_rebalance(&self, _: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        if let Rebalance::Revoke(list) = rebalance {
            self.note(Change::Revoked(partitions_of(list)));
        }
    }
    fn post_rebalance(&self, consumer: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        if let Rebalance::Assign(list) = rebalance {
            // Nothing is fetched before it is known from where on.
            if let Err(error) = consumer.pause(list) {
                tracing::warn!(%error, "assigned partitions could not be paused");
            }
            self.note(Change::Assigned(partitions_of(list)));
        }
    }
}

impl Hall {
    fn note(&self, change: Change) {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner).push(change);
    }
}

fn partitions_of(list: &TopicPartitionList) -> Vec<Partition> {
    let partition = |raw: i32| u8::try_from(raw).ok().and_then(Partition::new);
    list.elements().iter().filter_map(|e| partition(e.partition())).collect()
}

/// The running `consume` thread.
pub struct Pump {
    thread: JoinHandle<()>,
    is_stopped: Arc<AtomicBool>,
}

impl Pump {
    /// Leaves the group, and ends the thread.
    pub fn stop(self) {
        self.is_stopped.store(true, Ordering::Relaxed);
        self.thread.join().unwrap_or_else(|_| unreachable!("a panic ends the process"));
    }
}

/// Joins the consumer group; one log for each database shard's writer.
///
/// Errors: settings that librdkafka refuses, files that cannot be read.
pub fn start(config: &KafkaConfig, layout: Layout) -> Result<(Pump, Vec<KafkaLog>), ClientError> {
    let mut client = client::base(config)?;
    client
        .set("group.id", &config.group)
        // Contiguous partitions to each process: so few processes share a database shard.
        .set("partition.assignment.strategy", "range")
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("auto.offset.reset", "earliest")
        .set("session.timeout.ms", "10000")
        // The `consume` thread polls whatever happens; so this bounds only how long a rebalance
        // waits for a member that died in the middle of another.
        .set("max.poll.interval.ms", "15000")
        .set("heartbeat.interval.ms", "1000")
        .set("fetch.queue.backoff.ms", "10")
        .set("queued.min.messages", "20000")
        .set("queued.max.messages.kbytes", "65536");
    let consumer = BaseConsumer::from_config_and_context(&client, Hall::default())
        .map_err(|e| ClientError::Settings(e.to_string()))?;
    let (resumes, resumed) = unbounded();
    let (lanes, logs): (Vec<_>, Vec<_>) = layout
        .shards()
        .map(|shard| lane(shard, layout, &config.topic, Sender::clone(&resumes)))
        .unzip();
    let is_stopped = Arc::new(AtomicBool::new(false));
    let mut state = State {
        config: config.clone(),
        layout,
        consumer,
        lanes,
        resumed,
        at: [At::Away; PARTITION_COUNT],
        rounds: vec![[0; PARTITION_COUNT]; usize::from(layout.count())],
        is_paused: [false; PARTITION_COUNT],
        is_stopped: Arc::clone(&is_stopped),
    };
    let thread = std::thread::Builder::new()
        .name("consume".into())
        .spawn(move || state.run())
        .map_err(|e| ClientError::Settings(format!("cannot start a thread: {e}")))?;
    Ok((Pump { thread, is_stopped }, logs))
}

struct State {
    config: KafkaConfig,
    layout: Layout,
    consumer: BaseConsumer<Hall>,
    lanes: Vec<LaneEnd>,
    resumed: Receiver<Resume>,
    at: [At; PARTITION_COUNT],
    /// Per database shard and partition, the round that its messages carry from here.
    rounds: Vec<[u32; PARTITION_COUNT]>,
    /// As the consumer was last told.
    is_paused: [bool; PARTITION_COUNT],
    is_stopped: Arc<AtomicBool>,
}

impl State {
    fn is_stopped(&self) -> bool {
        self.is_stopped.load(Ordering::Relaxed)
    }

    fn run(&mut self) {
        if !self.await_topics() {
            return;
        }
        while let Err(error) = self.consumer.subscribe(&[&self.config.topic]) {
            tracing::error!(%error, "cannot join the consumer group");
            std::thread::sleep(AFTER_ERROR);
            if self.is_stopped() {
                return;
            }
        }
        let mut is_silent = false;
        while !self.is_stopped() {
            self.hear_resumes();
            self.seek();
            self.pause_and_go_on();
            // Up to a batch between two looks at the rest; the first may wait.
            let mut wait = POLL;
            for _ in 0..1024 {
                let polled = self.consumer.poll(wait).map(|r| r.map(|m| item(&m)));
                wait = Duration::ZERO;
                if self.hear_changes() {
                    break;
                }
                match polled {
                    Some(Ok(Some((partition, offset, payload)))) => {
                        is_silent = false;
                        self.deliver(partition, offset, &payload);
                    }
                    Some(Ok(None)) => {}
                    Some(Err(error)) => {
                        if !std::mem::replace(&mut is_silent, true) {
                            let why = self.consumer.context().ear.why_held_up();
                            let why = why.unwrap_or_else(|| error.to_string());
                            tracing::warn!(error = why, "reading the topic is held up");
                        }
                        break;
                    }
                    None => break,
                }
            }
        }
        self.consumer.unsubscribe();
        // Leaving the group is an event of its own; the next poll serves it.
        let _ = self.consumer.poll(POLL);
    }

    fn await_topics(&self) -> bool {
        let mut last = String::new();
        while !self.is_stopped() {
            let Err(error) = Topics::connect(&self.config).and_then(|topics| topics.check()) else {
                return true;
            };
            let text = error.to_string();
            if text != last {
                tracing::warn!(error = text, "persist waits for Kafka");
                last = text;
            }
            std::thread::sleep(AFTER_ERROR);
        }
        false
    }

    fn lanes_of(&self, partition: Partition) -> impl Iterator<Item = usize> + use<> {
        let layout = self.layout;
        layout.shards().filter(move |s| layout.reads(*s, partition)).map(DatabaseShard::index)
    }

    /// `true` when the assignment changed.
    fn hear_changes(&mut self) -> bool {
        let changes = std::mem::take(
            &mut *self.consumer.context().changes.lock().unwrap_or_else(PoisonError::into_inner),
        );
        let has_changed = !changes.is_empty();
        for change in changes {
            match change {
                Change::Assigned(partitions) => {
                    tracing::info!(count = partitions.len(), "partitions assigned");
                    for partition in partitions {
                        self.at[partition.index()] = At::Waiting;
                        self.is_paused[partition.index()] = true;
                        for lane in self.lanes_of(partition) {
                            self.lanes[lane].lane.changed.store(true, Ordering::Release);
                        }
                    }
                }
                Change::Revoked(partitions) => {
                    tracing::info!(count = partitions.len(), "partitions revoked");
                    for partition in partitions {
                        self.at[partition.index()] = At::Away;
                        for lane in self.lanes_of(partition) {
                            // What is queued of it belongs to somebody else now.
                            let rounds = &self.lanes[lane].lane.rounds;
                            rounds[partition.index()].fetch_add(1, Ordering::Relaxed);
                        }
                    }
                }
            }
        }
        has_changed
    }

    fn hear_resumes(&mut self) {
        while let Ok(Resume { shard, from }) = self.resumed.try_recv() {
            for (partition, round, offset) in from {
                let index = partition.index();
                self.rounds[shard.index()][index] = round;
                let offset = offset.get();
                self.at[index] = self.at[index].resumed(offset);
            }
        }
    }

    /// Seeks where it is due. A partition that was just assigned refuses for a moment.
    fn seek(&mut self) {
        let mut list = TopicPartitionList::new();
        for partition in Partition::all() {
            if let At::Seeking { to } = self.at[partition.index()] {
                let (topic, raw) = (&self.config.topic, i32::from(partition.get()));
                list.add_partition_offset(topic, raw, Offset::Offset(to))
                    .expect("offsets are not negative");
            }
        }
        if list.count() == 0 {
            return;
        }
        let done = match self.consumer.seek_partitions(list, SEEK_WITHIN) {
            Ok(done) => done,
            Err(error) => {
                tracing::debug!(%error, "a seek is tried again");
                return;
            }
        };
        for element in done.elements() {
            let partition = u8::try_from(element.partition()).ok().and_then(Partition::new);
            let Some(partition) = partition else { continue };
            let index = partition.index();
            if let (Ok(()), At::Seeking { to }) = (element.error(), self.at[index]) {
                self.at[index] = At::Reading { position: to };
            }
        }
    }

    /// Tells the consumer which partitions to fetch.
    fn pause_and_go_on(&mut self) {
        let (mut pause, mut go_on) = (TopicPartitionList::new(), TopicPartitionList::new());
        for partition in Partition::all() {
            let index = partition.index();
            let is_paused = self.is_paused[index];
            let waits = match self.at[index] {
                At::Away => continue,
                At::Waiting | At::Seeking { .. } => is_paused,
                At::Reading { .. } if partition == Partition::CONTROL => false,
                At::Reading { .. } => {
                    let lane = self.layout.shard_of(partition).index();
                    let bound = if is_paused { EMPTY } else { FULL };
                    self.lanes[lane].sender.len() > bound
                }
            };
            if waits != is_paused {
                let list = if waits { &mut pause } else { &mut go_on };
                list.add_partition(&self.config.topic, i32::from(partition.get()));
                self.is_paused[index] = waits;
            }
        }
        for result in [
            (pause.count() > 0).then(|| self.consumer.pause(&pause)),
            (go_on.count() > 0).then(|| self.consumer.resume(&go_on)),
        ] {
            if let Some(Err(error)) = result {
                tracing::warn!(%error, "partitions could not be paused or resumed");
            }
        }
    }

    fn deliver(&mut self, partition: Partition, offset: i64, payload: &[u8]) {
        let index = partition.index();
        // What was under way before a seek is dropped. An offset below the position is a topic
        // that was made anew, or cut: the gap rule finds what is missing.
        let At::Reading { .. } = self.at[index] else { return };
        self.at[index] = At::Reading { position: offset + 1 };
        for lane in self.lanes_of(partition) {
            let item = Item {
                partition,
                round: self.rounds[lane][index],
                offset,
                payload: payload.into(),
            };
            if let Err(TrySendError::Full(_)) = self.lanes[lane].sender.try_send(item) {
                self.lanes[lane].lane.lost.store(true, Ordering::Release);
            }
        }
    }
}

/// A message's partition, offset and payload; `None`: of a partition that we do not know.
fn item(message: &BorrowedMessage<'_>) -> Option<(Partition, i64, Box<[u8]>)> {
    let partition = u8::try_from(message.partition()).ok().and_then(Partition::new)?;
    Some((partition, message.offset(), message.payload().unwrap_or_default().into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_is_read_from_the_furthest_back_that_any_writer_asks_for() {
        assert_eq!(At::Away.resumed(5), At::Away, "it is somebody else's");
        let at = At::Waiting.resumed(50).resumed(70).resumed(40);
        assert_eq!(at, At::Seeking { to: 40 });
    }

    #[test]
    fn a_writer_that_is_behind_takes_it_back_and_one_that_is_ahead_changes_nothing() {
        let at = At::Reading { position: 60 };
        assert_eq!(at.resumed(60), at);
        assert_eq!(at.resumed(90), at);
        assert_eq!(at.resumed(59), At::Seeking { to: 59 });
    }
}
