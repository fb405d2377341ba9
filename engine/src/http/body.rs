//! Reading request bodies: bounded in bytes and in time.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use hyper::HeaderMap;
use hyper::body::{Body as _, Incoming};
use hyper::header::CONTENT_TYPE;

use super::problem::{Kind, Problem};

/// Bytes of a request's body; batches may be larger, imports alone are unbounded.
pub const BODY_LEN_MAX: usize = 64 * 1024;
pub const BATCH_LEN_MAX: usize = 256 * 1024;
/// Of a body that is too large, this much is still read, so that a client that is busy writing
/// gets to read the 413 instead of a reset connection.
const DISCARD_LEN_MAX: usize = 4 * 1024 * 1024;

/// Refuses a body of another type than `essence`, parameters aside.
pub fn require_type(headers: &HeaderMap, essence: &str) -> Result<(), Problem> {
    let mut values = headers.get_all(CONTENT_TYPE).iter();
    let is_fit = values.next().is_some_and(|value| {
        let value = value.as_bytes();
        let end = value.iter().position(|&b| b == b';').unwrap_or(value.len());
        value[..end].trim_ascii().eq_ignore_ascii_case(essence.as_bytes())
    });
    if is_fit && values.next().is_none() { Ok(()) } else { Err(Kind::MediaTypeUnsupported.into()) }
}

/// Reads a whole body of at most `len_max` bytes.
///
/// Errors: `body-too-large`; `request-timeout` when it does not arrive within `patience`;
/// `malformed` when its framing breaks.
pub async fn read(
    body: &mut Incoming,
    len_max: usize,
    patience: Duration,
) -> Result<Bytes, Problem> {
    let declared = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
    if declared > DISCARD_LEN_MAX.max(len_max) {
        return Err(Kind::BodyTooLarge.into());
    }
    // A small body comes in with its head nearly always: no timer is made for it then.
    let mut sofar = Sofar { first: Bytes::new(), rest: BytesMut::new(), len: 0, len_max };
    let ended = poll_fn(|cx| {
        Poll::Ready(match sofar.poll(body, cx) {
            Poll::Ready(result) => result.map(|()| true),
            Poll::Pending => Ok(false),
        })
    })
    .await?;
    if !ended {
        let rest = poll_fn(|cx| sofar.poll(body, cx));
        match tokio::time::timeout(patience, rest).await {
            Ok(read) => read?,
            Err(_) if declared.max(sofar.len) > len_max => return Err(Kind::BodyTooLarge.into()),
            Err(_) => return Err(Kind::RequestTimeout.into()),
        }
    }
    if sofar.len > len_max {
        return Err(Kind::BodyTooLarge.into());
    }
    Ok(if sofar.rest.is_empty() { sofar.first } else { sofar.rest.freeze() })
}

/// What has been read: the first piece as it came, or all pieces joined.
struct Sofar {
    first: Bytes,
    rest: BytesMut,
    len: usize,
    len_max: usize,
}

impl Sofar {
    fn poll(
        &mut self,
        body: &mut Incoming,
        cx: &mut std::task::Context<'_>,
    ) -> Poll<Result<(), Problem>> {
        loop {
            match std::task::ready!(Pin::new(&mut *body).poll_frame(cx)) {
                None => return Poll::Ready(Ok(())),
                Some(Err(_)) => {
                    return Poll::Ready(Err(Problem::malformed("The body's framing is broken.")));
                }
                Some(Ok(frame)) => {
                    let Ok(piece) = frame.into_data() else { continue };
                    self.len += piece.len();
                    if self.len > DISCARD_LEN_MAX.max(self.len_max) {
                        return Poll::Ready(Err(Kind::BodyTooLarge.into()));
                    }
                    self.keep(piece);
                }
            }
        }
    }

    fn keep(&mut self, piece: Bytes) {
        if self.len > self.len_max {
            self.first = Bytes::new();
            self.rest = BytesMut::new();
        } else if self.first.is_empty() && self.rest.is_empty() {
            self.first = piece;
        } else {
            if self.rest.is_empty() {
                self.rest.extend_from_slice(&self.first);
            }
            self.rest.extend_from_slice(&piece);
        }
    }
}
