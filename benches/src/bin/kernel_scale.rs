//! `kernel_scale --members 10000000 --items 1000 --decisions 20000000`: what one decision costs on
//! one pinned core at full size, and what a member costs in memory. Prints one JSON line.

use std::time::{Duration, Instant};

use clap::Parser;
use mimalloc::MiMalloc;
use onrush_benches::kernel::{Bench, Tally};

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// Commands that are made, untimed, before each timed stretch.
const ROUND_LEN: usize = 1 << 16;

#[derive(Parser)]
#[command(about = "ns per decision and bytes per member, at full size, on one pinned core")]
struct Args {
    #[arg(long, default_value_t = 10_000_000)]
    members: u64,
    #[arg(long, default_value_t = 1_000)]
    items: usize,
    #[arg(long, default_value_t = 20_000_000)]
    decisions: u64,
    /// The core to run on.
    #[arg(long, default_value_t = 1)]
    core: usize,
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

fn main() {
    let args = Args::parse();
    pin(args.core);
    let opened = now();
    let mut bench = Bench::new(args.members, args.items, args.seed);
    let open_ns = opened.elapsed().as_nanos() as f64 / args.members as f64;
    let resident_empty = resident_bytes();
    bench.make_ready(args.decisions);
    let per_member = |bytes: u64| bytes as f64 / args.members as f64;
    eprintln!("opened: {open_ns:.0} ns each, {:.1} B/member", per_member(resident_empty));

    let mut commands = Vec::with_capacity(ROUND_LEN);
    let mut tally = Tally::default();
    let mut rounds = Vec::new();
    let mut total = Duration::ZERO;
    let mut cpu_total = Duration::ZERO;
    let mut at_tenth = None;
    while tally.sum() < args.decisions {
        bench.commands(ROUND_LEN, &mut commands);
        let (start, cpu_start) = (now(), cpu_time());
        bench.run(&commands, &mut tally);
        let took = start.elapsed();
        cpu_total += cpu_time().saturating_sub(cpu_start);
        total += took;
        rounds.push(took.as_nanos() as f64 / ROUND_LEN as f64);
        if at_tenth.is_none() && tally.confirmed >= args.members / 10 {
            at_tenth = Some(per_member(resident_bytes()));
        }
    }
    rounds.sort_by(f64::total_cmp);
    let mean = total.as_nanos() as f64 / tally.sum() as f64;
    let cpu_mean = cpu_total.as_nanos() as f64 / tally.sum() as f64;
    let at = |q: f64| rounds[(rounds.len() as f64 * q) as usize];
    println!(
        "{{\"members\":{},\"items\":{},\"decisions\":{},\"confirmed\":{:.3},\"replayed\":{:.3},\
         \"ns_per_decision\":{mean:.1},\"cpu_ns_per_decision\":{cpu_mean:.1},\
         \"ns_p10\":{:.1},\"ns_p50\":{:.1},\"ns_p90\":{:.1},\
         \"decisions_per_s\":{:.0},\"bytes_per_member_opened\":{:.1},\
         \"bytes_per_member_after_a_tenth_redeemed\":{:.1},\"bytes_per_member_at_end\":{:.1},\
         \"seed\":{},\"crc\":{}}}",
        args.members,
        args.items,
        tally.sum(),
        tally.confirmed as f64 / tally.sum() as f64,
        tally.replayed as f64 / tally.sum() as f64,
        at(0.1),
        at(0.5),
        at(0.9),
        1e9 / mean,
        per_member(resident_empty),
        at_tenth.unwrap_or(f64::NAN),
        per_member(resident_bytes()),
        args.seed,
        bench.crc,
    );
}

#[allow(clippy::disallowed_methods, reason = "a bench measures real time")]
fn now() -> Instant {
    Instant::now()
}

/// What this thread has had of a core: tells a slow kernel from a busy machine.
fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn pin(core: usize) {
    let mut set = rustix::thread::CpuSet::new();
    set.set(core);
    if let Err(error) = rustix::thread::sched_setaffinity(None, &set) {
        eprintln!("not pinned to core {core}: {error}");
    }
}

/// The resident set of this process, from /proc/self/statm.
fn resident_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = text.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok());
    pages.unwrap_or(0) * rustix::param::page_size() as u64
}
