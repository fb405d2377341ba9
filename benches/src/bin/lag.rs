//! How long a redemption is on its way to its row, and what shipping costs the sale.
//!
//! ```text
//!  persist alone at work on a backlog: what the databases carry; the sale runs at half of it
//!  load at that rate ─▶ node B: Kafka, persist
//!       probes beside it: 201 received ─▶ the row is read on its database shard
//!  then Kafka is killed, the sale goes on, Kafka is started again: how fast it drains
//!  then persist ends, and the servers leave the node its core and go behind the load:
//!  load at that rate ─▶ node A: no shipper               latency from the planned start
//!                in turns ─▶ node B: Kafka               the same
//! ```
//! The servers (Kafka, one or more `MySQL`) are started by `scripts/bench lag`. Until the last part
//! they and persist have all cores; the nodes have one, the load the others.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use hdrhistogram::Histogram;
use mysql_async::prelude::Queryable as _;
use onrush_benches::servers::{Server, binary, median, median_ratio};
use serde_json::json;

/// Measures the way from an answered redemption to its row, and what shipping costs the sale
#[derive(Parser)]
struct Args {
    /// The databases, in their order: mysql://USER@HOST:PORT/DATABASE
    #[arg(long = "url", required = true)]
    urls: Vec<String>,
    #[arg(long)]
    password_file: PathBuf,
    /// Kafka's brokers
    #[arg(long)]
    bootstrap: String,
    /// The folder of `scripts/stack` with the broker that is killed
    #[arg(long)]
    stack: PathBuf,
    /// Redemptions per second [default: half of what the databases carry, at most 20,000]
    #[arg(long)]
    rate: Option<u64>,
    /// Of one turn
    #[arg(long, default_value_t = 4)]
    seconds: u64,
    /// Turns of load whose rows are waited for
    #[arg(long, default_value_t = 5)]
    lag_turns: usize,
    /// Turns on each node, with the shipper and without
    #[arg(long, default_value_t = 9)]
    rounds: usize,
    /// Where the nodes' data lies: a disk, not tmpfs
    #[arg(long, default_value = "target/bench-data/lag")]
    data: PathBuf,
}

const NODE_CORE: usize = 0;
/// Turns of load that Kafka is away for, before all of it is to catch up.
const AWAY_TURNS: usize = 4;
/// Redemptions whose rows tell what the databases carry, and the rate at which they are made.
const BACKLOG: u64 = 60_000;
const BACKLOG_RATE: u64 = 5_000;
const MOST_RATE: u64 = 20_000;
const MEMBERS: u64 = 50_000;
const CONNECTIONS: u64 = 16;
const PROBES: u64 = 2;
/// How often a probe looks: oftener, and the databases are busy with it.
const LOOK_EVERY: Duration = Duration::from_millis(5);

type Fallible<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

#[allow(clippy::disallowed_methods, reason = "a bench measures time")]
fn main() -> Fallible<()> {
    let args = Args::parse();
    // Before any thread starts.
    let mut cores = rustix::thread::CpuSet::new();
    let core_count = std::thread::available_parallelism()?.get();
    (NODE_CORE + 1..core_count).for_each(|core| cores.set(core));
    rustix::thread::sched_setaffinity(None, &cores)?;
    let data = std::path::absolute(&args.data)?;
    let _ = std::fs::remove_dir_all(&data);
    std::fs::create_dir_all(&data)?;
    let config = write_config(&args, &data)?;
    for command in [["db", "migrate"], ["kafka", "init"]] {
        let status = Command::new(binary("onrush"))
            .args(command)
            .arg("--config")
            .arg(&config)
            .stdout(Stdio::null())
            .status()?;
        if !status.success() {
            return Err(format!("onrush {}: {status}", command.join(" ")).into());
        }
    }
    let alone = start(&data, "alone", &[("ONRUSH__PERSIST__RUN", "false")], None)?;
    let shipping = start(&data, "shipping", &[], Some(&config))?;
    for server in [&alone, &shipping] {
        prepare(server.addresses[1])?;
    }
    let keys = AtomicU64::new(0);
    // What the databases carry: rows per second from the first to the last of a backlog.
    let backlog = Turn { rate: BACKLOG_RATE, seconds: BACKLOG / BACKLOG_RATE };
    let made = load(shipping.addresses[0], backlog, &keys)?.len();
    let mut persister = persist(&config, core_count)?;
    let carried = drain(&args, 0, made)?;
    let rate = args.rate.unwrap_or((carried.per_second() / 2.0) as u64).clamp(1, MOST_RATE);
    eprintln!("the databases carry {:.0} rows/s: the sale runs at {rate}/s", carried.per_second());
    let turn = Turn { rate, seconds: args.seconds };
    let (mut lag, mut answered) = (histogram()?, 0);
    for round in 0..args.lag_turns {
        answered += lag_turn(&args, shipping.addresses[0], turn, &keys, &mut lag)?;
        let p50 = lag.value_at_quantile(0.5);
        eprintln!("turn {}: {} probes, lag p50 {p50} µs", round + 1, lag.len());
    }

    // Kafka is away for some turns, and everything catches up.
    wait_for_rows(&args, made + answered)?;
    broker(&args, "kill", core_count)?;
    let before = rows(&args)?;
    let mut missing = 0;
    for _ in 0..AWAY_TURNS {
        missing += load(shipping.addresses[0], turn, &keys)?.len();
    }
    broker(&args, "start", core_count)?;
    let drained = drain(&args, before, missing)?;
    persister.kill()?;
    persister.wait()?;

    // The other node comes to the comparison with as much behind it.
    let behind = made + answered + missing;
    let as_much = Turn { rate: BACKLOG_RATE, seconds: behind.div_ceil(BACKLOG_RATE) };
    load(alone.addresses[0], as_much, &keys)?;
    go_behind_the_load(&args.stack, core_count)?;
    let (mut plain, mut shipped) = (Vec::new(), Vec::new());
    for round in 0..args.rounds {
        // Each goes first in turn.
        for with_shipper in [round % 2 == 1, round % 2 == 0] {
            let (server, latencies) =
                if with_shipper { (&shipping, &mut shipped) } else { (&alone, &mut plain) };
            latencies.push(load(server.addresses[0], turn, &keys)?);
        }
        let p99 = |of: &[Histogram<u64>]| of.last().map(|h| h.value_at_quantile(0.99));
        eprintln!(
            "round {}: p99 {:?} µs without shipper, {:?} µs with it",
            round + 1,
            p99(&plain),
            p99(&shipped)
        );
    }

    let each = |all: &[Histogram<u64>], q: f64| -> Vec<f64> {
        all.iter().map(|h| h.value_at_quantile(q) as f64).collect()
    };
    let quantile = |all: &[Histogram<u64>], q: f64| median(&each(all, q));
    let figures = json!({
        "databases_carry_per_s": carried.per_second(),
        "rate_per_s": rate,
        "rounds": args.rounds,
        "lag_turns": args.lag_turns,
        "database_shards": args.urls.len(),
        "lag_us": {
            "p50": lag.value_at_quantile(0.5),
            "p99": lag.value_at_quantile(0.99),
            "probes": lag.len(),
            "what": "201 received to the row read on its database shard, looked for every 5 ms"
        },
        "sale_latency_us": {
            "without_shipper": { "p50": quantile(&plain, 0.5), "p99": quantile(&plain, 0.99) },
            "with_shipper": { "p50": quantile(&shipped, 0.5), "p99": quantile(&shipped, 0.99) },
            "p99_ratio": median_ratio(&each(&shipped, 0.99), &each(&plain, 0.99)),
            "p50_ratio": median_ratio(&each(&shipped, 0.5), &each(&plain, 0.5)),
        },
        "drain": {
            "rows": drained.rows,
            "seconds": drained.seconds,
            "rows_per_s": drained.per_second(),
            "ratio_to_sale": drained.per_second() / rate as f64,
            "seconds_to_the_first_row": drained.until_first_s,
            "what": "Kafka started again behind four turns of load; first row to last"
        },
    });
    println!("{}", serde_json::to_string_pretty(&figures)?);
    drop((alone, shipping));
    std::fs::remove_dir_all(&data)?;
    Ok(())
}

/// A rate for a time. Units: redemptions per second, seconds.
#[derive(Clone, Copy)]
struct Turn {
    rate: u64,
    seconds: u64,
}

/// How a backlog went into the databases. Units: rows, seconds.
struct Drain {
    rows: u64,
    seconds: f64,
    until_first_s: f64,
}

impl Drain {
    fn per_second(&self) -> f64 {
        self.rows as f64 / self.seconds
    }
}

/// Waits until so many rows more than `before` are there.
#[allow(clippy::disallowed_methods, reason = "a bench measures time")]
fn drain(args: &Args, before: u64, missing: u64) -> Fallible<Drain> {
    let began = Instant::now();
    wait_for_rows(args, before + 1)?;
    let until_first_s = began.elapsed().as_secs_f64();
    let (there, first) = (rows(args)?, Instant::now());
    wait_for_rows(args, before + missing)?;
    let seconds = first.elapsed().as_secs_f64();
    Ok(Drain { rows: before + missing - there, seconds, until_first_s })
}

/// `scripts/stack kill` or `start`, of the one broker.
fn broker(args: &Args, order: &str, cores: usize) -> Fallible<()> {
    let mut script = on_all_cores(cores, Path::new("scripts/stack"));
    run(script.args([order, "kafka-1", "--dir"]).arg(&args.stack))
}

/// This process keeps off the node's core; what it starts by this does not.
fn on_all_cores(cores: usize, program: &Path) -> Command {
    let mut command = Command::new("taskset");
    command.args(["-c", &format!("0-{}", cores - 1)]).arg(program);
    command
}

fn histogram() -> Fallible<Histogram<u64>> {
    Ok(Histogram::new_with_bounds(1, 60_000_000, 3)?)
}

/// A turn of load with probes beside it; redemptions made, those of the probes included.
fn lag_turn(
    args: &Args,
    address: SocketAddr,
    turn: Turn,
    keys: &AtomicU64,
    lag: &mut Histogram<u64>,
) -> Fallible<u64> {
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let probes: Vec<_> = (0..PROBES)
            .map(|_| scope.spawn(|| watch_rows(address, args, keys, &is_over)))
            .collect();
        let answered = load(address, turn, keys);
        is_over.store(true, Ordering::Relaxed);
        let mut made = answered?.len();
        for probe in probes {
            let lags = probe.join().unwrap_or_else(|_| Err("a probe".into()))?;
            made += lags.len();
            lag.add(lags)?;
        }
        Ok(made)
    })
}

/// The servers leave the node its core, and take what the load leaves of the others.
fn go_behind_the_load(stack: &Path, cores: usize) -> Fallible<()> {
    for folder in [stack.to_owned(), stack.join("mysql")] {
        for server in std::fs::read_dir(folder)? {
            let Ok(pid) = std::fs::read_to_string(server?.path().join("pid")) else { continue };
            let pid = pid.split(' ').next().unwrap_or_default().trim();
            let others = format!("{}-{}", NODE_CORE + 1, cores - 1);
            // A thread that ends meanwhile is an error of these, and of no matter.
            let _ = run(Command::new("taskset").args(["-acp", &others, pid]));
            let mut renice = Command::new("renice");
            renice.args(["-n", "19", "-p"]);
            // Of a process, it is its first thread that is meant.
            for thread in std::fs::read_dir(format!("/proc/{pid}/task"))? {
                renice.arg(thread?.file_name());
            }
            let _ = run(&mut renice);
        }
    }
    Ok(())
}

fn run(command: &mut Command) -> Fallible<()> {
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).status()?;
    if status.success() { Ok(()) } else { Err(format!("{command:?}: {status}").into()) }
}

fn write_config(args: &Args, data: &Path) -> Fallible<PathBuf> {
    let path = data.join("onrush.toml");
    let urls = serde_json::to_string(&args.urls)?;
    let text = format!(
        "[log]\nkind = \"kafka\"\n[log.kafka]\nbootstrap = \"{}\"\nreplication = 1\n\
         min_insync = 1\n[persist]\nrun = false\n[store]\nkind = \"mysql\"\n[store.mysql]\n\
         urls = {urls}\npassword_file = \"{}\"\n",
        args.bootstrap,
        args.password_file.display()
    );
    std::fs::write(&path, text)?;
    Ok(path)
}

fn start(
    data: &Path,
    name: &str,
    env: &[(&str, &str)],
    config: Option<&Path>,
) -> std::io::Result<Server> {
    let ready = data.join(format!("{name}.ready"));
    let mut command = Command::new(binary("onrush"));
    command.args(["serve", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]);
    command.arg("--ready-file").arg(&ready).arg("--data").arg(data.join(name));
    if let Some(config) = config {
        command.arg("--config").arg(config);
    }
    command.envs(env.iter().copied()).env("ONRUSH__SHARDS__COUNT", "1").env("RUST_LOG", "error");
    Server::start(&command, NODE_CORE, &ready)
}

fn persist(config: &Path, cores: usize) -> std::io::Result<Child> {
    let mut command = on_all_cores(cores, &binary("onrush"));
    command.args(["persist", "--config"]).arg(config).env("RUST_LOG", "error");
    command.stdin(Stdio::null()).stdout(Stdio::null()).spawn()
}

/// One request on a connection of its own; the whole answer.
fn call(address: SocketAddr, head: &str, content_type: &str, body: &str) -> Fallible<String> {
    let mut stream = TcpStream::connect(address)?;
    let length = body.len();
    write!(
        stream,
        "{head} HTTP/1.1\r\nhost: bench\r\nconnection: close\r\nx-operator: bench\r\n\
         content-type: {content_type}\r\ncontent-length: {length}\r\n\r\n{body}"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

fn prepare(admin: SocketAddr) -> Fallible<()> {
    use std::fmt::Write as _;
    let mut rows = String::from("member,points\n");
    for member in 1..=MEMBERS {
        writeln!(rows, "{member},1000000000")?;
    }
    let answer = call(admin, "POST /v1/members:import", "text/csv", &rows)?;
    if !answer.starts_with("HTTP/1.1 200") {
        return Err(answer.into());
    }
    let sale = json!({
        "id": "lag", "name": "Lag", "opens_at": "2020-01-01T00:00:00Z",
        "closes_at": "2099-01-01T00:00:00Z", "hold_ttl_ms": 60_000,
        "items": [{ "sku": "thing", "name": "Thing", "points": 1, "stock": 1_000_000_000,
                    "limit_per_member": 1_000_000 }]
    });
    let answer = call(admin, "POST /v1/sales", "application/json", &sale.to_string())?;
    if answer.starts_with("HTTP/1.1 2") { Ok(()) } else { Err(answer.into()) }
}

/// A kept connection.
struct Client(TcpStream);

impl Client {
    fn open(address: SocketAddr) -> std::io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        Ok(Self(stream))
    }

    /// Redeems; the redemption's id.
    fn redeem(&mut self, key: u64) -> Fallible<(u64, String)> {
        let member = 1 + key % MEMBERS;
        let body = "{\"sku\":\"thing\",\"quantity\":1}";
        let length = body.len();
        let request = format!(
            "POST /v1/sales/lag/redemptions HTTP/1.1\r\nhost: bench\r\nx-member-id: {member}\r\n\
             idempotency-key: k{key}\r\ncontent-type: application/json\r\n\
             content-length: {length}\r\n\r\n{body}"
        );
        self.0.write_all(request.as_bytes())?;
        let (mut bytes, mut part) = (Vec::new(), [0; 4096]);
        loop {
            let count = self.0.read(&mut part)?;
            bytes.extend_from_slice(&part[..count]);
            let text = String::from_utf8_lossy(&bytes);
            if count == 0 || (text.contains("\r\n\r\n") && text.ends_with('}')) {
                let id = text.split("\"id\":\"").nth(1).and_then(|rest| rest.split('"').next());
                return match id {
                    Some(id) if text.starts_with("HTTP/1.1 201") => Ok((member, id.to_owned())),
                    _ => Err(text.into_owned().into()),
                };
            }
        }
    }
}

/// One turn at the rate: latencies from the planned start. Units: microseconds.
#[allow(clippy::disallowed_methods, reason = "a bench measures time")]
fn load(address: SocketAddr, turn: Turn, keys: &AtomicU64) -> Fallible<Histogram<u64>> {
    let pause = Duration::from_secs(1) * CONNECTIONS as u32 / turn.rate as u32;
    let count = turn.rate * turn.seconds / CONNECTIONS;
    let one = &|number: u64| -> Fallible<Histogram<u64>> {
        let (mut client, mut seen) = (Client::open(address)?, histogram()?);
        let mut planned = Instant::now() + pause * number as u32 / CONNECTIONS as u32;
        for _ in 0..count {
            std::thread::sleep(planned.saturating_duration_since(Instant::now()));
            client.redeem(keys.fetch_add(1, Ordering::Relaxed))?;
            seen.saturating_record(planned.elapsed().as_micros() as u64);
            planned += pause;
        }
        Ok(seen)
    };
    let parts: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..CONNECTIONS).map(|n| scope.spawn(move || one(n))).collect();
        threads.into_iter().map(|t| t.join().unwrap_or_else(|_| Err("a client".into()))).collect()
    });
    let mut all = histogram()?;
    for part in parts {
        all.add(part?)?;
    }
    Ok(all)
}

/// Redeems, and looks for the row until it is there; times between. Units: microseconds.
#[allow(clippy::disallowed_methods, reason = "a bench measures time")]
fn watch_rows(
    address: SocketAddr,
    args: &Args,
    keys: &AtomicU64,
    is_over: &AtomicBool,
) -> Fallible<Histogram<u64>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (mut client, mut lag) = (Client::open(address)?, histogram()?);
    let mut databases = connect(&runtime, args)?;
    while !is_over.load(Ordering::Relaxed) {
        let (_, id) = client.redeem(keys.fetch_add(1, Ordering::Relaxed))?;
        let (told, hex) = (Instant::now(), id.replace('-', ""));
        let sql = format!("SELECT 1 FROM redemptions WHERE id = UNHEX('{hex}')");
        'there: loop {
            for database in &mut databases {
                let row: Option<u8> = runtime.block_on(database.query_first(&sql))?;
                if row.is_some() {
                    break 'there;
                }
            }
            if told.elapsed() > Duration::from_secs(30) {
                return Err(format!("{id} was not stored within 30 s").into());
            }
            std::thread::sleep(LOOK_EVERY);
        }
        lag.saturating_record(told.elapsed().as_micros() as u64);
    }
    Ok(lag)
}

fn connect(runtime: &tokio::runtime::Runtime, args: &Args) -> Fallible<Vec<mysql_async::Conn>> {
    let password = std::fs::read_to_string(&args.password_file)?;
    let mut all = Vec::new();
    for url in &args.urls {
        let options = mysql_async::OptsBuilder::from_opts(mysql_async::Opts::from_url(url)?)
            .pass(Some(password.trim()))
            .prefer_socket(false);
        all.push(runtime.block_on(mysql_async::Conn::new(options))?);
    }
    Ok(all)
}

fn rows(args: &Args) -> Fallible<u64> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut all = 0;
    for mut database in connect(&runtime, args)? {
        let sql = "SELECT COUNT(*) FROM redemptions";
        all += runtime.block_on(database.query_first::<u64, _>(sql))?.unwrap_or(0);
        runtime.block_on(database.disconnect())?;
    }
    Ok(all)
}

#[allow(clippy::disallowed_methods, reason = "a bench measures time")]
fn wait_for_rows(args: &Args, count: u64) -> Fallible<()> {
    let began = Instant::now();
    while rows(args)? < count {
        if began.elapsed() > Duration::from_mins(5) {
            return Err(format!("{} of {count} rows after 5 minutes", rows(args)?).into());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}
