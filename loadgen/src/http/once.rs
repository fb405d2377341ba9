//! Single requests outside the measured load: reading a sale, asking what became of a key.
//!
//! Blocking, on the calling thread, many requests written ahead of their answers.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use thiserror::Error;

use crate::clock::Clock;
use crate::http::{AnswerReader, BadAnswer, Target};

/// Why a question got no answer.
#[derive(Debug, Error)]
pub enum AskError {
    #[error("{url}: {source}")]
    Io { url: String, source: io::Error },
    #[error("{url}: {source}")]
    Answer { url: String, source: BadAnswer },
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

/// A connection to ask over.
#[derive(Debug)]
pub struct Asker<'t> {
    target: &'t Target,
    timeout: Duration,
    stream: Option<TcpStream>,
}

impl<'t> Asker<'t> {
    pub const fn new(target: &'t Target, timeout: Duration) -> Self {
        Self { target, timeout, stream: None }
    }

    /// One GET of a path below the target's, for a member where one is named.
    pub fn get(&mut self, path: &str, member: Option<u64>) -> Result<Reply, AskError> {
        let mut replies = self.get_all(&[(path.to_owned(), member)])?;
        replies.pop().ok_or_else(|| AskError::Closed { url: self.target.url.clone(), missing: 1 })
    }

    /// Many GETs, answered in their order. Repeats what a closing connection left unanswered.
    pub fn get_all(&mut self, asks: &[(String, Option<u64>)]) -> Result<Vec<Reply>, AskError> {
        let mut replies = Vec::with_capacity(asks.len());
        let mut stalled = 0;
        while replies.len() < asks.len() {
            let next = &asks[replies.len()..asks.len().min(replies.len() + AHEAD)];
            let before = replies.len();
            let outcome = self.exchange(next, &mut replies);
            stalled = if replies.len() > before { 0 } else { stalled + 1 };
            if let Err(e) = outcome {
                self.stream = None;
                // A server may close a connection at any time; one that gives nothing is gone.
                if stalled >= 3 {
                    return Err(e);
                }
            }
        }
        Ok(replies)
    }

    fn exchange(
        &mut self,
        asks: &[(String, Option<u64>)],
        replies: &mut Vec<Reply>,
    ) -> Result<(), AskError> {
        let url = || self.target.url.clone();
        let io_error = |source| AskError::Io { url: url(), source };
        let mut stream = match self.stream.take() {
            Some(stream) => stream,
            None => self.open().map_err(io_error)?,
        };
        let mut bytes = Vec::new();
        for (path, member) in asks {
            let base = self.target.base_path();
            write!(bytes, "GET {base}{path} HTTP/1.1\r\nHost: {}\r\n", self.target.host)
                .and_then(|()| match member {
                    Some(m) => write!(bytes, "X-Member-Id: {m}\r\n\r\n"),
                    None => write!(bytes, "\r\n"),
                })
                .map_err(io_error)?;
        }
        stream.write_all(&bytes).map_err(io_error)?;
        let mut reader = AnswerReader::default();
        let mut missing = asks.len();
        while missing > 0 {
            let n = stream.read(reader.spare()).map_err(io_error)?;
            reader.filled(n);
            while let Some(answer) =
                reader.next(false).map_err(|source| AskError::Answer { url: url(), source })?
            {
                replies.push(Reply { status: answer.status, body: answer.body.to_vec() });
                missing -= 1;
                if answer.close {
                    return if missing == 0 { Ok(()) } else { self.cut(missing) };
                }
            }
            if n == 0 && missing > 0 {
                if let Some(answer) = reader.ended() {
                    replies.push(Reply { status: answer.status, body: answer.body.to_vec() });
                    missing -= 1;
                }
                return if missing == 0 { Ok(()) } else { self.cut(missing) };
            }
        }
        self.stream = Some(stream);
        Ok(())
    }

    fn cut(&self, missing: usize) -> Result<(), AskError> {
        Err(AskError::Closed { url: self.target.url.clone(), missing })
    }

    fn open(&self) -> io::Result<TcpStream> {
        let stream = TcpStream::connect_timeout(&self.target.address, self.timeout)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(self.timeout))?;
        stream.set_write_timeout(Some(self.timeout))?;
        Ok(stream)
    }
}

/// Many GETs over a few connections at once, answered in their order. A 503 is asked again for as
/// long as the timeout lasts. Says how far it is on stderr, if it takes longer than a second.
pub fn ask_all(
    target: &Target,
    asks: &[(String, Option<u64>)],
    timeout: Duration,
    quiet: bool,
    what: &str,
) -> Result<Vec<Reply>, AskError> {
    const CONNECTIONS: usize = 4;
    const AT_ONCE: usize = 2000;
    let clock = Clock::start();
    let mut replies = Vec::with_capacity(asks.len());
    let mut askers: Vec<_> = (0..CONNECTIONS).map(|_| Asker::new(target, timeout)).collect();
    let mut next_line = 1_000_000_000;
    for part in asks.chunks(AT_ONCE) {
        let each = part.len().div_ceil(CONNECTIONS).max(1);
        let answered: Result<Vec<_>, _> = std::thread::scope(|scope| {
            let threads: Vec<_> = askers
                .iter_mut()
                .zip(part.chunks(each))
                .map(|(asker, asks)| scope.spawn(move || asker.get_patiently(asks)))
                .collect();
            threads.into_iter().map(|t| t.join().expect("an asker panicked")).collect()
        });
        replies.extend(answered?.into_iter().flatten());
        if !quiet && clock.now() > next_line {
            eprintln!("checking {what}: {} of {}", replies.len(), asks.len());
            next_line = clock.now() + 1_000_000_000;
        }
    }
    Ok(replies)
}

impl Asker<'_> {
    fn get_patiently(&mut self, asks: &[(String, Option<u64>)]) -> Result<Vec<Reply>, AskError> {
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
