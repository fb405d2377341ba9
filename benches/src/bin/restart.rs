//! How long a node with many members takes to be ready again, and what memory a member takes.
//!
//! Once from the journal alone (after kill -9, before any snapshot) and once from the final
//! snapshot (after SIGTERM). Persist is left out: rows in database shards play no part in a start.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use clap::Parser;
use onrush_benches::disk::file_system;
use onrush_benches::servers::{Server, binary};
use serde_json::json;

/// Measures restarts of a node with many members, and its memory
#[derive(Parser)]
#[command(after_help = "Example: restart --members 10000000 --out results/restart.json")]
struct Args {
    #[arg(long, default_value_t = 10_000_000)]
    members: u64,
    /// Restarts of each kind; the median counts
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Where the node's data lies: a disk, not tmpfs
    #[arg(long, default_value = "target/bench-data")]
    data: PathBuf,
    /// Write the figures there, as JSON
    #[arg(long)]
    out: Option<PathBuf>,
}

#[allow(clippy::disallowed_methods, reason = "a bench measures time")]
fn main() -> std::io::Result<()> {
    let args = Args::parse();
    let data = std::path::absolute(&args.data)?;
    let _ = std::fs::remove_dir_all(&data);
    std::fs::create_dir_all(&data)?;
    let file_system = file_system(&data)?;

    let server = start(&data)?;
    let empty = server.resident()?;
    let began = Instant::now();
    import(server.addresses[1], args.members)?;
    let import_s = began.elapsed().as_secs_f64();
    let full = server.resident()?;
    // The memory of a node that has just taken everything in, the allocator's slack included.
    let bytes_per_member = (full - empty) as f64 / args.members as f64;
    eprintln!("imported in {import_s:.1} s, {bytes_per_member:.1} bytes per member");
    drop(server);

    let mut from_journal = Vec::new();
    let mut from_snapshot = Vec::new();
    let mut restarted_bytes_per_member = 0.0;
    for round in 0..args.rounds {
        let (server, seconds) = timed_start(&data)?;
        eprintln!("round {}: ready in {seconds:.2} s, replaying the journal", round + 1);
        from_journal.push(seconds);
        drop(server);
    }
    let (server, _) = timed_start(&data)?;
    server.terminate()?;
    for round in 0..args.rounds {
        let (server, seconds) = timed_start(&data)?;
        eprintln!("round {}: ready in {seconds:.2} s, from the snapshot", round + 1);
        from_snapshot.push(seconds);
        restarted_bytes_per_member = (server.resident()? - empty) as f64 / args.members as f64;
        drop(server);
    }

    let median = onrush_benches::servers::median;
    let figures = json!({
        "members": args.members,
        "file_system": file_system,
        "import_seconds": import_s,
        "resident_bytes_per_member_after_import": bytes_per_member,
        "resident_bytes_per_member_after_restart": restarted_bytes_per_member,
        "restart_seconds_replaying_the_journal": median(&from_journal),
        "replayed_records_per_second": args.members as f64 / median(&from_journal),
        "restart_seconds_from_the_snapshot": median(&from_snapshot),
    });
    let text = serde_json::to_string_pretty(&figures)?;
    println!("{text}");
    if let Some(path) = &args.out {
        std::fs::write(path, text + "\n")?;
    }
    std::fs::remove_dir_all(&data)
}

fn start(data: &Path) -> std::io::Result<Server> {
    let ready = data.join("ready");
    let mut command = Command::new(binary("onrush"));
    command
        .args(["serve", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--ready-file"])
        .arg(&ready)
        .arg("--data")
        .arg(data.join("node"))
        .env("ONRUSH__PERSIST__RUN", "false")
        .env("ONRUSH__SHARDS__COUNT", "1")
        .env("ONRUSH__SNAPSHOT__EVERY_MS", "86400000")
        .env("ONRUSH__SNAPSHOT__EVERY_RECORDS", "1000000000")
        .env("RUST_LOG", "error");
    Server::start_anywhere(command, &ready)
}

#[allow(clippy::disallowed_methods, reason = "a bench measures time")]
fn timed_start(data: &Path) -> std::io::Result<(Server, f64)> {
    let began = Instant::now();
    let server = start(data)?;
    Ok((server, began.elapsed().as_secs_f64()))
}

fn import(address: SocketAddr, members: u64) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(address)?;
    write!(
        stream,
        "POST /v1/members:import HTTP/1.1\r\nhost: bench\r\nconnection: close\r\n\
         x-operator: bench\r\ncontent-type: text/csv\r\ntransfer-encoding: chunked\r\n\r\n"
    )?;
    let mut rows = String::from("member,points\n");
    for member in 1..=members {
        use std::fmt::Write as _;
        let _ = writeln!(rows, "{member},1000");
        if rows.len() > 1 << 16 || member == members {
            write!(stream, "{:x}\r\n{rows}\r\n", rows.len())?;
            rows.clear();
        }
    }
    write!(stream, "0\r\n\r\n")?;
    stream.set_read_timeout(Some(Duration::from_mins(10)))?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    if answer.starts_with("HTTP/1.1 200") {
        return Ok(());
    }
    Err(std::io::Error::other(answer))
}
