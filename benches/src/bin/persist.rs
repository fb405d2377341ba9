//! How fast persist fills a database shard, against bare inserts of 1000 rows into the same
//! tables on the same server.
//!
//! In turn: the bare loop writes, for every redemption, its row, two ledger rows and the account's
//! new balance, by prepared statements of 1000 rows, and commits every 4096 redemptions; persist
//! applies as many `Redeemed` records from a journal in memory, with all of its checks, sums and
//! watermarks. Both on one connection, to members that exist. The watermark's cost is that of a
//! transaction that does nothing else, so it is told too high: the commit is in it.

use std::time::Duration;

use clap::Parser;
use mysql_async::prelude::Queryable as _;
use mysql_async::{Conn, OptsBuilder, Params, Value};
use onrush::clock::{Clock as _, RealClock};
use onrush::kernel::record::{Opened, Record, Redeemed};
use onrush::persist::apply::Effects;
use onrush::persist::embedded;
use onrush::persist::mysql::{self, Endpoint, Month, MySqlStore};
use onrush::persist::status::PersistStatus;
use onrush::persist::store::{Offsets, Store as _, StoreBatch, Stream, WatermarkMove};
use onrush::persist::writer::WriterSettings;
use onrush::ship::frames::MemoryFrames;
use onrush::ship::gap::Watermark;
use onrush::ship::holdings::MapVersion;
use onrush::ship::partition::{DatabaseShard, Layout, Partition};
use onrush::units::{
    Incarnation, ItemIndex, JournalId, KeyHash, MemberId, NodeTime, Points, Quantity, RedemptionId,
    Seq, Slot,
};
use onrush_benches::servers::{median, median_ratio};

/// Measures persist against bare inserts on a MySQL or MariaDB server.
#[derive(Parser)]
struct Arguments {
    /// An empty database: mysql://USER@HOST:PORT/DATABASE
    #[arg(long)]
    url: String,
    #[arg(long, env = "ONRUSH_BENCH_PASSWORD", hide_env_values = true)]
    password: String,
    /// Redemptions of one measurement.
    #[arg(long, default_value_t = 200_000)]
    redemptions: u64,
    /// Rounds of both.
    #[arg(long, default_value_t = 7)]
    rounds: u64,
}

type AnyError = Box<dyn std::error::Error>;

const JOURNAL: JournalId = JournalId::new(0xbe4c_0001);
/// The bare loop's rows say that they are of another journal, so that none collide.
const BARE: u64 = 0xbe4c_0002;
const ROWS: usize = 1000;
const COMMIT_EVERY: u64 = 4096;
const POINTS: u64 = 1_000_000_000;

fn member(number: u64) -> MemberId {
    MemberId::new(1 + number)
}

struct Bench {
    arguments: Arguments,
    frames: MemoryFrames,
    now_ms: u64,
    round: u64,
}

impl Bench {
    fn endpoint(&self) -> Result<Endpoint, AnyError> {
        let patience = Duration::from_mins(1);
        let Arguments { url, password, .. } = &self.arguments;
        Ok(Endpoint::new(url, Some(password), patience, patience)?)
    }

    /// Appends records in frames as a busy journal writes them.
    fn append(&self, records: &[(Slot, Record)]) {
        for frame in records.chunks(512) {
            self.frames.append(NodeTime::new(self.now_ms), frame);
        }
    }

    fn open_accounts(&self) {
        let at = NodeTime::new(self.now_ms);
        let open = |n| {
            let member = member(n);
            (Slot::of(member), Opened { member, points: Points::new(POINTS), at }.into())
        };
        let records: Vec<_> = (0..self.arguments.redemptions).map(open).collect();
        self.append(&records);
    }

    /// A round's redemptions: each member once.
    fn redeem(&self) {
        let round = self.round;
        let redeem = |n: u64| {
            let member = member(n);
            let slot = Slot::of(member);
            let at = NodeTime::new(self.now_ms + n / 100);
            let number = round * self.arguments.redemptions + n;
            let record = Redeemed {
                member,
                id: RedemptionId::new(at, slot, JOURNAL, number),
                key: KeyHash::of(&number.to_le_bytes()),
                item: ItemIndex::new((n % 1000) as u32),
                quantity: Quantity::new(1),
                points: Points::new(500),
                free_after: Points::new(POINTS - 500 * (round + 1)),
                held_after: Points::new(0),
            };
            (slot, record.into())
        };
        let records: Vec<_> = (0..self.arguments.redemptions).map(redeem).collect();
        self.append(&records);
    }

    /// Seconds until everything in the journal is stored.
    fn persist(&self) -> Result<f64, AnyError> {
        let (layout, shard) = (Layout::new(1).expect("one"), DatabaseShard::HOME);
        let store = MySqlStore::new(self.endpoint()?, shard, layout)?;
        let status = std::sync::Arc::new(PersistStatus::new(layout));
        let settings = WriterSettings::default();
        let mut writer = embedded::writer(store, self.frames.clone(), settings, &status)?;
        let clock = RealClock::new();
        let begun = clock.monotonic_ns();
        while !writer.has_stored(writer.head_seq()) {
            writer.step(clock.monotonic_ns() / 1_000_000, true);
            if let Some(error) = status.shard(shard).last_error() {
                return Err(error.into());
            }
        }
        Ok((clock.monotonic_ns() - begun) as f64 / 1e9)
    }

    /// Seconds of a transaction that only moves every partition's watermark.
    fn watermark(&self) -> Result<f64, AnyError> {
        const TRANSACTIONS: u64 = 200;
        let layout = Layout::new(1).expect("one");
        let mut store = MySqlStore::new(self.endpoint()?, DatabaseShard::HOME, layout)?;
        let journal = JournalId::new(0xbe4c_0100 + self.round);
        let clock = RealClock::new();
        let mark = |seq| Watermark {
            incarnation: Incarnation::new(u32::from(seq > 0)),
            since: Seq::new(u64::from(seq > 0)),
            seq: Seq::new(seq),
        };
        let begun = clock.monotonic_ns();
        for seq in 1..=TRANSACTIONS {
            let at = NodeTime::new(self.now_ms);
            let of = |partition| WatermarkMove {
                stream: Stream { journal, partition },
                expected: mark(seq - 1),
                next: mark(seq),
                at,
            };
            let moves: Vec<_> = Partition::all().map(of).collect();
            store.apply(&StoreBatch {
                map: MapVersion::FIRST,
                moves: &moves,
                effects: &Effects::default(),
                letters: &[],
                applied: &[],
                offsets: Offsets::default(),
            })?;
        }
        Ok((clock.monotonic_ns() - begun) as f64 / 1e9 / TRANSACTIONS as f64)
    }

    /// Seconds of as many rows by bare inserts.
    async fn bare(&self, conn: &mut Conn) -> Result<f64, AnyError> {
        let values = |row: &str| vec![row; ROWS].join(", ");
        let redemptions = format!(
            "INSERT INTO redemptions VALUES {}",
            values("(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)")
        );
        let ledger =
            format!("INSERT INTO ledger VALUES {}", values("(?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"));
        let accounts = format!(
            "INSERT INTO accounts VALUES {} ON DUPLICATE KEY UPDATE free = VALUES(free), \
             last_seq = VALUES(last_seq)",
            values("(?, ?, ?, ?, ?)")
        );
        let statements =
            [conn.prep(redemptions).await?, conn.prep(ledger).await?, conn.prep(accounts).await?];
        let clock = RealClock::new();
        let begun = clock.monotonic_ns();
        conn.query_drop("START TRANSACTION").await?;
        let mut rows: [Vec<Value>; 3] = Default::default();
        let widths = [13, 10, 5];
        for n in 0..self.arguments.redemptions {
            self.bare_rows(n, &mut rows);
            for ((rows, statement), width) in rows.iter_mut().zip(&statements).zip(widths) {
                if rows.len() == ROWS * width {
                    let full = Params::Positional(std::mem::take(rows));
                    conn.exec_drop(statement, full).await?;
                }
            }
            if n % COMMIT_EVERY == COMMIT_EVERY - 1 {
                conn.query_drop("COMMIT").await?;
                conn.query_drop("START TRANSACTION").await?;
            }
        }
        conn.query_drop("COMMIT").await?;
        Ok((clock.monotonic_ns() - begun) as f64 / 1e9)
    }

    fn bare_rows(&self, n: u64, [redemptions, ledger, accounts]: &mut [Vec<Value>; 3]) {
        let number = self.round * self.arguments.redemptions + n;
        let at = self.now_ms + n / 100;
        let id = |low: u64| {
            let mut id = [0; 16];
            id[..6].copy_from_slice(&at.to_be_bytes()[2..]);
            id[6] = 1;
            id[8..].copy_from_slice(&low.to_be_bytes());
            Value::Bytes(id.to_vec())
        };
        let u = Value::UInt;
        let key = Value::Bytes(KeyHash::of(&number.to_be_bytes()).get().to_be_bytes().to_vec());
        redemptions.extend([id(number), u(1 + n), u(BARE), u(n % 1000), u(1), u(500), u(2), key]);
        redemptions.extend([u(at), u(0), u(at), u(0), u(number)]);
        for leg in 0..2 {
            let amount = Value::Int(if leg == 0 { -500 } else { 500 });
            ledger.extend([id(2 * number + leg), u(BARE), u(number), u(leg), u(1 + 3 * leg)]);
            ledger.extend([u(1 + n), amount, u(5), id(number), u(at)]);
        }
        // Above the members that persist has, and each account once a round, as there.
        accounts.extend([u((1 << 40) + n), u(POINTS - 500 * self.round), u(0), u(BARE), u(number)]);
    }
}

fn main() -> Result<(), AnyError> {
    let mut arguments = Arguments::parse();
    // Whole statements, so that the bare loop has no remainder to write.
    arguments.redemptions = arguments.redemptions.div_ceil(ROWS as u64) * ROWS as u64;
    let (now_ms, rounds) = (RealClock::new().wall_ms(), arguments.rounds);
    let frames = MemoryFrames::new(JOURNAL);
    let mut bench = Bench { arguments, frames, now_ms, round: 0 };
    let layout = Layout::new(1).expect("one");
    let month = Month::of(NodeTime::new(now_ms));
    mysql::migrate(&bench.endpoint()?, DatabaseShard::HOME, layout, layout, (month, month))?;
    let server = mysql::status(&bench.endpoint()?, DatabaseShard::HOME, layout)?.server;

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let options = OptsBuilder::from_opts(mysql_async::Opts::from_url(&bench.arguments.url)?)
        .pass(Some(&bench.arguments.password))
        .prefer_socket(false);
    let mut conn = runtime.block_on(Conn::new(options))?;
    // Both write to accounts that are there already.
    bench.open_accounts();
    bench.persist()?;
    runtime.block_on(bench.bare(&mut conn))?;

    let count = bench.arguments.redemptions as f64;
    let (mut bare, mut persist, mut watermark) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..rounds {
        // In turn who is first: the second one meets pages that the first left to be written.
        for is_bare in [round % 2 == 0, round % 2 != 0] {
            if is_bare {
                bench.round = round + 1;
                bare.push(count / runtime.block_on(bench.bare(&mut conn))?);
            } else {
                bench.round = round;
                bench.redeem();
                persist.push(count / bench.persist()?);
            }
        }
        watermark.push(bench.watermark()?);
        // A database belongs to one journal, and those marks were of others.
        let clean = format!("DELETE FROM watermarks WHERE journal <> {}", JOURNAL.get());
        runtime.block_on(conn.query_drop(clean))?;
        let (bare, persist) = (bare[round as usize], persist[round as usize]);
        eprintln!("round {round}: bare {bare:.0}/s, persist {persist:.0}/s");
    }
    let batch_s = COMMIT_EVERY as f64 * 4.0 / median(&persist);
    let result = serde_json::json!({
        "server": server,
        "redemptions": bench.arguments.redemptions,
        "bare_per_second": bare,
        "persist_per_second": persist,
        "bare_median": median(&bare),
        "persist_median": median(&persist),
        "ratio": median_ratio(&persist, &bare),
        "target": "at least 0.8",
        "watermark_ms_per_transaction": median(&watermark) * 1e3,
        "watermark_share_of_a_full_batch": median(&watermark) / batch_s,
        "excluded": "reading the journal from disk; the log's own work is in bench ship",
    });
    println!("{}", serde_json::to_string_pretty(&result)?);
    Ok(())
}
