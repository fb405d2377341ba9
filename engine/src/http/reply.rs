//! Answers on their way out: a response, and the `outcome` that the metrics count it by.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use hyper::header::{
    ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER,
    WWW_AUTHENTICATE,
};
use hyper::{Response, StatusCode};
use tokio::sync::mpsc;

use super::problem::{Help, Kind, Problem};

pub const JSON: HeaderValue = HeaderValue::from_static("application/json");
pub const PROBLEM_JSON: HeaderValue = HeaderValue::from_static("application/problem+json");
pub const IDEMPOTENT_REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");
const TRUE: HeaderValue = HeaderValue::from_static("true");
const NO_STORE: HeaderValue = HeaderValue::from_static("no-store");

/// A response's body: known at once, or coming piece by piece.
pub enum Body {
    Whole(Option<Bytes>),
    /// Ends when the sender is dropped.
    Stream(mpsc::Receiver<Bytes>),
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        Self::Whole((!bytes.is_empty()).then_some(bytes))
    }
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        match self.get_mut() {
            Self::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Stream(pieces) => {
                pieces.poll_recv(cx).map(|piece| piece.map(|piece| Ok(Frame::data(piece))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Whole(None))
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
            Self::Stream(_) => SizeHint::default(),
        }
    }
}

/// What the metrics call an answer: one of a closed set, so that cells are arrays.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Label {
    Ok,
    Confirmed,
    Held,
    Cancelled,
    Replayed,
    NotModified,
    /// Another node's answer, which counts it by what it says.
    Forwarded,
    Redirected,
    Problem(Kind),
}

impl Label {
    const SUCCESSES: [&'static str; 8] = [
        "ok",
        "confirmed",
        "held",
        "cancelled",
        "replayed",
        "not-modified",
        "forwarded",
        "redirected",
    ];
    pub const COUNT: usize = Self::SUCCESSES.len() + Kind::COUNT;

    pub const fn index(self) -> usize {
        match self {
            Self::Ok => 0,
            Self::Confirmed => 1,
            Self::Held => 2,
            Self::Cancelled => 3,
            Self::Replayed => 4,
            Self::NotModified => 5,
            Self::Forwarded => 6,
            Self::Redirected => 7,
            Self::Problem(kind) => Self::SUCCESSES.len() + kind as usize,
        }
    }

    /// The label with this index.
    pub fn name_of(index: usize) -> &'static str {
        match index.checked_sub(Self::SUCCESSES.len()) {
            None => Self::SUCCESSES[index],
            Some(kind) => Kind::ALL[kind].code(),
        }
    }
}

/// An answer and its label.
pub struct Reply {
    pub label: Label,
    pub response: Response<Body>,
}

impl Reply {
    pub fn json(status: StatusCode, label: Label, body: Bytes) -> Self {
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = status;
        response.headers_mut().insert(CONTENT_TYPE, JSON);
        Self { label, response }
    }

    pub fn ok(body: impl Into<Bytes>) -> Self {
        Self::json(StatusCode::OK, Label::Ok, body.into())
    }

    pub fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.response.headers_mut().insert(name, value);
        self
    }

    /// Marks the answer as an earlier request's.
    pub fn replayed(self) -> Self {
        Self { label: Label::Replayed, ..self.header(IDEMPOTENT_REPLAYED, TRUE) }
    }
}

impl From<Problem> for Reply {
    fn from(problem: Problem) -> Self {
        let mut response = Response::new(Body::from(problem.body()));
        *response.status_mut() = problem.status();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, PROBLEM_JSON);
        if let Some(seconds) = problem.retry_after {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        match problem.kind {
            Kind::IdentityMissing => {
                headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Gateway"));
            }
            // Its body was not read to the end, so the connection cannot go on.
            Kind::RequestTimeout => {
                headers.insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Kind::SaleNotFound | Kind::RedemptionNotFound | Kind::MemberNotFound => {
                headers.insert(CACHE_CONTROL, NO_STORE);
            }
            _ => {}
        }
        if let Help::Allow(methods) = problem.help {
            headers.insert(ALLOW, HeaderValue::from_static(methods));
        }
        Self { label: Label::Problem(problem.kind), response }
    }
}
