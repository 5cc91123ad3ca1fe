//! What sources of workers tell: metrics and log lines.

use std::time::Instant;

use prometheus::{IntCounter, IntGauge};

use super::metrics::{
    DISCOVERY_AGE_SECONDS, DISCOVERY_LOOKUPS, DISCOVERY_RESULTS, DISCOVERY_WORKERS,
};

/// How a look at a source ended: places in `DISCOVERY_RESULTS`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LookupResult {
    /// Records, or a file that can be used.
    Answered,
    /// No such name or record.
    Empty,
    /// No answer, or no file.
    Failed,
    /// A file that cannot be used.
    Malformed,
}

/// One source's series and lines.
#[derive(Debug)]
pub struct SourceMetrics {
    source: String,
    lookups: [IntCounter; 4],
    workers: IntGauge,
    age: IntGauge,
}

impl SourceMetrics {
    /// Those of the source with this label.
    pub fn of(source: &str) -> Self {
        let lookups =
            DISCOVERY_RESULTS.map(|how| DISCOVERY_LOOKUPS.with_label_values(&[source, how]));
        let age = DISCOVERY_AGE_SECONDS.with_label_values(&[source]);
        age.set(-1);
        let workers = DISCOVERY_WORKERS.with_label_values(&[source]);
        Self { source: source.to_owned(), lookups, workers, age }
    }

    /// The source is not followed any more.
    pub fn forget(source: &str) {
        for how in DISCOVERY_RESULTS {
            let _ = DISCOVERY_LOOKUPS.remove_label_values(&[source, how]);
        }
        for vec in [&DISCOVERY_AGE_SECONDS, &DISCOVERY_WORKERS] {
            let _ = vec.remove_label_values(&[source]);
        }
    }

    /// It was looked at or asked.
    pub fn looked(&self, result: LookupResult) {
        self.lookups[result as usize].inc();
    }

    /// The last answer that was believed is from then.
    pub fn tell_age(&self, good_at: Option<Instant>, now: Instant) {
        let age = good_at.map(|at| now.saturating_duration_since(at).as_secs());
        self.age.set(age.map_or(-1, |age| age as i64));
    }

    /// It names so many workers now.
    pub fn published(&self, workers: usize) {
        self.workers.set(workers as i64);
        tracing::info!(source = self.source, workers, "workers of source changed");
    }

    /// It fails in another way than before, or does not fail any more.
    pub fn problem(&self, kind: &str, name: &str, why: Option<&str>) {
        let source = &self.source;
        if let Some(why) = why {
            tracing::warn!(source, kind, name, why, "source fails: its workers are kept");
        } else {
            tracing::info!(source, kind, name, "source is good again");
        }
    }

    /// An answer had more records than are kept.
    pub fn left_out(&self, name: &str, count: usize) {
        tracing::warn!(source = self.source, name, count, "too many records: some are left out");
    }

    /// A worker it names cannot be one.
    pub fn refused(&self, why: &str) {
        tracing::warn!(source = self.source, why, "source names a worker that cannot be one");
    }
}
