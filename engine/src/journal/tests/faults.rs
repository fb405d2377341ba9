//! A fault at every operation, and random ones over thousands of seeds, on the simulated disk.

use super::world::{Model, World, open_core};
use crate::journal::sim::{Fault, SimDisk, SimRng};

/// Two disks that lose power together.
struct Machine {
    disk: SimDisk,
    snapshots: SimDisk,
}

impl Machine {
    fn new(seed: u64) -> Self {
        Self { disk: SimDisk::new(seed), snapshots: SimDisk::new(!seed) }
    }
    fn power_cycle(&mut self) {
        self.disk.power_loss();
        self.snapshots.power_loss();
        self.disk = self.disk.restart();
        self.snapshots = self.snapshots.restart();
    }
    fn process_restart(&mut self) {
        self.disk = self.disk.process_restart();
        self.snapshots = self.snapshots.process_restart();
    }
    fn is_dead(&self) -> bool {
        self.disk.is_dead() || self.snapshots.is_dead()
    }
    /// Opens, on a well disk: that must work, whatever happened before.
    fn open_well(&self, model: &mut Model) -> World {
        let opened = open_core(&self.disk).unwrap();
        model.check(&self.disk, &self.snapshots, &opened).unwrap();
        World::new(opened, self.snapshots.clone())
    }
}

/// The same story every time: rotations, marks, snapshots, removals, a second opening.
/// Stops at the first failure that ends the process.
fn story(machine: &Machine, model: &mut Model) -> Result<(), ()> {
    for round in 0..2 {
        let Ok(opened) = open_core(&machine.disk) else { return Err(()) };
        let mut world = World::new(opened, machine.snapshots.clone());
        model.incarnation = world.core.incarnation().get();
        for i in 0..14u32 {
            // A failed preparation or snapshot is tried again the next time round.
            let _ = world.prepare();
            let count = [1, 200, 0, 300][i as usize % 4];
            if !world.append(model, count).map_err(drop)? {
                let _ = world.prepare();
            }
            if i % 4 == 2 + round {
                let _ = world.snapshot(model);
                let _ = world.remove_old();
            }
            if machine.is_dead() {
                return Err(());
            }
        }
    }
    Ok(())
}

/// Runs the story with one fault, restarts, and checks; then goes on, and checks again.
fn run_with_fault(seed: u64, on_snapshots: bool, operation: u64, fault: Fault, power: bool) {
    let mut machine = Machine::new(seed);
    let mut model = Model::default();
    let disk = if on_snapshots { &machine.snapshots } else { &machine.disk };
    disk.fault_at(operation, fault);
    let _ = story(&machine, &mut model);
    if power || machine.is_dead() {
        machine.power_cycle();
    } else {
        machine.process_restart();
    }
    for _ in 0..2 {
        let mut world = machine.open_well(&mut model);
        for count in [5, 250, 1] {
            world.prepare().unwrap();
            assert!(world.append(&mut model, count).unwrap());
        }
        machine.power_cycle();
    }
    machine.open_well(&mut model);
}

#[test]
fn a_fault_at_every_operation_loses_nothing() {
    let machine = Machine::new(0);
    story(&machine, &mut Model::default()).unwrap();
    let counts = [machine.disk.operations(), machine.snapshots.operations()];
    assert!(counts[0] > 80 && counts[1] > 30, "{counts:?}");
    for (on_snapshots, count) in [(false, counts[0]), (true, counts[1])] {
        for operation in 0..count {
            for (fault, power) in
                [(Fault::PowerLoss, true), (Fault::Error, false), (Fault::Error, true)]
            {
                for seed in 0..4 {
                    let context = format!("{on_snapshots} {operation} {fault:?} {power} {seed}");
                    with_context(&context, || {
                        run_with_fault(seed, on_snapshots, operation, fault, power);
                    });
                }
            }
        }
    }
}

/// Prints what was run when it panics, so that it can be repeated.
fn with_context<T>(context: &str, run: impl FnOnce() -> T + std::panic::UnwindSafe) -> T {
    std::panic::catch_unwind(run).unwrap_or_else(|panic| {
        eprintln!("failed with: {context}");
        std::panic::resume_unwind(panic)
    })
}

/// One life after another on one machine, each ending by power loss, a fault or a plain kill.
fn random_lives(seed: u64) -> [u64; 3] {
    let mut rng = SimRng::new(seed);
    let mut machine = Machine::new(rng.next_u64());
    let mut model = Model::default();
    let (mut faults_met, mut failed_opens) = (0, 0);
    for _ in 0..6 {
        let (fault, ends_in) = (rng.below(3), rng.below(60));
        let at = machine.disk.operations() + ends_in;
        match fault {
            0 => machine.disk.fault_at(at, Fault::PowerLoss),
            1 => machine.disk.fault_at(at, Fault::Error),
            _ => machine.snapshots.fault_at(rng.below(30), Fault::PowerLoss),
        }
        match open_core(&machine.disk) {
            Ok(opened)
                if !machine.is_dead()
                    && model.check(&machine.disk, &machine.snapshots, &opened).is_err() =>
            {
                failed_opens += 1;
            }
            Ok(opened) => {
                let mut world = World::new(opened, machine.snapshots.clone());
                for _ in 0..rng.below(80) {
                    if world.step(&mut model, &mut rng).is_err() {
                        faults_met += 1;
                        let again = world.append(&mut Model::default(), 1);
                        assert!(again.is_err(), "poisoned for good");
                        break;
                    }
                    if machine.is_dead() {
                        break;
                    }
                }
            }
            // The fault hit the opening itself; the next one finds the disk well or dead.
            Err(_) => failed_opens += 1,
        }
        if machine.is_dead() || rng.coin() {
            machine.power_cycle();
        } else {
            machine.process_restart();
        }
    }
    machine.open_well(&mut model);
    [model.acked.len() as u64, faults_met, failed_opens]
}

#[test]
fn random_lives_lose_nothing_acknowledged() {
    let seeds = std::env::var("ONRUSH_SEEDS").ok().and_then(|s| s.parse().ok()).unwrap_or(3_000);
    let first = std::env::var("ONRUSH_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(1);
    let mut totals = [0; 3];
    for seed in first..first + seeds {
        let context = format!("ONRUSH_SEED={seed} ONRUSH_SEEDS=1");
        let counts = with_context(&context, || random_lives(seed));
        totals.iter_mut().zip(counts).for_each(|(total, n)| *total += n);
    }
    // The test tested something: records survived, faults were met, openings failed.
    if seeds >= 100 {
        assert!(totals[0] > 10_000 && totals[1] > 50 && totals[2] > 5, "{totals:?}");
    }
}
