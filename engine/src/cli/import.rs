//! `onrush import`: members from CSV, a sale from TOML, through the admin listener.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::StatusCode;
use hyper::body::{Bytes, Frame};
use indicatif::{ProgressBar, ProgressStyle};

use super::AdminUrl;
use super::admin::{Answer, block_on, send};
use super::sale_file;

const CHUNK_LEN: usize = 256 * 1024;
const TICK: Duration = Duration::from_millis(100);

pub fn members(file: &Path, skip_bad_rows: bool, node: &AdminUrl) -> anyhow::Result<ExitCode> {
    let source = File::open(file).with_context(|| format!("cannot read {}", file.display()))?;
    let length = source.metadata()?.len();
    let bar = ProgressBar::new(length).with_style(
        ProgressStyle::with_template("{spinner} {msg} [{bar:40}] {bytes}/{total_bytes} {elapsed}")?
            .progress_chars("=> "),
    );
    bar.set_message("sending");
    // It lives on while the node checks and applies, and says nothing meanwhile.
    bar.enable_steady_tick(TICK);
    let path =
        if skip_bad_rows { "/v1/members:import?skip_bad_rows=true" } else { "/v1/members:import" };
    let sending = bar.clone();
    let chunks = FileChunks { source, on_chunk: Box::new(move |len| progress(&sending, len)) };
    let body = StreamBody::new(chunks).boxed();
    let answer = block_on(send(node, "POST", path, Some("text/csv"), body))?;
    bar.finish_and_clear();
    Ok(report_members(&answer, file))
}

fn progress(bar: &ProgressBar, sent: usize) {
    bar.inc(sent as u64);
    if bar.position() >= bar.length().unwrap_or(0) {
        bar.set_message("checking and applying");
    }
}

fn report_members(answer: &Answer, file: &Path) -> ExitCode {
    let count = |key: &str| answer.body.get(key).and_then(serde_json::Value::as_u64).unwrap_or(0);
    if let Some(errors) = answer.body.get("errors").and_then(|e| e.as_array()) {
        for error in errors {
            let line = error.get("line").and_then(serde_json::Value::as_u64).unwrap_or(0);
            let message = error.get("message").and_then(|m| m.as_str()).unwrap_or("bad row");
            eprintln!("{}:{line}: {message}", file.display());
        }
    }
    if answer.status != StatusCode::OK {
        eprintln!("onrush: nothing of {} was applied: {}", file.display(), answer.detail());
        return ExitCode::FAILURE;
    }
    println!(
        "{} rows: {} accounts opened, {} were there and left as they are, {} bad rows skipped",
        count("rows"),
        count("opened"),
        count("existing"),
        count("skipped"),
    );
    ExitCode::SUCCESS
}

/// Reads a file in chunks as a request body asks for them.
struct FileChunks {
    source: File,
    on_chunk: Box<dyn Fn(usize) + Send + Sync>,
}

impl futures_core::Stream for FileChunks {
    type Item = std::io::Result<Frame<Bytes>>;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        // Blocking reads are fine: this runtime does nothing else.
        let mut chunk = vec![0; CHUNK_LEN];
        std::task::Poll::Ready(match self.source.read(&mut chunk) {
            Ok(0) => None,
            Ok(len) => {
                chunk.truncate(len);
                (self.on_chunk)(len);
                Some(Ok(Frame::data(Bytes::from(chunk))))
            }
            Err(error) => Some(Err(error)),
        })
    }
}

pub fn sale(file: &Path, node: &AdminUrl) -> anyhow::Result<ExitCode> {
    let text =
        std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let sale = match sale_file::parse(&text) {
        Ok(sale) => sale,
        Err(error) => {
            eprintln!("{}:{}: {error}", file.display(), error.line);
            eprintln!("onrush: nothing of {} was applied", file.display());
            return Ok(ExitCode::FAILURE);
        }
    };
    let body = Full::from(serde_json::to_vec(&sale)?).map_err(|never| match never {}).boxed();
    let answer = block_on(send(node, "POST", "/v1/sales", Some("application/json"), body))?;
    let id = &sale.id;
    match answer.status {
        StatusCode::CREATED => println!("Sale {id} is defined."),
        StatusCode::OK => println!("Sale {id} was there, with the same definition."),
        _ => {
            eprintln!("onrush: {}: {}", file.display(), answer.detail());
            return Ok(ExitCode::FAILURE);
        }
    }
    Ok(ExitCode::SUCCESS)
}
