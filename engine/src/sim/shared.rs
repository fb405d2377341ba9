//! Nodes that sell one sale together, from one pool: what is done to them, and what must hold over
//! all of them.

use std::fmt::Write as _;

use super::ledger::Units;
use super::node::Node;
use super::plan::{Act, End};
use super::world::{SALE, World};
use crate::kernel::record::SaleChange;
use crate::units::ItemIndex;

/// How often a world is looked at until its leases are even: for less than the time after which a
/// quiet lease looks by itself.
const LOOKS_MAX: usize = 800;

impl World {
    /// The node whose journal has the total of what this one sells.
    pub fn home_of(&self, node: usize) -> usize {
        if self.shape.is_shared { self.shape.home() } else { node }
    }

    /// An item's units: a node's own, or those of all, where they share them.
    pub fn units_of(&self, node: usize, item: ItemIndex) -> Units {
        let at = |node: &Node| node.ledger.items[item.get() as usize];
        if !self.shape.is_shared {
            return at(&self.nodes[node]);
        }
        let mut all =
            Units { total: at(&self.nodes[self.home_of(node)]).total, ..Units::default() };
        for node in &self.nodes {
            all.add(&at(node));
        }
        all
    }

    pub fn act_on_shared(&mut self, act: Act) {
        let count = self.nodes.len();
        let Some(redis) = self.redis.clone() else { return };
        match act {
            Act::Weather(weather) => redis.set_weather(weather),
            Act::Redis(fault) => redis.fault(fault),
            Act::Cut { node, ms } => redis.cut(usize::from(node) % count, ms.into()),
            Act::Rebuild { item } => {
                redis.rebuild(ItemIndex::new((item % self.shape.items).into()));
            }
            Act::LateGrant { node, fault } => redis.delay_grant(usize::from(node) % count, fault),
            Act::KeepCopy { node } => self.node(node).keep_copy(),
            Act::RunCopy { node, ms } => {
                let at = usize::from(node) % count;
                self.end(at, End::Kill);
                if self.nodes[at].put_copy() {
                    self.nodes[at].start_at_ms = self.now_ms;
                    self.copy_ends_at[at] = self.now_ms + 20 + u64::from(ms);
                }
            }
            Act::EditMap { node, pick } => self.edit_map(usize::from(node) % count, pick),
            Act::EmptyDisk { node } => self.empty_disk(usize::from(node) % count),
            Act::CutNodes { node, ms } => {
                let one = usize::from(node) % count;
                self.cut_nodes(one, (one + 1) % count, ms.into());
            }
            _ => unreachable!("it happens in any world"),
        }
    }

    /// Whoever ran a copy of a data folder takes it away again.
    pub fn end_copies(&mut self) {
        let Some(redis) = self.redis.clone() else { return };
        for at in 0..self.nodes.len() {
            let is_over = self.now_ms >= self.copy_ends_at[at] || redis.is_copy_unknown();
            if self.nodes[at].is_copy() && is_over {
                self.end(at, End::Kill);
            }
        }
    }

    /// I1 over all nodes and Redis, by what the journals prove.
    pub fn check_shared(&mut self) {
        self.end_copies();
        self.check_owners();
        let Some(redis) = &self.redis else { return };
        for item in (0..self.shape.items.into()).map(ItemIndex::new) {
            if self.nodes.iter().any(|node| node.ledger.items.is_empty()) {
                return;
            }
            let all = self.units_of(0, item);
            let here = all.here();
            assert!(here <= all.total, "I1: {here} units with all nodes, of {}", all.total);
            for node in &self.nodes {
                let own = node.ledger.items[item.get() as usize];
                let Some(view) = redis.look(item, node.journal()) else { break };
                if !view.is_open {
                    break;
                }
                let (granted, returned) = (view.granted, view.returned);
                assert!(
                    granted >= own.granted,
                    "the pool has forgotten a grant: {view:?}, {own:?}"
                );
                assert!(returned <= own.returned, "returned before it was durable: {view:?}");
                let pool = view.pool;
                assert!(pool + here <= all.total, "I1: {pool} in the pool, with nodes: {all:?}");
            }
        }
    }

    /// Whether everything that a pool and a node know of each other is the same on both sides.
    fn is_even(&self, item: ItemIndex) -> Result<(), String> {
        let Some(redis) = &self.redis else { return Ok(()) };
        let all = self.units_of(0, item);
        for node in &self.nodes {
            let own = node.ledger.items[item.get() as usize];
            let view = redis.look(item, node.journal()).ok_or("the pool is lost")?;
            let is_even = view.is_open
                && (view.granted, view.returned) == (own.granted, own.returned)
                && view.total() == all.total
                && view.pool + all.here() == all.total
                && own.epoch == view.epoch.number;
            if !is_even {
                return Err(format!("{view:?}, {own:?}, {all:?}"));
            }
        }
        Ok(())
    }

    /// Runs until pool and nodes agree: nothing is stranded between them.
    pub fn settle_leases(&mut self) {
        if self.redis.is_none() {
            return;
        }
        for item in (0..self.shape.items.into()).map(ItemIndex::new) {
            let mut looks = 0;
            while let Err(why) = self.is_even(item) {
                looks += 1;
                let apart = "pool and nodes do not come to terms";
                assert!(looks < LOOKS_MAX, "{apart}: {why}\n{}", self.describe(item));
                self.advance(5);
                self.run_until_quiet();
            }
        }
    }

    /// Runs until no node says "sold out" for good of what was added or came back elsewhere:
    /// whoever was out of touch hears of it once it is back.
    pub fn hear_of_everything(&mut self) {
        for item in (0..self.shape.items.into()).map(ItemIndex::new) {
            let mut looks = 0;
            while let Some(node) = (0..self.nodes.len()).find(|node| self.is_deaf(*node, item)) {
                looks += 1;
                let never = "never hears that there are units again";
                assert!(looks < LOOKS_MAX, "node {node} {never}: {}", self.describe(item));
                self.advance(5);
                self.run_until_quiet();
            }
        }
    }

    fn is_deaf(&self, node: usize, item: ItemIndex) -> bool {
        let Some(up) = &self.nodes[node].up else { return false };
        let all = self.units_of(node, item);
        let is_over = all.confirmed + all.retired == all.total;
        up.ready.core.stock.is_sold_out_finally(item) && !is_over
    }

    /// Each node's side of an item, for the report of what went wrong.
    pub fn describe(&self, item: ItemIndex) -> String {
        let mut text = format!("at {} ms", self.now_ms);
        for (at, node) in self.nodes.iter().enumerate() {
            let Some(up) = &node.up else { continue };
            let stock = &up.ready.core.stock;
            let settled = stock.settled(item);
            let is_final = stock.is_sold_out_finally(item);
            let view = self.redis.as_ref().and_then(|redis| redis.look(item, node.journal()));
            let _ = write!(
                text,
                "\n  node {at}: final {is_final}, settled {settled:?}, total {}, free {}\
                 \n    {:?}\n    {:?}\n    {view:?}",
                stock.total(item),
                stock.line(item).free(),
                up.board.item(item),
                node.ledger.items[item.get() as usize],
            );
        }
        text
    }

    /// Whether the node sells.
    pub fn is_open(&self, node: usize) -> bool {
        let sale = &self.nodes[node].ledger.sales[SALE.get() as usize];
        sale.phase == Some(SaleChange::Opened) && !sale.is_paused
    }
}
