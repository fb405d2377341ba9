//! The generator allocates nothing per request: in a binary of its own, with an allocator that
//! counts.
//!
//! One run has slow seconds and fast ones. What a second costs by itself (a histogram, the figures
//! handed on) it costs in both; an allocation per request would show as thousands more in the fast
//! ones. The server is in this process and allocates nothing either while it answers.

#![allow(clippy::unwrap_used, reason = "all of this crate is tests")]
#![allow(unsafe_code, reason = "a global allocator is unsafe to write; this one only counts")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use onrush_load::cli::args::ScenarioArgs;
use onrush_load::cli::resolve;
use onrush_load::plan::Plan;
use onrush_load::run::{self, Observer};
use onrush_load::stats::Second;

/// The system's allocator, counted.
struct Counting;

/// Relaxed: read at moments a second apart, by one thread.
static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: every call goes on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller keeps `alloc`'s contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps `dealloc`'s contract.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller keeps `realloc`'s contract.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

fn allocations() -> u64 {
    ALLOCATIONS.load(Ordering::Relaxed)
}

/// Gives every request the same answer, from buffers on the stack. Requests end with `end`.
fn serve(end: &'static [u8], answer: &'static [u8]) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let stream = stream.unwrap();
            thread::spawn(move || answer_all(stream, end, answer));
        }
    });
    address
}

fn answer_all(mut stream: TcpStream, end: &[u8], answer: &[u8]) {
    stream.set_nodelay(true).unwrap();
    let (mut buffer, mut held) = ([0; 16 << 10], 0);
    while let Ok(count @ 1..) = stream.read(&mut buffer[held..]) {
        held += count;
        let mut from = 0;
        while let Some(at) = buffer[from..held].windows(end.len()).position(|w| w == end) {
            from += at + end.len();
            if stream.write_all(answer).is_err() {
                return;
            }
        }
        buffer.copy_within(from..held, 0);
        held -= from;
    }
}

/// Allocations and requests of each second.
#[derive(Default)]
struct Seconds {
    before: u64,
    rows: Vec<(u64, u64)>,
}

impl Observer for Seconds {
    fn second(&mut self, _plan: &Plan, second: &Second) {
        let now = allocations();
        self.rows.push((now - self.before, second.sent));
        self.before = allocations();
    }
}

const SLOW: u64 = 300;
const FAST: u64 = 4000;

/// Allocations in a slow second and in a fast one; the best of the steady ones each.
fn measure(scenario: &str, target: &str) -> (u64, u64) {
    let text = format!(
        "target = ['{target}']\n[schedule]\nseed = 1\n\
         phase = ['slow:3:{SLOW}', 'fast:3:{FAST}']\n{scenario}"
    );
    let args: ScenarioArgs = toml::from_str(&text).unwrap();
    let mut seen = Seconds { rows: Vec::with_capacity(16), ..Seconds::default() };
    let ran = run::run(resolve::plan(&args).unwrap(), &mut seen).unwrap();
    assert_eq!(ran.stats.counters.unsent + ran.stats.counters.unanswered, 0, "{scenario}");
    let least = |seconds: &[(u64, u64)], sent: u64| {
        // A second in which this machine did something else has fewer requests: it shows nothing.
        let full = seconds.iter().filter(|(_, s)| *s >= sent * 9 / 10);
        full.map(|(count, _)| *count).min().unwrap_or_else(|| panic!("{:?}", seen.rows))
    };
    (least(&seen.rows[1..3], SLOW), least(&seen.rows[4..6], FAST))
}

const EMPTY: &[u8] = b"\r\n\r\n";
const PLAIN: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}";
const CHUNKED: &[u8] =
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n3\r\nabc\r\n0\r\n\r\n";
const SOLD_OUT: &[u8] = b"HTTP/1.1 409 Conflict\r\nContent-Type: application/problem+json\r\n\
    Content-Length: 34\r\n\r\n{\"code\":\"sold-out\", \"final\":false}";

#[test]
fn a_request_costs_no_allocation() {
    let before = allocations();
    drop(std::hint::black_box(Box::new(1)));
    assert_eq!(allocations(), before + 1, "it counts");

    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data.csv");
    std::fs::write(&data, "id,city\n1,Bern\n2,Genf\n").unwrap();
    let filled = format!(
        "[http]\ndata = '{}'\nbody = '{{\"c\":\"{{{{city}}}}\"}}'\n[client]\nthreads = 2",
        data.display()
    );
    let pipelined = "[client]\npipeline = 16\nconnections = 4";
    let sale = "[redeem]\nsale = 's'\nitems = ['a', 'b']\nmembers = '1-100000'\nholds = 0.5\n\
                duplicates = 0.2";
    let cases = [
        ("plain", "", "/", EMPTY, PLAIN),
        ("pipelined, answers in chunks", pipelined, "/", EMPTY, CHUNKED),
        ("filled in from data, two threads", &filled, "/u/{{id}}", b"\"}", PLAIN),
        ("redemptions of what is sold out", sale, "/", b"}", SOLD_OUT),
    ];
    for (name, scenario, path, end, answer) in cases {
        let (slow, fast) = measure(scenario, &format!("http://{}{path}", serve(end, answer)));
        println!("{name}: {slow} in a second of {SLOW} requests, {fast} in one of {FAST}");
        assert!(slow < 60 && fast < slow + 20, "{name}: {slow}, then {fast}");
    }
}
