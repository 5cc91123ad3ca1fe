//! A scrape of the metrics listener.

use std::fmt::Write;

/// Prometheus text, parsed as far as tests need it: they look at whole numbers only.
#[derive(Debug)]
pub(crate) struct Metrics {
    samples: Vec<(String, String, i64)>,
}

impl Metrics {
    /// Reads the text format.
    pub(crate) fn parse(text: &str) -> Self {
        let sample = |line: &str| {
            let (series, value) = line.rsplit_once(' ')?;
            let (name, labels) = match series.split_once('{') {
                Some((name, labels)) => (name, labels.trim_end_matches('}')),
                None => (series, ""),
            };
            Some((name.to_owned(), labels.to_owned(), value.parse::<f64>().ok()? as i64))
        };
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        Self { samples: lines.filter_map(sample).collect() }
    }

    /// Sum of the series of `name` whose labels include all of `labels`; 0 without any.
    pub(crate) fn sum(&self, name: &str, labels: &[(&str, &str)]) -> i64 {
        let fits = |text: &str| {
            labels.iter().all(|(key, value)| {
                let mut label = String::new();
                let _ = write!(label, "{key}=\"{value}\"");
                text.split(',').any(|part| part == label)
            })
        };
        let series = self.samples.iter().filter(|(known, text, _)| known == name && fits(text));
        series.map(|(_, _, value)| value).sum()
    }

    /// Whether any series of `name` is there.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.samples.iter().any(|(known, _, _)| known == name)
    }
}
