//! The stock authority: who may sell how many units. One trait, two implementations: the node's
//! own journal (here), and Redis.
//!
//! Asks go out, answers come back as events whenever they come: a caller never waits. Answers may
//! be lost, late or repeated; [`super::lease`] is built for that.

use std::collections::HashMap;

use crate::units::ItemIndex;

/// What the node asks of the authority.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StockAsk {
    /// "The item's total is now this": from its home node, durable in its journal.
    Total { item: ItemIndex, total: u64 },
    /// "Raise my granted from `from` to at most `up_to`."
    Grant { item: ItemIndex, from: u64, up_to: u64 },
    /// "My returned is now this": the maximum of all that was ever told counts.
    Return { item: ItemIndex, returned: u64 },
}

/// What the authority answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StockAnswer {
    /// This journal's granted units, in all.
    Granted { item: ItemIndex, granted: u64 },
}

/// Units granted to nodes never pass the units in the sale (I1).
pub trait StockAuthority: Send {
    /// Takes an ask; never waits.
    fn ask(&mut self, ask: StockAsk);
    /// The next answer that has come, if any.
    fn answer(&mut self) -> Option<StockAnswer>;
    /// Units that the pool of an item may still grant, as far as the node knows.
    fn pool_hint(&self, item: ItemIndex) -> u64;
}

/// What an authority knows of an item.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Pool {
    total: u64,
    granted: u64,
    returned: u64,
}

impl Pool {
    fn size(self) -> u64 {
        // Withdrawing lowers the total behind a return, so this never goes below zero.
        (self.total + self.returned).saturating_sub(self.granted)
    }
}

/// The embedded authority: the node's own journal is the ledger, so its counters are what the
/// journal's records say, and it answers at once.
#[derive(Default)]
pub struct Embedded {
    pools: HashMap<ItemIndex, Pool>,
    answers: Vec<StockAnswer>,
}

impl Embedded {
    /// Starts an item from the journal's records: totals, accepted and returned units.
    pub fn resume(&mut self, item: ItemIndex, total: u64, granted: u64, returned: u64) {
        self.pools.insert(item, Pool { total, granted, returned });
    }
}

impl StockAuthority for Embedded {
    fn ask(&mut self, ask: StockAsk) {
        match ask {
            StockAsk::Total { item, total } => self.pools.entry(item).or_default().total = total,
            StockAsk::Return { item, returned } => {
                let pool = self.pools.entry(item).or_default();
                pool.returned = pool.returned.max(returned);
            }
            StockAsk::Grant { item, from, up_to } => {
                let pool = self.pools.entry(item).or_default();
                if from == pool.granted {
                    pool.granted += up_to.saturating_sub(from).min(pool.size());
                }
                self.answers.push(StockAnswer::Granted { item, granted: pool.granted });
            }
        }
    }

    fn answer(&mut self) -> Option<StockAnswer> {
        self.answers.pop()
    }

    fn pool_hint(&self, item: ItemIndex) -> u64 {
        self.pools.get(&item).map_or(0, |pool| pool.size())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ITEM: ItemIndex = ItemIndex::new(3);

    fn granted(authority: &mut impl StockAuthority, from: u64, up_to: u64) -> u64 {
        authority.ask(StockAsk::Grant { item: ITEM, from, up_to });
        let Some(StockAnswer::Granted { granted, .. }) = authority.answer() else { return 0 };
        granted
    }

    #[test]
    fn granted_never_passes_the_total_whatever_is_asked_and_repeated() {
        let mut authority = Embedded::default();
        authority.ask(StockAsk::Total { item: ITEM, total: 100 });
        assert_eq!(granted(&mut authority, 0, 60), 60);
        assert_eq!(granted(&mut authority, 0, 60), 60, "a repeated ask grants nothing more");
        assert_eq!(granted(&mut authority, 60, 200), 100);
        assert_eq!(authority.pool_hint(ITEM), 0);
        authority.ask(StockAsk::Return { item: ITEM, returned: 30 });
        authority.ask(StockAsk::Return { item: ITEM, returned: 10 });
        assert_eq!(authority.pool_hint(ITEM), 30, "the maximum counts");
        assert_eq!(granted(&mut authority, 100, 500), 130);
    }
}
