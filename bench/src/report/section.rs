//! Results that belong together: the same trace played in the same mode, perhaps from several files.

use crate::replay::{options::Point, pooled::Pooled, results::Results, summary::Run};

/// One part of the page.
pub struct Section<'a> {
    /// Its heading.
    pub title: String,
    /// The files it is of.
    pub results: Vec<&'a Results>,
    /// What is compared.
    pub series: Vec<Series<'a>>,
}

/// A policy, or a server, with its points.
pub struct Series<'a> {
    /// In legends and tables.
    pub name: String,
    /// In the order of the points.
    pub pooled: Vec<&'a Pooled>,
    /// Every run, the seeds of a point beside each other.
    pub runs: Vec<&'a Run>,
}

impl<'a> Section<'a> {
    /// Sorts results into sections, in the order of their appearance.
    pub fn all(results: &'a [Results]) -> Vec<Self> {
        let mut sections: Vec<(String, Section<'a>)> = Vec::new();
        for result in results {
            let mode = result.settings["mode"].as_str().unwrap_or("open");
            let swept = swept(result).unwrap_or_default();
            let key = format!("{} {mode} {swept}", result.trace.name);
            let place = sections.iter().position(|(known, _)| *known == key);
            let place = place.unwrap_or_else(|| {
                let swept =
                    if swept.is_empty() { String::new() } else { format!(", {swept} swept") };
                let title = format!("{}, {mode} loop{swept}", result.trace.name);
                sections.push((key, Section { title, results: Vec::new(), series: Vec::new() }));
                sections.len() - 1
            });
            sections[place].1.add(result);
        }
        sections.into_iter().map(|(_, section)| section).collect()
    }

    fn add(&mut self, result: &'a Results) {
        self.results.push(result);
        let mut policies: Vec<&str> = Vec::new();
        for pooled in &result.pooled {
            if !policies.contains(&pooled.policy.as_str()) {
                policies.push(&pooled.policy);
            }
        }
        for policy in policies {
            let is_taken = self.series.iter().any(|series| series.name == policy);
            let label = result.label.clone().unwrap_or_else(|| format!("#{}", self.results.len()));
            let name = if is_taken { format!("{policy} ({label})") } else { policy.to_owned() };
            self.series.push(Series {
                name,
                pooled: result.pooled.iter().filter(|pooled| pooled.policy == policy).collect(),
                runs: result.runs.iter().filter(|run| run.policy == policy).collect(),
            });
        }
    }

    /// The swept option.
    pub fn swept(&self) -> Option<&'a str> {
        self.results.first().and_then(|result| swept(result))
    }

    /// The point that plots of single points show: the highest one.
    pub fn shown(&self) -> Option<&'a Point> {
        let points = self.series.iter().flat_map(|series| &series.pooled);
        points.filter_map(|pooled| pooled.point.as_ref()).max_by(|a, b| a.value.total_cmp(&b.value))
    }
}

impl<'a> Series<'a> {
    /// The seeds taken together at a point.
    pub fn at(&self, point: Option<&Point>) -> Option<&'a Pooled> {
        self.pooled.iter().find(|pooled| pooled.point.as_ref() == point).copied()
    }

    /// The runs at a point, one a seed.
    pub fn runs_at(&self, point: Option<&Point>) -> Vec<&'a Run> {
        self.runs.iter().filter(|run| run.point.as_ref() == point).copied().collect()
    }
}

fn swept(result: &Results) -> Option<&str> {
    result.pooled.first()?.point.as_ref().map(|point| point.name.as_str())
}
