//! A mall in memory that keeps the API's rules, or breaks one of them.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex};

use serde_json::Value;

use crate::mall_store::{Kept, Store, Wrong};
use crate::server::{Ask, Say, Server};

/// What a server does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Lie {
    #[default]
    None,
    /// The last unit of an item is sold once more.
    SellsTwice,
    /// Forgets a redemption it answered with 201; the units and points stay taken.
    Forgets,
    /// The same, and everything is as if it had never been.
    LosesAccepted,
    /// A repeated key gets another balance.
    ChangesAnswer,
    /// A repeated key is refused after it was accepted.
    RefusesReplay,
    /// A repeated key is redeemed again.
    RedeemsAgain,
    /// Takes the points twice, and says once.
    ChargesTwice,
    /// Takes the points twice, and says so.
    ChargesTwiceOpenly,
    /// Takes the points of a member whom it refuses.
    ChargesRefused,
    /// Says that it is sold out for good with a unit left.
    HidesLastUnit,
    /// One key has two redemptions, of which only a question for the key tells.
    KeepsTwo,
    /// Says sold out, not for good, with a unit left.
    RefusesLastUnit,
    /// The same, and the unit is in a pool that no node counts as its own.
    HidesPool,
    /// Takes a unit from a member whom it refuses.
    TakesFromRefused,
    ForgetsLimit,
    /// Answers a confirmation and leaves the hold.
    ForgetsConfirm,
    /// The store misses one, has one too many, or has a wrong ledger row.
    StoreLoses,
    StoreInvents,
    StoreMiscounts,
    /// Its ledger has rows of a redemption that it has not.
    StoreChargesNobody,
    /// The one too many comes half a second after the others.
    StoreInventsLate,
}

const PRICE: u64 = 10;
pub const START: u64 = 1000;
const LIMIT: usize = 3;

#[derive(Clone, Debug)]
pub struct Held {
    member: u64,
    sku: String,
    state: &'static str,
}

#[derive(Default)]
pub struct Mall {
    pub total: HashMap<String, u64>,
    pub stock: HashMap<String, u64>,
    pub answers: HashMap<(u64, String), String>,
    pub redemptions: HashMap<String, Held>,
    pub requests: HashMap<String, u64>,
    /// The connections that a key came over.
    pub peers: HashMap<String, Vec<u16>>,
    pub spent: HashMap<u64, u64>,
    pub lie: Lie,
    pub store: Option<Store>,
    lied: bool,
    next_id: u64,
}

/// A file of members, from 1 on, with the same points each.
pub fn members(count: u64, points: u64) -> String {
    (1..=count).fold("member,points\n".into(), |file, m| file + &format!("{m},{points}\n"))
}

/// Serves the mall.
pub fn open(mall: Mall) -> (Server, Arc<Mutex<Mall>>) {
    let mall = Arc::new(Mutex::new(mall));
    let inside = mall.clone();
    (Server::start(move |ask| inside.lock().unwrap().handle(ask)), mall)
}

impl Mall {
    pub fn with_stock(stock: &[(&str, u64)]) -> Self {
        let stock: HashMap<String, u64> = stock.iter().map(|(s, n)| ((*s).into(), *n)).collect();
        Self { total: stock.clone(), stock, ..Self::default() }
    }

    pub fn lying(self, lie: Lie) -> Self {
        Self { lie, ..self }
    }

    /// Keeps a store with the engine's tables in this folder.
    pub fn with_store(mut self, dir: &Path) -> Self {
        self.store = Some(Store::in_folder(dir, &self.skus()));
        self
    }

    pub fn skus(&self) -> Vec<&str> {
        self.total.keys().map(String::as_str).collect()
    }

    pub fn count(&self, state: &str) -> u64 {
        self.redemptions.values().filter(|r| r.state == state).count() as u64
    }

    /// Once per run.
    fn lies(&mut self, lie: Lie) -> bool {
        let now = self.lie == lie && !self.lied;
        self.lied |= now;
        now
    }

    pub fn handle(&mut self, ask: &Ask) -> Say {
        let (path, query) = ask.path.split_once('?').unwrap_or((&ask.path, ""));
        let steps: Vec<_> = path.split('/').collect();
        match (ask.method.as_str(), &steps[..]) {
            ("GET", ["", "v1", "sales", "s1"]) => self.sale(),
            ("GET", ["", "v1", "redemptions", id]) => {
                // Only the check asks for them.
                if self.lies(Lie::StoreInventsLate) {
                    self.store.as_ref().unwrap().invent_later("a");
                }
                match self.redemptions.get(*id) {
                    Some(r) if Some(r.member) == ask.member => {
                        Say::json(200, &view(id, &r.sku, r.state, 0))
                    }
                    _ => not_found(),
                }
            }
            ("GET", ["", "v1", "members", "me", "redemptions"]) => {
                let key = query.strip_prefix("key=").unwrap().to_owned();
                let body = self.answers.get(&(ask.member.unwrap(), key));
                let id = body.map(|b| field(b, "id"));
                let list = id.and_then(|id| {
                    self.redemptions.get(&id).map(|r| view(&id, &r.sku, r.state, 0))
                });
                let twice = |one: String| format!("{one},{one}");
                let list = if self.lie == Lie::KeepsTwo { list.map(twice) } else { list };
                Say::json(200, &format!(r#"{{"redemptions":[{}]}}"#, list.unwrap_or_default()))
            }
            ("GET", ["", "v1", "members", "me", "points"]) => {
                let member = ask.member.unwrap();
                let held = PRICE * self.of(member, "held") as u64;
                let free = self.free(member);
                Say::json(200, &format!(r#"{{"member":"{member}","free":{free},"held":{held}}}"#))
            }
            ("POST", ["", "v1", "sales", "s1", "redemptions"]) => self.redeem(ask),
            ("POST", ["", "v1", "redemptions", id, step]) => self.step(id, step),
            _ => not_found(),
        }
    }

    fn sale(&self) -> Say {
        let item = |sku: &String| {
            let all = |state: &str| {
                let in_state = |r: &&Held| r.sku == *sku && r.state == state;
                self.redemptions.values().filter(in_state).count()
            };
            format!(
                concat!(
                    r#"{{"sku":"{}","limit_per_member":{},"total":{},"free":{},"held":{},"#,
                    r#""confirmed":{}}}"#
                ),
                sku,
                LIMIT,
                self.total[sku],
                self.stock[sku].saturating_sub(u64::from(self.lie == Lie::HidesPool)),
                all("held"),
                all("confirmed")
            )
        };
        let items: Vec<_> = self.total.keys().map(item).collect();
        Say::json(200, &format!(r#"{{"id":"s1","items":[{}]}}"#, items.join(",")))
    }

    fn of(&self, member: u64, state: &str) -> usize {
        self.redemptions.values().filter(|r| r.member == member && r.state == state).count()
    }

    fn free(&self, member: u64) -> u64 {
        START - self.spent.get(&member).copied().unwrap_or(0)
    }

    fn redeem(&mut self, ask: &Ask) -> Say {
        let (member, key) = (ask.member.unwrap(), ask.key.clone().unwrap());
        *self.requests.entry(key.clone()).or_default() += 1;
        self.peers.entry(key.clone()).or_default().push(ask.peer);
        if let Some(body) = self.answers.get(&(member, key.clone())).cloned() {
            // Each time: an answer that crossed the first one on its way proves nothing.
            if self.lie == Lie::ChangesAnswer {
                return Say::json(201, &body.replace("\"balance\":", "\"balance\":1"));
            }
            if self.lie == Lie::RefusesReplay {
                return sold_out(false);
            }
            if !self.lies(Lie::RedeemsAgain) {
                return Say::json(201, &body);
            }
        }
        let body: Value = serde_json::from_slice(&ask.body).unwrap();
        let sku = body["sku"].as_str().unwrap().to_owned();
        let live = |r: &&Held| r.member == member && r.sku == sku && r.state != "cancelled";
        let has = self.redemptions.values().filter(live).count();
        if has >= LIMIT && !self.lies(Lie::ForgetsLimit) {
            return Say::json(409, r#"{"code":"limit-reached","limit":3}"#);
        }
        let left = self.stock[&sku];
        let hides = [Lie::HidesLastUnit, Lie::HidesPool, Lie::RefusesLastUnit];
        if left == 1 && hides.contains(&self.lie) {
            return sold_out(self.lie != Lie::RefusesLastUnit);
        }
        if left == 0 && !self.lies(Lie::SellsTwice) {
            let may_return = self.redemptions.values().any(|r| r.sku == sku && r.state == "held");
            if self.lies(Lie::ChargesRefused) {
                *self.spent.entry(member).or_default() += PRICE;
            }
            return sold_out(!may_return);
        }
        if left > 0 && left < 10 && self.lies(Lie::TakesFromRefused) {
            self.begin(member, &sku, "confirmed");
            return sold_out(false);
        }
        let state = if body["hold"] == true { "held" } else { "confirmed" };
        let id = self.begin(member, &sku, state);
        let mut balance = self.free(member);
        if left < 10 && self.lies(Lie::ChargesTwiceOpenly) {
            *self.spent.entry(member).or_default() += PRICE;
            balance -= PRICE;
        }
        if left < 10 && self.lies(Lie::ChargesTwice) {
            *self.spent.entry(member).or_default() += PRICE;
        }
        let body = view(&id, &sku, state, balance);
        self.answers.insert((member, key), body.clone());
        if self.lies(Lie::LosesAccepted) {
            self.redemptions.remove(&id);
            *self.stock.get_mut(&sku).unwrap() += 1;
            *self.spent.get_mut(&member).unwrap() -= PRICE;
        }
        if self.lies(Lie::Forgets) {
            self.redemptions.remove(&id);
        }
        Say::json(201, &body)
    }

    pub fn begin(&mut self, member: u64, sku: &str, state: &'static str) -> String {
        self.next_id += 1;
        let id = format!("00000000-0000-8000-8000-{:012x}", self.next_id);
        let left = self.stock.get_mut(sku).unwrap();
        *left = left.saturating_sub(1);
        *self.spent.entry(member).or_default() += PRICE;
        let held = Held { member, sku: sku.into(), state };
        self.keep(&id, &held);
        self.redemptions.insert(id.clone(), held);
        id
    }

    fn step(&mut self, id: &str, step: &str) -> Say {
        if self.lies(Lie::ForgetsConfirm) {
            return Say::json(200, "{}");
        }
        let Some(r) = self.redemptions.get_mut(id) else { return not_found() };
        let state = if step == "confirm" { "confirmed" } else { "cancelled" };
        if r.state == "held" {
            r.state = state;
            let r = r.clone();
            if state == "cancelled" {
                *self.stock.get_mut(&r.sku).unwrap() += 1;
                *self.spent.get_mut(&r.member).unwrap() -= PRICE;
            }
            self.keep(id, &r);
        }
        Say::json(200, "{}")
    }

    /// Writes a redemption to the store.
    fn keep(&mut self, id: &str, r: &Held) {
        let lies = [
            (Lie::StoreLoses, Wrong::IsMissing),
            (Lie::StoreInvents, Wrong::HasOneMore),
            (Lie::StoreMiscounts, Wrong::AmountsDiffer),
            (Lie::StoreChargesNobody, Wrong::ChargesNobody),
        ];
        let lie = lies.into_iter().find(|(lie, _)| self.lies(*lie));
        let Some(store) = &self.store else { return };
        let id = u128::from_str_radix(&id.replace('-', ""), 16).unwrap();
        let kept = Kept { id, member: r.member, sku: &r.sku, state: r.state };
        store.keep(&kept, lie.map_or(Wrong::No, |(_, wrong)| wrong));
    }
}

fn view(id: &str, sku: &str, state: &str, balance: u64) -> String {
    format!(
        concat!(
            r#"{{"id":"{}","sale":"s1","sku":"{}","quantity":1,"points":{},"state":"{}","#,
            r#""balance":{}}}"#
        ),
        id, sku, PRICE, state, balance
    )
}

fn field(body: &str, name: &str) -> String {
    let body: Value = serde_json::from_str(body).unwrap();
    body[name].as_str().unwrap().into()
}

fn not_found() -> Say {
    Say::json(404, r#"{"code":"redemption-not-found"}"#)
}

fn sold_out(finally: bool) -> Say {
    Say::json(409, &format!(r#"{{"title":"Sold out","code":"sold-out","final":{finally}}}"#))
}
