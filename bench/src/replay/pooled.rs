//! Several seeds of one policy taken together, and compared with the first policy.

use serde::{Deserialize, Serialize};

use super::{options::Point, row::Row, summary::Run};
use crate::stats::{
    self,
    bootstrap::{self, Figure},
};

/// Percentiles with their intervals.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// The median.
    pub p50: Figure,
    /// The 95th percentile.
    pub p95: Figure,
    /// The 99th percentile.
    pub p99: Figure,
}

impl From<[Figure; 3]> for Figures {
    fn from([p50, p95, p99]: [Figure; 3]) -> Self {
        Self { p50, p95, p99 }
    }
}

/// A figure of several seeds: its mean and standard deviation over them.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct OverSeeds {
    /// The mean.
    pub mean: f64,
    /// `None` of one seed.
    pub deviation: Option<f64>,
}

/// All seeds of a policy at a point.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Pooled {
    /// The policy, or the name of the server.
    pub policy: String,
    /// Where something is swept.
    pub point: Option<Point>,
    /// How many seeds.
    pub seeds: usize,
    /// Requests of all of them.
    pub requests: usize,
    /// Those that failed or were not sent.
    pub errors: usize,
    /// TTFT, milliseconds.
    pub ttft_ms: Option<Figures>,
    /// Its mean.
    pub ttft_mean_ms: Option<Figure>,
    /// Of prompt tokens, the share that was cached.
    pub hit_rate: Option<Figure>,
    /// Of predicted tokens, the share that was not cached, by the router's count.
    pub stale_rate: Option<f64>,
    /// Requests answered a second, the mean over seeds.
    pub requests_per_s: f64,
    /// Medians of the seeds.
    pub ttft_p50_by_seed_ms: Option<OverSeeds>,
    /// 95th percentiles of the seeds.
    pub ttft_p95_by_seed_ms: Option<OverSeeds>,
    /// TTFT to that of the first policy, over requests that both answered.
    pub ttft_ratio: Option<Figures>,
    /// The distribution of TTFT, as in a run.
    pub ttft_grid_ms: Vec<f64>,
}

/// The rows of a run, for as long as they are needed.
pub struct Kept {
    /// The run.
    pub run: Run,
    /// Its rows, in the order of the trace.
    pub rows: Vec<Row>,
}

/// All policies at a point, the first of them the one compared with.
pub fn pool(policies: &[String], point: Option<&Point>, kept: &[Kept]) -> Vec<Pooled> {
    let of = |policy: &String| -> Vec<&Kept> {
        let is_its = |kept: &&Kept| kept.run.policy == *policy && kept.run.point.as_ref() == point;
        kept.iter().filter(is_its).collect()
    };
    let first = policies.first().map(of).unwrap_or_default();
    let mut all = Vec::new();
    for (at, policy) in policies.iter().enumerate() {
        let runs = of(policy);
        if !runs.is_empty() {
            all.push(one(policy, &runs, if at == 0 { &[] } else { &first }));
        }
    }
    all
}

fn one(policy: &str, kept: &[&Kept], first: &[&Kept]) -> Pooled {
    let seed = kept[0].run.seed;
    let answered = || kept.iter().flat_map(|kept| &kept.rows).filter(|row| row.is_answered());
    let ttft = stats::sorted(answered().filter_map(|row| row.ttft_ms));
    let tokens: Vec<(f64, f64)> = answered()
        .filter_map(|row| {
            let prompt = row.prompt_tokens?;
            Some((row.cached_tokens?.min(prompt) as f64, prompt as f64))
        })
        .collect();
    let beliefs = kept.iter().filter_map(|kept| kept.run.router.as_ref());
    let (stale, predicted) = beliefs.fold((0.0, 0.0), |sum, router| {
        (sum.0 + router.beliefs.stale, sum.1 + router.beliefs.predicted)
    });
    let rates: Vec<f64> = kept.iter().map(|kept| kept.run.requests_per_s).collect();
    let by_seed = |of: fn(&Run) -> Option<f64>| {
        let values: Vec<f64> = kept.iter().filter_map(|kept| of(&kept.run)).collect();
        let deviation = stats::deviation(&values);
        Some(OverSeeds { mean: stats::mean(&values)?, deviation })
    };
    let requests: usize = kept.iter().map(|kept| kept.run.requests).sum();
    Pooled {
        policy: policy.to_owned(),
        point: kept[0].run.point.clone(),
        seeds: kept.len(),
        requests,
        errors: requests - answered().count(),
        ttft_ms: bootstrap::quantiles(&ttft, seed).map(Figures::from),
        ttft_mean_ms: bootstrap::mean(&ttft, seed),
        hit_rate: bootstrap::share(&tokens, seed),
        stale_rate: (predicted > 0.0).then(|| stale / predicted),
        requests_per_s: stats::mean(&rates).unwrap_or_default(),
        ttft_p50_by_seed_ms: by_seed(|run| run.ttft_ms.map(|ttft| ttft.p50)),
        ttft_p95_by_seed_ms: by_seed(|run| run.ttft_ms.map(|ttft| ttft.p95)),
        ttft_ratio: bootstrap::ratios(&pairs(kept, first), seed).map(Figures::from),
        ttft_grid_ms: stats::grid(&ttft),
    }
}

/// TTFT of the same request of the same seed under both, where both answered it.
fn pairs(kept: &[&Kept], first: &[&Kept]) -> Vec<(f64, f64)> {
    let mut pairs = Vec::new();
    for kept in kept {
        let Some(first) = first.iter().find(|first| first.run.seed == kept.run.seed) else {
            continue;
        };
        for (row, other) in kept.rows.iter().zip(&first.rows) {
            // Rows are those of the trace, in its order, in every run.
            let both = row.is_answered() && other.is_answered() && row.request == other.request;
            pairs.extend(row.ttft_ms.zip(other.ttft_ms).filter(|_| both));
        }
    }
    pairs
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replay::summary::Beside;

    fn kept(policy: &str, seed: u64, ttft: &[f64]) -> Kept {
        let row = |(request, ttft): (usize, &f64)| Row {
            request,
            sent_s: Some(request as f64),
            ttft_ms: Some(*ttft),
            total_ms: Some(*ttft),
            error: ttft.is_nan().then(|| "late".to_owned()),
            ..Row::default()
        };
        let rows: Vec<Row> = ttft.iter().enumerate().map(row).collect();
        Kept { run: Run::of(policy, seed, None, &rows, Beside::default()), rows }
    }

    #[test]
    fn a_policy_is_compared_over_requests_that_both_answered() {
        let kept = [
            kept("a", 1, &[10.0, 20.0, f64::NAN]),
            kept("b", 1, &[5.0, 10.0, 900.0]),
            kept("a", 2, &[30.0, 40.0, 50.0]),
            kept("b", 2, &[15.0, 20.0, 25.0]),
        ];
        let pooled = pool(&["a".to_owned(), "b".to_owned()], None, &kept);
        let [a, b] = &pooled[..] else { panic!("two policies") };
        assert_eq!((a.requests, a.errors, a.seeds, a.ttft_ratio), (6, 1, 2, None));
        let ratio = b.ttft_ratio.expect("a ratio");
        assert!((ratio.p50.value - 0.5).abs() < 1e-9 && (ratio.p99.high - 0.5).abs() < 1e-9);
        // The request that `a` lost still counts for `b` alone.
        assert_eq!(b.ttft_ms.map(|ttft| ttft.p99.value), Some(900.0));
        assert_eq!(b.ttft_p50_by_seed_ms.map(|seeds| seeds.mean), Some(15.0));
        assert_eq!(a.hit_rate, None);
    }
}
