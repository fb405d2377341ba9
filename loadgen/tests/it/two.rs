//! HTTP/2: many requests over few connections, and what becomes of them when streams and
//! connections end.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use h2::Reason;

use crate::mall::{Mall, open};
use crate::secure::{CA, config, in_front_of};
use crate::server::{self, Server};
use crate::tool::{number, outcome, run, tool};
use crate::two_server::{Say, Setup, TwoServer};

const LOAD: [&str; 8] =
    ["--http2", "--connections", "2", "--pipeline", "5", "--rate", "300", "--seconds=1"];

fn good() -> Say {
    Say::Answer(200, b"{}".to_vec())
}

#[test]
fn requests_share_connections_within_the_bound() {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let all = asked.clone();
    let slow = Setup { delay: Duration::from_millis(20), ..Setup::default() };
    let server = TwoServer::start(slow, move |request, body, _| {
        let field = request.headers().get("x-a").map(|v| v.to_str().unwrap().to_owned());
        let line = format!("{} {} {field:?}", request.method(), request.uri());
        all.lock().unwrap().push((line, body.to_vec()));
        Say::Answer(201, vec![b'x'; 300_000])
    });
    let url = format!("{}/a/{{{{number}}}}", server.url());
    let more = ["--header", "X-A: b", "--body", "hello"];
    let ran = run(&url, &[&LOAD[..], &more].concat());
    assert_eq!(ran.code, 0, "{} {}", ran.stdout, ran.stderr);
    assert_eq!(ran.summary["protocol"], "HTTP/2");
    assert_eq!(outcome(&ran, "201")["requests"], 300);
    assert_eq!((server.connections(), server.requests()), (2, 300));
    assert!((2..=5).contains(&server.peak()), "{}", server.peak());
    assert!(number(&ran, "/requests/bytes_received") > 300.0 * 300_000.0);
    assert!(number(&ran, "/latency/service_us/min") >= 20_000.0);
    let asked = asked.lock().unwrap();
    let line = format!("POST {}/a/7 Some(\"b\")", server.url());
    assert!(asked.contains(&(line, b"hello".to_vec())), "{:?}", asked[0]);
}

#[test]
fn no_more_streams_than_the_server_allows() {
    let setup = Setup { streams: Some(2), delay: Duration::from_millis(5), ..Setup::default() };
    let server = TwoServer::start(setup, |_, _, _| good());
    let more = ["--pipeline", "50", "--connections", "3", "--attempts", "1"];
    let ran = run(&server.url(), &[&LOAD[..1], &LOAD[5..], &more].concat());
    assert_eq!(outcome(&ran, "200")["requests"], 300, "{}", ran.stdout);
    assert_eq!((server.connections(), server.peak()), (3, 2));
    // As many again in a closed loop, where every answer makes room for a request.
    let closed = ["--http2", "--closed", "3", "--seconds", "1"];
    let ran = run(&server.url(), &closed);
    assert_eq!(ran.code, 0, "{}", ran.stdout);
    assert!(number(&ran, "/requests/answered") > 100.0 && server.peak() == 2);
}

#[test]
fn it_is_agreed_on_with_tls_or_said_that_it_was_not() {
    let setup = Setup { tls: Some(config(&[b"h2"])), ..Setup::default() };
    let server = TwoServer::start(setup, |_, _, _| good());
    let url = format!("https://localhost:{}", server.address.port());
    let ran = run(&url, &[&LOAD[..], &["--ca", CA]].concat());
    assert_eq!(outcome(&ran, "200")["requests"], 300, "{} {}", ran.stdout, ran.stderr);
    assert_eq!(server.connections(), 2);

    // To it the greeting is a request for "*".
    let old = Server::start(|ask| server::Say::json(if ask.path == "*" { 400 } else { 200 }, "{}"));
    let by_tls = in_front_of(&old);
    for (url, more) in [(&old.url(), &[][..]), (&by_tls, &["--ca", CA])] {
        let args = ["run", "--quiet", "--timeout", "5", "--target", url];
        let ran = tool(&[&args[..], &LOAD, more].concat());
        assert_eq!(ran.code, 1, "{url}: {} {}", ran.stdout, ran.stderr);
        assert!(ran.stderr.contains("speaks no HTTP/2"), "{url}: {}", ran.stderr);
        assert!(!ran.stdout.contains("200"), "{url}: {}", ran.stdout);
    }
}

#[test]
fn after_goaway_nothing_is_lost_and_a_new_connection_is_opened() {
    let server =
        TwoServer::start(
            Setup::default(),
            |_, _, number| {
                if number % 40 == 39 { Say::Last } else { good() }
            },
        );
    let ran = run(&server.url(), &[&LOAD[..], &["--attempts", "0"]].concat());
    assert_eq!(ran.code, 0, "{} {}", ran.stdout, ran.stderr);
    assert_eq!(outcome(&ran, "200")["requests"], 300, "{}", ran.stdout);
    assert!(server.connections() >= 300 / 40, "{}", server.connections());
    assert_eq!(number(&ran, "/requests/unanswered") as u64, 0);
}

#[test]
fn a_stream_that_is_reset_is_an_outcome_and_the_connection_goes_on() {
    let server = TwoServer::start(Setup::default(), |_, _, number| match number % 10 {
        3 => Say::Reset(Reason::INTERNAL_ERROR),
        7 => Say::Cut,
        _ => good(),
    });
    let ran = run(&server.url(), &[&LOAD[..], &["--attempts", "1"]].concat());
    for (name, count) in [("200", 240), ("reset", 30), ("truncated", 30)] {
        assert_eq!(outcome(&ran, name)["requests"], count, "{name}: {}", ran.stdout);
    }
    assert_eq!(server.connections(), 2);
    // The same, tried again with what it was.
    let ran = run(&server.url(), &[&LOAD[..], &["--attempts", "0"]].concat());
    assert_eq!(outcome(&ran, "200")["requests"], 300, "{}", ran.stdout);
}

#[test]
fn a_stream_without_an_answer_times_out_alone() {
    let server =
        TwoServer::start(
            Setup::default(),
            |_, _, number| {
                if number % 50 == 20 { Say::Silence } else { good() }
            },
        );
    let ran = run(&server.url(), &[&LOAD[..], &["--attempts", "1", "--timeout", "0.5"]].concat());
    assert_eq!(outcome(&ran, "200")["requests"], 294, "{}", ran.stdout);
    assert_eq!(outcome(&ran, "timeout")["requests"], 6, "{}", ran.stdout);
    assert_eq!(server.connections(), 2);
}

#[test]
fn a_server_that_says_nothing_at_all_is_a_lost_connection() {
    let server = TwoServer::start(Setup::default(), |_, _, _| Say::Silence);
    let more = ["--attempts", "1", "--timeout", "0.3", "--drain", "10"];
    let ran = run(&server.url(), &[&LOAD[..], &more].concat());
    let ended = |name: &str| outcome(&ran, name)["requests"].as_u64().unwrap_or(0);
    assert!(ended("timeout") > 0, "{}", ran.stdout);
    assert_eq!(ended("timeout") + ended("closed"), 300, "{}", ran.stdout);
    assert!(server.connections() > 2, "{}", server.connections());
}

#[test]
fn a_connection_that_is_lost_is_an_outage_and_its_requests_are_sent_again() {
    let delay = Duration::from_millis(10);
    let server = TwoServer::start(Setup { delay, ..Setup::default() }, |_, _, number| {
        if number == 150 { Say::HangUp } else { good() }
    });
    let ran = run(&server.url(), &[&LOAD[..], &["--attempts", "0"]].concat());
    assert_eq!(outcome(&ran, "200")["requests"], 300, "{} {}", ran.stdout, ran.stderr);
    assert_eq!(number(&ran, "/requests/connections_lost") as u64, 1);
    assert!(number(&ran, "/outages/0/unanswered_at_loss") >= 1.0);
    assert_eq!(server.connections(), 3);
}

#[test]
fn slow_readers_and_reopened_connections_are_the_same() {
    let body = vec![b'x'; 2000];
    let server = TwoServer::start(Setup::default(), move |_, _, _| Say::Answer(200, body.clone()));
    let more = ["--slow-readers", "0.5", "--slow-rate", "20000", "--reopen", "5"];
    let ran = run(&server.url(), &[&LOAD[..5], &["--rate", "20", "--seconds=1"], &more].concat());
    assert_eq!(outcome(&ran, "200")["requests"], 20, "{} {}", ran.stdout, ran.stderr);
    assert!(server.connections() >= 5, "{}", server.connections());
}

/// Asks an HTTP/1.1 server what an HTTP/2 client asked.
fn pass_on(to: &Server, request: &http::Request<()>, body: &[u8]) -> Say {
    let mut stream = TcpStream::connect(to.address).unwrap();
    let mut text = format!("{} {} HTTP/1.1\r\n", request.method(), request.uri().path());
    for (name, value) in request.headers() {
        text.extend([name.as_str(), ": ", value.to_str().unwrap(), "\r\n"]);
    }
    stream.write_all(format!("{text}\r\n").as_bytes()).unwrap();
    stream.write_all(body).unwrap();
    let mut answer = BufReader::new(stream);
    let mut line = || {
        let mut line = String::new();
        answer.read_line(&mut line).unwrap();
        line.trim_end().to_ascii_lowercase()
    };
    let (status, mut length) = (line(), 0);
    loop {
        match line().split_once(": ") {
            Some(("content-length", value)) => length = value.parse().unwrap(),
            Some(_) => {}
            None => break,
        }
    }
    let mut body = vec![0; length];
    answer.read_exact(&mut body).unwrap();
    Say::Answer(status.split(' ').nth(1).unwrap().parse().unwrap(), body)
}

#[test]
fn redemptions_over_it_add_up() {
    let (behind, mall) = open(Mall::with_stock(&[("a", 60)]));
    let asked = Arc::new(behind);
    let server = TwoServer::start(Setup::default(), move |r, body, _| pass_on(&asked, r, body));
    let accepted = tempfile::NamedTempFile::new().unwrap();
    let sale = ["--sale", "s1", "--items", "a", "--members", "1-500", "--duplicates", "0.3"];
    let file = ["--accepted", accepted.path().to_str().unwrap()];
    let ran = run(&server.url(), &[&LOAD[..], &sale, &file].concat());
    assert_eq!(ran.code, 0, "{} {}", ran.stdout, ran.stderr);
    assert_eq!(number(&ran, "/ledger/accepted") as u64, 60);
    assert_eq!(number(&ran, "/ledger/finding_count") as u64, 0);
    assert_eq!(mall.lock().unwrap().count("confirmed"), 60);
    assert_eq!(crate::tool::json_lines(accepted.path()).len(), 60);
}

/// Bodies are counted; of each only so much is kept as an answer of the API can have.
#[test]
fn large_bodies_cost_no_memory() {
    const BYTES: usize = 16 << 20;
    // None is answered before all are there: so all bodies come at the same time.
    let begun = std::sync::Barrier::new(8);
    let server = TwoServer::start(Setup::default(), move |_, _, _| {
        begun.wait();
        Say::Answer(200, vec![b'x'; BYTES])
    });
    let load = ["--http2", "--connections", "1", "--pipeline", "8", "--rate", "80"];
    let ran = run(&server.url(), &[&load[..], &["--seconds", "0.1", "--timeout", "60"]].concat());
    assert_eq!(outcome(&ran, "200")["requests"], 8, "{} {}", ran.stdout, ran.stderr);
    assert_eq!(server.peak(), 8, "at a time");
    assert!(number(&ran, "/requests/bytes_received") > 8.0 * BYTES as f64);
    let peak = number(&ran, "/generator/peak_memory_bytes");
    assert!(peak < 4.5 * BYTES as f64, "{peak} bytes");
}
