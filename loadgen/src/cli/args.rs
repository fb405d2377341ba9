//! Flags and their help; a scenario file has the same names, in tables by the headings here.

use std::path::PathBuf;

use crate::check::store::Store;
use clap::{Args, Parser, Subcommand};
use serde::Deserialize;

use crate::cli::phase::PhaseArg;
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
  1   usage, no connection ever succeeded, or a file could not be written
  2   invalid run: the generator was the bottleneck, or requests went unsent
  3   the ledger is violated: units, points or answers are wrong
  99  a threshold was missed
Where several hold: 3, then 2, then 99.";

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Puts load on a server and reports what came back
    Run(Box<RunArgs>),
    /// Checks a scenario file, or a file of accepted redemptions against a node's database shards
    #[command(after_help = CHECK_EXAMPLES)]
    Check(CheckFileArgs),
    /// Shows a run again that `run --out` kept
    #[command(after_help = REPORT_EXAMPLES)]
    Report(ReportArgs),
    /// Adds up runs that went on at the same time on several machines; exit code as of one run
    #[command(after_help = "Example:\n  onrush-load merge a/ b/ c/ --out all/")]
    Merge(MergeArgs),
    /// Says which differences between runs exceed the noise of repeated runs; exit 99 if worse
    #[command(after_help = COMPARE_EXAMPLES)]
    Compare(CompareArgs),
    /// Finds what this machine can generate
    #[command(after_help = "Example:\n  onrush-load calibrate --threads 2 --connections 256")]
    Calibrate(CalibrateArgs),
    /// Sends load for runs that are conducted elsewhere
    #[command(after_help = AGENT_EXAMPLE)]
    Agent(AgentArgs),
    /// Prints the man page
    #[command(after_help = "Example:\n  onrush-load man | man -l -")]
    Man,
    /// Lists the presets, or prints one, to start a scenario of one's own from
    #[command(after_help = "Example:\n  onrush-load preset steady > my.toml")]
    Preset { name: Option<String> },
    /// Prints a shell's completion script
    #[command(after_help = COMPLETIONS_EXAMPLE)]
    Completions { shell: clap_complete::Shell },
}

const COMPLETIONS_EXAMPLE: &str = "\
Example:
  onrush-load completions bash \\
    > ~/.local/share/bash-completion/completions/onrush-load";

const AGENT_EXAMPLE: &str = "\
Example:
  head -c 32 /dev/urandom | base64 > token      # the same file on every machine
  onrush-load agent --listen 10.0.0.5:8199 --token-file token      # and on 10.0.0.6
  onrush-load run steady --agents 10.0.0.5:8199,10.0.0.6:8199 --token-file token

Whoever knows the token can make the agent send any load anywhere: listen on a private network.";

const REPORT_EXAMPLES: &str = "\
Examples:
  onrush-load report results/
  onrush-load report results/ --html page.html --baseline before/";

const COMPARE_EXAMPLES: &str = "\
Example:
  # Five runs before a change and five after it; each folder has run-1 to run-5
  onrush-load run steady --repeat 5 --out before/
  onrush-load run steady --repeat 5 --out after/
  onrush-load compare before/ after/";

#[derive(Debug, Args)]
pub struct ReportArgs {
    /// Folder that `run --out` wrote
    pub run: PathBuf,
    /// Writes the page anew into this file
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Folder of the run that the page compares this one with
    #[arg(long, value_name = "DIR")]
    pub baseline: Option<PathBuf>,
    /// Prints the summary as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct MergeArgs {
    /// Folders that `run --out` wrote
    #[arg(required = true)]
    pub runs: Vec<PathBuf>,
    /// Writes the sum's files into this folder
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Prints the summary as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct CompareArgs {
    /// Folder of the run to compare with, or of several: noise is known from repeated runs alone
    pub baseline: PathBuf,
    /// Folders of the runs to judge, each of a run or of several
    #[arg(required = true)]
    pub runs: Vec<PathBuf>,
}

#[derive(Debug, Args)]
pub struct CalibrateArgs {
    /// Server to calibrate against [default: one in this process]
    #[arg(long, value_name = "URL")]
    pub target: Option<String>,
    /// Seconds of each step
    #[arg(long, value_name = "S", default_value_t = 1.0)]
    pub seconds: f64,
    /// Connections in all
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub connections: usize,
    /// Worker threads
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub threads: usize,
    /// Requests out on one connection at a time
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub pipeline: usize,
}

const CHECK_EXAMPLES: &str = "\
Examples:
  # What a scenario plans, or what is wrong with it
  onrush-load check config/load/double-eleven.toml

  # Whether every 201 that a run saw is stored as it was told: exit 3 when one is not.
  # The store must have caught up.
  onrush-load check --accepted accepted.jsonl --data ./data
  onrush-load check --accepted accepted.jsonl --store mysql://root@127.0.0.1:3306/onrush";

#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("what").required(true))]
pub struct CheckFileArgs {
    /// Scenario file, or the name of a preset
    #[arg(group = "what")]
    pub scenario: Option<PathBuf>,
    /// File that `run --accepted` wrote
    #[arg(long, value_name = "FILE", group = "what", requires = "where")]
    pub accepted: Option<PathBuf>,
    /// The node's data folder; its database shards are read
    #[arg(long, value_name = "DIR", requires = "accepted", group = "where")]
    pub data: Option<PathBuf>,
    /// The database shards, where they are not in a data folder: as run's --store
    #[arg(long, value_name = "STORE", requires = "accepted", group = "where")]
    pub store: Option<Store>,
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

  # A POST per row of a file: users.csv begins with the line `id,city`
  onrush-load run --target 'http://127.0.0.1:8080/users/{{id}}' --data users.csv \\
      --body '{\"city\":\"{{city}}\"}' --rate 1000 --seconds 10

  # What an access log recorded, twice as fast
  onrush-load run --target http://127.0.0.1:8080 --replay access.log --replay-speed 2

  # A scenario file or a preset, with some values of one's own
  onrush-load run config/load/steady.toml --rate 500
  onrush-load run double-eleven --target http://127.0.0.1:8080 --sale spring --threshold 'p99<50ms'

  # A flash sale: 200,000 members, the sale's own items, retries with the same key
  onrush-load run --target http://127.0.0.1:8080 --sale double-eleven --members 1-200000 \\
      --rate 20000 --seconds 20 --connections 256 --accepted accepted.jsonl --out results/

  # The same with the ledger check: exit 3 when one unit, point or answer is wrong
  onrush-load run --target http://127.0.0.1:8080 --sale double-eleven --members 1-200000 \\
      --rate 20000 --seconds 20 --check --admin http://127.0.0.1:8081 \\
      --store sqlite:data/db --balances members.csv

  # HTTP/2, ten connections with up to 50 requests each
  onrush-load run --target https://shop.example/ --http2 --connections 10 --pipeline 50 --rate 2000

  # Three nodes
  onrush-load run steady --target http://10.0.0.1:8080 --target http://10.0.0.2:8080 \\
      --target http://10.0.0.3:8080

Signals: SIGINT or SIGTERM ends the schedule, waits for what is out, and reports; a second one exits
at once. SIGUSR1 sets a mark.";

#[derive(Debug, Args)]
#[command(after_help = RUN_EXAMPLES)]
pub struct RunArgs {
    /// Scenario file, or the name of a preset; flags override its values
    pub scenario: Option<PathBuf>,
    #[command(flatten)]
    pub scenario_args: ScenarioArgs,
    #[command(flatten)]
    pub output: OutputArgs,
    #[command(flatten)]
    pub agents: AgentsArgs,
}

#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Several machines")]
pub struct AgentsArgs {
    /// Agents that send the load, HOST:PORT,…: one schedule, split exactly
    #[arg(long, value_name = "LIST", value_delimiter = ',', requires = "token_file")]
    pub agents: Vec<String>,
    /// File with the token that the agents know
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct AgentArgs {
    /// Address to listen on
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8199")]
    pub listen: std::net::SocketAddr,
    /// File with the token that a run must know; at least 16 bytes
    #[arg(long, value_name = "FILE")]
    pub token_file: PathBuf,
}

/// All that a scenario file can say.
#[derive(Debug, Default, Clone, Args, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ScenarioArgs {
    /// Server, `http://HOST[:PORT][/PATH]` or `https://…`; given more than once, the connections
    /// are spread over them
    #[arg(long, value_name = "URL")]
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
}

#[derive(Debug, Default, Clone, Args, Deserialize)]
#[command(next_help_heading = "Schedule")]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct ScheduleArgs {
    /// Requests per second [default: 100]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub rate: Option<f64>,
    /// How long the schedule lasts; phases are stretched or shortened to it [default: 10]
    #[arg(long, value_name = "S", allow_negative_numbers = true)]
    pub seconds: Option<f64>,
    /// A phase, NAME:SECONDS:RATE or NAME:SECONDS:FROM-TO, and :polls=SHARE behind it where only
    /// this phase has it; several follow each other
    #[arg(long, value_name = "PHASE", conflicts_with = "rate")]
    pub phase: Vec<PhaseArg>,
    /// How arrivals are spread at a given rate [default: even]
    #[arg(long, value_enum)]
    pub arrivals: Option<Arrivals>,
    /// Recorded arrivals instead of a rate: an access log (common or combined format), whose
    /// methods and paths are sent below the target's (lines without a request are left out), or a
    /// CSV file with a column `seconds`, and `method` and `path` where it has them
    #[arg(long, value_name = "FILE", conflicts_with_all = ["rate", "phase", "seconds"])]
    pub replay: Option<PathBuf>,
    /// How much faster than it was recorded [default: 1]
    #[arg(long, value_name = "FACTOR")]
    pub replay_speed: Option<f64>,
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

#[derive(Debug, Default, Clone, Args, Deserialize)]
#[command(next_help_heading = "Client")]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct ClientArgs {
    /// Connections in all [default: 64]
    #[arg(long, value_name = "N")]
    pub connections: Option<usize>,
    /// Worker threads [default: 1]
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
    /// Requests out on one connection at a time [default: 1, with HTTP/2 100]
    #[arg(long, value_name = "N")]
    pub pipeline: Option<usize>,
    /// HTTP/2 or nothing: agreed on with https://, known beforehand with http://. Requests share
    /// the connections, --pipeline of them each; what is asked beside the load (the sale, the
    /// check) goes over HTTP/1.1
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true,
          default_missing_value = "true")]
    pub http2: Option<bool>,
    /// Seconds to wait for a connect or an answer [default: 10]
    #[arg(long, value_name = "S")]
    pub timeout: Option<f64>,
    /// Seconds to wait for outstanding answers after the schedule [default: 30]
    #[arg(long, value_name = "S")]
    pub drain: Option<f64>,
    /// Seconds a request may be late before it counts as unsent, which makes the run invalid
    /// [default: 10]
    #[arg(long, value_name = "S")]
    pub max_lag: Option<f64>,
    /// Seconds the generator itself may be late, for 1 % of requests, before it counts as the
    /// bottleneck, which makes the run invalid. Below 1 it also counts as that when it had no time
    /// left on its processor and 1 % went out 5 ms late, or the loop is closed [default: 0.1]
    #[arg(long, value_name = "S")]
    pub max_own_lag: Option<f64>,
    /// Share of connections that read slowly, so that the server's answers pile up [default: 0]
    #[arg(long, value_name = "SHARE")]
    pub slow_readers: Option<f64>,
    /// Bytes per second that each of them reads [default: 1024]
    #[arg(long, value_name = "BYTES")]
    pub slow_rate: Option<u64>,
    /// Connections closed and opened anew per second, in all, as clients come and go [default: 0]
    #[arg(long, value_name = "N")]
    pub reopen: Option<f64>,
    /// Certificates to trust instead of the system's, in PEM
    #[arg(long, value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// Trusts any certificate
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true,
          default_missing_value = "true")]
    pub insecure: Option<bool>,
    /// Attempts per request on failures and the statuses of --retry-on; 0: until answered
    /// [default: 1, with a sale 0]
    #[arg(long, value_name = "N")]
    pub attempts: Option<u32>,
    /// Statuses that are asked again with the same key [default: 503]
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub retry_on: Vec<u16>,
    /// Seconds before the second attempt, FIRST-LONGEST: doubled each time up to the longest, half
    /// of it by chance; a Retry-After counts up to the longest [default: 0.02-1]
    #[arg(long, value_name = "WAIT")]
    pub retry_wait: Option<String>,
}

#[derive(Debug, Default, Clone, Args, Deserialize)]
#[command(next_help_heading = "Any HTTP service")]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct HttpArgs {
    /// Request method [default: GET, with a body POST]
    #[arg(long, value_name = "METHOD")]
    pub method: Option<String>,
    /// Request field, 'NAME: VALUE'
    #[arg(long, value_name = "FIELD")]
    pub header: Vec<String>,
    /// Request body
    #[arg(long, value_name = "TEXT")]
    pub body: Option<String>,
    /// CSV file with a head: its rows fill {{COLUMN}} in the target's path, the fields and the
    /// body, in turns; {{number}} and {{random}} need no file
    #[arg(long, value_name = "FILE")]
    pub data: Option<PathBuf>,
    /// Rows by chance instead of in turns
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true,
          default_missing_value = "true")]
    pub data_random: Option<bool>,
    /// Request body from a file
    #[arg(long, value_name = "FILE", conflicts_with = "body")]
    pub body_file: Option<PathBuf>,
}

#[derive(Debug, Default, Clone, Args, Deserialize)]
#[command(next_help_heading = "Redemptions")]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct RedeemArgs {
    /// Redeem in this sale
    #[arg(long, value_name = "ID")]
    pub sale: Option<String>,
    /// Members: FIRST-LAST, or a CSV file with a column `member` [default: 1-1000]
    #[arg(long, value_name = "WHO")]
    pub members: Option<String>,
    /// Who of them comes: `uniform`, `zipf:EXPONENT`, or `hot:COUNT:SHARE` (the first COUNT, bots
    /// say, make this share of the requests) [default: uniform]
    #[arg(long, value_name = "CHOICE")]
    pub choice: Option<String>,
    /// What is wanted, SKU[:WEIGHT],… [default: the sale's items, equally]
    #[arg(long, value_name = "ITEMS", value_delimiter = ',')]
    pub items: Vec<String>,
    /// Share of redemptions that want the first item; the others share the rest
    #[arg(long, value_name = "SHARE")]
    pub hot_item: Option<f64>,
    /// Units per redemption [default: 1]
    #[arg(long, value_name = "N")]
    pub quantity: Option<u32>,
    /// Share of requests that only look at the sale, as countdowns do, 0 to 1 [default: 0]
    #[arg(long, value_name = "SHARE")]
    pub polls: Option<f64>,
    /// Share of redemptions that hold first [default: 0]
    #[arg(long, value_name = "SHARE")]
    pub holds: Option<f64>,
    /// Share of holds that are then confirmed [default: 0.8]
    #[arg(long, value_name = "SHARE")]
    pub confirms: Option<f64>,
    /// Share of holds that are cancelled; the rest is abandoned [default: 0.15]
    #[arg(long, value_name = "SHARE")]
    pub cancels: Option<f64>,
    /// Seconds, at most, before a hold is confirmed or cancelled [default: 1]
    #[arg(long, value_name = "S")]
    pub think: Option<f64>,
    /// Share of redemptions that come from bots, which hammer [default: 0]
    #[arg(long, value_name = "SHARE")]
    pub bots: Option<f64>,
    /// Keys that a bot sends at once for the same item [default: 10]
    #[arg(long, value_name = "N")]
    pub hammer: Option<u32>,
    /// Share of redemptions sent twice, the second time over another connection [default: 0]
    #[arg(long, value_name = "SHARE")]
    pub duplicates: Option<f64>,
}

#[derive(Debug, Default, Clone, Args, Deserialize)]
#[command(next_help_heading = "Checks")]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct CheckArgs {
    /// What must hold, such as 'p99<20ms', 'p99.9{phase=spike}<50ms', 'error-rate<0.1%',
    /// 'rps>=50000', 'undersold==0'; else exit 99
    #[arg(long, value_name = "THRESHOLD")]
    pub threshold: Vec<String>,
    /// After the drain, holds every answer against what can be found (nobody else may be redeeming
    /// in this sale): stock, limits, points, one answer per key, nothing lost, nothing unasked
    #[arg(long = "check", value_name = "BOOL", num_args = 0..=1, require_equals = true,
          default_missing_value = "true")]
    #[serde(rename = "ledger")]
    pub check: Option<bool>,
    /// Ends the run early when it cannot become good: a finding, an unsent request, or a threshold
    /// on latency or errors that is missed for three seconds
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true,
          default_missing_value = "true")]
    pub abort_on_fail: Option<bool>,
    /// The node's admin listener, for stock totals; of several nodes any, which then asks the
    /// others, or each. Needed where the target is one of several nodes: what it has free itself is
    /// no bound for what it sells
    #[arg(long, value_name = "URL")]
    pub admin: Vec<String>,
    /// Also reads the store by SQL: sqlite:DIR, a folder of database shards, or
    /// mysql://USER@HOST:PORT/DATABASE, a URL for each database shard with commas in between
    #[arg(long, value_name = "STORE")]
    pub store: Option<String>,
    /// Seconds the store may take to catch up [default: 30]
    #[arg(long, value_name = "S")]
    pub store_wait: Option<f64>,
    /// Points before the run: a CSV file `member,points`, or `ask` to ask for each member
    #[arg(long, value_name = "FILE")]
    pub balances: Option<String>,
}

#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Output")]
pub struct OutputArgs {
    /// Writes summary.json, figures.json, seconds.csv, latency.hlog, report.html into this folder
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Writes one line of JSON per accepted redemption
    #[arg(long, value_name = "FILE")]
    pub accepted: Option<PathBuf>,
    /// Runs it N times, each with a seed of its own, into run-1, run-2, … of --out: so that
    /// `compare` knows the noise
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub repeat: u32,
    /// Folder of a run that report.html compares this one with
    #[arg(long, value_name = "DIR", requires = "out")]
    pub baseline: Option<PathBuf>,
    /// Serves live figures at this address, for Prometheus
    #[arg(long, value_name = "ADDR")]
    pub prometheus: Option<std::net::SocketAddr>,
    /// Prints the summary as JSON instead of the report
    #[arg(long)]
    pub json: bool,
    /// Shows the run on a screen: rates, outcomes, latencies, lag, a heat strip; lines where stderr
    /// is no terminal
    #[arg(long, conflicts_with = "quiet")]
    pub tui: bool,
    /// No progress on stderr
    #[arg(long, short)]
    pub quiet: bool,
}

macro_rules! overlay {
    ($($type:ident { $($option:ident),*; $($list:ident),* })*) => {
        $(impl $type {
            /// Puts these values over those of a file.
            #[must_use]
            fn over(self, file: Self) -> Self {
                Self {
                    $($option: self.$option.or(file.$option),)*
                    $($list: if self.$list.is_empty() { file.$list } else { self.$list },)*
                }
            }
        })*
    };
}

overlay! {
    ClientArgs {
        connections, threads, pipeline, timeout, drain, max_lag, max_own_lag, slow_readers,
        slow_rate, reopen, attempts, retry_wait, ca, insecure, http2; retry_on
    }
    RedeemArgs {
        sale, members, choice, hot_item, quantity, polls, holds, confirms, cancels, think,
        duplicates, bots, hammer; items
    }
    CheckArgs { check, abort_on_fail, store, store_wait, balances; threshold, admin }
}

impl ScheduleArgs {
    /// Whether a file's phases count no more.
    pub fn has_shape(&self) -> bool {
        let has_other = self.rate.is_some() || self.closed.is_some() || self.replay.is_some();
        has_other || !self.phase.is_empty()
    }

    /// A rate, phases or a closed loop replace the file's whole shape.
    fn over(self, file: Self) -> Self {
        let mut base = file;
        if self.has_shape() {
            base = Self {
                rate: None,
                seconds: None,
                phase: Vec::new(),
                closed: None,
                replay: None,
                ..base
            };
        }
        Self {
            rate: self.rate.or(base.rate),
            seconds: self.seconds.or(base.seconds),
            phase: if self.phase.is_empty() { base.phase } else { self.phase },
            arrivals: self.arrivals.or(base.arrivals),
            replay: self.replay.or(base.replay),
            replay_speed: self.replay_speed.or(base.replay_speed),
            closed: self.closed.or(base.closed),
            mark: if self.mark.is_empty() { base.mark } else { self.mark },
            seed: self.seed.or(base.seed),
        }
    }
}

impl HttpArgs {
    /// A body replaces the file's, however it is given.
    fn over(self, file: Self) -> Self {
        let has_body = self.body.is_some() || self.body_file.is_some();
        Self {
            method: self.method.or(file.method),
            header: if self.header.is_empty() { file.header } else { self.header },
            body: self.body.or(file.body.filter(|_| !has_body)),
            body_file: self.body_file.or(file.body_file.filter(|_| !has_body)),
            data: self.data.or(file.data),
            data_random: self.data_random.or(file.data_random),
        }
    }

    pub fn is_empty(&self) -> bool {
        let Self { method, header, body, body_file, data, data_random } = self;
        let has_body = body.is_some() || body_file.is_some();
        let has_data = data.is_some() || data_random.is_some();
        method.is_none() && header.is_empty() && !has_body && !has_data
    }
}

impl ScenarioArgs {
    /// Puts the flags over a file's values.
    #[must_use]
    pub fn over(self, mut file: Self) -> Self {
        // A closed loop has as many connections as its number says.
        if let (Some(_), Some(connections)) = (file.schedule.closed, self.client.connections) {
            file.schedule.closed = Some(connections);
        }
        Self {
            target: if self.target.is_empty() { file.target } else { self.target },
            schedule: self.schedule.over(file.schedule),
            client: self.client.over(file.client),
            http: self.http.over(file.http),
            redeem: self.redeem.over(file.redeem),
            check: self.check.over(file.check),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn every_example_of_the_help_is_understood() {
        let mut count = 0;
        for command in Cli::command().get_subcommands() {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            let joined = help.replace("\\\n", " ").replace(['\'', '"'], "");
            let lines = joined.lines().map(str::trim).filter(|l| l.starts_with("onrush-load "));
            for line in lines {
                let words = line.split_whitespace().take_while(|w| !["|", ">", "#"].contains(w));
                // Words in quotes have come apart; a field's value is no argument of its own.
                let words = words.filter(|w| *w != "application/json");
                let parsed = Cli::try_parse_from(words);
                assert!(parsed.is_ok(), "{line}: {}", parsed.unwrap_err());
                count += 1;
            }
        }
        assert!(count > 20, "{count}");
    }
}
