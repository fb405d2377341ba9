//! Starts the workers together, watches over the run, and gathers what they found.
//!
//! Thread: the caller's; the workers have a thread each.
//!
//! ```text
//! workers connect ──► all ready ──► zero is set ──► schedule ──► drain ──► figures merge
//!                        └── none connected: aborted
//! ```

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use thiserror::Error;

use crate::clock::{self, Clock};
use crate::http::stream;
use crate::plan::Plan;
use crate::run::observe::Observer;
use crate::run::timer::Timer;
use crate::run::worker::Worker;
use crate::run::{conn_task, signals};
use crate::stats::{Failure, Second, SecondRow, Stats};
use crate::timeline::{Outage, Section, Timeline};
use crate::work::accepted::{Findings, Ledger};
use crate::work::{Workload, redeem};

/// What the threads of a run share.
#[derive(Debug)]
pub struct Shared {
    pub plan: Arc<Plan>,
    pub clock: Clock,
    pub timeline: Timeline,
    /// 0 until all are ready, then the schedule's start, or [`ABORTED`]. Release when set, Acquire
    /// when read, though nothing else hangs on it.
    zero: AtomicU64,
    /// Workers whose first connects are over. Release by the worker, Acquire by the conductor:
    /// it pairs with `opened`.
    ready: AtomicUsize,
    opened: AtomicUsize,
    finished: AtomicUsize,
    /// Nothing more is planned. Relaxed: a flag that is polled.
    stop: AtomicBool,
    /// Whether workers hand on their figures so far with each second.
    wants_looks: bool,
    /// Per worker: its figures so far.
    looks: Vec<Mutex<Option<(Stats, Findings)>>>,
    connect_failure: Mutex<Option<(Failure, String)>>,
    seconds: Mutex<Vec<Second>>,
}

const ABORTED: u64 = u64::MAX;

/// What came of a run.
#[derive(Debug)]
pub struct Outcomes {
    pub plan: Arc<Plan>,
    pub stats: Stats,
    pub ledger: Ledger,
    pub seconds: Vec<SecondRow>,
    pub sections: Vec<Section>,
    pub outages: Vec<Outage>,
    pub started_at: String,
    /// Units: nanoseconds of the run's clock: the schedule's start, the end of everything.
    pub zero: u64,
    pub ended: u64,
    /// By a signal, or by a reason to abort.
    pub interrupted: bool,
    /// Why the schedule was ended before its time.
    pub aborted: Option<String>,
}

/// Why there was no run.
#[derive(Debug, Error)]
pub enum Failed {
    #[error("no connection to {url} could be opened: {} ({detail})", failure.name())]
    NoConnection { url: String, failure: Failure, detail: String },
    #[error("{wanted} connections need more open files than the hard limit of {hard} (ulimit -Hn)")]
    FileLimit { wanted: usize, hard: u64 },
    #[error("the start never came")]
    NotStarted,
    #[error("a worker could not start: {0}")]
    Start(#[from] io::Error),
}

impl Shared {
    fn new(plan: Plan, wants_looks: bool) -> Self {
        Self {
            wants_looks,
            looks: (0..plan.threads).map(|_| Mutex::new(None)).collect(),
            plan: Arc::new(plan),
            clock: Clock::start(),
            timeline: Timeline::new(),
            zero: AtomicU64::new(0),
            ready: AtomicUsize::new(0),
            opened: AtomicUsize::new(0),
            finished: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            connect_failure: Mutex::new(None),
            seconds: Mutex::new(Vec::new()),
        }
    }

    pub fn push_second(&self, second: Second) {
        self.seconds.lock().expect("no holder of this lock panics").push(second);
    }

    /// Hands on a worker's figures so far, if somebody looks.
    pub fn push_look(&self, worker: usize, look: impl FnOnce() -> (Stats, Findings)) {
        if self.wants_looks {
            *self.looks[worker].lock().expect("no holder of this lock panics") = Some(look());
        }
    }

    /// The figures of all workers as they last handed them on.
    fn so_far(&self, zero: u64) -> Outcomes {
        let (mut stats, mut ledger) = (Stats::default(), Ledger::default());
        for look in &self.looks {
            let look = look.lock().expect("no holder of this lock panics");
            if let Some((worker, findings)) = &*look {
                stats.merge(worker);
                ledger.findings.merge(findings.clone());
            }
        }
        Outcomes {
            plan: self.plan.clone(),
            stats,
            ledger,
            seconds: Vec::new(),
            sections: self.timeline.sections(),
            outages: self.timeline.outages(),
            started_at: String::new(),
            zero,
            ended: self.clock.now(),
            interrupted: false,
            aborted: None,
        }
    }
}

/// Runs the plan, to its end or until a signal or the observer ends its schedule.
pub fn run(plan: Plan, observer: &mut dyn Observer) -> Result<Outcomes, Failed> {
    signals::listen()?;
    let wanted = plan.connections;
    stream::raise_file_limit(wanted as u64).map_err(|hard| Failed::FileLimit { wanted, hard })?;
    let shared = Arc::new(Shared::new(plan, observer.wants_looks()));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let started_at = clock::wall_now();
    let workers = start_workers(&shared)?;
    let mut gathered = Gathered::default();
    let watched = runtime.block_on(watch(&shared, &mut gathered, observer));
    let (mut stats, mut ledgers) = (Stats::default(), Vec::new());
    for worker in workers {
        // A panic aborts the process, so a join can only fail where panics unwind: in tests.
        let (worker_stats, ledger) = worker.join().expect("a worker panicked")?;
        stats.merge(&worker_stats);
        ledgers.extend(ledger);
    }
    let (zero, aborted) = watched?;
    gathered.take(&shared, observer, true);
    Ok(Outcomes {
        plan: shared.plan.clone(),
        stats,
        ledger: redeem::merge_ledgers(ledgers),
        seconds: gathered.done,
        sections: shared.timeline.sections(),
        outages: shared.timeline.outages(),
        started_at,
        zero,
        ended: shared.clock.now(),
        interrupted: shared.stop.load(Ordering::Relaxed),
        aborted,
    })
}

type WorkerResult = io::Result<(Stats, Option<Ledger>)>;

fn start_workers(shared: &Arc<Shared>) -> io::Result<Vec<JoinHandle<WorkerResult>>> {
    (0..shared.plan.threads)
        .map(|index| {
            let shared = shared.clone();
            std::thread::Builder::new()
                .name(format!("load-{index:02}"))
                .spawn(move || work(&shared, index))
        })
        .collect()
}

/// From the first connect to the last worker's end. The schedule's start, and why it was aborted.
async fn watch(
    shared: &Shared,
    gathered: &mut Gathered,
    observer: &mut dyn Observer,
) -> Result<(u64, Option<String>), Failed> {
    let threads = shared.plan.threads;
    while shared.ready.load(Ordering::Acquire) < threads {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    if shared.opened.load(Ordering::Relaxed) == 0 {
        shared.zero.store(ABORTED, Ordering::Release);
        let failure = shared.connect_failure.lock().expect("no holder of this lock panics").take();
        let (failure, detail) = failure.unwrap_or((Failure::Unreachable, String::new()));
        let urls: Vec<_> = shared.plan.targets.iter().map(|t| &*t.url).collect();
        return Err(Failed::NoConnection { url: urls.join(", "), failure, detail });
    }
    let Some(zero) = observer.start(shared.clock) else {
        shared.zero.store(ABORTED, Ordering::Release);
        return Err(Failed::NotStarted);
    };
    shared.zero.store(zero, Ordering::Release);
    observer.starts(clock::wall_at(shared.clock, zero));
    let mut marks = shared.plan.marks.clone();
    marks.sort_by_key(|(_, at)| std::cmp::Reverse(*at));
    let (mut signalled, mut aborted) = (signals::marks(), None);
    while shared.finished.load(Ordering::Acquire) < threads {
        tokio::time::sleep(Duration::from_millis(20)).await;
        let now = shared.clock.now();
        while signalled < signals::marks() {
            signalled += 1;
            shared.timeline.mark(format!("signal-{signalled}"), now);
        }
        while let Some((name, at)) = marks.pop_if(|(_, at)| zero + *at <= now) {
            shared.timeline.mark(name, zero + at);
        }
        if signals::stopped() || observer.stops() {
            shared.stop.store(true, Ordering::Relaxed);
        }
        let is_new = gathered.take(shared, observer, false);
        if is_new && shared.wants_looks && aborted.is_none() {
            aborted = observer.look(&shared.so_far(zero));
            if aborted.is_some() {
                shared.stop.store(true, Ordering::Relaxed);
            }
        }
    }
    Ok((zero, aborted))
}

/// Seconds of the workers on their way to being merged.
#[derive(Default)]
struct Gathered {
    open: BTreeMap<u32, (usize, Second)>,
    done: Vec<SecondRow>,
}

impl Gathered {
    /// Takes what workers handed on; whether a second is whole.
    fn take(&mut self, shared: &Shared, observer: &mut dyn Observer, all: bool) -> bool {
        let before = self.done.len();
        let new =
            std::mem::take(&mut *shared.seconds.lock().expect("no holder of this lock panics"));
        for second in new {
            let (count, merged) =
                self.open.entry(second.second).or_insert_with(|| (0, Second::new(second.second)));
            *count += 1;
            merged.add(&second);
        }
        while let Some(first) = self.open.first_entry() {
            if !all && first.get().0 < shared.plan.threads {
                break;
            }
            let (_, second) = first.remove();
            observer.second(&shared.plan, &second);
            self.done.push(SecondRow::of(&second));
        }
        self.done.len() > before
    }
}

/// A worker thread.
fn work(shared: &Arc<Shared>, index: usize) -> WorkerResult {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let worker = Rc::new(RefCell::new(Worker::new(shared.clone(), index)));
    let local = tokio::task::LocalSet::new();
    let ended = local.block_on(&runtime, async {
        let count = worker.borrow().slots.len();
        // As many connects at once as a listen backlog takes.
        let permits = Rc::new(tokio::sync::Semaphore::new(100));
        for conn in 0..count {
            tokio::task::spawn_local(conn_task::run(worker.clone(), conn, permits.clone()));
        }
        schedule(shared, &worker).await
    });
    shared.finished.fetch_add(1, Ordering::Release);
    ended?;
    drop(local);
    let mut worker = worker.borrow_mut();
    let stats = std::mem::take(&mut worker.stats);
    let ledger = match &mut worker.workload {
        Workload::Redeem(r) => Some(std::mem::take(&mut r.ledger)),
        Workload::Plain(_) => None,
    };
    Ok((stats, ledger))
}

/// Units: nanoseconds. Requests due within the shortest sleep go out together.
const SHORTEST_SLEEP: u64 = 50_000;
const LONGEST_SLEEP: u64 = 1_000_000;
const BETWEEN_SWEEPS: u64 = 10_000_000;

/// The worker's clockwork: hands out what is due, watches timeouts, ends the run.
async fn schedule(shared: &Shared, worker: &RefCell<Worker>) -> io::Result<()> {
    while !is_connected(worker) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    report_ready(shared, &worker.borrow());
    let zero = loop {
        match shared.zero.load(Ordering::Acquire) {
            0 => tokio::time::sleep(Duration::from_micros(500)).await,
            ABORTED => return Ok(()),
            zero => break zero,
        }
    };
    worker.borrow_mut().start(zero);
    let timer = Timer::new()?;
    let mut drain_until = None;
    let mut next_sweep = 0;
    loop {
        let wait = {
            let mut w = worker.borrow_mut();
            let now = w.clock.now();
            w.tick(now);
            if shared.stop.load(Ordering::Relaxed) {
                w.cut_schedule(now);
            }
            if now >= next_sweep {
                w.expire(now);
                next_sweep = now + BETWEEN_SWEEPS;
            }
            w.reopen(now);
            w.assign_due(now);
            if w.is_schedule_over(now) {
                let until = *drain_until.get_or_insert(now + shared.plan.drain);
                if w.is_idle() || now >= until {
                    w.abandon(now);
                    w.finished(now);
                    return Ok(());
                }
            }
            match w.until_due(now) {
                // Due and not assigned: the connections are busy, and take it themselves.
                None | Some(0) => LONGEST_SLEEP,
                Some(ns) => ns.clamp(SHORTEST_SLEEP, LONGEST_SLEEP),
            }
        };
        timer.sleep(wait).await?;
    }
}

fn is_connected(worker: &RefCell<Worker>) -> bool {
    let w = worker.borrow();
    w.first_connects == w.slots.len()
}

fn report_ready(shared: &Shared, worker: &Worker) {
    if let Some(failure) = worker.down {
        *shared.connect_failure.lock().expect("no holder of this lock panics") =
            Some((failure, worker.why_down.clone()));
    }
    shared.opened.fetch_add(worker.open, Ordering::Relaxed);
    shared.ready.fetch_add(1, Ordering::Release);
}
