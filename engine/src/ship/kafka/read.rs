//! The records topic read from one end to the other, outside any group: for `inspect` and audits.

use std::collections::BTreeMap;
use std::time::Duration;

use rdkafka::config::FromClientConfigAndContext as _;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message as _};
use rdkafka::{Offset, TopicPartitionList};
use thiserror::Error;

use super::client::{self, ANSWER_WITHIN, ClientError, Ear};
use super::message::{Message, MessageError};
use crate::config::KafkaConfig;
use crate::ship::partition::Partition;

/// Reading stopped before the end.
#[derive(Error, Debug)]
pub enum ReadError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("reading partition {partition}: {error}")]
    Kafka { partition: u8, error: KafkaError },
    #[error("reading partition {partition}: nothing came within {seconds} s at offset {offset}")]
    Silent { partition: u8, offset: i64, seconds: u64 },
    #[error(transparent)]
    See(#[from] std::io::Error),
}

/// One message where it stands.
pub struct Found<'a> {
    pub partition: Partition,
    pub offset: i64,
    pub key: Option<&'a [u8]>,
    pub message: Result<Message<'a>, MessageError>,
}

impl ConsumerContext for Ear {}

/// Shows every message of these partitions, from an offset on up to what was there at the
/// beginning: each partition's in their order, the partitions as they come. `see` says whether to
/// go on.
///
/// All partitions are assigned at once: each new assignment waits for the fetch before it, half a
/// second.
pub fn each(
    config: &KafkaConfig,
    partitions: &[Partition],
    from: i64,
    see: &mut dyn FnMut(&Found<'_>) -> std::io::Result<bool>,
) -> Result<(), ReadError> {
    let mut settings = client::base(config)?;
    // Never joined, but librdkafka wants a name.
    settings
        .set("group.id", format!("{}-inspect", config.group))
        .set("enable.auto.commit", "false");
    let settings =
        settings.set("enable.partition.eof", "true").set("auto.offset.reset", "earliest");
    let consumer: BaseConsumer<Ear> =
        BaseConsumer::from_config_and_context(settings, Ear::default())
            .map_err(|e| ClientError::Settings(e.to_string()))?;
    let mut ends = BTreeMap::new();
    let mut list = TopicPartitionList::new();
    for partition in partitions.iter().copied() {
        let raw = i32::from(partition.get());
        let (low, high) = bounds(&consumer, config, partition)?;
        let next = low.max(from);
        if next < high {
            list.add_partition_offset(&config.topic, raw, Offset::Offset(next))
                .map_err(|error| ReadError::Kafka { partition: partition.get(), error })?;
            ends.insert(raw, Unread { partition, next, high });
        }
    }
    if let Some(first) = ends.values().next() {
        let partition = first.partition.get();
        consumer.assign(&list).map_err(|error| ReadError::Kafka { partition, error })?;
    }
    while let Some(first) = ends.values().next() {
        let message = match poll(&consumer) {
            Some(Ok(message)) => message,
            // The end, where the last offsets hold no message.
            Some(Err(KafkaError::PartitionEOF(at))) => {
                ends.remove(&at);
                continue;
            }
            Some(Err(error)) => {
                return Err(ReadError::Kafka { partition: first.partition.get(), error });
            }
            None => {
                return Err(ReadError::Silent {
                    partition: first.partition.get(),
                    offset: first.next,
                    seconds: ANSWER_WITHIN.as_secs(),
                });
            }
        };
        let raw = message.partition();
        let Some(unread) = ends.get_mut(&raw) else { continue };
        unread.next = message.offset() + 1;
        let bytes = message.payload().unwrap_or_default();
        let found = Found {
            partition: unread.partition,
            offset: message.offset(),
            key: message.key(),
            message: Message::decode(bytes, raw),
        };
        if unread.next >= unread.high {
            ends.remove(&raw);
        }
        if !see(&found)? {
            break;
        }
    }
    Ok(())
}

/// The next message or error, within [`ANSWER_WITHIN`] and without waiting in librdkafka (see
/// `producer`).
fn poll(consumer: &BaseConsumer<Ear>) -> Option<Result<BorrowedMessage<'_>, KafkaError>> {
    const IDLE: Duration = Duration::from_millis(1);
    (0..ANSWER_WITHIN.as_millis()).find_map(|_| {
        let polled = consumer.poll(Duration::ZERO);
        if polled.is_none() {
            std::thread::sleep(IDLE);
        }
        polled
    })
}

/// What is still to be read of a partition.
struct Unread {
    partition: Partition,
    next: i64,
    high: i64,
}

/// A partition's first offset, and the one after its last.
fn bounds(
    consumer: &BaseConsumer<Ear>,
    config: &KafkaConfig,
    partition: Partition,
) -> Result<(i64, i64), ReadError> {
    let raw = i32::from(partition.get());
    let bounds =
        consumer.fetch_watermarks(&config.topic, raw, ANSWER_WITHIN).map_err(
            |error| match error.rdkafka_error_code() {
                Some(
                    RDKafkaErrorCode::UnknownTopicOrPartition
                    | RDKafkaErrorCode::UnknownPartition
                    | RDKafkaErrorCode::UnknownTopic,
                ) => ClientError::Topics(vec![format!(
                    "topic {} has no partition {raw}: make it with `onrush kafka init`",
                    config.topic
                )]),
                _ => consumer.context().why_silent(config, ANSWER_WITHIN, &error),
            },
        )?;
    Ok(bounds)
}
