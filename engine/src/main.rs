//! The `onrush` binary.

use std::process::ExitCode;

#[cfg(not(onrush_system_allocator))] // ThreadSanitizer follows the system's allocator alone
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    onrush::telemetry::logs::end_at_panic();
    onrush::cli::run()
}
