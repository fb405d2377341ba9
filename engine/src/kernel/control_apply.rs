//! The only functions that change the control machine, live and in replay alike.

use std::sync::Arc;

use thiserror::Error;

use super::catalog::SalePhase;
use super::control::{ControlSale, ControlState, ItemStock, NO_KEY, SlotClaim, StockEntry};
use super::definition::{DefinitionError, ValidSale};
use super::record::{Record, RecordError, SaleChange, SaleChanged, SaleDefined, StockChanged};
use crate::units::{ItemIndex, NodeTime, SaleIndex};

/// A control record that does not fit the state it is applied to: damage, or a bug.
#[derive(Error, Clone, PartialEq, Eq, Debug)]
pub enum ControlError {
    #[error(transparent)]
    Record(#[from] RecordError),
    #[error("a {kind} record belongs to a member's slot")]
    Kind { kind: &'static str },
    #[error("sale {sale}, first item {first_item} should be {next_sale}, {next_item}")]
    Numbers { sale: SaleIndex, first_item: ItemIndex, next_sale: usize, next_item: usize },
    #[error("sale {sale}: {error}")]
    Definition { sale: SaleIndex, error: DefinitionError },
    #[error("sale {sale} is defined with the id of another one, {id}")]
    SaleExists { sale: SaleIndex, id: String },
    #[error("no sale {0}")]
    SaleUnknown(SaleIndex),
    #[error("no item {0}")]
    ItemUnknown(ItemIndex),
    #[error("sale {sale} cannot be {} as it stands", change.name())]
    Change { sale: SaleIndex, change: SaleChange },
    #[error("item {item}: epoch {found} comes behind {known}, where each is above the last")]
    Epoch { item: ItemIndex, known: u32, found: u32 },
    #[error("item {0}: its total is this journal's own, and is not learned from the pool")]
    Home(ItemIndex),
    #[error("the journal's slots are claimed a second time")]
    ClaimedTwice,
    #[error("item {item}: the record says {field} is {found}, the sum is {expected}")]
    Sum { item: ItemIndex, field: &'static str, expected: u64, found: u64 },
    #[error(
        "item {item}: total {total}, granted {granted}, returned {returned} do not go together"
    )]
    Stock { item: ItemIndex, total: u64, granted: u64, returned: u64 },
}

impl ControlState {
    /// Applies a record; `bytes` are the very ones it was decoded from. `ChangeSeen` changes
    /// nothing here.
    ///
    /// Errors: the record does not fit the state, which is then unchanged.
    pub fn apply(&mut self, record: &Record, bytes: &[u8]) -> Result<(), ControlError> {
        match record {
            Record::SaleDefined(r) => self.apply_defined(r)?,
            Record::SaleChanged(r) => self.apply_changed(r)?,
            Record::StockChanged(r) => self.apply_stock(r)?,
            Record::Granted(r) => {
                let stock = self.stock(r.item)?;
                self.set_stock(r.item, ItemStock { granted: r.granted, ..stock })?;
            }
            Record::Returned(r) => {
                let stock = self.stock(r.item)?;
                self.set_stock(r.item, ItemStock { returned: r.returned, ..stock })?;
            }
            Record::EpochSeen(r) => {
                let stock = self.stock(r.item)?;
                if r.epoch <= stock.epoch {
                    let (item, known, found) = (r.item, stock.epoch, r.epoch);
                    return Err(ControlError::Epoch { item, known, found });
                }
                self.set_stock(r.item, ItemStock { epoch: r.epoch, server: r.server, ..stock })?;
            }
            Record::TotalSeen(r) => {
                let stock = self.stock(r.item)?;
                if stock.is_home {
                    return Err(ControlError::Home(r.item));
                }
                self.set_stock(r.item, ItemStock { total: r.total, ..stock })?;
            }
            Record::SlotsClaimed(r) => {
                if self.claim.is_some() {
                    return Err(ControlError::ClaimedTwice);
                }
                let (node, version, slots) = (r.node.clone(), r.version, r.slots.clone());
                self.claim = Some(SlotClaim { node, version, slots });
            }
            Record::ChangeSeen(_) => return Ok(()),
            Record::Imported(_) => {}
            Record::Opened(_)
            | Record::Credited(_)
            | Record::Debited(_)
            | Record::Held(_)
            | Record::Redeemed(_)
            | Record::Confirmed(_)
            | Record::Released(_)
            | Record::Reversed(_)
            | Record::KeysDropped(_) => return Err(ControlError::Kind { kind: record.name() }),
        }
        self.record_count += 1;
        let sum = xxhash_rust::xxh3::xxh3_64(bytes);
        self.record_checksum = self.record_checksum.wrapping_add(sum);
        Ok(())
    }

    fn apply_defined(&mut self, r: &SaleDefined) -> Result<(), ControlError> {
        let (next_sale, next_item) = (self.sales.len(), self.items.len());
        if r.sale.get() as usize != next_sale || r.first_item.get() as usize != next_item {
            let (sale, first_item) = (r.sale, r.first_item);
            return Err(ControlError::Numbers { sale, first_item, next_sale, next_item });
        }
        let valid = ValidSale::parse(&r.definition)
            .map_err(|error| ControlError::Definition { sale: r.sale, error })?;
        let id = valid.definition().id.clone();
        if self.by_id.contains_key(&id) {
            return Err(ControlError::SaleExists { sale: r.sale, id });
        }
        self.add_sale(ControlSale {
            sale: Arc::new(valid),
            first_item: r.first_item,
            phase: SalePhase::Scheduled,
            paused: false,
            opened_at: NodeTime::new(0),
            ended_at: NodeTime::new(0),
        });
        Ok(())
    }

    pub(super) fn add_sale(&mut self, sale: ControlSale) {
        let index = SaleIndex::new(self.sales.len() as u32);
        let definition = sale.sale.definition();
        let items = self.items.len() + definition.items.len();
        self.items.resize(items, ItemStock::default());
        self.sale_of_item.resize(items, index);
        self.by_id.insert(definition.id.clone(), index);
        self.sales.push(sale);
    }

    fn apply_changed(&mut self, r: &SaleChanged) -> Result<(), ControlError> {
        let index = r.sale.get() as usize;
        let sale = self.sales.get_mut(index).ok_or(ControlError::SaleUnknown(r.sale))?;
        match (sale.phase, r.change) {
            (SalePhase::Scheduled, SaleChange::Opened) => {
                sale.phase = SalePhase::Open;
                sale.opened_at = r.at;
            }
            (SalePhase::Scheduled | SalePhase::Open, SaleChange::Ended) => {
                sale.phase = SalePhase::Ended;
                sale.ended_at = r.at;
            }
            (SalePhase::Open, SaleChange::Paused) => sale.paused = true,
            (SalePhase::Open, SaleChange::Resumed) => sale.paused = false,
            (_, change) => return Err(ControlError::Change { sale: r.sale, change }),
        }
        Ok(())
    }

    fn apply_stock(&mut self, r: &StockChanged) -> Result<(), ControlError> {
        let stock = self.stock(r.item)?;
        let units = u64::from(r.quantity.get());
        let total =
            if r.added { stock.total.checked_add(units) } else { stock.total.checked_sub(units) };
        if total != Some(r.total_after) {
            let expected = total.unwrap_or(stock.total);
            let (item, found) = (r.item, r.total_after);
            return Err(ControlError::Sum { item, field: "total", expected, found });
        }
        let total = r.total_after;
        let added = if r.added { stock.added.saturating_add(units) } else { stock.added };
        self.set_stock(r.item, ItemStock { total, added, is_home: true, ..stock })?;
        if r.key != NO_KEY {
            let entry = StockEntry {
                item: r.item,
                added: r.added,
                asked: r.asked,
                quantity: r.quantity,
                total: r.total_after,
            };
            self.keys.remember(r.key, r.at, entry);
        }
        Ok(())
    }

    fn stock(&self, item: ItemIndex) -> Result<ItemStock, ControlError> {
        self.items.get(item.get() as usize).copied().ok_or(ControlError::ItemUnknown(item))
    }

    /// Sets an item's counters; cumulative ones never fall, and what is here is part of the total.
    fn set_stock(&mut self, item: ItemIndex, to: ItemStock) -> Result<(), ControlError> {
        let from = self.stock(item)?;
        let fits = to.granted >= from.granted
            && to.returned >= from.returned
            && to.returned <= to.granted
            && to.granted - to.returned <= to.total;
        if !fits {
            let ItemStock { total, granted, returned, .. } = to;
            return Err(ControlError::Stock { item, total, granted, returned });
        }
        self.items[item.get() as usize] = to;
        Ok(())
    }
}
