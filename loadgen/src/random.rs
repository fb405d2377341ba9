//! Random choices that depend on a seed and a request's number alone.
//!
//! Whichever worker sends request 4711, on whichever machine, it is the same member, item and key.
//! Source: splitmix64 (Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators").

/// A stream of 64-bit values.
#[derive(Clone, Debug)]
pub struct Random {
    state: u64,
}

const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

const fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

impl Random {
    pub const fn new(seed: u64) -> Self {
        Self { state: mix(seed ^ GOLDEN) }
    }

    /// The stream that belongs to one request.
    pub const fn of_request(seed: u64, number: u64) -> Self {
        Self { state: mix(mix(seed ^ GOLDEN) ^ number.wrapping_mul(0xD1B5_4A32_D192_ED03)) }
    }

    pub const fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(GOLDEN);
        mix(self.state)
    }

    /// Uniform in `0..bound`; `bound` must not be 0.
    /// Source: Lemire, "Fast Random Integer Generation in an Interval", without the rejection: the
    /// bias at 2^64 against any bound used here is beyond notice.
    pub const fn below(&mut self, bound: u64) -> u64 {
        ((self.next() as u128 * bound as u128) >> 64) as u64
    }

    /// Uniform in `[0, 1)`, with 53 bits.
    pub const fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// True with this probability.
    pub fn chance(&mut self, share: f64) -> bool {
        share > 0.0 && self.unit() < share
    }

    /// Exponential with mean 1: the gap between arrivals of a Poisson process of rate 1.
    pub fn exponential(&mut self) -> f64 {
        -(1.0 - self.unit()).ln()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_has_the_same_stream_wherever_it_is_asked_for() {
        let draw = |n| {
            let mut r = Random::of_request(7, n);
            (r.next(), r.below(100), r.unit().to_bits())
        };
        assert_eq!(draw(5), draw(5));
        assert_ne!(draw(5), draw(6));
    }

    #[test]
    fn the_values_are_spread_evenly() {
        let mut r = Random::new(1);
        let mut buckets = [0u32; 10];
        for _ in 0..100_000 {
            buckets[r.below(10) as usize] += 1;
        }
        assert!(buckets.iter().all(|&b| (9_500..10_500).contains(&b)), "{buckets:?}");
        let mean = (0..100_000).map(|_| r.exponential()).sum::<f64>() / 100_000.0;
        assert!((0.98..1.02).contains(&mean), "{mean}");
    }
}
