//! What was sent to a worker and has not finished: counted by guards, so that it falls whatever
//! happens to the request.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use crate::{
    routing::{Load, Pace, Work, backlog::Ticket},
    telemetry::metrics::WorkerMetrics,
};

/// The counts of one worker.
///
/// Plain relaxed counters: each is a sum of independent additions, no reader needs two of them to
/// agree to the last request.
#[derive(Debug, Default)]
pub struct Counts {
    requests: AtomicU32,
    queued_tokens: AtomicU64,
    decodes: AtomicU32,
    /// Streams before their first token.
    waiting: AtomicU32,
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

    /// Streams that wait for their first token. Of an answer in one piece nobody sees when it begins.
    pub fn waiting(&self) -> u32 {
        self.waiting.load(Relaxed)
    }
}

/// What a request asks of a worker.
#[derive(Debug, Clone, Copy)]
pub struct Dispatch {
    /// Prompt tokens.
    pub tokens: u64,
    /// Those of them that the worker does not hold.
    pub uncached_tokens: u64,
    /// Whether it asks for a stream, so that its first token will be seen.
    pub streams: bool,
    /// How long averages of the worker's traffic are to reach back.
    pub window: Duration,
}

/// One request at one worker. Up when made, down when dropped.
#[derive(Debug)]
pub struct InflightGuard {
    counts: Arc<Counts>,
    metrics: Arc<WorkerMetrics>,
    pace: Arc<Mutex<Pace>>,
    /// Its place in the backlog, until it is known to be prefilled.
    ticket: Option<Ticket>,
    queued_tokens: u64,
    hit_tokens: u64,
    sent_at: Instant,
    answering: bool,
    /// Whether it counts as a stream that waits.
    waiting: bool,
}

impl InflightGuard {
    /// Counts a request that is sent now.
    pub fn new(
        counts: Arc<Counts>,
        metrics: Arc<WorkerMetrics>,
        pace: Arc<Mutex<Pace>>,
        dispatch: &Dispatch,
        now: Instant,
    ) -> Self {
        let Dispatch { tokens, uncached_tokens, streams, window } = *dispatch;
        let hit_tokens = tokens.saturating_sub(uncached_tokens);
        counts.requests.fetch_add(1, Relaxed);
        counts.queued_tokens.fetch_add(uncached_tokens, Relaxed);
        metrics.inflight.inc();
        metrics.queued_tokens.add(uncached_tokens as i64);
        let work = Work::of(uncached_tokens, tokens);
        let ticket = Some(pace.lock().sent(work, hit_tokens, !streams, window, now));
        let queued_tokens = uncached_tokens;
        if streams {
            counts.waiting.fetch_add(1, Relaxed);
        }
        Self {
            counts,
            metrics,
            pace,
            ticket,
            queued_tokens,
            hit_tokens,
            sent_at: now,
            answering: false,
            waiting: streams,
        }
    }

    /// Its first token came: its prefill is done, it decodes.
    pub fn first_token(&mut self, now: Instant) {
        if let Some(ticket) = self.ticket.take() {
            self.pace.lock().first_token(ticket, now);
        }
        self.answering();
    }

    /// A whole answer has begun: its prefill was done some time ago, nobody knows when.
    pub fn whole_answer(&mut self, now: Instant) {
        self.leave_backlog(now);
        self.answering();
    }

    /// The worker said no: it has done none of the work, and none counts as its traffic.
    pub fn refused(&mut self, now: Instant) {
        self.never_sent(now);
        self.answering();
    }

    /// It never got to the worker.
    pub fn never_sent(&mut self, now: Instant) {
        if let Some(ticket) = self.ticket.take() {
            self.pace.lock().take_back(ticket, self.hit_tokens, self.sent_at, now);
        }
    }

    fn leave_backlog(&mut self, now: Instant) {
        if let Some(ticket) = self.ticket.take() {
            self.pace.lock().gone(ticket, now);
        }
    }

    fn answering(&mut self) {
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
        if std::mem::take(&mut self.waiting) {
            self.counts.waiting.fetch_sub(1, Relaxed);
        }
    }
}

impl Drop for InflightGuard {
    fn drop(&mut self) {
        if self.ticket.is_some() {
            self.leave_backlog(crate::clock::now());
        }
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
    use crate::clock;

    #[test]
    fn every_count_returns_to_zero_wherever_the_request_ends() {
        let counts = Arc::new(Counts::default());
        let metrics = Arc::new(WorkerMetrics::of("inflight-test"));
        let now = clock::now();
        let pace = Arc::new(Mutex::new(Pace::new(now)));
        let guard = |uncached_tokens, streams| {
            let window = Duration::from_secs(1);
            let dispatch = Dispatch { tokens: 150, uncached_tokens, streams, window };
            InflightGuard::new(counts.clone(), metrics.clone(), pace.clone(), &dispatch, now)
        };
        let before = guard(100, true);
        let (mut during, mut whole, mut never) =
            (guard(50, true), guard(20, false), guard(10, true));
        assert_eq!(pace.lock().work().requests, 4);
        assert_eq!(counts.waiting(), 3);
        for _ in 0..2 {
            during.first_token(now);
            whole.whole_answer(now);
            never.never_sent(now);
        }
        assert_eq!(pace.lock().work(), Work::of(100, 150));
        assert_eq!(counts.load(), Load { requests: 4, queued_tokens: 110, decodes: 2 });
        assert_eq!(counts.waiting(), 2);
        drop((before, during, whole, never));
        assert_eq!((counts.load(), counts.waiting()), (Load::default(), 0));
        assert!(pace.lock().work().is_none());
        assert_eq!(pace.lock().running(now), 0);
    }

    #[test]
    fn what_was_refused_is_nobodys_traffic() {
        let now = clock::now();
        let metrics = Arc::new(WorkerMetrics::of("inflight-refused"));
        let pace = Arc::new(Mutex::new(Pace::new(now)));
        let dispatch = Dispatch {
            tokens: 15_000_000,
            uncached_tokens: 15_000_000,
            streams: false,
            window: Duration::from_secs(9),
        };
        let at = |s| now + Duration::from_secs(s);
        let guard =
            |at| InflightGuard::new(Arc::default(), metrics.clone(), pace.clone(), &dispatch, at);
        let of = |at| {
            let traffic = pace.lock().forecast(at).traffic;
            (traffic.computed_tokens_per_s, traffic.backlog_s)
        };
        guard(now).refused(at(1));
        // Nor is the time that it seemed to wait: of such a prompt that would be an hour.
        assert!(of(at(2)).0 < 1e-6 && of(at(2)).1 < 1e-3, "{:?}", of(at(2)));
        guard(at(2)).whole_answer(at(3));
        assert!(of(at(4)).0 > 1e3 && of(at(4)).1 > 1e3, "{:?}", of(at(4)));
    }
}
