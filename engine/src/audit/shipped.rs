//! What stands in Kafka, held against the journal: each record once or more, whole, in its
//! partition, under its member's key, behind the one before it, with no hole, and nothing that the
//! journal does not have.
//!
//! Kafka is read first and the journal afterwards, so whatever stands in Kafka must be in the
//! journal. A record may come again (a shipper that starts anew begins where the database shards
//! are); it must then be the same. What retention has deleted is not missed.
//!
//! Shape: 64 bytes for each message that Kafka has.

use super::beside::Others;
use super::finding::{Check, Findings, Where};
use super::journal::CannotRead;
use super::model::Place;
use super::report::{counted, grouped};
use crate::config::KafkaConfig;
use crate::kernel::record::{self, CONTROL};
use crate::ship::kafka::read::{self, Found};
use crate::ship::partition::{PARTITION_COUNT, Partition};
use crate::units::{Incarnation, JournalId, NodeTime, Seq, Slot};

/// One message.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Entry {
    seq: Seq,
    /// Of the record's bytes.
    hash: u64,
    node_time: NodeTime,
    /// Where its predecessor is at most, and at least, as its messages say.
    prev_seq: Seq,
    prev_seq_min: Seq,
    offset: i64,
    /// Where it came last.
    last_offset: i64,
    incarnation: Incarnation,
}

/// One partition of the topic.
#[derive(Default, Debug)]
struct Topic {
    /// A message was seen.
    is_begun: bool,
    /// Nothing was deleted at its beginning.
    is_whole: bool,
    /// Sorted by sequence number, once all is read.
    records: Vec<Entry>,
    marks: Vec<Entry>,
    next_record: usize,
    next_mark: usize,
    /// The last record of the journal that belongs here.
    last: Option<Seq>,
    /// Everything up to there must be here.
    through: Seq,
    lag: u64,
}

impl Topic {
    /// Each message says how far back nothing lies before it: that must reach what was there
    /// already. A mark reaches on for the records behind it.
    fn look_for_holes(&self, at: Where, findings: &mut Findings) {
        let Some(first) = self.records.first() else { return };
        let mut complete_to = first.seq;
        let mut marks = self.marks.iter().peekable();
        for record in &self.records[1..] {
            while let Some(mark) = marks.next_if(|mark| mark.seq < record.seq) {
                if mark.prev_seq <= complete_to {
                    complete_to = complete_to.max(mark.seq);
                }
            }
            if record.prev_seq > complete_to {
                let sentence = format!(
                    "its predecessor is {}, and what is here is complete to {complete_to} only: a \
                     message is missing",
                    record.prev_seq
                );
                findings.violation(Check::Shipped, at.with_seq(record.seq), sentence);
            }
            complete_to = complete_to.max(record.seq);
        }
        for pair in self.records.windows(2).filter(|_| self.is_whole) {
            if pair[1].last_offset < pair[0].offset {
                let sentence = format!(
                    "offset {}: it stands before record {}, and never behind it",
                    pair[1].last_offset, pair[0].seq
                );
                findings.violation(Check::Shipped, at.with_seq(pair[1].seq), sentence);
            }
        }
    }
}

/// Everything that Kafka has of one journal.
#[derive(Debug)]
pub struct Shipped {
    journal: JournalId,
    /// Of other nodes, whose messages are theirs to audit.
    others: Others,
    /// Where the journal is read from.
    from: Seq,
    topics: Vec<Topic>,
    findings: Findings,
    message_count: u64,
    again_count: u64,
}

impl Shipped {
    pub fn new(journal: JournalId, others: Others) -> Self {
        let topics = (0..PARTITION_COUNT).map(|_| Topic::default()).collect();
        Self {
            journal,
            others,
            from: Seq::NONE,
            topics,
            findings: Findings::default(),
            message_count: 0,
            again_count: 0,
        }
    }

    /// Reads the whole records topic.
    ///
    /// Errors: it cannot be read to its end.
    pub fn read(
        config: &KafkaConfig,
        journal: JournalId,
        others: &Others,
    ) -> Result<Self, CannotRead> {
        let mut shipped = Self::new(journal, others.clone());
        let all: Vec<_> = Partition::all().collect();
        read::each(config, &all, 0, &mut |found| {
            shipped.see(found).map_err(std::io::Error::other)?;
            Ok(true)
        })
        .map_err(|e| CannotRead(format!("reading Kafka: {e}")))?;
        Ok(shipped)
    }

    /// A message, where it stands. In the order of their offsets.
    ///
    /// Errors: only a newer program can read it.
    pub fn see(&mut self, found: &Found<'_>) -> Result<(), CannotRead> {
        let Found { partition, offset, key, message } = found;
        let at = Where::default().with_partition(partition.get());
        let message = match message {
            Ok(message) => message,
            Err(e) if e.is_newer() => return Err(CannotRead(e.to_string())),
            Err(e) => {
                let sentence = format!("offset {offset} is none of our messages: {e}");
                self.findings.violation(Check::Shipped, at, sentence);
                return Ok(());
            }
        };
        let topic = &mut self.topics[partition.index()];
        if !topic.is_begun {
            (topic.is_begun, topic.is_whole) = (true, *offset == 0);
        }
        if self.others.contains(&message.place.journal) {
            return Ok(());
        }
        if message.place.journal != self.journal {
            let found = message.place.journal.get();
            let sentence = format!("offset {offset} is of journal {found:016x}, not of this one");
            self.findings.violation(Check::Shipped, at.with_seq(message.place.seq), sentence);
            return Ok(());
        }
        self.message_count += 1;
        let member = message.record.and_then(record::member_of).map(|m| m.get().to_be_bytes());
        if *key != member.as_ref().map(<[u8; 8]>::as_slice) {
            let sentence = format!("offset {offset} has another key than its member's");
            self.findings.violation(Check::Shipped, at.with_seq(message.place.seq), sentence);
        }
        let entry = Entry {
            seq: message.place.seq,
            hash: message.record.map_or(0, xxhash_rust::xxh3::xxh3_64),
            node_time: message.place.node_time,
            prev_seq: message.prev_seq,
            prev_seq_min: message.prev_seq,
            offset: *offset,
            last_offset: *offset,
            incarnation: message.place.incarnation,
        };
        if message.record.is_some() {
            topic.records.push(entry);
        } else {
            topic.marks.push(entry);
        }
        Ok(())
    }

    /// All is read: sorts it, drops what came again unchanged, and looks for holes. The journal
    /// will be read from `from` on.
    pub fn seal(&mut self, from: Seq) {
        self.from = from;
        for (raw, topic) in self.topics.iter_mut().enumerate() {
            let at = Where::default().with_partition(raw as u8);
            topic.records.sort_unstable_by_key(|e| (e.seq, e.offset));
            topic.marks.sort_unstable_by_key(|e| (e.seq, e.offset));
            let findings = &mut self.findings;
            let before = topic.records.len();
            topic.records.dedup_by(|again, first| {
                if again.seq != first.seq {
                    return false;
                }
                if (again.hash, again.node_time) != (first.hash, first.node_time) {
                    let sentence = format!("offsets {} and {} differ", first.offset, again.offset);
                    findings.violation(Check::Shipped, at.with_seq(first.seq), sentence);
                }
                first.last_offset = again.offset;
                first.prev_seq = first.prev_seq.max(again.prev_seq);
                first.prev_seq_min = first.prev_seq_min.min(again.prev_seq);
                true
            });
            self.again_count += (before - topic.records.len()) as u64;
            topic.look_for_holes(at, findings);
            let ends = [topic.records.last(), topic.marks.last()];
            topic.through = ends.into_iter().flatten().map(|e| e.seq).max().unwrap_or_default();
        }
    }

    /// A record of the journal, in order.
    pub fn note(&mut self, place: Place, slot: Slot, bytes: &[u8]) {
        let partition =
            if slot == CONTROL { Some(Partition::CONTROL) } else { Partition::of(slot) };
        let Some(partition) = partition else { return };
        let at = Where::default().with_partition(partition.get());
        let topic = &mut self.topics[partition.index()];
        while let Some(entry) = topic.records.get(topic.next_record).filter(|e| e.seq < place.seq) {
            // What the journal has deleted cannot be looked up any more.
            if entry.seq >= self.from {
                let sentence = format!("offset {}: the journal has no such record", entry.offset);
                self.findings.violation(Check::Shipped, at.with_seq(entry.seq), sentence);
            }
            topic.next_record += 1;
        }
        while let Some(mark) = topic.marks.get(topic.next_mark).filter(|m| m.seq < place.seq) {
            let hidden = topic.last.filter(|last| *last > mark.prev_seq && *last <= mark.seq);
            self.findings.hidden(at, mark, hidden);
            topic.next_mark += 1;
        }
        match topic.records.get(topic.next_record).filter(|e| e.seq == place.seq) {
            Some(entry) => {
                topic.next_record += 1;
                let stands = (entry.hash, entry.node_time, entry.incarnation);
                let hash = xxhash_rust::xxh3::xxh3_64(bytes);
                if stands != (hash, place.node_time, place.incarnation) {
                    let sentence = format!("offset {} differs from the journal", entry.offset);
                    self.findings.violation(Check::Shipped, at.with_seq(place.seq), sentence);
                }
                if let Some(last) = topic.last.filter(|last| entry.prev_seq_min < *last) {
                    let sentence = format!(
                        "offset {} says nothing lies between {} and it, and {last} does",
                        entry.offset, entry.prev_seq_min
                    );
                    self.findings.violation(Check::Shipped, at.with_seq(place.seq), sentence);
                }
            }
            None if place.seq > topic.through => topic.lag += 1,
            // Retention took the beginning.
            None if !topic.is_whole && topic.next_record == 0 => {}
            None => {
                let sentence = format!("it is not there, though {} is", topic.through);
                self.findings.violation(Check::Shipped, at.with_seq(place.seq), sentence);
            }
        }
        topic.last = Some(place.seq);
    }

    /// The journal ends at `last`. Gives how many messages there were, and the figures in words.
    pub fn finish(mut self, last: Seq, findings: &mut Findings) -> (u64, String) {
        for (raw, topic) in self.topics.iter().enumerate() {
            let at = Where::default().with_partition(raw as u8);
            let records = topic.records[topic.next_record..].iter();
            let marks = topic.marks.iter();
            for entry in records.chain(marks.filter(|m| m.seq > last)) {
                if entry.seq >= self.from {
                    let sentence = format!(
                        "offset {}: the journal, which ends at {last}, has no such record",
                        entry.offset
                    );
                    self.findings.violation(Check::Shipped, at.with_seq(entry.seq), sentence);
                }
            }
            for mark in topic.marks[topic.next_mark..].iter().filter(|m| m.seq <= last) {
                let hidden = topic.last.filter(|last| *last > mark.prev_seq);
                self.findings.hidden(at, mark, hidden);
            }
        }
        findings.absorb(self.findings);
        let lag: u64 = self.topics.iter().map(|topic| topic.lag).sum();
        let figures = format!(
            "{} in {PARTITION_COUNT} partitions, {} of them again · {} behind",
            counted(self.message_count, "message", "messages"),
            grouped(self.again_count),
            counted(lag, "record", "records"),
        );
        (self.message_count, figures)
    }
}

impl Findings {
    /// A mark says that nothing lies between two numbers, and a record does.
    fn hidden(&mut self, at: Where, mark: &Entry, hidden: Option<Seq>) {
        let Some(seq) = hidden else { return };
        let sentence = format!(
            "offset {} says nothing lies between {} and {}, and this record does",
            mark.offset, mark.prev_seq, mark.seq
        );
        self.violation(Check::Shipped, at.with_seq(seq), sentence);
    }
}

#[cfg(test)]
mod tests;
