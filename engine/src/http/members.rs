//! A member's points.

use bytes::{Bytes, BytesMut};
use hyper::http::request::Parts;

use super::json;
use super::problem::Problem;
use super::redeem::refused;
use super::reply::Reply;
use super::worker::{Ready, Worker};
use crate::kernel::command::{AccountView, Command, Outcome};

/// `GET /v1/members/me/points`
pub async fn points(worker: &Worker, parts: &Parts) -> Result<Reply, Problem> {
    let ready = worker.ready()?;
    let member = worker.identity.member(&parts.headers)?;
    let (account, _) = ask(ready, Command::ReadAccount { member }).await?;
    Ok(Reply::ok(write(&account)))
}

/// Asks a shard for an account.
pub async fn ask(ready: &Ready, command: Command) -> Result<(AccountView, bool), Problem> {
    match ready.port.submit(command)?.await {
        Outcome::Account { view, replayed } => Ok((view, replayed)),
        Outcome::Refused(refusal) => Err(refused(ready, None, None, refusal)),
        Outcome::Redemption { .. } | Outcome::Redemptions { .. } => {
            unreachable!("an account was asked for")
        }
    }
}

/// Writes an account.
pub fn write(account: &AccountView) -> Bytes {
    let mut out = BytesMut::with_capacity(96);
    json::raw(&mut out, r#"{"member":""#);
    json::number(&mut out, account.member.get());
    json::raw(&mut out, r#"","free":"#);
    json::number(&mut out, account.free.get());
    json::raw(&mut out, r#","held":"#);
    json::number(&mut out, account.held.get());
    json::raw(&mut out, "}");
    out.freeze()
}
