//! Points: every member has what was there before, less what the accepted redemptions cost.

use crate::check::after::{Check, Seen, by_member};
use crate::check::view::{self, Points};
use crate::check::{CheckError, Checked};
use crate::work::accepted::{Finding, Findings, State};

/// Checks the members who have accepted redemptions; and where balances are known from before, all
/// who might have come, so that a charge on one who was refused is found.
pub fn check(
    check: &Check<'_>,
    seen: &[Seen<'_>],
    checked: &mut Checked,
    found: &mut Findings,
) -> Result<(), CheckError> {
    let accepted = by_member(seen).map(|of_member| of_member[0].accepted.member);
    let members: Vec<u64> = match &check.before.balances {
        None => accepted.collect(),
        Some(known) => {
            let work = check.work;
            let places = work.first_member..=work.last_member;
            let mut all: Vec<_> = if places.end() - places.start() < known.len() as u64 {
                places.map(|place| work.member(place)).filter(|m| known.contains_key(m)).collect()
            } else {
                let is_in = |m: &u64| work.listed.is_some() || places.contains(m);
                known.keys().copied().filter(is_in).collect()
            };
            all.extend(accepted);
            all.sort_unstable();
            all.dedup();
            all
        }
    };
    let path = "/v1/members/me/points";
    let asks = members.iter().map(|&m| (path.to_owned(), Some(m)));
    let mut left = members.iter();
    check.ask(asks, "points", |reply| {
        let member = left.next().expect("as many answers as asks");
        let redemptions = of_member(seen, *member);
        if reply.status == 404 && redemptions.is_empty() {
            // A file may name members who have no account yet.
            return Ok(());
        }
        let points: Points = view::parse(path, &reply)?;
        checked.members += 1;
        let of_state = |state: &str| {
            let in_state = redemptions.iter().filter(|s| s.now.state() == state);
            in_state.map(|s| s.now.points).sum::<u64>()
        };
        let (spent, held) = (of_state("confirmed"), of_state("held"));
        let keys = || {
            let names: Vec<_> =
                redemptions.iter().map(|s| check.name(s.number, s.accepted)).collect();
            if names.is_empty() {
                "nothing of theirs was accepted".into()
            } else {
                names.join("; ")
            }
        };
        let before = check.before.balances.as_ref().and_then(|b| b.get(member).copied());
        if let Some(before) = before {
            checked.members_with_known_balance += 1;
            if points.free + points.held + spent != before {
                let text = format!(
                    "member {member} had {before} points, spent {spent}, and has {} ({})",
                    points.free + points.held,
                    keys()
                );
                found.push(Finding { kind: "points-differ", text });
            }
        }
        if points.held < held {
            let text = format!(
                "member {member} has {} points held, and holds for {held} ({})",
                points.held,
                keys()
            );
            found.push(Finding { kind: "points-differ", text });
        }
        if !redemptions.is_empty() && !check.before.may_have_held(*member) {
            chain(*member, redemptions, points, found);
        }
        Ok(())
    })
}

/// A member's part of what is in the order of the members.
fn of_member<'s, 'l>(seen: &'s [Seen<'l>], member: u64) -> &'s [Seen<'l>] {
    let from = seen.partition_point(|s| s.accepted.member < member);
    let to = seen.partition_point(|s| s.accepted.member <= member);
    &seen[from..to]
}

/// Where all were redeemed in one step, each balance follows from the one before it, and the last
/// one is what is left.
fn chain(member: u64, redemptions: &[Seen<'_>], points: Points, found: &mut Findings) {
    let one_step = |s: &Seen<'_>| s.accepted.state == State::Confirmed && s.accepted.answers > 0;
    // A confirmed hold's balance was taken at the hold; without its order it proves nothing here.
    if points.held > 0 || !redemptions.iter().all(|s| one_step(s) && s.now.state() == "confirmed") {
        return;
    }
    let mut balances: Vec<_> =
        redemptions.iter().map(|s| (s.accepted.balance, s.accepted.points)).collect();
    balances.sort_unstable_by_key(|b| std::cmp::Reverse(*b));
    let mut is_chain = balances.last().is_some_and(|(last, _)| *last == points.free);
    is_chain &= balances.windows(2).all(|w| w[0].0 == w[1].0 + w[1].1);
    if !is_chain {
        let text = format!(
            "member {member}: the balances told do not follow from each other: {} and finally {}",
            balances
                .iter()
                .map(|(balance, cost)| format!("{balance} after {cost}"))
                .collect::<Vec<_>>()
                .join(", "),
            points.free
        );
        found.push(Finding { kind: "points-differ", text });
    }
}
