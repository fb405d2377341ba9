//! The records topic read from one end to the other, outside any group: for `inspect` and audits.

use rdkafka::config::FromClientConfigAndContext as _;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message as _;
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
    pub message: Result<Message<'a>, MessageError>,
}

impl ConsumerContext for Ear {}

/// Shows every message of these partitions, one partition after the other, from an offset on up to
/// what was there at the beginning. `see` says whether to go on.
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
    for partition in partitions.iter().copied() {
        let raw = i32::from(partition.get());
        let (low, high) =
            consumer.fetch_watermarks(&config.topic, raw, ANSWER_WITHIN).map_err(|error| {
                match error.rdkafka_error_code() {
                    Some(
                        RDKafkaErrorCode::UnknownTopicOrPartition
                        | RDKafkaErrorCode::UnknownPartition
                        | RDKafkaErrorCode::UnknownTopic,
                    ) => ClientError::Topics(vec![format!(
                        "topic {} has no partition {raw}: make it with `onrush kafka init`",
                        config.topic
                    )]),
                    _ => consumer.context().why_silent(config, ANSWER_WITHIN, &error),
                }
            })?;
        let first = low.max(from);
        if first >= high {
            continue;
        }
        let failed = |error| ReadError::Kafka { partition: partition.get(), error };
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(&config.topic, raw, Offset::Offset(first)).map_err(failed)?;
        consumer.assign(&list).map_err(failed)?;
        let mut next = first;
        while next < high {
            let message = match consumer.poll(ANSWER_WITHIN) {
                Some(Ok(message)) => message,
                // The end, where the last offsets hold no message.
                Some(Err(KafkaError::PartitionEOF(at))) if at == raw => break,
                Some(Err(KafkaError::PartitionEOF(_))) => continue,
                Some(Err(error)) => return Err(failed(error)),
                None => {
                    let seconds = ANSWER_WITHIN.as_secs();
                    return Err(ReadError::Silent {
                        partition: partition.get(),
                        offset: next,
                        seconds,
                    });
                }
            };
            if message.partition() != raw {
                continue;
            }
            next = message.offset() + 1;
            let bytes = message.payload().unwrap_or_default();
            let found =
                Found { partition, offset: message.offset(), message: Message::decode(bytes, raw) };
            if !see(&found)? {
                return Ok(());
            }
        }
    }
    Ok(())
}
