//! Leases as the control thread drives them: their actions become asks, records and moves of the
//! line; answers, durable records and looks at the line become their events.
//!
//! ```text
//! stock authority ─ answers, news ─► lease ─┬─► asks ─► stock authority
//! line, durable sums ─ looks ───────► lease ├─► records ─► journal ─► durable ─► lease
//! ```
//! † *Withdrawals* of one item go one after the other: the pool first, then the record.

use std::collections::{BTreeMap, VecDeque};

use super::dry::DrySpells;
use super::{Answer, BarrierId, Control, Reply, SaleEventKind, Step};
use crate::crash::CrashPoint;
use crate::crash_point;
use crate::kernel::catalog::SalePhase;
use crate::kernel::control::{ASKED_UNKNOWN, ControlCommand, ControlOutcome};
use crate::kernel::record::AdminNote;
use crate::planted::{self, Bug};
use crate::shard::gate::Unavailable;
use crate::stock::ask::{Change, Epoch, HomeStanding, PoolAnswer, PoolNews, Standing};
use crate::stock::gauges::LeaseFigures;
use crate::stock::lease::{
    Elsewhere, Halt, Holder, Known, Lease, LeaseAction, LeaseEvent, LeaseRules, Pace, Phase,
};
use crate::units::{ItemIndex, JournalId, KeyHash, NodeTime, Quantity, SaleIndex};

/// How often a lease that moves is looked at.
const FAST_MS: u64 = 5;
/// How often the others are, unless somebody asks in vain.
const SLOW_MS: u64 = 40;
/// How long an operator's call waits for units to be in the line.
const SETTLE_MS: u64 = 1_000;

type Journals = Box<dyn Fn() -> Option<Vec<JournalId>> + Send>;

/// Told the item, and why the process must end.
type HaltCall = Box<dyn Fn(&str, Halt) + Send>;

/// How leases are taken on this node.
pub struct LeaseParts {
    pub rules: LeaseRules,
    /// Of a node alone, whose pools live in its own journal; else epochs are recorded.
    pub fixed_epoch: Option<Epoch>,
    /// The journals that may hold units, once they are known.
    pub journals: Journals,
    /// Ends the process: the item, and why.
    pub halt: HaltCall,
}

impl LeaseParts {
    /// Of a node alone.
    pub fn alone(journal: JournalId) -> Self {
        Self {
            rules: LeaseRules { nodes: 0, max: u64::MAX },
            fixed_epoch: Some(crate::stock::authority::Embedded::EPOCH),
            journals: Box::new(move || Some(vec![journal])),
            halt: Box::new(|item, why| unreachable!("{item}: {why:?}, by this very process")),
        }
    }
}

struct ItemLease {
    lease: Lease,
    /// Barriers that wait for units to be in the line, each until a time.
    settling: Vec<(BarrierId, NodeTime)>,
    /// The first is at hand.
    withdrawals: VecDeque<(ControlCommand, Answer)>,
    knows_journals: bool,
    asks: u64,
    dry: DrySpells,
    looked_at: NodeTime,
    /// The sale ended, and nothing was said of it yet.
    ended_at: Option<NodeTime>,
}

#[derive(Default)]
pub(super) struct Leases {
    by_item: BTreeMap<ItemIndex, ItemLease>,
    next_look: Option<NodeTime>,
    /// Events that an action has caused, and the one at hand.
    events: VecDeque<(ItemIndex, LeaseEvent)>,
    is_at_work: bool,
    actions: Vec<LeaseAction>,
}

impl Leases {
    pub(super) fn next_look(&self) -> Option<NodeTime> {
        self.next_look
    }
}

impl Control {
    /// At the start: what the authority granted beyond what was accepted is accepted now, what was
    /// returned is told again.
    pub(super) fn resume_leases(&mut self) {
        for item in (0..self.parts.state.items().len() as u32).map(ItemIndex::new) {
            self.begin_lease(item);
        }
    }

    /// Of an item whose definition is durable.
    pub(super) fn begin_lease(&mut self, item: ItemIndex) {
        let stock = self.parts.state.items()[item.get() as usize];
        if self.parts.lease.fixed_epoch.is_some() {
            self.parts.stock.set_total(item, stock.total);
            if !stock.is_home {
                // Another node's journal has all of it.
                return;
            }
        } else {
            self.parts.stock.set_elsewhere(item, stock.total, None, 0, 0);
        }
        let (confirmed, unconfirmed) = self.parts.stock.settled(item);
        let recorded = Epoch { number: stock.epoch, server: stock.server };
        let (added, withdrawn) = (stock.added, stock.withdrawn());
        let journals = (self.parts.lease.journals)();
        let knows_journals = journals.is_some() || !stock.is_home;
        let known = Known {
            epoch: self.parts.lease.fixed_epoch.unwrap_or(recorded),
            standing: Standing {
                accepted: stock.granted,
                returned: stock.returned,
                confirmed,
                unconfirmed,
            },
            home: stock.is_home.then_some(HomeStanding { added, withdrawn, journals }),
            total: stock.total,
            free: self.parts.stock.line(item).free(),
        };
        let (journal, incarnation) = (self.parts.journal, self.parts.incarnation);
        let holder = Holder { item, journal, incarnation };
        let item_lease = ItemLease {
            lease: Lease::new(self.parts.lease.rules, holder, known),
            settling: Vec::new(),
            withdrawals: VecDeque::new(),
            knows_journals,
            asks: 0,
            dry: DrySpells::default(),
            looked_at: self.now,
            ended_at: None,
        };
        self.leases.by_item.insert(item, item_lease);
        self.parts.authority.name(item, &self.item_name(item));
        let is_selling = self.is_selling(item);
        self.lease_event(item, LeaseEvent::Selling(is_selling));
    }

    /// What the item is called among nodes, and towards operators.
    fn item_name(&self, item: ItemIndex) -> String {
        let sale = self.parts.state.sale_of_item(item).and_then(|s| self.parts.state.sale(s));
        let Some(sale) = sale else { return format!("#{item}") };
        let definition = sale.sale.definition();
        let place = item.get() - sale.first_item.get();
        format!("{}/{}", definition.id, definition.items[place as usize].sku)
    }

    fn is_selling(&self, item: ItemIndex) -> bool {
        let sale = self.parts.state.sale_of_item(item).and_then(|s| self.parts.state.sale(s));
        sale.is_some_and(|sale| sale.phase <= SalePhase::Open && !sale.paused)
    }

    pub(super) fn sale_changed(&mut self, sale: SaleIndex) {
        let Some(known) = self.parts.state.sale(sale) else { return };
        let (first, is_over) = (known.first_item.get(), known.phase >= SalePhase::Ended);
        let count = known.sale.definition().items.len() as u32;
        for item in (first..first + count).map(ItemIndex::new) {
            let is_selling = self.is_selling(item);
            if let Some(of) = self.leases.by_item.get_mut(&item)
                && is_over
            {
                of.ended_at = Some(self.now);
            }
            self.lease_event(item, LeaseEvent::Selling(is_selling));
        }
    }

    /// A barrier's part arrives once what can be had is in the line, or after a while.
    pub(super) fn settle(&mut self, item: ItemIndex, barrier: BarrierId) {
        let until = self.now.plus_ms(SETTLE_MS);
        match self.leases.by_item.get_mut(&item) {
            Some(of) => of.settling.push((barrier, until)),
            None => return self.arrive(barrier),
        }
        self.after_lease(item);
    }

    pub(super) fn stock_answer(&mut self, answer: PoolAnswer) {
        crash_point!(CrashPoint::LeaseAfterAnswer);
        self.lease_event(answer.asker.item, LeaseEvent::Answer(answer));
    }

    pub(super) fn stock_news(&mut self, news: PoolNews) {
        match news {
            PoolNews::Changed { item, change } => self.lease_event(item, LeaseEvent::News(change)),
            PoolNews::Reconnected => {
                // It may have been anything.
                let items: Vec<ItemIndex> = self.leases.by_item.keys().copied().collect();
                for item in items {
                    self.lease_event(item, LeaseEvent::News(Change::Turned));
                }
            }
        }
    }

    /// Looks at the lines whose time it is.
    pub(super) fn look_at_leases(&mut self) {
        if self.leases.next_look.is_none_or(|at| self.now < at) {
            return;
        }
        self.leases.next_look = None;
        let now = self.now;
        let due = self.leases.by_item.iter().filter_map(|(item, of)| {
            let pause = match of.lease.pace(now.get()) {
                Pace::Fast => 0,
                Pace::Slow => SLOW_MS,
                Pace::Never => return None,
            };
            (now >= of.looked_at.plus_ms(pause)).then_some(*item)
        });
        let due = due.collect::<Vec<_>>();
        for item in due {
            self.look_at_lease(item);
        }
        let pace = self.leases.by_item.values().map(|of| of.lease.pace(now.get())).min();
        self.look_again(pace.unwrap_or(Pace::Never));
    }

    fn look_again(&mut self, pace: Pace) {
        let pause = match pace {
            Pace::Fast => FAST_MS,
            Pace::Slow => SLOW_MS,
            Pace::Never => return,
        };
        let at = self.now.plus_ms(pause);
        self.leases.next_look = Some(self.leases.next_look.map_or(at, |then| then.min(at)));
    }

    pub(super) fn look_at_lease(&mut self, item: ItemIndex) {
        let free = self.parts.stock.line(item).free();
        let (confirmed, unconfirmed) = self.parts.stock.settled(item);
        let is_missed = self.parts.stock.take_missed(item);
        let now = self.now;
        let of = self.leases.by_item.get_mut(&item).expect("the caller has seen it");
        let passed_ms = now.get().saturating_sub(of.looked_at.get());
        of.dry.see(now, passed_ms, free, is_missed);
        of.looked_at = now;
        let journals = if of.knows_journals { None } else { (self.parts.lease.journals)() };
        if let Some(journals) = journals {
            of.knows_journals = true;
            self.lease_event(item, LeaseEvent::Journals(journals));
        }
        self.lease_event(item, LeaseEvent::Seen { free, confirmed, unconfirmed, is_missed });
        self.report_end(item);
    }

    /// One line at an item's end, from what was measured.
    fn report_end(&mut self, item: ItemIndex) {
        let Some(of) = self.leases.by_item.get_mut(&item) else { return };
        let free = self.parts.stock.line(item).free();
        let is_quiet = free == 0 && of.lease.is_settled();
        let is_due = |at: NodeTime| is_quiet || self.now >= at.plus_ms(3 * SETTLE_MS);
        if !of.ended_at.is_some_and(is_due) {
            return;
        }
        of.ended_at = None;
        let (asks, looks, pool) = (of.asks, of.lease.looks(), of.lease.view().pool);
        let (dry_spells, dry_p99_ms) = (of.dry.count(), of.dry.p99_ms());
        let is_dry = of.dry.is_open();
        // Neither here nor in the pool, and not confirmed: granted on other nodes, as last heard.
        let elsewhere = self.parts.stock.open_elsewhere(item).saturating_sub(pool);
        let (confirmed, _) = self.parts.stock.settled(item);
        let per_1000 = (asks * 1_000).checked_div(confirmed).unwrap_or(0);
        let item = self.item_name(item);
        tracing::info!(
            item,
            confirmed,
            asks,
            asks_per_1000 = per_1000,
            looks,
            dry_spells,
            dry_p99_ms,
            is_dry,
            pool,
            elsewhere,
            stranded = free,
            "the sale has ended on this node",
        );
    }

    pub(super) fn lease_event(&mut self, item: ItemIndex, event: LeaseEvent) {
        self.leases.events.push_back((item, event));
        if std::mem::replace(&mut self.leases.is_at_work, true) {
            return;
        }
        loop {
            let event = self.leases.events.pop_front().or_else(|| {
                let answer = self.parts.authority.answer()?;
                Some((answer.asker.item, LeaseEvent::Answer(answer)))
            });
            let Some((item, event)) = event else { break };
            let Some(of) = self.leases.by_item.get_mut(&item) else { continue };
            let mut actions = std::mem::take(&mut self.leases.actions);
            of.lease.on(self.now.get(), event, &mut actions);
            for action in actions.drain(..) {
                self.act(item, action);
            }
            self.leases.actions = actions;
            self.after_lease(item);
        }
        self.leases.is_at_work = false;
    }

    fn act(&mut self, item: ItemIndex, action: LeaseAction) {
        match action {
            LeaseAction::Ask(asker, ask) => {
                crash_point!(CrashPoint::LeaseBeforeAsk);
                self.leases.by_item.get_mut(&item).expect("it acts").asks += 1;
                self.parts.authority.ask(asker, ask);
            }
            LeaseAction::RecordEpoch(epoch) => {
                let Epoch { number, server } = epoch;
                self.record(&ControlCommand::SeeEpoch { item, epoch: number, server });
                if planted::is(Bug::EpochEnteredEarly) {
                    self.leases.events.push_back((item, LeaseEvent::EpochDurable { epoch }));
                    return self.push(Step::Nothing);
                }
                self.push(Step::EpochSeen { item, epoch });
            }
            LeaseAction::RecordTotal(total) => {
                self.record(&ControlCommand::SeeTotal { item, total });
                self.push(Step::Nothing);
            }
            LeaseAction::RecordGranted { granted, epoch } => {
                if planted::is(Bug::SellBeforeLease) {
                    let before = self.parts.state.items()[item.get() as usize].granted;
                    self.parts.stock.line(item).give_back(granted.saturating_sub(before));
                }
                self.record(&ControlCommand::GrantAccepted { item, granted, epoch });
                // The lease lets the units in, by `Enter`.
                self.effects.given_back.clear();
                self.push(Step::Accepted { item, granted });
            }
            LeaseAction::Enter { quantity } => {
                let times = if planted::is(Bug::GrantEntersTwice) { 2 } else { 1 };
                self.leases.by_item.get_mut(&item).expect("it acts").dry.end(self.now);
                self.parts.stock.line(item).give_back(quantity * times);
            }
            LeaseAction::Take { quantity } => {
                // A record counts units in 32 bits; what is left goes with the next.
                let quantity = quantity.min(u64::from(u32::MAX));
                let line = self.parts.stock.line(item);
                let quantity = if planted::is(Bug::ReturnedStaySold) {
                    line.free().min(quantity)
                } else {
                    let taken = line.take_up_to(quantity);
                    if planted::is(Bug::RecallTakesSold) { quantity } else { taken }
                };
                crash_point!(CrashPoint::LeaseAfterTake);
                self.leases.events.push_front((item, LeaseEvent::Taken { quantity }));
            }
            LeaseAction::RecordReturned { quantity, epoch } => {
                let units = u32::try_from(quantity).expect("no more are taken at once");
                let quantity = Quantity::new(units);
                self.record(&ControlCommand::Return { item, quantity, epoch });
                let returned = self.parts.state.items()[item.get() as usize].returned;
                if planted::is(Bug::ReturnToldEarly) {
                    self.leases.events.push_back((item, LeaseEvent::ReturnDurable { returned }));
                    return self.push(Step::Nothing);
                }
                self.push(Step::Returned { item, returned });
            }
            LeaseAction::Withdrawn { key, quantity } => self.end_withdrawal(item, key, quantity),
            LeaseAction::WithdrawalFound { key, quantity } => {
                self.record_found(item, key, quantity);
            }
            LeaseAction::Elsewhere(of) => {
                if self.parts.lease.fixed_epoch.is_none() {
                    let Elsewhere { total, final_confirmed, open_units, generation } = of;
                    let stock = &self.parts.stock;
                    stock.set_elsewhere(item, total, final_confirmed, open_units, generation);
                }
            }
            LeaseAction::Halt(why) => (self.parts.lease.halt)(&self.item_name(item), why),
        }
    }

    /// Decides what the lease has decided already.
    fn record(&mut self, command: &ControlCommand) {
        self.effects.clear();
        let outcome = self.parts.state.decide(self.now, command, &mut self.effects);
        let is_refused = matches!(outcome, ControlOutcome::Refused(_));
        assert!(!is_refused, "lease and records count the same units: {command:?}, {outcome:?}");
    }

    /// What hangs on the lease, after any event of it.
    fn after_lease(&mut self, item: ItemIndex) {
        let is_shared = self.parts.lease.fixed_epoch.is_none();
        let Some(of) = self.leases.by_item.get_mut(&item) else { return };
        let lease = &of.lease;
        let (is_settled, now) = (lease.is_settled(), self.now);
        let is_over = |until: NodeTime| is_settled || now >= until;
        let arrived: Vec<BarrierId> =
            of.settling.iter().filter(|(_, until)| is_over(*until)).map(|(b, _)| *b).collect();
        of.settling.retain(|(_, until)| !is_over(*until));
        let standing = lease.standing();
        let figures = LeaseFigures {
            phase: if lease.is_reachable() { lease.phase().name() } else { "unreachable" },
            is_open: lease.phase() == Phase::Open,
            is_shared,
            epoch: if is_shared { lease.epoch().number } else { 0 },
            granted: standing.accepted,
            returned: standing.returned,
            pool: lease.view().pool,
            wanted: lease.view().lacking(),
            asks: of.asks,
            looks: lease.looks(),
            dry_ms: of.dry.asked_ms(),
            dry_spells: of.dry.count(),
            dry_p99_ms: of.dry.p99_ms(),
        };
        let has_waiting = !of.settling.is_empty() || of.ended_at.is_some();
        let pace = lease.pace(now.get()).min(if has_waiting { Pace::Fast } else { Pace::Never });
        self.parts.board.publish(item, figures);
        if pace == Pace::Slow || is_shared && lease.waits_for_miss() {
            self.parts.stock.watch(item);
        }
        self.look_again(pace);
        for barrier in arrived {
            self.arrive(barrier);
        }
    }

    // Changes of the total.

    /// Added and withdrawn in all, as the records so far say.
    pub(super) fn home_figures(&self, item: ItemIndex) -> (u64, u64) {
        let stock = &self.parts.state.items()[item.get() as usize];
        (stock.added, stock.withdrawn())
    }

    /// The home's figures are durable.
    pub(super) fn home_changed(&mut self, item: ItemIndex, (added, withdrawn): (u64, u64)) {
        if !planted::is(Bug::FinalOverAdded) || withdrawn > 0 {
            self.parts.stock.set_total(item, added - withdrawn);
        }
        self.lease_event(item, LeaseEvent::HomeDurable { added, withdrawn });
    }

    /// Whether the command takes units off the pool: not so where its key is known, or it is to be
    /// refused.
    pub(super) fn is_withdrawal_of_units(&self, command: &ControlCommand) -> bool {
        let ControlCommand::WithdrawStock { item, asked, key, .. } = *command else { return false };
        let is_known = self.parts.state.stock_answer(item, false, asked, key).is_some();
        let stock = self.parts.state.items().get(item.get() as usize);
        let is_home = stock.is_some_and(|stock| stock.is_home);
        is_home && !is_known && asked > Quantity::ZERO && self.leases.by_item.contains_key(&item)
    }

    pub(super) fn queue_withdrawal(&mut self, command: ControlCommand, to: Answer) {
        let ControlCommand::WithdrawStock { item, .. } = command else {
            unreachable!("the caller has looked")
        };
        let of = self.leases.by_item.get_mut(&item).expect("the caller has looked");
        of.withdrawals.push_back((command, to));
        if of.withdrawals.len() == 1 {
            self.begin_withdrawal(item);
        }
    }

    fn begin_withdrawal(&mut self, item: ItemIndex) {
        loop {
            let of = self.leases.by_item.get_mut(&item).expect("a lease never ends");
            let Some((command, _)) = of.withdrawals.front() else { return };
            let ControlCommand::WithdrawStock { asked, key, .. } = *command else { return };
            if self.parts.state.stock_answer(item, false, asked, key).is_none() {
                let quantity = u64::from(asked.get());
                return self.lease_event(item, LeaseEvent::Withdraw { quantity, key });
            }
            // The one before it had the same key.
            let (command, to) = of.withdrawals.pop_front().expect("just seen");
            self.effects.clear();
            let outcome = self.parts.state.decide(self.now, &command, &mut self.effects);
            self.push(Step::Answer(Reply { to, outcome }));
        }
    }

    fn end_withdrawal(&mut self, item: ItemIndex, of_key: KeyHash, quantity: Option<u64>) {
        let of = self.leases.by_item.get_mut(&item).expect("it acts");
        let Some((command, to)) = of.withdrawals.pop_front() else { return };
        let ControlCommand::WithdrawStock { asked, key, note, .. } = command else { return };
        assert_eq!(key, of_key, "one withdrawal at a time");
        if let Some(quantity) = quantity {
            crash_point!(CrashPoint::LeaseAfterWithdraw);
            let taken = Quantity::new(u32::try_from(quantity).expect("no more than was asked"));
            let command = ControlCommand::WithdrawStock { item, asked, taken, key, note };
            self.effects.clear();
            let outcome = self.parts.state.decide(self.now, &command, &mut self.effects);
            let home = self.home_figures(item);
            let reply = Some(Reply { to, outcome });
            self.push(Step::Withdrawn { item, home, reply });
        } else {
            // A caller that has gone is no error.
            let _ = to.send(Err(Unavailable::StockUnreachable));
        }
        self.begin_withdrawal(item);
    }

    fn record_found(&mut self, item: ItemIndex, key: KeyHash, quantity: u64) {
        let is_known = self.parts.state.stock_answer(item, false, ASKED_UNKNOWN, key).is_some();
        // Its key was answered before: the units are gone all the same.
        let key = if is_known { KeyHash::default() } else { key };
        let taken = Quantity::new(u32::try_from(quantity).unwrap_or(u32::MAX));
        let note = AdminNote {
            operator: "onrush".into(),
            reason: "found withdrawn from the pool".into(),
            reference: String::new(),
        };
        let asked = ASKED_UNKNOWN;
        self.record(&ControlCommand::WithdrawStock { item, asked, taken, key, note });
        let home = self.home_figures(item);
        self.push(Step::Withdrawn { item, home, reply: None });
    }

    pub(super) fn withdrawn(&mut self, item: ItemIndex, home: (u64, u64), reply: Option<Reply>) {
        self.home_changed(item, home);
        let then = match self.parts.state.sale_of_item(item) {
            Some(sale) => super::AfterBarrier::Announce(sale, SaleEventKind::StockChanged(item)),
            None => super::AfterBarrier::Nothing,
        };
        let barrier = self.barrier(1, reply, then);
        self.arrive(barrier);
    }
}
