//! From flags to a plan.

use std::collections::HashSet;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};

use crate::check::{self, Balances};
use crate::cli::args::{CheckArgs, HttpArgs, RedeemArgs, ScenarioArgs, ScheduleArgs};
use crate::clock;
use crate::http::Target;
use crate::http::once::Asker;
use crate::members::Choice;
use crate::plan::{HttpWork, Item, Load, Plan, RedeemWork, Retry, Work};
use crate::report::threshold::Threshold;
use crate::schedule::{self, Phase};

const DEFAULT_TIMEOUT: f64 = 10.0;

/// Checks everything that can be checked before the first request.
pub fn plan(args: &ScenarioArgs) -> Result<Plan> {
    let offline = Offline::of(args)?;
    let targets = targets(args)?;
    let work = match &args.redeem.sale {
        Some(sale) => {
            let items = items(&args.redeem, sale, &targets[0], offline.timeout)?;
            Work::Redeem(RedeemWork { items, ..redeem_work(args, sale)? })
        }
        None => Work::Http(http_work(&args.http)?),
    };
    Ok(Plan {
        targets,
        threads: offline.threads,
        connections: offline.connections,
        pipeline: offline.pipeline,
        load: offline.load,
        seed: args.schedule.seed.unwrap_or_else(clock::fresh_seed),
        timeout: clock::from_seconds(offline.timeout),
        drain: clock::from_seconds(offline.drain),
        max_lag: clock::from_seconds(offline.max_lag),
        max_own_lag: clock::from_seconds(offline.max_own_lag),
        retry: offline.retry,
        work,
        marks: offline.marks,
    })
}

/// What can be known of a scenario without asking a server.
pub struct Offline {
    pub load: Load,
    pub connections: usize,
    pub threads: usize,
    pub pipeline: usize,
    pub thresholds: Vec<Threshold>,
    timeout: f64,
    drain: f64,
    max_lag: f64,
    max_own_lag: f64,
    retry: Retry,
    marks: Vec<(String, u64)>,
}

impl Offline {
    pub fn of(args: &ScenarioArgs) -> Result<Self> {
        let client = &args.client;
        let load = load(&args.schedule)?;
        let connections = args.schedule.closed.or(client.connections).unwrap_or(64);
        let threads = client.threads.unwrap_or(1);
        let pipeline = client.pipeline.unwrap_or(1);
        ensure!((1..=100_000).contains(&connections), "--connections: between 1 and 100000");
        ensure!((1..=256).contains(&threads), "--threads: between 1 and 256");
        ensure!((1..=1024).contains(&pipeline), "--pipeline: between 1 and 1024");
        let timeout = client.timeout.unwrap_or(DEFAULT_TIMEOUT);
        let drain = client.drain.unwrap_or(30.0);
        let max_lag = client.max_lag.unwrap_or(10.0);
        let max_own_lag = client.max_own_lag.unwrap_or(0.1);
        for (name, value) in [
            ("timeout", timeout),
            ("drain", drain),
            ("max-lag", max_lag),
            ("max-own-lag", max_own_lag),
        ] {
            let range = 0.001..=86_400.0;
            ensure!(range.contains(&value), "--{name}: between 0.001 and 86400 seconds");
        }
        if let Some(sale) = &args.redeem.sale {
            ensure!(
                args.http.is_empty(),
                "--sale: has its own requests, without --method, --header or --body"
            );
            redeem_work(args, sale)?;
            for i in &args.redeem.items {
                item(i)?;
            }
        } else {
            no_redeem_flags(&args.redeem)?;
            ensure!(args.check.check != Some(true), "--check: needs --sale");
            http_work(&args.http)?;
        }
        check(args)?;
        let names: Vec<String> = match &load {
            Load::Open { phases, .. } => phases.iter().map(|p| p.name.clone()).collect(),
            Load::Closed { .. } => vec!["closed".into()],
        };
        let mut thresholds = Vec::new();
        for text in &args.check.threshold {
            let threshold = Threshold::parse(text)?;
            threshold.check_phases(&names)?;
            thresholds.push(threshold);
        }
        let mut retry =
            if args.redeem.sale.is_some() { Retry::until_answered() } else { Retry::never() };
        if let Some(most_attempts) = client.attempts {
            retry = Retry { most_attempts, ..Retry::until_answered() };
        }
        Ok(Self {
            load,
            connections,
            threads: threads.min(connections),
            pipeline,
            thresholds,
            timeout,
            drain,
            max_lag,
            max_own_lag,
            retry,
            marks: args.schedule.mark.iter().map(|m| mark(m)).collect::<Result<_>>()?,
        })
    }
}

fn targets(args: &ScenarioArgs) -> Result<Vec<Target>> {
    ensure!(!args.target.is_empty(), "--target: where to? Give http://HOST[:PORT][/PATH]");
    Ok(args.target.iter().map(|t| Target::parse(t)).collect::<Result<_, _>>()?)
}

/// How to check the ledger, where that is asked for.
pub fn check(args: &ScenarioArgs) -> Result<Option<check::Options>> {
    let CheckArgs { check, admin, store, store_wait, balances, threshold: _ } = &args.check;
    if *check != Some(true) {
        let is_alone = admin.is_none() && store.is_none() && balances.is_none();
        ensure!(is_alone, "--admin, --store, --balances: need --check");
        return Ok(None);
    }
    let store = store.as_deref().map(|s| s.parse().map_err(|e| anyhow!("--store: {e}")));
    let store_wait = store_wait.unwrap_or(30.0);
    ensure!((0.0..=86_400.0).contains(&store_wait), "--store-wait: 0 to 86400 seconds");
    Ok(Some(check::Options {
        admin: admin.as_deref().map(Target::parse).transpose()?,
        store: store.transpose()?,
        store_wait: Duration::from_secs_f64(store_wait),
        balances: match balances.as_deref() {
            None => Balances::Unknown,
            Some("ask") => Balances::Ask,
            Some(file) => Balances::File(file.into()),
        },
        timeout: Duration::from_secs_f64(args.client.timeout.unwrap_or(DEFAULT_TIMEOUT)),
        quiet: false,
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
        ensure!(args.rate.is_none(), "rate: each phase has its own");
        ensure!(args.seconds.is_none(), "--seconds: each phase has its own");
        args.phase.iter().map(|p| p.phase.clone()).collect()
    };
    schedule::check(&phases)?;
    let names: HashSet<_> = phases.iter().map(|p| &p.name).collect();
    ensure!(names.len() == phases.len(), "two phases have the same name");
    Ok(Load::Open { phases, arrivals: args.arrivals.unwrap_or_default() })
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
        (Some(_), Some(_)) => bail!("body and body-file exclude each other"),
        (Some(text), None) => text.clone().into_bytes(),
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

fn no_redeem_flags(args: &RedeemArgs) -> Result<()> {
    let unused = [
        ("members", args.members.is_some()),
        ("choice", args.choice.is_some()),
        ("items", !args.items.is_empty()),
        ("hot-item", args.hot_item.is_some()),
        ("quantity", args.quantity.is_some()),
        ("polls", args.polls.is_some()),
        ("holds", args.holds.is_some()),
        ("confirms", args.confirms.is_some()),
        ("cancels", args.cancels.is_some()),
        ("think", args.think.is_some()),
        ("duplicates", args.duplicates.is_some()),
    ];
    let given = unused.iter().find(|(_, given)| *given);
    given.map_or(Ok(()), |(name, _)| bail!("--{name}: needs --sale"))
}

/// All of the work but its items.
fn redeem_work(all: &ScenarioArgs, sale: &str) -> Result<RedeemWork> {
    let args = &all.redeem;
    ensure!(is_id(sale), "--sale {sale}: 1 to 64 characters of A-Z a-z 0-9 . _ -");
    let members = args.members.as_deref().unwrap_or("1-1000");
    let wrong = || format!("--members {members}: expected FIRST-LAST");
    let (first, last) = members.split_once('-').with_context(wrong)?;
    let first_member: u64 = first.parse().with_context(wrong)?;
    let last_member: u64 = last.parse().with_context(wrong)?;
    ensure!(first_member <= last_member && last_member < u64::MAX, wrong());
    let choice = args.choice.as_deref().unwrap_or("uniform");
    let choice = Choice::parse(choice).with_context(|| {
        format!("--choice {choice}: expected uniform, zipf:EXPONENT or hot:COUNT:SHARE")
    })?;
    let share = |name: &str, value: Option<f64>, default: f64| {
        let value = value.unwrap_or(default);
        ensure!((0.0..=1.0).contains(&value), "--{name} {value}: a share is between 0 and 1");
        Ok(value)
    };
    let (confirms, cancels) =
        (share("confirms", args.confirms, 0.8)?, share("cancels", args.cancels, 0.15)?);
    ensure!(confirms + cancels <= 1.0 + 1e-9, "--confirms and --cancels exceed 1");
    share("hot-item", args.hot_item, 0.0)?;
    let polls = share("polls", args.polls, 0.0)?;
    let mut phase_polls = vec![polls];
    if !all.schedule.phase.is_empty() {
        let of_phase = |p: &crate::cli::phase::PhaseArg| share("polls", p.polls, polls);
        phase_polls = all.schedule.phase.iter().map(of_phase).collect::<Result<_>>()?;
    }
    let think = args.think.unwrap_or(1.0);
    ensure!((0.0..=3600.0).contains(&think), "--think: between 0 and 3600 seconds");
    let quantity = args.quantity.unwrap_or(1);
    ensure!(quantity > 0, "--quantity: at least 1");
    Ok(RedeemWork {
        sale: sale.into(),
        items: Vec::new(),
        first_member,
        last_member,
        choice,
        polls: phase_polls,
        quantity,
        holds: share("holds", args.holds, 0.0)?,
        duplicates: share("duplicates", args.duplicates, 0.0)?,
        confirms,
        cancels,
        think: clock::from_seconds(think),
    })
}

/// The items as given, or the sale's; the first one with its share.
fn items(args: &RedeemArgs, sale: &str, target: &Target, timeout: f64) -> Result<Vec<Item>> {
    let mut items = if args.items.is_empty() {
        items_of_sale(target, sale, timeout)?
    } else {
        args.items.iter().map(|i| item(i)).collect::<Result<_>>()?
    };
    ensure!(u16::try_from(items.len()).is_ok(), "--items: too many");
    if let Some(share) = args.hot_item {
        let others: f64 = items.iter().skip(1).map(|i| i.weight).sum();
        for (index, item) in items.iter_mut().enumerate() {
            item.weight = match index {
                0 => share,
                _ if others > 0.0 => item.weight * (1.0 - share) / others,
                _ => 0.0,
            };
        }
    }
    ensure!(items.iter().map(|i| i.weight).sum::<f64>() > 0.0, "--items: every weight is 0");
    Ok(items)
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
