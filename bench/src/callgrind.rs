//! A proxy under Valgrind's callgrind, and the instructions it executes in user space.

use std::{
    io::Error,
    path::{Path, PathBuf},
    process::Command,
};

use crate::process::Running;

/// A program that runs under callgrind.
pub struct Counted {
    running: Running,
    /// What the names of its profiles begin with.
    out: PathBuf,
    dumps: usize,
}

impl Counted {
    /// Starts `command`; its profiles go to files in `folder` that begin with `name`.
    ///
    /// # Errors
    /// When Valgrind is not installed or cannot be started.
    pub fn start(command: &Command, folder: &Path, name: &str) -> Result<Self, Error> {
        let version = Command::new("valgrind").arg("--version").output();
        if !version.is_ok_and(|version| version.status.success()) {
            return Err(Error::other("valgrind is missing: apt-get install valgrind"));
        }
        let out = folder.join(name);
        let mut counted = Command::new("valgrind");
        counted
            .args(["--tool=callgrind", "--quiet", "--error-limit=no"])
            .arg(format!("--callgrind-out-file={}", out.display()))
            .arg(command.get_program())
            .args(command.get_args());
        Ok(Self { running: Running::start(counted)?, out, dumps: 0 })
    }

    /// Forgets what was counted.
    ///
    /// # Errors
    /// When callgrind does not take the order.
    pub fn zero(&self) -> Result<(), Error> {
        self.control("--zero", None)
    }

    /// Instructions since the last `zero` or `dump`, which is written out as the profile `name`.
    ///
    /// # Errors
    /// When callgrind does not take the order, or what it writes has no total.
    pub fn dump(&mut self, name: &str) -> Result<u64, Error> {
        self.control("--dump", Some(name))?;
        self.dumps += 1;
        let written = PathBuf::from(format!("{}.{}", self.out.display(), self.dumps));
        let text = std::fs::read_to_string(&written)?;
        let totals = text.lines().rev().find_map(|line| line.strip_prefix("totals: "));
        let total = totals.and_then(|total| total.trim().parse().ok());
        std::fs::rename(written, format!("{}.{name}", self.out.display()))?;
        total.ok_or_else(|| Error::other("a profile of callgrind without totals"))
    }

    fn control(&self, order: &str, hint: Option<&str>) -> Result<(), Error> {
        let mut command = Command::new("callgrind_control");
        match hint {
            Some(hint) => command.arg(format!("{order}={hint}")),
            None => command.arg(order),
        };
        let output = command.arg(self.running.id().to_string()).output()?;
        let said = String::from_utf8_lossy(&output.stdout);
        if output.status.success() && said.contains("OK.") {
            return Ok(());
        }
        let why = String::from_utf8_lossy(&output.stderr);
        Err(Error::other(format!("callgrind_control {order}: {} {}", said.trim(), why.trim())))
    }
}
