//! What stands in the records topic: one message for each journal record, and marks.
//!
//! # Byte map (little-endian, no padding between fields)
//! ```text
//!  0         1      2           4             8         16         24    32          40
//! ┌─────────┬──────┬───────────┬─────────────┬─────────┬──────────┬─────┬───────────┬────────┐
//! │ version │ kind │ partition │ incarnation │ journal │ prev_seq │ seq │ node_time │ record │
//! │ u8 = 1  │ u8   │ u16       │ u32         │ u64     │ u64      │ u64 │ u64       │ bytes  │
//! └─────────┴──────┴───────────┴─────────────┴─────────┴──────────┴─────┴───────────┴────────┘
//! ```
//! - `kind` 1: a record; its bytes follow as they stand in the journal (`kernel::record`).
//! - `kind` 2: a mark, "this journal and partition is complete through `seq`"; nothing follows.
//! - `partition` repeats the Kafka partition, so that a copied or re-made topic is noticed.
//! - `prev_seq`: no record of this journal and partition lies between it and `seq`.
//! - The key is the member's id, 8 bytes big-endian; records of no member, and marks, have none.
//! - The version rises when a reader of the old one would misread; a newer one is never skipped.
//!   The first four bytes mean the same in every version: what names another partition than it
//!   stands in is somebody else's, whatever its first byte, and holds nothing up.

use thiserror::Error;

use crate::kernel::record::HEADER_LEN as RECORD_HEADER_LEN;
use crate::ship::log::Place;
use crate::ship::partition::Partition;
use crate::units::{Incarnation, JournalId, NodeTime, Seq};

/// The version this code writes, and the newest that it reads.
pub const VERSION: u8 = 1;
/// Bytes before the record.
pub const HEADER_LEN: usize = 40;

const RECORD: u8 = 1;
const MARK: u8 = 2;

/// Bytes that are not a message of ours.
#[derive(Error, Clone, PartialEq, Eq, Debug)]
pub enum MessageError {
    #[error("message version {found} is newer than {VERSION}: use the version that wrote it")]
    Version { found: u8 },
    #[error("a message of {have} bytes is shorter than its header of {HEADER_LEN}")]
    Short { have: usize },
    #[error("unknown message kind {0}")]
    Kind(u8),
    #[error("the message says partition {found}, it stands in partition {expected}")]
    Partition { found: u16, expected: i32 },
    #[error("a record message holds no whole record ({have} bytes)")]
    Record { have: usize },
}

impl MessageError {
    /// Whether only a newer program can read it; anything else was never a message of ours.
    pub fn is_newer(&self) -> bool {
        matches!(self, Self::Version { .. })
    }
}

/// One message, read where it lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Message<'a> {
    pub partition: Partition,
    /// The record's; for a mark, where the partition is complete through.
    pub place: Place,
    pub prev_seq: Seq,
    /// The record's bytes; `None`: a mark.
    pub record: Option<&'a [u8]>,
}

impl<'a> Message<'a> {
    /// Replaces `out` by the message's bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.clear();
        let kind = if self.record.is_some() { RECORD } else { MARK };
        out.extend_from_slice(&[VERSION, kind]);
        out.extend_from_slice(&u16::from(self.partition.get()).to_le_bytes());
        out.extend_from_slice(&self.place.incarnation.get().to_le_bytes());
        for field in [
            self.place.journal.get(),
            self.prev_seq.get(),
            self.place.seq.get(),
            self.place.node_time.get(),
        ] {
            out.extend_from_slice(&field.to_le_bytes());
        }
        out.extend_from_slice(self.record.unwrap_or_default());
    }

    /// Reads a message that stands in this Kafka partition.
    pub fn decode(bytes: &'a [u8], expected: i32) -> Result<Self, MessageError> {
        let have = bytes.len();
        let first = bytes.first_chunk::<4>().ok_or(MessageError::Short { have })?;
        let found = u16::from_le_bytes([first[2], first[3]]);
        let partition = u8::try_from(found)
            .ok()
            .and_then(Partition::new)
            .filter(|p| i32::from(p.get()) == expected)
            .ok_or(MessageError::Partition { found, expected })?;
        if first[0] > VERSION {
            return Err(MessageError::Version { found: first[0] });
        }
        let (head, rest) =
            bytes.split_first_chunk::<HEADER_LEN>().ok_or(MessageError::Short { have })?;
        let u64_at = |at: usize| {
            u64::from_le_bytes(head[at..at + 8].try_into().expect("eight bytes of the header"))
        };
        let place = Place {
            incarnation: Incarnation::new(u32::from_le_bytes([head[4], head[5], head[6], head[7]])),
            journal: JournalId::new(u64_at(8)),
            seq: Seq::new(u64_at(24)),
            node_time: NodeTime::new(u64_at(32)),
        };
        let prev_seq = Seq::new(u64_at(16));
        let record = match head[1] {
            RECORD if rest.len() < RECORD_HEADER_LEN => {
                return Err(MessageError::Record { have: rest.len() });
            }
            RECORD => Some(rest),
            MARK => None,
            other => return Err(MessageError::Kind(other)),
        };
        Ok(Self { partition, place, prev_seq, record })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(record: Option<&[u8]>) -> Message<'_> {
        let place = Place {
            journal: JournalId::new(0xfeed_beef),
            incarnation: Incarnation::new(3),
            seq: Seq::new(1 << 40),
            node_time: NodeTime::new(1_700_000_000_123),
        };
        let partition = Partition::new(7).unwrap();
        Message { partition, place, prev_seq: Seq::new(99), record }
    }

    #[test]
    fn messages_come_back_as_they_were_written() {
        let record = [5u8; 77];
        for message in [message(Some(&record)), message(None)] {
            let mut bytes = Vec::new();
            message.encode(&mut bytes);
            assert_eq!(bytes.len(), HEADER_LEN + message.record.map_or(0, <[u8]>::len));
            assert_eq!(Message::decode(&bytes, 7), Ok(message));
        }
    }

    #[test]
    fn the_byte_map_is_what_its_picture_says() {
        let mut bytes = Vec::new();
        message(None).encode(&mut bytes);
        assert_eq!(bytes[..8], [1, 2, 7, 0, 3, 0, 0, 0]);
        assert_eq!(bytes[8..16], 0xfeed_beef_u64.to_le_bytes());
        assert_eq!(bytes[16..24], 99u64.to_le_bytes());
        assert_eq!(bytes[24..32], (1u64 << 40).to_le_bytes());
        assert_eq!(bytes[32..], 1_700_000_000_123_u64.to_le_bytes());
    }

    #[test]
    fn what_is_no_message_says_so_and_a_newer_one_is_told_from_it() {
        let mut bytes = Vec::new();
        message(Some(&[0; 8])).encode(&mut bytes);
        assert_eq!(
            Message::decode(&bytes, 8),
            Err(MessageError::Partition { found: 7, expected: 8 })
        );
        for cut in 0..bytes.len() {
            let error = Message::decode(&bytes[..cut], 7).unwrap_err();
            assert!(!error.is_newer(), "{cut}: {error}");
        }
        for foreign in [&b"{\"hello\": \"is this the right topic? I think it is\"}"[..], b"hi", b""]
        {
            assert!(!Message::decode(foreign, 7).unwrap_err().is_newer());
        }
        bytes[0] = 2;
        assert!(Message::decode(&bytes, 7).unwrap_err().is_newer());
    }
}
