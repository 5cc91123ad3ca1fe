//! Process logs: to stderr, as text or JSON, filtered by level.

use std::sync::OnceLock;

use tracing_subscriber::{EnvFilter, fmt, fmt::SubscriberBuilder, reload};

use crate::config::LogConfig;

/// Puts another filter in the place of the present one; false when that fails.
type SetFilter = Box<dyn Fn(EnvFilter) -> bool + Send + Sync>;

static SET_FILTER: OnceLock<SetFilter> = OnceLock::new();

/// Starts logging; `RUST_LOG` overrides `log.level`. A second call does nothing.
pub fn start(config: &LogConfig) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| filter_of(config));
    let builder = fmt().with_writer(std::io::stderr).with_ansi(false);
    // `init` also routes the `log` records of libraries here.
    let _ = if config.json {
        let builder = builder.json().with_env_filter(filter).with_filter_reloading();
        keep(builder.reload_handle());
        builder.try_init()
    } else {
        let builder: SubscriberBuilder<_, _, _, _> =
            builder.with_env_filter(filter).with_filter_reloading();
        keep(builder.reload_handle());
        builder.try_init()
    };
}

/// Filters by another level from now on, unless `RUST_LOG` says how.
pub fn set_level(config: &LogConfig) {
    if std::env::var_os(EnvFilter::DEFAULT_ENV).is_some() {
        return;
    }
    if !SET_FILTER.get().is_some_and(|set| set(filter_of(config))) {
        tracing::error!("the log level cannot be changed");
    }
}

fn keep<S: 'static>(handle: reload::Handle<EnvFilter, S>) {
    let _ = SET_FILTER.set(Box::new(move |filter| handle.reload(filter).is_ok()));
}

fn filter_of(config: &LogConfig) -> EnvFilter {
    let level = config.level.to_string().to_lowercase();
    // Pingora logs every aborted connection; only its errors are for operators.
    let quiet = "pingora_core=error,pingora_proxy=error,h2=error,async_nats=error";
    EnvFilter::new(format!("{level},{quiet}"))
}
