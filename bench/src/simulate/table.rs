//! Tables for people.

use std::fmt::Write;

use super::figures::mean_and_error;
use super::matrix::{HARM, Summary};
use super::results::PolicyResults;

/// The figures of a cell, absolute and as ratios to the first policy.
pub fn of_figures(policies: &[PolicyResults]) -> String {
    let mut text = String::from(
        "                       time to first token, s      hit  stale   to shared\n\
         policy                 p50     p95     p99    mean      %      %    p50 +-       p95 +-       \
         p99    mean       h\n",
    );
    for of in policies {
        let (Some(mean), Some(ratio)) = (&of.mean, &of.to_shared) else { continue };
        let (value, to) = (&mean.value, &ratio.value);
        let error = |of: fn(&super::figures::Figures) -> f64| {
            ratio.error.as_ref().map_or_else(|| "-".to_owned(), |error| format!("{:.3}", of(error)))
        };
        let _ = writeln!(
            text,
            "{:20} {:7} {:7} {:7} {:7} {:6.1} {:6.1}  {:6} {:5} {:6} {:5} {:6}  {:6}  {:6}",
            of.policy,
            seconds(value.p50),
            seconds(value.p95),
            seconds(value.p99),
            seconds(value.mean),
            100.0 * value.hit,
            100.0 * value.stale,
            format!("{:.3}", to.p50),
            error(|f| f.p50),
            format!("{:.3}", to.p95),
            error(|f| f.p95),
            format!("{:.3}", to.p99),
            format!("{:.3}", to.mean),
            format!("{:.3}", to.hit),
        );
    }
    text
}

/// The capacities of a cell.
pub fn of_capacities(policies: &[PolicyResults], slo_s: f64) -> String {
    let mut text = format!(
        "policy                largest load with p95 within {slo_s} s   +-   to shared   +-\n"
    );
    let first = policies.first().map(|of| of.capacities.clone()).unwrap_or_default();
    for of in policies {
        let (mean, error) = mean_and_error(&of.capacities);
        let ratios: Vec<f64> = of
            .capacities
            .iter()
            .zip(&first)
            .filter(|(_, b)| **b > 0.0)
            .map(|(a, b)| a / b)
            .collect();
        let (ratio, ratio_error) = mean_and_error(&ratios);
        let shown =
            |error: Option<f64>| error.map_or("-".to_owned(), |error| format!("{error:.3}"));
        let _ = writeln!(
            text,
            "{:20} {mean:20.3} {:>17} {ratio:10.3} {:>7}",
            of.policy,
            shown(error),
            shown(ratio_error),
        );
    }
    text
}

/// The summary of a matrix.
pub fn of_summary(summary: &Summary) -> String {
    let mut text = String::from("Geometric means of the ratios to shared:\n");
    for group in &summary.means {
        let _ = writeln!(
            text,
            "\n{} ({} cells)\npolicy                  p50     p95     p99    mean       h",
            group.group, group.cells
        );
        for (policy, [p50, p95, p99, mean, hit]) in group.policies.iter().skip(1) {
            let _ = writeln!(
                text,
                "{policy:20} {p50:6.3}  {p95:6.3}  {p99:6.3}  {mean:6.3}  {hit:6.3}"
            );
        }
    }
    for harm in &summary.harm {
        let _ = writeln!(
            text,
            "\n{}: over {HARM} times the better of least-loaded and backlog in {} of {} comparisons, by \
             more than two standard errors in {}. Worst:",
            harm.policy, harm.over, harm.comparisons, harm.surely_over
        );
        for one in &harm.worst {
            let error = one.error.map_or_else(String::new, |error| format!(" +- {error:.3}"));
            let _ = writeln!(text, "  {:.3}{error}  {}  {}", one.ratio, one.figure, one.cell);
        }
    }
    text
}

/// Seconds with three digits that mean something.
fn seconds(value: f64) -> String {
    let digits = if value < 1.0 { 3 } else { 2 };
    format!("{value:.digits$}")
}
