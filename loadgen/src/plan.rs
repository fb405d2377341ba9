//! A run, resolved: what flags and scenario files come down to.

use crate::http::Target;
use crate::members::Choice;
use crate::schedule::{Arrivals, Phase};

/// Everything a run needs to know.
#[derive(Clone, Debug)]
pub struct Plan {
    pub targets: Vec<Target>,
    pub threads: usize,
    /// In all, over threads and targets.
    pub connections: usize,
    /// Requests out on one connection at a time.
    pub pipeline: usize,
    pub load: Load,
    pub seed: u64,
    /// Units: nanoseconds, here and below.
    pub timeout: u64,
    pub drain: u64,
    pub max_lag: u64,
    /// For 1 % of requests; beyond it the generator is the bottleneck.
    pub max_own_lag: u64,
    pub retry: Retry,
    pub work: Work,
    /// Marks at fixed moments after the start.
    pub marks: Vec<(String, u64)>,
}

impl Plan {
    /// The phases' names, in their order; a closed loop has one.
    pub fn phase_names(&self) -> Vec<String> {
        match &self.load {
            Load::Open { phases, .. } => phases.iter().map(|p| p.name.clone()).collect(),
            Load::Closed { .. } => vec!["closed".into()],
        }
    }
}

/// When requests are sent.
#[derive(Clone, Debug)]
pub enum Load {
    /// By a schedule, whatever the server does.
    Open { phases: Vec<Phase>, arrivals: Arrivals },
    /// The next when the last was answered. It cannot see waiting.
    Closed { nanoseconds: u64 },
}

/// Which attempts are tried again, with the same key.
#[derive(Clone, Debug, PartialEq, Eq)]
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
#[derive(Clone, Debug)]
pub enum Work {
    Http(HttpWork),
    Redeem(RedeemWork),
}

/// The same request over and over, to any HTTP service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpWork {
    pub method: String,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

/// Redemptions in a sale, and what follows from them.
#[derive(Clone, Debug, PartialEq)]
pub struct RedeemWork {
    pub sale: String,
    pub items: Vec<Item>,
    pub first_member: u64,
    pub last_member: u64,
    pub choice: Choice,
    /// Per phase: the share of requests that only look at the sale.
    pub polls: Vec<f64>,
    pub quantity: u32,
    /// Shares of requests, each 0 to 1.
    pub holds: f64,
    pub duplicates: f64,
    /// Shares of holds; what is left of 1 is abandoned.
    pub confirms: f64,
    pub cancels: f64,
    /// Units: nanoseconds, at most, before a hold is confirmed or cancelled.
    pub think: u64,
}

/// An item on offer, and how often it is wanted.
#[derive(Clone, Debug, PartialEq)]
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
