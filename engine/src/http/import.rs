//! `POST /v1/members:import`: opens accounts from a CSV file, however large.
//!
//! Spooled first, checked whole, then applied through the shards with many commands in flight;
//! answered when all of it is durable. An existing account is left as it is, so a run that was
//! cut off is completed by running it again.

use std::collections::VecDeque;
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
use super::json;
use super::parse;
use super::problem::{Help, Kind, Problem};
use super::reply::{Body, Reply};
use super::spool::{Checked, Row, Spool};
use super::worker::{Ready, Worker};
use crate::kernel::command::{Command, Outcome};
use crate::kernel::control::ControlCommand;
use crate::shard::gate::Unavailable;
use crate::shard::port::Pending;

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
    let (opened, existing) = apply(ready, Arc::clone(&spool)).await?;
    tracing::info!(rows, opened, existing, skipped = bad_count, "import applied");
    let command = ControlCommand::Imported { rows, opened, existing, content, note };
    ready.core.control(command).await?;
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

/// Opens the accounts; gives how many were opened, and how many were there.
async fn apply(ready: &Ready, spool: Arc<Spool>) -> Result<(u64, u64), Problem> {
    let (sender, mut batches) = mpsc::channel::<Vec<Row>>(4);
    let reader = blocking(move || {
        let mut batch = Vec::with_capacity(ROWS_AHEAD);
        for row in spool.good_rows()? {
            batch.push(row?);
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
    let open_all = async move {
        let mut opening = Opening::default();
        while let Some(batch) = batches.recv().await {
            for row in batch {
                opening.open(ready, row).await?;
            }
        }
        opening.finish().await
    };
    let (read, counts) = tokio::join!(reader, open_all);
    read?;
    counts
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
            Outcome::Redemption { .. } | Outcome::Redemptions(_) => {
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
