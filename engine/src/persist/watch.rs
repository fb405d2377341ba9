//! The `ship-watch` thread: asks every database shard how far it holds this node's journal, and
//! what it wants sent again. The shipper begins there, the journal's segments may go behind it
//! (I9), and whoever waits for a record to be stored hears of it.
//!
//! It asks the databases themselves, whoever writes them: persist processes elsewhere, or this
//! one's writers. A database that does not answer keeps its last known watermark, and every
//! segment behind it.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam::channel::{RecvTimeoutError, Sender, bounded};

use super::lazy::LazyStore;
use super::status::PersistStatus;
use super::store::{Store as _, StoreError, WatermarkRow};
use crate::ship::kafka::driver::Standing;
use crate::ship::partition::Layout;
use crate::units::{JournalId, NodeTime, Seq};

const EVERY: Duration = Duration::from_millis(250);

/// The running thread.
pub struct Watch {
    thread: JoinHandle<()>,
    stop: Sender<()>,
}

impl Watch {
    /// Starts asking these stores about `journal`, and tells `shipper`.
    pub fn start(
        stores: Vec<LazyStore>,
        journal: JournalId,
        status: Arc<PersistStatus>,
        shipper: Sender<Standing>,
    ) -> std::io::Result<Self> {
        let (stop, stopped) = bounded(1);
        let run = move || {
            let mut stores = stores;
            let mut silent: Vec<Option<String>> = stores.iter().map(|_| None).collect();
            loop {
                for (store, silent) in stores.iter_mut().zip(&mut silent) {
                    match ask(store, journal, &status) {
                        Ok(standing) => {
                            *silent = None;
                            // Behind a shipper that is busy the next answer will do as well.
                            let _ = shipper.try_send(standing);
                        }
                        Err(error) => note_silence(store, silent, &error),
                    }
                }
                status.notify();
                if stopped.recv_timeout(EVERY) != Err(RecvTimeoutError::Timeout) {
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new().name("ship-watch".into()).spawn(run)?;
        Ok(Self { thread, stop })
    }

    pub fn stop(self) {
        drop(self.stop);
        self.thread.join().unwrap_or_else(|_| unreachable!("a panic ends the process"));
    }
}

fn note_silence(store: &LazyStore, silent: &mut Option<String>, error: &StoreError) {
    let text = error.to_string();
    if silent.as_ref() != Some(&text) {
        let database_shard = store.shard().get();
        tracing::warn!(database_shard, error = text, "how far it is cannot be asked");
        *silent = Some(text);
    }
}

fn ask(
    store: &mut LazyStore,
    journal: JournalId,
    status: &PersistStatus,
) -> Result<Standing, StoreError> {
    let shard = store.shard();
    let rows = store.watermarks()?;
    let asked = store.rewinds()?;
    let own: Vec<&WatermarkRow> = rows.iter().filter(|r| r.stream.journal == journal).collect();
    let layout: Layout = status.layout();
    let held: Vec<_> = layout
        .partitions(shard)
        .map(|partition| {
            let row = own.iter().find(|r| r.stream.partition == partition);
            (partition, row.map_or(Seq::NONE, |r| r.watermark.seq))
        })
        .collect();
    let of_shard = status.shard(shard);
    for (partition, seq) in &held {
        of_shard.set_persisted(*partition, *seq);
    }
    let at = own.iter().map(|r| r.at).max();
    of_shard.set_node_time(at.unwrap_or(NodeTime::new(0)));
    let asked = asked.iter().filter(|r| r.stream.journal == journal);
    let asked = asked.map(|r| (r.stream.partition, r.to)).collect();
    Ok(Standing { shard, held, asked })
}
