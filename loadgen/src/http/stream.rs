//! Opening a connection.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::http::slow::Slow;
use crate::http::{Target, tls, two};

/// A connection, with or without TLS.
#[derive(Debug)]
pub enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Stream {
    /// A peer that closes without TLS's own goodbye has closed all the same.
    pub fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf).map(|read| match read {
                Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(()),
                read => read,
            }),
        }
    }

    pub fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    /// What TLS has sealed and not yet sent.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Plain(_) => Poll::Ready(Ok(())),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }
}

/// What a connection carried since it was last looked at. Units: bytes.
#[derive(Debug, Default)]
pub struct Meter {
    pub received: Cell<u64>,
    pub sent: Cell<u64>,
}

/// A connection as HTTP/2 takes it: metered, and read slowly where it is a slow reader's.
#[derive(Debug)]
pub struct Io {
    pub stream: Stream,
    pub slow: Option<Slow>,
    pub meter: Rc<Meter>,
}

impl AsyncRead for Io {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Self { stream, slow, meter } = self.get_mut();
        let before = buf.filled().len();
        if let Some(slow) = slow {
            let room = ready!(slow.poll_room(cx)).min(buf.remaining());
            let mut part = ReadBuf::new(buf.initialize_unfilled_to(room));
            ready!(stream.poll_read(cx, &mut part))?;
            let count = part.filled().len();
            slow.took(count);
            buf.advance(count);
        } else {
            ready!(stream.poll_read(cx, buf))?;
        }
        meter.received.set(meter.received.get() + (buf.filled().len() - before) as u64);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Io {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let Self { stream, meter, .. } = self.get_mut();
        let count = ready!(stream.poll_write(cx, bytes))?;
        meter.sent.set(meter.sent.get() + count as u64);
        Poll::Ready(Ok(count))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().stream.poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().stream {
            Stream::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

/// Units: bytes; as small as the kernel makes it.
const SMALL_BUFFER: u32 = 2048;

/// A connection that requests can go over.
#[derive(Debug)]
pub enum Connected {
    One(Stream),
    Two(Box<two::Opened>, Rc<Meter>),
}

/// How to connect.
#[derive(Clone, Copy, Debug)]
pub struct Wish {
    /// HTTP/2, with at most so many streams at a time.
    pub http2: Option<usize>,
    pub timeout: Duration,
    /// Bytes per second of a slow reader: its receive buffer is small, so that the server feels it.
    pub slow: Option<u64>,
}

/// Connects without Nagle's delay; gives up after the timeout. HTTP/2 is agreed on with TLS, and
/// known beforehand without it.
pub async fn connect(target: &Target, wish: Wish) -> io::Result<Connected> {
    tokio::time::timeout(wish.timeout, open(target, wish))
        .await
        .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "no answer to the connect"))?
}

async fn open(target: &Target, wish: Wish) -> io::Result<Connected> {
    let socket = if target.address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if wish.slow.is_some() {
        socket.set_recv_buffer_size(SMALL_BUFFER)?;
    }
    let stream = socket.connect(target.address).await?;
    stream.set_nodelay(true)?;
    let stream = match &target.tls {
        None => Stream::Plain(stream),
        Some(host) => {
            let connector = TlsConnector::from(tls::config(wish.http2.is_some())?);
            let stream = connector.connect(tls::server_name(host)?, stream).await?;
            if wish.http2.is_some() && stream.get_ref().1.alpn_protocol() != Some(b"h2") {
                return Err(two::unsupported("it agreed to another protocol"));
            }
            Stream::Tls(Box::new(stream))
        }
    };
    let Some(streams) = wish.http2 else { return Ok(Connected::One(stream)) };
    let meter = Rc::new(Meter::default());
    let io = Io { stream, slow: wish.slow.map(Slow::new), meter: meter.clone() };
    Ok(Connected::Two(Box::new(two::open(io, streams).await?), meter))
}

/// Lifts this process's soft limit of open files to what `wanted` sockets need.
/// Errors: the hard limit, when it is lower.
pub fn raise_file_limit(wanted: u64) -> Result<(), u64> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let needed = wanted + 64;
    if limit.current.is_none_or(|now| now >= needed) {
        return Ok(());
    }
    if let Some(hard) = limit.maximum.filter(|&hard| hard < needed) {
        return Err(hard);
    }
    let raised = Rlimit { current: Some(needed), maximum: limit.maximum };
    setrlimit(Resource::Nofile, raised).map_err(|_| limit.current.unwrap_or(0))
}
