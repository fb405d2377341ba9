//! `compare`: what changed between two sets of runs beyond what repeated runs differ by anyway.
//!
//! Source: Welch's t-test, two-sided, at 1 %. One run on a side says nothing of its noise, and so
//! nothing is claimed.

use std::fmt::Write as _;

use crate::report::figures::Figures;
use crate::report::summary::Summary;
use crate::report::text::microseconds;

/// A figure of all runs of both sides.
#[derive(Clone, Debug)]
pub struct Difference {
    pub name: String,
    unit: Unit,
    pub before: Spread,
    pub after: Spread,
    pub verdict: Verdict,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Better,
    Worse,
    WithinNoise,
    /// A side has one run alone.
    Unknown,
}

/// Mean and standard deviation.
#[derive(Clone, Copy, Debug)]
pub struct Spread {
    pub count: usize,
    pub mean: f64,
    pub deviation: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unit {
    Microseconds,
    Share,
    PerSecond,
}

/// Differences smaller than this share are below what a histogram resolves.
const RESOLUTION: f64 = 0.002;

/// Two-sided 1 % points of Student's t for 1 to 30 degrees of freedom.
const T: [f64; 30] = [
    63.657, 9.925, 5.841, 4.604, 4.032, 3.707, 3.499, 3.355, 3.250, 3.169, 3.106, 3.055, 3.012,
    2.977, 2.947, 2.921, 2.898, 2.878, 2.861, 2.845, 2.831, 2.819, 2.807, 2.797, 2.787, 2.779,
    2.771, 2.763, 2.756, 2.750,
];

impl Spread {
    pub fn of(values: &[f64]) -> Self {
        let count = values.len();
        let mean = values.iter().sum::<f64>() / count.max(1) as f64;
        let squares: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
        let deviation = if count > 1 { (squares / (count - 1) as f64).sqrt() } else { 0.0 };
        Self { count, mean, deviation }
    }

    /// The variance of the mean.
    fn error(&self) -> f64 {
        self.deviation.powi(2) / self.count as f64
    }
}

/// The difference of means that noise alone exceeds once in a hundred; `None`: not to be known.
pub fn noise(a: Spread, b: Spread) -> Option<f64> {
    if a.count < 2 || b.count < 2 {
        return None;
    }
    let (ea, eb) = (a.error(), b.error());
    let degrees = if ea + eb > 0.0 {
        let (na, nb) = ((a.count - 1) as f64, (b.count - 1) as f64);
        (ea + eb).powi(2) / (ea * ea / na + eb * eb / nb)
    } else {
        30.0
    };
    let t = T[(degrees as usize).clamp(1, T.len()) - 1];
    Some((t * (ea + eb).sqrt()).max(RESOLUTION * a.mean.abs()))
}

fn judge(a: Spread, b: Spread, more_is_better: bool) -> Verdict {
    match noise(a, b) {
        None => Verdict::Unknown,
        Some(noise) if (b.mean - a.mean).abs() <= noise => Verdict::WithinNoise,
        Some(_) if (b.mean > a.mean) == more_is_better => Verdict::Better,
        Some(_) => Verdict::Worse,
    }
}

/// Compares every figure that both sides have.
pub fn differences(before: &[Figures], after: &[Figures]) -> Vec<Difference> {
    let summaries =
        |all: &[Figures]| -> Vec<Summary> { all.iter().map(|f| f.show(Vec::new()).1).collect() };
    let (before, after) = (summaries(before), summaries(after));
    let mut all = Vec::new();
    let mut add = |name: &str, unit: Unit, more: bool, of: &dyn Fn(&Summary) -> Option<f64>| {
        let values = |s: &[Summary]| s.iter().filter_map(of).collect::<Vec<_>>();
        let (a, b) = (Spread::of(&values(&before)), Spread::of(&values(&after)));
        if a.count > 0 && b.count > 0 {
            let verdict = judge(a, b, more);
            all.push(Difference { name: name.into(), unit, before: a, after: b, verdict });
        }
    };
    let us = Unit::Microseconds;
    add("response p50", us, false, &|s| Some(s.latency.response_us.p50 as f64));
    add("response p90", us, false, &|s| Some(s.latency.response_us.p90 as f64));
    add("response p99", us, false, &|s| Some(s.latency.response_us.p99 as f64));
    add("response p99.9", us, false, &|s| Some(s.latency.response_us.p99_9 as f64));
    add("response mean", us, false, &|s| Some(s.latency.response_us.mean));
    add("service p50", us, false, &|s| Some(s.latency.service_us.p50 as f64));
    add("service p99", us, false, &|s| Some(s.latency.service_us.p99 as f64));
    add("error rate", Unit::Share, false, &|s| Some(s.error_rate));
    add("answers per second", Unit::PerSecond, true, &|s| Some(s.answered_per_second));
    let phases = before.first().map(|s| &s.phases[..]).unwrap_or_default();
    for phase in phases.iter().filter(|_| phases.len() > 1) {
        let of = |s: &Summary| {
            let found = s.phases.iter().find(|p| p.name == phase.name)?;
            Some(found.latency.response_us.p99 as f64)
        };
        add(&format!("phase {}: p99", phase.name), us, false, &of);
    }
    all
}

/// What makes the two sides different loads, in words.
pub fn mismatches(before: &[Figures], after: &[Figures]) -> Vec<String> {
    let shape = |f: &Figures| {
        let s = f.show(Vec::new()).1;
        [
            ("workload", s.workload.to_owned()),
            ("loop", s.loop_kind.to_owned()),
            ("connections", s.connections.to_string()),
            ("planned seconds", format!("{:.1}", s.planned_seconds)),
            ("planned requests", s.requests.planned.to_string()),
        ]
    };
    let (Some(first), Some(last)) = (before.first(), after.first()) else { return Vec::new() };
    let pairs = shape(first).into_iter().zip(shape(last));
    let mut words: Vec<String> = pairs
        .filter(|((_, a), (_, b))| a != b)
        .map(|((name, a), (_, b))| format!("not the same load: {name} {a} and {b}"))
        .collect();
    let invalid = before.iter().chain(after).filter(|f| !f.invalid_reasons.is_empty()).count();
    if invalid > 0 {
        words.push(format!("{invalid} of the runs are invalid"));
    }
    words
}

/// The table.
pub fn render(differences: &[Difference]) -> String {
    let mut out = format!(
        "{:<24}{:>22}{:>22}{:>10}  {}\n",
        "", "baseline (± deviation)", "now (± deviation)", "change", "verdict"
    );
    for d in differences {
        let change = if d.before.mean == 0.0 {
            "-".into()
        } else {
            format!("{:+.1} %", (d.after.mean / d.before.mean - 1.0) * 100.0)
        };
        let verdict = match d.verdict {
            Verdict::Better => "better",
            Verdict::Worse => "WORSE",
            Verdict::WithinNoise => "within noise",
            Verdict::Unknown => "noise unknown",
        };
        let spread = |s: Spread| match s.count {
            1 => d.unit.text(s.mean),
            _ => format!("{} ± {}", d.unit.text(s.mean), d.unit.text(s.deviation)),
        };
        let _ = writeln!(
            out,
            "{:<24}{:>22}{:>22}{change:>10}  {verdict}",
            d.name,
            spread(d.before),
            spread(d.after)
        );
    }
    if differences.iter().any(|d| d.verdict == Verdict::Unknown) {
        out.push_str(
            "noise unknown: one run on a side; `run --repeat 5 --out DIR` makes several\n",
        );
    }
    out
}

impl Unit {
    fn text(self, value: f64) -> String {
        match self {
            Self::Microseconds => microseconds(value.round() as u64),
            Self::Share => format!("{:.3} %", value * 100.0),
            Self::PerSecond => format!("{value:.0}/s"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(a: &[f64], b: &[f64]) -> Verdict {
        judge(Spread::of(a), Spread::of(b), false)
    }

    #[test]
    fn only_what_exceeds_the_noise_is_a_difference() {
        assert_eq!(verdict(&[100.0, 110.0, 90.0], &[105.0, 95.0, 112.0]), Verdict::WithinNoise);
        assert_eq!(verdict(&[100.0, 101.0, 99.0], &[150.0, 151.0, 149.0]), Verdict::Worse);
        assert_eq!(verdict(&[150.0, 151.0, 149.0], &[100.0, 101.0, 99.0]), Verdict::Better);
        assert_eq!(verdict(&[100.0], &[900.0, 901.0]), Verdict::Unknown);
        // Without any spread the histogram's resolution is what is left.
        assert_eq!(verdict(&[1000.0, 1000.0], &[1001.0, 1001.0]), Verdict::WithinNoise);
        assert_eq!(verdict(&[1000.0, 1000.0], &[1010.0, 1010.0]), Verdict::Worse);
    }

    /// Two equal sources differ beyond the noise about once in a hundred, and not much more often.
    #[test]
    fn equal_sources_are_rarely_told_apart() {
        let mut random = crate::random::Random::new(5);
        let mut draw = |n: usize| -> Vec<f64> {
            (0..n).map(|_| 100.0 + (0..12).map(|_| random.unit()).sum::<f64>()).collect()
        };
        let wrong =
            (0..2000).filter(|_| verdict(&draw(5), &draw(5)) != Verdict::WithinNoise).count();
        assert!((2..60).contains(&wrong), "{wrong} of 2000");
    }
}
