//! From flags to a plan.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::check::{self, Balances};
use crate::cli::args::{HttpArgs, RedeemArgs, RunArgs, ScheduleArgs};
use crate::clock;
use crate::http::Target;
use crate::http::once::Asker;
use crate::plan::{HttpWork, Item, Load, Plan, RedeemWork, Retry, Work};
use crate::schedule::{self, Phase};

/// Checks everything that can be checked before the first request.
pub fn plan(args: &RunArgs) -> Result<Plan> {
    let targets = args.target.iter().map(|t| Target::parse(t)).collect::<Result<Vec<_>, _>>()?;
    let client = &args.client;
    let load = load(&args.schedule)?;
    let connections = args.schedule.closed.unwrap_or(client.connections);
    ensure!((1..=100_000).contains(&connections), "--connections: between 1 and 100000");
    ensure!((1..=256).contains(&client.threads), "--threads: between 1 and 256");
    ensure!((1..=1024).contains(&client.pipeline), "--pipeline: between 1 and 1024");
    for (name, value) in
        [("timeout", client.timeout), ("drain", client.drain), ("max-lag", client.max_lag)]
    {
        ensure!((0.001..=86_400.0).contains(&value), "--{name}: between 0.001 and 86400 seconds");
    }
    let work = match &args.redeem.sale {
        Some(sale) => Work::Redeem(redeem_work(&args.redeem, sale, &targets[0], client.timeout)?),
        None => Work::Http(http_work(&args.http)?),
    };
    let mut retry =
        if args.redeem.sale.is_some() { Retry::until_answered() } else { Retry::never() };
    if let Some(most_attempts) = client.attempts {
        retry = Retry { most_attempts, ..Retry::until_answered() };
    }
    Ok(Plan {
        targets,
        threads: client.threads.min(connections),
        connections,
        pipeline: client.pipeline,
        load,
        seed: args.schedule.seed.unwrap_or_else(clock::fresh_seed),
        timeout: clock::from_seconds(client.timeout),
        drain: clock::from_seconds(client.drain),
        max_lag: clock::from_seconds(client.max_lag),
        retry,
        work,
        marks: args.schedule.mark.iter().map(|m| mark(m)).collect::<Result<_>>()?,
    })
}

/// How to check the ledger, where that is asked for.
pub fn check(args: &RunArgs) -> Result<Option<check::Options>> {
    let asked = &args.check;
    if !asked.check {
        return Ok(None);
    }
    let store = asked.store.as_deref().map(|s| {
        s.strip_prefix("sqlite:")
            .map(PathBuf::from)
            .with_context(|| format!("--store {s}: expected sqlite:DIR"))
    });
    ensure!((0.0..=86_400.0).contains(&asked.store_wait), "--store-wait: 0 to 86400 seconds");
    Ok(Some(check::Options {
        admin: asked.admin.as_deref().map(Target::parse).transpose()?,
        store: store.transpose()?,
        store_wait: Duration::from_secs_f64(asked.store_wait),
        balances: match asked.balances.as_deref() {
            None => Balances::Unknown,
            Some("ask") => Balances::Ask,
            Some(file) => Balances::File(file.into()),
        },
        timeout: Duration::from_secs_f64(args.client.timeout),
        quiet: args.output.quiet,
    }))
}

fn load(args: &ScheduleArgs) -> Result<Load> {
    let seconds = args.seconds.unwrap_or(10.0);
    if args.closed.is_some() {
        let one = Phase { name: "closed".into(), seconds, from_rate: 1e4, to_rate: 1e4 };
        schedule::check(&[one])?;
        return Ok(Load::Closed { nanoseconds: clock::from_seconds(seconds) });
    }
    let phases = if args.phase.is_empty() {
        let rate = args.rate.unwrap_or(100.0);
        vec![Phase { name: "load".into(), seconds, from_rate: rate, to_rate: rate }]
    } else {
        ensure!(args.seconds.is_none(), "--seconds: each --phase has its own");
        args.phase.iter().map(|p| phase(p)).collect::<Result<_>>()?
    };
    schedule::check(&phases)?;
    Ok(Load::Open { phases, arrivals: args.arrivals })
}

fn phase(text: &str) -> Result<Phase> {
    let wrong = || format!("--phase {text}: expected NAME:SECONDS:RATE or NAME:SECONDS:FROM-TO");
    let parts: Vec<_> = text.split(':').collect();
    let [name, seconds, rate] = parts[..] else { bail!(wrong()) };
    let (from, to) = rate.split_once('-').unwrap_or((rate, rate));
    ensure!(!name.is_empty(), wrong());
    Ok(Phase {
        name: name.into(),
        seconds: seconds.parse().with_context(wrong)?,
        from_rate: from.parse().with_context(wrong)?,
        to_rate: to.parse().with_context(wrong)?,
    })
}

fn mark(text: &str) -> Result<(String, u64)> {
    let wrong = || format!("--mark {text}: expected NAME=SECONDS");
    let (name, at) = text.split_once('=').with_context(wrong)?;
    let at: f64 = at.parse().with_context(wrong)?;
    ensure!(!name.is_empty() && (0.0..=1e7).contains(&at), wrong());
    Ok((name.into(), clock::from_seconds(at)))
}

fn http_work(args: &HttpArgs) -> Result<HttpWork> {
    let body = match (&args.body, &args.body_file) {
        (Some(text), _) => text.clone().into_bytes(),
        (None, Some(file)) => {
            std::fs::read(file).with_context(|| format!("--body-file {}", file.display()))?
        }
        (None, None) => Vec::new(),
    };
    let default = if body.is_empty() { "GET" } else { "POST" };
    let method = args.method.clone().unwrap_or_else(|| default.into());
    let is_token = |s: &str| {
        !s.is_empty()
            && s.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
    };
    ensure!(is_token(&method), "--method {method}: not an HTTP method");
    let headers = args
        .header
        .iter()
        .map(|h| {
            let (name, value) = h
                .split_once(':')
                .filter(|(n, v)| is_token(n) && !v.contains(['\r', '\n', '\0']))
                .with_context(|| format!("--header {h}: expected 'NAME: VALUE'"))?;
            Ok((name.into(), value.trim().into()))
        })
        .collect::<Result<_>>()?;
    Ok(HttpWork { method, headers, body })
}

fn redeem_work(args: &RedeemArgs, sale: &str, target: &Target, timeout: f64) -> Result<RedeemWork> {
    ensure!(is_id(sale), "--sale {sale}: 1 to 64 characters of A-Z a-z 0-9 . _ -");
    let wrong = || format!("--members {}: expected FIRST-LAST", args.members);
    let (first, last) = args.members.split_once('-').with_context(wrong)?;
    let first_member: u64 = first.parse().with_context(wrong)?;
    let last_member: u64 = last.parse().with_context(wrong)?;
    ensure!(first_member <= last_member && last_member < u64::MAX, wrong());
    for (name, share) in [
        ("holds", args.holds),
        ("confirms", args.confirms),
        ("cancels", args.cancels),
        ("duplicates", args.duplicates),
    ] {
        ensure!((0.0..=1.0).contains(&share), "--{name} {share}: a share is between 0 and 1");
    }
    ensure!(args.confirms + args.cancels <= 1.0 + 1e-9, "--confirms and --cancels exceed 1");
    ensure!((0.0..=3600.0).contains(&args.think), "--think: between 0 and 3600 seconds");
    ensure!(args.quantity > 0, "--quantity: at least 1");
    let items = if args.items.is_empty() {
        items_of_sale(target, sale, timeout)?
    } else {
        args.items.iter().map(|i| item(i)).collect::<Result<_>>()?
    };
    ensure!(u16::try_from(items.len()).is_ok(), "--items: too many");
    ensure!(items.iter().map(|i| i.weight).sum::<f64>() > 0.0, "--items: every weight is 0");
    Ok(RedeemWork {
        sale: sale.into(),
        items,
        first_member,
        last_member,
        quantity: args.quantity,
        holds: args.holds,
        duplicates: args.duplicates,
        confirms: args.confirms,
        cancels: args.cancels,
        think: clock::from_seconds(args.think),
    })
}

fn is_id(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}

fn item(text: &str) -> Result<Item> {
    let (sku, weight) = text.split_once(':').unwrap_or((text, "1"));
    let wrong = || format!("--items {text}: expected SKU or SKU:WEIGHT");
    let weight: f64 = weight.parse().with_context(wrong)?;
    ensure!(is_id(sku) && (0.0..=1e9).contains(&weight), wrong());
    Ok(Item { sku: sku.into(), weight })
}

fn items_of_sale(target: &Target, sale: &str, timeout: f64) -> Result<Vec<Item>> {
    let mut asker = Asker::new(target, Duration::from_secs_f64(timeout));
    let reply = asker.get(&format!("/v1/sales/{sale}"), None)?;
    ensure!(
        reply.status == 200,
        "GET /v1/sales/{sale} answered {}: {}",
        reply.status,
        String::from_utf8_lossy(&reply.body[..reply.body.len().min(300)])
    );
    let parsed: serde_json::Value = serde_json::from_slice(&reply.body)
        .with_context(|| format!("GET /v1/sales/{sale}: the answer is not JSON"))?;
    let items: Vec<Item> = parsed["items"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|i| i["sku"].as_str())
        .filter(|sku| is_id(sku))
        .map(|sku| Item { sku: sku.into(), weight: 1.0 })
        .collect();
    ensure!(!items.is_empty(), "GET /v1/sales/{sale}: the answer has no items; give --items");
    Ok(items)
}
