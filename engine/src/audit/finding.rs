//! Findings: what the auditor says when something does not hold. Values, never panics.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::kernel::record::CONTROL;
use crate::units::{ItemIndex, MemberId, RedemptionId, Seq, Slot};

/// What is checked, in the report's order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Check {
    /// The journal reads to its end: frames, numbers, records, ids, slots.
    Journal,
    /// Units granted to the node ≤ units in the sale.
    I1,
    /// Granted − returned = free + held + confirmed + retired.
    I2,
    /// Every move of points is double entry; ledgers sum to zero; nothing is below zero.
    I3,
    /// Replay of snapshot and journal gives the digest of the state.
    I5,
    /// One remembered request key, one effect.
    I6,
    /// Every durable prefix conserves units by itself.
    I11,
    /// A redemption moves only along its states, once, at its price, within the member's limit.
    Rules,
    /// No redemption begins outside the sale's open time.
    SaleTimes,
    /// Kafka has what the journal has, and nothing else.
    Shipped,
    StoreWatermarks,
    StoreAccounts,
    StoreRedemptions,
    StoreLedger,
    StoreStock,
    StoreSales,
    StoreAdminChanges,
    StoreSlots,
    /// Records the store could not apply: held, never dropped, and never fine.
    StoreDeadLetters,
}

impl Check {
    pub const ALL: [Self; 19] = [
        Self::Journal,
        Self::I1,
        Self::I2,
        Self::I3,
        Self::I5,
        Self::I6,
        Self::I11,
        Self::Rules,
        Self::SaleTimes,
        Self::Shipped,
        Self::StoreWatermarks,
        Self::StoreAccounts,
        Self::StoreRedemptions,
        Self::StoreLedger,
        Self::StoreStock,
        Self::StoreSales,
        Self::StoreAdminChanges,
        Self::StoreSlots,
        Self::StoreDeadLetters,
    ];

    /// As it stands in the report's first column.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Journal => "journal",
            Self::I1 => "I1",
            Self::I2 => "I2",
            Self::I3 => "I3",
            Self::I5 => "I5",
            Self::I6 => "I6",
            Self::I11 => "I11",
            Self::Rules => "rules",
            Self::SaleTimes => "sale times",
            Self::Shipped => "kafka",
            Self::StoreWatermarks => "watermarks",
            Self::StoreAccounts => "accounts",
            Self::StoreRedemptions => "redemptions",
            Self::StoreLedger => "ledger",
            Self::StoreStock => "stock",
            Self::StoreSales => "sales",
            Self::StoreAdminChanges => "admin changes",
            Self::StoreSlots => "slots",
            Self::StoreDeadLetters => "dead letters",
        }
    }

    /// What holds when there is no finding.
    pub const fn title(self) -> &'static str {
        match self {
            Self::Journal => "every record reads, in order, in its slot",
            Self::I1 => "units granted ≤ units in the sale",
            Self::I2 => "granted − returned = free + held + confirmed + retired",
            Self::I3 => "points: every move has two ends, all ledgers sum to zero",
            Self::I5 => "replay gives the state's digest",
            Self::I6 => "one request key, one effect",
            Self::I11 => "every durable prefix conserves units",
            Self::Rules => "redemptions: states, prices and limits",
            Self::SaleTimes => "nothing begins while its sale is not open",
            Self::Shipped => "each record in its partition, none missing, none invented",
            Self::StoreWatermarks => "behind the journal, never ahead of it",
            Self::StoreAccounts => "balances are those of the journal",
            Self::StoreRedemptions => "rows are those of the journal",
            Self::StoreLedger => "two legs per move, zero in sum",
            Self::StoreStock => "rolled-up stock is the sum of its redemptions",
            Self::StoreSales => "sales and items are those of the journal",
            Self::StoreAdminChanges => "who changed what, and why, as in the journal",
            Self::StoreSlots => "counts and checksums of all history, also the deleted",
            Self::StoreDeadLetters => "nothing was set aside",
        }
    }

    pub const fn is_store(self) -> bool {
        matches!(
            self,
            Self::StoreWatermarks
                | Self::StoreAccounts
                | Self::StoreRedemptions
                | Self::StoreLedger
                | Self::StoreStock
                | Self::StoreSales
                | Self::StoreAdminChanges
                | Self::StoreSlots
                | Self::StoreDeadLetters
        )
    }
}

/// Whether a finding fails the audit.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// Worth a person's look; the invariant holds.
    Warning,
    /// The invariant does not hold.
    Violation,
}

/// Where something does not hold: as much of it as is known.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct Where {
    #[serde(default, skip_serializing_if = "Option::is_none", with = "member_text")]
    pub member: Option<MemberId>,
    #[serde(default, skip_serializing_if = "Option::is_none", with = "redemption_text")]
    pub redemption: Option<RedemptionId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub item: Option<ItemIndex>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seq: Option<Seq>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slot: Option<Slot>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub database_shard: Option<u8>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partition: Option<u8>,
}

/// Ids may pass 2^53: they travel as strings.
macro_rules! as_text {
    ($name:ident, $id:ident, $parse:expr) => {
        mod $name {
            use serde::{Deserialize, Deserializer, Serializer, de::Error};

            use crate::units::$id;

            #[expect(clippy::ref_option, reason = "serde's signature")]
            pub fn serialize<S: Serializer>(id: &Option<$id>, to: S) -> Result<S::Ok, S::Error> {
                match id {
                    Some(id) => to.collect_str(id),
                    None => to.serialize_none(),
                }
            }
            pub fn deserialize<'de, D: Deserializer<'de>>(
                from: D,
            ) -> Result<Option<$id>, D::Error> {
                let Some(text) = Option::<String>::deserialize(from)? else { return Ok(None) };
                let parse: fn(&str) -> Option<$id> = $parse;
                parse(&text).map(Some).ok_or_else(|| D::Error::custom("not an id"))
            }
        }
    };
}
as_text!(member_text, MemberId, |text| text.parse().ok().map(MemberId::new));
as_text!(redemption_text, RedemptionId, RedemptionId::parse);

impl Where {
    pub fn seq(seq: Seq) -> Self {
        Self { seq: Some(seq), ..Self::default() }
    }
    pub fn member(member: MemberId) -> Self {
        Self { member: Some(member), slot: Some(Slot::of(member)), ..Self::default() }
    }
    pub fn item(item: ItemIndex) -> Self {
        Self { item: Some(item), ..Self::default() }
    }
    pub fn slot(slot: Slot) -> Self {
        Self { slot: Some(slot), ..Self::default() }
    }
    pub fn redemption(id: RedemptionId) -> Self {
        Self { redemption: Some(id), slot: Some(id.slot()), ..Self::default() }
    }
    pub fn database(shard: u8) -> Self {
        Self { database_shard: Some(shard), ..Self::default() }
    }
    pub fn with_member(self, member: MemberId) -> Self {
        Self { member: Some(member), ..self }
    }
    pub fn with_redemption(self, id: RedemptionId) -> Self {
        Self { redemption: Some(id), ..self }
    }
    pub fn with_item(self, item: ItemIndex) -> Self {
        Self { item: Some(item), ..self }
    }
    pub fn with_seq(self, seq: Seq) -> Self {
        Self { seq: Some(seq), ..self }
    }
    pub fn with_slot(self, slot: Slot) -> Self {
        Self { slot: Some(slot), ..self }
    }
    pub fn with_partition(self, partition: u8) -> Self {
        Self { partition: Some(partition), ..self }
    }
}

impl fmt::Display for Where {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts: Vec<String> = Vec::new();
        let mut part = |name: &str, value: Option<String>| {
            parts.extend(value.map(|value| format!("{name} {value}")));
        };
        part("database shard", self.database_shard.map(|d| d.to_string()));
        part("partition", self.partition.map(|p| p.to_string()));
        part("member", self.member.map(|m| m.to_string()));
        part("redemption", self.redemption.map(|id| id.to_string()));
        part("item", self.item.map(|i| i.to_string()));
        let slot = self.slot.filter(|_| self.member.is_none() && self.redemption.is_none());
        part("slot", slot.map(|s| if s == CONTROL { "control".into() } else { s.to_string() }));
        part("seq", self.seq.map(|s| s.to_string()));
        f.write_str(&parts.join(", "))
    }
}

/// One thing that does not hold.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Finding {
    pub check: Check,
    pub severity: Severity,
    #[serde(rename = "where")]
    pub at: Where,
    /// What is and what should be, for a person.
    pub sentence: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = self.at.to_string();
        let colon = if at.is_empty() { "" } else { ": " };
        write!(f, "{}: {at}{colon}{}", self.check.label(), self.sentence)
    }
}

/// Findings of one check that are kept with their sentence; all are counted.
pub const FINDINGS_KEPT_MAX: usize = 1_000;

/// All findings of an audit, bounded in memory.
#[derive(Default, Debug)]
pub struct Findings {
    kept: Vec<Finding>,
    counts: BTreeMap<Check, Counts>,
}

#[derive(Clone, Copy, Default, Debug)]
struct Counts {
    violations: u64,
    warnings: u64,
}

impl Findings {
    pub fn violation(&mut self, check: Check, at: Where, sentence: impl Into<String>) {
        self.add(Finding { check, severity: Severity::Violation, at, sentence: sentence.into() });
    }
    pub fn warning(&mut self, check: Check, at: Where, sentence: impl Into<String>) {
        self.add(Finding { check, severity: Severity::Warning, at, sentence: sentence.into() });
    }
    pub fn add(&mut self, finding: Finding) {
        let counts = self.counts.entry(finding.check).or_default();
        let count = match finding.severity {
            Severity::Violation => &mut counts.violations,
            Severity::Warning => &mut counts.warnings,
        };
        *count += 1;
        if *count <= FINDINGS_KEPT_MAX as u64 {
            self.kept.push(finding);
        }
    }
    pub fn absorb(&mut self, other: Self) {
        for (check, counts) in other.counts {
            let mine = self.counts.entry(check).or_default();
            mine.violations += counts.violations;
            mine.warnings += counts.warnings;
        }
        self.kept.extend(other.kept);
    }
    pub fn violations(&self, check: Check) -> u64 {
        self.counts.get(&check).map_or(0, |c| c.violations)
    }
    pub fn warnings(&self, check: Check) -> u64 {
        self.counts.get(&check).map_or(0, |c| c.warnings)
    }
    pub fn has_violation(&self) -> bool {
        self.counts.values().any(|c| c.violations > 0)
    }
    pub fn of(&self, check: Check) -> impl Iterator<Item = &Finding> {
        self.kept.iter().filter(move |f| f.check == check)
    }
    pub fn iter(&self) -> impl Iterator<Item = &Finding> {
        self.kept.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_reads_as_a_sentence_with_its_place() {
        let mut findings = Findings::default();
        let at = Where::member(MemberId::new(42)).with_seq(Seq::new(7));
        findings.violation(Check::I3, at, "free is 5, should be 4");
        let finding = findings.of(Check::I3).next().unwrap();
        assert_eq!(finding.to_string(), "I3: member 42, seq 7: free is 5, should be 4");
        let json = serde_json::to_value(finding).unwrap();
        assert_eq!(json["where"]["member"], "42");
        assert_eq!(json["where"]["seq"], 7);
        assert_eq!(json["severity"], "violation");
    }

    #[test]
    fn all_findings_are_counted_and_a_bounded_number_is_kept() {
        let mut findings = Findings::default();
        for _ in 0..FINDINGS_KEPT_MAX + 10 {
            findings.violation(Check::I2, Where::default(), "no");
        }
        findings.warning(Check::I2, Where::default(), "hm");
        assert_eq!(findings.violations(Check::I2), FINDINGS_KEPT_MAX as u64 + 10);
        assert_eq!(findings.iter().count(), FINDINGS_KEPT_MAX + 1);
        assert_eq!(findings.warnings(Check::I2), 1);
    }

    #[test]
    fn every_check_stands_in_the_report_once() {
        assert!(Check::ALL.windows(2).all(|w| w[0] < w[1]));
    }
}
