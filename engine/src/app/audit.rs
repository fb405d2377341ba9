//! `GET /v1/audit`: what the audit of the running node is given to look at.
//!
//! It runs on a thread of the door's that may block, one at a time; who asks meanwhile shares its
//! report. While it runs the journal keeps its segments, unless it is short of space. It holds no
//! part of the node that a drain must have back: readers of its own, and what threads share anyway.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use crossbeam::channel::{RecvTimeoutError, bounded, unbounded};

use super::figures::Figures;
use crate::audit::parts::{Claims, SlotClaim};
use crate::audit::{CannotLook, LiveNode, audit_live, stores};
use crate::config::{KafkaConfig, StoreConfig};
use crate::journal::JournalError;
use crate::journal::disk::RealDisk;
use crate::journal::files::DiskGauge;
use crate::journal::open::{journal_dir, snapshot_dir};
use crate::journal::tail::{DurableMark, Tail};
use crate::kernel::record::CONTROL;
use crate::shard::core::Core;
use crate::shard::message::{Message, SlotContent, SlotReport, Visit, Visitor};
use crate::telemetry::figures::NodeFigures as _;
use crate::units::{Incarnation, ItemIndex, JournalId, SLOT_COUNT, Seq};

/// Slots that may be reported and not looked at yet.
const CREDITS: usize = 256;
/// How long a shard may take to report its next slot.
const REPORT_WITHIN: Duration = Duration::from_secs(30);

/// The running node, for its audit.
pub(super) struct LiveAudit {
    pub name: String,
    pub data: PathBuf,
    pub store: StoreConfig,
    /// Where it is the log.
    pub kafka: Option<KafkaConfig>,
    pub journal: JournalId,
    pub incarnation: Incarnation,
    pub durable: Arc<DurableMark>,
    pub gauge: Arc<DiskGauge>,
    pub core: Arc<Core>,
    pub figures: Arc<Figures>,
    /// Of the node and its database shards, and with Kafka.
    pub running: [Running; 2],
}

/// What an audit came to: the report as JSON, or why nothing could be looked at.
type Outcome = Result<String, String>;

/// The audit that runs now, for whoever asks meanwhile. One at a time: each takes as much memory
/// as the node's state.
pub(super) type Running = Mutex<Option<Arc<OnceLock<Outcome>>>>;

impl LiveAudit {
    /// Audits, or waits for the audit that runs already and shares what it comes to.
    pub fn run(&self, with_kafka: bool) -> Outcome {
        let running =
            || self.running[usize::from(with_kafka)].lock().unwrap_or_else(PoisonError::into_inner);
        let audit = Arc::clone(running().get_or_insert_default());
        // Whoever is first runs it; the others wait here for the outcome.
        let outcome =
            audit.get_or_init(|| self.audit(with_kafka).map_err(|error| error.to_string())).clone();
        let mut current = running();
        if current.as_ref().is_some_and(|current| Arc::ptr_eq(current, &audit)) {
            *current = None;
        }
        outcome
    }

    fn audit(&self, with_kafka: bool) -> Result<String, CannotLook> {
        let _segments = self.gauge.pin();
        let disk = RealDisk::open_read_only(&journal_dir(&self.data))
            .map_err(|e| CannotLook::Read(format!("opening the journal: {e}")))?;
        let tail = |from: Seq| -> Result<Tail<RealDisk>, JournalError> {
            Tail::open(disk.clone(), self.journal, from, Arc::clone(&self.durable))
        };
        let node = LiveNode {
            name: self.name.clone(),
            journal: self.journal,
            incarnation: self.incarnation,
            first: &|| self.gauge.first_seq(),
            durable: &|| self.durable.get(),
            tail: &tail,
            snapshots: &snapshot_dir(&self.data),
            stores: &stores::open(&self.store, &self.data.join(crate::audit::DATABASE_DIR))?,
            kafka: self.kafka.as_ref().filter(|_| with_kafka),
            visit: &|| self.visit(),
            lines: &|| self.lines(),
        };
        let mut report = audit_live(&node, &mut |progress| {
            tracing::debug!(step = progress.step, done = progress.done, of = progress.of, "audit");
        })?;
        for (item, line) in (0..).map(ItemIndex::new).zip(&mut report.items) {
            let lease = self.figures.lease(item).filter(|lease| lease.is_shared);
            line.lease = lease.map(|lease| lease.phase.to_owned());
        }
        tracing::info!(verdict = %report.verdict, seq = report.subject.last_seq.get(), "audited");
        Ok(report.json())
    }

    /// Every slot's digest and sums, and the control state's, each at its own cut.
    fn visit(&self) -> Result<Claims, CannotLook> {
        let (sender, reports) = unbounded::<SlotReport>();
        let visit = Visit::new(Visitor::new(false, CREDITS, move |report| {
            // An audit that was given up hears no more.
            let _ = sender.send(report);
        }));
        for inbox in self.core.inboxes.iter() {
            inbox.send(Message::Visit(visit.visitor()));
        }
        let (control_in, control_out) = bounded(1);
        self.core.control.visit(move |report| {
            let _ = control_in.send(report);
        });
        let gave_up = |_: RecvTimeoutError| {
            CannotLook::Read("the node did not report all its slots: is it stopping?".into())
        };
        let mut claims = Claims::default();
        while claims.slots.len() < SLOT_COUNT {
            let SlotReport { slot, cut, content } =
                reports.recv_timeout(REPORT_WITHIN).map_err(gave_up)?;
            visit.give_credit();
            let SlotContent::Figures { digest, totals } = content else { continue };
            claims.slots.push(SlotClaim::reported(slot, cut, digest, &totals, "the node"));
        }
        let control = control_out.recv_timeout(REPORT_WITHIN).map_err(gave_up)?;
        claims.add_part(CONTROL, control.cut, &control.bytes, "the node")?;
        Ok(claims)
    }

    fn lines(&self) -> Vec<(ItemIndex, u64)> {
        let sales = self.core.catalog.sales();
        let items = sales.iter().flat_map(|sale| sale.items());
        items.map(|item| (item, self.core.stock.line(item).free())).collect()
    }
}
