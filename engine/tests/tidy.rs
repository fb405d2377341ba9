//! The house rules that neither the compiler nor clippy checks, as tests.
//!
//! Each rule reads the clone's files as text and names every place that breaks it. What the rules
//! are for: a file that a person can hold in the head, imports that go one way, a kernel that is
//! pure, and nothing in the clone that works on one machine only.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

/// Lines of a file, at most.
const LINES_MAX: usize = 700;
/// Characters of a line, at most.
const COLUMNS_MAX: usize = 100;

/// What each module of the engine may import, as prefixes of paths under `crate::`. A module may
/// always import itself. `*` is the wiring: everything.
const IMPORTS: &[(&str, &[&str])] = &[
    ("units", &[]),
    ("crash", &[]),
    // Constants that say no, outside of unit tests.
    ("planted", &[]),
    ("sync", &[]),
    ("clock", &["units", "planted"]),
    ("limits", &["units"]),
    ("cluster", &["units", "planted"]),
    ("config", &["units", "limits", "cluster::map", "cluster::route"]),
    ("telemetry", &["units", "kernel::code"]),
    // Pure: state, now and a command in, an outcome and records out.
    ("kernel", &["units", "planted"]),
    // Bytes and sequence numbers; it does not know what a record says.
    ("journal", &["units", "planted", "sync", "clock", "crash"]),
    ("stock", &["units", "planted", "sync", "kernel", "journal", "config", "telemetry"]),
    (
        "shard",
        &[
            "units",
            "planted",
            "limits",
            "clock",
            "crash",
            "telemetry",
            "kernel",
            "journal",
            "stock",
        ],
    ),
    (
        "ship",
        &["units", "planted", "clock", "config", "crash", "telemetry", "kernel::record", "journal"],
    ),
    (
        "persist",
        &[
            "units",
            "planted",
            "clock",
            "cluster",
            "crash",
            "config",
            "telemetry",
            "kernel",
            "journal",
            "ship",
        ],
    ),
    // Shares the readers of files, records, snapshots, rows and messages with the engine, and no
    // rule of its arithmetic; I5 alone runs the engine's replay, because it is a statement about
    // that.
    (
        "audit",
        &[
            "units",
            "cluster::map",
            "config",
            "kernel::record",
            "kernel::command",
            "kernel::catalog",
            "kernel::dump",
            "kernel::slot",
            "kernel::control",
            "journal",
            "ship::holdings",
            "ship::partition",
            "ship::log",
            "ship::kafka::message",
            "ship::kafka::read",
            "persist::rows",
            "persist::store",
            "persist::stores",
            "persist::sqlite",
        ],
    ),
    (
        "http",
        &[
            "units",
            "planted",
            "limits",
            "clock",
            "cluster",
            "config",
            "telemetry",
            "kernel",
            "stock",
            "shard",
            "audit",
        ],
    ),
    ("app", &["*"]),
    ("cli", &["*"]),
    ("lib", &["*"]),
    ("main", &["*"]),
    // Unit tests alone are built with it.
    ("sim", &["*"]),
];

/// What would make the kernel impure.
const IMPURE: &[&str] = &[
    "std::time",
    "std::thread",
    "std::fs",
    "std::net",
    "std::io",
    "std::env",
    "std::process",
    "std::sync::atomic",
    "Mutex",
    "RwLock",
    "mpsc",
    "rand::",
    "tokio",
    "tracing",
    "rustix",
    "crossbeam",
    "println!",
    "eprintln!",
];

/// One file of the clone.
struct Source {
    /// Relative to the clone.
    path: String,
    text: String,
}

impl Source {
    /// The lines, from 1, without those of the unit tests at the end of the file.
    fn lines_without_tests(&self) -> impl Iterator<Item = (usize, &str)> {
        let is_tests =
            |line: &str| line.starts_with("#[cfg(test)]") || line.contains("cfg(all(test");
        (1..).zip(self.text.lines()).take_while(move |(_, line)| !is_tests(line))
    }
    fn is_under(&self, folder: &str) -> bool {
        self.path.starts_with(folder)
    }
}

/// The part of a line that is code.
fn code(line: &str) -> &str {
    line.split_once("//").map_or(line, |(code, _)| code)
}

fn clone_dir() -> PathBuf {
    let engine = Path::new(env!("CARGO_MANIFEST_DIR"));
    engine.parent().expect("the engine lies in the clone").to_path_buf()
}

/// Every file under `folder` whose name ends in one of `endings`.
fn sources(folder: &str, endings: &[&str]) -> Vec<Source> {
    let root = clone_dir();
    let mut found = Vec::new();
    let mut folders = vec![root.join(folder)];
    while let Some(dir) = folders.pop() {
        let Ok(entries) = fs::read_dir(&dir) else { continue };
        for entry in entries.map(|e| e.expect("a readable folder").path()) {
            let name = entry.file_name().expect("a name").to_string_lossy().into_owned();
            if entry.is_dir() {
                if !matches!(name.as_str(), "target" | ".git" | "data") {
                    folders.push(entry);
                }
            } else if endings.iter().any(|ending| name.ends_with(ending)) {
                let path = entry.strip_prefix(&root).expect("under the clone");
                let text = fs::read_to_string(&entry).expect("text");
                found.push(Source { path: path.to_string_lossy().into_owned(), text });
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

fn rust_sources() -> Vec<Source> {
    ["engine", "loadgen", "benches"].iter().flat_map(|f| sources(f, &[".rs"])).collect()
}

/// Fails with all the places at once.
#[track_caller]
fn assert_none(rule: &str, places: &[String]) {
    assert!(places.is_empty(), "{rule}:\n  {}", places.join("\n  "));
}

#[test]
fn files_fit_a_head_and_lines_fit_a_screen() {
    let mut places = Vec::new();
    for source in rust_sources() {
        let count = source.text.lines().count();
        if count > LINES_MAX {
            places.push(format!("{}: {count} lines", source.path));
        }
        for (number, line) in (1..).zip(source.text.lines()) {
            let columns = line.chars().count();
            if columns > COLUMNS_MAX {
                places.push(format!("{}:{number}: {columns} columns", source.path));
            }
            if line.contains('\t') || line.ends_with(' ') {
                places.push(format!("{}:{number}: a tab, or a space at the end", source.path));
            }
        }
    }
    assert_none(&format!("at most {LINES_MAX} lines of {COLUMNS_MAX} columns"), &places);
}

#[test]
fn every_file_says_what_it_is_for() {
    let places: Vec<_> = rust_sources()
        .into_iter()
        .filter(|s| s.text.lines().count() > 3 && !s.text.starts_with("//!"))
        .map(|s| s.path)
        .collect();
    assert_none("a file begins with a `//!` that says its job", &places);
}

#[test]
fn nothing_is_put_off() {
    // Put together here, so that this file does not find itself.
    let banned = [
        concat!("to", "do!("),
        concat!("unimple", "mented!("),
        concat!("#[ig", "nore"),
        concat!("FIX", "ME"),
        concat!("XX", "X:"),
        concat!("TO", "DO"),
        concat!("HA", "CK"),
    ];
    let mut places = Vec::new();
    let mut files = rust_sources();
    for folder in ["scripts", "config"] {
        files.extend(sources(folder, &[""]));
    }
    for source in files {
        for (number, line) in (1..).zip(source.text.lines()) {
            for word in banned.iter().filter(|word| line.contains(**word)) {
                places.push(format!("{}:{number}: {word}", source.path));
            }
        }
    }
    assert_none("what is not done is not in the code", &places);
}

#[test]
fn nothing_works_on_one_machine_only() {
    let banned = [
        concat!("/wo", "rk/"),
        concat!("/ro", "ot/"),
        concat!("/ho", "me/"),
        concat!("/Us", "ers/"),
    ];
    let endings = [".rs", ".toml", ".md", ".yaml", ".yml", ".json", ".sql", ".csv", ".supp"];
    let mut files = sources("", &endings);
    files.extend(sources("scripts", &[""]));
    files.extend(sources(".ci", &[""]));
    let mut places = Vec::new();
    for source in files {
        for (number, line) in (1..).zip(source.text.lines()) {
            for path in banned.iter().filter(|path| line.contains(**path)) {
                places.push(format!("{}:{number}: {path}", source.path));
            }
        }
    }
    assert_none("no path of somebody's machine", &places);
}

#[test]
fn imports_go_one_way() {
    let mut places = Vec::new();
    for source in sources("engine/src", &[".rs"]) {
        let inner = source.path.strip_prefix("engine/src/").expect("under engine/src");
        let module = inner.split(['/', '.']).next().expect("a module");
        let Some((_, allowed)) = IMPORTS.iter().find(|(name, _)| *name == module) else {
            places.push(format!("{}: module {module} has no row in IMPORTS", source.path));
            continue;
        };
        for (number, line) in source.lines_without_tests() {
            for import in imports(code(line)) {
                let may =
                    |prefix: &str| prefix == "*" || import == prefix || is_below(import, prefix);
                if !may(module) && !allowed.iter().any(|prefix| may(prefix)) {
                    places.push(format!("{}:{number}: {module} → {import}", source.path));
                }
            }
        }
    }
    assert_none("main → app → {http, ship, persist, stock, audit} → shard → … → units", &places);
}

/// The paths behind each `crate::` of a line.
fn imports(code: &str) -> impl Iterator<Item = &str> {
    let is_path = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
    code.split("crate::").skip(1).map(move |rest| {
        let end = rest.find(|c| !is_path(c)).unwrap_or(rest.len());
        // The macro of the module `crash` lives at the root, as macros do.
        if rest.starts_with("crash_point") { "crash" } else { rest[..end].trim_end_matches(':') }
    })
}

fn is_below(path: &str, module: &str) -> bool {
    path.strip_prefix(module).is_some_and(|rest| rest.starts_with("::"))
}

#[test]
fn the_kernel_is_pure() {
    let mut places = Vec::new();
    for source in sources("engine/src/kernel", &[".rs"]) {
        for (number, line) in source.lines_without_tests() {
            for import in IMPURE.iter().filter(|import| code(line).contains(**import)) {
                places.push(format!("{}:{number}: {import}", source.path));
            }
        }
    }
    assert_none("the kernel has no I/O, clock, thread or randomness", &places);
}

#[test]
fn every_unsafe_has_its_reason() {
    let mut places = Vec::new();
    for source in rust_sources() {
        let lines: Vec<&str> = source.text.lines().collect();
        for (index, line) in lines.iter().enumerate() {
            let code = code(line);
            let is_unsafe = ["unsafe {", "unsafe impl", "unsafe fn", "unsafe extern"]
                .iter()
                .any(|form| code.contains(form) && !code.contains('"'));
            let nearby = &lines[index.saturating_sub(8)..=index];
            let has_reason = nearby.iter().any(|l| l.contains("SAFETY:") || l.contains("# Safety"));
            if is_unsafe && !has_reason {
                places.push(format!("{}:{}", source.path, index + 1));
            }
        }
    }
    assert_none("`unsafe` has one SAFETY reason beside it", &places);
}

#[test]
fn every_dependency_says_why() {
    let mut places = Vec::new();
    for manifest in sources("", &["Cargo.toml"]) {
        let mut in_dependencies = false;
        for (number, line) in (1..).zip(manifest.text.lines()) {
            if line.starts_with('[') {
                in_dependencies = line.contains("dependencies");
            } else if in_dependencies && line.contains('=') && !line.trim_start().starts_with('#') {
                let is_shared = line.contains("workspace = true") || line.contains("path = ");
                if !is_shared && !line.contains(" # ") {
                    places.push(format!("{}:{number}: {line}", manifest.path));
                }
            }
        }
    }
    assert_none("a dependency has one line of why beside it, in the workspace", &places);
}

#[test]
fn the_byte_map_of_the_journal_is_the_same_wherever_it_stands() {
    let read = |path: &str| fs::read_to_string(clone_dir().join(path)).expect("readable");
    let code = read("engine/src/journal/format.rs");
    let map: Vec<&str> = code
        .lines()
        .map(|line| line.trim_start_matches("//!").trim_start_matches(' '))
        .skip_while(|line| !line.starts_with("segment header"))
        .take_while(|line| *line != "```")
        .collect();
    assert!(map.len() > 10, "the map heads the module");
    let pages = read("engine/ARCHITECTURE.md");
    let there: Vec<&str> = pages.lines().map(|line| line.trim_start_matches(' ')).collect();
    assert!(there.windows(map.len()).any(|lines| lines == map), "ARCHITECTURE.md has another");
}

#[test]
fn every_script_stops_at_its_first_failure() {
    let mut places = Vec::new();
    for script in sources("scripts", &[""]) {
        if script.is_under("scripts/lib.sh") || script.path.contains('.') {
            continue;
        }
        let sources_lib = script.text.contains("/lib.sh\"");
        if !script.text.starts_with("#!/usr/bin/env bash\n") {
            places.push(format!("{}: begins with #!/usr/bin/env bash", script.path));
        }
        if !sources_lib && !script.text.contains("set -euo pipefail") {
            places.push(format!("{}: sources lib.sh or sets -euo pipefail", script.path));
        }
    }
    assert_none("scripts are strict", &places);
}

#[test]
fn every_suppression_of_the_race_detector_has_a_reason_of_its_own() {
    let mut places = Vec::new();
    for list in sources("scripts", &[".supp"]) {
        let mut before = "";
        for (number, line) in (1..).zip(list.text.lines()) {
            if line.contains(':') && !line.starts_with('#') && !before.starts_with("# ") {
                places.push(format!("{}:{number}: {line}", list.path));
            }
            before = line;
        }
    }
    assert_none("a suppression stands below the line that says why", &places);
}

#[test]
fn the_rules_find_what_they_look_for() {
    let paths: Vec<_> = imports("use crate::kernel::record::{A, B}; crate::units::X").collect();
    assert_eq!(paths, ["kernel::record", "units::X"]);
    assert!(is_below("kernel::record", "kernel"));
    assert!(!is_below("kernels", "kernel"));
    assert_eq!(code("let x = 1; // unsafe {"), "let x = 1; ");

    let mut text = String::from("use std::fs;\n");
    writeln!(text, "#[cfg(test)]\nmod tests {{ use std::time; }}").expect("a string");
    let source = Source { path: "engine/src/kernel/x.rs".into(), text };
    assert_eq!(source.lines_without_tests().count(), 1);
}
