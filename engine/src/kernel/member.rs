//! A slot's members: an open-addressed table of cache lines, one per member.
//!
//! Source: linear probing (Knuth, TAOCP 6.4); the position is the "fastrange" of Lemire, so the
//! table need not be a power of two and grows by an eighth. A table belongs to one of 4096 slots:
//! growth moves a few thousand lines, never all members. Accounts are never removed.
//!
//! ```text
//!  0     8      16     24       28         32     36         48          60         63
//! ┌─────┬──────┬──────┬────────┬──────────┬──────┬──────────┬───────────┬──────────┬───────┐
//! │ id  │ free │ held │ newest │ remember-│ key  │ 3 × item │ 3 × units │ 3 × re-  │ flags │
//! │     │      │      │ + 1    │ ed count │filter│          │           │ leased   │       │
//! └─────┴──────┴──────┴────────┴──────────┴──────┴──────────┴───────────┴──────────┴───────┘
//! ```

use super::prefetch::prefetch_lines;
use crate::units::{ItemIndex, KeyHash, MemberId, Points, mix};

/// Limit counters that stand in the line itself; further ones are the slot's to spill.
pub(super) const INLINE_COUNTERS: usize = 3;

const OCCUPIED: u8 = 1;
const SPILLED: u8 = 2;

/// Lines of the smallest table that has any.
const LINES_MIN: usize = 8;
/// The table grows when `len × LOAD_DEN` would pass `lines × LOAD_NUM`.
const LOAD_NUM: usize = 7;
const LOAD_DEN: usize = 8;

/// What one member has of one item: against its limit, and of given-up holds.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct Counter {
    /// Units held or confirmed.
    pub units: u32,
    /// Holds cancelled or expired; stays at 255.
    pub released: u8,
}

impl Counter {
    pub fn is_empty(self) -> bool {
        self == Self::default()
    }
}

/// One member.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Line {
    id: u64,
    free: u64,
    held: u64,
    newest: u32,
    remembered: u32,
    key_filter: u32,
    items: [u32; INLINE_COUNTERS],
    units: [u32; INLINE_COUNTERS],
    released: [u8; INLINE_COUNTERS],
    flags: u8,
}

const _: () = assert!(size_of::<Line>() == 64, "a member is one cache line");

impl Line {
    const EMPTY: Self = Self {
        id: 0,
        free: 0,
        held: 0,
        newest: 0,
        remembered: 0,
        key_filter: 0,
        items: [0; INLINE_COUNTERS],
        units: [0; INLINE_COUNTERS],
        released: [0; INLINE_COUNTERS],
        flags: 0,
    };

    pub fn member(&self) -> MemberId {
        MemberId::new(self.id)
    }
    pub fn free(&self) -> Points {
        Points::new(self.free)
    }
    pub fn held(&self) -> Points {
        Points::new(self.held)
    }
    pub fn set_balance(&mut self, free: Points, held: Points) {
        self.free = free.get();
        self.held = held.get();
    }

    /// The place of the member's newest redemption.
    pub fn newest(&self) -> Option<usize> {
        (self.newest as usize).checked_sub(1)
    }
    /// How many redemptions, each with its key, the slot remembers of this member.
    pub fn remembered(&self) -> u32 {
        self.remembered
    }
    /// Whether the key may be among the remembered ones; `false` is certain.
    #[inline]
    pub fn may_know(&self, key: KeyHash) -> bool {
        let bits = filter_bits(key);
        self.key_filter & bits == bits
    }
    /// Notes a redemption at `place` of the slot's redemptions; gives the one before it, plus 1.
    pub fn remember(&mut self, place: usize, key: KeyHash) -> u32 {
        self.key_filter |= filter_bits(key);
        self.remembered += 1;
        let place = u32::try_from(place + 1).expect("a slot remembers less than 2^32 redemptions");
        std::mem::replace(&mut self.newest, place)
    }
    pub fn forget_redemptions(&mut self) {
        (self.newest, self.remembered, self.key_filter) = (0, 0, 0);
    }

    /// The inline counter of an item.
    #[inline]
    pub fn counter(&self, item: ItemIndex) -> Option<Counter> {
        let place = self.place_of(item)?;
        Some(Counter { units: self.units[place], released: self.released[place] })
    }
    /// Sets an inline counter that exists, or a free one; `false` if there is neither.
    pub fn set_counter(&mut self, item: ItemIndex, counter: Counter) -> bool {
        let free_place = || {
            (0..INLINE_COUNTERS).find(|&place| self.units[place] == 0 && self.released[place] == 0)
        };
        let Some(place) = self.place_of(item).or_else(free_place) else { return false };
        self.items[place] = item.get();
        self.units[place] = counter.units;
        self.released[place] = counter.released;
        true
    }
    pub fn counters(&self) -> impl Iterator<Item = (ItemIndex, Counter)> {
        let all = (0..INLINE_COUNTERS).map(|place| {
            let counter = Counter { units: self.units[place], released: self.released[place] };
            (ItemIndex::new(self.items[place]), counter)
        });
        all.filter(|(_, counter)| !counter.is_empty())
    }
    #[inline]
    fn place_of(&self, item: ItemIndex) -> Option<usize> {
        (0..INLINE_COUNTERS).find(|&place| {
            self.items[place] == item.get() && (self.units[place] != 0 || self.released[place] != 0)
        })
    }

    /// Whether the slot has spilled counters of this member.
    pub fn is_spilled(&self) -> bool {
        self.flags & SPILLED != 0
    }
    pub fn mark_spilled(&mut self) {
        self.flags |= SPILLED;
    }

    fn is_occupied(&self) -> bool {
        self.flags & OCCUPIED != 0
    }
}

/// Two of 32 bits: enough to answer "new" for nearly every key of a member with few.
fn filter_bits(key: KeyHash) -> u32 {
    let low = key.get() as u32;
    (1 << (low & 31)) | (1 << ((low >> 5) & 31))
}

/// The members of a slot.
#[derive(Default)]
pub(super) struct MemberTable {
    lines: Vec<Line>,
    len: usize,
}

impl MemberTable {
    pub fn with_capacity(members: usize) -> Self {
        let mut table = Self::default();
        if members > 0 {
            table.grow_to((members * LOAD_DEN).div_ceil(LOAD_NUM).max(LINES_MIN));
        }
        table
    }

    pub fn len(&self) -> usize {
        self.len
    }

    /// Asks for the member's line and the next one: half of the searches end there.
    #[inline]
    pub fn prefetch(&self, member: MemberId) {
        if !self.lines.is_empty() {
            prefetch_lines(&raw const self.lines[place(member, self.lines.len())], 2);
        }
    }

    /// The place of a member's line; good until the next insertion.
    #[inline]
    pub fn find(&self, member: MemberId) -> Option<usize> {
        if self.lines.is_empty() {
            return None;
        }
        let mut at = place(member, self.lines.len());
        loop {
            let line = &self.lines[at];
            if !line.is_occupied() {
                return None;
            }
            if line.id == member.get() {
                return Some(at);
            }
            at += 1;
            if at == self.lines.len() {
                at = 0;
            }
        }
    }

    /// Adds a member that is not there yet, and gives the place.
    pub fn insert(&mut self, member: MemberId, free: Points, held: Points) -> usize {
        if (self.len + 1) * LOAD_DEN > self.lines.len() * LOAD_NUM {
            self.grow_to((self.lines.len() + self.lines.len() / 8 + 1).max(LINES_MIN));
        }
        let (id, free, held) = (member.get(), free.get(), held.get());
        self.len += 1;
        self.settle(Line { id, free, held, flags: OCCUPIED, ..Line::EMPTY })
    }

    #[inline]
    pub fn line(&self, at: usize) -> &Line {
        &self.lines[at]
    }
    #[inline]
    pub fn line_mut(&mut self, at: usize) -> &mut Line {
        &mut self.lines[at]
    }
    pub fn iter(&self) -> impl Iterator<Item = &Line> {
        self.lines.iter().filter(|line| line.is_occupied())
    }
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Line> {
        self.lines.iter_mut().filter(|line| line.is_occupied())
    }

    fn grow_to(&mut self, lines: usize) {
        let old = std::mem::replace(&mut self.lines, vec![Line::EMPTY; lines]);
        for line in old.into_iter().filter(Line::is_occupied) {
            self.settle(line);
        }
    }

    fn settle(&mut self, line: Line) -> usize {
        let mut at = place(line.member(), self.lines.len());
        while self.lines[at].is_occupied() {
            at += 1;
            if at == self.lines.len() {
                at = 0;
            }
        }
        self.lines[at] = line;
        at
    }
}

/// The mix's top 12 bits chose the slot; the other 52 choose the place.
#[inline]
fn place(member: MemberId, lines: usize) -> usize {
    ((u128::from(mix(member.get()) << 12) * lines as u128) >> 64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_found_after_growth_and_strangers_are_not() {
        let mut table = MemberTable::default();
        for id in 0..5000u64 {
            assert_eq!(table.find(MemberId::new(id)), None);
            table.insert(MemberId::new(id), Points::new(id * 3), Points::ZERO);
        }
        for id in (0..5000).chain([u64::MAX]) {
            let found = table.find(MemberId::new(id)).map(|at| table.line(at).free().get());
            assert_eq!(found, (id < 5000).then(|| id * 3));
        }
        let lines = table.lines.len();
        assert!(lines * LOAD_NUM >= 5000 * LOAD_DEN && lines < 5000 * 4 / 3, "{lines} lines");
    }

    #[test]
    fn a_counter_is_free_again_once_it_is_empty() {
        let mut line = Line::EMPTY;
        let one = Counter { units: 1, released: 0 };
        for item in 0..3 {
            assert!(line.set_counter(ItemIndex::new(item), one));
        }
        assert!(!line.set_counter(ItemIndex::new(3), one));
        assert!(line.set_counter(ItemIndex::new(1), Counter::default()));
        assert!(line.set_counter(ItemIndex::new(3), one));
        assert_eq!(line.counter(ItemIndex::new(1)), None);
        assert_eq!(line.counters().count(), 3);
    }

    #[test]
    fn the_key_filter_never_denies_a_remembered_key() {
        let mut line = Line::EMPTY;
        let keys: Vec<_> = (0..50u8).map(|n| KeyHash::of(&[n])).collect();
        for (place, &key) in keys.iter().enumerate() {
            assert!(place > 0 || !line.may_know(key));
            line.remember(place, key);
        }
        assert!(keys.iter().all(|&key| line.may_know(key)));
        assert_eq!((line.remembered(), line.newest()), (50, Some(49)));
    }
}
