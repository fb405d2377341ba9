//! How fast the journal makes records durable, against bare 4 KiB synchronous writes.
//!
//! Rounds are interleaved: raw writes, one record at a time, then each offered rate, and again.
//! Producers offer records on a plan (an open loop) and latency counts from the planned moment,
//! so a journal that falls behind shows it. Every record has a completion of its own, as every
//! redemption has its answer. It wants a disk, and refuses a folder on tmpfs.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use clap::Parser;
use hdrhistogram::Histogram;
use onrush::clock::{Clock, RealClock};
use onrush::journal::buffer::AlignedBuffer;
use onrush::journal::disk::{Disk, DiskFile, RealDisk};
use onrush::journal::{CompletionSink, Journal, JournalHandle, JournalOptions, Producer};
use onrush::kernel::record::Redeemed;
use onrush::units::{
    ItemIndex, JournalId, KeyHash, MemberId, NodeTime, Points, Quantity, RedemptionId, Seq, Slot,
};
use onrush_benches::disk::file_system;

/// Measures the journal against raw synchronous writes on the same disk.
#[derive(Parser)]
struct Arguments {
    /// Folder for the journal and the raw file; emptied first. Must be on a disk.
    #[arg(long, default_value = "target/journal-rate")]
    dir: PathBuf,
    /// Rounds of everything.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Producer threads.
    #[arg(long, default_value_t = 1)]
    producers: usize,
    /// Offered rates, in millions of records per second.
    #[arg(long, value_delimiter = ',', default_value = "2,4")]
    rates: Vec<f64>,
    /// Also write the result to this file, as JSON.
    #[arg(long)]
    out: Option<PathBuf>,
}

type AnyError = Box<dyn std::error::Error>;

/// Latencies of one measurement. Units: nanoseconds.
struct Measured {
    latency: Histogram<u64>,
    per_second: f64,
}

impl Measured {
    fn us(&self, quantile: f64) -> f64 {
        self.latency.value_at_quantile(quantile) as f64 / 1e3
    }
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1_000, 60_000_000_000, 3).expect("bounds make sense")
}

/// One 4 KiB `O_DIRECT|O_DSYNC` write after the other into a zero-filled file.
fn raw_writes(disk: &RealDisk, clock: &RealClock, seconds: f64) -> Result<Measured, AnyError> {
    const FILE_LEN: u64 = 16 << 20;
    let _ = disk.remove("raw");
    let file = disk.create("raw")?;
    file.allocate(FILE_LEN)?;
    file.write_at(0, AlignedBuffer::new(FILE_LEN as usize).as_slice())?;
    file.sync()?;
    let mut block = AlignedBuffer::new(4096);
    block.as_mut_slice().fill(0x5a);
    let (mut latency, began) = (histogram(), clock.monotonic_ns());
    let until = began + (seconds * 1e9) as u64;
    let (mut offset, mut count) = (0, 0u64);
    loop {
        let before = clock.monotonic_ns();
        file.write_durable_at(offset, block.as_slice())?;
        let after = clock.monotonic_ns();
        latency.saturating_record(after - before);
        (offset, count) = ((offset + 4096) % FILE_LEN, count + 1);
        if after >= until {
            let per_second = count as f64 / ((after - began) as f64 / 1e9);
            return Ok(Measured { latency, per_second });
        }
    }
}

/// Takes the time of each completion, from the planned moment it carries.
struct Timer {
    clock: Arc<RealClock>,
    /// The moment of this frame's first completion; 0 before it.
    now_ns: u64,
    latency: Histogram<u64>,
    /// Release, partner of the main thread's Acquire: it then takes the histogram's result.
    completed: Arc<AtomicU64>,
    count: u64,
    result: std::sync::mpsc::Sender<Histogram<u64>>,
}

impl CompletionSink for Timer {
    type Item = u64;
    fn complete(&mut self, planned_ns: u64, _seq: Seq) {
        if self.now_ns == 0 {
            self.now_ns = self.clock.monotonic_ns();
        }
        self.latency.saturating_record(self.now_ns.saturating_sub(planned_ns));
        self.count += 1;
    }
    fn flush(&mut self) {
        self.now_ns = 0;
        self.completed.store(self.count, Ordering::Release);
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        let _ = self.result.send(std::mem::replace(&mut self.latency, histogram()));
    }
}

struct Running {
    handle: JournalHandle,
    producers: Vec<Producer<u64>>,
    completed: Arc<AtomicU64>,
    result: std::sync::mpsc::Receiver<Histogram<u64>>,
}

fn start(dir: &Path, clock: &Arc<RealClock>, producers: usize) -> Result<Running, AnyError> {
    if dir.exists() {
        std::fs::remove_dir_all(dir)?;
    }
    let options = JournalOptions { grace: Duration::ZERO, ..JournalOptions::new(dir) };
    let opened = Journal::open(options, clock.clone())?;
    let (completed, (sender, result)) = (Arc::new(AtomicU64::new(0)), std::sync::mpsc::channel());
    let timer = Timer {
        clock: clock.clone(),
        now_ns: 0,
        latency: histogram(),
        completed: completed.clone(),
        count: 0,
        result: sender,
    };
    let poisoned = Box::new(|e| panic!("{e}"));
    let (handle, producers) = opened.start(producers, timer, poisoned)?;
    Ok(Running { handle, producers, completed, result })
}

/// Real records, 80 bytes each, one behind the other.
fn records(count: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    for i in 0..count as u64 {
        let member = MemberId::new(i * 7919);
        let slot = Slot::of(member);
        let at = NodeTime::new(1_800_000_000_000 + i);
        let id = RedemptionId::new(at, slot, JournalId::new(99), i);
        Redeemed {
            member,
            id,
            key: KeyHash::of(&i.to_le_bytes()),
            item: ItemIndex::new((i % 1000) as u32),
            quantity: Quantity::new(1),
            points: Points::new(500),
            free_after: Points::new(10_000),
            held_after: Points::new(0),
        }
        .encode(slot, &mut bytes);
    }
    assert_eq!(bytes.len(), count * RECORD_LEN, "a redeemed record has 80 bytes");
    bytes
}

const RECORD_LEN: usize = 80;
/// Records of one batch, at most: what a shard drains from its inbox at once.
const BATCH: usize = 256;

/// Offers `rate` records a second for a while, on a plan. Returns how many it offered.
fn offer(
    mut producer: Producer<u64>,
    clock: &RealClock,
    rate: f64,
    seconds: f64,
    pause: bool,
    gave_up: &AtomicBool,
) -> u64 {
    let bytes = records(BATCH);
    let mut entries = Vec::with_capacity(BATCH);
    let (began, total) = (clock.monotonic_ns(), (rate * seconds) as u64);
    let mut offered = 0;
    while offered < total && !gave_up.load(Ordering::Relaxed) {
        let elapsed = (clock.monotonic_ns() - began) as f64 / 1e9;
        let due = ((elapsed * rate) as u64).min(total);
        let count = ((due - offered.min(due)) as usize).min(BATCH);
        if count == 0 || !producer.has_room(count, count * RECORD_LEN) {
            if pause {
                std::thread::sleep(Duration::from_micros(10));
            } else {
                std::hint::spin_loop();
            }
            continue;
        }
        for i in 0..count as u64 {
            let planned = began + ((offered + i) as f64 / rate * 1e9) as u64;
            entries.push((RECORD_LEN as u32, 1, planned));
        }
        let pushed = producer.try_push_batch(&bytes[..count * RECORD_LEN], &mut entries);
        assert!(pushed, "there was room");
        producer.wake();
        offered += count as u64;
    }
    offered
}

fn journal_at(
    dir: &Path,
    clock: &Arc<RealClock>,
    arguments: &Arguments,
    rate: f64,
) -> Result<Measured, AnyError> {
    let running = start(dir, clock, arguments.producers)?;
    let (seconds, share) = (arguments.seconds, rate / arguments.producers as f64);
    let (began, gave_up) = (clock.monotonic_ns(), AtomicBool::new(false));
    let pause = arguments.producers > 1;
    let (offered, took_ns) = std::thread::scope(|scope| {
        let offers = running.producers.into_iter();
        let offers: Vec<_> = offers
            .map(|p| scope.spawn(|| offer(p, clock, share, seconds, pause, &gave_up)))
            .collect();
        // Covered segments go meanwhile, as in a node whose store keeps up.
        while !offers.iter().all(std::thread::ScopedJoinHandle::is_finished) {
            running.handle.cover_by_snapshots(running.handle.durable_seq());
            running.handle.cover_by_store(running.handle.durable_seq());
            std::thread::sleep(Duration::from_millis(5));
            let late = clock.monotonic_ns() - began > (seconds * 3e9) as u64;
            gave_up.fetch_or(late, Ordering::Relaxed);
        }
        let joined = offers.into_iter().map(|o| o.join().expect("a panic ends the process"));
        let offered: u64 = joined.sum();
        while running.completed.load(Ordering::Acquire) < offered {
            std::thread::sleep(Duration::from_micros(100));
        }
        (offered, clock.monotonic_ns() - began)
    });
    running.handle.stop()?;
    let latency = running.result.recv()?;
    Ok(Measured { latency, per_second: offered as f64 / (took_ns as f64 / 1e9) })
}

/// One record at a time, a millisecond apart: what a quiet node's answer waits for.
fn one_at_a_time(
    dir: &Path,
    clock: &Arc<RealClock>,
    arguments: &Arguments,
) -> Result<Measured, AnyError> {
    let mut running = start(dir, clock, 1)?;
    let bytes = records(1);
    let (began, count) = (clock.monotonic_ns(), (arguments.seconds * 500.0) as u64);
    for i in 0..count {
        let pushed = running.producers[0].try_push(&bytes, 1, clock.monotonic_ns());
        assert!(pushed.is_ok(), "there is room");
        running.producers[0].wake();
        while running.completed.load(Ordering::Acquire) <= i {
            std::thread::sleep(Duration::from_micros(20));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    let took = (clock.monotonic_ns() - began) as f64 / 1e9;
    running.handle.stop()?;
    Ok(Measured { latency: running.result.recv()?, per_second: count as f64 / took })
}

fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn main() -> Result<(), AnyError> {
    let arguments = Arguments::parse();
    let clock = Arc::new(RealClock::new());
    let disk = RealDisk::open(&arguments.dir, true)?;
    let (is_direct, file_system) = (disk.is_direct(), file_system(&arguments.dir)?);
    println!("folder {} ({file_system})  direct I/O: {is_direct}", arguments.dir.display());
    let journal_dir = arguments.dir.join("journal");
    let mut raws = Vec::new();
    let mut quiets = Vec::new();
    let mut loaded: Vec<Vec<Measured>> = arguments.rates.iter().map(|_| Vec::new()).collect();
    for round in 1..=arguments.rounds {
        let raw = raw_writes(&disk, &clock, arguments.seconds / 2.0)?;
        println!(
            "round {round}  raw 4 KiB       p50 {:6.1} µs  p99 {:7.1} µs",
            raw.us(0.5),
            raw.us(0.99)
        );
        let quiet = one_at_a_time(&journal_dir, &clock, &arguments)?;
        println!(
            "         one at a time  p50 {:6.1} µs  p99 {:7.1} µs",
            quiet.us(0.5),
            quiet.us(0.99)
        );
        for (rate, all) in arguments.rates.iter().zip(&mut loaded) {
            let at = journal_at(&journal_dir, &clock, &arguments, rate * 1e6)?;
            println!(
                "         {rate:4.1} M/s offered p50 {:6.1} µs  p99 {:7.1} µs  {:5.2} M/s done",
                at.us(0.5),
                at.us(0.99),
                at.per_second / 1e6
            );
            all.push(at);
        }
        raws.push(raw);
        quiets.push(quiet);
    }
    let raw_p50 = median(raws.iter().map(|m| m.us(0.5)));
    let raw_p99 = median(raws.iter().map(|m| m.us(0.99)));
    let quiet_p50 = median(quiets.iter().map(|m| m.us(0.5)));
    println!("\nmedians: raw write p50 {raw_p50:.1} µs, p99 {raw_p99:.1} µs");
    println!("one at a time: p50 {quiet_p50:.1} µs = {:.2} x one write", quiet_p50 / raw_p50);
    let mut rows = Vec::new();
    for (rate, all) in arguments.rates.iter().zip(&loaded) {
        let done = median(all.iter().map(|m| m.per_second)) / 1e6;
        let (p50, p99) =
            (median(all.iter().map(|m| m.us(0.5))), median(all.iter().map(|m| m.us(0.99))));
        println!(
            "{rate} M/s offered: {done:.2} M/s done, p50 {p50:.1} µs, p99 {p99:.1} µs \
             = {:.2} x one write",
            p99 / raw_p50
        );
        rows.push(serde_json::json!({
            "offered_per_s": rate * 1e6, "done_per_s": done * 1e6, "p50_us": p50, "p99_us": p99,
            "p99_over_raw_p50": p99 / raw_p50,
        }));
    }
    let result = serde_json::json!({
        "bench": "journal_rate", "file_system": file_system, "direct_io": is_direct,
        "producers": arguments.producers,
        "rounds": arguments.rounds, "seconds": arguments.seconds, "record_bytes": RECORD_LEN,
        "raw_p50_us": raw_p50, "raw_p99_us": raw_p99, "one_at_a_time_p50_us": quiet_p50,
        "one_at_a_time_p50_over_raw_p50": quiet_p50 / raw_p50, "loaded": rows,
    });
    if let Some(path) = &arguments.out {
        std::fs::write(path, format!("{result:#}\n"))?;
    }
    std::fs::remove_dir_all(&arguments.dir)?;
    Ok(())
}
