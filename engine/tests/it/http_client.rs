//! A client that sends exactly the bytes it is told to, and a node to send them to.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use onrush::app::Node;
use onrush::clock::{Clock, RealClock};
use onrush::config::{Config, Secret};

pub const SECRET: &str = "a secret of this test";
/// The longest that an answer may take here.
const PATIENCE: Duration = Duration::from_secs(20);

/// A node of its own, in a folder of its own.
pub struct TestNode {
    node: Option<Node>,
    pub public: SocketAddr,
    pub admin: SocketAddr,
    pub gateway: SocketAddr,
    data: tempfile::TempDir,
}

impl TestNode {
    pub fn start() -> Self {
        Self::start_with(|_| {})
    }

    pub fn start_with(change: impl FnOnce(&mut Config)) -> Self {
        let data = tempfile::tempdir().unwrap();
        let any_port: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let mut config = Config::default();
        config.node.data = data.path().to_path_buf();
        config.node.drain_deadline_ms = 5_000;
        config.http.listen = any_port;
        config.http.admin = any_port;
        config.http.gateway = Some(any_port);
        config.http.gateway_secret = Some(Secret::new(SECRET.into()));
        config.http.workers = 2;
        config.shards.count = 2;
        config.journal.segment_bytes = 4 << 20;
        change(&mut config);
        let clock: Arc<dyn Clock> = Arc::new(RealClock::new());
        let node = Node::start(config, &clock).unwrap();
        let addresses = node.addresses();
        Self {
            node: Some(node),
            public: addresses.public,
            admin: addresses.admin,
            gateway: addresses.gateway.unwrap(),
            data,
        }
    }

    pub fn data(&self) -> &Path {
        self.data.path()
    }

    pub fn stop(mut self) {
        self.node.take().unwrap().stop();
    }

    /// Stops the node and leaves its data.
    pub fn stop_and_keep(mut self) -> tempfile::TempDir {
        self.node.take().unwrap().stop();
        std::mem::replace(&mut self.data, tempfile::tempdir().unwrap())
    }
}

impl Drop for TestNode {
    fn drop(&mut self) {
        if let Some(node) = self.node.take() {
            node.stop();
        }
    }
}

/// An answer as it came.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(n, _)| n == name);
        found.map(|(_, value)| value.as_str())
    }
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&self.body)))
    }
    pub fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }
    /// The problem's code; empty where the body is no problem.
    pub fn code(&self) -> String {
        let body: Option<serde_json::Value> = serde_json::from_slice(&self.body).ok();
        let code = body.as_ref().and_then(|b| b["code"].as_str());
        code.unwrap_or_default().to_owned()
    }
}

/// A request to be.
#[derive(Clone)]
pub struct Ask {
    pub method: String,
    pub path: String,
    headers: Vec<(String, String)>,
    body: Option<Vec<u8>>,
}

impl Ask {
    pub fn new(method: &str, path: &str) -> Self {
        Self { method: method.into(), path: path.into(), headers: Vec::new(), body: None }
    }
    pub fn get(path: &str) -> Self {
        Self::new("GET", path)
    }
    pub fn post(path: &str) -> Self {
        Self::new("POST", path)
    }
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }
    pub fn member(self, member: u64) -> Self {
        self.header("X-Member-Id", &member.to_string())
    }
    pub fn key(self, key: &str) -> Self {
        self.header("Idempotency-Key", key)
    }
    pub fn body(mut self, content_type: &str, body: &[u8]) -> Self {
        self.body = Some(body.to_vec());
        self.header("Content-Type", content_type)
    }
    pub fn json(self, body: &str) -> Self {
        self.body("application/json", body.as_bytes())
    }
    /// A body without a word of what it is.
    pub fn raw_body(mut self, body: &[u8]) -> Self {
        self.body = Some(body.to_vec());
        self
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut head = format!("{} {} HTTP/1.1\r\nHost: onrush\r\n", self.method, self.path);
        for (name, value) in &self.headers {
            head.extend([name, ": ", value, "\r\n"]);
        }
        if let Some(body) = &self.body {
            head.extend(["Content-Length: ", &body.len().to_string(), "\r\n"]);
        }
        let mut bytes = (head + "\r\n").into_bytes();
        bytes.extend_from_slice(self.body.as_deref().unwrap_or_default());
        bytes
    }

    pub fn send(&self, to: SocketAddr) -> Answer {
        let mut connection = Connection::open(to);
        connection.write(&self.bytes());
        connection.read(&self.method).expect("an answer")
    }
}

/// One connection.
pub struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Connection {
    pub fn open(to: SocketAddr) -> Self {
        let stream = TcpStream::connect(to).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream, buffer: Vec::new() }
    }

    /// The same, where the kernel keeps little of what is not read here.
    pub fn open_narrow(to: SocketAddr) -> Self {
        let connection = Self::open(to);
        rustix::net::sockopt::set_socket_recv_buffer_size(&connection.stream, 8 << 10).unwrap();
        connection
    }

    /// Writes as far as the other side lets us; that it closes early is no error here.
    pub fn write(&mut self, bytes: &[u8]) {
        if let Err(error) = self.stream.write_all(bytes) {
            let is_closed =
                matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset);
            assert!(is_closed, "{error}");
        }
    }

    /// Reads one answer to a request of `method`; `None`: the connection was closed instead.
    pub fn read(&mut self, method: &str) -> Option<Answer> {
        let mut answer = self.try_read_head()?;
        if method != "HEAD" && answer.status != 304 {
            answer.body = self.read_body(&answer);
        }
        Some(answer)
    }

    /// Reads an answer's head alone.
    pub fn read_head(&mut self) -> Answer {
        self.try_read_head().expect("an answer")
    }

    fn try_read_head(&mut self) -> Option<Answer> {
        let head_end = loop {
            if let Some(at) = find(&self.buffer, b"\r\n\r\n") {
                break at;
            }
            if !self.more() {
                assert!(self.buffer.is_empty(), "half an answer: {:?}", self.buffer);
                return None;
            }
        };
        let head = String::from_utf8(self.buffer[..head_end].to_vec()).unwrap();
        self.buffer.drain(..head_end + 4);
        let mut lines = head.split("\r\n");
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let headers: Vec<(String, String)> = lines
            .map(|line| line.split_once(": ").unwrap())
            .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
            .collect();
        Some(Answer { status, headers, body: Vec::new() })
    }

    fn read_body(&mut self, answer: &Answer) -> Vec<u8> {
        if let Some(length) = answer.header("content-length") {
            let length = length.parse().unwrap();
            while self.buffer.len() < length {
                assert!(self.more(), "the body broke off");
            }
            return self.buffer.drain(..length).collect();
        }
        let mut body = Vec::new();
        while let Some(piece) = self.read_chunk() {
            body.extend(piece);
        }
        body
    }

    /// Reads one chunk of a chunked body; `None` behind the last.
    pub fn read_chunk(&mut self) -> Option<Vec<u8>> {
        let line_end = loop {
            if let Some(at) = find(&self.buffer, b"\r\n") {
                break at;
            }
            if !self.more() {
                return None;
            }
        };
        let size = std::str::from_utf8(&self.buffer[..line_end]).unwrap();
        let size = usize::from_str_radix(size, 16).unwrap();
        while self.buffer.len() < line_end + 2 + size + 2 {
            assert!(self.more(), "a chunk broke off");
        }
        let chunk = self.buffer[line_end + 2..line_end + 2 + size].to_vec();
        self.buffer.drain(..line_end + 2 + size + 2);
        (size > 0).then_some(chunk)
    }

    /// Whether the other side closes, within the patience, without another byte.
    pub fn is_closed(&mut self) -> bool {
        !self.more()
    }

    /// Whether bytes came; `false`: the connection is closed.
    fn more(&mut self) -> bool {
        let mut piece = [0; 16 * 1024];
        match self.stream.read(&mut piece) {
            Ok(0) => false,
            Ok(length) => {
                self.buffer.extend_from_slice(&piece[..length]);
                true
            }
            Err(error) if error.kind() == ErrorKind::ConnectionReset => false,
            Err(error) => panic!("no answer and no end: {error}"),
        }
    }
}

fn find(bytes: &[u8], part: &[u8]) -> Option<usize> {
    bytes.windows(part.len()).position(|window| window == part)
}

/// A sale opened by an operator now, with items of these (sku, points, stock, limit).
pub fn open_sale(node: &TestNode, id: &str, items: &[(&str, u64, u32, u32)]) {
    let answer = Ask::post("/v1/sales").json(&definition(id, FUTURE, items)).send(node.admin);
    assert_eq!(answer.status, 201, "{}", answer.text());
    let answer = Ask::post(&format!("/v1/sales/{id}/open")).send(node.admin);
    assert_eq!(answer.status, 200, "{}", answer.text());
}

pub const PAST: &str = "2020-01-01T00:00:00Z";
pub const FUTURE: &str = "2099-01-01T00:00:00Z";

pub fn definition(id: &str, opens_at: &str, items: &[(&str, u64, u32, u32)]) -> String {
    let items: Vec<String> = items
        .iter()
        .map(|(sku, points, stock, limit)| {
            format!(
                r#"{{"sku":"{sku}","name":"The \"{sku}\"","points":{points},"stock":{stock},
                    "limit_per_member":{limit}}}"#
            )
        })
        .collect();
    format!(
        r#"{{"id":"{id}","name":"Sale {id}","opens_at":"{opens_at}",
            "closes_at":"2100-01-01T00:00:00Z","hold_ttl_ms":60000,"items":[{}]}}"#,
        items.join(",")
    )
}

/// Opens accounts by import.
pub fn import(node: &TestNode, members: impl IntoIterator<Item = (u64, u64)>) {
    let mut csv = String::from("member,points\n");
    for (member, points) in members {
        csv.extend([&member.to_string(), ",", &points.to_string(), "\n"]);
    }
    let ask = Ask::post("/v1/members:import").body("text/csv", csv.as_bytes());
    let answer = ask.send(node.admin);
    assert_eq!(answer.status, 200, "{}", answer.text());
}

pub fn redeem(sale: &str, member: u64, key: &str, body: &str) -> Ask {
    Ask::post(&format!("/v1/sales/{sale}/redemptions")).member(member).key(key).json(body)
}
