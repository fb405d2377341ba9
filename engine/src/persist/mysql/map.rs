//! A database shard's own map of partitions: read, checked under a lock, and changed.

use mysql_async::{Row, Value};

use super::cells::partition_at;
use super::link::{Session, cell};
use crate::persist::store::StoreError;
use crate::ship::holdings::{Epoch, Hold, Holding, Holdings, MapVersion};
use crate::ship::partition::{DatabaseShard, Layout, Partition};

/// What the database says that it holds.
pub async fn holdings(session: &mut Session) -> Result<Holdings, StoreError> {
    // One statement, so that the rows belong to the version.
    let sql = "SELECT v.version, h.`partition`, h.state, h.epoch, h.peer
               FROM map_version v LEFT JOIN holdings h ON TRUE ORDER BY h.`partition`";
    let rows = session.rows(sql, ()).await?;
    let Some(first) = rows.first() else {
        return Err(StoreError::Corrupt("map_version has no row".into()));
    };
    let mut holdings = Holdings::none(MapVersion::new(cell(first, 0)?));
    for row in &rows {
        if let Some((partition, holding)) = holding_at(row)? {
            holdings.set(partition, holding);
        }
    }
    Ok(holdings)
}

fn holding_at(row: &Row) -> Result<Option<(Partition, Holding)>, StoreError> {
    if row.as_ref(1) == Some(&Value::NULL) {
        return Ok(None);
    }
    let unknown = || StoreError::Corrupt("a partition is held in no known state".into());
    let hold = Hold::from_u8(cell(row, 2)?).ok_or_else(unknown)?;
    let epoch = Epoch::new(cell(row, 3)?);
    let peer = cell::<Option<u8>>(row, 4)?.map(DatabaseShard::new);
    Ok(Some((partition_at(row, 1)?, Holding { hold, epoch, peer })))
}

/// Compares the map's version, and keeps it as it is until the transaction ends: whoever changes
/// the map waits for the writers that are under way, and they for it.
pub async fn check(session: &mut Session, expected: MapVersion) -> Result<(), StoreError> {
    let sql = "SELECT version FROM map_version WHERE one = 1 LOCK IN SHARE MODE";
    let rows = session.rows(sql, ()).await?;
    let found = rows.first().map_or(Ok(0), |row| cell(row, 0)).map(MapVersion::new)?;
    if found == expected { Ok(()) } else { Err(StoreError::Map { expected, found }) }
}

/// Raises the version, within a transaction: writers under way come first, and all later ones
/// find another map.
pub async fn raise(session: &mut Session) -> Result<(), StoreError> {
    session.execute("UPDATE map_version SET version = version + 1 WHERE one = 1", ()).await?;
    Ok(())
}

/// Takes a partition from one state to another; `false` where it is not in that state any more.
pub async fn change(
    session: &mut Session,
    partition: Partition,
    from: Hold,
    to: Holding,
) -> Result<bool, StoreError> {
    let sql = "UPDATE holdings SET state = ?, epoch = ?, peer = ?
               WHERE `partition` = ? AND state = ?";
    let peer = to.peer.map(DatabaseShard::get);
    let row = (to.hold as u8, to.epoch.get(), peer, partition.get(), from as u8);
    Ok(session.execute(sql, row).await? == 1)
}

/// Enters a partition that the map does not name.
pub async fn enter(
    session: &mut Session,
    partition: Partition,
    holding: Holding,
) -> Result<(), StoreError> {
    let peer = holding.peer.map(DatabaseShard::get);
    let row = (partition.get(), holding.hold as u8, holding.epoch.get(), peer);
    session.execute("INSERT INTO holdings VALUES (?, ?, ?, ?)", row).await?;
    Ok(())
}

/// Takes partitions that are in one state off the map.
pub async fn forget(
    session: &mut Session,
    partitions: impl Iterator<Item = Partition>,
    hold: Hold,
) -> Result<(), StoreError> {
    for partition in partitions {
        let sql = "DELETE FROM holdings WHERE `partition` = ? AND state = ?";
        session.execute(sql, (partition.get(), hold as u8)).await?;
    }
    Ok(())
}

/// Writes a database's first map, if it has none. `spread`: how many database shards the
/// partitions were spread over, if this is one of them.
pub async fn found(
    session: &mut Session,
    shard: DatabaseShard,
    spread: Option<Layout>,
) -> Result<(), StoreError> {
    session.query("START TRANSACTION").await?;
    let rows = session.rows("SELECT version FROM map_version FOR UPDATE", ()).await?;
    if rows.is_empty() {
        let map = spread
            .map_or(Holdings::none(MapVersion::FIRST), |layout| Holdings::spread(layout, shard));
        for (partition, holding) in map.each() {
            enter(session, partition, holding).await?;
        }
        let first = (MapVersion::FIRST.get(),);
        session.execute("INSERT INTO map_version VALUES (1, ?)", first).await?;
    }
    session.query("COMMIT").await
}
