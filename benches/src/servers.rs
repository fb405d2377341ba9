//! Servers under measurement: child processes, pinned, with their CPU time read from the kernel.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// A server that is ready.
pub struct Server {
    child: Child,
    /// As its ready file says, in its order.
    pub addresses: Vec<SocketAddr>,
}

/// Where cargo put the other binaries of this build.
pub fn binary(name: &str) -> PathBuf {
    let own = std::env::current_exe().expect("the system knows our path");
    own.parent().expect("a binary lies in a folder").join(name)
}

impl Server {
    /// Starts `command` pinned to `core` and waits for its ready file.
    ///
    /// Errors: it ended before, or was not ready within five minutes.
    pub fn start(command: &Command, core: usize, ready_file: &Path) -> io::Result<Self> {
        let program = command.get_program().to_owned();
        let arguments: Vec<_> = command.get_args().map(ToOwned::to_owned).collect();
        let environment: Vec<_> = command
            .get_envs()
            .filter_map(|(key, value)| Some((key.to_owned(), value?.to_owned())))
            .collect();
        let mut command = Command::new("taskset");
        command.arg("-c").arg(core.to_string()).arg(program).args(arguments).envs(environment);
        Self::start_anywhere(command, ready_file)
    }

    /// The same, on any core.
    pub fn start_anywhere(mut command: Command, ready_file: &Path) -> io::Result<Self> {
        let _ = std::fs::remove_file(ready_file);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn()?;
        let mut server = Self { child, addresses: Vec::new() };
        for _ in 0..60_000 {
            if let Ok(text) = std::fs::read_to_string(ready_file) {
                let parsed = text.lines().map(str::parse).collect::<Result<Vec<_>, _>>();
                server.addresses = parsed.map_err(io::Error::other)?;
                return Ok(server);
            }
            if let Some(status) = server.child.try_wait()? {
                return Err(io::Error::other(format!("the server ended at its start: {status}")));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Err(io::ErrorKind::TimedOut.into())
    }

    /// CPU time of all its threads so far.
    pub fn cpu(&self) -> io::Result<Duration> {
        let mut total = Duration::ZERO;
        for task in std::fs::read_dir(format!("/proc/{}/task", self.child.id()))? {
            // A thread may end while we look.
            let Ok(text) = std::fs::read_to_string(task?.path().join("schedstat")) else {
                continue;
            };
            let ns = text.split_whitespace().next().and_then(|ns| ns.parse().ok()).unwrap_or(0);
            total += Duration::from_nanos(ns);
        }
        Ok(total)
    }

    /// Resident bytes.
    pub fn resident(&self) -> io::Result<u64> {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|l| l.split_whitespace().next()).and_then(|n| n.parse().ok());
        Ok(kib.unwrap_or(0u64) * 1024)
    }

    /// SIGTERM, and waits for the end.
    pub fn terminate(mut self) -> io::Result<()> {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        let status = self.child.wait()?;
        if status.success() { Ok(()) } else { Err(io::Error::other(status.to_string())) }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The middle one of the rounds' ratios: what drifts from round to round, the machine or a table
/// that grows, is in both of a round.
pub fn median_ratio(of: &[f64], to: &[f64]) -> f64 {
    median(&of.iter().zip(to).map(|(of, to)| of / to).collect::<Vec<_>>())
}

/// The middle value, of at least one.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}
