//! The messages between a run and its agents, and their reading and writing.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;

use ring::hmac;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::agents::AgentError;
use crate::http::tls::Trust;
use crate::plan::Plan;
use crate::run::{Measured, Outcomes};
use crate::stats::Second;
use crate::work::accepted::{Accepted, Finding, Findings, ItemCount, Ledger, known_kind};

/// Raised when a message changes.
pub const VERSION: u32 = 2;

/// Units: bytes of a line from somebody who has not shown the token.
pub const MOST_FROM_STRANGERS: u64 = 4096;

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ToAgent {
    Proof(String),
    Task(Box<Task>),
    Clock,
    /// Units: nanoseconds of the agent's clock.
    Start(u64),
    /// Plans nothing more.
    Stop,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FromAgent {
    Challenge {
        version: u32,
        nonce: String,
    },
    Welcome,
    Refused(String),
    Ready,
    /// Units: nanoseconds of the agent's clock.
    Clock(u64),
    Second(Box<Second>),
    /// The figures so far, where they are wanted: with each second.
    Look(Box<Look>),
    Done(Box<Part>),
}

/// What an agent is to do.
#[derive(Debug, Serialize, Deserialize)]
pub struct Task {
    pub plan: Plan,
    /// Whom its connections trust.
    pub trust: Trust,
    pub wants_looks: bool,
}

/// What an agent measured so far.
#[derive(Debug, Serialize, Deserialize)]
pub struct Look {
    pub measured: Measured,
    findings: Written,
}

impl Look {
    pub fn of(so_far: &Outcomes) -> Self {
        let findings = Written::of(&so_far.ledger.findings);
        Self { measured: Measured::of(so_far), findings }
    }

    pub fn take_findings(&mut self) -> Findings {
        std::mem::take(&mut self.findings).read()
    }
}

/// Findings in a message.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Written {
    examples: Vec<Finding>,
    counts: Vec<(String, u64)>,
}

impl Written {
    fn of(findings: &Findings) -> Self {
        Self {
            examples: findings.examples().to_vec(),
            counts: findings.counts().iter().map(|(k, n)| ((*k).to_owned(), *n)).collect(),
        }
    }

    fn read(self) -> Findings {
        let counts = self.counts.into_iter().map(|(k, n)| (known_kind(&k), n)).collect();
        Findings::from_parts(counts, self.examples)
    }
}

/// All that an agent measured and learned.
#[derive(Debug, Serialize, Deserialize)]
pub struct Part {
    pub measured: Measured,
    accepted: Vec<(u64, Accepted)>,
    unknown: Vec<u64>,
    by_item: Vec<(usize, ItemCount)>,
    findings: Written,
}

impl Part {
    pub fn of(run: Outcomes) -> Self {
        Self {
            measured: Measured::of(&run),
            findings: Written::of(&run.ledger.findings),
            accepted: run.ledger.accepted.into_iter().collect(),
            unknown: run.ledger.unknown.into_iter().collect(),
            by_item: run.ledger.by_item.into_iter().collect(),
        }
    }

    /// Both halves of it.
    pub fn read(self) -> (Measured, Ledger) {
        let ledger = Ledger {
            accepted: self.accepted.into_iter().collect(),
            unknown: self.unknown.into_iter().collect(),
            by_item: self.by_item.into_iter().collect(),
            findings: self.findings.read(),
        };
        (self.measured, ledger)
    }
}

/// A connection's two halves, one message per line.
#[derive(Debug)]
pub struct Line {
    pub at: String,
    reader: BufReader<TcpStream>,
    writer: TcpStream,
}

impl Line {
    pub fn new(at: String, stream: TcpStream) -> Result<Self, AgentError> {
        let io = |source| AgentError::Io { at: at.clone(), source };
        stream.set_nodelay(true).map_err(io)?;
        let reader = BufReader::new(stream.try_clone().map_err(io)?);
        Ok(Self { at, reader, writer: stream })
    }

    /// Another handle to send over.
    pub fn sender(&self) -> Result<Sender, AgentError> {
        let writer = self.writer.try_clone();
        let writer = writer.map_err(|source| AgentError::Io { at: self.at.clone(), source })?;
        Ok(Sender { at: self.at.clone(), writer })
    }

    pub fn stream(&self) -> &TcpStream {
        &self.writer
    }

    pub fn send(&mut self, message: &impl Serialize) -> Result<(), AgentError> {
        send(&self.at, &mut self.writer, message)
    }

    /// The next message; `most` bounds its bytes.
    pub fn receive<T: DeserializeOwned>(&mut self, most: u64) -> Result<T, AgentError> {
        let mut text = Vec::new();
        let read = (&mut self.reader).take(most).read_until(b'\n', &mut text);
        let io = |source| AgentError::Io { at: self.at.clone(), source };
        if read.map_err(io)? == 0 {
            return Err(AgentError::Gone { at: self.at.clone() });
        }
        serde_json::from_slice(&text)
            .map_err(|e| AgentError::Message { at: self.at.clone(), detail: e.to_string() })
    }
}

/// A handle to send over.
#[derive(Debug)]
pub struct Sender {
    at: String,
    writer: TcpStream,
}

impl Sender {
    pub fn send(&mut self, message: &impl Serialize) -> Result<(), AgentError> {
        send(&self.at, &mut self.writer, message)
    }
}

fn send(at: &str, to: &mut TcpStream, message: &impl Serialize) -> Result<(), AgentError> {
    let mut text = serde_json::to_vec(message)
        .map_err(|e| AgentError::Message { at: at.into(), detail: e.to_string() })?;
    text.push(b'\n');
    to.write_all(&text).map_err(|source| AgentError::Io { at: at.into(), source })
}

/// A nonce that nobody has seen.
pub fn nonce() -> String {
    format!("{:016x}{:016x}", rand::random::<u64>(), rand::random::<u64>())
}

/// Shows that one knows the token, without saying it.
pub fn proof(token: &[u8], nonce: &str) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, token);
    hex(hmac::sign(&key, nonce.as_bytes()).as_ref())
}

/// Whether a proof is right, in constant time.
pub fn is_proof(token: &[u8], nonce: &str, proof: &str) -> bool {
    let key = hmac::Key::new(hmac::HMAC_SHA256, token);
    unhex(proof).is_some_and(|tag| hmac::verify(&key, nonce.as_bytes(), &tag).is_ok())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, b| text + &format!("{b:02x}"))
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> = text.chars().map(|c| c.to_digit(16).map(|d| d as u8)).collect();
    digits.map(|d| d.chunks(2).map(|pair| pair.iter().fold(0, |n, d| n << 4 | d)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proof_is_right_for_its_token_and_nonce_alone() {
        let nonce = nonce();
        let good = proof(b"secret", &nonce);
        assert!(is_proof(b"secret", &nonce, &good));
        assert!(!is_proof(b"other", &nonce, &good));
        assert!(!is_proof(b"secret", "x", &good));
        for bad in ["", "zz", &good[1..], &format!("{good}00")] {
            assert!(!is_proof(b"secret", &nonce, bad), "{bad}");
        }
    }
}
