//! The control machine's bytes in a snapshot, and its digest.
//!
//! Snapshot form, version 3: as in `snapshot.rs`, varints and little-endian hashes, a count
//! before every list. A sale's definition is its canonical JSON. The digest is the XXH3-128 of
//! the snapshot form: every list in it has one order. Version 1, which is still read, knew one
//! node: its items have no epoch, are at home, and nothing was ever withdrawn. Version 2 knew no
//! claim of slots.

use std::sync::Arc;

use super::bytes::{DecodeError, Reader, put64};
use super::catalog::SalePhase;
use super::control::{ControlSale, ControlState, ItemStock, SlotClaim, StockEntry};
use super::definition::ValidSale;
use crate::units::{ItemIndex, KeyHash, NodeTime, Quantity};

const VERSION: u8 = 3;

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
            put64(out, stock.added);
            out.push(u8::from(stock.is_home));
            put64(out, u64::from(stock.epoch));
            out.extend_from_slice(&stock.server.get().to_le_bytes());
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
        out.push(u8::from(self.claim.is_some()));
        if let Some(SlotClaim { node, version, slots }) = &self.claim {
            put64(out, *version);
            for text in [node, slots] {
                put64(out, text.len() as u64);
                out.extend_from_slice(text.as_bytes());
            }
        }
    }

    /// Takes the state back from its snapshot form, which `bytes` are exactly.
    ///
    /// Errors: the bytes are cut off, too new, or not a state.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        let found = reader.byte("version")?;
        if !(1..=VERSION).contains(&found) {
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
            let (mut added, mut is_home, mut epoch, mut server) =
                (total, true, 0, KeyHash::default());
            if found > 1 {
                added = reader.u64("added")?;
                is_home = flag(&mut reader, "is home")?;
                epoch = reader.u32("epoch")?;
                server = KeyHash::new(reader.fixed("server")?);
            }
            if granted.checked_sub(returned).is_none_or(|here| here > total) {
                let value = u128::from(granted);
                return Err(DecodeError::Range { field: "granted", value });
            }
            state.items[item] =
                ItemStock { total, added, granted, returned, epoch, server, is_home };
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
        if found > 2 && flag(&mut reader, "claim")? {
            let version = reader.u64("version of the map")?;
            let node = reader.text("node")?.to_owned();
            let slots = reader.text("slots")?.to_owned();
            state.claim = Some(SlotClaim { node, version, slots });
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
