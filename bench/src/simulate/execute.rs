//! Makes the runs, in parallel: one job is one redraw of one cell, for all policies.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use super::figures::Figures;
use super::plan::{Cell, Common};
use super::policies::Named;
use super::run::run;
use super::workload::Workload;

/// Loads between which capacity is sought, in prefill without a cache over what a fleet can do.
const LOADS: (f64, f64) = (0.02, 32.0);
/// How near the search comes, as a ratio.
const NEAR: f64 = 1.01;

/// What all runs have in common.
#[derive(Debug)]
pub struct Setup<'a> {
    /// Traces made ready.
    pub traces: &'a [Workload],
    /// Settings.
    pub common: Common,
    /// Who picks.
    pub policies: &'a [Named],
    /// Draws of the arrivals.
    pub redraws: u64,
    /// The first one's seed; the others follow it.
    pub seed: u64,
    /// How many run at a time.
    pub threads: usize,
}

impl Setup<'_> {
    /// Figures of each cell, by policy and redraw. `done` is called after each redraw of a cell.
    pub fn figures(&self, cells: &[Cell], done: &(dyn Fn() + Sync)) -> Vec<Vec<Vec<Figures>>> {
        self.in_parallel(cells, done, |cell, seed| {
            let trace = &self.traces[cell.trace];
            let workload = cell.workload(&self.common, trace, seed);
            let one = |policy: &Named| self.one(cell, *policy, &workload, seed);
            self.policies.iter().map(one).collect()
        })
    }

    /// The largest load of each cell at which the 95th percentile of the time to the first token
    /// is at most `slo_s`, by policy and redraw; 0 where none is small enough.
    pub fn capacities(
        &self,
        cells: &[Cell],
        slo_s: f64,
        done: &(dyn Fn() + Sync),
    ) -> Vec<Vec<Vec<f64>>> {
        self.in_parallel(cells, done, |cell, seed| {
            let mut workload = cell.workload(&self.common, &self.traces[cell.trace], seed);
            let hardware = self.common.hardware.of(&self.traces[cell.trace]);
            let speed = cell.speeds().iter().sum();
            let capacity = |policy: &Named| {
                largest(LOADS, NEAR, |load| {
                    workload.scale_to(&hardware, speed, load);
                    self.one(cell, *policy, &workload, seed).p95 <= slo_s
                })
            };
            self.policies.iter().map(capacity).collect()
        })
    }

    fn one(&self, cell: &Cell, policy: Named, workload: &Workload, seed: u64) -> Figures {
        let hardware = self.common.hardware.of(&self.traces[cell.trace]);
        let fleet = cell.fleet(&self.common, hardware, policy.sharing());
        let fates = run(workload, &fleet, &mut *policy.router(), seed);
        Figures::of(&fates, cell.workers).expect("a trace has requests")
    }

    /// What `job` gives for each cell and redraw, sorted by cell, policy and redraw.
    fn in_parallel<T: Send + Clone>(
        &self,
        cells: &[Cell],
        done: &(dyn Fn() + Sync),
        job: impl Fn(&Cell, u64) -> Vec<T> + Sync,
    ) -> Vec<Vec<Vec<T>>> {
        let redraws = self.redraws as usize;
        let next = AtomicUsize::new(0);
        let results: Mutex<Vec<Option<Vec<T>>>> = Mutex::new(vec![None; cells.len() * redraws]);
        std::thread::scope(|scope| {
            for _ in 0..self.threads.max(1) {
                scope.spawn(|| {
                    loop {
                        let at = next.fetch_add(1, Relaxed);
                        let Some(cell) = cells.get(at / redraws.max(1)) else { break };
                        let result = job(cell, self.seed.wrapping_add((at % redraws) as u64));
                        results.lock().expect("no job panics with it")[at] = Some(result);
                        done();
                    }
                });
            }
        });
        let mut results = results.into_inner().expect("no job panicked").into_iter();
        let of_cell = |_| {
            let mut policies = vec![Vec::with_capacity(redraws); self.policies.len()];
            for redraw in results.by_ref().take(redraws).flatten() {
                for (policy, result) in policies.iter_mut().zip(redraw) {
                    policy.push(result);
                }
            }
            policies
        };
        (0..cells.len()).map(of_cell).collect()
    }
}

/// The largest number in a range for which something holds, that holds below and not above it; 0
/// where it holds nowhere. Found by doubling and bisection, to a ratio of `near`.
fn largest((least, most): (f64, f64), near: f64, mut holds: impl FnMut(f64) -> bool) -> f64 {
    let mut low: f64 = 0.5;
    let mut high = None;
    while !holds(low) {
        if low <= least {
            return 0.0;
        }
        high = Some(low);
        low = (low / 2.0).max(least);
    }
    let mut high = match high {
        Some(high) => high,
        None => loop {
            let double = low * 2.0;
            if double > most {
                return low;
            }
            if !holds(double) {
                break double;
            }
            low = double;
        },
    };
    while high / low > near {
        let middle = f64::midpoint(low, high);
        if holds(middle) {
            low = middle;
        } else {
            high = middle;
        }
    }
    low
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bisection_finds_the_edge_wherever_it_is() {
        for edge in [0.03, 0.4, 0.5, 0.51, 1.0, 1.7, 9.0] {
            let found = largest(LOADS, NEAR, |load| load <= edge);
            assert!((edge / NEAR..=edge).contains(&found), "{found} for {edge}");
        }
        assert!(largest(LOADS, NEAR, |_| false) == 0.0);
        assert!(largest(LOADS, NEAR, |_| true) <= LOADS.1);
    }
}
