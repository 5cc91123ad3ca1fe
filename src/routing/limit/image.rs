//! What a bound has learned, as content for another process.

use serde::{Deserialize, Serialize};

use super::{Limit, OBSERVED_RATE_RANGE, Rate, STARTS_RANGE};

/// What a [`Limit`] has learned. Stored by the names of its fields; whole numbers, as text does not
/// bring back every fraction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct LimitImage {
    /// Streams begun, by the million seconds; 0 = not learned.
    pub starts_per_million_s: u64,
    /// Requests that ran while others waited, in thousandths.
    pub running_milli: u64,
    /// Tokens of prefill by the thousand seconds while others waited; 0 = not learned.
    pub prefill_per_thousand_s: u64,
    /// The same at its best; 0 = not learned.
    pub best_per_thousand_s: u64,
    /// Samples in the best.
    pub best_samples: u32,
}

impl Limit {
    /// What was learned. Refusals and silence are of the moment.
    pub fn image(&self) -> LimitImage {
        let milli = |value: f64| (value * 1e3).round() as u64;
        let learned = |pace: &Rate, most: f64| if pace.per_s < most { pace.per_s } else { 0.0 };
        LimitImage {
            starts_per_million_s: milli(learned(&self.starts, *STARTS_RANGE.end()) * 1e3),
            running_milli: milli(self.running),
            prefill_per_thousand_s: milli(learned(&self.prefill, *OBSERVED_RATE_RANGE.end())),
            best_per_thousand_s: milli(self.best_rate),
            best_samples: self.best_samples,
        }
    }

    /// Goes on from what was learned; what cannot have been counts as not learned.
    pub fn restore(image: &LimitImage) -> Self {
        let mut limit = Self::new();
        let starts = image.starts_per_million_s as f64 / 1e6;
        if STARTS_RANGE.contains(&starts) {
            limit.starts.per_s = starts;
        }
        limit.running = (image.running_milli as f64 / 1e3).min(f64::from(u32::MAX));
        let prefill = |per_thousand_s: u64| {
            let per_s = per_thousand_s as f64 / 1e3;
            OBSERVED_RATE_RANGE.contains(&per_s).then_some(per_s)
        };
        if let Some(per_s) = prefill(image.prefill_per_thousand_s) {
            limit.prefill.per_s = per_s;
        }
        if let Some(per_s) = prefill(image.best_per_thousand_s) {
            limit.best_rate = per_s;
            limit.best_samples = image.best_samples;
        }
        limit
    }
}
