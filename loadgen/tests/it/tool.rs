//! Runs the command under test.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::LazyLock;
use std::thread::{self, JoinHandle};

use serde_json::Value;

/// What came of a run: exit code, summary, standard output and error.
pub struct Ran {
    pub code: i32,
    pub summary: Value,
    pub stdout: String,
    pub stderr: String,
}

fn command(args: &[&str]) -> Command {
    let mut c = Command::new(env!("CARGO_BIN_EXE_onrush-load"));
    c.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    c
}

fn ran(output: &Output) -> Ran {
    let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
    let stdout = text(&output.stdout);
    Ran {
        code: output.status.code().unwrap_or(-1),
        summary: serde_json::from_str(&stdout).unwrap_or(Value::Null),
        stdout,
        stderr: text(&output.stderr),
    }
}

/// Any command line, to its end.
pub fn tool(args: &[&str]) -> Ran {
    ran(&command(args).output().unwrap())
}

/// The same, behind all other tests: it takes every bit of processor that it gets.
pub fn tool_aside(args: &[&str]) -> Ran {
    let tool = env!("CARGO_BIN_EXE_onrush-load");
    ran(&Command::new("nice").args(["-n", "19", tool]).args(args).output().unwrap())
}

/// `run --target URL --json` and more.
pub fn run(url: &str, args: &[&str]) -> Ran {
    let ran = tool(&run_args(url, args));
    assert!(ran.summary.is_object(), "no summary: {} {}", ran.stdout, ran.stderr);
    conforms(&ran.summary);
    ran
}

/// Every summary that a test makes is one as the schema has it.
fn conforms(summary: &Value) {
    static SCHEMA: LazyLock<jsonschema::Validator> = LazyLock::new(|| {
        let schema = serde_json::from_str(include_str!("../../summary.schema.json")).unwrap();
        jsonschema::validator_for(&schema).unwrap()
    });
    let errors: Vec<_> =
        SCHEMA.iter_errors(summary).map(|e| format!("{e} at {}", e.instance_path())).collect();
    assert!(errors.is_empty(), "{errors:#?}");
}

/// The same, while the test does something else.
pub fn run_aside(url: &str, args: &[&str]) -> JoinHandle<Ran> {
    let args: Vec<String> = run_args(url, args).into_iter().map(Into::into).collect();
    thread::spawn(move || {
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let ran = tool(&args);
        conforms(&ran.summary);
        ran
    })
}

fn run_args<'a>(url: &'a str, args: &[&'a str]) -> Vec<&'a str> {
    // Tests run on machines that do other things: how late this process is, is not their matter.
    let mut all = vec!["run", "--json", "--quiet", "--max-own-lag", "60", "--target", url];
    all.extend_from_slice(args);
    all
}

/// A number in the summary, by its JSON pointer.
pub fn number(ran: &Ran, pointer: &str) -> f64 {
    let value = ran.summary.pointer(pointer);
    value.and_then(Value::as_f64).unwrap_or_else(|| panic!("{pointer} is {value:?}"))
}

/// The entry of an outcome, or null.
pub fn outcome<'a>(ran: &'a Ran, name: &str) -> &'a Value {
    let all = ran.summary["outcomes"].as_array().unwrap();
    all.iter().find(|o| o["outcome"] == name).unwrap_or(&Value::Null)
}

/// The lines of JSON in a file.
pub fn json_lines(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}
