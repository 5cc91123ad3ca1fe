//! A matrix of cells in a few lines: geometric means, and where a policy does harm.
//!
//! Harm is measured against the better of `least-loaded` and `backlog` in each cell, neither of which
//! knows of prefixes: whoever is worse than that had better not look at prefixes at all.

use serde::Serialize;

use super::figures::{Estimate, Figures, geometric_mean};
use super::plan::{Cell, EngineKind};
use super::policies::Named;

/// A ratio over this is harm.
pub const HARM: f64 = 1.05;
/// Worst cells that are told of.
const WORST: usize = 10;

/// The summary.
#[derive(Debug, Serialize)]
pub struct Summary {
    /// By trace and kind of engine; the last one is over all.
    pub means: Vec<GroupMeans>,
    /// By policy.
    pub harm: Vec<Harm>,
}

/// Geometric means of a group of cells.
#[derive(Debug, Serialize)]
pub struct GroupMeans {
    /// Trace and engine.
    pub group: String,
    /// Cells in it.
    pub cells: usize,
    /// Policy and its ratios to `shared`: p50, p95, p99, mean, hit.
    pub policies: Vec<(&'static str, [f64; 5])>,
}

/// Where a policy is worse than not knowing of prefixes.
#[derive(Debug, Serialize)]
pub struct Harm {
    /// The policy.
    pub policy: &'static str,
    /// Comparisons: mean and p95 of each cell.
    pub comparisons: usize,
    /// Those over [`HARM`].
    pub over: usize,
    /// Those over it by more than two standard errors.
    pub surely_over: usize,
    /// The worst, worst first.
    pub worst: Vec<Comparison>,
}

/// One figure of a cell against the better baseline.
#[derive(Debug, Clone, Serialize)]
pub struct Comparison {
    /// Ratio.
    pub ratio: f64,
    /// Its standard error.
    pub error: Option<f64>,
    /// `mean` or `p95`.
    pub figure: &'static str,
    /// The cell in words.
    pub cell: String,
}

/// Of all cells. `figures` are by cell, policy and redraw; `policies` begin with `shared`,
/// `least-loaded` and `backlog`.
pub fn summarize(
    traces: &[String],
    cells: &[Cell],
    policies: &[Named],
    figures: &[Vec<Vec<Figures>>],
) -> Summary {
    let group = |name: String, within: &dyn Fn(&Cell) -> bool| {
        let inside = || cells.iter().zip(figures).filter(|(cell, _)| within(cell));
        let ratios = |policy: usize| -> Vec<Figures> {
            let ratio = |(_, of): (_, &Vec<Vec<Figures>>)| Estimate::ratio_of(&of[policy], &of[0]);
            inside().filter_map(ratio).map(|estimate| estimate.value).collect()
        };
        let mean = |policy: usize| {
            let ratios = ratios(policy);
            let of = |figure: fn(&Figures) -> f64| geometric_mean(ratios.iter().map(figure));
            [of(|f| f.p50), of(|f| f.p95), of(|f| f.p99), of(|f| f.mean), of(|f| f.hit)]
        };
        let of_policy = |(at, policy): (usize, &Named)| (policy.as_str(), mean(at));
        let policies = policies.iter().enumerate().map(of_policy).collect();
        GroupMeans { group: name, cells: inside().count(), policies }
    };
    let mut means = Vec::new();
    for (at, trace) in traces.iter().enumerate() {
        for engine in [EngineKind::Fifo, EngineKind::Batching] {
            let within = |cell: &Cell| cell.trace == at && cell.engine == engine;
            means.push(group(format!("{trace}, {}", engine.as_str()), &within));
        }
    }
    means.push(group("all".to_owned(), &|_| true));
    means.retain(|group| group.cells > 0);
    let harm = |at: usize| harm(at, traces, cells, policies, figures);
    Summary { means, harm: (3..policies.len()).map(harm).collect() }
}

fn harm(
    policy: usize,
    traces: &[String],
    cells: &[Cell],
    policies: &[Named],
    figures: &[Vec<Vec<Figures>>],
) -> Harm {
    let mut all = Vec::new();
    for (cell, of) in cells.iter().zip(figures) {
        for (figure, value) in [("mean", (|f| f.mean) as fn(&Figures) -> f64), ("p95", |f| f.p95)] {
            let against = |other: usize| Estimate::ratio_of(&of[policy], &of[other]);
            let estimates = [1, 2].into_iter().filter_map(against);
            let worse = |a: &Estimate, b: &Estimate| value(&a.value).total_cmp(&value(&b.value));
            if let Some(estimate) = estimates.max_by(worse) {
                all.push(Comparison {
                    ratio: value(&estimate.value),
                    error: estimate.error.as_ref().map(value),
                    figure,
                    cell: format!("{}: {}", traces[cell.trace], cell.describe()),
                });
            }
        }
    }
    all.sort_by(|a, b| b.ratio.total_cmp(&a.ratio));
    let over = all.iter().filter(|one| one.ratio > HARM);
    let surely =
        over.clone().filter(|one| one.error.is_some_and(|error| one.ratio - 2.0 * error > HARM));
    Harm {
        policy: policies[policy].as_str(),
        comparisons: all.len(),
        over: over.count(),
        surely_over: surely.count(),
        worst: all[..all.len().min(WORST)].to_vec(),
    }
}
