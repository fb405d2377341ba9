//! An audit of a stopped node's data folder. Nothing in it is repaired or written.

use std::path::Path;
use std::time::Duration;

use thiserror::Error;

use super::files::{FileJournal, Snapshots};
use super::finding::{Check, Findings, Where};
use super::journal::{Bounds, CannotRead};
use super::parts::Base;
use super::report::{AuditReport, PointsLine, Subject};
use super::run::{Inputs, Progress, run};
use super::shipped::Shipped;
use super::store::CannotCompare;
use super::stores;
use crate::config::{KafkaConfig, StoreConfig};
use crate::journal::JournalError;
use crate::journal::lock::FolderLock;
use crate::journal::open::{journal_dir, snapshot_dir};
use crate::journal::tail::StoppedJournal;
use crate::persist::store::StoreError;
use crate::units::Incarnation;

/// Nothing can be said: exit code 2.
#[derive(Error, Debug)]
pub enum CannotLook {
    #[error(
        "a node is running on {0}: ask it instead, `onrush audit --admin URL`, or stop it first"
    )]
    Running(String),
    #[error("{0}")]
    Journal(JournalError),
    #[error("{0}")]
    Read(String),
}

impl From<CannotRead> for CannotLook {
    fn from(e: CannotRead) -> Self {
        Self::Read(e.0)
    }
}
impl From<CannotCompare> for CannotLook {
    fn from(e: CannotCompare) -> Self {
        Self::Read(e.to_string())
    }
}
impl From<StoreError> for CannotLook {
    fn from(e: StoreError) -> Self {
        Self::Read(e.to_string())
    }
}

/// What is not in the data folder.
#[derive(Clone, Default, Debug)]
pub struct Elsewhere {
    /// The database shards.
    pub store: StoreConfig,
    /// The records topic, where it is to be compared.
    pub kafka: Option<KafkaConfig>,
}

/// Audits the data folder of a node that does not run, with the database shards in it.
///
/// Errors: as [`audit_with`].
pub fn audit_data_dir(
    data: &Path,
    progress: &mut dyn FnMut(Progress),
) -> Result<AuditReport, CannotLook> {
    audit_with(data, &Elsewhere::default(), progress)
}

/// Audits the data folder of a node that does not run, and what belongs to it elsewhere.
///
/// A journal that is damaged, where a start would refuse it, is a finding and not an error: then
/// nothing else is checked.
///
/// Errors: a node runs on the folder, or something cannot be read.
pub fn audit_with(
    data: &Path,
    elsewhere: &Elsewhere,
    progress: &mut dyn FnMut(Progress),
) -> Result<AuditReport, CannotLook> {
    let folder = journal_dir(data);
    if !folder.is_dir() {
        let path = folder;
        return Err(CannotLook::Journal(JournalError::Missing { path }));
    }
    let _lock = lock(data, &folder)?;
    progress(Progress { step: "finding the journal's end", done: 0, of: 1 });
    let name = data.display().to_string();
    let stopped = match StoppedJournal::open(&folder) {
        Ok(stopped) => stopped,
        Err(e) if is_damage(&e) => return Ok(damaged(name, &e)),
        Err(e) => return Err(CannotLook::Journal(e)),
    };
    let last = stopped.scan().last;
    let bounds = Bounds {
        journal: stopped.journal(),
        first: stopped.first_seq(),
        last: stopped.last_seq(),
        incarnation: last.map_or(Incarnation::default(), |frame| frame.header.incarnation),
    };
    let mut findings = Findings::default();
    progress(Progress { step: "reading the snapshots", done: 0, of: 1 });
    let snapshots = Snapshots::read(&snapshot_dir(data), bounds, &mut findings)?;
    let journal = FileJournal::new(bounds, |from| stopped.tail(from));
    let subject = Subject {
        name,
        is_live: false,
        journal: format!("{:016x}", bounds.journal.get()),
        incarnation: bounds.incarnation.get(),
        first_seq: bounds.first,
        last_seq: bounds.last,
        base_snapshot: snapshots.base.as_ref().map(super::files::SnapshotFile::number),
        others: Vec::new(),
    };
    let stores = stores::open(&elsewhere.store, &data.join(DATABASE_DIR))?;
    stores.report(bounds.first, &mut findings);
    let kafka = elsewhere.kafka.as_ref();
    let mut inputs = Some((subject, snapshots.claims, findings));
    let mut outcome = None;
    stores::with_all(&stores, bounds.journal, &mut |reads, others| {
        if let Some((subject, claims, findings)) = inputs.take() {
            if kafka.is_some() {
                progress(Progress { step: "reading Kafka", done: 0, of: 1 });
            }
            let read = kafka.map(|kafka| Shipped::read(kafka, bounds.journal, others));
            let shipped = match read.transpose() {
                Ok(shipped) => shipped,
                Err(error) => {
                    outcome = Some(Err(CannotCompare::Journal(error)));
                    return Ok(());
                }
            };
            let inputs = Inputs {
                subject,
                journal: &journal,
                base: snapshots.base.as_ref().map(|base| base as &dyn Base),
                claims,
                layout: stores.layout(reads)?,
                shipped,
                stores: reads,
                lines: None,
                findings,
            };
            outcome = Some(run(inputs, progress));
        }
        Ok(())
    })?;
    Ok(outcome.expect("it runs once within all transactions")?)
}

/// Takes the folder's lock. A node that was killed a moment ago may hold it until the kernel has
/// taken its memory back, so a held lock is tried for a second.
fn lock(data: &Path, folder: &Path) -> Result<FolderLock, CannotLook> {
    let mut tries = 1;
    loop {
        match FolderLock::take(folder) {
            Ok(lock) => return Ok(lock),
            Err(JournalError::Locked { .. }) if tries < LOCK_TRIES => {
                tries += 1;
                std::thread::sleep(LOCK_PAUSE);
            }
            Err(JournalError::Locked { .. }) => {
                return Err(CannotLook::Running(data.display().to_string()));
            }
            Err(e) => return Err(CannotLook::Journal(e)),
        }
    }
}

const LOCK_TRIES: u32 = 20;
const LOCK_PAUSE: Duration = Duration::from_millis(50);

/// The database shards' folder within a data folder.
pub const DATABASE_DIR: &str = "db";

/// Whether a journal is there and is not what it was: something that does not hold.
fn is_damage(e: &JournalError) -> bool {
    matches!(
        e,
        JournalError::Damaged { .. }
            | JournalError::BaseDamaged { .. }
            | JournalError::SegmentHeader { .. }
            | JournalError::SegmentMissing { .. }
            | JournalError::Mixed { .. }
    )
}

fn damaged(name: String, e: &JournalError) -> AuditReport {
    let mut findings = Findings::default();
    findings.violation(Check::Journal, Where::default(), e.to_string());
    let subject = Subject { name, ..Subject::default() };
    AuditReport::new(subject, &[], PointsLine::default(), Vec::new(), Vec::new(), &findings)
}
