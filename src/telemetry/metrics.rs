//! Every metric, by name. docs/metrics.md says what they mean and when to alarm.
//!
//! Labels come from closed enums or are worker ids, whose number is bounded.

use std::sync::LazyLock;

use prometheus::{
    GaugeVec, Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
    histogram_opts, register_gauge_vec, register_histogram, register_histogram_vec,
    register_int_counter, register_int_counter_vec, register_int_gauge, register_int_gauge_vec,
};

pub use super::worker_metrics::{
    BREAKER_STATES, HOLDING_KINDS, RESYNC_WAYS, STATUS_CLASSES, WorkerMetrics, forget_worker,
    status_class,
};
use crate::routing::Reason;

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
            super::regret::register();
            LazyLock::force(&FEEDBACK_BY_OUTCOME);
            LazyLock::force(&REQUEST_SECONDS_BY_ENDPOINT);
            for outcome in ALIGN_OUTCOMES {
                let _ = ALIGNED.with_label_values(&[outcome]);
            }
            for direction in ["in", "out"] {
                let _ = PEERS_MESSAGES.with_label_values(&[direction]);
                let _ = PEERS_BYTES.with_label_values(&[direction]);
            }
            for reason in PEERS_DROP_REASONS {
                let _ = PEERS_DROPPED.with_label_values(&[reason]);
            }
            for reason in PEERS_REFUSALS {
                let _ = PEERS_REFUSED.with_label_values(&[reason]);
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
    /// Bound on them.
    INFLIGHT_MAX: IntGaugeVec = register_int_gauge_vec!(
        "warmroute_inflight_max", "Requests at which a worker is saturated", &["worker"]);
    /// Workers passed over.
    PASSED_OVER: IntCounterVec = register_int_counter_vec!(
        "warmroute_passed_over_total",
        "Picks for which a worker was saturated that could have been asked otherwise", &["worker"]);
    /// Prefill work in flight.
    QUEUED_TOKENS: IntGaugeVec = register_int_gauge_vec!(
        "warmroute_queued_tokens",
        "Estimated uncached prompt tokens sent to a worker and not yet answered", &["worker"]);
    /// Prefill before a worker, as forecast.
    BACKLOG_SECONDS: GaugeVec = register_gauge_vec!(
        "warmroute_backlog_seconds",
        "Forecast time until a worker has prefilled what was sent to it", &["worker"]);
    /// Prefill speed as believed.
    PREFILL_RATE: GaugeVec = register_gauge_vec!(
        "warmroute_prefill_tokens_per_second",
        "Prefill speed believed of a worker, at a prompt of 2,000 tokens", &["worker"]);
    /// Prefill cost as believed.
    PREFILL_COST_SECONDS: GaugeVec = register_gauge_vec!(
        "warmroute_prefill_cost_seconds",
        "Prefill cost believed of a worker, a request, token, or pair of tokens",
        &["worker", "per"]);
    /// Decodes in flight.
    DECODES: IntGaugeVec = register_int_gauge_vec!(
        "warmroute_decodes", "Requests of a worker that have begun to answer", &["worker"]);
    /// Index memory.
    INDEX_BYTES: IntGaugeVec = register_int_gauge_vec!(
        "warmroute_index_bytes",
        "A worker's share of the prefix index's memory, with the records of its engine blocks",
        &["worker"]);
    /// Memory of the index of all workers.
    INDEX_SHARED_BYTES: IntGauge = register_int_gauge!(
        "warmroute_index_shared_bytes", "Memory of the prefix index that all workers share");
    /// Its bound.
    INDEX_SHARED_BYTES_MAX: IntGauge = register_int_gauge!(
        "warmroute_index_shared_bytes_max", "What that memory may come to");
    /// Its blocks.
    INDEX_DISTINCT_BLOCKS: IntGauge = register_int_gauge!(
        "warmroute_index_distinct_blocks", "Different blocks in the prefix index");
    /// Its blocks by holder.
    INDEX_HELD_BLOCKS: IntGauge = register_int_gauge!(
        "warmroute_index_held_blocks", "Blocks in the prefix index, each once for all that hold it");
    /// Its runs.
    INDEX_RUNS: IntGauge = register_int_gauge!(
        "warmroute_index_runs", "Runs of blocks that the prefix index is made of");
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
    /// Drained.
    WORKER_DRAINED: IntGaugeVec = register_int_gauge_vec!(
        "warmroute_worker_drained", "1 while a worker is drained: it gets no new request",
        &["worker"]);
    /// Weight, slow start included.
    WORKER_WEIGHT: GaugeVec = register_gauge_vec!(
        "warmroute_worker_weight", "Weight of a worker, lessened while it starts slowly",
        &["worker"]);
    /// Fleet size.
    WORKERS: IntGauge = register_int_gauge!("warmroute_workers", "Workers in the fleet");
    /// Connection to the broker.
    PEERS_CONNECTED: IntGauge = register_int_gauge!(
        "warmroute_peers_connected", "1 while the broker of the routers is connected");
    /// Other routers.
    PEERS_KNOWN: IntGauge = register_int_gauge!(
        "warmroute_peers_known", "Other routers heard within three seconds");
    /// Messages between routers.
    PEERS_MESSAGES: IntCounterVec = register_int_counter_vec!(
        "warmroute_peers_messages_total", "Messages to and from other routers", &["direction"]);
    /// Their size.
    PEERS_BYTES: IntCounterVec = register_int_counter_vec!(
        "warmroute_peers_bytes_total", "Bytes of messages to and from other routers",
        &["direction"]);
    /// What was not shared.
    PEERS_DROPPED: IntCounterVec = register_int_counter_vec!(
        "warmroute_peers_dropped_total", "Things not told to or not taken from other routers",
        &["reason"]);
    /// Messages not believed.
    PEERS_REFUSED: IntCounterVec = register_int_counter_vec!(
        "warmroute_peers_refused_total", "Messages on the routers' subject that were not taken",
        &["reason"]);
    /// Discovery.
    DISCOVERY_LOOKUPS: IntCounterVec = register_int_counter_vec!(
        "warmroute_discovery_lookups_total", "Looks at a source of workers by how they ended",
        &["source", "result"]);
    /// Discovered workers.
    DISCOVERY_WORKERS: IntGaugeVec = register_int_gauge_vec!(
        "warmroute_discovery_workers", "Workers a source names", &["source"]);
    /// Age of what is discovered.
    DISCOVERY_AGE_SECONDS: IntGaugeVec = register_int_gauge_vec!(
        "warmroute_discovery_age_seconds",
        "Time since a source's last answer that was believed; -1 = there was none", &["source"]);
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

/// Values of the label `endpoint`.
pub const ENDPOINTS: [&str; 7] =
    ["chat", "completions", "responses", "messages", "models", "health", "other"];

/// How predictions did.
pub const FEEDBACK_OUTCOMES: [&str; 4] = ["right", "stale", "missed", "absent"];

/// What became of requests for aligned models.
pub const ALIGN_OUTCOMES: [&str; 8] =
    ["aligned", "mismatch", "media", "no_template", "template", "shape", "too_long", "tokenizer"];

/// Why something was not shared with other routers.
pub const PEERS_DROP_REASONS: [&str; 5] =
    ["outbox_full", "disconnected", "not_sent", "inbox_full", "unknown_worker"];

/// Why messages of other routers were not taken.
pub const PEERS_REFUSALS: [&str; 7] =
    ["garbage", "version", "configuration", "forged", "stale", "repeated", "full"];
/// Values of the label `result` of discovery.
pub const DISCOVERY_RESULTS: [&str; 4] = ["answered", "empty", "failed", "malformed"];

/// Answers that no worker gave.
pub static OWN_RESPONSES: LazyLock<[IntCounter; 6]> =
    LazyLock::new(|| STATUS_CLASSES.map(|class| RESPONSES.with_label_values(&["none", class])));

/// `FEEDBACK` by place in `FEEDBACK_OUTCOMES`, looked up once.
pub static FEEDBACK_BY_OUTCOME: LazyLock<[IntCounter; 4]> =
    LazyLock::new(|| FEEDBACK_OUTCOMES.map(|outcome| FEEDBACK.with_label_values(&[outcome])));

/// `REQUEST_SECONDS` by endpoint, looked up once.
pub static REQUEST_SECONDS_BY_ENDPOINT: LazyLock<[(&str, Histogram); 7]> =
    LazyLock::new(|| ENDPOINTS.map(|name| (name, REQUEST_SECONDS.with_label_values(&[name]))));

/// `DECISIONS` by reason, looked up once.
pub static DECISIONS_BY_REASON: LazyLock<Vec<(Reason, IntCounter)>> = LazyLock::new(|| {
    let counter = |reason: &Reason| (*reason, DECISIONS.with_label_values(&[reason.as_str()]));
    Reason::ALL.iter().map(counter).collect()
});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_register() {
        register_all();
        let families = prometheus::gather();
        let text = prometheus::TextEncoder::new().encode_to_string(&families).expect("encodes");
        assert!(text.contains("warmroute_retries_total") && text.contains("warmroute_workers"));
    }
}
