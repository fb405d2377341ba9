//! Single requests outside the measured load: reading a sale, asking what became of a key.
//!
//! Blocking, on the calling thread, many requests written ahead of their answers.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use thiserror::Error;

use crate::clock::{Clock, duration};
use crate::http::{Answer, AnswerReader, BadAnswer, Target, tls};

/// Why a question got no answer.
#[derive(Debug, Error)]
pub enum AskError {
    #[error("{url}: {source}")]
    Io { url: String, source: io::Error },
    #[error("{url}: {source}")]
    Answer { url: String, source: BadAnswer },
    #[error("{url}: an answer of {bytes} bytes is too long: the most is {KEEP}")]
    TooLong { url: String, bytes: u64 },
    #[error("{url}: the connection ended before {missing} answers came")]
    Closed { url: String, missing: usize },
}

/// An answer, owned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    pub status: u16,
    pub body: Vec<u8>,
}

const AHEAD: usize = 32;
/// Units: bytes of an answer. A sale of a thousand items, or a member's whole past, must fit.
const KEEP: usize = 16 << 20;

/// A connection to ask over; to the next target when this one gives nothing.
#[derive(Debug)]
pub struct Asker<'t> {
    targets: &'t [Target],
    at: usize,
    timeout: Duration,
    stream: Option<Blocking>,
}

/// A blocking connection, with or without TLS.
#[derive(Debug)]
enum Blocking {
    Plain(TcpStream),
    Tls(Box<rustls::StreamOwned<rustls::ClientConnection, TcpStream>>),
}

impl Blocking {
    /// How long the next read may take.
    fn limit(&self, time: Duration) -> io::Result<()> {
        match self {
            Self::Plain(stream) => stream,
            Self::Tls(stream) => &stream.sock,
        }
        .set_read_timeout(Some(time))
    }
}

impl Read for Blocking {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.read(buf),
            Self::Tls(stream) => stream.read(buf),
        }
    }
}

impl Write for Blocking {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.write(bytes),
            Self::Tls(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(stream) => stream.flush(),
            Self::Tls(stream) => stream.flush(),
        }
    }
}

impl<'t> Asker<'t> {
    /// `targets` must not be empty.
    pub const fn new(targets: &'t [Target], timeout: Duration) -> Self {
        Self { targets, at: 0, timeout, stream: None }
    }

    const fn target(&self) -> &'t Target {
        &self.targets[self.at]
    }

    /// One GET of a path below the target's, for a member where one is named.
    pub fn get(&mut self, path: &str, member: Option<u64>) -> Result<Reply, AskError> {
        let mut replies = self.get_all(&[(path.to_owned(), member)])?;
        replies.pop().ok_or_else(|| AskError::Closed { url: self.target().url.clone(), missing: 1 })
    }

    /// Many GETs, answered in their order. Repeats what a closing connection left unanswered.
    pub fn get_all(&mut self, asks: &[Ask]) -> Result<Vec<Reply>, AskError> {
        let mut replies = Vec::with_capacity(asks.len());
        let mut stalled = 0;
        while replies.len() < asks.len() {
            let next = &asks[replies.len()..asks.len().min(replies.len() + AHEAD)];
            let before = replies.len();
            let outcome = self.exchange(&self.compose(next), next.len(), &mut replies);
            stalled = if replies.len() > before { 0 } else { stalled + 1 };
            if let Err(e) = outcome {
                self.stream = None;
                // A server may close a connection at any time; one that gives nothing is gone.
                if stalled >= 3 * self.targets.len() {
                    return Err(e);
                }
                if stalled > 0 {
                    self.at = (self.at + 1) % self.targets.len();
                }
            }
        }
        Ok(replies)
    }

    /// Sends one request as it is, and nothing again.
    pub fn send(&mut self, request: &[u8]) -> Result<Reply, AskError> {
        let mut replies = Vec::with_capacity(1);
        self.exchange(request, 1, &mut replies)?;
        replies.pop().ok_or_else(|| AskError::Closed { url: self.target().url.clone(), missing: 1 })
    }

    /// The bytes of some GETs.
    fn compose(&self, asks: &[Ask]) -> Vec<u8> {
        let target = self.target();
        let (base, host) = (target.base_path(), &target.host);
        let mut bytes = Vec::new();
        for (path, member) in asks {
            // A Vec takes whatever is written.
            let _ = write!(bytes, "GET {base}{path} HTTP/1.1\r\nHost: {host}\r\n");
            let _ = match member {
                Some(m) => write!(bytes, "X-Member-Id: {m}\r\n\r\n"),
                None => write!(bytes, "\r\n"),
            };
        }
        bytes
    }

    /// Sends requests, and takes as many answers as are missing.
    fn exchange(
        &mut self,
        requests: &[u8],
        mut missing: usize,
        replies: &mut Vec<Reply>,
    ) -> Result<(), AskError> {
        let target = self.target();
        let url = || target.url.clone();
        let io_error = |source| AskError::Io { url: url(), source };
        let mut stream = match self.stream.take() {
            Some(stream) => stream,
            None => self.open().map_err(io_error)?,
        };
        stream.write_all(requests).map_err(io_error)?;
        let mut reader = AnswerReader::keeping(KEEP);
        let clock = Clock::start();
        let mut until = self.timeout;
        while missing > 0 {
            // For an answer as a whole: one that comes in drops comes too late.
            let left = until.saturating_sub(duration(clock.now()));
            if left.is_zero() {
                return Err(io_error(io::ErrorKind::TimedOut.into()));
            }
            stream.limit(left).map_err(io_error)?;
            let n = stream.read(reader.spare()).map_err(io_error)?;
            reader.filled(n);
            while let Some(answer) =
                reader.next(false).map_err(|source| AskError::Answer { url: url(), source })?
            {
                let close = answer.close;
                replies.push(self.reply(&answer)?);
                missing -= 1;
                until = duration(clock.now()) + self.timeout;
                if close {
                    return if missing == 0 { Ok(()) } else { self.cut(missing) };
                }
            }
            if n == 0 && missing > 0 {
                if let Some(answer) = reader.ended() {
                    replies.push(self.reply(&answer)?);
                    missing -= 1;
                }
                return if missing == 0 { Ok(()) } else { self.cut(missing) };
            }
        }
        self.stream = Some(stream);
        Ok(())
    }

    fn reply(&self, answer: &Answer<'_>) -> Result<Reply, AskError> {
        if answer.body_bytes > answer.body.len() as u64 {
            let url = self.target().url.clone();
            return Err(AskError::TooLong { url, bytes: answer.body_bytes });
        }
        Ok(Reply { status: answer.status, body: answer.body.to_vec() })
    }

    fn cut(&self, missing: usize) -> Result<(), AskError> {
        Err(AskError::Closed { url: self.target().url.clone(), missing })
    }

    fn open(&self) -> io::Result<Blocking> {
        let stream = TcpStream::connect_timeout(&self.target().address, self.timeout)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(self.timeout))?;
        stream.set_write_timeout(Some(self.timeout))?;
        let Some(host) = &self.target().tls else { return Ok(Blocking::Plain(stream)) };
        let session = rustls::ClientConnection::new(tls::config(false)?, tls::server_name(host)?)
            .map_err(io::Error::other)?;
        Ok(Blocking::Tls(Box::new(rustls::StreamOwned::new(session, stream))))
    }
}

/// A path below the target's, and the member who asks, where one is named.
pub type Ask = (String, Option<u64>);

/// Many GETs over a few connections at once; each answer is handed on in its order, and only few
/// are in memory at a time. A 503 is asked again for as long as the timeout lasts. Says how far it
/// is on stderr, if it takes longer than a second.
pub fn ask_each<E: From<AskError>>(
    targets: &[Target],
    asks: impl IntoIterator<Item = Ask>,
    how: Patience,
    what: &str,
    mut see: impl FnMut(Reply) -> Result<(), E>,
) -> Result<(), E> {
    const CONNECTIONS: usize = 4;
    const AT_ONCE: usize = 2000;
    let clock = Clock::start();
    let mut askers: Vec<_> = (0..CONNECTIONS).map(|_| Asker::new(targets, how.timeout)).collect();
    let (mut next_line, mut done) = (1_000_000_000, 0);
    let mut asks = asks.into_iter();
    loop {
        let part: Vec<Ask> = asks.by_ref().take(AT_ONCE).collect();
        if part.is_empty() {
            return Ok(());
        }
        let each = part.len().div_ceil(CONNECTIONS);
        let answered: Result<Vec<_>, _> = std::thread::scope(|scope| {
            let threads: Vec<_> = askers
                .iter_mut()
                .zip(part.chunks(each))
                .map(|(asker, asks)| scope.spawn(move || asker.get_patiently(asks)))
                .collect();
            threads.into_iter().map(|t| t.join().expect("an asker panicked")).collect()
        });
        for reply in answered?.into_iter().flatten() {
            see(reply)?;
        }
        done += part.len();
        if !how.quiet && clock.now() > next_line {
            eprintln!("checking {what}: {done} so far");
            next_line = clock.now() + 1_000_000_000;
        }
    }
}

/// How long an answer may take, and whether nothing is said meanwhile.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    pub timeout: Duration,
    pub quiet: bool,
}

impl Asker<'_> {
    fn get_patiently(&mut self, asks: &[Ask]) -> Result<Vec<Reply>, AskError> {
        const PAUSE: Duration = Duration::from_millis(100);
        let mut replies = self.get_all(asks)?;
        let mut left = self.timeout;
        while !left.is_zero() && replies.iter().any(|r| r.status == 503) {
            std::thread::sleep(PAUSE.min(left));
            left = left.saturating_sub(PAUSE);
            for (reply, ask) in replies.iter_mut().zip(asks) {
                if reply.status == 503 {
                    *reply = self.get(&ask.0, ask.1)?;
                }
            }
        }
        Ok(replies)
    }
}
