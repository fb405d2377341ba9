//! Claims of slots in a `MySQL` or `MariaDB` database.

use mysql_async::Value;

use super::bulk::Bulk;
use super::link::{Link, Session, Use, cell};
use super::{Endpoint, read, schema};
use crate::cluster::claims::Claim;
use crate::persist::claims::{ClaimRow, HOME};
use crate::persist::store::StoreError;
use crate::ship::partition::Layout;
use crate::units::{JournalId, NodeTime, Slot};

pub fn read(endpoint: Endpoint, layout: Layout) -> Result<Vec<ClaimRow>, StoreError> {
    let link = Link::new(endpoint, Use::Read)?;
    link.run(
        async |session: &mut Session| schema::check(session, HOME, layout).await,
        async |session: &mut Session| {
            let mut claims = Vec::new();
            for row in session.rows(read::CLAIMS, ()).await? {
                claims.push(ClaimRow {
                    slot: Slot::new(cell(&row, 0)?),
                    journal: JournalId::new(cell(&row, 1)?),
                    node: cell(&row, 2)?,
                    version: cell(&row, 3)?,
                });
            }
            Ok(claims)
        },
    )
}

static INSERT: Bulk = Bulk {
    head: "INSERT INTO slot_claims VALUES ",
    row: "(?, ?, ?, ?, ?)",
    tail: "",
    columns: 5,
    row_bytes: 100,
};

/// One transaction: of two that claim a slot at the same time, the second waits for the first, and
/// finds a row where it wants to put its own.
pub fn insert(
    endpoint: Endpoint,
    layout: Layout,
    claim: &Claim,
    at: NodeTime,
) -> Result<(), StoreError> {
    let link = Link::new(endpoint, Use::Write)?;
    let slots: Vec<Slot> = claim.slots.iter().collect();
    link.run(
        async |session: &mut Session| schema::check(session, HOME, layout).await,
        async |session: &mut Session| {
            session.query("START TRANSACTION").await?;
            let written = session
                .write(&INSERT, &slots, |slot, out| {
                    out.extend([
                        Value::UInt(slot.get().into()),
                        Value::UInt(claim.journal.get()),
                        Value::Bytes(claim.node.clone().into_bytes()),
                        Value::UInt(claim.version),
                        Value::UInt(at.get()),
                    ]);
                })
                .await;
            match written {
                Ok(()) => session.query("COMMIT").await,
                Err(error) => {
                    session.query("ROLLBACK").await?;
                    Err(error)
                }
            }
        },
    )
}
