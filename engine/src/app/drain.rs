//! The end of a node: what was accepted is finished, then everything is let go in order.
//!
//! ```text
//! SIGTERM ─► /readyz 503 ─► public listener drains (deadline) ─► control, shards end
//!         ─► journal: last frame, closing mark ─► final snapshot ─► persist catches up (deadline)
//!         ─► exit 0
//! a second signal ─► exit at once: the journal is as good as after a kill -9
//! a signal while it starts ─► exit 0 at once, for the same reason
//! ```

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, bounded};

use super::Node;
use crate::journal::JournalError;
use crate::journal::snapshot::{Part, SnapshotHeader, SnapshotWriter};
use crate::kernel::control::ControlState;
use crate::kernel::record::CONTROL;
use crate::kernel::state::ShardState;
use crate::shard::core::Stage;
use crate::shard::gate::Admission;
use crate::shard::message::Message;
use crate::units::Seq;

/// What the final snapshot, and the joins before it, may take beyond the drain's own deadline.
const SNAPSHOT_MAX: Duration = Duration::from_secs(30);

/// How long a wait for a signal goes on without a look.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The exit code of a node that a second signal cut off.
const EXIT_CUT_OFF: i32 = 130;

/// SIGTERM and SIGINT, caught from before anything starts.
///
/// ```text
/// starting ── a signal ─► exit 0 at once: nothing was accepted yet
/// running  ── a signal ─► `wait` returns, the node drains ── another ─► exit at once
/// ```
pub struct Signals {
    is_running: Arc<AtomicBool>,
    first: Receiver<()>,
}

impl Signals {
    pub fn catch() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let guard = runtime.enter();
        let mut term = signal(SignalKind::terminate())?;
        let mut int = signal(SignalKind::interrupt())?;
        drop(guard);
        let is_running = Arc::new(AtomicBool::new(false));
        let (tell, first) = bounded(1);
        let running = Arc::clone(&is_running);
        let watch = move || {
            runtime.block_on(either(&mut term, &mut int));
            if !running.load(Ordering::Acquire) {
                tracing::info!("ended while it was starting; the next start begins anew");
                std::process::exit(0);
            }
            // `wait` may have gone with the node.
            let _ = tell.send(());
            runtime.block_on(either(&mut term, &mut int));
            tracing::warn!("cut off by a second signal; nothing that was confirmed is lost");
            std::process::exit(EXIT_CUT_OFF);
        };
        std::thread::Builder::new().name("signals".into()).spawn(watch)?;
        Ok(Self { is_running, first })
    }

    /// Waits for the first signal; from then on a second one ends the process at once.
    pub fn wait(self) {
        self.is_running.store(true, Ordering::Release);
        // Now and then awake: ThreadSanitizer keeps a signal back until the thread that it came
        // to calls something.
        while let Err(error) = self.first.recv_timeout(LOOK_EVERY) {
            assert!(error.is_timeout(), "the thread ends with the process");
        }
        tracing::info!("draining; a second signal ends the node at once");
    }
}

/// Ends the process where what is returned still lives then: a part that hangs is left behind.
fn end_by(deadline: Duration) -> Sender<()> {
    let (done, watched) = bounded(0);
    let watch = move || {
        if watched.recv_timeout(deadline) == Err(RecvTimeoutError::Timeout) {
            tracing::warn!("a part did not end by the deadline; what was confirmed is durable");
            std::process::exit(0);
        }
    };
    // Without it the drain ends by the deadlines of its parts.
    let _ = std::thread::Builder::new().name("deadline".into()).spawn(watch);
    done
}

async fn either(term: &mut tokio::signal::unix::Signal, int: &mut tokio::signal::unix::Signal) {
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
}

impl Node {
    /// Ends the node in good order; a part that does not end by its deadline is left behind.
    pub fn stop(mut self) -> ExitCode {
        let deadline = Duration::from_millis(self.config.node.drain_deadline_ms);
        let _in_time = end_by(deadline + SNAPSHOT_MAX);
        self.view.readiness.enter(Stage::Draining, 0);
        let mut is_clean = self.door.drain(deadline / 2);
        self.core.gate.set(Admission::Nothing);

        // Snapshots and housekeeping stand still before what they look at goes away.
        drop(self.stop_snapshots);
        drop(self.stop_housekeeping);
        join(self.snapshots);
        join(self.housekeeping);

        // Control first: its barriers need the shards.
        self.core.control.stop();
        let control = join(self.control);
        for inbox in self.core.inboxes.iter() {
            inbox.send(Message::Stop);
        }
        let shards: Vec<ShardState> = self.shards.into_iter().map(join).collect();

        // Replies in flight are handed over as the journal ends; the admin side answers last.
        is_clean &= self.persist.is_none_or(|persist| persist.stop(Some(deadline / 4)));
        if let Some(shipping) = self.shipping {
            shipping.stop(self.journal.durable().get(), deadline / 4);
        }
        is_clean &= self.door.stop(deadline / 4);
        let durable = Arc::clone(self.journal.durable());
        let (journal, incarnation) = (self.journal.journal(), self.incarnation);
        if let Err(error) = end_journal(self.journal) {
            tracing::error!(%error, "the journal did not end in good order");
            return ExitCode::FAILURE;
        }
        let header = SnapshotHeader { journal, incarnation, stamp: self.core.clock.stamp() };
        let cut = durable.get();
        match final_snapshot(&self.snapshot_disk, header, cut, &shards, &control) {
            Ok(()) => tracing::info!(seq = cut.get(), "final snapshot taken"),
            Err(error) => tracing::warn!(%error, "no final snapshot: the next start replays more"),
        }
        if !is_clean {
            tracing::warn!("the drain's deadline passed; what was confirmed is durable");
        }
        tracing::info!("ended");
        ExitCode::SUCCESS
    }
}

fn end_journal<D: crate::journal::disk::Disk>(
    journal: Arc<crate::journal::open::JournalHandle<D>>,
) -> Result<(), JournalError> {
    let handle = Arc::into_inner(journal).expect("every reader of the journal has ended");
    handle.stop()
}

/// Every thread that could change the state has ended, so all slots share one cut.
fn final_snapshot<D: crate::journal::disk::Disk>(
    disk: &D,
    header: SnapshotHeader,
    cut: Seq,
    shards: &[ShardState],
    control: &ControlState,
) -> Result<(), JournalError> {
    let mut writer = SnapshotWriter::create(disk, header)?;
    let mut bytes = Vec::new();
    for shard in shards {
        for slot in shard.slots() {
            bytes.clear();
            shard.slot(slot).encode(&mut bytes);
            writer.part(Part { slot, cut, bytes: &bytes })?;
        }
    }
    bytes.clear();
    control.encode(&mut bytes);
    writer.part(Part { slot: CONTROL, cut, bytes: &bytes })?;
    writer.finish().map(drop)
}

fn join<T>(thread: std::thread::JoinHandle<T>) -> T {
    thread.join().unwrap_or_else(|_| unreachable!("a panic ends the process"))
}
