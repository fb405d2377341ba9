//! A slot's redemptions in the order of their beginning, and the request keys they stand for.
//!
//! A remembered key is a redemption: there is no second store of keys. The redemptions of one
//! member form a chain, newest first. A key is looked for along the chain while that is short; a
//! member with a longer one has its keys in an index as well.

use std::cmp::Ordering;

use hashbrown::{HashMap, HashTable};

use super::command::RedemptionState;
use super::member::Line;
use super::prefetch::prefetch_lines;
use crate::units::{ItemIndex, KeyHash, MemberId, NodeTime, Points, Quantity, RedemptionId, Slot};

/// Redemptions per chunk: what is written stays where it is, so growth copies nothing.
const CHUNK_LEN: usize = 32;
/// Redemptions that a slot may have memory ready for: 256 MiB over all slots.
const READY_MAX: usize = 896;
/// Members with more remembered redemptions than this have their keys indexed.
const CHAIN_MAX: u32 = 12;
const HOLD: u64 = 1 << 8;
const STATE_MASK: u64 = 0xff;

/// One redemption, packed.
#[derive(Clone, Copy)]
pub(super) struct Redemption {
    member: u64,
    /// Low half, high half: a `u128` would align to 16.
    key: [u64; 2],
    id_low: u64,
    /// Milliseconds of the id << 16 | was begun as a hold << 8 | state.
    id_ms_and_state: u64,
    points: u64,
    first_balance: u64,
    item: u32,
    quantity: u32,
    /// The place of the same member's redemption before this one, plus 1.
    before: u32,
    /// From the beginning to the end of a hold.
    ttl_ms: u32,
}

const _: () = assert!(size_of::<Redemption>() == 72);

/// What a redemption is begun with.
#[derive(Clone, Copy)]
pub(super) struct Begun {
    pub member: MemberId,
    pub id: RedemptionId,
    pub key: KeyHash,
    pub item: ItemIndex,
    pub quantity: Quantity,
    pub points: Points,
    /// The balance of the first answer.
    pub free_after: Points,
    pub held_after: Points,
    /// For a hold: its length.
    pub hold_ttl_ms: Option<u32>,
}

impl Redemption {
    /// Fills memory that is to be written before it is needed. Not zeros: an allocator may hand
    /// those out without ever touching the memory.
    const NEVER: Self = Self {
        member: u64::MAX,
        key: [u64::MAX; 2],
        id_low: u64::MAX,
        id_ms_and_state: u64::MAX,
        points: u64::MAX,
        first_balance: u64::MAX,
        item: u32::MAX,
        quantity: u32::MAX,
        before: u32::MAX,
        ttl_ms: u32::MAX,
    };

    pub fn new(begun: &Begun) -> Self {
        let key = begun.key.get();
        let state = begun
            .hold_ttl_ms
            .map_or(RedemptionState::Confirmed as u64, |_| HOLD | RedemptionState::Held as u64);
        Self {
            member: begun.member.get(),
            key: [key as u64, (key >> 64) as u64],
            id_low: begun.id.get() as u64,
            id_ms_and_state: (begun.id.at().get() << 16) | state,
            points: begun.points.get(),
            first_balance: begun.free_after.get(),
            item: begun.item.get(),
            quantity: begun.quantity.get(),
            before: 0,
            ttl_ms: begun.hold_ttl_ms.unwrap_or(0),
        }
    }
    pub fn member(&self) -> MemberId {
        MemberId::new(self.member)
    }
    pub fn key(&self) -> KeyHash {
        KeyHash::new(u128::from(self.key[0]) | (u128::from(self.key[1]) << 64))
    }
    pub fn id(&self, slot: Slot) -> RedemptionId {
        let high = (u128::from(self.id_ms_and_state >> 16) << 80)
            | (8 << 76)
            | (u128::from(slot.get()) << 64);
        RedemptionId::from_u128(high | u128::from(self.id_low)).expect("it was made from an id")
    }
    pub fn slot_seq(&self) -> u64 {
        self.id_low & ((1 << RedemptionId::SLOT_SEQ_BITS) - 1)
    }
    pub fn item(&self) -> ItemIndex {
        ItemIndex::new(self.item)
    }
    pub fn quantity(&self) -> Quantity {
        Quantity::new(self.quantity)
    }
    pub fn points(&self) -> Points {
        Points::new(self.points)
    }
    pub fn state(&self) -> RedemptionState {
        RedemptionState::from_u8((self.id_ms_and_state & STATE_MASK) as u8)
            .expect("only states are stored")
    }
    pub fn set_state(&mut self, state: RedemptionState) {
        self.id_ms_and_state = (self.id_ms_and_state & !STATE_MASK) | state as u64;
    }
    pub fn is_hold(&self) -> bool {
        self.id_ms_and_state & HOLD != 0
    }
    pub fn first_state(&self) -> RedemptionState {
        if self.is_hold() { RedemptionState::Held } else { RedemptionState::Confirmed }
    }
    pub fn first_balance(&self) -> Points {
        Points::new(self.first_balance)
    }
    pub fn ttl_ms(&self) -> u32 {
        self.ttl_ms
    }
    /// When the hold ends, or would have; zero where there was none.
    pub fn expires_at(&self) -> NodeTime {
        if self.is_hold() {
            NodeTime::new(self.id_ms_and_state >> 16).plus_ms(u64::from(self.ttl_ms))
        } else {
            NodeTime::new(0)
        }
    }
    pub fn is_open(&self) -> bool {
        self.state() == RedemptionState::Held
    }
    pub fn before(&self) -> Option<usize> {
        (self.before as usize).checked_sub(1)
    }
}

/// The redemptions of a slot, sorted by slot sequence number.
///
/// What every new one touches stands first.
#[derive(Default)]
#[repr(C)]
pub(super) struct Redemptions {
    /// The newest ones, at most a chunk; room for a whole one.
    tail: Vec<Redemption>,
    /// Chunks of [`CHUNK_LEN`] each.
    full: Vec<Vec<Redemption>>,
    /// Empty chunks whose memory has been written to before: a first touch of memory asks the
    /// operating system for a page of it, which costs more than a decision.
    ready: Vec<Vec<Redemption>>,
    /// Places of the redemptions of members with long chains, by key.
    long_chains: HashTable<u32>,
    /// The balance answered to the confirmation or cancellation of a hold, by slot sequence
    /// number; a redemption's own line of memory keeps the first answer's.
    step_balances: HashMap<u64, Points, foldhash::fast::FixedState>,
}

impl Redemptions {
    /// Bytes at the head that every new redemption touches.
    pub const HOT_LEN: usize = 2 * size_of::<Vec<Redemption>>();

    pub fn len(&self) -> usize {
        self.full.len() * CHUNK_LEN + self.tail.len()
    }
    /// By slot sequence number.
    pub fn iter(&self) -> impl Iterator<Item = &Redemption> {
        self.full.iter().flatten().chain(&self.tail)
    }
    #[inline]
    pub fn get(&self, place: usize) -> &Redemption {
        match self.full.get(place / CHUNK_LEN) {
            Some(chunk) => &chunk[place % CHUNK_LEN],
            None => &self.tail[place - self.full.len() * CHUNK_LEN],
        }
    }
    pub fn get_mut(&mut self, place: usize) -> &mut Redemption {
        let first_of_tail = self.full.len() * CHUNK_LEN;
        match self.full.get_mut(place / CHUNK_LEN) {
            Some(chunk) => &mut chunk[place % CHUNK_LEN],
            None => &mut self.tail[place - first_of_tail],
        }
    }

    /// Asks for the lines that the next redemption will be written to.
    #[inline]
    pub fn prefetch_tail(&self) {
        let next = self.tail.as_ptr().wrapping_add(self.tail.len());
        prefetch_lines(next, 2);
    }

    /// Where the redemption with this slot sequence number stands.
    pub fn find(&self, slot_seq: u64) -> Option<usize> {
        if self.len() == 0 {
            return None;
        }
        // Without a gap before it, which is nearly always, its place is known.
        let guess = usize::try_from(slot_seq.checked_sub(self.get(0).slot_seq())?).ok()?;
        if guess < self.len() && self.get(guess).slot_seq() == slot_seq {
            return Some(guess);
        }
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let middle = usize::midpoint(low, high);
            match self.get(middle).slot_seq().cmp(&slot_seq) {
                Ordering::Less => low = middle + 1,
                Ordering::Equal => return Some(middle),
                Ordering::Greater => high = middle,
            }
        }
        None
    }

    /// Adds the newest redemption of the member in `line`.
    #[inline]
    pub fn push(&mut self, mut redemption: Redemption, line: &mut Line) {
        let place = self.len();
        redemption.before = line.remember(place, redemption.key());
        if self.tail.len() == self.tail.capacity() {
            self.next_chunk();
        }
        self.tail.push(redemption);
        if line.remembered() > CHAIN_MAX {
            self.index_chain(place, line.remembered() == CHAIN_MAX + 1);
        }
    }

    /// Makes memory ready for so many redemptions more, within [`READY_MAX`].
    pub fn make_ready(&mut self, redemptions: usize) {
        let chunks = redemptions.min(READY_MAX).div_ceil(CHUNK_LEN);
        self.full.reserve(chunks);
        while self.ready.len() < chunks {
            let mut chunk = vec![Redemption::NEVER; CHUNK_LEN];
            chunk.clear();
            self.ready.push(chunk);
        }
    }

    #[cold]
    fn next_chunk(&mut self) {
        let next = self.ready.pop().unwrap_or_else(|| Vec::with_capacity(CHUNK_LEN));
        let full = std::mem::replace(&mut self.tail, next);
        if !full.is_empty() {
            self.full.push(full);
        }
    }

    /// Indexes the key at `place`, and at first those before it in the chain.
    #[cold]
    fn index_chain(&mut self, place: usize, is_first: bool) {
        self.index(place);
        let mut next = self.get(place).before().filter(|_| is_first);
        while let Some(at) = next {
            self.index(at);
            next = self.get(at).before();
        }
    }

    fn index(&mut self, place: usize) {
        let mut index = std::mem::take(&mut self.long_chains);
        let hash = |&at: &u32| key_hash(self.get(at as usize).key());
        index.insert_unique(key_hash(self.get(place).key()), place as u32, hash);
        self.long_chains = index;
    }

    /// The member's redemption that the key stands for.
    #[inline]
    pub fn by_key(&self, line: &Line, key: KeyHash) -> Option<&Redemption> {
        if !line.may_know(key) {
            return None;
        }
        if line.remembered() > CHAIN_MAX {
            let is_it = |&at: &u32| {
                let redemption = self.get(at as usize);
                redemption.key() == key && redemption.member() == line.member()
            };
            return self.long_chains.find(key_hash(key), is_it).map(|&at| self.get(at as usize));
        }
        self.chain(line).find(|redemption| redemption.key() == key)
    }

    /// The member's redemptions, newest first.
    pub fn chain(&self, line: &Line) -> impl Iterator<Item = &Redemption> {
        self.chain_from(line.newest())
    }
    pub fn chain_from(&self, place: Option<usize>) -> impl Iterator<Item = &Redemption> {
        std::iter::successors(place, |&at| self.get(at).before()).map(|at| self.get(at))
    }

    /// The balance that the confirmation or cancellation was answered with.
    pub fn step_balance(&self, slot_seq: u64) -> Option<Points> {
        self.step_balances.get(&slot_seq).copied()
    }
    pub fn step_balances(&self) -> impl Iterator<Item = (u64, Points)> {
        self.step_balances.iter().map(|(&slot_seq, &balance)| (slot_seq, balance))
    }
    pub fn set_step_balance(&mut self, slot_seq: u64, balance: Points) {
        self.step_balances.insert(slot_seq, balance);
    }

    /// Takes all redemptions out, for [`Self::push`]ing anew those that stay.
    pub fn take(&mut self) -> impl Iterator<Item = Redemption> + use<> {
        self.long_chains.clear();
        let (full, tail) = (std::mem::take(&mut self.full), std::mem::take(&mut self.tail));
        full.into_iter().flatten().chain(tail)
    }
    pub fn forget_step_balance(&mut self, slot_seq: u64) {
        self.step_balances.remove(&slot_seq);
    }
}

fn key_hash(key: KeyHash) -> u64 {
    (key.get() >> 64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_made_ready_is_used_before_any_other_and_bounded() {
        let mut redemptions = Redemptions::default();
        redemptions.make_ready(CHUNK_LEN + 1);
        assert_eq!(redemptions.ready.len(), 2);
        redemptions.make_ready(1);
        assert_eq!(redemptions.ready.len(), 2, "what is ready already counts");
        let first = redemptions.ready.last().map(Vec::as_ptr);
        redemptions.next_chunk();
        assert_eq!((Some(redemptions.tail.as_ptr()), redemptions.ready.len()), (first, 1));
        assert_eq!(redemptions.len(), 0);
        redemptions.make_ready(usize::MAX);
        assert_eq!(redemptions.ready.len(), READY_MAX / CHUNK_LEN);
    }
}
