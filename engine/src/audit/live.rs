//! An audit of a running node, beside it: the sale goes on.
//!
//! ```text
//!  1  a read transaction begins on every database shard      watermarks W
//!  2  every shard reports its slots, each at its own cut      digests and sums
//!  3  durable D1 · the stock lines are read · durable D2      cuts, W ≤ D2
//!  4  the newest snapshot and the journal's files up to D2 are folded, beside the node
//! ```
//! Sums and digests must agree at each slot's cut, rows at W. I2 is an inequality: what a line had
//! free was free by the books at some prefix between D1 and D2, or less, as units leave a line
//! before their record is durable and enter it after.
//!
//! It takes as much memory as the node's own state does, and writes nothing. It reads files,
//! databases and, where asked, Kafka: that first of all, so that whatever stands there is in the
//! journal by then.

use std::path::Path;

use super::beside::Others;
use super::files::{FileJournal, Snapshots};
use super::finding::Findings;
use super::journal::Bounds;
use super::offline::CannotLook;
use super::parts::{Base, Claims};
use super::report::{AuditReport, Subject};
use super::run::{Inputs, Progress, lowest_watermark, run};
use super::shipped::Shipped;
use super::stores::{self, OpenShard, Stores};
use crate::config::KafkaConfig;
use crate::journal::JournalError;
use crate::journal::disk::Disk;
use crate::journal::tail::Tail;
use crate::units::{Incarnation, ItemIndex, JournalId, Seq};

/// How often the audit begins anew when the node deleted a segment under it, as it does where it
/// is short of space.
const TRIES: u32 = 3;

/// A running node, as its audit sees it.
pub struct LiveNode<'a, D: Disk> {
    /// For the report.
    pub name: String,
    pub journal: JournalId,
    pub incarnation: Incarnation,
    /// The first record that the journal still has.
    pub first: &'a dyn Fn() -> Seq,
    pub durable: &'a dyn Fn() -> Seq,
    /// Begins a tail at a record.
    pub tail: &'a dyn Fn(Seq) -> Result<Tail<D>, JournalError>,
    pub snapshots: &'a Path,
    /// Readers of their own, not those that answer requests.
    pub stores: &'a Stores,
    /// The records topic, where it is to be compared.
    pub kafka: Option<&'a KafkaConfig>,
    /// Asks every shard and the control thread what they have; waits for their reports.
    pub visit: &'a dyn Fn() -> Result<Claims, CannotLook>,
    /// Reads the stock lines.
    pub lines: &'a dyn Fn() -> Vec<(ItemIndex, u64)>,
}

/// Audits a running node. Call it on a thread that may block.
///
/// Errors: something cannot be read, or the node stops meanwhile.
pub fn audit_live<D: Disk>(
    node: &LiveNode<'_, D>,
    progress: &mut dyn FnMut(Progress),
) -> Result<AuditReport, CannotLook> {
    let mut tries = 1;
    loop {
        let first = (node.first)();
        match audit_once(node, progress) {
            // A segment may have gone that was still to be read: begin behind it.
            Err(CannotLook::Read(_)) if tries < TRIES && (node.first)() != first => tries += 1,
            outcome => return outcome,
        }
    }
}

fn audit_once<D: Disk>(
    node: &LiveNode<'_, D>,
    progress: &mut dyn FnMut(Progress),
) -> Result<AuditReport, CannotLook> {
    let mut outcome = None;
    stores::with_all(node.stores, node.journal, &mut |reads, others| {
        if outcome.is_none() {
            outcome = Some(within(node, reads, others, progress));
        }
        Ok(())
    })?;
    outcome.expect("it runs once within all transactions")
}

fn within<D: Disk>(
    node: &LiveNode<'_, D>,
    reads: &[OpenShard<'_>],
    others: &Others,
    progress: &mut dyn FnMut(Progress),
) -> Result<AuditReport, CannotLook> {
    if node.kafka.is_some() {
        progress(Progress { step: "reading Kafka", done: 0, of: 1 });
    }
    let shipped = node.kafka.map(|kafka| Shipped::read(kafka, node.journal, others)).transpose()?;
    let first = (node.first)();
    let before = (node.durable)();
    let whole =
        Bounds { journal: node.journal, first, last: before, incarnation: node.incarnation };
    let base = Snapshots::newest(node.snapshots, whole)?;
    if base.is_none() && first > Seq::new(1) {
        return Err(CannotLook::Read(format!(
            "the journal begins at {first}, and no snapshot continues it"
        )));
    }
    progress(Progress { step: "asking the shards", done: 0, of: 1 });
    let claims = (node.visit)()?;
    let window_from = (node.durable)();
    let lines = (node.lines)();
    let last = (node.durable)();
    // What lies before both the snapshot and the stores is not read again.
    let mut lowest = base.as_ref().map_or(Seq::NONE, Base::lowest_cut);
    if !reads.is_empty() {
        lowest = lowest.min(lowest_watermark(node.stores.layout(reads)?, reads, node.journal)?);
    }
    let bounds = Bounds { first: first.max(lowest.next()), last, ..whole };
    let journal = FileJournal::new(bounds, node.tail);
    let subject = Subject {
        name: node.name.clone(),
        is_live: true,
        journal: format!("{:016x}", node.journal.get()),
        incarnation: node.incarnation.get(),
        first_seq: bounds.first,
        last_seq: last,
        base_snapshot: base.as_ref().map(super::files::SnapshotFile::number),
        others: Vec::new(),
    };
    let mut findings = Findings::default();
    node.stores.report(first, &mut findings);
    let inputs = Inputs {
        subject,
        journal: &journal,
        base: base.as_ref().map(|base| base as &dyn Base),
        claims,
        layout: node.stores.layout(reads)?,
        shipped,
        stores: reads,
        lines: Some((window_from, lines)),
        findings,
    };
    Ok(run(inputs, progress)?)
}
