//! Running a plan: worker threads, the start, progress, the end.

pub mod conductor;
pub mod conn_task;
#[allow(unsafe_code, reason = "tokio takes a foreign descriptor only by an unsafe call")]
pub mod timer;
pub mod worker;

pub use conductor::{Failed, Outcomes, run};
