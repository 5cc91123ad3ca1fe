//! `cache_aware` of the SGLang model gateway, and of the router it grew out of.
//!
//! lightseekorg/smg, model_gateway/src/policies/cache_aware.rs at 1053321, with the program's defaults
//! (cache threshold 0.3, balance thresholds 64 and 1.5): where loads are imbalanced the least loaded;
//! else the longest match if it is more than the threshold's share of the prompt; else the least
//! loaded. Of equal matches the less loaded, as its event-driven mode does; the text tree of its
//! HTTP mode remembers one of them. Its predecessor sgl-project/sglang, sgl-router/src/policies/
//! cache_aware.rs at 026f853, with the defaults of its `CacheAwareConfig` (0.5, 32, 1.1), sends a miss
//! to the worker with the smallest tree. In both the least loaded is the first in the list, not one
//! drawn at random.

use rand::rngs::SmallRng;

use super::{Router, Seen, Sight};

/// See the module.
#[derive(Debug)]
pub(super) struct CacheAware {
    cache_threshold: f64,
    balance_abs_threshold: u32,
    balance_rel_threshold: f64,
    /// Whether a miss goes to the smallest tree.
    misses_to_smallest: bool,
}

impl CacheAware {
    /// The gateway's.
    pub(super) fn smg() -> Self {
        Self {
            cache_threshold: 0.3,
            balance_abs_threshold: 64,
            balance_rel_threshold: 1.5,
            misses_to_smallest: false,
        }
    }

    /// The older router's.
    pub(super) fn sglang() -> Self {
        Self {
            cache_threshold: 0.5,
            balance_abs_threshold: 32,
            balance_rel_threshold: 1.1,
            misses_to_smallest: true,
        }
    }
}

impl Router for CacheAware {
    fn pick(&mut self, sight: &Sight<'_>, _: &mut SmallRng) -> usize {
        let loads = sight.workers.iter().map(|seen| seen.load.requests);
        let least = loads.clone().min().unwrap_or(0);
        let most = loads.max().unwrap_or(0);
        let imbalanced = most - least > self.balance_abs_threshold
            && f64::from(most) > f64::from(least) * self.balance_rel_threshold;
        if imbalanced {
            return first_least(sight, |seen| u64::from(seen.load.requests));
        }
        let longest = sight.workers.iter().map(|seen| seen.hit_tokens).max().unwrap_or(0);
        if longest as f64 / sight.request.tokens as f64 > self.cache_threshold {
            return first_least(sight, |seen| {
                if seen.hit_tokens == longest { u64::from(seen.load.requests) } else { u64::MAX }
            });
        }
        first_least(sight, |seen| {
            if self.misses_to_smallest {
                seen.held_blocks as u64
            } else {
                u64::from(seen.load.requests)
            }
        })
    }
}

/// The first with the least.
fn first_least(sight: &Sight<'_>, score: impl Fn(&Seen) -> u64) -> usize {
    let scored = sight.workers.iter().map(score).enumerate();
    scored.min_by_key(|(_, score)| *score).map_or(0, |(at, _)| at)
}
