//! The auditor against data folders that hold, and against ones that were tampered with.
#![allow(clippy::unwrap_used, reason = "a test's helpers fail like the test itself")]

mod folder;
mod holds;
mod in_journal;
mod in_snapshots;
mod in_store;
mod live;
mod stack_store;
mod world;

use std::path::Path;
use std::sync::OnceLock;

use onrush::audit::AuditReport;
use onrush::audit::finding::{Check, Severity, Where};
use onrush::units::JournalId;

use self::world::{Line, World};

/// A data folder that is right in every way, made once.
struct Right {
    /// The same journal before its first record.
    empty: tempfile::TempDir,
    dir: tempfile::TempDir,
    journal: JournalId,
    lines: Vec<Line>,
}

impl Right {
    fn last(&self) -> u64 {
        self.lines.len() as u64
    }
    fn copy(&self) -> tempfile::TempDir {
        let copy = tempfile::tempdir().unwrap();
        folder::copy(self.dir.path(), copy.path());
        copy
    }
    /// A folder with this history in its journal, and nothing else.
    fn with_journal(&self, lines: &[Line], per_frame: usize) -> tempfile::TempDir {
        let copy = tempfile::tempdir().unwrap();
        folder::copy(self.empty.path(), copy.path());
        folder::write_journal(copy.path(), lines, per_frame);
        copy
    }
}

fn right() -> &'static Right {
    static RIGHT: OnceLock<Right> = OnceLock::new();
    RIGHT.get_or_init(|| {
        let (empty, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let journal = folder::empty(empty.path());
        folder::copy(empty.path(), dir.path());
        let lines = World::play(journal).lines;
        folder::write_journal(dir.path(), &lines, 50);
        let last = lines.len() as u64;
        folder::write_snapshot(dir.path(), journal, &lines, last / 3);
        folder::write_snapshot(dir.path(), journal, &lines, last * 2 / 3);
        folder::write_store(dir.path(), [last; 4]);
        Right { empty, dir, journal, lines }
    })
}

/// The report must have a violation of this check whose place names all that `at` names.
#[track_caller]
pub fn assert_found(name: &str, report: &AuditReport, check: Check, at: Where) {
    let part = |asked: Option<String>, told: Option<String>| asked.is_none() || asked == told;
    let names = |told: &Where| {
        part(at.member.map(|x| x.to_string()), told.member.map(|x| x.to_string()))
            && part(at.redemption.map(|x| x.to_string()), told.redemption.map(|x| x.to_string()))
            && part(at.item.map(|x| x.to_string()), told.item.map(|x| x.to_string()))
            && part(at.seq.map(|x| x.to_string()), told.seq.map(|x| x.to_string()))
            && part(at.slot.map(|x| x.to_string()), told.slot.map(|x| x.to_string()))
            && part(
                at.database_shard.map(|x| x.to_string()),
                told.database_shard.map(|x| x.to_string()),
            )
            && part(at.partition.map(|x| x.to_string()), told.partition.map(|x| x.to_string()))
    };
    let mut found = report.findings_of(check).filter(|f| f.severity == Severity::Violation);
    assert!(
        found.any(|f| names(&f.at)),
        "{name}: no violation of {} at \"{at}\" in\n{report}",
        check.label()
    );
    assert_eq!(report.exit_code(), 1, "{name}");
}

#[track_caller]
fn assert_passes(name: &str, data: &Path) -> AuditReport {
    let report = folder::audit(data);
    assert!(report.passes(), "{name}:\n{report}");
    report
}
