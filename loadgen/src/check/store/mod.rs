//! The store, read by SQL of its own.
//!
//! The tables are those of `config/schema/README.md`; only columns documented there are read. The
//! statements are the same for each kind of database.

mod mysql;
mod sqlite;

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use crate::check::after::{Check, Seen};
use crate::check::view::{NO_STATE, STATES};
use crate::check::{CheckError, Checked};
use crate::work::accepted::{Finding, Findings};

/// A redemption's id as it is stored.
pub type Id = [u8; 16];

/// A row of `redemptions`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    pub member: u64,
    pub sku: Arc<str>,
    pub quantity: u32,
    pub points: u64,
    pub state: &'static str,
}

const ITEMS: &str = "SELECT i.journal, i.item, i.sku FROM items i \
                     JOIN sales s ON s.journal = i.journal AND s.sale = i.sale WHERE s.id = ?";
const REDEMPTIONS: &str =
    "SELECT id, member, journal, item, quantity, points, state FROM redemptions";
/// Accounts 1 and 2 are the member's own.
const LEDGER_SUMS: &str = "SELECT redemption, \
                           SUM(CASE WHEN account <= 2 THEN amount ELSE 0 END), SUM(amount) \
                           FROM ledger WHERE redemption IS NOT NULL GROUP BY redemption";

/// Redemptions that the ledger names and the store has not, in no sale.
const ORPHANS: &str = "SELECT DISTINCT l.redemption FROM ledger l \
                       LEFT JOIN redemptions r ON r.id = l.redemption \
                       WHERE l.redemption IS NOT NULL AND r.id IS NULL";

/// Where the database shards are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Store {
    /// A folder of files.
    Sqlite(PathBuf),
    /// A URL each.
    Mysql(Vec<String>),
}

impl FromStr for Store {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(dir) = text.strip_prefix("sqlite:") {
            return Ok(Self::Sqlite(dir.into()));
        }
        let urls: Vec<String> = text.split(',').map(|url| url.trim().to_owned()).collect();
        if urls.iter().all(|url| url.starts_with("mysql://")) {
            return Ok(Self::Mysql(urls));
        }
        // Nothing of the text: there may be a password in it.
        Err("expected sqlite:DIR, or mysql://USER@HOST:PORT/DATABASE[,mysql://…] with one URL for \
             each database shard"
            .into())
    }
}

impl Store {
    fn open(&self) -> Result<Vec<Box<dyn Shard>>, CheckError> {
        match self {
            Self::Sqlite(dir) => sqlite::open(dir),
            Self::Mysql(urls) => mysql::open(urls),
        }
    }
}

/// A row of `items`.
struct StoredItem {
    journal: u64,
    item: u32,
    sku: String,
}

/// A row of `redemptions`.
struct StoredRow {
    id: Id,
    member: u64,
    journal: u64,
    item: u32,
    quantity: u32,
    points: u64,
    state: u8,
}

/// What a redemption's rows of `ledger` add up to. Units: points.
struct LedgerSum {
    redemption: Id,
    of_member: i64,
    of_all: i64,
}

/// One database shard.
trait Shard {
    /// The items of the sale with this id.
    fn items(&mut self, sale: &str, see: &mut dyn FnMut(StoredItem)) -> Result<(), CheckError>;
    fn redemptions(&mut self, see: &mut dyn FnMut(StoredRow)) -> Result<(), CheckError>;
    fn ledger_sums(&mut self, see: &mut dyn FnMut(LedgerSum)) -> Result<(), CheckError>;
    fn orphans(&mut self, see: &mut dyn FnMut(Id)) -> Result<(), CheckError>;
}

/// Parses the text of an id.
pub fn parse_id(text: &str) -> Option<Id> {
    let hex: String = text.chars().filter(|c| *c != '-').collect();
    u128::from_str_radix(&hex, 16).ok().filter(|_| hex.len() == 32).map(u128::to_be_bytes)
}

/// The ids of a sale's redemptions that the store has.
pub fn ids_of_sale(store: &Store, sale: &str) -> Result<HashSet<Id>, CheckError> {
    Ok(rows_of_sale(store, sale)?.into_keys().collect())
}

/// The ids that the ledger names and the store has not.
pub fn orphans(store: &Store) -> Result<HashSet<Id>, CheckError> {
    let mut ids = HashSet::new();
    for shard in &mut store.open()? {
        shard.orphans(&mut |id| ids.extend([id]))?;
    }
    Ok(ids)
}

/// Compares the store with what was accepted, once it has caught up.
pub fn check(
    store: &Store,
    check: &Check<'_>,
    seen: &[Seen<'_>],
    checked: &mut Checked,
    found: &mut Findings,
) -> Result<(), CheckError> {
    let mut wanted: HashMap<Id, &Seen<'_>> = HashMap::with_capacity(seen.len());
    for s in seen {
        let Some(id) = parse_id(&s.accepted.id) else {
            let name = check.name(s.number, s.accepted);
            let text = format!("{name}: no store can have it under that id, which is no UUID");
            found.push(Finding { kind: "malformed-answer", text });
            continue;
        };
        wanted.insert(id, s);
    }
    let rows = wait_for(store, check, &wanted)?;
    checked.found_in_store = Some(wanted.keys().filter(|id| rows.contains_key(*id)).count() as u64);
    for (id, s) in &wanted {
        let name = || check.name(s.number, s.accepted);
        match rows.get(id) {
            None => {
                let text = format!("{}: accepted, and not in the store", name());
                found.push(Finding { kind: "lost", text });
            }
            Some(row) if !is_same(check, row, s) => {
                let text = format!(
                    "{}: in the store it is member {}, {} of {}, {} points, {}; over the API {}",
                    name(),
                    row.member,
                    row.quantity,
                    row.sku,
                    row.points,
                    row.state,
                    s.now.state()
                );
                found.push(Finding { kind: "store-differs", text });
            }
            Some(_) => {}
        }
    }
    for (id, row) in &rows {
        if !wanted.contains_key(id) && !check.before.stored.contains(id) {
            let text = format!(
                "redemption {:032x} of {} by member {} is in the store, and nobody was told of it",
                u128::from_be_bytes(*id),
                row.sku,
                row.member
            );
            found.push(Finding { kind: "unasked-effect", text });
        }
    }
    let orphans = orphans(store)?;
    let is_new = |id: &&Id| !check.before.orphans.contains(*id) && !rows.contains_key(*id);
    for id in orphans.iter().filter(is_new) {
        let text = format!(
            "the ledger has rows of redemption {:032x}, which is not in the store",
            u128::from_be_bytes(*id)
        );
        found.push(Finding { kind: "ledger-differs", text });
    }
    drop(rows);
    ledger_rows(store, check, &wanted, found)
}

fn is_same(check: &Check<'_>, row: &Row, s: &Seen<'_>) -> bool {
    let sku = &*check.work.items[s.accepted.item as usize].sku;
    // A hold may have ended between the two looks.
    let state = row.state == s.now.state() || (s.now.state() == "held" && row.state == "expired");
    let a = s.accepted;
    state
        && (row.member, &*row.sku, row.quantity, row.points)
            == (a.member, sku, a.quantity, a.points)
}

/// Reads until all that is wanted is there in its state and nothing more comes, or time is over.
fn wait_for(
    store: &Store,
    check: &Check<'_>,
    wanted: &HashMap<Id, &Seen<'_>>,
) -> Result<HashMap<Id, Row>, CheckError> {
    const STEP: Duration = Duration::from_millis(100);
    const STILL: u32 = 5;
    let mut left = check.options.store_wait;
    let (mut count, mut still) = (usize::MAX, 0);
    loop {
        let rows = rows_of_sale(store, &check.work.sale)?;
        let is_there =
            |(id, s): (&Id, &&Seen<'_>)| rows.get(id).is_some_and(|row| is_same(check, row, s));
        // What nobody was told of may come behind what is wanted.
        still = if rows.len() == count { still + 1 } else { 0 };
        count = rows.len();
        if left.is_zero() || (still >= STILL && wanted.iter().all(is_there)) {
            return Ok(rows);
        }
        std::thread::sleep(STEP.min(left));
        left = left.saturating_sub(STEP);
    }
}

/// All of a sale's redemptions that the store has.
pub fn rows_of_sale(store: &Store, sale: &str) -> Result<HashMap<Id, Row>, CheckError> {
    let mut shards = store.open()?;
    // Sales and items are written to one shard only, by the control partition.
    let mut skus: HashMap<(u64, u32), Arc<str>> = HashMap::new();
    for shard in &mut shards {
        shard.items(sale, &mut |item| {
            drop(skus.insert((item.journal, item.item), item.sku.into()));
        })?;
    }
    let mut rows = HashMap::new();
    for shard in &mut shards {
        shard.redemptions(&mut |row| {
            let Some(sku) = skus.get(&(row.journal, row.item)) else { return };
            let state = usize::from(row.state).checked_sub(1).and_then(|at| STATES.get(at));
            let state = state.unwrap_or(&NO_STATE);
            let StoredRow { id, member, quantity, points, .. } = row;
            rows.insert(id, Row { member, sku: sku.clone(), quantity, points, state });
        })?;
    }
    Ok(rows)
}

/// The ledger's rows of each accepted redemption say what it cost: on the member's accounts in
/// sum, minus the points of a confirmed one, and nothing of a released one.
fn ledger_rows(
    store: &Store,
    check: &Check<'_>,
    wanted: &HashMap<Id, &Seen<'_>>,
    found: &mut Findings,
) -> Result<(), CheckError> {
    let mut sums: HashMap<Id, (i64, i64)> = HashMap::new();
    for shard in &mut store.open()? {
        shard.ledger_sums(&mut |part| {
            if !wanted.contains_key(&part.redemption) {
                return;
            }
            let sum = sums.entry(part.redemption).or_default();
            *sum = (sum.0 + part.of_member, sum.1 + part.of_all);
        })?;
    }
    for (id, s) in wanted {
        let (member, all) = sums.get(id).copied().unwrap_or_default();
        let cost = if s.now.state() == "confirmed" { s.now.points.cast_signed() } else { 0 };
        if member != -cost || all != 0 {
            let text = format!(
                "{}: its ledger rows move {member} points of the member (expected {}), and sum to \
                 {all} in all",
                check.name(s.number, s.accepted),
                -cost
            );
            found.push(Finding { kind: "ledger-differs", text });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_parsed_from_their_text() {
        let id = parse_id("0192f3a0-0000-8001-8000-0000000000ff").unwrap();
        assert_eq!((id[0], id[15]), (0x01, 0xff));
        assert!(parse_id("0192f3a0").is_none() && parse_id("not an id").is_none());
    }

    #[test]
    fn a_store_is_a_folder_or_a_url_for_each_database_shard() {
        assert_eq!("sqlite:data/db".parse(), Ok(Store::Sqlite("data/db".into())));
        let urls = ["mysql://u@h:1/a".to_owned(), "mysql://u@h:2/a".to_owned()];
        assert_eq!(urls.join(",").parse(), Ok(Store::Mysql(urls.to_vec())));
        for wrong in ["", "data/db", "mysql://u:secret@h:1/a,other"] {
            let error = wrong.parse::<Store>().unwrap_err();
            assert!(!error.contains("secret"), "{error}");
        }
    }
}
