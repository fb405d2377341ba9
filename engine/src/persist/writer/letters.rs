//! Records that could not be applied: who waits behind them, and how they are tried again.

use std::sync::atomic::Ordering;

use super::{HashSet, ShardWriter};
use crate::persist::letters;
use crate::persist::store::{Store, StoreError};
use crate::ship::log::Log;
use crate::units::{MemberId, Slot};

/// Whose records wait behind a dead letter.
#[derive(Default)]
pub(super) struct Parked {
    members: HashSet<MemberId>,
    /// Behind a record that names no member.
    slots: HashSet<Slot>,
}

impl Parked {
    pub(super) fn is_empty(&self) -> bool {
        self.members.is_empty() && self.slots.is_empty()
    }
    pub(super) fn holds(&self, slot: Slot, member: Option<MemberId>) -> bool {
        self.slots.contains(&slot) || member.is_some_and(|m| self.members.contains(&m))
    }
    pub(super) fn insert(&mut self, slot: Slot, member: Option<MemberId>) {
        match member {
            Some(member) => self.members.insert(member),
            None => self.slots.insert(slot),
        };
    }
}

/// Dead letters.
impl<L: Log, S: Store> ShardWriter<L, S> {
    /// Tries every letter again, in the order of arrival; what still fails holds its member.
    pub(super) fn retry_letters(&mut self) -> Result<(), StoreError> {
        if self.parked.is_empty() {
            return Ok(());
        }
        letters::retry(&mut self.store)?;
        self.load_parked()
    }

    /// Learns from the database who is parked.
    pub(super) fn load_parked(&mut self) -> Result<(), StoreError> {
        let (mut parked, mut count) = (Parked::default(), 0);
        letters::each(&mut self.store, |_, _, letter| {
            parked.insert(letter.slot, letter.member);
            count += 1;
            Ok(())
        })?;
        self.parked = parked;
        self.shard_status().letters.store(count, Ordering::Relaxed);
        Ok(())
    }
}
