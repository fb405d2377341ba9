//! The settings of a node among others.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{ConfigError, Secret};
use crate::cluster::map::{NodeSpec, SlotMap};
use crate::cluster::route::Misrouted;

/// Which nodes there are. Without any, this one is alone and owns every slot.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClusterConfig {
    /// Which of `nodes` this one is.
    #[serde(rename = "self", skip_serializing_if = "Option::is_none")]
    pub self_name: Option<String>,
    /// Rises with every change of `nodes`.
    pub version: u64,
    pub misrouted: Misrouted,
    /// What nodes prove themselves to each other with; the same in all of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret: Option<Secret>,
    /// A file with the secret, its first line.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret_file: Option<PathBuf>,
    pub connect_timeout_ms: u64,
    /// How long another node's answer may take.
    pub answer_timeout_ms: u64,
    pub probe_every_ms: u64,
    pub probe_timeout_ms: u64,
    /// Connections that one worker holds to one other node, at most.
    pub connections_max: usize,
    pub nodes: Vec<NodeSpec>,
}

impl Default for ClusterConfig {
    fn default() -> Self {
        Self {
            self_name: None,
            version: 1,
            misrouted: Misrouted::Forward,
            secret: None,
            secret_file: None,
            connect_timeout_ms: 500,
            answer_timeout_ms: 10_000,
            probe_every_ms: 500,
            probe_timeout_ms: 2_000,
            connections_max: 1_024,
            nodes: Vec::new(),
        }
    }
}

/// Bytes of the shortest secret.
const SECRET_LEN_MIN: usize = 16;

impl ClusterConfig {
    /// The map, where there are nodes.
    ///
    /// Errors: what is wrong with it.
    pub fn map(&self) -> Result<Option<SlotMap>, ConfigError> {
        if self.nodes.is_empty() {
            return Ok(None);
        }
        let Some(name) = &self.self_name else {
            return Err(ConfigError::Value {
                key: "cluster.self",
                value: "(none)".into(),
                rule: "must name which of cluster.nodes this one is; each node's settings, or \
                       ONRUSH__CLUSTER__SELF, say so",
            });
        };
        let map = SlotMap::new(self.version, name, &self.nodes);
        map.map(Some).map_err(|error| ConfigError::Map(error.to_string()))
    }

    /// The secret itself, from the settings or its file.
    ///
    /// Errors: the file cannot be read, or what it holds is too short.
    pub fn read_secret(&self) -> Result<Option<Secret>, ConfigError> {
        let secret = match (&self.secret, &self.secret_file) {
            (Some(secret), _) => Some(secret.clone()),
            (None, None) => None,
            (None, Some(path)) => {
                let text = std::fs::read_to_string(path)
                    .map_err(|error| ConfigError::Read { path: path.clone(), error })?;
                Some(Secret::new(text.lines().next().unwrap_or("").trim().to_owned()))
            }
        };
        let is_fit = |secret: &Secret| {
            let text = secret.reveal();
            text.len() >= SECRET_LEN_MIN && text.bytes().all(|b| b.is_ascii_graphic())
        };
        if self.nodes.len() > 1 && !secret.as_ref().is_some_and(is_fit) {
            return Err(ConfigError::Value {
                key: "cluster.secret",
                value: if secret.is_some() { "(secret)" } else { "(none)" }.into(),
                rule: "must be at least 16 visible ASCII characters, the same in all nodes: \
                       whoever knows it is taken for a node; set cluster.secret_file, or \
                       ONRUSH__CLUSTER__SECRET",
            });
        }
        Ok(secret)
    }

    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let rule = |holds: bool, key, value: String, rule| {
            if holds { Ok(()) } else { Err(ConfigError::Value { key, value, rule }) }
        };
        self.map()?;
        self.read_secret()?;
        for (key, ms) in [
            ("cluster.connect_timeout_ms", self.connect_timeout_ms),
            ("cluster.answer_timeout_ms", self.answer_timeout_ms),
            ("cluster.probe_every_ms", self.probe_every_ms),
            ("cluster.probe_timeout_ms", self.probe_timeout_ms),
        ] {
            rule((10..=600_000).contains(&ms), key, ms.to_string(), "must be from 10 to 600000")?;
        }
        rule(
            (1..=65_536).contains(&self.connections_max),
            "cluster.connections_max",
            self.connections_max.to_string(),
            "must be from 1 to 65536",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    const NODES: &str = r#"
        [[cluster.nodes]]
        name = "a"
        public = "http://10.0.0.1:8080"
        admin = "http://10.0.0.1:8081"
        slots = ["0-2047"]
        [[cluster.nodes]]
        name = "b"
        public = "http://10.0.0.2:8080"
        admin = "http://10.0.0.2:8081"
        slots = ["2048-4095"]
    "#;

    fn load(section: &str, nodes: &str) -> Result<Config, ConfigError> {
        let config: Config = toml::from_str(&format!("[cluster]\n{section}\n{nodes}")).unwrap();
        config.check().map(|()| config)
    }

    #[test]
    fn nodes_need_a_self_a_whole_map_and_a_secret() {
        let secret = "secret = \"0123456789abcdef\"";
        let config = load(&format!("self = \"b\"\nversion = 4\n{secret}"), NODES).unwrap();
        let map = config.cluster.map().unwrap().unwrap();
        assert_eq!((map.version(), map.node(map.me()).name.as_str()), (4, "b"));
        assert_eq!(toml::from_str::<Config>(&config.print()).unwrap().cluster.nodes.len(), 2);
        for (section, nodes, says) in [
            (secret, NODES, "cluster.self"),
            ("self = \"a\"", NODES, "cluster.secret"),
            ("self = \"a\"\nsecret = \"short\"", NODES, "cluster.secret"),
            (&format!("self = \"c\"\n{secret}"), NODES, "no node is named c"),
            (&format!("self = \"a\"\n{secret}"), &NODES.replace("2048-", "2049-"), "slot 2048"),
        ] {
            let error = load(section, nodes).unwrap_err().to_string();
            assert!(error.contains(says), "{says}: {error}");
            assert_eq!(error.lines().count(), 1);
        }
        assert_eq!(load("", "").unwrap().cluster.map().unwrap(), None);
    }
}
