//! `--prometheus ADDR`: live figures for whoever scrapes them.
//!
//! Thread: one that answers; the text is renewed once a second by the run's observer.

use std::fmt::Write as _;
use std::io::{self, Read, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::report::summary::{Sum, outcome_name};
use crate::run::Outcomes;

/// What is answered at present.
#[derive(Clone, Debug)]
pub struct Exposed {
    text: Arc<Mutex<String>>,
}

impl Exposed {
    /// Listens; the address may have port 0, and what it became is given back.
    pub fn listen(address: SocketAddr) -> io::Result<(Self, SocketAddr)> {
        let listener = TcpListener::bind(address)?;
        let address = listener.local_addr()?;
        let text = Arc::new(Mutex::new(String::new()));
        let shown = text.clone();
        std::thread::Builder::new().name("prometheus".into()).spawn(move || {
            for stream in listener.incoming().flatten() {
                let text = shown.lock().expect("no holder of this lock panics").clone();
                // A scraper that goes away is its own matter.
                let _ = answer(stream, &text);
            }
        })?;
        Ok((Self { text }, address))
    }

    pub fn show(&self, run: &Outcomes) {
        *self.text.lock().expect("no holder of this lock panics") = render(run);
    }
}

fn answer(mut stream: std::net::TcpStream, text: &str) -> io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    stream.set_write_timeout(Some(Duration::from_secs(2)))?;
    let mut head = Vec::new();
    let mut piece = [0; 1024];
    while memchr::memmem::find(&head, b"\r\n\r\n").is_none() && head.len() < 16 << 10 {
        match stream.read(&mut piece)? {
            0 => return Ok(()),
            count => head.extend_from_slice(&piece[..count]),
        }
    }
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4\r\nConnection: close\r\n\
         Content-Length: {}\r\n\r\n{text}",
        text.len()
    )
}

/// The text format, version 0.0.4.
pub fn render(run: &Outcomes) -> String {
    let mut out = String::new();
    let c = &run.stats.counters;
    for (name, help, value) in [
        ("planned", "Requests of the schedule whose time has come", c.planned),
        ("follow_ups", "Requests that came from others", c.follow_ups),
        ("attempts", "Attempts written to a connection", c.attempts),
        ("retries", "Attempts beyond a request's first", c.retries),
        ("answered", "Requests with a final answer", c.answered),
        ("unsent", "Requests that were too late to be sent", c.unsent),
        ("bytes_sent", "Bytes written", c.bytes_sent),
        ("bytes_received", "Bytes read", c.bytes_received),
        ("connections_opened", "Connections opened", c.connections_opened),
        ("connections_lost", "Connections lost with requests out", c.connections_lost),
        ("connects_failed", "Connects that failed", c.connects_failed),
        ("findings", "What the ledger check found so far", run.ledger.findings.total()),
    ] {
        let _ = write!(
            out,
            "# HELP onrush_load_{name}_total {help}.\n# TYPE onrush_load_{name}_total counter\n\
             onrush_load_{name}_total {value}\n"
        );
    }
    out.push_str("# HELP onrush_load_requests_total Requests by their final outcome.\n");
    out.push_str("# TYPE onrush_load_requests_total counter\n");
    for o in &run.stats.outcomes {
        let name = outcome_name(&o.key).replace('\\', "\\\\").replace('"', "\\\"");
        let name = name.replace('\n', "\\n");
        let _ = writeln!(out, "onrush_load_requests_total{{outcome=\"{name}\"}} {}", o.requests);
    }
    let all = Sum::of(&run.stats.outcomes, |_| true);
    for (name, help, h) in [
        ("response", "From the planned moment, over all attempts", &all.response),
        ("service", "From the sending of an attempt", &all.service),
        ("lag", "How late the generator sent though a connection was free", &run.stats.lag),
    ] {
        let name = format!("onrush_load_{name}_seconds");
        let _ = write!(out, "# HELP {name} {help}.\n# TYPE {name} summary\n");
        for q in [0.5, 0.9, 0.99, 0.999, 1.0] {
            let value = h.value_at_quantile(q) as f64 / 1e6;
            let _ = writeln!(out, "{name}{{quantile=\"{q}\"}} {value}");
        }
        let _ = writeln!(out, "{name}_sum {}", h.mean() * h.len() as f64 / 1e6);
        let _ = writeln!(out, "{name}_count {}", h.len());
    }
    out
}
