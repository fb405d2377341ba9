//! The report that a person reads: one screen.

use std::fmt::{self, Write as _};

use crate::report::summary::{LatencyPair, Percentiles, Summary};

/// Renders a summary.
pub fn render(s: &Summary) -> String {
    let mut out = String::new();
    // A String takes whatever is written.
    let _ = write(&mut out, s);
    out
}

fn write(out: &mut String, s: &Summary) -> fmt::Result {
    for reason in &s.invalid_reasons {
        writeln!(out, "INVALID RUN: {reason}")?;
    }
    if s.interrupted {
        writeln!(out, "interrupted: the schedule was cut short")?;
    }
    let r = &s.requests;
    writeln!(
        out,
        "\n{} loop, {} connections, {:.1} s against {}  (seed {})",
        s.loop_kind,
        s.connections,
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
    for o in &s.outcomes {
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
        )?;
    }
    writeln!(
        out,
        "\n{:<26}{:>12}{:>11}{:>11}{:>11}{:>11}{:>11}",
        "latency", "requests", "p50", "p90", "p99", "p99.9", "max"
    )?;
    row(out, "response (from the plan)", &s.latency.response_us)?;
    row(out, "service (from the send)", &s.latency.service_us)?;
    if s.phases.len() > 1 {
        for p in &s.phases {
            row(out, &format!("  phase {}", p.name), &p.latency.response_us)?;
        }
    }
    if s.sections.len() > 1 {
        for section in &s.sections {
            let LatencyPair { response_us, .. } = &section.latency;
            let name = format!("  {} from {:.1} s", section.name, section.from_seconds);
            row(out, &name, response_us)?;
        }
    }
    for o in &s.outages {
        let recovery = o
            .seconds_to_recover
            .map_or("no answer since".into(), |t| format!("{t:.3} s to the next answer"));
        writeln!(
            out,
            "outage at {:.3} s: {} connections lost, {} requests unanswered on them; {recovery}",
            o.at_seconds, o.connections_lost, o.unanswered_at_loss
        )?;
    }
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
        for f in l.findings.iter().take(8) {
            writeln!(out, "  {}: {}", f.kind, f.text)?;
        }
    }
    for t in &s.thresholds {
        let verdict = if t.passed { "passed" } else { "MISSED" };
        let value = t.value.map_or("nothing measured".into(), |v| format!("{v:.4}"));
        writeln!(out, "threshold {verdict}: {} (it was {value})", t.threshold)?;
    }
    let g = &s.generator;
    writeln!(
        out,
        "generator lag p99 {}, busiest worker {:.0} % of its processor, {:.2} µs per attempt",
        time(&g.lag_us, g.lag_us.p99),
        g.busiest_worker * 100.0,
        g.cpu_us_per_attempt
    )
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
