//! `warmroute-bench simulate`, from options to tables and file.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use super::execute::Setup;
use super::matrix;
use super::options::{Costs, SimulateOptions};
use super::plan::Cell;
use super::results::{self, CellResults, FORMAT, PolicyResults, Results, Settings, TraceFacts};
use super::table;
use super::workload::Workload;
use crate::trace::{Trace, file};

/// Any error.
pub type Any = Box<dyn std::error::Error + Send + Sync>;

/// Runs all that is asked for; `say` gets the tables, results the `commit` they were made at.
///
/// # Errors
/// A trace cannot be read or simulated, or the file of results not be written.
pub fn simulate(
    options: &SimulateOptions,
    commit: Option<String>,
    say: &mut dyn FnMut(&str),
) -> Result<(), Any> {
    let traces = read(options)?;
    let policies = options.all_policies();
    let cells = options.cells(traces.len());
    let threads = options.threads.map_or_else(
        || std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        usize::from,
    );
    let setup = Setup {
        traces: &traces,
        common: options.common(),
        policies: &policies,
        redraws: options.redraws,
        seed: options.seed,
        threads,
    };
    let cell_results = |cell: &Cell, policies: Vec<PolicyResults>| {
        let hardware = setup.common.hardware.of(&traces[cell.trace]);
        CellResults::new(cell, cell.cache.tokens(&hardware), policies)
    };
    let bar = progress(cells.len() as u64 * options.redraws);
    let mut results = Vec::with_capacity(cells.len());
    let mut summary = None;
    if let Some(slo_s) = options.slo {
        let capacities = setup.capacities(&cells, slo_s, &|| bar.inc(1));
        bar.finish_and_clear();
        for (cell, capacities) in cells.iter().zip(&capacities) {
            let of = results::of_capacities(&policies, capacities);
            let title = Cell { load: f64::NAN, ..*cell }.describe();
            let title = title.trim_end_matches(", load NaN");
            say(&format!(
                "\n{}: {title}\n{}",
                traces[cell.trace].name,
                table::of_capacities(&of, slo_s)
            ));
            results.push(CellResults { load: None, ..cell_results(cell, of) });
        }
    } else {
        let figures = setup.figures(&cells, &|| bar.inc(1));
        bar.finish_and_clear();
        for (cell, figures) in cells.iter().zip(&figures) {
            let of = results::of_figures(&policies, figures);
            if !options.matrix {
                let name = &traces[cell.trace].name;
                say(&format!("\n{name}: {}\n{}", cell.describe(), table::of_figures(&of)));
            }
            results.push(cell_results(cell, of));
        }
        if options.matrix {
            let names: Vec<String> = traces.iter().map(|trace| trace.name.clone()).collect();
            let summarized = matrix::summarize(&names, &cells, &policies, &figures);
            say(&table::of_summary(&summarized));
            summary = Some(summarized);
        }
    }
    if let Some(path) = &options.out {
        let facts = traces.iter().map(|trace| facts(options, trace)).collect();
        let results = Results {
            format: FORMAT,
            version: env!("CARGO_PKG_VERSION"),
            commit,
            settings: settings(options),
            traces: facts,
            cells: results,
            summary,
        };
        let text = serde_json::to_string_pretty(&results)?;
        std::fs::write(path, text + "\n")
            .map_err(|error| format!("--out {}: {error}", path.display()))?;
    }
    Ok(())
}

fn read(options: &SimulateOptions) -> Result<Vec<Workload>, Any> {
    let mut traces = Vec::new();
    for path in &options.trace {
        traces.push(file::read(path)?.shaped());
    }
    if traces.is_empty() {
        traces.push(Trace::bundled());
    }
    let limit = options.limit.map_or(usize::MAX, |limit| limit as usize);
    let ready = |trace: Trace| Ok(Workload::of(&trace.limited(limit))?);
    traces.into_iter().map(ready).collect()
}

fn settings(options: &SimulateOptions) -> Settings {
    Settings {
        knowledge: options.knowledge.to_string(),
        costs: if options.costs == Costs::Known { "known" } else { "learned" },
        step_tokens: options.step_tokens,
        sequences: options.sequences as usize,
        silent: options.silent,
        redraws: options.redraws,
        seed: options.seed,
        slo_s: options.slo,
    }
}

fn facts(options: &SimulateOptions, trace: &Workload) -> TraceFacts {
    let hardware = options.hardware.of(trace);
    let h = &hardware;
    TraceFacts {
        name: trace.name.clone(),
        requests: trace.requests.len(),
        blocks: trace.blocks,
        mean_tokens: trace.mean_tokens(),
        real_arrivals: trace.tick_s.is_some(),
        hardware_s: [h.request_s, h.token_s, h.pair_s, h.step_s, h.read_s],
        kv_tokens: h.kv_tokens,
    }
}

/// A bar of so many steps; nothing is drawn where nobody looks.
fn progress(steps: u64) -> ProgressBar {
    let bar = ProgressBar::new(steps);
    let form = "{bar:40} {pos}/{len} runs  {elapsed} (about {eta} left)";
    if let Ok(style) = ProgressStyle::with_template(form) {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(500));
    bar
}

#[cfg(test)]
#[path = "command_tests.rs"]
mod tests;
