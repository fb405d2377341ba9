//! The naive model's members: redemptions, accounts, admin calls, reads.

use super::{AdminUse, Model, Person, RETENTION_MS, Redemption, refused};
use onrush::kernel::code::Code;
use onrush::kernel::command::{AccountView, Command, Outcome, RedemptionState};
use onrush::kernel::record::{
    AdminNote, Confirmed, Credited, Debited, Held, KeysDropped, Opened, Redeemed, Released,
    Reversed,
};
use onrush::units::{
    ItemIndex, KeyHash, MemberId, NodeTime, Points, Quantity, RedemptionId, SaleIndex, Slot,
};

const MAX: u64 = 1 << 53;

fn account(member: u64, free: u64, held: u64, replayed: bool) -> Outcome {
    let (free, held) = (Points::new(free), Points::new(held));
    Outcome::Account { view: AccountView { member: MemberId::new(member), free, held }, replayed }
}

impl Model {
    pub(super) fn decide(&mut self, now: u64, command: &Command) -> Outcome {
        match command {
            Command::Redeem { member, key, item, quantity, hold } => {
                self.redeem(now, member.get(), key.get(), item.get(), *quantity, *hold)
            }
            Command::Confirm { member, id } => self.step(now, member.get(), *id, true),
            Command::Cancel { member, id } => self.step(now, member.get(), *id, false),
            Command::Reverse { id, key, note } => self.reverse(now, *id, key.get(), note),
            Command::OpenAccount { member, points } => {
                let (id, points) = (member.get(), points.get());
                if let Some(person) = self.people.get(&id) {
                    return account(id, person.free, person.held, true);
                }
                if points > MAX {
                    return refused(Code::BalanceTooLarge, 0);
                }
                self.people.insert(id, Person { free: points, ..Person::default() });
                let (points_opened, at) = (Points::new(points), NodeTime::new(now));
                let record = Opened { member: *member, points: points_opened, at };
                self.write(Slot::of(*member), record.into());
                account(id, points, 0, false)
            }
            Command::Credit { member, key, amount, note } => {
                self.move_points(now, member.get(), key.get(), amount.get(), note, true)
            }
            Command::Debit { member, key, amount, note } => {
                self.move_points(now, member.get(), key.get(), amount.get(), note, false)
            }
            Command::ReadAccount { member } => match self.people.get(&member.get()) {
                Some(person) => account(member.get(), person.free, person.held, false),
                None => refused(Code::MemberNotFound, 0),
            },
            Command::ReadRedemption { member, id } => {
                for (&whose, person) in &self.people {
                    let is_shown = member.is_none_or(|member| member.get() == whose);
                    let found = person.redemptions.iter().find(|r| r.id == *id);
                    if let Some(r) = found.filter(|_| is_shown) {
                        let view = r.view(whose, r.state, person.free);
                        return Outcome::Redemption { view, replayed: false };
                    }
                }
                let is_possible = member.is_none_or(|member| Slot::of(member) == id.slot());
                let forgotten = if is_possible { self.forgotten_sales(id.slot()) } else { 0 };
                refused(Code::RedemptionNotFound, forgotten)
            }
            Command::ListRedemptions { member, before, limit } => {
                let mut views = Vec::new();
                if let Some(person) = self.people.get(&member.get()) {
                    for r in person.redemptions.iter().rev() {
                        let is_next =
                            before.is_none_or(|before| r.id.slot_seq() < before.slot_seq());
                        if is_next && views.len() < usize::from(*limit) {
                            views.push(r.view(member.get(), r.state, person.free));
                        }
                    }
                }
                let forgotten_sales = self.forgotten_sales(Slot::of(*member));
                Outcome::Redemptions { views, forgotten_sales }
            }
            Command::ReadKey { member, key } => {
                if let Some(person) = self.people.get(&member.get())
                    && let Some(r) = person.redemptions.iter().find(|r| r.key == key.get())
                {
                    let view = r.view(member.get(), r.state, person.free);
                    return Outcome::Redemption { view, replayed: false };
                }
                refused(Code::RedemptionNotFound, self.forgotten_sales(Slot::of(*member)))
            }
            Command::Recall { member, key, item, quantity, hold } => self
                .recall(member.get(), key.get(), (item.get(), *quantity, *hold))
                .unwrap_or_else(|| refused(Code::RedemptionNotFound, 0)),
        }
    }

    fn forgotten_sales(&self, slot: Slot) -> u64 {
        self.slots.get(&slot).map_or(0, |book| book.dropped.len() as u64)
    }

    /// What a known key is answered with.
    fn recall(&self, member: u64, key: u128, body: (u32, u64, bool)) -> Option<Outcome> {
        let person = self.people.get(&member)?;
        let r = person.redemptions.iter().find(|r| r.key == key)?;
        if (r.item, u64::from(r.quantity), r.hold_until.is_some()) != body {
            return Some(refused(Code::KeyReused, 0));
        }
        let view = r.view(member, r.first_state(), r.first_balance);
        Some(Outcome::Redemption { view, replayed: true })
    }

    fn redeem(
        &mut self,
        now: u64,
        member: u64,
        key: u128,
        item: u32,
        quantity: u64,
        hold: bool,
    ) -> Outcome {
        if let Some(answer) = self.recall(member, key, (item, quantity, hold)) {
            return answer;
        }
        let nobody = Person::default();
        let known = self.people.get(&member);
        let person = known.unwrap_or(&nobody);
        let Some(rule) = self.items.get(item as usize) else {
            return refused(Code::ItemNotFound, 0);
        };
        let sale = &self.sales[rule.sale as usize];
        let slot = Slot::of(MemberId::new(member));
        let book = self.slots.entry(slot).or_default();
        if sale.keys_dropped || book.dropped.contains(&rule.sale) {
            return refused(Code::KeyExpired, 0);
        }
        if sale.phase == 0 {
            return refused(Code::SaleNotOpen, 0);
        }
        if sale.phase == 2 {
            return refused(Code::SaleEnded, 0);
        }
        if sale.paused {
            return refused(Code::SalePaused, 0);
        }
        if let Some(eligible) = &rule.eligible
            && !eligible.iter().any(|&(a, b)| a <= member && member <= b)
        {
            return refused(Code::NotEligible, 0);
        }
        if quantity == 0 || quantity > u64::from(u32::MAX) {
            return refused(Code::QuantityInvalid, 0);
        }
        let counts = |state| matches!(state, RedemptionState::Held | RedemptionState::Confirmed);
        let mine = person.redemptions.iter().filter(|r| r.item == item && counts(r.state));
        let used: u64 = mine.map(|r| u64::from(r.quantity)).sum();
        if used + quantity > u64::from(rule.limit) {
            return refused(Code::LimitReached, u64::from(rule.limit));
        }
        let given_up = person.released.get(&item).copied().unwrap_or(0);
        if hold && given_up >= self.hold_allowance {
            return refused(Code::HoldAllowanceSpent, self.hold_allowance);
        }
        let price = u128::from(rule.price) * u128::from(quantity);
        if known.is_none() || price > u128::from(person.free) || price > u128::from(MAX) {
            return refused(Code::InsufficientPoints, person.free);
        }
        if rule.free < quantity {
            return refused(Code::SoldOut, 0);
        }

        let points = price as u64;
        let ttl = sale.hold_ttl_ms;
        let id = RedemptionId::new(NodeTime::new(now), slot, self.journal, book.begun);
        book.begun += 1;
        self.items[item as usize].free -= quantity;
        let person = self.people.get_mut(&member).expect("somebody with points");
        person.free -= points;
        if hold {
            person.held += points;
        }
        let r = Redemption {
            id,
            key,
            item,
            quantity: quantity as u32,
            points,
            hold_until: hold.then_some(now + ttl),
            state: if hold { RedemptionState::Held } else { RedemptionState::Confirmed },
            first_balance: person.free,
            step_balance: None,
        };
        let view = r.view(member, r.state, person.free);
        let (member, item) = (MemberId::new(member), ItemIndex::new(item));
        let (key, quantity) = (KeyHash::new(key), Quantity::new(quantity as u32));
        let points = Points::new(points);
        let (free_after, held_after) = (Points::new(person.free), Points::new(person.held));
        person.redemptions.push(r);
        if hold {
            let expires_at = NodeTime::new(now + ttl);
            let record = Held {
                member,
                id,
                key,
                item,
                quantity,
                points,
                free_after,
                held_after,
                expires_at,
            };
            self.write(slot, record.into());
        } else {
            let record =
                Redeemed { member, id, key, item, quantity, points, free_after, held_after };
            self.write(slot, record.into());
            self.left.confirmed.push((item.get(), i64::from(quantity.get())));
        }
        Outcome::Redemption { view, replayed: false }
    }

    fn step(&mut self, now: u64, member: u64, id: RedemptionId, confirm: bool) -> Outcome {
        let Some(person) = self.people.get_mut(&member) else {
            return refused(Code::RedemptionNotFound, 0);
        };
        let Some(at) = person.redemptions.iter().position(|r| r.id == id) else {
            return refused(Code::RedemptionNotFound, 0);
        };
        let r = person.redemptions[at].clone();
        let done = if confirm { RedemptionState::Confirmed } else { RedemptionState::Cancelled };
        if r.state == done {
            let view = r.view(member, done, r.step_balance.unwrap_or(r.first_balance));
            return Outcome::Redemption { view, replayed: true };
        }
        if r.state != RedemptionState::Held {
            return refused(Code::WrongState, r.state as u64);
        }
        if r.hold_until.is_some_and(|until| until <= now) {
            self.release(now, member, id, true);
            return refused(Code::WrongState, RedemptionState::Expired as u64);
        }
        if confirm {
            person.held -= r.points;
            person.redemptions[at].state = done;
            person.redemptions[at].step_balance = Some(person.free);
            let record = Confirmed {
                member: MemberId::new(member),
                id,
                item: ItemIndex::new(r.item),
                quantity: Quantity::new(r.quantity),
                points: Points::new(r.points),
                free_after: Points::new(person.free),
                held_after: Points::new(person.held),
                at: NodeTime::new(now),
            };
            self.write(id.slot(), record.into());
            self.left.confirmed.push((r.item, i64::from(r.quantity)));
        } else {
            self.release(now, member, id, false);
        }
        let free = self.people[&member].free;
        Outcome::Redemption { view: r.view(member, done, free), replayed: false }
    }

    fn release(&mut self, now: u64, member: u64, id: RedemptionId, expired: bool) {
        let person = self.people.get_mut(&member).expect("the caller found the member");
        let mut all = person.redemptions.iter_mut();
        let r = all.find(|r| r.id == id).expect("the caller found the redemption");
        person.free += r.points;
        person.held -= r.points;
        *person.released.entry(r.item).or_default() += 1;
        if expired {
            r.state = RedemptionState::Expired;
        } else {
            r.state = RedemptionState::Cancelled;
            r.step_balance = Some(person.free);
        }
        let record = Released {
            member: MemberId::new(member),
            id,
            item: ItemIndex::new(r.item),
            quantity: Quantity::new(r.quantity),
            points: Points::new(r.points),
            free_after: Points::new(person.free),
            held_after: Points::new(person.held),
            expired,
            at: NodeTime::new(now),
        };
        self.left.given_back.push((r.item, u64::from(r.quantity)));
        self.write(id.slot(), record.into());
    }

    /// Open holds of the chosen slots whose time has come, in the order of their ends.
    pub(super) fn due(&self, now: u64, of: impl Fn(Slot) -> bool) -> Vec<(u64, RedemptionId)> {
        let mut due = Vec::new();
        for (&member, person) in &self.people {
            for r in &person.redemptions {
                let is_due = r.hold_until.is_some_and(|until| until <= now);
                if r.state == RedemptionState::Held && is_due && of(r.id.slot()) {
                    let order = (r.hold_until, r.id.slot(), r.id.slot_seq());
                    due.push((order, (member, r.id)));
                }
            }
        }
        due.sort_unstable();
        due.into_iter().map(|(_, whose)| whose).collect()
    }

    pub(super) fn expire(&mut self, now: u64, max: usize, of: impl Fn(Slot) -> bool) -> usize {
        let due = self.due(now, of);
        let expired = due.len().min(max);
        for (member, id) in due.into_iter().take(max) {
            self.release(now, member, id, true);
        }
        expired
    }

    pub(super) fn drop_keys(&mut self, slot: Slot, sale: u32, now: u64) {
        self.sales[sale as usize].keys_dropped = true;
        let (first, count) =
            (self.sales[sale as usize].first_item, self.sales[sale as usize].item_count);
        let is_gone = |item: u32| first <= item && item < first + count;
        let mut due = self.due(now, |of| of == slot);
        due.sort_unstable_by_key(|(_, id)| id.slot_seq());
        for (member, id) in due {
            let person = &self.people[&member];
            if person.redemptions.iter().any(|r| r.id == id && is_gone(r.item)) {
                self.release(now, member, id, true);
            }
        }
        for (&member, person) in &mut self.people {
            if Slot::of(MemberId::new(member)) != slot {
                continue;
            }
            person.released.retain(|&item, _| !is_gone(item));
            for r in &person.redemptions {
                if is_gone(r.item) && r.state == RedemptionState::Confirmed {
                    let book = self.slots.entry(slot).or_default();
                    book.settled.entry(r.item).or_default().0 += u64::from(r.quantity);
                }
            }
            person.redemptions.retain(|r| !is_gone(r.item) || r.state == RedemptionState::Held);
        }
        let book = self.slots.entry(slot).or_default();
        if !book.dropped.contains(&sale) {
            book.dropped.push(sale);
        }
        let record = KeysDropped {
            sale: SaleIndex::new(sale),
            first_item: ItemIndex::new(first),
            item_count: count,
            at: NodeTime::new(now),
        };
        self.write(slot, record.into());
    }

    fn admin_answer(&self, slot: Slot, key: u128, body: (u128, u128, u64)) -> Option<Outcome> {
        let used = self.slots.get(&slot)?.admin.get(&key)?;
        Some(if used.body == body { used.outcome.clone() } else { refused(Code::KeyReused, 0) })
    }

    fn remember_admin(&mut self, slot: Slot, key: u128, used: AdminUse) {
        let book = self.slots.entry(slot).or_default();
        book.admin.retain(|_, old| old.at + RETENTION_MS > used.at);
        book.admin.insert(key, used);
    }

    fn move_points(
        &mut self,
        now: u64,
        id: u64,
        key: u128,
        amount: u64,
        note: &AdminNote,
        is_credit: bool,
    ) -> Outcome {
        let member = MemberId::new(id);
        let slot = Slot::of(member);
        let body = (if is_credit { 1 } else { 2 }, u128::from(id), amount);
        if let Some(answer) = self.admin_answer(slot, key, body) {
            return answer;
        }
        let Some(person) = self.people.get_mut(&id) else {
            return refused(Code::MemberNotFound, 0);
        };
        if amount == 0 {
            return refused(Code::Invalid, 0);
        }
        if is_credit {
            let total = u128::from(person.free) + u128::from(person.held) + u128::from(amount);
            if total > u128::from(MAX) {
                return refused(Code::BalanceTooLarge, 0);
            }
            person.free += amount;
        } else {
            if amount > person.free {
                return refused(Code::InsufficientPoints, person.free);
            }
            person.free -= amount;
        }
        let (free, held) = (person.free, person.held);
        let (free_after, held_after) = (Points::new(free), Points::new(held));
        let (amount, at, note) = (Points::new(amount), NodeTime::new(now), note.clone());
        let wide_key = KeyHash::new(key);
        let record = if is_credit {
            Credited { member, amount, free_after, held_after, key: wide_key, at, note }.into()
        } else {
            Debited { member, amount, free_after, held_after, key: wide_key, at, note }.into()
        };
        self.write(slot, record);
        let outcome = account(id, free, held, true);
        self.remember_admin(slot, key, AdminUse { body, free, held, at: now, outcome });
        account(id, free, held, false)
    }

    fn reverse(&mut self, now: u64, id: RedemptionId, key: u128, note: &AdminNote) -> Outcome {
        let slot = id.slot();
        let body = (3, id.get(), 0);
        if let Some(answer) = self.admin_answer(slot, key, body) {
            return answer;
        }
        let mut all = self.people.iter_mut();
        let found = all.find_map(|(&member, person)| {
            let at = person.redemptions.iter().position(|r| r.id == id)?;
            Some((member, person, at))
        });
        let Some((member, person, at)) = found else {
            return refused(Code::RedemptionNotFound, 0);
        };
        let r = &mut person.redemptions[at];
        if r.state != RedemptionState::Confirmed {
            return refused(Code::WrongState, r.state as u64);
        }
        if person.free + person.held + r.points > MAX {
            return refused(Code::BalanceTooLarge, 0);
        }
        person.free += r.points;
        r.state = RedemptionState::Reversed;
        let (free, held) = (person.free, person.held);
        let view = r.view(member, r.state, free);
        let item = r.item;
        let units_back = self.sales[self.items[item as usize].sale as usize].phase < 2;
        let record = Reversed {
            member: MemberId::new(member),
            id,
            item: view.item,
            quantity: view.quantity,
            points: view.points,
            free_after: Points::new(free),
            held_after: Points::new(held),
            units_back,
            key: KeyHash::new(key),
            at: NodeTime::new(now),
            note: note.clone(),
        };
        let quantity = u64::from(view.quantity.get());
        if units_back {
            self.left.given_back.push((item, quantity));
            self.left.confirmed.push((item, -i64::from(view.quantity.get())));
        } else {
            let book = self.slots.entry(slot).or_default();
            book.settled.entry(item).or_default().1 += quantity;
        }
        self.write(slot, record.into());
        let outcome = Outcome::Redemption { view, replayed: true };
        self.remember_admin(slot, key, AdminUse { body, free, held, at: now, outcome });
        Outcome::Redemption { view, replayed: false }
    }
}
