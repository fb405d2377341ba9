//! Walks a journal from its first frame to its end, and changes nothing.
//!
//! The walk verifies every frame; [`super::recovery`] decides where it ends. [`super::core`]
//! repairs what it found, `inspect` prints it, and read-only users stop there.

use super::disk::{Access, Disk};
use super::error::JournalError;
use super::format::{self, BLOCK_LEN, Flaw, FrameHeader};
use super::reader::{Found, FrameReader};
use super::recovery::{self, Behind, Expected, Here, Verdict};
use super::segments;
use crate::units::{JournalId, Seq};

const CHUNK_LEN: usize = 1 << 20;

/// A place in the journal's files.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    pub segment: u64,
    pub offset: u64,
}

/// A segment and the first frame in it, where there is one before the end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SegmentInfo {
    pub number: u64,
    pub file_len: u64,
    /// The first sequence number that a record in it has, or would have.
    pub first_seq: Option<Seq>,
}

/// A frame as the walk remembers it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FrameAt {
    pub place: Place,
    pub header: FrameHeader,
    pub checksum: u32,
}

/// What a journal holds.
#[derive(Debug)]
pub struct Scan {
    pub journal: JournalId,
    /// All segments, in order; those behind the end are spares.
    pub segments: Vec<SegmentInfo>,
    /// Where the next frame goes, if it fits there.
    pub end: Place,
    /// The last frame, or none in a new journal.
    pub last: Option<FrameAt>,
    /// What the next frame must say.
    pub expected: Expected,
    /// The first sequence number still there.
    pub first_seq: Seq,
    /// The last frames, which no other frame proves durable.
    pub unproven: Vec<FrameAt>,
    /// There is something behind the end that is not zero.
    pub is_dirty_behind: bool,
    pub frame_count: u64,
}

impl Scan {
    /// The last record's sequence number.
    pub fn last_seq(&self) -> Seq {
        Seq::new(self.expected.first_seq.get() - 1)
    }
}

/// Walks the journal in `disk`; `None` where it holds no segment.
///
/// `visit` sees every frame that belongs to the journal, in order.
///
/// Errors: damage, a newer version, a missing or mixed-in segment, or the disk's.
pub fn scan<D: Disk>(
    disk: &D,
    mut visit: impl FnMut(&FrameAt, &[u8]),
) -> Result<Option<Scan>, JournalError> {
    let numbers = segments::list(disk)?;
    let Some(first) = numbers.first().copied() else { return Ok(None) };
    let mut walk = Walk::begin(disk, &numbers)?;
    // Only the first segment ever made has a known first frame. Where it was deleted, the next
    // one's first frame was durable then, and is believed.
    let mut expected = (first == 1).then_some(Expected::FIRST);
    let (mut last, mut frame_count, mut claim) = (None, 0, 0);
    let mut unproven: Vec<FrameAt> = Vec::new();
    let mut end = Place { segment: first, offset: BLOCK_LEN as u64 };
    let mut index = 0;
    let here = loop {
        let (here, taken) = walk.look(end, expected.as_ref(), &mut visit)?;
        if let Some(frame) = taken {
            expected = Some(Expected::after(&frame.header, frame.checksum));
            claim = claim.max(frame.header.durable_frame);
            unproven.retain(|f| f.header.number > claim);
            unproven.push(frame);
            walk.segments[index].first_seq.get_or_insert(frame.header.first_seq);
            frame_count += 1;
            last = Some(frame);
            end.offset += frame.header.frame_len() as u64;
            continue;
        }
        // Not here. Where the next segment's first frame continues the journal, this one was
        // full; else the journal ends here, or is damaged here.
        let Some(next) = numbers.get(index + 1).copied().filter(|_| expected.is_some()) else {
            break here;
        };
        let place = Place { segment: next, offset: BLOCK_LEN as u64 };
        let (_, taken) = walk.look(place, expected.as_ref(), &mut |_, _| {})?;
        if taken.is_none() {
            break here;
        }
        (end, index) = (place, index + 1);
    };
    let behind = walk.survey(end, claim)?;
    let Some(expected) = expected else {
        return Err(JournalError::BaseDamaged { file: segments::name(first) });
    };
    let file = || segments::name(end.segment);
    let is_dirty_behind = match recovery::decide(here, behind, expected.number) {
        Verdict::Take => unreachable!("the walk stops only where no frame continues it"),
        Verdict::End { zero } => zero,
        Verdict::Newer { version } => {
            return Err(JournalError::Newer { file: file(), version, ours: format::VERSION });
        }
        Verdict::Damage { claimed } => {
            return Err(JournalError::Damaged {
                file: file(),
                offset: end.offset,
                frame: expected.number,
                claimed,
                found: format!("found: {here:?}").to_lowercase(),
            });
        }
    };
    let first_seq = walk.segments[0].first_seq.unwrap_or(expected.first_seq);
    Ok(Some(Scan {
        journal: walk.journal,
        segments: walk.segments,
        end,
        last,
        expected,
        first_seq,
        unproven,
        is_dirty_behind,
        frame_count,
    }))
}

/// The walk's open file and window.
struct Walk<'d, D: Disk> {
    disk: &'d D,
    journal: JournalId,
    segments: Vec<SegmentInfo>,
    open: Option<(u64, D::File)>,
    reader: FrameReader,
}

impl<'d, D: Disk> Walk<'d, D> {
    /// Checks the headers of all segments first: a newer or mixed-in one is said before damage.
    fn begin(disk: &'d D, numbers: &[u64]) -> Result<Self, JournalError> {
        let mut segments = Vec::with_capacity(numbers.len());
        let mut journal = None;
        for &number in numbers {
            let (_, header) = segments::open(disk, number, Access::Read)?;
            let expected = *journal.get_or_insert(header.journal);
            if header.journal != expected {
                let (file, found) = (segments::name(number), header.journal);
                return Err(JournalError::Mixed { file, expected, found });
            }
            segments.push(SegmentInfo { number, file_len: header.file_len, first_seq: None });
        }
        Ok(Self {
            disk,
            journal: journal.expect("there is a segment"),
            segments,
            open: None,
            reader: FrameReader::new(CHUNK_LEN),
        })
    }

    /// Says what stands at `place`, and gives the frame there if it continues the journal.
    fn look(
        &mut self,
        place: Place,
        expected: Option<&Expected>,
        visit: &mut impl FnMut(&FrameAt, &[u8]),
    ) -> Result<(Here, Option<FrameAt>), JournalError> {
        let journal = self.journal;
        Ok(match self.find(place)? {
            Found::Frame(frame) => {
                let (header, checksum) = (*frame.header(), frame.checksum());
                let at = FrameAt { place, header, checksum };
                match expected {
                    Some(expected) if !expected.is_met_by(&header) => (Here::Stray, None),
                    _ => {
                        debug_assert_eq!(header.journal, journal);
                        visit(&at, frame.records());
                        (Here::Continues, Some(at))
                    }
                }
            }
            Found::Blank | Found::End => (Here::Blank, None),
            Found::Flawed(Flaw::Newer { version }) => (Here::Newer { version }, None),
            Found::Flawed(_) => (Here::Broken, None),
        })
    }

    fn find(&mut self, place: Place) -> Result<Found<'_>, JournalError> {
        if self.open.as_ref().is_none_or(|(number, _)| *number != place.segment) {
            let (file, _) = segments::open(self.disk, place.segment, Access::Read)?;
            self.open = Some((place.segment, file));
            self.reader.forget();
        }
        let (_, file) = self.open.as_ref().expect("just opened");
        self.reader
            .at(file, self.journal, place.segment, place.offset)
            .map_err(|e| JournalError::io(format!("reading {}", segments::name(place.segment)))(e))
    }

    /// Looks at every block from `from` on, through the last segment.
    fn survey(&mut self, from: Place, claim: u64) -> Result<Behind, JournalError> {
        let mut behind = Behind { claim, is_blank: true, newer: None };
        let segments: Vec<SegmentInfo> =
            self.segments.iter().copied().filter(|s| s.number >= from.segment).collect();
        for segment in segments {
            let is_first = segment.number == from.segment;
            let mut offset = if is_first { from.offset } else { BLOCK_LEN as u64 };
            loop {
                match self.find(Place { segment: segment.number, offset })? {
                    Found::End => break,
                    Found::Blank => {}
                    Found::Frame(frame) => {
                        behind.is_blank = false;
                        behind.claim = behind.claim.max(frame.header().durable_frame);
                    }
                    Found::Flawed(flaw) => {
                        behind.is_blank = false;
                        if let Flaw::Newer { version } = flaw {
                            behind.newer = Some(version);
                        }
                    }
                }
                offset += BLOCK_LEN as u64;
            }
        }
        Ok(behind)
    }
}
