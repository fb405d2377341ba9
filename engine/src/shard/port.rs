//! Ports: how an HTTP worker asks shards and hears back, without a lock and without a wake-up per
//! request.
//!
//! ```text
//! worker: submit ──► inbox of the shard ──► shard ──► journal ──► replies ─┐
//!    ▲   (ticket in the worker's own table)                                │ one notify per batch
//!    └───────────────────────── Port::run completes the tickets ◄──────────┘
//! ```
//! Shards are woken once per turn of the worker's event loop, behind all requests of that turn:
//! a wake-up per request would, on few cores, run the shard for one request at a time.
//!
//! Invariants: at most [`PortShared::capacity`] tickets are out at once, and the reply queue has
//! room for every one of them, so a reply never waits and is never dropped. A caller that stops
//! waiting (its connection broke) leaves its ticket to be freed by the reply.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use crossbeam::queue::ArrayQueue;
use slab::Slab;
use tokio::sync::Notify;

use super::gate::{Gate, Unavailable};
use super::inbox::{Inboxes, Request};
use crate::kernel::command::{Command, Outcome};

/// Where a reply goes: a port, and the ticket that its worker gave the request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReplyTo {
    pub port: u16,
    pub ticket: u32,
}

/// A port's half that other threads see.
pub struct PortShared {
    replies: ArrayQueue<(u32, Outcome)>,
    arrived: Notify,
}

impl PortShared {
    pub fn new(capacity: usize) -> Self {
        Self { replies: ArrayQueue::new(capacity), arrived: Notify::new() }
    }
    pub fn capacity(&self) -> usize {
        self.replies.capacity()
    }
    /// Puts a reply down; `wake` must follow.
    pub fn reply(&self, ticket: u32, outcome: Outcome) {
        let pushed = self.replies.push((ticket, outcome));
        assert!(pushed.is_ok(), "a port has room for a reply to each of its tickets");
    }
    /// Wakes the port's worker; one call for any number of replies before it.
    pub fn wake(&self) {
        self.arrived.notify_one();
    }
}

enum Ticket {
    Waiting(Option<Waker>),
    Answered(Outcome),
    /// The caller has gone; the reply frees the ticket.
    Abandoned,
}

/// One worker's way to the shards. Thread: stays on the thread that made it.
#[derive(Clone)]
pub struct Port {
    index: u16,
    ports: Arc<[PortShared]>,
    inboxes: Arc<Inboxes>,
    gate: Arc<Gate>,
    tickets: Rc<RefCell<Slab<Ticket>>>,
    unwoken: Rc<Unwoken>,
}

/// Shards that have requests of this turn, and are not woken yet.
struct Unwoken {
    is_shard: Box<[Cell<bool>]>,
    any: Cell<bool>,
    /// Puts the waking behind all tasks that are ready now.
    turn: Notify,
}

impl Port {
    pub fn new(
        index: u16,
        ports: Arc<[PortShared]>,
        inboxes: Arc<Inboxes>,
        gate: Arc<Gate>,
    ) -> Self {
        let tickets = Rc::new(RefCell::new(Slab::with_capacity(256)));
        let unwoken = Rc::new(Unwoken {
            is_shard: (0..inboxes.shard_count()).map(|_| Cell::new(false)).collect(),
            any: Cell::new(false),
            turn: Notify::new(),
        });
        Self { index, ports, inboxes, gate, tickets, unwoken }
    }

    fn shared(&self) -> &PortShared {
        &self.ports[usize::from(self.index)]
    }

    /// Sends a command to its shard.
    ///
    /// Errors: [`Unavailable`], at once, when the node does not take it: nothing has happened
    /// then, and nothing will.
    pub fn submit(&self, command: Command) -> Result<Pending, Unavailable> {
        self.gate.admit(&command)?;
        let mut tickets = self.tickets.borrow_mut();
        if tickets.len() >= self.shared().capacity() {
            return Err(Unavailable::Overloaded);
        }
        let ticket = tickets.insert(Ticket::Waiting(None));
        let to = ReplyTo { port: self.index, ticket: ticket as u32 };
        let shard = match self.inboxes.push(Request { command, reply_to: to }) {
            Ok(shard) => shard,
            Err(refused) => {
                tickets.remove(ticket);
                return Err(refused);
            }
        };
        self.unwoken.is_shard[shard].set(true);
        if !self.unwoken.any.replace(true) {
            self.unwoken.turn.notify_one();
        }
        Ok(Pending { ticket, tickets: Rc::clone(&self.tickets) })
    }

    /// Requests of this port that are not answered yet.
    pub fn outstanding(&self) -> usize {
        self.tickets.borrow().len()
    }

    /// Wakes shards behind each turn, and completes tickets as replies arrive. Spawn it once on
    /// the port's own thread; never ends.
    pub async fn run(self) {
        tokio::join!(self.wake_shards(), self.take_replies());
    }

    async fn wake_shards(&self) {
        loop {
            self.unwoken.turn.notified().await;
            self.unwoken.any.set(false);
            for (shard, is_unwoken) in self.unwoken.is_shard.iter().enumerate() {
                if is_unwoken.replace(false) {
                    self.inboxes.get(shard).wake();
                }
            }
        }
    }

    async fn take_replies(&self) {
        loop {
            self.shared().arrived.notified().await;
            while let Some((ticket, outcome)) = self.shared().replies.pop() {
                self.complete(ticket as usize, outcome);
            }
        }
    }

    fn complete(&self, ticket: usize, outcome: Outcome) {
        let mut tickets = self.tickets.borrow_mut();
        let Some(slot) = tickets.get_mut(ticket) else {
            unreachable!("a ticket is freed by its reply alone");
        };
        match std::mem::replace(slot, Ticket::Answered(outcome)) {
            Ticket::Waiting(Some(waker)) => {
                drop(tickets);
                waker.wake();
            }
            Ticket::Waiting(None) => {}
            Ticket::Abandoned => {
                tickets.remove(ticket);
            }
            Ticket::Answered(_) => unreachable!("a request is answered once"),
        }
    }
}

/// The answer to come. Dropping it abandons the answer, not the request.
pub struct Pending {
    ticket: usize,
    tickets: Rc<RefCell<Slab<Ticket>>>,
}

/// Marks a [`Pending`] whose outcome was taken; no slab reaches it.
const TAKEN: usize = usize::MAX;

impl Future for Pending {
    type Output = Outcome;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Outcome> {
        assert!(self.ticket != TAKEN, "polled after it was ready");
        let taken = {
            let mut tickets = self.tickets.borrow_mut();
            match tickets.get_mut(self.ticket) {
                Some(Ticket::Waiting(waker)) => {
                    *waker = Some(cx.waker().clone());
                    return Poll::Pending;
                }
                Some(Ticket::Answered(_)) => tickets.remove(self.ticket),
                Some(Ticket::Abandoned) | None => unreachable!("the ticket is ours until taken"),
            }
        };
        self.ticket = TAKEN;
        match taken {
            Ticket::Answered(outcome) => Poll::Ready(outcome),
            Ticket::Waiting(_) | Ticket::Abandoned => unreachable!("matched above"),
        }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if self.ticket == TAKEN {
            return;
        }
        let mut tickets = self.tickets.borrow_mut();
        match tickets.get_mut(self.ticket) {
            Some(slot @ Ticket::Waiting(_)) => *slot = Ticket::Abandoned,
            _ => {
                tickets.remove(self.ticket);
            }
        }
    }
}
