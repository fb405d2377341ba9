//! The journal as a state machine without threads: opened and repaired, then one frame at a time.
//!
//! [`super::driver`] runs it on the thread `journal`; tests and the simulation run it directly.
//! Invariants: frames are numbered without gaps and repeat their predecessor's checksum; after
//! one failed write or sync nothing is written any more (I7).

use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::buffer::AlignedBuffer;
use super::disk::{Access, Disk, DiskFile};
use super::error::JournalError;
use super::format::{
    self, BLOCK_LEN, FRAME_HEADER_LEN, FRAME_LEN_MAX, FRAME_RECORD_BYTES_MAX,
    FRAME_RECORD_COUNT_MAX, FrameHeader, FrameKind, SegmentHeader, frame_len,
};
use super::reader::is_blank;
use super::recovery::Expected;
use super::scan::{Place, Scan, SegmentInfo, scan};
use super::segments::{self, Prepared};
use crate::clock::{Clock, NodeClock, Stamp};
use crate::crash::CrashPoint;
use crate::crash_point;
use crate::planted::{self, Bug};
use crate::units::{Incarnation, JournalId, Seq};

/// A frame under construction: records are copied once, to where they are written from.
pub struct FrameBuilder {
    buffer: AlignedBuffer,
    record_bytes: usize,
    record_count: u32,
}

impl Default for FrameBuilder {
    fn default() -> Self {
        Self::new()
    }
}

impl FrameBuilder {
    pub fn new() -> Self {
        Self { buffer: AlignedBuffer::new(FRAME_LEN_MAX), record_bytes: 0, record_count: 0 }
    }
    pub fn is_empty(&self) -> bool {
        self.record_count == 0
    }
    pub fn record_count(&self) -> u32 {
        self.record_count
    }
    pub fn record_bytes(&self) -> usize {
        self.record_bytes
    }
    /// Whether this much more fits in.
    pub fn has_room(&self, record_bytes: usize, record_count: u32) -> bool {
        self.record_bytes + record_bytes <= FRAME_RECORD_BYTES_MAX
            && self.record_count + record_count <= FRAME_RECORD_COUNT_MAX
    }
    /// Takes space for records, which the caller fills.
    ///
    /// Panics: where [`FrameBuilder::has_room`] says no.
    pub fn extend(&mut self, record_bytes: usize, record_count: u32) -> &mut [u8] {
        assert!(self.has_room(record_bytes, record_count), "the caller asked for room first");
        let start = FRAME_HEADER_LEN + self.record_bytes;
        self.record_bytes += record_bytes;
        self.record_count += record_count;
        &mut self.buffer.as_mut_slice()[start..start + record_bytes]
    }
    pub fn clear(&mut self) {
        self.record_bytes = 0;
        self.record_count = 0;
    }
    fn frame_mut(&mut self) -> &mut [u8] {
        &mut self.buffer.as_mut_slice()[..frame_len(self.record_bytes)]
    }
}

/// Why a frame was not written.
#[derive(Debug)]
pub enum AppendError {
    /// It does not fit into the segment, and no next one is ready. Nothing has happened.
    SegmentFull,
    /// The journal is poisoned, by this write or an earlier one.
    Failed(io::Error),
}

/// How a journal is opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CoreOptions {
    pub segment_bytes: u64,
    /// How much wall time of a downtime counts for node time.
    pub downtime_max: Duration,
}

/// The writing end of a journal.
pub struct JournalCore<D: Disk> {
    disk: D,
    journal: JournalId,
    incarnation: Incarnation,
    segment_bytes: u64,
    current: Prepared<D::File>,
    offset: u64,
    spare: Option<Prepared<D::File>>,
    next: Expected,
    durable_frame: u64,
    durable_seq: Seq,
    is_poisoned: bool,
}

/// A journal after opening, before its first record.
pub struct OpenedCore<D: Disk> {
    pub core: JournalCore<D>,
    pub clock: Arc<NodeClock>,
    /// The first sequence number still there.
    pub first_seq: Seq,
    /// The last record's sequence number, also the durable one.
    pub last_seq: Seq,
    /// Segments that hold frames, in order.
    pub segments: Vec<SegmentInfo>,
}

impl<D: Disk> JournalCore<D> {
    /// Opens the journal in `disk`, or makes a new one with `new_journal` as its id.
    ///
    /// In this order, each durable before the next: everything behind the end is zeroed; frames
    /// that no later one proves are written anew; the incarnation is raised. So whoever holds
    /// the result may answer from it.
    pub fn open(
        disk: &D,
        options: CoreOptions,
        clock: Arc<dyn Clock>,
        new_journal: JournalId,
    ) -> Result<OpenedCore<D>, JournalError> {
        let removing = JournalError::io("removing unfinished segments");
        segments::remove_unfinished(disk).map_err(removing)?;
        let found = if let Some(found) = scan(disk, |_, _| {})? {
            found
        } else {
            let header = SegmentHeader {
                journal: new_journal,
                segment: 1,
                file_len: options.segment_bytes,
                incarnation: Incarnation::new(1),
            };
            let making = JournalError::io("making the first segment");
            segments::prepare(disk, &header).map_err(making)?;
            scan(disk, |_, _| {})?.expect("a segment was just made")
        };
        repair(disk, &found)?;
        let stamp = found.last.map(|f| f.header.stamp);
        let clock = Arc::new(NodeClock::resume(clock, stamp, options.downtime_max));
        let mut core = Self::attach(disk, &found, options)?;
        core.record_opening(&clock)?;
        let mut segments = found.segments;
        segments.retain(|s| s.number <= core.current.segment);
        if segments.last().is_none_or(|s| s.number < core.current.segment) {
            // The opening mark found no room, and had a segment made.
            let (number, file_len) = (core.current.segment, core.current.file_len);
            segments.push(SegmentInfo { number, file_len, first_seq: None });
        }
        Ok(OpenedCore {
            clock,
            first_seq: found.first_seq,
            last_seq: core.durable_seq,
            segments,
            core,
        })
    }

    fn attach(disk: &D, found: &Scan, options: CoreOptions) -> Result<Self, JournalError> {
        let open = |segment| {
            let (file, header) = segments::open(disk, segment, Access::ReadWrite)?;
            Ok::<_, JournalError>(Prepared { segment, file, file_len: header.file_len })
        };
        let has_spare = found.segments.iter().any(|s| s.number == found.end.segment + 1);
        let last_incarnation = found.expected.incarnation.get();
        let raised = u32::from(!planted::is(Bug::IncarnationKept));
        let incarnation = last_incarnation.checked_add(raised);
        let incarnation = incarnation.expect("2^32 starts outlive the disk");
        Ok(Self {
            disk: disk.clone(),
            journal: found.journal,
            incarnation: Incarnation::new(incarnation),
            segment_bytes: options.segment_bytes,
            current: open(found.end.segment)?,
            offset: found.end.offset,
            spare: has_spare.then(|| open(found.end.segment + 1)).transpose()?,
            next: found.expected,
            durable_frame: found.expected.number - 1,
            durable_seq: found.last_seq(),
            is_poisoned: false,
        })
    }

    /// Raises the incarnation durably, by a frame of its own.
    fn record_opening(&mut self, clock: &NodeClock) -> Result<(), JournalError> {
        crash_point!(CrashPoint::OpenBeforeIncarnation);
        let recording = |e| JournalError::io("recording the new incarnation")(e);
        let mut frame = FrameBuilder::new();
        let mut outcome = self.append(&mut frame, FrameKind::Opening, clock.stamp());
        if matches!(outcome, Err(AppendError::SegmentFull)) {
            let spare = segments::prepare(&self.disk, &self.next_segment()).map_err(recording)?;
            self.offer_spare(spare);
            outcome = self.append(&mut frame, FrameKind::Opening, clock.stamp());
        }
        match outcome {
            Ok(()) => {}
            Err(AppendError::SegmentFull) => unreachable!("an empty segment takes a block"),
            Err(AppendError::Failed(e)) => return Err(recording(e)),
        }
        crash_point!(CrashPoint::OpenAfterIncarnation);
        Ok(())
    }

    pub fn journal(&self) -> JournalId {
        self.journal
    }
    pub fn incarnation(&self) -> Incarnation {
        self.incarnation
    }
    pub fn disk(&self) -> &D {
        &self.disk
    }
    /// The last record that is durable.
    pub fn durable_seq(&self) -> Seq {
        self.durable_seq
    }
    /// The sequence number that the next frame's first record gets.
    pub fn next_seq(&self) -> Seq {
        self.next.first_seq
    }
    /// The segment that is written to.
    pub fn segment(&self) -> u64 {
        self.current.segment
    }
    /// Whether a next segment is ready.
    pub fn has_spare(&self) -> bool {
        self.spare.is_some()
    }
    /// Whether a frame of this many bytes of records goes into the current segment.
    pub fn fits(&self, record_bytes: usize) -> bool {
        self.offset + frame_len(record_bytes) as u64 <= self.current.file_len
    }

    /// What the segment after the current one (or the spare one) is to be headed with.
    pub fn next_segment(&self) -> SegmentHeader {
        let last = self.spare.as_ref().map_or(self.current.segment, |s| s.segment);
        SegmentHeader {
            journal: self.journal,
            segment: last + 1,
            file_len: self.segment_bytes,
            incarnation: self.incarnation,
        }
    }

    /// Hands over the next segment, made by [`segments::prepare`].
    pub fn offer_spare(&mut self, spare: Prepared<D::File>) {
        assert!(self.spare.is_none(), "one spare at a time");
        assert_eq!(spare.segment, self.current.segment + 1, "segments have no gap");
        self.spare = Some(spare);
    }

    /// Writes a frame, and returns once it is durable. `frame` is not cleared.
    ///
    /// Turns to the next segment by itself where the frame does not fit into this one.
    pub fn append(
        &mut self,
        frame: &mut FrameBuilder,
        kind: FrameKind,
        stamp: Stamp,
    ) -> Result<(), AppendError> {
        if self.is_poisoned {
            return Err(AppendError::Failed(io::Error::other("the journal is poisoned")));
        }
        if !self.fits(frame.record_bytes) {
            let spare = self.spare.take().ok_or(AppendError::SegmentFull)?;
            self.current = spare;
            self.offset = BLOCK_LEN as u64;
            crash_point!(CrashPoint::JournalAfterRotation);
        }
        let header = FrameHeader {
            journal: self.journal,
            segment: self.current.segment,
            number: self.next.number,
            incarnation: self.incarnation,
            kind,
            record_bytes: frame.record_bytes as u32,
            record_count: frame.record_count,
            previous_checksum: self.next.previous_checksum,
            first_seq: self.next.first_seq,
            durable_frame: self.durable_frame,
            durable_through: self.durable_seq,
            stamp,
        };
        let bytes = frame.frame_mut();
        let checksum = format::seal_frame(bytes, &header);
        crash_point!(CrashPoint::JournalBeforeWrite);
        if let Err(e) = self.current.file.write_durable_at(self.offset, bytes)
            && !planted::is(Bug::IgnoreFailedWrite)
        {
            self.is_poisoned = true;
            return Err(AppendError::Failed(e));
        }
        crash_point!(CrashPoint::JournalAfterWrite);
        self.offset += bytes.len() as u64;
        self.next = Expected::after(&header, checksum);
        self.durable_frame = header.number;
        self.durable_seq = header.last_seq();
        Ok(())
    }
}

/// Makes the disk agree with what the scan decided.
fn repair<D: Disk>(disk: &D, found: &Scan) -> Result<(), JournalError> {
    if found.is_dirty_behind {
        crash_point!(CrashPoint::OpenBeforeZeroing);
        for segment in found.segments.iter().filter(|s| s.number >= found.end.segment) {
            let is_last = segment.number == found.end.segment;
            let offset = if is_last { found.end.offset } else { BLOCK_LEN as u64 };
            zero_from(disk, Place { segment: segment.number, offset })
                .map_err(JournalError::io("zeroing what is behind the journal's end"))?;
        }
        crash_point!(CrashPoint::OpenAfterZeroing);
    }
    if !found.unproven.is_empty() && !planted::is(Bug::TailNotRewritten) {
        crash_point!(CrashPoint::OpenBeforeResync);
        let writing = |e| JournalError::io("writing the last frames anew")(e);
        for frame in &found.unproven {
            let Place { segment, offset } = frame.place;
            let file = disk.open(&segments::name(segment), Access::ReadWrite).map_err(writing)?;
            let mut bytes = AlignedBuffer::new(frame.header.frame_len());
            let len = file.read_at(offset, bytes.as_mut_slice()).map_err(writing)?;
            assert_eq!(len, bytes.len(), "the scan read this very frame");
            file.write_durable_at(offset, bytes.as_slice()).map_err(writing)?;
        }
        crash_point!(CrashPoint::OpenAfterResync);
    }
    Ok(())
}

/// Writes zeros over whatever is not zero, from `from` to the segment's end, and syncs.
fn zero_from<D: Disk>(disk: &D, from: Place) -> io::Result<()> {
    const CHUNK_LEN: usize = 256 * 1024;
    let file = disk.open(&segments::name(from.segment), Access::ReadWrite)?;
    let (mut chunk, zeros) = (AlignedBuffer::new(CHUNK_LEN), AlignedBuffer::new(CHUNK_LEN));
    let mut offset = from.offset;
    loop {
        let len = file.read_at(offset, chunk.as_mut_slice())?;
        if len == 0 {
            return file.sync();
        }
        if !is_blank(&chunk.as_slice()[..len]) {
            file.write_at(offset, &zeros.as_slice()[..len])?;
        }
        offset += len as u64;
    }
}
