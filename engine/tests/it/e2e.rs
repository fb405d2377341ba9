//! A node for end-to-end tests: its data folder, its process, and what is asked of both.
//!
//! One test runs a node at a time: `let _turn = turn();` is its first line. So the figures and the
//! moments of the kills do not depend on what else runs.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::e2e_client::Client;

/// Waits until no other test runs a node.
pub fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

#[expect(clippy::disallowed_methods, reason = "tests measure and wait in real time")]
pub fn now() -> Instant {
    Instant::now()
}

/// Polls until `holds`, and fails with `what` after `patience`.
#[track_caller]
pub fn wait_until(what: &str, patience: Duration, mut holds: impl FnMut() -> bool) {
    let begun = now();
    while !holds() {
        assert!(begun.elapsed() < patience, "after {patience:?} still not: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// A number from the environment: how many cycles, how long.
pub fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Says how long something took, for the table "When something dies" in ARCHITECTURE.md.
pub fn measured(what: &str, begun: Instant) {
    // Past the harness, as above all figures are wanted of tests that pass.
    let seconds = begun.elapsed().as_secs_f64();
    let _ = writeln!(std::io::stderr(), "MEASURED {what}: {seconds:.1} s");
}

/// Says that something could not be tested here; the scripts show it. In CI it is a failure.
pub fn skip(what: &str, why: &str) {
    // Past the harness, which shows a test's output only where it fails.
    let _ = writeln!(std::io::stderr(), "SKIPPED {what}: {why}");
    assert!(std::env::var_os("CI").is_none(), "CI skips nothing: {what}: {why}");
}

/// A small generator, so that a failing run can be repeated from its printed seed.
pub struct Random(u64);

impl Random {
    /// Seeded from `ONRUSH_SEED`, else at random; prints the seed.
    pub fn new(test: &str) -> Self {
        let seed = setting("ONRUSH_SEED", rand::random());
        println!("{test}: repeat with ONRUSH_SEED={seed}");
        Self::from_seed(seed)
    }
    pub fn from_seed(seed: u64) -> Self {
        Self(seed)
    }
    /// Source: SplitMix64 (Steele, Lea, Flood).
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

/// The `onrush` binary: the one of this build, or of the ThreadSanitizer build.
pub fn onrush() -> Command {
    let path = std::env::var_os("ONRUSH_E2E_BIN");
    Command::new(path.unwrap_or_else(|| env!("CARGO_BIN_EXE_onrush").into()))
}

/// Runs `onrush` to its end: exit code, standard output, standard error.
#[track_caller]
pub fn run(command: &mut Command) -> (Option<i32>, String, String) {
    let output = command.stdin(Stdio::null()).output().expect("onrush starts");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

/// A data folder with its settings, outlived by no node.
pub struct Site {
    dir: tempfile::TempDir,
    data: PathBuf,
    config: String,
    env: Vec<(String, String)>,
    /// Public and admin.
    listen: [String; 2],
}

impl Site {
    /// Small segments and frequent snapshots, so that a short test turns and cleans them too.
    pub fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let data = dir.path().join("data");
        let listen = ["127.0.0.1:0"; 2].map(str::to_owned);
        let mut site = Self { dir, data, config: String::new(), env: Vec::new(), listen };
        site.set("http.workers", "2");
        site.set("shards.count", "2");
        site.set("journal.segment_bytes", "4194304");
        site.set("snapshot.every_ms", "700");
        site.set("http.gateway_secret", "\"e2e-secret\"");
        site
    }

    /// Places the data elsewhere: on a small or a doomed file system.
    pub fn with_data(mut self, data: &Path) -> Self {
        data.clone_into(&mut self.data);
        self
    }

    /// Sets one setting, a TOML value.
    pub fn set(&mut self, key: &str, value: &str) {
        let is_other = |line: &&str| !line.starts_with(&format!("{key} = "));
        let mut lines: Vec<&str> = self.config.lines().filter(is_other).collect();
        let line = format!("{key} = {value}");
        lines.push(&line);
        self.config = lines.join("\n");
    }

    /// Leaves one setting as it is without a word.
    pub fn unset(&mut self, key: &str) {
        let is_other = |line: &&str| !line.starts_with(&format!("{key} = "));
        let lines: Vec<&str> = self.config.lines().filter(is_other).collect();
        self.config = lines.join("\n");
    }

    pub fn set_env(&mut self, name: &str, value: &str) {
        self.env.retain(|(n, _)| n != name);
        self.env.push((name.to_owned(), value.to_owned()));
    }

    pub fn clear_env(&mut self, name: &str) {
        self.env.retain(|(n, _)| n != name);
    }

    /// What commands on this site are to find in their environment.
    pub fn env(&self) -> impl Iterator<Item = (&str, &str)> {
        self.env.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    pub fn data(&self) -> &Path {
        &self.data
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Keeps a node to these addresses, where others are told of them.
    pub fn listen_on(&mut self, public: &str, admin: &str) {
        self.listen = [public.to_owned(), admin.to_owned()];
    }

    /// `onrush serve` on ports of its own choice, not started.
    pub fn serve(&self) -> Command {
        self.serve_on(&self.listen[0], &self.listen[1])
    }

    pub fn serve_on(&self, public: &str, admin: &str) -> Command {
        let config = self.path("onrush.toml");
        fs::write(&config, &self.config).expect("writable");
        let mut command = onrush();
        command
            .args(["serve", "--listen", public, "--admin", admin])
            .arg("--config")
            .arg(config)
            .arg("--data")
            .arg(&self.data)
            .envs(self.env.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Starts a node and waits until it is ready.
    #[track_caller]
    pub fn start(&self) -> Node {
        let mut node = self.launch();
        let begun = now();
        while !node.ready_file.exists() {
            if let Some(status) = node.child.try_wait().expect("our child") {
                panic!("the node ended with {status} before it was ready:\n{}", node.log_tail());
            }
            let tail = || node.log_tail();
            assert!(begun.elapsed() < Duration::from_mins(1), "not ready:\n{}", tail());
            thread::sleep(Duration::from_millis(5));
        }
        node.read_addresses();
        node
    }

    /// Starts a node, and waits for nothing.
    pub fn launch(&self) -> Node {
        let (ready_file, log) = (self.path("ready"), self.path("node.log"));
        let _ = fs::remove_file(&ready_file);
        let open =
            |path: &Path| File::options().create(true).append(true).open(path).expect("writable");
        let child = self
            .serve()
            .arg("--ready-file")
            .arg(&ready_file)
            .stdin(Stdio::null())
            .stdout(open(&self.path("node.out")))
            .stderr(open(&log))
            .spawn()
            .expect("onrush starts");
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 1));
        Node { child, public: nowhere, admin: nowhere, ready_file, log }
    }

    /// Audits the data of a node that does not run.
    #[track_caller]
    pub fn audit(&self) {
        let (code, out, err) = run(onrush().arg("audit").arg("--data").arg(&self.data));
        assert_eq!(code, Some(0), "the audit found something:\n{out}\n{err}");
    }
}

/// A running node. Dropped, it is killed.
pub struct Node {
    child: Child,
    pub public: SocketAddr,
    pub admin: SocketAddr,
    ready_file: PathBuf,
    log: PathBuf,
}

impl Node {
    fn read_addresses(&mut self) {
        let text = fs::read_to_string(&self.ready_file).expect("the ready file");
        let lines: Vec<SocketAddr> =
            text.lines().map(|line| line.parse().expect("IP:PORT")).collect();
        let [public, admin] = lines[..] else { panic!("not two lines: {text:?}") };
        (self.public, self.admin) = (public, admin);
    }

    pub fn client(&self) -> Client {
        Client::new(self.public)
    }

    pub fn admin(&self) -> Client {
        Client::new(self.admin)
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("our child").is_none()
    }

    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).expect("a pid");
        kill_process(pid, signal).expect("our child lives");
    }

    pub fn signal_if_running(&mut self, signal: Signal) {
        if self.is_running() {
            self.signal(signal);
        }
    }

    /// kill -9, and waits until it is gone.
    pub fn kill(mut self) {
        self.child.kill().expect("our child");
        self.child.wait().expect("our child");
    }

    /// SIGTERM, and the status it ends with.
    #[track_caller]
    pub fn stop(mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.wait(Duration::from_secs(40))
    }

    #[track_caller]
    pub fn wait(&mut self, patience: Duration) -> ExitStatus {
        let begun = now();
        loop {
            if let Some(status) = self.child.try_wait().expect("our child") {
                return status;
            }
            let tail = || self.log_tail();
            assert!(begun.elapsed() < patience, "does not end:\n{}", tail());
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Whether it becomes ready; `false` where it ends before.
    pub fn wait_ready_or_end(&mut self) -> bool {
        let begun = now();
        while begun.elapsed() < Duration::from_mins(1) {
            if self.ready_file.exists() {
                self.read_addresses();
                return true;
            }
            if !self.is_running() {
                return false;
            }
            thread::sleep(Duration::from_millis(5));
        }
        panic!("neither ready nor ended:\n{}", self.log_tail());
    }

    pub fn ends_within(&mut self, patience: Duration) -> bool {
        let begun = now();
        while self.is_running() {
            if begun.elapsed() > patience {
                return false;
            }
            thread::sleep(Duration::from_millis(5));
        }
        true
    }

    /// The signal that ended it; `None`: it runs, or ended by itself.
    pub fn exit_signal(&mut self) -> Option<i32> {
        let status = self.child.try_wait().expect("our child")?;
        std::os::unix::process::ExitStatusExt::signal(&status)
    }

    /// The sum of the metrics whose lines begin so.
    ///
    /// Panics: where there is none.
    #[track_caller]
    pub fn metric(&self, prefix: &str) -> f64 {
        let text = self.admin().get("/metrics").expect(200).body;
        let value = |line: &str| line.rsplit(' ').next()?.parse::<f64>().ok();
        let lines = text.lines().filter(|line| line.starts_with(prefix));
        let values: Vec<f64> = lines.map(|line| value(line).expect("a number")).collect();
        assert!(!values.is_empty(), "no {prefix} in\n{text}");
        values.iter().sum()
    }

    /// Units: bytes of memory that are resident.
    pub fn resident_bytes(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()));
        let status = status.expect("our child lives");
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("VmRSS");
        let kib: u64 = line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).expect("kB");
        kib * 1024
    }

    /// Processor time that it has had. Units: ticks of the kernel's clock.
    pub fn cpu_ticks(&self) -> u64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id()));
        let stat = stat.expect("our child lives");
        // Behind the name, which may have blanks; user and system time are the 14th and 15th field.
        let fields = stat.rsplit_once(") ").expect("a name in brackets").1.split(' ');
        fields.skip(11).take(2).map(|ticks| ticks.parse::<u64>().expect("a number")).sum()
    }

    /// The first event of its log that says so.
    pub fn logged(&self, message: &str) -> Option<Value> {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let mut events = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        events.find(|event| event["message"] == message)
    }

    pub fn log_tail(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    /// Opens accounts `first..=last` with so many points each.
    #[track_caller]
    pub fn import_members(&self, first: u64, last: u64, points: u64) {
        let csv = (first..=last).fold(String::from("member,points\n"), |mut csv, member| {
            writeln!(csv, "{member},{points}").expect("a string");
            csv
        });
        let reply = self.admin().with_patience(Duration::from_mins(1)).send(
            "POST",
            "/v1/members:import",
            &[("content-type", "text/csv")],
            &csv,
        );
        reply.expect("an answer").expect(200);
    }

    /// Defines a sale that is open at once, of `(sku, points, stock, limit)`.
    #[track_caller]
    pub fn open_sale(&self, id: &str, hold_ttl_ms: u64, items: &[(&str, u64, u64, u32)]) {
        let items: Vec<Value> = items
            .iter()
            .map(|(sku, points, stock, limit)| {
                json!({ "sku": sku, "name": sku, "points": points, "stock": stock,
                        "limit_per_member": limit })
            })
            .collect();
        let sale = json!({
            "id": id, "name": id, "opens_at": "2026-01-01T00:00:00Z",
            "closes_at": "2099-01-01T00:00:00Z", "hold_ttl_ms": hold_ttl_ms, "items": items,
        });
        self.admin().post("/v1/sales", &sale).expect(201);
        self.admin().post(&format!("/v1/sales/{id}/open"), &json!({})).expect(200);
    }

    /// An item's units by the operators' view: free, held, confirmed.
    #[track_caller]
    pub fn units(&self, sale: &str, sku: &str) -> [u64; 3] {
        let reply = self.admin().get(&format!("/v1/sales/{sale}")).expect(200).json();
        let items = reply["items"].as_array().expect("items");
        let item = items.iter().find(|i| i["sku"] == sku).expect("the item");
        ["free", "held", "confirmed"]
            .map(|name| item[name].as_u64().unwrap_or_else(|| panic!("no {name} in {item}")))
    }

    /// A member's points by the operators' view: free, held.
    #[track_caller]
    pub fn points(&self, member: u64) -> [u64; 2] {
        let reply = self.admin().get(&format!("/v1/members/{member}")).expect(200).json();
        ["free", "held"].map(|name| reply[name].as_u64().expect("points"))
    }

    /// Audits the running node.
    #[track_caller]
    pub fn audit(&self) {
        let url = format!("http://{}", self.admin);
        let (code, out, err) = run(onrush().args(["audit", "--admin", &url]));
        assert_eq!(code, Some(0), "the live audit found something:\n{out}\n{err}");
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if self.is_running() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        if thread::panicking() {
            eprintln!("--- the node's last words\n{}", self.log_tail());
        }
    }
}
