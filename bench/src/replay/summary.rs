//! The figures of one run.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use warmroute_engine::EngineStats;

use super::{
    options::Point,
    row::Row,
    watch::{Look, RouterFigures, counted},
};
use crate::stats;

/// Most points of the timeline.
const TIMELINE_MAX: usize = 40;
/// Requests of a point on average: fewer would say little.
const STRETCH_REQUESTS: usize = 8;

/// Percentiles of something, and its mean.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// The mean.
    pub mean: f64,
    /// The median.
    pub p50: f64,
    /// 95 of 100 are at most this.
    pub p95: f64,
    /// 99 of 100 are.
    pub p99: f64,
    /// All are.
    pub max: f64,
}

impl Spread {
    /// Of a sorted sample; `None` of nothing.
    pub fn of(sorted: &[f64]) -> Option<Self> {
        let at = |q| stats::quantile(sorted, q);
        Some(Self {
            mean: stats::mean(sorted)?,
            p50: at(0.50)?,
            p95: at(0.95)?,
            p99: at(0.99)?,
            max: at(1.0)?,
        })
    }
}

/// What one worker had to do.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct WorkerShare {
    /// Its id.
    pub worker: String,
    /// Requests it was sent.
    pub requests: u64,
    /// Tokens of their prompts.
    pub prompt_tokens: u64,
    /// Those of them that it had to compute.
    pub prefilled_tokens: u64,
    /// KV blocks it evicted; engines of our own say that.
    pub evicted_blocks: Option<u64>,
}

/// A stretch of the run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Stretch {
    /// Its middle, seconds since the run began.
    pub t_s: f64,
    /// Requests sent in it and answered.
    pub requests: usize,
    /// Of their prompt tokens, the share that was cached.
    pub hit_rate: Option<f64>,
    /// Their median TTFT.
    pub ttft_p50_ms: Option<f64>,
}

/// One run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// The policy, or the name of the server.
    pub policy: String,
    /// What drew it.
    pub seed: u64,
    /// Where something is swept.
    pub point: Option<Point>,
    /// Requests of the trace; each is answered or among the errors.
    pub requests: usize,
    /// Those answered in full.
    pub answered: usize,
    /// What went wrong with the others, counted.
    pub errors: BTreeMap<String, u64>,
    /// From the first request to the last answer.
    pub elapsed_s: f64,
    /// Requests answered a second.
    pub requests_per_s: f64,
    /// Tokens generated a second.
    pub answer_tokens_per_s: f64,
    /// Time to the first content, milliseconds.
    pub ttft_ms: Option<Spread>,
    /// Time to the end of the answer, milliseconds.
    pub total_ms: Option<Spread>,
    /// How late requests were sent, milliseconds: over a few, the client could not keep up.
    pub late_ms: Option<Spread>,
    /// The distribution of TTFT: its values at equal steps of the share.
    pub ttft_grid_ms: Vec<f64>,
    /// Prompt tokens of the answers that say how many there were and how many were cached.
    pub prompt_tokens: u64,
    /// Those of them that were cached.
    pub cached_tokens: u64,
    /// The share of these; `None` where no answer says.
    pub hit_rate: Option<f64>,
    /// The same by the engines' own count, requests that failed included.
    pub engines_hit_rate: Option<f64>,
    /// What each worker had to do.
    pub workers: Vec<WorkerShare>,
    /// Requests of the busiest worker to the mean.
    pub requests_max_to_mean: Option<f64>,
    /// Tokens computed by the busiest worker to the mean.
    pub prefill_max_to_mean: Option<f64>,
    /// X-Router-Reason, counted.
    pub reasons: BTreeMap<String, u64>,
    /// What the router says of itself.
    pub router: Option<RouterFigures>,
    /// In the course of time.
    pub timeline: Vec<Stretch>,
    /// What was looked at meanwhile.
    pub looks: Vec<Look>,
    /// Every request, if they are kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows: Option<Vec<Row>>,
}

/// What is known of a run beside its rows.
#[derive(Debug, Default)]
pub struct Beside {
    /// What the engines counted, if they are ours.
    pub engines: Vec<(String, EngineStats)>,
    /// What the router says.
    pub router: Option<RouterFigures>,
    /// What was looked at.
    pub looks: Vec<Look>,
}

impl Run {
    /// The figures of these rows.
    pub fn of(policy: &str, seed: u64, point: Option<Point>, rows: &[Row], beside: Beside) -> Self {
        let answered: Vec<&Row> = rows.iter().filter(|row| row.is_answered()).collect();
        let of = |value: fn(&Row) -> Option<f64>| {
            stats::sorted(answered.iter().filter_map(|row| value(row)))
        };
        let ttft = of(|row| row.ttft_ms);
        let late = stats::sorted(rows.iter().filter_map(Row::late_ms));
        let elapsed_s = elapsed(rows);
        let tokens: u64 = answered.iter().filter_map(|row| row.answer_tokens).sum();
        let (prompt_tokens, cached_tokens) = cached(answered.iter().copied());
        let workers = shares(rows, &beside.engines);
        let each = |of: fn(&WorkerShare) -> u64| -> Vec<f64> {
            workers.iter().map(|worker| of(worker) as f64).collect()
        };
        let engines = beside.engines.iter().fold((0, 0), |sum, (_, engine)| {
            (sum.0 + engine.prompt_tokens, sum.1 + engine.cached_tokens)
        });
        Self {
            policy: policy.to_owned(),
            seed,
            point,
            requests: rows.len(),
            answered: answered.len(),
            errors: counted(rows.iter().filter_map(|row| row.error.as_deref())),
            elapsed_s,
            requests_per_s: answered.len() as f64 / elapsed_s.max(1e-9),
            answer_tokens_per_s: tokens as f64 / elapsed_s.max(1e-9),
            ttft_ms: Spread::of(&ttft),
            total_ms: Spread::of(&of(|row| row.total_ms)),
            late_ms: Spread::of(&late),
            ttft_grid_ms: stats::grid(&ttft),
            prompt_tokens,
            cached_tokens,
            hit_rate: share(cached_tokens, prompt_tokens),
            engines_hit_rate: share(engines.1, engines.0),
            requests_max_to_mean: stats::max_to_mean(&each(|worker| worker.requests)),
            prefill_max_to_mean: stats::max_to_mean(&each(|worker| worker.prefilled_tokens)),
            workers,
            reasons: counted(rows.iter().filter_map(|row| row.reason.as_deref())),
            router: beside.router,
            timeline: timeline(&answered, elapsed_s),
            looks: beside.looks,
            rows: None,
        }
    }
}

fn elapsed(rows: &[Row]) -> f64 {
    let sent = rows.iter().filter_map(|row| row.sent_s);
    let ended = rows.iter().filter_map(|row| Some(row.sent_s? + row.total_ms? / 1e3));
    (ended.fold(0.0, f64::max) - sent.fold(f64::INFINITY, f64::min)).max(0.0)
}

/// Prompt and cached tokens of the rows that say both.
fn cached<'a>(rows: impl Iterator<Item = &'a Row>) -> (u64, u64) {
    let said = rows.filter_map(|row| Some((row.prompt_tokens?, row.cached_tokens?)));
    said.fold((0, 0), |sum, (prompt, cached)| (sum.0 + prompt, sum.1 + cached.min(prompt)))
}

fn share(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}

/// By the engines' own count where they are ours, else by what the answers say.
fn shares(rows: &[Row], engines: &[(String, EngineStats)]) -> Vec<WorkerShare> {
    if !engines.is_empty() {
        let share = |(worker, stats): &(String, EngineStats)| WorkerShare {
            worker: worker.clone(),
            requests: stats.requests,
            prompt_tokens: stats.prompt_tokens,
            prefilled_tokens: stats.prompt_tokens - stats.cached_tokens.min(stats.prompt_tokens),
            evicted_blocks: Some(stats.evicted_blocks),
        };
        return engines.iter().map(share).collect();
    }
    let mut shares: BTreeMap<&str, WorkerShare> = BTreeMap::new();
    for row in rows {
        // Errors that the router made itself name no worker.
        let Some(worker) = row.worker.as_deref().filter(|worker| *worker != "none") else {
            continue;
        };
        let share = shares.entry(worker).or_default();
        share.requests += 1;
        let prompt = row.prompt_tokens.unwrap_or(0);
        share.prompt_tokens += prompt;
        share.prefilled_tokens += prompt - row.cached_tokens.unwrap_or(0).min(prompt);
    }
    let named =
        |(worker, share): (&str, WorkerShare)| WorkerShare { worker: worker.to_owned(), ..share };
    shares.into_iter().map(named).collect()
}

fn timeline(answered: &[&Row], elapsed_s: f64) -> Vec<Stretch> {
    let points = (answered.len() / STRETCH_REQUESTS).clamp(1, TIMELINE_MAX);
    let length = elapsed_s / points as f64;
    if answered.is_empty() || length <= 0.0 {
        return Vec::new();
    }
    let first = answered.iter().filter_map(|row| row.sent_s).fold(f64::INFINITY, f64::min);
    let mut stretches: Vec<Vec<&Row>> = vec![Vec::new(); points];
    for row in answered {
        let place = ((row.sent_s.unwrap_or(first) - first) / length) as usize;
        stretches[place.min(points - 1)].push(row);
    }
    let stretch = |(at, rows): (usize, Vec<&Row>)| {
        let (prompt, cached) = cached(rows.iter().copied());
        let ttft = stats::sorted(rows.iter().filter_map(|row| row.ttft_ms));
        Stretch {
            t_s: first + (at as f64 + 0.5) * length,
            requests: rows.len(),
            hit_rate: share(cached, prompt),
            ttft_p50_ms: stats::quantile(&ttft, 0.5),
        }
    };
    stretches.into_iter().enumerate().map(stretch).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(at: usize, ttft_ms: f64, cached: Option<u64>) -> Row {
        Row {
            request: at,
            due_s: at as f64,
            sent_s: Some(at as f64 + 0.001),
            ttft_ms: Some(ttft_ms),
            total_ms: Some(ttft_ms + 50.0),
            prompt_tokens: Some(100),
            cached_tokens: cached,
            answer_tokens: Some(10),
            worker: Some(format!("w{}", at % 2)),
            reason: Some("prefix".to_owned()),
            status: Some(200),
            ..Row::default()
        }
    }

    #[test]
    fn every_request_is_answered_or_an_error() {
        let mut rows: Vec<Row> =
            (0..10).map(|at| row(at, 10.0 * (at + 1) as f64, Some(40))).collect();
        rows[3].error = Some("503: shed".to_owned());
        rows[4] = Row { request: 4, error: Some("not sent".to_owned()), ..Row::default() };
        // One that does not say what was cached counts for no share.
        rows[5].cached_tokens = None;
        let run = Run::of("p", 1, None, &rows, Beside::default());
        assert_eq!((run.requests, run.answered), (10, 8));
        assert_eq!(run.errors.values().sum::<u64>(), 2);
        assert_eq!((run.prompt_tokens, run.cached_tokens, run.hit_rate), (700, 280, Some(0.4)));
        assert_eq!(run.ttft_ms.map(|ttft| (ttft.p50, ttft.max)), Some((60.0, 100.0)));
        assert!((run.elapsed_s - 9.15).abs() < 1e-9, "{}", run.elapsed_s);
        assert_eq!(run.timeline.iter().map(|stretch| stretch.requests).sum::<usize>(), 8);
        let requests: Vec<_> = run.workers.iter().map(|worker| worker.requests).collect();
        assert_eq!(requests, [4, 5]);
        assert!(run.late_ms.is_some_and(|late| late.max > 0.99 && late.max < 1.01));
    }

    #[test]
    fn nothing_makes_no_figures() {
        let run = Run::of("p", 1, None, &[], Beside::default());
        assert_eq!((run.ttft_ms, run.hit_rate, run.requests_max_to_mean), (None, None, None));
        assert!(run.timeline.is_empty() && run.ttft_grid_ms.is_empty());
    }
}
