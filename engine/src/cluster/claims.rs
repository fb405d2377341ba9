//! Claims: which journal owns which slots, for good. Pure: what is recorded in, what to do out.
//!
//! A map is only a wish of the settings. Before a node first uses its slots it claims them in
//! database shard 00, a row per slot, so that the table itself lets no slot have two owners; then
//! it records the claim in its own journal. Every later start compares the map with that record
//! and needs no database. So a second node with the same slots, a changed map, and an empty disk
//! under an old name are all refused before the first request.
//!
//! ```text
//! journal's record   database           then
//! the map's slots    (not asked)        go on
//! other slots        (not asked)        refuse: slots do not move between journals
//! none               no row of ours     insert all rows in one transaction, record, go on
//! none               all rows are ours  record, go on (killed between the two)
//! none               some are another's refuse: another journal owns them
//! ```

use thiserror::Error;

use super::map::SlotSet;
use crate::planted::{self, Bug};
use crate::units::{JournalId, Slot};

/// What one journal has claimed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Claim {
    /// The node's name when it claimed.
    pub node: String,
    pub journal: JournalId,
    /// Of the map that it claimed by.
    pub version: u64,
    pub slots: SlotSet,
}

/// Why a node must not use the slots that its map gives it. One line each.
#[derive(Error, Clone, PartialEq, Eq, Debug)]
pub enum ClaimError {
    #[error(
        "this data folder's journal {journal:016x} owns slots {claimed} (claimed as node \
         {node}), but the map, version {version}, gives node {me} slots {mapped}: slots do not \
         move between journals; start it with the map that it was made under, or as the node \
         that it is"
    )]
    Map { journal: u64, claimed: SlotSet, node: String, version: u64, me: String, mapped: SlotSet },
    #[error(
        "slot {slot} belongs to journal {owner:016x} (claimed by node {node}), not to this data \
         folder's journal {journal:016x}: an empty or wrong disk under the name {me}? Start it \
         with the data folder that it had"
    )]
    Taken { slot: Slot, owner: u64, node: String, journal: u64, me: String },
    #[error(
        "journal {journal:016x} has claimed slots {claimed} in the database, but the map, \
         version {version}, gives node {me} slots {mapped}: slots do not move between journals"
    )]
    Database { journal: u64, claimed: SlotSet, version: u64, me: String, mapped: SlotSet },
    #[error(
        "this data folder has members in slot {slot}, which the map, version {version}, gives to \
         another node: a data folder joins a cluster only with the slots that it has"
    )]
    Stranded { slot: Slot, version: u64 },
}

/// What the database must say before the slots are used.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Next {
    /// Nothing: the journal has it recorded.
    GoOn,
    /// Claim in the database, then record.
    Claim(Claim),
}

/// Compares the map's wish with what the journal has recorded.
pub fn at_start(recorded: Option<&Claim>, wish: Claim) -> Result<Next, ClaimError> {
    let Some(recorded) = recorded else { return Ok(Next::Claim(wish)) };
    if recorded.slots != wish.slots {
        return Err(ClaimError::Map {
            journal: wish.journal.get(),
            claimed: recorded.slots.clone(),
            node: recorded.node.clone(),
            version: wish.version,
            me: wish.node,
            mapped: wish.slots,
        });
    }
    Ok(Next::GoOn)
}

/// Whether the rows must still be inserted (`true`), given what the database holds.
pub fn in_database(rows: &[Claim], wish: &Claim) -> Result<bool, ClaimError> {
    let is_ours = |row: &&Claim| {
        row.journal == wish.journal || planted::is(Bug::ClaimByName) && row.node == wish.node
    };
    for row in rows.iter().filter(|row| !is_ours(row)) {
        if let Some(slot) = row.slots.iter().find(|slot| wish.slots.contains(*slot)) {
            return Err(ClaimError::Taken {
                slot,
                owner: row.journal.get(),
                node: row.node.clone(),
                journal: wish.journal.get(),
                me: wish.node.clone(),
            });
        }
    }
    let ours: SlotSet = rows.iter().filter(is_ours).flat_map(|row| row.slots.iter()).collect();
    if ours.is_empty() {
        return Ok(true);
    }
    if ours != wish.slots {
        return Err(ClaimError::Database {
            journal: wish.journal.get(),
            claimed: ours,
            version: wish.version,
            me: wish.node.clone(),
            mapped: wish.slots.clone(),
        });
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(node: &str, journal: u64, slots: &str) -> Claim {
        Claim {
            node: node.into(),
            journal: JournalId::new(journal),
            version: 3,
            slots: slots.parse().unwrap(),
        }
    }

    #[test]
    fn a_recorded_claim_stands_whatever_the_maps_version_and_name() {
        let wish = claim("a", 1, "0-9");
        assert_eq!(at_start(None, wish.clone()), Ok(Next::Claim(wish.clone())));
        let renamed = Claim { version: 2, ..claim("old-name", 1, "0-9") };
        assert_eq!(at_start(Some(&renamed), wish.clone()), Ok(Next::GoOn));
        for other in ["0-8", "0-10", "10-19"] {
            let error = at_start(Some(&claim("a", 1, other)), wish.clone()).unwrap_err();
            assert!(matches!(error, ClaimError::Map { .. }), "{error}");
            assert_eq!(error.to_string().lines().count(), 1);
        }
    }

    #[test]
    fn a_slot_is_claimed_once() {
        let wish = claim("a", 1, "0-9");
        let b = claim("b", 2, "10-4095");
        assert_eq!(in_database(&[], &wish), Ok(true));
        assert_eq!(in_database(std::slice::from_ref(&b), &wish), Ok(true));
        // Killed between the database and the journal.
        assert_eq!(in_database(&[b.clone(), wish.clone()], &wish), Ok(false));
        // An empty disk under an old name: another journal.
        let error = in_database(&[b.clone(), claim("a", 9, "0-9")], &wish).unwrap_err();
        let owner = 9;
        let (slot, node, me) = (Slot::new(0), "a".to_owned(), "a".to_owned());
        assert_eq!(error, ClaimError::Taken { slot, owner, node, journal: 1, me });
        // A second node with some of the same slots.
        let error = in_database(&[claim("b", 2, "9-4095")], &wish).unwrap_err();
        assert!(matches!(error, ClaimError::Taken { slot, .. } if slot == Slot::new(9)));
        // The same journal under another map.
        let error = in_database(&[claim("a", 1, "0-5")], &wish).unwrap_err();
        assert!(matches!(error, ClaimError::Database { .. }), "{error}");
    }
}
