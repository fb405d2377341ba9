//! The command line.

pub mod args;
pub mod calibrate;
pub mod http;
pub mod kept;
pub mod phase;
pub mod resolve;
pub mod run;
pub mod scenario;

use std::ffi::OsString;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use clap::{CommandFactory, Parser};

use crate::check::store::Store;
use crate::clock;
use crate::plan::Load;
use crate::report::verdict::exit;
use crate::schedule::{self, Arrivals};
use args::{Cli, Command};
use scenario::Preset;

/// Runs the command; the exit code.
pub fn main(args: impl IntoIterator<Item = OsString>) -> u8 {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(e) => {
            let asked_for = !e.use_stderr();
            // Nothing is left to say if even this cannot be printed.
            let _ = e.print();
            return if asked_for { exit::GOOD } else { exit::USAGE };
        }
    };
    let result = match cli.command {
        Command::Run(args) => run::run(&args),
        Command::Check(args) => {
            let of_folder = || args.data.as_ref().map(|data| Store::Sqlite(data.join("db")));
            match (&args.scenario, &args.accepted, args.store.clone().or_else(of_folder)) {
                (_, Some(file), Some(store)) => check_accepted(file, &store),
                (Some(scenario), ..) => check(scenario),
                // The parser wants one of them.
                _ => Ok(exit::USAGE),
            }
        }
        Command::Report(args) => kept::report(&args),
        Command::Merge(args) => kept::merge(&args),
        Command::Compare(args) => kept::compare(&args),
        Command::Calibrate(args) => calibrate::calibrate(&args),
        Command::Agent(args) => agent(&args),
        Command::Man => man(),
        Command::Preset { name } => preset(name.as_deref()),
        Command::Completions { shell } => {
            clap_complete::generate(
                shell,
                &mut Cli::command(),
                "onrush-load",
                &mut std::io::stdout(),
            );
            Ok(exit::GOOD)
        }
    };
    result.unwrap_or_else(|e| {
        eprintln!("onrush-load: {e:#}");
        exit::USAGE
    })
}

/// Says what a scenario plans, or what is wrong with it.
fn check(path: &Path) -> Result<u8> {
    let scenario = scenario::read(path)?;
    let offline = resolve::Offline::of(&scenario).with_context(|| path.display().to_string())?;
    let mut lines = vec![format!("{}: good", path.display())];
    match &offline.load {
        Load::Closed { nanoseconds } => {
            lines.push(format!("  closed loop for {} s", clock::to_seconds(*nanoseconds)));
        }
        Load::Open { phases, arrivals, recorded } => {
            lines.extend(phases.iter().map(|p| {
                format!("  {:<16} {:>8} s  {} to {}/s", p.name, p.seconds, p.from_rate, p.to_rate)
            }));
            let seconds = schedule::total_seconds(phases);
            let planned = match recorded {
                Some(recording) => recording.at.len() as u64,
                None => schedule::planned(phases),
            };
            let is_about = *arrivals == Arrivals::Poisson && recorded.is_none();
            let about = if is_about { "about " } else { "" };
            lines.push(format!("  in all {about}{planned} requests in {seconds} s"));
            lines
                .extend(recorded.as_ref().and_then(|r| run::left_out(r)).map(|l| format!("  {l}")));
        }
    }
    lines.push(format!("  over {} connections, {} threads", offline.connections, offline.threads));
    say(&(lines.join("\n") + "\n"));
    Ok(exit::GOOD)
}

/// Holds a file of accepted redemptions against the database shards.
fn check_accepted(file: &Path, store: &Store) -> Result<u8> {
    let (count, findings) = crate::check::file::check(file, store)?;
    for finding in findings.examples().iter().take(20) {
        say(&format!("{}: {}\n", finding.kind, finding.text));
    }
    if findings.total() > 0 {
        say(&format!("{} of {count} accepted redemptions are wrong\n", findings.total()));
        return Ok(exit::LEDGER);
    }
    say(&format!("all {count} accepted redemptions are in the database shards, as answered\n"));
    Ok(exit::GOOD)
}

/// Serves as an agent until a signal comes.
fn agent(args: &args::AgentArgs) -> Result<u8> {
    let token = run::token(&args.token_file)?;
    crate::agents::serve(args.listen, &token, |address| say(&format!("agent at {address}\n")))
        .with_context(|| format!("--listen {}", args.listen))?;
    Ok(exit::GOOD)
}

/// Prints the man page: all commands, one after the other.
fn man() -> Result<u8> {
    let mut page = Vec::new();
    let command = Cli::command();
    clap_mangen::Man::new(command.clone()).render(&mut page)?;
    for sub in command.get_subcommands() {
        let name = format!("onrush-load {}", sub.get_name());
        let sub = sub.clone().display_name(name.clone()).bin_name(name);
        let man = clap_mangen::Man::new(sub);
        man.render_name_section(&mut page)?;
        man.render_synopsis_section(&mut page)?;
        man.render_options_section(&mut page)?;
        man.render_extra_section(&mut page)?;
    }
    say(&String::from_utf8_lossy(&page));
    Ok(exit::GOOD)
}

/// Prints a preset, or their list.
fn preset(name: Option<&str>) -> Result<u8> {
    match name {
        None => {
            for p in scenario::PRESETS {
                say(&format!("{:<16}{}\n", p.name, p.about()));
            }
        }
        Some(name) => {
            say(Preset::named(name).with_context(|| format!("{name}: no such preset"))?.text);
        }
    }
    Ok(exit::GOOD)
}

/// Writes to standard output. A closed pipe is the reader's choice, and no error.
pub fn say(text: &str) {
    let _ = std::io::stdout().lock().write_all(text.as_bytes());
}
