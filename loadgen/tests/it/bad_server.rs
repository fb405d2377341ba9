//! Servers that are down, hang up, or talk nonsense: outcomes, not crashes.

use crate::server::{Say, Server};
use crate::tool::{number, outcome, run, tool};

const LOAD: [&str; 6] = ["--rate", "100", "--seconds", "1", "--connections", "4"];

#[test]
fn nobody_there_is_exit_1_with_the_reason() {
    let address = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap()
    };
    let ran = tool(&["run", "--target", &format!("http://{address}"), "--seconds", "1"]);
    assert_eq!(ran.code, 1);
    assert!(ran.stderr.contains("refused"), "{}", ran.stderr);
}

fn against(answer: &'static [u8], hang_up: bool) -> crate::tool::Ran {
    let server = Server::start(move |ask| {
        if ask.number == 10 { Say::raw(answer, hang_up) } else { Say::json(200, "{}") }
    });
    let ran = run(&server.url(), &LOAD);
    assert_eq!(number(&ran, "/requests/answered") as u64, 100, "{}", ran.stdout);
    assert_eq!(outcome(&ran, "200")["requests"], 99, "{}", ran.stdout);
    ran
}

#[test]
fn one_bad_answer_is_one_outcome_and_the_rest_is_counted_right() {
    let cases: [(&str, &[u8], bool); 6] = [
        ("closed", b"", true),
        ("truncated", b"HTTP/1.1 200 OK\r\nContent-Le", true),
        ("truncated", b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc", true),
        ("malformed", b"SMTP ready\r\n\r\n", false),
        ("malformed", b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", false),
        ("503", b"HTTP/1.1 503 X\r\nConnection: close\r\nContent-Length: 0\r\n\r\n", true),
    ];
    std::thread::scope(|scope| {
        for (name, bytes, hang_up) in cases {
            scope.spawn(move || {
                let ran = against(bytes, hang_up);
                assert_eq!(outcome(&ran, name)["requests"], 1, "{name}: {}", ran.stdout);
            });
        }
    });
}

#[test]
fn answers_without_a_length_end_with_the_connection() {
    let server = Server::start(|_| Say::raw(b"HTTP/1.1 200 OK\r\n\r\nto the end", true));
    let ran = run(&server.url(), &LOAD);
    assert_eq!(outcome(&ran, "200")["requests"], 100, "{}", ran.stdout);
    assert_eq!(ran.summary["outages"].as_array().unwrap().len(), 0);
}

#[test]
fn a_large_body_is_read_to_its_end() {
    let server = Server::start(|_| {
        let mut bytes = b"HTTP/1.1 200 OK\r\nContent-Length: 3000000\r\n\r\n".to_vec();
        bytes.resize(bytes.len() + 3_000_000, b'x');
        Say::raw(&bytes, false)
    });
    let ran = run(&server.url(), &["--rate", "20", "--seconds", "1"]);
    assert_eq!(outcome(&ran, "200")["requests"], 20, "{}", ran.stdout);
    assert!(number(&ran, "/requests/bytes_received") > 60e6);
}

#[test]
fn a_server_that_dies_and_returns_costs_nothing_planned() {
    let server = Server::start(|_| Say::json(200, "{}"));
    let aside = crate::tool::run_aside(
        &server.url(),
        &["--rate", "200", "--seconds", "2", "--connections", "8", "--attempts", "1"],
    );
    while server.served() < 100 {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    server.kill();
    std::thread::sleep(std::time::Duration::from_millis(300));
    let _second = server.restart();
    let ran = aside.join().unwrap();
    // Without retries, what was planned in the outage was refused, and is counted.
    assert_eq!(number(&ran, "/requests/answered") as u64, 400, "{}", ran.stdout);
    let refused = outcome(&ran, "refused")["requests"].as_u64().unwrap();
    assert!((30..90).contains(&refused), "{refused}");
    assert_eq!(ran.code, 0);
}
