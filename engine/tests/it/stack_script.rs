//! `scripts/stack` itself: what users have their servers from, and other tests theirs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::Duration;

/// One stack in a folder of its own, gone with this value.
struct Stack {
    folder: tempfile::TempDir,
}

/// A server's process and where it listens, as `status` prints them; no process where it has none.
type Servers = BTreeMap<String, (Option<i32>, String)>;

fn clone_dir() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

fn stack(arguments: &[&str], settings: &[(&str, &Path)]) -> Output {
    let mut script = Command::new("scripts/stack");
    script.args(arguments).current_dir(clone_dir()).stdin(Stdio::null());
    script.envs(settings.iter().copied()).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

impl Stack {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }
    fn dir(&self) -> PathBuf {
        self.folder.path().join("stack")
    }
    fn run(&self, arguments: &[&str], settings: &[(&str, &Path)]) -> Output {
        let dir = self.dir();
        stack(&[arguments, &["--dir", dir.to_str().unwrap()]].concat(), settings)
    }
    /// Runs what must succeed; what it said.
    #[track_caller]
    fn order(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments, &[]);
        let (said, errors) = (text(&output.stdout), text(&output.stderr));
        assert!(output.status.success(), "{arguments:?}: {said}{errors}");
        said
    }
    /// Each server as `status` has it, and whether it calls all of them well.
    fn status(&self) -> (Servers, bool) {
        let output = self.run(&["status"], &[]);
        let said = text(&output.stdout);
        let of_line = |line: &str| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let pid = words.iter().position(|word| *word == "pid");
            let pid = pid.map(|at| words[at + 1].parse().unwrap());
            let address = words.iter().find(|word| word.starts_with("127.0.0.1:"));
            (words[1].to_owned(), (pid, (*address.unwrap()).to_owned()))
        };
        let lines = said.lines().filter(|line| line.starts_with(['✓', '✗']));
        (lines.map(of_line).collect(), output.status.success())
    }
    /// Runs a command in the namespace of a server, or of one who joined; what it said.
    #[track_caller]
    fn run_in(&self, name: &str, words: &[&str]) -> String {
        let dir = self.dir();
        let before = ["--dir", dir.to_str().unwrap(), "run", name];
        let output = stack(&[&before[..], words].concat(), &[]);
        assert!(output.status.success(), "{words:?} in {name}: {}", text(&output.stderr));
        text(&output.stdout)
    }
    /// Datagrams that have arrived there for a port on which nobody listens.
    fn arrived(&self, name: &str) -> u64 {
        let counters = self.run_in(name, &["cat", "/proc/net/snmp"]);
        // A line of names, and one of figures.
        let mut of_udp = counters.lines().filter(|line| line.starts_with("Udp: "));
        let (names, figures) = (of_udp.next().unwrap(), of_udp.next().unwrap());
        let at = names.split(' ').position(|name| name == "NoPorts").unwrap();
        figures.split(' ').nth(at).unwrap().parse().unwrap()
    }
    /// Whether a datagram to this address of `to` arrives, whatever becomes of an answer.
    fn passes(&self, from: &str, to: &str, address: &str) -> bool {
        let before = self.arrived(to);
        self.run_in(from, &["bash", "-c", &format!("echo >/dev/udp/{address}/9")]);
        (0..10).any(|_| {
            thread::sleep(Duration::from_millis(50));
            self.arrived(to) > before
        })
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        self.run(&["down", "--purge"], &[]);
    }
}

fn runs(pid: i32) -> bool {
    let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = state.rsplit_once(") ").map(|(_, rest)| rest.to_owned()).unwrap_or_default();
    !state.is_empty() && !state.starts_with('Z')
}

/// Starts two stacks, and makes everything of the first happen beside the second.
#[test]
fn two_stacks_run_side_by_side_and_each_ends_only_what_it_started() {
    let parts = ["up", "--only", "redis,mysql", "--databases", "1"];
    let (one, other) = (Stack::new(), Stack::new());
    one.order(&[&parts[..], &["--redis", "replica"]].concat());
    other.order(&parts);
    let (ours, is_well) = one.status();
    let (theirs, is_well_too) = other.status();
    assert!(is_well && is_well_too, "{ours:?} {theirs:?}");
    assert_eq!(ours.keys().map(String::as_str).collect::<Vec<_>>(), ["db-0", "redis-1", "redis-2"]);
    assert_eq!(theirs.keys().map(String::as_str).collect::<Vec<_>>(), ["db-0", "redis-1"]);
    let addresses: Vec<&String> = ours.values().chain(theirs.values()).map(|(_, at)| at).collect();
    let mut distinct = addresses.clone();
    distinct.sort();
    distinct.dedup();
    assert_eq!(distinct.len(), addresses.len(), "{addresses:?}");

    // A second `up` finds everything as it is.
    one.order(&parts);
    assert_eq!(one.status(), (ours.clone(), true));

    // Servers that were killed are named, and come again where they were.
    let pid_of = |servers: &Servers, name: &str| servers[name].0.unwrap();
    for name in ["db-0", "redis-2"] {
        one.order(&["kill", name]);
    }
    let (after, is_well) = one.status();
    assert!(!is_well);
    assert_eq!(after["db-0"], (None, ours["db-0"].1.clone()));
    assert_eq!(after["redis-2"], (None, ours["redis-2"].1.clone()));
    assert_eq!(after["redis-1"], ours["redis-1"]);
    one.order(&parts);
    let (again, is_well) = one.status();
    assert!(is_well, "{again:?}");
    for (name, (_, address)) in &ours {
        assert_eq!(&again[name].1, address, "{name}");
    }
    assert!(!runs(pid_of(&ours, "db-0")) && !runs(pid_of(&ours, "redis-2")));

    // The end of one is not the end of the other, and what it kept is there when it returns.
    let kept = "printf 'SET kept 1\\r\\n' >&9; read -r line <&9; [ \"${line:0:3}\" = +OK ]";
    let read = "printf 'GET kept\\r\\n' >&9; read -r line <&9; [ \"${line:0:2}\" = '$1' ]";
    let ask = |address: &str, words: &str| {
        let connect = format!("exec 9<>/dev/tcp/{}; {words}", address.replace(':', "/"));
        Command::new("bash").args(["-c", &connect]).status().unwrap().success()
    };
    assert!(ask(&ours["redis-1"].1, kept));
    one.order(&["down"]);
    for (name, (pid, _)) in again {
        assert!(!runs(pid.unwrap()), "{name} has outlived its stack");
    }
    assert_eq!(other.status(), (theirs.clone(), true));
    one.order(&parts);
    assert!(ask(&ours["redis-1"].1, read));

    one.order(&["down", "--purge"]);
    assert!(!one.dir().exists());
    assert_eq!(other.status(), (theirs, true));
}

#[test]
fn a_choice_that_differs_from_the_first_is_refused_and_changes_nothing() {
    let one = Stack::new();
    one.order(&["up", "--only", "redis"]);
    let before = one.status();
    let output = one.run(&["up", "--only", "redis", "--redis", "replica"], &[]);
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output.stderr);
    assert!(said.contains("redis single, not replica") && said.contains("--purge"), "{said}");
    assert_eq!(one.status(), before);
}

#[test]
fn stack_orders_that_make_no_sense_are_refused_by_name() {
    let one = Stack::new();
    let cases: [(&[&str], &str); 6] = [
        (&["upp"], "no such command: upp"),
        (&["up", "--brokers", "3"], "no such option: --brokers"),
        (&["up", "--only", "redis,oracle"], "no such part: oracle"),
        (&["up", "--only"], "--only needs a value"),
        (&["kill"], "which server?"),
        (&["kill", "redis-7"], "no such server in"),
    ];
    for (arguments, expected) in cases {
        let output = stack(arguments, &[("CARGO_TARGET_DIR", &one.dir())]);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        assert!(said.contains(expected), "{arguments:?}: {said}");
    }
}

/// Datagrams are counted where they arrive: whoever waits for answers does not see which of the two
/// directions is shut.
#[test]
fn stack_parts_two_both_ways_and_by_every_address_until_it_is_healed() {
    let one = Stack::new();
    let output = one.run(&["up", "--netns", "--only", "redis"], &[]);
    let errors = text(&output.stderr);
    let cannot = ["--netns needs root", "no network namespaces can be made here"];
    if cannot.iter().any(|why| errors.contains(why)) {
        crate::e2e::skip("what scripts/stack cut parts", errors.trim());
        return;
    }
    assert!(output.status.success(), "{}{errors}", text(&output.stdout));
    one.order(&["join", "visitor"]);
    let host = |name| one.order(&["host", name]).trim().to_owned();
    let (redis, visitor) = (host("redis-1"), host("visitor"));
    let movable = one.order(&["address", "redis-1"]).trim().to_owned();
    assert!(movable != redis && movable != visitor, "{movable}");

    let check = |holder: &str, what: &str, is_whole: bool| {
        let other = if holder == "redis-1" { "visitor" } else { "redis-1" };
        let ways = [
            ("visitor", "redis-1", &redis),
            ("redis-1", "visitor", &visitor),
            (other, holder, &movable),
        ];
        for (from, to, address) in ways {
            let passes = one.passes(from, to, address);
            assert_eq!(passes, is_whole, "{what}: from {from} to {to} at {address}");
        }
    };
    check("redis-1", "from the start", true);
    for cut in [["redis-1", "visitor"], ["visitor", "redis-1"]] {
        one.order(&["cut", cut[0], cut[1]]);
        check("redis-1", &format!("cut {cut:?}"), false);
        one.order(&["heal"]);
        check("redis-1", "healed", true);
    }

    // The address moves while they are parted: to where it was not, and back.
    one.order(&["cut", "redis-1", "visitor"]);
    for holder in ["visitor", "redis-1"] {
        one.order(&["address", holder]);
        check(holder, &format!("moved to {holder}"), false);
    }
    one.order(&["heal"]);
    check("redis-1", "healed", true);
}

/// Debian has no such suite, as a machine without the network has none.
#[test]
fn stack_says_in_its_first_line_which_server_takes_the_place_of_mysql() {
    let one = Stack::new();
    // MariaDB is had from where other tests have it.
    super::stack_servers::shared(super::stack_servers::Flavour::MariaDb);
    let home = std::env::var_os("HOME").unwrap_or_default();
    let cache =
        std::env::var_os("XDG_CACHE_HOME").map_or(Path::new(&home).join(".cache"), PathBuf::from);
    let own = one.folder.path().join("cache");
    std::fs::create_dir_all(own.join("onrush")).unwrap();
    std::os::unix::fs::symlink(cache.join("onrush/mariadb"), own.join("onrush/mariadb")).unwrap();
    let settings =
        [("XDG_CACHE_HOME", own.as_path()), ("ONRUSH_MYSQL_SUITE", Path::new("no-such-suite"))];
    let output = one.run(&["up", "--only", "mysql", "--databases", "1"], &settings);
    let said = text(&output.stdout);
    assert!(output.status.success(), "{said}{}", text(&output.stderr));
    let expected = "in place of MySQL, which could not be fetched here";
    let first = said.lines().next().unwrap_or_default();
    assert!(first.starts_with("databases: MariaDB 1") && first.ends_with(expected), "{said}");
    let output = one.run(&["env"], &settings);
    let exports = text(&output.stdout);
    let named = exports.lines().find(|line| line.starts_with("export ONRUSH_STACK_DATABASES="));
    assert!(named.is_some_and(|line| line.contains("MySQL")), "{exports}");
    one.run(&["down", "--purge"], &settings);
}
