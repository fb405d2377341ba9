//! Where requests go: `http://HOST[:PORT][/PATH]`, resolved once before the run.

use std::net::{SocketAddr, ToSocketAddrs};

use thiserror::Error;

/// One server under load.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// As it was given.
    pub url: String,
    /// The `Host` field: name, and port unless it is the usual one.
    pub host: String,
    /// The path with its query, at least `/`.
    pub path: String,
    pub address: SocketAddr,
}

/// A URL that cannot be a target.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum TargetError {
    #[error("{url}: a target starts with http:// ({detail})")]
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
        let scheme = |detail| TargetError::Scheme { url: url.into(), detail };
        let rest = match url.split_once("://") {
            Some(("http", rest)) => rest,
            Some(("https", _)) => {
                return Err(scheme("TLS is not built in: put the load on the plain listener"));
            }
            Some(_) => return Err(scheme("no other scheme is known")),
            None => return Err(scheme("none was given")),
        };
        let slash = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(slash);
        let bad_host = || TargetError::Host { url: url.into(), part: authority.into() };
        let (name, port) = split_port(authority).ok_or_else(bad_host)?;
        let graphic = |s: &str| s.bytes().all(|b| b.is_ascii_graphic());
        if name.is_empty() || !graphic(name) || name.contains('@') {
            return Err(bad_host());
        }
        if !graphic(path) {
            return Err(TargetError::Path { url: url.into() });
        }
        let bare = name.trim_start_matches('[').trim_end_matches(']');
        let unresolved = |detail: String| TargetError::Resolve { host: bare.into(), detail };
        let mut addresses =
            (bare, port).to_socket_addrs().map_err(|e| unresolved(e.to_string()))?;
        let address = addresses.next().ok_or_else(|| unresolved("no address".into()))?;
        let path = match path {
            "" => "/".into(),
            p if p.starts_with('?') => format!("/{p}"),
            p => p.into(),
        };
        Ok(Self { url: url.into(), host: authority.into(), path, address })
    }

    /// The path without a slash at its end, to put another path behind.
    pub fn base_path(&self) -> &str {
        self.path.trim_end_matches('/')
    }
}

fn split_port(authority: &str) -> Option<(&str, u16)> {
    let after_name = authority.rfind(']').map_or(0, |i| i + 1);
    match authority[after_name..].rfind(':') {
        None => Some((authority, 80)),
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
        let t = Target::parse("http://[::1]:99?x").unwrap();
        assert_eq!((t.path.as_str(), t.address), ("/?x", "[::1]:99".parse().unwrap()));
    }

    #[test]
    fn what_is_no_target_is_refused() {
        for url in ["localhost:80", "ftp://x", "https://x", "http://", "http://a:b/", "http://a b/"]
        {
            assert!(Target::parse(url).is_err(), "{url}");
        }
        let unknown = Target::parse("http://no-such-name.invalid/").unwrap_err();
        assert!(matches!(unknown, TargetError::Resolve { .. }), "{unknown}");
    }
}
