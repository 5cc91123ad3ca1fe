//! LMetric: new prefill tokens times batch size, and no constant at all.
//!
//! Zhang et al., "LMetric: Simple is Better - Multiplication May Be All You Need for LLM Request
//! Scheduling", arXiv 2603.15202 (March 2026). The score is the product of the tokens that the worker
//! would have to prefill if the request went there and of its batch size. Both count the request
//! itself, and the tokens those that wait there already: read so, an idle worker's score is not 0
//! whatever it holds. Least wins, ties at random.

use rand::rngs::SmallRng;

use super::{Router, Sight, least};

/// See the module.
#[derive(Debug)]
pub(super) struct LMetric;

impl Router for LMetric {
    fn pick(&mut self, sight: &Sight<'_>, rng: &mut SmallRng) -> usize {
        least(sight, rng, |seen| {
            let new = seen.load.queued_tokens + (sight.request.tokens - seen.hit_tokens).max(1);
            new as f64 * f64::from(seen.load.requests + 1)
        })
    }
}
