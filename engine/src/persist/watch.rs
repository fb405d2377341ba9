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
use super::store::{Store, StoreError, WatermarkRow};
use crate::ship::kafka::driver::Standing;
use crate::ship::partition::Partition;
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
            let mut is_refused = vec![false; stores.len()];
            loop {
                for (store, silent) in stores.iter_mut().zip(&mut silent) {
                    match ask(store, journal, &status, &mut is_refused) {
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

/// Asks one database shard. `is_refused` stays from one question to the next.
///
/// Errors: it cannot be asked now.
pub fn ask<S: Store>(
    store: &mut S,
    journal: JournalId,
    status: &PersistStatus,
    is_refused: &mut [bool],
) -> Result<Standing, StoreError> {
    let shard = store.shard();
    let (map, rows) = store.standing()?;
    let asked = store.rewinds()?;
    if let Some(alarm) = status.contradiction(shard, &rows) {
        if !std::mem::replace(&mut is_refused[shard.index()], true) {
            tracing::error!(database_shard = shard.get(), "nothing is shipped for it: {alarm}");
            status.shard(shard).alarm(&alarm);
        }
        // Its partitions are not begun, so that nothing of another history reaches it.
        return Ok(Standing { shard, held: Vec::new(), asked: Vec::new() });
    }
    let own: Vec<&WatermarkRow> = rows.iter().filter(|r| r.stream.journal == journal).collect();
    // What is leaving is here until another has it.
    let held: Vec<_> = Partition::all()
        .filter(|partition| map.serves(*partition))
        .map(|partition| {
            let row = own.iter().find(|r| r.stream.partition == partition);
            (partition, row.map_or(Seq::NONE, |r| r.watermark.seq))
        })
        .collect();
    let of_shard = status.shard(shard);
    for (partition, seq) in &held {
        status.begin(*partition);
        of_shard.set_persisted(*partition, *seq);
    }
    // Behind the figures: who is led here finds them.
    status.routes().hear(shard, &map);
    let at = own.iter().map(|r| r.at).max();
    of_shard.set_node_time(at.unwrap_or(NodeTime::new(0)));
    let asked =
        asked.iter().filter(|r| r.stream.journal == journal && map.holds(r.stream.partition));
    let asked = asked.map(|r| (r.stream.partition, r.to)).collect();
    Ok(Standing { shard, held, asked })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::persist::apply::Effects;
    use crate::persist::lost_tail::Opening;
    use crate::persist::sqlite::SqliteStore;
    use crate::persist::store::{Offsets, StoreBatch, Stream, WatermarkMove};
    use crate::ship::gap::Watermark;
    use crate::ship::holdings::MapVersion;
    use crate::ship::partition::{DatabaseShard, Layout};
    use crate::units::Incarnation;

    const JOURNAL: JournalId = JournalId::new(7);

    /// Stores a watermark, as a persist process elsewhere does.
    fn stored(store: &mut SqliteStore, partition: Partition, incarnation: u32, seq: u64) {
        let stream = Stream { journal: JOURNAL, partition };
        let (incarnation, since, seq) =
            (Incarnation::new(incarnation), Seq::new(seq), Seq::new(seq));
        let next = Watermark { incarnation, since, seq };
        let (expected, at) = (Watermark::default(), NodeTime::new(1));
        let batch = StoreBatch {
            map: MapVersion::FIRST,
            moves: &[WatermarkMove { stream, expected, next, at }],
            effects: &Effects::default(),
            letters: &[],
            applied: &[],
            offsets: Offsets::default(),
        };
        store.apply(&batch).unwrap();
    }

    /// Whether the second database shard, which answers late, is refused.
    fn is_refused(partition: Partition, incarnation: u32, seq: u64) -> bool {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::new(2).unwrap();
        let open = |shard| SqliteStore::open(folder.path(), DatabaseShard::new(shard), layout);
        let (mut first, mut second) = (open(0).unwrap(), open(1).unwrap());
        let status = PersistStatus::new(layout);
        let (next, last) = (Incarnation::new(3), Seq::new(10));
        status.set_opening(Opening { journal: JOURNAL, next, last });
        let mut is_refused = vec![false; 2];
        // From here on the control partition is shipped, and the first one's own.
        assert!(!ask(&mut first, JOURNAL, &status, &mut is_refused).unwrap().held.is_empty());
        stored(&mut second, partition, incarnation, seq);
        for _ in 0..2 {
            let standing = ask(&mut second, JOURNAL, &status, &mut is_refused).unwrap();
            assert_eq!(standing.held.is_empty(), is_refused[1]);
        }
        assert_eq!(status.alarms().len(), usize::from(is_refused[1]));
        is_refused[1]
    }

    #[test]
    fn a_database_that_answers_late_may_have_what_was_shipped_meanwhile_and_nothing_else() {
        let (control, own) = (Partition::CONTROL, Partition::new(31).unwrap());
        assert!(!is_refused(control, 3, 15), "this opening's own, stored by another process");
        assert!(!is_refused(control, 2, 10));
        assert!(is_refused(control, 2, 11), "a lost tail");
        assert!(is_refused(control, 4, 15), "an old copy");
        assert!(is_refused(own, 3, 15), "nothing of it was shipped before it answered");
    }
}
