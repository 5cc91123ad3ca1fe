//! The file that a replay leaves and reports are made of.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{Any, pooled::Pooled, summary::Run};
use crate::trace::Trace;

/// What the file says it is. Another number means another meaning of some field.
pub const FORMAT: &str = "warmroute-replay/1";

/// All of a replay.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Results {
    /// `FORMAT`.
    pub format: String,
    /// Of this program.
    pub version: String,
    /// The commit that the working folder was at, `+` if it was changed since; `None` if unknown.
    pub commit: Option<String>,
    /// When it began, seconds since 1970.
    pub began_unix_s: u64,
    /// Where it ran.
    pub machine: Machine,
    /// What the report calls it.
    pub label: Option<String>,
    /// Whether the router was built with optimization; `None` if it is not ours.
    pub is_release: Option<bool>,
    /// Every option.
    pub settings: serde_json::Value,
    /// What was played, by the first seed at the first point.
    pub trace: TraceFacts,
    /// In the order of the runs.
    pub runs: Vec<Run>,
    /// Seeds taken together, by point and policy.
    pub pooled: Vec<Pooled>,
}

/// Where it ran.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// Cores we may use.
    pub cores: usize,
    /// Operating system and architecture.
    pub system: String,
    /// As /proc/cpuinfo names it.
    pub processor: Option<String>,
}

/// What a trace is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TraceFacts {
    /// Its name.
    pub name: String,
    /// Requests.
    pub requests: usize,
    /// Conversations.
    pub sessions: usize,
    /// Prompt tokens by its own count.
    pub prompt_tokens: u64,
    /// Share of these that an endless cache common to all workers would hold.
    pub hit_bound: f64,
    /// Arrival of the last request, seconds.
    pub lasts_s: f64,
}

impl TraceFacts {
    /// Of a trace.
    pub fn of(trace: &Trace) -> Self {
        Self {
            name: trace.name.clone(),
            requests: trace.requests.len(),
            sessions: trace.session_count(),
            prompt_tokens: trace.requests.iter().map(|r| u64::from(r.prompt_tokens)).sum(),
            hit_bound: trace.hit_bound(),
            lasts_s: trace.requests.last().map_or(0.0, |request| request.t),
        }
    }
}

impl Machine {
    /// This one.
    pub fn here() -> Self {
        let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = info.lines().find_map(|line| line.strip_prefix("model name"));
        let processor =
            model.and_then(|line| line.split_once(':')).map(|(_, name)| name.trim().to_owned());
        Self {
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            system: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
            processor,
        }
    }
}

/// The commit of the working folder, with a `+` if files of the repository were changed.
pub fn commit() -> Option<String> {
    let git = |arguments: &[&str]| {
        let output = std::process::Command::new("git").args(arguments).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let commit = git(&["rev-parse", "--short=12", "HEAD"])?;
    let changed = git(&["status", "--porcelain", "--untracked-files=no"])?;
    Some(if changed.is_empty() { commit } else { commit + "+" })
}

impl Results {
    /// Reads a file that a replay wrote.
    ///
    /// # Errors
    /// It is none, or of another format.
    pub fn read(path: &Path) -> Result<Self, Any> {
        #[derive(Deserialize)]
        struct Format {
            format: String,
        }
        let shown = path.display();
        let bytes = std::fs::read(path).map_err(|error| format!("{shown}: {error}"))?;
        let bad = |error: serde_json::Error| format!("{shown}: no results of a replay: {error}");
        let found: Format = serde_json::from_slice(&bytes).map_err(bad)?;
        if found.format != FORMAT {
            let text = format!("{shown}: format {}, this program reads {FORMAT}", found.format);
            return Err(text.into());
        }
        Ok(serde_json::from_slice(&bytes).map_err(bad)?)
    }

    /// Writes it.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), Any> {
        let text = serde_json::to_string_pretty(self)?;
        std::fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()).into())
    }
}
