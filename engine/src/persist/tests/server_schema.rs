//! The schema on real servers: reads use their indexes, months prune, migrations go on where they
//! were interrupted, and `config/schema/README.md` says what is so.

use std::time::Duration;

use super::backends::Rival;
use super::stack_servers::{Flavour, shared};
use super::*;
use crate::persist::mysql::{self, Month, MySqlReader};
use crate::persist::store::{StatementCursor, StoreReader as _};
use crate::units::MemberId;

const README: &str = include_str!("../../../../config/schema/README.md");

/// A rival on a database shard that holds a few thousand records, with fresh statistics.
fn filled(flavour: Flavour, seed: u64) -> (Bench, Rival) {
    let mut bench = Bench::with(Databases::on(shared(flavour), layout()), seed, 6_000);
    bench.catch_up();
    let mut rival = Rival::admin(shared(flavour));
    rival.rows(&format!("USE {}", bench.databases.name(shard(0))));
    rival.rows("ANALYZE TABLE redemptions, ledger, accounts");
    (bench, rival)
}

/// The first row of a statement's plan.
fn plan(flavour: Flavour, rival: &mut Rival, sql: &str) -> Vec<(String, String)> {
    let explain = match flavour {
        Flavour::MySql => "EXPLAIN FORMAT=TRADITIONAL",
        Flavour::MariaDb => "EXPLAIN PARTITIONS",
    };
    rival.rows(&format!("{explain} {sql}")).swap_remove(0)
}

fn column<'p>(plan: &'p [(String, String)], name: &str) -> &'p str {
    &plan.iter().find(|(n, _)| n == name).unwrap_or_else(|| panic!("no {name}: {plan:?}")).1
}

/// The statements themselves, with values in place of their parameters.
fn every_read_of_the_api_uses_its_index_and_sorts_nothing(flavour: Flavour) {
    let (_bench, mut rival) = filled(flavour, 81);
    let some = "SELECT member, CONCAT('0x', HEX(id)), CONCAT('0x', HEX(`key`)), journal, item
                FROM redemptions LIMIT 1";
    let row: Vec<String> = rival.rows(some).swap_remove(0).into_iter().map(|(_, c)| c).collect();
    let [member, id, key, journal, item] = [0, 1, 2, 3, 4].map(|i| row[i].as_str());
    let end = "0xffffffffffffffffffffffffffffffff";
    for n in 0..100 {
        rival.rows(&format!(
            "INSERT INTO rewinds (journal, `partition`, to_seq, reason, is_done)
             VALUES (1, 1, {n}, '', {})",
            u8::from(n < 90)
        ));
        rival.rows(&format!(
            "INSERT INTO dead_letters (journal, `partition`, incarnation, seq, slot, at, state,
             tries, reason, record) VALUES (1, 1, 1, {n}, 1, 1, {}, 3, '', '')",
            if n < 90 { 3 } else { 1 + n % 2 }
        ));
    }
    rival.rows("ANALYZE TABLE rewinds, dead_letters");
    for &(name, sql, index) in mysql::READS {
        let values: &[&str] = match name {
            "redemption" => &[id],
            "redemptions_of" | "statement" => &[member, end, "20"],
            "redemption_by_key" => &[member, key],
            "redemptions_of_item" => &[journal, item, end, "20"],
            "account" => &[member],
            "rewinds" | "watermarks" | "slot_claims" => &[],
            "letters" => &["1", "0", "20"],
            other => panic!("{other} is not explained here"),
        };
        let sql = values.iter().fold(sql.to_owned(), |sql, value| sql.replacen('?', value, 1));
        assert!(!sql.contains('?'), "{sql}");
        let plan = plan(flavour, &mut rival, &sql);
        let (kind, extra) = (column(&plan, "type"), column(&plan, "Extra"));
        // Two have few rows, all of which are wanted, in the order of their keys.
        let is_whole = ["watermarks", "slot_claims"].contains(&name);
        let kinds: &[&str] = if is_whole { &["index"] } else { &["const", "ref", "range"] };
        assert!(kinds.contains(&kind), "{name}: {plan:?}");
        assert!(!extra.contains("filesort") && !extra.contains("temporary"), "{name}: {plan:?}");
        assert_eq!(column(&plan, "key"), index, "{name}: {plan:?}");
    }
    // Every index of the tables is one of these, but for those that make rows unique.
    let sql = "SELECT DISTINCT INDEX_NAME FROM information_schema.STATISTICS
               WHERE TABLE_SCHEMA = DATABASE() AND NON_UNIQUE = 1 ORDER BY INDEX_NAME";
    let made: Vec<String> = rival.rows(sql).into_iter().map(|row| row[0].1.clone()).collect();
    let read = mysql::READS.iter().map(|(_, _, index)| (*index).to_owned());
    let read: std::collections::BTreeSet<_> = read.filter(|index| index != "PRIMARY").collect();
    assert_eq!(made, read.into_iter().collect::<Vec<_>>());
}

fn a_months_rows_are_found_in_its_partition_alone(flavour: Flavour) {
    let (bench, mut rival) = filled(flavour, 82);
    let (from, to) = (Month::parse("2023-12").unwrap(), Month::parse("2024-01").unwrap());
    for table in mysql::PARTITIONED {
        let (from, to) = (from.first_id(), to.first_id());
        let sql = format!("SELECT count(*) FROM {table} WHERE id >= {from} AND id < {to}");
        let plan = plan(flavour, &mut rival, &sql);
        assert_eq!(column(&plan, "partitions"), "p202312", "{plan:?}");
        let held = format!("SELECT count(*) FROM {table} PARTITION (p202311)");
        assert!(bench.figure(shard(0), &held) > 100, "the rows are of November");
        let held = format!("SELECT count(*) FROM {table} PARTITION (p_future)");
        assert_eq!(bench.figure(shard(0), &held), 0);
    }
}

/// A record of a later month: its partition and two ahead are there when it is stored.
fn persist_makes_the_months_ahead(flavour: Flavour) {
    let mut bench = Bench::with(Databases::on(shared(flavour), layout()), 83, 200);
    bench.catch_up();
    bench.generator.skip_ms(100 * 24 * 3_600_000);
    bench.generator.write(200);
    bench.catch_up();
    bench.assert_complete();
    let names = "SELECT GROUP_CONCAT(PARTITION_NAME ORDER BY PARTITION_ORDINAL_POSITION)
                 FROM information_schema.PARTITIONS
                 WHERE TABLE_SCHEMA = DATABASE() AND TABLE_NAME = 'ledger'";
    let expected = "p202311,p202312,p202401,p202402,p202403,p202404,p_future";
    assert_eq!(bench.databases.text(shard(0), names), expected);
    let future = "SELECT count(*) FROM ledger PARTITION (p_future)";
    assert_eq!(bench.figure(shard(0), future), 0);
    assert!(bench.figure(shard(0), "SELECT count(*) FROM ledger PARTITION (p202402)") > 0);
}

/// As after a kill in the midst of the first file: some tables are there, and no version.
fn a_migration_that_was_interrupted_goes_on(flavour: Flavour) {
    let bench = Bench::with(Databases::on(shared(flavour), layout()), 84, 0);
    let from = Month::parse("2023-11").unwrap();
    for table in ["ledger", "slots", "schema_versions"] {
        bench.execute(shard(1), &format!("DROP TABLE {table}"));
    }
    let endpoint = bench.databases.endpoint(shard(1));
    let opened = MySqlReader::open(endpoint.clone(), shard(1), layout()).unwrap();
    let error = opened.account(MemberId::new(1)).unwrap_err();
    assert!(matches!(error, StoreError::SchemaTooOld { found: 0, .. }), "{error}");
    assert_eq!(
        mysql::migrate(&endpoint, shard(1), layout(), layout(), (from, from)).unwrap(),
        ["0001_tables", "0002_holdings", "0003_slot_claims", "0004_waiting", "0005_archived"]
    );
    // And between two statements, of which one makes an index.
    bench.execute(shard(1), "DELETE FROM schema_versions WHERE version >= 4");
    bench.execute(shard(1), "DROP INDEX dead_letters_waiting ON dead_letters");
    assert_eq!(
        mysql::migrate(&endpoint, shard(1), layout(), layout(), (from, from)).unwrap(),
        ["0004_waiting", "0005_archived"]
    );
    assert_eq!(
        mysql::migrate(&endpoint, shard(1), layout(), layout(), (from, from)).unwrap(),
        [""; 0]
    );
    assert!(opened.account(MemberId::new(1)).unwrap().is_none());
    bench.execute(shard(1), "INSERT INTO schema_versions VALUES (99, 'from the future')");
    let error = mysql::migrate(&endpoint, shard(1), layout(), layout(), (from, from)).unwrap_err();
    assert!(matches!(error, StoreError::SchemaTooNew { found: 99, .. }), "{error}");
    let other = bench.databases.endpoint(shard(2));
    let error = mysql::migrate(&other, shard(3), layout(), layout(), (from, from)).unwrap_err();
    assert!(error.to_string().contains("2 of 4"), "{error}");
}

/// Pages of any size give the same rows as one read of all, in the same order.
fn pages_of_a_member_and_an_item_leave_nothing_out_and_repeat_nothing(flavour: Flavour) {
    let (bench, _) = filled(flavour, 85);
    let member = MemberId::new(7);
    let home = layout().shard_of_slot(crate::units::Slot::of(member));
    let reader = bench.databases.reader(home);
    let all = reader.redemptions_of(member, None, u16::MAX).unwrap();
    assert!(all.len() > 10 && all.is_sorted_by(|a, b| a.id > b.id), "{}", all.len());
    let entries = reader.statement(member, None, u16::MAX).unwrap();
    assert!(entries.len() > all.len());
    for size in [1, 2, 7, 100] {
        let (mut pages, mut before) = (Vec::new(), None);
        loop {
            let page = reader.redemptions_of(member, before, size).unwrap();
            let Some(last) = page.last() else { break };
            before = Some(last.id);
            pages.extend(page);
        }
        assert_eq!(pages, all, "pages of {size}");
        let (mut pages, mut before) = (Vec::new(), None);
        loop {
            let page = reader.statement(member, before, size).unwrap();
            let Some(last) = page.last() else { break };
            before = Some(StatementCursor::of(last));
            pages.extend(page);
        }
        assert_eq!(pages, entries, "statement pages of {size}");
    }
    let journal = all[0].journal;
    let of_item = reader.redemptions_of_item(journal, all[0].item, None, u16::MAX).unwrap();
    assert!(of_item.contains(&all[0]) && of_item.is_sorted_by(|a, b| a.id > b.id));
    let by_key = reader.redemption_by_key(member, all[3].key).unwrap().unwrap();
    assert_eq!(by_key.id, all[3].id);
}

/// The questions of the README, each with whether an answer of no rows is the good one.
fn every_question_of_the_readme_is_answered_by_plain_sql(flavour: Flavour) {
    let (bench, mut rival) = filled(flavour, 86);
    let blocks = README.split("```mysql\n").skip(1);
    let questions: Vec<&str> = blocks.map(|b| b.split("```").next().unwrap()).collect();
    assert_eq!(questions.len(), 10);
    let home = layout().shard_of_slot(crate::units::Slot::of(MemberId::new(42)));
    for (number, question) in (1..).zip(questions) {
        let shard = if number <= 2 { home } else { shard(0) };
        rival.rows(&format!("USE {}", bench.databases.name(shard)));
        let rows = rival.rows(question.trim().trim_end_matches(';')).len();
        let is_check = [3, 4].contains(&number);
        assert_eq!(rows == 0, is_check, "question {number} gave {rows} rows");
    }
}

fn every_table_and_column_is_explained(flavour: Flavour) {
    let bench = Bench::with(Databases::on(shared(flavour), layout()), 87, 0);
    let mut rival = Rival::admin(shared(flavour));
    let sql = format!(
        "SELECT c.TABLE_NAME AS t, c.COLUMN_NAME AS c FROM information_schema.COLUMNS c
         JOIN information_schema.TABLES t USING (TABLE_SCHEMA, TABLE_NAME)
         WHERE c.TABLE_SCHEMA = '{}' AND t.TABLE_TYPE = 'BASE TABLE'
         AND c.TABLE_NAME NOT IN ('identity', 'schema_versions')",
        bench.databases.name(shard(0))
    );
    let rows = rival.rows(&sql);
    assert!(rows.len() > 80);
    for row in rows {
        let (table, name) = (&row[0].1, &row[1].1);
        assert!(README.contains(&format!("**{table}**")), "{table}");
        let is_plain = matches!(name.as_str(), "id" | "one" | "partition" | "incarnation" | "name");
        assert!(is_plain || README.contains(&format!("`{name}`")), "{table}.{name}");
    }
}

/// With the rights that the README gives it, the writing user can do its work and no harm.
fn a_user_with_the_rights_of_the_readme_can_persist_and_cannot_change_the_ledger(flavour: Flavour) {
    let server = shared(flavour);
    let databases = Databases::on(server, layout());
    let names: Vec<String> = layout().shards().map(|s| databases.name(s)).collect();
    let mut admin = Rival::admin(server);
    let user = format!("w{}", names[0].trim_start_matches("onrush_"));
    admin.rows(&format!("CREATE USER '{user}'@'%' IDENTIFIED BY 'secret'"));
    let grants = README.split("```sql-grants\n").nth(1).unwrap().split("```").next().unwrap();
    for name in &names {
        for grant in grants.split(";\n").filter(|g| !g.trim().is_empty()) {
            admin.rows(
                &grant.replace("mall_00", name).replace("'onrush'@'%'", &format!("'{user}'@'%'")),
            );
        }
    }
    let url = format!("mysql://{user}@127.0.0.1:{}/{}", server.port("db-0"), names[0]);
    let patience = Duration::from_secs(30);
    let endpoint = mysql::Endpoint::new(&url, Some("secret"), patience, patience).unwrap();
    let mut generator = Generator::new(88, 60);
    generator.write(500);
    let store = mysql::MySqlStore::new(endpoint, shard(0), layout()).unwrap();
    let status = Arc::new(PersistStatus::new(layout()));
    let settings = WriterSettings::default();
    let mut writer = embedded::writer(store, generator.frames.clone(), settings, &status).unwrap();
    for now in 0..100 {
        writer.step(now * 10_000, true);
    }
    assert!(writer.has_stored(writer.head_seq()), "{:?}", status.shard(shard(0)).last_error());
    let mut harm = Rival::at(&url, Some("secret".into()));
    for sql in ["UPDATE ledger SET amount = 0", "DELETE FROM ledger", "DROP TABLE accounts"] {
        let error = harm.try_rows(sql).unwrap_err().to_string();
        assert!(error.contains("denied"), "{sql}: {error}");
    }
}

on_every_server! {
    every_read_of_the_api_uses_its_index_and_sorts_nothing,
    a_months_rows_are_found_in_its_partition_alone,
    persist_makes_the_months_ahead,
    a_migration_that_was_interrupted_goes_on,
    pages_of_a_member_and_an_item_leave_nothing_out_and_repeat_nothing,
    every_question_of_the_readme_is_answered_by_plain_sql,
    every_table_and_column_is_explained,
    a_user_with_the_rights_of_the_readme_can_persist_and_cannot_change_the_ledger,
}
