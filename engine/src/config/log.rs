//! `[log]`: what persist reads. The journal itself, or a Kafka topic that the node ships to.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{ConfigError, Secret};

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogConfig {
    pub kind: LogKind,
    /// What an answer waits for.
    pub ack: Ack,
    pub kafka: KafkaConfig,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogKind {
    /// The journal, tailed by persist in the node's process.
    #[default]
    Journal,
    Kafka,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ack {
    /// An answer leaves when its record is durable in the local journal.
    #[default]
    Journal,
    /// Also in Kafka, with acks=all.
    Replicated,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct KafkaConfig {
    /// Some of the cluster's brokers, with commas in between.
    pub bootstrap: String,
    /// Records for persist, 33 partitions.
    pub topic: String,
    /// Events for the mall's other services, as JSON; empty: none.
    pub events_topic: String,
    /// The consumer group of the persist processes.
    pub group: String,
    /// Copies of each partition.
    pub replication: u16,
    /// Copies that must have a record before it counts as written.
    pub min_insync: u16,
    /// How long both topics keep what they hold.
    pub retention_ms: u64,
    pub compression: Compression,
    /// Encrypt, and check the brokers' certificates.
    pub tls: bool,
    /// The authority that signed the brokers' certificates; the system's, where it is not set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// Log in by SASL/SCRAM as this user.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sasl_user: Option<String>,
    pub sasl_mechanism: SaslMechanism,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sasl_password: Option<Secret>,
    /// A file whose first line is the password.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sasl_password_file: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Compression {
    None,
    Lz4,
    Zstd,
}

impl Compression {
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SaslMechanism {
    #[serde(rename = "SCRAM-SHA-256")]
    ScramSha256,
    #[serde(rename = "SCRAM-SHA-512")]
    ScramSha512,
}

impl SaslMechanism {
    pub const fn name(self) -> &'static str {
        match self {
            Self::ScramSha256 => "SCRAM-SHA-256",
            Self::ScramSha512 => "SCRAM-SHA-512",
        }
    }
}

const DAY_MS: u64 = 24 * 3_600_000;

impl Default for KafkaConfig {
    fn default() -> Self {
        Self {
            bootstrap: "127.0.0.1:9092".into(),
            topic: "onrush-records".into(),
            events_topic: "onrush-events".into(),
            group: "onrush-persist".into(),
            replication: 3,
            min_insync: 2,
            retention_ms: 7 * DAY_MS,
            compression: Compression::Lz4,
            tls: false,
            ca_file: None,
            sasl_user: None,
            sasl_mechanism: SaslMechanism::ScramSha256,
            sasl_password: None,
            sasl_password_file: None,
        }
    }
}

/// Whether this binary can speak TLS and SASL.
const HAS_TLS: bool = cfg!(feature = "kafka-tls");

impl LogConfig {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let rule = |holds: bool, key, value: String, rule| {
            if holds { Ok(()) } else { Err(ConfigError::Value { key, value, rule }) }
        };
        rule(
            self.ack == Ack::Journal,
            "log.ack",
            "replicated".into(),
            "waiting for Kafka before an answer is not built yet; set log.ack = \"journal\"",
        )?;
        if self.kind == LogKind::Journal {
            return Ok(());
        }
        let k = &self.kafka;
        let is_name = |name: &str| {
            let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
            (1..=249).contains(&name.len()) && name.bytes().all(good)
        };
        let topic_rule = "must be 1 to 249 letters, digits, dots, dashes or underscores";
        rule(is_name(&k.topic), "log.kafka.topic", k.topic.clone(), topic_rule)?;
        rule(
            k.events_topic.is_empty() || is_name(&k.events_topic),
            "log.kafka.events_topic",
            k.events_topic.clone(),
            topic_rule,
        )?;
        rule(
            k.topic != k.events_topic,
            "log.kafka.events_topic",
            k.events_topic.clone(),
            "must not be the topic of the records",
        )?;
        rule(!k.bootstrap.is_empty(), "log.kafka.bootstrap", String::new(), "names no broker")?;
        rule(!k.group.is_empty(), "log.kafka.group", String::new(), "must be a name")?;
        rule(
            (1..=32).contains(&k.replication),
            "log.kafka.replication",
            k.replication.to_string(),
            "must be from 1 to 32",
        )?;
        rule(
            (1..=k.replication).contains(&k.min_insync),
            "log.kafka.min_insync",
            k.min_insync.to_string(),
            "must be from 1 to log.kafka.replication",
        )?;
        rule(
            k.retention_ms >= 60_000,
            "log.kafka.retention_ms",
            k.retention_ms.to_string(),
            "must be a minute at least",
        )?;
        let no_feature = "this binary was built without TLS and SASL; build it with \
                          --features kafka-tls";
        rule(HAS_TLS || !k.tls, "log.kafka.tls", "true".into(), no_feature)?;
        let user = k.sasl_user.clone().unwrap_or_default();
        rule(HAS_TLS || user.is_empty(), "log.kafka.sasl_user", user.clone(), no_feature)?;
        let passwords =
            usize::from(k.sasl_password.is_some()) + usize::from(k.sasl_password_file.is_some());
        rule(
            passwords == usize::from(!user.is_empty()),
            "log.kafka.sasl_user",
            user,
            "needs exactly one of log.kafka.sasl_password_file and log.kafka.sasl_password, and \
             they need it",
        )
    }
}
