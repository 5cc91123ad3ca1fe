//! Mooncake's Conductor: least estimated time to first token.
//!
//! Qin et al., "Mooncake: Trading More Storage for Less Computation", FAST 2025, algorithm 1:
//! estimated queue and estimated prefill, where the queue is the sum of the predicted prefill times
//! of the requests before it, and a prefill is predicted from its length and the prefix held. The
//! branch that fetches a better prefix from another worker (`kvcache_balancing_threshold`) needs a
//! store that workers share, which a proxy does not have; it is left out, and so is the refusal of
//! requests past an SLO. Predictions use the costs the product knows or learns; the time a
//! request has been served already is not credited. Ties at random.

use rand::rngs::SmallRng;

use super::baselines::own_s;
use super::{End, Router, Sight, least_of};

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Conductor {
    /// Predicted seconds of each worker's requests without a first token.
    queued_s: Vec<f64>,
    /// Each request's part in that, until its first token.
    own_s: std::collections::HashMap<usize, f64>,
}

impl Conductor {
    fn leave(&mut self, index: usize, worker: usize) {
        if let Some(own_s) = self.own_s.remove(&index) {
            self.queued_s[worker] = (self.queued_s[worker] - own_s).max(0.0);
        }
        // Sums of many differences drift.
        if self.own_s.is_empty() {
            self.queued_s.fill(0.0);
        }
    }
}

impl Router for Conductor {
    fn pick(&mut self, sight: &Sight<'_>, rng: &mut SmallRng) -> usize {
        self.queued_s.resize(sight.workers.len(), 0.0);
        let own = |at: usize| own_s(sight, &sight.workers[at]);
        let chosen = least_of(0..sight.workers.len(), rng, |at| self.queued_s[at] + own(at));
        self.queued_s[chosen] += own(chosen);
        self.own_s.insert(sight.index, own(chosen));
        chosen
    }

    fn first_token(&mut self, index: usize, worker: usize) {
        self.leave(index, worker);
    }

    fn finished(&mut self, end: &End<'_>) {
        self.leave(end.index, end.worker);
    }
}
