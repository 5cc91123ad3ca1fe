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
            for outcome in FEEDBACK_OUTCOMES {
                let _ = FEEDBACK.with_label_values(&[outcome]);
            }
            for outcome in ALIGN_OUTCOMES {
                let _ = ALIGNED.with_label_values(&[outcome]);
            }
            for cause in ["connect", "stale-connection"] {
                let _ = RETRIES.with_label_values(&[cause]);
            }
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
    REPORT_LAG_SECONDS: HistogramVec = register_histogram_vec!(histogram_opts!(
        "warmroute_report_lag_seconds",
        "Time from a report's arrival (or its own `ts`, when given) until it is applied",
        LATENCY_BUCKETS.to_vec()), &["worker"]);
    /// Gaps.
    REPORT_GAPS: IntCounterVec = register_int_counter_vec!(
        "warmroute_report_gaps_total", "Times that batches of a worker's reports were missing",
        &["worker"]);
    /// Replays.
    REPORTS_REPLAYED: IntCounterVec = register_int_counter_vec!(
        "warmroute_reports_replayed_total", "Batches taken from a worker's replay socket",
        &["worker"]);
    /// Syncs.
    RESYNCS: IntCounterVec = register_int_counter_vec!(
        "warmroute_resyncs_total", "Anti-entropy syncs of a worker's reporter, by what it took",
        &["worker", "how"]);
    /// Published batches.
    KV_BATCHES: IntCounterVec = register_int_counter_vec!(
        "warmroute_kv_event_batches_total", "Batches of a worker's published KV events",
        &["worker"]);
    /// Published garbage.
    KV_REFUSED: IntCounterVec = register_int_counter_vec!(
        "warmroute_kv_events_refused_total",
        "Published messages or events that could not be read or are of a kind not used",
        &["worker"]);
    /// Trust.
    TRUST_STATE: IntGaugeVec = register_int_gauge_vec!(
        "warmroute_trust_state", "2 exact, 1 degraded, 0 presumed", &["worker"]);
    /// Dropped beliefs.
    HOLDINGS_DROPPED: IntCounterVec = register_int_counter_vec!(
        "warmroute_holdings_dropped_total",
        "Times that all we believed of a worker's cache was dropped", &["worker"]);
    /// Tiers.
    HOLDINGS_BLOCKS: IntGaugeVec = register_int_gauge_vec!(
        "warmroute_holdings_blocks",
        "Blocks believed held: confirmed by tier (gpu, cpu, storage), or presumed",
        &["worker", "kind"]);
    /// Capacity.
    CACHE_BUDGET_BLOCKS: IntGaugeVec = register_int_gauge_vec!(
        "warmroute_cache_budget_blocks",
        "Blocks a worker's cache is estimated to hold, where it does not report", &["worker"]);
    /// Predicted.
    PREDICTED_TOKENS: IntCounterVec = register_int_counter_vec!(
        "warmroute_predicted_cached_tokens_total",
        "Prompt tokens predicted to be cached, of answers that say what was", &["worker"]);
    /// Actual.
    ACTUAL_TOKENS: IntCounterVec = register_int_counter_vec!(
        "warmroute_actual_cached_tokens_total", "Prompt tokens answers reported as cached",
        &["worker"]);
    /// Stale.
    STALE_TOKENS: IntCounterVec = register_int_counter_vec!(
        "warmroute_stale_tokens_total", "Prompt tokens predicted to be cached that were not",
        &["worker"]);
    /// Missed.
    MISSED_TOKENS: IntCounterVec = register_int_counter_vec!(
        "warmroute_missed_tokens_total", "Prompt tokens cached that were not predicted to be",
        &["worker"]);
    /// Predictions.
    FEEDBACK: IntCounterVec = register_int_counter_vec!(
        "warmroute_feedback_total",
        "Answers by how the prediction of their cached tokens did (absent = they say nothing)",
        &["outcome"]);
    /// Aligned requests.
    ALIGNED: IntCounterVec = register_int_counter_vec!(
        "warmroute_aligned_requests_total",
        "Requests for models in aligned mode: aligned, or why they were matched as text",
        &["outcome"]);
    /// Time to align.
    ALIGN_SECONDS: Histogram = register_histogram!(histogram_opts!(
        "warmroute_align_seconds", "Time to render and tokenize a prompt",
        DECISION_BUCKETS.to_vec()));
    /// Parity.
    PARITY_STATE: IntGaugeVec = register_int_gauge_vec!(
        "warmroute_parity_state",
        "Whether we tokenize as a worker does: 1 yes, 0 no, -1 it cannot be asked",
        &["worker"]);
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
    pub gaps: IntCounter,
    pub replayed: IntCounter,
    pub kv_batches: IntCounter,
    pub kv_refused: IntCounter,
    pub trust: IntGauge,
    pub drops: IntCounter,
    pub predicted_tokens: IntCounter,
    pub actual_tokens: IntCounter,
    pub stale_tokens: IntCounter,
    pub missed_tokens: IntCounter,
    pub report_lag: Histogram,
    pub breaker_state: IntGauge,
    pub healthy: IntGauge,
    /// By place in `RESYNC_WAYS`.
    pub resyncs: [IntCounter; 3],
    /// By place in `STATUS_CLASSES`.
    pub responses: [IntCounter; 6],
}

/// How predictions did.
pub const FEEDBACK_OUTCOMES: [&str; 4] = ["right", "stale", "missed", "absent"];

/// What became of requests for aligned models.
pub const ALIGN_OUTCOMES: [&str; 8] =
    ["aligned", "mismatch", "media", "no_template", "template", "shape", "too_long", "tokenizer"];

/// Values of the label `how` of a sync.
pub const RESYNC_WAYS: [&str; 3] = ["digest", "buckets", "snapshot"];

/// Values of the label `kind` of blocks held.
pub const HOLDING_KINDS: [&str; 4] = ["gpu", "cpu", "storage", "presumed"];

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
            gaps: REPORT_GAPS.with_label_values(label),
            replayed: REPORTS_REPLAYED.with_label_values(label),
            kv_batches: KV_BATCHES.with_label_values(label),
            kv_refused: KV_REFUSED.with_label_values(label),
            trust: TRUST_STATE.with_label_values(label),
            drops: HOLDINGS_DROPPED.with_label_values(label),
            predicted_tokens: PREDICTED_TOKENS.with_label_values(label),
            actual_tokens: ACTUAL_TOKENS.with_label_values(label),
            stale_tokens: STALE_TOKENS.with_label_values(label),
            missed_tokens: MISSED_TOKENS.with_label_values(label),
            report_lag: REPORT_LAG_SECONDS.with_label_values(label),
            breaker_state: BREAKER_STATE.with_label_values(label),
            healthy: WORKER_HEALTHY.with_label_values(label),
            resyncs: RESYNC_WAYS.map(|how| RESYNCS.with_label_values(&[worker, how])),
            responses: STATUS_CLASSES.map(|class| RESPONSES.with_label_values(&[worker, class])),
        }
    }

    /// Counts a sync that ended with a step of this kind.
    pub fn resync(&self, how: &str) {
        if let Some(at) = RESYNC_WAYS.iter().position(|way| *way == how) {
            self.resyncs[at].inc();
        }
    }
}

/// Forgets the series of a worker that has left, so that churn does not grow the page for ever.
/// The counters `warmroute_responses_total` and `_transitions_total` go with it.
pub fn forget_worker(worker: &str) {
    let label = &[worker];
    let counters: [&IntCounterVec; 16] = [
        &MATCHED_BLOCKS,
        &PROMPT_BLOCKS,
        &EVICTIONS_APPLIED,
        &STORES_APPLIED,
        &STORES_REJECTED,
        &INDEX_INSERTED,
        &INDEX_TRIMMED,
        &REPORT_GAPS,
        &REPORTS_REPLAYED,
        &KV_BATCHES,
        &KV_REFUSED,
        &HOLDINGS_DROPPED,
        &PREDICTED_TOKENS,
        &ACTUAL_TOKENS,
        &STALE_TOKENS,
        &MISSED_TOKENS,
    ];
    let gauges: [&IntGaugeVec; 11] = [
        &INFLIGHT,
        &QUEUED_TOKENS,
        &DECODES,
        &INDEX_BYTES,
        &INDEX_BLOCKS,
        &BREAKER_STATE,
        &WORKER_HEALTHY,
        &REPORT_AGE_SECONDS,
        &TRUST_STATE,
        &CACHE_BUDGET_BLOCKS,
        &PARITY_STATE,
    ];
    for vec in counters {
        let _ = vec.remove_label_values(label);
    }
    for vec in gauges {
        let _ = vec.remove_label_values(label);
    }
    for vec in [&TTFT_SECONDS, &INTER_TOKEN_SECONDS, &REPORT_LAG_SECONDS] {
        let _ = vec.remove_label_values(label);
    }
    for how in RESYNC_WAYS {
        let _ = RESYNCS.remove_label_values(&[worker, how]);
    }
    for kind in HOLDING_KINDS {
        let _ = HOLDINGS_BLOCKS.remove_label_values(&[worker, kind]);
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
