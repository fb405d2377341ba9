//! Requests to redeem, one at a time or in batches, and the sale that they are for.

use std::fmt::Write as _;
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

use crate::http_client::Requests;

/// The node's gateway secret, for batch calls.
pub const SECRET: &str = "a secret for the bench";

/// Redeem requests of uniform members, each with a key of its own.
pub struct Redeem {
    state: u64,
    members: u64,
    sku: &'static str,
    /// Items in a batch call; 0: single calls.
    batch: usize,
    key: u64,
}

impl Redeem {
    pub fn new(members: u64, sku: &'static str, batch: usize, seed: u64) -> Self {
        Self { state: seed, members, sku, batch, key: seed << 40 }
    }
    /// Source: splitmix64 (Steele, Lea, Flood).
    fn random(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

impl Requests for Redeem {
    fn next(&mut self, out: &mut Vec<u8>) {
        if self.batch == 0 {
            let member = self.random() % self.members + 1;
            self.key += 1;
            let body = format!("{{\"sku\":\"{}\",\"quantity\":1}}", self.sku);
            let _ = write!(
                out,
                "POST /v1/sales/bench/redemptions HTTP/1.1\r\nhost: bench\r\n\
                 content-type: application/json\r\nx-member-id: {member}\r\n\
                 idempotency-key: k{}\r\ncontent-length: {}\r\n\r\n{body}",
                self.key,
                body.len(),
            );
            return;
        }
        let mut body = String::from("{\"items\":[");
        for at in 0..self.batch {
            let member = self.random() % self.members + 1;
            self.key += 1;
            let comma = if at == 0 { "" } else { "," };
            let _ = write!(
                body,
                "{comma}{{\"member\":\"{member}\",\"key\":\"k{}\",\"sale\":\"bench\",\
                 \"sku\":\"{}\",\"quantity\":1}}",
                self.key, self.sku
            );
        }
        body.push_str("]}");
        let _ = write!(
            out,
            "POST /v1/redemptions:batch HTTP/1.1\r\nhost: bench\r\n\
             content-type: application/json\r\nx-gateway-secret: {SECRET}\r\n\
             content-length: {}\r\n\r\n{body}",
            body.len(),
        );
    }
}

/// Opens so many accounts and a sale of two items on a fresh node: "hot" is not used up, "gone" is
/// sold out for good.
///
/// Errors: the node did not answer, or refused.
pub fn prepare(public: SocketAddr, admin: SocketAddr, members: u64) -> io::Result<()> {
    // The last unit goes to a member that no request comes from.
    let last = members + 1;
    let mut csv = String::from("member,points\n");
    for member in 1..=last {
        let _ = writeln!(csv, "{member},1000000000");
    }
    post(admin, "/v1/members:import", "text/csv", &csv)?;
    let sale = r#"{"id":"bench","name":"Bench","opens_at":"2026-01-01T00:00:00Z",
        "closes_at":"2099-01-01T00:00:00Z","hold_ttl_ms":60000,"items":[
        {"sku":"hot","name":"Hot","points":1,"stock":4000000000,"limit_per_member":4000000000},
        {"sku":"gone","name":"Gone","points":1,"stock":1,"limit_per_member":1}]}"#;
    post(admin, "/v1/sales", "application/json", sale)?;
    post(admin, "/v1/sales/bench/open", "application/json", "{}")?;
    let body = r#"{"sku":"gone","quantity":1}"#;
    let head = format!("x-member-id: {last}\r\nidempotency-key: last\r\n");
    call(public, "/v1/sales/bench/redemptions", "application/json", &head, body)
}

fn post(address: SocketAddr, path: &str, content_type: &str, body: &str) -> io::Result<()> {
    call(address, path, content_type, "x-operator: bench\r\n", body)
}

fn call(
    address: SocketAddr,
    path: &str,
    content_type: &str,
    headers: &str,
    body: &str,
) -> io::Result<()> {
    let mut stream = TcpStream::connect(address)?;
    write!(
        stream,
        "POST {path} HTTP/1.1\r\nhost: bench\r\nconnection: close\r\n{headers}\
         content-type: {content_type}\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    if answer.starts_with("HTTP/1.1 2") {
        return Ok(());
    }
    Err(io::Error::other(format!("{path}: {answer}")))
}
