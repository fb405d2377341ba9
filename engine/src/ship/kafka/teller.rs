//! The `ship-events` thread: reads the journal from its own restart point and writes the events
//! topic. It holds up nothing: the node's segments wait for it, the sale does not.
//!
//! ```text
//!  restart point (file): seq S, and the teller as it was behind S
//!  ───────────●───────────────────●─────────▶ seq
//!             S                   a copy is taken here; once every event up to it is written by
//!                                 all replicas, the copy becomes the file
//! ```
//! The file is written to a temporary name, synced and renamed. After the producer's fatal error,
//! and after a start, reading begins at S again: events behind it may come twice, none is missing.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, DeliveryResult, ProducerContext};
use rdkafka::{ClientConfig, ClientContext};
use serde::{Deserialize, Serialize};

use super::client::{self, ClientError, Ear};
use super::events::{Event, Home, Teller};
use super::producer::Producer;
use super::topic::Topics;
use crate::clock::NodeClock;
use crate::config::KafkaConfig;
use crate::kernel::record::RecordHead;
use crate::ship::frames::FrameSource;
use crate::ship::log::LogError;
use crate::units::{JournalId, Seq};

const QUEUE_MESSAGES: u32 = 50_000;
const IDLE: Duration = Duration::from_millis(20);
const AFTER_ERROR: Duration = Duration::from_millis(500);
/// How often the restart point is written, while it moves.
const POINT_EVERY_MS: u64 = 1_000;
/// How often the pool is looked at for items that are sold out.
const LOOK_EVERY_MS: u64 = 200;

/// Where telling begins.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RestartPoint {
    journal: u64,
    /// Every event up to here is in Kafka.
    seq: u64,
    teller: Teller,
}

impl RestartPoint {
    pub fn new(journal: JournalId, seq: Seq, teller: Teller) -> Self {
        Self { journal: journal.get(), seq: seq.get(), teller }
    }
    /// The point that a file holds; `None`: none of this journal.
    pub fn read(path: &Path, journal: JournalId) -> Option<Self> {
        let point: Self = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
        (point.journal == journal.get()).then_some(point)
    }
    /// Makes it the one that a start finds.
    pub fn write(&self, path: &Path) -> std::io::Result<()> {
        let temporary = path.with_extension("tmp");
        let mut file = File::create(&temporary)?;
        file.write_all(&serde_json::to_vec(self).map_err(std::io::Error::other)?)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        path.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
    }
    pub fn seq(&self) -> Seq {
        Seq::new(self.seq)
    }
}

/// The running thread.
pub struct Telling {
    thread: JoinHandle<()>,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    /// Everything up to here is told: the journal's segments below may go. Release by the thread
    /// after the file is written, Acquire by whoever lets segments go.
    through: AtomicU64,
    /// The restart point is written as soon as it can be.
    is_draining: AtomicBool,
    is_stopped: AtomicBool,
}

impl Telling {
    /// Every event up to here is in Kafka, and that is written down.
    pub fn through(&self) -> Arc<dyn Fn() -> Seq + Send + Sync> {
        let shared = Arc::clone(&self.shared);
        Arc::new(move || Seq::new(shared.through.load(Ordering::Acquire)))
    }
    /// Tells what is durable now, up to the deadline, and ends the thread.
    pub fn stop(self, durable: Seq, deadline: Duration) {
        self.shared.is_draining.store(true, Ordering::Relaxed);
        let slice = Duration::from_millis(5);
        let mut waited = Duration::ZERO;
        while waited < deadline && self.shared.through.load(Ordering::Acquire) < durable.get() {
            std::thread::sleep(slice);
            waited += slice;
        }
        self.shared.is_stopped.store(true, Ordering::Relaxed);
        self.thread.join().unwrap_or_else(|_| unreachable!("a panic ends the process"));
    }
}

/// Starts telling from a restart point on; `path` is where the next ones are written.
///
/// Errors: settings that librdkafka refuses, files that cannot be read.
pub fn start<F: FrameSource + 'static>(
    config: KafkaConfig,
    source: F,
    point: RestartPoint,
    path: PathBuf,
    home: Box<dyn Home>,
    clock: Arc<NodeClock>,
) -> Result<Telling, ClientError> {
    let shared = Arc::new(Shared::default());
    shared.through.store(point.seq, Ordering::Release);
    let mut state = State {
        producer: Producer::new(config.clone(), tune, Arc::clone(clock.clock()))?,
        topic: config.events_topic.as_str().into(),
        config,
        source,
        teller: point.teller.clone(),
        read_through: point.seq(),
        point,
        path,
        home,
        clock,
        looked_at_ms: 0,
        shared: Arc::clone(&shared),
        pending: None,
        sent: 0,
        written_at_ms: 0,
        last_error: None,
    };
    let thread = std::thread::Builder::new()
        .name("ship-events".into())
        .spawn(move || state.run())
        .map_err(|e| ClientError::Settings(format!("cannot start a thread: {e}")))?;
    Ok(Telling { thread, shared })
}

/// What the producer reports. Events are numbered as they are sent.
#[derive(Default)]
struct Desk {
    ear: Ear,
    /// Numbers reported as written since it was last asked, and whether any was given up.
    reports: Mutex<(Vec<usize>, Option<RDKafkaErrorCode>)>,
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

    fn delivery(&self, result: &DeliveryResult<'_>, number: usize) {
        let mut reports = self.reports.lock().unwrap_or_else(PoisonError::into_inner);
        match result {
            Ok(_) => reports.0.push(number),
            Err((error, _)) => {
                reports.1 = Some(error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Fail));
            }
        }
    }
}

fn tune(client: &mut ClientConfig) {
    client
        .set("partitioner", "murmur2_random")
        .set("linger.ms", "20")
        .set("queue.buffering.max.messages", QUEUE_MESSAGES.to_string())
        .set("queue.buffering.max.kbytes", "32768");
}

/// A copy on its way to become the restart point.
struct Pending {
    point: RestartPoint,
    /// Events sent before the copy was taken, by number; and how many of them are not written yet.
    below: usize,
    missing: usize,
}

struct State<F> {
    topic: Arc<str>,
    config: KafkaConfig,
    producer: Producer<Desk>,
    source: F,
    teller: Teller,
    read_through: Seq,
    point: RestartPoint,
    path: PathBuf,
    home: Box<dyn Home>,
    clock: Arc<NodeClock>,
    looked_at_ms: u64,
    shared: Arc<Shared>,
    pending: Option<Pending>,
    /// Events sent so far, and so the next one's number.
    sent: usize,
    written_at_ms: u64,
    last_error: Option<String>,
}

impl<F: FrameSource> State<F> {
    fn is_stopped(&self) -> bool {
        self.shared.is_stopped.load(Ordering::Relaxed)
    }

    fn run(&mut self) {
        while !self.is_stopped() {
            match Topics::connect(&self.config).and_then(|topics| topics.check()) {
                Ok(()) => break,
                Err(error) => self.held_up(error.to_string()),
            }
            std::thread::sleep(AFTER_ERROR);
        }
        let mut unacked = 0;
        self.go_to_point(&mut unacked);
        let (mut records, mut events) = (Vec::new(), Vec::new());
        while !self.is_stopped() {
            self.producer.serve();
            if !self.hear_reports(&mut unacked) {
                self.go_to_point(&mut unacked);
                continue;
            }
            self.keep_point(unacked);
            match self.tell_frame(&mut records, &mut events) {
                Ok(true) => self.last_error = None,
                Ok(false) => self.producer.pause(IDLE),
                Err(error) => {
                    self.held_up(error);
                    self.producer.pause(AFTER_ERROR);
                }
            }
            self.look(&mut events);
            for event in events.drain(..) {
                if !self.send(&event, &mut unacked) {
                    break;
                }
            }
        }
    }

    fn held_up(&mut self, error: String) {
        if self.last_error.as_ref() != Some(&error) {
            tracing::warn!(error, "telling events is held up");
            self.last_error = Some(error);
        }
    }

    fn now_ms(&self) -> u64 {
        self.clock.clock().monotonic_ns() / 1_000_000
    }

    fn look(&mut self, events: &mut Vec<Event>) {
        let now_ms = self.now_ms();
        if now_ms >= self.looked_at_ms + LOOK_EVERY_MS {
            self.looked_at_ms = now_ms;
            self.teller.look(&*self.home, self.clock.now(), events);
        }
    }

    /// Begins anew behind the restart point, with nothing under way.
    fn go_to_point(&mut self, unacked: &mut usize) {
        self.teller = self.point.teller.clone();
        self.read_through = self.point.seq();
        self.pending = None;
        *unacked = 0;
        if let Err(error) = self.source.seek(self.read_through.next()) {
            self.held_up(error.to_string());
        }
    }

    /// Counts what was written; `false`: an event was given up, and the producer is another one.
    fn hear_reports(&mut self, unacked: &mut usize) -> bool {
        let ended = self.producer.has_ended();
        let reports = &self.producer.context().reports;
        let (written, failed) =
            std::mem::take(&mut *reports.lock().unwrap_or_else(PoisonError::into_inner));
        *unacked -= written.len();
        if let Some(pending) = &mut self.pending {
            pending.missing -= written.iter().filter(|number| **number < pending.below).count();
        }
        let given_up = failed.map(|code| format!("an event was given up: {code}"));
        let Some(reason) = given_up.or(ended) else { return true };
        self.held_up(reason);
        std::thread::sleep(AFTER_ERROR);
        if let Err(error) = self.producer.renew() {
            self.held_up(error.to_string());
        }
        false
    }

    /// Tells the next frame; `false` at the durable end.
    fn tell_frame(
        &mut self,
        records: &mut Vec<u8>,
        events: &mut Vec<Event>,
    ) -> Result<bool, String> {
        let frame = match self.source.read(records) {
            Ok(Some(frame)) => frame,
            Ok(None) => return Ok(false),
            Err(LogError::Gone { wanted, first_kept }) => {
                // Segments wait for the restart point; somebody took them away all the same.
                tracing::error!(%wanted, %first_kept, "events lost: the journal begins behind");
                let _ = self.source.seek(first_kept);
                self.read_through = Seq::new(first_kept.get() - 1);
                return Ok(true);
            }
            Err(error) => return Err(error.to_string()),
        };
        let journal = self.source.head().journal;
        let (mut seq, mut rest) = (frame.first_seq, &records[..]);
        while !rest.is_empty() {
            let told = RecordHead::peek(rest).and_then(|head| {
                let (record, behind) = rest.split_at(head.length);
                rest = behind;
                if seq > self.read_through {
                    self.teller.tell(journal, seq, record, &*self.home, events)?;
                }
                Ok(())
            });
            if let Err(error) = told {
                events.clear();
                // The teller has seen a part of the frame: begin again, and wait there.
                self.teller = self.point.teller.clone();
                self.read_through = self.point.seq();
                let _ = self.source.seek(self.read_through.next());
                return Err(format!("record {seq}: {error}"));
            }
            seq = seq.next();
        }
        self.read_through = self.read_through.max(Seq::new(seq.get() - 1));
        Ok(true)
    }

    /// Sends one event, waiting for room; `false`: something else comes first.
    fn send(&mut self, event: &Event, unacked: &mut usize) -> bool {
        let payload = event.body.to_string();
        let content_type =
            Header { key: "content-type", value: Some("application/cloudevents+json") };
        let topic = Arc::clone(&self.topic);
        let mut record = BaseRecord::<str, str, usize>::with_opaque_to(&topic, self.sent)
            .key(&event.key)
            .payload(&payload)
            .headers(OwnedHeaders::new_with_capacity(1).insert(content_type));
        loop {
            match self.producer.send(record) {
                Ok(()) => {
                    self.sent += 1;
                    *unacked += 1;
                    return true;
                }
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), again)) => {
                    record = again;
                    self.producer.pause(IDLE);
                }
                Err((error, again)) => {
                    record = again;
                    self.held_up(error.to_string());
                    self.producer.pause(AFTER_ERROR);
                }
            }
            if self.is_stopped() {
                return false;
            }
            if !self.hear_reports(unacked) {
                self.go_to_point(unacked);
                return false;
            }
        }
    }

    /// Takes a copy now and then, and writes it once everything before it is in Kafka.
    fn keep_point(&mut self, unacked: usize) {
        let now_ms = self.now_ms();
        if let Some(pending) = self.pending.take_if(|p| p.missing == 0) {
            match pending.point.write(&self.path) {
                Ok(()) => {
                    self.point = pending.point;
                    self.shared.through.store(self.point.seq, Ordering::Release);
                }
                Err(error) => self.held_up(format!("the restart point cannot be written: {error}")),
            }
        }
        let is_due = now_ms >= self.written_at_ms + POINT_EVERY_MS
            || self.shared.is_draining.load(Ordering::Relaxed);
        if self.pending.is_none() && is_due && self.read_through > self.point.seq() {
            self.written_at_ms = now_ms;
            let journal = self.source.head().journal;
            let point = RestartPoint::new(journal, self.read_through, self.teller.clone());
            self.pending = Some(Pending { point, below: self.sent, missing: unacked });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_restart_point_comes_back_as_it_was_written_and_only_to_its_own_journal() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events.json");
        let point = RestartPoint::new(JournalId::new(u64::MAX), Seq::new(9), Teller::default());
        assert_eq!(RestartPoint::read(&path, JournalId::new(u64::MAX)), None);
        point.write(&path).unwrap();
        assert_eq!(RestartPoint::read(&path, JournalId::new(u64::MAX)), Some(point));
        assert_eq!(RestartPoint::read(&path, JournalId::new(1)), None);
    }
}
