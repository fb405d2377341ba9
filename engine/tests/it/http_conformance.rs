//! Every call of `openapi.yaml`, driven against a real node, and every answer held against it.

use std::collections::BTreeSet;

use crate::http_client::{
    Answer, Ask, FUTURE, PAST, TestNode, definition, import, open_sale, redeem,
};
use crate::http_spec::{Listener, Spec};
use Listener::{Admin, Gateway, Public};

/// What this run cannot bring about. Each has its place elsewhere: 503s and 410s in
/// `http_unavailable` and `http_starting`, 500s and 408s in tests of their own, 413s and 415s one
/// for each way in which a body is read, 307s and most 403s in `e2e_nodes`, where there are nodes.
fn is_elsewhere(operation_and_status: &str) -> bool {
    let (operation, status) = operation_and_status.split_once(' ').unwrap();
    matches!(status, "307" | "408" | "410" | "500" | "503")
        || status == "403" && !matches!(operation, "redeem" | "redeemBatch")
        || matches!(status, "413" | "415") && operation != "redeem"
}

struct Run {
    node: TestNode,
    spec: Spec,
}

impl Run {
    fn send(&self, listener: Listener, ask: &Ask) -> Answer {
        self.spec.send(&self.node, listener, ask)
    }

    #[track_caller]
    fn expect(&self, listener: Listener, ask: &Ask, status: u16, code: &str) -> Answer {
        let answer = self.send(listener, ask);
        let got = (answer.status, answer.code());
        assert_eq!(got, (status, code.to_owned()), "{} {}", ask.method, ask.path);
        answer
    }

    #[track_caller]
    fn ok(&self, listener: Listener, ask: &Ask) -> Answer {
        self.expect(listener, ask, 200, "")
    }
}

#[test]
fn every_call_answers_as_it_is_described() {
    let run = Run { node: TestNode::start(), spec: Spec::load() };
    import(&run.node, [(1, 1_000), (2, 1_000), (3, 50), (4, 1 << 53)]);
    probes(&run);
    sales(&run);
    redemptions(&run);
    holds(&run);
    batches(&run);
    points(&run);
    stock(&run);
    imports(&run);
    history(&run);
    refusals_by_sale(&run);
    let report = run.ok(Admin, &Ask::get("/v1/audit")).json();
    assert_eq!(report["verdict"], "pass", "{report:#}");
    run.expect(Admin, &Ask::get("/v1/audit?all=perhaps"), 400, "malformed");
    let alone = run.ok(Admin, &Ask::get("/v1/cluster")).json();
    assert_eq!(alone["nodes"][0]["slot_count"], 4096, "{alone:#}");
    run.expect(Admin, &Ask::get("/v1/cluster?nodes=b"), 400, "malformed");
    run.expect(Admin, &Ask::get("/v1/sales/h?nodes=b"), 400, "malformed");
    let unseen: BTreeSet<String> =
        run.spec.unseen().into_iter().filter(|seen| !is_elsewhere(seen)).collect();
    assert!(unseen.is_empty(), "described, but never seen: {unseen:#?}");
}

fn probes(run: &Run) {
    for listener in [Public, Gateway, Admin] {
        for path in ["/livez", "/readyz", "/version", "/metrics", "/openapi.json"] {
            run.ok(listener, &Ask::get(path));
            run.ok(listener, &Ask::new("HEAD", path));
        }
        run.expect(listener, &Ask::get("/nowhere"), 404, "route-not-found");
        let answer = run.expect(listener, &Ask::post("/livez"), 405, "method-not-allowed");
        assert_eq!(answer.header("allow"), Some("GET, HEAD"));
    }
    for (listener, ask) in [
        (Admin, Ask::get("/v1/members/me/points")),
        (Admin, Ask::post("/v1/sales/s/redemptions")),
        (Public, Ask::post("/v1/members:import")),
        (Public, Ask::get("/v1/members/1")),
        (Public, Ask::get("/v1/audit")),
    ] {
        let answer = ask.send(if listener == Admin { run.node.admin } else { run.node.public });
        assert!(matches!(answer.status, 404 | 405), "{} {}", ask.path, answer.status);
    }
}

/// Pages from the database shards; a member's own writes are in them at once.
fn history(run: &Run) {
    let statement = |query: &str| {
        Ask::get(&format!("/v1/members/me/statement{query}")).header("X-Member-Id", "2")
    };
    let one = r#"{"sku":"cup","quantity":1}"#;
    open_sale(&run.node, "h", &[("cup", 10, 100, 50)]);
    for key in ["hist-1", "hist-2", "hist-3"] {
        let id = run.expect(Public, &redeem("h", 2, key, one), 201, "").json()["id"].clone();
        let newest = run.ok(Public, &statement("?limit=1")).json();
        assert_eq!(newest["entries"][0]["redemption"], id, "{newest}");
        assert_eq!(newest["entries"][0]["amount"], -10);
    }
    let all = run.ok(Public, &statement("?limit=100")).json();
    let all = all["entries"].as_array().unwrap();
    assert_eq!(all.last().unwrap()["kind"], "opened");
    let (mut paged, mut query) = (Vec::new(), String::from("?limit=2"));
    loop {
        let page = run.ok(Public, &statement(&query)).json();
        paged.extend(page["entries"].as_array().unwrap().clone());
        let Some(next) = page["next"].as_str() else { break };
        query = format!("?limit=2&before={next}");
    }
    assert_eq!(&paged, all);
    run.expect(Public, &statement("?limit=0"), 400, "malformed");
    run.expect(Public, &statement("?before=x"), 400, "malformed");
    run.expect(Public, &Ask::get("/v1/members/me/statement"), 401, "identity-missing");
    let nobody = Ask::get("/v1/members/me/statement").header("X-Member-Id", "999999");
    run.expect(Public, &nobody, 404, "member-not-found");

    let of_item = |query: &str| Ask::get(&format!("/v1/sales/h/items/cup/redemptions{query}"));
    let page = run.ok(Admin, &of_item("?limit=2")).json();
    let rows = page["redemptions"].as_array().unwrap();
    assert_eq!(rows.len(), 2);
    assert!(rows.iter().all(|row| row["member"] == "2" && row["state"] == "confirmed"));
    let before = rows[1]["id"].as_str().unwrap();
    assert_eq!(page["next"], before);
    let rest = run.ok(Admin, &of_item(&format!("?before={before}"))).json();
    assert_eq!(rest["redemptions"].as_array().unwrap().len(), 1);
    assert!(rest["next"].is_null(), "{rest}");
    run.expect(Admin, &of_item("?before=x"), 400, "malformed");
    run.expect(Admin, &Ask::get("/v1/sales/h/items/no/redemptions"), 404, "item-not-found");
    run.expect(Admin, &Ask::get("/v1/sales/no/items/cup/redemptions"), 404, "sale-not-found");
}

fn sales(run: &Run) {
    let define = |body: &str| Ask::post("/v1/sales").header("X-Operator", "ops").json(body);
    let soon = definition("soon", FUTURE, &[("cup", 10, 5, 2)]);
    let answer = run.expect(Admin, &define(&soon), 201, "");
    assert_eq!(answer.header("location"), Some("/v1/sales/soon"));
    assert_eq!(answer.json()["state"], "scheduled");
    assert_eq!(answer.json()["items"][0]["total"], 5);
    run.ok(Admin, &define(&soon));
    let other = definition("soon", FUTURE, &[("cup", 11, 5, 2)]);
    run.expect(Admin, &define(&other), 409, "sale-exists");
    for bad in ["{}", "", "{\"id\":1}", &soon.replacen("\"id\"", "\"more\":1,\"id\"", 1)] {
        run.expect(Admin, &define(bad), 400, "malformed");
    }
    let unpriced = definition("bad", FUTURE, &[]);
    run.expect(Admin, &define(&unpriced), 400, "invalid");
    run.expect(Admin, &define(&definition("a b", FUTURE, &[("x", 1, 1, 1)])), 400, "invalid");

    open_sale(&run.node, "s", &[("cup", 10, 100, 2), ("last", 10, 1, 2), ("dear", 900, 5, 5)]);
    let paths = ["/v1/sales", "/v1/sales/s", "/v1/sales/s?nodes=self"];
    for (listener, paths) in [(Public, &paths[..2]), (Gateway, &paths[..2]), (Admin, &paths)] {
        for path in paths {
            let first = run.ok(listener, &Ask::get(path));
            let tag = first.header("etag").unwrap().to_owned();
            assert!(first.json()["now"].is_string());
            for method in ["GET", "HEAD"] {
                let again = Ask::new(method, path).header("If-None-Match", &tag);
                let answer = run.expect(listener, &again, 304, "");
                assert_eq!(answer.header("etag"), Some(tag.as_str()));
                let other = Ask::new(method, path).header("If-None-Match", "\"other\"");
                run.ok(listener, &other);
            }
        }
    }
    let sale = run.ok(Admin, &Ask::get("/v1/sales/s")).json();
    assert_eq!((&sale["items"][0]["free"], &sale["items"][0]["held"]), (&100.into(), &0.into()));
    run.expect(Public, &Ask::get("/v1/sales/none"), 404, "sale-not-found");
    run.expect(Admin, &Ask::get("/v1/sales/none"), 404, "sale-not-found");
    // What is shown has changed, and so has what stands for it.
    let [seen, operators] = [Public, Admin].map(|listener| {
        let answer = run.ok(listener, &Ask::get("/v1/sales/s"));
        Ask::get("/v1/sales/s").header("If-None-Match", answer.header("etag").unwrap())
    });
    run.ok(Admin, &Ask::post("/v1/sales/s/pause"));
    assert_eq!(run.ok(Public, &seen).json()["state"], "paused");
    assert_eq!(run.ok(Admin, &operators).json()["state"], "paused");
    run.ok(Admin, &Ask::post("/v1/sales/s/resume"));

    for (step, state) in [("pause", "paused"), ("resume", "open"), ("open", "open")] {
        let path = format!("/v1/sales/s/{step}");
        for ask in [Ask::post(&path), Ask::post(&path).json("{}")] {
            assert_eq!(run.ok(Admin, &ask).json()["state"], state);
        }
        run.expect(Admin, &Ask::post(&path).json("{\"a\":1}"), 400, "malformed");
        let none = Ask::post(&format!("/v1/sales/none/{step}"));
        run.expect(Admin, &none, 404, "sale-not-found");
    }
    run.expect(Admin, &Ask::post("/v1/sales/none/close"), 404, "sale-not-found");
    run.expect(Admin, &Ask::post("/v1/sales/s/close").json("[]"), 400, "malformed");
    run.expect(Admin, &Ask::post("/v1/sales/soon/pause"), 409, "sale-not-open");
    run.expect(Admin, &Ask::post("/v1/sales/soon/resume"), 409, "sale-not-open");

    // The stream has no end, so it is only begun here.
    run.expect(Public, &Ask::get("/v1/sales/none/events"), 404, "sale-not-found");
    let ask = Ask::get("/v1/sales/s/events");
    run.spec.check(Public, &ask, &Ask::new("HEAD", &ask.path).send(run.node.public));
}

fn redemptions(run: &Run) {
    let one = r#"{"sku":"cup","quantity":1}"#;
    let first = run.expect(Public, &redeem("s", 1, "k1", one), 201, "");
    let body = first.json();
    let id = body["id"].as_str().unwrap();
    assert_eq!(first.header("location"), Some(format!("/v1/redemptions/{id}").as_str()));
    assert_eq!(first.header("idempotent-replayed"), None);
    assert_eq!((&body["state"], &body["balance"]), (&"confirmed".into(), &990.into()));
    let again = run.expect(Public, &redeem("s", 1, "k1", one), 201, "");
    assert_eq!(again.header("idempotent-replayed"), Some("true"));
    assert_eq!(again.body, first.body);
    let other = redeem("s", 1, "k1", r#"{"sku":"cup","quantity":2}"#);
    run.expect(Public, &other, 422, "key-reused");

    let path = format!("/v1/redemptions/{id}");
    assert_eq!(run.ok(Public, &Ask::get(&path).member(1)).json()["id"], id);
    run.expect(Public, &Ask::get(&path).member(2), 404, "redemption-not-found");
    run.expect(Public, &Ask::get(&path), 401, "identity-missing");
    run.expect(Public, &Ask::get(&path).member(1).member(1), 400, "identity-malformed");
    assert_eq!(run.ok(Admin, &Ask::get(&path)).json()["member"], "1");
    let none = "/v1/redemptions/00000000-0000-8000-8000-000000000000";
    for path in [none, "/v1/redemptions/x", &path.replace('-', "")] {
        run.expect(Public, &Ask::get(path).member(1), 404, "redemption-not-found");
        run.expect(Admin, &Ask::get(path), 404, "redemption-not-found");
    }
    run.expect(Public, &Ask::post(&format!("{path}/cancel")).member(1), 409, "wrong-state");

    let mine = "/v1/members/me/redemptions";
    let list = |query: &str| run.ok(Public, &Ask::get(&format!("{mine}{query}")).member(1)).json();
    assert_eq!(list("")["redemptions"][0]["id"], id);
    assert_eq!(list("?key=k1")["redemptions"][0]["id"], id);
    assert_eq!(list("?key=never")["redemptions"].as_array().unwrap().len(), 0);
    assert_eq!(list(&format!("?before={id}"))["redemptions"].as_array().unwrap().len(), 0);
    run.expect(Public, &Ask::get(mine), 401, "identity-missing");
    run.expect(Public, &Ask::get(&format!("{mine}?limit=0")).member(1), 400, "malformed");

    let cases = [
        ("s", 1, r#"{"sku":"none","quantity":1}"#, 404, "item-not-found"),
        ("none", 1, one, 404, "sale-not-found"),
        ("soon", 1, one, 409, "sale-not-open"),
        ("s", 1, r#"{"sku":"cup","quantity":0}"#, 400, "quantity-invalid"),
        ("s", 1, r#"{"sku":"cup","quantity":3}"#, 409, "limit-reached"),
        ("s", 3, r#"{"sku":"dear","quantity":1}"#, 403, "insufficient-points"),
        ("s", 99, one, 403, "insufficient-points"),
    ];
    for (at, (sale, member, body, status, code)) in cases.into_iter().enumerate() {
        let answer =
            run.expect(Public, &redeem(sale, member, &format!("c{at}"), body), status, code);
        match code {
            "limit-reached" => assert_eq!(answer.json()["limit"], 2),
            "sale-not-open" => {
                assert_eq!(answer.json()["opens_at"], "2099-01-01T00:00:00.000Z");
                assert!(answer.header("retry-after").is_some());
            }
            "insufficient-points" => assert!(answer.json()["balance"].is_u64()),
            _ => {}
        }
    }
    let last = r#"{"sku":"last","quantity":1}"#;
    run.expect(Public, &redeem("s", 1, "l1", last), 201, "");
    let answer = run.expect(Public, &redeem("s", 2, "l2", last), 409, "sold-out");
    assert_eq!(answer.json()["final"], true);
    let replay = run.expect(Public, &redeem("s", 1, "l1", last), 201, "");
    assert_eq!(replay.header("idempotent-replayed"), Some("true"));

    let ask = Ask::post("/v1/sales/s/redemptions").member(1).key("k").body("text/plain", b"{}");
    run.expect(Public, &ask, 415, "media-type-unsupported");
    let long = format!("{{\"sku\":\"{}\",\"quantity\":1}}", "x".repeat(64 * 1024));
    run.expect(Public, &redeem("s", 1, "k", &long), 413, "body-too-large");
    let ask = Ask::post("/v1/sales/s/redemptions").key("k").json(one);
    run.expect(Public, &ask, 401, "identity-missing");
    let ask = Ask::post("/v1/sales/s/redemptions").member(1).json(one);
    run.expect(Public, &ask, 400, "key-missing");
}

fn holds(run: &Run) {
    let hold = |key: &str| {
        let ask = redeem("s", 2, key, r#"{"sku":"cup","quantity":1,"hold":true}"#);
        let body = run.expect(Public, &ask, 201, "").json();
        assert_eq!(body["state"], "held");
        assert!(body["expires_at"].is_string());
        format!("/v1/redemptions/{}", body["id"].as_str().unwrap())
    };
    let step = |path: &str, step: &str| Ask::post(&format!("{path}/{step}")).member(2);
    let (kept, given_up) = (hold("h1"), hold("h2"));
    let account = run.ok(Public, &Ask::get("/v1/members/me/points").member(2)).json();
    assert_eq!((&account["free"], &account["held"]), (&980.into(), &20.into()));
    for (path, name, state, other) in
        [(&kept, "confirm", "confirmed", "cancel"), (&given_up, "cancel", "cancelled", "confirm")]
    {
        assert_eq!(run.ok(Public, &step(path, name)).json()["state"], state);
        let again = run.ok(Public, &step(path, name).json("{}"));
        assert_eq!(again.header("idempotent-replayed"), Some("true"));
        let answer = run.expect(Public, &step(path, other), 409, "wrong-state");
        assert_eq!(answer.json()["state"], state);
        let other_member = Ask::post(&format!("{path}/{name}")).member(1);
        run.expect(Public, &other_member, 404, "redemption-not-found");
        run.expect(Public, &Ask::post(&format!("{path}/{name}")), 401, "identity-missing");
        run.expect(Public, &step(path, name).json("{\"a\":1}"), 400, "malformed");
    }

    let reverse =
        |key: &str| Ask::post(&format!("{kept}/reverse")).key(key).header("X-Reason", "☂");
    let first = run.ok(Admin, &reverse("r1"));
    assert_eq!(
        (&first.json()["state"], &first.json()["member"]),
        (&"reversed".into(), &"2".into())
    );
    let again = run.ok(Admin, &reverse("r1"));
    assert_eq!(again.header("idempotent-replayed"), Some("true"));
    assert_eq!(again.body, first.body);
    run.expect(Admin, &reverse("r2"), 409, "wrong-state");
    run.expect(Admin, &Ask::post(&format!("{kept}/reverse")), 400, "key-missing");
    let none = "/v1/redemptions/00000000-0000-8000-8000-000000000000/reverse";
    run.expect(Admin, &Ask::post(none).key("r3"), 404, "redemption-not-found");
    let account = run.ok(Public, &Ask::get("/v1/members/me/points").member(2)).json();
    assert_eq!((&account["free"], &account["held"]), (&1000.into(), &0.into()));
}

fn batches(run: &Run) {
    let batch = |body: &str| Ask::post("/v1/redemptions:batch").json(body);
    let body = r#"{"items":[
        {"member":2,"key":"b1","sale":"s","sku":"cup","quantity":1},
        {"member":"2","key":"b1","sale":"s","sku":"cup","quantity":1},
        {"member":1,"key":"k1","sale":"s","sku":"cup","quantity":1},
        {"member":2,"key":"b2","sale":"none","sku":"cup","quantity":1},
        {"member":2,"key":"b 3","sale":"s","sku":"cup","quantity":1},
        {"member":2,"key":"b4","sale":"s","sku":"last","quantity":1},
        {"member":1,"key":"b5","sale":"soon","sku":"cup","quantity":1,"hold":true}]}"#;
    for ask in [batch(body), batch(body).header("X-Gateway-Secret", "wrong")] {
        run.expect(Public, &ask, 403, "not-trusted");
    }
    let by_secret = batch(body).header("X-Gateway-Secret", crate::http_client::SECRET);
    for (listener, ask) in [(Gateway, batch(body)), (Public, by_secret)] {
        let results = run.ok(listener, &ask).json();
        let results = results["results"].as_array().unwrap();
        let said: Vec<(u64, &str)> = results
            .iter()
            .map(|r| {
                let word = r["code"].as_str().or(r["state"].as_str());
                (r["status"].as_u64().unwrap(), word.unwrap())
            })
            .collect();
        assert_eq!(
            said,
            [
                (201, "confirmed"),
                (201, "confirmed"),
                (201, "confirmed"),
                (404, "sale-not-found"),
                (400, "key-malformed"),
                (409, "sold-out"),
                (409, "sale-not-open"),
            ]
        );
        assert_eq!(results[0]["id"], results[1]["id"]);
        assert_eq!(results[2]["replayed"], true);
        assert!(results[6]["retry_after"].is_u64());
    }
    let item = r#"{"member":2,"key":"b","sale":"s","sku":"cup","quantity":1}"#;
    let many = |count| format!("{{\"items\":[{}]}}", vec![item; count].join(","));
    assert_eq!(
        run.ok(Gateway, &batch(&many(512))).json()["results"].as_array().unwrap().len(),
        512
    );
    for bad in [many(0), many(513), "{\"items\":[[2]]}".into(), "{}".into()] {
        run.expect(Gateway, &batch(&bad), 400, "malformed");
    }
}

fn points(run: &Run) {
    let change = |member: &str, key: &str, body: &str| {
        Ask::post(&format!("/v1/members/{member}/points")).key(key).json(body)
    };
    let first = run.ok(Admin, &change("3", "p1", r#"{"credit":25}"#));
    assert_eq!(first.json()["free"], 75);
    run.ok(Admin, &change("3", "p2", r#"{"debit":5}"#));
    let again = run.ok(Admin, &change("3", "p1", r#"{"credit":25}"#));
    assert_eq!(again.header("idempotent-replayed"), Some("true"));
    assert_eq!(again.body, first.body);
    run.expect(Admin, &change("3", "p1", r#"{"credit":26}"#), 422, "key-reused");
    run.expect(Admin, &change("3", "p3", r#"{"debit":1000}"#), 403, "insufficient-points");
    run.expect(Admin, &change("4", "p4", r#"{"credit":1}"#), 409, "balance-too-large");
    for member in ["99", "x", "-1", "18446744073709551616"] {
        let ask = change(member, "p5", r#"{"credit":1}"#);
        run.expect(Admin, &ask, 404, "member-not-found");
        run.expect(Admin, &Ask::get(&format!("/v1/members/{member}")), 404, "member-not-found");
    }
    for body in [r#"{"credit":0}"#, r#"{"debit":9007199254740993}"#] {
        run.expect(Admin, &change("3", "p6", body), 400, "invalid");
    }
    let none = Ask::post("/v1/members/3/points").json(r#"{"credit":1}"#);
    run.expect(Admin, &none, 400, "key-missing");
    assert_eq!(run.ok(Admin, &Ask::get("/v1/members/3")).json()["free"], 70);
    run.expect(Public, &Ask::get("/v1/members/me/points").member(99), 404, "member-not-found");
    run.expect(Public, &Ask::get("/v1/members/me/points"), 401, "identity-missing");
    let twice = Ask::get("/v1/members/me/points").member(1).member(2);
    run.expect(Public, &twice, 400, "identity-malformed");
}

fn stock(run: &Run) {
    let change = |sale: &str, sku: &str, key: &str, body: &str| {
        Ask::post(&format!("/v1/sales/{sale}/items/{sku}/stock")).key(key).json(body)
    };
    let first = run.ok(Admin, &change("s", "dear", "s1", r#"{"add":7}"#));
    assert_eq!((&first.json()["added"], &first.json()["total"]), (&7.into(), &12.into()));
    let again = run.ok(Admin, &change("s", "dear", "s1", r#"{"add":7}"#));
    assert_eq!(again.header("idempotent-replayed"), Some("true"));
    assert_eq!(again.body, first.body);
    run.expect(Admin, &change("s", "dear", "s1", r#"{"add":8}"#), 422, "key-reused");
    let taken = run.ok(Admin, &change("s", "dear", "s2", r#"{"withdraw":100}"#)).json();
    let said = (&taken["asked"], &taken["withdrawn"], &taken["total"]);
    assert_eq!(said, (&100.into(), &12.into(), &0.into()));
    run.expect(Admin, &change("s", "none", "s3", r#"{"add":1}"#), 404, "item-not-found");
    run.expect(Admin, &change("none", "cup", "s3", r#"{"add":1}"#), 404, "sale-not-found");
    for body in [r#"{"add":0}"#, r#"{"withdraw":4294967296}"#] {
        run.expect(Admin, &change("s", "cup", "s4", body), 400, "quantity-invalid");
    }
    run.expect(Admin, &change("s", "cup", "s4", r#"{"add":-1}"#), 400, "malformed");
    // Added units start a new stock generation: sold out was final, and is not any more.
    run.ok(Admin, &change("s", "last", "s5", r#"{"add":1}"#));
    run.expect(Public, &redeem("s", 2, "l3", r#"{"sku":"last","quantity":1}"#), 201, "");
}

fn imports(run: &Run) {
    let import = |query: &str, csv: &str| {
        Ask::post(&format!("/v1/members:import{query}")).body("text/csv", csv.as_bytes())
    };
    let counts = |answer: &Answer| {
        let body = answer.json();
        ["rows", "opened", "existing", "skipped"].map(|name| body[name].as_u64().unwrap())
    };
    let good = "member,points\n100,5\n101,6\n1,777\n";
    assert_eq!(counts(&run.ok(Admin, &import("", good))), [3, 2, 1, 0]);
    assert_eq!(counts(&run.ok(Admin, &import("", good))), [3, 0, 3, 0]);
    assert_eq!(run.ok(Admin, &Ask::get("/v1/members/101")).json()["free"], 6);
    let bad = "member,points\n102,5\nx,6\n102,7\n";
    let answer = run.expect(Admin, &import("", bad), 400, "rows-invalid");
    let lines: Vec<_> =
        answer.json()["errors"].as_array().unwrap().iter().map(|e| e["line"].clone()).collect();
    assert_eq!(lines, [3, 4]);
    run.expect(Admin, &Ask::get("/v1/members/102"), 404, "member-not-found");
    let skipped = run.ok(Admin, &import("?skip_bad_rows=true", bad));
    assert_eq!(counts(&skipped), [1, 1, 0, 2]);
    assert_eq!(run.ok(Admin, &Ask::get("/v1/members/102")).json()["free"], 5);
    run.expect(Admin, &import("?skip=1", good), 400, "malformed");
    // However many bad lines there are, each is named.
    let many = (0..250_000).fold(String::from("member,points\n103,1\n"), |csv, _| csv + "x\n");
    for (query, status) in [("", 400), ("?skip_bad_rows=true", 200)] {
        let answer = run.send(Admin, &import(query, &many));
        assert_eq!(answer.status, status);
        let body = answer.json();
        let lines = body["errors"].as_array().unwrap().iter().map(|e| e["line"].as_u64().unwrap());
        assert!(lines.eq(3..250_003), "every line, in order");
    }
    let ask = Ask::post("/v1/members:import").json("{}");
    let answer = run.send(Admin, &ask);
    assert_eq!((answer.status, answer.code()), (415, "media-type-unsupported".into()));
}

fn refusals_by_sale(run: &Run) {
    let one = r#"{"sku":"cup","quantity":1}"#;
    run.ok(Admin, &Ask::post("/v1/sales/s/pause"));
    let answer = run.expect(Public, &redeem("s", 2, "q1", one), 409, "sale-paused");
    assert!(answer.header("retry-after").is_some());
    // A remembered key gets its answer whatever the sale's state.
    run.expect(Public, &redeem("s", 1, "k1", one), 201, "");
    run.ok(Admin, &Ask::post("/v1/sales/s/close"));
    run.ok(Admin, &Ask::post("/v1/sales/s/close"));
    run.expect(Public, &redeem("s", 2, "q2", one), 409, "sale-ended");
    for step in ["open", "pause", "resume"] {
        run.expect(Admin, &Ask::post(&format!("/v1/sales/s/{step}")), 409, "sale-ended");
    }
    let add = Ask::post("/v1/sales/s/items/cup/stock").key("s9").json(r#"{"add":1}"#);
    run.expect(Admin, &add, 409, "sale-ended");
    // The sale's own check, on a sale that only some may use.
    let limited = definition("few", PAST, &[("cup", 10, 5, 2)])
        .replace("\"limit_per_member\":2", "\"limit_per_member\":2,\"eligible\":[\"7\",\"10-20\"]");
    run.expect(Admin, &Ask::post("/v1/sales").json(&limited), 201, "");
    run.ok(Admin, &Ask::post("/v1/sales/few/open"));
    run.expect(Public, &redeem("few", 1, "e1", one), 403, "not-eligible");
}

#[test]
fn an_open_that_is_answered_is_open_for_the_next_request() {
    let node = TestNode::start();
    import(&node, [(1, 1_000)]);
    // Its time has passed, so it opens by itself while it is opened by hand.
    for n in 0..50 {
        let id = format!("s{n}");
        let sale = definition(&id, PAST, &[("cup", 1, 5, 1)]);
        assert_eq!(Ask::post("/v1/sales").json(&sale).send(node.admin).status, 201);
        let open = Ask::post(&format!("/v1/sales/{id}/open")).send(node.admin);
        assert_eq!(open.status, 200, "{}", open.text());
        let ask = redeem(&id, 1, &format!("k{n}"), r#"{"sku":"cup","quantity":1}"#);
        let answer = ask.send(node.public);
        assert_eq!(answer.status, 201, "sale {n}: {}", answer.text());
    }
}
