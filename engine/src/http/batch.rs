//! Many redemptions in one call, for gateways that are trusted to name members.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::BytesMut;
use hyper::StatusCode;
use hyper::body::Incoming;
use hyper::header::HeaderName;
use hyper::http::request::Parts;

use super::body::{self, BATCH_LEN_MAX};
use super::json;
use super::parse::{self, BatchBody, BatchItem, Object};
use super::problem::{Kind, Problem};
use super::redeem::{Ask, Decided, decide, write_view};
use super::reply::{Label, Reply};
use super::route::Surface;
use super::worker::{Ready, Worker};
use crate::units::{ItemIndex, KeyHash};

/// Items of one batch.
const ITEMS_MAX: usize = 512;
const X_GATEWAY_SECRET: HeaderName = HeaderName::from_static("x-gateway-secret");

/// `POST /v1/redemptions:batch`
pub async fn batch(
    worker: &Worker,
    surface: Surface,
    parts: &Parts,
    body: &mut Incoming,
) -> Result<Reply, Problem> {
    require_trust(worker, surface, parts)?;
    let ready = worker.ready()?;
    body::require_type(&parts.headers, "application/json")?;
    let bytes = body::read(body, BATCH_LEN_MAX, worker.patience()).await?;
    let Object(BatchBody { items }) = parse::json(&bytes)?;
    if !(1..=ITEMS_MAX).contains(&items.len()) {
        return Err(Problem::malformed(format!("A batch has 1 to {ITEMS_MAX} items.")));
    }
    // All are in flight together: one sync makes a whole batch durable.
    let mut running: Vec<_> =
        items.iter().map(|Object(i)| Box::pin(one(worker, ready, i))).collect();
    let mut results: Vec<Option<BytesMut>> = running.iter().map(|_| None).collect();
    poll_fn(|cx| poll_all(&mut running, &mut results, cx)).await;
    let mut out = BytesMut::with_capacity(16 + 320 * results.len());
    json::raw(&mut out, r#"{"results":["#);
    for (at, result) in results.into_iter().flatten().enumerate() {
        if at > 0 {
            json::raw(&mut out, ",");
        }
        out.unsplit(result);
    }
    json::raw(&mut out, "]}");
    Ok(Reply::ok(out.freeze()))
}

/// Polls what has not ended; ready when all have.
fn poll_all<F: Future>(
    running: &mut [Pin<Box<F>>],
    results: &mut [Option<F::Output>],
    cx: &mut Context<'_>,
) -> Poll<()> {
    let mut is_pending = false;
    for (future, result) in running.iter_mut().zip(results) {
        if result.is_none() {
            match future.as_mut().poll(cx) {
                Poll::Ready(output) => *result = Some(output),
                Poll::Pending => is_pending = true,
            }
        }
    }
    if is_pending { Poll::Pending } else { Poll::Ready(()) }
}

/// A gateway is trusted by the listener it reaches, or by the secret it knows.
fn require_trust(worker: &Worker, surface: Surface, parts: &Parts) -> Result<(), Problem> {
    let secret = worker.shared.config.gateway_secret.as_ref();
    let offered = parts.headers.get(X_GATEWAY_SECRET);
    let is_known = secret
        .zip(offered)
        .is_some_and(|(secret, offered)| is_same(secret.reveal().as_bytes(), offered.as_bytes()));
    if surface == Surface::Gateway || is_known { Ok(()) } else { Err(Kind::NotTrusted.into()) }
}

/// Compares in a time that does not tell how much of `offered` is right.
fn is_same(secret: &[u8], offered: &[u8]) -> bool {
    if secret.is_empty() || secret.len() != offered.len() {
        return false;
    }
    let difference = secret.iter().zip(offered).fold(0, |sum, (a, b)| sum | (a ^ b));
    std::hint::black_box(difference) == 0
}

/// One item's result: the single call's body, with its status in it.
async fn one(worker: &Worker, ready: &Ready, item: &BatchItem<'_>) -> BytesMut {
    let result = decide_one(worker, ready, item).await;
    let mut out = BytesMut::with_capacity(320);
    match result {
        Ok((sale, decided)) => {
            worker.cells.decided(decided.label());
            write_view(&mut out, &sale, &decided.view);
            json::raw(&mut out, r#","status":"#);
            json::number(&mut out, u64::from(StatusCode::CREATED.as_u16()));
            if decided.replayed {
                json::raw(&mut out, r#","replayed":true"#);
            }
            json::raw(&mut out, "}");
        }
        Err(problem) => {
            worker.cells.decided(Label::Problem(problem.kind));
            problem.write_in_batch(&mut out);
        }
    }
    out
}

async fn decide_one(
    worker: &Worker,
    ready: &Ready,
    item: &BatchItem<'_>,
) -> Result<(std::sync::Arc<crate::shard::catalog::SaleEntry>, Decided), Problem> {
    let BatchItem { member, key, sale, sku, quantity, hold } = item;
    if !parse::is_key(key.0.as_bytes()) {
        return Err(Kind::KeyMalformed.into());
    }
    let sale = worker.sale(ready, &sale.0)?;
    let item: Option<ItemIndex> = sale.item(&sku.0);
    let key = KeyHash::of(key.0.as_bytes());
    let ask = Ask { member: member.0, key, item, quantity: *quantity, hold: *hold };
    let decided = decide(ready, &sale, &ask).await?;
    Ok((sale, decided))
}

#[cfg(test)]
mod tests {
    use super::is_same;

    #[test]
    fn a_secret_is_matched_whole() {
        assert!(is_same(b"0123456789abcdef", b"0123456789abcdef"));
        for wrong in [&b""[..], b"0", b"0123456789abcdeF", b"0123456789abcdef0"] {
            assert!(!is_same(b"0123456789abcdef", wrong));
        }
        assert!(!is_same(b"", b""));
    }
}
