//! The series of one worker: looked up once when it joins, forgotten when it leaves.
//!
//! Whoever holds a worker that has left writes to series that nobody reads any more. A label looked
//! up at that moment would bring the series back for ever, or write into those of another worker
//! that has taken the name.

use prometheus::{Gauge, Histogram, IntCounter, IntCounterVec, IntGauge, IntGaugeVec};

use super::metrics::{
    ACTUAL_TOKENS, BACKLOG_SECONDS, BREAKER_STATE, BREAKER_TRANSITIONS, CACHE_BUDGET_BLOCKS,
    DECODES, EVICTIONS_APPLIED, HOLDINGS_BLOCKS, HOLDINGS_DROPPED, INDEX_BLOCKS, INDEX_BYTES,
    INDEX_INSERTED, INDEX_TRIMMED, INFLIGHT, INFLIGHT_MAX, INTER_TOKEN_SECONDS, KV_BATCHES,
    KV_REFUSED, MATCHED_BLOCKS, MISSED_TOKENS, PARITY_STATE, PASSED_OVER, PREDICTED_TOKENS,
    PREFILL_COST_SECONDS, PREFILL_RATE, PROMPT_BLOCKS, QUEUED_TOKENS, REPORT_AGE_SECONDS,
    REPORT_GAPS, REPORT_LAG_SECONDS, REPORTS_REPLAYED, RESPONSES, RESYNCS, STALE_TOKENS,
    STORES_APPLIED, STORES_REJECTED, TRUST_STATE, TTFT_SECONDS, WORKER_DRAINED, WORKER_HEALTHY,
    WORKER_WEIGHT,
};

/// One worker's series, looked up once.
#[derive(Debug)]
#[expect(missing_docs, reason = "each is described where it is registered")]
pub struct WorkerMetrics {
    pub matched_blocks: IntCounter,
    pub prompt_blocks: IntCounter,
    pub ttft: Histogram,
    pub inter_token: Histogram,
    pub inflight: IntGauge,
    pub inflight_max: IntGauge,
    pub passed_over: IntCounter,
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
    pub report_age: IntGauge,
    pub breaker_state: IntGauge,
    pub healthy: IntGauge,
    pub drained: IntGauge,
    pub weight: Gauge,
    pub backlog: Gauge,
    pub prefill_rate: Gauge,
    /// By place in `PREFILL_COSTS`.
    pub prefill_cost: [Gauge; 3],
    pub index_bytes: IntGauge,
    pub index_blocks: IntGauge,
    pub index_inserted: IntCounter,
    pub index_trimmed: IntCounter,
    pub cache_budget: IntGauge,
    /// By place in `HOLDING_KINDS`.
    pub holdings: [IntGauge; 4],
    /// By place in `RESYNC_WAYS`.
    pub resyncs: [IntCounter; 3],
    /// By place in `STATUS_CLASSES`.
    pub responses: [IntCounter; 6],
    /// By place in `BREAKER_STATES`.
    breaker_transitions: [IntCounter; 3],
}

/// Values of the label `how` of a sync.
pub const RESYNC_WAYS: [&str; 3] = ["digest", "buckets", "snapshot"];

/// Values of the label `per` of the cost of prefill.
pub const PREFILL_COSTS: [&str; 3] = ["request", "token", "pair"];

/// Values of the label `kind` of blocks held.
pub const HOLDING_KINDS: [&str; 4] = ["gpu", "cpu", "storage", "presumed"];

/// Values of the label `to` of a breaker's transitions; the gauge of its state is the place here.
pub const BREAKER_STATES: [&str; 3] = ["closed", "half-open", "open"];

/// Values of the label `class`.
pub const STATUS_CLASSES: [&str; 6] = ["1xx", "2xx", "3xx", "4xx", "5xx", "gone"];

impl WorkerMetrics {
    /// The series of the worker with this id.
    pub fn of(worker: &str) -> Self {
        let label = &[worker];
        let transitions = |to| BREAKER_TRANSITIONS.with_label_values(&[worker, to]);
        let report_age = REPORT_AGE_SECONDS.with_label_values(label);
        report_age.set(-1);
        Self {
            matched_blocks: MATCHED_BLOCKS.with_label_values(label),
            prompt_blocks: PROMPT_BLOCKS.with_label_values(label),
            ttft: TTFT_SECONDS.with_label_values(label),
            inter_token: INTER_TOKEN_SECONDS.with_label_values(label),
            inflight: INFLIGHT.with_label_values(label),
            inflight_max: INFLIGHT_MAX.with_label_values(label),
            passed_over: PASSED_OVER.with_label_values(label),
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
            report_age,
            breaker_state: BREAKER_STATE.with_label_values(label),
            healthy: WORKER_HEALTHY.with_label_values(label),
            drained: WORKER_DRAINED.with_label_values(label),
            weight: WORKER_WEIGHT.with_label_values(label),
            backlog: BACKLOG_SECONDS.with_label_values(label),
            prefill_rate: PREFILL_RATE.with_label_values(label),
            prefill_cost: PREFILL_COSTS
                .map(|per| PREFILL_COST_SECONDS.with_label_values(&[worker, per])),
            index_bytes: INDEX_BYTES.with_label_values(label),
            index_blocks: INDEX_BLOCKS.with_label_values(label),
            index_inserted: INDEX_INSERTED.with_label_values(label),
            index_trimmed: INDEX_TRIMMED.with_label_values(label),
            cache_budget: CACHE_BUDGET_BLOCKS.with_label_values(label),
            holdings: HOLDING_KINDS.map(|kind| HOLDINGS_BLOCKS.with_label_values(&[worker, kind])),
            resyncs: RESYNC_WAYS.map(|how| RESYNCS.with_label_values(&[worker, how])),
            responses: STATUS_CLASSES.map(|class| RESPONSES.with_label_values(&[worker, class])),
            breaker_transitions: BREAKER_STATES.map(transitions),
        }
    }

    /// Counts a sync that ended with a step of this kind.
    pub fn resync(&self, how: &str) {
        if let Some(at) = RESYNC_WAYS.iter().position(|way| *way == how) {
            self.resyncs[at].inc();
        }
    }

    /// Counts a change of its breaker to the state of this name.
    pub fn breaker_moved(&self, to: &str) {
        if let Some(at) = BREAKER_STATES.iter().position(|state| *state == to) {
            self.breaker_transitions[at].inc();
        }
    }
}

/// Forgets the series of a worker that has left, so that churn does not grow the page for ever.
pub fn forget_worker(worker: &str) {
    let label = &[worker];
    let counters: [&IntCounterVec; 17] = [
        &PASSED_OVER,
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
    let gauges: [&IntGaugeVec; 13] = [
        &INFLIGHT,
        &INFLIGHT_MAX,
        &QUEUED_TOKENS,
        &DECODES,
        &INDEX_BYTES,
        &INDEX_BLOCKS,
        &BREAKER_STATE,
        &WORKER_HEALTHY,
        &WORKER_DRAINED,
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
    for vec in [&WORKER_WEIGHT, &BACKLOG_SECONDS, &PREFILL_RATE] {
        let _ = vec.remove_label_values(label);
    }
    for per in PREFILL_COSTS {
        let _ = PREFILL_COST_SECONDS.remove_label_values(&[worker, per]);
    }
    for vec in [&TTFT_SECONDS, &INTER_TOKEN_SECONDS, &REPORT_LAG_SECONDS] {
        let _ = vec.remove_label_values(label);
    }
    for (vec, values) in [
        (&RESYNCS, &RESYNC_WAYS[..]),
        (&RESPONSES, &STATUS_CLASSES),
        (&BREAKER_TRANSITIONS, &BREAKER_STATES),
    ] {
        for value in values {
            let _ = vec.remove_label_values(&[worker, value]);
        }
    }
    for kind in HOLDING_KINDS {
        let _ = HOLDINGS_BLOCKS.remove_label_values(&[worker, kind]);
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;

    fn page() -> String {
        let families = prometheus::gather();
        prometheus::TextEncoder::new().encode_to_string(&families).expect("encodes")
    }

    #[test]
    fn a_worker_that_left_is_forgotten_whatever_is_still_said_of_it() {
        let old = WorkerMetrics::of("test-left");
        old.inflight.inc();
        forget_worker("test-left");
        assert!(!page().contains("test-left"));
        old.responses[1].inc();
        old.breaker_moved("open");
        old.weight.set(1.0);
        old.holdings[0].set(3);
        assert!(!page().contains("test-left"));
        // One of the same name has nothing to do with it.
        let new = WorkerMetrics::of("test-left");
        old.inflight.dec();
        assert_eq!(new.inflight.get(), 0);
        forget_worker("test-left");
        assert!(!page().contains("test-left"));
    }
}
