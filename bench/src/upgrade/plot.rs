//! Hit rate and failures over time, one SVG panel a run.

use std::fmt::Write;

use super::measure::{POINT_S, Report};

const WIDTH: f64 = 1000.0;
const PANEL: f64 = 230.0;
const TITLE: f64 = 30.0;
/// Around the axes of a panel: left, top, right, bottom.
const MARGIN: (f64, f64, f64, f64) = (48.0, 40.0, 54.0, 26.0);

/// All runs on one scale of time, below each other.
pub fn svg(reports: &[Report]) -> String {
    let height = TITLE + PANEL * reports.len() as f64;
    let last = reports.iter().filter_map(|report| report.points.last());
    let last = last.map(|point| point.at + POINT_S).fold(1.0, f64::max);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
         width=\"{WIDTH}\" height=\"{height}\" font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"12\" y=\"20\" font-size=\"13\">Hit rate (line, left) and failed requests a second \
         (bars, right) by seconds; phases are shaded, marks are reloads, upgrades, deaths and \
         starts.</text>\n"
    );
    for (at, report) in reports.iter().enumerate() {
        let _ = writeln!(svg, "<g transform=\"translate(0 {})\">", TITLE + PANEL * at as f64);
        panel(&mut svg, report, last);
        svg += "</g>\n";
    }
    svg + "</svg>\n"
}

fn panel(svg: &mut String, report: &Report, last: f64) {
    let (left, top, right, bottom) = (MARGIN.0, MARGIN.1, WIDTH - MARGIN.2, PANEL - MARGIN.3);
    let x = |at: f64| left + (right - left) * at / last;
    let y = |share: f64| bottom - (bottom - top) * share;
    let highest = report.points.iter().map(|point| point.failed).max().unwrap_or(0).max(1) as f64;
    let _ =
        writeln!(svg, "<text x=\"{left}\" y=\"14\" font-weight=\"bold\">{}</text>", report.name);
    for phase in &report.phases {
        let (start, end) = (x(phase.start), x(phase.end));
        // A name that begins near the right end ends there.
        let (at, anchor) = if start > right - 120.0 { (right, "end") } else { (start, "start") };
        let _ = writeln!(
            svg,
            "<rect x=\"{start:.1}\" y=\"{top}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"#f3ead2\"/>\n\
             <text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\">{}</text>",
            (end - start).max(1.0),
            bottom - top,
            top - 6.0,
            phase.name,
        );
        for mark in &phase.marks {
            let _ = writeln!(
                svg,
                "<path d=\"M{:.1} {top}v6\" stroke=\"#8a6d1c\" stroke-width=\"1\"/>",
                x(*mark)
            );
        }
    }
    for point in report.points.iter().filter(|point| point.failed > 0) {
        let height = (bottom - top) * point.failed as f64 / highest;
        let _ = writeln!(
            svg,
            "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{height:.1}\" \
             fill=\"#b3261e\" fill-opacity=\"0.6\"/>",
            x(point.at),
            bottom - height,
            (x(POINT_S) - left).max(1.5),
        );
    }
    // A line ends where nothing was answered.
    let mut is_drawn = false;
    let mut path = String::new();
    for point in &report.points {
        if let Some(hit) = point.hit {
            let verb = if is_drawn { 'L' } else { 'M' };
            let _ = write!(path, "{verb}{:.1} {:.1}", x(point.at + POINT_S / 2.0), y(hit));
        }
        is_drawn = point.hit.is_some();
    }
    let _ = writeln!(
        svg,
        "<path d=\"{path}\" fill=\"none\" stroke=\"#1b5e9b\" stroke-width=\"1.5\"/>\n\
         <path d=\"M{left} {top}V{bottom}H{right}V{top}\" fill=\"none\" stroke=\"#888\"/>\n\
         <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">100 %</text>\n\
         <text x=\"{:.1}\" y=\"{bottom}\" text-anchor=\"end\">0</text>\n\
         <text x=\"{:.1}\" y=\"{:.1}\" fill=\"#b3261e\">{highest}</text>",
        left - 5.0,
        top + 8.0,
        left - 5.0,
        right + 5.0,
        top + 8.0,
    );
    let step = if last > 120.0 { 30 } else { 10 };
    for second in (0..=last as u32).step_by(step) {
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{second}</text>",
            x(f64::from(second)),
            bottom + 15.0
        );
    }
}
