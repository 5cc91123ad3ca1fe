//! What the router says of itself, and how much engines had to do, in the course of a run.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::bed::{Bed, asked};
use crate::scrape::{self, decision};

/// How often it is looked at.
const EVERY: Duration = Duration::from_millis(500);
/// Looks that results keep; a longer run keeps evenly spread ones.
const KEPT: usize = 240;

/// The router's own figures.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Beliefs {
    /// Prompt tokens predicted cached, of answers that say what was.
    pub predicted: f64,
    /// What these answers said.
    pub actual: f64,
    /// Predicted but not cached.
    pub stale: f64,
    /// Cached but not predicted.
    pub missed: f64,
}

impl Beliefs {
    fn read(page: &str) -> Self {
        let sum = |name| scrape::sum(page, name);
        Self {
            predicted: sum("warmroute_predicted_cached_tokens_total"),
            actual: sum("warmroute_actual_cached_tokens_total"),
            stale: sum("warmroute_stale_tokens_total"),
            missed: sum("warmroute_missed_tokens_total"),
        }
    }

    /// What came to these since `before`.
    #[must_use]
    pub fn since(self, before: Self) -> Self {
        Self {
            predicted: self.predicted - before.predicted,
            actual: self.actual - before.actual,
            stale: self.stale - before.stale,
            missed: self.missed - before.missed,
        }
    }

    /// Of what was predicted cached, the share that was not.
    pub fn stale_rate(&self) -> Option<f64> {
        (self.predicted > 0.0).then(|| self.stale / self.predicted)
    }

    /// Of what was cached, the share that was not predicted.
    pub fn missed_rate(&self) -> Option<f64> {
        (self.actual > 0.0).then(|| self.missed / self.actual)
    }
}

/// One look.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Look {
    /// Seconds since the run began.
    pub t_s: f64,
    /// The router's figures since then.
    pub beliefs: Option<Beliefs>,
    /// Requests running and waiting in each engine.
    pub engine_loads: Vec<usize>,
}

/// What a run leaves to say of the router.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct RouterFigures {
    /// What it believed of caches.
    pub beliefs: Beliefs,
    /// Of predicted tokens, the share that was not cached.
    pub stale_rate: Option<f64>,
    /// Of cached tokens, the share that was not predicted.
    pub missed_rate: Option<f64>,
    /// Bound of the decision time that half of the decisions kept, microseconds; `None` above the
    /// metric's last bound.
    pub decision_p50_us: Option<f64>,
    /// The same for 99 of 100.
    pub decision_p99_us: Option<f64>,
    /// Further attempts.
    pub retries: f64,
}

/// What is looked at.
pub struct Watched<'a> {
    /// The router's metrics listener, if it is known.
    pub metrics_url: Option<String>,
    /// Our own engines, if there are any.
    pub bed: Option<&'a Bed>,
}

impl Watched<'_> {
    async fn page(&self) -> Option<String> {
        asked(self.metrics_url.as_ref()?, "/metrics").await
    }

    /// The metrics page as a run begins.
    pub async fn first(&self) -> Option<String> {
        self.page().await
    }

    /// The figures of a run that began when the page was `first`. Histograms of decisions are those
    /// of the router's whole life.
    pub async fn last(&self, first: Option<&str>) -> Option<RouterFigures> {
        let page = self.page().await?;
        let before = first.map(Beliefs::read).unwrap_or_default();
        let beliefs = Beliefs::read(&page).since(before);
        let retries = |page: &str| scrape::sum(page, "warmroute_retries_total");
        let bound = |q| Some(decision(&page, q)).filter(|bound| bound.is_finite());
        Some(RouterFigures {
            beliefs,
            stale_rate: beliefs.stale_rate(),
            missed_rate: beliefs.missed_rate(),
            decision_p50_us: bound(0.5),
            decision_p99_us: bound(0.99),
            retries: retries(&page) - first.map_or(0.0, retries),
        })
    }

    /// Looks until dropped.
    pub async fn look(&self, first: Option<&str>, since: Instant, looks: &mut Vec<Look>) {
        let before = first.map(Beliefs::read).unwrap_or_default();
        let mut ticks = interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            ticks.tick().await;
            let t_s = since.elapsed().as_secs_f64();
            let page = self.page().await;
            let counted = self.bed.map(Bed::counted).unwrap_or_default();
            looks.push(Look {
                t_s,
                beliefs: page.map(|page| Beliefs::read(&page).since(before)),
                engine_loads: counted
                    .iter()
                    .map(|(_, stats)| stats.running + stats.waiting)
                    .collect(),
            });
        }
    }
}

/// At most `KEPT` of them, evenly spread, the last one among them.
pub fn thinned(looks: Vec<Look>) -> Vec<Look> {
    let step = looks.len().div_ceil(KEPT).max(1);
    let last = looks.len().saturating_sub(1);
    let keeps = |at: usize| at.is_multiple_of(step) || at == last;
    looks.into_iter().enumerate().filter(|(at, _)| keeps(*at)).map(|(_, look)| look).collect()
}

/// How many of `values` there are of each.
pub fn counted<'a>(values: impl Iterator<Item = &'a str>) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    for value in values {
        *counts.entry(value.to_owned()).or_default() += 1;
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_page_and_takes_what_came_since() {
        let page = "# HELP warmroute_stale_tokens_total x\n\
            warmroute_stale_tokens_total{worker=\"a\"} 30\n\
            warmroute_stale_tokens_total{worker=\"b\"} 20\n\
            warmroute_predicted_cached_tokens_total{worker=\"a\"} 600\n";
        let now = Beliefs::read(page);
        let before = Beliefs { predicted: 100.0, stale: 25.0, ..Beliefs::default() };
        let since = now.since(before);
        assert_eq!((since.predicted, since.stale), (500.0, 25.0));
        assert_eq!(since.stale_rate(), Some(0.05));
        assert_eq!(since.missed_rate(), None);
    }

    #[test]
    fn a_long_run_keeps_its_end() {
        let look = |at: u32| Look { t_s: f64::from(at), ..Look::default() };
        let kept = thinned((0..5_001).map(look).collect());
        assert!(kept.len() <= KEPT + 1);
        assert_eq!(kept.last(), Some(&look(5_000)));
        assert_eq!(thinned(Vec::new()), []);
    }
}
