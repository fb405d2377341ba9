//! What a batch of decisions leaves for the world outside the kernel to do.

use super::slot::SlotState;
use crate::units::{ItemIndex, Quantity};

/// The effects of a batch. The caller clears them, and reuses their memory.
#[derive(Default, Debug)]
pub struct Effects {
    /// Whole records, to be made durable in this order.
    pub records: Vec<u8>,
    pub record_count: u32,
    /// Units that may enter their lines only once `records` are durable.
    pub given_back: Vec<(ItemIndex, Quantity)>,
    /// Changes of the number of confirmed units, to be counted once `records` are durable.
    pub confirmed: Vec<(ItemIndex, i64)>,
}

impl Effects {
    pub fn clear(&mut self) {
        self.records.clear();
        self.record_count = 0;
        self.given_back.clear();
        self.confirmed.clear();
    }
    pub fn is_empty(&self) -> bool {
        self.record_count == 0
    }

    /// Encodes a record that `slot` has just applied, and counts it there.
    #[inline]
    pub(super) fn record(&mut self, slot: &mut SlotState, encode: impl FnOnce(&mut Vec<u8>)) {
        let start = self.records.len();
        encode(&mut self.records);
        self.record_count += 1;
        slot.count_record(&self.records[start..]);
    }

    /// Encodes a record of sales and stock; gives its bytes.
    pub(super) fn control_record(&mut self, encode: impl FnOnce(&mut Vec<u8>)) -> &[u8] {
        let start = self.records.len();
        encode(&mut self.records);
        self.record_count += 1;
        &self.records[start..]
    }

    /// Lets so many units enter the item's line once the records are durable.
    pub(super) fn give_back(&mut self, item: ItemIndex, mut units: u64) {
        while units > 0 {
            let part = u32::try_from(units).unwrap_or(u32::MAX);
            self.given_back.push((item, Quantity::new(part)));
            units -= u64::from(part);
        }
    }
}
