//! What the stock authority says of items' pools, against what the journals say.
//!
//! The pools are looked at before the first node and after the last, each node in a moment between.
//! What a pool was *told* stands in a journal before: so the earlier look must lie within the
//! journals, always. What a pool *granted* stands in it before a journal has it: so the later look
//! must cover the journals. Equalities are checked only where the pool stood still meanwhile, and
//! where the node is in touch with it; even then units may just be on their way, which another
//! audit finds arrived ([`super::together`]'s callers look again).

use std::collections::BTreeMap;

use super::finding::{Check, Severity};
use super::report::{AuditReport, ItemLine, counted, grouped};

/// An item's pool, as the stock authority tells it. Units: units of stock, cumulative.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Pool {
    pub sale: String,
    pub sku: String,
    pub is_open: bool,
    pub epoch: u32,
    /// The server that the epoch belongs to, in hexadecimal.
    pub server: String,
    pub total: i64,
    /// Units that may be granted.
    pub free: i64,
    /// All of the total is confirmed, as far as it was told.
    pub is_sold_out: bool,
    /// By journal, in hexadecimal.
    pub journals: BTreeMap<String, PoolJournal>,
}

/// What a pool has of one journal.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PoolJournal {
    pub incarnation: u64,
    /// The newest epoch that it joined.
    pub epoch: u32,
    pub granted: i64,
    /// Told by the journal, as all that follow.
    pub accepted: i64,
    pub returned: i64,
    pub confirmed: i64,
    pub reversed: i64,
}

/// The pools, before the first node was looked at and after the last.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Pools {
    pub before: Vec<Pool>,
    pub after: Vec<Pool>,
}

pub(super) type Key = (String, String);

pub(super) fn key_of(item: &ItemLine) -> Key {
    (item.sale.clone(), item.sku.clone())
}

/// A node's journal and what it says of items.
struct Node<'a> {
    report: &'a AuditReport,
    items: BTreeMap<Key, &'a ItemLine>,
}

impl<'a> Node<'a> {
    fn of(report: &'a AuditReport) -> Self {
        Self { report, items: report.items.iter().map(|item| (key_of(item), item)).collect() }
    }
    fn journal(&self) -> &'a String {
        &self.report.subject.journal
    }
    /// Whether what it and the pool do not know of each other is told at once. A node that is
    /// stopped tells it at its next start, one that cannot reach the pool when it can.
    fn is_in_touch(&self, item: &ItemLine) -> bool {
        self.report.subject.is_live && item.lease.as_deref().is_none_or(|lease| lease == "open")
    }
}

/// What was found, and the figures of it in words.
#[derive(Default)]
pub(super) struct PoolFindings {
    pub found: Vec<(Check, Severity, String)>,
    pub figures: String,
}

/// Compares; `sums` are the items over all nodes.
pub(super) fn compare(
    reports: &[AuditReport],
    sums: &BTreeMap<Key, ItemLine>,
    pools: &Pools,
) -> PoolFindings {
    let nodes: Vec<Node<'_>> = reports.iter().map(Node::of).collect();
    let by_key = |pools: &[Pool]| -> BTreeMap<Key, Pool> {
        pools.iter().map(|p| ((p.sale.clone(), p.sku.clone()), p.clone())).collect()
    };
    let (before, after) = (by_key(&pools.before), by_key(&pools.after));
    let mut all = PoolFindings::default();
    for (key, pool) in &before {
        for node in &nodes {
            if let Some(item) = node.items.get(key) {
                all.check_told(pool, node, item);
            }
        }
    }
    let (mut still, mut free) = (0, 0);
    for (key, pool) in &after {
        let Some(sum) = sums.get(key) else {
            all.violation(Check::I1, pool, "no node knows the item");
            continue;
        };
        if !pool.is_open {
            let why = "the pool is shut, it waits for journals to report";
            all.find(Check::I2, Severity::Warning, pool, why);
            continue;
        }
        let is_still = before.get(key) == Some(pool);
        still += u64::from(is_still);
        free += pool.free;
        for node in &nodes {
            if let Some(item) = node.items.get(key) {
                all.check_granted(pool, node, item, is_still);
            }
        }
        all.check_alone(pool);
        if is_still {
            let are_in_touch = nodes
                .iter()
                .all(|node| node.items.get(key).is_none_or(|item| node.is_in_touch(item)));
            all.check_still(pool, sum, are_in_touch);
        }
    }
    for key in sums.keys().filter(|key| !after.contains_key(key)) {
        let pool = Pool { sale: key.0.clone(), sku: key.1.clone(), ..Pool::default() };
        all.find(Check::I1, Severity::Warning, &pool, "there is no pool of it");
    }
    all.figures = format!(
        "; {} free in {}, {} of them at rest",
        grouped(free),
        counted(after.len() as u64, "pool", "pools"),
        grouped(still)
    );
    all
}

impl PoolFindings {
    fn find(&mut self, check: Check, severity: Severity, of: &Pool, why: impl AsRef<str>) {
        let sentence = format!("{}/{}: {}", of.sale, of.sku, why.as_ref());
        self.found.push((check, severity, sentence));
    }

    fn violation(&mut self, check: Check, of: &Pool, why: impl AsRef<str>) {
        self.find(check, Severity::Violation, of, why);
    }

    /// What the pool had been told when the audit began: the journal has all of it.
    fn check_told(&mut self, pool: &Pool, node: &Node<'_>, item: &ItemLine) {
        let journal = node.journal();
        if pool.epoch == item.epoch && pool.epoch > 0 && pool.server != item.server {
            let why = format!(
                "epoch {} is server {:.8}'s in the pool, and {:.8}'s in journal {journal}",
                pool.epoch, pool.server, item.server
            );
            self.violation(Check::I1, pool, why);
        }
        let Some(told) = pool.journals.get(journal) else { return };
        if told.incarnation > u64::from(node.report.subject.incarnation) {
            let why = format!(
                "start {} of journal {journal} is known to the pool, its last here is {}: another \
                 copy of it was started",
                told.incarnation, node.report.subject.incarnation
            );
            self.violation(Check::Journal, pool, why);
        }
        if told.epoch > item.epoch {
            let why = format!(
                "journal {journal} joined epoch {} without a record of it, its newest is {}",
                told.epoch, item.epoch
            );
            self.violation(Check::I1, pool, why);
        }
        if told.accepted > item.granted || told.returned > item.returned {
            let why = format!(
                "journal {journal} told the pool of {} accepted and {} returned units, and has {} \
                 and {}: it is an old copy",
                told.accepted, told.returned, item.granted, item.returned
            );
            self.violation(Check::I1, pool, why);
        }
        // Some were forgotten since: nothing adds up any more, and the sale is long over.
        let Some(reversed) = item.reversed else { return };
        let settled = item.confirmed + item.retired + reversed;
        if told.confirmed > settled || told.reversed > reversed {
            let why = format!(
                "the pool was told of {} confirmed and {} reversed units of journal {journal}, \
                 which has {settled} and {reversed}",
                told.confirmed, told.reversed
            );
            self.violation(Check::I2, pool, why);
        }
    }

    /// What the open pool has granted when the audit is over covers what the journal had.
    fn check_granted(&mut self, pool: &Pool, node: &Node<'_>, item: &ItemLine, is_still: bool) {
        let journal = node.journal();
        let of = pool.journals.get(journal).copied().unwrap_or_default();
        let must_match = is_still && node.is_in_touch(item);
        let is_same = (of.granted, of.returned) == (item.granted, item.returned);
        if of.granted < item.granted || must_match && !is_same {
            let why = format!(
                "the pool granted journal {journal} {} units and had {} back, the journal says {} \
                 and {}",
                of.granted, of.returned, item.granted, item.returned
            );
            self.violation(Check::I1, pool, why);
        }
        if item.epoch > pool.epoch {
            let why = format!(
                "the pool is open in epoch {}, journal {journal} has recorded epoch {}",
                pool.epoch, item.epoch
            );
            self.violation(Check::I1, pool, why);
        }
        if of.epoch < pool.epoch && item.granted > item.returned {
            let why = format!(
                "the pool is open in epoch {} without journal {journal}, which has {} units of it",
                pool.epoch,
                item.granted - item.returned
            );
            self.violation(Check::I1, pool, why);
        }
        let untold = item.reversed.unwrap_or(0) - of.reversed;
        if must_match && untold > 0 {
            let why = format!("{untold} reversed units of journal {journal} were not told");
            self.violation(Check::I2, pool, why);
        }
    }

    /// A pool adds up by itself.
    fn check_alone(&mut self, pool: &Pool) {
        let out: i64 = pool.journals.values().map(|of| of.granted - of.returned).sum();
        if out > pool.total || pool.free != pool.total - out {
            let (free, total) = (pool.free, pool.total);
            let why = format!("the pool has {free} free and {out} granted of {total}");
            self.violation(Check::I1, pool, why);
        }
        let told: i64 = pool.journals.values().map(|of| of.confirmed - of.reversed).sum();
        if pool.is_sold_out != (told == pool.total && pool.total > 0) || told > pool.total {
            let said = if pool.is_sold_out { "sold out" } else { "not sold out" };
            let why = format!("the pool was told of {told} confirmed of {}: {said}", pool.total);
            self.violation(Check::I2, pool, why);
        }
    }

    /// One item, over the pool, which stood still, and all nodes.
    fn check_still(&mut self, pool: &Pool, sum: &ItemLine, are_in_touch: bool) {
        if pool.total != sum.total {
            let why = format!("the pool's total is {}, its home's {}", pool.total, sum.total);
            // Units are added at home first, and withdrawn from the pool first.
            let is_wrong = are_in_touch || pool.total > sum.total;
            let severity = if is_wrong { Severity::Violation } else { Severity::Warning };
            self.find(Check::I1, severity, pool, why);
        }
        let sold = sum.confirmed + sum.retired;
        let there = pool.free + sum.free + sum.held + sold;
        if there > sum.total || (there < sum.total && are_in_touch) {
            let why = format!(
                "{} in the pool + {} free + {} held + {} confirmed + {} retired are not {}",
                pool.free, sum.free, sum.held, sum.confirmed, sum.retired, sum.total
            );
            self.violation(Check::I2, pool, why);
        }
        if are_in_touch && sold == sum.total && sold > 0 && !pool.is_sold_out {
            let why = format!("all {sold} units are confirmed, and the pool does not know it");
            self.violation(Check::I2, pool, why);
        }
    }
}
