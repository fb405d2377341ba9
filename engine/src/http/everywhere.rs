//! Operators' calls that concern every node: told to all at the same time, answered by this one,
//! or by a problem that names the nodes that did not do it. Each of them may be repeated: a sale
//! that is defined, open, paused or closed already stays so.

use std::future::poll_fn;
use std::pin::Pin;

use bytes::Bytes;
use hyper::HeaderMap;
use hyper::http::request::Parts;
use serde_json::Value;

use super::batch::poll_all;
use super::parse;
use super::peers::{Peers, Side};
use super::problem::{Help, Kind, NodeMissed, Problem};
use super::reply::Reply;
use super::worker::Worker;
use crate::cluster::map::NodeIndex;

/// Runs all at the same time, on this thread.
pub async fn join<F: Future>(futures: impl IntoIterator<Item = F>) -> Vec<F::Output> {
    let mut running: Vec<Pin<Box<F>>> = futures.into_iter().map(Box::pin).collect();
    let mut results: Vec<Option<F::Output>> = running.iter().map(|_| None).collect();
    poll_fn(|cx| poll_all(&mut running, &mut results, cx)).await;
    results.into_iter().flatten().collect()
}

/// The nodes that a call is to be told to; `None`: this one alone, because there are no others, or
/// because one of them has sent it.
///
/// Errors: `not-trusted`.
pub fn others<'a>(
    worker: &'a Worker,
    headers: &HeaderMap,
) -> Result<Option<(&'a Peers, Vec<NodeIndex>)>, Problem> {
    let Some(peers) = worker.peers.as_deref() else { return Ok(None) };
    if peers.is_from_node(headers)? {
        return Ok(None);
    }
    let nodes = peers.map().others().map(|(node, _)| node).collect();
    Ok(Some((peers, nodes)))
}

/// Does it here and has all other nodes do it.
///
/// Errors: this node's own refusal; `nodes-not-reached` with the others that did not do it.
pub async fn told(
    worker: &Worker,
    parts: &Parts,
    body: Bytes,
    here: impl Future<Output = Result<Reply, Problem>>,
) -> Result<Reply, Problem> {
    let Some((peers, nodes)) = others(worker, &parts.headers)? else { return here.await };
    let ask = peers.ask_of(Side::Admin, parts, body);
    let there = join(nodes.iter().map(|&node| peers.send(node, &ask)));
    let (here, there) = tokio::join!(here, there);
    let here = here?;
    let mut missed = Vec::new();
    for (&node, answer) in nodes.iter().zip(there) {
        let code = match answer {
            Ok(answer) if answer.status.is_success() => continue,
            Ok(answer) => answer.code(),
            Err(problem) => problem.kind.code().to_owned(),
        };
        missed.push(NodeMissed { node: peers.name(node).to_owned(), code });
    }
    if missed.is_empty() { Ok(here) } else { Err(not_reached(missed)) }
}

/// The problem that names nodes.
pub fn not_reached(missed: Vec<NodeMissed>) -> Problem {
    let names: Vec<_> = missed.iter().map(|m| m.node.as_str()).collect();
    tracing::warn!(nodes = names.join(","), "a call did not reach all nodes");
    Problem::with(Kind::NodesNotReached, Help::Nodes(missed))
}

/// What the other nodes said to a question.
#[derive(Default)]
pub struct Gathered {
    pub answers: Vec<(NodeIndex, Value)>,
    pub missed: Vec<NodeMissed>,
}

/// Asks all other nodes the same, each for itself alone. `None`: this node is asked for itself.
pub async fn gathered(worker: &Worker, parts: &Parts) -> Result<Option<Gathered>, Problem> {
    let is_alone = asks_this_node_alone(parts.uri.query())?;
    let Some((peers, nodes)) = others(worker, &parts.headers)?.filter(|_| !is_alone) else {
        return Ok(None);
    };
    let mut ask = peers.ask_of(Side::Admin, parts, Bytes::new());
    ask.path = format!("{}?nodes=self", parts.uri.path());
    let answers = join(nodes.iter().map(|&node| peers.send(node, &ask))).await;
    let mut gathered = Gathered::default();
    for (&node, answer) in nodes.iter().zip(answers) {
        let code = match answer {
            Ok(answer) => match answer.json() {
                Some(value) => {
                    gathered.answers.push((node, value));
                    continue;
                }
                None => answer.code(),
            },
            Err(problem) => problem.kind.code().to_owned(),
        };
        gathered.missed.push(NodeMissed { node: peers.name(node).to_owned(), code });
    }
    Ok(Some(gathered))
}

/// `?nodes=self`, or `?nodes=all`, which is what nothing says too.
fn asks_this_node_alone(query: Option<&str>) -> Result<bool, Problem> {
    let mut is_alone = false;
    for (name, value) in parse::query(query)? {
        is_alone = match (name.as_ref(), value.as_ref()) {
            ("nodes", "self") => true,
            ("nodes", "all") => false,
            _ => return Err(Problem::malformed("The query takes nodes=self or nodes=all.")),
        };
    }
    Ok(is_alone)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_is_for_all_nodes_unless_it_says_otherwise() {
        let alone = |query| asks_this_node_alone(query).map_err(|problem| problem.kind);
        assert_eq!(alone(None), Ok(false));
        assert_eq!(alone(Some("nodes=all")), Ok(false));
        assert_eq!(alone(Some("nodes=self")), Ok(true));
        assert_eq!(alone(Some("nodes=b")), Err(Kind::Malformed));
        assert_eq!(alone(Some("node=self")), Err(Kind::Malformed));
    }
}
