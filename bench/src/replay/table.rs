//! Results as text for a terminal.

use std::fmt::Write;

use super::{
    pooled::{Figures, Pooled},
    results::Results,
    summary::Run,
};
use crate::stats::bootstrap::Figure;

/// One run in a line.
pub fn line(run: &Run) -> String {
    let point = run.point.as_ref().map_or(String::new(), |p| format!("{}={} ", p.name, p.value));
    let ttft = run.ttft_ms.map_or("no answer".to_owned(), |ttft| {
        format!("TTFT p50 {:.0} p95 {:.0} p99 {:.0} ms", ttft.p50, ttft.p95, ttft.p99)
    });
    format!(
        "{point}{} seed {}: {ttft}, hit rate {}, {:.1} requests/s, {} of {} failed",
        run.policy,
        run.seed,
        percent(run.hit_rate),
        run.requests_per_s,
        run.requests - run.answered,
        run.requests,
    )
}

/// The table at the end.
pub fn render(results: &Results) -> String {
    let name_width =
        results.pooled.iter().map(|pooled| pooled.policy.len()).max().unwrap_or(0).max(8);
    let mut text = String::new();
    let mut point = None;
    for pooled in &results.pooled {
        if point != Some(&pooled.point) {
            if let Some(swept) = &pooled.point {
                let _ = writeln!(text, "\n{} = {}", swept.name, swept.value);
            }
            let _ = writeln!(
                text,
                "{:name_width$}  {:>24}  {:>24}  {:>8}  {:>7}  {:>7}  {:>10}  {:>6}  ratio of p50 and p95",
                "policy",
                "TTFT p50 ms [95 %]",
                "p95 ms [95 %]",
                "p99 ms",
                "hit",
                "stale",
                "requests/s",
                "failed"
            );
            point = Some(&pooled.point);
        }
        let _ = writeln!(
            text,
            "{:name_width$}  {:>24}  {:>24}  {:>8}  {:>7}  {:>7}  {:>10.1}  {:>6}  {}",
            pooled.policy,
            of(pooled, |figures| figures.p50, interval),
            of(pooled, |figures| figures.p95, interval),
            of(pooled, |figures| figures.p99, |figure| format!("{:.0}", figure.value)),
            percent(pooled.hit_rate.map(|rate| rate.value)),
            percent(pooled.stale_rate),
            pooled.requests_per_s,
            pooled.errors,
            ratios(pooled),
        );
    }
    text
}

fn of(pooled: &Pooled, which: fn(&Figures) -> Figure, shown: fn(Figure) -> String) -> String {
    pooled.ttft_ms.as_ref().map(which).map_or("-".to_owned(), shown)
}

fn interval(figure: Figure) -> String {
    format!("{:.0} [{:.0}, {:.0}]", figure.value, figure.low, figure.high)
}

/// The ratio to the first policy, with its interval.
pub fn ratios(pooled: &Pooled) -> String {
    let ratio =
        |figure: Figure| format!("{:.2} [{:.2}, {:.2}]", figure.value, figure.low, figure.high);
    pooled
        .ttft_ratio
        .map_or("-".to_owned(), |found| format!("{}, {}", ratio(found.p50), ratio(found.p95)))
}

/// In percent, or a dash.
pub fn percent(share: Option<f64>) -> String {
    share.map_or("-".to_owned(), |share| format!("{:.1} %", 100.0 * share))
}
