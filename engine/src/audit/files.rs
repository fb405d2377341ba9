//! Journal and snapshots from their files, on a stopped node and beside a running one.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;

use super::finding::{Check, Findings, Where};
use super::journal::{Bounds, CannotRead, Journal, See};
use super::model::Place;
use super::parts::{Base, Claims, SeePart};
use crate::journal::JournalError;
use crate::journal::disk::{Disk, RealDisk};
use crate::journal::snapshot::SnapshotReader;
use crate::journal::tail::Tail;
use crate::kernel::record::{Record, RecordHead};
use crate::units::Seq;

impl From<JournalError> for CannotRead {
    fn from(e: JournalError) -> Self {
        Self(e.to_string())
    }
}

type OpenTail<'a, D> = dyn Fn(Seq) -> Result<Tail<D>, JournalError> + 'a;

/// A journal's files, through a tail.
pub struct FileJournal<'a, D: Disk> {
    bounds: Bounds,
    open: Box<OpenTail<'a, D>>,
    /// What was no record, and where; found anew at every reading, told once.
    flaws: RefCell<BTreeMap<Seq, String>>,
}

impl<'a, D: Disk> FileJournal<'a, D> {
    /// `open` begins a tail at a record.
    pub fn new(bounds: Bounds, open: impl Fn(Seq) -> Result<Tail<D>, JournalError> + 'a) -> Self {
        Self { bounds, open: Box::new(open), flaws: RefCell::default() }
    }
}

impl<D: Disk> Journal for FileJournal<'_, D> {
    fn bounds(&self) -> Bounds {
        self.bounds
    }

    fn each(&self, from: Seq, see: &mut See<'_>) -> Result<(), CannotRead> {
        let from = from.max(self.bounds.first);
        if from > self.bounds.last {
            return Ok(());
        }
        let mut flaws = self.flaws.borrow_mut();
        let mut flaw = |seq, what: String| {
            flaws.entry(seq).or_insert(what);
        };
        let mut tail = (self.open)(from)?;
        let mut due = None;
        while let Some(run) = tail.next()? {
            if run.first_seq > self.bounds.last {
                break;
            }
            if due.is_some_and(|due| due != run.first_seq) {
                flaw(run.first_seq, String::from("records before it are missing"));
            }
            let mut place = Place {
                seq: run.first_seq,
                incarnation: run.incarnation,
                node_time: run.stamp.node,
            };
            let mut rest = run.records;
            while !rest.is_empty() {
                let Ok(head) = RecordHead::peek(rest) else {
                    flaw(place.seq, format!("{} bytes here are no record", rest.len()));
                    break;
                };
                let (bytes, behind) = rest.split_at(head.length);
                if place.seq >= from && place.seq <= self.bounds.last {
                    match Record::take(&mut &bytes[..]) {
                        Ok((slot, record)) => see(place, slot, &record, bytes),
                        Err(e) => flaw(place.seq, e.to_string()),
                    }
                }
                rest = behind;
                place.seq = place.seq.next();
            }
            let count = place.seq.get() - run.first_seq.get();
            if count != u64::from(run.record_count) {
                let said = run.record_count;
                flaw(run.first_seq, format!("its frame says {said} records, it has {count}"));
            }
            due = Some(run.last_seq().next());
        }
        Ok(())
    }

    fn flaws(&self) -> Vec<(Seq, String)> {
        self.flaws.borrow().iter().map(|(seq, flaw)| (*seq, flaw.clone())).collect()
    }
}

/// A snapshot's file; held open, so that it can be read to the end even if a running node removes
/// it.
pub struct SnapshotFile {
    reader: RefCell<SnapshotReader<RealDisk>>,
    number: u64,
    lowest_cut: Seq,
}

impl SnapshotFile {
    fn new(reader: SnapshotReader<RealDisk>) -> Self {
        let info = *reader.info();
        let (number, lowest_cut) = (info.number, info.lowest_cut);
        Self { reader: RefCell::new(reader), number, lowest_cut }
    }
    pub fn number(&self) -> u64 {
        self.number
    }
}

impl Base for SnapshotFile {
    fn lowest_cut(&self) -> Seq {
        self.lowest_cut
    }

    fn each(&self, see: &mut SeePart<'_>) -> Result<(), CannotRead> {
        let mut reader = self.reader.borrow_mut();
        reader.rewind();
        while let Some(part) = reader.next()? {
            see(part.slot, part.cut, part.bytes)?;
        }
        Ok(())
    }
}

/// What a folder of snapshots gives an audit.
#[derive(Default)]
pub struct Snapshots {
    /// Where to begin, if not at the first record.
    pub base: Option<SnapshotFile>,
    /// What the others say.
    pub claims: Claims,
    /// Snapshots compared.
    pub count: u64,
}

impl Snapshots {
    /// Reads the folder. With the journal whole from its first record, every snapshot is a claim;
    /// else the oldest that the journal continues is the base. A damaged snapshot is a warning,
    /// as a start does without it.
    ///
    /// Errors: the folder cannot be read, or the journal has lost its first records and there is
    /// no snapshot to begin from.
    pub fn read(
        folder: &Path,
        bounds: Bounds,
        findings: &mut Findings,
    ) -> Result<Self, CannotRead> {
        let mut all = Self::default();
        for number in numbers(folder)? {
            let disk = RealDisk::open_read_only(folder)
                .map_err(|e| CannotRead(format!("opening {}: {e}", folder.display())))?;
            if let Err(e) = all.add(&disk, number, bounds, findings) {
                findings.warning(Check::I5, Where::default(), e.0);
            }
        }
        if bounds.first > Seq::new(1) && all.base.is_none() {
            return Err(CannotRead(format!(
                "the journal begins at {}, and no snapshot in {} covers what was before",
                bounds.first,
                folder.display()
            )));
        }
        Ok(all)
    }

    /// The newest snapshot that is intact, as the base: the shortest way to a running node's
    /// present. None where there is none, or none that the journal continues.
    pub fn newest(folder: &Path, bounds: Bounds) -> Result<Option<SnapshotFile>, CannotRead> {
        for number in numbers(folder)?.into_iter().rev() {
            let Ok(disk) = RealDisk::open_read_only(folder) else { continue };
            let Ok(mut reader) = SnapshotReader::open(&disk, number) else { continue };
            let info = *reader.info();
            let is_continued = info.lowest_cut.next() >= bounds.first;
            let fits = info.header.journal == bounds.journal && info.highest_cut <= bounds.last;
            if is_continued && fits && reader.verify().is_ok() {
                return Ok(Some(SnapshotFile::new(reader)));
            }
        }
        Ok(None)
    }

    fn add(
        &mut self,
        disk: &RealDisk,
        number: u64,
        bounds: Bounds,
        findings: &mut Findings,
    ) -> Result<(), CannotRead> {
        let mut reader = SnapshotReader::open(disk, number)?;
        let info = *reader.info();
        let by = format!("snapshot {number}");
        if info.header.journal != bounds.journal {
            let journal = info.header.journal.get();
            let sentence = format!("{by} is of journal {journal:016x}");
            findings.violation(Check::I5, Where::default(), sentence);
            return Ok(());
        }
        if info.highest_cut > bounds.last {
            let sentence = format!(
                "{by} reaches to {}, the journal ends at {}: acknowledged writes are lost",
                info.highest_cut, bounds.last
            );
            findings.violation(Check::Journal, Where::seq(info.highest_cut), sentence);
            return Ok(());
        }
        let is_continued = info.lowest_cut.next() >= bounds.first;
        if bounds.first > Seq::new(1) && self.base.is_none() && is_continued {
            reader.verify()?;
            self.base = Some(SnapshotFile::new(reader));
            return Ok(());
        }
        if !is_continued {
            return Ok(());
        }
        let mut claims = Claims::default();
        while let Some(part) = reader.next()? {
            claims.add_part(part.slot, part.cut, part.bytes, &by)?;
        }
        self.claims.slots.append(&mut claims.slots);
        self.claims.control.append(&mut claims.control);
        self.count += 1;
        Ok(())
    }
}

/// The snapshots of a folder, oldest first; none where there is no folder.
fn numbers(folder: &Path) -> Result<Vec<u64>, CannotRead> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(CannotRead(format!("listing {}: {e}", folder.display()))),
    };
    let number = |name: String| name.strip_suffix(".snapshot")?.parse().ok();
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let mut numbers: Vec<u64> = names.filter_map(number).collect();
    numbers.sort_unstable();
    Ok(numbers)
}
