//! A producer whose waits do not hang on the wall clock.
//!
//! librdkafka waits until a moment of the wall clock. When that is set back by an hour, whoever
//! waits in librdkafka at that moment waits for an hour, its own threads too. So no thread of ours
//! waits in there; and once the clock was set back, another producer takes the place of this one.

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::config::FromClientConfigAndContext as _;
use rdkafka::producer::{BaseProducer, Producer as _, ProducerContext};

use super::client::{self, ClientError};
use crate::clock::{Clock, SetBack};
use crate::config::KafkaConfig;

/// Its calls that hand over and ask are [`BaseProducer`]'s; waiting is [`Producer::pause`]'s.
pub struct Producer<C: ProducerContext + Default> {
    inner: BaseProducer<C>,
    config: KafkaConfig,
    tune: fn(&mut ClientConfig),
    set_back: SetBack,
}

impl<C: ProducerContext + Default> Producer<C> {
    /// Idempotent, written by all replicas, nothing ever given up by time; `tune` adds the rest.
    ///
    /// Errors: settings that librdkafka refuses, files that cannot be read.
    pub fn new(
        config: KafkaConfig,
        tune: fn(&mut ClientConfig),
        clock: Arc<dyn Clock>,
    ) -> Result<Self, ClientError> {
        let inner = make(&config, tune)?;
        Ok(Self { inner, config, tune, set_back: SetBack::new(clock) })
    }

    /// Makes another. The old one is dropped with what it has in flight, and its context with what
    /// that was told.
    ///
    /// Errors: as `new`; then the old one stays.
    pub fn renew(&mut self) -> Result<(), ClientError> {
        self.inner = make(&self.config, self.tune)?;
        Ok(())
    }

    /// Why this producer can go on no more, and another is to be made.
    pub fn has_ended(&mut self) -> Option<String> {
        if self.set_back.look() {
            return Some("the clock was set back".into());
        }
        self.inner.client().fatal_error().map(|(code, reason)| format!("{code}: {reason}"))
    }

    pub fn context(&self) -> &C {
        self.inner.context()
    }

    /// Serves everything that there is to report just now; a poll without waiting serves one.
    pub fn serve(&self) {
        loop {
            let before = self.inner.in_flight_count();
            self.inner.poll(Duration::ZERO);
            if self.inner.in_flight_count() == before {
                return;
            }
        }
    }

    /// Lets time pass, then serves.
    pub fn pause(&self, time: Duration) {
        std::thread::sleep(time);
        self.serve();
    }
}

impl<C: ProducerContext + Default> Deref for Producer<C> {
    type Target = BaseProducer<C>;

    fn deref(&self) -> &BaseProducer<C> {
        &self.inner
    }
}

fn make<C: ProducerContext + Default>(
    config: &KafkaConfig,
    tune: fn(&mut ClientConfig),
) -> Result<BaseProducer<C>, ClientError> {
    let client = settings(config, tune)?;
    BaseProducer::from_config_and_context(&client, C::default())
        .map_err(|e| ClientError::Settings(e.to_string()))
}

fn settings(
    config: &KafkaConfig,
    tune: fn(&mut ClientConfig),
) -> Result<ClientConfig, ClientError> {
    let mut client = client::base(config)?;
    client
        .set("enable.idempotence", "true")
        .set("acks", "all")
        .set("compression.type", config.compression.name())
        // Given up never: an outage is waited out, and the bound is the queue's.
        .set("message.timeout.ms", "0");
    tune(&mut client);
    Ok(client)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Compression;

    #[test]
    fn batches_are_compressed_as_configured_and_by_lz4_where_nothing_is() {
        let compression_of = |config: &KafkaConfig| {
            let client = settings(config, |_| ()).unwrap();
            client.get("compression.type").map(str::to_owned)
        };
        assert_eq!(compression_of(&KafkaConfig::default()).as_deref(), Some("lz4"));
        for (compression, name) in [(Compression::Zstd, "zstd"), (Compression::None, "none")] {
            let config = KafkaConfig { compression, ..KafkaConfig::default() };
            assert_eq!(compression_of(&config).as_deref(), Some(name));
        }
    }
}
