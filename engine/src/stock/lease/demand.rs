//! How fast an item sells on this node, how long units that came for somebody wait for him, and how
//! long to wait between two vain asks.

/// Units taken from the line of late: what a lease is taken ahead by.
///
/// Times are in milliseconds. Demand that is not served counts, too: as one unit per look.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Demand {
    /// About the units of the last [`WINDOW_MS`], in thousandths: a single one fades, too.
    recent_milli: u64,
    seen_at: u64,
    /// When a unit was last taken, or asked for in vain; `None`: never.
    last_at: Option<u64>,
}

/// How far back demand counts.
pub const WINDOW_MS: u64 = 100;
const MILLI: u64 = 1_000;

impl Demand {
    /// Notes that the line fell by so many units since the last look.
    pub fn see(&mut self, now: u64, fell: u64, is_missed: bool) {
        let passed = now.saturating_sub(self.seen_at).min(WINDOW_MS);
        let faded = u128::from(self.recent_milli) * u128::from(passed) / u128::from(WINDOW_MS);
        self.recent_milli -= faded as u64;
        let more = fell.saturating_add(u64::from(is_missed)).saturating_mul(MILLI);
        self.recent_milli = self.recent_milli.saturating_add(more);
        self.seen_at = now;
        if fell > 0 || is_missed {
            self.last_at = Some(now);
        }
    }

    /// Units that half a window of this demand takes.
    pub fn ahead(&self) -> u64 {
        self.recent_milli.saturating_add(MILLI) / (2 * MILLI)
    }

    /// Units that a whole window of it takes.
    pub fn recent(&self) -> u64 {
        self.recent_milli / MILLI
    }

    /// When a unit was last taken, or asked for in vain; `None`: never.
    pub fn last_at(&self) -> Option<u64> {
        self.last_at
    }

    /// Whether anything was asked for within so many milliseconds.
    pub fn was_within(&self, now: u64, ms: u64) -> bool {
        self.last_at.is_some_and(|at| now.saturating_sub(at) <= ms)
    }
}

/// How long the last units stay though others wait for them: for whoever they were asked for, who
/// may ask again in a moment. Twice as long each time that they left unsold; else they might go
/// round among nodes for ever, and never lie where somebody asks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stay {
    ms: u64,
    /// 0: what is here came for nobody.
    came_at: u64,
}

impl Default for Stay {
    fn default() -> Self {
        Self { ms: STAY_MS, came_at: 0 }
    }
}

const STAY_MS: u64 = 20;
const STAY_MAX_MS: u64 = 160;

impl Stay {
    /// Units that were asked for have come.
    pub fn begin(&mut self, now: u64) {
        self.came_at = now;
    }

    /// What is here leaves, unsold.
    pub fn end(&mut self) {
        if std::mem::take(&mut self.came_at) > 0 {
            self.ms = (self.ms * 2).min(STAY_MAX_MS);
        }
    }

    /// Whether nobody has asked for as long, since they came or ever.
    pub fn is_over(&self, now: u64, asked_at: Option<u64>) -> bool {
        now >= self.came_at.max(asked_at.unwrap_or(0)) + self.ms
    }
}

/// A pause that doubles with each vain attempt.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Backoff {
    first_ms: u64,
    max_ms: u64,
    next_ms: u64,
    not_before: u64,
}

impl Backoff {
    pub const fn new(first_ms: u64, max_ms: u64) -> Self {
        Self { first_ms, max_ms, next_ms: first_ms, not_before: 0 }
    }

    pub fn is_over(&self, now: u64) -> bool {
        now >= self.not_before
    }

    pub fn fail(&mut self, now: u64) {
        self.not_before = now + self.next_ms;
        self.next_ms = (self.next_ms * 2).min(self.max_ms);
    }

    pub fn reset(&mut self) {
        *self = Self::new(self.first_ms, self.max_ms);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn demand_is_forgotten_after_its_window_and_kept_within() {
        let mut demand = Demand::default();
        assert!(!demand.was_within(1_000, 1_000), "never");
        demand.see(1_000, 80, false);
        assert_eq!(demand.ahead(), 40);
        demand.see(1_050, 0, false);
        assert_eq!(demand.ahead(), 20);
        assert!(demand.was_within(1_100, 100) && !demand.was_within(1_101, 100));
        demand.see(1_200, 0, false);
        assert_eq!(demand.ahead(), 0);
        demand.see(1_201, 0, true);
        assert_eq!(demand.ahead(), 1, "what could not be served counts");
    }

    #[test]
    fn units_stay_for_a_moment_and_longer_each_time_they_left_unsold() {
        let mut stay = Stay::default();
        assert!(stay.is_over(20, None), "they came for nobody");
        for ms in [20, 40, 80, 160, 160] {
            stay.begin(1_000);
            assert!(!stay.is_over(999 + ms, None) && stay.is_over(1_000 + ms, None), "{ms}");
            assert!(!stay.is_over(1_000 + ms, Some(1_001)), "somebody asks");
            stay.end();
            stay.end();
        }
    }

    /// [Looked at every few milliseconds, the last unit of demand never faded: it was less than one
    /// each time.]
    #[test]
    fn a_single_unit_of_demand_fades_however_often_it_is_looked_at() {
        let mut demand = Demand::default();
        demand.see(1_000, 1, false);
        assert_eq!((demand.recent(), demand.ahead()), (1, 1));
        (1..=10).for_each(|look| demand.see(1_000 + 5 * look, 0, false));
        assert_eq!((demand.recent(), demand.ahead()), (0, 0));
    }

    #[test]
    fn vain_asks_come_ever_more_seldom_up_to_a_bound() {
        let mut backoff = Backoff::new(5, 20);
        assert!(backoff.is_over(0));
        for pause in [5, 10, 20, 20] {
            backoff.fail(100);
            assert!(!backoff.is_over(99 + pause) && backoff.is_over(100 + pause), "{pause}");
        }
        backoff.reset();
        assert!(backoff.is_over(100));
    }
}
