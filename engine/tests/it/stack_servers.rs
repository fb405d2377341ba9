//! Real `MySQL` and `MariaDB` servers for tests, started by the scripts that users start them with.
//!
//! One set of servers per test process and flavour; each test makes databases of its own on them.
//! They end when this process does, however it ends: the script that holds them reads from a pipe
//! of ours, and takes them down at its end.

#![allow(dead_code, reason = "the unit tests and the integration tests each use a part")]

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Flavour {
    MySql,
    MariaDb,
}

impl Flavour {
    pub const ALL: [Self; 2] = [Self::MySql, Self::MariaDb];

    pub fn name(self) -> &'static str {
        match self {
            Self::MySql => "mysql",
            Self::MariaDb => "mariadb",
        }
    }
}

/// Running servers, and the script that holds them.
pub struct Servers {
    pub flavour: Flavour,
    dir: PathBuf,
    script: Child,
    /// Its end ends the servers.
    stdin: Option<ChildStdin>,
    databases: AtomicU32,
}

/// The servers that all tests of this process share: one primary with one replica.
pub fn shared(flavour: Flavour) -> &'static Servers {
    static MYSQL: OnceLock<Servers> = OnceLock::new();
    static MARIADB: OnceLock<Servers> = OnceLock::new();
    let cell = match flavour {
        Flavour::MySql => &MYSQL,
        Flavour::MariaDb => &MARIADB,
    };
    cell.get_or_init(|| Servers::start(flavour, 1, 1))
}

/// Servers of their own for tests that stop, freeze or misconfigure them; those take turns.
pub fn rough(flavour: Flavour) -> (MutexGuard<'static, ()>, &'static Servers) {
    static MYSQL: OnceLock<Servers> = OnceLock::new();
    static MARIADB: OnceLock<Servers> = OnceLock::new();
    static TURNS: [Mutex<()>; 2] = [Mutex::new(()), Mutex::new(())];
    let turn = TURNS[flavour as usize].lock().unwrap_or_else(PoisonError::into_inner);
    let cell = match flavour {
        Flavour::MySql => &MYSQL,
        Flavour::MariaDb => &MARIADB,
    };
    (turn, cell.get_or_init(|| Servers::start(flavour, 1, 0)))
}

fn clone_dir() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the engine lies in the clone")
}

/// A signal to the whole group, as an interrupted test run gets one, must not end the script before
/// it has ended the servers: what ends it is the end of its input.
const SCRIPT: &str = r#"
source scripts/lib.sh
source scripts/stack.d/mysql.sh
stack_dir=$1 mysql_flavour=$2 mysql_pool_mb=64
trap : TERM INT HUP
trap 'mysql_down --purge >&2; rm -rf "$stack_dir"; clean_up' EXIT
mysql_up "$3" "$4" >&2
echo "READY $mysql_flavour"
while :; do
  code=0
  read -r _ || code=$?
  [ "$code" -gt 128 ] || break
done
"#;

impl Servers {
    /// Starts so many primaries, each with so many replicas.
    ///
    /// Panics: they cannot be had. A test that needs them fails then, and says why.
    pub fn start(flavour: Flavour, primaries: u8, replicas: u8) -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder").keep();
        Self::start_in(dir, flavour, primaries, replicas)
    }

    /// The same, with their data in a folder, which goes with them.
    pub fn start_in(dir: PathBuf, flavour: Flavour, primaries: u8, replicas: u8) -> Self {
        let mut script = Command::new("bash")
            .args(["-c", SCRIPT, "onrush-test-servers"])
            .arg(&dir)
            .args([flavour.name(), &primaries.to_string(), &replicas.to_string()])
            .current_dir(clone_dir())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("bash");
        let stdin = script.stdin.take();
        let stdout = BufReader::new(script.stdout.take().expect("piped"));
        let ready = stdout.lines().map_while(Result::ok).find(|line| line.starts_with("READY"));
        let ready = ready.unwrap_or_else(|| panic!("{} servers cannot be had", flavour.name()));
        let expected = format!("READY {}", flavour.name());
        assert_eq!(ready, expected, "this test needs a {} server", flavour.name());
        Self { flavour, dir, script, stdin, databases: AtomicU32::new(0) }
    }

    /// A server's name: `db-0`, `db-0-replica-0`, …
    pub fn port(&self, server: &str) -> u16 {
        let path = self.dir.join("mysql").join(server).join("port");
        let text = std::fs::read_to_string(path).expect("a port");
        text.trim().parse().expect("a number")
    }
    pub fn pid(&self, server: &str) -> i32 {
        let path = self.dir.join("mysql").join(server).join("pid");
        let text = std::fs::read_to_string(path).expect("a process id");
        text.trim().parse().expect("a number")
    }
    /// The file with the password of user `onrush`.
    pub fn password_file(&self) -> PathBuf {
        self.dir.join("mysql/password")
    }
    pub fn password(&self) -> String {
        std::fs::read_to_string(self.password_file()).expect("a password").trim().into()
    }
    pub fn admin_password(&self) -> String {
        let path = self.dir.join("mysql/admin-password");
        std::fs::read_to_string(path).expect("a password").trim().into()
    }
    pub fn url(&self, server: &str, database: &str) -> String {
        format!("mysql://onrush@127.0.0.1:{}/{database}", self.port(server))
    }
    /// The same, for the administrator; no database.
    pub fn admin_url(&self, server: &str) -> String {
        let (password, port) = (self.admin_password(), self.port(server));
        format!("mysql://admin:{password}@127.0.0.1:{port}/")
    }
    /// A name that no other test uses; user `onrush` may create it.
    pub fn fresh_name(&self) -> String {
        format!("onrush_t{}", self.databases.fetch_add(1, Ordering::Relaxed))
    }

    /// Runs a function of the script on these servers.
    pub fn script(&self, command: &str) -> std::process::Output {
        let prelude = "source scripts/lib.sh; source scripts/stack.d/mysql.sh";
        let run = format!("{prelude}; stack_dir=$1 mysql_flavour=$2 mysql_pool_mb=64; {command}");
        Command::new("bash")
            .args(["-c", &run, "onrush-test-servers"])
            .arg(&self.dir)
            .arg(self.flavour.name())
            .current_dir(clone_dir())
            .stdin(Stdio::null())
            .output()
            .expect("bash")
    }
    /// Ends a server as a crash would.
    pub fn kill(&self, server: &str) {
        assert!(self.script(&format!("mysql_stop {server} KILL")).status.success());
    }
    /// Starts it again, and waits until it answers.
    pub fn restart(&self, server: &str) {
        let done = self.script(&format!("mysql_start {server}"));
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        drop(self.stdin.take());
        let _ = self.script.wait();
    }
}
