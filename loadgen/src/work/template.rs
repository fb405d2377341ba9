//! Texts with places to fill in: `{{column}}` from a row of data, `{{number}}`, `{{random}}`.
//!
//! Compiled once; filling in appends bytes and allocates nothing.

use thiserror::Error;

use crate::plan::Data;
use crate::random::Random;

/// A compiled text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    pieces: Vec<Piece>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Text(Vec<u8>),
    Column(usize),
    /// The request's number in the run.
    Number,
    /// A number that depends on the seed and the request's number alone.
    Random,
}

/// How values are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Escape {
    No,
    /// Percent-encoded, whatever is not unreserved in a URL.
    Percent,
}

/// A place that nothing fills.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum BadTemplate {
    #[error("{{{{ without }}}}")]
    Open,
    #[error("{{{{{name}}}}}: no such column, nor `number` or `random` (columns: {columns})")]
    Unknown { name: String, columns: String },
}

/// What a request fills in.
#[derive(Clone, Copy, Debug)]
pub struct Values<'a> {
    pub row: &'a [String],
    pub number: u64,
    pub random: u64,
}

impl Template {
    pub fn parse(text: &[u8], columns: &[String]) -> Result<Self, BadTemplate> {
        let mut pieces = Vec::new();
        let mut rest = text;
        while let Some(at) = memchr::memmem::find(rest, b"{{") {
            let (before, after) = (&rest[..at], &rest[at + 2..]);
            let end = memchr::memmem::find(after, b"}}").ok_or(BadTemplate::Open)?;
            let name = String::from_utf8_lossy(&after[..end]).trim().to_owned();
            pieces.push(Piece::Text(before.to_vec()));
            pieces.push(match (columns.iter().position(|c| *c == name), &*name) {
                (Some(column), _) => Piece::Column(column),
                (None, "number") => Piece::Number,
                (None, "random") => Piece::Random,
                (None, _) => {
                    return Err(BadTemplate::Unknown { name, columns: columns.join(", ") });
                }
            });
            rest = &after[end + 2..];
        }
        pieces.push(Piece::Text(rest.to_vec()));
        pieces.retain(|p| !matches!(p, Piece::Text(t) if t.is_empty()));
        Ok(Self { pieces })
    }

    /// Whether every request has the same text.
    pub fn is_constant(&self) -> bool {
        self.pieces.iter().all(|p| matches!(p, Piece::Text(_)))
    }

    /// The columns it uses.
    pub fn columns(&self) -> impl Iterator<Item = usize> {
        self.pieces.iter().filter_map(|p| match p {
            Piece::Column(column) => Some(*column),
            _ => None,
        })
    }

    pub fn write(&self, out: &mut Vec<u8>, values: Values<'_>, escape: Escape) {
        let mut digits = itoa::Buffer::new();
        for piece in &self.pieces {
            match piece {
                Piece::Text(text) => out.extend_from_slice(text),
                Piece::Number => out.extend_from_slice(digits.format(values.number).as_bytes()),
                Piece::Random => out.extend_from_slice(digits.format(values.random).as_bytes()),
                Piece::Column(column) => {
                    let value = values.row.get(*column).map_or("", |v| v).as_bytes();
                    match escape {
                        Escape::No => out.extend_from_slice(value),
                        Escape::Percent => percent(out, value),
                    }
                }
            }
        }
    }
}

fn percent(out: &mut Vec<u8>, value: &[u8]) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    for &b in value {
        if b.is_ascii_alphanumeric() || b"-._~".contains(&b) {
            out.push(b);
        } else {
            out.extend_from_slice(&[b'%', HEX[usize::from(b >> 4)], HEX[usize::from(b & 15)]]);
        }
    }
}

impl Data {
    /// The row of the request with this number: in turns, or by chance.
    pub fn row(&self, number: u64, is_random: bool, seed: u64) -> &[String] {
        if self.rows.is_empty() {
            return &[];
        }
        let count = self.rows.len() as u64;
        let at = if is_random {
            Random::of_request(seed ^ 0xDA7A, number).below(count)
        } else {
            number % count
        };
        &self.rows[at as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn columns() -> Vec<String> {
        vec!["user".into(), "city".into()]
    }

    fn fill(text: &str, row: &[&str], escape: Escape) -> String {
        let template = Template::parse(text.as_bytes(), &columns()).unwrap();
        let row: Vec<String> = row.iter().map(|v| (*v).into()).collect();
        let mut out = Vec::new();
        template.write(&mut out, Values { row: &row, number: 7, random: 9 }, escape);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn places_are_filled_and_the_rest_is_left() {
        let text = r#"{"u":"{{user}}","n":{{ number }},"r":{{random}},"c":"{{city}}{{user}}"}"#;
        let filled = fill(text, &["a", "b c"], Escape::No);
        assert_eq!(filled, r#"{"u":"a","n":7,"r":9,"c":"b ca"}"#);
        assert_eq!(
            fill("/x/{{city}}?a={{user}}", &["ü&", "b c"], Escape::Percent),
            "/x/b%20c?a=%C3%BC%26"
        );
        assert!(Template::parse(b"{\"a\":{}}", &columns()).unwrap().is_constant());
    }

    #[test]
    fn a_place_that_nothing_fills_is_refused() {
        assert_eq!(Template::parse(b"a{{user", &columns()), Err(BadTemplate::Open));
        let unknown = Template::parse(b"{{x}}", &columns()).unwrap_err().to_string();
        assert!(unknown.contains("{{x}}") && unknown.contains("user, city"), "{unknown}");
    }
}
