//! The audits of all nodes of a mall as one, and what no node can see alone: that together they
//! were granted no more than there is, and that nothing is lost between them and the pool.
//!
//! Each node was looked at in a moment of its own; what that means for the pools, `pools` says.

use std::collections::{BTreeMap, BTreeSet};

use super::finding::{Check, Finding, Severity, Where};
use super::pools::{Key, PoolFindings, Pools, compare, key_of};
use super::report::{AuditReport, CheckLine, ItemLine, PointsLine, State, Subject, grouped};
use super::store::ShardFigures;

/// One report of many. `pools`: where nodes share a stock authority that could be asked.
pub fn together(nodes: Vec<AuditReport>, pools: Option<&Pools>) -> AuditReport {
    let mut all = Together::default();
    let name = format!("{} nodes", nodes.len());
    let journals: BTreeSet<&String> = nodes.iter().map(|node| &node.subject.journal).collect();
    let others: BTreeSet<&String> = nodes.iter().flat_map(|node| &node.subject.others).collect();
    let subject = Subject {
        name,
        others: others.difference(&journals).copied().cloned().collect(),
        is_live: nodes.iter().any(|node| node.subject.is_live),
        journal: nodes.iter().map(|node| &node.subject.journal[..]).collect::<Vec<_>>().join(" "),
        ..Subject::default()
    };
    if journals.len() < nodes.len() {
        all.find(Check::Journal, Severity::Violation, "two of the nodes are of one journal".into());
    }
    // Its rows were hidden from every node's audit, so nobody has looked at them.
    for other in &subject.others {
        let sentence = format!(
            "journal {other} has claimed slots in the databases and is no node's that was audited: \
             its rows were looked at by nobody"
        );
        all.find(Check::StoreSlots, Severity::Violation, sentence);
    }
    let items = sum_items(&nodes);
    match pools {
        Some(pools) => all.check_pools(compare(&nodes, &items, pools)),
        None => all.check_alone(&items, subject.is_live),
    }
    let (points, database_shards) = (sum_points(&nodes), sum_shards(&nodes));
    let mut lines: Vec<CheckLine> = Vec::new();
    for check in Check::ALL {
        lines.push(all.line(check, &nodes));
    }
    let mut findings = all.findings;
    for node in nodes {
        findings.extend(node.findings.into_iter().map(|finding| Finding {
            sentence: format!("node {}: {}", node.subject.name, finding.sentence),
            ..finding
        }));
    }
    let fails = lines.iter().any(|line| line.violations > 0);
    AuditReport {
        version: super::report::REPORT_VERSION,
        verdict: if fails { "fail" } else { "pass" }.into(),
        subject,
        checks: lines,
        points,
        items: items.into_values().collect(),
        database_shards,
        findings,
    }
}

fn sum_items(nodes: &[AuditReport]) -> BTreeMap<Key, ItemLine> {
    let mut sums: BTreeMap<Key, ItemLine> = BTreeMap::new();
    for item in nodes.iter().flat_map(|node| &node.items) {
        let sum = sums.entry(key_of(item)).or_insert_with(|| ItemLine {
            sale: item.sale.clone(),
            sku: item.sku.clone(),
            ..ItemLine::default()
        });
        sum.total += item.total;
        sum.granted += item.granted;
        sum.returned += item.returned;
        sum.free += item.free;
        sum.held += item.held;
        sum.confirmed += item.confirmed;
        sum.retired += item.retired;
    }
    sums
}

fn sum_points(nodes: &[AuditReport]) -> PointsLine {
    let sum = |of: fn(&PointsLine) -> &str| {
        let numbers = nodes.iter().filter_map(|node| of(&node.points).parse::<i128>().ok());
        numbers.sum::<i128>().to_string()
    };
    PointsLine {
        accounts: nodes.iter().map(|node| node.points.accounts).sum(),
        issued: sum(|p| &p.issued),
        free: sum(|p| &p.free),
        held: sum(|p| &p.held),
        redeemed: sum(|p| &p.redeemed),
    }
}

fn sum_shards(nodes: &[AuditReport]) -> Vec<ShardFigures> {
    let mut sums: BTreeMap<u8, ShardFigures> = BTreeMap::new();
    for figures in nodes.iter().flat_map(|node| &node.database_shards) {
        let Some(sum) = sums.get_mut(&figures.database_shard) else {
            sums.insert(figures.database_shard, *figures);
            continue;
        };
        sum.accounts += figures.accounts;
        sum.redemptions += figures.redemptions;
        sum.ledger_rows += figures.ledger_rows;
        sum.ledger_sum += figures.ledger_sum;
        sum.stock_rows += figures.stock_rows;
        sum.sales += figures.sales;
        sum.admin_changes += figures.admin_changes;
        sum.slots += figures.slots;
        sum.dead_letters += figures.dead_letters;
        sum.partitions += figures.partitions;
        sum.lag_records += figures.lag_records;
    }
    sums.into_values().collect()
}

/// What was found over all nodes, beside what each found.
#[derive(Default)]
struct Together {
    findings: Vec<Finding>,
    /// What was compared between nodes and pool, in words.
    pool_figures: String,
}

impl Together {
    fn find(&mut self, check: Check, severity: Severity, sentence: String) {
        self.findings.push(Finding { check, severity, at: Where::default(), sentence });
    }

    /// Without a pool to ask, only a mall that stands still can be summed up.
    fn check_alone(&mut self, items: &BTreeMap<Key, ItemLine>, is_live: bool) {
        for item in items.values() {
            let here = item.granted - item.returned;
            if here > item.total {
                let (severity, hint) = if is_live {
                    (Severity::Warning, "; units may have moved between two looks")
                } else {
                    (Severity::Violation, "")
                };
                let sentence = format!(
                    "{}/{}: the nodes hold or sold {} units of {}{hint}",
                    item.sale,
                    item.sku,
                    grouped(here),
                    grouped(item.total)
                );
                self.find(Check::I1, severity, sentence);
            }
        }
    }

    fn check_pools(&mut self, pools: PoolFindings) {
        for (check, severity, sentence) in pools.found {
            self.find(check, severity, sentence);
        }
        self.pool_figures = pools.figures;
    }

    /// A check over all nodes: their counts, the worst of their states, this one's findings.
    fn line(&self, check: Check, nodes: &[AuditReport]) -> CheckLine {
        let of = |severity| {
            let found = self.findings.iter().filter(|f| (f.check, f.severity) == (check, severity));
            found.count() as u64
        };
        let lines: Vec<&CheckLine> = nodes.iter().map(|node| node.line(check)).collect();
        let violations = of(Severity::Violation) + lines.iter().map(|l| l.violations).sum::<u64>();
        let warnings = of(Severity::Warning) + lines.iter().map(|l| l.warnings).sum::<u64>();
        let is_checked = lines.iter().any(|line| line.state != State::NotChecked);
        let state = match (violations, warnings) {
            (0, 0) if is_checked => State::Holds,
            (0, 0) => State::NotChecked,
            (0, _) => State::Warned,
            _ => State::Broken,
        };
        let mut figures: Vec<String> = Vec::new();
        for (line, node) in lines.iter().zip(nodes) {
            if !line.figures.is_empty() {
                figures.push(format!("{}: {}", node.subject.name, line.figures));
            }
        }
        let mut figures = figures.join(" | ");
        if check == Check::I1 {
            figures.push_str(&self.pool_figures);
        }
        CheckLine {
            check,
            title: check.title().into(),
            state,
            checked: lines.iter().map(|line| line.checked).sum(),
            figures,
            violations,
            warnings,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::Findings;
    use super::super::pools::{Pool, PoolJournal};
    use super::*;

    fn item(total: i64, granted: i64, returned: i64, confirmed: i64) -> ItemLine {
        ItemLine {
            sale: "s".into(),
            sku: "cup".into(),
            total,
            granted,
            returned,
            free: granted - returned - confirmed,
            confirmed,
            reversed: Some(0),
            epoch: 2,
            server: "f0".into(),
            ..ItemLine::default()
        }
    }

    fn node(journal: &str, item: ItemLine) -> AuditReport {
        let subject = Subject {
            name: journal.into(),
            is_live: true,
            journal: journal.into(),
            ..Subject::default()
        };
        let points = PointsLine {
            accounts: 2,
            issued: "-5".into(),
            free: "3".into(),
            held: "0".into(),
            redeemed: "2".into(),
        };
        AuditReport::new(subject, &[], points, vec![item], Vec::new(), &Findings::default())
    }

    fn pool(total: i64, of_a: (i64, i64), of_b: (i64, i64)) -> Pool {
        let out = of_a.0 - of_a.1 + of_b.0 - of_b.1;
        let of = |(granted, returned)| PoolJournal {
            epoch: 2,
            granted,
            returned,
            ..PoolJournal::default()
        };
        Pool {
            sale: "s".into(),
            sku: "cup".into(),
            is_open: true,
            epoch: 2,
            server: "f0".into(),
            total,
            free: total - out,
            is_sold_out: false,
            journals: [("a".into(), of(of_a)), ("b".into(), of(of_b))].into(),
        }
    }

    fn still(pool: Pool) -> Pools {
        Pools { before: vec![pool.clone()], after: vec![pool] }
    }

    fn two() -> Vec<AuditReport> {
        vec![node("a", item(100, 60, 10, 40)), node("b", item(0, 30, 0, 30))]
    }

    #[test]
    fn nodes_and_pool_that_agree_pass_and_are_summed() {
        let report = together(two(), Some(&still(pool(100, (60, 10), (30, 0)))));
        assert!(report.passes(), "{report}");
        assert_eq!((report.items[0].total, report.items[0].confirmed), (100, 70));
        assert_eq!((report.points.accounts, &report.points.issued[..]), (4, "-10"));
    }

    #[test]
    fn a_journal_that_only_the_databases_know_is_found() {
        let two = || {
            let mut nodes = two();
            nodes[0].subject.others = vec!["b".into()];
            nodes[1].subject.others = vec!["a".into()];
            nodes
        };
        let report = together(two(), None);
        assert!(report.passes() && report.subject.others.is_empty(), "{report}");
        // One node says so, or all do: it is one violation.
        for saying in [1, 2] {
            let mut nodes = two();
            for node in &mut nodes[..saying] {
                node.subject.others.push("forged".into());
            }
            let report = together(nodes, None);
            assert_eq!(report.line(Check::StoreSlots).violations, 1, "{report}");
            assert_eq!(
                (report.passes(), &report.subject.others[..]),
                (false, &["forged".into()][..])
            );
        }
        // And so is a node that was left out.
        assert!(!together(two().split_off(1), None).passes());
    }

    #[test]
    fn each_disagreement_is_found() {
        let broken = |nodes, pools: Pools, check| {
            let report = together(nodes, Some(&pools));
            assert_eq!(report.line(check).state, State::Broken, "{report}");
        };
        // A node accepted more than it was granted.
        broken(two(), still(pool(100, (59, 10), (30, 0))), Check::I1);
        // A unit was given back, and is nowhere.
        broken(two(), still(pool(100, (60, 9), (30, 0))), Check::I1);
        // The pool has another total than its home.
        broken(two(), still(pool(101, (60, 10), (30, 0))), Check::I1);
        // A pool that does not add up by itself.
        let off = Pool { free: 21, ..pool(100, (60, 10), (30, 0)) };
        broken(two(), still(off), Check::I1);
        // More confirmed than there is.
        let oversold = vec![node("a", item(100, 60, 10, 40)), node("b", item(0, 60, 0, 60))];
        broken(oversold, still(pool(100, (60, 10), (60, 0))), Check::I1);
        // One node twice.
        broken(
            vec![node("a", item(1, 0, 0, 0)), node("a", item(0, 0, 0, 0))],
            Pools::default(),
            Check::Journal,
        );
        // Epochs and identities that no journal has recorded.
        let right = || pool(100, (60, 10), (30, 0));
        let other = |change: &dyn Fn(&mut Pool)| {
            let mut pool = right();
            change(&mut pool);
            still(pool)
        };
        let of_b = |change: &dyn Fn(&mut PoolJournal)| {
            other(&|pool| change(pool.journals.get_mut("b").expect("it is there")))
        };
        broken(two(), other(&|pool| pool.epoch = 1), Check::I1);
        broken(two(), other(&|pool| pool.epoch = 3), Check::I1);
        broken(two(), other(&|pool| pool.server = "f1".into()), Check::I1);
        broken(two(), of_b(&|of| of.epoch = 3), Check::I1);
        broken(two(), of_b(&|of| of.epoch = 1), Check::I1);
        broken(two(), of_b(&|of| of.incarnation = 1), Check::Journal);
        // Told what no journal says.
        broken(two(), of_b(&|of| of.accepted = 31), Check::I1);
        broken(two(), of_b(&|of| of.returned = 1), Check::I1);
        broken(two(), of_b(&|of| of.confirmed = 31), Check::I2);
        broken(two(), of_b(&|of| of.reversed = 1), Check::I2);
        // All is sold, and the pool does not know.
        let sold = || vec![node("a", item(70, 40, 0, 40)), node("b", item(0, 30, 0, 30))];
        let all = |confirmed_of_a| {
            let mut pool = pool(70, (40, 0), (30, 0));
            pool.is_sold_out = confirmed_of_a == 40;
            for (journal, confirmed) in [("a", confirmed_of_a), ("b", 30)] {
                pool.journals.get_mut(journal).expect("it is there").confirmed = confirmed;
            }
            still(pool)
        };
        assert!(together(sold(), Some(&all(40))).passes());
        broken(sold(), all(39), Check::I2);
        let mut reversed = sold();
        reversed[0].items[0].confirmed -= 1;
        reversed[0].items[0].free += 1;
        reversed[0].items[0].reversed = Some(1);
        broken(reversed, all(40), Check::I2);
        // Nobody knows what the pool has.
        let other = Pool { sku: "pen".into(), ..pool(1, (0, 0), (0, 0)) };
        broken(two(), still(other), Check::I1);
    }

    #[test]
    fn what_moves_meanwhile_is_no_disagreement() {
        let pools = Pools {
            before: vec![pool(100, (60, 10), (30, 0))],
            after: vec![pool(100, (70, 10), (30, 0))],
        };
        assert!(together(two(), Some(&pools)).passes());
        // Confirmed units are told at leisure, and a node that is out of touch tells nothing.
        let mut nodes = two();
        for node in &mut nodes {
            node.items[0].lease = Some("unreachable".into());
        }
        let late = Pool { total: 99, free: 19, ..pool(99, (60, 10), (30, 0)) };
        assert!(together(nodes.clone(), Some(&still(late))).passes());
        assert!(together(nodes.clone(), Some(&still(pool(100, (61, 10), (30, 0))))).passes());
        assert!(!together(two(), Some(&still(pool(100, (61, 10), (30, 0))))).passes());
        let shut = Pool { is_open: false, ..pool(100, (60, 10), (30, 0)) };
        let report = together(two(), Some(&still(shut)));
        assert_eq!((report.passes(), report.line(Check::I2).state), (true, State::Warned));
    }

    #[test]
    fn without_a_pool_stopped_nodes_hold_no_more_than_there_is() {
        let mut nodes = vec![node("a", item(100, 60, 0, 40)), node("b", item(0, 60, 0, 30))];
        assert!(together(nodes.clone(), None).passes(), "live: units may have moved");
        for node in &mut nodes {
            node.subject.is_live = false;
        }
        assert!(!together(nodes, None).passes());
    }

    #[test]
    fn a_finding_says_of_which_node_it_is() {
        let mut findings = Findings::default();
        findings.violation(Check::I3, Where::default(), "lost a point");
        let bad = AuditReport::new(
            Subject { name: "b".into(), ..Subject::default() },
            &[],
            PointsLine::default(),
            Vec::new(),
            Vec::new(),
            &findings,
        );
        let report = together(vec![node("a", item(0, 0, 0, 0)), bad], None);
        assert!(report.to_string().contains("I3: node b: lost a point"), "{report}");
        assert_eq!(report.exit_code(), 1);
    }
}
