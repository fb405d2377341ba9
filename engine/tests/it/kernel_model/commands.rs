//! What a random stream asks: mostly sensible requests, many repeated ones, and some of each kind
//! of nonsense.

use std::sync::Arc;

use onrush::kernel::command::Command;
use onrush::kernel::control::ControlCommand;
use onrush::kernel::definition::ValidSale;
use onrush::kernel::record::{AdminNote, SaleChange};
use onrush::units::{
    ItemIndex, KeyHash, MemberId, NodeTime, Points, Quantity, RedemptionId, SaleIndex, Slot,
    TakeUnits,
};

use super::stream::{Stream, journal_id};

impl Stream {
    fn member(&mut self) -> MemberId {
        let strange = self.random.percent(6);
        let of = if strange { &self.strangers } else { &self.members };
        MemberId::new(of[self.random.below(of.len())])
    }

    fn key(&mut self) -> KeyHash {
        self.key_count += 1;
        KeyHash::of(&self.key_count.to_le_bytes())
    }

    /// Mostly of the newest sales.
    fn item(&mut self) -> ItemIndex {
        let count = self.model.items.len();
        match self.random.below(100) {
            0..2 => ItemIndex::UNKNOWN,
            2..4 => ItemIndex::new(count as u32),
            4..8 if count > 0 => ItemIndex::new(self.random.below(count) as u32),
            8..80 => {
                let newest = self.model.items.iter().enumerate().rev().take(60);
                let open = newest.filter(|(_, i)| self.model.sales[i.sale as usize].phase == 1);
                let open: Vec<_> = open.map(|(item, _)| item as u32).take(8).collect();
                ItemIndex::new(if open.is_empty() { 0 } else { self.random.pick(&open) })
            }
            _ => ItemIndex::new((count.max(1) - 1 - self.random.below(count.clamp(1, 14))) as u32),
        }
    }

    fn id(&mut self) -> (MemberId, RedemptionId) {
        if self.ids.is_empty() || self.random.percent(2) {
            let member = self.member();
            let slot = Slot::of(member);
            let id = RedemptionId::new(NodeTime::new(self.now), slot, journal_id(), 3);
            return (member, id);
        }
        let recent = if self.random.percent(90) { 12 } else { self.ids.len() };
        let place = self.ids.len() - 1 - self.random.below(self.ids.len().min(recent));
        let (member, id) = self.ids[place];
        if self.random.percent(4) { (self.member(), id) } else { (MemberId::new(member), id) }
    }

    fn amount(&mut self) -> Points {
        Points::new(match self.random.below(20) {
            0 => 0,
            1 => Points::MAX.get() - self.random.below(1000) as u64,
            2 => u64::MAX,
            _ => self.random.below(3000) as u64,
        })
    }

    fn note_text(&mut self) -> AdminNote {
        let operator = self.random.pick(&["ann", "bob"]).to_owned();
        AdminNote { operator, reason: String::new(), reference: "T-1".into() }
    }

    pub(super) fn member_command(&mut self) -> Command {
        match self.random.below(100) {
            0..46 => {
                let quantity = match self.random.below(40) {
                    0 => 0,
                    1 => 1 << 32,
                    2 => u64::from(u32::MAX),
                    3..10 => 2,
                    10..13 => 3,
                    _ => 1,
                };
                let (member, key, item) = (self.member(), self.key(), self.item());
                let hold = self.random.percent(45);
                let command = Command::Redeem { member, key, item, quantity, hold };
                self.keys.push(command.clone());
                command
            }
            46..54 if !self.keys.is_empty() => self.redeem_again(),
            46..62 => {
                let (member, id) = self.id();
                Command::Confirm { member, id }
            }
            62..74 => {
                let (member, id) = self.id();
                Command::Cancel { member, id }
            }
            74..78 => {
                let (_, id) = self.id();
                let command = Command::Reverse { id, key: self.key(), note: self.admin_note() };
                self.admin.push(command.clone());
                command
            }
            78..81 => {
                // Strangers stay strangers.
                let member = MemberId::new(self.random.pick(&self.members));
                Command::OpenAccount { member, points: self.amount() }
            }
            81..86 => {
                let (member, key, amount) = (self.member(), self.key(), self.amount());
                let note = self.admin_note();
                let command = if self.random.percent(55) {
                    Command::Credit { member, key, amount, note }
                } else {
                    Command::Debit { member, key, amount, note }
                };
                self.admin.push(command.clone());
                command
            }
            86..88 if !self.admin.is_empty() => self.admin_again(),
            86..90 => Command::ReadAccount { member: self.member() },
            90..94 => {
                let (member, id) = self.id();
                let member = (!self.random.percent(30)).then_some(member);
                Command::ReadRedemption { member, id }
            }
            94..97 => {
                let (member, id) = self.id();
                let before = self.random.percent(60).then_some(id);
                Command::ListRedemptions { member, before, limit: self.random.below(9) as u16 }
            }
            _ => match self.keys.last() {
                Some(Command::Redeem { member, key, .. }) => {
                    Command::ReadKey { member: *member, key: *key }
                }
                _ => Command::ReadAccount { member: self.member() },
            },
        }
    }

    fn admin_note(&mut self) -> Arc<AdminNote> {
        Arc::new(self.note_text())
    }

    /// An earlier request, mostly as it was.
    fn redeem_again(&mut self) -> Command {
        let recent = if self.random.percent(80) { 100 } else { self.keys.len() };
        let place = self.keys.len() - 1 - self.random.below(self.keys.len().min(recent));
        let mut command = self.keys[place].clone();
        let change = self.random.below(12);
        let other = self.item();
        if let Command::Redeem { item, quantity, hold, .. } = &mut command {
            match change {
                0 => *item = other,
                1 => *quantity += 1,
                2 => *hold = !*hold,
                3 => *quantity = u64::MAX,
                _ => {}
            }
        }
        command
    }

    fn admin_again(&mut self) -> Command {
        let recent = if self.random.percent(90) { 50 } else { self.admin.len() };
        let place = self.admin.len() - 1 - self.random.below(self.admin.len().min(recent));
        let mut command = self.admin[place].clone();
        if self.random.percent(30)
            && let Command::Credit { amount, .. } | Command::Debit { amount, .. } = &mut command
        {
            *amount = Points::new(amount.get() ^ 1);
        }
        command
    }

    pub(super) fn control_command(&mut self) -> ControlCommand {
        let note = self.note_text();
        let item = self.item();
        match self.random.below(100) {
            0..3 => {
                let sale = self.definition();
                self.definitions.push(Arc::clone(&sale));
                let is_home = !self.random.percent(20);
                ControlCommand::DefineSale { sale, is_home, note }
            }
            3..9 if !self.definitions.is_empty() => {
                let place = self.random.below(self.definitions.len());
                let mut sale = Arc::clone(&self.definitions[place]);
                if self.random.percent(70) {
                    let mut definition = sale.definition().clone();
                    definition.name.push('!');
                    sale = Arc::new(definition.validate().expect("only a name has changed"));
                }
                ControlCommand::DefineSale { sale, is_home: true, note }
            }
            3..35 => {
                let count = self.model.sales.len();
                let sale = count.saturating_sub(self.random.below(5)) as u32;
                let change = self.random.pick(&[
                    SaleChange::Opened,
                    SaleChange::Opened,
                    SaleChange::Opened,
                    SaleChange::Paused,
                    SaleChange::Resumed,
                    SaleChange::Resumed,
                    SaleChange::Ended,
                    SaleChange::Opened,
                ]);
                let change = if self.random.percent(40) { SaleChange::Resumed } else { change };
                ControlCommand::Change { sale: SaleIndex::new(sale), change, note }
            }
            35..50 => {
                let (quantity, key) = (Quantity::new(self.random.below(6) as u32), self.key());
                let command = ControlCommand::AddStock { item, quantity, key, note };
                self.stock_changes.push(command.clone());
                command
            }
            50..60 => {
                let asked = Quantity::new(self.random.below(6) as u32);
                let taken = Quantity::new(self.random.below(asked.get() as usize + 2) as u32);
                let key = self.key();
                let command = ControlCommand::WithdrawStock { item, asked, taken, key, note };
                self.stock_changes.push(command.clone());
                command
            }
            60..68 if !self.stock_changes.is_empty() => self.stock_again(),
            60..87 => {
                let known = self.model.items.get(item.get() as usize);
                let (granted, pool, epoch) = known.map_or((0, 5, 1), |i| {
                    (i.granted, i.total - (i.granted - i.returned), i.epoch)
                });
                let granted = granted + self.random.below(pool as usize + 2) as u64;
                let epoch = if self.random.percent(10) { epoch.saturating_sub(1) } else { epoch };
                ControlCommand::GrantAccepted { item, granted, epoch }
            }
            87..90 => {
                let known = self.model.items.get(item.get() as usize);
                let (epoch, here) = known.map_or((0, 0), |i| (i.epoch, i.granted - i.returned));
                if self.random.percent(40) {
                    let (epoch, server) = (epoch + self.random.below(3) as u32, self.key());
                    ControlCommand::SeeEpoch { item, epoch, server }
                } else {
                    let total = (here + self.random.below(20) as u64).saturating_sub(2);
                    ControlCommand::SeeTotal { item, total }
                }
            }
            90..97 => {
                let wanted = self.random.below(3) as u32;
                let quantity = self.take(item, wanted);
                ControlCommand::Return { item, quantity, epoch: 1 }
            }
            _ => ControlCommand::Imported {
                rows: 3,
                opened: 2,
                existing: 1,
                content: self.key(),
                note,
            },
        }
    }

    fn stock_again(&mut self) -> ControlCommand {
        let recent = self.stock_changes.len().min(40);
        let place = self.stock_changes.len() - 1 - self.random.below(recent);
        let mut command = self.stock_changes[place].clone();
        let is_changed = self.random.percent(30);
        match &mut command {
            ControlCommand::AddStock { quantity, .. } if is_changed => {
                *quantity = Quantity::new(quantity.get() + 1);
            }
            ControlCommand::WithdrawStock { asked, .. } => {
                *asked = Quantity::new(asked.get() + u32::from(is_changed));
            }
            _ => {}
        }
        command
    }

    /// Takes up to so many units out of both lines.
    fn take(&mut self, item: ItemIndex, wanted: u32) -> Quantity {
        let mut taken = 0;
        while taken < wanted && self.lines.try_take(item, Quantity::new(1)) {
            self.model.items[item.get() as usize].free -= 1;
            taken += 1;
        }
        Quantity::new(taken)
    }

    fn definition(&mut self) -> Arc<ValidSale> {
        let opens_at = self.now + self.random.below(2_000) as u64;
        let closes_at = opens_at + 1 + self.random.below(400_000) as u64;
        let items: Vec<_> = (0..=self.random.below(3))
            .map(|n| {
                let price = self.random.pick(&[0, 1, 100, 100, 250, 1u64 << 52]);
                let stock = self.random.below(400);
                let limit = self.random.pick(&[1, 2, 3, 8, 1000]);
                let mut sorted = self.members.clone();
                sorted.sort_unstable();
                let middle = sorted[sorted.len() / 2];
                let eligible = match self.random.below(4) {
                    0 => format!(r#","eligible":["0","{middle}-{}"]"#, u64::MAX),
                    _ => String::new(),
                };
                format!(
                    r#"{{"sku":"i{n}","name":"Item","points":{price},"stock":{stock},
                        "limit_per_member":{limit}{eligible}}}"#
                )
            })
            .collect();
        let text = format!(
            r#"{{"id":"sale-{}","name":"S","opens_at":"{}","closes_at":"{}","hold_ttl_ms":{},
                "items":[{}]}}"#,
            self.definitions.len(),
            NodeTime::new(opens_at).rfc3339(),
            NodeTime::new(closes_at).rfc3339(),
            1 + self.random.below(10_000),
            items.join(",")
        );
        Arc::new(ValidSale::parse(&text).expect("a valid definition"))
    }
}
