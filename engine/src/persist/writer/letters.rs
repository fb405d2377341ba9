//! Records that could not be applied: who waits behind them, and how they are tried again.

use std::sync::atomic::Ordering;

use super::{HashSet, ShardWriter};
use crate::kernel::record::Record;
use crate::persist::apply::{At, DataError};
use crate::persist::store::{Letter, LetterId, Offsets, Store, StoreBatch, StoreError};
use crate::ship::log::Log;
use crate::units::{MemberId, Slot};

/// Letters read at a time.
const LETTER_PAGE: u32 = 256;

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
        let mut still = Parked::default();
        let mut after = LetterId(i64::MIN);
        loop {
            let page = self.store.letters(after, LETTER_PAGE)?;
            let Some((last, _)) = page.last() else { break };
            after = *last;
            for (id, letter) in page {
                if still.holds(letter.slot, letter.member) {
                    continue;
                }
                match self.apply_letter(id, &letter) {
                    Ok(()) => {
                        self.shard_status().letters.fetch_sub(1, Ordering::Relaxed);
                    }
                    Err(StoreError::Data(error)) => {
                        self.store.letter_failed(id, &error.to_string())?;
                        still.insert(letter.slot, letter.member);
                    }
                    Err(other) => return Err(other),
                }
            }
        }
        self.parked = still;
        Ok(())
    }

    fn apply_letter(&mut self, id: LetterId, letter: &Letter) -> Result<(), StoreError> {
        let (_, record) = Record::take(&mut &letter.record[..])
            .map_err(|e| DataError::Undecodable(e.to_string()))?;
        self.effects.clear(self.shard.is_home());
        let at = At { journal: letter.stream.journal, seq: letter.seq, slot: letter.slot };
        self.effects.add(at, &record, &letter.record)?;
        self.store.apply(&StoreBatch {
            moves: &[],
            effects: &self.effects,
            letters: &[],
            applied: &[id],
            offsets: Offsets::default(),
        })
    }

    /// Learns from the database who is parked.
    pub(super) fn load_parked(&mut self) -> Result<(), StoreError> {
        self.parked = Parked::default();
        let (mut after, mut count) = (LetterId(i64::MIN), 0);
        loop {
            let page = self.store.letters(after, LETTER_PAGE)?;
            let Some((last, _)) = page.last() else { break };
            after = *last;
            count += page.len() as u64;
            for (_, letter) in page {
                self.parked.insert(letter.slot, letter.member);
            }
        }
        self.shard_status().letters.store(count, Ordering::Relaxed);
        Ok(())
    }
}
