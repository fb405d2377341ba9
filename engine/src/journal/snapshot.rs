//! Snapshots: one file of parts, each a slot's state (or the control state) at its own cut.
//!
//! The journal does not know what a part holds. A snapshot is written to a temporary name,
//! synced, renamed, and the directory synced; two are kept, so that a damaged one leaves another.
//!
//! # Byte map (little-endian; the file is whole blocks)
//! ```text
//! header block   0 magic ONRSNAP\n · 8 crc32c · 12 version u32 · 16 journal u64 · 24 node ms u64 ·
//!                32 wall ms u64 · 40 incarnation u32 · zeros
//! part           0 magic u32 · 4 crc32c · 8 length u64 · 16 cut u64 · 24 slot u16 · 26 zeros ·
//!                32 the part's bytes          (one behind the other, not aligned)
//! zeros          up to the next block
//! footer block   0 magic ONRSNPE\n · 8 crc32c · 12 part count u32 · 16 lowest cut u64 ·
//!                24 highest cut u64 · 32 bytes of all parts u64 · 40 crc32c over all parts'
//!                checksums u32 · zeros
//! ```
//! Checksums cover what stands behind them, as in [`super::format`].

use std::io;

use super::buffer::AlignedBuffer;
use super::disk::{Access, Disk, DiskFile};
use super::error::JournalError;
use super::format::BLOCK_LEN;
use super::recovery;
use crate::clock::Stamp;
use crate::crash::CrashPoint;
use crate::crash_point;
use crate::planted::{self, Bug};
use crate::units::{Incarnation, JournalId, NodeTime, Seq, Slot};

/// The version this code writes, and the newest that it reads.
pub const VERSION: u32 = 1;
/// How many snapshots are kept.
pub const KEPT_COUNT: usize = 2;
/// Bytes of the largest part.
pub const PART_LEN_MAX: usize = 1 << 30;

const HEADER_MAGIC: [u8; 8] = *b"ONRSNAP\n";
const FOOTER_MAGIC: [u8; 8] = *b"ONRSNPE\n";
const PART_MAGIC: u32 = u32::from_le_bytes(*b"PART");
const PART_HEAD_LEN: usize = 32;
const COVER_AT: usize = 12;
/// What is written or read at once: no more, so that the journal's own writes wait for little.
const CHUNK_LEN: usize = 128 * 1024;
const SUFFIX: &str = ".snapshot";
const UNFINISHED_SUFFIX: &str = ".snapshot.new";
const DAMAGED_SUFFIX: &str = ".damaged";

/// Whose state a snapshot holds, and when it was taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SnapshotHeader {
    pub journal: JournalId,
    pub incarnation: Incarnation,
    pub stamp: Stamp,
}

/// What a finished snapshot says of itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SnapshotInfo {
    pub number: u64,
    pub header: SnapshotHeader,
    pub part_count: u32,
    /// The journal is needed from behind this one on.
    pub lowest_cut: Seq,
    pub highest_cut: Seq,
    /// Bytes of all parts.
    pub part_bytes: u64,
}

/// One part.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Part<'a> {
    /// A slot, or a number that stands for something else (the control state).
    pub slot: Slot,
    /// The part is the state after this record, and before the next.
    pub cut: Seq,
    pub bytes: &'a [u8],
}

fn name(number: u64) -> String {
    format!("{number:012}{SUFFIX}")
}

fn number(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(SUFFIX)?;
    (digits.len() == 12).then(|| digits.parse().ok()).flatten()
}

fn io(what: &str, name: &str) -> impl Fn(io::Error) -> JournalError + use<> {
    let what = format!("{what} snapshot {name}");
    move |e| JournalError::io(what.clone())(e)
}

/// The numbers of the snapshots that are there, oldest first.
pub(super) fn list<D: Disk>(disk: &D) -> Result<Vec<u64>, JournalError> {
    let names = disk.list().map_err(JournalError::io("listing the snapshots' folder"))?;
    Ok(names.iter().filter_map(|n| number(n)).collect())
}

/// A snapshot on its way.
pub struct SnapshotWriter<D: Disk> {
    disk: D,
    number: u64,
    unfinished: String,
    file: D::File,
    chunk: AlignedBuffer,
    chunk_used: usize,
    offset: u64,
    part_count: u32,
    cuts: Option<(Seq, Seq)>,
    part_bytes: u64,
    checksum: u32,
}

impl<D: Disk> SnapshotWriter<D> {
    /// Begins a snapshot, numbered one above the newest.
    pub fn create(disk: &D, header: SnapshotHeader) -> Result<Self, JournalError> {
        for stale in disk.list().map_err(JournalError::io("listing the snapshots' folder"))? {
            if stale.ends_with(UNFINISHED_SUFFIX) {
                disk.remove(&stale).map_err(io("removing unfinished", &stale))?;
            }
        }
        let number = list(disk)?.last().map_or(1, |n| n + 1);
        let unfinished = format!("{number:012}{UNFINISHED_SUFFIX}");
        let file = disk.create(&unfinished).map_err(io("creating", &unfinished))?;
        let mut writer = Self {
            disk: disk.clone(),
            number,
            unfinished,
            file,
            chunk: AlignedBuffer::new(CHUNK_LEN),
            chunk_used: 0,
            offset: 0,
            part_count: 0,
            cuts: None,
            part_bytes: 0,
            checksum: 0,
        };
        let mut block = [0; BLOCK_LEN];
        block[0..8].copy_from_slice(&HEADER_MAGIC);
        block[12..16].copy_from_slice(&VERSION.to_le_bytes());
        block[16..24].copy_from_slice(&header.journal.get().to_le_bytes());
        block[24..32].copy_from_slice(&header.stamp.node.get().to_le_bytes());
        block[32..40].copy_from_slice(&header.stamp.wall_ms.to_le_bytes());
        block[40..44].copy_from_slice(&header.incarnation.get().to_le_bytes());
        seal(&mut block);
        writer.write(&block)?;
        Ok(writer)
    }

    /// Bytes written so far.
    pub fn len(&self) -> u64 {
        self.offset + self.chunk_used as u64
    }
    pub fn is_empty(&self) -> bool {
        self.part_count == 0
    }

    /// Adds a part.
    pub fn part(&mut self, part: Part<'_>) -> Result<(), JournalError> {
        assert!(part.bytes.len() <= PART_LEN_MAX, "a part is one slot's state");
        let mut head = [0; PART_HEAD_LEN];
        head[0..4].copy_from_slice(&PART_MAGIC.to_le_bytes());
        head[8..16].copy_from_slice(&(part.bytes.len() as u64).to_le_bytes());
        head[16..24].copy_from_slice(&part.cut.get().to_le_bytes());
        head[24..26].copy_from_slice(&part.slot.get().to_le_bytes());
        let checksum = part_checksum(&head, part.bytes);
        head[4..8].copy_from_slice(&checksum.to_le_bytes());
        self.write(&head)?;
        self.write(part.bytes)?;
        self.part_count += 1;
        self.part_bytes += part.bytes.len() as u64;
        self.checksum = crc32c::crc32c_append(self.checksum, &checksum.to_le_bytes());
        let (lowest, highest) = self.cuts.unwrap_or((part.cut, part.cut));
        self.cuts = Some((lowest.min(part.cut), highest.max(part.cut)));
        Ok(())
    }

    /// Makes the snapshot durable under its name, and removes all but [`KEPT_COUNT`].
    ///
    /// Returns the kept ones, oldest first: with two of them, the journal up to the first one's
    /// lowest cut is covered by snapshots.
    pub fn finish(mut self) -> Result<Vec<SnapshotInfo>, JournalError> {
        let (lowest, highest) = self.cuts.unwrap_or_default();
        let mut footer = [0; BLOCK_LEN];
        footer[0..8].copy_from_slice(&FOOTER_MAGIC);
        footer[12..16].copy_from_slice(&self.part_count.to_le_bytes());
        footer[16..24].copy_from_slice(&lowest.get().to_le_bytes());
        footer[24..32].copy_from_slice(&highest.get().to_le_bytes());
        footer[32..40].copy_from_slice(&self.part_bytes.to_le_bytes());
        footer[40..44].copy_from_slice(&self.checksum.to_le_bytes());
        seal(&mut footer);
        let padding = self.chunk_used.next_multiple_of(BLOCK_LEN) - self.chunk_used;
        self.write(&[0; BLOCK_LEN][..padding])?;
        crash_point!(CrashPoint::SnapshotAfterWrite);
        self.write(&footer)?;
        self.flush()?;
        if !planted::is(Bug::SnapshotUnsynced) {
            self.file.sync().map_err(io("syncing", &self.unfinished))?;
        }
        crash_point!(CrashPoint::SnapshotAfterSync);
        let name = name(self.number);
        self.disk.rename(&self.unfinished, &name).map_err(io("renaming", &name))?;
        crash_point!(CrashPoint::SnapshotAfterRename);
        self.disk.sync_dir().map_err(io("syncing the folder of", &name))?;
        remove_old(&self.disk)?;
        kept(&self.disk)
    }

    fn write(&mut self, mut bytes: &[u8]) -> Result<(), JournalError> {
        while !bytes.is_empty() {
            let len = bytes.len().min(CHUNK_LEN - self.chunk_used);
            let (now, later) = bytes.split_at(len);
            self.chunk.as_mut_slice()[self.chunk_used..self.chunk_used + len].copy_from_slice(now);
            self.chunk_used += len;
            bytes = later;
            if self.chunk_used == CHUNK_LEN {
                self.flush()?;
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), JournalError> {
        let bytes = &self.chunk.as_slice()[..self.chunk_used];
        self.file.write_at(self.offset, bytes).map_err(io("writing", &self.unfinished))?;
        self.offset += self.chunk_used as u64;
        self.chunk_used = 0;
        Ok(())
    }
}

fn seal(block: &mut [u8; BLOCK_LEN]) {
    let checksum = crc32c::crc32c(&block[COVER_AT..]);
    block[8..12].copy_from_slice(&checksum.to_le_bytes());
}

fn part_checksum(head: &[u8; PART_HEAD_LEN], bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&head[8..]), bytes)
}

fn remove_old<D: Disk>(disk: &D) -> Result<(), JournalError> {
    let numbers = list(disk)?;
    for number in numbers.iter().rev().skip(KEPT_COUNT).rev() {
        crash_point!(CrashPoint::SnapshotBeforeRemove);
        let name = name(*number);
        disk.remove(&name).map_err(io("removing", &name))?;
        crash_point!(CrashPoint::SnapshotAfterRemove);
        disk.sync_dir().map_err(io("syncing the folder of", &name))?;
    }
    Ok(())
}

/// What the kept snapshots say of themselves, oldest first; their parts are not looked at.
///
/// One that cannot say it is not kept: it covers nothing, and is no reason not to start [a node
/// whose older snapshot had lost its footer did not start, though the newer one was whole].
pub fn kept<D: Disk>(disk: &D) -> Result<Vec<SnapshotInfo>, JournalError> {
    let mut infos = Vec::new();
    for number in list(disk)? {
        match SnapshotReader::open(disk, number) {
            Ok(reader) => infos.push(reader.info),
            Err(error @ JournalError::SnapshotDamaged { .. }) => {
                tracing::error!(%error, "a damaged snapshot covers nothing");
            }
            Err(error) => return Err(error),
        }
    }
    Ok(infos)
}

/// Reads a snapshot's parts, each checked before it is given.
pub struct SnapshotReader<D: Disk> {
    name: String,
    file: D::File,
    info: SnapshotInfo,
    /// Where the parts' blocks end.
    footer_at: u64,
    expected_checksum: u32,
    checksum: u32,
    parts_read: u32,
    /// The next part's place.
    offset: u64,
    /// A window on the file: aligned reads of a chunk.
    window: AlignedBuffer,
    window_at: u64,
    window_len: usize,
    part: Vec<u8>,
}

impl<D: Disk> SnapshotReader<D> {
    /// Opens a snapshot and checks its header and footer.
    ///
    /// Errors: `SnapshotDamaged`, `Newer`, or the disk's.
    pub fn open(disk: &D, number: u64) -> Result<Self, JournalError> {
        let name = name(number);
        let reading = io("reading", &name);
        let file = disk.open(&name, Access::Read).map_err(&reading)?;
        let len = file.len().map_err(&reading)?;
        let damaged = |offset, found| {
            let file = name.clone();
            JournalError::SnapshotDamaged { file, offset, found }
        };
        let mut block = AlignedBuffer::new(BLOCK_LEN);
        let footer_at = len.saturating_sub(BLOCK_LEN as u64);
        let read = file.read_at(0, block.as_mut_slice()).map_err(&reading)?;
        if footer_at == 0 || !len.is_multiple_of(BLOCK_LEN as u64) || read < BLOCK_LEN {
            return Err(damaged(0, "the file is cut off"));
        }
        if !is_sealed(block.as_slice(), HEADER_MAGIC) {
            return Err(damaged(0, "the header's checksum is wrong"));
        }
        let head = block.as_slice();
        let version = u32_at(head, 12);
        if version != VERSION {
            return Err(JournalError::Newer { file: name, version, ours: VERSION });
        }
        let header = SnapshotHeader {
            journal: JournalId::new(u64_at(head, 16)),
            incarnation: Incarnation::new(u32_at(head, 40)),
            stamp: Stamp { node: NodeTime::new(u64_at(head, 24)), wall_ms: u64_at(head, 32) },
        };
        file.read_at(footer_at, block.as_mut_slice()).map_err(&reading)?;
        if !is_sealed(block.as_slice(), FOOTER_MAGIC) {
            return Err(damaged(footer_at, "there is no footer with a right checksum"));
        }
        let foot = block.as_slice();
        let info = SnapshotInfo {
            number,
            header,
            part_count: u32_at(foot, 12),
            lowest_cut: Seq::new(u64_at(foot, 16)),
            highest_cut: Seq::new(u64_at(foot, 24)),
            part_bytes: u64_at(foot, 32),
        };
        let expected_checksum = u32_at(foot, 40);
        Ok(Self {
            name,
            file,
            info,
            footer_at,
            expected_checksum,
            checksum: 0,
            parts_read: 0,
            offset: BLOCK_LEN as u64,
            window: AlignedBuffer::new(CHUNK_LEN),
            window_at: 0,
            window_len: 0,
            part: Vec::new(),
        })
    }

    pub fn info(&self) -> &SnapshotInfo {
        &self.info
    }

    /// Begins with the first part again.
    pub fn rewind(&mut self) {
        (self.offset, self.parts_read, self.checksum) = (BLOCK_LEN as u64, 0, 0);
    }

    /// The next part; `None` after the last, once the footer agrees with all of them.
    ///
    /// Errors: `SnapshotDamaged`, or the disk's.
    #[allow(clippy::should_implement_trait, reason = "a lending iterator: the part borrows self")]
    pub fn next(&mut self) -> Result<Option<Part<'_>>, JournalError> {
        if self.parts_read == self.info.part_count {
            let is_whole = self.checksum == self.expected_checksum
                && self.offset.next_multiple_of(BLOCK_LEN as u64) == self.footer_at;
            return if is_whole { Ok(None) } else { Err(self.damaged("the footer disagrees")) };
        }
        let mut head = [0; PART_HEAD_LEN];
        let begin = self.offset;
        self.read(&mut head)?;
        let length = u64_at(&head, 8);
        let room = self.footer_at - self.offset;
        if u32_at(&head, 0) != PART_MAGIC || length > room || length > PART_LEN_MAX as u64 {
            self.offset = begin;
            return Err(self.damaged("no part begins here"));
        }
        let mut part = std::mem::take(&mut self.part);
        part.resize(length as usize, 0);
        self.read(&mut part)?;
        self.part = part;
        let checksum = part_checksum(&head, &self.part);
        if checksum != u32_at(&head, 4) {
            self.offset = begin;
            return Err(self.damaged("a part's checksum is wrong"));
        }
        self.parts_read += 1;
        self.checksum = crc32c::crc32c_append(self.checksum, &checksum.to_le_bytes());
        let slot = Slot::new(u16::from_le_bytes([head[24], head[25]]));
        Ok(Some(Part { slot, cut: Seq::new(u64_at(&head, 16)), bytes: &self.part }))
    }

    /// Reads through all parts.
    pub fn verify(&mut self) -> Result<(), JournalError> {
        self.rewind();
        while self.next()?.is_some() {}
        self.rewind();
        Ok(())
    }

    fn read(&mut self, mut into: &mut [u8]) -> Result<(), JournalError> {
        while !into.is_empty() {
            let window_end = self.window_at + self.window_len as u64;
            if self.offset < self.window_at || self.offset >= window_end {
                self.window_at = self.offset / BLOCK_LEN as u64 * BLOCK_LEN as u64;
                let read = self.file.read_at(self.window_at, self.window.as_mut_slice());
                self.window_len = read.map_err(io("reading", &self.name))?;
                if self.window_at + self.window_len as u64 <= self.offset {
                    return Err(self.damaged("the file is cut off"));
                }
                continue;
            }
            let start = (self.offset - self.window_at) as usize;
            let len = into.len().min(self.window_len - start);
            let (now, later) = into.split_at_mut(len);
            now.copy_from_slice(&self.window.as_slice()[start..start + len]);
            self.offset += len as u64;
            into = later;
        }
        Ok(())
    }

    fn damaged(&self, found: &'static str) -> JournalError {
        let file = self.name.clone();
        JournalError::SnapshotDamaged { file, offset: self.offset, found }
    }
}

fn is_sealed(block: &[u8], magic: [u8; 8]) -> bool {
    block[0..8] == magic && crc32c::crc32c(&block[COVER_AT..]) == u32_at(block, 8)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// What a start begins from.
pub struct Chosen<D: Disk> {
    /// The newest intact snapshot, verified and at its first part; `None`: from nothing.
    pub reader: Option<SnapshotReader<D>>,
    /// Damaged ones, in words; they were renamed out of the way.
    pub damaged: Vec<JournalError>,
}

/// Finds the newest snapshot that is intact and fits the journal.
///
/// What is there is made durable first: a snapshot whose writer was killed between its rename and
/// the folder's sync counts as kept from now on [segments went by two snapshots, and power loss
/// took back the newer one's name].
///
/// Errors: one belongs to another journal, is of a newer version or reaches beyond the
/// journal's end; or none is readable, and the journal does not begin at 1.
pub fn choose<D: Disk>(
    disk: &D,
    journal: JournalId,
    first_seq: Seq,
    last_seq: Seq,
) -> Result<Chosen<D>, JournalError> {
    disk.sync_dir().map_err(JournalError::io("syncing the snapshots' folder"))?;
    let mut damaged = Vec::new();
    for number in list(disk)?.into_iter().rev() {
        let opened = SnapshotReader::open(disk, number).and_then(|mut reader| {
            reader.verify()?;
            Ok(reader)
        });
        let reader = match opened {
            Ok(reader) => reader,
            Err(error @ JournalError::SnapshotDamaged { .. }) => {
                tracing::error!(%error, "a damaged snapshot is put aside");
                let name = name(number);
                let aside = format!("{name}{DAMAGED_SUFFIX}");
                disk.rename(&name, &aside).map_err(io("putting aside", &name))?;
                damaged.push(error);
                continue;
            }
            Err(error) => return Err(error),
        };
        let info = reader.info();
        if info.header.journal != journal {
            let (file, found) = (name(number), info.header.journal);
            return Err(JournalError::Mixed { file, expected: journal, found });
        }
        recovery::check_snapshot(info.lowest_cut, info.highest_cut, first_seq, last_seq)?;
        return Ok(Chosen { reader: Some(reader), damaged });
    }
    if first_seq > Seq::new(1) {
        return Err(JournalError::NoSnapshot { first: first_seq });
    }
    Ok(Chosen { reader: None, damaged })
}
