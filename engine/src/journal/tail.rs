//! Readers behind the writer: from any sequence number on, up to what is durable.
//!
//! For replay at the start, for shipping and auditing while the node runs, and for reading a
//! stopped node. A tail reads the files, never the writer's memory, in O(1) memory, over any
//! number of segments. It runs on its user's thread and shares one atomic with the writer.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::disk::{Access, Disk, RealDisk};
use super::error::JournalError;
use super::format::{BLOCK_LEN, FrameHeader};
use super::reader::{Found, FrameReader};
use super::recovery::Expected;
use super::scan::{Place, Scan, scan};
use super::segments;
use crate::clock::Stamp;
use crate::units::{Incarnation, JournalId, Seq};

/// The sequence number through which everything is durable.
#[derive(Default)]
pub struct DurableMark(AtomicU64);

impl DurableMark {
    pub fn new(seq: Seq) -> Self {
        Self(AtomicU64::new(seq.get()))
    }
    /// Acquire, partner of the Release in `advance`: whoever sees the number also finds, through
    /// the file system, the bytes that were written before it.
    pub fn get(&self) -> Seq {
        Seq::new(self.0.load(Ordering::Acquire))
    }
    /// Called by the journal's thread alone.
    pub fn advance(&self, seq: Seq) {
        self.0.store(seq.get(), Ordering::Release);
    }
}

/// The records of one frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RecordRun<'a> {
    pub first_seq: Seq,
    pub record_count: u32,
    pub incarnation: Incarnation,
    pub stamp: Stamp,
    /// The records, one behind the other, as the producer encoded them.
    pub records: &'a [u8],
}

impl RecordRun<'_> {
    pub fn last_seq(&self) -> Seq {
        Seq::new(self.first_seq.get() + u64::from(self.record_count) - 1)
    }
}

/// Read windows: small where the writer is near, so that little is read twice.
const CHUNK_LEN_MIN: usize = 32 * 1024;
const CHUNK_LEN_MAX: usize = 1 << 20;

/// A reader that follows the journal.
pub struct Tail<D: Disk> {
    disk: D,
    journal: JournalId,
    durable: Arc<DurableMark>,
    /// Records below are skipped, a frame at a time.
    from: Seq,
    file: D::File,
    place: Place,
    /// `None` before the first frame of a segment chosen by number.
    expected: Option<Expected>,
    reader: FrameReader,
}

impl<D: Disk> Tail<D> {
    /// Begins at the frame that holds `from`, or will hold it.
    ///
    /// Errors: `Gone` where that frame's segment was deleted.
    pub fn open(
        disk: D,
        journal: JournalId,
        from: Seq,
        durable: Arc<DurableMark>,
    ) -> Result<Self, JournalError> {
        let mut reader = FrameReader::new(CHUNK_LEN_MIN);
        let mut chosen: Option<(u64, D::File, Option<Expected>)> = None;
        let mut lowest = None;
        for number in segments::list(&disk)? {
            let file = match segments::open(&disk, number, Access::Read) {
                Ok((file, _)) => file,
                // Deleted since it was listed: covered, so nobody needs it.
                Err(JournalError::Io { source, .. })
                    if source.kind() == io::ErrorKind::NotFound =>
                {
                    continue;
                }
                Err(e) => return Err(e),
            };
            reader.forget();
            let reading = JournalError::io(format!("reading {}", segments::name(number)));
            let found = reader.at(&file, journal, number, BLOCK_LEN as u64).map_err(reading)?;
            let first_seq = match found {
                Found::Frame(frame) => frame.header().first_seq,
                _ if number == 1 => Expected::FIRST.first_seq,
                // A spare, or one whose first frame is being written: reached by walking.
                _ => break,
            };
            lowest.get_or_insert(first_seq);
            if first_seq > from && chosen.is_some() {
                break;
            }
            chosen = Some((number, file, (number == 1).then_some(Expected::FIRST)));
        }
        let first = lowest.unwrap_or(Seq::NONE);
        let Some((segment, file, expected)) = chosen.filter(|_| first <= from.max(Seq::new(1)))
        else {
            return Err(JournalError::Gone { from, first });
        };
        reader.forget();
        let place = Place { segment, offset: BLOCK_LEN as u64 };
        Ok(Self { disk, journal, durable, from, file, place, expected, reader })
    }

    /// The next frame with records at or above `from`; `None` when all that is durable was read.
    ///
    /// Call it again later: what becomes durable meanwhile will be there. The first frame given
    /// may begin below `from`.
    ///
    /// Errors: `Damaged` where a durable frame is not there, or the disk's.
    #[allow(clippy::should_implement_trait, reason = "a lending iterator: the run borrows self")]
    pub fn next(&mut self) -> Result<Option<RecordRun<'_>>, JournalError> {
        loop {
            let due = self.expected.map_or(Seq::new(1), |e| e.first_seq);
            if due > self.durable.get() {
                return Ok(None);
            }
            let mut here = self.here()?;
            if here.is_none() {
                // What is due is durable, so it stands on disk by now: what was read is old, or
                // the segment was full and it is the first of the next one.
                self.reader.forget();
                self.reader.set_chunk_len(CHUNK_LEN_MIN);
                here = self.here()?;
            }
            let Some((header, checksum)) = here else {
                self.turn_to_next_segment()?;
                continue;
            };
            let at = self.place.offset;
            self.expected = Some(Expected::after(&header, checksum));
            self.place.offset += header.frame_len() as u64;
            if header.record_count > 0 && header.last_seq() >= self.from {
                self.reader.grow_chunk_len(CHUNK_LEN_MAX);
                return Ok(Some(RecordRun {
                    first_seq: header.first_seq,
                    record_count: header.record_count,
                    incarnation: header.incarnation,
                    stamp: header.stamp,
                    records: self.reader.records(at, &header),
                }));
            }
        }
    }

    /// The header and checksum of the frame at this place, if it is the one that is due.
    fn here(&mut self) -> Result<Option<(FrameHeader, u32)>, JournalError> {
        let Place { segment, offset } = self.place;
        let found = self.reader.at(&self.file, self.journal, segment, offset);
        let reading = |e| JournalError::io(format!("reading {}", segments::name(segment)))(e);
        let Found::Frame(frame) = found.map_err(reading)? else { return Ok(None) };
        let is_due = self.expected.is_none_or(|e| e.is_met_by(frame.header()));
        Ok(is_due.then(|| (*frame.header(), frame.checksum())))
    }

    fn turn_to_next_segment(&mut self) -> Result<(), JournalError> {
        let before = self.place;
        let next = self.place.segment + 1;
        match segments::open(&self.disk, next, Access::Read) {
            Ok((file, _)) => self.file = file,
            Err(JournalError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                return Err(self.damaged(before));
            }
            Err(e) => return Err(e),
        }
        self.place = Place { segment: next, offset: BLOCK_LEN as u64 };
        self.reader.forget();
        if self.here()?.is_some() { Ok(()) } else { Err(self.damaged(before)) }
    }

    fn damaged(&self, place: Place) -> JournalError {
        let number = self.expected.map_or(0, |e| e.number);
        JournalError::Damaged {
            file: segments::name(place.segment),
            offset: place.offset,
            frame: number,
            claimed: number,
            found: "found: no such frame".to_owned(),
        }
    }
}

/// A journal opened to be read only, on a stopped node: nothing is repaired, nothing changed.
pub struct StoppedJournal {
    disk: RealDisk,
    scan: Scan,
}

impl StoppedJournal {
    /// Reads through the journal in `path` and finds its end, as opening it would.
    ///
    /// Errors: those of [`scan`], and `Missing`.
    pub fn open(path: &Path) -> Result<Self, JournalError> {
        let missing = || JournalError::Missing { path: path.to_owned() };
        let disk = RealDisk::open_read_only(path).map_err(|_| missing())?;
        let scan = scan(&disk, |_, _| {})?.ok_or_else(missing)?;
        Ok(Self { disk, scan })
    }
    pub fn scan(&self) -> &Scan {
        &self.scan
    }
    pub fn journal(&self) -> JournalId {
        self.scan.journal
    }
    pub fn first_seq(&self) -> Seq {
        self.scan.first_seq
    }
    pub fn last_seq(&self) -> Seq {
        self.scan.last_seq()
    }
    /// Reads from `from` to the end.
    pub fn tail(&self, from: Seq) -> Result<Tail<RealDisk>, JournalError> {
        let durable = Arc::new(DurableMark::new(self.last_seq()));
        Tail::open(self.disk.clone(), self.scan.journal, from, durable)
    }
}
