//! Answers, read from a connection's bytes without an allocation each.
//!
//! An answer that has arrived whole is handed out as slices of the read buffer. Bodies beyond
//! [`KEEP`], or what else was asked for, are counted and dropped as they come, so that a body of
//! 10 GB costs time but no memory.
//!
//! ```text
//! Head ──► Sized{left} ──► next        Content-Length
//!      ──► Chunked ──► next            Transfer-Encoding: chunked
//!      ──► UntilClose ──► end          neither
//! ```

use std::mem::MaybeUninit;

use thiserror::Error;

/// Units: bytes of a body that are kept; the rest is counted only.
pub const KEEP: usize = 64 << 10;
/// Units: bytes a head may have.
const MOST_HEAD: usize = 64 << 10;
const FIRST_BUFFER: usize = 8 << 10;

/// An answer that arrived whole. Borrows the reader's buffer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Answer<'a> {
    pub status: u16,
    /// The body, or as much of it as the reader keeps.
    pub body: &'a [u8],
    /// Units: bytes of the whole body.
    pub body_bytes: u64,
    /// The server will close the connection.
    pub close: bool,
    /// Units: seconds. Only the numeric form is understood.
    pub retry_after: Option<u32>,
    /// `Idempotent-Replayed: true` was there.
    pub replayed: bool,
}

/// Bytes that are no HTTP/1.1 answer.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum BadAnswer {
    #[error("the head is not HTTP/1.1: {0}")]
    Head(&'static str),
    #[error("the head is longer than 64 KiB")]
    HeadTooLong,
    #[error("Content-Length is no number")]
    Length,
    #[error("a chunk's size line is malformed")]
    Chunk,
    #[error("an answer that nothing was asked for")]
    Unasked,
    #[error("101 Switching Protocols was not asked for")]
    Switching,
}

#[derive(Clone, Copy, Debug, Default)]
struct Head {
    status: u16,
    close: bool,
    replayed: bool,
    retry_after: Option<u32>,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Head,
    /// `left` bytes of the body have not been consumed.
    Sized {
        length: u64,
        left: u64,
    },
    Chunked(Chunk),
    UntilClose,
}

#[derive(Clone, Copy, Debug)]
enum Chunk {
    Size,
    Data { left: u64 },
    DataEnd,
    Trailer,
}

/// Turns a connection's bytes into answers.
#[derive(Debug)]
pub struct AnswerReader {
    buf: Vec<u8>,
    start: usize,
    end: usize,
    state: State,
    head: Head,
    /// What is kept of a body that did not arrive in one piece.
    body: Vec<u8>,
    body_bytes: u64,
    /// Units: bytes of a body that are kept.
    keep: usize,
}

impl Default for AnswerReader {
    fn default() -> Self {
        Self::keeping(KEEP)
    }
}

impl AnswerReader {
    /// A reader that keeps so many bytes of each body.
    pub fn keeping(keep: usize) -> Self {
        Self {
            keep,
            buf: vec![0; FIRST_BUFFER],
            start: 0,
            end: 0,
            state: State::Head,
            head: Head::default(),
            body: Vec::new(),
            body_bytes: 0,
        }
    }

    /// Where the next bytes go; never empty. Tell [`Self::filled`] how many came.
    pub fn spare(&mut self) -> &mut [u8] {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.end == self.buf.len() {
            if self.start > self.buf.len() / 2 {
                self.buf.copy_within(self.start..self.end, 0);
                (self.start, self.end) = (0, self.end - self.start);
            } else {
                self.buf.resize(self.buf.len() * 2, 0);
            }
        }
        &mut self.buf[self.end..]
    }

    pub fn filled(&mut self, count: usize) {
        self.end += count;
    }

    /// Whether part of an answer is here: a connection that closes now cuts it off.
    pub fn is_mid_answer(&self) -> bool {
        self.start != self.end || !matches!(self.state, State::Head)
    }

    /// The next answer, if all of it is here. `bodiless`: it answers a HEAD.
    pub fn next(&mut self, bodiless: bool) -> Result<Option<Answer<'_>>, BadAnswer> {
        if matches!(self.state, State::Head) && !self.read_head(bodiless)? {
            return Ok(None);
        }
        let whole = match self.state {
            State::Head => unreachable!("read_head leaves this state when it returns true"),
            State::Sized { length, left } => {
                let here = (self.end - self.start) as u64;
                if left == length && here >= length {
                    // The common case: nothing was copied, the body is a slice of the buffer.
                    let kept = usize::try_from(length).unwrap_or(usize::MAX).min(self.keep);
                    let body = self.start..self.start + kept;
                    self.start += length as usize;
                    self.state = State::Head;
                    return Ok(Some(answer(self.head, &self.buf[body], length)));
                }
                self.take_sized(length, left)
            }
            State::Chunked(_) => self.take_chunks()?,
            State::UntilClose => {
                self.take_body(usize::MAX);
                false
            }
        };
        if !whole {
            return Ok(None);
        }
        self.state = State::Head;
        Ok(Some(answer(self.head, &self.body, self.body_bytes)))
    }

    /// The connection ended: completes an answer whose body ends with it.
    pub fn ended(&mut self) -> Option<Answer<'_>> {
        if !matches!(self.state, State::UntilClose) {
            return None;
        }
        self.state = State::Head;
        Some(answer(Head { close: true, ..self.head }, &self.body, self.body_bytes))
    }

    /// Reads heads until one of a final answer. False: more bytes are needed.
    fn read_head(&mut self, bodiless: bool) -> Result<bool, BadAnswer> {
        loop {
            let bytes = &self.buf[self.start..self.end];
            let mut headers = [const { MaybeUninit::uninit() }; 64];
            let mut head = httparse::Response::new(&mut []);
            let parsed = httparse::ParserConfig::default().parse_response_with_uninit_headers(
                &mut head,
                bytes,
                &mut headers,
            );
            let length = match parsed {
                Ok(httparse::Status::Complete(length)) => length,
                Ok(httparse::Status::Partial) if bytes.len() > MOST_HEAD => {
                    return Err(BadAnswer::HeadTooLong);
                }
                Ok(httparse::Status::Partial) => return Ok(false),
                Err(httparse::Error::TooManyHeaders) => return Err(BadAnswer::HeadTooLong),
                Err(e) => return Err(BadAnswer::Head(describe(e))),
            };
            let status = head.code.unwrap_or(0);
            let fields = read_fields(head.headers, head.version == Some(0))?;
            self.start += length;
            match status {
                101 => return Err(BadAnswer::Switching),
                100..=199 => continue,
                200..=599 => {}
                _ => return Err(BadAnswer::Head("a status outside 100 to 599")),
            }
            self.head = Head { status, ..fields.head };
            self.body.clear();
            self.body_bytes = 0;
            self.state = if bodiless || matches!(status, 204 | 304) {
                State::Sized { length: 0, left: 0 }
            } else if fields.chunked {
                State::Chunked(Chunk::Size)
            } else if let Some(length) = fields.length {
                State::Sized { length, left: length }
            } else {
                State::UntilClose
            };
            return Ok(true);
        }
    }

    /// Moves what is here into the kept body; true when the body is complete.
    fn take_sized(&mut self, length: u64, left: u64) -> bool {
        if length <= self.keep as u64 {
            // It will fit: wait until it is here in one piece, without a copy.
            return false;
        }
        let taken = self.take_body(usize::try_from(left).unwrap_or(usize::MAX));
        let left = left - taken;
        self.state = State::Sized { length, left };
        left == 0
    }

    /// Consumes up to `most` bytes of body; keeps as many as are to be kept.
    fn take_body(&mut self, most: usize) -> u64 {
        let count = (self.end - self.start).min(most);
        let room = self.keep - self.body.len();
        let bytes = &self.buf[self.start..self.start + count.min(room)];
        self.body.extend_from_slice(bytes);
        self.start += count;
        self.body_bytes += count as u64;
        count as u64
    }

    fn take_chunks(&mut self) -> Result<bool, BadAnswer> {
        loop {
            let State::Chunked(chunk) = self.state else { return Ok(true) };
            let next = match chunk {
                Chunk::Size => {
                    let bytes = &self.buf[self.start..self.end];
                    match httparse::parse_chunk_size(bytes) {
                        Ok(httparse::Status::Complete((line, size))) => {
                            self.start += line;
                            if size == 0 { Chunk::Trailer } else { Chunk::Data { left: size } }
                        }
                        Ok(httparse::Status::Partial) if bytes.len() > 4096 => {
                            return Err(BadAnswer::Chunk);
                        }
                        Ok(httparse::Status::Partial) => return Ok(false),
                        Err(_) => return Err(BadAnswer::Chunk),
                    }
                }
                Chunk::Data { left } => {
                    let taken = self.take_body(usize::try_from(left).unwrap_or(usize::MAX));
                    if taken == left {
                        Chunk::DataEnd
                    } else {
                        self.state = State::Chunked(Chunk::Data { left: left - taken });
                        return Ok(false);
                    }
                }
                Chunk::DataEnd => match self.take_line() {
                    None => return Ok(false),
                    Some(0) => Chunk::Size,
                    Some(_) => return Err(BadAnswer::Chunk),
                },
                Chunk::Trailer => match self.take_line() {
                    None if self.end - self.start > MOST_HEAD => {
                        return Err(BadAnswer::HeadTooLong);
                    }
                    None => return Ok(false),
                    Some(0) => return Ok(true),
                    Some(_) => Chunk::Trailer,
                },
            };
            self.state = State::Chunked(next);
        }
    }

    /// Consumes one line, and gives its length without its end.
    fn take_line(&mut self) -> Option<usize> {
        let bytes = &self.buf[self.start..self.end];
        let newline = memchr::memchr(b'\n', bytes)?;
        self.start += newline + 1;
        Some(if newline > 0 && bytes[newline - 1] == b'\r' { newline - 1 } else { newline })
    }
}

fn answer(head: Head, body: &[u8], body_bytes: u64) -> Answer<'_> {
    Answer {
        status: head.status,
        body,
        body_bytes,
        close: head.close,
        retry_after: head.retry_after,
        replayed: head.replayed,
    }
}

struct Fields {
    head: Head,
    length: Option<u64>,
    chunked: bool,
}

fn read_fields(headers: &[httparse::Header<'_>], old: bool) -> Result<Fields, BadAnswer> {
    let mut fields =
        Fields { head: Head { close: old, ..Head::default() }, length: None, chunked: false };
    for h in headers {
        // By length first: most fields are none of these.
        match h.name.len() {
            10 if h.name.eq_ignore_ascii_case("connection") => {
                fields.head.close = if old {
                    !h.value.eq_ignore_ascii_case(b"keep-alive")
                } else {
                    h.value.eq_ignore_ascii_case(b"close")
                };
            }
            11 if h.name.eq_ignore_ascii_case("retry-after") => {
                fields.head.retry_after = text(h.value).and_then(|t| t.parse().ok());
            }
            14 if h.name.eq_ignore_ascii_case("content-length") => {
                let length = text(h.value).and_then(|t| t.parse().ok()).ok_or(BadAnswer::Length)?;
                if fields.length.is_some_and(|before| before != length) {
                    return Err(BadAnswer::Length);
                }
                fields.length = Some(length);
            }
            17 if h.name.eq_ignore_ascii_case("transfer-encoding") => {
                let last = h.value.len().saturating_sub(b"chunked".len());
                fields.chunked = h.value[last..].eq_ignore_ascii_case(b"chunked");
            }
            19 if h.name.eq_ignore_ascii_case("idempotent-replayed") => {
                fields.head.replayed = h.value.eq_ignore_ascii_case(b"true");
            }
            _ => {}
        }
    }
    Ok(fields)
}

fn text(value: &[u8]) -> Option<&str> {
    std::str::from_utf8(value).ok().map(str::trim)
}

fn describe(error: httparse::Error) -> &'static str {
    match error {
        httparse::Error::HeaderName => "a malformed field name",
        httparse::Error::HeaderValue => "a malformed field value",
        httparse::Error::NewLine => "a malformed line end",
        httparse::Error::Status => "a malformed status",
        httparse::Error::Version => "not HTTP/1.x",
        httparse::Error::Token | httparse::Error::TooManyHeaders => "malformed",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds the bytes in pieces of every size, and wants the same answers each time.
    fn read_all(bytes: &[u8], bodiless: bool) -> Result<Vec<(u16, Vec<u8>, bool)>, BadAnswer> {
        let mut results = Vec::new();
        for piece in [1, 2, 3, 7, 64, 1 << 20] {
            results.push(read_in_pieces(bytes, piece, bodiless));
        }
        assert!(results.windows(2).all(|w| w[0] == w[1]), "pieces differ: {results:?}");
        results.pop().unwrap()
    }

    fn read_in_pieces(
        bytes: &[u8],
        piece: usize,
        bodiless: bool,
    ) -> Result<Vec<(u16, Vec<u8>, bool)>, BadAnswer> {
        let mut reader = AnswerReader::default();
        let mut seen = Vec::new();
        for part in bytes.chunks(piece) {
            let mut part = part;
            while !part.is_empty() {
                let spare = reader.spare();
                let n = spare.len().min(part.len());
                spare[..n].copy_from_slice(&part[..n]);
                reader.filled(n);
                part = &part[n..];
                while let Some(a) = reader.next(bodiless)? {
                    seen.push((a.status, a.body.to_vec(), a.close));
                }
            }
        }
        if let Some(a) = reader.ended() {
            seen.push((a.status, a.body.to_vec(), a.close));
        }
        Ok(seen)
    }

    #[test]
    fn answers_of_each_framing_are_read_in_pieces_of_any_size() {
        let bytes = b"HTTP/1.1 201 Created\r\nContent-Length: 5\r\n\r\nhello\
            HTTP/1.1 100 Continue\r\n\r\n\
            HTTP/1.1 409 Conflict\r\ntransfer-encoding: chunked\r\n\r\n\
            3\r\nabc\r\n4;x=y\r\ndefg\r\n0\r\nTrailer: 1\r\n\r\n\
            HTTP/1.1 204 No Content\r\n\r\n\
            HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nto the end";
        let seen = read_all(bytes, false).unwrap();
        let expect: Vec<(u16, &[u8], bool)> = vec![
            (201, b"hello", false),
            (409, b"abcdefg", false),
            (204, b"", false),
            (200, b"to the end", true),
        ];
        assert_eq!(seen, expect.iter().map(|(s, b, c)| (*s, b.to_vec(), *c)).collect::<Vec<_>>());
    }

    #[test]
    fn an_answer_to_head_has_no_body_whatever_it_says() {
        let bytes = b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n";
        assert_eq!(read_all(bytes, true).unwrap(), vec![(200, vec![], false)]);
    }

    #[test]
    fn large_bodies_are_counted_and_not_kept() {
        let length = 10 << 20;
        let mut bytes = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n").into_bytes();
        let head = bytes.len();
        bytes.resize(head + length, b'x');
        bytes.extend_from_slice(b"HTTP/1.1 204 No Content\r\n\r\n");
        let mut reader = AnswerReader::default();
        let mut seen = Vec::new();
        for part in bytes.chunks(3000) {
            let spare = reader.spare();
            assert!(spare.len() < 1 << 20);
            let n = part.len().min(spare.len());
            spare[..n].copy_from_slice(&part[..n]);
            reader.filled(n);
            assert_eq!(n, part.len(), "the buffer takes what one read brings");
            while let Some(a) = reader.next(false).unwrap() {
                seen.push((a.status, a.body.len(), a.body_bytes));
            }
        }
        assert_eq!(seen, vec![(200, KEEP, length as u64), (204, 0, 0)]);
    }

    #[test]
    fn what_is_not_http_is_said_to_be_that() {
        assert!(matches!(read_all(b"SSH-2.0-x\r\n\r\n", false), Err(BadAnswer::Head(_))));
        let bad_length = b"HTTP/1.1 200 OK\r\nContent-Length: 5x\r\n\r\n";
        assert_eq!(read_all(bad_length, false), Err(BadAnswer::Length));
        let two = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n";
        assert_eq!(read_all(two, false), Err(BadAnswer::Length));
        let chunk = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n";
        assert_eq!(read_all(chunk, false), Err(BadAnswer::Chunk));
        let mut long = b"HTTP/1.1 200 OK\r\nX: ".to_vec();
        long.resize(70 << 10, b'a');
        assert_eq!(read_in_pieces(&long, 8000, false), Err(BadAnswer::HeadTooLong));
    }
}
