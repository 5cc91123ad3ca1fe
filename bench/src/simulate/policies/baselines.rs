//! What every policy has to beat, and what bounds it.

use rand::rngs::SmallRng;
use warmroute::routing::Work;

use super::{Needs, Router, Seen, Sight, least, mixed};

/// Fewest requests.
#[derive(Debug)]
pub struct LeastOutstanding;

impl Router for LeastOutstanding {
    fn pick(&mut self, sight: &Sight<'_>, rng: &mut SmallRng) -> usize {
        least(sight, rng, |seen| f64::from(seen.load.requests))
    }
}

/// Least queued prefill, in seconds by the product's forecast; blind to prefixes.
#[derive(Debug)]
pub struct Backlog;

impl Router for Backlog {
    fn pick(&mut self, sight: &Sight<'_>, rng: &mut SmallRng) -> usize {
        let whole = Work::of(sight.request.tokens, sight.request.tokens);
        let own = |seen: &Seen| seen.forecast.cost.seconds(&whole);
        // Blind to prefixes, not to a worker's speed.
        let fastest = sight.workers.iter().map(own).fold(f64::INFINITY, f64::min);
        least(sight, rng, |seen| {
            let extra = own(seen) - fastest;
            let extra = if extra < 1e-9 { 0.0 } else { extra };
            seen.forecast.backlog_s + extra
        })
    }
}

/// Least predicted time to first token, by the product's forecast: queue and own uncached prefill.
#[derive(Debug)]
pub(super) struct Cost;

impl Router for Cost {
    fn pick(&mut self, sight: &Sight<'_>, rng: &mut SmallRng) -> usize {
        least(sight, rng, |seen| answer_s(sight, seen))
    }
}

/// Predicted seconds to the first token at a worker.
pub(super) fn answer_s(sight: &Sight<'_>, seen: &Seen) -> f64 {
    seen.forecast.backlog_s + own_s(sight, seen)
}

/// Predicted seconds of this request's own prefill at a worker.
pub(super) fn own_s(sight: &Sight<'_>, seen: &Seen) -> f64 {
    let tokens = sight.request.tokens;
    seen.forecast.cost.seconds(&Work::of(tokens - seen.hit_tokens, tokens))
}

/// Least time to first token in truth: with a shared cache, the yardstick.
#[derive(Debug)]
pub struct LeastTrueAnswer;

impl Router for LeastTrueAnswer {
    fn pick(&mut self, sight: &Sight<'_>, rng: &mut SmallRng) -> usize {
        least(sight, rng, |seen| seen.true_answer_s)
    }

    fn needs(&self) -> Needs {
        Needs::Truth
    }
}

/// The session's worker, whatever goes on there.
#[derive(Debug)]
pub struct SessionHash;

impl Router for SessionHash {
    fn pick(&mut self, sight: &Sight<'_>, _: &mut SmallRng) -> usize {
        (mixed(sight.request.session) % sight.workers.len() as u64) as usize
    }
}
