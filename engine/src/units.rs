//! The quantities and ids of the engine, each a type of its own.
//!
//! No `Deref`, no arithmetic across units: points never meet units of stock, a sequence number is
//! never an index. Sums are `checked_*` and give an `Option`; whoever unwraps one says why.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Number of hash partitions of members.
pub const SLOT_COUNT: usize = 4096;

macro_rules! unit {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
        )]
        #[serde(transparent)]
        #[repr(transparent)]
        pub struct $name($inner);

        impl $name {
            pub const fn new(raw: $inner) -> Self {
                Self(raw)
            }
            pub const fn get(self) -> $inner {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }
    };
}

macro_rules! amount {
    ($name:ident($inner:ty)) => {
        impl $name {
            pub const ZERO: Self = Self(0);
            pub fn checked_add(self, other: Self) -> Option<Self> {
                self.0.checked_add(other.0).map(Self)
            }
            pub fn checked_sub(self, other: Self) -> Option<Self> {
                self.0.checked_sub(other.0).map(Self)
            }
        }
    };
}

unit!(
    /// A person with a points account.
    MemberId(u64)
);
unit!(
    /// Points; at most `MAX`, so that every sum the ledgers hold fits an `i64`.
    Points(u64)
);
amount!(Points(u64));
impl Points {
    /// Units: points. The largest balance and the largest price.
    pub const MAX: Self = Self(1 << 53);
}

unit!(
    /// Units of stock of one item.
    Quantity(u32)
);
amount!(Quantity(u32));
impl Quantity {
    /// The price of this many units, or `None` beyond [`Points::MAX`].
    pub fn price(self, unit_price: Points) -> Option<Points> {
        let total = unit_price.get().checked_mul(u64::from(self.0)).map(Points::new)?;
        (total <= Points::MAX).then_some(total)
    }
}

unit!(
    /// One of [`SLOT_COUNT`] hash partitions of members.
    Slot(u16)
);
impl Slot {
    /// The slot of a member: the top 12 bits of a fixed mix, the same in every version.
    ///
    /// Source: the 64-bit finalizer of `MurmurHash3` (Appleby), a bijection.
    pub const fn of(member: MemberId) -> Self {
        Self((mix(member.0) >> 52) as u16)
    }
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// The mix behind [`Slot::of`]; its lower bits place a member within its slot.
pub const fn mix(mut h: u64) -> u64 {
    h ^= h >> 33;
    h = h.wrapping_mul(0xff51_afd7_ed55_8ccd);
    h ^= h >> 33;
    h = h.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    h ^ (h >> 33)
}

unit!(
    /// A sale's number on this journal: given at its definition, in order, from 0.
    SaleIndex(u32)
);
unit!(
    /// An item's number on this journal: given at its sale's definition, in order, from 0.
    ItemIndex(u32)
);
impl ItemIndex {
    /// Names no item: what a request for an unknown sale or SKU carries to the kernel, so that
    /// a remembered request key is still looked at first.
    pub const UNKNOWN: Self = Self(u32::MAX);
}

unit!(
    /// A record's place in its journal; the first is 1, so 0 is "none yet".
    Seq(u64)
);
impl Seq {
    pub const NONE: Self = Self(0);
    pub fn next(self) -> Self {
        Self(self.0.checked_add(1).expect("2^64 records outlive the sun"))
    }
}

unit!(
    /// The identity of a data folder, drawn at random (non-zero) at its creation.
    JournalId(u64)
);
unit!(
    /// How often a journal has been opened; raised durably at every start, the first is 1.
    Incarnation(u32)
);
unit!(
    /// Node time. Units: milliseconds, near the Unix epoch's but never going back.
    NodeTime(u64)
);
impl NodeTime {
    pub fn plus_ms(self, ms: u64) -> Self {
        Self(self.0.saturating_add(ms))
    }
    /// RFC 3339, UTC, with milliseconds.
    pub fn rfc3339(self) -> String {
        let ms = i64::try_from(self.0).unwrap_or(i64::MAX);
        jiff::Timestamp::from_millisecond(ms)
            .map_or_else(|_| String::from("9999-12-31T23:59:59Z"), |t| format!("{t:.3}"))
    }
}

unit!(
    /// A 128-bit fingerprint of a request key. Members' keys are scoped by the member beside it.
    KeyHash(u128)
);
impl KeyHash {
    /// Source: XXH3-128, whose output is fixed across versions and machines.
    pub fn of(key: &[u8]) -> Self {
        Self(xxhash_rust::xxh3::xxh3_128(key))
    }
}

/// Where a decision takes its units: one line per item, shared by all shards of the node.
pub trait TakeUnits {
    /// Takes so many units from the item's line, or nothing.
    fn try_take(&self, item: ItemIndex, quantity: Quantity) -> bool;
}

/// A redemption's id: a `UUIDv8` that sorts by time, and is unique without coordination.
///
/// ```text
///  127         80 79  76 75      64 63 62 61         42 41             0
/// ┌──────────────┬──────┬──────────┬─────┬─────────────┬────────────────┐
/// │ node ms (48) │ 8 (4)│ slot (12)│ 2(2)│ journal (20)│ slot seq (42)  │
/// └──────────────┴──────┴──────────┴─────┴─────────────┴────────────────┘
/// ```
/// The slot sequence number counts the redemptions that a slot began on this journal; so ids of
/// one journal never repeat whatever the clock does, and the journal's 20 bits (the low ones of
/// its id) part nodes: two journals that share them would also have to own the same slot and
/// begin the same numbered redemption of it in the same millisecond.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RedemptionId(u128);

impl RedemptionId {
    pub const SLOT_SEQ_BITS: u32 = 42;

    pub fn new(at: NodeTime, slot: Slot, journal: JournalId, slot_seq: u64) -> Self {
        assert!(slot_seq < 1 << Self::SLOT_SEQ_BITS, "a slot begins at most 2^42 redemptions");
        let ms = u128::from(at.get() & 0xffff_ffff_ffff);
        let high = (ms << 80) | (8 << 76) | (u128::from(slot.get() & 0xfff) << 64);
        let low = (2u128 << 62)
            | (u128::from(journal.get() & 0xf_ffff) << Self::SLOT_SEQ_BITS)
            | u128::from(slot_seq);
        Self(high | low)
    }
    /// Takes 128 bits back from a record or a URL; `None` unless they are a `UUIDv8`.
    pub fn from_u128(raw: u128) -> Option<Self> {
        let id = Self(raw);
        ((raw >> 76) & 0xf == 8 && (raw >> 62) & 0b11 == 2).then_some(id)
    }
    pub fn parse(text: &str) -> Option<Self> {
        Self::from_u128(uuid::Uuid::try_parse(text).ok()?.as_u128())
    }
    pub fn get(self) -> u128 {
        self.0
    }
    pub fn at(self) -> NodeTime {
        NodeTime((self.0 >> 80) as u64)
    }
    pub fn slot(self) -> Slot {
        Slot(((self.0 >> 64) & 0xfff) as u16)
    }
    pub fn slot_seq(self) -> u64 {
        (self.0 & ((1 << Self::SLOT_SEQ_BITS) - 1)) as u64
    }
}

impl fmt::Display for RedemptionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        uuid::Uuid::from_u128(self.0).as_hyphenated().fmt(f)
    }
}

impl fmt::Debug for RedemptionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RedemptionId({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_carries_its_parts_and_sorts_by_time() {
        let early = RedemptionId::new(NodeTime(1_700_000_000_000), Slot(4095), JournalId(7), 9);
        let late = RedemptionId::new(NodeTime(1_700_000_000_001), Slot(0), JournalId(1), 0);
        assert!(early < late);
        assert_eq!(early.slot(), Slot(4095));
        assert_eq!(early.slot_seq(), 9);
        assert_eq!(early.at(), NodeTime(1_700_000_000_000));
        assert_eq!(RedemptionId::parse(&early.to_string()), Some(early));
        assert_eq!(RedemptionId::parse("00000000-0000-4000-8000-000000000000"), None);
    }

    #[test]
    fn slots_are_spread_evenly_over_sequential_members() {
        let mut count = vec![0u32; SLOT_COUNT];
        for m in 0..(SLOT_COUNT as u64 * 100) {
            count[Slot::of(MemberId(m)).index()] += 1;
        }
        assert!(count.iter().all(|&c| (40..200).contains(&c)));
    }
}
