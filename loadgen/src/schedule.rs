//! When each request is planned: phases of rising, falling or constant rate.
//!
//! The arrivals of a run form one numbered sequence. With even arrivals, request `n` is planned at
//! the moment when the integral of the rate reaches `n`; with Poisson arrivals, when it reaches the
//! sum of `n` exponential gaps (time rescaling). Workers and agents take every `of`-th number, and
//! so share one schedule exactly: together they plan what a single one would.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::plan::Shared;
use crate::random::Random;
use crate::replay::Recording;

/// A stretch of the schedule over which the rate goes from one value to another, evenly.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Phase {
    pub name: String,
    /// Units: seconds.
    pub seconds: f64,
    /// Units: requests per second at its beginning and at its end.
    pub from_rate: f64,
    pub to_rate: f64,
}

/// How arrivals are spread at a given rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Arrivals {
    /// At even distances.
    #[default]
    Even,
    /// Independently of each other, as people come.
    Poisson,
}

/// What is wrong with a schedule.
#[derive(Debug, Error, PartialEq)]
pub enum ScheduleError {
    #[error("the schedule has no phase: give --rate and --seconds, or --phase")]
    Empty,
    #[error("phase {name}: {seconds} s is not a duration between 0.001 s and 30 days")]
    Duration { name: String, seconds: f64 },
    #[error("phase {name}: a rate of {rate}/s is not between 0 and 100 million")]
    Rate { name: String, rate: f64 },
    #[error("the schedule plans no request at all: every rate is 0")]
    NoRequest,
    #[error("the schedule plans {planned:.3e} requests, and the most is 2^40")]
    TooMany { planned: f64 },
}

/// One request of the schedule.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Arrival {
    pub number: u64,
    /// Units: nanoseconds since the schedule's start.
    pub at: u64,
    pub phase: u16,
}

/// Which of the numbers are this worker's: those equal to `index` modulo `of`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    pub index: u64,
    pub of: u64,
}

/// The arrivals of one worker, in order.
#[derive(Clone, Debug)]
pub struct Schedule {
    spans: Vec<Span>,
    share: Share,
    next_number: u64,
    gaps: Option<Gaps>,
    span: usize,
    recorded: Option<Shared<Recording>>,
}

#[derive(Clone, Debug)]
struct Span {
    /// Requests planned before this phase, and by its end.
    mass_before: f64,
    mass_after: f64,
    /// Units: seconds since the start.
    begins: f64,
    seconds: f64,
    from_rate: f64,
    to_rate: f64,
}

/// The running sum of exponential gaps.
#[derive(Clone, Debug)]
struct Gaps {
    random: Random,
    drawn: u64,
    mass: f64,
}

const MOST: f64 = (1u64 << 40) as f64;
/// Rates times seconds are floats: what is this close to the end is taken for the end.
const TOLERANCE: f64 = 1e-6;

/// Refuses phases that no run could follow.
pub fn check(phases: &[Phase]) -> Result<(), ScheduleError> {
    if phases.is_empty() {
        return Err(ScheduleError::Empty);
    }
    for p in phases {
        if !(0.001..=30.0 * 86_400.0).contains(&p.seconds) {
            return Err(ScheduleError::Duration { name: p.name.clone(), seconds: p.seconds });
        }
        for rate in [p.from_rate, p.to_rate] {
            if !(0.0..=1e8).contains(&rate) {
                return Err(ScheduleError::Rate { name: p.name.clone(), rate });
            }
        }
    }
    let planned: f64 = phases.iter().map(mass).sum();
    if planned > MOST {
        return Err(ScheduleError::TooMany { planned });
    }
    if planned <= TOLERANCE { Err(ScheduleError::NoRequest) } else { Ok(()) }
}

fn mass(phase: &Phase) -> f64 {
    phase.seconds * f64::midpoint(phase.from_rate, phase.to_rate)
}

/// How many requests are planned: exactly with even arrivals, else on average.
pub fn planned(phases: &[Phase]) -> u64 {
    let all: f64 = phases.iter().map(mass).sum();
    // The first is planned at nothing.
    (all - TOLERANCE).max(0.0).ceil() as u64
}

/// Units: seconds from the first planned moment to the last.
pub fn total_seconds(phases: &[Phase]) -> f64 {
    phases.iter().map(|p| p.seconds).sum()
}

impl Schedule {
    /// The phases must have passed [`check`].
    pub fn new(phases: &[Phase], arrivals: Arrivals, seed: u64, share: Share) -> Self {
        let (mut before, mut begins) = (0.0, 0.0);
        let spans = phases
            .iter()
            .map(|p| {
                let span = Span {
                    mass_before: before,
                    mass_after: before + mass(p),
                    begins,
                    seconds: p.seconds,
                    from_rate: p.from_rate,
                    to_rate: p.to_rate,
                };
                before = span.mass_after;
                begins += p.seconds;
                span
            })
            .collect();
        let gaps = (arrivals == Arrivals::Poisson).then(|| Gaps {
            random: Random::new(seed ^ 0x5EED_0FA1),
            drawn: 0,
            mass: 0.0,
        });
        Self { spans, share, next_number: share.index, gaps, span: 0, recorded: None }
    }

    /// The arrivals of a recording, one after the other.
    pub fn recorded(recording: Shared<Recording>, share: Share) -> Self {
        Self {
            spans: Vec::new(),
            share,
            next_number: share.index,
            gaps: None,
            span: 0,
            recorded: Some(recording),
        }
    }

    fn mass_of(&mut self, number: u64) -> f64 {
        match &mut self.gaps {
            None => number as f64,
            Some(gaps) => {
                while gaps.drawn <= number {
                    gaps.mass += gaps.random.exponential();
                    gaps.drawn += 1;
                }
                gaps.mass
            }
        }
    }
}

impl Iterator for Schedule {
    type Item = Arrival;

    fn next(&mut self) -> Option<Arrival> {
        let number = self.next_number;
        if let Some(recording) = &self.recorded {
            let at = *recording.at.get(usize::try_from(number).ok()?)?;
            self.next_number += self.share.of;
            return Some(Arrival { number, at, phase: 0 });
        }
        let mass = self.mass_of(number);
        while self.spans.get(self.span).is_some_and(|s| mass + TOLERANCE >= s.mass_after) {
            self.span += 1;
        }
        let span = self.spans.get(self.span)?;
        self.next_number += self.share.of;
        let at = span.begins + span.reaches(mass - span.mass_before);
        Some(Arrival { number, at: (at * 1e9).round() as u64, phase: self.span as u16 })
    }
}

impl Span {
    /// Units: seconds into the phase at which the integral of its rate is `mass`: the smaller root
    /// of `from·t + slope·t²/2 = mass`, in the form that does not cancel.
    fn reaches(&self, mass: f64) -> f64 {
        if mass <= 0.0 {
            return 0.0;
        }
        let slope = (self.to_rate - self.from_rate) / self.seconds;
        let root = (self.from_rate * self.from_rate + 2.0 * slope * mass).max(0.0).sqrt();
        (2.0 * mass / (self.from_rate + root)).min(self.seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Share = Share { index: 0, of: 1 };

    fn phase(name: &str, seconds: f64, from_rate: f64, to_rate: f64) -> Phase {
        Phase { name: name.into(), seconds, from_rate, to_rate }
    }

    #[test]
    fn a_constant_rate_is_planned_at_even_distances_and_to_the_exact_number() {
        let phases = [phase("a", 2.0, 1000.0, 1000.0)];
        let all: Vec<_> = Schedule::new(&phases, Arrivals::Even, 1, ALL).collect();
        assert_eq!((all.len(), planned(&phases)), (2000, 2000));
        assert!(all.iter().enumerate().all(|(i, a)| a.at == i as u64 * 1_000_000));
        // 0.1 * 30 is a little above 3 in floats.
        let all: Vec<_> =
            Schedule::new(&[phase("b", 30.0, 0.1, 0.1)], Arrivals::Even, 1, ALL).collect();
        assert_eq!((all.len(), planned(&[phase("b", 30.0, 0.1, 0.1)])), (3, 3));
        for rate in [0.3, 1.0, 1.7, 99.99] {
            let phases = [phase("c", 7.3, rate, 2.0 * rate), phase("d", 1.1, rate, 0.0)];
            let all = Schedule::new(&phases, Arrivals::Even, 1, ALL).count();
            assert_eq!(all as u64, planned(&phases), "{rate}");
        }
    }

    #[test]
    fn a_ramp_follows_its_integral() {
        let phases = [phase("up", 10.0, 0.0, 200.0), phase("down", 10.0, 200.0, 0.0)];
        let all: Vec<_> = Schedule::new(&phases, Arrivals::Even, 1, ALL).collect();
        assert_eq!(all.len(), 2000);
        // Half way up the ramp a quarter of its requests are out.
        assert_eq!(all.iter().filter(|a| a.at < 5_000_000_000).count(), 250);
        assert_eq!(all.iter().filter(|a| a.phase == 0).count(), 1000);
        assert!(all.windows(2).all(|w| w[0].at <= w[1].at));
        assert!(all.last().unwrap().at <= 20_000_000_000);
    }

    #[test]
    fn shares_together_plan_what_one_would() {
        for arrivals in [Arrivals::Even, Arrivals::Poisson] {
            let phases = [phase("a", 3.0, 100.0, 900.0), phase("b", 1.0, 5000.0, 5000.0)];
            let whole: Vec<_> = Schedule::new(&phases, arrivals, 9, ALL).collect();
            let mut parts: Vec<_> = (0..3)
                .flat_map(|index| Schedule::new(&phases, arrivals, 9, Share { index, of: 3 }))
                .collect();
            parts.sort_by_key(|a| a.number);
            assert_eq!(whole, parts);
        }
    }

    #[test]
    fn poisson_gaps_have_the_spread_of_poisson_gaps() {
        let phases = [phase("a", 100.0, 1000.0, 1000.0)];
        let all: Vec<_> = Schedule::new(&phases, Arrivals::Poisson, 3, ALL).collect();
        assert!((98_500..101_500).contains(&all.len()), "{}", all.len());
        let gaps: Vec<f64> = all.windows(2).map(|w| (w[1].at - w[0].at) as f64 / 1e6).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance = gaps.iter().map(|g| (g - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        assert!((0.97..1.03).contains(&mean) && (0.95..1.05).contains(&variance));
    }

    #[test]
    fn a_phase_of_rate_zero_is_a_pause() {
        let phases =
            [phase("a", 1.0, 10.0, 10.0), phase("b", 5.0, 0.0, 0.0), phase("c", 1.0, 10.0, 10.0)];
        let all: Vec<_> = Schedule::new(&phases, Arrivals::Even, 1, ALL).collect();
        assert_eq!(all.len(), 20);
        assert_eq!((all[9].phase, all[10].phase, all[10].at), (0, 2, 6_000_000_000));
    }

    #[test]
    fn impossible_schedules_are_refused_with_their_numbers() {
        let refused = |p: Phase| check(&[p]).unwrap_err();
        assert_eq!(check(&[]), Err(ScheduleError::Empty));
        assert!(matches!(refused(phase("a", 0.0, 1.0, 1.0)), ScheduleError::Duration { .. }));
        assert!(matches!(refused(phase("a", f64::NAN, 1.0, 1.0)), ScheduleError::Duration { .. }));
        assert!(matches!(refused(phase("a", 1e18, 1.0, 1.0)), ScheduleError::Duration { .. }));
        assert!(matches!(refused(phase("a", 1.0, -1.0, 1.0)), ScheduleError::Rate { .. }));
        assert!(matches!(refused(phase("a", 1.0, 1.0, f64::INFINITY)), ScheduleError::Rate { .. }));
        assert_eq!(refused(phase("a", 1.0, 0.0, 0.0)), ScheduleError::NoRequest);
        assert!(matches!(refused(phase("a", 1e6, 1e8, 1e8)), ScheduleError::TooMany { .. }));
    }
}
