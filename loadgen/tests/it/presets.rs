//! Every preset as it is, shortened in time alone: against a mall in this process, and the first
//! of them against a node.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use crate::mall::{Mall, open};
use crate::tool::{Ran, number, tool};

const QUIET: [&str; 4] = ["--json", "--quiet", "--max-own-lag", "60"];

#[test]
fn every_preset_passes_its_own_check() {
    for (name, seconds) in [
        ("double-eleven", "1.5"),
        ("hot-item", "0.8"),
        ("steady", "2"),
        ("retry-storm", "0.8"),
        ("holds", "1"),
        ("soak", "4"),
    ] {
        let (server, mall) = open(Mall::with_stock(&[("a", 90), ("b", 60)]));
        let url = server.url();
        // The mall is slow where a machine does other things: its latencies prove nothing.
        let args = ["run", name, "--target", &url, "--sale", "s1", "--admin", &url];
        let more = ["--members", "1-5000", "--seconds", seconds, "--threshold", "findings==0"];
        let ran = tool(&[&args[..], &more, &QUIET].concat());
        assert_eq!(ran.code, 0, "{name}: {} {}", ran.stdout, ran.stderr);
        let planned = number(&ran, "/requests/planned");
        assert!(planned > 500.0, "{name}: {planned}");
        let ended = mall.lock().unwrap().redemptions.len();
        assert_eq!(number(&ran, "/check/found_over_api") as usize, ended, "{name}");
        assert!(ended > 100, "{name}: {ended}");
        assert!(number(&ran, "/check/members_with_known_balance") >= 5000.0, "{name}");
    }
}

/// A node of its own, beside the tool that is tested.
struct Node {
    child: Child,
    public: String,
    admin: String,
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn onrush() -> Command {
    let beside = PathBuf::from(env!("CARGO_BIN_EXE_onrush-load")).with_file_name("onrush");
    assert!(beside.is_file(), "{} is missing: cargo build -p onrush", beside.display());
    Command::new(beside)
}

impl Node {
    fn start(dir: &Path) -> Self {
        let ready = dir.join("ready");
        let child = onrush()
            .args(["serve", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--data"])
            .arg(dir.join("data"))
            .arg("--ready-file")
            .arg(&ready)
            .current_dir(dir)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut node = Self { child, public: String::new(), admin: String::new() };
        for _ in 0..600 {
            if let Some((public, admin)) =
                std::fs::read_to_string(&ready).unwrap_or_default().split_once('\n')
            {
                node.public = format!("http://{}", public.trim());
                node.admin = format!("http://{}", admin.trim());
                return node;
            }
            thread::sleep(Duration::from_millis(50));
        }
        panic!("the node was not ready within 30 s");
    }

    fn import(&self, what: &str, file: &Path) {
        let ran = onrush().args(["import", what]).arg(file).args(["--admin", &self.admin]).output();
        let ran = ran.unwrap();
        assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    }

    fn load(&self, more: &[&str]) -> Ran {
        let args = ["run", "double-eleven", "--target", &self.public, "--admin", &self.admin];
        tool(&[&args[..], more, &QUIET].concat())
    }
}

#[test]
fn the_preset_double_eleven_sells_the_sale_of_its_name_on_a_node() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path());
    let members = dir.path().join("members.csv");
    std::fs::write(&members, crate::mall::members(20_000, 5000)).unwrap();
    node.import("members", &members);
    let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config");
    node.import("sale", &config.join("sales/double-eleven.toml"));
    let store = format!("sqlite:{}", dir.path().join("data/db").display());
    let ran = node.load(&["--members", "1-20000", "--seconds", "3", "--store", &store]);
    assert_eq!(ran.code, 0, "{} {}", ran.stdout, ran.stderr);
    assert!(number(&ran, "/ledger/accepted") > 1000.0, "{}", ran.stdout);
    assert_eq!(ran.summary["check"]["found_in_store"], ran.summary["ledger"]["accepted"]);
}
