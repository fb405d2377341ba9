//! `onrush-load agent`: sends load for runs that are conducted elsewhere, one at a time.
//!
//! Thread: the caller's; beside it one that hears the conductor while load runs.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::agents::AgentError;
use crate::agents::wire::{
    FromAgent, Line, Look, MOST_FROM_STRANGERS, Part, Sender, Task, ToAgent, VERSION, is_proof,
    nonce,
};
use crate::clock::Clock;
use crate::http::{Target, tls};
use crate::plan::Plan;
use crate::run::{self, Observer, Outcomes, signals};
use crate::stats::Second;

/// Serves until a signal ends it. `listening` is told the address.
pub fn serve(
    listen: SocketAddr,
    token: &[u8],
    listening: impl FnOnce(SocketAddr),
) -> io::Result<()> {
    signals::listen()?;
    let listener = TcpListener::bind(listen)?;
    listening(listener.local_addr()?);
    listener.set_nonblocking(true)?;
    while !signals::stopped() {
        match listener.accept() {
            Ok((stream, from)) => {
                stream.set_nonblocking(false)?;
                if let Err(e) = conducted(stream, from, token) {
                    eprintln!("onrush-load: {e}");
                }
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                std::thread::sleep(Duration::from_millis(50));
            }
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// One conductor, from its first word to the end of its run.
fn conducted(stream: TcpStream, from: SocketAddr, token: &[u8]) -> Result<(), AgentError> {
    let mut line = Line::new(from.to_string(), stream)?;
    let patience = |line: &Line, time| {
        let set = line.stream().set_read_timeout(time);
        set.map_err(|source| AgentError::Io { at: from.to_string(), source })
    };
    // Somebody who says nothing must not keep others out.
    patience(&line, Some(Duration::from_secs(5)))?;
    let nonce = nonce();
    line.send(&FromAgent::Challenge { version: VERSION, nonce: nonce.clone() })?;
    match line.receive(MOST_FROM_STRANGERS)? {
        ToAgent::Proof(proof) if is_proof(token, &nonce, &proof) => {
            line.send(&FromAgent::Welcome)?;
        }
        _ => {
            let reason = "the token is another one".to_owned();
            line.send(&FromAgent::Refused(reason.clone()))?;
            return Err(AgentError::Refused { at: line.at, reason });
        }
    }
    patience(&line, None)?;
    let ToAgent::Task(task) = line.receive(u64::MAX)? else {
        return Err(AgentError::Message { at: line.at, detail: "no plan".into() });
    };
    match carry_out(*task, &mut line) {
        Ok(part) => line.send(&FromAgent::Done(Box::new(part))),
        Err(reason) => {
            line.send(&FromAgent::Refused(reason.clone()))?;
            Err(AgentError::Refused { at: line.at, reason })
        }
    }
}

fn carry_out(task: Task, line: &mut Line) -> Result<Part, String> {
    let Task { mut plan, trust, wants_looks } = task;
    tls::trust(&trust).map_err(|e| e.to_string())?;
    for target in &mut plan.targets {
        // The name may stand for another address here.
        *target = Target::parse(&target.url).map_err(|e| e.to_string())?;
    }
    let sender = line.sender().map_err(|e| e.to_string())?;
    let stop = Arc::new(AtomicBool::new(false));
    let mut conducted = Conducted { line, sender, wants_looks, stop: stop.clone(), failed: None };
    let outcomes = run::run(plan, &mut conducted).map_err(|e| e.to_string())?;
    if let Some(e) = conducted.failed {
        return Err(e.to_string());
    }
    Ok(Part::of(outcomes))
}

/// The run's observer: every word goes to the conductor.
struct Conducted<'l> {
    line: &'l mut Line,
    sender: Sender,
    wants_looks: bool,
    /// Relaxed: a flag that is polled.
    stop: Arc<AtomicBool>,
    failed: Option<AgentError>,
}

impl Conducted<'_> {
    /// Answers for its clock until the start is known, and hears for the stop from then on.
    fn wait_for_start(&mut self, clock: Clock) -> Result<u64, AgentError> {
        self.sender.send(&FromAgent::Ready)?;
        let start = loop {
            match self.line.receive(u64::MAX)? {
                ToAgent::Clock => self.sender.send(&FromAgent::Clock(clock.now()))?,
                ToAgent::Start(at) => break at,
                _ => {
                    let detail = "expected a start".into();
                    return Err(AgentError::Message { at: self.line.at.clone(), detail });
                }
            }
        };
        let stream = self.line.stream().try_clone();
        let at = self.line.at.clone();
        let stream = stream.map_err(|source| AgentError::Io { at: at.clone(), source })?;
        let (mut line, stop) = (Line::new(at, stream)?, self.stop.clone());
        // It ends with the connection, or with the stop: a conductor that is gone wants no load.
        std::thread::spawn(move || {
            let _: Result<ToAgent, _> = line.receive(MOST_FROM_STRANGERS);
            stop.store(true, Ordering::Relaxed);
        });
        Ok(start)
    }
}

impl Observer for Conducted<'_> {
    fn wants_looks(&self) -> bool {
        self.wants_looks
    }

    fn start(&mut self, clock: Clock) -> Option<u64> {
        let start = self.wait_for_start(clock);
        start.map_err(|e| self.failed = Some(e)).ok()
    }

    fn second(&mut self, _plan: &Plan, second: &Second) {
        if self.failed.is_none() {
            let message = FromAgent::Second(Box::new(second.clone()));
            self.failed = self.sender.send(&message).err();
        }
    }

    /// What follows from it, the conductor says.
    fn look(&mut self, so_far: &Outcomes) -> Option<String> {
        if self.failed.is_none() {
            let message = FromAgent::Look(Box::new(Look::of(so_far)));
            self.failed = self.sender.send(&message).err();
        }
        None
    }

    fn stops(&self) -> bool {
        self.failed.is_some() || self.stop.load(Ordering::Relaxed)
    }
}
