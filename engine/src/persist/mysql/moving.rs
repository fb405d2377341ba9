//! The rows of some partitions, as they are carried from one database to another: read in the
//! order of their keys, written, compared, deleted. Nothing here knows what a row means, but whose
//! it is: a partition is the hash of a member, which SQL cannot compute, so tables are read page by
//! page and what belongs to others is passed over.

use mysql_async::{Row, Value};

use super::bulk::Bulk;
use super::link::{Session, cell};
use crate::persist::store::StoreError;
use crate::ship::partition::{Partition, SLOTS_PER_PARTITION};
use crate::units::{MemberId, Slot};

/// Rows of a table that are read at a time.
const PAGE: usize = 4096;

/// Some partitions.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Partitions(u64);

impl FromIterator<Partition> for Partitions {
    fn from_iter<I: IntoIterator<Item = Partition>>(all: I) -> Self {
        Self(all.into_iter().fold(0, |bits, p| bits | 1 << p.index()))
    }
}

impl Partitions {
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
    pub fn has(self, partition: Partition) -> bool {
        self.0 >> partition.index() & 1 == 1
    }
    pub fn iter(self) -> impl Iterator<Item = Partition> {
        Partition::all().filter(move |p| self.has(*p))
    }
    /// As SQL lists them.
    fn list(self) -> String {
        self.iter().map(|p| p.get().to_string()).collect::<Vec<_>>().join(", ")
    }
}

/// A row, cell by cell.
pub type Cells = Vec<Value>;

/// A table whose rows belong to members, and are too many to be read at once.
pub struct Table {
    pub name: &'static str,
    /// Its primary key's columns, by name and place.
    keys: &'static [(&'static str, usize)],
    /// The place of the member; rows without one stay where they are.
    member: usize,
    insert: Bulk,
    delete: Bulk,
}

macro_rules! table {
    ($name:literal, $keys:expr, $member:literal, $row:literal, $columns:literal, $key:literal) => {
        Table {
            name: $name,
            keys: $keys,
            member: $member,
            insert: Bulk {
                head: concat!("INSERT INTO ", $name, " VALUES "),
                row: $row,
                tail: "",
                columns: $columns,
                row_bytes: 1_000,
            },
            delete: Bulk {
                head: concat!("DELETE FROM ", $name, " WHERE ", $key, " IN ("),
                row: if $keys.len() == 1 { "?" } else { "(?, ?)" },
                tail: ")",
                columns: $keys.len(),
                row_bytes: 40,
            },
        }
    };
}

/// In the order in which they are copied.
pub static TABLES: [Table; 4] = [
    table!("redemptions", &[("id", 0)], 1, "(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", 13, "id"),
    table!("ledger", &[("id", 0)], 5, "(?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", 10, "id"),
    table!("accounts", &[("member", 0)], 0, "(?, ?, ?, ?, ?)", 5, "member"),
    table!(
        "admin_changes",
        &[("journal", 0), ("seq", 1)],
        7,
        "(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        12,
        "(journal, seq)"
    ),
];

/// The place in `redemptions` that stock is counted by.
pub mod redemption {
    pub const JOURNAL: usize = 2;
    pub const ITEM: usize = 3;
    pub const QUANTITY: usize = 4;
    pub const STATE: usize = 6;
    pub const UNITS_BACK: usize = 11;
}

/// A page of a table: the rows of some partitions, and where the next page begins.
#[derive(Default)]
pub struct Page {
    pub rows: Vec<Cells>,
    /// The key behind which it begins; `None`: the table ends here.
    pub next: Option<Vec<Value>>,
}

impl Table {
    fn is_of(&self, row: &Cells, partitions: Partitions) -> Result<bool, StoreError> {
        let member: Option<u64> = mysql_async::from_value_opt(row[self.member].clone())
            .map_err(|e| StoreError::Corrupt(format!("{}: {e}", self.name)))?;
        let partition = member.and_then(|m| Partition::of(Slot::of(MemberId::new(m))));
        Ok(partition.is_some_and(|p| partitions.has(p)))
    }

    /// A row's primary key.
    pub fn key_of(&self, row: &Cells) -> Vec<Value> {
        self.keys.iter().map(|(_, place)| row[*place].clone()).collect()
    }

    /// Reads the next page that has rows of these partitions, or the last one.
    pub async fn read(
        &self,
        session: &mut Session,
        mut after: Option<Vec<Value>>,
        partitions: Partitions,
    ) -> Result<Page, StoreError> {
        loop {
            let rows: Vec<Cells> = self.page(session, after.as_deref()).await?;
            let is_last = rows.len() < PAGE;
            let next = rows.last().filter(|_| !is_last).map(|row| self.key_of(row));
            let mut own = Vec::new();
            for row in rows {
                if self.is_of(&row, partitions)? {
                    own.push(row);
                }
            }
            if !own.is_empty() || is_last {
                return Ok(Page { rows: own, next });
            }
            after = next;
        }
    }

    async fn page(
        &self,
        session: &mut Session,
        after: Option<&[Value]>,
    ) -> Result<Vec<Cells>, StoreError> {
        let names: Vec<_> = self.keys.iter().map(|(name, _)| *name).collect();
        let (name, order) = (self.name, names.join(", "));
        // Spelled out for two columns: a comparison of rows would not begin within the index.
        let (clause, values) = match (after, &names[..]) {
            (Some([key]), [name]) => (format!("WHERE {name} > ?"), vec![key.clone()]),
            (Some([first, second]), [a, b]) => (
                format!("WHERE {a} > ? OR ({a} = ? AND {b} > ?)"),
                vec![first.clone(), first.clone(), second.clone()],
            ),
            _ => (String::new(), Vec::new()),
        };
        let sql = format!(
            "SELECT * FROM {name} FORCE INDEX (PRIMARY) {clause} ORDER BY {order} LIMIT {PAGE}"
        );
        let rows = session.rows(&sql, values).await?;
        Ok(rows.into_iter().map(Row::unwrap).collect())
    }

    /// Writes rows that are not there yet.
    pub async fn insert(
        &'static self,
        session: &mut Session,
        rows: &[Cells],
    ) -> Result<(), StoreError> {
        session.write(&self.insert, rows, |row, out| out.extend_from_slice(row)).await
    }

    /// Deletes rows by their keys.
    pub async fn delete(
        &'static self,
        session: &mut Session,
        rows: &[Cells],
    ) -> Result<(), StoreError> {
        session.write(&self.delete, rows, |row, out| out.extend(self.key_of(row))).await
    }

    /// A key as `arrivals` keeps it.
    pub fn key_bytes(key: &[Value]) -> Vec<u8> {
        let bytes = |value: &Value| match value {
            Value::Bytes(bytes) => bytes.clone(),
            Value::UInt(n) => n.to_be_bytes().to_vec(),
            Value::Int(n) => n.to_be_bytes().to_vec(),
            _ => Vec::new(),
        };
        key.iter().flat_map(bytes).collect()
    }

    /// The key that it was; `None`: the table's beginning.
    pub fn key_from(&self, bytes: &[u8]) -> Option<Vec<Value>> {
        let number = |part: &[u8]| part.try_into().ok().map(u64::from_be_bytes).map(Value::UInt);
        match self.keys {
            _ if bytes.is_empty() => None,
            [("id", _)] => Some(vec![Value::Bytes(bytes.to_vec())]),
            _ => bytes.chunks(8).map(number).collect(),
        }
    }
}

/// What belongs to partitions besides their members' rows, and is little.
pub struct Rest {
    pub name: &'static str,
    columns: &'static str,
    /// The rows of some partitions.
    clause: fn(Partitions) -> String,
    insert: Bulk,
}

macro_rules! rest {
    ($name:literal, $columns:literal, $clause:expr, $row:literal, $count:literal) => {
        Rest {
            name: $name,
            columns: $columns,
            clause: $clause,
            insert: Bulk {
                head: concat!("INSERT INTO ", $name, " (", $columns, ") VALUES "),
                row: $row,
                tail: "",
                columns: $count,
                row_bytes: 70_000,
            },
        }
    };
}

fn by_partition(partitions: Partitions) -> String {
    format!("`partition` IN ({})", partitions.list())
}

fn by_slot(partitions: Partitions) -> String {
    let slots = |p: Partition| {
        if p == Partition::CONTROL {
            return format!("slot = {}", u16::MAX);
        }
        let first = p.index() * SLOTS_PER_PARTITION;
        format!("slot BETWEEN {first} AND {}", first + SLOTS_PER_PARTITION - 1)
    };
    format!("({})", partitions.iter().map(slots).collect::<Vec<_>>().join(" OR "))
}

fn all(_: Partitions) -> String {
    "TRUE".into()
}

/// Letters keep their order, and get new numbers.
pub static RESTS: [Rest; 4] = [
    rest!(
        "watermarks",
        "journal, `partition`, incarnation, since_seq, seq, at",
        by_partition,
        "(?, ?, ?, ?, ?, ?)",
        6
    ),
    rest!("slots", "journal, slot, records, checksum", by_slot, "(?, ?, ?, ?)", 4),
    rest!("log_offsets", "topic, `partition`, next_offset", by_partition, "(?, ?, ?)", 3),
    rest!(
        "dead_letters",
        "journal, `partition`, incarnation, seq, slot, member, at, state, tries, reason, record",
        by_partition,
        "(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        11
    ),
];

/// What every database shard has a copy of.
pub static COPIES: [Rest; 2] = [
    rest!(
        "sales",
        "journal, sale, id, name, state, defined_at, changed_at, definition",
        all,
        "(?, ?, ?, ?, ?, ?, ?, ?)",
        8
    ),
    rest!(
        "items",
        "journal, item, sale, sku, name, points, limit_per_member",
        all,
        "(?, ?, ?, ?, ?, ?, ?)",
        7
    ),
];

impl Rest {
    pub async fn read(
        &self,
        session: &mut Session,
        partitions: Partitions,
    ) -> Result<Vec<Cells>, StoreError> {
        let Self { name, columns, clause, .. } = self;
        // By its first columns, which are unique, but for letters: those by their arrival.
        let order = if *name == "dead_letters" { "id" } else { "1, 2" };
        let clause = clause(partitions);
        let sql = format!("SELECT {columns} FROM {name} WHERE {clause} ORDER BY {order}");
        Ok(session.rows(&sql, ()).await?.into_iter().map(Row::unwrap).collect())
    }

    pub async fn insert(
        &'static self,
        session: &mut Session,
        rows: &[Cells],
    ) -> Result<(), StoreError> {
        session.write(&self.insert, rows, |row, out| out.extend_from_slice(row)).await
    }

    pub async fn delete(
        &self,
        session: &mut Session,
        partitions: Partitions,
    ) -> Result<(), StoreError> {
        let Self { name, clause, .. } = self;
        session.query(&format!("DELETE FROM {name} WHERE {}", clause(partitions))).await
    }
}

/// How far a copy has come: its key, and whether it is done; under a lock until the transaction
/// ends.
pub async fn progress(
    session: &mut Session,
    name: &str,
) -> Result<Option<(Vec<u8>, bool)>, StoreError> {
    let sql = "SELECT done_key, is_done FROM arrivals WHERE name = ? FOR UPDATE";
    let rows = session.rows(sql, (name,)).await?;
    let row = rows.first().map(|row| Ok((cell(row, 0)?, cell::<u8>(row, 1)? != 0)));
    row.transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_comes_back_from_its_bytes() {
        let keys: [Vec<Value>; 4] = [
            vec![Value::Bytes(vec![7; 16])],
            vec![Value::Bytes(vec![9; 16])],
            vec![Value::UInt(u64::MAX - 3)],
            vec![Value::UInt(5), Value::UInt(1 << 40)],
        ];
        for (table, key) in TABLES.iter().zip(keys) {
            assert_eq!(table.key_from(&Table::key_bytes(&key)), Some(key), "{}", table.name);
            assert_eq!(table.key_from(&[]), None);
        }
    }

    #[test]
    fn partitions_are_named_by_numbers_and_by_slots() {
        let some: Partitions = [1, 3].into_iter().filter_map(Partition::new).collect();
        assert_eq!(by_partition(some), "`partition` IN (1, 3)");
        assert_eq!(by_slot(some), "(slot BETWEEN 128 AND 255 OR slot BETWEEN 384 AND 511)");
        let control: Partitions = [Partition::CONTROL].into_iter().collect();
        assert_eq!(by_slot(control), "(slot = 65535)");
    }
}
