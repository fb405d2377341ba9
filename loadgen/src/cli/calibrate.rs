//! `calibrate`: what this machine can generate.
//!
//! A server that answers a constant runs in this process, on a thread of its own, unless a target
//! is given. A closed loop finds the ceiling; below it, halving finds the highest open rate at
//! which requests still leave on time.

use std::io;
use std::net::SocketAddr;
use std::sync::mpsc;

use anyhow::{Context, Result, bail, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::cli::args::{CalibrateArgs, ScenarioArgs};
use crate::cli::{resolve, say};
use crate::plan::Plan;
use crate::report::summary::Summary;
use crate::report::text::{grouped, microseconds};
use crate::report::verdict::exit;
use crate::run::{self, Observer};
use crate::stats::Second;

/// Units: microseconds. Later than this, for 1 % of requests, is not on time.
const LATE: u64 = 2_000;
/// Halvings between nothing and the ceiling.
const STEPS: u32 = 6;

struct Nothing;

impl Observer for Nothing {
    fn second(&mut self, _plan: &Plan, _second: &Second) {}
}

/// Runs the steps, each as long as the flag says.
pub fn calibrate(args: &CalibrateArgs) -> Result<u8> {
    ensure!((0.2..=60.0).contains(&args.seconds), "--seconds: between 0.2 and 60");
    let target = match &args.target {
        Some(target) => target.clone(),
        None => format!("http://{}", serve().context("the server to calibrate against")?),
    };
    let mut scenario = ScenarioArgs { target: vec![target], ..ScenarioArgs::default() };
    scenario.client.threads = Some(args.threads);
    scenario.client.pipeline = Some(args.pipeline);
    scenario.schedule.seconds = Some(args.seconds);
    scenario.schedule.closed = Some(args.connections);
    let ceiling = step(&scenario)?.answered_per_second;
    say(&format!("closed loop, {} connections: {}/s\n\n", args.connections, whole(ceiling)));
    scenario.schedule.closed = None;
    scenario.client.connections = Some(args.connections);
    say(&format!("{:>12}{:>12}{:>12}{:>10}  on time\n", "rate", "answered", "lag p99", "busy"));
    let (mut good, mut bad) = (0.0, ceiling.max(2.0) * 1.2);
    for _ in 0..STEPS {
        let rate: f64 = f64::midpoint(good, bad);
        scenario.schedule.rate = Some(rate.max(1.0));
        let s = step(&scenario)?;
        let lag = s.generator.lag_us.p99;
        let on_time = lag <= LATE && s.requests.unsent == 0 && s.answered_per_second > rate * 0.98;
        say(&format!(
            "{:>10}/s{:>10}/s{:>12}{:>8.0} %  {}\n",
            whole(rate),
            whole(s.answered_per_second),
            microseconds(lag),
            s.generator.busiest_worker * 100.0,
            if on_time { "yes" } else { "no" }
        ));
        if on_time { good = rate } else { bad = rate }
    }
    if good == 0.0 {
        bail!("no rate was on time: this machine is busy with something else");
    }
    say(&format!(
        "\nUp to {}/s leave on time, with {} threads and {} connections. {}\n",
        whole(good),
        args.threads,
        args.connections,
        if args.target.is_some() {
            "The target is a part of that."
        } else {
            "The server beside it took a core; a target elsewhere may allow more."
        }
    ));
    Ok(exit::GOOD)
}

fn whole(n: f64) -> String {
    grouped(n.round() as u64)
}

fn step(scenario: &ScenarioArgs) -> Result<Summary> {
    let outcomes = run::run(resolve::plan(scenario)?, &mut Nothing)?;
    if outcomes.interrupted {
        bail!("interrupted");
    }
    Ok(Summary::of(&outcomes, None))
}

/// Answers every request on a thread of its own, until the process ends.
fn serve() -> io::Result<SocketAddr> {
    let (tell, told) = mpsc::channel();
    std::thread::Builder::new().name("bare".into()).spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let served = runtime.and_then(|runtime| {
            let local = tokio::task::LocalSet::new();
            local.block_on(&runtime, accept(&tell))
        });
        if let Err(e) = served {
            // Nobody waits for it any more if the address was told already.
            let _ = tell.send(Err(e));
        }
    })?;
    told.recv().unwrap_or_else(|_| Err(io::Error::other("its thread ended")))
}

async fn accept(tell: &mpsc::Sender<io::Result<SocketAddr>>) -> io::Result<()> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    let _ = tell.send(Ok(listener.local_addr()?));
    loop {
        let (mut stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        tokio::task::spawn_local(async move {
            let (mut buffer, mut answers) = (vec![0; 16 << 10], Vec::new());
            let mut state = 0;
            // A client that goes away is the usual end.
            while let Ok(count @ 1..) = stream.read(&mut buffer).await {
                answers.clear();
                for _ in 0..heads(&buffer[..count], &mut state) {
                    answers.extend_from_slice(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}");
                }
                if stream.write_all(&answers).await.is_err() {
                    return;
                }
            }
        });
    }
}

/// Heads of requests without a body that end in these bytes; `state` is how much of an end the
/// bytes before them had.
fn heads(bytes: &[u8], state: &mut usize) -> usize {
    const END: &[u8; 4] = b"\r\n\r\n";
    let mut count = 0;
    for &b in bytes {
        *state = if b == END[*state] { *state + 1 } else { usize::from(b == b'\r') };
        if *state == END.len() {
            count += 1;
            *state = 0;
        }
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_counted_however_they_arrive() {
        let bytes = b"GET / HTTP/1.1\r\nA: b\r\n\r\nGET / HTTP/1.1\r\n\r\nGET";
        for piece in 1..bytes.len() {
            let mut state = 0;
            let count: usize = bytes.chunks(piece).map(|p| heads(p, &mut state)).sum();
            assert_eq!(count, 2, "in pieces of {piece}");
        }
    }
}
