//! A bound on requests in flight that tunes itself: as many as run, and as many waiting as the
//! worker will have begun within a given time.
//!
//! The bound is Little's law with a delay for a target: waiting = rate of starts * seconds of queue.
//! Like BBR (Cardwell et al., ACM Queue 14(5), 2016) it learns a rate and multiplies, where TCP Vegas
//! (Brakmo and Peterson, 1995) and Netflix's Gradient2 compare a round trip with the best one. That
//! comparison says little of an engine: prompts differ by a factor of a thousand, more requests at a
//! time mean more throughput up to the engine's own bound, and a stream lasts seconds or an hour.
//! So the time between dispatch and first token is the only one looked at, and first of all as much
//! of it is set aside as the tokens in front explain at the worker's best prefill rate:
//!
//! * Tokens explain most of it: the prefill is what one waits for. Learned are tokens a second.
//! * They do not: one waits for a place in the batch. Learned are requests begun a second.
//!
//! Each gives a bound, the lower one holds. Gaps between tokens are not looked at (ADR 0015).
//!
//! It does no harm by these rules: nothing learned is no bound but the highest; nothing under
//! [`WAITING_MIN`] waiting streams is ever too much; only a request that waited over a second behind
//! another lowers the rate; any that shows a better one raises it, faster; nothing moves by time alone.

mod image;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;

use std::time::{Duration, Instant};

pub use image::LimitImage;

use super::OutOfRange;

/// Observations of fewer tokens are ignored: their time is network and scheduling, not prefill.
const OBSERVED_TOKENS_MIN: u64 = 256;

/// Observed rates outside these are ignored, in tokens a second: below, the worker hung or queued
/// behind others' work; above, it held the prompt and we did not know.
const OBSERVED_RATE_RANGE: std::ops::RangeInclusive<f64> = 20.0..=2_000_000.0;

/// So many streams may always wait at a worker.
pub const WAITING_MIN: u32 = 8;

/// The bound on requests in flight is never below.
pub const INFLIGHT_MIN: u32 = 8;

/// Times that are counted, seconds: below, it was the network; above, it was no queue.
const WAITED_RANGE: std::ops::RangeInclusive<f64> = 0.001..=3600.0;

/// Rates of starts that are learned, a second; the highest stands for "not learned".
const STARTS_RANGE: std::ops::RangeInclusive<f64> = 1e-4..=1e4;

/// A shorter wait that tokens do not explain is no sign of a queue, seconds.
const EXCESS_MIN_S: f64 = 1.0;

/// Tokens that explain this share of a wait explain it, as far as queued tokens and the best rate are
/// known: within a factor of two or three.
const EXPLAINED_SHARE: f64 = 1.0 / 3.0;

/// Weight of a sample that shows a better rate than believed.
const RAISE: f64 = 0.3;
/// Weight of one that shows a worse one, if enough were ahead of it.
const LOWER: f64 = 0.2;
/// So many starts make a whole sample.
const WHOLE_SAMPLE: f64 = 8.0;
/// Of what is seen within this time only the best lowers a rate: after a stall dozens begin at once,
/// of which each by itself would say that the worker is slow.
const ROUND: Duration = Duration::from_secs(1);

/// Weight of a sample of the best prefill rate, once there are many.
const BEST_WEIGHT: f64 = 0.1;
/// Samples after which it is believed.
const PREFILL_SAMPLES_MIN: u32 = 4;

/// What is left of the requests in flight when the worker refuses one.
const REFUSED_SHARE: f64 = 0.9;
/// What each request it then takes gives back.
const ACCEPTED_STEP: f64 = 1.0 / 8.0;

/// How a worker's bound on requests in flight is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InflightMax {
    /// By what is seen of it.
    Auto,
    /// It is this.
    Fixed(u32),
}

/// What an automatic bound goes by.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LimitParams {
    queue_s: f64,
    inflight_max: u32,
}

impl LimitParams {
    /// As much may wait as is begun within `queue` (1 second to an hour); in flight are never more
    /// than `inflight_max` (8 at least).
    ///
    /// # Errors
    /// When either is out of its range.
    pub fn try_new(queue: Duration, inflight_max: u32) -> Result<Self, OutOfRange> {
        let queue_s = queue.as_secs_f64();
        OutOfRange::unless((1.0..=3600.0).contains(&queue_s), "queue_s", queue_s, "1 to 3600")?;
        let fits = inflight_max >= INFLIGHT_MIN;
        OutOfRange::unless(fits, "inflight_auto_max", inflight_max, "8 or more")?;
        Ok(Self { queue_s, inflight_max })
    }
}

/// A stream that has got its first token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Started {
    /// Streams that waited for theirs when it was sent.
    pub waiting_ahead: u32,
    /// Tokens of prefill then queued, its own included.
    pub tokens: u64,
    /// From its dispatch to its first token.
    pub waited: Duration,
    /// Requests at the worker now that are no waiting streams.
    pub running: u32,
}

/// What is at a worker, as far as a bound looks at it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Standing {
    /// Requests in flight.
    pub requests: u32,
    /// Those of them that are streams before their first token.
    pub waiting: u32,
    /// Uncached prompt tokens in front.
    pub queued_tokens: u64,
}

/// A rate of service while others wait.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Rate {
    per_s: f64,
    /// What may lower it, once its time is over.
    round: Option<Round>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Round {
    since: Instant,
    best_per_s: f64,
    weight: f64,
}

impl Rate {
    fn new(per_s: f64) -> Self {
        Self { per_s, round: None }
    }

    /// It was so fast at least.
    fn at_least(&mut self, per_s: f64) {
        if per_s > self.per_s {
            approach(&mut self.per_s, per_s, RAISE);
        }
    }

    /// It was just so fast.
    fn is(&mut self, per_s: f64, weight: f64, now: Instant) {
        self.at_least(per_s);
        match &mut self.round {
            Some(round) if round.best_per_s >= per_s => {}
            Some(round) => (round.best_per_s, round.weight) = (per_s, weight),
            round => *round = Some(Round { since: now, best_per_s: per_s, weight }),
        }
    }

    /// Takes in what a round has shown, once it is over. Beyond `most` no rate makes a difference,
    /// nor should it take time to come down from there.
    fn close_round(&mut self, most: f64, now: Instant) {
        let over = |round: &mut Round| now.saturating_duration_since(round.since) >= ROUND;
        let Some(round) = self.round.take_if(over) else { return };
        self.per_s = self.per_s.min(most);
        if round.best_per_s < self.per_s {
            approach(&mut self.per_s, round.best_per_s, round.weight);
        }
    }
}

/// What one worker's bound has learned.
#[derive(Debug, Clone, PartialEq)]
pub struct Limit {
    /// Streams begun a second; at its highest where nobody was seen to wait.
    starts: Rate,
    /// Tokens prefilled a second; the same.
    prefill: Rate,
    /// Requests running while streams wait for a place; 0 = never seen.
    running: f64,
    /// Prefill at its best, tokens a second, and samples in it.
    best_rate: f64,
    best_samples: u32,
    /// The bound that refusals set.
    refused: Option<f64>,
    /// When it was last lowered: what was sent before says nothing new.
    refused_at: Option<Instant>,
    /// Since when a stream waits and none begins.
    quiet_since: Option<Instant>,
    /// Whether that is so for longer than a queue may last.
    stalled: bool,
}

impl Default for Limit {
    fn default() -> Self {
        Self::new()
    }
}

fn in_range(value: f64, range: &std::ops::RangeInclusive<f64>) -> f64 {
    value.clamp(*range.start(), *range.end())
}

/// `value` moves by this weight towards `sample`, as their logarithms do.
fn approach(value: &mut f64, sample: f64, weight: f64) {
    *value *= (sample / *value).powf(weight);
}

impl Limit {
    /// Nothing learned: the bound is the highest.
    pub fn new() -> Self {
        Self {
            starts: Rate::new(*STARTS_RANGE.end()),
            prefill: Rate::new(*OBSERVED_RATE_RANGE.end()),
            running: 0.0,
            best_rate: 0.0,
            best_samples: 0,
            refused: None,
            refused_at: None,
            quiet_since: None,
            stalled: false,
        }
    }

    /// A stream has begun.
    pub fn on_start(&mut self, started: &Started, params: &LimitParams, now: Instant) {
        self.quiet_since = Some(now);
        self.stalled = false;
        let waited = in_range(started.waited.as_secs_f64(), &WAITED_RANGE);
        self.close_rounds(params, now);
        let begun = f64::from(started.waiting_ahead) + 1.0;
        // At least so fast, whatever it was that took the time.
        self.starts.at_least(in_range(begun / waited, &STARTS_RANGE));
        let tokens = started.tokens as f64;
        let rate = tokens / waited;
        if started.tokens >= OBSERVED_TOKENS_MIN && OBSERVED_RATE_RANGE.contains(&rate) {
            self.learn_best(rate, started.waiting_ahead);
            self.prefill.at_least(rate);
        }
        let prefill_s = if self.knows_prefill() { tokens / self.best_rate } else { 0.0 };
        let excess = waited - prefill_s;
        if started.waiting_ahead == 0 || waited < EXCESS_MIN_S {
        } else if prefill_s >= EXPLAINED_SHARE * waited {
            self.prefill.is(in_range(rate, &OBSERVED_RATE_RANGE), LOWER, now);
        } else if excess >= EXCESS_MIN_S {
            let weight = LOWER * (begun / WHOLE_SAMPLE).min(1.0);
            self.starts.is(in_range(begun / excess, &STARTS_RANGE), weight, now);
            let running = f64::from(started.running);
            let share = if self.running > 0.0 { LOWER } else { 1.0 };
            self.running += share * (running - self.running);
        }
    }

    fn learn_best(&mut self, rate: f64, waiting_ahead: u32) {
        if self.best_samples == 0 {
            self.best_rate = rate;
        } else if rate > self.best_rate {
            // The first ones may have been a cold start's.
            let weight = f64::from(self.best_samples).sqrt().recip().max(BEST_WEIGHT);
            approach(&mut self.best_rate, rate, weight);
        } else if waiting_ahead == 0 {
            approach(&mut self.best_rate, rate, BEST_WEIGHT);
        } else {
            // Behind others a low rate may be the wait for a place.
            return;
        }
        self.best_samples = self.best_samples.saturating_add(1);
    }

    fn knows_prefill(&self) -> bool {
        self.best_samples >= PREFILL_SAMPLES_MIN
    }

    fn close_rounds(&mut self, params: &LimitParams, now: Instant) {
        self.starts.close_round(2.0 * f64::from(params.inflight_max) / params.queue_s, now);
        self.prefill.close_round(self.best_rate.max(*OBSERVED_RATE_RANGE.start()), now);
    }

    /// To be called about once a second, with what is there.
    pub fn on_tick(&mut self, standing: &Standing, params: &LimitParams, now: Instant) {
        self.close_rounds(params, now);
        if standing.waiting == 0 {
            (self.quiet_since, self.stalled) = (None, false);
            return;
        }
        let since = *self.quiet_since.get_or_insert(now);
        if !self.knows_prefill() {
            // How long its prefills take is not known.
            return;
        }
        let prefill_s = standing.queued_tokens as f64 / self.best_rate;
        let quiet = now.saturating_duration_since(since).as_secs_f64();
        self.stalled = quiet > prefill_s + params.queue_s;
    }

    /// The worker refused a request sent at `sent`, as it had enough with `requests`.
    pub fn on_refused(&mut self, requests: u32, sent: Instant, now: Instant) {
        if self.refused_at.is_some_and(|at| sent < at) {
            return;
        }
        let left = (f64::from(requests) * REFUSED_SHARE).max(f64::from(INFLIGHT_MIN));
        self.refused = Some(self.refused.map_or(left, |bound| bound.min(left)));
        self.refused_at = Some(now);
    }

    /// The worker took a request.
    pub fn on_accepted(&mut self, params: &LimitParams) {
        if let Some(bound) = &mut self.refused {
            *bound += ACCEPTED_STEP;
            if *bound >= f64::from(params.inflight_max) {
                self.refused = None;
            }
        }
    }

    /// What follows from it.
    pub fn bounds(&self, params: &LimitParams) -> Bounds {
        let waiting = (self.starts.per_s * params.queue_s) as u32;
        let learned = self.prefill.per_s < *OBSERVED_RATE_RANGE.end();
        let queued = (self.prefill.per_s * params.queue_s) as u64;
        Bounds {
            waiting_max: if self.stalled { WAITING_MIN } else { waiting.max(WAITING_MIN) },
            queued_tokens_max: if learned { queued } else { u64::MAX },
            running: self.running.round() as u32,
            refused_max: self.refused.map(|bound| bound as u32),
            inflight_max: params.inflight_max,
        }
    }
}

/// Bounds at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Streams that may wait.
    pub waiting_max: u32,
    /// Tokens of prefill that may.
    pub queued_tokens_max: u64,
    /// Requests that run while others wait.
    pub running: u32,
    /// Requests in flight of which the worker itself refused more.
    pub refused_max: Option<u32>,
    /// Requests in flight that are never exceeded.
    pub inflight_max: u32,
}

impl Bounds {
    /// Requests in flight that are enough, with what is there; never under [`INFLIGHT_MIN`].
    pub fn inflight_max(&self, standing: &Standing) -> u32 {
        let Standing { requests, waiting, queued_tokens } = *standing;
        let running = requests.saturating_sub(waiting).max(self.running);
        let enough = running.saturating_add(self.waiting_max).min(self.inflight_max);
        let full = waiting >= WAITING_MIN && queued_tokens >= self.queued_tokens_max;
        (if full { enough.min(requests) } else { enough }).max(INFLIGHT_MIN)
    }

    /// The same, or less where the worker refused more, or has begun slowly and is due only this
    /// `share` of its weight so far: then it is better to ask another, but nobody need be turned away
    /// for it.
    pub fn preferred_max(&self, standing: &Standing, share: f64) -> u32 {
        let enough = self.inflight_max(standing);
        let enough = enough.min(self.refused_max.unwrap_or(u32::MAX));
        ((f64::from(enough) * share) as u32).clamp(INFLIGHT_MIN, enough)
    }

    /// What to put into `Candidate::inflight_max` where the bound is `enough`: it shuts there, and
    /// is the highest otherwise. A policy that measures load by the bound measures all workers alike
    /// so, whatever has been learned of which.
    pub fn gate(&self, standing: &Standing, enough: u32) -> u32 {
        let requests = standing.requests;
        if requests >= enough { requests.min(self.inflight_max) } else { self.inflight_max }
    }
}
