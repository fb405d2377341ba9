//! Logs: one line per event; for people on a terminal, JSON elsewhere.

use std::backtrace::Backtrace;
use std::io::{IsTerminal, stderr};
use std::sync::atomic::{AtomicBool, Ordering};

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
        builder.json().flatten_event(true).with_thread_names(true).try_init()?;
        // Relaxed: a panic that does not see it yet is told as it was before.
        IS_JSON.store(true, Ordering::Relaxed);
        Ok(())
    }
}

static IS_JSON: AtomicBool = AtomicBool::new(false);

/// From now on a panic ends the process, on whichever thread: a bug stops it, in every build. It is
/// told as any other event, where those are JSON.
pub fn end_at_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if IS_JSON.load(Ordering::Relaxed) && tracing::enabled!(tracing::Level::ERROR) {
            tracing::error!(backtrace = %Backtrace::capture(), "{info}");
        } else {
            report(info);
        }
        std::process::abort();
    }));
}
