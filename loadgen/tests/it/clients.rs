//! What clients do beside sending at a rate: recorded arrivals, rows of data, slow reading, coming
//! and going, hammering.

use std::collections::{HashMap, HashSet};
use std::io::Write;
use std::net::TcpStream;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::mall::{Mall, open};
use crate::raw::RawServer;
use crate::server::{Say, Server};
use crate::tool::{number, outcome, run, tool};

/// Moments and requests as they came, `METHOD path body`.
type Seen = Arc<Mutex<Vec<(Instant, String)>>>;

fn watched() -> (Server, Seen) {
    let seen = Seen::default();
    let inside = seen.clone();
    let server = Server::start(move |ask| {
        let body = String::from_utf8_lossy(&ask.body);
        let text = format!("{} {} {body}", ask.method, ask.path);
        inside.lock().unwrap().push((Instant::now(), text));
        Say::json(200, if ask.method == "HEAD" { "" } else { "{}" })
    });
    (server, seen)
}

fn file(text: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

fn path(file: &tempfile::NamedTempFile) -> &str {
    file.path().to_str().unwrap()
}

#[test]
fn an_access_log_is_replayed_in_its_order_with_its_gaps() {
    let (server, seen) = watched();
    let line = |second: u32, request: &str| {
        format!(
            "10.0.0.1 - bob [24/Nov/2025:10:00:{second:02} +0100] \"{request}\" 200 12 \"-\" \"x\""
        )
    };
    let log = [
        line(10, "GET /a?x=1 HTTP/1.1"),
        line(10, "HEAD /b HTTP/1.1"),
        line(12, "-"),
        line(14, "DELETE /c HTTP/1.1"),
    ];
    let log = file(&(log.join("\n") + "\n"));
    let scenario = file(&format!("[schedule]\nreplay = '{}'\n", path(&log)));
    let url = format!("{}/base", server.url());
    let args = ["--replay", path(&log), "--replay-speed", "4", "--connections", "1"];
    let ran = run(&url, &args);
    assert_eq!(ran.code, 0, "{} {}", ran.stdout, ran.stderr);
    let seen = seen.lock().unwrap();
    let texts: Vec<_> = seen.iter().map(|(_, t)| t.trim()).collect();
    assert_eq!(texts, ["GET /base/a?x=1", "HEAD /base/b", "DELETE /base/c"]);
    // Four recorded seconds, four times as fast: never before its time.
    let gap = seen[2].0 - seen[0].0;
    assert!((0.9..3.0).contains(&gap.as_secs_f64()), "{gap:?}");
    assert_eq!(ran.summary["phases"][0]["name"], "replay");
    let ran = tool(&["check", path(&scenario)]);
    assert!(ran.stdout.contains("in all 3 requests"), "{}", ran.stdout);
    assert!(ran.stdout.contains("without a request, left out: 1"), "{}", ran.stdout);
}

#[test]
fn recorded_times_drive_redemptions_too() {
    let (server, mall) = open(Mall::with_stock(&[("a", 1000)]));
    let rows: Vec<_> = (0..50).map(|i| format!("{}", f64::from(i) * 0.01)).collect();
    let times = file(&format!("seconds\n{}\n", rows.join("\n")));
    let args = [
        "--sale",
        "s1",
        "--members",
        "1-500",
        "--replay",
        path(&times),
        "--threads",
        "2",
        "--check",
    ];
    let ran = run(&server.url(), &args);
    assert_eq!(ran.code, 0, "{} {}", ran.stdout, ran.stderr);
    assert_eq!(mall.lock().unwrap().count("confirmed"), 50);
}

#[test]
fn rows_of_data_fill_path_fields_and_body() {
    let (server, seen) = watched();
    let data = file("id,city\n1,Paris\n\"2 3\",\"Zü\"\"r\"\n");
    let url = format!("{}/users/{{{{id}}}}?n={{{{number}}}}", server.url());
    let args = [
        "--data",
        path(&data),
        "--body",
        "{\"city\":\"{{city}}\"}",
        "--rate",
        "100",
        "--seconds",
        "0.04",
        "--connections",
        "1",
    ];
    let ran = run(&url, &args);
    assert_eq!(ran.code, 0, "{} {}", ran.stdout, ran.stderr);
    let seen = seen.lock().unwrap();
    let texts: Vec<_> = seen.iter().map(|(_, t)| t.as_str()).collect();
    assert_eq!(
        texts,
        [
            "POST /users/1?n=0 {\"city\":\"Paris\"}",
            "POST /users/2%203?n=1 {\"city\":\"Zü\"r\"}",
            "POST /users/1?n=2 {\"city\":\"Paris\"}",
            "POST /users/2%203?n=3 {\"city\":\"Zü\"r\"}",
        ]
    );
}

#[test]
fn a_value_that_would_break_a_field_is_refused() {
    let (server, seen) = watched();
    let data = file("id\n\"1\nX-Evil: 1\"\n");
    let ran = crate::tool::tool(&[
        "run",
        "--target",
        &server.url(),
        "--data",
        path(&data),
        "--header",
        "X-Id: {{id}}",
    ]);
    assert_eq!(ran.code, 1);
    assert!(ran.stderr.contains("line break"), "{}", ran.stderr);
    assert!(seen.lock().unwrap().is_empty());
}

/// A quarter of the connections take 2 MB at 200 KB/s: the server's writes to them block.
#[test]
fn slow_readers_hold_the_server_up_and_others_are_not_held_up() {
    let slowest = Arc::new(Mutex::new((Duration::ZERO, 0)));
    let inside = slowest.clone();
    let server = RawServer::start(move |stream: &mut TcpStream, _| {
        let mut bytes = b"HTTP/1.1 200 OK\r\nContent-Length: 8000000\r\n\r\n".to_vec();
        bytes.resize(bytes.len() + 8_000_000, b'x');
        let begun = Instant::now();
        let alive = stream.write_all(&bytes).is_ok();
        let mut slowest = inside.lock().unwrap();
        slowest.0 = slowest.0.max(begun.elapsed());
        slowest.1 += usize::from(begun.elapsed() > Duration::from_millis(700));
        alive
    });
    let args = [
        "--closed",
        "4",
        "--seconds",
        "1",
        "--slow-readers",
        "0.25",
        "--slow-rate",
        "4000000",
        "--timeout",
        "60",
    ];
    let ran = run(&server.url(), &args);
    let answered = outcome(&ran, "200")["requests"].as_u64().unwrap();
    let (longest, blocked) = *slowest.lock().unwrap();
    assert!(longest > Duration::from_millis(700), "{longest:?}");
    assert!(blocked < answered as usize, "{blocked} of {answered} were slow");
    assert!(number(&ran, "/latency/service_us/max") > 1.4e6, "{}", ran.stdout);
}

#[test]
fn connections_come_and_go_and_no_request_is_lost() {
    let server = Server::start(|_| Say::json(200, "{}"));
    let args = ["--rate", "300", "--seconds", "2", "--connections", "10", "--reopen", "20"];
    let ran = run(&server.url(), &args);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert_eq!(outcome(&ran, "200")["requests"], 600, "{}", ran.stdout);
    let opened = number(&ran, "/requests/connections_opened");
    assert!((35.0..=50.0).contains(&opened), "10, and 20 in each of two seconds: {opened}");
    assert_eq!(number(&ran, "/requests/connections_lost") as u64, 0);
    assert!(ran.summary["outages"].as_array().unwrap().is_empty());
}

#[test]
fn bots_send_many_keys_for_one_member_and_the_ledger_stays_right() {
    let (server, mall) = open(Mall::with_stock(&[("a", 2000)]));
    let args = [
        "--sale",
        "s1",
        "--members",
        "1-100000",
        "--rate",
        "200",
        "--seconds",
        "1",
        "--bots",
        "0.2",
        "--hammer",
        "5",
        "--check",
        "--admin",
        &server.url(),
    ]
    .map(str::to_owned);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let ran = run(&server.url(), &args);
    assert_eq!(ran.code, 0, "{} {}", ran.stdout, ran.stderr);
    let more = number(&ran, "/requests/follow_ups") as u64;
    assert!((60..300).contains(&more) && more.is_multiple_of(4), "{more} further keys");
    let mall = mall.lock().unwrap();
    let mut keys: HashMap<u64, HashSet<&str>> = HashMap::new();
    for (member, key) in mall.answers.keys() {
        keys.entry(*member).or_default().insert(key);
    }
    // The limit is three, so the last keys of each bot are refused.
    assert!(keys.values().any(|k| k.len() >= 3));
    assert!(
        outcome(&ran, "409 limit-reached")["requests"].as_u64().unwrap() > 10,
        "{}",
        ran.stdout
    );
}

/// Answers everybody, from one thread.
fn crowded() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    listener.set_nonblocking(true).unwrap();
    std::thread::spawn(move || {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.enable_all().build().unwrap().block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let mut bytes = [0; 1024];
                    // Each request fits one read: its client waits for the answer.
                    while let Ok(1..) = stream.read(&mut bytes).await {
                        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}";
                        if stream.write_all(answer).await.is_err() {
                            return;
                        }
                    }
                });
            }
        });
    });
    url
}

#[test]
fn thousands_of_connections_are_opened_and_each_is_used() {
    const COUNT: u64 = 3000;
    onrush_load::http::stream::raise_file_limit(COUNT).unwrap();
    let load = ["--closed", "3000", "--threads", "2", "--seconds", "3", "--timeout", "30"];
    let ran = run(&crowded(), &load);
    assert_eq!(ran.code, 0, "{} {}", ran.stdout, ran.stderr);
    assert_eq!(number(&ran, "/requests/connections_opened") as u64, COUNT);
    assert!(number(&ran, "/requests/answered") as u64 >= COUNT, "{}", ran.stdout);
    assert_eq!(ran.summary["outcomes"].as_array().unwrap().len(), 1, "{}", ran.stdout);
}
