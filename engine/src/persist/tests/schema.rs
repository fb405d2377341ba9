//! `config/schema/README.md` says what is so: each of its questions is asked of real files, and
//! each table and column stands there.

use super::*;

const README: &str = include_str!("../../../../config/schema/README.md");

/// The questions, with the text before each, and the folder they are asked in.
fn questions(folder: &Path) -> Vec<String> {
    let readme = README.replace("data/db", folder.to_str().unwrap());
    readme
        .split("```sql\n")
        .skip(1)
        .map(|block| block.split("```").next().unwrap().to_owned())
        .collect()
}

#[test]
fn every_question_of_the_readme_is_answered_by_plain_sql() {
    let mut bench = Bench::new(On::Sqlite, 61, 4_000);
    bench.catch_up();
    bench.writers.clear();
    let questions = questions(bench.path());
    assert_eq!(questions.len(), 11, "one that attaches, and ten");
    // Member 42's own shard, as the first; the others are attached under the others' names.
    let home = layout().shard_of_slot(crate::units::Slot::of(crate::units::MemberId::new(42)));
    for (number, question) in questions.iter().enumerate().skip(1) {
        let first = if number <= 2 { home } else { shard(0) };
        let path = crate::persist::sqlite::path_of(bench.path(), first);
        let connection = rusqlite::Connection::open(path).unwrap();
        connection.execute_batch(&questions[0]).unwrap();
        let mut statement = connection.prepare(question).unwrap();
        let rows = statement.query_map([], |_| Ok(())).unwrap().map(Result::unwrap).count();
        let is_check = [3, 4].contains(&number);
        assert_eq!(rows == 0, is_check, "question {number} gave {rows} rows");
    }
}

#[test]
fn every_read_that_comes_again_uses_its_index_and_there_is_no_other() {
    let bench = Bench::new(On::Sqlite, 62, 10);
    let path = crate::persist::sqlite::path_of(bench.path(), shard(0));
    let connection = rusqlite::Connection::open(path).unwrap();
    let reads = [
        (
            "SELECT * FROM redemptions WHERE member = 1 AND id < x'ff' ORDER BY id DESC LIMIT 9",
            "redemptions_by_member",
        ),
        (
            "SELECT * FROM redemptions WHERE journal = 1 AND item = 2 ORDER BY id",
            "redemptions_by_item",
        ),
        (
            "SELECT * FROM ledger WHERE member = 1 AND account <= 2 AND at <= 9
             AND (at, journal, seq, leg) < (9, 1, 1, 1)
             ORDER BY at DESC, journal DESC, seq DESC, leg DESC LIMIT 9",
            "ledger_by_member",
        ),
        (
            "SELECT journal, partition, to_seq FROM rewinds WHERE is_done = 0 ORDER BY id",
            "rewinds_open",
        ),
        (
            "SELECT id, record FROM dead_letters WHERE state <> 3 AND id > 1 ORDER BY id LIMIT 9",
            "dead_letters_waiting",
        ),
    ];
    for (sql, index) in reads {
        let mut statement = connection.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
        let plan: Vec<String> =
            statement.query_map([], |r| r.get(3)).unwrap().map(Result::unwrap).collect();
        let plan = plan.join("; ");
        assert!(plan.contains(index) && !plan.contains("TEMP B-TREE"), "{sql}: {plan}");
    }
    // Every write pays for every index. One that makes rows unique is there for that.
    let sql = "SELECT i.name FROM sqlite_schema t, pragma_index_list(t.name) i
               WHERE t.type = 'table' AND i.\"unique\" = 0";
    let mut statement = connection.prepare(sql).unwrap();
    let made = statement.query_map([], |r| r.get::<_, String>(0)).unwrap().map(Result::unwrap);
    for index in made {
        assert!(reads.iter().any(|(_, read)| *read == index), "nothing reads by {index}");
    }
}

#[test]
fn every_table_and_column_is_explained() {
    let bench = Bench::new(On::Sqlite, 63, 0);
    let path = crate::persist::sqlite::path_of(bench.path(), shard(0));
    let connection = rusqlite::Connection::open(path).unwrap();
    let sql = "SELECT t.name, c.name FROM sqlite_schema t, pragma_table_info(t.name) c
               WHERE t.type = 'table' AND t.name NOT IN ('identity', 'schema_versions')";
    let mut statement = connection.prepare(sql).unwrap();
    let columns = statement.query_map([], |r| Ok((r.get(0)?, r.get(1)?))).unwrap();
    let mut tables: Vec<String> = Vec::new();
    for (table, column) in columns.map(Result::<(String, String), _>::unwrap) {
        assert!(README.contains(&format!("**{table}**")), "{table}");
        let is_said = README.contains(&format!("`{column}`"));
        // Numbers of rows that nobody else names, and what every record has.
        let is_plain = matches!(column.as_str(), "id" | "partition" | "incarnation" | "name");
        assert!(is_said || is_plain, "{table}.{column}");
        tables.push(table);
    }
    tables.dedup();
    assert_eq!(tables.len(), 16, "{tables:?}");
}

#[test]
fn ledger_rows_are_never_changed_or_deleted() {
    let mut bench = Bench::new(On::Sqlite, 64, 50);
    bench.catch_up();
    let path = crate::persist::sqlite::path_of(bench.path(), shard(0));
    let connection = rusqlite::Connection::open(path).unwrap();
    for sql in ["UPDATE ledger SET amount = 0", "DELETE FROM ledger"] {
        let error = connection.execute(sql, []).unwrap_err().to_string();
        assert!(error.contains("never"), "{error}");
    }
}
