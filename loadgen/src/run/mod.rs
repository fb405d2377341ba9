//! Running a plan: worker threads, the start, progress, the end.

pub mod conductor;
pub mod conn_task;
pub mod measured;
pub mod observe;
pub mod signals;
#[allow(unsafe_code, reason = "tokio takes a foreign descriptor only by an unsafe call")]
pub mod timer;
pub mod two_conn;
pub mod worker;

pub use conductor::{Failed, Outcomes, run};
pub use measured::Measured;
pub use observe::Observer;
