//! The figures are right: against servers that stall for a known time at a known moment.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use onrush_load::report::figures::Figures;

use crate::mall::{Mall, open};
use crate::raw::RawServer;
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
/// waits for its end. The server writes down when each answer left, so every response time that
/// must be in the histogram can be computed, in two ways that have nothing but those moments in
/// common: ours and wrk2's.
#[test]
fn a_stall_is_seen_by_all_that_waited_for_it() {
    // This process may lose the processor between an answer and its reading: of a few runs, one
    // that was left alone shows that the figures are right; a wrong one would never be.
    let wrong: Vec<String> =
        std::iter::repeat_with(one_stall).take(8).map_while(Result::err).collect();
    assert!(wrong.len() < 8, "{wrong:#?}");
}

/// What the server knows of a request.
struct Moment {
    came: Instant,
    left: Instant,
    /// Answers that had left when it came.
    complete: u32,
}

/// Units: milliseconds, sorted.
fn sorted(times: impl Iterator<Item = Duration>) -> Vec<f64> {
    let mut times: Vec<_> = times.map(|t| t.as_secs_f64() * 1e3).collect();
    times.sort_by(f64::total_cmp);
    times
}

/// By the schedule: request `i` was planned `i` milliseconds after the first.
fn by_the_plan(moments: &[Moment]) -> Vec<f64> {
    let planned = |i: usize| moments[0].came + Duration::from_millis(i as u64);
    sorted(moments.iter().enumerate().map(|(i, m)| m.left.saturating_duration_since(planned(i))))
}

/// As `response_complete` in wrk2's `src/wrk.c` has it: `now - (thread_start +
/// complete_at_last_batch_start / throughput)`, which counts answers, and knows no schedule.
fn by_wrk2(moments: &[Moment]) -> Vec<f64> {
    let (thread_start, throughput) = (moments[0].came, 1000.0);
    let expected =
        |m: &Moment| thread_start + Duration::from_secs_f64(f64::from(m.complete) / throughput);
    sorted(moments.iter().map(|m| m.left.saturating_duration_since(expected(m))))
}

fn one_stall() -> Result<(), String> {
    let moments = Arc::new(Mutex::new(Vec::with_capacity(1500)));
    let seen = moments.clone();
    let server = Server::start(move |ask| {
        let came = Instant::now();
        if ask.number == 300 {
            thread::sleep(Duration::from_millis(400));
        }
        let mut seen = seen.lock().unwrap();
        let complete = seen.len() as u32;
        seen.push(Moment { came, left: Instant::now(), complete });
        ok()
    });
    let dir = tempfile::tempdir().unwrap();
    let load = ["--rate", "1000", "--seconds", "1.5", "--connections", "1"];
    let out = ["--out", dir.path().to_str().unwrap()];
    let ran = run(&server.url(), &[&load[..], &out].concat());
    assert_eq!(ran.code, 0, "{} {}", ran.stderr, ran.summary["invalid_reasons"]);
    let moments = moments.lock().unwrap();
    assert_eq!(moments.len(), 1500);
    let computed = by_the_plan(&moments);
    let wrk2 = by_wrk2(&moments);
    let same = computed.iter().zip(&wrk2).all(|(a, b)| (a - b).abs() < 1e-3);
    assert!(same, "one connection: both must come to the same");
    // 400 of 1500 waited: 400, 399, … 1 ms.
    if computed[1349] < 240.0 || computed[1499] < 399.0 {
        return Err(format!("the first request came too late: {} ms", computed[1499]));
    }
    // Every value of the histogram, from the smallest to the largest, against the computed one of
    // its rank: the cumulative counts are the same in every bucket.
    let figures = Figures::read(dir.path()).unwrap();
    let mut all = onrush_load::stats::latency();
    for cell in figures.measured.stats.outcomes.iter().flat_map(|o| &o.cells) {
        onrush_load::stats::add(&mut all, &cell.response);
    }
    assert_eq!(all.len(), 1500);
    let values = all.iter_recorded();
    let reported = values.flat_map(|v| {
        std::iter::repeat_n(
            v.value_iterated_to() as f64 / 1e3,
            v.count_since_last_iteration() as usize,
        )
    });
    let mut worst = 0.0f64;
    for (rank, (got, want)) in reported.zip(&computed).enumerate() {
        // Never less than what was: that would hide the stall. What comes before the first request
        // is not the server's to know.
        assert!(got > want - 5.0, "rank {rank}: {got} ms, and {want} ms is certain");
        worst = worst.max(got - want);
    }
    if worst > 10.0 {
        return Err(format!("{worst} ms more than was computed"));
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

/// More is planned than any machine can send: all connections are busy, and it is not the server.
#[test]
fn a_generator_without_time_is_the_bottleneck_and_says_so_first() {
    let server = RawServer::effortless();
    let url = server.url();
    let args = ["run", "--quiet", "--target", &url, "--seconds", "1", "--drain", "1"];
    let many = ["--pipeline", "64", "--connections", "4"];
    let open = ["--rate", "20000000", "--max-lag", "0.5"];
    let closed = ["--closed", "4", "--pipeline", "64"];
    for (load, words) in [
        ([&args[..], &many, &open].concat(), "requests went out more than 5 ms late"),
        ([&args[..], &closed].concat(), "not the server's"),
    ] {
        // Where something else takes the cores away for a second, nobody here is the bottleneck.
        let mut tries = (0..5).map(|_| crate::tool::tool_aside(&load));
        let ran = tries.find(|ran| ran.code == 2).expect("one of five runs gets to its limit");
        let before_figures = ran.stdout.split("\n\n").next().unwrap();
        assert!(before_figures.contains("the generator is the bottleneck"), "{}", ran.stdout);
        assert!(before_figures.contains(words), "{}", ran.stdout);
    }
}

/// A slow server makes requests late as well, and leaves the generator all its time.
#[test]
fn a_slow_server_is_not_taken_for_a_slow_generator() {
    let server = Server::start(|_| {
        thread::sleep(Duration::from_millis(20));
        ok()
    });
    let url = server.url();
    let load = ["--rate", "100", "--seconds", "1", "--connections", "1", "--max-own-lag", "0.9"];
    let ran = crate::tool::tool(&[&["run", "--json", "--target", &url][..], &load].concat());
    assert_eq!(ran.code, 0, "{} {}", ran.stdout, ran.stderr);
    assert!(number(&ran, "/latency/response_us/p99") > 500e3, "{}", ran.stdout);
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
    // Where nothing is said meanwhile, the report says it first.
    let url = server.url();
    let quiet = ["run", "--quiet", "--target", &url, "--closed", "2", "--seconds", "0.2"];
    let ran = crate::tool::tool(&quiet);
    assert!(ran.stdout.lines().next().unwrap().contains("cannot see"), "{}", ran.stdout);
    assert_eq!(ran.stderr, "");
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

fn interrupt(child: &std::process::Child) {
    let id = child.id().to_string();
    assert!(std::process::Command::new("kill").args(["-INT", &id]).status().unwrap().success());
}

/// Everything that was asked for is there: the check, the files, the accepted redemptions.
#[test]
fn an_interrupt_ends_the_run_with_all_that_was_asked_for() {
    let (server, mall) = open(Mall::with_stock(&[("a", 10_000)]));
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let child = std::process::Command::new(env!("CARGO_BIN_EXE_onrush-load"))
        .args(["run", "--json", "--max-own-lag", "60", "--quiet", "--rate", "100"])
        .args(["--seconds", "60", "--sale", "s1", "--members", "1-99999", "--check"])
        .args(["--out", &path("out"), "--accepted", &path("accepted.jsonl")])
        .args(["--admin", &server.url(), "--target", &server.url()])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    while server.served() < 100 {
        thread::sleep(Duration::from_millis(2));
    }
    interrupt(&child);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    let summary: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(summary["interrupted"], true);
    let sold = mall.lock().unwrap().answers.len();
    assert!((90..5000).contains(&sold), "{sold}");
    for pointer in ["/requests/answered", "/requests/planned", "/check/found_over_api"] {
        assert_eq!(summary.pointer(pointer).unwrap().as_u64(), Some(sold as u64), "{pointer}");
    }
    assert_eq!(crate::tool::json_lines(path("accepted.jsonl").as_ref()).len(), sold);
    let kept = std::fs::read_to_string(path("out/summary.json")).unwrap();
    let kept: serde_json::Value = serde_json::from_str(&kept).unwrap();
    assert_eq!(kept["check"], summary["check"]);
    for name in ["figures.json", "seconds.csv", "latency.hlog", "report.html"] {
        assert!(std::fs::metadata(path("out").clone() + "/" + name).unwrap().len() > 100, "{name}");
    }
}

/// What was due before the schedule was cut is not forgotten, though no connection had taken it.
#[test]
fn what_was_overdue_at_an_interrupt_still_goes_out() {
    let server = Server::start(|ask| {
        if ask.number == 20 {
            thread::sleep(Duration::from_millis(800));
        }
        ok()
    });
    let child = std::process::Command::new(env!("CARGO_BIN_EXE_onrush-load"))
        .args(["run", "--json", "--max-own-lag", "60", "--quiet", "--connections", "1"])
        .args(["--rate", "100", "--seconds", "60", "--target", &server.url()])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    while server.served() <= 20 {
        thread::sleep(Duration::from_millis(2));
    }
    thread::sleep(Duration::from_millis(400));
    interrupt(&child);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    let summary: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let planned = summary["requests"]["planned"].as_u64().unwrap();
    assert!(planned >= 55, "21 before the stall, 40 in it: {planned}");
    assert_eq!((planned, &summary["requests"]["unsent"]), (server.served(), &0.into()));
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
