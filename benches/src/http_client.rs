//! A closed-loop HTTP/1.1 client for benches: one thread, epoll, as few cycles as it can.
//!
//! It does not measure latency from planned times (that is `onrush-load`'s work); it keeps a fixed
//! number of requests in flight and counts answers, so that servers can be compared by requests
//! per second and CPU per request.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use rustix::event::epoll;

/// Makes the bytes of the next request; appended to the buffer.
pub trait Requests {
    fn next(&mut self, out: &mut Vec<u8>);
}

/// What a run saw.
#[derive(Debug)]
pub struct Run {
    pub answers: u64,
    /// Answers by status: 2xx, 4xx, 5xx, else.
    pub by_class: [u64; 4],
    pub elapsed: Duration,
    /// Units: nanoseconds from a batch's send to its last answer.
    pub latency: Histogram<u64>,
}

impl Run {
    pub fn per_second(&self) -> f64 {
        self.answers as f64 / self.elapsed.as_secs_f64()
    }
}

struct Connection {
    stream: TcpStream,
    inbound: Vec<u8>,
    waiting: usize,
    sent_at: Instant,
}

impl Connection {
    #[allow(clippy::disallowed_methods, reason = "a bench measures time")]
    fn open(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        let inbound = Vec::with_capacity(16 << 10);
        Ok(Self { stream, inbound, waiting: 0, sent_at: Instant::now() })
    }
}

/// One kept-alive connection that waits for each answer before it sends the next request.
pub struct Caller {
    connection: Connection,
    out: Vec<u8>,
    /// Answers by status: 2xx, 4xx, 5xx, else.
    pub by_class: [u64; 4],
}

impl Caller {
    pub fn open(address: SocketAddr) -> io::Result<Self> {
        Ok(Self { connection: Connection::open(address)?, out: Vec::new(), by_class: [0; 4] })
    }

    /// Sends the next request and waits for its answer; how long it took.
    ///
    /// Errors: the connection failed, or the answer was not HTTP.
    pub fn call(&mut self, requests: &mut impl Requests) -> io::Result<Duration> {
        send(&mut self.connection, 1, requests, &mut self.out)?;
        while self.connection.waiting > 0 {
            receive(&mut self.connection, &mut self.by_class)?;
        }
        Ok(self.connection.sent_at.elapsed())
    }
}

/// Keeps `connections × pipeline` requests in flight for `duration`.
///
/// Errors: a connection failed, or an answer was not HTTP; the comparison is void then.
#[allow(clippy::disallowed_methods, reason = "a bench measures time")]
pub fn run(
    address: SocketAddr,
    connections: usize,
    pipeline: usize,
    duration: Duration,
    requests: &mut impl Requests,
) -> io::Result<Run> {
    let poll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let mut open = Vec::with_capacity(connections);
    for index in 0..connections {
        let connection = Connection::open(address)?;
        connection.stream.set_nonblocking(true)?;
        let data = epoll::EventData::new_u64(index as u64);
        epoll::add(&poll, connection.stream.as_fd(), data, epoll::EventFlags::IN)?;
        open.push(connection);
    }
    let mut out = Vec::with_capacity(16 << 10);
    let began = Instant::now();
    let mut run = Run {
        answers: 0,
        by_class: [0; 4],
        elapsed: Duration::ZERO,
        latency: Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("valid bounds"),
    };
    for connection in &mut open {
        send(connection, pipeline, requests, &mut out)?;
    }
    let mut events = Vec::with_capacity(connections);
    let mut in_flight = connections * pipeline;
    while in_flight > 0 {
        events.clear();
        epoll::wait(&poll, rustix::buffer::spare_capacity(&mut events), None)?;
        for event in &events {
            let connection = &mut open[event.data.u64() as usize];
            let before = connection.waiting;
            receive(connection, &mut run.by_class)?;
            run.answers += (before - connection.waiting) as u64;
            in_flight -= before - connection.waiting;
            if connection.waiting > 0 {
                continue;
            }
            let now = Instant::now();
            run.latency.saturating_record((now - connection.sent_at).as_nanos() as u64);
            if now - began < duration {
                send(connection, pipeline, requests, &mut out)?;
                in_flight += pipeline;
            }
        }
    }
    run.elapsed = began.elapsed();
    Ok(run)
}

#[allow(clippy::disallowed_methods, reason = "a bench measures time")]
fn send(
    connection: &mut Connection,
    count: usize,
    requests: &mut impl Requests,
    out: &mut Vec<u8>,
) -> io::Result<()> {
    out.clear();
    for _ in 0..count {
        requests.next(out);
    }
    connection.sent_at = Instant::now();
    connection.waiting = count;
    let mut rest = &out[..];
    while !rest.is_empty() {
        match connection.stream.write(rest) {
            Ok(written) => rest = &rest[written..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => std::thread::yield_now(),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn receive(connection: &mut Connection, by_class: &mut [u64; 4]) -> io::Result<()> {
    let mut chunk = [0; 16 << 10];
    match connection.stream.read(&mut chunk) {
        Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
        Ok(read) => connection.inbound.extend_from_slice(&chunk[..read]),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
        Err(error) => return Err(error),
    }
    let mut at = 0;
    while let Some((class, length)) = answer(&connection.inbound[at..])? {
        at += length;
        connection.waiting -= 1;
        by_class[class] += 1;
    }
    connection.inbound.drain(..at);
    Ok(())
}

/// The class and length of the answer that the bytes begin with, once it is whole.
fn answer(bytes: &[u8]) -> io::Result<Option<(usize, usize)>> {
    let Some(head) = find(bytes, b"\r\n\r\n") else { return Ok(None) };
    let bad = || io::Error::new(io::ErrorKind::InvalidData, "an answer that is not HTTP/1.1");
    let class = match bytes.get(9) {
        Some(b'2') => 0,
        Some(b'4') => 1,
        Some(b'5') => 2,
        Some(_) => 3,
        None => return Err(bad()),
    };
    let length_at = find(&bytes[..head], b"content-length: ").ok_or_else(bad)? + 16;
    let digits = bytes[length_at..head].iter().take_while(|b| b.is_ascii_digit());
    let body = digits.fold(0usize, |sum, digit| sum * 10 + usize::from(digit - b'0'));
    let length = head + 4 + body;
    Ok((bytes.len() >= length).then_some((class, length)))
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}
