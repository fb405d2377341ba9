//! Bad input over real sockets: the right problem or a closed connection, and never an effect.

use std::io::Write;
use std::net::TcpStream;
use std::time::Duration;

use crate::http_client::{Answer, Ask, Connection, TestNode, import, open_sale, redeem};
use crate::http_spec::{Listener, Spec};

const MEMBER: u64 = 7;
const ONE: &str = r#"{"sku":"cup","quantity":1}"#;

fn node() -> TestNode {
    let node = TestNode::start_with(|config| config.http.read_timeout_ms = 1_000);
    import(&node, [(MEMBER, 1_000)]);
    open_sale(&node, "s", &[("cup", 10, 100, 100)]);
    node
}

/// Nothing of all that had an effect.
#[track_caller]
fn assert_untouched(node: &TestNode) {
    let account = Ask::get("/v1/members/me/points").member(MEMBER).send(node.public).json();
    assert_eq!((&account["free"], &account["held"]), (&1000.into(), &0.into()));
    let sale = Ask::get("/v1/sales/s").send(node.admin).json();
    let item = &sale["items"][0];
    assert_eq!((&item["free"], &item["confirmed"]), (&100.into(), &0.into()));
    let mine = Ask::get("/v1/members/me/redemptions").member(MEMBER).send(node.public).json();
    assert_eq!(mine["redemptions"].as_array().unwrap().len(), 0);
}

#[test]
fn bodies_that_are_not_what_the_call_takes() {
    let (node, spec) = (node(), Spec::load());
    let long = format!(r#"{{"sku":"{}","quantity":1}}"#, "x".repeat(70_000));
    let deep = "[".repeat(20_000);
    for (body, status, code) in [
        ("", 400, "malformed"),
        ("{", 400, "malformed"),
        ("null", 400, "malformed"),
        ("[\"cup\",1]", 400, "malformed"),
        ("{\"sku\":\"cup\",\"quantity\":1", 400, "malformed"),
        ("{'sku':'cup','quantity':1}", 400, "malformed"),
        (r#"{"sku":"cup","quantity":1} x"#, 400, "malformed"),
        (r#"{"sku":"cup"}"#, 400, "malformed"),
        (r#"{"quantity":1}"#, 400, "malformed"),
        (r#"{"sku":"cup","quantity":1,"price":0}"#, 400, "malformed"),
        (r#"{"sku":"cup","quantity":1,"quantity":2}"#, 400, "malformed"),
        (r#"{"sku":7,"quantity":1}"#, 400, "malformed"),
        (r#"{"sku":"cup","quantity":"1"}"#, 400, "malformed"),
        (r#"{"sku":"cup","quantity":null}"#, 400, "malformed"),
        (r#"{"sku":"cup","quantity":true}"#, 400, "malformed"),
        (r#"{"sku":"cup","quantity":-1}"#, 400, "malformed"),
        (r#"{"sku":"cup","quantity":1.0}"#, 400, "malformed"),
        (r#"{"sku":"cup","quantity":1.5}"#, 400, "malformed"),
        (r#"{"sku":"cup","quantity":1e2}"#, 400, "malformed"),
        (r#"{"sku":"cup","quantity":0}"#, 400, "quantity-invalid"),
        (r#"{"sku":"cup","quantity":4294967296}"#, 400, "quantity-invalid"),
        (r#"{"sku":"cup","quantity":9007199254740993}"#, 400, "quantity-invalid"),
        (r#"{"sku":"cup","quantity":18446744073709551615}"#, 400, "quantity-invalid"),
        (r#"{"sku":"cup","quantity":18446744073709551616}"#, 400, "malformed"),
        (r#"{"sku":"cup","quantity":1,"hold":"yes"}"#, 400, "malformed"),
        (r#"{"sku":"no such","quantity":1}"#, 404, "item-not-found"),
        (deep.as_str(), 400, "malformed"),
        (long.as_str(), 413, "body-too-large"),
    ] {
        let ask = redeem("s", MEMBER, "key", body);
        let answer = spec.send(&node, Listener::Public, &ask);
        assert_eq!((answer.status, answer.code().as_str()), (status, code), "{body:.80}");
    }
    assert_untouched(&node);
}

#[test]
fn headers_that_are_not_what_the_call_takes() {
    let (node, spec) = (node(), Spec::load());
    let post = || Ask::post("/v1/sales/s/redemptions");
    let key = |key: &str| post().member(MEMBER).key(key).json(ONE);
    let member = |id: &str| post().header("X-Member-Id", id).key("k").json(ONE);
    for (ask, status, code) in [
        (post().member(MEMBER).json(ONE), 400, "key-missing"),
        (key(""), 400, "key-malformed"),
        (key("a b"), 400, "key-malformed"),
        (key("ä"), 400, "key-malformed"),
        (key(&"k".repeat(256)), 400, "key-malformed"),
        (key(&"k".repeat(300)), 400, "key-malformed"),
        (key("k").key("k"), 400, "key-malformed"),
        (post().key("k").json(ONE), 401, "identity-missing"),
        (member(""), 400, "identity-malformed"),
        (member("x"), 400, "identity-malformed"),
        (member("-7"), 400, "identity-malformed"),
        (member("7,8"), 400, "identity-malformed"),
        (member("18446744073709551616"), 400, "identity-malformed"),
        (member("7").member(7), 400, "identity-malformed"),
        (member("7").member(8), 400, "identity-malformed"),
        (post().member(MEMBER).key("k").raw_body(ONE.as_bytes()), 415, "media-type-unsupported"),
        (
            post().member(MEMBER).key("k").body("text/plain", ONE.as_bytes()),
            415,
            "media-type-unsupported",
        ),
        (key("k").header("Content-Type", "application/json"), 415, "media-type-unsupported"),
        (Ask::new("PUT", "/v1/sales/s/redemptions").json(ONE), 405, "method-not-allowed"),
        (Ask::new("DELETE", "/v1/sales/s"), 405, "method-not-allowed"),
        (Ask::new("OPTIONS", "/v1/sales"), 405, "method-not-allowed"),
        (Ask::new("BREW", "/v1/sales"), 405, "method-not-allowed"),
        (Ask::get("/v1/sales/s/redemption"), 404, "route-not-found"),
        (Ask::get("/v1/sales/s/"), 404, "route-not-found"),
        (Ask::get("/v1/sales//events"), 404, "sale-not-found"),
        (Ask::get("/v2/sales"), 404, "route-not-found"),
        (Ask::get("/"), 404, "route-not-found"),
        (Ask::get("/v1/sales/%2e%2e"), 404, "sale-not-found"),
        (Ask::get("/../etc/passwd"), 404, "route-not-found"),
    ] {
        let answer = ask.send(node.public);
        if !ask.path.contains("//") {
            spec.check(Listener::Public, &ask, &answer);
        }
        let said = (answer.status, answer.code());
        assert_eq!(said, (status, code.to_owned()), "{} {}", ask.method, ask.path);
    }
    assert_untouched(&node);
}

/// Sends bytes; the answer, or `None` where the connection was closed without one.
fn send_raw(node: &TestNode, bytes: &[u8]) -> (Option<Answer>, Connection) {
    let mut connection = Connection::open(node.public);
    connection.write(bytes);
    (connection.read("POST"), connection)
}

#[test]
fn bytes_that_are_not_http() {
    let node = node();
    let head = |lines: &str| {
        format!(
            "POST /v1/sales/s/redemptions HTTP/1.1\r\nHost: o\r\nX-Member-Id: {MEMBER}\r\n\
             Idempotency-Key: k\r\nContent-Type: application/json\r\n{lines}\r\n"
        )
    };
    let flood = "X-Flood: 1\r\n".repeat(1000);
    let wide = format!("X-Wide: {}\r\n", "w".repeat(1 << 20));
    let many_members = format!("X-Member-Id: {MEMBER}\r\n").repeat(40);
    for (name, bytes, statuses) in [
        ("noise", "\x00\x01\x02\x03\r\n\r\n".to_owned(), &[400][..]),
        ("tls", "\x16\x03\x01\x02\x00\x01\x00\x01\r\n\r\n".to_owned(), &[400]),
        ("no version", "GET /livez\r\n\r\n".to_owned(), &[400]),
        ("http/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(), &[400, 505]),
        ("no colon", head("Nonsense\r\n"), &[400]),
        ("a space in a name", head("Bad Name: 1\r\n"), &[400]),
        ("header flood", head(&flood), &[431]),
        ("one wide header", head(&wide), &[431]),
        ("forty members", head(&many_members), &[400]),
        ("two lengths", head("Content-Length: 26\r\nContent-Length: 27\r\n") + ONE, &[400]),
        ("a signed length", head("Content-Length: +26\r\n") + ONE, &[400]),
        (
            "length and chunks",
            head("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n") + "zz",
            &[400],
        ),
        ("unknown coding", head("Transfer-Encoding: gzip\r\n") + ONE, &[400, 501]),
        ("a bad chunk", head("Transfer-Encoding: chunked\r\n") + "xyz\r\n", &[400]),
        ("a huge chunk", head("Transfer-Encoding: chunked\r\n") + "ffffffffffffffff1\r\n", &[400]),
    ] {
        let (answer, mut connection) = send_raw(&node, bytes.as_bytes());
        if let Some(answer) = answer {
            assert!(statuses.contains(&answer.status), "{name}: {}", answer.status);
            if name != "forty members" {
                assert!(connection.is_closed(), "{name}: the connection stays open");
            }
        }
    }
    assert_untouched(&node);
}

#[test]
fn a_body_above_its_calls_bound_is_refused_and_one_at_it_is_read() {
    let node = node();
    let (small, batch, sale) = (64 << 10, 256 << 10, 1000 << 10);
    for (to, path, bound) in [
        (node.public, "/v1/sales/s/redemptions", small),
        (node.gateway, "/v1/redemptions:batch", batch),
        (node.admin, "/v1/sales", sale),
        (node.admin, "/v1/sales/s/pause", small),
        (node.admin, "/v1/sales/s/items/cup/stock", small),
        (node.admin, "/v1/members/7/points", small),
    ] {
        // Blanks: whatever is read whole is no JSON, and without an effect.
        let send = |length: usize| {
            let ask = Ask::post(path).member(MEMBER).key("k").json(&" ".repeat(length));
            ask.header("X-Gateway-Secret", crate::http_client::SECRET).send(to)
        };
        let answer = send(bound + 1);
        assert_eq!((answer.status, answer.code()), (413, "body-too-large".into()), "{path}");
        assert_ne!(send(bound).status, 413, "{path}");
    }
    assert_untouched(&node);
}

#[test]
fn bodies_that_lie_about_their_length() {
    let node = node();
    let head = format!(
        "POST /v1/sales/s/redemptions HTTP/1.1\r\nHost: o\r\nX-Member-Id: {MEMBER}\r\n\
         Idempotency-Key: k\r\nContent-Type: application/json\r\n"
    );
    let chunk = format!("{:x}\r\n{}\r\n", 1024, "x".repeat(1024));
    let chunks = format!("{head}Transfer-Encoding: chunked\r\n\r\n{}0\r\n\r\n", chunk.repeat(70));
    let (answer, _) = send_raw(&node, chunks.as_bytes());
    let answer = answer.expect("an answer");
    assert_eq!((answer.status, answer.code()), (413, "body-too-large".into()));

    // Claimed to be endless, and never sent: told at once, without waiting for it.
    let claim = format!("{head}Content-Length: 99999999999\r\n\r\n");
    let (answer, mut connection) = send_raw(&node, claim.as_bytes());
    assert_eq!(answer.expect("an answer").status, 413);
    assert!(connection.is_closed());

    // Half a body, then silence: told, then closed.
    let half = format!("{head}Content-Length: 26\r\n\r\n{{\"sku\":");
    let (answer, mut connection) = send_raw(&node, half.as_bytes());
    let answer = answer.expect("an answer");
    assert_eq!((answer.status, answer.code()), (408, "request-timeout".into()));
    assert!(connection.is_closed());

    // Half a head, then silence: closed.
    let (answer, _) = send_raw(&node, b"POST /v1/sales/s/redemptions HTTP/1.1\r\nHos");
    assert!(answer.is_none());

    // Half a head that trickles on: closed as well, however often a byte comes.
    let mut connection = Connection::open(node.public);
    connection.write(b"GET /livez HTTP/1.1\r\n");
    for _ in 0..40 {
        connection.write(b"X-Slow: 1\r\n");
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(connection.is_closed());
    assert_untouched(&node);
}

#[test]
fn requests_that_come_together_are_answered_in_order() {
    let node = node();
    let mut bytes = Vec::new();
    for n in 0..16 {
        bytes.extend(redeem("s", MEMBER, &format!("p{n}"), ONE).bytes());
        bytes.extend(Ask::get("/v1/nowhere").bytes());
    }
    let mut connection = Connection::open(node.public);
    connection.write(&bytes);
    for n in 0..16u64 {
        let answer = connection.read("POST").unwrap();
        assert_eq!((answer.status, answer.json()["balance"].as_u64()), (201, Some(990 - 10 * n)));
        assert_eq!(connection.read("GET").unwrap().status, 404);
    }
}

#[test]
fn an_answer_does_not_wait_for_the_rest_of_the_next_request() {
    let node = node();
    let next = redeem("s", MEMBER, "second", ONE).bytes();
    for cut in [1, 40, next.len() - 1] {
        let mut connection = Connection::open(node.public);
        let mut bytes = redeem("s", MEMBER, &format!("first-{cut}"), ONE).bytes();
        bytes.extend(&next[..cut]);
        connection.write(&bytes);
        assert_eq!(connection.read("POST").expect("an answer").status, 201, "cut at {cut}");
    }
}

/// [A client that only ever asked had its answers kept for it, without bound.]
#[test]
fn whoever_does_not_read_answers_is_not_heard_any_further() {
    const SENT_MAX: usize = 64 << 20;
    let node = node();
    let many = Ask::get("/v1/sales/s").bytes().repeat(1_000);
    let mut stream = TcpStream::connect(node.public).unwrap();
    stream.set_write_timeout(Some(Duration::from_secs(2))).unwrap();
    let mut sent = 0;
    while let Ok(count) = stream.write(&many) {
        sent += count;
        assert!(sent < SENT_MAX, "the node still reads after {sent} bytes of requests");
    }
}

#[test]
fn idle_connections_cost_the_others_nothing_and_are_closed_in_the_end() {
    let node = TestNode::start_with(|config| config.http.idle_timeout_ms = 2_000);
    let mut idle: Vec<Connection> = (0..500).map(|_| Connection::open(node.public)).collect();
    for _ in 0..50 {
        assert_eq!(Ask::get("/livez").send(node.public).status, 200);
    }
    assert!(idle.iter_mut().all(Connection::is_closed));
}

#[test]
fn more_connections_than_are_allowed_are_closed_at_once() {
    let node = TestNode::start_with(|config| config.http.connections_max = 10);
    let mut held: Vec<Connection> = (0..10).map(|_| Connection::open(node.public)).collect();
    for connection in &mut held {
        connection.write(&Ask::get("/livez").bytes());
        assert_eq!(connection.read("GET").unwrap().status, 200);
    }
    let mut one_more = Connection::open(node.public);
    one_more.write(&Ask::get("/livez").bytes());
    assert!(one_more.read("GET").is_none());
    // Operators still get in, and whoever is in is served.
    assert_eq!(Ask::get("/livez").send(node.admin).status, 200);
    held[0].write(&Ask::get("/livez").bytes());
    assert_eq!(held[0].read("GET").unwrap().status, 200);
}

#[test]
fn a_port_in_use_is_one_clear_error() {
    let node = TestNode::start();
    for workers in [1, 2] {
        let mut config = onrush::config::Config::default().http;
        config.listen = node.public;
        config.admin = "127.0.0.1:0".parse().unwrap();
        config.workers = workers;
        let error = onrush::http::door::BoundDoor::bind(config).err().unwrap().to_string();
        assert!(error.contains("http.listen") && error.contains("in use"), "{error}");
    }
}
