//! The auditor against data folders that hold, and against ones that were tampered with.
#![allow(clippy::unwrap_used, reason = "a test's helpers fail like the test itself")]

mod folder;
mod world;

use std::sync::OnceLock;

use onrush::audit::finding::Check;
use onrush::units::JournalId;

use self::world::{Line, World};

/// A data folder that is right in every way, made once.
struct Right {
    dir: tempfile::TempDir,
    journal: JournalId,
    lines: Vec<Line>,
}

fn right() -> &'static Right {
    static RIGHT: OnceLock<Right> = OnceLock::new();
    RIGHT.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let journal = folder::empty(dir.path());
        let lines = World::play(journal).lines;
        folder::write_journal(dir.path(), &lines, 50);
        let last = lines.len() as u64;
        folder::write_snapshot(dir.path(), journal, &lines, last / 3);
        folder::write_snapshot(dir.path(), journal, &lines, last * 2 / 3);
        folder::write_store(dir.path(), [last; 4]);
        Right { dir, journal, lines }
    })
}

#[test]
fn a_folder_that_is_right_passes() {
    let right = right();
    let before = folder::content(right.dir.path());
    let report = folder::audit(right.dir.path());
    println!("{report}");
    assert!(report.passes(), "{report}");
    for line in &report.checks {
        assert!(line.checked > 0 || line.check == Check::StoreDeadLetters, "{:?}", line.check);
    }
    assert!(before == folder::content(right.dir.path()), "the audit wrote to the folder");
}
