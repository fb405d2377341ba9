//! What a member does with redemptions that have begun: look, confirm, cancel.

use bytes::BytesMut;
use hyper::body::Incoming;
use hyper::http::request::Parts;
use serde::Deserialize;

use super::body::{self, BODY_LEN_MAX};
use super::identity::parse_member;
use super::json;
use super::parse::{self, EmptyBody, Object};
use super::problem::{Kind, Problem};
use super::redeem::{refused, write_view};
use super::reply::{Label, Reply};
use super::worker::{Ready, Worker};
use crate::kernel::command::{Command, Outcome, RedemptionState, RedemptionView};
use crate::units::{KeyHash, MemberId, RedemptionId};

/// Redemptions on one page.
const LIMIT_MAX: u16 = 100;
const LIMIT_DEFAULT: u16 = 20;

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
    let command = Command::ReadRedemption { member: Some(member), id };
    let (view, _) = ask(ready, command).await?;
    show(ready, &view)
}

/// `GET /v1/members/me/redemptions`, with `?key=`, or `?before=` and `?limit=`.
pub async fn list(worker: &Worker, parts: &Parts) -> Result<Reply, Problem> {
    let ready = worker.ready()?;
    let member = worker.identity.member(&parts.headers)?;
    let command = match Listing::read(parts.uri.query())? {
        Listing::Key(key) => Command::ReadKey { member, key },
        Listing::Page { before, limit } => Command::ListRedemptions { member, before, limit },
    };
    let outcome = ready.port.submit(command)?.await;
    let views = match outcome {
        Outcome::Redemptions(views) => views,
        Outcome::Redemption { view, .. } => vec![view],
        // The key had no effect: that is the answer, not an error.
        Outcome::Refused(_) => Vec::new(),
        Outcome::Account { .. } => unreachable!("redemptions were asked for"),
    };
    let mut out = BytesMut::with_capacity(32 + 256 * views.len());
    json::raw(&mut out, r#"{"redemptions":["#);
    for (at, view) in views.iter().enumerate() {
        if at > 0 {
            json::raw(&mut out, ",");
        }
        write(&mut out, ready, view)?;
    }
    json::raw(&mut out, "]}");
    Ok(Reply::ok(out.freeze()))
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
        Outcome::Account { .. } | Outcome::Redemptions(_) => {
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
}
