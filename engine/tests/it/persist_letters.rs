//! `onrush persist dead-letters` on SQLite files, while the node runs.

use std::time::Duration;

use onrush::persist::sqlite::path_of;
use onrush::ship::partition::DatabaseShard;
use rusqlite::Connection;

use crate::e2e::{onrush, run, turn, wait_until};
use crate::e2e_client::Wish;

const SALE: &str = "sale";
const BAD: u64 = 7;

#[test]
fn dead_letters_in_files_are_listed_shown_and_applied_once_repaired() {
    let _turn = turn();
    let site = crate::e2e::Site::new();
    let node = site.start();
    node.import_members(1, 20, 1_000);
    node.open_sale(SALE, 3_600_000, &[("thing", 10, 100_000, 1_000)]);
    let open = |shard: u8| {
        let file = path_of(&site.data().join("db"), DatabaseShard::new(shard));
        let connection = Connection::open(file).expect("there");
        connection.busy_timeout(Duration::from_secs(10)).expect("settable");
        connection
    };
    let all: Vec<_> = (0..4).map(open).collect();
    let count = |sql: &str| -> i64 {
        all.iter().map(|c| c.query_row(sql, [], |row| row.get::<_, i64>(0)).expect("a count")).sum()
    };
    wait_until("accounts are stored", Duration::from_secs(30), || {
        count("SELECT count(*) FROM accounts") == 20
    });
    let change = |by: &str| -> usize {
        let sql = format!("UPDATE accounts SET free = free {by} WHERE member = {BAD}");
        all.iter().map(|c| c.execute(&sql, []).expect("writable")).sum()
    };
    let letters = |args: &[&str]| {
        let mut command = onrush();
        command.args(["persist", "dead-letters"]).args(args);
        let (code, out, err) = run(command
            .arg("--config")
            .arg(site.path("onrush.toml"))
            .arg("--data")
            .arg(site.data()));
        println!("{args:?}: {code:?}\n{out}{err}");
        (code, out)
    };
    assert_eq!(letters(&["list"]).0, Some(0));
    assert_eq!(change("- 5"), 1);
    let mut client = node.client();
    for key in ["a", "b"] {
        client.redeem(&Wish::new(BAD, key, SALE, "thing")).expect(201);
        client.redeem(&Wish::new(8, key, SALE, "thing")).expect(201);
    }
    wait_until("the others are stored", Duration::from_secs(30), || {
        count("SELECT count(*) FROM dead_letters") == 2
            && count("SELECT count(*) FROM redemptions WHERE member = 8") == 2
    });
    let (code, listed) = letters(&["list"]);
    assert_eq!(code, Some(1));
    assert!(listed.contains("dead    member 7") && listed.contains("parked  member 7"), "{listed}");
    let id = listed.split_whitespace().next().expect("a letter").to_owned();
    let (code, shown) = letters(&["show", &id]);
    assert_eq!(code, Some(0));
    assert!(shown.contains("Redeemed"), "{shown}");
    let (code, out) = letters(&["retry"]);
    assert_eq!(code, Some(1));
    assert!(out.contains("0 applied, 2 left"), "{out}");
    assert_eq!(change("+ 5"), 1);
    let (code, out) = letters(&["retry"]);
    assert_eq!(code, Some(0));
    assert!(out.contains("2 applied, 0 left"), "{out}");
    assert_eq!(letters(&["list"]).0, Some(0));
    assert!(node.stop().success());
    site.audit();
}
