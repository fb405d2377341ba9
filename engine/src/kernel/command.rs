//! What a shard is asked, and what it answers. Plain values: no I/O, no time, no threads.

use std::sync::Arc;

use super::code::Code;
use super::record::AdminNote;
use crate::units::{ItemIndex, KeyHash, MemberId, NodeTime, Points, Quantity, RedemptionId};

/// A command to the shard that owns `member` (or the slot in `id`).
#[derive(Clone, Debug)]
pub enum Command {
    /// Exchange points for units, in one step, or set both aside (`hold`).
    Redeem { member: MemberId, key: KeyHash, item: ItemIndex, quantity: u64, hold: bool },
    /// Confirm a hold. Confirming again answers the same.
    Confirm { member: MemberId, id: RedemptionId },
    /// Release a hold. Cancelling again answers the same.
    Cancel { member: MemberId, id: RedemptionId },
    /// Take a confirmed redemption back; keyed, by an operator.
    Reverse { id: RedemptionId, key: KeyHash, note: Arc<AdminNote> },
    /// Open an account with one opening credit; an existing account is left as it is.
    OpenAccount { member: MemberId, points: Points },
    /// Credit points; keyed, by an operator.
    Credit { member: MemberId, key: KeyHash, amount: Points, note: Arc<AdminNote> },
    /// Debit free points; keyed, by an operator.
    Debit { member: MemberId, key: KeyHash, amount: Points, note: Arc<AdminNote> },
    /// Show an account.
    ReadAccount { member: MemberId },
    /// Show one redemption; `member` is `None` for an operator.
    ReadRedemption { member: Option<MemberId>, id: RedemptionId },
    /// Show a member's redemptions that this node remembers, newest first.
    ListRedemptions { member: MemberId, before: Option<RedemptionId>, limit: u16 },
    /// Ask whether a request key had an effect, and how it stands now; causes none.
    ReadKey { member: MemberId, key: KeyHash },
    /// Answer a redeem request whose key is remembered, as it was answered first; decide nothing.
    /// Refused with `RedemptionNotFound` where the key is new.
    Recall { member: MemberId, key: KeyHash, item: ItemIndex, quantity: u64, hold: bool },
}

/// The answer to a [`Command`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// A redemption was begun or moved. `replayed`: by an earlier request, whose answer this is.
    Redemption {
        view: RedemptionView,
        replayed: bool,
    },
    /// The account after the command. `replayed` as above; for `OpenAccount`: it was there.
    Account {
        view: AccountView,
        replayed: bool,
    },
    /// Those that this node remembers, newest first. `forgotten_sales`: so many sales were
    /// forgotten by the member's slot; what was redeemed there, only the databases know.
    Redemptions {
        views: Vec<RedemptionView>,
        forgotten_sales: u64,
    },
    Refused(Refusal),
}

/// A refusal, with the one figure that helps the caller.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Refusal {
    pub code: Code,
    /// `InsufficientPoints`: the free points. `LimitReached`, `HoldAllowanceSpent`: the limit.
    /// `WrongState`: the state's number. `RedemptionNotFound` by a read: how many sales the slot
    /// has forgotten. Else 0.
    pub detail: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AccountView {
    pub member: MemberId,
    pub free: Points,
    pub held: Points,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RedemptionView {
    pub id: RedemptionId,
    pub member: MemberId,
    pub item: ItemIndex,
    pub quantity: Quantity,
    pub points: Points,
    pub state: RedemptionState,
    /// The member's free points: after the step that this view answers, and in a replay the
    /// same figure again; in a read, now.
    pub balance: Points,
    /// When a hold ends; for others when it would have, or zero where there was none.
    pub expires_at: NodeTime,
}

/// Where a redemption stands: *held* → *confirmed* | *cancelled* | *expired*;
/// *confirmed* → *reversed*.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum RedemptionState {
    Held = 1,
    Confirmed = 2,
    Cancelled = 3,
    Expired = 4,
    Reversed = 5,
}

impl RedemptionState {
    pub const ALL: [Self; 5] =
        [Self::Held, Self::Confirmed, Self::Cancelled, Self::Expired, Self::Reversed];

    pub fn from_u8(raw: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|s| *s as u8 == raw)
    }
    pub const fn name(self) -> &'static str {
        match self {
            Self::Held => "held",
            Self::Confirmed => "confirmed",
            Self::Cancelled => "cancelled",
            Self::Expired => "expired",
            Self::Reversed => "reversed",
        }
    }
}
