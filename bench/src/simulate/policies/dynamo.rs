//! NVIDIA Dynamo's default cost: blocks to prefill and blocks in use.
//!
//! ai-dynamo/dynamo, lib/kv-router/src/scheduling/selector/default.rs at 07a6c9c, with the defaults of
//! scheduling/config.rs: `overlap_score_credit` 1, its decay 0, `prefill_load_scale` 1,
//! `decode_active_request_weight` 0, `router_temperature` 0.
//!
//! ```text
//! cost(w) = max(0, (tokens being prefilled at w + prompt) / block - overlap(w)) + blocks in use at w
//! ```
//!
//! Blocks in use are those of all prompts under way, each block once, with this prompt's; growth by
//! output is not tracked by default. Least wins, ties at random.

use std::collections::HashMap;

use rand::rngs::SmallRng;

use super::{End, Router, Sight, least_of};

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Dynamo {
    /// Each worker's blocks under way, with the number of requests that use them.
    active: Vec<HashMap<u32, u32>>,
}

impl Router for Dynamo {
    fn pick(&mut self, sight: &Sight<'_>, rng: &mut SmallRng) -> usize {
        self.active.resize_with(sight.workers.len(), HashMap::new);
        let request = sight.request;
        let block_tokens = request.block_tokens as f64;
        let chosen = least_of(0..sight.workers.len(), rng, |at| {
            let (seen, active) = (&sight.workers[at], &self.active[at]);
            let raw = (seen.load.queued_tokens + request.tokens) as f64 / block_tokens;
            let prefill = (raw - seen.matched as f64).max(0.0);
            let additional = request.blocks.iter().filter(|block| !active.contains_key(block));
            prefill + (active.len() + additional.count()) as f64
        });
        for block in &request.blocks {
            *self.active[chosen].entry(*block).or_default() += 1;
        }
        chosen
    }

    fn finished(&mut self, end: &End<'_>) {
        let active = &mut self.active[end.worker];
        for block in &end.request.blocks {
            if let Some(users) = active.get_mut(block) {
                *users -= 1;
                if *users == 0 {
                    active.remove(block);
                }
            }
        }
    }
}
