//! A door without a core: a node that recovers says so, and answers everything else with 503.

use std::sync::Arc;
use std::time::Duration;

use onrush::clock::{Clock, RealClock};
use onrush::cluster::nodes::Cluster;
use onrush::config::{ClusterConfig, Config};
use onrush::http::door::{BoundDoor, Door, DoorParts};
use onrush::shard::core::{NodeView, Stage};
use onrush::telemetry::figures::NoFigures;

use crate::http_client::{Ask, Connection, TestNode, import, open_sale, redeem};
use crate::http_spec::{Listener, Spec};

struct BareDoor {
    door: Door,
    view: Arc<NodeView>,
    spool: tempfile::TempDir,
}

fn bare_door() -> BareDoor {
    let mut config = Config::default().http;
    config.listen = "127.0.0.1:0".parse().unwrap();
    config.admin = config.listen;
    config.gateway = Some(config.listen);
    let clock: Arc<dyn Clock> = Arc::new(RealClock::new());
    let view = Arc::new(NodeView::default());
    let spool = tempfile::tempdir().unwrap();
    let bound = BoundDoor::bind(config).unwrap();
    let door = bound
        .serve(DoorParts {
            cluster: Arc::new(Cluster::new(None)),
            cluster_config: ClusterConfig::default(),
            view: Arc::clone(&view),
            clock,
            figures: Arc::new(NoFigures),
            audit: Arc::new(|_| Err(String::from("nothing to look at"))),
            history: Arc::default(),
            spool: spool.path().to_path_buf(),
        })
        .unwrap();
    BareDoor { door, view, spool }
}

#[test]
fn a_node_that_recovers_says_how_far_it_is_and_takes_nothing() {
    let bare = bare_door();
    let spec = Spec::load();
    let addresses = bare.door.addresses();
    let send = |listener: Listener, ask: &Ask| {
        let answer = ask.send(match listener {
            Listener::Public => addresses.public,
            Listener::Gateway => addresses.gateway.unwrap(),
            Listener::Admin => addresses.admin,
        });
        spec.check(listener, ask, &answer);
        answer
    };
    bare.view.readiness.enter(Stage::ReplayingJournal, 1_000);
    bare.view.readiness.advance(250);
    for listener in [Listener::Public, Listener::Gateway, Listener::Admin] {
        assert_eq!(send(listener, &Ask::get("/livez")).status, 200);
        let ready = send(listener, &Ask::get("/readyz"));
        assert_eq!((ready.status, &ready.json()["status"]), (503, &"replaying-journal".into()));
        assert_eq!((&ready.json()["done"], &ready.json()["of"]), (&250.into(), &1000.into()));
        assert_eq!(send(listener, &Ask::get("/version")).status, 200);
        assert!(send(listener, &Ask::get("/metrics")).text().contains("onrush_ready 0"));
        for (method, path) in spec.calls(listener) {
            if !path.starts_with("/v1/") {
                continue;
            }
            let path = path
                .replace("{sale}", "s")
                .replace("{sku}", "k")
                .replace("{member}", "1")
                .replace("{id}", "00000000-0000-8000-8000-000000000000");
            let ask = Ask::new(&method, &path).member(1).key("k");
            let answer = send(listener, &ask);
            let is_shown = path == "/v1/redemptions:batch" && listener == Listener::Public;
            let expected = if is_shown { (403, "not-trusted") } else { (503, "starting") };
            assert_eq!((answer.status, answer.code().as_str()), expected, "{method} {path}");
        }
    }
    assert!(bare.door.stop(Duration::from_secs(5)));
    drop(bare.spool);
}

#[test]
fn leftovers_of_an_import_are_gone_after_the_start() {
    let bare = bare_door();
    let folder = bare.spool.path().to_path_buf();
    assert!(bare.door.stop(Duration::from_secs(5)));
    std::fs::write(folder.join("import-0.csv"), b"member,points\n").unwrap();
    std::fs::write(folder.join("other"), b"").unwrap();
    let mut config = Config::default().http;
    config.listen = "127.0.0.1:0".parse().unwrap();
    config.admin = config.listen;
    let door = BoundDoor::bind(config).unwrap().serve(DoorParts {
        cluster: Arc::new(Cluster::new(None)),
        cluster_config: ClusterConfig::default(),
        view: bare.view,
        clock: Arc::new(RealClock::new()),
        figures: Arc::new(NoFigures),
        audit: Arc::new(|_| Err(String::new())),
        history: Arc::default(),
        spool: folder.clone(),
    });
    let left: Vec<_> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["other"]);
    assert!(door.unwrap().stop(Duration::from_secs(5)));
}

#[test]
fn a_drain_answers_what_it_accepted_and_closes_what_lies_idle() {
    let mut bare = bare_door();
    let addresses = bare.door.addresses();
    let mut idle: Vec<Connection> = (0..50).map(|_| Connection::open(addresses.public)).collect();
    for connection in &mut idle {
        connection.write(&Ask::get("/livez").bytes());
        assert_eq!(connection.read("GET").unwrap().status, 200);
    }
    // A request that is half there when the drain begins is waited for.
    let mut half = Connection::open(addresses.public);
    let bytes = Ask::post("/v1/sales/s/redemptions").member(1).key("k").json("{}").bytes();
    half.write(&bytes[..bytes.len() - 1]);
    std::thread::sleep(Duration::from_millis(200));
    bare.view.readiness.enter(Stage::Draining, 0);
    let draining = std::thread::spawn(move || {
        let is_drained = bare.door.drain(Duration::from_secs(10));
        (bare, is_drained)
    });
    assert!(idle.iter_mut().all(Connection::is_closed));
    assert_eq!(Ask::get("/readyz").send(addresses.admin).json()["status"], "draining");
    half.write(&bytes[bytes.len() - 1..]);
    assert_eq!(half.read("POST").unwrap().status, 503);
    assert!(half.is_closed());
    let (bare, is_drained) = draining.join().unwrap();
    assert!(is_drained);
    assert!(std::net::TcpStream::connect(addresses.public).is_err(), "nobody listens any more");
    assert!(bare.door.stop(Duration::from_secs(5)));
}

#[test]
fn a_scrape_shows_what_was_answered_and_names_no_member() {
    let node = TestNode::start();
    import(&node, (1..=5_000).map(|member| (member, 100)));
    open_sale(&node, "s", &[("cup", 10, 3, 1)]);
    for member in 1..=5 {
        let body = r#"{"sku":"cup","quantity":1}"#;
        redeem("s", member, "k", body).send(node.public);
    }
    let text = Ask::get("/metrics").send(node.admin).text();
    for line in [
        r#"onrush_http_requests_total{call="redeem",outcome="confirmed"} 3"#,
        r#"onrush_http_requests_total{call="redeem",outcome="sold-out"} 2"#,
        r#"onrush_decisions_total{outcome="confirmed"} 3"#,
        r#"onrush_http_requests_total{call="import-members",outcome="ok"} 1"#,
        r#"onrush_http_request_duration_seconds_count{call="redeem",outcome="confirmed"} 3"#,
        r#"onrush_stock_units{sale="s",sku="cup",state="free"} 0"#,
        r#"onrush_stock_total_units{sale="s",sku="cup"} 3"#,
        r#"onrush_inbox_refused_total{shard="00"} 0"#,
        "onrush_build_info{",
        "onrush_inbox_depth{",
        "onrush_journal_sync_duration_seconds_bucket{",
        "onrush_journal_frame_size_bytes_bucket{",
        "onrush_journal_written_bytes_total",
        "onrush_persist_lag_records{",
        "onrush_persist_lag_seconds{",
        "onrush_journal_lag_records 0.0",
        "onrush_members 5000.0",
        "onrush_ready 1",
        "# EOF",
    ] {
        assert!(text.contains(line), "{line} is missing:\n{text}");
    }
    assert!(!text.contains("member=") && !text.contains("member_id"));
}
