//! What is counted of the calls to Redis.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use super::script::ScriptName;
use crate::telemetry::figures::StockRedisFigures;
use crate::telemetry::histogram::{DURATION_BOUNDS_NS, Histogram, bump};

/// Written by the thread `stock-redis`, `turned_away` by the asking one; read by anyone.
#[derive(Debug)]
pub struct RedisStats {
    calls: [AtomicU64; ScriptName::ALL.len()],
    durations: Histogram,
    errors: AtomicU64,
    timeouts: AtomicU64,
    turned_away: AtomicU64,
    links: AtomicU64,
    news: AtomicU64,
    is_up: AtomicBool,
}

impl Default for RedisStats {
    fn default() -> Self {
        Self {
            calls: Default::default(),
            durations: Histogram::new(DURATION_BOUNDS_NS),
            errors: AtomicU64::new(0),
            timeouts: AtomicU64::new(0),
            turned_away: AtomicU64::new(0),
            links: AtomicU64::new(0),
            news: AtomicU64::new(0),
            is_up: AtomicBool::new(false),
        }
    }
}

impl RedisStats {
    pub(super) fn called(&self, script: ScriptName) {
        bump(&self.calls[script as usize], 1);
    }
    pub(super) fn answered(&self, after: Duration) {
        self.durations.record(after.as_nanos().try_into().unwrap_or(u64::MAX));
    }
    pub(super) fn failed(&self, is_timeout: bool) {
        bump(if is_timeout { &self.timeouts } else { &self.errors }, 1);
    }
    pub(super) fn turned_away(&self) {
        self.turned_away.fetch_add(1, Ordering::Relaxed);
    }
    pub(super) fn linked(&self) {
        bump(&self.links, 1);
        self.is_up.store(true, Ordering::Relaxed);
    }
    pub(super) fn lost(&self) {
        self.is_up.store(false, Ordering::Relaxed);
    }
    pub(super) fn heard(&self) {
        bump(&self.news, 1);
    }

    pub fn read(&self) -> StockRedisFigures {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let calls =
            ScriptName::ALL.map(|script| (script.name(), load(&self.calls[script as usize])));
        StockRedisFigures {
            calls: calls.to_vec(),
            durations: self.durations.read(),
            errors: load(&self.errors),
            timeouts: load(&self.timeouts),
            turned_away: load(&self.turned_away),
            links: load(&self.links),
            news: load(&self.news),
            is_up: self.is_up.load(Ordering::Relaxed),
        }
    }
}
