//! Inboxes: one bounded lock-free queue per shard, and the shard's sleep.
//!
//! Source: crossbeam's `ArrayQueue` (Vyukov's bounded MPMC queue). A full inbox refuses at once.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::sync::{Mutex, OnceLock};
use std::thread::Thread;
use std::time::Duration;

use crossbeam::queue::ArrayQueue;

use super::gate::Unavailable;
use super::message::Message;
use super::port::ReplyTo;
use crate::kernel::command::Command;
use crate::units::{MemberId, Slot};

/// A command on its way to a shard.
#[derive(Debug)]
pub struct Request {
    pub command: Command,
    pub reply_to: ReplyTo,
}

/// One shard's inbox.
pub struct Inbox {
    requests: ArrayQueue<Request>,
    /// Catalog changes, snapshot cuts and the like: few, never refused, in order.
    messages: Mutex<Vec<Message>>,
    has_messages: AtomicBool,
    /// Set by the shard before it sleeps. Partner: the fence in `wake`. See [`Inbox::sleep`].
    is_sleeping: AtomicBool,
    thread: OnceLock<Thread>,
    refused: AtomicU64,
}

impl Inbox {
    fn new(capacity: usize) -> Self {
        Self {
            requests: ArrayQueue::new(capacity),
            messages: Mutex::new(Vec::new()),
            has_messages: AtomicBool::new(false),
            is_sleeping: AtomicBool::new(false),
            thread: OnceLock::new(),
            refused: AtomicU64::new(0),
        }
    }

    /// Names the thread to wake. Thread: the shard, once, before its first sleep.
    pub fn attach(&self) {
        self.thread.set(std::thread::current()).expect("an inbox has one shard");
    }

    pub fn pop(&self) -> Option<Request> {
        self.requests.pop()
    }

    pub fn depth(&self) -> usize {
        self.requests.len()
    }

    /// Requests turned away because the inbox was full.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Takes all waiting messages, in the order they were sent.
    pub fn take_messages(&self) -> Vec<Message> {
        if !self.has_messages.load(Ordering::Acquire) {
            return Vec::new();
        }
        let mut messages = self.messages.lock().expect("no holder panics");
        self.has_messages.store(false, Ordering::Relaxed);
        std::mem::take(&mut messages)
    }

    pub fn send(&self, message: Message) {
        let mut messages = self.messages.lock().expect("no holder panics");
        messages.push(message);
        // Pairs with the Acquire in `take_messages`.
        self.has_messages.store(true, Ordering::Release);
        drop(messages);
        self.wake();
    }

    fn push(&self, request: Request) -> Result<(), Unavailable> {
        if self.requests.push(request).is_err() {
            self.refused.fetch_add(1, Ordering::Relaxed);
            return Err(Unavailable::Overloaded);
        }
        Ok(())
    }

    /// Wakes the shard if it sleeps: one system call at most per sleep, not per request.
    pub fn wake(&self) {
        // Dekker's handshake with `sleep`: the push above and the flag below, in one order for
        // both sides, so that either we see it sleeping or it sees our request.
        fence(Ordering::SeqCst);
        if self.is_sleeping.load(Ordering::Relaxed)
            && self.is_sleeping.swap(false, Ordering::AcqRel)
            && let Some(thread) = self.thread.get()
        {
            thread.unpark();
        }
    }

    /// Sleeps until something arrives, or `limit` passes. Thread: the shard.
    pub fn sleep(&self, limit: Duration) {
        self.is_sleeping.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        if self.requests.is_empty() && !self.has_messages.load(Ordering::Acquire) {
            std::thread::park_timeout(limit);
        }
        self.is_sleeping.store(false, Ordering::Relaxed);
    }
}

/// All shards' inboxes, and the rule that says which member goes where.
pub struct Inboxes {
    inboxes: Box<[Inbox]>,
}

impl Inboxes {
    pub fn new(shard_count: usize, capacity: usize) -> Self {
        Self { inboxes: (0..shard_count).map(|_| Inbox::new(capacity)).collect() }
    }

    pub fn shard_count(&self) -> usize {
        self.inboxes.len()
    }

    pub fn get(&self, shard: usize) -> &Inbox {
        &self.inboxes[shard]
    }

    pub fn iter(&self) -> impl Iterator<Item = &Inbox> {
        self.inboxes.iter()
    }

    /// The shard of a slot. Slots are dealt out in turn; nothing durable depends on their number.
    pub fn shard_of(&self, slot: Slot) -> usize {
        slot.index() % self.inboxes.len()
    }

    /// Puts a request down and gives its shard, which the caller wakes by [`Inbox::wake`]: now, or
    /// once for several.
    pub fn push(&self, request: Request) -> Result<usize, Unavailable> {
        let shard = self.shard_of(slot_of(&request.command));
        self.get(shard).push(request)?;
        Ok(shard)
    }
}

/// The slot whose state a command reads or changes.
fn slot_of(command: &Command) -> Slot {
    let of = |member: MemberId| Slot::of(member);
    match *command {
        Command::Redeem { member, .. }
        | Command::OpenAccount { member, .. }
        | Command::Credit { member, .. }
        | Command::Debit { member, .. }
        | Command::ReadAccount { member }
        | Command::ListRedemptions { member, .. }
        | Command::ReadKey { member, .. }
        | Command::Recall { member, .. } => of(member),
        Command::Confirm { id, .. }
        | Command::Cancel { id, .. }
        | Command::Reverse { id, .. }
        | Command::ReadRedemption { id, .. } => id.slot(),
    }
}
