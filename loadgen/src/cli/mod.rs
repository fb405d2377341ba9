//! The command line.

pub mod args;
pub mod resolve;
pub mod run;

use std::ffi::OsString;

use clap::{CommandFactory, Parser};

use crate::report::verdict::exit;
use args::{Cli, Command};

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
