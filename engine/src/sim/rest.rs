//! The end of every run: everything is healed, the world comes to rest, and must add up exactly.

use super::node::Node;
use super::plan::{End, Order};
use super::router::Call;
use super::world::{Asked, Wish, World};
use crate::http::redeem::Ask;
use crate::kernel::command::RedemptionState as State;
use crate::kernel::record::SaleChange;
use crate::units::{ItemIndex, Points, Slot};

/// The first member of those who buy what is left.
const PROBERS: u64 = 10_000;
/// How many come, at most.
const PROBES: u64 = 200;
/// How often one comes to the same node, before the next one is tried.
const COMES_AGAIN: u64 = 8;

impl World {
    pub fn come_to_rest(&mut self) {
        for at in 0..self.nodes.len() {
            if self.nodes[at].is_copy() {
                self.end(at, End::Kill);
            }
            self.nodes[at].heal();
        }
        if let Some(redis) = &self.redis {
            redis.heal();
        }
        self.heal_routes();
        self.run_until_quiet();
        self.calm_routes();
        self.settle_leases();
        self.ask_everything_again();
        // Holds end by time, on the slowest clock too.
        self.advance(u64::from(self.shape.hold_ttl_ms) * 5 / 4 + 2);
        self.run_until_quiet();
        self.check_equalities();
        self.hear_of_everything();
        self.is_at_rest = true;
        self.use_up_limits();
        self.check_equalities();
        if self.shape.is_shared {
            self.buy_what_is_left_anywhere();
        } else {
            for node in 0..self.nodes.len() {
                self.buy_what_is_left(node);
            }
        }
        self.check_equalities();
        // Once by those who shipped so far, and once by those who begin where the databases are.
        self.ship_everything();
        self.let_segments_go();
        for node in &mut self.nodes {
            node.drain();
        }
        // They end in good order, and start again.
        self.run_until_quiet();
        self.ask_everything_again();
        self.check_equalities();
        if self.shape.key_retention_ms < 1_000 {
            self.let_the_sale_be_forgotten();
        }
        self.ship_everything();
        for node in &self.nodes {
            let ledger = &node.ledger;
            self.counts.records += ledger.last();
            let sales = ledger.sales.iter().filter(|sale| sale.are_keys_dropped);
            self.counts.keys_dropped += sales.count() as u64;
            let expired = ledger.redemptions.values().filter(|r| r.state == State::Expired);
            self.counts.expired += expired.count() as u64;
        }
    }

    /// Twice a snapshot of everything: then no segment stays but the one that is written to, and
    /// the one behind it. Leases may write a little meanwhile.
    fn let_segments_go(&mut self) {
        if !self.shape.snapshots {
            return;
        }
        for look in 0.. {
            for _ in 0..2 {
                let before: Vec<u64> =
                    self.nodes.iter().map(|node| node.snapshots.counts.taken).collect();
                self.nodes.iter_mut().for_each(Node::want_snapshot);
                self.run_until_quiet();
                for (node, before) in self.nodes.iter().zip(before) {
                    assert!(node.snapshots.counts.taken > before, "no snapshot is taken any more");
                }
            }
            self.ship_everything();
            for _ in 0..2 {
                self.advance(self.shape.grace_ms() * 5 / 4 + 2);
                self.run_until_quiet();
            }
            let Some(node) = self.nodes.iter().find(|node| node.segment_count() > 2) else {
                return;
            };
            let count = node.segment_count();
            assert!(look < 3, "{count} segments stay: {}", node.snapshots.describe());
        }
    }

    fn ship_everything(&mut self) {
        if let Some(shipping) = &mut self.shipping {
            shipping.come_to_rest(&self.nodes);
        }
    }

    /// Every request once more: what was answered is answered the same, the rest at last.
    fn ask_everything_again(&mut self) {
        for client in 0..self.clients.len() {
            for at in 0..self.clients[client].keys.len() {
                self.redeem(client, at, false);
                self.run_a_little();
            }
            for at in 0..self.clients[client].moves.len() {
                self.ask_move(client, at);
                self.run_a_little();
            }
        }
        for at in 0..self.orders.len() {
            if matches!(self.orders[at].order, Order::Add { .. } | Order::Withdraw { .. }) {
                self.ask_order(at);
                self.run_a_little();
            }
        }
        self.run_until_quiet();
    }

    /// I2 as an equality: nothing is stranded anywhere.
    fn check_equalities(&mut self) {
        self.settle_leases();
        for (at, node) in self.nodes.iter().enumerate() {
            let is_home = self.home_of(at) == at;
            node.ledger.check_points();
            let up = node.up.as_ref().expect("everything runs at rest");
            let stock = &up.ready.core.stock;
            for (item, units) in (0..).map(ItemIndex::new).zip(&node.ledger.items) {
                let free = stock.line(item).free();
                assert_eq!(units.held, 0, "holds that have ended: {units:?}");
                assert_eq!(free + units.sold(), units.here(), "I2 at rest: {free}, {units:?}");
                let total = stock.total(item);
                assert!(total == units.total || !is_home, "the door knows of {total}: {units:?}");
            }
        }
    }

    fn is_all_sold(&self, node: usize, item: ItemIndex) -> bool {
        let units = self.units_of(node, item);
        units.sold() == units.total
    }

    /// Nobody is refused what the limit leaves them.
    fn use_up_limits(&mut self) {
        for client in 0..self.clients.len() {
            for item in (0..self.shape.items.into()).map(ItemIndex::new) {
                let (key, answer) = (self.new_key(), None);
                let at = self.clients[client].keys.len();
                self.clients[client].keys.push(Wish {
                    key,
                    item,
                    quantity: 1,
                    hold: false,
                    answer,
                });
                self.redeem(client, at, false);
                self.run_a_little();
            }
        }
        self.run_until_quiet();
    }

    /// Whoever comes may buy what is free, and the last one is told that it is over.
    fn buy_what_is_left(&mut self, node: usize) {
        let sale = &self.nodes[node].ledger.sales[0];
        if sale.phase != Some(SaleChange::Opened) {
            return;
        }
        if sale.is_paused {
            self.order(node, Order::Resume, ItemIndex::new(0));
            self.run_until_quiet();
        }
        for item in (0..self.shape.items.into()).map(ItemIndex::new) {
            // Units may have to come from the pool first, so whoever is refused comes again. The
            // last one comes when all is sold, and is told so.
            for n in 0..PROBES {
                let was_over = self.is_all_sold(node, item);
                // Time for the lease to look at its pool.
                self.advance(if was_over { 500 } else { 20 });
                self.run_until_quiet();
                self.probe(node, item, n, was_over);
                if was_over {
                    break;
                }
            }
            let units = self.nodes[node].ledger.items[item.get() as usize];
            let phase = self.nodes[node].ledger.sales[0].phase;
            if phase == Some(SaleChange::Opened) {
                assert_eq!(units.sold(), units.total, "free units could not be bought: {units:?}");
            }
        }
    }

    /// A member comes who can buy a unit, if there is one.
    fn probe(&mut self, node: usize, item: ItemIndex, n: u64, is_over: bool) {
        let member = self.member_at(node, PROBERS * (1 + 10 * u64::from(item.get()) + n));
        self.open_account(node, member, Points::new(1000));
        self.run_until_quiet();
        let key = self.new_key();
        let ask = Ask { member, key, item: Some(item), quantity: 1, hold: false };
        let asked = Asked::Probe { item, is_over };
        self.ask(node, Slot::of(member), None, asked, Call::Redeem(ask));
        self.run_until_quiet();
    }

    /// The same, where nodes share what there is: each unit can be had at any node that sells, and
    /// at last all of them say that it is over.
    fn buy_what_is_left_anywhere(&mut self) {
        for node in 0..self.nodes.len() {
            let sale = &self.nodes[node].ledger.sales[0];
            if sale.phase == Some(SaleChange::Opened) && sale.is_paused {
                self.order(node, Order::Resume, ItemIndex::new(0));
                self.run_until_quiet();
            }
        }
        let open: Vec<usize> = (0..self.nodes.len()).filter(|node| self.is_open(*node)).collect();
        if open.is_empty() {
            return;
        }
        for item in (0..self.shape.items.into()).map(ItemIndex::new) {
            let mut n = 0;
            while !self.is_all_sold(0, item) && n < PROBES {
                // Whoever is refused comes again soon, to the same node: units are on their way.
                let node = open[(n / COMES_AGAIN) as usize % open.len()];
                self.probe(node, item, n, false);
                self.advance(10);
                self.run_until_quiet();
                n += 1;
            }
            if !open.iter().all(|node| self.is_open(*node)) {
                return;
            }
            let leases = || self.describe(item);
            assert!(self.is_all_sold(0, item), "free units could not be bought: {}", leases());
            // A node that heard nothing looks again within two seconds of its own.
            for _ in 0..26 {
                self.advance(100);
                self.run_until_quiet();
            }
            for node in &open {
                self.probe(*node, item, PROBES, true);
            }
        }
    }

    /// The sale ends, and its keys are dropped: retries are told so, and still change nothing.
    fn let_the_sale_be_forgotten(&mut self) {
        for ms in [
            u64::from(self.shape.closes_ms) * 5 / 4 + 5_000,
            self.shape.key_retention_ms * 5 / 4 + 2,
        ] {
            self.advance(ms);
            self.run_until_quiet();
        }
        for node in &self.nodes {
            assert!(node.ledger.sales[0].are_keys_dropped, "the keys stay");
        }
        self.ask_everything_again();
        self.check_equalities();
    }

    fn run_a_little(&mut self) {
        for _ in 0..3 {
            self.round();
        }
    }
}
