//! Slot → partition → database shard. Slots lie in their partitions on every node and in every
//! version alike; where partitions lie says the map in the databases (`holdings`), which begins as
//! drawn here.
//!
//! ```text
//!  slots      0 ─ 127   128 ─ 255   …   3968 ─ 4095     CONTROL
//!  partition      0           1     …        31            32
//!  database   └──── 0 (of 4) ────┘  …  └─── 3 (of 4) ┘  every one
//! ```
//! A partition is the unit of order, of rewinds and of moving: it lies wholly in one database
//! shard, with its watermarks. The control partition (sales, stock totals, leases) is *broadcast*:
//! every database shard reads it under a watermark of its own, so that each holds the sales and
//! items that its redemptions name, and plain SQL can join them. What is counted once (stock
//! totals, admin changes of sales) is written by its home, database shard 0, alone.

use crate::kernel::record::CONTROL;
use crate::units::{SLOT_COUNT, Slot};

/// Slots of one partition.
pub const SLOTS_PER_PARTITION: usize = 128;
/// Partitions of members.
pub const MEMBER_PARTITION_COUNT: usize = SLOT_COUNT / SLOTS_PER_PARTITION;
/// All partitions, the control partition included.
pub const PARTITION_COUNT: usize = MEMBER_PARTITION_COUNT + 1;
/// The most database shards there can be: one partition each.
pub const DATABASE_SHARD_COUNT_MAX: u8 = MEMBER_PARTITION_COUNT as u8;

/// One of [`PARTITION_COUNT`] ordered streams of records.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Partition(u8);

impl Partition {
    /// Sales, stock totals and leases.
    pub const CONTROL: Self = Self(MEMBER_PARTITION_COUNT as u8);

    /// `None` beyond the control partition.
    pub const fn new(raw: u8) -> Option<Self> {
        if (raw as usize) < PARTITION_COUNT { Some(Self(raw)) } else { None }
    }
    /// The partition of a record's slot; `None` for a slot that does not exist.
    pub fn of(slot: Slot) -> Option<Self> {
        if slot == CONTROL {
            return Some(Self::CONTROL);
        }
        (slot.index() < SLOT_COUNT).then(|| Self((slot.index() / SLOTS_PER_PARTITION) as u8))
    }
    pub const fn get(self) -> u8 {
        self.0
    }
    pub const fn index(self) -> usize {
        self.0 as usize
    }
    /// Every partition, the control partition last.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..PARTITION_COUNT as u8).map(Self)
    }
}

/// One `SQLite` file or `MySQL` database, by its number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct DatabaseShard(u8);

impl DatabaseShard {
    /// Where what belongs to no member is counted.
    pub const HOME: Self = Self(0);

    pub const fn new(raw: u8) -> Self {
        Self(raw)
    }
    pub const fn get(self) -> u8 {
        self.0
    }
    pub const fn index(self) -> usize {
        self.0 as usize
    }
    /// Whether it keeps the stock totals and the admin changes of sales.
    pub fn is_home(self) -> bool {
        self == Self::HOME
    }
}

/// How the partitions lie on the database shards.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Layout {
    count: u8,
    /// By member partition.
    owners: [DatabaseShard; MEMBER_PARTITION_COUNT],
    /// A bit for each database shard that reads the control partition.
    control: u32,
}

impl Layout {
    /// The partitions spread evenly, as they lie where none was ever moved. `None` unless
    /// 1 ≤ `count` ≤ [`DATABASE_SHARD_COUNT_MAX`].
    pub const fn new(count: u8) -> Option<Self> {
        if count < 1 || count > DATABASE_SHARD_COUNT_MAX {
            return None;
        }
        let mut owners = [DatabaseShard::HOME; MEMBER_PARTITION_COUNT];
        let mut index = 0;
        while index < MEMBER_PARTITION_COUNT {
            owners[index] = DatabaseShard((index * count as usize / MEMBER_PARTITION_COUNT) as u8);
            index += 1;
        }
        Some(Self { count, owners, control: u32::MAX >> (u32::BITS - count as u32) })
    }
    /// As a map says. `control`: a bit for each database shard that reads the control partition.
    pub(super) const fn of_owners(
        count: u8,
        owners: [DatabaseShard; MEMBER_PARTITION_COUNT],
        control: u32,
    ) -> Self {
        Self { count, owners, control }
    }
    pub const fn count(self) -> u8 {
        self.count
    }
    pub fn shards(self) -> impl Iterator<Item = DatabaseShard> {
        (0..self.count).map(DatabaseShard)
    }
    /// The database shard that owns a member partition; the control partition's home.
    pub fn shard_of(self, partition: Partition) -> DatabaseShard {
        self.owners.get(partition.index()).copied().unwrap_or(DatabaseShard::HOME)
    }
    /// Whether a database shard reads a partition: its own, and the control partition.
    pub fn reads(self, shard: DatabaseShard, partition: Partition) -> bool {
        if partition == Partition::CONTROL {
            return self.control >> shard.index() & 1 == 1;
        }
        self.shard_of(partition) == shard
    }
    /// The partitions that a database shard reads, in order.
    pub fn partitions(self, shard: DatabaseShard) -> impl Iterator<Item = Partition> {
        Partition::all().filter(move |p| self.reads(shard, *p))
    }
    /// The database shard that holds a member's rows.
    pub fn shard_of_slot(self, slot: Slot) -> DatabaseShard {
        self.shard_of(Partition::of(slot).expect("a member's slot is one of SLOT_COUNT"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_slot_lies_in_one_partition_of_128_consecutive_slots() {
        for slot in 0..SLOT_COUNT {
            let partition = Partition::of(Slot::new(slot as u16)).unwrap();
            assert_eq!(partition.index(), slot / 128);
        }
        assert_eq!(Partition::of(CONTROL), Some(Partition::CONTROL));
        assert_eq!(Partition::of(Slot::new(4096)), None);
    }

    #[test]
    fn every_member_partition_is_read_by_exactly_one_database_shard_whatever_their_count() {
        for count in 1..=DATABASE_SHARD_COUNT_MAX {
            let layout = Layout::new(count).unwrap();
            for partition in Partition::all() {
                let readers = layout.shards().filter(|s| layout.reads(*s, partition)).count();
                let expected = if partition == Partition::CONTROL { usize::from(count) } else { 1 };
                assert_eq!(readers, expected, "{partition:?} of {count}");
            }
            let sizes: Vec<_> = layout.shards().map(|s| layout.partitions(s).count() - 1).collect();
            assert!(sizes.iter().max().unwrap() - sizes.iter().min().unwrap() <= 1, "{sizes:?}");
        }
        assert_eq!(Layout::new(0), None);
        assert_eq!(Layout::new(33), None);
    }
}
