//! `onrush journal`: a data folder's journal, for the eye. Reads only.

use std::cell::Cell;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;

use crate::journal::JournalError;
use crate::journal::inspect::{self, InspectOptions, Summary};
use crate::journal::open::{journal_dir, snapshot_dir};
use crate::kernel::record::{CONTROL, Record};
use crate::units::Seq;

pub fn inspect(data: &Path, from: u64, limit: u64) -> anyhow::Result<ExitCode> {
    let dir = folder(data)?;
    let mut out = BufWriter::new(std::io::stdout().lock());
    let last = from.saturating_add(limit.saturating_sub(1));
    let options =
        InspectOptions { frames: true, records: true, from: Seq::new(from), to: Seq::new(last) };
    let mut print = |out: &mut dyn Write, first: Seq, _count: u32, bytes: &[u8]| {
        print_records(out, first, bytes, options)
    };
    match inspect::inspect(&dir, options, &mut out, &mut print) {
        Ok(summary) => {
            out.flush()?;
            drop(out);
            println!("{}", sentence(&summary));
            Ok(ExitCode::SUCCESS)
        }
        // A reader that has seen enough (`| head`) is no error.
        Err(JournalError::Io { source, .. }) if source.kind() == std::io::ErrorKind::BrokenPipe => {
            Ok(ExitCode::SUCCESS)
        }
        Err(error) => Err(error.into()),
    }
}

fn folder(data: &Path) -> anyhow::Result<std::path::PathBuf> {
    let dir = journal_dir(data);
    anyhow::ensure!(dir.is_dir(), "{} is not there: is --data a data folder?", dir.display());
    Ok(dir)
}

fn print_records(
    out: &mut dyn Write,
    first: Seq,
    bytes: &[u8],
    options: InspectOptions,
) -> std::io::Result<()> {
    let (mut seq, mut rest) = (first, bytes);
    while !rest.is_empty() {
        let decoded = Record::take(&mut rest);
        if seq >= options.from && seq <= options.to {
            match &decoded {
                Ok((CONTROL, record)) => writeln!(out, "  {seq:>10}  control    {record:?}")?,
                Ok((slot, record)) => writeln!(out, "  {seq:>10}  slot {slot:<4}  {record:?}")?,
                Err(error) => writeln!(out, "  {seq:>10}  UNREADABLE: {error}")?,
            }
        }
        if decoded.is_err() {
            break;
        }
        seq = seq.next();
    }
    Ok(())
}

fn sentence(summary: &Summary) -> String {
    let mut text = format!(
        "journal {:016x}, incarnation {}: {} segments, {} frames, records {} to {}",
        summary.journal.get(),
        summary.incarnation,
        summary.segment_count,
        summary.frame_count,
        summary.first_seq,
        summary.last_seq,
    );
    if summary.unproven_count > 0 {
        text += "; the last frames are not proven durable: the next start writes them anew";
    }
    if summary.is_dirty_behind {
        text += "; a torn write lies behind the end: the next start zeroes it";
    }
    text
}

pub fn verify(data: &Path) -> anyhow::Result<ExitCode> {
    let dir = folder(data)?;
    let damaged = Cell::new(false);
    let report = |error: &dyn std::fmt::Display| {
        damaged.set(true);
        println!("DAMAGED: {error}");
    };
    match inspect::verify(&dir) {
        Ok(summary) => println!("{}", sentence(&summary)),
        Err(error) => report(&error),
    }
    check_records(&dir, &report)?;
    for snapshot in inspect::verify_snapshots(&snapshot_dir(data))? {
        match snapshot {
            Ok(info) => println!(
                "snapshot {}: {} parts, {} bytes, cuts {} to {}",
                info.number, info.part_count, info.part_bytes, info.lowest_cut, info.highest_cut
            ),
            Err(error) => report(&error),
        }
    }
    if damaged.get() {
        return Ok(ExitCode::FAILURE);
    }
    println!("Sound.");
    Ok(ExitCode::SUCCESS)
}

/// Frames are whole by their checksums; this asks whether the records in them can be read.
fn check_records(dir: &Path, report: &dyn Fn(&dyn std::fmt::Display)) -> anyhow::Result<()> {
    let options = InspectOptions { frames: false, records: true, ..InspectOptions::default() };
    let mut sink = std::io::sink();
    let mut check = |_: &mut dyn Write, first: Seq, count: u32, bytes: &[u8]| {
        let (mut rest, mut found) = (bytes, 0);
        while !rest.is_empty() {
            if let Err(error) = Record::take(&mut rest) {
                report(&format!("record {}: {error}", first.get() + u64::from(found)));
                return Ok(());
            }
            found += 1;
        }
        if found != count {
            report(&format!("the frame of record {first} counts {count} records, holds {found}"));
        }
        Ok(())
    };
    match inspect::inspect(dir, options, &mut sink, &mut check) {
        // Damage to frames was reported already.
        Ok(_) | Err(JournalError::Damaged { .. }) => Ok(()),
        Err(error) => Err(error).context("cannot read the records"),
    }
}
