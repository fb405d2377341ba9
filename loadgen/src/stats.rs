//! What is counted and timed while load runs.
//!
//! Each worker has one [`Stats`]; they merge by adding counters and histograms, never by averaging
//! figures. Latencies are in microseconds: the *response time* counts from the planned moment and
//! over all attempts, the *service time* from the sending of one attempt to its answer.

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// A latency histogram: 1 µs to 1 hour with three digits.
pub type Latency = Histogram<u64>;

const HIGHEST_US: u64 = 3_600_000_000;

/// An empty histogram; all of them have the same bounds, so adding never fails.
pub fn latency() -> Latency {
    Latency::new_with_max(HIGHEST_US, 3).expect("constant bounds are valid")
}

/// Histograms in JSON: the compressed form of the histogram library, as base64.
pub mod wire {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use hdrhistogram::serialization::{Deserializer, Serializer, V2DeflateSerializer};
    use serde::Deserialize as _;
    use serde::de::Error as _;
    use serde::ser::Error as _;

    use super::Latency;

    pub fn serialize<S: serde::Serializer>(h: &Latency, to: S) -> Result<S::Ok, S::Error> {
        let mut bytes = Vec::new();
        V2DeflateSerializer::new().serialize(h, &mut bytes).map_err(S::Error::custom)?;
        to.serialize_str(&STANDARD.encode(bytes))
    }

    pub fn deserialize<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Latency, D::Error> {
        let text = String::deserialize(from)?;
        let bytes = STANDARD.decode(text).map_err(D::Error::custom)?;
        let read: Latency =
            Deserializer::new().deserialize(&mut &bytes[..]).map_err(D::Error::custom)?;
        // Into the bounds that all of ours have, so that adding cannot fail later.
        let mut h = super::latency();
        h.add(&read).map_err(D::Error::custom)?;
        Ok(h)
    }
}

/// Adds one histogram to another.
pub fn add(into: &mut Latency, from: &Latency) {
    into.add(from).expect("both have the bounds of latency()");
}

/// Records nanoseconds as microseconds, rounded up: what took time is never 0.
pub fn record(into: &mut Latency, ns: u64) {
    into.saturating_record(ns.div_ceil(1000));
}

/// An attempt that brought no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Failure {
    /// The connect was refused, or no connection could be opened at the time.
    Refused,
    /// No route, no address, no file descriptor.
    Unreachable,
    ConnectTimeout,
    /// No TLS could be agreed on, or the certificate is not to be trusted.
    Tls,
    /// The peer reset the connection, or with HTTP/2 the stream.
    Reset,
    /// The peer closed it without an answer, or said by GOAWAY that none will come.
    Closed,
    /// The peer closed or reset it in mid-answer.
    Truncated,
    /// No answer within the timeout.
    Timeout,
    /// What came was not HTTP.
    Malformed,
    /// Still without an answer when the drain was over.
    Unanswered,
}

impl Failure {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Unreachable => "unreachable",
            Self::ConnectTimeout => "connect-timeout",
            Self::Tls => "tls",
            Self::Reset => "reset",
            Self::Closed => "closed",
            Self::Truncated => "truncated",
            Self::Timeout => "timeout",
            Self::Malformed => "malformed",
            Self::Unanswered => "unanswered",
        }
    }

    pub fn of_connect(error: &std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::ConnectionRefused | std::io::ErrorKind::ConnectionReset => {
                Self::Refused
            }
            std::io::ErrorKind::TimedOut => Self::ConnectTimeout,
            std::io::ErrorKind::InvalidData | std::io::ErrorKind::UnexpectedEof => Self::Tls,
            std::io::ErrorKind::Unsupported => Self::Malformed,
            _ => Self::Unreachable,
        }
    }
}

/// What became of an attempt: a status with a problem code where there is one, or a failure.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OutcomeKey {
    Answered { status: u16, code: String },
    Failed(Failure),
}

/// What an outcome means for the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Class {
    /// What was asked for was done.
    Good,
    /// A refusal that belongs to the business: sold out, not enough points.
    Refused,
    Error,
}

/// The figures of one outcome in one phase and section.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Cell {
    pub phase: u16,
    pub section: u16,
    #[serde(with = "wire")]
    pub response: Latency,
    #[serde(with = "wire")]
    pub service: Latency,
}

/// The figures of one outcome.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Outcome {
    pub key: OutcomeKey,
    pub class: Class,
    /// Attempts that ended so.
    pub attempts: u64,
    /// Requests that ended so for good.
    pub requests: u64,
    pub cells: Vec<Cell>,
}

impl Outcome {
    fn new(key: OutcomeKey, class: Class) -> Self {
        Self { key, class, attempts: 0, requests: 0, cells: Vec::new() }
    }

    fn cell(&mut self, phase: u16, section: u16) -> &mut Cell {
        // From the end: sections come one after the other, and the last one is in use.
        let found = self.cells.iter().rposition(|c| c.phase == phase && c.section == section);
        let at = found.unwrap_or_else(|| {
            self.cells.push(Cell { phase, section, response: latency(), service: latency() });
            self.cells.len() - 1
        });
        &mut self.cells[at]
    }
}

/// One second of a worker's run, or of all.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Second {
    pub second: u32,
    pub planned: u64,
    pub sent: u64,
    pub good: u64,
    pub refused: u64,
    pub errors: u64,
    pub retries: u64,
    #[serde(with = "wire")]
    pub response: Latency,
}

impl Second {
    pub fn new(second: u32) -> Self {
        Self {
            second,
            planned: 0,
            sent: 0,
            good: 0,
            refused: 0,
            errors: 0,
            retries: 0,
            response: latency(),
        }
    }

    pub fn add(&mut self, other: &Self) {
        self.planned += other.planned;
        self.sent += other.sent;
        self.good += other.good;
        self.refused += other.refused;
        self.errors += other.errors;
        self.retries += other.retries;
        add(&mut self.response, &other.response);
    }
}

/// A second without its histogram: what a run of hours can keep. Units: microseconds.
#[derive(Clone, Copy, Debug)]
pub struct SecondRow {
    pub second: u32,
    pub planned: u64,
    pub good: u64,
    pub refused: u64,
    pub errors: u64,
    pub retries: u64,
    pub p50: u64,
    pub p90: u64,
    pub p99: u64,
    pub max: u64,
}

impl SecondRow {
    pub fn of(s: &Second) -> Self {
        let at = |q| s.response.value_at_quantile(q);
        Self {
            second: s.second,
            planned: s.planned,
            good: s.good,
            refused: s.refused,
            errors: s.errors,
            retries: s.retries,
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            max: at(1.0),
        }
    }
}

/// Plain counters of a worker; they add.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Requests of the schedule.
    pub planned: u64,
    /// Requests that came from others: duplicates, confirmations, cancellations.
    pub follow_ups: u64,
    /// Of those, the ones that repeat a request with its key on another connection.
    pub duplicates: u64,
    /// Attempts that were written to a connection.
    pub attempts: u64,
    /// Attempts beyond a request's first.
    pub retries: u64,
    /// Requests with a final answer, whatever it was.
    pub answered: u64,
    /// Planned, but not sent within the allowed lag.
    pub unsent: u64,
    /// Sent or tried, and without an answer when the drain was over.
    pub unanswered: u64,
    pub bytes_sent: u64,
    pub bytes_received: u64,
    pub connections_opened: u64,
    pub connections_lost: u64,
    pub connects_failed: u64,
}

impl Counters {
    pub const fn add(&mut self, o: &Self) {
        self.planned += o.planned;
        self.follow_ups += o.follow_ups;
        self.duplicates += o.duplicates;
        self.attempts += o.attempts;
        self.retries += o.retries;
        self.answered += o.answered;
        self.unsent += o.unsent;
        self.unanswered += o.unanswered;
        self.bytes_sent += o.bytes_sent;
        self.bytes_received += o.bytes_received;
        self.connections_opened += o.connections_opened;
        self.connections_lost += o.connections_lost;
        self.connects_failed += o.connects_failed;
    }
}

/// Everything one worker counted and timed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Stats {
    pub counters: Counters,
    pub outcomes: Vec<Outcome>,
    /// How late the generator itself was: from the planned moment, or from when a connection was
    /// free if that was later, to the sending.
    #[serde(with = "wire")]
    pub lag: Latency,
    /// Units: nanoseconds of processor time, and of run time, of the busiest worker.
    pub cpu: u64,
    pub busy_share: f64,
    /// The same with the time in which it waited for a processor that others had.
    #[serde(default)]
    pub pressed_share: f64,
    /// Requests that went out too late, whoever was to blame, in seconds in which their worker did
    /// nothing but work, or wait for a processor.
    #[serde(default)]
    pub late_while_pressed: u64,
}

/// A worker with so little time of its own is too slow for what it was given.
pub const MOST_PRESSED: f64 = 0.97;
/// Units: nanoseconds after which such a worker's requests are late.
pub const PRESSED_LAG: u64 = 5_000_000;

impl Default for Stats {
    fn default() -> Self {
        Self {
            counters: Counters::default(),
            outcomes: Vec::new(),
            lag: latency(),
            cpu: 0,
            busy_share: 0.0,
            pressed_share: 0.0,
            late_while_pressed: 0,
        }
    }
}

/// Where in the run something happened.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    pub phase: u16,
    pub section: u16,
}

impl Stats {
    /// The index of an answer's outcome; the first of its kind allocates.
    pub fn answered(&mut self, status: u16, code: &str, class: impl FnOnce() -> Class) -> usize {
        let found = self.outcomes.iter().position(|o| {
            matches!(&o.key,
                OutcomeKey::Answered { status: s, code: c } if *s == status && c == code)
        });
        found.unwrap_or_else(|| {
            let key = OutcomeKey::Answered { status, code: code.to_owned() };
            self.outcomes.push(Outcome::new(key, class()));
            self.outcomes.len() - 1
        })
    }

    pub fn failed(&mut self, failure: Failure) -> usize {
        let key = OutcomeKey::Failed(failure);
        let found = self.outcomes.iter().position(|o| o.key == key);
        found.unwrap_or_else(|| {
            self.outcomes.push(Outcome::new(key, Class::Error));
            self.outcomes.len() - 1
        })
    }

    /// Counts an attempt's end; `service` in nanoseconds where it brought an answer.
    pub fn attempt(&mut self, outcome: usize, place: Place, service: Option<u64>) {
        let o = &mut self.outcomes[outcome];
        o.attempts += 1;
        if let Some(ns) = service {
            record(&mut o.cell(place.phase, place.section).service, ns);
        }
    }

    /// Counts a request's end. Units: nanoseconds.
    pub fn request(&mut self, outcome: usize, place: Place, response: u64) -> Class {
        let o = &mut self.outcomes[outcome];
        o.requests += 1;
        record(&mut o.cell(place.phase, place.section).response, response);
        o.class
    }

    pub fn merge(&mut self, other: &Self) {
        self.counters.add(&other.counters);
        add(&mut self.lag, &other.lag);
        self.cpu += other.cpu;
        self.busy_share = self.busy_share.max(other.busy_share);
        self.pressed_share = self.pressed_share.max(other.pressed_share);
        self.late_while_pressed += other.late_while_pressed;
        for from in &other.outcomes {
            let at = self.outcomes.iter().position(|o| o.key == from.key).unwrap_or_else(|| {
                self.outcomes.push(Outcome::new(from.key.clone(), from.class));
                self.outcomes.len() - 1
            });
            let into = &mut self.outcomes[at];
            into.attempts += from.attempts;
            into.requests += from.requests;
            for c in &from.cells {
                let cell = into.cell(c.phase, c.section);
                add(&mut cell.response, &c.response);
                add(&mut cell.service, &c.service);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merged_figures_are_those_of_one_worker_that_saw_everything() {
        let (mut all, mut parts) = (Stats::default(), [Stats::default(), Stats::default()]);
        for i in 0..1000u64 {
            let (status, code) = if i % 3 == 0 { (201, "") } else { (409, "sold-out") };
            let place = Place { phase: (i % 2) as u16, section: 0 };
            for s in [&mut all, &mut parts[(i % 2) as usize]] {
                let o = s.answered(status, code, || Class::Good);
                s.attempt(o, place, Some(i * 700));
                s.request(o, place, i * 1000);
                s.counters.answered += 1;
            }
        }
        let mut merged = Stats::default();
        for part in &parts {
            merged.merge(part);
        }
        assert_eq!(merged.counters, all.counters);
        for o in &all.outcomes {
            let m = merged.outcomes.iter().find(|m| m.key == o.key).unwrap();
            assert_eq!((m.requests, m.attempts), (o.requests, o.attempts));
            for c in &o.cells {
                let same = |m: &&Cell| (m.phase, m.section) == (c.phase, c.section);
                let mc = m.cells.iter().find(same).unwrap();
                assert_eq!((&mc.response, &mc.service), (&c.response, &c.service));
            }
        }
    }

    #[test]
    fn figures_come_back_from_json_as_they_were() {
        let mut s = Stats::default();
        for i in 0..5000u64 {
            let o = s.answered(200 + (i % 3) as u16, "", || Class::Good);
            s.request(o, Place { phase: 0, section: 1 }, i * i * 1000);
            record(&mut s.lag, i);
        }
        s.failed(Failure::Truncated);
        let back: Stats = serde_json::from_str(&serde_json::to_string(&s).unwrap()).unwrap();
        assert_eq!(back.lag, s.lag);
        for (b, o) in back.outcomes.iter().zip(&s.outcomes) {
            assert_eq!((&b.key, b.class, b.requests), (&o.key, o.class, o.requests));
            assert!(b.cells.iter().zip(&o.cells).all(|(b, o)| b.response == o.response));
        }
        assert_eq!(back.outcomes.len(), 4);
    }

    #[test]
    fn a_latency_is_never_rounded_down_to_nothing() {
        let mut h = latency();
        record(&mut h, 1);
        assert_eq!(h.min(), 1);
    }
}
