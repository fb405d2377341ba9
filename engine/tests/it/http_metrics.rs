//! `/metrics`: that each figure is there, says what it is, and moves when it should.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::e2e::wait_until;
use crate::http_client::{Ask, TestNode, import, open_sale, redeem};

const CUP: &str = r#"{"sku":"cup","quantity":1}"#;
/// How long a figure may take on a busy machine.
const PATIENCE: Duration = Duration::from_mins(1);

/// One exposition, taken apart.
#[derive(Default)]
struct Scrape {
    /// Type and help by family.
    families: BTreeMap<String, (String, String)>,
    /// Values by name and labels, as they are written.
    values: BTreeMap<String, f64>,
}

impl Scrape {
    fn take(node: &TestNode) -> Self {
        let answer = Ask::get("/metrics").send(node.admin);
        assert_eq!(answer.status, 200);
        let kind = answer.header("content-type").unwrap();
        assert!(kind.starts_with("application/openmetrics-text; version=1.0.0"), "{kind}");
        let text = answer.text();
        assert!(text.ends_with("# EOF\n"), "{text}");
        let mut scrape = Self::default();
        for line in text.lines().filter(|line| *line != "# EOF") {
            let words: Vec<&str> = line.splitn(4, ' ').collect();
            match words[..] {
                ["#", "HELP", family, help] => help.clone_into(&mut scrape.family(family).1),
                ["#", "TYPE", family, kind] => kind.clone_into(&mut scrape.family(family).0),
                ["#", "UNIT", family, unit] => assert!(family.ends_with(unit), "{line}"),
                _ => {
                    let (name, value) = line.rsplit_once(' ').unwrap();
                    let twice = scrape.values.insert(name.to_owned(), value.parse().unwrap());
                    assert!(twice.is_none(), "{name} comes twice");
                }
            }
        }
        scrape
    }

    fn family(&mut self, name: &str) -> &mut (String, String) {
        self.families.entry(name.to_owned()).or_default()
    }

    /// The sum over all series whose names begin so; 0 where there is none yet.
    fn sum(&self, prefix: &str) -> f64 {
        let series = self.values.iter().filter(|(name, _)| name.starts_with(prefix));
        series.map(|(_, value)| value).sum()
    }

    #[track_caller]
    fn one(&self, name: &str) -> f64 {
        *self.values.get(name).unwrap_or_else(|| panic!("{name} is not there"))
    }

    /// The same of what is counted in whole numbers.
    fn count(&self, prefix: &str) -> u64 {
        self.sum(prefix) as u64
    }

    fn units(&self) -> [u64; 3] {
        ["free", "held", "confirmed"].map(|state| {
            self.one(&format!(r#"onrush_stock_units{{sale="s",sku="cup",state="{state}"}}"#)) as u64
        })
    }
}

/// Family, type, and a word of its help.
const FAMILIES: [(&str, &str, &str); 23] = [
    ("onrush_build_info", "gauge", "build"),
    ("onrush_ready", "gauge", "takes requests"),
    ("onrush_http_requests", "counter", "by call and outcome"),
    ("onrush_http_request_duration_seconds", "histogram", "Time from"),
    ("onrush_http_connections", "gauge", "open now"),
    ("onrush_http_watchers", "gauge", "watch a sale"),
    ("onrush_http_connections_taken", "counter", "what became of them"),
    ("onrush_decisions", "counter", "Decisions"),
    ("onrush_inbox_depth", "gauge", "waiting for a shard"),
    ("onrush_inbox_refused", "counter", "inbox was full"),
    ("onrush_stock_units", "gauge", "by state"),
    ("onrush_stock_total_units", "gauge", "in the sale"),
    ("onrush_journal_sync_duration_seconds", "histogram", "durable"),
    ("onrush_journal_frame_size_bytes", "histogram", "frames"),
    ("onrush_journal_written_bytes", "counter", "Bytes written"),
    ("onrush_journal_records", "counter", "Records written"),
    ("onrush_journal_lag_records", "gauge", "not durable yet"),
    ("onrush_journal_disk_bytes", "gauge", "Bytes of the journal"),
    ("onrush_journal_disk_max_bytes", "gauge", "Bound"),
    ("onrush_persist_lag_records", "gauge", "does not have yet"),
    ("onrush_persist_lag_seconds", "gauge", "had everything"),
    ("onrush_snapshot_age_seconds", "gauge", "newest snapshot"),
    ("onrush_members", "gauge", "Accounts"),
];

#[test]
fn each_figure_is_there_and_says_what_it_is() {
    let node = TestNode::start_with(|config| config.snapshot.every_ms = 50);
    import(&node, [(1, 1_000)]);
    open_sale(&node, "s", &[("cup", 10, 100, 50)]);
    redeem("s", 1, "k", CUP).send(node.public);
    wait_until("a snapshot is taken", PATIENCE, || {
        Scrape::take(&node).values.contains_key("onrush_snapshot_age_seconds")
    });
    let scrape = Scrape::take(&node);
    for (family, kind, word) in FAMILIES {
        let (is, help) = scrape.families.get(family).unwrap_or_else(|| panic!("no {family}"));
        assert_eq!(is, kind, "{family}");
        assert!(help.contains(word), "{family}: {help}");
        let series = if kind == "counter" { format!("{family}_total") } else { family.to_owned() };
        let is_there = |name: &String| name.starts_with(&series);
        assert!(scrape.values.keys().any(is_there), "{family} has no series");
    }
    for (family, (kind, help)) in &scrape.families {
        assert!(!kind.is_empty() && help.len() > 5, "{family}: {kind}, {help}");
    }
    let build = format!("onrush_build_info{{version=\"{}\"}}", env!("CARGO_PKG_VERSION"));
    assert_eq!(scrape.count(&build), 1);
    assert!(!scrape.values.keys().any(|name| name.contains("member=")), "no member is named");
}

#[test]
fn units_and_outcomes_follow_a_hold_a_confirm_a_cancel_and_a_refusal() {
    let node = TestNode::start();
    import(&node, [(1, 1_000), (2, 5)]);
    open_sale(&node, "s", &[("cup", 10, 100, 50)]);
    let units_are = |expected: [u64; 3]| {
        wait_until("units as they should be", PATIENCE, || Scrape::take(&node).units() == expected);
    };
    let series = |name: &str, of: &str, outcome: &str| {
        let labels = match of {
            "" => format!("outcome=\"{outcome}\""),
            call => format!("call=\"{call}\",outcome=\"{outcome}\""),
        };
        format!("{name}{{{labels}}}")
    };
    units_are([100, 0, 0]);
    let hold = |key: &str| {
        let body = r#"{"sku":"cup","quantity":3,"hold":true}"#;
        let answer = redeem("s", 1, key, body).send(node.public);
        assert_eq!(answer.status, 201, "{}", answer.text());
        answer.json()["id"].as_str().unwrap().to_owned()
    };
    let settle = |id: &str, verb: &str| {
        let ask = Ask::post(&format!("/v1/redemptions/{id}/{verb}")).member(1);
        assert_eq!(ask.send(node.public).status, 200);
    };
    let (first, second) = (hold("a"), hold("b"));
    units_are([94, 6, 0]);
    settle(&first, "confirm");
    units_are([94, 3, 3]);
    settle(&second, "cancel");
    units_are([97, 0, 3]);
    assert_eq!(redeem("s", 2, "c", CUP).send(node.public).status, 403);
    assert_eq!(redeem("s", 1, "d", CUP).send(node.public).status, 201);
    assert_eq!(redeem("s", 1, "d", CUP).send(node.public).status, 201);
    units_are([96, 0, 4]);
    let ask = Ask::post("/v1/sales/s/items/cup/stock").key("more").json(r#"{"add":4}"#);
    assert_eq!(ask.send(node.admin).status, 200);
    units_are([100, 0, 4]);
    assert_eq!(Scrape::take(&node).count("onrush_stock_total_units{"), 104);

    let scrape = Scrape::take(&node);
    for (call, outcome, expected) in [
        ("redeem", "held", 2),
        ("redeem", "confirmed", 1),
        ("redeem", "replayed", 1),
        ("redeem", "insufficient-points", 1),
        ("confirm", "confirmed", 1),
        ("cancel", "cancelled", 1),
        ("change-stock", "ok", 1),
    ] {
        for name in ["onrush_http_requests_total", "onrush_http_request_duration_seconds_count"] {
            let name = series(name, call, outcome);
            assert_eq!(scrape.count(&name), expected, "{name}");
        }
        let took = scrape.one(&series("onrush_http_request_duration_seconds_sum", call, outcome));
        assert!(took > 0.0, "{call} {outcome} took {took} s");
    }
    for (outcome, expected) in
        [("held", 2), ("confirmed", 1), ("replayed", 1), ("insufficient-points", 1)]
    {
        let name = series("onrush_decisions_total", "", outcome);
        assert_eq!(scrape.count(&name), expected, "{name}");
    }
    Ask::get("/no/such/route").send(node.public);
    let unknown = series("onrush_http_requests_total", "unknown", "route-not-found");
    assert_eq!(Scrape::take(&node).count(&unknown), 1);
}

#[test]
fn the_journal_the_database_shards_and_the_snapshots_show_how_far_they_are() {
    let node = TestNode::start_with(|config| config.snapshot.every_ms = 50);
    let before = Scrape::take(&node);
    import(&node, (1..=100).map(|member| (member, 1_000)));
    open_sale(&node, "s", &[("cup", 10, 100, 50)]);
    for member in 1..=10 {
        assert_eq!(redeem("s", member, "k", CUP).send(node.public).status, 201);
    }
    let after = Scrape::take(&node);
    let grew = |name: &str| after.one(name) - before.one(name);
    assert!(grew("onrush_journal_records_total") >= 110.0);
    let syncs = grew("onrush_journal_sync_duration_seconds_count");
    assert!(syncs >= 10.0, "each answer stood behind a sync of its own: {syncs}");
    assert!(grew("onrush_journal_sync_duration_seconds_sum") > 0.0);
    assert!(grew("onrush_journal_frame_size_bytes_count") >= 10.0);
    let (written, frames) =
        (grew("onrush_journal_written_bytes_total"), grew("onrush_journal_frame_size_bytes_sum"));
    assert!(written >= 10.0 * 4096.0 && frames >= 10.0 * 4096.0, "{written} {frames}");
    assert!(after.one("onrush_journal_disk_bytes") > 0.0);
    assert_eq!(grew("onrush_members") as u64, 100);

    // Nothing new: everything becomes durable and is stored, and the last snapshot grows old.
    wait_until("everything is stored", PATIENCE, || {
        let scrape = Scrape::take(&node);
        let zero = [
            "onrush_journal_lag_records",
            "onrush_persist_lag_records{",
            "onrush_persist_lag_seconds{",
            "onrush_inbox_depth{",
        ];
        zero.iter().all(|name| scrape.sum(name) <= 0.0)
    });
    let mut last = f64::MAX;
    wait_until("the newest snapshot grows older", PATIENCE, || {
        let age = Scrape::take(&node).sum("onrush_snapshot_age_seconds");
        assert!(age < PATIENCE.as_secs_f64(), "{age} s");
        let is_older = age > last + 0.1;
        last = last.min(age);
        is_older
    });
}

#[test]
fn a_database_shard_that_nobody_writes_falls_behind_from_the_start_on() {
    let node = TestNode::start_with(|config| config.persist.run = false);
    import(&node, (1..=100).map(|member| (member, 1_000)));
    let lag = || {
        let scrape = Scrape::take(&node);
        [scrape.sum("onrush_persist_lag_records{"), scrape.sum("onrush_persist_lag_seconds{")]
    };
    let [records, first] = lag();
    assert!(records >= 100.0, "{records}");
    wait_until("the lag grows", PATIENCE, || lag()[1] > first);
    let shards = 4.0;
    assert!(lag()[1] < shards * 2.0 * PATIENCE.as_secs_f64(), "not since 1970");
}
