//! What one worker has been getting: averages over the fleet's last requests.
//!
//! Sums that fade with time, so that reading them costs the same at any rate. The window is counted
//! in requests of the fleet, not in seconds: see [`WINDOW_REQUESTS`].

use std::time::{Duration, Instant};

use super::prefill::Work;

/// Requests a worker that averages reach back over.
pub const WINDOW_REQUESTS: f64 = 32.0;

/// Windows lie within these, in seconds.
const WINDOW_RANGE_S: (f64, f64) = (1.0, 3600.0);

/// Averages of one worker.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct TrafficRates {
    /// Requests sent to it a second.
    pub requests_per_s: f64,
    /// Seconds of prefill sent to it a second.
    pub prefill_share: f64,
    /// Prompt tokens sent to it a second that it held.
    pub hit_tokens_per_s: f64,
    /// Prompt tokens sent to it a second that it had to compute.
    pub computed_tokens_per_s: f64,
    /// Its mean backlog, seconds.
    pub backlog_s: f64,
}

/// Over how long to average, given the requests a second of a whole fleet of `workers`.
pub fn window(workers: usize, requests_per_s: f64) -> Duration {
    let (least, most) = WINDOW_RANGE_S;
    let seconds = WINDOW_REQUESTS * workers as f64 / requests_per_s.max(1e-9);
    Duration::from_secs_f64(seconds.clamp(least, most))
}

/// Sums of one worker, fading.
#[derive(Debug, Clone)]
pub struct Traffic {
    as_of: Instant,
    window_s: f64,
    /// Seconds observed.
    observed_s: f64,
    requests: f64,
    prefill_s: f64,
    hit_tokens: f64,
    computed_tokens: f64,
    /// Integral of the backlog over time.
    backlog: f64,
    /// The backlog at `as_of`, seconds.
    last_backlog_s: f64,
}

impl Traffic {
    /// Nothing sent.
    pub fn new(now: Instant) -> Self {
        Self {
            as_of: now,
            window_s: WINDOW_RANGE_S.1,
            observed_s: 0.0,
            requests: 0.0,
            prefill_s: 0.0,
            hit_tokens: 0.0,
            computed_tokens: 0.0,
            backlog: 0.0,
            last_backlog_s: 0.0,
        }
    }

    /// A request is sent that takes `prefill_s`; `window` is how long averages are to reach back,
    /// within a second and an hour.
    pub fn sent(&mut self, work: &Work, prefill_s: f64, hit_tokens: u64, window: Duration) {
        let (least, most) = WINDOW_RANGE_S;
        self.window_s = window.as_secs_f64().clamp(least, most);
        self.requests += 1.0;
        self.prefill_s += prefill_s;
        self.hit_tokens += hit_tokens as f64;
        self.computed_tokens += work.tokens as f64;
    }

    /// A request of `waited_s` ago never got there: what it was counted as goes, and what it added to
    /// the backlog since.
    pub fn take_back(&mut self, work: &Work, prefill_s: f64, hit_tokens: u64, waited_s: f64) {
        // Of the foremost the time it was served is credited.
        let mean_s = prefill_s - waited_s.min(prefill_s) / 2.0;
        let added = mean_s * self.window_s * (1.0 - self.kept(waited_s));
        for (sum, less) in [
            (&mut self.requests, 1.0),
            (&mut self.prefill_s, prefill_s),
            (&mut self.hit_tokens, hit_tokens as f64),
            (&mut self.computed_tokens, work.tokens as f64),
            (&mut self.backlog, added),
        ] {
            *sum = (*sum - less).max(0.0);
        }
    }

    /// Time has passed; the backlog is `before_s` just now, and will be `after_s` from now on.
    pub fn pass(&mut self, before_s: f64, after_s: f64, now: Instant) {
        let dt = now.saturating_duration_since(self.as_of).as_secs_f64();
        let kept = self.kept(dt);
        self.backlog = self.backlog * kept + self.area(before_s, kept);
        self.observed_s = self.observed_s * kept + self.window_s * (1.0 - kept);
        for sum in [
            &mut self.requests,
            &mut self.prefill_s,
            &mut self.hit_tokens,
            &mut self.computed_tokens,
        ] {
            *sum *= kept;
        }
        self.as_of = self.as_of.max(now);
        self.last_backlog_s = after_s;
    }

    /// The averages, when the backlog is `backlog_s` now.
    pub fn rates(&self, backlog_s: f64, now: Instant) -> TrafficRates {
        let dt = now.saturating_duration_since(self.as_of).as_secs_f64();
        let kept = self.kept(dt);
        let observed_s = self.observed_s * kept + self.window_s * (1.0 - kept);
        // Of less than a second nothing is said.
        let per_s = kept / observed_s.max(1.0);
        let backlog = self.backlog * kept + self.area(backlog_s, kept);
        TrafficRates {
            requests_per_s: self.requests * per_s,
            prefill_share: self.prefill_s * per_s,
            hit_tokens_per_s: self.hit_tokens * per_s,
            computed_tokens_per_s: self.computed_tokens * per_s,
            backlog_s: backlog / observed_s.max(1.0),
        }
    }

    fn kept(&self, dt: f64) -> f64 {
        (-dt / self.window_s).exp()
    }

    /// The backlog from `as_of` until it is `backlog_s`, taken as its mean all the time.
    fn area(&self, backlog_s: f64, kept: f64) -> f64 {
        f64::midpoint(self.last_backlog_s, backlog_s) * self.window_s * (1.0 - kept)
    }
}

#[cfg(test)]
#[path = "traffic_tests.rs"]
mod tests;
