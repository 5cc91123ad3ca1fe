//! Reports of replays: plots as SVG and one page with everything in it.

pub mod charts;
pub mod html;
pub mod plot;
pub mod section;

use std::path::Path;

use self::{charts::Chart, section::Section};
use crate::replay::{Any, results::Results};

/// Writes the page, and every plot as a file beside it.
///
/// # Errors
/// A file cannot be written, or a plot not be drawn.
pub fn write(results: &[Results], title: &str, out: &Path) -> Result<(), Any> {
    let mut sections = Vec::new();
    for section in Section::all(results) {
        let charts = charts::all(&section)?;
        sections.push((section, charts));
    }
    let folder = out.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder)?;
    for (at, (_, charts)) in sections.iter().enumerate() {
        for chart in charts {
            std::fs::write(folder.join(file_name(at, sections.len(), chart)), &chart.svg)?;
        }
    }
    std::fs::write(out, html::page(title, &sections))?;
    Ok(())
}

/// Sections have numbers where there are several.
fn file_name(section: usize, sections: usize, chart: &Chart) -> String {
    if sections > 1 {
        format!("{}-{}.svg", section + 1, chart.name)
    } else {
        format!("{}.svg", chart.name)
    }
}
