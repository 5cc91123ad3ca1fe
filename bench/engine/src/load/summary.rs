//! The figures of a run.

use std::time::Duration;

use super::LoadResult;

/// Percentiles of a set of durations, by nearest rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Percentiles {
    /// Half of them were at most this long.
    pub p50: Duration,
    /// 95 % of them were.
    pub p95: Duration,
    /// 99 % of them were.
    pub p99: Duration,
}

/// What is compared between two runs.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Summary {
    /// Requests sent.
    pub requests: usize,
    /// Those of them that failed.
    pub errors: usize,
    /// Time to the first event with content, of those that did not fail.
    pub first_token: Percentiles,
    /// Mean of the same.
    pub first_token_mean: Duration,
    /// Of the prompt tokens in the responses' usage, the share that was cached.
    pub hit_rate: f64,
    /// Requests without error a second.
    pub requests_per_s: f64,
    /// Tokens generated a second.
    pub output_tokens_per_s: f64,
    /// From the first request to the last response.
    pub elapsed: Duration,
}

impl Percentiles {
    /// Of any durations, in any order; zero of none.
    pub fn of(mut durations: Vec<Duration>) -> Self {
        durations.sort_unstable();
        let at = |share: f64| {
            let rank = (durations.len() as f64 * share).ceil() as usize;
            durations.get(rank.saturating_sub(1)).copied().unwrap_or_default()
        };
        Self { p50: at(0.50), p95: at(0.95), p99: at(0.99) }
    }
}

impl Summary {
    pub(super) fn of(result: &LoadResult) -> Self {
        let answered = || result.records.iter().filter(|record| record.error.is_none());
        let first_tokens: Vec<Duration> =
            answered().filter_map(|record| record.first_token).collect();
        let seconds = result.elapsed.as_secs_f64().max(f64::EPSILON);
        let prompt_tokens: u64 = answered().map(|record| record.prompt_tokens).sum();
        let cached_tokens: u64 = answered().map(|record| record.cached_tokens).sum();
        let output_tokens: u64 = answered().map(|record| record.completion_tokens).sum();
        let first_token_count = u32::try_from(first_tokens.len().max(1)).unwrap_or(u32::MAX);
        Self {
            requests: result.records.len(),
            errors: result.records.len() - answered().count(),
            first_token_mean: first_tokens.iter().sum::<Duration>() / first_token_count,
            first_token: Percentiles::of(first_tokens),
            hit_rate: cached_tokens as f64 / prompt_tokens.max(1) as f64,
            requests_per_s: answered().count() as f64 / seconds,
            output_tokens_per_s: output_tokens as f64 / seconds,
            elapsed: result.elapsed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_occurred() {
        let percentiles = Percentiles::of((1..=100).rev().map(Duration::from_millis).collect());
        assert_eq!(percentiles.p50, Duration::from_millis(50));
        assert_eq!(percentiles.p95, Duration::from_millis(95));
        assert_eq!(percentiles.p99, Duration::from_millis(99));
        let one = Percentiles::of(vec![Duration::from_millis(7)]);
        assert_eq!((one.p50, one.p99), (one.p95, Duration::from_millis(7)));
        assert_eq!(Percentiles::of(Vec::new()), Percentiles::default());
    }
}
