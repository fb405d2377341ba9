//! Who changed what, and why: by header or in the body, in the record and in the store's row.

use std::collections::BTreeMap;
use std::path::Path;

use onrush::journal::{StoppedJournal, journal_dir};
use onrush::kernel::record::{AdminNote, Record, RecordHead};
use onrush::persist::sqlite::path_of;
use onrush::ship::partition::DatabaseShard;
use onrush::units::Seq;

use crate::http_client::{Answer, Ask, FUTURE, TestNode, definition, import, redeem};
use crate::http_spec::{Listener, Spec};

/// Operator, reason, reference.
type Note = [String; 3];

/// The notes of all records that have one.
fn in_journal(data: &Path) -> BTreeMap<u64, Note> {
    let stopped = StoppedJournal::open(&journal_dir(data)).unwrap();
    let mut tail = stopped.tail(Seq::NONE).unwrap();
    let mut notes = BTreeMap::new();
    while let Some(run) = tail.next().unwrap() {
        let (mut rest, mut seq) = (run.records, run.first_seq);
        while !rest.is_empty() {
            let (mut bytes, behind) = rest.split_at(RecordHead::peek(rest).unwrap().length);
            let note = match Record::take(&mut bytes).unwrap().1 {
                Record::Credited(r) => Some(r.note),
                Record::Debited(r) => Some(r.note),
                Record::Reversed(r) => Some(r.note),
                Record::SaleDefined(r) => Some(r.note),
                Record::SaleChanged(r) => Some(r.note),
                Record::StockChanged(r) => Some(r.note),
                Record::Imported(r) => Some(r.note),
                _ => None,
            };
            if let Some(AdminNote { operator, reason, reference }) = note {
                notes.insert(seq.get(), [operator, reason, reference]);
            }
            (rest, seq) = (behind, seq.next());
        }
    }
    notes
}

/// The notes of all rows of `admin_changes`, and what each says was done.
fn in_store(data: &Path) -> BTreeMap<u64, (String, Note)> {
    let mut notes = BTreeMap::new();
    for shard in (0..4).map(DatabaseShard::new) {
        let database = rusqlite::Connection::open(path_of(&data.join("db"), shard)).unwrap();
        let sql = "SELECT seq, what, operator, reason, reference FROM admin_changes";
        let mut rows = database.prepare(sql).unwrap();
        let rows = rows.query_map([], |r| {
            Ok((
                r.get::<_, i64>(0)?.cast_unsigned(),
                (r.get(1)?, [r.get(2)?, r.get(3)?, r.get(4)?]),
            ))
        });
        for (seq, row) in rows.unwrap().map(Result::unwrap) {
            assert!(notes.insert(seq, row).is_none(), "one row for a change");
        }
    }
    notes
}

#[test]
fn a_change_is_kept_with_its_operator_reason_and_reference() {
    let (node, spec) = (TestNode::start(), Spec::load());
    let by = |ask: Ask| ask.header("X-Operator", "mei");
    let send = |ask: &Ask, status: u16| -> Answer {
        let answer = spec.send(&node, Listener::Admin, ask);
        assert_eq!(answer.status, status, "{} {}: {}", ask.method, ask.path, answer.text());
        answer
    };
    import(&node, [(7, 1_000)]);
    let why = |reason: &str| format!(r#""reason":"{reason}","reference":"T-{reason}""#);
    let sale =
        definition("s", FUTURE, &[("cup", 10, 5, 2)]).replacen('{', "{\"reason\":\"new\",", 1);
    send(&by(Ask::post("/v1/sales")).json(&sale).header("X-Reference", "T-new"), 201);
    for step in ["open", "pause", "resume"] {
        let ask = by(Ask::post(&format!("/v1/sales/s/{step}")));
        send(&ask.json(&format!("{{{}}}", why(step))), 200);
    }
    let stock = |key: &str| by(Ask::post("/v1/sales/s/items/cup/stock")).key(key);
    send(&stock("a").json(&format!(r#"{{"add":2,{}}}"#, why("add"))), 200);
    send(&stock("w").json(&format!(r#"{{{},"withdraw":1}}"#, why("withdraw"))), 200);
    let points = |key: &str| by(Ask::post("/v1/members/7/points")).key(key);
    send(&points("c").json(&format!(r#"{{"credit":5,{}}}"#, why("credit"))), 200);
    // A reason in the body goes before the header's; a reference that is in neither is empty.
    let ask = points("d").header("X-Reason", "of the header");
    send(&ask.json(r#"{"debit":5,"reason":"of the body"}"#), 200);
    // The retry has another reason: what is kept is the first one's.
    let again = send(&points("c").json(r#"{"credit":5,"reason":"second thoughts"}"#), 200);
    assert_eq!(again.header("idempotent-replayed"), Some("true"));
    let begun = redeem("s", 7, "k", r#"{"sku":"cup","quantity":1}"#).send(node.public).json();
    let reverse = format!("/v1/redemptions/{}/reverse", begun["id"].as_str().unwrap());
    send(&by(Ask::post(&reverse)).key("r").json(&format!("{{{}}}", why("reverse"))), 200);
    send(&by(Ask::post("/v1/sales/s/close")).header("X-Reason", "close"), 200);

    for bad in [
        r#"{"credit":1,"reason":1}"#.to_owned(),
        r#"{"credit":1,"operator":"me"}"#.to_owned(),
        format!(r#"{{"credit":1,"reason":"{}"}}"#, "r".repeat(256)),
    ] {
        let answer = send(&points("x").json(&bad), 400);
        assert_eq!(answer.code(), "malformed", "{bad}");
    }

    let data = node.stop_and_keep();
    let (records, rows) = (in_journal(data.path()), in_store(data.path()));
    let notes: BTreeMap<u64, Note> =
        rows.iter().map(|(seq, (_, note))| (*seq, note.clone())).collect();
    assert_eq!(records, notes, "record and row say the same");
    let told: Vec<(&str, [&str; 3])> =
        rows.values().map(|(what, note)| (what.as_str(), note.each_ref().map(|n| &**n))).collect();
    let expected = [
        ("imported", ["", "", ""]),
        ("sale-defined", ["mei", "new", "T-new"]),
        // The first stock is a change of its own.
        ("stock-added", ["mei", "new", "T-new"]),
        ("sale-opened", ["mei", "open", "T-open"]),
        ("sale-paused", ["mei", "pause", "T-pause"]),
        ("sale-resumed", ["mei", "resume", "T-resume"]),
        ("stock-added", ["mei", "add", "T-add"]),
        ("stock-withdrawn", ["mei", "withdraw", "T-withdraw"]),
        ("credited", ["mei", "credit", "T-credit"]),
        ("debited", ["mei", "of the body", ""]),
        ("reversed", ["mei", "reverse", "T-reverse"]),
        ("sale-ended", ["mei", "close", ""]),
    ];
    assert_eq!(told, expected);
}
