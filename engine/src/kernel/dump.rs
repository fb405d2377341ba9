//! The state as plain values, for who checks the kernel and must not share its arithmetic.

use super::command::{AccountView, RedemptionState};
use super::control::ControlState;
use super::slot::SlotState;
use crate::units::{ItemIndex, KeyHash, MemberId, NodeTime, Points, Quantity, RedemptionId};

/// A redemption that a slot remembers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RedemptionDump {
    pub id: RedemptionId,
    pub member: MemberId,
    pub key: KeyHash,
    pub item: ItemIndex,
    pub quantity: Quantity,
    pub points: Points,
    pub state: RedemptionState,
    /// When a hold ends, or would have; zero where there was none.
    pub expires_at: NodeTime,
}

impl SlotState {
    /// All accounts, in no order.
    pub fn dump_accounts(&self) -> impl Iterator<Item = AccountView> {
        self.members.iter().map(|line| AccountView {
            member: line.member(),
            free: line.free(),
            held: line.held(),
        })
    }

    /// The remembered redemptions, in the order of their beginning.
    pub fn dump_redemptions(&self) -> impl Iterator<Item = RedemptionDump> {
        self.redemptions.iter().map(|r| RedemptionDump {
            id: r.id(self.slot),
            member: r.member(),
            key: r.key(),
            item: r.item(),
            quantity: r.quantity(),
            points: r.points(),
            state: r.state(),
            expires_at: r.expires_at(),
        })
    }

    /// Confirmed units of redemptions that are no longer remembered, and retired units of all.
    pub fn dump_settled(&self) -> impl Iterator<Item = (ItemIndex, [u64; 2])> {
        self.settled_counts.iter().map(|(item, c)| (*item, [c.confirmed, c.retired]))
    }

    /// The remembered admin keys, and when each came.
    pub fn dump_admin_keys(&self) -> impl Iterator<Item = (KeyHash, NodeTime)> {
        self.admin_keys.iter().map(|(key, at, _)| (key, at))
    }
}

impl ControlState {
    /// The remembered keys of stock changes, and when each came.
    pub fn dump_keys(&self) -> impl Iterator<Item = (KeyHash, NodeTime)> {
        self.keys.iter().map(|(key, at, _)| (key, at))
    }
}
