//! Recorded arrivals: a CSV file, or an access log in the common (or combined) log format.
//!
//! A log's times are whole seconds: its requests of one second are spread evenly over it, in their
//! order. Lines without a request (`-`, or what was no HTTP) are left out, and counted. Of a CSV
//! file the column `seconds` counts, from wherever it begins; `method` and `path`
//! are used where they are there.

use std::collections::HashMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::schedule::Phase;

/// What was recorded, in the order of time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recording {
    /// Units: nanoseconds since the first.
    pub at: Vec<u64>,
    /// Per arrival, an index into `requests`; empty: only times were recorded.
    pub what: Vec<u32>,
    /// Methods and paths, each pair once.
    pub requests: Vec<(String, String)>,
    /// Lines of a log that have no request.
    #[serde(default)]
    pub left_out: usize,
}

/// A recording that cannot be replayed.
#[derive(Debug, Error)]
pub enum ReplayError {
    #[error("{path}: {source}")]
    Io { path: String, source: std::io::Error },
    #[error("{path}:{line}: {detail}")]
    Line { path: String, line: usize, detail: String },
    #[error("{path}: no arrival in it")]
    Empty { path: String },
}

/// One line of a recording. Units: seconds, on whatever clock.
struct Entry {
    at: f64,
    request: Option<(String, String)>,
}

/// Reads a file; `speed` 2 replays it in half its time.
pub fn read(path: &Path, speed: f64) -> Result<Recording, ReplayError> {
    let name = path.display().to_string();
    let text = std::fs::read(path)
        .map_err(|source| ReplayError::Io { path: name.clone(), source })
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())?;
    let wrong = |(line, detail)| ReplayError::Line { path: name.clone(), line, detail };
    let first = text.lines().find(|l| !l.trim().is_empty()).unwrap_or("");
    let (entries, left_out) = if is_log(first) {
        read_log(&text).map_err(wrong)?
    } else {
        (read_csv(&text).map_err(wrong)?, 0)
    };
    if entries.is_empty() {
        return Err(ReplayError::Empty { path: name });
    }
    Ok(Recording { left_out, ..Recording::of(entries, speed) })
}

impl Recording {
    fn of(mut entries: Vec<Entry>, speed: f64) -> Self {
        // Stable: what has the same time keeps its order.
        entries.sort_by(|a, b| a.at.total_cmp(&b.at));
        let zero = entries.first().map_or(0.0, |e| e.at);
        let mut recording = Self::default();
        let mut known: HashMap<(String, String), u32> = HashMap::new();
        for entry in entries {
            recording.at.push(((entry.at - zero) / speed * 1e9).round() as u64);
            if let Some(request) = entry.request {
                let next = known.len() as u32;
                let index = *known.entry(request.clone()).or_insert(next);
                if index == next {
                    recording.requests.push(request);
                }
                recording.what.push(index);
            }
        }
        recording
    }

    /// The one phase that stands for it in reports.
    pub fn phase(&self) -> Phase {
        let last = self.at.last().copied().unwrap_or(0);
        // A millisecond more than the last, so that it lies within.
        let seconds = last as f64 / 1e9 + 0.001;
        let rate = self.at.len() as f64 / seconds;
        Phase { name: "replay".into(), seconds, from_rate: rate, to_rate: rate }
    }

    /// The method and path of the request with this number, where they were recorded.
    pub fn request(&self, number: u64) -> Option<(&str, &str)> {
        let index = *self.what.get(usize::try_from(number).ok()?)?;
        let (method, path) = self.requests.get(index as usize)?;
        Some((method, path))
    }
}

type Bad = (usize, String);

/// `host ident user [10/Oct/2000:13:55:36 -0700] "GET /path HTTP/1.1" …`
fn is_log(line: &str) -> bool {
    line.contains(" [") && line.contains("] \"")
}

/// The requests, and how many lines have none.
fn read_log(text: &str) -> Result<(Vec<Entry>, usize), Bad> {
    let (mut entries, mut left_out): (Vec<Entry>, usize) = (Vec::new(), 0);
    let mut of_second: HashMap<i64, u32> = HashMap::new();
    let mut places = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        if line.trim().is_empty() {
            continue;
        }
        let (second, request) =
            log_line(line).ok_or_else(|| (number, "not a line of an access log".into()))?;
        let Some((method, path)) = request else {
            left_out += 1;
            continue;
        };
        let count = of_second.entry(second).or_default();
        places.push((second, *count));
        *count += 1;
        entries.push(Entry { at: 0.0, request: Some((method.into(), path.into())) });
    }
    for (entry, (second, place)) in entries.iter_mut().zip(places) {
        entry.at = second as f64 + f64::from(place) / f64::from(of_second[&second]);
    }
    Ok((entries, left_out))
}

/// The second, and the method and path where there are such.
fn log_line(line: &str) -> Option<(i64, Option<(&str, &str)>)> {
    let (_, rest) = line.split_once(" [")?;
    let (time, rest) = rest.split_once("] \"")?;
    let time = jiff::fmt::strtime::parse("%d/%b/%Y:%H:%M:%S %z", time).ok()?.to_timestamp().ok()?;
    let mut words = rest.split(['"', ' ']);
    let request = words.next().zip(words.next());
    let request = request.filter(|(method, path)| is_method(method) && is_path(path));
    Some((time.as_second(), request))
}

fn read_csv(text: &str) -> Result<Vec<Entry>, Bad> {
    #[derive(Deserialize)]
    struct Row {
        seconds: f64,
        method: Option<String>,
        path: Option<String>,
    }
    let mut rows = csv::Reader::from_reader(text.as_bytes());
    let has_seconds = rows.headers().is_ok_and(|h| h.iter().any(|c| c == "seconds"));
    if !has_seconds {
        return Err((1, "neither an access log nor a CSV file with a column `seconds`".into()));
    }
    let mut entries = Vec::new();
    for (number, row) in (2..).zip(rows.deserialize::<Row>()) {
        let row = row.map_err(|e| (number, e.to_string()))?;
        if !row.seconds.is_finite() || row.seconds.abs() > 1e12 {
            return Err((number, format!("{} is no time", row.seconds)));
        }
        let method = row.method.filter(|m| !m.is_empty()).unwrap_or_else(|| "GET".into());
        let request = row.path.filter(|p| !p.is_empty()).map(|path| (method, path));
        if let Some((method, path)) = &request
            && !(is_method(method) && is_path(path))
        {
            return Err((number, format!("{method} {path} is no request")));
        }
        entries.push(Entry { at: row.seconds, request });
    }
    let with_request = entries.iter().filter(|e| e.request.is_some()).count();
    if with_request != 0 && with_request != entries.len() {
        return Err((1, "some rows have a path and some have none".into()));
    }
    Ok(entries)
}

fn is_method(text: &str) -> bool {
    (1..=20).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_uppercase())
}

fn is_path(text: &str) -> bool {
    text.starts_with('/') && text.bytes().all(|b| b.is_ascii_graphic())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_spread_over_its_seconds() {
        let line = |second: u32, path: &str| {
            format!(
                "1.2.3.4 - - [10/Oct/2025:13:55:{second:02} -0700] \"GET {path} HTTP/1.1\" 200 5"
            )
        };
        let hung_up = line(40, "").replace("GET  HTTP/1.1", "-");
        let no_http = line(37, "").replace("GET  HTTP/1.1", "\\x16\\x03\\x01");
        let lines =
            [line(36, "/a"), line(36, "/b"), no_http, line(38, "/a"), hung_up, String::new()];
        let text = lines.join("\n");
        let (entries, left_out) = read_log(&text).unwrap();
        assert_eq!(left_out, 2);
        let recording = Recording::of(entries, 1.0);
        assert_eq!(recording.at, [0, 500_000_000, 2_000_000_000]);
        assert_eq!(recording.request(0), Some(("GET", "/a")));
        assert_eq!(recording.request(1), Some(("GET", "/b")));
        assert_eq!(recording.request(2), Some(("GET", "/a")));
        assert_eq!(recording.requests.len(), 2);
        let twice = Recording::of(read_log(&text).unwrap().0, 2.0);
        assert_eq!(twice.at[2], 1_000_000_000);
    }

    #[test]
    fn a_table_may_have_times_alone_in_any_order() {
        let recording = Recording::of(read_csv("x,seconds\n1,5.5\n2,4\n").unwrap(), 1.0);
        assert_eq!(recording.at, [0, 1_500_000_000]);
        assert_eq!(recording.request(0), None);
        let with = Recording::of(read_csv("seconds,path\n1,/x\n").unwrap(), 1.0);
        assert_eq!(with.request(0), Some(("GET", "/x")));
    }

    #[test]
    fn what_is_no_recording_says_the_line() {
        for (text, line) in [
            ("a,b\n1,2\n", 1),
            ("seconds\nx\n", 2),
            ("seconds,path\n1,/a\n2,\n", 1),
            ("seconds,path\n1,/a b\n", 2),
            ("seconds\ninf\n", 2),
        ] {
            assert_eq!(read_csv(text).err().unwrap().0, line, "{text}");
        }
        assert_eq!(read_log("a [x] \"GET / HTTP/1.1\"").err().unwrap().0, 1);
    }
}
