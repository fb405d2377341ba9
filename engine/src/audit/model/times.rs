//! When redemptions may begin: each shard decides by a change of a sale from its `ChangeSeen` on.
//!
//! A slot's shard is `slot % shards`, and the journal does not say how many shards an incarnation
//! has. So a beginning that some shard would have had to refuse is set aside until the incarnation
//! ends; then the shards that have recorded changes are known. They are all there once ten seconds
//! have gone by since the first change, as the others have recorded it by then. Where a crash cut
//! the only barrier short, nothing is said rather than something false.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Place;
use super::control::Sale;
use crate::audit::finding::{Check, Findings, Where};
use crate::kernel::record::{ChangeSeen, SaleChange};
use crate::units::{MemberId, NodeTime, RedemptionId, SaleIndex, Seq, Slot};

/// A barrier is over after this long, whoever else was to answer it. Units: ms of node time.
const BARRIER_MS_MAX: u64 = 10_000;
/// Beginnings set aside at a time.
const DOUBTS_MAX: usize = 1 << 20;

/// Where a sale stands, for whoever decides by it.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Stand {
    pub is_opened: bool,
    pub is_paused: bool,
    pub is_ended: bool,
}

impl Stand {
    pub fn change(&mut self, change: SaleChange) {
        match change {
            SaleChange::Opened => self.is_opened = true,
            SaleChange::Paused => self.is_paused = true,
            SaleChange::Resumed => self.is_paused = false,
            SaleChange::Ended => self.is_ended = true,
        }
    }
    pub fn allows(self) -> bool {
        self.is_opened && !self.is_paused && !self.is_ended
    }
    fn why_not(self) -> &'static str {
        match self {
            Self { is_ended: true, .. } => "ended",
            Self { is_paused: true, .. } => "paused",
            _ => "not open",
        }
    }
}

/// A sale as the shards of this incarnation see it.
#[derive(Clone, Default)]
struct Views {
    /// Of a shard that has recorded nothing yet.
    base: Stand,
    shards: Arc<BTreeMap<u16, Stand>>,
}

impl Views {
    fn of(&self, shard: u16) -> Stand {
        self.shards.get(&shard).copied().unwrap_or(self.base)
    }
    fn all_allow(&self) -> bool {
        self.shards.values().all(|s| s.allows()) && (self.base.allows() || !self.shards.is_empty())
    }
}

/// A redemption that began while some shard had to refuse.
struct Doubt {
    seq: Seq,
    slot: Slot,
    member: MemberId,
    id: RedemptionId,
    views: Views,
}

/// The sales' times in one incarnation after the other.
#[derive(Default)]
pub(super) struct SaleTimes {
    views: Vec<Views>,
    doubts: Vec<Doubt>,
    shard_count: u16,
    /// When the first change of a sale was recorded.
    first_change: Option<NodeTime>,
    /// Every shard is known to have recorded something.
    is_complete: bool,
}

impl SaleTimes {
    /// Another incarnation: its shards begin with what is recorded of the sales. Within what a
    /// snapshot covers (`is_known` is false) that was another state than the snapshot's; then
    /// only what the shards themselves record from here on counts.
    pub fn restart(&mut self, sales: &[Sale], is_known: bool, findings: &mut Findings) {
        let count = self.is_complete.then_some(self.shard_count).filter(|&n| n > 0);
        for doubt in std::mem::take(&mut self.doubts) {
            let stand = match count {
                Some(shards) => doubt.views.of(doubt.slot.get() % shards),
                // Nothing was recorded by any shard: all go by the base.
                None if doubt.views.shards.is_empty() => doubt.views.base,
                None => continue,
            };
            if !stand.allows() {
                let at = Where::member(doubt.member).with_redemption(doubt.id).with_seq(doubt.seq);
                let sentence = format!("began while its sale was {}", stand.why_not());
                findings.violation(Check::SaleTimes, at, sentence);
            }
        }
        let unknown = Stand { is_opened: true, ..Stand::default() };
        let base = |sale: &Sale| Views {
            base: if is_known { sale.stand } else { unknown },
            shards: Arc::default(),
        };
        *self = Self { views: sales.iter().map(base).collect(), ..Self::default() };
    }

    pub fn define(&mut self) {
        self.views.push(Views::default());
    }

    /// A change was recorded; the shards' own records follow.
    pub fn change(&mut self, place: Place) {
        self.settle(place.node_time);
        self.first_change.get_or_insert(place.node_time);
    }

    pub fn seen(&mut self, seen: &ChangeSeen) {
        self.shard_count = self.shard_count.max(seen.shard.saturating_add(1));
        let Some(views) = self.views.get_mut(seen.sale.get() as usize) else { return };
        let mut stand = views.of(seen.shard);
        stand.change(seen.change);
        Arc::make_mut(&mut views.shards).insert(seen.shard, stand);
    }

    fn settle(&mut self, now: NodeTime) {
        let over = |at: NodeTime| at.plus_ms(BARRIER_MS_MAX) < now;
        self.is_complete |= self.shard_count > 0 && self.first_change.is_some_and(over);
    }

    /// A redemption began.
    pub fn begun(
        &mut self,
        place: Place,
        slot: Slot,
        sale: SaleIndex,
        member: MemberId,
        id: RedemptionId,
    ) {
        if !self.is_complete {
            self.settle(place.node_time);
        }
        let Some(views) = self.views.get(sale.get() as usize) else { return };
        if !views.all_allow() && self.doubts.len() < DOUBTS_MAX {
            self.doubts.push(Doubt { seq: place.seq, slot, member, id, views: views.clone() });
        }
    }
}
