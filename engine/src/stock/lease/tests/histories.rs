//! Random histories over the model of the pool.

use std::collections::HashMap;

use super::world::{Happened, How, Place, Random, World};
use super::*;
use crate::stock::pool::Pool;

/// A sale that is sold out soon, and one in which nobody runs dry for as long as there are faults.
const TOTALS: [u64; 2] = [60, 600];

/// A server that runs the model, and what a replica has of it.
#[derive(Default)]
struct Model {
    nodes: usize,
    server: u128,
    pool: Pool,
    replica: Pool,
}

impl Model {
    /// A replica that missed writes takes over, or an empty server.
    fn forget(&mut self, takes_replica: bool) -> Happened {
        self.server += 1;
        self.pool = if takes_replica { self.replica.clone() } else { Pool::default() };
        Happened {
            is_forgotten: true,
            reconnected: (0..self.nodes).collect(),
            counted: vec!["forgotten"],
            ..Happened::default()
        }
    }
}

impl Place for Model {
    fn ask(&mut self, _: usize, asker: &Asker, ask: &PoolAsk) -> Option<PoolAnswer> {
        Some(self.pool.on(KeyHash::new(self.server), asker, ask))
    }

    fn news(&mut self) -> Vec<(usize, Change)> {
        let change = self.pool.take_news();
        change.map_or(Vec::new(), |change| (0..self.nodes).map(|node| (node, change)).collect())
    }

    fn break_something(&mut self, random: &mut Random) -> Happened {
        if random.percent(10) { self.forget(random.percent(50)) } else { Happened::default() }
    }

    fn pass(&mut self, _: u64, random: &mut Random) -> Happened {
        if random.percent(1) {
            self.replica = self.pool.clone();
        }
        Happened::default()
    }

    fn heal(&mut self) -> Happened {
        Happened::default()
    }

    fn look(&mut self, asker: &Asker) -> Option<PoolView> {
        let answer = self.pool.on(KeyHash::new(self.server), asker, &PoolAsk::Inspect);
        answer.view.filter(|_| answer.refusal.is_none())
    }

    fn step_ms(&self, _: How) -> u64 {
        4
    }
}

fn run(seed: u64) -> HashMap<&'static str, u64> {
    let nodes = 2 + (seed % 2) as usize;
    let model = Model { nodes, server: 1, ..Model::default() };
    let world = World::new(seed, nodes, TOTALS[seed as usize / 2 % 2], model);
    let last = |model: &mut Model| {
        let forgets = seed.is_multiple_of(3);
        if forgets { model.forget(seed.is_multiple_of(2)) } else { Happened::default() }
    };
    world.run(1_500, last).1
}

#[test]
fn no_history_of_faults_sells_a_unit_twice_or_leaves_one_unsold() {
    let seeds = std::env::var("ONRUSH_LEASE_SEEDS").ok().and_then(|text| text.parse().ok());
    let first = std::env::var("ONRUSH_LEASE_SEED").ok().and_then(|text| text.parse().ok());
    let mut stats = HashMap::new();
    let first = first.unwrap_or(1);
    for seed in first..first + seeds.unwrap_or(2_000) {
        let Ok(of_seed) = std::panic::catch_unwind(|| run(seed)) else {
            panic!("with ONRUSH_LEASE_SEED={seed}")
        };
        for (what, count) in of_seed {
            *stats.entry(what).or_insert(0) += count;
        }
    }
    for what in [
        "crashes",
        "asks lost",
        "asks without a connection",
        "asks of a node that is cut off",
        "answers lost",
        "forgotten",
        "withdrawals found",
    ] {
        assert!(stats.get(what).is_some_and(|count| *count > 0), "never: {what}, {stats:?}");
    }
}
