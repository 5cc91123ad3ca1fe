//! The product's own policies, by their own code.

use rand::rngs::SmallRng;
use warmroute::routing::{self, Ask, Candidate, Policy, PolicyParams, WorkerId};

use super::{Router, Sight, least, mixed};

/// `limits.inflight_max` as it ships.
const INFLIGHT_MAX: u32 = 1024;

/// One of the product's policies.
#[derive(Debug)]
pub struct Product {
    policy: Policy,
    params: PolicyParams,
    keys: Vec<u64>,
    candidates: Vec<Candidate>,
    turn: u64,
}

impl Product {
    /// `policy` with its shipped settings.
    pub fn new(policy: Policy) -> Self {
        let params = PolicyParams::default();
        Self { policy, params, keys: Vec::new(), candidates: Vec::new(), turn: 0 }
    }
}

impl Router for Product {
    fn pick(&mut self, sight: &Sight<'_>, rng: &mut SmallRng) -> usize {
        for at in self.keys.len()..sight.workers.len() {
            let id = WorkerId::try_new(&format!("w{at}")).expect("it is a name");
            self.keys.push(id.key());
        }
        self.candidates.clear();
        for (slot, seen) in sight.workers.iter().enumerate() {
            self.candidates.push(Candidate {
                slot,
                key: self.keys[slot],
                weight: 1.0,
                matched_blocks: seen.matched as u32,
                load: seen.load,
                inflight_max: INFLIGHT_MAX,
                forecast: seen.forecast,
            });
        }
        self.turn += 1;
        let ask = Ask {
            blocks: sight.request.blocks.len() as u32,
            tokens: sight.request.tokens,
            session: Some(sight.request.session),
            // A trace does not say where the system prompt ends.
            prefix: sight.request.blocks.first().map(|block| mixed(u64::from(*block))),
            turn: self.turn,
            ..Ask::default()
        };
        let decision = routing::pick(self.policy, &self.params, &ask, &self.candidates, rng);
        // Nothing is shed here: what finds all saturated waits where the fewest are.
        decision.map_or_else(
            |_| least(sight, rng, |seen| f64::from(seen.load.requests)),
            |decision| decision.slot,
        )
    }
}
