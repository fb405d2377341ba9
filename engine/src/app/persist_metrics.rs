//! `/metrics` and `/livez` of a persist process: a thread and a socket, nothing that could hold
//! persist up. The node's own door is another matter: it serves members.

use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::persist::status::{PersistStatus, ShardStatus};

/// How long a scraper may take to ask and to read.
const PATIENCE: Duration = Duration::from_secs(2);
/// Bytes of a request's head, at most.
const HEAD_MAX: usize = 4096;

/// Binds and serves until the process ends; gives the address that was bound.
pub(super) fn serve(listen: SocketAddr, status: Arc<PersistStatus>) -> std::io::Result<SocketAddr> {
    let listener = TcpListener::bind(listen)?;
    let address = listener.local_addr()?;
    let run = move || {
        for stream in listener.incoming().flatten() {
            // A scraper that goes away is no matter of ours.
            let _ = answer(stream, &status);
        }
    };
    std::thread::Builder::new().name("metrics".into()).spawn(run)?;
    Ok(address)
}

fn answer(mut stream: TcpStream, status: &PersistStatus) -> std::io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut head = Vec::new();
    let mut part = [0; 512];
    while !head.windows(4).any(|w| w == b"\r\n\r\n") && head.len() < HEAD_MAX {
        match stream.read(&mut part)? {
            0 => break,
            count => head.extend_from_slice(&part[..count]),
        }
    }
    let (line, body) = match head.split(|b| *b == b' ').nth(1) {
        Some(b"/metrics") => ("200 OK", text(status)),
        Some(b"/livez") => ("200 OK", String::from("alive\n")),
        _ => ("404 Not Found", String::from("/metrics and /livez are here\n")),
    };
    write!(
        stream,
        "HTTP/1.1 {line}\r\ncontent-type: text/plain; version=0.0.4\r\ncontent-length: {}\r\n\
         connection: close\r\n\r\n{body}",
        body.len()
    )
}

/// What each figure is called, what it says, whether it only rises, and where it stands.
type Figure = (&'static str, &'static str, bool, fn(&ShardStatus) -> u64);

fn read(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

const FIGURES: [Figure; 8] = [
    ("persist_records_total", "Records applied", true, |s| read(&s.records)),
    ("persist_batches_total", "Transactions committed", true, |s| read(&s.batches)),
    ("persist_skipped_total", "Records that came again", true, |s| read(&s.skipped)),
    ("persist_retries_total", "Transactions tried again", true, |s| read(&s.retries)),
    ("persist_rewinds_total", "Gaps noticed", true, |s| read(&s.rewinds)),
    ("persist_alarms_total", "What a person must look at", true, |s| read(&s.alarm_count)),
    ("persist_dead_letters", "Records set aside", false, |s| read(&s.letters)),
    ("persist_held_up", "Whether the last transaction failed", false, |s| {
        u64::from(s.last_error().is_some())
    }),
];

/// The figures in Prometheus' text format.
fn text(status: &PersistStatus) -> String {
    let mut out = String::new();
    for (name, help, is_counter, figure) in FIGURES {
        let kind = if is_counter { "counter" } else { "gauge" };
        let _ = writeln!(out, "# HELP onrush_{name} {help}\n# TYPE onrush_{name} {kind}");
        for (shard, of_shard) in status.shards() {
            let (shard, value) = (shard.get(), figure(of_shard));
            let _ = writeln!(out, "onrush_{name}{{database_shard=\"{shard}\"}} {value}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ship::partition::{DatabaseShard, Layout};

    fn ask(address: SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(address).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).unwrap();
        reply
    }

    #[test]
    fn a_scraper_gets_every_database_shards_figures() {
        let status = Arc::new(PersistStatus::new(Layout::new(2).unwrap()));
        status.shard(DatabaseShard::new(1)).records.store(7, Ordering::Relaxed);
        let address = serve(SocketAddr::from(([127, 0, 0, 1], 0)), status).unwrap();
        let reply = ask(address, "/metrics");
        assert!(reply.starts_with("HTTP/1.1 200 OK\r\n"), "{reply}");
        assert!(
            reply.contains("onrush_persist_records_total{database_shard=\"1\"} 7\n"),
            "{reply}"
        );
        assert_eq!(reply.matches("# TYPE").count(), FIGURES.len());
        assert!(ask(address, "/livez").ends_with("alive\n"));
        assert!(ask(address, "/").starts_with("HTTP/1.1 404"));
    }
}
