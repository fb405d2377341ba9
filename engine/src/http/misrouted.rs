//! Requests that another node owns: passed on as they are, or sent there by 307.
//!
//! A member's calls go by the member's slot, a redemption's by the slot in its id, a stock change
//! to the home of its sale. What cannot be read goes nowhere: this node says what is wrong with it,
//! in the same words as every other.

use hyper::StatusCode;
use hyper::body::Incoming;
use hyper::header::{CONNECTION, CONTENT_LENGTH, DATE, HeaderName, HeaderValue, LOCATION};
use hyper::header::{TRANSFER_ENCODING, UPGRADE};
use hyper::http::request::Parts;

use super::body::{self, BODY_LEN_MAX};
use super::identity::parse_member;
use super::peers::{Answer, Peers, Side};
use super::problem::{Help, Kind, Problem};
use super::redemptions::redemption_id;
use super::reply::{Body, Label, Reply};
use super::route::{Route, Surface};
use super::worker::Worker;
use crate::cluster::map::sale_slot;
use crate::cluster::route::Decision;
use crate::units::{RedemptionId, Slot};

/// The slot that a call goes by; `None` where any node answers it.
fn slot_of(worker: &Worker, surface: Surface, route: Route<'_>, parts: &Parts) -> Option<Slot> {
    let of_member = || worker.identity.member(&parts.headers).ok().map(Slot::of);
    match route {
        Route::Redeem { .. } | Route::MyRedemptions | Route::MyPoints | Route::MyStatement => {
            of_member()
        }
        Route::Redemption { id } if surface != Surface::Admin => {
            // Without a member the answer is the same everywhere.
            of_member().and_then(|_| redemption_id(id).ok()).map(RedemptionId::slot)
        }
        Route::Confirm { id } | Route::Cancel { id } => {
            of_member().and_then(|_| redemption_id(id).ok()).map(RedemptionId::slot)
        }
        Route::Redemption { id } | Route::Reverse { id } => {
            redemption_id(id).ok().map(RedemptionId::slot)
        }
        Route::ChangePoints { member } | Route::Member { member } => {
            parse_member(member.as_bytes()).map(Slot::of)
        }
        Route::ChangeStock { sale, .. } => Some(sale_slot(sale)),
        _ => None,
    }
}

/// Where a call belongs; `None`: here.
///
/// Errors: `not-trusted`.
pub fn place(
    worker: &Worker,
    surface: Surface,
    route: Route<'_>,
    parts: &Parts,
) -> Result<Option<Decision>, Problem> {
    let Some(peers) = &worker.peers else { return Ok(None) };
    let Some(slot) = slot_of(worker, surface, route, parts) else { return Ok(None) };
    // Operators' tools are not asked to follow redirects.
    peers.place(slot, &parts.headers, surface != Surface::Admin)
}

/// Answers a request that does not belong here.
pub async fn answer(
    worker: &Worker,
    surface: Surface,
    decision: Decision,
    parts: &Parts,
    body: &mut Incoming,
) -> Result<Reply, Problem> {
    let peers = worker.peers.as_ref().ok_or(Kind::Internal)?;
    match decision {
        Decision::Here => Err(Kind::Internal.into()),
        Decision::Down(node) => Err(peers.down(node)),
        Decision::WrongNode(node) => Err(wrong_node(peers, peers.name(node))),
        Decision::Redirect(node) => {
            let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
            let url = format!("{}{path}", peers.map().node(node).public);
            let location = HeaderValue::try_from(url).map_err(|_| Kind::Internal)?;
            let mut response = hyper::Response::new(Body::Whole(None));
            *response.status_mut() = StatusCode::TEMPORARY_REDIRECT;
            response.headers_mut().insert(LOCATION, location);
            Ok(Reply { label: Label::Redirected, response })
        }
        Decision::Forward(node) => {
            let bytes = body::read(body, BODY_LEN_MAX, worker.patience()).await?;
            let side = if surface == Surface::Admin { Side::Admin } else { Side::Public };
            let answer = peers.send(node, &peers.ask_of(side, parts, bytes)).await?;
            Ok(pass_back(answer))
        }
    }
}

fn wrong_node(peers: &Peers, owner: &str) -> Problem {
    let detail = format!(
        "By this node's map, version {}, node {owner} owns it: the node that sent it here has \
         another map. Nothing was done.",
        peers.map().version()
    );
    Problem::with(Kind::WrongNode, Help::Detail(detail))
}

/// Headers that are about the connection, or that are made anew.
const OF_A_HOP: [HeaderName; 5] = [CONNECTION, CONTENT_LENGTH, DATE, TRANSFER_ENCODING, UPGRADE];

/// Another node's answer, as it was given.
pub fn pass_back(answer: Answer) -> Reply {
    let mut response = hyper::Response::new(Body::from(answer.body));
    *response.status_mut() = answer.status;
    *response.headers_mut() = answer.headers;
    for name in &OF_A_HOP {
        response.headers_mut().remove(name);
    }
    Reply { label: Label::Forwarded, response }
}

/// The elements of `{"FIELD":[…]}`, each as it was written.
pub fn elements<'a>(body: &'a [u8], field: &str) -> Option<Vec<&'a [u8]>> {
    let inner = body.strip_prefix(b"{\"")?.strip_prefix(field.as_bytes())?;
    let inner = inner.strip_prefix(b"\":[")?.strip_suffix(b"]}")?;
    let mut results = Vec::new();
    let (mut depth, mut from) = (0usize, 0);
    let (mut in_string, mut is_escaped) = (false, false);
    for (at, byte) in inner.iter().enumerate() {
        if in_string {
            match byte {
                _ if is_escaped => is_escaped = false,
                b'\\' => is_escaped = true,
                b'"' => in_string = false,
                _ => {}
            }
            continue;
        }
        match byte {
            b'"' => in_string = true,
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.checked_sub(1)?,
            b',' if depth == 0 => {
                results.push(&inner[from..at]);
                from = at + 1;
            }
            _ => {}
        }
    }
    if !inner.is_empty() {
        results.push(&inner[from..]);
    }
    (depth == 0 && !in_string).then_some(results)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_cut_into_its_elements() {
        let cut = |text: &'static str| {
            let results = elements(text.as_bytes(), "results")?;
            Some(results.iter().map(|r| String::from_utf8_lossy(r).into_owned()).collect())
        };
        let strings = |list: &[&str]| Some(list.iter().map(|&s| s.to_owned()).collect::<Vec<_>>());
        assert_eq!(cut(r#"{"results":[]}"#), strings(&[]));
        assert_eq!(cut(r#"{"results":[{"a":1}]}"#), strings(&[r#"{"a":1}"#]));
        assert_eq!(
            cut(r#"{"results":[{"a":",]}\"{"},{"b":[1,{"c":2}]}]}"#),
            strings(&[r#"{"a":",]}\"{"}"#, r#"{"b":[1,{"c":2}]}"#])
        );
        for broken in ["", "{}", r#"{"results":[{]}"#, r#"{"results":["]}"#, r#"{"results":[}]}"#] {
            assert_eq!(cut(broken), None, "{broken}");
        }
    }
}
