//! The byte map of the journal: segments and frames.
//!
//! A segment is a file of fixed length, preallocated and zero-filled: one block of header, then
//! frames, each aligned to [`BLOCK_LEN`], so that a torn write never touches an acknowledged
//! block. All integers are little-endian.
//!
//! ```text
//! segment header (one block, zero behind the fields)
//!  0          8         12        16           24        32           40            44
//! ┌──────────┬─────────┬─────────┬────────────┬─────────┬────────────┬─────────────┐
//! │ magic    │ crc32c  │ version │ journal id │ segment │ bytes of   │ incarnation │
//! │ ONRSEGM\n│ u32     │ u32     │ u64        │ u64     │ file u64   │ u32         │
//! └──────────┴─────────┴─────────┴────────────┴─────────┴────────────┴─────────────┘
//! frame (header of 128 bytes, records, zeros up to the next block)
//!  0          8         12        16           24        32           40            44
//! ┌──────────┬─────────┬─────────┬────────────┬─────────┬────────────┬─────────────┐
//! │ magic    │ crc32c  │ version │ journal id │ segment │ frame      │ incarnation │
//! │ ONRFRAM\n│ u32     │ u32     │ u64        │ u64     │ number u64 │ u32         │
//! ├──────────┼─────────┼─────────┼────────────┼─────────┼────────────┼─────────────┤
//! │44 kind   │48 length│52 record│56 previous │60 zero  │64 first seq│72 durable   │
//! │ u32      │ u32     │ count   │ crc32c     │ u32     │ u64        │ frame u64   │
//! ├──────────┴─────────┼─────────┴──┬─────────┴──┬──────┴────────────┴─────────────┤
//! │80 durable through  │88 node ms  │96 wall ms  │104 zero                      128 │
//! └────────────────────┴────────────┴────────────┴─────────────────────────────────┘
//! ```
//! The checksum covers everything behind itself, padding included, so no bit of a frame may
//! flip unnoticed; the eight bytes of magic before it are compared. `length` counts the
//! bytes of records alone. `durable frame` and `durable through` say what was known durable when
//! the frame was written: a claim. Frames are numbered from 1 without gaps, because marks hold
//! no record and so have no sequence number that a claim could name.
//!
//! For every version to come: magic, checksum, version and `length` keep their place and
//! meaning, so that an older program can say "newer" instead of "damaged".

use crate::clock::Stamp;
use crate::units::{Incarnation, JournalId, NodeTime, Seq};

/// Bytes of a block: the unit of alignment and of tearing.
pub const BLOCK_LEN: usize = 4096;
/// The version this code writes, and the newest that it reads.
pub const VERSION: u32 = 1;
/// Bytes of a frame's header.
pub const FRAME_HEADER_LEN: usize = 128;
/// Bytes of records in the largest frame.
pub const FRAME_RECORD_BYTES_MAX: usize = 1 << 20;
/// Records in the largest frame.
pub const FRAME_RECORD_COUNT_MAX: u32 = 1 << 16;
/// Bytes of the largest frame, padding included.
pub const FRAME_LEN_MAX: usize = frame_len(FRAME_RECORD_BYTES_MAX);

const SEGMENT_MAGIC: [u8; 8] = *b"ONRSEGM\n";
const FRAME_MAGIC: [u8; 8] = *b"ONRFRAM\n";
/// Where the checksum's cover begins.
const COVER_AT: usize = 12;
const LENGTH_AT: usize = 48;

const _: () = assert!(FRAME_HEADER_LEN < BLOCK_LEN && FRAME_LEN_MAX.is_multiple_of(BLOCK_LEN));

/// Bytes on disk of a frame with this many bytes of records.
pub const fn frame_len(record_bytes: usize) -> usize {
    (FRAME_HEADER_LEN + record_bytes).next_multiple_of(BLOCK_LEN)
}

/// What a frame is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum FrameKind {
    /// Holds records.
    Records = 1,
    /// Begins an incarnation; no records.
    Opening = 2,
    /// Proves the frames before it, and keeps the time, in a quiet journal; no records.
    Mark = 3,
    /// Ends an incarnation in good order; no records.
    Closing = 4,
}

impl FrameKind {
    pub const ALL: [Self; 4] = [Self::Records, Self::Opening, Self::Mark, Self::Closing];
    fn from_u32(raw: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|k| *k as u32 == raw)
    }
    pub const fn name(self) -> &'static str {
        match self {
            Self::Records => "records",
            Self::Opening => "opening",
            Self::Mark => "mark",
            Self::Closing => "closing",
        }
    }
}

/// A frame's header, without what the codec adds (magic, version, checksum).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FrameHeader {
    pub journal: JournalId,
    /// The number of the segment that the frame was written to.
    pub segment: u64,
    /// The frame's own number, from 1, without gaps.
    pub number: u64,
    pub incarnation: Incarnation,
    pub kind: FrameKind,
    /// Bytes of records.
    pub record_bytes: u32,
    pub record_count: u32,
    /// The checksum of the frame before this one; 0 for the first.
    pub previous_checksum: u32,
    /// The sequence number of the first record, or of the next one to come.
    pub first_seq: Seq,
    /// Claim: this frame and all before it were durable when this header was written.
    pub durable_frame: u64,
    /// Claim: the last record of those.
    pub durable_through: Seq,
    pub stamp: Stamp,
}

impl FrameHeader {
    /// The last record's sequence number; that of the record before, in a frame without any.
    pub fn last_seq(&self) -> Seq {
        Seq::new(self.first_seq.get() + u64::from(self.record_count) - 1)
    }
    pub fn next_seq(&self) -> Seq {
        Seq::new(self.first_seq.get() + u64::from(self.record_count))
    }
    /// Bytes on disk.
    pub fn frame_len(&self) -> usize {
        frame_len(self.record_bytes as usize)
    }
}

/// Why bytes are not a frame of this place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Flaw {
    /// They do not begin like a frame.
    Magic,
    /// The length is out of range, or reaches beyond the segment.
    Length,
    Checksum,
    /// The checksum is right and a field makes no sense: written by something else.
    Field,
    /// A frame of another journal.
    Journal,
    /// A frame of another segment: left over from the file's earlier life.
    Segment,
    /// A frame of a newer format. Not damage: use the newer program.
    Newer {
        version: u32,
    },
}

/// Writes a frame's header before its records, and pads behind them.
///
/// `frame` is the whole frame: space for the header, the records, and padding of any content.
/// Returns the checksum, which the next frame repeats.
pub fn seal_frame(frame: &mut [u8], header: &FrameHeader) -> u32 {
    let record_bytes = header.record_bytes as usize;
    assert_eq!(frame.len(), frame_len(record_bytes), "a frame fills its blocks");
    assert!(record_bytes <= FRAME_RECORD_BYTES_MAX, "frames are bounded by their builder");
    assert!(header.record_count <= FRAME_RECORD_COUNT_MAX, "frames are bounded by their builder");
    let (head, rest) = frame.split_at_mut(FRAME_HEADER_LEN);
    rest[record_bytes..].fill(0);
    head.fill(0);
    head[0..8].copy_from_slice(&FRAME_MAGIC);
    head[12..16].copy_from_slice(&VERSION.to_le_bytes());
    head[16..24].copy_from_slice(&header.journal.get().to_le_bytes());
    head[24..32].copy_from_slice(&header.segment.to_le_bytes());
    head[32..40].copy_from_slice(&header.number.to_le_bytes());
    head[40..44].copy_from_slice(&header.incarnation.get().to_le_bytes());
    head[44..48].copy_from_slice(&(header.kind as u32).to_le_bytes());
    head[48..52].copy_from_slice(&header.record_bytes.to_le_bytes());
    head[52..56].copy_from_slice(&header.record_count.to_le_bytes());
    head[56..60].copy_from_slice(&header.previous_checksum.to_le_bytes());
    head[64..72].copy_from_slice(&header.first_seq.get().to_le_bytes());
    head[72..80].copy_from_slice(&header.durable_frame.to_le_bytes());
    head[80..88].copy_from_slice(&header.durable_through.get().to_le_bytes());
    head[88..96].copy_from_slice(&header.stamp.node.get().to_le_bytes());
    head[96..104].copy_from_slice(&header.stamp.wall_ms.to_le_bytes());
    let checksum = crc32c::crc32c(&frame[COVER_AT..]);
    frame[8..12].copy_from_slice(&checksum.to_le_bytes());
    checksum
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// Bytes that claim to be a frame. Nothing of them can be used before [`Unverified::verify`].
pub struct Unverified<'a> {
    frame: &'a [u8],
}

impl<'a> Unverified<'a> {
    /// How many bytes the frame that begins with `block` says it takes.
    ///
    /// Errors: `Magic` or `Length`, when no frame begins here. The length is not to be trusted
    /// for anything but reading that many bytes, at most [`FRAME_LEN_MAX`].
    pub fn claimed_len(block: &[u8]) -> Result<usize, Flaw> {
        if block.len() < FRAME_HEADER_LEN || block[0..8] != FRAME_MAGIC {
            return Err(Flaw::Magic);
        }
        let record_bytes = u32_at(block, LENGTH_AT) as usize;
        if record_bytes > FRAME_RECORD_BYTES_MAX {
            return Err(Flaw::Length);
        }
        Ok(frame_len(record_bytes))
    }

    /// Takes the frame that `bytes` begin with.
    ///
    /// Errors: `Magic` or `Length`, also where `bytes` end before the frame does.
    pub fn take(bytes: &'a [u8]) -> Result<Self, Flaw> {
        let len = Self::claimed_len(bytes)?;
        bytes.get(..len).map(|frame| Self { frame }).ok_or(Flaw::Length)
    }

    /// Checks every bit of the frame, and that it belongs to this journal and segment.
    pub fn verify(self, journal: JournalId, segment: u64) -> Result<Frame<'a>, Flaw> {
        let checksum = u32_at(self.frame, 8);
        if crc32c::crc32c(&self.frame[COVER_AT..]) != checksum {
            return Err(Flaw::Checksum);
        }
        match u32_at(self.frame, 12) {
            VERSION => {}
            0 => return Err(Flaw::Field),
            version => return Err(Flaw::Newer { version }),
        }
        let head = self.frame;
        let header = FrameHeader {
            journal: JournalId::new(u64_at(head, 16)),
            segment: u64_at(head, 24),
            number: u64_at(head, 32),
            incarnation: Incarnation::new(u32_at(head, 40)),
            kind: FrameKind::from_u32(u32_at(head, 44)).ok_or(Flaw::Field)?,
            record_bytes: u32_at(head, LENGTH_AT),
            record_count: u32_at(head, 52),
            previous_checksum: u32_at(head, 56),
            first_seq: Seq::new(u64_at(head, 64)),
            durable_frame: u64_at(head, 72),
            durable_through: Seq::new(u64_at(head, 80)),
            stamp: Stamp { node: NodeTime::new(u64_at(head, 88)), wall_ms: u64_at(head, 96) },
        };
        let is_sound = header.number > 0
            && header.durable_frame < header.number
            && header.first_seq > Seq::NONE
            && header.durable_through < header.first_seq
            && header.record_count <= FRAME_RECORD_COUNT_MAX
            && (header.kind == FrameKind::Records) == (header.record_count > 0)
            && (header.record_count > 0 || header.record_bytes == 0);
        match () {
            () if !is_sound => Err(Flaw::Field),
            () if header.journal != journal => Err(Flaw::Journal),
            () if header.segment != segment => Err(Flaw::Segment),
            () => Ok(Frame { header, checksum, bytes: self.frame }),
        }
    }
}

/// A frame whose every bit was checked. Made by [`Unverified::verify`] alone.
#[derive(Clone, Copy)]
pub struct Frame<'a> {
    header: FrameHeader,
    checksum: u32,
    bytes: &'a [u8],
}

impl<'a> Frame<'a> {
    pub fn header(&self) -> &FrameHeader {
        &self.header
    }
    pub fn checksum(&self) -> u32 {
        self.checksum
    }
    /// The whole frame, as it lies on disk.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }
    pub fn records(&self) -> &'a [u8] {
        &self.bytes[FRAME_HEADER_LEN..FRAME_HEADER_LEN + self.header.record_bytes as usize]
    }
}

/// A segment's header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SegmentHeader {
    pub journal: JournalId,
    /// The segment's number, from 1, without gaps.
    pub segment: u64,
    /// Bytes of the whole file.
    pub file_len: u64,
    /// The incarnation that made the segment.
    pub incarnation: Incarnation,
}

impl SegmentHeader {
    pub fn encode(&self, block: &mut [u8]) {
        assert_eq!(block.len(), BLOCK_LEN);
        block.fill(0);
        block[0..8].copy_from_slice(&SEGMENT_MAGIC);
        block[12..16].copy_from_slice(&VERSION.to_le_bytes());
        block[16..24].copy_from_slice(&self.journal.get().to_le_bytes());
        block[24..32].copy_from_slice(&self.segment.to_le_bytes());
        block[32..40].copy_from_slice(&self.file_len.to_le_bytes());
        block[40..44].copy_from_slice(&self.incarnation.get().to_le_bytes());
        let checksum = crc32c::crc32c(&block[COVER_AT..]);
        block[8..12].copy_from_slice(&checksum.to_le_bytes());
    }

    /// Checks every bit of a segment's first block.
    ///
    /// Errors: `Segment` where the file bears another segment's name.
    pub fn decode(block: &[u8], segment: u64) -> Result<Self, Flaw> {
        if block.len() != BLOCK_LEN {
            return Err(Flaw::Length);
        }
        if block[0..8] != SEGMENT_MAGIC {
            return Err(Flaw::Magic);
        }
        if crc32c::crc32c(&block[COVER_AT..]) != u32_at(block, 8) {
            return Err(Flaw::Checksum);
        }
        match u32_at(block, 12) {
            VERSION => {}
            0 => return Err(Flaw::Field),
            version => return Err(Flaw::Newer { version }),
        }
        let header = Self {
            journal: JournalId::new(u64_at(block, 16)),
            segment: u64_at(block, 24),
            file_len: u64_at(block, 32),
            incarnation: Incarnation::new(u32_at(block, 40)),
        };
        if header.segment != segment {
            return Err(Flaw::Segment);
        }
        let is_whole_blocks = header.file_len.is_multiple_of(BLOCK_LEN as u64);
        if header.journal.get() == 0 || !is_whole_blocks {
            return Err(Flaw::Field);
        }
        Ok(header)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const JOURNAL: JournalId = JournalId::new(0xfeed);

    fn header(record_bytes: u32) -> FrameHeader {
        FrameHeader {
            journal: JOURNAL,
            segment: 3,
            number: 17,
            incarnation: Incarnation::new(2),
            kind: FrameKind::Records,
            record_bytes,
            record_count: 5,
            previous_checksum: 0xabcd_ef01,
            first_seq: Seq::new(100),
            durable_frame: 15,
            durable_through: Seq::new(90),
            stamp: Stamp { node: NodeTime::new(77), wall_ms: 78 },
        }
    }

    fn frame(record_bytes: u32) -> Vec<u8> {
        let mut bytes = vec![0xa5; frame_len(record_bytes as usize)];
        seal_frame(&mut bytes, &header(record_bytes));
        bytes
    }

    fn verify(bytes: &[u8]) -> Result<FrameHeader, Flaw> {
        Unverified::take(bytes)?.verify(JOURNAL, 3).map(|f| *f.header())
    }

    #[test]
    fn a_frame_comes_back_as_it_was_sealed() {
        for record_bytes in [0u32, 1, 80, 3967, 3968, 3969, 4096, 100_000, 1 << 20] {
            let mut bytes = frame(record_bytes);
            if record_bytes == 0 {
                let mark = FrameHeader { kind: FrameKind::Mark, record_count: 0, ..header(0) };
                let checksum = seal_frame(&mut bytes, &mark);
                let back = Unverified::take(&bytes).unwrap().verify(JOURNAL, 3).unwrap();
                assert_eq!((back.header(), back.checksum()), (&mark, checksum));
                assert_eq!(back.header().last_seq(), Seq::new(99));
                continue;
            }
            let back = Unverified::take(&bytes).unwrap().verify(JOURNAL, 3).unwrap();
            assert_eq!(back.header(), &header(record_bytes));
            assert!(back.records().iter().all(|b| *b == 0xa5));
            assert_eq!(back.records().len(), record_bytes as usize);
            assert_eq!(back.header().last_seq(), Seq::new(104));
        }
    }

    #[test]
    fn every_flipped_bit_of_a_frame_is_noticed() {
        let good = frame(300);
        for bit in 0..good.len() * 8 {
            let mut bytes = good.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(verify(&bytes).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn every_flipped_bit_of_a_segment_header_is_noticed() {
        let good = SegmentHeader {
            journal: JOURNAL,
            segment: 9,
            file_len: 1 << 20,
            incarnation: Incarnation::new(4),
        };
        let mut block = vec![0; BLOCK_LEN];
        good.encode(&mut block);
        assert_eq!(SegmentHeader::decode(&block, 9), Ok(good));
        assert_eq!(SegmentHeader::decode(&block, 8), Err(Flaw::Segment));
        for bit in 0..block.len() * 8 {
            let mut flipped = block.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(SegmentHeader::decode(&flipped, 9).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_frame_cut_at_any_byte_is_no_frame() {
        let good = frame(5_000);
        for cut in 0..good.len() {
            let mut torn = good[..cut].to_vec();
            assert!(verify(&torn).is_err(), "cut at {cut}");
            torn.resize(good.len(), 0);
            if torn != good {
                assert!(verify(&torn).is_err(), "zeros from {cut}");
            }
        }
    }

    #[test]
    fn frames_of_other_places_and_versions_are_told_apart() {
        let good = frame(80);
        let at = |journal, segment| {
            Unverified::take(&good).unwrap().verify(JournalId::new(journal), segment).err()
        };
        assert_eq!(at(0xfeed, 3), None);
        assert_eq!(at(0xfeed, 4), Some(Flaw::Segment));
        assert_eq!(at(0xbeef, 3), Some(Flaw::Journal));
        let mut newer = good.clone();
        newer[12..16].copy_from_slice(&2u32.to_le_bytes());
        assert_eq!(verify(&newer), Err(Flaw::Checksum));
        let checksum = crc32c::crc32c(&newer[COVER_AT..]);
        newer[8..12].copy_from_slice(&checksum.to_le_bytes());
        assert_eq!(verify(&newer), Err(Flaw::Newer { version: 2 }));
        let mut huge = good.clone();
        huge[LENGTH_AT..LENGTH_AT + 4].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(verify(&huge), Err(Flaw::Length));
        assert_eq!(verify(&[]), Err(Flaw::Magic));
    }
}
