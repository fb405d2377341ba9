//! The gap rule: what a consumer does with the next record or mark of one journal in one
//! partition. Pure; the watermark it works on is the one that was committed with the rows.
//!
//! ```text
//!            prev            seq                 prev = no record of this partition in between
//!  ───────────●───────────────●──────────▶ seq
//!    watermark w:
//!    w ≥ seq                    already applied        Skip   (same history, see below)
//!    prev ≤ w < seq             the very next one      Apply  w := seq
//!    w < prev                   something is missing   Gap    rewind to w, apply nothing
//! ```
//! A mark says "complete through S": it moves the watermark of an idle partition, and carries
//! `prev` too, for a mark must not hide that the record before it was lost.
//!
//! **History.** Incarnations only rise along a journal. A watermark remembers where the partition
//! first saw its incarnation (`since`), so `[since, seq]` was written by `incarnation`, and all
//! below `since` by older ones. A record at or below the watermark that contradicts this is not a
//! duplicate but another history of the same journal (a lost tail written anew, an old copy of
//! the data folder): an alarm, never a skip.

use std::fmt;

use crate::planted::{self, Bug};
use crate::units::{Incarnation, Seq};

/// How far one journal has been applied in one partition. The default is "nothing yet".
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Watermark {
    /// The incarnation that wrote `seq`.
    pub incarnation: Incarnation,
    /// Where this partition first saw that incarnation.
    pub since: Seq,
    /// Everything of this journal and partition up to here is applied.
    pub seq: Seq,
}

/// What comes next in the log for one journal and partition.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Step {
    pub incarnation: Incarnation,
    /// No record of this journal and partition lies between `prev_seq` and `seq`.
    pub prev_seq: Seq,
    /// The record's place; for a mark, where the partition is complete through.
    pub seq: Seq,
    pub kind: StepKind,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StepKind {
    Record,
    Mark,
}

/// What to do with it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Apply it, and store this watermark in the same transaction.
    Apply(Watermark),
    /// It is applied already.
    Skip,
    /// Records are missing: apply nothing of this journal until it is sent again from here on.
    Gap { rewind_to: Seq },
    /// Another history. Apply nothing of this journal here, and call a person.
    Alarm(Alarm),
}

/// What no retry can put right.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Alarm {
    /// A newer incarnation writes at or below what an older one had written: the journal lost a
    /// tail that was already applied here.
    TailLost { watermark: Watermark, incarnation: Incarnation, seq: Seq },
    /// An older incarnation writes where a newer one had written: an old copy of the data folder.
    OldCopy { watermark: Watermark, incarnation: Incarnation, seq: Seq },
    /// The journal no longer has what is missing: it begins behind the watermark.
    RecordsGone { watermark: Watermark, first_kept: Seq },
    /// The store's watermark lies below what was committed: a restored backup, or a failover to
    /// a replica that lagged. It is read again from there.
    WatermarkWentBack { expected: Watermark, found: Watermark },
}

impl fmt::Display for Alarm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TailLost { watermark: w, incarnation, seq } => write!(
                f,
                "incarnation {incarnation} begins at {seq}, at or below the watermark {} of \
                 incarnation {}: the journal lost records that are stored here; stop the node and \
                 start it on the newest copy of its data folder",
                w.seq, w.incarnation
            ),
            Self::OldCopy { watermark: w, incarnation, seq } => write!(
                f,
                "incarnation {incarnation} writes {seq}, where incarnation {} had written from {} \
                 to {}: an old copy of the data folder is running; stop it and start the newest",
                w.incarnation, w.since, w.seq
            ),
            Self::RecordsGone { watermark: w, first_kept } => write!(
                f,
                "the watermark is {}, the journal begins at {first_kept}: records are missing \
                 for good; restore a newer backup of this database shard",
                w.seq
            ),
            Self::WatermarkWentBack { expected, found } => write!(
                f,
                "the watermark was {} and is now {}: a restored backup or a lagging replica; \
                 applying again from there",
                expected.seq, found.seq
            ),
        }
    }
}

impl Watermark {
    /// Judges the next record or mark of this journal and partition.
    pub fn judge(self, step: Step) -> Verdict {
        debug_assert!(step.prev_seq <= step.seq, "a predecessor comes before");
        let is_again = planted::is(Bug::DuplicateApplied) && step.kind == StepKind::Record;
        if step.seq < self.seq || step.seq == self.seq && !is_again {
            return self.judge_old(step);
        }
        if step.incarnation < self.incarnation {
            let Step { incarnation, seq, .. } = step;
            return Verdict::Alarm(Alarm::OldCopy { watermark: self, incarnation, seq });
        }
        let is_hidden = planted::is(Bug::GapApplied)
            || planted::is(Bug::MarkHidesLoss) && step.kind == StepKind::Mark;
        if step.prev_seq > self.seq && !is_hidden {
            return Verdict::Gap { rewind_to: self.seq };
        }
        let since = if step.incarnation == self.incarnation { self.since } else { step.seq };
        Verdict::Apply(Self { incarnation: step.incarnation, since, seq: step.seq })
    }

    /// At or below the watermark: applied already, if it is of the same history.
    fn judge_old(self, step: Step) -> Verdict {
        let Step { incarnation, seq, .. } = step;
        if incarnation > self.incarnation && (step.kind == StepKind::Record || seq < self.seq) {
            return Verdict::Alarm(Alarm::TailLost { watermark: self, incarnation, seq });
        }
        if incarnation < self.incarnation && seq >= self.since && step.kind == StepKind::Record {
            return Verdict::Alarm(Alarm::OldCopy { watermark: self, incarnation, seq });
        }
        Verdict::Skip
    }

    /// Judges what the store says its watermark is, where `self` had been expected.
    ///
    /// `None`: somebody else applied these records; go on from `found`.
    pub fn judge_found(self, found: Self) -> Option<Alarm> {
        let went_back = found.seq < self.seq || found.incarnation < self.incarnation;
        went_back.then_some(Alarm::WatermarkWentBack { expected: self, found })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark_at(incarnation: u32, since: u64, seq: u64) -> Watermark {
        Watermark {
            incarnation: Incarnation::new(incarnation),
            since: Seq::new(since),
            seq: Seq::new(seq),
        }
    }
    fn step(kind: StepKind, incarnation: u32, prev: u64, seq: u64) -> Step {
        Step {
            incarnation: Incarnation::new(incarnation),
            prev_seq: Seq::new(prev),
            seq: Seq::new(seq),
            kind,
        }
    }
    fn record(incarnation: u32, prev: u64, seq: u64) -> Step {
        step(StepKind::Record, incarnation, prev, seq)
    }
    fn mark(incarnation: u32, prev: u64, seq: u64) -> Step {
        step(StepKind::Mark, incarnation, prev, seq)
    }
    fn applies(from: Watermark, step: Step) -> Watermark {
        match from.judge(step) {
            Verdict::Apply(next) => next,
            other => panic!("{step:?} at {from:?}: {other:?}"),
        }
    }

    #[test]
    fn a_stream_with_other_partitions_in_between_has_no_gap() {
        let w = applies(Watermark::default(), record(1, 0, 3));
        let w = applies(w, record(1, 3, 10));
        assert_eq!(w, mark_at(1, 3, 10));
    }

    #[test]
    fn a_missing_record_is_a_gap_even_when_later_ones_arrive() {
        let w = applies(Watermark::default(), record(1, 0, 3));
        // 10 was lost on the way; 12 names it as its predecessor.
        assert_eq!(w.judge(record(1, 10, 12)), Verdict::Gap { rewind_to: Seq::new(3) });
        assert_eq!(w.judge(record(1, 12, 13)), Verdict::Gap { rewind_to: Seq::new(3) });
        let w = applies(w, record(1, 3, 10));
        assert_eq!(applies(w, record(1, 10, 12)).seq, Seq::new(12));
    }

    #[test]
    fn a_mark_behind_a_lost_record_does_not_hide_it() {
        let w = applies(Watermark::default(), record(1, 0, 3));
        assert_eq!(w.judge(mark(1, 10, 50)), Verdict::Gap { rewind_to: Seq::new(3) });
    }

    #[test]
    fn an_idle_partition_follows_the_marks_and_the_next_record_applies() {
        let w = applies(Watermark::default(), mark(1, 0, 1_000));
        assert_eq!(applies(w, record(1, 3, 1_001)).seq, Seq::new(1_001));
    }

    #[test]
    fn what_was_applied_is_skipped_whichever_incarnation_wrote_it() {
        let w = mark_at(3, 60, 100);
        assert_eq!(w.judge(record(3, 80, 90)), Verdict::Skip);
        assert_eq!(w.judge(record(3, 90, 100)), Verdict::Skip);
        assert_eq!(w.judge(record(1, 10, 20)), Verdict::Skip);
        assert_eq!(w.judge(mark(3, 90, 95)), Verdict::Skip);
    }

    #[test]
    fn a_new_incarnation_that_goes_on_behind_the_watermark_applies() {
        assert_eq!(applies(mark_at(1, 1, 100), record(2, 100, 101)), mark_at(2, 101, 101));
        // Its opening mark stands at the watermark itself: nothing was lost.
        assert_eq!(mark_at(1, 1, 100).judge(mark(2, 100, 100)), Verdict::Skip);
    }

    #[test]
    fn a_new_incarnation_that_starts_at_or_below_the_watermark_is_an_alarm() {
        // The journal lost 91 to 100 after they had been shipped, and writes them anew.
        let watermark = mark_at(1, 1, 100);
        for seq in [91, 100] {
            let alarm =
                Alarm::TailLost { watermark, incarnation: Incarnation::new(2), seq: Seq::new(seq) };
            assert_eq!(watermark.judge(record(2, 90, seq)), Verdict::Alarm(alarm));
        }
        assert!(matches!(watermark.judge(mark(2, 90, 90)), Verdict::Alarm(Alarm::TailLost { .. })));
    }

    #[test]
    fn an_old_copy_of_the_data_folder_is_an_alarm_at_its_first_record() {
        // Incarnation 3 wrote from 60 on; a copy from before that writes 70 as incarnation 2.
        let watermark = mark_at(3, 60, 100);
        for seq in [70, 100, 101] {
            let alarm =
                Alarm::OldCopy { watermark, incarnation: Incarnation::new(2), seq: Seq::new(seq) };
            assert_eq!(watermark.judge(record(2, 59, seq)), Verdict::Alarm(alarm));
        }
    }

    #[test]
    fn a_watermark_that_went_back_is_an_alarm_and_one_that_went_on_is_not() {
        let expected = mark_at(2, 50, 100);
        let back = mark_at(2, 50, 80);
        let alarm = Alarm::WatermarkWentBack { expected, found: back };
        assert_eq!(expected.judge_found(back), Some(alarm));
        assert!(expected.judge_found(Watermark::default()).is_some());
        assert_eq!(expected.judge_found(mark_at(2, 50, 120)), None);
        assert_eq!(expected.judge_found(mark_at(3, 110, 120)), None);
    }

    /// Whatever is lost, doubled or sent again: the watermark never passes a record that was not
    /// applied, and rewinding to where the rule says always gets through.
    #[test]
    fn no_loss_or_repetition_passes_the_rule_unnoticed() {
        let sequences: [u64; 6] = [2, 3, 7, 8, 9, 15];
        let steps: Vec<_> = sequences
            .iter()
            .scan(0, |prev, &seq| Some(record(1, std::mem::replace(prev, seq), seq)))
            .collect();
        for lost in 0..1u32 << steps.len() {
            let (mut w, mut applied) = (Watermark::default(), Vec::new());
            let first = steps.iter().enumerate().filter(|(i, _)| lost >> i & 1 == 0);
            for step in first.map(|(_, s)| s).chain(&steps).chain(&steps) {
                match w.judge(*step) {
                    Verdict::Apply(next) => {
                        applied.push(step.seq.get());
                        w = next;
                    }
                    Verdict::Skip => assert!(applied.contains(&step.seq.get())),
                    Verdict::Gap { rewind_to } => assert_eq!(rewind_to, w.seq),
                    Verdict::Alarm(alarm) => panic!("{alarm}"),
                }
            }
            assert_eq!(applied, sequences);
        }
    }
}
