//! `GET /v1/sales/{id}/events`: what a watcher is told, how often, and where it goes on.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use crate::e2e::now;
use crate::http_client::{
    Ask, Connection, FUTURE, TestNode, definition, import, open_sale, redeem,
};
use crate::http_spec::Spec;

fn watch(sale: &str) -> Ask {
    Ask::get(&format!("/v1/sales/{sale}/events"))
}

fn step(node: &TestNode, sale: &str, step: &str) {
    let answer = Ask::post(&format!("/v1/sales/{sale}/{step}")).send(node.admin);
    assert_eq!(answer.status, 200, "{}", answer.text());
}

#[test]
fn a_stream_tells_what_happens_to_a_sale() {
    let node = TestNode::start();
    let spec = Spec::load();
    import(&node, [(1, 1_000)]);
    open_sale(&node, "s", &[("cup", 10, 2, 2)]);
    let mut stream = Connection::open(node.public);
    stream.write(&watch("s").bytes());
    let mut events = Events::begin(&mut stream);
    let (snapshot, latest, data) = events.next();
    assert_eq!(snapshot, "snapshot");
    spec.validate_named("Sale", &data);

    redeem("s", 1, "k1", r#"{"sku":"cup","quantity":2}"#).send(node.public);
    // Which of the two comes first hangs on the moment at which the stream looks.
    let mut told = [events.next(), events.next()];
    told.sort_by(|a, b| a.0.cmp(&b.0));
    let [(sold_out, id, data), (stock, _, units)] = told;
    assert_eq!((sold_out.as_str(), id), ("sold-out", None));
    spec.validate_named("EventSoldOut", &data);
    assert_eq!((stock.as_str(), &units["items"][0]["free"]), ("stock", &0.into()));
    spec.validate_named("EventStock", &units);

    let mut last = latest.unwrap();
    for (done, event) in [("pause", "paused"), ("resume", "resumed"), ("close", "closed")] {
        step(&node, "s", done);
        let (name, id, data) = events.next();
        assert_eq!(name, event);
        spec.validate_named("EventTime", &data);
        assert!(id.unwrap() > last, "ids rise");
        last = id.unwrap();
    }

    // The latest event's id goes on without a snapshot; any other one begins with it.
    for (id, first) in
        [(last.to_string(), "stock"), ("1".into(), "snapshot"), ("x".into(), "snapshot")]
    {
        let mut again = Connection::open(node.public);
        again.write(&watch("s").header("Last-Event-ID", &id).bytes());
        assert_eq!(Events::begin(&mut again).next().0, first);
    }
    node.stop();
    assert!(events.has_ended(), "a drain ends the stream");
}

#[test]
fn an_opening_is_told_whether_it_was_by_hand_or_by_time() {
    let (node, spec) = (TestNode::start(), Spec::load());
    let sale = definition("by-hand", FUTURE, &[("cup", 10, 2, 2)]);
    assert_eq!(Ask::post("/v1/sales").json(&sale).send(node.admin).status, 201);
    let mut stream = Connection::open(node.public);
    stream.write(&watch("by-hand").bytes());
    let mut events = Events::begin(&mut stream);
    let (first, begun, sale) = events.next();
    assert_eq!((first.as_str(), &sale["state"]), ("snapshot", &"scheduled".into()));
    step(&node, "by-hand", "open");
    let (opened, id, data) = events.next();
    assert_eq!(opened, "opened");
    spec.validate_named("EventTime", &data);
    assert!(id > begun, "ids rise");

    // A machine that is too busy to watch in time gets more of it.
    let is_told = [1, 4, 16].into_iter().any(|seconds| opens_and_closes(&node, seconds));
    assert!(is_told, "it could not be watched in time");
}

/// Whether a sale that opens in so many seconds could be watched before; then it tells that it
/// opens, and that it closes.
fn opens_and_closes(node: &TestNode, seconds: i64) -> bool {
    let at = |times| Timestamp::now() + SignedDuration::from_secs(times * seconds);
    let id = format!("in-{seconds}-s");
    let sale = json!({
        "id": id, "name": "S", "opens_at": at(1).to_string(), "closes_at": at(2).to_string(),
        "hold_ttl_ms": 1_000,
        "items": [{ "sku": "cup", "name": "Cup", "points": 1, "stock": 1, "limit_per_member": 1 }],
    });
    assert_eq!(Ask::post("/v1/sales").json(&sale.to_string()).send(node.admin).status, 201);
    let mut stream = Connection::open(node.public);
    stream.write(&watch(&id).bytes());
    let mut events = Events::begin(&mut stream);
    let (first, _, data) = events.next();
    assert_eq!(first, "snapshot");
    if data["state"] != "scheduled" {
        return false;
    }
    assert_eq!([events.next().0, events.next().0], ["opened", "closed"]);
    true
}

#[test]
fn a_stream_with_nothing_to_say_shows_that_it_is_alive() {
    let node = TestNode::start_with(|config| config.http.heartbeat_ms = 50);
    open_sale(&node, "s", &[("cup", 10, 2, 2)]);
    let mut stream = Connection::open(node.public);
    stream.write(&watch("s").bytes());
    let mut events = Events::begin(&mut stream);
    assert_eq!(events.next().0, "snapshot");
    for _ in 0..2 {
        assert_eq!(events.next_block(), ": alive");
    }
    step(&node, "s", "pause");
    assert_eq!(events.next().0, "paused");
    assert_eq!(events.next_block(), ": alive");
}

/// The node's time at which an event's data was written. Units: milliseconds.
fn told_at_ms(data: &Value) -> i64 {
    data["now"].as_str().unwrap().parse::<Timestamp>().unwrap().as_millisecond()
}

#[test]
fn stock_is_told_at_most_five_times_a_second_however_fast_it_sells() {
    const STOCK: u64 = 1_000_000;
    const TOLD: usize = 11;
    let node = TestNode::start();
    import(&node, [(1, 10_000_000)]);
    open_sale(&node, "s", &[("cup", 1, 1_000_000, 4_000_000)]);
    let mut stream = Connection::open(node.public);
    stream.write(&watch("s").bytes());
    let mut events = Events::begin(&mut stream);
    assert_eq!(events.next().0, "snapshot");
    let is_over = AtomicBool::new(false);
    let told = thread::scope(|scope| {
        scope.spawn(|| {
            for call in 0.. {
                // Relaxed: the flag guards nothing.
                if is_over.load(Ordering::Relaxed) {
                    break;
                }
                let item = |n: u64| {
                    json!({ "member": 1, "key": format!("{call}-{n}"), "sale": "s", "sku": "cup",
                            "quantity": 1 })
                };
                let items: Vec<Value> = (0..100).map(item).collect();
                let batch = json!({ "items": items }).to_string();
                let ask = Ask::post("/v1/redemptions:batch").json(&batch);
                assert_eq!(ask.send(node.gateway).status, 200);
            }
        });
        let told: Vec<_> = (0..TOLD).map(|_| events.next()).collect();
        is_over.store(true, Ordering::Relaxed);
        told
    });
    let free = |data: &Value| data["items"][0]["free"].as_u64().unwrap();
    for ((name, id, data), (_, _, next)) in told.iter().zip(&told[1..]) {
        assert_eq!((name.as_str(), id), ("stock", &None));
        // A millisecond for the two times being cut to whole ones.
        let apart = told_at_ms(next) - told_at_ms(data);
        assert!(apart >= 199, "{apart} ms after the last one");
        assert!(free(next) < free(data), "what has not changed is not told again");
    }
    let sold = STOCK - free(&told[TOLD - 1].2);
    assert!(sold > TOLD as u64, "{sold} units sold: one event tells of many");
}

/// A watcher that reads far less than it is told; just enough for the node to see that it lives.
struct Slow<'a> {
    events: Events<'a>,
    seen: Vec<(String, Option<u64>, Value)>,
    read_at: Instant,
}

impl Slow<'_> {
    fn read_one(&mut self) {
        self.seen.push(self.events.next());
    }
    fn glance(&mut self) {
        if self.read_at.elapsed() > Duration::from_secs(10) {
            (0..3).for_each(|_| self.read_one());
            self.read_at = now();
        }
    }
}

/// What the kernel keeps of what is sent and not taken, at most. Units: bytes.
fn kernel_keeps() -> usize {
    let bounds = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_wmem").unwrap();
    bounds.split_whitespace().last().unwrap().parse().unwrap()
}

/// One who reads little beside one who reads all, on one worker. What the kernel keeps for the
/// first one has to be full before anything is kept from it, so the events are large.
#[test]
fn a_watcher_that_falls_behind_misses_events_gets_the_sale_as_it_stands_and_holds_up_nobody() {
    const CHANGES: usize = 100;
    /// Events on their way between the sale and a connection, generously.
    const ON_THE_WAY: usize = 20;
    let node = TestNode::start_with(|config| config.http.workers = 1);
    import(&node, [(1, 1_000_000)]);
    let skus: Vec<String> = (0..1_000).map(|n| format!("{n:064}")).collect();
    let items: Vec<_> = skus.iter().map(|sku| (sku.as_str(), 1, 1_000, 1_000)).collect();
    open_sale(&node, "s", &items);
    let mut streams = [Connection::open_narrow(node.public), Connection::open(node.public)];
    for stream in &mut streams {
        stream.write(&watch("s").bytes());
    }
    let [slow, reading] = &mut streams;
    let mut slow = Slow { events: Events::begin(slow), seen: Vec::new(), read_at: now() };
    let mut events = Events::begin(reading);
    assert_eq!(events.next().0, "snapshot");

    let body = format!(r#"{{"sku":"{}","quantity":1}}"#, skus[0]);
    let (mut told, mut unread) = (0, 0);
    while unread < kernel_keeps() {
        assert_eq!(redeem("s", 1, &format!("k{told}"), &body).send(node.public).status, 201);
        let (name, _, data) = events.next();
        assert_eq!(name, "stock", "whoever reads is told at once");
        told += 1;
        slow.glance();
        unread = (told - slow.seen.len()).saturating_sub(ON_THE_WAY) * data.to_string().len();
    }
    let mut last = 0;
    for _ in 0..CHANGES / 2 {
        for (done, event) in [("pause", "paused"), ("resume", "resumed")] {
            step(&node, "s", done);
            let (name, id, _) = events.next();
            assert_eq!(name, event, "whoever reads misses nothing");
            last = id.unwrap();
            slow.glance();
        }
    }

    while slow.seen.last().is_none_or(|(_, id, _)| *id != Some(last)) {
        slow.read_one();
    }
    let count = |names: &[&str]| slow.seen.iter().filter(|s| names.contains(&&*s.0)).count();
    let (changes, stocks) = (count(&["paused", "resumed"]), count(&["stock"]));
    assert!(
        changes < CHANGES / 2,
        "kept for it: {changes} of {CHANGES} changes, {stocks} of {told} figures"
    );
    assert_eq!(slow.seen[0].0, "snapshot");
    assert!(count(&["snapshot"]) >= 2, "the sale as it stands, for what it has missed");
    let again = slow.seen.iter().rfind(|(name, ..)| name == "snapshot").unwrap();
    Spec::load().validate_named("Sale", &again.2);
    assert!(again.1.is_some_and(|id| id + CHANGES as u64 > last), "{:?} of {last}", again.1);
    step(&node, "s", "close");
    assert_eq!([slow.events.next().0, events.next().0], ["closed", "closed"]);
}

#[test]
fn whoever_comes_back_goes_on_where_nothing_was_missed_and_begins_anew_else() {
    let node = TestNode::start();
    open_sale(&node, "s", &[("cup", 10, 2, 2)]);
    let first_of = |node: &TestNode, last: Option<u64>| {
        let mut stream = Connection::open(node.public);
        let ask = watch("s");
        let ask = last.into_iter().fold(ask, |a, id| a.header("Last-Event-ID", &id.to_string()));
        stream.write(&ask.bytes());
        let (name, id, data) = Events::begin(&mut stream).next();
        (name, id, data["state"].as_str().unwrap_or_default().to_owned())
    };
    let (name, seen, state) = first_of(&node, None);
    assert_eq!((name.as_str(), state.as_str()), ("snapshot", "open"));
    assert_eq!(first_of(&node, seen).0, "stock", "nothing was missed");

    step(&node, "s", "pause");
    let (name, now, state) = first_of(&node, seen);
    assert_eq!((name.as_str(), state.as_str()), ("snapshot", "paused"));
    assert!(now > seen, "a snapshot says up to where it goes");
    assert_eq!(first_of(&node, now).0, "stock");

    // Another run of the node has told nothing yet: whoever comes from the last one begins anew.
    let data = node.stop_and_keep();
    let node = TestNode::start_with(|config| config.node.data = data.path().to_path_buf());
    let (name, again, state) = first_of(&node, now);
    assert_eq!((name.as_str(), state.as_str()), ("snapshot", "paused"));
    assert!(again > now, "ids rise across runs");
}

/// Server-sent events, one by one.
struct Events<'a> {
    stream: &'a mut Connection,
    text: String,
}

impl<'a> Events<'a> {
    fn begin(stream: &'a mut Connection) -> Self {
        let head = stream.read_head();
        assert_eq!(head.status, 200);
        assert_eq!(head.header("content-type"), Some("text/event-stream"));
        Self { stream, text: String::new() }
    }

    /// The next event's name, id and data; signs of life are passed over.
    fn next(&mut self) -> (String, Option<u64>, Value) {
        loop {
            let event = self.next_block();
            if event.starts_with(':') {
                continue;
            }
            let field = |name: &str| {
                event.lines().find_map(|line| line.strip_prefix(name).map(str::to_owned))
            };
            let id = field("id: ").map(|id| id.parse().unwrap());
            let data = serde_json::from_str(&field("data: ").unwrap()).unwrap();
            return (field("event: ").unwrap(), id, data);
        }
    }

    /// What stands before the next empty line.
    fn next_block(&mut self) -> String {
        loop {
            if let Some((block, rest)) = self.text.split_once("\n\n") {
                let block = block.to_owned();
                self.text = rest.to_owned();
                return block;
            }
            let chunk = self.stream.read_chunk().expect("the stream goes on");
            self.text += std::str::from_utf8(&chunk).unwrap();
        }
    }

    fn has_ended(mut self) -> bool {
        while let Some(chunk) = self.stream.read_chunk() {
            self.text += std::str::from_utf8(&chunk).unwrap();
        }
        true
    }
}
