//! What a node answers when it cannot do what is asked: keys that were dropped, too many requests
//! at once, a journal at its bound; and that all of it passes.

use std::time::Duration;

use onrush::config::Config;
use onrush::persist::sqlite::path_of;
use onrush::ship::partition::DatabaseShard;

use crate::e2e::{measured, now, wait_until};
use crate::http_client::{Answer, Ask, Connection, TestNode, import, open_sale, redeem};
use crate::http_spec::{Listener, Spec};
use Listener::{Admin, Gateway, Public};

const CUP: &str = r#"{"sku":"cup","quantity":1}"#;
/// How long a state may take to come about on a busy machine.
const PATIENCE: Duration = Duration::from_mins(1);

#[track_caller]
fn expect(answer: &Answer, status: u16, code: &str) {
    assert_eq!((answer.status, answer.code().as_str()), (status, code), "{}", answer.text());
}

#[test]
fn a_key_that_was_dropped_after_the_sale_is_gone_and_says_where_to_look() {
    let node = TestNode::start_with(|config| config.limits.key_retention_ms = 1);
    let spec = Spec::load();
    let send = |ask: &Ask| spec.send(&node, Public, ask);
    import(&node, [(1, 1_000), (2, 1_000)]);
    open_sale(&node, "s", &[("cup", 10, 100, 5)]);
    open_sale(&node, "later", &[("cup", 10, 100, 5)]);
    let ask = redeem("s", 1, "k", CUP);
    // By turns in the sale that ends and in the one that goes on: what is remembered lies between
    // what is not.
    let mut ids = Vec::new();
    for ask in [&redeem("later", 1, "l", CUP), &ask, &redeem("later", 1, "m", CUP)] {
        let answer = send(ask);
        expect(&answer, 201, "");
        ids.insert(0, answer.json()["id"].as_str().unwrap().to_owned());
    }
    expect(&send(&redeem("s", 1, "n", CUP)), 201, "");
    let read = |path: &str| send(&Ask::get(path).member(1)).json();
    let before = read("/v1/members/me/redemptions");
    ids.insert(0, before["redemptions"][0]["id"].as_str().unwrap().to_owned());
    expect(&spec.send(&node, Admin, &Ask::post("/v1/sales/s/close")), 200, "");
    // Until then a remembered key gets its answer, and an unknown one hears of the sale's end.
    wait_until("the keys are dropped", PATIENCE, || send(&ask).status != 201);
    let gone = send(&ask);
    expect(&gone, 410, "key-expired");
    assert!(gone.json()["detail"].as_str().unwrap().contains("/v1/members/me/redemptions"));
    // Nobody can tell any more whether a key was used, so no key begins anything.
    expect(&send(&redeem("s", 2, "new", CUP)), 410, "key-expired");
    let item = r#"{"member":1,"key":"k","sale":"s","sku":"cup","quantity":1}"#;
    let batch = Ask::post("/v1/redemptions:batch").json(&format!(r#"{{"items":[{item}]}}"#));
    let results = spec.send(&node, Gateway, &batch).json();
    assert_eq!(results["results"][0]["code"], "key-expired");
    let points = send(&Ask::get("/v1/members/me/points").member(1)).json();
    assert_eq!((&points["free"], &points["held"]), (&960.into(), &0.into()));
    // There, nothing is missing: what memory has forgotten the databases know.
    assert_eq!(before["redemptions"].as_array().unwrap().len(), 4);
    assert_eq!(read("/v1/members/me/redemptions"), before);
    let mut paged = Vec::new();
    let mut path = String::from("/v1/members/me/redemptions?limit=1");
    loop {
        let page = read(&path);
        paged.extend(page["redemptions"].as_array().unwrap().iter().map(|row| row["id"].clone()));
        let Some(next) = page["next"].as_str() else { break };
        path = format!("/v1/members/me/redemptions?limit=1&before={next}");
    }
    assert_eq!(paged, ids);
    for (at, id) in ids.iter().enumerate() {
        let path = format!("/v1/redemptions/{id}");
        assert_eq!(read(&path), before["redemptions"][at]);
        let shown = spec.send(&node, Admin, &Ask::get(&path)).json();
        assert_eq!((&shown["id"], &shown["member"]), (&id.as_str().into(), &"1".into()));
        // Still nobody else's.
        expect(&send(&Ask::get(&path).member(2)), 404, "redemption-not-found");
    }
    for (key, at) in [("n", 0), ("m", 1), ("k", 2), ("l", 3)] {
        let found = read(&format!("/v1/members/me/redemptions?key={key}"));
        assert_eq!(found, serde_json::json!({ "redemptions": [before["redemptions"][at]] }));
    }
    let never = read("/v1/members/me/redemptions?key=never");
    assert_eq!(never, serde_json::json!({ "redemptions": [] }));
}

/// The fewest requests that may wait at once, by the settings.
const IN_FLIGHT_MAX: usize = 16;

#[test]
fn more_requests_than_may_wait_are_refused_at_once_and_taken_a_moment_later() {
    let node = refuses_and_recovers(|config| config.http.in_flight_max = IN_FLIGHT_MAX);
    assert_eq!(inbox_refused(&node), 0, "the door itself refused them");
}

#[test]
fn a_full_inbox_refuses_at_once_and_takes_the_same_keys_a_moment_later() {
    let node = refuses_and_recovers(|config| config.shards.inbox = IN_FLIGHT_MAX);
    assert!(inbox_refused(&node) > 0);
}

fn inbox_refused(node: &TestNode) -> u64 {
    let text = String::from_utf8(Ask::get("/metrics").send(node.admin).body).unwrap();
    let values = text.lines().filter_map(|line| line.strip_prefix("onrush_inbox_refused_total"));
    values.map(|rest| rest.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
}

/// Asks for more at once than fits, until some of it is refused; then for that again.
fn refuses_and_recovers(change: impl FnOnce(&mut Config)) -> TestNode {
    let node = TestNode::start_with(|config| {
        config.http.workers = 1;
        config.shards.count = 1;
        change(config);
    });
    let spec = Spec::load();
    import(&node, [(1, 1_000_000)]);
    open_sale(&node, "s", &[("cup", 1, 100_000, 100_000)]);
    let mut connections: Vec<_> =
        (0..8 * IN_FLIGHT_MAX).map(|_| Connection::open(node.public)).collect();
    let (mut done, mut refused, mut number) = (0, Vec::new(), 0);
    wait_until("some are refused", PATIENCE, || {
        let asks: Vec<Ask> = connections
            .iter_mut()
            .map(|connection| {
                number += 1;
                let ask = redeem("s", 1, &format!("k{number}"), CUP);
                connection.write(&ask.bytes());
                ask
            })
            .collect();
        for (connection, ask) in connections.iter_mut().zip(asks) {
            let answer = connection.read("POST").unwrap();
            spec.check(Public, &ask, &answer);
            if answer.status == 201 {
                done += 1;
            } else {
                expect(&answer, 503, "overloaded");
                refused.push(ask);
            }
        }
        !refused.is_empty()
    });
    // What was refused had no effect: its key is as good as new, and the sums are right.
    for ask in &refused {
        let answer = spec.send(&node, Public, ask);
        expect(&answer, 201, "");
        assert_eq!(answer.header("idempotent-replayed"), None);
    }
    let sale = spec.send(&node, Admin, &Ask::get("/v1/sales/s")).json();
    assert_eq!(sale["items"][0]["confirmed"], done + refused.len());
    // A batch says it of each item, and when to come back.
    let item = |n| format!(r#"{{"member":1,"key":"b{n}","sale":"s","sku":"cup","quantity":1}}"#);
    let items: Vec<String> = (0..512).map(item).collect();
    let batch = format!(r#"{{"items":[{}]}}"#, items.join(","));
    let results = spec.send(&node, Gateway, &Ask::post("/v1/redemptions:batch").json(&batch));
    let results = results.json()["results"].as_array().unwrap().clone();
    let overloaded: Vec<_> = results.iter().filter(|r| r["code"] == "overloaded").collect();
    assert!(overloaded.iter().all(|r| r["retry_after"].is_u64()));
    let taken = results.iter().filter(|r| r["status"] == 201).count();
    assert_eq!(taken + overloaded.len(), 512);
    node
}

#[test]
fn a_full_journal_refuses_what_is_new_answers_known_keys_and_recovers() {
    let node = TestNode::start_with(|config| {
        config.journal.max_bytes = 4 * config.journal.segment_bytes;
        config.journal.sales_pause_percent = 40;
        config.journal.keep_ms = 0;
        config.snapshot.every_ms = 200;
        config.persist.databases = 1;
    });
    let spec = Spec::load();
    let public = |ask: &Ask| spec.send(&node, Public, ask);
    let admin = |ask: &Ask| spec.send(&node, Admin, ask);
    import(&node, [(1, 1_000)]);
    open_sale(&node, "s", &[("cup", 10, 100, 50)]);
    let known = redeem("s", 1, "known", CUP);
    let first = public(&known);
    expect(&first, 201, "");
    let hold = redeem("s", 1, "hold", r#"{"sku":"cup","quantity":1,"hold":true}"#);
    let held = public(&hold).json();
    let confirm = Ask::post(&format!("/v1/redemptions/{}/confirm", held["id"].as_str().unwrap()));

    // The database is held by somebody else: persist waits, and no segment may go.
    let database = path_of(&node.data().join("db"), DatabaseShard::new(0));
    let holder = rusqlite::Connection::open(database).unwrap();
    holder.busy_timeout(PATIENCE).unwrap();
    holder.execute_batch("BEGIN IMMEDIATE").unwrap();

    // Accounts fill it, until new redemptions pause.
    let mut member = 1_000_u64;
    let mut fill = || {
        let rows = (0..20_000).map(|n| format!("{},1\n", member + n));
        let csv: String = std::iter::once("member,points\n".into()).chain(rows).collect();
        member += 20_000;
        let answer = admin(&Ask::post("/v1/members:import").body("text/csv", csv.as_bytes()));
        if answer.status != 200 {
            expect(&answer, 503, "journal-full");
        }
        answer.status
    };
    let mut number = 0;
    let mut new = || {
        number += 1;
        public(&redeem("s", 1, &format!("new-{number}"), CUP))
    };
    let mut refused = None;
    wait_until("new redemptions pause", PATIENCE, || {
        fill();
        refused = Some(new()).filter(|answer| answer.status != 201);
        refused.is_some()
    });
    expect(&refused.unwrap(), 503, "journal-full");
    expect(&public(&confirm.member(1)), 200, "");
    let replay = |ask: &Ask| {
        let answer = public(ask);
        expect(&answer, 201, "");
        assert_eq!(answer.header("idempotent-replayed"), Some("true"));
        answer
    };
    assert_eq!(replay(&known).body, first.body);

    // On to the second watermark, where nothing is written any more.
    wait_until("nothing is written", PATIENCE, || fill() == 503);
    let credit = Ask::post("/v1/members/1/points").key("c").json(r#"{"credit":1}"#);
    wait_until("nothing else either", PATIENCE, || admin(&credit).status == 503);
    expect(&admin(&credit), 503, "journal-full");
    expect(&new(), 503, "journal-full");
    for call in ["/v1/sales/s/pause", "/v1/sales/s/resume"] {
        expect(&admin(&Ask::post(call)), 503, "journal-full");
    }
    let add = Ask::post("/v1/sales/s/items/cup/stock").key("a").json(r#"{"add":1}"#);
    expect(&admin(&add), 503, "journal-full");
    assert_eq!(replay(&known).body, first.body);
    expect(&public(&redeem("s", 1, "known", r#"{"sku":"cup","quantity":2}"#)), 422, "key-reused");
    let balance = public(&Ask::get("/v1/members/me/points").member(1)).json()["free"].clone();
    assert!(admin(&Ask::get("/metrics")).text().contains("onrush_ready 1"));

    // The database comes back: persist catches up, snapshots follow, segments go.
    holder.execute_batch("ROLLBACK").unwrap();
    let begun = now();
    wait_until("redemptions are taken again", PATIENCE, || new().status == 201);
    measured("the journal full, until redemptions are taken again", begun);
    wait_until("and so is everything", PATIENCE, || admin(&credit).status == 200);
    let free = public(&Ask::get("/v1/members/me/points").member(1)).json()["free"].clone();
    assert_eq!(free.as_u64().unwrap(), balance.as_u64().unwrap() - 10 + 1);
    assert_eq!(replay(&known).body, first.body);
    let report = admin(&Ask::get("/v1/audit")).json();
    assert_eq!(report["verdict"], "pass", "{report:#}");
}

#[test]
fn audits_that_are_asked_for_at_once_are_all_answered() {
    let node = TestNode::start();
    let spec = Spec::load();
    import(&node, (1..=20_000).map(|member| (member, 100)));
    let answers: Vec<Answer> = std::thread::scope(|scope| {
        let ask = || spec.send(&node, Admin, &Ask::get("/v1/audit"));
        let asking: Vec<_> = (0..4).map(|_| scope.spawn(ask)).collect();
        asking.into_iter().map(|asked| asked.join().unwrap()).collect()
    });
    for answer in &answers {
        expect(answer, 200, "");
        assert_eq!(answer.json()["verdict"], "pass");
    }
    // Whoever asks later gets a report of its own.
    import(&node, [(30_000, 1)]);
    let later = spec.send(&node, Admin, &Ask::get("/v1/audit")).json();
    let last = |report: &serde_json::Value| report["subject"]["last_seq"].as_u64().unwrap();
    assert!(answers.iter().all(|answer| last(&answer.json()) < last(&later)));
}
