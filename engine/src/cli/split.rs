//! `onrush db split`: partitions to another database shard.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;

use super::db::{load, ranges};
use crate::config::StoreKind;
use crate::persist::mysql::{Partitions, Split, SplitError, Step};
use crate::persist::stores;
use crate::ship::partition::{
    DatabaseShard, MEMBER_PARTITION_COUNT, Partition, SLOTS_PER_PARTITION,
};
use crate::units::SLOT_COUNT;

/// What is to go where; all of it empty: finish what was interrupted.
pub struct Wanted {
    pub to: Option<u8>,
    pub partitions: Option<String>,
    pub slots: Option<String>,
}

/// Moves, finishes or takes back.
pub fn split(config: Option<&Path>, wanted: &Wanted, abandon: bool) -> anyhow::Result<ExitCode> {
    let (config, layout) = load(config)?;
    anyhow::ensure!(
        config.store.kind == StoreKind::Mysql,
        "SQLite files are as many as when the data folder was made: only databases on MySQL and \
         MariaDB are split"
    );
    let chosen = wanted.partitions()?;
    let endpoints = stores::primaries(&config.store.mysql)?;
    let mut told = |from: DatabaseShard, to: DatabaseShard, set: Partitions, step: &Step| {
        let set = ranges(&set.iter().map(Partition::get).collect::<Vec<_>>());
        let (from, to) = (from.get(), to.get());
        println!("database shard {from} to {to}, partitions {set}: {}", words(step));
    };
    let done = Split::new(endpoints, layout, &mut told).and_then(|mut split| match &chosen {
        _ if abandon => split.abandon(),
        Some((to, partitions)) => split.run(*to, partitions),
        None => split.finish_all(),
    });
    let Err(error) = done else {
        println!("done: nothing is on its way");
        return Ok(ExitCode::SUCCESS);
    };
    println!("FAILED: {error}");
    let is_away = matches!(&error, SplitError::Store { source, .. } if source.is_transient());
    if is_away {
        println!("what was begun is finished by the same command");
    }
    Ok(ExitCode::from(if is_away { 2 } else { 1 }))
}

fn words(step: &Step) -> String {
    match step {
        Step::TakenUp => "was interrupted: going on".into(),
        Step::Stopped => "stopped".into(),
        Step::Announced => "announced".into(),
        Step::Copied { table, rows } => format!("copied {rows} rows of {table}"),
        Step::Compared { rows } => format!("compared: {rows} rows are the same on both sides"),
        Step::Switched => "switched".into(),
        Step::Deleted { rows } => format!("deleted {rows} rows where they were"),
        Step::Abandoned => "taken back: they stay where they are".into(),
    }
}

impl Wanted {
    fn partitions(&self) -> anyhow::Result<Option<(DatabaseShard, Vec<Partition>)>> {
        let Some(to) = self.to else { return Ok(None) };
        let (text, unit, most) = match (&self.partitions, &self.slots) {
            (Some(text), _) => (text, 1, MEMBER_PARTITION_COUNT),
            (None, Some(text)) => (text, SLOTS_PER_PARTITION, SLOT_COUNT),
            (None, None) => anyhow::bail!("--to needs --partitions or --slots"),
        };
        let mut all = Vec::new();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let number = |text: &str| {
                let number = text.trim().parse::<usize>().ok().filter(|n| *n < most);
                number.with_context(|| format!("{part}: from 0 to {}", most - 1))
            };
            let (first, last) = (number(first)?, number(last)?);
            anyhow::ensure!(first <= last, "{part}: a range goes up");
            anyhow::ensure!(
                first.is_multiple_of(unit) && (last + 1).is_multiple_of(unit),
                "{part}: only whole partitions of {unit} slots move, such as 0-{}",
                unit - 1
            );
            let numbers = (first / unit..=last / unit).filter_map(|n| u8::try_from(n).ok());
            all.extend(numbers.filter_map(Partition::new));
        }
        all.sort_unstable();
        all.dedup();
        Ok(Some((DatabaseShard::new(to), all)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn partitions(partitions: Option<&str>, slots: Option<&str>) -> Result<Vec<u8>, String> {
        let text = |t: &str| t.to_owned();
        let (partitions, slots) = (partitions.map(text), slots.map(text));
        let wanted = Wanted { to: Some(2), partitions, slots }.partitions();
        let (to, all) = wanted.map_err(|e| e.to_string())?.expect("--to was given");
        assert_eq!(to.get(), 2);
        Ok(all.into_iter().map(Partition::get).collect())
    }

    #[test]
    fn partitions_are_named_by_number_or_by_whole_ranges_of_slots() {
        assert_eq!(partitions(Some("0-2,9, 2"), None), Ok(vec![0, 1, 2, 9]));
        assert_eq!(partitions(None, Some("0-127,3968-4095")), Ok(vec![0, 31]));
        for (partition, slots) in [
            (Some("32"), None),
            (Some("3-1"), None),
            (Some("x"), None),
            (None, Some("0-126")),
            (None, Some("5")),
            (None, Some("0-4096")),
        ] {
            assert!(partitions(partition, slots).is_err(), "{partition:?} {slots:?}");
        }
    }
}
