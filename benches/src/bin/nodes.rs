//! Three nodes that share one stock through Redis, against one node: the same total on the same
//! cores, interleaved; what a forwarded request costs more; and how long a dry node refuses while
//! another holds a unit, or once a unit has come free there.
//!
//! All servers share one core, the client has the other. The three nodes' requests go to the nodes
//! that own the members, except where forwarding is what is measured. Persist is left out, as in
//! the other benches over HTTP.

use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use clap::Parser;
use hdrhistogram::Histogram;
use onrush::units::{MemberId, SLOT_COUNT, Slot};
use onrush_benches::http_client::{Requests, Run, run};
use onrush_benches::kernel::Random;
use onrush_benches::servers::{Server, binary, median, median_ratio};
use serde_json::json;

const SERVER_CORE: usize = 0;
const CLIENT_CORE: usize = 1;
const SECRET: &str = "nodes-of-a-bench-among-themselves";
const NODES: usize = 3;
/// Items of one unit each, for the dry node.
const LAST_UNITS: usize = 330;
/// Others of one unit each, that is held on one node and wanted on another.
const FREED_UNITS: usize = 210;
/// How long it is asked for in vain before it comes free.
const VAIN: Duration = Duration::from_millis(250);

/// Compares three nodes on Redis with one node alone
#[derive(Parser)]
#[command(after_help = "Example: nodes --redis 127.0.0.1:6379 --redis-pid 4711")]
struct Args {
    /// A Redis server of its own
    #[arg(long)]
    redis: SocketAddr,
    /// Its process, for its CPU time
    #[arg(long)]
    redis_pid: u32,
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    #[arg(long, default_value_t = 60_000)]
    members: u64,
    /// In all; dealt out among the nodes
    #[arg(long, default_value_t = 96)]
    connections: usize,
    #[arg(long, default_value = "target/bench-data")]
    data: PathBuf,
}

/// Redemptions by the members of some slots, uniform, each with a key of its own.
struct Redeem {
    members: Vec<u64>,
    random: Random,
    key: u64,
}

impl Redeem {
    fn new(args: &Args, owner: Option<usize>, seed: u64) -> Self {
        let is_theirs = |member: &u64| owner.is_none_or(|node| owner_of(*member) == node);
        let members = (1..=args.members).filter(is_theirs).collect();
        Self { members, random: Random(seed), key: seed << 40 }
    }
}

impl Requests for Redeem {
    fn next(&mut self, out: &mut Vec<u8>) {
        let member = self.members[self.random.below(self.members.len() as u64) as usize];
        self.key += 1;
        out.extend_from_slice(redeem("hot", member, &format!("k{}", self.key)).as_bytes());
    }
}

fn redeem(sku: &str, member: u64, key: &str) -> String {
    redeem_with(sku, member, key, "")
}

fn redeem_with(sku: &str, member: u64, key: &str, more: &str) -> String {
    let body = format!("{{\"sku\":\"{sku}\",\"quantity\":1{more}}}");
    format!(
        "POST /v1/sales/bench/redemptions HTTP/1.1\r\nhost: bench\r\n\
         content-type: application/json\r\nx-member-id: {member}\r\nidempotency-key: {key}\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    )
}

fn slots_of(node: usize) -> (usize, usize) {
    (node * SLOT_COUNT / NODES, (node + 1) * SLOT_COUNT / NODES - 1)
}

fn owner_of(member: u64) -> usize {
    let slot = Slot::of(MemberId::new(member)).index();
    (0..NODES).find(|node| slot <= slots_of(*node).1).expect("every slot has an owner")
}

fn main() -> std::io::Result<()> {
    let args = Args::parse();
    let mut core = rustix::thread::CpuSet::new();
    core.set(CLIENT_CORE);
    rustix::thread::sched_setaffinity(None, &core)?;
    let data = std::path::absolute(&args.data)?;
    let _ = std::fs::remove_dir_all(&data);
    std::fs::create_dir_all(&data)?;

    let alone = start_alone(&data, &args)?;
    let mall = start_mall(&data, &args)?;
    let (mut one, mut three, mut redis_share) = (Vec::new(), Vec::new(), Vec::new());
    let (mut direct_us, mut forwarded_us) = (Vec::new(), Vec::new());
    let before = RedisCalls::read(&mall)?;
    for round in 0..args.rounds {
        let seed = (round * 100 + 1) as u64;
        let seconds = Duration::from_secs_f64(args.seconds);
        let to_one = Redeem::new(&args, None, seed);
        one.push(rate(&run_all(vec![(alone.addresses[0], args.connections, to_one)], seconds)?));

        let cpu = || mall.iter().map(Server::cpu).sum::<std::io::Result<Duration>>();
        let (cpu_before, redis_before) = (cpu()?, process_cpu(args.redis_pid)?);
        let of_each = (0..NODES).map(|node| {
            let requests = Redeem::new(&args, Some(node), seed + 1 + node as u64);
            (mall[node].addresses[0], args.connections / NODES, requests)
        });
        three.push(rate(&run_all(of_each.collect(), seconds)?));
        let redis = process_cpu(args.redis_pid)?.saturating_sub(redis_before).as_secs_f64();
        redis_share.push(redis / (redis + cpu()?.saturating_sub(cpu_before).as_secs_f64()));

        // One request at a time: members of node 0, sent to it, and to node 1.
        for (node, into) in [(0, &mut direct_us), (1, &mut forwarded_us)] {
            let requests = Redeem::new(&args, Some(0), seed + 50 + node as u64);
            let runs = run_all(vec![(mall[node].addresses[0], 1, requests)], seconds / 3)?;
            into.push(runs[0].latency.value_at_quantile(0.5) as f64 / 1e3);
        }
        eprintln!(
            "round {}  one node {:.0}/s  three nodes {:.0}/s",
            round + 1,
            one[round],
            three[round]
        );
    }
    let redis = redis_figures(&mall, &before)?;
    let (dry, freed) = (dry(&mall)?, freed(&mall)?);
    let figures = json!({
        "rounds": args.rounds,
        "seconds": args.seconds,
        "connections": args.connections,
        "members": args.members,
        "one_node_per_second": median(&one),
        "three_nodes_per_second": median(&three),
        "one_node_per_second_by_round": one,
        "three_nodes_per_second_by_round": three,
        "three_nodes / one node": median_ratio(&three, &one),
        "redis_share_of_cpu": median(&redis_share),
        "latency_p50_us_at_the_owner": median(&direct_us),
        "latency_p50_us_forwarded": median(&forwarded_us),
        "forwarded_extra_us": median(&forwarded_us) - median(&direct_us),
        "dry_node": {
            "refusals_followed": dry.len(),
            "until_sold_here_ms_p50": dry.value_at_quantile(0.5) as f64 / 1e3,
            "until_sold_here_ms_p99": dry.value_at_quantile(0.99) as f64 / 1e3,
        },
        "freed_elsewhere": {
            "units_followed": freed.len(),
            "until_sold_here_ms_p50": freed.value_at_quantile(0.5) as f64 / 1e3,
            "until_sold_here_ms_p99": freed.value_at_quantile(0.99) as f64 / 1e3,
        },
        "redis": redis,
    });
    println!("{}", serde_json::to_string_pretty(&figures)?);
    drop((alone, mall));
    std::fs::remove_dir_all(&data)
}

type Load = (SocketAddr, usize, Redeem);

/// Runs all at the same time, a thread each on the client's core.
fn run_all(loads: Vec<Load>, seconds: Duration) -> std::io::Result<Vec<Run>> {
    let threads: Vec<_> = loads
        .into_iter()
        .map(|(address, connections, mut requests)| {
            std::thread::spawn(move || run(address, connections, 1, seconds, &mut requests))
        })
        .collect();
    let runs = threads.into_iter().map(|thread| thread.join().expect("a client does not panic"));
    let runs = runs.collect::<std::io::Result<Vec<Run>>>()?;
    for run in &runs {
        // Units may be on their way to a node for a moment; that is refused at once.
        let good = run.by_class[0];
        assert!(good * 100 >= run.answers * 99, "only {good} of {} answers were 201", run.answers);
    }
    Ok(runs)
}

fn rate(runs: &[Run]) -> f64 {
    runs.iter().map(Run::per_second).sum()
}

/// One connection to each node, and a member of each.
struct Clients {
    streams: Vec<TcpStream>,
    members: Vec<u64>,
}

impl Clients {
    fn connect(mall: &[Server]) -> std::io::Result<Self> {
        let mut streams = Vec::new();
        for server in mall {
            let stream = TcpStream::connect(server.addresses[0])?;
            stream.set_nodelay(true)?;
            streams.push(stream);
        }
        let member_of =
            |node| (1..=10_000).find(|member| owner_of(*member) == node).expect("each has some");
        Ok(Self { streams, members: (0..NODES).map(member_of).collect() })
    }

    /// Asks one node for an item until it is sold there, every so often; gives the answer, and how
    /// many were refused before it. `more` of the body, as JSON.
    #[allow(clippy::disallowed_methods, reason = "a bench measures time")]
    fn buy(&mut self, node: usize, sku: &str, more: &str) -> std::io::Result<(String, u64)> {
        let began = Instant::now();
        let mut refused = 0;
        loop {
            let (status, answer) = self.ask(node, sku, &format!("{sku}-{node}-{refused}"), more)?;
            match status {
                201 => return Ok((answer, refused)),
                409 if began.elapsed() < Duration::from_secs(10) => refused += 1,
                other => return Err(std::io::Error::other(format!("{sku}: answered {other}"))),
            }
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    fn ask(
        &mut self,
        node: usize,
        sku: &str,
        key: &str,
        more: &str,
    ) -> std::io::Result<(u16, String)> {
        let request = redeem_with(sku, self.members[node], key, more);
        exchange_on(&mut self.streams[node], &request)
    }

    fn cancel(&mut self, node: usize, id: &str) -> std::io::Result<()> {
        let request = format!(
            "POST /v1/redemptions/{id}/cancel HTTP/1.1\r\nhost: bench\r\nx-member-id: {}\r\n\
             content-length: 0\r\n\r\n",
            self.members[node]
        );
        match exchange_on(&mut self.streams[node], &request)? {
            (200, _) => Ok(()),
            (other, text) => Err(std::io::Error::other(format!("cancel: {other}: {text}"))),
        }
    }
}

fn empty_histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000, 3).expect("valid bounds")
}

/// Each item has one unit, on whatever node leased it. Every node is asked in turn: from the first
/// refusal on, how long until the unit is sold there.
#[allow(clippy::disallowed_methods, reason = "a bench measures time")]
fn dry(mall: &[Server]) -> std::io::Result<Histogram<u64>> {
    let mut clients = Clients::connect(mall)?;
    let mut times = empty_histogram();
    for item in 0..LAST_UNITS {
        let began = Instant::now();
        let (_, refused) = clients.buy(item % NODES, &format!("last-{item}"), "")?;
        if refused > 0 {
            times.saturating_record(began.elapsed().as_micros() as u64);
        }
    }
    Ok(times)
}

/// Each item's one unit is held on one node, and asked for in vain on another: from the moment in
/// which the hold is cancelled, how long until the unit is sold on the other.
#[allow(clippy::disallowed_methods, reason = "a bench measures time")]
fn freed(mall: &[Server]) -> std::io::Result<Histogram<u64>> {
    let mut clients = Clients::connect(mall)?;
    let mut times = empty_histogram();
    for item in 0..FREED_UNITS {
        let (holder, buyer, sku) = (item % NODES, (item + 1) % NODES, format!("freed-{item}"));
        let (held, _) = clients.buy(holder, &sku, ",\"hold\":true")?;
        let id = held.split("\"id\":\"").nth(1).and_then(|rest| rest.split('"').next());
        let id = id.ok_or_else(|| std::io::Error::other(held.clone()))?;
        let began = Instant::now();
        let mut tries = 0;
        while began.elapsed() < VAIN {
            let (status, _) = clients.ask(buyer, &sku, &format!("vain-{item}-{tries}"), "")?;
            assert_eq!(status, 409, "the only unit is held");
            tries += 1;
            std::thread::sleep(Duration::from_millis(1));
        }
        let freed = Instant::now();
        clients.cancel(holder, id)?;
        clients.buy(buyer, &sku, "")?;
        times.saturating_record(freed.elapsed().as_micros() as u64);
    }
    Ok(times)
}

/// Sends one request and reads its answer, whole, in one piece.
fn exchange_on(stream: &mut TcpStream, request: &str) -> std::io::Result<(u16, String)> {
    stream.write_all(request.as_bytes())?;
    let mut answer = [0; 16 << 10];
    let length = stream.read(&mut answer)?;
    let text = std::str::from_utf8(&answer[..length]).map_err(std::io::Error::other)?;
    let status = text.split(' ').nth(1).and_then(|status| status.parse().ok());
    let status = status.ok_or_else(|| std::io::Error::other(text.to_owned()))?;
    Ok((status, text.to_owned()))
}

/// Calls and their times, as the nodes count them since they were started.
#[derive(Default)]
struct RedisCalls {
    calls: f64,
    seconds: f64,
    timed: f64,
    confirmed: f64,
    /// Up to so many seconds, and how many calls.
    buckets: Vec<(f64, f64)>,
}

impl RedisCalls {
    fn read(mall: &[Server]) -> std::io::Result<Self> {
        let mut sum = Self::default();
        for server in mall {
            sum.add(&get(server.addresses[1], "/metrics")?);
        }
        sum.buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
        Ok(sum)
    }

    fn add(&mut self, metrics: &str) {
        for line in metrics.lines() {
            let Some((name, value)) = line.rsplit_once(' ') else { continue };
            let Ok(value) = value.parse::<f64>() else { continue };
            if name.starts_with("onrush_stock_redis_calls_total") {
                self.calls += value;
            } else if name.starts_with("onrush_stock_redis_duration_seconds_sum") {
                self.seconds += value;
            } else if name.starts_with("onrush_stock_redis_duration_seconds_count") {
                self.timed += value;
            } else if name.starts_with("onrush_stock_units{") && name.contains("confirmed") {
                self.confirmed += value;
            } else if let Some(at) = name.find("le=\"")
                && name.starts_with("onrush_stock_redis_duration_seconds_bucket")
                && let Ok(bound) = name[at + 4..].trim_end_matches("\"}").parse::<f64>()
            {
                match self.buckets.iter_mut().find(|(b, _)| (*b - bound).abs() < f64::EPSILON) {
                    Some((_, n)) => *n += value,
                    None => self.buckets.push((bound, value)),
                }
            }
        }
    }
}

/// The calls of the rounds alone: not those by which the items of the dry nodes were defined.
fn redis_figures(mall: &[Server], before: &RedisCalls) -> std::io::Result<serde_json::Value> {
    let now = RedisCalls::read(mall)?;
    let (calls, timed) = (now.calls - before.calls, now.timed - before.timed);
    let of_bucket = |bound: f64| {
        let old = before.buckets.iter().find(|(b, _)| (*b - bound).abs() < f64::EPSILON);
        old.map_or(0.0, |(_, n)| *n)
    };
    let reaches = |&&(bound, n): &&(f64, f64)| n - of_bucket(bound) >= 0.99 * timed;
    let p99 = now.buckets.iter().find(reaches).map(|(bound, _)| bound * 1e3);
    Ok(json!({
        "calls": calls,
        "calls_per_redemption": calls / (now.confirmed - before.confirmed).max(1.0),
        "call_mean_ms": (now.seconds - before.seconds) / timed.max(1.0) * 1e3,
        "call_p99_at_most_ms": p99,
    }))
}

fn process_cpu(pid: u32) -> std::io::Result<Duration> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/schedstat"))?;
    let ns = text.split_whitespace().next().and_then(|ns| ns.parse().ok()).unwrap_or(0);
    Ok(Duration::from_nanos(ns))
}

fn serve(ready: &Path, data: &Path, listen: [SocketAddr; 2]) -> Command {
    let mut command = Command::new(binary("onrush"));
    command
        .args(["serve", "--listen", &listen[0].to_string(), "--admin", &listen[1].to_string()])
        .arg("--ready-file")
        .arg(ready)
        .arg("--data")
        .arg(data)
        .env("ONRUSH__PERSIST__RUN", "false")
        .env("ONRUSH__HTTP__WORKERS", "1")
        .env("ONRUSH__SHARDS__COUNT", "1")
        .env("RUST_LOG", "error");
    command
}

fn any() -> [SocketAddr; 2] {
    [SocketAddr::from(([127, 0, 0, 1], 0)); 2]
}

fn start_alone(data: &Path, args: &Args) -> std::io::Result<Server> {
    let ready = data.join("alone.ready");
    let server = Server::start(&serve(&ready, &data.join("alone"), any()), SERVER_CORE, &ready)?;
    fill(&server, args)?;
    Ok(server)
}

fn start_mall(data: &Path, args: &Args) -> std::io::Result<Vec<Server>> {
    let addresses: Vec<[SocketAddr; 2]> = (0..NODES)
        .map(|_| {
            let held = [(); 2].map(|()| TcpListener::bind(any()[0]));
            let [public, admin] = held;
            Ok([public?.local_addr()?, admin?.local_addr()?])
        })
        .collect::<std::io::Result<_>>()?;
    let mut settings = String::from("[cluster]\nversion = 1\n");
    for (node, [public, admin]) in addresses.iter().enumerate() {
        let (from, to) = slots_of(node);
        let _ = write!(
            settings,
            "[[cluster.nodes]]\nname = \"node-{node}\"\npublic = \"http://{public}\"\n\
             admin = \"http://{admin}\"\nslots = [\"{from}-{to}\"]\n"
        );
    }
    let path = data.join("nodes.toml");
    std::fs::write(&path, settings)?;
    let mut mall = Vec::new();
    for (node, listen) in addresses.into_iter().enumerate() {
        let ready = data.join(format!("{node}.ready"));
        let mut command = serve(&ready, &data.join(node.to_string()), listen);
        command
            .arg("--config")
            .arg(&path)
            .env("ONRUSH__CLUSTER__SELF", format!("node-{node}"))
            .env("ONRUSH__CLUSTER__SECRET", SECRET)
            .env("ONRUSH__STOCK__KIND", "redis")
            .env("ONRUSH__STOCK__REDIS__URLS", format!("[\"redis://{}\"]", args.redis));
        mall.push(Server::start(&command, SERVER_CORE, &ready)?);
    }
    fill(&mall[0], args)?;
    Ok(mall)
}

/// Members and a sale: one item of which there is enough, and those of one unit each.
fn fill(server: &Server, args: &Args) -> std::io::Result<()> {
    let mut csv = String::from("member,points\n");
    for member in 1..=args.members {
        let _ = writeln!(csv, "{member},1000000000");
    }
    post(server.addresses[1], "/v1/members:import", "text/csv", &csv)?;
    let mut items = String::from(
        r#"{"sku":"hot","name":"Hot","points":1,"stock":4000000000,"limit_per_member":4000000000}"#,
    );
    let lasts = (0..LAST_UNITS).map(|item| format!("last-{item}"));
    for sku in lasts.chain((0..FREED_UNITS).map(|item| format!("freed-{item}"))) {
        let _ = write!(
            items,
            r#",{{"sku":"{sku}","name":"Last","points":1,"stock":1,"limit_per_member":1}}"#
        );
    }
    let sale = format!(
        r#"{{"id":"bench","name":"Bench","opens_at":"2026-01-01T00:00:00Z",
        "closes_at":"2099-01-01T00:00:00Z","hold_ttl_ms":60000,"items":[{items}]}}"#
    );
    post(server.addresses[1], "/v1/sales", "application/json", &sale)?;
    // Until every node has its lease of each.
    std::thread::sleep(Duration::from_secs(4));
    Ok(())
}

/// Repeats what not all nodes took yet: one that has just started may still count as down.
#[allow(clippy::disallowed_methods, reason = "a bench waits")]
fn post(address: SocketAddr, path: &str, content_type: &str, body: &str) -> std::io::Result<()> {
    let request = format!(
        "POST {path} HTTP/1.1\r\nhost: bench\r\nconnection: close\r\nx-operator: bench\r\n\
         content-type: {content_type}\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut answer = String::new();
    for _ in 0..20 {
        answer = exchange(address, &request)?;
        if answer.starts_with("HTTP/1.1 2") {
            return Ok(());
        }
        if !answer.starts_with("HTTP/1.1 503") {
            break;
        }
        std::thread::sleep(Duration::from_millis(500));
    }
    Err(std::io::Error::other(format!("{path}: {answer}")))
}

fn get(address: SocketAddr, path: &str) -> std::io::Result<String> {
    exchange(address, &format!("GET {path} HTTP/1.1\r\nhost: bench\r\nconnection: close\r\n\r\n"))
}

fn exchange(address: SocketAddr, request: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}
