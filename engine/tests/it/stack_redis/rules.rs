//! Each script against a real server, every step beside the model: the rules, and for each that
//! was found as a failing history, that history.

use onrush::stock::pool::Pool;

use super::*;

/// A server, and the model of one item's pool on it.
struct Both {
    server: Server,
    connection: redis::Connection,
    endpoint: Endpoint,
    identity: KeyHash,
    pool: Pool,
}

impl Both {
    fn new() -> Self {
        Self::of(Server::start(&[]), Pool::default())
    }

    fn of(server: Server, pool: Pool) -> Self {
        let connection = server.connection();
        let endpoint = Endpoint::new(&settings(&server.url())).unwrap();
        let mut both = Self { server, connection, endpoint, identity: KeyHash::default(), pool };
        let look = asker(item(1), 9);
        let mut pool = Pool::default();
        let call = Call::new(&both.endpoint, "no/thing", &look, &PoolAsk::Inspect);
        let value: redis::Value = call.by_text().query(&mut both.connection).unwrap();
        let seen = view(read(&look, PoolAsk::Inspect, &value).unwrap());
        both.identity = seen.epoch.server;
        assert_eq!(seen, view(pool.on(both.identity, &look, &PoolAsk::Inspect)));
        both
    }

    #[track_caller]
    fn ask(&mut self, asker: &Asker, ask: &PoolAsk) -> PoolAnswer {
        let real = ask_on(&mut self.connection, &self.endpoint, asker, ask);
        assert_eq!(real, self.pool.on(self.identity, asker, ask), "Redis, and the model");
        real
    }

    /// A pool of so many units, made by journal 1; journal 2 has joined.
    fn open(added: u64) -> (Self, Asker, Asker) {
        let mut both = Self::new();
        let (mut a, mut b) = (asker(item(1), 1), asker(item(1), 2));
        a.epoch = Epoch { number: 1, server: both.identity };
        b.epoch = a.epoch;
        let made = both.ask(&a, &PoolAsk::Create { home: home(added, &[1, 2]) });
        assert_eq!(made.refusal, None);
        assert_eq!(both.ask(&b, &join(None)).refusal, None);
        (both, a, b)
    }

    #[track_caller]
    fn grant(&mut self, asker: &mut Asker, quantity: u64) -> u64 {
        let from = asker.standing.accepted;
        let answer = self.ask(asker, &grant(from, from + quantity));
        assert_eq!(answer.refusal, None);
        asker.standing.accepted = view(answer).granted;
        asker.standing.accepted - from
    }

    #[track_caller]
    fn refused(&mut self, asker: &Asker, ask: &PoolAsk) -> PoolRefusal {
        let key = self.endpoint.key(&name(asker.item));
        let before = self.server.order(&["HGETALL", &key]);
        let refusal = self.ask(asker, ask).refusal.expect("a refusal");
        assert_eq!(self.server.order(&["HGETALL", &key]), before, "it changed something");
        refusal
    }

    /// The same item on another server that has what this one has now: a replica promoted.
    fn promoted(&mut self, asker: &Asker) -> Self {
        let key = self.endpoint.key(&name(asker.item));
        let dump: Vec<u8> =
            redis::cmd("DUMP").arg(&key).query(&mut self.connection).expect("a dump");
        let mut other = Self::of(Server::start(&[]), self.pool.clone());
        let mut restore = redis::cmd("RESTORE");
        let done: String = restore.arg(&key).arg(0).arg(dump).query(&mut other.connection).unwrap();
        assert_eq!(done, "OK");
        other
    }

    #[expect(clippy::needless_pass_by_value, reason = "reads better at the many places of use")]
    fn follow(&mut self, asker: &mut Asker, home: Option<HomeStanding>) -> PoolView {
        loop {
            let answer = self.ask(asker, &join(home.clone()));
            match answer.refusal {
                None => return view(answer),
                Some(PoolRefusal::Epoch) => asker.epoch = view(answer).epoch,
                other => panic!("{other:?}"),
            }
        }
    }
}

#[test]
fn create_makes_a_pool_once_and_only_under_its_recorded_epoch() {
    let mut both = Both::new();
    let mut a = asker(item(1), 1);
    let create = PoolAsk::Create { home: home(10, &[1]) };
    assert_eq!(both.refused(&a, &create), PoolRefusal::Lost);
    a.epoch = Epoch { number: 1, server: KeyHash::new(1) };
    assert_eq!(both.refused(&a, &create), PoolRefusal::Lost, "recorded of another server");
    a.epoch.server = both.identity;
    assert_eq!(view(both.ask(&a, &create)).pool, 10);
    assert_eq!(both.refused(&a, &create), PoolRefusal::Lost, "it is there");
}

#[test]
fn inspect_changes_nothing_and_knows_the_server() {
    let (mut both, a, _) = Both::open(10);
    let key = both.endpoint.key(&name(a.item));
    let before = both.server.order(&["HGETALL", &key]);
    let stranger = asker(item(1), 8);
    let answer = both.ask(&stranger, &PoolAsk::Inspect);
    assert_eq!((answer.refusal.clone(), view(answer).epoch), (None, a.epoch));
    assert_eq!(both.server.order(&["HGETALL", &key]), before);
    let unknown = asker(item(2), 8);
    let mut nothing = Both::of(Server::start(&[]), Pool::default());
    assert_eq!(nothing.refused(&unknown, &PoolAsk::Inspect), PoolRefusal::Lost);
}

#[test]
fn join_lets_a_journal_in_under_the_recorded_epoch_and_grants_nothing() {
    let (mut both, mut a, _) = Both::open(10);
    let mut c = asker(item(1), 3);
    let answer = both.ask(&c, &join(None));
    assert_eq!(answer.refusal, Some(PoolRefusal::Epoch));
    c.epoch = view(answer).epoch;
    assert_eq!(both.refused(&c, &PoolAsk::Tell), PoolRefusal::NotJoined);
    let seen = view(both.ask(&c, &join(None)));
    assert_eq!((seen.reported, seen.granted, seen.pool), (3, 0, 10));
    both.grant(&mut a, 4);
    let again = view(both.ask(&a, &join(None)));
    assert_eq!((again.granted, again.pool), (4, 6), "what it has stays");
}

#[test]
fn grant_gives_a_fair_share_down_to_single_units_and_never_more_than_there_is() {
    let (mut both, mut a, mut b) = Both::open(100);
    let ask = |from, max| PoolAsk::Grant { from, up_to: from + 1_000, need: 0, nodes: 2, max };
    assert_eq!(view(both.ask(&a, &ask(0, 1_000))).granted, 25, "a quarter");
    a.standing.accepted = 25;
    assert_eq!(view(both.ask(&a, &ask(25, 7))).granted, 32, "at most so many at once");
    a.standing.accepted = 32;
    assert_eq!(both.grant(&mut b, 66), 66, "nobody to share with");
    for granted in [33, 34, 34] {
        assert_eq!(view(both.ask(&a, &ask(a.standing.accepted, 1_000))).granted, granted);
        a.standing.accepted = granted;
    }
    assert_eq!(view(both.ask(&b, &PoolAsk::Tell)).wanted, 0, "asked for ahead, wanted by nobody");
}

#[test]
fn tell_raises_what_was_returned_confirmed_and_reversed_up_to_what_was_granted() {
    let (mut both, mut a, mut b) = Both::open(10);
    both.grant(&mut a, 6);
    a.standing = Standing { returned: 2, confirmed: 3, unconfirmed: 1, ..a.standing };
    assert_eq!(view(both.ask(&a, &PoolAsk::Tell)).pool, 6);
    assert_eq!(view(both.ask(&b, &PoolAsk::Tell)).confirmed_elsewhere, 2);
    b.standing.returned = 4;
    assert_eq!(view(both.ask(&b, &PoolAsk::Tell)).pool, 6, "it was granted none");
}

#[test]
fn total_only_rises_and_begins_a_stock_generation() {
    let (mut both, a, _) = Both::open(10);
    let seen = view(both.ask(&a, &PoolAsk::Total { added: 25 }));
    assert_eq!((seen.added, seen.pool, seen.generation), (25, 25, 2));
    let late = view(both.ask(&a, &PoolAsk::Total { added: 20 }));
    assert_eq!((late.added, late.pool, late.generation), (25, 25, 2));
}

#[test]
fn withdraw_takes_what_there_is_once_and_notes_the_rest_as_wanted() {
    let (mut both, a, mut b) = Both::open(10);
    both.grant(&mut b, 7);
    let ask = PoolAsk::Withdraw { from: 0, up_to: 5, key: KEY };
    let seen = view(both.ask(&a, &ask));
    assert_eq!((seen.withdrawn, seen.withdraw_key, seen.pool, seen.lacking()), (3, KEY, 0, 2));
    assert_eq!(view(both.ask(&a, &ask)).withdrawn, 3, "asked twice");
    b.standing.returned = 7;
    assert_eq!(view(both.ask(&b, &PoolAsk::Tell)).pool, 7);
    let rest = PoolAsk::Withdraw { from: 3, up_to: 5, key: KEY };
    let seen = view(both.ask(&a, &rest));
    assert_eq!((seen.withdrawn, seen.total(), seen.pool, seen.wanted), (5, 5, 5, 0));
}

#[test]
fn an_item_is_one_key() {
    let (mut both, mut a, mut b) = Both::open(10);
    both.grant(&mut a, 5);
    both.grant(&mut b, 5);
    assert_eq!(both.server.order(&["DBSIZE"]), "int(1)");
    assert_eq!(both.endpoint.key(&name(a.item)), "onrush:{sale/sku-1}");
}

/// † A lost answer, and one that is asked for twice.
#[test]
fn a_grant_whose_answer_was_lost_is_seen_and_not_made_twice() {
    let (mut both, a, _) = Both::open(100);
    assert_eq!(view(both.ask(&a, &grant(0, 10))).granted, 10);
    let again = view(both.ask(&a, &grant(0, 10)));
    assert_eq!((again.granted, again.pool), (10, 90));
}

/// † A return told late lowered what a later one had told.
#[test]
fn a_late_return_lowers_nothing() {
    let (mut both, mut a, _) = Both::open(100);
    both.grant(&mut a, 50);
    let mut late = a;
    late.standing.returned = 10;
    a.standing.returned = 30;
    assert_eq!(view(both.ask(&a, &PoolAsk::Tell)).pool, 80);
    assert_eq!(view(both.ask(&late, &PoolAsk::Tell)).pool, 80);
}

/// † Someone gave back what was granted to another.
#[test]
fn only_the_journal_that_a_grant_was_made_to_gives_it_back() {
    let (mut both, mut a, mut b) = Both::open(100);
    both.grant(&mut a, 50);
    b.standing.returned = 50;
    assert_eq!(view(both.ask(&b, &PoolAsk::Tell)).pool, 50);
}

/// † An answer of before a restart: the old process acts on beside the new one.
#[test]
fn a_process_of_before_the_restart_is_fenced() {
    let (mut both, a, _) = Both::open(100);
    let mut newer = a;
    newer.incarnation = Incarnation::new(2);
    assert_eq!(both.refused(&newer, &PoolAsk::Tell), PoolRefusal::NotJoined);
    assert_eq!(both.ask(&newer, &join(None)).refusal, None);
    let fenced = PoolRefusal::Fenced { incarnation: Incarnation::new(2) };
    for ask in [grant(0, 10), PoolAsk::Tell, join(None), PoolAsk::Total { added: 200 }] {
        assert_eq!(both.refused(&a, &ask), fenced, "{ask:?}");
    }
}

/// † An ask of an older epoch, still in flight, was carried out after the rebuild.
#[test]
fn an_ask_of_an_older_epoch_is_refused() {
    let (mut both, a, mut b) = Both::open(100);
    both.ask(&b, &PoolAsk::Join { home: None, bump_above: 1 });
    for ask in [
        grant(0, 10),
        PoolAsk::Tell,
        PoolAsk::Total { added: 500 },
        PoolAsk::Withdraw { from: 0, up_to: 5, key: KEY },
        join(Some(home(100, &[1, 2]))),
    ] {
        assert_eq!(both.refused(&a, &ask), PoolRefusal::Epoch, "{ask:?}");
    }
    both.follow(&mut b, None);
    assert_eq!(view(both.ask(&b, &grant(0, 10))).granted, 0, "shut");
}

/// † A failover promoted a replica that had missed a grant; its units were granted again.
#[test]
fn a_promoted_replica_that_missed_a_grant_grants_nothing_before_all_have_reported() {
    let (mut both, mut a, mut b) = Both::open(100);
    both.grant(&mut a, 40);
    let mut other = both.promoted(&a);
    assert_eq!(both.grant(&mut b, 60), 60, "the replica misses this");
    assert_eq!(other.refused(&a, &grant(40, 90)), PoolRefusal::Lost);
    assert!(!other.follow(&mut a, Some(home(100, &[1, 2]))).is_open);
    assert_eq!(view(other.ask(&a, &grant(40, 90))).granted, 40);
    let seen = other.follow(&mut b, None);
    assert_eq!((seen.is_open, seen.pool, seen.granted), (true, 0, 60));
}

/// † A return was carried out, and then forgotten by a failover.
#[test]
fn a_return_that_a_failover_forgot_counts_once_more_and_no_more() {
    let (mut both, mut a, mut b) = Both::open(100);
    both.grant(&mut a, 100);
    let mut other = both.promoted(&a);
    a.standing.returned = 60;
    assert_eq!(view(both.ask(&a, &PoolAsk::Tell)).pool, 60);
    assert_eq!(both.grant(&mut b, 60), 60, "sold again, on the server that died");
    other.follow(&mut a, Some(home(100, &[1, 2])));
    let seen = other.follow(&mut b, None);
    assert_eq!((seen.is_open, seen.pool), (true, 0), "40 + 60 are out");
}

/// † A data folder restored from a copy gave back units that it had sold.
#[test]
fn a_data_folder_restored_from_a_copy_is_turned_away() {
    let (mut both, mut a, _) = Both::open(100);
    both.grant(&mut a, 10);
    let copy = Asker { incarnation: Incarnation::new(7), ..a };
    both.grant(&mut a, 30);
    both.ask(&a, &PoolAsk::Tell);
    let old = PoolRefusal::OldCopy { accepted: 40, returned: 0 };
    assert_eq!(both.refused(&copy, &join(None)), old);
    let mut other = both.promoted(&a);
    assert_eq!(other.refused(&copy, &join(None)), old, "also while it is rebuilt");
}

/// † An empty disk under an old name.
#[test]
fn an_empty_disk_is_a_stranger() {
    let (mut both, mut a, _) = Both::open(100);
    both.grant(&mut a, 40);
    let mut empty = asker(item(1), 99);
    empty.epoch = a.epoch;
    assert_eq!(view(both.ask(&empty, &join(None))).granted, 0);
    empty.standing.returned = 40;
    assert_eq!(view(both.ask(&empty, &PoolAsk::Tell)).pool, 60);
}

/// † A rebuild with one node out of reach.
#[test]
fn a_rebuild_waits_for_the_node_that_is_out_of_reach() {
    let (mut both, mut a, mut b) = Both::open(100);
    both.grant(&mut a, 40);
    both.grant(&mut b, 10);
    both.ask(&a, &PoolAsk::Tell);
    assert_eq!(both.server.order(&["FLUSHALL"]), "ok");
    both.pool = Pool::default();
    assert_eq!(both.refused(&a, &PoolAsk::Tell), PoolRefusal::Lost);
    let unknown = HomeStanding { journals: None, ..home(100, &[]) };
    assert!(!both.follow(&mut a, Some(unknown)).is_open, "who there is is not known");
    assert!(!both.follow(&mut a, Some(home(100, &[1, 2]))).is_open);
    assert_eq!(view(both.ask(&a, &grant(40, 50))).granted, 40);
    let seen = both.follow(&mut b, None);
    assert_eq!((seen.is_open, seen.pool), (true, 50));
}

/// † The total is the home node's: added first in its journal, withdrawn first in the pool.
#[test]
fn a_withdrawal_found_after_a_lost_answer_is_known_by_its_key() {
    let (mut both, mut a, mut b) = Both::open(100);
    both.grant(&mut b, 70);
    both.ask(&a, &PoolAsk::Withdraw { from: 0, up_to: 50, key: KEY });
    a.incarnation = Incarnation::new(2);
    let seen = both.follow(&mut a, Some(home(100, &[1, 2])));
    assert_eq!((seen.withdrawn, seen.withdraw_key, seen.pool), (30, KEY, 0));
    let again = view(both.ask(&a, &PoolAsk::Withdraw { from: 0, up_to: 50, key: KEY }));
    assert_eq!(again.withdrawn, 30);
    assert_eq!(view(both.ask(&a, &PoolAsk::Total { added: 110 })).pool, 10);
}

/// † One drained bucket refused while others held stock.
#[test]
fn a_dry_nodes_want_is_seen_by_the_others_and_told() {
    let (mut both, mut a, mut b) = Both::open(10);
    both.grant(&mut a, 10);
    let mut listener = both.server.connection();
    let mut news = listener.as_pubsub();
    news.set_read_timeout(Some(PATIENCE)).unwrap();
    news.subscribe(both.endpoint.channel()).unwrap();
    assert_eq!(both.grant(&mut b, 3), 0);
    let mut heard = || news.get_message().unwrap().get_payload::<String>().unwrap();
    assert_eq!(heard(), format!("wanted {}", name(a.item)));
    assert_eq!(view(both.ask(&a, &PoolAsk::Tell)).lacking(), 3);
    a.standing.returned = 4;
    assert_eq!(view(both.ask(&a, &PoolAsk::Tell)).lacking(), 0);
    assert_eq!(heard(), format!("freed {}", name(a.item)));
    let ahead = PoolAsk::Grant { from: 10, up_to: 14, need: 0, nodes: 0, max: u64::MAX };
    assert_eq!(view(both.ask(&a, &ahead)).granted, 11, "three of the four are spoken for");
    assert_eq!(both.grant(&mut b, 3), 3);
}

/// † "Sold out" was final while a unit could still come back.
#[test]
fn sold_out_is_final_when_every_unit_is_confirmed_and_not_before() {
    let (mut both, mut a, mut b) = Both::open(10);
    both.grant(&mut a, 6);
    both.grant(&mut b, 4);
    a.standing.confirmed = 6;
    b.standing.confirmed = 3;
    both.ask(&a, &PoolAsk::Tell);
    assert!(!view(both.ask(&b, &PoolAsk::Tell)).is_sold_out);
    b.standing.confirmed = 4;
    let seen = view(both.ask(&b, &PoolAsk::Tell));
    assert!(seen.is_sold_out);
    a.standing.unconfirmed = 1;
    let after = view(both.ask(&a, &PoolAsk::Tell));
    assert!(!after.is_sold_out && after.generation > seen.generation);
}

#[test]
fn the_largest_numbers_are_exact() {
    let (mut both, a, _) = Both::open(0);
    let most = (1 << 53) - 1;
    let seen = view(both.ask(&a, &PoolAsk::Total { added: most }));
    assert_eq!((seen.added, seen.pool), (most, most));
    let ask = grant(0, most - 1);
    assert_eq!(view(both.ask(&a, &ask)).pool, 1);
}
