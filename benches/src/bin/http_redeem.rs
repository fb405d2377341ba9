//! HTTP redeem against bare hyper, interleaved: A B A B …, medians.
//!
//! Server and generator are pinned to a core each. Persist is left out (it runs behind the sale,
//! and would share the server's one core); everything else of the node is on that core: worker,
//! shard, control and journal.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use clap::Parser;
use onrush_benches::http_client::{Requests, Run, run};
use onrush_benches::servers::{Server, binary, median};
use serde_json::json;

const SERVER_CORE: usize = 0;
const CLIENT_CORE: usize = 1;
const SECRET: &str = "a secret for the bench";

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
    #[arg(long, default_value_t = 200_000)]
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

/// Redeem requests of uniform members, each with a key of its own.
struct Redeem {
    state: u64,
    members: u64,
    sku: &'static str,
    /// Items in a batch call; 0: single calls.
    batch: usize,
    key: u64,
}

impl Redeem {
    fn new(members: u64, sku: &'static str, batch: usize, seed: u64) -> Self {
        Self { state: seed, members, sku, batch, key: seed << 40 }
    }
    /// Source: splitmix64 (Steele, Lea, Flood).
    fn random(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

impl Requests for Redeem {
    fn next(&mut self, out: &mut Vec<u8>) {
        if self.batch == 0 {
            let member = self.random() % self.members + 1;
            self.key += 1;
            let body = format!("{{\"sku\":\"{}\",\"quantity\":1}}", self.sku);
            let _ = write!(
                out,
                "POST /v1/sales/bench/redemptions HTTP/1.1\r\nhost: bench\r\n\
                 content-type: application/json\r\nx-member-id: {member}\r\n\
                 idempotency-key: k{}\r\ncontent-length: {}\r\n\r\n{body}",
                self.key,
                body.len(),
            );
            return;
        }
        let mut body = String::from("{\"items\":[");
        for at in 0..self.batch {
            let member = self.random() % self.members + 1;
            self.key += 1;
            let comma = if at == 0 { "" } else { "," };
            let _ = write!(
                body,
                "{comma}{{\"member\":\"{member}\",\"key\":\"k{}\",\"sale\":\"bench\",\
                 \"sku\":\"{}\",\"quantity\":1}}",
                self.key, self.sku
            );
        }
        body.push_str("]}");
        let _ = write!(
            out,
            "POST /v1/redemptions:batch HTTP/1.1\r\nhost: bench\r\n\
             content-type: application/json\r\nx-gateway-secret: {SECRET}\r\n\
             content-length: {}\r\n\r\n{body}",
            body.len(),
        );
    }
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
    let servers = [
        bare(&data)?,
        node(&data, "durable", false, &args)?,
        node(&data, "unsynced", true, &args)?,
    ];
    let mut cases = [
        Case::new("bare hyper", 0, 1, "hot", 0),
        Case::new("redeem, durable", 1, 1, "hot", 0),
        Case::new("redeem, no sync", 2, 1, "hot", 0),
        Case::new("sold out", 1, 1, "gone", 0),
        Case::new("bare hyper, pipelined by 16", 0, 16, "hot", 0),
        Case::new("redeem, durable, pipelined by 16", 1, 16, "hot", 0),
        Case::new("batch of 64, durable", 1, 1, "hot", 64),
    ];
    for round in 0..args.rounds {
        for (at, case) in cases.iter_mut().enumerate() {
            let seed = (round * 100 + at + 1) as u64;
            let server = &servers[case.server];
            let mut requests = Redeem::new(args.members, case.sku, case.batch, seed);
            let before = server.cpu()?;
            let seconds = Duration::from_secs_f64(args.seconds);
            let measured =
                run(server.addresses[0], args.connections, case.pipeline, seconds, &mut requests)?;
            let cpu = server.cpu()?.saturating_sub(before);
            check(case, &measured);
            eprintln!(
                "round {}  {:<34} {:>9.0}/s  {:>6.2} µs CPU",
                round + 1,
                case.name,
                measured.per_second(),
                cpu.as_secs_f64() * 1e6 / measured.answers as f64
            );
            case.per_second.push(measured.per_second());
            case.cpu_us.push(cpu.as_secs_f64() * 1e6 / measured.answers as f64);
            case.p50_us.push(measured.latency.value_at_quantile(0.5) as f64 / 1e3);
            case.p99_us.push(measured.latency.value_at_quantile(0.99) as f64 / 1e3);
        }
    }
    report(&args, &cases)?;
    drop(servers);
    std::fs::remove_dir_all(&data)
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

fn report(args: &Args, cases: &[Case]) -> std::io::Result<()> {
    let ratio = |a: usize, b: usize| cases[a].redemptions() / cases[b].redemptions();
    let rows: Vec<_> = cases
        .iter()
        .map(|case| {
            json!({
                "case": case.name,
                "requests_per_second": median(&case.per_second),
                "redemptions_per_second": case.redemptions(),
                "cpu_us_per_request": median(&case.cpu_us),
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
        "cases": rows,
        "ratios": {
            "durable redeem / bare hyper": ratio(1, 0),
            "redeem without sync / bare hyper": ratio(2, 0),
            "sold out / bare hyper": ratio(3, 0),
            "durable redeem / bare hyper, pipelined by 16": ratio(5, 4),
            "batch of 64 / durable redeem, in redemptions": ratio(6, 1),
            "CPU per request without sync / bare hyper":
                median(&cases[2].cpu_us) / median(&cases[0].cpu_us),
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
    let mut csv = String::from("member,points\n");
    for member in 1..=args.members {
        let _ = writeln!(csv, "{member},1000000000");
    }
    post(server.addresses[1], "/v1/members:import", "text/csv", &csv)?;
    let sale = r#"{"id":"bench","name":"Bench","opens_at":"2026-01-01T00:00:00Z",
        "closes_at":"2099-01-01T00:00:00Z","hold_ttl_ms":60000,"items":[
        {"sku":"hot","name":"Hot","points":1,"stock":4000000000,"limit_per_member":4000000000},
        {"sku":"gone","name":"Gone","points":1,"stock":1,"limit_per_member":1}]}"#;
    post(server.addresses[1], "/v1/sales", "application/json", sale)?;
    std::thread::sleep(Duration::from_secs(1));
    // The last unit goes, to a member that no request comes from: from here on "gone" is gone.
    let member = args.members + 1;
    let csv = format!("member,points\n{member},10\n");
    post(server.addresses[1], "/v1/members:import", "text/csv", &csv)?;
    let body = r#"{"sku":"gone","quantity":1}"#;
    let head = format!("x-member-id: {member}\r\nidempotency-key: last\r\n");
    call(server.addresses[0], "/v1/sales/bench/redemptions", "application/json", &head, body)?;
    Ok(server)
}

fn post(address: SocketAddr, path: &str, content_type: &str, body: &str) -> std::io::Result<()> {
    call(address, path, content_type, "x-operator: bench\r\n", body)
}

fn call(
    address: SocketAddr,
    path: &str,
    content_type: &str,
    headers: &str,
    body: &str,
) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(address)?;
    write!(
        stream,
        "POST {path} HTTP/1.1\r\nhost: bench\r\nconnection: close\r\n{headers}\
         content-type: {content_type}\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )?;
    let mut answer = String::new();
    std::io::Read::read_to_string(&mut stream, &mut answer)?;
    if answer.starts_with("HTTP/1.1 2") {
        return Ok(());
    }
    Err(std::io::Error::other(format!("{path}: {answer}")))
}
