//! A blocking HTTP/1.1 client for tests: one connection, no retries of its own, no library that
//! the node itself is built on.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::{Value, json};

/// How long an answer may take before the test gives up on it.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// A keep-alive connection, made anew where the last one failed.
pub struct Client {
    address: SocketAddr,
    stream: Option<BufReader<TcpStream>>,
    patience: Duration,
}

/// An answer, whole.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Reply {
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Reply {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body)
            .unwrap_or_else(|e| panic!("{e} in the body of {}: {:?}", self.status, self.body))
    }
    /// A problem's `code`, or nothing.
    pub fn code(&self) -> String {
        let body: Value = serde_json::from_str(&self.body).unwrap_or_default();
        body["code"].as_str().unwrap_or_default().to_owned()
    }
    #[track_caller]
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{}", self.body);
        self
    }
}

impl Client {
    pub fn new(address: SocketAddr) -> Self {
        Self { address, stream: None, patience: PATIENCE }
    }

    pub fn with_patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Sends one request and reads its answer.
    ///
    /// Errors: the connection failed or the patience ran out; whether the request had an effect
    /// is unknown then.
    pub fn send(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> io::Result<Reply> {
        let mut text = format!("{method} {path} HTTP/1.1\r\nhost: onrush.test\r\n");
        for (name, value) in headers {
            text = text + name + ": " + value + "\r\n";
        }
        if !body.is_empty() || method == "POST" {
            text = text + "content-length: " + &body.len().to_string() + "\r\n";
        }
        if !body.is_empty() && !headers.iter().any(|(name, _)| *name == "content-type") {
            text.push_str("content-type: application/json\r\n");
        }
        text.push_str("\r\n");
        text.push_str(body);
        let outcome = self.exchange(text.as_bytes());
        let must_close = |reply: &Reply| reply.header("connection") == Some("close");
        if outcome.as_ref().map_or(true, must_close) {
            self.stream = None;
        }
        outcome
    }

    fn exchange(&mut self, bytes: &[u8]) -> io::Result<Reply> {
        let stream = self.stream()?;
        stream.get_mut().write_all(bytes)?;
        read_reply(stream)
    }

    fn stream(&mut self) -> io::Result<&mut BufReader<TcpStream>> {
        if self.stream.is_none() {
            let stream = TcpStream::connect_timeout(&self.address, self.patience)?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(self.patience))?;
            stream.set_write_timeout(Some(self.patience))?;
            self.stream = Some(BufReader::new(stream));
        }
        Ok(self.stream.as_mut().expect("made above"))
    }

    #[track_caller]
    pub fn get(&mut self, path: &str) -> Reply {
        self.send("GET", path, &[], "").expect("an answer")
    }

    #[track_caller]
    pub fn get_as(&mut self, member: u64, path: &str) -> Reply {
        self.send("GET", path, &[("x-member-id", &member.to_string())], "").expect("an answer")
    }

    #[track_caller]
    pub fn post(&mut self, path: &str, body: &Value) -> Reply {
        let text = if body.is_null() { String::new() } else { body.to_string() };
        self.send("POST", path, &[], &text).expect("an answer")
    }

    #[track_caller]
    pub fn post_keyed(&mut self, key: &str, path: &str, body: &Value) -> Reply {
        let headers = [("idempotency-key", key)];
        self.send("POST", path, &headers, &body.to_string()).expect("an answer")
    }

    /// `POST /v1/sales/{sale}/redemptions`.
    pub fn try_redeem(&mut self, wish: &Wish) -> io::Result<Reply> {
        let (member, path) =
            (wish.member.to_string(), format!("/v1/sales/{}/redemptions", wish.sale));
        let headers = [("x-member-id", member.as_str()), ("idempotency-key", &wish.key)];
        let mut body = json!({ "sku": wish.sku, "quantity": wish.quantity });
        if wish.hold {
            body["hold"] = Value::Bool(true);
        }
        self.send("POST", &path, &headers, &body.to_string())
    }

    #[track_caller]
    pub fn redeem(&mut self, wish: &Wish) -> Reply {
        self.try_redeem(wish).expect("an answer")
    }

    /// `POST /v1/redemptions/{id}/{verb}`.
    pub fn try_settle(&mut self, member: u64, id: &str, verb: &str) -> io::Result<Reply> {
        let member = member.to_string();
        let path = format!("/v1/redemptions/{id}/{verb}");
        self.send("POST", &path, &[("x-member-id", &member)], "")
    }
}

/// What a member asks for, under a key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Wish {
    pub member: u64,
    pub key: String,
    pub sale: String,
    pub sku: String,
    pub quantity: u32,
    pub hold: bool,
}

impl Wish {
    /// One unit, in one step.
    pub fn new(member: u64, key: impl Into<String>, sale: &str, sku: &str) -> Self {
        let (sale, sku) = (sale.to_owned(), sku.to_owned());
        Self { member, key: key.into(), sale, sku, quantity: 1, hold: false }
    }
    pub fn held(self) -> Self {
        Self { hold: true, ..self }
    }
}

/// Reads one answer, whether it tells its length or comes in chunks.
///
/// Errors: `UnexpectedEof` where none has begun; one that breaks off is `InvalidData`.
pub fn read_reply(stream: &mut impl BufRead) -> io::Result<Reply> {
    let status_line = read_line(stream)?;
    read_behind(&status_line, stream).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => invalid("an answer that breaks off"),
        _ => error,
    })
}

fn read_behind(status_line: &str, stream: &mut impl BufRead) -> io::Result<Reply> {
    let status = status_line.split(' ').nth(1).and_then(|s| s.parse().ok());
    let status = status.ok_or_else(|| invalid(status_line))?;
    let mut headers = Vec::new();
    loop {
        let line = read_line(stream)?;
        if line.is_empty() {
            break;
        }
        let (name, value) = line.split_once(':').ok_or_else(|| invalid(&line))?;
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    let find = |name: &str| headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
    let mut body = Vec::new();
    if find("transfer-encoding").is_some_and(|v| v.eq_ignore_ascii_case("chunked")) {
        loop {
            let line = read_line(stream)?;
            let length = usize::from_str_radix(&line, 16).map_err(|_| invalid(&line))?;
            let from = body.len();
            body.resize(from + length, 0);
            stream.read_exact(&mut body[from..])?;
            read_line(stream)?;
            if length == 0 {
                break;
            }
        }
    } else if let Some(length) = find("content-length") {
        body.resize(length.parse().map_err(|_| invalid(length))?, 0);
        stream.read_exact(&mut body)?;
    }
    let body = String::from_utf8(body).map_err(|_| invalid("a body that is not text"))?;
    Ok(Reply { status, headers, body })
}

fn read_line(stream: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    if stream.read_line(&mut line)? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(line.trim_end().to_owned())
}

fn invalid(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text.to_owned())
}

#[test]
fn answers_are_read_with_a_length_and_in_chunks() {
    let text = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhiHTTP/1.1 201 Created\r\n\
                Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n1\r\nd\r\n0\r\n\r\n";
    let mut stream = BufReader::new(text.as_bytes());
    assert_eq!(read_reply(&mut stream).unwrap().body, "hi");
    let second = read_reply(&mut stream).unwrap();
    assert_eq!((second.status, second.body.as_str()), (201, "abcd"));
    assert_eq!(read_reply(&mut stream).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    for cut in 1..40 {
        let error = read_reply(&mut BufReader::new(&text.as_bytes()[..cut])).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData, "cut off at {cut}: {error}");
    }
}
