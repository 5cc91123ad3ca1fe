//! The figures of one run.

use std::time::Duration;

use serde::Serialize;
use warmroute_engine::{
    EngineStats,
    load::{Percentiles, RequestRecord},
};

/// What one run showed.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Measured {
    /// Requests sent.
    pub requests: usize,
    /// Those that failed.
    pub errors: usize,
    /// Share of the prompt tokens that engines found in their caches.
    pub hit_rate: f64,
    /// Time to the first content, median, milliseconds.
    pub ttft_p50_ms: f64,
    /// The 95th percentile of it.
    pub ttft_p95_ms: f64,
    /// Requests of the busiest worker to the mean.
    pub requests_max_to_mean: f64,
    /// Prefilled tokens of the busiest worker to the mean.
    pub prefill_max_to_mean: f64,
    /// Requests of the busiest router to the mean.
    pub routers_max_to_mean: f64,
    /// Bytes that routers told each other, a request.
    pub peer_bytes: f64,
}

impl Measured {
    /// From the client's records, the engines' counters and the routers' pages.
    pub fn of(records: &[RequestRecord], engines: &[EngineStats], pages: &[String]) -> Self {
        let errors = records.iter().filter(|record| record.error.is_some()).count();
        let ttft: Vec<Duration> = records.iter().filter_map(|record| record.first_token).collect();
        let ttft = Percentiles::of(ttft);
        let prompt: u64 = engines.iter().map(|engine| engine.prompt_tokens).sum();
        let cached: u64 = engines.iter().map(|engine| engine.cached_tokens).sum();
        let prefilled = |engine: &EngineStats| (engine.prompt_tokens - engine.cached_tokens) as f64;
        let sum = |page: &String, name: &str| -> f64 {
            let lines = page.lines().filter(|line| line.starts_with(name));
            lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
        };
        let routed = pages.iter().map(|page| sum(page, "warmroute_decisions_total{"));
        let told = "warmroute_peers_bytes_total{direction=\"out\"}";
        let told: f64 = pages.iter().map(|page| sum(page, told)).sum();
        let ms = |time: Duration| time.as_secs_f64() * 1000.0;
        Self {
            requests: records.len(),
            errors,
            hit_rate: cached as f64 / prompt.max(1) as f64,
            ttft_p50_ms: ms(ttft.p50),
            ttft_p95_ms: ms(ttft.p95),
            requests_max_to_mean: max_to_mean(engines.iter().map(|e| e.requests as f64)),
            prefill_max_to_mean: max_to_mean(engines.iter().map(prefilled)),
            routers_max_to_mean: max_to_mean(routed),
            peer_bytes: told / records.len().max(1) as f64,
        }
    }

    /// The mean of several runs.
    pub fn mean(runs: &[Self]) -> Self {
        let mean = |of: fn(&Self) -> f64| runs.iter().map(of).sum::<f64>() / runs.len() as f64;
        Self {
            requests: runs.iter().map(|run| run.requests).sum(),
            errors: runs.iter().map(|run| run.errors).sum(),
            hit_rate: mean(|run| run.hit_rate),
            ttft_p50_ms: mean(|run| run.ttft_p50_ms),
            ttft_p95_ms: mean(|run| run.ttft_p95_ms),
            requests_max_to_mean: mean(|run| run.requests_max_to_mean),
            prefill_max_to_mean: mean(|run| run.prefill_max_to_mean),
            routers_max_to_mean: mean(|run| run.routers_max_to_mean),
            peer_bytes: mean(|run| run.peer_bytes),
        }
    }

    /// A line of the table; `one` is what one router did.
    pub fn line(&self, name: &str, one: &Self) -> String {
        format!(
            "| {name} | {:.1} % | {:.1} % | {:.0} | {:.0} | {:.3} | {:.3} | {:.3} | {:.0} | {} of {} |",
            100.0 * self.hit_rate,
            100.0 * self.hit_rate / one.hit_rate,
            self.ttft_p50_ms,
            self.ttft_p95_ms,
            self.requests_max_to_mean,
            self.prefill_max_to_mean,
            self.routers_max_to_mean,
            self.peer_bytes,
            self.errors,
            self.requests,
        )
    }
}

/// The head of the table.
pub const HEAD: &str = "| | hit rate | of one router's | TTFT p50, ms | p95, ms | requests a worker, \
max/mean | prefilled tokens, max/mean | requests a router, max/mean | bytes told a request | errors |\n\
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |";

fn max_to_mean(values: impl Iterator<Item = f64>) -> f64 {
    let values: Vec<f64> = values.collect();
    let mean = values.iter().sum::<f64>() / values.len().max(1) as f64;
    values.iter().copied().fold(0.0, f64::max) / mean.max(f64::EPSILON)
}
