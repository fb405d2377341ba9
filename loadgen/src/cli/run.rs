//! `onrush-load run`.

use std::fs::File;
use std::io::{BufWriter, IsTerminal, Write};
use std::path::Path;

use anyhow::{Context, Result};

use crate::check;
use crate::cli::args::{OutputArgs, RunArgs};
use crate::cli::{resolve, scenario};
use crate::clock::{self, Clock};
use crate::plan::{Load, Plan, Work};
use crate::report::files::SecondFiles;
use crate::report::summary::Summary;
use crate::report::verdict::{self, exit};
use crate::report::{html, text};
use crate::run;
use crate::stats::Second;
use crate::work::accepted;

/// Runs and reports; the exit code.
pub fn run(args: &RunArgs) -> Result<u8> {
    let flags = args.scenario_args.clone();
    let scenario = match &args.scenario {
        Some(file) => flags.over(scenario::read(file)?),
        None => flags,
    };
    let thresholds = resolve::Offline::of(&scenario)?.thresholds;
    let check =
        resolve::check(&scenario)?.map(|c| check::Options { quiet: args.output.quiet, ..c });
    let plan = resolve::plan(&scenario)?;
    // Before the run: a report that cannot be written should not cost one.
    if let Some(dir) = &args.output.out {
        std::fs::create_dir_all(dir).with_context(|| format!("--out {}", dir.display()))?;
    }
    let accepted_file = args.output.accepted.as_deref().map(create).transpose()?;
    if matches!(plan.load, Load::Closed { .. }) && !args.output.quiet {
        eprintln!("closed loop: it cannot see the waiting that a slow answer causes for others");
    }
    let mut files = match &args.output.out {
        Some(dir) => Some(
            SecondFiles::create(dir, clock::wall())
                .with_context(|| format!("--out {}", dir.display()))?,
        ),
        None => None,
    };
    let mut progress = Progress { quiet: args.output.quiet, tty: std::io::stderr().is_terminal() };
    let before = match (&check, &plan.work) {
        (Some(options), Work::Redeem(work)) => Some(check::before(&plan, work, options)?),
        _ => None,
    };
    let mut outcomes = run::run(plan, &mut |plan, second| {
        progress.second(plan, second);
        if let Some(files) = &mut files {
            files.second(second);
        }
    })?;
    progress.end();
    let clock = Clock::start();
    let checked = check.as_ref().zip(before.as_ref()).map(|(options, before)| {
        let seconds = || clock.now() as f64 / 1e9;
        check::after(&mut outcomes, before, options)
            .map(|checked| check::Checked { seconds: seconds(), ..checked })
    });
    let mut summary = Summary::of(&outcomes, checked);
    summary.thresholds = thresholds.iter().map(|t| t.judge(&outcomes, &summary)).collect();
    let kept = keep(&args.output, &outcomes, &summary, accepted_file, files);
    let mut stdout = std::io::stdout().lock();
    // A closed pipe is the reader's choice.
    let _ = if args.output.json {
        serde_json::to_writer_pretty(&mut stdout, &summary)
            .map_err(Into::into)
            .and_then(|()| stdout.write_all(b"\n"))
    } else {
        stdout.write_all(text::render(&summary).as_bytes())
    };
    let violated = summary.ledger.as_ref().is_some_and(|l| l.finding_count > 0);
    let missed = summary.thresholds.iter().any(|t| !t.passed);
    let code = verdict::exit_code(violated, !summary.valid, missed);
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
    accepted_file: Option<File>,
    files: Option<SecondFiles>,
) -> Result<()> {
    if let (Some(file), Work::Redeem(work)) = (accepted_file, &run.plan.work) {
        accepted::write_lines(&mut BufWriter::new(file), &run.ledger, work, run.plan.seed)
            .context("--accepted")?;
    }
    let Some(dir) = &output.out else { return Ok(()) };
    let write = |name: &str, text: &str| {
        let path = dir.join(name);
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    };
    write("summary.json", &(serde_json::to_string_pretty(summary)? + "\n"))?;
    write("report.html", &html::render(run, summary))?;
    if let Some(files) = files {
        files.finish().with_context(|| format!("seconds of {}", dir.display()))?;
    }
    Ok(())
}

fn create(path: &Path) -> Result<File> {
    File::create(path).with_context(|| format!("cannot write {}", path.display()))
}

/// One line on stderr, renewed each second; one line per second where that is no terminal.
struct Progress {
    quiet: bool,
    tty: bool,
}

impl Progress {
    fn second(&mut self, plan: &Plan, s: &Second) {
        if self.quiet {
            return;
        }
        let of = match &plan.load {
            Load::Open { phases, .. } => crate::schedule::total_seconds(phases),
            Load::Closed { nanoseconds } => *nanoseconds as f64 / 1e9,
        };
        let line = format!(
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
        );
        if self.tty {
            eprint!("\r\x1b[K{line}");
        } else {
            eprintln!("{line}");
        }
    }

    fn end(&self) {
        if !self.quiet && self.tty {
            eprint!("\r\x1b[K");
        }
    }
}
