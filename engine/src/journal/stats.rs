//! Counters of the journal, for metrics: written by its thread, read by anyone.

use std::sync::atomic::{AtomicU64, Ordering};

/// How many measurements fell below each of a fixed row of bounds.
///
/// Relaxed everywhere: one writer, and readers that need no exact moment.
pub struct Buckets<const N: usize> {
    bounds: [u64; N],
    counts: [AtomicU64; N],
    above: AtomicU64,
    sum: AtomicU64,
}

/// A reading of [`Buckets`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BucketCounts {
    /// Upper bound (inclusive) and how many fell into it alone; the last bound is `u64::MAX`.
    pub counts: Vec<(u64, u64)>,
    pub sum: u64,
}

impl<const N: usize> Buckets<N> {
    pub fn new(bounds: [u64; N]) -> Self {
        let counts = std::array::from_fn(|_| AtomicU64::new(0));
        Self { bounds, counts, above: AtomicU64::new(0), sum: AtomicU64::new(0) }
    }
    pub fn record(&self, value: u64) {
        let bucket = self.bounds.iter().position(|b| value <= *b);
        bucket.map_or(&self.above, |b| &self.counts[b]).fetch_add(1, Ordering::Relaxed);
        self.sum.fetch_add(value, Ordering::Relaxed);
    }
    pub fn read(&self) -> BucketCounts {
        let below = self.bounds.iter().zip(&self.counts);
        let mut counts: Vec<_> = below.map(|(b, c)| (*b, c.load(Ordering::Relaxed))).collect();
        counts.push((u64::MAX, self.above.load(Ordering::Relaxed)));
        BucketCounts { counts, sum: self.sum.load(Ordering::Relaxed) }
    }
}

/// What the journal has done since it was opened.
pub struct JournalStats {
    pub frame_count: AtomicU64,
    /// On disk, padding included.
    pub byte_count: AtomicU64,
    pub record_count: AtomicU64,
    pub completion_count: AtomicU64,
    pub rotation_count: AtomicU64,
    /// Failed tries to make the next segment ready.
    pub prepare_failure_count: AtomicU64,
    /// Units: nanoseconds of one frame's durable write.
    pub sync_ns: Buckets<16>,
    /// Units: bytes of one frame on disk.
    pub frame_bytes: Buckets<9>,
    /// Units: records in one frame.
    pub frame_records: Buckets<9>,
}

impl Default for JournalStats {
    fn default() -> Self {
        const US: u64 = 1_000;
        const MS: u64 = 1_000_000;
        Self {
            frame_count: AtomicU64::new(0),
            byte_count: AtomicU64::new(0),
            record_count: AtomicU64::new(0),
            completion_count: AtomicU64::new(0),
            rotation_count: AtomicU64::new(0),
            prepare_failure_count: AtomicU64::new(0),
            sync_ns: Buckets::new([
                25 * US,
                50 * US,
                75 * US,
                100 * US,
                150 * US,
                200 * US,
                300 * US,
                500 * US,
                MS,
                2 * MS,
                5 * MS,
                10 * MS,
                25 * MS,
                100 * MS,
                500 * MS,
                2_000 * MS,
            ]),
            frame_bytes: Buckets::new(std::array::from_fn(|i| 4096 << i)),
            frame_records: Buckets::new(std::array::from_fn(|i| 1 << (2 * i))),
        }
    }
}

impl JournalStats {
    pub(super) fn frame(&self, bytes: usize, records: u32, sync_ns: u64) {
        self.frame_count.fetch_add(1, Ordering::Relaxed);
        self.byte_count.fetch_add(bytes as u64, Ordering::Relaxed);
        self.record_count.fetch_add(u64::from(records), Ordering::Relaxed);
        self.sync_ns.record(sync_ns);
        self.frame_bytes.record(bytes as u64);
        self.frame_records.record(u64::from(records));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_falls_into_the_first_bound_not_below_it() {
        let buckets = Buckets::new([10, 100]);
        for value in [0, 10, 11, 100, 101, 5_000] {
            buckets.record(value);
        }
        let read = buckets.read();
        assert_eq!(read.counts, [(10, 2), (100, 2), (u64::MAX, 2)]);
        assert_eq!(read.sum, 5_222);
    }
}
