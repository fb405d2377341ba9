//! `--tui` on a terminal: the whole tool, as a person has it.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};

use crate::server::{Say, Server};

const ENTERED: &str = "\x1b[?1049h";
const LEFT: &str = "\x1b[?1049l";

/// A run whose standard error is a terminal, and all that was shown on it.
struct Shown {
    child: Child,
    inside: File,
    seen: Arc<Mutex<Vec<u8>>>,
}

impl Shown {
    fn start(url: &str, seconds: &str) -> Self {
        let outside: OwnedFd = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&outside).unwrap();
        unlockpt(&outside).unwrap();
        let name = ptsname(&outside, Vec::new()).unwrap().to_str().unwrap().to_owned();
        let inside = File::options().read(true).write(true).open(name).unwrap();
        let size = Winsize { ws_row: 30, ws_col: 100, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&inside, size).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_onrush-load"))
            .args(["run", "--tui", "--json", "--max-own-lag", "60", "--rate", "50", "--target"])
            .args([url, "--seconds", seconds])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(inside.try_clone().unwrap())
            .spawn()
            .unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (all, mut outside) = (seen.clone(), File::from(outside));
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = outside.read(&mut bytes) {
                all.lock().unwrap().extend_from_slice(&bytes[..count]);
            }
        });
        Self { child, inside, seen }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.seen.lock().unwrap()).into_owned()
    }

    fn wait_for(&self, words: &str) {
        let begun = Instant::now();
        while !self.text().contains(words) {
            assert!(begun.elapsed() < Duration::from_secs(30), "no {words:?}: {:?}", self.text());
            thread::sleep(Duration::from_millis(10));
        }
    }

    fn interrupt(&self) {
        let pid = Pid::from_raw(self.child.id().cast_signed()).unwrap();
        kill_process(pid, Signal::INT).unwrap();
    }

    fn echoes(&self) -> bool {
        tcgetattr(&self.inside).unwrap().local_modes.contains(LocalModes::ECHO)
    }

    /// The end: exit code and standard output. The terminal is what it was.
    fn end(mut self) -> (i32, String) {
        let mut out = String::new();
        self.child.stdout.take().unwrap().read_to_string(&mut out).unwrap();
        let code = self.child.wait().unwrap().code().unwrap_or(-1);
        self.wait_for(LEFT);
        assert!(self.echoes());
        assert_eq!(self.text().matches(ENTERED).count(), 1);
        (code, out)
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_run_is_shown_and_the_report_comes_after_the_screen() {
    let server = Server::start(|_| Say::json(200, "{}"));
    let shown = Shown::start(&server.url(), "2");
    for words in ["answered", "p99.9", "column", "generator's", "phase"] {
        shown.wait_for(words);
    }
    assert!(!shown.echoes());
    let (code, out) = shown.end();
    assert_eq!(code, 0, "{out}");
    let summary: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(summary["requests"]["answered"], 100);
}

#[test]
fn an_interrupted_run_says_so_on_the_screen_and_leaves_it() {
    let server = Server::start(|_| Say::json(200, "{}"));
    let shown = Shown::start(&server.url(), "600");
    shown.wait_for("200");
    shown.interrupt();
    let (code, out) = shown.end();
    assert_eq!(code, 0, "{out}");
    assert!(out.contains("\"interrupted\": true"), "{out}");
}

#[test]
fn a_second_interrupt_leaves_the_terminal_too() {
    // Nothing is answered, so the first one waits.
    let server = Server::start(|_| Say::raw(b"", false));
    let shown = Shown::start(&server.url(), "600");
    shown.wait_for("planned");
    while server.served() == 0 {
        thread::sleep(Duration::from_millis(5));
    }
    shown.interrupt();
    shown.wait_for("waiting for what is out");
    shown.interrupt();
    let (code, out) = shown.end();
    assert_eq!((code, out.as_str()), (130, ""));
}

#[test]
fn a_target_that_is_not_there_is_said_after_the_screen() {
    let shown = Shown::start("http://127.0.0.1:9", "1");
    shown.wait_for("could be opened");
    let text = shown.text();
    assert!(text.find(LEFT).unwrap() < text.find("could be opened").unwrap(), "{text:?}");
    assert_eq!(shown.end().0, 1);
}

#[test]
fn where_there_is_no_terminal_there_are_lines() {
    let server = Server::start(|_| Say::json(200, "{}"));
    let args = ["run", "--tui", "--rate", "50", "--seconds", "1", "--target", &server.url()];
    let ran = crate::tool::tool(&args);
    assert!(ran.stderr.contains("1/1 s  planned 50/s"), "{}", ran.stderr);
    assert!(!ran.stderr.contains('\x1b') && !ran.stdout.contains('\x1b'));
}
