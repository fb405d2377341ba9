//! `onrush audit`: of a stopped node's folder, of a running node, or of all nodes as one.
//!
//! Exit codes: 0 all holds, 1 something does not, 2 nothing could be looked at.

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use http_body_util::{BodyExt as _, Empty};
use indicatif::{ProgressBar, ProgressStyle};

use super::AdminUrl;
use super::admin::{block_on, send};
use crate::audit::pools::{Pool, PoolJournal, Pools};
use crate::audit::together::together;
use crate::audit::{AuditReport, Elsewhere, Progress, audit_with};
use crate::config::{Config, LogKind, Overrides, StockKind};
use crate::stock::redis::endpoint::Endpoint;
use crate::stock::redis::inspect;

/// Running nodes and the pools that they share are looked at this often before something that does
/// not hold between them is told: units that were on their way have arrived by then.
const LOOKS: u32 = 3;
const BETWEEN_LOOKS: Duration = Duration::from_secs(1);

/// Audits what is named: data folders, running nodes, or all nodes of the settings. With `all`,
/// Kafka and Redis too, where the settings use them.
pub fn run(
    folders: &[PathBuf],
    urls: &[String],
    config: Option<&Path>,
    all: bool,
    json: bool,
) -> anyhow::Result<ExitCode> {
    // A node that is asked alone needs no settings of ours: it has its own.
    let is_one_url = folders.is_empty() && urls.len() == 1;
    let config = match config {
        None if is_one_url => Config::default(),
        path => Config::load(path, Overrides::default())?,
    };
    let mut urls = urls.to_vec();
    if folders.is_empty() && urls.is_empty() {
        if config.cluster.nodes.is_empty() {
            bail!(
                "audit what? Name a --data folder, an --admin URL, or settings with nodes in them"
            );
        }
        urls = config.cluster.nodes.iter().map(|node| node.admin.clone()).collect();
    }
    let is_mall = folders.len() + urls.len() > 1;
    let with_pools = is_mall && all && config.stock.kind == StockKind::Redis;
    let pools = || with_pools.then(|| read_pools(&config)).transpose();
    let look = || -> anyhow::Result<AuditReport> {
        let before = pools()?;
        let mut reports = Vec::new();
        for folder in folders {
            reports.push(offline(folder, &config, all)?);
        }
        for url in &urls {
            reports.push(live(url, all)?);
        }
        if !is_mall {
            return Ok(reports.remove(0));
        }
        let pools = before.zip(pools()?).map(|(before, after)| Pools { before, after });
        Ok(together(reports, pools.as_ref()))
    };
    let mut report = look()?;
    for _ in 1..LOOKS {
        if report.passes() || !with_pools || !report.subject.is_live {
            break;
        }
        std::thread::sleep(BETWEEN_LOOKS);
        report = look()?;
    }
    Ok(tell(&report, json))
}

fn offline(data: &Path, config: &Config, all: bool) -> anyhow::Result<AuditReport> {
    let kafka = (all && config.log.kind == LogKind::Kafka).then(|| config.log.kafka.clone());
    let elsewhere = Elsewhere { store: config.store.clone(), kafka };
    let bar = bar()?;
    let report = audit_with(data, &elsewhere, &mut |progress| show(&bar, progress));
    bar.finish_and_clear();
    Ok(report?)
}

fn live(url: &str, all: bool) -> anyhow::Result<AuditReport> {
    let node = AdminUrl { admin: url.into(), operator: "onrush-audit".into() };
    let body = Empty::new().map_err(|never| match never {}).boxed();
    let bar = bar()?;
    let path = if all { "/v1/audit?all=true" } else { "/v1/audit" };
    bar.set_message(format!("the node at {url} is auditing itself"));
    let answer = block_on(send(&node, "GET", path, None, body));
    bar.finish_and_clear();
    let answer = answer?;
    if !answer.status.is_success() {
        bail!("the node at {url} answered {}: {}", answer.status, answer.detail());
    }
    AuditReport::parse(&answer.body.to_string())
        .with_context(|| format!("the node at {url} answered with another version's report"))
}

/// What Redis says of every item's pool.
fn read_pools(config: &Config) -> anyhow::Result<Vec<Pool>> {
    let units = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    let found = inspect::pools(&Endpoint::new(&config.stock.redis)?, None, None)?;
    Ok(found
        .into_iter()
        .map(|pool| Pool {
            is_open: pool.state == "open",
            epoch: pool.epoch,
            server: pool.server,
            is_sold_out: pool.is_sold_out,
            total: units(pool.added) - units(pool.withdrawn),
            free: units(pool.pool),
            journals: pool
                .journals
                .into_iter()
                .map(|j| {
                    let of = PoolJournal {
                        incarnation: j.incarnation,
                        epoch: j.epoch,
                        granted: units(j.granted),
                        accepted: units(j.accepted),
                        returned: units(j.returned),
                        confirmed: units(j.confirmed),
                        reversed: units(j.reversed),
                    };
                    (j.journal, of)
                })
                .collect(),
            sale: pool.sale,
            sku: pool.sku,
        })
        .collect())
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
