//! The model beside the real scripts, over many random calls: every answer, and every news.
//!
//! Two servers; pools move between them as failovers would move them, with what they had at some
//! earlier moment, or are lost. Calls go in pipelines. `ONRUSH_CALLS` sets how many there are.

use std::collections::BTreeMap;

use onrush::stock::pool::Pool;

use super::*;
use crate::e2e::{Random, setting};

const ITEMS: u32 = 12;
const JOURNALS: u64 = 4;
const PIPELINE: u64 = 500;

/// A node's idea of itself and one item.
#[derive(Clone, Copy)]
struct Node {
    now: Asker,
    /// As it was once: what a copy of its folder, or a late message, would say.
    past: Asker,
    /// What a refusal asks for.
    next: Option<Next>,
}

#[derive(Clone, Copy)]
enum Next {
    Create,
    Join,
}

/// Nodes that know nothing of an item yet.
fn nodes(number: u32) -> Vec<Node> {
    let node = |journal| {
        let now = asker(item(number), journal);
        Node { now, past: now, next: None }
    };
    (1..=JOURNALS).map(node).collect()
}

struct Real {
    server: Server,
    connection: redis::Connection,
    identity: KeyHash,
}

struct World {
    random: Random,
    endpoint: Endpoint,
    servers: [Real; 2],
    /// Where each item lives, its model, and what its nodes know; and an earlier state of both.
    items: Vec<Life>,
    outcomes: BTreeMap<String, u64>,
}

struct Life {
    at: usize,
    pool: Pool,
    nodes: Vec<Node>,
    saved: Option<(Vec<u8>, Pool)>,
}

impl World {
    fn new() -> Self {
        let servers = [(), ()].map(|()| {
            let server = Server::start(&[]);
            let mut connection = server.connection();
            let endpoint = Endpoint::new(&settings(&server.url())).unwrap();
            let look = asker(item(0), 0);
            let seen = view(ask_on(&mut connection, &endpoint, &look, &PoolAsk::Inspect));
            Real { server, connection, identity: seen.epoch.server }
        });
        let endpoint = Endpoint::new(&settings(&servers[0].server.url())).unwrap();
        let life =
            |number| Life { at: 0, pool: Pool::default(), nodes: nodes(number), saved: None };
        let items = (0..ITEMS).map(life).collect();
        let random = Random::new("the model and the scripts");
        Self { random, endpoint, servers, items, outcomes: BTreeMap::new() }
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.random.next() % bound
    }
    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// What a node asks next. Mostly what a real one would; sometimes not.
    fn next_ask(&mut self, index: usize, journal: usize) -> (Asker, PoolAsk) {
        let node = self.items[index].nodes[journal];
        let asker = if self.one_in(12) { node.past } else { node.now };
        let accepted = asker.standing.accepted;
        let home = self.one_in(3).then(|| HomeStanding {
            added: 20 * self.below(6),
            withdrawn: if self.one_in(4) { self.below(30) } else { 0 },
            journals: (!self.one_in(5)).then(|| {
                let count = 1 + self.below(JOURNALS);
                (1..=count).map(JournalId::new).collect()
            }),
        });
        let good = HomeStanding {
            added: 20 * (3 + self.below(3)),
            withdrawn: 0,
            journals: Some((1..=JOURNALS).map(JournalId::new).collect()),
        };
        match node.next.filter(|_| !self.one_in(4)) {
            Some(Next::Create) => return (asker, PoolAsk::Create { home: good }),
            Some(Next::Join) => {
                let home = (journal == 0).then_some(good);
                return (asker, PoolAsk::Join { home, bump_above: 0 });
            }
            None => {}
        }
        let from = if self.one_in(8) { self.below(40) } else { accepted };
        let ask = match self.below(20) {
            0 => PoolAsk::Create { home: home.unwrap_or_default() },
            1..=4 => PoolAsk::Join { home, bump_above: 0 },
            5 if self.one_in(3) => {
                PoolAsk::Join { home, bump_above: asker.epoch.number + self.below(2) as u32 }
            }
            6..=12 => PoolAsk::Grant {
                from,
                up_to: from + self.below(40),
                need: if self.one_in(2) { 0 } else { self.below(45) },
                nodes: self.below(5) as u32,
                max: 1 + self.below(30),
            },
            13 => PoolAsk::Total { added: 20 * self.below(8) },
            14 => {
                let from = if self.one_in(2) { 0 } else { self.below(20) };
                let key = KeyHash::new(u128::from(self.below(1_000)));
                PoolAsk::Withdraw { from, up_to: from + self.below(15), key }
            }
            15 => PoolAsk::Inspect,
            _ => PoolAsk::Tell,
        };
        (asker, ask)
    }

    /// What a node makes of an answer, and what happens to it beside.
    fn live_on(&mut self, index: usize, journal: usize, answer: &PoolAnswer) {
        let is_lost = self.one_in(6);
        let (sells, returns, restarts, keeps) =
            (self.below(8), self.below(6), self.one_in(25), self.one_in(20));
        let node = &mut self.items[index].nodes[journal];
        if keeps {
            node.past = node.now;
        }
        let seen = answer.view.clone().unwrap_or_default();
        if !is_lost {
            node.next = answer.refusal.as_ref().map(|_| Next::Join);
            match answer.refusal {
                None if answer.asker.epoch == node.now.epoch => {
                    let standing = &mut node.now.standing;
                    standing.accepted = standing.accepted.max(seen.granted);
                }
                Some(PoolRefusal::Epoch) => node.now.epoch = seen.epoch,
                // A pool that is not there: its first epoch, recorded before it is made.
                Some(PoolRefusal::Lost) if seen.epoch.number == 0 && sells < 4 => {
                    node.now.epoch = Epoch { number: 1, server: seen.epoch.server };
                    node.next = Some(Next::Create);
                }
                _ => {}
            }
        }
        let standing = &mut node.now.standing;
        let sold = standing.confirmed - standing.unconfirmed;
        let free = standing.accepted - standing.returned - sold;
        standing.confirmed += sells.min(free);
        standing.returned += returns.min(free - sells.min(free));
        if sells == 7 && sold > 0 {
            standing.unconfirmed += 1;
        }
        if restarts {
            node.now.incarnation = Incarnation::new(node.now.incarnation.get() + 1);
        }
    }

    /// A failover, a loss, or a backup that is played in, of one item.
    fn misfortune(&mut self) {
        let index = self.below(u64::from(ITEMS)) as usize;
        let key = self.endpoint.key(&name(item(index as u32)));
        let (kind, other, is_new) = (self.below(4), self.below(2) as usize, self.one_in(2));
        let life = &mut self.items[index];
        let here = &mut self.servers[life.at].connection;
        if kind == 0 {
            let dump: Option<Vec<u8>> = redis::cmd("DUMP").arg(&key).query(here).unwrap();
            life.saved = dump.map(|dump| (dump, life.pool.clone()));
            return;
        }
        let dump: Option<Vec<u8>> = redis::cmd("DUMP").arg(&key).query(here).unwrap();
        let () = redis::cmd("DEL").arg(&key).query(here).unwrap();
        let state = match kind {
            1 => life.saved.clone(),
            2 => dump.map(|dump| (dump, life.pool.clone())),
            _ => None,
        };
        life.at = other;
        life.pool = Pool::default();
        if let Some((dump, pool)) = state {
            let there = &mut self.servers[other].connection;
            let mut restore = redis::cmd("RESTORE");
            let () = restore.arg(&key).arg(0).arg(dump).query(there).unwrap();
            life.pool = pool;
        } else if is_new {
            // Not lost, but another item, that nobody has made yet.
            life.nodes = nodes(index as u32);
            life.saved = None;
        }
    }

    /// Makes so many calls on each side, and compares; gives the news that the model published.
    fn pipeline(&mut self, calls: u64, news: &mut [Vec<String>; 2]) {
        let mut pipes = [redis::pipe(), redis::pipe()];
        let mut expected = [Vec::new(), Vec::new()];
        for _ in 0..calls {
            let index = self.below(u64::from(ITEMS)) as usize;
            let journal = self.below(JOURNALS) as usize;
            let (asker, ask) = self.next_ask(index, journal);
            let call = Call::new(&self.endpoint, &name(asker.item), &asker, &ask);
            let life = &mut self.items[index];
            let at = life.at;
            let answer = life.pool.on(self.servers[at].identity, &asker, &ask);
            if let Some(change) = life.pool.take_news() {
                news[at].push(format!("{} {}", change.name(), name(asker.item)));
            }
            pipes[at].add_command(call.by_hash());
            self.live_on(index, journal, &answer);
            expected[at].push((asker, ask, answer));
        }
        for at in (0..2).filter(|at| !expected[*at].is_empty()) {
            let values: Vec<redis::Value> =
                pipes[at].query(&mut self.servers[at].connection).unwrap();
            assert_eq!(values.len(), expected[at].len());
            for (value, (asker, ask, model)) in values.iter().zip(&expected[at]) {
                let real = read(asker, ask.clone(), value).unwrap();
                assert_eq!(&real, model, "Redis, and the model, of {asker:?}");
                *self.outcomes.entry(outcome(model)).or_default() += 1;
            }
        }
    }
}

/// For the count of what has been compared.
fn outcome(answer: &PoolAnswer) -> String {
    let word = |text: String| text.split([' ', '(']).next().unwrap_or_default().to_owned();
    let ask = word(format!("{:?}", answer.asked));
    let refusal = answer.refusal.as_ref().map_or(String::from("done"), |r| word(format!("{r:?}")));
    let seen = answer.view.clone().unwrap_or_default();
    let state = match (seen.is_sold_out, seen.is_open, seen.wanted > 0) {
        (true, ..) => " sold out",
        (_, false, _) => " shut",
        (.., true) => " wanted",
        _ => "",
    };
    format!("{ask} {refusal}{state}")
}

#[test]
fn the_model_answers_and_tells_as_the_scripts_do() {
    let calls = setting("ONRUSH_CALLS", 100_000);
    let mut world = World::new();
    let channel = world.endpoint.channel();
    let mut listeners = [0, 1].map(|at: usize| world.servers[at].server.connection());
    let mut pubsubs = listeners.each_mut().map(redis::Connection::as_pubsub);
    for (pubsub, real) in pubsubs.iter_mut().zip(&mut world.servers) {
        pubsub.set_read_timeout(Some(PATIENCE)).unwrap();
        pubsub.subscribe(&channel).unwrap();
        for script in onrush::stock::redis::script::ScriptName::ALL {
            let mut load = redis::cmd("SCRIPT");
            let hash: String =
                load.arg("LOAD").arg(script.text()).query(&mut real.connection).unwrap();
            assert_eq!(hash, script.hash());
        }
    }
    let mut news_count = 0;
    for _ in 0..calls.div_ceil(PIPELINE) {
        if world.one_in(2) {
            world.misfortune();
        }
        let mut news = [Vec::new(), Vec::new()];
        world.pipeline(PIPELINE, &mut news);
        for at in 0..2 {
            // A last message of our own shows that there are no more before it.
            news[at].push(String::from("end"));
            let mut publish = redis::cmd("PUBLISH");
            publish.arg(&channel).arg("end");
            let () = publish.query(&mut world.servers[at].connection).unwrap();
            for expected in &news[at] {
                let heard: String = pubsubs[at].get_message().unwrap().get_payload().unwrap();
                assert_eq!(&heard, expected, "news, in order");
            }
            news_count += news[at].len() - 1;
        }
    }
    for (outcome, count) in &world.outcomes {
        println!("{count:>7}  {outcome}");
    }
    println!("{news_count:>7}  news");
    for seen in ["Create done", "Join done", "Join Epoch", "Join Fenced", "Join OldCopy"] {
        assert!(world.outcomes.keys().any(|o| o.starts_with(seen)), "never: {seen}");
    }
    for seen in ["Grant done", "Grant Lost", "Grant NotJoined", "Withdraw done", "Total done"] {
        assert!(world.outcomes.keys().any(|o| o.starts_with(seen)), "never: {seen}");
    }
    for seen in ["Tell done sold out", "Grant done wanted", "Grant done shut", "Join done shut"] {
        assert!(world.outcomes.contains_key(seen), "never: {seen}");
    }
    assert!(news_count > 100, "{news_count} news");
}
