//! Cells: what each HTTP worker counts, on memory of its own, merged only when scraped.
//!
//! Thread: each `Cells` has one writer, its worker; the scrape reads them all.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use super::reply::Label;
use super::route::Route;
use crate::telemetry::histogram::{Buckets, DURATION_BOUNDS_NS, Histogram, bump};

const CALL_COUNT: usize = Route::CALLS.len();

/// One worker's counts.
pub struct Cells {
    /// By call and label; made when the pair first occurs.
    durations: Box<[OnceLock<Histogram>]>,
    /// Decisions about redemptions by label, the items of batches included.
    decisions: Box<[AtomicU64]>,
    pub connections_accepted: AtomicU64,
    pub connections_refused: AtomicU64,
    pub connections_timed_out: AtomicU64,
    pub connections_open: AtomicU64,
    pub watchers: AtomicU64,
}

impl Default for Cells {
    fn default() -> Self {
        Self {
            durations: (0..CALL_COUNT * Label::COUNT).map(|_| OnceLock::new()).collect(),
            decisions: (0..Label::COUNT).map(|_| AtomicU64::new(0)).collect(),
            connections_accepted: AtomicU64::new(0),
            connections_refused: AtomicU64::new(0),
            connections_timed_out: AtomicU64::new(0),
            connections_open: AtomicU64::new(0),
            watchers: AtomicU64::new(0),
        }
    }
}

impl Cells {
    /// Counts an answered request. `call` is [`Route::index`].
    pub fn answered(&self, call: usize, label: Label, duration_ns: u64) {
        self.durations[call * Label::COUNT + label.index()]
            .get_or_init(|| Histogram::new(DURATION_BOUNDS_NS))
            .record(duration_ns);
    }

    pub fn decided(&self, label: Label) {
        bump(&self.decisions[label.index()], 1);
    }

    pub fn count(counter: &AtomicU64) {
        bump(counter, 1);
    }

    pub fn uncount(counter: &AtomicU64) {
        bump(counter, u64::MAX);
    }
}

/// The cells of all workers, as sums.
pub struct Sums<'a>(pub &'a [std::sync::Arc<Cells>]);

impl Sums<'_> {
    /// Durations of each pair of call and label that occurred.
    pub fn durations(&self) -> Vec<(&'static str, &'static str, Buckets)> {
        let mut sums = Vec::new();
        for pair in 0..CALL_COUNT * Label::COUNT {
            let mut sum: Option<Buckets> = None;
            for histogram in self.0.iter().filter_map(|cells| cells.durations[pair].get()) {
                sum.get_or_insert_with(|| Buckets::empty(DURATION_BOUNDS_NS))
                    .add(&histogram.read());
            }
            if let Some(sum) = sum {
                let (call, label) = (pair / Label::COUNT, pair % Label::COUNT);
                sums.push((Route::CALLS[call], Label::name_of(label), sum));
            }
        }
        sums
    }

    pub fn decisions(&self) -> Vec<(&'static str, u64)> {
        (0..Label::COUNT)
            .map(|label| (Label::name_of(label), self.sum(|cells| &cells.decisions[label])))
            .filter(|&(_, count)| count > 0)
            .collect()
    }

    pub fn sum(&self, of: impl Fn(&Cells) -> &AtomicU64) -> u64 {
        self.0.iter().map(|cells| of(cells).load(Ordering::Relaxed)).sum()
    }
}
