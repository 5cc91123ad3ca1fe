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
    if let Some((_, seconds)) =
        metrics::REQUEST_SECONDS_BY_ENDPOINT.iter().find(|(name, _)| *name == endpoint)
    {
        seconds.observe(took.as_secs_f64());
    }
}

/// A breaker changed its state; `series` are its worker's.
pub fn breaker_moved(worker: &str, series: &metrics::WorkerMetrics, transition: &Transition) {
    let to = state_name(transition.to);
    series.breaker_moved(to);
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

/// A worker is in the fleet from now on.
pub fn joined(worker: &str, url: &str, origin: &str) {
    tracing::info!(worker, url, origin, "worker joined");
}

/// A worker is no longer in the fleet; its requests finish.
pub fn left(worker: &str, url: &str, origin: &str, why: &str) {
    tracing::warn!(worker, url, origin, why, "worker left");
}

/// A worker that stays in the fleet has other settings.
pub fn settings_changed(worker: &str, origin: &str) {
    tracing::info!(worker, origin, "settings of worker changed");
}

/// A worker does not join, as another origin's has its id or its address.
pub fn not_admitted(worker: &str, url: &str, origin: &str, taken_by: &str) {
    tracing::warn!(worker, url, origin, taken_by, "worker skipped: its id or address is taken");
}

/// A worker gets no new requests, or gets them again.
pub fn drained(worker: &str, drained: bool) {
    if drained {
        tracing::info!(worker, "worker drained: it gets no new requests");
    } else {
        tracing::info!(worker, "worker undrained");
    }
}

/// A removed worker may come back.
pub fn removal_lifted(worker: &str, why: &str) {
    tracing::info!(worker, why, "removed worker may join again");
}

/// A worker gets less than its weight for a while.
pub fn starts_slowly(worker: &str, over: Duration) {
    tracing::debug!(worker, over_s = over.as_secs(), "worker starts slowly");
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
    if let Some(at) = metrics::FEEDBACK_OUTCOMES.iter().position(|name| *name == outcome) {
        metrics::FEEDBACK_BY_OUTCOME[at].inc();
    }
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

/// The broker of the routers is connected now, or is lost.
pub fn peers_connected(connected: bool, subject: &str) {
    metrics::PEERS_CONNECTED.set(i64::from(connected));
    if connected {
        tracing::info!(subject, "broker of the routers is connected");
    } else {
        tracing::warn!(subject, "broker of the routers is lost: this router goes on alone");
    }
}

/// An attempt to reach the broker failed. Told once as long as it fails in one way, which is kept in
/// `before`.
pub fn peers_unreachable(why: &str, before: &mut String) {
    if before != why {
        why.clone_into(before);
        tracing::warn!(why, "broker of the routers cannot be reached: tried again and again");
    }
}

/// Another router is heard that was not.
pub fn peer_heard(name: &str) {
    tracing::info!(peer = name, "another router is heard");
}

/// Another router is heard no more.
pub fn peer_silent(name: &str) {
    tracing::warn!(peer = name, "another router has fallen silent");
}

/// A message on the routers' subject is not taken; `first` of its kind.
pub fn peer_refused(reason: &'static str, first: bool, detail: &str) {
    metrics::PEERS_REFUSED.with_label_values(&[reason]).inc();
    if first {
        tracing::warn!(
            reason,
            detail,
            "a message on the routers' subject is not taken, nor will others like it be"
        );
    }
}
