//! Logs: one line per event; for people on a terminal, JSON elsewhere.

use std::io::{IsTerminal, stderr};

use tracing_subscriber::EnvFilter;

/// What is logged where `RUST_LOG` says nothing.
const DEFAULT_FILTER: &str = "info";

/// Sends events to standard error. Call it once, before anything is logged.
///
/// Errors: a filter in `RUST_LOG` that cannot be read, or logging that was set up before.
pub fn init() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let filter = EnvFilter::builder().with_default_directive(DEFAULT_FILTER.parse()?).from_env()?;
    let builder =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(stderr).with_target(false);
    if stderr().is_terminal() {
        builder.compact().try_init()
    } else {
        builder.json().flatten_event(true).with_thread_names(true).try_init()
    }
}
