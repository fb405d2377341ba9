//! The control machine's bytes in a snapshot, and its digest.
//!
//! Snapshot form, version 1: as in `snapshot.rs`, varints and little-endian hashes, a count
//! before every list. A sale's definition is its canonical JSON. The digest is the XXH3-128 of
//! the snapshot form: every list in it has one order.

use std::sync::Arc;

use super::bytes::{DecodeError, Reader, put64};
use super::catalog::SalePhase;
use super::control::{ControlSale, ControlState, ItemStock, StockEntry};
use super::definition::ValidSale;
use crate::units::{ItemIndex, KeyHash, NodeTime, Quantity};

const VERSION: u8 = 1;

impl ControlState {
    /// Appends the snapshot form.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.push(VERSION);
        put64(out, self.record_count);
        put64(out, self.record_checksum);
        put64(out, self.sales.len() as u64);
        for sale in &self.sales {
            let canonical = sale.sale.canonical();
            put64(out, canonical.len() as u64);
            out.extend_from_slice(canonical.as_bytes());
            out.push(sale.phase as u8);
            out.push(u8::from(sale.paused));
            put64(out, sale.opened_at.get());
            put64(out, sale.ended_at.get());
        }
        for stock in &self.items {
            put64(out, stock.total);
            put64(out, stock.granted);
            put64(out, stock.returned);
        }
        put64(out, self.keys.len() as u64);
        for (key, at, entry) in self.keys.iter() {
            out.extend_from_slice(&key.get().to_le_bytes());
            put64(out, u64::from(entry.item.get()));
            out.push(u8::from(entry.added));
            put64(out, u64::from(entry.asked.get()));
            put64(out, u64::from(entry.quantity.get()));
            put64(out, entry.total);
            put64(out, at.get());
        }
    }

    /// Takes the state back from its snapshot form, which `bytes` are exactly.
    ///
    /// Errors: the bytes are cut off, too new, or not a state.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        let found = reader.byte("version")?;
        if found != VERSION {
            return Err(DecodeError::Version { found, newest: VERSION });
        }
        let mut state = Self::new();
        state.record_count = reader.u64("record count")?;
        state.record_checksum = reader.u64("record checksum")?;
        for _ in 0..reader.count("sales", 5)? {
            let text = reader.text("definition")?;
            let sale = ValidSale::parse(text)
                .map_err(|_| DecodeError::Range { field: "definition", value: 0 })?;
            if state.sale_by_id(&sale.definition().id).is_some() {
                return Err(DecodeError::Range { field: "second sale of one id", value: 0 });
            }
            let phase = match reader.byte("phase")? {
                1 => SalePhase::Scheduled,
                2 => SalePhase::Open,
                3 => SalePhase::Ended,
                other => {
                    let value = u128::from(other);
                    return Err(DecodeError::Range { field: "phase", value });
                }
            };
            state.add_sale(ControlSale {
                sale: Arc::new(sale),
                first_item: ItemIndex::new(state.items().len() as u32),
                phase,
                paused: flag(&mut reader, "paused")?,
                opened_at: NodeTime::new(reader.u64("opened at")?),
                ended_at: NodeTime::new(reader.u64("ended at")?),
            });
        }
        for item in 0..state.items.len() {
            let total = reader.u64("total")?;
            let granted = reader.u64("granted")?;
            let returned = reader.u64("returned")?;
            if granted.checked_sub(returned).is_none_or(|here| here > total) {
                let value = u128::from(granted);
                return Err(DecodeError::Range { field: "granted", value });
            }
            state.items[item] = ItemStock { total, granted, returned };
        }
        for _ in 0..reader.count("stock keys", 22)? {
            let key = KeyHash::new(reader.fixed("stock key")?);
            let entry = StockEntry {
                item: ItemIndex::new(reader.u32("item")?),
                added: flag(&mut reader, "added")?,
                asked: Quantity::new(reader.u32("asked")?),
                quantity: Quantity::new(reader.u32("quantity")?),
                total: reader.u64("total")?,
            };
            state.keys.restore(key, NodeTime::new(reader.u64("at")?), entry);
        }
        reader.end()?;
        Ok(state)
    }

    /// The digest of all sales, totals and keys.
    pub fn digest(&self) -> u128 {
        let mut bytes = Vec::new();
        self.encode(&mut bytes);
        xxhash_rust::xxh3::xxh3_128(&bytes)
    }
}

fn flag(reader: &mut Reader<'_>, field: &'static str) -> Result<bool, DecodeError> {
    match reader.byte(field)? {
        0 => Ok(false),
        1 => Ok(true),
        other => Err(DecodeError::Range { field, value: u128::from(other) }),
    }
}
