//! The figures are right: against servers that stall for a known time at a known moment.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crate::server::{Say, Server};
use crate::tool::{number, outcome, run, run_aside};

fn ok() -> Say {
    Say::json(200, "{}")
}

#[test]
fn every_planned_request_is_sent_and_counted() {
    let server = Server::start(|_| ok());
    let ran = run(&server.url(), &["--rate", "500", "--seconds", "1", "--connections", "8"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    for pointer in ["/requests/planned", "/requests/answered", "/requests/attempts"] {
        assert_eq!(number(&ran, pointer) as u64, 500, "{pointer}");
    }
    assert_eq!(server.served(), 500);
    assert_eq!(outcome(&ran, "200")["requests"], 500);
    assert_eq!(number(&ran, "/latency/response_us/count") as u64, 500);
    assert_eq!(number(&ran, "/requests/connections_opened") as u64, 8);
}

#[test]
fn two_threads_share_one_schedule() {
    let server = Server::start(|_| ok());
    let ran = run(
        &server.url(),
        &[
            "--phase",
            "up:1:0-400",
            "--phase",
            "flat:1:301",
            "--threads",
            "2",
            "--seed",
            "1",
            "--arrivals",
            "poisson",
        ],
    );
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let planned = number(&ran, "/requests/planned") as u64;
    assert_eq!(planned, server.served());
    assert!((420..580).contains(&planned), "{planned}");
    let phases = number(&ran, "/phases/0/requests") + number(&ran, "/phases/1/requests");
    assert_eq!(phases as u64, planned);
}

/// One connection, 1000 requests a second, a stall of 400 ms: whatever was planned in the stall
/// waits for its end. The server writes down when each answer left, so the response times that must
/// be reported can be computed: the answer's moment less the planned one.
#[test]
fn a_stall_is_seen_by_all_that_waited_for_it() {
    // This process may lose the processor between an answer and its reading: of a few runs, one
    // that was left alone shows that the figures are right; a wrong one would never be.
    let wrong: Vec<String> =
        std::iter::repeat_with(one_stall).take(8).map_while(Result::err).collect();
    assert!(wrong.len() < 8, "{wrong:#?}");
}

fn one_stall() -> Result<(), String> {
    let moments = Arc::new(Mutex::new(Vec::with_capacity(1500)));
    let seen = moments.clone();
    let server = Server::start(move |ask| {
        let came = Instant::now();
        if ask.number == 300 {
            thread::sleep(Duration::from_millis(400));
        }
        seen.lock().unwrap().push((came, Instant::now()));
        ok()
    });
    let ran = run(&server.url(), &["--rate", "1000", "--seconds", "1.5", "--connections", "1"]);
    assert_eq!(ran.code, 0, "{} {}", ran.stderr, ran.summary["invalid_reasons"]);
    let moments = moments.lock().unwrap();
    assert_eq!(moments.len(), 1500);
    // The first one was planned when it came; the others a millisecond apart.
    let zero = moments[0].0;
    let mut computed: Vec<f64> = (0u32..)
        .zip(moments.iter())
        .map(|(i, (_, left))| {
            left.saturating_duration_since(zero + i * Duration::from_millis(1)).as_secs_f64() * 1e3
        })
        .collect();
    computed.sort_by(f64::total_cmp);
    let reported = |p: &str| number(&ran, &format!("/latency/response_us/{p}")) / 1e3;
    let rank = |q: f64| computed[((q * 1500.0).ceil() as usize).clamp(1, 1500) - 1];
    let mean = computed.iter().sum::<f64>() / 1500.0;
    let pairs = [
        ("p50", rank(0.5)),
        ("p90", rank(0.9)),
        ("p95", rank(0.95)),
        ("p99", rank(0.99)),
        ("max", rank(1.0)),
        ("mean", mean),
    ];
    // 400 of 1500 waited: 400, 399, … 1 ms.
    assert!(rank(0.9) > 240.0 && rank(1.0) >= 399.0);
    for (name, want) in pairs {
        let got = reported(name);
        // Never less than what was: that would hide the stall.
        assert!(got > want - 5.0, "{name}: {got} ms, and {want} ms is certain");
        if got > want + 10.0 {
            return Err(format!("{name}: {got} ms where {want} ms was computed"));
        }
    }
    // A closed view of the same run: hardly any request was slow.
    let slow = number(&ran, "/latency/service_us/p95") / 1e3;
    if slow > 20.0 { Err(format!("service p95 {slow} ms")) } else { Ok(()) }
}

#[test]
fn many_connections_hide_no_stall_either() {
    let server = Server::start(|_| ok());
    let aside =
        run_aside(&server.url(), &["--rate", "1000", "--seconds", "2", "--connections", "16"]);
    while server.served() < 500 {
        thread::sleep(Duration::from_millis(1));
    }
    server.stall(Duration::from_millis(300));
    let ran = aside.join().unwrap();
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    // 300 requests of 2000 waited: the upper 15 %.
    let p90 = number(&ran, "/latency/response_us/p90") / 1000.0;
    assert!((60.0..140.0).contains(&p90), "{p90}");
    assert!(number(&ran, "/latency/service_us/p90") < 30_000.0);
}

#[test]
fn what_could_not_be_sent_in_time_is_unsent_and_voids_the_run() {
    let server = Server::start(|_| {
        thread::sleep(Duration::from_millis(20));
        ok()
    });
    // One connection carries 50 a second; 200 are planned.
    let ran = run(
        &server.url(),
        &["--rate", "200", "--seconds", "1", "--connections", "1", "--max-lag", "0.5"],
    );
    assert_eq!(ran.code, 2);
    let unsent = number(&ran, "/requests/unsent") as u64;
    assert!(unsent > 50, "{unsent}");
    assert_eq!(number(&ran, "/requests/planned") as u64, 200);
    assert_eq!(server.served() + unsent, 200);
    assert_eq!(ran.summary["valid"], false);
    assert!(ran.summary["invalid_reasons"][0].as_str().unwrap().contains("not sent within 0.5 s"));
}

#[test]
fn a_timeout_is_an_outcome() {
    let server = Server::start(|ask| {
        if ask.number == 5 {
            thread::sleep(Duration::from_millis(800));
        }
        ok()
    });
    let ran = run(
        &server.url(),
        &["--rate", "50", "--seconds", "1", "--connections", "4", "--timeout", "0.3"],
    );
    assert_eq!(outcome(&ran, "timeout")["requests"], 1, "{}", ran.stdout);
    assert_eq!(outcome(&ran, "200")["requests"], 49);
    assert_eq!(ran.code, 0);
}

#[test]
fn a_closed_loop_says_what_it_cannot_see() {
    let server = Server::start(|_| ok());
    let ran = crate::tool::tool(&[
        "run",
        "--target",
        &server.url(),
        "--closed",
        "4",
        "--seconds",
        "0.5",
        "--json",
        "--max-own-lag",
        "60",
    ]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(ran.stderr.lines().next().unwrap().contains("cannot see"), "{}", ran.stderr);
    assert_eq!(ran.summary["loop_kind"], "closed");
    assert_eq!(number(&ran, "/requests/answered") as u64, server.served());
    assert!(server.served() > 100);
}

#[test]
fn pipelined_answers_find_their_requests() {
    let max_out = Arc::new(AtomicU64::new(0));
    let seen = max_out.clone();
    let server = Server::start(move |ask| {
        seen.fetch_max(ask.number, Ordering::SeqCst);
        ok()
    });
    let ran = run(&server.url(), &["--closed", "2", "--pipeline", "8", "--seconds", "0.5"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(number(&ran, "/requests/answered") as u64, server.served());
    assert_eq!(number(&ran, "/requests/unanswered") as u64, 0);
}

#[test]
fn an_interrupt_ends_the_run_with_a_report() {
    let server = Server::start(|_| ok());
    let child = std::process::Command::new(env!("CARGO_BIN_EXE_onrush-load"))
        .args([
            "run",
            "--json",
            "--max-own-lag",
            "60",
            "--quiet",
            "--rate",
            "100",
            "--seconds",
            "60",
            "--target",
        ])
        .arg(server.url())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    while server.served() < 20 {
        thread::sleep(Duration::from_millis(2));
    }
    let killed =
        std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status();
    assert!(killed.unwrap().success());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    let summary: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(summary["interrupted"], true);
    assert_eq!(summary["requests"]["answered"], server.served());
    assert_eq!(summary["requests"]["planned"], server.served());
}

#[test]
fn marks_cut_the_latencies() {
    let server = Server::start(|ask| {
        if ask.number >= 100 {
            thread::sleep(Duration::from_millis(30));
        }
        ok()
    });
    let ran = run(
        &server.url(),
        &["--rate", "100", "--seconds", "2", "--connections", "16", "--mark", "slow=1"],
    );
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let sections = ran.summary["sections"].as_array().unwrap();
    assert_eq!(sections.len(), 2);
    assert_eq!((&sections[0]["name"], &sections[1]["name"]), (&"start".into(), &"slow".into()));
    let p50 = |i: usize| number(&ran, &format!("/sections/{i}/latency/response_us/p50"));
    assert!(p50(0) < 20_000.0 && p50(1) > 30_000.0, "{} {}", p50(0), p50(1));
}
