//! From flags to the requests of any HTTP service.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use crate::cli::args::ScenarioArgs;
use crate::http::Target;
use crate::plan::{Data, HttpWork, Shared};
use crate::replay;
use crate::work::plain::Plain;
use crate::work::template::Template;

/// The requests to these targets.
pub fn work(all: &ScenarioArgs, targets: &[Target]) -> Result<HttpWork> {
    let args = &all.http;
    let body = match (&args.body, &args.body_file) {
        (Some(_), Some(_)) => bail!("body and body-file exclude each other"),
        (Some(text), None) => text.clone().into_bytes(),
        (None, Some(file)) => {
            std::fs::read(file).with_context(|| format!("--body-file {}", file.display()))?
        }
        (None, None) => Vec::new(),
    };
    let default = if body.is_empty() { "GET" } else { "POST" };
    let method = args.method.clone().unwrap_or_else(|| default.into());
    ensure!(is_token(&method), "--method {method}: not an HTTP method");
    let headers: Vec<(String, String)> =
        args.header.iter().map(|h| header(h)).collect::<Result<_>>()?;
    let data = args.data.as_deref().map(read_data).transpose()?;
    if let Some(data) = &data {
        check_fields(&headers, data)?;
    }
    let recorded = match &all.schedule.replay {
        Some(file) => {
            let speed = all.schedule.replay_speed.unwrap_or(1.0);
            let recording = replay::read(file, speed).context("--replay")?;
            Some(Shared::new(recording)).filter(|r| !r.what.is_empty())
        }
        None => None,
    };
    let is_random = args.data_random == Some(true);
    let data = data.map(Shared::new);
    let work = HttpWork { method, headers, body, data, is_random, recorded };
    Plain::new(targets, &work, 0).context("a place to fill in")?;
    Ok(work)
}

fn is_token(text: &str) -> bool {
    let is_mark = |b: u8| b"!#$%&'*+-.^_`|~".contains(&b);
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || is_mark(b))
}

fn is_field_value(text: &str) -> bool {
    !text.contains(['\r', '\n', '\0'])
}

fn header(text: &str) -> Result<(String, String)> {
    let (name, value) = text
        .split_once(':')
        .filter(|(name, value)| is_token(name) && is_field_value(value))
        .with_context(|| format!("--header {text}: expected 'NAME: VALUE'"))?;
    Ok((name.into(), value.trim().into()))
}

fn read_data(path: &Path) -> Result<Data> {
    let wrong = || format!("--data {}", path.display());
    let mut file = csv::Reader::from_path(path).with_context(wrong)?;
    let columns = file.headers().with_context(wrong)?.iter().map(str::to_owned).collect();
    let mut rows = Vec::new();
    for row in file.records() {
        rows.push(row.with_context(wrong)?.iter().map(str::to_owned).collect());
    }
    ensure!(!rows.is_empty(), "--data {}: no row in it", path.display());
    Ok(Data { columns, rows })
}

/// A value with a line break would end its field, and begin another.
fn check_fields(headers: &[(String, String)], data: &Data) -> Result<()> {
    for (name, value) in headers {
        let template = Template::parse(value.as_bytes(), &data.columns)
            .with_context(|| format!("--header {name}"))?;
        for column in template.columns() {
            let bad = data.rows.iter().position(|row| !is_field_value(&row[column]));
            if let Some(row) = bad {
                let column = &data.columns[column];
                bail!("--header {name}: row {} has a line break in column {column}", row + 1);
            }
        }
    }
    Ok(())
}
