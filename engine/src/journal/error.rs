//! What can go wrong with the journal, in words that say what to do next.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use super::format::Flaw;
use crate::units::{JournalId, Seq};

/// An operating error of the journal or its snapshots.
#[derive(Error, Debug)]
pub enum JournalError {
    #[error("{what}: {source}")]
    Io { what: String, source: io::Error },
    #[error("{path} is in use by another process (its lock is held): stop that one first")]
    Locked { path: PathBuf },
    #[error("there is no journal in {path}: is it the right data folder?")]
    Missing { path: PathBuf },
    #[error(
        "{file} is of format version {version}, this program reads up to {ours}: \
         use the newer program that wrote it"
    )]
    Newer { file: String, version: u32, ours: u32 },
    #[error(
        "{file} is damaged at byte {offset}: frame {frame} should stand there ({found}), and a \
         later frame says that frames up to {claimed} were durable. Nothing was changed. \
         Restore the folder from a backup, or rebuild it from the databases"
    )]
    Damaged { file: String, offset: u64, frame: u64, claimed: u64, found: String },
    #[error(
        "{file} is damaged: its first frame is unreadable, and earlier segments were deleted as \
         covered. Nothing was changed. Restore the folder from a backup"
    )]
    BaseDamaged { file: String },
    #[error("{file} has a damaged header ({flaw:?}). Nothing was changed. Restore it")]
    SegmentHeader { file: String, flaw: Flaw },
    #[error("{file} is missing between its neighbours. Nothing was changed. Restore it")]
    SegmentMissing { file: String },
    #[error("{file} belongs to journal {found}, the others to {expected}: two folders were mixed")]
    Mixed { file: String, expected: JournalId, found: JournalId },
    #[error(
        "a snapshot reaches to sequence number {cut}, the journal ends at {end}: writes that were \
         acknowledged are lost. Restore the journal from a backup, or rebuild it from the databases"
    )]
    SnapshotBeyondEnd { cut: Seq, end: Seq },
    #[error(
        "the snapshot needs the journal from sequence number {needed} on, it begins at {first}: \
         segments were removed by hand? Restore them"
    )]
    SnapshotTooOld { needed: Seq, first: Seq },
    #[error("no snapshot is readable, and the journal begins at {first}: restore a snapshot")]
    NoSnapshot { first: Seq },
    #[error("snapshot {file} is damaged at byte {offset}: {found}")]
    SnapshotDamaged { file: String, offset: u64, found: &'static str },
    #[error("records from sequence number {from} on were deleted: the journal begins at {first}")]
    Gone { from: Seq, first: Seq },
    #[error("the journal's options make no sense: {0}")]
    Options(&'static str),
    #[error("a write or sync of the journal failed, so nothing is acknowledged any more: {source}")]
    Poisoned { source: io::Error },
}

impl JournalError {
    /// Wraps an I/O error with what was being done.
    pub fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}
