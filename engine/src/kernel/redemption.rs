//! A slot's redemptions in the order of their beginning, and the request keys they stand for.
//!
//! A remembered key is a redemption: there is no second store of keys. The redemptions of one
//! member form a chain, newest first. A key is looked for along the chain while that is short; a
//! member with a longer one has its keys in an index as well.

use hashbrown::{HashMap, HashTable};

use super::command::RedemptionState;
use super::member::Line;
use crate::units::{ItemIndex, KeyHash, MemberId, NodeTime, Points, Quantity, RedemptionId, Slot};

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
#[derive(Default)]
pub(super) struct Redemptions {
    all: Vec<Redemption>,
    /// Places of the redemptions of members with long chains, by key.
    long_chains: HashTable<u32>,
    /// The balance answered to the confirmation or cancellation of a hold, by slot sequence
    /// number; a redemption's own line of memory keeps the first answer's.
    step_balances: HashMap<u64, Points, foldhash::fast::FixedState>,
}

impl Redemptions {
    pub fn as_slice(&self) -> &[Redemption] {
        &self.all
    }
    #[inline]
    pub fn get(&self, place: usize) -> &Redemption {
        &self.all[place]
    }
    pub fn get_mut(&mut self, place: usize) -> &mut Redemption {
        &mut self.all[place]
    }

    /// Where the redemption with this slot sequence number stands.
    pub fn find(&self, slot_seq: u64) -> Option<usize> {
        // Without a gap before it, which is nearly always, its place is known.
        let first = self.all.first()?.slot_seq();
        let guess = usize::try_from(slot_seq.checked_sub(first)?).ok()?;
        if self.all.get(guess).is_some_and(|r| r.slot_seq() == slot_seq) {
            return Some(guess);
        }
        self.all.binary_search_by_key(&slot_seq, Redemption::slot_seq).ok()
    }

    /// Adds the newest redemption of the member in `line`.
    pub fn push(&mut self, mut redemption: Redemption, line: &mut Line) {
        let place = self.all.len();
        redemption.before = line.remember(place, redemption.key());
        if place == self.all.capacity() {
            self.all.reserve_exact((place / 8).max(4));
        }
        self.all.push(redemption);
        if line.remembered() > CHAIN_MAX {
            if line.remembered() == CHAIN_MAX + 1 {
                let mut next = self.all[place].before();
                while let Some(at) = next {
                    self.index(at);
                    next = self.all[at].before();
                }
            }
            self.index(place);
        }
    }

    fn index(&mut self, place: usize) {
        let all = &self.all;
        let hash = |&at: &u32| key_hash(all[at as usize].key());
        let _ = self.long_chains.insert_unique(key_hash(all[place].key()), place as u32, hash);
    }

    /// The member's redemption that the key stands for.
    #[inline]
    pub fn by_key(&self, line: &Line, key: KeyHash) -> Option<&Redemption> {
        if !line.may_know(key) {
            return None;
        }
        if line.remembered() > CHAIN_MAX {
            let is_it = |&at: &u32| {
                let redemption = &self.all[at as usize];
                redemption.key() == key && redemption.member() == line.member()
            };
            return self.long_chains.find(key_hash(key), is_it).map(|&at| &self.all[at as usize]);
        }
        self.chain(line).find(|redemption| redemption.key() == key)
    }

    /// The member's redemptions, newest first.
    pub fn chain(&self, line: &Line) -> impl Iterator<Item = &Redemption> {
        self.chain_from(line.newest())
    }
    pub fn chain_from(&self, place: Option<usize>) -> impl Iterator<Item = &Redemption> {
        std::iter::successors(place, |&at| self.all[at].before()).map(|at| &self.all[at])
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
    pub fn take(&mut self) -> Vec<Redemption> {
        self.long_chains.clear();
        std::mem::take(&mut self.all)
    }
    pub fn forget_step_balance(&mut self, slot_seq: u64) {
        self.step_balances.remove(&slot_seq);
    }
}

fn key_hash(key: KeyHash) -> u64 {
    (key.get() >> 64) as u64
}
