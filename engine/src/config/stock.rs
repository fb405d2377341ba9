//! `[stock]`: who keeps the pool of units that nodes take their leases from.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{ConfigError, Secret};

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StockConfig {
    pub kind: StockKind,
    pub redis: RedisConfig,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StockKind {
    /// The node's own journal: for a node alone.
    #[default]
    Journal,
    /// Redis, for nodes that sell one stock together.
    Redis,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RedisConfig {
    pub mode: RedisMode,
    /// Of the server, of some Sentinels, or of some nodes of the Cluster; `rediss://` is TLS.
    pub urls: Vec<String>,
    /// What the Sentinels call the master.
    pub sentinel_master: String,
    /// What every key and channel begins with.
    pub prefix: String,
    /// Log in as this ACL user.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password: Option<Secret>,
    /// A file whose first line is the password.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password_file: Option<PathBuf>,
    /// The authority that signed the servers' certificates; the system's, where it is not set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    pub connect_timeout_ms: u64,
    /// How long an answer may take.
    pub timeout_ms: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RedisMode {
    /// One server.
    #[default]
    Single,
    /// The master that the Sentinels name.
    Sentinel,
    Cluster,
}

impl Default for RedisConfig {
    fn default() -> Self {
        Self {
            mode: RedisMode::Single,
            urls: vec!["redis://127.0.0.1:6379".into()],
            sentinel_master: "mymaster".into(),
            prefix: "onrush".into(),
            user: None,
            password: None,
            password_file: None,
            ca_file: None,
            connect_timeout_ms: 1_000,
            timeout_ms: 1_000,
        }
    }
}

const PREFIX_LEN_MAX: usize = 64;

impl StockConfig {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let rule = |holds: bool, key, value: String, rule| {
            if holds { Ok(()) } else { Err(ConfigError::Value { key, value, rule }) }
        };
        let redis = &self.redis;
        let is_single = redis.mode == RedisMode::Single;
        rule(
            if is_single { redis.urls.len() == 1 } else { !redis.urls.is_empty() },
            "stock.redis.urls",
            format!("{} of them", redis.urls.len()),
            "must be one URL where stock.redis.mode is single, and at least one else",
        )?;
        rule(
            !redis.urls.iter().any(|url| url.contains('@')),
            "stock.redis.urls",
            "(a URL with a login in it)".into(),
            "must hold no user or password: set stock.redis.user, and write the password to \
             stock.redis.password_file, or set ONRUSH__STOCK__REDIS__PASSWORD",
        )?;
        let is_tls = |url: &String| url.starts_with("rediss://");
        let is_good = |url: &&String| url.starts_with("redis://") || is_tls(url);
        rule(
            redis.urls.iter().all(|url| is_good(&url)),
            "stock.redis.urls",
            redis.urls.join(", "),
            "must begin with redis:// or rediss://",
        )?;
        rule(
            redis.urls.iter().all(is_tls) || !redis.urls.iter().any(is_tls),
            "stock.redis.urls",
            redis.urls.join(", "),
            "must all be redis://, or all rediss://",
        )?;
        rule(
            redis.ca_file.is_none() || redis.urls.iter().all(is_tls),
            "stock.redis.ca_file",
            redis.ca_file.clone().unwrap_or_default().display().to_string(),
            "is of no use without TLS: let the URLs begin with rediss://",
        )?;
        let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b':');
        rule(
            (1..=PREFIX_LEN_MAX).contains(&redis.prefix.len()) && redis.prefix.bytes().all(fits),
            "stock.redis.prefix",
            redis.prefix.clone(),
            "must be 1 to 64 letters, digits, dots, colons, underscores or hyphens",
        )?;
        rule(
            redis.mode != RedisMode::Sentinel || !redis.sentinel_master.is_empty(),
            "stock.redis.sentinel_master",
            redis.sentinel_master.clone(),
            "must be set where stock.redis.mode is sentinel",
        )?;
        rule(
            (50..=60_000).contains(&redis.connect_timeout_ms),
            "stock.redis.connect_timeout_ms",
            redis.connect_timeout_ms.to_string(),
            "must be from 50 to 60000",
        )?;
        rule(
            (50..=60_000).contains(&redis.timeout_ms),
            "stock.redis.timeout_ms",
            redis.timeout_ms.to_string(),
            "must be from 50 to 60000",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(change: impl FnOnce(&mut RedisConfig)) -> Result<(), String> {
        let mut config = StockConfig { kind: StockKind::Redis, ..StockConfig::default() };
        change(&mut config.redis);
        config.check().map_err(|error| error.to_string())
    }

    #[test]
    fn each_mode_has_its_urls() {
        let two = || vec!["redis://a:1".into(), "redis://b:1".into()];
        assert_eq!(check(|_| ()), Ok(()));
        assert!(check(|c| c.urls = two()).is_err());
        for mode in [RedisMode::Sentinel, RedisMode::Cluster] {
            assert_eq!(check(|c| (c.mode, c.urls) = (mode, two())), Ok(()));
            assert!(check(|c| (c.mode, c.urls) = (mode, Vec::new())).is_err());
        }
        let mixed = vec!["redis://a:1".into(), "rediss://b:1".into()];
        assert!(check(|c| (c.mode, c.urls) = (RedisMode::Cluster, mixed)).is_err());
        assert!(check(|c| c.urls = vec!["http://a:1".into()]).is_err());
    }

    #[test]
    fn a_login_in_a_url_is_refused_and_not_shown() {
        let error = check(|c| c.urls = vec!["redis://me:hush@a:1".into()]).unwrap_err();
        assert!(!error.contains("hush"), "{error}");
    }

    #[test]
    fn a_ca_file_without_tls_is_a_mistake() {
        assert!(check(|c| c.ca_file = Some("ca.pem".into())).is_err());
        let tls = |c: &mut RedisConfig| {
            c.urls = vec!["rediss://a:1".into()];
            c.ca_file = Some("ca.pem".into());
        };
        assert_eq!(check(tls), Ok(()));
    }

    #[test]
    fn a_prefix_keeps_keys_whole() {
        assert!(check(|c| c.prefix = "a{b".into()).is_err());
        assert!(check(|c| c.prefix = String::new()).is_err());
        assert_eq!(check(|c| c.prefix = "mall:onrush-1".into()), Ok(()));
    }
}
