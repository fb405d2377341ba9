//! The `onrush` binary.

use std::process::ExitCode;

#[cfg(not(onrush_system_allocator))] // ThreadSanitizer follows the system's allocator alone
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // A bug stops the process, in every build: no thread goes on beside one that panicked.
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        report(info);
        std::process::abort();
    }));
    onrush::cli::run()
}
