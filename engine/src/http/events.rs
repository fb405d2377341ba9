//! `GET /v1/sales/{id}/events`: what happens to a sale, as server-sent events.
//!
//! ```text
//! core's events ─┐
//!                ├─► Watch, one per sale and worker ──► each watcher's stream
//! stock lines ───┘   (looks at the lines 5 times a second, whatever the traffic)
//! ```
//! A watcher first gets the sale as it stands (`snapshot`), unless its Last-Event-ID is the latest
//! event's: then nothing but the stock has moved, and it gets that. One who falls behind gets a
//! snapshot again instead of what it missed. Streams end when the node drains.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use hyper::Response;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::http::request::Parts;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, mpsc};

use super::cells::Cells;
use super::json;
use super::problem::Problem;
use super::reply::{Body, Label, Reply};
use super::sales::write_sale;
use super::worker::Worker;
use crate::shard::catalog::SaleEntry;
use crate::shard::core::Core;
use crate::shard::events::{SaleEvent, SaleEventKind};
use crate::units::NodeTime;

/// How often the lines are looked at: stock is told at most five times a second.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Events that one watcher may fall behind before it gets a snapshot instead.
const BACKLOG: usize = 64;
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
const EVENT_STREAM: HeaderValue = HeaderValue::from_static("text/event-stream");

/// A sale that connections of this worker watch.
pub struct Watch {
    pieces: broadcast::Sender<Bytes>,
}

/// `GET /v1/sales/{id}/events`
pub fn watch(worker: &Rc<Worker>, id: &str, parts: &Parts) -> Result<Reply, Problem> {
    let ready = worker.ready()?;
    let sale = worker.sale(ready, id)?;
    let last = parts.headers.get(LAST_EVENT_ID).and_then(|value| value.to_str().ok());
    let last: Option<u64> = last.and_then(|text| text.parse().ok());
    let pieces = subscribe(worker, &ready.core, &sale);
    let first = first_piece(&ready.core, &sale, last);
    let (sender, receiver) = mpsc::channel(8);
    let watcher = Watcher { core: Arc::clone(&ready.core), sale, pieces, sender };
    tokio::task::spawn_local(run_watcher(Rc::clone(worker), watcher, first));
    let mut response = Response::new(Body::Stream(receiver));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, EVENT_STREAM);
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    // Proxies that would hold pieces back are asked not to.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    Ok(Reply { label: Label::Ok, response })
}

fn first_piece(core: &Core, sale: &Arc<SaleEntry>, last: Option<u64>) -> Bytes {
    let latest = core.events.last_id();
    if last == Some(latest) { stock_piece(core, sale) } else { snapshot(core, sale, latest) }
}

/// Joins the sale's watch; the first one starts it.
fn subscribe(
    worker: &Rc<Worker>,
    core: &Arc<Core>,
    sale: &Arc<SaleEntry>,
) -> broadcast::Receiver<Bytes> {
    let mut watches = worker.watches.borrow_mut();
    let watch = watches.entry(sale.index.get()).or_insert_with(|| {
        let watch = Rc::new(Watch { pieces: broadcast::Sender::new(BACKLOG) });
        let look = look(Rc::clone(worker), Arc::clone(core), Arc::clone(sale), Rc::clone(&watch));
        tokio::task::spawn_local(look);
        watch
    });
    watch.pieces.subscribe()
}

/// Tells a sale's watchers what happens, until the last one has gone or the node drains.
async fn look(worker: Rc<Worker>, core: Arc<Core>, sale: Arc<SaleEntry>, watch: Rc<Watch>) {
    let mut events = core.events.subscribe();
    let mut ticks = tokio::time::interval(LOOK_EVERY);
    let mut seen = Lines::read(&core, &sale);
    while !worker.links.is_draining() && watch.pieces.receiver_count() > 0 {
        tokio::select! {
            _ = ticks.tick() => {
                let now = Lines::read(&core, &sale);
                for sku in now.newly_sold_out(&seen, &sale) {
                    tell(&watch, sold_out_piece(core.now(), &sku));
                }
                if now.free != seen.free {
                    tell(&watch, stock_piece(&core, &sale));
                }
                seen = now;
                // From here on, not from when it was due: two looks are never closer than that.
                ticks.reset();
            }
            event = events.recv() => match event {
                Ok(event) if event.sale == sale.index => {
                    if let Some(piece) = event_piece(&event) {
                        tell(&watch, piece);
                    }
                }
                Ok(_) => {}
                // This task fell behind the core's events: what they say now, a snapshot says.
                Err(RecvError::Lagged(_)) => {
                    tell(&watch, snapshot(&core, &sale, core.events.last_id()));
                }
                Err(RecvError::Closed) => break,
            }
        }
    }
    worker.watches.borrow_mut().remove(&sale.index.get());
}

fn tell(watch: &Watch, piece: Bytes) {
    // No receiver is no error: the loop's condition sees it.
    let _ = watch.pieces.send(piece);
}

/// One connection that watches.
struct Watcher {
    core: Arc<Core>,
    sale: Arc<SaleEntry>,
    pieces: broadcast::Receiver<Bytes>,
    sender: mpsc::Sender<Bytes>,
}

async fn run_watcher(worker: Rc<Worker>, mut watcher: Watcher, first: Bytes) {
    Cells::count(&worker.cells.watchers);
    let heartbeat_every = Duration::from_millis(worker.shared.config.heartbeat_ms);
    let mut piece = first;
    while watcher.sender.send(piece).await.is_ok() {
        piece = tokio::select! {
            biased;
            () = watcher.sender.closed() => break,
            received = tokio::time::timeout(heartbeat_every, watcher.pieces.recv()) => {
                match received {
                    Err(_) => Bytes::from_static(b": alive\n\n"),
                    Ok(Ok(piece)) => piece,
                    Ok(Err(RecvError::Lagged(_))) => {
                        watcher.pieces = watcher.pieces.resubscribe();
                        snapshot(&watcher.core, &watcher.sale, watcher.core.events.last_id())
                    }
                    Ok(Err(RecvError::Closed)) => break,
                }
            }
        };
    }
    Cells::uncount(&worker.cells.watchers);
}

/// A sale's lines at one look.
#[derive(PartialEq, Eq, Debug)]
struct Lines {
    free: Vec<u64>,
    is_final: Vec<bool>,
}

impl Lines {
    fn read(core: &Core, sale: &SaleEntry) -> Self {
        Self {
            free: sale.items().map(|item| core.stock.line(item).free()).collect(),
            is_final: sale.items().map(|item| core.stock.is_sold_out_finally(item)).collect(),
        }
    }

    fn newly_sold_out(&self, before: &Self, sale: &SaleEntry) -> Vec<String> {
        let changes = self.is_final.iter().zip(&before.is_final).zip(&sale.definition().items);
        changes
            .filter(|((now, before), _)| **now && !**before)
            .map(|(_, item)| item.sku.clone())
            .collect()
    }
}

fn open_piece(event: &str, id: Option<u64>) -> BytesMut {
    let mut out = BytesMut::with_capacity(160);
    json::raw(&mut out, "event: ");
    json::raw(&mut out, event);
    if let Some(id) = id {
        json::raw(&mut out, "\nid: ");
        json::number(&mut out, id);
    }
    json::raw(&mut out, "\ndata: {\"now\":");
    out
}

fn close_piece(mut out: BytesMut) -> Bytes {
    json::raw(&mut out, "}\n\n");
    out.freeze()
}

fn snapshot(core: &Core, sale: &Arc<SaleEntry>, id: u64) -> Bytes {
    let mut out = open_piece("snapshot", Some(id));
    json::time(&mut out, core.now());
    json::raw(&mut out, ",");
    write_sale(&mut out, core, sale);
    close_piece(out)
}

/// The core's other events are seen in the stock.
fn event_piece(event: &SaleEvent) -> Option<Bytes> {
    let name = match event.kind {
        SaleEventKind::Opened => "opened",
        SaleEventKind::Paused => "paused",
        SaleEventKind::Resumed => "resumed",
        SaleEventKind::Closed => "closed",
        SaleEventKind::StockChanged(_) => return None,
    };
    let mut out = open_piece(name, Some(event.id));
    json::time(&mut out, event.at);
    Some(close_piece(out))
}

fn sold_out_piece(now: NodeTime, sku: &str) -> Bytes {
    let mut out = open_piece("sold-out", None);
    json::time(&mut out, now);
    json::raw(&mut out, ",\"sku\":\"");
    json::raw(&mut out, sku);
    json::raw(&mut out, "\"");
    close_piece(out)
}

fn stock_piece(core: &Core, sale: &SaleEntry) -> Bytes {
    let mut out = open_piece("stock", None);
    json::time(&mut out, core.now());
    json::raw(&mut out, ",\"items\":[");
    for (at, item) in sale.items().enumerate() {
        json::raw(&mut out, if at == 0 { "{\"sku\":\"" } else { ",{\"sku\":\"" });
        json::raw(&mut out, sale.sku(item));
        json::raw(&mut out, "\",\"free\":");
        json::number(&mut out, core.stock.line(item).free());
        json::raw(&mut out, "}");
    }
    json::raw(&mut out, "]");
    close_piece(out)
}
