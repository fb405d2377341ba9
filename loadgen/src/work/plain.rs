//! Requests to any HTTP service: prepared bytes, or filled in from data or a recording.

use crate::http::Target;
use crate::plan::{Data, HttpWork, Shared};
use crate::random::Random;
use crate::replay::Recording;
use crate::work::template::{BadTemplate, Escape, Template, Values};

/// The requests of one worker.
#[derive(Debug)]
pub struct Plain {
    /// Per target.
    forms: Vec<Form>,
    is_head: bool,
    seed: u64,
    data: Option<Shared<Data>>,
    is_random: bool,
    recorded: Option<Shared<Recording>>,
    /// The body in the making: its length goes before it.
    body: Vec<u8>,
}

/// A request to one target.
#[derive(Debug)]
enum Form {
    Constant(Vec<u8>),
    Filled(Box<Filled>),
}

#[derive(Debug)]
struct Filled {
    method: Vec<u8>,
    path: Template,
    base: Vec<u8>,
    fields: Template,
    body: Template,
    says_length: bool,
}

impl Plain {
    /// Errors: a place that nothing fills.
    pub fn new(targets: &[Target], work: &HttpWork, seed: u64) -> Result<Self, BadTemplate> {
        let forms = targets.iter().map(|t| Form::of(t, work)).collect::<Result<_, _>>()?;
        Ok(Self {
            forms,
            is_head: work.method == "HEAD",
            seed,
            data: work.data.clone(),
            is_random: work.is_random,
            recorded: work.recorded.clone(),
            body: Vec::new(),
        })
    }

    /// Whether the answer to the request with this number comes without a body.
    pub fn is_head(&self, number: u64) -> bool {
        match self.recorded.as_ref().and_then(|r| r.request(number)) {
            Some((method, _)) => method == "HEAD",
            None => self.is_head,
        }
    }

    pub fn compose(&mut self, number: u64, target: usize, out: &mut Vec<u8>) {
        let form = match &self.forms[target] {
            Form::Constant(bytes) => return out.extend_from_slice(bytes),
            Form::Filled(form) => form,
        };
        let row = self.data.as_ref().map_or(&[][..], |d| d.row(number, self.is_random, self.seed));
        let random = Random::of_request(self.seed ^ 0x7E47, number).next();
        let values = Values { row, number, random };
        if let Some((method, path)) = self.recorded.as_ref().and_then(|r| r.request(number)) {
            out.extend_from_slice(method.as_bytes());
            out.push(b' ');
            out.extend_from_slice(&form.base);
            out.extend_from_slice(path.as_bytes());
        } else {
            out.extend_from_slice(&form.method);
            out.push(b' ');
            form.path.write(out, values, Escape::Percent);
        }
        out.extend_from_slice(b" HTTP/1.1\r\n");
        form.fields.write(out, values, Escape::No);
        self.body.clear();
        form.body.write(&mut self.body, values, Escape::No);
        if form.says_length {
            let mut digits = itoa::Buffer::new();
            out.extend_from_slice(b"Content-Length: ");
            out.extend_from_slice(digits.format(self.body.len()).as_bytes());
            out.extend_from_slice(b"\r\n");
        }
        out.extend_from_slice(b"\r\n");
        out.extend_from_slice(&self.body);
    }
}

impl Form {
    fn of(target: &Target, work: &HttpWork) -> Result<Self, BadTemplate> {
        let has = |name: &str| work.headers.iter().any(|(n, _)| n.eq_ignore_ascii_case(name));
        let mut fields = String::new();
        if !has("host") {
            fields.extend(["Host: ", &target.host, "\r\n"]);
        }
        fields.extend(work.headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")));
        let expects_body =
            !work.body.is_empty() || matches!(&*work.method, "POST" | "PUT" | "PATCH");
        let says_length = expects_body && !has("content-length");
        let columns = work.data.as_ref().map_or(&[][..], |d| &d.columns);
        let path = Template::parse(target.path.as_bytes(), columns)?;
        let body = Template::parse(&work.body, columns)?;
        let field_template = Template::parse(fields.as_bytes(), columns)?;
        let is_constant = work.recorded.as_ref().is_none_or(|r| r.what.is_empty())
            && [&path, &body, &field_template].iter().all(|t| t.is_constant());
        if !is_constant {
            return Ok(Self::Filled(Box::new(Filled {
                method: work.method.clone().into_bytes(),
                path,
                base: target.base_path().into(),
                fields: field_template,
                body,
                says_length,
            })));
        }
        let mut bytes = format!("{} {} HTTP/1.1\r\n{fields}", work.method, target.path);
        if says_length {
            bytes.extend(["Content-Length: ", &work.body.len().to_string(), "\r\n"]);
        }
        bytes += "\r\n";
        let mut bytes = bytes.into_bytes();
        bytes.extend_from_slice(&work.body);
        Ok(Self::Constant(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(path: &str, work: &HttpWork, number: u64) -> String {
        let target = Target::parse(&format!("http://127.0.0.1:9{path}")).unwrap();
        let mut plain = Plain::new(&[target], work, 1).unwrap();
        let mut out = Vec::new();
        plain.compose(number, 0, &mut out);
        String::from_utf8(out).unwrap()
    }

    fn work(method: &str, body: &str) -> HttpWork {
        HttpWork {
            method: method.into(),
            headers: vec![("X-A".into(), "1".into())],
            body: body.into(),
            ..HttpWork::default()
        }
    }

    #[test]
    fn the_request_has_what_http_wants_and_what_was_asked_for() {
        let get = text("/a?b=c", &work("GET", ""), 0);
        assert_eq!(get, "GET /a?b=c HTTP/1.1\r\nHost: 127.0.0.1:9\r\nX-A: 1\r\n\r\n");
        let post = text("/", &work("POST", "hi"), 0);
        assert!(post.ends_with("X-A: 1\r\nContent-Length: 2\r\n\r\nhi"));
        assert!(text("/", &work("POST", ""), 0).contains("Content-Length: 0"));
    }

    #[test]
    fn rows_are_filled_in_by_turns_with_the_length_that_results() {
        let data = Data {
            columns: vec!["id".into()],
            rows: vec![vec!["x y".into()], vec!["long".into()]],
        };
        let mut filled = work("POST", "<{{id}}>");
        filled.headers.push(("X-Id".into(), "{{id}}-{{number}}".into()));
        filled.data = Some(Shared::new(data));
        let first = text("/u/{{id}}", &filled, 2);
        assert_eq!(
            first,
            "POST /u/x%20y HTTP/1.1\r\nHost: 127.0.0.1:9\r\nX-A: 1\r\nX-Id: x y-2\r\n\
             Content-Length: 5\r\n\r\n<x y>"
        );
        assert!(text("/u/{{id}}", &filled, 3).ends_with("Content-Length: 6\r\n\r\n<long>"));
        let target = Target::parse("http://127.0.0.1:9/{{nobody}}").unwrap();
        assert!(Plain::new(&[target], &filled, 1).is_err());
    }

    #[test]
    fn a_recording_gives_method_and_path() {
        let mut replayed = work("GET", "");
        replayed.recorded = Some(Shared::new(Recording {
            at: vec![0, 1],
            what: vec![1, 0],
            requests: vec![("GET".into(), "/a".into()), ("HEAD".into(), "/b?c".into())],
            left_out: 0,
        }));
        assert!(text("/base/", &replayed, 0).starts_with("HEAD /base/b?c HTTP/1.1\r\n"));
        assert!(text("/base/", &replayed, 1).starts_with("GET /base/a HTTP/1.1\r\n"));
    }
}
