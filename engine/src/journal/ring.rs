//! The way from one shard to the journal: a ring of bytes and a ring of entries.
//!
//! A shard pushes whole records and what is to happen once they are durable (the completion).
//! Both rings are rtrb's: one producer, one consumer, no lock, bounded (I8). Bytes are published
//! before the entry that counts them, so who sees the entry finds its bytes.

use std::sync::Arc;

use super::core::FrameBuilder;
use super::doorbell::Doorbell;
use super::format::{FRAME_RECORD_BYTES_MAX, FRAME_RECORD_COUNT_MAX};
use crate::units::Seq;

/// Whole records and their completion.
pub struct Entry<C> {
    pub record_bytes: u32,
    pub record_count: u32,
    pub completion: C,
}

/// There is no room; here is the completion back.
#[derive(Debug)]
pub struct Full<C>(pub C);

/// What a producer's rings take at most.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RingOptions {
    /// Units: entries. More absorbs a longer sync, and lets more answers wait.
    pub entry_count: usize,
    /// Units: bytes of records; at least the largest entry.
    pub byte_count: usize,
}

impl Default for RingOptions {
    fn default() -> Self {
        Self { entry_count: 1 << 16, byte_count: 8 << 20 }
    }
}

/// A shard's end.
pub struct Producer<C> {
    bytes: rtrb::Producer<u8>,
    entries: rtrb::Producer<Entry<C>>,
    bell: Arc<Doorbell>,
}

/// The journal's end.
pub(super) struct Consumer<C> {
    bytes: rtrb::Consumer<u8>,
    entries: rtrb::Consumer<Entry<C>>,
}

pub(super) fn ring<C>(options: RingOptions, bell: Arc<Doorbell>) -> (Producer<C>, Consumer<C>) {
    let (bytes_in, bytes_out) = rtrb::RingBuffer::new(options.byte_count);
    let (entries_in, entries_out) = rtrb::RingBuffer::new(options.entry_count);
    let producer = Producer { bytes: bytes_in, entries: entries_in, bell };
    (producer, Consumer { bytes: bytes_out, entries: entries_out })
}

impl<C> Producer<C> {
    /// Whether so many entries with so many bytes of records in all can be pushed now.
    ///
    /// Only the producer takes room, so a yes stays a yes.
    pub fn has_room(&self, entry_count: usize, byte_count: usize) -> bool {
        let entries =
            self.entries.cached_slots() >= entry_count || self.entries.slots() >= entry_count;
        entries && (self.bytes.cached_slots() >= byte_count || self.bytes.slots() >= byte_count)
    }
    /// Free entries.
    pub fn free_entries(&self) -> usize {
        self.entries.slots()
    }
    /// Free bytes.
    pub fn free_bytes(&self) -> usize {
        self.bytes.slots()
    }

    /// Pushes whole records (or none) and what is to happen once they, and all pushed before
    /// them, are durable. The journal may only notice after [`Producer::wake`].
    ///
    /// Panics: more bytes or records than a frame holds.
    pub fn try_push(
        &mut self,
        records: &[u8],
        record_count: u32,
        completion: C,
    ) -> Result<(), Full<C>> {
        if !self.has_room(1, records.len()) {
            return Err(Full(completion));
        }
        let entry = entry(records.len(), record_count, completion);
        let pushed = self.bytes.push_entire_slice(records);
        assert!(pushed.is_ok() && self.entries.push(entry).is_ok(), "there was room");
        Ok(())
    }

    /// Pushes a whole batch, with one publication for all. `records` holds the records of all
    /// entries one behind the other; `entries` are (bytes, records, completion), emptied on
    /// success and untouched where there is no room for all of them.
    pub fn try_push_batch(&mut self, records: &[u8], entries: &mut Vec<(u32, u32, C)>) -> bool {
        let total: usize = entries.iter().map(|(bytes, _, _)| *bytes as usize).sum();
        assert_eq!(total, records.len(), "the entries account for all records");
        if !self.has_room(entries.len(), records.len()) {
            return false;
        }
        let pushed = self.bytes.push_entire_slice(records);
        let slots = self.entries.write_chunk_uninit(entries.len());
        let filled = slots.map(|s| {
            let counted = entries.drain(..);
            s.fill_from_iter(counted.map(|(bytes, count, c)| entry(bytes as usize, count, c)))
        });
        assert!(pushed.is_ok() && filled.is_ok(), "there was room");
        true
    }

    /// Lets the journal know, if it sleeps. Once per batch is enough.
    pub fn wake(&self) {
        self.bell.ring();
    }
}

fn entry<C>(record_bytes: usize, record_count: u32, completion: C) -> Entry<C> {
    assert!(record_bytes <= FRAME_RECORD_BYTES_MAX, "an entry fits into a frame");
    assert!(record_count <= FRAME_RECORD_COUNT_MAX, "an entry fits into a frame");
    assert!(record_count > 0 || record_bytes == 0, "bytes without a record");
    Entry { record_bytes: record_bytes as u32, record_count, completion }
}

impl<C> Consumer<C> {
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Moves what fits into the frame: records to the frame, completions behind `pending`, each
    /// with the last sequence number up to it. `first_seq` is the frame's first.
    ///
    /// Shape: at most as many completions as a frame holds records.
    pub fn drain(&mut self, frame: &mut FrameBuilder, first_seq: Seq, pending: &mut Vec<(C, Seq)>) {
        let available = self.entries.slots();
        let room = (FRAME_RECORD_COUNT_MAX as usize).saturating_sub(pending.len());
        let Ok(chunk) = self.entries.read_chunk(available.min(room)) else { return };
        let (mut bytes, mut records, mut taken) = (0, 0, 0);
        let (first, second) = chunk.as_slices();
        for entry in first.iter().chain(second) {
            let more_bytes = bytes + entry.record_bytes as usize;
            let more_records = records + entry.record_count;
            if !frame.has_room(more_bytes, more_records) {
                break;
            }
            (bytes, records, taken) = (more_bytes, more_records, taken + 1);
        }
        let mut seq = first_seq.get() + u64::from(frame.record_count()) - 1;
        if bytes > 0 {
            let popped = self.bytes.pop_entire_slice(frame.extend(bytes, records));
            assert!(popped.is_ok(), "bytes are published before the entries that count them");
        }
        for entry in chunk.into_iter().take(taken) {
            seq += u64::from(entry.record_count);
            pending.push((entry.completion, Seq::new(seq)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small() -> (Producer<u32>, Consumer<u32>) {
        let options = RingOptions { entry_count: 4, byte_count: 64 };
        ring(options, Arc::new(Doorbell::new()))
    }

    #[test]
    fn entries_come_out_in_order_with_the_last_number_up_to_them() {
        let (mut producer, mut consumer) = small();
        producer.try_push(b"aabb", 2, 1).unwrap();
        producer.try_push(b"", 0, 2).unwrap();
        producer.try_push(b"cc", 1, 3).unwrap();
        let (mut frame, mut pending) = (FrameBuilder::new(), Vec::new());
        consumer.drain(&mut frame, Seq::new(10), &mut pending);
        assert_eq!(pending, [(1, Seq::new(11)), (2, Seq::new(11)), (3, Seq::new(12))]);
        assert_eq!((frame.record_count(), frame.record_bytes()), (3, 6));
        producer.try_push(b"", 0, 4).unwrap();
        consumer.drain(&mut frame, Seq::new(10), &mut pending);
        assert_eq!(pending[3], (4, Seq::new(12)));
    }

    #[test]
    fn a_full_ring_gives_the_completion_back_and_room_is_known_before() {
        let (mut producer, mut consumer) = small();
        assert!(producer.has_room(4, 64) && !producer.has_room(5, 1) && !producer.has_room(1, 65));
        producer.try_push(&[7; 60], 1, 1).unwrap();
        assert_eq!(producer.try_push(&[7; 5], 1, 2).unwrap_err().0, 2);
        let mut batch = vec![(2, 1, 2), (2, 1, 3)];
        assert!(producer.try_push_batch(b"aabb", &mut batch) && batch.is_empty());
        let mut batch = vec![(0, 0, 4), (0, 0, 5)];
        assert!(!producer.try_push_batch(b"", &mut batch) && batch.len() == 2);
        let (mut frame, mut pending) = (FrameBuilder::new(), Vec::new());
        consumer.drain(&mut frame, Seq::new(1), &mut pending);
        assert_eq!(pending, [(1, Seq::new(1)), (2, Seq::new(2)), (3, Seq::new(3))]);
        assert!(producer.try_push_batch(b"", &mut batch) && producer.has_room(2, 64));
    }

    #[test]
    fn a_frame_takes_what_fits_and_the_rest_stays() {
        let options = RingOptions { entry_count: 8, byte_count: 3 << 20 };
        let (mut producer, mut consumer) = ring(options, Arc::new(Doorbell::new()));
        let large = vec![1; 600 << 10];
        for i in 0..3 {
            producer.try_push(&large, 1, i).unwrap();
        }
        let (mut frame, mut pending) = (FrameBuilder::new(), Vec::new());
        for i in 0..3 {
            consumer.drain(&mut frame, Seq::new(1 + i), &mut pending);
            assert_eq!(pending, [(i, Seq::new(1 + i))]);
            pending = Vec::new();
            frame.clear();
        }
        assert!(consumer.is_empty());
    }
}
