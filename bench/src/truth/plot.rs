//! The stale rates over time, as one SVG of small panels.
//!
//! Written by hand: a line, a shade and a few words a panel are less than a plotting crate would
//! bring into the build.

use std::fmt::Write;

use super::{scenario::Act, table::Row};

const COLUMNS: usize = 2;
const PANEL: (f64, f64) = (480.0, 170.0);
/// Around the axes of a panel: left, top, right, bottom.
const MARGIN: (f64, f64, f64, f64) = (48.0, 30.0, 14.0, 26.0);
const CEILINGS: [f64; 6] = [0.01, 0.05, 0.1, 0.2, 0.5, 1.0];

/// One panel a scenario.
pub fn svg(rows: &[Row]) -> String {
    let (width, height) =
        (PANEL.0 * COLUMNS as f64, PANEL.1 * rows.len().div_ceil(COLUMNS) as f64 + 30.0);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" \
         width=\"{width}\" height=\"{height}\" font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"12\" y=\"20\" font-size=\"13\">Stale rate (tokens predicted to be cached that \
         were not, of those predicted; over 1 s) by seconds; the fault is shaded. Scales \
         differ.</text>\n"
    );
    for (at, row) in rows.iter().enumerate() {
        let (x, y) = ((at % COLUMNS) as f64 * PANEL.0, (at / COLUMNS) as f64 * PANEL.1 + 30.0);
        let _ = writeln!(svg, "<g transform=\"translate({x} {y})\">");
        panel(&mut svg, row);
        svg += "</g>\n";
    }
    svg + "</svg>\n"
}

fn panel(svg: &mut String, (scenario, measured): &Row) {
    let (left, top, right, bottom) = (MARGIN.0, MARGIN.1, PANEL.0 - MARGIN.2, PANEL.1 - MARGIN.3);
    let last = measured.points.last().map_or(1.0, |point| point.at);
    let highest = measured.points.iter().map(|point| point.stale).fold(0.0, f64::max);
    let ceiling = CEILINGS.into_iter().find(|ceiling| highest <= *ceiling).unwrap_or(1.0);
    let x = |at: f64| left + (right - left) * at / last;
    let y = |rate: f64| bottom - (bottom - top) * rate / ceiling;
    let (start, end) = measured.fault;
    // A moment is shaded too, a hair wide.
    let shade = match scenario.act {
        Act::Reference | Act::Silence => 0.0,
        _ => (x(end) - x(start)).max(1.5),
    };
    let _ = write!(
        svg,
        "<text x=\"{left}\" y=\"{:.1}\"><tspan font-weight=\"bold\">{}</tspan> {}</text>\n\
         <rect x=\"{:.1}\" y=\"{top}\" width=\"{shade:.1}\" height=\"{:.1}\" fill=\"#f3d9a4\"/>\n\
         <path d=\"M{left} {top}V{bottom}H{right}\" fill=\"none\" stroke=\"#888\"/>\n\
         <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{} %</text>\n\
         <text x=\"{:.1}\" y=\"{bottom}\" text-anchor=\"end\">0</text>\n",
        top - 8.0,
        scenario.name,
        scenario.what.replace('&', "&amp;").replace('<', "&lt;"),
        x(start),
        bottom - top,
        left - 5.0,
        top + 8.0,
        ceiling * 100.0,
        left - 5.0,
    );
    let step = if last > 40.0 { 20 } else { 5 };
    for second in (0..=last as u32).step_by(step) {
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{second}</text>",
            x(f64::from(second)),
            bottom + 15.0
        );
    }
    let line: Vec<_> = measured
        .points
        .iter()
        .map(|point| format!("{:.1},{:.1}", x(point.at), y(point.stale)))
        .collect();
    let _ = writeln!(
        svg,
        "<polyline points=\"{}\" fill=\"none\" stroke=\"#b3261e\" stroke-width=\"1.5\"/>",
        line.join(" ")
    );
}
