//! One worker thread's state: the schedule, what is due later, the connections' slots, the figures.
//!
//! Thread: one, a current-thread runtime. Connection tasks and the scheduler borrow the worker in
//! turns and never across an await, so there is no lock on the hot path.
//!
//! ```text
//! schedule ─┐                  ┌─► slot of an idle connection ─► written, in flight
//! later ────┴─► due now ───────┤                                   │ answer, failure, timeout
//!   ▲                          └─► pulled by a connection          ▼
//!   └────────────── retry with the same key ◄──────────── judged ──┴─► final outcome
//! ```

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::iter::Peekable;
use std::sync::Arc;
use std::task::Waker;

use crate::clock::{self, Clock};
use crate::http::Answer;
use crate::plan::{Load, Plan};
use crate::random::Random;
use crate::run::conductor::Shared;
use crate::schedule::{Schedule, Share};
use crate::stats::{self, Class, Failure, Place, Second, Stats};
use crate::work::accepted::Findings;
use crate::work::{ANY, Kind, Request, Workload, redeem};

/// A request on a connection.
#[derive(Clone, Copy, Debug)]
pub struct Flight {
    pub request: Request,
    /// Which of the connection's streams carries it; 0 with HTTP/1.1, which has one.
    pub stream: u32,
    /// Units: nanoseconds of the run's clock.
    pub sent: u64,
}

/// What the worker knows of a connection.
#[derive(Debug, Default)]
#[allow(clippy::struct_excessive_bools, reason = "four facts that are true or not by themselves")]
pub struct Slot {
    pub waker: Option<Waker>,
    pub flights: VecDeque<Flight>,
    /// Given to it by the scheduler, and not yet written.
    pub assigned: VecDeque<Request>,
    pub idle: bool,
    pub open: bool,
    /// The scheduler saw a flight beyond its time: the task must close the connection.
    pub expired: bool,
    /// Its turn to be opened anew, once nothing is out on it.
    pub retired: bool,
    /// Units: nanoseconds of the run's clock.
    pub opened_at: u64,
    /// Since when it could have taken another request.
    pub free_since: u64,
}

/// What a worker's thread had used by a moment. Units: nanoseconds.
#[derive(Clone, Copy, Debug, Default)]
struct Used {
    at: u64,
    cpu: u64,
    /// Waiting for a processor.
    delay: u64,
}

impl Used {
    fn by(at: u64) -> Self {
        Self { at, cpu: clock::thread_cpu(), delay: clock::thread_delay() }
    }

    /// The share of the time since then in which it worked, or would have.
    fn pressed_since(&self, before: &Self) -> f64 {
        let used = (self.cpu + self.delay).saturating_sub(before.cpu + before.delay);
        used as f64 / self.at.saturating_sub(before.at).max(1) as f64
    }
}

/// A request due at a later time.
#[derive(Debug)]
struct Later {
    due: u64,
    order: u64,
    request: Request,
}

impl PartialEq for Later {
    fn eq(&self, other: &Self) -> bool {
        (self.due, self.order) == (other.due, other.order)
    }
}
impl Eq for Later {}
impl PartialOrd for Later {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Later {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.due, self.order).cmp(&(other.due, other.order))
    }
}

#[derive(Debug)]
enum Source {
    Open(Box<Peekable<Schedule>>),
    Closed { next_number: u64, of: u64, until: u64 },
}

#[derive(Debug)]
pub struct Worker {
    pub index: usize,
    pub plan: Arc<Plan>,
    pub shared: Arc<Shared>,
    pub clock: Clock,
    pub stats: Stats,
    pub workload: Workload,
    pub slots: Vec<Slot>,
    /// Connections opened, over which requests can go.
    pub open: usize,
    /// Why the last attempt to connect failed.
    pub down: Option<Failure>,
    /// The first such failure, in words.
    pub why_down: String,
    /// First attempts to connect that are over, one way or another.
    pub first_connects: usize,
    pub stopping: bool,
    /// Units: nanoseconds of the run's clock; when the schedule starts.
    pub zero: u64,
    idle: VecDeque<u32>,
    source: Source,
    /// Nothing is planned beyond this moment. Units: nanoseconds of the run's clock.
    cut: Option<u64>,
    later: BinaryHeap<Reverse<Later>>,
    order: u64,
    random: Random,
    second: Second,
    /// When the current second is over.
    second_ends: u64,
    /// What this thread had used when the run and the second began.
    used: [Used; 2],
    /// Requests that went out too late in this second, for whatever reason.
    late: u64,
    /// Connections retired so far.
    reopened: u64,
}

impl Worker {
    pub fn new(shared: Arc<Shared>, index: usize) -> Self {
        let plan = shared.plan.clone();
        let share = Share {
            index: plan.share.index + plan.share.of * index as u64,
            of: plan.share.of * plan.threads as u64,
        };
        let source = match &plan.load {
            Load::Open { phases, arrivals, recorded } => {
                let schedule = match recorded {
                    Some(recording) => Schedule::recorded(recording.clone(), share),
                    None => Schedule::new(phases, *arrivals, plan.seed, share),
                };
                Source::Open(Box::new(schedule.peekable()))
            }
            Load::Closed { nanoseconds } => {
                Source::Closed { next_number: share.index, of: share.of, until: *nanoseconds }
            }
        };
        let mine =
            plan.connections / plan.threads + usize::from(index < plan.connections % plan.threads);
        let slot = || Slot {
            flights: VecDeque::with_capacity(plan.pipeline),
            assigned: VecDeque::with_capacity(plan.pipeline),
            ..Slot::default()
        };
        Self {
            index,
            clock: shared.clock,
            stats: Stats::default(),
            workload: Workload::new(&plan),
            slots: (0..mine).map(|_| slot()).collect(),
            open: 0,
            down: None,
            why_down: String::new(),
            first_connects: 0,
            stopping: false,
            zero: 0,
            idle: VecDeque::with_capacity(mine),
            source,
            cut: None,
            later: BinaryHeap::new(),
            order: 0,
            random: Random::new(plan.seed ^ (index as u64) << 32),
            second: Second::new(0),
            second_ends: 0,
            used: [Used::default(); 2],
            late: 0,
            reopened: 0,
            plan,
            shared,
        }
    }

    /// The schedule starts now.
    pub fn start(&mut self, zero: u64) {
        self.zero = zero;
        self.second_ends = zero + 1_000_000_000;
        self.used = [Used::by(zero); 2];
        if let Source::Closed { until, .. } = &mut self.source {
            *until += zero;
        }
        for slot in &mut self.slots {
            slot.free_since = slot.free_since.max(zero);
        }
    }

    /// The next request for this connection, if one is due.
    pub fn next_due(&mut self, conn: usize, now: u64) -> Option<Request> {
        if self.zero == 0 {
            return None;
        }
        self.slots[conn].assigned.pop_front().or_else(|| self.pull(conn as u32, now))
    }

    fn pull(&mut self, conn: u32, now: u64) -> Option<Request> {
        if now < self.zero {
            return None;
        }
        if let Some(Reverse(top)) = self.later.peek()
            && top.due <= now
            && (top.request.avoid != conn || self.open < 2)
        {
            return self.later.pop().map(|Reverse(l)| l.request);
        }
        let (number, planned, phase) = match &mut self.source {
            Source::Open(schedule) => loop {
                let arrival = *schedule.peek()?;
                let planned = self.zero + arrival.at;
                if planned > now.min(self.cut.unwrap_or(now)) {
                    return None;
                }
                schedule.next();
                self.stats.counters.planned += 1;
                self.second.planned += 1;
                if now - planned > self.plan.max_lag {
                    self.stats.counters.unsent += 1;
                    continue;
                }
                break (arrival.number, planned, arrival.phase);
            },
            Source::Closed { next_number, of, until } => {
                if now >= *until {
                    return None;
                }
                let number = *next_number;
                *next_number += *of;
                self.stats.counters.planned += 1;
                self.second.planned += 1;
                (number, now, 0)
            }
        };
        let first = self.workload.first_kind(number, phase);
        if first == Kind::Redeem
            && let Some((kind, after)) = self.workload.companion(number)
        {
            self.stats.counters.follow_ups += 1;
            self.stats.counters.duplicates += 1;
            let planned = planned + after;
            self.push_later(
                planned,
                Request { number, kind, phase, attempt: 0, planned, avoid: conn },
            );
        }
        if first == Kind::Redeem {
            for count in 1..=self.workload.hammers(number) {
                self.stats.counters.follow_ups += 1;
                let number = redeem::hammer_number(number, count);
                let again = Request { number, kind: first, phase, attempt: 0, planned, avoid: ANY };
                self.push_later(planned, again);
            }
        }
        Some(Request { number, kind: first, phase, attempt: 0, planned, avoid: ANY })
    }

    fn push_later(&mut self, due: u64, request: Request) {
        self.order += 1;
        self.later.push(Reverse(Later { due, order: self.order, request }));
    }

    /// A request is being written now.
    pub fn sending(&mut self, conn: usize, request: Request, stream: u32, now: u64) {
        let slot = &mut self.slots[conn];
        if request.attempt == 0 {
            let possible = request.planned.max(slot.free_since);
            stats::record(&mut self.stats.lag, now.saturating_sub(possible));
            self.late += u64::from(now.saturating_sub(request.planned) > stats::PRESSED_LAG);
        } else {
            self.stats.counters.retries += 1;
            self.second.retries += 1;
        }
        self.stats.counters.attempts += 1;
        self.second.sent += 1;
        slot.flights.push_back(Flight { request, stream, sent: now });
    }

    /// The connection has room and found nothing due.
    pub fn rest(&mut self, conn: usize) {
        let slot = &mut self.slots[conn];
        if !slot.idle {
            slot.idle = true;
            self.idle.push_back(conn as u32);
        }
    }

    /// Hands due requests to idle connections, and wakes them.
    pub fn assign_due(&mut self, now: u64) {
        if self.open == 0 {
            self.fail_due(now);
            return;
        }
        let depth = self.plan.pipeline;
        let mut passed_over = 0;
        while let Some(conn) = self.idle.pop_front() {
            let slot = &mut self.slots[conn as usize];
            slot.idle = false;
            if !slot.open || slot.retired || slot.flights.len() + slot.assigned.len() >= depth {
                continue;
            }
            if let Some(request) = self.pull(conn, now) {
                let slot = &mut self.slots[conn as usize];
                slot.assigned.push_back(request);
                if let Some(waker) = &slot.waker {
                    waker.wake_by_ref();
                }
                passed_over = 0;
            } else {
                self.rest(conn as usize);
                passed_over += 1;
                // Something may be due that only another connection may carry.
                let is_due = self.later.peek().is_some_and(|Reverse(l)| l.due <= now);
                if !is_due || passed_over > self.idle.len() {
                    return;
                }
            }
        }
    }

    /// No connection can be opened: what is due is refused like a caller who dials now.
    fn fail_due(&mut self, now: u64) {
        let (Some(failure), true) = (self.down, self.zero > 0) else { return };
        if matches!(self.source, Source::Closed { .. }) && !self.is_schedule_over(now) {
            // A closed loop has no request that is due by itself.
            return;
        }
        while let Some(request) = self.pull(ANY, now) {
            self.stats.counters.attempts += 1;
            self.second.sent += 1;
            if request.attempt > 0 {
                self.stats.counters.retries += 1;
                self.second.retries += 1;
            }
            self.failed(request, failure, now);
        }
    }

    /// Units: nanoseconds until something is due, as far as is known now.
    pub fn until_due(&mut self, now: u64) -> Option<u64> {
        let later = self.later.peek().map(|Reverse(l)| l.due);
        let planned = match self.source {
            Source::Open(_) => self.next_planned(),
            Source::Closed { until, .. } => (now < until).then_some(until),
        };
        let next = later.into_iter().chain(planned).min()?;
        Some(next.saturating_sub(now))
    }

    /// Whether no request of the schedule is left to send.
    pub fn is_schedule_over(&mut self, now: u64) -> bool {
        match self.source {
            Source::Open(_) => self.next_planned().is_none(),
            Source::Closed { until, .. } => now >= until,
        }
    }

    pub fn is_idle(&self) -> bool {
        self.later.is_empty()
            && self.slots.iter().all(|s| s.flights.is_empty() && s.assigned.is_empty())
    }

    /// When the schedule's next request is planned. Units: nanoseconds of the run's clock.
    fn next_planned(&mut self) -> Option<u64> {
        let Source::Open(schedule) = &mut self.source else { return None };
        let planned = self.zero + schedule.peek()?.at;
        (planned <= self.cut.unwrap_or(u64::MAX)).then_some(planned)
    }

    /// Plans nothing more. What was due before it still goes out, or is unsent.
    pub fn cut_schedule(&mut self, now: u64) {
        let cut = *self.cut.get_or_insert(now);
        if let Source::Closed { until, .. } = &mut self.source {
            *until = cut.min(*until);
        }
    }

    /// An answer arrived.
    pub fn answered(&mut self, conn: usize, flight: Flight, answer: &Answer<'_>, now: u64) {
        let Flight { mut request, sent, .. } = flight;
        // A node that says it is still starting has not recovered.
        let settles = !self.plan.retry.statuses.contains(&answer.status);
        if settles {
            self.shared.timeline.answered(self.slots[conn].opened_at, now);
        }
        let judged = self.workload.judge(&request, answer, sent, now);
        let code = judged.code;
        let workload = &self.workload;
        let outcome =
            self.stats.answered(answer.status, code, || workload.class(answer.status, code));
        let place = self.place(&request);
        self.stats.attempt(outcome, place, Some(now - sent));
        request.attempt += 1;
        if !settles && self.may_retry(&request) {
            let asked = u64::from(answer.retry_after.unwrap_or(0)) * 1_000_000_000;
            self.retry(request, asked.min(self.plan.retry.longest_wait), now);
            return;
        }
        if answer.status >= 500 {
            self.workload.unknown(&request);
        }
        self.stats.counters.answered += 1;
        self.finish(outcome, &request, place, now);
        if let Some((kind, after)) = judged.next {
            self.stats.counters.follow_ups += 1;
            let planned = now + after;
            let next = Request { kind, attempt: 0, planned, avoid: ANY, ..request };
            self.push_later(planned, next);
        }
    }

    /// An attempt ended without an answer.
    pub fn failed(&mut self, mut request: Request, failure: Failure, now: u64) {
        let outcome = self.stats.failed(failure);
        let place = self.place(&request);
        self.stats.attempt(outcome, place, None);
        request.attempt += 1;
        if self.plan.retry.failures && failure != Failure::Unanswered && self.may_retry(&request) {
            self.retry(request, 0, now);
            return;
        }
        self.workload.unknown(&request);
        if failure == Failure::Unanswered {
            self.stats.counters.unanswered += 1;
        } else {
            self.stats.counters.answered += 1;
        }
        self.finish(outcome, &request, place, now);
    }

    fn may_retry(&self, request: &Request) -> bool {
        let most = self.plan.retry.most_attempts;
        most == 0 || request.attempt < most
    }

    fn retry(&mut self, request: Request, at_least: u64, now: u64) {
        let wait = self.plan.retry.wait(request.attempt - 1, self.random.next()).max(at_least);
        self.push_later(now + wait, request);
    }

    fn finish(&mut self, outcome: usize, request: &Request, place: Place, now: u64) {
        let response = now.saturating_sub(request.planned);
        let class = self.stats.request(outcome, place, response);
        match class {
            Class::Good => self.second.good += 1,
            Class::Refused => self.second.refused += 1,
            Class::Error => self.second.errors += 1,
        }
        stats::record(&mut self.second.response, response);
    }

    fn place(&self, request: &Request) -> Place {
        Place { phase: request.phase, section: self.shared.timeline.section_of(request.planned) }
    }

    /// Gives up what has no answer: the drain is over.
    pub fn abandon(&mut self, now: u64) {
        let mut left: Vec<Request> = self.later.drain().map(|Reverse(l)| l.request).collect();
        for slot in &mut self.slots {
            left.extend(slot.flights.drain(..).map(|f| f.request));
            left.extend(slot.assigned.drain(..));
        }
        for request in left {
            self.failed(request, Failure::Unanswered, now);
        }
    }

    /// Tells connections whose oldest flight is beyond the timeout to close.
    pub fn expire(&mut self, now: u64) {
        for slot in &mut self.slots {
            let late = slot.flights.front().is_some_and(|f| now - f.sent > self.plan.timeout);
            if late && !slot.expired {
                slot.expired = true;
                if let Some(waker) = &slot.waker {
                    waker.wake_by_ref();
                }
            }
        }
    }

    pub fn opened(&mut self, conn: usize, now: u64) {
        self.open += 1;
        self.stats.counters.connections_opened += 1;
        self.down = None;
        let slot = &mut self.slots[conn];
        *slot = Slot {
            flights: std::mem::take(&mut slot.flights),
            assigned: std::mem::take(&mut slot.assigned),
            idle: slot.idle,
            open: true,
            opened_at: now,
            free_since: now,
            ..Slot::default()
        };
    }

    pub fn connect_failed(&mut self, failure: Failure, error: &std::io::Error) {
        self.stats.counters.connects_failed += 1;
        if self.why_down.is_empty() {
            self.why_down = error.to_string();
        }
        self.down = Some(failure);
    }

    /// A connection is gone: its flights end with `failure`, all or only those beyond the timeout.
    pub fn closed(&mut self, conn: usize, failure: Failure, is_loss: bool, now: u64) {
        self.open -= 1;
        let timeout = self.plan.timeout;
        let slot = &mut self.slots[conn];
        slot.open = false;
        let flights = std::mem::take(&mut slot.flights);
        self.give_back(conn, now);
        if is_loss && !flights.is_empty() {
            self.stats.counters.connections_lost += 1;
            self.shared.timeline.lost(now, flights.len() as u64);
        }
        for (i, flight) in flights.iter().enumerate() {
            let own = match failure {
                Failure::Timeout if now - flight.sent <= timeout => Failure::Closed,
                // Only the first in line can have been cut off or malformed.
                Failure::Truncated | Failure::Malformed if i > 0 => Failure::Closed,
                _ => failure,
            };
            self.failed(flight.request, own, now);
        }
        let mut flights = flights;
        flights.clear();
        self.slots[conn].flights = flights;
    }

    /// Requests that a connection was given and will not send are due for another one.
    pub fn give_back(&mut self, conn: usize, now: u64) {
        while let Some(request) = self.slots[conn].assigned.pop_front() {
            self.push_later(now, request);
        }
    }

    /// Retires connections as fast as the plan wants them opened anew.
    pub fn reopen(&mut self, now: u64) {
        let rate = self.plan.habits.reopened_per_second / self.plan.threads as f64;
        if rate <= 0.0 || self.zero == 0 || self.slots.is_empty() {
            return;
        }
        let due = (now.saturating_sub(self.zero) as f64 / 1e9 * rate) as u64;
        while self.reopened < due {
            let at = self.reopened as usize % self.slots.len();
            self.reopened += 1;
            let slot = &mut self.slots[at];
            slot.retired = true;
            if let Some(waker) = &slot.waker {
                waker.wake_by_ref();
            }
        }
    }

    /// A worker that has no time left makes its requests late, however busy the server keeps the
    /// connections.
    fn judge_second(&mut self, now: u64) {
        let before = std::mem::replace(&mut self.used[1], Used::by(now));
        let late = std::mem::take(&mut self.late);
        if self.used[1].pressed_since(&before) > stats::MOST_PRESSED {
            self.stats.late_while_pressed += late;
        }
    }

    /// Hands on the second that is over, if one is.
    pub fn tick(&mut self, now: u64) {
        while self.zero > 0 && now >= self.second_ends {
            self.judge_second(now);
            let next = Second::new(self.second.second + 1);
            self.second_ends += 1_000_000_000;
            let done = std::mem::replace(&mut self.second, next);
            let findings = || match &self.workload {
                Workload::Redeem(r) => r.ledger.findings.clone(),
                Workload::Plain(_) => Findings::default(),
            };
            self.shared.push_look(self.index, || (self.stats.clone(), findings()));
            self.shared.push_second(done);
        }
    }

    /// Ends the worker: its figures.
    pub fn finished(&mut self, now: u64) {
        self.stopping = true;
        let last = std::mem::replace(&mut self.second, Second::new(0));
        self.shared.push_second(last);
        self.judge_second(now);
        let [begun, ended] = self.used;
        self.stats.cpu = ended.cpu;
        let ran = now.saturating_sub(self.zero).max(1);
        self.stats.busy_share = ended.cpu.saturating_sub(begun.cpu) as f64 / ran as f64;
        self.stats.pressed_share = ended.pressed_since(&begun);
        for slot in &mut self.slots {
            if let Some(waker) = slot.waker.take() {
                waker.wake();
            }
        }
    }
}
