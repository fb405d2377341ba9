//! The `ship` thread: reads the journal from disk, hands it to the producer, and tells the state
//! machine (`shipper`) what became of it.
//!
//! Memory is O(1) however far behind Kafka is: one batch read from disk, and librdkafka's queue
//! with its two bounds. A full queue is back-pressure: nothing more is read until there is room.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam::channel::Receiver;
use rdkafka::ClientContext;
use rdkafka::config::{FromClientConfigAndContext as _, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, Producer as _, ProducerContext};

use super::client::{self, ClientError, Ear};
use super::message::Message;
use super::shipper::{Action, Round, Shipper};
use super::topic::Topics;
use crate::clock::Clock;
use crate::config::KafkaConfig;
use crate::kernel::record;
use crate::ship::frames::FrameSource;
use crate::ship::log::{Head, Log as _, LogBatch, LogError, LogRecord, Place};
use crate::ship::partition::{DatabaseShard, Layout, PARTITION_COUNT, Partition};
use crate::ship::tail::JournalLog;
use crate::units::Seq;

/// Messages in librdkafka's queue, at most, and their bytes.
const QUEUE_MESSAGES: u32 = 200_000;
const QUEUE_KIB: u32 = 65_536;
/// Records read from disk at a time.
const BATCH: usize = 4096;
/// Pause where there is nothing to do, and after an error.
const IDLE: Duration = Duration::from_millis(5);
const AFTER_ERROR: Duration = Duration::from_millis(500);

/// What the database shards say, read beside the shipper.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Standing {
    pub shard: DatabaseShard,
    /// How far each partition of this journal is there.
    pub held: Vec<(Partition, Seq)>,
    /// Open rewind requests for this journal.
    pub asked: Vec<(Partition, Seq)>,
}

/// How shipping goes. Each figure is written by the `ship` thread alone; Relaxed: readers see it a
/// moment late, and nothing hangs on two of them together.
#[derive(Default)]
pub struct ShipStatus {
    acked_through: AtomicU64,
    pub records: AtomicU64,
    pub rewinds: AtomicU64,
    /// Producers made, the first one included.
    pub producers: AtomicU64,
    last_error: Mutex<Option<String>>,
}

impl ShipStatus {
    /// Everything of the journal up to here is in Kafka.
    pub fn acked_through(&self) -> Seq {
        Seq::new(self.acked_through.load(Ordering::Relaxed))
    }
    /// Why nothing is shipped just now; `None` while it goes on.
    pub fn last_error(&self) -> Option<String> {
        self.last_error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
    /// Notes and logs an error, once until another one comes or it is over.
    fn set_error(&self, error: Option<String>) {
        let mut last = self.last_error.lock().unwrap_or_else(PoisonError::into_inner);
        if *last != error {
            if let Some(error) = &error {
                tracing::warn!(error, "shipping is held up");
            } else {
                tracing::info!("shipping goes on");
            }
            *last = error;
        }
    }
}

/// The running `ship` thread.
pub struct Ship {
    thread: JoinHandle<bool>,
    control: Arc<Control>,
    status: Arc<ShipStatus>,
}

#[derive(Default)]
struct Control {
    /// End once everything durable is in Kafka.
    is_draining: AtomicBool,
    is_aborted: AtomicBool,
    /// A test wants the producer to break as librdkafka's own do.
    #[cfg(test)]
    breaks: AtomicBool,
}

impl Ship {
    /// Puts the producer into librdkafka's fatal state.
    #[cfg(test)]
    pub fn break_producer(&self) {
        self.control.breaks.store(true, Ordering::Relaxed);
    }

    pub fn status(&self) -> &Arc<ShipStatus> {
        &self.status
    }

    /// Ends the thread, once everything durable is in Kafka or the deadline has passed; `true`
    /// when all of it is.
    pub fn stop(self, deadline: Duration) -> bool {
        self.control.is_draining.store(true, Ordering::Relaxed);
        let slice = Duration::from_millis(5);
        let mut waited = Duration::ZERO;
        while waited < deadline && !self.thread.is_finished() {
            std::thread::sleep(slice);
            waited += slice;
        }
        self.control.is_aborted.store(true, Ordering::Relaxed);
        self.thread.join().unwrap_or_else(|_| unreachable!("a panic ends the process"))
    }
}

/// Starts shipping `source` to Kafka.
///
/// Errors: settings that librdkafka refuses, files that cannot be read.
pub fn start<F: FrameSource + 'static>(
    config: KafkaConfig,
    layout: Layout,
    source: F,
    standings: Receiver<Standing>,
    clock: Arc<dyn Clock>,
) -> Result<Ship, ClientError> {
    let (status, control) = (Arc::new(ShipStatus::default()), Arc::new(Control::default()));
    let mut driver = Driver {
        producer: producer(&config)?,
        topic: config.topic.as_str().into(),
        config,
        log: JournalLog::new(source, []),
        shipper: Shipper::new(layout),
        standings,
        clock,
        status: Arc::clone(&status),
        control: Arc::clone(&control),
        message: Vec::new(),
    };
    driver.status.producers.store(1, Ordering::Relaxed);
    let thread = std::thread::Builder::new()
        .name("ship".into())
        .spawn(move || driver.run())
        .map_err(|e| ClientError::Settings(format!("cannot start a thread: {e}")))?;
    Ok(Ship { thread, control, status })
}

/// What became of the messages since it was last asked.
struct Reports {
    /// Per partition the newest message that was written, of the newest round seen.
    acked: [Option<(Round, Seq)>; PARTITION_COUNT],
    failed: Vec<(Partition, Round, RDKafkaErrorCode)>,
}

impl Default for Reports {
    fn default() -> Self {
        Self { acked: [None; PARTITION_COUNT], failed: Vec::new() }
    }
}

/// Gathers the producer's reports; called by the `ship` thread itself, from within `poll`.
#[derive(Default)]
struct Desk {
    ear: Ear,
    reports: Mutex<Reports>,
}

impl Desk {
    fn reports(&self) -> std::sync::MutexGuard<'_, Reports> {
        self.reports.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ClientContext for Desk {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        client::log(level, facility, message);
    }
    fn error(&self, error: KafkaError, reason: &str) {
        self.ear.hear(&error, reason);
    }
}

impl ProducerContext for Desk {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, ticket: usize) {
        let Ticket { partition, round, seq } = Ticket::unpack(ticket as u64);
        let mut reports = self.reports();
        match result {
            Ok(_) => reports.acked[partition.index()] = Some((round, seq)),
            Err((error, _)) => {
                let code = error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Fail);
                reports.failed.push((partition, round, code));
            }
        }
    }
}

/// What goes through librdkafka with a message, in the 64 bits that it carries for us.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Ticket {
    partition: Partition,
    round: Round,
    seq: Seq,
}

impl Ticket {
    const SEQ_BITS: u32 = 48;
    const PARTITION_BITS: u32 = 64 - Self::SEQ_BITS - Round::BITS;

    fn pack(self) -> u64 {
        assert!(self.seq.get() < 1 << Self::SEQ_BITS, "a journal of 2^48 records");
        let round = u64::from(self.round.get()) << Self::PARTITION_BITS;
        (round | u64::from(self.partition.get())) << Self::SEQ_BITS | self.seq.get()
    }
    fn unpack(raw: u64) -> Self {
        let high = raw >> Self::SEQ_BITS;
        let partition = high & ((1 << Self::PARTITION_BITS) - 1);
        Self {
            partition: Partition::new(partition as u8).expect("as it was packed"),
            round: Round::new((high >> Self::PARTITION_BITS) as u16),
            seq: Seq::new(raw & ((1 << Self::SEQ_BITS) - 1)),
        }
    }
}

fn producer(config: &KafkaConfig) -> Result<BaseProducer<Desk>, ClientError> {
    let mut client = client::base(config)?;
    client
        .set("enable.idempotence", "true")
        .set("acks", "all")
        .set("compression.type", config.compression.name())
        .set("linger.ms", "5")
        .set("batch.num.messages", "10000")
        .set("queue.buffering.max.messages", QUEUE_MESSAGES.to_string())
        .set("queue.buffering.max.kbytes", QUEUE_KIB.to_string())
        // Given up never: an outage is waited out, and the bound is the queue's.
        .set("message.timeout.ms", "0");
    BaseProducer::from_config_and_context(&client, Desk::default())
        .map_err(|e| ClientError::Settings(e.to_string()))
}

struct Driver<F> {
    config: KafkaConfig,
    producer: BaseProducer<Desk>,
    log: JournalLog<F>,
    shipper: Shipper,
    standings: Receiver<Standing>,
    clock: Arc<dyn Clock>,
    status: Arc<ShipStatus>,
    control: Arc<Control>,
    topic: Arc<str>,
    message: Vec<u8>,
}

impl<F: FrameSource> Driver<F> {
    fn run(&mut self) -> bool {
        if !self.await_topics() {
            return false;
        }
        let mut batch = LogBatch::default();
        loop {
            if self.control.is_aborted.load(Ordering::Relaxed) {
                return false;
            }
            #[cfg(test)]
            if self.control.breaks.swap(false, Ordering::Relaxed) {
                tests::break_producer(&self.producer);
            }
            self.hear_standings();
            client::serve_reports(&self.producer);
            self.hear_reports();
            // Rounds as they are now: whatever is taken back while this batch is sent, is skipped.
            let rounds = Partition::all().map(|p| self.shipper.round(p)).collect::<Vec<_>>();
            let caught_up = match self.log.poll(BATCH, &mut batch) {
                Ok(polled) => polled.caught_up,
                Err(error) => {
                    self.cannot_read(&error);
                    continue;
                }
            };
            for record in &batch.records {
                if rounds[record.partition.index()] == self.shipper.round(record.partition)
                    && !self.send_record(&batch, record)
                {
                    return false;
                }
            }
            self.send_marks(&batch);
            let through = self.shipper.acked_through(self.log.read_through());
            self.status.acked_through.store(through.get(), Ordering::Relaxed);
            self.status.records.fetch_add(batch.records.len() as u64, Ordering::Relaxed);
            if caught_up {
                let Head { seq: durable, .. } = self.log.head();
                if self.control.is_draining.load(Ordering::Relaxed) && through >= durable {
                    return true;
                }
                self.producer.poll(IDLE);
            }
        }
    }

    fn now_ms(&self) -> u64 {
        self.clock.monotonic_ns() / 1_000_000
    }

    /// Nothing is sent to topics that are not as they should be: what stands in them could not be
    /// taken back.
    fn await_topics(&mut self) -> bool {
        while !self.control.is_aborted.load(Ordering::Relaxed) {
            match Topics::connect(&self.config).and_then(|topics| topics.check()) {
                Ok(()) => {
                    self.status.set_error(None);
                    return true;
                }
                Err(error) => self.status.set_error(Some(error.to_string())),
            }
            std::thread::sleep(AFTER_ERROR);
        }
        false
    }

    fn hear_standings(&mut self) {
        let now_ms = self.now_ms();
        while let Ok(Standing { shard, held, asked }) = self.standings.try_recv() {
            let mut actions = Vec::new();
            for (partition, seq) in held {
                actions.extend(self.shipper.on_held(shard, partition, seq));
            }
            for (partition, to) in asked {
                let action = self.shipper.on_asked(shard, partition, to, now_ms);
                if action.is_some() {
                    let (database_shard, partition) = (shard.get(), partition.get());
                    tracing::warn!(database_shard, partition, %to, "a gap: sending again");
                    self.status.rewinds.fetch_add(1, Ordering::Relaxed);
                }
                actions.extend(action);
            }
            self.act(actions);
        }
    }

    fn hear_reports(&mut self) {
        let reports = std::mem::take(&mut *self.producer.context().reports());
        for (partition, acked) in Partition::all().zip(reports.acked) {
            if let Some((round, seq)) = acked {
                self.shipper.on_acked(partition, round, seq);
            }
        }
        if reports.acked.iter().any(Option::is_some) && reports.failed.is_empty() {
            self.status.set_error(None);
        }
        if let Some((code, reason)) = self.producer.client().fatal_error() {
            tracing::error!(%code, reason, "the producer can go on no more: making another");
            let actions = self.shipper.on_fatal();
            self.act(actions);
            return;
        }
        let mut is_pausing = false;
        for (partition, round, code) in reports.failed {
            if let Some(action) = self.shipper.on_failed(partition, round) {
                let partition = partition.get();
                self.status.set_error(Some(format!("partition {partition}: {code}")));
                self.act([action]);
                is_pausing = true;
            }
        }
        if is_pausing {
            self.producer.poll(AFTER_ERROR);
        }
    }

    fn act(&mut self, actions: impl IntoIterator<Item = Action>) {
        let Some(journal) = self.log.journal() else { return };
        for action in actions {
            match action {
                Action::Rewind { partition, to } => self.log.rewind(journal, partition, to),
                Action::NewProducer => match producer(&self.config) {
                    Ok(producer) => {
                        // The old one is dropped with what it has in flight.
                        self.producer = producer;
                        self.status.producers.fetch_add(1, Ordering::Relaxed);
                    }
                    Err(error) => self.status.set_error(Some(error.to_string())),
                },
            }
        }
    }

    /// Hands one record over, waiting for room; `false`: the thread is to end.
    fn send_record(&mut self, batch: &LogBatch, record: &LogRecord) -> bool {
        let bytes = batch.bytes_of(record);
        let LogRecord { partition, journal, incarnation, seq, prev_seq, node_time, .. } = *record;
        let place = Place { journal, incarnation, seq, node_time };
        let message = Message { partition, place, prev_seq, record: Some(bytes) };
        let mut buffer = std::mem::take(&mut self.message);
        message.encode(&mut buffer);
        let key = record::member_bytes(bytes).map(u64::to_be_bytes);
        let went = self.send(partition, seq, key, &buffer);
        self.message = buffer;
        went
    }

    fn send(
        &mut self,
        partition: Partition,
        seq: Seq,
        key: Option<[u8; 8]>,
        payload: &[u8],
    ) -> bool {
        let round = self.shipper.round(partition);
        let ticket = Ticket { partition, round, seq }.pack() as usize;
        let topic = Arc::clone(&self.topic);
        let mut record = BaseRecord::<[u8], [u8], usize>::with_opaque_to(&topic, ticket)
            .partition(i32::from(partition.get()))
            .payload(payload);
        if let Some(key) = &key {
            record = record.key(&key[..]);
        }
        loop {
            match self.producer.send(record) {
                Ok(()) => {
                    self.shipper.on_sent(partition, seq);
                    return true;
                }
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), again)) => {
                    record = again;
                    self.note_silence();
                    self.producer.poll(IDLE);
                }
                Err((error, _)) => {
                    self.status.set_error(Some(error.to_string()));
                    if let Some(action) = self.shipper.on_failed(partition, round) {
                        self.act([action]);
                    }
                    self.producer.poll(AFTER_ERROR);
                    return !self.control.is_aborted.load(Ordering::Relaxed);
                }
            }
            self.hear_reports();
            if self.control.is_aborted.load(Ordering::Relaxed) {
                return false;
            }
            if self.shipper.round(partition) != round {
                // Taken back meanwhile: it will be read again.
                return true;
            }
            self.hear_standings();
            if self.shipper.round(partition) != round {
                return true;
            }
        }
    }

    /// The queue is full: is Kafka slow, or away?
    fn note_silence(&self) {
        if let Some(reason) = self.producer.context().ear.why_held_up() {
            self.status.set_error(Some(reason));
        }
    }

    fn send_marks(&mut self, batch: &LogBatch) {
        let now_ms = self.now_ms();
        for mark in &batch.marks {
            // Behind records that were taken back meanwhile it would claim too much.
            let through = mark.through;
            if through > self.log.read_through()
                || !self.shipper.takes_mark(mark.partition, through, now_ms)
            {
                continue;
            }
            let place = Place {
                journal: mark.journal,
                incarnation: mark.incarnation,
                seq: through,
                node_time: mark.node_time,
            };
            let message =
                Message { partition: mark.partition, place, prev_seq: mark.prev_seq, record: None };
            let mut buffer = std::mem::take(&mut self.message);
            message.encode(&mut buffer);
            self.send(mark.partition, through, None, &buffer);
            self.message = buffer;
        }
    }

    fn cannot_read(&mut self, error: &LogError) {
        if let LogError::Gone { wanted, first_kept } = *error {
            let missing = self.log.skip_below(first_kept);
            let partitions: Vec<_> = missing.iter().map(|p| p.get()).collect();
            tracing::error!(
                ?partitions, %wanted, %first_kept,
                "the journal no longer has what a database shard lacks: restore a newer backup"
            );
            self.status.set_error(Some(error.to_string()));
        } else {
            self.status.set_error(Some(error.to_string()));
        }
        self.producer.poll(AFTER_ERROR);
    }
}

#[cfg(test)]
mod tests {
    use rdkafka::bindings::rd_kafka_test_fatal_error;
    use rdkafka::types::RDKafkaRespErr;

    use super::*;

    #[expect(unsafe_code, reason = "librdkafka's own way to test fatal errors has no safe face")]
    pub(super) fn break_producer(producer: &BaseProducer<Desk>) {
        let client = producer.client().native_ptr();
        let code = RDKafkaRespErr::RD_KAFKA_RESP_ERR_INVALID_PRODUCER_EPOCH;
        // SAFETY: the client lives as long as `producer`, and the reason ends with a zero.
        unsafe { rd_kafka_test_fatal_error(client, code, c"broken by a test".as_ptr()) };
    }

    #[test]
    fn a_ticket_comes_back_as_it_went() {
        for (partition, round, seq) in [(0, 0, 0), (32, 1023, (1 << 48) - 1), (7, 512, 99)] {
            let partition = Partition::new(partition).unwrap();
            let ticket = Ticket { partition, round: Round::new(round), seq: Seq::new(seq) };
            assert_eq!(Ticket::unpack(ticket.pack()), ticket);
        }
    }
}
