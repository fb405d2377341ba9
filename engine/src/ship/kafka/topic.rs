//! The two topics: made with stated settings, and checked against them at every start.

use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::metadata::Metadata;
use rdkafka::producer::{BaseProducer, DeliveryResult, Producer as _, ProducerContext};

use super::client::{self, ANSWER_WITHIN, ClientError, Ear};
use crate::config::KafkaConfig;
use crate::ship::partition::PARTITION_COUNT;

/// Partitions of the events topic; a member's events stay in one, by their key.
pub const EVENTS_PARTITION_COUNT: usize = 16;

/// How long one question waits for its answer, before it is asked again.
const TURN: Duration = Duration::from_millis(200);
const HEARING: Duration = Duration::from_millis(50);

impl ProducerContext for Ear {
    type DeliveryOpaque = ();
    fn delivery(&self, _: &DeliveryResult<'_>, (): ()) {}
}

/// How a topic should be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TopicSpec {
    pub name: String,
    pub partition_count: usize,
    pub replication: u16,
    /// Settings of the topic's own, as Kafka names them.
    pub settings: Vec<(&'static str, String)>,
}

/// How often a broker is asked for settings that it does not know yet, a tenth of a second apart.
const SETTINGS_TRIES: u32 = 100;

/// The topics that these settings need: the records, and the events where they are wanted.
pub fn specs(config: &KafkaConfig) -> Vec<TopicSpec> {
    let spec = |name: &str, partition_count| TopicSpec {
        name: name.to_owned(),
        partition_count,
        replication: config.replication,
        settings: vec![
            ("cleanup.policy", "delete".into()),
            // By the brokers' clocks: a node whose own is wrong is neither refused nor forgotten.
            ("message.timestamp.type", "LogAppendTime".into()),
            ("min.insync.replicas", config.min_insync.to_string()),
            ("retention.ms", config.retention_ms.to_string()),
        ],
    };
    let mut specs = vec![spec(&config.topic, PARTITION_COUNT)];
    if !config.events_topic.is_empty() {
        specs.push(spec(&config.events_topic, EVENTS_PARTITION_COUNT));
    }
    specs
}

/// What `init` did about a topic.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Made {
    Created(TopicSpec),
    WasThere(TopicSpec),
}

/// A connection for looking at topics and making them.
pub struct Topics<'a> {
    config: &'a KafkaConfig,
    admin: AdminClient<Ear>,
    /// Hears why a cluster does not answer; an admin client is told nothing.
    probe: BaseProducer<Ear>,
    within: Duration,
    runtime: tokio::runtime::Runtime,
}

impl<'a> Topics<'a> {
    /// Errors: settings that librdkafka refuses, files that cannot be read.
    pub fn connect(config: &'a KafkaConfig) -> Result<Self, ClientError> {
        use rdkafka::config::FromClientConfigAndContext as _;
        let admin = AdminClient::from_config_and_context(&client::base(config)?, Ear::default())
            .map_err(|e| ClientError::Settings(e.to_string()))?;
        let probe = BaseProducer::from_config_and_context(&client::base(config)?, Ear::default())
            .map_err(|e| ClientError::Settings(e.to_string()))?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .map_err(|e| ClientError::Settings(e.to_string()))?;
        Ok(Self { config, admin, probe, within: ANSWER_WITHIN, runtime })
    }

    /// Waits no longer than that for each answer.
    pub fn within(mut self, within: Duration) -> Self {
        self.within = within;
        self
    }

    /// Makes the topics that are missing, and checks those that are there.
    pub fn init(&self) -> Result<Vec<Made>, ClientError> {
        let mut made = Vec::new();
        let mut wrong = Vec::new();
        for spec in specs(self.config) {
            let found = self.look(&spec)?;
            match found {
                Some(differences) if differences.is_empty() => made.push(Made::WasThere(spec)),
                Some(differences) => wrong.extend(differences),
                None => {
                    self.create(&spec)?;
                    wrong.extend(self.await_topic(&spec)?);
                    made.push(Made::Created(spec));
                }
            }
        }
        if wrong.is_empty() { Ok(made) } else { Err(ClientError::Topics(wrong)) }
    }

    /// Errors: `Topics`, with every difference from what the settings say.
    pub fn check(&self) -> Result<(), ClientError> {
        let mut wrong = Vec::new();
        for spec in specs(self.config) {
            match self.look(&spec)? {
                Some(differences) => wrong.extend(differences),
                None => wrong.push(format!(
                    "topic {} is not there: make it with `onrush kafka init`",
                    spec.name
                )),
            }
        }
        if wrong.is_empty() { Ok(()) } else { Err(ClientError::Topics(wrong)) }
    }

    fn create(&self, spec: &TopicSpec) -> Result<(), ClientError> {
        let mut topic = NewTopic::new(
            &spec.name,
            i32::try_from(spec.partition_count).expect("a few dozen"),
            TopicReplication::Fixed(i32::from(spec.replication)),
        );
        for (key, value) in &spec.settings {
            topic = topic.set(key, value);
        }
        let options = AdminOptions::new()
            .request_timeout(Some(ANSWER_WITHIN))
            .operation_timeout(Some(ANSWER_WITHIN));
        let results = self
            .runtime
            .block_on(self.admin.create_topics([&topic], &options))
            .map_err(|e| self.failed(&e))?;
        for result in results {
            match result {
                // Somebody else was quicker; the next check tells whether by the same settings.
                Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
                Err((name, code)) => {
                    let wrong = format!(
                        "topic {name} cannot be made with {} copies: {code}",
                        spec.replication
                    );
                    return Err(ClientError::Topics(vec![wrong]));
                }
            }
        }
        Ok(())
    }

    /// Waits until every broker that is asked knows a topic that was just made; what differs then.
    fn await_topic(&self, spec: &TopicSpec) -> Result<Vec<String>, ClientError> {
        for _ in 0..100 {
            if let Some(differences) = self.look(spec)? {
                return Ok(differences);
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(vec![format!("topic {} was made, and is still not to be seen", spec.name)])
    }

    /// Asks in short turns, so that a refusal is heard at once.
    fn metadata(&self, topic: &str) -> Result<Metadata, ClientError> {
        let mut waited = Duration::ZERO;
        loop {
            match self.probe.client().fetch_metadata(Some(topic), TURN) {
                Ok(metadata) => return Ok(metadata),
                Err(error) => {
                    // Lines of log and errors come one by one.
                    self.probe.poll(HEARING);
                    let ear = self.probe.context();
                    waited += TURN + HEARING;
                    if waited >= self.within || ear.is_refused() {
                        return Err(ear.why_silent(self.config, self.within, &error));
                    }
                }
            }
        }
    }

    /// What differs from the spec; `None`: there is no such topic.
    fn look(&self, spec: &TopicSpec) -> Result<Option<Vec<String>>, ClientError> {
        let metadata = self.metadata(&spec.name)?;
        let topic = metadata.topics().iter().find(|t| t.name() == spec.name);
        let Some(topic) = topic.filter(|t| t.error().is_none() && !t.partitions().is_empty())
        else {
            return Ok(None);
        };
        let mut wrong = Vec::new();
        let name = &spec.name;
        let count = topic.partitions().len();
        if count != spec.partition_count {
            wrong
                .push(format!("topic {name} has {count} partitions, not {}", spec.partition_count));
        }
        let copies = topic.partitions().iter().map(|p| p.replicas().len()).min().unwrap_or(0);
        if copies != usize::from(spec.replication) {
            wrong.push(format!(
                "topic {name} has {copies} copies of a partition, log.kafka.replication is {}",
                spec.replication
            ));
        }
        wrong.extend(self.settings_that_differ(spec)?);
        Ok(Some(wrong))
    }

    /// A broker that has just heard of a topic may not know its settings yet: it is asked again.
    fn settings_that_differ(&self, spec: &TopicSpec) -> Result<Vec<String>, ClientError> {
        let mut tries = 0;
        loop {
            let (wrong, is_known) = self.settings_once(spec)?;
            tries += 1;
            if is_known || tries == SETTINGS_TRIES {
                return Ok(wrong);
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// What differs, and whether the broker that answered knows the topic's settings at all.
    fn settings_once(&self, spec: &TopicSpec) -> Result<(Vec<String>, bool), ClientError> {
        let options = AdminOptions::new().request_timeout(Some(ANSWER_WITHIN));
        let asked = [ResourceSpecifier::Topic(&spec.name)];
        let answers = self
            .runtime
            .block_on(self.admin.describe_configs(&asked, &options))
            .map_err(|e| self.failed(&e))?;
        let (mut wrong, mut is_known) = (Vec::new(), true);
        for answer in answers {
            let resource = answer.map_err(|code| ClientError::Failed {
                bootstrap: self.config.bootstrap.clone(),
                reason: format!("the settings of topic {} cannot be read: {code}", spec.name),
            })?;
            for (key, expected) in &spec.settings {
                let found = resource.get(key).and_then(|entry| entry.value.clone());
                is_known &= found.is_some();
                let found = found.unwrap_or_else(|| "nothing".into());
                if found != *expected {
                    wrong.push(format!("topic {} has {key} {found}, not {expected}", spec.name));
                }
            }
        }
        Ok((wrong, is_known))
    }

    fn failed(&self, error: &rdkafka::error::KafkaError) -> ClientError {
        ClientError::Failed { bootstrap: self.config.bootstrap.clone(), reason: error.to_string() }
    }
}
