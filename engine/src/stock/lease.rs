//! The lease protocol of one item on one node: events in, actions out, no I/O.
//!
//! ```text
//!            pool may have units                    answer: granted = G
//!   idle ───────────────────────► Ask{accepted → up to} ───────────► Record(Granted G)
//!    ▲                                                                    │ durable
//!    └────────────────────────── Enter(G − accepted) ◄────────────────────┘
//!
//!   units taken from the line ──► Record(Returned R) ──durable──► Tell(Returned R)
//! ```
//! Counters are cumulative and monotone, so every message may be lost, late or repeated:
//! - *grant*: the authority first, then the record, then the units enter the line;
//! - *return*: the units leave the line, then the record, then the authority.
//!
//! A crash between any two steps leaves units unsold for a while, never sold twice: at the next
//! start [`Lease::resume`] compares the counters and evens them out.

/// What happened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LeaseEvent {
    /// The pool may have units for this node: up to `want` of them are wanted.
    Want { want: u64 },
    /// The authority says how much it granted this journal in all.
    Granted { granted: u64 },
    /// The record "accepted `granted`" is durable.
    AcceptDurable { granted: u64 },
    /// Units were taken out of the line, to be returned.
    Taken { quantity: u64 },
    /// The record "returned `returned`" is durable.
    ReturnDurable { returned: u64 },
}

/// What to do about it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LeaseAction {
    /// Ask the authority to raise what it granted from `from` to at most `up_to`.
    Ask { from: u64, up_to: u64 },
    /// Record that `granted` is accepted.
    RecordGranted { granted: u64 },
    /// Let units into the line.
    Enter { quantity: u64 },
    /// Record that `returned` is returned.
    RecordReturned { returned: u64 },
    /// Tell the authority that `returned` is returned.
    Tell { returned: u64 },
}

/// One item's lease.
///
/// Invariant: `entered ≤ recorded ≤ granted by the authority`, and `told ≤ returned`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Lease {
    /// Durable: accepted from the authority, in all.
    accepted: u64,
    /// Recorded, perhaps not durable yet.
    recorded: u64,
    /// Taken out of the line and recorded as returned, in all.
    returned: u64,
    /// An ask is out, up to this.
    asked: Option<u64>,
}

impl Lease {
    /// Starts from what the journal knows, and asks the authority what *it* knows: granted beyond
    /// accepted will be accepted, returned is told again.
    pub fn resume(accepted: u64, returned: u64) -> (Self, [LeaseAction; 2]) {
        let lease = Self { accepted, recorded: accepted, returned, asked: Some(accepted) };
        let actions =
            [LeaseAction::Tell { returned }, LeaseAction::Ask { from: accepted, up_to: accepted }];
        (lease, actions)
    }

    pub fn accepted(&self) -> u64 {
        self.accepted
    }

    pub fn returned(&self) -> u64 {
        self.returned
    }

    /// Panics: when a durable record says what this lease never recorded, which is a bug.
    pub fn on(&mut self, event: LeaseEvent) -> Option<LeaseAction> {
        match event {
            LeaseEvent::Want { want: 0 } | LeaseEvent::Taken { quantity: 0 } => None,
            LeaseEvent::Want { .. } if self.asked.is_some() => None,
            LeaseEvent::Want { want } => {
                let up_to = self.recorded.checked_add(want)?;
                self.asked = Some(up_to);
                Some(LeaseAction::Ask { from: self.recorded, up_to })
            }
            LeaseEvent::Granted { granted } => {
                self.asked = None;
                // Late or repeated answers are at or below what is recorded.
                (granted > self.recorded).then(|| {
                    self.recorded = granted;
                    LeaseAction::RecordGranted { granted }
                })
            }
            LeaseEvent::AcceptDurable { granted } => {
                assert!(granted <= self.recorded, "accepted {granted}, recorded {}", self.recorded);
                let quantity = granted.checked_sub(self.accepted).filter(|q| *q > 0)?;
                self.accepted = granted;
                Some(LeaseAction::Enter { quantity })
            }
            LeaseEvent::Taken { quantity } => {
                self.returned = self.returned.checked_add(quantity)?;
                assert!(self.returned <= self.accepted, "returned more than was ever accepted");
                Some(LeaseAction::RecordReturned { returned: self.returned })
            }
            LeaseEvent::ReturnDurable { returned } => {
                assert!(returned <= self.returned, "durable before it was recorded");
                Some(LeaseAction::Tell { returned })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use LeaseAction as A;
    use LeaseEvent as E;

    #[test]
    fn units_enter_the_line_only_once_their_record_is_durable() {
        let mut lease = Lease::default();
        assert_eq!(lease.on(E::Want { want: 100 }), Some(A::Ask { from: 0, up_to: 100 }));
        assert_eq!(lease.on(E::Want { want: 100 }), None, "one ask at a time");
        assert_eq!(lease.on(E::Granted { granted: 60 }), Some(A::RecordGranted { granted: 60 }));
        assert_eq!(lease.accepted(), 0);
        assert_eq!(lease.on(E::AcceptDurable { granted: 60 }), Some(A::Enter { quantity: 60 }));
        assert_eq!(lease.on(E::AcceptDurable { granted: 60 }), None, "entered once");
    }

    #[test]
    fn a_late_or_repeated_answer_enters_nothing() {
        let (mut lease, _) = Lease::resume(60, 10);
        for granted in [0, 10, 60, 60] {
            assert_eq!(lease.on(E::Granted { granted }), None);
        }
    }

    #[test]
    fn a_grant_whose_answer_was_lost_in_a_crash_is_accepted_at_the_next_start() {
        let (mut lease, actions) = Lease::resume(60, 10);
        assert_eq!(actions, [A::Tell { returned: 10 }, A::Ask { from: 60, up_to: 60 }]);
        assert_eq!(lease.on(E::Granted { granted: 90 }), Some(A::RecordGranted { granted: 90 }));
        assert_eq!(lease.on(E::AcceptDurable { granted: 90 }), Some(A::Enter { quantity: 30 }));
    }

    #[test]
    fn a_return_is_told_only_once_its_record_is_durable() {
        let (mut lease, _) = Lease::resume(60, 0);
        assert_eq!(lease.on(E::Taken { quantity: 5 }), Some(A::RecordReturned { returned: 5 }));
        assert_eq!(lease.on(E::Taken { quantity: 2 }), Some(A::RecordReturned { returned: 7 }));
        assert_eq!(lease.on(E::ReturnDurable { returned: 5 }), Some(A::Tell { returned: 5 }));
        assert_eq!(lease.on(E::ReturnDurable { returned: 7 }), Some(A::Tell { returned: 7 }));
    }
}
