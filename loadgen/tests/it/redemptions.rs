//! Redemptions against an honest ledger in this process.

use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::mall::{Mall, open};
use crate::server::{Say, Server};
use crate::tool::{json_lines, number, outcome, run, run_aside};

#[test]
fn a_sale_is_sold_out_and_every_acceptance_is_written_down() {
    let (server, mall) = open(Mall::with_stock(&[("a", 50), ("b", 70)]));
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("accepted.jsonl");
    let ran = run(
        &server.url(),
        &[
            "--sale",
            "s1",
            "--members",
            "1-5000",
            "--rate",
            "1000",
            "--seconds",
            "1",
            "--connections",
            "8",
            "--duplicates",
            "0.2",
            "--seed",
            "5",
            "--accepted",
            file.to_str().unwrap(),
        ],
    );
    assert_eq!(ran.code, 0, "{}", ran.stdout);
    let mall = mall.lock().unwrap();
    assert!(mall.stock.values().all(|&n| n == 0));
    assert_eq!(number(&ran, "/ledger/accepted") as u64, 120);
    assert_eq!(number(&ran, "/ledger/points") as u64, 1200);
    assert_eq!(outcome(&ran, "409 sold-out")["class"], "refused");
    let duplicates = number(&ran, "/requests/duplicates") as u64;
    assert!((150..250).contains(&duplicates), "{duplicates}");
    assert_eq!(mall.requests.values().filter(|&&n| n == 2).count() as u64, duplicates);
    let lines = json_lines(&file);
    assert_eq!(lines.len(), 120);
    for line in lines {
        let member: u64 = line["member"].as_str().unwrap().parse().unwrap();
        let key = line["key"].as_str().unwrap().to_owned();
        let body: Value = serde_json::from_str(&mall.answers[&(member, key.clone())]).unwrap();
        assert_eq!((&line["id"], &line["sku"]), (&body["id"], &body["sku"]));
        assert_eq!(line["answers"].as_u64().unwrap(), mall.requests[&key]);
    }
}

#[test]
fn holds_are_confirmed_cancelled_and_abandoned() {
    let (server, mall) = open(Mall::with_stock(&[("a", 10_000)]));
    let ran = run(
        &server.url(),
        &[
            "--sale",
            "s1",
            "--members",
            "1-5000",
            "--rate",
            "500",
            "--seconds",
            "1",
            "--holds",
            "1",
            "--confirms",
            "0.5",
            "--cancels",
            "0.3",
            "--think",
            "0.2",
            "--items",
            "a",
        ],
    );
    assert_eq!(ran.code, 0, "{}", ran.stdout);
    let mall = mall.lock().unwrap();
    for (state, name, low, high) in [
        ("confirmed", "confirmed", 200, 300),
        ("released", "cancelled", 110, 190),
        ("held", "held", 60, 140),
    ] {
        let there = mall.count(name);
        assert_eq!(number(&ran, &format!("/ledger/{state}")) as u64, there, "{state}");
        assert!((low..high).contains(&there), "{state} {there}");
    }
}

#[test]
fn a_kill_in_mid_run_loses_no_answer_and_no_key() {
    let (server, mall) = open(Mall::with_stock(&[("a", 400)]));
    // In the stall before the kill, effects happen whose answers are never sent.
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("accepted.jsonl");
    let aside = run_aside(
        &server.url(),
        &[
            "--sale",
            "s1",
            "--members",
            "1-5000",
            "--rate",
            "1000",
            "--seconds",
            "2",
            "--connections",
            "32",
            "--duplicates",
            "0.1",
            "--accepted",
            file.to_str().unwrap(),
        ],
    );
    while server.served() < 200 {
        thread::sleep(Duration::from_millis(1));
    }
    server.stall(Duration::from_millis(100));
    thread::sleep(Duration::from_millis(50));
    server.kill();
    thread::sleep(Duration::from_millis(400));
    let _second = server.restart();
    let ran = aside.join().unwrap();
    assert_eq!(ran.code, 0, "{} {}", ran.stdout, ran.stderr);
    let mall = mall.lock().unwrap();
    assert_eq!(mall.answers.len(), 400);
    assert_eq!(number(&ran, "/ledger/accepted") as u64, 400);
    assert_eq!(number(&ran, "/ledger/unknown") as u64, 0);
    assert_eq!(json_lines(&file).len(), 400);
    assert_eq!(number(&ran, "/requests/unanswered") as u64, 0);
    assert_eq!(number(&ran, "/requests/unsent") as u64, 0);
    assert!(number(&ran, "/requests/retries") > 0.0);
    assert_eq!(number(&ran, "/requests/planned") as u64, 2000);
    let outages = ran.summary["outages"].as_array().unwrap();
    assert_eq!(outages.len(), 1, "{}", ran.stdout);
    assert!(number(&ran, "/outages/0/unanswered_at_loss") >= 10.0);
    let recovery = number(&ran, "/outages/0/seconds_to_recover");
    assert!((0.39..1.2).contains(&recovery), "{recovery}");
    let names: Vec<_> = ran.summary["sections"]
        .as_array()
        .unwrap()
        .iter()
        .map(|s| s["name"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(names, ["start", "outage-1", "after-outage-1"]);
    let during = number(&ran, "/sections/1/latency/response_us/p50");
    assert!((100_000.0..900_000.0).contains(&during), "{during}");
}

#[test]
fn overload_is_retried_with_the_same_key_until_it_is_over() {
    let mall = Arc::new(Mutex::new(Mall::with_stock(&[("a", 1000)])));
    let inside = mall.clone();
    let server = Server::start(move |ask| {
        if ask.number < 100 {
            return Say::json(503, r#"{"code":"overloaded"}"#);
        }
        inside.lock().unwrap().handle(ask)
    });
    let ran = run(
        &server.url(),
        &[
            "--sale",
            "s1",
            "--members",
            "1-9000000",
            "--items",
            "a:2",
            "--rate",
            "200",
            "--seconds",
            "1",
        ],
    );
    assert_eq!(ran.code, 0, "{}", ran.stdout);
    assert_eq!(outcome(&ran, "503 overloaded")["attempts"], 100);
    assert_eq!(outcome(&ran, "503 overloaded")["requests"], 0);
    assert_eq!(outcome(&ran, "201")["requests"], 200);
    assert_eq!(mall.lock().unwrap().answers.len(), 200);
}

/// The scenario says what is tried again, and how soon.
#[test]
fn the_scenarios_rule_decides_what_is_retried_and_when() {
    let times = Arc::new(Mutex::new(Vec::new()));
    let seen = times.clone();
    let server = Server::start(move |ask| {
        seen.lock().unwrap().push((ask.key.clone().unwrap(), Instant::now()));
        Say::json(if ask.number < 2 { 429 } else { 503 }, r#"{"code":"slow-down"}"#)
    });
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("scenario.toml");
    let text = format!(
        "target = ['{}']\n[schedule]\nrate = 2\nseconds = 0.4\n[redeem]\nsale = 's1'\n\
         items = ['a']\n[client]\nattempts = 4\nretry-on = [429]\nretry-wait = '0.4-0.4'\n",
        server.url()
    );
    std::fs::write(&file, text).unwrap();
    let quiet = ["--json", "--quiet", "--max-own-lag", "60"];
    let ran = crate::tool::tool(&[&["run", file.to_str().unwrap()][..], &quiet].concat());
    assert_eq!(outcome(&ran, "429 slow-down")["attempts"], 2, "{} {}", ran.stdout, ran.stderr);
    assert_eq!(outcome(&ran, "503 slow-down")["requests"], 1, "503 is not in the rule");
    let times = times.lock().unwrap();
    assert_eq!(times.len(), 3);
    assert!(times.iter().all(|(key, _)| *key == times[0].0), "one key");
    let gaps = times.windows(2).map(|w| w[1].1 - w[0].1);
    // Half of the wait is by chance.
    assert!(gaps.clone().all(|gap| gap >= Duration::from_millis(200)), "{:?}", gaps.min());
}

/// A duplicate goes over another connection than the one that carried its first sending.
#[test]
fn the_same_key_comes_again_over_another_connection() {
    let (server, mall) = open(Mall::with_stock(&[("a", 50)]));
    let load = ["--sale", "s1", "--members", "1-5000", "--rate", "400", "--seconds", "1"];
    let more = ["--connections", "3", "--duplicates", "0.5"];
    let ran = run(&server.url(), &[&load[..], &more].concat());
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let duplicates = number(&ran, "/requests/duplicates") as usize;
    let mall = mall.lock().unwrap();
    let twice: Vec<_> = mall.peers.values().filter(|peers| peers.len() == 2).collect();
    assert!(duplicates > 100 && twice.len() == duplicates, "{duplicates} {}", twice.len());
    assert!(twice.iter().all(|peers| peers[0] != peers[1]), "{twice:?}");
}

#[test]
fn a_server_that_stays_down_leaves_requests_unknown() {
    let (server, _mall) = open(Mall::with_stock(&[("a", 1000)]));
    let aside = run_aside(
        &server.url(),
        &["--sale", "s1", "--items", "a", "--rate", "200", "--seconds", "1", "--drain", "0.5"],
    );
    while server.served() < 50 {
        thread::sleep(Duration::from_millis(1));
    }
    server.kill();
    let ran = aside.join().unwrap();
    let unanswered = number(&ran, "/requests/unanswered") as u64;
    assert!(unanswered > 50, "{}", ran.stdout);
    assert_eq!(number(&ran, "/requests/answered") as u64 + unanswered, 200);
    assert_eq!(number(&ran, "/ledger/unknown") as u64, unanswered);
    assert_eq!(ran.summary["outages"][0]["seconds_to_recover"], Value::Null);
}

#[test]
fn members_come_from_a_file_where_one_is_given() {
    let (server, mall) = open(Mall::with_stock(&[("a", 6000)]));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("members.csv");
    std::fs::write(&path, "points,member\n5,70001\n5,300\n5,81\n").unwrap();
    let file = path.to_str().unwrap();
    let url = server.url();
    let load = ["--sale", "s1", "--rate", "200", "--seconds", "0.5", "--choice", "hot:1:0.5"];
    let more = ["--members", file, "--check", "--balances", "ask", "--admin", &url];
    let ran = run(&url, &[&load[..], &more].concat());
    assert_eq!(ran.code, 0, "{} {}", ran.stdout, ran.stderr);
    assert_eq!(number(&ran, "/check/members_with_known_balance") as u64, 3);
    let mut came: Vec<_> = mall.lock().unwrap().answers.keys().map(|(m, _)| *m).collect();
    came.sort_unstable();
    came.dedup();
    assert_eq!(came, [81, 300, 70001]);
    for (content, wrong) in
        [("a\n1\n", "no column"), ("member\nx\n", "row 1"), ("member\n", "no row")]
    {
        std::fs::write(&path, content).unwrap();
        let args = ["run", "--target", &url, "--sale", "s1", "--items", "a", "--members", file];
        let refused = crate::tool::tool(&args);
        assert_eq!(refused.code, 1);
        assert!(refused.stderr.contains(wrong), "{wrong}: {}", refused.stderr);
    }
}
