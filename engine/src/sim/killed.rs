//! Ends a node in the middle of a turn: at the crash points that the code itself names.

use std::cell::Cell;
use std::panic::resume_unwind;

use crate::crash;

/// What unwinds through a turn that a crash interrupts.
pub struct Killed;

thread_local! {
    /// Points to pass; 0: not armed.
    static LEFT: Cell<u32> = const { Cell::new(0) };
    static IS_HOOKED: Cell<bool> = const { Cell::new(false) };
}

/// Ends what this thread does at the `count`-th crash point from now on.
pub fn arm(count: u32) {
    if !IS_HOOKED.replace(true) {
        crash::set_hook(|_| match LEFT.get() {
            0 => {}
            1 => {
                LEFT.set(0);
                resume_unwind(Box::new(Killed));
            }
            left => LEFT.set(left - 1),
        });
    }
    LEFT.set(count.max(1));
}

/// Gives what is left.
pub fn disarm() -> u32 {
    LEFT.replace(0)
}
