//! `POST /v1/members:import`: opens accounts from a CSV file, however large.
//!
//! Spooled first, checked whole, then applied through the shards with many commands in flight;
//! answered when all of it is durable. An existing account is left as it is, so a run that was
//! cut off is completed by running it again.
//!
//! With other nodes the rows are dealt out by their members' slots: each node's rows are sent to it
//! in pieces, while this node opens its own. A node that fails is named, and the run is repeated.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use hyper::body::{Body as _, Incoming};
use hyper::header::{CONNECTION, HeaderValue};
use hyper::http::request::Parts;
use tokio::sync::mpsc;

use super::body::require_type;
use super::everywhere::{join, not_reached, others};
use super::json;
use super::parse;
use super::peers::{Peers, Side};
use super::problem::{Help, Kind, NodeMissed, Problem};
use super::reply::{Body, Reply};
use super::spool::{Checked, Row, Spool};
use super::worker::{Ready, Worker};
use crate::cluster::map::NodeIndex;
use crate::cluster::nodes::Cluster;
use crate::kernel::command::{Command, Outcome};
use crate::kernel::control::ControlCommand;
use crate::kernel::record::AdminNote;
use crate::shard::gate::Unavailable;
use crate::shard::port::Pending;
use crate::units::{KeyHash, MemberId, Slot};

/// Commands in flight at once: enough to fill a sync, and less than what a port may have out.
const IN_FLIGHT_MAX: usize = 4096;
/// Rows read ahead at once.
const ROWS_AHEAD: usize = 4096;
/// Pause before a full inbox is tried again when nothing of ours is in it.
const RETRY_PAUSE: Duration = Duration::from_millis(2);

pub async fn import(worker: &Worker, parts: &Parts, body: &mut Incoming) -> Result<Reply, Problem> {
    let ready = worker.ready()?;
    let note = parse::admin_note(&parts.headers)?;
    require_type(&parts.headers, "text/csv")?;
    let skip_bad_rows = parse::flag(parts.uri.query(), "skip_bad_rows")?;
    let mut spool = receive(worker, body).await?;
    let (spool, checked) = blocking(move || {
        let checked = spool.check()?;
        Ok((Arc::new(spool), checked))
    })
    .await?;
    let Checked { rows, bad_count, content } = checked;
    if bad_count > 0 && !(skip_bad_rows && rows > 0) {
        let problem = Problem::with(Kind::RowsInvalid, Help::BadRows(bad_count));
        let mut open = BytesMut::with_capacity(PIECE_LEN);
        problem.write_open(&mut open);
        return Ok(naming(problem.into(), open, spool));
    }
    let Counts { opened, existing } = match others(worker, &parts.headers)? {
        None => {
            let own = Rows { cluster: Arc::clone(&worker.shared.cluster), of: None };
            let here = apply(ready, Arc::clone(&spool), own).await?;
            note_import(ready, here, content, note).await?;
            here
        }
        Some((peers, nodes)) => {
            let rows = |node| Rows { cluster: Arc::clone(&worker.shared.cluster), of: Some(node) };
            let here = async {
                let own = rows(peers.map().me());
                let here = apply(ready, Arc::clone(&spool), own).await?;
                note_import(ready, here, content, note).await?;
                Ok::<_, Problem>(here)
            };
            let there = join(nodes.iter().map(async |&node| {
                apply_there(peers, node, parts, Arc::clone(&spool), rows(node)).await
            }));
            let (here, there) = tokio::join!(here, there);
            sum(peers, here?, nodes.into_iter().zip(there))?
        }
    };
    tracing::info!(rows, opened, existing, skipped = bad_count, "import applied");
    let mut out = BytesMut::with_capacity(128);
    for (name, count) in [
        (r#"{"rows":"#, rows),
        (r#","opened":"#, opened),
        (r#","existing":"#, existing),
        (r#","skipped":"#, bad_count),
    ] {
        json::raw(&mut out, name);
        json::number(&mut out, count);
    }
    if bad_count > 0 {
        return Ok(naming(Reply::ok(Bytes::new()), out, spool));
    }
    json::raw(&mut out, r#","errors":[]}"#);
    Ok(Reply::ok(out.freeze()))
}

/// Accounts that were opened, and those that were there.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Counts {
    opened: u64,
    existing: u64,
}

/// Which rows of a file: a node's, or (`None`) all, which must be this node's then.
struct Rows {
    cluster: Arc<Cluster>,
    of: Option<NodeIndex>,
}

impl Rows {
    fn has(&self, member: MemberId) -> bool {
        let owner = self.cluster.map().map(|map| map.owner(Slot::of(member)));
        self.of.is_none() || self.of == owner
    }
}

/// Writes down what was opened on this node.
async fn note_import(
    ready: &Ready,
    here: Counts,
    content: KeyHash,
    note: AdminNote,
) -> Result<(), Problem> {
    let Counts { opened, existing } = here;
    let rows = opened + existing;
    let command = ControlCommand::Imported { rows, opened, existing, content, note };
    ready.core.control(command).await.map(drop).map_err(Into::into)
}

/// All nodes' counts.
///
/// Errors: `nodes-not-reached`, with those that did not take all of theirs.
fn sum(
    peers: &Peers,
    here: Counts,
    there: impl Iterator<Item = (NodeIndex, Result<Counts, ImportFailure>)>,
) -> Result<Counts, Problem> {
    let (mut sum, mut missed) = (here, Vec::new());
    for (node, counts) in there {
        match counts {
            Ok(Counts { opened, existing }) => {
                sum.opened += opened;
                sum.existing += existing;
            }
            Err(ImportFailure::Here(problem)) => return Err(problem),
            Err(ImportFailure::There(code)) => {
                missed.push(NodeMissed { node: peers.name(node).to_owned(), code });
            }
        }
    }
    if missed.is_empty() { Ok(sum) } else { Err(not_reached(missed)) }
}

/// Why a node's rows were not all applied.
enum ImportFailure {
    /// The spool cannot be read.
    Here(Problem),
    /// The code of what the node answered.
    There(String),
}

/// Sends a node its rows, piece by piece.
async fn apply_there(
    peers: &Peers,
    node: NodeIndex,
    parts: &Parts,
    spool: Arc<Spool>,
    rows: Rows,
) -> Result<Counts, ImportFailure> {
    let (reader, mut batches) = read_rows(spool, rows);
    let send_all = async {
        let mut counts = Counts::default();
        let mut is_over = false;
        while !is_over {
            let mut csv = String::from(CSV_HEAD);
            while !is_over && csv.len() < CSV_PIECE_LEN {
                let Some(batch) = batches.recv().await else {
                    is_over = true;
                    continue;
                };
                for Row { member, points, .. } in batch {
                    let _ = writeln!(csv, "{member},{points}");
                }
            }
            if csv.len() == CSV_HEAD.len() {
                continue;
            }
            let mut ask = peers.ask_of(Side::Admin, parts, Bytes::from(csv));
            parts.uri.path().clone_into(&mut ask.path);
            ask.patience = ask.patience.max(PIECE_PATIENCE);
            let failed = |problem: Problem| ImportFailure::There(problem.kind.code().to_owned());
            let answer = peers.send(node, &ask).await.map_err(failed)?;
            let value = answer.json().ok_or_else(|| ImportFailure::There(answer.code()))?;
            counts.opened += value["opened"].as_u64().unwrap_or(0);
            counts.existing += value["existing"].as_u64().unwrap_or(0);
        }
        Ok(counts)
    };
    let (read, counts) = tokio::join!(reader, send_all);
    // A reader that nobody listens to any more ends without a fault of its own.
    let counts = counts?;
    read.map_err(ImportFailure::Here)?;
    Ok(counts)
}

const CSV_HEAD: &str = "member,points\n";
/// Bytes of rows that another node is sent at once: each piece is an import of its own there.
const CSV_PIECE_LEN: usize = 4 << 20;
/// How long another node may take for one piece.
const PIECE_PATIENCE: Duration = Duration::from_mins(1);

/// An answer that goes on with every bad line, however many: they are read from the spool as the
/// caller takes them. `open` is its body up to there.
fn naming(mut reply: Reply, open: BytesMut, spool: Arc<Spool>) -> Reply {
    let (sender, pieces) = mpsc::channel(4);
    tokio::task::spawn_blocking(move || {
        if let Err(error) = name_all(open, &spool, &sender) {
            // What was sent is no JSON then, so that nobody takes it for all.
            tracing::error!(%error, "import: bad lines cannot be read from the spool");
        }
    });
    *reply.response.body_mut() = Body::Stream(pieces);
    // The caller that read a long answer slowly asks on a connection of its own.
    reply.header(CONNECTION, HeaderValue::from_static("close"))
}

/// Bytes of an answer that are sent at once.
const PIECE_LEN: usize = 64 * 1024;

fn name_all(mut out: BytesMut, spool: &Spool, sender: &mpsc::Sender<Bytes>) -> std::io::Result<()> {
    json::raw(&mut out, r#","errors":["#);
    for (at, row) in spool.bad_rows()?.enumerate() {
        if at > 0 {
            json::raw(&mut out, ",");
        }
        row?.write(&mut out);
        if out.len() >= PIECE_LEN && sender.blocking_send(out.split().freeze()).is_err() {
            // The caller has gone.
            return Ok(());
        }
    }
    json::raw(&mut out, "]}");
    let _ = sender.blocking_send(out.freeze());
    Ok(())
}

/// Runs `work` off this thread; a file that cannot be read or written is the node's own trouble.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> Result<T, Problem> {
    let result = tokio::task::spawn_blocking(work).await;
    result.unwrap_or_else(|_| Err(std::io::Error::other("the work ended early"))).map_err(|error| {
        tracing::error!(%error, "import: the spool cannot be used");
        Problem::with(Kind::Internal, Help::Detail(format!("The import's spool: {error}.")))
    })
}

/// Writes the body to the spool, as fast as the disk takes it and no faster.
async fn receive(worker: &Worker, body: &mut Incoming) -> Result<Spool, Problem> {
    let folder = worker.shared.spool.clone();
    let (sender, mut pieces) = mpsc::channel::<Bytes>(16);
    let written = tokio::task::spawn_blocking(move || {
        let mut spool = Spool::create(&folder)?;
        while let Some(piece) = pieces.blocking_recv() {
            spool.write(&piece)?;
        }
        Ok(spool)
    });
    let patience = worker.patience();
    loop {
        let frame = poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx));
        match tokio::time::timeout(patience, frame).await.map_err(|_| Kind::RequestTimeout)? {
            None => break,
            Some(Err(_)) => return Err(Problem::malformed("The body broke off.")),
            Some(Ok(frame)) => {
                // A closed channel is a disk that failed: the writer says how, below.
                if let Ok(piece) = frame.into_data()
                    && sender.send(piece).await.is_err()
                {
                    break;
                }
            }
        }
    }
    drop(sender);
    blocking(move || {
        tokio::runtime::Handle::current().block_on(written).map_err(std::io::Error::other)?
    })
    .await
}

/// Reads rows ahead, off this thread.
fn read_rows(
    spool: Arc<Spool>,
    rows: Rows,
) -> (impl Future<Output = Result<(), Problem>>, mpsc::Receiver<Vec<Row>>) {
    let (sender, batches) = mpsc::channel::<Vec<Row>>(4);
    let reader = blocking(move || {
        let mut batch = Vec::with_capacity(ROWS_AHEAD);
        for row in spool.good_rows()? {
            let row = row?;
            if !rows.has(row.member) {
                continue;
            }
            batch.push(row);
            if batch.len() == ROWS_AHEAD {
                let full = std::mem::replace(&mut batch, Vec::with_capacity(ROWS_AHEAD));
                if sender.blocking_send(full).is_err() {
                    return Ok(());
                }
            }
        }
        // An import that was given up needs no more rows.
        let _ = sender.blocking_send(batch);
        Ok(())
    });
    (reader, batches)
}

/// Opens this node's accounts.
///
/// Errors: `wrong-node`: another node sent a row that this one does not own.
async fn apply(ready: &Ready, spool: Arc<Spool>, rows: Rows) -> Result<Counts, Problem> {
    let cluster = Arc::clone(&rows.cluster);
    let (reader, mut batches) = read_rows(spool, rows);
    let open_all = async move {
        let mut opening = Opening::default();
        while let Some(batch) = batches.recv().await {
            for row in batch {
                if !cluster.owns(Slot::of(row.member)) {
                    return Err(Kind::WrongNode.into());
                }
                opening.open(ready, row).await?;
            }
        }
        opening.finish().await
    };
    let (read, counts) = tokio::join!(reader, open_all);
    read?;
    let (opened, existing) = counts?;
    Ok(Counts { opened, existing })
}

/// Accounts on their way.
#[derive(Default)]
struct Opening {
    in_flight: VecDeque<Pending>,
    opened: u64,
    existing: u64,
}

impl Opening {
    async fn open(&mut self, ready: &Ready, row: Row) -> Result<(), Problem> {
        if self.in_flight.len() >= IN_FLIGHT_MAX {
            self.wait_for_one().await?;
        }
        let Row { member, points, .. } = row;
        loop {
            match ready.port.submit(Command::OpenAccount { member, points }) {
                Ok(pending) => {
                    self.in_flight.push_back(pending);
                    return Ok(());
                }
                // An import gives way to members: it waits where they are answered 503.
                Err(Unavailable::Overloaded) if self.in_flight.is_empty() => {
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
                Err(Unavailable::Overloaded) => self.wait_for_one().await?,
                Err(unavailable) => return Err(unavailable.into()),
            }
        }
    }

    async fn wait_for_one(&mut self) -> Result<(), Problem> {
        let Some(oldest) = self.in_flight.pop_front() else { return Ok(()) };
        match oldest.await {
            Outcome::Account { replayed: false, .. } => self.opened += 1,
            Outcome::Account { replayed: true, .. } => self.existing += 1,
            Outcome::Refused(refusal) => return Err(Kind::from(refusal.code).into()),
            Outcome::Redemption { .. } | Outcome::Redemptions { .. } => {
                unreachable!("an account was opened")
            }
        }
        Ok(())
    }

    async fn finish(mut self) -> Result<(u64, u64), Problem> {
        while !self.in_flight.is_empty() {
            self.wait_for_one().await?;
        }
        Ok((self.opened, self.existing))
    }
}
