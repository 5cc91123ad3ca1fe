//! Preble's E2: exploit a long match, explore by load otherwise.
//!
//! Srivatsa et al., "Preble: Efficient Distributed Prompt Scheduling for LLM Serving", arXiv
//! 2407.00023 (ICLR 2025), algorithm 1; constants from WukLab/preble,
//! multi_node/global_scheduler_with_time.py at 0c962c4. A request of which more is held than missing
//! goes to the worker that holds most; of several the one with the least load. Any other goes where
//! the sum of the load and of its own prefill is least. A worker's load is the predicted prefill of all
//! it was sent in the last three minutes, and the mean decode of an answer for each request under
//! way.
//!
//! Left out: the cost of evictions (`enable_eviction` is off in the repository), moving whole
//! prefixes from the busiest worker to the idlest (the call is commented out there), replication
//! of hot prefixes by their times to first token, and the local scheduler, which is the engine's.

use std::collections::VecDeque;

use rand::rngs::SmallRng;

use super::baselines::own_s;
use super::{End, Router, Sight, least_of};

/// Seconds that load reaches back.
const WINDOW_S: f64 = 180.0;
/// Seconds of decode assumed of a request until one has ended: 45 tokens of 0.15 s.
const DECODE_S: f64 = 6.75;
/// Weight of the newest answer in the mean.
const NEWEST: f64 = 1.0 / 200.0;

/// See the module.
#[derive(Debug)]
pub(super) struct Preble {
    /// Arrival, worker and predicted prefill of each request in the window.
    window: VecDeque<(f64, usize, f64)>,
    /// Sum of the predicted prefills, and their number, of each worker in the window.
    sent: Vec<(f64, u64)>,
    /// Mean decode, seconds.
    decode_s: f64,
}

impl Default for Preble {
    fn default() -> Self {
        Self { window: VecDeque::new(), sent: Vec::new(), decode_s: DECODE_S }
    }
}

impl Router for Preble {
    fn pick(&mut self, sight: &Sight<'_>, rng: &mut SmallRng) -> usize {
        self.sent.resize(sight.workers.len(), (0.0, 0));
        while let Some(&(at, worker, prefill_s)) = self.window.front()
            && at < sight.now - WINDOW_S
        {
            self.window.pop_front();
            let (sum, count) = &mut self.sent[worker];
            *count -= 1;
            *sum = if *count == 0 { 0.0 } else { *sum - prefill_s };
        }
        let load = |at: usize| {
            self.sent[at].0 + f64::from(sight.workers[at].load.requests) * self.decode_s
        };
        let own = |at: usize| own_s(sight, &sight.workers[at]);
        let longest = sight.workers.iter().map(|seen| seen.hit_tokens).max().unwrap_or(0);
        let all = 0..sight.workers.len();
        let chosen = if longest > sight.request.tokens - longest {
            least_of(all.filter(|at| sight.workers[*at].hit_tokens == longest), rng, load)
        } else {
            least_of(all, rng, |at| load(at) + own(at))
        };
        let prefill_s = own(chosen);
        self.window.push_back((sight.now, chosen, prefill_s));
        let (sum, count) = &mut self.sent[chosen];
        (*sum, *count) = (*sum + prefill_s, *count + 1);
        chosen
    }

    fn finished(&mut self, end: &End<'_>) {
        self.decode_s += NEWEST * (end.decode_s - self.decode_s);
    }
}
