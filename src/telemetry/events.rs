//! Facts worth telling, each with its own metric and log line.
//!
//! The request path names what happened; what is counted and logged of it is decided here.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use super::{access_log::unix_s, metrics};
use crate::routing::{
    breaker::{BreakerState, Transition},
    policy::Reason,
};

/// Lines a second on what reporters say: a hostile one must not fill the disk.
const REPORT_LINES_MAX: u64 = 20;
/// The second, and the lines in it.
static REPORT_LINES: [AtomicU64; 2] = [AtomicU64::new(0), AtomicU64::new(0)];

/// Whether there is room for one more line on reports. The metrics count all the same.
fn may_log() -> bool {
    let [second, lines] = &REPORT_LINES;
    let now = unix_s() as u64;
    if second.swap(now, Relaxed) != now {
        let before = lines.swap(0, Relaxed);
        if before > REPORT_LINES_MAX {
            let left_out = before - REPORT_LINES_MAX;
            tracing::warn!(left_out, "too many lines on reports in a second");
        }
    }
    lines.fetch_add(1, Relaxed) < REPORT_LINES_MAX
}

/// A worker was picked, or an answer of our own was chosen.
pub fn decided(reason: Reason) {
    if let Some((_, counter)) = metrics::DECISIONS_BY_REASON.iter().find(|(r, _)| *r == reason) {
        counter.inc();
    }
}

/// A request is tried once more.
pub fn retried(cause: &'static str) {
    metrics::RETRIES.with_label_values(&[cause]).inc();
}

/// An answer has ended; `worker` are the series of the one that gave it.
pub fn answered(
    worker: Option<&metrics::WorkerMetrics>,
    status: u16,
    endpoint: &'static str,
    took: Duration,
) {
    let responses = worker.map_or(&*metrics::OWN_RESPONSES, |worker| &worker.responses);
    responses[metrics::status_class(status)].inc();
    metrics::REQUEST_SECONDS.with_label_values(&[endpoint]).observe(took.as_secs_f64());
}

/// A breaker changed its state.
pub fn breaker_moved(worker: &str, transition: &Transition) {
    let to = state_name(transition.to);
    metrics::BREAKER_TRANSITIONS.with_label_values(&[worker, to]).inc();
    let cause = format!("{:?}", transition.cause);
    if transition.to == BreakerState::Open {
        tracing::warn!(worker, cause, "worker ejected by its breaker");
    } else {
        tracing::info!(worker, cause, to, "breaker of worker moved");
    }
}

/// Stable names of breaker states.
pub fn state_name(state: BreakerState) -> &'static str {
    match state {
        BreakerState::Closed => "closed",
        BreakerState::HalfOpen => "half-open",
        BreakerState::Open => "open",
    }
}

/// A health check changed its verdict.
pub fn health_changed(worker: &str, healthy: bool, why: &str) {
    if healthy {
        tracing::info!(worker, "worker is healthy");
    } else {
        tracing::warn!(worker, why, "worker fails its health check");
    }
}

/// A worker joined or left by its lease.
pub fn membership_changed(worker: &str, url: &str, joined: bool) {
    if joined {
        tracing::info!(worker, url, "worker joined by heartbeat");
    } else {
        tracing::warn!(worker, url, "worker left: its lease lapsed");
    }
}

/// The models of a worker are known, or others than before.
pub fn models_learned(worker: &str, models: &[String]) {
    tracing::info!(worker, models = models.join(","), "models of worker learned");
}

/// A report was handled.
pub fn reported(outcome: &'static str) {
    metrics::REPORTS.with_label_values(&[outcome]).inc();
}

/// A worker's reports show a new life of its engine.
pub fn epoch_changed(worker: &str, epoch: &str) {
    if may_log() {
        tracing::info!(worker, epoch, "new epoch of worker");
    }
}

/// Reports of a worker were lost on the way.
pub fn report_gap(worker: &str, expected: u64, seq: u64) {
    if may_log() {
        tracing::warn!(worker, expected, seq, "gap in the reports of worker: resync asked for");
    }
}

/// A sync has made our belief of a worker equal to its reporter's.
pub fn resynced(worker: &str, how: &str, stored: usize, removed: usize) {
    if may_log() {
        tracing::info!(worker, how, stored, removed, "worker synced");
    }
}

/// Published batches of a worker are lost, and its replay socket could not make them good.
pub fn publisher_gap(worker: &str, rank: u32, expected: u64, got: u64) {
    if may_log() {
        tracing::warn!(worker, rank, expected, got, "KV events of worker are lost for good");
    }
}

/// How far we believe what we know of a worker's cache has changed.
pub fn trust_changed(worker: &str, from: &str, to: &str) {
    if !may_log() {
        return;
    }
    if from == "exact" {
        tracing::warn!(worker, from, to, "trust in what is known of worker's cache changed");
    } else {
        tracing::info!(worker, from, to, "trust in what is known of worker's cache changed");
    }
}

/// All we believed of a worker's cache proved wrong, or may be.
pub fn holdings_dropped(worker: &str, blocks: usize, why: &str) {
    if blocks == 0 || !may_log() {
        return;
    }
    tracing::warn!(worker, blocks, why, "what was believed of worker's cache is dropped");
}

/// An answer told how much of its prompt was cached.
pub fn fed_back(outcome: &'static str) {
    metrics::FEEDBACK.with_label_values(&[outcome]).inc();
}

/// A request for a model in aligned mode was tokenized, or why not.
pub fn aligned(outcome: &'static str) {
    metrics::ALIGNED.with_label_values(&[outcome]).inc();
}

/// Whether we tokenize as a worker does.
pub fn parity(worker: &str, model: &str, same: Option<bool>, why: &str) {
    let state = same.map_or(-1, i64::from);
    metrics::PARITY_STATE.with_label_values(&[worker]).set(state);
    match same {
        Some(true) => tracing::info!(worker, model, "tokenizes as the worker does"),
        Some(false) => tracing::error!(
            worker,
            model,
            why,
            "the worker tokenizes otherwise: check models.NAME.tokenizer; text mode until it agrees"
        ),
        None => tracing::warn!(worker, model, why, "parity with the worker cannot be checked"),
    }
}
