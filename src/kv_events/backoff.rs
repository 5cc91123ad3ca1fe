//! Waits between attempts: doubling, with jitter so that a fleet does not come in step.

use std::time::Duration;

use rand::{Rng, SeedableRng, rngs::SmallRng};

/// The waits of one source.
#[derive(Debug)]
pub(super) struct Backoff {
    first: Duration,
    longest: Duration,
    failed: u32,
    rng: SmallRng,
}

impl Backoff {
    /// Seeded by the system.
    pub(super) fn new(first: Duration, longest: Duration) -> Self {
        Self::from_rng(first, longest, SmallRng::from_os_rng())
    }

    /// Seeded by a test.
    fn from_rng(first: Duration, longest: Duration, rng: SmallRng) -> Self {
        Self { first, longest, failed: 0, rng }
    }

    /// How long to wait now: from half the step up to all of it.
    pub(super) fn next(&mut self) -> Duration {
        let step = self.first.saturating_mul(1 << self.failed.min(16)).min(self.longest);
        self.failed = self.failed.saturating_add(1);
        step.mul_f64(self.rng.random_range(0.5..=1.0))
    }

    /// It worked.
    pub(super) fn reset(&mut self) {
        self.failed = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_up_to_the_longest_and_starts_over() {
        let mut backoff = Backoff::from_rng(
            Duration::from_millis(100),
            Duration::from_secs(5),
            SmallRng::seed_from_u64(1),
        );
        let mut step = 100;
        for _ in 0..40 {
            let wait = backoff.next().as_millis();
            assert!((step / 2..=step).contains(&wait), "{wait} of {step}");
            step = (2 * step).min(5000);
        }
        backoff.reset();
        assert!(backoff.next().as_millis() <= 100);
    }
}
