//! The baseline as a process of its own, with the node's allocator.

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::io::Result<()> {
    let ready_file = std::env::args().nth(1).expect("usage: bare_hyper READY_FILE");
    onrush_benches::bare::serve(|address| {
        let temporary = format!("{ready_file}.tmp");
        std::fs::write(&temporary, format!("{address}\n"))?;
        std::fs::rename(&temporary, &ready_file)
    })
}
