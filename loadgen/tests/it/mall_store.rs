//! The store of a mall: the engine's tables, in a file or on servers, with what lies make of them.
//!
//! The statements are the same for both; values stand in them as literals.

use std::path::Path;
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::Duration;

use mysql_async::prelude::Queryable as _;
use mysql_async::{Conn, Opts};
use rusqlite::Connection;

/// What is written of a redemption.
pub struct Kept<'a> {
    pub id: u128,
    pub member: u64,
    pub sku: &'a str,
    pub state: &'static str,
}

pub enum Store {
    /// Written before the member is answered.
    Sqlite(Connection),
    /// A database shard each; a thread writes them, behind the answers.
    Mysql(Vec<Sender<Vec<String>>>),
}

/// How a store can be wrong about a redemption.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Wrong {
    No,
    IsMissing,
    HasOneMore,
    AmountsDiffer,
    ChargesNobody,
}

impl Store {
    pub fn in_folder(dir: &Path, skus: &[&str]) -> Self {
        let db = Connection::open(dir.join("shard-00.sqlite")).unwrap();
        db.execute_batch(include_str!("../../../config/schema/sqlite/0001_tables.sql")).unwrap();
        db.execute_batch("DROP TRIGGER ledger_is_never_deleted").unwrap();
        let store = Self::Sqlite(db);
        store.begin(skus);
        store
    }

    /// In databases that have the tables.
    pub fn on_servers(shards: Vec<Opts>, skus: &[&str]) -> Self {
        let writer = |opts: Opts| {
            let (send, batches) = channel::<Vec<String>>();
            thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                runtime.unwrap().block_on(async {
                    let mut db = Conn::new(opts).await.unwrap();
                    for batch in batches {
                        db.query_drop("START TRANSACTION").await.unwrap();
                        for statement in batch {
                            db.query_drop(statement).await.unwrap();
                        }
                        db.query_drop("COMMIT").await.unwrap();
                    }
                });
            });
            send
        };
        let store = Self::Mysql(shards.into_iter().map(writer).collect());
        store.begin(skus);
        store
    }

    /// The sale and its items, which are in one shard only.
    fn begin(&self, skus: &[&str]) {
        let mut batch =
            vec!["INSERT INTO sales VALUES (1, 1, 's1', 'S', 'open', 0, 0, '')".to_owned()];
        batch.extend(skus.iter().map(|sku| {
            format!("INSERT INTO items VALUES (1, {}, 1, '{sku}', 'I', 10, 3)", item_number(sku))
        }));
        self.write(0, batch);
    }

    fn write(&self, member: u64, batch: Vec<String>) {
        match self {
            Self::Sqlite(db) => batch.iter().for_each(|statement| {
                db.execute_batch(statement).unwrap();
            }),
            Self::Mysql(shards) => {
                shards[member as usize % shards.len()].send(batch).unwrap();
            }
        }
    }

    /// Writes a redemption and what its ledger rows come to.
    pub fn keep(&self, r: &Kept<'_>, wrong: Wrong) {
        let mut batch = Vec::new();
        if wrong != Wrong::IsMissing {
            batch.push(row(r, r.id));
        }
        if wrong == Wrong::HasOneMore {
            batch.push(row(r, r.id + (1 << 60)));
        }
        let amount = if wrong == Wrong::AmountsDiffer { 9 } else { 10 };
        // (account, amount): free and held are the member's, redeemed is the mall's.
        let legs: &[(i64, i64)] = match r.state {
            "held" => &[(1, -amount), (2, amount)],
            "confirmed" => &[(1, -amount), (4, amount)],
            _ => &[],
        };
        batch.push(format!("DELETE FROM ledger WHERE redemption = x'{:032x}'", r.id));
        for other in 0..=u128::from(wrong == Wrong::ChargesNobody) {
            let seq = (r.id | other << 40) & 0xFFFF_FFFF_FFFF;
            let id = r.id | other << 60;
            for (leg, (account, amount)) in (0..).zip(legs) {
                batch.push(self.leg(seq, leg, *account, *amount, id));
            }
        }
        self.write(r.member, batch);
    }

    fn leg(&self, seq: u128, leg: u8, account: i64, amount: i64, redemption: u128) -> String {
        // Servers sort the rows by an id that is made of the rest.
        let (column, id) = match self {
            Self::Sqlite(_) => ("", String::new()),
            Self::Mysql(_) => ("id, ", format!("x'{:032x}', ", seq << 8 | u128::from(leg))),
        };
        format!(
            "INSERT INTO ledger ({column}journal, seq, leg, account, member, amount, kind, \
             redemption, at) VALUES ({id}1, {seq}, {leg}, {account}, 0, {amount}, 5, \
             x'{redemption:032x}', 0)"
        )
    }

    /// A row that nobody was told of, behind all others.
    pub fn invent_later(&self, sku: &str) {
        const LATER: Duration = Duration::from_millis(300);
        let statement = row(&Kept { id: 0, member: 7, sku, state: "confirmed" }, 1 << 60);
        match self {
            Self::Sqlite(db) => {
                let path = db.path().unwrap().to_owned();
                thread::spawn(move || {
                    thread::sleep(LATER);
                    Connection::open(path).unwrap().execute_batch(&statement).unwrap();
                });
            }
            Self::Mysql(shards) => {
                let shard = shards[0].clone();
                thread::spawn(move || {
                    thread::sleep(LATER);
                    shard.send(vec![statement]).unwrap();
                });
            }
        }
    }
}

fn row(r: &Kept<'_>, id: u128) -> String {
    let state = match r.state {
        "held" => 1,
        "confirmed" => 2,
        _ => 3,
    };
    format!(
        "REPLACE INTO redemptions VALUES (x'{id:032x}', {}, 1, {}, 1, 10, {state}, x'', 0, 0, 0, \
         0, 0)",
        r.member,
        item_number(r.sku)
    )
}

fn item_number(sku: &str) -> i64 {
    i64::from(sku.as_bytes()[0])
}
