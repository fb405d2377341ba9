//! How fast the shipper fills Kafka, against a raw `BaseProducer` loop on the same broker.
//!
//! A journal of real records is written once. Then, in turn: the raw loop sends as many messages of
//! the same size from memory, and the shipper reads the journal from disk, checks it, and sends it;
//! both idempotent, acks=all, the same compression, keys and partitions, until the broker has
//! acknowledged everything. The broker and both producers share the machine.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use onrush::clock::{Clock, NodeClock, RealClock};
use onrush::config::{Compression, KafkaConfig};
use onrush::journal::disk::RealDisk;
use onrush::journal::{CompletionSink, Journal, JournalHandle, JournalOptions, journal_dir};
use onrush::kernel::record::Redeemed;
use onrush::ship::kafka::driver::{self, Standing};
use onrush::ship::kafka::message::HEADER_LEN;
use onrush::ship::kafka::topic::Topics;
use onrush::ship::partition::{DatabaseShard, Layout, Partition};
use onrush::ship::source::JournalFrames;
use onrush::units::{
    Incarnation, ItemIndex, JournalId, KeyHash, MemberId, NodeTime, Points, Quantity, RedemptionId,
    Seq, Slot,
};
use rdkafka::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};

/// Measures the shipper against a raw producer loop on the same broker.
#[derive(Parser)]
struct Arguments {
    /// A broker, as in `scripts/stack env`.
    #[arg(long, env = "ONRUSH_STACK_KAFKA")]
    bootstrap: String,
    /// Records of one measurement.
    #[arg(long, default_value_t = 2_000_000)]
    records: u64,
    /// Rounds of both.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Folder for the journal; must not exist yet.
    #[arg(long, default_value = "target/bench-data/ship")]
    data: PathBuf,
}

type AnyError = Box<dyn std::error::Error>;

const RECORD_LEN: usize = 80;
const BATCH: usize = 256;

struct Ignore;

impl CompletionSink for Ignore {
    type Item = ();
    fn complete(&mut self, (): (), _: Seq) {}
}

fn record(number: u64, out: &mut Vec<u8>) {
    let member = MemberId::new(number.wrapping_mul(7919));
    let slot = Slot::of(member);
    let id = RedemptionId::new(NodeTime::new(1_800_000_000_000), slot, JournalId::new(99), number);
    Redeemed {
        member,
        id,
        key: KeyHash::of(&number.to_le_bytes()),
        item: ItemIndex::new((number % 1000) as u32),
        quantity: Quantity::new(1),
        points: Points::new(500),
        free_after: Points::new(10_000),
        held_after: Points::new(0),
    }
    .encode(slot, out);
}

/// A journal on disk with so many records, still open.
struct Written {
    journal: JournalHandle,
    disk: RealDisk,
    incarnation: Incarnation,
    clock: Arc<NodeClock>,
}

fn write_journal(data: &Path, records: u64) -> Result<Written, AnyError> {
    let options = JournalOptions { max_bytes: 64 << 30, ..JournalOptions::new(journal_dir(data)) };
    let opened = Journal::open(options, Arc::new(RealClock::new()))?;
    let (incarnation, clock) = (opened.incarnation(), Arc::clone(opened.clock()));
    let (journal, mut producers) = opened.start(1, Ignore, Box::new(|e| panic!("{e}")))?;
    let producer = &mut producers[0];
    let (mut bytes, mut entries) = (Vec::new(), Vec::new());
    let mut number = 0;
    while number < records {
        let count = (records - number).min(BATCH as u64);
        bytes.clear();
        for n in number..number + count {
            record(n, &mut bytes);
            entries.push((RECORD_LEN as u32, 1, ()));
        }
        while !producer.has_room(count as usize, bytes.len()) {
            std::thread::sleep(Duration::from_micros(50));
        }
        assert!(producer.try_push_batch(&bytes, &mut entries), "there was room");
        producer.wake();
        number += count;
    }
    while journal.durable_seq() < Seq::new(records) {
        std::thread::sleep(Duration::from_millis(1));
    }
    let disk = RealDisk::open_read_only(&journal_dir(data))?;
    Ok(Written { journal, disk, incarnation, clock })
}

/// Seconds until everything is acknowledged.
fn ship(config: &KafkaConfig, written: &Written, records: u64) -> Result<f64, AnyError> {
    let layout = Layout::new(1).expect("one");
    let (standings_in, standings) = crossbeam::channel::bounded(4);
    let source = JournalFrames::new(
        written.disk.clone(),
        written.journal.journal(),
        written.incarnation,
        Arc::clone(written.journal.durable()),
        Arc::clone(&written.clock),
    );
    let clock = Arc::new(RealClock::new());
    let ship =
        driver::start(config.clone(), layout, source, standings, clock.clone() as Arc<dyn Clock>)?;
    // It waits for the database shards' word; the clock starts with it.
    std::thread::sleep(Duration::from_millis(1_500));
    let held = Partition::all().map(|p| (p, Seq::NONE)).collect();
    let begun = clock.monotonic_ns();
    standings_in.send(Standing { shard: DatabaseShard::HOME, held, asked: Vec::new() })?;
    while ship.status().acked_through() < Seq::new(records) {
        std::thread::sleep(Duration::from_millis(1));
    }
    let seconds = (clock.monotonic_ns() - begun) as f64 / 1e9;
    ship.stop(Duration::from_secs(5));
    Ok(seconds)
}

fn raw(config: &KafkaConfig, records: u64) -> Result<f64, AnyError> {
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", &config.bootstrap)
        .set("enable.idempotence", "true")
        .set("acks", "all")
        .set("compression.type", config.compression.name())
        .set("linger.ms", "5")
        .set("batch.num.messages", "10000")
        .set("queue.buffering.max.messages", "200000")
        .set("queue.buffering.max.kbytes", "65536")
        .create()?;
    // Connected before the clock starts, as the shipper is.
    producer.client().fetch_metadata(Some(&config.topic), Duration::from_secs(10))?;
    let clock = RealClock::new();
    let begun = clock.monotonic_ns();
    let mut payload = Vec::new();
    for number in 0..records {
        payload.clear();
        payload.resize(HEADER_LEN, 0);
        record(number, &mut payload);
        let member = MemberId::new(number.wrapping_mul(7919));
        let partition = Partition::of(Slot::of(member)).expect("a member's slot");
        let key = member.get().to_be_bytes();
        let mut message = BaseRecord::<[u8], [u8]>::to(&config.topic)
            .partition(i32::from(partition.get()))
            .key(&key)
            .payload(&payload);
        loop {
            match producer.send(message) {
                Ok(()) => break,
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), again)) => {
                    message = again;
                    producer.poll(Duration::from_millis(1));
                }
                Err((error, _)) => return Err(error.into()),
            }
        }
        if number % 1024 == 0 {
            producer.poll(Duration::ZERO);
        }
    }
    producer.flush(Duration::from_mins(2))?;
    Ok((clock.monotonic_ns() - begun) as f64 / 1e9)
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

fn main() -> Result<(), AnyError> {
    let arguments = Arguments::parse();
    let records = arguments.records;
    if arguments.data.exists() {
        return Err(format!("{} is there already", arguments.data.display()).into());
    }
    let written = write_journal(&arguments.data, records)?;
    let config = KafkaConfig {
        bootstrap: arguments.bootstrap.clone(),
        topic: "onrush-bench-ship".into(),
        events_topic: String::new(),
        replication: 1,
        min_insync: 1,
        retention_ms: 60_000,
        compression: Compression::Lz4,
        ..KafkaConfig::default()
    };
    Topics::connect(&config)?.init()?;
    let (mut raws, mut ships) = (Vec::new(), Vec::new());
    for round in 0..arguments.rounds {
        raws.push(records as f64 / raw(&config, records)?);
        ships.push(records as f64 / ship(&config, &written, records)?);
        eprintln!("round {round}: raw {:.0}/s, shipper {:.0}/s", raws[round], ships[round]);
    }
    written.journal.stop()?;
    std::fs::remove_dir_all(&arguments.data)?;
    let ratio = median(&ships) / median(&raws);
    let result = serde_json::json!({
        "records": records,
        "message_bytes": HEADER_LEN + RECORD_LEN,
        "compression": config.compression.name(),
        "raw_per_second": raws,
        "ship_per_second": ships,
        "raw_median": median(&raws),
        "ship_median": median(&ships),
        "ratio": ratio,
        "target": "at least 0.9",
    });
    println!("{}", serde_json::to_string_pretty(&result)?);
    Ok(())
}
