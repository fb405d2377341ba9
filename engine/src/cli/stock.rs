//! `onrush stock`: the pools of units in Redis, as they stand there.
//!
//! Exit codes: 0 good, 1 a pool waits for something, 2 Redis or the pool could not be found.

use std::collections::HashMap;
use std::path::Path;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use anyhow::Context as _;

use crate::config::{Config, Overrides, StockKind};
use crate::stock::redis::endpoint::Endpoint;
use crate::stock::redis::inspect::{PoolReport, pools, rebuild as begin};

/// How often a rebuild is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);

fn endpoint(config: Option<&Path>) -> anyhow::Result<Endpoint> {
    let config = Config::load(config, Overrides::default())?;
    anyhow::ensure!(
        config.stock.kind == StockKind::Redis,
        "stock.kind is \"journal\": the pools are the node's own, and no Redis is asked"
    );
    Ok(Endpoint::new(&config.stock.redis)?)
}

/// Shows pools: all, a sale's, or one.
pub fn inspect(
    config: Option<&Path>,
    sale: Option<&str>,
    sku: Option<&str>,
    json: bool,
) -> anyhow::Result<ExitCode> {
    let found = pools(&endpoint(config)?, sale, sku)?;
    if json {
        println!("{}", serde_json::to_string_pretty(&found).context("as JSON")?);
    } else if found.is_empty() {
        println!("There is no pool.");
    } else {
        for pool in &found {
            show(pool);
        }
    }
    let is_good = found.iter().all(|pool| pool.state == "open");
    Ok(ExitCode::from(u8::from(!is_good)))
}

/// Begins a new epoch of pools (all, a sale's, or one) and waits until they are open again.
pub fn rebuild(
    config: Option<&Path>,
    sale: Option<&str>,
    sku: Option<&str>,
    wait_ms: u64,
) -> anyhow::Result<ExitCode> {
    let endpoint = endpoint(config)?;
    let name = |pool: &PoolReport| format!("{}/{}", pool.sale, pool.sku);
    let before = pools(&endpoint, sale, sku)?;
    anyhow::ensure!(
        !before.is_empty(),
        "there is no pool of {}/{} to rebuild: its home node makes it, as soon as it reaches Redis",
        sale.unwrap_or("*"),
        sku.unwrap_or("*")
    );
    for pool in &before {
        let has_begun = begin(&endpoint, pool)?;
        anyhow::ensure!(has_begun, "the pool of {} did not begin anew", name(pool));
    }
    let mut said: HashMap<String, String> = HashMap::new();
    let mut left = Duration::from_millis(wait_ms);
    loop {
        let now = pools(&endpoint, sale, sku)?;
        for pool in &now {
            let state = state_of(pool);
            if said.insert(name(pool), state.clone()).as_ref() != Some(&state) {
                println!("{} epoch {}: {state}", name(pool), pool.epoch);
            }
        }
        if now.iter().all(|pool| pool.state == "open") {
            return Ok(ExitCode::SUCCESS);
        }
        if left.is_zero() {
            println!("It goes on by itself as they report; meanwhile nodes sell what they hold.");
            return Ok(ExitCode::from(1));
        }
        let pause = LOOK_EVERY.min(left);
        thread::sleep(pause);
        left -= pause;
    }
}

/// What a pool is doing, in words.
fn state_of(pool: &PoolReport) -> String {
    let mut waits: Vec<&str> = Vec::new();
    if pool.waits_for_home {
        waits.push("the home node, to say which journals there are");
    }
    let journals = pool.waits_for.join(", ");
    if !journals.is_empty() {
        waits.push(&journals);
    }
    match pool.state {
        "open" => format!("open, {} units in the pool", pool.pool),
        "lost" => String::from("its server is another one since; the next node begins an epoch"),
        _ => format!("shut, waits for {}", waits.join("; and for ")),
    }
}

fn show(pool: &PoolReport) {
    println!("{}/{}  epoch {}  {}", pool.sale, pool.sku, pool.epoch, state_of(pool));
    println!(
        "    added {}, withdrawn {}, confirmed {}, wanted {}{}",
        pool.added,
        pool.withdrawn,
        pool.confirmed,
        pool.wanted,
        if pool.is_sold_out { ", sold out for good" } else { "" }
    );
    let heads = ["granted", "accepted", "returned", "confirmed", "reversed", "wanted"];
    let heads = heads.map(|head| format!("{head:>10}")).concat();
    println!("    {:<16} {:>5}{heads}", "journal", "start");
    for j in &pool.journals {
        let cells = [j.granted, j.accepted, j.returned, j.confirmed, j.reversed, j.wanted];
        let cells = cells.map(|cell| format!("{cell:>10}")).concat();
        let note = if j.has_joined { "" } else { "  not in this epoch" };
        println!("    {} {:>5}{cells}{note}", j.journal, j.incarnation);
    }
}
