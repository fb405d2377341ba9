//! The stock authority: who may sell how many units. One trait, two implementations: the node's
//! own journal (here), and Redis.
//!
//! Asks go out, answers come back as events whenever they come: a caller never waits. Answers may
//! be lost, late or repeated; [`super::lease`] is built for that.

use std::collections::{HashMap, VecDeque};

use super::ask::{Asker, Epoch, PoolAnswer, PoolAsk};
use super::pool::Pool;
use crate::units::{ItemIndex, KeyHash};

/// Who keeps the pool of each item. Units granted to nodes never pass the units in the sale (I1).
///
/// Shape: one that lives in another thread or on another machine gives its answers, and its
/// [`super::ask::PoolNews`], to a callback that it was made with, and has none here.
pub trait StockAuthority: Send {
    /// Says what an item is called wherever several nodes know it, `SALE/SKU`: before its first
    /// ask.
    fn name(&mut self, item: ItemIndex, name: &str);
    /// Takes an ask; never waits. One that cannot be taken is answered with
    /// [`super::ask::PoolRefusal::Unavailable`], or not at all.
    fn ask(&mut self, asker: Asker, ask: PoolAsk);
    /// The next answer that has come, if any.
    fn answer(&mut self) -> Option<PoolAnswer>;
}

/// The embedded authority: the node's own journal is the ledger, so its pools are made of what the
/// journal's records say, by the join of each start, and it answers at once.
#[derive(Default)]
pub struct Embedded {
    pools: HashMap<ItemIndex, Pool>,
    answers: VecDeque<PoolAnswer>,
}

impl Embedded {
    /// What the pools of a node alone live in: one epoch, which no record tells.
    pub const EPOCH: Epoch = Epoch { number: 1, server: KeyHash::new(0) };
}

impl StockAuthority for Embedded {
    fn name(&mut self, _: ItemIndex, _: &str) {}

    fn ask(&mut self, asker: Asker, ask: PoolAsk) {
        let server = Self::EPOCH.server;
        let pool = self.pools.entry(asker.item).or_insert_with(|| {
            let mut pool = Pool::default();
            if let PoolAsk::Join { home: Some(home), .. } = &ask {
                let made = pool.on(server, &asker, &PoolAsk::Create { home: home.clone() });
                assert_eq!(made.refusal, None, "the first ask of a node alone makes its pool");
            }
            pool
        });
        self.answers.push_back(pool.on(server, &asker, &ask));
    }

    fn answer(&mut self) -> Option<PoolAnswer> {
        self.answers.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stock::ask::{HomeStanding, Standing};
    use crate::units::{Incarnation, JournalId};

    #[test]
    fn a_pool_begins_with_what_the_journal_proves() {
        let mut authority = Embedded::default();
        let standing = Standing { accepted: 60, returned: 10, ..Standing::default() };
        let asker = Asker {
            item: ItemIndex::new(3),
            journal: JournalId::new(1),
            incarnation: Incarnation::new(4),
            epoch: Embedded::EPOCH,
            standing,
        };
        let home = HomeStanding { added: 110, withdrawn: 10, journals: None };
        authority.ask(asker, PoolAsk::Join { home: Some(home), bump_above: 0 });
        let answer = authority.answer().unwrap();
        assert_eq!(answer.refusal, None);
        assert_eq!(answer.view.unwrap().pool, 50);
        authority
            .ask(asker, PoolAsk::Grant { from: 60, up_to: 200, need: 0, nodes: 0, max: u64::MAX });
        assert_eq!(authority.answer().unwrap().view.unwrap().granted, 110);
        assert_eq!(authority.answer(), None);
    }
}
