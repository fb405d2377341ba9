//! The audit's result: every invariant with its figures and findings, for a program (JSON) and
//! for a person (a table).
//!
//! # JSON, version 1
//! `verdict` is `pass` or `fail`. `checks` has one entry per invariant, in a fixed order: `check`
//! its name, `state` (`holds`, `warned`, `broken`, or `not-checked`), `checked` how many cases,
//! `figures` a line for people, `violations` and `warnings` counts. `findings` has each kept one
//! with `check`, `severity`, `where` and `sentence`; at most 1,000 of a check and severity.
//! Sums of points are strings. Fields are added, never changed, within a version.

use std::borrow::Cow;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::finding::{Check, Finding, Findings, Severity};
use super::store::ShardFigures;
use crate::units::Seq;

/// The version of the JSON form.
pub const REPORT_VERSION: u32 = 1;
/// Findings of one check that the table shows.
const FINDINGS_SHOWN: usize = 20;

/// What was audited.
#[derive(Clone, Default, Debug, Serialize, Deserialize)]
pub struct Subject {
    /// The data folder, or the node's address.
    pub name: String,
    /// Whether the node was running.
    pub is_live: bool,
    /// Hexadecimal.
    pub journal: String,
    pub incarnation: u32,
    pub first_seq: Seq,
    pub last_seq: Seq,
    /// The snapshot that the audit began from; none: from the first record.
    pub base_snapshot: Option<u64>,
    /// Journals, in hexadecimal, whose rows the databases have too by other nodes' claims: theirs
    /// to audit, and not looked at here.
    #[serde(default)]
    pub others: Vec<String>,
}

/// How a check ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    Holds,
    /// It holds, and something is worth a look.
    Warned,
    Broken,
    /// There was nothing to check it with.
    NotChecked,
}

/// One check.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CheckLine {
    pub check: Check,
    pub title: Cow<'static, str>,
    pub state: State,
    pub checked: u64,
    pub figures: String,
    pub violations: u64,
    pub warnings: u64,
}

/// An item's units.
#[derive(Clone, Default, Debug, Serialize, Deserialize)]
pub struct ItemLine {
    pub sale: String,
    pub sku: String,
    pub total: i64,
    pub granted: i64,
    pub returned: i64,
    pub free: i64,
    pub held: i64,
    pub confirmed: i64,
    pub retired: i64,
    /// Units that were confirmed, and are on sale again; none: some of it is forgotten.
    #[serde(default)]
    pub reversed: Option<i64>,
    /// The newest epoch of the item's pool on record, and its server in hexadecimal; 0: none.
    #[serde(default)]
    pub epoch: u32,
    #[serde(default)]
    pub server: String,
    /// Where a running node stands with a pool that it shares: `open` is in touch with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<String>,
}

/// All points. Units: points, as decimal strings.
#[derive(Clone, Default, Debug, Serialize, Deserialize)]
pub struct PointsLine {
    pub accounts: u64,
    pub issued: String,
    pub free: String,
    pub held: String,
    pub redeemed: String,
}

/// The result.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AuditReport {
    pub version: u32,
    pub verdict: Cow<'static, str>,
    pub subject: Subject,
    pub checks: Vec<CheckLine>,
    pub points: PointsLine,
    pub items: Vec<ItemLine>,
    pub database_shards: Vec<ShardFigures>,
    pub findings: Vec<Finding>,
}

impl AuditReport {
    /// `lines` are the checks that were made: how many cases, and their figures in words.
    pub fn new(
        subject: Subject,
        lines: &[(Check, u64, String)],
        points: PointsLine,
        items: Vec<ItemLine>,
        database_shards: Vec<ShardFigures>,
        findings: &Findings,
    ) -> Self {
        let line = |check: Check| {
            let made = lines.iter().find(|(made, ..)| *made == check);
            let (violations, warnings) = (findings.violations(check), findings.warnings(check));
            let state = match (violations, warnings, made) {
                (0, 0, None) => State::NotChecked,
                (0, 0, Some(_)) => State::Holds,
                (0, _, _) => State::Warned,
                _ => State::Broken,
            };
            let (checked, figures) = made.map_or((0, String::new()), |m| (m.1, m.2.clone()));
            CheckLine {
                check,
                title: check.title().into(),
                state,
                checked,
                figures,
                violations,
                warnings,
            }
        };
        let verdict = if findings.has_violation() { "fail" } else { "pass" };
        Self {
            version: REPORT_VERSION,
            verdict: verdict.into(),
            subject,
            checks: Check::ALL.into_iter().map(line).collect(),
            points,
            items,
            database_shards,
            findings: findings.iter().cloned().collect(),
        }
    }

    pub fn passes(&self) -> bool {
        self.verdict == "pass"
    }
    /// 0: all hold; 1: something does not.
    pub fn exit_code(&self) -> u8 {
        u8::from(!self.passes())
    }
    pub fn json(&self) -> String {
        serde_json::to_string_pretty(self).expect("numbers and text are JSON")
    }
    /// Takes a report back from its JSON form, as a node sent it.
    pub fn parse(json: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(json)
    }
    pub fn line(&self, check: Check) -> &CheckLine {
        self.checks.iter().find(|line| line.check == check).expect("every check has its line")
    }
    pub fn findings_of(&self, check: Check) -> impl Iterator<Item = &Finding> {
        self.findings.iter().filter(move |f| f.check == check)
    }
}

/// 1234567 as `1,234,567`.
pub fn grouped(number: impl fmt::Display) -> String {
    let text = number.to_string();
    let (sign, digits) = text.strip_prefix('-').map_or(("", text.as_str()), |rest| ("-", rest));
    let mut out = String::from(sign);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// One, or many.
pub fn counted(count: u64, one: &str, many: &str) -> String {
    format!("{} {}", grouped(count), if count == 1 { one } else { many })
}

impl fmt::Display for AuditReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write_head(f)?;
        self.write_checks(f)?;
        self.write_items(f)?;
        self.write_findings(f)?;
        writeln!(f)?;
        let broken = self.checks.iter().filter(|line| line.state == State::Broken);
        let names: Vec<_> = broken.map(|line| line.check.label()).collect();
        if names.is_empty() {
            writeln!(f, "PASS")
        } else {
            writeln!(f, "FAIL: {}", names.join(", "))
        }
    }
}

impl AuditReport {
    fn write_head(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let s = &self.subject;
        let mode = if s.is_live { "live" } else { "stopped" };
        writeln!(f, "Audit of {} ({mode})", s.name)?;
        let from = s.base_snapshot.map_or_else(
            || String::from("from the first record"),
            |number| format!("from snapshot {number}"),
        );
        writeln!(
            f,
            "journal {} · incarnation {} · records {} to {} · {from}",
            s.journal,
            s.incarnation,
            grouped(s.first_seq),
            grouped(s.last_seq)
        )?;
        if s.others.is_empty() {
            return Ok(());
        }
        writeln!(
            f,
            "not looked at: rows of {} that other nodes claimed slots with ({}): audit all nodes \
             together",
            counted(s.others.len() as u64, "journal", "journals"),
            s.others.join(" ")
        )
    }

    fn write_checks(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut was_store = None;
        for line in &self.checks {
            if was_store != Some(line.check.is_store()) {
                was_store = Some(line.check.is_store());
                writeln!(f)?;
                writeln!(
                    f,
                    "  {}",
                    if line.check.is_store() { "database shards" } else { "node" }
                )?;
            }
            let mark = match line.state {
                State::Holds => "ok",
                State::Warned => "ok, see below",
                State::Broken => "BROKEN",
                State::NotChecked => "not checked",
            };
            writeln!(f, "  {:<13} {:<14} {}", line.check.label(), mark, line.title)?;
            if !line.figures.is_empty() {
                writeln!(f, "  {:<13} {:<14} {}", "", "", line.figures)?;
            }
        }
        for shard in &self.database_shards {
            writeln!(
                f,
                "  shard {:02}      {} accounts, {} redemptions, {} ledger rows · at {} · \
                 {} behind",
                shard.database_shard,
                grouped(shard.accounts),
                grouped(shard.redemptions),
                grouped(shard.ledger_rows),
                grouped(shard.watermark),
                counted(shard.lag_records, "record", "records"),
            )?;
        }
        Ok(())
    }

    fn write_items(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.items.is_empty() {
            return Ok(());
        }
        let head = ["total", "granted", "returned", "free", "held", "confirmed", "retired"];
        let name = |i: &ItemLine| format!("{} / {}", i.sale, i.sku);
        let width = self.items.iter().map(|i| name(i).chars().count()).max().unwrap_or(0).max(4);
        writeln!(f)?;
        write!(f, "  {:<width$}", "item")?;
        head.iter().try_for_each(|title| write!(f, " {title:>11}"))?;
        writeln!(f)?;
        for i in &self.items {
            write!(f, "  {:<width$}", name(i))?;
            let all = [i.total, i.granted, i.returned, i.free, i.held, i.confirmed, i.retired];
            all.iter().try_for_each(|units| write!(f, " {:>11}", grouped(units)))?;
            writeln!(f)?;
        }
        Ok(())
    }

    fn write_findings(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in self.checks.iter().filter(|l| l.violations + l.warnings > 0) {
            writeln!(f)?;
            for finding in self.findings_of(line.check).take(FINDINGS_SHOWN) {
                let mark = if finding.severity == Severity::Violation { "✗" } else { "·" };
                writeln!(f, "  {mark} {finding}")?;
            }
            let hidden = (line.violations + line.warnings).saturating_sub(FINDINGS_SHOWN as u64);
            if hidden > 0 {
                let more = counted(hidden, "finding", "findings");
                writeln!(f, "    and {more} more of {}", line.check.label())?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::finding::Where;
    use crate::units::MemberId;

    #[test]
    fn numbers_are_grouped_by_three() {
        let all = [(0, "0"), (999, "999"), (1000, "1,000"), (-1_234_567, "-1,234,567")];
        for (number, text) in all {
            assert_eq!(grouped(number), text);
        }
    }

    #[test]
    fn a_report_passes_until_a_violation_and_says_which() {
        let lines = [(Check::I3, 5, String::from("5 accounts"))];
        let report = |findings: &Findings| {
            AuditReport::new(
                Subject::default(),
                &lines,
                PointsLine::default(),
                Vec::new(),
                Vec::new(),
                findings,
            )
        };
        let mut findings = Findings::default();
        findings.warning(Check::StoreDeadLetters, Where::database(1), "set aside");
        let passing = report(&findings);
        assert!(passing.passes() && passing.exit_code() == 0);
        assert_eq!(passing.line(Check::StoreDeadLetters).state, State::Warned);
        assert_eq!(passing.line(Check::I5).state, State::NotChecked);
        assert!(passing.to_string().ends_with("\nPASS\n"));
        findings.violation(Check::I3, Where::member(MemberId::new(7)), "lost a point");
        let failing = report(&findings);
        assert_eq!(failing.exit_code(), 1);
        let text = failing.to_string();
        assert!(text.contains("✗ I3: member 7: lost a point"), "{text}");
        assert!(text.ends_with("\nFAIL: I3\n"), "{text}");
        let json: serde_json::Value = serde_json::from_str(&failing.json()).unwrap();
        assert_eq!(json["verdict"], "fail");
        assert_eq!(json["checks"][3]["state"], "broken");
        let back = AuditReport::parse(&failing.json()).unwrap();
        assert_eq!(back.to_string(), text);
    }
}
