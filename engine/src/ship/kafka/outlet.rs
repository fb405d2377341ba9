//! Where the shipper's messages leave: what the driver asks of a producer, and librdkafka as one.
//! The simulation has another.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseRecord, DeliveryResult, ProducerContext};
use rdkafka::{ClientConfig, ClientContext};

use super::client::{self, ClientError, Ear};
use super::producer::Producer;
use super::shipper::Round;
use crate::clock::Clock;
use crate::config::KafkaConfig;
use crate::planted::{self, Bug};
use crate::ship::partition::{PARTITION_COUNT, Partition};
use crate::units::Seq;

/// Messages in librdkafka's queue, at most, and their bytes.
const QUEUE_MESSAGES: u32 = 200_000;
const QUEUE_KIB: u32 = 65_536;

/// A producer as the driver uses it. What is handed over is written once, and behind all that was
/// handed over before it for the same partition; or it is reported as given up.
pub trait Outlet {
    /// Hands a message over.
    fn hand_over(&mut self, message: &Outgoing<'_>) -> Result<(), Refused>;
    /// Hears all that there is to report just now.
    fn serve(&mut self);
    /// What became of the messages since this was last asked.
    fn take_reports(&mut self) -> Reports;
    /// Why this producer can go on no more, and another is to be made.
    fn has_ended(&mut self) -> Option<String>;
    /// Makes another; the old one is dropped with what it has in flight.
    ///
    /// Errors: in words; then the old one stays.
    fn renew(&mut self) -> Result<(), String>;
    /// Lets time pass, then serves.
    fn pause(&mut self, time: Duration);
    /// Why nothing is written just now, where that is known.
    fn why_held_up(&self) -> Option<String>;
}

/// A message, and whose report it will be.
pub struct Outgoing<'a> {
    pub ticket: Ticket,
    pub key: Option<[u8; 8]>,
    pub payload: &'a [u8],
}

/// A message that was not taken.
pub enum Refused {
    /// There is no room: it can be handed over again.
    Full,
    /// Why not, in words.
    Failed(String),
}

/// What became of messages.
pub struct Reports {
    /// Per partition the newest message that was written, of the newest round seen.
    pub acked: [Option<(Round, Seq)>; PARTITION_COUNT],
    pub failed: Vec<(Partition, Round, RDKafkaErrorCode)>,
}

impl Default for Reports {
    fn default() -> Self {
        Self { acked: [None; PARTITION_COUNT], failed: Vec::new() }
    }
}

impl Reports {
    /// Takes the report of one message. Those of one partition come in the order of the messages.
    ///
    /// † What was written behind a message that was given up counts for nothing: the partition is
    /// taken back before it [both reports came at once, the later message counted as "written, all
    /// before it too", and the partition went on behind the hole].
    pub fn note(&mut self, ticket: Ticket, outcome: Result<(), RDKafkaErrorCode>) {
        let Ticket { partition, round, seq } = ticket;
        match outcome {
            Ok(()) => {
                let has_failed = self.failed.iter().any(|f| (f.0, f.1) == (partition, round));
                if !has_failed || planted::is(Bug::AckedOverFailed) {
                    self.acked[partition.index()] = Some((round, seq));
                }
            }
            Err(code) => self.failed.push((partition, round, code)),
        }
    }
}

/// What goes through a producer with a message, in the 64 bits that librdkafka carries for us.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ticket {
    pub partition: Partition,
    pub round: Round,
    pub seq: Seq,
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

/// librdkafka's producer.
pub(super) struct KafkaOutlet {
    producer: Producer<Desk>,
    topic: Arc<str>,
    /// A test wants the producer to break as librdkafka's own do.
    #[cfg(test)]
    pub breaks: Arc<std::sync::atomic::AtomicBool>,
}

impl KafkaOutlet {
    /// Errors: settings that librdkafka refuses, files that cannot be read.
    pub fn new(config: KafkaConfig, clock: Arc<dyn Clock>) -> Result<Self, ClientError> {
        Ok(Self {
            topic: config.topic.as_str().into(),
            producer: Producer::new(config, tune, clock)?,
            #[cfg(test)]
            breaks: Arc::default(),
        })
    }
}

fn tune(client: &mut ClientConfig) {
    client
        .set("linger.ms", "5")
        .set("batch.num.messages", "10000")
        .set("queue.buffering.max.messages", QUEUE_MESSAGES.to_string())
        .set("queue.buffering.max.kbytes", QUEUE_KIB.to_string());
}

impl Outlet for KafkaOutlet {
    fn hand_over(&mut self, message: &Outgoing<'_>) -> Result<(), Refused> {
        let Outgoing { ticket, key, payload } = message;
        let opaque = ticket.pack() as usize;
        let mut record = BaseRecord::<[u8], [u8], usize>::with_opaque_to(&self.topic, opaque)
            .partition(i32::from(ticket.partition.get()))
            .payload(*payload);
        if let Some(key) = key {
            record = record.key(&key[..]);
        }
        self.producer.send(record).map_err(|(error, _)| match error {
            KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull) => Refused::Full,
            error => Refused::Failed(error.to_string()),
        })
    }

    fn serve(&mut self) {
        #[cfg(test)]
        if self.breaks.swap(false, std::sync::atomic::Ordering::Relaxed) {
            tests::break_producer(&*self.producer);
        }
        self.producer.serve();
    }

    fn take_reports(&mut self) -> Reports {
        std::mem::take(&mut *self.producer.context().reports())
    }

    fn has_ended(&mut self) -> Option<String> {
        self.producer.has_ended()
    }

    fn renew(&mut self) -> Result<(), String> {
        self.producer.renew().map_err(|error| error.to_string())
    }

    fn pause(&mut self, time: Duration) {
        self.producer.pause(time);
    }

    fn why_held_up(&self) -> Option<String> {
        self.producer.context().ear.why_held_up()
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
        let outcome = match result {
            Ok(_) => Ok(()),
            Err((error, _)) => Err(error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Fail)),
        };
        self.reports().note(Ticket::unpack(ticket as u64), outcome);
    }
}

#[cfg(test)]
mod tests {
    use rdkafka::bindings::rd_kafka_test_fatal_error;
    use rdkafka::types::RDKafkaRespErr;

    use super::*;

    #[expect(unsafe_code, reason = "librdkafka's own way to test fatal errors has no safe face")]
    pub(super) fn break_producer(producer: &impl rdkafka::producer::Producer<Desk>) {
        let client = producer.client().native_ptr();
        let code = RDKafkaRespErr::RD_KAFKA_RESP_ERR_INVALID_PRODUCER_EPOCH;
        // SAFETY: the client lives as long as `producer`, and the reason ends with a zero.
        unsafe { rd_kafka_test_fatal_error(client, code, c"broken by a test".as_ptr()) };
    }

    #[test]
    fn a_message_written_behind_one_that_was_given_up_is_not_reported_as_written() {
        let ticket = |partition, round, seq| Ticket {
            partition: Partition::new(partition).unwrap(),
            round: Round::new(round),
            seq: Seq::new(seq),
        };
        let mut reports = Reports::default();
        reports.note(ticket(3, 1, 4), Ok(()));
        reports.note(ticket(3, 1, 5), Err(RDKafkaErrorCode::MessageSizeTooLarge));
        reports.note(ticket(3, 1, 6), Ok(()));
        reports.note(ticket(4, 1, 7), Ok(()));
        assert_eq!(reports.acked[3], Some((Round::new(1), Seq::new(4))));
        assert_eq!(reports.acked[4], Some((Round::new(1), Seq::new(7))));
        // Sent again, in another round.
        reports.note(ticket(3, 2, 5), Ok(()));
        assert_eq!(reports.acked[3], Some((Round::new(2), Seq::new(5))));
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
