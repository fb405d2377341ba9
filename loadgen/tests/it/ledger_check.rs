//! The ledger check: an honest mall passes, and each kind of lie is caught with exit 3.

use std::thread;
use std::time::Duration;

use crate::mall::{Lie, Mall, START, open};
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

fn mall() -> Mall {
    Mall::with_stock(&[("a", 40), ("b", 50)])
}

/// Checks a mall, with the admin's figures and the balances where they are asked for.
fn checked(mall: Mall, more: &[&str]) -> Ran {
    let (server, _mall) = open(mall);
    let url = server.url();
    let mut args = LOAD.to_vec();
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

#[test]
fn a_lost_answer_is_asked_for_by_its_key() {
    let (server, mall) = open(Mall::with_stock(&[("a", 1000)]));
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
    let ran = aside.join().unwrap();
    assert_eq!(ran.code, 0, "{:?} {}", findings(&ran), ran.stderr);
    assert!(number(&ran, "/check/resolved_with_effect") > 3.0, "{}", ran.stdout);
    assert_eq!(number(&ran, "/ledger/unknown") as u64, 0);
    assert_eq!(number(&ran, "/ledger/accepted") as usize, mall.lock().unwrap().answers.len());
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
        (Lie::HidesLastUnit, "undersold", &[]),
        (Lie::RefusesLastUnit, "undersold", &[]),
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
        let names_one = |f: &String| f.contains("key load-7-") || f.contains("member ");
        assert!(
            found.iter().any(|f| names_one(f) || f.contains("units")),
            "{lie:?} names no request: {found:?}"
        );
    }
}

#[test]
fn lies_of_the_store_are_caught() {
    let cases = [
        (Lie::StoreLoses, "lost"),
        (Lie::StoreInvents, "unasked-effect"),
        (Lie::StoreMiscounts, "ledger-differs"),
    ];
    for (lie, kind) in cases {
        let dir = tempfile::tempdir().unwrap();
        let store = format!("sqlite:{}", dir.path().display());
        let ran = checked(
            mall().with_store(dir.path()).lying(lie),
            &["--store", &store, "--store-wait", "0.3"],
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
        args.extend(["--holds", "0.5", "--think", "0.1", "--accepted", file]);
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
