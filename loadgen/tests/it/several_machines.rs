//! Agents: one schedule over several processes, as if it were one.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crate::mall::{Lie, Mall, open};
use crate::secure::{CA, in_front_of};
use crate::server::{Say, Server};
use crate::tool::{number, outcome, run, tool};

const TOKEN: &str = "0123456789abcdef";

struct Agent {
    child: Child,
    at: String,
}

impl Agent {
    fn start(token: &Path) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_onrush-load"))
            .args(["agent", "--listen", "127.0.0.1:0", "--token-file"])
            .arg(token)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let at = line.trim().strip_prefix("agent at ").unwrap().to_owned();
        Self { child, at }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Two agents, their list, and the file of their token.
fn two() -> (tempfile::TempDir, [Agent; 2], String, String) {
    let dir = tempfile::tempdir().unwrap();
    let token = dir.path().join("token");
    std::fs::write(&token, format!("{TOKEN}\n")).unwrap();
    let agents = [Agent::start(&token), Agent::start(&token)];
    let list = format!("{},{}", agents[0].at, agents[1].at);
    let token = token.to_str().unwrap().to_owned();
    (dir, agents, list, token)
}

#[test]
fn agents_send_one_schedule_split_exactly() {
    let (dir, _agents, list, token) = two();
    let moments = Arc::new(Mutex::new(Vec::new()));
    let seen = moments.clone();
    let server = Server::start(move |ask| {
        let number: u64 = ask.path.trim_start_matches("/n/").parse().unwrap();
        seen.lock().unwrap().push((Instant::now(), number));
        Say::json(200, "{}")
    });
    let url = format!("{}/n/{{{{number}}}}", server.url());
    let out = dir.path().join("out");
    let args = [
        "--agents",
        &list,
        "--token-file",
        &token,
        "--phase",
        "up:1:0-400",
        "--phase",
        "flat:1:300",
        "--connections",
        "5",
        "--out",
        out.to_str().unwrap(),
    ];
    // A run after a run: an agent serves many.
    for _ in 0..2 {
        moments.lock().unwrap().clear();
        let ran = run(&url, &args);
        assert_eq!(ran.code, 0, "{} {}", ran.stdout, ran.stderr);
        assert_eq!(number(&ran, "/requests/planned") as u64, 500);
        assert_eq!(outcome(&ran, "200")["requests"], 500);
        assert_eq!(number(&ran, "/requests/connections_opened") as u64, 5);
        assert_eq!(number(&ran, "/phases/1/requests") as u64, 300);
        let mut numbers: Vec<_> = moments.lock().unwrap().iter().map(|(_, n)| *n).collect();
        numbers.sort_unstable();
        assert_eq!(numbers, (0..500).collect::<Vec<_>>(), "each number once");
        let csv = std::fs::read_to_string(out.join("seconds.csv")).unwrap();
        let planned: u64 =
            csv.lines().skip(1).map(|l| l.split(',').nth(1).unwrap().parse::<u64>().unwrap()).sum();
        assert_eq!(planned, 500);
    }
    // The halves of the schedule went on together: neighbours in number are neighbours in time.
    let mut all = moments.lock().unwrap().clone();
    all.sort_by_key(|(_, n)| *n);
    let late = |pair: &&[(Instant, u64)]| {
        let gap = pair[1].0.max(pair[0].0) - pair[1].0.min(pair[0].0);
        gap > Duration::from_millis(300)
    };
    let apart = all.windows(2).filter(late).count();
    assert!(apart < 20, "{apart} of 499 neighbours are far apart");
}

#[test]
fn the_ledger_of_all_agents_is_checked_as_one() {
    let (_dir, _agents, list, token) = two();
    let (server, mall) = open(Mall::with_stock(&[("a", 60), ("b", 40)]));
    let url = server.url();
    let args = [
        "--agents",
        &list,
        "--token-file",
        &token,
        "--sale",
        "s1",
        "--members",
        "1-500",
        "--rate",
        "200",
        "--seconds",
        "1",
        "--duplicates",
        "0.3",
        "--check",
        "--admin",
        &url,
    ];
    let ran = run(&url, &args);
    assert_eq!(ran.code, 0, "{} {}", ran.stdout, ran.stderr);
    assert_eq!(number(&ran, "/ledger/accepted") as u64, 100);
    assert_eq!(number(&ran, "/check/found_over_api") as u64, 100);
    assert_eq!(mall.lock().unwrap().count("confirmed"), 100);
}

#[test]
fn a_stranger_gets_no_load_and_the_agent_serves_on() {
    let (dir, _agents, list, token) = two();
    let server = Server::start(|_| Say::json(200, "{}"));
    let url = server.url();
    let wrong = dir.path().join("wrong");
    std::fs::write(&wrong, "another token of it").unwrap();
    let load = ["run", "--target", &url, "--seconds", "0.2", "--agents", &list, "--token-file"];
    let ran = tool(&[&load[..], &[wrong.to_str().unwrap()]].concat());
    assert_eq!(ran.code, 1);
    assert!(ran.stderr.contains("token"), "{}", ran.stderr);
    assert_eq!(server.served(), 0);
    std::fs::write(&wrong, "short").unwrap();
    let ran = tool(&[&load[..], &[wrong.to_str().unwrap()]].concat());
    assert!(ran.code == 1 && ran.stderr.contains("16 bytes"), "{}", ran.stderr);
    let ran = tool(&[&load[..], &[&token]].concat());
    assert_eq!(ran.code, 0, "{}", ran.stderr);
}

#[test]
fn an_agent_that_dies_ends_the_run_and_the_other_stops() {
    let (_dir, agents, list, token) = two();
    let server = Server::start(|_| Say::json(200, "{}"));
    let url = server.url();
    let aside = thread::spawn(move || {
        tool(&[
            "run",
            "--quiet",
            "--target",
            &url,
            "--rate",
            "200",
            "--seconds",
            "60",
            "--agents",
            &list,
            "--token-file",
            &token,
        ])
    });
    while server.served() < 100 {
        thread::sleep(Duration::from_millis(5));
    }
    let [first, _second] = agents;
    drop(first);
    let ran = aside.join().unwrap();
    assert_eq!(ran.code, 1, "{}", ran.stdout);
    assert!(ran.stderr.contains("gone") || ran.stderr.contains("reset"), "{}", ran.stderr);
    let begun = Instant::now();
    loop {
        let before = server.served();
        thread::sleep(Duration::from_millis(500));
        if server.served() == before {
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "the other agent goes on");
    }
}

#[test]
fn agents_trust_whom_the_run_trusts() {
    let (_dir, _agents, list, token) = two();
    let server = Server::start(|_| Say::json(200, "{}"));
    let url = in_front_of(&server);
    let load = ["--agents", &list, "--token-file", &token, "--rate", "100", "--seconds", "0.5"];
    for trust in [&["--ca", CA][..], &["--insecure"]] {
        let ran = run(&url, &[&load[..], trust].concat());
        assert_eq!(ran.code, 0, "{trust:?}: {} {}", ran.stdout, ran.stderr);
        assert_eq!(outcome(&ran, "200")["requests"], 50);
    }
    // Of what a run before them trusted, they keep nothing.
    let ran = tool(&[&["run", "--quiet", "--target", &url], &load[..]].concat());
    assert_eq!(ran.code, 1, "{}", ran.stdout);
    assert!(ran.stderr.contains("UnknownIssuer"), "{}", ran.stderr);
}

#[test]
fn a_run_that_cannot_become_good_is_ended_on_all_agents() {
    let (_dir, _agents, list, token) = two();
    let server = Server::start(|_| {
        thread::sleep(Duration::from_millis(20));
        Say::json(200, "{}")
    });
    let url = server.url();
    let long = ["--agents", &list, "--token-file", &token, "--rate", "60", "--seconds", "600"];
    let more = ["--threshold", "p50<5ms", "--abort-on-fail"];
    let ran = run(&url, &[&long[..], &more].concat());
    assert_eq!(ran.code, 99, "{} {}", ran.stdout, ran.stderr);
    let why = ran.summary["aborted"].as_str().unwrap();
    assert!(why.contains("p50<5ms is missed"), "{why}");
    assert!(number(&ran, "/total_seconds") < 100.0);
    let served = server.served();
    thread::sleep(Duration::from_millis(300));
    assert_eq!((served, server.served()), (number(&ran, "/requests/attempts") as u64, served));

    let mut lying = Mall::with_stock(&[("a", 6000)]);
    lying.lie = Lie::ChangesAnswer;
    let (server, _mall) = open(lying);
    let sale = ["--sale", "s1", "--members", "1-5000", "--duplicates", "1", "--abort-on-fail"];
    let ran = run(&server.url(), &[&long[..], &sale].concat());
    assert_eq!(ran.code, 3, "{} {}", ran.stdout, ran.stderr);
    let why = ran.summary["aborted"].as_str().unwrap();
    assert!(why.contains("the ledger is violated"), "{why}");
}
