//! Sales and stock totals: the machine that decides them, one per node.
//!
//! Pure like the rest of the kernel: commands and times in, records and an outcome out. Records
//! change the state by [`ControlState::apply`]'s functions, live and in replay alike.
//!
//! ```text
//! Scheduled ──opens_at, or opened──► Open ──closes_at, or closed──► Ended
//!     └─────────────────────closes_at, or closed────────────────────►┘
//!                                 Open: paused ⇄ resumed
//! ```
//! Stock is an escrow of counters, per item: `total` units in the sale, `granted` to this journal
//! and `returned` by it, both cumulative. What the journal holds is `granted − returned`, and
//! never more than `total` (invariant I1). The total is changed by the sale's home journal alone;
//! others learn it from the pool.

use std::collections::HashMap;
use std::sync::Arc;

use super::aged_keys::AgedKeys;
use super::catalog::{Catalog, SalePhase};
use super::code::Code;
use super::command::Refusal;
use super::definition::ValidSale;
use super::effects::Effects;
use super::record::{
    AdminNote, CONTROL, EpochSeen, Granted, Imported, Record, Returned, SaleChange, SaleChanged,
    SaleDefined, SlotsClaimed, StockChanged, TotalSeen,
};
use crate::planted::{self, Bug};
use crate::units::{ItemIndex, KeyHash, NodeTime, Quantity, SaleIndex};

pub use super::control_apply::ControlError;

/// The key of stock changes that nobody sent: a definition's first stock. Never remembered.
pub(super) const NO_KEY: KeyHash = KeyHash::new(0);
/// What a withdrawal asked for that is known by its key alone: it was found in the pool, and its
/// record was never written. Its key answers whatever number comes with it.
pub const ASKED_UNKNOWN: Quantity = Quantity::new(u32::MAX);

/// What is asked of sales and stock.
#[derive(Clone, Debug)]
pub enum ControlCommand {
    /// Define a sale. The same definition again answers the same. Its stock is this journal's to
    /// change where the journal is the sale's home.
    DefineSale { sale: Arc<ValidSale>, is_home: bool, note: AdminNote },
    /// Open, pause, resume or end a sale. What is so already stays, without a record.
    Change { sale: SaleIndex, change: SaleChange, note: AdminNote },
    /// Add units to an item's total; keyed. They are had by a grant.
    AddStock { item: ItemIndex, quantity: Quantity, key: KeyHash, note: AdminNote },
    /// Take `taken` units of `asked` ones off an item's total; keyed. The stock authority has
    /// taken them out of the pool already.
    WithdrawStock {
        item: ItemIndex,
        asked: Quantity,
        taken: Quantity,
        key: KeyHash,
        note: AdminNote,
    },
    /// The stock authority has granted units, `granted` in all so far. They enter the line once
    /// the record is durable. A figure not above the known one changes nothing.
    GrantAccepted { item: ItemIndex, granted: u64, epoch: u32 },
    /// Give `quantity` units back to the authority. The caller has taken them out of the line.
    Return { item: ItemIndex, quantity: Quantity, epoch: u32 },
    /// The item's pool stands at this epoch. One that is not above the known one is refused.
    SeeEpoch { item: ItemIndex, epoch: u32, server: KeyHash },
    /// The pool says that this is the item's total, on a journal that is not its home.
    SeeTotal { item: ItemIndex, total: u64 },
    /// Write down which slots this journal owns, once. The same again changes nothing.
    ClaimSlots { claim: SlotClaim },
    /// Write down that an import was applied.
    Imported { rows: u64, opened: u64, existing: u64, content: KeyHash, note: AdminNote },
}

/// The answer to a [`ControlCommand`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ControlOutcome {
    /// The sale is defined; `replayed`: it was already, in the same way.
    Defined {
        sale: SaleIndex,
        replayed: bool,
    },
    /// The sale stands as asked; `changed`: by this command.
    Changed {
        sale: SaleIndex,
        changed: bool,
    },
    /// The total was changed by `quantity` units. `replayed`: by an earlier request.
    Stock {
        item: ItemIndex,
        quantity: Quantity,
        total: u64,
        replayed: bool,
    },
    /// Grants and returns stand at these sums.
    Lease {
        item: ItemIndex,
        granted: u64,
        returned: u64,
    },
    /// Written down.
    Noted,
    Refused(Refusal),
}

/// Which slots a journal owns; opaque here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SlotClaim {
    /// The node's name when it claimed, and the version of its map.
    pub node: String,
    pub version: u64,
    pub slots: String,
}

/// A sale and where it stands.
#[derive(Clone, Debug)]
pub struct ControlSale {
    pub sale: Arc<ValidSale>,
    pub first_item: ItemIndex,
    pub phase: SalePhase,
    pub paused: bool,
    /// Zero: not yet.
    pub opened_at: NodeTime,
    /// Zero: not yet.
    pub ended_at: NodeTime,
}

/// An item's counters. Units: units of stock.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct ItemStock {
    pub total: u64,
    /// Cumulative, known to the home journal alone.
    pub added: u64,
    /// To this journal, cumulative.
    pub granted: u64,
    /// By this journal, cumulative.
    pub returned: u64,
    /// Of the pool, and the fingerprint of its server; 0: none seen yet.
    pub epoch: u32,
    pub server: KeyHash,
    /// Whether the total is this journal's to change.
    pub is_home: bool,
}

impl ItemStock {
    /// Taken off the total, cumulative; known to the home journal alone.
    pub fn withdrawn(&self) -> u64 {
        self.added.saturating_sub(self.total)
    }
    /// What this journal holds or has sold.
    pub fn here(&self) -> u64 {
        self.granted - self.returned
    }
    /// What no journal holds.
    pub fn pool(&self) -> u64 {
        self.total - self.here()
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct StockEntry {
    pub item: ItemIndex,
    pub added: bool,
    pub asked: Quantity,
    pub quantity: Quantity,
    pub total: u64,
}

/// All sales and stock totals of a journal.
#[derive(Default)]
pub struct ControlState {
    pub(super) sales: Vec<ControlSale>,
    pub(super) by_id: HashMap<String, SaleIndex>,
    pub(super) items: Vec<ItemStock>,
    pub(super) sale_of_item: Vec<SaleIndex>,
    /// Keys of stock changes.
    pub(super) keys: AgedKeys<StockEntry>,
    pub(super) claim: Option<SlotClaim>,
    pub(super) record_count: u64,
    pub(super) record_checksum: u64,
}

const fn refused(code: Code) -> ControlOutcome {
    ControlOutcome::Refused(Refusal { code, detail: 0 })
}

impl ControlState {
    pub fn new() -> Self {
        Self::default()
    }

    /// By number.
    pub fn sales(&self) -> &[ControlSale] {
        &self.sales
    }
    pub fn sale(&self, sale: SaleIndex) -> Option<&ControlSale> {
        self.sales.get(sale.get() as usize)
    }
    pub fn sale_by_id(&self, id: &str) -> Option<SaleIndex> {
        self.by_id.get(id).copied()
    }
    /// By number.
    pub fn items(&self) -> &[ItemStock] {
        &self.items
    }
    /// The slots that this journal owns, where it is one of several.
    pub fn claim(&self) -> Option<&SlotClaim> {
        self.claim.as_ref()
    }
    pub fn sale_of_item(&self, item: ItemIndex) -> Option<SaleIndex> {
        self.sale_of_item.get(item.get() as usize).copied()
    }
    /// Records decided or applied so far, and the wrapping sum of their XXH3-64. `ChangeSeen`
    /// records are written by shards, and not among them.
    pub fn record_sums(&self) -> (u64, u64) {
        (self.record_count, self.record_checksum)
    }

    /// The catalog of all sales, as a shard starts with it.
    pub fn catalog(&self) -> Catalog {
        let mut catalog = Catalog::default();
        for (sale, known) in (0..).map(SaleIndex::new).zip(&self.sales) {
            let (rule, items) = known.sale.rules(sale, known.phase, known.paused);
            catalog.define_sale(rule, items);
        }
        catalog
    }

    /// The remembered answer to a stock change, if this is one: looked at before units are taken
    /// out of the line for a withdrawal.
    pub fn stock_answer(
        &self,
        item: ItemIndex,
        added: bool,
        asked: Quantity,
        key: KeyHash,
    ) -> Option<ControlOutcome> {
        let entry = self.keys.get(key)?;
        let is_same = entry.asked == asked || entry.asked == ASKED_UNKNOWN;
        if (entry.item, entry.added, is_same) != (item, added, true) {
            return Some(refused(Code::KeyReused));
        }
        let StockEntry { quantity, total, .. } = *entry;
        Some(ControlOutcome::Stock { item, quantity, total, replayed: true })
    }

    /// Decides one command. Records, and units that may enter their lines once those are
    /// durable, are appended to `effects`.
    pub fn decide(
        &mut self,
        now: NodeTime,
        command: &ControlCommand,
        effects: &mut Effects,
    ) -> ControlOutcome {
        match command {
            ControlCommand::DefineSale { sale, is_home, note } => {
                self.define(now, sale, *is_home, note, effects)
            }
            ControlCommand::Change { sale, change, note } => {
                self.change(now, *sale, *change, note, effects)
            }
            ControlCommand::AddStock { item, quantity, key, note } => {
                self.add_stock(now, *item, *quantity, *key, note, effects)
            }
            ControlCommand::WithdrawStock { item, asked, taken, key, note } => {
                self.withdraw(now, *item, (*asked, *taken), *key, note, effects)
            }
            ControlCommand::GrantAccepted { item, granted, epoch } => {
                self.accept_grant(now, *item, *granted, *epoch, effects)
            }
            ControlCommand::Return { item, quantity, epoch } => {
                self.give_up(now, *item, *quantity, *epoch, effects)
            }
            ControlCommand::SeeEpoch { item, epoch, server } => {
                let known = self.items.get(item.get() as usize);
                if known.is_none_or(|stock| *epoch <= stock.epoch) {
                    return refused(Code::Invalid);
                }
                let (item, epoch, server) = (*item, *epoch, *server);
                self.emit(&EpochSeen { item, epoch, server, at: now }.into(), effects);
                ControlOutcome::Noted
            }
            ControlCommand::SeeTotal { item, total } => {
                let known = self.items.get(item.get() as usize);
                if known.is_none_or(|stock| stock.is_home || stock.here() > *total) {
                    return refused(Code::Invalid);
                }
                self.emit(&TotalSeen { item: *item, total: *total, at: now }.into(), effects);
                ControlOutcome::Noted
            }
            ControlCommand::ClaimSlots { claim } => self.claim_slots(now, claim, effects),
            ControlCommand::Imported { rows, opened, existing, content, note } => {
                let (rows, opened, existing) = (*rows, *opened, *existing);
                let (content, note) = (*content, note.clone());
                let record = Imported { rows, opened, existing, content, at: now, note };
                self.emit(&record.into(), effects);
                ControlOutcome::Noted
            }
        }
    }

    /// Opens and ends the sales whose time has come.
    pub fn tick(&mut self, now: NodeTime, effects: &mut Effects) -> Vec<(SaleIndex, SaleChange)> {
        let mut changes = Vec::new();
        for index in 0..self.sales.len() {
            let Some((due, change)) = self.sales[index].next_change() else { continue };
            if due > now {
                continue;
            }
            // Opening and closing both passed while the node was down: it never opens.
            let closes_at = self.sales[index].sale.definition().closes_at;
            let change = if closes_at <= now { SaleChange::Ended } else { change };
            let sale = SaleIndex::new(index as u32);
            let note = AdminNote {
                operator: "onrush".into(),
                reason: if change == SaleChange::Opened { "opens_at" } else { "closes_at" }.into(),
                reference: String::new(),
            };
            self.emit(&SaleChanged { sale, change, at: now, note }.into(), effects);
            changes.push((sale, change));
        }
        changes
    }

    /// When [`Self::tick`] has something to do next.
    pub fn next_tick(&self) -> Option<NodeTime> {
        self.sales.iter().filter_map(ControlSale::next_change).map(|(at, _)| at).min()
    }

    fn define(
        &mut self,
        now: NodeTime,
        sale: &Arc<ValidSale>,
        is_home: bool,
        note: &AdminNote,
        effects: &mut Effects,
    ) -> ControlOutcome {
        if let Some(known) = self.sale_by_id(&sale.definition().id) {
            let is_same = self.sales[known.get() as usize].sale.canonical() == sale.canonical();
            if !is_same {
                return refused(Code::SaleExists);
            }
            return ControlOutcome::Defined { sale: known, replayed: true };
        }
        let index = SaleIndex::new(self.sales.len() as u32);
        let first_item = self.items.len() as u32;
        let record = SaleDefined {
            sale: index,
            first_item: ItemIndex::new(first_item),
            definition: sale.canonical().to_owned(),
            at: now,
            note: note.clone(),
        };
        self.emit(&record.into(), effects);
        // No record, no stock of its own: what tells a home journal from others for ever.
        let items = if is_home { &sale.definition().items[..] } else { &[] };
        for (item, definition) in (first_item..).zip(items) {
            let record = StockChanged {
                item: ItemIndex::new(item),
                added: true,
                asked: definition.stock,
                quantity: definition.stock,
                total_after: u64::from(definition.stock.get()),
                key: NO_KEY,
                at: now,
                note: note.clone(),
            };
            self.emit(&record.into(), effects);
        }
        ControlOutcome::Defined { sale: index, replayed: false }
    }

    fn change(
        &mut self,
        now: NodeTime,
        sale: SaleIndex,
        change: SaleChange,
        note: &AdminNote,
        effects: &mut Effects,
    ) -> ControlOutcome {
        let Some(known) = self.sale(sale) else {
            return refused(Code::SaleNotFound);
        };
        match (known.phase, change) {
            (SalePhase::Open, SaleChange::Opened)
            | (SalePhase::Ended | SalePhase::KeysDropped, SaleChange::Ended) => {
                return ControlOutcome::Changed { sale, changed: false };
            }
            (SalePhase::Ended | SalePhase::KeysDropped, _) => return refused(Code::SaleEnded),
            (SalePhase::Scheduled, SaleChange::Paused | SaleChange::Resumed) => {
                return refused(Code::SaleNotOpen);
            }
            (SalePhase::Open, SaleChange::Paused) if known.paused => {
                return ControlOutcome::Changed { sale, changed: false };
            }
            (SalePhase::Open, SaleChange::Resumed) if !known.paused => {
                return ControlOutcome::Changed { sale, changed: false };
            }
            _ => {}
        }
        self.emit(&SaleChanged { sale, change, at: now, note: note.clone() }.into(), effects);
        ControlOutcome::Changed { sale, changed: true }
    }

    fn add_stock(
        &mut self,
        now: NodeTime,
        item: ItemIndex,
        quantity: Quantity,
        key: KeyHash,
        note: &AdminNote,
        effects: &mut Effects,
    ) -> ControlOutcome {
        if let Some(answer) = self.stock_answer(item, true, quantity, key) {
            return answer;
        }
        let Some(sale) = self.sale_of_item(item).and_then(|sale| self.sale(sale)) else {
            return refused(Code::ItemNotFound);
        };
        if sale.phase >= SalePhase::Ended {
            return refused(Code::SaleEnded);
        }
        let stock = self.items[item.get() as usize];
        let total = stock.total.checked_add(u64::from(quantity.get()));
        let is_valid = quantity > Quantity::ZERO && stock.is_home;
        let Some(total) = total.filter(|_| is_valid) else {
            return refused(Code::Invalid);
        };
        let record = StockChanged {
            item,
            added: true,
            asked: quantity,
            quantity,
            total_after: total,
            key,
            at: now,
            note: note.clone(),
        };
        self.emit(&record.into(), effects);
        ControlOutcome::Stock { item, quantity, total, replayed: false }
    }

    fn withdraw(
        &mut self,
        now: NodeTime,
        item: ItemIndex,
        (asked, taken): (Quantity, Quantity),
        key: KeyHash,
        note: &AdminNote,
        effects: &mut Effects,
    ) -> ControlOutcome {
        if let Some(answer) = self.stock_answer(item, false, asked, key)
            && !planted::is(Bug::WithdrawTwice)
        {
            return answer;
        }
        let Some(stock) = self.items.get(item.get() as usize).copied() else {
            return refused(Code::ItemNotFound);
        };
        let units = u64::from(taken.get());
        if asked == Quantity::ZERO || taken > asked || units > stock.pool() || !stock.is_home {
            return refused(Code::Invalid);
        }
        let total = stock.total - units;
        let record = StockChanged {
            item,
            added: false,
            asked,
            quantity: taken,
            total_after: total,
            key,
            at: now,
            note: note.clone(),
        };
        self.emit(&record.into(), effects);
        ControlOutcome::Stock { item, quantity: taken, total, replayed: false }
    }

    fn accept_grant(
        &mut self,
        now: NodeTime,
        item: ItemIndex,
        granted: u64,
        epoch: u32,
        effects: &mut Effects,
    ) -> ControlOutcome {
        let Some(stock) = self.items.get(item.get() as usize).copied() else {
            return refused(Code::ItemNotFound);
        };
        if granted > stock.granted {
            // † Rebuild: a grant of an older epoch may be granted to another in the newer one.
            if granted - stock.returned > stock.total || epoch < stock.epoch {
                return refused(Code::Invalid);
            }
            self.emit(&Granted { item, granted, epoch, at: now }.into(), effects);
            effects.give_back(item, granted - stock.granted);
        }
        self.lease(item)
    }

    fn give_up(
        &mut self,
        now: NodeTime,
        item: ItemIndex,
        quantity: Quantity,
        epoch: u32,
        effects: &mut Effects,
    ) -> ControlOutcome {
        let Some(stock) = self.items.get(item.get() as usize).copied() else {
            return refused(Code::ItemNotFound);
        };
        let units = u64::from(quantity.get());
        if units == 0 || units > stock.here() {
            effects.give_back(item, units);
            return refused(Code::Invalid);
        }
        let returned = stock.returned + units;
        self.emit(&Returned { item, returned, epoch, at: now }.into(), effects);
        self.lease(item)
    }

    fn claim_slots(
        &mut self,
        now: NodeTime,
        claim: &SlotClaim,
        effects: &mut Effects,
    ) -> ControlOutcome {
        match &self.claim {
            Some(known) if known == claim => return ControlOutcome::Noted,
            Some(_) => return refused(Code::Invalid),
            None => {}
        }
        let SlotClaim { node, version, slots } = claim.clone();
        self.emit(&SlotsClaimed { node, version, slots, at: now }.into(), effects);
        ControlOutcome::Noted
    }

    fn lease(&self, item: ItemIndex) -> ControlOutcome {
        let ItemStock { granted, returned, .. } = self.items[item.get() as usize];
        ControlOutcome::Lease { item, granted, returned }
    }

    fn emit(&mut self, record: &Record, effects: &mut Effects) {
        let bytes = effects.control_record(|out| record.encode(CONTROL, out));
        self.apply(record, bytes).expect("the record was made from this state");
    }
}

impl ControlSale {
    /// What time will do to the sale next, and when.
    fn next_change(&self) -> Option<(NodeTime, SaleChange)> {
        let definition = self.sale.definition();
        match self.phase {
            SalePhase::Scheduled => Some((definition.opens_at, SaleChange::Opened)),
            SalePhase::Open => Some((definition.closes_at, SaleChange::Ended)),
            SalePhase::Ended | SalePhase::KeysDropped => None,
        }
    }
}
