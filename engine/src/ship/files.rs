//! The running journal's files as frames: the real [`FrameSource`] of the embedded log.

use std::sync::Arc;

use super::frames::{FrameInfo, FrameSource, JournalHead};
use super::log::LogError;
use crate::clock::NodeClock;
use crate::journal::JournalError;
use crate::journal::disk::Disk;
use crate::journal::open::JournalHandle;
use crate::journal::tail::Tail;
use crate::units::{Incarnation, Seq};

/// Follows a running journal behind its durable sequence number.
pub struct JournalFrames<D: Disk> {
    journal: Arc<JournalHandle<D>>,
    incarnation: Incarnation,
    clock: Arc<NodeClock>,
    tail: Option<Tail<D>>,
}

impl<D: Disk> JournalFrames<D> {
    pub fn new(
        journal: Arc<JournalHandle<D>>,
        incarnation: Incarnation,
        clock: Arc<NodeClock>,
    ) -> Self {
        Self { journal, incarnation, clock, tail: None }
    }
}

impl<D: Disk> FrameSource for JournalFrames<D> {
    fn head(&self) -> JournalHead {
        JournalHead {
            journal: self.journal.journal(),
            incarnation: self.incarnation,
            seq: self.journal.durable_seq(),
            node_time: self.clock.now(),
        }
    }

    fn seek(&mut self, seq: Seq) -> Result<(), LogError> {
        self.tail = Some(self.journal.tail(seq).map_err(|error| log_error(seq, error))?);
        Ok(())
    }

    fn read(&mut self, records: &mut Vec<u8>) -> Result<Option<FrameInfo>, LogError> {
        let tail = match &mut self.tail {
            Some(tail) => tail,
            empty @ None => {
                let first = Seq::NONE.next();
                let opened = self.journal.tail(first).map_err(|error| log_error(first, error))?;
                empty.insert(opened)
            }
        };
        let at = self.journal.durable_seq();
        let Some(run) = tail.next().map_err(|error| log_error(at, error))? else {
            return Ok(None);
        };
        records.clear();
        records.extend_from_slice(run.records);
        Ok(Some(FrameInfo {
            incarnation: run.incarnation,
            first_seq: run.first_seq,
            count: run.record_count,
            node_time: run.stamp.node,
        }))
    }
}

fn log_error(seq: Seq, error: JournalError) -> LogError {
    match error {
        JournalError::Gone { from, first } => LogError::Gone { wanted: from, first_kept: first },
        other => LogError::Read { seq, source: Box::new(other) },
    }
}
