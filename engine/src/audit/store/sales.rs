//! Sales and items: every database shard holds them all, at its own watermark of the control
//! partition.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{CannotCompare, ShardAudit};
use crate::audit::finding::Check;
use crate::audit::run::watermark_in;
use crate::kernel::catalog::SalePhase;
use crate::kernel::control::ControlState;
use crate::kernel::record::{Record, SaleChange};
use crate::persist::rows::{ItemRow, SaleRow, SaleState, StoredSale};
use crate::ship::partition::Partition;
use crate::units::{ItemIndex, JournalId, NodeTime, SaleIndex, Seq};

/// How sales came to stand as they do.
#[derive(Default)]
pub struct SaleHistory {
    /// Of the snapshot that the audit begins from, as of its cut.
    base: Vec<BaseSale>,
    base_cut: Seq,
    defined: BTreeMap<SaleIndex, Defined>,
    /// In the journal's order.
    changed: Vec<(Seq, SaleIndex, SaleState, NodeTime)>,
}

struct BaseSale {
    first_item: ItemIndex,
    definition: String,
    state: SaleState,
}

struct Defined {
    seq: Seq,
    first_item: ItemIndex,
    definition: String,
    at: NodeTime,
}

/// A sale at a watermark; `None`: not known.
struct Then<'a> {
    first_item: ItemIndex,
    definition: &'a str,
    defined_at: Option<NodeTime>,
    state: Option<SaleState>,
    changed_at: Option<NodeTime>,
    /// The record that defined it, where it is known.
    seq: Option<Seq>,
}

impl SaleHistory {
    /// Begins with the sales of a snapshot.
    pub fn begin(&mut self, state: &ControlState, cut: Seq) {
        self.base_cut = cut;
        let base = state.sales().iter().map(|known| BaseSale {
            first_item: known.first_item,
            definition: known.sale.canonical().to_owned(),
            state: match known.phase {
                SalePhase::Ended | SalePhase::KeysDropped => SaleState::Ended,
                _ if known.paused => SaleState::Paused,
                SalePhase::Open => SaleState::Open,
                SalePhase::Scheduled => SaleState::Defined,
            },
        });
        self.base = base.collect();
    }

    pub fn note(&mut self, seq: Seq, record: &Record) {
        match record {
            Record::SaleDefined(r) => {
                let (first_item, definition) = (r.first_item, r.definition.clone());
                self.defined.insert(r.sale, Defined { seq, first_item, definition, at: r.at });
            }
            Record::SaleChanged(r) => {
                let state = match r.change {
                    SaleChange::Opened | SaleChange::Resumed => SaleState::Open,
                    SaleChange::Paused => SaleState::Paused,
                    SaleChange::Ended => SaleState::Ended,
                };
                self.changed.push((seq, r.sale, state, r.at));
            }
            _ => {}
        }
    }

    fn count(&self) -> u32 {
        let highest = self.defined.keys().map(|sale| sale.get() + 1).max().unwrap_or(0);
        highest.max(self.base.len() as u32)
    }

    /// A sale as it stood at a watermark; `None`: it was not defined yet.
    fn at(&self, sale: SaleIndex, watermark: Seq) -> Option<Then<'_>> {
        let of_sale = || self.changed.iter().filter(move |(_, of, ..)| *of == sale);
        let last = of_sale().rev().find(|(seq, ..)| *seq <= watermark);
        let changed = last.map(|(_, _, state, at)| (*state, *at));
        if let Some(defined) = self.defined.get(&sale) {
            if defined.seq > watermark {
                return None;
            }
            let (state, changed_at) = changed.unwrap_or((SaleState::Defined, defined.at));
            return Some(Then {
                first_item: defined.first_item,
                definition: &defined.definition,
                defined_at: Some(defined.at),
                state: Some(state),
                changed_at: Some(changed_at),
                seq: Some(defined.seq),
            });
        }
        let base = self.base.get(sale.get() as usize)?;
        // Between the watermark and the snapshot's cut it may have changed: then what it was
        // before is not known.
        let is_base_then = !of_sale().any(|(seq, ..)| *seq > watermark && *seq <= self.base_cut);
        let state = changed.map(|(state, _)| state).or(is_base_then.then_some(base.state));
        Some(Then {
            first_item: base.first_item,
            definition: &base.definition,
            defined_at: None,
            state,
            changed_at: changed.map(|(_, at)| at),
            seq: None,
        })
    }
}

/// A sale's name and its items, as its definition says them: the auditor's own reading.
fn read_definition(
    journal: JournalId,
    sale: SaleIndex,
    first_item: ItemIndex,
    definition: &str,
) -> Option<(String, String, Vec<ItemRow>)> {
    let json: Value = serde_json::from_str(definition).ok()?;
    let text = |value: &Value, name: &str| Some(value.get(name)?.as_str()?.to_owned());
    let number = |value: &Value, name: &str| value.get(name)?.as_u64();
    let mut items = Vec::new();
    for (place, item) in (first_item.get()..).zip(json.get("items")?.as_array()?) {
        items.push(ItemRow {
            journal,
            item: ItemIndex::new(place),
            sale,
            sku: text(item, "sku")?,
            name: text(item, "name")?,
            points: number(item, "points")?,
            limit_per_member: number(item, "limit_per_member")?,
        });
    }
    Some((text(&json, "id")?, text(&json, "name")?, items))
}

impl ShardAudit<'_> {
    pub(super) fn sales(&mut self) -> Result<(), CannotCompare> {
        let watermark = watermark_in(self.read, self.journal_id, Partition::CONTROL)?;
        let (sales, items) = match (self.read.sales(), self.read.items()) {
            (Ok(sales), Ok(items)) => (sales, items),
            (Err(e), _) | (_, Err(e)) => return Ok(self.or_corrupt(Check::StoreSales, e)?),
        };
        self.figures.sales = (sales.len() + items.len()) as u64;
        let mut sales: BTreeMap<_, _> =
            sales.into_iter().map(|s| ((s.row.journal.get(), s.row.sale), s)).collect();
        let mut items: BTreeMap<_, _> =
            items.into_iter().map(|i| ((i.journal.get(), i.item), i)).collect();
        let (history, journal) = (self.sales, self.journal_id);
        for sale in (0..history.count()).map(SaleIndex::new) {
            let Some(then) = history.at(sale, watermark) else { continue };
            if then.seq.is_some_and(|seq| self.behind.is_set_aside(seq)) {
                sales.remove(&(journal.get(), sale));
                items.retain(|_, item| item.sale != sale);
                continue;
            }
            let read = read_definition(journal, sale, then.first_item, then.definition);
            // The model says of a definition that does not read.
            let Some((id, name, expected)) = read else { continue };
            let found = sales.remove(&(journal.get(), sale));
            self.sale(sale, &then, (id, name), found);
            for item in expected {
                let found = items.remove(&(journal.get(), item.item));
                if let Some(what) = item_difference(&item, found.as_ref()) {
                    let at = self.here().with_item(item.item);
                    self.find(Check::StoreSales, at, format!("item {}: {what}", item.sku));
                }
            }
        }
        for stored in sales.into_values() {
            let sentence = format!("the journal has no such sale: {}", stored.row.id);
            self.find(Check::StoreSales, self.here(), sentence);
        }
        for item in items.into_values() {
            let sentence = format!("the journal has no such item: {}", item.sku);
            self.find(Check::StoreSales, self.here().with_item(item.item), sentence);
        }
        Ok(())
    }

    fn sale(
        &mut self,
        sale: SaleIndex,
        then: &Then<'_>,
        (id, name): (String, String),
        found: Option<StoredSale>,
    ) {
        let here = self.here();
        let Some(StoredSale { row, state, changed_at }) = found else {
            return self.find(Check::StoreSales, here, format!("the row of sale {id} is missing"));
        };
        let expected = SaleRow {
            journal: self.journal_id,
            sale,
            id: id.clone(),
            name,
            defined_at: then.defined_at.unwrap_or(row.defined_at),
            definition: then.definition.to_owned(),
        };
        if row != expected {
            let sentence = format!("sale {id}: id, name, definition or time is not the journal's");
            self.find(Check::StoreSales, here, sentence);
        }
        if let Some(expected) = then.state.filter(|expected| *expected != state) {
            let (found, expected) = (state.name(), expected.name());
            let sentence = format!("sale {id} is {found}, the journal says {expected}");
            self.find(Check::StoreSales, here, sentence);
        }
        if let Some(expected) = then.changed_at.filter(|expected| *expected != changed_at) {
            let (found, expected) = (changed_at.rfc3339(), expected.rfc3339());
            let sentence = format!("sale {id} changed at {found}, the journal says {expected}");
            self.find(Check::StoreSales, here, sentence);
        }
    }
}

fn item_difference(expected: &ItemRow, found: Option<&ItemRow>) -> Option<String> {
    let Some(found) = found else { return Some(String::from("the row is missing")) };
    if found == expected {
        return None;
    }
    let figures = [
        ("price", found.points, expected.points),
        ("limit", found.limit_per_member, expected.limit_per_member),
    ];
    let wrong = figures.into_iter().find(|(_, found, expected)| found != expected);
    Some(wrong.map_or_else(
        || String::from("its sale, SKU or name is not the journal's"),
        |(name, found, expected)| format!("the {name} is {found}, the journal says {expected}"),
    ))
}
