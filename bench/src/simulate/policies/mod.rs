//! Who picks: the product's own policies, what bounds them, and rivals as published.
//!
//! Rivals know of caches what the product's own index knows, under the same `Knowledge`, and their
//! loads are marked at once as ours are, whatever their own code does: what is compared is the
//! decision, not the quality of what it is fed. Each says where its formula and its constants are
//! from.

mod baselines;
mod chwbl;
mod dualmap;
mod dynamo;
mod llmd;
mod lmetric;
mod mooncake;
mod names;
mod preble;
mod prefix;
mod product;
mod smg;
#[cfg(test)]
mod tests;

use rand::Rng;
use rand::rngs::SmallRng;

use super::observer::Seen;
use super::workload::Request;

pub use baselines::{Backlog, LeastOutstanding, LeastTrueAnswer, SessionHash};
pub use names::{Named, UnknownPolicy};
pub use product::Product;

/// What a router sees when it has to pick.
#[derive(Debug)]
pub struct Sight<'a> {
    /// Number of the request.
    pub index: usize,
    /// The request.
    pub request: &'a Request,
    /// Seconds since the start.
    pub now: f64,
    /// Every worker.
    pub workers: &'a [Seen],
}

/// A request that has ended.
#[derive(Debug)]
pub struct End<'a> {
    /// Number of the request.
    pub index: usize,
    /// The request.
    pub request: &'a Request,
    /// Where it ran.
    pub worker: usize,
    /// Seconds from its first token to its last.
    pub decode_s: f64,
}

/// What a router looks at beside what a proxy sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    /// Nothing.
    Nothing,
    /// The engines' metrics, polled.
    Metrics,
    /// What only the engines know: bounds.
    Truth,
}

/// Picks workers.
pub trait Router {
    /// One of `sight.workers`, by index.
    fn pick(&mut self, sight: &Sight<'_>, rng: &mut SmallRng) -> usize;

    /// The first token of a streamed request came.
    fn first_token(&mut self, _index: usize, _worker: usize) {}

    /// A request has ended.
    fn finished(&mut self, _end: &End<'_>) {}

    /// What it looks at.
    fn needs(&self) -> Needs {
        Needs::Nothing
    }
}

/// The least of `scores`; of those that tie one at random.
pub(crate) fn least(sight: &Sight<'_>, rng: &mut SmallRng, score: impl Fn(&Seen) -> f64) -> usize {
    least_of(0..sight.workers.len(), rng, |at| score(&sight.workers[at]))
}

/// The one of `workers` with the least of `scores`; of those that tie one at random; 0 of none.
fn least_of(
    workers: impl IntoIterator<Item = usize>,
    rng: &mut SmallRng,
    score: impl Fn(usize) -> f64,
) -> usize {
    let (mut best, mut least, mut tied) = (0, f64::INFINITY, 0_u32);
    for at in workers {
        let score = score(at);
        if score < least {
            (best, least, tied) = (at, score, 1);
        } else if score <= least {
            tied += 1;
            if rng.random_range(0..tied) == 0 {
                best = at;
            }
        }
    }
    best
}

/// Spreads the bits of a number (the finalizer of splitmix64).
fn mixed(number: u64) -> u64 {
    let x = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}
