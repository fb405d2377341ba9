//! Snapshots that do not say what the journal says.

use onrush::audit::finding::{Check, Where};
use onrush::journal::open::{journal_dir, snapshot_dir};
use onrush::journal::segments;
use onrush::kernel::record::Record;
use onrush::units::{JournalId, Points};

use super::world::{Line, MUG};
use super::{assert_found, assert_passes, folder, right};

/// The history with a larger opening credit of the last member, who has not redeemed by then.
fn richer(lines: &[Line]) -> (Vec<Line>, Where) {
    let mut lines = lines.to_vec();
    let opened = lines.iter().rposition(|line| matches!(line.record(), Record::Opened(_)));
    let line = &mut lines[opened.unwrap()];
    let Record::Opened(mut r) = line.record() else { unreachable!() };
    r.points = Points::new(r.points.get() + 1);
    let at = Where::slot(line.slot);
    line.set(&r.into());
    (lines, at)
}

#[test]
fn a_slot_that_was_altered_is_found() {
    let right = right();
    let data = right.with_journal(&right.lines, 200);
    let (lines, at) = richer(&right.lines);
    folder::write_snapshot(data.path(), right.journal, &lines[..320], 300);
    let report = folder::audit(data.path());
    assert_found("digest", &report, Check::I5, at);
    assert_found("sums", &report, Check::I3, at);
}

#[test]
fn stock_that_was_altered_is_found() {
    let right = right();
    let data = right.with_journal(&right.lines, 200);
    let mut lines = right.lines.clone();
    for line in &mut lines {
        if let Record::Granted(mut r) = line.record()
            && r.item == MUG
        {
            r.granted -= 1;
            line.set(&r.into());
        }
    }
    folder::write_snapshot(data.path(), right.journal, &lines, right.last() / 2);
    let report = folder::audit(data.path());
    assert_found("stock", &report, Check::I1, Where::item(MUG));
    assert_found("stock", &report, Check::I5, Where::default());
}

#[test]
fn a_base_that_was_altered_is_found_although_its_history_is_gone() {
    let right = right();
    let last = right.last();
    let data = right.with_journal(&right.lines, 1);
    folder::write_snapshot(data.path(), right.journal, &right.lines, last * 3 / 5);
    folder::write_snapshot(data.path(), right.journal, &right.lines, last * 4 / 5);
    folder::write_store(data.path(), [last; 4]);
    for segment in 1..=2 {
        std::fs::remove_file(journal_dir(data.path()).join(segments::name(segment))).unwrap();
    }
    assert_passes("as it was", data.path());
    // The newer snapshot in the older one's place: its cuts lie behind, its state is another.
    let file = |number: u64| snapshot_dir(data.path()).join(format!("{number:012}.snapshot"));
    std::fs::copy(file(2), file(3)).unwrap();
    assert_passes("doubled", data.path());
    let lines = poorer(&right.lines);
    for number in 1..=3 {
        std::fs::remove_file(file(number)).unwrap();
    }
    folder::write_snapshot(data.path(), right.journal, &lines.0, last * 3 / 5);
    let report = folder::audit(data.path());
    assert_found("base", &report, Check::StoreRedemptions, lines.1);
}

/// The history with a redemption that was dearer, the last record of its slot before the cut.
fn poorer(lines: &[Line]) -> (Vec<Line>, Where) {
    let mut lines = lines.to_vec();
    let cut = lines.len() * 3 / 5;
    let is_last = |at: &usize| {
        let mut later = lines[at + 1..cut + 97].iter();
        later.all(|line| line.slot != lines[*at].slot)
    };
    let redeemed = |at: &usize| matches!(lines[*at].record(), Record::Redeemed(_));
    let at = (0..cut).rev().filter(redeemed).find(is_last).unwrap();
    let Record::Redeemed(mut r) = lines[at].record() else { unreachable!() };
    r.points = Points::new(r.points.get() + 1);
    r.free_after = Points::new(r.free_after.get() - 1);
    let place = Where::default().with_member(r.member).with_redemption(r.id);
    lines[at].set(&r.into());
    (lines, place)
}

#[test]
fn a_snapshot_beyond_the_journal_or_of_another_one_is_found() {
    let right = right();
    let half = right.lines.len() / 2;
    let data = right.with_journal(&right.lines[..half], 200);
    folder::write_snapshot(data.path(), right.journal, &right.lines, right.last());
    let report = folder::audit(data.path());
    assert_found("beyond", &report, Check::Journal, Where::default());
    let data = right.with_journal(&right.lines[..half], 200);
    folder::write_snapshot(data.path(), JournalId::new(7), &right.lines[..half], 100);
    let report = folder::audit(data.path());
    assert_found("another", &report, Check::I5, Where::default());
}

/// A start does without it, so it is no violation.
#[test]
fn a_damaged_snapshot_is_a_warning() {
    let data = right().copy();
    let path = snapshot_dir(data.path()).join(format!("{:012}.snapshot", 2));
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[9_000] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let report = assert_passes("damaged snapshot", data.path());
    assert_eq!(report.line(Check::I5).warnings, 1, "{report}");
}
