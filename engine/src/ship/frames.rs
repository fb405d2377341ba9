//! Frames of a journal, as the tailing log reads them. The seam between ship and the journal:
//! the journal's own tail implements [`FrameSource`] on files, and [`MemoryFrames`] in memory,
//! for tests and simulations.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::log::LogError;
use crate::kernel::record::Record;
use crate::units::{Incarnation, JournalId, NodeTime, Seq, Slot};

/// How far the durable prefix of a journal goes, and who writes it now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct JournalHead {
    pub journal: JournalId,
    /// The opening that is running now, though it may not have written yet.
    pub incarnation: Incarnation,
    /// The last durable record.
    pub seq: Seq,
    pub node_time: NodeTime,
}

/// A frame without its records' bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FrameInfo {
    pub incarnation: Incarnation,
    pub first_seq: Seq,
    pub count: u32,
    pub node_time: NodeTime,
}

/// Reads the durable prefix of one journal, frame by frame. Never beyond it.
pub trait FrameSource: Send {
    fn head(&self) -> JournalHead;

    /// Places the reader before the frame that holds `seq`, or at the end.
    ///
    /// Errors: `Gone` when the journal begins behind `seq`.
    fn seek(&mut self, seq: Seq) -> Result<(), LogError>;

    /// Replaces `records` by the next frame's; `None` at the durable end.
    fn read(&mut self, records: &mut Vec<u8>) -> Result<Option<FrameInfo>, LogError>;
}

/// A journal in memory, written by hand. Clones share it; each reads at its own place.
#[derive(Clone, Debug)]
pub struct MemoryFrames {
    shared: Arc<Mutex<Shared>>,
    next: usize,
}

#[derive(Debug)]
struct Shared {
    head: JournalHead,
    first_kept: Seq,
    frames: Vec<(FrameInfo, Vec<u8>)>,
    failing: bool,
}

impl MemoryFrames {
    pub fn new(journal: JournalId) -> Self {
        let incarnation = Incarnation::new(1);
        let node_time = NodeTime::new(0);
        let head = JournalHead { journal, incarnation, seq: Seq::NONE, node_time };
        let shared = Shared { head, first_kept: Seq::new(1), frames: Vec::new(), failing: false };
        Self { shared: Arc::new(Mutex::new(shared)), next: 0 }
    }
    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
    /// Appends a durable frame of these records; returns the last one's sequence number.
    pub fn append(&self, node_time: NodeTime, records: &[(Slot, Record)]) -> Seq {
        let mut bytes = Vec::new();
        for (slot, record) in records {
            record.encode(*slot, &mut bytes);
        }
        self.append_encoded(node_time, records.len() as u32, bytes)
    }
    /// Appends a durable frame of `count` encoded records.
    pub fn append_encoded(&self, node_time: NodeTime, count: u32, records: Vec<u8>) -> Seq {
        let mut shared = self.lock();
        let first_seq = shared.head.seq.next();
        let incarnation = shared.head.incarnation;
        shared.head.seq = Seq::new(shared.head.seq.get() + u64::from(count));
        shared.head.node_time = node_time;
        let info = FrameInfo { incarnation, first_seq, count, node_time };
        shared.frames.push((info, records));
        shared.head.seq
    }
    /// The last durable record.
    pub fn head_seq(&self) -> Seq {
        self.lock().head.seq
    }
    /// Opens the journal anew: frames from here on carry the next incarnation.
    pub fn reopen(&self) {
        let mut shared = self.lock();
        shared.head.incarnation = Incarnation::new(shared.head.incarnation.get() + 1);
    }
    /// Opens a copy of the journal as it was when its last record was `seq`, a frame's last.
    pub fn fork_at(&self, seq: Seq) -> Self {
        let shared = self.lock();
        let frames: Vec<_> =
            shared.frames.iter().filter(|(f, _)| f.first_seq <= seq).cloned().collect();
        let last = frames.last().map(|(info, _)| *info);
        let incarnation =
            last.map_or(1, |f| f.incarnation.get()).min(shared.head.incarnation.get()) + 1;
        let head = JournalHead { seq, incarnation: Incarnation::new(incarnation), ..shared.head };
        let first_kept = shared.first_kept;
        let shared = Shared { head, first_kept, frames, failing: false };
        Self { shared: Arc::new(Mutex::new(shared)), next: 0 }
    }
    /// Deletes the frames that end below `seq`.
    pub fn delete_below(&self, seq: Seq) {
        let mut shared = self.lock();
        shared.frames.retain(|(f, _)| f.first_seq.get() + u64::from(f.count) > seq.get());
        shared.first_kept =
            shared.frames.first().map_or(shared.head.seq.next(), |(f, _)| f.first_seq);
    }
    /// Makes every read fail, or succeed again.
    pub fn set_failing(&self, failing: bool) {
        self.lock().failing = failing;
    }
}

impl FrameSource for MemoryFrames {
    fn head(&self) -> JournalHead {
        self.lock().head
    }
    fn seek(&mut self, seq: Seq) -> Result<(), LogError> {
        let shared = self.lock();
        if seq < shared.first_kept {
            return Err(LogError::Gone { wanted: seq, first_kept: shared.first_kept });
        }
        let before = |(f, _): &(FrameInfo, _)| f.first_seq.get() + u64::from(f.count) <= seq.get();
        let next = shared.frames.partition_point(before);
        drop(shared);
        self.next = next;
        Ok(())
    }
    fn read(&mut self, records: &mut Vec<u8>) -> Result<Option<FrameInfo>, LogError> {
        let shared = self.lock();
        if shared.failing {
            let source = std::io::Error::other("made to fail").into();
            return Err(LogError::Read { seq: shared.first_kept, source });
        }
        let Some((info, bytes)) = shared.frames.get(self.next) else { return Ok(None) };
        records.clear();
        records.extend_from_slice(bytes);
        let info = *info;
        drop(shared);
        self.next += 1;
        Ok(Some(info))
    }
}
