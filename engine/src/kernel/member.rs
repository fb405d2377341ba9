//! A slot's members: an open-addressed table of cache lines, one per member, in groups of eight
//! with a byte of tag for each.
//!
//! A search reads tags until one fits, and then one line: of a table that no cache holds, a
//! decision waits for a single line. Tags of 10 M members are 11 MB.
//!
//! Source: linear probing over buckets (Knuth, TAOCP 6.4) with tags as in Abseil's `SwissTable`,
//! compared eight at a time within a word; the position is the "fastrange" of Lemire, so the
//! table need not be a power of two and grows by an eighth. A table belongs to one of 4096 slots:
//! growth moves a few thousand lines, never all members. Accounts are never removed.
//!
//! ```text
//!  0     8      16     24       28         32     36         48          60         63
//! ┌─────┬──────┬──────┬────────┬──────────┬──────┬──────────┬───────────┬──────────┬───────┐
//! │ id  │ free │ held │ newest │ remember-│ key  │ 3 × item │ 3 × units │ 3 × re-  │ spil- │
//! │     │      │      │ + 1    │ ed count │filter│          │           │ leased   │ led   │
//! └─────┴──────┴──────┴────────┴──────────┴──────┴──────────┴───────────┴──────────┴───────┘
//! ```

use super::prefetch::prefetch_lines;
use crate::units::{ItemIndex, KeyHash, MemberId, Points, mix};

/// Limit counters that stand in the line itself; further ones are the slot's to spill.
pub(super) const INLINE_COUNTERS: usize = 3;

/// A table grows by an eighth, a smaller one by this many groups, a tiny one to its double: how
/// often a line is moved counts there, and not how many are vacant.
const GROWTH_MIN: usize = 32;
/// The table grows when `len × LOAD_DEN` would pass `lines × LOAD_NUM`.
const LOAD_NUM: usize = 15;
const LOAD_DEN: usize = 16;

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
    is_spilled: bool,
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
        is_spilled: false,
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
        self.is_spilled
    }
    pub fn mark_spilled(&mut self) {
        self.is_spilled = true;
    }
}

/// Two of 32 bits: enough to answer "new" for nearly every key of a member with few.
fn filter_bits(key: KeyHash) -> u32 {
    let low = key.get() as u32;
    (1 << (low & 31)) | (1 << ((low >> 5) & 31))
}

/// Eight lines' tags, a byte each: [`VACANT`], or eight bits of the member's mix.
type Tags = u64;

const GROUP_LEN: usize = size_of::<Tags>();
const VACANT: u8 = 0;
const EACH_BYTE: Tags = 0x0101_0101_0101_0101;
const LOW_BITS: Tags = 0x7f * EACH_BYTE;

/// Sets the top bit of each byte that is `tag`, and no other.
///
/// Source: the exact zero-byte test of Warren, Hacker's Delight 6-1.
#[inline]
fn equal_bytes(tags: Tags, tag: u8) -> u64 {
    let differing = tags ^ (Tags::from(tag) * EACH_BYTE);
    !((((differing & LOW_BITS) + LOW_BITS) | differing) | LOW_BITS)
}

/// The lowest byte that [`equal_bytes`] found.
#[inline]
fn first(found: u64) -> usize {
    found.trailing_zeros() as usize / 8
}

/// Where a member is looked for: the group to begin with, and the tag.
#[derive(Clone, Copy)]
struct Home {
    group: usize,
    tag: u8,
}

/// The members of a slot.
#[derive(Default)]
pub(super) struct MemberTable {
    tags: Vec<Tags>,
    /// A group's lines stand together, in its tags' order.
    lines: Vec<Line>,
    len: usize,
}

impl MemberTable {
    pub fn with_capacity(members: usize) -> Self {
        let mut table = Self::default();
        if members > 0 {
            table.grow_to((members * LOAD_DEN).div_ceil(LOAD_NUM * GROUP_LEN));
        }
        table
    }

    pub fn len(&self) -> usize {
        self.len
    }

    /// Asks for the member's tags.
    #[inline]
    pub fn prefetch_tags(&self, member: MemberId) {
        if !self.tags.is_empty() {
            prefetch_lines(&raw const self.tags[self.home(member).group], 1);
        }
    }

    /// Asks for the first line with the member's tag, which nearly always is its own; else for the
    /// one that it would get. Reads its tags.
    #[inline]
    pub fn prefetch(&self, member: MemberId) {
        if self.tags.is_empty() {
            return;
        }
        let (Ok(at) | Err(at)) = self.search(member, |_| true);
        prefetch_lines(&raw const self.lines[at], 1);
    }

    /// The place of a member's line; good until the next insertion.
    #[inline]
    pub fn find(&self, member: MemberId) -> Option<usize> {
        if self.tags.is_empty() {
            return None;
        }
        self.search(member, |at| self.lines[at].id == member.get()).ok()
    }

    /// The first place with the member's tag that `is_it`, from its home to the first group with a
    /// vacant place; else that place. The table has groups.
    #[inline]
    fn search(&self, member: MemberId, is_it: impl Fn(usize) -> bool) -> Result<usize, usize> {
        let Home { mut group, tag } = self.home(member);
        loop {
            let tags = self.tags[group];
            let mut found = equal_bytes(tags, tag);
            while found != 0 {
                let at = group * GROUP_LEN + first(found);
                if is_it(at) {
                    return Ok(at);
                }
                found &= found - 1;
            }
            let vacant = equal_bytes(tags, VACANT);
            if vacant != 0 {
                return Err(group * GROUP_LEN + first(vacant));
            }
            group = self.group_after(group);
        }
    }

    #[inline]
    fn group_after(&self, group: usize) -> usize {
        if group + 1 == self.tags.len() { 0 } else { group + 1 }
    }

    /// Adds a member that is not there yet, and gives the place.
    pub fn insert(&mut self, member: MemberId, free: Points, held: Points) -> usize {
        if (self.len + 1) * LOAD_DEN > self.lines.len() * LOAD_NUM {
            let groups = self.tags.len();
            self.grow_to(groups + (groups / 8).max(GROWTH_MIN.min(groups)).max(1));
        }
        let (id, free, held) = (member.get(), free.get(), held.get());
        self.len += 1;
        self.settle(Line { id, free, held, ..Line::EMPTY })
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
        let tags = self.tags.iter().flat_map(|tags| tags.to_le_bytes());
        self.lines.iter().zip(tags).filter(|&(_, tag)| tag != VACANT).map(|(line, _)| line)
    }
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Line> {
        let tags = self.tags.iter().flat_map(|tags| tags.to_le_bytes());
        self.lines.iter_mut().zip(tags).filter(|&(_, tag)| tag != VACANT).map(|(line, _)| line)
    }

    fn grow_to(&mut self, groups: usize) {
        let lines = vec![Line::EMPTY; groups * GROUP_LEN];
        let old = Self {
            tags: std::mem::replace(&mut self.tags, vec![0; groups]),
            lines: std::mem::replace(&mut self.lines, lines),
            len: self.len,
        };
        for line in old.iter() {
            self.settle(*line);
        }
    }

    fn settle(&mut self, line: Line) -> usize {
        let (Ok(at) | Err(at)) = self.search(line.member(), |_| false);
        let tag = self.home(line.member()).tag;
        self.tags[at / GROUP_LEN] |= Tags::from(tag) << (8 * (at % GROUP_LEN));
        self.lines[at] = line;
        at
    }

    /// The mix's top 12 bits chose the slot. The next ones choose the group, the last ones are the
    /// tag.
    #[inline]
    fn home(&self, member: MemberId) -> Home {
        let mixed = mix(member.get());
        let group = ((u128::from(mixed << 12) * self.tags.len() as u128) >> 64) as usize;
        Home { group, tag: (mixed as u8).max(VACANT + 1) }
    }
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
        assert!(lines * LOAD_NUM >= 5000 * LOAD_DEN && lines < 5000 * 5 / 4, "{lines} lines");
    }

    #[test]
    fn equal_bytes_are_found_and_no_others() {
        for n in 0..100_000u64 {
            let tags = mix(n);
            // Such as differ from a byte of the word by little, and any.
            let near = tags.to_le_bytes()[(n % 8) as usize];
            for tag in [near, near ^ 1, near ^ 0x80, near.wrapping_add(1), 0, 1, 0x80, 0xff] {
                let expected = tags.to_le_bytes().map(|b| if b == tag { 0x80 } else { 0 });
                assert_eq!(equal_bytes(tags, tag).to_le_bytes(), expected, "{tags:x} {tag:x}");
            }
        }
    }

    #[test]
    fn a_table_of_any_capacity_takes_so_many_without_growing_and_keeps_a_place_vacant() {
        for members in 1..=300u64 {
            let mut table = MemberTable::with_capacity(members as usize);
            let lines = table.lines.len();
            for id in 0..members {
                table.insert(MemberId::new(id), Points::new(id), Points::ZERO);
                assert!(table.tags.iter().any(|tags| equal_bytes(*tags, VACANT) != 0));
            }
            assert_eq!((table.lines.len(), table.iter().count()), (lines, members as usize));
            assert!((0..members).all(|id| table.find(MemberId::new(id)).is_some()));
        }
    }

    /// Members whose search begins in the last group of a table of `groups`, told by their tag.
    fn of_last_group(groups: usize) -> impl Iterator<Item = (MemberId, u8)> {
        let table = MemberTable { tags: vec![0; groups], ..MemberTable::default() };
        let homes = (0..).map(MemberId::new).map(move |member| (member, table.home(member)));
        homes.filter(move |(_, home)| home.group == groups - 1).map(|(member, h)| (member, h.tag))
    }

    #[test]
    fn a_search_goes_on_from_the_last_group_to_the_first() {
        let mut table = MemberTable::with_capacity(50);
        let all: Vec<_> = of_last_group(table.tags.len()).map(|(m, _)| m).take(40).collect();
        let (there, strangers) = all.split_at(20);
        for member in there {
            table.insert(*member, Points::new(member.get()), Points::ZERO);
        }
        assert_ne!(table.tags[0], 0, "the last group was full");
        for member in there {
            let at = table.find(*member).unwrap();
            assert_eq!(table.line(at).free().get(), member.get());
        }
        assert!(strangers.iter().all(|member| table.find(*member).is_none()));
    }

    #[test]
    fn members_with_one_tag_and_one_home_are_told_apart() {
        let mut table = MemberTable::with_capacity(50);
        let of_one_tag = of_last_group(table.tags.len()).filter(|(_, tag)| *tag == VACANT + 1);
        let all: Vec<_> = of_one_tag.map(|(m, _)| m).take(6).collect();
        for member in &all[..5] {
            table.insert(*member, Points::new(member.get()), Points::ZERO);
        }
        for member in &all[..5] {
            let at = table.find(*member).unwrap();
            assert_eq!(table.line(at).free().get(), member.get());
        }
        assert_eq!(table.find(all[5]), None);
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
