//! The client's side of HTTP/2: workloads write HTTP/1.1, and here it becomes what HTTP/2 sends.
//!
//! What is said of a connection (`Connection`, `Transfer-Encoding`, …) has no place in HTTP/2 and
//! is left out; `Host` becomes the authority. Source: RFC 9113, 8.2.2 and 8.3.1.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::RecvStream;
use h2::client::{Builder, Connection, ResponseFuture, SendRequest};
use http::uri::{Authority, PathAndQuery, Scheme, Uri};
use http::{HeaderName, HeaderValue, Method, Request, Response};
use thiserror::Error;

use crate::http::Answer;
use crate::http::answer::KEEP;
use crate::http::stream::Io;

/// Units: bytes that a server may send ahead: on one stream, and on all of a connection.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;
/// Units: bytes of a frame's head. The server's first frame must be its settings.
const FIRST_FRAME: u64 = 9;

/// A request that HTTP/2 has no form for.
#[derive(Debug, Error)]
pub enum BadRequest {
    #[error("not a request that HTTP/2 can carry: {0}")]
    Head(#[from] httparse::Error),
    #[error("its head is cut off")]
    Partial,
    #[error("not a request that HTTP/2 can carry: {0}")]
    Part(#[from] http::Error),
}

/// Reads a request as it is written for HTTP/1.1; its body behind it.
pub fn translate(bytes: &[u8], scheme: &Scheme) -> Result<(Request<()>, Bytes), BadRequest> {
    let mut fields = [httparse::EMPTY_HEADER; 64];
    let mut head = httparse::Request::new(&mut fields);
    let httparse::Status::Complete(length) = head.parse(bytes)? else {
        return Err(BadRequest::Partial);
    };
    let (method, path) = (head.method.unwrap_or("GET"), head.path.unwrap_or("/"));
    let mut request = Request::new(());
    *request.method_mut() = Method::from_bytes(method.as_bytes()).map_err(http::Error::from)?;
    let mut uri = http::uri::Parts::default();
    uri.scheme = Some(scheme.clone());
    uri.path_and_query = Some(PathAndQuery::try_from(path).map_err(http::Error::from)?);
    for field in head.headers {
        match () {
            () if is(field.name, "host") => {
                let host = Authority::try_from(field.value).map_err(http::Error::from)?;
                uri.authority = Some(host);
            }
            () if is_of_connection(field.name) => {}
            () => {
                let name = HeaderName::from_bytes(field.name.as_bytes());
                let value = HeaderValue::from_bytes(field.value).map_err(http::Error::from)?;
                request.headers_mut().append(name.map_err(http::Error::from)?, value);
            }
        }
    }
    *request.uri_mut() = Uri::from_parts(uri).map_err(http::Error::from)?;
    Ok((request, Bytes::copy_from_slice(&bytes[length..])))
}

fn is(name: &str, other: &str) -> bool {
    name.eq_ignore_ascii_case(other)
}

fn is_of_connection(name: &str) -> bool {
    ["connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade", "te"]
        .iter()
        .any(|n| is(name, n))
}

/// A connection whose server has shown that it speaks HTTP/2.
pub type Opened = (SendRequest<Bytes>, Connection<Io, Bytes>);

/// Greets the server, and waits for its greeting.
/// Errors: `Unsupported`, where what comes is not HTTP/2.
pub async fn open(io: Io, streams: usize) -> io::Result<Opened> {
    let mut builder = Builder::new();
    builder
        .enable_push(false)
        .initial_max_send_streams(streams)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW);
    let meter = io.meter.clone();
    let (send, mut connection) = builder.handshake(io).await.map_err(refused)?;
    poll_fn(|cx| match Pin::new(&mut connection).poll(cx) {
        Poll::Ready(Err(e)) => Poll::Ready(Err(refused(e))),
        Poll::Ready(Ok(())) => Poll::Ready(Err(unsupported("it ended at once"))),
        Poll::Pending if meter.received.get() >= FIRST_FRAME => Poll::Ready(Ok(())),
        Poll::Pending => Poll::Pending,
    })
    .await?;
    Ok((send, connection))
}

fn refused(error: h2::Error) -> io::Error {
    if error.is_io() {
        return error.into_io().unwrap_or_else(|| io::Error::other("the connection broke"));
    }
    unsupported(&error.to_string())
}

/// The server does not speak HTTP/2.
pub fn unsupported(detail: &str) -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, format!("the server speaks no HTTP/2: {detail}"))
}

/// An answer on its way.
#[derive(Debug)]
pub struct Incoming {
    part: Part,
    body: Vec<u8>,
    body_bytes: u64,
}

#[derive(Debug)]
enum Part {
    Head(ResponseFuture),
    Body(Response<()>, RecvStream),
}

impl Incoming {
    pub const fn new(response: ResponseFuture) -> Self {
        Self { part: Part::Head(response), body: Vec::new(), body_bytes: 0 }
    }

    /// Whether its head is here.
    pub const fn is_mid_answer(&self) -> bool {
        matches!(self.part, Part::Body(..))
    }

    /// Ready: all of it is here, or it will never be.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), h2::Error>> {
        loop {
            match &mut self.part {
                Part::Head(response) => {
                    let (head, body) = ready!(Pin::new(response).poll(cx))?.into_parts();
                    self.part = Part::Body(Response::from_parts(head, ()), body);
                }
                Part::Body(_, stream) => match ready!(stream.poll_data(cx)) {
                    Some(data) => {
                        let data = data?;
                        stream.flow_control().release_capacity(data.len())?;
                        let room = KEEP - self.body.len();
                        self.body.extend_from_slice(&data[..data.len().min(room)]);
                        self.body_bytes += data.len() as u64;
                    }
                    None => return stream.poll_trailers(cx).map_ok(|_| ()),
                },
            }
        }
    }

    /// The answer, once it is ready.
    pub fn answer(&self) -> Option<Answer<'_>> {
        let Part::Body(head, _) = &self.part else { return None };
        let text = |name| head.headers().get(name).and_then(|v| v.to_str().ok());
        Some(Answer {
            status: head.status().as_u16(),
            body: &self.body,
            body_bytes: self.body_bytes,
            close: false,
            retry_after: text("retry-after").and_then(|t| t.trim().parse().ok()),
            replayed: text("idempotent-replayed").is_some_and(|t| is(t, "true")),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_keeps_what_it_says_and_loses_what_is_of_a_connection() {
        let bytes = b"POST /a/b?c=d HTTP/1.1\r\nHost: h:81\r\nX-Member-Id: 7\r\n\
            Connection: keep-alive\r\nTE: trailers\r\nX-Twice: 1\r\nX-Twice: 2\r\n\
            Content-Length: 4\r\n\r\nbody";
        let (request, body) = translate(bytes, &Scheme::HTTPS).unwrap();
        assert_eq!(request.method(), Method::POST);
        assert_eq!(request.uri(), "https://h:81/a/b?c=d");
        assert_eq!(&*body, b"body");
        let fields: Vec<_> =
            request.headers().iter().map(|(n, v)| (n.as_str(), v.to_str().unwrap())).collect();
        assert_eq!(
            fields,
            [("x-member-id", "7"), ("x-twice", "1"), ("x-twice", "2"), ("content-length", "4")]
        );
    }

    #[test]
    fn what_http_2_cannot_carry_is_refused() {
        for bad in ["GET / HTTP/1.1\r\nHost: a b\r\n\r\n", "GET / HTTP/1.1\r\nHost: a\r\n", "\x01"]
        {
            assert!(translate(bad.as_bytes(), &Scheme::HTTP).is_err(), "{bad:?}");
        }
    }
}
