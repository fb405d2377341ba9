//! Whoever was refused for stock last asks once more, with the same key.
//!
//! Of several nodes one may have no unit for a moment while others have some: it refuses, gets
//! units, and has them for the next who asks. When nobody does, because the load is over, the
//! refusal proves nothing. So its member comes back, as members do: who is accepted now could have
//! had a unit all along, and who is refused for all the time that answers are waited for, though
//! units are free and nobody else asks, cannot have them.

use std::slice;
use std::thread;
use std::time::Duration;

use crate::check::CheckError;
use crate::check::after::Check;
use crate::http::Answer;
use crate::http::once::Asker;
use crate::work::accepted::Ledger;
use crate::work::redeem::{Redeem, problem_code};
use crate::work::{ANY, Kind, Request};

/// What such a member is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Again {
    Accepted,
    /// For stock, on every node, again and again.
    Refused,
    /// For another reason, or not for stock on every node: of the stock that says nothing.
    Unclear,
}

const PAUSE: Duration = Duration::from_millis(100);

/// Asks every node in turn. What is accepted is in the ledger like everything else.
///
/// Errors: no node could be asked.
pub fn ask(check: &Check<'_>, ledger: &mut Ledger, number: u64) -> Result<Again, CheckError> {
    let targets = &check.plan.targets;
    let mut redeem = Redeem::new(targets, check.work, check.plan.seed);
    let request =
        Request { number, kind: Kind::Redeem, phase: 0, attempt: 1, planned: 0, avoid: ANY };
    let mut left = check.options.timeout;
    loop {
        let (mut refused, mut failed) = (0, None);
        for (index, target) in targets.iter().enumerate() {
            let mut bytes = Vec::new();
            redeem.compose(&request, index, &mut bytes);
            let mut asker = Asker::new(slice::from_ref(target), check.options.timeout);
            let reply = match asker.send(&bytes) {
                Ok(reply) => reply,
                Err(e) => {
                    failed = Some(e);
                    continue;
                }
            };
            match reply.status {
                201 => {
                    std::mem::swap(&mut redeem.ledger, ledger);
                    let (body, body_bytes) = (&*reply.body, reply.body.len() as u64);
                    let answer = Answer {
                        status: 201,
                        body,
                        body_bytes,
                        close: false,
                        retry_after: None,
                        replayed: false,
                    };
                    // After all others.
                    redeem.judge(&request, &answer, u64::MAX, u64::MAX);
                    std::mem::swap(&mut redeem.ledger, ledger);
                    return Ok(Again::Accepted);
                }
                409 if problem_code(&reply.body) == "sold-out" => refused += 1,
                429 | 500..=599 => {}
                _ => return Ok(Again::Unclear),
            }
        }
        if left.is_zero() {
            return match failed {
                Some(e) if refused == 0 => Err(e.into()),
                _ if refused == targets.len() => Ok(Again::Refused),
                _ => Ok(Again::Unclear),
            };
        }
        thread::sleep(PAUSE.min(left));
        left = left.saturating_sub(PAUSE);
    }
}
