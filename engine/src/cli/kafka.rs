//! `onrush kafka`: the topics, made, checked and read.

use std::io::{BufWriter, Write};
use std::path::Path;
use std::process::ExitCode;

use crate::config::{Config, Overrides};
use crate::kernel::record::{CONTROL, Record};
use crate::ship::kafka::message::Message;
use crate::ship::kafka::read::{self, Found};
use crate::ship::kafka::topic::{Made, TopicSpec, Topics};
use crate::ship::partition::Partition;

pub fn init(config: Option<&Path>) -> anyhow::Result<ExitCode> {
    let config = Config::load(config, Overrides::default())?;
    for made in Topics::connect(&config.log.kafka)?.init()? {
        match made {
            Made::Created(spec) => println!("made       {}", sentence(&spec)),
            Made::WasThere(spec) => println!("was there  {}", sentence(&spec)),
        }
    }
    Ok(ExitCode::SUCCESS)
}

pub fn check(config: Option<&Path>) -> anyhow::Result<ExitCode> {
    let config = Config::load(config, Overrides::default())?;
    Topics::connect(&config.log.kafka)?.check()?;
    println!("The topics are as the settings say.");
    Ok(ExitCode::SUCCESS)
}

fn sentence(spec: &TopicSpec) -> String {
    let settings: Vec<_> =
        spec.settings.iter().map(|(key, value)| format!("{key}={value}")).collect();
    format!(
        "{}: {} partitions, {} copies each, {}",
        spec.name,
        spec.partition_count,
        spec.replication,
        settings.join(" ")
    )
}

pub fn inspect(
    config: Option<&Path>,
    partition: Option<u8>,
    from: i64,
    limit: u64,
) -> anyhow::Result<ExitCode> {
    let config = Config::load(config, Overrides::default())?;
    let only = match partition {
        Some(raw) => match Partition::new(raw) {
            Some(partition) => vec![partition],
            None => anyhow::bail!("--partition takes 0 to 32, not {raw}"),
        },
        None => Partition::all().collect(),
    };
    let mut out = BufWriter::new(std::io::stdout().lock());
    let mut left = limit;
    let mut foreign = 0;
    let result = read::each(&config.log.kafka, &only, from, &mut |found| {
        if left == 0 {
            return Ok(false);
        }
        left -= 1;
        foreign += u64::from(found.message.is_err());
        print(&mut out, found)?;
        Ok(true)
    });
    match result {
        // A reader that has seen enough (`| head`) is no error.
        Err(read::ReadError::See(e)) if e.kind() == std::io::ErrorKind::BrokenPipe => {
            return Ok(ExitCode::SUCCESS);
        }
        result => result?,
    }
    if let Err(error) = out.flush() {
        anyhow::ensure!(error.kind() == std::io::ErrorKind::BrokenPipe, error);
    }
    Ok(if foreign == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn print(out: &mut dyn Write, found: &Found<'_>) -> std::io::Result<()> {
    let (partition, offset) = (found.partition.get(), found.offset);
    write!(out, "{partition:>2} {offset:>9}  ")?;
    let Message { place, prev_seq, record, .. } = match &found.message {
        Ok(message) => message,
        Err(error) => return writeln!(out, "UNREADABLE: {error}"),
    };
    let (journal, seq, incarnation) = (place.journal.get(), place.seq, place.incarnation);
    write!(out, "{journal:016x}/{incarnation}  {seq:>10} after {prev_seq:<10}  ")?;
    let Some(mut bytes) = *record else { return writeln!(out, "mark: complete through {seq}") };
    match Record::take(&mut bytes) {
        Ok((CONTROL, record)) => writeln!(out, "control    {record:?}"),
        Ok((slot, record)) => writeln!(out, "slot {slot:<4}  {record:?}"),
        Err(error) => writeln!(out, "UNREADABLE: {error}"),
    }
}
