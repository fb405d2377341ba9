//! The file of accepted redemptions, held against the store alone: for scripts, once the node is
//! stopped and the store has caught up.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use serde::Deserialize;

use crate::check::CheckError;
use crate::check::store::{Id, Row, Store, parse_id, rows_of_sale};
use crate::work::accepted::{Finding, Findings};

/// A line of the file, as `work::accepted` writes it.
#[derive(Deserialize)]
struct Line {
    key: String,
    member: String,
    id: String,
    sale: String,
    sku: String,
    quantity: u32,
    points: u64,
    state: String,
}

/// Looks up every line in the database shards. How many lines there were, and what is
/// wrong.
pub fn check(file: &Path, store: &Store) -> Result<(u64, Findings), CheckError> {
    let wrong = |line: usize, detail: String| CheckError::File {
        path: format!("{}:{line}", file.display()),
        detail,
    };
    let open = File::open(file).map_err(|e| wrong(0, e.to_string()))?;
    let mut sales: HashMap<String, HashMap<Id, Row>> = HashMap::new();
    let mut findings = Findings::default();
    let mut count = 0;
    for (number, text) in (1..).zip(BufReader::new(open).lines()) {
        let text = text.map_err(|e| wrong(number, e.to_string()))?;
        let line: Line = serde_json::from_str(&text).map_err(|e| wrong(number, e.to_string()))?;
        count += 1;
        if !sales.contains_key(&line.sale) {
            sales.insert(line.sale.clone(), rows_of_sale(store, &line.sale)?);
        }
        let row = parse_id(&line.id).and_then(|id| sales[&line.sale].get(&id));
        if let Some((kind, what)) = line.differs(row) {
            let text = format!("member {}, key {}, {}: {what}", line.member, line.key, line.id);
            findings.push(Finding { kind, text });
        }
    }
    Ok((count, findings))
}

impl Line {
    fn differs(&self, row: Option<&Row>) -> Option<(&'static str, String)> {
        let Some(row) = row else { return Some(("lost", "not in the database shards".into())) };
        let same = row.member.to_string() == self.member
            && (&*row.sku, row.quantity, row.points) == (&*self.sku, self.quantity, self.points);
        let may_be: &[&str] = match &*self.state {
            "confirmed" => &["confirmed", "reversed"],
            "released" => &["cancelled"],
            "held" => &["held", "expired"],
            _ => &["held", "confirmed", "cancelled", "expired", "reversed"],
        };
        (!same || !may_be.contains(&row.state)).then(|| {
            let text = format!(
                "told {} of {} for {} points, {}; stored is member {}, {} of {} for {}, {}",
                self.quantity,
                self.sku,
                self.points,
                self.state,
                row.member,
                row.quantity,
                row.sku,
                row.points,
                row.state
            );
            ("store-differs", text)
        })
    }
}
