//! Ends a node in the middle of a turn: at the crash points that the code itself names.

use std::cell::Cell;
use std::panic::resume_unwind;

use super::plan::End;
use crate::crash::{self, CrashPoint};

/// What unwinds through a turn that a crash interrupts.
pub struct Killed;

/// A crash to come.
#[derive(Clone, Copy)]
pub struct Armed {
    /// Points to pass before it.
    pub count: u32,
    /// Only this one counts.
    pub only: Option<CrashPoint>,
    pub end: End,
}

thread_local! {
    /// Points to pass; 0: not armed.
    static LEFT: Cell<u32> = const { Cell::new(0) };
    static ONLY: Cell<Option<CrashPoint>> = const { Cell::new(None) };
    static IS_HOOKED: Cell<bool> = const { Cell::new(false) };
}

/// Ends what this thread does at the last of these points.
pub fn arm(armed: Armed) {
    if !IS_HOOKED.replace(true) {
        crash::set_hook(|point| match LEFT.get() {
            0 => {}
            _ if ONLY.get().is_some_and(|only| only != point) => {}
            1 => {
                LEFT.set(0);
                resume_unwind(Box::new(Killed));
            }
            left => LEFT.set(left - 1),
        });
    }
    ONLY.set(armed.only);
    LEFT.set(armed.count.max(1));
}

/// Gives what is left.
pub fn disarm() -> u32 {
    LEFT.replace(0)
}
