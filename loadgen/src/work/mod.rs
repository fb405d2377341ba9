//! What is sent, and what an answer means.

pub mod accepted;
pub mod plain;
pub mod redeem;
pub mod template;

use crate::http::Answer;
use crate::plan::{Plan, Work};
use crate::stats::Class;

/// A request on its way, until it has a final outcome.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// Its number in the run's one sequence; decides all that is random about it.
    pub number: u64,
    pub kind: Kind,
    pub phase: u16,
    /// Attempts so far.
    pub attempt: u32,
    /// Units: nanoseconds of the run's clock.
    pub planned: u64,
    /// A connection that must not be used while there is another.
    pub avoid: u32,
}

/// No connection to avoid.
pub const ANY: u32 = u32::MAX;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Plain,
    Redeem,
    /// A look at the sale.
    Poll,
    /// The same redemption once more, with its key.
    Duplicate,
    Confirm,
    Cancel,
}

/// What an answer means for its request.
#[derive(Clone, Copy, Debug)]
pub struct Judged<'a> {
    /// The problem's code, or empty.
    pub code: &'a str,
    /// What the member does next, and after how many nanoseconds.
    pub next: Option<(Kind, u64)>,
}

/// The work of one worker.
#[derive(Debug)]
pub enum Workload {
    Plain(Box<plain::Plain>),
    Redeem(Box<redeem::Redeem>),
}

impl Workload {
    pub fn new(plan: &Plan) -> Self {
        match &plan.work {
            Work::Http(work) => {
                let plain = plain::Plain::new(&plan.targets, work, plan.seed);
                Self::Plain(Box::new(plain.expect("the plan was checked with these templates")))
            }
            Work::Redeem(work) => {
                Self::Redeem(Box::new(redeem::Redeem::new(&plan.targets, work, plan.seed)))
            }
        }
    }

    /// What the request with this number is.
    pub fn first_kind(&self, number: u64, phase: u16) -> Kind {
        match self {
            Self::Plain(_) => Kind::Plain,
            Self::Redeem(r) => r.first_kind(number, phase),
        }
    }

    /// Whether the answer to this request comes without a body.
    pub fn is_bodiless(&self, request: &Request) -> bool {
        match self {
            Self::Plain(p) => p.is_head(request.number),
            Self::Redeem(_) => false,
        }
    }

    /// Further keys that a bot sends at once with this request.
    pub fn hammers(&self, number: u64) -> u32 {
        match self {
            Self::Plain(_) => 0,
            Self::Redeem(r) => r.hammers(number),
        }
    }

    /// What else is to be sent when this request is first taken up, and how much later.
    pub fn companion(&self, number: u64) -> Option<(Kind, u64)> {
        match self {
            Self::Plain(_) => None,
            Self::Redeem(r) => r.companion(number),
        }
    }

    /// Appends the request's bytes, for the target with this index.
    pub fn compose(&mut self, request: &Request, target: usize, out: &mut Vec<u8>) {
        match self {
            Self::Plain(p) => p.compose(request.number, target, out),
            Self::Redeem(r) => r.compose(request, target, out),
        }
    }

    /// Takes note of an answer. `sent` and `now` bound the attempt.
    pub fn judge<'a>(
        &mut self,
        request: &Request,
        answer: &Answer<'a>,
        sent: u64,
        now: u64,
    ) -> Judged<'a> {
        match self {
            Self::Plain(_) => Judged { code: "", next: None },
            Self::Redeem(r) => r.judge(request, answer, sent, now),
        }
    }

    /// A request ended without an answer: whether it had an effect is not known.
    pub fn unknown(&mut self, request: &Request) {
        if let Self::Redeem(r) = self {
            r.unknown(request);
        }
    }

    /// What an answer of this kind means for the run.
    pub const fn class(&self, status: u16, code: &str) -> Class {
        match (self, status) {
            (_, 200..=399) => Class::Good,
            (Self::Redeem(_), 403 | 409) if !code.is_empty() => Class::Refused,
            _ => Class::Error,
        }
    }
}
