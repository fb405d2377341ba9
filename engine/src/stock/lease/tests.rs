//! One test per † rule of the node's side, named for the history that fails without it; and
//! random histories of several nodes, in `histories.rs`; how fast units move, in `pace.rs`.

mod histories;
mod pace;
mod world;

use super::*;
use LeaseAction as A;
use LeaseEvent as E;

const ITEM: ItemIndex = ItemIndex::new(3);
const JOURNAL: JournalId = JournalId::new(7);
const SERVER: KeyHash = KeyHash::new(100);
const OTHER: KeyHash = KeyHash::new(200);
const RULES: LeaseRules = LeaseRules { nodes: 3, max: 1_000 };

fn epoch(number: u32) -> Epoch {
    Epoch { number, server: SERVER }
}

fn standing(accepted: u64, returned: u64) -> Standing {
    Standing { accepted, returned, ..Standing::default() }
}

/// A lease and the time; answers are written by hand.
struct Bed {
    lease: Lease,
    now: u64,
}

impl Bed {
    fn new(known: Known) -> Self {
        let incarnation = Incarnation::new(2);
        let holder = Holder { item: ITEM, journal: JOURNAL, incarnation };
        Self { lease: Lease::new(RULES, holder, known), now: 10_000 }
    }

    /// Of a node that is not the home, and has joined epoch 1 with these units in its line.
    fn open(accepted: u64, returned: u64, free: u64, pool: u64) -> Self {
        let standing = standing(accepted, returned);
        let mut bed =
            Self::new(Known { epoch: epoch(1), standing, home: None, total: 1_000, free });
        let actions = bed.look(free);
        assert!(matches!(actions[..], [A::Ask(_, PoolAsk::Join { .. })]), "{actions:?}");
        let view = PoolView { granted: accepted, returned, pool, ..view(1) };
        let join = PoolAsk::Join { home: None, bump_above: 0 };
        bed.answer(1, join, Some(view), None);
        assert_eq!(bed.lease.phase(), Phase::Open);
        bed
    }

    fn on(&mut self, event: LeaseEvent) -> Vec<LeaseAction> {
        let mut actions = Vec::new();
        self.lease.on(self.now, event, &mut actions);
        actions
    }

    fn look(&mut self, free: u64) -> Vec<LeaseAction> {
        self.on(E::Seen { free, confirmed: 0, unconfirmed: 0, is_missed: false })
    }

    fn answer(
        &mut self,
        under: u32,
        asked: PoolAsk,
        view: Option<PoolView>,
        refusal: Option<PoolRefusal>,
    ) -> Vec<LeaseAction> {
        let under = if under == 0 { Epoch::default() } else { epoch(under) };
        let Holder { item, journal, incarnation } = self.lease.holder;
        let sent = self.lease.out.as_ref().map(|out| out.asker.standing);
        let standing = sent.unwrap_or(self.lease.standing);
        let asker = Asker { item, journal, incarnation, epoch: under, standing };
        self.on(E::Answer(PoolAnswer { asker, asked, view, refusal }))
    }
}

fn view(number: u32) -> PoolView {
    PoolView {
        epoch: epoch(number),
        is_open: true,
        added: 1_000,
        generation: 1,
        ..Default::default()
    }
}

fn asked(actions: &[LeaseAction]) -> Option<PoolAsk> {
    actions.iter().find_map(|action| match action {
        A::Ask(_, ask) => Some(ask.clone()),
        _ => None,
    })
}

/// Ahead of demand.
fn grant(from: u64, up_to: u64) -> PoolAsk {
    PoolAsk::Grant { from, up_to, need: 0, nodes: RULES.nodes, max: RULES.max }
}

/// All of it asked for now.
fn needed(from: u64, up_to: u64) -> PoolAsk {
    PoolAsk::Grant { from, up_to, need: up_to - from, nodes: RULES.nodes, max: RULES.max }
}

/// † [The answer to a look came twice, a return was told in the same words meanwhile, and that ask
/// was lost: the unit stayed with nobody.]
#[test]
fn an_answer_that_comes_again_does_not_stand_for_what_was_told_since() {
    let mut bed = Bed::open(60, 0, 1, 0);
    bed.on(E::News(Change::Wanted));
    let asker = bed.lease.out.clone().expect("it looks").asker;
    let wanted = PoolView { granted: 60, wanted: 1, ..view(1) };
    let asked = PoolAsk::Tell;
    let first = PoolAnswer { asker, asked, view: Some(wanted), refusal: None };
    assert_eq!(bed.on(E::Answer(first.clone())), [A::Take { quantity: 1 }]);
    bed.on(E::Taken { quantity: 1 });
    let told = |actions: &[LeaseAction]| match actions {
        [A::Ask(asker, PoolAsk::Tell)] => asker.standing.returned,
        other => panic!("{other:?}"),
    };
    assert_eq!(told(&bed.on(E::ReturnDurable { returned: 1 })), 1);
    assert_eq!(bed.on(E::Answer(first)), []);
    let lost = Some(PoolRefusal::Unavailable("reset".into()));
    assert_eq!(bed.answer(1, PoolAsk::Tell, None, lost), []);
    bed.now += 50;
    assert_eq!(told(&bed.look(0)), 1, "until the pool has heard of it");
}

#[test]
fn the_home_makes_the_pool_once_and_only_behind_its_first_epochs_record() {
    let home = HomeStanding { added: 1_000, ..HomeStanding::default() };
    let mut bed = Bed::new(Known { home: Some(home.clone()), total: 1_000, ..Known::default() });
    assert_eq!(asked(&bed.look(0)), Some(PoolAsk::Inspect));
    let missing = PoolView { epoch: Epoch { number: 0, server: SERVER }, ..PoolView::default() };
    let actions = bed.answer(0, PoolAsk::Inspect, Some(missing), Some(PoolRefusal::Lost));
    assert_eq!(actions, [A::RecordEpoch(epoch(1))], "nothing is asked before it is durable");
    let create = PoolAsk::Create { home: home.clone() };
    assert_eq!(asked(&bed.on(E::EpochDurable { epoch: epoch(1) })), Some(create.clone()));
    // Its answer was lost: it may have been made, so it is joined and never made again.
    let actions = bed.answer(1, create, None, Some(PoolRefusal::Unavailable("reset".into())));
    assert_eq!(asked(&actions), None);
    bed.now += 100;
    let join = PoolAsk::Join { home: Some(home), bump_above: 0 };
    assert_eq!(asked(&bed.look(0)), Some(join));
}

#[test]
fn units_enter_the_line_only_once_their_record_is_durable() {
    let mut bed = Bed::open(0, 0, 0, 600);
    // Taken ahead at once: a sixth of the pool.
    let actions = bed.answer(1, grant(0, 100), Some(PoolView { granted: 100, ..view(1) }), None);
    assert_eq!(actions[..1], [A::RecordGranted { granted: 100, epoch: 1 }]);
    assert_eq!(bed.on(E::AcceptDurable { granted: 100 })[..1], [A::Enter { quantity: 100 }]);
    assert_eq!(bed.on(E::AcceptDurable { granted: 100 }), [], "once");
}

#[test]
fn a_grant_whose_answer_was_lost_in_a_crash_is_accepted_at_the_next_start() {
    let standing = standing(60, 10);
    let known = Known { epoch: epoch(1), standing, home: None, total: 1_000, free: 5 };
    let mut bed = Bed::new(known);
    let join = PoolAsk::Join { home: None, bump_above: 0 };
    assert_eq!(asked(&bed.look(5)), Some(join.clone()));
    let granted = PoolView { granted: 90, returned: 10, ..view(1) };
    let actions = bed.answer(1, join, Some(granted), None);
    assert_eq!(actions[..1], [A::RecordGranted { granted: 90, epoch: 1 }]);
    assert_eq!(bed.on(E::AcceptDurable { granted: 90 })[..1], [A::Enter { quantity: 30 }]);
}

#[test]
fn a_late_or_repeated_answer_enters_nothing() {
    let mut bed = Bed::open(60, 10, 50, 0);
    for granted in [0, 10, 60, 60] {
        let late = PoolView { granted, ..view(1) };
        assert_eq!(bed.answer(1, grant(0, 60), Some(late), None), []);
    }
}

/// † [The pool was rebuilt without the grant, and granted the same units to another.]
#[test]
fn a_grant_of_an_older_epoch_is_not_taken_even_if_its_answer_was_in_flight() {
    let mut bed = Bed::open(60, 0, 0, 600);
    let late = PoolView { granted: 160, ..view(1) };
    let higher = Some(PoolView { is_open: false, ..view(2) });
    let actions = bed.answer(1, grant(60, 160), higher, Some(PoolRefusal::Epoch));
    assert_eq!(actions, [A::RecordEpoch(epoch(2))]);
    // Not durable yet, and already too late.
    assert_eq!(bed.answer(1, grant(60, 160), Some(late.clone()), None), []);
    let actions = bed.on(E::EpochDurable { epoch: epoch(2) });
    let A::Ask(asker, PoolAsk::Join { .. }) = &actions[0] else { panic!("{actions:?}") };
    assert_eq!((asker.epoch, asker.standing.accepted), (epoch(2), 60));
    assert_eq!(bed.answer(1, grant(60, 160), Some(late), None), []);
}

/// † [Two servers reached the same number without knowing of each other.]
#[test]
fn an_epoch_that_is_not_above_the_recorded_one_is_not_entered_but_raised() {
    let mut bed = Bed::open(60, 0, 60, 0);
    for number in [1, 0] {
        let strange = PoolView { epoch: Epoch { number, server: OTHER }, ..view(1) };
        let ask = asked(&bed.on(E::News(Change::Turned))).expect("it looks");
        let actions = bed.answer(1, ask, Some(strange), Some(PoolRefusal::Epoch));
        assert_eq!(asked(&actions), Some(PoolAsk::Join { home: None, bump_above: 1 }), "{number}");
        // And back.
        let join = PoolAsk::Join { home: None, bump_above: 1 };
        bed.answer(1, join, Some(PoolView { granted: 60, ..view(1) }), None);
    }
}

#[test]
fn a_return_is_told_only_once_its_record_is_durable() {
    let mut bed = Bed::open(60, 0, 60, 0);
    bed.on(E::News(Change::Turned));
    let wanted = PoolView { granted: 60, wanted: 5, ..view(1) };
    let actions = bed.answer(1, PoolAsk::Tell, Some(wanted), None);
    assert_eq!(actions, [A::Take { quantity: 60 }], "nobody asks for one here");
    // A shard was faster with some of them.
    let actions = bed.on(E::Taken { quantity: 58 });
    assert_eq!(actions, [A::RecordReturned { quantity: 58, epoch: 1 }]);
    assert_eq!(asked(&bed.look(0)), None);
    let actions = bed.on(E::ReturnDurable { returned: 58 });
    let A::Ask(asker, PoolAsk::Tell) = &actions[0] else { panic!("{actions:?}") };
    assert_eq!(asker.standing, standing(60, 58));
}

#[test]
fn a_node_that_sells_gives_half_of_what_it_does_not_sell_at_once() {
    let mut bed = Bed::open(60, 0, 60, 0);
    bed.look(50);
    bed.on(E::News(Change::Turned));
    let wanted = PoolView { granted: 60, wanted: 1, ..view(1) };
    assert_eq!(bed.answer(1, PoolAsk::Tell, Some(wanted), None), [A::Take { quantity: 20 }]);
}

/// [The last unit went round among dry nodes, given away before those who had asked for it came
/// again.]
#[test]
fn a_unit_that_has_just_come_is_kept_for_a_moment_though_others_want_it() {
    let mut bed = Bed::open(60, 60, 0, 0);
    let missed = E::Seen { free: 0, confirmed: 0, unconfirmed: 0, is_missed: true };
    assert_eq!(asked(&bed.on(missed)), Some(needed(60, 61)));
    // On its way for longer than demand counts.
    bed.now += 500;
    let got = PoolView { granted: 61, returned: 60, wanted: 1, ..view(1) };
    bed.answer(1, needed(60, 61), Some(got.clone()), None);
    assert_eq!(bed.on(E::AcceptDurable { granted: 61 })[0], A::Enter { quantity: 1 });
    bed.now += 19;
    assert!(!bed.look(1).contains(&A::Take { quantity: 1 }), "for whoever it was asked for");
    bed.now += 1;
    assert!(bed.look(1).contains(&A::Take { quantity: 1 }), "nobody came");
}

/// [A node that had sold its last but one unit kept the last one for ten times as long, while
/// members were refused elsewhere.]
#[test]
fn the_last_units_of_a_node_that_nobody_asks_any_more_go_where_somebody_waits() {
    let mut bed = Bed::open(60, 0, 2, 0);
    bed.look(1);
    bed.on(E::News(Change::Wanted));
    let wanted = PoolView { granted: 60, wanted: 1, ..view(1) };
    assert_eq!(bed.answer(1, PoolAsk::Tell, Some(wanted), None), []);
    bed.now += 19;
    assert_eq!(bed.look(1), [], "it may be sold here");
    assert_eq!(bed.lease.pace(bed.now), Pace::Fast);
    bed.now += 1;
    assert_eq!(bed.look(1), [A::Take { quantity: 1 }]);
}

/// [It asked again in pauses that grew to a fifth of a second, and slept while the unit lay there.]
#[test]
fn a_node_that_waits_for_units_asks_as_soon_as_it_hears_of_some_and_nobody_else_does() {
    let none = PoolView { granted: 60, ..view(1) };
    let mut bed = Bed::open(60, 0, 0, 0);
    assert_eq!(bed.on(E::News(Change::Freed)), [], "it waits for nothing");
    let missed = E::Seen { free: 0, confirmed: 0, unconfirmed: 0, is_missed: true };
    assert_eq!(asked(&bed.on(missed.clone())), Some(needed(60, 61)));
    bed.answer(1, needed(60, 61), Some(none.clone()), None);
    assert_eq!(asked(&bed.on(missed.clone())), None, "nothing has changed");
    assert_eq!(asked(&bed.on(E::News(Change::Wanted))), None, "that was its own");
    let ask = asked(&bed.on(E::News(Change::Freed)));
    assert!(matches!(ask, Some(PoolAsk::Grant { need: 1.., .. })), "{ask:?}");
    bed.answer(1, ask.expect("as above"), Some(none.clone()), None);
    // Whoever it was for has gone; the next one is served at once.
    bed.now += 150;
    assert_eq!(asked(&bed.on(E::News(Change::Freed))), None);
    assert_eq!(asked(&bed.on(missed)), Some(needed(60, 61)));
    bed.answer(1, needed(60, 61), Some(none), None);
    assert_eq!(bed.lease.looks(), 0, "each was caused by something");
    bed.now += 5_001;
    assert_eq!(asked(&bed.look(0)), Some(grant(60, 60)), "nobody waits any more");
    assert_eq!(bed.lease.looks(), 1);
}

/// [A cancelled unit lay on a node that had heard, while it held nothing, that others wait.]
#[test]
fn a_node_that_holds_nothing_looks_what_others_want_once_something_comes_free() {
    let mut bed = Bed::open(60, 0, 0, 0);
    assert_eq!(bed.on(E::News(Change::Wanted)), [], "it has nothing to give");
    assert_eq!(bed.lease.pace(bed.now), Pace::Fast);
    bed.now += 2_000;
    assert_eq!(bed.lease.pace(bed.now), Pace::Slow, "not for ever");
    assert_eq!(asked(&bed.look(1)), Some(PoolAsk::Tell));
    let wanted = PoolView { granted: 60, wanted: 1, ..view(1) };
    let actions = bed.answer(1, PoolAsk::Tell, Some(wanted), None);
    assert_eq!(actions, [A::Take { quantity: 1 }]);
}

#[test]
fn what_lies_in_the_pool_for_others_is_not_asked_for_ahead_but_when_it_is_needed() {
    let mut bed = Bed::open(60, 0, 0, 0);
    bed.now += 20;
    let spoken_for = PoolView { granted: 60, pool: 5, wanted: 5, ..view(1) };
    let ask = asked(&bed.on(E::News(Change::Turned))).expect("it looks");
    assert_eq!(bed.answer(1, ask, Some(spoken_for), None), []);
    let missed = E::Seen { free: 0, confirmed: 0, unconfirmed: 0, is_missed: true };
    assert_eq!(asked(&bed.on(missed)), Some(needed(60, 61)));
}

#[test]
fn a_dry_node_says_what_it_wants_ever_more_seldom_and_only_while_somebody_asks() {
    let mut bed = Bed::open(60, 0, 1, 0);
    let dry = |bed: &mut Bed, is_missed| {
        asked(&bed.on(E::Seen { free: 0, confirmed: 60, unconfirmed: 0, is_missed }))
    };
    assert_eq!(dry(&mut bed, true), Some(needed(60, 61)));
    let none = PoolView { granted: 60, ..view(1) };
    let mut pauses = Vec::new();
    for _ in 0..7 {
        bed.answer(1, needed(60, 61), Some(none.clone()), None);
        let vain = bed.now;
        loop {
            bed.now += 1;
            match dry(&mut bed, true) {
                Some(PoolAsk::Grant { .. }) => break,
                Some(ask) => drop(bed.answer(1, ask, Some(none.clone()), None)),
                None => {}
            }
        }
        pauses.push(bed.now - vain);
        let out = bed.lease.out.clone().expect("it asked").ask;
        let PoolAsk::Grant { from, up_to, .. } = out else { panic!("{out:?}") };
        assert!(from == 60 && up_to > 60);
        bed.lease.out.as_mut().expect("as above").ask = needed(60, 61);
    }
    assert_eq!(pauses, [20, 40, 80, 160, 320, 640, 1_000]);
    bed.answer(1, needed(60, 61), Some(none), None);
    bed.now += 1_000;
    assert!(!matches!(dry(&mut bed, false), Some(PoolAsk::Grant { .. })), "nobody asks");
}

/// † [A node came back with an old copy of its data folder, and sold what it had returned.]
#[test]
fn an_old_copy_of_the_data_folder_is_halted_but_not_by_a_join_that_came_late() {
    let join = PoolAsk::Join { home: None, bump_above: 0 };
    let mut bed = Bed::open(60, 10, 50, 0);
    let late = PoolRefusal::OldCopy { accepted: 60, returned: 10 };
    assert_eq!(bed.answer(1, join.clone(), None, Some(late)), [], "it is what is known here");
    let refusal = PoolRefusal::OldCopy { accepted: 61, returned: 10 };
    let actions = bed.answer(1, join, None, Some(refusal));
    let known = standing(60, 10);
    assert_eq!(actions, [A::Halt(Halt::OldCopy { accepted: 61, returned: 10, known })]);
    assert_eq!(bed.look(50), []);
}

#[test]
fn a_process_whose_data_folder_a_newer_one_has_opened_is_halted() {
    let mut bed = Bed::open(60, 10, 50, 0);
    let older = PoolRefusal::Fenced { incarnation: Incarnation::new(2) };
    assert_eq!(bed.answer(1, PoolAsk::Tell, None, Some(older)), []);
    let incarnation = Incarnation::new(3);
    let actions = bed.answer(1, PoolAsk::Tell, None, Some(PoolRefusal::Fenced { incarnation }));
    assert_eq!(actions, [A::Halt(Halt::Fenced { incarnation })]);
}

/// † [One drained node refused for good while units lay with others.]
#[test]
fn sold_out_is_final_only_by_what_the_pool_saw_at_once_and_until_a_new_generation() {
    let mut bed = Bed::open(60, 0, 0, 0);
    let mut say = |view: PoolView| {
        bed.now += 20;
        bed.on(E::News(Change::Turned));
        let ask = bed.lease.out.clone().expect("it looks").ask;
        let actions = bed.answer(1, ask, Some(view), None);
        actions.into_iter().find_map(|action| match action {
            A::Elsewhere(elsewhere) => Some(elsewhere.final_confirmed),
            _ => None,
        })
    };
    let dry = PoolView { granted: 60, confirmed_elsewhere: 939, ..view(1) };
    assert_eq!(say(dry.clone()), Some(None));
    let last = PoolView { confirmed_elsewhere: 940, is_sold_out: true, ..dry.clone() };
    assert_eq!(say(last.clone()), Some(Some(940)));
    let reversed = PoolView { generation: 2, ..dry };
    assert_eq!(say(reversed), Some(None));
    assert_eq!(say(last), None, "a view of an older generation");
}

/// † [Withdrawn in the pool, the node crashed, and the units were for sale in its books for ever.]
#[test]
fn a_withdrawal_that_the_journal_does_not_know_is_found_with_its_key() {
    let home = HomeStanding { added: 1_000, withdrawn: 10, journals: None };
    let (home, epoch) = (Some(home), epoch(1));
    let mut bed = Bed::new(Known { epoch, home: home.clone(), total: 990, ..Known::default() });
    bed.look(0);
    let join = PoolAsk::Join { home, bump_above: 0 };
    let key = KeyHash::new(77);
    let found = PoolView { withdrawn: 14, withdraw_key: key, ..view(1) };
    let actions = bed.answer(1, join, Some(found.clone()), None);
    assert!(actions.contains(&A::WithdrawalFound { key, quantity: 4 }), "{actions:?}");
    bed.now += 20;
    bed.on(E::News(Change::Turned));
    let ask = bed.lease.out.clone().map(|out| out.ask);
    let actions = bed.answer(1, ask.expect("it looks"), Some(found), None);
    assert!(!actions.contains(&A::WithdrawalFound { key, quantity: 4 }), "found once");
}

#[test]
fn a_withdrawal_gives_what_there_is_within_its_time() {
    let home = HomeStanding { added: 1_000, withdrawn: 0, journals: None };
    let standing = standing(40, 0);
    let known = Known { epoch: epoch(1), standing, home: Some(home), total: 1_000, free: 40 };
    let mut bed = Bed::new(known);
    let join = asked(&bed.look(40)).expect("it joins");
    bed.answer(1, join, Some(PoolView { granted: 40, ..view(1) }), None);
    let key = KeyHash::new(9);
    assert_eq!(bed.on(E::Withdraw { quantity: 100, key }), [A::Take { quantity: 40 }]);
    assert!(matches!(bed.on(E::Taken { quantity: 40 })[..], [A::RecordReturned { .. }]));
    let ask = asked(&bed.on(E::ReturnDurable { returned: 40 })).expect("now it asks");
    assert_eq!(ask, PoolAsk::Withdraw { from: 0, up_to: 100, key });
    let half = PoolView { granted: 40, returned: 40, withdrawn: 40, withdraw_key: key, ..view(1) };
    let actions = bed.answer(1, ask, Some(half.clone()), None);
    assert!(matches!(actions[..], [A::Elsewhere(_)]), "others have some, perhaps: {actions:?}");
    bed.now += 500;
    let ask = asked(&bed.look(0)).expect("again");
    assert_eq!(ask, PoolAsk::Withdraw { from: 40, up_to: 100, key });
    bed.answer(1, ask, Some(PoolView { withdrawn: 55, ..half }), None);
    bed.now += 600;
    let actions = bed.look(0);
    assert_eq!(actions[0], A::Withdrawn { key, quantity: Some(55) });
    // The pool kept units for the rest of it, and others gave theirs back, for ever.
    let (from, key) = (55, KeyHash::default());
    let enough = PoolAsk::Withdraw { from, up_to: from, key };
    assert_eq!(asked(&actions), Some(enough.clone()));
    let half = PoolView { granted: 40, returned: 40, withdrawn: 55, ..view(1) };
    assert_eq!(asked(&bed.answer(1, enough, Some(half), None)), None, "once");
}

/// [Each ask for more than there is was news to the other nodes, whose looks were news to this one:
/// Redis was asked without a pause for as long as the withdrawal lasted.]
#[test]
fn a_withdrawal_of_more_than_there_is_leaves_redis_alone_between_its_asks() {
    let home = HomeStanding { added: 1_000, withdrawn: 0, journals: None };
    let mut bed =
        Bed::new(Known { epoch: epoch(1), home: Some(home), total: 1_000, ..Known::default() });
    let join = asked(&bed.look(0)).expect("it joins");
    bed.answer(1, join, Some(PoolView { pool: 0, ..view(1) }), None);
    let key = KeyHash::new(9);
    let mut ask = asked(&bed.on(E::Withdraw { quantity: 100, key }));
    let mut asks = 0;
    for generation in 2..102 {
        if let Some(ask) = ask.take() {
            asks += 1;
            bed.answer(1, ask, Some(PoolView { generation, ..view(1) }), None);
        }
        bed.now += 1;
        ask = asked(&bed.on(E::News(Change::Turned)));
    }
    assert!((5..=11).contains(&asks), "{asks} in 100 ms");
}

/// † [A quiet home never heard of the new epoch, and its pool stayed shut.]
#[test]
fn what_news_are_worth_is_looked_at_again_where_nobody_answered() {
    let mut bed = Bed::open(60, 0, 60, 0);
    assert_eq!(asked(&bed.look(60)), None, "it has units, and nothing to say");
    for _ in 0..3 {
        let ask = asked(&bed.on(E::News(Change::Turned))).expect("it looks");
        let actions = bed.answer(1, ask, None, Some(PoolRefusal::Unavailable("reset".into())));
        assert_eq!(asked(&actions), None, "not at once");
        assert_eq!(bed.lease.pace(bed.now), Pace::Slow, "nor is it waited for at once");
        bed.now += 1_000;
        let ask = asked(&bed.look(60)).expect("it looks again");
        assert_eq!(ask, PoolAsk::Tell);
        bed.answer(1, ask, Some(PoolView { granted: 60, ..view(1) }), None);
        assert_eq!(asked(&bed.look(60)), None, "answered");
    }
}

/// [Redis got its first replica, and so another identity, while every node had units: the pool was
/// lost, and nobody knew.]
#[test]
fn a_quiet_lease_looks_twice_a_minute_while_its_sale_is_on() {
    let mut bed = Bed::open(60, 0, 60, 0);
    let begun = bed.now;
    while asked(&bed.look(60)).is_none() {
        bed.now += 40;
    }
    assert!((30_000..30_040).contains(&(bed.now - begun)), "{}", bed.now - begun);
    bed.answer(1, PoolAsk::Tell, Some(PoolView { granted: 60, ..view(1) }), None);
    bed.on(E::Selling(false));
    bed.now += 900;
    assert_eq!(asked(&bed.look(60)), None);
    bed.now += 60_000;
    bed.look(0);
    bed.now += 60_000;
    assert_eq!(asked(&bed.look(0)), None, "it is over");
}

#[test]
fn a_withdrawal_without_an_answer_is_not_said_to_be_nothing() {
    let home = HomeStanding { added: 1_000, withdrawn: 0, journals: None };
    let mut bed =
        Bed::new(Known { epoch: epoch(1), home: Some(home), total: 1_000, ..Known::default() });
    let join = asked(&bed.look(0)).expect("it joins");
    bed.answer(1, join, Some(PoolView { pool: 0, ..view(1) }), None);
    let key = KeyHash::new(9);
    let ask = asked(&bed.on(E::Withdraw { quantity: 100, key })).expect("it asks");
    bed.answer(1, ask, None, Some(PoolRefusal::Unavailable("reset".into())));
    bed.now += 2_000;
    let actions = bed.look(0);
    assert_eq!(actions[0], A::Withdrawn { key, quantity: None });
    // It had happened.
    let ask = bed.lease.out.clone().map_or(PoolAsk::Tell, |out| out.ask);
    let found = PoolView { withdrawn: 30, withdraw_key: key, ..view(1) };
    let actions = bed.answer(1, ask, Some(found), None);
    assert!(actions.contains(&A::WithdrawalFound { key, quantity: 30 }), "{actions:?}");
}

#[test]
fn a_node_learns_the_total_before_it_accepts_units_of_it() {
    let mut bed = Bed::new(Known::default());
    // It is not there before the home has made it, and nobody else begins it.
    assert_eq!(asked(&bed.look(0)), Some(PoolAsk::Inspect));
    let missing = PoolView { epoch: Epoch { number: 0, server: SERVER }, ..PoolView::default() };
    bed.answer(0, PoolAsk::Inspect, Some(missing), Some(PoolRefusal::Lost));
    assert_eq!(asked(&bed.on(E::News(Change::Turned))), Some(PoolAsk::Inspect));
    let join = PoolAsk::Join { home: None, bump_above: 0 };
    let actions = bed.answer(0, PoolAsk::Inspect, Some(view(1)), None);
    assert_eq!(asked(&actions), Some(join.clone()));
    let actions = bed.answer(0, join.clone(), Some(view(1)), Some(PoolRefusal::Epoch));
    assert_eq!(actions, [A::RecordEpoch(epoch(1))]);
    bed.on(E::EpochDurable { epoch: epoch(1) });
    let actions = bed.answer(1, join, Some(PoolView { granted: 7, ..view(1) }), None);
    let expected = [A::RecordTotal(1_000), A::RecordGranted { granted: 7, epoch: 1 }];
    assert_eq!(actions[..2], expected);
}

#[test]
fn a_sale_that_is_over_gives_its_units_back_after_a_while() {
    let mut bed = Bed::open(60, 0, 60, 0);
    assert_eq!(bed.on(E::Selling(false)), []);
    assert!(!bed.look(60).contains(&A::Take { quantity: 60 }));
    bed.now += 1_000;
    assert!(bed.look(60).contains(&A::Take { quantity: 60 }));
}
