//! The database shards of a data folder, all in one read transaction each.

use std::path::Path;

use super::beside::{Beside, Others};
use super::claimed::others;
use super::finding::{Check, Findings, Where};
use super::journal::CannotRead;
use crate::config::{StoreConfig, StoreKind};
use crate::persist::sqlite::{SqliteReader, path_of};
use crate::persist::store::{ConsistentRead, StoreError, StoreReader};
use crate::persist::stores::{self, StoresError};
use crate::ship::holdings::gather;
use crate::ship::partition::{DATABASE_SHARD_COUNT_MAX, DatabaseShard, Layout};
use crate::units::{JournalId, Seq};

impl From<StoreError> for CannotRead {
    fn from(e: StoreError) -> Self {
        Self(e.to_string())
    }
}

/// The database shards that there are, and what is wrong with the others.
#[derive(Default)]
pub struct Stores {
    /// How many they are, and how the partitions were spread; `None` where none was ever made.
    pub layout: Option<Layout>,
    pub readers: Vec<(DatabaseShard, Box<dyn StoreReader>)>,
    /// Database shards that are missing, or are others than their names say, in words.
    pub wrong: Vec<(DatabaseShard, String)>,
}

/// One database shard within an open read transaction.
pub type OpenShard<'a> = (DatabaseShard, &'a dyn ConsistentRead);

/// Opens the database shards that the settings name. One that is missing or exchanged is no error:
/// the others are compared all the same.
///
/// Errors: one that is there cannot be opened.
pub fn open(config: &StoreConfig, folder: &Path) -> Result<Stores, CannotRead> {
    match config.kind {
        StoreKind::Sqlite => open_files(folder),
        StoreKind::Mysql => open_databases(config, folder),
    }
}

fn open_databases(config: &StoreConfig, folder: &Path) -> Result<Stores, CannotRead> {
    let count = config.mysql.urls.len();
    let layout = u8::try_from(count).ok().and_then(Layout::new);
    let layout = layout.ok_or_else(|| {
        CannotRead(format!("store.mysql.urls names {count} databases: that is no layout"))
    })?;
    let mut all = Stores { layout: Some(layout), ..Stores::default() };
    for shard in layout.shards() {
        match stores::reader(config, folder, shard, layout) {
            Ok(reader) => all.readers.push((shard, reader)),
            Err(StoresError::Store { source: e @ StoreError::WrongShard { .. }, .. }) => {
                all.wrong.push((shard, format!("{e}; were databases exchanged?")));
            }
            Err(e) => return Err(CannotRead(e.to_string())),
        }
    }
    Ok(all)
}

/// Those in a folder; none where none was ever made.
fn open_files(folder: &Path) -> Result<Stores, CannotRead> {
    let mut found = Vec::new();
    for shard in (0..DATABASE_SHARD_COUNT_MAX).map(DatabaseShard::new) {
        let path = path_of(folder, shard);
        if path.exists() {
            let failed = |e: StoreError| CannotRead(format!("opening {}: {e}", path.display()));
            let reader = SqliteReader::open(folder, shard).map_err(failed)?;
            let identity = reader.identity().map_err(failed)?;
            found.push((shard, reader, identity));
        }
    }
    // One that is another's may say another number: what most say is right.
    let votes = |count: u8| found.iter().filter(|(_, _, (_, of))| *of == count).count();
    let Some(count) = found.iter().map(|(_, _, (_, of))| *of).max_by_key(|of| votes(*of)) else {
        return Ok(Stores::default());
    };
    let mut stores = Stores { layout: Layout::new(count), ..Stores::default() };
    for shard in (0..count).map(DatabaseShard::new) {
        if !found.iter().any(|(there, ..)| *there == shard) {
            let path = path_of(folder, shard);
            let sentence = format!("{} is missing, one of {count} files", path.display());
            stores.wrong.push((shard, sentence));
        }
    }
    for (shard, reader, (is, of)) in found {
        if is == shard && of == count {
            stores.readers.push((shard, Box::new(reader)));
            continue;
        }
        let sentence = format!(
            "{} says it is database shard {} of {of}, where {} of {count} is expected: were files \
             exchanged?",
            path_of(folder, shard).display(),
            is.get(),
            shard.get()
        );
        stores.wrong.push((shard, sentence));
    }
    Ok(stores)
}

impl Stores {
    /// How the partitions lie, as the databases say within these transactions.
    ///
    /// Errors: one is on its way, nowhere or in two places; or a map cannot be read.
    pub fn layout(&self, open: &[OpenShard<'_>]) -> Result<Option<Layout>, StoreError> {
        // A database that is missing or exchanged is said already; the others are compared by how
        // the partitions were spread.
        let Some(layout) = self.layout.filter(|_| self.wrong.is_empty()) else {
            return Ok(self.layout);
        };
        let map = |(shard, read): &OpenShard<'_>| Ok((*shard, read.holdings()?));
        let maps: Vec<_> = open.iter().map(map).collect::<Result<_, StoreError>>()?;
        Ok(Some(gather(layout.count(), &maps)?))
    }

    /// What is wrong with them, and that they are gone where the journal's beginning is.
    pub fn report(&self, first: Seq, findings: &mut Findings) {
        for (shard, sentence) in &self.wrong {
            let at = Where::database(shard.get());
            findings.violation(Check::StoreWatermarks, at, sentence.clone());
        }
        if self.layout.is_none() && first > Seq::new(1) {
            let sentence = format!(
                "there are no database shards, and the journal begins at {first}: what was \
                 before was deleted because they had it"
            );
            findings.violation(Check::StoreWatermarks, Where::default(), sentence);
        }
    }
}

/// What is done with all database shards, each as of one moment.
pub type WithAll<'a> = dyn FnMut(&[OpenShard<'_>], &Others) -> Result<(), StoreError> + 'a;

/// Begins a read transaction on each, one inside the other, and calls `run` within all of them,
/// with the rows that are not other nodes' and the journals that are.
pub fn with_all(
    stores: &Stores,
    journal: JournalId,
    run: &mut WithAll<'_>,
) -> Result<(), StoreError> {
    nest(&stores.readers, &[], &mut |reads| {
        let others = others(reads, journal)?;
        let beside: Vec<_> =
            reads.iter().map(|&(_, read)| Beside { read, others: &others }).collect();
        let reads = reads.iter().zip(&beside).map(|((shard, _), b)| (*shard, b as _));
        run(&reads.collect::<Vec<OpenShard<'_>>>(), &others)
    })
}

type WithReads<'a> = dyn FnMut(&[OpenShard<'_>]) -> Result<(), StoreError> + 'a;

fn nest(
    readers: &[(DatabaseShard, Box<dyn StoreReader>)],
    open: &[OpenShard<'_>],
    run: &mut WithReads<'_>,
) -> Result<(), StoreError> {
    let Some(((shard, first), rest)) = readers.split_first() else { return run(open) };
    first.consistent(&mut |read| {
        // Its first read fixes the moment.
        read.watermarks().map(drop).or_else(|e| match e {
            StoreError::Corrupt(_) => Ok(()),
            other => Err(other),
        })?;
        let mut all = open.to_vec();
        all.push((*shard, read));
        nest(rest, &all, run)
    })
}
