//! Two kinds of plots as SVG: lines, and bars in groups with intervals.

use std::ops::Range;

use plotters::{
    coord::Shift,
    prelude::{
        ChartBuilder, Circle, DrawingArea, IntoDrawingArea, IntoLogRange, PathElement, Rectangle,
        SVGBackend, Text,
    },
    series::LineSeries,
    style::{Color, IntoFont, RGBColor, ShapeStyle, WHITE},
};

use crate::{replay::Any, stats::bootstrap::Figure};

/// Size of a plot.
const SIZE: (u32, u32) = (620, 340);
/// Above the plot: its title and one line of names.
const TITLE: u32 = 24;
const LEGEND: u32 = 20;
const FONT: &str = "sans-serif";
/// Width of a character of the legend, about.
const CHAR: u32 = 7;
/// Ink of axes and text.
const INK: RGBColor = RGBColor(0x33, 0x37, 0x3d);
const GRID: RGBColor = RGBColor(0xe4, 0xe6, 0xea);
/// Colours that differ in lightness too.
const COLOURS: [RGBColor; 8] = [
    RGBColor(0x6b, 0x72, 0x80),
    RGBColor(0xe0, 0x8a, 0x00),
    RGBColor(0x1f, 0x5f, 0xc4),
    RGBColor(0x1b, 0x9e, 0x77),
    RGBColor(0xc2, 0x37, 0x2c),
    RGBColor(0x8e, 0x4f, 0xc9),
    RGBColor(0x00, 0xa5, 0xc4),
    RGBColor(0xb0, 0x7a, 0x4b),
];

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Lines over a numeric axis.
#[derive(Debug, Default)]
pub struct Lines {
    /// Above it.
    pub title: String,
    /// Below the axis.
    pub x: String,
    /// Beside the other one.
    pub y: String,
    /// Whether x is logarithmic; values up to 0 are then left out.
    pub is_log: bool,
    /// Whether points are marked.
    pub has_marks: bool,
    /// The least highest value of y that is shown.
    pub y_least: f64,
    /// Names and points; a name that a line shares with one before it shares its colour too.
    pub lines: Vec<(String, Vec<(f64, f64)>)>,
    /// Thin lines that explain others: the name of these, and points.
    pub thin: Vec<(String, Vec<(f64, f64)>)>,
}

/// Bars in groups.
#[derive(Debug, Default)]
pub struct Bars {
    /// Above it.
    pub title: String,
    /// Beside the axis.
    pub y: String,
    /// Below it, one a group.
    pub groups: Vec<String>,
    /// Names, and for each group the value with its interval.
    pub series: Vec<(String, Vec<Option<Figure>>)>,
}

impl Lines {
    /// The SVG; `None` where there is nothing to show.
    ///
    /// # Errors
    /// It cannot be drawn.
    pub fn svg(&self) -> Result<Option<String>, Any> {
        let kept = |x: f64, y: f64| x.is_finite() && y.is_finite() && (x > 0.0 || !self.is_log);
        let points = || self.lines.iter().flat_map(|(_, points)| points).filter(|p| kept(p.0, p.1));
        let xs = || points().map(|point| point.0);
        let (low, high) = (xs().fold(f64::INFINITY, f64::min), xs().fold(0.0, f64::max));
        if low > high {
            return Ok(None);
        }
        let top = points().map(|point| point.1).fold(self.y_least, f64::max);
        let mut svg = String::new();
        {
            let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
            let names = self.lines.iter().map(|(name, _)| name.as_str()).collect();
            let names = distinct(names);
            let area = head(&area, &self.title, &names)?;
            if self.is_log {
                let x = (low * 0.95..high.max(low * 1.5) * 1.05).log_scale();
                self.draw(&area, x, top, &names, &kept)?;
            } else {
                let room = if self.has_marks { 0.04 * (high - low) } else { 0.0 };
                let x = low - room..(high + room).max(low + 1e-9);
                self.draw(&area, x, top, &names, &kept)?;
            }
            area.present()?;
        }
        Ok(Some(svg))
    }

    fn draw<X>(
        &self,
        area: &Area<'_>,
        x: X,
        top: f64,
        names: &[&str],
        kept: &dyn Fn(f64, f64) -> bool,
    ) -> Result<(), Any>
    where
        X: plotters::coord::ranged1d::AsRangedCoord<Value = f64>,
        X::CoordDescType: plotters::coord::ranged1d::ValueFormatter<f64>,
    {
        let mut chart = ChartBuilder::on(area)
            .margin_left(8)
            .margin_right(16)
            .margin_top(6)
            .x_label_area_size(38)
            .y_label_area_size(58)
            .build_cartesian_2d(x, 0.0..top * 1.04)?;
        chart
            .configure_mesh()
            .axis_style(INK)
            .bold_line_style(GRID)
            .light_line_style(WHITE)
            .x_labels(10)
            .y_labels(6)
            .x_label_formatter(&|x| if self.is_log { leading(*x) } else { short(*x) })
            .y_label_formatter(&|y| short(*y))
            .label_style((FONT, 12).into_font().color(&INK))
            .axis_desc_style((FONT, 12).into_font().color(&INK))
            .x_desc(&self.x)
            .y_desc(&self.y)
            .draw()?;
        let colour = |name: &str| {
            COLOURS[names.iter().position(|n| *n == name).unwrap_or(0) % COLOURS.len()]
        };
        let shown = |points: &[(f64, f64)]| -> Vec<(f64, f64)> {
            points.iter().copied().filter(|(x, y)| kept(*x, *y)).collect()
        };
        for (name, points) in &self.thin {
            let style = colour(name).mix(0.5).stroke_width(1);
            chart.draw_series(LineSeries::new(shown(points), style))?;
        }
        for (name, points) in &self.lines {
            let points = shown(points);
            let style = colour(name).stroke_width(2);
            if self.has_marks {
                let mark = |point: &(f64, f64)| Circle::new(*point, 3, colour(name).filled());
                chart.draw_series(points.iter().map(mark))?;
            }
            chart.draw_series(LineSeries::new(points, style))?;
        }
        Ok(())
    }
}

impl Bars {
    /// The SVG; `None` where there is nothing to show.
    ///
    /// # Errors
    /// It cannot be drawn.
    pub fn svg(&self) -> Result<Option<String>, Any> {
        let values = self.series.iter().flat_map(|(_, values)| values.iter().flatten());
        let top = values.map(|figure| figure.high).fold(0.0, f64::max);
        if top <= 0.0 || self.groups.is_empty() {
            return Ok(None);
        }
        let mut svg = String::new();
        {
            let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
            let names: Vec<&str> = self.series.iter().map(|(name, _)| name.as_str()).collect();
            let area = head(&area, &self.title, &names)?;
            self.draw(&area, -0.5..self.groups.len() as f64 - 0.5, top)?;
            area.present()?;
        }
        Ok(Some(svg))
    }

    fn draw(&self, area: &Area<'_>, x: Range<f64>, top: f64) -> Result<(), Any> {
        let mut chart = ChartBuilder::on(area)
            .margin_left(8)
            .margin_right(16)
            .margin_top(6)
            .x_label_area_size(26)
            .y_label_area_size(58)
            .build_cartesian_2d(x, 0.0..top * 1.06)?;
        // The middle of each group has its name.
        let name = |x: &f64| {
            let is_middle = (x - x.round()).abs() < 1e-6 && *x > -0.1;
            let group = is_middle.then(|| self.groups.get(x.round() as usize)).flatten();
            group.cloned().unwrap_or_default()
        };
        chart
            .configure_mesh()
            .disable_x_mesh()
            .axis_style(INK)
            .bold_line_style(GRID)
            .light_line_style(WHITE)
            .x_labels(self.groups.len().min(40))
            .y_labels(6)
            .x_label_formatter(&name)
            .y_label_formatter(&|y| short(*y))
            .label_style((FONT, 12).into_font().color(&INK))
            .axis_desc_style((FONT, 12).into_font().color(&INK))
            .y_desc(&self.y)
            .draw()?;
        let width = 0.8 / self.series.len() as f64;
        for (at, (_, values)) in self.series.iter().enumerate() {
            let colour = COLOURS[at % COLOURS.len()];
            for (group, value) in values.iter().enumerate() {
                let Some(Figure { value, low, high }) = *value else { continue };
                let left = group as f64 - 0.4 + width * at as f64;
                let (right, middle) = (left + 0.92 * width, left + 0.46 * width);
                let bar = Rectangle::new([(left, 0.0), (right, value)], colour.filled());
                chart.draw_series([bar])?;
                if high > low {
                    let ends = vec![(middle, low), (middle, high)];
                    let style = ShapeStyle::from(&INK).stroke_width(1);
                    chart.draw_series([PathElement::new(ends, style)])?;
                    for end in [low, high] {
                        let cap = width * 0.14;
                        let cap = vec![(middle - cap, end), (middle + cap, end)];
                        chart.draw_series([PathElement::new(cap, style)])?;
                    }
                }
            }
        }
        Ok(())
    }
}

/// Title and names above the plot, on as many lines as these take; gives what is left.
fn head<'a>(area: &Area<'a>, title: &str, names: &[&str]) -> Result<Area<'a>, Any> {
    area.fill(&WHITE)?;
    let style = (FONT, 15).into_font().color(&INK);
    area.draw(&Text::new(title.to_owned(), (10, 7), style))?;
    let (mut x, mut y) = (10, TITLE + 4);
    for (at, name) in names.iter().enumerate() {
        let wide = 30 + CHAR * name.chars().count() as u32;
        if x + wide > SIZE.0 && x > 10 {
            (x, y) = (10, y + LEGEND);
        }
        let colour = COLOURS[at % COLOURS.len()];
        let (left, top) = (x as i32, y as i32);
        area.draw(&Rectangle::new([(left, top + 2), (left + 12, top + 10)], colour.filled()))?;
        let style = (FONT, 12).into_font().color(&INK);
        area.draw(&Text::new((*name).to_owned(), (left + 17, top), style))?;
        x += wide;
    }
    let (_, rest) = area.split_vertically(y + LEGEND);
    Ok(rest)
}

/// Each name once, in the order of their appearance.
fn distinct(names: Vec<&str>) -> Vec<&str> {
    let mut seen = Vec::new();
    for name in names {
        if !seen.contains(&name) {
            seen.push(name);
        }
    }
    seen
}

/// A number with as many digits as an axis needs.
pub fn short(value: f64) -> String {
    let size = value.abs();
    match size {
        _ if size >= 1e6 => format!("{}M", trimmed(value / 1e6, 1)),
        _ if size >= 1e4 => format!("{}k", trimmed(value / 1e3, 1)),
        _ if size >= 100.0 || size == 0.0 => format!("{value:.0}"),
        _ if size >= 1.0 => trimmed(value, 1),
        _ if size >= 0.01 => trimmed(value, 3),
        _ => format!("{value:.0e}"),
    }
}

/// On a logarithmic axis: 1, 2, 3 and 5 have room for a number, those between them have not.
fn leading(value: f64) -> String {
    let digit = (value / 10.0_f64.powf(value.log10().floor())).round();
    if [1.0, 2.0, 3.0, 5.0, 10.0].contains(&digit) { short(value) } else { String::new() }
}

fn trimmed(value: f64, digits: usize) -> String {
    let text = format!("{value:.digits$}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        let cases = [(0.0, "0"), (0.25, "0.25"), (4.0, "4"), (12.5, "12.5"), (1500.0, "1500")];
        for (value, text) in cases {
            assert_eq!(short(value), text);
        }
        assert_eq!((leading(300.0).as_str(), leading(700.0).as_str()), ("300", ""));
        assert_eq!((short(25_000.0).as_str(), short(1.5e6).as_str()), ("25k", "1.5M"));
    }

    #[test]
    fn names_of_users_do_no_harm_and_nothing_is_an_error() {
        let lines = vec![("<script>&".to_owned(), vec![(1.0, 2.0), (f64::NAN, 1.0), (0.0, 1.0)])];
        let plot = Lines { is_log: true, lines, ..Lines::default() };
        let svg = plot.svg().expect("drawn").expect("something");
        assert!(svg.contains("&lt;script&gt;&amp;") && !svg.contains("<script>"));
        assert!(Lines::default().svg().is_ok_and(|svg| svg.is_none()));
        let bars = Bars { groups: vec!["p50".to_owned()], ..Bars::default() };
        assert!(bars.svg().is_ok_and(|svg| svg.is_none()));
    }
}
