//! Kafka as the log, on real brokers: node → Kafka → database shards, and what goes wrong between.
//!
//! Each test has topics and a group of its own, on the broker that all tests of the process share.

mod clock;
mod events;
mod faults;
mod live;
#[cfg(feature = "kafka-tls")]
mod secure;
mod tampered;
mod topics;

use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::process::{Pid, Signal, kill_process};

use crate::e2e::{Node, Site, onrush, run, wait_until};
pub use crate::stack_brokers::{PATIENCE, Stack, admin_options, block_on, broker};

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
        let mut kafka = onrush();
        kafka.args(["kafka", command, "--config"]).arg(self.site.path("onrush.toml"));
        run(kafka.envs(self.site.env()))
    }

    /// Everything held against everything, of a node that does not run.
    pub fn audit_all(&self) -> (Option<i32>, String, String) {
        let _ = self.site.serve();
        let mut command = onrush();
        command.args(["audit", "--all", "--config"]).arg(self.site.path("onrush.toml"));
        run(command.arg("--data").arg(self.site.data()).envs(self.site.env()))
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
            .envs(self.site.env())
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
