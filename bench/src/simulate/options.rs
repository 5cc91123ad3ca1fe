//! The options of `warmroute-bench simulate`.

use std::path::PathBuf;

use super::observer::Knowledge;
use super::plan::{CacheSize, Cell, Common, EngineKind, HardwareChoice};
use super::policies::Named;

/// What a plain call compares.
const POLICIES: &str = "prefix-aware,least-loaded,backlog,cost,session-hash,prefix-valve,chwbl,\
                        lmetric,dynamo,smg,llm-d,preble,dualmap,mooncake";

/// Drives the product's policy and index over a trace in virtual time, against modelled engines.
///
/// Lists are separated by commas; every combination is run. docs/simulate.md says what is modelled.
#[derive(Debug, Clone, clap::Args)]
pub struct SimulateOptions {
    /// A trace file (.jsonl or .jsonl.zst); may be given several times [default: the bundled one]
    #[arg(long)]
    pub trace: Vec<PathBuf>,
    /// Only the first so many requests of each trace
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub limit: Option<u32>,
    /// Who picks; `shared` and, in a matrix, `least-loaded` and `backlog` are always there
    #[arg(long, value_delimiter = ',')]
    pub policies: Vec<Named>,
    /// Workers [default: 8; in a matrix 4,8,16]
    #[arg(long, value_delimiter = ',', value_parser = workers)]
    pub workers: Vec<usize>,
    /// Cache of a worker: tokens (106000, 106k), 1hbm (what fits the accelerator's memory) or 1x
    /// (70b: the same, 8b: a quarter of it) [default: 1x; in a matrix 0.25x,1x,4x]
    #[arg(long, value_delimiter = ',')]
    pub cache: Vec<CacheSize>,
    /// Prefill without any cache, over what the fleet can do [default: 0.9; in a matrix
    /// 0.5,0.7,0.9,1.1]
    #[arg(long, value_delimiter = ',', value_parser = load)]
    pub load: Vec<f64>,
    /// How engines work [default: fifo; in a matrix both]
    #[arg(long, value_delimiter = ',')]
    pub engine: Vec<EngineKind>,
    /// Tokens a step of batching engines
    #[arg(long, default_value_t = 2048, value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    pub step_tokens: u32,
    /// Sequences at a time of batching engines
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=1 << 16))]
    pub sequences: u32,
    /// 70b, 8b, auto (70b where the mean prompt has 8,000 tokens or more), or
    /// REQUEST_MS:TOKEN_US:PAIR_NS:STEP_MS:READ_NS:KV_TOKENS
    #[arg(long, default_value = "auto")]
    pub hardware: HardwareChoice,
    /// How many times slower the first worker is [default: 1; in a matrix 1,3]
    #[arg(long, value_delimiter = ',', value_parser = slow)]
    pub slow: Vec<f64>,
    /// What the router gets to know of caches: exact, late:SECONDS, lossy:SHARE, presumed or
    /// presumed:FACTOR, the last two also with `,no-feedback` after them
    #[arg(long, default_value = "exact")]
    pub knowledge: Knowledge,
    /// Whether it knows prefill costs beforehand or learns them
    #[arg(long, default_value = "learned")]
    pub costs: Costs,
    /// Share of requests that are not streamed
    #[arg(long, default_value_t = 0.0, value_parser = share)]
    pub silent: f64,
    /// Draws of the arrivals
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    pub redraws: u64,
    /// Seed of the first; the others follow it
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Runs at a time [default: one a processor]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
    /// Results as JSON
    #[arg(long)]
    pub out: Option<PathBuf>,
    /// The whole matrix of workers, caches, loads and a slow worker, and its summary
    #[arg(long, conflicts_with = "slo")]
    pub matrix: bool,
    /// In place of figures at a load: the largest load at which 95 % of first tokens come within
    /// so many seconds
    #[arg(long, conflicts_with = "load", value_parser = seconds)]
    pub slo: Option<f64>,
}

/// Whether costs are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Costs {
    /// Beforehand
    Known,
    /// From first tokens, as in the product
    Learned,
}

impl SimulateOptions {
    /// Who picks: what others are measured by comes first, then what is asked for, each once.
    pub fn all_policies(&self) -> Vec<Named> {
        let mut policies = vec![Named::SHARED];
        if self.matrix {
            policies.extend([Named::LEAST, Named::BACKLOG]);
        }
        let usual = if self.matrix { "prefix-aware" } else { POLICIES };
        let usual = usual.split(',').map(|name| name.parse().expect("a test reads them"));
        let asked: Vec<Named> =
            if self.policies.is_empty() { usual.collect() } else { self.policies.clone() };
        for policy in asked {
            if !policies.contains(&policy) {
                policies.push(policy);
            }
        }
        policies
    }

    /// Every combination, for so many traces.
    pub fn cells(&self, traces: usize) -> Vec<Cell> {
        let or = |given: &[f64], usual: &[f64], matrix: &[f64]| match (given, self.matrix) {
            ([], false) => usual.to_vec(),
            ([], true) => matrix.to_vec(),
            (given, _) => given.to_vec(),
        };
        let loads = or(&self.load, &[0.9], &[0.5, 0.7, 0.9, 1.1]);
        let slows = or(&self.slow, &[1.0], &[1.0, 3.0]);
        let workers: Vec<f64> = self.workers.iter().map(|workers| *workers as f64).collect();
        let workers = or(&workers, &[8.0], &[4.0, 8.0, 16.0]);
        let units = or(&[], &[1.0], &[0.25, 1.0, 4.0]);
        let caches = match &self.cache[..] {
            [] => units.into_iter().map(CacheSize::Units).collect(),
            given => given.to_vec(),
        };
        let engines = match (&self.engine[..], self.matrix) {
            ([], false) => vec![EngineKind::Fifo],
            ([], true) => vec![EngineKind::Fifo, EngineKind::Batching],
            (given, _) => given.to_vec(),
        };
        let mut cells = Vec::new();
        for trace in 0..traces {
            for &engine in &engines {
                for &workers in &workers {
                    for &cache in &caches {
                        for &slow in &slows {
                            cells.extend(loads.iter().map(|&load| {
                                let workers = workers as usize;
                                Cell { trace, engine, workers, cache, slow, load }
                            }));
                        }
                    }
                }
            }
        }
        cells
    }

    /// What all cells have in common.
    pub fn common(&self) -> Common {
        Common {
            hardware: self.hardware,
            step_tokens: self.step_tokens,
            sequences: self.sequences as usize,
            knowledge: self.knowledge,
            costs_known: self.costs == Costs::Known,
            silent: self.silent,
        }
    }
}

fn number(text: &str, what: &str, least: f64, most: f64) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if (least..=most).contains(&number) => Ok(number),
        _ => Err(format!("{what} must be a number from {least} to {most}")),
    }
}

fn workers(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(workers @ 1..=1024) => Ok(workers),
        _ => Err("a fleet has 1 to 1024 workers".to_owned()),
    }
}

fn load(text: &str) -> Result<f64, String> {
    number(text, "a load", 0.001, 100.0)
}

fn slow(text: &str) -> Result<f64, String> {
    number(text, "a slowness", 1.0, 1000.0)
}

fn share(text: &str) -> Result<f64, String> {
    number(text, "a share", 0.0, 1.0)
}

fn seconds(text: &str) -> Result<f64, String> {
    number(text, "an objective", 0.001, 3600.0)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Flags {
        #[command(flatten)]
        options: SimulateOptions,
    }

    fn options(text: &str) -> Result<SimulateOptions, clap::Error> {
        let words = std::iter::once("simulate").chain(text.split_whitespace());
        Flags::try_parse_from(words).map(|flags| flags.options)
    }

    #[test]
    fn every_combination_is_a_cell() {
        let given =
            options("--workers 4,8 --cache 0.5x,1hbm,9k --load 0.5,0.9 --engine fifo,batching");
        assert_eq!(given.unwrap().cells(2).len(), 2 * 2 * 3 * 2 * 2);
        assert_eq!(options("").unwrap().cells(1).len(), 1);
        // The issue's: traces x 3 fleets x 3 caches x 4 loads x even or one slow, for each engine.
        assert_eq!(options("--matrix").unwrap().cells(5).len(), 5 * 3 * 3 * 4 * 2 * 2);
        assert_eq!(options("--matrix --engine fifo --slow 1").unwrap().cells(1).len(), 36);
    }

    #[test]
    fn policies_come_once_and_after_what_they_are_measured_by() {
        let names = |text| -> Vec<&str> {
            options(text).unwrap().all_policies().into_iter().map(Named::as_str).collect()
        };
        assert_eq!(names("--policies backlog,shared,backlog"), ["shared", "backlog"]);
        let matrix = names("--matrix --policies cost,least,prefix-aware");
        assert_eq!(matrix, ["shared", "least-loaded", "backlog", "cost", "prefix-aware"]);
        assert_eq!(names("").len(), POLICIES.split(',').count() + 1);
    }

    #[test]
    fn what_is_out_of_range_is_refused() {
        for text in [
            "--workers 0",
            "--workers 1025",
            "--load 0",
            "--load nan",
            "--slow 0.5",
            "--silent 1.1",
            "--slo 0",
            "--redraws 0",
            "--threads 0",
            "--limit 0",
            "--policies best",
            "--knowledge some",
            "--cache 0",
            "--hardware 3b",
            "--step-tokens 0",
            "--matrix --slo 1",
            "--load 1 --slo 1",
        ] {
            assert!(options(text).is_err(), "{text}");
        }
    }
}
