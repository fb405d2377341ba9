//! What a database shard says that it holds: the map of partitions, as it lives in the databases.
//!
//! ```text
//!            the one it comes from              the one it goes to
//!  1         Held(1)                            ─
//!  2         Leaving(1)   nobody writes it      ─
//!  3         Leaving(1)                         Arriving(2)   its rows are copied and compared
//!  4         Leaving(1)                         Held(2)       from here on it is written there
//!  5         Gone(1)                            Held(2)       its rows are deleted here
//! ```
//! The number is the *epoch*: how often the partition was given away, from 1 on. Each database
//! shard is the authority on what it holds itself and on nothing else, so no step needs two
//! databases in one transaction. Where two speak for a partition, the higher epoch is right; and a
//! partition that is leaving is still read where it was, until the other has it.
//!
//! Every change raises the version of that database's map, and every batch is checked against it:
//! a writer that believes in an older map rolls back.

use thiserror::Error;

use super::partition::{DatabaseShard, Layout, MEMBER_PARTITION_COUNT, PARTITION_COUNT, Partition};

/// How often a database shard's map was changed, from 1 on.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct MapVersion(u64);

impl MapVersion {
    pub const FIRST: Self = Self(1);

    pub const fn new(raw: u64) -> Self {
        Self(raw)
    }
    pub const fn get(self) -> u64 {
        self.0
    }
}

/// How often a partition was given away, from 1 on.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Epoch(u32);

impl Epoch {
    pub const FIRST: Self = Self(1);

    pub const fn new(raw: u32) -> Self {
        Self(raw)
    }
    pub const fn get(self) -> u32 {
        self.0
    }
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// How a partition lies on a database shard.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Hold {
    Held = 1,
    /// Stopped, and on its way to another.
    Leaving = 2,
    /// On its way here: some of its rows are.
    Arriving = 3,
    /// Given away; its rows may not all be deleted yet.
    Gone = 4,
}

impl Hold {
    pub fn from_u8(raw: u8) -> Option<Self> {
        [Self::Held, Self::Leaving, Self::Arriving, Self::Gone]
            .into_iter()
            .find(|hold| *hold as u8 == raw)
    }
    pub const fn name(self) -> &'static str {
        match self {
            Self::Held => "held",
            Self::Leaving => "leaving",
            Self::Arriving => "arriving",
            Self::Gone => "gone",
        }
    }
}

/// One partition's place in a database shard's map.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Holding {
    pub hold: Hold,
    pub epoch: Epoch,
    /// Where it goes to or went to, or comes from.
    pub peer: Option<DatabaseShard>,
}

/// A database shard's map.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Holdings {
    pub version: MapVersion,
    of: [Option<Holding>; PARTITION_COUNT],
}

impl Holdings {
    /// One that holds nothing yet.
    pub const fn none(version: MapVersion) -> Self {
        Self { version, of: [None; PARTITION_COUNT] }
    }

    /// What a database shard holds where none was ever moved.
    pub fn spread(layout: Layout, shard: DatabaseShard) -> Self {
        let mut holdings = Self::none(MapVersion::FIRST);
        for partition in layout.partitions(shard) {
            let (hold, epoch, peer) = (Hold::Held, Epoch::FIRST, None);
            holdings.set(partition, Holding { hold, epoch, peer });
        }
        holdings
    }

    pub fn set(&mut self, partition: Partition, holding: Holding) {
        self.of[partition.index()] = Some(holding);
    }
    pub fn get(&self, partition: Partition) -> Option<Holding> {
        self.of[partition.index()]
    }
    /// Every partition that is here, was here or comes here.
    pub fn each(&self) -> impl Iterator<Item = (Partition, Holding)> + use<> {
        let of = self.of;
        Partition::all().filter_map(move |p| of[p.index()].map(|holding| (p, holding)))
    }
    /// Those in one state.
    pub fn that_are(&self, hold: Hold) -> impl Iterator<Item = Partition> + use<> {
        self.each().filter(move |(_, h)| h.hold == hold).map(|(p, _)| p)
    }
    /// Whether a partition is written here.
    pub fn holds(&self, partition: Partition) -> bool {
        self.get(partition).is_some_and(|h| h.hold == Hold::Held)
    }
    /// Whether all rows of a partition are here, as far as they go.
    pub fn serves(&self, partition: Partition) -> bool {
        self.get(partition).is_some_and(|h| matches!(h.hold, Hold::Held | Hold::Leaving))
    }
    /// The partitions that are written here, in order.
    pub fn partitions(&self) -> impl Iterator<Item = Partition> + use<> {
        self.that_are(Hold::Held)
    }
    /// The highest number of a database shard that its partitions went to or are going to.
    pub fn furthest_peer(&self) -> Option<DatabaseShard> {
        let went = |h: Holding| matches!(h.hold, Hold::Leaving | Hold::Gone).then_some(h.peer)?;
        self.each().filter_map(|(_, h)| went(h)).max()
    }
}

/// The database shards' maps do not make one.
#[derive(Error, Clone, PartialEq, Eq, Debug)]
pub enum MapError {
    #[error(
        "partition {} is on its way from database shard {} to {}: let `onrush db split` finish \
         first (run it again if it was killed)",
        partition.get(), from.get(), to.map_or_else(|| "another".into(), |to| to.get().to_string())
    )]
    Moving { partition: Partition, from: DatabaseShard, to: Option<DatabaseShard> },
    #[error(
        "no database shard holds partition {}: is one missing in the settings?",
        partition.get()
    )]
    Nowhere { partition: Partition },
    #[error(
        "database shards {} and {} both hold partition {}: one of them was restored to before the \
         partition was given away, or copied", a.get(), b.get(), partition.get()
    )]
    Twice { partition: Partition, a: DatabaseShard, b: DatabaseShard },
}

/// Where every partition lies, by what each of `count` database shards says of itself. At rest
/// only: nothing may be on its way.
///
/// Errors: the first partition that is nowhere, in two places, or on its way.
pub fn gather(count: u8, maps: &[(DatabaseShard, Holdings)]) -> Result<Layout, MapError> {
    let mut owners = [DatabaseShard::HOME; MEMBER_PARTITION_COUNT];
    let mut control = 0;
    for (shard, map) in maps {
        if map.holds(Partition::CONTROL) {
            control |= 1u32 << shard.index();
        }
    }
    for partition in Partition::all().take(MEMBER_PARTITION_COUNT) {
        let mut holder: Option<DatabaseShard> = None;
        for (shard, map) in maps {
            let Some(holding) = map.get(partition) else { continue };
            let (a, b, from) = (holder, *shard, *shard);
            match (holding.hold, a) {
                (Hold::Held, Some(a)) => return Err(MapError::Twice { partition, a, b }),
                (Hold::Held, None) => holder = Some(*shard),
                (Hold::Leaving | Hold::Gone, _) => {
                    return Err(MapError::Moving { partition, from, to: holding.peer });
                }
                (Hold::Arriving, _) => {}
            }
        }
        owners[partition.index()] = holder.ok_or(MapError::Nowhere { partition })?;
    }
    Ok(Layout::of_owners(count, owners, control))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn partition(raw: u8) -> Partition {
        Partition::new(raw).unwrap()
    }
    fn shard(raw: u8) -> DatabaseShard {
        DatabaseShard::new(raw)
    }
    fn holding(hold: Hold, epoch: u32, peer: u8) -> Holding {
        Holding { hold, epoch: Epoch::new(epoch), peer: Some(shard(peer)) }
    }
    /// Two database shards that were made as such, and an empty third.
    fn three() -> [(DatabaseShard, Holdings); 3] {
        let two = Layout::new(2).unwrap();
        let of = |n| (shard(n), Holdings::spread(two, shard(n)));
        [of(0), of(1), (shard(2), Holdings::none(MapVersion::FIRST))]
    }

    #[test]
    fn database_shards_that_were_never_split_make_the_layout_that_was_spread() {
        for count in [1, 2, 4, 32] {
            let layout = Layout::new(count).unwrap();
            let maps: Vec<_> = layout.shards().map(|s| (s, Holdings::spread(layout, s))).collect();
            assert_eq!(gather(count, &maps), Ok(layout));
        }
    }

    #[test]
    fn an_empty_database_reads_nothing_and_changes_nothing() {
        let layout = gather(3, &three()).unwrap();
        assert_eq!(layout.partitions(shard(2)).count(), 0);
        assert_eq!(layout.partitions(shard(0)).count(), 17);
    }

    #[test]
    fn a_partition_on_its_way_is_said_to_be_and_one_in_two_places_too() {
        let mut maps = three();
        maps[0].1.set(partition(3), holding(Hold::Leaving, 1, 2));
        let (partition, from) = (partition(3), shard(0));
        let expected = MapError::Moving { partition, from, to: Some(shard(2)) };
        assert_eq!(gather(3, &maps), Err(expected));
        maps[0].1.set(partition, holding(Hold::Held, 1, 2));
        maps[2].1.set(partition, holding(Hold::Held, 2, 0));
        let (a, b) = (shard(0), shard(2));
        assert_eq!(gather(3, &maps), Err(MapError::Twice { partition, a, b }));
        maps[2].1.set(partition, holding(Hold::Arriving, 2, 0));
        maps[0].1.of[3] = None;
        assert_eq!(gather(3, &maps), Err(MapError::Nowhere { partition }));
    }
}
