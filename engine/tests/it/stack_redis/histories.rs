//! Random histories over real servers: three leases of the production code, the scripts on a real
//! Redis and its replica, and faults that are made and not modelled. I1 and I2 are checked after
//! each step; then all is healed, the pool opens, and sells to its last unit.
//!
//! `ONRUSH_HISTORIES` sets how many seeds, `ONRUSH_HISTORY` the first one. Each goes the same way
//! each time: news are read behind every ask, up to a mark of its own that is published with it.

#[path = "../../../src/stock/lease/tests/world.rs"]
mod world;

use std::collections::{BTreeMap, VecDeque};

use LeaseAction as A;
use LeaseEvent as E;
use onrush::stock::lease::{
    ANSWER_MS, Elsewhere, Holder, Known, Lease, LeaseAction, LeaseEvent, LeaseRules, Phase,
};
use onrush::stock::redis::script::ScriptName;
use world::{Happened, How, Place, Random, World};

use super::*;
use crate::e2e::{now, setting};

const ITEM: ItemIndex = ItemIndex::new(3);
const NODES: usize = 3;
const RULES: LeaseRules = LeaseRules { nodes: NODES as u32, max: 1_000 };
/// Sold out soon, and not while there are faults.
const TOTALS: [u64; 2] = [30, 120];
/// With faults.
const STEPS: u64 = 900;
const CHANNEL: &str = "onrush:news";

/// Everything that must have happened, in all seeds together.
const FAULTS: [&str; 16] = [
    "stopped",
    "asked while it was stopped",
    "restarted empty",
    "emptied while it ran",
    "replica cut off",
    "failed over",
    "failed over to a replica that had missed a grant",
    "a node stayed with the old master",
    "slow",
    "answered after its node had given up",
    "out of memory",
    "answered with an error",
    "nodes cut off",
    "asks lost",
    "answers lost",
    "crashes",
];

/// A server, and who listens to it for all nodes that are connected to it.
struct Real {
    server: Server,
    listener: Option<redis::Connection>,
    is_up: bool,
}

impl Real {
    fn new(server: Server) -> Self {
        let mut real = Self { server, listener: None, is_up: true };
        real.prepare();
        real
    }

    /// Loads the scripts and listens.
    fn prepare(&mut self) {
        let mut connection = self.server.connection();
        for script in ScriptName::ALL {
            let mut load = redis::cmd("SCRIPT");
            let () = load.arg("LOAD").arg(script.text()).exec(&mut connection).unwrap();
        }
        let mut listener = self.server.connection();
        listener.set_read_timeout(Some(PATIENCE)).unwrap();
        let subscribe = redis::cmd("SUBSCRIBE").arg(CHANNEL).get_packed_command();
        listener.send_packed_command(&subscribe).unwrap();
        listener.recv_response().unwrap();
        self.listener = Some(listener);
    }

    /// The next message on the channel.
    fn hear(&mut self) -> String {
        let listener = self.listener.as_mut().expect("it is up");
        let (_, _, text): (String, String, String) =
            redis::from_redis_value(listener.recv_response().unwrap()).unwrap();
        text
    }
}

/// An ask that was sent, and is not answered yet.
struct Out {
    node: usize,
    sent_at: u64,
    /// What is published behind it.
    mark: String,
    asker: Asker,
    ask: PoolAsk,
    connection: redis::Connection,
}

/// What lasts for some steps.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Trouble {
    Stopped,
    Slow,
    NoMemory,
    /// The replica is on its own, and misses what the master does.
    ReplicaCut,
    /// This node has not heard of the new master.
    StaysBehind(usize),
}

/// Two servers, each the other's replica by turns.
struct Servers {
    endpoint: Endpoint,
    both: [Real; 2],
    master: usize,
    at: [usize; NODES],
    connections: [Option<redis::Connection>; NODES],
    trouble: Option<(Trouble, u64)>,
    steps: u64,
    now: u64,
    marks: u64,
    out: VecDeque<Out>,
    heard: Vec<(usize, Change)>,
    happened: Happened,
}

impl Servers {
    fn start() -> Self {
        let server = || {
            // What waits for the server's clock waits less long.
            let quick = ["--repl-diskless-sync-delay", "0", "--hz", "100"];
            Real::new(Server::start(&quick))
        };
        let both = [server(), server()];
        let endpoint = Endpoint::new(&settings(&both[0].server.url())).unwrap();
        let servers = Self {
            endpoint,
            both,
            master: 0,
            at: [0; NODES],
            connections: [const { None }; NODES],
            trouble: None,
            steps: 0,
            now: 0,
            marks: 0,
            out: VecDeque::new(),
            heard: Vec::new(),
            happened: Happened::default(),
        };
        servers.follow_the_master();
        servers.wait_for_the_replica();
        servers
    }

    /// Nothing is left of the run before.
    fn begin_anew(&mut self) {
        self.order(&["FLUSHALL"]);
        self.heard.clear();
        self.happened = Happened::default();
    }

    /// The other server becomes, or stays, the master's replica.
    fn follow_the_master(&self) {
        let port = self.both[self.master].server.port.to_string();
        self.both[1 - self.master].server.order(&["REPLICAOF", "127.0.0.1", &port]);
    }

    fn wait_for_the_replica(&self) {
        let replica = &self.both[1 - self.master].server;
        wait_until("the replica is there", PATIENCE, || {
            replica.order(&["INFO", "replication"]).contains("master_link_status:up")
        });
        // It waits for what the same connection has written.
        let mut connection = self.both[self.master].server.connection();
        let mut both = redis::pipe();
        both.cmd("SET").arg("step").arg(self.steps).ignore().cmd("WAIT").arg(1).arg(0);
        let (replicas,): (u32,) = both.query(&mut connection).unwrap();
        assert_eq!(replicas, 1);
    }

    fn master(&mut self) -> &mut Real {
        &mut self.both[self.master]
    }

    fn order(&self, words: &[&str]) -> String {
        self.both[self.master].server.order(words)
    }

    fn count(&mut self, what: &'static str) {
        self.happened.counted.push(what);
    }

    fn took(&mut self) -> Happened {
        std::mem::take(&mut self.happened)
    }

    fn reconnect(&mut self, node: usize) {
        self.at[node] = self.master;
        self.connections[node] = None;
        self.happened.reconnected.push(node);
    }

    fn reconnect_all(&mut self) {
        (0..NODES).for_each(|node| self.reconnect(node));
    }

    /// Units granted in all, as a server has it.
    fn granted(&self, at: usize) -> u64 {
        let key = self.endpoint.key(&name(ITEM));
        let mut connection = self.both[at].server.connection();
        let fields: BTreeMap<String, String> =
            redis::cmd("HGETALL").arg(key).query(&mut connection).unwrap();
        let granted = fields.iter().filter(|(field, _)| field.starts_with("g:"));
        granted.map(|(_, units)| units.parse::<u64>().unwrap()).sum()
    }

    /// Reads the answer of an ask that was sent; and the news up to its mark.
    fn receive(&mut self, mut out: Out) -> PoolAnswer {
        let at = self.at[out.node];
        let value = out.connection.recv_response().and_then(redis::Value::extract_error);
        let marked = out.connection.recv_response().and_then(redis::Value::extract_error);
        marked.expect("a mark can be published at any time");
        self.hear(at, &out.mark);
        let Out { node, asker, ask, connection, sent_at, .. } = out;
        if self.now >= sent_at + ANSWER_MS {
            self.count("answered after its node had given up");
        }
        self.connections[node] = Some(connection);
        let why = match value.map(|value| read(&asker, ask.clone(), &value)) {
            Ok(answer) => return answer.expect("it is of our scripts"),
            Err(why) => why,
        };
        self.count("answered with an error");
        if matches!(why.kind(), redis::ErrorKind::Server(redis::ServerErrorKind::ReadOnly)) {
            // It was demoted: as the driver does, another connection.
            self.reconnect(node);
        }
        unavailable(&asker, ask, why.to_string())
    }

    /// News of a server, up to a mark. Other marks are of its master.
    fn hear(&mut self, at: usize, mark: &str) {
        loop {
            let text = self.both[at].hear();
            if text == mark {
                return;
            }
            let (change, of) = text.split_once(' ').expect("a change, and a name");
            let change = Change::ALL.into_iter().find(|known| known.name() == change);
            let Some(change) = change.filter(|_| of == name(ITEM)) else { continue };
            let there = (0..NODES).filter(|node| self.at[*node] == at);
            self.heard.extend(there.map(|node| (node, change)));
        }
    }

    fn begin(&mut self, random: &mut Random) {
        let lasts = self.steps + 20 + random.below(60);
        let trouble = match random.below(10) {
            0 => {
                self.order(&["FLUSHALL"]);
                self.happened.is_forgotten = true;
                // Its clients are not told; an operator who does this has them connect anew.
                self.reconnect_all();
                return self.count("emptied while it ran");
            }
            1 => {
                self.master().server.kill();
                self.master().is_up = false;
                self.master().listener = None;
                self.connections = [const { None }; NODES];
                self.count("stopped");
                Trouble::Stopped
            }
            2..4 => {
                // Scripts wait; what tells the server to go on does not.
                self.order(&["CLIENT", "PAUSE", "1000000", "WRITE"]);
                self.count("slow");
                Trouble::Slow
            }
            4..6 => {
                self.order(&["CONFIG", "SET", "maxmemory", "1"]);
                self.count("out of memory");
                Trouble::NoMemory
            }
            6..9 => {
                self.wait_for_the_replica();
                self.both[1 - self.master].server.order(&["REPLICAOF", "NO", "ONE"]);
                self.count("replica cut off");
                Trouble::ReplicaCut
            }
            _ => return,
        };
        self.trouble = Some((trouble, lasts));
    }

    fn end(&mut self, trouble: Trouble, random: &mut Random) {
        self.trouble = None;
        match trouble {
            Trouble::Stopped => {
                // Else it comes back with what it once had as a replica.
                let copy = self.master().server.dir.path().join("dump.rdb");
                let _ = std::fs::remove_file(copy);
                self.master().server.restart();
                self.master().is_up = true;
                self.master().prepare();
                // At once, and not when the replica has seen it: a master's first replica is a
                // change of its identity, which is to come at the same step each time.
                self.both[1 - self.master].server.order(&["REPLICAOF", "NO", "ONE"]);
                self.follow_the_master();
                self.wait_for_the_replica();
                self.happened.is_forgotten = true;
                self.reconnect_all();
                self.count("restarted empty");
            }
            Trouble::Slow => {
                self.order(&["CLIENT", "UNPAUSE"]);
                for out in std::mem::take(&mut self.out) {
                    let node = out.node;
                    let answer = self.receive(out);
                    self.happened.answers.push((node, answer));
                }
            }
            Trouble::NoMemory => {
                self.order(&["CONFIG", "SET", "maxmemory", "0"]);
            }
            Trouble::ReplicaCut => {
                let (old, new) = (self.master, 1 - self.master);
                if self.granted(old) > self.granted(new) {
                    self.count("failed over to a replica that had missed a grant");
                }
                self.count("failed over");
                self.happened.is_forgotten = true;
                self.master = new;
                self.master().prepare();
                let behind = random.percent(50).then(|| random.below(NODES as u64) as usize);
                let moves = (0..NODES).filter(|node| behind != Some(*node));
                moves.for_each(|node| self.reconnect(node));
                match behind {
                    Some(node) => {
                        self.count("a node stayed with the old master");
                        let lasts = self.steps + random.below(60);
                        self.trouble = Some((Trouble::StaysBehind(node), lasts));
                    }
                    None => self.follow_the_master(),
                }
            }
            Trouble::StaysBehind(node) => {
                self.follow_the_master();
                // It hears so by the refusal of its next ask, or by the end of its connection.
                if random.percent(50) {
                    self.reconnect(node);
                }
            }
        }
    }
}

impl Place for Servers {
    fn ask(&mut self, node: usize, asker: &Asker, ask: &PoolAsk) -> Option<PoolAnswer> {
        let at = self.at[node];
        if !self.both[at].is_up {
            self.count("asked while it was stopped");
            return Some(unavailable(asker, ask.clone(), "it is stopped".into()));
        }
        let server = &self.both[at].server;
        let mut connection = self.connections[node].take().unwrap_or_else(|| server.connection());
        let call = Call::new(&self.endpoint, &name(ITEM), asker, ask);
        self.marks += 1;
        let (mark, sent_at) = (format!("mark {}", self.marks), self.now);
        let mut both = redis::pipe();
        both.add_command(call.by_hash()).cmd("PUBLISH").arg(CHANNEL).arg(&mark);
        connection.send_packed_command(&both.get_packed_pipeline()).unwrap();
        let out = Out { node, sent_at, mark, asker: *asker, ask: ask.clone(), connection };
        if matches!(self.trouble, Some((Trouble::Slow, _))) && at == self.master {
            self.out.push_back(out);
            return None;
        }
        Some(self.receive(out))
    }

    fn news(&mut self) -> Vec<(usize, Change)> {
        std::mem::take(&mut self.heard)
    }

    fn break_something(&mut self, random: &mut Random) -> Happened {
        if self.trouble.is_none() {
            self.begin(random);
        }
        self.took()
    }

    fn pass(&mut self, now: u64, random: &mut Random) -> Happened {
        self.steps += 1;
        self.now = now;
        if let Some((trouble, until)) = self.trouble
            && self.steps >= until
        {
            self.end(trouble, random);
        }
        self.took()
    }

    fn heal(&mut self) -> Happened {
        // Nothing of it is left to chance.
        let mut random = Random::new(0);
        while let Some((trouble, _)) = self.trouble {
            self.end(trouble, &mut random);
        }
        for node in 0..NODES {
            if self.at[node] != self.master {
                self.reconnect(node);
            }
        }
        self.took()
    }

    fn look(&mut self, asker: &Asker) -> Option<PoolView> {
        let mut connection = self.both[self.master].server.connection();
        let answer = ask_on(&mut connection, &self.endpoint, asker, &PoolAsk::Inspect);
        answer.view.filter(|_| answer.refusal.is_none())
    }

    fn step_ms(&self, _: How) -> u64 {
        // A server that is slow is so by seconds.
        if matches!(self.trouble, Some((Trouble::Slow, _))) { 400 } else { 4 }
    }
}

fn unavailable(asker: &Asker, asked: PoolAsk, why: String) -> PoolAnswer {
    let refusal = Some(PoolRefusal::Unavailable(why));
    PoolAnswer { asker: *asker, asked, view: None, refusal }
}

#[test]
fn no_seed_of_real_faults_sells_more_than_there_is_or_leaves_a_unit_unsold() {
    let (seeds, first) = (setting("ONRUSH_HISTORIES", 200), setting("ONRUSH_HISTORY", 1));
    let begun = now();
    let mut servers = Servers::start();
    let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
    for seed in first..first + seeds {
        servers.begin_anew();
        let total = TOTALS[seed as usize % 2];
        let run = std::panic::AssertUnwindSafe(|| {
            World::new(seed, NODES, total, servers).run(STEPS, |_| Happened::default())
        });
        let Ok((back, of_seed)) = std::panic::catch_unwind(run) else {
            panic!("with ONRUSH_HISTORY={seed}")
        };
        servers = back;
        for (what, count) in of_seed {
            *counts.entry(what).or_default() += count;
        }
    }
    println!("{seeds} seeds from {first} in {:.0?}", begun.elapsed());
    for (what, count) in &counts {
        println!("{count:>7}  {what}");
    }
    if seeds >= 200 {
        let never: Vec<_> = FAULTS.iter().filter(|what| !counts.contains_key(**what)).collect();
        assert!(never.is_empty(), "never: {never:?}");
    }
}
