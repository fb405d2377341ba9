//! What lies in the database shards: a member's points statement, an item's redemptions.
//!
//! The databases are behind the sale and may be away; what they say is asked for elsewhere
//! ([`History`]), never on a worker's thread. A member's own writes are never missing: the answer
//! waits until the rows it is read from have them, or is a 503.

use bytes::BytesMut;
use hyper::http::request::Parts;
use tokio::sync::oneshot;

use super::json;
use super::members;
use super::parse;
use super::problem::{Kind, Problem};
use super::redemptions::parse_limit;
use super::reply::Reply;
use super::worker::Worker;
use crate::kernel::command::{Command, RedemptionState};
use crate::units::{ItemIndex, MemberId, NodeTime, Points, Quantity, RedemptionId};

/// Entries on one page, where nothing is said.
const LIMIT_DEFAULT: u16 = 20;

/// Where a page of a statement ends. Opaque to members.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cursor {
    pub at: u64,
    pub journal: u64,
    pub seq: u64,
    pub leg: u8,
}

/// What is asked of the database shards.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Question {
    Statement { member: MemberId, before: Option<Cursor>, limit: u16 },
    OfItem { item: ItemIndex, before: Option<RedemptionId>, limit: u16 },
}

/// A move of a member's points, as its own account saw it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry {
    pub cursor: Cursor,
    pub kind: &'static str,
    pub account: &'static str,
    pub amount: i64,
    pub redemption: Option<RedemptionId>,
}

/// A redemption, for whoever ships it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shipped {
    pub id: RedemptionId,
    pub member: MemberId,
    pub quantity: Quantity,
    pub points: Points,
    pub state: RedemptionState,
    pub updated_at: NodeTime,
}

/// What the database shards said.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Answer {
    Statement(Vec<Entry>),
    OfItem(Vec<Shipped>),
    /// They do not answer, or are too far behind.
    Unavailable,
}

/// Whoever reads the database shards, off the workers.
pub trait History: Send + Sync {
    /// Passes a question on; `false` where too many wait already.
    fn ask(&self, question: Question, answer: oneshot::Sender<Answer>) -> bool;

    /// What `member` was just told is to be in every later page. Durable by now.
    fn note_write(&self, member: MemberId);

    /// The same, of members that are not named.
    fn note_writes(&self);
}

async fn ask(worker: &Worker, question: Question) -> Result<Answer, Problem> {
    let history = worker.shared.history.get().ok_or(Kind::Starting)?;
    let (sender, answer) = oneshot::channel();
    if !history.ask(question, sender) {
        return Err(Kind::Overloaded.into());
    }
    match answer.await {
        Ok(Answer::Unavailable) | Err(_) => Err(Kind::HistoryUnavailable.into()),
        Ok(answer) => Ok(answer),
    }
}

/// `GET /v1/members/me/statement`, with `?before=` and `?limit=`.
pub async fn statement(worker: &Worker, parts: &Parts) -> Result<Reply, Problem> {
    let ready = worker.ready()?;
    let member = worker.identity.member(&parts.headers)?;
    let (before, limit) =
        page(parts.uri.query(), "`before` is the `next` of a page.", Cursor::parse)?;
    // Whether there is such a member, memory knows.
    members::ask(ready, Command::ReadAccount { member }).await?;
    let question = Question::Statement { member, before, limit };
    let Answer::Statement(entries) = ask(worker, question).await? else {
        return Err(Kind::Internal.into());
    };
    let mut out = BytesMut::with_capacity(64 + 160 * entries.len());
    json::raw(&mut out, r#"{"entries":["#);
    for (at, entry) in entries.iter().enumerate() {
        json::raw(&mut out, if at > 0 { r#",{"at":"# } else { r#"{"at":"# });
        json::time(&mut out, NodeTime::new(entry.cursor.at));
        for (name, text) in [(r#","kind":""#, entry.kind), (r#"","account":""#, entry.account)] {
            json::raw(&mut out, name);
            json::raw(&mut out, text);
        }
        json::raw(&mut out, r#"","amount":"#);
        json::raw(&mut out, if entry.amount < 0 { "-" } else { "" });
        json::number(&mut out, entry.amount.unsigned_abs());
        if let Some(id) = entry.redemption {
            json::raw(&mut out, r#","redemption":""#);
            json::id(&mut out, id);
            json::raw(&mut out, r#"""#);
        }
        json::raw(&mut out, "}");
    }
    json::raw(&mut out, "]");
    if let Some(last) = entries.last().filter(|_| entries.len() == usize::from(limit)) {
        json::raw(&mut out, r#","next":""#);
        json::raw(&mut out, &last.cursor.print());
        json::raw(&mut out, r#"""#);
    }
    json::raw(&mut out, "}");
    Ok(Reply::ok(out.freeze()))
}

/// `GET /v1/sales/{sale}/items/{sku}/redemptions` on the admin listener.
pub async fn of_item(
    worker: &Worker,
    sale: &str,
    sku: &str,
    parts: &Parts,
) -> Result<Reply, Problem> {
    let ready = worker.ready()?;
    let sale = worker.sale(ready, sale)?;
    let item = sale.item(sku).ok_or(Kind::ItemNotFound)?;
    let hint = "`before` is the id of a redemption.";
    let (before, limit) = page(parts.uri.query(), hint, RedemptionId::parse)?;
    let question = Question::OfItem { item, before, limit };
    let Answer::OfItem(rows) = ask(worker, question).await? else {
        return Err(Kind::Internal.into());
    };
    let mut out = BytesMut::with_capacity(32 + 240 * rows.len());
    json::raw(&mut out, r#"{"redemptions":["#);
    for (at, row) in rows.iter().enumerate() {
        json::raw(&mut out, if at > 0 { r#",{"id":""# } else { r#"{"id":""# });
        json::id(&mut out, row.id);
        json::raw(&mut out, r#"","member":""#);
        json::number(&mut out, row.member.get());
        json::raw(&mut out, r#"","quantity":"#);
        json::number(&mut out, u64::from(row.quantity.get()));
        json::raw(&mut out, r#","points":"#);
        json::number(&mut out, row.points.get());
        json::raw(&mut out, r#","state":""#);
        json::raw(&mut out, row.state.name());
        json::raw(&mut out, r#"","updated_at":"#);
        json::time(&mut out, row.updated_at);
        json::raw(&mut out, "}");
    }
    json::raw(&mut out, "]}");
    Ok(Reply::ok(out.freeze()))
}

/// `before` and `limit` of a query.
fn page<C>(
    query: Option<&str>,
    hint: &'static str,
    parse_before: impl Fn(&str) -> Option<C>,
) -> Result<(Option<C>, u16), Problem> {
    let (mut before, mut limit) = (None, None);
    for (name, value) in parse::query(query)? {
        let is_repeated = match name.as_ref() {
            "before" => {
                let parsed = parse_before(&value).ok_or_else(|| Problem::malformed(hint))?;
                before.replace(parsed).is_some()
            }
            "limit" => {
                let parsed = parse_limit(&value)
                    .ok_or_else(|| Problem::malformed("`limit` is 1 to 100."))?;
                limit.replace(parsed).is_some()
            }
            other => return Err(Problem::malformed(format!("Unknown parameter `{other}`."))),
        };
        if is_repeated {
            return Err(Problem::malformed(format!("Parameter `{name}` is repeated.")));
        }
    }
    Ok((before, limit.unwrap_or(LIMIT_DEFAULT)))
}

impl Cursor {
    /// 16 hexadecimal digits each of time, journal and sequence number, and the leg.
    fn print(self) -> String {
        format!("{:016x}{:016x}{:016x}{}", self.at, self.journal, self.seq, self.leg)
    }
    fn parse(text: &str) -> Option<Self> {
        if text.len() != 49 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return None;
        }
        let part = |n: usize| u64::from_str_radix(&text[n * 16..n * 16 + 16], 16).ok();
        let leg = text[48..].parse().ok().filter(|leg| *leg <= 1)?;
        // Times beyond what a database can hold name no entry.
        let at = part(0)?.min(i64::MAX.cast_unsigned());
        Some(Self { at, journal: part(1)?, seq: part(2)?, leg })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_read_as_it_was_printed() {
        let cursor = Cursor { at: 1_700_000_000_000, journal: u64::MAX, seq: 7, leg: 1 };
        assert_eq!(Cursor::parse(&cursor.print()), Some(cursor));
        for text in ["", "0", &"0".repeat(48), &"g".repeat(49), &("0".repeat(48) + "2")] {
            assert_eq!(Cursor::parse(text), None, "{text}");
        }
    }
}
