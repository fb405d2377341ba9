//! Where a writer stands: the map and the watermarks that its database has, read anew, and the log
//! wound to them.

use super::{HashMap, HashSet, ShardWriter};
use crate::persist::store::{Store, StoreError, Stream, WatermarkRow};
use crate::ship::gap::Watermark;
use crate::ship::holdings::{Hold, Holding, Holdings};
use crate::ship::log::Log;

impl<L: Log, S: Store> ShardWriter<L, S> {
    /// Has the log send everything again that the database does not have.
    pub(super) fn resync(&mut self) {
        for (stream, watermark) in &self.committed {
            if !self.halted.contains(stream) {
                self.log.rewind(stream.journal, stream.partition, watermark.seq);
            }
        }
    }

    /// Every stream that is read here, also those that have no watermark yet.
    pub(super) fn streams(&self) -> Vec<(Stream, Watermark)> {
        let journals: HashSet<_> =
            self.committed.keys().map(|s| s.journal).chain(self.log.journal()).collect();
        let held: Vec<_> = self.map.iter().flat_map(Holdings::partitions).collect();
        let of = |journal| held.iter().map(move |p| Stream { journal, partition: *p });
        let streams = journals.into_iter().flat_map(of);
        streams.map(|s| (s, self.committed.get(&s).copied().unwrap_or_default())).collect()
    }

    /// Takes a map as the database has it, and lets go of what it holds no more.
    pub(super) fn take_map(&mut self, mut map: Holdings) {
        for (partition, holding) in map.each() {
            let owner = self.status.routes().owner(partition);
            let Some((owner, epoch)) = owner.filter(|(_, epoch)| *epoch > holding.epoch) else {
                continue;
            };
            if holding.hold != Hold::Held {
                continue;
            }
            // It was set back to before it gave the partition away: writing it here as well would
            // have it twice.
            let text = format!(
                "it claims partition {}, which database shard {} has since its epoch {}: it was \
                 restored to before that; the partition is written there alone",
                partition.get(),
                owner.get(),
                epoch.get()
            );
            tracing::error!(database_shard = self.shard.get(), "{text}");
            self.shard_status().alarm_text(text);
            map.set(
                partition,
                Holding { hold: Hold::Gone, epoch: holding.epoch, peer: Some(owner) },
            );
        }
        let is_new = self.map.is_some_and(|old| old.version != map.version);
        if is_new {
            let held = map.partitions().count();
            let (database_shard, version) = (self.shard.get(), map.version.get());
            tracing::info!(database_shard, version, held, "the map of partitions has changed");
        }
        let gone = |stream: &Stream| !map.holds(stream.partition);
        for stream in self.committed.keys().copied().filter(gone) {
            if self.log.journal().is_none_or(|own| own == stream.journal) {
                self.log.hold_back(stream.journal, stream.partition);
            }
        }
        self.committed.retain(|stream, _| map.holds(stream.partition));
        self.halted.retain(|stream| map.holds(stream.partition));
        self.rewinding.retain(|stream, _| map.holds(stream.partition));
        self.map = Some(map);
    }

    /// Compares the first answer with how the journal was opened: a database that knows more of it
    /// than it does itself gets nothing of it, until a person has looked.
    pub(super) fn compare_opening(&mut self, rows: &[WatermarkRow]) {
        let Some(opening) = self.status.opening() else { return };
        let Some(alarm) = self.status.contradiction(self.shard, rows) else { return };
        let streams = self.streams().into_iter().map(|(stream, _)| stream);
        let own = |stream: &Stream| stream.journal == opening.journal;
        let own: Vec<_> =
            streams.filter(|stream| own(stream) && !self.halted.contains(stream)).collect();
        for stream in own {
            self.halt(stream, &alarm);
        }
    }

    /// Whether another process has stored what this one misses.
    ///
    /// † Perhaps it did so before it stood still or lost the partition, and whoever is asked for
    /// the records sees that nothing is missing [the log had dropped them meanwhile: the same gap
    /// was asked for for ever]. Looked at without reading the log anew: what was asked for stands
    /// behind everything that came since, and a log that begins again at the gap every few seconds
    /// does not come to it.
    pub(super) fn is_overtaken(&mut self) -> Result<bool, StoreError> {
        let missing = std::mem::take(&mut self.asked_again);
        if missing.is_empty() {
            return Ok(false);
        }
        let rows = self.store.watermarks()?;
        let is_further = |row: &WatermarkRow| {
            let known = self.committed.get(&row.stream).copied().unwrap_or_default();
            row.watermark.seq > known.seq
        };
        Ok(rows.iter().any(|row| missing.contains(&row.stream) && is_further(row)))
    }

    /// Takes the watermarks as the database has them, and reads on from there.
    pub(super) fn reread(&mut self) -> Result<(), StoreError> {
        let (map, mut rows) = self.store.standing()?;
        self.take_map(map);
        rows.retain(|row| self.holds(row.stream.partition));
        if self.settings.is_shared {
            let own = self.log.journal();
            rows.retain(|row| own.is_none_or(|own| own == row.stream.journal));
        }
        if let Some(expected) = self.log.journal()
            && let Some(other) = rows.iter().find(|r| r.stream.journal != expected)
        {
            let found = other.stream.journal;
            return Err(StoreError::OtherJournal { found, expected });
        }
        self.compare_opening(&rows);
        let found: HashMap<_, _> = rows.iter().map(|r| (r.stream, r.watermark)).collect();
        // Journals and partitions that this writer has not met yet are known by their watermarks
        // alone.
        for stream in found.keys() {
            self.committed.entry(*stream).or_default();
        }
        let known: Vec<_> = self.streams();
        for (stream, expected) in known {
            let found = found.get(&stream).copied().unwrap_or_default();
            self.committed.insert(stream, found);
            if found == expected {
                continue;
            }
            if let Some(alarm) = expected.judge_found(found) {
                tracing::error!(database_shard = self.shard.get(), "{alarm}");
                self.shard_status().alarm(&alarm);
                self.ask_rewind(stream, found.seq, "the watermark went back");
            }
        }
        for row in &rows {
            self.shard_status().set_node_time(row.at);
        }
        self.load_parked()?;
        self.resync();
        let topic = self.log.topic();
        if !topic.is_empty() {
            let offsets = self.store.offsets(&topic)?;
            let stored = |p| offsets.iter().find(|(of, _)| *of == p).map(|(_, offset)| *offset);
            let held = self.map.iter().flat_map(Holdings::partitions);
            let from: Vec<_> = held.map(|p| (p, stored(p))).collect();
            self.log.resume(&from);
        }
        self.publish();
        Ok(())
    }

    pub(super) fn publish(&self) {
        // Where several journals come by, and others write the same database shard too, how far
        // it is can only be asked of the database itself: whoever wants to know does.
        if self.log.journal().is_some() {
            for (stream, watermark) in &self.committed {
                self.shard_status().set_persisted(stream.partition, watermark.seq);
            }
        }
        // Behind the figures: who is led here finds them.
        if let Some(map) = &self.map {
            self.status.routes().hear(self.shard, map);
        }
        self.status.notify();
    }
}
