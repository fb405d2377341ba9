//! Bugs that tests plant, so that the simulation can show that it finds them.
//!
//! `planted::is(Bug::…)` stands at the very place in the production code where the mistake would
//! be made. Outside of unit tests it is the constant `false`, and the compiler takes it out.

/// A mistake that somebody could make here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bug {
    /// Granted units enter the line before the grant's record is durable.
    SellBeforeLease,
    /// A grant's units enter the line again for a repeated answer.
    GrantEntersTwice,
    /// Units that are given back to the pool stay in the line.
    ReturnedStaySold,
    /// Added units are not told to those who say "sold out" for good.
    FinalOverAdded,
    /// A released unit enters the line before its record is durable.
    SellFreedEarly,
    /// Completions run before the frame is written.
    AnswerBeforeSync,
    /// A failed write is taken for a good one.
    IgnoreFailedWrite,
    /// After a failed write, or a restart, frames that nothing proves are left as they are.
    TailNotRewritten,
    /// The incarnation is not raised at a start.
    IncarnationKept,
    /// Keys of redemptions are not remembered in replay.
    ForgetKeys,
    /// A known key is not looked for, now and then.
    SecondEffect,
    /// A confirmed redemption's retry gets the state as it stands now, not its first answer.
    ReplayShowsNow,
    /// A hold that has ended is dropped without a record.
    ExpireWithoutRecord,
    /// A hold is confirmed although it has ended and its units are back.
    ConfirmReleased,
    /// A reversal's units go back twice.
    ReturnTwice,
    /// A reversal after the sale's end puts its units on sale again.
    RetiredSoldAgain,
    /// "Sold out" for good is said as soon as the line is empty.
    FinalTooEarly,
    /// The key of a withdrawal is not looked for before its units are taken.
    WithdrawTwice,
    /// A refusal that shows the member's state leaves before that state is durable.
    RefusalLeavesEarly,
    /// A change of the sale is answered before all shards decide by it.
    BarrierForgotten,
    /// The limit counter is not lowered when a hold is given up.
    LimitNotGivenBack,
    /// Node time starts anew at each start.
    TimeGoesBack,
    /// A grant that was asked for under an older epoch is taken.
    LateGrantTaken,
    /// What an answer grants is added to what is here, whatever was granted before it.
    GrantAddsUp,
    /// A return that is told again is counted again.
    ReturnsAddUp,
    /// A return is told before its record is durable.
    ReturnToldEarly,
    /// A journal is let into an epoch that it has not recorded.
    EpochIgnored,
    /// An epoch is entered before its record is durable.
    EpochEnteredEarly,
    /// The home's total is added each time that it is told.
    TotalAddsUp,
    /// A data folder that knows less than its pool is let in.
    OldCopyLetIn,
    /// Units that were taken while the line was looked at are given back all the same.
    RecallTakesSold,
    /// What other nodes hold counts as confirmed, once the pool is empty.
    FinalOverHeld,
    /// A rebuilt pool opens before every journal has reported.
    RebuildUnreported,
    /// What a lost answer withdrew is not looked for.
    WithdrawalLost,
    /// News are forgotten with the ask that they led to, though it was not answered.
    NewsForgotten,
    /// What another node has passed on is decided, whosever it is.
    DecidesForOthers,
    /// What another node has passed on is passed on again.
    PassedOnTwice,
    /// Claims of slots belong to a node's name, whatever its journal is.
    ClaimByName,
    /// A record is applied although the one before it is missing.
    GapApplied,
    /// The record that the watermark stands at is applied again when it comes again.
    DuplicateApplied,
    /// A mark moves the watermark past a record that never came.
    MarkHidesLoss,
    /// A mark that the databases do not follow is not repeated.
    MarkNotRepeated,
    /// After a fatal error a partition goes on from what was sent.
    RestartFromSent,
    /// A message that was written counts, although one before it was given up.
    AckedOverFailed,
    /// Rows are committed apart from their watermark.
    WatermarkApart,
    /// What this opening has shipped is taken for another copy's records.
    OwnTakenForCopy,
    /// A snapshot gets its name before it is synced.
    SnapshotUnsynced,
    /// A segment goes when the newer snapshot covers it.
    SegmentGoesByNewer,
    /// A segment goes before the databases have what is in it.
    SegmentGoesUnstored,
    /// A segment goes as soon as it is covered.
    GraceForgotten,
    /// A slot's cut is the end of the frame that the slot was reported in.
    CutOfWholeFrame,
    /// Records that a slot's snapshot has are applied to it again.
    ReplayBelowCut,
    /// A snapshot that reaches beyond the journal's end is taken.
    SnapshotBeyondEndTaken,
    /// An operator's keys are not in the snapshot.
    KeysNotInSnapshot,
    /// A snapshot that was given up is waited for by the shards.
    VisitLeftOpen,
}

impl Bug {
    pub const ALL: [Self; 55] = [
        Self::SellBeforeLease,
        Self::GrantEntersTwice,
        Self::ReturnedStaySold,
        Self::FinalOverAdded,
        Self::SellFreedEarly,
        Self::AnswerBeforeSync,
        Self::IgnoreFailedWrite,
        Self::TailNotRewritten,
        Self::IncarnationKept,
        Self::ForgetKeys,
        Self::SecondEffect,
        Self::ReplayShowsNow,
        Self::ExpireWithoutRecord,
        Self::ConfirmReleased,
        Self::ReturnTwice,
        Self::RetiredSoldAgain,
        Self::FinalTooEarly,
        Self::WithdrawTwice,
        Self::RefusalLeavesEarly,
        Self::BarrierForgotten,
        Self::LimitNotGivenBack,
        Self::TimeGoesBack,
        Self::LateGrantTaken,
        Self::GrantAddsUp,
        Self::ReturnsAddUp,
        Self::ReturnToldEarly,
        Self::EpochIgnored,
        Self::EpochEnteredEarly,
        Self::TotalAddsUp,
        Self::OldCopyLetIn,
        Self::RecallTakesSold,
        Self::FinalOverHeld,
        Self::RebuildUnreported,
        Self::WithdrawalLost,
        Self::NewsForgotten,
        Self::DecidesForOthers,
        Self::PassedOnTwice,
        Self::ClaimByName,
        Self::GapApplied,
        Self::DuplicateApplied,
        Self::MarkHidesLoss,
        Self::MarkNotRepeated,
        Self::RestartFromSent,
        Self::AckedOverFailed,
        Self::WatermarkApart,
        Self::OwnTakenForCopy,
        Self::SnapshotUnsynced,
        Self::SegmentGoesByNewer,
        Self::SegmentGoesUnstored,
        Self::GraceForgotten,
        Self::CutOfWholeFrame,
        Self::ReplayBelowCut,
        Self::SnapshotBeyondEndTaken,
        Self::KeysNotInSnapshot,
        Self::VisitLeftOpen,
    ];
}

/// Whether this bug is planted on this thread: never, outside of unit tests.
#[cfg(not(test))]
#[inline]
pub const fn is(_: Bug) -> bool {
    false
}

#[cfg(test)]
pub use planting::{is, plant};

#[cfg(test)]
mod planting {
    use std::cell::Cell;

    use super::Bug;

    thread_local! {
        static PLANTED: Cell<Option<Bug>> = const { Cell::new(None) };
    }

    /// Plants a bug on this thread, or takes it out again.
    pub fn plant(bug: Option<Bug>) {
        PLANTED.set(bug);
    }

    pub fn is(bug: Bug) -> bool {
        PLANTED.get() == Some(bug)
    }
}
