//! The baseline: hyper reads the body and answers a constant. The same kind of runtime, connection
//! settings and answer size as the node's own workers, and nothing else. (The allocator is the
//! program's.)

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

/// As long as a 201 of the node.
const BODY: &[u8] = concat!(
    r#"{"id":"01a20c4a-3c13-8740-b6bb-d40000000000","sale":"bench","sku":"sku-1","#,
    r#""quantity":1,"points":1,"state":"confirmed","balance":9999900}"#
)
.as_bytes();
const LOCATION: &str = "/v1/redemptions/01a20c4a-3c13-8740-b6bb-d40000000000";

async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    // A body that breaks off breaks the connection; there is nothing to answer then.
    let _ = request.into_body().collect().await;
    Ok(Response::builder()
        .status(201)
        .header("content-type", "application/json")
        .header("location", LOCATION)
        .body(Full::new(Bytes::from_static(BODY)))
        .expect("constants make a valid answer"))
}

/// Serves on a port of its own choice, on this thread, and does not come back; where it listens is
/// told once it does.
///
/// Errors: no runtime, no port, or a connection that could not be taken.
pub fn serve(listening: impl FnOnce(SocketAddr) -> io::Result<()>) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async move {
        let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await?;
        listening(listener.local_addr()?)?;
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            tokio::task::spawn_local(async move {
                // A client that goes away is the usual end of a connection.
                let _ = http1::Builder::new()
                    .max_buf_size(32 << 10)
                    .max_headers(64)
                    .serve_connection(TokioIo::new(stream), service_fn(answer))
                    .await;
            });
        }
    })
}
