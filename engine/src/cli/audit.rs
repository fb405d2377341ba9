//! `onrush audit`: of a stopped node's folder, or of a running node.
//!
//! Exit codes: 0 all holds, 1 something does not, 2 nothing could be looked at.

use std::io::IsTerminal as _;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use http_body_util::{BodyExt as _, Empty};
use indicatif::{ProgressBar, ProgressStyle};

use super::AdminUrl;
use super::admin::{block_on, send};
use crate::audit::{AuditReport, Elsewhere, Progress, audit_with};
use crate::config::{Config, LogKind, Overrides};

/// With `all`, the records topic too, where Kafka is the log.
pub fn offline(
    data: &Path,
    config: Option<&Path>,
    all: bool,
    json: bool,
) -> anyhow::Result<ExitCode> {
    let config = Config::load(config, Overrides::default())?;
    let kafka = (all && config.log.kind == LogKind::Kafka).then_some(config.log.kafka);
    let elsewhere = Elsewhere { store: config.store, kafka };
    let bar = bar()?;
    let report = audit_with(data, &elsewhere, &mut |progress| show(&bar, progress));
    bar.finish_and_clear();
    Ok(tell(&report?, json))
}

pub fn live(url: &str, all: bool, json: bool) -> anyhow::Result<ExitCode> {
    let node = AdminUrl { admin: url.into(), operator: "onrush-audit".into() };
    let body = Empty::new().map_err(|never| match never {}).boxed();
    let bar = bar()?;
    let path = if all { "/v1/audit?all=true" } else { "/v1/audit" };
    bar.set_message("the node is auditing itself");
    let answer = block_on(send(&node, "GET", path, None, body));
    bar.finish_and_clear();
    let answer = answer?;
    if !answer.status.is_success() {
        bail!("the node answered {}: {}", answer.status, answer.detail());
    }
    let report = AuditReport::parse(&answer.body.to_string())
        .with_context(|| format!("the node at {url} answered with another version's report"))?;
    Ok(tell(&report, json))
}

fn tell(report: &AuditReport, json: bool) -> ExitCode {
    if json {
        println!("{}", report.json());
    } else {
        print!("{report}");
    }
    ExitCode::from(report.exit_code())
}

/// Drawn on a terminal only.
fn bar() -> anyhow::Result<ProgressBar> {
    if !std::io::stderr().is_terminal() {
        return Ok(ProgressBar::hidden());
    }
    let style = ProgressStyle::with_template("{msg} [{bar:40}] {percent} %")?.progress_chars("=> ");
    Ok(ProgressBar::new(1).with_style(style))
}

fn show(bar: &ProgressBar, progress: Progress) {
    bar.set_message(progress.step);
    bar.set_length(progress.of.max(1));
    bar.set_position(progress.done);
}
