//! TLS: requests and the ledger check over it, and what is said when it cannot be agreed on.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;

use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::mall::{Mall, open};
use crate::server::{Say, Server};
use crate::tool::{number, outcome, run, tool};

pub const CA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/tls/ca.pem");

/// A server with a certificate for `localhost` alone, that speaks these protocols.
pub fn config(protocols: &[&[u8]]) -> Arc<ServerConfig> {
    let chain = CertificateDer::pem_slice_iter(include_bytes!("../tls/server.pem"))
        .collect::<Result<Vec<_>, _>>()
        .unwrap();
    let key = PrivateKeyDer::from_pem_slice(include_bytes!("../tls/server.key")).unwrap();
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    config.alpn_protocols = protocols.iter().map(|p| p.to_vec()).collect();
    Arc::new(config)
}

/// Takes TLS off before a plain server.
pub fn in_front_of(server: &Server) -> String {
    let behind = server.address;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    listener.set_nonblocking(true).unwrap();
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let acceptor = TlsAcceptor::from(config(&[]));
        runtime.block_on(accept(listener, &acceptor, behind));
    });
    format!("https://localhost:{}", address.port())
}

/// Until the test's process ends.
async fn accept(listener: std::net::TcpListener, acceptor: &TlsAcceptor, behind: SocketAddr) {
    let listener = TcpListener::from_std(listener).unwrap();
    while let Ok((stream, _)) = listener.accept().await {
        let acceptor = acceptor.clone();
        tokio::spawn(async move {
            let Ok(mut outside) = acceptor.accept(stream).await else { return };
            let Ok(mut inside) = TcpStream::connect(behind).await else { return };
            let _ = tokio::io::copy_bidirectional(&mut outside, &mut inside).await;
        });
    }
}

#[test]
fn requests_go_over_tls_when_the_certificate_is_trusted() {
    let server = Server::start(|_| Say::json(200, "{}"));
    let url = in_front_of(&server);
    let load = ["--rate", "100", "--seconds", "1", "--connections", "4", "--pipeline", "2"];
    for trust in [&["--ca", CA][..], &["--insecure"]] {
        let before = server.served();
        let ran = run(&url, &[&load[..], trust].concat());
        assert_eq!(ran.code, 0, "{trust:?}: {} {}", ran.stdout, ran.stderr);
        assert_eq!(outcome(&ran, "200")["requests"], 100, "{}", ran.stdout);
        assert_eq!(server.served() - before, 100);
    }
}

#[test]
fn the_ledger_is_checked_over_tls() {
    let (server, mall) = open(Mall::with_stock(&[("a", 60)]));
    let url = in_front_of(&server);
    let args = [
        "--ca",
        CA,
        "--sale",
        "s1",
        "--members",
        "1-500",
        "--rate",
        "100",
        "--seconds",
        "1",
        "--check",
        "--admin",
        &url,
    ];
    let ran = run(&url, &args);
    assert_eq!(ran.code, 0, "{} {}", ran.stdout, ran.stderr);
    assert_eq!(number(&ran, "/check/found_over_api") as u64, 60);
    assert_eq!(mall.lock().unwrap().count("confirmed"), 60);
}

/// Says no, in plain text, to everybody who connects.
fn without_tls() -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        // Kept open: one that is closed with something unread is reset, and its words are lost.
        let mut kept = Vec::new();
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 64]);
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
            kept.push(stream);
        }
    });
    address
}

#[test]
fn what_is_wrong_with_tls_is_said() {
    let server = Server::start(|_| Say::json(200, "{}"));
    let url = in_front_of(&server);
    let by_address = format!("https://127.0.0.1:{}", url.rsplit(':').next().unwrap());
    let not_tls = format!("https://{}", without_tls());
    let cases: [(&str, &[&str], &str); 5] = [
        (&url, &[], "UnknownIssuer"),
        (&by_address, &["--ca", CA], "not valid for name"),
        (&not_tls, &["--ca", CA], "could be opened: tls"),
        (&url, &["--ca", "/no/such.pem"], "/no/such.pem"),
        (&url, &["--ca", "/dev/null"], "no certificate"),
    ];
    for (target, more, expected) in cases {
        let args = ["run", "--quiet", "--seconds", "0.2", "--timeout", "5", "--target", target];
        let ran = tool(&[&args[..], more].concat());
        assert_eq!(ran.code, 1, "{target}: {} {}", ran.stdout, ran.stderr);
        assert!(ran.stderr.contains(expected), "{target}: {}", ran.stderr);
    }
    assert_eq!(server.served(), 0);
}
