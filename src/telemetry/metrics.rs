//! Every metric, by name. docs/metrics.md says what they mean and when to alarm.
//!
//! Labels come from closed enums or are worker ids, whose number is bounded.

use std::sync::LazyLock;

use crate::routing::Reason;
use prometheus::{
    Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, histogram_opts,
    register_histogram, register_histogram_vec, register_int_counter, register_int_counter_vec,
    register_int_gauge, register_int_gauge_vec,
};

/// Seconds from a cached first token to a cold prefill of a minute and more.
const LATENCY_BUCKETS: [f64; 18] = [
    0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5, 2.5, 5.0, 10.0, 30.0,
    60.0, 300.0,
];
/// Gaps between two tokens.
const GAP_BUCKETS: [f64; 13] =
    [0.001, 0.0025, 0.005, 0.01, 0.02, 0.035, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0];
/// Our own work on a request.
const DECISION_BUCKETS: [f64; 12] = [
    0.000_001,
    0.000_002_5,
    0.000_005,
    0.000_01,
    0.000_025,
    0.000_05,
    0.000_1,
    0.000_25,
    0.000_5,
    0.001,
    0.0025,
    0.01,
];

macro_rules! metrics {
    ($($(#[$doc:meta])* $name:ident : $ty:ty = $make:expr;)*) => {
        $($(#[$doc])* pub static $name: LazyLock<$ty> =
            LazyLock::new(|| $make.expect("metric names are unique and valid"));)*

        /// Makes every metric exist, so that a scrape shows zeros rather than gaps.
        pub fn register_all() {
            $(LazyLock::force(&$name);)*
            LazyLock::force(&OWN_RESPONSES);
            LazyLock::force(&DECISIONS_BY_REASON);
        }
    };
}

metrics! {
    /// Decisions and own answers.
    DECISIONS: IntCounterVec = register_int_counter_vec!(
        "warmroute_decisions_total", "Requests by the reason of their routing", &["reason"]);
    /// Time of a decision.
    DECISION_SECONDS: Histogram = register_histogram!(histogram_opts!(
        "warmroute_decision_seconds", "Time to match a prompt and pick a worker",
        DECISION_BUCKETS.to_vec()));
    /// Blocks matched.
    MATCHED_BLOCKS: IntCounterVec = register_int_counter_vec!(
        "warmroute_matched_blocks_total", "Prompt blocks the picked worker was believed to hold",
        &["worker"]);
    /// Blocks asked for.
    PROMPT_BLOCKS: IntCounterVec = register_int_counter_vec!(
        "warmroute_prompt_blocks_total", "Prompt blocks of the requests sent to a worker",
        &["worker"]);
    /// Time to first content.
    TTFT_SECONDS: HistogramVec = register_histogram_vec!(histogram_opts!(
        "warmroute_ttft_seconds",
        "Time from a request's arrival to the first content event of its stream",
        LATENCY_BUCKETS.to_vec()), &["worker"]);
    /// Gap between chunks of a stream.
    INTER_TOKEN_SECONDS: HistogramVec = register_histogram_vec!(histogram_opts!(
        "warmroute_inter_token_seconds", "Gap between two chunks of a stream after its first content",
        GAP_BUCKETS.to_vec()), &["worker"]);
    /// Whole request.
    REQUEST_SECONDS: HistogramVec = register_histogram_vec!(histogram_opts!(
        "warmroute_request_seconds", "Time from a request's arrival to the end of its answer",
        LATENCY_BUCKETS.to_vec()), &["endpoint"]);
    /// Answers.
    RESPONSES: IntCounterVec = register_int_counter_vec!(
        "warmroute_responses_total",
        "Answers by worker (none = our own) and status class (gone = client left first)",
        &["worker", "class"]);
    /// Requests in flight.
    INFLIGHT: IntGaugeVec = register_int_gauge_vec!(
        "warmroute_inflight", "Requests sent to a worker and not finished", &["worker"]);
    /// Prefill work in flight.
    QUEUED_TOKENS: IntGaugeVec = register_int_gauge_vec!(
        "warmroute_queued_tokens",
        "Estimated uncached prompt tokens sent to a worker and not yet answered", &["worker"]);
    /// Decodes in flight.
    DECODES: IntGaugeVec = register_int_gauge_vec!(
        "warmroute_decodes", "Requests of a worker that have begun to answer", &["worker"]);
    /// Index memory.
    INDEX_BYTES: IntGaugeVec = register_int_gauge_vec!(
        "warmroute_index_bytes", "Memory of a worker's prefix index", &["worker"]);
    /// Index size.
    INDEX_BLOCKS: IntGaugeVec = register_int_gauge_vec!(
        "warmroute_index_blocks", "Blocks in a worker's prefix index", &["worker"]);
    /// Index growth.
    INDEX_INSERTED: IntCounterVec = register_int_counter_vec!(
        "warmroute_index_inserted_blocks_total", "Blocks put into a worker's prefix index",
        &["worker"]);
    /// Index trims.
    INDEX_TRIMMED: IntCounterVec = register_int_counter_vec!(
        "warmroute_index_trimmed_blocks_total",
        "Blocks cut from a worker's prefix index to keep it within its bound", &["worker"]);
    /// Evictions.
    EVICTIONS_APPLIED: IntCounterVec = register_int_counter_vec!(
        "warmroute_evictions_applied_total", "Engine blocks a worker reported as removed",
        &["worker"]);
    /// Stores.
    STORES_APPLIED: IntCounterVec = register_int_counter_vec!(
        "warmroute_stores_applied_total", "Engine blocks a worker reported as stored", &["worker"]);
    /// Stores we could not place.
    STORES_REJECTED: IntCounterVec = register_int_counter_vec!(
        "warmroute_stores_rejected_total",
        "Reported engine blocks that could not be placed (unknown parent, bound reached)",
        &["worker"]);
    /// Reports.
    REPORTS: IntCounterVec = register_int_counter_vec!(
        "warmroute_reports_total", "Reports by what became of them", &["outcome"]);
    /// Report lag.
    REPORT_LAG_SECONDS: Histogram = register_histogram!(histogram_opts!(
        "warmroute_report_lag_seconds",
        "Time from a report's arrival (or its own `ts`, when given) until it is applied",
        LATENCY_BUCKETS.to_vec()));
    /// Silence of a reporter.
    REPORT_AGE_SECONDS: IntGaugeVec = register_int_gauge_vec!(
        "warmroute_report_age_seconds", "Time since a worker's last report; -1 = it never reported",
        &["worker"]);
    /// Breaker.
    BREAKER_STATE: IntGaugeVec = register_int_gauge_vec!(
        "warmroute_breaker_state", "0 closed, 1 half open, 2 open", &["worker"]);
    /// Breaker transitions.
    BREAKER_TRANSITIONS: IntCounterVec = register_int_counter_vec!(
        "warmroute_breaker_transitions_total", "State changes of a worker's breaker",
        &["worker", "to"]);
    /// Health.
    WORKER_HEALTHY: IntGaugeVec = register_int_gauge_vec!(
        "warmroute_worker_healthy", "1 while a worker passes its health checks", &["worker"]);
    /// Fleet size.
    WORKERS: IntGauge = register_int_gauge!("warmroute_workers", "Workers in the fleet");
    /// Retries.
    RETRIES: IntCounterVec = register_int_counter_vec!(
        "warmroute_retries_total", "Further attempts of a request", &["cause"]);
    /// Bodies in memory.
    BUFFERED_BYTES: IntGauge = register_int_gauge!(
        "warmroute_buffered_bytes", "Request body bytes held in memory");
    /// Lost log lines.
    ACCESS_LOG_DROPPED: IntCounter = register_int_counter!(
        "warmroute_access_log_dropped_total", "Access log lines lost because stdout did not keep up");
    /// Version.
    BUILD_INFO: IntGaugeVec = register_int_gauge_vec!(
        "warmroute_build_info", "Always 1; the version is in the label", &["version"]);
}

/// One worker's series, looked up once.
#[derive(Debug)]
#[expect(missing_docs, reason = "each is described where it is registered")]
pub struct WorkerMetrics {
    pub matched_blocks: IntCounter,
    pub prompt_blocks: IntCounter,
    pub ttft: Histogram,
    pub inter_token: Histogram,
    pub inflight: IntGauge,
    pub queued_tokens: IntGauge,
    pub decodes: IntGauge,
    pub evictions: IntCounter,
    pub stores: IntCounter,
    pub stores_rejected: IntCounter,
    pub breaker_state: IntGauge,
    pub healthy: IntGauge,
    /// By place in `STATUS_CLASSES`.
    pub responses: [IntCounter; 6],
}

impl WorkerMetrics {
    /// The series of the worker with this id.
    pub fn of(worker: &str) -> Self {
        let label = &[worker];
        Self {
            matched_blocks: MATCHED_BLOCKS.with_label_values(label),
            prompt_blocks: PROMPT_BLOCKS.with_label_values(label),
            ttft: TTFT_SECONDS.with_label_values(label),
            inter_token: INTER_TOKEN_SECONDS.with_label_values(label),
            inflight: INFLIGHT.with_label_values(label),
            queued_tokens: QUEUED_TOKENS.with_label_values(label),
            decodes: DECODES.with_label_values(label),
            evictions: EVICTIONS_APPLIED.with_label_values(label),
            stores: STORES_APPLIED.with_label_values(label),
            stores_rejected: STORES_REJECTED.with_label_values(label),
            breaker_state: BREAKER_STATE.with_label_values(label),
            healthy: WORKER_HEALTHY.with_label_values(label),
            responses: STATUS_CLASSES.map(|class| RESPONSES.with_label_values(&[worker, class])),
        }
    }
}

/// Forgets the series of a worker that has left, so that churn does not grow the page for ever.
/// The counters `warmroute_responses_total` and `_transitions_total` go with it.
pub fn forget_worker(worker: &str) {
    let label = &[worker];
    for vec in [&MATCHED_BLOCKS, &PROMPT_BLOCKS, &EVICTIONS_APPLIED, &STORES_APPLIED] {
        let _ = vec.remove_label_values(label);
    }
    for vec in [&STORES_REJECTED, &INDEX_INSERTED, &INDEX_TRIMMED] {
        let _ = vec.remove_label_values(label);
    }
    for vec in [&INFLIGHT, &QUEUED_TOKENS, &DECODES, &INDEX_BYTES, &INDEX_BLOCKS] {
        let _ = vec.remove_label_values(label);
    }
    for vec in [&BREAKER_STATE, &WORKER_HEALTHY, &REPORT_AGE_SECONDS] {
        let _ = vec.remove_label_values(label);
    }
    for vec in [&TTFT_SECONDS, &INTER_TOKEN_SECONDS] {
        let _ = vec.remove_label_values(label);
    }
    for class in STATUS_CLASSES {
        let _ = RESPONSES.remove_label_values(&[worker, class]);
    }
    for to in ["closed", "half-open", "open"] {
        let _ = BREAKER_TRANSITIONS.remove_label_values(&[worker, to]);
    }
}

/// Values of the label `class`.
pub const STATUS_CLASSES: [&str; 6] = ["1xx", "2xx", "3xx", "4xx", "5xx", "gone"];

/// Place in `STATUS_CLASSES` of a status; 499 stands for a client that left before it got one.
pub fn status_class(status: u16) -> usize {
    match status {
        100..=199 => 0,
        200..=299 => 1,
        300..=399 => 2,
        400..=498 => 3,
        499 => 5,
        _ => 4,
    }
}

/// Answers that no worker gave.
pub static OWN_RESPONSES: LazyLock<[IntCounter; 6]> =
    LazyLock::new(|| STATUS_CLASSES.map(|class| RESPONSES.with_label_values(&["none", class])));

/// `DECISIONS` by reason, looked up once.
pub static DECISIONS_BY_REASON: LazyLock<Vec<(Reason, IntCounter)>> = LazyLock::new(|| {
    let counter = |reason: &Reason| (*reason, DECISIONS.with_label_values(&[reason.as_str()]));
    Reason::ALL.iter().map(counter).collect()
});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_register_and_a_worker_that_left_is_forgotten() {
        register_all();
        let metrics = WorkerMetrics::of("test-left");
        metrics.inflight.inc();
        RESPONSES.with_label_values(&["test-left", "2xx"]).inc();
        forget_worker("test-left");
        let text = prometheus::TextEncoder::new()
            .encode_to_string(&prometheus::gather())
            .expect("encodes");
        assert!(!text.contains("test-left"));
        assert!(text.contains("warmroute_retries_total") || text.contains("warmroute_workers"));
    }
}
