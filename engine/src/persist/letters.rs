//! Dead letters, for the operator: list them, look at one, apply those that fit by now.
//!
//! A running persist tries them by itself every minute; what is applied here is gone for it, and
//! it lets the member go on once it has looked. A letter that was applied meanwhile is left alone.

use std::collections::HashSet;

use super::apply::{At, DataError, Effects};
use super::store::{Letter, LetterId, Offsets, Store, StoreBatch, StoreError};
use crate::kernel::record::Record;
use crate::ship::holdings::MapVersion;
use crate::units::{MemberId, Slot};

/// Letters read at a time.
const PAGE: u32 = 256;

/// What became of one letter.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Tried {
    Applied,
    /// It still does not fit, and why.
    Failed(String),
    /// It waits behind one that failed.
    Parked,
}

/// Hands on every letter not applied yet, in the order of arrival.
pub fn each<S: Store + ?Sized>(
    store: &mut S,
    mut see: impl FnMut(&mut S, LetterId, Letter) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let mut after = LetterId(i64::MIN);
    loop {
        let page = store.letters(after, PAGE)?;
        let Some((last, _)) = page.last() else { return Ok(()) };
        after = *last;
        for (id, letter) in page {
            see(store, id, letter)?;
        }
    }
}

/// Applies one letter in a transaction of its own. `map`: by which its partition is here.
///
/// Errors: `Map` where partitions have moved since, `Data` where it does not fit, `LetterGone`
/// where it was applied meanwhile.
pub fn apply<S: Store + ?Sized>(
    store: &mut S,
    effects: &mut Effects,
    map: MapVersion,
    id: LetterId,
    letter: &Letter,
) -> Result<(), StoreError> {
    let (_, record) =
        Record::take(&mut &letter.record[..]).map_err(|e| DataError::Undecodable(e.to_string()))?;
    effects.clear(store.shard().is_home());
    let at = At { journal: letter.stream.journal, seq: letter.seq, slot: letter.slot };
    effects.add(at, &record, &letter.record)?;
    store.apply(&StoreBatch {
        map,
        moves: &[],
        effects,
        letters: &[],
        applied: &[id],
        offsets: Offsets::default(),
    })
}

/// Tries every letter, in the order of arrival; what still fails holds its member.
pub fn retry<S: Store + ?Sized>(store: &mut S) -> Result<Vec<(LetterId, Tried)>, StoreError> {
    let mut effects = Effects::default();
    let (mut members, mut slots) = (HashSet::<MemberId>::new(), HashSet::<Slot>::new());
    let mut tried = Vec::new();
    let map = store.holdings()?;
    each(store, |store, id, letter| {
        if !map.holds(letter.stream.partition) {
            // It is tried where its partition has gone.
            tried.push((id, Tried::Parked));
            return Ok(());
        }
        let is_held = slots.contains(&letter.slot)
            || letter.member.is_some_and(|member| members.contains(&member));
        let outcome = if is_held {
            Tried::Parked
        } else {
            match apply(store, &mut effects, map.version, id, &letter) {
                Ok(()) | Err(StoreError::LetterGone(_)) => Tried::Applied,
                Err(StoreError::Data(error)) => {
                    store.letter_failed(id, &error.to_string())?;
                    match letter.member {
                        Some(member) => members.insert(member),
                        None => slots.insert(letter.slot),
                    };
                    Tried::Failed(error.to_string())
                }
                Err(other) => return Err(other),
            }
        };
        tried.push((id, outcome));
        Ok(())
    })?;
    Ok(tried)
}
