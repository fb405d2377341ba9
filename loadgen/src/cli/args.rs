//! Flags and their help.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::schedule::Arrivals;

/// Open-loop load generator that knows the ledger.
///
/// Drives an Onrush node with redemptions, or any HTTP service with one request over and over.
/// Latency counts from the moment a request was planned, so a server that stalls cannot hide it.
#[derive(Debug, Parser)]
#[command(name = "onrush-load", version, after_help = EXIT_CODES)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

const EXIT_CODES: &str = "\
Exit codes:
  0   good
  1   usage, or no connection ever succeeded
  2   invalid run: the generator was the bottleneck, or requests went unsent
  3   the ledger is violated: units, points or answers are wrong
  99  a threshold was missed
Where several hold: 3, then 2, then 99.";

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Puts load on a server and reports what came back
    Run(Box<RunArgs>),
    /// Prints a shell's completion script
    #[command(
        after_help = "Example:\n  onrush-load completions bash > ~/.local/share/bash-completion/completions/onrush-load"
    )]
    Completions { shell: clap_complete::Shell },
}

const RUN_EXAMPLES: &str = "\
Examples:
  # 5000 GETs per second for ten seconds
  onrush-load run --target http://127.0.0.1:8080/livez --rate 5000 --seconds 10

  # A ramp, a spike and a tail; arrivals as people come
  onrush-load run --target http://127.0.0.1:8080/ --arrivals poisson \\
      --phase ramp:10:0-2000 --phase spike:5:20000 --phase tail:30:500

  # As fast as 64 connections go (a closed loop: it cannot see waiting)
  onrush-load run --target http://127.0.0.1:8080/ --closed 64 --seconds 5

  # POST a body
  onrush-load run --target http://127.0.0.1:8080/echo --method POST \\
      --header 'Content-Type: application/json' --body '{\"a\":1}' --rate 1000 --seconds 10

  # A flash sale: 200,000 members, the sale's own items, retries with the same key
  onrush-load run --target http://127.0.0.1:8080 --sale double-eleven --members 1-200000 \\
      --rate 20000 --seconds 20 --connections 256 --accepted accepted.jsonl --out results/

  # The same with the ledger check: exit 3 when one unit, point or answer is wrong
  onrush-load run --target http://127.0.0.1:8080 --sale double-eleven --members 1-200000 \\
      --rate 20000 --seconds 20 --check --admin http://127.0.0.1:8081 \\
      --store sqlite:data/db --balances members.csv

Signals: SIGINT or SIGTERM ends the schedule and reports, a second one ends the drain, a third one
exits; SIGUSR1 sets a mark.";

#[derive(Debug, Args)]
#[command(after_help = RUN_EXAMPLES)]
pub struct RunArgs {
    /// Server, `http://HOST[:PORT][/PATH]`; several share the connections
    #[arg(long, value_name = "URL", required = true)]
    pub target: Vec<String>,

    #[command(flatten)]
    pub schedule: ScheduleArgs,
    #[command(flatten)]
    pub client: ClientArgs,
    #[command(flatten)]
    pub http: HttpArgs,
    #[command(flatten)]
    pub redeem: RedeemArgs,
    #[command(flatten)]
    pub check: CheckArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Schedule")]
pub struct ScheduleArgs {
    /// Requests per second [default: 100]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub rate: Option<f64>,
    /// How long the schedule lasts [default: 10]
    #[arg(long, value_name = "S", allow_negative_numbers = true)]
    pub seconds: Option<f64>,
    /// A phase, NAME:SECONDS:RATE or NAME:SECONDS:FROM-TO; several follow each other
    #[arg(long, value_name = "PHASE", conflicts_with = "rate")]
    pub phase: Vec<String>,
    /// How arrivals are spread at a given rate
    #[arg(long, value_enum, default_value_t)]
    pub arrivals: Arrivals,
    /// Closed loop over N connections: each sends when it was answered
    #[arg(long, value_name = "N", conflicts_with_all = ["rate", "phase", "connections"])]
    pub closed: Option<usize>,
    /// A mark in the report, NAME=SECONDS after the start: latencies before and after it
    #[arg(long, value_name = "MARK")]
    pub mark: Vec<String>,
    /// Decides all that is random; printed [default: a fresh one]
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Client")]
pub struct ClientArgs {
    /// Connections in all
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub connections: usize,
    /// Worker threads
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub threads: usize,
    /// Requests out on one connection at a time
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub pipeline: usize,
    /// Seconds to wait for a connect or an answer
    #[arg(long, value_name = "S", default_value_t = 10.0)]
    pub timeout: f64,
    /// Seconds to wait for outstanding answers after the schedule
    #[arg(long, value_name = "S", default_value_t = 30.0)]
    pub drain: f64,
    /// Seconds a request may be late before it counts as unsent, which makes the run invalid
    #[arg(long, value_name = "S", default_value_t = 10.0)]
    pub max_lag: f64,
    /// Attempts per request on failures and 503; 0: until answered [default: 1, with --sale 0]
    #[arg(long, value_name = "N")]
    pub attempts: Option<u32>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Any HTTP service")]
pub struct HttpArgs {
    /// Request method [default: GET, with a body POST]
    #[arg(long, value_name = "METHOD", conflicts_with = "sale")]
    pub method: Option<String>,
    /// Request field, 'NAME: VALUE'
    #[arg(long, value_name = "FIELD", conflicts_with = "sale")]
    pub header: Vec<String>,
    /// Request body
    #[arg(long, value_name = "TEXT", conflicts_with = "sale")]
    pub body: Option<String>,
    /// Request body from a file
    #[arg(long, value_name = "FILE", conflicts_with_all = ["sale", "body"])]
    pub body_file: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Redemptions")]
pub struct RedeemArgs {
    /// Redeem in this sale
    #[arg(long, value_name = "ID")]
    pub sale: Option<String>,
    /// Members, FIRST-LAST
    #[arg(long, value_name = "RANGE", default_value = "1-1000", requires = "sale")]
    pub members: String,
    /// What is wanted, SKU[:WEIGHT],… [default: the sale's items, equally]
    #[arg(long, value_name = "ITEMS", requires = "sale", value_delimiter = ',')]
    pub items: Vec<String>,
    /// Units per redemption
    #[arg(long, value_name = "N", default_value_t = 1, requires = "sale")]
    pub quantity: u32,
    /// Share of requests that hold first, 0 to 1
    #[arg(long, value_name = "SHARE", default_value_t = 0.0, requires = "sale")]
    pub holds: f64,
    /// Share of holds that are then confirmed
    #[arg(long, value_name = "SHARE", default_value_t = 0.8, requires = "sale")]
    pub confirms: f64,
    /// Share of holds that are cancelled; the rest is abandoned
    #[arg(long, value_name = "SHARE", default_value_t = 0.15, requires = "sale")]
    pub cancels: f64,
    /// Seconds, at most, before a hold is confirmed or cancelled
    #[arg(long, value_name = "S", default_value_t = 1.0, requires = "sale")]
    pub think: f64,
    /// Share of requests sent twice, the second time over another connection
    #[arg(long, value_name = "SHARE", default_value_t = 0.0, requires = "sale")]
    pub duplicates: f64,
    /// Writes one line of JSON per accepted redemption
    #[arg(long, value_name = "FILE", requires = "sale")]
    pub accepted: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Ledger check")]
pub struct CheckArgs {
    /// After the drain, holds every answer against what can be found (nobody else may be redeeming
    /// in this sale): stock, limits, points, one answer per key, nothing lost, nothing unasked
    #[arg(long, requires = "sale")]
    pub check: bool,
    /// The node's admin listener, for stock totals
    #[arg(long, value_name = "URL", requires = "check")]
    pub admin: Option<String>,
    /// Also reads the store: sqlite:DIR, a folder of database shards
    #[arg(long, value_name = "STORE", requires = "check")]
    pub store: Option<String>,
    /// Seconds the store may take to catch up
    #[arg(long, value_name = "S", default_value_t = 30.0, requires = "check")]
    pub store_wait: f64,
    /// Points before the run: a CSV file `member,points`, or `ask` to ask for each member
    #[arg(long, value_name = "FILE", requires = "check")]
    pub balances: Option<String>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Output")]
pub struct OutputArgs {
    /// Writes summary.json into this folder
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Prints the summary as JSON instead of the report
    #[arg(long)]
    pub json: bool,
    /// No progress on stderr
    #[arg(long, short)]
    pub quiet: bool,
}
