//! What a sale is defined as: its canonical JSON, and the checks before it may become a sale.

use std::collections::HashSet;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;

use super::catalog::{ItemRule, SalePhase, SaleRule};
use crate::units::{MemberId, NodeTime, Points, Quantity, SaleIndex};

/// Items of one sale.
pub const ITEMS_MAX: usize = 1000;
/// Bytes of a sale's id, or of a SKU.
pub const ID_LEN_MAX: usize = 64;
/// Bytes of a name.
pub const NAME_LEN_MAX: usize = 200;
/// One day. Units: milliseconds.
pub const HOLD_TTL_MS_MAX: u64 = 24 * 3600 * 1000;
/// Bytes of the canonical form, so that its record fits.
pub const DEFINITION_LEN_MAX: usize = 500 * 1024;

/// A sale as an operator writes it, and as its record holds it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SaleDefinition {
    pub id: String,
    pub name: String,
    /// RFC 3339.
    #[serde(with = "rfc3339")]
    pub opens_at: NodeTime,
    /// RFC 3339.
    #[serde(with = "rfc3339")]
    pub closes_at: NodeTime,
    pub hold_ttl_ms: u64,
    pub items: Vec<ItemDefinition>,
}

/// One SKU on offer.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ItemDefinition {
    pub sku: String,
    pub name: String,
    pub points: Points,
    /// The first total. Units: units of stock.
    pub stock: Quantity,
    pub limit_per_member: Quantity,
    /// Member ids (`"7"`) and inclusive ranges (`"1000-1999"`); absent: everybody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eligible: Option<Vec<String>>,
}

/// Why a definition is none.
#[derive(Error, Clone, PartialEq, Eq, Debug)]
pub enum DefinitionError {
    #[error("{field} \"{value}\" is not 1 to 64 characters of A-Z a-z 0-9 . _ -")]
    Id { field: &'static str, value: String },
    #[error("the name of {of} is empty or longer than {NAME_LEN_MAX} bytes")]
    Name { of: String },
    #[error("closes_at must be later than opens_at")]
    Times,
    #[error("hold_ttl_ms is {0}, not 1 to {HOLD_TTL_MS_MAX}")]
    HoldTtl(u64),
    #[error("{0} items: a sale has 1 to {ITEMS_MAX}")]
    ItemCount(usize),
    #[error("two items are called {0}")]
    SkuTwice(String),
    #[error("item {sku} costs {points} points, more than {}", Points::MAX)]
    Price { sku: String, points: Points },
    #[error("item {0} has a limit_per_member of 0: nobody could have it")]
    Limit(String),
    #[error("item {sku}: \"{entry}\" is neither a member id nor a range of them")]
    Eligible { sku: String, entry: String },
    #[error("the definition takes {0} bytes, more than {DEFINITION_LEN_MAX}: shorten `eligible`")]
    TooLong(usize),
    #[error("not a sale's definition: {0}")]
    Json(String),
}

/// Where in a definition a fault lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// A field of the sale.
    Sale(&'static str),
    /// A field of an item, by its index.
    Item(usize, &'static str),
}

/// A fault, and where it lies.
pub type Fault = (Place, DefinitionError);

/// What the checks have made of a definition.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Checked {
    canonical: String,
    eligible: Vec<Option<Ranges>>,
}

/// A definition that has passed every check.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ValidSale {
    definition: SaleDefinition,
    canonical: String,
    eligible: Vec<Option<Ranges>>,
}

/// Sorted inclusive ranges that do not overlap.
type Ranges = Arc<[(MemberId, MemberId)]>;

impl SaleDefinition {
    /// Checks everything that can be said without knowing other sales.
    pub fn validate(self) -> Result<ValidSale, DefinitionError> {
        let Checked { canonical, eligible } = self.check().map_err(|(_, error)| error)?;
        Ok(ValidSale { definition: self, canonical, eligible })
    }

    /// The same, for those who also ask where a fault lies.
    pub fn check(&self) -> Result<Checked, Fault> {
        let of_sale = |field| move |error| (Place::Sale(field), error);
        check_id("sale id", &self.id).map_err(of_sale("id"))?;
        check_name(&self.id, &self.name).map_err(of_sale("name"))?;
        if self.opens_at >= self.closes_at {
            return Err((Place::Sale("closes_at"), DefinitionError::Times));
        }
        if self.hold_ttl_ms == 0 || self.hold_ttl_ms > HOLD_TTL_MS_MAX {
            return Err((Place::Sale("hold_ttl_ms"), DefinitionError::HoldTtl(self.hold_ttl_ms)));
        }
        if self.items.is_empty() || self.items.len() > ITEMS_MAX {
            return Err((Place::Sale("items"), DefinitionError::ItemCount(self.items.len())));
        }
        let mut skus = HashSet::new();
        let mut eligible = Vec::with_capacity(self.items.len());
        for (index, item) in self.items.iter().enumerate() {
            let of_item = |field| move |error| (Place::Item(index, field), error);
            check_id("sku", &item.sku).map_err(of_item("sku"))?;
            if !skus.insert(item.sku.as_str()) {
                return Err(of_item("sku")(DefinitionError::SkuTwice(item.sku.clone())));
            }
            check_name(&item.sku, &item.name).map_err(of_item("name"))?;
            if item.points > Points::MAX {
                let (sku, points) = (item.sku.clone(), item.points);
                return Err(of_item("points")(DefinitionError::Price { sku, points }));
            }
            if item.limit_per_member == Quantity::ZERO {
                let error = DefinitionError::Limit(item.sku.clone());
                return Err(of_item("limit_per_member")(error));
            }
            let ranges = item.eligible.as_deref().map(|list| ranges(item, list)).transpose();
            eligible.push(ranges.map_err(of_item("eligible"))?);
        }
        let canonical = serde_json::to_string(self)
            .map_err(|e| (Place::Sale("items"), DefinitionError::Json(e.to_string())))?;
        if canonical.len() > DEFINITION_LEN_MAX {
            return Err((Place::Sale("items"), DefinitionError::TooLong(canonical.len())));
        }
        Ok(Checked { canonical, eligible })
    }
}

impl ValidSale {
    /// Takes a definition back from its canonical form, checking it anew.
    pub fn parse(canonical: &str) -> Result<Self, DefinitionError> {
        let definition: SaleDefinition =
            serde_json::from_str(canonical).map_err(|e| DefinitionError::Json(e.to_string()))?;
        definition.validate()
    }
    pub fn definition(&self) -> &SaleDefinition {
        &self.definition
    }
    /// The one form in which this definition is written down.
    pub fn canonical(&self) -> &str {
        &self.canonical
    }
    /// What a shard's catalog needs, for a sale with this number and state.
    pub fn rules(
        &self,
        sale: SaleIndex,
        phase: SalePhase,
        paused: bool,
    ) -> (SaleRule, Vec<ItemRule>) {
        let rule = SaleRule { phase, paused, hold_ttl_ms: self.definition.hold_ttl_ms };
        let items = self.definition.items.iter().zip(&self.eligible);
        let items = items.map(|(item, eligible)| ItemRule {
            sale,
            price: item.points,
            limit: item.limit_per_member,
            eligible: eligible.clone(),
        });
        (rule, items.collect())
    }
}

fn check_id(field: &'static str, value: &str) -> Result<(), DefinitionError> {
    if is_id(value) { Ok(()) } else { Err(DefinitionError::Id { field, value: value.into() }) }
}

/// Whether the text may name a sale or a SKU: 1 to 64 characters of `[A-Za-z0-9._-]`.
pub fn is_id(value: &str) -> bool {
    let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    !value.is_empty() && value.len() <= ID_LEN_MAX && value.bytes().all(fits)
}

fn check_name(of: &str, name: &str) -> Result<(), DefinitionError> {
    if name.is_empty() || name.len() > NAME_LEN_MAX {
        return Err(DefinitionError::Name { of: of.into() });
    }
    Ok(())
}

/// Sorts an eligibility list, and melts what overlaps or touches.
fn ranges(item: &ItemDefinition, list: &[String]) -> Result<Ranges, DefinitionError> {
    let number = |text: &str| -> Option<u64> {
        (text.bytes().all(|b| b.is_ascii_digit())).then(|| text.parse().ok())?
    };
    let mut sorted = Vec::with_capacity(list.len());
    for entry in list {
        let (first, last) = entry.split_once('-').unwrap_or((entry, entry));
        match (number(first), number(last)) {
            (Some(first), Some(last)) if first <= last => sorted.push((first, last)),
            _ => {
                let (sku, entry) = (item.sku.clone(), entry.clone());
                return Err(DefinitionError::Eligible { sku, entry });
            }
        }
    }
    sorted.sort_unstable();
    let mut melted: Vec<(u64, u64)> = Vec::with_capacity(sorted.len());
    for (first, last) in sorted {
        match melted.last_mut() {
            Some(before) if first <= before.1.saturating_add(1) => before.1 = before.1.max(last),
            _ => melted.push((first, last)),
        }
    }
    Ok(melted.into_iter().map(|(a, b)| (MemberId::new(a), MemberId::new(b))).collect())
}

mod rfc3339 {
    use super::{Deserialize, Deserializer, NodeTime, Serializer};

    #[allow(clippy::trivially_copy_pass_by_ref, reason = "serde's `with` passes a reference")]
    pub fn serialize<S: Serializer>(at: &NodeTime, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&at.rfc3339())
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<NodeTime, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(from)?;
        let at: jiff::Timestamp = text.parse().map_err(serde::de::Error::custom)?;
        u64::try_from(at.as_millisecond())
            .map(NodeTime::new)
            .map_err(|_| serde::de::Error::custom("a time before 1970"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> SaleDefinition {
        serde_json::from_str(
            r#"{"id":"sale-1","name":"Spring","opens_at":"2026-03-01T10:00:00+01:00",
                "closes_at":"2026-03-01T11:00:00Z","hold_ttl_ms":60000,
                "items":[{"sku":"mug","name":"Mug","points":100,"stock":10,"limit_per_member":1,
                          "eligible":["20-29","7","8","25-40"]}]}"#,
        )
        .unwrap()
    }

    #[test]
    fn the_canonical_form_comes_back_as_itself() {
        let sale = example().validate().unwrap();
        assert!(sale.canonical().contains("\"opens_at\":\"2026-03-01T09:00:00.000Z\""));
        assert_eq!(ValidSale::parse(sale.canonical()), Ok(sale));
    }

    #[test]
    fn eligibility_lists_are_sorted_and_melted() {
        let sale = example().validate().unwrap();
        let range = |a, b| (MemberId::new(a), MemberId::new(b));
        assert_eq!(sale.eligible[0].as_deref(), Some(&[range(7, 8), range(20, 40)][..]));
    }

    #[test]
    fn each_way_to_be_no_sale_is_told() {
        type Spoil = fn(&mut SaleDefinition);
        let spoils: [(&str, Spoil); 11] = [
            ("sale id", |s| s.id = "a b".into()),
            ("sale id", |s| s.id = String::new()),
            ("name of sale-1", |s| s.name = String::new()),
            ("closes_at", |s| s.closes_at = s.opens_at),
            ("hold_ttl_ms is 0", |s| s.hold_ttl_ms = 0),
            ("0 items", |s| s.items.clear()),
            ("two items", |s| s.items.push(s.items[0].clone())),
            ("costs", |s| s.items[0].points = Points::new(Points::MAX.get() + 1)),
            ("limit_per_member", |s| s.items[0].limit_per_member = Quantity::ZERO),
            ("\"9-8\"", |s| s.items[0].eligible = Some(vec!["9-8".into()])),
            ("\"+7\"", |s| s.items[0].eligible = Some(vec!["+7".into()])),
        ];
        for (word, spoil) in spoils {
            let mut definition = example();
            spoil(&mut definition);
            let error = definition.validate().unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
