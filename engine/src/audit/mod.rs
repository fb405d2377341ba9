//! The auditor: its own model of what the journal says, held against the journal's own figures,
//! the snapshots, the running shards and the store.
//!
//! It shares with the engine the units, the record decoder and the readers of files; and for I5,
//! which is a statement about the engine's replay, that replay. All arithmetic is its own.

pub mod beside;
pub mod claimed;
pub mod files;
pub mod finding;
pub mod journal;
pub mod live;
pub mod model;
pub mod offline;
pub mod parts;
pub mod pools;
pub mod replay;
pub mod report;
pub mod run;
pub mod shipped;
pub mod store;
pub mod stores;
pub mod together;

pub use live::{LiveNode, audit_live};
pub use offline::{CannotLook, DATABASE_DIR, Elsewhere, audit_data_dir, audit_with};
pub use report::AuditReport;
pub use run::Progress;
