//! What lies in the database shards: a member's points statement, an item's redemptions, and those
//! of a member's that memory has forgotten.
//!
//! The databases are behind the sale and may be away; what they say is asked for elsewhere
//! ([`History`]), never on a worker's thread. A member's own writes are never missing: the answer
//! waits until the rows it is read from have them, or is a 503.

use bytes::{Bytes, BytesMut};
use hyper::http::request::Parts;
use tokio::sync::oneshot;

use super::everywhere::{join, not_reached, others};
use super::json;
use super::members;
use super::misrouted::elements;
use super::parse;
use super::peers::{self, Peers, Side};
use super::problem::{Kind, NodeMissed, Problem};
use super::redemptions::parse_limit;
use super::reply::Reply;
use super::worker::Worker;
use crate::cluster::map::NodeIndex;
use crate::kernel::command::{Command, RedemptionState, RedemptionView};
use crate::units::{ItemIndex, KeyHash, MemberId, NodeTime, Points, Quantity, RedemptionId};

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
    Statement {
        member: MemberId,
        before: Option<Cursor>,
        limit: u16,
    },
    /// A member's redemptions, newest first. `forgotten_sales`, here and below: what memory said
    /// of the slot just before.
    Redemptions {
        member: MemberId,
        before: Option<RedemptionId>,
        limit: u16,
        forgotten_sales: u64,
    },
    /// The newest redemption that a request key began.
    ByKey {
        member: MemberId,
        key: KeyHash,
        forgotten_sales: u64,
    },
    /// One redemption, whosever it is.
    One {
        id: RedemptionId,
        forgotten_sales: u64,
    },
    OfItem {
        item: ItemIndex,
        before: Option<RedemptionId>,
        limit: u16,
    },
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

/// A redemption as it is stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stored {
    pub id: RedemptionId,
    pub member: MemberId,
    pub item: ItemIndex,
    pub quantity: Quantity,
    pub points: Points,
    pub state: RedemptionState,
    /// When the hold ends, or would have; zero where there was none.
    pub expires_at: NodeTime,
    pub updated_at: NodeTime,
}

impl Stored {
    /// As its member sees it, with the free points of now.
    pub fn view(&self, balance: Points) -> RedemptionView {
        let Self { id, member, item, quantity, points, state, expires_at, .. } = *self;
        RedemptionView { id, member, item, quantity, points, state, balance, expires_at }
    }
}

/// What the database shards said.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Answer {
    Statement(Vec<Entry>),
    OfItem(Vec<Stored>),
    /// Of a member, by a key, or one; newest first.
    Redemptions(Vec<Stored>),
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

/// A member's redemptions, or one, as they are stored.
///
/// Errors: the databases do not answer, or have not got that far.
pub async fn redemptions(worker: &Worker, question: Question) -> Result<Vec<Stored>, Problem> {
    match ask(worker, question).await? {
        Answer::Redemptions(rows) => Ok(rows),
        _ => Err(Kind::Internal.into()),
    }
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
    let mut rows: Vec<(RedemptionId, BytesMut)> =
        rows.iter().map(|row| (row.id, write_stored(row))).collect();
    if let Some((peers, nodes)) = others(worker, &parts.headers)? {
        rows.extend(of_item_elsewhere(peers, &nodes, parts).await?);
        rows.sort_by_key(|(id, _)| std::cmp::Reverse(*id));
        rows.truncate(usize::from(limit));
    }
    // Every node's page, and so theirs together, is short only where it is the last.
    let next = rows.last().map(|(id, _)| *id).filter(|_| rows.len() == usize::from(limit));
    let mut out = BytesMut::with_capacity(80 + 240 * rows.len());
    json::raw(&mut out, r#"{"redemptions":["#);
    for (at, (_, row)) in rows.into_iter().enumerate() {
        json::raw(&mut out, if at > 0 { "," } else { "" });
        out.unsplit(row);
    }
    json::raw(&mut out, "]");
    if let Some(id) = next {
        json::raw(&mut out, r#","next":""#);
        json::id(&mut out, id);
        json::raw(&mut out, r#"""#);
    }
    json::raw(&mut out, "}");
    Ok(Reply::ok(out.freeze()))
}

fn write_stored(row: &Stored) -> BytesMut {
    let mut out = BytesMut::with_capacity(240);
    json::raw(&mut out, r#"{"id":""#);
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
    out
}

/// The same page of every other node: an item's redemptions lie where its members do.
///
/// Errors: a page without some node's rows would look whole, so there is none.
async fn of_item_elsewhere(
    peers: &Peers,
    nodes: &[NodeIndex],
    parts: &Parts,
) -> Result<Vec<(RedemptionId, BytesMut)>, Problem> {
    let ask = peers.ask_of(Side::Admin, parts, Bytes::new());
    let answers = join(nodes.iter().map(|&node| peers.send(node, &ask))).await;
    let (mut rows, mut missed) = (Vec::new(), Vec::new());
    for (&node, answer) in nodes.iter().zip(answers) {
        let there = match answer {
            Ok(answer) => rows_of(&answer).ok_or_else(|| answer.code()),
            Err(problem) => Err(problem.kind.code().to_owned()),
        };
        match there {
            Ok(there) => rows.extend(there),
            Err(code) => missed.push(NodeMissed { node: peers.name(node).to_owned(), code }),
        }
    }
    if missed.is_empty() { Ok(rows) } else { Err(not_reached(missed)) }
}

/// The rows of a page, each with its id.
fn rows_of(answer: &peers::Answer) -> Option<Vec<(RedemptionId, BytesMut)>> {
    let value = answer.json()?;
    let rows = elements(&answer.body, "redemptions")?;
    let ids = value["redemptions"].as_array()?.iter();
    let ids = ids.map(|row| row["id"].as_str().and_then(RedemptionId::parse));
    ids.zip(rows).map(|(id, row)| Some((id?, BytesMut::from(row)))).collect()
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
