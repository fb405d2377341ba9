//! Servers without end or haste, machines without room: clear errors, and the rest counted right.

use std::io::Write;
use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

use crate::raw::RawServer;
use crate::server::{Say, Server};
use crate::tool::{number, outcome, run, tool};

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}";

/// The first request gets 10 GB as fast as they are taken, all others a short answer.
#[test]
fn a_body_without_end_costs_time_and_no_memory() {
    let server = RawServer::start(|stream: &mut TcpStream, number| {
        if number > 0 {
            return stream.write_all(OK).is_ok();
        }
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", 10u64 << 30);
        let piece = vec![b'x'; 1 << 18];
        let mut alive = stream.write_all(head.as_bytes()).is_ok();
        for _ in 0..(10u64 << 30) / piece.len() as u64 {
            alive = alive && stream.write_all(&piece).is_ok();
        }
        alive
    });
    let ran = run(
        &server.url(),
        &["--rate", "50", "--seconds", "1", "--connections", "4", "--timeout", "2"],
    );
    assert_eq!(outcome(&ran, "timeout")["requests"], 1, "{}", ran.stdout);
    assert_eq!(outcome(&ran, "200")["requests"], 49, "{}", ran.stdout);
    let came = number(&ran, "/requests/bytes_received");
    assert!(came > 50e6, "a body was under way: {came} bytes");
    let peak = number(&ran, "/generator/peak_memory_bytes");
    assert!(peak < 120e6 && peak > 1e6, "{peak} bytes of memory for {came} of body");
}

#[test]
fn a_chunked_body_without_end_is_bounded_too() {
    let server = RawServer::start(|stream: &mut TcpStream, number| {
        if number > 0 {
            return stream.write_all(OK).is_ok();
        }
        let head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        let mut piece = b"40000\r\n".to_vec();
        piece.resize(7 + (1 << 18), b'x');
        piece.extend_from_slice(b"\r\n");
        let mut alive = stream.write_all(head).is_ok();
        while alive {
            alive = stream.write_all(&piece).is_ok();
        }
        alive
    });
    let ran = run(
        &server.url(),
        &["--rate", "50", "--seconds", "1", "--connections", "4", "--timeout", "2"],
    );
    assert_eq!(outcome(&ran, "timeout")["requests"], 1, "{}", ran.stdout);
    assert_eq!(outcome(&ran, "200")["requests"], 49, "{}", ran.stdout);
    assert!(number(&ran, "/generator/peak_memory_bytes") < 120e6);
}

/// A byte at a time never ends the wait: the timeout is for the whole answer.
#[test]
fn an_answer_that_drips_is_timed_out() {
    let server = RawServer::start(|stream: &mut TcpStream, number| {
        if number != 5 {
            return stream.write_all(OK).is_ok();
        }
        let mut drops = OK.iter().chain(std::iter::repeat(&b' '));
        while stream.write_all(&[*drops.next().unwrap()]).is_ok() {
            std::thread::sleep(Duration::from_millis(100));
        }
        false
    });
    let ran = run(
        &server.url(),
        &["--rate", "50", "--seconds", "1", "--connections", "4", "--timeout", "1"],
    );
    assert_eq!(outcome(&ran, "timeout")["requests"], 1, "{}", ran.stdout);
    assert_eq!(outcome(&ran, "200")["requests"], 49, "{}", ran.stdout);
    let longest = number(&ran, "/latency/response_us/max") / 1e6;
    assert!((1.0..5.0).contains(&longest), "{longest}");
}

fn limited(limit: &str, args: &str) -> (i32, String, serde_json::Value) {
    let tool = env!("CARGO_BIN_EXE_onrush-load");
    let output =
        Command::new("sh").args(["-c", &format!("{limit}; exec {tool} {args}")]).output().unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    (
        output.status.code().unwrap_or(-1),
        String::from_utf8_lossy(&output.stderr).into_owned(),
        serde_json::from_str(&stdout).unwrap_or_default(),
    )
}

#[test]
fn too_few_files_are_said_before_the_run_and_a_soft_limit_is_lifted() {
    let server = Server::start(|_| Say::json(200, "{}"));
    let load = format!("run --quiet --json --max-own-lag 60 --target {}", server.url());
    let args = format!("{load} --connections 200 --rate 200 --seconds 1");
    let (code, error, _) = limited("ulimit -n 100", &args);
    assert_eq!(code, 1, "{error}");
    assert!(error.contains("open files") && error.contains("100"), "{error}");
    assert_eq!(server.served(), 0);
    let (code, error, summary) = limited("ulimit -Sn 100", &args);
    assert_eq!(code, 0, "{error}");
    assert_eq!(summary["requests"]["connections_opened"], 200);
}

/// Each file of the report on a disk that is full: the figures are out, the exit code says it.
#[test]
fn a_full_disk_is_said_for_each_file_of_the_report() {
    for name in ["summary.json", "figures.json", "seconds.csv", "latency.hlog", "report.html"] {
        let server = Server::start(|_| Say::json(200, "{}"));
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/dev/full", dir.path().join(name)).unwrap();
        let out = dir.path().to_str().unwrap();
        let ran = run(&server.url(), &["--rate", "50", "--seconds", "0.2", "--out", out]);
        assert_eq!(ran.code, 1, "{name}: {}", ran.stderr);
        assert!(ran.stderr.contains("No space left"), "{name}: {}", ran.stderr);
        assert_eq!(ran.summary["requests"]["answered"], 10, "{name}");
    }
}

#[test]
fn a_name_that_does_not_resolve_is_said_and_nothing_else_is_tried() {
    let server = Server::start(|_| Say::json(200, "{}"));
    let (url, unknown) = (server.url(), "http://no-such-host.invalid:81");
    let ran = tool(&["run", "--target", &url, "--target", unknown, "--seconds", "1"]);
    assert_eq!(ran.code, 1);
    for text in ["no-such-host.invalid", "does not resolve"] {
        assert!(ran.stderr.contains(text), "{}", ran.stderr);
    }
    assert_eq!(server.served(), 0);
}
