//! What watches a run while it goes on.

use std::time::SystemTime;

use crate::clock::Clock;
use crate::plan::Plan;
use crate::run::Outcomes;
use crate::stats::Second;

/// Thread: the conductor's, between its looks at the workers; a slow observer delays no request.
pub trait Observer {
    /// Whether [`Self::look`] is wanted: each costs every worker a copy of its histograms.
    fn wants_looks(&self) -> bool {
        false
    }

    /// Every connection was tried: when the schedule starts, by this clock. `None`: not at all.
    fn start(&mut self, clock: Clock) -> Option<u64> {
        Some(clock.now() + 2_000_000)
    }

    /// The schedule starts at this moment of the wall clock.
    fn starts(&mut self, _at: SystemTime) {}

    /// Whether nothing more is to be planned; asked some fifty times a second.
    fn stops(&self) -> bool {
        false
    }

    /// A second of the run is over; merged over all workers, in order.
    fn second(&mut self, plan: &Plan, second: &Second);

    /// The figures so far, once a second. A reason given here ends the schedule.
    fn look(&mut self, _so_far: &Outcomes) -> Option<String> {
        None
    }
}
