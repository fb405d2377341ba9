//! One HTTP/2 connection: many requests at a time, each on a stream of its own.
//!
//! Thread: the worker's; connection and streams are driven by one task, so nothing is handed over.
//!
//! ```text
//! answer whole ──────────► its outcome          RST_STREAM ─────────► reset, or truncated
//! GOAWAY ────► no new requests; those it will not answer: closed; the last answer ends it
//! nothing for the timeout: the stream alone is reset; nothing at all since it was sent: lost
//! ```

use std::cell::RefCell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use h2::client::{Connection, SendRequest};
use http::uri::Scheme;

use crate::http::stream::{Io, Meter};
use crate::http::two::{self, Incoming, Opened};
use crate::run::conn_task::End;
use crate::run::worker::{Flight, Worker};
use crate::stats::Failure;
use crate::work::Request;

/// An answer that is waited for, by the number of its stream.
struct Awaited {
    stream: u32,
    incoming: Incoming,
}

pub struct Driver {
    worker: Rc<RefCell<Worker>>,
    conn: usize,
    at_target: usize,
    /// Streams at a time, as far as the server allows.
    most: usize,
    scheme: Scheme,
    send: SendRequest<Bytes>,
    connection: Connection<Io, Bytes>,
    meter: Rc<Meter>,
    awaited: Vec<Awaited>,
    /// A request as its workload writes it.
    written: Vec<u8>,
    /// When the last bytes came. Units: nanoseconds of the run's clock, as `now`.
    heard: u64,
    now: u64,
}

impl Driver {
    pub fn new(
        worker: Rc<RefCell<Worker>>,
        conn: usize,
        at_target: usize,
        (send, connection): Opened,
        meter: Rc<Meter>,
        now: u64,
    ) -> Self {
        let plan = worker.borrow().plan.clone();
        Self {
            worker,
            conn,
            at_target,
            most: plan.pipeline,
            scheme: plan.targets[at_target].scheme(),
            send,
            connection,
            meter,
            awaited: Vec::with_capacity(plan.pipeline),
            written: Vec::with_capacity(1024),
            heard: now,
            now,
        }
    }

    /// Ready: the connection is over.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        let worker = self.worker.clone();
        let mut worker = worker.borrow_mut();
        if worker.stopping {
            return Poll::Ready(End::Stopped);
        }
        let slot = &mut worker.slots[self.conn];
        if slot.waker.as_ref().is_none_or(|w| !w.will_wake(cx.waker())) {
            slot.waker = Some(cx.waker().clone());
        }
        loop {
            // Reads and writes, for all streams.
            let ended = Pin::new(&mut self.connection).poll(cx);
            self.count(&mut worker);
            self.take_answers(cx, &mut worker, ended.is_ready());
            if let Poll::Ready(ended) = ended {
                return Poll::Ready(self.end(&worker, ended));
            }
            if std::mem::take(&mut worker.slots[self.conn].expired) && !self.expire(&mut worker) {
                return Poll::Ready(End::Lost(Failure::Timeout));
            }
            if !self.fill(cx, &mut worker) {
                break;
            }
        }
        let slot = &worker.slots[self.conn];
        if slot.retired && slot.flights.is_empty() {
            return Poll::Ready(End::Announced);
        }
        Poll::Pending
    }

    fn count(&mut self, worker: &mut Worker) {
        self.now = worker.clock.now();
        let received = self.meter.received.take();
        if received > 0 {
            self.heard = self.now;
        }
        worker.stats.counters.bytes_received += received;
        worker.stats.counters.bytes_sent += self.meter.sent.take();
    }

    /// Hands on what is whole. `has_ended`: what is not whole now will never be.
    fn take_answers(&mut self, cx: &mut Context<'_>, worker: &mut Worker, has_ended: bool) {
        let mut at = 0;
        while at < self.awaited.len() {
            let error = match self.awaited[at].incoming.poll(cx) {
                Poll::Pending => {
                    at += 1;
                    continue;
                }
                Poll::Ready(Ok(())) => None,
                // The connection's end tells more of it than its streams do.
                Poll::Ready(Err(e)) if has_ended && !e.is_reset() => {
                    at += 1;
                    continue;
                }
                Poll::Ready(Err(e)) => Some(e),
            };
            let Awaited { stream, incoming } = self.awaited.swap_remove(at);
            let Some(flight) = self.landed(worker, stream) else { continue };
            match (error, incoming.answer()) {
                (None, Some(answer)) => worker.answered(self.conn, flight, &answer, self.now),
                (None, None) => worker.failed(flight.request, Failure::Malformed, self.now),
                (Some(e), _) => {
                    let failure = failure(&e, incoming.is_mid_answer());
                    worker.failed(flight.request, failure, self.now);
                }
            }
        }
    }

    /// Takes a stream's request out of those on their way.
    fn landed(&self, worker: &mut Worker, stream: u32) -> Option<Flight> {
        let slot = &mut worker.slots[self.conn];
        if slot.flights.len() >= self.most {
            slot.free_since = self.now;
        }
        let at = slot.flights.iter().position(|f| f.stream == stream)?;
        slot.flights.remove(at)
    }

    /// Gives up the streams that are beyond their time. False: the whole connection is silent.
    fn expire(&mut self, worker: &mut Worker) -> bool {
        let timeout = worker.plan.timeout;
        while let Some(&Flight { stream, sent, .. }) = worker.slots[self.conn].flights.front() {
            if self.now - sent <= timeout {
                break;
            }
            if self.heard < sent {
                return false;
            }
            // Dropped, the stream is reset.
            self.awaited.retain(|a| a.stream != stream);
            if let Some(flight) = self.landed(worker, stream) {
                worker.failed(flight.request, Failure::Timeout, self.now);
            }
        }
        true
    }

    /// Sends what is due, as far as there are streams; whether it sent something.
    fn fill(&mut self, cx: &mut Context<'_>, worker: &mut Worker) -> bool {
        let mut has_sent = false;
        loop {
            let slot = &mut worker.slots[self.conn];
            if slot.retired {
                return has_sent;
            }
            match self.send.poll_ready(cx) {
                Poll::Pending => return has_sent,
                Poll::Ready(Ok(())) => {}
                // The server wants no more requests over this connection.
                Poll::Ready(Err(_)) => {
                    slot.retired = true;
                    worker.give_back(self.conn, self.now);
                    return has_sent;
                }
            }
            self.most = worker.plan.pipeline.min(self.send.current_max_send_streams());
            if slot.flights.len() >= self.most {
                return has_sent;
            }
            let Some(request) = worker.next_due(self.conn, self.now) else {
                worker.rest(self.conn);
                return has_sent;
            };
            self.send(worker, request);
            has_sent = true;
        }
    }

    fn send(&mut self, worker: &mut Worker, request: Request) {
        self.written.clear();
        worker.workload.compose(&request, self.at_target, &mut self.written);
        let sent = two::translate(&self.written, &self.scheme).map_err(|_| Failure::Malformed);
        let sent = sent.and_then(|(head, body)| {
            let closed = |e: h2::Error| failure(&e, false);
            let is_whole = body.is_empty();
            let (response, mut stream) = self.send.send_request(head, is_whole).map_err(closed)?;
            if !is_whole {
                stream.send_data(body, true).map_err(closed)?;
            }
            Ok((stream.stream_id().as_u32(), Incoming::new(response)))
        });
        match sent {
            Ok((stream, incoming)) => {
                worker.sending(self.conn, request, stream, self.now);
                self.awaited.push(Awaited { stream, incoming });
            }
            Err(failure) => {
                worker.sending(self.conn, request, 0, self.now);
                worker.slots[self.conn].flights.pop_back();
                worker.failed(request, failure, self.now);
            }
        }
    }

    fn end(&self, worker: &Worker, ended: Result<(), h2::Error>) -> End {
        let slot = &worker.slots[self.conn];
        match ended {
            Ok(()) if slot.retired && slot.flights.is_empty() => End::Announced,
            Ok(()) => End::Lost(Failure::Closed),
            Err(e) if e.is_io() || e.is_remote() => {
                End::Lost(if e.is_go_away() { Failure::Closed } else { Failure::Reset })
            }
            Err(_) => End::Lost(Failure::Malformed),
        }
    }
}

/// What became of a stream.
fn failure(error: &h2::Error, is_mid_answer: bool) -> Failure {
    if error.is_go_away() && error.is_remote() {
        // It was not worked on, or will not be.
        Failure::Closed
    } else if error.is_remote() || error.is_io() {
        if is_mid_answer { Failure::Truncated } else { Failure::Reset }
    } else {
        Failure::Malformed
    }
}
