//! What clients and operators are told, checked against the books as they are told it.

use super::ledger::{Ledger, Told};
use super::plan::Order;
use super::world::{Answer, Asked, SALE, World};
use crate::http::problem::{Help, Kind, Problem};
use crate::http::redeem::Decided;
use crate::kernel::code::Code;
use crate::kernel::command::{
    AccountView, Outcome, RedemptionState as State, RedemptionView, Refusal,
};
use crate::kernel::control::ControlOutcome;
use crate::kernel::record::SaleChange;
use crate::units::{ItemIndex, KeyHash, MemberId};

impl World {
    pub fn check_answer(&mut self, node: usize, asked: Asked, answer: Answer) {
        match (asked, answer) {
            (Asked::Redeem { client, at, other, stopped }, Answer::Redeem(answer)) => {
                let must_refuse = stopped.is_some_and(|resumes| self.is_newest(node, resumes));
                match answer {
                    Ok(decided) => self.redeemed(client, at, other, must_refuse, &decided),
                    Err(problem) => self.not_redeemed(client, at, other, &problem),
                }
            }
            (Asked::Probe { item, is_over }, Answer::Redeem(answer)) => match answer {
                Ok(decided) => {
                    let told = self.told(node, decided.view.id.get());
                    assert_eq!(told.state, State::Confirmed, "I4: a probe");
                }
                Err(problem) => self.probe_refused(node, item, is_over, &problem),
            },
            (Asked::Define, Answer::Control(Ok(ControlOutcome::Defined { .. }))) => {
                assert_eq!(self.nodes[node].ledger.sales.len(), 1, "I4: a definition");
            }
            (Asked::Claim, Answer::Control(Ok(ControlOutcome::Noted))) => {
                self.nodes[node].claim_recorded();
            }
            (Asked::OpenAccount { member }, Answer::Shard(Ok(outcome))) => {
                let Outcome::Account { view, .. } = outcome else { panic!("{outcome:?}") };
                self.nodes[node].ledger.shows(view, member);
            }
            (Asked::Read { member }, Answer::Shard(Ok(Outcome::Account { view, .. }))) => {
                self.nodes[node].ledger.shows(view, member);
            }
            (Asked::Confirm { client, at }, Answer::Shard(Ok(outcome))) => {
                self.stepped(node, client, at, &outcome, &[State::Confirmed, State::Reversed]);
            }
            (Asked::Cancel { client, at }, Answer::Shard(Ok(outcome))) => {
                self.stepped(node, client, at, &outcome, &[State::Cancelled]);
            }
            (Asked::Reverse { client, at }, Answer::Shard(Ok(outcome))) => {
                if matches!(outcome, Outcome::Redemption { replayed: false, .. }) {
                    self.counts.reversed += 1;
                }
                self.stepped(node, client, at, &outcome, &[State::Reversed]);
            }
            (Asked::Move { client, at }, Answer::Shard(Ok(outcome))) => {
                self.moved(node, client, at, &outcome);
            }
            (Asked::Order { at, resumes }, Answer::Control(Ok(outcome))) => {
                self.ordered(node, at, resumes, &outcome);
            }
            (_, Answer::Shard(Err(_)) | Answer::Control(Err(_))) => self.counts.refusals += 1,
            (asked, Answer::Shard(Ok(outcome))) => panic!("{asked:?} was answered {outcome:?}"),
            (asked, Answer::Control(Ok(outcome))) => panic!("{asked:?} was answered {outcome:?}"),
            (asked, Answer::Redeem(_)) => panic!("{asked:?} was answered as a redemption"),
        }
    }

    fn told(&self, node: usize, id: u128) -> &Told {
        let told = self.nodes[node].ledger.redemptions.get(&id);
        told.expect("I4: a redemption was told before it was durable")
    }

    fn redeemed(
        &mut self,
        client: usize,
        at: usize,
        other: bool,
        must_refuse: bool,
        decided: &Decided,
    ) {
        let Decided { view, replayed } = *decided;
        let node = self.clients[client].node;
        assert!(!other, "I6: a key took another body");
        let told = self.told(node, view.id.get());
        let key = &self.clients[client].keys[at];
        let member = self.clients[client].member;
        assert_eq!((told.member, told.key, told.item), (member, key.key, key.item), "I6: whose");
        assert_eq!((told.quantity, told.is_hold), (key.quantity, key.hold), "I6: of what");
        let first = if key.hold { State::Held } else { State::Confirmed };
        assert_eq!(view.state, first, "I6: the first answer's state");
        assert_eq!(view.balance.get(), told.first_free, "I4: the balance told");
        assert_eq!(view.points.get(), told.points, "the price told");
        assert!(replayed || !must_refuse, "a redemption began after its sale was stopped");
        if let Some(answer) = key.answer {
            assert!(replayed, "I6: an answered key had an effect again");
            assert_eq!(answer, view, "I6: another answer to the same request");
        }
        self.clients[client].keys[at].answer = Some(view);
        if replayed {
            self.counts.replays += 1;
        } else {
            self.counts.redemptions += 1;
        }
    }

    fn not_redeemed(&mut self, client: usize, at: usize, other: bool, problem: &Problem) {
        self.counts.refusals += 1;
        let node = self.clients[client].node;
        let key = &self.clients[client].keys[at];
        let ledger = &self.nodes[node].ledger;
        let sale = ledger.sale_of(key.item);
        if matches!(problem.kind, Kind::Overloaded | Kind::Draining | Kind::JournalFull) {
            return;
        }
        if problem.kind == Kind::KeyExpired {
            assert!(sale.are_keys_dropped, "a key expired that no record dropped");
            return;
        }
        if key.answer.is_some() {
            let expected = if other { Some(Kind::KeyReused) } else { None };
            let is_forgotten = sale.are_keys_dropped;
            let is_right = expected == Some(problem.kind) || is_forgotten;
            assert!(is_right, "I6: an answered request was refused: {}", problem.kind.code());
            return;
        }
        let member = self.clients[client].member;
        let quantity = key.quantity + u64::from(other);
        let account = ledger.accounts.get(&member.get());
        match (problem.kind, &problem.help) {
            (Kind::SoldOut, Help::Final(true)) => {
                let item = key.item;
                self.check_final(node, item);
            }
            (Kind::LimitReached, _) => {
                let units = account.and_then(|a| a.units.get(&key.item.get()));
                let (now, most) = units.copied().unwrap_or_default();
                // What is under way may have been more for a moment; at rest nothing is.
                let most = if self.is_at_rest { now } else { most };
                let limit = u64::from(self.shape.limit);
                assert!(most + quantity > limit, "I4: at the limit with {most} + {quantity}");
            }
            (Kind::InsufficientPoints, Help::Balance(balance)) => {
                let was = account.is_some_and(|a| a.past_free.contains(balance));
                assert!(was, "I4: a balance of {balance} was never durable");
                let price = quantity * u64::from(self.shape.price);
                assert!(*balance < price, "{balance} points are enough for {price}");
            }
            (Kind::SaleEnded, _) => {
                assert_eq!(sale.phase, Some(SaleChange::Ended), "the sale has not ended");
            }
            (
                Kind::SoldOut | Kind::SalePaused | Kind::SaleNotOpen | Kind::HoldAllowanceSpent,
                _,
            ) => {}
            (kind, _) => panic!("a good request was refused: {}", kind.code()),
        }
    }

    /// "Sold out" for good: all units of the sale are confirmed, durably.
    fn check_final(&mut self, node: usize, item: ItemIndex) {
        self.counts.finals += 1;
        let units = self.units_of(node, item);
        let up = self.nodes[node].up.as_ref().expect("it answers");
        // A process that was killed between a reversal's sync and its completion has said it before
        // it knew. Nobody was told of the reversal.
        let is_dying = self.nodes[node].dying.is_some();
        if is_dying || (self.shape.is_shared && !self.is_at_rest) {
            // Others' reversals, and units that were added, are heard of a moment later. But never
            // is anything taken for confirmed that was not.
            let total = up.ready.core.stock.total(item).min(units.total);
            let sold = units.ever_confirmed;
            assert!(sold >= total, "sold out for good, of {total}: {units:?}");
            return;
        }
        // Units whose adding is not answered yet do not count yet; and whoever has not heard of
        // some that were added, and sold since, is right all the same.
        let known = up.ready.core.stock.total(item).min(units.total);
        let sold = units.confirmed + units.retired;
        if sold != known && sold != units.total {
            let sides = self.describe(item);
            panic!("node {node} says sold out for good, of {known}: {units:?}, {sides}");
        }
    }

    fn stepped(
        &mut self,
        node: usize,
        client: usize,
        at: usize,
        outcome: &Outcome,
        expected: &[State],
    ) {
        let key = &self.clients[client].keys[at];
        let known: RedemptionView = key.answer.expect("only what was answered is stepped");
        let ledger = &self.nodes[node].ledger;
        let told = &ledger.redemptions[&known.id.get()];
        match outcome {
            Outcome::Redemption { view, .. } => {
                assert!(expected.contains(&told.state), "I4: {:?}, told {:?}", told.state, view);
                assert_eq!(view.id, known.id);
                if view.state != State::Reversed {
                    let balance = told.step_free.unwrap_or(told.first_free);
                    assert_eq!(view.balance.get(), balance, "I6: the step's first answer");
                }
            }
            Outcome::Refused(Refusal { code: Code::WrongState, detail }) => {
                let was_held = told.is_hold && *detail == State::Held as u64;
                let was_confirmed =
                    told.state == State::Reversed && *detail == State::Confirmed as u64;
                let is_durable = *detail == told.state as u64 || was_held || was_confirmed;
                assert!(is_durable, "I4: state {detail} was told, {:?} is durable", told.state);
            }
            Outcome::Refused(Refusal { code: Code::RedemptionNotFound, .. }) => {
                let is_dropped = ledger.sale_of(told.item).are_keys_dropped;
                assert!(is_dropped, "a redemption that was told is not found");
            }
            other => panic!("a step was answered {other:?}"),
        }
    }

    fn moved(&mut self, node: usize, client: usize, at: usize, outcome: &Outcome) {
        let member = self.clients[client].member;
        let asked = &self.clients[client].moves[at];
        match outcome {
            Outcome::Account { view, replayed } => {
                let ledger = &self.nodes[node].ledger;
                ledger.has_admin_key(asked.key);
                ledger.shows(*view, member);
                if let Some(answer) = asked.answer {
                    assert!(*replayed, "I6: an operator's key had an effect again");
                    assert_eq!(answer, *view, "I6: another answer to the same key");
                }
                self.clients[client].moves[at].answer = Some(*view);
            }
            Outcome::Refused(Refusal { code: Code::InsufficientPoints, .. })
                if !asked.is_credit && asked.answer.is_none() => {}
            other => panic!("a credit or debit was answered {other:?}"),
        }
    }

    fn ordered(&mut self, node: usize, at: usize, resumes: u32, outcome: &ControlOutcome) {
        let order = self.orders[at].order;
        let ledger = &self.nodes[node].ledger;
        match outcome {
            ControlOutcome::Changed { changed, .. } => {
                let change = match order {
                    Order::Open => SaleChange::Opened,
                    Order::Pause => SaleChange::Paused,
                    Order::Resume => SaleChange::Resumed,
                    _ => SaleChange::Ended,
                };
                if *changed {
                    for shard in 0..u16::from(self.shape.shards) {
                        let seen = (shard, SALE.get(), change);
                        assert!(ledger.changes_seen.contains(&seen), "a barrier: {seen:?}");
                    }
                }
                let stops = matches!(order, Order::Pause | Order::Close);
                if stops && self.is_newest(node, resumes) {
                    self.is_stopped[node] = true;
                }
            }
            ControlOutcome::Stock { quantity, total, .. } => {
                ledger.has_admin_key(self.orders[at].key);
                let told = (u64::from(quantity.get()), *total);
                if let Some(answer) = self.orders[at].answer {
                    assert_eq!(answer, told, "I6: another answer to the same stock change");
                }
                self.orders[at].answer = Some(told);
                if matches!(order, Order::Withdraw { .. }) {
                    self.counts.withdrawn += told.0;
                }
            }
            ControlOutcome::Refused(Refusal { code: Code::SaleEnded, .. }) => {
                let phase = ledger.sales[0].phase;
                assert_eq!(phase, Some(SaleChange::Ended), "the sale has not ended");
            }
            ControlOutcome::Refused(Refusal { code: Code::SaleNotOpen, .. }) => {}
            other => panic!("{order:?} was answered {other:?}"),
        }
    }

    fn probe_refused(&mut self, node: usize, item: ItemIndex, is_over: bool, problem: &Problem) {
        let units = self.units_of(node, item);
        let is_right = matches!(problem.help, Help::Final(true));
        // Where units are shared, others hear of the last one's sale a moment later.
        let is_over = is_over || !self.shape.is_shared && units.sold() == units.total;
        if problem.kind == Kind::SaleEnded || !is_over && !is_right {
            return;
        }
        assert!(problem.kind == Kind::SoldOut, "a probe: {}", problem.kind.code());
        // Of nothing nothing is sold out.
        let is_special = units.total == 0;
        let leases = || self.describe(item);
        assert!(is_right || is_special, "nothing can come back, but it is not final: {}", leases());
        if is_right {
            self.check_final(node, item);
        }
    }
}

impl Ledger {
    /// An account may be shown only as it durably was at some time.
    fn shows(&self, view: AccountView, member: MemberId) {
        assert_eq!(view.member, member);
        let account = self.accounts.get(&member.get());
        let was = account.is_some_and(|a| a.past_free.contains(&view.free.get()));
        assert!(was, "I4: {view:?} was never durable");
    }

    fn has_admin_key(&self, key: KeyHash) {
        assert!(self.admin_keys.contains_key(&key.get()), "I4: told before it was durable");
    }
}
