//! The slots that a shard owns. One in which nothing has happened yet takes no memory of its own.

use std::sync::LazyLock;

use super::slot::SlotState;
use crate::units::{SLOT_COUNT, Slot};

/// States by slot number; `None`: nothing has happened in the slot yet, or it is not here.
///
/// Each stays where it is: states of ten lines of memory are not moved.
pub type States = Vec<Option<Box<SlotState>>>;

/// What is read of slots in which nothing has happened.
static EMPTY: LazyLock<Box<[SlotState]>> =
    LazyLock::new(|| (0..SLOT_COUNT as u16).map(|n| SlotState::new(Slot::new(n))).collect());

/// The slots that a shard owns, by number.
pub(super) struct OwnedSlots {
    states: States,
    is_owned: Vec<bool>,
    in_order: Vec<Slot>,
}

impl OwnedSlots {
    pub fn none() -> Self {
        Self {
            states: (0..SLOT_COUNT).map(|_| None).collect(),
            is_owned: vec![false; SLOT_COUNT],
            in_order: Vec::new(),
        }
    }

    /// Panics: the slot is owned already, or the state is of another one.
    pub fn adopt(&mut self, slot: Slot, state: Option<Box<SlotState>>) {
        let is_its = state.as_ref().is_none_or(|state| state.slot() == slot);
        assert!(is_its, "a slot's state carries its number");
        let was_owned = std::mem::replace(&mut self.is_owned[slot.index()], true);
        assert!(!was_owned, "slot {slot} is adopted twice");
        self.in_order.push(slot);
        self.states[slot.index()] = state;
    }

    pub fn owns(&self, slot: Slot) -> bool {
        self.is_owned.get(slot.index()).is_some_and(|is_owned| *is_owned)
    }

    /// In the order of their adoption.
    pub fn iter(&self) -> impl Iterator<Item = Slot> {
        self.in_order.iter().copied()
    }

    /// Of those in which something has happened.
    pub fn states(&self) -> impl Iterator<Item = &SlotState> {
        self.states.iter().flatten().map(Box::as_ref)
    }

    /// The slot's state, if something has happened there.
    #[inline]
    pub fn touched(&self, slot: Slot) -> Option<&SlotState> {
        self.states[slot.index()].as_deref()
    }

    /// Panics: another shard owns the slot.
    #[inline]
    pub fn get(&self, slot: Slot) -> &SlotState {
        self.touched(slot).unwrap_or_else(|| self.empty(slot))
    }

    /// The slot's state, to change it. Panics: another shard owns the slot.
    #[inline]
    pub fn get_mut(&mut self, slot: Slot) -> &mut SlotState {
        let state = &mut self.states[slot.index()];
        if state.is_none() {
            assert!(self.is_owned[slot.index()], "the caller routes by slot");
            *state = Some(Box::new(SlotState::new(slot)));
        }
        state.as_deref_mut().expect("it was just made")
    }

    #[cold]
    fn empty(&self, slot: Slot) -> &SlotState {
        assert!(self.is_owned[slot.index()], "the caller routes by slot");
        &EMPTY[slot.index()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLOT: Slot = Slot::new(7);

    #[test]
    fn a_slot_takes_memory_once_something_happens_in_it() {
        let mut slots = OwnedSlots::none();
        slots.adopt(SLOT, None);
        assert_eq!(slots.get(SLOT).slot(), SLOT);
        assert_eq!(slots.get(SLOT).digest(), SlotState::new(SLOT).digest());
        assert!(slots.touched(SLOT).is_none() && slots.states().next().is_none());
        slots.get_mut(SLOT);
        assert_eq!(slots.states().map(SlotState::slot).collect::<Vec<_>>(), [SLOT]);
        assert!(slots.owns(SLOT) && !slots.owns(Slot::new(8)));
    }

    #[test]
    #[should_panic(expected = "the caller routes by slot")]
    fn a_slot_of_another_shard_is_not_taken_for_an_empty_one() {
        OwnedSlots::none().get(SLOT);
    }

    #[test]
    #[should_panic(expected = "the caller routes by slot")]
    fn a_slot_of_another_shard_is_not_changed() {
        OwnedSlots::none().get_mut(SLOT);
    }
}
