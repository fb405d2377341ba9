//! One connection: opens it, writes what is due, reads answers, opens it again when it is lost.

use std::cell::RefCell;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use tokio::io::ReadBuf;

use crate::clock::duration;
use crate::http::AnswerReader;
use crate::http::slow::Slow;
use crate::http::stream::{self, Connected, Stream, Wish};
use crate::plan::Habits;
use crate::run::two_conn;
use crate::run::worker::Worker;
use crate::stats::Failure;

/// Why a connection is no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The worker stops.
    Stopped,
    /// The server announced it with an answer.
    Announced,
    /// Lost: by the peer, or by its nonsense, or by our timeout.
    Lost(Failure),
}

const FIRST_RECONNECT: u64 = 5_000_000;
const LONGEST_RECONNECT: u64 = 200_000_000;

/// Runs the connection with this index until the worker stops.
pub async fn run(worker: Rc<RefCell<Worker>>, conn: usize, permits: Rc<tokio::sync::Semaphore>) {
    let plan = worker.borrow().plan.clone();
    // Threads take connections in turns, and so do targets.
    let at_target = (conn * plan.threads + worker.borrow().index) % plan.targets.len();
    let slow = slow_bytes(&plan.habits, conn * plan.threads + worker.borrow().index);
    let wish =
        Wish { http2: plan.http2.then_some(plan.pipeline), timeout: duration(plan.timeout), slow };
    let mut wait = FIRST_RECONNECT;
    let mut is_first = true;
    while !worker.borrow().stopping {
        let connected = {
            let _permit = permits.acquire().await;
            stream::connect(&plan.targets[at_target], wish).await
        };
        if std::mem::take(&mut is_first) {
            worker.borrow_mut().first_connects += 1;
        }
        let connected = match connected {
            Ok(connected) => connected,
            Err(e) => {
                worker.borrow_mut().connect_failed(Failure::of_connect(&e), &e);
                tokio::time::sleep(duration(wait)).await;
                wait = (wait * 2).min(LONGEST_RECONNECT);
                continue;
            }
        };
        wait = FIRST_RECONNECT;
        let now = {
            let mut w = worker.borrow_mut();
            let now = w.clock.now();
            w.opened(conn, now);
            now
        };
        let end = match connected {
            Connected::One(stream) => {
                let mut driver = Driver {
                    worker: worker.clone(),
                    conn,
                    at_target,
                    depth: plan.pipeline,
                    stream,
                    reader: AnswerReader::default(),
                    out: Vec::with_capacity(4096),
                    written: 0,
                    slow: slow.map(Slow::new),
                    now,
                };
                poll_fn(|cx| driver.poll(cx)).await
            }
            Connected::Two(opened, meter) => {
                let mut driver =
                    two_conn::Driver::new(worker.clone(), conn, at_target, *opened, meter, now);
                poll_fn(|cx| driver.poll(cx)).await
            }
        };
        let mut w = worker.borrow_mut();
        let now = w.clock.now();
        let (failure, is_loss) = match end {
            End::Stopped => return,
            End::Announced => (Failure::Closed, false),
            End::Lost(f) => (f, !matches!(f, Failure::Timeout | Failure::Malformed)),
        };
        w.closed(conn, failure, is_loss, now);
    }
}

/// Bytes per second of the connection with this number over all threads, if it is a slow one: they
/// are spread evenly over all.
fn slow_bytes(habits: &Habits, number: usize) -> Option<u64> {
    let slow_before = |n: usize| (n as f64 * habits.slow_readers + 1e-9).floor() as u64;
    (slow_before(number + 1) > slow_before(number)).then_some(habits.slow_rate)
}

struct Driver {
    worker: Rc<RefCell<Worker>>,
    conn: usize,
    at_target: usize,
    depth: usize,
    stream: Stream,
    reader: AnswerReader,
    out: Vec<u8>,
    written: usize,
    slow: Option<Slow>,
    now: u64,
}

impl Driver {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        let worker = self.worker.clone();
        let mut worker = worker.borrow_mut();
        if worker.stopping {
            return Poll::Ready(End::Stopped);
        }
        let slot = &mut worker.slots[self.conn];
        if slot.expired {
            return Poll::Ready(End::Lost(Failure::Timeout));
        }
        if slot.waker.as_ref().is_none_or(|w| !w.will_wake(cx.waker())) {
            slot.waker = Some(cx.waker().clone());
        }
        self.now = worker.clock.now();
        if let Poll::Ready(end) = self.poll_read(cx, &mut worker) {
            return Poll::Ready(end);
        }
        let slot = &worker.slots[self.conn];
        if slot.retired {
            // What it was given meanwhile goes over another one.
            if slot.flights.is_empty() && self.out.is_empty() {
                return Poll::Ready(End::Announced);
            }
            return self.poll_write(cx);
        }
        self.fill(&mut worker);
        self.poll_write(cx)
    }

    /// Reads until the socket is empty. Ready: the connection is over.
    fn poll_read(&mut self, cx: &mut Context<'_>, worker: &mut Worker) -> Poll<End> {
        loop {
            let most = match &mut self.slow {
                Some(slow) => ready!(slow.poll_room(cx)),
                None => usize::MAX,
            };
            let spare = self.reader.spare();
            let room = spare.len().min(most);
            let mut buf = ReadBuf::new(&mut spare[..room]);
            let read = ready!(self.stream.poll_read(cx, &mut buf));
            let count = buf.filled().len();
            if let Some(slow) = &mut self.slow {
                slow.took(count);
            }
            self.now = worker.clock.now();
            match read {
                Err(_) => return Poll::Ready(End::Lost(Failure::Reset)),
                Ok(()) if count == 0 => return Poll::Ready(self.ended(worker)),
                Ok(()) => self.reader.filled(count),
            }
            worker.stats.counters.bytes_received += count as u64;
            if let Some(end) = self.take_answers(worker) {
                return Poll::Ready(end);
            }
        }
    }

    fn take_answers(&mut self, worker: &mut Worker) -> Option<End> {
        loop {
            let front = worker.slots[self.conn].flights.front();
            let bodiless = front.is_some_and(|f| worker.workload.is_bodiless(&f.request));
            match self.reader.next(bodiless) {
                Ok(None) => return None,
                Err(_) => return Some(End::Lost(Failure::Malformed)),
                Ok(Some(answer)) => {
                    let slot = &mut worker.slots[self.conn];
                    slot.free_since = self.now;
                    let Some(flight) = slot.flights.pop_front() else {
                        return Some(End::Lost(Failure::Malformed));
                    };
                    let close = answer.close;
                    worker.answered(self.conn, flight, &answer, self.now);
                    if close {
                        return Some(End::Announced);
                    }
                }
            }
        }
    }

    fn ended(&mut self, worker: &mut Worker) -> End {
        let failure =
            if self.reader.is_mid_answer() { Failure::Truncated } else { Failure::Closed };
        if let Some(answer) = self.reader.ended()
            && let Some(flight) = worker.slots[self.conn].flights.pop_front()
        {
            worker.answered(self.conn, flight, &answer, self.now);
            return End::Announced;
        }
        End::Lost(failure)
    }

    /// Composes what is due, as far as the pipeline has room.
    fn fill(&mut self, worker: &mut Worker) {
        while worker.slots[self.conn].flights.len() < self.depth {
            let Some(request) = worker.next_due(self.conn, self.now) else {
                worker.rest(self.conn);
                return;
            };
            let before = self.out.len();
            worker.workload.compose(&request, self.at_target, &mut self.out);
            worker.stats.counters.bytes_sent += (self.out.len() - before) as u64;
            worker.sending(self.conn, request, 0, self.now);
        }
    }

    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        while self.written < self.out.len() {
            match self.stream.poll_write(cx, &self.out[self.written..]) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(count)) if count > 0 => self.written += count,
                Poll::Ready(_) => return Poll::Ready(End::Lost(Failure::Reset)),
            }
        }
        self.out.clear();
        self.written = 0;
        match self.stream.poll_flush(cx) {
            Poll::Ready(Err(_)) => Poll::Ready(End::Lost(Failure::Reset)),
            _ => Poll::Pending,
        }
    }
}
