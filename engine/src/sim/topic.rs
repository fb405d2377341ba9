//! The topic as the simulation has it, and the producers that write to it.
//!
//! ```text
//! driver ─ hand_over ─► queue ──► topic, a line per partition ──► processes
//!            │ full       │ given up, written or not · written twice
//!            │ refused    │ reported late · the broker is away
//!            └────────────┴ the producer dies: what it had sent may be written yet, or not
//! ```
//! Weaker than Kafka: an idempotent producer writes nothing twice, and a topic loses nothing but
//! its head. The gap rule is to hold on less.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use rdkafka::error::RDKafkaErrorCode;

use crate::clock::ManualClock;
use crate::journal::sim::SimRng;
use crate::ship::kafka::message::Message;
use crate::ship::kafka::outlet::{Outgoing, Outlet, Refused, Reports, Ticket};
use crate::ship::partition::{PARTITION_COUNT, Partition};
use crate::units::JournalId;

/// How the way to the topic is. Of 100 messages, so many …
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct TopicWeather {
    /// … are given up, half of them although they were written.
    pub lost: u8,
    /// … are written twice.
    pub twice: u8,
    /// … are reported late.
    pub late: u8,
    /// … find no room, or are refused as they are handed over.
    pub refused: u8,
}

/// One partition: offsets count on when its head is dropped.
#[derive(Default)]
struct Line {
    first: i64,
    messages: VecDeque<Box<[u8]>>,
}

struct Flight {
    ticket: Ticket,
    payload: Box<[u8]>,
}

/// A producer, or what is left of one that nobody hears any more.
#[derive(Default)]
struct Producer {
    queues: BTreeMap<Partition, VecDeque<Flight>>,
    /// What became of messages, in order; the driver hears of it when it is released.
    late: VecDeque<(Ticket, Result<(), RDKafkaErrorCode>)>,
    reports: Reports,
    /// Those of these reports that were given up.
    given_up: Vec<Ticket>,
    is_gone: bool,
    is_fatal: bool,
    full_in_a_row: u8,
}

/// What came by, so that a test can see that it did.
#[derive(Clone, Copy, Default, Debug)]
pub struct TopicCounts {
    pub messages: u64,
    pub given_up: u64,
    pub doubled: u64,
    pub producers_lost: u64,
    pub dropped: u64,
}

struct Broker {
    rng: SimRng,
    clock: Arc<ManualClock>,
    weather: TopicWeather,
    is_away_until_ms: u64,
    lines: [Line; PARTITION_COUNT],
    producers: BTreeMap<u32, Producer>,
    next_producer: u32,
    /// Every record that ever stood in the topic.
    written: BTreeMap<(JournalId, Partition), BTreeSet<u64>>,
    counts: TopicCounts,
}

/// The handle to it.
#[derive(Clone)]
pub struct SimTopic(Arc<Mutex<Broker>>);

impl SimTopic {
    pub fn new(clock: Arc<ManualClock>) -> Self {
        Self(Arc::new(Mutex::new(Broker {
            rng: SimRng::new(0),
            clock,
            weather: TopicWeather::default(),
            is_away_until_ms: 0,
            lines: std::array::from_fn(|_| Line::default()),
            producers: BTreeMap::new(),
            next_producer: 0,
            written: BTreeMap::new(),
            counts: TopicCounts::default(),
        })))
    }

    fn lock(&self) -> MutexGuard<'_, Broker> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// What happens from here on follows from this seed.
    pub fn seed(&self, seed: u64) {
        self.lock().rng = SimRng::new(seed);
    }
    pub fn set_weather(&self, weather: TopicWeather) {
        self.lock().weather = weather;
    }
    /// The broker answers nobody for a while.
    pub fn leave(&self, ms: u64) {
        let mut broker = self.lock();
        broker.is_away_until_ms = broker.now_ms() + ms;
    }
    pub fn heal(&self) {
        let mut broker = self.lock();
        broker.weather = TopicWeather::default();
        broker.is_away_until_ms = 0;
    }
    pub fn counts(&self) -> TopicCounts {
        self.lock().counts
    }

    /// All living producers come to an end that they cannot go on from.
    pub fn kill_producers(&self) {
        let mut broker = self.lock();
        for producer in broker.producers.values_mut() {
            producer.is_fatal = !producer.is_gone;
        }
    }

    /// Retention: the heads of some partitions are dropped, or all that is in them.
    pub fn drop_heads(&self) {
        let broker = &mut *self.lock();
        for line in &mut broker.lines {
            let count = match broker.rng.below(4) {
                0 => line.messages.len(),
                1 => broker.rng.below(line.messages.len() as u64 + 1) as usize,
                _ => 0,
            };
            line.messages.drain(..count);
            line.first += count.cast_signed() as i64;
            broker.counts.dropped += count as u64;
        }
    }

    /// Some messages go their way; whether any did.
    pub fn turn(&self) -> bool {
        self.lock().turn()
    }

    /// The next message at an offset or, where the head was dropped, behind it.
    pub fn fetch(&self, partition: Partition, from: i64) -> Option<(i64, Box<[u8]>)> {
        let broker = self.lock();
        if broker.is_away() {
            return None;
        }
        let line = &broker.lines[partition.index()];
        let offset = from.max(line.first);
        let message = line.messages.get(usize::try_from(offset - line.first).ok()?)?;
        Some((offset, message.clone()))
    }

    /// Whether a record stood in the topic at any time.
    pub fn has_had(&self, journal: JournalId, partition: Partition, seq: u64) -> bool {
        self.lock().written.get(&(journal, partition)).is_some_and(|all| all.contains(&seq))
    }

    /// Another producer.
    pub fn outlet(&self) -> SimOutlet {
        let id = self.lock().make();
        SimOutlet { id, topic: self.clone() }
    }
}

impl Broker {
    fn now_ms(&self) -> u64 {
        use crate::clock::Clock as _;
        self.clock.monotonic_ns() / 1_000_000
    }
    fn is_away(&self) -> bool {
        self.now_ms() < self.is_away_until_ms
    }
    fn is_due(&mut self, percent: u8) -> bool {
        self.rng.below(100) < u64::from(percent)
    }

    fn make(&mut self) -> u32 {
        self.next_producer += 1;
        self.producers.insert(self.next_producer, Producer::default());
        self.next_producer
    }

    fn leave_behind(&mut self, id: u32) {
        if let Some(producer) = self.producers.get_mut(&id) {
            producer.is_gone = true;
        }
        self.forget_idle();
    }

    fn forget_idle(&mut self) {
        self.producers.retain(|_, producer| !producer.is_gone || !producer.queues.is_empty());
    }

    fn turn(&mut self) -> bool {
        if self.is_away() {
            return false;
        }
        let busy = |(id, p): (&u32, &Producer)| {
            p.queues.keys().map(|partition| (*id, *partition)).collect::<Vec<_>>()
        };
        let busy: Vec<(u32, Partition)> = self.producers.iter().flat_map(busy).collect();
        if busy.is_empty() {
            return false;
        }
        let (id, partition) = busy[self.rng.below(busy.len() as u64) as usize];
        let mut producer = self.producers.remove(&id).expect("it is busy");
        let mut queue = producer.queues.remove(&partition).expect("it has messages");
        if producer.is_gone && self.rng.coin() {
            // Nobody sends the rest of it.
            queue.clear();
        }
        let count = 1 + self.rng.below(8);
        for _ in 0..count {
            let Some(flight) = queue.pop_front() else { break };
            self.go(&mut producer, flight);
        }
        if !queue.is_empty() {
            producer.queues.insert(partition, queue);
        }
        self.producers.insert(id, producer);
        self.forget_idle();
        true
    }

    fn go(&mut self, producer: &mut Producer, flight: Flight) {
        let Flight { ticket, payload } = flight;
        let is_given_up = self.is_due(self.weather.lost);
        if !is_given_up || self.rng.coin() {
            self.write(ticket.partition, &payload);
            if self.is_due(self.weather.twice) {
                self.counts.doubled += 1;
                self.write(ticket.partition, &payload);
            }
        }
        self.counts.given_up += u64::from(is_given_up);
        let outcome = if is_given_up { Err(RDKafkaErrorCode::Fail) } else { Ok(()) };
        producer.late.push_back((ticket, outcome));
    }

    fn write(&mut self, partition: Partition, payload: &[u8]) {
        let message = Message::decode(payload, i32::from(partition.get())).expect("one of ours");
        self.counts.messages += 1;
        if message.record.is_some() {
            let stream = (message.place.journal, partition);
            self.written.entry(stream).or_default().insert(message.place.seq.get());
        }
        self.lines[partition.index()].messages.push_back(payload.into());
    }
}

/// A node's producer.
pub struct SimOutlet {
    id: u32,
    topic: SimTopic,
}

impl Drop for SimOutlet {
    fn drop(&mut self) {
        self.topic.lock().leave_behind(self.id);
    }
}

impl Outlet for SimOutlet {
    fn hand_over(&mut self, message: &Outgoing<'_>) -> Result<(), Refused> {
        let broker = &mut *self.topic.lock();
        let is_refused = broker.is_due(broker.weather.refused);
        let is_broken = is_refused && broker.is_due(20);
        let producer = broker.producers.get_mut(&self.id).expect("it lives");
        if is_broken {
            return Err(Refused::Failed("made to fail".into()));
        }
        // There is room at last.
        producer.full_in_a_row = if is_refused { producer.full_in_a_row + 1 } else { 0 };
        if is_refused && producer.full_in_a_row < 4 {
            return Err(Refused::Full);
        }
        let queue = producer.queues.entry(message.ticket.partition).or_default();
        queue.push_back(Flight { ticket: message.ticket, payload: message.payload.into() });
        Ok(())
    }

    fn serve(&mut self) {
        let broker = &mut *self.topic.lock();
        loop {
            let is_late = broker.is_due(broker.weather.late);
            let producer = broker.producers.get_mut(&self.id).expect("it lives");
            if is_late {
                return;
            }
            let Some((ticket, outcome)) = producer.late.pop_front() else { return };
            producer.given_up.extend(outcome.is_err().then_some(ticket));
            producer.reports.note(ticket, outcome);
        }
    }

    fn take_reports(&mut self) -> Reports {
        let mut broker = self.topic.lock();
        let producer = broker.producers.get_mut(&self.id).expect("it lives");
        let reports = std::mem::take(&mut producer.reports);
        for Ticket { partition, round, seq } in producer.given_up.drain(..) {
            let acked = reports.acked[partition.index()];
            let is_behind = acked.is_some_and(|(of, acked)| of == round && acked > seq);
            assert!(!is_behind, "acknowledged through {acked:?}, and {seq} was given up");
        }
        reports
    }

    fn has_ended(&mut self) -> Option<String> {
        let broker = self.topic.lock();
        broker.producers[&self.id].is_fatal.then(|| "made to end".into())
    }

    fn renew(&mut self) -> Result<(), String> {
        let mut broker = self.topic.lock();
        broker.leave_behind(self.id);
        broker.counts.producers_lost += 1;
        self.id = broker.make();
        Ok(())
    }

    fn pause(&mut self, time: Duration) {
        {
            let mut broker = self.topic.lock();
            broker.clock.advance(time);
            broker.turn();
        }
        self.serve();
    }

    fn why_held_up(&self) -> Option<String> {
        None
    }
}
