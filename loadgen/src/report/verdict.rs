//! Whether a run's figures may be used at all, and the exit code.

use crate::plan::Load;
use crate::run::Outcomes;

/// A worker this busy is the bottleneck if it was also this late. Units: microseconds.
const MOST_BUSY: f64 = 0.97;
const BUSY_LAG_P99: u64 = 5_000;

/// Why a run is invalid; empty: it is valid.
pub fn invalid_reasons(run: &Outcomes) -> Vec<String> {
    let mut reasons = Vec::new();
    let c = &run.stats.counters;
    if c.unsent > 0 {
        reasons.push(format!(
            "{} of {} planned requests were not sent within {:.1} s of their time: the server \
             answered too slowly for {} connections, or this machine is too slow",
            c.unsent,
            c.planned,
            run.plan.max_lag as f64 / 1e9,
            run.plan.connections
        ));
    }
    if matches!(run.plan.load, Load::Open { .. }) {
        let lag = run.stats.lag.value_at_quantile(0.99);
        let busy = run.stats.busy_share;
        if lag > run.plan.max_own_lag / 1000 || (busy > MOST_BUSY && lag > BUSY_LAG_P99) {
            reasons.push(format!(
                "the generator is the bottleneck: 1 % of requests went out {:.1} ms or more late \
                 though a connection was free (busiest worker {:.0} % of its processor)",
                lag as f64 / 1e3,
                busy * 100.0
            ));
        }
    }
    if c.answered == 0 {
        reasons.push("no request was answered".into());
    }
    reasons
}

/// Exit codes.
pub mod exit {
    pub const GOOD: u8 = 0;
    /// Usage, or no connection ever succeeded.
    pub const USAGE: u8 = 1;
    pub const INVALID: u8 = 2;
    pub const LEDGER: u8 = 3;
    pub const THRESHOLD: u8 = 99;
}

/// Where several hold: the ledger, then the invalid run, then thresholds.
pub const fn exit_code(ledger_violated: bool, invalid: bool, threshold_failed: bool) -> u8 {
    match (ledger_violated, invalid, threshold_failed) {
        (true, _, _) => exit::LEDGER,
        (_, true, _) => exit::INVALID,
        (_, _, true) => exit::THRESHOLD,
        _ => exit::GOOD,
    }
}
