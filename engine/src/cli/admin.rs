//! A small client for a node's admin listener: one request, one connection.

use std::time::Duration;

use anyhow::{Context as _, bail};
use http_body_util::{BodyExt as _, combinators::BoxBody};
use hyper::body::{Bytes, Incoming};
use hyper::{Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::AdminUrl;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// What came back.
pub struct Answer {
    pub status: StatusCode,
    pub body: serde_json::Value,
}

impl Answer {
    /// The problem's sentence, for people.
    pub fn detail(&self) -> String {
        let text = |key: &str| self.body.get(key).and_then(|v| v.as_str()).map(String::from);
        text("detail").or_else(|| text("title")).unwrap_or_else(|| self.body.to_string())
    }
}

/// Sends one request to the node at `base`.
///
/// Errors: nothing listens there, or the connection broke; the message says what to do.
pub async fn send(
    node: &AdminUrl,
    method: &str,
    path: &str,
    content_type: Option<&str>,
    body: BoxBody<Bytes, std::io::Error>,
) -> anyhow::Result<Answer> {
    let base = &node.admin;
    let uri: Uri = base.parse().with_context(|| format!("--admin {base} is not a URL"))?;
    if uri.scheme_str() != Some("http") {
        bail!("--admin {base}: the admin listener speaks plain http://");
    }
    let authority = uri.authority().with_context(|| format!("--admin {base} names no host"))?;
    let address = format!("{}:{}", authority.host(), authority.port_u16().unwrap_or(80));
    let connect = TcpStream::connect(&address);
    let stream = tokio::time::timeout(CONNECT_TIMEOUT, connect)
        .await
        .map_err(|_| anyhow::anyhow!("no answer within {} s", CONNECT_TIMEOUT.as_secs()))
        .and_then(|connected| connected.map_err(Into::into))
        .with_context(|| format!("cannot reach a node at {base}: is `onrush serve` running?"))?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let mut request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", authority.as_str())
        .header("x-operator", &node.operator);
    if let Some(content_type) = content_type {
        request = request.header("content-type", content_type);
    }
    let answer = sender
        .send_request(request.body(body)?)
        .await
        .with_context(|| format!("the node at {base} broke off"))?;
    read(answer).await
}

async fn read(answer: hyper::Response<Incoming>) -> anyhow::Result<Answer> {
    let status = answer.status();
    let bytes = answer.into_body().collect().await?.to_bytes();
    let body = serde_json::from_slice(&bytes)
        .with_context(|| format!("the node answered {status} with a body that is not JSON"))?;
    Ok(Answer { status, body })
}

/// Runs a future to its end on a runtime of its own.
pub fn block_on<T>(future: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(future)
}
