//! `onrush journal`: a data folder's journal, for the eye. Reads only.

use std::io::{BufWriter, ErrorKind, Write};
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;

use crate::journal::open::journal_dir;
use crate::journal::tail::{RecordRun, StoppedJournal};
use crate::kernel::record::{CONTROL, Record};
use crate::units::{Seq, Slot};

pub fn inspect(data: &Path, from: u64, limit: u64) -> anyhow::Result<ExitCode> {
    let journal = open(data)?;
    let mut out = BufWriter::new(std::io::stdout().lock());
    match print(&journal, Seq::new(from.max(1)), limit, &mut out) {
        // A reader that has seen enough (`| head`) is no error.
        Err(error) if is_closed_pipe(&error) => Ok(ExitCode::SUCCESS),
        Err(error) => Err(error),
        Ok(()) => Ok(ExitCode::SUCCESS),
    }
}

fn is_closed_pipe(error: &anyhow::Error) -> bool {
    let io = error.downcast_ref::<std::io::Error>();
    io.is_some_and(|error| error.kind() == ErrorKind::BrokenPipe)
}

fn open(data: &Path) -> anyhow::Result<StoppedJournal> {
    let dir = journal_dir(data);
    StoppedJournal::open(&dir)
        .with_context(|| format!("cannot read the journal in {}", dir.display()))
}

fn print(
    journal: &StoppedJournal,
    from: Seq,
    limit: u64,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    let (first, last) = (journal.first_seq(), journal.last_seq());
    writeln!(out, "journal {:016x}, records {first} to {last}", journal.journal().get())?;
    let mut left = limit;
    let mut tail = journal.tail(from.max(first))?;
    while let Some(run) = tail.next()? {
        writeln!(
            out,
            "frame: records {} to {}, incarnation {}, node time {}",
            run.first_seq,
            run.last_seq(),
            run.incarnation,
            run.stamp.node.rfc3339(),
        )?;
        for (seq, record) in records(&run) {
            if seq < from {
                continue;
            }
            if left == 0 {
                return Ok(());
            }
            left -= 1;
            let (slot, record) = record.with_context(|| format!("record {seq}"))?;
            let place = if slot == CONTROL { "control".into() } else { format!("slot {slot}") };
            writeln!(out, "  {seq:>10}  {place:<9}  {record:?}")?;
        }
    }
    out.flush()?;
    Ok(())
}

type Decoded = Result<(Slot, Record), crate::kernel::record::RecordError>;

/// The records of a run, with their numbers; ends at the first that cannot be read.
fn records<'a>(run: &RecordRun<'a>) -> impl Iterator<Item = (Seq, Decoded)> + use<'a> {
    let mut rest = run.records;
    let mut seq = run.first_seq;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let decoded = Record::take(&mut rest);
        if decoded.is_err() {
            rest = &[];
        }
        let this = seq;
        seq = seq.next();
        Some((this, decoded))
    })
}

pub fn verify(data: &Path) -> anyhow::Result<ExitCode> {
    let journal = match open(data) {
        Ok(journal) => journal,
        Err(error) if !journal_dir(data).is_dir() => return Err(error),
        Err(error) => {
            println!("DAMAGED: {error:#}");
            return Ok(ExitCode::FAILURE);
        }
    };
    let mut count = 0u64;
    let mut check = || -> anyhow::Result<()> {
        let mut tail = journal.tail(journal.first_seq())?;
        while let Some(run) = tail.next()? {
            let mut of_run = 0;
            for (seq, record) in records(&run) {
                record.with_context(|| format!("record {seq}"))?;
                of_run += 1;
            }
            anyhow::ensure!(
                of_run == run.record_count,
                "frame of record {} counts {} records and holds {of_run}",
                run.first_seq,
                run.record_count
            );
            count += u64::from(of_run);
        }
        Ok(())
    };
    if let Err(error) = check() {
        println!("DAMAGED: {error:#}");
        return Ok(ExitCode::FAILURE);
    }
    println!("Sound: {count} records, {} to {}.", journal.first_seq(), journal.last_seq());
    Ok(ExitCode::SUCCESS)
}
