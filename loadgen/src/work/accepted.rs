//! What was accepted, what is unknown, and what was found to be wrong.
//!
//! Shape: 120 to 200 bytes per accepted redemption: a tree's nodes are full to the half at least
//! (in a hash table, the moment of its growth would cost three times as much), and the id has a
//! place of its own. With what the check adds to it up to 300 MB per million; nothing per refusal.

use std::collections::{BTreeMap, HashSet};
use std::io::{self, Write};

use serde::{Deserialize, Deserializer, Serialize};

use crate::plan::RedeemWork;
use crate::work::redeem::key;

/// A redemption that was answered with 201.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accepted {
    pub member: u64,
    pub id: Box<str>,
    pub item: u16,
    pub quantity: u32,
    pub points: u64,
    /// The member's free points after it, as the answer says.
    pub balance: u64,
    pub state: State,
    /// XXH3-64 of the answer's body.
    pub body_hash: u64,
    /// How often its 201 was seen, over retries and duplicates.
    pub answers: u32,
    /// Units: nanoseconds of the run's clock.
    pub answered_at: u64,
}

/// As far as the answers tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    Held,
    Confirmed,
    Released,
    /// A step was sent and never answered.
    Unknown,
}

/// Something that must not be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub kind: &'static str,
    pub text: String,
}

/// Everything that can be found.
const KINDS: &[&str] = &[
    "answer-changed",
    "id-given-twice",
    "ledger-differs",
    "limit-passed",
    "lost",
    "malformed-answer",
    "not-as-answered",
    "oversold",
    "points-differ",
    "store-differs",
    "unasked-effect",
    "undersold",
    "units-differ",
    "wrong-answer",
];

/// A kind as it was written; one of another version is just a finding.
pub fn known_kind(name: &str) -> &'static str {
    KINDS.iter().find(|k| **k == name).unwrap_or(&"finding")
}

impl<'de> Deserialize<'de> for Finding {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Written {
            kind: String,
            text: String,
        }
        let Written { kind, text } = Written::deserialize(from)?;
        Ok(Self { kind: known_kind(&kind), text })
    }
}

/// Findings: all are counted, the first ones are kept.
#[derive(Clone, Debug, Default)]
pub struct Findings {
    counts: BTreeMap<&'static str, u64>,
    examples: Vec<Finding>,
}

const MOST_EXAMPLES: usize = 100;

impl Findings {
    pub const fn from_parts(counts: BTreeMap<&'static str, u64>, examples: Vec<Finding>) -> Self {
        Self { counts, examples }
    }

    pub fn push(&mut self, finding: Finding) {
        *self.counts.entry(finding.kind).or_default() += 1;
        if self.examples.len() < MOST_EXAMPLES {
            self.examples.push(finding);
        }
    }

    pub fn merge(&mut self, other: Self) {
        for (kind, count) in other.counts {
            *self.counts.entry(kind).or_default() += count;
        }
        let room = MOST_EXAMPLES - self.examples.len();
        self.examples.extend(other.examples.into_iter().take(room));
    }

    pub fn total(&self) -> u64 {
        self.counts.values().sum()
    }

    pub const fn counts(&self) -> &BTreeMap<&'static str, u64> {
        &self.counts
    }

    pub fn examples(&self) -> &[Finding] {
        &self.examples
    }
}

/// An item's figures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ItemCount {
    pub accepted: u64,
    pub units: u64,
    pub points: u64,
    /// Answers `sold-out`, and how many of them said that it is final.
    pub sold_out: u64,
    pub sold_out_finally: u64,
    /// Requests by number: the first that was told so; the first and the last that were refused for
    /// stock, and the last that was accepted.
    pub first_final: Option<u64>,
    pub first_refused: Option<u64>,
    pub last_refused: Option<u64>,
    pub last_accepted: Option<u64>,
}

impl ItemCount {
    pub fn add(&mut self, o: &Self) {
        self.accepted += o.accepted;
        self.units += o.units;
        self.points += o.points;
        self.sold_out += o.sold_out;
        self.sold_out_finally += o.sold_out_finally;
        let first = |a: Option<u64>, b: Option<u64>| a.into_iter().chain(b).min();
        self.first_final = first(self.first_final, o.first_final);
        self.first_refused = first(self.first_refused, o.first_refused);
        self.last_refused = self.last_refused.max(o.last_refused);
        self.last_accepted = self.last_accepted.max(o.last_accepted);
    }

    /// An answer `sold-out`. The number is the one that the schedule gave.
    pub fn refused(&mut self, number: u64, is_final: bool) {
        self.sold_out += 1;
        self.first_refused = self.first_refused.or(Some(number));
        self.last_refused = self.last_refused.max(Some(number));
        if is_final {
            self.sold_out_finally += 1;
            self.first_final = self.first_final.or(Some(number));
        }
    }
}

/// What the answers of a run say about the ledger.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    /// By request number.
    pub accepted: BTreeMap<u64, Accepted>,
    /// Requests whose effect is not known.
    pub unknown: HashSet<u64>,
    pub by_item: BTreeMap<usize, ItemCount>,
    pub findings: Findings,
}

/// A line of the file of accepted redemptions.
#[derive(Serialize)]
struct Line<'a> {
    key: String,
    member: String,
    id: &'a str,
    sale: &'a str,
    sku: &'a str,
    quantity: u32,
    points: u64,
    balance: u64,
    state: State,
    body_hash: String,
    answers: u32,
}

/// Writes one line of JSON per accepted redemption, in the order of their numbers.
pub fn write_lines(
    out: &mut impl Write,
    ledger: &Ledger,
    work: &RedeemWork,
    seed: u64,
) -> io::Result<()> {
    for (&number, a) in &ledger.accepted {
        let line = Line {
            key: key(seed, number),
            member: a.member.to_string(),
            id: &a.id,
            sale: &work.sale,
            sku: &work.items[a.item as usize].sku,
            quantity: a.quantity,
            points: a.points,
            balance: a.balance,
            state: a.state,
            body_hash: format!("{:016x}", a.body_hash),
            answers: a.answers,
        };
        serde_json::to_writer(&mut *out, &line)?;
        out.write_all(b"\n")?;
    }
    out.flush()
}
