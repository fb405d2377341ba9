//! Which member a request is for.

use serde::{Deserialize, Serialize};

use crate::random::Random;

/// How members are chosen from their range.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Choice {
    Uniform,
    /// Rank `k` comes in proportion to `k^-exponent`; the first member of the range is rank 1.
    Zipf {
        exponent: f64,
    },
    /// The first `count` members make this share of the requests, all others the rest.
    Hot {
        count: u64,
        share: f64,
    },
}

impl Choice {
    /// Parses `uniform`, `zipf:EXPONENT`, `hot:COUNT:SHARE`.
    pub fn parse(text: &str) -> Option<Self> {
        let parts: Vec<_> = text.split(':').collect();
        match parts[..] {
            ["uniform"] => Some(Self::Uniform),
            ["zipf", exponent] => {
                let exponent = exponent.parse().ok().filter(|e| (0.01..=10.0).contains(e))?;
                Some(Self::Zipf { exponent })
            }
            ["hot", count, share] => {
                let count = count.parse().ok().filter(|&c| c > 0)?;
                let share = share.parse().ok().filter(|s| (0.0..=1.0).contains(s))?;
                Some(Self::Hot { count, share })
            }
            _ => None,
        }
    }

    /// A member of `first..=last`.
    pub fn pick(self, random: &mut Random, first: u64, last: u64) -> u64 {
        let count = last - first + 1;
        first
            + match self {
                Self::Uniform => random.below(count),
                Self::Zipf { exponent } => zipf(random, count, exponent) - 1,
                Self::Hot { count: hot, .. } if hot >= count => random.below(count),
                Self::Hot { count: hot, share } => {
                    if random.chance(share) {
                        random.below(hot)
                    } else {
                        hot + random.below(count - hot)
                    }
                }
            }
    }
}

/// A rank in `1..=count`, in constant time and memory.
/// Source: Hörmann and Derflinger, "Rejection-inversion to generate variates from monotone discrete
/// distributions" (1996).
fn zipf(random: &mut Random, count: u64, exponent: f64) -> u64 {
    let n = count as f64;
    // The integral of x^-exponent, and its inverse; both continuous at exponent 1.
    let integral = |x: f64| {
        let log = x.ln();
        helper_expm1((1.0 - exponent) * log) * log
    };
    let inverse = |x: f64| {
        let t = (x * (1.0 - exponent)).max(-1.0);
        (helper_ln1p(t) * x).exp()
    };
    let density = |x: f64| (-exponent * x.ln()).exp();
    let low = integral(1.5) - 1.0;
    let high = integral(n + 0.5);
    let shift = 2.0 - inverse(integral(2.5) - density(2.0));
    loop {
        let u = high + random.unit() * (low - high);
        let x = inverse(u);
        let rank = x.round().clamp(1.0, n);
        if rank - x <= shift || u >= integral(rank + 0.5) - density(rank) {
            return rank as u64;
        }
    }
}

/// `(e^x - 1) / x`
fn helper_expm1(x: f64) -> f64 {
    if x.abs() > 1e-8 { x.exp_m1() / x } else { 1.0 + x / 2.0 }
}

/// `ln(1 + x) / x`
fn helper_ln1p(x: f64) -> f64 {
    if x.abs() > 1e-8 { x.ln_1p() / x } else { 1.0 - x / 2.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_are_read() {
        assert_eq!(Choice::parse("uniform"), Some(Choice::Uniform));
        assert_eq!(Choice::parse("zipf:1.1"), Some(Choice::Zipf { exponent: 1.1 }));
        assert_eq!(Choice::parse("hot:10:0.5"), Some(Choice::Hot { count: 10, share: 0.5 }));
        for wrong in ["", "zipf", "zipf:0", "zipf:x", "hot:0:0.5", "hot:1:2", "hot:1", "other"] {
            assert_eq!(Choice::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn ranks_of_zipf_come_in_their_proportions() {
        for exponent in [0.5, 1.0, 1.5] {
            let mut random = Random::new(3);
            let (draws, count) = (200_000, 1000u64);
            let mut seen = vec![0u32; count as usize];
            for _ in 0..draws {
                let m = Choice::Zipf { exponent }.pick(&mut random, 100, 99 + count);
                seen[(m - 100) as usize] += 1;
            }
            let norm: f64 = (1..=count).map(|k| (k as f64).powf(-exponent)).sum();
            for rank in [1u64, 2, 5, 20] {
                let expected = f64::from(draws) * (rank as f64).powf(-exponent) / norm;
                let got = f64::from(seen[rank as usize - 1]);
                let spread = 5.0 * expected.sqrt() + 1.0;
                assert!((got - expected).abs() < spread, "{exponent} {rank}: {got} {expected}");
            }
        }
    }

    #[test]
    fn a_hot_set_has_its_share() {
        let mut random = Random::new(3);
        let hot = Choice::Hot { count: 10, share: 0.4 };
        let all: Vec<_> = (0..50_000).map(|_| hot.pick(&mut random, 1, 1000)).collect();
        let share = all.iter().filter(|&&m| m <= 10).count() as f64 / 50_000.0;
        assert!((0.39..0.41).contains(&share), "{share}");
        assert!(all.iter().all(|m| (1..=1000).contains(m)));
        let wide = Choice::Hot { count: 10, share: 0.4 }.pick(&mut random, 5, 7);
        assert!((5..=7).contains(&wide));
    }
}
