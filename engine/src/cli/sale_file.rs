//! A sale in a TOML file. Whatever is wrong with it is told with its line.

use serde::Deserialize;
use thiserror::Error;
use toml::Spanned;

use crate::kernel::definition::{DefinitionError, Fault, ItemDefinition, Place, SaleDefinition};
use crate::units::{NodeTime, Points, Quantity};

/// Why a file is no sale's, and the line that it says so in, from 1.
#[derive(Error, Clone, PartialEq, Eq, Debug)]
#[error("{message}")]
pub struct FileError {
    pub line: usize,
    pub message: String,
}

/// The file, each value with where it stands.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SaleFile {
    id: Spanned<String>,
    name: Spanned<String>,
    opens_at: Spanned<toml::Value>,
    closes_at: Spanned<toml::Value>,
    hold_ttl_ms: Spanned<u64>,
    items: Vec<ItemFile>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ItemFile {
    sku: Spanned<String>,
    name: Spanned<String>,
    points: Spanned<Points>,
    stock: Spanned<Quantity>,
    limit_per_member: Spanned<Quantity>,
    eligible: Option<Vec<Spanned<String>>>,
}

/// Reads a sale's definition, and checks all of it that can be checked without a node.
pub fn parse(text: &str) -> Result<SaleDefinition, FileError> {
    let file: SaleFile = toml::from_str(text).map_err(|error| FileError {
        line: line_of(text, error.span().map_or(0, |span| span.start)),
        message: error.message().lines().collect::<Vec<_>>().join(" "),
    })?;
    let sale = SaleDefinition {
        id: file.id.get_ref().clone(),
        name: file.name.get_ref().clone(),
        opens_at: time(text, "opens_at", &file.opens_at)?,
        closes_at: time(text, "closes_at", &file.closes_at)?,
        hold_ttl_ms: *file.hold_ttl_ms.get_ref(),
        items: file.items.iter().map(ItemFile::definition).collect(),
    };
    match sale.check() {
        Ok(_) => Ok(sale),
        Err(fault) => Err(FileError {
            line: line_of(text, file.offset_of(&fault)),
            message: fault.1.to_string(),
        }),
    }
}

impl ItemFile {
    fn definition(&self) -> ItemDefinition {
        let of = |list: &Vec<Spanned<String>>| list.iter().map(|e| e.get_ref().clone()).collect();
        ItemDefinition {
            sku: self.sku.get_ref().clone(),
            name: self.name.get_ref().clone(),
            points: *self.points.get_ref(),
            stock: *self.stock.get_ref(),
            limit_per_member: *self.limit_per_member.get_ref(),
            eligible: self.eligible.as_ref().map(of),
        }
    }
}

impl SaleFile {
    /// Where in the text the value at fault begins.
    fn offset_of(&self, (place, error): &Fault) -> usize {
        match place {
            Place::Sale("name") => self.name.span().start,
            Place::Sale("closes_at") => self.closes_at.span().start,
            Place::Sale("hold_ttl_ms") => self.hold_ttl_ms.span().start,
            Place::Sale(_) => self.id.span().start,
            Place::Item(index, field) => {
                let item = &self.items[*index];
                match (*field, error) {
                    ("name", _) => item.name.span().start,
                    ("points", _) => item.points.span().start,
                    ("limit_per_member", _) => item.limit_per_member.span().start,
                    ("eligible", DefinitionError::Eligible { entry, .. }) => {
                        let entries = item.eligible.iter().flatten();
                        let found = entries.clone().find(|e| e.get_ref() == entry);
                        found.unwrap_or(&item.sku).span().start
                    }
                    _ => item.sku.span().start,
                }
            }
        }
    }
}

/// A time as TOML has it, or as a string; RFC 3339 either way.
fn time(text: &str, field: &str, value: &Spanned<toml::Value>) -> Result<NodeTime, FileError> {
    let written = match value.get_ref() {
        toml::Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let at: Option<jiff::Timestamp> = written.parse().ok();
    let ms = at.and_then(|at| u64::try_from(at.as_millisecond()).ok());
    ms.map(NodeTime::new).ok_or_else(|| FileError {
        line: line_of(text, value.span().start),
        message: format!("{field} is no time since 1970, like 2026-03-01T10:00:00Z: {written}"),
    })
}

fn line_of(text: &str, offset: usize) -> usize {
    1 + text.bytes().take(offset).filter(|byte| *byte == b'\n').count()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"id = "s"
name = "S"
opens_at = 2026-03-01T10:00:00Z
closes_at = "2026-03-01T11:00:00+00:00"
hold_ttl_ms = 5000
[[items]]
sku = "cup"
name = "Cup"
points = 1
stock = 5
limit_per_member = 1
eligible = [
  "1-9",
  "12",
]
[[items]]
sku = "pen"
name = "Pen"
points = 1
stock = 5
limit_per_member = 1
"#;

    #[test]
    fn a_sale_is_read_with_its_times_in_either_form() {
        let sale = parse(GOOD).unwrap();
        assert_eq!(sale.closes_at.get() - sale.opens_at.get(), 3_600_000);
        assert_eq!(sale.items[0].eligible.as_deref().unwrap().len(), 2);
        assert_eq!((sale.items.len(), sale.items[1].eligible.as_ref()), (2, None));
    }

    #[test]
    fn whatever_is_wrong_is_told_with_its_line() {
        for (good, bad, line, word) in [
            ("name = \"S\"", "name = ", 2, "string"),
            ("\"s\"", "\"a b\"", 1, "sale id"),
            ("\"s\"", "7", 1, "string"),
            ("name = \"S\"", "name = \"\"", 2, "name of s"),
            ("2026-03-01T10:00:00Z", "2026-03-01T10:00:00", 3, "opens_at"),
            ("2026-03-01T10:00:00Z", "true", 3, "opens_at"),
            ("2026-03-01T11:00:00+00:00", "1960-01-01T00:00:00Z", 4, "closes_at"),
            ("2026-03-01T11", "2026-03-01T09", 4, "later than opens_at"),
            ("hold_ttl_ms = 5000", "hold_ttl_ms = 0", 5, "hold_ttl_ms is 0"),
            ("hold_ttl_ms = 5000", "hold_ttl = 5000", 5, "unknown field"),
            ("stock = 5\nlimit_per_member = 1\ne", "stock = -5\nlimit_per_member = 1\ne", 10, "-5"),
            ("points = 1\nstock = 5\nl", "points = 1.5\nstock = 5\nl", 9, "1.5"),
            ("stock = 5\n", "stock = 5\nstock = 6\n", 11, "duplicate key"),
            ("\"12\"", "\"12-x\"", 14, "12-x"),
            ("\"12\"", "12", 14, "integer"),
            ("\"pen\"", "\"cup\"", 17, "two items are called cup"),
            ("\"pen\"", "\"p/n\"", 17, "p/n"),
            ("\"Pen\"", "\"\"", 18, "name of pen"),
            ("sku = \"pen\"\n", "", 16, "missing field `sku`"),
        ] {
            assert!(GOOD.contains(good), "{good}");
            let error = parse(&GOOD.replacen(good, bad, 1)).unwrap_err();
            assert!(error.message.contains(word), "{bad}: {error}");
            assert_eq!(error.line, line, "{bad}: {error}");
        }
        let last = GOOD.replace("limit_per_member = 1\n", "limit_per_member = 0\n");
        assert_eq!(parse(&last).unwrap_err().line, 11);
        let dear = GOOD.replace("points = 1", "points = 9223372036854775807");
        assert_eq!(parse(&dear).unwrap_err().line, 9);
        let none = GOOD.split_once("[[items]]").unwrap().0.to_owned() + "items = []\n";
        assert_eq!(parse(&none).unwrap_err().message, "0 items: a sale has 1 to 1000");
    }
}
