//! The report that a person reads: one screen.

use std::fmt::{self, Write as _};

use crate::report::summary::{LatencyPair, Percentiles, Summary};

/// A report fits a screen: no more than so many lines of each.
const MOST_REASONS: usize = 4;
const MOST_OUTCOMES: usize = 8;
const MOST_PHASES: usize = 6;
const MOST_SECTIONS: usize = 5;
const MOST_OUTAGES: usize = 3;
const MOST_FINDINGS: usize = 5;
const MOST_THRESHOLDS: usize = 5;

/// What is said of a closed loop before anything else.
pub const CLOSED_LOOP: &str =
    "closed loop: it cannot see the waiting that a slow answer causes for others";

/// Renders a summary.
pub fn render(s: &Summary) -> String {
    let mut out = String::new();
    // A String takes whatever is written.
    let _ = write(&mut out, s);
    out
}

fn write(out: &mut String, s: &Summary) -> fmt::Result {
    if s.loop_kind == "closed" {
        writeln!(out, "{CLOSED_LOOP}")?;
    }
    capped(&s.invalid_reasons, MOST_REASONS, out, |out, reason| {
        writeln!(out, "INVALID RUN: {reason}")
    })?;
    if let Some(reason) = &s.aborted {
        writeln!(out, "ABORTED: {reason}")?;
    } else if s.interrupted {
        writeln!(out, "interrupted: the schedule was cut short")?;
    }
    let r = &s.requests;
    writeln!(
        out,
        "\n{} loop, {} connections, {}, {:.1} s against {}  (seed {})",
        s.loop_kind,
        s.connections,
        s.protocol,
        s.total_seconds,
        s.targets.join(", "),
        s.seed
    )?;
    write!(out, "requests  {} planned", grouped(r.planned))?;
    if r.follow_ups > 0 {
        write!(
            out,
            " + {} that followed ({} duplicates)",
            grouped(r.follow_ups),
            grouped(r.duplicates)
        )?;
    }
    writeln!(
        out,
        ", {} answered, {} unanswered, {} unsent",
        grouped(r.answered),
        grouped(r.unanswered),
        grouped(r.unsent)
    )?;
    writeln!(
        out,
        "attempts  {} ({} again with the same key), {:.0} answers/s, {:.2} % errors\n",
        grouped(r.attempts),
        grouped(r.retries),
        s.answered_per_second,
        s.error_rate * 100.0
    )?;
    writeln!(
        out,
        "{:<26}{:>12}{:>12}{:>11}{:>11}{:>11}",
        "outcome", "requests", "attempts", "p50", "p99", "max"
    )?;
    capped(&s.outcomes, MOST_OUTCOMES, out, |out, o| {
        let p = &o.latency.response_us;
        writeln!(
            out,
            "{:<26}{:>12}{:>12}{:>11}{:>11}{:>11}",
            o.outcome,
            grouped(o.requests),
            grouped(o.attempts),
            time(p, p.p50),
            time(p, p.p99),
            time(p, p.max)
        )
    })?;
    writeln!(
        out,
        "\n{:<26}{:>12}{:>11}{:>11}{:>11}{:>11}{:>11}",
        "latency", "requests", "p50", "p90", "p99", "p99.9", "max"
    )?;
    row(out, "response (from the plan)", &s.latency.response_us)?;
    row(out, "service (from the send)", &s.latency.service_us)?;
    if s.phases.len() > 1 {
        capped(&s.phases, MOST_PHASES, out, |out, p| {
            row(out, &format!("  phase {}", p.name), &p.latency.response_us)
        })?;
    }
    if s.sections.len() > 1 {
        capped(&s.sections, MOST_SECTIONS, out, |out, section| {
            let LatencyPair { response_us, .. } = &section.latency;
            let name = format!("  {} from {:.1} s", section.name, section.from_seconds);
            row(out, &name, response_us)
        })?;
    }
    capped(&s.outages, MOST_OUTAGES, out, |out, o| {
        let recovery = o
            .seconds_to_recover
            .map_or("no answer since".into(), |t| format!("{t:.3} s to the next answer"));
        writeln!(
            out,
            "outage at {:.3} s: {} connections lost, {} requests unanswered on them; {recovery}",
            o.at_seconds, o.connections_lost, o.unanswered_at_loss
        )
    })?;
    if let Some(l) = &s.ledger {
        writeln!(
            out,
            "\nledger    {} accepted in sale {}: {} units, {} points; {} unknown; {} findings",
            grouped(l.accepted),
            l.sale,
            grouped(l.units),
            grouped(l.points),
            grouped(l.unknown),
            l.finding_count
        )?;
        if let Some(c) = &s.check {
            writeln!(
                out,
                "check     {} found over the API, {} in the store; {} unknown had an effect, \
                 {} had none; points of {} members ({} with their balance before)",
                grouped(c.found_over_api),
                c.found_in_store.map_or("none looked for".into(), grouped),
                grouped(c.resolved_with_effect),
                grouped(c.resolved_without_effect),
                grouped(c.members),
                grouped(c.members_with_known_balance)
            )?;
            let verdict = if l.finding_count == 0 { "nothing is wrong" } else { "VIOLATED" };
            writeln!(out, "          {verdict}")?;
        }
        capped(&l.findings, MOST_FINDINGS, out, |out, f| {
            writeln!(out, "  {}: {}", f.kind, f.text)
        })?;
    }
    // Those that were missed go first, whatever else has to be left out.
    let mut thresholds: Vec<_> = s.thresholds.iter().collect();
    thresholds.sort_by_key(|t| t.passed);
    capped(&thresholds, MOST_THRESHOLDS, out, |out, t| {
        let verdict = if t.passed { "passed" } else { "MISSED" };
        let value = t.value.map_or("nothing measured".into(), |v| format!("{v:.4}"));
        writeln!(out, "threshold {verdict}: {} (it was {value})", t.threshold)
    })?;
    let g = &s.generator;
    writeln!(
        out,
        "generator lag p99 {}, busiest worker {:.0} % of its processor, {:.2} µs per attempt, \
         {} MB at most",
        time(&g.lag_us, g.lag_us.p99),
        g.busiest_worker * 100.0,
        g.cpu_us_per_attempt,
        g.peak_memory_bytes >> 20
    )
}

/// Writes the first ones, and how many there are more.
fn capped<T>(
    all: &[T],
    most: usize,
    out: &mut String,
    mut write: impl FnMut(&mut String, &T) -> fmt::Result,
) -> fmt::Result {
    for one in &all[..all.len().min(most)] {
        write(out, one)?;
    }
    if all.len() > most {
        writeln!(out, "  … and {} more: --json and summary.json have all", all.len() - most)?;
    }
    Ok(())
}

fn row(out: &mut String, name: &str, p: &Percentiles) -> fmt::Result {
    write!(out, "{name:<26}{:>12}", grouped(p.count))?;
    for value in [p.p50, p.p90, p.p99, p.p99_9, p.max] {
        write!(out, "{:>11}", time(p, value))?;
    }
    writeln!(out)
}

fn time(p: &Percentiles, us: u64) -> String {
    if p.count == 0 { "-".into() } else { microseconds(us) }
}

/// Three digits and a unit.
pub fn microseconds(us: u64) -> String {
    match us {
        0..1_000 => format!("{us} µs"),
        1_000..10_000 => format!("{:.2} ms", us as f64 / 1e3),
        10_000..100_000 => format!("{:.1} ms", us as f64 / 1e3),
        100_000..1_000_000 => format!("{:.0} ms", us as f64 / 1e3),
        _ => format!("{:.2} s", us as f64 / 1e6),
    }
}

/// 1234567 as `1,234,567`.
pub fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_read_well() {
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(999), "999");
        assert_eq!(grouped(1_234_567), "1,234,567");
        assert_eq!(microseconds(999), "999 µs");
        assert_eq!(microseconds(1_500), "1.50 ms");
        assert_eq!(microseconds(250_000), "250 ms");
        assert_eq!(microseconds(2_500_000), "2.50 s");
    }
}
