//! `onrush-load`, the command.

/// Less to do per allocation on the few paths that have one.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    onrush_load::cli::main(std::env::args_os()).into()
}
