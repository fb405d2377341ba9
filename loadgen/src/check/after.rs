//! After the drain: every answer is held against what can be found.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::check::again::{self, Again};
use crate::check::before::Before;
use crate::check::view::{self, Now, Redemption, Redemptions};
use crate::check::{CheckError, Checked, Options, points, store};
use crate::http::once::{Ask, Reply, ask_each};
use crate::plan::{Plan, RedeemWork, Work};
use crate::run::Outcomes;
use crate::work::accepted::{Accepted, Finding, Findings, ItemCount, Ledger, State};
use crate::work::redeem::{choose, key, running_weights};

/// An accepted redemption, and what the API says of it now.
#[derive(Clone, Debug)]
pub struct Seen<'a> {
    pub number: u64,
    pub accepted: &'a Accepted,
    pub now: Now,
}

/// Checks the run's ledger; findings are added to it, also those before an error.
pub fn after(
    run: &mut Outcomes,
    before: &Before,
    options: &Options,
) -> Result<Checked, CheckError> {
    let plan = run.plan.clone();
    let Work::Redeem(work) = &plan.work else { return Ok(Checked::default()) };
    let (mut checked, mut found) = (Checked::default(), Findings::default());
    let check = Check { plan: &plan, work, options, before };
    let outcome = check.all(&mut run.ledger, &mut checked, &mut found);
    run.ledger.findings.merge(found);
    outcome.map(|()| checked)
}

/// An item with free units of which somebody was told that there are none.
#[derive(Clone, Copy, Debug)]
struct Short {
    item: usize,
    free: u64,
    came_back: u64,
    /// A node of several may have none for a moment.
    is_shared: bool,
}

/// What the accepted redemptions of an item come to. Units: units.
#[derive(Clone, Copy, Debug, Default)]
struct OfItem {
    live: u64,
    /// Of those, the ones that are held.
    held: u64,
    /// Of those that were given back, by their members, by time, or by the operator.
    ended: u64,
    reversed: u64,
}

/// What the steps of the check have in common.
pub struct Check<'a> {
    pub plan: &'a Plan,
    pub work: &'a RedeemWork,
    pub options: &'a Options,
    pub before: &'a Before,
}

impl Check<'_> {
    fn all(
        &self,
        ledger: &mut Ledger,
        checked: &mut Checked,
        found: &mut Findings,
    ) -> Result<(), CheckError> {
        let lost = self.resolve_unknown(ledger, checked)?;
        let mut asked_again = vec![false; self.work.items.len()];
        let resolved = checked.clone();
        let seen = loop {
            *checked = resolved.clone();
            let mut in_look = Findings::default();
            let look = self.find_and_count(ledger, &lost, checked, &mut in_look);
            let (seen, short) = match look {
                Ok(looked) => looked,
                Err(e) => {
                    found.merge(in_look);
                    return Err(e);
                }
            };
            let open: Vec<_> = (short.into_iter())
                .filter(|s| !self.is_decided(ledger, s, &mut in_look) && !asked_again[s.item])
                .collect();
            if open.is_empty() {
                found.merge(in_look);
                break seen;
            }
            drop(seen);
            for short in open {
                asked_again[short.item] = true;
                let count = ledger.by_item.get(&short.item).copied().unwrap_or_default();
                let Some(number) = count.last_refused else { continue };
                match again::ask(self, ledger, number) {
                    Ok(Again::Refused) => {
                        found.push(self.undersold(ledger, &short, ", the last one again after it"));
                    }
                    Ok(Again::Accepted | Again::Unclear) => {}
                    Err(e) => {
                        found.merge(in_look);
                        return Err(e);
                    }
                }
            }
        };
        self.limits(&seen, found);
        points::check(self, &seen, checked, found)?;
        if let Some(store) = &self.options.store {
            store::check(store, self, &seen, checked, found)?;
        }
        Ok(())
    }

    /// Whether it is known why such an item has free units; where it must not have them, that is a
    /// finding. Where one node of several was the last to refuse, it is not known.
    fn is_decided(&self, ledger: &Ledger, short: &Short, found: &mut Findings) -> bool {
        if !short.is_shared {
            found.push(self.undersold(ledger, short, ""));
            return true;
        }
        // Others were accepted after it.
        let count = ledger.by_item.get(&short.item).copied().unwrap_or_default();
        count.last_accepted >= count.last_refused
    }

    fn undersold(&self, ledger: &Ledger, short: &Short, when: &str) -> Finding {
        let count = ledger.by_item.get(&short.item).copied().unwrap_or_default();
        let text = format!(
            "{}: {} requests were refused for stock{when}, and {} units are free, of which {} came \
             back from holds or lost requests ({})",
            self.work.items[short.item].sku,
            count.sold_out,
            short.free,
            short.came_back,
            self.about(&count)
        );
        Finding { kind: "undersold", text }
    }

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

    /// Requests whose answer was lost are asked for by their key. Returns, per item, the units of
    /// those without an effect: a node may have set them aside until it died.
    fn resolve_unknown(
        &self,
        ledger: &mut Ledger,
        checked: &mut Checked,
    ) -> Result<Vec<u64>, CheckError> {
        let mut lost = vec![0; self.work.items.len()];
        let mut numbers: Vec<u64> = ledger.unknown.iter().copied().collect();
        numbers.sort_unstable();
        let weights = running_weights(self.work);
        let choice = |n| choose(self.work, &weights, self.plan.seed, n);
        let path = |n| format!("/v1/members/me/redemptions?key={}", key(self.plan.seed, n));
        let asks = numbers.iter().map(|&n| (path(n), Some(choice(n).member)));
        let mut left = numbers.iter().copied();
        self.ask(asks, "unknown requests", |reply| {
            let number = left.next().expect("as many answers as asks");
            let choice = choice(number);
            let list = match reply.status {
                404 => Redemptions { redemptions: Vec::new() },
                _ => view::parse(&path(number), &reply)?,
            };
            ledger.unknown.remove(&number);
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
                lost[choice.item] += u64::from(self.work.quantity);
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
        })?;
        Ok(lost)
    }

    /// Looks at redemptions and stock together; again, if a hold ended between the two looks.
    fn find_and_count<'l>(
        &self,
        ledger: &'l Ledger,
        lost: &[u64],
        checked: &mut Checked,
        found: &mut Findings,
    ) -> Result<(Vec<Seen<'l>>, Vec<Short>), CheckError> {
        const LOOKS: u32 = 10;
        let before = checked.clone();
        for look in 1.. {
            *found = Findings::default();
            *checked = before.clone();
            let seen = self.find_accepted(ledger, checked, found)?;
            let short = self.stock(ledger, lost, &seen, checked, found)?;
            let may_move = seen.iter().any(|s| s.now.state() == "held");
            let differs = found.counts().contains_key("units-differ");
            if look == LOOKS || !(differs && may_move) {
                return Ok((seen, short));
            }
            std::thread::sleep(Duration::from_millis(300));
        }
        unreachable!("the last look returns")
    }

    /// Each accepted redemption is there for its member, as it was answered. In the order of the
    /// members.
    fn find_accepted<'l>(
        &self,
        ledger: &'l Ledger,
        checked: &mut Checked,
        found: &mut Findings,
    ) -> Result<Vec<Seen<'l>>, CheckError> {
        self.ids_given_twice(ledger, found);
        let path = |a: &Accepted| format!("/v1/redemptions/{}", a.id);
        let asks = ledger.accepted.values().map(|a| (path(a), Some(a.member)));
        let mut left = ledger.accepted.iter();
        let mut seen = Vec::with_capacity(ledger.accepted.len());
        self.ask(asks, "accepted redemptions", |reply| {
            let (&number, a) = left.next().expect("as many answers as asks");
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
        seen.sort_unstable_by_key(|s| (s.accepted.member, s.number));
        Ok(seen)
    }

    fn ids_given_twice(&self, ledger: &Ledger, found: &mut Findings) {
        let mut ids: Vec<_> = ledger.accepted.iter().map(|(&n, a)| (&*a.id, n)).collect();
        ids.sort_unstable();
        for pair in ids.windows(2) {
            let [(id, first), (other, second)] = pair else { continue };
            if id == other {
                let name = self.name(*second, &ledger.accepted[second]);
                let text = format!("{name}: key {} got the same id", key(self.plan.seed, *first));
                found.push(Finding { kind: "id-given-twice", text });
            }
        }
    }

    fn compare(&self, number: u64, a: &Accepted, now: &Redemption, found: &mut Findings) {
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

    /// No more than there was; nothing taken that nobody was told of; no "sold out" for good in
    /// vain. Returns the items of which units are free though somebody was refused.
    fn stock(
        &self,
        ledger: &Ledger,
        lost: &[u64],
        seen: &[Seen<'_>],
        checked: &mut Checked,
        found: &mut Findings,
    ) -> Result<Vec<Short>, CheckError> {
        let (admin, timeout) = (&self.options.admin, self.options.timeout);
        let sale = view::sale(&self.plan.targets, admin, &self.work.sale, timeout)?;
        let sums = self.sums(seen);
        let mut short = Vec::new();
        for (index, item) in self.work.items.iter().enumerate() {
            let OfItem { live, held, ended, reversed } = sums[index];
            let before = self.before.items[index];
            let sku = &item.sku;
            let count = ledger.by_item.get(&index).copied().unwrap_or_default();
            if let Some(bound) = before.bound.filter(|&bound| live > bound) {
                found.push(self.oversold(index, live, bound, seen));
            }
            let Some(now) = sale.items.iter().find(|i| i.sku == *sku) else {
                if count == ItemCount::default() {
                    continue;
                }
                return Err(self.no_units(sku, "is not among the sale's items"));
            };
            if let Some((now_held, confirmed)) = now.held.zip(now.confirmed)
                && let Some((taken_before, held_before)) = before.taken.zip(before.held)
            {
                // Holds from before the run may have ended in it, but for those that are left.
                let left = now_held.checked_sub(held);
                let most_gone = left.and_then(|left| held_before.checked_sub(left));
                let gone = (taken_before + live).checked_sub(now_held + confirmed);
                if gone.is_none() || most_gone.is_none() || gone > most_gone {
                    let text = format!(
                        "{sku}: {live} units are accepted in this run, and {} were taken ({})",
                        i128::from(now_held + confirmed) - i128::from(taken_before),
                        self.about(&count)
                    );
                    found.push(Finding { kind: "units-differ", text });
                }
            }
            if count.sold_out == 0 {
                continue;
            }
            let free = now.unsold().ok_or_else(|| self.no_units(sku, "has no free units"))?;
            checked.undersold += free;
            // What the operator brings back was not to be foreseen.
            let added = now.total.zip(before.total).map_or(0, |(a, b)| a.saturating_sub(b));
            if let (Some(number), true) = (count.first_final, free > added + reversed) {
                let text = format!(
                    "{sku}: {} requests (key {} first) were told that it is sold out for good, \
                     and {free} units are free",
                    count.sold_out_finally,
                    key(self.plan.seed, number)
                );
                found.push(Finding { kind: "undersold", text });
                continue;
            }
            // Holds from before the run may have ended in it: who cannot see them cannot judge.
            let Some(held_before) = before.held else { continue };
            // Whoever was refused could have had what was free then: fewer than one request wants,
            // and since then came what holds gave back, what died with a node, and what was added.
            let mut came_back = ended + held_before + lost[index];
            if held_before > 0 {
                // One of the run's own that ended after it was looked at hides behind those.
                came_back += held;
            }
            if free > came_back + added + u64::from(self.work.quantity) - 1 {
                let is_shared = now.is_leased() || self.plan.targets.len() > 1;
                short.push(Short { item: index, free, came_back, is_shared });
            }
        }
        Ok(short)
    }

    /// Per item of the plan.
    fn sums(&self, seen: &[Seen<'_>]) -> Vec<OfItem> {
        let mut sums = vec![OfItem::default(); self.work.items.len()];
        for s in seen {
            let of_item = &mut sums[s.accepted.item as usize];
            let units = u64::from(s.now.quantity);
            if s.now.is_live() {
                of_item.live += units;
            } else {
                of_item.ended += units;
            }
            match s.now.state() {
                "held" => of_item.held += units,
                "reversed" => of_item.reversed += units,
                _ => {}
            }
        }
        sums
    }

    fn oversold(&self, item: usize, live: u64, bound: u64, seen: &[Seen<'_>]) -> Finding {
        let is_mine = |s: &&Seen<'_>| s.accepted.item as usize == item && s.now.is_live();
        let mut mine: Vec<_> = seen.iter().filter(is_mine).collect();
        mine.sort_unstable_by_key(|s| (s.accepted.answered_at, s.number));
        let mut left = bound;
        let fits = |s: &&&Seen<'_>| {
            let rest = left.checked_sub(s.now.quantity.into());
            left = rest.unwrap_or(0);
            rest.is_some()
        };
        let beyond = mine[mine.iter().take_while(fits).count()];
        let text = format!(
            "{}: {live} units are accepted, and there were {bound}; the first beyond them: {}",
            self.work.items[item].sku,
            self.name(beyond.number, beyond.accepted)
        );
        Finding { kind: "oversold", text }
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
    fn limits(&self, seen: &[Seen<'_>], found: &mut Findings) {
        for of_member in by_member(seen) {
            let mut had: BTreeMap<u16, (u64, u64)> = BTreeMap::new();
            for s in of_member.iter().filter(|s| s.now.is_live()) {
                let entry = had.entry(s.accepted.item).or_default();
                *entry = (entry.0 + u64::from(s.now.quantity), s.number);
            }
            for (item, (units, last)) in had {
                let limit = self.before.items[item as usize].limit;
                if let Some(limit) = limit.filter(|&limit| units > limit) {
                    let text = format!(
                        "member {} has {units} units of {}, and the limit is {limit} (last key {})",
                        of_member[0].accepted.member,
                        self.work.items[item as usize].sku,
                        key(self.plan.seed, last)
                    );
                    found.push(Finding { kind: "limit-passed", text });
                }
            }
        }
    }
}

/// Each member's, one after the other.
pub fn by_member<'s, 'l>(seen: &'s [Seen<'l>]) -> impl Iterator<Item = &'s [Seen<'l>]> {
    seen.chunk_by(|a, b| a.accepted.member == b.accepted.member)
}
