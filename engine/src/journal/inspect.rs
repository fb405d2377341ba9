//! Reads a stopped journal for people: what `onrush journal inspect` and `verify` print.
//!
//! Nothing is changed. Records are handed to the caller, who alone knows what is in them.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::path::Path;

use super::disk::{Access, Disk, DiskFile, RealDisk};
use super::error::JournalError;
use super::format::{BLOCK_LEN, Flaw};
use super::reader::{Found, FrameReader};
use super::scan::{FrameAt, Scan, scan};
use super::{segments, snapshot};
use crate::units::{JournalId, NodeTime, Seq};

/// What to print.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct InspectOptions {
    /// One line for each frame.
    pub frames: bool,
    /// The records of each frame, by the caller's printer.
    pub records: bool,
    /// Only frames with records from here on.
    pub from: Seq,
    /// And up to here.
    pub to: Seq,
}

impl Default for InspectOptions {
    fn default() -> Self {
        Self { frames: true, records: false, from: Seq::NONE, to: Seq::new(u64::MAX) }
    }
}

/// What a journal holds, in figures.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Summary {
    pub journal: JournalId,
    pub incarnation: u32,
    pub segment_count: usize,
    pub frame_count: u64,
    pub first_seq: Seq,
    pub last_seq: Seq,
    pub last_time: Option<NodeTime>,
    /// Frames at the end that no later one proves: written anew by the next start.
    pub unproven_count: usize,
    /// Something behind the end: a torn or stale frame, zeroed by the next start.
    pub is_dirty_behind: bool,
}

impl Summary {
    fn of(scan: &Scan) -> Self {
        Self {
            journal: scan.journal,
            incarnation: scan.expected.incarnation.get(),
            segment_count: scan.segments.len(),
            frame_count: scan.frame_count,
            first_seq: scan.first_seq,
            last_seq: scan.last_seq(),
            last_time: scan.last.map(|f| f.header.stamp.node),
            unproven_count: scan.unproven.len(),
            is_dirty_behind: scan.is_dirty_behind,
        }
    }
}

/// Prints the records of one frame: where to, the first sequence number, the count, the bytes.
pub type RecordPrinter<'p> = dyn FnMut(&mut dyn Write, Seq, u32, &[u8]) -> io::Result<()> + 'p;

/// One line per frame.
fn frame_line(at: &FrameAt) -> String {
    let h = &at.header;
    let mut line = String::new();
    let records = match h.record_count {
        0 => h.kind.name().to_owned(),
        count => format!("{count} records, seq {} to {}", h.first_seq, h.last_seq()),
    };
    let _ = write!(
        line,
        "  frame {:>8} @{:>10}  {}  incarnation {}  {} bytes  {records}  (durable through {})",
        h.number,
        at.place.offset,
        h.stamp.node.rfc3339(),
        h.incarnation,
        h.frame_len(),
        h.durable_through,
    );
    line
}

/// Prints segments, frames and records, as far as the journal is whole.
///
/// Errors: those of opening; what was read before is printed nevertheless.
pub fn inspect(
    dir: &Path,
    options: InspectOptions,
    out: &mut dyn Write,
    print_records: &mut RecordPrinter<'_>,
) -> Result<Summary, JournalError> {
    let disk = open(dir)?;
    let (mut segment, mut printed) = (0, Ok(()));
    let found = scan(&disk, |at, records| {
        if printed.is_err() {
            return;
        }
        printed = (|| {
            if at.place.segment != segment {
                segment = at.place.segment;
                writeln!(out, "{}", segments::name(segment))?;
            }
            let is_wanted =
                at.header.last_seq() >= options.from && at.header.first_seq <= options.to;
            if options.frames && is_wanted {
                writeln!(out, "{}", frame_line(at))?;
            }
            if options.records && is_wanted && at.header.record_count > 0 {
                print_records(out, at.header.first_seq, at.header.record_count, records)?;
            }
            Ok(())
        })();
    });
    printed.map_err(JournalError::io("printing"))?;
    found?.as_ref().map(Summary::of).ok_or_else(|| JournalError::Missing { path: dir.to_owned() })
}

/// Reads everything and says whether it is whole.
///
/// Errors: the first damage, or whatever else would keep the node from starting.
pub fn verify(dir: &Path) -> Result<Summary, JournalError> {
    let found = scan(&open(dir)?, |_, _| {})?;
    found.as_ref().map(Summary::of).ok_or_else(|| JournalError::Missing { path: dir.to_owned() })
}

/// A snapshot's own words, or its damage.
pub type SnapshotFound = Result<snapshot::SnapshotInfo, JournalError>;

/// Reads all kept snapshots in a folder; each with what it says of itself, or its damage.
pub fn verify_snapshots(dir: &Path) -> Result<Vec<SnapshotFound>, JournalError> {
    let Ok(disk) = RealDisk::open_read_only(dir) else { return Ok(Vec::new()) };
    let numbers = snapshot::list(&disk)?;
    Ok(numbers
        .into_iter()
        .map(|number| {
            let mut reader = snapshot::SnapshotReader::open(&disk, number)?;
            reader.verify().map(|()| *reader.info())
        })
        .collect())
}

/// Lists every block that is neither zero nor part of a valid frame: where damage lies.
pub fn flaws(dir: &Path, journal: JournalId) -> Result<Vec<(String, u64, Flaw)>, JournalError> {
    let disk = open(dir)?;
    let mut flaws = Vec::new();
    let mut reader = FrameReader::new(1 << 20);
    for number in segments::list(&disk)? {
        let name = segments::name(number);
        let reading = |e| JournalError::io(format!("reading {name}"))(e);
        let file = disk.open(&name, Access::Read).map_err(reading)?;
        let (mut offset, len) = (BLOCK_LEN as u64, file.len().map_err(reading)?);
        reader.forget();
        while offset < len {
            let step = match reader.at(&file, journal, number, offset).map_err(reading)? {
                Found::Frame(frame) => frame.header().frame_len(),
                Found::Flawed(flaw) => {
                    flaws.push((name.clone(), offset, flaw));
                    BLOCK_LEN
                }
                Found::Blank => BLOCK_LEN,
                Found::End => break,
            };
            offset += step as u64;
        }
    }
    Ok(flaws)
}

fn open(dir: &Path) -> Result<RealDisk, JournalError> {
    RealDisk::open_read_only(dir).map_err(|_| JournalError::Missing { path: dir.to_owned() })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::clock::ManualClock;
    use crate::journal::core::{CoreOptions, FrameBuilder, JournalCore};
    use crate::journal::format::FrameKind;

    #[test]
    fn a_journal_is_printed_and_its_flaws_are_found() {
        let folder = tempfile::tempdir().unwrap();
        let disk = RealDisk::open(folder.path(), false).unwrap();
        let options =
            CoreOptions { segment_bytes: 64 * 1024, downtime_max: std::time::Duration::ZERO };
        let clock = Arc::new(ManualClock::new(1_700_000_000_000));
        let mut opened = JournalCore::open(&disk, options, clock, JournalId::new(9)).unwrap();
        let mut frame = FrameBuilder::new();
        frame.extend(6, 2).copy_from_slice(b"aaabbb");
        let stamp = opened.clock.stamp();
        opened.core.append(&mut frame, FrameKind::Records, stamp).unwrap();
        opened.core.append(&mut frame, FrameKind::Records, stamp).unwrap();

        let mut out = Vec::new();
        let options = InspectOptions { records: true, ..InspectOptions::default() };
        let summary = inspect(folder.path(), options, &mut out, &mut |out, first, count, bytes| {
            writeln!(out, "    {first} {count} {}", String::from_utf8_lossy(bytes))
        });
        let text = String::from_utf8(out).unwrap();
        assert!(text.contains("000000000001.segment\n  frame        1 @      4096  2023-11-14T"));
        assert!(text.contains("opening"), "{text}");
        assert!(text.contains("2 records, seq 3 to 4  (durable through 2)\n    3 2 aaabbb\n"));
        let summary = summary.unwrap();
        assert_eq!((summary.frame_count, summary.last_seq), (3, Seq::new(4)));
        assert_eq!(verify(folder.path()).unwrap(), summary);
        assert!(flaws(folder.path(), summary.journal).unwrap().is_empty());

        let path = folder.path().join(segments::name(1));
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[2 * BLOCK_LEN + 140] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        assert!(matches!(verify(folder.path()), Err(JournalError::Damaged { frame: 2, .. })));
        let found = flaws(folder.path(), summary.journal).unwrap();
        assert_eq!(found, [(segments::name(1), 2 * BLOCK_LEN as u64, Flaw::Checksum)]);
        let missing = verify(&folder.path().join("nowhere")).err().unwrap();
        assert!(matches!(missing, JournalError::Missing { .. }));
    }
}
