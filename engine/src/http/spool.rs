//! An import's spool: the file as it came, and its rows once they are checked.
//!
//! ```text
//! body ──► import-N.csv ──check──► import-N.rows (24 bytes a row) ──► applied
//!                            └────► import-N.0.bad, .1.bad, …      ──► named in the answer
//! ```
//! However large the file is, memory stays bounded: lines are checked one by one, repeated members
//! are looked for in as many passes as it takes, and bad lines are kept on disk too: those that do
//! not read in the first file, those of each pass in one more, each by line, merged as they are
//! read. Blocking: runs off the workers. All files are deleted with the [`Spool`], and leftovers
//! of an earlier run at the start.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::iter::Peekable;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use foldhash::fast::RandomState;
use xxhash_rust::xxh3::Xxh3;

use super::identity::parse_member;
use super::problem::BadRow;
use crate::units::{KeyHash, MemberId, Points, mix};

/// Bytes of the longest line: two numbers of 20 digits, quoted, and some air.
const LINE_LEN_MAX: usize = 256;
/// Members remembered in one pass over the rows: about 64 MB.
const PASS_LEN: u64 = 2_000_000;
const ROW_LEN: usize = 24;
const HEADER: &[u8] = b"member,points";

static NEXT: AtomicU64 = AtomicU64::new(0);

/// One account to open.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Row {
    pub member: MemberId,
    pub points: Points,
    line: u64,
}

/// What the check found.
#[derive(Clone, Copy, Debug)]
pub struct Checked {
    /// Good rows.
    pub rows: u64,
    pub bad_count: u64,
    pub content: KeyHash,
}

/// The files of one import.
pub struct Spool {
    csv: PathBuf,
    rows: PathBuf,
    /// Bad lines: those that do not read, then those of each pass that repeat a member.
    bad: Vec<PathBuf>,
    file: File,
    content: Xxh3,
}

/// Deletes what an earlier run left behind, and makes the folder.
pub fn clear(folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|end| end == "csv" || end == "rows" || end == "bad") {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

impl Spool {
    pub fn create(folder: &Path) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let csv = folder.join(format!("import-{number}.csv"));
        let rows = folder.join(format!("import-{number}.rows"));
        let file = File::options().create(true).truncate(true).read(true).write(true).open(&csv)?;
        Ok(Self { csv, rows, bad: Vec::new(), file, content: Xxh3::new() })
    }

    pub fn write(&mut self, piece: &[u8]) -> io::Result<()> {
        self.content.update(piece);
        self.file.write_all(piece)
    }

    /// Checks every line, and leaves the good rows and the bad lines to be read.
    pub fn check(&mut self) -> io::Result<Checked> {
        let content = KeyHash::new(self.content.digest128());
        let (rows, unread) = self.check_lines()?;
        let repeated = self.find_repeated(rows)?;
        Ok(Checked { rows: rows - repeated, bad_count: unread + repeated, content })
    }

    /// Gives the numbers of rows and of lines that do not read.
    fn check_lines(&mut self) -> io::Result<(u64, u64)> {
        let mut bad = BadFile::create(self.next_bad())?;
        let mut count = 0;
        self.file.seek(SeekFrom::Start(0))?;
        let mut lines = Lines { from: BufReader::new(&self.file), number: 0, line: Vec::new() };
        let mut rows = BufWriter::new(File::create(&self.rows)?);
        let header = lines.next()?.unwrap_or_default();
        if header.strip_prefix(b"\xef\xbb\xbf").unwrap_or(header) != HEADER {
            bad.name(1, "the first line is not `member,points`")?;
            return Ok((0, bad.finish()?));
        }
        while let Some(line) = lines.next()? {
            if line.is_empty() {
                continue;
            }
            let parsed = parse_line(line);
            let line = lines.number;
            match parsed {
                Ok((member, points)) => {
                    count += 1;
                    rows.write_all(&Row { member, points, line }.to_bytes())?;
                }
                Err(message) => bad.name(line, &message)?,
            }
        }
        rows.flush()?;
        Ok((count, bad.finish()?))
    }

    /// Gives the number of rows that repeat a member.
    fn find_repeated(&mut self, rows: u64) -> io::Result<u64> {
        let passes = rows.div_ceil(PASS_LEN);
        let mut count = 0;
        for pass in 0..passes {
            let mut bad = BadFile::create(self.next_bad())?;
            let mut first: HashMap<u64, u64, RandomState> = HashMap::default();
            for row in self.rows()? {
                let row = row?;
                let member = row.member.get();
                if mix(member) % passes != pass {
                    continue;
                }
                if let Some(line) = first.get(&member) {
                    bad.name(row.line, &format!("member {member} stands in line {line} already"))?;
                } else {
                    first.insert(member, row.line);
                }
            }
            count += bad.finish()?;
        }
        Ok(count)
    }

    fn next_bad(&mut self) -> &Path {
        let path = self.csv.with_extension(format!("{}.bad", self.bad.len()));
        self.bad.push(path);
        self.bad.last().expect("just pushed")
    }

    fn rows(&self) -> io::Result<Rows> {
        Ok(Rows { from: BufReader::with_capacity(256 * 1024, File::open(&self.rows)?) })
    }

    /// The rows that the check found good, in their order.
    pub fn good_rows(&self) -> io::Result<impl Iterator<Item = io::Result<Row>> + use<>> {
        let mut bad = self.bad_rows()?.peekable();
        let is_bad = move |row: &Row| -> io::Result<bool> {
            while let Some(next) =
                bad.next_if(|next| next.as_ref().map_or(true, |b| b.line <= row.line))
            {
                if next?.line == row.line {
                    return Ok(true);
                }
            }
            Ok(false)
        };
        let mut is_bad = is_bad;
        let keep = move |row: io::Result<Row>| match row.and_then(|row| Ok((is_bad(&row)?, row))) {
            Ok((true, _)) => None,
            Ok((false, row)) => Some(Ok(row)),
            Err(error) => Some(Err(error)),
        };
        Ok(self.rows()?.filter_map(keep))
    }

    /// Every bad line, by its number.
    pub fn bad_rows(&self) -> io::Result<BadRows> {
        let open = |path: &PathBuf| {
            let from = BufReader::new(File::open(path)?);
            Ok(BadLines { from }.peekable())
        };
        Ok(BadRows { files: self.bad.iter().map(open).collect::<io::Result<_>>()? })
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        // What cannot be deleted now is deleted at the next start.
        let _ = fs::remove_file(&self.csv);
        let _ = fs::remove_file(&self.rows);
        for bad in &self.bad {
            let _ = fs::remove_file(bad);
        }
    }
}

/// A file of bad lines: of each its number, its message's length, its message.
struct BadFile {
    to: BufWriter<File>,
    count: u64,
}

impl BadFile {
    fn create(path: &Path) -> io::Result<Self> {
        Ok(Self { to: BufWriter::new(File::create(path)?), count: 0 })
    }
    fn name(&mut self, line: u64, message: &str) -> io::Result<()> {
        self.count += 1;
        let length = u32::try_from(message.len()).expect("a message is a sentence");
        self.to.write_all(&line.to_le_bytes())?;
        self.to.write_all(&length.to_le_bytes())?;
        self.to.write_all(message.as_bytes())
    }
    fn finish(mut self) -> io::Result<u64> {
        self.to.flush()?;
        Ok(self.count)
    }
}

/// The lines of one such file.
struct BadLines {
    from: BufReader<File>,
}

impl BadLines {
    fn read(&mut self) -> io::Result<BadRow> {
        let (mut line, mut length) = ([0; 8], [0; 4]);
        self.from.read_exact(&mut line)?;
        self.from.read_exact(&mut length)?;
        let mut message = vec![0; u32::from_le_bytes(length) as usize];
        self.from.read_exact(&mut message)?;
        let message = String::from_utf8(message).map_err(io::Error::other)?;
        Ok(BadRow { line: u64::from_le_bytes(line), message })
    }
}

impl Iterator for BadLines {
    type Item = io::Result<BadRow>;

    fn next(&mut self) -> Option<io::Result<BadRow>> {
        match self.from.fill_buf() {
            Ok([]) => None,
            Ok(_) => Some(self.read()),
            Err(error) => Some(Err(error)),
        }
    }
}

/// All bad lines, merged by number. A file that cannot be read shows before all others.
pub struct BadRows {
    files: Vec<Peekable<BadLines>>,
}

impl Iterator for BadRows {
    type Item = io::Result<BadRow>;

    fn next(&mut self) -> Option<io::Result<BadRow>> {
        let line = |file: &mut Peekable<BadLines>| {
            file.peek().map(|row| row.as_ref().map_or(0, |row| row.line))
        };
        let heads = self.files.iter_mut().filter_map(|file| Some((line(file)?, file)));
        heads.min_by_key(|(line, _)| *line)?.1.next()
    }
}

impl Row {
    fn to_bytes(self) -> [u8; ROW_LEN] {
        let mut bytes = [0; ROW_LEN];
        bytes[..8].copy_from_slice(&self.member.get().to_le_bytes());
        bytes[8..16].copy_from_slice(&self.points.get().to_le_bytes());
        bytes[16..].copy_from_slice(&self.line.to_le_bytes());
        bytes
    }

    fn from_bytes(bytes: [u8; ROW_LEN]) -> Self {
        let number = |at: usize| {
            let part = bytes[at..at + 8].first_chunk().expect("a row has three numbers");
            u64::from_le_bytes(*part)
        };
        Self { member: MemberId::new(number(0)), points: Points::new(number(8)), line: number(16) }
    }
}

struct Rows {
    from: BufReader<File>,
}

impl Iterator for Rows {
    type Item = io::Result<Row>;

    fn next(&mut self) -> Option<io::Result<Row>> {
        let mut bytes = [0; ROW_LEN];
        match self.from.read_exact(&mut bytes) {
            Ok(()) => Some(Ok(Row::from_bytes(bytes))),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => None,
            Err(error) => Some(Err(error)),
        }
    }
}

/// Lines without their ends, and their numbers. A longer line than any good one is cut.
struct Lines<R> {
    from: R,
    number: u64,
    line: Vec<u8>,
}

impl<R: BufRead> Lines<R> {
    fn next(&mut self) -> io::Result<Option<&[u8]>> {
        self.line.clear();
        let mut is_any = false;
        loop {
            let buffer = self.from.fill_buf()?;
            if buffer.is_empty() {
                break;
            }
            is_any = true;
            let end = buffer.iter().position(|&b| b == b'\n');
            let piece = &buffer[..end.unwrap_or(buffer.len())];
            let room = (LINE_LEN_MAX + 1).saturating_sub(self.line.len());
            self.line.extend_from_slice(&piece[..piece.len().min(room)]);
            let used = end.map_or(buffer.len(), |end| end + 1);
            self.from.consume(used);
            if end.is_some() {
                break;
            }
        }
        if !is_any {
            return Ok(None);
        }
        self.number += 1;
        Ok(Some(self.line.strip_suffix(b"\r").unwrap_or(&self.line)))
    }
}

fn parse_line(line: &[u8]) -> Result<(MemberId, Points), String> {
    if line.len() > LINE_LEN_MAX {
        return Err(format!("longer than {LINE_LEN_MAX} bytes"));
    }
    let mut fields = line.split(|&b| b == b',').map(unquoted);
    let (Some(member), Some(points), None) = (fields.next(), fields.next(), fields.next()) else {
        return Err(String::from("not two fields, member and points"));
    };
    let show = |field: &[u8]| String::from_utf8_lossy(field).into_owned();
    let member = parse_member(member)
        .ok_or_else(|| format!("\"{}\" is not a member id: 0 to 2^64 - 1", show(member)))?;
    let points = parse_member(points)
        .map(|number| Points::new(number.get()))
        .filter(|points| *points <= Points::MAX)
        .ok_or_else(|| format!("\"{}\" is not 0 to {} points", show(points), Points::MAX))?;
    Ok((member, points))
}

/// A field without the quotes that some programs put around numbers too.
fn unquoted(field: &[u8]) -> &[u8] {
    let inner = field.strip_prefix(b"\"").and_then(|field| field.strip_suffix(b"\""));
    inner.unwrap_or(field)
}

#[cfg(test)]
mod tests {
    use super::*;

    type Found = (Vec<(u64, u64)>, Vec<(u64, String)>);

    fn check(csv: &[u8]) -> Found {
        let folder = tempfile::tempdir().unwrap();
        let mut spool = Spool::create(folder.path()).unwrap();
        for piece in csv.chunks(7) {
            spool.write(piece).unwrap();
        }
        let checked = spool.check().unwrap();
        let rows: Vec<_> = spool.good_rows().unwrap().map(Result::unwrap).collect();
        let bad: Vec<_> = spool.bad_rows().unwrap().map(Result::unwrap).collect();
        assert_eq!((rows.len() as u64, bad.len() as u64), (checked.rows, checked.bad_count));
        drop(spool);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "the files are gone");
        let rows = rows.into_iter().map(|row| (row.member.get(), row.points.get()));
        (rows.collect(), bad.into_iter().map(|bad| (bad.line, bad.message)).collect())
    }

    #[test]
    fn good_files_are_read_with_either_line_end_and_with_quotes() {
        for csv in [
            &b"member,points\n1,10\n2,0\n"[..],
            b"member,points\r\n1,10\r\n2,0",
            b"\xef\xbb\xbfmember,points\n\"1\",\"10\"\n\n2,0\n\n",
        ] {
            assert_eq!(check(csv), (vec![(1, 10), (2, 0)], vec![]));
        }
        assert_eq!(check(b"member,points\n"), (vec![], vec![]));
        let most = b"member,points\n18446744073709551615,9007199254740992\n";
        assert_eq!(check(most), (vec![(u64::MAX, 1 << 53)], vec![]));
    }

    #[test]
    fn every_bad_line_is_named_with_its_number() {
        let long = "9".repeat(1000);
        let csv = format!(
            "member,points\n1,10\nx,1\n-2,1\n3,-1\n4,1.5\n5,9007199254740993\n6\n7,1,1\n,1\n8,\n\
             18446744073709551616,1\n9,1e2\n{long}\n 10,1\n1,20\n11,5\n"
        );
        let (rows, bad) = check(csv.as_bytes());
        assert_eq!(rows, [(1, 10), (11, 5)]);
        let lines: Vec<u64> = bad.iter().map(|(line, _)| *line).collect();
        assert_eq!(lines, (3..=16).collect::<Vec<_>>());
        assert_eq!(bad.last().unwrap().1, "member 1 stands in line 2 already");
    }

    /// More than one pass, and more bad lines than anybody keeps in memory.
    #[test]
    fn bad_lines_of_several_passes_come_in_the_order_of_their_lines() {
        let count = PASS_LEN * 2 + 10;
        let mut csv = Vec::from(HEADER);
        csv.push(b'\n');
        for member in 0..count {
            writeln!(csv, "{},1", if member % 20 == 7 { member - 3 } else { member }).unwrap();
            if member % 25 == 0 {
                csv.extend_from_slice(b"bad\n");
            }
        }
        let folder = tempfile::tempdir().unwrap();
        let mut spool = Spool::create(folder.path()).unwrap();
        spool.write(&csv).unwrap();
        let checked = spool.check().unwrap();
        let lines: Vec<_> = spool.bad_rows().unwrap().map(|row| row.unwrap().line).collect();
        assert!(lines.is_sorted() && lines.len() as u64 == checked.bad_count);
        assert_eq!(checked.bad_count, count.div_ceil(25) + (count + 12) / 20);
        let good: Vec<_> = spool.good_rows().unwrap().map(|row| row.unwrap().member).collect();
        assert_eq!(good.len() as u64, checked.rows);
        assert!(good.is_sorted(), "each member once, in the file's order");
    }

    #[test]
    fn a_file_without_the_header_line_is_bad_as_a_whole() {
        for csv in [&b""[..], b"1,10\n", b"points,member\n1,2\n", b"member;points\n1;2\n"] {
            let (rows, bad) = check(csv);
            assert_eq!((rows.len(), bad.len(), bad[0].0), (0, 1, 1), "{csv:?}");
        }
    }
}
