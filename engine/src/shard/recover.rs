//! Recovery: a snapshot's slots, and behind each its records of the journal.
//!
//! Each slot has its own cut: a record of a slot is applied only if it lies behind the slot's
//! cut. Replay applies effects through the same functions as the live path, and never decides
//! (I5). A record that does not fit is damage, and the node does not start.

use thiserror::Error;

use super::core::{Readiness, Stage};
use crate::journal::JournalError;
use crate::journal::disk::Disk;
use crate::journal::open::Opened;
use crate::journal::snapshot::{self, SnapshotInfo};
use crate::kernel::bytes::DecodeError;
use crate::kernel::control::{ControlError, ControlState};
use crate::kernel::record::{CONTROL, Record, RecordError, RecordHead, member_of};
use crate::kernel::slot::{self, ApplyError, SlotState};
use crate::kernel::slots::States;
use crate::planted::{self, Bug};
use crate::units::{MemberId, SLOT_COUNT, Seq, Slot};

/// Why a node's state cannot be had from its data folder.
#[derive(Error, Debug)]
pub enum RecoverError {
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error("snapshot {number}: slot {slot} cannot be read: {error}")]
    Snapshot { number: u64, slot: Slot, error: DecodeError },
    #[error("snapshot {number} has no part for {what}")]
    Missing { number: u64, what: String },
    #[error("record {seq} cannot be read: {error}")]
    Record { seq: Seq, error: RecordError },
    #[error("record {seq} does not fit slot {slot}: {error}")]
    Apply { seq: Seq, slot: Slot, error: ApplyError },
    #[error("record {seq} does not fit the sales: {error}")]
    Control { seq: Seq, error: ControlError },
}

/// A node's state as its data folder proves it.
pub struct Recovered {
    pub slots: States,
    pub control: ControlState,
    /// The snapshot it began from.
    pub snapshot: Option<SnapshotInfo>,
    pub replayed_records: u64,
    /// What was found damaged and done without, in words.
    pub warnings: Vec<String>,
}

/// Parts of a snapshot on their way to a state.
struct Loading {
    slots: States,
    slot_cuts: Vec<Seq>,
    control: ControlState,
    control_cut: Seq,
}

impl Loading {
    fn empty() -> Self {
        Self {
            slots: (0..SLOT_COUNT).map(|_| None).collect(),
            slot_cuts: vec![Seq::NONE; SLOT_COUNT],
            control: ControlState::new(),
            control_cut: Seq::NONE,
        }
    }

    fn lowest_cut(&self) -> Seq {
        self.slot_cuts.iter().copied().min().unwrap_or(Seq::NONE).min(self.control_cut)
    }

    /// Asks for the memory that the next records will be applied to; gives their number.
    fn prefetch(&self, mut records: &[u8], members: &mut Vec<MemberId>) -> usize {
        let mut count = 0;
        members.clear();
        // What cannot be read is found, and named, when its turn comes.
        while count < REPLAY_GROUP
            && let Ok(head) = RecordHead::peek(records)
        {
            members.extend(member_of(records));
            records = &records[head.length..];
            count += 1;
        }
        slot::prefetch(&self.slots, members);
        count
    }

    fn apply(&mut self, seq: Seq, head: RecordHead, bytes: &[u8]) -> Result<(), RecoverError> {
        if head.slot == CONTROL {
            if seq > self.control_cut {
                let (_, record) = Record::take(&mut &bytes[..])
                    .map_err(|error| RecoverError::Record { seq, error })?;
                self.control
                    .apply(&record, bytes)
                    .map_err(|error| RecoverError::Control { seq, error })?;
            }
            return Ok(());
        }
        let slot = head.slot;
        let state = self.slots.get_mut(slot.index()).ok_or(RecoverError::Record {
            seq,
            error: RecordError::Field { kind: "any", field: "slot" },
        })?;
        if seq > self.slot_cuts[slot.index()] || planted::is(Bug::ReplayBelowCut) {
            let state = state.get_or_insert_with(|| Box::new(SlotState::new(slot)));
            state.apply_bytes(bytes).map_err(|error| RecoverError::Apply { seq, slot, error })?;
        }
        Ok(())
    }
}

/// Rebuilds the state of an opened journal.
///
/// Errors: damage, said where; nothing is changed then.
pub fn recover<D: Disk, S: Disk>(
    opened: &Opened<D>,
    snapshots: &S,
    readiness: &Readiness,
) -> Result<Recovered, RecoverError> {
    let chosen =
        snapshot::choose(snapshots, opened.journal(), opened.first_seq(), opened.last_seq())?;
    let mut loading = Loading::empty();
    let mut info = None;
    if let Some(mut reader) = chosen.reader {
        let of = *reader.info();
        readiness.enter(Stage::LoadingSnapshot, SLOT_COUNT as u64);
        let mut loaded = 0;
        while let Some(part) = reader.next()? {
            let number = of.number;
            let failed = |error| RecoverError::Snapshot { number, slot: part.slot, error };
            if part.slot == CONTROL {
                loading.control = ControlState::decode(part.bytes).map_err(failed)?;
                loading.control_cut = part.cut;
                continue;
            }
            let state = SlotState::decode(part.bytes).map_err(failed)?;
            if state.has_records() {
                loading.slots[part.slot.index()] = Some(Box::new(state));
            }
            loading.slot_cuts[part.slot.index()] = part.cut;
            loaded += 1;
            readiness.advance(loaded);
        }
        if loaded != SLOT_COUNT as u64 {
            let what = format!("{} of {SLOT_COUNT} slots", SLOT_COUNT as u64 - loaded);
            return Err(RecoverError::Missing { number: of.number, what });
        }
        info = Some(of);
    }
    let replayed_records = replay(opened, &mut loading, readiness)?;
    Ok(Recovered {
        slots: loading.slots,
        control: loading.control,
        snapshot: info,
        replayed_records,
        warnings: chosen.damaged.iter().map(ToString::to_string).collect(),
    })
}

/// Records whose members' memory is asked for at once. More than of decisions: all three steps of
/// asking follow each other here, and each is to have arrived before the next.
const REPLAY_GROUP: usize = 32;

fn replay<D: Disk>(
    opened: &Opened<D>,
    loading: &mut Loading,
    readiness: &Readiness,
) -> Result<u64, RecoverError> {
    let (from, last) = (loading.lowest_cut().next(), opened.last_seq());
    if from > last {
        return Ok(0);
    }
    readiness.enter(Stage::ReplayingJournal, last.get() - from.get() + 1);
    let mut tail = opened.replay(from)?;
    let mut replayed = 0;
    let mut members = Vec::with_capacity(REPLAY_GROUP);
    while let Some(run) = tail.next()? {
        let mut seq = run.first_seq;
        let mut rest = run.records;
        let mut asked_for = 0;
        while !rest.is_empty() {
            if asked_for == 0 {
                asked_for = loading.prefetch(rest, &mut members);
            }
            asked_for = asked_for.saturating_sub(1);
            let head =
                RecordHead::peek(rest).map_err(|error| RecoverError::Record { seq, error })?;
            let (record, behind) = rest.split_at(head.length);
            loading.apply(seq, head, record)?;
            rest = behind;
            seq = seq.next();
            replayed += 1;
        }
        readiness.advance(seq.get().saturating_sub(from.get()));
    }
    Ok(replayed)
}
