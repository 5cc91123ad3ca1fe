//! What was sent to a worker and has not finished: counted by guards, so that it falls whatever
//! happens to the request.

use std::sync::{
    Arc,
    atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
};

use crate::{routing::Load, telemetry::metrics::WorkerMetrics};

/// The counts of one worker.
///
/// Plain relaxed counters: each is a sum of independent additions, no reader needs two of them to
/// agree to the last request.
#[derive(Debug, Default)]
pub struct Counts {
    requests: AtomicU32,
    queued_tokens: AtomicU64,
    decodes: AtomicU32,
}

impl Counts {
    /// The load now.
    pub fn load(&self) -> Load {
        Load {
            requests: self.requests.load(Relaxed),
            queued_tokens: self.queued_tokens.load(Relaxed),
            decodes: self.decodes.load(Relaxed),
        }
    }
}

/// One request at one worker. Up when made, down when dropped.
#[derive(Debug)]
pub struct InflightGuard {
    counts: Arc<Counts>,
    metrics: Arc<WorkerMetrics>,
    queued_tokens: u64,
    answering: bool,
}

impl InflightGuard {
    /// Counts a request with `uncached_tokens` of prefill to do.
    pub fn new(counts: Arc<Counts>, metrics: Arc<WorkerMetrics>, uncached_tokens: u64) -> Self {
        counts.requests.fetch_add(1, Relaxed);
        counts.queued_tokens.fetch_add(uncached_tokens, Relaxed);
        metrics.inflight.inc();
        metrics.queued_tokens.add(uncached_tokens as i64);
        Self { counts, metrics, queued_tokens: uncached_tokens, answering: false }
    }

    /// The worker has begun to answer: its prefill is done, it decodes.
    pub fn answering(&mut self) {
        if !self.answering {
            self.answering = true;
            self.counts.decodes.fetch_add(1, Relaxed);
            self.metrics.decodes.inc();
            self.prefilled();
        }
    }

    fn prefilled(&mut self) {
        let tokens = std::mem::take(&mut self.queued_tokens);
        self.counts.queued_tokens.fetch_sub(tokens, Relaxed);
        self.metrics.queued_tokens.sub(tokens as i64);
    }
}

impl Drop for InflightGuard {
    fn drop(&mut self) {
        self.prefilled();
        if self.answering {
            self.counts.decodes.fetch_sub(1, Relaxed);
            self.metrics.decodes.dec();
        }
        self.counts.requests.fetch_sub(1, Relaxed);
        self.metrics.inflight.dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_count_returns_to_zero_wherever_the_request_ends() {
        let counts = Arc::new(Counts::default());
        let metrics = Arc::new(WorkerMetrics::of("inflight-test"));
        let before = InflightGuard::new(counts.clone(), metrics.clone(), 100);
        let mut during = InflightGuard::new(counts.clone(), metrics, 50);
        during.answering();
        during.answering();
        assert_eq!(counts.load(), Load { requests: 2, queued_tokens: 100, decodes: 1 });
        drop(before);
        drop(during);
        assert_eq!(counts.load(), Load::default());
    }
}
