//! An HTTP/2 server whose behaviour a test knows, with and without TLS.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::{Request, Response};
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// What is done with a request.
pub enum Say {
    Answer(u16, Vec<u8>),
    /// The same, and no further request over this connection.
    Last,
    /// `RST_STREAM` in the place of an answer.
    Reset(Reason),
    /// A head, half a body, and `RST_STREAM`.
    Cut,
    Silence,
    /// The connection ends, with all that is out on it.
    HangUp,
}

/// A request, its body, and its number over all connections.
pub type Handler = dyn Fn(&Request<()>, &[u8], u64) -> Say + Send + Sync;

#[derive(Default)]
pub struct Seen {
    pub connections: AtomicU64,
    pub requests: AtomicU64,
    /// Requests out at a time on one connection, at most.
    pub peak: AtomicU64,
}

pub struct TwoServer {
    pub address: SocketAddr,
    pub seen: Arc<Seen>,
}

/// How it serves.
pub struct Setup {
    /// Streams that a connection may have; none: the server says nothing of it.
    pub streams: Option<u32>,
    pub tls: Option<Arc<ServerConfig>>,
    /// Each answer comes so much later.
    pub delay: Duration,
}

impl Default for Setup {
    fn default() -> Self {
        Self { streams: None, tls: None, delay: Duration::ZERO }
    }
}

impl TwoServer {
    /// Serves until the test's process ends.
    pub fn start(
        setup: Setup,
        handler: impl Fn(&Request<()>, &[u8], u64) -> Say + Send + Sync + 'static,
    ) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        listener.set_nonblocking(true).unwrap();
        let seen = Arc::new(Seen::default());
        let (all, handler): (_, Arc<Handler>) = (seen.clone(), Arc::new(handler));
        thread::spawn(move || {
            let mut builder = tokio::runtime::Builder::new_current_thread();
            let runtime = builder.enable_all().build().unwrap();
            runtime.block_on(accept(listener, setup, all, handler));
        });
        Self { address, seen }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn connections(&self) -> u64 {
        self.seen.connections.load(Ordering::SeqCst)
    }

    pub fn requests(&self) -> u64 {
        self.seen.requests.load(Ordering::SeqCst)
    }

    pub fn peak(&self) -> u64 {
        self.seen.peak.load(Ordering::SeqCst)
    }
}

async fn accept(
    listener: std::net::TcpListener,
    setup: Setup,
    seen: Arc<Seen>,
    handler: Arc<Handler>,
) {
    let listener = TcpListener::from_std(listener).unwrap();
    let (streams, delay) = (setup.streams, setup.delay);
    while let Ok((stream, _)) = listener.accept().await {
        stream.set_nodelay(true).unwrap();
        seen.connections.fetch_add(1, Ordering::SeqCst);
        let (tls, seen, handler) = (setup.tls.clone(), seen.clone(), handler.clone());
        tokio::spawn(async move {
            match tls {
                None => serve(stream, streams, delay, seen, handler).await,
                Some(config) => {
                    let Ok(stream) = TlsAcceptor::from(config).accept(stream).await else { return };
                    serve(stream, streams, delay, seen, handler).await;
                }
            }
        });
    }
}

async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    streams: Option<u32>,
    delay: Duration,
    seen: Arc<Seen>,
    handler: Arc<Handler>,
) {
    let mut builder = h2::server::Builder::new();
    if let Some(most) = streams {
        builder.max_concurrent_streams(most);
    }
    let Ok(mut connection) = builder.handshake::<_, Bytes>(stream).await else { return };
    let out = Arc::new(AtomicU64::new(0));
    // Word from the tasks that answer: what is to become of the connection.
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    // Kept, so that nothing becomes of them.
    let silent = Arc::new(Mutex::new(Vec::new()));
    loop {
        let accepted = tokio::select! {
            accepted = connection.accept() => accepted,
            is_end = told.recv() => {
                if is_end == Some(true) {
                    return;
                }
                connection.graceful_shutdown();
                continue;
            }
        };
        let Some(Ok((request, respond))) = accepted else { return };
        let now = out.fetch_add(1, Ordering::SeqCst) + 1;
        seen.peak.fetch_max(now, Ordering::SeqCst);
        let (seen, handler, tell) = (seen.clone(), handler.clone(), tell.clone());
        let (out, silent) = (out.clone(), silent.clone());
        tokio::spawn(async move {
            let (head, body) = request.into_parts();
            let body = read(body).await;
            let number = seen.requests.fetch_add(1, Ordering::SeqCst);
            tokio::time::sleep(delay).await;
            let request = Request::from_parts(head, ());
            let handle = move || handler(&request, &body, number);
            let say = tokio::task::spawn_blocking(handle).await.unwrap();
            out.fetch_sub(1, Ordering::SeqCst);
            if let Some(respond) = answer(respond, say, &tell) {
                silent.lock().unwrap().push(respond);
            }
        });
    }
}

async fn read(mut body: RecvStream) -> Vec<u8> {
    let mut all = Vec::new();
    while let Some(Ok(data)) = body.data().await {
        let _ = body.flow_control().release_capacity(data.len());
        all.extend_from_slice(&data);
    }
    all
}

/// Gives back what is left unanswered. A client that is gone hears nothing.
fn answer(
    mut respond: SendResponse<Bytes>,
    say: Say,
    tell: &tokio::sync::mpsc::UnboundedSender<bool>,
) -> Option<SendResponse<Bytes>> {
    let head = |status| Response::builder().status(status).body(()).unwrap();
    match say {
        Say::Silence => return Some(respond),
        // Dropped, its stream would be reset, maybe before the connection is gone.
        Say::HangUp => {
            let _ = tell.send(true);
            return Some(respond);
        }
        Say::Reset(reason) => respond.send_reset(reason),
        Say::Cut => {
            if let Ok(mut body) = respond.send_response(head(200), false) {
                let _ = body.send_data(Bytes::from_static(b"{\"half"), false);
                // After the data, which must be out first.
                tokio::spawn(async move {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    body.send_reset(Reason::INTERNAL_ERROR);
                });
            }
        }
        Say::Last => {
            let _ = tell.send(false);
            let _ = respond.send_response(head(200), true);
        }
        Say::Answer(status, bytes) => {
            if let Ok(mut body) = respond.send_response(head(status), bytes.is_empty())
                && !bytes.is_empty()
            {
                let _ = body.send_data(bytes.into(), true);
            }
        }
    }
    None
}
