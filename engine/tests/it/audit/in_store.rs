//! Database shards that do not say what the journal says.

use std::path::Path;

use onrush::audit::finding::{Check, Where};
use onrush::cluster::map::SlotSet;
use onrush::kernel::record::{CONTROL, Record, SlotsClaimed};
use onrush::persist::sqlite::path_of;
use onrush::ship::partition::{DatabaseShard, Layout};
use onrush::units::{ItemIndex, MemberId, NodeTime, RedemptionId, Seq, Slot};
use rusqlite::Connection;

use super::world::Line;
use super::{assert_found, assert_passes, folder, right};

/// Whom the tampering is done to: a member of database shard 1, and what is that member's.
struct Victim {
    member: MemberId,
    redemption: RedemptionId,
    item: ItemIndex,
    /// The record that began the redemption.
    seq: Seq,
}

pub(super) const SHARD: u8 = 1;

fn victim() -> Victim {
    let layout = Layout::new(folder::DATABASES).unwrap();
    let lines = &right().lines;
    let found = lines.iter().enumerate().find_map(|(at, line)| match line.record() {
        Record::Redeemed(r) => {
            let is_there = layout.shard_of_slot(Slot::of(r.member)).get() == SHARD;
            let seq = Seq::new(at as u64 + 1);
            is_there.then_some(Victim { member: r.member, redemption: r.id, item: r.item, seq })
        }
        _ => None,
    });
    found.unwrap()
}

fn open(data: &Path, shard: u8) -> Connection {
    let connection =
        Connection::open(path_of(&data.join("db"), DatabaseShard::new(shard))).unwrap();
    connection
        .execute_batch(
            "PRAGMA ignore_check_constraints = ON;
             DROP TRIGGER ledger_is_never_changed; DROP TRIGGER ledger_is_never_deleted;",
        )
        .unwrap();
    connection
}

/// Runs statements on database shard 1. `$member`, `$id`, `$item`, `$seq`: the victim's.
fn tamper(data: &Path, sql: &str) {
    let sql = filled_in(sql);
    let connection = open(data, SHARD);
    let before = connection.total_changes();
    connection.execute_batch(&sql).unwrap();
    assert!(connection.total_changes() > before, "{sql} changed nothing");
}

/// The statement with the victim's numbers.
pub(super) fn filled_in(sql: &str) -> String {
    let v = victim();
    sql.replace("$member", &v.member.to_string())
        .replace("$id", &format!("x'{:032x}'", v.redemption.get()))
        .replace("$item", &v.item.to_string())
        .replace("$seq", &v.seq.to_string())
        .replace("$stranger", &stranger().to_string())
        .replace("$slot", &Slot::of(v.member).to_string())
        .replace("$change", &format!("seq = {}", change_seq()))
}

/// A member of database shard 1 without an account.
fn stranger() -> u64 {
    let layout = Layout::new(folder::DATABASES).unwrap();
    let is_there = |id: &u64| layout.shard_of_slot(Slot::of(MemberId::new(*id))).get() == SHARD;
    (1_000_000..2_000_000).find(is_there).unwrap()
}

fn here() -> Where {
    Where::database(SHARD)
}
fn account() -> Where {
    here().with_member(victim().member)
}
fn redemption() -> Where {
    account().with_redemption(victim().redemption)
}
fn entry() -> Where {
    account().with_seq(victim().seq)
}
fn stock() -> Where {
    here().with_item(victim().item)
}
fn slot() -> Where {
    here().with_slot(Slot::of(victim().member))
}
fn change() -> Where {
    here().with_seq(change_seq())
}

/// The first change by an operator that is a member's of database shard 1.
fn change_seq() -> Seq {
    let layout = Layout::new(folder::DATABASES).unwrap();
    let is_there = |record: Record| match record {
        Record::Credited(r) => layout.shard_of_slot(Slot::of(r.member)).get() == SHARD,
        Record::Debited(r) => layout.shard_of_slot(Slot::of(r.member)).get() == SHARD,
        Record::Reversed(r) => layout.shard_of_slot(Slot::of(r.member)).get() == SHARD,
        _ => false,
    };
    let at = right().lines.iter().position(|line| is_there(line.record())).unwrap();
    Seq::new(at as u64 + 1)
}

pub(super) type Row = (&'static str, Check, fn() -> Where);

pub(super) const TAMPERED: &[Row] = &[
    ("INSERT INTO slot_claims VALUES ($slot, 77, 'forged', 1, 1)", Check::StoreSlots, slot),
    ("DELETE FROM accounts WHERE member = $member", Check::StoreAccounts, account),
    ("UPDATE accounts SET free = free + 1 WHERE member = $member", Check::StoreAccounts, account),
    ("UPDATE accounts SET free = free + 1 WHERE member = $member", Check::StoreLedger, account),
    ("UPDATE accounts SET held = held + 1 WHERE member = $member", Check::StoreAccounts, account),
    ("UPDATE accounts SET free = -5 WHERE member = $member", Check::StoreAccounts, account),
    ("UPDATE accounts SET last_seq = 1 WHERE member = $member", Check::StoreAccounts, account),
    ("UPDATE accounts SET journal = 7 WHERE member = $member", Check::StoreAccounts, account),
    ("DELETE FROM redemptions WHERE id = $id", Check::StoreRedemptions, redemption),
    ("UPDATE redemptions SET state = 5 WHERE id = $id", Check::StoreRedemptions, redemption),
    (
        "UPDATE redemptions SET points = points + 1 WHERE id = $id",
        Check::StoreRedemptions,
        redemption,
    ),
    ("UPDATE redemptions SET quantity = 7 WHERE id = $id", Check::StoreRedemptions, redemption),
    ("UPDATE redemptions SET quantity = 7 WHERE id = $id", Check::StoreStock, stock),
    ("UPDATE redemptions SET item = 9 WHERE id = $id", Check::StoreRedemptions, redemption),
    ("UPDATE redemptions SET expires_at = 9 WHERE id = $id", Check::StoreRedemptions, redemption),
    ("UPDATE redemptions SET units_back = 1 WHERE id = $id", Check::StoreRedemptions, redemption),
    ("UPDATE redemptions SET seq = 9 WHERE id = $id", Check::StoreRedemptions, redemption),
    (
        "UPDATE redemptions SET key = x'000102030405060708090a0b0c0d0e0f' WHERE id = $id",
        Check::StoreRedemptions,
        redemption,
    ),
    ("UPDATE redemptions SET member = 5 WHERE id = $id", Check::StoreRedemptions, || {
        here().with_redemption(victim().redemption)
    }),
    ("UPDATE redemptions SET id = x'00' WHERE id = $id", Check::StoreRedemptions, here),
    (
        "UPDATE ledger SET amount = amount + 1 WHERE seq = $seq AND leg = 1",
        Check::StoreLedger,
        entry,
    ),
    ("UPDATE ledger SET amount = amount * 2 WHERE seq = $seq", Check::StoreLedger, entry),
    ("UPDATE ledger SET amount = -amount WHERE seq = $seq", Check::StoreLedger, entry),
    ("DELETE FROM ledger WHERE seq = $seq AND leg = 0", Check::StoreLedger, entry),
    ("DELETE FROM ledger WHERE seq = $seq", Check::StoreLedger, entry),
    ("UPDATE ledger SET account = 5 - account WHERE seq = $seq", Check::StoreLedger, entry),
    ("UPDATE ledger SET at = at + 1 WHERE seq = $seq", Check::StoreLedger, entry),
    ("UPDATE ledger SET redemption = NULL WHERE seq = $seq", Check::StoreLedger, entry),
    ("UPDATE ledger SET kind = 4 WHERE seq = $seq", Check::StoreLedger, entry),
    ("UPDATE ledger SET leg = leg + 1 WHERE seq = $seq AND leg = 1", Check::StoreLedger, entry),
    (
        "INSERT INTO ledger SELECT journal, seq + 100000, leg, account, member, amount, kind,
        redemption, at FROM ledger WHERE seq = $seq",
        Check::StoreLedger,
        account,
    ),
    (
        "INSERT INTO ledger SELECT journal, seq + 100000, leg, account, member, amount, kind,
        redemption, at FROM ledger WHERE seq = $seq",
        Check::StoreWatermarks,
        here,
    ),
    ("UPDATE stock SET confirmed = confirmed + 1 WHERE item = $item", Check::StoreStock, stock),
    ("UPDATE stock SET held = held + 1 WHERE item = $item", Check::StoreStock, stock),
    ("UPDATE stock SET released = released - 1 WHERE item = $item", Check::StoreStock, stock),
    ("UPDATE stock SET reversed = 40 WHERE item = $item", Check::StoreStock, stock),
    ("UPDATE stock SET retired = retired + 1 WHERE item = $item", Check::StoreStock, stock),
    ("UPDATE stock SET granted = 1 WHERE item = $item", Check::StoreStock, stock),
    ("DELETE FROM stock WHERE item = $item", Check::StoreStock, stock),
    (
        "UPDATE watermarks SET seq = seq + 100000 WHERE partition = 9",
        Check::StoreWatermarks,
        || here().with_partition(9),
    ),
    ("UPDATE watermarks SET seq = 300 WHERE partition = 9", Check::StoreWatermarks, || {
        here().with_partition(9)
    }),
    ("UPDATE watermarks SET incarnation = 900 WHERE partition = 9", Check::StoreWatermarks, || {
        here().with_partition(9)
    }),
    ("UPDATE watermarks SET partition = 25 WHERE partition = 9", Check::StoreWatermarks, || {
        here().with_partition(25)
    }),
    ("UPDATE watermarks SET journal = 25 WHERE partition = 9", Check::StoreWatermarks, || {
        here().with_partition(9)
    }),
    ("DELETE FROM watermarks WHERE partition = 9", Check::StoreWatermarks, || {
        here().with_partition(9)
    }),
    (
        "UPDATE slots SET checksum = checksum + 1 WHERE records > 2 AND slot = $slot",
        Check::StoreSlots,
        slot,
    ),
    ("UPDATE slots SET records = records + 1 WHERE slot = $slot", Check::StoreSlots, slot),
    ("DELETE FROM slots WHERE slot = $slot", Check::StoreSlots, slot),
    ("UPDATE sales SET state = 'defined' WHERE sale = 0", Check::StoreSales, here),
    ("UPDATE sales SET name = 'Other' WHERE sale = 0", Check::StoreSales, here),
    ("UPDATE sales SET changed_at = changed_at + 1 WHERE sale = 0", Check::StoreSales, here),
    ("UPDATE sales SET sale = 77 WHERE sale = 0", Check::StoreSales, here),
    ("DELETE FROM sales WHERE sale = 0", Check::StoreSales, here),
    ("UPDATE items SET points = points + 1 WHERE item = $item", Check::StoreSales, stock),
    ("UPDATE items SET sku = 'other' WHERE item = $item", Check::StoreSales, stock),
    ("DELETE FROM items WHERE item = $item", Check::StoreSales, stock),
    (
        "INSERT INTO items SELECT journal, 777, sale, sku, name, points, limit_per_member
        FROM items WHERE item = $item",
        Check::StoreSales,
        || here().with_item(ItemIndex::new(777)),
    ),
    ("UPDATE admin_changes SET reason = 'none' WHERE $change", Check::StoreAdminChanges, change),
    ("UPDATE admin_changes SET operator = 'me' WHERE $change", Check::StoreAdminChanges, change),
    ("UPDATE admin_changes SET reference = 'T' WHERE $change", Check::StoreAdminChanges, change),
    ("UPDATE admin_changes SET amount = -amount WHERE $change", Check::StoreAdminChanges, change),
    ("UPDATE admin_changes SET at = at + 1 WHERE $change", Check::StoreAdminChanges, change),
    ("UPDATE admin_changes SET member = NULL WHERE $change", Check::StoreAdminChanges, || {
        here().with_seq(change_seq())
    }),
    ("UPDATE admin_changes SET what = 'given' WHERE $change", Check::StoreAdminChanges, here),
    ("DELETE FROM admin_changes WHERE $change", Check::StoreAdminChanges, change),
    (
        "INSERT INTO admin_changes SELECT journal, seq + 1, at, what, operator, reason, reference,
        member, redemption, sale, item, amount FROM admin_changes WHERE $change",
        Check::StoreAdminChanges,
        || here().with_seq(change_seq().next()),
    ),
];

#[test]
fn every_wrong_row_is_found_by_its_check_and_its_place_is_named() {
    assert!(TAMPERED.len() >= 20);
    for (sql, check, at) in TAMPERED {
        let data = right().copy();
        tamper(data.path(), sql);
        assert_found(sql, &folder::audit(data.path()), *check, at());
    }
}

/// Claims lie on database shard 00, and hide rows: they are what the journal's own claim says.
#[test]
fn claims_are_compared_on_the_home_shard() {
    let with_claim = |slots: &str| {
        let mut lines = right().lines.clone();
        let mut line = Line { slot: CONTROL, ..lines.last().unwrap().clone() };
        line.set(&Record::SlotsClaimed(SlotsClaimed {
            node: "a".into(),
            version: 1,
            slots: slots.into(),
            at: NodeTime::new(line.at),
        }));
        lines.push(line);
        let data = right().with_journal(&lines, 64);
        folder::write_store(data.path(), [lines.len() as u64; 4]);
        let path = path_of(&data.path().join("db"), DatabaseShard::new(0));
        let mut connection = Connection::open(path).unwrap();
        let transaction = connection.transaction().unwrap();
        for slot in slots.parse::<SlotSet>().unwrap().iter() {
            let journal = right().journal.get().cast_signed();
            let row = rusqlite::params![slot.get(), journal];
            let sql = "INSERT INTO slot_claims VALUES (?1, ?2, 'a', 1, 1)";
            transaction.execute(sql, row).unwrap();
        }
        transaction.commit().unwrap();
        drop(connection);
        data
    };
    let audit = |data: &Path, sql: &str| {
        let copy = tempfile::tempdir().unwrap();
        folder::copy(data, copy.path());
        let connection = open(copy.path(), 0);
        connection.execute_batch(sql).unwrap();
        drop(connection);
        folder::audit(copy.path())
    };
    let at = |slot: u16| Where::database(0).with_slot(Slot::new(slot));
    let (alone, all) = (right().copy(), with_claim("0-4095"));
    let (alone, all) = (alone.path(), all.path());
    let report = audit(all, "UPDATE slot_claims SET node = node");
    assert!(report.passes(), "{report}");
    let forged = "INSERT INTO slot_claims VALUES (7, 77, 'forged', 1, 1)";
    for (data, sql, slot) in [
        // Of a node of several; of one that is alone; and one that has no slot.
        (all, "DELETE FROM slot_claims WHERE slot = 7", 7),
        (all, "UPDATE slot_claims SET journal = 77 WHERE slot = 7", 7),
        (alone, forged, 7),
        (all, "UPDATE slot_claims SET slot = 4096 WHERE slot = 7", 4096),
    ] {
        assert_found(sql, &audit(data, sql), Check::StoreSlots, at(slot));
    }
    let more = with_claim("0-9");
    let sql = "INSERT INTO slot_claims SELECT 10, journal, 'a', 1, 1 FROM slot_claims LIMIT 1";
    assert_found(sql, &audit(more.path(), sql), Check::StoreSlots, at(10));
    // Hidden rows are named as such.
    let hidden = audit(alone, forged);
    assert_eq!(hidden.subject.others, [format!("{:016x}", 77)]);
}

/// As `onrush db archive` leaves a database shard: its rows are in files, their sums stay.
fn take_out(connection: &Connection) {
    connection
        .execute_batch(
            "INSERT INTO archived_balances SELECT journal, member, account, sum(amount)
             FROM ledger GROUP BY journal, member, account;
             INSERT INTO archived_stock SELECT journal, item, held, confirmed, released, reversed,
                 retired FROM stock WHERE held + confirmed + released + reversed > 0;
             INSERT INTO archived_months
             SELECT 'ledger', '2023-11', count(*), max(at) + 1, 1 FROM ledger;
             INSERT INTO archived_months
             SELECT 'redemptions', '2023-11', count(*), max(created_at) + 1, 1 FROM redemptions;
             DELETE FROM ledger; DELETE FROM redemptions;",
        )
        .unwrap();
}

#[test]
fn months_that_were_taken_out_are_not_missed_and_their_sums_count() {
    let taken = right().copy();
    take_out(&open(taken.path(), SHARD));
    let report = assert_passes("taken out", taken.path());
    let figures = &report.database_shards[usize::from(SHARD)];
    assert_eq!((figures.ledger_rows, figures.redemptions), (0, 0));
    for (sql, check, at) in [
        (
            "UPDATE archived_balances SET amount = amount + 1
             WHERE member = $member AND account = 1",
            Check::StoreLedger,
            account as fn() -> Where,
        ),
        ("DELETE FROM archived_balances WHERE member = $member", Check::StoreLedger, account),
        ("UPDATE archived_balances SET journal = 77", Check::StoreLedger, account),
        (
            "INSERT INTO archived_balances SELECT journal, $stranger, 1, 5
             FROM archived_balances LIMIT 1",
            Check::StoreLedger,
            here,
        ),
        (
            "UPDATE archived_stock SET confirmed = confirmed + 1 WHERE item = $item",
            Check::StoreStock,
            stock,
        ),
        ("UPDATE archived_stock SET journal = 77", Check::StoreStock, stock),
        ("DELETE FROM archived_stock WHERE item = $item", Check::StoreStock, stock),
        // Rows that no month covers are missed.
        ("DELETE FROM archived_months WHERE name = 'ledger'", Check::StoreLedger, here),
        ("DELETE FROM archived_months WHERE name = 'redemptions'", Check::StoreRedemptions, here),
        (
            "UPDATE archived_months SET name = 'stock' WHERE name = 'ledger'",
            Check::StoreLedger,
            here,
        ),
    ] {
        let data = tempfile::tempdir().unwrap();
        folder::copy(taken.path(), data.path());
        let path = path_of(&data.path().join("db"), DatabaseShard::new(SHARD));
        let connection = Connection::open(path).unwrap();
        connection.execute_batch(&filled_in(sql)).unwrap();
        assert!(connection.total_changes() > 0, "{sql} changed nothing");
        drop(connection);
        assert_found(sql, &folder::audit(data.path()), check, at());
    }
}

#[test]
fn stock_totals_are_compared_on_the_home_shard() {
    for column in ["total", "granted", "returned"] {
        let data = right().copy();
        let connection = open(data.path(), 0);
        let sql = format!("UPDATE stock SET {column} = {column} + 1 WHERE item = 1");
        connection.execute_batch(&sql).unwrap();
        drop(connection);
        let at = Where::database(0).with_item(ItemIndex::new(1));
        assert_found(&sql, &folder::audit(data.path()), Check::StoreStock, at);
    }
}

#[test]
fn rows_in_another_database_shard_are_found_in_both() {
    let moves = [
        ("accounts", "member = $member", Check::StoreAccounts, account as fn() -> Where),
        ("redemptions", "id = $id", Check::StoreRedemptions, redemption),
        ("ledger", "seq = $seq", Check::StoreLedger, entry),
        ("slots", "slot = $slot", Check::StoreSlots, slot),
    ];
    for (table, key, check, at) in moves {
        let data = right().copy();
        let other = path_of(&data.path().join("db"), DatabaseShard::new(2));
        let key = key.replace("$slot", &Slot::of(victim().member).to_string());
        let sql = format!(
            "ATTACH '{}' AS other; INSERT INTO other.{table} SELECT * FROM {table} WHERE {key};
             DELETE FROM {table} WHERE {key}",
            other.display()
        );
        tamper(data.path(), &sql);
        let report = folder::audit(data.path());
        let there = Where { database_shard: Some(2), ..at() };
        assert_found(table, &report, check, at());
        assert_found(table, &report, check, there);
    }
}

#[test]
fn a_watermark_that_claims_more_than_the_rows_show_is_found() {
    let right = right();
    let last = right.last();
    let data = right.with_journal(&right.lines, 200);
    folder::write_store(data.path(), [last, 900, last, last]);
    assert_passes("lagging", data.path());
    tamper(data.path(), &format!("UPDATE watermarks SET seq = {last}"));
    let report = folder::audit(data.path());
    assert_found("claims more", &report, Check::StoreWatermarks, here());
    assert_found("claims more", &report, Check::StoreSlots, here());
    assert_found("claims more", &report, Check::StoreAccounts, here());
}

/// A lagging store is held against what the journal said at its watermark, no less strictly.
#[test]
fn wrong_rows_of_a_lagging_store_are_found() {
    let right = right();
    let last = right.last();
    let lagging = right.with_journal(&right.lines, 200);
    folder::write_snapshot(lagging.path(), right.journal, &right.lines, last * 2 / 3);
    folder::write_store(lagging.path(), [last / 2, last / 2, last, 0]);
    let rows = TAMPERED.iter().filter(|(sql, ..)| !sql.contains("partition"));
    for (sql, check, at) in rows.step_by(3) {
        let data = tempfile::tempdir().unwrap();
        folder::copy(lagging.path(), data.path());
        tamper(data.path(), sql);
        assert_found(sql, &folder::audit(data.path()), *check, at());
    }
}

#[test]
fn a_database_shard_that_is_missing_or_exchanged_is_named_and_the_others_are_compared() {
    let path = |data: &Path, shard| path_of(&data.join("db"), DatabaseShard::new(shard));
    let data = right().copy();
    std::fs::remove_file(path(data.path(), 3)).unwrap();
    let report = folder::audit(data.path());
    assert_found("missing", &report, Check::StoreWatermarks, Where::database(3));
    assert_eq!(report.findings_of(Check::StoreWatermarks).count(), 1, "{report}");
    assert_eq!(report.database_shards.len(), 3);
    assert!(report.database_shards.iter().all(|shard| shard.accounts > 0), "{report}");
    // What is wrong in one that is there is found all the same.
    tamper(data.path(), "DELETE FROM accounts WHERE member = $member");
    assert_found("both", &folder::audit(data.path()), Check::StoreAccounts, account());

    let data = right().copy();
    std::fs::copy(path(data.path(), 0), path(data.path(), 2)).unwrap();
    let report = folder::audit(data.path());
    assert_found("exchanged", &report, Check::StoreWatermarks, Where::database(2));
}

#[test]
fn database_shards_that_are_gone_behind_a_shortened_journal_are_missed() {
    let right = right();
    let data = right.with_journal(&right.lines, 1);
    folder::write_snapshot(data.path(), right.journal, &right.lines, right.last() * 4 / 5);
    // Never made: a process elsewhere may persist, or none yet.
    assert_passes("none", data.path());
    let first = onrush::journal::segments::name(1);
    std::fs::remove_file(onrush::journal::journal_dir(data.path()).join(first)).unwrap();
    let report = folder::audit(data.path());
    assert_found("gone", &report, Check::StoreWatermarks, Where::default());
}

#[test]
fn what_was_set_aside_is_a_warning() {
    let data = right().copy();
    let connection = open(data.path(), SHARD);
    connection
        .execute_batch(
            "INSERT INTO dead_letters (journal, partition, incarnation, seq, slot, member, at,
                state, tries, reason, record)
             SELECT journal, 9, 2, 100000, 1200, 5, 1, 1, 3, 'it does not fit', x'00'
             FROM watermarks LIMIT 1",
        )
        .unwrap();
    drop(connection);
    let report = assert_passes("letters", data.path());
    assert_eq!(report.line(Check::StoreDeadLetters).warnings, 1, "{report}");
}
