//! The run cut into sections: by marks, and by outages that the generator noticed itself.
//!
//! ```text
//! start ──(connection lost with requests unanswered)──► outage-1
//! outage-1 ──(first answer over a connection opened since)──► after-outage-1
//! any ──(mark)──► mark's name
//! ```
//! A request belongs to the section in which it was planned, or the one before the current: so the
//! requests that waited for a server to come back are the outage's, and do not blur what follows.
//!
//! Workers share one timeline. The hot path reads two atomics; changes take the lock.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use serde::{Deserialize, Serialize};

/// Sections beyond this are one: a server that drops connections all the time is no outage.
const MOST: usize = 48;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SectionKind {
    Start,
    Outage,
    AfterOutage,
    Mark,
}

/// A stretch of the run. Units: nanoseconds of the run's clock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Section {
    pub name: String,
    pub kind: SectionKind,
    pub from: u64,
}

/// A loss of connections with requests unanswered on them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outage {
    /// Units: nanoseconds of the run's clock.
    pub at: u64,
    pub recovered: Option<u64>,
    pub connections_lost: u64,
    /// Requests that were out on those connections, without an answer.
    pub unanswered: u64,
}

#[derive(Debug)]
pub struct Timeline {
    /// Written under the lock after `starts`, read with Acquire: who sees the index sees its start.
    current: AtomicUsize,
    starts: [AtomicU64; MOST],
    /// The moment the outage in progress began, or 0. Relaxed: a stale read only delays a change
    /// that the lock then decides.
    down_since: AtomicU64,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    sections: Vec<Section>,
    outages: Vec<Outage>,
}

impl Timeline {
    pub fn new() -> Self {
        let start = Section { name: "start".into(), kind: SectionKind::Start, from: 0 };
        Self {
            current: AtomicUsize::new(0),
            starts: std::array::from_fn(|_| AtomicU64::new(0)),
            down_since: AtomicU64::new(0),
            inner: Mutex::new(Inner { sections: vec![start], outages: Vec::new() }),
        }
    }

    /// The section of a request that was planned at this moment and is answered now.
    pub fn section_of(&self, planned: u64) -> u16 {
        // Acquire pairs with the Release in `begin`.
        let current = self.current.load(Ordering::Acquire);
        let before = current > 0 && planned < self.starts[current].load(Ordering::Relaxed);
        if before { current as u16 - 1 } else { current as u16 }
    }

    /// A connection broke with requests unanswered on it.
    pub fn lost(&self, now: u64, unanswered: u64) {
        let mut inner = self.lock();
        if self.down_since.load(Ordering::Relaxed) == 0 {
            if inner.sections.len() + 1 >= MOST {
                return;
            }
            self.down_since.store(now.max(1), Ordering::Relaxed);
            inner.outages.push(Outage {
                at: now,
                recovered: None,
                connections_lost: 0,
                unanswered: 0,
            });
            let name = format!("outage-{}", inner.outages.len());
            self.begin(&mut inner, name, SectionKind::Outage, now);
        }
        if let Some(outage) = inner.outages.last_mut() {
            outage.connections_lost += 1;
            outage.unanswered += unanswered;
        }
    }

    /// An answer came over a connection opened at that moment. Called for every answer.
    pub fn answered(&self, opened: u64, now: u64) {
        let down = self.down_since.load(Ordering::Relaxed);
        if down == 0 || opened <= down {
            return;
        }
        let mut inner = self.lock();
        if self.down_since.swap(0, Ordering::Relaxed) != 0 {
            let name = format!("after-outage-{}", inner.outages.len());
            if let Some(outage) = inner.outages.last_mut() {
                outage.recovered = Some(now);
            }
            self.begin(&mut inner, name, SectionKind::AfterOutage, now);
        }
    }

    /// A mark set by the user.
    pub fn mark(&self, name: String, now: u64) {
        let mut inner = self.lock();
        self.begin(&mut inner, name, SectionKind::Mark, now);
    }

    pub fn sections(&self) -> Vec<Section> {
        self.lock().sections.clone()
    }

    pub fn outages(&self) -> Vec<Outage> {
        self.lock().outages.clone()
    }

    fn begin(&self, inner: &mut Inner, name: String, kind: SectionKind, now: u64) {
        let index = inner.sections.len();
        if index < MOST {
            inner.sections.push(Section { name, kind, from: now });
            self.starts[index].store(now, Ordering::Relaxed);
            // Release pairs with the Acquire in `section_of`.
            self.current.store(index, Ordering::Release);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().expect("no holder of this lock panics")
    }
}

impl Default for Timeline {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outage_has_the_requests_that_waited_for_its_end() {
        let t = Timeline::new();
        assert_eq!(t.section_of(50), 0);
        t.lost(100, 3);
        t.lost(110, 2);
        // Planned before, answered over a connection that lived on.
        assert_eq!(t.section_of(90), 0);
        t.answered(90, 150);
        assert_eq!(t.section_of(120), 1, "an old connection's answer ends no outage");
        t.answered(180, 200);
        assert_eq!(t.section_of(90), 1, "planned before, answered after the recovery");
        assert_eq!(t.section_of(150), 1);
        assert_eq!(t.section_of(200), 2);
        let outage = Outage { at: 100, recovered: Some(200), connections_lost: 2, unanswered: 5 };
        assert_eq!(t.outages(), [outage]);
        let names: Vec<_> = t.sections().into_iter().map(|s| s.name).collect();
        assert_eq!(names, ["start", "outage-1", "after-outage-1"]);
    }

    #[test]
    fn a_server_that_drops_all_the_time_does_not_grow_the_timeline() {
        let t = Timeline::new();
        for i in 1..1000 {
            t.lost(i * 10, 1);
            t.answered(i * 10 + 1, i * 10 + 2);
        }
        assert!(t.sections().len() <= MOST);
        assert!((t.section_of(20_000) as usize) < MOST);
    }
}
