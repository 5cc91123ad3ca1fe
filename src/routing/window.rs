//! Successes and failures of the last seconds, in a ring of time buckets.
//!
//! A ring of counters costs the same at any rate of requests. An exponential average would be one
//! number, but "under half of the last ten seconds" could then not be said in words that an
//! operator can check against a graph.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// Buckets in the ring; the window forgets in steps of a tenth of its width.
pub const BUCKETS: usize = 10;

#[derive(Debug, Clone, Copy, Default)]
struct Bucket {
    /// Which step of time its counts belong to. A bucket left from an earlier round of the ring
    /// keeps its old step and is therefore not summed: nothing has to be cleared on time.
    step: u64,
    successes: u32,
    failures: u32,
}

/// Counts of a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally {
    /// Outcomes that were a success.
    pub successes: u64,
    /// Outcomes that were a failure.
    pub failures: u64,
}

impl Tally {
    /// Outcomes of both kinds.
    pub fn outcomes(&self) -> u64 {
        self.successes + self.failures
    }

    /// Successes over outcomes, 0 to 1; 1 when nothing was counted.
    pub fn success_share(&self) -> f64 {
        if self.outcomes() == 0 { 1.0 } else { self.successes as f64 / self.outcomes() as f64 }
    }
}

/// What a [`SuccessWindow`] has counted. Stored by the names of its fields.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct WindowImage {
    /// The width of a bucket.
    pub step: Duration,
    /// How long ago the newest began.
    pub phase: Duration,
    /// Successes and failures by bucket, the newest first.
    pub counts: Vec<(u32, u32)>,
}

/// The ring.
#[derive(Debug, Clone)]
pub struct SuccessWindow {
    started: Instant,
    step: Duration,
    /// The latest step written. Time that goes backwards is counted here, so that a bucket is
    /// never reused for an earlier step.
    newest: u64,
    buckets: [Bucket; BUCKETS],
}

impl SuccessWindow {
    /// An empty window `width` wide; a width under 10 ns is taken as 10 ns.
    pub fn new(width: Duration, now: Instant) -> Self {
        let step = (width / BUCKETS as u32).max(Duration::from_nanos(1));
        Self { started: now, step, newest: 0, buckets: [Bucket::default(); BUCKETS] }
    }

    /// Counts one outcome at `now`.
    pub fn record(&mut self, success: bool, now: Instant) {
        let step = self.step_at(now);
        self.newest = step;
        let bucket = &mut self.buckets[(step % BUCKETS as u64) as usize];
        if bucket.step != step {
            *bucket = Bucket { step, ..Bucket::default() };
        }
        let count = if success { &mut bucket.successes } else { &mut bucket.failures };
        *count = count.saturating_add(1);
    }

    /// What was counted in the window that ends at `now`.
    pub fn tally(&self, now: Instant) -> Tally {
        let last = self.step_at(now);
        let mut tally = Tally::default();
        for bucket in &self.buckets {
            if last - bucket.step < BUCKETS as u64 {
                tally.successes += u64::from(bucket.successes);
                tally.failures += u64::from(bucket.failures);
            }
        }
        tally
    }

    /// What was counted.
    pub fn image(&self, now: Instant) -> WindowImage {
        let newest = self.step_at(now);
        let begun = self.step.saturating_mul(u32::try_from(newest).unwrap_or(u32::MAX));
        let phase = now.saturating_duration_since(self.started).saturating_sub(begun);
        let counts = (0..BUCKETS as u64).map_while(|back| {
            let step = newest.checked_sub(back)?;
            let bucket = self.buckets[(step % BUCKETS as u64) as usize];
            let counted = bucket.step == step;
            Some(if counted { (bucket.successes, bucket.failures) } else { (0, 0) })
        });
        WindowImage { step: self.step, phase: phase.min(self.step), counts: counts.collect() }
    }

    /// A window `width` wide in which that was counted that an image tells of, taken `away` ago.
    /// Where the width was another, outcomes count from the beginning of their old bucket on.
    pub fn restore(width: Duration, image: &WindowImage, away: Duration, now: Instant) -> Self {
        let mut window = Self::new(width, now);
        let before_newest = window.step * (BUCKETS as u32 - 1);
        let age = before_newest.saturating_add(image.phase).saturating_add(away);
        let Some(started) = now.checked_sub(age) else { return window };
        window.started = started;
        for (back, &(successes, failures)) in (0..BUCKETS as u32).zip(&image.counts) {
            let begun = before_newest.checked_sub(image.step.saturating_mul(back));
            let Some(begun) = begun.filter(|_| successes > 0 || failures > 0) else { continue };
            let step = (begun.as_nanos() / window.step.as_nanos()) as u64;
            let bucket = &mut window.buckets[(step % BUCKETS as u64) as usize];
            bucket.step = step;
            bucket.successes = bucket.successes.saturating_add(successes);
            bucket.failures = bucket.failures.saturating_add(failures);
            window.newest = window.newest.max(step);
        }
        window
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.buckets = [Bucket { step: self.newest, ..Bucket::default() }; BUCKETS];
    }

    /// Steps from the start to `now`, never before the newest one written.
    fn step_at(&self, now: Instant) -> u64 {
        let elapsed = now.saturating_duration_since(self.started);
        ((elapsed.as_nanos() / self.step.as_nanos()) as u64).max(self.newest)
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test needs an instant to start from")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const WIDTH: Duration = Duration::from_secs(10);

    #[test]
    fn counts_age_out_after_the_width() {
        let t0 = Instant::now();
        let mut window = SuccessWindow::new(WIDTH, t0);
        window.record(false, t0);
        window.record(true, t0 + Duration::from_secs(5));
        let at = |secs| window.tally(t0 + Duration::from_millis(secs));
        assert_eq!(at(9_999), Tally { successes: 1, failures: 1 });
        assert_eq!(at(10_000), Tally { successes: 1, failures: 0 });
        assert_eq!(at(15_000), Tally::default());
        assert!((at(15_000).success_share() - 1.0).abs() < 1e-9);
    }

    #[test]
    fn clear_forgets_even_when_the_ring_has_turned() {
        let t0 = Instant::now();
        let mut window = SuccessWindow::new(WIDTH, t0);
        for secs in 0..25 {
            window.record(false, t0 + Duration::from_secs(secs));
        }
        window.clear();
        assert_eq!(window.tally(t0 + Duration::from_secs(25)), Tally::default());
    }

    proptest! {
        /// Against a list of (step, outcome), with time stepping back now and then.
        #[test]
        fn agrees_with_a_list_of_outcomes(
            steps in prop::collection::vec((-3_000_i64..6_000, any::<bool>()), 1..200)
        ) {
            let t0 = Instant::now();
            let mut window = SuccessWindow::new(WIDTH, t0);
            let mut list: Vec<(u64, bool)> = Vec::new();
            let (mut now_ms, mut newest) = (0_i64, 0_u64);
            for (delta, success) in steps {
                now_ms = (now_ms + delta).max(0);
                let now = t0 + Duration::from_millis(now_ms as u64);
                newest = newest.max(now_ms as u64 / 1_000);
                list.push((newest, success));
                window.record(success, now);
                let recent = list.iter().filter(|(step, _)| newest - step < BUCKETS as u64);
                let (successes, failures) =
                    recent.fold((0, 0), |(s, f), e| if e.1 { (s + 1, f) } else { (s, f + 1) });
                prop_assert_eq!(window.tally(now), Tally { successes, failures });
            }
        }
    }
}
