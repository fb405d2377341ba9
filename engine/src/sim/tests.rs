//! Seeds of the real code, and the bugs that must be found.
//!
//! `ONRUSH_SIM_SEEDS` says how many seeds, `ONRUSH_SIM_SEED` runs one alone, with its plan cut down
//! where it fails; `scripts/test sim` sets both. `ONRUSH_SIM_BUG` names the one bug to be planted.

use std::sync::atomic::{AtomicU64, Ordering};

use super::plan::Plan;
use super::world::Counts;
use super::{run, shrink};
use crate::planted::{self, Bug};

/// Seeds in the normal run.
const SEEDS: u64 = 2_000;
/// A planted bug must be found within so many.
const SEEDS_PER_BUG: u64 = 10_000;

fn from_env(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

/// The first failing seed of a range, over all cores, with a bug or without.
fn first_failure(seeds: u64, bug: Option<Bug>) -> Result<Counts, u64> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let (next, failed) = (AtomicU64::new(0), AtomicU64::new(u64::MAX));
    let work = || {
        planted::plant(bug);
        let mut sum = Counts::default();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds || seed > failed.load(Ordering::Relaxed) {
                planted::plant(None);
                return sum;
            }
            match run(&Plan::of(seed)) {
                Ok(counts) => sum.add(&counts),
                Err(_) => {
                    failed.fetch_min(seed, Ordering::Relaxed);
                }
            }
        }
    };
    let sums: Vec<Counts> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers.into_iter().map(|worker| worker.join().unwrap()).collect()
    });
    match failed.load(Ordering::Relaxed) {
        u64::MAX => {
            let mut all = Counts::default();
            for sum in &sums {
                all.add(sum);
            }
            Ok(all)
        }
        seed => Err(seed),
    }
}

#[test]
fn no_seed_breaks_the_real_code() {
    if let Some(seed) = from_env("ONRUSH_SIM_SEED") {
        if let Err(why) = run(&Plan::of(seed)) {
            println!("seed {seed} fails: {why}; its plan is cut down");
            let (plan, why) = shrink::shrink(&Plan::of(seed));
            panic!("{}", shrink::report(seed, &plan, &why));
        }
        return;
    }
    let seeds = from_env("ONRUSH_SIM_SEEDS").unwrap_or(SEEDS);
    match first_failure(seeds, None) {
        Ok(counts) => {
            println!("{seeds} seeds: {counts:?}");
            counts.assert_that_everything_happened();
        }
        Err(seed) => {
            println!("seed {seed} fails; its plan is cut down");
            let (plan, why) = shrink::shrink(&Plan::of(seed));
            panic!("{}", shrink::report(seed, &plan, &why));
        }
    }
}

#[test]
fn a_seed_goes_the_same_way_each_time() {
    for seed in 0..20 {
        let counts = || format!("{:?}", run(&Plan::of(seed)));
        assert_eq!(counts(), counts(), "seed {seed}");
    }
}

#[test]
fn every_planted_bug_is_found() {
    let mut missed = Vec::new();
    let seeds = from_env("ONRUSH_SIM_SEEDS").unwrap_or(SEEDS_PER_BUG);
    let only = std::env::var("ONRUSH_SIM_BUG").ok();
    let is_meant = |bug: &Bug| only.as_ref().is_none_or(|name| *name == format!("{bug:?}"));
    for bug in Bug::ALL.into_iter().filter(is_meant) {
        match first_failure(seeds, Some(bug)) {
            Ok(_) => missed.push(bug),
            Err(seed) => {
                planted::plant(Some(bug));
                let why = run(&Plan::of(seed)).err().unwrap_or_default();
                planted::plant(None);
                println!("{bug:?}: found by seed {seed}: {why}");
            }
        }
    }
    assert!(missed.is_empty(), "not found within {seeds} seeds: {missed:?}");
}
