//! After the drain: every answer is held against what can be found.

use std::collections::HashMap;
use std::time::Duration;

use crate::check::before::Before;
use crate::check::view::{self, Redemption, Redemptions};
use crate::check::{CheckError, Checked, Options, points, store};
use crate::http::once::{Reply, ask_all};
use crate::plan::{Plan, RedeemWork, Work};
use crate::run::Outcomes;
use crate::work::accepted::{Accepted, Finding, Ledger, State};
use crate::work::redeem::{choose, key, running_weights};

/// An accepted redemption, and what the API says of it now.
#[derive(Clone, Debug)]
pub struct Seen<'a> {
    pub number: u64,
    pub accepted: &'a Accepted,
    pub now: Redemption,
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

    pub fn ask(
        &self,
        asks: &[(String, Option<u64>)],
        what: &str,
    ) -> Result<Vec<Reply>, CheckError> {
        let options = self.options;
        Ok(ask_all(&self.plan.targets[0], asks, options.timeout, options.quiet, what)?)
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
        let asks: Vec<_> = numbers.iter().map(|&n| (path(n), Some(choice(n).member))).collect();
        for (&number, reply) in numbers.iter().zip(self.ask(&asks, "unknown requests")?) {
            if reply.status == 404 {
                checked.resolved_without_effect += 1;
                ledger.unknown.remove(&number);
                continue;
            }
            let list: Redemptions = view::parse(&path(number), &reply)?;
            ledger.unknown.remove(&number);
            let Some(r) = list.redemptions.into_iter().next() else {
                checked.resolved_without_effect += 1;
                continue;
            };
            checked.resolved_with_effect += 1;
            let choice = choice(number);
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
        }
        Ok(())
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
            let may_move = seen.iter().any(|s| s.now.state == "held");
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
        let asks: Vec<_> = all.iter().map(|(_, a)| (path(a), Some(a.member))).collect();
        let mut seen = Vec::with_capacity(all.len());
        let mut ids: HashMap<&str, u64> = HashMap::new();
        for ((number, a), reply) in all.into_iter().zip(self.ask(&asks, "accepted redemptions")?) {
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
                continue;
            }
            let now: Redemption = view::parse(&path(a), &reply)?;
            self.compare(number, a, &now, found);
            checked.found_over_api += 1;
            seen.push(Seen { number, accepted: a, now });
        }
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

    /// No more than there was; nothing taken that nobody was told of; no final "sold out" in vain.
    fn stock(
        &self,
        ledger: &Ledger,
        seen: &[Seen<'_>],
        checked: &mut Checked,
        found: &mut Vec<Finding>,
    ) -> Result<(), CheckError> {
        let admin = self.options.admin.as_ref();
        let timeout = self.options.timeout;
        let sale = view::sale(&self.plan.targets[0], admin, &self.work.sale, timeout)?;
        for (index, item) in self.work.items.iter().enumerate() {
            let mine = seen.iter().filter(|s| s.accepted.item as usize == index);
            let live: u64 =
                mine.filter(|s| s.now.is_live()).map(|s| u64::from(s.now.quantity)).sum();
            let before = self.before.items[index];
            let sku = &item.sku;
            let bound = before.total.zip(before.taken).map(|(total, taken)| total - taken);
            if let Some(bound) = bound.or(before.free)
                && live > bound
            {
                let text = format!("{sku}: {live} units are accepted, and there were {bound}");
                found.push(Finding { kind: "oversold", text });
            }
            let Some(now) = sale.items.iter().find(|i| i.sku == *sku) else { continue };
            let taken = now.held.zip(now.confirmed).map(|(held, confirmed)| held + confirmed);
            if let Some((after, before)) = taken.zip(before.taken)
                && after != before + live
            {
                let text = format!(
                    "{sku}: {live} units are accepted in this run, and {} were taken",
                    i128::from(after) - i128::from(before)
                );
                found.push(Finding { kind: "units-differ", text });
            }
            let count = ledger.by_item.get(&index).copied().unwrap_or_default();
            let free = now.free.unwrap_or(0);
            if count.sold_out > 0 {
                checked.undersold += free;
            }
            if let (Some(number), true) = (count.first_final, free > 0) {
                let text = format!(
                    "{sku}: {} requests (key {} first) were told that it is sold out for good, \
                     and {free} units are free",
                    count.sold_out_finally,
                    key(self.plan.seed, number)
                );
                found.push(Finding { kind: "undersold", text });
            } else if count.sold_out > 0 && free > 0 && self.work.holds == 0.0 {
                // Without holds nothing comes back: whoever was refused could have had it.
                let text = format!(
                    "{sku}: {} requests were refused for stock, and {free} units are free",
                    count.sold_out
                );
                found.push(Finding { kind: "undersold", text });
            }
        }
        Ok(())
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
