//! The audit of a running node: what shards and stock lines say against journal and store.

use std::cell::RefCell;
use std::path::Path;
use std::sync::Arc;

use onrush::audit::finding::{Check, Where};
use onrush::audit::parts::{Claims, ControlClaim, SlotClaim};
use onrush::audit::{AuditReport, LiveNode, audit_live, stores};
use onrush::journal::open::{journal_dir, snapshot_dir};
use onrush::journal::tail::{DurableMark, StoppedJournal, Tail};
use onrush::kernel::control::ControlState;
use onrush::kernel::record::CONTROL;
use onrush::kernel::slot::SlotState;
use onrush::units::{Incarnation, ItemIndex, SLOT_COUNT, Seq, Slot};

use super::world::{BAG, MUG, PEN};
use super::{assert_found, folder, right};

/// What a node in the middle of the history would report; its journal goes on meanwhile.
fn claims(through: u64) -> Claims {
    let lines = &right().lines;
    let mut slots: Vec<_> = (0..SLOT_COUNT).map(|n| SlotState::new(Slot::new(n as u16))).collect();
    let mut control = ControlState::new();
    let cut_of = |n: usize| Seq::new(through - (n as u64 * 7) % 50);
    for (line, seq) in lines.iter().zip((1..).map(Seq::new)) {
        if line.slot == CONTROL {
            if seq <= Seq::new(through) {
                control.apply(&line.record(), &line.bytes).unwrap();
            }
        } else if seq <= cut_of(line.slot.index()) {
            slots[line.slot.index()].apply_bytes(&line.bytes).unwrap();
        }
    }
    let mut claims = Claims::default();
    for (n, slot) in slots.iter().enumerate() {
        claims.slots.push(SlotClaim::of(slot, cut_of(n), "the node"));
    }
    claims.control.push(ControlClaim::of(&control, Seq::new(through), "the node"));
    claims
}

/// Audits as if the node had just made `window` durable, where its lines were read.
fn audit(
    data: &Path,
    window: (u64, u64),
    claims: Claims,
    lines: &[(ItemIndex, u64)],
) -> AuditReport {
    let stopped = StoppedJournal::open(&journal_dir(data)).unwrap();
    let claims = RefCell::new(Some(claims));
    let durable = RefCell::new(vec![window.1, window.0, window.0]);
    let node = LiveNode {
        name: "a node".into(),
        journal: stopped.journal(),
        incarnation: Incarnation::new(9),
        first: &|| stopped.first_seq(),
        durable: &|| Seq::new(durable.borrow_mut().pop().unwrap()),
        tail: &|from| {
            let disk = onrush::journal::disk::RealDisk::open_read_only(&journal_dir(data)).unwrap();
            let mark = Arc::new(DurableMark::new(stopped.last_seq()));
            Tail::open(disk, stopped.journal(), from, mark)
        },
        snapshots: &snapshot_dir(data),
        stores: &stores::open(&onrush::config::StoreConfig::default(), &data.join("db")).unwrap(),
        kafka: None,
        visit: &|| Ok(claims.borrow_mut().take().unwrap()),
        lines: &|| lines.to_vec(),
    };
    audit_live(&node, &mut |_| {}).unwrap()
}

fn lagging() -> tempfile::TempDir {
    let right = right();
    let data = right.with_journal(&right.lines, 50);
    folder::write_snapshot(data.path(), right.journal, &right.lines, right.last() / 2);
    folder::write_store(data.path(), [1_700, 1_900, 1_400, 1_500]);
    data
}

#[test]
fn a_running_node_that_is_right_passes_and_is_compared_at_its_cuts() {
    let data = lagging();
    let last = right().last();
    let report = audit(data.path(), (2_000, last), claims(2_000), &[(MUG, 1), (PEN, 570)]);
    assert!(report.passes(), "{report}");
    assert_eq!(report.subject.base_snapshot, Some(1));
    assert!(report.line(Check::I5).checked > SLOT_COUNT as u64, "{report}");
    assert!(report.database_shards.iter().any(|shard| shard.lag_records > 0));
}

#[test]
fn a_shard_with_another_digest_or_other_sums_is_found() {
    let data = lagging();
    let mut claims = claims(2_000);
    let (a, b) = (Slot::of(right_member(3)), Slot::of(right_member(8)));
    claims.slots[a.index()].digest ^= 1;
    claims.slots[b.index()].mark.sums.free += 1;
    claims.control[0].mark.items[0][1] += 1;
    let report = audit(data.path(), (2_000, right().last()), claims, &[]);
    assert_found("digest", &report, Check::I5, Where::slot(a));
    assert_found("sums", &report, Check::I3, Where::slot(b));
    assert_found("stock", &report, Check::I1, Where::item(MUG));
}

fn right_member(id: u64) -> onrush::units::MemberId {
    onrush::units::MemberId::new(id)
}

#[test]
fn a_line_with_more_free_units_than_the_books_is_found() {
    let data = lagging();
    let last = right().last();
    // The bags sell out within the window: any figure that was true on the way is right.
    let report = audit(data.path(), (2_000, last), claims(2_000), &[(BAG, 15)]);
    assert!(report.passes(), "{report}");
    let report = audit(data.path(), (2_000, last), claims(2_000), &[(BAG, 501), (MUG, 0)]);
    assert_found("line", &report, Check::I2, Where::item(BAG));
}
