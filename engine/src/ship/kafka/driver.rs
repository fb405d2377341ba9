//! The `ship` thread: reads the journal from disk, hands it to the producer, and tells the state
//! machine (`shipper`) what became of it.
//!
//! Memory is O(1) however far behind Kafka is: one batch read from disk, and librdkafka's queue
//! with its two bounds. A full queue is back-pressure: nothing more is read until there is room.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam::channel::Receiver;

use super::client::ClientError;
use super::message::Message;
use super::outlet::{KafkaOutlet, Outgoing, Outlet, Refused, Ticket};
use super::shipper::{Action, Shipper};
use super::topic::Topics;
use crate::clock::Clock;
use crate::config::KafkaConfig;
use crate::kernel::record;
use crate::ship::frames::FrameSource;
use crate::ship::log::{Head, Log as _, LogBatch, LogError, LogRecord, Place};
use crate::ship::partition::{DatabaseShard, Layout, Partition};
use crate::ship::tail::JournalLog;
use crate::units::Seq;

/// Records read from disk at a time.
const BATCH: usize = 4096;
/// Pause where there is nothing to do, and after an error.
const IDLE: Duration = Duration::from_millis(2);
const AFTER_ERROR: Duration = Duration::from_millis(500);

/// What the database shards say, read beside the shipper.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Standing {
    pub shard: DatabaseShard,
    /// How far each partition of this journal is there; those that it does not hold are left out.
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
    /// Partitions whose database shard lacks records that the journal no longer has.
    pub partitions_gone: AtomicU64,
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
    /// A test wants the producer to break as librdkafka's own do.
    #[cfg(test)]
    breaks: Arc<AtomicBool>,
}

#[derive(Default)]
struct Control {
    /// End once everything durable is in Kafka.
    is_draining: AtomicBool,
    is_aborted: AtomicBool,
}

impl Ship {
    /// Puts the producer into librdkafka's fatal state.
    #[cfg(test)]
    pub fn break_producer(&self) {
        self.breaks.store(true, Ordering::Relaxed);
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
    let outlet = KafkaOutlet::new(config.clone(), Arc::clone(&clock))?;
    #[cfg(test)]
    let breaks = Arc::clone(&outlet.breaks);
    let mut driver = Driver::new(outlet, layout, source, standings, clock);
    let (status, control) = (Arc::clone(&driver.status), Arc::clone(&driver.control));
    let thread = std::thread::Builder::new()
        .name("ship".into())
        .spawn(move || driver.await_topics(&config) && driver.run())
        .map_err(|e| ClientError::Settings(format!("cannot start a thread: {e}")))?;
    Ok(Ship {
        thread,
        control,
        status,
        #[cfg(test)]
        breaks,
    })
}

/// What a turn of the driver came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Turn {
    Busy,
    /// Nothing more is durable just now.
    Idle,
    /// It is to end; whether everything durable is in Kafka.
    Ended(bool),
}

/// The state of the `ship` thread.
pub struct Driver<F, P> {
    producer: P,
    log: JournalLog<F>,
    shipper: Shipper,
    standings: Receiver<Standing>,
    clock: Arc<dyn Clock>,
    status: Arc<ShipStatus>,
    control: Arc<Control>,
    /// Where the journal began when it no longer had what the partition's database shard lacks.
    gone: BTreeMap<Partition, Seq>,
    batch: LogBatch,
    message: Vec<u8>,
}

impl<F: FrameSource, P: Outlet> Driver<F, P> {
    /// Ships `source` by this producer, from where the database shards say that they are.
    pub fn new(
        producer: P,
        layout: Layout,
        source: F,
        standings: Receiver<Standing>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let status = Arc::new(ShipStatus::default());
        status.producers.store(1, Ordering::Relaxed);
        Self {
            producer,
            log: JournalLog::new(source, []),
            shipper: Shipper::new(layout),
            standings,
            clock,
            status,
            control: Arc::default(),
            gone: BTreeMap::new(),
            batch: LogBatch::default(),
            message: Vec::new(),
        }
    }

    pub fn status(&self) -> &Arc<ShipStatus> {
        &self.status
    }

    fn run(&mut self) -> bool {
        loop {
            match self.turn() {
                Turn::Busy => {}
                Turn::Idle => self.producer.pause(IDLE),
                Turn::Ended(is_all_there) => return is_all_there,
            }
        }
    }

    /// Reads a batch and hands it over.
    pub fn turn(&mut self) -> Turn {
        if self.control.is_aborted.load(Ordering::Relaxed) {
            return Turn::Ended(false);
        }
        self.hear_standings();
        self.producer.serve();
        self.hear_reports();
        let mut batch = std::mem::take(&mut self.batch);
        let turn = self.ship(&mut batch);
        self.batch = batch;
        turn
    }

    fn ship(&mut self, batch: &mut LogBatch) -> Turn {
        // Rounds as they are now: whatever is taken back while this batch is sent, is skipped.
        let rounds = Partition::all().map(|p| self.shipper.round(p)).collect::<Vec<_>>();
        let caught_up = match self.log.poll(BATCH, batch) {
            Ok(polled) => polled.caught_up,
            Err(error) => {
                self.cannot_read(&error);
                return Turn::Busy;
            }
        };
        for record in &batch.records {
            if rounds[record.partition.index()] == self.shipper.round(record.partition)
                && !self.send_record(batch, record)
            {
                return Turn::Ended(false);
            }
        }
        self.send_marks(batch);
        let through = self.shipper.acked_through(self.log.read_through());
        self.status.acked_through.store(through.get(), Ordering::Relaxed);
        self.status.records.fetch_add(batch.records.len() as u64, Ordering::Relaxed);
        if !caught_up {
            return Turn::Busy;
        }
        let Head { seq: durable, .. } = self.log.head();
        if self.control.is_draining.load(Ordering::Relaxed) && through >= durable {
            return Turn::Ended(true);
        }
        Turn::Idle
    }

    fn now_ms(&self) -> u64 {
        self.clock.monotonic_ns() / 1_000_000
    }

    /// Nothing is sent to topics that are not as they should be: what stands in them could not be
    /// taken back.
    fn await_topics(&self, config: &KafkaConfig) -> bool {
        while !self.control.is_aborted.load(Ordering::Relaxed) {
            match Topics::connect(config).and_then(|topics| topics.check()) {
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
            for partition in Partition::all() {
                if !held.iter().any(|(p, _)| *p == partition) {
                    self.shipper.on_left(shard, partition);
                }
            }
            for (partition, seq) in held {
                actions.extend(self.shipper.on_held(shard, partition, seq));
                // Filled up from elsewhere, such as a newer backup.
                if self.gone.get(&partition).is_some_and(|first_kept| seq.next() >= *first_kept) {
                    self.gone.remove(&partition);
                    self.count_gone();
                }
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
        let reports = self.producer.take_reports();
        for (partition, acked) in Partition::all().zip(reports.acked) {
            if let Some((round, seq)) = acked {
                self.shipper.on_acked(partition, round, seq);
            }
        }
        if reports.acked.iter().any(Option::is_some) && reports.failed.is_empty() {
            self.status.set_error(None);
        }
        if let Some(reason) = self.producer.has_ended() {
            tracing::error!(reason, "the producer can go on no more: making another");
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
            self.producer.pause(AFTER_ERROR);
        }
    }

    fn act(&mut self, actions: impl IntoIterator<Item = Action>) {
        let Some(journal) = self.log.journal() else { return };
        for action in actions {
            match action {
                Action::Rewind { partition, to } => self.log.rewind(journal, partition, to),
                Action::NewProducer => match self.producer.renew() {
                    Ok(()) => {
                        self.status.producers.fetch_add(1, Ordering::Relaxed);
                    }
                    Err(error) => self.status.set_error(Some(error)),
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
        let key = record::member_of(bytes).map(|member| member.get().to_be_bytes());
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
        let ticket = Ticket { partition, round, seq };
        let message = Outgoing { ticket, key, payload };
        loop {
            match self.producer.hand_over(&message) {
                Ok(()) => {
                    self.shipper.on_sent(partition, seq);
                    return true;
                }
                Err(Refused::Full) => {
                    self.note_silence();
                    self.producer.pause(IDLE);
                }
                Err(Refused::Failed(error)) => {
                    self.status.set_error(Some(error));
                    if let Some(action) = self.shipper.on_failed(partition, round) {
                        self.act([action]);
                    }
                    self.producer.pause(AFTER_ERROR);
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
        if let Some(reason) = self.producer.why_held_up() {
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

    fn count_gone(&self) {
        self.status.partitions_gone.store(self.gone.len() as u64, Ordering::Relaxed);
    }

    fn cannot_read(&mut self, error: &LogError) {
        if let LogError::Gone { wanted, first_kept } = *error {
            let missing = self.log.skip_below(first_kept);
            let partitions: Vec<_> = missing.iter().map(|p| p.get()).collect();
            self.gone.extend(missing.into_iter().map(|partition| (partition, first_kept)));
            self.count_gone();
            tracing::error!(
                ?partitions, %wanted, %first_kept,
                "the journal no longer has what a database shard lacks: restore a newer backup"
            );
        }
        self.status.set_error(Some(error.to_string()));
        self.producer.pause(AFTER_ERROR);
    }
}
