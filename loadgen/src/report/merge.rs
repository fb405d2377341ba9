//! Several runs as one: what went on at the same time on several machines. Counters and histograms
//! add; nothing is averaged.

use thiserror::Error;

use crate::check::Checked;
use crate::plan::{Load, Plan};
use crate::report::figures::Figures;
use crate::report::summary::LedgerSummary;
use crate::stats::Second;

/// Runs that are no parts of one.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum CannotMerge {
    #[error("nothing to merge")]
    Nothing,
    #[error("one run has the phases {first}, another {other}: they are no parts of one load")]
    Phases { first: String, other: String },
}

/// Adds runs up.
pub fn figures(all: Vec<Figures>) -> Result<Figures, CannotMerge> {
    let mut all = all.into_iter();
    let mut sum = all.next().ok_or(CannotMerge::Nothing)?;
    for other in all {
        check_phases(&sum.plan, &other.plan)?;
        sum.measured.join(other.measured);
        add_plan(&mut sum.plan, other.plan);
        sum.started_at = sum.started_at.min(other.started_at);
        sum.aborted = sum.aborted.or(other.aborted);
        sum.invalid_reasons.extend(other.invalid_reasons);
        sum.peak_memory_bytes = sum.peak_memory_bytes.max(other.peak_memory_bytes);
        sum.ledger = match (sum.ledger, other.ledger) {
            (Some(mut a), Some(b)) if a.sale == b.sale => {
                add_ledger(&mut a, b);
                Some(a)
            }
            (a, b) => a.or(b),
        };
        // What was judged was a part: they are judged anew for the sum.
        for judged in other.thresholds {
            if !sum.thresholds.iter().any(|t| t.threshold == judged.threshold) {
                sum.thresholds.push(judged);
            }
        }
        sum.check = match (sum.check, other.check) {
            (Some(mut a), Some(b)) => {
                add_check(&mut a, &b);
                Some(a)
            }
            // Of a part nothing is known: so it is of the sum.
            _ => None,
        };
    }
    Ok(sum)
}

/// Adds seconds up, by their number.
pub fn seconds(all: impl IntoIterator<Item = Vec<Second>>) -> Vec<Second> {
    let mut sum: Vec<Second> = Vec::new();
    for second in all.into_iter().flatten() {
        while sum.len() <= second.second as usize {
            sum.push(Second::new(sum.len() as u32));
        }
        sum[second.second as usize].add(&second);
    }
    sum
}

fn check_phases(first: &Plan, other: &Plan) -> Result<(), CannotMerge> {
    let (first, other) = (first.phase_names(), other.phase_names());
    if first == other {
        return Ok(());
    }
    Err(CannotMerge::Phases { first: first.join(", "), other: other.join(", ") })
}

fn add_plan(sum: &mut Plan, other: Plan) {
    sum.connections += other.connections;
    sum.threads += other.threads;
    if let (Load::Open { phases, .. }, Load::Open { phases: more, .. }) =
        (&mut sum.load, other.load)
    {
        for (phase, more) in phases.iter_mut().zip(more) {
            phase.from_rate += more.from_rate;
            phase.to_rate += more.to_rate;
        }
    }
    for target in other.targets {
        if !sum.targets.contains(&target) {
            sum.targets.push(target);
        }
    }
}

fn add_check(sum: &mut Checked, other: &Checked) {
    sum.found_over_api += other.found_over_api;
    sum.resolved_with_effect += other.resolved_with_effect;
    sum.resolved_without_effect += other.resolved_without_effect;
    sum.members += other.members;
    sum.members_with_known_balance += other.members_with_known_balance;
    sum.found_in_store = sum.found_in_store.zip(other.found_in_store).map(|(a, b)| a + b);
    // Both looked at the same units.
    sum.undersold = sum.undersold.max(other.undersold);
    sum.seconds = sum.seconds.max(other.seconds);
}

fn add_ledger(sum: &mut LedgerSummary, other: LedgerSummary) {
    sum.accepted += other.accepted;
    sum.units += other.units;
    sum.points += other.points;
    sum.confirmed += other.confirmed;
    sum.held += other.held;
    sum.released += other.released;
    sum.unknown += other.unknown;
    sum.finding_count += other.finding_count;
    for (kind, count) in other.finding_counts {
        *sum.finding_counts.entry(kind).or_default() += count;
    }
    sum.findings.extend(other.findings);
    for item in other.items {
        let Some(known) = sum.items.iter_mut().find(|i| i.sku == item.sku) else {
            sum.items.push(item);
            continue;
        };
        known.accepted += item.accepted;
        known.units += item.units;
        known.points += item.points;
        known.sold_out_answers += item.sold_out_answers;
        known.sold_out_finally_answers += item.sold_out_finally_answers;
    }
}
