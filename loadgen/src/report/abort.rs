//! `--abort-on-fail`: a run that cannot become good is ended early.

use crate::report::threshold::Threshold;
use crate::run::Outcomes;

/// Looks in a row, a second apart, at which a threshold on latencies or errors must be missed: one
/// slow second at the start of a long run would still be outweighed.
const LOOKS: u32 = 3;

/// Keeps count of what is missed.
#[derive(Debug)]
pub struct AbortWatch {
    thresholds: Vec<(Threshold, u32)>,
}

impl AbortWatch {
    pub fn new(thresholds: Vec<Threshold>) -> Self {
        Self { thresholds: thresholds.into_iter().map(|t| (t, 0)).collect() }
    }

    /// Why the run should end now, if it should.
    pub fn look(&mut self, run: &Outcomes) -> Option<String> {
        if let Some(finding) = run.ledger.findings.examples().first() {
            return Some(format!("the ledger is violated: {}: {}", finding.kind, finding.text));
        }
        let unsent = run.stats.counters.unsent;
        if unsent > 0 {
            return Some(format!("{unsent} requests are unsent, so the run is invalid"));
        }
        let mut reason = None;
        for (threshold, count) in &mut self.thresholds {
            match threshold.is_missed_so_far(run) {
                Some(true) => *count += 1,
                _ => *count = 0,
            }
            if *count >= LOOKS && reason.is_none() {
                reason = Some(format!("{} is missed for {LOOKS} s", threshold.text()));
            }
        }
        reason
    }
}
