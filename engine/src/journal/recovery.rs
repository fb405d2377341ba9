//! What opening a journal decides, as pure functions over what was found on the disk.
//!
//! The journal is read frame by frame. As long as frames continue each other they are taken. At
//! the first place where none does, everything behind is surveyed, and one table decides:
//!
//! ```text
//! what stands here        behind: claim < this frame       behind: claim ≥ this frame
//! ─────────────────────── ──────────────────────────────── ─────────────────────────────
//! a continuing frame      take it                          take it
//! a frame of a newer      refuse: newer program needed     refuse: newer program needed
//!   version
//! zeros                   the journal ends here; zero      damage: refuse, say where
//!                         what is behind, if anything
//! anything else           the journal ends here; zero      damage: refuse, say where
//!                         from here on
//! ```
//! A claim is a valid frame's `durable frame`: what was known durable when it was written. So a
//! frame that power loss tore is told from one that rotted: the writer of a later frame never
//! claimed the torn one. Histories behind the rules (each is a test):
//!
//! - Two frames in flight, the first torn, the second whole: a normal power loss. The second
//!   claims less than the first, so the journal ends before both.
//! - The same, but without zeroing: the node goes on, writes a new first frame, and crashes; the
//!   stale second frame comes back to life. So everything behind the end is zeroed and synced
//!   before the first write; and a frame repeats its predecessor's checksum.
//! - A sync failed, the process died, the page cache still shows the frame, the disk never had
//!   it: it would be answered from, and be gone after a power loss. So frames that no later
//!   header proves durable are written anew before anything else.
//! - A snapshot knows more than the journal: acknowledged writes are lost. Refuse.

use super::error::JournalError;
use super::format::FrameHeader;
use crate::planted::{self, Bug};
use crate::units::{Incarnation, Seq};

/// What the next frame must say to continue the journal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Expected {
    pub number: u64,
    pub first_seq: Seq,
    pub previous_checksum: u32,
    /// The last frame's incarnation: the next one's is the same, or higher.
    pub incarnation: Incarnation,
}

impl Expected {
    /// The first frame of a new journal.
    pub const FIRST: Self = Self {
        number: 1,
        first_seq: Seq::new(1),
        previous_checksum: 0,
        incarnation: Incarnation::new(0),
    };

    /// The frame after this one.
    pub fn after(header: &FrameHeader, checksum: u32) -> Self {
        Self {
            number: header.number + 1,
            first_seq: header.next_seq(),
            previous_checksum: checksum,
            incarnation: header.incarnation,
        }
    }

    pub fn is_met_by(&self, header: &FrameHeader) -> bool {
        header.number == self.number
            && header.first_seq == self.first_seq
            && header.previous_checksum == self.previous_checksum
            && header.incarnation >= self.incarnation
    }
}

/// What stands where the next frame is due.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Here {
    /// A valid frame that continues the journal.
    Continues,
    /// A valid frame of this journal that does not: from before a crash.
    Stray,
    /// Bytes that are no valid frame.
    Broken,
    Blank,
    /// A frame of a newer version.
    Newer {
        version: u32,
    },
}

/// What a survey found from here on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Behind {
    /// The highest claim of any valid frame of this journal, taken ones included; 0 for none.
    pub claim: u64,
    /// Nothing but zeros behind this place.
    pub is_blank: bool,
    /// A valid frame of a newer version was seen.
    pub newer: Option<u32>,
}

/// What to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    Take,
    /// The journal ends before this place. `zero`: something stands here or behind.
    End {
        zero: bool,
    },
    /// This frame was durable once.
    Damage {
        claimed: u64,
    },
    Newer {
        version: u32,
    },
}

/// The table at the head of this file.
pub fn decide(here: Here, behind: Behind, due: u64) -> Verdict {
    match (here, behind.claim >= due) {
        (Here::Continues, _) => Verdict::Take,
        (Here::Newer { version }, _) => Verdict::Newer { version },
        (_, true) => Verdict::Damage { claimed: behind.claim },
        // A newer program went on from an older journal that this place does not continue.
        (_, false) if behind.newer.is_some() => {
            Verdict::Newer { version: behind.newer.unwrap_or_default() }
        }
        (Here::Blank, false) => Verdict::End { zero: !behind.is_blank },
        (Here::Stray | Here::Broken, false) => Verdict::End { zero: true },
    }
}

/// Checks that a snapshot and the journal belong together.
///
/// `lowest_cut` and `highest_cut` are over the snapshot's parts; `first` is the journal's first
/// sequence number still there, `end` its last.
///
/// Errors: `SnapshotBeyondEnd` when acknowledged writes are lost, `SnapshotTooOld` when records
/// between the two are.
pub fn check_snapshot(
    lowest_cut: Seq,
    highest_cut: Seq,
    first: Seq,
    end: Seq,
) -> Result<(), JournalError> {
    if highest_cut > end && !planted::is(Bug::SnapshotBeyondEndTaken) {
        return Err(JournalError::SnapshotBeyondEnd { cut: highest_cut, end });
    }
    if lowest_cut.next() < first {
        return Err(JournalError::SnapshotTooOld { needed: lowest_cut.next(), first });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_over_every_row() {
        let end = |zero| Verdict::End { zero };
        let damage = Verdict::Damage { claimed: 10 };
        let newer = Verdict::Newer { version: 2 };
        // Frame 10 is due. Columns: claim behind, blank behind, newer frame behind.
        let behind = [
            (9, true, None),
            (9, false, None),
            (10, true, None),
            (10, false, None),
            (9, false, Some(2)),
            (10, false, Some(2)),
        ];
        let take = [Verdict::Take; 6];
        let rows = [
            (Here::Continues, take),
            (Here::Newer { version: 2 }, [newer; 6]),
            (Here::Blank, [end(false), end(true), damage, damage, newer, damage]),
            (Here::Broken, [end(true), end(true), damage, damage, newer, damage]),
            (Here::Stray, [end(true), end(true), damage, damage, newer, damage]),
        ];
        for (here, verdicts) in rows {
            for ((claim, is_blank, newer), expected) in behind.into_iter().zip(verdicts) {
                let behind = Behind { claim, is_blank, newer };
                assert_eq!(decide(here, behind, 10), expected, "{here:?} {behind:?}");
            }
        }
    }

    #[test]
    fn a_snapshot_and_the_journal_must_meet() {
        let check = |low, high, first, end| {
            check_snapshot(Seq::new(low), Seq::new(high), Seq::new(first), Seq::new(end))
        };
        for (low, high, first, end) in [(0, 0, 1, 0), (5, 9, 6, 9), (5, 9, 1, 20)] {
            assert!(check(low, high, first, end).is_ok());
        }
        for (low, high, first, end) in [(0, 1, 1, 0), (5, 10, 1, 9)] {
            let refused = check(low, high, first, end);
            assert!(matches!(refused, Err(JournalError::SnapshotBeyondEnd { .. })));
        }
        let refused = check(5, 9, 7, 20);
        assert!(matches!(refused, Err(JournalError::SnapshotTooOld { .. })));
    }
}
