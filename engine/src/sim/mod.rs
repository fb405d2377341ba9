//! The deterministic simulation: the production modules, compiled unchanged, in worlds that a seed
//! makes and breaks.
//!
//! ```text
//! seed ─► Plan (acts, each with a seed) ─► World ─► turns of journal, files, control, shards, door
//!                                            │        on simulated disks, under clocks set by hand
//!                                            └─► Ledger: books of every durable record, checked
//!                                                after every turn; each answer is checked as told
//! ```
//! One thread, no sleep, no I/O: a world lives for milliseconds. A plan that fails is cut down to
//! the steps that it needs ([`shrink`]); the same plan always goes the same way.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

mod answers;
mod counts;
mod database;
mod killed;
mod ledger;
mod model;
mod node;
mod place;
mod plan;
mod redis;
mod rest;
mod router;
mod shared;
mod ship;
mod shrink;
mod snapshots;
mod tests;
mod topic;
mod world;

use counts::Counts;
use plan::Plan;
use world::World;

thread_local! {
    static IS_SIMULATED: Cell<bool> = const { Cell::new(false) };
}

/// Runs a plan to its end and to rest; `Err` says what was wrong first.
fn run(plan: &Plan) -> Result<Counts, String> {
    static QUIET: Once = Once::new();
    QUIET.call_once(|| {
        // A failing simulation is an answer, not a crash: nothing is printed about it.
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !IS_SIMULATED.get() {
                before(info);
            }
        }));
    });
    IS_SIMULATED.set(true);
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let mut world = World::new(plan.shape);
        world.run(plan);
        world.come_to_rest();
        world.counts()
    }));
    IS_SIMULATED.set(false);
    killed::disarm();
    outcome.map_err(|payload| {
        let text = payload.downcast_ref::<String>().cloned();
        text.or_else(|| payload.downcast_ref::<&str>().map(ToString::to_string))
            .unwrap_or_else(|| "a panic without words".into())
    })
}
