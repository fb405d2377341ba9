//! From flags to a plan.

use std::collections::HashSet;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};

use crate::check::{self, Balances};
use crate::cli::args::{CheckArgs, ClientArgs, RedeemArgs, ScenarioArgs, ScheduleArgs};
use crate::cli::http;
use crate::clock;
use crate::http::once::Asker;
use crate::http::{Target, tls, two};
use crate::members::Choice;
use crate::plan::{Habits, Item, Load, Plan, RedeemWork, Retry, Shared, Work};
use crate::replay;
use crate::report::threshold::Threshold;
use crate::schedule::{self, Phase, Share};
use crate::work::{ANY, Kind, Request, Workload};

const DEFAULT_TIMEOUT: f64 = 10.0;
/// Members that are asked for their balances, at most: half an hour's work.
const MOST_ASKED: u64 = 10_000_000;
/// With HTTP/2: as many as RFC 9113 wants a server to allow at least.
const DEFAULT_STREAMS: usize = 100;

/// Checks everything that can be checked before the first request.
pub fn plan(args: &ScenarioArgs) -> Result<Plan> {
    let offline = Offline::of(args)?;
    let trust = trust(&args.client)?;
    if trust != tls::Trust::default() {
        tls::trust(&trust).with_context(|| name_of_trust(&args.client))?;
    }
    let targets = targets(args)?;
    let work = match &args.redeem.sale {
        Some(sale) => {
            let items = items(&args.redeem, sale, &targets, offline.timeout)?;
            Work::Redeem(RedeemWork { items, ..redeem_work(args, sale)? })
        }
        None => Work::Http(http::work(args, &targets)?),
    };
    let plan = Plan {
        share: Share { index: 0, of: 1 },
        habits: offline.habits,
        targets,
        threads: offline.threads,
        connections: offline.connections,
        pipeline: offline.pipeline,
        http2: offline.http2,
        load: offline.load,
        seed: args.schedule.seed.unwrap_or_else(clock::fresh_seed),
        timeout: clock::from_seconds(offline.timeout),
        drain: clock::from_seconds(offline.drain),
        max_lag: clock::from_seconds(offline.max_lag),
        max_own_lag: clock::from_seconds(offline.max_own_lag),
        retry: offline.retry,
        work,
        marks: offline.marks,
    };
    if plan.http2 {
        // The first request stands for all.
        let mut bytes = Vec::new();
        let kind = if args.redeem.sale.is_some() { Kind::Redeem } else { Kind::Plain };
        let first = Request { number: 0, kind, phase: 0, attempt: 0, planned: 0, avoid: ANY };
        Workload::new(&plan).compose(&first, 0, &mut bytes);
        two::translate(&bytes, &plan.targets[0].scheme()).context("--http2")?;
    }
    Ok(plan)
}

/// What can be known of a scenario without asking a server.
pub struct Offline {
    pub load: Load,
    pub connections: usize,
    pub threads: usize,
    pub pipeline: usize,
    pub http2: bool,
    pub thresholds: Vec<Threshold>,
    timeout: f64,
    drain: f64,
    max_lag: f64,
    max_own_lag: f64,
    retry: Retry,
    habits: Habits,
    marks: Vec<(String, u64)>,
}

impl Offline {
    pub fn of(args: &ScenarioArgs) -> Result<Self> {
        let client = &args.client;
        let load = load(&args.schedule)?;
        let targets: Vec<Target> =
            args.target.iter().map(|t| Target::unresolved(t)).collect::<Result<_, _>>()?;
        let connections = args.schedule.closed.or(client.connections).unwrap_or(64);
        let threads = client.threads.unwrap_or(1);
        let http2 = client.http2 == Some(true);
        let pipeline = client.pipeline.unwrap_or(if http2 { DEFAULT_STREAMS } else { 1 });
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
            let work = redeem_work(args, sale)?;
            let count = work.last_member - work.first_member;
            ensure!(
                args.check.balances.as_deref() != Some("ask") || count < MOST_ASKED,
                "--balances ask: of {count} members, and the most is {MOST_ASKED}; give a file"
            );
            for i in &args.redeem.items {
                item(i)?;
            }
        } else {
            no_redeem_flags(&args.redeem)?;
            ensure!(args.check.check != Some(true), "--check: needs --sale");
            // Without a target its path has no places; fields and body may.
            let anywhere = Target::unresolved("http://anywhere/")?;
            let known = if targets.is_empty() { vec![anywhere] } else { targets };
            http::work(args, &known)?;
        }
        check(args)?;
        let names = load.phase_names();
        let mut thresholds = Vec::new();
        for text in &args.check.threshold {
            let threshold = Threshold::parse(text)?;
            threshold.check_phases(&names)?;
            thresholds.push(threshold);
        }
        let retry = retry(client, args.redeem.sale.is_some())?;
        Ok(Self {
            load,
            connections,
            threads: threads.min(connections),
            pipeline,
            http2,
            thresholds,
            timeout,
            drain,
            max_lag,
            max_own_lag,
            retry,
            habits: habits(client)?,
            marks: args.schedule.mark.iter().map(|m| mark(m)).collect::<Result<_>>()?,
        })
    }
}

/// Which attempts are tried again, and when.
fn retry(client: &ClientArgs, has_keys: bool) -> Result<Retry> {
    let mut retry = if has_keys { Retry::until_answered() } else { Retry::never() };
    if let Some(most_attempts) = client.attempts {
        retry = Retry { most_attempts, ..Retry::until_answered() };
    }
    let is_any = !client.retry_on.is_empty() || client.retry_wait.is_some();
    ensure!(!is_any || retry.most_attempts != 1, "--retry-on, --retry-wait: need --attempts");
    if !client.retry_on.is_empty() {
        let is_refusal = |status: &u16| (400..600).contains(status);
        ensure!(client.retry_on.iter().all(is_refusal), "--retry-on: statuses from 400 to 599");
        retry.statuses.clone_from(&client.retry_on);
    }
    if let Some(wait) = &client.retry_wait {
        let number = |text: &str| text.parse::<f64>().ok();
        let waits = wait.split_once('-').and_then(|(a, b)| number(a).zip(number(b)));
        let is_wait = |(first, longest): &(f64, f64)| {
            (0.001..=3600.0).contains(first) && (*first..=3600.0).contains(longest)
        };
        let (first, longest) = waits.filter(is_wait).with_context(|| {
            format!("--retry-wait {wait}: expected FIRST-LONGEST, 0.001 to 3600 seconds")
        })?;
        retry.first_wait = clock::from_seconds(first);
        retry.longest_wait = clock::from_seconds(longest);
    }
    Ok(retry)
}

/// Takes out a file's thresholds that name a phase which flags have replaced; gives them back.
pub fn take_foreign_thresholds(args: &mut ScenarioArgs) -> Result<Vec<String>> {
    let names = load(&args.schedule)?.phase_names();
    let is_foreign = |text: &mut String| {
        Threshold::parse(text).is_ok_and(|threshold| threshold.check_phases(&names).is_err())
    };
    Ok(args.check.threshold.extract_if(.., is_foreign).collect())
}

/// Whom connections over TLS trust.
pub fn trust(client: &ClientArgs) -> Result<tls::Trust> {
    let anybody = client.insecure == Some(true);
    let read = |ca: &PathBuf| std::fs::read(ca).with_context(|| name_of_trust(client));
    Ok(tls::Trust { ca: client.ca.as_ref().map(read).transpose()?, anybody })
}

fn name_of_trust(client: &ClientArgs) -> String {
    client.ca.as_ref().map_or("--insecure".into(), |ca| format!("--ca {}", ca.display()))
}

fn habits(client: &ClientArgs) -> Result<Habits> {
    let slow_readers = client.slow_readers.unwrap_or(0.0);
    let slow_rate = client.slow_rate.unwrap_or(1024);
    let reopened_per_second = client.reopen.unwrap_or(0.0);
    ensure!((0.0..=1.0).contains(&slow_readers), "--slow-readers: a share is between 0 and 1");
    ensure!((1..=1 << 30).contains(&slow_rate), "--slow-rate: between 1 and 2^30 bytes per second");
    ensure!(
        (0.0..=1e5).contains(&reopened_per_second),
        "--reopen: between 0 and 100000 per second"
    );
    Ok(Habits { slow_readers, slow_rate, reopened_per_second })
}

fn targets(args: &ScenarioArgs) -> Result<Vec<Target>> {
    ensure!(!args.target.is_empty(), "--target: where to? Give http://HOST[:PORT][/PATH]");
    Ok(args.target.iter().map(|t| Target::parse(t)).collect::<Result<_, _>>()?)
}

/// How to check the ledger, where that is asked for.
pub fn check(args: &ScenarioArgs) -> Result<Option<check::Options>> {
    let CheckArgs { check, admin, store, store_wait, balances, .. } = &args.check;
    if *check != Some(true) {
        let is_alone = admin.is_empty() && store.is_none() && balances.is_none();
        ensure!(is_alone, "--admin, --store, --balances: need --check");
        return Ok(None);
    }
    let store = store.as_deref().map(|s| s.parse().map_err(|e| anyhow!("--store: {e}")));
    let store_wait = store_wait.unwrap_or(30.0);
    ensure!((0.0..=86_400.0).contains(&store_wait), "--store-wait: 0 to 86400 seconds");
    Ok(Some(check::Options {
        admin: admin.iter().map(|a| Target::parse(a)).collect::<Result<_, _>>()?,
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
    let speed = args.replay_speed.unwrap_or(1.0);
    ensure!((0.001..=1e6).contains(&speed), "--replay-speed: between 0.001 and 1000000");
    if let Some(file) = &args.replay {
        let is_alone = args.rate.is_none() && args.seconds.is_none() && args.phase.is_empty();
        ensure!(is_alone, "replay: a recording has its own times, so no rate, seconds or phase");
        let recording = replay::read(file, speed).context("--replay")?;
        let phases = vec![recording.phase()];
        schedule::check(&phases).context("--replay")?;
        let (arrivals, recorded) = (args.arrivals.unwrap_or_default(), Shared::new(recording));
        return Ok(Load::Open { phases, arrivals, recorded: Some(recorded) });
    }
    ensure!(args.replay_speed.is_none(), "--replay-speed: needs --replay");
    let phases = if args.phase.is_empty() {
        let rate = args.rate.unwrap_or(100.0);
        vec![Phase { name: "load".into(), seconds, from_rate: rate, to_rate: rate }]
    } else {
        ensure!(args.rate.is_none(), "rate: each phase has its own");
        let mut phases: Vec<_> = args.phase.iter().map(|p| p.phase.clone()).collect();
        let all = schedule::total_seconds(&phases);
        for phase in &mut phases {
            phase.seconds *= args.seconds.unwrap_or(all) / all;
        }
        phases
    };
    schedule::check(&phases)?;
    let names: HashSet<_> = phases.iter().map(|p| &p.name).collect();
    ensure!(names.len() == phases.len(), "two phases have the same name");
    Ok(Load::Open { phases, arrivals: args.arrivals.unwrap_or_default(), recorded: None })
}

fn mark(text: &str) -> Result<(String, u64)> {
    let wrong = || format!("--mark {text}: expected NAME=SECONDS");
    let (name, at) = text.split_once('=').with_context(wrong)?;
    let at: f64 = at.parse().with_context(wrong)?;
    ensure!(!name.is_empty() && (0.0..=1e7).contains(&at), wrong());
    Ok((name.into(), clock::from_seconds(at)))
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
        ("bots", args.bots.is_some()),
        ("hammer", args.hammer.is_some()),
    ];
    let given = unused.iter().find(|(_, given)| *given);
    given.map_or(Ok(()), |(name, _)| bail!("--{name}: needs --sale"))
}

/// All of the work but its items.
fn redeem_work(all: &ScenarioArgs, sale: &str) -> Result<RedeemWork> {
    let args = &all.redeem;
    ensure!(is_id(sale), "--sale {sale}: 1 to 64 characters of A-Z a-z 0-9 . _ -");
    let members = members(args.members.as_deref().unwrap_or("1-1000"))?;
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
    let hammer = args.hammer.unwrap_or(10);
    ensure!((1..=1000).contains(&hammer), "--hammer: between 1 and 1000 keys");
    Ok(RedeemWork {
        sale: sale.into(),
        items: Vec::new(),
        first_member: members.first,
        last_member: members.last,
        listed: members.listed,
        choice,
        polls: phase_polls,
        quantity,
        holds: share("holds", args.holds, 0.0)?,
        duplicates: share("duplicates", args.duplicates, 0.0)?,
        bots: share("bots", args.bots, 0.0)?,
        hammer,
        confirms,
        cancels,
        think: clock::from_seconds(think),
    })
}

/// A range, or a list and its places.
struct Members {
    first: u64,
    last: u64,
    listed: Option<Shared<Vec<u64>>>,
}

fn members(text: &str) -> Result<Members> {
    let number = |part: &str| part.parse::<u64>().ok();
    let range = text.split_once('-').and_then(|(a, b)| number(a).zip(number(b)));
    if let Some((first, last)) = range {
        let wrong = "expected FIRST-LAST, the smaller first";
        ensure!(first <= last && last < u64::MAX, "--members {text}: {wrong}");
        return Ok(Members { first, last, listed: None });
    }
    let wrong = || format!("--members {text}: neither FIRST-LAST nor a CSV file");
    let mut file = csv::Reader::from_path(text).with_context(wrong)?;
    let column = file.headers().with_context(wrong)?.iter().position(|name| name == "member");
    let column = column.with_context(|| format!("--members {text}: no column `member`"))?;
    let mut list = Vec::new();
    for row in file.records() {
        let row = row.with_context(wrong)?;
        let member = row.get(column).and_then(number);
        list.push(member.with_context(|| {
            format!("--members {text}: row {} has no number of a member", list.len() + 1)
        })?);
    }
    ensure!(!list.is_empty(), "--members {text}: no row in it");
    Ok(Members { first: 0, last: list.len() as u64 - 1, listed: Some(Shared::new(list)) })
}

/// The items as given, or the sale's; the first one with its share.
fn items(args: &RedeemArgs, sale: &str, targets: &[Target], timeout: f64) -> Result<Vec<Item>> {
    let mut items = if args.items.is_empty() {
        items_of_sale(targets, sale, timeout)?
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

fn items_of_sale(targets: &[Target], sale: &str, timeout: f64) -> Result<Vec<Item>> {
    let mut asker = Asker::new(targets, Duration::from_secs_f64(timeout));
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

#[cfg(test)]
mod tests {
    use super::*;

    fn weights(items: &str, hot_item: f64) -> Vec<f64> {
        let items = items.split(',').map(str::to_owned).collect();
        let args = RedeemArgs { items, hot_item: Some(hot_item), ..RedeemArgs::default() };
        let items = super::items(&args, "s", &[], 1.0).unwrap();
        items.iter().map(|i| i.weight).collect()
    }

    #[test]
    fn the_hot_item_has_its_share_and_the_others_share_the_rest_by_their_weights() {
        assert_eq!(weights("a,b,c", 0.5), [0.5, 0.25, 0.25]);
        assert_eq!(weights("a:9,b:3,c:1", 0.2), [0.2, 0.8 * 3.0 / 4.0, 0.8 / 4.0]);
        assert_eq!(weights("a,b", 0.0), [0.0, 1.0]);
        assert_eq!(weights("a,b", 1.0), [1.0, 0.0]);
        // With nothing beside it, all is its.
        assert_eq!(weights("a", 0.7), [0.7]);
        assert_eq!(weights("a,b:0", 0.7), [0.7, 0.0]);
    }
}
