//! `summary.json`: a run's figures for machines.
//!
//! The format is versioned and described by `loadgen/summary.schema.json`; a field is added freely
//! and changed or dropped only with a new version.

use serde::{Deserialize, Serialize};

use crate::check::{CheckError, Checked};
use crate::plan::{Load, Plan, Work};
use crate::report::threshold::Judgement;
use crate::report::verdict;
use crate::run::Outcomes;
use crate::stats::{self, Cell, Class, Counters, Latency, Outcome, OutcomeKey};
use crate::timeline::SectionKind;
use crate::work::accepted::{Finding, State};

pub const VERSION: u32 = 1;

#[derive(Debug, Serialize)]
pub struct Summary {
    pub format: &'static str,
    pub version: u32,
    pub tool: String,
    /// RFC 3339.
    pub started_at: String,
    pub targets: Vec<String>,
    pub workload: &'static str,
    pub protocol: &'static str,
    pub loop_kind: &'static str,
    pub seed: u64,
    pub threads: usize,
    pub connections: usize,
    pub pipeline: usize,
    pub valid: bool,
    pub invalid_reasons: Vec<String>,
    pub interrupted: bool,
    /// Why the schedule was ended early; missing where it was not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub aborted: Option<String>,
    pub planned_seconds: f64,
    pub total_seconds: f64,
    pub requests: Counters,
    pub answered_per_second: f64,
    pub error_rate: f64,
    pub outcomes: Vec<OutcomeSummary>,
    pub latency: LatencyPair,
    pub phases: Vec<PhaseSummary>,
    pub sections: Vec<SectionSummary>,
    pub outages: Vec<OutageSummary>,
    pub generator: Generator,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ledger: Option<LedgerSummary>,
    /// What the ledger check looked at; missing without one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub check: Option<Checked>,
    pub thresholds: Vec<Judgement>,
}

#[derive(Debug, Serialize)]
pub struct OutcomeSummary {
    /// `201`, `409 sold-out`, `reset`.
    pub outcome: String,
    pub status: Option<u16>,
    pub code: Option<String>,
    pub failure: Option<&'static str>,
    pub class: Class,
    /// Requests that ended so for good, and attempts that did, retried ones included.
    pub requests: u64,
    pub attempts: u64,
    pub latency: LatencyPair,
}

/// Units: microseconds.
#[derive(Debug, Serialize)]
pub struct LatencyPair {
    /// From the planned moment, over all attempts.
    pub response_us: Percentiles,
    /// From the sending of an attempt.
    pub service_us: Percentiles,
}

/// Units: microseconds.
#[derive(Clone, Debug, Serialize)]
pub struct Percentiles {
    pub count: u64,
    pub min: u64,
    pub mean: f64,
    pub p50: u64,
    pub p90: u64,
    pub p95: u64,
    pub p99: u64,
    pub p99_9: u64,
    pub p99_99: u64,
    pub max: u64,
}

#[derive(Debug, Serialize)]
pub struct PhaseSummary {
    pub name: String,
    pub seconds: f64,
    pub from_rate: f64,
    pub to_rate: f64,
    pub requests: u64,
    pub errors: u64,
    pub latency: LatencyPair,
}

/// A stretch of the run between marks and outages.
#[derive(Debug, Serialize)]
pub struct SectionSummary {
    pub name: String,
    pub kind: SectionKind,
    pub from_seconds: f64,
    pub to_seconds: f64,
    pub requests: u64,
    pub errors: u64,
    pub latency: LatencyPair,
}

#[derive(Debug, Serialize)]
pub struct OutageSummary {
    pub at_seconds: f64,
    /// From the first lost connection to the first answer over a new one; null: none came.
    pub seconds_to_recover: Option<f64>,
    pub connections_lost: u64,
    pub unanswered_at_loss: u64,
}

#[derive(Debug, Serialize)]
pub struct Generator {
    /// How late it sent though a connection was free.
    pub lag_us: Percentiles,
    /// Processor time over run time of the busiest worker.
    pub busiest_worker: f64,
    /// Requests that went out more than 5 ms late in seconds in which a worker had no time left.
    pub late_while_busy: u64,
    pub cpu_seconds: f64,
    pub cpu_us_per_attempt: f64,
    /// The most memory that a process had resident: of a run with agents the one that conducts it.
    pub peak_memory_bytes: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LedgerSummary {
    pub sale: String,
    pub accepted: u64,
    pub units: u64,
    pub points: u64,
    pub confirmed: u64,
    pub held: u64,
    pub released: u64,
    /// Requests that may have had an effect: their answer was lost, and no retry brought one.
    pub unknown: u64,
    pub items: Vec<ItemSummary>,
    pub finding_count: u64,
    pub finding_counts: std::collections::BTreeMap<String, u64>,
    pub findings: Vec<Finding>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ItemSummary {
    pub sku: String,
    pub accepted: u64,
    pub units: u64,
    pub points: u64,
    pub sold_out_answers: u64,
    pub sold_out_finally_answers: u64,
}

impl Percentiles {
    pub fn of(h: &Latency) -> Self {
        Self {
            count: h.len(),
            min: if h.is_empty() { 0 } else { h.min() },
            mean: if h.is_empty() { 0.0 } else { (h.mean() * 10.0).round() / 10.0 },
            p50: h.value_at_quantile(0.5),
            p90: h.value_at_quantile(0.9),
            p95: h.value_at_quantile(0.95),
            p99: h.value_at_quantile(0.99),
            p99_9: h.value_at_quantile(0.999),
            p99_99: h.value_at_quantile(0.9999),
            max: if h.is_empty() { 0 } else { h.max() },
        }
    }
}

/// Adds up the cells that are wanted: response and service time, requests, errors.
pub struct Sum {
    pub response: Latency,
    pub service: Latency,
    pub errors: u64,
}

impl Sum {
    pub fn of<'a>(
        outcomes: impl IntoIterator<Item = &'a Outcome>,
        wanted: impl Fn(&Cell) -> bool,
    ) -> Self {
        let mut sum = Self { response: stats::latency(), service: stats::latency(), errors: 0 };
        for o in outcomes {
            for c in o.cells.iter().filter(|c| wanted(c)) {
                stats::add(&mut sum.response, &c.response);
                stats::add(&mut sum.service, &c.service);
                if o.class == Class::Error {
                    sum.errors += c.response.len();
                }
            }
        }
        sum
    }

    pub fn pair(&self) -> LatencyPair {
        LatencyPair {
            response_us: Percentiles::of(&self.response),
            service_us: Percentiles::of(&self.service),
        }
    }
}

/// An outcome as people write it.
pub fn outcome_name(key: &OutcomeKey) -> String {
    match key {
        OutcomeKey::Answered { status, code } if code.is_empty() => status.to_string(),
        OutcomeKey::Answered { status, code } => format!("{status} {code}"),
        OutcomeKey::Failed(f) => f.name().to_owned(),
    }
}

impl Summary {
    pub fn of(run: &Outcomes, checked: Option<Result<Checked, CheckError>>) -> Self {
        let plan = &*run.plan;
        let all = Sum::of(&run.stats.outcomes, |_| true);
        let counters = run.stats.counters;
        let ended = all.response.len();
        let total_seconds = run.ended.saturating_sub(run.zero) as f64 / 1e9;
        let mut invalid_reasons = verdict::invalid_reasons(run);
        let check = checked.and_then(|checked| {
            checked
                .map_err(|e| invalid_reasons.push(format!("the ledger could not be checked: {e}")))
                .ok()
        });
        Self {
            format: "onrush-load/summary",
            version: VERSION,
            tool: concat!("onrush-load ", env!("CARGO_PKG_VERSION")).into(),
            started_at: run.started_at.clone(),
            targets: plan.targets.iter().map(|t| t.url.clone()).collect(),
            workload: match plan.work {
                Work::Http(_) => "http",
                Work::Redeem(_) => "redeem",
            },
            protocol: if plan.http2 { "HTTP/2" } else { "HTTP/1.1" },
            loop_kind: match plan.load {
                Load::Open { .. } => "open",
                Load::Closed { .. } => "closed",
            },
            seed: plan.seed,
            threads: plan.threads,
            connections: plan.connections,
            pipeline: plan.pipeline,
            valid: invalid_reasons.is_empty(),
            invalid_reasons,
            interrupted: run.interrupted,
            aborted: run.aborted.clone(),
            planned_seconds: planned_seconds(plan),
            total_seconds,
            requests: counters,
            answered_per_second: answered_per_second(run),
            error_rate: if ended == 0 { 0.0 } else { all.errors as f64 / ended as f64 },
            outcomes: outcomes(run),
            latency: all.pair(),
            phases: phases(run),
            sections: sections(run),
            outages: outages(run),
            generator: Generator {
                lag_us: Percentiles::of(&run.stats.lag),
                busiest_worker: run.stats.busy_share,
                late_while_busy: run.stats.late_while_pressed,
                cpu_seconds: run.stats.cpu as f64 / 1e9,
                cpu_us_per_attempt: run.stats.cpu as f64 / 1e3 / counters.attempts.max(1) as f64,
                peak_memory_bytes: peak_memory(),
            },
            ledger: ledger(run),
            check,
            thresholds: Vec::new(),
        }
    }
}

fn planned_seconds(plan: &Plan) -> f64 {
    match &plan.load {
        Load::Open { phases, .. } => crate::schedule::total_seconds(phases),
        Load::Closed { nanoseconds } => *nanoseconds as f64 / 1e9,
    }
}

/// As the kernel counts it; 0 where it does not say.
fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
    let kilobytes = line.and_then(|l| l.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kilobytes.unwrap_or(0) * 1024
}

/// Over the planned time, or what it took if that was longer.
fn answered_per_second(run: &Outcomes) -> f64 {
    let took = run.ended.saturating_sub(run.zero) as f64 / 1e9;
    let seconds = if run.interrupted { took } else { took.max(planned_seconds(&run.plan)) };
    run.stats.counters.answered as f64 / seconds.max(1e-9)
}

fn outcomes(run: &Outcomes) -> Vec<OutcomeSummary> {
    let mut all: Vec<_> = run.stats.outcomes.iter().collect();
    all.sort_by_key(|o| (std::cmp::Reverse(o.requests), o.key.clone()));
    all.into_iter()
        .map(|o| {
            let (status, code, failure) = match &o.key {
                OutcomeKey::Answered { status, code } => {
                    (Some(*status), (!code.is_empty()).then(|| code.clone()), None)
                }
                OutcomeKey::Failed(f) => (None, None, Some(f.name())),
            };
            OutcomeSummary {
                outcome: outcome_name(&o.key),
                status,
                code,
                failure,
                class: o.class,
                requests: o.requests,
                attempts: o.attempts,
                latency: Sum::of([o], |_| true).pair(),
            }
        })
        .collect()
}

fn phases(run: &Outcomes) -> Vec<PhaseSummary> {
    let Load::Open { phases, .. } = &run.plan.load else { return Vec::new() };
    let summary = |(i, p): (usize, &crate::schedule::Phase)| {
        let sum = Sum::of(&run.stats.outcomes, |c| c.phase as usize == i);
        PhaseSummary {
            name: p.name.clone(),
            seconds: p.seconds,
            from_rate: p.from_rate,
            to_rate: p.to_rate,
            requests: sum.response.len(),
            errors: sum.errors,
            latency: sum.pair(),
        }
    };
    phases.iter().enumerate().map(summary).collect()
}

fn sections(run: &Outcomes) -> Vec<SectionSummary> {
    let since_zero = |at: u64| at.saturating_sub(run.zero) as f64 / 1e9;
    let ends = run.sections.iter().skip(1).map(|s| s.from).chain([run.ended]);
    run.sections
        .iter()
        .zip(ends)
        .enumerate()
        .map(|(i, (s, end))| {
            let sum = Sum::of(&run.stats.outcomes, |c| c.section as usize == i);
            SectionSummary {
                name: s.name.clone(),
                kind: s.kind,
                from_seconds: since_zero(s.from),
                to_seconds: since_zero(end),
                requests: sum.response.len(),
                errors: sum.errors,
                latency: sum.pair(),
            }
        })
        .collect()
}

fn outages(run: &Outcomes) -> Vec<OutageSummary> {
    let summary = |o: &crate::timeline::Outage| OutageSummary {
        at_seconds: o.at.saturating_sub(run.zero) as f64 / 1e9,
        seconds_to_recover: o.recovered.map(|r| r.saturating_sub(o.at) as f64 / 1e9),
        connections_lost: o.connections_lost,
        unanswered_at_loss: o.unanswered,
    };
    run.outages.iter().map(summary).collect()
}

fn ledger(run: &Outcomes) -> Option<LedgerSummary> {
    let Work::Redeem(work) = &run.plan.work else { return None };
    let l = &run.ledger;
    let in_state = |s: State| l.accepted.values().filter(|a| a.state == s).count() as u64;
    let total = |f: fn(&crate::work::accepted::ItemCount) -> u64| l.by_item.values().map(f).sum();
    let item = |(i, item): (usize, &crate::plan::Item)| {
        let count = l.by_item.get(&i).copied().unwrap_or_default();
        ItemSummary {
            sku: item.sku.clone(),
            accepted: count.accepted,
            units: count.units,
            points: count.points,
            sold_out_answers: count.sold_out,
            sold_out_finally_answers: count.sold_out_finally,
        }
    };
    Some(LedgerSummary {
        sale: work.sale.clone(),
        accepted: total(|c| c.accepted),
        units: total(|c| c.units),
        points: total(|c| c.points),
        confirmed: in_state(State::Confirmed),
        held: in_state(State::Held),
        released: in_state(State::Released),
        unknown: l.unknown.len() as u64,
        items: work.items.iter().enumerate().map(item).collect(),
        finding_count: l.findings.total(),
        finding_counts: l.findings.counts().iter().map(|(k, n)| ((*k).into(), *n)).collect(),
        findings: l.findings.examples().to_vec(),
    })
}
