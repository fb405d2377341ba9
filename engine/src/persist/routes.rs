//! Where the partitions lie, as this process knows by now: what each database shard said of itself
//! when it was asked last. Read by whoever looks for a member's rows, or waits for records to be
//! stored; what a writer may write says its own database alone.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::ship::holdings::{Epoch, Hold, Holdings};
use crate::ship::partition::{DatabaseShard, MEMBER_PARTITION_COUNT, Partition};

/// The map of one process.
///
/// Relaxed all through: each is a claim of its own, which only a newer one overrules, and nothing
/// else hangs on it. Who acts on an old one finds out where it acts: a writer at its database, a
/// reader by asking that database once more behind its read.
pub struct Routes {
    /// Per member partition: epoch and database shard of the claim in force; 0: none yet.
    owners: [AtomicU64; MEMBER_PARTITION_COUNT],
    /// A bit for each database shard that reads the control partition.
    control: AtomicU32,
    /// A bit for each database shard that has answered.
    heard: AtomicU32,
}

const BITS: u32 = 8;

impl Default for Routes {
    fn default() -> Self {
        Self {
            owners: [const { AtomicU64::new(0) }; MEMBER_PARTITION_COUNT],
            control: AtomicU32::new(0),
            heard: AtomicU32::new(0),
        }
    }
}

impl Routes {
    /// A database shard says what it holds. A claim of a higher epoch stands, whoever says
    /// something else later.
    pub fn hear(&self, shard: DatabaseShard, map: &Holdings) {
        for (partition, holding) in map.each() {
            if !matches!(holding.hold, Hold::Held | Hold::Leaving) {
                continue;
            }
            if partition == Partition::CONTROL {
                self.control.fetch_or(1 << shard.index(), Ordering::Relaxed);
                continue;
            }
            let claim = u64::from(holding.epoch.get()) << BITS | u64::from(shard.get());
            self.owners[partition.index()].fetch_max(claim, Ordering::Relaxed);
        }
        self.heard.fetch_or(1 << shard.index(), Ordering::Relaxed);
    }

    /// The database shard that has a member partition's rows, and since which epoch.
    pub fn owner(&self, partition: Partition) -> Option<(DatabaseShard, Epoch)> {
        let claim = self.owners.get(partition.index())?.load(Ordering::Relaxed);
        let epoch = u32::try_from(claim >> BITS).ok().filter(|epoch| *epoch > 0)?;
        Some((DatabaseShard::new(claim as u8), Epoch::new(epoch)))
    }
    /// Whether a database shard reads a partition: its own, and the control partition.
    pub fn reads(&self, shard: DatabaseShard, partition: Partition) -> bool {
        if partition == Partition::CONTROL {
            return self.control.load(Ordering::Relaxed) >> shard.index() & 1 == 1;
        }
        self.owner(partition).is_some_and(|(owner, _)| owner == shard)
    }
    /// Whether a database shard has answered by now.
    pub fn has_heard(&self, shard: DatabaseShard) -> bool {
        self.heard.load(Ordering::Relaxed) >> shard.index() & 1 == 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ship::holdings::{Holding, MapVersion};

    #[test]
    fn a_claim_of_a_higher_epoch_stands_whoever_is_heard_last() {
        let (routes, partition) = (Routes::default(), Partition::new(3).unwrap());
        assert_eq!(routes.owner(partition), None);
        let claim = |shard: u8, hold, epoch| {
            let (epoch, peer) = (Epoch::new(epoch), None);
            let mut map = Holdings::none(MapVersion::FIRST);
            map.set(partition, Holding { hold, epoch, peer });
            routes.hear(DatabaseShard::new(shard), &map);
            routes.owner(partition).map(|(owner, _)| owner.get())
        };
        assert_eq!(claim(0, Hold::Held, 1), Some(0));
        assert_eq!(claim(2, Hold::Arriving, 2), Some(0), "not before it is there");
        assert_eq!(claim(0, Hold::Leaving, 1), Some(0));
        assert_eq!(claim(2, Hold::Held, 2), Some(2));
        assert_eq!(claim(0, Hold::Held, 1), Some(2), "a late word");
        assert!(
            routes.has_heard(DatabaseShard::new(2)) && !routes.has_heard(DatabaseShard::new(1))
        );
    }
}
