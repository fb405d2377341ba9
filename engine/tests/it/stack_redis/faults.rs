//! Redis stopped, restarted, emptied, slow by seconds, answering with errors: what the client says.

use super::*;
use crate::e2e::now;

/// What must hold after a server came back as another life: everything is refused until the node
/// has recorded the new epoch and joined, and then the counters are what the journal proved.
#[track_caller]
fn rebuilt(one: &mut Asking, a: &mut Asker, added: u64) -> PoolView {
    let answer = one.ask_until_answered(a, &PoolAsk::Tell);
    assert_eq!(answer.refusal, Some(PoolRefusal::Lost));
    let before = a.epoch;
    let seen = one.follow(a, Some(home(added, &[1])));
    assert!(a.epoch.number > before.number && a.epoch.server != before.server);
    assert_eq!((seen.is_open, seen.granted), (true, a.standing.accepted));
    seen
}

#[test]
fn without_redis_asks_are_answered_at_once_and_it_is_found_again() {
    let mut server = Server::start(&["--appendonly", "yes", "--appendfsync", "always"]);
    let mut one = Asking::new(&settings(&server.url()));
    let mut a = asker(item(1), 1);
    one.create(&mut a, 100, &[1]);
    a.standing.accepted = view(one.ask(&a, &grant(0, 40))).granted;
    one.wait_for(PoolNews::Reconnected);
    server.kill();
    for _ in 0..20 {
        let begun = now();
        let answer = one.ask(&a, &grant(40, 50));
        assert!(is_unavailable(&answer), "{answer:?}");
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    }
    assert!(!one.stock.stats().read().is_up);
    server.restart();
    assert_eq!(rebuilt(&mut one, &mut a, 100).pool, 60);
    one.wait_for(PoolNews::Reconnected);
}

/// † Redis restarted empty: nothing that it had granted was known.
#[test]
fn a_server_restarted_empty_grants_nothing_until_the_journal_has_reported() {
    let mut server = Server::start(&[]);
    let mut one = Asking::new(&settings(&server.url()));
    let mut a = asker(item(1), 1);
    one.create(&mut a, 100, &[1, 2]);
    a.standing.accepted = view(one.ask(&a, &grant(0, 40))).granted;
    server.restart();
    let answer = one.ask_until_answered(&a, &grant(40, 80));
    assert_eq!(answer.refusal, Some(PoolRefusal::Lost));
    assert_eq!(view(answer).epoch.number, 0, "it is not there");
    let seen = one.follow(&mut a, Some(home(100, &[1, 2])));
    assert_eq!((seen.is_open, seen.granted, seen.reported), (false, 40, 1));
    let mut b = asker(item(1), 2);
    b.standing.accepted = 25;
    let seen = one.follow(&mut b, None);
    assert_eq!((seen.is_open, seen.pool), (true, 35));
}

/// † A late answer: the grant was made after its asker had given up.
#[test]
fn a_server_that_is_slow_by_seconds_blocks_nobody_and_grants_nothing_twice() {
    let server = Server::start(&[]);
    let mut one = Asking::new(&RedisConfig { timeout_ms: 200, ..settings(&server.url()) });
    let mut a = asker(item(1), 1);
    one.create(&mut a, 100, &[1]);
    server.signal(Signal::STOP);
    let begun = now();
    let mut given_up = 0;
    while begun.elapsed() < Duration::from_millis(2_500) {
        let asked = now();
        one.send(&a, &grant(0, 10));
        assert!(asked.elapsed() < Duration::from_millis(100), "asking waited");
        let answer = one.answer();
        assert!(is_unavailable(&answer), "{answer:?}");
        assert!(asked.elapsed() < Duration::from_secs(3), "{:?}", asked.elapsed());
        given_up += 1;
        std::thread::sleep(Duration::from_millis(20));
    }
    server.signal(Signal::CONT);
    let answer = one.ask_until_answered(&a, &grant(0, 10));
    let seen = view(answer);
    assert_eq!((seen.granted, seen.pool), (10, 90), "{given_up} asks were given up");
    let figures = one.stock.stats().read();
    assert!(figures.timeouts > 0 && figures.links > 1, "{figures:?}");
}

#[test]
fn more_asks_than_the_queue_holds_are_given_up_without_waiting() {
    let server = Server::start(&[]);
    let mut one = Asking::new(&settings(&server.url()));
    let mut a = asker(item(1), 1);
    one.create(&mut a, 100, &[1]);
    server.signal(Signal::STOP);
    let begun = now();
    for _ in 0..50_000 {
        one.stock.ask(a, PoolAsk::Tell);
    }
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    server.signal(Signal::CONT);
    wait_until("the client works again", PATIENCE, || {
        let answers = one.heard.try_iter().count();
        answers == 0 && !is_unavailable(&one.ask(&a, &PoolAsk::Tell))
    });
}

#[test]
fn a_server_that_answers_with_errors_is_not_given_up_and_the_error_is_told() {
    let server = Server::start(&[]);
    let mut one = Asking::new(&settings(&server.url()));
    let mut a = asker(item(1), 1);
    one.create(&mut a, 100, &[1]);
    // No memory to write with.
    server.order(&["CONFIG", "SET", "maxmemory", "1"]);
    let answer = one.ask(&a, &grant(0, 10));
    let Some(PoolRefusal::Unavailable(why)) = answer.refusal else { panic!("{answer:?}") };
    assert!(why.contains("OOM") || why.contains("maxmemory"), "{why}");
    server.order(&["CONFIG", "SET", "maxmemory", "0"]);
    assert_eq!(view(one.ask(&a, &grant(0, 10))).granted, 10);
    assert_eq!(one.stock.stats().read().links, 1, "the same connection");
}

/// † A master demoted and promoted again keeps its `run_id`; what it missed meanwhile is missed.
#[test]
fn a_master_that_was_a_replica_in_between_is_another_life() {
    let (server, master) = (Server::start(&[]), Server::start(&[]));
    let mut one = Asking::new(&settings(&server.url()));
    let mut a = asker(item(1), 1);
    one.create(&mut a, 100, &[1]);
    a.standing.accepted = view(one.ask(&a, &grant(0, 40))).granted;
    server.order(&["REPLICAOF", "127.0.0.1", &master.port.to_string()]);
    wait_until("it is a replica", PATIENCE, || {
        server.order(&["INFO", "replication"]).contains("master_link_status:up")
    });
    let told = one.ask_until_answered(&a, &PoolAsk::Tell);
    assert_eq!(told.refusal, Some(PoolRefusal::Lost), "its master knows nothing of us");
    assert!(
        is_unavailable(&one.ask(&a, &join(Some(home(100, &[1]))))),
        "a replica takes no writes"
    );
    server.order(&["REPLICAOF", "NO", "ONE"]);
    assert_eq!(rebuilt(&mut one, &mut a, 100).pool, 60);
}

/// Restarts of the client between every two steps: what was granted is found, nothing twice.
#[test]
fn a_node_killed_between_asking_and_hearing_finds_its_grant() {
    let server = Server::start(&[]);
    let mut a = asker(item(1), 1);
    Asking::new(&settings(&server.url())).create(&mut a, 1_000, &[1]);
    for round in 1..=20 {
        let mut one = Asking::new(&settings(&server.url()));
        a.incarnation = Incarnation::new(1 + round);
        let found = one.follow(&mut a, Some(home(1_000, &[1])));
        assert!(found.granted >= a.standing.accepted);
        a.standing.accepted = found.granted;
        assert_eq!(found.pool + found.granted, 1_000);
        one.send(&a, &grant(a.standing.accepted, a.standing.accepted + 7));
        if round % 2 == 0 {
            one.answer();
        }
    }
}
