//! Every example of the help is a command that runs, or is at least understood.

use std::path::Path;
use std::process::Command;

use crate::mall::{Mall, START, open};
use crate::server::{Say, Server};
use crate::tool::tool;

/// The command lines of a help text, continued lines joined.
fn examples(help: &str) -> Vec<String> {
    let joined = help.replace("\\\n", " ");
    let lines = joined.lines().map(str::trim);
    lines.filter(|l| l.starts_with("onrush-load ")).map(str::to_owned).collect()
}

/// The words of a command line, as a shell takes them apart; up to a pipe, a comment and the like.
fn words(line: &str) -> Vec<String> {
    let script = "eval \"set -- $1\"; for w; do printf '%s\\n' \"$w\"; done";
    let end = line.find(['|', '>', '#']).unwrap_or(line.len());
    // A threshold has a `<` in quotes; no example has a pipe there.
    let output = Command::new("sh").args(["-c", script, "sh", &line[..end]]).output().unwrap();
    assert!(output.status.success(), "{line}");
    String::from_utf8(output.stdout).unwrap().lines().skip(1).map(str::to_owned).collect()
}

/// A folder with the files that examples name.
fn folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    write("users.csv", "id,city\n1,Bern\n");
    let log = "::1 - - [11/Nov/2025:00:00:00 +0000] \"GET /a HTTP/1.1\" 200 5\n";
    write("access.log", log);
    write("members.csv", &crate::mall::members(200_000, START));
    std::fs::create_dir_all(dir.path().join("data/db")).unwrap();
    let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config");
    std::os::unix::fs::symlink(config, dir.path().join("config")).unwrap();
    dir
}

#[test]
fn every_example_of_run_does_what_it_says() {
    let mut help = examples(&tool(&["run", "--help"]).stdout);
    assert!(help.len() >= 11, "{help:#?}");
    // There is no such shop; what HTTP/2 does has tests of its own.
    help.retain(|line| !line.contains("shop.example"));
    for line in help {
        let dir = folder();
        let mall = Mall::with_stock(&[("a", 200)]).with_store(&dir.path().join("data/db"));
        let (_server, mall) = open(mall);
        let server = Server::start(move |ask| match ask.path.split('/').nth(1) {
            Some("v1") => mall.lock().unwrap().handle(ask),
            _ => Say::json(200, "{}"),
        });
        let mut args = words(&line);
        let mut is_shortened = args.iter().any(|a| a == "--replay");
        for at in 1..args.len() {
            let value = match (&*args[at - 1], &*args[at]) {
                ("--rate", _) => "200".into(),
                ("--seconds", _) => {
                    is_shortened = true;
                    "0.4".into()
                }
                ("--sale", _) => "s1".into(),
                // The host and port alone.
                (_, url) if url.starts_with("http://") => {
                    let path = url[7..].find('/').map_or("", |at| &url[7 + at..]);
                    format!("{}{path}", server.url())
                }
                _ => continue,
            };
            args[at] = value;
        }
        let url = server.url();
        if !is_shortened {
            args.extend(["--seconds", "0.4"].map(Into::into));
        }
        if !args.contains(&"--target".into()) {
            args.extend(["--target", &url].map(Into::into));
        }
        let is_preset = !args[1].starts_with("--");
        if is_preset && !args.contains(&"--sale".into()) {
            args.extend(["--sale", "s1"].map(Into::into));
        }
        args.extend(["--max-own-lag", "60"].map(Into::into));
        let ran = Command::new(env!("CARGO_BIN_EXE_onrush-load"))
            .args(&args)
            .current_dir(dir.path())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&ran.stdout);
        // A threshold on a latency is no matter of the example.
        assert!(
            matches!(ran.status.code(), Some(0 | 99)),
            "{line}\n{args:?}: {:?} {text} {}",
            ran.status.code(),
            String::from_utf8_lossy(&ran.stderr)
        );
        assert!(text.contains("planned"), "{line}: {text}");
    }
}
