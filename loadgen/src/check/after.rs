//! After the drain: every answer is held against what can be found.

use std::collections::HashMap;
use std::time::Duration;

use crate::check::before::Before;
use crate::check::view::{self, Now, Redemption, Redemptions};
use crate::check::{CheckError, Checked, Options, points, store};
use crate::http::once::{Ask, Reply, ask_each};
use crate::plan::{Plan, RedeemWork, Work};
use crate::run::Outcomes;
use crate::work::accepted::{Accepted, Finding, ItemCount, Ledger, State};
use crate::work::redeem::{choose, key, running_weights};

/// An accepted redemption, and what the API says of it now.
#[derive(Clone, Debug)]
pub struct Seen<'a> {
    pub number: u64,
    pub accepted: &'a Accepted,
    pub now: Now,
}

/// Checks the run's ledger; findings are added to it.
pub fn after(
    run: &mut Outcomes,
    before: &Before,
    options: &Options,
) -> Result<Checked, CheckError> {
    let plan = run.plan.clone();
    let Work::Redeem(work) = &plan.work else { return Ok(Checked::default()) };
    let mut checked = Checked::default();
    let check = Check { plan: &plan, work, options, before };
    check.resolve_unknown(&mut run.ledger, &mut checked)?;
    let (seen, mut found) = check.find_and_count(&run.ledger, &mut checked)?;
    check.limits(&seen, &mut found);
    points::check(&check, &seen, &mut checked, &mut found)?;
    if let Some(store) = &options.store {
        store::check(store, &check, &seen, &mut checked, &mut found)?;
    }
    for finding in found {
        run.ledger.findings.push(finding);
    }
    Ok(checked)
}

/// What the steps of the check have in common.
pub struct Check<'a> {
    pub plan: &'a Plan,
    pub work: &'a RedeemWork,
    pub options: &'a Options,
    pub before: &'a Before,
}

impl Check<'_> {
    /// Names a request in a finding.
    pub fn name(&self, number: u64, accepted: &Accepted) -> String {
        let sku = &self.work.items[accepted.item as usize].sku;
        format!(
            "member {}, key {}, redemption {} of {sku}",
            accepted.member,
            key(self.plan.seed, number),
            accepted.id
        )
    }

    /// Asks for each, and hands the answers on in their order.
    pub fn ask(
        &self,
        asks: impl IntoIterator<Item = Ask>,
        what: &str,
        see: impl FnMut(Reply) -> Result<(), CheckError>,
    ) -> Result<(), CheckError> {
        ask_each(&self.plan.targets, asks, self.options.patience(), what, see)
    }

    /// Requests whose answer was lost are asked for by their key.
    fn resolve_unknown(
        &self,
        ledger: &mut Ledger,
        checked: &mut Checked,
    ) -> Result<(), CheckError> {
        let mut numbers: Vec<u64> = ledger.unknown.iter().copied().collect();
        numbers.sort_unstable();
        let weights = running_weights(self.work);
        let choice = |n| choose(self.work, &weights, self.plan.seed, n);
        let path = |n| format!("/v1/members/me/redemptions?key={}", key(self.plan.seed, n));
        let asks = numbers.iter().map(|&n| (path(n), Some(choice(n).member)));
        let mut left = numbers.iter().copied();
        self.ask(asks, "unknown requests", |reply| {
            let number = left.next().expect("as many answers as asks");
            if reply.status == 404 {
                checked.resolved_without_effect += 1;
                ledger.unknown.remove(&number);
                return Ok(());
            }
            let list: Redemptions = view::parse(&path(number), &reply)?;
            ledger.unknown.remove(&number);
            let choice = choice(number);
            if list.redemptions.len() > 1 {
                let ids: Vec<_> = list.redemptions.iter().map(|r| &*r.id).collect();
                let text = format!(
                    "member {}, key {}: one key, {} redemptions: {}",
                    choice.member,
                    key(self.plan.seed, number),
                    ids.len(),
                    ids.join(", ")
                );
                ledger.findings.push(Finding { kind: "unasked-effect", text });
            }
            let Some(r) = list.redemptions.into_iter().next() else {
                checked.resolved_without_effect += 1;
                return Ok(());
            };
            checked.resolved_with_effect += 1;
            let accepted = Accepted {
                member: choice.member,
                id: r.id.into(),
                item: choice.item as u16,
                quantity: r.quantity,
                points: r.points,
                balance: 0,
                state: State::Unknown,
                body_hash: 0,
                answers: 0,
                answered_at: 0,
            };
            let count = ledger.by_item.entry(choice.item).or_default();
            count.accepted += 1;
            count.units += u64::from(r.quantity);
            count.points += r.points;
            ledger.accepted.insert(number, accepted);
            Ok(())
        })
    }

    /// Looks at redemptions and stock together; again, if a hold ended between the two looks.
    fn find_and_count<'l>(
        &self,
        ledger: &'l Ledger,
        checked: &mut Checked,
    ) -> Result<(Vec<Seen<'l>>, Vec<Finding>), CheckError> {
        const LOOKS: u32 = 10;
        for look in 1.. {
            let (mut now, mut found) = (checked.clone(), Vec::new());
            let seen = self.find_accepted(ledger, &mut now, &mut found)?;
            self.stock(ledger, &seen, &mut now, &mut found)?;
            let may_move = seen.iter().any(|s| s.now.state() == "held");
            let differs = found.iter().any(|f| f.kind == "units-differ");
            if look == LOOKS || !(differs && may_move) {
                *checked = now;
                return Ok((seen, found));
            }
            std::thread::sleep(Duration::from_millis(300));
        }
        unreachable!("the last look returns")
    }

    /// Each accepted redemption is there for its member, as it was answered.
    fn find_accepted<'l>(
        &self,
        ledger: &'l Ledger,
        checked: &mut Checked,
        found: &mut Vec<Finding>,
    ) -> Result<Vec<Seen<'l>>, CheckError> {
        let mut all: Vec<_> = ledger.accepted.iter().map(|(&n, a)| (n, a)).collect();
        all.sort_unstable_by_key(|(n, _)| *n);
        let path = |a: &Accepted| format!("/v1/redemptions/{}", a.id);
        let asks = all.iter().map(|(_, a)| (path(a), Some(a.member)));
        let mut left = all.iter();
        let mut seen = Vec::with_capacity(all.len());
        let mut ids: HashMap<&str, u64> = HashMap::new();
        self.ask(asks, "accepted redemptions", |reply| {
            let &(number, a) = left.next().expect("as many answers as asks");
            if let Some(other) = ids.insert(&a.id, number) {
                let other = key(self.plan.seed, other);
                let text = format!("{}: key {other} got the same id", self.name(number, a));
                found.push(Finding { kind: "id-given-twice", text });
            }
            if reply.status == 404 {
                let text = format!(
                    "{}: answered 201 {} times, and is not there",
                    self.name(number, a),
                    a.answers
                );
                found.push(Finding { kind: "lost", text });
                return Ok(());
            }
            let now: Redemption = view::parse(&path(a), &reply)?;
            self.compare(number, a, &now, found);
            checked.found_over_api += 1;
            seen.push(Seen { number, accepted: a, now: now.now() });
            Ok(())
        })?;
        Ok(seen)
    }

    fn compare(&self, number: u64, a: &Accepted, now: &Redemption, found: &mut Vec<Finding>) {
        let sku = &self.work.items[a.item as usize].sku;
        let same =
            (&*now.id, &now.sku, now.quantity, now.points) == (&*a.id, sku, a.quantity, a.points);
        // A hold nobody decided about ends by itself, sooner or later.
        let expected: &[&str] = match a.state {
            State::Confirmed => &["confirmed"],
            State::Released => &["cancelled"],
            State::Held => &["held", "expired"],
            State::Unknown => &["held", "confirmed", "cancelled", "expired"],
        };
        if !same || !expected.contains(&&*now.state) {
            let text = format!(
                "{}: was told {} units, {} points, {:?}; now it is {} of {}, {} points, {}",
                self.name(number, a),
                a.quantity,
                a.points,
                a.state,
                now.quantity,
                now.sku,
                now.points,
                now.state
            );
            found.push(Finding { kind: "not-as-answered", text });
        }
    }

    /// No more than there was; nothing taken that nobody was told of; no "sold out" in vain.
    fn stock(
        &self,
        ledger: &Ledger,
        seen: &[Seen<'_>],
        checked: &mut Checked,
        found: &mut Vec<Finding>,
    ) -> Result<(), CheckError> {
        let (admin, timeout) = (&self.options.admin, self.options.timeout);
        let sale = view::sale(&self.plan.targets, admin, &self.work.sale, timeout)?;
        for (index, item) in self.work.items.iter().enumerate() {
            let of_item = seen.iter().filter(|s| s.accepted.item as usize == index);
            let (mut mine, ended): (Vec<_>, Vec<_>) = of_item.partition(|s| s.now.is_live());
            let live = units(&mine);
            let before = self.before.items[index];
            let sku = &item.sku;
            let count = ledger.by_item.get(&index).copied().unwrap_or_default();
            if let Some(bound) = before.bound
                && live > bound
            {
                mine.sort_unstable_by_key(|s| (s.accepted.answered_at, s.number));
                let mut left = bound;
                let fits = |s: &&&Seen<'_>| {
                    let rest = left.checked_sub(s.now.quantity.into());
                    left = rest.unwrap_or(0);
                    rest.is_some()
                };
                let beyond = mine[mine.iter().take_while(fits).count()];
                let text = format!(
                    "{sku}: {live} units are accepted, and there were {bound}; the first beyond \
                     them: {}",
                    self.name(beyond.number, beyond.accepted)
                );
                found.push(Finding { kind: "oversold", text });
            }
            let Some(now) = sale.items.iter().find(|i| i.sku == *sku) else {
                if count == ItemCount::default() {
                    continue;
                }
                return Err(self.no_units(sku, "is not among the sale's items"));
            };
            let taken = now.held.zip(now.confirmed).map(|(held, confirmed)| held + confirmed);
            if let Some((after, before)) = taken.zip(before.taken)
                && after != before + live
            {
                let text = format!(
                    "{sku}: {live} units are accepted in this run, and {} were taken ({})",
                    i128::from(after) - i128::from(before),
                    self.about(&count)
                );
                found.push(Finding { kind: "units-differ", text });
            }
            if count.sold_out == 0 {
                continue;
            }
            let free = now.unsold().ok_or_else(|| self.no_units(sku, "has no free units"))?;
            checked.undersold += free;
            if let (Some(number), true) = (count.first_final, free > 0) {
                let text = format!(
                    "{sku}: {} requests (key {} first) were told that it is sold out for good, \
                     and {free} units are free",
                    count.sold_out_finally,
                    key(self.plan.seed, number)
                );
                found.push(Finding { kind: "undersold", text });
                continue;
            }
            // Whoever was refused could have had what was free then: fewer than one request wants,
            // and since then came what holds gave back, and what was added.
            let came_back = units(&ended) + before.held.unwrap_or(0);
            let added = now.total.zip(before.total).map_or(0, |(a, b)| a.saturating_sub(b));
            let may_be_free = came_back + added + u64::from(self.work.quantity) - 1;
            // A node of several may have none for a moment: then others are accepted after it.
            let is_shared = now.is_leased() || self.plan.targets.len() > 1;
            let has_ended = is_shared && count.last_accepted > count.last_refused;
            if free > may_be_free && !has_ended {
                let text = format!(
                    "{sku}: {} requests were refused for stock, and {free} units are free, of \
                     which {came_back} came back from holds ({})",
                    count.sold_out,
                    self.about(&count)
                );
                found.push(Finding { kind: "undersold", text });
            }
        }
        Ok(())
    }

    /// The requests that an item's figures are about.
    fn about(&self, count: &ItemCount) -> String {
        let name = |number: Option<u64>| number.map(|n| key(self.plan.seed, n));
        let known = [
            ("refused first: key", name(count.first_refused)),
            ("refused last: key", name(count.last_refused)),
            ("accepted last: key", name(count.last_accepted)),
        ];
        let words: Vec<_> =
            known.into_iter().filter_map(|(what, key)| Some(format!("{what} {}", key?))).collect();
        words.join(", ")
    }

    fn no_units(&self, sku: &str, what: &str) -> CheckError {
        let path = format!("/v1/sales/{}", self.work.sale);
        CheckError::Answer { path, detail: format!("{sku} {what}") }
    }

    /// No member has more than the limit.
    fn limits(&self, seen: &[Seen<'_>], found: &mut Vec<Finding>) {
        let mut had: HashMap<(u64, u16), (u64, u64)> = HashMap::new();
        for s in seen.iter().filter(|s| s.now.is_live()) {
            let entry = had.entry((s.accepted.member, s.accepted.item)).or_default();
            *entry = (entry.0 + u64::from(s.now.quantity), s.number);
        }
        for ((member, item), (units, last)) in had {
            let limit = self.before.items[item as usize].limit;
            if let Some(limit) = limit.filter(|&limit| units > limit) {
                let text = format!(
                    "member {member} has {units} units of {}, and the limit is {limit} (last key \
                     {})",
                    self.work.items[item as usize].sku,
                    key(self.plan.seed, last)
                );
                found.push(Finding { kind: "limit-passed", text });
            }
        }
    }
}

/// What some redemptions hold together.
fn units(of: &[&Seen<'_>]) -> u64 {
    of.iter().map(|s| u64::from(s.now.quantity)).sum()
}
