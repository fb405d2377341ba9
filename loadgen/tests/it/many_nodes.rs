//! Several targets share the connections; runs that end early.

use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crate::mall::{Lie, Mall, open};
use crate::server::{Say, Server};
use crate::tool::{Ran, number, outcome, run, run_aside};

#[test]
fn connections_are_spread_over_all_targets() {
    let servers: Vec<_> = (0..3).map(|_| Server::start(|_| Say::json(200, "{}"))).collect();
    let (second, third) = (servers[1].url(), servers[2].url());
    let load = ["--rate", "600", "--seconds", "1", "--connections", "9", "--threads", "2"];
    let mut args = vec!["--target", &second, "--target", &third];
    args.extend(load);
    let ran = run(&servers[0].url(), &args);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let served: Vec<_> = servers.iter().map(Server::served).collect();
    assert_eq!(served.iter().sum::<u64>(), 600);
    // Not equally: whoever is quick gets more.
    assert!(served.iter().all(|&s| s > 20), "{served:?}");
    assert_eq!(ran.summary["targets"].as_array().unwrap().len(), 3);
}

/// Two doors to one mall; one of them is shut in the middle, and stays shut.
#[test]
fn a_target_that_dies_leaves_its_load_to_the_others_and_the_ledger_is_checked_over_them() {
    let (first, mall) = open(Mall::with_stock(&[("a", 300)]));
    let inside = mall.clone();
    let second = Server::start(move |ask| inside.lock().unwrap().handle(ask));
    let admin = second.url();
    let args = [
        "--target",
        &*admin,
        "--sale",
        "s1",
        "--members",
        "1-500",
        "--rate",
        "300",
        "--seconds",
        "2",
        "--connections",
        "8",
        "--check",
        "--admin",
        &*admin,
    ];
    let aside = run_aside(&first.url(), &args);
    while first.served() < 100 {
        thread::sleep(Duration::from_millis(1));
    }
    first.kill();
    let ran = aside.join().unwrap();
    assert_eq!(ran.code, 0, "{} {}", ran.stdout, ran.stderr);
    assert_eq!(number(&ran, "/requests/unanswered") as u64, 0);
    assert_eq!(outcome(&ran, "201")["requests"], 300);
    assert!(second.served() > 300);
}

/// The admin listeners of two nodes with one ledger, as the engine answers there: all units, or
/// with `nodes=self` one node's share of them.
fn admins(mall: &Arc<Mutex<Mall>>) -> [Server; 2] {
    [true, false].map(|is_first| {
        let mall = mall.clone();
        Server::start(move |ask| {
            assert!(ask.path.starts_with("/v1/sales/s1"), "{}", ask.path);
            let confirmed = mall.lock().unwrap().count("confirmed");
            let (own, is_self) = (confirmed / 3, ask.path.ends_with("?nodes=self"));
            let confirmed = match (is_self, is_first) {
                (true, true) => own,
                (true, false) => confirmed - own,
                (false, _) => confirmed,
            };
            let free = 60 - confirmed;
            Say::json(
                200,
                &format!(
                    r#"{{"items":[{{"sku":"a","limit_per_member":3,"total":60,"free":{free},
                    "held":0,"confirmed":{confirmed}}}],"nodes_missed":[]}}"#
                ),
            )
        })
    })
}

fn load_of_two(public: &Server, admin: &[&str]) -> Ran {
    let load = ["--sale", "s1", "--members", "1-500", "--rate", "100", "--seconds", "0.5"];
    let mut args = load.to_vec();
    args.extend(["--timeout", "1", "--check"]);
    for admin in admin {
        args.extend(["--admin", admin]);
    }
    run(&public.url(), &args)
}

#[test]
fn the_units_of_several_nodes_are_counted_once_whoever_is_asked() {
    let (server, mall) = open(Mall::with_stock(&[("a", 60)]));
    let [first, second] = admins(&mall);
    let (first, second) = (first.url(), second.url());
    let ran = load_of_two(&server, &[&first, &second]);
    assert_eq!(ran.code, 0, "{} {}", ran.stdout, ran.stderr);
    assert_eq!(mall.lock().unwrap().count("confirmed"), 50);
    let ran = load_of_two(&server, &[&second]);
    assert_eq!(ran.code, 0, "{} {}", ran.stdout, ran.stderr);
}

/// What a node has free at the moment is no bound for what all of them sell.
#[test]
fn the_free_units_of_one_node_bound_nothing() {
    let (second, mall) = open(Mall::with_stock(&[("a", 60)]));
    let first = Server::start(move |ask| {
        if ask.path == "/v1/sales/s1" {
            let item = r#"{"sku":"a","limit_per_member":3,"free":5,"sold_out":false}"#;
            return Say::json(200, &format!(r#"{{"id":"s1","items":[{item}]}}"#));
        }
        mall.lock().unwrap().handle(ask)
    });
    let second = second.url();
    let load = ["--sale", "s1", "--members", "1-500", "--rate", "100", "--seconds", "0.5"];
    let mut args = load.to_vec();
    args.extend(["--target", &second, "--check"]);
    let ran = run(&first.url(), &args);
    assert_eq!(ran.code, 0, "{} {}", ran.stdout, ran.stderr);
    assert_eq!(number(&ran, "/ledger/units") as u64, 50);
}

#[test]
fn a_node_that_could_not_be_asked_is_no_violation() {
    let (server, mall) = open(Mall::with_stock(&[("a", 60)]));
    let asked = Arc::new(Mutex::new(0));
    let (inside, count) = (mall.clone(), asked.clone());
    // Away once the run is over; before it, it only was for a moment.
    let admin = Server::start(move |ask| {
        *count.lock().unwrap() += 1;
        let confirmed = inside.lock().unwrap().count("confirmed");
        let is_away = *count.lock().unwrap() == 1 || confirmed > 0;
        if !is_away {
            return inside.lock().unwrap().handle(ask);
        }
        Say::json(200, r#"{"items":[],"nodes_missed":[{"node":"b","code":"unreachable"}]}"#)
    });
    let ran = load_of_two(&server, &[&admin.url()]);
    assert_eq!(ran.code, 2, "{} {}", ran.stdout, ran.stderr);
    assert!(ran.summary["invalid_reasons"].to_string().contains("b (unreachable)"));
    assert!(*asked.lock().unwrap() > 3, "it was waited for");
}

/// A mall of 1000 units that has none for some of the redemptions, by their order.
fn dry_for(redemptions: std::ops::Range<u32>, lease: &'static str) -> Ran {
    let mall = Mutex::new((Mall::with_stock(&[("a", 1000)]), 0));
    let server = Server::start(move |ask| {
        let (mall, asked) = &mut *mall.lock().unwrap();
        let confirmed = mall.count("confirmed");
        if ask.path == "/v1/sales/s1" {
            let free = 1000 - confirmed;
            return Say::json(
                200,
                &format!(
                    r#"{{"items":[{{"sku":"a","limit_per_member":3,"total":1000,"free":{free},
                    "held":0,"confirmed":{confirmed}{lease}}}]}}"#
                ),
            );
        }
        if ask.method == "POST" {
            *asked += 1;
            if redemptions.contains(asked) {
                return Say::json(409, r#"{"code":"sold-out","final":false}"#);
            }
        }
        mall.handle(ask)
    });
    load_of_two(&server, &[&server.url()])
}

const LEASE: &str = r#","lease":{"state":"open","pool":5}"#;

#[test]
fn a_node_that_waits_for_units_of_the_pool_is_told_from_one_that_hides_them() {
    let ran = dry_for(20..30, LEASE);
    assert_eq!(ran.code, 0, "{} {}", ran.stdout, ran.stderr);
    let ran = dry_for(20..30, "");
    assert_eq!(ran.code, 3, "{} {}", ran.stdout, ran.stderr);
    assert!(ran.stdout.contains("10 requests were refused for stock"), "{}", ran.stdout);
}

/// The load is 50 redemptions: nobody comes behind the last ones, so one of them comes back.
#[test]
fn who_is_refused_in_the_last_moments_of_the_load_asks_again_before_that_is_held_against_a_node() {
    // Not refused again: the unit is theirs.
    let ran = dry_for(41..51, LEASE);
    assert_eq!(ran.code, 0, "{} {}", ran.stdout, ran.stderr);
    let sold = |ran: &Ran| number(ran, "/ledger/accepted") as u64;
    assert_eq!((sold(&ran), number(&ran, "/check/found_over_api") as u64), (41, 41));
    // Not at once, but in time.
    let ran = dry_for(41..54, LEASE);
    assert_eq!((ran.code, sold(&ran)), (0, 41), "{} {}", ran.stdout, ran.stderr);
    // Never.
    let ran = dry_for(41..u32::MAX, LEASE);
    assert_eq!((ran.code, sold(&ran)), (3, 40), "{} {}", ran.stdout, ran.stderr);
    let text = ran.summary["ledger"]["findings"][0]["text"].as_str().unwrap();
    assert!(text.contains("refused for stock, the last one again after it"), "{text}");
    assert!(text.contains("refused last: key load-"), "{text}");
}

/// Holds from before the run may end in it: without the admin's figures nobody knows of them.
#[test]
fn units_of_holds_that_nobody_can_see_are_no_violation() {
    let mall = Mutex::new((Mall::with_stock(&[("a", 1000)]), 0));
    let server = Server::start(move |ask| {
        let (mall, asked) = &mut *mall.lock().unwrap();
        *asked += u32::from(ask.method == "POST");
        if ask.path == "/v1/sales/s1" {
            let free = 1000 - mall.count("confirmed");
            let item = format!(r#"{{"sku":"a","limit_per_member":3,"free":{free}}}"#);
            return Say::json(200, &format!(r#"{{"items":[{item}]}}"#));
        }
        if ask.method == "POST" && (20..30).contains(asked) {
            return Say::json(409, r#"{"code":"sold-out","final":false}"#);
        }
        mall.handle(ask)
    });
    let ran = load_of_two(&server, &[]);
    assert_eq!(ran.code, 0, "{} {}", ran.stdout, ran.stderr);
    assert!(number(&ran, "/check/undersold") > 900.0, "{}", ran.stdout);
}

/// A node takes the one unit for a request, and dies before that is durable: whoever was refused
/// meanwhile was refused in good faith, and the unit is free again.
#[test]
fn a_unit_that_died_with_its_request_is_no_violation() {
    for (hangs_up, code) in [(true, 0), (false, 3)] {
        let server = Server::start(move |ask| match (&*ask.method, &*ask.path) {
            ("POST", _) if ask.number == 20 && hangs_up => Say::raw(b"", true),
            ("POST", _) => Say::json(409, r#"{"code":"sold-out","final":false}"#),
            (_, "/v1/sales/s1") => Say::json(
                200,
                r#"{"items":[{"sku":"a","limit_per_member":3,"total":1,"free":1,"held":0,
                "confirmed":0}]}"#,
            ),
            _ => Say::json(200, r#"{"redemptions":[]}"#),
        });
        let url = server.url();
        let load = ["--sale", "s1", "--members", "1-500", "--rate", "100", "--seconds", "0.5"];
        let more = ["--attempts", "1", "--timeout", "1", "--check", "--admin", &url];
        let ran = run(&url, &[&load[..], &more].concat());
        assert_eq!(ran.code, code, "{} {}", ran.stdout, ran.stderr);
        let without_effect = number(&ran, "/check/resolved_without_effect") as u64;
        assert_eq!(without_effect, u64::from(hangs_up));
    }
}

#[test]
fn a_threshold_that_stays_missed_ends_the_run_early() {
    let server = Server::start(|ask| {
        if ask.number % 2 == 0 { Say::json(500, "{}") } else { Say::json(200, "{}") }
    });
    let begun = Instant::now();
    let ran = run(
        &server.url(),
        &["--rate", "100", "--seconds", "60", "--threshold", "error-rate<1%", "--abort-on-fail"],
    );
    assert_eq!(ran.code, 99, "{}", ran.stdout);
    assert!(begun.elapsed() < Duration::from_secs(40), "{:?}", begun.elapsed());
    assert!(ran.summary["aborted"].as_str().unwrap().contains("error-rate<1%"));
    let planned = number(&ran, "/requests/planned");
    assert!((300.0..5500.0).contains(&planned), "{planned}");
    let answered = number(&ran, "/requests/answered");
    assert_eq!(answered as u64, planned as u64, "what was out was waited for");
}

#[test]
fn a_threshold_that_holds_ends_nothing() {
    let server = Server::start(|_| Say::json(200, "{}"));
    let ran = run(
        &server.url(),
        &["--rate", "100", "--seconds", "4.5", "--threshold", "p99<60s", "--abort-on-fail"],
    );
    assert_eq!(ran.code, 0, "{}", ran.stdout);
    assert_eq!(number(&ran, "/requests/planned") as u64, 450);
    assert!(ran.summary["aborted"].is_null());
}

#[test]
fn a_finding_ends_the_run_early_with_exit_3() {
    let (server, _mall) = open(Mall::with_stock(&[("a", 60)]).lying(Lie::ChangesAnswer));
    let ran = run(
        &server.url(),
        &[
            "--sale",
            "s1",
            "--members",
            "1-500",
            "--rate",
            "100",
            "--seconds",
            "60",
            "--duplicates",
            "0.5",
            "--check",
            "--abort-on-fail",
        ],
    );
    assert_eq!(ran.code, 3, "{}", ran.stdout);
    assert!(ran.summary["aborted"].as_str().unwrap().contains("answer-changed"));
    assert!(number(&ran, "/requests/planned") < 5000.0);
}

/// The second Ctrl-C does not wait for the drain.
#[test]
fn a_second_signal_exits_at_once() {
    let asked = Arc::new(Mutex::new(0));
    let count = asked.clone();
    let server = Server::start(move |_| {
        *count.lock().unwrap() += 1;
        thread::sleep(Duration::from_secs(20));
        Say::json(200, "{}")
    });
    let child = std::process::Command::new(env!("CARGO_BIN_EXE_onrush-load"))
        .args(["run", "--quiet", "--target", &server.url(), "--rate", "50", "--seconds", "30"])
        .stderr(std::process::Stdio::null())
        .spawn();
    let mut child = child.unwrap();
    while *asked.lock().unwrap() == 0 {
        thread::sleep(Duration::from_millis(5));
    }
    let begun = Instant::now();
    for _ in 0..2 {
        let id = child.id().to_string();
        assert!(std::process::Command::new("kill").args(["-INT", &id]).status().unwrap().success());
        thread::sleep(Duration::from_millis(200));
    }
    let code = child.wait().unwrap().code();
    assert_eq!(code, Some(130));
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
}
