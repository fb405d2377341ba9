//! The node's own journal as a source of frames, read from disk up to the durable mark.

use std::sync::Arc;

use super::frames::{FrameInfo, FrameSource, JournalHead};
use super::log::LogError;
use crate::clock::NodeClock;
use crate::journal::disk::Disk;
use crate::journal::{DurableMark, JournalError, Tail};
use crate::units::{Incarnation, JournalId, Seq};

/// Reads a running journal's files. It never sees the writer's memory, nor what is not durable.
pub struct JournalFrames<D: Disk> {
    disk: D,
    journal: JournalId,
    incarnation: Incarnation,
    durable: Arc<DurableMark>,
    clock: Arc<NodeClock>,
    /// The record to read next.
    next: Seq,
    /// Opened at the next read where there is none.
    tail: Option<Tail<D>>,
}

impl<D: Disk> JournalFrames<D> {
    /// `disk` is the journal's folder; `incarnation` the opening that is running.
    pub fn new(
        disk: D,
        journal: JournalId,
        incarnation: Incarnation,
        durable: Arc<DurableMark>,
        clock: Arc<NodeClock>,
    ) -> Self {
        Self { disk, journal, incarnation, durable, clock, next: Seq::new(1), tail: None }
    }

    fn error(&self, error: JournalError) -> LogError {
        match error {
            JournalError::Gone { from, first } => {
                LogError::Gone { wanted: from, first_kept: first }
            }
            other => LogError::Read { seq: self.next, source: other.into() },
        }
    }
}

impl<D: Disk> FrameSource for JournalFrames<D> {
    fn head(&self) -> JournalHead {
        JournalHead {
            journal: self.journal,
            incarnation: self.incarnation,
            seq: self.durable.get(),
            node_time: self.clock.now(),
        }
    }

    fn seek(&mut self, seq: Seq) -> Result<(), LogError> {
        self.next = seq;
        self.tail = None;
        Ok(())
    }

    fn read(&mut self, records: &mut Vec<u8>) -> Result<Option<FrameInfo>, LogError> {
        let mut tail = if let Some(tail) = self.tail.take() {
            tail
        } else {
            let durable = self.durable.clone();
            Tail::open(self.disk.clone(), self.journal, self.next, durable)
                .map_err(|e| self.error(e))?
        };
        // After an error the tail is gone, and opened anew at the same record.
        let info = match tail.next() {
            Err(e) => return Err(self.error(e)),
            Ok(None) => None,
            Ok(Some(run)) => {
                records.clear();
                records.extend_from_slice(run.records);
                self.next = run.last_seq().next();
                Some(FrameInfo {
                    incarnation: run.incarnation,
                    first_seq: run.first_seq,
                    count: run.record_count,
                    node_time: run.stamp.node,
                })
            }
        };
        self.tail = Some(tail);
        Ok(info)
    }
}
