//! Load for the fault tests, and the book that the client keeps: what was asked, what was
//! answered, and so what must be true of the node afterwards.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use serde_json::Value;

use crate::e2e::{Node, Random, wait_until};
use crate::e2e_client::{Client, Reply, Wish};

pub const SALE: &str = "burst";
pub const MEMBERS: u64 = 400;
pub const POINTS: u64 = 1_000_000;
/// SKU, points, stock, limit. One sells out soon, one has a limit that is soon met.
pub const ITEMS: &[(&str, u64, u64, u32)] = &[
    ("plenty", 3, 100_000_000, 1_000_000),
    ("scarce", 5, 500, 1_000_000),
    ("limited", 7, 1_000_000, 2),
    ("other", 2, 100_000_000, 1_000_000),
];
const CLIENTS: u64 = 6;

/// One request and what came back.
pub struct Attempt {
    pub wish: Wish,
    /// Nothing: the connection ended first.
    pub reply: Option<Reply>,
    /// For a hold that was answered: what was asked next, and whether that was answered 200.
    pub settled: Option<(&'static str, bool)>,
}

/// Clients at work.
pub struct Load {
    stop: Arc<AtomicBool>,
    clients: Vec<JoinHandle<Vec<Attempt>>>,
}

impl Load {
    /// Ends the clients and gives what they began.
    pub fn finish(self) -> Vec<Attempt> {
        // Relaxed: the flag guards nothing; the threads' results come through `join`.
        self.stop.store(true, Ordering::Relaxed);
        self.clients.into_iter().flat_map(|c| c.join().expect("a client")).collect()
    }
}

/// Starts clients that redeem, hold, confirm and cancel as fast as they are answered, until the
/// node is gone or they are told to end. `tag` makes the keys unique.
pub fn burst(address: SocketAddr, seed: u64, tag: &str) -> Load {
    let stop = Arc::new(AtomicBool::new(false));
    let clients = (0..CLIENTS)
        .map(|number| {
            let (stop, tag) = (Arc::clone(&stop), format!("{tag}-{number}"));
            let random = Random::from_seed(seed.wrapping_add(number));
            thread::spawn(move || client(address, random, &tag, &stop))
        })
        .collect();
    Load { stop, clients }
}

fn client(address: SocketAddr, mut random: Random, tag: &str, stop: &AtomicBool) -> Vec<Attempt> {
    let mut client = Client::new(address);
    let mut attempts = Vec::new();
    for number in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let sku = ITEMS[random.below(ITEMS.len() as u64) as usize].0;
        let mut wish = Wish::new(1 + random.below(MEMBERS), format!("{tag}-{number}"), SALE, sku);
        wish.hold = random.below(4) == 0;
        let reply = client.try_redeem(&wish).ok();
        let is_gone = reply.is_none();
        let mut settled = None;
        if let Some(reply) = reply.as_ref().filter(|r| r.status == 201 && wish.hold) {
            settled = settle(&mut client, &wish, reply, &mut random);
        }
        attempts.push(Attempt { wish, reply, settled });
        if is_gone {
            break;
        }
    }
    attempts
}

fn settle(
    client: &mut Client,
    wish: &Wish,
    reply: &Reply,
    random: &mut Random,
) -> Option<(&'static str, bool)> {
    let verb = match random.below(3) {
        0 => "confirm",
        1 => "cancel",
        _ => return None,
    };
    let id = reply.json()["id"].as_str().expect("an id").to_owned();
    let is_done = client.try_settle(wish.member, &id, verb).is_ok_and(|r| r.status == 200);
    Some((verb, is_done))
}

/// A redemption that the client was told of.
struct Entry {
    wish: Wish,
    body: String,
    state: String,
}

/// What must be true: all redemptions that were ever answered.
#[derive(Default)]
pub struct Book {
    entries: BTreeMap<String, Entry>,
    unanswered: usize,
    unanswered_done: usize,
    refused: usize,
}

impl Book {
    /// Asks the recovered node about everything that was begun before the crash.
    pub fn reconcile(&mut self, node: &Node, begun: Vec<Attempt>, random: &mut Random) {
        let mut client = node.client();
        let older: Vec<String> = self.sample(random, 50);
        for attempt in begun {
            self.reconcile_one(&mut client, attempt);
        }
        for id in older {
            let entry = &self.entries[&id];
            assert_same(&entry.wish, &entry.body, &retry(&mut client, &entry.wish));
        }
    }

    fn reconcile_one(&mut self, client: &mut Client, attempt: Attempt) {
        let Attempt { wish, reply, settled } = attempt;
        let was_answered = reply.as_ref().is_some_and(|r| r.status != 503);
        match reply.filter(|r| r.status == 201) {
            Some(first) => {
                assert_same(&wish, &first.body, &retry(client, &wish));
                self.enter(client, wish, &first, settled);
            }
            None if was_answered => self.refused += 1,
            None => {
                self.unanswered += 1;
                let first = retry(client, &wish);
                if first.status == 201 {
                    let had_effect = first.header("idempotent-replayed") == Some("true");
                    self.unanswered_done += usize::from(had_effect);
                    assert_same(&wish, &first.body, &retry(client, &wish));
                    self.enter(client, wish, &first, None);
                }
            }
        }
    }

    fn enter(
        &mut self,
        client: &mut Client,
        wish: Wish,
        reply: &Reply,
        settled: Option<(&'static str, bool)>,
    ) {
        let told = reply.json();
        let id = told["id"].as_str().expect("an id").to_owned();
        let found = client.get_as(wish.member, &format!("/v1/redemptions/{id}")).expect(200).json();
        for field in ["id", "sale", "sku", "quantity", "points"] {
            assert_eq!(found[field], told[field], "{field} of {id}");
        }
        let state = found["state"].as_str().expect("a state").to_owned();
        let may_be: &[&str] = match (wish.hold, settled) {
            (false, _) | (true, Some(("confirm", true))) => &["confirmed"],
            (true, Some(("cancel", true))) => &["cancelled"],
            (true, Some(("confirm", false))) => &["held", "confirmed"],
            (true, Some(_)) => &["held", "cancelled"],
            (true, None) => &["held"],
        };
        assert!(may_be.contains(&state.as_str()), "{id} is {state}, after {settled:?}");
        let entry = Entry { wish, body: reply.body.clone(), state };
        assert!(self.entries.insert(id.clone(), entry).is_none(), "the id {id} came twice");
    }

    fn sample(&self, random: &mut Random, count: usize) -> Vec<String> {
        let ids: Vec<&String> = self.entries.keys().collect();
        let pick = |_| ids[random.below(ids.len() as u64) as usize].clone();
        if ids.is_empty() { Vec::new() } else { (0..count).map(pick).collect() }
    }

    /// Compares every unit and every point with what the entries say.
    pub fn compare(&self, node: &Node) {
        let mut spent: BTreeMap<u64, [u64; 2]> = BTreeMap::new();
        let mut units: BTreeMap<&str, [u64; 2]> = BTreeMap::new();
        for entry in self.entries.values() {
            let told: Value = serde_json::from_str(&entry.body).expect("JSON");
            let points = told["points"].as_u64().expect("points");
            let column = match entry.state.as_str() {
                "held" => 0,
                "confirmed" => 1,
                _ => continue,
            };
            spent.entry(entry.wish.member).or_default()[column] += points;
            units.entry(&entry.wish.sku).or_default()[column] += u64::from(entry.wish.quantity);
        }
        for (sku, _, stock, _) in ITEMS {
            let [held, confirmed] = units.get(sku).copied().unwrap_or_default();
            assert_eq!(
                node.units(SALE, sku),
                [stock - held - confirmed, held, confirmed],
                "free, held and confirmed units of {sku}"
            );
        }
        for (member, [held, confirmed]) in spent {
            assert_eq!(
                node.points(member),
                [POINTS - held - confirmed, held],
                "free and held points of member {member}"
            );
        }
    }

    pub fn unanswered(&self) -> usize {
        self.unanswered
    }

    /// Requests that had an effect, and whose answer never came.
    pub fn unanswered_done(&self) -> usize {
        self.unanswered_done
    }

    pub fn summary(&self) -> String {
        format!(
            "{} redemptions seen, {} requests unanswered at a kill of which {} had an effect, {} \
             refusals",
            self.entries.len(),
            self.unanswered,
            self.unanswered_done,
            self.refused
        )
    }
}

/// The same request again, until it is answered.
fn retry(client: &mut Client, wish: &Wish) -> Reply {
    let mut answer: Option<Reply> = None;
    wait_until("an answer to a retry", Duration::from_secs(20), || {
        let reply: io::Result<Reply> = client.try_redeem(wish);
        answer = reply.ok().filter(|r| r.status != 503);
        answer.is_some()
    });
    answer.expect("waited for")
}

#[track_caller]
fn assert_same(wish: &Wish, first: &str, again: &Reply) {
    assert_eq!((again.status, again.body.as_str()), (201, first), "{wish:?}");
    assert_eq!(again.header("idempotent-replayed"), Some("true"), "{wish:?}");
}
