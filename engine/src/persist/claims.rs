//! Claims of slots in database shard 00: read, and inserted once. What they mean is decided by
//! `cluster::claims`; the table's primary key lets no slot have two owners, whoever asks when.

use std::path::Path;

use super::mysql;
use super::sqlite;
use super::store::StoreError;
use super::stores::{StoresError, primaries};
use crate::cluster::claims::Claim;
use crate::cluster::map::SlotSet;
use crate::config::{StoreConfig, StoreKind};
use crate::ship::partition::{DatabaseShard, Layout};
use crate::units::{JournalId, NodeTime, Slot};

/// Where claims lie.
pub const HOME: DatabaseShard = DatabaseShard::new(0);

/// One slot's claim, as it is stored.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClaimRow {
    pub slot: Slot,
    pub journal: JournalId,
    pub node: String,
    pub version: u64,
}

/// The database shard that holds the claims.
pub struct ClaimStore<'a> {
    pub config: &'a StoreConfig,
    /// Of `SQLite` files.
    pub folder: &'a Path,
    pub layout: Layout,
}

impl ClaimStore<'_> {
    /// All claims there are, one per journal and name.
    pub fn read(&self) -> Result<Vec<Claim>, StoresError> {
        let rows = match self.config.kind {
            StoreKind::Sqlite => sqlite::claims::read(self.folder, self.layout),
            StoreKind::Mysql => mysql::claims::read(self.endpoint()?, self.layout),
        };
        Ok(gather(rows.map_err(failed)?))
    }

    /// Inserts a claim whole, or not at all.
    ///
    /// Errors: `Data` where one of its slots is claimed already.
    pub fn insert(&self, claim: &Claim, at: NodeTime) -> Result<(), StoresError> {
        let done = match self.config.kind {
            StoreKind::Sqlite => sqlite::claims::insert(self.folder, self.layout, claim, at),
            StoreKind::Mysql => mysql::claims::insert(self.endpoint()?, self.layout, claim, at),
        };
        done.map_err(failed)
    }

    fn endpoint(&self) -> Result<mysql::Endpoint, StoresError> {
        let first = primaries(&self.config.mysql)?.into_iter().next();
        first.ok_or_else(|| StoresError::Url("urls has no database shard 0".into()))
    }
}

fn failed(source: StoreError) -> StoresError {
    StoresError::Store { shard: HOME, source }
}

/// Rows of one journal, name and version are one claim.
fn gather(rows: Vec<ClaimRow>) -> Vec<Claim> {
    let mut claims: Vec<(ClaimRow, Vec<Slot>)> = Vec::new();
    for row in rows {
        let is_same = |(first, _): &&mut (ClaimRow, Vec<Slot>)| {
            (first.journal, &first.node, first.version) == (row.journal, &row.node, row.version)
        };
        match claims.iter_mut().find(is_same) {
            Some((_, slots)) => slots.push(row.slot),
            None => claims.push((row.clone(), vec![row.slot])),
        }
    }
    let claim = |(row, slots): (ClaimRow, Vec<Slot>)| Claim {
        node: row.node,
        journal: row.journal,
        version: row.version,
        slots: slots.into_iter().collect::<SlotSet>(),
    };
    claims.into_iter().map(claim).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(node: &str, journal: u64, slots: &str) -> Claim {
        let slots = slots.parse().unwrap();
        Claim { node: node.into(), journal: JournalId::new(journal), version: 2, slots }
    }

    #[test]
    fn a_claim_is_stored_whole_once_and_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let config = StoreConfig::default();
        let layout = Layout::new(2).unwrap();
        let store = ClaimStore { config: &config, folder: folder.path(), layout };
        assert_eq!(store.read().unwrap(), []);
        let (a, b) = (claim("a", u64::MAX, "0-9,4095"), claim("b", 7, "10-99"));
        store.insert(&a, NodeTime::new(5)).unwrap();
        store.insert(&b, NodeTime::new(6)).unwrap();
        assert_eq!(store.read().unwrap(), [a.clone(), b.clone()]);
        // A second owner of one slot gets none of its slots.
        let error = store.insert(&claim("c", 8, "99-200"), NodeTime::new(7)).unwrap_err();
        assert!(matches!(error, StoresError::Store { source: StoreError::Data(_), .. }), "{error}");
        assert_eq!(store.read().unwrap(), [a, b]);
    }
}
