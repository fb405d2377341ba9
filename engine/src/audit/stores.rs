//! The database shards of a data folder, all in one read transaction each.

use std::path::Path;

use super::journal::CannotRead;
use crate::persist::sqlite::{SqliteReader, path_of};
use crate::persist::store::{ConsistentRead, StoreError, StoreReader};
use crate::ship::partition::{DATABASE_SHARD_COUNT_MAX, DatabaseShard};

impl From<StoreError> for CannotRead {
    fn from(e: StoreError) -> Self {
        Self(e.to_string())
    }
}

/// Opens the database shards in a folder; none where none was ever made.
///
/// Errors: one is missing between the others, is another one than its name says, or cannot be
/// opened.
pub fn open(folder: &Path) -> Result<Vec<Box<dyn StoreReader>>, CannotRead> {
    let all = (0..DATABASE_SHARD_COUNT_MAX).map(DatabaseShard::new);
    let there: Vec<_> = all.filter(|shard| path_of(folder, *shard).exists()).collect();
    let mut readers: Vec<Box<dyn StoreReader>> = Vec::new();
    for shard in &there {
        let path = path_of(folder, *shard);
        let reader = SqliteReader::open(folder, *shard)
            .map_err(|e| CannotRead(format!("opening {}: {e}", path.display())))?;
        let identity = reader.identity();
        let (is, of) = identity.map_err(|e| CannotRead(format!("{}: {e}", path.display())))?;
        if is != *shard || usize::from(of) != there.len() {
            return Err(CannotRead(format!(
                "{} says it is database shard {} of {of}, and there are {} files: is one missing, \
                 or were they exchanged?",
                path.display(),
                is.get(),
                there.len()
            )));
        }
        readers.push(Box::new(reader));
    }
    Ok(readers)
}

/// What is done with all database shards, each as of one moment.
pub type WithAll<'a> = dyn FnMut(&[&dyn ConsistentRead]) -> Result<(), StoreError> + 'a;

/// Begins a read transaction on each, one inside the other, and calls `run` within all of them.
pub fn with_all(readers: &[Box<dyn StoreReader>], run: &mut WithAll<'_>) -> Result<(), StoreError> {
    nest(readers, &[], run)
}

fn nest(
    readers: &[Box<dyn StoreReader>],
    open: &[&dyn ConsistentRead],
    run: &mut WithAll<'_>,
) -> Result<(), StoreError> {
    let Some((first, rest)) = readers.split_first() else { return run(open) };
    first.consistent(&mut |read| {
        // Its first read fixes the moment.
        read.watermarks().map(drop).or_else(|e| match e {
            StoreError::Corrupt(_) => Ok(()),
            other => Err(other),
        })?;
        let mut all = open.to_vec();
        all.push(read);
        nest(rest, &all, run)
    })
}
