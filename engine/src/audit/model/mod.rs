//! The auditor's own model of a node: naive, slow, and sharing no arithmetic with the kernel.
//!
//! It folds records in the journal's order and checks every step against what it knows itself.
//! Nothing here panics on a damaged journal: whatever does not fit becomes a finding, and the
//! model goes on from what the record says, so that one wrong record is one finding.
//!
//! Memory: the whole audit peaks at about 150 bytes per member and 170 more per remembered
//! redemption. Measured with 1 M members and 2 M ledger rows: 153 MB and 8 s, unoptimized; so 10 M
//! members take about 1.5 GB. Model and replay come one after the other, never together.

mod control;
mod member;
mod slot;
mod times;

use std::collections::HashSet;

use foldhash::fast::FixedState;

pub use self::control::{Item, Sale, items_of};
pub use self::slot::{Account, BaseSlot, Redemption, SlotModel, SlotSums};
use self::times::SaleTimes;
pub use self::times::Stand;
use super::finding::{Check, Findings, Where};
use crate::cluster::map::SlotSet;
use crate::kernel::record::{CONTROL, Record};
use crate::units::{Incarnation, ItemIndex, JournalId, NodeTime, SLOT_COUNT, Seq, Slot};

pub type Map<K, V> = std::collections::HashMap<K, V, FixedState>;
pub type Set<K> = HashSet<K, FixedState>;

/// Where a record stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    pub seq: Seq,
    pub incarnation: Incarnation,
    /// Of its frame.
    pub node_time: NodeTime,
}

/// The double entry of points, all members together. Units: points.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Ledgers {
    /// The mall's: below zero by what it has issued and not taken back.
    pub issued: i128,
    pub free: i128,
    pub held: i128,
    pub redeemed: i128,
}

impl Ledgers {
    pub fn sum(&self) -> i128 {
        self.issued + self.free + self.held + self.redeemed
    }
}

/// What the model counted on the way, for the report.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Figures {
    pub records: u64,
    /// Records that a slot of the snapshot already holds.
    pub skipped: u64,
    pub moves_of_points: u64,
    pub redemption_steps: u64,
    pub keys: u64,
    pub admin_keys: u64,
    pub prefixes: u64,
    pub begins_timed: u64,
    pub marks: u64,
}

/// Sums of a slot at a cut, as somebody else reports them: a snapshot or a running shard.
#[derive(Clone, Debug)]
pub struct SlotMark {
    pub slot: Slot,
    /// Every record of the slot up to here is in it, none after.
    pub cut: Seq,
    pub sums: SlotSums,
    /// Units of each item, sorted: held, confirmed, retired. Empty where nobody reported them.
    pub items: Option<Vec<(ItemIndex, [u64; 3])>>,
    /// Who says so: "the newer snapshot", "shard 3".
    pub by: String,
}

/// Stock totals at a cut, as a snapshot or the running node reports them.
#[derive(Clone, Debug)]
pub struct ControlMark {
    pub cut: Seq,
    /// By item number: total, granted, returned.
    pub items: Vec<[u64; 3]>,
    pub by: String,
}

/// The model.
pub struct Model {
    journal: JournalId,
    pub(super) findings: Findings,
    pub(super) figures: Figures,
    pub(super) slots: Vec<SlotModel>,
    pub(super) sales: Vec<Sale>,
    pub(super) items: Vec<Item>,
    /// The slots that the journal has claimed, as its last claim says.
    pub(super) claim: Option<SlotSet>,
    pub(super) ledgers: Ledgers,
    times: SaleTimes,
    control_keys: Map<u128, NodeTime>,
    pub(super) control_cut: Seq,
    /// Behind the highest cut of the base: from here on sums over slots are those of a prefix.
    exact_behind: Seq,
    /// A base that came from a snapshot, not from the first record.
    has_base: bool,
    incarnation: Incarnation,
    next_seq: Seq,
    /// Members whose balance was already found wrong: once is enough.
    suspects: Set<u64>,
    oversold: Set<u32>,
    /// Sorted by cut, the next one last.
    marks: Vec<SlotMark>,
    control_marks: Vec<ControlMark>,
    /// Per item: the most units that can have been free at some prefix within the window.
    window: Option<Window>,
}

struct Window {
    from: Seq,
    free_max: Vec<i128>,
}

impl Model {
    /// A model of a journal from its first record on.
    pub fn new(journal: JournalId) -> Self {
        Self {
            journal,
            findings: Findings::default(),
            figures: Figures::default(),
            slots: (0..SLOT_COUNT).map(|_| SlotModel::default()).collect(),
            sales: Vec::new(),
            claim: None,
            items: Vec::new(),
            ledgers: Ledgers::default(),
            times: SaleTimes::default(),
            control_keys: Map::default(),
            control_cut: Seq::NONE,
            exact_behind: Seq::NONE,
            has_base: false,
            incarnation: Incarnation::default(),
            next_seq: Seq::NONE.next(),
            suspects: Set::default(),
            oversold: Set::default(),
            marks: Vec::new(),
            control_marks: Vec::new(),
            window: None,
        }
    }

    /// Compares each slot's sums with these when the fold passes their cuts.
    pub fn expect_marks(&mut self, marks: impl IntoIterator<Item = SlotMark>) {
        self.marks.extend(marks);
        self.marks.sort_by_key(|mark| std::cmp::Reverse((mark.cut, mark.slot)));
    }

    /// Compares the stock totals with these when the fold passes their cuts.
    pub fn expect_control_marks(&mut self, marks: impl IntoIterator<Item = ControlMark>) {
        self.control_marks.extend(marks);
        self.control_marks.sort_by_key(|mark| std::cmp::Reverse(mark.cut));
    }

    /// From `seq` on remembers the most units of each item that were free at any prefix.
    pub fn open_window(&mut self, from: Seq) {
        self.window = Some(Window { from, free_max: Vec::new() });
    }

    /// Whether records before the first one folded are known by sums only.
    pub fn has_base(&self) -> bool {
        self.has_base
    }

    /// Whether the next control record is one that the base holds already.
    pub fn skips_control(&self) -> bool {
        self.next_seq <= self.control_cut
    }

    /// Takes the next record of the journal; `bytes` are the very ones it was decoded from.
    pub fn fold(&mut self, place: Place, slot: Slot, record: &Record, bytes: &[u8]) {
        self.pass_marks(place.seq);
        self.figures.records += 1;
        self.next_seq = place.seq.next();
        if place.incarnation != self.incarnation {
            self.incarnation = place.incarnation;
            let is_known = place.seq > self.exact_behind;
            self.times.restart(&self.sales, is_known, &mut self.findings);
        }
        self.open_window_at(place.seq);
        let item = if slot == CONTROL {
            if place.seq <= self.control_cut {
                self.figures.skipped += 1;
                return;
            }
            self.fold_control(place, record)
        } else {
            let Some(cut) = self.slots.get(slot.index()).map(|s| s.cut) else {
                let sentence = format!("a {} record names slot {slot}", record.name());
                self.findings.violation(Check::Journal, Where::seq(place.seq), sentence);
                return;
            };
            if place.seq <= cut {
                self.figures.skipped += 1;
                return;
            }
            self.fold_member(place, slot, record, bytes)
        };
        if let Some(item) = item {
            self.check_prefix(place.seq, item);
        }
    }

    /// What an item has free, by the books; below zero where it was oversold.
    pub fn free_units(&self, item: ItemIndex) -> Option<i128> {
        self.items.get(item.get() as usize).map(Item::free)
    }

    /// I2 and I11: at this prefix no more is taken than was granted.
    fn check_prefix(&mut self, seq: Seq, item: ItemIndex) {
        let Some(state) = self.items.get(item.get() as usize) else { return };
        let free = state.free();
        if let Some(window) = &mut self.window
            && seq >= window.from
            && let Some(max) = window.free_max.get_mut(item.get() as usize)
        {
            *max = (*max).max(free);
        }
        if seq <= self.exact_behind {
            return;
        }
        self.figures.prefixes += 1;
        if free < 0 && self.oversold.insert(item.get()) {
            let sentence = format!(
                "oversold: {} units taken of {} granted and not returned",
                state.taken(),
                state.granted - state.returned,
            );
            self.findings.violation(Check::I11, Where::item(item).with_seq(seq), sentence);
        }
    }

    fn open_window_at(&mut self, seq: Seq) {
        let items = &self.items;
        let Some(window) = &mut self.window else { return };
        if seq >= window.from && window.free_max.len() < items.len() {
            let known = window.free_max.len();
            window.free_max.extend(items[known..].iter().map(Item::free));
        }
    }

    /// The most units of an item that were free at any prefix of the window.
    pub fn window_free_max(&mut self, item: ItemIndex) -> Option<i128> {
        self.open_window_at(Seq::new(u64::MAX));
        let free = self.free_units(item)?;
        let max = self.window.as_ref()?.free_max.get(item.get() as usize).copied()?;
        Some(max.max(free))
    }

    /// Compares the slots whose cuts lie before `seq`.
    fn pass_marks(&mut self, seq: Seq) {
        while self.control_marks.last().is_some_and(|mark| mark.cut < seq) {
            let mark = self.control_marks.pop().expect("just seen");
            self.compare_control(&mark);
        }
        while self.marks.last().is_some_and(|mark| mark.cut < seq) {
            let mark = self.marks.pop().expect("just seen");
            self.compare_mark(&mark);
        }
    }

    fn compare_mark(&mut self, mark: &SlotMark) {
        let Some(slot) = self.slots.get(mark.slot.index()) else { return };
        // A base knows nothing of what was before it.
        if mark.cut < slot.cut {
            return;
        }
        self.figures.marks += 1;
        let at = Where::slot(mark.slot).with_seq(mark.cut);
        for (name, mine, theirs) in slot.sums.differences(&mark.sums) {
            let check = match name {
                "records" | "checksum" | "redemptions begun" => Check::I5,
                _ => Check::I3,
            };
            let sentence = format!("{} says {name} {theirs}, the records give {mine}", mark.by);
            self.findings.violation(check, at, sentence);
        }
        let Some(items) = &mark.items else { return };
        let mine = slot.item_counts();
        let theirs: std::collections::BTreeMap<_, _> = items.iter().copied().collect();
        let all: std::collections::BTreeSet<_> = mine.keys().chain(theirs.keys()).collect();
        for item in all {
            let zero = [0; 3];
            let (a, b) = (mine.get(item).unwrap_or(&zero), theirs.get(item).unwrap_or(&zero));
            if a != b {
                let sentence = format!(
                    "{} says {} held, {} confirmed, {} retired; the records give {}, {}, {}",
                    mark.by, b[0], b[1], b[2], a[0], a[1], a[2],
                );
                self.findings.violation(Check::I2, at.with_item(*item), sentence);
            }
        }
    }

    /// Says what only the end of the journal shows. Call once, behind the last record.
    pub fn finish(&mut self) {
        self.pass_marks(Seq::new(u64::MAX));
        self.times.restart(&self.sales, true, &mut self.findings);
        self.finish_items();
        self.finish_points();
    }

    fn finish_items(&mut self) {
        let mut sums = vec![[0u64; 3]; self.items.len()];
        for slot in &self.slots {
            for (item, counts) in slot.item_counts() {
                if let Some(sum) = sums.get_mut(item.get() as usize) {
                    (0..3).for_each(|i| sum[i] += counts[i]);
                }
            }
        }
        for (index, (state, sum)) in self.items.iter().zip(sums).enumerate() {
            let at = Where::item(ItemIndex::new(index as u32));
            let running = [state.held, state.confirmed, state.retired];
            if running != sum.map(i128::from) {
                let sentence = format!(
                    "the moves give {} held, {} confirmed, {} retired; the redemptions {}, {}, {}",
                    running[0], running[1], running[2], sum[0], sum[1], sum[2],
                );
                self.findings.violation(Check::I2, at, sentence);
            }
            if state.free() < 0 {
                let sentence = format!(
                    "{} granted − {} returned are less than {} held + {} confirmed + {} retired",
                    state.granted, state.returned, state.held, state.confirmed, state.retired,
                );
                self.findings.violation(Check::I2, at, sentence);
            }
        }
    }

    fn finish_points(&mut self) {
        let (mut free, mut held) = (0, 0);
        let mut open: Map<u64, u64> = Map::default();
        for (index, slot) in self.slots.iter().enumerate() {
            open.clear();
            for redemption in slot.redemptions.iter().filter(|r| r.is_open()) {
                *open.entry(redemption.member.get()).or_default() += redemption.points.get();
            }
            for (&member, account) in &slot.accounts {
                free += i128::from(account.free);
                held += i128::from(account.held);
                let holds = open.remove(&member).unwrap_or(0);
                if holds != account.held && !self.suspects.contains(&member) {
                    let at = Where::slot(Slot::new(index as u16)).with_member(member.into_member());
                    let sentence =
                        format!("{} points are held, the open holds have {holds}", account.held);
                    self.findings.violation(Check::I3, at, sentence);
                }
            }
        }
        let ledgers = self.ledgers;
        for (name, ledger, sum) in [("free", ledgers.free, free), ("held", ledgers.held, held)] {
            if ledger != sum {
                let sentence = format!(
                    "the {name} ledger has {ledger}, the members together {sum}: {} points {}",
                    (sum - ledger).abs(),
                    if sum > ledger { "came from nowhere" } else { "are gone" },
                );
                self.findings.violation(Check::I3, Where::default(), sentence);
            }
        }
        if ledgers.sum() != 0 {
            let sentence = format!("the ledgers sum to {}, not to zero", ledgers.sum());
            self.findings.violation(Check::I3, Where::default(), sentence);
        }
    }
}

/// A member's number in a map's key, as the id it is.
trait IntoMember {
    fn into_member(self) -> crate::units::MemberId;
}
impl IntoMember for u64 {
    fn into_member(self) -> crate::units::MemberId {
        crate::units::MemberId::new(self)
    }
}
