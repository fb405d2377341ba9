//! What the screen shows, and how: rates, latencies, outcomes, and the heat strip below them.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Cell, Paragraph, Row, Sparkline, Table};

use crate::plan::{Load, Plan};
use crate::report::summary::{Percentiles, Sum, outcome_name};
use crate::report::text::{grouped, microseconds};
use crate::schedule;
use crate::stats::{self, Class, Latency, Second, Stats};
use crate::tui::heat::{self, Column, Heat};

/// Columns that are kept: more than a terminal has.
const MOST_COLUMNS: usize = 1000;

/// The run so far.
#[derive(Debug)]
pub struct View {
    targets: String,
    planned_seconds: f64,
    /// Names, and the second at which each ends.
    phases: Vec<(String, f64)>,
    is_closed: bool,
    /// Of the seconds that are over, the oldest first.
    columns: Vec<Column>,
    rates: [Vec<u64>; 3],
    seconds: u32,
    last: Option<Percentiles>,
    response: Latency,
    look: Option<Look>,
    /// The schedule was ended; what is out is waited for.
    pub is_ending: bool,
}

/// The figures over the whole run, as the workers last handed them on.
#[derive(Debug)]
struct Look {
    service: Percentiles,
    lag: Percentiles,
    outcomes: Vec<OutcomeRow>,
    totals: String,
}

#[derive(Debug)]
struct OutcomeRow {
    name: String,
    class: Class,
    requests: u64,
    attempts: u64,
    response: Percentiles,
}

impl View {
    pub fn new(targets: String, planned_seconds: f64) -> Self {
        Self {
            targets,
            planned_seconds,
            phases: Vec::new(),
            is_closed: false,
            columns: Vec::new(),
            rates: Default::default(),
            seconds: 0,
            last: None,
            response: stats::latency(),
            look: None,
            is_ending: false,
        }
    }

    pub fn of(plan: &Plan) -> Self {
        let targets: Vec<_> = plan.targets.iter().map(|t| &*t.url).collect();
        let targets = targets.join(", ");
        match &plan.load {
            Load::Closed { nanoseconds } => {
                Self { is_closed: true, ..Self::new(targets, *nanoseconds as f64 / 1e9) }
            }
            Load::Open { phases, .. } => {
                let mut view = Self::new(targets, schedule::total_seconds(phases));
                let mut end = 0.0;
                view.phases = phases
                    .iter()
                    .map(|p| {
                        end += p.seconds;
                        (p.name.clone(), end)
                    })
                    .collect();
                view
            }
        }
    }

    /// A second is over.
    pub fn second(&mut self, second: &Second) {
        self.seconds = second.second + 1;
        if self.columns.len() == MOST_COLUMNS {
            self.columns.remove(0);
            for rates in &mut self.rates {
                rates.remove(0);
            }
        }
        self.columns.push(Column::of(&second.response));
        let answered = second.good + second.refused + second.errors;
        for (rates, rate) in self.rates.iter_mut().zip([second.planned, second.sent, answered]) {
            rates.push(rate);
        }
        self.last = Some(Percentiles::of(&second.response));
        stats::add(&mut self.response, &second.response);
    }

    /// The figures of the run so far.
    pub fn look(&mut self, so_far: &Stats, findings: u64) {
        let c = &so_far.counters;
        let mut outcomes: Vec<_> = (so_far.outcomes.iter())
            .map(|o| OutcomeRow {
                name: outcome_name(&o.key),
                class: o.class,
                requests: o.requests,
                attempts: o.attempts,
                response: Percentiles::of(&Sum::of([o], |_| true).response),
            })
            .collect();
        outcomes.sort_by(|a, b| b.attempts.cmp(&a.attempts).then_with(|| a.name.cmp(&b.name)));
        self.look = Some(Look {
            service: Percentiles::of(&Sum::of(&so_far.outcomes, |_| true).service),
            lag: Percentiles::of(&so_far.lag),
            outcomes,
            totals: format!(
                "{} planned, {} answered, {} retries, {} unsent, {} findings",
                grouped(c.planned),
                grouped(c.answered),
                grouped(c.retries),
                grouped(c.unsent),
                grouped(findings)
            ),
        });
    }

    /// Draws all of it; a low screen shows fewer outcomes and fewer classes of latency.
    pub fn draw(&self, frame: &mut Frame<'_>) {
        let most = self.look.as_ref().map_or(0, |l| l.outcomes.len()).clamp(1, 6) as u16;
        let [head, rates, latency, outcomes, heat] = Layout::vertical([
            Constraint::Length(1),
            Constraint::Length(4),
            Constraint::Length(6),
            Constraint::Length(2 + most),
            Constraint::Min(0),
        ])
        .areas(frame.area());
        frame.render_widget(Paragraph::new(self.head()), head);
        self.draw_rates(frame, rates);
        frame.render_widget(self.latencies(), latency);
        frame.render_widget(self.outcomes(), outcomes);
        self.draw_heat(frame, heat);
    }

    fn head(&self) -> Line<'static> {
        let bold = Style::new().add_modifier(Modifier::BOLD);
        let at = f64::from(self.seconds);
        let mut spans = vec![
            Span::styled("onrush-load", bold),
            format!("  {:.0}/{:.0} s", at, self.planned_seconds).into(),
        ];
        if self.is_ending || at >= self.planned_seconds {
            spans.push(Span::styled("  waiting for what is out", yellow()));
        } else if let Some((name, _)) = self.phases.iter().find(|(_, end)| at < *end) {
            spans.push(format!("  phase {name}").into());
        }
        if self.is_closed {
            spans.push(Span::styled("  closed loop: it cannot see waiting", yellow()));
        }
        spans.push(format!("  {}", self.targets).into());
        Line::from(spans)
    }

    fn draw_rates(&self, frame: &mut Frame<'_>, area: Rect) {
        let inner = part(frame, area, "per second");
        let lines = Layout::vertical([Constraint::Length(1); 3]).split(inner);
        for ((name, rates), line) in
            ["planned", "sent", "answered"].into_iter().zip(&self.rates).zip(lines.iter())
        {
            let [text, curve] =
                Layout::horizontal([Constraint::Length(24), Constraint::Min(0)]).areas(*line);
            let rate = rates.last().copied().unwrap_or(0);
            let label = format!("{name:<10}{:>12}", grouped(rate));
            frame.render_widget(Paragraph::new(label), text);
            let from = rates.len().saturating_sub(curve.width as usize);
            let curve_of = Sparkline::default().data(&rates[from..]).style(Color::Cyan);
            frame.render_widget(curve_of, curve);
        }
    }

    fn latencies(&self) -> Table<'static> {
        let so_far = (!self.response.is_empty()).then(|| Percentiles::of(&self.response));
        let look = self.look.as_ref();
        let rows = [
            ("response, this second", self.last.as_ref()),
            ("response, so far", so_far.as_ref()),
            ("service, so far", look.map(|l| &l.service)),
            ("generator's own lag", look.map(|l| &l.lag)),
        ];
        let rows = rows.map(|(name, p)| {
            let of = |value: fn(&Percentiles) -> u64| time(p.map(|p| (p, value(p))));
            Row::new([
                Cell::new(name),
                of(|p| p.p50),
                of(|p| p.p90),
                of(|p| p.p99),
                of(|p| p.p99_9),
                of(|p| p.max),
            ])
        });
        let widths = [24, 10, 10, 10, 10, 10].map(Constraint::Length);
        Table::new(rows, widths)
            .header(heading(["", "p50", "p90", "p99", "p99.9", "max"]))
            .block(block("latency"))
    }

    fn outcomes(&self) -> Table<'static> {
        let look = self.look.as_ref();
        let rows = look.into_iter().flat_map(|l| &l.outcomes).map(|o| {
            let p = &o.response;
            let style = match o.class {
                Class::Good => Style::new().fg(Color::Green),
                Class::Refused => Style::new(),
                Class::Error => Style::new().fg(Color::Red),
            };
            Row::new([
                Cell::new(o.name.clone()),
                right(grouped(o.requests)),
                right(grouped(o.attempts)),
                time(Some((p, p.p50))),
                time(Some((p, p.p99))),
            ])
            .style(style)
        });
        let widths = [24, 13, 13, 10, 10].map(Constraint::Length);
        let title = look.map_or("outcomes".into(), |l| format!("outcomes: {}", l.totals));
        Table::new(rows, widths)
            .header(heading(["", "requests", "attempts", "p50", "p99"]))
            .block(block(&title))
    }

    fn draw_heat(&self, frame: &mut Frame<'_>, area: Rect) {
        let inner = part(frame, area, "response times, a column per second");
        let width = (inner.width as usize).saturating_sub(8);
        let columns = &self.columns[self.columns.len().saturating_sub(width)..];
        let lines: Vec<Line<'_>> = heat::rows(columns, inner.height as usize)
            .into_iter()
            .map(|row| {
                let mut spans = vec![Span::raw(format!("{:>7} ", row.name))];
                spans.extend(row.heats.into_iter().map(shade));
                Line::from(spans)
            })
            .collect();
        frame.render_widget(Paragraph::new(lines), inner);
    }
}

/// Readable without colour, too.
fn shade(heat: Heat) -> Span<'static> {
    let (text, colour) = match heat {
        0 => (" ", Color::Reset),
        1 => ("░", Color::Blue),
        2 => ("▒", Color::Cyan),
        3 => ("▓", Color::Yellow),
        _ => ("█", Color::Red),
    };
    Span::styled(text, Style::new().fg(colour))
}

fn yellow() -> Style {
    Style::new().fg(Color::Yellow)
}

fn block(title: &str) -> Block<'static> {
    Block::new().borders(Borders::TOP).title(format!(" {title} ")).border_style(Color::DarkGray)
}

/// A part's frame; what is inside it.
fn part(frame: &mut Frame<'_>, area: Rect, title: &str) -> Rect {
    let block = block(title);
    let inner = block.inner(area);
    frame.render_widget(block, area);
    inner
}

fn heading<const N: usize>(names: [&'static str; N]) -> Row<'static> {
    Row::new(names.map(|n| right(n.to_owned()))).style(Style::new().fg(Color::DarkGray))
}

fn right(text: String) -> Cell<'static> {
    Cell::new(Line::from(text).right_aligned())
}

fn time(value: Option<(&Percentiles, u64)>) -> Cell<'static> {
    let measured = value.filter(|(p, _)| p.count > 0);
    right(measured.map_or("-".into(), |(_, us)| microseconds(us)))
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::*;
    use crate::stats::{Failure, Place};

    fn shown(view: &View, width: u16, height: u16) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| view.draw(frame)).unwrap();
        let buffer = terminal.backend().buffer().clone();
        (0..height)
            .map(|y| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>())
            .map(|line| line.trim_end().to_owned())
            .collect()
    }

    /// Figures as a sale gives them.
    fn figures() -> Stats {
        let mut stats = Stats::default();
        for (status, code, count) in [(201, "", 30), (409, "sold-out", 1200)] {
            for _ in 0..count {
                let class = if status == 201 { Class::Good } else { Class::Refused };
                let at = stats.answered(status, code, || class);
                let place = Place { phase: 0, section: 0 };
                stats.attempt(at, place, Some(2_000_000));
                stats.request(at, place, 3_000_000);
            }
        }
        let at = stats.failed(Failure::Timeout);
        stats.attempt(at, Place { phase: 0, section: 0 }, None);
        stats.counters.planned = 1234;
        stats.counters.unsent = 3;
        stats::record(&mut stats.lag, 45_000);
        stats
    }

    fn view() -> View {
        let mut view = View::new("http://node".into(), 10.0);
        view.phases = vec![("countdown".into(), 2.0), ("spike".into(), 10.0)];
        for number in 0..3 {
            let mut second = Second::new(number);
            second.planned = 1000 + u64::from(number);
            second.sent = 998;
            (second.good, second.refused, second.errors) = (30, 900, 7);
            for _ in 0..937 {
                stats::record(&mut second.response, 3_000_000);
            }
            stats::record(&mut second.response, 700_000_000);
            view.second(&second);
        }
        view.look(&figures(), 0);
        view
    }

    #[test]
    fn a_usual_terminal_shows_everything() {
        let lines = shown(&view(), 80, 24);
        let has = |words: &[&str]| {
            let found = lines.iter().find(|l| words.iter().all(|w| l.contains(w)));
            assert!(found.is_some(), "{words:?} in\n{}", lines.join("\n"));
        };
        has(&["onrush-load", "3/10 s", "phase spike", "http://node"]);
        has(&["planned", "1,002", "█"]);
        has(&["sent", "998"]);
        has(&["answered", "937"]);
        has(&["p50", "p99.9", "max"]);
        has(&["response, this second", "3.00 ms", "700 ms"]);
        has(&["service, so far", "2.00 ms"]);
        has(&["generator's own lag", "45 µs"]);
        has(&["1,234 planned", "3 unsent", "0 findings"]);
        has(&["409 sold-out", "1,200"]);
        has(&["201", "30"]);
        has(&["timeout", "0", "1"]);
        has(&["1s", "░░░"]);
        has(&["≤10ms", "███"]);
    }

    #[test]
    fn every_size_of_a_terminal_is_drawn() {
        let (full, empty) = (view(), View::new(String::new(), 0.0));
        for (width, height) in [(1, 1), (10, 3), (40, 12), (80, 24), (300, 100)] {
            for view in [&full, &empty] {
                assert_eq!(shown(view, width, height).len(), height as usize);
            }
        }
    }

    #[test]
    fn a_run_that_ends_says_so() {
        let ending = View { is_ending: true, ..view() };
        assert!(shown(&ending, 80, 24)[0].contains("waiting for what is out"));
    }
}
