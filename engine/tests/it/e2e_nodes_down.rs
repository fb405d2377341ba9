//! Three nodes of which some are away: never a hang, never a silence about it, and nothing lost.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::e2e::{Random, measured, now, turn, wait_until};
use crate::e2e_client::{Client, Reply};
use crate::e2e_mall::{Mall, NAMES};
use crate::http_client::Ask;
use crate::http_spec::{Listener, Spec};
use crate::stack_lease::proxy::Proxy;

/// An answer that waits for a node that is away would take `cluster.answer_timeout_ms`, 60 s here.
const AT_ONCE: Duration = Duration::from_secs(10);

fn slow_to_give_up(site: &mut crate::e2e::Site) {
    site.set("cluster.answer_timeout_ms", "60000");
    site.set("cluster.probe_timeout_ms", "1000");
}

#[track_caller]
fn is_down(reply: &Reply) {
    assert_eq!((reply.status, reply.code().as_str()), (503, "node-down"), "{}", reply.body);
    let wait = reply.header("retry-after").and_then(|s| s.parse::<u32>().ok());
    assert!(wait.is_some_and(|s| (1..=5).contains(&s)), "{reply:?}");
}

#[test]
fn a_node_that_is_down_is_said_to_be_at_once_and_named_to_operators() {
    let _turn = turn();
    let mut mall = Mall::start_with(slow_to_give_up);
    let spec = Spec::load();
    mall.node(0).import_members(1, 60, 1_000);
    let sales = mall.open_sales("d", &[("cup", 10, 100, 5)]);
    let theirs = mall.member_of(2);
    let wish = mall.wish(&sales, theirs, "k");
    mall.client(0).redeem(&wish).expect(201);

    // Killed: the very first request finds out.
    mall.take(2).kill();
    let begun = now();
    let path = "/v1/members/me/points";
    is_down(&mall.client(0).get_as(theirs, path));
    is_down(&mall.client(1).redeem(&wish));
    is_down(&mall.admin(0).get(&format!("/v1/members/{theirs}")));
    for _ in 0..100 {
        is_down(&mall.client(0).get_as(theirs, path));
    }
    assert!(begun.elapsed() < AT_ONCE, "{:?}", begun.elapsed());
    // The others go on.
    for at in [0, 1] {
        let member = mall.member_of(at);
        mall.client(1 - at).redeem(&mall.wish(&sales, member, "k")).expect(201);
    }
    // Batches: its items alone fail, each in its place.
    let items: Vec<Value> = (1..=60u64)
        .map(|member| {
            json!({ "member": member, "key": "batch", "quantity": 1, "sku": "cup",
                    "sale": sales[mall.owner_of(member)] })
        })
        .collect();
    let batch = |at: usize| {
        let headers = [("x-gateway-secret", "e2e-secret")];
        let body = json!({ "items": items }).to_string();
        let reply = mall.client(at).send("POST", "/v1/redemptions:batch", &headers, &body);
        reply.expect("an answer").expect(200).json()
    };
    let results = batch(0);
    spec.validate_named("BatchResults", &results);
    for (member, result) in (1..).zip(results["results"].as_array().expect("results")) {
        if mall.owner_of(member) == 2 {
            assert_eq!((&result["status"], &result["code"]), (&json!(503), &json!("node-down")));
        } else {
            assert_eq!(result["status"], 201, "{member}: {result}");
        }
    }
    // An operator's call for a sale: done where it can be, and the rest is named.
    let admin = |at: usize, ask: &Ask| {
        let answer = ask.send(mall.node(at).admin);
        spec.check(Listener::Admin, ask, &answer);
        answer
    };
    let definition =
        crate::http_client::definition("while-down", "2026-01-01T00:00:00Z", &[("cup", 10, 5, 2)]);
    let define = Ask::post("/v1/sales").json(&definition);
    let pause = Ask::post(&format!("/v1/sales/{}/pause", sales[0]));
    let import =
        (1..=300).fold(String::from("member,points\n"), |csv, m| csv + &format!("{m},1\n"));
    let import = Ask::post("/v1/members:import").body("text/csv", import.as_bytes());
    for ask in [&define, &pause, &import] {
        let answer = admin(0, ask);
        assert_eq!((answer.status, answer.code().as_str()), (503, "nodes-not-reached"));
        assert_eq!(answer.json()["nodes"], json!([{ "node": "c", "code": "node-down" }]));
    }
    for at in [0, 1] {
        let state = |sale: &str| {
            let sale = mall.admin(at).get(&format!("/v1/sales/{sale}")).expect(200).json();
            assert_eq!(sale["nodes_missed"], json!([{ "node": "c", "code": "node-down" }]));
            sale["state"].clone()
        };
        assert_eq!([state("while-down"), state(&sales[0])], [json!("open"), json!("paused")]);
    }

    // It comes back: the same calls again complete what was missing.
    mall.start_node(2);
    mall.wait_health(0, 2, "up");
    mall.wait_health(1, 2, "up");
    let admin = |at: usize, ask: &Ask| {
        let answer = ask.send(mall.node(at).admin);
        spec.check(Listener::Admin, ask, &answer);
        answer
    };
    for ask in [&define, &pause] {
        assert_eq!(admin(0, ask).status, 200);
    }
    let counts = admin(1, &import).json();
    let opened = (61..=300).filter(|m| mall.owner_of(*m) == 2).count();
    assert_eq!(counts["opened"], opened, "{counts}");
    assert_eq!(counts["rows"], 300);
    let there = mall.admin(2).get("/v1/sales/while-down?nodes=self").expect(200).json();
    assert_eq!(there["state"], "open");
    let replay = mall.client(0).redeem(&wish).expect(201);
    assert_eq!(replay.header("idempotent-replayed"), Some("true"));
    for at in 0..3 {
        mall.node(at).audit();
    }
}

#[test]
fn a_node_that_stands_still_holds_nobody_up() {
    let _turn = turn();
    let mall = Mall::start_with(slow_to_give_up);
    mall.node(0).import_members(1, 60, 1_000);
    let theirs = mall.member_of(2);
    let path = "/v1/members/me/points";
    // Its kernel still takes connections and bytes; only the probes find out.
    mall.node(2).signal(Signal::STOP);
    let begun = now();
    let mut patient = mall.client(0).with_patience(Duration::from_secs(50));
    is_down(&patient.get_as(theirs, path));
    assert!(begun.elapsed() < AT_ONCE, "{:?}", begun.elapsed());
    measured("a node stands still, until its members hear 503", begun);
    let begun = now();
    for _ in 0..100 {
        is_down(&mall.client(0).get_as(theirs, path));
    }
    assert!(begun.elapsed() < AT_ONCE);
    let mine = mall.member_of(0);
    mall.client(0).get_as(mine, path).expect(200);
    mall.node(2).signal(Signal::CONT);
    let begun = now();
    mall.wait_health(0, 2, "up");
    measured("a node that stood still goes on, until it is asked again", begun);
    mall.client(0).get_as(theirs, path).expect(200);
}

#[test]
fn a_cut_way_between_running_nodes_costs_only_what_would_be_passed_on() {
    let _turn = turn();
    let mut mall = Mall::prepare(slow_to_give_up);
    let ways = mall.put_ways_before(2);
    mall.start_all();
    mall.node(0).import_members(1, 60, 1_000);
    let sales = mall.open_sales("w", &[("cup", 10, 100, 5)]);
    let theirs = mall.member_of(2);
    let path = "/v1/members/me/points";
    mall.client(0).get_as(theirs, path).expect(200);

    ways.iter().for_each(Proxy::cut);
    let begun = now();
    let mut patient = mall.client(0).with_patience(Duration::from_secs(50));
    is_down(&patient.get_as(theirs, path));
    assert!(begun.elapsed() < AT_ONCE, "{:?}", begun.elapsed());
    measured("the way to a node is cut, until its members hear 503 elsewhere", begun);
    // Whoever asks the node itself is served, and so are the members of the others.
    let wish = mall.wish(&sales, theirs, "at-its-own-node");
    mall.client(2).redeem(&wish).expect(201);
    for at in [0, 1] {
        let member = mall.member_of(at);
        mall.client(1 - at).redeem(&mall.wish(&sales, member, "k")).expect(201);
    }

    ways.iter().for_each(Proxy::heal);
    let begun = now();
    mall.wait_health(0, 2, "up");
    measured("the way to a node is back, until it is asked again", begun);
    let replay = mall.client(0).redeem(&wish).expect(201);
    assert_eq!(replay.header("idempotent-replayed"), Some("true"));
    for at in 0..3 {
        mall.node(at).audit();
    }
}

#[test]
fn a_map_that_contradicts_the_journal_is_refused_with_one_line() {
    let _turn = turn();
    let mut mall = Mall::prepare(|_| {});
    mall.start_node(1);
    assert!(mall.take(1).stop().success());
    let refused = |site: &crate::e2e::Site| {
        let (code, _, err) = crate::e2e::run(&mut site.serve());
        assert!(code.is_some_and(|code| code != 0), "it started:\n{err}");
        let lines: Vec<_> = err.lines().filter(|line| line.starts_with("onrush: ")).collect();
        let [line] = lines[..] else { panic!("not one line:\n{err}") };
        line.to_owned()
    };
    let claimed = "owns slots 1365-2729 (claimed as node b)";
    mall.sites[1].set("cluster.self", "\"c\"");
    let why = refused(&mall.sites[1]);
    assert!(why.contains(claimed) && why.contains("gives node c slots 2730-4095"), "{why}");
    mall.sites[1].set("cluster.nodes", "[]");
    let why = refused(&mall.sites[1]);
    assert!(why.contains(claimed) && why.contains("node (alone) slots 0-4095"), "{why}");

    // The other way round: a folder of a node that was alone joins only with the slots it uses.
    let alone = crate::e2e::Site::new();
    let node = alone.start();
    node.import_members(1, 30, 100);
    assert!(node.stop().success());
    let mut joins = Mall::prepare(|_| {}).sites.remove(0).with_data(alone.data());
    let why = refused(&joins);
    assert!(why.contains("has members in slot"), "{why}");
    joins.set("cluster.nodes", "[]");
    joins.start().audit();
}

/// What a client of the rolling restart has seen.
#[derive(Default)]
struct Seen {
    confirmed: AtomicU64,
    retried_503: AtomicU64,
    reconnected: AtomicU64,
    is_over: AtomicBool,
}

#[test]
fn a_rolling_restart_costs_clients_nothing_but_retried_503s() {
    let _turn = turn();
    let mut mall = Mall::start();
    mall.node(0).import_members(1, 300, 1_000_000);
    let sales = mall.open_sales("roll", &[("cup", 1, 1_000_000, 1_000_000)]);
    let confirmed = restart_all_in_turn(&mut mall, |owner| sales[owner].clone());
    let sold: u64 = sales.iter().map(|sale| sold_of(&mall, sale)).sum();
    assert_eq!(sold, confirmed, "each request had one effect, and each effect its answer");
    for at in 0..3 {
        mall.node(at).audit();
    }
}

/// Units of a sale's cups that are confirmed on all nodes.
#[track_caller]
pub fn sold_of(mall: &Mall, sale: &str) -> u64 {
    let view = mall.admin(1).get(&format!("/v1/sales/{sale}")).expect(200).json();
    view["items"][0]["confirmed"].as_u64().expect("units")
}

/// Stops and starts one node after the other while clients buy, each insisting until it is
/// confirmed; gives how many were. Members 1 to 300 buy of the sale that `sale_for` their owner.
pub fn restart_all_in_turn(mall: &mut Mall, sale_for: impl Fn(usize) -> String + Sync) -> u64 {
    let addresses: Vec<_> = (0..3).map(|at| mall.node(at).public).collect();
    let owners: Vec<usize> = (0..=300).map(|member| mall.owner_of(member)).collect();
    let seen = Seen::default();
    let seed = Random::new("a rolling restart").next();
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let (seen, sale_for, addresses, owners) = (&seen, &sale_for, &addresses, &owners);
            scope.spawn(move || {
                let mut random = Random::from_seed(seed ^ thread);
                let mut clients: Vec<Client> =
                    addresses.iter().map(|address| Client::new(*address)).collect();
                for n in 0.. {
                    if seen.is_over.load(Ordering::Relaxed) {
                        break;
                    }
                    let member = 1 + random.below(300);
                    let sale = &sale_for(owners[member as usize]);
                    let wish =
                        crate::e2e_client::Wish::new(member, format!("{thread}-{n}"), sale, "cup");
                    insist(&mut clients, &mut random, seen, &wish);
                }
            });
        }
        let confirmed = |more: u64| {
            let goal = seen.confirmed.load(Ordering::Relaxed) + more;
            wait_until("requests go on", Duration::from_mins(1), || {
                seen.confirmed.load(Ordering::Relaxed) >= goal
            });
        };
        confirmed(200);
        for (at, name) in NAMES.into_iter().enumerate() {
            let status = mall.take(at).stop();
            assert!(status.success(), "{name}: {status}");
            // Each client insists, so in the end all of them want something of this node.
            let before = seen.retried_503.load(Ordering::Relaxed);
            wait_until("requests are refused", Duration::from_mins(1), || {
                seen.retried_503.load(Ordering::Relaxed) > before
            });
            mall.start_node(at);
            confirmed(200);
        }
        seen.is_over.store(true, Ordering::Relaxed);
    });
    let [confirmed, retried, reconnected] =
        [&seen.confirmed, &seen.retried_503, &seen.reconnected].map(|n| n.load(Ordering::Relaxed));
    println!("{confirmed} confirmed, {retried} times 503, {reconnected} connections made anew");
    assert!(retried > 0, "requests for a node that was away were refused");
    confirmed
}

/// Whether no request was taken: not one that was cut off in mid-answer, or not answered in time.
fn is_away(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{BrokenPipe, ConnectionRefused, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), ConnectionRefused | ConnectionReset | BrokenPipe | UnexpectedEof)
}

/// Asks one node after the other until the redemption is confirmed.
fn insist(
    clients: &mut [Client],
    random: &mut Random,
    seen: &Seen,
    wish: &crate::e2e_client::Wish,
) {
    let begun = now();
    let mut so_far = Vec::new();
    while begun.elapsed() < Duration::from_mins(1) {
        let at = random.below(3) as usize;
        match clients[at].try_redeem(wish) {
            Ok(reply) if reply.status == 201 => {
                let is_again = reply.header("idempotent-replayed").is_some();
                // A request that was passed on when its node went may have reached it: the 503 says
                // so. Nothing else that was taken goes without its answer.
                let may_be_taken = so_far.iter().any(|(_, what)| what == "node-down");
                assert!(!is_again || may_be_taken, "its answer was dropped: {wish:?}, {so_far:?}");
                seen.confirmed.fetch_add(1, Ordering::Relaxed);
                return;
            }
            Ok(reply) => {
                assert_eq!(reply.status, 503, "{}", reply.body);
                assert!(reply.header("retry-after").is_some());
                seen.retried_503.fetch_add(1, Ordering::Relaxed);
                so_far.push((at, reply.code()));
                std::thread::sleep(Duration::from_millis(20));
            }
            // A node that is away takes no connections; one that ends closes those that lie idle.
            Err(error) => {
                assert!(is_away(&error), "neither an answer nor a closed connection: {error}");
                so_far.push((at, error.to_string()));
                seen.reconnected.fetch_add(1, Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }
    panic!("never confirmed: {wish:?}");
}
