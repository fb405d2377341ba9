//! Plans: what is done to a world, in order, each step with a seed of its own.
//!
//! A step means the same whatever stands before it, so a plan that fails can be cut down.

use std::ops::Range;

use super::database::CommitFault;
use super::ship::ShipFault;
use super::snapshots::POINTS;
use super::topic::TopicWeather;
use crate::journal::sim::{Fault, SimRng};

/// How large a world is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shape {
    pub seed: u64,
    pub nodes: u8,
    pub shards: u8,
    pub clients: u8,
    pub items: u8,
    pub stock: u8,
    pub limit: u8,
    pub price: u8,
    pub hold_ttl_ms: u32,
    pub key_retention_ms: u64,
    /// Entries of a producer's ring to the journal; 0: many, as walks over all slots need.
    pub ring: u8,
    /// Whether the nodes sell one sale together, from one pool; else each has a sale of its own.
    pub is_shared: bool,
    /// When the sale closes by itself.
    pub closes_ms: u32,
    /// Whether the nodes ship what is durable, to databases that are checked.
    pub ships: bool,
    /// Whether they take snapshots, and segments go.
    pub snapshots: bool,
    /// After so long one is due, unless an operator wants one.
    pub snapshot_every_ms: u64,
}

impl Shape {
    /// Whether the keys of the sale are dropped while it is looked at.
    pub fn forgets(&self) -> bool {
        self.key_retention_ms < 1_000
    }

    /// The home of a sale that nodes share.
    pub fn home(&self) -> usize {
        self.seed as usize / 2 % usize::from(self.nodes)
    }
}

/// How the network between nodes, and to Redis, is.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Weather {
    /// Of 100 messages, so many are lost.
    pub lost: u8,
    /// And so many come twice.
    pub twice: u8,
    /// They take so long, at most: each its own time.
    pub slow_ms: u16,
    /// What was sent first may come last.
    pub is_mixed: bool,
}

/// What happens to Redis.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RedisFault {
    /// It is started again with nothing.
    Empty,
    /// It is started again with all that it had.
    Restart,
    /// It is started again from a copy, the `back`-th before the newest.
    Backup { back: u8 },
    /// Its replica takes over, which missed the last calls.
    Failover,
    /// The same, and a node still talks with the old one.
    Split { node: u8 },
    /// It answers nobody for a while.
    Stop { ms: u16 },
    /// Its replica is where it is; a copy is kept.
    Sync,
}

/// How a node ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// The machine goes: what was not synced is kept or lost, sector by sector.
    Power,
    /// The process goes: what was written stays in the page cache.
    Kill,
}

/// What an operator asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Order {
    Open,
    Pause,
    Resume,
    Close,
    Add {
        quantity: u8,
    },
    Withdraw {
        quantity: u8,
    },
    /// Once more what was asked `back` orders ago, with the same key.
    Again {
        back: u8,
    },
}

/// One thing that happens.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Act {
    Redeem {
        client: u8,
        item: u8,
        quantity: u8,
        hold: bool,
    },
    /// The same request again, `back` keys ago; with another body where `other`.
    Retry {
        client: u8,
        back: u8,
        other: bool,
    },
    Confirm {
        client: u8,
        back: u8,
    },
    Cancel {
        client: u8,
        back: u8,
    },
    Reverse {
        client: u8,
        back: u8,
    },
    Credit {
        client: u8,
        amount: u8,
        back: u8,
    },
    Debit {
        client: u8,
        amount: u8,
        back: u8,
    },
    Read {
        client: u8,
        back: u8,
    },
    /// The client hangs up on all its requests.
    HangUp {
        client: u8,
    },
    Order {
        node: u8,
        order: Order,
        item: u8,
    },
    Sleep {
        ms: u32,
    },
    Crash {
        node: u8,
        end: End,
        down_ms: u32,
    },
    /// The same at the `nth` crash point from now on: in the middle of a write, a completion, a
    /// recovery.
    CrashAt {
        node: u8,
        end: End,
        nth: u8,
    },
    /// The power goes in the middle of the `nth` disk operation from now on.
    TearWrite {
        node: u8,
        nth: u8,
    },
    /// The `nth` disk operation from now on fails.
    FailWrite {
        node: u8,
        nth: u8,
    },
    /// Somebody sets the machine's clock.
    SetClock {
        node: u8,
        by_ms: i32,
    },
    /// The node is told to end, and is started again.
    Drain {
        node: u8,
    },
    Weather(Weather),
    Redis(RedisFault),
    /// A node and Redis do not hear each other for a while.
    Cut {
        node: u8,
        ms: u16,
    },
    /// An operator has a pool rebuilt.
    Rebuild {
        item: u8,
    },
    /// A node's data folder is copied, as it is.
    KeepCopy {
        node: u8,
    },
    /// The copy is started in the folder's place.
    RunCopy {
        node: u8,
        ms: u16,
    },
    /// The answer to the node's next grant comes only when the node has entered a newer epoch:
    /// Redis forgets, or the pool is rebuilt by hand, right behind the grant.
    LateGrant {
        node: u8,
        fault: Option<RedisFault>,
    },
    /// A node is started with another map: two nodes have changed places in it.
    EditMap {
        node: u8,
        pick: u8,
    },
    /// A node is started with an empty disk in its data folder's place.
    EmptyDisk {
        node: u8,
    },
    /// A node and the next one do not hear each other for a while.
    CutNodes {
        node: u8,
        ms: u16,
    },
    Ship(ShipFault),
    /// An operator wants a snapshot.
    Snapshot {
        node: u8,
    },
    /// A crash at a point that snapshots come by, or segments that go.
    CrashAtPoint {
        node: u8,
        end: End,
        point: u8,
    },
    /// The `nth` operation from now on of the snapshots' disk fails, or is its last one.
    BreakSnapshots {
        node: u8,
        nth: u8,
        fault: Fault,
    },
    /// The newest snapshot is damaged on the disk.
    RotSnapshot {
        node: u8,
    },
    /// The journal as it was before the newest snapshot is started with it.
    OlderJournal {
        node: u8,
    },
}

/// An act, and how long the world runs on before the next one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Step {
    pub act: Act,
    pub turns: u8,
    pub seed: u64,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Plan {
    pub shape: Shape,
    pub steps: Vec<Step>,
}

/// How often each kind of act comes, in a plan that has no taste.
const WEIGHTS: [u64; 40] = [
    30, 12, 8, 6, 4, 2, 2, 4, 1, 2, 8, 3, 4, 2, 3, 1, 1, 3, 2, 6, 4, 3, 2, 5, 6, 4, 3, 1, 3, 6, 3,
    5, 8, 5, 4, 10, 5, 4, 3, 2,
];
const KINDS: usize = WEIGHTS.len();
/// These come in worlds with a shared pool only.
const SHARED_KINDS: Range<usize> = 19..29;
/// And these in worlds that ship.
const SHIP_KINDS: Range<usize> = 29..35;
/// And these where there are snapshots.
const SNAPSHOT_KINDS: Range<usize> = 35..KINDS;

impl Plan {
    /// The plan of a seed: a world, and acts of kinds that the seed prefers.
    pub fn of(seed: u64) -> Self {
        let mut rng = SimRng::new(seed ^ 0x5eed_0f0f);
        let stock = 1 + rng.below(8) as u8;
        let snapshots = seed / 4 % 15 == 2;
        let forgetting = if snapshots { 6 } else { 1 };
        let shape = Shape {
            seed,
            nodes: 1 + (rng.below(4) / 2) as u8 + rng.below(2) as u8,
            shards: 1 + rng.below(2) as u8,
            clients: 2 + rng.below(4) as u8,
            items: 1 + rng.below(2) as u8,
            stock,
            limit: 1 + rng.below(4) as u8,
            price: [1, 10, 40][rng.below(3) as usize],
            hold_ttl_ms: [5, 50, 400][rng.below(3) as usize],
            key_retention_ms: if rng.below(60) < forgetting { 200 } else { 1 << 40 },
            ring: [4, 8, 64][rng.below(3) as usize],
            is_shared: seed % 2 == 1,
            closes_ms: 20_000,
            ships: seed / 2 % 2 == 1,
            snapshots,
            snapshot_every_ms: if seed / 60 % 4 == 1 { 2_000 } else { 1 << 40 },
        };
        let has_walks = shape.forgets() || snapshots;
        let mut shape = Shape { ring: if has_walks { 0 } else { shape.ring }, ..shape };
        if shape.is_shared {
            shape.nodes = if rng.below(8) == 0 { 2 } else { 3 };
            shape.clients = 3 + rng.below(6) as u8;
            shape.stock = 1 + (rng.below(8) * rng.below(4)) as u8;
            shape.limit = 1 + rng.below(6) as u8;
            shape.price = [1, 1, 10][rng.below(3) as usize];
            shape.closes_ms = [600_000, 600_000, 600_000, 20_000][rng.below(4) as usize];
        }
        // Each seed has its own taste: some kinds often, some never.
        let mut weights = [0; KINDS];
        for kind in 0..KINDS {
            let is_known = (shape.is_shared || !SHARED_KINDS.contains(&kind))
                && (shape.ships || !SHIP_KINDS.contains(&kind))
                && (shape.snapshots || !SNAPSHOT_KINDS.contains(&kind));
            if is_known {
                weights[kind] = WEIGHTS[kind] * [0, 1, 1, 3][rng.below(4) as usize];
            }
        }
        weights[0] = weights[0].max(20);
        if shape.snapshots {
            let taking = SNAPSHOT_KINDS.start;
            weights[taking] = weights[taking].max(WEIGHTS[taking]);
        }
        let count = 20 + rng.below(100);
        let steps = (0..count).map(|_| step(&mut rng, &shape, &weights)).collect();
        Self { shape, steps }
    }
}

fn step(rng: &mut SimRng, shape: &Shape, weights: &[u64; KINDS]) -> Step {
    let mut at = rng.below(weights.iter().sum());
    let mut kind = 0;
    while at >= weights[kind] {
        at -= weights[kind];
        kind += 1;
    }
    let client = rng.below(shape.clients.into()) as u8;
    let node = rng.below(shape.nodes.into()) as u8;
    let item = rng.below(shape.items.into()) as u8;
    let back = (rng.below(5) * rng.below(3)) as u8;
    let end = if rng.coin() { End::Power } else { End::Kill };
    let amount = 1 + rng.below(30) as u8;
    let quantity = 1 + (rng.below(3) * rng.below(2)) as u8;
    let hold = rng.below(3) == 0;
    let nth = (1 + rng.below(12) * rng.below(3)) as u8;
    let act = match kind {
        0 => Act::Redeem { client, item, quantity, hold },
        1 => Act::Retry { client, back, other: rng.below(6) == 0 },
        2 => Act::Confirm { client, back },
        3 => Act::Cancel { client, back },
        4 => Act::Reverse { client, back },
        5 => Act::Credit { client, amount, back },
        6 => Act::Debit { client, amount, back },
        7 => Act::Read { client, back },
        8 => Act::HangUp { client },
        9 => {
            let order = match rng.below(8) {
                0..=2 => Order::Pause,
                3..=5 => Order::Resume,
                6 => Order::Open,
                _ => Order::Close,
            };
            Act::Order { node, order, item }
        }
        10 => Act::Sleep { ms: [1, 5, 60, 500][rng.below(4) as usize] },
        11 => Act::Crash { node, end, down_ms: [0, 1, 30, 900][rng.below(4) as usize] },
        12 => Act::CrashAt { node, end, nth },
        13 => Act::TearWrite { node, nth },
        14 => Act::FailWrite { node, nth },
        15 => Act::SetClock { node, by_ms: rng.below(2_000_000) as i32 - 1_000_000 },
        16 => Act::Drain { node },
        17 => Act::Order { node, order: Order::Add { quantity: amount % 4 + 1 }, item },
        18 => {
            let order = match rng.below(3) {
                0 => Order::Again { back },
                _ => Order::Withdraw { quantity: amount % 4 + 1 },
            };
            Act::Order { node, order, item }
        }
        _ if SHARED_KINDS.contains(&kind) => shared_act(rng, kind, node, item),
        _ if SNAPSHOT_KINDS.contains(&kind) => snapshot_act(rng, kind, node, end),
        _ => Act::Ship(ship_fault(rng, kind)),
    };
    let turns = rng.below(16) * rng.below(4) * if shape.is_shared { 3 } else { 1 };
    Step { act, turns: turns as u8, seed: rng.next_u64() }
}

/// What happens only where nodes share a pool.
fn shared_act(rng: &mut SimRng, kind: usize, node: u8, item: u8) -> Act {
    let ms = [1, 10, 100, 1_500][rng.below(4) as usize];
    match kind {
        19 => Act::Weather(Weather {
            lost: [0, 0, 10, 40][rng.below(4) as usize],
            twice: [0, 0, 10, 40][rng.below(4) as usize],
            slow_ms: [0, 3, 40, 700][rng.below(4) as usize],
            is_mixed: rng.coin(),
        }),
        20 => Act::Redis(match rng.below(10) {
            0 => RedisFault::Empty,
            1 => RedisFault::Restart,
            2 => RedisFault::Backup { back: rng.below(4) as u8 },
            3 | 4 => RedisFault::Failover,
            5 => RedisFault::Split { node },
            6 => RedisFault::Stop { ms },
            _ => RedisFault::Sync,
        }),
        21 => Act::Cut { node, ms },
        22 => Act::Rebuild { item },
        23 => Act::KeepCopy { node },
        24 => Act::RunCopy { node, ms },
        25 => Act::LateGrant {
            node,
            fault: [None, None, Some(RedisFault::Failover), Some(RedisFault::Empty)]
                [rng.below(4) as usize],
        },
        26 => Act::EditMap { node, pick: rng.below(3) as u8 },
        27 => Act::EmptyDisk { node },
        _ => Act::CutNodes { node, ms },
    }
}

/// What happens only where there are snapshots.
fn snapshot_act(rng: &mut SimRng, kind: usize, node: u8, end: End) -> Act {
    match kind {
        35 => Act::Snapshot { node },
        36 => Act::CrashAtPoint { node, end, point: rng.below(POINTS.len() as u64) as u8 },
        37 => {
            let nth = rng.below(9) as u8;
            let fault = if rng.below(3) == 0 { Fault::PowerLoss } else { Fault::Error };
            Act::BreakSnapshots { node, nth, fault }
        }
        38 => Act::RotSnapshot { node },
        _ => Act::OlderJournal { node },
    }
}

/// What happens only where nodes ship.
fn ship_fault(rng: &mut SimRng, kind: usize) -> ShipFault {
    let ms = [20, 200, 2_000, 20_000][rng.below(4) as usize];
    let (process, shard) = (rng.below(2) as u8, rng.below(2) as u8);
    match kind {
        29 => ShipFault::Weather(TopicWeather {
            lost: [0, 3, 20, 40][rng.below(4) as usize],
            twice: [0, 0, 10, 40][rng.below(4) as usize],
            late: [0, 20, 60, 90][rng.below(4) as usize],
            refused: [0, 0, 10, 40][rng.below(4) as usize],
        }),
        30 => ShipFault::BrokerAway { ms },
        31 => match rng.below(3) {
            0 => ShipFault::ProducersDie,
            1 => ShipFault::Retention,
            _ => ShipFault::Wait { ms },
        },
        32 => ShipFault::Commit {
            shard,
            fault: [
                CommitFault::CrashBefore,
                CommitFault::CrashAfter,
                CommitFault::FailBefore,
                CommitFault::FailAfter,
            ][rng.below(4) as usize],
        },
        33 => match rng.below(3) {
            0 => ShipFault::Crash { process },
            1 => ShipFault::Rebalance,
            _ => ShipFault::Zombie { process, ms },
        },
        _ => match rng.below(4) {
            0 => ShipFault::DatabaseAway { shard, ms },
            1 => ShipFault::Restore { shard },
            _ => ShipFault::KeepCopy { shard },
        },
    }
}
