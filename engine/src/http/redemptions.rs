//! What a member does with redemptions that have begun: look, confirm, cancel.
//!
//! Looking asks memory first. What memory has forgotten, a day after the sale's end, is read from
//! the database shards; while nothing is forgotten, they are not asked.

use bytes::BytesMut;
use hyper::body::Incoming;
use hyper::http::request::Parts;
use serde::Deserialize;

use super::body::{self, BODY_LEN_MAX};
use super::history::{self, Question};
use super::identity::parse_member;
use super::json;
use super::members;
use super::parse::{self, EmptyBody, Object};
use super::problem::{Kind, Problem};
use super::redeem::{refused, write_view};
use super::reply::{Label, Reply};
use super::worker::{Ready, Worker};
use crate::kernel::catalog::SalePhase;
use crate::kernel::code::Code;
use crate::kernel::command::{Command, Outcome, RedemptionState, RedemptionView, Refusal};
use crate::units::{KeyHash, MemberId, NodeTime, Points, RedemptionId};

/// Redemptions on one page.
const LIMIT_MAX: u16 = 100;
const LIMIT_DEFAULT: u16 = 20;
/// How long behind its time a sale may still have taken redemptions, at most: until its end is
/// recorded and every shard has heard of it. Units: milliseconds.
const ENDING_MS: u64 = 60_000;

/// `POST /v1/redemptions/{id}/confirm`
pub async fn confirm(
    worker: &Worker,
    id: &str,
    parts: &Parts,
    body: &mut Incoming,
) -> Result<Reply, Problem> {
    step(worker, id, parts, body, |member, id| Command::Confirm { member, id }).await
}

/// `POST /v1/redemptions/{id}/cancel`
pub async fn cancel(
    worker: &Worker,
    id: &str,
    parts: &Parts,
    body: &mut Incoming,
) -> Result<Reply, Problem> {
    step(worker, id, parts, body, |member, id| Command::Cancel { member, id }).await
}

async fn step(
    worker: &Worker,
    id: &str,
    parts: &Parts,
    body: &mut Incoming,
    command: impl FnOnce(MemberId, RedemptionId) -> Command,
) -> Result<Reply, Problem> {
    let ready = worker.ready()?;
    let member = worker.identity.member(&parts.headers)?;
    empty_body(worker, parts, body).await?;
    let id = redemption_id(id)?;
    let (view, replayed) = ask(ready, command(member, id)).await?;
    let label = match view.state {
        RedemptionState::Confirmed => Label::Confirmed,
        RedemptionState::Cancelled => Label::Cancelled,
        _ => Label::Ok,
    };
    let reply = Reply { label, ..show(ready, &view)? };
    Ok(if replayed { reply.replayed() } else { reply })
}

/// `GET /v1/redemptions/{id}`
pub async fn read(worker: &Worker, id: &str, parts: &Parts) -> Result<Reply, Problem> {
    let ready = worker.ready()?;
    let member = worker.identity.member(&parts.headers)?;
    let id = redemption_id(id)?;
    show(ready, &find(worker, ready, Some(member), id).await?)
}

/// A redemption, from wherever it is; `member` is `None` for an operator.
pub async fn find(
    worker: &Worker,
    ready: &Ready,
    member: Option<MemberId>,
    id: RedemptionId,
) -> Result<RedemptionView, Problem> {
    let refusal = match ready.port.submit(Command::ReadRedemption { member, id })?.await {
        Outcome::Redemption { view, .. } => return Ok(view),
        Outcome::Refused(refusal) => refusal,
        Outcome::Account { .. } | Outcome::Redemptions { .. } => {
            unreachable!("a redemption was asked for")
        }
    };
    if let Some(forgotten_sales) = forgotten(refusal) {
        let rows = history::redemptions(worker, Question::One { id, forgotten_sales }).await?;
        let own = rows.iter().find(|row| member.is_none_or(|member| row.member == member));
        if let Some(row) = own {
            return Ok(row.view(free_points(ready, row.member).await?));
        }
    }
    Err(refused(ready, None, None, refusal))
}

/// How many sales are forgotten where a redemption was not found; `None` where memory is whole.
fn forgotten(refusal: Refusal) -> Option<u64> {
    (refusal.code == Code::RedemptionNotFound && refusal.detail > 0).then_some(refusal.detail)
}

async fn free_points(ready: &Ready, member: MemberId) -> Result<Points, Problem> {
    let (account, _) = members::ask(ready, Command::ReadAccount { member }).await?;
    Ok(account.free)
}

/// `GET /v1/members/me/redemptions`, with `?key=`, or `?before=` and `?limit=`.
pub async fn list(worker: &Worker, parts: &Parts) -> Result<Reply, Problem> {
    let ready = worker.ready()?;
    let member = worker.identity.member(&parts.headers)?;
    let Page { views, has_more } = match Listing::read(parts.uri.query())? {
        Listing::Key(key) => by_key(worker, ready, member, key).await?,
        Listing::Page { before, limit } => page(worker, ready, member, before, limit).await?,
    };
    let mut out = BytesMut::with_capacity(64 + 256 * views.len());
    json::raw(&mut out, r#"{"redemptions":["#);
    for (at, view) in views.iter().enumerate() {
        if at > 0 {
            json::raw(&mut out, ",");
        }
        write(&mut out, ready, view)?;
    }
    json::raw(&mut out, "]");
    if let Some(last) = views.last().filter(|_| has_more) {
        json::raw(&mut out, r#","next":""#);
        json::id(&mut out, last.id);
        json::raw(&mut out, r#"""#);
    }
    json::raw(&mut out, "}");
    Ok(Reply::ok(out.freeze()))
}

/// What a listing is answered with.
#[derive(PartialEq, Eq, Debug)]
struct Page {
    views: Vec<RedemptionView>,
    /// There may be more behind the last.
    has_more: bool,
}

/// The redemption that a key began, if any.
async fn by_key(
    worker: &Worker,
    ready: &Ready,
    member: MemberId,
    key: KeyHash,
) -> Result<Page, Problem> {
    let views = match ready.port.submit(Command::ReadKey { member, key })?.await {
        Outcome::Redemption { view, .. } => vec![view],
        Outcome::Refused(refusal) => match forgotten(refusal) {
            Some(forgotten_sales) => {
                let question = Question::ByKey { member, key, forgotten_sales };
                stored(worker, ready, member, question).await?
            }
            // The key had no effect: that is the answer, not an error.
            None => Vec::new(),
        },
        Outcome::Account { .. } | Outcome::Redemptions { .. } => {
            unreachable!("a redemption was asked for")
        }
    };
    Ok(Page { views, has_more: false })
}

/// The page behind `before`, of memory and the databases together.
async fn page(
    worker: &Worker,
    ready: &Ready,
    member: MemberId,
    before: Option<RedemptionId>,
    limit: u16,
) -> Result<Page, Problem> {
    let command = Command::ListRedemptions { member, before, limit };
    let (mut views, forgotten_sales) = match ready.port.submit(command)?.await {
        Outcome::Redemptions { views, forgotten_sales } => (views, forgotten_sales),
        Outcome::Refused(refusal) => return Err(refused(ready, None, None, refusal)),
        Outcome::Redemption { .. } | Outcome::Account { .. } => {
            unreachable!("redemptions were asked for")
        }
    };
    let is_full = views.len() == usize::from(limit);
    if forgotten_sales == 0 {
        return Ok(Page { views, has_more: is_full });
    }
    // Behind the end of every sale that may be forgotten, memory is all there is.
    let sales = ready.core.catalog.sales();
    let ended = sales.iter().filter(|sale| sale.phase() >= SalePhase::Ended);
    let newest_forgotten = ended.map(|sale| sale.definition().closes_at.plus_ms(ENDING_MS)).max();
    let newer = newer_than(&views, newest_forgotten);
    if is_full && newer == views.len() {
        return Ok(Page { views, has_more: true });
    }
    let question = Question::Redemptions { member, before, limit, forgotten_sales };
    match stored(worker, ready, member, question).await {
        Ok(stored) => Ok(together(views, &stored, limit)),
        // A shorter page says that it is not the last, and leaves nothing out.
        Err(_) if newer > 0 => {
            views.truncate(newer);
            Ok(Page { views, has_more: true })
        }
        Err(problem) => Err(problem),
    }
}

/// How many of the first are newer than this.
fn newer_than(views: &[RedemptionView], time: Option<NodeTime>) -> usize {
    views.iter().take_while(|view| time.is_none_or(|time| view.id.at() > time)).count()
}

/// A page of what is remembered and what is stored, newest first. What is remembered is newer
/// than its row. Each of them is whole down to its last, or to the end if it is not full: so is
/// the page.
fn together(remembered: Vec<RedemptionView>, stored: &[RedemptionView], limit: u16) -> Page {
    let only_stored: Vec<_> =
        stored.iter().filter(|row| remembered.iter().all(|view| view.id != row.id)).collect();
    let mut views = remembered;
    views.extend(only_stored);
    views.sort_by_key(|view| std::cmp::Reverse(view.id));
    let has_more = views.len() >= usize::from(limit);
    views.truncate(usize::from(limit));
    Page { views, has_more }
}

/// What the databases have, as the member sees it.
async fn stored(
    worker: &Worker,
    ready: &Ready,
    member: MemberId,
    question: Question,
) -> Result<Vec<RedemptionView>, Problem> {
    let rows = history::redemptions(worker, question).await?;
    if rows.is_empty() {
        return Ok(Vec::new());
    }
    let balance = free_points(ready, member).await?;
    Ok(rows.iter().map(|row| row.view(balance)).collect())
}

/// What a listing asks for.
#[derive(PartialEq, Eq, Debug)]
enum Listing {
    /// Whether this key had an effect.
    Key(KeyHash),
    /// The page behind `before`, newest first.
    Page { before: Option<RedemptionId>, limit: u16 },
}

impl Listing {
    fn read(query: Option<&str>) -> Result<Self, Problem> {
        let (mut key, mut before, mut limit) = (None, None, None);
        for (name, value) in parse::query(query)? {
            let is_repeated = match name.as_ref() {
                "key" if parse::is_key(value.as_bytes()) => {
                    key.replace(KeyHash::of(value.as_bytes())).is_some()
                }
                "key" => return Err(Kind::KeyMalformed.into()),
                "before" => {
                    let id = RedemptionId::parse(&value)
                        .ok_or_else(|| Problem::malformed("`before` is the id of a redemption."))?;
                    before.replace(id).is_some()
                }
                "limit" => {
                    let count = parse_limit(&value).ok_or_else(|| {
                        Problem::malformed(format!("`limit` is 1 to {LIMIT_MAX}."))
                    })?;
                    limit.replace(count).is_some()
                }
                other => {
                    return Err(Problem::malformed(format!("Unknown parameter `{other}`.")));
                }
            };
            if is_repeated {
                return Err(Problem::malformed(format!("Parameter `{name}` is repeated.")));
            }
        }
        match (key, before, limit) {
            (Some(key), None, None) => Ok(Self::Key(key)),
            (Some(_), ..) => Err(Problem::malformed("`key` stands alone.")),
            (None, before, limit) => {
                Ok(Self::Page { before, limit: limit.unwrap_or(LIMIT_DEFAULT) })
            }
        }
    }
}

pub fn parse_limit(text: &str) -> Option<u16> {
    let number = parse_member(text.as_bytes())?.get();
    u16::try_from(number).ok().filter(|limit| (1..=LIMIT_MAX).contains(limit))
}

/// A path's redemption id. What is no id names no redemption.
pub fn redemption_id(text: &str) -> Result<RedemptionId, Problem> {
    // The form that answers have, in either case; the parser knows others.
    let is_hyphenated = text.len() == uuid::fmt::Hyphenated::LENGTH;
    RedemptionId::parse(text)
        .filter(|_| is_hyphenated)
        .ok_or_else(|| Kind::RedemptionNotFound.into())
}

/// Asks a shard for one redemption.
pub async fn ask(ready: &Ready, command: Command) -> Result<(RedemptionView, bool), Problem> {
    match ready.port.submit(command)?.await {
        Outcome::Redemption { view, replayed } => Ok((view, replayed)),
        Outcome::Refused(refusal) => Err(refused(ready, None, None, refusal)),
        Outcome::Account { .. } | Outcome::Redemptions { .. } => {
            unreachable!("a redemption was asked for")
        }
    }
}

/// A redemption as its member sees it.
pub fn show(ready: &Ready, view: &RedemptionView) -> Result<Reply, Problem> {
    let mut out = BytesMut::with_capacity(448);
    write(&mut out, ready, view)?;
    Ok(Reply::ok(out.freeze()))
}

fn write(out: &mut BytesMut, ready: &Ready, view: &RedemptionView) -> Result<(), Problem> {
    let sale = ready.core.catalog.sale_of(view.item).ok_or(Kind::Internal)?;
    write_view(out, &sale, view);
    json::raw(out, "}");
    Ok(())
}

/// Reads a body that says nothing: none at all, or `{}`.
pub async fn empty_body(
    worker: &Worker,
    parts: &Parts,
    body: &mut Incoming,
) -> Result<(), Problem> {
    optional_body::<Object<EmptyBody>>(worker, parts, body).await.map(drop)
}

/// Reads a body that may be left out.
pub async fn optional_body<T: for<'de> Deserialize<'de>>(
    worker: &Worker,
    parts: &Parts,
    body: &mut Incoming,
) -> Result<Option<T>, Problem> {
    let bytes = body::read(body, BODY_LEN_MAX, worker.patience()).await?;
    if bytes.is_empty() {
        return Ok(None);
    }
    body::require_type(&parts.headers, "application/json")?;
    parse::json(&bytes).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::{ItemIndex, JournalId, Quantity, Slot};

    #[test]
    fn a_listing_is_a_key_or_a_page() {
        let page = |before, limit| Ok(Listing::Page { before, limit });
        let id = "0192f3a0-0000-8001-8000-000000000001";
        let before = RedemptionId::parse(id);
        assert!(before.is_some());
        let paged = format!("before={id}&limit=100");
        for (query, expected) in [
            ("", page(None, LIMIT_DEFAULT)),
            ("limit=1", page(None, 1)),
            (paged.as_str(), page(before, 100)),
            ("key=a%26b", Ok(Listing::Key(KeyHash::of(b"a&b")))),
            ("key=", Err(Kind::KeyMalformed)),
            ("key=a%20b", Err(Kind::KeyMalformed)),
            ("key=a&key=a", Err(Kind::Malformed)),
            ("key=a&limit=1", Err(Kind::Malformed)),
            ("limit=0", Err(Kind::Malformed)),
            ("limit=101", Err(Kind::Malformed)),
            ("limit=-1", Err(Kind::Malformed)),
            ("before=x", Err(Kind::Malformed)),
            ("after=x", Err(Kind::Malformed)),
        ] {
            assert_eq!(Listing::read(Some(query)).map_err(|p| p.kind), expected, "{query}");
        }
    }

    #[test]
    fn a_page_is_newest_first_across_what_is_remembered_and_what_is_stored() {
        let view = |number: u64, state| {
            let (member, journal) = (MemberId::new(1), JournalId::new(1));
            let at = NodeTime::new(number);
            RedemptionView {
                id: RedemptionId::new(at, Slot::of(member), journal, number),
                member,
                item: ItemIndex::new(0),
                quantity: Quantity::new(1),
                points: Points::ZERO,
                state,
                balance: Points::ZERO,
                expires_at: NodeTime::new(0),
            }
        };
        let all = |numbers: &[u64], state| -> Vec<RedemptionView> {
            numbers.iter().map(|&number| view(number, state)).collect()
        };
        let (newer, older) = (RedemptionState::Confirmed, RedemptionState::Held);
        // Of 9 down to 1, some are remembered; all but the newest are stored. Every page of every
        // length is what one list would give.
        for remembered in 0..1_u64 << 9 {
            let is_remembered = |n: u64| remembered >> (n - 1) & 1 == 1;
            for limit in 1..=4_usize {
                for before in 1..=10 {
                    let below = |n: &u64| *n < before;
                    let all_below = || (1..=9).rev().filter(below);
                    let kept: Vec<u64> = all_below().filter(|&n| is_remembered(n)).collect();
                    let is_stored = |n: &u64| *n < 9 || !is_remembered(*n);
                    let rows: Vec<u64> = all_below().filter(is_stored).collect();
                    let page = together(
                        all(&kept[..limit.min(kept.len())], newer),
                        &all(&rows[..limit.min(rows.len())], older),
                        limit as u16,
                    );
                    let expected: Vec<RedemptionView> = (1..before.min(10))
                        .rev()
                        .take(limit)
                        .map(|n| view(n, if is_remembered(n) { newer } else { older }))
                        .collect();
                    let has_more = expected.len() == limit;
                    assert_eq!(page, Page { views: expected, has_more });
                }
            }
        }
    }
}
