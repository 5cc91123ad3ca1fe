//! A child process that never outlives its handle.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

/// How often a child is asked whether it has ended.
const POLL_EVERY: Duration = Duration::from_millis(20);

/// A running child. Dropping it kills it; `stop` asks first.
#[derive(Debug)]
pub struct ChildProcess {
    child: Child,
    log: PathBuf,
}

impl ChildProcess {
    /// Starts `program`; what it prints goes to the file `log`, so that no pipe can fill up.
    ///
    /// # Errors
    /// The program cannot be started or its log not be written.
    pub fn start<S: AsRef<OsStr>>(
        program: impl AsRef<OsStr>,
        arguments: impl IntoIterator<Item = S>,
        log: &Path,
    ) -> io::Result<Self> {
        let output = File::create(log)?;
        let child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()?;
        Ok(Self { child, log: log.to_owned() })
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Its exit status, if it has ended.
    ///
    /// # Errors
    /// The system does not say.
    pub fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }

    /// The last `line_count` lines that say something, of what it printed.
    pub fn last_lines(&self, line_count: usize) -> String {
        let log = std::fs::read(&self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().filter(|line| !line.trim().is_empty()).collect();
        lines[lines.len().saturating_sub(line_count)..].join("\n")
    }

    /// Sends SIGTERM and waits; kills it if it is still there after `patience`.
    ///
    /// # Errors
    /// The system cannot end it.
    pub fn stop(mut self, patience: Duration) -> io::Result<ExitStatus> {
        self.terminate();
        let polls = patience.as_millis() / POLL_EVERY.as_millis();
        for _ in 0..polls {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            std::thread::sleep(POLL_EVERY);
        }
        self.child.kill()?;
        self.child.wait()
    }

    fn terminate(&self) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        if let Some(pid) = pid {
            // It may have ended already; it is not reaped yet, so the id is still its own.
            let _ = kill_process(pid, Signal::TERM);
        }
    }
}

impl Drop for ChildProcess {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    fn shell(name: &str, script: &str) -> ChildProcess {
        let log = std::env::temp_dir().join(format!("warmroute-{}-{name}", std::process::id()));
        ChildProcess::start("/bin/sh", ["-c", script], &log).expect("a shell")
    }

    fn wait_for_line(child: &ChildProcess, line: &str) {
        for _ in 0..500 {
            if child.last_lines(1) == line {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("no {line:?} in {:?}", child.last_lines(5));
    }

    #[test]
    fn stop_asks_politely() {
        let child =
            shell("polite", "trap 'echo bye; exit 3' TERM; echo up; while :; do sleep 0.01; done");
        wait_for_line(&child, "up");
        let log = child.log.clone();
        assert_eq!(child.stop(Duration::from_secs(5)).expect("it ends").code(), Some(3));
        assert!(std::fs::read_to_string(&log).expect("its log").ends_with("bye\n"));
        drop(std::fs::remove_file(log));
    }

    #[test]
    fn stop_kills_what_does_not_listen() {
        let child = shell("deaf", "trap '' TERM; echo up; while :; do sleep 0.01; done");
        wait_for_line(&child, "up");
        drop(std::fs::remove_file(&child.log));
        let status = child.stop(Duration::from_millis(100)).expect("it ends");
        assert_eq!(status.signal(), Some(9));
    }

    #[test]
    fn keeps_what_a_failed_child_said() {
        let mut child = shell("failed", "echo one >&2; echo two >&2; exit 7");
        wait_for_line(&child, "two");
        while child.try_wait().expect("it is ours").is_none() {
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(child.last_lines(9), "one\ntwo");
        drop(std::fs::remove_file(&child.log));
    }
}
