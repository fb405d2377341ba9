//! How long members were told that there is no unit here, until units came.

use hdrhistogram::Histogram;

use crate::units::NodeTime;

/// Longer spells count as this.
const LONGEST_MS: u64 = 3_600_000;

/// The dry spells of one item on this node: each from the first refusal for want of a unit to the
/// moment when units of the pool enter the line, in milliseconds of node time.
///
/// It begins when the refusal is *seen*: at once for an item that was at rest, else within a look
/// of the control thread. It cannot be known here whether a unit was free elsewhere all that time,
/// or held until then; so a spell is an upper bound of how long one lay idle.
#[derive(Default)]
pub(super) struct DrySpells {
    since: Option<NodeTime>,
    /// Made with the first spell: most items never have one.
    ended: Option<Box<Histogram<u32>>>,
    asked_ms: u64,
}

impl DrySpells {
    /// A look at the line, so many milliseconds after the one before: what is free, and whether
    /// somebody was refused since.
    pub(super) fn see(&mut self, now: NodeTime, passed_ms: u64, free: u64, is_missed: bool) {
        if free > 0 {
            // From a hold that ended here, else the spell would be over: no other node gave it.
            self.since = None;
        } else if is_missed {
            self.since.get_or_insert(now);
            self.asked_ms += passed_ms;
        }
    }

    /// Units have come.
    pub(super) fn end(&mut self, now: NodeTime) {
        let Some(since) = self.since.take() else { return };
        let ms = now.get().saturating_sub(since.get());
        let ended = self.ended.get_or_insert_with(|| {
            Box::new(Histogram::new_with_bounds(1, LONGEST_MS, 2).expect("bounds that are valid"))
        });
        ended.saturating_record(ms.max(1));
    }

    /// Somebody was refused, and no unit has come since.
    pub(super) fn is_open(&self) -> bool {
        self.since.is_some()
    }

    pub(super) fn count(&self) -> u64 {
        self.ended.as_ref().map_or(0, |ended| ended.len())
    }

    /// 0: there was none.
    pub(super) fn p99_ms(&self) -> u64 {
        self.ended.as_ref().map_or(0, |ended| ended.value_at_quantile(0.99))
    }

    /// How long somebody asked and there was none, in all; whether units came then or not.
    pub(super) fn asked_ms(&self) -> u64 {
        self.asked_ms
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spell_lasts_from_its_first_refusal_to_the_next_unit_of_the_pool() {
        let (mut dry, at) = (DrySpells::default(), NodeTime::new);
        dry.end(at(5));
        assert_eq!((dry.count(), dry.p99_ms()), (0, 0), "none");
        dry.see(at(10), 5, 0, true);
        dry.see(at(15), 5, 0, true);
        dry.see(at(20), 5, 0, false);
        dry.end(at(25));
        assert_eq!((dry.count(), dry.p99_ms(), dry.asked_ms()), (1, 15, 10));
        dry.see(at(100), 5, 0, true);
        dry.see(at(105), 5, 1, true);
        dry.end(at(900));
        assert_eq!(dry.count(), 1, "a unit of this node's own ended it");
    }
}
