//! Sales as members see them; and what all answers about sales have: the server's time for
//! countdowns, and a tag that makes it cheap to ask again.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use hyper::header::{CACHE_CONTROL, ETAG, HeaderMap, HeaderValue, IF_NONE_MATCH};
use hyper::http::request::Parts;
use hyper::{Response, StatusCode};

use super::json;
use super::problem::Problem;
use super::reply::{Body, Label, Reply};
use super::worker::Worker;
use crate::kernel::catalog::SalePhase;
use crate::shard::catalog::SaleEntry;
use crate::shard::core::Core;
use crate::units::NodeTime;

const ONE_SECOND: HeaderValue = HeaderValue::from_static("max-age=1");

/// `GET /v1/sales`
pub fn list(worker: &Worker, parts: &Parts) -> Result<Reply, Problem> {
    let ready = worker.ready()?;
    let mut rest = BytesMut::with_capacity(1024);
    json::raw(&mut rest, r#""sales":["#);
    for (at, sale) in ready.core.catalog.sales().iter().enumerate() {
        if at > 0 {
            json::raw(&mut rest, ",");
        }
        json::raw(&mut rest, "{");
        write_head(&mut rest, sale);
        json::raw(&mut rest, "}");
    }
    json::raw(&mut rest, "]");
    Ok(timed(&parts.headers, ready.core.now(), &rest))
}

/// `GET /v1/sales/{id}`
pub fn one(worker: &Worker, id: &str, parts: &Parts) -> Result<Reply, Problem> {
    let ready = worker.ready()?;
    let sale = worker.sale(ready, id)?;
    let mut rest = BytesMut::with_capacity(1024);
    write_sale(&mut rest, &ready.core, &sale);
    Ok(timed(&parts.headers, ready.core.now(), &rest))
}

/// Writes a sale's fields and its items, without braces.
pub fn write_sale(out: &mut BytesMut, core: &Core, sale: &Arc<SaleEntry>) {
    write_head(out, sale);
    json::raw(out, r#","items":["#);
    for (at, (item, definition)) in sale.items().zip(&sale.definition().items).enumerate() {
        json::raw(out, if at == 0 { r#"{"sku":""# } else { r#",{"sku":""# });
        json::raw(out, &definition.sku);
        json::raw(out, r#"","name":"#);
        json::string(out, &definition.name);
        json::raw(out, r#","points":"#);
        json::number(out, definition.points.get());
        json::raw(out, r#","limit_per_member":"#);
        json::number(out, u64::from(definition.limit_per_member.get()));
        json::raw(out, r#","free":"#);
        json::number(out, core.stock.line(item).free());
        json::raw(out, r#","sold_out":"#);
        json::raw(out, if core.stock.is_sold_out_finally(item) { "true" } else { "false" });
        json::raw(out, "}");
    }
    json::raw(out, "]");
}

/// Writes what a sale is, without its items.
pub fn write_head(out: &mut BytesMut, sale: &SaleEntry) {
    json::raw(out, r#""id":""#);
    json::raw(out, &sale.definition().id);
    json::raw(out, r#"","name":"#);
    json::string(out, &sale.definition().name);
    json::raw(out, r#","state":""#);
    json::raw(out, state(sale));
    json::raw(out, r#"","opens_at":"#);
    json::time(out, sale.definition().opens_at);
    json::raw(out, r#","closes_at":"#);
    json::time(out, sale.definition().closes_at);
    json::raw(out, r#","hold_ttl_ms":"#);
    json::number(out, sale.definition().hold_ttl_ms);
}

/// Where a sale stands, in one word.
pub fn state(sale: &SaleEntry) -> &'static str {
    match sale.phase() {
        SalePhase::Scheduled => "scheduled",
        SalePhase::Open if sale.is_paused() => "paused",
        SalePhase::Open => "open",
        SalePhase::Ended | SalePhase::KeysDropped => "ended",
    }
}

/// Answers with the server's time in front; the `ETag` stands for everything else.
pub fn timed(headers: &HeaderMap, now: NodeTime, rest: &[u8]) -> Reply {
    let tag = format!("W/\"{:016x}\"", xxhash_rust::xxh3::xxh3_64(rest));
    let reply = if is_known(headers, &tag) {
        let mut response = Response::new(Body::Whole(None));
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        Reply { label: Label::NotModified, response }
    } else {
        Reply::ok(with_time(now, rest))
    };
    let tag = HeaderValue::from_maybe_shared(Bytes::from(tag)).expect("a tag is ASCII");
    reply.header(ETAG, tag).header(CACHE_CONTROL, ONE_SECOND)
}

/// Fields as an object, behind the server's time.
pub fn with_time(now: NodeTime, rest: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(rest.len() + 48);
    json::raw(&mut out, r#"{"now":"#);
    json::time(&mut out, now);
    json::raw(&mut out, ",");
    out.extend_from_slice(rest);
    json::raw(&mut out, "}");
    out.freeze()
}

/// Whether `If-None-Match` names this tag; weakly, as RFC 9110 has it for this header.
fn is_known(headers: &HeaderMap, tag: &str) -> bool {
    let opaque = tag.trim_start_matches("W/");
    headers.get_all(IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok()).any(|list| {
        list.split(',')
            .map(str::trim)
            .any(|one| one == "*" || one.trim_start_matches("W/") == opaque)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_is_known_in_a_list_weakly_or_by_a_star() {
        let tag = "W/\"00ff\"";
        for (offered, known) in [
            ("W/\"00ff\"", true),
            ("\"00ff\"", true),
            ("\"1\", W/\"00ff\"", true),
            ("*", true),
            ("\"00fe\"", false),
            ("", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(IF_NONE_MATCH, offered.parse().unwrap());
            assert_eq!(is_known(&headers, tag), known, "{offered}");
        }
        assert!(!is_known(&HeaderMap::new(), tag));
    }
}
