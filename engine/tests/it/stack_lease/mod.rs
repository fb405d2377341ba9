//! Leases over a real Redis: one node from its definition to its restart, and several nodes on one
//! stock, with what may go wrong between any two steps.

mod audit;
mod crash;
mod deployed;
mod faults;
mod nodes;
mod one;
pub mod proxy;
mod rebuild;
mod roll;
mod trouble;

use std::fs::File;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::e2e::{Node, Site, wait_until};
use crate::e2e_client::{Client, Wish};
use crate::stack_redis::install;

/// How long anything here may take. Far more than it does.
const PATIENCE: Duration = Duration::from_secs(30);

/// A Redis of its own, killed when it goes out of sight.
pub struct Redis {
    dir: tempfile::TempDir,
    pub port: u16,
    child: Option<Child>,
}

impl Redis {
    #[track_caller]
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("it is bound").port();
        drop(listener);
        let dir = tempfile::tempdir().expect("a temporary folder");
        let mut redis = Self { dir, port, child: None };
        redis.resume();
        redis
    }

    /// Starts it on its port, empty.
    #[track_caller]
    pub fn resume(&mut self) {
        self.child = Some(launch(self.dir.path(), self.port));
        wait_until("Redis answers", PATIENCE, || self.order(&["PING"]).is_ok());
    }

    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    pub fn signal(&self, signal: Signal) {
        let child = self.child.as_ref().expect("it runs");
        kill_process(Pid::from_child(child), signal).expect("our child lives");
    }

    /// Runs a command of Redis itself; its answer as text.
    pub fn order(&self, words: &[&str]) -> redis::RedisResult<String> {
        let client = redis::Client::open(format!("redis://127.0.0.1:{}", self.port))?;
        let mut connection = client.get_connection_with_timeout(Duration::from_secs(1))?;
        let value: redis::Value = redis::cmd(words[0]).arg(&words[1..]).query(&mut connection)?;
        Ok(format!("{value:?}"))
    }

    /// A site whose node leases from this server.
    pub fn site(&self) -> Site {
        let mut site = Site::new();
        self.set(&mut site);
        site
    }

    pub fn set(&self, site: &mut Site) {
        site.set("stock.kind", "\"redis\"");
        site.set("stock.redis.urls", &format!("[\"redis://127.0.0.1:{}\"]", self.port));
        site.set("stock.redis.timeout_ms", "300");
        site.set("stock.redis.connect_timeout_ms", "300");
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.kill();
    }
}

fn launch(dir: &Path, port: u16) -> Child {
    install();
    let log = File::options().create(true).append(true).open(dir.join("log")).expect("writable");
    let mut command = Command::new("redis-server");
    command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", ""]);
    command.current_dir(dir).stdin(Stdio::null()).stdout(log).stderr(Stdio::null());
    command.spawn().unwrap_or_else(|e| panic!("redis-server: {e}"))
}

/// One item in the operators' view of a node.
#[track_caller]
fn item(node: &Node) -> Value {
    node.admin().get("/v1/sales/s").expect(200).json()["items"][0].clone()
}

#[track_caller]
fn total(node: &Node) -> u64 {
    item(node)["total"].as_u64().expect("a total")
}

#[track_caller]
fn open(node: &Node, units: u64) {
    node.open_sale("s", 60_000, &[("cup", 1, units, 100_000)]);
}

/// Redeems one unit under a key until the answer is final; whether it was confirmed.
#[track_caller]
fn redeem(client: &mut Client, member: u64, key: &str) -> u16 {
    client.redeem(&Wish::new(member, key, "s", "cup")).status
}

/// Redeems until so many are confirmed; units come as fast as they are leased.
#[track_caller]
fn sell(node: &Node, member: u64, prefix: &str, units: u64) {
    let mut client = node.client();
    for n in 0..units {
        let key = format!("{prefix}{n}");
        wait_until("one is sold", PATIENCE, || redeem(&mut client, member, &key) == 201);
    }
}

#[track_caller]
fn change(node: &Node, key: &str, body: &Value) -> Value {
    let path = "/v1/sales/s/items/cup/stock";
    node.admin().post_keyed(key, path, body).expect(200).json()
}

#[track_caller]
fn close(node: &Node) {
    node.admin().post("/v1/sales/s/close", &json!({})).expect(200);
}
