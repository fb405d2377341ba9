//! The ledger check: an honest mall passes, and each kind of lie is caught with exit 3.

use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crate::mall::{Lie, Mall, START, open};
use crate::server::{Ask, Say, Server};
use crate::tool::{Ran, number, run, run_aside};

const LOAD: [&str; 14] = [
    "--sale",
    "s1",
    "--members",
    "1-20",
    "--rate",
    "600",
    "--seconds",
    "1",
    "--connections",
    "8",
    "--duplicates",
    "0.3",
    "--seed",
    "7",
];

/// Every redemption holds first, and every hold is confirmed: no unit comes back.
const HOLDS: [&str; 8] = ["--holds", "1", "--confirms", "1", "--cancels", "0", "--think", "0.05"];

fn mall() -> Mall {
    Mall::with_stock(&[("a", 40), ("b", 50)])
}

/// Checks a mall, with the admin's figures and the balances where they are asked for.
fn checked(mall: Mall, more: &[&str]) -> Ran {
    let (server, _mall) = open(mall);
    let url = server.url();
    let mut args = LOAD.to_vec();
    if more.contains(&"--members") {
        args.drain(2..4);
    }
    args.extend(["--check", "--admin", &url]);
    args.extend_from_slice(more);
    run(&url, &args)
}

fn findings(ran: &Ran) -> Vec<String> {
    let found = ran.summary["ledger"]["findings"].as_array().unwrap();
    found.iter().map(|f| format!("{}: {}", f["kind"], f["text"])).collect()
}

#[test]
fn an_honest_mall_passes() {
    let ran = checked(mall(), &["--balances", "ask"]);
    assert_eq!(ran.code, 0, "{:?} {}", findings(&ran), ran.summary["invalid_reasons"]);
    assert_eq!(number(&ran, "/check/found_over_api") as u64, 90);
    assert!(number(&ran, "/check/members_with_known_balance") > 10.0);
    assert_eq!(number(&ran, "/check/undersold") as u64, 0);
}

#[test]
fn an_honest_mall_with_holds_and_a_store_passes() {
    let dir = tempfile::tempdir().unwrap();
    let store = format!("sqlite:{}", dir.path().display());
    let ran = checked(
        mall().with_store(dir.path()),
        &[
            "--holds",
            "0.7",
            "--cancels",
            "0.2",
            "--think",
            "0.1",
            "--store",
            &store,
            "--balances",
            "ask",
        ],
    );
    assert_eq!(ran.code, 0, "{:?} {}", findings(&ran), ran.summary["invalid_reasons"]);
    assert_eq!(ran.summary["check"]["found_in_store"], ran.summary["ledger"]["accepted"]);
    assert!(number(&ran, "/ledger/released") > 3.0, "{}", ran.summary["ledger"]);
}

#[test]
fn a_kill_in_the_run_is_no_violation() {
    let (server, _mall) = open(Mall::with_stock(&[("a", 300)]));
    let url = server.url();
    let aside = run_aside(
        &url,
        &[
            "--sale",
            "s1",
            "--members",
            "1-5000",
            "--rate",
            "800",
            "--seconds",
            "1.5",
            "--check",
            "--admin",
            &url,
            "--balances",
            "ask",
        ],
    );
    // The balances are asked for first: 5000 requests of the check itself.
    while server.served() < 5200 {
        thread::sleep(Duration::from_millis(1));
    }
    server.stall(Duration::from_millis(60));
    thread::sleep(Duration::from_millis(30));
    server.kill();
    thread::sleep(Duration::from_millis(200));
    let _second = server.restart();
    let ran = aside.join().unwrap();
    assert_eq!(ran.code, 0, "{:?} {}", findings(&ran), ran.stderr);
    assert_eq!(number(&ran, "/check/found_over_api") as u64, 300);
    assert_eq!(ran.summary["outages"].as_array().unwrap().len(), 1);
}

/// Holds that others left behind end in the run, and their units and points are had again.
#[test]
fn holds_from_before_the_run_may_end_in_it() {
    for (balances, lie, code) in [
        (&[][..], Lie::None, 0),
        (&["--balances", "ask"], Lie::None, 0),
        (&["--balances", "ask"], Lie::TakesFromRefused, 3),
    ] {
        let mut before = mall().lying(lie);
        let held = [before.begin(5, "a", "held"), before.begin(6, "a", "held")];
        // One more is held to the end.
        before.begin(7, "b", "held");
        let mall = Mutex::new(before);
        let server = Server::start(move |ask| {
            let mut mall = mall.lock().unwrap();
            if ask.number == 150 {
                for id in &held {
                    let path = format!("/v1/redemptions/{id}/cancel");
                    mall.handle(&Ask { method: "POST".into(), path, ..Ask::default() });
                }
            }
            mall.handle(ask)
        });
        let url = server.url();
        let ran = run(&url, &[&LOAD[..], &["--check", "--admin", &url], balances].concat());
        assert_eq!(ran.code, code, "{lie:?}: {:?} {}", findings(&ran), ran.stderr);
        if code == 0 {
            assert_eq!(number(&ran, "/ledger/units") as u64, 89, "all but the one that is held");
        }
    }
}

#[test]
fn a_lost_answer_is_asked_for_by_its_key() {
    let (ran, mall) = answers_lost(Lie::None);
    assert_eq!(ran.code, 0, "{:?} {}", findings(&ran), ran.stderr);
    assert!(number(&ran, "/check/resolved_with_effect") > 3.0, "{}", ran.stdout);
    assert_eq!(number(&ran, "/ledger/unknown") as u64, 0);
    assert_eq!(number(&ran, "/ledger/accepted") as usize, mall.lock().unwrap().answers.len());
}

#[test]
fn a_key_with_two_redemptions_is_found() {
    let (ran, _mall) = answers_lost(Lie::KeepsTwo);
    assert_eq!(ran.code, 3, "{} {}", ran.stdout, ran.stderr);
    assert!(findings(&ran)[0].contains("one key, 2 redemptions"), "{:?}", findings(&ran));
}

/// A run whose server dies with answers on their way, and is asked for them afterwards.
fn answers_lost(lie: Lie) -> (Ran, Arc<Mutex<Mall>>) {
    let (server, mall) = open(Mall::with_stock(&[("a", 1000)]).lying(lie));
    let url = server.url();
    let aside = run_aside(
        &url,
        &[
            "--sale",
            "s1",
            "--members",
            "1-5000",
            "--rate",
            "200",
            "--seconds",
            "1",
            "--check",
            "--attempts",
            "1",
            "--admin",
            &url,
        ],
    );
    while server.served() < 80 {
        thread::sleep(Duration::from_millis(1));
    }
    server.stall(Duration::from_millis(100));
    thread::sleep(Duration::from_millis(50));
    server.kill();
    let _second = server.restart();
    (aside.join().unwrap(), mall)
}

#[test]
fn each_kind_of_lie_is_caught_with_the_request_it_is_about() {
    // (the lie, what it is called, flags that are needed to see it)
    let cases: &[(Lie, &str, &[&str])] = &[
        (Lie::SellsTwice, "oversold", &[]),
        (Lie::Forgets, "lost", &[]),
        (Lie::LosesAccepted, "lost", &[]),
        (Lie::ChangesAnswer, "answer-changed", &[]),
        (Lie::RefusesReplay, "answer-changed", &[]),
        (Lie::RedeemsAgain, "answer-changed", &[]),
        (Lie::ChargesTwice, "points-differ", &[]),
        (Lie::ChargesTwiceOpenly, "points-differ", &["--balances", "ask"]),
        (Lie::ChargesRefused, "points-differ", &["--balances", "ask", "--members", "1-500"]),
        (Lie::HidesLastUnit, "undersold", &[]),
        (Lie::HidesPool, "undersold", &[]),
        (Lie::RefusesLastUnit, "undersold", &[]),
        (Lie::RefusesLastUnit, "undersold", &HOLDS),
        (Lie::TakesFromRefused, "units-differ", &[]),
        (Lie::ForgetsLimit, "limit-passed", &[]),
        (Lie::ForgetsConfirm, "not-as-answered", &["--holds", "1", "--think", "0.1"]),
    ];
    let runs: Vec<Ran> = thread::scope(|scope| {
        let running: Vec<_> = cases
            .iter()
            .map(|(lie, _, more)| scope.spawn(|| checked(mall().lying(*lie), more)))
            .collect();
        running.into_iter().map(|r| r.join().unwrap()).collect()
    });
    for ((lie, kind, _), ran) in cases.iter().zip(runs) {
        assert_eq!(ran.code, 3, "{lie:?}: {:?} {}", findings(&ran), ran.stderr);
        let found = findings(&ran);
        assert!(found.iter().any(|f| f.contains(kind)), "{lie:?}: {found:?}");
        // By its key; or all of a member's, where it is their sum that is wrong.
        let names_one = |f: &&String| f.contains("key load-7-") || f.contains("member ");
        let about_it = found.iter().filter(|f| f.contains(kind));
        for finding in about_it {
            assert!(names_one(&finding), "{lie:?} names no request: {finding}");
        }
    }
}

/// A violated ledger goes before an invalid run, and that before a missed threshold.
#[test]
fn where_several_hold_the_ledger_goes_first() {
    for (lie, code) in [(Lie::ChangesAnswer, 3), (Lie::None, 2)] {
        let (server, _mall) = open(mall().lying(lie));
        let mut args = LOAD.to_vec();
        args.extend(["--check", "--max-lag", "0.2", "--threshold", "p50<1us"]);
        let aside = run_aside(&server.url(), &args);
        while server.served() < 300 {
            thread::sleep(Duration::from_millis(1));
        }
        server.stall(Duration::from_millis(600));
        let ran = aside.join().unwrap();
        assert_eq!(ran.code, code, "{lie:?}: {} {}", ran.stdout, ran.stderr);
        assert_eq!(ran.summary["valid"], false, "{lie:?}: {}", ran.stdout);
        assert_eq!(ran.summary["thresholds"][0]["passed"], false);
    }
}

#[test]
fn lies_of_the_store_are_caught() {
    let cases = [
        (Lie::StoreLoses, "lost"),
        (Lie::StoreInvents, "unasked-effect"),
        (Lie::StoreInventsLate, "unasked-effect"),
        (Lie::StoreMiscounts, "its ledger rows move"),
        (Lie::StoreChargesNobody, "the ledger has rows of redemption 0000000000008000900"),
    ];
    for (lie, kind) in cases {
        let dir = tempfile::tempdir().unwrap();
        let store = format!("sqlite:{}", dir.path().display());
        let ran = checked(
            mall().with_store(dir.path()).lying(lie),
            &["--store", &store, "--store-wait", "1"],
        );
        assert_eq!(ran.code, 3, "{lie:?}: {:?} {}", findings(&ran), ran.stderr);
        assert!(findings(&ran).iter().any(|f| f.contains(kind)), "{lie:?}: {:?}", findings(&ran));
    }
}

#[test]
fn balances_from_a_file_serve_as_well() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("members.csv");
    let rows: Vec<_> = (1..=20).map(|m| format!("{m},{START}\n")).collect();
    std::fs::write(&file, format!("member,points\n{}", rows.concat())).unwrap();
    let balances = ["--balances", file.to_str().unwrap()];
    let ran = checked(mall(), &balances);
    assert_eq!(ran.code, 0, "{:?}", findings(&ran));
    let check = &ran.summary["check"];
    assert_eq!(check["members"], check["members_with_known_balance"]);
    let ran = checked(mall().lying(Lie::ChargesTwiceOpenly), &balances);
    assert_eq!(ran.code, 3);
}

#[test]
fn a_check_that_cannot_look_makes_the_run_invalid() {
    let (server, _mall) = open(mall());
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("x.sqlite"), "no database").unwrap();
    let store = format!("sqlite:{}", dir.path().display());
    let url = server.url();
    let mut args = vec!["run", "--target", &url];
    args.extend(LOAD);
    args.extend(["--check", "--store", &store]);
    let ran = crate::tool::tool(&args);
    assert_eq!(ran.code, 1, "before the run it is plain usage");
    assert!(ran.stderr.contains("store"), "{}", ran.stderr);
    // Gone after the load: what was answered cannot be looked at.
    let aside = run_aside(&url, &{
        let mut args = LOAD.to_vec();
        args.extend(["--check", "--timeout", "1"]);
        args
    });
    thread::sleep(Duration::from_millis(600));
    while server.served() < 650 {
        thread::sleep(Duration::from_millis(1));
    }
    thread::sleep(Duration::from_millis(2));
    server.kill();
    let ran = aside.join().unwrap();
    assert_eq!(ran.code, 2, "{} {}", ran.stdout, ran.stderr);
    assert!(ran.summary["invalid_reasons"].to_string().contains("could not be checked"));
}

#[test]
fn a_file_of_accepted_redemptions_is_held_against_the_database_shards() {
    for (lie, code) in [(Lie::None, 0), (Lie::StoreLoses, 3)] {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("db")).unwrap();
        let (server, _mall) = open(mall().with_store(&dir.path().join("db")).lying(lie));
        let file = dir.path().join("accepted.jsonl");
        let (file, data) = (file.to_str().unwrap(), dir.path().to_str().unwrap());
        let mut args = LOAD.to_vec();
        // A hold's row is written anew when it is confirmed: what is lost then is not missing.
        let holds = if lie == Lie::None { "0.5" } else { "0" };
        args.extend(["--holds", holds, "--think", "0.1", "--accepted", file]);
        assert_eq!(run(&server.url(), &args).code, 0);
        let ran = crate::tool::tool(&["check", "--accepted", file, "--data", data]);
        assert_eq!(ran.code, code, "{} {}", ran.stdout, ran.stderr);
        let expected = if code == 0 { "as answered" } else { "not in the database shards" };
        assert!(ran.stdout.contains(expected), "{}", ran.stdout);
    }
    let ran = crate::tool::tool(&["check", "--accepted", "/no/such", "--data", "/no/such"]);
    assert_eq!(ran.code, 1);
    assert_eq!(crate::tool::tool(&["check"]).code, 1);
}

/// The engine takes sales of a thousand items with long names.
#[test]
fn a_sale_of_a_thousand_items_is_loaded_and_checked() {
    let skus: Vec<String> = (0..1000).map(|n| format!("{n:0>60}")).collect();
    let stock: Vec<(&str, u64)> = skus.iter().map(|sku| (&**sku, 5)).collect();
    let ran = checked(Mall::with_stock(&stock), &["--members", "1-9999"]);
    assert_eq!(ran.code, 0, "{:?} {}", findings(&ran), ran.stderr);
    assert_eq!(ran.summary["ledger"]["items"].as_array().unwrap().len(), 1000);
}

/// What was asked for after the run comes a byte at a time, or without end.
#[test]
fn an_answer_without_end_does_not_hold_the_check_up() {
    const MUCH: [u8; 16 << 10] = [b'x'; 16 << 10];
    for drip in [&b"x"[..], &MUCH] {
        let mall = Arc::new(Mutex::new(Mall::with_stock(&[("a", 1000)])));
        let server = Server::start(move |ask| {
            if ask.path.starts_with("/v1/redemptions/") && ask.method == "GET" {
                let head = b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n";
                return Say { drip: Some(drip), ..Say::raw(head, false) };
            }
            mall.lock().unwrap().handle(ask)
        });
        let begun = Instant::now();
        let load = ["--sale", "s1", "--rate", "50", "--seconds", "0.2", "--timeout", "1"];
        let ran = run(&server.url(), &[&load[..], &["--check"]].concat());
        assert_eq!(ran.code, 2, "{} {}", ran.stdout, ran.stderr);
        assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
        assert!(ran.summary["invalid_reasons"].to_string().contains("could not be checked"));
    }
}

/// A mall that accepts everything, and needs no memory to know what it said.
fn generous() -> Server {
    let view = |id: &str| {
        format!(
            r#"{{"id":"{id}","sale":"s1","sku":"a","quantity":1,"points":0,
            "state":"confirmed","balance":7}}"#
        )
    };
    Server::start(move |ask| {
        if let Some(key) = &ask.key {
            let number: u64 = key.rsplit('-').next().unwrap().parse().unwrap();
            return Say::json(201, &view(&format!("00000000-0000-8000-8000-{number:012x}")));
        }
        match ask.path.rsplit('/').next().unwrap() {
            "s1" => Say::json(200, r#"{"items":[{"sku":"a","free":9000000}]}"#),
            "points" => Say::json(200, r#"{"free":7,"held":0}"#),
            id => Say::json(200, &view(id)),
        }
    })
}

/// What the README states: memory for what was accepted, and no more. Both runs send at one rate,
/// or as far below it as the machine is too slow: all that differs is for how long.
#[test]
fn the_check_holds_so_many_bytes_for_each_accepted_redemption() {
    const MOST_BYTES: f64 = 350.0;
    const RATE: u32 = 10_000;
    let server = generous();
    let peak = |seconds: u32| {
        let (rate, length) = (RATE.to_string(), seconds.to_string());
        let load = ["--sale", "s1", "--rate", &rate, "--seconds", &length, "--max-lag", "600"];
        let more = ["--members", "1-900000000", "--drain", "600", "--pipeline", "8", "--check"];
        let ran = run(&server.url(), &[&load[..], &more].concat());
        assert_eq!(ran.code, 0, "{} {}", ran.stdout, ran.stderr);
        assert_eq!(number(&ran, "/check/found_over_api") as u32, seconds * RATE);
        number(&ran, "/generator/peak_memory_bytes")
    };
    let (few, many) = (peak(1), peak(11));
    let each = (many - few) / f64::from(10 * RATE);
    println!("{each:.0} bytes each");
    assert!(each < MOST_BYTES, "{each:.0} bytes each: {few} {many}");
}

#[test]
fn what_was_found_stands_though_the_check_could_not_go_on() {
    let mall = Mutex::new(mall().lying(Lie::SellsTwice));
    let server = Server::start(move |ask| match &*ask.path {
        "/v1/members/me/points" => Say::json(500, "{}"),
        _ => mall.lock().unwrap().handle(ask),
    });
    let url = server.url();
    let ran = run(&url, &[&LOAD[..], &["--check", "--admin", &url]].concat());
    assert_eq!(ran.code, 3, "{} {}", ran.stdout, ran.stderr);
    assert!(findings(&ran)[0].contains("oversold"), "{:?}", findings(&ran));
    assert!(ran.summary["invalid_reasons"].to_string().contains("could not be checked"));
}
