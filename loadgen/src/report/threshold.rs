//! Thresholds: what must hold for a run to be good, as `p99{phase=spike}<50ms`.
//!
//! ```text
//! METRIC [ {FILTER=VALUE,…} ] OPERATOR NUMBER [UNIT]
//! ```

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::report::summary::{Sum, Summary, outcome_name};
use crate::run::Outcomes;
use crate::stats::Latency;

/// One condition.
#[derive(Clone, Debug, PartialEq)]
pub struct Threshold {
    text: String,
    metric: Metric,
    filters: Vec<(Filter, String)>,
    operator: Operator,
    /// In the metric's own unit: microseconds, a share, a count.
    limit: f64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Metric {
    /// A latency at this quantile; 1 is the largest.
    Quantile(f64),
    Mean,
    ErrorRate,
    Rps,
    Undersold,
    Unsent,
    Unanswered,
    Findings,
    Lag,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Filter {
    Phase,
    Section,
    Outcome,
    /// `time=service`: from the send instead of from the plan.
    Time,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operator {
    Less,
    AtMost,
    Greater,
    AtLeast,
    Equal,
}

/// What came of a threshold.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Judgement {
    pub threshold: String,
    pub passed: bool,
    /// In microseconds, a share, or a count; null: nothing was measured.
    pub value: Option<f64>,
}

/// A threshold that cannot be read.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("--threshold {text}: {detail}")]
pub struct BadThreshold {
    text: String,
    detail: String,
}

const METRICS: &str = "p50, p99, p99.9, …, max, mean, error-rate, rps, undersold, unsent, \
                       unanswered, findings, lag-p99";

impl Threshold {
    pub fn parse(text: &str) -> Result<Self, BadThreshold> {
        let bad = |detail: String| BadThreshold { text: text.into(), detail };
        // In braces white space may be part of a name.
        let mut depth = 0;
        let is_kept = |c: &char| {
            depth += i32::from(*c == '{') - i32::from(*c == '}');
            depth > 0 || !c.is_whitespace()
        };
        let compact: String = text.chars().filter(is_kept).collect();
        let after_filter = match (compact.find('{'), compact.find('}')) {
            (Some(_), None) => return Err(bad("} is missing".into())),
            (_, end) => end.map_or(0, |i| i + 1),
        };
        let at = compact[after_filter..]
            .find(['<', '>', '='])
            .map(|i| i + after_filter)
            .ok_or_else(|| bad("expected <, <=, >, >= or ==".into()))?;
        let (left, right) = compact.split_at(at);
        let (operator, limit) = [
            ("<=", Operator::AtMost),
            (">=", Operator::AtLeast),
            ("==", Operator::Equal),
            ("<", Operator::Less),
            (">", Operator::Greater),
        ]
        .into_iter()
        .find_map(|(sign, operator)| Some((operator, right.strip_prefix(sign)?)))
        .ok_or_else(|| bad("expected <, <=, >, >= or ==".into()))?;
        let (name, filters) = match left.split_once('{') {
            None => (left, Vec::new()),
            Some((name, rest)) => {
                let inner = rest.strip_suffix('}').ok_or_else(|| bad("} is missing".into()))?;
                (name, read_filters(inner).map_err(&bad)?)
            }
        };
        let metric = Metric::named(name)
            .ok_or_else(|| bad(format!("{name:?} is no metric (there are {METRICS})")))?;
        if !filters.is_empty() && !metric.takes_filters() {
            return Err(bad(format!("{name} takes no filter")));
        }
        let limit = metric.read_limit(limit).map_err(&bad)?;
        Ok(Self { text: text.into(), metric, filters, operator, limit })
    }

    /// Refuses names of phases that the plan does not have.
    pub fn check_phases(&self, phases: &[String]) -> Result<(), BadThreshold> {
        let unknown = self
            .filters
            .iter()
            .find(|(filter, value)| *filter == Filter::Phase && !phases.contains(value));
        unknown.map_or(Ok(()), |(_, value)| {
            let detail = format!("there is no phase {value} (there are {})", phases.join(", "));
            Err(BadThreshold { text: self.text.clone(), detail })
        })
    }

    /// Holds the run against it. What was not measured does not pass.
    pub fn judge(&self, run: &Outcomes, summary: &Summary) -> Judgement {
        let value = self.value(run, summary);
        let passed = value.is_some_and(|value| self.holds(value));
        Judgement { threshold: self.text.clone(), passed, value }
    }

    fn holds(&self, value: f64) -> bool {
        match self.operator {
            Operator::Less => value < self.limit,
            Operator::AtMost => value <= self.limit,
            Operator::Greater => value > self.limit,
            Operator::AtLeast => value >= self.limit,
            Operator::Equal => (value - self.limit).abs() < 1e-9,
        }
    }

    /// Whether a run that is still going on misses it so far; `None`: that cannot be said yet.
    pub fn is_missed_so_far(&self, run: &Outcomes) -> Option<bool> {
        let value = match self.metric {
            Metric::Quantile(_) | Metric::Mean | Metric::ErrorRate => self.measured(run),
            Metric::Unsent => Some(run.stats.counters.unsent as f64),
            Metric::Findings => Some(run.ledger.findings.total() as f64),
            Metric::Lag => Some(run.stats.lag.value_at_quantile(0.99) as f64),
            Metric::Rps | Metric::Undersold | Metric::Unanswered => None,
        };
        value.map(|value| !self.holds(value))
    }

    pub fn text(&self) -> &str {
        &self.text
    }

    fn value(&self, run: &Outcomes, summary: &Summary) -> Option<f64> {
        let count = |n: u64| Some(n as f64);
        match self.metric {
            Metric::Quantile(_) | Metric::Mean | Metric::ErrorRate => self.measured(run),
            Metric::Rps => Some(summary.answered_per_second),
            Metric::Undersold => summary.check.as_ref().and_then(|c| count(c.undersold)),
            Metric::Unsent => count(summary.requests.unsent),
            Metric::Unanswered => count(summary.requests.unanswered),
            Metric::Findings => summary.ledger.as_ref().and_then(|l| count(l.finding_count)),
            Metric::Lag => count(run.stats.lag.value_at_quantile(0.99)),
        }
    }

    fn measured(&self, run: &Outcomes) -> Option<f64> {
        let named = |filter| self.filters.iter().find(|(f, _)| *f == filter).map(|(_, v)| v);
        let outcomes = run.stats.outcomes.iter().filter(|o| {
            named(Filter::Outcome).is_none_or(|wanted| {
                let name = outcome_name(&o.key);
                name == *wanted || name.split(' ').any(|part| part == wanted)
            })
        });
        let phases = run.plan.phase_names();
        let sum = Sum::of(outcomes, |cell| {
            let section = run.sections.get(cell.section as usize).map(|s| &s.name);
            named(Filter::Phase).is_none_or(|p| phases.get(cell.phase as usize) == Some(p))
                && named(Filter::Section).is_none_or(|s| section == Some(s))
        });
        let is_service = named(Filter::Time).is_some_and(|t| t == "service");
        let latency: &Latency = if is_service { &sum.service } else { &sum.response };
        if latency.is_empty() {
            return None;
        }
        Some(match self.metric {
            Metric::Quantile(q) => latency.value_at_quantile(q) as f64,
            Metric::Mean => latency.mean(),
            _ => sum.errors as f64 / sum.response.len() as f64,
        })
    }
}

fn read_filters(text: &str) -> Result<Vec<(Filter, String)>, String> {
    text.split(',')
        .map(|pair| {
            let (name, value) =
                pair.split_once('=').ok_or_else(|| format!("{pair:?} is not NAME=VALUE"))?;
            let (name, value) = (name.trim(), value.trim());
            let filter = match name {
                "phase" => Filter::Phase,
                "section" => Filter::Section,
                "outcome" => Filter::Outcome,
                "time" if matches!(value, "service" | "response") => Filter::Time,
                "time" => return Err("time is service or response".into()),
                _ => return Err(format!("{name:?} is none of phase, section, outcome, time")),
            };
            Ok((filter, value.to_owned()))
        })
        .collect()
}

impl Metric {
    fn named(name: &str) -> Option<Self> {
        Some(match name {
            "max" => Self::Quantile(1.0),
            "mean" => Self::Mean,
            "error-rate" => Self::ErrorRate,
            "rps" => Self::Rps,
            "undersold" => Self::Undersold,
            "unsent" => Self::Unsent,
            "unanswered" => Self::Unanswered,
            "findings" => Self::Findings,
            "lag-p99" => Self::Lag,
            _ => {
                let percent: f64 = name.strip_prefix('p')?.parse().ok()?;
                let in_range = percent > 0.0 && percent < 100.0;
                // 99.9 / 100 is a little above 0.999 in floats.
                return in_range.then(|| Self::Quantile((percent * 1e6).round() / 1e8));
            }
        })
    }

    const fn takes_filters(self) -> bool {
        matches!(self, Self::Quantile(_) | Self::Mean | Self::ErrorRate)
    }

    fn read_limit(self, text: &str) -> Result<f64, String> {
        let units: &[(&str, f64)] = match self {
            Self::Quantile(_) | Self::Mean | Self::Lag => {
                &[("us", 1.0), ("µs", 1.0), ("ms", 1e3), ("s", 1e6)]
            }
            Self::ErrorRate => &[("%", 0.01), ("", 1.0)],
            _ => &[("", 1.0)],
        };
        let digits = text.trim_end_matches(|c: char| c.is_alphabetic() || c == '%');
        let unit = &text[digits.len()..];
        let number: f64 = digits.parse().map_err(|_| format!("{text:?} is no number"))?;
        let known = units.iter().find(|(name, _)| *name == unit);
        let (_, factor) = known.ok_or_else(|| {
            let names: Vec<_> = units.iter().map(|(name, _)| format!("{name:?}")).collect();
            format!("unit {unit:?} is none of {}", names.join(", "))
        })?;
        Ok(number * factor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds_are_read() {
        let t = Threshold::parse("p99.9{phase=spike,outcome=201} <= 1.5ms").unwrap();
        assert_eq!((t.metric, t.operator), (Metric::Quantile(0.999), Operator::AtMost));
        assert!((t.limit - 1500.0).abs() < 1e-9);
        let filters = [(Filter::Phase, "spike".into()), (Filter::Outcome, "201".into())];
        assert_eq!(t.filters, filters);
        let t = Threshold::parse(" p50 { outcome = 409 sold-out , phase=a b } < 5 ms ").unwrap();
        let filters = [(Filter::Outcome, "409 sold-out".into()), (Filter::Phase, "a b".into())];
        assert_eq!((t.filters, t.limit.to_bits()), (filters.into(), 5000f64.to_bits()));
        assert!((Threshold::parse("error-rate<0.1%").unwrap().limit - 0.001).abs() < 1e-12);
        assert!((Threshold::parse("rps>=50000").unwrap().limit - 50_000.0).abs() < 1e-9);
        assert_eq!(Threshold::parse("undersold==0").unwrap().operator, Operator::Equal);
        assert_eq!(Threshold::parse("max<2s").unwrap().metric, Metric::Quantile(1.0));
    }

    #[test]
    fn what_is_no_threshold_says_why() {
        for (text, expected) in [
            ("p99", "expected <"),
            ("p99=5ms", "expected <"),
            ("p99<5", "unit"),
            ("p99<ms", "no number"),
            ("p0<5ms", "no metric"),
            ("p100<5ms", "no metric"),
            ("speed>5", "no metric"),
            ("rps{phase=a}>5", "no filter"),
            ("p99{phase=a<5ms", "missing"),
            ("p99{color=red}<5ms", "none of phase"),
            ("rps>5ms", "unit"),
        ] {
            let error = Threshold::parse(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
