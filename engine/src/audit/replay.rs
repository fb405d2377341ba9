//! I5: the engine's own replay, from a base to each cut that somebody claims to know, digests
//! compared. This is the one place where the auditor runs the engine's code, because the
//! invariant is about that code.

use std::collections::BTreeMap;

use super::finding::{Check, Findings, Where};
use super::journal::{CannotRead, Journal};
use super::model::SlotSums;
use super::parts::{Base, Claims, SlotClaim};
use crate::kernel::control::ControlState;
use crate::kernel::record::{CONTROL, Record};
use crate::kernel::slot::SlotState;
use crate::units::{SLOT_COUNT, Seq, Slot};

/// What a replay looked at.
#[derive(Clone, Copy, Default, Debug)]
pub struct ReplayFigures {
    pub records: u64,
    /// Digests compared.
    pub digests: u64,
    /// Slots whose sums at the end were compared with the auditor's own.
    pub slots: u64,
}

/// A slot under replay.
struct Replayed {
    /// `None` once a record did not fit: said once, and nothing more can be said.
    state: Option<SlotState>,
    cut: Seq,
    /// The next claim last.
    claims: Vec<SlotClaim>,
}

struct Replay<'a> {
    slots: Vec<Replayed>,
    control: Option<ControlState>,
    control_cut: Seq,
    findings: &'a mut Findings,
    figures: ReplayFigures,
}

/// Replays the journal and compares every claim; then the state at the end with the auditor's
/// own sums of each slot.
///
/// Errors: the journal or the base cannot be read.
pub fn replay(
    journal: &dyn Journal,
    base: Option<&dyn Base>,
    claims: Claims,
    own: &BTreeMap<Slot, SlotSums>,
    findings: &mut Findings,
    on_record: &mut dyn FnMut(Seq),
) -> Result<ReplayFigures, CannotRead> {
    let slot = |n: usize| Replayed {
        state: Some(SlotState::new(Slot::new(n as u16))),
        cut: Seq::NONE,
        claims: Vec::new(),
    };
    let mut replay = Replay {
        slots: (0..SLOT_COUNT).map(slot).collect(),
        control: Some(ControlState::new()),
        control_cut: Seq::NONE,
        findings,
        figures: ReplayFigures::default(),
    };
    if let Some(base) = base {
        base.each(&mut |slot, cut, bytes| replay.begin(slot, cut, bytes))?;
    }
    for claim in claims.slots {
        if let Some(slot) = replay.slots.get_mut(claim.mark.slot.index()) {
            slot.claims.push(claim);
        }
    }
    for slot in &mut replay.slots {
        slot.claims.sort_by_key(|claim| std::cmp::Reverse(claim.mark.cut));
    }
    let mut control_claims = claims.control;
    control_claims.sort_by_key(|claim| std::cmp::Reverse(claim.mark.cut));
    let from = base.map_or(Seq::new(1), |base| base.lowest_cut().next());
    journal.each(from, &mut |place, slot, record, bytes| {
        on_record(place.seq);
        replay.figures.records += 1;
        if slot == CONTROL {
            while control_claims.last().is_some_and(|claim| claim.mark.cut < place.seq) {
                let claim = control_claims.pop().expect("just seen");
                replay.compare_control(claim.mark.cut, claim.digest, &claim.mark.by);
            }
            replay.apply_control(place.seq, record, bytes);
        } else {
            replay.apply(place.seq, slot, record, bytes);
        }
    })?;
    for claim in control_claims.into_iter().rev() {
        replay.compare_control(claim.mark.cut, claim.digest, &claim.mark.by);
    }
    for n in 0..SLOT_COUNT {
        replay.compare(n, Seq::new(u64::MAX));
        replay.compare_own(n, own);
    }
    Ok(replay.figures)
}

impl Replay<'_> {
    fn begin(&mut self, slot: Slot, cut: Seq, bytes: &[u8]) -> Result<(), CannotRead> {
        let damaged = |e| CannotRead(format!("the snapshot's slot {slot} does not read: {e}"));
        if slot == CONTROL {
            self.control = Some(ControlState::decode(bytes).map_err(damaged)?);
            self.control_cut = cut;
        } else if let Some(replayed) = self.slots.get_mut(slot.index()) {
            replayed.state = Some(SlotState::decode(bytes).map_err(damaged)?);
            replayed.cut = cut;
        }
        Ok(())
    }

    fn apply(&mut self, seq: Seq, slot: Slot, record: &Record, bytes: &[u8]) {
        if slot.index() >= SLOT_COUNT {
            return;
        }
        self.compare(slot.index(), seq);
        let replayed = &mut self.slots[slot.index()];
        if seq <= replayed.cut {
            return;
        }
        if let Some(state) = &mut replayed.state
            && let Err(e) = state.apply(record, bytes)
        {
            replayed.state = None;
            let at = Where::slot(slot).with_seq(seq);
            self.findings.violation(Check::I5, at, format!("replay stops here: {e}"));
        }
    }

    /// Compares the claims whose cuts lie before `seq`.
    fn compare(&mut self, slot: usize, seq: Seq) {
        let replayed = &mut self.slots[slot];
        while replayed.claims.last().is_some_and(|claim| claim.mark.cut < seq) {
            let claim = replayed.claims.pop().expect("just seen");
            // The base's own state is no evidence for the base.
            let Some(state) = replayed.state.as_ref().filter(|_| claim.mark.cut >= replayed.cut)
            else {
                continue;
            };
            self.figures.digests += 1;
            let digest = state.digest();
            if digest != claim.digest {
                let at = Where::slot(state.slot()).with_seq(claim.mark.cut);
                let sentence = format!(
                    "{} has digest {:032x}, replay gives {digest:032x}",
                    claim.mark.by, claim.digest
                );
                self.findings.violation(Check::I5, at, sentence);
            }
        }
    }

    fn compare_own(&mut self, slot: usize, own: &BTreeMap<Slot, SlotSums>) {
        let Some(state) = &self.slots[slot].state else { return };
        let Some(mine) = own.get(&state.slot()) else { return };
        let theirs = SlotClaim::of(state, Seq::NONE, "replay").mark.sums;
        self.figures.slots += 1;
        for (name, mine, theirs) in mine.differences(&theirs) {
            let sentence = format!("replay ends with {name} {theirs}, the auditor with {mine}");
            self.findings.violation(Check::I5, Where::slot(state.slot()), sentence);
        }
    }

    fn apply_control(&mut self, seq: Seq, record: &Record, bytes: &[u8]) {
        if seq <= self.control_cut {
            return;
        }
        if let Some(state) = &mut self.control
            && let Err(e) = state.apply(record, bytes)
        {
            self.control = None;
            let at = Where::slot(CONTROL).with_seq(seq);
            self.findings.violation(Check::I5, at, format!("replay stops here: {e}"));
        }
    }

    fn compare_control(&mut self, cut: Seq, digest: u128, by: &str) {
        if cut < self.control_cut {
            return;
        }
        let Some(state) = &self.control else { return };
        self.figures.digests += 1;
        let mine = state.digest();
        if mine != digest {
            let at = Where::slot(CONTROL).with_seq(cut);
            let sentence = format!("{by} has digest {digest:032x}, replay gives {mine:032x}");
            self.findings.violation(Check::I5, at, sentence);
        }
    }
}
