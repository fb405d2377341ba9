//! Real Kafka brokers for tests, started by the script that users start them with.
//!
//! They end when this process does, however it ends: the script that holds them reads from a pipe
//! of ours, and takes them down at its end.

#![allow(dead_code, reason = "the unit tests and the integration tests each use a part")]

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _};

/// How long anything here may take. Far more than it does.
pub const PATIENCE: Duration = Duration::from_mins(3);

/// Running brokers, and the script that holds them.
pub struct Stack {
    dir: PathBuf,
    _script: Child,
    /// Its end ends the brokers.
    _stdin: Option<ChildStdin>,
    env: Vec<(String, String)>,
}

const SCRIPT: &str = r#"
dir=$1; shift
trap : TERM INT HUP
trap 'scripts/stack down --purge --dir "$dir" >&2; rm -rf "$dir"' EXIT
scripts/stack up --dir "$dir" --only kafka "$@" >&2 || exit 1
scripts/stack env --dir "$dir"
echo READY
while :; do
  code=0
  read -r _ || code=$?
  [ "$code" -gt 128 ] || break
done
"#;

fn clone_dir() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the engine lies in the clone")
}

/// One running broker, with a second listener for TLS and SASL/SCRAM.
pub fn broker() -> &'static Stack {
    static BROKER: OnceLock<Stack> = OnceLock::new();
    let broker = BROKER.get_or_init(|| Stack::up(&["--kafka", "1", "--secure"]));
    // A test that failed may have left it dead.
    broker.order("start", "kafka-1");
    broker
}

impl Stack {
    /// Panics: it cannot be had. A test that needs it fails then, and says why.
    pub fn up(options: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder").keep();
        let mut script = Command::new("bash")
            .args(["-c", SCRIPT, "onrush-test-stack"])
            .arg(&dir)
            .args(options)
            .current_dir(clone_dir())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("bash starts");
        let stdin = script.stdin.take();
        let mut env = Vec::new();
        let mut is_ready = false;
        for line in BufReader::new(script.stdout.take().expect("piped")).lines() {
            let line = line.expect("text");
            if line == "READY" {
                is_ready = true;
                break;
            }
            let exports = line.strip_prefix("export ").unwrap_or_default().split(' ');
            let pairs = exports.filter_map(|pair| pair.split_once('='));
            env.extend(pairs.map(|(name, value)| (name.to_owned(), value.to_owned())));
        }
        assert!(is_ready, "Kafka cannot be had on this machine: see the lines above");
        Self { dir, _script: script, _stdin: stdin, env }
    }

    pub fn get(&self, name: &str) -> &str {
        let found = self.env.iter().find(|(n, _)| n == name);
        found.map_or_else(|| panic!("no {name} in the stack's exports"), |(_, value)| value)
    }
    pub fn bootstrap(&self) -> &str {
        self.get("ONRUSH_STACK_KAFKA")
    }

    /// `scripts/stack COMMAND SERVER`: kill, start, stop, pause, resume.
    #[track_caller]
    pub fn order(&self, command: &str, server: &str) {
        let mut script = Command::new("scripts/stack");
        script.args([command, server, "--dir"]).arg(&self.dir).current_dir(clone_dir());
        let output = script.stdin(Stdio::null()).output().expect("bash starts");
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "scripts/stack {command} {server}: {said}");
    }

    pub fn admin(&self) -> AdminClient<DefaultClientContext> {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", self.bootstrap()).create().expect("a client")
    }

    /// Messages that a topic ever had, over all its partitions.
    pub fn end_of(&self, topic: &str, partitions: i32) -> i64 {
        let mut config = ClientConfig::new();
        let consumer: BaseConsumer =
            config.set("bootstrap.servers", self.bootstrap()).create().expect("a client");
        let high = |p| consumer.fetch_watermarks(topic, p, PATIENCE).map_or(0, |(_, high)| high);
        (0..partitions).map(high).sum()
    }
}

/// Waits for an answer of the admin client.
pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().expect("a runtime").block_on(future)
}

pub fn admin_options() -> AdminOptions {
    AdminOptions::new().request_timeout(Some(PATIENCE)).operation_timeout(Some(PATIENCE))
}
