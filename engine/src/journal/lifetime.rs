//! When a segment may go: I9, as a state machine without I/O.
//!
//! A segment is removed only once every record in it is covered by both kept snapshots *and* by
//! the database shards' watermarks, and the grace time beyond the moment when that was first
//! known has gone by. The segment that is written to, and the one before the next cut, stay.

use std::collections::VecDeque;

use crate::planted::{self, Bug};
use crate::units::{NodeTime, Seq};

/// How far the journal is covered by others. Neither ever goes back.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Cover {
    /// The older kept snapshot's lowest cut; `NONE` until there are two.
    pub snapshots: Seq,
    /// Through which all database shards have everything.
    pub store: Seq,
}

struct Span {
    segment: u64,
    first_seq: Seq,
    /// When it was first known to be covered by all.
    covered_at: Option<NodeTime>,
}

/// The segments that hold frames, and which of them may go.
pub struct Lifetime {
    spans: VecDeque<Span>,
    /// Units: milliseconds of node time.
    grace_ms: u64,
}

impl Lifetime {
    pub fn new(grace_ms: u64) -> Self {
        Self { spans: VecDeque::new(), grace_ms }
    }

    /// The next segment begins, with this as its first sequence number (to come).
    pub fn begin(&mut self, segment: u64, first_seq: Seq) {
        if let Some(last) = self.spans.back() {
            assert_eq!(last.segment + 1, segment, "segments have no gap");
        }
        self.spans.push_back(Span { segment, first_seq, covered_at: None });
    }

    /// How many segments hold frames.
    pub fn len(&self) -> usize {
        self.spans.len()
    }
    pub fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }
    /// The first sequence number still kept.
    pub fn first_seq(&self) -> Option<Seq> {
        self.spans.front().map(|s| s.first_seq)
    }

    /// The lowest segment, if it may be removed now.
    pub fn removable(&mut self, cover: Cover, now: NodeTime) -> Option<u64> {
        let is_unasked = planted::is(Bug::SegmentGoesUnstored);
        let store = if is_unasked { cover.snapshots } else { cover.store };
        let covered = cover.snapshots.min(store);
        let ends = self.spans.iter().skip(1).map(|s| s.first_seq).collect::<Vec<_>>();
        for (span, next_first) in self.spans.iter_mut().zip(ends) {
            if next_first.get() > covered.get() + 1 {
                break;
            }
            span.covered_at.get_or_insert(now);
        }
        let oldest = self.spans.front()?;
        let covered_at = oldest.covered_at?;
        let grace_ms = if planted::is(Bug::GraceForgotten) { 0 } else { self.grace_ms };
        (now >= covered_at.plus_ms(grace_ms)).then_some(oldest.segment)
    }

    /// The lowest segment is gone.
    pub fn removed(&mut self, segment: u64) {
        let gone = self.spans.pop_front();
        assert!(gone.is_some_and(|s| s.segment == segment), "segments go from the lowest up");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cover(snapshots: u64, store: u64) -> Cover {
        Cover { snapshots: Seq::new(snapshots), store: Seq::new(store) }
    }

    fn three() -> Lifetime {
        let mut lifetime = Lifetime::new(1_000);
        for (segment, first) in [(4, 100), (5, 200), (6, 300)] {
            lifetime.begin(segment, Seq::new(first));
        }
        lifetime
    }

    #[test]
    fn a_segment_goes_only_when_all_conditions_hold() {
        // Segment 4 holds 100 to 199. Columns: snapshots, store, ms since first seen, goes.
        for (snapshots, store, after_ms, goes) in [
            (0, 0, 5_000, false),
            (199, 0, 5_000, false),
            (0, 199, 5_000, false),
            (198, 199, 5_000, false),
            (199, 198, 5_000, false),
            (199, 199, 999, false),
            (199, 199, 1_000, true),
            (u64::MAX - 1, 199, 1_000, true),
        ] {
            let mut lifetime = three();
            let cover = cover(snapshots, store);
            assert_eq!(lifetime.removable(cover, NodeTime::new(10)), None);
            let later = lifetime.removable(cover, NodeTime::new(10 + after_ms));
            assert_eq!(later, goes.then_some(4), "{snapshots} {store} {after_ms}");
        }
    }

    #[test]
    fn the_segment_that_is_written_to_never_goes() {
        let (mut lifetime, all) = (three(), cover(10_000, 10_000));
        let (now, later) = (NodeTime::new(0), NodeTime::new(1_000));
        assert_eq!(lifetime.removable(all, now), None);
        for segment in [4, 5] {
            assert_eq!(lifetime.removable(all, later), Some(segment));
            lifetime.removed(segment);
        }
        assert_eq!(lifetime.removable(all, later), None);
        assert_eq!((lifetime.len(), lifetime.first_seq()), (1, Some(Seq::new(300))));
    }
}
