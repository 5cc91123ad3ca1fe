//! Process logs: to stderr, as text or JSON, filtered by level.

use tracing_subscriber::{EnvFilter, fmt};

use crate::config::LogConfig;

/// Starts logging; `RUST_LOG` overrides `log.level`. A second call does nothing.
pub fn start(config: &LogConfig) {
    let level = config.level.to_string().to_lowercase();
    // Pingora logs every aborted connection; only its errors are for operators.
    let fallback = format!("{level},pingora_core=error,pingora_proxy=error,h2=error");
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(fallback));
    let builder = fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false);
    // `init` also routes the `log` records of libraries here.
    let _ = if config.json { builder.json().try_init() } else { builder.try_init() };
}
