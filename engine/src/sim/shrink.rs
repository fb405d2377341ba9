//! Cuts a failing plan down: steps and turns are left out while it still fails.

use std::fmt::Write as _;

use super::plan::{Plan, Step};
use super::run;
use crate::planted::Bug;

/// Runs that a shrinking may cost.
const RUNS_MAX: usize = 1_000;

/// The shortest plan found that still fails, and how.
pub fn shrink(plan: &Plan) -> (Plan, String) {
    let mut best = plan.clone();
    let mut why = run(&best).expect_err("only what fails is shrunk");
    let mut runs = 0;
    let mut fails = |steps: Vec<Step>, best: &mut Plan, why: &mut String| {
        runs += 1;
        let candidate = Plan { shape: best.shape, steps };
        match run(&candidate) {
            Err(how) => {
                (*best, *why) = (candidate, how);
                Some(true)
            }
            Ok(_) => (runs < RUNS_MAX).then_some(false),
        }
    };
    let mut piece = best.steps.len().div_ceil(2);
    while piece > 0 {
        let mut at = 0;
        while at < best.steps.len() {
            let mut steps = best.steps.clone();
            steps.drain(at..(at + piece).min(steps.len()));
            match fails(steps, &mut best, &mut why) {
                Some(true) => {}
                Some(false) => at += piece,
                None => return (best, why),
            }
        }
        piece /= 2;
    }
    for at in 0..best.steps.len() {
        for turns in [0, best.steps[at].turns / 2] {
            let mut steps = best.steps.clone();
            steps[at].turns = turns;
            match fails(steps, &mut best, &mut why) {
                Some(true) => break,
                Some(false) => {}
                None => return (best, why),
            }
        }
    }
    (best, why)
}

/// The plan in words, and how to see it again.
pub fn report(seed: u64, bug: Option<Bug>, plan: &Plan, why: &str) -> String {
    let mut text = format!("seed {seed} fails: {why}\n  {:?}\n", plan.shape);
    for step in &plan.steps {
        let _ = writeln!(text, "  {:?}, then {} turns of {:#x}", step.act, step.turns, step.seed);
    }
    let planted = bug.map_or_else(String::new, |bug| format!("ONRUSH_SIM_BUG={bug:?} "));
    text + &format!("repeat with: {planted}scripts/test sim --seed {seed}")
}
