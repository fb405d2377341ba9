//! Time, read in one place.
//!
//! Everything measured is in nanoseconds since the clock was made, on the monotonic clock. Workers
//! share one `Clock`, so that their figures can be laid side by side.

use std::time::{Duration, Instant};

/// The monotonic clock of a run.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    zero: Instant,
}

impl Clock {
    /// Starts at zero now.
    #[allow(clippy::disallowed_methods, reason = "the one place where time is read")]
    pub fn start() -> Self {
        Self { zero: Instant::now() }
    }

    /// Units: nanoseconds since `start`.
    #[allow(clippy::disallowed_methods, reason = "the one place where time is read")]
    pub fn now(&self) -> u64 {
        let since = Instant::now().saturating_duration_since(self.zero);
        u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
    }
}

/// The wall clock, RFC 3339 in UTC, for reports alone.
#[allow(clippy::disallowed_methods, reason = "the one place where time is read")]
pub fn wall_now() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// The wall clock as the system has it, for the head of a log alone.
#[allow(clippy::disallowed_methods, reason = "the one place where time is read")]
pub fn wall() -> std::time::SystemTime {
    std::time::SystemTime::now()
}

/// The wall clock's time at a moment of this clock.
pub fn wall_at(clock: Clock, at: u64) -> std::time::SystemTime {
    wall() + duration(at.saturating_sub(clock.now()))
}

/// A seed nobody chose.
pub fn fresh_seed() -> u64 {
    rand::random::<u32>().into()
}

/// Units: nanoseconds this thread has been on a processor.
pub fn thread_cpu() -> u64 {
    let spent = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    (spent.tv_sec as u64).saturating_mul(1_000_000_000).saturating_add(spent.tv_nsec as u64)
}

/// Units: nanoseconds this thread has waited for a processor that others had; 0 where the system
/// does not say.
pub fn thread_delay() -> u64 {
    use std::io::Read;
    let mut bytes = [0; 128];
    let read =
        std::fs::File::open("/proc/thread-self/schedstat").and_then(|mut f| f.read(&mut bytes));
    let text = std::str::from_utf8(&bytes[..read.unwrap_or(0)]).unwrap_or("");
    // Time on a processor, time in its queue, turns.
    text.split_ascii_whitespace().nth(1).and_then(|n| n.parse().ok()).unwrap_or(0)
}

/// Units: nanoseconds, from seconds as people write them. Saturates.
pub fn from_seconds(seconds: f64) -> u64 {
    (seconds.max(0.0) * 1e9).round() as u64
}

/// Units: seconds.
pub fn to_seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

/// A `Duration` of so many nanoseconds.
pub const fn duration(ns: u64) -> Duration {
    Duration::from_nanos(ns)
}
