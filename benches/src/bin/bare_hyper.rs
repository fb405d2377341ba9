//! The baseline: hyper reads the body and answers a constant. The same kind of runtime, allocator,
//! connection settings and answer size as the node's own workers, and nothing else.

use std::convert::Infallible;
use std::net::SocketAddr;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

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

fn main() -> std::io::Result<()> {
    let ready_file = std::env::args().nth(1).expect("usage: bare_hyper READY_FILE");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async move {
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        let listener = tokio::net::TcpListener::bind(address).await?;
        let temporary = format!("{ready_file}.tmp");
        std::fs::write(&temporary, format!("{}\n", listener.local_addr()?))?;
        std::fs::rename(&temporary, &ready_file)?;
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
