//! The `consume` thread: one member of the consumer group, for all database shards of a process.
//! What is read and for whom `reading` decides.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rdkafka::config::{FromClientConfigAndContext as _, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext, Rebalance};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Message as _};
use rdkafka::{ClientContext, Offset, TopicPartitionList};

use super::client::{self, ClientError, Ear};
use super::consume::KafkaLog;
use super::reading::Reading;
use super::topic::Topics;
use crate::clock::{Clock, SetBack};
use crate::config::KafkaConfig;
use crate::ship::partition::{Layout, PARTITION_COUNT, Partition};

/// Pause where no message waits. Never within librdkafka: see `producer`.
const IDLE: Duration = Duration::from_millis(2);
/// Messages that wait for one database shard's writer, at most.
const LANE_MAX: usize = 65_536;
/// For the farewell.
const POLL: Duration = Duration::from_millis(10);
const SEEK_WITHIN: Duration = Duration::from_secs(5);
const AFTER_ERROR: Duration = Duration::from_millis(500);

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
pub fn start(
    config: &KafkaConfig,
    layout: Layout,
    clock: Arc<dyn Clock>,
) -> Result<(Pump, Vec<KafkaLog>), ClientError> {
    let consumer = consumer(config)?;
    let (reading, logs) = Reading::new(&config.topic, layout, LANE_MAX);
    let is_stopped = Arc::new(AtomicBool::new(false));
    let mut state = State {
        config: config.clone(),
        consumer,
        set_back: SetBack::new(clock),
        reading,
        is_paused: [false; PARTITION_COUNT],
        is_stopped: Arc::clone(&is_stopped),
    };
    let thread = std::thread::Builder::new()
        .name("consume".into())
        .spawn(move || state.run())
        .map_err(|e| ClientError::Settings(format!("cannot start a thread: {e}")))?;
    Ok((Pump { thread, is_stopped }, logs))
}

fn consumer(config: &KafkaConfig) -> Result<BaseConsumer<Hall>, ClientError> {
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
    BaseConsumer::from_config_and_context(&client, Hall::default())
        .map_err(|e| ClientError::Settings(e.to_string()))
}

struct State {
    config: KafkaConfig,
    consumer: BaseConsumer<Hall>,
    set_back: SetBack,
    reading: Reading,
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
        self.join();
        let mut is_silent = false;
        while !self.is_stopped() {
            if self.set_back.look() {
                self.begin_anew();
            }
            self.reading.hear_resumes();
            self.seek();
            self.pause_and_go_on();
            // Up to a batch between two looks at the rest.
            for n in 0..1024 {
                let polled = self.consumer.poll(Duration::ZERO).map(|r| r.map(|m| item(&m)));
                if self.hear_changes() {
                    break;
                }
                match polled {
                    Some(Ok(Some((partition, offset, payload)))) => {
                        is_silent = false;
                        self.reading.deliver(partition, offset, &payload);
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
                    None => {
                        if n == 0 {
                            std::thread::sleep(IDLE);
                        }
                        break;
                    }
                }
            }
        }
        self.consumer.unsubscribe();
        // Leaving the group is an event of its own; the next poll serves it.
        let _ = self.consumer.poll(POLL);
    }

    fn join(&self) {
        while let Err(error) = self.consumer.subscribe(&[&self.config.topic]) {
            tracing::error!(%error, "cannot join the consumer group");
            std::thread::sleep(AFTER_ERROR);
            if self.is_stopped() {
                return;
            }
        }
    }

    /// Another consumer, whose waits begin anew, takes the place of this one, which leaves the
    /// group.
    fn begin_anew(&mut self) {
        tracing::warn!("the clock was set back: making another consumer");
        match consumer(&self.config) {
            Ok(consumer) => {
                self.reading.take_away(Partition::all());
                self.consumer = consumer;
                self.join();
            }
            Err(error) => tracing::error!(%error, "no other consumer can be made"),
        }
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
                    for partition in &partitions {
                        self.is_paused[partition.index()] = true;
                    }
                    self.reading.assign(partitions);
                }
                Change::Revoked(partitions) => {
                    tracing::info!(count = partitions.len(), "partitions revoked");
                    self.reading.take_away(partitions);
                }
            }
        }
        has_changed
    }

    /// Seeks where it is due. A partition that was just assigned refuses for a moment.
    fn seek(&mut self) {
        let mut list = TopicPartitionList::new();
        for (partition, to) in self.reading.seeking() {
            let (topic, raw) = (&self.config.topic, i32::from(partition.get()));
            list.add_partition_offset(topic, raw, Offset::Offset(to))
                .expect("offsets are not negative");
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
            if let (Ok(()), Some(partition)) = (element.error(), partition) {
                self.reading.sought(partition);
            }
        }
    }

    /// Tells the consumer which partitions to fetch.
    fn pause_and_go_on(&mut self) {
        let (mut pause, mut go_on) = (TopicPartitionList::new(), TopicPartitionList::new());
        for partition in Partition::all() {
            let index = partition.index();
            let is_paused = self.is_paused[index];
            let Some(waits) = self.reading.waits(partition, is_paused) else { continue };
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
}

/// A message's partition, offset and payload; `None`: of a partition that we do not know.
fn item(message: &BorrowedMessage<'_>) -> Option<(Partition, i64, Box<[u8]>)> {
    let partition = u8::try_from(message.partition()).ok().and_then(Partition::new)?;
    Some((partition, message.offset(), message.payload().unwrap_or_default().into()))
}
