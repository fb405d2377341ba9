//! Many redemptions in one call, for gateways that are trusted to name members.
//!
//! Items of other nodes' members are sent to those nodes, a part to each, all at the same time;
//! the results come back in the order of the items.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderName};
use hyper::http::request::Parts;
use hyper::{HeaderMap, Method, StatusCode};

use super::body::{self, BATCH_LEN_MAX};
use super::everywhere::join;
use super::json;
use super::misrouted::elements;
use super::parse::{self, BatchBody, BatchItem, Object};
use super::peers::{Ask as PeerAsk, Peers, Side};
use super::problem::{Kind, Problem};
use super::redeem::{Ask, Decided, decide, write_view};
use super::reply::{JSON, Label, Reply};
use super::route::Surface;
use super::worker::{Ready, Worker};
use crate::cluster::map::NodeIndex;
use crate::cluster::route::split;
use crate::units::{ItemIndex, KeyHash, Slot};

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
    let is_from_node = require_trust(worker, surface, parts)?;
    let ready = worker.ready()?;
    body::require_type(&parts.headers, "application/json")?;
    let bytes = body::read(body, BATCH_LEN_MAX, worker.patience()).await?;
    let Object(BatchBody { items }) = parse::json(&bytes)?;
    if !(1..=ITEMS_MAX).contains(&items.len()) {
        return Err(Problem::malformed(format!("A batch has 1 to {ITEMS_MAX} items.")));
    }
    let items: Vec<&BatchItem<'_>> = items.iter().map(|Object(item)| item).collect();
    let results = match &worker.peers {
        None => here(worker, ready, &items).await,
        Some(peers) => over_nodes(worker, ready, peers, &items, is_from_node).await?,
    };
    let mut out = BytesMut::with_capacity(16 + 320 * results.len());
    json::raw(&mut out, r#"{"results":["#);
    for (at, result) in results.into_iter().enumerate() {
        if at > 0 {
            json::raw(&mut out, ",");
        }
        out.unsplit(result);
    }
    json::raw(&mut out, "]}");
    Ok(Reply::ok(out.freeze()))
}

/// All are in flight together: one sync makes a whole batch durable.
async fn here(worker: &Worker, ready: &Ready, items: &[&BatchItem<'_>]) -> Vec<BytesMut> {
    join(items.iter().map(|item| one(worker, ready, item))).await
}

/// Each node's items on that node.
async fn over_nodes(
    worker: &Worker,
    ready: &Ready,
    peers: &Peers,
    items: &[&BatchItem<'_>],
    is_from_node: bool,
) -> Result<Vec<BytesMut>, Problem> {
    let me = peers.map().me();
    let parts = split(peers.map(), items.iter().map(|item| Slot::of(item.member.0)));
    if let [(node, _)] = &parts[..]
        && *node == me
    {
        return Ok(here(worker, ready, items).await);
    }
    if is_from_node {
        return Err(Kind::WrongNode.into());
    }
    let answers = join(parts.iter().map(async |(node, places)| {
        let items: Vec<_> = places.iter().map(|&at| items[at]).collect();
        if *node == me {
            here(worker, ready, &items).await
        } else {
            there(peers, *node, &items).await
        }
    }))
    .await;
    let mut results: Vec<BytesMut> = items.iter().map(|_| BytesMut::new()).collect();
    for ((_, places), answer) in parts.iter().zip(answers) {
        for (&at, result) in places.iter().zip(answer) {
            results[at] = result;
        }
    }
    Ok(results)
}

/// Another node's results for its items; where it has none, each is its problem.
async fn there(peers: &Peers, node: NodeIndex, items: &[&BatchItem<'_>]) -> Vec<BytesMut> {
    let headers = HeaderMap::from_iter([(CONTENT_TYPE, JSON)]);
    let (method, path) = (Method::POST, "/v1/redemptions:batch".to_owned());
    let (body, patience) = (write_items(items), peers.patience());
    let ask = PeerAsk { side: Side::Public, method, path, headers, body, patience };
    let answer = peers.send(node, &ask).await;
    if let Ok(answer) = &answer
        && answer.status == StatusCode::OK
        && let Some(results) = elements(&answer.body, "results")
        && results.len() == items.len()
    {
        return results.into_iter().map(BytesMut::from).collect();
    }
    let mut text = BytesMut::new();
    match answer {
        Ok(answer) if answer.status.is_client_error() || answer.status.is_server_error() => {
            text.extend_from_slice(&answer.body);
        }
        Ok(_) => Problem::from(Kind::Internal).write_in_batch(&mut text),
        Err(problem) => problem.write_in_batch(&mut text),
    }
    vec![text; items.len()]
}

/// The body of a batch call.
fn write_items(items: &[&BatchItem<'_>]) -> Bytes {
    let mut out = BytesMut::with_capacity(16 + 160 * items.len());
    json::raw(&mut out, r#"{"items":["#);
    for (at, item) in items.iter().enumerate() {
        let BatchItem { member, key, sale, sku, quantity, hold } = item;
        json::raw(&mut out, if at > 0 { r#",{"member":""# } else { r#"{"member":""# });
        json::number(&mut out, member.0.get());
        json::raw(&mut out, "\"");
        for (name, text) in [(r#","key":"#, key), (r#","sale":"#, sale), (r#","sku":"#, sku)] {
            json::raw(&mut out, name);
            json::string(&mut out, &text.0);
        }
        json::raw(&mut out, r#","quantity":"#);
        json::number(&mut out, *quantity);
        json::raw(&mut out, if *hold { r#","hold":true}"# } else { "}" });
    }
    json::raw(&mut out, "]}");
    out.freeze()
}

/// Polls what has not ended; ready when all have.
pub fn poll_all<F: Future>(
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

/// A gateway is trusted by the listener it reaches, or by the secret it knows; a node, too, by
/// its own. Gives whether it is a node.
fn require_trust(worker: &Worker, surface: Surface, parts: &Parts) -> Result<bool, Problem> {
    if let Some(peers) = &worker.peers
        && peers.is_from_node(&parts.headers)?
    {
        return Ok(true);
    }
    let secret = worker.shared.config.gateway_secret.as_ref();
    let offered = parts.headers.get(X_GATEWAY_SECRET);
    let is_known = secret
        .zip(offered)
        .is_some_and(|(secret, offered)| is_same(secret.reveal().as_bytes(), offered.as_bytes()));
    if surface == Surface::Gateway || is_known { Ok(false) } else { Err(Kind::NotTrusted.into()) }
}

/// Compares in a time that does not tell how much of `offered` is right.
pub fn is_same(secret: &[u8], offered: &[u8]) -> bool {
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
    use super::*;

    #[test]
    fn a_part_says_what_the_whole_said() {
        let text = r#"{"items":[{"member":7,"key":"k","sale":"s","sku":"a\"b","quantity":1},
            {"member":"18446744073709551615","key":"l","sale":"s","sku":"c","quantity":2,
             "hold":true}]}"#;
        let Object(BatchBody { items }) = parse::json(text.as_bytes()).unwrap();
        let items: Vec<_> = items.iter().map(|Object(item)| item).collect();
        let written = write_items(&items);
        let Object(BatchBody { items: again }) = parse::json(&written).unwrap();
        let again: Vec<_> = again.iter().map(|Object(item)| item).collect();
        assert_eq!(format!("{items:?}"), format!("{again:?}"));
    }

    #[test]
    fn a_secret_is_matched_whole() {
        assert!(is_same(b"0123456789abcdef", b"0123456789abcdef"));
        for wrong in [&b""[..], b"0", b"0123456789abcdeF", b"0123456789abcdef0"] {
            assert!(!is_same(b"0123456789abcdef", wrong));
        }
        assert!(!is_same(b"", b""));
    }
}
