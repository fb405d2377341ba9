//! `GET /v1/cluster`: every node with its health, slots, journal, leases and lags. Each node says
//! what it knows of itself; of one that does not answer the others say what they know.

use hyper::http::request::Parts;
use serde_json::{Value, json};

use super::everywhere::gathered;
use super::problem::Problem;
use super::reply::Reply;
use super::worker::{Ready, Worker};
use crate::cluster::map::MapNode;
use crate::kernel::catalog::SalePhase;
use crate::units::{ItemIndex, JournalId};

pub async fn show(worker: &Worker, parts: &Parts) -> Result<Reply, Problem> {
    let ready = worker.ready()?;
    let gathered = gathered(worker, parts).await?;
    let cluster = &worker.shared.cluster;
    let Some(map) = cluster.map() else {
        let node = own(worker, ready, None, cluster.journals().map(|all| all[0]));
        return Ok(reply(&json!({ "version": 0, "self": "", "nodes": [node] })));
    };
    let me = map.node(map.me());
    let mut nodes = Vec::new();
    for (node, of) in map.nodes() {
        if node == map.me() {
            nodes.push(own(worker, ready, Some(me), cluster.journal_of(node)));
            continue;
        }
        let Some(gathered) = &gathered else { continue };
        let answer = gathered.answers.iter().find(|(from, _)| *from == node);
        let itself = answer.and_then(|(_, value)| value["nodes"].get(0).cloned());
        let mut entry = itself.unwrap_or_else(|| base(Some(of), cluster.journal_of(node)));
        entry["health"] = json!(cluster.peer(node).health().name());
        if let Some((_, value)) = answer {
            entry["version"] = value["version"].clone();
        }
        nodes.push(entry);
    }
    Ok(reply(&json!({ "version": map.version(), "self": me.name, "nodes": nodes })))
}

fn reply(value: &Value) -> Reply {
    Reply::ok(value.to_string())
}

fn base(node: Option<&MapNode>, journal: Option<JournalId>) -> Value {
    let all = crate::cluster::map::SlotSet::all();
    let slots = node.map_or(&all, |node| &node.slots);
    let mut value = json!({
        "name": node.map_or("", |node| &node.name),
        "slots": slots.ranges().collect::<Vec<_>>(),
        "slot_count": slots.count(),
    });
    if let Some(node) = node {
        value["public"] = json!(node.public.as_str());
        value["admin"] = json!(node.admin.as_str());
    }
    if let Some(journal) = journal {
        value["journal"] = json!(format!("{:016x}", journal.get()));
    }
    value
}

/// What this node says of itself.
fn own(
    worker: &Worker,
    ready: &Ready,
    node: Option<&MapNode>,
    journal: Option<JournalId>,
) -> Value {
    let figures = &worker.shared.figures;
    let mut value = base(node, journal);
    value["health"] = json!("up");
    if let Some(map) = worker.shared.cluster.map() {
        value["version"] = json!(map.version());
    }
    value["members"] = json!(figures.member_count().unwrap_or(0));
    let mut lags = json!({});
    if let Some(journal) = figures.journal() {
        lags["journal_records"] = json!(journal.lag_records);
    }
    if let Some(ship) = figures.ship() {
        lags["ship_records"] = json!(ship.lag_records);
    }
    let persist = figures.persist();
    lags["persist_records"] = json!(persist.iter().map(|p| p.lag_records).max().unwrap_or(0));
    lags["persist_ms"] = json!(persist.iter().map(|p| p.lag_ms).max().unwrap_or(0));
    value["lags"] = lags;
    let mut leases = Vec::new();
    for sale in ready.core.catalog.sales() {
        if sale.phase() >= SalePhase::Ended {
            continue;
        }
        let id = &sale.definition().id;
        for item in sale.items() {
            let mut lease = json!({
                "sale": id,
                "sku": sale.sku(item),
                "is_home": worker.shared.cluster.is_home(id),
            });
            for (name, units) in units(worker, ready, item) {
                lease[name] = json!(units);
            }
            if let Some(of) = worker.shared.figures.lease(item).filter(|of| of.is_shared) {
                lease["lease"] = json!({ "state": of.phase });
                for (name, figure) in of.fields() {
                    lease["lease"][name] = json!(figure);
                }
            }
            leases.push(lease);
        }
    }
    value["leases"] = json!(leases);
    value
}

/// Units of an item on this node.
pub fn units(worker: &Worker, ready: &Ready, item: ItemIndex) -> [(&'static str, u64); 4] {
    let figures = worker.shared.figures.item(item);
    let stock = &ready.core.stock;
    [
        ("total", stock.total(item)),
        ("free", stock.line(item).free()),
        ("held", figures.held),
        ("confirmed", figures.confirmed),
    ]
}
