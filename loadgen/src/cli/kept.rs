//! `report`, `merge` and `compare`: what runs kept, shown again.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::cli::args::{CompareArgs, MergeArgs, ReportArgs};
use crate::cli::say;
use crate::clock;
use crate::report::compare::{self, Verdict};
use crate::report::figures::{self, Figures};
use crate::report::files::SecondFiles;
use crate::report::summary::Summary;
use crate::report::threshold::Threshold;
use crate::report::verdict::exit;
use crate::report::{html, merge, text, verdict};
use crate::run::Outcomes;
use crate::stats::SecondRow;

/// Shows a run again; its page anew, where one is asked for.
pub fn report(args: &ReportArgs) -> Result<u8> {
    let figures = Figures::read(&args.run)?;
    let (run, summary) = figures.show(rows(&args.run));
    let baseline = args.baseline.as_deref().map(Figures::read).transpose()?;
    if let Some(page) = &args.html {
        std::fs::write(page, html::render(&run, &summary, baseline.as_ref()))
            .with_context(|| format!("cannot write {}", page.display()))?;
    }
    if args.json {
        say(&(serde_json::to_string_pretty(&summary)? + "\n"));
    } else {
        say(&text::render(&summary));
    }
    Ok(exit::GOOD)
}

/// The course of a run; none where its files are gone, which a report can do without.
fn rows(run: &Path) -> Vec<SecondRow> {
    let seconds = figures::read_seconds(run).unwrap_or_default();
    seconds.iter().map(SecondRow::of).collect()
}

/// Adds runs up that went on at the same time; the exit code is the sum's.
pub fn merge(args: &MergeArgs) -> Result<u8> {
    ensure!(args.runs.len() > 1, "merge: give at least two runs");
    let all = args.runs.iter().map(|r| Figures::read(r)).collect::<Result<Vec<_>, _>>()?;
    let seconds: Vec<_> =
        args.runs.iter().map(|r| figures::read_seconds(r)).collect::<Result<_, _>>()?;
    let sum = merge::figures(all)?;
    let seconds = merge::seconds(seconds);
    let (run, mut summary) = sum.show(seconds.iter().map(SecondRow::of).collect());
    let thresholds = sum.thresholds.iter().map(|t| Threshold::parse(&t.threshold));
    let thresholds = thresholds.collect::<Result<Vec<_>, _>>()?;
    summary.thresholds = thresholds.iter().map(|t| t.judge(&run, &summary)).collect();
    if let Some(dir) = &args.out {
        let wrong = || format!("--out {}", dir.display());
        std::fs::create_dir_all(dir).with_context(wrong)?;
        SecondFiles::create(dir, clock::wall())
            .and_then(|f| f.write_all(&seconds))
            .with_context(wrong)?;
        write_run(dir, &run, &summary, None)?;
    }
    if args.json {
        say(&(serde_json::to_string_pretty(&summary)? + "\n"));
    } else {
        say(&text::render(&summary));
    }
    Ok(verdict::code_of(&summary))
}

/// Writes what has the whole run in it.
pub fn write_run(
    dir: &Path,
    run: &Outcomes,
    summary: &Summary,
    baseline: Option<&Figures>,
) -> Result<()> {
    let write = |name: &str, text: &str| {
        let path = dir.join(name);
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    };
    write("summary.json", &(serde_json::to_string_pretty(summary)? + "\n"))?;
    write("figures.json", &(serde_json::to_string(&Figures::of(run, summary))? + "\n"))?;
    write("report.html", &html::render(run, summary, baseline))
}

/// Says what changed beyond the noise; exit 99 when something got worse.
pub fn compare(args: &CompareArgs) -> Result<u8> {
    let read = |paths: &[PathBuf]| -> Result<Vec<Figures>> {
        let mut all = Vec::new();
        for path in paths {
            for run in figures::runs_of(path)? {
                all.push(Figures::read(&run)?);
            }
        }
        Ok(all)
    };
    let before = read(std::slice::from_ref(&args.baseline))?;
    let after = read(&args.runs)?;
    for words in compare::mismatches(&before, &after) {
        eprintln!("onrush-load: {words}");
    }
    say(&format!("{} runs against {} of the baseline\n\n", after.len(), before.len()));
    let differences = compare::differences(&before, &after);
    say(&compare::render(&differences));
    let is_worse = differences.iter().any(|d| d.verdict == Verdict::Worse);
    Ok(if is_worse { exit::THRESHOLD } else { exit::GOOD })
}
