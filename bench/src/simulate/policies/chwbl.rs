//! Consistent hashing with bounded loads, as in KubeAI's `PrefixHash`.
//!
//! substratusai/kubeai, internal/loadbalancer/balance_chwbl.go at 08e69e5, with the defaults of its
//! API: the first 100 characters of the prompt are hashed onto a ring with 256 places a worker; from
//! there on the first worker whose load, with this request, is at most 1.25 times the mean. Traces
//! know blocks, not characters, so the key is the first block, which is longer than 100 characters.

use rand::rngs::SmallRng;

use super::{Router, Sight, mixed};

/// Places of a worker on the ring.
const REPLICATION: u64 = 256;
/// What a worker may carry, over the mean.
const LOAD_FACTOR: f64 = 1.25;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Chwbl {
    /// Place and worker, in the order of places.
    ring: Vec<(u64, usize)>,
    workers: usize,
}

impl Chwbl {
    fn place(&mut self, workers: usize) {
        if self.workers == workers {
            return;
        }
        self.workers = workers;
        let places = (0..workers).flat_map(|worker| {
            (0..REPLICATION).map(move |at| (mixed((worker as u64) << 32 | at), worker))
        });
        self.ring = places.collect();
        self.ring.sort_unstable();
    }
}

impl Router for Chwbl {
    fn pick(&mut self, sight: &Sight<'_>, _: &mut SmallRng) -> usize {
        self.place(sight.workers.len());
        let key = mixed(u64::from(sight.request.blocks.first().copied().unwrap_or(0)) ^ 0xc4);
        let from = self.ring.partition_point(|(place, _)| *place < key) % self.ring.len();
        let total: u32 = sight.workers.iter().map(|seen| seen.load.requests).sum();
        let bound = f64::from(total + 1) / sight.workers.len() as f64 * LOAD_FACTOR;
        let around = self.ring[from..].iter().chain(&self.ring[..from]).map(|(_, worker)| *worker);
        let under = |worker: &usize| {
            total == 0 || f64::from(sight.workers[*worker].load.requests + 1) <= bound
        };
        around.clone().find(under).or_else(|| around.clone().next()).unwrap_or(0)
    }
}
