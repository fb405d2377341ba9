//! HTTP redeem against bare hyper, interleaved: A B A B …, medians.
//!
//! Server and generator are pinned to a core each. Persist is left out (it runs behind the sale,
//! and would share the server's one core); everything else of the node is on that core: worker,
//! shard, control and journal. How busy each kept its core says which of the two was the limit.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use clap::Parser;
use onrush_benches::disk::file_system;
use onrush_benches::http_client::{Run, run};
use onrush_benches::redeem::{Redeem, SECRET, prepare};
use onrush_benches::servers::{Server, binary, median, median_ratio};
use serde_json::json;

const SERVER_CORE: usize = 0;
const CLIENT_CORE: usize = 1;

/// Compares the node's answers with bare hyper's
#[derive(Parser)]
#[command(after_help = "Example: http_redeem --rounds 5 --seconds 4 --out results/http.json")]
struct Args {
    /// Runs of each case; the median counts
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds of each run
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// Accounts on each node: so many that in a whole run a member redeems a few times at most
    #[arg(long, default_value_t = 2_000_000)]
    members: u64,
    #[arg(long, default_value_t = 64)]
    connections: usize,
    /// Where the node's data lies while it is measured: a disk, not tmpfs
    #[arg(long, default_value = "target/bench-data")]
    data: PathBuf,
    /// Write the figures there, as JSON
    #[arg(long)]
    out: Option<PathBuf>,
}

/// One measured case.
struct Case {
    name: &'static str,
    server: usize,
    pipeline: usize,
    sku: &'static str,
    batch: usize,
    per_second: Vec<f64>,
    cpu_us: Vec<f64>,
    /// Shares of a core: what the server used of its own, and the generator of the other.
    server_busy: Vec<f64>,
    generator_busy: Vec<f64>,
    p50_us: Vec<f64>,
    p99_us: Vec<f64>,
}

impl Case {
    fn new(
        name: &'static str,
        server: usize,
        pipeline: usize,
        sku: &'static str,
        batch: usize,
    ) -> Self {
        Self {
            name,
            server,
            pipeline,
            sku,
            batch,
            per_second: Vec::new(),
            cpu_us: Vec::new(),
            server_busy: Vec::new(),
            generator_busy: Vec::new(),
            p50_us: Vec::new(),
            p99_us: Vec::new(),
        }
    }
    fn redemptions(&self) -> f64 {
        median(&self.per_second) * self.batch.max(1) as f64
    }
}

fn main() -> std::io::Result<()> {
    let args = Args::parse();
    let core = rustix::thread::CpuSet::new();
    let mut core = core;
    core.set(CLIENT_CORE);
    rustix::thread::sched_setaffinity(None, &core)?;

    let data = std::path::absolute(&args.data)?;
    let _ = std::fs::remove_dir_all(&data);
    std::fs::create_dir_all(&data)?;
    let file_system = file_system(&data)?;
    let servers = [
        bare(&data)?,
        node(&data, "durable", false, &args)?,
        node(&data, "unsynced", true, &args)?,
        // Apart: its members have redeemed dozens of times before all rounds are over.
        node(&data, "batched", false, &args)?,
    ];
    let mut cases = [
        Case::new("bare hyper", 0, 1, "hot", 0),
        Case::new("redeem, durable", 1, 1, "hot", 0),
        Case::new("redeem, no sync", 2, 1, "hot", 0),
        Case::new("sold out", 1, 1, "gone", 0),
        Case::new("bare hyper, pipelined by 16", 0, 16, "hot", 0),
        Case::new("redeem, durable, pipelined by 16", 1, 16, "hot", 0),
        Case::new("batch of 64, durable", 3, 1, "hot", 64),
    ];
    for round in 0..args.rounds {
        for (at, case) in cases.iter_mut().enumerate() {
            let seed = (round * 100 + at + 1) as u64;
            let server = &servers[case.server];
            let mut requests = Redeem::new(args.members, case.sku, case.batch, seed);
            let seconds = Duration::from_secs_f64(args.seconds);
            let (began, before, own_before) = (now(), server.cpu()?, own_cpu());
            let measured =
                run(server.addresses[0], args.connections, case.pipeline, seconds, &mut requests)?;
            let cpu = server.cpu()?.saturating_sub(before);
            let own = own_cpu().saturating_sub(own_before);
            let took = began.elapsed().as_secs_f64();
            check(case, &measured);
            let (server_busy, generator_busy) =
                (cpu.as_secs_f64() / took, own.as_secs_f64() / took);
            eprintln!(
                "round {}  {:<34} {:>9.0}/s  {:>6.2} µs CPU  {:>3.0} % busy, generator {:>3.0} %",
                round + 1,
                case.name,
                measured.per_second(),
                cpu.as_secs_f64() * 1e6 / measured.answers as f64,
                server_busy * 100.0,
                generator_busy * 100.0
            );
            case.per_second.push(measured.per_second());
            case.cpu_us.push(cpu.as_secs_f64() * 1e6 / measured.answers as f64);
            case.server_busy.push(server_busy);
            case.generator_busy.push(generator_busy);
            case.p50_us.push(measured.latency.value_at_quantile(0.5) as f64 / 1e3);
            case.p99_us.push(measured.latency.value_at_quantile(0.99) as f64 / 1e3);
        }
    }
    report(&args, &file_system, &cases)?;
    drop(servers);
    std::fs::remove_dir_all(&data)
}

#[allow(clippy::disallowed_methods, reason = "a bench measures time")]
fn now() -> Instant {
    Instant::now()
}

/// CPU time of the generator so far, which is this process.
fn own_cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn check(case: &Case, run: &Run) {
    let wanted = usize::from(case.sku == "gone");
    let good = run.by_class[wanted];
    assert!(
        good * 100 >= run.answers * 99,
        "{}: of {} answers only {good} were of the class measured: {:?}",
        case.name,
        run.answers,
        run.by_class
    );
}

fn report(args: &Args, file_system: &str, cases: &[Case]) -> std::io::Result<()> {
    let ratio = |a: usize, b: usize| {
        let batches = cases[a].batch.max(1) as f64 / cases[b].batch.max(1) as f64;
        batches * median_ratio(&cases[a].per_second, &cases[b].per_second)
    };
    let rows: Vec<_> = cases
        .iter()
        .map(|case| {
            json!({
                "case": case.name,
                "requests_per_second": median(&case.per_second),
                "requests_per_second_by_round": case.per_second,
                "redemptions_per_second": case.redemptions(),
                "cpu_us_per_request": median(&case.cpu_us),
                "server_core_busy": median(&case.server_busy),
                "generator_core_busy": median(&case.generator_busy),
                "latency_p50_us": median(&case.p50_us),
                "latency_p99_us": median(&case.p99_us),
            })
        })
        .collect();
    let figures = json!({
        "rounds": args.rounds,
        "seconds": args.seconds,
        "connections": args.connections,
        "members": args.members,
        "file_system": file_system,
        "cases": rows,
        "ratios": {
            "durable redeem / bare hyper": ratio(1, 0),
            "redeem without sync / bare hyper": ratio(2, 0),
            "sold out / bare hyper": ratio(3, 0),
            "durable redeem / bare hyper, pipelined by 16": ratio(5, 4),
            "batch of 64 / durable redeem, in redemptions": ratio(6, 1),
            "CPU per request without sync / bare hyper":
                median_ratio(&cases[2].cpu_us, &cases[0].cpu_us),
        },
    });
    let text = serde_json::to_string_pretty(&figures)?;
    println!("{text}");
    if let Some(path) = &args.out {
        std::fs::write(path, text + "\n")?;
    }
    Ok(())
}

fn bare(data: &Path) -> std::io::Result<Server> {
    let ready = data.join("bare.ready");
    let mut command = Command::new(binary("bare_hyper"));
    command.arg(&ready);
    Server::start(&command, SERVER_CORE, &ready)
}

fn node(data: &Path, name: &str, unsynced: bool, args: &Args) -> std::io::Result<Server> {
    let ready = data.join(format!("{name}.ready"));
    let mut command = Command::new(binary("onrush"));
    command
        .args(["serve", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--ready-file"])
        .arg(&ready)
        .arg("--data")
        .arg(data.join(name))
        .env("ONRUSH__PERSIST__RUN", "false")
        .env("ONRUSH__HTTP__GATEWAY_SECRET", SECRET)
        .env("ONRUSH__HTTP__WORKERS", "1")
        .env("ONRUSH__SHARDS__COUNT", "1")
        .env("RUST_LOG", "error");
    if unsynced {
        command.env("ONRUSH_UNSAFE_NO_SYNC", "1");
    }
    let server = Server::start(&command, SERVER_CORE, &ready)?;
    prepare(server.addresses[0], server.addresses[1], args.members)?;
    Ok(server)
}
