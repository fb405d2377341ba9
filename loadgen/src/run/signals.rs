//! SIGINT and SIGTERM end the run, SIGUSR1 sets a mark.
//!
//! Thread: one of its own, from the first call to the end of the process, so that a signal is heard
//! while connections are opened, while load runs, and while the ledger is checked.
//!
//! ```text
//! first  SIGINT or SIGTERM   no request is planned any more; what is out is waited for, then all
//!                            that was asked for is checked, printed and written
//! second                     the process exits at once, with 130
//! ```

use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::tui::terminal;

/// Relaxed, both: flags that are polled, and nothing hangs on their order.
static STOPPED: AtomicBool = AtomicBool::new(false);
static MARKS: AtomicU32 = AtomicU32::new(0);

struct Signals {
    interrupt: Signal,
    terminate: Signal,
    mark: Signal,
}

/// Begins to listen; further calls do nothing.
pub fn listen() -> io::Result<()> {
    static LISTENING: OnceLock<()> = OnceLock::new();
    if LISTENING.get().is_some() {
        return Ok(());
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    // Here and not on the thread: when this returns, no signal has its old meaning any more.
    let signals = {
        let _context = runtime.enter();
        Signals {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            mark: signal(SignalKind::user_defined1())?,
        }
    };
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || runtime.block_on(hear(signals)))?;
    // Two first calls at once would only make two threads that count the same.
    let _ = LISTENING.set(());
    Ok(())
}

/// Whether the run was told to end.
pub fn stopped() -> bool {
    STOPPED.load(Ordering::Relaxed)
}

/// Marks asked for so far.
pub fn marks() -> u32 {
    MARKS.load(Ordering::Relaxed)
}

async fn hear(mut signals: Signals) {
    loop {
        tokio::select! {
            _ = signals.interrupt.recv() => stop(),
            _ = signals.terminate.recv() => stop(),
            _ = signals.mark.recv() => { MARKS.fetch_add(1, Ordering::Relaxed); }
        }
    }
}

fn stop() {
    if STOPPED.swap(true, Ordering::Relaxed) {
        terminal::leave();
        std::process::exit(130);
    }
    if terminal::is_entered() {
        // The screen says it itself.
        return;
    }
    eprintln!("\nending: waiting for what is out, then reporting (once more: exit at once)");
}
