//! Kafka as the log, on real brokers: node → Kafka → database shards, and what goes wrong between.
//!
//! One broker for all tests of the process, started by `scripts/stack` as users start it; each test
//! has topics and a group of its own. It ends when this process does, however it ends: the script
//! that holds it reads from a pipe of ours.

mod events;
mod faults;
mod secure;
mod topics;

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rustix::process::{Pid, Signal, kill_process};

use crate::e2e::{Node, Site, onrush, run, wait_until};

/// How long anything here may take. Far more than it does.
pub const PATIENCE: Duration = Duration::from_secs(90);

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
trap 'scripts/stack down --purge --dir "$dir" >&2; rm -rf "$dir"' EXIT
scripts/stack up --dir "$dir" --only kafka "$@" >&2 || exit 1
scripts/stack env --dir "$dir"
echo READY
read -r _ || true
"#;

fn clone_dir() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the engine lies in the clone")
}

/// One broker, with a second listener for TLS and SASL/SCRAM.
pub fn broker() -> &'static Stack {
    static BROKER: OnceLock<Stack> = OnceLock::new();
    BROKER.get_or_init(|| Stack::up(&["--kafka", "1", "--secure"]))
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
        let (code, out, err) = run(&mut script);
        assert_eq!(code, Some(0), "scripts/stack {command} {server}:\n{out}\n{err}");
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

/// A node that ships to topics of its own.
pub struct Shop {
    pub site: Site,
    pub topic: String,
    pub events_topic: String,
}

impl Shop {
    /// Settings for a node; its topics do not exist yet. The node persists only where told to.
    pub fn new(stack: &Stack) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let (topic, events_topic) = (format!("records-{number}"), format!("events-{number}"));
        let mut site = Site::new();
        let text = |value: &str| format!("\"{value}\"");
        site.set("log.kind", "\"kafka\"");
        site.set("log.kafka.bootstrap", &text(stack.bootstrap()));
        site.set("log.kafka.topic", &text(&topic));
        site.set("log.kafka.events_topic", &text(&events_topic));
        site.set("log.kafka.group", &text(&format!("persist-{number}")));
        site.set("log.kafka.replication", stack.get("ONRUSH__LOG__KAFKA__REPLICATION"));
        site.set("log.kafka.min_insync", stack.get("ONRUSH__LOG__KAFKA__MIN_INSYNC"));
        site.set("persist.run", "false");
        site.set("persist.databases", "3");
        Self { site, topic, events_topic }
    }

    /// The same, with its topics.
    #[track_caller]
    pub fn open(stack: &Stack) -> Self {
        let shop = Self::new(stack);
        let (code, out, err) = shop.kafka("init");
        assert_eq!(code, Some(0), "{out}\n{err}");
        shop
    }

    /// `onrush kafka COMMAND` with the site's settings.
    pub fn kafka(&self, command: &str) -> (Option<i32>, String, String) {
        // Written when a node is about to be started.
        let _ = self.site.serve();
        run(onrush().args(["kafka", command, "--config"]).arg(self.site.path("onrush.toml")))
    }

    /// A persist process on the site's settings and database shards.
    pub fn persist(&self, name: &str) -> Persister {
        let _ = self.site.serve();
        let log = self.site.path(name);
        let file = File::options().create(true).append(true).open(&log).expect("writable");
        let child = onrush()
            .args(["persist", "--config"])
            .arg(self.site.path("onrush.toml"))
            .arg("--data")
            .arg(self.site.data())
            .env("RUST_LOG", "info")
            .stdin(Stdio::null())
            .stdout(file.try_clone().expect("a second handle"))
            .stderr(file)
            .spawn()
            .expect("onrush starts");
        Persister { child, log }
    }
}

/// A running persist process. Dropped, it is killed.
pub struct Persister {
    child: Child,
    log: PathBuf,
}

impl Persister {
    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).expect("a pid");
        kill_process(pid, signal).expect("our child lives");
    }
    /// kill -9, and waits until it is gone.
    pub fn kill(mut self) {
        self.child.kill().expect("our child");
        self.child.wait().expect("our child");
    }
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Persister {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().rev().take(30).collect();
            let last: Vec<&str> = lines.into_iter().rev().collect();
            eprintln!("--- a persist process's last words\n{}", last.join("\n"));
        }
    }
}

/// Records that the slowest database shard lacks, as the node knows.
pub fn lag(node: &Node) -> Option<u64> {
    let text = node.admin().send("GET", "/metrics", &[], "").ok()?.body;
    let lines = text.lines().filter(|l| l.starts_with("onrush_persist_lag_records"));
    lines
        .map(|l| l.rsplit(' ').next().and_then(|n| n.parse::<f64>().ok()).map(|n| n as u64))
        .max()?
}

/// Waits until every record is in the database shards.
#[track_caller]
pub fn wait_stored(node: &Node) {
    wait_until("everything is in the database shards", PATIENCE, || lag(node) == Some(0));
}
