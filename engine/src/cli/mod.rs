//! The `onrush` command: what it takes, and what each part runs.
//!
//! Exit codes: 0 done, 1 something does not hold, 2 could not start, look or reach.

mod admin;
mod audit;
mod db;
mod import;
mod journal;
mod kafka;
mod letters;
mod sale_file;
mod split;
mod stock;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, CommandFactory as _, Parser, Subcommand};
use clap_complete::Shell;

use crate::app;
use crate::config::{Config, Overrides};
use crate::crash;
use crate::telemetry;

/// A flash-sale redemption engine for loyalty-points malls
#[derive(Parser)]
#[command(name = "onrush", version, propagate_version = true, arg_required_else_help = true)]
#[command(after_help = "Examples:
  onrush serve                                   a node on the embedded parts, data in ./data
  onrush import members members.csv              accounts and their opening points
  onrush import sale config/sales/demo.toml      a sale and its items
  onrush audit --data ./data                     does everything add up? (node stopped)
  onrush audit --admin http://127.0.0.1:8081     the same, of a running node")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a node
    #[command(after_help = "Examples:
  onrush serve
  onrush serve --data /srv/onrush --listen 127.0.0.1:8080 --admin 127.0.0.1:8081
  onrush serve --listen 127.0.0.1:0 --admin 127.0.0.1:0 --ready-file /run/onrush.addr
  # Node b of the settings' cluster, whose file all nodes share:
  ONRUSH__CLUSTER__SELF=b onrush serve --config /etc/onrush.toml")]
    Serve(ServeArgs),
    /// Write the database shards from Kafka, as one of any number of processes
    #[command(
        after_help = "With log.kind = \"kafka\". All processes with the same log.kafka.group share
the partitions; one that ends, or dies, is replaced by the others within seconds.

Examples:
  onrush persist --config config/onrush.toml
  onrush persist --metrics 127.0.0.1:9101
  ONRUSH__LOG__KIND=kafka ONRUSH__LOG__KAFKA__BOOTSTRAP=kafka-1:9092 onrush persist"
    )]
    Persist(PersistArgs),
    /// Make, check or read the Kafka topics
    #[command(subcommand, after_help = "Example: onrush kafka init --config config/onrush.toml")]
    Kafka(KafkaCommand),
    /// Bring members or a sale into a running node
    #[command(subcommand, after_help = "Example: onrush import members members.csv")]
    Import(ImportCommand),
    /// Check that everything adds up: journal, state and database shards
    #[command(after_help = "Exit codes: 0 all hold, 1 something does not, 2 could not look.

Examples:
  onrush audit --data ./data
  onrush audit --admin http://127.0.0.1:8081 --json
  # Kafka as well, and the database shards that the settings name:
  onrush audit --all --data ./data --config config/onrush.toml
  onrush audit --all --admin http://127.0.0.1:8081
  # Every running node of the settings' cluster, and Redis between them:
  onrush audit --all --config config/onrush.toml")]
    Audit(AuditArgs),
    /// Look into a data folder's journal
    #[command(subcommand, after_help = "Example: onrush journal verify --data ./data")]
    Journal(JournalCommand),
    /// The database shards: their schema, and how far they are
    #[command(subcommand, after_help = "Example: onrush db migrate --config config/onrush.toml")]
    Db(DbCommand),
    /// Pools of units in Redis, where nodes share one stock
    #[command(subcommand, after_help = "Example: onrush stock inspect")]
    Stock(StockCommand),
    /// Check or print the settings
    #[command(subcommand, after_help = "Example: onrush config print")]
    Config(ConfigCommand),
    /// Print a completion script for a shell
    #[command(after_help = "Example: onrush completions bash > /etc/bash_completion.d/onrush")]
    Completions { shell: Shell },
    /// List the places where a test may kill the process
    #[command(hide = true)]
    CrashPoints,
}

#[derive(Args)]
struct ServeArgs {
    /// Settings; config/onrush.toml where it is there, else built-in values
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The data folder [default: ./data]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Address for members; port 0 picks one [default: 127.0.0.1:8080]
    #[arg(long, value_name = "ADDR")]
    listen: Option<SocketAddr>,
    /// Address for operators; port 0 picks one [default: 127.0.0.1:8081]
    #[arg(long, value_name = "ADDR")]
    admin: Option<SocketAddr>,
    /// Write the two addresses there, a line each, once the node is ready
    #[arg(long, value_name = "FILE")]
    ready_file: Option<PathBuf>,
}

#[derive(Args)]
#[command(args_conflicts_with_subcommands = true)]
struct PersistArgs {
    #[command(subcommand)]
    command: Option<PersistCommand>,
    /// Settings; config/onrush.toml where it is there, else built-in values
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The data folder, for database shards that are files in it [default: ./data]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Show /metrics and /livez there; port 0 picks one
    #[arg(long, value_name = "ADDR")]
    metrics: Option<SocketAddr>,
}

#[derive(Subcommand)]
enum PersistCommand {
    /// Records that could not be applied, and those that wait for them
    #[command(subcommand, after_help = "Example: onrush persist dead-letters list --data ./data")]
    DeadLetters(LettersCommand),
}

/// Which databases.
#[derive(Args)]
struct LettersArgs {
    /// Settings; config/onrush.toml where it is there, else built-in values
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The data folder, for database shards that are files in it [default: ./data]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
}

#[derive(Subcommand)]
enum LettersCommand {
    /// Print them, a line each: SHARD/ID, member, record, reason
    #[command(after_help = "Exit codes: 0 there are none, 1 there are some, 2 could not look.

Example: onrush persist dead-letters list --data ./data")]
    List(LettersArgs),
    /// Print one whole
    #[command(after_help = "Example: onrush persist dead-letters show 2/17")]
    Show {
        /// As the list says
        #[arg(value_name = "SHARD/ID")]
        name: String,
        #[command(flatten)]
        of: LettersArgs,
    },
    /// Apply those that fit by now, in order. A running persist does so too, every minute
    #[command(after_help = "Exit codes: 0 none is left, 1 some are, 2 could not look.

Example: onrush persist dead-letters retry --config config/onrush.toml")]
    Retry(LettersArgs),
}

#[derive(Subcommand)]
enum KafkaCommand {
    /// Make the topics that are missing, with the settings of [log.kafka]; check those there
    #[command(after_help = "Safe to run twice. Exit codes: 0 all are as they should be, 2 not.

Example: onrush kafka init --config config/onrush.toml")]
    Init {
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// Say whether the topics are as [log.kafka] says
    #[command(after_help = "Example: onrush kafka check --config config/onrush.toml")]
    Check {
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// Print the records topic's messages
    #[command(after_help = "Examples:
  onrush kafka inspect
  onrush kafka inspect --partition 32 --from 0 --limit 20")]
    Inspect {
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// Only this partition: 0 to 31 are members', 32 is sales and stock
        #[arg(long, value_name = "N")]
        partition: Option<u8>,
        /// First offset to print
        #[arg(long, value_name = "OFFSET", default_value_t = 0)]
        from: i64,
        /// Messages to print at most
        #[arg(long, value_name = "N", default_value_t = u64::MAX, hide_default_value = true)]
        limit: u64,
    },
}

/// Where a running node's operators' listener is.
#[derive(Args, Clone)]
struct AdminUrl {
    /// The node's admin listener
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8081", env = "ONRUSH_ADMIN")]
    admin: String,
    /// Who asks: written into the journal beside the change
    #[arg(long, value_name = "NAME", env = "USER", default_value = "onrush-cli")]
    operator: String,
}

#[derive(Subcommand)]
enum ImportCommand {
    /// Open accounts from a CSV file (first line: member,points). Safe to run twice
    #[command(after_help = "Examples:
  onrush import members members.csv
  onrush import members members.csv --skip-bad-rows --admin http://127.0.0.1:8081")]
    Members {
        #[arg(value_name = "FILE.csv")]
        file: PathBuf,
        /// Apply the good rows of a file that has bad ones too
        #[arg(long)]
        skip_bad_rows: bool,
        #[command(flatten)]
        node: AdminUrl,
    },
    /// Define a sale from a TOML file. Safe to run twice
    #[command(after_help = "Example: onrush import sale config/sales/demo.toml")]
    Sale {
        #[arg(value_name = "FILE.toml")]
        file: PathBuf,
        #[command(flatten)]
        node: AdminUrl,
    },
}

#[derive(Args)]
#[group(multiple = false)]
struct AuditTarget {
    /// A stopped node's data folder; more than once: all nodes, as one
    #[arg(long, value_name = "DIR")]
    data: Vec<PathBuf>,
    /// A running node's admin listener; more than once: all nodes, as one
    #[arg(long, value_name = "URL")]
    admin: Vec<String>,
}

#[derive(Args)]
struct AuditArgs {
    #[command(flatten)]
    target: AuditTarget,
    /// Also compares Kafka, where the settings name it as the log
    #[arg(long)]
    all: bool,
    /// Settings that say which nodes there are, and where Redis, a stopped node's database shards
    /// and Kafka are
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// One JSON document instead of text
    #[arg(long)]
    json: bool,
}

#[derive(Subcommand)]
enum JournalCommand {
    /// Print segments, frames and records
    #[command(after_help = "Examples:
  onrush journal inspect --data ./data
  onrush journal inspect --data ./data --from 1000 --limit 20")]
    Inspect {
        #[arg(long, value_name = "DIR", default_value = "data")]
        data: PathBuf,
        /// First sequence number to print
        #[arg(long, value_name = "SEQ", default_value_t = 1)]
        from: u64,
        /// Records to print at most
        #[arg(long, value_name = "N", default_value_t = u64::MAX, hide_default_value = true)]
        limit: u64,
    },
    /// Check every frame and record, without changing anything
    #[command(after_help = "Exit codes: 0 sound, 1 damaged, 2 could not look.

Example: onrush journal verify --data ./data")]
    Verify {
        #[arg(long, value_name = "DIR", default_value = "data")]
        data: PathBuf,
    },
}

#[derive(Subcommand)]
enum DbCommand {
    /// Bring every database shard to the newest schema. Safe to run twice
    #[command(after_help = "Exit codes: 0 done, 1 a database refuses, 2 one could not be reached.

Examples:
  onrush db migrate --config config/onrush.toml
  onrush db migrate --partitions-from 2026-01")]
    Migrate {
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// The first month with a partition of its own [default: the present one]
        #[arg(long, value_name = "YYYY-MM")]
        partitions_from: Option<String>,
    },
    /// Take whole months out of the databases, into compressed files with checksums
    #[command(after_help = "Every file is read back and compared row for row before its
month is dropped. Killed at any moment, the same command goes on where it was. What is archived can
no longer be confirmed, cancelled or reversed: keep the months that may still change.

Exit codes: 0 done, 1 something does not hold and stays, 2 a database could not be reached.

Example: onrush db archive --before 2026-01 --to /srv/archive")]
    Archive {
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// The first month that stays
        #[arg(long, value_name = "YYYY-MM")]
        before: String,
        /// Where the files go, a folder per database shard
        #[arg(long, value_name = "DIR")]
        to: PathBuf,
    },
    /// Move partitions of members to another database shard, while the sale and all others go on
    #[command(after_help = "Add the new database's URL to store.mysql.urls, behind the others, run
`onrush db migrate`, and restart nodes and persist processes with these settings: the new database
shard holds nothing yet. Then this command stops the partitions, copies them, compares every row on
both sides, and only then switches; members of these partitions are stored a little later, all
others as ever. Killed at any moment, the same command (or one without arguments) goes on where it
was. A partition is 128 slots of members; `onrush db status` tells which database shard holds which.

Exit codes: 0 done, 1 something does not hold and nothing was switched, 2 a database could not be
reached.

Examples:
  onrush db split --to 2 --partitions 0-7,16-23
  onrush db split --to 2 --slots 0-1023
  onrush db split                      finish what was interrupted
  onrush db split --abandon            take back what is not switched yet")]
    Split {
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// The database shard that they go to
        #[arg(long, value_name = "N", requires = "what")]
        to: Option<u8>,
        /// Which partitions, 0 to 31
        #[arg(long, value_name = "LIST", group = "what", requires = "to")]
        partitions: Option<String>,
        /// The same by slots, 0 to 4095: ranges of whole partitions
        #[arg(long, value_name = "LIST", group = "what", requires = "to")]
        slots: Option<String>,
        /// Take back what is under way and not switched yet
        #[arg(long, conflicts_with_all = ["to", "partitions", "slots"])]
        abandon: bool,
    },
    /// Tell the schema's version, partitions, watermarks and dead letters
    #[command(
        after_help = "Exit codes: 0 good, 1 something needs a hand, 2 one could not be reached.

Example: onrush db status --config config/onrush.toml"
    )]
    Status {
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
}

#[derive(Subcommand)]
enum StockCommand {
    /// Show what Redis knows of items: pools, epochs, and each journal's counters
    #[command(after_help = "Exit codes: 0 every pool is open, 1 one waits for something, 2 Redis
could not be reached.

Examples:
  onrush stock inspect --config config/onrush.toml
  onrush stock inspect --sale spring --sku kettle --json")]
    Inspect {
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        #[arg(long, value_name = "SALE")]
        sale: Option<String>,
        #[arg(long, value_name = "SKU")]
        sku: Option<String>,
        /// An array of pools, for programs
        #[arg(long)]
        json: bool,
    },
    /// Make pools anew from what the nodes' journals report: all, a sale's, or one
    #[command(after_help = "For when Redis' counters are in doubt: data was restored or edited by
hand. A pool that lost its server or its writes is rebuilt without this. Until every journal has
reported, nothing is granted, and nodes sell what they hold; nothing is oversold or lost.

Exit codes: 0 open again, 1 it still waits for what was printed, 2 no Redis or no such pool.

Examples:
  onrush stock rebuild --config config/onrush.toml
  onrush stock rebuild --sale spring --sku kettle")]
    Rebuild {
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        #[arg(long, value_name = "SALE")]
        sale: Option<String>,
        #[arg(long, value_name = "SKU")]
        sku: Option<String>,
        /// How long to look on
        #[arg(long, value_name = "MS", default_value_t = 10_000)]
        wait_ms: u64,
    },
}

#[derive(Subcommand)]
enum ConfigCommand {
    /// Say whether the settings are good
    #[command(after_help = "Example: onrush config check --config config/onrush.toml")]
    Check {
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// Print the settings in force, secrets masked
    #[command(after_help = "Example: ONRUSH__SHARDS__COUNT=4 onrush config print")]
    Print {
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
}

/// Runs the command. Errors are one clear line on stderr.
pub fn run() -> ExitCode {
    let cli = Cli::parse();
    match dispatch(cli.command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("onrush: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn dispatch(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Serve(args) => serve(args),
        Command::Persist(args) => persist(args),
        Command::Kafka(KafkaCommand::Init { config }) => kafka::init(config.as_deref()),
        Command::Kafka(KafkaCommand::Check { config }) => kafka::check(config.as_deref()),
        Command::Kafka(KafkaCommand::Inspect { config, partition, from, limit }) => {
            kafka::inspect(config.as_deref(), partition, from, limit)
        }
        Command::Import(ImportCommand::Members { file, skip_bad_rows, node }) => {
            import::members(&file, skip_bad_rows, &node)
        }
        Command::Import(ImportCommand::Sale { file, node }) => import::sale(&file, &node),
        Command::Audit(AuditArgs { target, all, config, json }) => {
            audit::run(&target.data, &target.admin, config.as_deref(), all, json)
        }
        Command::Journal(JournalCommand::Inspect { data, from, limit }) => {
            journal::inspect(&data, from, limit)
        }
        Command::Journal(JournalCommand::Verify { data }) => journal::verify(&data),
        Command::Db(DbCommand::Migrate { config, partitions_from }) => {
            db::migrate(config.as_deref(), partitions_from.as_deref())
        }
        Command::Db(DbCommand::Archive { config, before, to }) => {
            crash::arm_from_env().map_err(anyhow::Error::msg)?;
            db::archive(config.as_deref(), &before, &to)
        }
        Command::Db(DbCommand::Split { config, to, partitions, slots, abandon }) => {
            crash::arm_from_env().map_err(anyhow::Error::msg)?;
            let wanted = split::Wanted { to, partitions, slots };
            split::split(config.as_deref(), &wanted, abandon)
        }
        Command::Db(DbCommand::Status { config }) => db::status(config.as_deref()),
        Command::Stock(StockCommand::Inspect { config, sale, sku, json }) => {
            stock::inspect(config.as_deref(), sale.as_deref(), sku.as_deref(), json)
        }
        Command::Stock(StockCommand::Rebuild { config, sale, sku, wait_ms }) => {
            stock::rebuild(config.as_deref(), sale.as_deref(), sku.as_deref(), wait_ms)
        }
        Command::Config(ConfigCommand::Check { config }) => {
            Config::load(config.as_deref(), Overrides::default())?;
            println!("The settings are good.");
            Ok(ExitCode::SUCCESS)
        }
        Command::Config(ConfigCommand::Print { config }) => {
            print!("{}", Config::load(config.as_deref(), Overrides::default())?.print());
            Ok(ExitCode::SUCCESS)
        }
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "onrush", &mut std::io::stdout());
            Ok(ExitCode::SUCCESS)
        }
        Command::CrashPoints => {
            for point in crash::CrashPoint::ALL {
                println!("{}", point.name());
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn persist(args: PersistArgs) -> anyhow::Result<ExitCode> {
    if let Some(PersistCommand::DeadLetters(command)) = args.command {
        return match command {
            LettersCommand::List(of) => letters::list(of.config.as_deref(), of.data),
            LettersCommand::Show { name, of } => {
                letters::show(of.config.as_deref(), of.data, &name)
            }
            LettersCommand::Retry(of) => letters::retry(of.config.as_deref(), of.data),
        };
    }
    crash::arm_from_env().map_err(anyhow::Error::msg)?;
    let overrides = Overrides { data: args.data, ..Overrides::default() };
    let config = Config::load(args.config.as_deref(), overrides)?;
    telemetry::logs::init().map_err(|e| anyhow::anyhow!("logs: {e}"))?;
    app::persist(&config, args.metrics).context("cannot persist")
}

fn serve(args: ServeArgs) -> anyhow::Result<ExitCode> {
    crash::arm_from_env().map_err(anyhow::Error::msg)?;
    let overrides = Overrides { data: args.data, listen: args.listen, admin: args.admin };
    let config = Config::load(args.config.as_deref(), overrides)?;
    telemetry::logs::init().map_err(|e| anyhow::anyhow!("logs: {e}"))?;
    app::serve(config, args.ready_file.as_deref()).context("cannot serve")
}
