//! Answers of the API, as far as the check reads them.

use std::time::Duration;

use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};

use crate::check::CheckError;
use crate::http::Target;
use crate::http::once::{Asker, Reply};

/// A redemption.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub struct Redemption {
    pub id: String,
    pub sale: String,
    pub sku: String,
    pub quantity: u32,
    pub points: u64,
    pub state: String,
}

/// What is kept of it: there may be millions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    pub points: u64,
    pub quantity: u32,
    state: u8,
}

/// In the order of their numbers in the store, from 1.
pub const STATES: [&str; 5] = ["held", "confirmed", "cancelled", "expired", "reversed"];
pub const NO_STATE: &str = "of no known state";

impl Redemption {
    pub fn now(&self) -> Now {
        let state = STATES.iter().position(|s| *s == self.state).unwrap_or(STATES.len()) as u8;
        Now { points: self.points, quantity: self.quantity, state }
    }
}

impl Now {
    pub fn state(&self) -> &'static str {
        STATES.get(usize::from(self.state)).unwrap_or(&NO_STATE)
    }

    /// Whether its units and points are spent or set aside.
    pub fn is_live(&self) -> bool {
        matches!(self.state(), "held" | "confirmed")
    }
}

#[derive(Deserialize)]
pub struct Redemptions {
    pub redemptions: Vec<Redemption>,
}

/// A member's points.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
pub struct Points {
    pub free: u64,
    pub held: u64,
}

/// A sale; the admin listener says more than the public one.
#[derive(Clone, Debug, Deserialize)]
pub struct Sale {
    pub items: Vec<SaleItem>,
    /// Nodes whose units are not in the sums.
    #[serde(default)]
    nodes_missed: Vec<NodeMissed>,
}

#[derive(Clone, Debug, Deserialize)]
struct NodeMissed {
    node: String,
    code: String,
}

#[derive(Clone, Debug, Deserialize)]
pub struct SaleItem {
    pub sku: String,
    pub limit_per_member: Option<u64>,
    pub free: Option<u64>,
    pub total: Option<u64>,
    pub held: Option<u64>,
    pub confirmed: Option<u64>,
    /// There where nodes share a pool.
    lease: Option<IgnoredAny>,
}

/// Asks for the sale. An admin listener sums the units over all nodes; where several are given,
/// each is asked for its own units alone, and they are added up here. Without one a public listener
/// is asked, which knows of its own free units alone.
///
/// Errors: a node that could not be asked; one that is only away for a moment is waited for.
pub fn sale(
    public: &[Target],
    admin: &[Target],
    id: &str,
    timeout: Duration,
) -> Result<Sale, CheckError> {
    const PAUSE: Duration = Duration::from_millis(100);
    let mut left = timeout;
    loop {
        match sale_now(public, admin, id, timeout) {
            Err(CheckError::NodesMissed { .. }) if !left.is_zero() => {
                std::thread::sleep(PAUSE.min(left));
                left = left.saturating_sub(PAUSE);
            }
            settled => return settled,
        }
    }
}

fn sale_now(
    public: &[Target],
    admin: &[Target],
    id: &str,
    timeout: Duration,
) -> Result<Sale, CheckError> {
    let query = if admin.len() > 1 { "?nodes=self" } else { "" };
    let path = format!("/v1/sales/{id}{query}");
    let ask = |targets| {
        let sale: Sale = parse(&path, &Asker::new(targets, timeout).get(&path, None)?)?;
        if sale.nodes_missed.is_empty() {
            return Ok(sale);
        }
        let names = sale.nodes_missed.iter().map(|m| format!("{} ({})", m.node, m.code));
        let nodes = names.collect::<Vec<_>>().join(", ");
        Err(CheckError::NodesMissed { path: path.clone(), nodes })
    };
    let Some((first, others)) = admin.split_first() else { return ask(public) };
    let mut all = ask(std::slice::from_ref(first))?;
    for other in others {
        let node = ask(std::slice::from_ref(other))?;
        for item in &mut all.items {
            if let Some(more) = node.items.iter().find(|i| i.sku == item.sku) {
                item.add(more);
            }
        }
    }
    Ok(all)
}

impl SaleItem {
    /// Units that are nobody's: those of the pool, too, where the totals are known; else those that
    /// one node has.
    pub fn unsold(&self) -> Option<u64> {
        let taken = self.held.zip(self.confirmed).map(|(held, confirmed)| held + confirmed);
        let known = self.total.zip(taken).map(|(total, taken)| total.saturating_sub(taken));
        known.or(self.free)
    }

    /// Whether a node may have none for a moment while there are some in the pool.
    pub const fn is_leased(&self) -> bool {
        self.lease.is_some()
    }

    /// Adds another node's units of the same item. The total is the sale's: each node knows it, or
    /// one that is still to be told knows less.
    fn add(&mut self, node: &Self) {
        let sum = |a: Option<u64>, b: Option<u64>| a.zip(b).map(|(a, b)| a + b);
        self.free = sum(self.free, node.free);
        self.held = sum(self.held, node.held);
        self.confirmed = sum(self.confirmed, node.confirmed);
        self.total = self.total.max(node.total);
    }
}

/// Reads a 200's body.
pub fn parse<T: DeserializeOwned>(path: &str, reply: &Reply) -> Result<T, CheckError> {
    if reply.status != 200 {
        let body = String::from_utf8_lossy(&reply.body[..reply.body.len().min(300)]).into_owned();
        return Err(CheckError::Status { path: path.into(), status: reply.status, body });
    }
    serde_json::from_slice(&reply.body)
        .map_err(|e| CheckError::Answer { path: path.into(), detail: e.to_string() })
}
