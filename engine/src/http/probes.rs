//! What machines ask about the node: alive, ready, figures, version, description.

use bytes::{Bytes, BytesMut};
use hyper::StatusCode;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue, RETRY_AFTER};

use super::json;
use super::openapi;
use super::problem::{Kind, Problem};
use super::reply::{Label, Reply};
use super::worker::Worker;
use crate::shard::core::Stage;

/// `GET /livez`: the process answers.
pub fn livez() -> Reply {
    Reply::ok(Bytes::from_static(br#"{"status":"alive"}"#))
}

/// `GET /readyz`: 200 when requests are taken; else 503 with the stage, and how far it is.
pub fn readyz(worker: &Worker) -> Reply {
    let readiness = &worker.shared.view.readiness;
    let stage = readiness.stage();
    let name = match stage {
        Stage::Starting => "starting",
        Stage::LoadingSnapshot => "loading-snapshot",
        Stage::ReplayingJournal => "replaying-journal",
        Stage::Ready => "ready",
        Stage::Draining => "draining",
    };
    let mut out = BytesMut::with_capacity(96);
    json::raw(&mut out, r#"{"status":""#);
    json::raw(&mut out, name);
    json::raw(&mut out, "\"");
    let (done, of) = readiness.progress();
    if matches!(stage, Stage::LoadingSnapshot | Stage::ReplayingJournal) {
        json::raw(&mut out, r#","done":"#);
        json::number(&mut out, done);
        json::raw(&mut out, r#","of":"#);
        json::number(&mut out, of);
    }
    json::raw(&mut out, "}");
    if stage == Stage::Ready {
        return Reply::ok(out.freeze());
    }
    let kind = if stage == Stage::Draining { Kind::Draining } else { Kind::Starting };
    let wait = Problem::from(kind).retry_after.unwrap_or(1);
    Reply::json(StatusCode::SERVICE_UNAVAILABLE, Label::Problem(kind), out.freeze())
        .header(RETRY_AFTER, HeaderValue::from(wait))
}

/// `GET /metrics`, in the `OpenMetrics` text format.
pub fn metrics(worker: &Worker) -> Reply {
    const OPEN_METRICS: HeaderValue =
        HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
    Reply::ok(worker.shared.scrape.render()).header(CONTENT_TYPE, OPEN_METRICS)
}

/// `GET /version`
pub fn version() -> Reply {
    const VERSION: &str =
        concat!(r#"{"name":"onrush","version":""#, env!("CARGO_PKG_VERSION"), r#""}"#);
    Reply::ok(Bytes::from_static(VERSION.as_bytes()))
}

/// `GET /openapi.json`
pub fn openapi() -> Reply {
    Reply::ok(Bytes::from_static(openapi::json().as_bytes()))
        .header(CACHE_CONTROL, HeaderValue::from_static("max-age=3600"))
}
