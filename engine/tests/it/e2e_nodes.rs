//! Three nodes: whatever is asked of the wrong one is answered as by the right one, and nobody can
//! make one believe that another node asks.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::e2e::turn;
use crate::e2e_client::{Client, Reply};
use crate::e2e_mall::{Mall, NAMES, SECRET};
use crate::http_client::{Answer, Ask};
use crate::http_spec::{Listener, Spec};

/// An answer without what differs from one connection to the next.
fn gist(reply: &Reply) -> (u16, BTreeMap<String, String>, String) {
    let of_a_hop = ["date", "connection", "content-length"];
    let headers = reply.headers.iter().filter(|(name, _)| !of_a_hop.contains(&name.as_str()));
    let mut headers: BTreeMap<_, _> = headers.cloned().collect();
    // Spread on purpose.
    headers.entry("retry-after".into()).and_modify(String::clear);
    (reply.status, headers, reply.body.clone())
}

/// Sends the same to every node, and gives the one answer.
#[track_caller]
fn same(mall: &Mall, send: impl Fn(&mut Client) -> Reply) -> Reply {
    let replies: Vec<Reply> = (0..3).map(|at| send(&mut mall.client(at))).collect();
    assert_eq!(gist(&replies[0]), gist(&replies[1]));
    assert_eq!(gist(&replies[0]), gist(&replies[2]));
    replies.into_iter().next().expect("three")
}

#[track_caller]
fn same_admin(mall: &Mall, method: &str, path: &str, key: &str, body: &str) -> Reply {
    let headers = [("idempotency-key", key)];
    let send = |at: usize| mall.admin(at).send(method, path, &headers, body).expect("an answer");
    let replies = [0, 1, 2].map(send);
    assert_eq!(gist(&replies[0]), gist(&replies[1]), "{method} {path}");
    assert_eq!(gist(&replies[0]), gist(&replies[2]), "{method} {path}");
    replies.into_iter().next().expect("three")
}

#[test]
fn every_call_through_the_wrong_node_is_answered_as_through_the_right_one() {
    let _turn = turn();
    let mall = Mall::start();
    mall.node(1).import_members(1, 60, 10_000);
    let sales = mall.open_sales("s", &[("cup", 10, 100, 50)]);
    for owner in 0..3 {
        let (wrong, other) = ((owner + 1) % 3, (owner + 2) % 3);
        let member = mall.member_of(owner);
        let wish = mall.wish(&sales, member, "one");
        let first = mall.client(wrong).redeem(&wish).expect(201);
        let location = first.header("location").expect("a location").to_owned();
        // Replays, from everywhere the same.
        let replay = same(&mall, |c| c.redeem(&wish)).expect(201);
        assert_eq!(
            (&replay.body, replay.header("idempotent-replayed")),
            (&first.body, Some("true"))
        );
        assert_eq!(replay.header("location"), Some(location.as_str()));
        // Reads.
        assert_eq!(same(&mall, |c| c.get_as(member, &location)).expect(200).body, first.body);
        let points = same(&mall, |c| c.get_as(member, "/v1/members/me/points")).expect(200).json();
        assert_eq!(points["free"], 9_990);
        let list = "/v1/members/me/redemptions";
        same(&mall, |c| c.get_as(member, list)).expect(200);
        let by_key = same(&mall, |c| c.get_as(member, &format!("{list}?key=one"))).json();
        assert_eq!(by_key["redemptions"].as_array().map(Vec::len), Some(1));
        let statement = same(&mall, |c| c.get_as(member, "/v1/members/me/statement")).expect(200);
        assert!(statement.json()["entries"].as_array().is_some_and(|e| e.len() == 2));
        let head = Ask::new("HEAD", &location).member(member);
        let [here, there] = [owner, wrong].map(|at| head.send(mall.node(at).public));
        assert_eq!((here.status, there.status), (200, 200));
        assert_eq!(here.header("content-length"), there.header("content-length"));
        // Two steps, each through another node.
        let held = mall.client(other).redeem(&mall.wish(&sales, member, "two").held()).expect(201);
        let id = held.json()["id"].as_str().expect("an id").to_owned();
        let confirmed = mall.client(wrong).try_settle(member, &id, "confirm").expect("an answer");
        assert_eq!(confirmed.expect(200).json()["state"], "confirmed");
        let again = |c: &mut Client| c.try_settle(member, &id, "confirm").expect("an answer");
        same(&mall, again).expect(200);
        same(&mall, |c| c.try_settle(member, &id, "cancel").expect("an answer")).expect(409);
        // Refusals.
        let stranger = mall.member_of(wrong);
        same(&mall, |c| c.get_as(stranger, &location)).expect(404);
        same(&mall, |c| c.get_as(member, "/v1/redemptions/none")).expect(404);
        same(&mall, |c| c.get("/v1/members/me/points")).expect(401);
        same(&mall, |c| {
            let two = [("x-member-id", "1"), ("x-member-id", "2")];
            c.send("GET", "/v1/members/me/points", &two, "").expect("an answer")
        })
        .expect(400);
        let path = format!("/v1/sales/{}/redemptions", sales[owner]);
        let text = member.to_string();
        let redeem = |key: &'static str, body: &'static str| {
            let path = path.clone();
            let text = text.clone();
            move |c: &mut Client| {
                let headers = [("x-member-id", text.as_str()), ("idempotency-key", key)];
                c.send("POST", &path, &headers, body).expect("an answer")
            }
        };
        same(&mall, redeem("one", r#"{"sku":"cup","quantity":2}"#)).expect(422);
        same(&mall, redeem("x y", r#"{"sku":"cup","quantity":1}"#)).expect(400);
        same(&mall, redeem("new", r#"{"sku":"cap","quantity":1}"#)).expect(404);
        same(&mall, redeem("new", r#"{"sku":"cup","quantity":1,"x":1}"#)).expect(400);
        same(&mall, redeem("new", r#"{"sku":"cup","quantity":51}"#)).expect(409);
        // Operators.
        let credit = format!("/v1/members/{member}/points");
        mall.admin(wrong).post_keyed("c1", &credit, &json!({"credit": 5})).expect(200);
        let replay = same_admin(&mall, "POST", &credit, "c1", r#"{"credit":5}"#).expect(200);
        assert_eq!(replay.header("idempotent-replayed"), Some("true"));
        same_admin(&mall, "GET", &format!("/v1/members/{member}"), "k", "").expect(200);
        let shown = same_admin(&mall, "GET", &location, "k", "").expect(200).json();
        assert_eq!(shown["member"], member.to_string());
        let reverse = format!("{location}/reverse");
        mall.admin(other).post_keyed("r1", &reverse, &json!({"reason": "broken"})).expect(200);
        same_admin(&mall, "POST", &reverse, "r1", r#"{"reason":"broken"}"#).expect(200);
        same_admin(&mall, "GET", "/v1/members/999999", "k", "").expect(404);
        same_admin(&mall, "GET", "/v1/members/nobody", "k", "").expect(404);
        // A stock change goes to the sale's home; the total is the home's, the units all nodes'.
        let stock = format!("/v1/sales/{}/items/cup/stock", sales[owner]);
        let added =
            mall.admin(wrong).post_keyed("s1", &stock, &json!({"add": 7})).expect(200).json();
        assert_eq!(added["total"], 107);
        let replay = same_admin(&mall, "POST", &stock, "s1", r#"{"add":7}"#).expect(200);
        assert_eq!(replay.header("idempotent-replayed"), Some("true"));
        let sale = format!("/v1/sales/{}", sales[owner]);
        let shown = mall.admin(other).get(&sale).expect(200);
        let (said, tag) = (shown.json(), shown.header("etag").expect("a tag"));
        let item = &said["items"][0];
        assert_eq!((&item["total"], &item["confirmed"]), (&json!(107), &json!(1)), "{item}");
        // What the caller knows already is between it and the node that it asked.
        let again = |if_none_match: &str| {
            let headers = [("if-none-match", if_none_match)];
            mall.admin(other).send("GET", &sale, &headers, "").expect("an answer")
        };
        again(tag).expect(304);
        mall.client(wrong).redeem(&mall.wish(&sales, member, "after")).expect(201);
        let news = again(tag).expect(200).json();
        assert_eq!(news["items"][0]["confirmed"], 2, "{news}");
        assert_eq!(news["nodes_missed"], json!([]), "{news}");
    }
    // An item's redemptions are listed over all nodes, newest first.
    let sale = &sales[0];
    let page =
        same_admin(&mall, "GET", &format!("/v1/sales/{sale}/items/cup/redemptions"), "k", "");
    assert_eq!(page.expect(200).json()["redemptions"].as_array().map(Vec::len), Some(3));
    for at in 0..3 {
        mall.node(at).audit();
    }
}

/// A way in front of a node counts the connections that the others make to it.
#[test]
fn a_hundred_forwarded_requests_go_over_connections_that_are_kept() {
    let _turn = turn();
    let mut mall = Mall::prepare(|_| {});
    let ways = mall.put_ways_before(1);
    mall.start_all();
    mall.node(0).import_members(1, 60, 1_000);
    let sales = mall.open_sales("k", &[("cup", 1, 1_000, 1_000)]);
    let member = mall.member_of(1);
    let mut client = mall.client(0);
    client.redeem(&mall.wish(&sales, member, "first")).expect(201);
    let before = ways[0].opened();
    assert!(before > 0, "node a reaches node b this way");
    for n in 0..100 {
        client.redeem(&mall.wish(&sales, member, &format!("k{n}"))).expect(201);
    }
    let opened = ways[0].opened() - before;
    // None of these need any. The others' probes go the same way, and may begin anew.
    assert!(opened <= 10, "{opened} connections for 100 requests");
}

#[test]
fn batches_and_imports_are_split_by_owner_and_joined_in_order() {
    let _turn = turn();
    let mall = Mall::start();
    let csv = (1..=3_000).fold(String::from("member,points\n"), |mut csv, member| {
        writeln!(csv, "{member},100").expect("a string");
        csv
    });
    let import = |at: usize| {
        let headers = [("content-type", "text/csv"), ("x-operator", "ops")];
        mall.admin(at).send("POST", "/v1/members:import", &headers, &csv).expect("an answer")
    };
    let counts = import(0).expect(200).json();
    assert_eq!(counts, json!({"rows":3000,"opened":3000,"existing":0,"skipped":0,"errors":[]}));
    let counts = import(2).expect(200).json();
    assert_eq!(counts, json!({"rows":3000,"opened":0,"existing":3000,"skipped":0,"errors":[]}));
    let owned = |at: usize| mall.cluster(at)["nodes"][at]["members"].as_u64().expect("a count");
    let expected = |at: usize| (1..=3_000).filter(|m| mall.owner_of(*m) == at).count() as u64;
    assert_eq!([0, 1, 2].map(owned), [0, 1, 2].map(expected));
    let bad = csv.clone() + "x,y\n";
    let headers = [("content-type", "text/csv")];
    let refused = mall.admin(1).send("POST", "/v1/members:import", &headers, &bad).expect("it");
    assert_eq!(refused.expect(400).json()["bad_rows"], 1);

    let sales = mall.open_sales("b", &[("cup", 1, 1_000, 5)]);
    let wishes: Vec<Value> = (1..=100u64)
        .map(|member| {
            let sku = if member % 10 == 0 { "none" } else { "cup" };
            json!({ "member": member.to_string(), "key": format!("k\"{member}"), "quantity": 1,
                    "sale": sales[mall.owner_of(member)], "sku": sku, "hold": member % 7 == 0 })
        })
        .collect();
    let batch = |at: usize| {
        let headers = [("x-gateway-secret", "e2e-secret")];
        let body = json!({ "items": wishes }).to_string();
        let reply = mall.client(at).send("POST", "/v1/redemptions:batch", &headers, &body);
        reply.expect("an answer").expect(200).json()["results"].as_array().expect("it").clone()
    };
    let first = batch(1);
    let ids = |results: &[Value]| results.iter().map(|r| r["id"].clone()).collect::<Vec<_>>();
    for (member, result) in (1..).zip(&first) {
        let expected = if member % 10 == 0 { 404 } else { 201 };
        assert_eq!(result["status"], expected, "{member}: {result}");
        if expected == 201 {
            let location = format!("/v1/redemptions/{}", result["id"].as_str().expect("an id"));
            let there = mall.client(0).get_as(member, &location).expect(200).json();
            assert_eq!(there["id"], result["id"], "the result of member {member} is its own");
        }
    }
    for at in 0..3 {
        let again = batch(at);
        assert_eq!(ids(&again), ids(&first));
        assert!(again.iter().filter(|r| r["status"] == 201).all(|r| r["replayed"] == true));
    }
}

#[test]
fn a_client_that_says_it_is_a_node_gains_nothing_and_nobody_forwards_twice() {
    let _turn = turn();
    let mall = Mall::start();
    let spec = Spec::load();
    mall.node(0).import_members(1, 30, 1_000);
    let sales = mall.open_sales("f", &[("cup", 10, 100, 5)]);
    let send = |at: usize, listener: Listener, ask: &Ask| -> Answer {
        let node = mall.node(at);
        let to = if listener == Listener::Admin { node.admin } else { node.public };
        let answer = ask.send(to);
        spec.check(listener, ask, &answer);
        answer
    };
    let (mine, theirs) = (mall.member_of(0), mall.member_of(1));
    let forged = |ask: Ask| ask.header("Onrush-Forwarded", "1");
    let proven = |ask: Ask| forged(ask).header("Onrush-Node-Secret", SECRET);
    let points = |member| Ask::get("/v1/members/me/points").member(member);
    let body = r#"{"sku":"cup","quantity":1}"#;
    let redeem = |member: u64| {
        let path = format!("/v1/sales/{}/redemptions", sales[mall.owner_of(member)]);
        Ask::post(&path).member(member).key("k").json(body)
    };
    let batch = |member: u64| {
        let sale = &sales[mall.owner_of(member)];
        let item = json!({ "member": member, "key": "b", "sale": sale, "sku": "cup",
                           "quantity": 1 });
        Ask::post("/v1/redemptions:batch").json(&json!({ "items": [item] }).to_string())
    };
    let import = Ask::post("/v1/members:import").body("text/csv", b"member,points\n900,1\n");
    let sale = sales[0].as_str();
    let (public, admin) = (Listener::Public, Listener::Admin);
    let stock = |at: usize| format!("/v1/sales/{}/items/cup/stock", sales[at]);

    // At the node that owns it the word changes nothing.
    assert_eq!(send(0, public, &forged(points(mine))).status, 200);
    // Elsewhere it is refused, with no secret, a wrong one, two of them, or the gateways' one.
    for ask in [points(theirs), redeem(theirs), batch(mine)] {
        for ask in [
            forged(ask.clone()),
            forged(ask.clone()).header("Onrush-Node-Secret", "nodes-among-themselveS"),
            proven(ask.clone()).header("Onrush-Node-Secret", SECRET),
            forged(ask.clone()).header("Onrush-Node-Secret", ""),
            forged(ask.clone()).header("X-Gateway-Secret", "e2e-secret"),
        ] {
            let answer = send(0, public, &ask);
            assert_eq!(
                (answer.status, answer.code().as_str()),
                (403, "not-trusted"),
                "{}",
                ask.path
            );
        }
    }
    let answer = send(0, public, &batch(mine).header("Onrush-Node-Secret", SECRET));
    assert_eq!(answer.code(), "not-trusted", "the secret alone says nothing");
    let credit =
        Ask::post(&format!("/v1/members/{theirs}/points")).key("k").json(r#"{"credit":1}"#);
    let definition =
        crate::http_client::definition("forged", "2026-01-01T00:00:00Z", &[("x", 1, 1, 1)]);
    for ask in [
        Ask::get(&format!("/v1/members/{theirs}")),
        credit,
        Ask::post("/v1/sales").json(&definition),
        Ask::post(&format!("/v1/sales/{sale}/pause")),
        Ask::post(&stock(1)).key("k").json(r#"{"add":1}"#),
        Ask::get(&format!("/v1/sales/{sale}")),
        Ask::get("/v1/cluster"),
        import.clone(),
    ] {
        let answer = send(0, admin, &forged(ask.clone()));
        assert_eq!((answer.status, answer.code().as_str()), (403, "not-trusted"), "{}", ask.path);
    }
    // A node's own word at the wrong node: refused, nothing done, never passed on.
    for ask in [points(theirs), redeem(theirs), batch(theirs)] {
        let answer = send(0, public, &proven(ask));
        assert_eq!((answer.status, answer.code().as_str()), (503, "wrong-node"));
        assert!(answer.header("retry-after").is_some());
    }
    let foreign = Ask::post("/v1/members:import")
        .body("text/csv", format!("member,points\n{theirs},1\n").as_bytes());
    assert_eq!(send(0, admin, &proven(foreign)).code(), "wrong-node");
    let free = send(0, public, &points(theirs)).json()["free"].clone();
    assert_eq!(free, 1_000, "nothing of all this had an effect");
    assert_eq!(send(0, admin, &Ask::get(&format!("/v1/sales/{sale}"))).json()["state"], "open");
    // What a client sends along does not reach the other node.
    let plain = send(0, public, &points(theirs).header("Onrush-Node-Secret", "guess"));
    assert_eq!(plain.status, 200);
}

#[test]
fn a_client_may_be_sent_to_the_owner_instead() {
    let _turn = turn();
    let mall = Mall::start_with(|site| site.set("cluster.misrouted", "\"redirect\""));
    let spec = Spec::load();
    mall.node(0).import_members(1, 30, 1_000);
    let sales = mall.open_sales("r", &[("cup", 10, 100, 5)]);
    let member = mall.member_of(2);
    let redeem = Ask::post(&format!("/v1/sales/{}/redemptions?x=1", sales[2]))
        .member(member)
        .key("k")
        .json(r#"{"sku":"cup","quantity":1}"#);
    let id = "0192f3a0-0000-8aaa-8000-000000000001";
    let settle = |verb: &str| Ask::post(&format!("/v1/redemptions/{id}/{verb}")).member(member);
    for ask in [
        redeem.clone(),
        Ask::get("/v1/members/me/points").member(member),
        Ask::get("/v1/members/me/redemptions?limit=3").member(member),
        Ask::get("/v1/members/me/statement").member(member),
        settle("confirm"),
        settle("cancel"),
        Ask::get(&format!("/v1/redemptions/{id}")).member(member),
    ] {
        // The slot in that id is 0xaaa, which is node c's.
        let answer = ask.send(mall.node(0).public);
        spec.check(Listener::Public, &ask, &answer);
        let there = format!("http://{}{}", mall.node(2).public, ask.path);
        assert_eq!((answer.status, answer.header("location")), (307, Some(there.as_str())));
    }
    let answer = redeem.send(mall.node(2).public);
    assert_eq!(answer.status, 201);
    // Operators' calls and batches are passed on all the same.
    let shown = mall.admin(0).get(&format!("/v1/members/{member}")).expect(200).json();
    assert_eq!(shown["free"], 990);
}

#[test]
fn the_cluster_shows_every_node_with_what_it_says_of_itself() {
    let _turn = turn();
    let mut mall = Mall::start();
    let spec = Spec::load();
    mall.node(0).import_members(1, 30, 1_000);
    let sales = mall.open_sales("v", &[("cup", 10, 100, 5)]);
    for (from, name) in NAMES.into_iter().enumerate() {
        for of in (0..3).filter(|of| *of != from) {
            mall.wait_health(from, of, "up");
        }
        let view = mall.cluster(from);
        spec.validate_named("Cluster", &view);
        assert_eq!((&view["self"], &view["version"]), (&json!(name), &json!(1)));
        let nodes = view["nodes"].as_array().expect("nodes");
        let journals: std::collections::HashSet<_> =
            nodes.iter().map(|n| n["journal"].as_str().expect("a journal")).collect();
        assert_eq!(journals.len(), 3);
        let slots: u64 = nodes.iter().map(|n| n["slot_count"].as_u64().expect("a count")).sum();
        assert_eq!(slots, 4096);
        for (at, node) in nodes.iter().enumerate() {
            assert_eq!(node["name"], NAMES[at]);
            let leases = node["leases"].as_array().expect("leases");
            assert_eq!(leases.len(), 3);
            let home = leases.iter().find(|lease| lease["sale"] == sales[at]).expect("its own");
            assert_eq!(home["is_home"], true);
            for lag in ["journal_records", "persist_records", "persist_ms"] {
                assert!(node["lags"][lag].is_u64(), "{lag}: {node}");
            }
        }
    }
    mall.take(2).kill();
    mall.wait_health(0, 2, "down");
    let view = mall.cluster(0);
    spec.validate_named("Cluster", &view);
    assert_eq!(view["nodes"][2]["slots"], json!(["2730-4095"]));
    let metrics = mall.admin(0).get("/metrics").expect(200).body;
    assert!(metrics.contains("onrush_cluster_node_up{node=\"c\"} 0"), "{metrics}");
    assert!(metrics.contains("onrush_cluster_node_up{node=\"b\"} 1"));
}
