//! `report.html`: one file without scripts and without anything to fetch; curves are inline SVG.

use std::fmt::{self, Write as _};

use crate::report::figures::Figures;
use crate::report::summary::{Percentiles, Sum, Summary, outcome_name};
use crate::report::text::{grouped, microseconds};
use crate::run::Outcomes;
use crate::stats::{Latency, SecondRow};

const STYLE: &str = "\
:root{color-scheme:light dark;--line:#8884;--blue:#2a6fdb;--green:#1a9850;--orange:#e08214;\
--red:#d73027;--grey:#888}\
body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:0 auto;padding:1rem}\
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2rem}\
svg{width:100%;height:auto;display:block}svg text{font-size:11px;fill:currentColor}\
.grid{stroke:var(--line)}.mark{stroke:var(--grey);stroke-dasharray:4 3}\
polyline{fill:none;stroke-width:1.8}\
.wide{overflow-x:auto}table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}\
td,th{padding:.2rem .6rem;text-align:right;border-bottom:1px solid var(--line);white-space:nowrap}\
td:first-child,th:first-child{text-align:left}\
.bad{color:var(--red);font-weight:600}.good{color:var(--green);font-weight:600}\
.key span{display:inline-block;margin-right:1rem}.key i{display:inline-block;width:1.2em;\
height:.25em;vertical-align:middle;margin-right:.4em}\
@media screen and (max-width:600px){.chart{overflow-x:auto}.chart svg{min-width:640px}\
svg text{font-size:14px}}\
@media print{body{max-width:none;font-size:11px}section{break-inside:avoid}}";

const COLOURS: [&str; 5] =
    ["var(--blue)", "var(--green)", "var(--orange)", "var(--red)", "var(--grey)"];
const WIDTH: f64 = 800.0;
const HEIGHT: f64 = 240.0;
const LEFT: f64 = 72.0;
const BOTTOM: f64 = 22.0;
const TOP: f64 = 8.0;

/// A named curve of points.
struct Curve {
    name: String,
    points: Vec<(f64, f64)>,
}

/// The page.
pub fn render(run: &Outcomes, s: &Summary, baseline: Option<&Figures>) -> String {
    let mut out = String::new();
    // A String takes whatever is written.
    let _ = write(&mut out, run, s, baseline);
    out
}

fn write(out: &mut String, run: &Outcomes, s: &Summary, baseline: Option<&Figures>) -> fmt::Result {
    let targets = escape(&s.targets.join(", "));
    writeln!(
        out,
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
         <title>onrush-load: {targets}</title><style>{STYLE}</style></head><body>\
         <h1>Load on {targets}</h1>"
    )?;
    verdict(out, s)?;
    let r = &s.requests;
    writeln!(
        out,
        "<p>{}, {} loop, {} connections, {:.1} s, seed {}. {} planned, {} answered \
         ({:.0}/s), {} retries, {} unanswered, {} unsent; {:.2} % errors.</p>",
        escape(&s.started_at),
        s.loop_kind,
        s.connections,
        s.total_seconds,
        s.seed,
        grouped(r.planned),
        grouped(r.answered),
        s.answered_per_second,
        grouped(r.retries),
        grouped(r.unanswered),
        grouped(r.unsent),
        s.error_rate * 100.0
    )?;
    let marks = marks(s);
    section(out, "Requests per second", &rates(&run.seconds), &marks, &Axes::linear(number))?;
    section(out, "Response time, by second", &latencies(&run.seconds), &marks, &Axes::times())?;
    let percentiles = Axes { x: tail_label, is_tail: true, ..Axes::times() };
    section(out, "Response time, by percentile", &tails(run, baseline), &[], &percentiles)?;
    if let Some(baseline) = baseline {
        against(out, s, baseline)?;
    }
    tables(out, s)?;
    writeln!(out, "<p>{}</p></body></html>", escape(&s.tool))
}

fn verdict(out: &mut String, s: &Summary) -> fmt::Result {
    for reason in &s.invalid_reasons {
        writeln!(out, "<p class=\"bad\">Invalid run: {}</p>", escape(reason))?;
    }
    if let Some(reason) = &s.aborted {
        writeln!(out, "<p class=\"bad\">Ended early: {}</p>", escape(reason))?;
    }
    if s.valid {
        writeln!(out, "<p class=\"good\">The run is valid.</p>")?;
    }
    for t in &s.thresholds {
        let (class, word) = if t.passed { ("good", "passed") } else { ("bad", "missed") };
        writeln!(out, "<p class=\"{class}\">Threshold {} {word}</p>", escape(&t.threshold))?;
    }
    let Some(l) = &s.ledger else { return Ok(()) };
    writeln!(
        out,
        "<p>Sale {}: {} redemptions accepted, {} units, {} points; {} unknown.</p>",
        escape(&l.sale),
        grouped(l.accepted),
        grouped(l.units),
        grouped(l.points),
        grouped(l.unknown)
    )?;
    if l.finding_count > 0 {
        writeln!(
            out,
            "<p class=\"bad\">The ledger is violated: {} findings</p><ul>",
            l.finding_count
        )?;
        for f in l.findings.iter().take(30) {
            writeln!(out, "<li>{}: {}</li>", f.kind, escape(&f.text))?;
        }
        writeln!(out, "</ul>")?;
    } else if s.check.is_some() {
        writeln!(out, "<p class=\"good\">The ledger adds up.</p>")?;
    }
    Ok(())
}

/// Where phases and sections begin.
fn marks(s: &Summary) -> Vec<(f64, String)> {
    let mut begins = 0.0;
    let mut marks = Vec::new();
    for p in &s.phases {
        if s.phases.len() > 1 {
            marks.push((begins, p.name.clone()));
        }
        begins += p.seconds;
    }
    let sections = s.sections.iter().skip(1);
    marks.extend(sections.map(|section| (section.from_seconds, section.name.clone())));
    marks
}

fn by_second(seconds: &[SecondRow], name: &str, of: impl Fn(&SecondRow) -> u64) -> Curve {
    let points = seconds.iter().map(|s| (f64::from(s.second), of(s) as f64)).collect();
    Curve { name: name.into(), points }
}

fn rates(seconds: &[SecondRow]) -> Vec<Curve> {
    vec![
        by_second(seconds, "planned", |s| s.planned),
        by_second(seconds, "good", |s| s.good),
        by_second(seconds, "refused", |s| s.refused),
        by_second(seconds, "errors", |s| s.errors),
        by_second(seconds, "retries", |s| s.retries),
    ]
}

fn latencies(seconds: &[SecondRow]) -> Vec<Curve> {
    vec![
        by_second(seconds, "p50", |s| s.p50),
        by_second(seconds, "p90", |s| s.p90),
        by_second(seconds, "p99", |s| s.p99),
        by_second(seconds, "max", |s| s.max),
    ]
}

/// By the number of nines: x = log10(1 / (1 - quantile)).
fn tails(run: &Outcomes, baseline: Option<&Figures>) -> Vec<Curve> {
    let all = Sum::of(&run.stats.outcomes, |_| true);
    let mut curves = vec![tail("all", &all.response)];
    let mut outcomes: Vec<_> = run.stats.outcomes.iter().filter(|o| o.requests > 0).collect();
    outcomes.sort_by_key(|o| std::cmp::Reverse(o.requests));
    if let Some(baseline) = baseline {
        curves
            .push(tail("baseline", &Sum::of(&baseline.measured.stats.outcomes, |_| true).response));
    }
    if outcomes.len() > 1 {
        for o in outcomes.into_iter().take(COLOURS.len() - curves.len()) {
            curves.push(tail(&outcome_name(&o.key), &Sum::of([o], |_| true).response));
        }
    }
    curves
}

fn tail(name: &str, h: &Latency) -> Curve {
    let nines = (h.len().max(1) as f64).log10();
    let point = |i: i32| {
        let x = f64::from(i) / 40.0 * nines;
        (x, h.value_at_quantile(1.0 - 10f64.powf(-x)) as f64)
    };
    Curve { name: name.into(), points: (0..=40).map(point).collect() }
}

/// How values are laid out and written.
struct Axes {
    is_log: bool,
    is_tail: bool,
    x: fn(f64) -> String,
    y: fn(f64) -> String,
}

impl Axes {
    const fn linear(y: fn(f64) -> String) -> Self {
        Self { is_log: false, is_tail: false, x: seconds_label, y }
    }

    const fn times() -> Self {
        Self { is_log: true, is_tail: false, x: seconds_label, y: time_label }
    }
}

fn number(v: f64) -> String {
    grouped(v.round() as u64)
}

fn time_label(us: f64) -> String {
    microseconds(us.round() as u64)
}

fn seconds_label(v: f64) -> String {
    format!("{v:.0} s")
}

fn tail_label(nines: f64) -> String {
    match nines.round() as i32 {
        0 => "0 %".into(),
        1 => "90 %".into(),
        2 => "99 %".into(),
        n => format!("99.{} %", "9".repeat(n as usize - 2)),
    }
}

fn section(
    out: &mut String,
    title: &str,
    curves: &[Curve],
    marks: &[(f64, String)],
    axes: &Axes,
) -> fmt::Result {
    writeln!(out, "<section><h2>{title}</h2><p class=\"key\">")?;
    for (curve, colour) in curves.iter().zip(COLOURS) {
        let name = escape(&curve.name);
        write!(out, "<span><i style=\"background:{colour}\"></i>{name}</span>")?;
    }
    writeln!(
        out,
        "</p><div class=\"chart\">\
         <svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{title}\">"
    )?;
    let points = || curves.iter().flat_map(|c| &c.points);
    let x_max = points().map(|p| p.0).fold(1.0, f64::max);
    let y_max = points().map(|p| p.1).fold(1.0, f64::max);
    let y_min = points().map(|p| p.1).filter(|y| *y > 0.0).fold(y_max, f64::min);
    let (low, high) = if axes.is_log {
        (y_min.log10().floor(), y_max.log10().ceil().max(y_min.log10().floor() + 1.0))
    } else {
        (0.0, nice(y_max))
    };
    let scale = |y: f64| if axes.is_log { y.max(10f64.powf(low)).log10() } else { y };
    let at_x = |x: f64| LEFT + x / x_max * (WIDTH - LEFT - 8.0);
    let at_y = |y: f64| TOP + (1.0 - (scale(y) - low) / (high - low)) * (HEIGHT - TOP - BOTTOM);
    let rows = if axes.is_log { (high - low) as i32 } else { 4 };
    for i in 0..=rows {
        let step = low + (high - low) * f64::from(i) / f64::from(rows);
        let value = if axes.is_log { 10f64.powf(step) } else { step };
        let (y, label) = (at_y(value), (axes.y)(value));
        writeln!(
            out,
            "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{WIDTH}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>",
            LEFT - 5.0,
            y + 4.0
        )?;
    }
    let columns = if axes.is_tail { x_max.floor() as i32 } else { 5 };
    for i in 0..=columns {
        let value = if axes.is_tail { f64::from(i) } else { x_max * f64::from(i) / 5.0 };
        let anchor = if i == columns && !axes.is_tail { "end" } else { "middle" };
        writeln!(
            out,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\">{}</text>",
            at_x(value),
            HEIGHT - 5.0,
            (axes.x)(value)
        )?;
    }
    for (at, name) in marks.iter().filter(|(at, _)| *at <= x_max) {
        let x = at_x(*at);
        writeln!(
            out,
            "<line class=\"mark\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{TOP}\" y2=\"{:.1}\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            HEIGHT - BOTTOM,
            x + 3.0,
            TOP + 10.0,
            escape(name)
        )?;
    }
    for (curve, colour) in curves.iter().zip(COLOURS) {
        write!(out, "<polyline style=\"stroke:{colour}\" points=\"")?;
        for (x, y) in &curve.points {
            write!(out, "{:.1},{:.1} ", at_x(*x), at_y(*y))?;
        }
        writeln!(out, "\"/>")?;
    }
    writeln!(out, "</svg></div></section>")
}

/// The next of 1, 2, 4, 6, 8 times a power of ten.
fn nice(value: f64) -> f64 {
    let power = 10f64.powf(value.log10().floor());
    [1.0, 2.0, 4.0, 6.0, 8.0, 10.0]
        .into_iter()
        .map(|f| f * power)
        .find(|n| *n >= value)
        .unwrap_or(value)
}

fn tables(out: &mut String, s: &Summary) -> fmt::Result {
    let head = "<th>requests</th><th>p50</th><th>p90</th><th>p99</th><th>p99.9</th><th>max</th>";
    writeln!(
        out,
        "<section><h2>Outcomes</h2><div class=\"wide\"><table><tr><th>outcome</th>{head}</tr>"
    )?;
    for o in &s.outcomes {
        row(out, &o.outcome, &o.latency.response_us)?;
    }
    row(out, "all", &s.latency.response_us)?;
    row(out, "all, from the send", &s.latency.service_us)?;
    writeln!(out, "</table></div></section>")?;
    writeln!(
        out,
        "<section><h2>Phases and sections</h2><div class=\"wide\"><table><tr><th></th>{head}</tr>"
    )?;
    for p in &s.phases {
        row(out, &format!("phase {}", p.name), &p.latency.response_us)?;
    }
    for section in &s.sections {
        row(out, &section.name, &section.latency.response_us)?;
    }
    writeln!(out, "</table></div></section>")
}

/// The same percentiles, and what they were.
fn against(out: &mut String, s: &Summary, baseline: &Figures) -> fmt::Result {
    let (_, before) = baseline.show(Vec::new());
    let head = "<th>requests</th><th>p50</th><th>p90</th><th>p99</th><th>p99.9</th><th>max</th>";
    writeln!(
        out,
        "<section><h2>Against the baseline</h2><div class=\"wide\"><table><tr><th></th>{head}</tr>"
    )?;
    row(out, "now", &s.latency.response_us)?;
    row(out, &format!("baseline of {}", before.started_at), &before.latency.response_us)?;
    writeln!(out, "</table></div></section>")
}

fn row(out: &mut String, name: &str, p: &Percentiles) -> fmt::Result {
    write!(out, "<tr><td>{}</td><td>{}</td>", escape(name), grouped(p.count))?;
    for v in [p.p50, p.p90, p.p99, p.p99_9, p.max] {
        let text = if p.count == 0 { "-".into() } else { microseconds(v) };
        write!(out, "<td>{text}</td>")?;
    }
    writeln!(out, "</tr>")
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
