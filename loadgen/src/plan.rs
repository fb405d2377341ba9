//! A run, resolved: what flags and scenario files come down to.

use std::ops::Deref;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::http::Target;
use crate::members::Choice;
use crate::replay::Recording;
use crate::schedule::{Arrivals, Phase, Share};

/// Everything a run needs to know.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Plan {
    pub targets: Vec<Target>,
    pub threads: usize,
    /// In all, over threads and targets.
    pub connections: usize,
    /// Requests out on one connection at a time; with HTTP/2 its streams.
    pub pipeline: usize,
    #[serde(default)]
    pub http2: bool,
    pub load: Load,
    pub seed: u64,
    /// Units: nanoseconds, here and below.
    pub timeout: u64,
    pub drain: u64,
    pub max_lag: u64,
    /// For 1 % of requests; beyond it the generator is the bottleneck. See `report::verdict`.
    pub max_own_lag: u64,
    pub retry: Retry,
    pub work: Work,
    /// Which of the schedule's numbers this process sends.
    pub share: Share,
    pub habits: Habits,
    /// Marks at fixed moments after the start.
    pub marks: Vec<(String, u64)>,
}

impl Plan {
    /// Drops what was only needed to send: rows to fill in, recorded times.
    pub fn forget_data(&mut self) {
        match &mut self.work {
            Work::Http(work) => (work.data, work.recorded) = (None, None),
            Work::Redeem(work) => work.listed = None,
        }
        if let Load::Open { recorded, .. } = &mut self.load {
            *recorded = None;
        }
    }

    pub fn phase_names(&self) -> Vec<String> {
        self.load.phase_names()
    }
}

/// When requests are sent.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Load {
    /// By a schedule, whatever the server does.
    /// A recording has one phase, with its mean rate.
    Open { phases: Vec<Phase>, arrivals: Arrivals, recorded: Option<Shared<Recording>> },
    /// The next when the last was answered. It cannot see waiting.
    Closed { nanoseconds: u64 },
}

impl Load {
    /// The phases' names, in their order; a closed loop has one.
    pub fn phase_names(&self) -> Vec<String> {
        match self {
            Self::Open { phases, .. } => phases.iter().map(|p| p.name.clone()).collect(),
            Self::Closed { .. } => vec!["closed".into()],
        }
    }
}

/// Which attempts are tried again, with the same key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retry {
    /// Connection refused, reset, closed; no answer in time.
    pub failures: bool,
    pub statuses: Vec<u16>,
    /// Attempts per request; 0: until the drain is over.
    pub most_attempts: u32,
    /// Units: nanoseconds. Doubles from the first to the second; half of it is random.
    pub first_wait: u64,
    pub longest_wait: u64,
}

impl Retry {
    pub const fn never() -> Self {
        Self {
            failures: false,
            statuses: Vec::new(),
            most_attempts: 1,
            first_wait: 20_000_000,
            longest_wait: 1_000_000_000,
        }
    }

    pub fn until_answered() -> Self {
        Self { failures: true, statuses: vec![503], most_attempts: 0, ..Self::never() }
    }

    /// Units: nanoseconds before the attempt after number `attempt` (from 0); `random` is uniform.
    pub fn wait(&self, attempt: u32, random: u64) -> u64 {
        let doubled = self.first_wait.saturating_mul(1 << attempt.min(20));
        let most = doubled.min(self.longest_wait).max(2);
        most / 2 + random % (most / 2)
    }
}

/// What is sent.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Work {
    Http(HttpWork),
    Redeem(RedeemWork),
}

/// Requests to any HTTP service: the same over and over, or filled in from data, or recorded ones.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HttpWork {
    pub method: String,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// For the places of the path, the fields and the body that are to be filled in.
    pub data: Option<Shared<Data>>,
    /// Rows by chance instead of in turns.
    pub is_random: bool,
    /// Methods and paths by number, where a recording has them.
    pub recorded: Option<Shared<Recording>>,
}

/// Rows to fill templates from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Data {
    pub columns: Vec<String>,
    pub rows: Vec<Vec<String>>,
}

/// What connections do beside carrying requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Habits {
    /// Share of connections that read slowly, and how many bytes per second each reads.
    pub slow_readers: f64,
    pub slow_rate: u64,
    /// Connections closed and opened anew, per second, in all.
    pub reopened_per_second: f64,
}

/// Something large that threads share.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Shared<T>(Arc<T>);

impl<T> Shared<T> {
    pub fn new(value: T) -> Self {
        Self(Arc::new(value))
    }
}

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> Deref for Shared<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: Serialize> Serialize for Shared<T> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(to)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Shared<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        T::deserialize(from).map(Self::new)
    }
}

/// Redemptions in a sale, and what follows from them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RedeemWork {
    pub sale: String,
    pub items: Vec<Item>,
    pub first_member: u64,
    pub last_member: u64,
    /// Where they are listed: the two above are places in this list.
    #[serde(default)]
    pub listed: Option<Shared<Vec<u64>>>,
    pub choice: Choice,
    /// Per phase: the share of requests that only look at the sale.
    pub polls: Vec<f64>,
    pub quantity: u32,
    /// Shares of requests, each 0 to 1.
    pub holds: f64,
    pub duplicates: f64,
    /// Share of redemptions that bots make, and how many keys each of them sends at once.
    pub bots: f64,
    pub hammer: u32,
    /// Shares of holds; what is left of 1 is abandoned.
    pub confirms: f64,
    pub cancels: f64,
    /// Units: nanoseconds, at most, before a hold is confirmed or cancelled.
    pub think: u64,
}

impl RedeemWork {
    /// The member at a place between the first and the last.
    pub fn member(&self, place: u64) -> u64 {
        self.listed.as_ref().map_or(place, |list| list[place as usize])
    }
}

/// An item on offer, and how often it is wanted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Item {
    pub sku: String,
    pub weight: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_longest_and_are_spread() {
        let retry = Retry::until_answered();
        for attempt in 0..40 {
            let full = (20_000_000u64 << attempt.min(20)).min(1_000_000_000);
            for random in [0, 1, u64::MAX / 3, u64::MAX] {
                let wait = retry.wait(attempt, random);
                assert!((full / 2..full).contains(&wait), "{attempt} {random} {wait}");
            }
        }
    }
}
