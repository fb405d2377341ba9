//! Time as an input: the only file that reads the machine's clocks.
//!
//! Everything else is handed a [`Clock`], so that tests and the simulation own time. The node's
//! deadlines run on [`NodeClock`]: what the journal last recorded, plus the wall time of the
//! downtime up to a bound, plus the monotonic clock since. A wall clock that is set back or
//! forward while the node runs changes nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::planted::{self, Bug};
use crate::units::NodeTime;

/// Where time comes from.
pub trait Clock: Send + Sync + 'static {
    /// Units: milliseconds since the Unix epoch. May jump either way.
    fn wall_ms(&self) -> u64;
    /// Units: nanoseconds since some fixed moment of this process. Never goes back.
    fn monotonic_ns(&self) -> u64;
}

/// The machine's own clocks.
pub struct RealClock {
    started: Instant,
}

impl RealClock {
    #[allow(clippy::disallowed_methods, reason = "this is the file that may")]
    pub fn new() -> Self {
        Self { started: Instant::now() }
    }
}

impl Default for RealClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for RealClock {
    #[allow(clippy::disallowed_methods, reason = "this is the file that may")]
    fn wall_ms(&self) -> u64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }
    fn monotonic_ns(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

/// Notices that the wall clock was set back: whoever waits until a moment of it then waits that
/// much longer.
pub struct SetBack {
    clock: Arc<dyn Clock>,
    /// How far the wall clock is ahead of the monotonic one, when last looked. Units: milliseconds.
    ahead_ms: i64,
}

impl SetBack {
    /// What is slewed moves slower, and what is set back by less is soon over.
    const AT_LEAST_MS: i64 = 1_000;

    pub fn new(clock: Arc<dyn Clock>) -> Self {
        let mut this = Self { clock, ahead_ms: 0 };
        this.look();
        this
    }

    /// Whether it was set back since it was last asked.
    pub fn look(&mut self) -> bool {
        let monotonic_ms = (self.clock.monotonic_ns() / 1_000_000).cast_signed();
        let ahead_ms = self.clock.wall_ms().cast_signed().saturating_sub(monotonic_ms);
        let before_ms = std::mem::replace(&mut self.ahead_ms, ahead_ms);
        before_ms.saturating_sub(ahead_ms) >= Self::AT_LEAST_MS
    }
}

/// A clock that moves only when a test or the simulation moves it.
#[derive(Default)]
pub struct ManualClock {
    // Both are plain counters that publish nothing else, so Relaxed suffices.
    wall_ms: AtomicU64,
    monotonic_ns: AtomicU64,
}

impl ManualClock {
    pub fn new(wall_ms: u64) -> Self {
        Self { wall_ms: AtomicU64::new(wall_ms), monotonic_ns: AtomicU64::new(0) }
    }
    /// Time goes by: both clocks advance.
    pub fn advance(&self, by: Duration) {
        let ms = u64::try_from(by.as_millis()).unwrap_or(u64::MAX);
        let ns = u64::try_from(by.as_nanos()).unwrap_or(u64::MAX);
        self.wall_ms.fetch_add(ms, Ordering::Relaxed);
        self.monotonic_ns.fetch_add(ns, Ordering::Relaxed);
    }
    /// Somebody sets the wall clock; the monotonic one does not care.
    pub fn set_wall_ms(&self, wall_ms: u64) {
        self.wall_ms.store(wall_ms, Ordering::Relaxed);
    }
}

impl Clock for ManualClock {
    fn wall_ms(&self) -> u64 {
        self.wall_ms.load(Ordering::Relaxed)
    }
    fn monotonic_ns(&self) -> u64 {
        self.monotonic_ns.load(Ordering::Relaxed)
    }
}

/// The two times that every frame of the journal records.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stamp {
    pub node: NodeTime,
    /// Units: milliseconds since the Unix epoch, as the machine believed.
    pub wall_ms: u64,
}

/// The node's own time: monotonic while it runs, carried over restarts by the journal.
pub struct NodeClock {
    clock: Arc<dyn Clock>,
    base: NodeTime,
    base_monotonic_ns: u64,
}

impl NodeClock {
    /// Goes on from the last frame's stamp, or from the wall clock at the first start.
    ///
    /// Downtime counts by the wall clock, at least zero and at most `downtime_max`.
    pub fn resume(clock: Arc<dyn Clock>, last: Option<Stamp>, downtime_max: Duration) -> Self {
        let wall_now = clock.wall_ms();
        let base = match last {
            None => NodeTime::new(wall_now),
            Some(_) if planted::is(Bug::TimeGoesBack) => NodeTime::new(wall_now),
            Some(stamp) => {
                let max_ms = u64::try_from(downtime_max.as_millis()).unwrap_or(u64::MAX);
                stamp.node.plus_ms(wall_now.saturating_sub(stamp.wall_ms).min(max_ms))
            }
        };
        let base_monotonic_ns = clock.monotonic_ns();
        Self { clock, base, base_monotonic_ns }
    }
    pub fn now(&self) -> NodeTime {
        let ns = self.clock.monotonic_ns().saturating_sub(self.base_monotonic_ns);
        self.base.plus_ms(ns / 1_000_000)
    }
    pub fn stamp(&self) -> Stamp {
        Stamp { node: self.now(), wall_ms: self.clock.wall_ms() }
    }
    pub fn monotonic_ns(&self) -> u64 {
        self.clock.monotonic_ns()
    }
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_hours(1);

    fn resumed(wall_now: u64, last: Option<(u64, u64)>) -> NodeTime {
        let last = last.map(|(node, wall_ms)| Stamp { node: NodeTime::new(node), wall_ms });
        NodeClock::resume(Arc::new(ManualClock::new(wall_now)), last, HOUR).now()
    }

    #[test]
    fn a_restart_adds_the_downtime_up_to_its_bound_and_never_takes_any_away() {
        let hour = 3_600_000;
        for (wall_now, last, expected) in [
            (5_000, None, 5_000),
            (5_000, Some((4_000, 4_000)), 5_000),
            (5_000, Some((9_000, 4_000)), 10_000),
            (5_000, Some((9_000, 5_000)), 9_000),
            (4_000, Some((9_000, 5_000)), 9_000),
            (0, Some((9_000, 5_000)), 9_000),
            (5_000 + hour, Some((9_000, 5_000)), 9_000 + hour),
            (5_000 + 30 * hour, Some((9_000, 5_000)), 9_000 + hour),
        ] {
            assert_eq!(resumed(wall_now, last), NodeTime::new(expected), "{wall_now} {last:?}");
        }
    }

    #[test]
    fn a_wall_clock_that_is_set_back_is_noticed_once_and_nothing_else_is() {
        let clock = Arc::new(ManualClock::new(10_000_000));
        let mut set_back = SetBack::new(Arc::clone(&clock) as Arc<dyn Clock>);
        clock.advance(Duration::from_secs(3));
        assert!(!set_back.look(), "time goes by");
        clock.set_wall_ms(20_000_000);
        assert!(!set_back.look(), "forward is no harm");
        clock.set_wall_ms(20_000_000 - 999);
        assert!(!set_back.look(), "hardly");
        clock.set_wall_ms(9_000_000);
        assert!(set_back.look());
        assert!(!set_back.look());
    }

    #[test]
    fn setting_the_wall_clock_while_running_changes_nothing() {
        let manual = Arc::new(ManualClock::new(10 * 3_600_000));
        let node = NodeClock::resume(manual.clone(), None, HOUR);
        let start = node.now();
        manual.advance(Duration::from_secs(1));
        for wall in [9 * 3_600_000, 11 * 3_600_000, 0] {
            manual.set_wall_ms(wall);
            assert_eq!(node.now(), start.plus_ms(1_000));
        }
        manual.advance(Duration::from_millis(1));
        assert_eq!(node.now(), start.plus_ms(1_001));
        assert_eq!(node.stamp().wall_ms, 1);
    }
}
