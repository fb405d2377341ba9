//! The hot call: a member redeems points for units of an item.

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use hyper::Response;
use hyper::StatusCode;
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue, LOCATION};
use hyper::http::request::Parts;

use super::body::{self, BODY_LEN_MAX};
use super::json;
use super::misrouted;
use super::parse::{self, Object, RedeemBody};
use super::problem::{Help, Kind, Problem};
use super::reply::{Body, JSON, Label, Reply};
use super::route::Surface;
use super::worker::{Ready, Worker};
use crate::kernel::catalog::SalePhase;
use crate::kernel::code::Code;
use crate::kernel::command::{Command, Outcome, RedemptionState, RedemptionView, Refusal};
use crate::planted::{self, Bug};
use crate::shard::catalog::SaleEntry;
use crate::shard::gate::Unavailable;
use crate::units::{ItemIndex, KeyHash, MemberId, Slot};

/// `POST /v1/sales/{sale}/redemptions`
pub async fn redeem(
    worker: &Worker,
    sale: &str,
    parts: &Parts,
    body: &mut Incoming,
) -> Result<Reply, Problem> {
    let ready = worker.ready()?;
    let member = worker.identity.member(&parts.headers)?;
    if let Some(peers) = &worker.peers
        && let Some(decision) = peers.place(Slot::of(member), &parts.headers, true)?
    {
        let surface = Surface::Public;
        return Box::pin(misrouted::answer(worker, surface, decision, parts, body)).await;
    }
    let key = KeyHash::of(parse::request_key(&parts.headers)?);
    body::require_type(&parts.headers, "application/json")?;
    let bytes = body::read(body, BODY_LEN_MAX, worker.patience()).await?;
    let Object(RedeemBody { sku, quantity, hold }) = parse::json(&bytes)?;
    let sale = worker.sale(ready, sale)?;
    let item = sale.item(&sku.0);
    let ask = Ask { member, key, item, quantity, hold };
    let decided = decide(ready, &sale, &ask).await;
    worker.cells.decided(match &decided {
        Ok(decided) => decided.label(),
        Err(problem) => Label::Problem(problem.kind),
    });
    decided.map(|decided| created(&sale, &decided))
}

/// What is asked for, its names resolved.
#[derive(Clone, Copy, Debug)]
pub struct Ask {
    pub member: MemberId,
    pub key: KeyHash,
    /// `None`: the sale has no such SKU. The key is still looked at first.
    pub item: Option<ItemIndex>,
    pub quantity: u64,
    pub hold: bool,
}

/// A redemption that was begun, now or by an earlier request with the same key.
pub struct Decided {
    pub view: RedemptionView,
    pub replayed: bool,
}

impl Decided {
    pub fn label(&self) -> Label {
        match self.view.state {
            _ if self.replayed => Label::Replayed,
            RedemptionState::Held => Label::Held,
            _ => Label::Confirmed,
        }
    }
}

/// Decides one redemption, and waits until the decision may be told.
pub async fn decide(ready: &Ready, sale: &Arc<SaleEntry>, ask: &Ask) -> Result<Decided, Problem> {
    if let Some(item) = ask.item
        && ask.quantity > 0
        && is_over(ready, sale, item, ask.member)
    {
        return Err(Problem::with(Kind::SoldOut, Help::Final(true)));
    }
    let Ask { member, key, quantity, hold, .. } = *ask;
    let item = ask.item.unwrap_or(ItemIndex::UNKNOWN);
    match ready.port.submit(Command::Redeem { member, key, item, quantity, hold }) {
        Ok(pending) => match pending.await {
            Outcome::Redemption { view, replayed } => Ok(Decided { view, replayed }),
            Outcome::Refused(refusal) => Err(refused(ready, Some(sale), ask.item, refusal)),
            Outcome::Account { .. } | Outcome::Redemptions { .. } => {
                unreachable!("a redemption is answered with one, or refused")
            }
        },
        Err(Unavailable::JournalFull) => replay(ready, ask).await,
        Err(unavailable) => Err(unavailable.into()),
    }
}

/// Whether "sold out" can be said for good without asking the shard: no unit can come back, and
/// the member has no remembered key here, whose answer would come first.
fn is_over(ready: &Ready, sale: &SaleEntry, item: ItemIndex, member: MemberId) -> bool {
    ready.core.stock.is_sold_out_finally(item)
        && sale.phase() == SalePhase::Open
        && !sale.is_paused()
        && !sale.is_keyed(member)
}

/// With a full journal, answers to known keys are still given.
async fn replay(ready: &Ready, ask: &Ask) -> Result<Decided, Problem> {
    let Ask { member, key, quantity, hold, .. } = *ask;
    let item = ask.item.unwrap_or(ItemIndex::UNKNOWN);
    let recall = Command::Recall { member, key, item, quantity, hold };
    match ready.port.submit(recall)?.await {
        Outcome::Redemption { view, replayed } => Ok(Decided { view, replayed }),
        Outcome::Refused(Refusal { code: Code::KeyReused, .. }) => Err(Kind::KeyReused.into()),
        _ => Err(Kind::JournalFull.into()),
    }
}

/// A refusal in the API's words, with the figure that helps.
pub fn refused(
    ready: &Ready,
    sale: Option<&SaleEntry>,
    item: Option<ItemIndex>,
    refusal: Refusal,
) -> Problem {
    let Refusal { code, detail } = refusal;
    match code {
        Code::SoldOut => {
            let stock = &ready.core.stock;
            let is_final = item.is_some_and(|item| {
                let is_empty = stock.line(item).free() == 0;
                stock.is_sold_out_finally(item) || is_empty && planted::is(Bug::FinalTooEarly)
            });
            Problem::with(Kind::SoldOut, Help::Final(is_final))
        }
        Code::SaleNotOpen => sale.map_or_else(
            || Kind::SaleNotOpen.into(),
            |sale| Problem::not_open(sale.definition().opens_at, ready.core.now()),
        ),
        Code::InsufficientPoints => Problem::with(code.into(), Help::Balance(detail)),
        Code::LimitReached | Code::HoldAllowanceSpent => {
            Problem::with(code.into(), Help::Limit(detail))
        }
        Code::WrongState => {
            let state = u8::try_from(detail).ok().and_then(RedemptionState::from_u8);
            let help = state.map_or(Help::None, |state| Help::State(state.name()));
            Problem::with(code.into(), help)
        }
        other => Kind::from(other).into(),
    }
}

const LOCATION_PREFIX: &str = "/v1/redemptions/";
/// Bytes of the longest answer: two ids of 64, four numbers, a redemption id and two times.
const VIEW_LEN_MAX: usize = 448;

/// 201, with body and Location cut from one buffer.
fn created(sale: &SaleEntry, decided: &Decided) -> Reply {
    let mut out = BytesMut::with_capacity(VIEW_LEN_MAX);
    out.put_slice(LOCATION_PREFIX.as_bytes());
    json::id(&mut out, decided.view.id);
    let location = out.split().freeze();
    write_view(&mut out, sale, &decided.view);
    json::raw(&mut out, "}");
    let mut response = Response::new(Body::Whole(Some(out.freeze())));
    *response.status_mut() = StatusCode::CREATED;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, JSON);
    headers.insert(LOCATION, header(location));
    let reply = Reply { label: decided.label(), response };
    if decided.replayed { reply.replayed() } else { reply }
}

fn header(bytes: Bytes) -> HeaderValue {
    HeaderValue::from_maybe_shared(bytes).expect("a path of ASCII is a header value")
}

/// Writes a redemption without its closing brace, so that more may follow.
pub fn write_view(out: &mut BytesMut, sale: &SaleEntry, view: &RedemptionView) {
    json::raw(out, r#"{"id":""#);
    json::id(out, view.id);
    json::raw(out, r#"","sale":""#);
    json::raw(out, &sale.definition().id);
    json::raw(out, r#"","sku":""#);
    json::raw(out, sale.sku(view.item));
    json::raw(out, r#"","quantity":"#);
    json::number(out, u64::from(view.quantity.get()));
    json::raw(out, r#","points":"#);
    json::number(out, view.points.get());
    json::raw(out, r#","state":""#);
    json::raw(out, view.state.name());
    json::raw(out, r#"","balance":"#);
    json::number(out, view.balance.get());
    if view.expires_at.get() > 0 {
        json::raw(out, r#","expires_at":"#);
        json::time(out, view.expires_at);
    }
}
