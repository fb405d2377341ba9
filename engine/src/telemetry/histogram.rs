//! Histograms of fixed buckets: cheap to write, merged by addition.

use std::sync::atomic::{AtomicU64, Ordering};

/// Upper bounds of durations, in nanoseconds: from 10 µs to 10 s, about three to a decade.
pub const DURATION_BOUNDS_NS: &[u64] = &[
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    500_000_000,
    1_000_000_000,
    2_500_000_000,
    10_000_000_000,
];

/// Upper bounds of sizes, in bytes: from 4 KiB to 4 MiB.
pub const SIZE_BOUNDS: &[u64] = &[
    4 << 10,
    8 << 10,
    16 << 10,
    32 << 10,
    64 << 10,
    128 << 10,
    256 << 10,
    512 << 10,
    1 << 20,
    2 << 20,
    4 << 20,
];

/// Counts of values by bucket. Any thread may read; one thread writes.
#[derive(Debug)]
pub struct Histogram {
    bounds: &'static [u64],
    /// One per bound, and one for what lies above all.
    counts: Box<[AtomicU64]>,
    sum: AtomicU64,
}

impl Histogram {
    pub fn new(bounds: &'static [u64]) -> Self {
        let counts = (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect();
        Self { bounds, counts, sum: AtomicU64::new(0) }
    }

    /// Counts one value. Thread: the histogram's own.
    pub fn record(&self, value: u64) {
        let bucket = self.bounds.partition_point(|&bound| bound < value);
        bump(&self.counts[bucket], 1);
        bump(&self.sum, value);
    }

    pub fn read(&self) -> Buckets {
        Buckets {
            bounds: self.bounds,
            counts: self.counts.iter().map(|count| count.load(Ordering::Relaxed)).collect(),
            sum: self.sum.load(Ordering::Relaxed),
        }
    }
}

/// Adds to a counter that one thread writes: a load and a store, without a locked instruction.
///
/// Ordering: `Relaxed`, the counter publishes nothing; readers may see it a moment late.
pub fn bump(counter: &AtomicU64, by: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(by), Ordering::Relaxed);
}

/// A histogram as it was read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Buckets {
    pub bounds: &'static [u64],
    pub counts: Vec<u64>,
    pub sum: u64,
}

impl Buckets {
    pub fn empty(bounds: &'static [u64]) -> Self {
        Self { bounds, counts: vec![0; bounds.len() + 1], sum: 0 }
    }

    /// Adds another histogram of the same bounds.
    ///
    /// Panics: of other bounds.
    pub fn add(&mut self, other: &Self) {
        assert_eq!(self.bounds, other.bounds, "only like histograms are merged");
        for (count, more) in self.counts.iter_mut().zip(&other.counts) {
            *count += more;
        }
        self.sum = self.sum.wrapping_add(other.sum);
    }

    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_at_a_bound_belongs_below_it_and_sums_add_up() {
        let histogram = Histogram::new(&[10, 20]);
        for value in [0, 10, 11, 20, 21, 1000] {
            histogram.record(value);
        }
        let mut read = histogram.read();
        assert_eq!((read.counts.clone(), read.sum), (vec![2, 2, 2], 1062));
        read.add(&histogram.read());
        assert_eq!((read.count(), read.sum), (12, 2124));
    }
}
