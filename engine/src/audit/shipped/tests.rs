//! A topic that is right, and one tampered with in each way there is.

use super::*;
use crate::audit::beside::Others;
use crate::kernel::record::HEADER_LEN;
use crate::ship::kafka::message::{Message, MessageError};

const JOURNAL: JournalId = JournalId::new(0xfeed);
const LAST: u64 = 60;

/// A message as it stands in the topic.
#[derive(Clone, Debug)]
struct Sent {
    partition: u8,
    journal: JournalId,
    place: Place,
    prev_seq: u64,
    /// `None`: a mark.
    record: Option<Vec<u8>>,
    has_other_key: bool,
}

impl Sent {
    fn of(partition: u8, place: Place, prev_seq: u64, record: Option<Vec<u8>>) -> Self {
        Self { partition, journal: JOURNAL, place, prev_seq, record, has_other_key: false }
    }
}

fn partition_of(seq: u64) -> u8 {
    [3, 3, 7, 32][seq as usize % 4]
}
fn slot_of(seq: u64) -> Slot {
    match partition_of(seq) {
        32 => CONTROL,
        raw => Slot::new(u16::from(raw) * 128 + 5),
    }
}
fn place(seq: u64) -> Place {
    Place {
        seq: Seq::new(seq),
        incarnation: Incarnation::new(1 + (seq / 40) as u32),
        node_time: NodeTime::new(1_000 + seq / 10),
    }
}
fn bytes(seq: u64) -> Vec<u8> {
    let mut bytes = vec![7; HEADER_LEN];
    bytes.extend_from_slice(&seq.to_le_bytes());
    bytes
}

/// All records and a mark behind them in each partition.
fn topic() -> Vec<Sent> {
    let mut before = [0; PARTITION_COUNT];
    let mut all = Vec::new();
    for seq in 1..=LAST {
        let partition = partition_of(seq);
        let prev_seq = std::mem::replace(&mut before[usize::from(partition)], seq);
        let record = Some(bytes(seq));
        all.push(Sent::of(partition, place(seq), prev_seq, record));
    }
    for (partition, prev_seq) in (0..).zip(before) {
        all.push(Sent::of(partition, place(LAST), prev_seq, None));
    }
    all
}

/// The violations, when the journal has the records from `from` to `LAST`.
fn audit(topic: &[Sent], from: u64, first_offset: i64) -> Vec<String> {
    let mut shipped = Shipped::new(JOURNAL, Others::new());
    let mut offsets = [first_offset; PARTITION_COUNT];
    for sent in topic {
        let partition = Partition::new(sent.partition).unwrap();
        let Place { seq, incarnation, node_time } = sent.place;
        let place = crate::ship::log::Place { journal: sent.journal, incarnation, seq, node_time };
        let prev_seq = Seq::new(sent.prev_seq);
        let message = Message { partition, place, prev_seq, record: sent.record.as_deref() };
        let key = message.record.and_then(record::member_of).map(|m| m.get().to_be_bytes());
        let key = key.map(|member| if sent.has_other_key { member.map(|b| !b) } else { member });
        let (offset, message) = (offsets[partition.index()], Ok(message));
        let key = key.as_ref().map(<[u8; 8]>::as_slice);
        shipped.see(&Found { partition, offset, key, message }).unwrap();
        offsets[partition.index()] += 1;
    }
    judge(shipped, from)
}

fn judge(mut shipped: Shipped, from: u64) -> Vec<String> {
    shipped.seal(Seq::new(from));
    for seq in from..=LAST {
        shipped.note(place(seq), slot_of(seq), &bytes(seq));
    }
    let mut findings = Findings::default();
    shipped.finish(Seq::new(LAST), &mut findings);
    findings.iter().map(ToString::to_string).collect()
}

#[test]
fn what_is_right_is_found_right() {
    let whole = topic();
    assert_eq!(audit(&whole, 1, 0), Vec::<String>::new());
    // The journal's beginning was deleted; the topic's too; both; Kafka is behind; nothing there.
    assert_eq!(audit(&whole, 31, 0), Vec::<String>::new());
    assert_eq!(audit(&whole[20..], 1, 9), Vec::<String>::new());
    assert_eq!(audit(&whole[20..], 40, 9), Vec::<String>::new());
    assert_eq!(audit(&whole[..45], 1, 0), Vec::<String>::new());
    assert_eq!(audit(&[], 1, 0), Vec::<String>::new());
    // A shipper that started anew: some records come again, told from where it began to read.
    let mut again = whole[..40].to_vec();
    again.extend_from_slice(&whole[24..]);
    assert_eq!(audit(&again, 1, 0), Vec::<String>::new());
    // One that began behind a mark: its first record names the mark as what was before it.
    let mut marked = whole.clone();
    let first = marked.iter().position(|s| s.partition == 7 && s.place.seq.get() > 30).unwrap();
    let mut mark = marked[first].clone();
    mark.place = place(marked[first].place.seq.get() - 1);
    mark.record = None;
    marked[first].prev_seq = mark.place.seq.get();
    marked.insert(first, mark);
    assert_eq!(audit(&marked, 1, 0), Vec::<String>::new());
}

#[test]
fn what_was_tampered_with_is_found_each_time() {
    type Tamper = fn(&mut Vec<Sent>);
    let ways: [(&str, Tamper); 22] = [
        ("a record in the middle is gone", |t| drop(t.remove(30))),
        ("the first record is gone", |t| drop(t.remove(0))),
        ("a partition's last record is gone", |t| drop(t.remove(59))),
        ("a whole partition's records are gone", |t| {
            t.retain(|s| s.partition != 7 || s.record.is_none());
        }),
        ("a record's bytes differ", |t| t[10].record = Some(bytes(99))),
        ("a record is cut short", |t| t[10].record.as_mut().unwrap().truncate(HEADER_LEN)),
        ("a record's time differs", |t| t[10].place.node_time = NodeTime::new(1)),
        ("a record's incarnation differs", |t| t[10].place.incarnation = Incarnation::new(9)),
        ("a record stands in another partition", |t| t[10].partition = 12),
        ("a record has another member's key", |t| t[10].has_other_key = true),
        ("a record has another's number", |t| t[10].place.seq = Seq::new(13)),
        ("two records have changed places", |t| {
            let (a, b) = (t[10].record.clone(), t[14].record.clone());
            (t[10].record, t[14].record) = (b, a);
        }),
        ("two messages have changed places", |t| t.swap(7, 11)),
        ("a record comes again with other bytes", |t| {
            let mut again = t[10].clone();
            again.record = Some(bytes(98));
            t.insert(12, again);
        }),
        ("a record beyond the journal's end", |t| {
            let mut more = t[59].clone();
            (more.place.seq, more.prev_seq) = (Seq::new(LAST + 1), LAST);
            t.push(more);
        }),
        ("a mark beyond the journal's end", |t| t[60].place.seq = Seq::new(LAST + 5)),
        ("a mark hides a record", |t| {
            let prev_seq = t[63].prev_seq;
            t[63].prev_seq = prev_seq - 1;
        }),
        ("a mark in the middle hides a record", |t| {
            let mut mark = t[20].clone();
            (mark.prev_seq, mark.record) = (t[20].prev_seq, None);
            t.insert(21, mark);
        }),
        ("a predecessor is further back than it was", |t| t[30].prev_seq -= 3),
        ("a predecessor is there that never was", |t| t[30].prev_seq += 1),
        ("a record of another journal", |t| {
            let mut other = t[10].clone();
            other.journal = JournalId::new(1);
            t.push(other);
        }),
        ("a mark of another journal", |t| t[61].journal = JournalId::new(1)),
    ];
    for (what, tamper) in ways {
        let mut topic = topic();
        tamper(&mut topic);
        assert!(!audit(&topic, 1, 0).is_empty(), "{what} was not found");
    }
}

#[test]
fn a_message_that_is_none_is_found_and_a_newer_one_stops_the_audit() {
    let partition = Partition::new(3).unwrap();
    let none = |error| Found { partition, offset: 0, key: None, message: Err(error) };
    let mut shipped = Shipped::new(JOURNAL, Others::new());
    shipped.see(&none(MessageError::Kind(9))).unwrap();
    assert_eq!(judge(shipped, LAST + 1).len(), 1);
    let mut shipped = Shipped::new(JOURNAL, Others::new());
    assert!(shipped.see(&none(MessageError::Version { found: 2 })).is_err());
}
