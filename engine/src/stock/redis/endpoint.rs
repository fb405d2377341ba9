//! Where Redis is, and how to log in.

use std::path::Path;
use std::time::Duration;

use redis::cluster::{ClusterClient, ClusterClientBuilder};
use redis::sentinel::{SentinelClient, SentinelClientBuilder, SentinelServerType};
use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, ConnectionInfo, IntoConnectionInfo as _,
    RedisError, TlsCertificates, TlsMode,
};

use super::RedisStockError;
use crate::config::{RedisConfig, RedisMode, Secret};

/// How often a Cluster's redirections are followed for one call. Every script may run twice.
const REDIRECTIONS: u32 = 3;

/// A checked set of settings, with the secrets read.
#[derive(Clone)]
pub struct Endpoint {
    mode: RedisMode,
    infos: Vec<ConnectionInfo>,
    /// For messages: the URLs, which hold no secret.
    at: String,
    sentinel_master: String,
    user: Option<String>,
    password: Option<Secret>,
    certificates: Option<TlsCertificates>,
    prefix: String,
    pub connect_timeout: Duration,
    pub timeout: Duration,
}

impl Endpoint {
    /// Reads the files that the settings name; connects nowhere.
    pub fn new(config: &RedisConfig) -> Result<Self, RedisStockError> {
        // Chosen once for the process; another library may have been first, with the same.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let password = password(config)?;
        let certificates = match &config.ca_file {
            Some(path) => Some(authority(path)?),
            None => None,
        };
        let settings = |error: RedisError| RedisStockError::Settings(one_line(&error));
        let mut infos = Vec::new();
        for url in &config.urls {
            let info = url.as_str().into_connection_info().map_err(settings)?;
            let info = match &certificates {
                Some(c) => {
                    let client = Client::build_with_tls(info, c.clone()).map_err(settings)?;
                    client.get_connection_info().clone()
                }
                None => info,
            };
            // Sentinels have no users of ours.
            let is_sentinel = config.mode == RedisMode::Sentinel;
            infos.push(if is_sentinel {
                info
            } else {
                login(info, config.user.as_deref(), password.as_ref())
            });
        }
        Ok(Self {
            mode: config.mode,
            infos,
            at: config.urls.join(", "),
            sentinel_master: config.sentinel_master.clone(),
            user: config.user.clone(),
            password,
            certificates,
            prefix: config.prefix.clone(),
            connect_timeout: Duration::from_millis(config.connect_timeout_ms),
            timeout: Duration::from_millis(config.timeout_ms),
        })
    }

    pub fn mode(&self) -> RedisMode {
        self.mode
    }

    /// Where it is, for messages.
    pub fn at(&self) -> &str {
        &self.at
    }

    /// The hash of an item. One hash tag: all of an item lies in one slot of a Cluster.
    pub fn key(&self, name: &str) -> String {
        format!("{}:{{{name}}}", self.prefix)
    }

    pub fn channel(&self) -> String {
        format!("{}:news", self.prefix)
    }

    /// Clients of the servers that the URLs name, in their order.
    pub(super) fn clients(&self) -> Result<Vec<Client>, RedisError> {
        self.infos.iter().cloned().map(Client::open).collect()
    }

    /// A client of another server of the same Cluster.
    pub(super) fn client_of(&self, host: &str, port: u16) -> Result<Client, RedisError> {
        let first = self.infos.first().expect("checked with the settings");
        let addr = match first.addr() {
            ConnectionAddr::TcpTls { insecure, tls_params, .. } => ConnectionAddr::TcpTls {
                host: host.into(),
                port,
                insecure: *insecure,
                tls_params: tls_params.clone(),
            },
            _ => ConnectionAddr::Tcp(host.into(), port),
        };
        Client::open(first.clone().set_addr(addr))
    }

    pub(super) fn sentinel(&self) -> Result<SentinelClient, RedisError> {
        let addrs = self.infos.iter().map(|info| info.addr().clone());
        let master = SentinelServerType::Master;
        let mut builder = SentinelClientBuilder::new(addrs, &self.sentinel_master, master)?;
        if self.infos.iter().any(|info| matches!(info.addr(), ConnectionAddr::TcpTls { .. })) {
            builder = builder.set_client_to_redis_tls_mode(TlsMode::Secure);
        }
        if let Some(certificates) = &self.certificates {
            builder = builder.set_client_to_redis_certificates(certificates.clone());
        }
        if let Some(user) = &self.user {
            builder = builder.set_client_to_redis_username(user);
        }
        if let Some(password) = &self.password {
            builder = builder.set_client_to_redis_password(password.reveal());
        }
        builder.build()
    }

    pub(super) fn cluster(&self) -> Result<ClusterClient, RedisError> {
        let mut builder = ClusterClientBuilder::new(self.infos.clone())
            .connection_timeout(self.connect_timeout)
            .response_timeout(self.timeout)
            .retries(REDIRECTIONS)
            .max_retry_wait(50)
            .min_retry_wait(5);
        if let Some(certificates) = &self.certificates {
            builder = builder.certs(certificates.clone());
        }
        builder.build()
    }

    pub(super) fn connection(&self) -> AsyncConnectionConfig {
        AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.connect_timeout))
            .set_response_timeout(Some(self.timeout))
    }

    /// What to tell an operator about a failure at the first contact.
    pub(super) fn failed(&self, error: &RedisError) -> RedisStockError {
        let (at, reason) = (self.at.clone(), one_line(error));
        if is_refusal(error) {
            RedisStockError::Refused { at, reason }
        } else {
            RedisStockError::Unreachable { at, reason }
        }
    }
}

fn login(info: ConnectionInfo, user: Option<&str>, password: Option<&Secret>) -> ConnectionInfo {
    let mut settings = info.redis_settings().clone().set_skip_set_lib_name();
    if let Some(user) = user {
        settings = settings.set_username(user);
    }
    if let Some(password) = password {
        settings = settings.set_password(password.reveal());
    }
    info.set_redis_settings(settings)
}

fn password(config: &RedisConfig) -> Result<Option<Secret>, RedisStockError> {
    let Some(path) = &config.password_file else { return Ok(config.password.clone()) };
    let text = std::fs::read_to_string(path)
        .map_err(|error| RedisStockError::PasswordFile { path: path.clone(), error })?;
    match text.lines().next().map(str::trim_end).filter(|line| !line.is_empty()) {
        Some(line) => Ok(Some(Secret::new(line.to_owned()))),
        None => Err(RedisStockError::PasswordEmpty { path: path.clone() }),
    }
}

fn authority(path: &Path) -> Result<TlsCertificates, RedisStockError> {
    let pem = std::fs::read(path)
        .map_err(|error| RedisStockError::CaFile { path: path.into(), error })?;
    if !String::from_utf8_lossy(&pem).contains("-----BEGIN CERTIFICATE-----") {
        return Err(RedisStockError::CaEmpty { path: path.into() });
    }
    Ok(TlsCertificates { client_tls: None, root_cert: Some(pem) })
}

/// Whether trying again cannot help: a login, a right or a certificate is wrong.
fn is_refusal(error: &RedisError) -> bool {
    use redis::{ErrorKind, ServerErrorKind};
    let says = |word| error.to_string().contains(word);
    match error.kind() {
        ErrorKind::AuthenticationFailed | ErrorKind::Server(ServerErrorKind::NoPerm) => true,
        _ => ["NOAUTH", "WRONGPASS", "unauthenticated", "certificate"].into_iter().any(says),
    }
}

/// An error as one line.
pub(super) fn one_line(error: &RedisError) -> String {
    let text = error.to_string();
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(config: &RedisConfig) -> Result<Endpoint, String> {
        Endpoint::new(config).map_err(|error| error.to_string())
    }

    #[test]
    fn an_item_is_one_key_in_one_hash_slot() {
        let endpoint = endpoint(&RedisConfig::default()).unwrap();
        assert_eq!(endpoint.key("sale/sku"), "onrush:{sale/sku}");
        assert_eq!(endpoint.channel(), "onrush:news");
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let missing = |change: fn(&mut RedisConfig)| {
            let mut config = RedisConfig::default();
            change(&mut config);
            let error = endpoint(&config).err().unwrap();
            assert_eq!(error.lines().count(), 1);
            error
        };
        let error = missing(|c| c.password_file = Some("/nonexistent/password".into()));
        assert!(error.contains("stock.redis.password_file /nonexistent/password"), "{error}");
        let error = missing(|c| {
            c.urls = vec!["rediss://127.0.0.1:1".into()];
            c.ca_file = Some("/nonexistent/ca.pem".into());
        });
        assert!(error.contains("stock.redis.ca_file /nonexistent/ca.pem"), "{error}");
    }

    #[test]
    fn a_password_is_a_files_first_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("password");
        std::fs::write(&path, "hush\nmore\n").unwrap();
        let config = RedisConfig { password_file: Some(path.clone()), ..RedisConfig::default() };
        let read = endpoint(&config).unwrap();
        assert_eq!(read.infos[0].redis_settings().password(), Some("hush"));
        std::fs::write(&path, "\n").unwrap();
        assert!(endpoint(&config).err().unwrap().contains("is empty"));
    }
}
