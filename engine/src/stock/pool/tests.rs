//! One test per rule of the pool; those with † in the design are named for the history that fails
//! without them.

use super::*;
use crate::units::ItemIndex;

const ITEM: ItemIndex = ItemIndex::new(7);
const SERVER: KeyHash = KeyHash::new(100);
const OTHER_SERVER: KeyHash = KeyHash::new(200);
const KEY: KeyHash = KeyHash::new(5);

/// A journal as its node sees itself; what it does is durable at once.
#[derive(Clone, Copy)]
struct Node(Asker);

impl Node {
    fn new(journal: u64) -> Self {
        Self(Asker {
            item: ITEM,
            journal: JournalId::new(journal),
            incarnation: Incarnation::new(1),
            epoch: Epoch { number: 1, server: SERVER },
            standing: Standing::default(),
        })
    }
    fn ask(&self, pool: &mut Pool, ask: &PoolAsk) -> PoolAnswer {
        pool.on(SERVER, &self.0, ask)
    }
    fn grant(&mut self, pool: &mut Pool, want: u64, nodes: u32) -> u64 {
        self.ask_for(pool, want, want, nodes)
    }
    /// Asks for so many, of which these are needed.
    fn ask_for(&mut self, pool: &mut Pool, units: u64, need: u64, nodes: u32) -> u64 {
        let from = self.0.standing.accepted;
        let ask = PoolAsk::Grant { from, up_to: from + units, need, nodes, max: u64::MAX };
        let answer = self.ask(pool, &ask);
        assert_eq!(answer.refusal, None);
        self.0.standing.accepted = view(answer).granted;
        self.0.standing.accepted - from
    }
    fn join(&self, pool: &mut Pool) -> PoolAnswer {
        self.ask(pool, &PoolAsk::Join { home: None, bump_above: 0 })
    }
    fn give_back(&mut self, pool: &mut Pool, quantity: u64) -> PoolView {
        self.0.standing.returned += quantity;
        view(self.ask(pool, &PoolAsk::Tell))
    }
    fn sell(&mut self, quantity: u64) {
        self.0.standing.confirmed += quantity;
    }
    /// Records the pool's epoch, and joins.
    fn follow(&mut self, pool: &mut Pool, home: Option<&HomeStanding>, server: KeyHash) {
        self.0.epoch = pool.epoch;
        let ask = PoolAsk::Join { home: home.cloned(), bump_above: 0 };
        assert_eq!(pool.on(server, &self.0, &ask).refusal, None);
    }
}

fn home(added: u64, journals: &[u64]) -> HomeStanding {
    let journals = journals.iter().map(|id| JournalId::new(*id)).collect();
    HomeStanding { added, withdrawn: 0, journals: Some(journals) }
}

#[track_caller]
fn view(answer: PoolAnswer) -> PoolView {
    answer.view.expect("a view")
}

/// A pool of so many units, made by the first node; the second has joined.
fn open(added: u64) -> (Pool, Node, Node) {
    let mut pool = Pool::default();
    let (first, second) = (Node::new(1), Node::new(2));
    let made = first.ask(&mut pool, &PoolAsk::Create { home: home(added, &[1, 2]) });
    assert_eq!(made.refusal, None);
    assert_eq!(second.join(&mut pool).refusal, None);
    pool.take_news();
    (pool, first, second)
}

#[test]
fn a_pool_is_made_once_and_only_where_its_epoch_was_recorded() {
    let mut pool = Pool::default();
    let first = Node::new(1);
    let create = PoolAsk::Create { home: home(10, &[1]) };
    let elsewhere = pool.on(OTHER_SERVER, &first.0, &create);
    assert_eq!(elsewhere.refusal, Some(PoolRefusal::Lost));
    assert_eq!(view(elsewhere).epoch, Epoch { number: 0, server: OTHER_SERVER });
    assert_eq!(first.ask(&mut pool, &create).refusal, None);
    assert_eq!(first.ask(&mut pool, &create).refusal, Some(PoolRefusal::Lost));
    let seen = view(first.ask(&mut pool, &PoolAsk::Inspect));
    assert_eq!((seen.epoch, seen.is_open, seen.pool), (first.0.epoch, true, 10));
}

#[test]
fn inspecting_tells_the_server_of_a_pool_that_is_not_there() {
    let answer = Node::new(1).ask(&mut Pool::default(), &PoolAsk::Inspect);
    assert_eq!(answer.refusal, Some(PoolRefusal::Lost));
    assert_eq!(view(answer).epoch, Epoch { number: 0, server: SERVER });
}

#[test]
fn granted_units_never_pass_the_total() {
    let (mut pool, mut a, mut b) = open(100);
    let mut sum = 0;
    for _ in 0..300 {
        sum += a.grant(&mut pool, 50, 2) + b.grant(&mut pool, 3, 2);
    }
    assert_eq!((sum, pool.size()), (100, 0));
}

#[test]
fn a_grant_is_a_fair_share_and_one_unit_at_the_tail() {
    assert_eq!(share(600, 3, u64::MAX), 100);
    assert_eq!(share(600, 3, 20), 20, "at most `max`");
    assert_eq!(share(5, 3, 20), 1);
    assert_eq!(share(1, 3, 20), 1);
    assert_eq!(share(0, 3, 20), 0);
    assert_eq!(share(600, 0, u64::MAX), 600, "nobody to share with");
}

#[test]
fn a_lost_answer_is_seen_in_the_next_one_and_grants_nothing_twice() {
    let (mut pool, mut a, _) = open(100);
    let ask = PoolAsk::Grant { from: 0, up_to: 10, need: 0, nodes: 1, max: 100 };
    assert_eq!(view(a.ask(&mut pool, &ask)).granted, 10);
    let again = a.ask(&mut pool, &ask);
    assert_eq!((again.refusal.clone(), view(again).granted), (None, 10));
    assert_eq!(pool.size(), 90);
    a.0.standing.accepted = 10;
    assert_eq!(a.grant(&mut pool, 5, 1), 5);
}

#[test]
fn returned_units_count_once_however_often_they_are_told() {
    let (mut pool, mut a, _) = open(100);
    a.grant(&mut pool, 40, 1);
    assert_eq!(a.give_back(&mut pool, 30).pool, 90);
    assert_eq!(a.give_back(&mut pool, 0).pool, 90);
    let mut late = a;
    late.0.standing.returned = 10;
    assert_eq!(view(late.ask(&mut pool, &PoolAsk::Tell)).pool, 90, "the maximum counts");
}

#[test]
fn a_journal_gives_back_only_what_it_was_granted() {
    let (mut pool, mut a, mut b) = open(100);
    a.grant(&mut pool, 40, 1);
    assert_eq!(b.give_back(&mut pool, 40).pool, 60, "those are not its own");
    assert_eq!(a.give_back(&mut pool, 40).pool, 100);
}

#[test]
fn who_has_not_joined_is_not_heard() {
    let (mut pool, mut a, _) = open(100);
    let stranger = Node::new(3);
    let told = stranger.ask(&mut pool, &PoolAsk::Tell);
    assert_eq!(told.refusal, Some(PoolRefusal::NotJoined));
    a.0.incarnation = Incarnation::new(2);
    let told = a.ask(&mut pool, &PoolAsk::Tell);
    assert_eq!(told.refusal, Some(PoolRefusal::NotJoined), "a new incarnation joins first");
}

#[test]
fn an_older_incarnation_is_fenced() {
    let (mut pool, a, _) = open(100);
    let mut newer = a;
    newer.0.incarnation = Incarnation::new(2);
    assert_eq!(newer.join(&mut pool).refusal, None);
    let before = pool.clone();
    let fenced = Some(PoolRefusal::Fenced { incarnation: Incarnation::new(2) });
    assert_eq!(a.join(&mut pool).refusal, fenced);
    assert_eq!(a.ask(&mut pool, &PoolAsk::Tell).refusal, fenced);
    assert_eq!(pool, before, "nothing has changed");
}

#[test]
fn an_older_incarnation_does_not_begin_an_epoch_on_another_server() {
    let (mut pool, a, _) = open(100);
    let mut newer = a;
    newer.0.incarnation = Incarnation::new(2);
    newer.join(&mut pool);
    let ask = PoolAsk::Join { home: None, bump_above: 9 };
    let answer = pool.on(OTHER_SERVER, &a.0, &ask);
    assert_eq!(answer.refusal, Some(PoolRefusal::Fenced { incarnation: Incarnation::new(2) }));
    assert_eq!(pool.epoch.number, 1);
}

/// † A node came back with a copy of its data folder, and gave back what it had already sold.
#[test]
fn a_data_folder_restored_from_a_copy_is_turned_away() {
    let (mut pool, mut a, _) = open(100);
    a.grant(&mut pool, 10, 1);
    let mut copy = a;
    a.give_back(&mut pool, 2);
    a.grant(&mut pool, 30, 1);
    a.ask(&mut pool, &PoolAsk::Tell);
    copy.0.incarnation = Incarnation::new(9);
    let old = Some(PoolRefusal::OldCopy { accepted: 40, returned: 2 });
    assert_eq!(copy.join(&mut pool).refusal, old);
    // Also where the pool is on its way to another epoch: what was proved stays proved.
    let answer = pool.on(OTHER_SERVER, &copy.0, &PoolAsk::Join { home: None, bump_above: 0 });
    assert_eq!(answer.refusal, old);
    a.0.incarnation = Incarnation::new(9);
    assert_eq!(a.join(&mut pool).refusal, None);
}

/// † An empty disk under an old name is another journal: it gives back nothing of the old one's.
#[test]
fn an_empty_disk_is_another_journal() {
    let (mut pool, mut a, _) = open(100);
    a.grant(&mut pool, 40, 1);
    let mut empty = Node::new(99);
    assert_eq!(view(empty.join(&mut pool)).granted, 0);
    assert_eq!(empty.give_back(&mut pool, 40).pool, 60);
}

/// † A grant of before the loss was taken after the rebuild.
#[test]
fn an_ask_under_an_older_epoch_changes_nothing() {
    let (mut pool, a, b) = open(100);
    b.ask(&mut pool, &PoolAsk::Join { home: None, bump_above: 1 });
    let before = pool.clone();
    for ask in [
        PoolAsk::Tell,
        PoolAsk::Total { added: 500 },
        PoolAsk::Grant { from: 0, up_to: 5, need: 5, nodes: 1, max: 5 },
        PoolAsk::Withdraw { from: 0, up_to: 5, key: KEY },
        PoolAsk::Join { home: Some(home(100, &[1])), bump_above: 0 },
    ] {
        let answer = a.ask(&mut pool, &ask);
        assert_eq!((&answer.asked, answer.asker), (&ask, a.0));
        assert_eq!(answer.refusal, Some(PoolRefusal::Epoch), "{ask:?}");
        assert_eq!(view(answer).epoch.number, 2);
    }
    assert_eq!(pool, before);
}

/// † A failover promoted a replica that had missed grants; the counters were believed.
#[test]
fn another_server_is_another_life() {
    let (mut pool, mut a, mut b) = open(100);
    a.grant(&mut pool, 40, 1);
    let mut replica = pool.clone();
    b.grant(&mut pool, 60, 0);
    let ahead = PoolAsk::Grant { from: 60, up_to: 90, need: 0, nodes: 1, max: 99 };
    for ask in [PoolAsk::Tell, ahead] {
        let answer = replica.on(OTHER_SERVER, &b.0, &ask);
        assert_eq!(answer.refusal, Some(PoolRefusal::Lost));
    }
    let join = PoolAsk::Join { home: None, bump_above: 0 };
    let answer = replica.on(OTHER_SERVER, &b.0, &join);
    assert_eq!(answer.refusal, Some(PoolRefusal::Epoch));
    assert_eq!(view(answer).epoch, Epoch { number: 2, server: OTHER_SERVER });
    b.follow(&mut replica, None, OTHER_SERVER);
    assert!(!replica.is_open, "not every journal has reported");
    a.follow(&mut replica, Some(&home(100, &[1, 2])), OTHER_SERVER);
    assert_eq!((replica.is_open, replica.size()), (true, 0));
}

/// † A rebuild with one node out of reach: its units were granted again.
#[test]
fn a_shut_pool_grants_nothing_until_every_listed_journal_has_reported() {
    let (mut pool, mut a, mut b) = open(100);
    a.grant(&mut pool, 40, 1);
    b.grant(&mut pool, 10, 1);
    let mut lost = Pool::default();
    let answer = a.join(&mut lost);
    assert_eq!(answer.refusal, Some(PoolRefusal::Epoch));
    assert_eq!(view(answer).epoch.number, 2, "above what the asker has recorded");
    let unknown = HomeStanding { added: 100, withdrawn: 0, journals: None };
    a.follow(&mut lost, Some(&unknown), SERVER);
    assert_eq!(a.grant(&mut lost, 5, 1), 0);
    a.follow(&mut lost, Some(&home(100, &[1, 2])), SERVER);
    assert_eq!((lost.is_open, a.grant(&mut lost, 5, 1)), (false, 0));
    let seen = view(a.ask(&mut lost, &PoolAsk::Inspect));
    assert_eq!((seen.reported, seen.pool, seen.granted), (1, 0, 40));
    assert!(!seen.is_sold_out);
    lost.take_news();
    b.follow(&mut lost, None, SERVER);
    assert!(lost.is_open && lost.take_news() == Some(Change::Turned));
    assert_eq!(lost.size(), 50);
    assert_eq!(a.grant(&mut lost, 5, 1), 5);
}

/// † The home node's list had forgotten a journal; its units were granted again and again.
#[test]
fn a_journal_that_ever_accepted_units_must_report_though_nobody_listed_it() {
    let mut pool = Pool::default();
    let (mut a, mut b) = (Node::new(1), Node::new(2));
    a.ask(&mut pool, &PoolAsk::Create { home: home(100, &[1]) });
    b.0.standing.accepted = 30;
    assert_eq!(b.join(&mut pool).refusal, Some(PoolRefusal::Epoch), "the pool has lost a grant");
    a.follow(&mut pool, Some(&home(100, &[1])), SERVER);
    assert!(!pool.is_open);
    b.follow(&mut pool, None, SERVER);
    assert_eq!((pool.is_open, pool.size()), (true, 70));
}

#[test]
fn accepted_beyond_granted_shows_that_the_pool_forgot() {
    let (mut pool, mut a, _) = open(100);
    a.0.standing.accepted = 5;
    let before = pool.clone();
    assert_eq!(a.ask(&mut pool, &PoolAsk::Tell).refusal, Some(PoolRefusal::Lost));
    assert_eq!(pool, before);
    assert_eq!(a.join(&mut pool).refusal, Some(PoolRefusal::Epoch));
    assert_eq!((pool.epoch.number, pool.is_open), (2, false));
}

#[test]
fn withdrawn_beyond_the_pools_shows_that_it_forgot() {
    let (mut pool, a, _) = open(100);
    let home = HomeStanding { withdrawn: 10, ..home(100, &[1, 2]) };
    let answer = a.ask(&mut pool, &PoolAsk::Join { home: Some(home), bump_above: 0 });
    assert_eq!((answer.refusal, pool.epoch.number), (Some(PoolRefusal::Epoch), 2));
}

/// † A restart answered with a grant that it had made before: it is accepted, not made again.
#[test]
fn a_restart_sees_the_grant_whose_answer_was_lost() {
    let (mut pool, mut a, _) = open(100);
    a.ask(&mut pool, &PoolAsk::Grant { from: 0, up_to: 25, need: 0, nodes: 1, max: 99 });
    a.0.incarnation = Incarnation::new(2);
    let answer = a.join(&mut pool);
    assert_eq!((answer.refusal.clone(), view(answer).granted), (None, 25));
}

#[test]
fn a_higher_epoch_can_be_asked_for() {
    let (mut pool, a, _) = open(100);
    assert_eq!(a.join(&mut pool).refusal, None);
    let bump = PoolAsk::Join { home: None, bump_above: 41 };
    assert_eq!(a.ask(&mut pool, &bump).refusal, Some(PoolRefusal::Epoch));
    assert_eq!(pool.epoch.number, 42);
    assert_eq!(a.ask(&mut pool, &bump).refusal, Some(PoolRefusal::Epoch), "and only once");
    assert_eq!(pool.epoch.number, 42);
}

#[test]
fn a_total_only_rises_and_begins_a_stock_generation() {
    let (mut pool, a, _) = open(100);
    let seen = view(a.ask(&mut pool, &PoolAsk::Total { added: 150 }));
    assert_eq!((seen.added, seen.pool, seen.generation), (150, 150, 2));
    assert_eq!(pool.take_news(), Some(Change::Turned));
    let seen = view(a.ask(&mut pool, &PoolAsk::Total { added: 120 }));
    assert_eq!((seen.added, seen.generation), (150, 2), "a late ask lowers nothing");
    assert_eq!(pool.take_news(), None);
}

#[test]
fn withdrawing_takes_what_there_is_and_says_whose_it_was() {
    let (mut pool, a, mut b) = open(100);
    b.grant(&mut pool, 70, 0);
    pool.take_news();
    let ask = PoolAsk::Withdraw { from: 0, up_to: 50, key: KEY };
    let seen = view(a.ask(&mut pool, &ask));
    assert_eq!((seen.withdrawn, seen.withdraw_key, seen.pool), (30, KEY, 0));
    assert_eq!(seen.wanted, 20);
    assert_eq!(pool.take_news(), Some(Change::Wanted), "others are asked for the rest");
    let again = view(a.ask(&mut pool, &ask));
    assert_eq!(again.withdrawn, 30, "a lost answer is seen, and nothing withdrawn twice");
    b.give_back(&mut pool, 70);
    assert_eq!(pool.take_news(), Some(Change::Freed));
    assert_eq!(b.ask_for(&mut pool, 60, 0, 0), 50, "20 are the withdrawal's");
    b.give_back(&mut pool, 50);
    let rest = PoolAsk::Withdraw { from: 30, up_to: 50, key: KEY };
    let seen = view(a.ask(&mut pool, &rest));
    assert_eq!((seen.withdrawn, seen.total(), seen.pool, seen.wanted), (50, 50, 50, 0));
}

#[test]
fn a_withdrawal_that_had_nothing_leaves_the_last_ones_key() {
    let (mut pool, mut a, _) = open(10);
    a.ask(&mut pool, &PoolAsk::Withdraw { from: 0, up_to: 4, key: KEY });
    a.grant(&mut pool, 6, 0);
    let none = PoolAsk::Withdraw { from: 4, up_to: 9, key: KeyHash::new(6) };
    let seen = view(a.ask(&mut pool, &none));
    assert_eq!((seen.withdrawn, seen.withdraw_key, seen.wanted), (4, KEY, 5));
    let enough = PoolAsk::Withdraw { from: 4, up_to: 4, key: KEY };
    assert_eq!(view(a.ask(&mut pool, &enough)).wanted, 0, "it wants no more");
}

/// † One drained bucket refused while others held stock.
#[test]
fn what_the_pool_could_not_give_is_wanted_of_the_others() {
    let (mut pool, mut a, mut b) = open(10);
    a.grant(&mut pool, 10, 0);
    pool.take_news();
    assert_eq!(b.grant(&mut pool, 4, 2), 0);
    assert_eq!(pool.take_news(), Some(Change::Wanted));
    assert_eq!(view(b.ask(&mut pool, &PoolAsk::Tell)).wanted, 0, "not of itself");
    assert_eq!(view(a.ask(&mut pool, &PoolAsk::Tell)).wanted, 4);
    let seen = a.give_back(&mut pool, 5);
    assert_eq!((seen.pool, seen.wanted, seen.lacking()), (5, 4, 0), "the pool has it now");
    assert_eq!(seen.spare(), 1);
    assert_eq!(pool.take_news(), Some(Change::Freed));
    assert_eq!(b.grant(&mut pool, 4, 0), 4);
    assert_eq!(pool.take_news(), None);
    assert_eq!(view(a.ask(&mut pool, &PoolAsk::Tell)).wanted, 0);
}

/// [A unit came back for a node that was asked for it, and went to another that leased ahead of a
/// demand that it did not have.]
#[test]
fn what_somebody_waits_for_goes_to_those_who_need_it_and_not_to_those_who_lease_ahead() {
    let (mut pool, mut a, mut b) = open(10);
    a.grant(&mut pool, 10, 0);
    b.grant(&mut pool, 1, 0);
    a.give_back(&mut pool, 1);
    pool.take_news();
    assert_eq!(a.ask_for(&mut pool, 5, 0, 0), 0, "it is not asked for one");
    assert_eq!(pool.take_news(), None, "nor does it wait");
    a.give_back(&mut pool, 1);
    assert_eq!(a.ask_for(&mut pool, 5, 0, 0), 1, "one is left over");
    assert_eq!(a.ask_for(&mut pool, 5, 1, 0), 1, "who needs one has it first who comes first");
    assert_eq!(b.grant(&mut pool, 1, 0), 0);
}

/// † "Sold out" was final while a unit could still come back.
#[test]
fn sold_out_is_final_only_when_every_unit_is_confirmed() {
    let (mut pool, mut a, mut b) = open(10);
    a.grant(&mut pool, 6, 0);
    b.grant(&mut pool, 4, 0);
    a.sell(6);
    b.sell(3);
    a.ask(&mut pool, &PoolAsk::Tell);
    assert!(!view(b.ask(&mut pool, &PoolAsk::Tell)).is_sold_out, "a unit is only held");
    pool.take_news();
    b.sell(1);
    let seen = view(b.ask(&mut pool, &PoolAsk::Tell));
    assert_eq!((seen.is_sold_out, seen.confirmed_elsewhere), (true, 6));
    assert_eq!(pool.take_news(), Some(Change::Turned));
    let generation = seen.generation;
    a.0.standing.unconfirmed = 2;
    let seen = view(a.ask(&mut pool, &PoolAsk::Tell));
    assert!(!seen.is_sold_out && seen.generation > generation, "reversed units are sold again");
    assert_eq!(pool.take_news(), Some(Change::Turned));
}

#[test]
fn a_rebuild_begins_a_stock_generation_too() {
    let (mut pool, mut a, mut b) = open(10);
    let generation = pool.generation;
    a.ask(&mut pool, &PoolAsk::Join { home: None, bump_above: 1 });
    assert_eq!(pool.take_news(), Some(Change::Turned));
    assert!(pool.generation > generation);
    a.follow(&mut pool, Some(&home(10, &[1, 2])), SERVER);
    b.follow(&mut pool, None, SERVER);
    assert!(pool.is_open && pool.generation > generation + 1);
}

#[test]
fn joining_again_evens_out_a_total_whose_ask_was_lost() {
    let (mut pool, a, _) = open(10);
    let ask = PoolAsk::Join { home: Some(home(30, &[1, 2])), bump_above: 0 };
    let seen = view(a.ask(&mut pool, &ask));
    assert_eq!((seen.added, seen.pool), (30, 30));
}
