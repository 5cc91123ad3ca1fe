//! When a breaker trips and how long it stays open.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::super::OutOfRange;

/// No duration of a breaker may exceed a day: with that, `Instant` arithmetic cannot overflow.
const DURATION_MAX: Duration = Duration::from_hours(24);

/// The settings of a breaker, not checked yet. [`Default`] is what ships.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BreakerSettings {
    /// Trips after this many failures without a success between them, 1 to 1,000. Default 3: one
    /// reset connection is bad luck, and a dead worker should cost few requests.
    pub failures_in_row_max: u32,
    /// Trips when the share of successes in `window` falls under this, 0 (never) to 1. Default
    /// 0.5. Catches the worker that fails every other request and so never three in a row.
    pub success_share_min: f64,
    /// Over which time the share is taken, 100 ms to a day. Default 10 s.
    pub window: Duration,
    /// Outcomes in `window` under which the share is not judged, at least 1. Default 10: with
    /// fewer, chance alone brings a good worker under half.
    pub outcomes_min: u32,
    /// How long the first ejection lasts, 1 ms up to `cool_down_max`. Default 1 s: long enough
    /// for a restart to begin, short enough to waste little of a worker that blinked.
    pub cool_down_first: Duration,
    /// Where the doubling of the cool-down stops, at most a day. Default 60 s: a worker that comes
    /// back after an hour is found within a minute.
    pub cool_down_max: Duration,
    /// When a probe that has not reported counts as lost and the next may go, 1 ms to a day.
    /// Default 60 s: a probe is a real request, and a real prefill can take a minute.
    pub probe_expires_after: Duration,
    /// How long a readmitted worker must go without a failure, and then succeed, before its next
    /// ejection starts from `cool_down_first` again, at most a day. Default 30 s.
    pub steady_after: Duration,
}

impl Default for BreakerSettings {
    fn default() -> Self {
        Self {
            failures_in_row_max: 3,
            success_share_min: 0.5,
            window: Duration::from_secs(10),
            outcomes_min: 10,
            cool_down_first: Duration::from_secs(1),
            cool_down_max: Duration::from_mins(1),
            probe_expires_after: Duration::from_mins(1),
            steady_after: Duration::from_secs(30),
        }
    }
}

/// Settings that were checked.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct BreakerParams(BreakerSettings);

impl BreakerParams {
    /// Checks `settings`.
    ///
    /// # Errors
    /// [`OutOfRange`] names the first setting outside the range its field documents.
    pub fn try_new(settings: BreakerSettings) -> Result<Self, OutOfRange> {
        let s = &settings;
        OutOfRange::unless(
            (1..=1_000).contains(&s.failures_in_row_max),
            "failures_in_row_max",
            s.failures_in_row_max,
            "1 to 1000",
        )?;
        OutOfRange::unless(
            (0.0..=1.0).contains(&s.success_share_min),
            "success_share_min",
            s.success_share_min,
            "0 (never trips) to 1",
        )?;
        OutOfRange::unless(s.outcomes_min >= 1, "outcomes_min", s.outcomes_min, "at least 1")?;
        let within = |least_ms| -> RangeInclusive<Duration> {
            Duration::from_millis(least_ms)..=DURATION_MAX
        };
        for (name, value, range, must_be) in [
            ("window", s.window, within(100), "100 ms to 1 day"),
            ("cool_down_first", s.cool_down_first, within(1), "1 ms to 1 day"),
            ("probe_expires_after", s.probe_expires_after, within(1), "1 ms to 1 day"),
            ("steady_after", s.steady_after, within(0), "at most 1 day"),
            (
                "cool_down_max",
                s.cool_down_max,
                s.cool_down_first..=DURATION_MAX,
                "cool_down_first to 1 day",
            ),
        ] {
            OutOfRange::unless(range.contains(&value), name, value, must_be)?;
        }
        Ok(Self(settings))
    }

    /// The checked settings.
    pub fn settings(&self) -> &BreakerSettings {
        &self.0
    }
}
