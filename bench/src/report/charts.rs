//! The plots of a section.

use super::{
    plot::{Bars, Lines},
    section::{Section, Series},
};
use crate::{
    replay::{
        Any,
        options::Point,
        pooled::{Figures, Pooled},
        summary::{Run, Stretch, WorkerShare},
        watch::Look,
    },
    stats::{bootstrap::Figure, fit},
};

/// A plot.
pub struct Chart {
    /// In its file's name.
    pub name: &'static str,
    /// What it shows, for those who read it for the first time.
    pub caption: &'static str,
    /// The picture.
    pub svg: String,
}

/// Percentiles of which slopes are told.
type Which = (&'static str, fn(&Figures) -> Figure);
const PERCENTILES: [Which; 3] = [
    ("p50", |figures| figures.p50),
    ("p95", |figures| figures.p95),
    ("p99", |figures| figures.p99),
];

type Drawn = Result<Option<String>, Any>;

/// All plots for which there is something to show.
///
/// # Errors
/// One cannot be drawn.
pub fn all(section: &Section<'_>) -> Result<Vec<Chart>, Any> {
    let mut charts = Vec::new();
    let mut keep = |name, caption, svg: Drawn| -> Result<(), Any> {
        charts.extend(svg?.map(|svg| Chart { name, caption, svg }));
        Ok(())
    };
    if section.swept().is_some() {
        for (at, which) in PERCENTILES.iter().enumerate() {
            let name = ["slope-p50", "slope-p95", "slope-p99"][at];
            let caption = "Thin lines are fitted by least squares; their slopes are in the table.";
            keep(name, caption, slope(section, which))?;
        }
        keep("slope-hit", "Cached share of the prompt tokens.", hit_over_points(section))?;
    }
    let shown = section.shown();
    let place = shown.map_or(String::new(), |point| format!(" at {} {}", point.name, point.value));
    keep(
        "ttft-cdf",
        "Share of requests whose first content came within a time. Further left is better.",
        cdf(section, shown, &place),
    )?;
    keep(
        "ttft-percentiles",
        "Percentiles over all seeds; whiskers are 95 % bootstrap intervals over requests.",
        percentiles(section, shown, &place),
    )?;
    keep(
        "hit-rate",
        "Cached share of the prompt tokens of requests sent in each stretch of the run (first seed).",
        hit_over_time(section, shown, &place),
    )?;
    keep(
        "stale-rate",
        "Of the tokens that the router predicted cached since the start, the share that was not \
         (first seed).",
        stale_over_time(section, shown, &place),
    )?;
    keep(
        "requests",
        "Requests that each worker was sent, all seeds.",
        by_worker(section, shown, &format!("Requests a worker{place}"), "requests", |w| w.requests),
    )?;
    keep(
        "prefill",
        "Prompt tokens that each worker had to compute, all seeds. Lower is better.",
        by_worker(section, shown, &format!("Prefilled tokens a worker{place}"), "tokens", |w| {
            w.prefilled_tokens
        }),
    )?;
    Ok(charts)
}

fn cdf(section: &Section<'_>, point: Option<&Point>, place: &str) -> Drawn {
    let line = |series: &Series<'_>| {
        let grid = &series.at(point)?.ttft_grid_ms;
        let steps = grid.len().max(2) - 1;
        let share = |(at, ms): (usize, &f64)| (*ms, 100.0 * at as f64 / steps as f64);
        Some((series.name.clone(), grid.iter().enumerate().map(share).collect()))
    };
    Lines {
        title: format!("TTFT, distribution{place}"),
        x: "time to the first content, ms (logarithmic)".to_owned(),
        y: "% of requests".to_owned(),
        is_log: true,
        y_least: 100.0,
        lines: section.series.iter().filter_map(line).collect(),
        ..Lines::default()
    }
    .svg()
}

fn percentiles(section: &Section<'_>, point: Option<&Point>, place: &str) -> Drawn {
    let bars = |series: &Series<'_>| {
        let figures = series.at(point)?.ttft_ms?;
        let bar = |(_, which): &Which| Some(which(&figures));
        Some((series.name.clone(), PERCENTILES.iter().map(bar).collect()))
    };
    Bars {
        title: format!("TTFT, percentiles{place}"),
        y: "ms".to_owned(),
        groups: PERCENTILES.iter().map(|(name, _)| (*name).to_owned()).collect(),
        series: section.series.iter().filter_map(bars).collect(),
    }
    .svg()
}

fn hit_over_time(section: &Section<'_>, point: Option<&Point>, place: &str) -> Drawn {
    let line = |series: &Series<'_>| {
        let run: &Run = series.runs_at(point).first().copied()?;
        let hit = |s: &Stretch| Some((s.t_s, 100.0 * s.hit_rate?));
        Some((series.name.clone(), run.timeline.iter().filter_map(hit).collect()))
    };
    Lines {
        title: format!("Hit rate over time{place}"),
        x: "seconds".to_owned(),
        y: "% of prompt tokens".to_owned(),
        y_least: 100.0,
        lines: section.series.iter().filter_map(line).collect(),
        ..Lines::default()
    }
    .svg()
}

fn stale_over_time(section: &Section<'_>, point: Option<&Point>, place: &str) -> Drawn {
    let line = |series: &Series<'_>| {
        let run: &Run = series.runs_at(point).first().copied()?;
        let stale = |look: &Look| Some((look.t_s, 100.0 * look.beliefs.as_ref()?.stale_rate()?));
        let points: Vec<_> = run.looks.iter().filter_map(stale).collect();
        (!points.is_empty()).then(|| (series.name.clone(), points))
    };
    Lines {
        title: format!("Stale rate{place}"),
        x: "seconds".to_owned(),
        y: "% of predicted tokens".to_owned(),
        y_least: 1.0,
        lines: section.series.iter().filter_map(line).collect(),
        ..Lines::default()
    }
    .svg()
}

fn by_worker(
    section: &Section<'_>,
    point: Option<&Point>,
    title: &str,
    y: &str,
    of: fn(&WorkerShare) -> u64,
) -> Drawn {
    let mut workers: Vec<String> = Vec::new();
    for run in section.series.iter().flat_map(|series| series.runs_at(point)) {
        for worker in &run.workers {
            if !workers.contains(&worker.worker) {
                workers.push(worker.worker.clone());
            }
        }
    }
    let bars = |series: &Series<'_>| {
        let runs = series.runs_at(point);
        let sum = |name: &String| {
            let shares = runs.iter().flat_map(|run| &run.workers).filter(|w| w.worker == *name);
            let sum = shares.map(of).sum::<u64>() as f64;
            Some(Figure { value: sum, low: sum, high: sum })
        };
        (series.name.clone(), workers.iter().map(sum).collect())
    };
    let series = section.series.iter().map(bars).collect();
    Bars { title: title.to_owned(), y: y.to_owned(), groups: workers.clone(), series }.svg()
}

/// A percentile at each point.
fn over_points(series: &Series<'_>, value: impl Fn(&Pooled) -> Option<f64>) -> Vec<(f64, f64)> {
    let point = |pooled: &&Pooled| Some((pooled.point.as_ref()?.value, value(pooled)?));
    let mut points: Vec<_> = series.pooled.iter().filter_map(point).collect();
    points.sort_by(|a, b| a.0.total_cmp(&b.0));
    points
}

fn slope(section: &Section<'_>, (name, which): &Which) -> Drawn {
    let swept = section.swept().unwrap_or_default();
    let value = |pooled: &Pooled| Some(which(pooled.ttft_ms.as_ref()?).value);
    let lines: Vec<(String, Vec<(f64, f64)>)> = section
        .series
        .iter()
        .map(|series| (series.name.clone(), over_points(series, value)))
        .collect();
    let fitted = |(name, points): &(String, Vec<(f64, f64)>)| {
        let line = fit::line(points)?;
        let at = |x: f64| (x, line.intercept + line.slope * x);
        // A line below 0 is none of times.
        let ends = vec![at(points.first()?.0), at(points.last()?.0)];
        ends.iter().all(|(_, y)| *y >= 0.0).then(|| (name.clone(), ends))
    };
    Lines {
        title: format!("TTFT {name} by {swept}"),
        x: swept.to_owned(),
        y: "ms".to_owned(),
        has_marks: true,
        thin: lines.iter().filter_map(fitted).collect(),
        lines,
        ..Lines::default()
    }
    .svg()
}

fn hit_over_points(section: &Section<'_>) -> Drawn {
    let swept = section.swept().unwrap_or_default();
    let value = |pooled: &Pooled| Some(100.0 * pooled.hit_rate?.value);
    let line = |series: &Series<'_>| (series.name.clone(), over_points(series, value));
    Lines {
        title: format!("Hit rate by {swept}"),
        x: swept.to_owned(),
        y: "% of prompt tokens".to_owned(),
        has_marks: true,
        y_least: 100.0,
        lines: section.series.iter().map(line).collect(),
        ..Lines::default()
    }
    .svg()
}

/// What a percentile gains with each unit of what is swept, milliseconds; with the share explained.
pub fn slopes(series: &Series<'_>) -> [Option<fit::Line>; 3] {
    PERCENTILES.map(|(_, which)| {
        fit::line(&over_points(series, |pooled| Some(which(pooled.ttft_ms.as_ref()?).value)))
    })
}
