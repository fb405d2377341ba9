//! What operators do: sales, stock, points, reversals. Each change is a durable record with the
//! operator, reason and reference in it before it is answered. The operator comes by header, from
//! whatever authenticated it; reason and reference by header or in the body.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use hyper::body::Incoming;
use hyper::header::{HeaderValue, LOCATION};
use hyper::http::request::Parts;
use hyper::{HeaderMap, StatusCode};
use serde::Deserialize;

use super::body::{self, BODY_LEN_MAX};
use super::cluster::units;
use super::everywhere::{Gathered, gathered, told};
use super::identity::parse_member;
use super::json;
use super::members;
use super::parse::{self, EmptyBody, Noted, PointsBody, StockBody};
use super::problem::{Help, Kind, Problem, write_missed};
use super::redeem::{refused, write_view};
use super::redemptions::{ask, find, redemption_id};
use super::reply::{Label, Reply};
use super::route::SaleStep;
use super::sales::{timed, with_time, write_head};
use super::worker::{Ready, Worker};
use crate::kernel::command::{Command, RedemptionView};
use crate::kernel::control::{ControlCommand, ControlOutcome};
use crate::kernel::definition::{DEFINITION_LEN_MAX, SaleDefinition};
use crate::kernel::record::{AdminNote, SaleChange};
use crate::shard::catalog::SaleEntry;
use crate::telemetry::figures::LeaseFigures;
use crate::units::{ItemIndex, KeyHash, MemberId, Points, Quantity};

/// A sale's definition is an import: one of the largest must pass, with some air around it.
const DEFINITION_BODY_LEN_MAX: usize = 2 * DEFINITION_LEN_MAX;

/// `POST /v1/sales`
pub async fn define_sale(
    worker: &Worker,
    parts: &Parts,
    body: &mut Incoming,
) -> Result<Reply, Problem> {
    let ready = worker.ready()?;
    let note = parse::admin_note(&parts.headers)?;
    body::require_type(&parts.headers, "application/json")?;
    let bytes = body::read(body, DEFINITION_BODY_LEN_MAX, worker.patience()).await?;
    let (definition, note) = parse::json::<Noted<SaleDefinition>>(&bytes)?.split(note);
    let valid = definition.validate();
    let valid = valid.map_err(|e| Problem::with(Kind::Invalid, Help::Detail(sentence(&e))))?;
    let here = async {
        let id = valid.definition().id.clone();
        let is_home = worker.shared.cluster.is_home(&id);
        let command = ControlCommand::DefineSale { sale: Arc::new(valid), is_home, note };
        let status = match control(ready, command, None).await? {
            ControlOutcome::Defined { replayed: true, .. } => StatusCode::OK,
            _ => StatusCode::CREATED,
        };
        let sale = worker.sale(ready, &id)?;
        let location = HeaderValue::try_from(format!("/v1/sales/{id}")).expect("an id is ASCII");
        let reply = Reply::json(status, Label::Ok, stands(worker, ready, &sale));
        Ok(if status == StatusCode::CREATED { reply.header(LOCATION, location) } else { reply })
    };
    told(worker, parts, bytes.clone(), here).await
}

/// `GET /v1/sales/{id}` on the admin listener: with the units in each state, over all nodes.
pub async fn sale(worker: &Worker, id: &str, parts: &Parts) -> Result<Reply, Problem> {
    let ready = worker.ready()?;
    let sale = worker.sale(ready, id)?;
    let others = gathered(worker, parts).await?;
    let rest = view(worker, ready, &sale, others.as_ref());
    Ok(timed(&parts.headers, ready.core.now(), &rest))
}

/// `POST /v1/sales/{id}/open|pause|resume|close`
pub async fn step_sale(
    worker: &Worker,
    id: &str,
    step: SaleStep,
    parts: &Parts,
    body: &mut Incoming,
) -> Result<Reply, Problem> {
    let ready = worker.ready()?;
    let note = parse::admin_note(&parts.headers)?;
    let bytes = body::read(body, BODY_LEN_MAX, worker.patience()).await?;
    let note = note_alone(note, &parts.headers, &bytes)?;
    let change = match step {
        SaleStep::Open => SaleChange::Opened,
        SaleStep::Pause => SaleChange::Paused,
        SaleStep::Resume => SaleChange::Resumed,
        SaleStep::Close => SaleChange::Ended,
    };
    let here = async {
        let sale = worker.sale(ready, id)?;
        let command = ControlCommand::Change { sale: sale.index, change, note };
        control(ready, command, Some(&sale)).await?;
        Ok(Reply::ok(stands(worker, ready, &sale)))
    };
    told(worker, parts, bytes, here).await
}

/// `POST /v1/sales/{id}/items/{sku}/stock`, keyed
pub async fn change_stock(
    worker: &Worker,
    id: &str,
    sku: &str,
    parts: &Parts,
    body: &mut Incoming,
) -> Result<Reply, Problem> {
    let ready = worker.ready()?;
    let key = admin_key(parts)?;
    let (change, note) = noted::<StockBody>(worker, parts, body, BODY_LEN_MAX).await?;
    let sale = worker.sale(ready, id)?;
    let item = sale.item(sku).ok_or(Kind::ItemNotFound)?;
    let units = |n: u64| match u32::try_from(n) {
        Ok(n) if n > 0 => Ok(Quantity::new(n)),
        _ => Err(Problem::from(Kind::QuantityInvalid)),
    };
    let (asked, command) = match change {
        StockBody::Add(n) => {
            let quantity = units(n)?;
            (n, ControlCommand::AddStock { item, quantity, key, note })
        }
        StockBody::Withdraw(n) => {
            let asked = units(n)?;
            let taken = Quantity::ZERO;
            (n, ControlCommand::WithdrawStock { item, asked, taken, key, note })
        }
    };
    let outcome = control(ready, command, Some(&sale)).await?;
    let ControlOutcome::Stock { quantity, total, replayed, .. } = outcome else {
        unreachable!("a stock change is answered with the stock, or refused")
    };
    let word = if matches!(change, StockBody::Add(_)) { "added" } else { "withdrawn" };
    let mut out = BytesMut::with_capacity(256);
    json::raw(&mut out, r#"{"sale":""#);
    json::raw(&mut out, &sale.definition().id);
    json::raw(&mut out, r#"","sku":""#);
    json::raw(&mut out, sale.sku(item));
    json::raw(&mut out, r#"","asked":"#);
    json::number(&mut out, asked);
    json::raw(&mut out, ",\"");
    json::raw(&mut out, word);
    json::raw(&mut out, "\":");
    json::number(&mut out, u64::from(quantity.get()));
    json::raw(&mut out, r#","total":"#);
    json::number(&mut out, total);
    json::raw(&mut out, "}");
    let reply = Reply::ok(out.freeze());
    Ok(if replayed { reply.replayed() } else { reply })
}

/// `POST /v1/members/{id}/points`, keyed
pub async fn change_points(
    worker: &Worker,
    member: &str,
    parts: &Parts,
    body: &mut Incoming,
) -> Result<Reply, Problem> {
    let ready = worker.ready()?;
    let key = admin_key(parts)?;
    let (change, note) = noted::<PointsBody>(worker, parts, body, BODY_LEN_MAX).await?;
    let note = Arc::new(note);
    let member = member_id(member)?;
    let points = |n: u64| match Points::new(n) {
        n if n > Points::ZERO && n <= Points::MAX => Ok(n),
        _ => Err(Problem::with(
            Kind::Invalid,
            Help::Detail(format!("An amount is 1 to {} points.", Points::MAX)),
        )),
    };
    let command = match change {
        PointsBody::Credit(n) => Command::Credit { member, key, amount: points(n)?, note },
        PointsBody::Debit(n) => Command::Debit { member, key, amount: points(n)?, note },
    };
    let (account, replayed) = members::ask(ready, command).await?;
    let reply = Reply::ok(members::write(&account));
    Ok(if replayed { reply.replayed() } else { reply })
}

/// `GET /v1/members/{id}`
pub async fn member(worker: &Worker, member: &str) -> Result<Reply, Problem> {
    let ready = worker.ready()?;
    let member = member_id(member)?;
    let (account, _) = members::ask(ready, Command::ReadAccount { member }).await?;
    Ok(Reply::ok(members::write(&account)))
}

/// `GET /v1/redemptions/{id}` on the admin listener: anybody's, with its member.
pub async fn redemption(worker: &Worker, id: &str) -> Result<Reply, Problem> {
    let ready = worker.ready()?;
    let id = redemption_id(id)?;
    show(ready, &find(worker, ready, None, id).await?)
}

/// `POST /v1/redemptions/{id}/reverse`, keyed
pub async fn reverse(
    worker: &Worker,
    id: &str,
    parts: &Parts,
    body: &mut Incoming,
) -> Result<Reply, Problem> {
    let ready = worker.ready()?;
    let key = admin_key(parts)?;
    let note = Arc::new(noted_alone(worker, parts, body).await?);
    let id = redemption_id(id)?;
    let (view, replayed) = ask(ready, Command::Reverse { id, key, note }).await?;
    let reply = show(ready, &view)?;
    Ok(if replayed { reply.replayed() } else { reply })
}

/// `GET /v1/audit`: the invariants of the live node. It looks for a while, off this thread.
pub async fn audit(worker: &Worker, parts: &Parts) -> Result<Reply, Problem> {
    let all = parse::flag(parts.uri.query(), "all")?;
    worker.ready()?;
    let audit = Arc::clone(&worker.shared.audit);
    let report = tokio::task::spawn_blocking(move || audit(all)).await;
    match report.unwrap_or_else(|_| Err(String::from("the audit ended early"))) {
        Ok(report) => Ok(Reply::ok(report)),
        Err(reason) => {
            tracing::error!(reason, "audit could not look");
            Err(Problem::with(Kind::Internal, Help::Detail(format!("The audit: {reason}."))))
        }
    }
}

/// Asks the control thread; a refusal is a problem.
async fn control(
    ready: &Ready,
    command: ControlCommand,
    sale: Option<&SaleEntry>,
) -> Result<ControlOutcome, Problem> {
    match ready.core.control(command).await? {
        ControlOutcome::Refused(refusal) => Err(refused(ready, sale, None, refusal)),
        outcome => Ok(outcome),
    }
}

/// Reads a change's body, and who asked and why from it and the headers.
async fn noted<T: for<'de> Deserialize<'de>>(
    worker: &Worker,
    parts: &Parts,
    body: &mut Incoming,
    len_max: usize,
) -> Result<(T, AdminNote), Problem> {
    let note = parse::admin_note(&parts.headers)?;
    body::require_type(&parts.headers, "application/json")?;
    let bytes = body::read(body, len_max, worker.patience()).await?;
    Ok(parse::json::<Noted<T>>(&bytes)?.split(note))
}

/// The same of a body that says nothing else, and may be left out.
async fn noted_alone(
    worker: &Worker,
    parts: &Parts,
    body: &mut Incoming,
) -> Result<AdminNote, Problem> {
    let note = parse::admin_note(&parts.headers)?;
    let bytes = body::read(body, BODY_LEN_MAX, worker.patience()).await?;
    note_alone(note, &parts.headers, &bytes)
}

fn note_alone(note: AdminNote, headers: &HeaderMap, bytes: &[u8]) -> Result<AdminNote, Problem> {
    if bytes.is_empty() {
        return Ok(note);
    }
    body::require_type(headers, "application/json")?;
    Ok(parse::json::<Noted<EmptyBody>>(bytes)?.split(note).1)
}

fn admin_key(parts: &Parts) -> Result<KeyHash, Problem> {
    Ok(parse::admin_key(parts.uri.path(), parse::request_key(&parts.headers)?))
}

/// A path's member id. What is no id names no member.
fn member_id(text: &str) -> Result<MemberId, Problem> {
    parse_member(text.as_bytes()).ok_or_else(|| Kind::MemberNotFound.into())
}

/// An error as a sentence of its own.
fn sentence(error: &impl std::fmt::Display) -> String {
    let text = error.to_string();
    let mut chars = text.chars();
    let first = chars.next().map(|c| c.to_uppercase().collect::<String>()).unwrap_or_default();
    format!("{first}{}.", chars.as_str())
}

/// A sale as it stands here behind a change.
fn stands(worker: &Worker, ready: &Ready, sale: &SaleEntry) -> Bytes {
    with_time(ready.core.now(), &view(worker, ready, sale, None))
}

/// A sale's fields, without braces, with its units here and, where they were asked, on the other
/// nodes.
fn view(worker: &Worker, ready: &Ready, sale: &SaleEntry, others: Option<&Gathered>) -> BytesMut {
    let mut out = BytesMut::with_capacity(1024);
    write_head(&mut out, sale);
    json::raw(&mut out, r#","items":["#);
    for (at, (item, definition)) in sale.items().zip(&sale.definition().items).enumerate() {
        json::raw(&mut out, if at == 0 { r#"{"sku":""# } else { r#",{"sku":""# });
        json::raw(&mut out, &definition.sku);
        json::raw(&mut out, r#"","name":"#);
        json::string(&mut out, &definition.name);
        json::raw(&mut out, r#","points":"#);
        json::number(&mut out, definition.points.get());
        json::raw(&mut out, r#","limit_per_member":"#);
        json::number(&mut out, u64::from(definition.limit_per_member.get()));
        for (name, units) in summed(worker, ready, sale, (at, item), others) {
            json::raw(&mut out, ",\"");
            json::raw(&mut out, name);
            json::raw(&mut out, "\":");
            json::number(&mut out, units);
        }
        let is_sold_out = ready.core.stock.is_sold_out_finally(item)
            && others.is_none_or(|others| {
                others.answers.iter().all(|(_, value)| value["items"][at]["sold_out"] == true)
            });
        json::raw(&mut out, r#","sold_out":"#);
        json::raw(&mut out, if is_sold_out { "true" } else { "false" });
        let lease = worker.shared.figures.lease(item).filter(|lease| lease.is_shared);
        if let Some(lease) = lease {
            write_lease(&mut out, &lease);
        }
        json::raw(&mut out, "}");
    }
    json::raw(&mut out, "]");
    if let Some(others) = others {
        json::raw(&mut out, ",");
        write_missed(&mut out, "nodes_missed", &others.missed);
    }
    out
}

/// This node's lease of an item whose pool nodes share.
fn write_lease(out: &mut BytesMut, lease: &LeaseFigures) {
    json::raw(out, r#","lease":{"state":""#);
    json::raw(out, lease.phase);
    json::raw(out, "\"");
    for (name, figure) in lease.fields() {
        json::raw(out, ",\"");
        json::raw(out, name);
        json::raw(out, "\":");
        json::number(out, figure);
    }
    json::raw(out, "}");
}

/// An item's units over the nodes that answered; the total as its home knows it.
fn summed(
    worker: &Worker,
    ready: &Ready,
    sale: &SaleEntry,
    (at, item): (usize, ItemIndex),
    others: Option<&Gathered>,
) -> [(&'static str, u64); 4] {
    let mut sums = units(worker, ready, item);
    let Some((others, map)) = others.zip(worker.shared.cluster.map()) else { return sums };
    let home = map.home(&sale.definition().id);
    for (node, value) in &others.answers {
        for (name, sum) in &mut sums {
            let there = value["items"][at][*name].as_u64().unwrap_or(0);
            match *name {
                "total" if *node == home => *sum = there,
                "total" => {}
                _ => *sum = sum.saturating_add(there),
            }
        }
    }
    sums
}

fn show(ready: &Ready, view: &RedemptionView) -> Result<Reply, Problem> {
    let sale = ready.core.catalog.sale_of(view.item).ok_or(Kind::Internal)?;
    let mut out = BytesMut::with_capacity(512);
    write_view(&mut out, &sale, view);
    json::raw(&mut out, r#","member":""#);
    json::number(&mut out, view.member.get());
    json::raw(&mut out, "\"}");
    Ok(Reply::ok(out.freeze()))
}
