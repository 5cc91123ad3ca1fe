//! DualMap: two workers a prefix by two hashes, and the better of the two.
//!
//! Yuan et al., "DualMap: Enabling Both Cache Affinity and Load Balancing for Distributed LLM
//! Serving", arXiv 2602.06502 (ICLR 2026); the SLO of 5 s is that of its evaluation and of the
//! repository's README (ASISys/DualMap, `ttft_slo`). Of the two candidates the one that holds more,
//! unless its first token is expected later than the SLO: then the one whose first token is expected
//! sooner. Of equal matches the sooner one, too.
//!
//! The prefix that is hashed adapts to skew: it has to be longer than what all prompts begin with.
//! How the paper grows it could not be looked up; here it is the shortest prefix that at most
//! `2 / workers` of the last 1,024 requests began with, that is, what two workers can carry. Moving
//! waiting requests to their other candidate (hotspot-aware rebalancing) is not possible for a proxy
//! that has sent them.

use std::collections::{HashMap, VecDeque};

use rand::rngs::SmallRng;

use super::baselines::answer_s;
use super::{Router, Sight, least_of, mixed};

/// Time to first token past which load decides, seconds.
const SLO_S: f64 = 5.0;
/// Requests over which the popularity of prefixes is counted.
const WINDOW: usize = 1024;
/// Blocks that a hashed prefix may have.
const DEPTH_MAX: usize = 64;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct DualMap {
    /// Leading blocks of the last requests. A block stands for all that precedes it.
    window: VecDeque<Vec<u32>>,
    /// How many of those have each block.
    counts: HashMap<u32, u32>,
}

impl DualMap {
    fn count(&mut self, blocks: &[u32]) {
        let leading = &blocks[..blocks.len().min(DEPTH_MAX)];
        for block in leading {
            *self.counts.entry(*block).or_default() += 1;
        }
        self.window.push_back(leading.to_vec());
        if self.window.len() > WINDOW
            && let Some(oldest) = self.window.pop_front()
        {
            for block in oldest {
                if let Some(count) = self.counts.get_mut(&block) {
                    *count -= 1;
                    if *count == 0 {
                        self.counts.remove(&block);
                    }
                }
            }
        }
    }

    /// The last block of the prefix that is hashed.
    fn key(&self, blocks: &[u32], workers: usize) -> u32 {
        let bound = 2.0 / workers as f64 * self.window.len() as f64;
        let leading = &blocks[..blocks.len().min(DEPTH_MAX)];
        let rare = leading.iter().find(|block| f64::from(self.counts[block]) <= bound);
        rare.or(leading.last()).copied().unwrap_or(0)
    }
}

impl Router for DualMap {
    fn pick(&mut self, sight: &Sight<'_>, rng: &mut SmallRng) -> usize {
        let workers = sight.workers.len();
        self.count(&sight.request.blocks);
        let key = u64::from(self.key(&sight.request.blocks, workers));
        let first = (mixed(key ^ 0xd1) % workers as u64) as usize;
        let mut second = first;
        if workers > 1 {
            // Of the others, so that there are two.
            second = (mixed(key ^ (0xd2 << 32)) % (workers as u64 - 1)) as usize;
            second += usize::from(second >= first);
        }
        let seen = |at: usize| &sight.workers[at];
        let sooner =
            |rng: &mut SmallRng| least_of([first, second], rng, |at| answer_s(sight, seen(at)));
        let warmer = match seen(first).matched.cmp(&seen(second).matched) {
            std::cmp::Ordering::Greater => first,
            std::cmp::Ordering::Less => second,
            std::cmp::Ordering::Equal => return sooner(rng),
        };
        if answer_s(sight, seen(warmer)) <= SLO_S { warmer } else { sooner(rng) }
    }
}
