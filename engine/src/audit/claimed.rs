//! The claims of slots, as the databases have them: whose rows are somebody else's to audit, and
//! whether they are what the journal claimed.
//!
//! A claim hides its journal's rows from the audits of all other nodes. So a claim that nobody made
//! is not let pass: what this journal's own claims say otherwise is found here, and what no node
//! that is audited has claimed, in `together`.

use std::collections::BTreeMap;

use super::beside::Others;
use super::finding::{Check, Findings, Where};
use super::stores::OpenShard;
use crate::cluster::map::SlotSet;
use crate::persist::store::StoreError;
use crate::ship::partition::DatabaseShard;
use crate::units::{JournalId, SLOT_COUNT, Slot};

/// Where claims lie.
const HOME: DatabaseShard = DatabaseShard::new(0);

/// The journals with claims, as the databases have them, but for this one.
///
/// Errors: a database cannot be read.
pub fn others(reads: &[OpenShard<'_>], own: JournalId) -> Result<Others, StoreError> {
    let mut others = Others::new();
    for (shard, read) in reads {
        // Anywhere else they are none, and are found.
        if *shard == HOME {
            others.extend(read.claims()?.into_iter().map(|(_, journal)| journal));
        }
    }
    others.remove(&own);
    Ok(others)
}

/// What the journal says of its own slots.
pub struct Own<'a> {
    pub journal: JournalId,
    /// The claim that it has recorded; none where its node is alone, and owns all slots.
    pub claim: Option<&'a SlotSet>,
    /// A node without slots of its own has no claim and no members.
    pub has_members: bool,
}

/// Compares the claims in the databases with the journal's.
///
/// Errors: a database cannot be read.
pub fn check(
    reads: &[OpenShard<'_>],
    own: &Own<'_>,
    findings: &mut Findings,
) -> Result<(), StoreError> {
    let mut found = |shard: u8, slot: Slot, sentence: String| {
        let at = Where::database(shard).with_slot(slot);
        findings.violation(Check::StoreSlots, at, sentence);
    };
    for (shard, read) in reads {
        let claims = read.claims()?;
        if *shard != HOME {
            for (slot, journal) in claims {
                let by = journal.get();
                let sentence = format!("journal {by:016x} claims it here, where no claims lie");
                found(shard.get(), slot, sentence);
            }
            continue;
        }
        let owners: BTreeMap<Slot, JournalId> = claims.into_iter().collect();
        for slot in (0..SLOT_COUNT).map(|n| Slot::new(n as u16)) {
            let owner = owners.get(&slot).copied();
            let is_own = owner == Some(own.journal);
            let sentence = match (own.claim.map(|claim| claim.contains(slot)), owner) {
                (Some(true), Some(other)) if !is_own => {
                    format!("this journal has claimed it, here journal {:016x} has", other.get())
                }
                // A database that was made anew, from the journals, has no claims at all.
                (Some(true), None) if !owners.is_empty() => {
                    "this journal has claimed it, here nobody has".to_owned()
                }
                (Some(false), _) if is_own => {
                    "this journal has not claimed it, here it has".to_owned()
                }
                (None, Some(other)) if !is_own && own.has_members => format!(
                    "journal {:016x} claims it, and this journal, which shares with nobody, owns \
                     every slot",
                    other.get()
                ),
                _ => continue,
            };
            found(shard.get(), slot, sentence);
        }
        // Slots that there are none of.
        for (&slot, journal) in owners.range(Slot::new(SLOT_COUNT as u16)..) {
            let by = journal.get();
            found(shard.get(), slot, format!("journal {by:016x} claims it, and it is no slot"));
        }
    }
    Ok(())
}
