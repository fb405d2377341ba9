//! How a node starts and ends: settings and folders that will not do, ports in use, the drain, the
//! second signal, the readiness file.

use std::fs;
use std::io::{BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::time::Duration;

use onrush::persist::sqlite::path_of;
use onrush::ship::partition::DatabaseShard;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::e2e::{Site, now, onrush, run, turn, wait_until};
use crate::e2e_burst::{Book, ITEMS, MEMBERS, POINTS, SALE, burst};
use crate::e2e_client::{Wish, read_reply};

/// Exit code 2, one line that names the trouble, nothing else.
#[track_caller]
fn refuses(command: &mut Command, names: &[&str]) {
    let (code, out, err) = run(command);
    assert_eq!(code, Some(2), "{out}{err}");
    // Beside the line there may be events of the log, which are JSON where nobody sits in front.
    let lines: Vec<&str> = err.lines().filter(|line| !line.starts_with('{')).collect();
    assert_eq!(lines.len(), 1, "one clear line: {err}");
    for name in names {
        assert!(lines[0].contains(name), "{name} is not in: {err}");
    }
}

#[test]
fn an_unknown_setting_is_one_clear_line() {
    let _turn = turn();
    let mut site = Site::new();
    site.set("http.wrokers", "3");
    refuses(&mut site.serve(), &["wrokers"]);
    assert!(!site.data().exists(), "nothing was made before the settings were checked");

    let site = Site::new();
    refuses(site.serve().env("ONRUSH__HTTP__WORKERS", "none"), &["ONRUSH__HTTP__WORKERS"]);
}

#[test]
fn a_port_in_use_is_one_clear_line() {
    let _turn = turn();
    let site = Site::new();
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("bound").to_string();
    refuses(&mut site.serve_on(&address, "127.0.0.1:0"), &[&address]);
    refuses(&mut site.serve_on("127.0.0.1:0", &address), &[&address]);
}

#[test]
fn a_folder_that_cannot_be_written_is_one_clear_line() {
    let _turn = turn();
    // A folder below a file: not even root can make it.
    let site = Site::new();
    fs::write(site.path("file"), "").expect("writable");
    let data = site.path("file").join("data");
    let site = site.with_data(&data);
    refuses(&mut site.serve(), &[&data.display().to_string()]);
}

#[test]
fn a_public_address_without_a_gateway_is_refused() {
    let _turn = turn();
    let site = Site::new();
    refuses(&mut site.serve_on("0.0.0.0:0", "127.0.0.1:0"), &["behind_gateway"]);
}

#[test]
fn a_second_node_on_the_same_folder_is_refused() {
    let _turn = turn();
    let site = Site::new();
    let mut node = site.start();
    refuses(&mut site.serve(), &[&site.data().display().to_string()]);
    assert!(node.is_running());
    // The offline audit looks at stopped nodes only, and says so.
    let (code, _, err) = run(onrush().arg("audit").arg("--data").arg(site.data()));
    assert_eq!(code, Some(2), "{err}");
    assert!(node.stop().success());
    site.audit();
}

/// The journal and its snapshots as they were earlier, with the database shards of today.
#[test]
fn an_old_copy_of_the_journal_is_refused_by_what_the_database_shards_have() {
    let _turn = turn();
    let site = Site::new();
    let node = site.start();
    node.import_members(1, 100, 1_000);
    assert!(node.stop().success());
    let parts = ["journal", "snapshots"];
    for part in parts {
        copy_dir(&site.data().join(part), &site.path(part));
    }
    let restore = |from: &dyn Fn(&str) -> std::path::PathBuf, to: &dyn Fn(&str) -> _| {
        for part in parts {
            let to: std::path::PathBuf = to(part);
            let _ = fs::remove_dir_all(&to);
            copy_dir(&from(part), &to);
        }
    };

    // Opened once more, and not written to: the next opening of the copy would have its number.
    let node = site.start();
    wait_until("a mark of the second opening is stored", Duration::from_secs(30), || {
        let path = path_of(&site.data().join("db"), DatabaseShard::new(0));
        let database = rusqlite::Connection::open(path).expect("there");
        let sql = "SELECT max(incarnation) FROM watermarks";
        node.admin().post_keyed("c", "/v1/members/1/points", &json!({"credit": 1})).expect(200);
        database.query_row(sql, [], |row| row.get::<_, u32>(0)).expect("readable") > 1
    });
    assert!(node.stop().success());
    restore(&|part| site.data().join(part), &|part| site.path(&format!("new-{part}")));
    restore(&|part| site.path(part), &|part| site.data().join(part));
    refuses(&mut site.serve(), &["database shard", "old copy"]);
    let (code, out, _) = run(onrush().arg("audit").arg("--data").arg(site.data()));
    assert_eq!(code, Some(1), "{out}");

    // The newest copy starts, and nothing was changed by the refusal.
    restore(&|part| site.path(&format!("new-{part}")), &|part| site.data().join(part));
    let node = site.start();
    assert_eq!(node.points(1), [1_001, 0]);
    assert!(node.stop().success());
    site.audit();
}

fn copy_dir(from: &std::path::Path, to: &std::path::Path) {
    fs::create_dir_all(to).expect("writable");
    for entry in fs::read_dir(from).expect("readable").map(|entry| entry.expect("readable")) {
        fs::copy(entry.path(), to.join(entry.file_name())).expect("copied");
    }
}

#[test]
fn a_drain_finishes_what_was_accepted() {
    let _turn = turn();
    let site = Site::new();
    let node = site.start();
    node.import_members(1, MEMBERS, POINTS);
    node.open_sale(SALE, 3_600_000, ITEMS);
    let load = burst(node.public, 1, "drain");
    std::thread::sleep(Duration::from_millis(200));
    let begun = now();
    assert!(node.stop().success());
    assert!(begun.elapsed() < Duration::from_secs(30));
    let attempts = load.finish();
    site.audit();
    let node = site.start();
    let mut book = Book::default();
    book.reconcile(&node, attempts, &mut crate::e2e::Random::from_seed(1));
    book.compare(&node);
    println!("drain: {}", book.summary());
    assert_eq!(book.unanswered_done(), 0, "what was accepted was also answered");
}

#[test]
fn readiness_falls_while_a_request_is_still_being_sent() {
    let _turn = turn();
    let site = Site::new();
    let mut node = site.start();
    assert_eq!(node.client().get("/readyz").status, 200);
    // A request that never ends keeps the drain open until its deadline, and no longer.
    let mut slow = TcpStream::connect(node.public).expect("a connection");
    slow.write_all(b"POST /v1/sales/x/redemptions HTTP/1.1\r\nhost: x\r\n").expect("sent");
    node.signal(Signal::TERM);
    // Where it is asked for, until the end: the public listener takes no new connections then.
    let mut seen = 200;
    wait_until("readyz falls", Duration::from_secs(30), || {
        seen = node.admin().get("/readyz").status;
        seen != 200
    });
    assert_eq!(seen, 503);
    assert_eq!(node.admin().get("/livez").status, 200);
    node.signal_if_running(Signal::TERM);
    assert!(node.ends_within(Duration::from_secs(3)), "a second signal ends it at once");
    site.audit();
}

/// A request's head, behind which the node asks for the body: so it has begun on it.
fn begin_request(address: SocketAddr, key: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).expect("a connection");
    stream.set_read_timeout(Some(Duration::from_secs(30))).expect("set");
    let head = format!(
        "POST /v1/sales/late/redemptions HTTP/1.1\r\nhost: x\r\nx-member-id: 1\r\n\
         idempotency-key: {key}\r\ncontent-type: application/json\r\ncontent-length: 26\r\n\
         expect: 100-continue\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).expect("sent");
    let mut line = [0; 25];
    stream.read_exact(&mut line).expect("an answer");
    assert_eq!(&line, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream
}

#[test]
fn a_request_that_was_begun_before_the_drain_is_answered_in_it() {
    let _turn = turn();
    let site = Site::new();
    let mut node = site.start();
    node.import_members(1, 1, 100);
    node.open_sale("late", 3_600_000, &[("cup", 10, 100, 50)]);
    let mut begun = begin_request(node.public, "k");
    node.signal(Signal::TERM);
    wait_until("readyz falls", Duration::from_secs(30), || {
        node.admin().get("/readyz").status == 503
    });
    begun.write_all(br#"{"sku":"cup","quantity":1}"#).expect("sent");
    let first = read_reply(&mut BufReader::new(begun)).expect("an answer").expect(201);
    assert!(node.wait(Duration::from_secs(40)).success());
    assert!(node.logged("final snapshot taken").is_some(), "{}", node.log_tail());
    site.audit();
    let node = site.start();
    let again = node.client().redeem(&Wish::new(1, "k", "late", "cup")).expect(201);
    assert_eq!(again.body, first.body);
    assert_eq!(node.units("late", "cup"), [99, 0, 1]);
}

/// Nothing else would end these requests within ten minutes.
#[test]
fn requests_that_never_end_keep_the_node_until_the_deadline_and_no_longer() {
    let _turn = turn();
    let mut site = Site::new();
    site.set("node.drain_deadline_ms", "2000");
    site.set("http.read_timeout_ms", "600000");
    let mut node = site.start();
    node.import_members(1, 1, 100);
    node.open_sale("late", 3_600_000, &[("cup", 10, 100, 50)]);
    let _without_body = begin_request(node.public, "k");
    let half_a_head = b"POST /v1/members:import HTTP/1.1\r\nhost: x\r\n";
    let _half: Vec<TcpStream> = [node.public, node.admin]
        .into_iter()
        .map(|address| {
            let mut stream = TcpStream::connect(address).expect("a connection");
            stream.write_all(half_a_head).expect("sent");
            stream
        })
        .collect();
    node.signal(Signal::TERM);
    assert!(node.wait(Duration::from_mins(1)).success());
    for message in ["the drain's deadline passed; what was confirmed is durable", "ended"] {
        assert!(node.logged(message).is_some(), "{message}:\n{}", node.log_tail());
    }
    assert!(node.logged("final snapshot taken").is_some(), "{}", node.log_tail());
    site.audit();
    let node = site.start();
    assert_eq!(node.units("late", "cup"), [100, 0, 0]);
    assert_eq!(node.points(1), [100, 0]);
}

#[test]
fn logs_are_one_json_object_per_event_where_nobody_sits_in_front() {
    let _turn = turn();
    let mut site = Site::new();
    site.set("node.drain_deadline_ms", "2000");
    site.set("http.read_timeout_ms", "600000");
    let node = site.start();
    let addresses = [node.public, node.admin];
    node.open_sale("late", 3_600_000, &[("cup", 10, 100, 50)]);
    // So one event warns.
    let _without_body = begin_request(node.public, "k");
    assert!(node.stop().success());

    let printed = fs::read_to_string(site.path("node.out")).expect("what it printed");
    let [public, admin] = addresses;
    assert_eq!(printed, format!("members:   http://{public}\noperators: http://{admin}\n"));
    let log = fs::read_to_string(site.path("node.log")).expect("its log");
    let mut told = Vec::new();
    for line in log.lines() {
        let event: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
        let text = |field: &str| event[field].as_str().unwrap_or_else(|| panic!("{field}: {line}"));
        text("timestamp").parse::<jiff::Timestamp>().expect("a time");
        told.push((text("level").to_owned(), text("message").to_owned()));
    }
    for (level, message) in [
        ("INFO", "recovered"),
        ("INFO", "ready"),
        ("INFO", "final snapshot taken"),
        ("WARN", "the drain's deadline passed; what was confirmed is durable"),
        ("INFO", "ended"),
    ] {
        let count = told.iter().filter(|(l, m)| l == level && m == message).count();
        assert_eq!(count, 1, "{level} {message}: {log}");
    }
}

const PANICS_ENV: &str = "ONRUSH_TEST_PANICS";

/// The process that panics; does nothing unless another test runs it.
#[test]
fn child_that_panics() {
    if std::env::var_os(PANICS_ENV).is_some() {
        onrush::telemetry::logs::end_at_panic();
        onrush::telemetry::logs::init().expect("nothing was set up before");
        panic!("a bug,\nin two lines");
    }
}

#[test]
fn a_panic_ends_the_process_and_is_one_event_too() {
    let mut command = Command::new(std::env::current_exe().expect("this test"));
    command.args(["--exact", "e2e_start::child_that_panics", "--nocapture"]);
    command.env_remove("RUST_LOG").env_remove("RUST_BACKTRACE").env(PANICS_ENV, "1");
    let output = command.output().expect("it starts");
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&output.status), Some(6), "SIGABRT");
    let told = String::from_utf8_lossy(&output.stderr);
    let [line] = told.lines().collect::<Vec<_>>()[..] else { panic!("not one line: {told}") };
    let event: Value = serde_json::from_str(line).expect("JSON");
    assert_eq!(event["level"], "ERROR");
    let message = event["message"].as_str().expect("a message");
    assert!(message.contains("e2e_start.rs") && message.contains("a bug,\nin two lines"), "{told}");
}

#[test]
fn half_sent_requests_are_closed_and_have_no_effect() {
    let _turn = turn();
    let mut site = Site::new();
    site.set("http.read_timeout_ms", "500");
    let node = site.start();
    node.import_members(1, 2, 100);
    node.open_sale("half", 3_600_000, &[("cup", 10, 100, 50)]);
    let head = "POST /v1/sales/half/redemptions HTTP/1.1\r\nhost: x\r\nx-member-id: 1\r\n\
                idempotency-key: k\r\ncontent-type: application/json\r\ncontent-length: 28\r\n\r\n";
    let whole = format!("{head}{}", r#"{"sku":"cup","quantity":1 }  "#);
    for cut in [1, 20, 60, head.len() - 2, head.len(), head.len() + 5, head.len() + 27] {
        let mut stream = TcpStream::connect(node.public).expect("a connection");
        stream.set_read_timeout(Some(Duration::from_secs(5))).expect("set");
        stream.write_all(&whole.as_bytes()[..cut]).expect("sent");
        let mut answer = Vec::new();
        let ended = stream.read_to_end(&mut answer);
        let text = String::from_utf8_lossy(&answer);
        assert!(ended.is_ok(), "cut at {cut}: not closed: {ended:?} {text}");
        assert!(answer.is_empty() || text.contains(" 408 ") || text.contains(" 400 "), "{text}");
    }
    assert_eq!(node.units("half", "cup"), [100, 0, 0]);
    assert_eq!(node.points(1), [100, 0]);
    node.client().redeem(&Wish::new(1, "k", "half", "cup")).expect(201);
}

#[test]
fn the_shards_may_change_in_number_between_two_starts() {
    let _turn = turn();
    let mut site = Site::new();
    let mut book = Book::default();
    let mut random = crate::e2e::Random::from_seed(7);
    let node = site.start();
    node.import_members(1, MEMBERS, POINTS);
    node.open_sale(SALE, 3_600_000, ITEMS);
    node.kill();
    for shards in ["1", "4", "3"] {
        site.set("shards.count", shards);
        let node = site.start();
        let load = burst(node.public, random.next(), &format!("s{shards}"));
        std::thread::sleep(Duration::from_millis(150));
        let attempts = load.finish();
        book.reconcile(&node, attempts, &mut random);
        book.compare(&node);
        node.kill();
        site.audit();
    }
}

/// [A second run of a file that was cut off opened accounts twice, or left some out.]
#[test]
fn an_import_cut_off_by_kill_9_is_completed_by_running_it_again() {
    const ROWS: u64 = 60_000;
    let _turn = turn();
    let site = Site::new();
    let csv = site.path("members.csv");
    let rows =
        (1..=ROWS).fold(String::from("member,points\n"), |text, n| text + &format!("{n},7\n"));
    fs::write(&csv, rows).expect("writable");
    let import = |admin: std::net::SocketAddr| {
        let mut command = onrush();
        command.args(["import", "members"]).arg(&csv).args(["--admin", &format!("http://{admin}")]);
        command
    };
    let opened = |node: &crate::e2e::Node| node.metric("onrush_members ") as u64;
    let node = site.start();
    let mut client =
        import(node.admin).stderr(std::process::Stdio::null()).spawn().expect("it starts");
    // More than an import has in flight at once (4,096): so some are durable.
    wait_until("some accounts are open", Duration::from_mins(1), || opened(&node) > 5_000);
    node.kill();
    assert!(!client.wait().expect("it ends").success(), "it was cut off");
    let node = site.start();
    let before = opened(&node);
    assert!(before > 0, "some were durable");
    let (code, out, err) = run(&mut import(node.admin));
    assert_eq!(code, Some(0), "{out}{err}");
    println!("{before} of {ROWS} accounts were open when it was cut off");
    assert_eq!(opened(&node), ROWS);
    assert_eq!(node.points(1)[0] + node.points(ROWS)[0], 14, "each once");
    node.kill();
    site.audit();
}
