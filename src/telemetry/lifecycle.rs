//! Reloads, upgrades and snapshots: metrics and log lines.

use std::sync::LazyLock;

use prometheus::{IntCounterVec, IntGauge, register_int_counter_vec, register_int_gauge};

use super::access_log::unix_s;

macro_rules! metrics {
    ($($(#[$doc:meta])* $name:ident : $ty:ty = $make:expr;)*) => {
        $($(#[$doc])* static $name: LazyLock<$ty> =
            LazyLock::new(|| $make.expect("metric names are unique and valid"));)*

        fn force_all() {
            $(LazyLock::force(&$name);)*
        }
    };
}

metrics! {
    /// Reloads.
    RELOADS: IntCounterVec = register_int_counter_vec!(
        "warmroute_reloads_total", "Reloads of the configuration, by result", &["result"]);
    /// The last one.
    RELOAD_OK: IntGauge = register_int_gauge!(
        "warmroute_reload_ok", "Whether the last reload was taken: 0 while the file is refused");
    /// Since when.
    CONFIG_LOADED: IntGauge = register_int_gauge!(
        "warmroute_config_loaded_timestamp_seconds",
        "When the configuration in force was read, Unix time");
    /// Upgrades.
    UPGRADES: IntCounterVec = register_int_counter_vec!(
        "warmroute_upgrades_total", "Hand-overs to a new process, by result", &["result"]);
    /// This process.
    STARTED: IntGauge = register_int_gauge!(
        "warmroute_start_time_seconds", "When this process started, Unix time");
    /// State read at the start.
    RESTORED: IntGauge = register_int_gauge!(
        "warmroute_state_restored_workers",
        "Workers whose state this process took over, from its predecessor or a snapshot");
    /// Snapshots.
    SNAPSHOTS: IntCounterVec = register_int_counter_vec!(
        "warmroute_snapshots_total", "Snapshots of what workers hold, by result", &["result"]);
    /// Size of the last one.
    SNAPSHOT_BYTES: IntGauge = register_int_gauge!(
        "warmroute_snapshot_bytes", "Size of the last snapshot");
    /// Its time.
    SNAPSHOT_AT: IntGauge = register_int_gauge!(
        "warmroute_snapshot_timestamp_seconds", "When the last snapshot was written, Unix time");
}

/// The process starts with a configuration just read.
pub fn started() {
    force_all();
    for result in ["ok", "refused"] {
        let _ = RELOADS.with_label_values(&[result]);
    }
    for result in ["ok", "failed"] {
        let _ = UPGRADES.with_label_values(&[result]);
        let _ = SNAPSHOTS.with_label_values(&[result]);
    }
    RELOAD_OK.set(1);
    CONFIG_LOADED.set(unix_s() as i64);
    STARTED.set(unix_s() as i64);
}

/// A reload was taken.
pub fn reloaded(changed: &[String], needs_upgrade: &[&'static str]) {
    RELOADS.with_label_values(&["ok"]).inc();
    RELOAD_OK.set(1);
    CONFIG_LOADED.set(unix_s() as i64);
    let changed = changed.join(" ");
    tracing::info!(changed, "configuration reloaded");
    if !needs_upgrade.is_empty() {
        let keys = needs_upgrade.join(" ");
        tracing::warn!(keys, "these keys take effect at the next start: run `warmroute upgrade`");
    }
}

/// A reload was refused.
pub fn reload_refused(error: &dyn std::fmt::Display) {
    RELOADS.with_label_values(&["refused"]).inc();
    RELOAD_OK.set(0);
    tracing::error!(%error, "configuration not reloaded: what runs is unchanged");
}

/// A successor serves.
pub fn upgraded(pid: u32) {
    UPGRADES.with_label_values(&["ok"]).inc();
    tracing::info!(pid, "a new process has taken over");
}

/// No successor serves.
pub fn upgrade_failed(why: &str) {
    UPGRADES.with_label_values(&["failed"]).inc();
    tracing::error!(why, "upgrade failed: this process goes on");
}

/// We serve in the place of another process.
pub fn took_over() {
    tracing::info!("taken over: this process serves");
}

/// State of so many workers was taken over.
pub fn restored(workers: usize) {
    RESTORED.set(workers as i64);
}

/// A snapshot was written.
pub fn snapshot_written(bytes: u64) {
    SNAPSHOTS.with_label_values(&["ok"]).inc();
    SNAPSHOT_BYTES.set(bytes as i64);
    SNAPSHOT_AT.set(unix_s() as i64);
}

/// A snapshot could not be written.
pub fn snapshot_failed(why: &str) {
    SNAPSHOTS.with_label_values(&["failed"]).inc();
    tracing::warn!(why, "the snapshot of what workers hold was not written");
}
