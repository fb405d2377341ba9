//! What a run keeps: files that other tools read, and errors when they cannot be written.

use crate::mall::{Mall, open};
use crate::server::{Say, Server};
use crate::tool::{run, tool};

#[test]
fn a_folder_gets_the_summary_the_seconds_the_log_and_the_page() {
    let (server, _mall) = open(Mall::with_stock(&[("a", 60)]));
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("new/folder");
    let ran = run(
        &server.url(),
        &[
            "--sale",
            "s1",
            "--members",
            "1-5000",
            "--phase",
            "one:1:100",
            "--phase",
            "<two>:1:200",
            "--mark",
            "middle=0.5",
            "--check",
            "--out",
            out.to_str().unwrap(),
        ],
    );
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let read = |name: &str| std::fs::read_to_string(out.join(name)).unwrap();
    let summary: serde_json::Value = serde_json::from_str(&read("summary.json")).unwrap();
    assert_eq!(summary, ran.summary);
    let csv = read("seconds.csv");
    let planned: u64 =
        csv.lines().skip(1).map(|l| l.split(',').nth(1).unwrap().parse::<u64>().unwrap()).sum();
    assert_eq!(planned, 300);
    assert!(read("latency.hlog").lines().filter(|l| l.contains(",HISTF")).count() >= 2);
    let page = read("report.html");
    assert_eq!(page.matches("<svg").count(), 3);
    assert_eq!(page.matches("<polyline").count(), 5 + 4 + 3);
    for text in ["The ledger adds up", "middle", "409 sold-out", "&lt;two&gt;"] {
        assert!(page.contains(text), "{text}");
    }
    // Nothing is fetched, and nothing runs.
    for forbidden in ["<script", "<link", "<img", "src=", "href=", "url(", "@import", "NaN", "inf"]
    {
        assert!(!page.contains(forbidden), "{forbidden}");
    }
}

#[test]
fn a_full_disk_is_said_and_the_figures_are_out_before() {
    let (server, _mall) = open(Mall::with_stock(&[("a", 60)]));
    let ran = run(
        &server.url(),
        &["--sale", "s1", "--rate", "100", "--seconds", "0.5", "--accepted", "/dev/full"],
    );
    assert_eq!(ran.code, 1);
    assert!(ran.stderr.contains("No space left"), "{}", ran.stderr);
    assert_eq!(ran.summary["requests"]["answered"], 50);
}

#[test]
fn a_folder_that_cannot_be_made_is_said_before_the_run() {
    let server = Server::start(|_| Say::json(200, "{}"));
    let url = server.url();
    let ran = tool(&["run", "--target", &url, "--out", "/dev/null/x"]);
    assert_eq!(ran.code, 1);
    assert!(ran.stderr.contains("/dev/null/x"), "{}", ran.stderr);
    assert_eq!(server.served(), 0);
}

#[test]
fn the_report_of_a_person_has_what_counts() {
    let (server, _mall) = open(Mall::with_stock(&[("a", 60)]));
    let ran = tool(&[
        "run",
        "--quiet",
        "--max-own-lag",
        "60",
        "--target",
        &server.url(),
        "--sale",
        "s1",
        "--rate",
        "200",
        "--seconds",
        "1",
        "--check",
        "--threshold",
        "p99<60s",
    ]);
    assert_eq!(ran.code, 0, "{} {}", ran.stdout, ran.stderr);
    for text in [
        "200 planned",
        "409 sold-out",
        "60 accepted in sale s1",
        "nothing is wrong",
        "passed: p99<60s",
    ] {
        assert!(ran.stdout.contains(text), "{text}: {}", ran.stdout);
    }
    assert!(ran.stdout.lines().count() < 25, "it fits a screen: {}", ran.stdout);
}
