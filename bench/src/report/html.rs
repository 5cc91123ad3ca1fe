//! One page that needs nothing but itself.

use std::fmt::Write;

use super::{
    charts::{Chart, slopes},
    section::{Section, Series},
};
use crate::{
    replay::{
        pooled::{Figures, OverSeeds, Pooled},
        results::Results,
        summary::Run,
        table::percent,
    },
    stats::bootstrap::Figure,
};

const STYLE: &str = "\
body{font:15px/1.5 system-ui,sans-serif;color:#23272e;background:#fff;max-width:1300px;margin:2rem auto;padding:0 1rem}\
h1{font-size:1.5rem}h2{font-size:1.2rem;margin-top:2.5rem;border-bottom:1px solid #d6d9de}h3{font-size:1rem}\
.plots{margin-top:1.2rem;display:grid;grid-template-columns:repeat(auto-fit,minmax(540px,1fr));gap:1rem}\
figure{margin:0;border:1px solid #e4e6ea;border-radius:6px;padding:.4rem}\
figure svg{width:100%;height:auto}figcaption{font-size:.85rem;color:#555b66;padding:0 .6rem .3rem}\
.scroll{overflow-x:auto}table{border-collapse:collapse;font-size:.88rem;font-variant-numeric:tabular-nums}\
th,td{padding:.25rem .7rem;text-align:right;border-bottom:1px solid #e4e6ea;white-space:nowrap}\
th:first-child,td:first-child{text-align:left}thead th{border-bottom:2px solid #c3c8d0;vertical-align:bottom}\
small{color:#6a7079}pre{background:#f6f7f9;padding:.8rem;overflow-x:auto;font-size:.8rem}.warn{background:#fff3d6;padding:.5rem .8rem}";

/// The page.
pub fn page(title: &str, sections: &[(Section<'_>, Vec<Chart>)]) -> String {
    let title = escaped(title);
    let mut html = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{title}</title>\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n<style>{STYLE}</style></head>\n\
         <body><h1>{title}</h1>\n"
    );
    for (section, charts) in sections {
        let _ = writeln!(html, "<h2>{}</h2>", escaped(&section.title));
        for result in &section.results {
            html += &origin(result);
        }
        html += &summary(section);
        if section.swept().is_some() {
            html += &slope_table(section);
        }
        html += "<div class=\"plots\">\n";
        for chart in charts {
            let _ = writeln!(
                html,
                "<figure>{}<figcaption>{}</figcaption></figure>",
                chart.svg,
                escaped(chart.caption)
            );
        }
        html += "</div>\n";
        html += &runs(section);
        for result in &section.results {
            let settings = serde_json::to_string_pretty(&result.settings).unwrap_or_default();
            let _ = writeln!(
                html,
                "<details><summary>Settings</summary><pre>{}</pre></details>",
                escaped(&settings)
            );
        }
    }
    html + "</body></html>\n"
}

/// Where and with what a file was measured.
fn origin(result: &Results) -> String {
    let trace = &result.trace;
    let label =
        result.label.as_ref().map_or(String::new(), |label| format!("<b>{}</b>: ", escaped(label)));
    let machine = &result.machine;
    let processor = machine.processor.as_ref().map_or(String::new(), |name| format!(" ({name})"));
    let commit = result.commit.as_deref().unwrap_or("unknown");
    let mut text = format!(
        "<p>{label}{} requests of {} conversations, {} prompt tokens; an endless common cache would \
         hold {} of them. {} cores, {}{}; warmroute {}, commit {}.</p>\n",
        trace.requests,
        trace.sessions,
        trace.prompt_tokens,
        percent(Some(trace.hit_bound)),
        machine.cores,
        machine.system,
        escaped(&processor),
        escaped(&result.version),
        escaped(commit),
    );
    if result.is_release == Some(false) {
        text += "<p class=\"warn\">The router was a debug build: its times mean little.</p>\n";
    }
    let late = result.runs.iter().filter_map(|run| run.late_ms).map(|late| late.p99);
    let late = late.fold(0.0, f64::max);
    if late > 50.0 {
        let _ = writeln!(
            text,
            "<p class=\"warn\">The client was late: 1 of 100 requests was sent over {late:.0} ms after \
             it was due. Play it slower (--time-scale) or on a larger machine.</p>"
        );
    }
    text
}

/// Seeds taken together: policies below each other, point for point.
fn summary(section: &Section<'_>) -> String {
    let mut all: Vec<(&str, &Pooled)> = Vec::new();
    for Series { name, pooled, .. } in &section.series {
        all.extend(pooled.iter().map(|pooled| (name.as_str(), *pooled)));
    }
    let value = |pooled: &Pooled| pooled.point.as_ref().map(|point| point.value);
    all.sort_by(|(_, a), (_, b)| value(a).unwrap_or(0.0).total_cmp(&value(b).unwrap_or(0.0)));
    let row = |(name, pooled): (&str, &Pooled)| row(name, value(pooled), &cells(pooled));
    let rows: String = all.into_iter().map(row).collect();
    let heads = [
        "TTFT p50, ms",
        "p95, ms",
        "p99, ms",
        "mean, ms",
        "p50 to first policy",
        "p95",
        "p99",
        "hit rate",
        "stale rate",
        "requests/s",
        "p50 of seeds",
        "p95 of seeds",
        "failed",
    ];
    format!("<h3>All seeds together</h3>\n{}", table("policy", section.swept(), &heads, &rows))
}

fn cells(pooled: &Pooled) -> [String; 13] {
    let figures = |which: fn(&Figures) -> Figure| {
        pooled.ttft_ms.as_ref().map_or("-".to_owned(), |found| figure(which(found), 0))
    };
    let ratio = |which: fn(&Figures) -> Figure| {
        pooled.ttft_ratio.as_ref().map_or("-".to_owned(), |found| figure(which(found), 2))
    };
    [
        figures(|found| found.p50),
        figures(|found| found.p95),
        figures(|found| found.p99),
        pooled.ttft_mean_ms.map_or("-".to_owned(), |mean| figure(mean, 0)),
        ratio(|found| found.p50),
        ratio(|found| found.p95),
        ratio(|found| found.p99),
        hit(pooled),
        percent(pooled.stale_rate),
        format!("{:.1}", pooled.requests_per_s),
        seeds(pooled.ttft_p50_by_seed_ms),
        seeds(pooled.ttft_p95_by_seed_ms),
        format!("{} of {}", pooled.errors, pooled.requests),
    ]
}

fn slope_table(section: &Section<'_>) -> String {
    let mut rows = String::new();
    for series in &section.series {
        let cells = slopes(series).map(|line| {
            line.map_or("-".to_owned(), |line| {
                format!("{:+.2} <small>r² {:.2}</small>", line.slope, line.r2)
            })
        });
        rows += &row(&series.name, None, &cells);
    }
    let swept = section.swept().unwrap_or_default();
    let table = table("policy", None, &["p50", "p95", "p99"], &rows);
    format!("<h3>What one more of {} costs, ms</h3>\n{table}", escaped(swept))
}

/// Every run.
fn runs(section: &Section<'_>) -> String {
    let mut rows = String::new();
    let swept = section.swept();
    for series in &section.series {
        for run in &series.runs {
            rows += &run_row(series, run, swept.is_some());
        }
    }
    let heads = [
        "seed",
        "requests",
        "failed",
        "seconds",
        "requests/s",
        "tokens/s",
        "TTFT p50, ms",
        "p95",
        "p99",
        "max",
        "whole answer p50",
        "p95",
        "hit rate",
        "by engines",
        "stale rate",
        "missed rate",
        "requests, max/mean",
        "prefill, max/mean",
        "decision p99, us",
        "late p99, ms",
        "reasons",
        "errors",
    ];
    let body = table("policy", swept, &heads, &rows);
    format!("<details><summary>Every run</summary>{body}</details>\n")
}

fn run_row(series: &Series<'_>, run: &Run, is_swept: bool) -> String {
    let ms = |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.0}"));
    let two = |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.2}"));
    let counted = |counts: &std::collections::BTreeMap<String, u64>| {
        let list: Vec<_> = counts.iter().map(|(name, count)| format!("{name} {count}")).collect();
        escaped(&list.join(", "))
    };
    let router = run.router.as_ref();
    let cells = [
        run.seed.to_string(),
        run.requests.to_string(),
        (run.requests - run.answered).to_string(),
        format!("{:.1}", run.elapsed_s),
        format!("{:.1}", run.requests_per_s),
        format!("{:.0}", run.answer_tokens_per_s),
        ms(run.ttft_ms.map(|ttft| ttft.p50)),
        ms(run.ttft_ms.map(|ttft| ttft.p95)),
        ms(run.ttft_ms.map(|ttft| ttft.p99)),
        ms(run.ttft_ms.map(|ttft| ttft.max)),
        ms(run.total_ms.map(|total| total.p50)),
        ms(run.total_ms.map(|total| total.p95)),
        percent(run.hit_rate),
        percent(run.engines_hit_rate),
        percent(router.and_then(|router| router.stale_rate)),
        percent(router.and_then(|router| router.missed_rate)),
        two(run.requests_max_to_mean),
        two(run.prefill_max_to_mean),
        ms(router.and_then(|router| router.decision_p99_us)),
        two(run.late_ms.map(|late| late.p99)),
        counted(&run.reasons),
        counted(&run.errors),
    ];
    let value = run.point.as_ref().filter(|_| is_swept).map(|point| point.value);
    row(&series.name, value, &cells)
}

fn table(first: &str, swept: Option<&str>, heads: &[&str], rows: &str) -> String {
    let heads: Vec<String> = std::iter::once(first)
        .chain(swept)
        .chain(heads.iter().copied())
        .map(|head| format!("<th>{}</th>", escaped(head)))
        .collect();
    format!(
        "<div class=\"scroll\"><table><thead><tr>{}</tr></thead>\n<tbody>\n{rows}</tbody></table></div>\n",
        heads.concat()
    )
}

/// Cells are HTML.
fn row(name: &str, point: Option<f64>, cells: &[String]) -> String {
    let point = point.map_or(String::new(), |value| format!("<td>{value}</td>"));
    let cells: Vec<String> = cells.iter().map(|cell| format!("<td>{cell}</td>")).collect();
    format!("<tr><td>{}</td>{point}{}</tr>\n", escaped(name), cells.concat())
}

fn figure(figure: Figure, digits: usize) -> String {
    let Figure { value, low, high } = figure;
    format!("{value:.digits$} <small>{low:.digits$} to {high:.digits$}</small>")
}

fn hit(pooled: &Pooled) -> String {
    pooled.hit_rate.map_or("-".to_owned(), |rate| {
        let share = |value: f64| format!("{:.1}", 100.0 * value);
        format!(
            "{} % <small>{} to {}</small>",
            share(rate.value),
            share(rate.low),
            share(rate.high)
        )
    })
}

fn seeds(figure: Option<OverSeeds>) -> String {
    let Some(OverSeeds { mean, deviation }) = figure else { return "-".to_owned() };
    deviation.map_or(format!("{mean:.0}"), |deviation| {
        format!("{mean:.0} <small>± {deviation:.0}</small>")
    })
}

fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => safe += "&amp;",
            '<' => safe += "&lt;",
            '>' => safe += "&gt;",
            '"' => safe += "&quot;",
            other => safe.push(other),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::escaped;

    #[test]
    fn text_stays_text() {
        assert_eq!(escaped("<a href=\"x\">&"), "&lt;a href=&quot;x&quot;&gt;&amp;");
    }
}
