//! The naive model's sales and stock totals.

use onrush::kernel::code::Code;
use onrush::kernel::command::Refusal;
use onrush::kernel::control::{ControlCommand, ControlOutcome};
use onrush::kernel::definition::SaleDefinition;
use onrush::kernel::record::{
    AdminNote, CONTROL, EpochSeen, Granted, Imported, Record, Returned, SaleChange, SaleChanged,
    SaleDefined, StockChanged, TotalSeen,
};
use onrush::units::{ItemIndex, KeyHash, NodeTime, Quantity, SaleIndex};

use super::{Item, Model, RETENTION_MS, Sale, StockUse};

fn no(code: Code) -> ControlOutcome {
    ControlOutcome::Refused(Refusal { code, detail: 0 })
}

impl Model {
    pub(super) fn control(&mut self, now: u64, command: &ControlCommand) -> ControlOutcome {
        let at = NodeTime::new(now);
        match command {
            ControlCommand::DefineSale { sale, is_home, note } => {
                let (definition, canonical) = (sale.definition(), sale.canonical());
                let known = self.sales.iter().position(|s| s.id == definition.id);
                if let Some(index) = known {
                    if self.sales[index].canonical != canonical {
                        return no(Code::SaleExists);
                    }
                    let sale = SaleIndex::new(index as u32);
                    return ControlOutcome::Defined { sale, replayed: true };
                }
                let sale = self.add_sale(definition, canonical, *is_home, at, note);
                ControlOutcome::Defined { sale, replayed: false }
            }
            ControlCommand::Change { sale, change, note } => {
                let Some(known) = self.sales.get(sale.get() as usize) else {
                    return no(Code::SaleNotFound);
                };
                let is_so = match change {
                    SaleChange::Opened => known.phase == 1,
                    SaleChange::Paused => known.phase == 1 && known.paused,
                    SaleChange::Resumed => known.phase == 1 && !known.paused,
                    SaleChange::Ended => known.phase == 2,
                };
                if is_so {
                    return ControlOutcome::Changed { sale: *sale, changed: false };
                }
                if known.phase == 2 {
                    return no(Code::SaleEnded);
                }
                let needs_open = matches!(change, SaleChange::Paused | SaleChange::Resumed);
                if needs_open && known.phase == 0 {
                    return no(Code::SaleNotOpen);
                }
                self.change_sale(*sale, *change, at, note.clone());
                ControlOutcome::Changed { sale: *sale, changed: true }
            }
            ControlCommand::AddStock { item, quantity, key, note } => {
                let body = (item.get(), true, quantity.get());
                if let Some(answer) = self.stock_answer(body, *key) {
                    return answer;
                }
                let Some(known) = self.items.get_mut(item.get() as usize) else {
                    return no(Code::ItemNotFound);
                };
                if self.sales[known.sale as usize].phase == 2 {
                    return no(Code::SaleEnded);
                }
                if quantity.get() == 0 || !known.is_home {
                    return no(Code::Invalid);
                }
                known.total += u64::from(quantity.get());
                self.change_stock(at, body, *quantity, *key, note)
            }
            ControlCommand::WithdrawStock { item, asked, taken, key, note } => {
                let body = (item.get(), false, asked.get());
                let units = u64::from(taken.get());
                if let Some(answer) = self.stock_answer(body, *key) {
                    return answer;
                }
                let Some(known) = self.items.get_mut(item.get() as usize) else {
                    return no(Code::ItemNotFound);
                };
                let pool = known.total - (known.granted - known.returned);
                if asked.get() == 0 || taken > asked || units > pool || !known.is_home {
                    return no(Code::Invalid);
                }
                known.total -= units;
                self.change_stock(at, body, *taken, *key, note)
            }
            ControlCommand::GrantAccepted { item, granted, epoch } => {
                let Some(known) = self.items.get_mut(item.get() as usize) else {
                    return no(Code::ItemNotFound);
                };
                let before = known.granted;
                if *granted > before {
                    if granted - known.returned > known.total || *epoch < known.epoch {
                        return no(Code::Invalid);
                    }
                    known.granted = *granted;
                    self.note(Granted { item: *item, granted: *granted, epoch: *epoch, at });
                    self.give_back(*item, granted - before);
                }
                self.lease(*item)
            }
            ControlCommand::Return { item, quantity, epoch } => {
                let Some(known) = self.items.get_mut(item.get() as usize) else {
                    return no(Code::ItemNotFound);
                };
                let units = u64::from(quantity.get());
                if units == 0 || units > known.granted - known.returned {
                    self.give_back(*item, units);
                    return no(Code::Invalid);
                }
                known.returned += units;
                let returned = known.returned;
                self.note(Returned { item: *item, returned, epoch: *epoch, at });
                self.lease(*item)
            }
            ControlCommand::SeeEpoch { item, epoch, server } => {
                match self.items.get_mut(item.get() as usize) {
                    Some(known) if *epoch > known.epoch => known.epoch = *epoch,
                    _ => return no(Code::Invalid),
                }
                self.note(EpochSeen { item: *item, epoch: *epoch, server: *server, at });
                ControlOutcome::Noted
            }
            ControlCommand::SeeTotal { item, total } => {
                match self.items.get_mut(item.get() as usize) {
                    Some(known) if known.is_home => return no(Code::Invalid),
                    Some(known) if known.granted - known.returned <= *total => {
                        known.total = *total;
                    }
                    _ => return no(Code::Invalid),
                }
                self.note(TotalSeen { item: *item, total: *total, at });
                ControlOutcome::Noted
            }
            ControlCommand::ClaimSlots { .. } => {
                unreachable!("a claim comes from a node's start; the kernel's own tests have it")
            }
            ControlCommand::Imported { rows, opened, existing, content, note } => {
                let (rows, opened, existing) = (*rows, *opened, *existing);
                let (content, note) = (*content, note.clone());
                self.note(Imported { rows, opened, existing, content, at, note });
                ControlOutcome::Noted
            }
        }
    }

    pub(super) fn tick(&mut self, now: u64) -> Vec<(SaleIndex, SaleChange)> {
        let mut changes = Vec::new();
        for index in 0..self.sales.len() {
            let sale = &self.sales[index];
            let change = match sale.phase {
                0 | 1 if sale.closes_at <= now => SaleChange::Ended,
                0 if sale.opens_at <= now => SaleChange::Opened,
                _ => continue,
            };
            let note = AdminNote {
                operator: "onrush".into(),
                reason: format!(
                    "{}s_at",
                    if change == SaleChange::Opened { "open" } else { "close" }
                ),
                reference: String::new(),
            };
            let sale = SaleIndex::new(index as u32);
            self.change_sale(sale, change, NodeTime::new(now), note);
            changes.push((sale, change));
        }
        changes
    }

    fn add_sale(
        &mut self,
        definition: &SaleDefinition,
        canonical: &str,
        is_home: bool,
        at: NodeTime,
        note: &AdminNote,
    ) -> SaleIndex {
        let sale = SaleIndex::new(self.sales.len() as u32);
        let first_item = self.items.len() as u32;
        self.sales.push(Sale {
            id: definition.id.clone(),
            canonical: canonical.to_owned(),
            opens_at: definition.opens_at.get(),
            closes_at: definition.closes_at.get(),
            hold_ttl_ms: definition.hold_ttl_ms,
            first_item,
            item_count: definition.items.len() as u32,
            phase: 0,
            paused: false,
            keys_dropped: false,
        });
        self.note(SaleDefined {
            sale,
            first_item: ItemIndex::new(first_item),
            definition: canonical.to_owned(),
            at,
            note: note.clone(),
        });
        for (number, item) in (first_item..).zip(&definition.items) {
            let range = |text: &String| {
                let (a, b) = text.split_once('-').unwrap_or((text, text));
                (a.parse().expect("digits"), b.parse().expect("digits"))
            };
            let total = if is_home { u64::from(item.stock.get()) } else { 0 };
            self.items.push(Item {
                sale: sale.get(),
                price: item.points.get(),
                limit: item.limit_per_member.get(),
                eligible: item.eligible.as_ref().map(|list| list.iter().map(range).collect()),
                is_home,
                epoch: 0,
                total,
                granted: 0,
                returned: 0,
                free: 0,
            });
            if !is_home {
                continue;
            }
            self.note(StockChanged {
                item: ItemIndex::new(number),
                added: true,
                asked: item.stock,
                quantity: item.stock,
                total_after: total,
                key: KeyHash::new(0),
                at,
                note: note.clone(),
            });
        }
        sale
    }

    fn change_sale(&mut self, sale: SaleIndex, change: SaleChange, at: NodeTime, note: AdminNote) {
        let known = &mut self.sales[sale.get() as usize];
        match change {
            SaleChange::Opened => known.phase = 1,
            SaleChange::Ended => known.phase = 2,
            SaleChange::Paused => known.paused = true,
            SaleChange::Resumed => known.paused = false,
        }
        self.note(SaleChanged { sale, change, at, note });
    }

    fn change_stock(
        &mut self,
        at: NodeTime,
        body: (u32, bool, u32),
        quantity: Quantity,
        key: KeyHash,
        note: &AdminNote,
    ) -> ControlOutcome {
        let (item, added, asked) = body;
        let total = self.items[item as usize].total;
        let item = ItemIndex::new(item);
        self.note(StockChanged {
            item,
            added,
            asked: Quantity::new(asked),
            quantity,
            total_after: total,
            key,
            at,
            note: note.clone(),
        });
        let now = at.get();
        self.stock_keys.retain(|_, old| old.at + RETENTION_MS > now);
        let used = StockUse { body, quantity: quantity.get(), total, at: now };
        self.stock_keys.insert(key.get(), used);
        ControlOutcome::Stock { item, quantity, total, replayed: false }
    }

    fn stock_answer(&self, body: (u32, bool, u32), key: KeyHash) -> Option<ControlOutcome> {
        let used = self.stock_keys.get(&key.get())?;
        if used.body != body {
            return Some(no(Code::KeyReused));
        }
        Some(ControlOutcome::Stock {
            item: ItemIndex::new(body.0),
            quantity: Quantity::new(used.quantity),
            total: used.total,
            replayed: true,
        })
    }

    fn lease(&self, item: ItemIndex) -> ControlOutcome {
        let Item { granted, returned, .. } = self.items[item.get() as usize];
        ControlOutcome::Lease { item, granted, returned }
    }

    fn give_back(&mut self, item: ItemIndex, units: u64) {
        if units > 0 {
            self.left.given_back.push((item.get(), units));
        }
    }

    fn note(&mut self, record: impl Into<Record>) {
        self.left.records.push((CONTROL, record.into()));
    }
}
