//! The same request over and over: for any HTTP service, and for comparing servers.

use crate::http::Target;
use crate::plan::HttpWork;

/// Prepared bytes, one copy per target.
#[derive(Debug)]
pub struct Plain {
    bytes: Vec<Vec<u8>>,
    pub is_head: bool,
}

impl Plain {
    pub fn new(targets: &[Target], work: &HttpWork) -> Self {
        let bytes = targets.iter().map(|t| request_bytes(t, work)).collect();
        Self { bytes, is_head: work.method == "HEAD" }
    }

    pub fn bytes(&self, target: usize) -> &[u8] {
        &self.bytes[target]
    }
}

fn request_bytes(target: &Target, work: &HttpWork) -> Vec<u8> {
    let has = |name: &str| work.headers.iter().any(|(n, _)| n.eq_ignore_ascii_case(name));
    let mut lines = vec![format!("{} {} HTTP/1.1", work.method, target.path)];
    if !has("host") {
        lines.push(format!("Host: {}", target.host));
    }
    lines.extend(work.headers.iter().map(|(name, value)| format!("{name}: {value}")));
    let expects_body = !work.body.is_empty() || matches!(&*work.method, "POST" | "PUT" | "PATCH");
    if expects_body && !has("content-length") {
        lines.push(format!("Content-Length: {}", work.body.len()));
    }
    let mut bytes = (lines.join("\r\n") + "\r\n\r\n").into_bytes();
    bytes.extend_from_slice(&work.body);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_request_has_what_http_wants_and_what_was_asked_for() {
        let target = Target::parse("http://127.0.0.1:9/a?b=c").unwrap();
        let work = |method: &str, body: &str| HttpWork {
            method: method.into(),
            headers: vec![("X-A".into(), "1".into())],
            body: body.into(),
        };
        let text = |w| String::from_utf8(request_bytes(&target, &w)).unwrap();
        assert_eq!(
            text(work("GET", "")),
            "GET /a?b=c HTTP/1.1\r\nHost: 127.0.0.1:9\r\nX-A: 1\r\n\r\n"
        );
        assert!(text(work("POST", "hi")).ends_with("X-A: 1\r\nContent-Length: 2\r\n\r\nhi"));
        assert!(text(work("POST", "")).contains("Content-Length: 0"));
    }
}
