//! The conductor's side: splits a plan over agents, starts them together, merges what they
//! measured.
//!
//! Thread: the caller's; one per agent that reads its messages.

use std::collections::BTreeMap;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::Duration;

use crate::agents::AgentError;
use crate::agents::wire::{
    FromAgent, Line, Look, MOST_FROM_STRANGERS, Part, Sender, Task, ToAgent, VERSION, proof,
};
use crate::clock::{self, Clock};
use crate::http::tls::Trust;
use crate::plan::Plan;
use crate::run::{Measured, Observer, Outcomes, signals};
use crate::schedule::Share;
use crate::stats::{Second, SecondRow};
use crate::work::accepted::{Findings, Ledger};
use crate::work::redeem::merge_ledgers;

/// Questions for a clock; the quickest answer is the best.
const QUESTIONS: usize = 9;
/// Units: nanoseconds from the last question to the start.
const AHEAD: u64 = 300_000_000;

/// Who sends the load.
#[derive(Debug)]
pub struct Agents<'a> {
    pub at: &'a [String],
    pub token: &'a [u8],
    /// Whom their connections trust.
    pub trust: Trust,
    /// Nothing is said of their clocks.
    pub quiet: bool,
}

/// Runs the plan on agents, as if it were one generator.
pub fn run(
    plan: Plan,
    agents: &Agents<'_>,
    observer: &mut dyn Observer,
) -> Result<Outcomes, AgentError> {
    let count = agents.at.len();
    if plan.connections < count {
        let (agents, connections) = (count, plan.connections);
        return Err(AgentError::TooFewConnections { agents, connections });
    }
    let io = |at: &str| {
        let at = at.to_owned();
        move |source| AgentError::Io { at, source }
    };
    signals::listen().map_err(io("signals"))?;
    let clock = Clock::start();
    let mut lines = Vec::new();
    for (index, at) in agents.at.iter().enumerate() {
        let stream = TcpStream::connect(at).map_err(io(at))?;
        let mut line = Line::new(at.clone(), stream)?;
        greet(&mut line, agents.token)?;
        let task = Task {
            plan: share_of(&plan, index, count),
            trust: agents.trust.clone(),
            wants_looks: observer.wants_looks(),
        };
        line.send(&ToAgent::Task(Box::new(task)))?;
        lines.push(line);
    }
    for line in &mut lines {
        match line.receive(u64::MAX)? {
            FromAgent::Ready => {}
            other => return Err(unexpected(line, other)),
        }
    }
    let offsets = lines.iter_mut().map(|l| compare(l, clock)).collect::<Result<Vec<_>, _>>()?;
    let zero = clock.now() + AHEAD;
    let mut senders = Vec::new();
    for (line, offset) in lines.iter_mut().zip(&offsets) {
        if !agents.quiet {
            eprintln!(
                "agent {}: clocks compared within {:.2} ms",
                line.at,
                offset.uncertain as f64 / 2e6
            );
        }
        line.send(&ToAgent::Start(zero.wrapping_add(offset.ahead)))?;
        senders.push(line.sender()?);
    }
    let started_at = clock::wall_now();
    observer.starts(clock::wall_at(clock, zero));
    let plan = Arc::new(plan);
    let mut gathered = Gathered::new(plan.clone(), zero, count);
    gathered.hear(&listen(lines), &mut senders, observer)?;
    let (all, ledgers) = gathered.join();
    let ledger = merge_ledgers(ledgers);
    let (seconds, aborted) = (gathered.rows, gathered.aborted);
    Ok(Outcomes { ledger, seconds, started_at, aborted, ..all })
}

/// The plan of agent `index` of `of`.
fn share_of(plan: &Plan, index: usize, of: usize) -> Plan {
    let connections = plan.connections / of + usize::from(index < plan.connections % of);
    let share = Share { index: index as u64, of: of as u64 };
    let mut habits = plan.habits;
    habits.reopened_per_second /= of as f64;
    let threads = plan.threads.min(connections);
    Plan { threads, connections, share, habits, ..plan.clone() }
}

fn greet(line: &mut Line, token: &[u8]) -> Result<(), AgentError> {
    let FromAgent::Challenge { version, nonce } = line.receive(MOST_FROM_STRANGERS)? else {
        let detail = "no challenge".into();
        return Err(AgentError::Message { at: line.at.clone(), detail });
    };
    if version != VERSION {
        let at = line.at.clone();
        return Err(AgentError::Version { at, theirs: version, ours: VERSION });
    }
    line.send(&ToAgent::Proof(proof(token, &nonce)))?;
    match line.receive(MOST_FROM_STRANGERS)? {
        FromAgent::Welcome => Ok(()),
        other => Err(unexpected(line, other)),
    }
}

fn unexpected(line: &Line, message: FromAgent) -> AgentError {
    let at = line.at.clone();
    match message {
        FromAgent::Refused(reason) => AgentError::Refused { at, reason },
        _ => AgentError::Message { at, detail: "a message out of turn".into() },
    }
}

/// How far an agent's clock is ahead of ours (wrapping), and how exactly that is known.
#[derive(Clone, Copy, Debug)]
struct Offset {
    ahead: u64,
    uncertain: u64,
}

/// Source: Cristian, "Probabilistic clock synchronization": the answer of the shortest round trip
/// was given in its middle, give or take half of it.
fn compare(line: &mut Line, clock: Clock) -> Result<Offset, AgentError> {
    let mut best = Offset { ahead: 0, uncertain: u64::MAX };
    for _ in 0..QUESTIONS {
        let asked = clock.now();
        line.send(&ToAgent::Clock)?;
        let FromAgent::Clock(theirs) = line.receive(MOST_FROM_STRANGERS)? else {
            let detail = "no clock".into();
            return Err(AgentError::Message { at: line.at.clone(), detail });
        };
        let trip = clock.now() - asked;
        if trip < best.uncertain {
            best = Offset { ahead: theirs.wrapping_sub(asked + trip / 2), uncertain: trip };
        }
    }
    Ok(best)
}

type Heard = (usize, Result<FromAgent, AgentError>);

/// Reads every agent's messages into one channel, to the last or to an error.
fn listen(lines: Vec<Line>) -> Receiver<Heard> {
    let (tell, heard) = mpsc::channel();
    for (index, mut line) in lines.into_iter().enumerate() {
        let tell = tell.clone();
        std::thread::spawn(move || {
            loop {
                let message = line.receive(u64::MAX);
                let is_last = !matches!(message, Ok(FromAgent::Second(_) | FromAgent::Look(_)));
                // Nobody hears any more when another agent failed.
                if tell.send((index, message)).is_err() || is_last {
                    return;
                }
            }
        });
    }
    heard
}

/// What came from the agents.
struct Gathered {
    plan: Arc<Plan>,
    zero: u64,
    /// Per agent.
    parts: Vec<Option<Part>>,
    looks: Vec<Option<Look>>,
    /// Seconds, and from how many agents they came.
    open: BTreeMap<u32, (usize, Second)>,
    rows: Vec<SecondRow>,
    aborted: Option<String>,
}

impl Gathered {
    fn new(plan: Arc<Plan>, zero: u64, count: usize) -> Self {
        Self {
            plan,
            zero,
            parts: (0..count).map(|_| None).collect(),
            looks: (0..count).map(|_| None).collect(),
            open: BTreeMap::new(),
            rows: Vec::new(),
            aborted: None,
        }
    }

    fn are_done(&self) -> bool {
        self.parts.iter().all(Option::is_some)
    }

    /// Takes messages as they come, until every agent is done.
    fn hear(
        &mut self,
        heard: &Receiver<Heard>,
        senders: &mut [Sender],
        observer: &mut dyn Observer,
    ) -> Result<(), AgentError> {
        let mut is_told = false;
        while !self.are_done() {
            if !is_told && (signals::stopped() || self.aborted.is_some()) {
                is_told = true;
                for sender in senders.iter_mut() {
                    sender.send(&ToAgent::Stop)?;
                }
            }
            match heard.recv_timeout(Duration::from_millis(50)) {
                Ok((index, message)) => self.take(index, message?, observer)?,
                Err(RecvTimeoutError::Timeout) => {}
                // The threads send their last word before they end.
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        Ok(())
    }

    fn take(
        &mut self,
        index: usize,
        message: FromAgent,
        observer: &mut dyn Observer,
    ) -> Result<(), AgentError> {
        let at = || format!("agent {}", index + 1);
        match message {
            FromAgent::Second(second) => {
                let entry = self.open.entry(second.second);
                let (seen, sum) = entry.or_insert_with(|| (0, Second::new(second.second)));
                *seen += 1;
                sum.add(&second);
            }
            FromAgent::Look(look) => {
                self.looks[index] = Some(*look);
                self.look(observer);
            }
            FromAgent::Done(part) => self.parts[index] = Some(*part),
            FromAgent::Refused(reason) => return Err(AgentError::Refused { at: at(), reason }),
            _ => {
                let detail = "a message out of turn".into();
                return Err(AgentError::Message { at: at(), detail });
            }
        }
        let (count, all_done) = (self.parts.len(), self.are_done());
        while let Some(first) = self.open.first_entry() {
            if first.get().0 < count && !all_done {
                break;
            }
            let (_, second) = first.remove();
            observer.second(&self.plan, &second);
            self.rows.push(SecondRow::of(&second));
        }
        Ok(())
    }

    /// Shows the figures of all, once each has sent its own.
    fn look(&mut self, observer: &mut dyn Observer) {
        if self.looks.iter().any(Option::is_none) || self.aborted.is_some() {
            return;
        }
        let mut findings = Findings::default();
        let looks = self.looks.iter_mut().filter_map(Option::take);
        let measured = looks.map(|mut look| {
            findings.merge(look.take_findings());
            look.measured
        });
        let Some(all) = sum(measured) else { return };
        let mut so_far = all.outcomes(self.plan.clone(), self.zero);
        so_far.ledger.findings = findings;
        self.aborted = observer.look(&so_far);
    }

    /// The run as one, and each agent's ledger.
    fn join(&mut self) -> (Outcomes, Vec<Ledger>) {
        let parts = self.parts.iter_mut().filter_map(Option::take).map(Part::read);
        let (measured, ledgers): (Vec<_>, Vec<_>) = parts.unzip();
        // There is at least one agent, and each has sent its part.
        let all = sum(measured).expect("a run has agents");
        (all.outcomes(self.plan.clone(), self.zero), ledgers)
    }
}

fn sum(parts: impl IntoIterator<Item = Measured>) -> Option<Measured> {
    parts.into_iter().reduce(|mut sum, other| {
        sum.join(other);
        sum
    })
}
