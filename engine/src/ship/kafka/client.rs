//! From our settings to librdkafka's, and from its log and errors to ours.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rdkafka::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use thiserror::Error;

use crate::config::{KafkaConfig, Secret};

/// How long a first answer of a cluster may take.
pub const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// Kafka cannot be used. One line each, with what to do.
#[derive(Error, Debug)]
pub enum ClientError {
    #[error("cannot read log.kafka.sasl_password_file {path}: {error}")]
    PasswordFile { path: PathBuf, error: std::io::Error },
    #[error("log.kafka.sasl_password_file {path} is empty")]
    PasswordEmpty { path: PathBuf },
    #[error("cannot read log.kafka.ca_file {path}: {error}")]
    CaFile { path: PathBuf, error: std::io::Error },
    #[error("librdkafka refuses the settings: {0}")]
    Settings(String),
    #[error("no answer from Kafka at {bootstrap} within {seconds} s: {reason}")]
    Unreachable { bootstrap: String, seconds: u64, reason: String },
    #[error("Kafka at {bootstrap} does not let us in: {reason}")]
    Refused { bootstrap: String, reason: String },
    #[error("{}", .0.join("; "))]
    Topics(Vec<String>),
    #[error("Kafka at {bootstrap}: {reason}")]
    Failed { bootstrap: String, reason: String },
}

impl ClientError {
    /// Whether it may pass by itself: a cluster that is down comes back, wrong settings stay wrong.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Failed { .. })
    }
}

/// librdkafka's settings for any client of ours.
///
/// Errors: a file that cannot be read.
pub fn base(config: &KafkaConfig) -> Result<ClientConfig, ClientError> {
    let mut client = ClientConfig::new();
    client
        .set("bootstrap.servers", &config.bootstrap)
        .set("client.id", "onrush")
        .set("socket.keepalive.enable", "true")
        .set("reconnect.backoff.ms", "50")
        .set("reconnect.backoff.max.ms", "2000")
        .set_log_level(RDKafkaLogLevel::Warning);
    if config.tls {
        // The address that is dialled must stand in the certificate.
        client.set("ssl.endpoint.identification.algorithm", "https");
        if let Some(path) = &config.ca_file {
            let pem = std::fs::read_to_string(path)
                .map_err(|error| ClientError::CaFile { path: path.clone(), error })?;
            client.set("ssl.ca.pem", pem);
        }
    }
    let user = config.sasl_user.as_deref().filter(|user| !user.is_empty());
    if let Some(user) = user {
        client.set("sasl.mechanism", config.sasl_mechanism.name()).set("sasl.username", user);
        client.set("sasl.password", password(config)?.reveal());
    }
    if config.tls || user.is_some() {
        let protocol = match (config.tls, user) {
            (true, None) => "ssl",
            (true, Some(_)) => "sasl_ssl",
            (false, _) => "sasl_plaintext",
        };
        client.set("security.protocol", protocol);
    }
    Ok(client)
}

fn password(config: &KafkaConfig) -> Result<Secret, ClientError> {
    let Some(path) = &config.sasl_password_file else {
        return Ok(config.sasl_password.clone().unwrap_or_else(|| Secret::new(String::new())));
    };
    let text = std::fs::read_to_string(path)
        .map_err(|error| ClientError::PasswordFile { path: path.clone(), error })?;
    match text.lines().next().map(str::trim_end).filter(|line| !line.is_empty()) {
        Some(line) => Ok(Secret::new(line.to_owned())),
        None => Err(ClientError::PasswordEmpty { path: path.clone() }),
    }
}

/// Hears what librdkafka has to say, and remembers the last error.
#[derive(Default)]
pub struct Ear {
    last: Mutex<Option<(RDKafkaErrorCode, String)>>,
}

impl Ear {
    fn last(&self) -> Option<(RDKafkaErrorCode, String)> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
    /// What a cluster's silence is due to, as far as librdkafka knows.
    pub fn why_silent(
        &self,
        config: &KafkaConfig,
        within: Duration,
        error: &KafkaError,
    ) -> ClientError {
        let seconds = within.as_secs();
        let bootstrap = config.bootstrap.clone();
        match self.last() {
            Some((code, reason)) if is_refusal(code, &reason) => {
                ClientError::Refused { bootstrap, reason }
            }
            Some((_, reason)) => ClientError::Unreachable { bootstrap, seconds, reason },
            None => ClientError::Unreachable { bootstrap, seconds, reason: error.to_string() },
        }
    }
    /// Whether the cluster has turned us away for good.
    pub fn is_refused(&self) -> bool {
        self.last().is_some_and(|(code, reason)| is_refusal(code, &reason))
    }
    /// The last error in words, where there was one.
    pub fn why_held_up(&self) -> Option<String> {
        self.last().map(|(_, reason)| reason)
    }
    /// Notes an error. The one that names the cause stays: "all brokers are down" follows it.
    pub fn hear(&self, error: &KafkaError, reason: &str) {
        let KafkaError::Global(code) = error else { return };
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if *code != RDKafkaErrorCode::AllBrokersDown || last.is_none() {
            *last = Some((*code, one_line(reason)));
        }
    }
}

/// Whether it stays so: an error of TLS may also be a broker that is just going down.
fn is_refusal(code: RDKafkaErrorCode, reason: &str) -> bool {
    use RDKafkaErrorCode as Code;
    match code {
        Code::SSL => reason.contains("certificate"),
        Code::Authentication
        | Code::SaslAuthenticationFailed
        | Code::UnsupportedSASLMechanism
        | Code::ClusterAuthorizationFailed => true,
        _ => false,
    }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

impl ClientContext for Ear {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        log(level, facility, message);
    }
    fn error(&self, error: KafkaError, reason: &str) {
        self.hear(&error, reason);
    }
}

/// Hands a line of librdkafka's on.
pub fn log(level: RDKafkaLogLevel, facility: &str, message: &str) {
    let message = one_line(message);
    // Outages are reported by whoever is held up by them, once; librdkafka repeats itself.
    if (level as u8) < RDKafkaLogLevel::Error as u8 {
        tracing::error!(facility, "librdkafka: {message}");
    } else {
        tracing::debug!(facility, "librdkafka: {message}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_comes_from_a_files_first_line_and_is_never_shown() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("password");
        std::fs::write(&path, "hush\nmore\n").unwrap();
        let config = KafkaConfig {
            sasl_user: Some("mall".into()),
            sasl_password_file: Some(path.clone()),
            ..KafkaConfig::default()
        };
        assert_eq!(base(&config).unwrap().get("sasl.password"), Some("hush"));
        std::fs::write(&path, "\n").unwrap();
        assert!(matches!(base(&config), Err(ClientError::PasswordEmpty { .. })));
        let shown = format!(
            "{:?}",
            KafkaConfig { sasl_password: Some(Secret::new("hush".into())), ..config }
        );
        assert!(!shown.contains("hush"), "{shown}");
    }

    #[test]
    fn without_tls_and_user_nothing_of_them_is_set() {
        let client = base(&KafkaConfig::default()).unwrap();
        assert_eq!(client.get("security.protocol"), None);
    }

    #[test]
    fn the_cause_stays_when_all_brokers_are_said_to_be_down() {
        let ear = Ear::default();
        ear.hear(&KafkaError::Global(RDKafkaErrorCode::Authentication), "wrong\n password");
        ear.hear(&KafkaError::Global(RDKafkaErrorCode::AllBrokersDown), "1/1 down");
        let error = ear.why_silent(&KafkaConfig::default(), ANSWER_WITHIN, &KafkaError::Canceled);
        assert!(
            matches!(&error, ClientError::Refused { reason, .. } if reason == "wrong password")
        );
        assert_eq!(error.to_string().lines().count(), 1);
    }
}
