//! Results as a file: every setting and every redraw.

use serde::Serialize;

use super::figures::{Estimate, Figures};
use super::matrix::Summary;
use super::plan::Cell;
use super::policies::Named;

/// Changes when readers have to.
pub const FORMAT: &str = "warmroute-simulate/1";

/// A whole simulation.
#[derive(Debug, Serialize)]
pub struct Results {
    /// [`FORMAT`].
    pub format: &'static str,
    /// Version of the program.
    pub version: &'static str,
    /// The commit that the working folder was at, if known.
    pub commit: Option<String>,
    /// How it was called: all options, defaults too.
    pub settings: Settings,
    /// What was sent.
    pub traces: Vec<TraceFacts>,
    /// What came of it.
    pub cells: Vec<CellResults>,
    /// Over all cells of a matrix.
    pub summary: Option<Summary>,
}

/// Settings that all cells share.
#[derive(Debug, Serialize)]
pub struct Settings {
    /// What the router got to know of caches.
    pub knowledge: String,
    /// Prefill costs: known or learned.
    pub costs: &'static str,
    /// Tokens a step of batching engines.
    pub step_tokens: u32,
    /// Sequences at a time of batching engines.
    pub sequences: usize,
    /// Share of requests that are not streamed.
    pub silent: f64,
    /// Draws of the arrivals.
    pub redraws: u64,
    /// The first one's seed.
    pub seed: u64,
    /// The objective of `capacity`, seconds.
    pub slo_s: Option<f64>,
}

/// A trace.
#[derive(Debug, Clone, Serialize)]
pub struct TraceFacts {
    /// Name.
    pub name: String,
    /// Requests.
    pub requests: usize,
    /// Distinct blocks.
    pub blocks: usize,
    /// Mean prompt.
    pub mean_tokens: f64,
    /// Whether arrivals stayed where they are, spread inside their ticks.
    pub real_arrivals: bool,
    /// What it ran on: seconds a request, a token, a pair, a step and a token read.
    pub hardware_s: [f64; 5],
    /// Tokens of KV cache in that hardware's memory.
    pub kv_tokens: usize,
}

/// A cell.
#[derive(Debug, Serialize)]
pub struct CellResults {
    /// Place of the trace.
    pub trace: usize,
    /// Kind of engine.
    pub engine: &'static str,
    /// Workers.
    pub workers: usize,
    /// Cache of each in tokens.
    pub cache_tokens: usize,
    /// How many times slower the first one is.
    pub slow: f64,
    /// Prefill without a cache over what the fleet can do.
    pub load: Option<f64>,
    /// By policy.
    pub policies: Vec<PolicyResults>,
}

/// A policy in a cell.
#[derive(Debug, Serialize)]
pub struct PolicyResults {
    /// Name.
    pub policy: &'static str,
    /// Mean over redraws.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mean: Option<Estimate>,
    /// Ratio to `shared`, paired by redraw.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to_shared: Option<Estimate>,
    /// Each redraw.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub redraws: Vec<Figures>,
    /// Largest load within the objective, of each redraw.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub capacities: Vec<f64>,
}

impl CellResults {
    /// Of a cell.
    pub fn new(cell: &Cell, cache_tokens: usize, policies: Vec<PolicyResults>) -> Self {
        Self {
            trace: cell.trace,
            engine: cell.engine.as_str(),
            workers: cell.workers,
            cache_tokens,
            slow: cell.slow,
            load: Some(cell.load),
            policies,
        }
    }
}

/// Figures of all policies of a cell; the first of `policies` is what others are measured by.
pub fn of_figures(policies: &[Named], figures: &[Vec<Figures>]) -> Vec<PolicyResults> {
    let one = |(policy, redraws): (&Named, &Vec<Figures>)| PolicyResults {
        policy: policy.as_str(),
        mean: Estimate::mean_of(redraws),
        to_shared: Estimate::ratio_of(redraws, &figures[0]),
        redraws: redraws.clone(),
        capacities: Vec::new(),
    };
    policies.iter().zip(figures).map(one).collect()
}

/// Capacities of all policies of a cell.
pub fn of_capacities(policies: &[Named], capacities: &[Vec<f64>]) -> Vec<PolicyResults> {
    let one = |(policy, redraws): (&Named, &Vec<f64>)| PolicyResults {
        policy: policy.as_str(),
        mean: None,
        to_shared: None,
        redraws: Vec::new(),
        capacities: redraws.clone(),
    };
    policies.iter().zip(capacities).map(one).collect()
}
