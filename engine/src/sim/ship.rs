//! Shipping in the simulation: each node's shipper, the topic, the processes that persist, and the
//! database shards.
//!
//! ```text
//!  node's disk ─► JournalFrames ─► Driver ─► SimTopic ─► Reading ─► KafkaLog ─► ShardWriter
//!                                    ▲ Standing ◄── watch::ask ◄── Database ◄───────┘
//! ```
//! All but the topic and the databases is production code. After every step: what a database shard
//! has of a journal and partition is exactly the records up to its watermark, each once, and all of
//! them are durable; what a shipper says is in the topic has been there.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use crossbeam::channel::{Sender, bounded};

use super::database::{CommitFault, Database, SimStore};
use super::ledger::Ledger;
use super::node::Node;
use super::plan::Shape;
use super::topic::{SimOutlet, SimTopic, TopicCounts, TopicWeather};
use crate::clock::{Clock as _, ManualClock};
use crate::journal::sim::{SimDisk, SimRng};
use crate::persist::lost_tail::Opening;
use crate::persist::status::PersistStatus;
use crate::persist::store::Stream;
use crate::persist::watch;
use crate::persist::writer::{Next, ShardWriter, WriterSettings};
use crate::ship::kafka::consume::KafkaLog;
use crate::ship::kafka::driver::{Driver, Standing, Turn};
use crate::ship::kafka::reading::Reading;
use crate::ship::partition::{DatabaseShard, Layout, PARTITION_COUNT, Partition};
use crate::ship::source::JournalFrames;
use crate::units::{Incarnation, JournalId, Seq};

/// Answers of databases that a shipper has not heard yet, at most.
const STANDINGS_MAX: usize = 64;
/// Messages that a lane has room for; more, where walks over all slots come.
const LANE_ROOM: [usize; 2] = [1_024, 16_384];
/// Records of one transaction, likewise.
const BATCH: [usize; 2] = [8, 512];
/// Steps of a process between two of these looks, at most.
const STEPS_MAX: usize = 200;
/// Messages fetched at a time, at most.
const FETCHED_MAX: u64 = 400;
/// How often shipping is looked at until everything is stored, a quarter of a second each time.
const LOOKS_MAX: usize = 160;

/// What happens to shipping.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ShipFault {
    Weather(TopicWeather),
    /// The broker answers nobody for a while.
    BrokerAway {
        ms: u16,
    },
    /// Producers come to an end that they cannot go on from.
    ProducersDie,
    /// Heads of partitions are dropped.
    Retention,
    /// A process ends, and starts again.
    Crash {
        process: u8,
    },
    /// The group deals partitions anew.
    Rebalance,
    /// The same, and a process does not hear of it for a while.
    Zombie {
        process: u8,
        ms: u16,
    },
    /// The next transaction of a database goes wrong.
    Commit {
        shard: u8,
        fault: CommitFault,
    },
    /// A database is away for a while.
    DatabaseAway {
        shard: u8,
        ms: u16,
    },
    KeepCopy {
        shard: u8,
    },
    /// A database is set back to a copy.
    Restore {
        shard: u8,
    },
    /// Time goes by for shipping.
    Wait {
        ms: u16,
    },
}

/// What came by, so that a test can see that it did.
#[derive(Clone, Copy, Default, Debug)]
pub struct ShipCounts {
    pub topic: TopicCounts,
    pub commits: u64,
    pub rewinds: u64,
    pub restored: u64,
    pub crashes: u64,
    pub zombies: u64,
}

/// A node's shipper, as long as the node runs.
struct Shipper {
    incarnation: Incarnation,
    journal: JournalId,
    driver: Driver<JournalFrames<SimDisk>, SimOutlet>,
    standings: Sender<Standing>,
    /// As the thread `ship-watch` has them.
    status: Arc<PersistStatus>,
    stores: Vec<SimStore>,
    is_refused: Vec<bool>,
}

/// A process that persists: a member of the group, and a writer for each database shard.
struct Process {
    reading: Reading,
    writers: Vec<(ShardWriter<KafkaLog, SimStore>, u64)>,
    status: Arc<PersistStatus>,
    /// Of its consumer: the next offset, and what it believes to be its own.
    position: [i64; PARTITION_COUNT],
    is_own: [bool; PARTITION_COUNT],
    /// Until then it hears nothing of the group.
    is_deaf_until_ms: u64,
}

/// How far a shipper's records are known to have been in the topic.
struct Shown {
    /// Per partition, an index into the journal's records of it.
    had: [usize; PARTITION_COUNT],
}

pub struct Shipping {
    clock: Arc<ManualClock>,
    layout: Layout,
    /// Whether walks over all slots come.
    is_large: bool,
    /// Whether the journals' segments go: then no database is set back to before them.
    lets_segments_go: bool,
    topic: SimTopic,
    databases: Vec<Database>,
    shippers: Vec<Option<Shipper>>,
    shown: Vec<Shown>,
    processes: Vec<Process>,
    /// Per partition, the process that the group gave it to.
    owners: [usize; PARTITION_COUNT],
    counts: ShipCounts,
}

impl Shipping {
    pub fn new(shape: &Shape) -> Self {
        let (seed, node_count) = (shape.seed, usize::from(shape.nodes));
        let layout = Layout::new(1 + (seed / 8 % 2) as u8).expect("one or two");
        let clock = Arc::new(ManualClock::new(0));
        let databases: Vec<_> = layout.shards().map(|shard| Database::new(shard, layout)).collect();
        let process_count = 1 + (seed / 16 % 2) as usize;
        let mut shipping = Self {
            layout,
            is_large: shape.forgets(),
            lets_segments_go: shape.snapshots,
            topic: SimTopic::new(Arc::clone(&clock)),
            clock,
            shippers: (0..node_count).map(|_| None).collect(),
            shown: (0..node_count).map(|_| Shown { had: [0; PARTITION_COUNT] }).collect(),
            processes: Vec::new(),
            owners: [0; PARTITION_COUNT],
            counts: ShipCounts::default(),
            databases,
        };
        shipping.processes = (0..process_count).map(|_| shipping.process()).collect();
        shipping.deal(&mut SimRng::new(seed));
        shipping
    }

    pub fn counts(&self) -> ShipCounts {
        let commits = self.databases.iter().map(Database::commits).sum();
        ShipCounts { topic: self.topic.counts(), commits, ..self.counts }
    }

    fn process(&self) -> Process {
        let size = usize::from(self.is_large);
        let (reading, logs) = Reading::new("records", self.layout, LANE_ROOM[size]);
        let status = Arc::new(PersistStatus::new(self.layout));
        let settings = WriterSettings {
            batch: BATCH[size],
            linger_ms: 5,
            mark_every_ms: 50,
            letters_every_ms: 1 << 40,
            is_shared: true,
        };
        let writers = self.databases.iter().zip(logs).map(|(database, log)| {
            let status = Arc::clone(&status);
            (ShardWriter::unread(database.connect(), settings, status, log), 0)
        });
        Process {
            reading,
            writers: writers.collect(),
            status,
            position: [0; PARTITION_COUNT],
            is_own: [false; PARTITION_COUNT],
            is_deaf_until_ms: 0,
        }
    }

    fn now_ms(&self) -> u64 {
        self.clock.monotonic_ns() / 1_000_000
    }

    fn advance(&self, ms: u64) {
        self.clock.advance(Duration::from_millis(ms));
        self.databases.iter().for_each(|database| database.set_time(self.now_ms()));
    }

    pub fn act(&mut self, fault: ShipFault, seed: u64) {
        let rng = &mut SimRng::new(seed);
        self.topic.seed(rng.next_u64());
        let database = |shard: u8| &self.databases[usize::from(shard) % self.databases.len()];
        match fault {
            ShipFault::Weather(weather) => self.topic.set_weather(weather),
            ShipFault::BrokerAway { ms } => self.topic.leave(ms.into()),
            ShipFault::ProducersDie => self.topic.kill_producers(),
            ShipFault::Retention => self.topic.drop_heads(),
            ShipFault::Crash { process } => self.crash(usize::from(process) % self.processes.len()),
            ShipFault::Rebalance => self.deal(rng),
            ShipFault::Zombie { process, ms } => {
                let until = self.now_ms() + u64::from(ms);
                let at = usize::from(process) % self.processes.len();
                self.processes[at].is_deaf_until_ms = until;
                self.counts.zombies += 1;
                self.deal(rng);
            }
            ShipFault::Commit { shard, fault } => database(shard).break_commit(fault),
            ShipFault::DatabaseAway { shard, ms } => database(shard).stop(ms.into()),
            ShipFault::KeepCopy { shard } => database(shard).keep_copy(),
            ShipFault::Restore { shard } => {
                let is_back = !self.lets_segments_go && database(shard).restore();
                self.counts.restored += u64::from(is_back);
            }
            ShipFault::Wait { ms } => self.advance(ms.into()),
        }
    }

    /// The group deals the partitions to its processes.
    fn deal(&mut self, rng: &mut SimRng) {
        let first = rng.below(PARTITION_COUNT as u64 + 1) as usize;
        let turned = rng.below(2) as usize;
        for (at, owner) in self.owners.iter_mut().enumerate() {
            *owner = (usize::from(at >= first) + turned) % self.processes.len();
        }
    }

    /// A process ends with all that it had in memory, and starts again.
    fn crash(&mut self, at: usize) {
        self.gather_alarms(at);
        self.processes[at] = self.process();
        self.counts.crashes += 1;
    }

    /// One turn of something.
    pub fn turn(&mut self, nodes: &[Node], rng: &mut SimRng) {
        self.topic.seed(rng.next_u64());
        self.advance(rng.below(4) * rng.below(30));
        let node = rng.below(nodes.len() as u64) as usize;
        match rng.below(8) {
            0 | 1 => {
                self.ship(nodes, node);
            }
            2 => self.watch(nodes, node, rng.below(self.databases.len() as u64) as usize),
            3 | 4 => {
                for _ in 0..rng.below(4) {
                    self.topic.turn();
                }
            }
            _ => {
                let at = rng.below(self.processes.len() as u64) as usize;
                self.hear(at);
                self.fetch(at, 1 + rng.below(24));
                self.store(nodes, at);
            }
        }
    }

    /// A node that is up has a shipper, of its own opening; one that is down has none.
    fn follow(&mut self, nodes: &[Node], at: usize) {
        let node = &nodes[at];
        let running = node.up.as_ref().filter(|_| !node.is_copy() && !node.disk.is_dead());
        let Some(up) = running else {
            self.shippers[at] = None;
            return;
        };
        if self.shippers[at].as_ref().is_some_and(|s| s.incarnation == up.incarnation) {
            return;
        }
        let (journal, incarnation) = (node.journal(), up.incarnation);
        let source = JournalFrames::new(
            node.disk.clone(),
            journal,
            incarnation,
            Arc::clone(up.durable()),
            Arc::clone(&up.clock),
        );
        let (standings, heard) = bounded(STANDINGS_MAX);
        let status = Arc::new(PersistStatus::new(self.layout));
        status.set_opening(Opening { journal, next: incarnation, last: up.last_at_start });
        let clock = Arc::clone(&self.clock);
        self.shippers[at] = Some(Shipper {
            incarnation,
            journal,
            driver: Driver::new(self.topic.outlet(), self.layout, source, heard, clock),
            standings,
            status,
            stores: self.databases.iter().map(Database::connect).collect(),
            is_refused: vec![false; self.databases.len()],
        });
    }

    /// One turn of a node's thread `ship`.
    fn ship(&mut self, nodes: &[Node], at: usize) -> bool {
        self.follow(nodes, at);
        let Some(shipper) = &mut self.shippers[at] else { return false };
        let before = shipper.driver.status().rewinds.load(std::sync::atomic::Ordering::Relaxed);
        let turn = shipper.driver.turn();
        let status = shipper.driver.status();
        let rewinds = status.rewinds.load(std::sync::atomic::Ordering::Relaxed) - before;
        self.counts.rewinds += rewinds;
        let through = status.acked_through();
        self.databases.iter().for_each(|database| database.set_time(self.now_ms()));
        self.check_acked(&nodes[at], at, through);
        turn == Turn::Busy
    }

    /// One question of a node's thread `ship-watch`.
    fn watch(&mut self, nodes: &[Node], at: usize, shard: usize) {
        self.follow(nodes, at);
        let Some(shipper) = &mut self.shippers[at] else { return };
        let Shipper { journal, status, stores, is_refused, .. } = shipper;
        if let Ok(standing) = watch::ask(&mut stores[shard], *journal, status, is_refused) {
            let alarms = status.alarms();
            assert!(alarms.is_empty(), "the database knows more than was durable: {alarms:?}");
            let _ = shipper.standings.try_send(standing);
        }
    }

    /// A process hears from the group.
    fn hear(&mut self, at: usize) {
        let now_ms = self.now_ms();
        let process = &mut self.processes[at];
        if now_ms < process.is_deaf_until_ms {
            return;
        }
        let is_own = std::array::from_fn(|partition| self.owners[partition] == at);
        let before = std::mem::replace(&mut process.is_own, is_own);
        let changed = |was: bool, is: bool| {
            Partition::all()
                .filter(|p| (before[p.index()], is_own[p.index()]) == (was, is))
                .collect::<Vec<_>>()
        };
        let (taken, given) = (changed(true, false), changed(false, true));
        if !taken.is_empty() {
            process.reading.take_away(taken);
        }
        if !given.is_empty() {
            process.reading.assign(given);
        }
    }

    /// A process's consumer fetches so many messages, at most.
    fn fetch(&mut self, at: usize, count: u64) -> bool {
        let process = &mut self.processes[at];
        process.reading.hear_resumes();
        for (partition, to) in process.reading.seeking().collect::<Vec<_>>() {
            process.position[partition.index()] = to;
            process.reading.sought(partition);
        }
        let mut left = count;
        for partition in Partition::all() {
            if process.reading.waits(partition, false) != Some(false) {
                continue;
            }
            let position = &mut process.position[partition.index()];
            while left > 0
                && let Some((offset, payload)) = self.topic.fetch(partition, *position)
            {
                process.reading.deliver(partition, offset, &payload);
                *position = offset + 1;
                left -= 1;
            }
        }
        left < count
    }

    /// A process's writers, those whose time has come.
    fn store(&mut self, nodes: &[Node], at: usize) -> bool {
        let now_ms = self.now_ms();
        let mut is_busy = false;
        for (writer, due_ms) in &mut self.processes[at].writers {
            if now_ms < *due_ms {
                continue;
            }
            *due_ms = match writer.step(now_ms, false) {
                Next::Now => now_ms,
                Next::AfterMs(ms) => now_ms + ms,
            };
            is_busy |= *due_ms == now_ms;
        }
        self.check_stored(nodes);
        self.gather_alarms(at);
        // Each of them is asked.
        let crashing = self.databases.iter().filter(|database| database.is_crashing()).count();
        if crashing > 0 {
            self.crash(at);
        }
        is_busy
    }

    /// What a node knows to be in all databases.
    pub fn stored_through(&self, at: usize, node: &Node) -> u64 {
        // A shipper lives and dies with its node; here the dead one's may be there for a turn more.
        let is_its =
            |s: &&Shipper| node.up.as_ref().is_some_and(|up| s.incarnation == up.incarnation);
        let shipper = self.shippers[at].as_ref().filter(is_its);
        shipper.map_or(0, |s| s.status.persisted_through().get())
    }

    /// Everything of a journal below `first` is in the databases.
    pub fn check_has(&self, node: &Node, first: u64) {
        for database in &self.databases {
            for partition in database.partitions() {
                let stream = Stream { journal: node.journal(), partition };
                let stored = database.stands(stream).0.seq.get();
                let last = node.ledger.seqs_of(partition).take_while(|seq| *seq < first).last();
                assert!(last.unwrap_or(0) <= stored, "I9: {stream:?} has {stored}, of {last:?}");
            }
        }
    }

    fn gather_alarms(&mut self, at: usize) {
        for alarm in self.processes[at].status.alarms() {
            let is_told = alarm.contains("a restored backup or a lagging replica");
            assert!(is_told && self.counts.restored > 0, "without a cause: {alarm}");
        }
    }

    /// What is stored of a stream is exactly its durable records up to the watermark.
    fn check_stored(&self, nodes: &[Node]) {
        for database in &self.databases {
            for stream in database.touched() {
                let (watermark, rows) = database.stands(stream);
                let ledger = ledger_of(nodes, stream.journal);
                let seq = watermark.seq.get();
                assert!(seq <= ledger.last(), "stored before it was durable: {stream:?}, {seq}");
                let expected = ledger.rows_through(stream.partition, seq);
                assert_eq!(rows, expected, "{stream:?} up to {seq}: rows that are there, and due");
            }
        }
    }

    /// What a shipper says is in the topic has been there.
    fn check_acked(&mut self, node: &Node, at: usize, through: Seq) {
        for partition in Partition::all() {
            let had = &mut self.shown[at].had[partition.index()];
            for seq in node.ledger.seqs_of(partition).skip(*had) {
                if seq > through.get() {
                    break;
                }
                let is_there = self.topic.has_had(node.journal(), partition, seq);
                assert!(is_there, "record {seq} is acknowledged, and was never in the topic");
                *had += 1;
            }
        }
    }

    /// From here on nothing breaks; runs until everything durable is stored, everywhere.
    pub fn come_to_rest(&mut self, nodes: &[Node]) {
        self.topic.heal();
        self.databases.iter().for_each(Database::heal);
        self.processes.iter_mut().for_each(|process| process.is_deaf_until_ms = 0);
        for look in 0.. {
            for at in 0..nodes.len() {
                for shard in 0..self.databases.len() {
                    self.watch(nodes, at, shard);
                }
                for _ in 0..STEPS_MAX {
                    if !self.ship(nodes, at) {
                        break;
                    }
                }
            }
            while self.topic.turn() {}
            for at in 0..self.processes.len() {
                self.hear(at);
                let mut quiet = 0;
                for _ in 0..STEPS_MAX {
                    let is_busy = self.fetch(at, FETCHED_MAX) | self.store(nodes, at);
                    quiet = if is_busy { 0 } else { quiet + 1 };
                    if quiet > 2 {
                        break;
                    }
                    // Writers linger.
                    self.advance(5);
                }
            }
            let Err(missing) = self.is_all_stored(nodes) else { break };
            assert!(look < LOOKS_MAX, "it is not stored: {missing}");
            self.advance(250);
        }
    }

    /// Where the processes and shippers are, for the report of what went wrong.
    fn describe(&self) -> String {
        let mut text = format!("\n  at {} ms, dealt {:?}", self.now_ms(), self.owners);
        for process in &self.processes {
            let errors = process.status.shards().map(|(_, shard)| shard.last_error());
            let errors: Vec<_> = errors.collect();
            let due: Vec<_> = process.writers.iter().map(|(_, due_ms)| *due_ms).collect();
            let _ = write!(
                text,
                "\n  persist: at {:?}, writers due {due:?}, {errors:?}, {:?}",
                process.position,
                process.status.alarms()
            );
        }
        for shipper in self.shippers.iter().flatten() {
            let status = shipper.driver.status();
            let _ = write!(
                text,
                "\n  journal {}: acked through {}, {:?}",
                shipper.journal.get(),
                status.acked_through(),
                status.last_error()
            );
        }
        text
    }

    fn is_all_stored(&self, nodes: &[Node]) -> Result<(), String> {
        for (shard, database) in (0..).map(DatabaseShard::new).zip(&self.databases) {
            for partition in database.partitions() {
                for node in nodes {
                    let journal = node.journal();
                    let stream = Stream { journal, partition };
                    let (watermark, rows) = database.stands(stream);
                    let due = node.ledger.rows_through(partition, node.ledger.last());
                    if rows != due {
                        return Err(format!(
                            "{stream:?} on {shard:?}: {watermark:?}, of {due:?}{}",
                            self.describe()
                        ));
                    }
                }
            }
        }
        for (at, node) in nodes.iter().enumerate().filter(|_| self.lets_segments_go) {
            let (through, last) = (self.stored_through(at, node), node.ledger.last());
            if through < last {
                return Err(format!("node {at} knows of {through}, of {last}{}", self.describe()));
            }
        }
        Ok(())
    }
}

fn ledger_of(nodes: &[Node], journal: JournalId) -> &Ledger {
    let node = nodes.iter().find(|node| node.journal() == journal);
    &node.expect("a journal of this world").ledger
}
