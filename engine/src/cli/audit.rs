//! `onrush audit`: of a stopped node's folder, or of a running node.

use std::path::Path;
use std::process::ExitCode;

use http_body_util::{BodyExt as _, Empty};

use super::AdminUrl;
use super::admin::{block_on, send};

pub fn offline(data: &Path, json: bool) -> anyhow::Result<ExitCode> {
    let _ = json;
    anyhow::bail!("cannot audit {} yet", data.display())
}

pub fn live(url: &str, json: bool) -> anyhow::Result<ExitCode> {
    let node = AdminUrl { admin: url.into(), operator: "onrush-audit".into() };
    let body = Empty::new().map_err(|never| match never {}).boxed();
    let answer = block_on(send(&node, "GET", "/v1/audit", None, body))?;
    let _ = json;
    println!("{}", serde_json::to_string_pretty(&answer.body)?);
    Ok(ExitCode::SUCCESS)
}
