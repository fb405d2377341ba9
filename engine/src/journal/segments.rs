//! Segment files: their names, how one is made ready ahead of need, and how one is removed.

use std::io;

use super::buffer::AlignedBuffer;
use super::disk::{Access, Disk, DiskFile};
use super::error::JournalError;
use super::format::{self, BLOCK_LEN, Flaw, SegmentHeader};
use crate::crash::CrashPoint;
use crate::crash_point;

const SUFFIX: &str = ".segment";
/// What a segment is called while it is made.
const UNFINISHED_SUFFIX: &str = ".segment.new";
/// Zeros are written in pieces, so that no single write holds up the journal's own for long.
const FILL_LEN: usize = 256 * 1024;

static ZEROS: Zeros = Zeros([0; FILL_LEN]);

/// Aligned as direct I/O demands.
#[repr(align(4096))]
struct Zeros([u8; FILL_LEN]);

const _: () = assert!(std::mem::align_of::<Zeros>() == BLOCK_LEN);

/// The file name of a segment: sorts by number.
pub fn name(segment: u64) -> String {
    format!("{segment:012}{SUFFIX}")
}

/// The segment that a file name stands for.
pub fn number(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(SUFFIX)?;
    (digits.len() == 12).then(|| digits.parse().ok()).flatten().filter(|n| *n > 0)
}

/// A segment that is zero-filled, durable and has its name.
pub struct Prepared<F> {
    pub segment: u64,
    pub file: F,
    pub file_len: u64,
}

/// Makes a segment ready: afterwards writing a frame into it changes no metadata.
///
/// Errors: whatever the disk says, ENOSPC above all. Nothing is left behind then, as far as the
/// disk allows; what is left is removed at the next try.
pub fn prepare<D: Disk>(disk: &D, header: &SegmentHeader) -> io::Result<Prepared<D::File>> {
    prepare_at_pace(disk, header, &mut |_| {})
}

/// The same, where `pace` is called with the bytes filled so far, and may take its time.
pub fn prepare_at_pace<D: Disk>(
    disk: &D,
    header: &SegmentHeader,
    pace: &mut dyn FnMut(u64),
) -> io::Result<Prepared<D::File>> {
    let unfinished = format!("{:012}{UNFINISHED_SUFFIX}", header.segment);
    let made = make(disk, header, &unfinished, pace);
    if made.is_err() {
        let _ = disk.remove(&unfinished);
    }
    made
}

fn make<D: Disk>(
    disk: &D,
    header: &SegmentHeader,
    unfinished: &str,
    pace: &mut dyn FnMut(u64),
) -> io::Result<Prepared<D::File>> {
    match disk.remove(unfinished) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let file = disk.create(unfinished)?;
    crash_point!(CrashPoint::SegmentAfterCreate);
    file.allocate(header.file_len)?;
    let mut at = BLOCK_LEN as u64;
    while at < header.file_len {
        let len = (FILL_LEN as u64).min(header.file_len - at);
        file.write_at(at, &ZEROS.0[..len as usize])?;
        at += len;
        pace(at);
    }
    let mut block = AlignedBuffer::new(BLOCK_LEN);
    header.encode(block.as_mut_slice());
    file.write_at(0, block.as_slice())?;
    crash_point!(CrashPoint::SegmentAfterFill);
    file.sync()?;
    crash_point!(CrashPoint::SegmentAfterSync);
    disk.rename(unfinished, &name(header.segment))?;
    crash_point!(CrashPoint::SegmentAfterRename);
    disk.sync_dir()?;
    crash_point!(CrashPoint::SegmentAfterDirSync);
    Ok(Prepared { segment: header.segment, file, file_len: header.file_len })
}

/// Removes a segment for good. Called from the lowest number up, one at a time, so that a crash
/// in between leaves no gap. Again where the directory could not be synced: it is gone already then
/// [its removal failed for ever, and no segment behind it went any more].
pub fn remove<D: Disk>(disk: &D, segment: u64) -> io::Result<()> {
    crash_point!(CrashPoint::SegmentBeforeRemove);
    match disk.remove(&name(segment)) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    crash_point!(CrashPoint::SegmentAfterRemove);
    disk.sync_dir()
}

/// The numbers of the segments that are there, in order.
///
/// Errors: `SegmentMissing` where they have a gap.
pub fn list<D: Disk>(disk: &D) -> Result<Vec<u64>, JournalError> {
    let names = disk.list().map_err(JournalError::io("listing the journal's folder"))?;
    let numbers: Vec<u64> = names.iter().filter_map(|n| number(n)).collect();
    for pair in numbers.windows(2) {
        if pair[0] + 1 != pair[1] {
            return Err(JournalError::SegmentMissing { file: name(pair[0] + 1) });
        }
    }
    Ok(numbers)
}

/// Removes what an interrupted [`prepare`] left behind.
pub fn remove_unfinished<D: Disk>(disk: &D) -> io::Result<()> {
    for name in disk.list()?.iter().filter(|n| n.ends_with(UNFINISHED_SUFFIX)) {
        disk.remove(name)?;
    }
    Ok(())
}

/// Opens a segment and checks its header.
///
/// Errors: `Newer`, `SegmentHeader` for damage, or the disk's.
pub fn open<D: Disk>(
    disk: &D,
    segment: u64,
    access: Access,
) -> Result<(D::File, SegmentHeader), JournalError> {
    let name = name(segment);
    let io = |e| JournalError::io(format!("opening {name}"))(e);
    let file = disk.open(&name, access).map_err(io)?;
    let mut block = AlignedBuffer::new(BLOCK_LEN);
    let len = file.read_at(0, block.as_mut_slice()).map_err(io)?;
    match SegmentHeader::decode(&block.as_slice()[..len], segment) {
        Ok(header) if file.len().map_err(io)? < header.file_len => {
            Err(JournalError::SegmentHeader { file: name, flaw: Flaw::Length })
        }
        Ok(header) => Ok((file, header)),
        Err(Flaw::Newer { version }) => {
            Err(JournalError::Newer { file: name, version, ours: format::VERSION })
        }
        Err(flaw) => Err(JournalError::SegmentHeader { file: name, flaw }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_sort_by_number_and_are_found_again() {
        assert_eq!(name(7), "000000000007.segment");
        assert_eq!(number(&name(7)), Some(7));
        for other in ["000000000007.segment.new", "7.segment", "000000000000.segment", "lock"] {
            assert_eq!(number(other), None, "{other}");
        }
    }
}
