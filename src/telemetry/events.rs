//! Facts worth telling, each with its own metric and log line.
//!
//! The request path names what happened; what is counted and logged of it is decided here.

use std::time::Duration;

use super::metrics;
use crate::routing::{
    breaker::{BreakerState, Transition},
    policy::Reason,
};

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

/// A worker's reports show a new life of its engine: what we believed of it is dropped.
pub fn epoch_changed(worker: &str, epoch: &str, blocks: usize) {
    tracing::info!(worker, epoch, blocks, "new epoch of worker: its prefix index is dropped");
}

/// Reports of a worker were lost on the way.
pub fn report_gap(worker: &str, expected: u64, seq: u64) {
    tracing::warn!(worker, expected, seq, "gap in the reports of worker: resync asked for");
}
