//! `onrush-load run`.

use std::fs::File;
use std::io::{BufWriter, IsTerminal, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::time::SystemTime;

use anyhow::{Context, Result, ensure};

use crate::agents::{self, Agents};
use crate::check;
use crate::cli::args::{AgentsArgs, OutputArgs, RunArgs, ScenarioArgs};
use crate::cli::{kept, resolve, scenario};
use crate::clock::{self, Clock};
use crate::plan::{Load, Plan, Work};
use crate::replay::Recording;
use crate::report::abort::AbortWatch;
use crate::report::figures::Figures;
use crate::report::files::SecondFiles;
use crate::report::prometheus::Exposed;
use crate::report::summary::Summary;
use crate::report::text;
use crate::report::verdict::{self, exit};
use crate::run::{self, Observer, signals};
use crate::stats::Second;
use crate::tui::{Screen, View};
use crate::work::accepted;

/// Runs and reports, as often as is asked for; the exit code.
pub fn run(args: &RunArgs) -> Result<u8> {
    let scenario = scenario(args)?;
    let repeat = args.output.repeat;
    ensure!((1..=1000).contains(&repeat), "--repeat: between 1 and 1000");
    if repeat == 1 {
        return run_once(&scenario, &args.output, &args.agents);
    }
    ensure!(args.output.prometheus.is_none(), "--prometheus: for one run alone");
    let seed = scenario.schedule.seed.unwrap_or_else(clock::fresh_seed);
    let mut codes = Vec::new();
    for number in 1..=repeat {
        let mut this = scenario.clone();
        this.schedule.seed = Some(seed.wrapping_add(u64::from(number - 1)));
        let out = args.output.out.as_ref().map(|dir| dir.join(format!("run-{number}")));
        let code = run_once(&this, &OutputArgs { out, ..args.output.clone() }, &args.agents)?;
        codes.push(code);
        if signals::stopped() {
            break;
        }
    }
    let by_rank = [exit::LEDGER, exit::INVALID, exit::THRESHOLD, exit::USAGE];
    Ok(by_rank.into_iter().find(|code| codes.contains(code)).unwrap_or(exit::GOOD))
}

/// The flags, over a file where there is one.
fn scenario(args: &RunArgs) -> Result<ScenarioArgs> {
    let flags = args.scenario_args.clone();
    let Some(file) = &args.scenario else { return Ok(flags) };
    let other_phases = flags.schedule.has_shape() && flags.check.threshold.is_empty();
    let mut scenario = flags.over(scenario::read(file)?);
    if other_phases {
        for threshold in resolve::take_foreign_thresholds(&mut scenario)? {
            eprintln!("left out, as the flags have other phases: threshold {threshold}");
        }
    }
    Ok(scenario)
}

fn run_once(scenario: &ScenarioArgs, output: &OutputArgs, several: &AgentsArgs) -> Result<u8> {
    let thresholds = resolve::Offline::of(scenario)?.thresholds;
    let check = resolve::check(scenario)?.map(|c| check::Options { quiet: output.quiet, ..c });
    let plan = resolve::plan(scenario)?;
    let baseline =
        output.baseline.as_deref().map(Figures::read).transpose().context("--baseline")?;
    // Before the run: a report that cannot be written should not cost one.
    if let Some(dir) = &output.out {
        std::fs::create_dir_all(dir).with_context(|| format!("--out {}", dir.display()))?;
    }
    let accepted_file = output.accepted.as_deref().map(create).transpose()?;
    if matches!(plan.load, Load::Closed { .. }) && !output.quiet {
        eprintln!("{}", text::CLOSED_LOOP);
    }
    if let Load::Open { recorded: Some(recording), .. } = &plan.load
        && let Some(words) = left_out(recording)
        && !output.quiet
    {
        eprintln!("{words}");
    }
    let files = match &output.out {
        Some(dir) => Some(
            SecondFiles::create(dir, clock::wall())
                .with_context(|| format!("--out {}", dir.display()))?,
        ),
        None => None,
    };
    let before = match (&check, &plan.work) {
        (Some(options), Work::Redeem(work)) => Some(check::before(&plan, work, options)?),
        _ => None,
    };
    let aborts = scenario.check.abort_on_fail == Some(true);
    let mut watching = Watching {
        progress: Progress::Nothing,
        files,
        exposed: output.prometheus.map(|address| expose(address, output.quiet)).transpose()?,
        abort: aborts.then(|| AbortWatch::new(thresholds.clone())),
    };
    watching.progress = Progress::of(output, &plan);
    let mut outcomes = match &several.token_file {
        Some(token) if !several.agents.is_empty() => {
            let agents = Agents {
                at: &several.agents,
                token: &self::token(token)?,
                trust: resolve::trust(&scenario.client)?,
                quiet: output.quiet || watching.progress.is_screen(),
            };
            agents::run(plan, &agents, &mut watching)?
        }
        _ => run::run(plan, &mut watching)?,
    };
    let Watching { progress, files, .. } = watching;
    progress.end();
    let clock = Clock::start();
    let checked = check.as_ref().zip(before.as_ref()).map(|(options, before)| {
        let seconds = || clock.now() as f64 / 1e9;
        check::after(&mut outcomes, before, options)
            .map(|checked| check::Checked { seconds: seconds(), ..checked })
    });
    let mut summary = Summary::of(&outcomes, checked);
    summary.thresholds = thresholds.iter().map(|t| t.judge(&outcomes, &summary)).collect();
    let kept = keep(output, &outcomes, &summary, baseline.as_ref(), accepted_file, files);
    let mut stdout = std::io::stdout().lock();
    // A closed pipe is the reader's choice.
    let _ = if output.json {
        serde_json::to_writer_pretty(&mut stdout, &summary)
            .map_err(Into::into)
            .and_then(|()| stdout.write_all(b"\n"))
    } else {
        stdout.write_all(text::render(&summary).as_bytes())
    };
    let code = verdict::code_of(&summary);
    if let Err(e) = kept {
        // The figures are out already: what could not be kept must not hide them.
        eprintln!("onrush-load: {e:#}");
        return Ok(if code == exit::GOOD { exit::USAGE } else { code });
    }
    Ok(code)
}

/// Writes the files that were asked for.
fn keep(
    output: &OutputArgs,
    run: &run::Outcomes,
    summary: &Summary,
    baseline: Option<&Figures>,
    accepted_file: Option<File>,
    files: Option<SecondFiles>,
) -> Result<()> {
    if let (Some(file), Work::Redeem(work)) = (accepted_file, &run.plan.work) {
        accepted::write_lines(&mut BufWriter::new(file), &run.ledger, work, run.plan.seed)
            .context("--accepted")?;
    }
    let Some(dir) = &output.out else { return Ok(()) };
    kept::write_run(dir, run, summary, baseline)?;
    if let Some(files) = files {
        files.finish().with_context(|| format!("seconds of {}", dir.display()))?;
    }
    Ok(())
}

/// What of a recording is not replayed, in words.
pub fn left_out(recording: &Recording) -> Option<String> {
    let count = recording.left_out;
    (count > 0).then(|| format!("lines of the recording without a request, left out: {count}"))
}

/// Reads a token; white space around it does not count.
pub fn token(file: &Path) -> Result<Vec<u8>> {
    let wrong = || format!("--token-file {}", file.display());
    let text = std::fs::read(file).with_context(wrong)?;
    let token = text.trim_ascii().to_vec();
    ensure!(token.len() >= 16, "{}: a token has at least 16 bytes", wrong());
    Ok(token)
}

fn expose(address: SocketAddr, quiet: bool) -> Result<Exposed> {
    let (exposed, address) =
        Exposed::listen(address).with_context(|| format!("--prometheus {address}"))?;
    if !quiet {
        eprintln!("live figures at http://{address}/metrics");
    }
    Ok(exposed)
}

fn create(path: &Path) -> Result<File> {
    File::create(path).with_context(|| format!("cannot write {}", path.display()))
}

/// What is done with each second of the run.
struct Watching {
    progress: Progress,
    files: Option<SecondFiles>,
    exposed: Option<Exposed>,
    abort: Option<AbortWatch>,
}

impl Observer for Watching {
    fn wants_looks(&self) -> bool {
        self.abort.is_some() || self.exposed.is_some() || self.progress.is_screen()
    }

    fn starts(&mut self, at: SystemTime) {
        if let Some(files) = &mut self.files {
            files.starts(at);
        }
    }

    fn second(&mut self, plan: &Plan, second: &Second) {
        self.progress.second(plan, second);
        if let Some(files) = &mut self.files {
            files.second(second);
        }
    }

    fn look(&mut self, so_far: &run::Outcomes) -> Option<String> {
        self.progress.look(so_far);
        if let Some(exposed) = &self.exposed {
            exposed.show(so_far);
        }
        self.abort.as_mut()?.look(so_far)
    }
}

/// What is seen of a run while it goes on, on stderr.
enum Progress {
    Nothing,
    /// One line, renewed each second; on a terminal in its place.
    Line {
        in_place: bool,
    },
    Screen(Box<Screen>),
}

impl Progress {
    fn of(output: &OutputArgs, plan: &Plan) -> Self {
        let is_terminal = std::io::stderr().is_terminal();
        if output.quiet {
            return Self::Nothing;
        }
        if output.tui && is_terminal {
            match Screen::open(View::of(plan)) {
                Ok(screen) => return Self::Screen(Box::new(screen)),
                Err(e) => eprintln!("--tui: {e}; lines instead"),
            }
        }
        Self::Line { in_place: is_terminal }
    }

    const fn is_screen(&self) -> bool {
        matches!(self, Self::Screen(_))
    }

    fn second(&mut self, plan: &Plan, second: &Second) {
        match self {
            Self::Nothing => {}
            Self::Line { in_place: true } => eprint!("\r\x1b[K{}", line(plan, second)),
            Self::Line { in_place: false } => eprintln!("{}", line(plan, second)),
            Self::Screen(screen) => {
                screen.view.second(second);
                screen.view.is_ending = signals::stopped();
                screen.draw();
            }
        }
    }

    fn look(&mut self, so_far: &run::Outcomes) {
        if let Self::Screen(screen) = self {
            screen.view.look(&so_far.stats, so_far.ledger.findings.total());
            screen.draw();
        }
    }

    /// Leaves the terminal to the report.
    fn end(self) {
        if matches!(self, Self::Line { in_place: true }) {
            eprint!("\r\x1b[K");
        }
    }
}

fn line(plan: &Plan, s: &Second) -> String {
    let of = match &plan.load {
        Load::Open { phases, .. } => crate::schedule::total_seconds(phases),
        Load::Closed { nanoseconds } => *nanoseconds as f64 / 1e9,
    };
    format!(
        "{:>4}/{of:.0} s  planned {}/s  sent {}/s  good {}  refused {}  errors {}  retries {}  \
         p50 {}  p99 {}",
        s.second + 1,
        s.planned,
        s.sent,
        s.good,
        s.refused,
        s.errors,
        s.retries,
        text::microseconds(s.response.value_at_quantile(0.5)),
        text::microseconds(s.response.value_at_quantile(0.99)),
    )
}
