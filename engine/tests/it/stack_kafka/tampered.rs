//! A copy of a records topic on a real broker, in which each partition is tampered with in another
//! way: the audit finds every one in its place, and nothing where all is right.

use onrush::audit::finding::{Check, Finding, Where};
use onrush::audit::{AuditReport, Elsewhere, audit_with};
use onrush::config::{KafkaConfig, StoreConfig};
use onrush::ship::kafka::topic::Topics;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::message::Message as _;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

use super::faults::{open, sell};
use super::{PATIENCE, Shop, Stack, admin_options, block_on, broker, wait_stored};
use crate::audit::assert_found;
use crate::e2e::turn;
use crate::e2e_burst::MEMBERS;

const PARTITIONS: i32 = 33;
/// Where fields of a message lie: see `ship::kafka::message`.
const VERSION: usize = 0;
const KIND: usize = 1;
const PARTITION: usize = 2;
const INCARNATION: usize = 4;
const JOURNAL: usize = 8;
const PREV_SEQ: usize = 16;
const SEQ: usize = 24;
const NODE_TIME: usize = 32;
const RECORD: usize = 40;

/// A message as it stands in a partition.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Sent {
    key: Option<Vec<u8>>,
    payload: Vec<u8>,
}

impl Sent {
    fn is_record(&self) -> bool {
        self.payload[KIND] == 1
    }
    fn get(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.payload[at..at + 8].try_into().unwrap())
    }
    fn set(&mut self, at: usize, value: u64) {
        self.payload[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }
}

/// Every message of a topic, by partition.
type Topic = Vec<Vec<Sent>>;

fn client(stack: &Stack) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", stack.bootstrap());
    config
}

fn read(stack: &Stack, topic: &str) -> Topic {
    let consumer: BaseConsumer = client(stack).set("group.id", "copier").create().unwrap();
    let mut list = TopicPartitionList::new();
    let mut left = 0;
    for partition in 0..PARTITIONS {
        let (low, high) = consumer.fetch_watermarks(topic, partition, PATIENCE).unwrap();
        list.add_partition_offset(topic, partition, Offset::Offset(low)).unwrap();
        left += high - low;
    }
    consumer.assign(&list).unwrap();
    let mut read = vec![Vec::new(); PARTITIONS as usize];
    while left > 0 {
        let message = consumer.poll(PATIENCE).expect("a message").unwrap();
        let (key, payload) = (message.key().map(<[u8]>::to_vec), message.payload().unwrap());
        read[message.partition() as usize].push(Sent { key, payload: payload.to_vec() });
        left -= 1;
    }
    read
}

fn write(stack: &Stack, topic: &str, messages: &Topic) {
    let producer: BaseProducer = client(stack).set("enable.idempotence", "true").create().unwrap();
    for (partition, messages) in (0..).zip(messages) {
        for sent in messages {
            let mut record =
                BaseRecord::<[u8], [u8]>::to(topic).partition(partition).payload(&sent.payload);
            if let Some(key) = &sent.key {
                record = record.key(key);
            }
            producer.send(record).map_err(|(error, _)| error).unwrap();
        }
    }
    producer.flush(PATIENCE).unwrap();
}

/// A copy of the topic with the same settings, and the audit of the shop against it.
fn audit_copy(shop: &Shop, number: usize, topic: &Topic) -> Result<AuditReport, String> {
    let stack = broker();
    let config = KafkaConfig {
        bootstrap: stack.bootstrap().to_owned(),
        topic: format!("{}-copy-{number}", shop.topic),
        events_topic: String::new(),
        replication: 1,
        min_insync: 1,
        ..KafkaConfig::default()
    };
    Topics::connect(&config).unwrap().init().unwrap();
    write(stack, &config.topic, topic);
    let name = config.topic.clone();
    let elsewhere = Elsewhere { store: StoreConfig::default(), kafka: Some(config) };
    let report = audit_with(shop.site.data(), &elsewhere, &mut |_| {});
    block_on(stack.admin().delete_topics(&[&name], &admin_options())).unwrap();
    report.map_err(|error| error.to_string())
}

/// A partition, and two records in it that stand side by side, with others' records in between.
#[derive(Clone, Copy)]
struct Place {
    partition: usize,
    first: usize,
}

/// One in each partition of members that has such two.
fn places(topic: &Topic) -> Vec<Place> {
    let is_one = |messages: &[Sent]| {
        let (a, b) = (&messages[0], &messages[1]);
        let has_between = a.get(SEQ) + 1 < b.get(SEQ) && b.get(PREV_SEQ) == a.get(SEQ);
        // And a mark behind them.
        let is_marked = messages.iter().any(|m| !m.is_record());
        a.is_record() && b.is_record() && has_between && is_marked
    };
    let of = |(partition, messages): (usize, &Vec<Sent>)| {
        let first = (4..messages.len().saturating_sub(1)).find(|i| is_one(&messages[*i..]))?;
        Some(Place { partition, first })
    };
    topic.iter().enumerate().take(32).filter_map(of).collect()
}

/// Where what is moved goes.
const ELSEWHERE: usize = 31;

type Tamper = fn(&mut Topic, Place);

/// What is done to partition `p` at message `i`, a record, behind which another stands.
const WAYS: &[(&str, Tamper)] = &[
    ("a record in the middle is lost", |t, Place { partition: p, first: i }| {
        t[p].remove(i);
    }),
    ("the first record is lost", |t, Place { partition: p, .. }| {
        let first = t[p].iter().position(Sent::is_record).unwrap();
        t[p].remove(first);
    }),
    ("all records of a partition are lost, and its marks are there", |t, at| {
        t[at.partition].retain(|m| !m.is_record());
    }),
    ("a byte of a record is altered", |t, Place { partition: p, first: i }| {
        *t[p][i].payload.last_mut().unwrap() ^= 1;
    }),
    ("a record is cut short by a byte", |t, Place { partition: p, first: i }| {
        t[p][i].payload.pop();
    }),
    ("a record's header alone is left", |t, Place { partition: p, first: i }| {
        t[p][i].payload.truncate(RECORD);
    }),
    ("a message is cut within its header", |t, Place { partition: p, first: i }| {
        t[p][i].payload.truncate(NODE_TIME);
    }),
    ("a record's time is altered", |t, Place { partition: p, first: i }| {
        t[p][i].set(NODE_TIME, 1);
    }),
    ("a record's incarnation is altered", |t, Place { partition: p, first: i }| {
        t[p][i].payload[INCARNATION] += 1;
    }),
    ("a record stands in another partition", |t, Place { partition: p, first: i }| {
        let moved = t[p].remove(i);
        t[ELSEWHERE].push(moved);
    }),
    ("a record stands in another partition, and says that one", |t, at| {
        let mut moved = t[at.partition].remove(at.first);
        moved.payload[PARTITION] = ELSEWHERE as u8;
        t[ELSEWHERE].push(moved);
    }),
    ("a record has another member's key", |t, Place { partition: p, first: i }| {
        t[p][i].key = Some((MEMBERS + 1).to_be_bytes().to_vec());
    }),
    ("a record has no key", |t, Place { partition: p, first: i }| t[p][i].key = None),
    ("a mark has a member's key", |t, Place { partition: p, first: i }| {
        let key = t[p][i].key.clone();
        t[p].iter_mut().find(|m| !m.is_record()).unwrap().key = key;
    }),
    ("somebody else writes to the topic", |t, Place { partition: p, .. }| {
        t[p].push(Sent { key: None, payload: b"{\"hello\":\"is this the right topic\"}".to_vec() });
    }),
    ("an empty message", |t, Place { partition: p, .. }| {
        t[p].push(Sent { key: None, payload: Vec::new() });
    }),
    ("a message of an unknown kind", |t, Place { partition: p, first: i }| {
        t[p][i].payload[KIND] = 9;
    }),
    ("a record of a journal that nobody has", |t, Place { partition: p, first: i }| {
        let mut other = t[p][i].clone();
        other.set(JOURNAL, 0xdead);
        t[p].push(other);
    }),
    ("a record comes again with other bytes", |t, Place { partition: p, first: i }| {
        let mut again = t[p][i].clone();
        *again.payload.last_mut().unwrap() ^= 1;
        t[p].push(again);
    }),
    ("two records have each other's bytes", |t, Place { partition: p, first: i }| {
        let (a, b) = (t[p][i].payload[RECORD..].to_vec(), t[p][i + 1].payload[RECORD..].to_vec());
        t[p][i].payload.truncate(RECORD);
        t[p][i].payload.extend(b);
        t[p][i + 1].payload.truncate(RECORD);
        t[p][i + 1].payload.extend(a);
        let key = t[p][i].key.take();
        t[p][i].key = std::mem::replace(&mut t[p][i + 1].key, key);
    }),
    ("two records have changed places", |t, Place { partition: p, first: i }| {
        t[p].swap(i, i + 1);
    }),
    ("a record beyond the journal's end", |t, Place { partition: p, first: i }| {
        let mut more = t[p][i].clone();
        more.set(PREV_SEQ, 1 << 40);
        more.set(SEQ, (1 << 40) + 1);
        t[p].push(more);
    }),
    ("a mark beyond the journal's end", |t, Place { partition: p, .. }| {
        let mut mark = t[p].iter().rfind(|m| !m.is_record()).unwrap().clone();
        mark.set(SEQ, 1 << 40);
        t[p].push(mark);
    }),
    ("a mark hides records", |t, Place { partition: p, .. }| {
        t[p].iter_mut().rfind(|m| !m.is_record()).unwrap().set(PREV_SEQ, 0);
    }),
    ("a record hides the one before it", |t, Place { partition: p, first: i }| {
        t[p][i + 1].set(PREV_SEQ, 0);
    }),
    ("a record names a predecessor that never was", |t, Place { partition: p, first: i }| {
        let seq = t[p][i + 1].get(SEQ);
        t[p][i + 1].set(PREV_SEQ, seq - 1);
    }),
];

#[test]
fn every_way_to_tamper_with_a_topic_is_found_and_what_is_harmless_is_not() {
    let _turn = turn();
    let stack = broker();
    let mut shop = Shop::open(stack);
    shop.site.set("persist.run", "true");
    let node = shop.site.start();
    open(&node);
    sell(&node, "first", MEMBERS);
    wait_stored(&node);
    sell(&node, "second", MEMBERS);
    wait_stored(&node);
    assert!(node.stop().success());

    let right = read(stack, &shop.topic);
    let report = audit_copy(&shop, 0, &right).unwrap();
    assert!(report.passes(), "{report}");
    assert!(report.line(Check::Shipped).checked > 3 * MEMBERS, "{report}");
    // A shipper that begins anew sends some of it again.
    let mut again = right.clone();
    for messages in &mut again {
        messages.extend_from_within(messages.len() / 2..);
    }
    let report = audit_copy(&shop, 1, &again).unwrap();
    assert!(report.passes(), "{report}");

    let places: Vec<_> =
        places(&right).into_iter().filter(|place| place.partition != ELSEWHERE).collect();
    assert!(places.len() > WAYS.len(), "no room for {} ways: {}", WAYS.len(), places.len());
    let mut tampered = right.clone();
    for ((what, tamper), place) in WAYS.iter().zip(&places) {
        tamper(&mut tampered, *place);
        assert_ne!(tampered[place.partition], right[place.partition], "{what}: nothing was done");
    }
    let report = audit_copy(&shop, 2, &tampered).unwrap();
    let at = |partition: usize| Where::default().with_partition(partition as u8);
    for ((what, _), place) in WAYS.iter().zip(&places) {
        assert_found(what, &report, Check::Shipped, at(place.partition));
    }
    assert_found("what came from elsewhere", &report, Check::Shipped, at(ELSEWHERE));
    for place in &places[WAYS.len()..] {
        let told = |f: &Finding| f.at.partition.map(usize::from) == Some(place.partition);
        assert!(!report.findings.iter().any(told), "nothing is wrong there:\n{report}");
    }

    let mut newer = right.clone();
    newer[places[0].partition][places[0].first].payload[VERSION] = 2;
    let error = audit_copy(&shop, 3, &newer).unwrap_err();
    assert!(error.contains("newer"), "only a newer program can tell: {error}");

    // What retention deletes is not missed: the database shards have it.
    let Place { partition, first } = places[0];
    let mut list = TopicPartitionList::new();
    let offset = Offset::Offset(i64::try_from(first).unwrap());
    let partition = i32::try_from(partition).unwrap();
    list.add_partition_offset(&shop.topic, partition, offset).unwrap();
    let deleted = block_on(stack.admin().delete_records(&list, &admin_options())).unwrap();
    deleted.elements().iter().for_each(|e| e.error().unwrap());
    let (code, out, err) = shop.audit_all();
    assert_eq!(code, Some(0), "{out}\n{err}");
}
