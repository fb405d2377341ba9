//! What the kernel knows of sales and items: a plain copy inside each shard.
//!
//! The control machine owns the truth; a shard's copy changes between two batches, by the changes
//! that the shard then records as seen.

use std::sync::Arc;

use super::record::SaleChange;
use crate::units::{ItemIndex, MemberId, Points, Quantity, SaleIndex};

/// Where a sale stands. One way, from top to bottom.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum SalePhase {
    Scheduled = 1,
    Open = 2,
    Ended = 3,
    /// Ended, and a stated time later: its request keys are being forgotten, slot by slot.
    KeysDropped = 4,
}

/// What decides about a sale's redemptions.
#[derive(Clone, Debug)]
pub struct SaleRule {
    pub phase: SalePhase,
    pub paused: bool,
    /// How long a hold lasts. At most `u32::MAX`.
    pub hold_ttl_ms: u64,
}

/// What decides about an item's redemptions.
#[derive(Clone, Debug)]
pub struct ItemRule {
    pub sale: SaleIndex,
    pub price: Points,
    /// Units per member, held and confirmed ones.
    pub limit: Quantity,
    /// Sorted inclusive ranges that do not overlap; `None`: everybody.
    pub eligible: Option<Arc<[(MemberId, MemberId)]>>,
}

impl ItemRule {
    pub fn is_eligible(&self, member: MemberId) -> bool {
        let Some(ranges) = &self.eligible else { return true };
        let after = ranges.partition_point(|&(first, _)| first <= member);
        after > 0 && member <= ranges[after - 1].1
    }
}

#[derive(Clone, Debug)]
struct Sale {
    rule: SaleRule,
    first_item: ItemIndex,
    item_count: u32,
}

/// All sales and items of a journal, by number.
#[derive(Clone, Debug, Default)]
pub struct Catalog {
    sales: Vec<Sale>,
    items: Vec<ItemRule>,
}

impl Catalog {
    /// Adds the next sale, with its items in their order.
    ///
    /// Panics: an item names another sale, or a hold would last longer than `u32::MAX` ms; the
    /// definition was checked at the door.
    pub fn define_sale(&mut self, rule: SaleRule, items: Vec<ItemRule>) -> SaleIndex {
        let sale = SaleIndex::new(self.sales.len() as u32);
        assert!(items.iter().all(|item| item.sale == sale), "items name their own sale");
        assert!(u32::try_from(rule.hold_ttl_ms).is_ok(), "a hold is at most 49 days long");
        let first_item = ItemIndex::new(self.items.len() as u32);
        self.sales.push(Sale { rule, first_item, item_count: items.len() as u32 });
        self.items.extend(items);
        sale
    }

    /// Applies a change. One-way phases stay: an ended sale never opens again.
    ///
    /// Panics: no such sale.
    pub fn change(&mut self, sale: SaleIndex, change: SaleChange) {
        let rule = &mut self.sales[sale.get() as usize].rule;
        match change {
            SaleChange::Opened => rule.phase = rule.phase.max(SalePhase::Open),
            SaleChange::Ended => rule.phase = rule.phase.max(SalePhase::Ended),
            SaleChange::Paused => rule.paused = true,
            SaleChange::Resumed => rule.paused = false,
        }
    }

    /// From here on unknown keys of the sale are answered with `KeyExpired`.
    ///
    /// Panics: no such sale.
    pub fn mark_keys_dropped(&mut self, sale: SaleIndex) {
        self.sales[sale.get() as usize].rule.phase = SalePhase::KeysDropped;
    }

    pub fn sale_count(&self) -> usize {
        self.sales.len()
    }
    pub fn item_count(&self) -> usize {
        self.items.len()
    }
    pub fn sales(&self) -> impl Iterator<Item = (SaleIndex, &SaleRule)> {
        (0..).map(SaleIndex::new).zip(self.sales.iter().map(|sale| &sale.rule))
    }
    pub fn items(&self) -> &[ItemRule] {
        &self.items
    }
    pub fn sale(&self, sale: SaleIndex) -> Option<&SaleRule> {
        self.sales.get(sale.get() as usize).map(|sale| &sale.rule)
    }
    #[inline]
    pub fn item(&self, item: ItemIndex) -> Option<&ItemRule> {
        self.items.get(item.get() as usize)
    }
    /// The number of a sale's first item, and how many it has.
    pub fn items_of(&self, sale: SaleIndex) -> Option<(ItemIndex, u32)> {
        self.sales.get(sale.get() as usize).map(|sale| (sale.first_item, sale.item_count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eligibility_is_inclusive_at_both_ends() {
        let range = |a, b| (MemberId::new(a), MemberId::new(b));
        let item = ItemRule {
            sale: SaleIndex::new(0),
            price: Points::ZERO,
            limit: Quantity::new(1),
            eligible: Some(Arc::new([range(0, 0), range(10, 20), range(30, u64::MAX)])),
        };
        let eligible = |id| item.is_eligible(MemberId::new(id));
        assert!([0, 10, 15, 20, 30, u64::MAX].into_iter().all(eligible));
        assert!(![1, 9, 21, 29].into_iter().any(eligible));
    }

    #[test]
    fn an_ended_sale_never_opens_again() {
        let mut catalog = Catalog::default();
        let rule = SaleRule { phase: SalePhase::Scheduled, paused: false, hold_ttl_ms: 1 };
        let sale = catalog.define_sale(rule, Vec::new());
        for (change, phase) in [
            (SaleChange::Opened, SalePhase::Open),
            (SaleChange::Ended, SalePhase::Ended),
            (SaleChange::Opened, SalePhase::Ended),
        ] {
            catalog.change(sale, change);
            assert_eq!(catalog.sale(sale).map(|rule| rule.phase), Some(phase));
        }
    }
}
