//! Redemptions: who wants what, under which key, and what the answers say.
//!
//! All that is random about a request follows from the seed and its number, so nothing needs to be
//! remembered until a redemption is accepted: memory is bounded by the stock, not by the traffic.

use serde::Deserialize;
use xxhash_rust::xxh3::xxh3_64;

use crate::http::{Answer, Target};
use crate::plan::RedeemWork;
use crate::random::Random;
use crate::work::accepted::{Accepted, Finding, Ledger, State};
use crate::work::{Judged, Kind, Request};

/// The redemptions of one worker.
#[derive(Debug)]
pub struct Redeem {
    work: RedeemWork,
    seed: u64,
    /// Running sums of the items' weights.
    weights: Vec<f64>,
    /// Per target.
    heads: Vec<Heads>,
    /// Per item: the body in one step, and as a hold.
    bodies: Vec<[Vec<u8>; 2]>,
    pub ledger: Ledger,
}

#[derive(Debug)]
struct Heads {
    /// All of a look at the sale.
    poll: Vec<u8>,
    /// Up to the member's id.
    redeem: Vec<u8>,
    /// `POST …/redemptions/`, to be followed by the id.
    step: Vec<u8>,
    host: Vec<u8>,
}

/// All that is random about a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    pub member: u64,
    pub item: usize,
    pub hold: bool,
    pub duplicate: bool,
    fate: Fate,
    /// A fresh stream for waiting times.
    spread: u64,
}

/// What a member does with a hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Confirm,
    Cancel,
    Abandon,
}

/// The body of a 201, as the API defines it.
#[derive(Deserialize)]
struct Redemption<'a> {
    id: &'a str,
    sale: &'a str,
    sku: &'a str,
    quantity: u32,
    points: u64,
    state: &'a str,
    balance: u64,
}

/// The key of a request. Shared by its retries and duplicates, and the same in every run with this
/// seed: a second run against the same sale replays, and spends nothing.
pub fn write_key(out: &mut Vec<u8>, seed: u64, number: u64) {
    let mut digits = itoa::Buffer::new();
    out.extend_from_slice(b"load-");
    out.extend_from_slice(digits.format(seed).as_bytes());
    out.push(b'-');
    out.extend_from_slice(digits.format(number).as_bytes());
}

/// The key as text.
pub fn key(seed: u64, number: u64) -> String {
    format!("load-{seed}-{number}")
}

/// A bot's further keys have the request's number with a count above these bits; the schedule's
/// numbers stay below them.
const HAMMER_SHIFT: u32 = 40;

/// The number of a bot's further key: `count` from 1.
pub const fn hammer_number(number: u64, count: u32) -> u64 {
    number | (count as u64) << HAMMER_SHIFT
}

/// The number that the schedule gave to a bot's first key; any other is its own.
const fn planned_number(number: u64) -> u64 {
    number & ((1 << HAMMER_SHIFT) - 1)
}

/// What the request with this number is about. A bot's further keys want what its first one wants.
pub fn choose(work: &RedeemWork, weights: &[f64], seed: u64, number: u64) -> Choice {
    let mut random = Random::of_request(seed, planned_number(number));
    let member = work.member(work.choice.pick(&mut random, work.first_member, work.last_member));
    let pick = random.unit() * weights.last().copied().unwrap_or(0.0);
    let item = weights.partition_point(|&w| w <= pick).min(weights.len() - 1);
    let hold = random.chance(work.holds);
    let duplicate = random.chance(work.duplicates);
    let fate = random.unit();
    let fate = if fate < work.confirms {
        Fate::Confirm
    } else if fate < work.confirms + work.cancels {
        Fate::Cancel
    } else {
        Fate::Abandon
    };
    Choice { member, item, hold, duplicate, fate, spread: random.next() }
}

/// Running sums of the items' weights, as [`choose`] wants them.
pub fn running_weights(work: &RedeemWork) -> Vec<f64> {
    let mut sum = 0.0;
    work.items
        .iter()
        .map(|i| {
            sum += i.weight;
            sum
        })
        .collect()
}

/// Units: nanoseconds, at most, between a request and its duplicate.
const DUPLICATE_WITHIN: u64 = 20_000_000;

impl Redeem {
    pub fn new(targets: &[Target], work: &RedeemWork, seed: u64) -> Self {
        let heads = targets
            .iter()
            .map(|t| {
                let (base, host) = (t.base_path(), &t.host);
                let sale = &work.sale;
                Heads {
                    poll: format!("GET {base}/v1/sales/{sale} HTTP/1.1\r\nHost: {host}\r\n\r\n")
                        .into_bytes(),
                    redeem: format!(
                        "POST {base}/v1/sales/{sale}/redemptions HTTP/1.1\r\nHost: {host}\r\n\
                         Content-Type: application/json\r\nX-Member-Id: "
                    )
                    .into_bytes(),
                    step: format!("POST {base}/v1/redemptions/").into_bytes(),
                    host: host.clone().into_bytes(),
                }
            })
            .collect();
        let body = |sku: &str, hold: bool| {
            let hold = if hold { ",\"hold\":true" } else { "" };
            let text = format!("{{\"sku\":\"{sku}\",\"quantity\":{}{hold}}}", work.quantity);
            format!("\r\nContent-Length: {}\r\n\r\n{text}", text.len()).into_bytes()
        };
        Self {
            seed,
            weights: running_weights(work),
            heads,
            bodies: work.items.iter().map(|i| [body(&i.sku, false), body(&i.sku, true)]).collect(),
            ledger: Ledger::default(),
            work: work.clone(),
        }
    }

    fn choice(&self, number: u64) -> Choice {
        choose(&self.work, &self.weights, self.seed, number)
    }

    pub fn first_kind(&self, number: u64, phase: u16) -> Kind {
        let share = self.work.polls.get(phase as usize).copied().unwrap_or(0.0);
        if share > 0.0 && Random::of_request(!self.seed, number).chance(share) {
            Kind::Poll
        } else {
            Kind::Redeem
        }
    }

    pub fn hammers(&self, number: u64) -> u32 {
        let is_bot = Random::of_request(self.seed ^ 0xB07, number).chance(self.work.bots);
        if is_bot { self.work.hammer.saturating_sub(1) } else { 0 }
    }

    pub fn companion(&self, number: u64) -> Option<(Kind, u64)> {
        let choice = self.choice(number);
        choice.duplicate.then_some((Kind::Duplicate, choice.spread % DUPLICATE_WITHIN))
    }

    pub fn compose(&mut self, request: &Request, target: usize, out: &mut Vec<u8>) {
        let choice = self.choice(request.number);
        let heads = &self.heads[target];
        let mut digits = itoa::Buffer::new();
        match request.kind {
            Kind::Poll => out.extend_from_slice(&heads.poll),
            Kind::Confirm | Kind::Cancel => {
                let id = self.ledger.accepted.get(&request.number).map_or("", |a| &*a.id);
                out.extend_from_slice(&heads.step);
                out.extend_from_slice(id.as_bytes());
                let confirms = request.kind == Kind::Confirm;
                out.extend_from_slice(if confirms { b"/confirm" } else { b"/cancel" });
                out.extend_from_slice(b" HTTP/1.1\r\nHost: ");
                out.extend_from_slice(&heads.host);
                out.extend_from_slice(b"\r\nContent-Length: 0\r\nX-Member-Id: ");
                out.extend_from_slice(digits.format(choice.member).as_bytes());
                out.extend_from_slice(b"\r\n\r\n");
            }
            Kind::Redeem | Kind::Duplicate | Kind::Plain => {
                out.extend_from_slice(&heads.redeem);
                out.extend_from_slice(digits.format(choice.member).as_bytes());
                out.extend_from_slice(b"\r\nIdempotency-Key: ");
                write_key(out, self.seed, request.number);
                out.extend_from_slice(&self.bodies[choice.item][usize::from(choice.hold)]);
            }
        }
    }

    pub fn judge<'a>(
        &mut self,
        request: &Request,
        answer: &Answer<'a>,
        sent: u64,
        now: u64,
    ) -> Judged<'a> {
        let code = if answer.status >= 400 { problem_code(answer.body) } else { "" };
        let next = match request.kind {
            Kind::Poll => None,
            Kind::Confirm | Kind::Cancel => {
                self.stepped(request, answer.status);
                None
            }
            _ if answer.status == 201 => self.accepted(request, answer, now),
            _ => {
                self.refused(request, answer, code, sent);
                None
            }
        };
        Judged { code, next }
    }

    pub fn unknown(&mut self, request: &Request) {
        match request.kind {
            Kind::Poll => {}
            Kind::Confirm | Kind::Cancel => {
                if let Some(a) = self.ledger.accepted.get_mut(&request.number) {
                    a.state = State::Unknown;
                }
            }
            _ if !self.ledger.accepted.contains_key(&request.number) => {
                self.ledger.unknown.insert(request.number);
            }
            _ => {}
        }
    }

    fn accepted(
        &mut self,
        request: &Request,
        answer: &Answer<'_>,
        now: u64,
    ) -> Option<(Kind, u64)> {
        let number = request.number;
        let choice = self.choice(number);
        let parsed: Redemption<'_> = match serde_json::from_slice(answer.body) {
            Ok(parsed) => parsed,
            Err(e) => {
                self.find(
                    "malformed-answer",
                    number,
                    &choice,
                    &format!("a 201 is not as defined: {e}"),
                );
                return None;
            }
        };
        let body_hash = xxh3_64(answer.body);
        if let Some(known) = self.ledger.accepted.get_mut(&number) {
            known.answers += 1;
            if known.body_hash != body_hash {
                let text = format!(
                    "one key, two answers: first redemption {} with balance {}, then {} with {}",
                    known.id, known.balance, parsed.id, parsed.balance
                );
                self.find("answer-changed", number, &choice, &text);
            }
            return None;
        }
        let asked = &self.work.items[choice.item].sku;
        let state = match parsed.state {
            "held" => State::Held,
            "confirmed" => State::Confirmed,
            _ => State::Unknown,
        };
        let expected = if choice.hold { State::Held } else { State::Confirmed };
        if (parsed.sale, parsed.sku, parsed.quantity, state)
            != (&*self.work.sale, &**asked, self.work.quantity, expected)
        {
            let text = format!(
                "asked for {} of {asked} in {}, told {} of {} in {}, {}",
                self.work.quantity,
                self.work.sale,
                parsed.quantity,
                parsed.sku,
                parsed.sale,
                parsed.state
            );
            self.find("wrong-answer", number, &choice, &text);
        }
        self.ledger.unknown.remove(&number);
        let count = self.ledger.by_item.entry(choice.item).or_default();
        count.accepted += 1;
        count.units += u64::from(parsed.quantity);
        count.points += parsed.points;
        count.last_accepted = count.last_accepted.max(Some(planned_number(number)));
        let next = match choice.fate {
            _ if state != State::Held => None,
            Fate::Abandon => None,
            fate => {
                let wait = choice.spread % self.work.think.max(1);
                let kind = if fate == Fate::Confirm { Kind::Confirm } else { Kind::Cancel };
                Some((kind, wait))
            }
        };
        let accepted = Accepted {
            member: choice.member,
            id: parsed.id.into(),
            item: choice.item as u16,
            quantity: parsed.quantity,
            points: parsed.points,
            balance: parsed.balance,
            state,
            body_hash,
            answers: 1,
            answered_at: now,
        };
        self.ledger.accepted.insert(number, accepted);
        next
    }

    /// A refusal, or an answer that settles nothing.
    fn refused(&mut self, request: &Request, answer: &Answer<'_>, code: &str, sent: u64) {
        let (number, status) = (request.number, answer.status);
        if code == "sold-out" {
            let item = self.choice(number).item;
            let count = self.ledger.by_item.entry(item).or_default();
            let is_final = memchr::memmem::find(answer.body, b"\"final\":true").is_some();
            count.refused(planned_number(number), is_final);
        }
        // A refusal sent for before the acceptance was known may have been decided before it.
        let settles = !matches!(status, 429 | 500..=599);
        let late = self.ledger.accepted.get(&number).is_some_and(|a| sent > a.answered_at);
        if settles && late {
            let choice = self.choice(number);
            let text = format!("accepted before, then told {status} {code} for the same key");
            self.find("answer-changed", number, &choice, &text);
        }
    }

    fn stepped(&mut self, request: &Request, status: u16) {
        let state = match (request.kind, status) {
            (Kind::Confirm, 200) => State::Confirmed,
            (Kind::Cancel, 200) => State::Released,
            // An attempt before this one may have done it, or the hold's end came first.
            _ if request.attempt > 0 => State::Unknown,
            // 503 and the like are tried again; others leave the hold to its own end.
            _ => return,
        };
        if let Some(a) = self.ledger.accepted.get_mut(&request.number) {
            a.state = state;
        }
    }

    fn find(&mut self, kind: &'static str, number: u64, choice: &Choice, text: &str) {
        let text = format!(
            "member {}, key {}, item {}: {text}",
            choice.member,
            key(self.seed, number),
            self.work.items[choice.item].sku
        );
        self.ledger.findings.push(Finding { kind, text });
    }
}

/// The `code` of a problem, without parsing the rest.
pub fn problem_code(body: &[u8]) -> &str {
    let Some(at) = memchr::memmem::find(body, b"\"code\"") else { return "" };
    let rest = body[at + 6..].trim_ascii_start();
    let Some(rest) = rest.strip_prefix(b":") else { return "" };
    let Some(rest) = rest.trim_ascii_start().strip_prefix(b"\"") else { return "" };
    let end = memchr::memchr(b'"', rest).unwrap_or(0).min(64);
    std::str::from_utf8(&rest[..end]).unwrap_or("")
}

/// Merges what workers learned; numbers are theirs alone, so nothing collides.
pub fn merge_ledgers(ledgers: impl IntoIterator<Item = Ledger>) -> Ledger {
    let mut all = Ledger::default();
    for mut l in ledgers {
        // It lets go of the one as it fills the other.
        all.accepted.append(&mut l.accepted);
        all.unknown.extend(l.unknown);
        for (item, count) in l.by_item {
            all.by_item.entry(item).or_default().add(&count);
        }
        all.findings.merge(l.findings);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Item;
    use crate::work::ANY;

    fn work() -> RedeemWork {
        RedeemWork {
            sale: "s1".into(),
            items: vec![
                Item { sku: "a".into(), weight: 3.0 },
                Item { sku: "b".into(), weight: 1.0 },
            ],
            first_member: 10,
            last_member: 19,
            listed: None,
            choice: crate::members::Choice::Uniform,
            polls: vec![0.0],
            quantity: 1,
            holds: 0.5,
            duplicates: 0.1,
            bots: 0.2,
            hammer: 5,
            confirms: 0.6,
            cancels: 0.3,
            think: 1000,
        }
    }

    fn redeem() -> Redeem {
        Redeem::new(&[Target::parse("http://127.0.0.1:1/base/").unwrap()], &work(), 42)
    }

    fn request(number: u64, kind: Kind) -> Request {
        Request { number, kind, phase: 0, attempt: 0, planned: 0, avoid: ANY }
    }

    fn answer(status: u16, body: &str) -> Answer<'_> {
        let body = body.as_bytes();
        let body_bytes = body.len() as u64;
        Answer { status, body, body_bytes, close: false, retry_after: None, replayed: false }
    }

    fn body(r: &Redeem, number: u64, id: &str, balance: u64) -> String {
        let c = r.choice(number);
        let sku = &r.work.items[c.item].sku;
        let state = if c.hold { "held" } else { "confirmed" };
        format!(
            concat!(
                r#"{{"id":"{}","sale":"s1","sku":"{}","quantity":1,"points":5,"state":"{}","#,
                r#""balance":{}}}"#
            ),
            id, sku, state, balance
        )
    }

    #[test]
    fn choices_follow_the_shares() {
        let r = redeem();
        let all: Vec<_> = (0..20_000).map(|n| r.choice(n)).collect();
        let share = |f: &dyn Fn(&Choice) -> bool| {
            all.iter().filter(|c| f(c)).count() as f64 / all.len() as f64
        };
        assert!(all.iter().all(|c| (10..=19).contains(&c.member)));
        let close = |got: f64, want: f64| assert!((got - want).abs() < 0.02, "{got} {want}");
        close(share(&|c| c.item == 0), 0.75);
        close(share(&|c| c.hold), 0.5);
        close(share(&|c| c.duplicate), 0.1);
        close(share(&|c| c.fate == Fate::Confirm), 0.6);
        close(share(&|c| c.fate == Fate::Cancel), 0.3);
        close(share(&|c| c.member == 19), 0.1);
        let bots = (0..20_000).filter(|&n| r.hammers(n) == 4).count() as f64 / 20_000.0;
        close(bots, 0.2);
        assert_eq!(r.choice(hammer_number(7, 3)), r.choice(7));
        assert_ne!(key(1, hammer_number(7, 3)), key(1, 7));
    }

    #[test]
    fn requests_are_what_the_api_defines() {
        let mut r = redeem();
        let n = (0..1000).find(|&n| r.choice(n).hold && r.choice(n).item == 1).unwrap();
        let mut out = Vec::new();
        r.compose(&request(n, Kind::Redeem), 0, &mut out);
        let member = r.choice(n).member;
        let text = String::from_utf8(out).unwrap();
        let expected = format!(
            "POST /base/v1/sales/s1/redemptions HTTP/1.1\r\nHost: 127.0.0.1:1\r\n\
             Content-Type: application/json\r\nX-Member-Id: {member}\r\n\
             Idempotency-Key: load-42-{n}\r\nContent-Length: 37\r\n\r\n\
             {{\"sku\":\"b\",\"quantity\":1,\"hold\":true}}"
        );
        assert_eq!(
            text,
            expected.replace("37", &expected.rsplit("\r\n").next().unwrap().len().to_string())
        );
        let held = body(&r, n, "the-id", 1);
        r.judge(&request(n, Kind::Redeem), &answer(201, &held), 0, 1);
        let mut out = Vec::new();
        r.compose(&request(n, Kind::Confirm), 0, &mut out);
        let text = String::from_utf8(out).unwrap();
        assert!(
            text.starts_with("POST /base/v1/redemptions/the-id/confirm HTTP/1.1\r\n"),
            "{text}"
        );
        assert!(text.contains(&format!("X-Member-Id: {member}\r\n")) && text.ends_with("\r\n\r\n"));
    }

    #[test]
    fn a_key_that_is_answered_twice_in_different_words_is_found() {
        let mut r = redeem();
        let first = body(&r, 1, "x", 100);
        r.judge(&request(1, Kind::Redeem), &answer(201, &first), 0, 10);
        r.judge(&request(1, Kind::Duplicate), &answer(201, &first), 20, 30);
        assert_eq!(r.ledger.findings.total(), 0);
        assert_eq!(r.ledger.accepted[&1].answers, 2);
        let other = body(&r, 1, "y", 95);
        r.judge(&request(1, Kind::Duplicate), &answer(201, &other), 20, 30);
        assert_eq!(r.ledger.findings.total(), 1);
    }

    #[test]
    fn a_refusal_after_the_acceptance_is_found_and_one_that_crossed_it_is_not() {
        let mut r = redeem();
        let first = body(&r, 1, "x", 100);
        let sold_out = r#"{"title":"x","code": "sold-out"}"#;
        r.judge(&request(1, Kind::Redeem), &answer(201, &first), 0, 10);
        let judged = r.judge(&request(1, Kind::Duplicate), &answer(409, sold_out), 5, 12);
        assert_eq!((judged.code, r.ledger.findings.total()), ("sold-out", 0));
        r.judge(&request(1, Kind::Duplicate), &answer(503, "{}"), 15, 20);
        assert_eq!(r.ledger.findings.total(), 0);
        r.judge(&request(1, Kind::Duplicate), &answer(409, sold_out), 15, 20);
        assert_eq!(r.ledger.findings.total(), 1);
    }

    #[test]
    fn answers_about_something_else_or_out_of_shape_are_found() {
        let mut r = redeem();
        let other = body(&r, 1, "x", 1).replace("\"s1\"", "\"s2\"");
        r.judge(&request(1, Kind::Redeem), &answer(201, &other), 0, 1);
        r.judge(&request(2, Kind::Redeem), &answer(201, "{}"), 0, 1);
        let kinds: Vec<_> = r.ledger.findings.examples().iter().map(|f| f.kind).collect();
        assert_eq!(kinds, ["wrong-answer", "malformed-answer"]);
    }
}
