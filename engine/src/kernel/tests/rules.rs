//! The rules that were each found as a failing history: the history, as a test.

use super::*;
use crate::kernel::record::SaleChange;
use crate::kernel::slot::ADMIN_KEY_RETENTION_MS;
use crate::kernel::slot::SlotState;

/// Without the rule: the cancelled unit was sold again by another shard, power failed between the
/// two records, and it was sold twice.
#[test]
fn a_cancelled_unit_is_not_available_before_its_record_is_durable() {
    let mut bed = Bed::new();
    bed.stock.0.borrow_mut()[0] = 1;
    let id = view(&bed.ask(&hold(7, "a", 0, 1))).id;
    bed.ask(&cancel(7, id));
    assert_eq!(bed.effects.given_back, [(ItemIndex::new(0), Quantity::new(1))]);
    assert_eq!(bed.stock.free(0), 0, "only the caller lets it in, once the record is durable");
    assert_eq!(code(&bed.ask(&redeem(8, "b", 0, 1))), Some((Code::SoldOut, 0)));
}

#[test]
fn an_expired_and_a_reversed_unit_wait_for_their_records_too() {
    let mut bed = Bed::new();
    bed.ask(&hold(7, "a", 0, 1));
    bed.now += 1000;
    assert_eq!(bed.expire(), 1);
    assert_eq!(bed.effects.given_back, [(ItemIndex::new(0), Quantity::new(1))]);
    let id = view(&bed.ask(&redeem(7, "b", 0, 2))).id;
    assert_eq!(bed.effects.confirmed, [(ItemIndex::new(0), 2)]);
    bed.ask(&reverse(id, "r"));
    assert_eq!(bed.effects.given_back, [(ItemIndex::new(0), Quantity::new(2))]);
    assert_eq!(bed.effects.confirmed, [(ItemIndex::new(0), -2)]);
    assert_eq!(bed.stock.free(0), 10 - 1 - 2);
}

/// Without the rule: an id made of member and key came twice, and the second row was lost.
#[test]
fn ids_stay_unique_when_a_key_is_used_again_in_a_later_sale() {
    let mut bed = Bed::new();
    let first = view(&bed.ask(&redeem(7, "a", 0, 1))).id;
    bed.shard.catalog_mut().change(SaleIndex::new(0), SaleChange::Ended);
    bed.drop_keys(0);
    add_sale(&mut bed.shard, SalePhase::Open, false);
    let second = view(&bed.ask(&redeem(7, "a", 2, 1))).id;
    assert_ne!(first, second);
    assert_eq!((first.at(), first.slot()), (second.at(), second.slot()), "told apart by number");
    // Not even a restart in between begins the numbers anew.
    let slot = Slot::of(member(7));
    let mut bytes = Vec::new();
    bed.shard.slot(slot).encode(&mut bytes);
    assert_eq!(SlotState::decode(&bytes).expect("a snapshot").totals().begun, 2);
}

#[test]
fn a_dropped_key_is_told_key_expired() {
    let mut bed = Bed::new();
    bed.ask(&redeem(7, "a", 0, 1));
    bed.shard.catalog_mut().change(SaleIndex::new(0), SaleChange::Ended);
    let again = bed.ask(&redeem(7, "a", 0, 1));
    assert!(matches!(again, Outcome::Redemption { replayed: true, .. }), "until it is dropped");
    bed.drop_keys(0);
    assert_eq!(code(&bed.ask(&redeem(7, "a", 0, 1))), Some((Code::KeyExpired, 0)));
    assert_eq!(code(&bed.ask(&redeem(700, "never", 1, 1))), Some((Code::KeyExpired, 0)));
    // A shard that starts from the slots alone knows it as well.
    let mut restarted = shard_without_slots();
    add_sale(&mut restarted, SalePhase::Ended, false);
    let slot = Slot::of(member(7));
    let mut bytes = Vec::new();
    bed.shard.slot(slot).encode(&mut bytes);
    let state = SlotState::decode(&bytes).expect("a snapshot");
    restarted.adopt_slot(slot, Some(Box::new(state)));
    let now = NodeTime::new(bed.now);
    let outcome = restarted.decide(now, &redeem(7, "a", 0, 1), &bed.stock, &mut bed.effects);
    assert_eq!(code(&outcome), Some((Code::KeyExpired, 0)));
    assert_eq!(restarted.item_counts()[0].confirmed, 1, "the unit stays sold");
}

#[test]
fn an_open_hold_outlives_the_dropping_of_its_sales_keys() {
    let mut bed = Bed::new();
    let id = view(&bed.ask(&hold(7, "a", 0, 2))).id;
    bed.ask(&redeem(7, "b", 0, 1));
    bed.shard.catalog_mut().change(SaleIndex::new(0), SaleChange::Ended);
    bed.drop_keys(0);
    let again = bed.ask(&hold(7, "a", 0, 2));
    assert!(matches!(again, Outcome::Redemption { replayed: true, .. }), "{again:?}");
    assert_eq!(code(&bed.ask(&redeem(7, "b", 0, 1))), Some((Code::KeyExpired, 0)));
    assert_eq!(view(&bed.ask(&confirm(7, id))).state, RedemptionState::Confirmed);
    // What has finished by the second time goes.
    bed.drop_keys(0);
    assert_eq!(code(&bed.ask(&confirm(7, id))), Some((Code::RedemptionNotFound, 0)));
    // Reads tell that memory is not all there is, but not of a slot that is not the member's.
    let read = |whose, id| Command::ReadRedemption { member: Some(member(whose)), id };
    let list = Command::ListRedemptions { member: member(7), before: None, limit: 9 };
    let nothing = Outcome::Redemptions { views: Vec::new(), forgotten_sales: 1 };
    assert_eq!(bed.ask(&list), nothing);
    let by_key = Command::ReadKey { member: member(7), key: key("a") };
    assert_eq!(code(&bed.ask(&by_key)), Some((Code::RedemptionNotFound, 1)));
    assert_eq!(code(&bed.ask(&read(7, id))), Some((Code::RedemptionNotFound, 1)));
    assert_eq!(code(&bed.ask(&read(700, id))), Some((Code::RedemptionNotFound, 0)));
    assert_eq!(bed.shard.item_counts()[0].confirmed, 3);
}

#[test]
fn holding_and_cancelling_in_a_loop_is_bounded_and_no_release_is_refused() {
    let mut bed = Bed::new();
    let third = view(&bed.ask(&hold(7, "third", 0, 1))).id;
    for turn in 0..2 {
        let id = view(&bed.ask(&hold(7, &format!("turn {turn}"), 0, 1))).id;
        bed.ask(&cancel(7, id));
    }
    assert_eq!(code(&bed.ask(&hold(7, "a", 0, 1))), Some((Code::HoldAllowanceSpent, 2)));
    assert_eq!(view(&bed.ask(&cancel(7, third))).state, RedemptionState::Cancelled);
    assert!(code(&bed.ask(&redeem(7, "one step", 0, 1))).is_none(), "one step is no hold");
    assert!(code(&bed.ask(&hold(7, "other item", 1, 1))).is_none(), "counted per item");
    assert!(code(&bed.ask(&hold(8, "other member", 0, 1))).is_none(), "counted per member");
}

#[test]
fn a_hold_may_be_confirmed_until_its_own_end_whatever_the_sales_state() {
    for change in [SaleChange::Paused, SaleChange::Ended] {
        let mut bed = Bed::new();
        let id = view(&bed.ask(&hold(7, "a", 0, 1))).id;
        bed.shard.catalog_mut().change(SaleIndex::new(0), change);
        bed.now += 999;
        assert_eq!(view(&bed.ask(&confirm(7, id))).state, RedemptionState::Confirmed);
        assert!(code(&bed.ask(&hold(7, "b", 0, 1))).is_some());
    }
}

#[test]
fn a_hold_whose_time_has_come_is_expired_first_by_whoever_asks() {
    for command in [confirm, cancel] {
        let mut bed = Bed::new();
        let id = view(&bed.ask(&hold(7, "a", 0, 1))).id;
        bed.now += 1000;
        let expected = Some((Code::WrongState, RedemptionState::Expired as u64));
        assert_eq!(code(&bed.ask(&command(7, id))), expected);
        assert!(matches!(&bed.records()[..], [Record::Released(r)] if r.expired));
        assert_eq!(bed.expire(), 0, "it is expired once");
        assert_eq!(bed.balance(7), (10_000, 0));
    }
}

/// A deadline that has passed stays passed: node time never goes back, and what it did is written
/// down one way.
#[test]
fn a_clock_set_back_reopens_nothing() {
    let mut bed = Bed::new();
    let id = view(&bed.ask(&hold(7, "a", 0, 1))).id;
    bed.now += 1000;
    bed.expire();
    bed.shard.catalog_mut().change(SaleIndex::new(0), SaleChange::Ended);
    bed.now -= 3_600_000;
    bed.shard.catalog_mut().change(SaleIndex::new(0), SaleChange::Opened);
    assert_eq!(code(&bed.ask(&redeem(7, "b", 0, 1))), Some((Code::SaleEnded, 0)));
    let expired = Some((Code::WrongState, RedemptionState::Expired as u64));
    assert_eq!(code(&bed.ask(&confirm(7, id))), expired);
    // And a new redemption's id differs from all older ones, though its time is an older one.
    add_sale(&mut bed.shard, SalePhase::Open, false);
    let later = view(&bed.ask(&redeem(7, "c", 2, 1))).id;
    assert!(later.at() < id.at() && later.slot_seq() > id.slot_seq());
}

/// Without the rule: a second run of an import after a crash re-inflated spent points.
#[test]
fn opening_an_account_again_leaves_it_as_it_is() {
    let mut bed = Bed::new();
    bed.ask(&redeem(7, "a", 0, 1));
    let again = bed.ask(&open(7, 10_000));
    assert!(matches!(again, Outcome::Account { view, replayed: true } if view.free.get() == 9900));
    assert!(bed.effects.is_empty());
}

#[test]
fn retried_steps_answer_as_the_first_time_and_leave_nothing() {
    let mut bed = Bed::new();
    let first = view(&bed.ask(&hold(7, "a", 0, 1)));
    let second = view(&bed.ask(&hold(7, "b", 0, 1)));
    let confirmed = view(&bed.ask(&confirm(7, first.id)));
    let cancelled = view(&bed.ask(&cancel(7, second.id)));
    bed.ask(&debit(7, "d", 500));
    for (command, expected) in [
        (hold(7, "a", 0, 1), first),
        (hold(7, "b", 0, 1), second),
        (confirm(7, first.id), confirmed),
        (cancel(7, second.id), cancelled),
    ] {
        let again = bed.ask(&command);
        assert_eq!(again, Outcome::Redemption { view: expected, replayed: true });
        assert!(bed.effects.is_empty());
    }
    let confirmed_is = Some((Code::WrongState, RedemptionState::Confirmed as u64));
    assert_eq!(code(&bed.ask(&cancel(7, first.id))), confirmed_is);
    let cancelled_is = Some((Code::WrongState, RedemptionState::Cancelled as u64));
    assert_eq!(code(&bed.ask(&confirm(7, second.id))), cancelled_is);
}

#[test]
fn another_members_redemption_is_not_there() {
    let mut bed = Bed::new();
    let id = view(&bed.ask(&hold(7, "a", 0, 1))).id;
    let read = |whose: Option<u64>| Command::ReadRedemption { member: whose.map(member), id };
    let not_found = Some((Code::RedemptionNotFound, 0));
    for command in [confirm(8, id), cancel(8, id), read(Some(8))] {
        assert_eq!(code(&bed.ask(&command)), not_found);
        assert!(bed.effects.is_empty());
    }
    assert_eq!(view(&bed.ask(&read(Some(7)))).id, id);
    assert_eq!(view(&bed.ask(&read(None))).id, id);
}

#[test]
fn admin_calls_by_row() {
    let mut bed = Bed::new();
    let max = Points::MAX.get();
    let id = view(&bed.ask(&redeem(8, "a", 0, 1))).id;
    let held = view(&bed.ask(&hold(8, "b", 0, 1))).id;
    let strange = RedemptionId::new(id.at(), id.slot(), JournalId::new(1), id.slot_seq());
    let table = [
        (open(9, max + 1), Some((Code::BalanceTooLarge, 0))),
        (open(0, max), None),
        (credit(0, "k0", 1), Some((Code::BalanceTooLarge, 0))),
        (credit(999, "k1", 1), Some((Code::MemberNotFound, 0))),
        (debit(999, "k1", 0), Some((Code::MemberNotFound, 0))),
        (credit(7, "k2", 0), Some((Code::Invalid, 0))),
        (debit(7, "k2", 0), Some((Code::Invalid, 0))),
        (debit(7, "k2", 10_001), Some((Code::InsufficientPoints, 10_000))),
        (debit(7, "k2", 10_000), None),
        (debit(7, "k2", 10_000), None),
        (debit(7, "k2", 1), Some((Code::KeyReused, 0))),
        (credit(7, "k2", 10_000), Some((Code::KeyReused, 0))),
        (credit(7, "k3", u64::MAX), Some((Code::BalanceTooLarge, 0))),
        (reverse(strange, "r"), Some((Code::RedemptionNotFound, 0))),
        (reverse(held, "r"), Some((Code::WrongState, RedemptionState::Held as u64))),
        (reverse(id, "r"), None),
        (reverse(id, "r"), None),
        (reverse(held, "r"), Some((Code::KeyReused, 0))),
        (reverse(id, "r2"), Some((Code::WrongState, RedemptionState::Reversed as u64))),
    ];
    for (row, (command, expected)) in table.iter().enumerate() {
        assert_eq!(code(&bed.ask(command)), *expected, "row {row}: {command:?}");
    }
    assert_eq!(bed.balance(7), (0, 0));
    assert_eq!(bed.balance(8), (9_900, 100));
}

#[test]
fn a_reversal_retires_the_units_of_an_ended_sale_and_its_key_stays_used() {
    let mut bed = Bed::new();
    let id = view(&bed.ask(&redeem(7, "a", 0, 2))).id;
    bed.shard.catalog_mut().change(SaleIndex::new(0), SaleChange::Ended);
    let first = view(&bed.ask(&reverse(id, "r")));
    assert!(bed.effects.given_back.is_empty() && bed.effects.confirmed.is_empty());
    let counts = bed.shard.item_counts()[0];
    assert_eq!((counts.confirmed, counts.retired), (0, 2));
    let again = bed.ask(&redeem(7, "a", 0, 2));
    assert_eq!(view(&again).state, RedemptionState::Confirmed, "the first answer, once more");
    // The operator's key outlives the redemption.
    bed.drop_keys(0);
    let again = bed.ask(&reverse(id, "r"));
    assert_eq!(again, Outcome::Redemption { view: first, replayed: true });
}

#[test]
fn admin_keys_are_forgotten_after_their_time_live_and_in_replay() {
    let mut bed = Bed::new();
    bed.ask(&credit(7, "k", 1));
    bed.now += ADMIN_KEY_RETENTION_MS;
    bed.ask(&credit(7, "other", 1));
    let again = bed.ask(&credit(7, "k", 5));
    assert!(matches!(again, Outcome::Account { replayed: false, .. }), "{again:?}");
    let slot = Slot::of(member(7));
    let mut replayed = SlotState::new(slot);
    let mut rest = &bed.journal[..];
    while !rest.is_empty() {
        let length = crate::kernel::record::RecordHead::peek(rest).expect("a head").length;
        let (bytes, behind) = rest.split_at(length);
        rest = behind;
        // Records of other slots are refused, and change nothing.
        let _ = replayed.apply_bytes(bytes);
    }
    assert_eq!(replayed.digest(), bed.shard.slot(slot).digest());
}

#[test]
fn released_and_reversed_units_do_not_count_against_the_limit() {
    let mut bed = Bed::new();
    let bought = view(&bed.ask(&redeem(7, "a", 0, 2))).id;
    let held = view(&bed.ask(&hold(7, "b", 0, 1))).id;
    assert_eq!(code(&bed.ask(&redeem(7, "c", 0, 1))), Some((Code::LimitReached, 3)));
    bed.ask(&cancel(7, held));
    bed.ask(&reverse(bought, "r"));
    assert!(code(&bed.ask(&redeem(7, "c", 0, 3))).is_none());
    assert_eq!(code(&bed.ask(&redeem(7, "d", 0, 1))), Some((Code::LimitReached, 3)));
}

#[test]
fn redemptions_are_listed_newest_first_page_by_page() {
    let mut bed = Bed::new();
    for turn in 0..3 {
        bed.ask(&redeem(7, &format!("{turn}"), 0, 1));
        bed.ask(&redeem(7, &format!("b {turn}"), 1, 1));
    }
    let mut before = None;
    let mut seen = Vec::new();
    loop {
        let command = Command::ListRedemptions { member: member(7), before, limit: 4 };
        let Outcome::Redemptions { views: page, .. } = bed.ask(&command) else { panic!() };
        let Some(last) = page.last() else { break };
        before = Some(last.id);
        seen.extend(page.iter().map(|view| view.id.slot_seq()));
    }
    assert_eq!(seen, [5, 4, 3, 2, 1, 0]);
    assert_eq!(bed.ask(&Command::ReadKey { member: member(7), key: key("1") }), {
        let id = view(&bed.ask(&redeem(7, "1", 0, 1))).id;
        bed.ask(&Command::ReadRedemption { member: None, id })
    });
}

fn shard_without_slots() -> ShardState {
    ShardState::new(JournalId::new(77), KernelLimits { hold_allowance: 2 })
}
