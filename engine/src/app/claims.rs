//! A node's claim of its slots, before the first request: what `cluster::claims` decides, done.

use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::Duration;

use super::StartError;
use crate::cluster::claims::{Claim, ClaimError, Next, at_start, in_database};
use crate::cluster::map::SlotSet;
use crate::cluster::nodes::Cluster;
use crate::config::{Config, StoreConfig, StoreKind};
use crate::kernel::control::{ControlCommand, ControlOutcome, SlotClaim};
use crate::persist::claims::ClaimStore;
use crate::persist::store::StoreError;
use crate::persist::stores::StoresError;
use crate::shard::control::ControlHandle;
use crate::shard::recover::Recovered;
use crate::ship::partition::Layout;
use crate::units::{JournalId, NodeTime};

/// How often the database is looked at while not every node has claimed.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Makes sure that the map's slots are this journal's. Gives the claim that is to be recorded.
///
/// Errors: they are another's, or the journal has others, or the database cannot be asked, which
/// is needed once.
pub fn settle(
    config: &Config,
    data: &Path,
    cluster: &Cluster,
    journal: JournalId,
    recovered: &Recovered,
    now: NodeTime,
) -> Result<Option<Claim>, StartError> {
    let recorded = recovered.control.claim().map(|claim| read_back(claim, journal));
    let Some(map) = cluster.map() else {
        // A node that is alone owns all slots; a journal of several nodes has not all of them.
        let (node, slots) = ("(alone)".to_owned(), SlotSet::all());
        let alone = Claim { node, journal, version: 0, slots };
        return recorded.map_or(Ok(None), |recorded| {
            at_start(Some(&recorded), alone).map(|_| None).map_err(StartError::Claim)
        });
    };
    let me = map.node(map.me());
    let wish =
        Claim { node: me.name.clone(), journal, version: map.version(), slots: me.slots.clone() };
    if me.slots.is_empty() {
        return Ok(None);
    }
    let Next::Claim(wish) = at_start(recorded.as_ref(), wish)? else { return Ok(None) };
    let stranded =
        recovered.slots.iter().flatten().find(|slot| {
            !wish.slots.contains(slot.slot()) && slot.dump_accounts().next().is_some()
        });
    if let Some(state) = stranded {
        let (slot, version) = (state.slot(), wish.version);
        return Err(ClaimError::Stranded { slot, version }.into());
    }
    let folder = data.join("db");
    let store = ClaimStore { config: &config.store, folder: &folder, layout: layout(config) };
    loop {
        let rows = store.read()?;
        if !in_database(&rows, &wish)? {
            break;
        }
        match store.insert(&wish, now) {
            Ok(()) => break,
            // Another one was faster: who, the rows say.
            Err(StoresError::Store { source: StoreError::Data(_), .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    cluster.set_claims(&store.read()?);
    tracing::info!(node = wish.node, slots = %wish.slots, "slots claimed");
    Ok(Some(wish))
}

fn read_back(claim: &SlotClaim, journal: JournalId) -> Claim {
    let SlotClaim { node, version, slots } = claim.clone();
    // What we wrote reads; what does not equals no map.
    Claim { node, journal, version, slots: slots.parse().unwrap_or_default() }
}

/// Writes the claim to the journal, so that later starts need no database.
pub fn record(control: &ControlHandle, claim: &Claim) -> Result<(), StartError> {
    let claim = SlotClaim {
        node: claim.node.clone(),
        version: claim.version,
        slots: claim.slots.to_string(),
    };
    let (answer, answered) = tokio::sync::oneshot::channel();
    let is_sent = control.send(ControlCommand::ClaimSlots { claim }, answer).is_ok();
    let outcome = if is_sent { answered.blocking_recv().ok() } else { None };
    if outcome == Some(Ok(ControlOutcome::Noted)) {
        return Ok(());
    }
    let error = std::io::Error::other("the control thread does not take it");
    Err(StartError::Io { what: "cannot record the claim of slots", error })
}

/// Watches the database for the other nodes' claims until all are known. Files have one node each
/// and would never tell.
pub fn watch(store: StoreConfig, layout: Layout, cluster: &Arc<Cluster>) -> std::io::Result<()> {
    if cluster.map().is_none() || store.kind == StoreKind::Sqlite {
        return Ok(());
    }
    let cluster: Weak<Cluster> = Arc::downgrade(cluster);
    let look = move || {
        while let Some(cluster) = cluster.upgrade() {
            if cluster.journals().is_some() {
                return;
            }
            let claims = ClaimStore { config: &store, folder: Path::new(""), layout };
            match claims.read() {
                Ok(rows) => cluster.set_claims(&rows),
                Err(error) => tracing::debug!(%error, "claims of slots cannot be read just now"),
            }
            drop(cluster);
            std::thread::sleep(LOOK_EVERY);
        }
    };
    std::thread::Builder::new().name("claims".into()).spawn(look).map(drop)
}

fn layout(config: &Config) -> Layout {
    super::ship::layout(config)
}
