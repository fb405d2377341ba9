//! How long a lease takes: one grant on Redis, against a bare script on the same server.
//!
//! Rounds are interleaved: bare scripts one at a time on a plain connection, then grants one at a
//! time through the node's own client, its thread and its callback included. What a call costs the
//! server is read from the server (`INFO cpu`). A lease is taken ahead, so nobody waits for it; how
//! many there are per redemption is the other half of Redis's share, and the node counts that.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use clap::Parser;
use hdrhistogram::Histogram;
use onrush::clock::{Clock, RealClock};
use onrush::config::RedisConfig;
use onrush::stock::ask::{Asker, Epoch, HomeStanding, PoolAnswer, PoolAsk, Standing};
use onrush::stock::authority::StockAuthority as _;
use onrush::stock::redis::driver::{Delivery, RedisStock};
use onrush::stock::redis::endpoint::Endpoint;
use onrush::units::{Incarnation, ItemIndex, JournalId};
use serde_json::{Value, json};

/// Measures grants on Redis against bare scripts on it.
#[derive(Parser)]
struct Arguments {
    /// Of an empty server.
    #[arg(long, default_value = "redis://127.0.0.1:6379")]
    url: String,
    /// Rounds of both.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 2)]
    seconds: u64,
    /// Journals that share the item: what a script reads and writes grows with them.
    #[arg(long, default_value_t = 3)]
    nodes: u64,
}

type AnyError = Box<dyn std::error::Error>;

const ITEM: ItemIndex = ItemIndex::new(0);
/// An answer that takes longer is none.
const PATIENCE: Duration = Duration::from_secs(10);

/// One measurement. Units: nanoseconds.
struct Measured {
    latency: Histogram<u64>,
    server_ns_per_call: f64,
}

/// Repeats a call for so long, and asks the server what it cost.
fn measure(
    control: &mut redis::Connection,
    clock: &RealClock,
    seconds: u64,
    mut call: impl FnMut() -> Result<(), AnyError>,
) -> Result<Measured, AnyError> {
    let mut latency = Histogram::new(3)?;
    let cpu_before = cpu_seconds(control)?;
    let begun = clock.monotonic_ns();
    let mut now = begun;
    while now - begun < seconds * 1_000_000_000 {
        call()?;
        let after = clock.monotonic_ns();
        latency.record(after - now)?;
        now = after;
    }
    let cpu = cpu_seconds(control)? - cpu_before;
    let server_ns_per_call = cpu * 1e9 / latency.len() as f64;
    Ok(Measured { latency, server_ns_per_call })
}

/// What the server has used so far.
fn cpu_seconds(control: &mut redis::Connection) -> Result<f64, AnyError> {
    let info: String = redis::cmd("INFO").arg("cpu").query(control)?;
    let of = |name: &str| -> Result<f64, AnyError> {
        let line = info.lines().find_map(|line| line.strip_prefix(name)).ok_or("no INFO cpu")?;
        Ok(line.trim().parse()?)
    };
    Ok(of("used_cpu_sys:")? + of("used_cpu_user:")?)
}

/// A node's client, and the answers that come back.
struct Node {
    stock: RedisStock,
    answers: Receiver<PoolAnswer>,
}

impl Node {
    fn start(url: &str) -> Result<Self, AnyError> {
        let config = RedisConfig { urls: vec![url.to_owned()], ..RedisConfig::default() };
        let (to, answers) = channel();
        let mut stock = RedisStock::start(Endpoint::new(&config)?, move |delivery| {
            if let Delivery::Answer(answer) = delivery {
                // Nobody takes it any more when the measurement is over.
                let _ = to.send(answer);
            }
        })?;
        stock.name(ITEM, "bench/item");
        Ok(Self { stock, answers })
    }

    fn ask(&mut self, asker: &Asker, ask: PoolAsk) -> Result<PoolAnswer, AnyError> {
        self.stock.ask(*asker, ask);
        Ok(self.answers.recv_timeout(PATIENCE)?)
    }

    fn must(&mut self, asker: &Asker, ask: PoolAsk) -> Result<PoolAnswer, AnyError> {
        let answer = self.ask(asker, ask)?;
        match &answer.refusal {
            None => Ok(answer),
            Some(refusal) => Err(format!("refused: {refusal:?}").into()),
        }
    }
}

/// Makes the pool, with all journals in it; who asks for the grants.
fn prepare(node: &mut Node, nodes: u64) -> Result<Asker, AnyError> {
    let mut asker = Asker {
        item: ITEM,
        journal: JournalId::new(1),
        incarnation: Incarnation::new(1),
        epoch: Epoch::default(),
        standing: Standing::default(),
    };
    let seen = node.ask(&asker, PoolAsk::Inspect)?.view.ok_or("Redis cannot be reached")?;
    if seen.epoch.number != 0 {
        return Err("this server was used before: give me an empty one".into());
    }
    asker.epoch = Epoch { number: 1, server: seen.epoch.server };
    let journals = (1..=nodes).map(JournalId::new).collect();
    let home = HomeStanding { added: 1 << 40, withdrawn: 0, journals: Some(journals) };
    node.must(&asker, PoolAsk::Create { home })?;
    for number in 2..=nodes {
        let other = Asker { journal: JournalId::new(number), ..asker };
        node.must(&other, PoolAsk::Join { home: None, bump_above: 0 })?;
    }
    Ok(asker)
}

fn figures(of: &[Measured]) -> Value {
    let median = |value: &dyn Fn(&Measured) -> f64| {
        let mut values: Vec<f64> = of.iter().map(value).collect();
        values.sort_by(f64::total_cmp);
        (values[values.len() / 2] * 100.0).round() / 100.0
    };
    let us = |quantile: f64| median(&|m| m.latency.value_at_quantile(quantile) as f64 / 1e3);
    json!({
        "p50_us": us(0.5),
        "p99_us": us(0.99),
        "p999_us": us(0.999),
        "server_cpu_us_per_call": median(&|m| m.server_ns_per_call / 1e3),
        "calls": of.iter().map(|m| m.latency.len()).sum::<u64>(),
    })
}

fn main() -> Result<(), AnyError> {
    let args = Arguments::parse();
    let clock = Arc::new(RealClock::new());
    let client = redis::Client::open(args.url.as_str())?;
    let (mut control, mut plain) = (client.get_connection()?, client.get_connection()?);
    let version: String = redis::cmd("INFO").arg("server").query(&mut control)?;
    let version = version.lines().find_map(|line| line.strip_prefix("redis_version:"));
    let mut node = Node::start(&args.url)?;
    let mut asker = prepare(&mut node, args.nodes)?;
    let bare_script = redis::Script::new("return redis.call('HGET', KEYS[1], 'none')");

    let (mut bare, mut grants) = (Vec::new(), Vec::new());
    for _ in 0..args.rounds {
        bare.push(measure(&mut control, &clock, args.seconds, || {
            let _: Option<String> = bare_script.key("bench").invoke(&mut plain)?;
            Ok(())
        })?);
        grants.push(measure(&mut control, &clock, args.seconds, || {
            let from = asker.standing.accepted;
            let ask = PoolAsk::Grant { from, up_to: from + 1, need: 1, nodes: 3, max: 1 };
            let answer = node.must(&asker, ask)?;
            asker.standing.accepted = answer.view.ok_or("no view")?.granted;
            Ok(())
        })?);
    }
    let result = json!({
        "redis": version.unwrap_or("unknown"),
        "journals": args.nodes,
        "rounds": args.rounds,
        "bare_script": figures(&bare),
        "grant": figures(&grants),
    });
    println!("{}", serde_json::to_string_pretty(&result)?);
    Ok(())
}
