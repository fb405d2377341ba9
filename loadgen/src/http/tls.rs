//! TLS for targets that begin with `https://`: rustls with ring.
//!
//! The configuration is one for the process, set before the first connection of a run: every
//! connection of it trusts the same certificates.

use std::io;
use std::sync::{Arc, PoisonError, RwLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Whom to trust.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trust {
    /// Certificates in PEM; none: the system's.
    pub ca: Option<Vec<u8>>,
    /// Anybody.
    pub anybody: bool,
}

/// Why there is no TLS.
#[derive(Debug, Error)]
pub enum TlsError {
    #[error("no certificate in it that can be trusted: {0}")]
    Certificates(String),
    #[error(transparent)]
    Config(#[from] rustls::Error),
}

/// For each version of HTTP.
#[derive(Clone)]
struct Configs {
    one: Arc<ClientConfig>,
    two: Arc<ClientConfig>,
}

static CONFIGS: RwLock<Option<Configs>> = RwLock::new(None);

/// Sets whom connections trust from now on.
pub fn trust(trust: &Trust) -> Result<(), TlsError> {
    let configs = Configs::of(trust)?;
    *CONFIGS.write().unwrap_or_else(PoisonError::into_inner) = Some(configs);
    Ok(())
}

/// The configuration for a connection that speaks HTTP/2, or HTTP/1.1. By default the system's
/// certificates are trusted.
pub fn config(http2: bool) -> io::Result<Arc<ClientConfig>> {
    let known = CONFIGS.read().unwrap_or_else(PoisonError::into_inner).clone();
    let configs = if let Some(configs) = known {
        configs
    } else {
        let configs = Configs::of(&Trust::default()).map_err(io::Error::other)?;
        CONFIGS.write().unwrap_or_else(PoisonError::into_inner).insert(configs).clone()
    };
    Ok(if http2 { configs.two } else { configs.one })
}

impl Configs {
    fn of(trust: &Trust) -> Result<Self, TlsError> {
        let mut one = configure(trust)?;
        let mut two = one.clone();
        one.alpn_protocols = vec![b"http/1.1".to_vec()];
        two.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Self { one: Arc::new(one), two: Arc::new(two) })
    }
}

/// The name that a certificate must have.
pub fn server_name(host: &str) -> io::Result<ServerName<'static>> {
    ServerName::try_from(host.to_owned()).map_err(io::Error::other)
}

fn configure(trust: &Trust) -> Result<ClientConfig, TlsError> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()?;
    Ok(if trust.anybody {
        let verifier = Arc::new(Anybody { provider });
        builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth()
    } else {
        builder.with_root_certificates(roots(trust)?).with_no_client_auth()
    })
}

fn roots(trust: &Trust) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    let Some(pem) = &trust.ca else {
        let system = rustls_native_certs::load_native_certs();
        roots.add_parsable_certificates(system.certs);
        return Ok(roots);
    };
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|e| TlsError::Certificates(e.to_string()))?;
        roots.add(certificate).map_err(|e| TlsError::Certificates(e.to_string()))?;
    }
    if roots.is_empty() {
        return Err(TlsError::Certificates("it has none".into()));
    }
    Ok(roots)
}

/// Takes any certificate, as `--insecure` says; the handshake's signatures are still checked.
#[derive(Debug)]
struct Anybody {
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
