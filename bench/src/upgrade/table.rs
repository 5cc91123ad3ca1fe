//! Figures -> tables for people.

use std::fmt::Write;

use super::measure::{Report, Three, Ttft};

/// Two tables in Markdown: what was lost and known, and how long it took.
pub fn render(reports: &[Report]) -> String {
    let mut text = String::from(
        "| phase | requests | **failed** | cut at its death / came while down | streams whole / cut \
         | hit rate before / during / 5 s after | dip, worst second | back after |\n\
         | --- | --- | --- | --- | --- | --- | --- | --- |\n",
    );
    let phases = || reports.iter().flat_map(|report| &report.phases);
    for phase in phases() {
        let Three { before, during, after } = phase.hit;
        let back = phase.back_after_s.map_or("**not**".to_owned(), |s| format!("{s:.1} s"));
        let excused = match phase.down_s {
            Some(_) => format!("{} / {}", phase.cut, phase.refused),
            None => "-".to_owned(),
        };
        let _ = writeln!(
            text,
            "| {} ({}) | {} | **{}** | {excused} | {} / {} | {:.1} / {:.1} / {:.1} % | \
             {:.1} points | {back} |",
            phase.name,
            phase.events,
            phase.requests,
            phase.failed,
            phase.streams,
            phase.streams_truncated,
            before * 100.0,
            during * 100.0,
            after * 100.0,
            phase.dip_worst_points,
        );
    }
    text += "\n| phase | TTFT before: p50 / p95 / p99 | during | after | added | longest gap | down | \
             old process left after: median / longest | syncs |\n\
             | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n";
    for phase in phases() {
        let three = |ttft: Ttft| format!("{:.1} / {:.1} / {:.1}", ttft.p50, ttft.p95, ttft.p99);
        let down = phase.down_s.map_or("-".to_owned(), |s| format!("{s:.2} s"));
        let mut left = phase.left_s.clone();
        left.sort_by(f64::total_cmp);
        let left = match (left.get(left.len() / 2), left.last()) {
            (Some(median), Some(longest)) => format!("{median:.1} / {longest:.1} s"),
            _ => "-".to_owned(),
        };
        let _ = writeln!(
            text,
            "| {} | {} ms | {} | {} | {} | {:.3} s | {down} | {left} | {} |",
            phase.name,
            three(phase.ttft.before),
            three(phase.ttft.during),
            three(phase.ttft.after),
            three(phase.added),
            phase.gap_s,
            phase.syncs,
        );
    }
    text
}
