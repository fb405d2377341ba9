//! What a run measured, by itself: as it is kept in files, sent between machines, and added up.
//!
//! Its times count from the schedule's start, so that those of different machines lie side by side.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::plan::Plan;
use crate::run::Outcomes;
use crate::stats::Stats;
use crate::timeline::{Outage, Section};
use crate::work::accepted::Ledger;

/// Units: nanoseconds since the schedule's start.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Measured {
    pub stats: Stats,
    pub sections: Vec<Section>,
    pub outages: Vec<Outage>,
    /// To the end of everything.
    pub took: u64,
    pub interrupted: bool,
}

impl Measured {
    pub fn of(run: &Outcomes) -> Self {
        let since_zero = |at: u64| at.saturating_sub(run.zero);
        Self {
            stats: run.stats.clone(),
            sections: (run.sections.iter())
                .map(|s| Section { from: since_zero(s.from), ..s.clone() })
                .collect(),
            outages: (run.outages.iter())
                .map(|o| Outage {
                    at: since_zero(o.at),
                    recovered: o.recovered.map(since_zero),
                    ..o.clone()
                })
                .collect(),
            took: since_zero(run.ended),
            interrupted: run.interrupted,
        }
    }

    /// Adds what another machine measured at the same time. Counters and histograms add; nothing
    /// is averaged.
    pub fn join(&mut self, mut other: Self) {
        self.join_sections(&mut other);
        self.join_outages(&other.outages);
        self.stats.merge(&other.stats);
        self.took = self.took.max(other.took);
        self.interrupted |= other.interrupted;
    }

    /// Sections of the same name are the same; the other's cells are numbered anew.
    fn join_sections(&mut self, other: &mut Self) {
        let places: Vec<u16> = (other.sections.iter())
            .map(|section| {
                let known = self.sections.iter().position(|s| s.name == section.name);
                known.unwrap_or_else(|| {
                    self.sections.push(section.clone());
                    self.sections.len() - 1
                }) as u16
            })
            .collect();
        for cell in other.stats.outcomes.iter_mut().flat_map(|o| &mut o.cells) {
            cell.section = places.get(cell.section as usize).copied().unwrap_or(0);
        }
    }

    /// In their order; the first of one machine is taken for the first of the other.
    fn join_outages(&mut self, others: &[Outage]) {
        for (index, other) in others.iter().enumerate() {
            let Some(outage) = self.outages.get_mut(index) else {
                self.outages.push(other.clone());
                continue;
            };
            outage.at = outage.at.min(other.at);
            outage.recovered = outage.recovered.max(other.recovered);
            outage.connections_lost += other.connections_lost;
            outage.unanswered += other.unanswered;
        }
    }

    /// As if it had just run here and started at this moment of the clock.
    pub fn outcomes(self, plan: Arc<Plan>, zero: u64) -> Outcomes {
        let Self { stats, mut sections, mut outages, took, interrupted } = self;
        for section in &mut sections {
            section.from += zero;
        }
        for outage in &mut outages {
            outage.at += zero;
            outage.recovered = outage.recovered.map(|r| r + zero);
        }
        Outcomes {
            plan,
            stats,
            ledger: Ledger::default(),
            seconds: Vec::new(),
            sections,
            outages,
            started_at: String::new(),
            zero,
            ended: zero + took,
            interrupted,
            aborted: None,
        }
    }
}
