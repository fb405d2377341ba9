//! Whether a run's figures may be used at all, and the exit code.

use crate::plan::Load;
use crate::report::summary::Summary;
use crate::run::Outcomes;
use crate::stats;

/// Units: nanoseconds. Who allows the generator to be this late does not want it judged by its
/// processor either.
const ANY_LAG: u64 = 1_000_000_000;

/// Why a run is invalid; empty: it is valid.
pub fn invalid_reasons(run: &Outcomes) -> Vec<String> {
    // First, as it explains the others.
    let mut reasons = Vec::from_iter(bottleneck(run));
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
    if c.answered == 0 {
        reasons.push("no request was answered".into());
    }
    reasons
}

/// Why the generator was the bottleneck, if it was.
fn bottleneck(run: &Outcomes) -> Option<String> {
    let (stats, plan) = (&run.stats, &run.plan);
    let lag = stats.lag.value_at_quantile(0.99);
    let (busy, pressed) = (stats.busy_share * 100.0, stats.pressed_share * 100.0);
    let is_judged = plan.max_own_lag < ANY_LAG;
    match plan.load {
        Load::Open { .. } if lag > plan.max_own_lag / 1000 => Some(format!(
            "the generator is the bottleneck: 1 % of requests went out {:.1} ms or more late \
             though a connection was free (busiest worker {busy:.0} % of its processor)",
            lag as f64 / 1e3
        )),
        Load::Open { .. } if is_judged && stats.late_while_pressed * 100 > stats.lag.len() => {
            Some(format!(
                "the generator is the bottleneck: {} of {} requests went out more than {} ms late \
                 in seconds in which a worker had no time left (busiest worker {busy:.0} % of its \
                 processor): more --threads, or more machines",
                stats.late_while_pressed,
                stats.lag.len(),
                stats::PRESSED_LAG / 1_000_000
            ))
        }
        Load::Closed { .. } if is_judged && stats.pressed_share > stats::MOST_PRESSED => {
            Some(format!(
                "the generator is the bottleneck: a worker had no time left ({pressed:.0} % of the \
                 run on its processor or waiting for it), so this rate is its own, not the server's"
            ))
        }
        _ => None,
    }
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

/// The exit code of a run with this summary.
pub fn code_of(summary: &Summary) -> u8 {
    let violated = summary.ledger.as_ref().is_some_and(|l| l.finding_count > 0);
    let missed = summary.aborted.is_some() || summary.thresholds.iter().any(|t| !t.passed);
    exit_code(violated, !summary.valid, missed)
}
