//! Where requests go: `http://HOST[:PORT][/PATH]`, or `https://`, resolved once before the run.

use std::net::{SocketAddr, ToSocketAddrs};

use http::uri::Scheme;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// One server under load.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// As it was given.
    pub url: String,
    /// The `Host` field: name, and port unless it is the usual one.
    pub host: String,
    /// The path with its query, at least `/`.
    pub path: String,
    pub address: SocketAddr,
    /// The name that its certificate must have; none: no TLS.
    pub tls: Option<String>,
}

/// A URL that cannot be a target.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum TargetError {
    #[error("{url}: a target starts with http:// or https:// ({detail})")]
    Scheme { url: String, detail: &'static str },
    #[error("{url}: {part} is not a host with an optional port")]
    Host { url: String, part: String },
    #[error("{url}: the path has a character that must be percent-encoded")]
    Path { url: String },
    #[error("{host}: the name does not resolve: {detail}")]
    Resolve { host: String, detail: String },
}

impl Target {
    /// Parses the URL and resolves its name.
    pub fn parse(url: &str) -> Result<Self, TargetError> {
        let unresolved = Self::unresolved(url)?;
        let authority = &unresolved.host;
        let port = unresolved.address.port();
        let (name, _) = split_port(authority, port).unwrap_or((authority, port));
        let bare = bare(name);
        let failed = |detail: String| TargetError::Resolve { host: bare.into(), detail };
        let mut addresses = (bare, port).to_socket_addrs().map_err(|e| failed(e.to_string()))?;
        let address = addresses.next().ok_or_else(|| failed("no address".into()))?;
        Ok(Self { address, ..unresolved })
    }

    /// Parses the URL, and asks nobody for its address: 0.0.0.0 stands for it.
    pub fn unresolved(url: &str) -> Result<Self, TargetError> {
        let scheme = |detail| TargetError::Scheme { url: url.into(), detail };
        let (rest, usual_port) = match url.split_once("://") {
            Some(("http", rest)) => (rest, 80),
            Some(("https", rest)) => (rest, 443),
            Some(_) => return Err(scheme("no other scheme is known")),
            None => return Err(scheme("none was given")),
        };
        let slash = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(slash);
        let bad_host = || TargetError::Host { url: url.into(), part: authority.into() };
        let (name, port) = split_port(authority, usual_port).ok_or_else(bad_host)?;
        let graphic = |s: &str| s.bytes().all(|b| b.is_ascii_graphic());
        if name.is_empty() || !graphic(name) || name.contains('@') {
            return Err(bad_host());
        }
        if !graphic(path) {
            return Err(TargetError::Path { url: url.into() });
        }
        let address = SocketAddr::from(([0; 4], port));
        let tls = (usual_port == 443).then(|| bare(name).to_owned());
        let path = match path {
            "" => "/".into(),
            p if p.starts_with('?') => format!("/{p}"),
            p => p.into(),
        };
        Ok(Self { url: url.into(), host: authority.into(), path, address, tls })
    }

    pub const fn scheme(&self) -> Scheme {
        if self.tls.is_some() { Scheme::HTTPS } else { Scheme::HTTP }
    }

    /// The path without a slash at its end, to put another path behind.
    pub fn base_path(&self) -> &str {
        self.path.trim_end_matches('/')
    }
}

/// The name without an IPv6 address's brackets.
fn bare(name: &str) -> &str {
    name.trim_start_matches('[').trim_end_matches(']')
}

fn split_port(authority: &str, usual: u16) -> Option<(&str, u16)> {
    let after_name = authority.rfind(']').map_or(0, |i| i + 1);
    match authority[after_name..].rfind(':') {
        None => Some((authority, usual)),
        Some(colon) => {
            let (name, port) = authority.split_at(after_name + colon);
            Some((name, port[1..].parse().ok()?))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_fall_into_their_parts() {
        let t = Target::parse("http://127.0.0.1:8080").unwrap();
        assert_eq!((t.host.as_str(), t.path.as_str()), ("127.0.0.1:8080", "/"));
        assert_eq!(t.address, "127.0.0.1:8080".parse().unwrap());
        let t = Target::parse("http://127.0.0.1/a/b/?c=d").unwrap();
        assert_eq!((t.path.as_str(), t.address.port()), ("/a/b/?c=d", 80));
        assert_eq!(t.tls, None);
        let t = Target::parse("https://127.0.0.1/x").unwrap();
        assert_eq!((t.address.port(), t.tls.as_deref()), (443, Some("127.0.0.1")));
        let t = Target::parse("http://[::1]:99?x").unwrap();
        assert_eq!((t.path.as_str(), t.address), ("/?x", "[::1]:99".parse().unwrap()));
    }

    #[test]
    fn what_is_no_target_is_refused() {
        for url in ["localhost:80", "ftp://x", "https://", "http://", "http://a:b/", "http://a b/"]
        {
            assert!(Target::parse(url).is_err(), "{url}");
        }
        let unknown = Target::parse("http://no-such-name.invalid/").unwrap_err();
        assert!(matches!(unknown, TargetError::Resolve { .. }), "{unknown}");
    }
}
