//! The longest match always, and with a fixed valve: what many a router does at heart.

use rand::rngs::SmallRng;

use super::{Router, Sight, least, least_of};

/// The longest match; of those that tie the one with the fewest requests.
#[derive(Debug)]
pub(super) struct LongestMatch;

impl Router for LongestMatch {
    fn pick(&mut self, sight: &Sight<'_>, rng: &mut SmallRng) -> usize {
        let longest = sight.workers.iter().map(|seen| seen.matched).max().unwrap_or(0);
        least(sight, rng, |seen| {
            if seen.matched == longest { f64::from(seen.load.requests) } else { f64::INFINITY }
        })
    }
}

/// The longest match among workers with at most so many seconds of prefill before them; where all
/// have more, among all. Of those that tie the one with the least before it.
#[derive(Debug)]
pub(super) struct Valve {
    /// Seconds.
    pub(super) backlog_max_s: f64,
}

impl Router for Valve {
    fn pick(&mut self, sight: &Sight<'_>, rng: &mut SmallRng) -> usize {
        let backlog = |at: usize| sight.workers[at].forecast.backlog_s;
        let all = 0..sight.workers.len();
        let mut open: Vec<usize> =
            all.clone().filter(|at| backlog(*at) <= self.backlog_max_s).collect();
        if open.is_empty() {
            open.extend(all);
        }
        let longest = open.iter().map(|at| sight.workers[*at].matched).max();
        open.retain(|at| Some(sight.workers[*at].matched) == longest);
        least_of(open, rng, backlog)
    }
}
