//! llm-d's endpoint picker: weighted scorers, 3 for the prefix, 2 for the queue, 2 for the cache.
//!
//! llm-d/llm-d-inference-scheduler, pkg/epp/framework/plugins/scheduling/scorer/{prefix, queuedepth,
//! kvcacheutilization} at 12cb9ee; the weights 3, 2, 2 are those of the default profile that its
//! optimized baseline and the Gateway API inference extension ship. The prefix scorer gives the share
//! of the prompt's blocks that is held. The queue scorer is min-max normalised over the candidates:
//! the longest queue gets 0, the shortest 1, be they one request apart; all get 1 where they are
//! equal. The utilization scorer gives 1 less the share of the KV cache that running requests hold.
//! Queue and utilization are the engine's metrics, polled every 50 ms; here a poll never takes any
//! time. The greatest sum wins, ties at random. The `no-hit-lru` scorer of some profiles is left out.

use rand::rngs::SmallRng;

use super::{Needs, Router, Sight, least};

/// Weights of prefix, queue and utilization.
const WEIGHTS: [f64; 3] = [3.0, 2.0, 2.0];

/// See the module.
#[derive(Debug)]
pub(super) struct LlmD;

impl Router for LlmD {
    fn pick(&mut self, sight: &Sight<'_>, rng: &mut SmallRng) -> usize {
        let queues = sight.workers.iter().map(|seen| seen.polled_waiting);
        let shortest = queues.clone().min().unwrap_or(0);
        let longest = queues.max().unwrap_or(0);
        let blocks = sight.request.blocks.len().max(1);
        least(sight, rng, |seen| {
            let prefix = seen.matched as f64 / blocks as f64;
            let queue = if longest == shortest {
                1.0
            } else {
                (longest - seen.polled_waiting) as f64 / (longest - shortest) as f64
            };
            let unused = 1.0 - seen.polled_used_share;
            -(WEIGHTS[0] * prefix + WEIGHTS[1] * queue + WEIGHTS[2] * unused)
        })
    }

    fn needs(&self) -> Needs {
        Needs::Metrics
    }
}
