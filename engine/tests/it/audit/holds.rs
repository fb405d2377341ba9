//! Folders that hold, however they came to stand: whole, lagging, shortened, torn.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;

use onrush::audit::finding::Check;
use onrush::audit::report::State;
use onrush::audit::{CannotLook, audit_data_dir};
use onrush::journal::lock::FolderLock;
use onrush::journal::open::journal_dir;
use onrush::journal::segments;
use onrush::journal::tail::StoppedJournal;
use onrush::units::Seq;

use super::{assert_passes, folder, right};

#[test]
fn a_folder_that_is_right_passes_and_every_check_has_cases() {
    let right = right();
    let before = folder::content(right.dir.path());
    let report = assert_passes("right", right.dir.path());
    // No Kafka belongs to a folder alone.
    for line in report.checks.iter().filter(|line| line.check != Check::Shipped) {
        let may_be_none = line.check == Check::StoreDeadLetters;
        assert!(line.state == State::Holds && (line.checked > 0 || may_be_none), "{report}");
    }
    assert!(before == folder::content(right.dir.path()), "the audit wrote to the folder");
    assert!(report.items.iter().any(|item| item.retired > 0));
    assert!(report.items.iter().any(|item| item.held > 0));
}

#[test]
fn a_store_that_lags_passes_and_the_lag_is_told() {
    let right = right();
    let last = right.last();
    for through in [[0, 0, 0, 0], [0, last / 4, last / 2, last - 3], [1, 400, last, 700]] {
        let data = right.with_journal(&right.lines, 50);
        folder::write_snapshot(data.path(), right.journal, &right.lines, last / 2);
        folder::write_store(data.path(), through);
        let report = assert_passes("lagging", data.path());
        let lag: u64 = report.database_shards.iter().map(|shard| shard.lag_records).sum();
        assert!(lag > 0 && lag <= last, "{report}");
        assert!(
            report
                .database_shards
                .iter()
                .zip(through)
                .all(|(shard, through)| { through == 0 || shard.watermark >= Seq::new(through) })
        );
    }
}

#[test]
fn a_journal_without_its_first_segments_passes_from_the_older_snapshot() {
    let right = right();
    let last = right.last();
    // A frame takes a block, so single records fill several segments.
    let data = right.with_journal(&right.lines, 1);
    folder::write_snapshot(data.path(), right.journal, &right.lines, last * 3 / 5);
    folder::write_snapshot(data.path(), right.journal, &right.lines, last * 4 / 5);
    folder::write_store(data.path(), [last * 7 / 10, last * 9 / 10, last, last * 3 / 4]);
    let whole = assert_passes("whole", data.path());
    assert_eq!(whole.subject.base_snapshot, None);
    for segment in 1..=2 {
        std::fs::remove_file(journal_dir(data.path()).join(segments::name(segment))).unwrap();
    }
    let report = assert_passes("shortened", data.path());
    assert_eq!(report.subject.base_snapshot, Some(1));
    assert!(report.subject.first_seq > Seq::new(500), "{report}");
    let units = |r: &onrush::audit::AuditReport| {
        r.items.iter().map(|i| (i.free, i.held, i.confirmed, i.retired)).collect::<Vec<_>>()
    };
    assert_eq!(units(&report), units(&whole));
    assert_eq!(report.points.redeemed, whole.points.redeemed);
    assert!(report.line(Check::I5).checked > 4_097, "{report}");
}

#[test]
fn a_torn_tail_and_a_leftover_lock_do_not_hinder() {
    let right = right();
    let data = right.copy();
    let folder = journal_dir(data.path());
    let end = StoppedJournal::open(&folder).unwrap().scan().end;
    let path = folder.join(segments::name(end.segment));
    let file = OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(&[0xab; 300], end.offset + 4096).unwrap();
    assert_passes("torn", data.path());
}

#[test]
fn a_running_node_is_left_alone_and_a_missing_journal_is_said() {
    let data = right().copy();
    let _lock = FolderLock::take(&journal_dir(data.path())).unwrap();
    let refused = audit_data_dir(data.path(), &mut |_| {}).err().unwrap();
    assert!(matches!(refused, CannotLook::Running(_)));
    assert!(refused.to_string().contains("--admin"), "{refused}");
    let nothing = tempfile::tempdir().unwrap();
    assert!(audit_data_dir(nothing.path(), &mut |_| {}).is_err());
}
